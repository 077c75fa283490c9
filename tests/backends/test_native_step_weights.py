"""Weights in the format of mixed precision are made once an iteration, with the gradients of the reference."""

import gc
import weakref
from collections import Counter
from typing import Any

import pytest
import torch
from on_backends import T, build, gradient_error, train, train_reference
from torch import Tensor, nn
from torch.nn.utils import prune

from sltt_bench import backends
from sltt_bench.backends.native import standardising, step_weights
from sltt_bench.methods import Method
from sltt_bench.methods.sltt_k import SLTTK
from sltt_bench.neurons import LIFParameters
from sltt_bench.precision import Precision
from sltt_bench.torch_internals import TorchDispatchMode, tree_leaves
from sltt_bench.unroll import Unroll


@pytest.fixture(autouse=True)
def small_tensors_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sltt_bench.backends.native.saved_tensor_hooks.SMALL", 0)


@pytest.mark.parametrize("method", ["bptt", "sltt", "sltt-k2", "tbptt-w2", "bptt-ckpt2", "bptt-d0.5"])
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_those_of_the_reference_to_the_last_bit(method: str, recompute: bool) -> None:
    how: Any = {"precision": "bf16", "repeated_image": False, "accumulate": True}
    native = train("native", "cnn", method, **how, recompute=recompute)
    assert gradient_error(native, train_reference("cnn", method, **how)) == 0


@pytest.mark.parametrize(("method", "recompute"), [("bptt", False), ("bptt", True), ("sltt", False)])
def test_those_behind_standardised_weights_differ_in_the_order_of_a_sum(method: str, recompute: bool) -> None:
    """The steps' gradients are added up before they go through the standardisation, in the parameters' precision."""
    how: Any = {"precision": "bf16", "repeated_image": False}
    native = train("native", "nf-resnet34", method, **how, recompute=recompute)
    assert gradient_error(native, train_reference("nf-resnet34", method, **how)) < 1e-6


@pytest.mark.parametrize("method", ["bptt", "sltt-k2"])
@pytest.mark.parametrize("accumulate", [False, True])
def test_weights_standardised_in_one_pass_have_the_gradients_of_the_reference(
    method: str, accumulate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[Tensor] = []
    standardise = standardising.standardise
    monkeypatch.setattr(step_weights, "standardise", lambda *args: used.append(args[0]) or standardise(*args))
    how: Any = {"dtype": torch.float64, "iterations": 3, "accumulate": accumulate}
    native = train("native", "nf-resnet34", method, **how, fused_norm="always")
    assert gradient_error(native, train_reference("nf-resnet34", method, **how)) < 1e-12
    layers = sum(hasattr(module, "standardised_weight") for module in native.network.modules())
    assert len(used) == 3 * layers


def test_a_hook_on_a_standardised_weights_parameter_is_called() -> None:
    backend = backends.create("native", fused_norm="always")
    network = build(backend, "nf-resnet34", LIFParameters())
    layer, seen = network.layer1[0].conv1, []
    layer.gain.register_hook(seen.append)
    with backend.iteration(network):
        layer(torch.randn(1, 4, 8, 8)).square().sum().backward()
    assert torch.equal(seen[0], layer.gain.grad)


class Casts(TorchDispatchMode):
    """How often something of each shape was cast to another type inside, as (shape, to what)."""

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[tuple[tuple[int, ...], torch.dtype]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten._to_copy:
            for tensor in tree_leaves(result):
                self.of[tuple(tensor.shape), tensor.dtype] += 1
        return result


def casts(method: str | Method, model: str = "cnn") -> tuple[nn.Module, Casts]:
    with Casts() as counted:
        trained = train("native", model, method, precision="bf16", iterations=1, repeated_image=False)
    return trained.network, counted


@pytest.mark.parametrize(
    ("method", "down", "up"),
    # Step by step, a weight is cast forward, and again backward; a gradient is cast once, then added as it is.
    # Steps without a graph share a cast, those before the chosen one and those after it.
    [
        ("bptt", 1, 1), ("tbptt-w2", 1, 1), ("sltt", 2 * T, 1), (SLTTK(1).at((T - 1,)), 1 + 2, 1),
        (SLTTK(1).at((1,)), 1 + 2 + 1, 1),
    ],
    ids=["bptt", "tbptt-w2", "sltt", "sltt-k1, the last step", "sltt-k1, the second step"],
)  # fmt: skip
def test_a_weight_is_cast_once_where_a_graph_of_many_steps_is_kept_or_none(
    method: str | Method, down: int, up: int
) -> None:
    network, counted = casts(method)
    shape = tuple(network.conv2.weight.shape)
    assert (counted.of[shape, torch.bfloat16], counted.of[shape, torch.float32]) == (down, up)


def test_a_step_with_a_graph_has_no_casts_of_those_without_in_memory() -> None:
    """From its first layer on, which may be the largest."""
    alive: list[int] = []

    class Watched(SLTTK):
        def accumulate_gradients(self, unroll: Unroll) -> None:
            first, second = (unroll.network.get_submodule(name) for name in ("conv1", "conv2"))
            gc.collect()
            of_others = casts_of(second)
            with torch.no_grad():
                unroll.step(0)
            unroll.detach_state()
            hook = first.register_forward_hook(lambda *_: alive.append(casts_of(second) - of_others))
            unroll.backward(unroll.step(1))
            hook.remove()

    train("native", "cnn", Watched(1), precision="bf16", iterations=1, timesteps=2, repeated_image=False)
    assert alive == [0]


def casts_of(layer: Any) -> int:
    """How many tensors there are of the shape of its weight in half precision."""
    tensors = [thing for thing in gc.get_objects() if type(thing) is Tensor]
    return sum(t.shape == layer.weight.shape and t.dtype == torch.bfloat16 for t in tensors)


def test_standardised_weights_are_cast_once_whatever_the_method() -> None:
    network, counted = casts("sltt", "nf-resnet34")
    shape = tuple(network.layer4[1].conv1.weight.shape)
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d) and tuple(m.weight.shape) == shape]
    assert counted.of[shape, torch.bfloat16] == counted.of[shape, torch.float32] == len(layers)


def test_full_precision_leaves_plain_weights_alone() -> None:
    backend = backends.create("native")
    network = build(backend, "cnn", LIFParameters())
    layer = next(m for m in network.modules() if type(m) is nn.Conv2d)
    with backend.iteration(network):
        layer(torch.randn(2, 3, 8, 8)).sum().backward()
        assert layer.weight.grad is not None
        (asked,) = torch.autograd.grad(layer(torch.randn(2, 3, 8, 8)).sum(), layer.weight)
        assert asked.shape == layer.weight.shape


class LearnsOnline:
    """Changes the parameters after each step, as rules do that learn within the sequence."""

    def accumulate_gradients(self, unroll: Unroll) -> None:
        for t in range(unroll.timesteps):
            unroll.detach_state()
            unroll.backward(unroll.step(t))
            with torch.no_grad():
                for parameter in unroll.network.parameters():
                    assert parameter.grad is not None
                    parameter -= 0.01 * parameter.grad


def test_parameters_may_change_between_the_steps() -> None:
    how: Any = {"precision": "bf16", "repeated_image": False}
    reference = train("reference", "cnn", LearnsOnline(), **how)
    assert gradient_error(train("native", "cnn", LearnsOnline(), **how), reference) == 0


def test_parameters_changed_between_a_step_and_its_backward_pass_are_refused() -> None:
    class TooSoon:
        def accumulate_gradients(self, unroll: Unroll) -> None:
            loss = unroll.step(0)
            with torch.no_grad():
                for parameter in unroll.network.parameters():
                    parameter.mul_(0.9)
            unroll.backward(loss)

    backend = backends.create("native")
    with backend._once.without_casts(), pytest.raises(RuntimeError, match="changed in place"):
        train(backend, "cnn", TooSoon(), precision="bf16", timesteps=1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_layer_may_be_called_by_the_name_of_its_argument(precision: str) -> None:
    backend = backends.create("native")
    layer = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(6, 2))
    x = torch.randn(2, 3, 8, 8)
    for _ in range(2):  # in the first iteration all layers are watched
        with backend.iteration(layer), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            for _ in range(2):
                layer[1](input=layer[0](input=x)).float().sum().backward()
    assert layer[0].weight.grad is not None


def test_a_gradient_lies_in_memory_as_its_parameter_does_whatever_the_format_of_the_images() -> None:
    """A fused optimiser on a GPU refuses others."""
    backend = backends.create("native")
    network = nn.Sequential(nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(6 * 4 * 4, 5))
    images = torch.randn(2, 8, 6, 6).to(memory_format=torch.channels_last)
    with backend.iteration(network):
        for _ in range(2):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                result = network(images)
            result.float().sum().backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("remade", ["weight norm", "spectral norm", "pruned"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_weight_that_is_no_parameter_itself_is_left_to_what_makes_it(remade: str, precision: str) -> None:
    made: Any = {
        "weight norm": nn.utils.weight_norm,
        "spectral norm": nn.utils.spectral_norm,
        "pruned": lambda layer: prune.random_unstructured(layer, "weight", 0.3),
    }[remade]
    gradients: list[dict[str, Tensor]] = []
    for name in ("reference", "native"):
        torch.manual_seed(0)
        backend = backends.create(name)
        network = backend.prepare(
            nn.Sequential(made(nn.Conv2d(1, 3, 3)), nn.Flatten(), nn.Linear(12, 2)), "cpu"
        )
        with backend.iteration(network), Precision(precision, "cpu").autocast():
            for x in torch.rand(2, 1, 1, 4, 4):
                network(x).square().sum().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[1][name], gradient) for name, gradient in gradients[0].items())


def test_whoever_hooks_a_parameter_sees_its_gradients() -> None:
    backend = backends.create("native")
    seen: list[Tensor] = []
    network = build(backend, "cnn", LIFParameters())
    layer = next(m for m in network.modules() if type(m) is nn.Conv2d)
    layer.weight.register_hook(seen.append)
    with backend.iteration(network):
        with torch.autocast("cpu", torch.bfloat16):
            result = layer(torch.randn(2, 3, 8, 8))
        result.float().sum().backward()
    assert layer.weight.grad is not None
    assert torch.equal(seen[0], layer.weight.grad)


def test_nothing_is_left_of_it_when_an_iteration_has_ended() -> None:
    backend = backends.create("native")
    network = build(backend, "cnn", LIFParameters())
    layer = next(m for m in network.modules() if type(m) is nn.Conv2d)
    before = set(vars(layer))
    used: list[weakref.ref[Tensor]] = []
    original = layer._conv_forward

    def conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        used.append(weakref.ref(weight))
        return original(x, weight, bias)

    layer._conv_forward = conv  # type: ignore[method-assign]
    with backend.iteration(network), torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(2, 3, 8, 8)).sum().backward()
        assert used[0]() is None
        with pytest.raises(RuntimeError):
            layer(torch.randn(2, 4, 8, 8))
        assert isinstance(layer.weight, nn.Parameter)
    del layer._conv_forward
    assert used[1]() is None
    assert set(vars(layer)) == before
