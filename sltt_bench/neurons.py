"""The leaky integrate-and-fire (LIF) step as a pure function of (input, state).

    u[t] = λ v[t−1] + I[t]              λ = 1 − 1/τ
    s[t] = H(u[t] − V_th)
    v[t] = u[t] − V_th s[t]             soft reset
    v[t] = (1 − s[t]) u[t] + s[t] V_reset      hard reset

v is the potential after the reset, the only state that a step hands to the next. Under soft reset
v starts and rests at 0. Under hard reset it starts at V_reset and leaks towards V_reset
(u[t] = λ (v[t−1] − V_reset) + V_reset + I[t]). The input is not scaled by 1/τ.
Neurons that extend this one are in `neuron_kinds.py`.
Source: Meng et al. 2023, section 3.1; the hard reset as in Fang et al. 2023 (SpikingJelly).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from sltt_bench.surrogates import derivative, spike


@dataclass(frozen=True)
class LIFParameters:
    """Parameters of a neuron, apart from its weights; every kind of neuron extends the LIF neuron."""

    tau: float = 1.1
    """Membrane time constant τ ≥ 1 in time steps; λ = 1 − 1/τ."""
    v_threshold: float = 1.0
    reset: Literal["soft", "hard"] = "soft"
    v_reset: float = 0.0
    """Potential after a spike under hard reset; unused under soft reset."""
    detach_reset: bool = False
    """Whether the gradient ignores the reset's dependence on the spike."""
    surrogate: str = "triangle"
    surrogate_width: float = 1.0
    """w of the surrogate g(x / w) / w."""
    kind: str = "lif"
    """Kind of neuron: a name in `neuron_kinds.LAYERS`."""
    tau_synapse: float = 1.0
    """Time constant τ_s ≥ 1 of the synaptic current (cuba-lif); 1 is a current without memory."""
    tau_adaptation: float = 1.0
    """Time constant τ_a ≥ 1 of the threshold (alif)."""
    adaptation: float = 0.0
    """β, what a spike adds to the threshold (alif)."""

    @property
    def decay(self) -> float:
        """λ, the fraction of the potential that survives one time step."""
        return 1.0 - 1.0 / self.tau

    @property
    def synaptic_decay(self) -> float:
        """λ_s, the fraction of the synaptic current that survives one time step."""
        return 1.0 - 1.0 / self.tau_synapse

    @property
    def adaptation_decay(self) -> float:
        """ρ, the fraction of the threshold's adaptation that survives one time step."""
        return 1.0 - 1.0 / self.tau_adaptation

    @property
    def resting_potential(self) -> float:
        """The potential before the first step; the potential leaks towards it."""
        return self.v_reset if self.reset == "hard" else 0.0


def integrate(current: Tensor, potential: Tensor | None, neuron: LIFParameters) -> Tensor:
    """u[t] from I[t] and v[t−1] (same shape; None before the first step)."""
    rest = neuron.resting_potential
    if potential is None:
        return current + rest if rest else current
    leaked = neuron.decay * potential + current
    return leaked + (1 - neuron.decay) * rest if rest else leaked


def reset(membrane: Tensor, spikes: Tensor, neuron: LIFParameters, threshold: Tensor | None = None) -> Tensor:
    """v[t] from u[t] and s[t] (same shape); `threshold` (shape []), if given, replaces the neuron's."""
    if neuron.detach_reset:
        spikes = spikes.detach()
    if neuron.reset == "soft":
        return membrane - (neuron.v_threshold if threshold is None else threshold) * spikes
    return (1 - spikes) * membrane + neuron.v_reset * spikes


def fire(membrane: Tensor, neuron: LIFParameters, threshold: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(s[t], v[t]) from u[t], all of one shape; `threshold` as in `reset`."""
    above = neuron.v_threshold if threshold is None else threshold
    spikes = spike(membrane - above, neuron.surrogate, neuron.surrogate_width)
    return spikes, reset(membrane, spikes, neuron, threshold)


def lif_step(current: Tensor, potential: Tensor | None, neuron: LIFParameters) -> tuple[Tensor, Tensor]:
    """One time step: (I[t], v[t−1]) → (s[t], v[t]), all of one shape."""
    return fire(integrate(current, potential, neuron), neuron)


def pseudo_derivative(membrane: Tensor, neuron: LIFParameters) -> Tensor:
    """ψ[t] = g(u[t] − V_th), the surrogate of ∂s[t]/∂u[t] (same shape)."""
    return derivative(membrane - neuron.v_threshold, neuron.surrogate, neuron.surrogate_width)


def state_derivative(membrane: Tensor, spikes: Tensor, neuron: LIFParameters) -> Tensor:
    """∂u[t+1]/∂u[t] = λ ∂v[t]/∂u[t] from u[t] and s[t] (same shape), including the path through the reset.

    Soft reset: λ (1 − V_th ψ). Hard reset: λ (1 − s + (V_reset − u) ψ). With a detached reset, ψ is 0.
    """
    kept = torch.ones_like(membrane) if neuron.reset == "soft" else 1 - spikes
    if not neuron.detach_reset:
        jump = -neuron.v_threshold if neuron.reset == "soft" else neuron.v_reset - membrane
        kept = kept + jump * pseudo_derivative(membrane, neuron)
    return neuron.decay * kept


class Stateful(nn.Module):
    """A layer that carries a state from step to step of one sequence.

    A network is a module that is called once per time step; methods access its state only
    through `reset_state`, `detach_state`, `scale_state_gradient`, `save_state` and `restore_state`.
    """

    carried: tuple[str, ...] = ()
    """Names of the attributes that a step hands to the next: a tensor, or None before the first step."""
    emits_spikes: bool = False
    """Whether every element of the output is 0 or 1."""
    left_out_by: str = ""
    """The recipe setting, if any, with which a network has no such layer."""

    def reset_state(self) -> None:
        """Forget the past: the next call is step 1 of a new sequence."""
        for name in self.state_names():
            setattr(self, name, None)

    def state_names(self) -> tuple[str, ...]:
        """Returns `carried`. Raises NotImplementedError if a layer detaches a state that it does not name."""
        if not self.carried and type(self).detach_state is not Stateful.detach_state:
            raise NotImplementedError(
                f"{type(self).__name__} does not name in `carried` what it carries from step to step, so that "
                "its state can be detached but neither saved nor scaled; choose another method or backend"
            )
        return self.carried

    def map_state(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replace each carried tensor by `function` of it. Raises TypeError for what is none."""
        for name in self.state_names():
            value: Tensor | None = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"{type(self).__name__} carries {name}, which is a {type(value).__name__}: give each tensor that a "
                    "step hands to the next a name of its own in `carried`"
                )
            setattr(self, name, function(value))

    def detach_state(self) -> None:
        """Make the carried state a constant, through which no gradient flows."""
        self.map_state(Tensor.detach)


class SpikingNeuron(Stateful):
    """A layer of neurons of any backend: maps currents of any shape to spikes of that shape."""

    emits_spikes = True
    parameters_: LIFParameters

    def extra_repr(self) -> str:
        p = self.parameters_
        return f"tau={p.tau}, v_threshold={p.v_threshold}, reset={p.reset}, surrogate={p.surrogate}"

    def scaled(self, x: Tensor, gain: float, divisor: float | None = None) -> Tensor:
        """Returns γ s[t] from currents x / β (or x), for networks without normalisation; may be fused."""
        spikes: Tensor = self(x if divisor is None else x / divisor)
        return spikes * gain


def input_of_call(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """Returns the tensor that a layer is called with: its first argument, positional or by name."""
    x: Tensor = args[0] if args else next(iter(kwargs.values()))
    return x


Hook = TypeVar("Hook", bound=Callable[..., Any])


def reads_no_values(hook: Hook) -> Hook:
    """Mark a forward hook as not reading values: the layer's currents and spikes need not exist for it."""
    hook.reads_no_values = True  # type: ignore[attr-defined]
    return hook


def reads_values(hook: Callable[..., Any]) -> bool:
    """Whether a forward hook is not marked with `reads_no_values`."""
    return not getattr(hook, "reads_no_values", False)


class LIF(SpikingNeuron):
    """A layer of LIF neurons in plain autograd."""

    carried: tuple[str, ...] = ("potential",)

    def __init__(self, parameters: LIFParameters) -> None:
        super().__init__()
        self.parameters_ = parameters
        self.potential: Tensor | None = None

    def forward(self, current: Tensor) -> Tensor:
        spikes, self.potential = lif_step(current, self.potential, self.parameters_)
        return spikes


class PerStep(nn.Module):
    """A layer with its own parameters or statistics for each step of a sequence; the caller sets the step."""

    timestep: int = 0
    """t, from 0."""


class OverTime(nn.Module):
    """A layer that, in training, sees all T steps at once: its input is [T · batch, …], ordered by step."""


NeuronFactory = Callable[[], SpikingNeuron]


State = list[tuple[Tensor | None, ...]]
"""The state of each stateful layer of a network, in the order of the network's modules."""


def layers_of_neurons(network: nn.Module) -> list[SpikingNeuron]:
    """Returns the layers of neurons in the network's order."""
    return [module for module in network.modules() if isinstance(module, SpikingNeuron)]


def no_such_layer(network: nn.Module, number: int) -> str | None:
    """Returns why the network has no layer of neurons with this number (from 1), or None if it has."""
    layers = len(layers_of_neurons(network))
    if 1 <= number <= layers:
        return None
    return (
        f"there is no layer of neurons {number}: the network has {layers}; choose another number or network"
    )


def followed_neurons(network: nn.Module) -> list[SpikingNeuron]:
    """Returns the layers of neurons, for a rule that follows them. Raises NotImplementedError if there are
    none, as in a network with spiking layers of its own."""
    if layers := layers_of_neurons(network):
        return layers
    raise NotImplementedError(
        "the network has no layer of the recipe's neurons, which the rule follows; choose bptt, tbptt-wN, sltt or "
        "sltt-kN, or make neurons with `neuron()`"
    )


def stateful_layers(network: nn.Module) -> list[Stateful]:
    """Returns the layers that carry a state from step to step, in the network's order."""
    return [module for module in network.modules() if isinstance(module, Stateful)]


def outermost_stateful(network: nn.Module) -> dict[str, Stateful]:
    """Returns the layers that carry a state and lie in no other such layer, by name."""
    layers: dict[str, Stateful] = {}
    for name, module in network.named_modules():
        if isinstance(module, Stateful) and not any(name.startswith(f"{outer}.") for outer in layers):
            layers[name] = module
    return layers


def reset_state(network: nn.Module) -> None:
    """Reset every stateful layer of the network to before step 1."""
    for layer in stateful_layers(network):
        layer.reset_state()


def detach_state(network: nn.Module, but_for: int | None = None) -> None:
    """Make every carried state a constant: the one visible act of SLTT.

    `but_for`: the position (from 1) of a layer of neurons whose state is kept, together with that of
    recurrent weights around it. Raises ValueError if there is no such layer.
    """
    if but_for is not None and (fault := no_such_layer(network, but_for)) is not None:
        raise ValueError(fault)
    kept = None if but_for is None else layers_of_neurons(network)[but_for - 1]
    for layer in stateful_layers(network):
        if kept is None or all(module is not kept for module in layer.modules()):
            layer.detach_state()


def scale_state_gradient(network: nn.Module, factor: float) -> None:
    """Multiply the gradient that flows back through every carried state by `factor`; values stay the same."""
    for layer in stateful_layers(network):
        layer.map_state(lambda x: _ScaledGradient.apply(x, factor) if x.requires_grad else x)


def save_state(network: nn.Module) -> State:
    """Returns the current state of every stateful layer: the tensors themselves, not copies."""
    return [tuple(getattr(layer, n) for n in layer.state_names()) for layer in stateful_layers(network)]


def restore_state(network: nn.Module, state: State) -> None:
    """Restore a state that `save_state` returned for the same network."""
    for layer, values in zip(stateful_layers(network), state, strict=True):
        for name, value in zip(layer.state_names(), values, strict=True):
            setattr(layer, name, value)


class _ScaledGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by the factor in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad * ctx.factor, None
