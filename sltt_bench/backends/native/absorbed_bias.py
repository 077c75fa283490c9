"""Convolutions that leave their bias to what reads their result, so that no pass over the images adds it.

Batch norm that uses the batch's statistics takes a bias away again:

    x = conv(h) + b,   BN(x) = γ (x − μ) / √(σ² + ε) + β   with μ = mean(conv(h)) + b

What comes out does not depend on b, and ∂L/∂b = 0, which nobody needs to sum up over the images. The running mean
learns μ with b, as it does otherwise. The same holds for a sum of convolutions, such as a residual connection. Neurons and
residual sums add b as they read x anyway, and sum ∂L/∂b as they write ∂L/∂x.

A bias is left out where nothing but one such reader can see the result, which the calls of a step (torch.fx) show, and no hook
does at the time, be it one of a part that holds the convolution and not its reader.
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
    """What reads convolutions without their biases."""

    def takes_biases(self) -> bool:
        """Whether it makes up for them in the call to come."""


class _Unbiased(nn.Conv2d):
    """What the convolutions share."""

    readers: tuple[Reader]
    """What reads its result, in a tuple: not a part of this layer."""
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
    """As `nn.Conv2d`, but that its bias may be left out."""

    def _get_name(self) -> str:
        return "Conv2d"


class UnbiasedScaledWSConv2d(_Unbiased, ScaledWSConv2d):
    """As `ScaledWSConv2d`, likewise."""

    def _weight(self) -> Tensor:
        return self.standardised_weight()

    def _get_name(self) -> str:
        return "ScaledWSConv2d"


UNBIASED: dict[type[nn.Module], type[_Unbiased]] = {
    nn.Conv2d: UnbiasedConv2d,
    ScaledWSConv2d: UnbiasedScaledWSConv2d,
}


def biased_convolutions(node: Any, network: nn.Module, calls: Counter[nn.Module]) -> Iterator[nn.Conv2d]:
    """The convolutions whose bias a value holds, which one thing reads: once each, and added up at most.

    `calls`: how often a step calls each layer.
    """
    if not isinstance(node, fx.Node) or len(node.users) != 1:
        return
    if node.op == "call_function" and node.target in SUMS and len(node.args) == 2 and not node.kwargs:
        if node.args[0] is node.args[1]:
            return  # twice the value holds twice the bias
        if node.target is operator.iadd and not list(biased_convolutions(node.args[0], network, calls)):
            return  # who else holds the first summand sees the second in it
        for summand in node.args:
            yield from biased_convolutions(summand, network, calls)
    elif node.op == "call_module":
        layer = network.get_submodule(str(node.target))
        if isinstance(layer, nn.Conv2d) and calls[layer] == 1 and can_leave_bias(layer):
            yield layer


def leave_biases_to_neurons(network: nn.Module, graph: fx.Graph, neurons: type[nn.Module]) -> int:
    """Let convolutions that only one layer of the kind `neurons` reads leave their bias to it, in place; how many do.

    `graph`: the calls of a step.
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
    """Whether it has a bias, and is of a kind that can do without."""
    known = type(convolution) in UNBIASED and "forward" not in convolution.__dict__
    return known and convolution.bias is not None and convolution.padding_mode == "zeros"


def leave_bias_to(reader: nn.Module, convolutions: Iterable[nn.Conv2d], network: nn.Module) -> int:
    """Let the convolutions of the network leave their biases to the reader, in place; how many do."""
    sources = tuple(convolutions)
    for convolution in sources:
        convolution.__class__ = UNBIASED[type(convolution)]
        convolution.__dict__["readers"] = (reader,)
        convolution.__dict__["witnesses"] = witnesses_between(convolution, reader, network)
    reader.__dict__["sources"] = sources
    return len(sources)


def witnesses_between(layer: nn.Module, reader: nn.Module, network: nn.Module) -> tuple[nn.Module, ...]:
    """The parts of the network that hold one of the two and not the other: what goes from layer to reader enters or leaves
    them. They come in a tuple, for an attribute that is no part of what has it."""
    return tuple(
        part
        for part in network.modules()
        if part is not layer
        and part is not reader
        and (layer in (inside := set(part.modules()))) != (reader in inside)
    )


def are_watched(parts: Iterable[nn.Module]) -> bool:
    """Whether a hook, of one of them or of every layer, looks at what enters or leaves, or at its gradients, for which torch
    hands on other tensors."""
    hooks = [*hooks_of_every_layer(), *backward_hooks_of_every_layer()]
    for part in parts:
        hooks += [hook for kind in HOOKS_OF_A_LAYER for hook in getattr(part, kind).values()]
    return any(map(reads_values, hooks))


def biases_left_out(sources: Iterable[nn.Conv2d]) -> list[Tensor]:
    """Those that the convolutions' latest results lack."""
    return [
        source.bias for source in sources if getattr(source, "left_out", False) and source.bias is not None
    ]
