"""SLTT-K (Meng et al. 2023, section 4.3): SLTT at K of the T steps, drawn anew for each iteration.

    ∂L/∂W ≈ Σ_{t drawn} ∂L[t]/∂W, the state a constant of each step

K steps are drawn uniformly without replacement; the others run forward without a graph. Each step's
loss keeps the factor 1/T, as published, so that the expected gradient is K/T of SLTT's; `-unbiased`
multiplies it by T/K instead. K = T is SLTT. Memory: that of SLTT.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, replace

import torch

from sltt_bench.unroll import Unroll


@dataclass(frozen=True)
class SLTTK:
    """K backward passes, each through a graph of one step alone."""

    k: int
    timesteps: int
    unbiased: bool = False
    steps: Collection[int] | None = None
    """Used in every iteration, if they are given, and none are drawn."""

    @property
    def budget(self) -> int:
        """Most steps that are used."""
        return self.k

    def at(self, steps: Collection[int]) -> "SLTTK":
        """The same method with its choice made beforehand."""
        return replace(self, steps=steps)

    def accumulate_gradients(self, unroll: Unroll) -> None:
        chosen = self._drawn(unroll.generator) if self.steps is None else self.steps
        for t in range(unroll.timesteps):
            unroll.detach_state()
            with torch.set_grad_enabled(t in chosen):
                loss = unroll.step(t)
            if t in chosen:
                unroll.backward(loss * (self.timesteps / self.k) if self.unbiased else loss)

    def _drawn(self, generator: torch.Generator) -> Collection[int]:
        return set(torch.randperm(self.timesteps, generator=generator)[: self.k].tolist())


def create(name: re.Match[str], timesteps: int) -> SLTTK:
    """The method of a name like "sltt-k4" or "sltt-k4-unbiased"."""
    return SLTTK(int(name["k"]), timesteps, unbiased=name.groupdict().get("unbiased") is not None)
