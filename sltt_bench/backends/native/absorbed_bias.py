"""Convolutions whose bias the batch norm behind them takes away again.

    x = conv(h) + b,   BN(x) = γ (x − μ) / √(σ² + ε) + β   with the batch's own μ = mean(conv(h)) + b

What comes out does not depend on b, and ∂L/∂b = 0. While a batch norm uses the batch's statistics, the convolutions before
it leave b out: no pass over the images to add it, none over their gradients to sum up what is zero. The running mean
learns μ with b, as it does otherwise. The same holds for a sum of convolutions, such as a residual connection, that
nothing but the batch norm reads.
"""

import operator
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from sltt_bench.neurons import reads_values

SUMS = (operator.add, torch.add)


class UnbiasedConv2d(nn.Conv2d):
    """As `nn.Conv2d`, but for a bias that makes no difference."""

    norms: tuple[Any]
    """The batch norm behind it, in a tuple: not a part of this layer."""
    left_out = False
    """Whether the latest result is without the bias."""

    def forward(self, input: Tensor) -> Tensor:
        (norm,) = self.norms
        watched = any(map(reads_values, self._forward_hooks.values()))
        self.left_out = norm.training and norm.is_unwatched() and not watched
        if not self.left_out:
            return super().forward(input)
        return F.conv2d(input, self.weight, None, self.stride, self.padding, self.dilation, self.groups)

    def _get_name(self) -> str:
        return "Conv2d"


def biased_convolutions(node: Any, network: nn.Module, calls: Counter[nn.Module]) -> Iterator[nn.Conv2d]:
    """The convolutions whose bias a value holds, which one thing reads: once each, and added up at most.

    `calls`: how often a step calls each layer.
    """
    if not isinstance(node, fx.Node) or len(node.users) != 1:
        return
    if node.op == "call_function" and node.target in SUMS and len(node.args) == 2 and not node.kwargs:
        for summand in node.args:
            yield from biased_convolutions(summand, network, calls)
    elif node.op == "call_module":
        layer = network.get_submodule(str(node.target))
        if (
            type(layer) is nn.Conv2d
            and layer.bias is not None
            and layer.padding_mode == "zeros"
            and calls[layer] == 1
        ):
            yield layer


def leave_bias_to(norm: nn.Module, convolution: nn.Conv2d) -> UnbiasedConv2d:
    """Make a convolution before the batch norm one that leaves its bias out, in place."""
    convolution.__class__ = UnbiasedConv2d
    assert isinstance(convolution, UnbiasedConv2d)
    convolution.__dict__["norms"] = (norm,)
    return convolution
