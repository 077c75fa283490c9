"""The calls of one step of a network (torch.fx), and why they cannot be seen where that is so.

Whoever reads the calls takes them for what every step does, in training and evaluation. A trace shows less than that where
a forward method keeps something from call to call, computes outside of the graph of the step, without gradients, in
another precision or by an autograd function of its own, draws random numbers, or does something else in evaluation. Such a
network is not traceable, by name. What the trace did to the network is undone.
"""

import operator
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from sltt_bench.neurons import Stateful
from sltt_bench.torch_internals import HOOKS_OF_A_LAYER, TorchDispatchMode, autograd_functions_seen

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
"""Operator in place → the one that makes a new value."""


class NotTraceable(Exception):
    """The calls of a step cannot be seen; the message says why."""


def trace_step(network: nn.Module) -> fx.Graph:
    """The calls of one step. Raises NotTraceable."""
    try:
        with _as_it_was(network):
            graph, in_evaluation = (_traced(network, training=training) for training in (True, False))
    except NotTraceable:
        raise
    except Exception as error:  # whatever a forward method may do with a value that is none yet
        raise NotTraceable(
            f"the forward method cannot be traced: {' '.join(str(error).split())[:200]}"
        ) from error
    if sum(node.op == "placeholder" for node in graph.nodes) != 1:
        raise NotTraceable("its forward method takes more than one argument")
    if _as_words(graph) != _as_words(in_evaluation):
        raise NotTraceable("its forward method does something else in evaluation")
    return graph


def changed_in_place(node: fx.Node, network: nn.Module) -> str | None:
    """The name of the call, if it changes a value that it is given."""
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
    """Whether a trace shows the calls within a part of the network, not one of the whole part."""
    return not StepTracer().is_leaf_module(module, "")


class StepTracer(fx.Tracer):
    """Sees the calls of layers, and looks into what consists of layers."""

    def __init__(self) -> None:
        super().__init__()
        self._mode = _mode()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        has_children = next(m.children(), None) is not None
        return not has_children or isinstance(m, Stateful) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        if kind.startswith("call") and _mode() != self._mode:
            raise NotTraceable(
                "a part of its forward method computes without gradients or in another precision"
            )
        return super().create_node(kind, *args, **kwargs)


class _Value(fx.Proxy):
    """Notices operators in place, which torch.fx takes for those that make a new value."""


def _operator_in_place(function: Any) -> Callable[[_Value, Any], fx.Proxy]:
    return lambda value, other: value.tracer.create_proxy("call_function", function, (value, other), {})


for _function in IN_PLACE:
    setattr(_Value, f"__{_function.__name__}__", _operator_in_place(_function))


class _NothingIsComputed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within, a forward method that computes with anything but values of the step is not traceable: what it makes of
    parameters, or draws, would be a constant of the trace."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotTraceable(f"its forward method computes outside of the step's graph ({func})")


def _traced(network: nn.Module, *, training: bool) -> fx.Graph:
    for module in network.modules():
        module.__dict__["training"] = training
    with ExitStack() as surroundings:
        surroundings.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            # Whatever the steps are computed in, so that a part that leaves it is noticed.
            surroundings.enter_context(torch.autocast(device, dtype=torch.bfloat16))
        surroundings.enter_context(_NothingIsComputed())  # type: ignore[no-untyped-call]
        surroundings.enter_context(autograd_functions_seen(_refuse))
        return StepTracer().trace(network)


def _refuse(name: str, args: tuple[Any, ...]) -> None:
    if any(isinstance(arg, fx.Proxy) for arg in args):
        raise NotTraceable(f"its forward method calls an autograd function of its own ({name})")


def _mode() -> tuple[Any, ...]:
    """What decides, beside its arguments, what an operation does."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        *(
            (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
            for device in ("cpu", "cuda")
        ),
    )


def _as_words(graph: fx.Graph) -> list[tuple[Any, ...]]:
    """The calls, to be compared, but for what functions are told of the mode."""
    return [
        (node.op, node.target, node.name, str(node.args), str({**node.kwargs, "training": None}))
        for node in graph.nodes
    ]


@contextmanager
def _as_it_was(network: nn.Module) -> Iterator[None]:
    """The network's attributes and what draws for it are afterwards as before. Raises NotTraceable if something was
    changed within.

    Hooks of parts whose calls are seen are kept from values that are none.
    """
    modules = list(network.modules())
    before = [(module, dict(vars(module)), _contents(module)) for module in modules]
    draws = random.getstate(), np.random.get_state()
    for module in filter(is_seen_through, modules):
        vars(module).update({hooks: OrderedDict() for hooks in HOOKS_OF_A_LAYER})
    expected = [dict(vars(module)) for module in modules]
    try:
        yield
        for (module, _, contents), attributes in zip(before, expected, strict=True):
            now = vars(module)
            for name in now.keys() | attributes.keys():
                if name != "training" and now.get(name, _ABSENT) is not attributes.get(name, _ABSENT):
                    raise NotTraceable(f"its forward method keeps something ({type(module).__name__}.{name})")
            for held, content in contents:
                if not _are_the_same(list(_flat(held)), list(_flat(content))):
                    raise NotTraceable(f"its forward method keeps something (in a {type(module).__name__})")
        if _drawn(draws) != _drawn((random.getstate(), np.random.get_state())):
            raise NotTraceable("its forward method draws random numbers that are not torch's")
    finally:
        random.setstate(draws[0])
        np.random.set_state(draws[1])
        for module, attributes, contents in before:
            vars(module).clear()
            vars(module).update(attributes)
            for held, content in contents:
                _put_back(held, content)


_ABSENT = object()


def _contents(module: nn.Module) -> list[tuple[Any, Any]]:
    """What a module's own lists and mappings hold, each with a copy."""
    return [
        (held, copy(held)) for held in vars(module).values() if isinstance(held, (list, dict, set, deque))
    ]


def _flat(held: Any) -> Iterator[Any]:
    for each in held:
        yield each
        if isinstance(held, dict):
            yield held[each]


def _are_the_same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def _put_back(held: Any, content: Any) -> None:
    if not _are_the_same(list(_flat(held)), list(_flat(content))):
        held.clear()
        (held.extend if isinstance(held, (list, deque)) else held.update)(content)


def _drawn(states: tuple[Any, ...]) -> str:
    """States of Python's and NumPy's random numbers, to be compared."""
    return repr((states[0], [np.asarray(part).tolist() for part in states[1]]))
