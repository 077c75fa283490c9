"""Layers that several networks share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sltt_bench.neurons import Stateful


class SequenceDropout(Stateful):
    """Dropout whose mask is drawn at the first step of a sequence and shared by all its steps."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if self.mask is None:
            with torch.no_grad():
                self.mask = F.dropout(torch.ones_like(x), self.p, training=True)
        return x * self.mask

    def reset_state(self) -> None:
        self.mask = None

    def detach_state(self) -> None:
        """The mask is a constant already."""

    def extra_repr(self) -> str:
        return f"p={self.p}"


def classifier_init(linear: nn.Linear) -> nn.Linear:
    """Small random weights and no bias, so that every class starts equally likely."""
    nn.init.normal_(linear.weight, 0, 0.01)
    nn.init.zeros_(linear.bias)
    return linear
