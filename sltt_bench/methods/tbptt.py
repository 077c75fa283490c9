"""Truncated backpropagation through time: the gradient flows through windows of w time steps.

    ∂L/∂W ≈ Σ_windows Σ_{t in window} ∂L[t]/∂W, the state at the window's start a constant

w = 1 is SLTT, w = T is BPTT. Windows do not overlap: the first starts at step 1, and the last may be
shorter. The graph spans w steps, so memory is O(w), whatever T is.
Source: Williams & Peng 1990, "An efficient gradient-based algorithm for on-line training of recurrent
network trajectories", in its form of one backward pass for each w steps (h = h' = w).
"""

from dataclasses import dataclass

from sltt_bench.unroll import Unroll


@dataclass(frozen=True)
class TruncatedBPTT:
    """A graph over w steps at a time, backpropagated and freed."""

    window: int

    def accumulate_gradients(self, unroll: Unroll) -> None:
        for start in range(0, unroll.timesteps, self.window):
            unroll.detach_state()
            loss = unroll.step(start)
            for t in range(start + 1, min(start + self.window, unroll.timesteps)):
                loss = loss + unroll.step(t)
            unroll.backward(loss)
