"""Nothing in the training loop waits for the device: each call that would is counted.

On a CPU nothing waits, but the same calls are made: a number asked of a tensor, a tensor made of numbers on the host, or
a result whose shape depends on values.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from every_method import labels_left_out
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sltt_bench.planning.plan import Cell
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.torch_internals import TorchDispatchMode
from sltt_bench.training import engine, experiment
from sltt_bench.training.distributed import ALONE, Ranks
from sltt_bench.training.engine import TrainingSetup, _Totals, _train_batch
from sltt_bench.training.experiment import Experiment, build_optimizer

ASKED_OF_A_TENSOR = {"item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__"}
COPIED_FROM_THE_HOST = {"tensor", "new_tensor", "as_tensor", "asarray", "from_numpy"}
"""On a GPU a copy for which the host waits: `full` and `new_full` make the same on the device."""
_aten = torch.ops.aten
SHAPED_BY_VALUES = {
    _aten._local_scalar_dense,
    _aten.nonzero,
    _aten.masked_select,
    _aten._unique2,
    _aten.unique_consecutive,
    _aten.unique_dim,
    _aten.bincount,
    _aten.repeat_interleave,
    _aten.equal,
}
INDEXED = {_aten.index, _aten.index_put, _aten.index_put_}
"""By a mask they look for the places where it holds, whose number the host must know."""


def by_a_mask(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether an operation takes or sets a tensor at the places where a mask holds; one number is set without looking."""
    if func.overloadpacket not in INDEXED or not any(
        i is not None and i.dtype == torch.bool for i in args[1]
    ):
        return False
    return func.overloadpacket is _aten.index or args[2].dim() > 0


class Questions(TorchFunctionMode):
    """Notes who asks a tensor for a number, or makes one of numbers, by the name of the call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in ASKED_OF_A_TENSOR or name in COPIED_FROM_THE_HOST:
            self.calls.append(name)
        return func(*args, **(kwargs or {}))


class ValueDependentOperations(TorchDispatchMode):
    """The same for operations, whoever calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket in SHAPED_BY_VALUES or by_a_mask(func, args):
            self.calls.append(str(func))
        return func(*args, **(kwargs or {}))


STEPS = 3


def subject_of(
    method: str,
    backend: str,
    precision: str,
    *,
    fused: bool = True,
    ranks: Ranks = ALONE,
    network: dict[str, Any] | None = None,
    **native: Any,
) -> Experiment:
    overrides: dict[str, Any] = {
        "model": {"name": "cnn", "channels": [4, 4], "dropout": 0.2},
        "timesteps": STEPS,
        "train.precision": precision,
        **(network or {}),
    }
    overrides |= {f"native.{option}": value for option, value in native.items()}
    recipe = load_recipe("digits", overrides, chosen_methods=[method])
    cell = Cell(recipe, method, backend, 0, device="cpu")
    subject = experiment.assemble(cell, torch.device("cpu"), experiment.make_backend(cell), ranks)
    subject.optimizer = build_optimizer(recipe, subject.network, fused=fused)  # as on a GPU
    subject.network.train()
    return subject


def waiting_calls(subject: Experiment) -> list[str]:
    """Those of one iteration of the engine's loop, the second."""
    nothing: Any = None
    setup = TrainingSetup(
        nothing, {"test": nothing}, lambda x: x.float(), nothing, epochs=1, checkpoint_every=0
    )
    totals = _Totals(torch.device("cpu"))
    batch = torch.rand(4, 1, 8, 8), torch.randint(10, (4,))
    _train_batch(subject, setup, batch, totals)
    with Questions() as questions, ValueDependentOperations() as operations:
        _train_batch(subject, setup, batch, totals)
    return questions.calls + operations.calls


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("backend", ["reference", "native", "spikingjelly"])
def test_an_iteration_waits_for_nothing(backend: str, precision: str) -> None:
    if backend == "spikingjelly":
        pytest.importorskip("spikingjelly")
    for method in ("bptt", "sltt"):
        for recompute in (False, True)[: 2 if backend == "native" else 1]:
            assert waiting_calls(subject_of(method, backend, precision, recompute=recompute)) == []


NATIVE_WAYS: list[dict[str, Any]] = [
    {"fused_norm": "always"},
    {"recompute": True},
    {"fused_norm": "always", "recompute": True},
]
NETWORKS: dict[str, dict[str, Any]] = {
    "batch norm": {},
    "no normalisation": {"model": {"name": "cnn", "channels": [4, 4], "normalisation": "none"}},
    "standardised": {"model": {"name": "nf-resnet34", "width": 2}},
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("native", [{}, *NATIVE_WAYS], ids=str)
def test_no_rule_waits_whatever_native_makes_of_its_iteration(native: dict[str, Any], network: str) -> None:
    """Of the standardised network, which takes long, two rules: one of one backward pass, one with steps at once."""
    for method in ("bptt", "sltt", "tbptt-w2", "bptt-d0.5", "bptt-ckpt2", "sltt-k2"):
        if network == "standardised" and method not in ("bptt", "sltt-k2"):
            continue
        subject = subject_of(method, "native", "fp16", network=NETWORKS[network], **native)
        assert waiting_calls(subject) == drawn_on_the_host(method), method


def drawn_on_the_host(method: str) -> list[str]:
    """K of T steps are drawn on the CPU, whatever the device: one list, of integers that no device holds."""
    return ["tolist"] if method.startswith("sltt-k") else []


WAIT_FOR_NOTHING = (
    "bptt", "sltt", "tbptt-w2", "bptt-ckpt2", "bptt-d0.5", "bptt-l1", "ottt", "ottt-o", "e-prop", "s-tllr",
    "pp-prop", "rate", "conversion", "sltt-k2", "sltt-k2-unbiased",
)  # fmt: skip
ADAPTIVE = ("sltt-a2", "sltt-a2-unbiased")


@pytest.mark.parametrize("method", WAIT_FOR_NOTHING)
def test_no_training_rule_waits(method: str) -> None:
    assert waiting_calls(subject_of(method, "reference", "fp16")) == drawn_on_the_host(method)


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_an_adaptive_choice_of_steps_waits_once_for_each_step_after_the_first(
    method: str, backend: str
) -> None:
    """For d[t], on which the choice depends. What is drawn (`item`) is drawn on the host, at each step."""
    calls = Counter(waiting_calls(subject_of(method, backend, "fp16")))
    drawn = STEPS if method.endswith("unbiased") else 0
    numbers = calls.pop("aten._local_scalar_dense.default")
    assert numbers == STEPS - 1 + drawn
    assert calls == Counter({"__float__": STEPS - 1, "item": drawn})


def test_every_method_is_looked_at() -> None:
    assert labels_left_out((*WAIT_FOR_NOTHING, *ADAPTIVE)) == []


@pytest.mark.parametrize("synchronised", [False, True], ids=["own statistics", "synchronised statistics"])
@pytest.mark.parametrize("backend", ["reference", "native"])
def test_processes_that_share_a_batch_wait_for_nothing_but_each_other(
    backend: str, synchronised: bool
) -> None:
    network = {"train.synchronise_batch_norm": synchronised}
    for method in ("bptt", "sltt", "sltt-k2"):
        subject = subject_of(method, backend, "fp16", ranks=CONNECTED_TO_NONE, network=network)
        assert waiting_calls(subject) == drawn_on_the_host(method), method
    adaptive = subject_of("sltt-a2", backend, "fp16", ranks=CONNECTED_TO_NONE, network=network)
    assert Counter(waiting_calls(adaptive)) == {
        "__float__": STEPS - 1,
        "aten._local_scalar_dense.default": STEPS - 1,
    }


def test_a_parameter_without_a_gradient_makes_no_copy_from_the_host() -> None:
    """What the others have of it is asked for where they can be asked alone."""
    there, missing = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    there.grad = torch.ones(2)
    with Questions() as questions, ValueDependentOperations() as operations:
        CONNECTED_TO_NONE.exchange_gradients([there, missing], 4)
    assert questions.calls + operations.calls == []


CONNECTED_TO_NONE = Ranks(0, 2, connected=False)
"""One of two processes, which does all but the exchange itself."""


WAITING: dict[str, Callable[[Tensor], Any]] = {
    "a number asked for": lambda x: x.sum().item(),
    "a list": lambda x: x.tolist(),
    "a question": lambda x: bool((x > 0).all()),
    "a copy to the host": lambda x: x.cpu(),
    "a tensor of numbers": lambda x: x.new_tensor([1.0]),
    "places": lambda x: torch.where(x > 0),
    "a choice": lambda x: torch.masked_select(x, x > 0),
    "an index by a mask": lambda x: x[x > 0],
    "values set by a mask": lambda x: x.index_put_((x > 0,), x[:1]),
    "different values": lambda x: torch.unique(x),
    "runs of values": lambda x: torch.unique_consecutive(x),
    "counts": lambda x: torch.bincount(x.long()),
    "repetitions": lambda x: torch.repeat_interleave(x, x.long()),
    "equality": lambda x: torch.equal(x, x),
}


@pytest.mark.parametrize("what", WAITING)
def test_a_call_that_waits_is_counted(what: str) -> None:
    """So that none found above means that there is none."""
    with Questions() as questions, ValueDependentOperations() as operations:
        WAITING[what](torch.arange(3.0))
    assert questions.calls + operations.calls


def test_a_call_that_does_not_wait_is_not_counted() -> None:
    x = torch.arange(3.0)
    with Questions() as questions, ValueDependentOperations() as operations:
        x[x > 0] = 0.0
        x.new_full((2,), 1.0)
        x[torch.zeros(2, dtype=torch.long)]
    assert questions.calls + operations.calls == []


def test_without_the_fused_optimiser_the_loss_scaler_would_wait() -> None:
    """So that the count above is one that can fail."""
    assert waiting_calls(subject_of("sltt", "reference", "fp16", fused=False)) != []


def test_on_a_gpu_the_optimiser_is_fused() -> None:
    recipe = load_recipe("digits")
    network = torch.nn.Linear(2, 2)
    for optimizer in ("sgd", "adamw"):
        train = recipe.train.model_copy(update={"optimizer": optimizer})
        for fused in (False, True):
            built = build_optimizer(recipe.model_copy(update={"train": train}), network, fused=fused)
            assert all(group["fused"] is fused for group in built.param_groups)


def test_a_fused_step_is_the_step_of_the_optimiser_to_rounding() -> None:
    results = []
    for fused in (False, True):
        subject = subject_of("sltt", "reference", "fp32", fused=fused)
        torch.manual_seed(0)
        for _ in range(3):
            subject.training_iteration(torch.rand(4, 1, 8, 8), torch.randint(10, (4,)))
        results.append(torch.cat([p.detach().flatten() for p in subject.network.parameters()]))
    torch.testing.assert_close(*results)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("backend", "graphs"), [("reference", "never"), ("native", "never"), ("native", "always")]
)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_on_a_gpu_cuda_itself_finds_nothing_that_waits(
    backend: str, graphs: str, precision: str, smoke_cell: Callable[..., Cell]
) -> None:
    """Nor in a replay: the fifth iteration is one where there are graphs."""
    from dataclasses import replace

    device = torch.device("cuda")
    for method in ("bptt", "sltt", "sltt-k2"):
        cell = smoke_cell(method, train__precision=precision, native__graphs=graphs)
        cell = replace(cell, backend=backend, device="cuda:0")
        subject = experiment.assemble(cell, device, experiment.make_backend(cell))
        subject.network.train()
        nothing: Any = None
        setup = TrainingSetup(
            nothing, {"test": nothing}, lambda x: x.float(), nothing, epochs=1, checkpoint_every=0
        )
        totals = engine._Totals(device)
        shape = (8, *cell.recipe.data.sample_shape)
        batch: tuple[Tensor, Tensor] = torch.rand(shape).pin_memory(), torch.randint(10, (8,)).pin_memory()
        for _ in range(4):
            _train_batch(subject, setup, batch, totals)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            _train_batch(subject, setup, batch, totals)
        finally:
            torch.cuda.set_sync_debug_mode("default")
