"""Spikformer: a spiking transformer whose attention needs no softmax.

    patches    4 convolutions 3×3 (dim/8, dim/4, dim/2, dim channels), each N – LIF; a max pool 3×3 stride 2
               after each of the last `halvings` of them; then x + LIF(N(conv 3×3(x))), which encodes the
               position of a patch
    depth ×    x + attention(x),  x + MLP(x)
    head       mean over patches – linear

With x of [batch, dim, patches], heads h and W· a weight that all patches share:

    q, k, v = LIF(N(W x))                   spikes
    a_h = v_h (kᵀ_h q_h) · SCALE · 2        [dim/heads, patches]
    attention(x) = LIF(N(W LIF(a)))
    MLP(x) = LIF(N(W₂ LIF(N(W₁ x))))        4 dim hidden channels

A value of the attention a is a whole number, the count of agreements between patches, times the scale; it
needs no exponential and no division. Within a step, a is a function of spikes only, so SLTT and the rules
with traces treat it like any layer: products of activations have no weights, and their gradient is exact in
space.

Source: Zhou et al. 2023, "Spikformer: when spiking neural network meets transformer", section 3, and their published
code for CIFAR (384 dimensions, 12 heads, 4 blocks, SCALE 0.125; 9.32 M parameters).
Their neurons scale the input by 1/τ; here nothing is scaled. At τ = 2 this is equivalent with twice their
threshold and twice the width of their surrogate (the recipe `cifar10-spikformer`), but not with theirs: BN's
scales may compensate for the difference, the fixed scale of a cannot.
Deviations: their neurons of a have half the threshold of the others; here all neurons have the same threshold
and a is doubled instead (the surrogate is then half as wide in a). Their batch norm is over all steps, like
normalisation `tdbn` at threshold 1. Two layer norms in each block, which their code creates and never calls,
are left out. Their code for CIFAR reads k and v in another memory order than q; here all three are read in
the same order, as in their paper. Each step is classified instead of the mean output.
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
"""Threshold of the attention's neurons in the published code, relative to that of the other neurons."""


class Channels(nn.Sequential):
    """LIF(N(W x + b)) for each patch separately: [batch, in, patches] → spikes [batch, out, patches]."""

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
    """[batch, dim, patches] → spikes of the same shape."""

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
    """Attention and MLP, each with a shortcut: [batch, dim, patches] → the same shape."""

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

    Initialised as published: weights on patches and the head's are normal with standard deviation 0.02 (the
    published truncation at 2 never takes effect), their biases 0; convolutions keep PyTorch's default.
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
