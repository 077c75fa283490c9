"""Where BPTT unit by unit cuts a network: behind every layer that carries state, and behind a value that is no
spike but that several units need, such as the residual stream of a normaliser-free network.
"""

import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from sltt_bench.backends.native.loop_invariants import is_first_layer
from sltt_bench.backends.native.step_calls import IN_PLACE, NotTraceable, changed_in_place, trace_step
from sltt_bench.models.layers import SequenceDropout
from sltt_bench.neurons import SpikingNeuron, Stateful

MAKE_ANEW = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm)
"""Layers whose result has its own memory."""

SHAPES = ("shape", "size", "dim", "ndim", "numel", "stride", "dtype", "device")
"""Methods and attributes of a tensor that give no tensor."""

CHEAP_FUNCTIONS = (operator.mul, operator.truediv)
CHEAP_LAYERS = (SequenceDropout, nn.Flatten, nn.Identity)
"""Layers whose result is recomputed in several units instead of kept."""


class NotSeparable(Exception):
    """The network cannot be cut into units; the message says why."""


@dataclass(eq=False)
class Unit:
    """The computation between cuts."""

    target: fx.Node
    """The cut at its end."""
    nodes: list[fx.Node]
    """Its operations, in order; the last is the target."""
    last_uses: dict[fx.Node, list[fx.Node]]
    """Node → the values that it is the last to use in this unit."""
    core: Stateful | None
    """The layer with state at its end."""
    spiking: bool
    """Whether its results are spikes, or γ times spikes."""
    gain: float
    """γ."""
    once: frozenset[fx.Node]
    """Operations on the input only, without state: equal at all steps of a repeated image."""
    modules: list[nn.Module]
    norms: list[Any]
    """Its layers that compute statistics of the batch and can be given them instead."""
    read_last: list[fx.Node] = field(default_factory=list)
    """Cuts that no later unit reads."""
    x: fx.Node | None = None
    """What the batch norm before its neurons reads, if nothing in the unit is computed once."""
    value_bytes: int = 0
    """Memory of its value at one step, from the last iteration."""
    kept_bytes: int = 0
    """Of what is kept of it."""
    stored: dict[fx.Node, int] = field(default_factory=dict)
    """Memory at one step of each value that its graph stores: x, and what convolutions read but for spikes."""


def graph_of_a_step(network: nn.Module) -> fx.Graph:
    """Returns the calls of one step. Raises NotSeparable."""
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
    """Whether a value has one reader and its own memory, so that nothing else can see it change."""
    if not isinstance(node, fx.Node) or len(node.users) != 1:
        return False
    if node.op == "call_module":
        return isinstance(network.get_submodule(str(node.target)), MAKE_ANEW)
    return node.op == "call_function" and node.target in (operator.add, operator.sub, operator.mul)


def units_of(graph: fx.Graph, network: nn.Module) -> list[Unit]:
    """Returns the units in the order of computation. Raises NotSeparable."""
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


def waiting_for(unit: Unit, units: list[Unit]) -> Iterator[Unit]:
    """Yields the units whose values have gradients when the backward pass begins with `unit`: that one, and
    those before it that later units have read."""
    last_reader = {node: number for number, reader in enumerate(units) for node in reader.read_last}
    own = units.index(unit)
    yield from (other for other in units[:own] if last_reader.get(other.target, 0) > own)
    yield unit


def _refuse_another_order(units: list[Unit], modules: dict[fx.Node, nn.Module]) -> None:
    """Raises NotSeparable if going unit by unit, not step by step, would reorder random draws or updates of a
    layer's running statistics."""
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
    """Returns values that are no single tensors (shapes, numbers, tuples), and values made only of such.

    They are never kept; each unit computes its own.
    """
    parts: set[fx.Node] = set()
    for node in graph.nodes:
        inputs = node.all_input_nodes
        of_parts = bool(inputs) and node.op != "call_module" and parts.issuperset(inputs)
        is_number = node.target in SHAPES or (node.target is getattr and node.args[1] in SHAPES)
        if is_number or of_parts or any(_is_part(user) for user in node.users):
            parts.add(node)
    return parts - {node for node in parts if not node.op.startswith("call")}


def _is_part(node: fx.Node) -> bool:
    """Whether the node takes an element by its number, as of a tuple."""
    return node.target is operator.getitem and isinstance(node.args[1], int)


def _is_cheap(node: fx.Node, modules: dict[fx.Node, nn.Module]) -> bool:
    return node.target in CHEAP_FUNCTIONS or isinstance(modules.get(node), CHEAP_LAYERS)


def _computed_once(graph: fx.Graph, modules: dict[fx.Node, nn.Module]) -> frozenset[fx.Node]:
    """Returns the operations without state that depend only on the input."""
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
    computed_once = once & inside
    return Unit(
        target=target,
        nodes=nodes,
        last_uses=last_uses,
        core=core,
        spiking=core is not None and core.emits_spikes,
        gain=target.kwargs.get("gain", 1.0) if isinstance(core, SpikingNeuron) else 1.0,  # type: ignore[arg-type]
        once=computed_once,
        modules=[part for node in nodes if node in modules for part in modules[node].modules()],
        norms=[modules[node] for node in nodes if hasattr(modules.get(node), "kept_statistics")],
        stored=dict.fromkeys(_stored(nodes, cuts, modules), 0),
        x=None if core is None or computed_once else _read_by_norm(target, inside, modules),
    )


def _stored(nodes: list[fx.Node], cuts: set[fx.Node], modules: dict[fx.Node, nn.Module]) -> list[fx.Node]:
    """Returns the values made in a unit that its graph stores: what convolutions, linear layers and batch norms
    read, unless it is computed again from other values."""
    readers = (node for node in nodes if isinstance(modules.get(node), MAKE_ANEW))
    read = {before for node in readers for before in node.all_input_nodes}
    return [node for node in nodes if node in read - cuts and not _is_cheap(node, modules)]


def _read_by_norm(target: fx.Node, inside: set[fx.Node], modules: dict[fx.Node, nn.Module]) -> fx.Node | None:
    """Returns what the batch norm directly before the neurons reads, if it is computed in their unit."""
    norm, *others = target.all_input_nodes
    if others or not isinstance(modules.get(norm), nn.modules.batchnorm._BatchNorm):
        return None
    x, *others = norm.all_input_nodes
    return (
        x if not others and x in inside and set(x.users) == {norm} and set(norm.users) == {target} else None
    )
