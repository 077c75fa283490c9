"""The largest batch and the largest T that fit into a given memory, found by search and verified.

*Batch.* Every storage of an iteration grows affinely with the batch, so the recorded changes of live
memory at two small batches give those at any other, and the peak is their largest partial sum. The
answer is verified by tracing it and the next larger batch; where that fails, bisection goes on.

*T.* Where the peaks at T, 2T and 4T lie on a line, to the byte, the answer follows from it and is
verified in the same way; otherwise bisection. At LONGEST the search ends.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from sltt_bench import methods
from sltt_bench.estimate.trace import DeviceType, Trace, trace_iteration
from sltt_bench.plan import Cell

SMALL_BATCHES = (4, 8)
"""Two batches from which the others follow."""

LONGEST = 64
"""No larger T is tried."""


@dataclass(frozen=True)
class Limits:
    """What fits into a memory; 0 where nothing does."""

    memory_bytes: int
    largest_batch_size: int
    """At the cell's T; at most the number of training samples."""
    largest_timesteps: int | None
    """At the cell's batch size; None where no limit was met: LONGEST fits."""


def find_limits(cell: Cell, device_type: DeviceType, memory_bytes: int) -> Limits:
    """Search with as few traces as the answer's proof needs."""
    return Limits(
        memory_bytes,
        largest_batch_size(cell, device_type, memory_bytes),
        largest_timesteps(cell, device_type, memory_bytes),
    )


def largest_batch_size(cell: Cell, device_type: DeviceType, memory_bytes: int) -> int:
    """The largest batch at the cell's T whose peak is at most `memory_bytes`, 0 if not even one of 1."""

    def fits(batch_size: int) -> bool:
        return trace_iteration(with_batch_size(cell, batch_size), device_type).peak_bytes <= memory_bytes

    samples = cell.recipe.data.train_samples
    small, large = (trace_iteration(with_batch_size(cell, b), device_type) for b in SMALL_BATCHES)
    predicted = last_that_fits(
        1, samples, lambda batch_size: predicted_peak(small, large, batch_size) <= memory_bytes
    )
    if predicted > 0 and not fits(predicted):
        return last_that_fits(1, predicted - 1, fits)
    if predicted < samples and fits(predicted + 1):
        return last_that_fits(predicted + 1, samples, fits)
    return predicted


def predicted_peak(small: Trace, large: Trace, batch_size: int) -> int:
    """The peak at a batch from the traces at SMALL_BATCHES.

    Raises ValueError if the two iterations are not the same sequence of events.
    """
    if len(small.changes) != len(large.changes):
        raise ValueError(
            "the iteration takes another course at another batch size; its peak cannot be predicted"
        )
    first, second = SMALL_BATCHES
    base = np.asarray(small.changes, dtype=np.int64)
    slope = (np.asarray(large.changes, dtype=np.int64) - base) // (second - first)
    return int(np.cumsum(base + slope * (batch_size - first)).max())


def largest_timesteps(cell: Cell, device_type: DeviceType, memory_bytes: int) -> int | None:
    """The largest T at the cell's batch that fits, 0 if not even the smallest, None if no limit is met."""
    traces: dict[int, Trace] = {}

    def trace(timesteps: int) -> Trace:
        if timesteps not in traces:
            traces[timesteps] = trace_iteration(with_timesteps(cell, timesteps), device_type)
        return traces[timesteps]

    def fits(timesteps: int) -> bool:
        return trace(timesteps).peak_bytes <= memory_bytes

    smallest = 1 if cell.k is None else cell.k
    if not fits(smallest):
        return 0
    start = max(2, smallest)
    peak, growth = trace(start).peak_bytes, trace(2 * start).peak_bytes - trace(start).peak_bytes
    if trace(4 * start).peak_bytes == peak + 3 * growth:
        if peak + growth * (LONGEST - start) // start <= memory_bytes:
            return None
        predicted = max(smallest, start + (memory_bytes - peak) * start // growth)
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
