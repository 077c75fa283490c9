"""VGG-11 with batch norm and average pooling: the paper's network for event data.

    8 convolutions 3×3, each followed by batch norm – LIF – dropout;
    channels width × (1 | 2 | 4, 4 | 8, 8 | 8, 8), with a 2×2 average pool at each bar and at the end;
    then an adaptive average pool to 7×7 and one linear layer.

Below 224×224 pixels the adaptive pool repeats values instead of averaging them.
Source: Meng et al. 2023, section 5.1 and their published code; Simonyan & Zisserman 2015.
"""

from torch import Tensor, nn

from sltt_bench.models.layers import SequenceDropout, classifier_init, kaiming_convolutions
from sltt_bench.models.options import VGGOptions
from sltt_bench.neurons import NeuronFactory

STAGES = ((1,), (2,), (4, 4), (8, 8), (8, 8))
"""Output channels of each convolution of each stage, in units of the width."""
POOLED_SIZE = 7
SMALLEST_IMAGE = 2 ** len(STAGES)


class VGG(nn.Module):
    """[batch, C, H, W] → [batch, classes], one call per time step; H and W are free from 32 up."""

    def __init__(
        self, in_channels: int, classes: int, *, width: int, dropout: float, neuron: NeuronFactory
    ) -> None:
        super().__init__()
        channels = in_channels
        for number, factors in enumerate(STAGES, start=1):
            layer = nn.Sequential()
            for factor in factors:
                layer.append(nn.Conv2d(channels, width * factor, kernel_size=3, padding=1))
                layer.append(nn.BatchNorm2d(width * factor))
                layer.append(neuron())
                layer.append(SequenceDropout(dropout))
                channels = width * factor
            layer.append(nn.AvgPool2d(2))
            self.add_module(f"layer{number}", layer)
        self.avgpool = nn.AdaptiveAvgPool2d(POOLED_SIZE)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(channels * POOLED_SIZE**2, classes))

    def forward(self, x: Tensor) -> Tensor:
        for number in range(1, len(STAGES) + 1):
            x = self.get_submodule(f"layer{number}")(x)
        output: Tensor = self.classifier(self.avgpool(x))
        return output


def build(
    options: VGGOptions, *, neuron: NeuronFactory, input_shape: tuple[int, int, int], classes: int
) -> VGG:
    """The network, initialised as published.

    Convolution weights are Kaiming-normal (fan-out), the classifier's weight N(0, 0.01²), all
    biases 0. Raises ValueError for images that the five pools would shrink to nothing.
    """
    channels, height, width = input_shape
    if min(height, width) < SMALLEST_IMAGE:
        raise ValueError(
            f"model {options.name} halves its input five times and needs at least {SMALLEST_IMAGE}×"
            f"{SMALLEST_IMAGE} pixels, but the data are {height}×{width}; "
            "enlarge them in the recipe's data section or choose another model"
        )
    network = VGG(channels, classes, width=options.width, dropout=options.dropout, neuron=neuron)
    kaiming_convolutions(network, zero_bias=True)
    linear = network.classifier[1]
    assert isinstance(linear, nn.Linear)
    classifier_init(linear)
    return network
