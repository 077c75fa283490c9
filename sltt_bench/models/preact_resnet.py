"""Pre-activation ResNet-18: the paper's network for CIFAR.

    stem       convolution 3×3
    4 stages   2 blocks each; channels width × (1, 2, 4, 8); stages 2, 3, 4 halve the image
    head       normalisation – LIF – global average pool – dropout – linear

A block of input x computes

    a = LIF(BN(x)),   y = conv(dropout(LIF(BN(conv(a))))) + shortcut(a)

The shortcut starts after the first neuron: it carries spikes, and is a 1×1 convolution if the
shape changes. All convolutions except the stem have a bias.
Source: Meng et al. 2023, section 5.1 and their published code; He et al. 2016 for pre-activation.
"""

from functools import partial

from torch import Tensor, nn

from sltt_bench.models.layers import Factories, SequenceDropout, kaiming_convolutions, residual_stages, stem
from sltt_bench.models.normalisation import NormalisationFactory
from sltt_bench.models.options import PreActResNetOptions
from sltt_bench.neurons import NeuronFactory

BLOCKS_PER_STAGE = (2, 2, 2, 2)


class PreActBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut: [batch, in, H, W] → [batch, out, H/stride, W/stride]."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, make: Factories, dropout: float
    ) -> None:
        super().__init__()
        neuron, normalisation = make
        self.bn1 = normalisation(in_channels)
        self.neuron1 = neuron()
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1)
        self.bn2 = normalisation(out_channels)
        self.neuron2 = neuron()
        self.dropout = SequenceDropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.neuron1(self.bn1(x))
        # No names for the tensors between the convolutions: a name would keep a tensor in memory to the end.
        hidden = self.conv2(self.dropout(self.neuron2(self.bn2(self.conv1(activated)))))
        output: Tensor = hidden + self.shortcut(activated)
        return output


class PreActResNet(nn.Module):
    """[batch, C, H, W] → [batch, classes], one call per time step; H and W are free.

    Initialised as published: convolution weights are Kaiming-normal (fan-out) and the classifier's bias is 0;
    convolution biases and the classifier's weight keep PyTorch's defaults.
    """

    def __init__(
        self,
        options: PreActResNetOptions,
        *,
        neuron: NeuronFactory,
        normalisation: NormalisationFactory,
        input_shape: tuple[int, int, int],
        classes: int,
    ) -> None:
        super().__init__()
        dropout, width = options.dropout, options.width
        block = partial(PreActBlock, dropout=dropout, make=Factories(neuron, normalisation))
        self.conv1 = stem(input_shape[0], width, "3x3")
        self.layer1, self.layer2, self.layer3, self.layer4 = residual_stages(block, width, BLOCKS_PER_STAGE)
        self.bn1 = normalisation(width * 8)
        self.neuron1 = neuron()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = SequenceDropout(dropout)
        self.linear = nn.Linear(width * 8, classes)
        kaiming_convolutions(self)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for block in (*self.layer1, *self.layer2, *self.layer3, *self.layer4):
            x = block(x)  # one by one, since a stage would keep its input in memory until its end
        spikes = self.neuron1(self.bn1(x))
        output: Tensor = self.linear(self.dropout(self.flatten(self.pool(spikes))))
        return output
