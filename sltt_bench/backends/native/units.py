"""BPTT at little memory: the network unit after unit, each for all T steps, and again in the backward pass.

The graph of one step is cut behind every layer that carries state. A unit is what lies between two
cuts and the layer at its end, for example "convolutions – sum – batch norm – neurons". Of the forward
pass the spikes at the cuts are kept, a bit each. The backward pass takes the units from last to first:
it computes a unit again for all T steps, this time with its graph, and goes backward through it, from
step T to step 1. So the potentials and currents of one unit are in memory, not those of all. Where no state
leads from step to step, a unit is computed again step by step; where T is large, in chunks of √T steps, from the states
at their beginnings, for which the unit is computed once more.

A value that is no spike and that several units need (the residual stream of a normaliser-free network)
is a cut too, and kept as it is. What an image that is shown at every step makes of the first layers is
computed once. Units at the end of the network, whose tensors are small, keep their graph in the room
that the largest unit needs anyway.

The order of the operations of one step is that of the network, so that outputs, running statistics and
masks are those of a run step by step; gradients are the same sums in another order.
"""

import operator
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from math import ceil, sqrt
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable

from sltt_bench.backends.native.foreign_calls import foreign_call
from sltt_bench.backends.native.loop_invariants import is_first_layer
from sltt_bench.backends.native.packed_spikes import PackedSpikes
from sltt_bench.backends.native.saved_tensor_hooks import Kept, Stored
from sltt_bench.backends.native.step_calls import (
    IN_PLACE,
    NotTraceable,
    changed_in_place,
    changed_number,
    is_seen_through,
    numbers_of_step,
    trace_step,
)
from sltt_bench.models.layers import SequenceDropout
from sltt_bench.neurons import (
    SpikingNeuron,
    State,
    Stateful,
    restore_state,
    save_state,
    scale_state_gradient,
    stateful_layers,
)
from sltt_bench.recomputation import tried_again
from sltt_bench.torch_internals import HOOKS_OF_A_LAYER

ROOM = 2.0
"""Units keep their graphs in so many times the memory of the largest unit's graph: in its backward pass
the gradients of its spikes, and of a shortcut beside it, stand beside that graph."""

CHUNKS_BEYOND = 12
"""Time steps up to which all of a unit's are computed again at once."""

MAKE_ANEW = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm)
"""Layers whose result is in memory of its own."""

SHAPES = ("shape", "size", "dim", "ndim", "numel", "stride", "dtype", "device")
"""Methods and attributes of a tensor that give numbers."""

CHEAP_FUNCTIONS = (operator.mul, operator.truediv)
CHEAP_LAYERS = (SequenceDropout, nn.Flatten, nn.Identity)
"""What is rather computed in several units than kept."""


Hooks = Callable[[], AbstractContextManager[None]]
"""Makes what is entered where graphs are made."""


class NotSeparable(Exception):
    """The network cannot be cut into units; the message says why."""


@dataclass(eq=False)
class Unit:
    """What is computed between cuts."""

    target: fx.Node
    """The cut at its end."""
    nodes: list[fx.Node]
    """What it computes, in order; the last is the target."""
    last_uses: dict[fx.Node, list[fx.Node]]
    """Node → the values of which it is the last user in this unit."""
    core: Stateful | None
    """The layer with state at its end."""
    spiking: bool
    """Whether its results are spikes, or γ times spikes."""
    gain: float
    """γ."""
    once: frozenset[fx.Node]
    """What it computes from the input alone, without state: the same at all steps of a repeated image."""
    modules: list[nn.Module]
    norms: list[Any]
    """Those of its layers that take the batch's statistics and can be handed them instead."""
    read_last: list[fx.Node] = field(default_factory=list)
    """Cuts that no later unit reads."""
    graph_bytes: float = 0.0
    """About what its graph keeps at one step, in the last iteration."""


class UnitNetwork:
    """A network cut into units."""

    def __init__(self, network: nn.Module, x: Tensor) -> None:
        """`x`: the input of a step [batch, ...], on which layers that are not known are tried. Raises NotSeparable."""
        self.network = network
        graph = _trace(network)
        self.units = _cut(graph, network)
        if (foreign := foreign_call(graph, network)) is not None:
            again = tried_again(network, x)
            if reason := again.differs or again.draws or again.learns or again.overwrites:
                raise NotSeparable(f"steps would be computed again, but {reason} ({foreign})")
        (self.input,) = (node for node in graph.nodes if node.op == "placeholder")
        self._numbers = numbers_of_step(network)
        self._looked_into = {name: part for name, part in network.named_modules() if is_seen_through(part)}

    def why_not_now(self) -> str | None:
        """Why the network goes step by step in this iteration, or None: of parts that are looked into nobody calls the whole."""
        for name, part in self._looked_into.items():
            if any(getattr(part, hooks) for hooks in HOOKS_OF_A_LAYER):
                return f"somebody has hooked {name or 'the network'}, whose layers are called one by one"
        return changed_number(self._numbers)

    def units_with_graph(self, chunk_of: Callable[[Unit], int], timesteps: int) -> set[Unit]:
        """The last units, as far as their graphs fit into the room that the largest needs; none at first.

        `chunk_of`: how many of the T steps of a unit are computed again at once.
        """
        room = ROOM * max(unit.graph_bytes * chunk_of(unit) for unit in self.units)
        chosen: set[Unit] = set()
        for unit in reversed(self.units):
            room -= unit.graph_bytes * timesteps
            if room <= 0:
                break
            chosen.add(unit)
        return chosen

    def sequence(self, inputs: Sequence[Tensor], hooks: Hooks, state_gradient: float = 1.0) -> "Sequenced":
        """The network for one sequence of T inputs [batch, ...].

        `state_gradient`: what the gradient through the state is
        multiplied by from step to step.
        """
        return Sequenced(self, _Run(self, inputs, hooks, state_gradient))


class Sequenced(nn.Module):
    """Stands in for the network in one unroll: its call number t gives o[t]; the first computes all."""

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
    """∂L/∂value of a cut's values, by step."""

    by_step: dict[int, Tensor] = field(default_factory=dict)
    _own: set[int] = field(default_factory=set)

    def add(self, step: int, gradient: Tensor) -> None:
        """Autograd may have given the same tensor to others: only sums made here are added to in place."""
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
        """What makes autograd record functions whose other arguments are no tensors; its value is never read."""
        self._values: dict[fx.Node, list[Kept]] = {}
        self._unpacked: dict[fx.Node, list[Tensor]] = {}
        """Those that units still to come in the forward pass read."""
        self._gradients: dict[fx.Node, _Gradients] = {}
        self._graphs: dict[Unit, list[Tensor]] = {}
        self._at_once: set[Unit] = set()
        """Units that keep their graphs in every iteration but the first, before which their sizes are not known. It computes
        them again for all steps at once, so that it rounds as the others do: a process that resumes a training has
        such a one in its midst."""
        self._statistics: dict[Unit, dict[tuple[nn.Module, int], list[tuple[Tensor, Tensor]]]] = {}
        """μ and σ² of the batch, by layer and step, of units that are computed again: [channels] each."""
        self._autocast: Callable[[], torch.autocast] | None = None

    def forward(self) -> list[Tensor]:
        """The outputs of all steps."""
        device = self._inputs[0].device.type
        enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        self._autocast = lambda: torch.autocast(device, dtype=dtype, enabled=enabled)
        with_graph = self._units.units_with_graph(self._chunk_of, len(self._inputs))
        every_step = range(len(self._inputs))
        for unit in self._units.units:
            self._gradients[unit.target] = _Gradients()
            self._values[unit.target] = []
            with _state_of_its_own(unit):
                if unit in with_graph:
                    with torch.enable_grad(), self._hooks():
                        self._graphs[unit] = self._compute(unit, every_step, self._keep)
                else:
                    self._statistics[unit] = defaultdict(list)
                    self._compute(unit, every_step, self._keep)
            for node in unit.read_last:
                self._unpacked.pop(node, None)
        self._at_once = self._units.units_with_graph(self._chunk_of, len(self._inputs))
        return [value.tensor() for value in self._values.pop(self._units.units[-1].target)]

    def backward(self, gradients: Sequence[Tensor | None]) -> None:
        """Add to the parameters' gradients."""
        last = self._gradients[self._units.units[-1].target]
        for step, gradient in enumerate(gradients):
            if gradient is not None:
                last.add(step, gradient)
        for unit in reversed(self._units.units):
            self._values.pop(unit.target, None)  # its users are through
            if not self._gradients[unit.target].by_step:
                self._graphs.pop(unit, None)
                continue
            if unit in self._graphs:
                self._backward_from(self._graphs.pop(unit))
            else:
                with _state_of_its_own(unit):
                    self._backward_again(unit)
                del self._statistics[unit]

    def _chunk_of(self, unit: Unit) -> int:
        """How many steps are computed again at once."""
        timesteps = len(self._inputs)
        if unit.core is None:
            return timesteps if self._repeated and unit.once else 1
        return timesteps if timesteps <= CHUNKS_BEYOND else ceil(sqrt(timesteps))

    def _backward_again(self, unit: Unit) -> None:
        """Compute a unit again, with its graph, and go backward through it, the last chunk of steps first."""
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
        """Go backward from what `_compute` returned, and from values with these gradients."""
        signal = self.anchor.detach()  # of no meaning to an end, but torch would fill one for each
        further = [(value, gradient) for value, gradient in carried if gradient is not None]
        torch.autograd.backward(
            [*ends, *(value for value, _ in further)],
            [*(signal for _ in ends), *(gradient for _, gradient in further)],
        )

    def _states_before(self, unit: Unit, chunks: list[range]) -> list[State]:
        """What the unit carries when each chunk begins: nothing before the first."""
        states: list[State] = []
        for number, steps in enumerate(chunks):
            states.append([] if unit.core is None or not number else save_state(unit.core))
            if unit.core is not None and number + 1 < len(chunks):
                with torch.no_grad(), self._computing_again(unit):
                    self._compute(unit, steps, _forget)
        return states

    @contextmanager
    def _computing_again(self, unit: Unit) -> Iterator[None]:
        """As the first time, but running statistics are left alone, and the spikes at its end not made again."""
        assert self._autocast is not None
        with (
            self._autocast(),
            self._hooks(),
            _without_learning_statistics(unit.modules),
            _firing_for_nobody(unit.core),
        ):
            yield

    def _keep(self, unit: Unit, value: Tensor) -> None:
        """One more value of a cut."""
        unit.graph_bytes = 2 * value.nbytes
        kept = PackedSpikes(value.detach(), unit.gain) if unit.spiking else Stored(value)
        self._values[unit.target].append(kept)
        if unit.spiking and len(self._inputs) <= CHUNKS_BEYOND:
            self._unpacked.setdefault(unit.target, []).append(value.detach())

    def _compute(self, unit: Unit, steps: range, keep: Callable[[Unit, Tensor], None]) -> list[Tensor]:
        """Steps of a unit; the ends of their graphs, from which `backward` starts."""
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
        """Layers take a batch's statistics in the first pass alone."""
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
        """The value of the unit's target at a step."""
        values: dict[fx.Node, Any] = {}

        def value_of(node: fx.Node) -> Any:
            if node not in values:
                values[node] = once[node] if node in once else self._value_from_outside(node, step)
            return values[node]

        for node in unit.nodes:
            if node in once:
                continue
            result = self._evaluate(node, value_of)
            if self._repeated and node in unit.once:
                once[node] = result
            values[node] = result
            for used in unit.last_uses[node]:
                values.pop(used, None)
        target: Tensor = values[unit.target] if unit.target in values else once[unit.target]
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
            # Neurons that are scaled find out by themselves whether somebody has hooked them since they were traced.
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
        # What later layers save of this value is kept already (`SavedTensors`).
        ctx.kept, ctx.gradients, ctx.step = kept, gradients, step
        return value.detach()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:
        ctx.gradients.add(ctx.step, gradient)
        return (None,) * 5


class _End(torch.autograd.Function):
    """The value of a unit at a step, as something to go backward from; its gradient is fetched, and gone, when
    the backward pass has come to that step."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, anchor: Tensor, gradients: _Gradients, step: int) -> Tensor:
        ctx.gradients, ctx.step = gradients, step
        return torch.empty_like(anchor)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, None, None, None]:
        return ctx.gradients.by_step.pop(ctx.step, None), None, None, None


def _forget(unit: Unit, value: Tensor) -> None:
    """Of a unit that is computed again, values are kept already."""


@contextmanager
def _state_of_its_own(unit: Unit) -> Iterator[None]:
    """The unit begins at step 1, and leaves nothing."""
    _begin(unit)
    yield
    _begin(unit)


def _begin(unit: Unit) -> None:
    """Put what the unit carries before step 1; masks of dropout are those of the sequence, however often it is computed."""
    for layer in [] if unit.core is None else stateful_layers(unit.core):
        if not isinstance(layer, SequenceDropout):
            layer.reset_state()


def _restore_as_leaves(unit: Unit, state: State) -> list[Tensor]:
    """Put the unit before the step at which the state was saved; what it carries, as leaves of a new graph."""
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
    """Within, batch norm in training uses the batch's statistics and learns nothing."""
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
    """Within, neurons need not make the spikes at the end of a unit: those are kept, and only their gradient enters."""
    if not hasattr(core, "spikes_are_read"):
        yield
        return
    core.spikes_are_read = False
    try:
        yield
    finally:
        core.spikes_are_read = True


# Cutting ----------------------------------------------------------------------------------------


def _trace(network: nn.Module) -> fx.Graph:
    """The calls of one step. Raises NotSeparable."""
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            raise NotSeparable(f"{type(module).__name__} would draw anew when it is computed again")
    try:
        graph = trace_step(network)
    except NotTraceable as error:
        raise NotSeparable(str(error)) from error
    for node in graph.nodes:
        if node.target in IN_PLACE and _is_fresh(node.args[0], network):
            node.target = IN_PLACE[node.target]
        if (name := changed_in_place(node, network)) is not None:
            raise NotSeparable(f"its forward method changes a value in place ({name})")
    return graph


def _is_fresh(node: Any, network: nn.Module) -> bool:
    """Whether a value is nowhere else to be seen: one caller reads it, and what makes it makes it anew."""
    if not isinstance(node, fx.Node) or len(node.users) != 1:
        return False
    if node.op == "call_module":
        return isinstance(network.get_submodule(str(node.target)), MAKE_ANEW)
    return node.op == "call_function" and node.target in (operator.add, operator.sub, operator.mul)


def _cut(graph: fx.Graph, network: nn.Module) -> list[Unit]:
    """The units in the order of computation. Raises NotSeparable."""
    modules = {
        node: network.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"
    }
    cores = {
        node: module
        for node, module in modules.items()
        if isinstance(module, Stateful) and not isinstance(module, SequenceDropout)
    }
    if len({id(core) for core in cores.values()}) < len(cores):
        raise NotSeparable("a layer with state is called more than once in a step")
    if not cores:
        raise NotSeparable("it has no layer with state")
    (output,) = (node for node in graph.nodes if node.op == "output")
    if not isinstance(output.args[0], fx.Node):
        raise NotSeparable("it returns something else than one tensor")
    cuts = {*cores, output.args[0]}
    parts = _parts(graph)
    if (several := next((node for node in parts if node in modules), None)) is not None:
        raise NotSeparable(f"layer {several.target} hands on more than one tensor")
    leads_to: dict[fx.Node, set[fx.Node]] = {}
    for node in reversed(graph.nodes):
        leads_to[node] = set()
        for user in node.users:
            leads_to[node] |= {user} if user in cuts else leads_to[user]
        is_kept = node.op.startswith("call") and node not in parts and not _is_cheap(node, modules)
        if len(leads_to[node]) > 1 and is_kept:
            cuts.add(node)
    once = _computed_once(graph, modules)
    units = [_unit(node, cuts, cores, modules, once) for node in graph.nodes if node in cuts]
    computed = {node for unit in units for node in unit.nodes}
    if (unread := next((node for node in modules if node not in computed), None)) is not None:
        raise NotSeparable(f"nothing reads what layer {unread.target} makes, which would not be called")
    _refuse_another_order(units, modules)
    last_readers = {before: unit for unit in units for node in unit.nodes for before in node.all_input_nodes}
    for node, unit in last_readers.items():
        if node in cuts:
            unit.read_last.append(node)
    return units


def _refuse_another_order(units: list[Unit], modules: dict[fx.Node, nn.Module]) -> None:
    """Raises NotSeparable where unit after unit, each for all steps, is not the order of step after step for what depends on
    it: running statistics of a layer, and draws."""
    norms = Counter(
        part
        for unit in units
        for part in set(unit.modules)
        if isinstance(part, nn.modules.batchnorm._BatchNorm)
    )
    if (shared := next((norm for norm, number in norms.items() if number > 1), None)) is not None:
        raise NotSeparable(
            f"a {type(shared).__name__} serves several units, and would learn its statistics in another order"
        )
    masks = [
        [
            part
            for module in group
            for part in module.modules()
            if isinstance(part, SequenceDropout) and part.p
        ]
        for group in ((module for unit in units for module in unit.modules), modules.values())
    ]
    if list(dict.fromkeys(masks[0])) != list(dict.fromkeys(masks[1])):
        raise NotSeparable("its layers of dropout would draw their masks in another order")


def _parts(graph: fx.Graph) -> set[fx.Node]:
    """What is no tensor of its own, and what is a part of such a thing or made of nothing else: shapes, numbers, what
    functions hand on together. Each unit makes its own."""
    parts: set[fx.Node] = set()
    for node in graph.nodes:
        inputs = node.all_input_nodes
        of_parts = bool(inputs) and node.op != "call_module" and parts.issuperset(inputs)
        is_number = node.target in SHAPES or (node.target is getattr and node.args[1] in SHAPES)
        if is_number or of_parts or any(_is_part(user) for user in node.users):
            parts.add(node)
    return parts - {node for node in parts if not node.op.startswith("call")}


def _is_part(node: fx.Node) -> bool:
    """Whether it takes one of several things that were handed on together."""
    return node.target is operator.getitem and isinstance(node.args[1], int)


def _is_cheap(node: fx.Node, modules: dict[fx.Node, nn.Module]) -> bool:
    return node.target in CHEAP_FUNCTIONS or isinstance(modules.get(node), CHEAP_LAYERS)


def _computed_once(graph: fx.Graph, modules: dict[fx.Node, nn.Module]) -> frozenset[fx.Node]:
    """What depends on nothing but the input."""
    once: set[fx.Node] = set()
    for node in graph.nodes:
        known = node in modules and is_first_layer(modules[node])
        constant = all(
            before in once or before.op in ("placeholder", "get_attr") for before in node.all_input_nodes
        )
        if constant and (known or node.target in CHEAP_FUNCTIONS):
            once.add(node)
    return frozenset(once)


def _unit(
    target: fx.Node,
    cuts: set[fx.Node],
    cores: dict[fx.Node, Stateful],
    modules: dict[fx.Node, nn.Module],
    once: frozenset[fx.Node],
) -> Unit:
    inside: set[fx.Node] = {target}
    open_nodes = [target]
    while open_nodes:
        for before in open_nodes.pop().all_input_nodes:
            if before.op.startswith("call") and before not in cuts and before not in inside:
                inside.add(before)
                open_nodes.append(before)
    nodes = [node for node in target.graph.nodes if node in inside]
    last_user = {before: node for node in nodes for before in node.all_input_nodes}
    last_uses: dict[fx.Node, list[fx.Node]] = {node: [] for node in nodes}
    for before, node in last_user.items():
        last_uses[node].append(before)
    core = cores.get(target)
    return Unit(
        target=target,
        nodes=nodes,
        last_uses=last_uses,
        core=core,
        spiking=core is not None and core.emits_spikes,
        gain=target.kwargs.get("gain", 1.0) if isinstance(core, SpikingNeuron) else 1.0,  # type: ignore[arg-type]
        once=once & inside,
        modules=[part for node in nodes if node in modules for part in modules[node].modules()],
        norms=[modules[node] for node in nodes if hasattr(modules.get(node), "kept_statistics")],
    )
