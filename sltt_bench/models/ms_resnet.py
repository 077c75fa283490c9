"""MS-ResNet-18 and -34: residual networks whose shortcuts carry potentials (currents), not spikes.

    stem       convolution 7×7 stride 2 – normalisation; or, for small images, convolution 3×3 – normalisation
    4 stages   blocks of two 3×3 convolutions; channels width × (1, 2, 4, 8); each stage halves the image,
               except the first stage after the 3×3 stem
    head       LIF – global average pool – linear

A block of currents x computes

    y = N(conv(LIF(N(conv(LIF(x)))))) + shortcut(x)

so the shortcut path from the first block to the last has no neuron: the shortcut is x itself, or N(conv
1×1(x)) if the shape changes. The scale of a block's second normalisation starts at 0, so every block
initially equals its shortcut. In `preact_resnet.py`, by contrast, the shortcut starts after the first neuron
and carries spikes; `sew_resnet.py` adds spikes to spikes.
Source: Hu et al. 2024, "Advancing spiking neural networks toward deep residual learning" (arXiv 2112.08954), section
III, and their published code. They use `tdbn`, which only BPTT can; the default here is `batch`.
Deviations: the 3×3 stem; convolutions are initialised as in the other residual networks, theirs with
PyTorch's defaults; every step is classified, unless the recipe has `loss.average: outputs`, as theirs.
"""

from functools import partial

from torch import Tensor, nn

from sltt_bench.models.layers import Factories, kaiming_convolutions, residual_stages, stem
from sltt_bench.models.normalisation import NormalisationFactory, start_at_zero
from sltt_bench.models.options import MSResNetOptions
from sltt_bench.neurons import NeuronFactory

BLOCKS_PER_STAGE = {"ms-resnet18": (2, 2, 2, 2), "ms-resnet34": (3, 4, 6, 3)}


class MSBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut: [batch, in, H, W] → [batch, out, H/stride, W/stride]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, make: Factories) -> None:
        super().__init__()
        neuron, normalisation = make
        self.neuron1 = neuron()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = normalisation(out_channels)
        self.neuron2 = neuron()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = normalisation(out_channels)
        start_at_zero(self.bn2)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                normalisation(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.bn2(self.conv2(self.neuron2(self.bn1(self.conv1(self.neuron1(x))))))
        shortcut: Tensor = self.shortcut(x)
        return residual + shortcut


class MSResNet(nn.Module):
    """[batch, C, H, W] → [batch, classes], one call per time step; H and W are free.

    Convolutions start Kaiming-normal (fan-out), all else with PyTorch's defaults.
    """

    def __init__(
        self,
        options: MSResNetOptions,
        *,
        neuron: NeuronFactory,
        normalisation: NormalisationFactory,
        input_shape: tuple[int, int, int],
        classes: int,
    ) -> None:
        super().__init__()
        block = partial(MSBlock, make=Factories(neuron, normalisation))
        width = options.width
        self.conv1 = stem(input_shape[0], width, options.stem)
        self.bn1 = normalisation(width)
        self.layer1, self.layer2, self.layer3, self.layer4 = residual_stages(
            block, width, BLOCKS_PER_STAGE[options.name], first_stride=2 if options.stem == "7x7" else 1
        )
        self.neuron = neuron()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(width * 8, classes)
        kaiming_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        for block in (*self.layer1, *self.layer2, *self.layer3, *self.layer4):
            x = block(x)  # one by one, since a stage would keep its input in memory until its end
        output: Tensor = self.fc(self.flatten(self.avgpool(self.neuron(x))))
        return output
