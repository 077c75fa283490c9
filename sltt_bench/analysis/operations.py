"""Counts a method's multiplications in one training iteration: forward, and backward in space and in time.

They are counted while the iteration runs; `measure.operations` defines what counts as a multiplication.
The multiplications that BPTT's backward pass has beyond SLTT's are the cost of the temporal part.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from sltt_bench.analysis.gradients import TrainingBatch, undisturbed
from sltt_bench.measure.fake_tensors import Executing
from sltt_bench.measure.operations import OperationCounter, in_phase


class Multiplications(NamedTuple):
    """Multiplications of one iteration (one batch, all T steps), named as the columns of operations.csv."""

    counted_method: str
    forward_multiplications: int
    spatial_multiplications: int
    """Those of the backward pass in space."""
    temporal_multiplications: int
    """Those of the backward pass beyond SLTT's: through time, for traces or for recomputation."""


def count_methods(batch: TrainingBatch, names: Sequence[str]) -> list[Multiplications]:
    """Returns the multiplications of one iteration of each method; leaves the network as it was.

    For plain autograd only, since a fused kernel hides its products. Raises UnknownMethod.
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
    """Returns a method's (forward, backward) multiplications in one iteration. Raises UnknownMethod."""
    never_stepped = torch.optim.SGD(batch.network.parameters(), lr=0.0)
    counter = OperationCounter(batch.network, never_stepped, lambda func, args, kwargs: func(*args, **kwargs))
    with undisturbed(batch.network), counter.watching(), Executing(counter.count):
        batch.run(method)
    counts = counter.operations.multiplications
    return in_phase(counts, "forward"), in_phase(counts, "backward")
