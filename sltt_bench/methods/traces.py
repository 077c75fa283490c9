"""Traces: leaky sums over the steps of one sequence, one a layer, outside the graph."""

from torch import Tensor, nn


class Trace:
    """a[t] = decay a[t−1] + x[t] for each layer, a[0] = 0; forgotten with the sequence."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.values: dict[nn.Module, Tensor] = {}
        """Layer → a[t], after its last step."""

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:
        """a[t] from x[t] (same shape), which must not be changed afterwards."""
        before = self.values.get(layer)
        self.values[layer] = x if before is None else self.decay * before + x
        return self.values[layer]
