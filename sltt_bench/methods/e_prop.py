"""E-prop: eligibility traces that neurons compute forward in time, and the output's error.

    ε[t] = λ ε[t−1] + x[t]                  eligibility vector of a LIF neuron's synapse
    e[t] = ψ[t] ⊗ ε[t]                      eligibility trace, ψ[t] the surrogate of ∂s[t]/∂u[t]
    L[t] = Σ_k B_k ∂L[t]/∂o_k[t]            learning signal, with B the readout's weights (symmetric e-prop)
    ∂L/∂W ≈ Σ_t L[t] e[t]

x[t] is the network's input for input weights and the spikes s[t−1] for recurrent ones. The readout, which
does not leak, has the exact gradient. Memory: that of SLTT and one trace a layer.
Source: Bellec et al. 2020, "A solution to the learning dilemma for recurrent networks of spiking
neurons" (Nature Communications 11:3625), its LIF case without adaptation; as there, the reset's path is left out of ε.
Deviations: in a network of several layers the learning signal of a lower layer comes by
backpropagation in space (the paper has one recurrent layer that feeds the readout); a refractory
period and a leaky readout do not exist here, so that the paper's output filter κ is 0.
"""

import re

from sltt_bench.methods.traces import Trace
from sltt_bench.unroll import Unroll


class EProp:
    """One backward pass a step, through a graph of that step alone."""

    def accumulate_gradients(self, unroll: Unroll) -> None:
        eligibility = Trace(unroll.neuron.decay)
        with unroll.presynaptic(eligibility, readout=False):
            for t in range(unroll.timesteps):
                unroll.detach_state()
                unroll.backward(unroll.step(t))


def create(name: re.Match[str], timesteps: int) -> EProp:
    """The method called "e-prop"."""
    return EProp()
