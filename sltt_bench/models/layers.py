"""Layers and initialisations that several networks share."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sltt_bench.models.normalisation import NormalisationFactory
from sltt_bench.models.options import Stem
from sltt_bench.neurons import NeuronFactory, Stateful


class Factories(NamedTuple):
    """Factories of a network's neurons and normalising layers."""

    neuron: NeuronFactory
    normalisation: NormalisationFactory


class SequenceDropout(Stateful):
    """Dropout whose mask is drawn at the first step of a sequence and shared by all its steps."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.dropped: Tensor | None = None
        """Mask of zeroed activations: boolean, of the input's shape; None before the first step."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if self.dropped is None:
            self.dropped = torch.empty_like(x, dtype=torch.bool).bernoulli_(self.p)
        # In place on the new quotient: one new activation, and the backward pass saves only the mask.
        return (x / (1 - self.p)).masked_fill_(self.dropped, 0)

    def reset_state(self) -> None:
        """Forget the mask. It belongs to the sequence and is not carried: a recomputed step has the same."""
        self.dropped = None

    def extra_repr(self) -> str:
        return f"p={self.p}"


def stem(in_channels: int, width: int, kind: Stem) -> nn.Conv2d:
    """The first convolution of a residual network: 7×7 of stride 2, or 3×3 for small images; without bias."""
    size, stride = (7, 2) if kind == "7x7" else (3, 1)
    return nn.Conv2d(in_channels, width, size, stride=stride, padding=size // 2, bias=False)


def residual_stages(
    block: Callable[[int, int, int], nn.Module], width: int, blocks: Sequence[int], first_stride: int = 1
) -> list[nn.Sequential]:
    """Returns stages of `blocks[i]` × `block(in_channels, out_channels, stride)`, with width × 2ⁱ channels.

    The first block of a stage halves the image; that of the first stage divides its size by `first_stride`.
    """
    stages, channels = [], width
    for number, count in enumerate(blocks):
        out_channels = width * 2**number
        first = block(channels, out_channels, 2 if number else first_stride)
        stages.append(nn.Sequential(first, *(block(out_channels, out_channels, 1) for _ in range(count - 1))))
        channels = out_channels
    return stages


def classifier_init(linear: nn.Linear) -> nn.Linear:
    """Initialise with small random weights and zero bias, so that all classes start about equally likely."""
    nn.init.normal_(linear.weight, 0, 0.01)
    nn.init.zeros_(linear.bias)
    return linear


def kaiming_convolutions(network: nn.Module, *, zero_bias: bool = False) -> None:
    """Draw convolution weights from N(0, 2 / fan-out) (He et al. 2015); `zero_bias` sets biases to 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if zero_bias and module.bias is not None:
                nn.init.zeros_(module.bias)
