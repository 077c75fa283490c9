"""SLTT, except that the gradient of one layer of neurons also flows through time: which layer's past matters?

    ∂L/∂W with the states v_l[t−1] of all layers l ≠ n constants of step t

Here v is the whole state that a step hands to the next, including the last spikes of recurrent weights around
layer n. Errors of later steps reach the layers below n through the past of layer n.
Source: this project.
"""

from dataclasses import dataclass

from sltt_bench.unroll import Unroll


@dataclass(frozen=True)
class OneLayerThroughTime:
    """One graph over all T steps, one backward pass, memory O(T)."""

    layer: int
    """Position among the layers of neurons, from 1. Without such a layer, raises ValueError before step 1."""

    def accumulate_gradients(self, unroll: Unroll) -> None:
        unroll.detach_state(but_for=self.layer)
        loss = unroll.step(0)
        for t in range(1, unroll.timesteps):
            unroll.detach_state(but_for=self.layer)
            loss = loss + unroll.step(t)
        unroll.backward(loss)
