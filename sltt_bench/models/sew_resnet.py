"""SEW-ResNet-18 and -34: residual networks whose shortcuts carry spikes.

    stem       convolution 7×7 stride 2 – normalisation – LIF – max pool 3×3 stride 2; or, for small images,
               convolution 3×3 – normalisation – LIF
    4 stages   blocks of two 3×3 convolutions; channels width × (1, 2, 4, 8); stages 2, 3, 4 halve the image
    head       global average pool – linear

A block of spikes (or sums of spikes) x computes

    s = LIF(N(conv(LIF(N(conv(x)))))),   y = g(s, x)

with g the spike-element-wise function: s + x ("add", the paper's best), s x ("and") or (1 − s) x ("iand"). If
the shape changes, LIF(N(conv 1×1(x))) takes the place of x in g. An "add" block outputs small whole numbers,
not spikes. With s = 0 ("add", "iand") or s = 1 ("and") a block is the identity.

Names and shapes of parameters are those of torchvision's ResNet.
Source: Fang et al. 2021, "Deep residual learning in spiking neural networks", section 3.3, and their published
code.
Deviations: they use IF neurons and classify the mean output; here the neuron is the recipe's (tau: 1e6 is IF)
and every step is classified, unless the recipe has `loss.average: outputs`. After the stem their batch norm
is over all steps, like `tdbn` at V_th = 1, which only BPTT can use; the default here is `batch`. The 3×3 stem
is the usual one for CIFAR.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from sltt_bench.models.layers import Factories, kaiming_convolutions, residual_stages, stem
from sltt_bench.models.normalisation import NormalisationFactory
from sltt_bench.models.options import SEWResNetOptions
from sltt_bench.neurons import NeuronFactory

CONNECTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda s, x: s + x,
    "and": lambda s, x: s * x,
    "iand": lambda s, x: (1 - s) * x,
}
"""Name → g(s, x) of spikes s and shortcut x."""

BLOCKS_PER_STAGE = {"sew-resnet18": (2, 2, 2, 2), "sew-resnet34": (3, 4, 6, 3)}


class SEWBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut: [batch, in, H, W] → [batch, out, H/stride, W/stride]."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, make: Factories, connection: str
    ) -> None:
        super().__init__()
        neuron, normalisation = make
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = normalisation(out_channels)
        self.neuron1 = neuron()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = normalisation(out_channels)
        self.neuron2 = neuron()
        self.connect = CONNECTIONS[connection]
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                normalisation(out_channels),
                neuron(),
            )

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.neuron2(self.bn2(self.conv2(self.neuron1(self.bn1(self.conv1(x))))))
        return self.connect(spikes, self.downsample(x))


class SEWResNet(nn.Module):
    """[batch, C, H, W] → [batch, classes], one call per time step; H and W are free.

    Initialised as published: Kaiming-normal convolutions (fan-out), else PyTorch's defaults.
    """

    def __init__(
        self,
        options: SEWResNetOptions,
        *,
        neuron: NeuronFactory,
        normalisation: NormalisationFactory,
        input_shape: tuple[int, int, int],
        classes: int,
    ) -> None:
        super().__init__()
        block = partial(SEWBlock, connection=options.connection, make=Factories(neuron, normalisation))
        width = options.width
        self.conv1 = stem(input_shape[0], width, options.stem)
        self.bn1 = normalisation(width)
        self.neuron1 = neuron()
        large = options.stem == "7x7"
        self.pool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1) if large else nn.Identity()
        stages = residual_stages(block, width, BLOCKS_PER_STAGE[options.name])
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(width * 8, classes)
        kaiming_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.neuron1(self.bn1(self.conv1(x))))
        for block in (*self.layer1, *self.layer2, *self.layer3, *self.layer4):
            x = block(x)  # one by one, since a stage would keep its input in memory until its end
        output: Tensor = self.fc(self.flatten(self.avgpool(x)))
        return output
