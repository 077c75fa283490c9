"""A multilayer perceptron of LIF neurons, feed-forward or recurrent, with a linear readout."""

import math

from torch import Tensor, nn

from sltt_bench.models.layers import SequenceDropout
from sltt_bench.models.normalisation import NormalisationFactory, ScaledWSLinear
from sltt_bench.models.options import MLPOptions
from sltt_bench.neuron_kinds import Readout
from sltt_bench.neurons import NeuronFactory, Stateful


def build(
    options: MLPOptions,
    *,
    neuron: NeuronFactory,
    normalisation: NormalisationFactory,
    input_shape: tuple[int, ...],
    classes: int,
) -> nn.Sequential:
    """Build the network for inputs [batch, *input_shape], which it flattens."""
    features = math.prod(input_shape)
    network = nn.Sequential()
    network.add_module("flatten", nn.Flatten())
    for number, neurons in enumerate(options.hidden, start=1):
        of_weights = options.normalisation == "weight"
        linear = ScaledWSLinear(features, neurons) if of_weights else nn.Linear(features, neurons)
        norm = None if options.normalisation in ("none", "weight") else normalisation(neurons, dimensions=0)
        layer: nn.Module
        if options.recurrent:
            layer = Recurrent(linear, neuron(), norm)
        else:
            layer = nn.Sequential(linear, *([] if norm is None else [norm]), neuron())
        network.add_module(f"layer{number}", layer)
        network.add_module(f"dropout{number}", SequenceDropout(options.dropout))
        features = neurons
    network.add_module("classifier", nn.Linear(features, classes))
    if options.readout_tau is not None:
        network.add_module("readout", Readout(options.readout_tau))
    return network


class Recurrent(Stateful):
    """I[t] = N(W x[t]) + R s[t−1]: inputs [batch, m] and the layer's last spikes → spikes [batch, n].

    N is a normalisation or the identity. R starts orthogonal, W with PyTorch's default.
    """

    carried = ("spikes",)
    emits_spikes = True
    left_out_by = "model.recurrent: false"

    def __init__(
        self, feedforward: nn.Linear, neuron: nn.Module, normalisation: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.feedforward = feedforward
        self.normalisation = normalisation
        self.recurrent = nn.Linear(feedforward.out_features, feedforward.out_features, bias=False)
        nn.init.orthogonal_(self.recurrent.weight)
        self.neuron = neuron
        self.spikes: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        current = self.feedforward(x)
        if self.normalisation is not None:
            current = self.normalisation(current)
        if self.spikes is not None:
            current = current + self.recurrent(self.spikes)
        spikes: Tensor = self.neuron(current)
        self.spikes = spikes
        return spikes
