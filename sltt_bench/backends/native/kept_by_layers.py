"""What layers change in their calls, which a trace of a step does not make: nobody else may read it there.

A network that reads the state of one of its layers (a feedback from a higher one, a potential) finds in a trace what stood there
before the first step.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dis import get_instructions
from functools import partial
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from sltt_bench.neurons import SpikingNeuron, Stateful
from sltt_bench.python_state import CONTAINERS, is_of_a_library
from sltt_bench.torch_internals import HOOKS_OF_A_LAYER

USUAL = frozenset(vars(nn.Module()))
_ABSENT = object()


@contextmanager
def unread_by_others(layers: Iterable[nn.Module], refuse: Callable[[str], None]) -> Iterator[None]:
    """Within, `refuse` hears of whoever reads or sets what one of the layers changes in its calls."""
    kinds = {type(layer): _changed_in_calls(layer) for layer in layers}
    usual: list[tuple[type, str, Any]] = []
    try:
        for kind, names in kinds.items():
            for name in names:
                usual.append((kind, name, vars(kind).get(name, _ABSENT)))
                setattr(kind, name, _Unread(f"{name} of a {kind.__name__}", refuse))
        yield
    finally:
        for kind, name, value in reversed(usual):
            if value is _ABSENT:
                delattr(kind, name)
            else:
                setattr(kind, name, value)


class _Unread:
    """In the place of an attribute."""

    def __init__(self, what: str, refuse: Callable[[str], None]) -> None:
        self._what, self._refuse = what, refuse

    def __get__(self, layer: Any, kind: type) -> Any:
        self._refuse(f"its forward method reads what a layer keeps ({self._what})")

    def __set__(self, layer: Any, value: Any) -> None:
        self._refuse(f"its forward method sets what a layer keeps ({self._what})")


def _changed_in_calls(layer: nn.Module) -> set[str]:
    """Names of the attributes that a layer carries from step to step or sets outside of its construction."""
    names = set(layer.carried) if isinstance(layer, Stateful) else set()
    if isinstance(layer, SpikingNeuron):
        names.add("potential")
    for kind in type(layer).__mro__:
        if not is_of_a_library(kind.__module__):
            names.update(name for name, value in vars(layer).items() if isinstance(value, CONTAINERS))
            for function in vars(kind).values():
                if isinstance(function, FunctionType) and function.__name__ != "__init__":
                    names.update(_set_in(function.__code__))
    return names - USUAL


def hook_that_keeps_for(network: nn.Module, layers: Iterable[nn.Module]) -> str:
    """The kind of one of the layers whose hook holds a part of the network, or a list or mapping of one: what it keeps
    there a forward method may read. Empty if there is none."""
    held = {id(part) for part in network.modules()}
    for part in network.modules():
        held.update(id(v) for n, v in vars(part).items() if n not in USUAL and isinstance(v, CONTAINERS))
    for layer in layers:
        for hooks in HOOKS_OF_A_LAYER[:2]:
            for hook in vars(layer)[hooks].values():
                is_ours = is_of_a_library(getattr(hook, "__module__", None))
                if not is_ours and not held.isdisjoint(map(id, _held_by(hook))):
                    return type(layer).__name__
    return ""


def _held_by(function: Any) -> Iterator[Any]:
    """What a function, a method or a partial one has at hand."""
    yield getattr(function, "__self__", None)
    if isinstance(function, partial):
        yield from (*function.args, *function.keywords.values(), *_held_by(function.func))
    for cell in getattr(function, "__closure__", None) or ():
        with suppress(ValueError):  # nothing in it yet
            yield cell.cell_contents


def _set_in(code: CodeType) -> Iterator[str]:
    for instruction in get_instructions(code):
        if instruction.opname == "STORE_ATTR":
            yield instruction.argval
