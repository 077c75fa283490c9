"""Chooses the units whose graphs `units` keeps for the backward pass, by their sizes: all that cost no memory.

The peak of memory lies where the backward pass goes through the unit that needs most, with all that the units
before it have left. Graphs of later units are gone by then, so they may be kept as long as no moment before
needs more. A graph holds u of every step and, with batch norm, the input x of the norm. If only x is kept, with
the graph of the convolutions that made it, the neurons alone are computed again: half the memory of a graph
spares nearly all of the work. So x of all units comes first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class UnitSize:
    """Bytes of a unit, in the order of computation."""

    up_to_x: int
    """Its graph up to x at one step; 0 if it has none of its own."""
    graph: int
    """Its whole graph at one step."""
    at_once: int
    """Steps of which the backward pass holds the graph at once."""
    gradients: int
    """Gradients, of all steps, that wait while the backward pass goes through it."""
    left: int
    """What the forward pass leaves of it in any case, of all steps."""


@dataclass(frozen=True)
class KeptGraph:
    """The first steps of a unit that keep their graphs."""

    steps_of_x: int = 0
    """Up to x."""
    is_whole: bool = False
    """All steps, up to the spikes."""


def graphs_that_fit(units: Sequence[UnitSize], timesteps: int) -> list[KeptGraph]:
    """Returns what each unit keeps so that the peak is as without, the last units first."""
    left = [unit.left for unit in units]
    at_work = [unit.gradients + unit.graph * unit.at_once for unit in units]
    peak = max(before + work for before, work in zip(accumulate(left, initial=0), at_work, strict=False))

    def steps_kept(sizes: Sequence[int], *, all_or_none: bool) -> list[int]:
        """Returns how many steps of `sizes` bytes units keep; counts them as left."""
        before, free, steps = sum(left), peak - sum(left), [0] * len(units)
        for number, size in reversed(list(enumerate(sizes))):
            before -= left[number]
            own = peak - before - at_work[number] + size * units[number].at_once
            fitting = min(timesteps, min(free, own) // size) if size else 0
            steps[number] = fitting if fitting == timesteps or not all_or_none else 0
            left[number] += size * steps[number]
            at_work[number] += size * max(0, steps[number] - units[number].at_once)
            free = min(free - size * steps[number], peak - before - at_work[number])
        return steps

    of_x = steps_kept([unit.up_to_x for unit in units], all_or_none=False)
    rest = [
        unit.graph - unit.up_to_x if steps == timesteps or not unit.up_to_x else 0
        for unit, steps in zip(units, of_x, strict=True)
    ]
    whole = steps_kept(rest, all_or_none=True)
    return [KeptGraph(0 if every else some, bool(every)) for some, every in zip(of_x, whole, strict=True)]
