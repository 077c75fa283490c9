"""The calls of one step of a network (torch.fx), and why they cannot be seen where that is so.

Whoever reads the calls takes them for what every step does, in training and evaluation. A trace shows less than that where
a forward method keeps something from call to call, computes outside of the graph of the step, without gradients, in
another precision or by an autograd function of its own, draws random numbers, does something else in evaluation, asks whether a value is a tensor, or
goes on another way where it cannot be traced. Such a network is not traceable, by name. What the trace did to the network
is undone.
"""

import operator
import random
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import copy
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

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

    def __init__(self, refuse: Callable[[str], None] | None = None) -> None:
        """`refuse` hears of what is not traceable, which a forward method may catch."""
        super().__init__()
        self._mode = _mode()
        self.refuse = refuse or _not_traceable

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        has_children = next(m.children(), None) is not None
        return not has_children or isinstance(m, Stateful) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        if kind.startswith("call") and _mode() != self._mode:
            self.refuse("a part of its forward method computes without gradients or in another precision")
        return super().create_node(kind, *args, **kwargs)

    def to_bool(self, obj: fx.Proxy) -> bool:
        is_true: bool = self._unless_refused(super().to_bool, obj)
        return is_true

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        parts: Iterator[Any] = self._unless_refused(super().iter, obj)
        return parts

    def _unless_refused(self, function: Callable[[fx.Proxy], Any], value: fx.Proxy) -> Any:
        try:
            return function(value)
        except fx.proxy.TraceError as error:
            return self.refuse(f"the forward method cannot be traced: {error}")


class _Noticing:
    """Notices operators in place, which torch.fx takes for those that make a new value, and who asks what a value is: it is
    no tensor, and a forward method may do otherwise with it than with one."""

    tracer: Any

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # what `isinstance` asks of an instance that is none by its type
        if _asks_for_tensors(sys._getframe(1)):
            self.tracer.refuse("its forward method asks whether a value is a tensor")
        return type(self)

    def __getattr__(self, name: str) -> "_AttributeOfValue":
        return _AttributeOfValue(self, name)  # type: ignore[arg-type]

    def __int__(self) -> Any:
        self._is_asked_for("an integer")

    def __float__(self) -> Any:
        self._is_asked_for("a number")

    def __len__(self) -> Any:
        self._is_asked_for("the length")

    def _is_asked_for(self, what: str) -> None:
        self.tracer.refuse(f"the forward method cannot be traced: it asks for {what} of a value")


class _Value(_Noticing, fx.Proxy):
    """A value of the step."""


class _AttributeOfValue(_Noticing, fx.proxy.Attribute):
    """`value.name`, which may be memory of the value."""


def _asks_for_tensors(caller: FrameType) -> bool:
    """Whether a function that has asked for the kind of a value may want to know whether that is a tensor: one that names the
    type, and is neither torch's nor this project's."""
    asking: FrameType | None = caller
    if caller.f_code.co_name == "is_tensor":
        asking = caller.f_back
    if asking is None or str(asking.f_globals.get("__name__")).split(".")[0] in ("torch", "sltt_bench"):
        return False
    names = asking.f_code.co_names
    return asking is not caller or any(n == "Tensor" or asking.f_globals.get(n) is Tensor for n in names)


def _operator_in_place(function: Any) -> Callable[[_Value, Any], fx.Proxy]:
    return lambda value, other: value.tracer.create_proxy("call_function", function, (value, other), {})


for _function in IN_PLACE:
    setattr(_Noticing, f"__{_function.__name__}__", _operator_in_place(_function))


class _NothingIsComputed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within, a forward method that computes with anything but values of the step is not traceable: what it makes of
    parameters, or draws, would be a constant of the trace."""

    def __init__(self, refuse: Callable[[str], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._refuse = refuse

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._refuse(f"its forward method computes outside of the step's graph ({func})")


def _traced(network: nn.Module, *, training: bool) -> fx.Graph:
    refused: list[str] = []

    def refuse(reason: str) -> None:
        refused.append(reason)
        _not_traceable(reason)

    def look(name: str, args: tuple[Any, ...]) -> None:
        if any(isinstance(arg, fx.Proxy) for arg in args):
            refuse(f"its forward method calls an autograd function of its own ({name})")

    for module in network.modules():
        module.__dict__["training"] = training
    with ExitStack() as surroundings:
        surroundings.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            # Whatever the steps are computed in, so that a part that leaves it is noticed.
            surroundings.enter_context(torch.autocast(device, dtype=torch.bfloat16))
        surroundings.enter_context(_NothingIsComputed(refuse))
        surroundings.enter_context(autograd_functions_seen(look))
        graph = StepTracer(refuse).trace(network)
    if refused:  # and the forward method went on without
        _not_traceable(refused[0])
    return graph


def _not_traceable(reason: str) -> None:
    raise NotTraceable(" ".join(reason.split())[:250])


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
