"""pp-prop (ES-D-RTRL): the eligibility of a synapse is the product of an input trace and a state trace.

    ε_x[t] = α ε_x[t−1] + x[t]                                   a trace for each input
    ε_f[t] = α D[t] ε_f[t−1] + (1 − α)                           a trace for each neuron
    ε[t] ≈ ε_f[t] / (1 − αᵗ) ⊗ ε_x[t]                            stands for ∂u[t]/∂W
    ∂L/∂W ≈ Σ_t ∂L[t]/∂u[t] ε[t]

D[t] = ∂u[t]/∂u[t−1] is diagonal for LIF neurons and includes the path through the reset; ∂u[t]/∂I[t] = 1.
The division corrects for the state trace's start at 0. With α = 0, or at T = 1, the rule is SLTT. Memory:
that of SLTT and two traces for each layer.
Source: Wang et al. 2024, "Model-agnostic linear-memory online learning in spiking neural networks"
(bioRxiv 2024.09.24.614728), and their public code (braintrace), which has the division. Its first versions, then
named brainscale, divided by 1 − (1 − α)ᵗ, so their first steps counted for less.
Deviations: synapses that feed no neurons (the readout) and biases, which have no input, learn from
SLTT's error; the error passes normalisation between synapses and neurons in space only.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sltt_bench.methods.traces import Trace
from sltt_bench.neurons import SpikingNeuron, pseudo_derivative, state_derivative
from sltt_bench.unroll import Unroll


@dataclass(frozen=True)
class PPProp:
    """One backward pass a step, and a local one for what the state trace adds."""

    decay: float = 0.9
    """α; the default is the value of the examples in the authors' documentation."""

    def accumulate_gradients(self, unroll: Unroll) -> None:
        inputs, state = Trace(self.decay), StateTrace(self.decay)
        with unroll.presynaptic(inputs, readout=False), unroll.neurons(state.follow):
            for t in range(unroll.timesteps):
                unroll.detach_state()
                unroll.backward(unroll.step(t), local_error=state.further_error)


class StateTrace:
    """ε_f of every layer of neurons."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._at: dict[nn.Module, _AtStep] = {}

    def follow(self, layer: SpikingNeuron, membrane: Tensor, spikes: Tensor) -> None:
        """Update the trace with u[t] and s[t]."""
        before, neuron = self._at.get(layer), layer.parameters_
        trace = torch.full_like(membrane, 1 - self._decay)
        if before is not None:
            trace += self._decay * before.derivative * before.trace
        self._at[layer] = _AtStep(
            t=1 if before is None else before.t + 1,
            trace=trace,
            derivative=state_derivative(membrane, spikes, neuron),
            pseudo_derivative=pseudo_derivative(membrane, neuron),
        )

    def further_error(self, layer: SpikingNeuron, signal: Tensor) -> Tensor:
        """Returns ∂L[t]/∂u[t] (ε_f[t] / (1 − αᵗ) − 1) from ∂L[t]/∂s[t].

        It is added to the loss's own error ∂L[t]/∂u[t], which is SLTT's.
        """
        now = self._at[layer]
        return signal * now.pseudo_derivative * (now.trace / (1 - self._decay**now.t) - 1)


class _AtStep(NamedTuple):
    t: int
    trace: Tensor
    """ε_f[t]."""
    derivative: Tensor
    """D[t+1]."""
    pseudo_derivative: Tensor
    """ψ[t]."""
