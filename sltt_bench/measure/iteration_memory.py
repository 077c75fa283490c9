"""The one count of a training iteration's peak memory, on real tensors and on fake ones."""

import gc
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sltt_bench.measure.tensor_bytes import Cause, Execute, TensorBytes
from sltt_bench.neurons import reset_state


@dataclass(frozen=True)
class IterationMemory:
    """What one training iteration needs of memory."""

    peak_bytes: int
    """Peak of live tensor bytes."""
    peak_by_cause: dict[Cause, int]
    """They add up to `peak_bytes`."""
    changes: tuple[int, ...]
    """The bytes by which live memory changed, event after event."""


def count_iteration(
    iterate: Callable[[], object],
    network: nn.Module,
    batch: Iterable[Tensor],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    carried: Callable[[], object] = tuple,
    warm_up: Callable[[], object] | None = None,
    execute: Execute | None = None,
) -> IterationMemory:
    """Peak of live tensor bytes of `iterate`, one training iteration in the steady state.

    Parameters, buffers, what the optimiser carries, the tensors that `carried` returns in nested lists and mappings
    (a method's, say) and the batch count from the start; gradients and neuron state do not exist yet. `warm_up` runs before, so that this is not the first iteration: the optimiser has
    made its state, and a backend may have learned what repeats. None: it has run. `execute` runs the operations.
    """
    if warm_up is not None:
        warm_up()
    network.zero_grad(set_to_none=True)
    reset_state(network)
    gc.collect()
    with TensorBytes(
        batch, network=network, optimizer=optimizer, carried=carried(), execute=execute
    ) as memory:
        iterate()
    return IterationMemory(memory.peak, memory.peak_by_cause, tuple(memory.changes))
