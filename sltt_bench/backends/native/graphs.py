"""Whole training iterations as CUDA graphs: captured once, then replayed without Python.

A CUDA graph repeats exactly the captured calls, so each sequence of steps with and without an autograd graph
needs its own: one for SLTT, BPTT and its variants, one for each choice of steps that SLTT-K can draw. A
rehearsal of the method, on an unroll that computes nothing, tells beforehand which steps it draws. All CUDA
graphs are captured together, in the first epoch or, if that has too few batches, in a later one that also
counts as cold.
"""

import math
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import compress, count
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn

from sltt_bench.common.failures import out_of_memory_cause
from sltt_bench.methods import Method
from sltt_bench.methods.bptt import BPTT
from sltt_bench.methods.bptt_damped import DampedBPTT
from sltt_bench.methods.sltt import SLTT
from sltt_bench.methods.sltt_k import SLTTK
from sltt_bench.methods.tbptt import TruncatedBPTT
from sltt_bench.neurons import reset_state
from sltt_bench.torch_internals import times_changed, zero_all
from sltt_bench.unroll import Unroll

if TYPE_CHECKING:
    from sltt_bench.training.experiment import Experiment

WARM_UP = 3
"""Iterations that run as usual before a batch size is recorded: libraries choose their algorithms, kernels are compiled
and loaded, layers learn what repeats."""
REPLAYABLE = (BPTT, DampedBPTT, TruncatedBPTT, SLTT, SLTTK)
"""Methods in which only the choice of steps changes between iterations."""


MOST_GRAPHS = 64
"""Limit of graphs; capturing one takes about as long as an iteration without graphs."""

Batch = tuple[Tensor, Tensor]
"""x and labels."""
Iterate = Callable[[Tensor, Tensor], Unroll]
"""(x, labels) → the unroll, after the forward and backward pass of a batch."""


class CaptureFailed(RuntimeError):
    """The device's work could not be recorded; the message says why and what to switch off."""


class NoRoomBesideGraphs(RuntimeError):
    """An iteration that runs as usual found too little memory, because graphs keep theirs permanently."""


class Capture(Protocol):
    """Records what a function does on the device."""

    def warm_up(self, function: Callable[[], None]) -> None:
        """Run the function so that it leaves nothing behind that would make a capture fail."""

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        """Run the function's Python code and return a function that runs its device code."""


class CudaCapture:
    """Captures as a CUDA graph; all graphs share one pool of memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()  # type: ignore[no-untyped-call]
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def warm_up(self, function: Callable[[], None]) -> None:
        """Run the function on the stream of the captures.

        Autograd's nodes of parameters remember the stream of their first use, and a capture that has to wait
        for another stream fails.
        """
        usual = torch.cuda.current_stream()
        self._stream.wait_stream(usual)
        with torch.cuda.stream(self._stream):
            function()
        usual.wait_stream(self._stream)

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # Thread-local, so that calls of other threads, such as a loader that pins memory, do not disturb it.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            function()
        return graph.replay


@dataclass
class _Recorded:
    replay: Callable[[], None]
    unroll: Unroll
    """Its sums are those of the latest replay."""
    reached: list[bool]
    """Which parameters receive a gradient; an optimiser leaves the others unchanged."""
    held: list[Tensor]
    """Tensors that layers kept at the end of the capture. The graph may read them, so their memory must stay
    even if a layer drops them."""


class GraphedIterations:
    """Runs training iterations of one network, at first as usual and then by replay."""

    def __init__(self, make_capture: Callable[[], Capture] = CudaCapture) -> None:
        self._make_capture = make_capture
        self._capture: Capture | None = None
        self._recorded: dict[Hashable, _Recorded] = {}
        self._inputs: Batch | None = None
        self._gradients: list[Tensor] = []
        self._most_samples = 0
        self._warmed_up = 0
        """Iterations run as usual since the largest batch size first occurred."""
        self.usual = 0
        """Iterations that ran as usual: warm-up, and batches smaller than the largest."""
        self.replayed = 0
        self.recordings = 0
        """Number of graphs recorded."""

    def run(self, subject: "Experiment", iterate: Iterate, batch: Batch) -> Unroll:
        """Run or replay `iterate(x, labels)`, a forward and backward pass; adds to the parameters' `.grad`.

        The unroll's sums are valid until the next iteration. Raises ValueError for several processes that share a
        batch and for a method that is not known to be replayable or that needs more than MOST_GRAPHS; CaptureFailed;
        and NoRoomBesideGraphs, in which case the iteration leaves nothing behind, not even gradients.
        """
        if (reason := unsuited(subject.method, subject.timesteps, subject.ranks.size)) is not None:
            raise ValueError(f"native.graphs: {reason}; set native.graphs=never")
        self._make_room_for(batch)
        if self._warmed_up < WARM_UP or not self._fits(batch):
            self.usual += 1
            self._warmed_up += 1
            return (
                self._beside_graphs(subject, iterate, batch)
                if self._recorded
                else self._warm_up(iterate, batch)
            )
        if not self._recorded:
            self._record_all(subject, iterate, batch)
        drawn = rehearse(subject.method, subject.generator, subject.timesteps)
        return self._replay(subject.network, self._recorded[drawn], batch)

    def _make_room_for(self, batch: Batch) -> None:
        """Discard the recordings if a batch is larger than all before: most batches have the largest size."""
        if len(batch[1]) > self._most_samples:
            self._most_samples = len(batch[1])
            self._recorded, self._inputs, self._warmed_up = {}, None, 0

    def _fits(self, batch: Batch) -> bool:
        if self._inputs is None:
            return len(batch[1]) == self._most_samples
        return all(a.shape == b.shape for a, b in zip(self._inputs, batch, strict=True))

    def _warm_up(self, iterate: Iterate, batch: Batch) -> Unroll:
        unrolls: list[Unroll] = []
        if self._capture is None:
            self._capture = self._make_capture()
        self._capture.warm_up(lambda: unrolls.append(iterate(*batch)))
        return unrolls[0]

    def _beside_graphs(self, subject: "Experiment", iterate: Iterate, batch: Batch) -> Unroll:
        """Run as `_warm_up` in the memory that the graphs leave; without enough, raise NoRoomBesideGraphs."""
        try:
            with set_back(subject.network, subject.generator, only_after=_ran_out_of_memory):
                return self._warm_up(iterate, batch)
        except Exception as error:
            if not _ran_out_of_memory(error):
                raise
            shortage = str(error)
        for parameter in _trainable(subject.network):
            parameter.grad = None
        self._recorded, self._inputs, self._gradients, self._capture = {}, None, [], None
        raise NoRoomBesideGraphs(shortage)

    def _record_all(self, subject: "Experiment", iterate: Iterate, batch: Batch) -> None:
        """Record everything that the method can draw; its generator is restored in any case.

        Each choice runs once before anything is captured, because a capture does not allow kernels to be
        compiled or loaded or convolutions to be tuned, and because graphs keep their memory permanently,
        which leaves less afterwards.
        """
        assert self._capture is not None, "a capture follows the warm-up"
        generator, before = subject.generator, subject.generator.get_state()
        seeds = _seed_of_each_choice(subject.method, generator, subject.timesteps)
        parameters = _trainable(subject.network)
        accumulated = [parameter.grad for parameter in parameters]
        self._inputs = batch[0].clone(), batch[1].clone()
        self._gradients = [torch.zeros_like(parameter) for parameter in parameters]
        try:
            for parameter, gradient in zip(parameters, self._gradients, strict=True):
                parameter.grad = gradient
            for seed in seeds.values():
                generator.manual_seed(seed)
                with set_back(subject.network, generator):
                    self._warm_up(iterate, self._inputs)
                reset_state(subject.network)
            for drawn, seed in seeds.items():
                generator.manual_seed(seed)
                self._recorded[drawn] = self._record(subject.network, iterate)
                self.recordings += 1
        except Exception as error:
            self._recorded, self._inputs, self._gradients = {}, None, []
            raise CaptureFailed(
                f"native.graphs: the iteration could not be captured ({type(error).__name__}: {error}); "
                "set native.graphs=never"
            ) from error
        finally:
            generator.set_state(before)
            for parameter, gradient_before in zip(parameters, accumulated, strict=True):
                parameter.grad = gradient_before

    def _record(self, network: nn.Module, iterate: Iterate) -> _Recorded:
        """Record the choice that the method's generator is about to draw."""
        assert self._capture is not None
        assert self._inputs is not None
        unrolls: list[Unroll] = []
        reached: list[bool] = []
        inputs = self._inputs

        def zero_and_iterate() -> None:
            zero_all(self._gradients)
            zeroed = [times_changed(gradient) for gradient in self._gradients]
            unrolls.append(iterate(*inputs))
            reached[:] = [
                times_changed(g) > before for g, before in zip(self._gradients, zeroed, strict=True)
            ]

        replay = self._capture(zero_and_iterate)
        reset_state(network)  # else each graph would keep the state of its last step
        return _Recorded(replay, unrolls[0], reached, [tensor.detach() for tensor in plain_tensors(network)])

    def _replay(self, network: nn.Module, recorded: _Recorded, batch: Batch) -> Unroll:
        assert self._inputs is not None
        for static, given in zip(self._inputs, batch, strict=True):
            static.copy_(given)
        pairs = list(zip(_trainable(network), self._gradients, strict=True))
        for parameter, gradient in pairs:
            if parameter.grad is gradient:  # of the last replay, which this one would overwrite
                parameter.grad = gradient.clone()
        recorded.replay()
        self.replayed += 1
        for parameter, gradient in compress(pairs, recorded.reached):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return recorded.unroll


@contextmanager
def set_back(
    network: nn.Module, generator: torch.Generator, *, only_after: Callable[[Exception], bool] | None = None
) -> Iterator[None]:
    """Context that restores buffers and the random states of torch and the method's generator, not gradients.

    With `only_after`, it does so only if the context ends in an error of which that is true.
    """
    buffers = [(buffer, buffer.clone()) for buffer in (*network.buffers(), *plain_tensors(network))]
    devices = sorted({parameter.device.index for parameter in network.parameters() if parameter.is_cuda})
    draws = (
        torch.get_rng_state(),
        [torch.cuda.get_rng_state(device) for device in devices],
        generator.get_state(),
    )
    try:
        yield
    except Exception as error:
        if only_after is not None and not only_after(error):
            raise
        _put_back(buffers, devices, draws, generator)
        raise
    if only_after is None:
        _put_back(buffers, devices, draws, generator)


def _ran_out_of_memory(error: Exception) -> bool:
    """Whether it is one of memory, in the words of whichever library found too little."""
    return out_of_memory_cause(error) is not None


def _put_back(
    buffers: list[tuple[Tensor, Tensor]],
    devices: list[int],
    draws: tuple[Tensor, list[Tensor], Tensor],
    generator: torch.Generator,
) -> None:
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
    on_host, on_devices, of_method = draws
    torch.set_rng_state(on_host)
    for device, state in zip(devices, on_devices, strict=True):
        torch.cuda.set_rng_state(state, device)
    generator.set_state(of_method)


def plain_tensors(network: nn.Module) -> list[Tensor]:
    """Returns tensors that layers hold as plain attributes, except expanded ones, which are not writable."""
    held = [value for module in network.modules() for value in vars(module).values()]
    return [
        value
        for value in held
        if isinstance(value, Tensor) and not (value.numel() > 1 and 0 in value.stride())
    ]


def _trainable(network: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def unsuited(method: Method, timesteps: int, processes: int = 1) -> str | None:
    """Returns why iterations of the method, shared by so many processes, cannot be replayed, or None."""
    if processes > 1:
        return "several processes share each batch"
    if not isinstance(method, REPLAYABLE):
        return f"the method {type(method).__name__} cannot be replayed, since it may do something else in each iteration"
    if (graphs := _graphs_needed(method, timesteps)) > MOST_GRAPHS:
        return (
            f"a graph is needed for each choice of steps, but there are {graphs} ways to choose K of {timesteps} "
            f"steps, more than {MOST_GRAPHS}"
        )
    return None


def _seed_of_each_choice(method: Method, generator: torch.Generator, timesteps: int) -> dict[Hashable, int]:
    """Returns for everything that the method can draw a seed of its generator that makes it draw that."""
    graphs, seeds = _graphs_needed(method, timesteps), dict[Hashable, int]()
    for seed in count():
        if len(seeds) == graphs:
            return seeds
        seeds.setdefault(rehearse(method, generator.manual_seed(seed), timesteps), seed)
    raise AssertionError("seeds do not end")


def _graphs_needed(method: Method, timesteps: int) -> int:
    """Returns how many sequences of steps with and without a graph the method can draw."""
    return math.comb(timesteps, method.k) if isinstance(method, SLTTK) else 1


def rehearse(method: Method, generator: torch.Generator, timesteps: int) -> Hashable:
    """Returns the calls that the method makes on an unroll, with draws from `generator`."""
    return tuple(_rehearsed(method, generator, timesteps))


def steps_with_graph(method: Method, generator: torch.Generator, timesteps: int) -> set[int]:
    """Returns the steps (from 0) that the method runs with a graph, with draws from `generator`."""
    return {call[1] for call in _rehearsed(method, generator, timesteps) if call[0] == "step" and call[2]}


def _rehearsed(method: Method, generator: torch.Generator, timesteps: int) -> list[tuple[Any, ...]]:
    rehearsal = _Rehearsal(generator, timesteps)
    method.accumulate_gradients(cast(Any, rehearsal))
    return rehearsal.calls


@dataclass
class _Rehearsal:
    """An unroll that only records the calls made on it."""

    generator: torch.Generator
    timesteps: int
    calls: list[tuple[Any, ...]] = field(default_factory=list)

    def step(self, t: int) -> Tensor:
        self.calls.append(("step", t, torch.is_grad_enabled()))
        return torch.zeros(())

    def detach_state(self) -> None:
        self.calls.append(("detach_state",))

    def scale_state_gradient(self, factor: float) -> None:
        self.calls.append(("scale_state_gradient", factor))

    def backward(self, loss: Tensor) -> None:
        self.calls.append(("backward",))
