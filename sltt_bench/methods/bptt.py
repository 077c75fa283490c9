"""Backpropagation through time: the gradient flows through space and time.

    ∂L/∂W = Σ_t ∂L[t]/∂W, exact except for the surrogate of the spike's derivative

Source: Werbos 1990; with surrogate gradients Neftci et al. 2019.
"""

from sltt_bench.unroll import Unroll


class BPTT:
    """One graph over all T steps and one backward pass: exact for the surrogate, memory O(T)."""

    def accumulate_gradients(self, unroll: Unroll) -> None:
        loss = unroll.step(0)
        for t in range(1, unroll.timesteps):
            loss = loss + unroll.step(t)
        unroll.backward(loss)
