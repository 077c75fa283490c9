"""NF-ResNet-34, -50 and -101: residual networks without normalisation, the paper's networks for ImageNet.

    stem       standardised convolution 7×7 stride 2 – average pool 3×3 stride 2
    4 stages   basic blocks (34) or bottlenecks (50, 101); stages 2, 3, 4 halve the image
    head       global average pool – linear

Batch norm keeps the variance of every signal near 1. Three techniques replace it (Brock, De & Smith
2021, "Characterizing signal propagation to close the performance gap in unnormalized ResNets",
sections 4.1–4.3):

1. *Scaled weight standardisation*: each filter has mean 0 and squared norm 1, so that a convolution
   preserves the variance of its input.
2. *Scaled activations*: a neuron that receives N(0, 1) at its first step fires with probability
   p = P(u ≥ V_th) = 0.159, and its spikes have variance p (1 − p) = 0.1335; they are multiplied by
   γ = 1 / √0.1335 ≈ 2.74 to restore variance 1.
3. *Expected variance*: a block with input x computes

       a = γ LIF(x / β),   y = shortcut + α g f(a)

   where β² = E[Var x] is known beforehand, α = 0.2 and g is a learned scalar that starts at 0
   (skipinit: De & Smith 2020). f(a) has variance 1, so at g = 1, Var y = Var shortcut + α². The
   identity shortcut has the variance of x; the shortcut of a transition is a standardised convolution
   of a and has variance 1. `expected_variances` computes these values.

Parameter names follow the checkpoints that the paper's authors published.
Source: Meng et al. 2023, section 5.1 and their published code.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sltt_bench.models.layers import kaiming_convolutions
from sltt_bench.models.normalisation import standardised
from sltt_bench.models.options import NFResNetOptions
from sltt_bench.neurons import NeuronFactory

GAMMA = 2.74
"""Scale of the neurons' outputs."""
ALPHA = 0.2
"""Scale of the residual branches."""


def expected_variances(blocks_per_stage: tuple[int, ...]) -> list[list[float]]:
    """Returns E[Var x] at the input of each block of each stage, with every learned scalar g at 1.

    It is 1 at the first block, 1 + α² after the first block of each stage (a transition), and grows by
    α² with every further block. Stage 1 with basic blocks has no transition but also starts at 1.
    """
    stages = []
    variance = 1.0
    for blocks in blocks_per_stage:
        stage = []
        for block in range(blocks):
            stage.append(variance)
            variance = (1.0 if block == 0 else variance) + ALPHA**2
        stages.append(stage)
    return stages


class ScaledWSConv2d(nn.Conv2d):
    """A convolution whose weight is standardised before use, with a learned gain for each filter."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        """Padded so that stride 1 keeps the image's size (odd kernels). Needs a fan-in ≥ 2."""
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2)
        self.gain = nn.Parameter(torch.ones(out_channels, 1, 1, 1))

    def standardised_weight(self) -> Tensor:
        """Returns gain (W − mean) / √(var · fan_in + 10⁻⁴) for each filter, with unbiased var: shape of W.

        It is the same for all T steps of an iteration, so a backend may compute it once.
        """
        return standardised(self.weight, inputs=(1, 2, 3)) * self.gain

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.standardised_weight(), self.bias, self.stride, self.padding)


class NormFreeBlock(nn.Module):
    """Base of both kinds of block: y = shortcut + α g f(a), a = γ LIF(x / β)."""

    expansion: int
    """Output channels per inner channel."""

    def __init__(
        self, in_channels: int, channels: int, stride: int, *, expected_variance: float, neuron: NeuronFactory
    ) -> None:
        """`channels` are the inner channels; the output has `channels` × expansion."""
        super().__init__()
        self.beta = expected_variance**0.5
        self.neuron1 = neuron()
        out_channels = channels * self.expansion
        self.downsample: ScaledWSConv2d | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = ScaledWSConv2d(in_channels, out_channels, kernel_size=1, stride=stride)
        self.skipinit_gain = nn.Parameter(torch.zeros(()))

    def residual(self, activated: Tensor) -> Tensor:
        """Returns f(a), which has variance 1 if a has."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        activated = self.neuron1.scaled(x, GAMMA, self.beta)
        shortcut = x if self.downsample is None else self.downsample(activated)
        return self.joined(self.residual(activated), shortcut)

    def joined(self, residual: Tensor, shortcut: Tensor) -> Tensor:
        """Returns α g residual + shortcut; a backend may fuse it."""
        residual = residual * self.skipinit_gain  # rebinding the name frees the tensor before
        residual = residual * ALPHA
        return residual + shortcut


class BasicBlock(NormFreeBlock):
    """Two 3×3 convolutions."""

    expansion = 1

    def __init__(
        self, in_channels: int, channels: int, stride: int, *, expected_variance: float, neuron: NeuronFactory
    ) -> None:
        super().__init__(in_channels, channels, stride, expected_variance=expected_variance, neuron=neuron)
        self.conv1 = ScaledWSConv2d(in_channels, channels, kernel_size=3, stride=stride)
        self.neuron2 = neuron()
        self.conv2 = ScaledWSConv2d(channels, channels, kernel_size=3)

    def residual(self, activated: Tensor) -> Tensor:
        result: Tensor = self.conv2(self.neuron2.scaled(self.conv1(activated), GAMMA))
        return result


class Bottleneck(NormFreeBlock):
    """Convolutions 1×1, 3×3 and 1×1; the 3×3 one has a quarter of the output's channels."""

    expansion = 4

    def __init__(
        self, in_channels: int, channels: int, stride: int, *, expected_variance: float, neuron: NeuronFactory
    ) -> None:
        super().__init__(in_channels, channels, stride, expected_variance=expected_variance, neuron=neuron)
        self.conv1 = ScaledWSConv2d(in_channels, channels, kernel_size=1)
        self.neuron2 = neuron()
        self.conv2 = ScaledWSConv2d(channels, channels, kernel_size=3, stride=stride)
        self.neuron3 = neuron()
        self.conv3 = ScaledWSConv2d(channels, channels * self.expansion, kernel_size=1)

    def residual(self, activated: Tensor) -> Tensor:
        hidden = self.neuron2.scaled(self.conv1(activated), GAMMA)
        result: Tensor = self.conv3(self.neuron3.scaled(self.conv2(hidden), GAMMA))
        return result


ARCHITECTURES: dict[str, tuple[type[NormFreeBlock], tuple[int, ...]]] = {
    "nf-resnet34": (BasicBlock, (3, 4, 6, 3)),
    "nf-resnet50": (Bottleneck, (3, 4, 6, 3)),
    "nf-resnet101": (Bottleneck, (3, 4, 23, 3)),
}
"""Name → kind of block, blocks of each stage."""


class NFResNet(nn.Module):
    """[batch, C, H, W] → [batch, classes], one call per time step; H and W are free.

    Initialised as published: convolution weights are Kaiming-normal (fan-out), their biases 0 and gains 1, the
    classifier's weight 0; its bias keeps PyTorch's default.
    """

    def __init__(
        self,
        options: NFResNetOptions,
        *,
        neuron: NeuronFactory,
        input_shape: tuple[int, int, int],
        classes: int,
    ) -> None:
        super().__init__()
        width = options.width
        block, blocks_per_stage = ARCHITECTURES[options.name]

        def stage(channels: int, inner: int, stride: int, variances: list[float]) -> nn.Sequential:
            layers = nn.Sequential()
            for variance in variances:
                layers.append(block(channels, inner, stride, expected_variance=variance, neuron=neuron))
                channels, stride = inner * block.expansion, 1
            return layers

        variances = expected_variances(blocks_per_stage)
        widened = width * block.expansion
        self.conv1 = ScaledWSConv2d(input_shape[0], width, kernel_size=7, stride=2)
        self.pool = nn.AvgPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = stage(width, width, 1, variances[0])
        self.layer2 = stage(widened, width * 2, 2, variances[1])
        self.layer3 = stage(widened * 2, width * 4, 2, variances[2])
        self.layer4 = stage(widened * 4, width * 8, 2, variances[3])
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(widened * 8, classes)
        kaiming_convolutions(self, zero_bias=True)
        nn.init.zeros_(self.fc.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv1(x))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        output: Tensor = self.fc(self.flatten(self.avgpool(x)))
        return output
