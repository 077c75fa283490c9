"""BPTT with little memory: the network is computed unit after unit, and again in the backward pass.

The graph of one step is cut behind every layer that carries state. A unit consists of the operations between
two cuts and the layer at its end, for example "convolutions – sum – batch norm – neurons". The forward pass
keeps only the spikes at the cuts, one bit each. The backward pass takes the units from last to first: it
computes a unit again for all T steps, now with its graph, and goes backward through it, from step T to step
1. So memory holds the potentials and currents of one unit, not of all. A unit without state is recomputed
step by step. For large T, a unit is recomputed in chunks of √T steps, from the states at their beginnings,
which takes one more computation of the unit.

A value that is no spike but that several units need (the residual stream of a normaliser-free network)
is also a cut, and is kept unchanged. The outputs of the first layers for an image that is shown at every step
are computed once. Units at the end of the network have small tensors; they keep their graphs, or the parts with
the convolutions, in the memory that the largest unit needs anyway (`kept_graphs`).

The operations of one step run in the network's order, so outputs, running statistics and
masks equal those of a run step by step; gradients are the same sums in another order.
"""

import operator
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from math import ceil, sqrt
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable

from sltt_bench.backends.native.cuts import NotSeparable, Unit, graph_of_a_step, units_of, waiting_for
from sltt_bench.backends.native.foreign_calls import foreign_call
from sltt_bench.backends.native.kept_graphs import KeptGraph, UnitSize, graphs_that_fit
from sltt_bench.backends.native.packed_spikes import PackedSpikes
from sltt_bench.backends.native.saved_tensor_hooks import Kept, Stored
from sltt_bench.backends.native.step_calls import changed_number, is_seen_through, numbers_of_step
from sltt_bench.models.layers import SequenceDropout
from sltt_bench.neurons import (
    SpikingNeuron,
    State,
    restore_state,
    save_state,
    scale_state_gradient,
    stateful_layers,
)
from sltt_bench.recomputation import tried_again
from sltt_bench.torch_internals import HOOKS_OF_A_LAYER

CHUNKS_BEYOND = 12
"""Up to this number of time steps, all steps of a unit are recomputed at once."""

SINGLE = 2
"""Tensors that the backward pass of a step needs besides those of the graph and the gradients that wait.

At the convolution these are ∂L/∂u, which waits for the step before, the gradients of its result and of what it
read, and what it read: four, less the gradient of the step's spikes and u, which are gone by then, and with batch
norm less x. With 3, peaks of ResNet-18 and VGG-11 would not rise either, with 4 that of ResNet-18 by 2 %.
"""

Hooks = Callable[[], AbstractContextManager[None]]
"""Creates the context in which graphs are built."""


class UnitNetwork:
    """A network cut into units."""

    def __init__(self, network: nn.Module, x: Tensor) -> None:
        """`x`: the input of a step [batch, ...], on which unknown layers are tried. Raises NotSeparable."""
        self.network = network
        graph = graph_of_a_step(network)
        self.units = units_of(graph, network)
        if (foreign := foreign_call(graph, network)) is not None:
            again = tried_again(network, x)
            if reason := again.differs or again.draws or again.learns or again.overwrites:
                raise NotSeparable(f"steps would be computed again, but {reason} ({foreign})")
        (self.input,) = (node for node in graph.nodes if node.op == "placeholder")
        self.waiting = {unit: list(waiting_for(unit, self.units)) for unit in self.units}
        """Unit → the units whose values have gradients when the backward pass comes to it."""
        self._numbers = numbers_of_step(network)
        self._looked_into = {name: part for name, part in network.named_modules() if is_seen_through(part)}

    def why_not_now(self) -> str | None:
        """Returns why the network must go step by step in this iteration, or None.

        Hooks on parts whose layers are called one by one would not run, since no part is called as a whole.
        """
        for name, part in self._looked_into.items():
            if any(getattr(part, hooks) for hooks in HOOKS_OF_A_LAYER):
                return f"somebody has hooked {name or 'the network'}, whose layers are called one by one"
        return changed_number(self._numbers)

    def sequence(self, inputs: Sequence[Tensor], hooks: Hooks, state_gradient: float = 1.0) -> "Sequenced":
        """Returns the network for one sequence of T inputs [batch, ...].

        `state_gradient`: the factor of the gradient through the state from step to step.
        """
        return Sequenced(self, _Run(self, inputs, hooks, state_gradient))


class Sequenced(nn.Module):
    """Stands in for the network in one unroll: its t-th call returns o[t]; the first call computes all."""

    def __init__(self, units: UnitNetwork, run: "_Run") -> None:
        super().__init__()
        self.network = units.network
        self._run = run
        self._outputs: Iterator[Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self._outputs is None:
            self._outputs = iter(_AllSteps.apply(self._run.anchor, self._run))
        return next(self._outputs)


class _AllSteps(torch.autograd.Function):
    """All outputs o[1], …, o[T] of a sequence."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, run: "_Run") -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.run = run
        return tuple(run.forward())

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, None]:
        ctx.run.backward(gradients)
        return None, None


@dataclass
class _Gradients:
    """∂L/∂value of the values of a cut, by step."""

    by_step: dict[int, Tensor] = field(default_factory=dict)
    _own: set[int] = field(default_factory=set)

    def add(self, step: int, gradient: Tensor) -> None:
        """Add a gradient; in place only to sums made here, since autograd may share its tensors."""
        if step not in self.by_step:
            self.by_step[step] = gradient
        elif step in self._own:
            self.by_step[step] += gradient
        else:
            self.by_step[step] = self.by_step[step] + gradient
            self._own.add(step)


class _Run:
    """One sequence, forward and backward."""

    def __init__(
        self, units: UnitNetwork, inputs: Sequence[Tensor], hooks: Hooks, state_gradient: float
    ) -> None:
        self._units = units
        self._inputs = inputs
        self._hooks = hooks
        self._state_gradient = state_gradient
        self._repeated = all(x is inputs[0] for x in inputs)
        self.anchor = torch.empty((), device=inputs[0].device, requires_grad=True)
        """Makes autograd record functions whose other arguments need no gradient; its value is never read."""
        self._values: dict[fx.Node, list[Kept]] = {}
        self._unpacked: dict[fx.Node, list[Tensor]] = {}
        """Values that later units of the forward pass still read."""
        self._gradients: dict[fx.Node, _Gradients] = {}
        self._graphs: dict[Unit, list[Tensor]] = {}
        self._x: dict[Unit, dict[int, Tensor]] = {}
        """x of a unit, with its graph, by step."""
        self._kept_graphs: dict[Unit, KeptGraph] = {}
        self._at_once: set[Unit] = set()
        """Units that keep their graphs in all iterations but the first, which does not know their sizes.

        The first iteration recomputes them for all steps at once, so that it rounds like the others: in a
        resumed training it comes in the middle.
        """
        self._statistics: dict[Unit, dict[tuple[nn.Module, int], list[tuple[Tensor, Tensor]]]] = {}
        """μ and σ² [channels] of the batch, by layer and step, for units that are computed again."""
        self._autocast: Callable[[], torch.autocast] | None = None

    def forward(self) -> list[Tensor]:
        """Returns the outputs of all steps."""
        device = self._inputs[0].device.type
        enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        # Without its cache, from which all steps would have one cast, so that their gradients were added in its format.
        self._autocast = lambda: torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=False)
        self._kept_graphs = self._graphs_that_fit()
        every_step = range(len(self._inputs))
        for unit in self._units.units:
            self._gradients[unit.target] = _Gradients()
            self._values[unit.target] = []
            with _state_of_its_own(unit):
                if self._kept_graphs[unit].is_whole:
                    with torch.enable_grad(), self._autocast(), self._hooks():
                        self._graphs[unit] = self._compute(unit, every_step, self._keep)
                else:
                    self._statistics[unit], self._x[unit] = defaultdict(list), {}
                    self._compute(unit, every_step, self._keep)
            for node in unit.read_last:
                self._unpacked.pop(node, None)
        self._at_once = {unit for unit, kept in self._graphs_that_fit().items() if kept.is_whole}
        return [value.tensor() for value in self._values.pop(self._units.units[-1].target)]

    def backward(self, gradients: Sequence[Tensor | None]) -> None:
        """Add to the parameters' gradients."""
        last = self._gradients[self._units.units[-1].target]
        for step, gradient in enumerate(gradients):
            if gradient is not None:
                last.add(step, gradient)
        for unit in reversed(self._units.units):
            self._values.pop(unit.target, None)  # all its users are done
            if not self._gradients[unit.target].by_step:
                self._graphs.pop(unit, None)
                self._x.pop(unit, None)
                continue
            if unit in self._graphs:
                self._backward_from(self._graphs.pop(unit))
            else:
                with _state_of_its_own(unit):
                    self._backward_again(unit)
                del self._statistics[unit], self._x[unit]

    def _graphs_that_fit(self) -> dict[Unit, KeptGraph]:
        """Returns what units keep of their graphs; nothing in the first iteration, which does not know sizes."""
        timesteps, units = len(self._inputs), self._units.units
        by_step = {
            unit: sum(n for node, n in unit.stored.items() if not (self._repeated and node in unit.once))
            for unit in units
        }
        sizes = [
            UnitSize(
                up_to_x=0 if unit.x is None else by_step[unit],
                graph=by_step[unit] + unit.value_bytes,
                at_once=self._chunk_of(unit),
                gradients=SINGLE * unit.value_bytes
                + timesteps * sum(other.value_bytes for other in self._units.waiting[unit]),
                left=timesteps * unit.kept_bytes,
            )
            for unit in units
        ]
        return dict(zip(units, graphs_that_fit(sizes, timesteps), strict=True))

    def _chunk_of(self, unit: Unit) -> int:
        """Returns how many steps are recomputed at once."""
        timesteps = len(self._inputs)
        if unit.core is None:
            return timesteps if self._repeated and unit.once else 1
        return timesteps if timesteps <= CHUNKS_BEYOND else ceil(sqrt(timesteps))

    def _backward_again(self, unit: Unit) -> None:
        """Recompute a unit with its graph and go backward through it, the last chunk of steps first."""
        length = len(self._inputs) if unit in self._at_once else self._chunk_of(unit)
        chunks = [
            range(first, min(first + length, len(self._inputs)))
            for first in range(0, len(self._inputs), length)
        ]
        states = self._states_before(unit, chunks)
        later: list[Tensor | None] = []
        while chunks:
            steps, state = chunks.pop(), states.pop()
            beginnings = _restore_as_leaves(unit, state)
            with torch.enable_grad(), self._computing_again(unit):
                ends = self._compute(unit, steps, _forget)
            carried = zip(_carried_by(unit) if later else [], later, strict=True)
            self._backward_from(ends, [pair for pair in carried if pair[0].requires_grad])
            later = [leaf.grad for leaf in beginnings]

    def _backward_from(
        self, ends: list[Tensor], carried: Sequence[tuple[Tensor, Tensor | None]] = ()
    ) -> None:
        """Go backward from the ends returned by `_compute`, and from carried values with their gradients."""
        signal = self.anchor.detach()  # ends ignore it, but without it torch would fill a tensor for each
        further = [(value, gradient) for value, gradient in carried if gradient is not None]
        torch.autograd.backward(
            [*ends, *(value for value, _ in further)],
            [*(signal for _ in ends), *(gradient for _, gradient in further)],
        )

    def _states_before(self, unit: Unit, chunks: list[range]) -> list[State]:
        """Returns the unit's state at the beginning of each chunk; empty for the first."""
        states: list[State] = []
        for number, steps in enumerate(chunks):
            states.append([] if unit.core is None or not number else save_state(unit.core))
            if unit.core is not None and number + 1 < len(chunks):
                with torch.no_grad(), self._computing_again(unit):
                    self._compute(unit, steps, _forget)
        return states

    @contextmanager
    def _computing_again(self, unit: Unit) -> Iterator[None]:
        """Context of a recomputation: no running statistics change, no spikes are made at the unit's end."""
        assert self._autocast is not None
        with (
            self._autocast(),
            self._hooks(),
            _without_learning_statistics(unit.modules),
            _firing_for_nobody(unit.core),
        ):
            yield

    def _keep(self, unit: Unit, value: Tensor) -> None:
        """Keep one more value of a cut."""
        unit.value_bytes = value.nbytes
        unit.kept_bytes = value.numel() // 8 if unit.spiking else value.nbytes
        kept = PackedSpikes(value.detach(), unit.gain) if unit.spiking else Stored(value)
        self._values[unit.target].append(kept)
        if unit.spiking and len(self._inputs) <= CHUNKS_BEYOND:
            self._unpacked.setdefault(unit.target, []).append(value.detach())

    def _compute(self, unit: Unit, steps: range, keep: Callable[[Unit, Tensor], None]) -> list[Tensor]:
        """Compute steps of a unit. Returns the ends of their graphs, from which `backward` starts."""
        once: dict[fx.Node, Tensor] = {}
        ends: list[Tensor] = []
        for step in steps:
            if unit.core is not None and step and self._state_gradient != 1:
                scale_state_gradient(unit.core, self._state_gradient)
            with self._statistics_kept(unit, step):
                value = self._step(unit, step, once)
            keep(unit, value)
            if torch.is_grad_enabled() and value.requires_grad:
                ends.append(_End.apply(value, self.anchor, self._gradients[unit.target], step))
        return ends

    @contextmanager
    def _statistics_kept(self, unit: Unit, step: int) -> Iterator[None]:
        """Context in which layers compute statistics only in the first pass, and reuse them in later ones."""
        if unit not in self._statistics:
            yield
            return
        for norm in unit.norms:
            norm.kept_statistics = self._statistics[unit][norm, step]
        try:
            yield
        finally:
            for norm in unit.norms:
                norm.kept_statistics = None

    def _step(self, unit: Unit, step: int, once: dict[fx.Node, Tensor]) -> Tensor:
        """Returns the value of the unit's target at a step."""
        if unit.x is None or step >= self._kept_graphs[unit].steps_of_x:
            return self._evaluated(unit, unit.target, step, {}, once)
        return self._evaluated(unit, unit.target, step, {unit.x: self._x_of(unit, step)}, once)

    def _x_of(self, unit: Unit, step: int) -> Tensor:
        """Returns x of a step. The first pass keeps its graph; one with a graph of its own takes that over."""
        known = self._x[unit]
        if step not in known:
            assert unit.x is not None
            with torch.enable_grad(), self._hooks():
                known[step] = self._evaluated(unit, unit.x, step, {}, {})
        return known.pop(step) if torch.is_grad_enabled() else known[step]

    def _evaluated(
        self, unit: Unit, last: fx.Node, step: int, values: dict[fx.Node, Any], once: dict[fx.Node, Tensor]
    ) -> Tensor:
        """Returns the value of the unit's operation `last` at a step, from the `values` of others."""
        nodes = unit.nodes[: unit.nodes.index(last) + 1]
        given = max((nodes.index(node) + 1 for node in values), default=0)

        def value_of(node: fx.Node) -> Any:
            if node not in values:
                values[node] = once[node] if node in once else self._value_from_outside(node, step)
            return values[node]

        for node in nodes[given:]:
            if node in once:
                continue
            result = self._evaluate(node, value_of)
            if node in unit.stored:
                unit.stored[node] = result.nbytes
            if self._repeated and node in unit.once:
                once[node] = result
            values[node] = result
            for used in unit.last_uses[node]:
                values.pop(used, None)
        target: Tensor = values[last] if last in values else once[last]
        return target

    def _value_from_outside(self, node: fx.Node, step: int) -> Any:
        if node is self._units.input:
            return self._inputs[step]
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self._units.network)
        kept = self._values[node][step]
        value = self._unpacked[node][step] if node in self._unpacked else kept.tensor()
        if not torch.is_grad_enabled():
            return value
        return _Beginning.apply(self.anchor, value, kept, self._gradients[node], step)

    def _evaluate(self, node: fx.Node, value_of: Callable[[fx.Node], Any]) -> Any:
        args = fx.map_arg(node.args, value_of)
        kwargs = fx.map_arg(node.kwargs, value_of)
        if node.op == "call_module":
            layer: Any = self._units.network.get_submodule(str(node.target))
            # Scaled neurons check themselves whether they have been hooked since they were traced.
            is_scaled = isinstance(layer, SpikingNeuron) and "gain" in kwargs
            return layer.scaled(*args, **kwargs) if is_scaled else layer(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)


class _Beginning(torch.autograd.Function):
    """A kept value at the beginning of a unit's graph; its gradient goes to the cut."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, value: Tensor, kept: Kept, gradients: _Gradients, step: int
    ) -> Tensor:
        # `SavedTensors` uses `kept` if a later layer saves this value.
        ctx.kept, ctx.gradients, ctx.step = kept, gradients, step
        return value.detach()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:
        ctx.gradients.add(ctx.step, gradient)
        return (None,) * 5


class _End(torch.autograd.Function):
    """A unit's value at a step as a start of the backward pass. Its gradient is fetched, and released, when
    the pass reaches that step."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, anchor: Tensor, gradients: _Gradients, step: int) -> Tensor:
        ctx.gradients, ctx.step = gradients, step
        return torch.empty_like(anchor)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, None, None, None]:
        return ctx.gradients.by_step.pop(ctx.step, None), None, None, None


def _forget(unit: Unit, value: Tensor) -> None:
    """Keep nothing: the values of a recomputed unit are kept already."""


@contextmanager
def _state_of_its_own(unit: Unit) -> Iterator[None]:
    """Context in which the unit starts at step 1, and after which it carries nothing."""
    _begin(unit)
    yield
    _begin(unit)


def _begin(unit: Unit) -> None:
    """Reset the unit's state, but not dropout masks, which the sequence keeps at every computation."""
    for layer in [] if unit.core is None else stateful_layers(unit.core):
        if not isinstance(layer, SequenceDropout):
            layer.reset_state()


def _restore_as_leaves(unit: Unit, state: State) -> list[Tensor]:
    """Restore the unit's saved state as leaves of a new graph, and return these leaves."""
    if unit.core is None:
        return []
    if not state:
        _begin(unit)
        return []
    leaves = [tuple(None if v is None else v.detach().requires_grad_() for v in layer) for layer in state]
    restore_state(unit.core, leaves)
    return [leaf for layer in leaves for leaf in layer if leaf is not None]


def _carried_by(unit: Unit) -> list[Tensor]:
    assert unit.core is not None
    return [value for layer in save_state(unit.core) for value in layer if value is not None]


@contextmanager
def _without_learning_statistics(modules: list[nn.Module]) -> Iterator[None]:
    """Context in which batch norm in training uses the batch's statistics and updates no running ones."""
    learning = [
        module
        for module in modules
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.training
        and module.track_running_stats
    ]
    for module in learning:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in learning:
            module.track_running_stats = True


@contextmanager
def _firing_for_nobody(core: Any) -> Iterator[None]:
    """Context in which neurons need not make the spikes at a unit's end, which are kept already."""
    if not hasattr(core, "spikes_are_read"):
        yield
        return
    core.spikes_are_read = False
    try:
        yield
    finally:
        core.spikes_are_read = True
