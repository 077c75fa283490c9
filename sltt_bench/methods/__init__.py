"""The methods by name. A method says through what the gradient of one batch may flow, nothing else.

A method is an object with `accumulate_gradients(unroll)`; its factory takes the match of its name
and T. Third parties add methods with the entry-point group `sltt_bench.methods`: the entry's name
is a regular expression for the whole method name, its object such a factory.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from sltt_bench.plugins import PluginFailed, load_plugin, plugins

if TYPE_CHECKING:
    from sltt_bench.unroll import Unroll


class Method(Protocol):
    """How the gradients of one batch are made."""

    def accumulate_gradients(self, unroll: "Unroll") -> None:
        """Run all T steps of `unroll` forward and add gradients to the parameters' `.grad`."""


MethodFactory = Callable[[re.Match[str], int], Method]


def _bptt(name: re.Match[str], timesteps: int) -> Method:
    from sltt_bench.methods.bptt import BPTT

    return BPTT()


def _sltt(name: re.Match[str], timesteps: int) -> Method:
    from sltt_bench.methods.sltt import SLTT

    return SLTT()


def _sltt_k(name: re.Match[str], timesteps: int) -> Method:
    from sltt_bench.methods.sltt_k import SLTTK

    return SLTTK(int(name["k"]), timesteps, unbiased=name["unbiased"] is not None)


METHODS: dict[str, MethodFactory] = {
    r"bptt": _bptt,
    r"sltt": _sltt,
    r"sltt-k(?P<k>\d+)(?P<unbiased>-unbiased)?": _sltt_k,
}
"""Regular expression of the method's name → factory(match, T)."""

DESCRIPTIONS: dict[str, str] = {
    "bptt": "backpropagation through time: gradient through space and time, memory O(T)",
    "sltt": "spatial learning through time: each step's gradient at once, memory O(1) in T",
    "sltt-kN": "SLTT at N of T steps, drawn anew for each iteration; gradient about N/T of SLTT's",
    "sltt-kN-unbiased": "SLTT-K with the gradient scaled by T/N",
}


class UnknownMethod(ValueError):
    """No registered method has this name, or its K does not fit T."""


def create(name: str, timesteps: int) -> Method:
    """The method called `name` (for example "sltt-k4") for sequences of `timesteps` steps.

    Raises UnknownMethod.
    """
    match, factory = _find(name)
    try:
        return factory(match, timesteps)
    except ValueError as error:
        raise UnknownMethod(f"method {name!r}: {error}") from None
    except Exception as error:  # somebody else's factory
        raise UnknownMethod(f"method {name!r}: {type(error).__name__}: {error}") from error


def backward_steps(name: str) -> int | None:
    """K of "sltt-kK"; None for a method that uses every step. Raises UnknownMethod."""
    match, _ = _find(name)
    k = match.groupdict().get("k")
    return None if k is None else int(k)


def check(name: str, timesteps: int) -> None:
    """Raises UnknownMethod unless `create` would succeed. Cheap: built-in names do not load torch."""
    _, factory = _find(name)
    if factory not in METHODS.values():
        create(name, timesteps)
    elif not fits(name, timesteps):
        raise UnknownMethod(f"method {name!r}: {k_out_of_range(backward_steps(name), timesteps)}")


def fits(name: str, timesteps: int) -> bool:
    """Whether 1 ≤ K ≤ T; a method without K fits any T. Raises UnknownMethod."""
    k = backward_steps(name)
    return k is None or 1 <= k <= timesteps


def k_out_of_range(k: int | None, timesteps: int) -> str:
    """The one sentence for a K that does not fit T."""
    return f"SLTT-K needs 1 ≤ K ≤ T, but K = {k} and T = {timesteps}; choose another K or raise timesteps"


def _find(name: str) -> tuple[re.Match[str], MethodFactory]:
    for pattern, factory in METHODS.items():
        if match := re.fullmatch(pattern, name):
            return match, factory
    for entry in plugins("methods"):
        try:
            if match := re.fullmatch(entry.name, name):
                return match, load_plugin(entry)
        except PluginFailed as error:
            raise UnknownMethod(str(error)) from error
        except re.error:
            continue  # its name is no regular expression: no method is called so
    known = [*DESCRIPTIONS, *(entry.name for entry in plugins("methods"))]
    raise UnknownMethod(f"unknown method {name!r}; known: {', '.join(known)}")
