"""BPTT with the gradient through the state multiplied by β: how much of the temporal part is needed?

    ∂L/∂v[t−1] = β ∂v[t]/∂v[t−1] … at every step; the forward pass is unchanged

Here v is the whole state that a step hands to the next: potentials, and the last spikes of recurrent layers.
β = 0 is SLTT, β = 1 is BPTT. A gradient that has crossed n steps is weighted by βⁿ, so the result is
a polynomial in β: discounted credit, between the two methods.
Source: this project; the idea comes from λ-returns and discounted traces.
"""

from dataclasses import dataclass

from sltt_bench.unroll import Unroll


@dataclass(frozen=True)
class DampedBPTT:
    """One graph over all T steps, one backward pass, memory O(T)."""

    beta: float

    def accumulate_gradients(self, unroll: Unroll) -> None:
        loss = unroll.step(0)
        for t in range(1, unroll.timesteps):
            unroll.scale_state_gradient(self.beta)
            loss = loss + unroll.step(t)
        unroll.backward(loss)
