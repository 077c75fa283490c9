"""ANN → SNN conversion: neurons that are rectifiers in training and integrate-and-fire neurons in evaluation.

    training      y = max(0, I)                                             no state, no time
                  θ ← θ + m (q(y) − θ),   m = max(1/n, 0.1) in batch n      threshold balancing, one θ a layer
    evaluation    u[t] = v[t−1] + I[t],   v[0] = θ/2
                  s[t] = H(u[t] − θ)
                  v[t] = u[t] − θ s[t]                                      soft reset, no leak
                  output θ s[t]

q(y) is the PERCENTILE-th percentile of a layer's outputs over the batch, so θ follows the training data like
the running statistics of batch norm. The output θ s[t] is equivalent to s[t] with the next layer's weights
times θ, as a converted network would hold them. For 0 ≤ y ≤ θ, the mean output over T steps differs from y by
at most c/T; c is θ/2 in the first layer, and grows in later ones with the thresholds and weights before them.
Nonlinear operations between layers have no such bound: neither the maximum of spikes (max pools) nor their
product (attention, the shortcuts "and" and "iand") is that of the rates.
Source: Diehl et al. 2015 (data-based thresholds); Rueckauer et al. 2017 (percentiles, soft reset); Bu et al.
2022, "Optimized potential initialization for low-latency spiking neural networks" (v[0] = θ/2).
Deviation: thresholds are determined during training, not in a separate pass after it.
"""

import torch
from torch import Tensor, nn

from sltt_bench.neurons import LIFParameters, SpikingNeuron, stateful_layers
from sltt_bench.precision import at_least_float32

PERCENTILE = 99.9
MOMENTUM = 0.1


class ConvertedNeuron(SpikingNeuron):
    """Maps currents of any shape to activations in training, to spikes of height θ in evaluation."""

    carried = ("potential",)
    emits_spikes = False
    threshold: Tensor
    """θ, a scalar."""
    batches: Tensor
    """Number of batches from which θ was determined."""

    def __init__(self, parameters: LIFParameters) -> None:
        """`parameters` describe the neurons that these replace; they are not used."""
        super().__init__()
        self.parameters_ = parameters
        self.potential: Tensor | None = None
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, current: Tensor) -> Tensor:
        if self.training:
            activation = torch.relu(current)
            self._balance(activation)
            return activation
        before = self.threshold / 2 if self.potential is None else self.potential
        membrane = before + at_least_float32(current)
        output = torch.where(membrane >= self.threshold, self.threshold, 0).to(current.dtype)
        self.potential = membrane - output
        return output

    @torch.no_grad()
    def _balance(self, activation: Tensor) -> None:
        """Move θ towards this batch's percentile."""
        values = activation.detach().float().flatten()
        rank = max(1, round(PERCENTILE / 100 * len(values)))
        self.batches += 1
        self.threshold += (1 / self.batches).clamp(min=MOMENTUM) * (
            values.kthvalue(rank).values - self.threshold
        )


def unconvertible(network: nn.Module) -> str | None:
    """Returns why the network cannot be trained with rectifiers (a layer's past would be lost), or None."""
    lost = [
        type(layer)
        for layer in stateful_layers(network)
        if layer.carried and not isinstance(layer, SpikingNeuron)
    ]
    if not lost:
        return None
    names = " and ".join(dict.fromkeys(kind.__name__ for kind in lost))
    settings = dict.fromkeys(kind.left_out_by for kind in lost if kind.left_out_by)
    remedy = (
        f"set {' and '.join(settings)}, or choose another method" if settings else "choose another method"
    )
    return (
        f"method 'conversion' trains in one step, without the past that a layer of {names} carries; {remedy}"
    )
