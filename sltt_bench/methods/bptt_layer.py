"""SLTT, but for one layer of neurons whose gradient also flows through time: which layer's past matters?

    ∂L/∂W with the states v_l[t−1] of all layers l ≠ n constants of step t

v is all that a step hands to the next, the last spikes of recurrent weights around layer n included. Errors of later
steps reach the layers below n through its past.
Source: this project.
"""

from dataclasses import dataclass

from sltt_bench.unroll import Unroll


@dataclass(frozen=True)
class OneLayerThroughTime:
    """One graph over all T steps, one backward pass, memory O(T)."""

    layer: int
    """Its place among the layers of neurons, 1 for the first; ValueError before the first step if there is none."""

    def accumulate_gradients(self, unroll: Unroll) -> None:
        unroll.detach_state(but_for=self.layer)
        loss = unroll.step(0)
        for t in range(1, unroll.timesteps):
            unroll.detach_state(but_for=self.layer)
            loss = loss + unroll.step(t)
        unroll.backward(loss)
