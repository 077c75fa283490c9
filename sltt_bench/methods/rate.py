"""Rate-based backpropagation: T steps without a graph, then one backward pass on firing rates.

    r = (1/T) Σ_t s[t]                        firing rates, x̄ = (1/T) Σ_t x[t] for the input
    c̄ = W r                                   mean current (through normalisation)
    E = (1/T) Σ_t ψ[t] f[t],    f[t+1] = 1 + f[t] ∂u[t+1]/∂u[t],    f[1] = 1
    ∂r/∂c̄ := E,                 ∂L/∂W := (∂L/∂r) E ⊗ r_in

E accumulates, forward in time, the effect of a neuron's current on its rate through its own state. One more
forward pass then carries r from layer to layer; its loss is that of the mean output, and its
backward pass uses E as the derivative of every layer of neurons. Memory is that of one step and
four tensors for each layer of neurons (r, E, f and the mean potential), whatever T is. With a loss window the
means are over the window's steps.
Source: Yu et al. 2024, "Advancing training efficiency of deep spiking neural networks through
rate-based backpropagation", section 4, and their published code (single-step mode).
Deviations: their code divides the loss by T before the backward pass; here it is as in the paper's
equations, so the method is BPTT at T = 1. In the pass on rates, batch norm uses the rates' own batch
statistics and learns none. Recurrent weights and leaky readouts, which the paper does not have, read the
means of the last spikes and of the sums as constants.
"""

from typing import Any

import torch
from torch import Tensor, nn

from sltt_bench.neurons import SpikingNeuron, State, pseudo_derivative, state_derivative
from sltt_bench.precision import at_least_float32
from sltt_bench.unroll import Unroll


class RateBased:
    """One backward pass for the whole sequence."""

    def accumulate_gradients(self, unroll: Unroll) -> None:
        rates, before = Rates(), Mean()
        with torch.no_grad(), unroll.neurons(rates.follow):
            for t in range(unroll.timesteps):
                rates.counting = unroll.counts(t)
                if rates.counting:
                    before.add(unroll.save_state())
                unroll.step(t)
        unroll.restore_state(before.state)
        with unroll.neurons_replaced(rates.rate_of):
            loss = unroll.loss_of(mean_input(unroll))
        unroll.backward(loss)


class Rates:
    """r and E of every layer of neurons."""

    def __init__(self) -> None:
        self.counting = True
        """Whether the means include the current step."""
        self._steps: dict[nn.Module, int] = {}
        self._spikes: dict[nn.Module, Tensor] = {}
        self._slope: dict[nn.Module, Tensor] = {}
        self._factor: dict[nn.Module, Tensor] = {}

    def follow(self, layer: SpikingNeuron, membrane: Tensor, spikes: Tensor) -> None:
        """Update the means with u[t] and s[t]."""
        neuron = layer.parameters_
        factor = self._factor.get(layer)
        slope = pseudo_derivative(membrane, neuron)
        if factor is not None:
            slope = slope * factor
        if self.counting:
            count = self._steps[layer] = self._steps.get(layer, 0) + 1
            for means, value in ((self._spikes, spikes), (self._slope, slope)):
                value = at_least_float32(value)
                means[layer] = value if count == 1 else torch.lerp(means[layer], value, 1 / count)
        derivative = state_derivative(membrane, spikes, neuron)
        self._factor[layer] = 1 + (derivative if factor is None else factor * derivative)

    def rate_of(self, layer: SpikingNeuron, current: Tensor) -> Tensor:
        """Returns r as a function of the mean current, with derivative E."""
        result: Tensor = _Linearised.apply(current, self._spikes.pop(layer), self._slope.pop(layer))
        return result


class _Linearised(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, current: Tensor, rate: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return rate.to(current.dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (slope,) = ctx.saved_tensors
        return (grad * slope).to(grad.dtype), None, None


class Mean:
    """Mean over steps of the state that layers hand to the next step. Neurons' potentials are averaged too,
    but the pass on rates does not read them."""

    def __init__(self) -> None:
        self.state: State = []
        """Mean of the state before each step; a missing state (None) counts as 0."""
        self._count = 0

    def add(self, state: State) -> None:
        """Add the state before one more step to the mean."""
        self._count += 1
        previous = self.state or [tuple(None for _ in values) for values in state]
        self.state = [
            tuple(self._mean(old, new) for old, new in zip(before, now, strict=True))
            for before, now in zip(previous, state, strict=True)
        ]

    def _mean(self, mean: Tensor | None, value: Tensor | None) -> Tensor | None:
        share = 1 / self._count
        if value is None or mean is None:
            return None if value is None else value * share
        return torch.lerp(mean, value, share)


def mean_input(unroll: Unroll) -> Tensor:
    """Returns x̄, the mean over the steps that count; a static image is its own mean."""
    counted = [x for t, x in enumerate(unroll.inputs) if unroll.counts(t)]
    if all(x is counted[0] for x in counted):
        return counted[0]
    mean = counted[0] / len(counted)
    for x in counted[1:]:  # one by one: a stack would be a second copy of all T inputs
        mean.add_(x, alpha=1 / len(counted))
    return mean
