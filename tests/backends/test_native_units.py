"""BPTT unit by unit: the gradients of the reference, spikes kept as bits, and a reason where it cannot be."""

import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from on_backends import T, build, gradient_error, train, train_own, train_reference
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from sltt_bench import backends, methods, models
from sltt_bench.backends.native import units as units_module
from sltt_bench.backends.native.cuts import NotSeparable
from sltt_bench.backends.native.kept_graphs import KeptGraph, UnitSize, graphs_that_fit
from sltt_bench.backends.native.lif_torch import TorchKernels
from sltt_bench.backends.native.packed_spikes import PackedSpikes
from sltt_bench.backends.native.units import UnitNetwork
from sltt_bench.measure.tensor_bytes import TensorBytes
from sltt_bench.models.layers import SequenceDropout
from sltt_bench.models.options import NFResNetOptions, PreActResNetOptions, VGGOptions
from sltt_bench.neurons import LIF, LIFParameters, Stateful
from sltt_bench.planning.plan import Cell
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.torch_internals import TorchDispatchMode
from sltt_bench.training.experiment import Experiment, assemble, make_backend
from sltt_bench.unroll import Unroll


@pytest.fixture(autouse=True)
def small_tensors_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sltt_bench.backends.native.saved_tensor_hooks.SMALL", 0)


# Spikes as bits ----------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 7), min_size=1, max_size=4), st.sampled_from([torch.float32, torch.bfloat16]))
@settings(max_examples=40, deadline=None)
def test_packed_spikes_come_back_as_they_were(shape: list[int], dtype: torch.dtype) -> None:
    spikes = torch.randint(2, shape).to(dtype)
    again = PackedSpikes(spikes).tensor()
    assert again.dtype == dtype
    assert torch.equal(again, spikes)


def test_packed_spikes_keep_their_memory_format_and_take_a_bit_each() -> None:
    spikes = torch.randint(2, (2, 8, 5, 6)).float().to(memory_format=torch.channels_last)
    with TensorBytes([spikes]) as counted:
        packed = PackedSpikes(spikes)
        held = sum(counted.changes)
    assert held - spikes.nbytes == spikes.numel() // 8
    assert packed.tensor().stride() == spikes.stride()
    assert torch.equal(packed.tensor(), spikes)
    every_second = spikes[..., ::2]  # what lies between belongs to others
    assert torch.equal(PackedSpikes(every_second).tensor(), every_second)


# Gradients: test_backends compares them on every network ------------------------------------------


AGAIN, UP_TO_X, WHOLE = KeptGraph(), KeptGraph(steps_of_x=99), KeptGraph(is_whole=True)


def keep(kept: KeptGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units_module, "graphs_that_fit", lambda units, timesteps: [kept] * len(units))


def test_where_the_input_of_norms_is_kept_no_convolution_is_computed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    convolutions = []
    for kept in (AGAIN, UP_TO_X):
        keep(kept, monkeypatch)
        subject = experiment(True)
        subject.training_iteration(*batch())
        with Launches() as launches:
            subject.training_iteration(*batch())
        convolutions.append(launches.of["convolution"])
    of_image, steps, of_spikes = 1, 3, 1
    assert convolutions == [2 * (of_image + steps * of_spikes), 2 * of_image + steps * of_spikes]


# Standardised weights are shared over the steps in one way, which `chunks of time` tries too.
STANDARDISED_TOO = ["preact-resnet18", pytest.param("nf-resnet34", marks=pytest.mark.long), "recurrent"]


@pytest.mark.parametrize("kept", [AGAIN, UP_TO_X, KeptGraph(2), WHOLE], ids=repr)
@pytest.mark.parametrize("model", STANDARDISED_TOO)
def test_it_makes_no_difference_what_units_keep_of_their_graphs(
    model: str, kept: KeptGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(kept, monkeypatch)
    how: Any = {"dtype": torch.float64, "iterations": 3, "repeated_image": False}
    reference = train_reference(model, "bptt", **how)
    native = train("native", model, "bptt", **how, recompute=True)
    assert gradient_error(native, reference) < 1e-12
    assert torch.equal(native.outputs, reference.outputs)
    assert all(torch.equal(native.buffers[name], reference.buffers[name]) for name in reference.buffers)


@pytest.mark.parametrize("kept", [AGAIN, UP_TO_X, KeptGraph(4)], ids=repr)
@pytest.mark.parametrize(
    ("model", "method"),
    [
        ("preact-resnet18", "bptt"),
        ("nf-resnet34", "bptt-d0.5"),
        ("recurrent", "bptt"),
        ("recurrent", "bptt-d0.5"),
        pytest.param("preact-resnet18", "bptt-d0.5", marks=pytest.mark.long),
        pytest.param("nf-resnet34", "bptt", marks=pytest.mark.long),
    ],
)
def test_chunks_of_time_give_the_gradients_of_the_whole(
    model: str, method: str, kept: KeptGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units_module, "CHUNKS_BEYOND", 1)
    keep(kept, monkeypatch)
    how: Any = {"dtype": torch.float64, "timesteps": 5}  # chunks of 3 and 2 steps
    reference = train_reference(model, method, **how)
    native = train("native", model, method, **how, recompute=True)
    assert gradient_error(native, reference) < 1e-12
    assert torch.equal(native.outputs, reference.outputs)
    assert all(torch.equal(native.buffers[name], reference.buffers[name]) for name in reference.buffers)


def test_the_first_iteration_rounds_as_those_that_know_the_sizes_of_units(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a resumed training it comes in the middle."""
    monkeypatch.setattr(units_module, "CHUNKS_BEYOND", 1)
    kept: list[KeptGraph] = []
    monkeypatch.setattr(
        units_module, "graphs_that_fit", lambda *sizes: kept.extend(graphs_that_fit(*sizes)) or kept[-3:]
    )
    subject, made = experiment(True, timesteps=5), []
    for _ in range(2):
        subject.optimizer.zero_grad()
        subject.backend.accumulate_gradients(subject, *batch())
        made.append([parameter.grad for parameter in subject.network.parameters()])
    assert [any(one.is_whole for one in iteration) for iteration in (kept[:3], kept[-3:])] == [False, True]
    assert all(map(torch.equal, *made))


def test_with_many_steps_a_unit_holds_the_graph_of_some_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    options = VGGOptions(width=4)
    monkeypatch.setattr(units_module, "CHUNKS_BEYOND", 1)
    in_chunks = peak(options, 16, recompute=True)
    monkeypatch.setattr(units_module, "CHUNKS_BEYOND", 16)
    assert in_chunks < 0.8 * peak(options, 16, recompute=True)


@pytest.mark.parametrize(
    ("model", "precision"),
    [
        ("preact-resnet18", "bf16"),
        pytest.param("nf-resnet34", "bf16", marks=pytest.mark.long),
        ("cnn", "fp16"),
        ("recurrent", "fp16"),
    ],
)
def test_in_mixed_precision_it_differs_by_no_more_than_the_format(model: str, precision: str) -> None:
    exact = train_reference(model, "bptt")
    rounded = train_reference(model, "bptt", precision=precision)
    native = train("native", model, "bptt", precision=precision, recompute=True)
    assert torch.equal(native.outputs, rounded.outputs)
    assert gradient_error(native, rounded) < gradient_error(rounded, exact)


def experiment(recompute: bool, backend: str = "native", method: str = "bptt", **fields: Any) -> Experiment:
    fields = {"train.batch_size": 4, "model.channels": [8, 8], "timesteps": 3, **fields}
    recipe = load_recipe("digits", {**fields, "native.recompute": recompute})
    cell = Cell(recipe, method, backend, seed=0, synthetic=True)
    subject = assemble(cell, torch.device("cpu"), make_backend(cell))
    subject.network.train()
    return subject


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return 2 * torch.randn(4, 1, 8, 8, generator=generator), torch.randint(10, (4,), generator=generator)


def test_training_with_it_goes_as_with_the_reference() -> None:
    subjects = experiment(True), experiment(False, "reference")
    for _ in range(3):
        losses = [subject.training_iteration(*batch()).summed_loss for subject in subjects]
        torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
    assert subjects[0].backend.provenance()["units"].startswith("3, ")
    for one, other in zip(*(subject.network.parameters() for subject in subjects), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_gradient_through_the_state_is_scaled_within_units() -> None:
    subjects = experiment(True, method="bptt-d0.5"), experiment(False, "reference", "bptt-d0.5")
    for subject in subjects:
        subject.backend.accumulate_gradients(subject, *batch())
    assert subjects[0].backend.provenance()["units"].startswith("3, ")
    for one, other in zip(*(subject.network.parameters() for subject in subjects), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


class Launches(TorchDispatchMode):
    """How often each operation ran inside."""

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.of[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_going_unit_by_unit_launches_nothing_for_numbers_that_nobody_reads() -> None:
    fills = ("zeros", "ones", "full", "new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "fill_")
    counts = []
    for recompute in (False, True):
        subject = experiment(recompute)
        subject.training_iteration(*batch())
        with Launches() as launches:
            subject.backend.accumulate_gradients(subject, *batch())
        counts.append(sum(launches.of[name] for name in fills))
    assert counts[1] == counts[0]


def test_an_iteration_does_not_ask_again_which_parts_are_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    subject, asked = experiment(True), []
    subject.training_iteration(*batch())
    monkeypatch.setattr(units_module, "is_seen_through", lambda part: asked.append(part))
    subject.training_iteration(*batch())
    assert asked == []


def test_the_forward_pass_unpacks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(AGAIN, monkeypatch)
    subject = experiment(True)
    subject.training_iteration(*batch())
    unpacked: list[PackedSpikes] = []
    unpack = PackedSpikes.tensor
    monkeypatch.setattr(PackedSpikes, "tensor", lambda spikes: unpacked.append(spikes) or unpack(spikes))
    x, labels = batch()
    network = subject.backend.unrolled(subject.network, subject.inputs(x), subject.method)  # type: ignore[attr-defined]
    with subject.backend.iteration(subject.network):
        unroll = replace(subject, network=network).unroll(x, labels)
        loss = torch.stack([unroll.step(t) for t in range(unroll.timesteps)]).sum()
        assert not unpacked
        unroll.backward(loss)
    assert unpacked


def test_spikes_are_let_go_when_all_units_that_read_them_have_gone_backward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keep(AGAIN, monkeypatch)
    made: list[weakref.ref[PackedSpikes]] = []
    alive: list[int] = []
    pack, backward = PackedSpikes.__init__, units_module._Run._backward_again

    def noted(packed: PackedSpikes, *args: Any) -> None:
        made.append(weakref.ref(packed))
        pack(packed, *args)

    def counted(run: Any, unit: Any) -> None:
        alive.append(sum(packed() is not None for packed in made))
        backward(run, unit)

    monkeypatch.setattr(PackedSpikes, "__init__", noted)
    monkeypatch.setattr(units_module._Run, "_backward_again", counted)
    experiment(True).training_iteration(*batch())
    layers, steps = 2, 3
    assert alive == [layers * steps, steps, 0]  # the classifier's unit comes first


train_fused = partial(train, "native", watched=False, fused_norm="always", recompute=True)


@pytest.mark.parametrize(("chunks_beyond", "third_time"), [(12, 0), (1, 3)], ids=["whole", "in chunks"])
def test_a_batchs_statistics_are_taken_once_a_step(
    chunks_beyond: int, third_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(AGAIN, monkeypatch)
    monkeypatch.setattr(units_module, "CHUNKS_BEYOND", chunks_beyond)
    taken: list[Tensor] = []
    take = TorchKernels.statistics
    monkeypatch.setattr(TorchKernels, "statistics", lambda *args: taken.append(args[1]) or take(*args))
    how: Any = {"precision": "bf16", "timesteps": 5, "accumulate": True}
    layers, iterations = 2, 2
    kept = train_fused("cnn", "bptt", **how)
    assert len(taken) == layers * iterations * 5
    taken.clear()
    monkeypatch.setattr(units_module._Run, "_statistics_kept", lambda *_: nullcontext())
    anew = train_fused("cnn", "bptt", **how)
    assert len(taken) == layers * iterations * (5 + 5 + third_time)
    assert all(torch.equal(kept.gradients[name], anew.gradients[name]) for name in anew.gradients)
    assert all(torch.equal(kept.buffers[name], anew.buffers[name]) for name in anew.buffers)
    assert torch.equal(kept.outputs, anew.outputs)
    assert all(getattr(module, "kept_statistics", None) is None for module in kept.network.modules())


@pytest.mark.parametrize("kept", [UP_TO_X, KeptGraph(2), WHOLE], ids=repr)
def test_with_batch_norm_within_neurons_too_what_is_kept_makes_no_difference(
    kept: KeptGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []
    for how in (AGAIN, kept):
        keep(how, monkeypatch)
        trained.append(train_fused("preact-resnet18", "bptt", dtype=torch.float64))
    assert gradient_error(*trained) < 1e-12
    assert all(torch.equal(trained[0].buffers[name], trained[1].buffers[name]) for name in trained[0].buffers)


@pytest.mark.parametrize("fused", ["always", "never"])
def test_scaled_neurons_and_residual_sums_are_one_operation_each_within_units(fused: str) -> None:
    backend = backends.create("native", recompute=True, fused_norm=fused)
    options = NFResNetOptions(name="nf-resnet34", width=2)
    network = models.build(
        options, neuron=lambda: backend.neuron(LIFParameters()), input_shape=(3, 32, 32), classes=4
    )
    units = UnitNetwork(backend.prepare(network, "cpu"), torch.rand(2, 3, 32, 32)).units
    neurons = [unit for unit in units if unit.core is not None]
    assert {unit.gain for unit in neurons} == {2.74}
    # Of a block: neurons alone, before a transition with the sum that nothing else reads; a convolution and neurons.
    assert {len(unit.nodes) for unit in neurons} == ({1, 2, 3} if fused == "always" else {1, 2, 5})
    names = Counter(
        str(node.target.__name__) for unit in units for node in unit.nodes if callable(node.target)
    )
    assert set(names) == ({"joined"} if fused == "always" else {"mul", "add"})


def test_a_hook_set_after_the_cut_gets_the_spikes_of_scaled_neurons_as_they_are() -> None:
    backend = backends.create("native", recompute=True, fused_norm="always")
    network = build(backend, "nf-resnet34", LIFParameters(), torch.float64)
    seen: list[Tensor] = []
    gradients = []
    for hooked in (False, True):
        if hooked:
            network.layer1[1].neuron1.register_forward_hook(lambda *call: seen.append(call[-1].detach()))
        network.zero_grad()
        x = [torch.linspace(-2, 2, 3 * 64 * 64, dtype=torch.float64).view(1, 3, 64, 64)] * 2
        unrolled = backend.unrolled(network, x, methods.create("bptt", 2))  # type: ignore[attr-defined]
        with backend.iteration(network):
            unroll = Unroll(unrolled, x, lambda output: output.square().mean(), generator=torch.Generator())
            methods.create("bptt", 2).accumulate_gradients(unroll)
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    assert {number for spikes in seen for number in spikes.unique().tolist()} == {0.0, 1.0}
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("watched", [False, True])
def test_spikes_at_the_end_of_a_unit_are_not_made_again_unless_a_hook_reads_them(
    watched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(AGAIN, monkeypatch)
    made: list[bool] = []
    forward = TorchKernels.forward

    def counted(kernels: TorchKernels, *args: Any, fires: bool) -> Any:
        made.append(fires)
        return forward(kernels, *args, fires=fires)

    monkeypatch.setattr(TorchKernels, "forward", counted)
    native = train("native", "cnn", "bptt", recompute=True, iterations=1, watched=watched)
    layers = 2
    assert made.count(True) == layers * T * (2 if watched else 1)
    assert len(made) == 2 * layers * T
    if watched:
        first, again = native.spikes[: layers * T], native.spikes[layers * T :]
        for layer in range(layers):  # the last first
            one = first[layer * T : (layer + 1) * T]
            other = again[(layers - 1 - layer) * T : (layers - layer) * T]
            assert all(map(torch.equal, one, other))
    assert all(getattr(module, "spikes_are_read", True) for module in native.network.modules())


class MaskedTrace(Stateful):
    """Layers of a user's own: what came before, halved, and what comes, behind one mask for the sequence."""

    carried = ("trace",)
    trace: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.mask = SequenceDropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        self.trace = self.mask(x) if self.trace is None else 0.5 * self.trace + self.mask(x)
        return self.trace


def with_masked_trace(neuron: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3), MaskedTrace(), neuron(), nn.Flatten(), nn.Linear(64, 4))


def test_a_mask_within_a_layer_with_a_state_is_the_same_when_its_unit_is_computed_again() -> None:
    expected, _ = train_own(with_masked_trace, "reference", "bptt")
    left, units = train_own(with_masked_trace, "native", "bptt", recompute=True)
    assert "computed for all steps at once" in units
    for name, value in expected.items():
        torch.testing.assert_close(left[name], value, rtol=1e-12, atol=1e-12, msg=name)


class Dense(nn.Module):
    """Two later layers and the readout read the spikes of the first."""

    def __init__(self, neuron: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(channels, 4, 3, padding=1) for channels in (2, 4, 4))
        self.neurons = nn.ModuleList(neuron() for _ in range(3))
        self.readout = nn.Linear(144, 4)

    def forward(self, x: Tensor) -> Tensor:
        first = self.neurons[0](self.convolutions[0](x))
        second = self.neurons[1](self.convolutions[1](first))
        third = self.neurons[2](self.convolutions[2](first) + second)
        output: Tensor = self.readout((first + second + third).flatten(1))
        return output


def test_spikes_that_three_units_read_get_the_gradients_of_all() -> None:
    expected, _ = train_own(Dense, "reference", "bptt")
    left, units = train_own(Dense, "native", "bptt", recompute=True)
    assert units.startswith("4, ")
    for name, value in expected.items():
        torch.testing.assert_close(left[name], value, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("method", ["bptt-ckpt2", "sltt", "sltt-k2"])
def test_other_methods_go_step_by_step(method: str) -> None:
    subject = experiment(True, method=method)
    subject.training_iteration(*batch())
    assert "units" not in subject.backend.provenance()


# Networks that have none --------------------------------------------------------------------------


class InPlace(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mul_(2)


class Decides(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


class Twice(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.neuron = layers[-1]

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.neuron(self.neuron(x))
        return result


class Dropped(nn.Sequential):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(nn.Dropout(), *layers)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (InPlace, "changes a value in place"),
        (Decides, "cannot be traced"),
        (Twice, "called more than once"),
        (Dropped, "Dropout would draw anew"),
    ],
)
def test_a_network_without_units_says_why(kind: Callable[..., nn.Module], reason: str) -> None:
    network = kind(nn.Linear(3, 3), LIF(LIFParameters()))
    with pytest.raises(NotSeparable, match=reason):
        UnitNetwork(network, torch.rand(2, 3))


class Noisy(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.randn(3)


class Counts(nn.Linear):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.calls * super().forward(x)


class AddsNoise(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w + torch.randn_like(w)


def with_noisy_weights() -> nn.Module:
    layer = nn.Linear(3, 3)
    parametrize.register_parametrization(layer, "weight", AddsNoise())
    return layer


def with_spectral_norm() -> nn.Module:
    """Of a weight whose power iteration has come to its end; that of the next weight has not."""
    layer = nn.Linear(3, 3)
    layer.weight.data = torch.diag(torch.tensor([1.0, 0.0, 0.0]))
    return spectral_norm(layer)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda: Noisy(3, 3), "it draws random numbers"),
        (lambda: Counts(3, 3), "a Counts puts out something else the second time"),
        (with_noisy_weights, "it draws random numbers"),
        (
            with_spectral_norm,
            "buffer 0.parametrizations.weight.0._u changes at every call",
        ),
    ],
)
def test_a_layer_that_is_derived_from_torchs_or_parametrised_is_tried_like_any_other(
    layer: Callable[[], nn.Module], reason: str
) -> None:
    network = nn.Sequential(layer(), LIF(LIFParameters()))
    with pytest.raises(NotSeparable, match=reason):
        UnitNetwork(network, torch.rand(2, 3))
    UnitNetwork(nn.Sequential(weight_norm(nn.Linear(3, 3)), LIF(LIFParameters())), torch.rand(2, 3))


def test_a_network_without_units_is_trained_step_by_step_and_the_provenance_says_so() -> None:
    subject, reference = experiment(True), experiment(False, "reference")
    for one in (subject, reference):
        one.network.__class__ = Decides
    losses = [one.training_iteration(*batch()).summed_loss for one in (subject, reference)]
    torch.testing.assert_close(*losses)
    assert "cannot be traced" in subject.backend.provenance()["units"]


class InParts(nn.Module):
    """Its neurons lie within a part."""

    def __init__(self, neuron: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), neuron())
        self.readout = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.readout(self.part(x).flatten(1))
        return output


def hooked(kind: str, place: str, neuron: Callable[[], nn.Module]) -> nn.Module:
    """`InParts` with a hook that changes what it sees."""
    network = InParts(neuron)
    module: Any = network.get_submodule(place)
    hook: Any = {
        "register_forward_hook": lambda _, args, output: 0.5 * output,
        "register_forward_pre_hook": lambda _, args: 0.5 * args[0],
    }[kind]
    getattr(module, kind)(hook)
    return network


@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("place", ["", "part", "part.0", "readout"])
def test_hooks_are_called_where_layers_are_called_one_by_one(place: str, kind: str) -> None:
    network = partial(hooked, kind, place)
    expected, _ = train_own(network, "reference", "bptt")
    left, units = train_own(network, "native", "bptt", recompute=True)
    for name, value in expected.items():
        assert torch.allclose(left[name], value, rtol=1e-10, atol=1e-12), name
    assert ("somebody has hooked" in units) == (place in ("", "part"))


def test_a_backend_that_gets_another_network_cuts_that_one() -> None:
    backend = backends.create("native", recompute=True)
    for seed in range(2):
        torch.manual_seed(seed)
        network = backend.prepare(InParts(lambda: backend.neuron(LIFParameters())), "cpu")
        sequence = backend.unrolled(network, [torch.ones(1, 2, 6, 6)] * 2, methods.create("bptt", 2))
        assert sequence.network is network


def test_a_network_without_units_keeps_no_batch() -> None:
    subject = experiment(True)
    subject.network.__class__ = Decides
    x, labels = batch()
    subject.training_iteration(x, labels)
    kept = weakref.ref(x)
    del x
    assert kept() is None


# Memory -------------------------------------------------------------------------------------------


def peak(options: Any, timesteps: int, **native: Any) -> float:
    """Bytes of an iteration of BPTT."""
    backend = backends.create("native", **native)
    torch.manual_seed(0)
    shape = (3, 64, 64)
    network = models.build(
        options, neuron=lambda: backend.neuron(LIFParameters()), input_shape=shape, classes=4
    )
    network = backend.prepare(network, "cpu")
    x, method = torch.randn(4, *shape), methods.create("bptt", 1)
    for steps in (2, timesteps):
        network.zero_grad()
        unrolled = backend.unrolled(network, [x] * steps, method)  # type: ignore[attr-defined]
        with TensorBytes([x], network=network) as counted, backend.iteration(network):
            unroll = Unroll(
                unrolled, [x] * steps, lambda output: output.square().mean(), generator=torch.Generator()
            )
            method.accumulate_gradients(unroll)
    return counted.peak - 2 * sum(parameter.nbytes for parameter in network.parameters())


@pytest.mark.parametrize(
    ("options", "most"),
    [
        (PreActResNetOptions(width=8), 0.4),
        (VGGOptions(width=8, dropout=0.2), 0.7),
        pytest.param(NFResNetOptions(name="nf-resnet34", width=8), 0.75, marks=pytest.mark.long),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_memory_of_bptt_shrinks_to_that_of_its_largest_unit(options: Any, most: float) -> None:
    usual = peak(options, T)
    assert peak(options, T, recompute=True) < most * usual


@pytest.mark.parametrize("chunks_beyond", [12, 1], ids=["whole", "in chunks"])
@pytest.mark.parametrize(
    "options", [PreActResNetOptions(width=8), VGGOptions(width=8)], ids=lambda value: value.name
)
def test_the_graphs_that_units_keep_do_not_raise_the_peak(
    options: Any, chunks_beyond: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units_module, "CHUNKS_BEYOND", chunks_beyond)
    kept: list[KeptGraph] = []

    def noted(units: Sequence[UnitSize], timesteps: int) -> list[KeptGraph]:
        kept[:] = graphs_that_fit(units, timesteps)
        return kept

    monkeypatch.setattr(units_module, "graphs_that_fit", noted)
    with_graphs = peak(options, T, recompute=True)
    assert any(one.steps_of_x or one.is_whole for one in kept)
    keep(AGAIN, monkeypatch)
    assert with_graphs <= 1.01 * peak(options, T, recompute=True)


@st.composite
def sizes_of_units(draw: st.DrawFn) -> list[UnitSize]:
    units = []
    for _ in range(draw(st.integers(1, 6))):
        up_to_x, rest = draw(st.integers(0, 40)), draw(st.integers(0, 40))
        chunk, left, gradients = (
            draw(st.integers(1, STEPS)),
            draw(st.integers(0, 20)),
            draw(st.integers(0, 400)),
        )
        units.append(UnitSize(up_to_x, up_to_x + rest, chunk, gradients, left))
    return units


STEPS = 6


def peak_with(units: list[UnitSize], kept: list[KeptGraph]) -> int:
    """The most bytes at the end of the forward pass, and where the backward pass begins with each unit."""
    left, most = 0, 0
    for unit, one in zip(units, kept, strict=True):
        of_x = STEPS if one.is_whole and unit.up_to_x else one.steps_of_x
        rest = STEPS if one.is_whole else 0
        own = unit.up_to_x * max(of_x, unit.at_once)
        own += (unit.graph - unit.up_to_x) * max(rest, unit.at_once)
        most = max(most, left + unit.gradients + own)
        left += unit.left + unit.up_to_x * of_x + (unit.graph - unit.up_to_x) * rest
    return max(most, left)


@given(sizes_of_units())
@settings(max_examples=300, deadline=None)
def test_graphs_are_kept_only_where_no_moment_needs_more_than_without(units: list[UnitSize]) -> None:
    without = peak_with(units, [AGAIN] * len(units))
    assert peak_with(units, graphs_that_fit(units, STEPS)) <= without


def test_what_norms_read_is_kept_first_from_the_last_unit_on() -> None:
    large, small = UnitSize(10, 20, 2, 40, 0), UnitSize(5, 10, 2, 10, 0)
    kept = graphs_that_fit([large, *[small] * 8], 2)
    # When the backward pass begins, 5 times x of 10 and one rest of 10 are left, at its first unit 50 + 20 + 10.
    assert kept == [*[AGAIN] * 3, *[KeptGraph(2)] * 5, WHOLE]
    nothing_known = UnitSize(0, 0, 2, 0, 0)
    assert graphs_that_fit([nothing_known], 2) == [AGAIN]


def test_an_estimate_counts_what_an_iteration_takes() -> None:
    from sltt_bench.estimate.trace import trace_memory

    recipe = load_recipe(
        "digits", {"train.batch_size": 4, "model.channels": [8, 8], "timesteps": 3, "native.recompute": True}
    )
    cell = Cell(recipe, "bptt", "native", seed=0, synthetic=True)
    estimated = trace_memory(cell, "cpu").peak_bytes
    subject = experiment(True)
    x, labels = batch()
    short = replace(subject, timesteps=2)
    short.training_iteration(x, labels)
    subject.optimizer.zero_grad(set_to_none=True)
    with TensorBytes([x, labels], network=subject.network, optimizer=subject.optimizer) as counted:
        subject.training_iteration(x, labels)
    assert counted.peak == pytest.approx(estimated, rel=0.02)
