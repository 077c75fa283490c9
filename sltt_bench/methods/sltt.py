"""Spatial learning through time (Meng et al. 2023, section 4.2): the gradient flows through space only."""

from sltt_bench.unroll import Unroll


class SLTT:
    """The past is a constant of each step; its gradient is made at once and its graph freed: memory O(1)."""

    def accumulate_gradients(self, unroll: Unroll) -> None:
        for t in range(unroll.timesteps):
            unroll.detach_state()
            unroll.backward(unroll.step(t))
