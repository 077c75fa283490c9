"""E-prop: eligibility traces that neurons compute forward in time, times an error signal from the output.

    ε[t] = λ ε[t−1] + x[t]                  eligibility vector of a LIF neuron's synapse
    e[t] = ψ[t] ⊗ ε[t]                      eligibility trace, ψ[t] the surrogate of ∂s[t]/∂u[t]
    L[t] = Σ_k B_k ∂L[t]/∂o_k[t]            learning signal, with B the readout's weights (symmetric e-prop)
    ∂L/∂W ≈ Σ_t L[t] e[t]

An adaptive threshold (alif) adds a second component to the eligibility vector, one number for each synapse:

    e[t] = ψ[t] (ε[t] − β ε_a[t−1])         ψ[t] at u[t] − V_th − β a[t−1]
    ε_a[t] = ψ[t] ε[t] + (ρ − β ψ[t]) ε_a[t−1]

x[t] is the network's input for input weights and the spikes s[t−1] for recurrent ones. The readout has SLTT's
gradient, which is exact if the readout does not leak. Memory: that of SLTT and one trace for each layer; with
alif also ε_a, of shape [batch, outputs, inputs] for each fully connected layer, whatever T is.
Source: Bellec et al. 2020, "A solution to the learning dilemma for recurrent networks of spiking
neurons" (Nature Communications 11:3625), equations 22 to 25 (LIF and ALIF); as there, ε leaves out the path
through the reset. Their a[t] is the a[t−1] of `neuron_kinds.py`, which indexes the adaptation by the step
that produced it.
Deviations: ψ is the recipe's surrogate (theirs is a triangle of height 0.3/V_th), and decays are 1 − 1/τ
(theirs exp(−1/τ)). In a network of several layers, backpropagation in space gives the learning signal of a lower
layer (the paper has one recurrent layer that feeds the readout). There is no refractory
period. If the readout leaks (`model.readout_tau`), credit through its sum is dropped and
e[t] is not filtered by the paper's κ. A bias, which has no input, learns from SLTT's error. In networks with
alif, neurons must receive the bare sums of fully connected layers (`mlp` without normalisation), since ε_a
belongs to one synapse of one neuron.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from sltt_bench.methods.traces import Trace, shared_decay
from sltt_bench.neuron_kinds import ALIF, alif_pseudo_derivative
from sltt_bench.neurons import LIFParameters, SpikingNeuron, layers_of_neurons
from sltt_bench.unroll import Unroll


class EProp:
    """One backward pass a step, through the graph of that step."""

    def accumulate_gradients(self, unroll: Unroll) -> None:
        if any(layer.parameters_.kind == "alif" for layer in layers_of_neurons(unroll.network)):
            self._with_adaptive_thresholds(unroll)
            return
        with unroll.presynaptic(Trace(shared_decay(unroll.network)), readout=False):
            for t in range(unroll.timesteps):
                unroll.detach_state()
                unroll.backward(unroll.step(t))

    def _with_adaptive_thresholds(self, unroll: Unroll) -> None:
        vectors = AdaptiveEligibility(unroll.neuron)
        with unroll.presynaptic(vectors.receive, readout=False), unroll.neurons_replaced(vectors.fire):
            for t in range(unroll.timesteps):
                unroll.detach_state()
                unroll.backward(unroll.step(t))
                vectors.step_is_over()


class AdaptiveEligibility:
    """The eligibility vectors (ε, ε_a) of all synapses onto neurons with an adaptive threshold."""

    def __init__(self, neuron: LIFParameters) -> None:
        self._neuron = neuron
        self._of_potential = Trace(neuron.decay)
        """ε[t] [batch, inputs] of each layer of synapses."""
        self._of_threshold: dict[nn.Module, Tensor] = {}
        """ε_a [batch, outputs, inputs] of each layer of synapses, after its last step."""
        self._arriving: list[nn.Module] = []
        """The synapses that have run since the last layer of neurons ran."""
        self._fired: list[tuple[nn.Module, Tensor]] = []
        """The synapses of this step, each with ψ[t] [batch, outputs] of the neurons it feeds."""

    def receive(self, synapses: nn.Module, x: Tensor) -> Tensor:
        """Returns ε[t] from x[t], both [batch, inputs]."""
        self._arriving.append(synapses)
        return self._of_potential(synapses, x)

    def fire(self, neurons: SpikingNeuron, current: Tensor) -> Tensor:
        """Returns s[t] from I[t], both [batch, outputs]; adds the −β ε_a[t−1] part to the weights' gradient.

        Raises NotImplementedError if synapses other than fully connected layers feed the neurons.
        """
        layer, arriving, self._arriving = cast(ALIF, neurons), self._arriving, []
        with torch.no_grad():
            psi = alif_pseudo_derivative(current, layer.potential, layer.adaptation, self._neuron)
        for synapses in arriving:
            if not isinstance(synapses, nn.Linear) or current.dim() != 2:
                raise NotImplementedError(
                    f"e-prop serves neurons of kind alif behind fully connected layers only, not a {type(synapses).__name__}"
                )
            if synapses in self._of_threshold:
                vectors = self._of_threshold[synapses]
                current = _AlsoThrough.apply(current, synapses.weight, vectors, -self._neuron.adaptation)
            self._fired.append((synapses, psi))
        return type(layer).forward(layer, current)

    @torch.no_grad()
    def step_is_over(self) -> None:
        """Update ε_a[t] from ε[t] and ψ[t], in place because no gradient needs ε_a[t−1] any more."""
        for synapses, psi in self._fired:
            of_potential = self._of_potential.values[synapses].unsqueeze(1)
            psi = psi.to(of_potential.dtype).unsqueeze(2)
            if synapses in self._of_threshold:
                kept = self._neuron.adaptation_decay - self._neuron.adaptation * psi
                self._of_threshold[synapses].mul_(kept).addcmul_(psi, of_potential)
            else:
                self._of_threshold[synapses] = psi * of_potential
        self._fired.clear()
        self._arriving.clear()  # the readout, which runs after the last neurons


class _AlsoThrough(torch.autograd.Function):
    """Returns I[t]. Backward, its error e [batch, outputs] adds `factor` Σ_batch e · vectors to the gradient
    of W; vectors are [batch, outputs, inputs]."""

    @staticmethod
    def forward(ctx: Any, current: Tensor, weight: Tensor, vectors: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(vectors)
        ctx.factor = factor
        return current.view_as(current)

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        (vectors,) = ctx.saved_tensors
        share = torch.einsum("bo,boi->oi", ctx.factor * error.to(vectors.dtype), vectors)
        return error, share, None, None
