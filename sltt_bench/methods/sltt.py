"""Spatial learning through time (Meng et al. 2023, section 4.2): the gradient flows through space only.

    ∂L/∂W ≈ Σ_t ∂L[t]/∂W,   with the state v[t−1] a constant of step t

Each step's graph is freed when its gradient is made, so that memory does not grow with T.
"""

from sltt_bench.unroll import Unroll


class SLTT:
    """The past is a constant of each step; its gradient is made at once and its graph freed: memory O(1)."""

    def accumulate_gradients(self, unroll: Unroll) -> None:
        for t in range(unroll.timesteps):
            unroll.detach_state()
            unroll.backward(unroll.step(t))
