"""Multiplications of one training iteration by method: forward, and backward in space and in time.

Counted as the iteration runs; `estimate.operations` says what counts as a multiplication. What
BPTT's backward pass multiplies beyond SLTT's is what the temporal part costs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sltt_bench import methods
from sltt_bench.analysis.gradients import undisturbed
from sltt_bench.measure.operations import OperationCounter
from sltt_bench.unroll import StepLoss, Unroll


@dataclass(frozen=True)
class Multiplications:
    """Multiplications of one iteration: one batch, all T steps."""

    method: str
    forward: int
    spatial: int
    """Of the backward pass, in space."""
    temporal: int
    """Of the backward pass beyond SLTT's: through time, or for traces and what is computed again."""


def count_methods(
    network: nn.Module,
    inputs: Sequence[Tensor],
    loss: StepLoss,
    names: Sequence[str],
    *,
    window: int | None = None,
) -> list[Multiplications]:
    """The multiplications of an iteration of some methods; leaves the network as it was.

    Plain autograd only: a fused kernel hides its products. `inputs`, `loss` and `window` are as for
    `decompose`. Raises UnknownMethod.
    """
    counted = {
        name: count(network, inputs, loss, name, window=window) for name in dict.fromkeys(["sltt", *names])
    }
    _, in_space = counted["sltt"]
    rows = []
    for name in names:
        forward, backward = counted[name]
        spatial = min(backward, in_space)
        rows.append(Multiplications(name, forward, spatial, backward - spatial))
    return rows


def count(
    network: nn.Module,
    inputs: Sequence[Tensor],
    loss: StepLoss,
    method: str,
    *,
    window: int | None = None,
) -> tuple[int, int]:
    """(forward, backward) multiplications of one iteration of a method. Raises UnknownMethod."""
    never_stepped = torch.optim.SGD(network.parameters(), lr=0.0)
    counter = OperationCounter(network, never_stepped, lambda func, args, kwargs: func(*args, **kwargs))
    with undisturbed(network), counter.counting():
        draws = torch.Generator().manual_seed(0)
        unroll = Unroll(network, inputs, loss, generator=draws, window=window)
        methods.create(method, len(inputs)).accumulate_gradients(unroll)
    operations = counter.operations
    return (
        operations.total(lambda place: place.phase == "forward"),
        operations.total(lambda place: place.phase == "backward"),
    )
