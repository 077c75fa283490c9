"""Who runs against whom: one network with one set of weights, driven by different implementations.

Every competitor computes what the same training iteration needs, from zeroed gradients to all
gradients of the batch, for the same image at T steps. Normalisation sees one step at a time with all.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sltt_bench import backends, methods, models
from sltt_bench.backends import Backend
from sltt_bench.backends.reference import Reference
from sltt_bench.backends.spikingjelly import SpikingJelly, SpikingJellyLIF
from sltt_bench.losses import step_loss
from sltt_bench.methods import Method
from sltt_bench.models.options import ModelOptions, NFResNetOptions, PreActResNetOptions, VGGOptions
from sltt_bench.neurons import LIFParameters, SpikingNeuron, reset_state
from sltt_bench.precision import Precision, scaled_backward
from sltt_bench.unroll import Unroll

ALPHA = 0.05


@dataclass(frozen=True)
class Problem:
    """What is computed: network, batch, T, precision, device."""

    network: ModelOptions
    image: tuple[int, int, int]
    classes: int
    batch_size: int
    timesteps: int
    precision: str
    device: str

    def __str__(self) -> str:
        channels, height, width = self.image
        return (
            f"{self.network.name}, {channels}×{height}×{width}, batch {self.batch_size}, "
            f"T = {self.timesteps}, {self.precision}"
        )

    def batch(self) -> tuple[Tensor, Tensor]:
        """Random images [batch, C, H, W] and labels [batch], always the same."""
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(self.batch_size, *self.image, generator=generator)
        labels = torch.randint(self.classes, (self.batch_size,), generator=generator)
        return x.to(self.device), labels.to(self.device)


def cifar_resnet18(**fields: Any) -> Problem:
    """The paper's network for CIFAR at its batch size and T."""
    return replace(Problem(PreActResNetOptions(), (3, 32, 32), 10, 128, 6, "fp32", "cpu"), **fields)


def imagenet_nf_resnet34(**fields: Any) -> Problem:
    """The paper's network for ImageNet at its batch size and T."""
    return replace(
        Problem(NFResNetOptions(name="nf-resnet34"), (3, 224, 224), 1000, 256, 6, "fp32", "cpu"), **fields
    )


def gesture_vgg11(**fields: Any) -> Problem:
    """The paper's network for DVS-Gesture at its batch size and T (no dropout: masks would differ)."""
    return replace(Problem(VGGOptions(), (2, 128, 128), 11, 16, 20, "fp32", "cpu"), **fields)


class Made(NamedTuple):
    """A competitor at work on a problem."""

    network: nn.Module
    iteration: Callable[[], None]
    """Zeroes the gradients and computes them anew."""
    batch: tuple[Tensor, ...]


@dataclass(frozen=True)
class Competitor:
    """One implementation of the iteration."""

    name: str
    make: Callable[[Problem], Made]


def ours(backend: str, method: str, **options: Any) -> Competitor:
    """A backend of the project under one of its methods."""
    said = "".join(f", {key}" for key, value in options.items() if value)
    return Competitor(
        f"{backend} {method}{said}",
        lambda problem: _step_by_step(problem, backends.create(backend, **options), method),
    )


def spikingjelly_sltt(*, float32_neurons: bool = False) -> Competitor:
    """SpikingJelly's `SLTTLIFNode`, which cuts off the past itself.

    `float32_neurons`: under mixed precision, cast the currents to float32, the only format for whose
    states SpikingJelly has fused kernels; otherwise a state has the format of the currents.
    """
    return Competitor(
        "SpikingJelly SLTTLIFNode" + FLOAT32_NEURONS * float32_neurons,
        lambda problem: _step_by_step(
            problem, _SpikingJellyNodes("SLTTLIFNode", float32_neurons=float32_neurons), "sltt"
        ),
    )


def spikingjelly_bptt(*, multi_step: bool, float32_neurons: bool = False) -> Competitor:
    """SpikingJelly's `LIFNode`: step by step, or `multi_step`: each layer for all T steps at once."""
    mode = "multi-step" if multi_step else "single-step"

    def make(problem: Problem) -> Made:
        nodes = _SpikingJellyNodes("LIFNode", float32_neurons=float32_neurons, step_mode=mode[0])
        return _layer_by_layer(problem, nodes) if multi_step else _step_by_step(problem, nodes, "bptt")

    return Competitor(f"SpikingJelly LIFNode {mode}" + FLOAT32_NEURONS * float32_neurons, make)


def relu_network() -> Competitor:
    """The floor: ReLU in place of the neurons, forward and backward T times."""
    return Competitor("ReLU network, T times", lambda problem: _step_by_step(problem, _ReLUs(), "sltt"))


FLOAT32_NEURONS = ", neurons in float32"


class _Baseline(Reference):
    """Everything as in the reference but the neurons; channels-last on a GPU, as native is."""

    def prepare(self, network: nn.Module, device: str) -> nn.Module:
        if torch.device(device).type == "cuda":
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network.to(device)


class _SpikingJellyNodes(_Baseline):
    """One kind of SpikingJelly's nodes."""

    def __init__(self, kind: str, *, float32_neurons: bool, step_mode: str = "s") -> None:
        from spikingjelly.activation_based import neuron

        self._jelly = SpikingJelly()
        self._kind = getattr(neuron, kind)
        self._float32_neurons = float32_neurons
        self._step_mode = step_mode

    def neuron(self, parameters: LIFParameters) -> SpikingNeuron:
        node = self._jelly.node(self._kind, parameters)
        node.step_mode = self._step_mode
        return _InFloat32(node) if self._float32_neurons else SpikingJellyLIF(node)


class _InFloat32(SpikingJellyLIF):
    """SpikingJelly's neurons computing in float32 whatever they are given."""

    def forward(self, current: Tensor) -> Tensor:
        return super().forward(current.float()).to(current.dtype)


class _ReLUs(_Baseline):
    """No neurons at all."""

    def neuron(self, parameters: LIFParameters) -> Any:
        return nn.ReLU()


def _build(problem: Problem, backend: Backend) -> nn.Module:
    """The network on its device, with the weights of seed 0."""
    torch.manual_seed(0)
    network = models.build(
        problem.network,
        neuron=lambda: backend.neuron(LIFParameters()),
        input_shape=problem.image,
        classes=problem.classes,
    )
    return backend.prepare(network, problem.device)


def _step_by_step(problem: Problem, backend: Backend, method: str) -> Made:
    """The method drives the network through the T steps."""
    network = _build(problem, backend)
    x, labels = problem.batch()
    precision = Precision(problem.precision, torch.device(problem.device).type)
    subject = _Subject(
        network,
        methods.create(method, problem.timesteps),
        torch.Generator().manual_seed(0),
        problem.timesteps,
    )
    backward = scaled_backward(precision.make_scaler())
    graphs = getattr(backend, "graphs", None)

    def iterate(x: Tensor, labels: Tensor) -> Unroll:
        with backend.iteration(network):
            unroll = Unroll(
                network,
                [x] * problem.timesteps,
                partial(step_loss, labels=labels, alpha=ALPHA, mse_target="ones"),
                generator=subject.generator,
                backward=backward,
                autocast=precision.autocast,
            )
            subject.method.accumulate_gradients(unroll)
        return unroll

    def iteration() -> None:
        network.zero_grad(set_to_none=True)
        if graphs is None:
            iterate(x, labels)
        else:
            graphs.run(subject, iterate, (x, labels))

    return Made(network, iteration, (x, labels))


class _Subject(NamedTuple):
    """What replaying an iteration needs to know."""

    network: nn.Module
    method: Method
    generator: torch.Generator
    timesteps: int


def _layer_by_layer(problem: Problem, backend: Backend) -> Made:
    """The network sees [T, batch, ...] at once; only batch norm still goes step by step."""
    network = _build(problem, backend)
    for module in network.modules():
        if isinstance(module, nn.Flatten):
            module.start_dim = 2
        elif isinstance(module, nn.Conv2d | nn.Linear | nn.AvgPool2d | nn.AdaptiveAvgPool2d):
            module.__dict__["forward"] = partial(_all_steps_at_once, module.forward)
        elif isinstance(module, nn.BatchNorm2d):
            module.__dict__["forward"] = partial(_one_step_after_the_other, module.forward)
    x, labels = problem.batch()
    sequence = x.expand(problem.timesteps, *x.shape)
    precision = Precision(problem.precision, torch.device(problem.device).type)
    scaler = precision.make_scaler()
    loss_of = partial(step_loss, labels=labels, alpha=ALPHA, mse_target="ones")

    def iteration() -> None:
        network.zero_grad(set_to_none=True)
        reset_state(network)
        with precision.autocast() if precision.autocast else nullcontext():
            outputs = network(sequence)
        loss = torch.stack([loss_of(output) for output in outputs]).mean()
        torch.autograd.backward(scaler.scale(loss))

    return Made(network, iteration, (x, labels))


def _all_steps_at_once(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    flat = forward(x.flatten(0, 1))
    return flat.reshape(*x.shape[:2], *flat.shape[1:])


def _one_step_after_the_other(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.stack([forward(step) for step in x])
