"""Multiplications of one training iteration by method: forward, and backward in space and in time.

Counted as the iteration runs; `measure.operations` says what counts as a multiplication. What
BPTT's backward pass multiplies beyond SLTT's is what the temporal part costs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from sltt_bench.analysis.gradients import TrainingBatch, undisturbed
from sltt_bench.measure.fake_tensors import Executing
from sltt_bench.measure.operations import OperationCounter, in_phase


class Multiplications(NamedTuple):
    """Multiplications of one iteration, one batch and all T steps, by their columns of operations.csv."""

    counted_method: str
    forward_multiplications: int
    spatial_multiplications: int
    """Of the backward pass, in space."""
    temporal_multiplications: int
    """Of the backward pass beyond SLTT's: through time, or for traces and what is computed again."""


def count_methods(batch: TrainingBatch, names: Sequence[str]) -> list[Multiplications]:
    """The multiplications of an iteration of some methods; leaves the network as it was.

    Plain autograd only: a fused kernel hides its products. Raises UnknownMethod.
    """
    counted = {name: count(batch, name) for name in dict.fromkeys(["sltt", *names])}
    _, in_space = counted["sltt"]
    rows = []
    for name in names:
        forward, backward = counted[name]
        spatial = min(backward, in_space)
        rows.append(Multiplications(name, forward, spatial, backward - spatial))
    return rows


def count(batch: TrainingBatch, method: str) -> tuple[int, int]:
    """(forward, backward) multiplications of one iteration of a method. Raises UnknownMethod."""
    never_stepped = torch.optim.SGD(batch.network.parameters(), lr=0.0)
    counter = OperationCounter(batch.network, never_stepped, lambda func, args, kwargs: func(*args, **kwargs))
    with undisturbed(batch.network), counter.watching(), Executing(counter.count):
        batch.run(method)
    counts = counter.operations.multiplications
    return in_phase(counts, "forward"), in_phase(counts, "backward")
