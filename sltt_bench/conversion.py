"""ANN → SNN conversion: neurons that are rectifiers while a network learns and integrate and fire when it is used.

    training      y = max(0, I)                                             no state, no time
                  θ ← θ + m (q(y) − θ),   m = max(1/n, 0.1) in batch n      threshold balancing, one θ a layer
    evaluation    u[t] = v[t−1] + I[t],   v[0] = θ/2
                  s[t] = H(u[t] − θ)
                  v[t] = u[t] − θ s[t]                                      soft reset, no leak
                  output θ s[t]

q(y) is the PERCENTILE-th percentile of a layer's outputs over the batch, so that θ follows the training data as the
running statistics of batch norm do. θ s[t] instead of s[t] is the weights of the next layer times θ, as the
converted network would hold them. The mean output over T steps differs from y, where 0 ≤ y ≤ θ, by at most c/T, where c
is θ/2 in the first layer and grows with the thresholds and weights before a later one. What is not linear between two
layers has no such bound: the maximum of spikes (max pools) is not that of rates, nor is their product (attention, the
shortcuts "and" and "iand").
Source: Diehl et al. 2015 (data-based thresholds); Rueckauer et al. 2017 (percentiles, soft reset); Bu et al. 2022,
"Optimized potential initialization for low-latency spiking neural networks" (v[0] = θ/2).
Deviation: thresholds are taken while the network learns, not in a pass of its own after it.
"""

import torch
from torch import Tensor, nn

from sltt_bench.neurons import LIFParameters, SpikingNeuron, stateful_layers

PERCENTILE = 99.9
MOMENTUM = 0.1


class ConvertedNeuron(SpikingNeuron):
    """A layer: currents of any shape in; activations out while it trains, else spikes of height θ."""

    carried = ("potential",)
    emits_spikes = False
    threshold: Tensor
    """θ, a scalar."""
    batches: Tensor
    """Batches that θ was taken from."""

    def __init__(self, parameters: LIFParameters) -> None:
        """`parameters` describe the neurons that these stand in for; nothing of them is used."""
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
        membrane = before + current
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
    """Why the network cannot be trained as one of rectifiers, or None: some layer's past would be lost."""
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
