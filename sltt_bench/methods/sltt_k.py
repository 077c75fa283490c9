"""SLTT-K (Meng et al. 2023, section 4.3): SLTT at K of the T steps, drawn anew for each iteration."""

import torch

from sltt_bench.methods import k_out_of_range
from sltt_bench.unroll import Unroll


class SLTTK:
    """K steps are drawn uniformly without replacement; the others run forward without a graph.

    Each step's loss keeps the factor 1/T, as published, so that the expected gradient is K/T of
    SLTT's. `unbiased` multiplies it by T/K instead.
    """

    def __init__(self, k: int, timesteps: int, unbiased: bool = False) -> None:
        """Raises ValueError unless 1 ≤ k ≤ timesteps."""
        if not 1 <= k <= timesteps:
            raise ValueError(k_out_of_range(k, timesteps))
        self.k = k
        self.scale = timesteps / k if unbiased else 1.0

    def accumulate_gradients(self, unroll: Unroll) -> None:
        order = torch.randperm(unroll.timesteps, generator=unroll.generator)
        chosen = set(order[: self.k].tolist())
        for t in range(unroll.timesteps):
            unroll.detach_state()
            with torch.set_grad_enabled(t in chosen):
                loss = unroll.step(t)
            if t in chosen:
                unroll.backward(loss * self.scale if self.scale != 1 else loss)
