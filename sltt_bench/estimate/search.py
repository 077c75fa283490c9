"""The largest batch and the largest T that fit into a given memory, found by search and verified.

*Batch.* Every storage of an iteration grows affinely with the batch, so the recorded changes of live
memory at two batches give those at any other, and the peak is their largest partial sum. The answer
is verified by tracing it and the next larger batch; where that fails, bisection goes on.

*T.* Where the peaks at three successive T lie on a line, to the byte, the answer follows from it and is
verified in the same way; otherwise bisection. Memory may grow in other steps later on (a method that works in windows of
w steps), so that "no limit" is verified too, at LONGEST or the cell's own T if that is longer: there the search ends.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np

from sltt_bench import methods
from sltt_bench.estimate.trace import DeviceType, trace_memory
from sltt_bench.failures import too_few_for_batch_norm
from sltt_bench.plan import Cell

LONGEST = 64
"""No larger T is tried, but for the cell's own."""


def largest_batch_size(cell: Cell, device_type: DeviceType, memory_bytes: int) -> int:
    """The largest batch at the cell's T whose peak is at most `memory_bytes`, 0 if not even the smallest that the network
    can train on: 1, or 2 where batch norm would have a single value per channel.

    At most the number of training samples; found with as few traces as its proof needs.
    """

    def fits(batch_size: int) -> bool:
        try:
            return trace_memory(with_batch_size(cell, batch_size), device_type).peak_bytes <= memory_bytes
        except ValueError as error:
            if not too_few_for_batch_norm(error):
                raise
            return False

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
    """The largest T at the cell's batch that fits, 0 if not even the smallest that its method has, None if no limit is
    met: LONGEST fits, and the cell's own T.
    """

    @cache
    def peak_at(timesteps: int) -> int:
        return trace_memory(with_timesteps(cell, timesteps), device_type).peak_bytes

    def fits(timesteps: int) -> bool:
        return peak_at(timesteps) <= memory_bytes

    smallest, longest = smallest_timesteps(cell), max(LONGEST, cell.recipe.timesteps)
    if not fits(smallest):
        return 0
    start = max(2, smallest)
    if start + 2 < longest:
        growth = peak_at(start + 1) - peak_at(start)
        if peak_at(start + 2) == peak_at(start + 1) + growth:
            predicted = longest
            if growth > 0:
                predicted = min(longest, max(smallest, start + (memory_bytes - peak_at(start)) // growth))
            if fits(predicted) and (predicted == longest or not fits(predicted + 1)):
                return None if predicted == longest else predicted
    largest = last_that_fits(smallest, longest, fits)
    return None if largest == longest else largest


def smallest_timesteps(cell: Cell) -> int:
    """The smallest T that the cell's method has: the number of steps in its name, if there is one."""
    for timesteps in range(1, cell.recipe.timesteps):
        try:
            methods.check(cell.method, timesteps)
        except methods.UnknownMethod:
            continue
        return timesteps
    return cell.recipe.timesteps


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
