"""Saves and restores the state that a network keeps in Python objects: counters, logs, random generators.

It covers the attributes of all layers and the objects they hold, at any depth, the attributes of their
classes, and everything that functions reach through closures, defaults and names of globals. Of objects of
torch, NumPy and this package it covers only lists, mappings, arrays and random generators. It does not cover
the clock, files and other processes.
"""

import io
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from functools import _lru_cache_wrapper, partial
from hashlib import sha1
from types import CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sltt_bench.torch_internals import unset_fake_temporarily

LIBRARIES = sys.stdlib_module_names | {
    "torch", "torchvision", "triton", "sympy", "mpmath", "networkx", "jinja2", "typing_extensions", "numpy", "pydantic",
    "pydantic_core", "sltt_bench",
}  # fmt: skip
"""Packages whose functions and classes hold no state of a network: this one, torch and their dependencies."""
CONTAINERS = (list, dict, set, deque)
NUMBERS = (int, float, complex, str, np.generic)
_ABSENT = object()


@dataclass(frozen=True)
class Whereabouts:
    """The place of an object, for messages."""

    owner: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.name} of {self.owner}" if self.name else self.owner

    def attribute(self, name: str) -> "Whereabouts":
        return Whereabouts(self.owner, f"{self.name}.{name}" if self.name else name)

    def item(self, key: object) -> "Whereabouts":
        return Whereabouts(self.owner, f"{self.name}[{key!r:.40}]")


@dataclass(frozen=True)
class _Held:
    """One object that may change, with its saved content."""

    place: Whereabouts
    before: Any
    read: Callable[[], Any]
    put_back: Callable[[Any], Any]
    is_generator: bool = False

    def has_changed(self) -> bool:
        now = self.read()
        if self.is_generator:
            return not _are_equal(self.before, now)
        if not isinstance(now, dict):
            return not _are_the_same(self.before, now)
        names = self.before.keys() | now.keys()
        return any(self.before.get(name, _ABSENT) is not now.get(name, _ABSENT) for name in names)


EVERYBODYS = Whereabouts("random numbers that are not torch's")
"""Place of the generators of Python's and NumPy's modules."""


class PythonState:
    """A snapshot of the state that a network keeps in Python objects."""

    def __init__(self, network: nn.Module) -> None:
        self.numbers: dict[str, str] = {}
        """Place of a number, a string or a list of them → its value as text."""
        self.iterators: list[str] = []
        """Places of objects that every use advances and that cannot be restored."""
        self._held: list[_Held] = []
        self._known: dict[int, Any] = {}
        """Objects visited, by id; the reference keeps the id from being reused."""
        self._hold_generator(EVERYBODYS, random.getstate, random.setstate)
        self._hold_generator(EVERYBODYS, np.random.get_state, np.random.set_state)
        layers = {
            id(layer): Whereabouts(f"layer {path}" if path else "the network")
            for path, layer in network.named_modules()
        }
        self._open: deque[tuple[Whereabouts, Any]] = deque([(layers[id(network)], network)])
        while self._open:
            place, value = self._open.popleft()
            if id(value) not in self._known:
                self._known[id(value)] = value
                self._look_at(layers.get(id(value), place), value)

    def drawn(self) -> str:
        """Returns in words which generators were drawn from, except torch's global one; empty if none."""
        places = [held.place for held in self._held if held.is_generator and held.has_changed()]
        if not places:
            return ""
        return (
            str(EVERYBODYS) if EVERYBODYS in places else f"from a random generator of its own ({places[0]})"
        )

    def put_back(self) -> None:
        for held in self._held:
            if held.has_changed():
                held.put_back(held.before)

    def _look_at(self, place: Whereabouts, value: Any) -> None:
        match value:
            case nn.Module():
                self._hold_attributes(place, vars(value))
                self._open.append((place, type(value)))
            case random.SystemRandom():
                self.iterators.append(str(place))
            case random.Random() | np.random.Generator() | np.random.RandomState() | torch.Generator():
                self._hold_generator(place, *_access_to(value))
            case np.ndarray():
                self.numbers[str(place)] = sha1(value.tobytes()).hexdigest()
                self._hold(place, value.copy(), value.copy, partial(_write, value))
            case list() | dict() | set() | deque() | tuple() | frozenset():
                self._look_into(place, value)
            case type():
                self._look_at_class(value)
            case FunctionType():
                self._look_at_function(place, value)
            case MethodType():
                self._open += [(place, value.__self__), (place, value.__func__)]
            case partial():
                self._open += [(place, value.func), (place, value.args), (place, value.keywords)]
            case staticmethod() | classmethod():
                self._open.append((place, value.__func__))
            case property():
                self._open += [(place, function) for function in (value.fget, value.fset) if function]
            case _:
                self._look_at_object(place, value)

    def _look_into(self, place: Whereabouts, value: Any) -> None:
        """Visit a list or a mapping."""
        if isinstance(value, CONTAINERS):
            content = copy(value)
            self._hold(place, list(_flat(value)), lambda: list(_flat(value)), lambda _: _fill(value, content))
        items = value.items() if isinstance(value, dict) else enumerate(value)
        self._note_numbers(place, list(value.values() if isinstance(value, dict) else value))
        self._open += [(place.item(key), each) for key, each in items if not isinstance(each, NUMBERS)]
        if type(value).__module__.split(".")[0] not in LIBRARIES | {"builtins", "collections"}:
            self._look_at_object(place, value)

    def _note_numbers(self, place: Whereabouts, values: list[Any]) -> None:
        if all(isinstance(value, NUMBERS) for value in values):
            self.numbers[str(place)] = repr(values)

    def _hold_attributes(self, place: Whereabouts, attributes: dict[str, Any]) -> None:
        def read() -> dict[str, Any]:
            return {name: value for name, value in attributes.items() if name != "training"}

        def put_back(before: dict[str, Any]) -> None:
            for name in read().keys() - before.keys():
                del attributes[name]
            attributes.update(before)

        self._hold(place, read(), read, put_back)
        self._go_on_with(place, read())

    def _go_on_with(self, place: Whereabouts, attributes: Mapping[str, Any]) -> None:
        for name, value in attributes.items():
            if isinstance(value, NUMBERS):
                self.numbers[str(place.attribute(name))] = repr(value)
            else:
                self._open.append((place.attribute(name), value))

    def _look_at_class(self, cls: type) -> None:
        for base in cls.__mro__:
            if is_of_a_library(base.__module__) or (base is not cls and id(base) in self._known):
                continue
            self._known[id(base)] = base
            place = Whereabouts(f"class {base.__name__}")

            def read(base: type = base) -> dict[str, Any]:
                return {name: value for name, value in vars(base).items() if not name.startswith("__")}

            def put_back(before: dict[str, Any], base: type = base) -> None:
                for name in read(base).keys() - before.keys():
                    delattr(base, name)
                for name, value in before.items():
                    if vars(base)[name] is not value:
                        setattr(base, name, value)

            self._hold(place, read(), read, put_back)
            functions = {n: v for n, v in vars(base).items() if n.startswith("__") and callable(v)}
            self._go_on_with(place, {**read(), **functions})

    def _look_at_function(self, place: Whereabouts, function: FunctionType) -> None:
        self._open.append((place, getattr(function, "__wrapped__", None)))
        self._hold_cells(place, function)
        if is_of_a_library(function.__globals__.get("__name__")):
            return
        self._hold_attributes(Whereabouts(f"function {function.__name__}"), vars(function))
        self._open += [(place, function.__defaults__), (place, function.__kwdefaults__)]
        self._hold_globals(function.__globals__, set(_names(function.__code__)))

    def _hold_cells(self, place: Whereabouts, function: FunctionType) -> None:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if id(cell) in self._known:
                continue
            self._known[id(cell)] = cell

            def read(cell: Any = cell, name: str = name) -> dict[str, Any]:
                try:
                    return {name: cell.cell_contents}
                except ValueError:  # an empty cell
                    return {}

            def put_back(before: dict[str, Any], cell: Any = cell) -> None:
                for value in before.values():
                    cell.cell_contents = value

            within = Whereabouts(f"function {function.__name__}")
            self._hold(within, read(), read, put_back)
            self._go_on_with(within, read())

    def _hold_globals(self, namespace: dict[str, Any], names: set[str]) -> None:
        def read() -> dict[str, Any]:
            return {name: namespace[name] for name in names if name in namespace}

        def put_back(before: dict[str, Any]) -> None:
            for name in read().keys() - before.keys():
                del namespace[name]
            namespace.update(before)

        place = Whereabouts(f"module {namespace.get('__name__')}")
        values = read()
        self._hold(place, values, read, put_back)
        for value in values.values():
            if isinstance(value, ModuleType) and not is_of_a_library(value.__name__):
                self._hold_globals_once(vars(value), names)
        self._go_on_with(place, values)

    def _hold_globals_once(self, namespace: dict[str, Any], names: set[str]) -> None:
        """Hold the globals `names` of a module that a function of another module may use."""
        key = (id(namespace), frozenset(names))
        if hash(key) not in self._known:
            self._known[hash(key)] = key
            self._hold_globals(namespace, names)

    def _look_at_object(self, place: Whereabouts, value: Any) -> None:
        """Visit an object of a class that is not known, such as a user's."""
        cls = type(value)
        if is_of_a_library(cls.__module__) and not isinstance(value, SimpleNamespace):
            if isinstance(value, Iterator) and not isinstance(value, (io.IOBase, Tensor)):
                self.iterators.append(str(place))
            if isinstance(value, _lru_cache_wrapper):
                self._open.append((place, value.__wrapped__))
            return
        self._open.append((place, cls))
        if isinstance(attributes := getattr(value, "__dict__", None), dict):
            self._hold_attributes(place, attributes)
        slots = [n for base in cls.__mro__ for n in _slots_of(base)]
        if slots:
            self._hold_slots(place, value, slots)

    def _hold_slots(self, place: Whereabouts, value: Any, slots: list[str]) -> None:
        def read() -> dict[str, Any]:
            return {name: getattr(value, name) for name in slots if hasattr(value, name)}

        def put_back(before: dict[str, Any]) -> None:
            for name, each in before.items():
                object.__setattr__(value, name, each)

        self._hold(place, read(), read, put_back)
        self._go_on_with(place, read())

    def _hold_generator(
        self, place: Whereabouts, read: Callable[[], Any], put_back: Callable[[Any], Any]
    ) -> None:
        self._hold(place, read(), read, put_back, is_generator=True)

    def _hold(
        self,
        place: Whereabouts,
        before: Any,
        read: Callable[[], Any],
        put_back: Callable[[Any], Any],
        *,
        is_generator: bool = False,
    ) -> None:
        self._held.append(_Held(place, before, read, put_back, is_generator))


def is_of_a_library(module: Any) -> bool:
    """Whether the module with this name belongs to one of LIBRARIES."""
    return str(module).split(".")[0] in LIBRARIES


def _slots_of(cls: type) -> list[str]:
    slots = vars(cls).get("__slots__", ())
    return [
        n for n in ((slots,) if isinstance(slots, str) else slots) if n not in ("__dict__", "__weakref__")
    ]


def _names(code: CodeType) -> Iterator[str]:
    """Yields the names of globals and attributes that a function and the functions within it use."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _access_to(generator: Any) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    """Returns functions that read and write the state of a random generator."""
    match generator:
        case random.Random():
            return generator.getstate, generator.setstate
        case torch.Generator():
            return partial(_state_of, generator), partial(_put_back_state, generator)
        case np.random.RandomState():
            return generator.get_state, generator.set_state
    bits = generator.bit_generator
    return (lambda: bits.state), partial(setattr, bits, "state")


def _state_of(generator: torch.Generator) -> Any:
    """Returns the state as a NumPy array, also where tensors are fake."""
    with unset_fake_temporarily():  # type: ignore[no-untyped-call]
        return generator.get_state().numpy().copy()


def _put_back_state(generator: torch.Generator, state: Any) -> None:
    with unset_fake_temporarily():  # type: ignore[no-untyped-call]
        generator.set_state(torch.from_numpy(state))


def _are_equal(one: Any, other: Any) -> bool:
    """Whether two states of random generators are equal."""
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_are_equal(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_are_equal, one, other))
    return bool(np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other)


def _are_the_same(one: Any, other: Any) -> bool:
    """Whether two copies of a list hold the same objects, or two copies of an array the same numbers."""
    if isinstance(one, np.ndarray):
        return bool(one.shape == other.shape and one.tobytes() == other.tobytes())
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def _flat(held: Any) -> Iterator[Any]:
    for each in held:
        yield each
        if isinstance(held, dict):
            yield held[each]


def _write(array: Any, before: Any) -> None:
    array[...] = before


def _fill(held: Any, before: Any) -> None:
    held.clear()
    (held.extend if isinstance(held, (list, deque)) else held.update)(before)
