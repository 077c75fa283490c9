"""Spikformer: a transformer of spikes, with attention that needs no softmax.

    patches    4 convolutions 3×3 (dim/8, dim/4, dim/2, dim channels), each N – LIF; a max pool 3×3 stride 2
               after each of the last `halvings` of them; then x + LIF(N(conv 3×3(x))), which tells where a
               patch lies
    depth ×    x + attention(x),  x + MLP(x)
    head       mean over patches – linear

With x of [batch, dim, patches], heads h and W· a weight that all patches share:

    q, k, v = LIF(N(W x))                   spikes
    a_h = v_h (kᵀ_h q_h) · SCALE · 2        [dim/heads, patches]
    attention(x) = LIF(N(W LIF(a)))
    MLP(x) = LIF(N(W₂ LIF(N(W₁ x))))        4 dim hidden channels

A value a of attention is a whole number times the scale: how many patches agree, no exponential and no division.
Within a step it is a function of spikes alone, so that SLTT and the rules with traces go through it as through any
layer: products of activations have no weights, and their gradient is exact in space.

Source: Zhou et al. 2023, "Spikformer: when spiking neural network meets transformer", section 3, and their published
code for CIFAR (384 dimensions, 12 heads, 4 blocks, SCALE 0.125; 9.32 M parameters).
Their neurons scale the input by 1/τ; here nothing is scaled, which at τ = 2 is the same at twice their threshold and twice
their surrogate's width (the recipe `cifar10-spikformer`), and not at theirs: BN's scales may make up for it, those of a cannot.
Deviations: the neurons of a are theirs with half the threshold, which is twice the current at the threshold
that all neurons have here (the surrogate is then half as wide in a). Their batch norm is over all steps, which
normalisation `tdbn` is at threshold 1. Two layer norms a block, which their code creates
and never calls, are left out. Their code for CIFAR reads k and v in another memory order than q; here all three
are read alike, as in their paper. Each step is classified, not their mean output.
"""

from functools import partial

import torch
from torch import Tensor, nn

from sltt_bench.models.layers import Factories
from sltt_bench.models.normalisation import NormalisationFactory
from sltt_bench.models.options import SpikformerOptions
from sltt_bench.neurons import NeuronFactory

SCALE = 0.125
THRESHOLD_RATIO = 0.5
"""Threshold of the attention's neurons, in thresholds of the others."""


class Channels(nn.Sequential):
    """LIF(N(W x + b)) of every patch by itself: [batch, in, patches] → spikes [batch, out, patches]."""

    def __init__(self, channels: int, out_channels: int, make: Factories) -> None:
        super().__init__()
        linear = nn.Conv1d(channels, out_channels, kernel_size=1)
        nn.init.normal_(linear.weight, std=0.02)
        assert linear.bias is not None
        nn.init.zeros_(linear.bias)
        self.add_module("linear", linear)
        self.add_module("norm", make.normalisation(out_channels, dimensions=0))
        self.add_module("neuron", make.neuron())


class SpikingSelfAttention(nn.Module):
    """[batch, dim, patches] → spikes of that shape."""

    def __init__(self, dim: int, heads: int, make: Factories) -> None:
        super().__init__()
        channels = partial(Channels, dim, dim, make)
        self.heads = heads
        self.q, self.k, self.v = channels(), channels(), channels()
        self.neuron = make.neuron()
        self.projection = channels()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            torch.unflatten(layer(x), 1, (self.heads, -1)).flatten(0, 1) for layer in (self.q, self.k, self.v)
        )
        agreement = torch.bmm(k.transpose(1, 2), q)  # [batch · heads, patches, patches]
        current = torch.unflatten(torch.bmm(v, agreement), 0, (-1, self.heads)).flatten(1, 2)
        spikes: Tensor = self.projection(self.neuron(current * (SCALE / THRESHOLD_RATIO)))
        return spikes


class EncoderBlock(nn.Module):
    """Attention and MLP, each beside a shortcut: [batch, dim, patches] → the same."""

    def __init__(self, dim: int, heads: int, hidden: int, make: Factories) -> None:
        super().__init__()
        self.attention = SpikingSelfAttention(dim, heads, make)
        self.mlp = nn.Sequential(Channels(dim, hidden, make), Channels(hidden, dim, make))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        output: Tensor = x + self.mlp(x)
        return output


class Patches(nn.Module):
    """[batch, C, H, W] → [batch, dim, H/2^halvings, W/2^halvings], sizes rounded up."""

    def __init__(self, in_channels: int, dim: int, halvings: int, make: Factories) -> None:
        super().__init__()

        def convolution(channels: int, out_channels: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
                make.normalisation(out_channels),
                make.neuron(),
            )

        self.layers = nn.Sequential()
        channels = in_channels
        for number, out_channels in enumerate((dim // 8, dim // 4, dim // 2, dim)):
            self.layers.append(convolution(channels, out_channels))
            if number >= 4 - halvings:
                self.layers.append(nn.MaxPool2d(3, stride=2, padding=1))
            channels = out_channels
        self.position = convolution(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(x)
        output: Tensor = x + self.position(x)
        return output


class Spikformer(nn.Module):
    """[batch, C, H, W] → [batch, classes], one call per time step; H and W are free.

    Initialised as published: weights on patches and the head are normal of deviation 0.02 (published as truncated at
    2, which never happens), their biases 0; convolutions keep PyTorch's default.
    """

    def __init__(
        self,
        options: SpikformerOptions,
        *,
        neuron: NeuronFactory,
        normalisation: NormalisationFactory,
        input_shape: tuple[int, int, int],
        classes: int,
    ) -> None:
        super().__init__()
        dim, hidden = options.dim, options.dim * options.mlp_ratio
        make = Factories(neuron, normalisation)
        self.patches = Patches(input_shape[0], dim, options.halvings, make)
        self.flatten = nn.Flatten(2)
        self.blocks = nn.Sequential(
            *(EncoderBlock(dim, options.heads, hidden, make) for _ in range(options.depth))
        )
        self.head = nn.Linear(dim, classes)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.flatten(self.patches(x))
        for block in self.blocks:
            x = block(x)
        output: Tensor = self.head(x.mean(2))
        return output
