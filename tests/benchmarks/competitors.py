"""The competitors: different implementations that train one network with the same weights.

Each computes the same training iteration, from zeroed gradients to all gradients of the batch, for the same
image at T steps. In all of them, normalisation sees one step at a time.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
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
from sltt_bench.models.options import ModelOptions, NFResNetOptions, PreActResNetOptions, VGGOptions
from sltt_bench.models.preact_resnet import PreActBlock
from sltt_bench.models.vgg import VGG
from sltt_bench.neurons import LIFParameters, SpikingNeuron
from sltt_bench.precision import Precision, set_float32_arithmetic
from sltt_bench.training.experiment import Experiment
from sltt_bench.unroll import Unroll

ALPHA = 0.05


@dataclass(frozen=True)
class Problem:
    """The task of all competitors: network, batch, T, precision, device."""

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
        """Returns random images [batch, C, H, W] and labels [batch], always the same."""
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


def dvs_cifar10_vgg11(**fields: Any) -> Problem:
    """The paper's network for DVS-CIFAR10 at its batch size and T (no dropout: masks would differ)."""
    return replace(Problem(VGGOptions(), (2, 48, 48), 10, 128, 10, "fp32", "cpu"), **fields)


class Made(NamedTuple):
    """A competitor set up for a problem."""

    network: nn.Module
    iteration: Callable[[], None]
    """Zeroes the gradients and computes them anew."""
    short_iteration: Callable[[], None]
    """The same with only the first two steps."""
    batch: tuple[Tensor, ...]
    warm_up: int
    """Iterations before timing, in which algorithms are chosen, kernels compiled and graphs captured, and
    native learns what repeats."""
    provenance: Callable[[], Mapping[str, str]] = dict
    """What really ran."""
    around: Callable[[], AbstractContextManager[object]] = nullcontext
    """Entered around the timed iteration, outside the timing."""


WARM_UP = {"cpu": 3, "cuda": 5}
"""Warm-up iterations by type of device."""


@dataclass(frozen=True)
class Competitor:
    """One implementation of the iteration."""

    name: str
    make: Callable[[Problem], Made]


def this_project(backend: str, method: str, **options: Any) -> Competitor:
    """A backend of the project under one of its methods."""
    options_on = "".join(f", {key}" for key, value in options.items() if value is True)
    options_on += CUDA_GRAPH * (options.get("graphs") == "always")
    options_on += NORMS.get(options.get("fused_norm", "auto"), "")
    return Competitor(
        f"{backend} {method}{options_on}",
        lambda problem: _made(problem, backends.create(backend, **options), method),
    )


def spikingjelly_sltt(*, float32_neurons: bool = False, cuda_graph: bool = False) -> Competitor:
    """SpikingJelly's `SLTTLIFNode`, which detaches the past itself.

    `float32_neurons`: under mixed precision, cast the currents to float32, the only format of states for
    which SpikingJelly has fused kernels; otherwise, states have the format of the currents.
    `cuda_graph`: replay iterations, as SpikingJelly's own trainers offer.
    """

    def make(problem: Problem) -> Made:
        nodes = _SpikingJellyNodes("SLTTLIFNode", float32_neurons=float32_neurons, cuda_graph=cuda_graph)
        return _made(problem, nodes, "sltt")

    return Competitor(
        "SpikingJelly SLTTLIFNode" + FLOAT32_NEURONS * float32_neurons + CUDA_GRAPH * cuda_graph, make
    )


def spikingjelly_sltt_with_less_memory(*, compress: bool) -> Competitor:
    """`SLTTLIFNode` with SpikingJelly's memory optimisation (`activation_based.memopt`, level 1).

    Checkpoints residual blocks or, with `compress`, each convolution of spikes, whose input is kept as bits.
    """
    return Competitor(
        f"SpikingJelly SLTTLIFNode, {_memory_saving(compress)}",
        lambda problem: _made(problem, _Checkpointed("SLTTLIFNode", compress=compress), "sltt"),
    )


def _memory_saving(compress: bool) -> str:
    return "spikes as bits" if compress else "blocks checkpointed"


def spikingjelly_bptt(
    *, multi_step: bool, float32_neurons: bool = False, cuda_graph: bool = False
) -> Competitor:
    """SpikingJelly's `LIFNode`, step by step or, with `multi_step`, each layer for all T steps at once."""
    mode = "multi-step" if multi_step else "single-step"

    def make(problem: Problem) -> Made:
        nodes = _SpikingJellyNodes(
            "LIFNode", float32_neurons=float32_neurons, step_mode=mode[0], cuda_graph=cuda_graph
        )
        return _made(problem, nodes, "bptt")

    return Competitor(
        f"SpikingJelly LIFNode {mode}" + FLOAT32_NEURONS * float32_neurons + CUDA_GRAPH * cuda_graph, make
    )


def spikingjelly_bptt_with_less_memory(
    *, multi_step: bool, compress: bool = False, chunks: int = 1
) -> Competitor:
    """`LIFNode` with SpikingJelly's memory optimisation, as above; exact like BPTT.

    Its levels 2 to 4 search for finer blocks and chunks of time by measuring on a GPU. Their possible results
    are set here by hand: a checkpointed block runs in `chunks` of the T steps (multi-step only). A block of
    VGG ends in neurons, and with `compress` keeps its input as bits.
    """
    mode = "multi-step" if multi_step else "single-step"

    def make(problem: Problem) -> Made:
        nodes = _Checkpointed(
            "LIFNode", compress=compress, step_mode=mode[0], chunks=min(chunks, problem.timesteps)
        )
        # In fewer steps there would be fewer chunks of time.
        return _made(problem, nodes, "bptt", shorter=problem.timesteps if multi_step else 2)

    in_chunks = f" in {chunks} chunks" if chunks > 1 else ""
    return Competitor(f"SpikingJelly LIFNode {mode}, {_memory_saving(compress)}{in_chunks}", make)


def relu_network(*, cuda_graph: bool = False) -> Competitor:
    """The lower bound: ReLU instead of neurons, forward and backward T times."""
    return Competitor(
        "ReLU network, T times" + CUDA_GRAPH * cuda_graph,
        lambda problem: _made(problem, _ReLUs(cuda_graph=cuda_graph), "sltt"),
    )


def in_blocks(competitor: Competitor, iterations: int, *, sampled: bool) -> Competitor:
    """Returns the competitor with `iterations` iterations as one.

    `sampled`: a thread reads the GPU's sensors meanwhile, as in a run. Its `make` raises NoSensors if there
    are none.
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
"""The ideas that `ablated` can switch off."""


def ablated(idea: str, method: str) -> Competitor:
    """Native with a method and with one of ABLATIONS switched off."""
    return Competitor(
        f"native {method} without: {idea}",
        lambda problem: _made(problem, _NativeWithout(idea), method),
    )


FLOAT32_NEURONS = ", neurons in float32"
CUDA_GRAPH = ", CUDA graphs"
NORMS = {"always": ", batch norm within neurons", "never": ", batch norm by itself"}


class _Baseline(Reference):
    """As the reference, except for the neurons, and channels-last on a GPU, as native is."""

    def __init__(self, *, cuda_graph: bool = False) -> None:
        """`cuda_graph`: replay iterations."""
        self._graphs = GraphedIterations() if cuda_graph else None

    def prepare(self, network: nn.Module, device: str) -> nn.Module:
        if torch.device(device).type == "cuda":
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network.to(device)

    def accumulate_gradients(self, experiment: Experiment, x: Tensor, labels: Tensor) -> Unroll:
        iterate = partial(self._accumulate_gradients, experiment)
        if self._graphs is None:
            return iterate(x, labels)
        return self._graphs.run(experiment, iterate, (x, labels))

    def _accumulate_gradients(self, experiment: Experiment, x: Tensor, labels: Tensor) -> Unroll:
        return experiment.accumulate_gradients(x, labels)


class _SpikingJellyNodes(_Baseline):
    """One kind of SpikingJelly's nodes, which get one step at a time (`step_mode` "s") or all ("m")."""

    def __init__(
        self,
        kind: str,
        *,
        float32_neurons: bool = False,
        step_mode: str = "s",
        cuda_graph: bool = False,
    ) -> None:
        super().__init__(cuda_graph=cuda_graph)
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
        network = self._jelly.prepare(super().prepare(network, device), device)
        if self._step_mode == "m":
            _take_all_steps_at_once(network)
        return network

    def _accumulate_gradients(self, experiment: Experiment, x: Tensor, labels: Tensor) -> Unroll:
        """In multi-step mode, run BPTT layer by layer: the network gets [T, batch, ...]."""
        if self._step_mode == "s":
            return super()._accumulate_gradients(experiment, x, labels)
        unroll = experiment.unroll(x, labels)
        with experiment.precision.autocast():
            outputs = experiment.network(x.expand(experiment.timesteps, *x.shape))
        losses = [experiment.loss(output, labels) for output in outputs]
        unroll.backward(torch.stack(losses).mean())
        return unroll

    def provenance(self) -> Mapping[str, str]:
        facts = self._jelly.provenance()
        return {**facts, "neuron": facts["neuron"].replace("LIFNode, step_mode='s'", self._what())}

    def _what(self) -> str:
        return f"{self._kind.__name__}, step_mode={self._step_mode!r}"


class _InFloat32(SpikingJellyLIF):
    """SpikingJelly's neurons, computing in float32 whatever the format of their input."""

    def forward(self, current: Tensor) -> Tensor:
        return super().forward(current.float()).to(current.dtype)


class _Checkpointed(_SpikingJellyNodes):
    """Nodes with SpikingJelly's own memory optimisation."""

    def __init__(self, kind: str, *, compress: bool, step_mode: str = "s", chunks: int = 1) -> None:
        super().__init__(kind, step_mode=step_mode)
        self._compress = compress
        self._chunks = chunks

    def prepare(self, network: nn.Module, device: str) -> nn.Module:
        network = super().prepare(network, device)
        if isinstance(network, VGG):
            self._checkpoint_vgg(network)
            return network
        layers = {name: module for name, module in network.named_modules() if self._is_chosen(module)}
        if self._compress:
            del layers[next(iter(layers))]  # the stem receives an image
        for name, module in layers.items():
            network.set_submodule(name, self._checkpointed(module, compress=self._compress))
        return network

    def _is_chosen(self, module: nn.Module) -> bool:
        return isinstance(module, nn.Conv2d if self._compress else PreActBlock)

    def _checkpoint_vgg(self, network: VGG) -> None:
        """Make blocks of its layers that each end in neurons; all but the first receive spikes."""
        stages = ("layer1", "layer2", "layer3", "layer4", "layer5")
        blocks = [nn.Sequential()]
        for layer in chain.from_iterable(network.get_submodule(stage).children() for stage in stages):
            blocks[-1].append(layer)
            if isinstance(layer, SpikingJellyLIF):
                blocks.append(nn.Sequential())
        *blocks, last_pool = blocks
        checkpointed = [
            self._checkpointed(block, compress=self._compress and block is not blocks[0]) for block in blocks
        ]
        network.layer1 = nn.Sequential(*checkpointed, last_pool)
        for stage in stages[1:]:
            network.set_submodule(stage, nn.Identity())

    def _checkpointed(self, module: nn.Module, *, compress: bool) -> nn.Module:
        from spikingjelly.activation_based.memopt import BitSpikeCompressor, checkpoint_module

        compressor = BitSpikeCompressor() if compress else None
        checkpointed: nn.Module = checkpoint_module(module, compressor=compressor, chunks=self._chunks)
        return checkpointed


class _NativeWithout(Native):
    """Native with one idea switched off."""

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
        hooks = nullcontext() if self._idea == "spikes not stored" else self._saved.active()
        sharing = nullcontext() if self._idea == "once an iteration" else self._once.active(network)
        with hooks, sharing:
            yield


class _ReLUs(_Baseline):
    """A network without neurons."""

    def neuron(self, parameters: LIFParameters) -> Any:
        return _ReLU()

    def provenance(self) -> Mapping[str, str]:
        return {"neuron": "none: torch's ReLU", "torch": torch.__version__}


class _ReLU(nn.ReLU):
    """ReLU with the scaling that networks ask of neurons."""

    def scaled(self, x: Tensor, gain: float, divisor: float | None = None) -> Tensor:
        return self(x if divisor is None else x / divisor) * gain


def _made(problem: Problem, backend: Backend, method: str, *, shorter: int = 2) -> Made:
    """Returns the method's iterations on the backend, with the weights of seed 0.

    A short iteration has at most `shorter` steps. Sets the float32 arithmetic of the whole process to that of
    the problem's precision.
    """
    set_float32_arithmetic(problem.precision)
    torch.manual_seed(0)
    network = models.build(
        problem.network,
        neuron=lambda: backend.neuron(LIFParameters()),
        input_shape=problem.image,
        classes=problem.classes,
    )
    network = backend.prepare(network, problem.device)
    precision = Precision(problem.precision, torch.device(problem.device).type)
    whole = Experiment(
        network=network,
        method=methods.create(method, problem.timesteps),
        backend=backend,
        optimizer=torch.optim.SGD(network.parameters()),
        scaler=precision.make_scaler(),
        precision=precision,
        timesteps=problem.timesteps,
        temporal=False,
        loss=partial(step_loss, alpha=ALPHA, mse_target="ones"),
        window=None,
        average="losses",
        generator=torch.Generator().manual_seed(0),
    )
    steps = min(shorter, problem.timesteps)
    short = replace(whole, method=methods.create(method, steps), timesteps=steps)
    x, labels = problem.batch()

    def iteration(experiment: Experiment) -> None:
        network.zero_grad(set_to_none=True)
        backend.accumulate_gradients(experiment, x, labels)

    return Made(
        network,
        iteration=partial(iteration, whole),
        short_iteration=partial(iteration, short),
        batch=(x, labels),
        warm_up=WARM_UP[torch.device(problem.device).type],
        provenance=backend.provenance,
    )


def _take_all_steps_at_once(network: nn.Module) -> None:
    """Let layers take [T, batch, ...] at once; only batch norm still runs step by step."""
    for module in network.modules():
        if isinstance(module, nn.Flatten):
            module.start_dim = 2
        elif isinstance(module, nn.Conv2d | nn.Linear | nn.AvgPool2d | nn.AdaptiveAvgPool2d):
            module.__dict__["forward"] = partial(_all_steps_at_once, module.forward)
        elif isinstance(module, nn.BatchNorm2d):
            module.__dict__["forward"] = partial(_one_step_after_the_other, module.forward)


def _all_steps_at_once(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    flat = forward(x.flatten(0, 1))
    return flat.reshape(*x.shape[:2], *flat.shape[1:])


def _one_step_after_the_other(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.stack([forward(step) for step in x])
