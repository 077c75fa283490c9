"""The steps of SLTT-K without a graph, several at once: what they give one by one, in no more memory."""

import gc
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from replays import RunsAgain
from thinned import thinned
from torch import Tensor, nn

from sltt_bench import backends, methods, models
from sltt_bench.backends.native import free_steps, lif_torch
from sltt_bench.backends.native.free_steps import AT_ONCE
from sltt_bench.backends.native.graphs import GraphedIterations
from sltt_bench.backends.native.neuron import NativeLIF
from sltt_bench.losses import step_loss
from sltt_bench.measure.iteration_memory import count_iteration
from sltt_bench.methods import Method
from sltt_bench.methods.sltt_k import SLTTK
from sltt_bench.models.options import (
    CNNOptions,
    MLPOptions,
    ModelOptions,
    NFResNetOptions,
    PreActResNetOptions,
    VGGOptions,
)
from sltt_bench.neurons import LIFParameters
from sltt_bench.precision import Precision
from sltt_bench.torch_internals import module_hooks
from sltt_bench.training.distributed import Ranks
from sltt_bench.training.experiment import Experiment

CLASSES = 5
SIZE = 32
"""Of images."""
SERVED: dict[str, ModelOptions] = {
    "cnn": CNNOptions(channels=[6, 8], normalisation="none"),
    "mlp": MLPOptions(hidden=[24, 16], normalisation="weight"),
    "nf-resnet34": NFResNetOptions(name="nf-resnet34", width=4),
    "nf-resnet50": NFResNetOptions(name="nf-resnet50", width=2),
}
EACH_SERVED = ["cnn", "mlp", "nf-resnet34", pytest.param("nf-resnet50", marks=pytest.mark.long)]
ONE_BY_ONE: dict[str, tuple[ModelOptions, str]] = {
    "batch norm": (PreActResNetOptions(width=4, dropout=0.2), "BatchNorm2d"),
    "events": (VGGOptions(width=4, dropout=0.2), "BatchNorm2d"),
    "dropout": (CNNOptions(channels=[6, 8], normalisation="none", dropout=0.2), "SequenceDropout"),
    "group norm": (CNNOptions(channels=[6, 8], normalisation="group"), "GroupNorm"),
    "recurrent": (MLPOptions(hidden=[24, 16], recurrent=True), "may not see several steps"),
    "readout": (CNNOptions(channels=[6, 8], normalisation="none", readout_tau=2.0), "Readout"),
}
"""Kind → network, and what of it is named."""


@dataclass
class Run:
    """What some iterations leave."""

    gradients: dict[str, Tensor]
    outputs: Tensor
    buffers: dict[str, Tensor]
    membranes: list[Tensor]
    generator: Tensor
    subject: Experiment

    @property
    def provenance(self) -> str:
        return str(self.subject.backend.provenance().get("steps without a graph"))


def experiment(
    options: ModelOptions,
    method: Method,
    timesteps: int,
    *,
    backend: str = "native",
    temporal: bool = False,
    dtype: torch.dtype = torch.float64,
    precision: str = "fp32",
    seed: int = 0,
    **native: Any,
) -> Experiment:
    """Of a small network that makes its neurons fire."""
    torch.manual_seed(0)
    made = backends.create(backend, **native)
    network = models.build(
        options,
        neuron=lambda: made.neuron(LIFParameters(tau=1.7, v_threshold=0.7)),
        input_shape=(3, SIZE, SIZE),
        classes=CLASSES,
        timesteps=timesteps,
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    network = made.prepare(network, "cpu").to(dtype).train()
    return Experiment(
        network=network,
        method=method,
        backend=made,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.01),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        precision=Precision(precision, "cpu"),
        timesteps=timesteps,
        temporal=temporal,
        loss=partial(step_loss, alpha=0.05, mse_target="ones"),
        window=None,
        average="losses",
        generator=torch.Generator().manual_seed(seed),
    )


def batch(subject: Experiment, samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    steps = (subject.timesteps,) if subject.temporal else ()
    dtype = next(subject.network.parameters()).dtype
    x = 2 * torch.randn(samples, *steps, 3, SIZE, SIZE, generator=generator, dtype=dtype)
    return x, torch.randint(CLASSES, (samples,), generator=generator)


def run(subject: Experiment, *, samples: int = 5, iterations: int = 2) -> Run:
    torch.manual_seed(3)
    outputs = []
    for number in range(iterations):
        subject.network.zero_grad()
        outputs.append(
            subject.backend.accumulate_gradients(subject, *batch(subject, samples, number)).summed_outputs
        )
    layers = [layer for layer in subject.network.modules() if isinstance(layer, NativeLIF)]
    return Run(
        {
            name: p.grad.detach().clone()
            for name, p in subject.network.named_parameters()
            if p.grad is not None
        },
        torch.stack(outputs),
        {name: b.double() for name, b in subject.network.named_buffers()},
        [layer._carried.membrane.clone() for layer in layers if layer._carried is not None],
        subject.generator.get_state(),
        subject,
    )


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Relative to each tensor's norm; absolute for gradients that are nothing but rounding, of biases before batch norm."""
    assert a.keys() == b.keys()
    return max((float((a[n] - b[n]).norm() / max(float(b[n].norm()), 1e-3)) for n in a), default=0.0)


@contextmanager
def one_by_one() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(free_steps, "AT_ONCE", 1)
        yield


@contextmanager
def several_noted(noted: list[int]) -> Iterator[None]:
    """Within, how many steps come together is noted, each time some do."""
    several = free_steps.FreeSteps.several

    def note(self: free_steps.FreeSteps, inputs: Sequence[Tensor]) -> list[Tensor]:
        noted.append(len(inputs))
        return several(self, inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(free_steps.FreeSteps, "several", note)
        yield


@pytest.mark.parametrize(
    ("model", "fused", "temporal"),
    [
        *product(("cnn", "mlp"), ("always", "never"), (False, True)),
        ("nf-resnet34", "always", True),
        ("nf-resnet34", "never", False),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (
                ("nf-resnet34", "always", False),
                ("nf-resnet34", "never", True),
                *product(("nf-resnet50",), ("always", "never"), (False, True)),
            )
        ),
    ],
)
def test_gradients_outputs_and_draws_are_those_of_the_reference(
    model: str, fused: str, temporal: bool
) -> None:
    for k, timesteps, seed in ((1, 6, 0), (2, 6, 1), (3, 3, 2)):
        how: dict[str, Any] = {"temporal": temporal, "seed": seed}
        subject = experiment(SERVED[model], SLTTK(k), timesteps, fused_norm=fused, **how)
        native = run(subject)
        reference = run(experiment(SERVED[model], SLTTK(k), timesteps, backend="reference", **how))
        torch.testing.assert_close(native.outputs, reference.outputs, rtol=1e-12, atol=1e-12)
        assert difference(native.gradients, reference.gradients) < 1e-11
        assert torch.equal(native.generator, reference.generator)
        assert native.provenance == f"up to {AT_ONCE} at once, in parts of the batch"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", EACH_SERVED)
@pytest.mark.parametrize("samples", thinned([3, 8], keep=2))
def test_steps_at_once_are_those_steps_one_by_one(model: str, precision: str, samples: int) -> None:
    """To the rounding of a convolution of another number of images, which no spike shows."""
    for steps in ((), (0,), (1, 4)):
        method = SLTTK(len(steps), steps=steps)
        how: dict[str, Any] = {"dtype": torch.float32, "precision": precision}
        noted: list[int] = []
        with several_noted(noted):
            at_once = run(experiment(SERVED[model], method, 6, **how), samples=samples)
        with one_by_one():
            usual = run(experiment(SERVED[model], method, 6, **how), samples=samples)
        assert noted
        torch.testing.assert_close(at_once.outputs, usual.outputs, rtol=1e-6, atol=1e-6)
        if steps:
            assert difference(at_once.gradients, usual.gradients) < 1e-5
        for a, b in zip(at_once.membranes, usual.membranes, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("steps", "samples", "together"),
    [
        ((5,), 8, [4]),
        ((0,), 8, [4]),
        ((2,), 8, [2, 3]),
        ((1, 3), 8, [2]),
        ((0, 1, 2, 3, 4, 5), 8, []),
        ((5,), 3, [3, 2]),
        ((5,), 1, []),
    ],
)
def test_as_many_steps_come_together_as_need_no_graph_up_to_four_and_no_more_than_there_are_samples(
    steps: Collection[int], samples: int, together: list[int]
) -> None:
    noted: list[int] = []
    subject = experiment(SERVED["cnn"], SLTTK(len(steps), steps=steps), 6)
    sizes: list[int] = []
    subject.network.get_submodule("pool2").register_forward_hook(_notes_without_looking(sizes))
    with several_noted(noted):
        run(subject, samples=samples, iterations=1)
    assert noted == together
    assert max(sizes) <= samples


def _notes_without_looking(sizes: list[int]) -> Callable[..., None]:
    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        sizes.append(len(output))

    note.reads_no_values = True  # type: ignore[attr-defined]
    return note


@pytest.mark.parametrize("kind", ONE_BY_ONE)
def test_networks_in_which_samples_meet_or_more_is_carried_go_step_by_step(kind: str) -> None:
    options, named = ONE_BY_ONE[kind]
    for fused in ("never", "always"):
        how: dict[str, Any] = {"temporal": kind == "events"}
        native = run(experiment(options, SLTTK(1), 4, fused_norm=fused, **how))
        reference = run(experiment(options, SLTTK(1), 4, backend="reference", **how))
        assert native.provenance.startswith("one by one: ")
        assert named in native.provenance
        torch.testing.assert_close(native.outputs, reference.outputs, rtol=1e-10, atol=1e-10)
        assert difference(native.gradients, reference.gradients) < 1e-9
        assert difference(native.buffers, reference.buffers) < 1e-11
        assert torch.equal(native.generator, reference.generator)


class LooksAtValues(nn.Sequential):
    """A network of which nobody knows what it makes."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x if x.sum() > 0 else x + 0


class MeetsInSums(nn.Sequential):
    """A network whose samples meet in a function."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


@pytest.mark.parametrize(
    ("why", "change"),
    [
        (
            "looks at what",
            lambda s: s.network.get_submodule("neuron1").register_forward_hook(lambda *_: None),
        ),
        (
            "looks at what",
            lambda s: s.network.get_submodule("conv2").register_forward_pre_hook(lambda *_: None),
        ),
        (
            "looks at what",
            lambda s: s.network.get_submodule("pool2").__dict__.update(forward=nn.AvgPool2d(2)),
        ),
        ("cannot be traced", lambda s: setattr(s.network, "__class__", LooksAtValues)),
        ("calls mean", lambda s: setattr(s.network, "__class__", MeetsInSums)),
    ],
)
def test_what_somebody_looks_at_or_nobody_knows_goes_step_by_step(
    why: str, change: Callable[[Experiment], object]
) -> None:
    subject = experiment(SERVED["cnn"], SLTTK(1), 4)
    change(subject)
    noted: list[int] = []
    with several_noted(noted):
        assert why in run(subject).provenance
    assert noted == []


def test_several_processes_recomputation_and_the_gradient_of_the_input_go_step_by_step() -> None:
    subject = experiment(SERVED["cnn"], SLTTK(1), 4)
    assert "several processes" in run(replace(subject, ranks=Ranks(0, 2, connected=False))).provenance
    assert "native.recompute" in run(experiment(SERVED["cnn"], SLTTK(1), 4, recompute=True)).provenance
    x, labels = batch(subject, 5)
    subject.backend.accumulate_gradients(subject, x.requires_grad_(), labels)
    assert "input" in subject.backend.provenance()["steps without a graph"]  # type: ignore[attr-defined]
    assert x.grad is not None
    handle = module_hooks().register_module_forward_hook(lambda *_: None)
    try:
        assert "looks at what" in run(subject).provenance
    finally:
        handle.remove()
    assert run(subject).provenance.startswith("up to")


@pytest.mark.parametrize(
    ("model", "temporal"),
    [
        ("cnn", False),
        ("cnn", True),
        ("nf-resnet34", False),
        pytest.param("nf-resnet34", True, marks=pytest.mark.long),
    ],
)
def test_the_peak_of_memory_is_that_of_steps_one_by_one_and_does_not_grow_with_time(
    model: str, temporal: bool
) -> None:
    def peak(timesteps: int, chosen: int) -> int:
        method = SLTTK(1, steps=(chosen,))
        subject = experiment(SERVED[model], method, timesteps, dtype=torch.float32, temporal=temporal)
        iterate = partial(subject.training_iteration, *batch(subject, 8))
        return count_iteration(iterate, subject.network, batch(subject, 8), warm_up=iterate).peak_bytes

    outputs = (
        4 * 8 * CLASSES * 4
    )  # of the steps to come, in float32, nothing beside what layers take at full size
    beside = {}
    for timesteps, chosen in ((2, 0), (6, 3), (12, 6)):
        with one_by_one():
            usual = peak(timesteps, chosen)
        beside[timesteps] = peak(timesteps, chosen)
        assert beside[timesteps] <= usual + outputs
    if not temporal:
        assert beside[12] <= beside[6] + outputs


def test_nothing_is_left_after_an_iteration() -> None:
    subject = experiment(SERVED["nf-resnet34"], SLTTK(1), 6)
    x, labels = batch(subject, 4)
    stand_ins: list[weakref.ref[nn.Module]] = []
    sequence = free_steps.FreeSteps.sequence

    def noted(self: free_steps.FreeSteps, *how: Any) -> free_steps.FreeSequence:
        made = sequence(self, *how)
        stand_ins.append(weakref.ref(made))
        return made

    gc.collect()
    gc.disable()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(free_steps.FreeSteps, "sequence", noted)
            for _ in range(4):
                subject.training_iteration(x, labels)
        of_batch = weakref.ref(x)
        del x
        assert of_batch() is None
        assert len(stand_ins) == 4
        assert all(stand_in() is None for stand_in in stand_ins)
    finally:
        gc.enable()
    for layer in subject.network.modules():
        if isinstance(layer, NativeLIF):
            assert layer._carried is None
            assert layer._past is None
        assert "portion" not in layer.__dict__
        assert "forward" not in layer.__dict__


def test_replayed_iterations_take_steps_at_once_and_draw_as_usual() -> None:
    subject = experiment(SERVED["cnn"], SLTTK(1), 4, graphs="always")
    subject.backend.graphs = GraphedIterations(partial(RunsAgain, subject.network, subject.generator))  # type: ignore[attr-defined]
    replayed = run(subject, iterations=6)
    usual = run(experiment(SERVED["cnn"], SLTTK(1), 4, graphs="never"), iterations=6)
    assert subject.backend.graphs.replayed == 3  # type: ignore[attr-defined]
    assert difference(replayed.gradients, usual.gradients) == 0
    assert torch.equal(replayed.generator, usual.generator)


@pytest.mark.parametrize("seed", thinned(range(4), keep=4))
@pytest.mark.parametrize("k", [1, 2])
def test_a_capture_meets_no_kernel_and_no_convolution_that_has_not_run_before(
    k: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU a kernel that is new is compiled or loaded, and a convolution of a new size tuned: no capture allows it."""
    met: dict[str, set[Any]] = {"usual": set(), "capture": set()}
    phase = ["usual"]
    forward, convolution = lif_torch.TorchKernels.forward, torch.nn.functional.conv2d

    def noted_forward(self: Any, x: Tensor, previous: Any, *args: Any, **kwargs: Any) -> Any:
        met[phase[0]].add(("neurons", kwargs.get("steps", 1), previous is None, kwargs.get("fires", True)))
        return forward(self, x, previous, *args, **kwargs)

    def noted_convolution(x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        met[phase[0]].add(("convolution", tuple(x.shape), tuple(weight.shape)))
        return convolution(x, weight, *args, **kwargs)

    class Noting(RunsAgain):
        def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
            phase[0] = "capture"
            try:
                return super().__call__(function)
            finally:
                phase[0] = "usual"

    monkeypatch.setattr(lif_torch.TorchKernels, "forward", noted_forward)
    monkeypatch.setattr(torch.nn.functional, "conv2d", noted_convolution)
    subject = experiment(SERVED["nf-resnet34"], SLTTK(k), 6, graphs="always")
    subject.generator.manual_seed(seed)
    subject.backend.graphs = GraphedIterations(partial(Noting, subject.network, subject.generator))  # type: ignore[attr-defined]
    run(subject, iterations=4)
    assert met["capture"]
    assert not met["capture"] - met["usual"]


def test_methods_that_choose_otherwise_are_left_alone() -> None:
    for name in ("sltt", "bptt", "sltt-a2"):
        noted: list[int] = []
        with several_noted(noted):
            run(experiment(SERVED["cnn"], methods.create(name, 4), 4))
        assert noted == []
