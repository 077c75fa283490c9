"""Traces: leaky sums over the steps of one sequence, one for each layer, outside the graph."""

from torch import Tensor, nn

from sltt_bench.neurons import followed_neurons


class Trace:
    """a[t] = decay a[t−1] + x[t] for each layer, a[0] = 0. One instance serves one sequence."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.values: dict[nn.Module, Tensor] = {}
        """Layer → a[t], after its last step."""

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Returns a[t] from x[t] (same shape); x[t] must not be changed afterwards."""
        before = self.values.get(layer)
        self.values[layer] = x if before is None else self.decay * before + x
        return self.values[layer]


def shared_decay(network: nn.Module) -> float:
    """Returns λ of the network's LIF neurons, for traces that decay alike in all layers.

    Raises NotImplementedError if there are no neurons, if layers leak differently or if neurons are not LIF.
    """
    neurons = [layer.parameters_ for layer in followed_neurons(network)]
    if others := [neuron.kind for neuron in neurons if neuron.kind != "lif"]:
        raise NotImplementedError(f"the trace is that of neurons of kind lif, not of {others[0]}")
    if len({neuron.decay for neuron in neurons}) > 1:
        raise NotImplementedError(
            "the network's layers of neurons leak differently, and the rule has one trace for all that a layer's "
            "spikes reach; choose bptt, tbptt-wN, sltt or pp-prop, or give all layers one tau"
        )
    return neurons[0].decay
