"""S-TLLR: a three-factor rule whose eligibility has a causal and a non-causal term, inspired by STDP.

    tr_x[t] = λ_pre tr_x[t−1] + x[t]                              presynaptic trace
    tr_ψ[t] = λ_post tr_ψ[t−1] + ψ[t]                             postsynaptic trace, ψ[t] surrogate of ∂s[t]/∂u[t]
    e[t] = α_post ψ[t] ⊗ tr_x[t] + α_pre tr_ψ[t−1] ⊗ x[t]         causal and non-causal term
    ∂L/∂W ≈ Σ_t ∂L[t]/∂s[t] e[t]

The learning signal ∂L[t]/∂s[t] is backpropagated in space, through ψ[t]. The coefficients are those of the
authors' command for DVS-Gesture: λ_post = 0.2, λ_pre = 0.75, α_pre = −1, α_post = 1. At T = 1 there are no
traces yet, and the rule is SLTT. Memory: that of SLTT and two traces for each layer.
Source: Apolinario & Roy 2024, "S-TLLR: STDP-inspired temporal local learning rule for spiking neural
networks" (TMLR), and their published code (mapolinario94/S-TLLR).
Deviations: ψ is the recipe's surrogate (the authors use a function of their own); the learning signal
exists at every step that counts for the loss (theirs only at the last steps); the readout and biases
learn from SLTT's error.
"""

from torch import Tensor, nn

from sltt_bench.methods.traces import Trace
from sltt_bench.neurons import SpikingNeuron, pseudo_derivative
from sltt_bench.unroll import Unroll

DECAY_POST, DECAY_PRE, NON_CAUSAL, CAUSAL = 0.2, 0.75, -1.0, 1.0
"""λ_post, λ_pre, α_pre and α_post."""


class STLLR:
    """One backward pass a step for the causal term, and a local one for the non-causal term."""

    def accumulate_gradients(self, unroll: Unroll) -> None:
        inputs, neurons = Trace(DECAY_PRE), PostsynapticTrace()

        def causal(layer: nn.Module, x: Tensor) -> Tensor:
            return CAUSAL * inputs(layer, x)

        with unroll.presynaptic(causal, input_alone, readout=False), unroll.neurons(neurons.follow):
            for t in range(unroll.timesteps):
                unroll.detach_state()
                unroll.backward(unroll.step(t), local_error=neurons.non_causal_error)


def input_alone(layer: nn.Module, x: Tensor) -> Tensor:
    """Returns x[t]: no trace."""
    return x


class PostsynapticTrace:
    """tr_ψ of every layer of neurons."""

    def __init__(self) -> None:
        self._trace = Trace(DECAY_POST)
        self._before: dict[nn.Module, Tensor | None] = {}
        """tr_ψ[t−1]."""

    def follow(self, layer: SpikingNeuron, membrane: Tensor, spikes: Tensor) -> None:
        """Update the trace with u[t]."""
        self._before[layer] = self._trace.values.get(layer)
        self._trace(layer, pseudo_derivative(membrane, layer.parameters_))

    def non_causal_error(self, layer: SpikingNeuron, signal: Tensor) -> Tensor | None:
        """Returns α_pre ∂L[t]/∂s[t] tr_ψ[t−1], or None at the first step."""
        before = self._before[layer]
        return None if before is None else NON_CAUSAL * signal * before
