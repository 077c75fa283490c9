"""Layers and initialisations that several networks share."""

import torch
from torch import Tensor, nn

from sltt_bench.neurons import Stateful


class SequenceDropout(Stateful):
    """Dropout whose mask is drawn at the first step of a sequence and shared by all its steps."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.dropped: Tensor | None = None
        """Which activations are zeroed: boolean, the input's shape; None before the first step."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if self.dropped is None:
            self.dropped = torch.empty_like(x, dtype=torch.bool).bernoulli_(self.p)
        # In place on the fresh quotient: one new activation, and the backward pass keeps the mask alone.
        return (x / (1 - self.p)).masked_fill_(self.dropped, 0)

    def reset_state(self) -> None:
        """The mask is the sequence's: not carried, for a step that is computed again has it too."""
        self.dropped = None

    def extra_repr(self) -> str:
        return f"p={self.p}"


def classifier_init(linear: nn.Linear) -> nn.Linear:
    """Small random weights and no bias, so that every class starts equally likely."""
    nn.init.normal_(linear.weight, 0, 0.01)
    nn.init.zeros_(linear.bias)
    return linear


def kaiming_convolutions(network: nn.Module, *, zero_bias: bool = False) -> None:
    """Draw every convolution's weight from N(0, 2 / fan-out) (He et al. 2015); its bias is 0 or left."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if zero_bias and module.bias is not None:
                nn.init.zeros_(module.bias)
