"""Spatial learning through time (Meng et al. 2023, section 4.2): the gradient flows through space only.

    ∂L/∂W ≈ Σ_t ∂L[t]/∂W,   with the state v[t−1] a constant of step t

Each step's graph is freed as soon as its gradient has been computed, so memory does not grow with T.
"""

from sltt_bench.unroll import Unroll


class SLTT:
    """One backward pass a step, with the past a constant; its graph is freed at once: memory O(1)."""

    def accumulate_gradients(self, unroll: Unroll) -> None:
        for t in range(unroll.timesteps):
            unroll.detach_state()
            unroll.backward(unroll.step(t))
