"""Convolutions that leave their bias to the reader of their result, which saves a pass over the images.

Batch norm with the batch's statistics cancels a bias:

    x = conv(h) + b,   BN(x) = γ (x − μ) / √(σ² + ε) + β   with μ = mean(conv(h)) + b

The output does not depend on b, and ∂L/∂b = 0 needs no sum over the images. The running mean
still learns μ including b. The same holds for a sum of convolutions, such as a residual connection. Neurons
and residual sums add b while they read x, and sum ∂L/∂b while they write ∂L/∂x.

A bias is left out if only one such reader can see the result, according to the calls of a step (torch.fx),
and if no hook sees it at the time, including hooks of a part with the convolution but without its reader.
"""

import operator
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from sltt_bench.models.nf_resnet import ScaledWSConv2d
from sltt_bench.neurons import reads_values
from sltt_bench.torch_internals import HOOKS_OF_A_LAYER, backward_hooks_of_every_layer, hooks_of_every_layer

SUMS = (operator.add, operator.iadd, torch.add)


class Reader(Protocol):
    """A layer that can read the results of convolutions without their biases."""

    def takes_biases(self) -> bool:
        """Whether it adds or cancels the biases in its next call."""


class _Unbiased(nn.Conv2d):
    """Base of convolutions whose bias may be left out."""

    readers: tuple[Reader]
    """The reader of its result, in a tuple so that it is no submodule of this layer."""
    witnesses: tuple[nn.Module, ...]
    """Parts of the network whose hooks see the result."""
    left_out = False
    """Whether the latest result is without the bias."""

    def forward(self, input: Tensor) -> Tensor:
        (reader,) = self.readers
        watched = any(map(reads_values, self._forward_hooks.values())) or are_watched(self.witnesses)
        self.left_out = not watched and reader.takes_biases()
        if not self.left_out:
            return super().forward(input)
        return F.conv2d(input, self._weight(), None, self.stride, self.padding, self.dilation, self.groups)

    def _weight(self) -> Tensor:
        return self.weight


class UnbiasedConv2d(_Unbiased):
    """`nn.Conv2d` whose bias may be left out."""

    def _get_name(self) -> str:
        return "Conv2d"


class UnbiasedScaledWSConv2d(_Unbiased, ScaledWSConv2d):
    """`ScaledWSConv2d` whose bias may be left out."""

    def _weight(self) -> Tensor:
        return self.standardised_weight()

    def _get_name(self) -> str:
        return "ScaledWSConv2d"


UNBIASED: dict[type[nn.Module], type[_Unbiased]] = {
    nn.Conv2d: UnbiasedConv2d,
    ScaledWSConv2d: UnbiasedScaledWSConv2d,
}


def biased_convolutions(node: Any, network: nn.Module, calls: Counter[nn.Module]) -> Iterator[nn.Conv2d]:
    """Yields the convolutions whose biases can be left out of a value: it has one reader and each bias once.

    The value is the result of a convolution or a sum of such. `calls`: how often a step calls each layer.
    """
    if not isinstance(node, fx.Node) or len(node.users) != 1:
        return
    if node.op == "call_function" and node.target in SUMS and len(node.args) == 2 and not node.kwargs:
        if node.args[0] is node.args[1]:
            return  # the sum contains the bias twice
        if node.target is operator.iadd and not list(biased_convolutions(node.args[0], network, calls)):
            return  # other readers of the first summand would see the sum in it
        for summand in node.args:
            yield from biased_convolutions(summand, network, calls)
    elif node.op == "call_module":
        layer = network.get_submodule(str(node.target))
        if isinstance(layer, nn.Conv2d) and calls[layer] == 1 and can_leave_bias(layer):
            yield layer


def leave_biases_to_neurons(network: nn.Module, graph: fx.Graph, neurons: type[nn.Module]) -> int:
    """Let convolutions that only one layer of type `neurons` reads leave it their bias; returns how many do.

    Changes the network in place. `graph`: the calls of a step.
    """
    calls = [node for node in graph.nodes if node.op == "call_module"]
    times = Counter(network.get_submodule(str(node.target)) for node in calls)
    biases = 0
    for node in calls:
        layer = network.get_submodule(str(node.target))
        if isinstance(layer, neurons) and times[layer] == 1 and len(node.args) == 1:
            biases += leave_bias_to(layer, biased_convolutions(node.args[0], network, times), network)
    return biases


def can_leave_bias(convolution: nn.Conv2d) -> bool:
    """Whether the convolution has a bias and a type that can leave it out."""
    known = type(convolution) in UNBIASED and "forward" not in convolution.__dict__
    return known and convolution.bias is not None and convolution.padding_mode == "zeros"


def leave_bias_to(reader: nn.Module, convolutions: Iterable[nn.Conv2d], network: nn.Module) -> int:
    """Let these convolutions of the network leave their biases to the reader, in place; returns how many."""
    sources = tuple(convolutions)
    for convolution in sources:
        convolution.__class__ = UNBIASED[type(convolution)]
        convolution.__dict__["readers"] = (reader,)
        convolution.__dict__["witnesses"] = witnesses_between(convolution, reader, network)
    reader.__dict__["sources"] = sources
    return len(sources)


def witnesses_between(layer: nn.Module, reader: nn.Module, network: nn.Module) -> tuple[nn.Module, ...]:
    """Returns the parts of the network that contain one of the two but not the other.

    The tensor from layer to reader enters or leaves these parts. They are in a tuple so that an attribute
    with them adds no submodules.
    """
    return tuple(
        part
        for part in network.modules()
        if part is not layer
        and part is not reader
        and (layer in (inside := set(part.modules()))) != (reader in inside)
    )


def are_watched(parts: Iterable[nn.Module]) -> bool:
    """Whether a hook, global or on one of the parts, reads inputs, outputs or their gradients.

    Backward hooks count, since torch then passes on other tensors.
    """
    hooks = [*hooks_of_every_layer(), *backward_hooks_of_every_layer()]
    for part in parts:
        hooks += [hook for kind in HOOKS_OF_A_LAYER for hook in getattr(part, kind).values()]
    return any(map(reads_values, hooks))


def biases_left_out(sources: Iterable[nn.Conv2d]) -> list[Tensor]:
    """Returns the biases that are missing from the latest results of the convolutions."""
    return [
        source.bias for source in sources if getattr(source, "left_out", False) and source.bias is not None
    ]
