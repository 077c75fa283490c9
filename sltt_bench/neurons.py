"""The leaky integrate-and-fire (LIF) step, once, as a pure function of (input, state).

    u[t] = λ v[t−1] + I[t]              λ = 1 − 1/τ
    s[t] = H(u[t] − V_th)
    v[t] = u[t] − V_th s[t]             soft reset
    v[t] = (1 − s[t]) u[t] + s[t] V_reset      hard reset

v is the potential after the reset: the only state that a step hands to the next. Under soft reset
it starts and rests at 0; under hard reset at V_reset, towards which the potential then leaks
(u[t] = λ (v[t−1] − V_reset) + V_reset + I[t]). The input is not scaled by 1/τ.
Source: Meng et al. 2023, section 3.1; the hard reset as in Fang et al. 2023 (SpikingJelly).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from sltt_bench.surrogates import spike


@dataclass(frozen=True)
class LIFParameters:
    """What a LIF neuron is, apart from its weights."""

    tau: float = 1.1
    """Membrane time constant τ ≥ 1 in time steps; λ = 1 − 1/τ."""
    v_threshold: float = 1.0
    reset: Literal["soft", "hard"] = "soft"
    v_reset: float = 0.0
    """Potential after a spike under hard reset; unused under soft reset."""
    detach_reset: bool = False
    """Whether the gradient ignores the reset's dependence on the spike."""
    surrogate: str = "triangle"

    @property
    def decay(self) -> float:
        """λ, the fraction of the potential that survives one time step."""
        return 1.0 - 1.0 / self.tau

    @property
    def resting_potential(self) -> float:
        """The potential before the first step, towards which it leaks."""
        return self.v_reset if self.reset == "hard" else 0.0


def integrate(current: Tensor, potential: Tensor | None, neuron: LIFParameters) -> Tensor:
    """u[t] from I[t] and v[t−1] (same shape; None before the first step)."""
    rest = neuron.resting_potential
    if potential is None:
        return current + rest if rest else current
    leaked = neuron.decay * potential + current
    return leaked + (1 - neuron.decay) * rest if rest else leaked


def reset(membrane: Tensor, spikes: Tensor, neuron: LIFParameters) -> Tensor:
    """v[t] from u[t] and s[t] (same shape)."""
    if neuron.detach_reset:
        spikes = spikes.detach()
    if neuron.reset == "soft":
        return membrane - neuron.v_threshold * spikes
    return (1 - spikes) * membrane + neuron.v_reset * spikes


def lif_step(current: Tensor, potential: Tensor | None, neuron: LIFParameters) -> tuple[Tensor, Tensor]:
    """One time step: (I[t], v[t−1]) → (s[t], v[t]), all of one shape."""
    membrane = integrate(current, potential, neuron)
    spikes = spike(membrane - neuron.v_threshold, neuron.surrogate)
    return spikes, reset(membrane, spikes, neuron)


class Stateful(nn.Module):
    """A layer that carries something from step to step of one sequence.

    A network is a module that is called once per time step; methods reach what it carries only
    through `reset_state` and `detach_state`.
    """

    def reset_state(self) -> None:
        """Forget the past: the next call is step 1 of a new sequence."""
        raise NotImplementedError

    def detach_state(self) -> None:
        """Make what is carried a constant, through which no gradient flows."""
        raise NotImplementedError


class SpikingNeuron(Stateful):
    """A layer of neurons, of any backend: currents of any shape in, spikes of that shape out."""


class LIF(SpikingNeuron):
    """A layer of LIF neurons in plain autograd."""

    def __init__(self, parameters: LIFParameters) -> None:
        super().__init__()
        self.parameters_ = parameters
        self.potential: Tensor | None = None

    def forward(self, current: Tensor) -> Tensor:
        spikes, self.potential = lif_step(current, self.potential, self.parameters_)
        return spikes

    def reset_state(self) -> None:
        self.potential = None

    def detach_state(self) -> None:
        if self.potential is not None:
            self.potential = self.potential.detach()

    def extra_repr(self) -> str:
        p = self.parameters_
        return f"tau={p.tau}, v_threshold={p.v_threshold}, reset={p.reset}, surrogate={p.surrogate}"


NeuronFactory = Callable[[], nn.Module]


def reset_state(network: nn.Module) -> None:
    """Put every stateful layer of the network before step 1."""
    for module in network.modules():
        if isinstance(module, Stateful):
            module.reset_state()


def detach_state(network: nn.Module) -> None:
    """Make every carried state a constant: the one visible act of SLTT."""
    for module in network.modules():
        if isinstance(module, Stateful):
            module.detach_state()
