"""Neurons that extend plain LIF, each a pure function of (input, state), and the table of all kinds by name.

    plif       u[t] = λ v[t−1] + I[t],  λ = 1 − σ(w)            w is learned, one a layer; starts at τ of the recipe
    diet-lif   as plif, and H(u[t] − θ),  θ = exp(ϑ)            ϑ is learned, one a layer; θ starts at V_th
    cuba-lif   i[t] = λ_s i[t−1] + I[t],  λ_s = 1 − 1/τ_s       synaptic current
               u[t] = λ v[t−1] + i[t]
    alif       s[t] = H(u[t] − V_th − β a[t−1])                 the threshold rises with every spike
               a[t] = ρ a[t−1] + s[t],  ρ = 1 − 1/τ_a
    readout    u[t] = λ u[t−1] + I[t]                           never fires; its potential is the network's output

All else is as in `neurons.py`: both resets, the leak towards rest under hard reset, the surrogate. All states
start at rest (i = 0, a = 0). A state that a method detaches is a constant of the next step. SLTT therefore
keeps only the part of w's gradient from each step's own leak, −σ'(w) (v[t−1] − rest), and drops w's effect on
v[t−1] through earlier steps. Of ϑ's gradient it keeps −θ ψ[t] at the spike and drops θ's effect on v through
soft resets. It drops all credit through i, a and the readout's u. At step 1 the gradient of w is 0.
Sources: Fang et al. 2021, "Incorporating learnable membrane time constant to enhance learning of spiking
neural networks" (plif); Rathi & Roy 2021, "DIET-SNN: a low-latency spiking neural network with direct input
encoding and leakage and threshold optimization" (diet-lif); Neftci et al. 2019, "Surrogate gradient learning
in spiking neural networks" (cuba-lif); Bellec et al. 2020, "A solution to the learning dilemma for recurrent
networks of spiking neurons" (alif).
Deviations: Fang et al. scale the input by 1/τ. Rathi & Roy learn λ and θ directly, so λ may leave (0, 1) and
θ may fall below 0. Decays are 1 − 1/τ (exp(−1/τ) in Neftci et al. and Bellec et al.), and i[t] includes I[t]
without delay. As in Bellec et al., the soft reset subtracts only V_th, not the adapted part of the threshold.
`detach_reset` cuts the gradient through the reset, but not the one through a.
"""

import math

import torch
from torch import Tensor, nn

from sltt_bench.neurons import LIF, LIFParameters, SpikingNeuron, Stateful, fire, integrate, lif_step, reset
from sltt_bench.precision import at_least_float32
from sltt_bench.surrogates import derivative, spike


def plif_step(
    current: Tensor, potential: Tensor | None, w: Tensor, neuron: LIFParameters
) -> tuple[Tensor, Tensor]:
    """One time step with λ = 1 − σ(w): (I[t], v[t−1], w of shape []) → (s[t], v[t]); `neuron.tau` is not used."""
    return fire(integrate_learned(current, potential, w, neuron), neuron)


def integrate_learned(current: Tensor, potential: Tensor | None, w: Tensor, neuron: LIFParameters) -> Tensor:
    """u[t] with λ = 1 − σ(w), from I[t] and v[t−1] (same shape; None before step 1)."""
    rest = neuron.resting_potential
    # Before step 1 the potential is at rest: the term is 0, and w has a gradient of 0 instead of None.
    distance = current.new_zeros(()) if potential is None else potential - rest
    return torch.sigmoid(-w) * distance + (current + rest)


def diet_lif_step(
    current: Tensor, potential: Tensor | None, w: Tensor, log_threshold: Tensor, neuron: LIFParameters
) -> tuple[Tensor, Tensor]:
    """One time step with λ = 1 − σ(w) and θ = exp(ϑ), both of shape []: (I[t], v[t−1], w, ϑ) → (s[t], v[t])."""
    return fire(integrate_learned(current, potential, w, neuron), neuron, log_threshold.exp())


def cuba_lif_step(
    current: Tensor, synaptic_current: Tensor | None, potential: Tensor | None, neuron: LIFParameters
) -> tuple[Tensor, Tensor, Tensor]:
    """One time step: (I[t], i[t−1], v[t−1]) → (s[t], i[t], v[t]), all of one shape; None before step 1."""
    if synaptic_current is not None:
        current = neuron.synaptic_decay * synaptic_current + current
    spikes, potential = lif_step(current, potential, neuron)
    return spikes, current, potential


def alif_step(
    current: Tensor, potential: Tensor | None, adaptation: Tensor | None, neuron: LIFParameters
) -> tuple[Tensor, Tensor, Tensor]:
    """One time step: (I[t], v[t−1], a[t−1]) → (s[t], v[t], a[t]), all of one shape; None before step 1."""
    membrane = integrate(current, potential, neuron)
    spikes = spike(
        membrane - adaptive_threshold(adaptation, neuron), neuron.surrogate, neuron.surrogate_width
    )
    adaptation = spikes if adaptation is None else neuron.adaptation_decay * adaptation + spikes
    return spikes, reset(membrane, spikes, neuron), adaptation


def adaptive_threshold(adaptation: Tensor | None, neuron: LIFParameters) -> Tensor | float:
    """V_th + β a[t−1], the threshold for u[t] (same shape); `adaptation` is None before step 1."""
    if adaptation is None:
        return neuron.v_threshold
    return neuron.v_threshold + neuron.adaptation * adaptation


def alif_pseudo_derivative(
    current: Tensor, potential: Tensor | None, adaptation: Tensor | None, neuron: LIFParameters
) -> Tensor:
    """ψ[t], the surrogate of ∂s[t]/∂u[t], from I[t], v[t−1] and a[t−1] (same shape; None before step 1)."""
    threshold = adaptive_threshold(adaptation, neuron)
    above = integrate(current, potential, neuron) - threshold
    return derivative(above, neuron.surrogate, neuron.surrogate_width)


class PLIF(LIF):
    """A layer of LIF neurons that share a learned time constant, like SpikingJelly's ParametricLIFNode."""

    def __init__(self, parameters: LIFParameters) -> None:
        """`parameters.tau` > 1 is the initial τ."""
        super().__init__(parameters)
        self.w = nn.Parameter(torch.tensor(-math.log(parameters.tau - 1)))
        """1/τ = σ(w). Weight decay treats w like any parameter and pulls τ towards 2."""

    def forward(self, current: Tensor) -> Tensor:
        spikes, self.potential = plif_step(current, self.potential, self.w, self.parameters_)
        return spikes


class DietLIF(PLIF):
    """A layer of LIF neurons that share a learned time constant and a learned threshold."""

    def __init__(self, parameters: LIFParameters) -> None:
        """`parameters.tau` > 1 and `parameters.v_threshold` > 0 are the initial values."""
        super().__init__(parameters)
        self.log_threshold = nn.Parameter(torch.tensor(math.log(parameters.v_threshold)))
        """ϑ = ln θ, so that θ stays above 0. Weight decay pulls θ towards 1."""

    def forward(self, current: Tensor) -> Tensor:
        spikes, self.potential = diet_lif_step(
            current, self.potential, self.w, self.log_threshold, self.parameters_
        )
        return spikes


class CubaLIF(LIF):
    """A layer of LIF neurons with current-based synapses: a leaky synaptic current is their input."""

    carried = ("synaptic_current", "potential")
    synaptic_current: Tensor | None = None

    def forward(self, current: Tensor) -> Tensor:
        spikes, self.synaptic_current, self.potential = cuba_lif_step(
            current, self.synaptic_current, self.potential, self.parameters_
        )
        return spikes

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, tau_synapse={self.parameters_.tau_synapse}"


class ALIF(LIF):
    """A layer of LIF neurons whose threshold rises with every spike and relaxes slowly."""

    carried = ("potential", "adaptation")
    adaptation: Tensor | None = None

    def forward(self, current: Tensor) -> Tensor:
        spikes, self.potential, self.adaptation = alif_step(
            current, self.potential, self.adaptation, self.parameters_
        )
        return spikes

    def extra_repr(self) -> str:
        p = self.parameters_
        return f"{super().extra_repr()}, tau_adaptation={p.tau_adaptation}, adaptation={p.adaptation}"


class Readout(Stateful):
    """Neurons without a threshold: map currents [batch, n] to their leaky sums [batch, n], in float32 at least."""

    carried = ("potential",)
    left_out_by = "model.readout_tau: null"

    def __init__(self, tau: float) -> None:
        """`tau` ≥ 1: time constant in time steps; with 1, the output of a step is its current."""
        super().__init__()
        self.leak = LIFParameters(tau=tau)
        self.potential: Tensor | None = None

    def forward(self, current: Tensor) -> Tensor:
        self.potential = integrate(at_least_float32(current), self.potential, self.leak)
        return self.potential

    def extra_repr(self) -> str:
        return f"tau={self.leak.tau}"


LAYERS: dict[str, type[LIF]] = {
    "lif": LIF,
    "plif": PLIF,
    "diet-lif": DietLIF,
    "cuba-lif": CubaLIF,
    "alif": ALIF,
}
"""Kind of neuron → its layer in plain autograd."""


def layer_of_neurons(parameters: LIFParameters) -> SpikingNeuron:
    """Create a layer of neurons of the kind that the parameters name. Raises KeyError for an unknown kind."""
    return LAYERS[parameters.kind](parameters)
