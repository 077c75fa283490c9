"""Batch norm within the neurons' kernels: the reference's gradients and statistics, and nothing stored twice."""

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from on_backends import T, build, gradient_error, train, train_reference
from thinned import thinned
from torch import Tensor, nn

from sltt_bench import backends, methods, models
from sltt_bench.backends.native.batch_norm import defer
from sltt_bench.backends.native.kernels import KernelsByDevice
from sltt_bench.backends.native.neuron import NativeLIF
from sltt_bench.backends.native.step_calls import NotTraceable
from sltt_bench.measure.tensor_bytes import TensorBytes
from sltt_bench.models.options import (
    MSResNetOptions,
    NFResNetOptions,
    PreActResNetOptions,
    SEWResNetOptions,
    VGGOptions,
)
from sltt_bench.neurons import LIFParameters, reads_no_values, reset_state
from sltt_bench.planning.plan import Cell
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.torch_internals import TorchDispatchMode, module_hooks
from sltt_bench.training.experiment import Experiment, assemble, make_backend
from sltt_bench.unroll import Unroll


@pytest.fixture(autouse=True)
def small_tensors_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sltt_bench.backends.native.saved_tensor_hooks.SMALL", 0)
    monkeypatch.setattr("sltt_bench.backends.native.loop_invariants.SMALL", 0)


train_fused = partial(train, "native", watched=False, fused_norm="always")


@pytest.mark.parametrize(
    ("model", "method", "recompute"),
    [
        ("cnn", "bptt", False), ("cnn", "bptt-ckpt2", False), ("cnn", "sltt-k2", True), ("preact-resnet18", "bptt", True),
        ("nf-resnet34", "sltt", False),
        *thinned([
            *((model, method, recompute) for model in ("preact-resnet18", "vgg11")
              for method in ("bptt", "sltt", "sltt-k2") for recompute in (False, True)),
            *(("cnn", method, recompute) for method in ("sltt", "tbptt-w2", "sltt-a2", "bptt-d0.5") for recompute in (False, True)),
            *((model, method, recompute) for model in ("nf-resnet34", "nf-resnet50")
              for method in ("bptt", "sltt", "sltt-k2") for recompute in (False, True)),
        ], keep=9, first=2),
    ],
)  # fmt: skip
def test_gradients_and_running_statistics_are_those_of_the_reference(
    model: str, method: str, recompute: bool
) -> None:
    reference = train_reference(model, method, dtype=torch.float64)
    fused = train_fused(model, method, dtype=torch.float64, recompute=recompute)
    if method != "sltt-a2" and not model.startswith("nf"):  # the one looks at the spikes of each layer
        assert "forward with batch norm" in fused.backend.provenance()["neuron"]
    assert gradient_error(fused, reference) < 1e-12
    assert torch.equal(fused.outputs, reference.outputs)
    for (
        name,
        learned,
    ) in reference.buffers.items():  # a running mean learns a bias that was left out by itself
        torch.testing.assert_close(fused.buffers[name], learned, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("method", "how"),
    [
        ("bptt", {}),
        ("bptt", {"recompute": True}),
        ("sltt", {"precision": "bf16"}),
        ("bptt", {"accumulate": True}),
    ],
    ids=str,
)
def test_what_is_added_to_scales_without_autograd_is_its_sum(
    method: str, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, but where a gradient of an earlier batch is there, to which autograd would add the steps' sum."""
    own = train_fused("cnn", method, **how)
    monkeypatch.setattr("sltt_bench.backends.native.batch_norm._collect_as_usual", lambda *parameters: False)
    autograds = train_fused("cnn", method, **how)
    if "accumulate" in how:
        assert gradient_error(own, autograds) < 1e-6
    else:
        assert all(torch.equal(own.gradients[name], autograds.gradients[name]) for name in own.gradients)


@pytest.mark.parametrize("fused_norm", ["never", "always"])
def test_a_hook_on_a_scale_gets_its_gradient(fused_norm: str) -> None:
    """Torch 2.6 forgets it if the parameter is unpacked by a hook of saved tensors."""
    network, backend = network_of("cnn", fused_norm=fused_norm)
    norm = next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    seen: list[Tensor] = []
    norm.weight.register_hook(seen.append)
    x, method = torch.randn(3, 3, 16, 16), methods.create("bptt", T)
    with backend.iteration(network):
        unroll = Unroll(network, [x] * T, lambda o: o.square().mean(), generator=torch.Generator())
        method.accumulate_gradients(unroll)
    assert len(seen) == 1
    assert torch.equal(seen[0], norm.weight.grad)


@pytest.mark.parametrize("fused_norm", ["never", "always"])
def test_a_scale_that_is_changed_before_the_backward_pass_is_an_error(fused_norm: str) -> None:
    network, backend = network_of("cnn", fused_norm=fused_norm)
    norm = next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    with backend.iteration(network):
        output = network(torch.randn(3, 3, 16, 16))
        with torch.no_grad():
            norm.weight.mul_(2)
        with pytest.raises(RuntimeError, match="changed in place"):
            output.sum().backward()


def test_autograd_adds_up_the_scales_of_a_norm_with_a_hook_on_them_and_of_no_other() -> None:
    class Additions(TorchDispatchMode):
        of_vectors = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.of_vectors += func.overloadpacket is torch.ops.aten.add and args[0].dim() == 1
            return func(*args, **(kwargs or {}))

    x, method, counts = torch.randn(3, 3, 16, 16), methods.create("bptt", T), []
    for hooked in (False, True):
        network, backend = network_of("cnn")
        norm = next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
        if hooked:
            norm.weight.register_hook(lambda gradient: None)
        with backend.iteration(network), Additions() as additions:
            unroll = Unroll(network, [x] * T, lambda o: o.square().mean(), generator=torch.Generator())
            method.accumulate_gradients(unroll)
        counts.append(additions.of_vectors)
    assert counts[1] - counts[0] == 2 * (T - 1)


@pytest.mark.parametrize("reset", ["soft", "hard"])
def test_gradients_of_other_neurons(reset: Any) -> None:
    how: Any = {
        "neuron": LIFParameters(tau=1.7, v_threshold=0.8, reset=reset, v_reset=-0.2, surrogate="sigmoid"),
        "dtype": torch.float64,
        "repeated_image": False,
    }
    reference = train_reference("cnn", "bptt", **how)
    assert gradient_error(train_fused("cnn", "bptt", **how), reference) < 1e-12


@pytest.mark.parametrize(
    ("precision", "method"),
    [("fp16", "sltt"), *thinned([("bf16", "bptt"), ("fp16", "bptt"), ("bf16", "sltt")], keep=4)],
)
def test_in_mixed_precision_it_differs_by_no_more_than_the_format(precision: str, method: str) -> None:
    exact = train_reference("cnn", method)
    rounded = train_reference("cnn", method, precision=precision)
    fused = train_fused("cnn", method, precision=precision)
    assert {gradient.dtype for gradient in fused.gradients.values()} == {torch.float32}
    assert gradient_error(fused, rounded) < gradient_error(rounded, exact)
    for name, learned in rounded.buffers.items():
        torch.testing.assert_close(fused.buffers[name], learned, rtol=1e-3, atol=1e-3)


def network_of(model: str = "preact-resnet18", **options: Any) -> tuple[nn.Module, Any]:
    backend = backends.create("native", **{"fused_norm": "always", **options})
    return build(backend, model, LIFParameters()), backend


@pytest.mark.parametrize("training", [True, False])
def test_without_a_graph_outputs_are_those_of_the_reference(training: bool) -> None:
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    outputs = []
    for network in (network_of("cnn")[0], build(backends.create("reference"), "cnn", LIFParameters())):
        network.train(training)
        for module in network.modules():
            if hasattr(module, "p"):
                module.p = 0.0
        with torch.no_grad():
            outputs.append(torch.stack([network(x * t) for t in (1, 2)]))
        reset_state(network)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)


def test_evaluation_has_a_gradient_too() -> None:
    gradients = []
    for fused in ("always", "never"):
        network, _ = network_of("cnn", fused_norm=fused)
        network = network.double().eval()
        network(torch.ones(2, 3, 16, 16, dtype=torch.float64)).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-12)


# Where it may not be ------------------------------------------------------------------------------


def fused_norms(options: Any) -> set[str]:
    network = models.build(
        options,
        neuron=lambda: backends.create("native").neuron(LIFParameters()),
        input_shape=(3, 32, 32),
        classes=4,
    )
    defer(network, NativeLIF, KernelsByDevice())
    return {name for name, module in network.named_modules() if type(module).__name__.startswith("Deferring")}


def test_only_those_are_fused_that_nothing_but_neurons_reads() -> None:
    assert len(fused_norms(PreActResNetOptions(width=4))) == 17
    spiking = fused_norms(SEWResNetOptions(name="sew-resnet18", width=8))
    assert {"layer1.0.bn1", "layer1.0.bn2", "layer2.0.downsample.1"} <= spiking
    currents = fused_norms(MSResNetOptions(name="ms-resnet18", width=8))
    assert "layer1.0.bn1" in currents
    assert not [name for name in currents if name.endswith(".bn2") or "shortcut" in name]
    assert not fused_norms(PreActResNetOptions(width=4, normalisation="tdbn"))


class Reads(nn.Module):
    """Its batch norm is seen by something else, used twice, or of another kind."""

    def __init__(self, norm: nn.Module, *, adds: bool = False, twice: bool = False) -> None:
        super().__init__()
        self.norm, self.adds, self.twice = norm, adds, twice
        self.neuron = backends.create("native").neuron(LIFParameters())

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.norm(x) if self.twice else x)
        spikes: Tensor = self.neuron(y)
        return spikes + y if self.adds else spikes


@pytest.mark.parametrize(
    ("network", "count"),
    [
        (lambda: Reads(nn.BatchNorm1d(4)), 1),
        (lambda: Reads(nn.BatchNorm1d(4), adds=True), 0),
        (lambda: Reads(nn.BatchNorm1d(4), twice=True), 0),
        (lambda: Reads(nn.BatchNorm1d(4, affine=False)), 0),
        (lambda: Reads(nn.BatchNorm1d(4, momentum=None)), 0),
        (lambda: Reads(nn.BatchNorm1d(4, track_running_stats=False)), 0),
        (lambda: Reads(nn.SyncBatchNorm(4)), 0),
        (lambda: Reads(nn.GroupNorm(2, 4)), 0),
    ],
)
def test_other_batch_norms_stay_as_they_are(network: Callable[[], nn.Module], count: int) -> None:
    assert defer(network(), NativeLIF, KernelsByDevice()) == (count, 0)


class Decides(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


def test_a_network_that_cannot_be_seen_through_keeps_its_own_and_says_so() -> None:
    backend = backends.create("native", fused_norm="always")
    network = Decides(nn.BatchNorm1d(4), backend.neuron(LIFParameters()))
    with pytest.raises(NotTraceable):
        defer(network, NativeLIF, KernelsByDevice())
    backend.prepare(network, "cpu")
    assert "cannot be traced" in backend.provenance()["batch norms"]
    assert type(network[0]) is nn.BatchNorm1d


def biases_left_out(network: nn.Module) -> set[str]:
    backend = backends.create("native", fused_norm="always")
    backend.prepare(network, "cpu")
    return {name for name, module in network.named_modules() if hasattr(module, "left_out")}


def test_the_biases_of_all_convolutions_with_one_reader_are_left_out() -> None:
    def build_model(options: Any) -> nn.Module:
        neuron = partial(backends.create("native").neuron, LIFParameters())
        return models.build(options, neuron=neuron, input_shape=(3, 32, 32), classes=4)

    residual = biases_left_out(build_model(PreActResNetOptions(width=4)))
    assert len(residual) == 16 + 3
    assert {"layer1.0.conv1", "layer1.0.conv2", "layer2.0.shortcut"} <= residual
    assert len(biases_left_out(build_model(VGGOptions(width=4)))) == 8
    assert not biases_left_out(build_model(MSResNetOptions(name="ms-resnet18", width=8)))  # they have none
    free = biases_left_out(build_model(NFResNetOptions(name="nf-resnet34", width=8)))
    assert len(free) == 32
    assert not [name for name in free if "downsample" in name]


class AfterConvolutions(nn.Module):
    """Batch norm of what `combine` makes of a convolution."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.conv, self.other = (nn.Conv2d(2, 4, 3, padding=1, **options) for _ in range(2))
        self.norm = nn.BatchNorm2d(4)
        self.neuron = backends.create("native").neuron(LIFParameters())

    def combine(self, x: Tensor) -> Tensor:
        made: Tensor = self.conv(x)
        return made

    def forward(self, x: Tensor) -> Tensor:
        spikes: Tensor = self.neuron(self.norm(self.combine(x)))
        return spikes


class Doubles(nn.Module):
    """In place, which a trace does not show."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2)


class DoublesWhatNormRead(AfterConvolutions):
    def __init__(self) -> None:
        super().__init__()
        self.doubles = Doubles()

    def forward(self, x: Tensor) -> Tensor:
        made = self.conv(x)
        currents = self.norm(made)
        seen = self.doubles(made)
        spikes: Tensor = self.neuron(currents)
        return spikes + seen


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_neurons_normalise_nothing_but_what_batch_norm_read(mode: Callable[[], Any]) -> None:
    network = DoublesWhatNormRead()
    assert defer(network, NativeLIF, KernelsByDevice())[0] == 1
    with (
        mode(),
        pytest.raises(RuntimeError, match="changed in place before the neurons behind"),
    ):
        network(torch.randn(3, 2, 5, 5))


class ReadTwice(AfterConvolutions):
    def combine(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y + y.relu()


class SummedInPlace(AfterConvolutions):
    def combine(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        y += self.other(x)
        return y


class SummedInPlaceAndSeen(AfterConvolutions):
    def combine(self, x: Tensor) -> Tensor:
        y = same = self.conv(x)
        y += self.other(x)
        return y + 0 * same.relu()


class Summed(AfterConvolutions):
    def combine(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.other(x)  # type: ignore[no-any-return]


class SummedByFunction(AfterConvolutions):
    def combine(self, x: Tensor) -> Tensor:
        return torch.add(self.conv(x), self.other(x))


class SummedWithFactor(AfterConvolutions):
    def combine(self, x: Tensor) -> Tensor:
        return torch.add(self.conv(x), self.other(x), alpha=2)


class Shifted(AfterConvolutions):
    def combine(self, x: Tensor) -> Tensor:
        return self.conv(x) + 1.5  # type: ignore[no-any-return]


class Scaled(AfterConvolutions):
    def combine(self, x: Tensor) -> Tensor:
        return self.conv(x) * 2  # type: ignore[no-any-return]


class Rectified(AfterConvolutions):
    def combine(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()  # type: ignore[no-any-return]


class CalledTwice(AfterConvolutions):
    def combine(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.conv(2 * x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (AfterConvolutions, {"conv"}),
        (SummedInPlace, {"conv", "other"}),
        (SummedInPlaceAndSeen, set()),
        (partial(AfterConvolutions, bias=False), set()),
        (partial(AfterConvolutions, padding_mode="reflect"), set()),
        (Summed, {"conv", "other"}),
        (SummedByFunction, {"conv", "other"}),
        (SummedWithFactor, set()),
        (Shifted, {"conv"}),
        (Scaled, set()),
        (Rectified, set()),
        (CalledTwice, set()),
        (ReadTwice, set()),
    ],
)
def test_other_biases_stay(network: Callable[[], nn.Module], expected: set[str]) -> None:
    assert biases_left_out(network()) == expected


def test_the_gradient_of_a_bias_left_out_is_zero_whoever_asks() -> None:
    network, backend = network_of()
    x, parameters = torch.randn(4, 3, 16, 16), list(network.parameters())
    convolution = network.layer1[0].conv1
    bias = convolution.bias
    iterate(network, backend, "sltt", x)
    assert convolution.left_out
    assert bias.grad is not None
    asked = torch.autograd.grad(
        network(x).square().sum(), parameters
    )  # none is unused, though .grad is there
    reset_state(network)
    assert not asked[[parameter is bias for parameter in parameters].index(True)].any()
    bias.grad.fill_(2.0)  # what is there is added to
    network.zero_grad = lambda: None
    iterate(network, backend, "bptt", x)
    assert bias.grad.eq(2).all()


def test_nobody_adds_up_the_zeros_of_the_steps() -> None:
    network, backend = network_of()
    made: list[Tensor] = []

    class Zeros(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.overloadpacket is torch.ops.aten.zeros_like:
                made.append(args[0])
            return func(*args, **(kwargs or {}))

    with Zeros():
        iterate(network, backend, "bptt", torch.randn(4, 3, 16, 16))
    biases = [layer.bias for layer in network.modules() if getattr(layer, "left_out", False)]
    assert len(biases) == 19
    assert [sum(zeros is bias for zeros in made) for bias in biases] == [1] * len(biases)


@pytest.mark.parametrize("watched", ["", "conv", "norm", "neuron"])
def test_a_bias_makes_the_same_difference_left_out_or_not(watched: str) -> None:
    """To what is learned, to values that somebody reads, in evaluation, and in a batch that is refused."""
    results = []
    for deferred in (False, True):
        torch.manual_seed(1)
        network = Summed().double()
        seen: list[Tensor] = []
        if deferred:
            defer(network, NativeLIF, KernelsByDevice())
        if watched:
            hook = lambda module, inputs, output, seen=seen: seen.append(output.detach().clone())  # noqa: E731
            network.get_submodule(watched).register_forward_hook(hook)
        x = torch.randn(3, 2, 5, 5, dtype=torch.float64)
        for _ in range(3):
            network(x).square().sum().backward()
            reset_state(network)
        if not watched and deferred:
            assert network.conv.left_out
            assert not network.conv.bias.grad.any()
        for parameter in network.parameters():
            assert parameter.grad is not None
        with pytest.raises(ValueError, match="more than 1 value"):
            network(x[:1, :, :1, :1])
        statistics = [network.norm.running_mean, network.norm.running_var]
        network.eval()
        results.append([*seen, *statistics, network(x), *(p.grad for p in network.parameters())])
    for own, usual in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(own, usual, rtol=1e-10, atol=1e-10)


def test_whoever_reads_a_layers_values_gets_them() -> None:
    """With a hook on either layer nothing is fused, call by call."""
    x = torch.randn(5, 3, 16, 16)
    expected: Tensor = build(backends.create("reference"), "cnn", LIFParameters()).norm1(
        build(backends.create("reference"), "cnn", LIFParameters()).conv1(x)
    )
    for layer in ("norm1", "neuron1"):
        network, backend = network_of("cnn")
        seen: list[Tensor] = []
        handle = network.get_submodule(layer).register_forward_hook(
            lambda module, inputs, output, seen=seen: seen.extend([*inputs, output])
        )
        network(x)
        torch.testing.assert_close(seen[layer == "norm1"], expected)
        assert "torch forward," in backend.provenance()["neuron"] + ","
        handle.remove()
        reset_state(network)
        network(x)
        assert len(seen) == 2


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("place", ["0", "0.0", "0.0.0", "0.1", "1", "1.0", "2", "3", "every layer"])
@pytest.mark.parametrize(
    "register", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]
)
def test_whoever_reads_what_goes_into_or_out_of_a_part_gets_it(register: str, place: str) -> None:
    seen: dict[str, list[Tensor]] = {}
    for name in ("reference", "native"):
        backend = backends.create(name, **{"fused_norm": "always"} if name == "native" else {})
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Sequential(nn.Sequential(nn.Conv2d(1, 3, 3)), nn.BatchNorm2d(3)),
            nn.Sequential(backend.neuron(LIFParameters())),
            nn.Sequential(nn.Conv2d(3, 2, 1)),
            nn.Sequential(backend.neuron(LIFParameters())),
        )
        network, seen[name] = backend.prepare(network, "cpu"), []
        hook = lambda _, args, output=None, seen=seen[name]: seen.extend(  # noqa: E731
            [output] if isinstance(output, Tensor) else [x for x in output or args if x is not None]
        )
        if place == "every layer":
            handle = getattr(module_hooks(), register.replace("register_", "register_module_"))(hook)
        else:
            handle = getattr(network.get_submodule(place), register)(hook)
        for _ in range(2):
            with backend.iteration(network):
                network(torch.rand(2, 1, 5, 5)).sum().backward()
            reset_state(network)
        handle.remove()
    assert len(seen["native"]) >= 2
    for native, reference in zip(seen["native"], seen["reference"], strict=True):
        assert torch.allclose(native, reference, rtol=1e-5, atol=1e-6)


def test_one_value_a_channel_is_refused_as_torch_does() -> None:
    network = Reads(nn.BatchNorm1d(4))
    defer(network, NativeLIF, KernelsByDevice())
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        network(torch.ones(1, 4))
    with pytest.raises(ValueError, match="2D or 3D"):
        network(torch.ones(2, 4, 3, 3))


def test_auto_fuses_nothing_on_a_cpu_and_the_compiler_excludes_it() -> None:
    assert "batch norms" not in train("native", "cnn", "sltt", watched=False).backend.provenance()
    refused = backends.create("native", compile=True, fused_norm="always")
    assert "native.fused_norm" in str(refused.unsupported(LIFParameters(), "fp32", "cpu"))


def test_parameters_keep_their_names_and_a_copy_is_a_network_of_its_own() -> None:
    network, backend = network_of()
    reference = build(backends.create("reference"), "preact-resnet18", LIFParameters())
    assert [*network.state_dict()] == [*reference.state_dict()]
    another = copy.deepcopy(network)
    assert another.layer1[0].bn1.readers[0] is another.layer1[0].neuron1
    another(torch.randn(2, 3, 16, 16))
    assert network.layer1[0].neuron1.potential is None
    assert backend.provenance()["batch norms"].startswith("17")


def test_training_goes_as_with_the_reference() -> None:
    def subject(backend: str, **fields: Any) -> Experiment:
        fields = {
            "train.batch_size": 4,
            "model.channels": [8, 8],
            "timesteps": 3,
            "model.dropout": 0.0,
            **fields,
        }
        cell = Cell(load_recipe("digits", fields), "sltt", backend, seed=0, synthetic=True)
        assembled = assemble(cell, torch.device("cpu"), make_backend(cell))
        assembled.network.train()
        return assembled

    generator = torch.Generator().manual_seed(2)
    x, labels = 2 * torch.randn(4, 1, 8, 8, generator=generator), torch.randint(10, (4,), generator=generator)
    subjects = subject("native", **{"native.fused_norm": "always"}), subject("reference")
    for _ in range(3):
        losses = [one.training_iteration(x, labels).summed_loss for one in subjects]
        torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
    assert subjects[0].backend.provenance()["batch norms"].startswith("2,")


# Memory -------------------------------------------------------------------------------------------


def iterate(network: nn.Module, backend: Any, method: str, x: Tensor, timesteps: int = T) -> None:
    network.zero_grad()
    unroll_of = partial(Unroll, loss=lambda output: output.square().mean(), generator=torch.Generator())
    driver = methods.create(method, timesteps)
    with backend.sharing(driver), backend.iteration(network):
        driver.accumulate_gradients(unroll_of(network, [x] * timesteps))
    reset_state(network)


@pytest.mark.parametrize("method", ["sltt", pytest.param("bptt", marks=pytest.mark.long)])
def test_it_takes_no_more_memory_than_batch_norm_by_itself(method: str) -> None:
    peaks = {}
    for fused in ("always", "never"):
        network, backend = network_of(fused_norm=fused)
        x = torch.randn(2, 3, 16, 16)
        iterate(network, backend, method, x, 2)
        with TensorBytes([x], network=network) as counted:
            iterate(network, backend, method, x, 2)
        peaks[fused] = counted.peak
    assert peaks["always"] <= peaks["never"]


@contextmanager
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("method", ["bptt", "sltt", *thinned(["sltt-k2", "bptt-ckpt2"], keep=3, first=2)])
def test_nothing_of_an_iteration_is_left(method: str) -> None:
    network, backend = network_of("cnn")
    x = torch.randn(6, 3, 16, 16)
    made: list[weakref.ref[Tensor]] = []
    network.norm1.register_forward_pre_hook(
        reads_no_values(lambda module, inputs: made.append(weakref.ref(inputs[0])))
    )
    held = []
    with no_collector(), TensorBytes([x], network=network) as counted:
        for _ in range(5):
            iterate(network, backend, method, x)
            network.zero_grad()
            held.append(counted.current)
    assert len(set(held[1:])) == 1
    assert len(made) >= T
    assert not [tensor for tensor in made if tensor() is not None]
