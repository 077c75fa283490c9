"""Who runs against whom: one network with one set of weights, driven by different implementations.

Every competitor computes what the same training iteration needs, from zeroed gradients to all
gradients of the batch, for the same image at T steps. Normalisation sees one step at a time with all.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sltt_bench import backends, methods, models
from sltt_bench.backends import Backend
from sltt_bench.backends.native import Native
from sltt_bench.backends.native.graphs import GraphedIterations
from sltt_bench.backends.native.pooling import LEAN
from sltt_bench.backends.reference import Reference
from sltt_bench.backends.spikingjelly import SpikingJelly, SpikingJellyLIF
from sltt_bench.losses import step_loss
from sltt_bench.measure import Profiler
from sltt_bench.methods import Method
from sltt_bench.models.options import ModelOptions, NFResNetOptions, PreActResNetOptions, VGGOptions
from sltt_bench.models.preact_resnet import PreActBlock
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
    short_iteration: Callable[[], None]
    """The same of the first two steps."""
    batch: tuple[Tensor, ...]
    warm_up: int
    """Iterations before time is taken: algorithms are chosen, kernels compiled, graphs captured, and
    native learns what repeats."""
    provenance: Callable[[], Mapping[str, str]] = dict
    """What has really run."""
    around: Callable[[], AbstractContextManager[object]] = nullcontext
    """Entered around what is timed, outside the clock."""


WARM_UP = {"cpu": 3, "cuda": 5}
"""Iterations, by type of device."""


@dataclass(frozen=True)
class Competitor:
    """One implementation of the iteration."""

    name: str
    make: Callable[[Problem], Made]


def this_project(backend: str, method: str, **options: Any) -> Competitor:
    """A backend of the project under one of its methods."""
    options_on = "".join(f", {key}" for key, value in options.items() if value is True)
    options_on += CUDA_GRAPH * (options.get("graphs") == "always")
    return Competitor(
        f"{backend} {method}{options_on}",
        lambda problem: _step_by_step(problem, backends.create(backend, **options), method),
    )


def spikingjelly_sltt(*, float32_neurons: bool = False, cuda_graph: bool = False) -> Competitor:
    """SpikingJelly's `SLTTLIFNode`, which cuts off the past itself.

    `float32_neurons`: under mixed precision, cast the currents to float32, the only format for whose
    states SpikingJelly has fused kernels; otherwise a state has the format of the currents.
    `cuda_graph`: iterations are replayed, as SpikingJelly's own trainers offer.
    """

    def make(problem: Problem) -> Made:
        nodes = _SpikingJellyNodes("SLTTLIFNode", float32_neurons=float32_neurons, graphs=_graphs(cuda_graph))
        return _step_by_step(problem, nodes, "sltt")

    return Competitor(
        "SpikingJelly SLTTLIFNode" + FLOAT32_NEURONS * float32_neurons + CUDA_GRAPH * cuda_graph, make
    )


def spikingjelly_sltt_with_less_memory(*, compress: bool) -> Competitor:
    """`SLTTLIFNode` and SpikingJelly's memory optimisation (`activation_based.memopt`, level 1).

    Residual blocks are checkpointed; or, to `compress`, each convolution of spikes is, its input kept
    as bits.
    """
    how = "spikes as bits" if compress else "blocks checkpointed"

    def make(problem: Problem) -> Made:
        return _step_by_step(problem, _Checkpointed("SLTTLIFNode", compress=compress), "sltt")

    return Competitor(f"SpikingJelly SLTTLIFNode, {how}", make)


def spikingjelly_bptt(
    *, multi_step: bool, float32_neurons: bool = False, cuda_graph: bool = False
) -> Competitor:
    """SpikingJelly's `LIFNode`: step by step, or `multi_step`: each layer for all T steps at once."""
    mode = "multi-step" if multi_step else "single-step"

    def make(problem: Problem) -> Made:
        nodes = _SpikingJellyNodes(
            "LIFNode", float32_neurons=float32_neurons, step_mode=mode[0], graphs=_graphs(cuda_graph)
        )
        return _layer_by_layer(problem, nodes) if multi_step else _step_by_step(problem, nodes, "bptt")

    return Competitor(
        f"SpikingJelly LIFNode {mode}" + FLOAT32_NEURONS * float32_neurons + CUDA_GRAPH * cuda_graph, make
    )


def spikingjelly_bptt_with_less_memory(
    *, multi_step: bool, compress: bool = False, chunks: int = 1
) -> Competitor:
    """`LIFNode` and SpikingJelly's memory optimisation, as above, exact as BPTT is.

    Its levels 2 to 4 search for finer blocks and for chunks of time by measuring on a GPU; what they can arrive at
    is set here by hand: `chunks` of the T steps in which a checkpointed block runs (multi-step only).
    """
    how = "spikes as bits" if compress else "blocks checkpointed"
    mode = "multi-step" if multi_step else "single-step"

    def make(problem: Problem) -> Made:
        nodes = _Checkpointed(
            "LIFNode", compress=compress, step_mode=mode[0], chunks=min(chunks, problem.timesteps)
        )
        return _layer_by_layer(problem, nodes) if multi_step else _step_by_step(problem, nodes, "bptt")

    in_chunks = f" in {chunks} chunks" if chunks > 1 else ""
    return Competitor(f"SpikingJelly LIFNode {mode}, {how}{in_chunks}", make)


def relu_network(*, cuda_graph: bool = False) -> Competitor:
    """The floor: ReLU in place of the neurons, forward and backward T times."""
    return Competitor(
        "ReLU network, T times" + CUDA_GRAPH * cuda_graph,
        lambda problem: _step_by_step(problem, _ReLUs(_graphs(cuda_graph)), "sltt"),
    )


def in_blocks(competitor: Competitor, iterations: int, *, sampled: bool) -> Competitor:
    """So many iterations at once; `sampled`: while the GPU's sensors are read from a thread, as in a run.

    Raises NoSensors, when it is made, if there are none to read.
    """

    def make(problem: Problem) -> Made:
        made = competitor.make(problem)
        device = torch.device(problem.device)
        profiler = Profiler(device)
        if sampled and device.type == "cuda" and profiler.watch is None:
            raise NoSensors(profiler.absent["peak_nvml_bytes"])

        @contextmanager
        def sampling() -> Iterator[None]:
            with Profiler(device) as profiler:
                profiler.epoch(1)  # ends its warm-up
                with profiler.phase("train", 1):
                    yield

        def block() -> None:
            for _ in range(iterations):
                made.iteration()

        return made._replace(iteration=block, around=sampling if sampled else nullcontext)

    return Competitor(f"{competitor.name}, {'with' if sampled else 'without'} sensors", make)


class NoSensors(Exception):
    """NVML cannot be read; the message says why."""


ABLATIONS = ("spikes not stored", "once an iteration", "lean pooling")
"""What `without` can switch off."""


def ablated(idea: str, method: str) -> Competitor:
    """Native under a method, with one of its ABLATIONS switched off."""
    return Competitor(
        f"native {method} without: {idea}",
        lambda problem: _step_by_step(problem, _NativeWithout(idea), method),
    )


FLOAT32_NEURONS = ", neurons in float32"
CUDA_GRAPH = ", CUDA graphs"


def _graphs(wanted: bool) -> GraphedIterations | None:
    return GraphedIterations() if wanted else None


class _Baseline(Reference):
    """Everything as in the reference but the neurons; channels-last on a GPU, as native is."""

    def __init__(self, graphs: GraphedIterations | None = None) -> None:
        """`graphs`: what replays the iterations."""
        self.graphs = graphs

    def prepare(self, network: nn.Module, device: str) -> nn.Module:
        if torch.device(device).type == "cuda":
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network.to(device)


class _SpikingJellyNodes(_Baseline):
    """One kind of SpikingJelly's nodes."""

    def __init__(
        self,
        kind: str,
        *,
        float32_neurons: bool = False,
        step_mode: str = "s",
        graphs: GraphedIterations | None = None,
    ) -> None:
        super().__init__(graphs)
        from spikingjelly.activation_based import neuron

        self._jelly = SpikingJelly()
        self._kind = getattr(neuron, kind)
        self._float32_neurons = float32_neurons
        self._step_mode = step_mode

    def neuron(self, parameters: LIFParameters) -> SpikingNeuron:
        node = self._jelly.node(self._kind, parameters)
        node.step_mode = self._step_mode
        kind = _InFloat32 if self._float32_neurons else SpikingJellyLIF
        return kind(node, parameters)

    def prepare(self, network: nn.Module, device: str) -> nn.Module:
        return self._jelly.prepare(super().prepare(network, device), device)

    def provenance(self) -> Mapping[str, str]:
        facts = self._jelly.provenance()
        return {**facts, "neuron": facts["neuron"].replace("LIFNode, step_mode='s'", self._what())}

    def _what(self) -> str:
        return f"{self._kind.__name__}, step_mode={self._step_mode!r}"


class _InFloat32(SpikingJellyLIF):
    """SpikingJelly's neurons computing in float32 whatever they are given."""

    def forward(self, current: Tensor) -> Tensor:
        return super().forward(current.float()).to(current.dtype)


class _Checkpointed(_SpikingJellyNodes):
    """Nodes under SpikingJelly's own memory optimisation."""

    def __init__(self, kind: str, *, compress: bool, step_mode: str = "s", chunks: int = 1) -> None:
        super().__init__(kind, step_mode=step_mode)
        self._compress = compress
        self._chunks = chunks

    def prepare(self, network: nn.Module, device: str) -> nn.Module:
        from spikingjelly.activation_based.memopt import BitSpikeCompressor, checkpoint_module

        network = super().prepare(network, device)
        layers = {name: module for name, module in network.named_modules() if self._is_chosen(module)}
        if self._compress:
            del layers[next(iter(layers))]  # the stem receives an image
        for name, module in layers.items():
            compressor = BitSpikeCompressor() if self._compress else None
            network.set_submodule(name, checkpoint_module(module, compressor=compressor, chunks=self._chunks))
        return network

    def _is_chosen(self, module: nn.Module) -> bool:
        return isinstance(module, nn.Conv2d if self._compress else PreActBlock)


class _NativeWithout(Native):
    """Native with an idea switched off."""

    def __init__(self, idea: str) -> None:
        super().__init__()
        self._idea = idea

    def prepare(self, network: nn.Module, device: str) -> nn.Module:
        network = super().prepare(network, device)
        if self._idea == "lean pooling":
            usual = {lean: kind for kind, lean in LEAN.items()}
            for module in network.modules():
                module.__class__ = usual.get(type(module), type(module))
        return network

    @contextmanager
    def iteration(self, network: nn.Module) -> Iterator[None]:
        saved = nullcontext() if self._idea == "spikes not stored" else self._saved.active()
        once = nullcontext() if self._idea == "once an iteration" else self._once.active(network)
        with saved, once:
            yield


class _ReLUs(_Baseline):
    """No neurons at all."""

    def neuron(self, parameters: LIFParameters) -> Any:
        return _ReLU()

    def provenance(self) -> Mapping[str, str]:
        return {"neuron": "none: torch's ReLU", "torch": torch.__version__}


class _ReLU(nn.ReLU):
    """ReLU where a network scales its neurons."""

    def scaled(self, x: Tensor, gain: float, divisor: float | None = None) -> Tensor:
        return self(x if divisor is None else x / divisor) * gain


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
    generator = torch.Generator().manual_seed(0)
    backward = scaled_backward(precision.make_scaler())
    graphs = getattr(backend, "graphs", None)

    def subject(timesteps: int) -> _Subject:
        return _Subject(network, methods.create(method, timesteps), generator, timesteps)

    def iterate(subject: _Subject, x: Tensor, labels: Tensor) -> Unroll:
        inputs = [x] * subject.timesteps
        unrolled = network
        if isinstance(backend, Native):
            unrolled = backend.unrolled(network, inputs, subject.method)
        with backend.iteration(network):
            unroll = Unroll(
                unrolled,
                inputs,
                partial(step_loss, labels=labels, alpha=ALPHA, mse_target="ones"),
                generator=subject.generator,
                backward=backward,
                autocast=precision.autocast,
            )
            subject.method.accumulate_gradients(unroll)
        return unroll

    def iteration(subject: _Subject) -> None:
        network.zero_grad(set_to_none=True)
        if graphs is None:
            iterate(subject, x, labels)
        else:
            graphs.run(subject, partial(iterate, subject), (x, labels))

    return Made(
        network,
        iteration=partial(iteration, subject(problem.timesteps)),
        short_iteration=partial(iteration, subject(min(2, problem.timesteps))),
        batch=(x, labels),
        warm_up=_warm_up(problem),
        provenance=backend.provenance,
    )


def _warm_up(problem: Problem) -> int:
    return WARM_UP[torch.device(problem.device).type]


@dataclass
class _Subject:
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
    precision = Precision(problem.precision, torch.device(problem.device).type)
    scaler = precision.make_scaler()
    generator = torch.Generator()
    graphs: GraphedIterations | None = getattr(backend, "graphs", None)

    def iterate(timesteps: int, x: Tensor, labels: Tensor) -> Any:
        reset_state(network)
        with precision.autocast() if precision.autocast else nullcontext():
            outputs = network(x.expand(timesteps, *x.shape))
        losses = [step_loss(output, labels=labels, alpha=ALPHA, mse_target="ones") for output in outputs]
        torch.autograd.backward(scaler.scale(torch.stack(losses).mean()))

    def iteration(timesteps: int) -> None:
        network.zero_grad(set_to_none=True)
        if graphs is None:
            iterate(timesteps, x, labels)
        else:
            subject = _Subject(network, methods.create("bptt", timesteps), generator, timesteps)
            graphs.run(subject, partial(iterate, timesteps), (x, labels))

    return Made(
        network,
        iteration=partial(iteration, problem.timesteps),
        short_iteration=partial(iteration, problem.timesteps),  # of two steps, there are no chunks of time
        batch=(x, labels),
        warm_up=_warm_up(problem),
        provenance=backend.provenance,
    )


def _all_steps_at_once(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    flat = forward(x.flatten(0, 1))
    return flat.reshape(*x.shape[:2], *flat.shape[1:])


def _one_step_after_the_other(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.stack([forward(step) for step in x])
