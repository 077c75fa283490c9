"""SLTT-K (Meng et al. 2023, section 4.3): SLTT at K of the T steps, drawn anew for each iteration.

    ∂L/∂W ≈ Σ_{t drawn} ∂L[t]/∂W, the state a constant of each step

K steps are drawn uniformly without replacement; the others run forward without a graph. Each step's
loss keeps the factor 1/T, as published, so the expected gradient is K/T of SLTT's; `-unbiased`
multiplies the loss by T/K. K = T is SLTT. Memory: that of SLTT.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch

from sltt_bench.unroll import Unroll


@dataclass(frozen=True)
class SLTTK:
    """K backward passes, each through the graph of one step."""

    k: int
    unbiased: bool = False
    steps: Collection[int] | None = None
    """If given, every iteration uses these steps and none are drawn."""

    def most_steps(self, timesteps: int) -> int:
        """K, whatever T is."""
        return self.k

    def at(self, steps: Collection[int]) -> "SLTTK":
        """Returns the same method with fixed steps."""
        return replace(self, steps=steps)

    def accumulate_gradients(self, unroll: Unroll) -> None:
        chosen = self._drawn(unroll) if self.steps is None else self.steps
        for t in range(unroll.timesteps):
            unroll.detach_state()
            with torch.set_grad_enabled(t in chosen):
                loss = unroll.step(t)
            if t in chosen:
                unroll.backward(loss * (unroll.timesteps / self.k) if self.unbiased else loss)

    def _drawn(self, unroll: Unroll) -> Collection[int]:
        return set(torch.randperm(unroll.timesteps, generator=unroll.generator)[: self.k].tolist())
