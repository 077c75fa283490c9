"""Nothing in the training loop waits for the device: each call that would is counted.

On a CPU nothing waits, but the same calls are made: a number asked of a tensor, or a result whose shape depends
on values.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sltt_bench import engine, experiment
from sltt_bench.engine import TrainingSetup, _Totals, _train_batch
from sltt_bench.experiment import Experiment, build_optimizer
from sltt_bench.plan import Cell
from sltt_bench.recipe import load_recipe
from sltt_bench.torch_internals import TorchDispatchMode

ASKED_OF_A_TENSOR = {"item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__"}
_aten = torch.ops.aten
SHAPED_BY_VALUES = {
    _aten._local_scalar_dense,
    _aten.nonzero,
    _aten.masked_select,
    _aten._unique2,
    _aten.equal,
}


class Questions(TorchFunctionMode):
    """Notes who asks a tensor for a number, by the name of the call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in ASKED_OF_A_TENSOR:
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
        if func.overloadpacket in SHAPED_BY_VALUES:
            self.calls.append(str(func))
        return func(*args, **(kwargs or {}))


def subject_of(
    method: str, backend: str, precision: str, *, fused: bool = True, recompute: bool = False
) -> Experiment:
    overrides: dict[str, Any] = {
        "native.recompute": recompute,
        "model": {"name": "cnn", "channels": [4, 4], "dropout": 0.2},
        "timesteps": 3,
        "train.precision": precision,
    }
    recipe = load_recipe("digits", overrides, chosen_methods=[method])
    cell = Cell(recipe, method, backend, 0, device="cpu")
    subject = experiment.assemble(cell, torch.device("cpu"), experiment.make_backend(cell))
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


@pytest.mark.parametrize(
    "method", ["tbptt-w2", "bptt-ckpt2", "bptt-d0.5", "ottt", "ottt-o", "e-prop", "s-tllr", "pp-prop", "rate"]
)
def test_no_training_rule_waits(method: str) -> None:
    assert waiting_calls(subject_of(method, "reference", "fp16")) == []


def test_a_draw_of_steps_is_read_from_the_host_alone() -> None:
    """K of T steps are drawn on the CPU, whatever the device: one list, of integers that no device holds."""
    assert waiting_calls(subject_of("sltt-k2", "reference", "fp16")) == ["tolist"]


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
