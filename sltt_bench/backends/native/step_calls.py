"""Traces the calls of one step of a network (torch.fx), or says why they cannot be traced.

Users of the trace assume that every step makes these calls, in training and in evaluation. So only networks
whose forward methods do nothing beyond what a trace shows (`plain_forward`) are traceable.
"""

import operator
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx, nn

from sltt_bench.backends.native.plain_forward import Fixed, NotPlain, read_forward_methods
from sltt_bench.neurons import Stateful
from sltt_bench.torch_internals import HOOKS_OF_A_LAYER, TorchDispatchMode

IN_PLACE: dict[Any, Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod,
    operator.ipow: operator.pow,
    operator.imatmul: operator.matmul,
    operator.iand: operator.and_,
    operator.ior: operator.or_,
    operator.ixor: operator.xor,
}
"""In-place operator → the operator that makes a new value."""


class NotTraceable(Exception):
    """The calls of a step cannot be traced; the message says why."""


def trace_step(network: nn.Module) -> fx.Graph:
    """Returns the calls of one step. Raises NotTraceable."""
    numbers_of_step(network)
    try:
        with _without_hooks(network), _NothingIsComputed():  # type: ignore[no-untyped-call]
            graph = _StepTracer().trace(network)
    except NotTraceable:
        raise
    except Exception as error:  # a forward method may do anything with values that are only proxies
        raise NotTraceable(
            f"the forward method cannot be traced: {' '.join(str(error).split())[:200]}"
        ) from error
    arguments = [str(node.target) for node in graph.nodes if node.op == "placeholder"]
    if len(arguments) != 1 or arguments[0].startswith("*"):
        raise NotTraceable("its forward method takes more than one argument")
    return graph


def numbers_of_step(network: nn.Module) -> list[Fixed]:
    """Returns the numbers and parts of layers on which a step's trace depends. Raises NotTraceable."""
    try:
        return read_forward_methods(
            part for part in network.modules() if part is network or is_seen_through(part)
        )
    except NotPlain as error:
        raise NotTraceable(str(error)) from None


def changed_number(numbers: list[Fixed]) -> str | None:
    """Returns in words which of the values has changed since it was read, or None."""
    changed = next((number for number in numbers if number.has_changed()), None)
    return changed and f"{changed.name} is another than when the calls of a step were traced"


def changed_in_place(node: fx.Node, network: nn.Module) -> str | None:
    """Returns the name of the call if it changes one of its arguments in place, else None."""
    if node.op == "call_module":
        layer = network.get_submodule(str(node.target))
        return type(layer).__name__ if getattr(layer, "inplace", False) is True else None
    if not node.op.startswith("call"):
        return None
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    by_name = name.endswith("_") and not name.endswith("__")
    by_argument = node.kwargs.get("inplace") is True or node.kwargs.get("out") is not None
    return name if node.target in IN_PLACE or by_name or by_argument else None


def is_seen_through(module: nn.Module) -> bool:
    """Whether a trace shows the calls within a part of the network instead of one call of the part."""
    return not _StepTracer().is_leaf_module(module, "")


class _StepTracer(fx.Tracer):
    """Records the calls of layers, and traces into modules that consist of layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        has_children = next(m.children(), None) is not None
        return not has_children or isinstance(m, Stateful) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)


class _ChangedInPlace:
    """Records in-place operators, which torch.fx would record as operators that make a new value."""

    tracer: Any

    def __getattr__(self, name: str) -> "_AttributeOfValue":
        return _AttributeOfValue(self, name)  # type: ignore[arg-type]


class _Value(_ChangedInPlace, fx.Proxy):
    """A value of the step."""


class _AttributeOfValue(_ChangedInPlace, fx.proxy.Attribute):
    """`value.name`, which may share the value's memory."""


def _operator_in_place(function: Any) -> Callable[[_Value, Any], fx.Proxy]:
    return lambda value, other: value.tracer.create_proxy("call_function", function, (value, other), {})


for _function in IN_PLACE:
    setattr(_ChangedInPlace, f"__{_function.__name__}__", _operator_in_place(_function))


class _NothingIsComputed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context in which computing with anything but values of the step raises NotTraceable.

    The result of such a computation would become a constant of the trace.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotTraceable(f"its forward method computes outside of the step's graph ({func})")


@contextmanager
def _without_hooks(network: nn.Module) -> Iterator[None]:
    """Context without the hooks of parts that are traced into, since their values would be proxies."""
    parts = [vars(module) for module in network.modules() if is_seen_through(module)]
    usual = [(part, hooks, part[hooks]) for part in parts for hooks in HOOKS_OF_A_LAYER]
    for part, hooks, _ in usual:
        part[hooks] = OrderedDict()
    try:
        yield
    finally:
        for part, hooks, value in usual:
            part[hooks] = value
