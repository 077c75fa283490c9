"""The calls of one step of a network (torch.fx), and why they cannot be seen where that is so.

Whoever reads the calls takes them for what every step does, in training and evaluation. A trace shows less than that where
a forward method keeps something from call to call, reads what its layers keep, computes outside of the graph of the step, without
gradients, in another precision or by an autograd function of its own, draws random numbers, does something else in
evaluation or where no gradients are wanted, asks what a value is, or goes on another way where it cannot be traced. Such a network
is not traceable, by name. What the trace did to the network is undone.
"""

import operator
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn

from sltt_bench.backends.native.asked_kinds import (
    asks_for_types,
    compares_identities,
    is_asked_by,
    is_asked_for_kind,
)
from sltt_bench.backends.native.kept_by_layers import hook_that_keeps_for, unread_by_others
from sltt_bench.neurons import Stateful
from sltt_bench.python_state import PythonState, is_of_a_library
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

OF_ONE_TENSOR = (
    nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.Flatten, nn.ReLU,
    nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.dropout._DropoutNd,
)  # fmt: skip
"""Layers of torch's that make one tensor."""
TENSORS_OF_A_TENSOR = ("T", "mT", "data")
ALWAYS_THE_SAME_OBJECT = ("dtype", "layout", "grad", "grad_fn", "requires_grad", "is_leaf", "_base", "names")
"""Attributes of a tensor that somebody may compare with `is`, which a trace does not see."""


class NotTraceable(Exception):
    """The calls of a step cannot be seen; the message says why."""


def trace_step(network: nn.Module) -> fx.Graph:
    """The calls of one step. Raises NotTraceable."""
    if kind := hook_that_keeps_for(network, _parts_that_are_called(network)):
        raise NotTraceable(f"a hook of a {kind} may keep something that its forward method reads")
    try:
        with _as_it_was(network):
            graph = _traced(network)
            without_graph = _traced(network, grad_enabled=False)
            in_evaluation = _traced(network, training=False, grad_enabled=False)
    except NotTraceable:
        raise
    except Exception as error:  # whatever a forward method may do with a value that is none yet
        raise NotTraceable(
            f"the forward method cannot be traced: {' '.join(str(error).split())[:200]}"
        ) from error
    arguments = [str(node.target) for node in graph.nodes if node.op == "placeholder"]
    if len(arguments) != 1 or arguments[0].startswith("*"):
        raise NotTraceable("its forward method takes more than one argument")
    if _as_words(graph) != _as_words(without_graph):
        raise NotTraceable("its forward method does something else where no gradients are wanted")
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

    def is_tensor(self, value: Any) -> bool:
        """Whether it is known of a value that it is a tensor."""
        if type(value) is _AttributeOfValue:
            return value.attr in TENSORS_OF_A_TENSOR and self.is_tensor(value.root)
        return self._makes_tensor(value.node)

    def _makes_tensor(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            layer = self.root.get_submodule(str(node.target))
            origin = type(layer).__module__.split(".")[0]
            if not isinstance(layer, nn.Identity):
                return origin == "sltt_bench" or (origin == "torch" and isinstance(layer, OF_ONE_TENSOR))
        if node.op == "call_module" or node.target in (*IN_PLACE, *IN_PLACE.values()):
            return any(map(self._makes_tensor, node.all_input_nodes))
        return node.op == "placeholder"

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, torch.Generator):
            self.refuse("its forward method draws from a random generator of its own")
        return super().create_arg(a)

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
    """Notices operators in place, which torch.fx takes for those that make a new value, and who asks what a value is. Who does is
    told that it is a tensor, where that is known."""

    tracer: Any

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # what `isinstance` asks of an instance that is none by its type
        is_asked = is_asked_for_kind(sys._getframe(1))
        if is_asked is False:
            return type(self)
        if is_asked is None or not self.tracer.is_tensor(self):
            self.tracer.refuse("its forward method asks what a value is")
        return Tensor

    def __getattr__(self, name: str) -> "_AttributeOfValue":
        asking = sys._getframe(1)
        if is_asked_by(asking):
            if not hasattr(Tensor, name):
                if not self.tracer.is_tensor(self):
                    self.tracer.refuse(f"its forward method asks whether a value has {name}")
                raise AttributeError(f"'Tensor' object has no attribute '{name}'")
            is_compared = name in ALWAYS_THE_SAME_OBJECT and compares_identities(asking.f_code)
            if is_compared:
                self.tracer.refuse(f"its forward method may compare the {name} of a value with `is`")
        return _AttributeOfValue(self, name)  # type: ignore[arg-type]

    def __setattr__(self, name: str, value: Any) -> None:
        if is_asked_by(sys._getframe(1)):
            self.tracer.refuse(f"its forward method sets {name} of a value")
        super().__setattr__(name, value)

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


def _traced(network: nn.Module, *, training: bool = True, grad_enabled: bool = True) -> fx.Graph:
    refused: list[str] = []

    def refuse(reason: str) -> None:
        refused.append(reason)
        _not_traceable(reason)

    def look(name: str, args: tuple[Any, ...]) -> None:
        if any(isinstance(arg, fx.Proxy) for arg in args):
            refuse(f"its forward method calls an autograd function of its own ({name})")

    def look_at_call(frame: FrameType, event: str, _: Any) -> None:
        of_a_library = is_of_a_library(frame.f_globals.get("__name__"))
        if event == "call" and not of_a_library and asks_for_types(frame.f_code):
            refuse(f"its forward method asks for the type of a value ({frame.f_code.co_name})")

    for module in network.modules():
        module.__dict__["training"] = training
    with ExitStack() as surroundings:
        surroundings.enter_context(torch.set_grad_enabled(grad_enabled))
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            # Whatever the steps are computed in, so that a part that leaves it is noticed.
            surroundings.enter_context(torch.autocast(device, dtype=torch.bfloat16))
        surroundings.enter_context(_NothingIsComputed(refuse))
        surroundings.enter_context(autograd_functions_seen(look))
        surroundings.enter_context(unread_by_others(_parts_that_are_called(network), refuse))
        surroundings.enter_context(_calls_seen(look_at_call))
        graph = StepTracer(refuse).trace(network)
    if refused:  # and the forward method went on without
        _not_traceable(refused[0])
    return graph


def _parts_that_are_called(network: nn.Module) -> list[nn.Module]:
    """Those of whose calls a trace sees no more than that they are made."""
    return [part for part in network.modules() if part is not network and not is_seen_through(part)]


@contextmanager
def _calls_seen(look: Callable[[FrameType, str, Any], None]) -> Iterator[None]:
    """Within, `look` comes before each call of a Python function."""
    usual: Any = sys.getprofile()
    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(usual if callable(usual) else None)
        if hasattr(usual, "enable"):  # a profiler in C, which sets itself
            usual.enable()


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
    """What the network keeps, and what draws for it, are afterwards as before. Raises NotTraceable if something was changed
    within.

    Hooks of parts whose calls are seen are kept from values that are none.
    """
    modules = list(network.modules())
    own = [(module, "training", module.training) for module in modules]
    for module in filter(is_seen_through, modules):
        own += [(module, hooks, vars(module)[hooks]) for hooks in HOOKS_OF_A_LAYER]
        vars(module).update({hooks: OrderedDict() for hooks in HOOKS_OF_A_LAYER})
    kept = PythonState(network)
    try:
        if kept.iterators:
            raise NotTraceable(f"{kept.iterators[0]} goes on with each use, and cannot be put back")
        yield
        if where := kept.changed():
            raise NotTraceable(f"its forward method keeps something ({where})")
        if drawn := kept.drawn():
            raise NotTraceable(f"its forward method draws {drawn}")
    finally:
        kept.put_back()
        for module, name, value in own:
            vars(module)[name] = value
