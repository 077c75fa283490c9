"""What layers change in their calls, which a trace of a step does not make: nobody else may read it there.

A network that reads the state of one of its layers (a feedback from a higher one, a potential) finds in a trace what stood there
before the first step.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dis import get_instructions
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from sltt_bench.neurons import SpikingNeuron, Stateful
from sltt_bench.python_state import is_of_a_library

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
            for function in vars(kind).values():
                if isinstance(function, FunctionType) and function.__name__ != "__init__":
                    names.update(_set_in(function.__code__))
    return names - USUAL


def _set_in(code: CodeType) -> Iterator[str]:
    for instruction in get_instructions(code):
        if instruction.opname == "STORE_ATTR":
            yield instruction.argval
