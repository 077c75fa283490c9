"""Searches for the largest batch and the largest T that fit into a given memory, and verifies them.

*Batch.* Every storage of an iteration is an affine function of the samples that a process has of the batch.
So the changes of live memory recorded at two batches give those at any other batch, and the peak is their
largest partial sum. The answer is verified by tracing it and the next larger batch; if that fails, bisection
goes on.

*T.* If the peaks at three T lie on a line, to the byte, the line gives the answer, which is verified in the
same way; otherwise bisection finds it. Memory may grow differently at larger T (a method that works in
windows of w steps), so "no limit" is verified too, at the longest T: LONGEST, or the cell's own if that is
longer. The search ends there. If nothing suggests that the longest T does not fit, it is traced first, since
it answers alone.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np

from sltt_bench import methods
from sltt_bench.common.failures import too_few_for_batch_norm
from sltt_bench.estimate.trace import DeviceType, largest_share, trace_memory
from sltt_bench.measure.iteration_memory import IterationMemory
from sltt_bench.planning.plan import Cell

LONGEST = 64
"""The largest T that is tried, unless the cell's own is larger."""


def largest_batch_size(
    cell: Cell, device_type: DeviceType, memory_bytes: int, memory: IterationMemory | None = None
) -> int:
    """The largest batch at the cell's T whose peak is at most `memory_bytes` in each of the processes that share it, 0 if
    not even the smallest that the network can train on: a sample for each, or 2 where batch norm would have a single
    value per channel.

    It is one that a run takes: at most the training samples of an epoch, and so that what is left of them in its last batch
    is as much as the smallest too. `memory` is the cell's own, where it is known.
    """
    of_cell = cell.recipe.train.batch_size

    @cache
    def traced(batch_size: int) -> IterationMemory:
        if memory is not None and batch_size == of_cell:
            return memory
        return trace_memory(with_batch_size(cell, batch_size), device_type)

    def fits(batch_size: int) -> bool:
        try:
            return traced(batch_size).peak_bytes <= memory_bytes
        except ValueError as error:
            if not too_few_for_batch_norm(error):
                raise
            return False

    @cache
    def trains_on_one() -> bool:
        try:
            traced(smallest)
        except ValueError as error:
            if not too_few_for_batch_norm(error):
                raise
            return False
        return True

    def is_taken(batch_size: int) -> bool:
        share = with_batch_size(cell, batch_size).recipe.train.smallest_share(samples)
        return share > 1 or (share == 1 and trains_on_one())

    smallest, samples = cell.recipe.train.devices, cell.recipe.epoch_samples(synthetic=cell.synthetic)
    largest = _largest_predicted(predicted_peaks(cell, traced), smallest, samples, memory_bytes, fits)
    return next((batch_size for batch_size in range(largest, smallest - 1, -1) if is_taken(batch_size)), 0)


def _largest_predicted(
    peak_at: Callable[[int], int] | None, low: int, high: int, memory_bytes: int, fits: Callable[[int], bool]
) -> int:
    """Returns the largest batch in low … high that fits; low − 1 if none does.

    The prediction of `peak_at` is tried first, and bisection corrects it if it is wrong.
    """
    if peak_at is None:
        return last_that_fits(low, high, fits)
    predicted = last_that_fits(low, high, lambda batch_size: peak_at(batch_size) <= memory_bytes)
    if predicted >= low and not fits(predicted):
        return last_that_fits(low, predicted - 1, fits)
    if predicted < high and fits(predicted + 1):
        return last_that_fits(predicted + 1, high, fits)
    return predicted


def predicted_peaks(cell: Cell, traced: Callable[[int], IterationMemory]) -> Callable[[int], int] | None:
    """Returns a function batch → peak, from the traces at the cell's batch and at twice that.

    None if the two iterations are not the same sequence of events.
    """
    batch_size, devices = cell.recipe.train.batch_size, cell.recipe.train.devices
    base, doubled = (np.asarray(traced(b).changes, dtype=np.int64) for b in (batch_size, 2 * batch_size))
    if base.shape != doubled.shape:
        return None
    samples = largest_share(batch_size, devices)
    slope = (doubled - base) // (largest_share(2 * batch_size, devices) - samples)
    return lambda other: int(np.cumsum(base + slope * (largest_share(other, devices) - samples)).max())


def largest_timesteps(
    cell: Cell, device_type: DeviceType, memory_bytes: int, memory: IterationMemory | None = None
) -> int | None:
    """Returns the largest T that fits at the cell's batch; 0 if not even the smallest of its method does.

    None if no limit is met: LONGEST and the cell's own T both fit. `memory` is the cell's own, if known.
    """
    of_cell = cell.recipe.timesteps

    @cache
    def peak_at(timesteps: int) -> int:
        if memory is not None and timesteps == of_cell:
            return memory.peak_bytes
        return trace_memory(with_timesteps(cell, timesteps), device_type).peak_bytes

    def fits(timesteps: int) -> bool:
        return peak_at(timesteps) <= memory_bytes

    smallest, longest = smallest_timesteps(cell), max(LONGEST, of_cell)
    start = max(2, smallest)  # a first step has no state yet
    if not fits(start):
        return last_that_fits(smallest, start - 1, fits) if smallest < start else 0
    predicted = _predicted_timesteps(peak_at, start, of_cell, longest, memory_bytes)
    if predicted < longest and fits(predicted) and not fits(predicted + 1):
        return predicted
    return None if fits(longest) else last_that_fits(start, longest - 1, fits)


def _predicted_timesteps(
    peak_at: Callable[[int], int], start: int, of_cell: int, longest: int, memory_bytes: int
) -> int:
    """Returns the largest T from `start` on that fits if memory grows on a line.

    `longest` if memory does not grow on a line, so that nothing suggests a limit.
    """
    third = max(of_cell, start + 2)
    if third > longest or (of_cell > start and peak_at(of_cell) == peak_at(start)):
        return longest
    growth = peak_at(start + 1) - peak_at(start)
    if growth <= 0 or peak_at(third) - peak_at(start) != growth * (third - start):
        return longest
    return min(longest, start + (memory_bytes - peak_at(start)) // growth)


def smallest_timesteps(cell: Cell) -> int:
    """Returns the smallest T that the cell's method allows: the number of steps in its name, if any."""
    for timesteps in range(1, cell.recipe.timesteps):
        try:
            methods.check(cell.method, timesteps)
        except methods.UnknownMethod:
            continue
        return timesteps
    return cell.recipe.timesteps


def last_that_fits(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """Returns the largest number in low … high that fits; low − 1 if none does.

    Assumes that all smaller numbers fit too.
    """
    low -= 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def with_batch_size(cell: Cell, batch_size: int) -> Cell:
    """Returns the cell at another batch size."""
    train = cell.recipe.train.model_copy(update={"batch_size": batch_size})
    return replace(cell, recipe=cell.recipe.model_copy(update={"train": train}))


def with_timesteps(cell: Cell, timesteps: int) -> Cell:
    """Returns the cell at another T. Raises UnknownMethod if the method's K exceeds it."""
    methods.check(cell.method, timesteps)
    return replace(cell, recipe=cell.recipe.model_copy(update={"timesteps": timesteps}))
