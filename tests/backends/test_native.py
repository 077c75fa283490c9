"""The native backend keeps what it promises beyond equal gradients: memory, and safety of what it shares."""

import copy
import gc
import math
import shutil
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from engine_parts import Batches, Rows, Setup
from on_backends import MODELS, T, build, gradient_error, train, train_own, train_reference
from replays import RunsAgain
from torch import Tensor, nn

from sltt_bench import backends, methods, models
from sltt_bench.backends import native
from sltt_bench.backends.native import compilation, kernels
from sltt_bench.backends.native.graphs import CaptureFailed, CudaCapture, GraphedIterations, steps_with_graph
from sltt_bench.backends.native.loop_invariants import Shared
from sltt_bench.backends.native.neuron import NativeLIF
from sltt_bench.backends.native.packed_spikes import PackedSpikes
from sltt_bench.backends.native.saved_tensor_hooks import Computed, SpareRoom, Stored
from sltt_bench.measure import Profiler
from sltt_bench.measure.tensor_bytes import TensorBytes
from sltt_bench.methods import Method
from sltt_bench.methods.sltt import SLTT
from sltt_bench.models.layers import SequenceDropout
from sltt_bench.models.options import PreActResNetOptions
from sltt_bench.neurons import LIF, LIFParameters, reset_state
from sltt_bench.planning.plan import Cell
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.torch_internals import compiled_so_far
from sltt_bench.training import engine, experiment
from sltt_bench.training.distributed import ALONE, Ranks
from sltt_bench.training.experiment import Experiment, training_mode
from sltt_bench.unroll import Unroll


@pytest.fixture(autouse=True)
def small_tensors_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sltt_bench.backends.native.saved_tensor_hooks.SMALL", 0)
    monkeypatch.setattr("sltt_bench.backends.native.loop_invariants.SMALL", 0)


# Methods of third parties ------------------------------------------------------------------------


class TruncatedBPTT:
    """Cuts the past every second step, but goes backward only at the end: old graphs stay in use."""

    def accumulate_gradients(self, unroll: Unroll) -> None:
        losses = []
        for t in range(unroll.timesteps):
            if t % 2 == 0:
                unroll.detach_state()
            losses.append(unroll.step(t))
        unroll.backward(torch.stack(losses).sum())


class TwoBackwardPasses:
    """Goes through each step's graph twice, the second time after the next step has run."""

    def accumulate_gradients(self, unroll: Unroll) -> None:
        kept: list[Tensor] = []
        for t in range(unroll.timesteps):
            unroll.detach_state()
            loss = unroll.step(t)
            loss.backward(retain_graph=True)
            for old in kept:
                (0.5 * old).backward()
            kept = [loss]
        kept[0].backward()


class LateBackward:
    """SLTT whose backward pass comes a step late."""

    def accumulate_gradients(self, unroll: Unroll) -> None:
        late = None
        for t in range(unroll.timesteps):
            unroll.detach_state()
            loss = unroll.step(t)
            if late is not None:
                unroll.backward(late)
            late = loss
        assert late is not None
        unroll.backward(late)


class GradientsOfHalf:
    """BPTT whose middle steps run without a graph."""

    def accumulate_gradients(self, unroll: Unroll) -> None:
        for t in range(unroll.timesteps):
            with torch.set_grad_enabled(t in (0, unroll.timesteps - 1)):
                loss = unroll.step(t)
            if loss.requires_grad:
                unroll.backward(loss)


HOLDING_ON = [TruncatedBPTT(), TwoBackwardPasses(), LateBackward(), GradientsOfHalf()]


@pytest.mark.parametrize(
    ("model", "method", "recompute"),
    [
        *product(("cnn", "recurrent"), HOLDING_ON, (False, True)),
        # What standardised weights share is one path, whatever the method.
        ("nf-resnet34", LateBackward(), False),
        ("nf-resnet34", TruncatedBPTT(), True),
    ],
)
def test_methods_that_hold_on_to_old_graphs_get_the_right_gradient(
    model: str, method: Any, recompute: bool
) -> None:
    how: Any = {"dtype": torch.float64, "repeated_image": model == "nf-resnet34"}
    reference = train_reference(model, method, **how)
    native = train("native", model, method, **how, recompute=recompute)
    assert gradient_error(native, reference) < 1e-12


def test_double_backward_raises_instead_of_giving_a_wrong_second_derivative() -> None:
    class SecondDerivative:
        def accumulate_gradients(self, unroll: Unroll) -> None:
            parameter = next(unroll.network.parameters())
            (grad,) = torch.autograd.grad(unroll.step(0), parameter, create_graph=True)
            grad.square().sum().backward()

    with pytest.raises(RuntimeError, match=r"once_differentiable|not require grad|differentiat"):
        train("native", "cnn", SecondDerivative(), repeated_image=False, timesteps=1)


def test_without_the_iteration_it_still_computes_the_same() -> None:
    reference = train("reference", "cnn", "sltt", dtype=torch.float64)
    backend = backends.create("native")
    backend.iteration = backends.create("reference").iteration  # type: ignore[method-assign]
    assert gradient_error(train(backend, "cnn", "sltt", dtype=torch.float64), reference) < 1e-12
    assert gradient_error(train(backend, "cnn", TruncatedBPTT(), dtype=torch.float64), reference) > 0.01


# In-place updates --------------------------------------------------------------------------------


def layer(**options: Any) -> tuple[NativeLIF, Any]:
    backend = backends.create("native", **options)
    neuron = backend.neuron(LIFParameters(tau=2.0))
    assert isinstance(neuron, NativeLIF)
    return neuron, backend


def currents(*shape: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield torch.randn(*shape, generator=generator, requires_grad=True)


def memory_of(neuron: NativeLIF) -> int:
    assert neuron._carried is not None
    return neuron._carried.membrane.data_ptr()


def test_the_potential_is_updated_in_place_once_no_graph_needs_the_old_one() -> None:
    neuron, backend = layer()
    current = currents(3, 50)
    with backend.iteration(nn.Identity()):
        spikes = neuron(next(current))
        first = memory_of(neuron)
        neuron.detach_state()
        spikes.sum().backward()
        neuron(next(current))
        assert memory_of(neuron) == first


def test_the_potential_moves_on_while_a_graph_needs_the_old_one() -> None:
    neuron, backend = layer()
    current = currents(3, 50)
    with backend.iteration(nn.Identity()):
        spikes = neuron(next(current))
        first = memory_of(neuron)
        neuron.detach_state()
        later = neuron(next(current))
        assert memory_of(neuron) != first
        spikes.sum().backward()
        later.sum().backward()


def test_without_gradients_the_potential_is_updated_in_place() -> None:
    neuron, _ = layer()
    current = currents(3, 50)
    with torch.no_grad():
        neuron(next(current))
        first = memory_of(neuron)
        neuron(next(current))
    assert memory_of(neuron) == first


def test_the_input_is_never_changed() -> None:
    neuron, backend = layer()
    given = [next(currents(3, 50)) for _ in range(3)]
    before = [current.detach().clone() for current in given]
    with backend.iteration(nn.Identity()):
        for current in given:
            neuron.detach_state()
            neuron(current).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


def test_a_saved_tensor_that_was_changed_in_place_raises_as_in_plain_autograd() -> None:
    backend = backends.create("native")
    weight = torch.randn(50, requires_grad=True)
    factor = torch.randn(50)
    with backend.iteration(nn.Identity()):
        loss = (weight * factor).sum()
        factor.mul_(2)
        with pytest.raises(RuntimeError, match=r"shape \(50,\) .* changed in place"):
            loss.backward()


def test_a_new_shape_without_a_reset_is_refused() -> None:
    neuron, _ = layer()
    neuron(torch.zeros(3, 4))
    with pytest.raises(
        ValueError, match=r"\(3, 4\) but receive currents of shape \(2, 4\); call reset_state"
    ):
        neuron(torch.zeros(2, 4))
    neuron.reset_state()
    assert neuron(torch.zeros(2, 4)).shape == (2, 4)


@pytest.mark.parametrize(
    "formats", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)], ids=str
)
@pytest.mark.parametrize("reset", ["soft", "hard"])
@pytest.mark.parametrize("graph", [True, False])
def test_currents_of_another_format_than_the_step_befores_add_up_as_in_the_reference(
    graph: bool, reset: Any, formats: tuple[torch.dtype, torch.dtype]
) -> None:
    lif = LIFParameters(tau=2.0, reset=reset, v_reset=0.125)
    results: list[list[Tensor | None]] = []
    for name in ("reference", "native"):
        layer = backends.create(name).neuron(lif)
        draws = torch.Generator().manual_seed(0)
        steps = [torch.randint(-8, 8, (40,), generator=draws) / 4 for _ in range(3)]
        currents = [x.to(formats[t > 0]).requires_grad_(graph) for t, x in enumerate(steps)]
        with torch.set_grad_enabled(graph):
            spikes = [layer(x) for x in currents]
            if graph:
                sum((t + 1) * s.float().sum() for t, s in enumerate(spikes)).backward()
        results.append([*spikes, layer.potential, *(x.grad for x in currents)])
    for native_, reference in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(native_, reference, rtol=0, atol=2**-8)  # a rounding to bfloat16


def test_the_potential_can_be_read_as_that_of_the_reference() -> None:
    parameters = LIFParameters(tau=2.0, v_threshold=0.6)
    native, reference = backends.create("native").neuron(parameters), LIF(parameters)
    assert native.potential is None  # type: ignore[attr-defined]
    for current in [next(currents(3, 50)) for _ in range(3)]:
        native(current)
        reference(current)
        assert torch.equal(native.potential, reference.potential)  # type: ignore[attr-defined]


def test_a_copied_network_saves_memory_too() -> None:
    backend = backends.create("native")
    network = copy.deepcopy(build(backend, "preact-resnet18", LIFParameters()))
    with backend.iteration(network):
        network(torch.randn(2, 3, 16, 16)).sum().backward()
    assert "nothing" not in backend.provenance()["computed again in the backward pass"]


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What is freed within is freed by its last reference, not by chance."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(
    ("method", "recompute"),
    [
        *((method, recompute) for method in ("bptt", "sltt", "sltt-k2") for recompute in (False, True)),
        ("bptt-ckpt2", False),
        ("bptt-d0.5", True),
    ],
)
@pytest.mark.parametrize("model", ["cnn", pytest.param("nf-resnet34", marks=pytest.mark.long), "recurrent"])
def test_nothing_of_an_iteration_is_left_when_it_has_ended(
    model: str, method: str, recompute: bool, no_collector: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what the steps shared, nor what was saved for the backward pass, nor the stem's output."""
    made: list[weakref.ref[Any]] = []

    def noted(kind: type) -> None:
        original = kind.__init__

        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            made.append(weakref.ref(self))
            if isinstance(self, Shared):
                made.append(weakref.ref(self.leaf))

        monkeypatch.setattr(kind, "__init__", init)

    for kind in (Shared, Stored, Computed, PackedSpikes):
        noted(kind)
    trained = train("native", model, method, recompute=recompute, iterations=4)
    reset_state(trained.network)
    assert len(made) > 8
    assert not [reference() for reference in made if reference() is not None]


@pytest.mark.parametrize("iterations", [4, pytest.param(50, marks=pytest.mark.long)])
@pytest.mark.parametrize("method", ["bptt", "sltt"])
def test_memory_is_flat_to_the_byte_from_the_second_iteration_on(
    method: str, iterations: int, no_collector: None
) -> None:
    """Of the stem's output, which is larger than its input; a leak of one tensor an iteration shows."""
    backend = backends.create("native")
    network = build(backend, "preact-resnet18", LIFParameters())
    held = []
    with TensorBytes(network=network) as counted:
        for _ in range(iterations):
            network.zero_grad()
            iteration(backend, network, method)
            reset_state(network)
            held.append(counted.current)
    assert len(set(held[1:])) == 1


# Once an iteration -------------------------------------------------------------------------------


def calls_of(layer: nn.Module, function: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    original = getattr(type(layer), function)

    def counted(self: nn.Module, *args: Any) -> Any:
        if self is layer:
            calls.append(1)
        return original(self, *args)

    monkeypatch.setattr(type(layer), function, counted)
    return calls


@pytest.mark.parametrize("method", ["bptt", "sltt", "sltt-k1"])
def test_a_repeated_image_passes_the_stem_once_an_iteration(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = backends.create("native")
    network = build(backend, "preact-resnet18", LIFParameters())
    stem, deeper = network.conv1, network.layer1[0].conv1
    assert isinstance(stem, nn.Conv2d)
    calls = calls_of(stem, "_conv_forward", monkeypatch)
    for count in (2, 1, 1):  # the first iteration finds out at its second step
        del calls[:]
        iteration(backend, network, method)
        assert len(calls) == count
    calls = calls_of(deeper, "_conv_forward", monkeypatch)
    iteration(backend, network, method)
    assert len(calls) == T


def test_different_inputs_pass_the_stem_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = backends.create("native")
    network = build(backend, "preact-resnet18", LIFParameters())
    calls = calls_of(network.conv1, "_conv_forward", monkeypatch)
    iteration(backend, network, "sltt")
    iteration(backend, network, "sltt")
    del calls[:]
    iteration(backend, network, "sltt", repeated=False)
    iteration(backend, network, "sltt", repeated=False)
    assert len(calls) == 2 * T


class FillsWithSevenTenths(nn.Module):
    """Before a layer of dropout that drops nothing."""

    def __init__(self, neuron: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stem, self.neurons, self.dropout = nn.Conv2d(2, 3, 1), neuron(), SequenceDropout(0.0)
        self.more, self.last, self.readout = nn.Conv2d(3, 4, 3, padding=1), neuron(), nn.Linear(144, 4)
        self.register_buffer("mask", torch.arange(36).view(6, 6) % 3 == 0)

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.dropout(self.neurons(self.stem(x)).masked_fill(self.mask, 0.7))
        output: Tensor = self.readout(self.last(self.more(spikes)).flatten(1))
        return output


@pytest.mark.parametrize("method", ["bptt", "sltt"])
def test_what_somebody_fills_in_stays_what_it_is_behind_dropout_that_drops_nothing(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sltt_bench.backends.native.saved_tensor_hooks.SMALL", 0)
    expected, _ = train_own(FillsWithSevenTenths, "reference", method)
    left, _ = train_own(FillsWithSevenTenths, "native", method)
    for name, value in expected.items():
        assert torch.allclose(left[name], value, rtol=1e-10, atol=1e-12), name


class StemInPlace(nn.Module):
    """Changes in place what its stem makes of the image."""

    def __init__(self, neuron: Callable[[], nn.Module], how: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.more = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 4, 3, padding=1)
        self.neurons, self.norm, self.last = neuron(), nn.BatchNorm2d(4), neuron()
        self.readout, self.how = nn.Linear(144, 4), how

    def forward(self, x: Tensor) -> Tensor:
        currents = self.norm(self.more(self.how(self.stem(x))))
        output: Tensor = self.readout(self.last(self.neurons(currents)).flatten(1))
        return output


@pytest.mark.parametrize("method", ["bptt", "sltt", "sltt-k2", "bptt-ckpt2"])
@pytest.mark.parametrize("in_place", ["relu_", "add_"])
def test_a_step_may_change_in_place_what_the_stem_makes_of_a_repeated_image(
    in_place: str, method: str
) -> None:
    change: Any = {"relu_": torch.relu_, "add_": lambda x: x.add_(0.3)}[in_place]
    kind = partial(StemInPlace, how=change)
    expected, _ = train_own(kind, "reference", method)
    left, _ = train_own(kind, "native", method)
    assert left.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(left[name], value, rtol=1e-10, atol=1e-12), name


def test_an_image_changed_in_place_between_steps_is_seen() -> None:
    class Fading:
        def accumulate_gradients(self, unroll: Unroll) -> None:
            for t in range(unroll.timesteps):
                unroll.detach_state()
                unroll.backward(unroll.step(t))
                unroll.inputs[t].mul_(0.5)

    reference = train("reference", "cnn", Fading(), dtype=torch.float64, iterations=3)
    assert (
        gradient_error(train("native", "cnn", Fading(), dtype=torch.float64, iterations=3), reference) < 1e-12
    )


def test_weights_are_standardised_once_and_once_more_for_their_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = backends.create("native")
    network = build(backend, "nf-resnet34", LIFParameters())
    calls = calls_of(network.layer2[0].conv1, "standardised_weight", monkeypatch)
    iteration(backend, network, "sltt", model="nf-resnet34")
    assert len(calls) == 2
    with torch.no_grad():
        iteration(backend, network, "sltt-k1", model="nf-resnet34", forward_only=True)
    assert len(calls) == 3


def test_parameters_changed_within_an_iteration_are_refused() -> None:
    class Impatient:
        def accumulate_gradients(self, unroll: Unroll) -> None:
            for t in range(unroll.timesteps):
                unroll.detach_state()
                unroll.backward(unroll.step(t))
                with torch.no_grad():
                    unroll.network.layer1[0].conv1.weight.mul_(0.9)

    with pytest.raises(RuntimeError, match="ScaledWSConv2d were changed within an iteration"):
        train("native", "nf-resnet34", Impatient())


def test_modules_are_left_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = backends.create("native")
    network = build(backend, "nf-resnet34", LIFParameters())
    before = {name: set(vars(module)) for name, module in network.named_modules()}
    iteration(backend, network, "sltt", model="nf-resnet34")
    with pytest.raises(ZeroDivisionError), backend.iteration(network):
        raise ZeroDivisionError
    assert {name: set(vars(module)) for name, module in network.named_modules()} == before


def iteration(
    backend: Any,
    network: nn.Module,
    method: str,
    *,
    model: str = "preact-resnet18",
    repeated: bool = True,
    forward_only: bool = False,
) -> None:
    _, shape, batch = MODELS[model]
    image = torch.randn(batch, *shape)
    with backend.iteration(network):
        unroll = Unroll(
            network,
            [image if repeated else image.clone() for _ in range(T)],
            lambda output: output.square().mean(),
            generator=torch.Generator(),
            backward=(lambda loss: None) if forward_only else Tensor.backward,
        )
        methods.create(method, T).accumulate_gradients(unroll)


# CUDA graphs and torch.compile ---------------------------------------------------------------------


class Subject(NamedTuple):
    network: nn.Module
    method: Method
    generator: torch.Generator
    timesteps: int
    ranks: Ranks = ALONE


@pytest.fixture
def gpu_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be moved to a GPU stays where it is; torch and Triton need not find one."""
    to = nn.Module.to

    def stays(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        return to(module, *(arg for arg in args if not str(arg).startswith("cuda")), **kwargs)

    monkeypatch.setattr(nn.Module, "to", stays)
    monkeypatch.setattr(kernels, "unsupported", lambda neuron, precision, device: None)


@pytest.mark.usefixtures("gpu_by_name")
@pytest.mark.parametrize("native", [{}, {"channels_last": False, "fused_norm": "never", "graphs": "never"}])
def test_a_gpu_has_replay_fused_norms_channels_last_and_a_fused_optimiser_by_default(
    native: dict[str, Any],
) -> None:
    overrides = {"model": {"name": "cnn", "channels": [4, 4]}, "train.precision": "fp32"}
    overrides |= {f"native.{option}": value for option, value in native.items()}
    recipe = load_recipe("digits", overrides, chosen_methods=["sltt"])
    cell = Cell(recipe, "sltt", "native", seed=0, device="cuda:0")
    subject = experiment.assemble(cell, torch.device("cuda", 0), experiment.make_backend(cell))
    by_default = not native
    weights = [layer.weight for layer in subject.network.modules() if isinstance(layer, nn.Conv2d)]
    wide = [weight for weight in weights if weight.shape[1] > 1]  # of one channel both formats are one
    assert wide
    assert all(weight.is_contiguous(memory_format=torch.channels_last) == by_default for weight in wide)
    assert ("CUDA graphs" in subject.backend.provenance()) == by_default
    assert ("batch norms" in subject.backend.provenance()) == by_default
    assert all(group["fused"] for group in subject.optimizer.param_groups)


@pytest.mark.usefixtures("gpu_by_name")
def test_a_gpu_takes_filters_of_more_than_two_dimensions_beside_those_that_have_channels_last() -> None:
    network = nn.ModuleList([nn.Conv3d(2, 2, 3), nn.Conv2d(2, 2, 3)])
    backends.create("native", fused_norm="never").prepare(network, "cuda:0")
    assert network[0].weight.is_contiguous()
    assert network[1].weight.is_contiguous(memory_format=torch.channels_last)


class Counts(RunsAgain):
    """Also notes how many iterations had been replayed when something was captured."""

    def __init__(
        self,
        network: nn.Module,
        generator: torch.Generator,
        captured: list[int],
        replayed: Callable[[], int],
    ) -> None:
        super().__init__(network, generator)
        self.captured, self.replayed = captured, replayed

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        self.captured.append(self.replayed())
        return super().__call__(function)


def gradients_of_batches(
    method: Method,
    generator: torch.Generator,
    make_graphs: Callable[[nn.Module], GraphedIterations] | None = None,
) -> list[Tensor]:
    """After each of nine batches, whose last is smaller."""
    backend = backends.create("native")
    network = build(backend, "cnn", LIFParameters()).double()
    graphs = None if make_graphs is None else make_graphs(network)
    data = torch.Generator().manual_seed(4)
    gradients = []

    def iterate(x: Tensor, labels: Tensor) -> Unroll:
        with backend.iteration(network):
            unroll = Unroll(
                network,
                [x] * T,
                lambda output: output[:, 0].mul(labels).mean(),
                generator=generator,
            )
            method.accumulate_gradients(unroll)
        return unroll

    for number in range(9):
        samples = 2 if number == 8 else 4
        x = torch.randn(samples, 3, 16, 16, generator=data, dtype=torch.float64)
        labels = torch.randn(samples, generator=data, dtype=torch.float64)
        network.zero_grad(set_to_none=True)
        torch.manual_seed(number)
        if graphs is None:
            iterate(x, labels)
        else:
            graphs.run(Subject(network, method, generator, T), iterate, (x, labels))
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    return gradients


@pytest.mark.parametrize("method", ["bptt", "bptt-d0.5", "tbptt-w2", "sltt", "sltt-k2"])
def test_replayed_iterations_leave_the_gradients_and_draws_of_usual_ones(method: str) -> None:
    one, other = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    usual = gradients_of_batches(methods.create(method, T), one)
    made: list[GraphedIterations] = []

    def make(network: nn.Module) -> GraphedIterations:
        made.append(GraphedIterations(lambda: RunsAgain(network, other)))
        return made[0]

    replayed = gradients_of_batches(methods.create(method, T), other, make)
    assert all(torch.equal(a, b) for a, b in zip(replayed, usual, strict=True))
    assert torch.equal(one.get_state(), other.get_state())
    assert (made[0].usual, made[0].replayed) == (4, 5)


@pytest.mark.parametrize("k", [1, 2])
def test_a_graph_is_recorded_for_each_choice_of_steps_before_the_first_is_replayed(k: int) -> None:
    generator = torch.Generator().manual_seed(3)
    captured: list[int] = []
    made: list[GraphedIterations] = []

    def make(network: nn.Module) -> GraphedIterations:
        made.append(GraphedIterations(lambda: Counts(network, generator, captured, lambda: made[0].replayed)))
        return made[0]

    gradients_of_batches(methods.create(f"sltt-k{k}", T), generator, make)
    assert captured == [0] * math.comb(T, k)
    assert made[0].replayed == 5


def test_an_epoch_in_which_graphs_are_recorded_is_cold(smoke_cell: Callable[..., Any]) -> None:
    """Of two full batches an epoch the fourth, at which they are, is in the second."""
    cell = replace(smoke_cell(timesteps=2, native__graphs="never"), backend="native")
    subject = experiment.assemble(cell, torch.device("cpu"), experiment.make_backend(cell))
    graphs = GraphedIterations(partial(RunsAgain, subject.network, subject.generator))
    vars(subject.backend).update(graphs=graphs, _graphs_are_wanted=True)
    shape = cell.recipe.data.sample_shape
    setup = engine.TrainingSetup(
        train=Batches([(torch.rand(2, *shape), torch.tensor([0, 1]))] * 2),
        evaluated={},
        preprocess=Setup.preprocess,
        schedule=experiment.build_schedule(cell.recipe, subject.optimizer),
        epochs=4,
        checkpoint_every=0,
        report_accuracy=False,
    )
    listener: Any = Rows()
    with Profiler(torch.device("cpu")) as profiler:
        engine.train(subject, setup, profiler, listener)
    assert [row["cold"] for row in listener.rows] == [True, True, False, False]
    assert graphs.replayed > 0


class KeepsAMask(nn.Module):
    """Made anew for each shape that comes, and kept as a plain attribute."""

    mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.mask is None or self.mask.shape != x.shape:
            self.mask = torch.full_like(x, 0.5)
        return x * self.mask


@pytest.mark.parametrize("own", [False, True])
def test_of_what_layers_hold_a_graph_keeps_what_it_may_read_and_no_state(own: bool) -> None:
    """The state of each graph's last step would be memory that no other graph can have."""
    backend = backends.create("native")
    network = build(backend, "cnn", LIFParameters())
    if own:
        network.append(KeepsAMask())  # type: ignore[operator]
    graphs = GraphedIterations(lambda: RunsAgain(network, torch.Generator()))
    subject: Any = Subject(network, methods.create("sltt-k1", T), torch.Generator(), T)

    def iterate(x: Tensor, labels: Tensor) -> Unroll:
        with backend.iteration(network):
            unroll = Unroll(
                network, [x] * T, lambda output: output.square().mean(), generator=subject.generator
            )
            subject.method.accumulate_gradients(unroll)
        return unroll

    for _ in range(4):
        graphs.run(subject, iterate, (torch.randn(4, *MODELS["cnn"][1]), torch.zeros(4)))
        reset_state(network)
    assert [len(recorded.held) for recorded in graphs._recorded.values()] == [int(own)] * T


class LeavesLittleRoom(RunsAgain):
    """Memory runs out at the end of any iteration that runs as usual beside a graph."""

    shortage: Exception = torch.OutOfMemoryError("CUDA out of memory")
    graphs = 0

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        self.graphs += 1
        return super().__call__(function)

    def warm_up(self, function: Callable[[], None]) -> None:
        function()
        if self.graphs:
            raise self.shortage


def experiment_of_batches(graphs: str, sizes: Sequence[int]) -> tuple[Experiment, dict[str, Tensor]]:
    """Trained with batches of these sizes on native; with batch norm and dropout, by SLTT-K."""
    model = {"name": "cnn", "channels": [4, 4], "dropout": 0.3}
    recipe = load_recipe(
        "digits", {"model": model, "timesteps": 3, "native.graphs": "never"}, chosen_methods=["sltt-k2"]
    )
    cell = Cell(recipe, "sltt-k2", "native", seed=0, device="cpu")
    subject = experiment.assemble(cell, torch.device("cpu"), experiment.make_backend(cell))
    if graphs != "never":
        replayed = GraphedIterations(partial(LeavesLittleRoom, subject.network, subject.generator))
        vars(subject.backend).update(graphs=replayed, _graphs_are_wanted=graphs == "always")
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(3)
    subject.network.train()
    for size in sizes:
        x = torch.rand(size, 1, 8, 8, generator=generator)
        subject.training_iteration(x, torch.randint(10, (size,), generator=generator))
    left = {
        **subject.network.state_dict(),
        "draws": torch.get_rng_state(),
        "of the method": subject.generator.get_state(),
    }
    return subject, left


@pytest.mark.parametrize(
    "shortage",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=["allocator", "cuBLAS"],
)
def test_graphs_are_let_go_where_they_leave_no_room_for_a_smaller_batch(
    shortage: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LeavesLittleRoom, "shortage", shortage)
    sizes = [6, 6, 6, 6, 6, 4, 6, 4]
    subject, left = experiment_of_batches("auto", sizes)
    assert backends.preparations(subject.backend) == 3 + 1, "an epoch with these is cold"
    facts = subject.backend.provenance()["CUDA graphs"]
    assert facts.startswith("2 iterations replayed, then none: their memory left too little")
    assert "peak_allocated_bytes" in backends.unmeasurable(subject.backend)
    _, usual = experiment_of_batches("never", sizes)
    for name, value in usual.items():
        assert torch.equal(left[name], value), name
    with pytest.raises(torch.OutOfMemoryError, match=r"native\.graphs=always"):
        experiment_of_batches("always", sizes)


class Fails(RunsAgain):
    """A capture that breaks off in the middle."""

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        function()
        raise RuntimeError("operation not permitted when stream is capturing")


def test_a_failed_capture_ends_the_cell_and_leaves_gradients_and_draws_alone() -> None:
    generator = torch.Generator().manual_seed(3)
    graphs = GraphedIterations(lambda: Fails(layer, torch.Generator()))
    layer = nn.Linear(2, 1)
    subject = Subject(layer, methods.create("sltt-k1", 2), generator, 2)
    batch = torch.ones(3, 2), torch.ones(3)
    for _ in range(3):
        graphs.run(subject, lambda x, y: layer(x).sum().backward(), batch)  # type: ignore[arg-type]
    before, drawn_from = layer.weight.grad, generator.get_state()
    with pytest.raises(CaptureFailed, match=r"not permitted when stream is capturing.*graphs=never"):
        graphs.run(subject, lambda x, y: layer(x).sum().backward(), batch)  # type: ignore[arg-type]
    assert layer.weight.grad is before
    assert torch.equal(before, torch.full((1, 2), 9.0))
    assert torch.equal(generator.get_state(), drawn_from)
    assert graphs.replayed == 0


def test_iterations_before_a_capture_run_on_its_stream_and_other_threads_may_use_the_device_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With torch.cuda replaced by a log of its calls, since there is no other way without a GPU."""
    log: list[Any] = []

    class Stream:
        def __init__(self, name: str = "of captures") -> None:
            self.name = name

        def wait_stream(self, other: "Stream") -> None:
            log.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def stream(chosen: Stream) -> Iterator[None]:
        log.append(f"on {chosen.name}")
        yield
        log.append("back")

    @contextmanager
    def graph(recorded: Any, *, pool: object, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        log.append((pool, stream.name, capture_error_mode))
        yield

    usual = Stream("usual")
    names = {"graph_pool_handle": object, "Stream": Stream, "current_stream": lambda: usual, "stream": stream}
    graph_type = type("CUDAGraph", (), {"replay": lambda self: log.append("replayed")})
    for name, replacement in {**names, "CUDAGraph": graph_type, "graph": graph}.items():
        monkeypatch.setattr(torch.cuda, name, replacement)
    capture = CudaCapture()
    capture.warm_up(lambda: log.append("computed"))
    order = [
        "of captures waits for usual",
        "on of captures",
        "computed",
        "back",
        "usual waits for of captures",
    ]
    assert log == order
    log.clear()
    replays = [capture(lambda: log.append("recorded")) for _ in range(2)]
    (pool, *settings), recorded, (same_pool, *_), _ = log
    assert (settings, recorded) == (["of captures", "thread_local"], "recorded")
    assert same_pool is pool, "graphs that are never replayed at once share their memory"
    replays[0]()
    assert log[-1] == "replayed"


def test_the_largest_batch_is_recorded_whichever_comes_first_after_a_warm_up_of_its_own() -> None:
    """Kernels for it are compiled and loaded before the capture, which might not allow that."""
    captured: list[int] = []
    graphs = GraphedIterations(lambda: Counts(layer, torch.Generator(), captured, lambda: graphs.replayed))
    layer = nn.Linear(2, 1)
    subject = Subject(layer, methods.create("sltt", 1), torch.Generator(), 1)
    for samples in (2, 2, 2, 2, 5, 5, 5, 5, 5, 2):
        batch = torch.ones(samples, 2), torch.ones(samples)
        layer.zero_grad()
        graphs.run(subject, lambda x, y: layer(x).sum().backward(), batch)  # type: ignore[arg-type]
        assert torch.equal(layer.weight.grad, torch.full((1, 2), float(samples)))
    assert captured == [0, 1], "once for two samples, once more for five"
    assert (graphs.usual, graphs.replayed) == (7, 3)


def test_a_parameter_that_no_iteration_reaches_has_no_gradient_when_it_is_replayed() -> None:
    """With zeros in place of None, weight decay would move it."""
    graphs = GraphedIterations(lambda: RunsAgain(network, torch.Generator()))
    network = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1)])
    subject = Subject(network, methods.create("sltt", 1), torch.Generator(), 1)
    batch = torch.ones(3, 2), torch.ones(3)
    for _ in range(5):
        network.zero_grad()
        graphs.run(subject, lambda x, y: network[1](x).sum().backward(), batch)  # type: ignore[arg-type]
        assert [p.grad is None for p in network.parameters()] == [True, True, False, False]
    assert graphs.replayed == 2


@pytest.mark.parametrize(
    ("model", "method", "native"),
    [
        ({"name": "mlp", "hidden": [8, 8], "recurrent": True}, "sltt-k1", {}),
        ({"name": "preact-resnet18", "width": 2}, "sltt-k2", {"fused_norm": "always"}),
        ({"name": "preact-resnet18", "width": 2}, "bptt", {"fused_norm": "always", "recompute": True}),
        ({"name": "nf-resnet34", "width": 2}, "sltt-k1", {"fused_norm": "always"}),
    ],
    ids=["recurrent", "batch norm", "in units", "standardised"],
)
def test_weights_trained_by_replay_are_those_of_usual_iterations(
    model: dict[str, Any], method: str, native: dict[str, Any]
) -> None:
    """Momentum and weight decay move what has a gradient, were it zero, and leave the others."""
    overrides = {"model": model, "timesteps": 3, "train.precision": "fp32", "train.weight_decay": 0.1}
    overrides |= {f"native.{option}": value for option, value in {**native, "graphs": "never"}.items()}
    cell = Cell(load_recipe("digits", overrides, chosen_methods=[method]), method, "native", 0, device="cpu")

    def trained(*, by_replay: bool) -> Experiment:
        subject = experiment.assemble(cell, torch.device("cpu"), experiment.make_backend(cell))
        if by_replay:
            subject.backend.graphs = GraphedIterations(partial(RunsAgain, subject.network, subject.generator))  # type: ignore[attr-defined]
        subject.network.train()
        data = torch.Generator().manual_seed(5)
        with torch.no_grad():  # biases begin at 0, where nothing moves them
            for parameter in subject.network.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=data)
        for _ in range(12):
            x, labels = torch.rand(4, 1, 8, 8, generator=data), torch.randint(10, (4,), generator=data)
            subject.training_iteration(x, labels)
        return subject

    usual, replayed = (trained(by_replay=way).network for way in (False, True))
    weights = dict(replayed.named_parameters())
    assert all(torch.equal(weights[name], weight) for name, weight in usual.named_parameters())


def test_which_parameters_have_a_gradient_depends_on_the_choice_of_steps_that_is_replayed() -> None:
    """Step 0 alone reaches one layer, every other step both: as recurrent weights, which have nothing to weigh at first."""
    generator = torch.Generator()
    graphs = GraphedIterations(lambda: RunsAgain(network, generator))
    network = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1)])
    method = methods.create("sltt-k1", 3)
    subject = Subject(network, method, generator, 3)

    def iterate(x: Tensor, _: Tensor) -> None:
        (drawn,) = steps_with_graph(method, generator, 3)
        layers = network if drawn else network[:1]
        sum(layer(x).sum() * (drawn + 1) for layer in layers).backward()

    for _ in range(20):
        network.zero_grad()
        state = generator.get_state()
        (drawn,) = steps_with_graph(method, generator, 3)
        generator.set_state(state)
        graphs.run(subject, iterate, (torch.ones(3, 2), torch.ones(3)))  # type: ignore[arg-type]
        sums = [p.grad if p.grad is None else p.grad.sum().item() for p in network.parameters()]
        one = [6.0 * (drawn + 1), 3.0 * (drawn + 1)]
        assert sums == [*one, *(one if drawn else [None, None])]
    assert graphs.replayed == 17


def test_graphs_refuse_a_method_with_too_many_choices_of_steps() -> None:
    graphs = GraphedIterations(lambda: RunsAgain(nn.Identity(), torch.Generator()))
    subject = Subject(nn.Identity(), methods.create("sltt-k4", 20), torch.Generator(), 20)
    with pytest.raises(ValueError, match=r"4845 ways to choose K of 20 steps.*graphs=never"):
        graphs.run(subject, lambda x, y: None, ())  # type: ignore[arg-type, return-value]


def test_replayed_gradients_add_to_those_that_are_there() -> None:
    graphs = GraphedIterations(lambda: RunsAgain(layer, torch.Generator()))
    layer = nn.Linear(2, 1)
    subject = Subject(layer, methods.create("sltt", 1), torch.Generator(), 1)
    for iterations in (6, 3):  # the second sum begins with a replay
        layer.zero_grad()
        for count in range(1, iterations + 1):
            batch = torch.full((3, 2), float(count)), torch.ones(3)
            graphs.run(subject, lambda x, y: layer(x).sum().backward(), batch)  # type: ignore[arg-type]
            assert torch.equal(layer.weight.grad, torch.full((1, 2), 3.0 * sum(range(count + 1))))


def test_graphs_refuse_what_they_cannot_replay() -> None:
    graphs = GraphedIterations(lambda: RunsAgain(nn.Identity(), torch.Generator()))
    with pytest.raises(ValueError, match=r"method LateBackward cannot be replayed.*graphs=never"):
        graphs.run(Subject(nn.Identity(), LateBackward(), torch.Generator(), 1), lambda x, y: None, ())  # type: ignore
    divided = Subject(nn.Identity(), SLTT(), torch.Generator(), 1, Ranks(0, 2, connected=False))
    with pytest.raises(ValueError, match=r"several processes share each batch.*graphs=never"):
        graphs.run(divided, lambda x, y: None, ())  # type: ignore[arg-type, return-value]
    backend = backends.create("native", graphs="always")
    assert "needs a CUDA device" in str(backend.unsupported(LIFParameters(), "fp32", "cpu"))
    assert "replayed" in backend.provenance()["CUDA graphs"]
    both = backends.create("native", compile=True, recompute=True)
    assert "switch native.recompute off" in str(both.unsupported(LIFParameters(), "fp32", "cpu"))


def test_a_compiler_that_loses_what_a_layer_carries_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = compilation.why_wrong()
    assert right is None or (sys.version_info[:2] == (3, 13) and torch.__version__.startswith("2.11."))

    def forgetful(module: nn.Module, **_: Any) -> None:
        module.register_forward_hook(lambda step, *_: setattr(step, "state", None))

    monkeypatch.setattr(nn.Module, "compile", forgetful)
    reason = compilation.why_wrong.__wrapped__()
    assert reason is not None
    assert "loses what a layer carries from step to step" in reason
    monkeypatch.setattr(native, "why_wrong", lambda: reason)
    assert backends.create("native", compile=True).unsupported(LIFParameters(), "fp32", "cpu") == reason
    assert backends.create("native").unsupported(LIFParameters(), "fp32", "cpu") is None


def assert_compiled_equals_reference(model: str, method: str) -> None:
    if (reason := compilation.why_wrong()) is not None:
        pytest.skip(reason)
    how: Any = {"dtype": torch.float64, "timesteps": 2}  # each step that is compiled takes seconds
    compiled = train("native", model, method, **how, compile=True)
    assert gradient_error(compiled, train_reference(model, method, **how)) < 1e-12
    assert compiled.backend.provenance()["neuron"] == "torch.compile of the equations"


@pytest.mark.parametrize(
    ("model", "method"),
    [
        ("mlp", "bptt"),
        pytest.param("cnn", "sltt", marks=pytest.mark.long),
        pytest.param("mlp", "sltt-k2", marks=pytest.mark.long),
    ],
)
def test_the_traced_step_gives_the_gradients_of_the_reference(
    model: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of torch.compile but its last stage, which makes and compiles C++."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    assert_compiled_equals_reference(model, method)


def test_evaluations_compile_nothing_however_many_there_are(
    monkeypatch: pytest.MonkeyPatch, smoke_cell: Callable[..., Any]
) -> None:
    """Hooks count spikes there: in the compiled step each would make a version of its own, of which torch allows a few."""
    if (reason := compilation.why_wrong()) is not None:
        pytest.skip(reason)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    cell = replace(smoke_cell(native__compile=True, timesteps=2, native__graphs="never"), backend="native")
    subject = experiment.assemble(cell, torch.device("cpu"), experiment.make_backend(cell))
    shape = cell.recipe.data.sample_shape
    batches = Batches([(torch.rand(2, *shape), torch.tensor([0, 1]))] * 2)
    setup: Any = Setup(test=batches)
    with training_mode(subject.network, True):
        subject.training_iteration(*batches[0])
    compiled = compiled_so_far()
    for _ in range(3):
        totals = engine._evaluate(subject, setup, batches, torch.device("cpu"))
        assert totals.firing_rate() is not None
    assert engine.inference_costs(subject, setup)["dense_synops"] > 0
    assert compiled_so_far() == compiled
    assert subject.network._compiled_call_impl is not None, "training goes on with the compiled step"
    reason = backends.unserved(subject.backend, "sltt-a2")
    assert "what every layer of neurons puts out, which this backend does not offer" in str(reason)
    assert backends.unserved(backends.create("native"), "sltt-a2") is None


@pytest.mark.long  # C++ of torch's making, compiled anew: the traced step above is all that is this package's
def test_the_compiled_step_gives_the_gradients_of_the_reference() -> None:
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch.compile needs a C++ compiler on the CPU")
    assert_compiled_equals_reference("mlp", "sltt")


# Memory ------------------------------------------------------------------------------------------


@cache
def peak(name: str, method: str, timesteps: int, **options: Any) -> float:
    """Peak live tensor bytes of an iteration but for parameters and their gradients, in units of the
    potentials of all neurons."""
    backend = backends.create(name, **options)
    torch.manual_seed(0)
    network = models.build(
        PreActResNetOptions(width=8),
        neuron=lambda: backend.neuron(LIFParameters()),
        input_shape=(3, 32, 32),
        classes=4,
    )
    network = backend.prepare(network, "cpu")
    x, batch = torch.randn(8, 3, 32, 32), 8
    for steps in (2, timesteps):  # in the first, native learns what repeats
        network.zero_grad()
        with TensorBytes([x], network=network) as counted, backend.iteration(network):
            unroll = Unroll(
                network,
                [x] * steps,
                lambda output: output.square().mean(),
                generator=torch.Generator(),
            )
            methods.create(method, steps).accumulate_gradients(unroll)
    neurons = (4 + 1) * 8 + 3 * 4 + 1 * 4 + 3 * 2 + 2 + 3 * 1 + 1  # channels × pixels / 1024
    weights = 2 * sum(parameter.nbytes for parameter in network.parameters())
    return (counted.peak - weights) / (4 * batch * 1024 * neurons)


def test_sltt_stores_two_tensors_a_neuron_where_the_reference_stores_four() -> None:
    assert peak("reference", "sltt", 3) == pytest.approx(4.1, abs=0.05)
    assert peak("native", "sltt", 3) == pytest.approx(2.2, abs=0.1)


def test_bptt_stores_two_tensors_a_neuron_and_step_where_the_reference_stores_three() -> None:
    assert peak("reference", "bptt", 4) - peak("reference", "bptt", 3) == pytest.approx(3, abs=0.02)
    # The stem's output, a tenth of all, is the same at every step.
    assert peak("native", "bptt", 4) - peak("native", "bptt", 3) == pytest.approx(1.88, abs=0.02)


def test_recomputing_stores_one_tensor_a_neuron_and_step() -> None:
    grown = peak("native", "bptt", 4, recompute=True) - peak("native", "bptt", 3, recompute=True)
    assert grown == pytest.approx(1, abs=0.05)
    assert peak("native", "sltt", 3, recompute=True) < 0.85 * peak("native", "sltt", 3)


def test_the_peak_of_sltt_does_not_grow_with_the_steps() -> None:
    assert peak("native", "sltt", 8) <= 1.001 * peak("native", "sltt", 3)


def test_spare_room_takes_small_tensors_until_it_is_full_and_is_free_again_when_they_die() -> None:
    room = SpareRoom()
    large, small = torch.zeros(1000), torch.zeros(400)
    assert not room.fits(large)
    kept = []
    while room.fits(small):
        kept.append(room.store(small))
    assert len(kept) == 3 * 1000 // 400
    del kept[0]
    assert room.fits(small)
    assert not room.fits(torch.zeros(501))
