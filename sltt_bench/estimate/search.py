"""The largest batch and the largest T that fit into a given memory, found by search and verified.

*Batch.* Every storage of an iteration grows affinely with the batch, so the recorded changes of live
memory at two batches give those at any other, and the peak is their largest partial sum. The answer
is verified by tracing it and the next larger batch; where that fails, bisection goes on.

*T.* Where the peaks at three successive T lie on a line, to the byte, the answer follows from it and is
verified in the same way; otherwise bisection. At LONGEST the search ends.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np

from sltt_bench import methods
from sltt_bench.estimate.trace import DeviceType, trace_memory
from sltt_bench.plan import Cell

LONGEST = 64
"""No larger T is tried."""


def largest_batch_size(cell: Cell, device_type: DeviceType, memory_bytes: int) -> int:
    """The largest batch at the cell's T whose peak is at most `memory_bytes`, 0 if not even one of 1.

    At most the number of training samples; found with as few traces as its proof needs.
    """

    def fits(batch_size: int) -> bool:
        return trace_memory(with_batch_size(cell, batch_size), device_type).peak_bytes <= memory_bytes

    samples = cell.recipe.data.train_samples
    peak_at = predicted_peaks(cell, device_type)
    if peak_at is None:
        return last_that_fits(1, samples, fits)
    predicted = last_that_fits(1, samples, lambda batch_size: peak_at(batch_size) <= memory_bytes)
    if predicted > 0 and not fits(predicted):
        return last_that_fits(1, predicted - 1, fits)
    if predicted < samples and fits(predicted + 1):
        return last_that_fits(predicted + 1, samples, fits)
    return predicted


def predicted_peaks(cell: Cell, device_type: DeviceType) -> Callable[[int], int] | None:
    """Batch → peak, from traces at the cell's batch and at twice as much.

    None if the two iterations are not the same sequence of events.
    """
    batch_size = cell.recipe.train.batch_size
    base, doubled = (
        np.asarray(trace_memory(with_batch_size(cell, b), device_type).changes, dtype=np.int64)
        for b in (batch_size, 2 * batch_size)
    )
    if base.shape != doubled.shape:
        return None
    slope = (doubled - base) // batch_size
    return lambda other: int(np.cumsum(base + slope * (other - batch_size)).max())


def largest_timesteps(cell: Cell, device_type: DeviceType, memory_bytes: int) -> int | None:
    """The largest T at the cell's batch that fits, 0 if not even the smallest, None if no limit is met: LONGEST fits."""

    @cache
    def peak_at(timesteps: int) -> int:
        return trace_memory(with_timesteps(cell, timesteps), device_type).peak_bytes

    def fits(timesteps: int) -> bool:
        return peak_at(timesteps) <= memory_bytes

    smallest = 1 if cell.k is None else cell.k
    if not fits(smallest):
        return 0
    start = max(2, smallest)
    growth = peak_at(start + 1) - peak_at(start)
    if peak_at(start + 2) == peak_at(start + 1) + growth:
        room = memory_bytes - peak_at(start)
        if growth * (LONGEST - start) <= room:
            return None
        predicted = max(smallest, start + room // growth)
        if fits(predicted) and not fits(predicted + 1):
            return predicted
    largest = last_that_fits(smallest, LONGEST, fits)
    return None if largest == LONGEST else largest


def last_that_fits(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The largest number in low … high that fits, if those that fit come first; low − 1 if none does."""
    low -= 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def with_batch_size(cell: Cell, batch_size: int) -> Cell:
    """The cell at another batch size."""
    train = cell.recipe.train.model_copy(update={"batch_size": batch_size})
    return replace(cell, recipe=cell.recipe.model_copy(update={"train": train}))


def with_timesteps(cell: Cell, timesteps: int) -> Cell:
    """The cell at another T. Raises UnknownMethod where the method's K does not fit."""
    methods.check(cell.method, timesteps)
    return replace(cell, recipe=cell.recipe.model_copy(update={"timesteps": timesteps}))
