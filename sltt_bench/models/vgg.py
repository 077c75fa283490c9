"""VGG-11 with batch norm and average pooling: the paper's network for event data.

    8 convolutions 3×3, each followed by batch norm – LIF – dropout;
    channels width × (1 | 2 | 4, 4 | 8, 8 | 8, 8), with a 2×2 average pool at each bar and at the end;
    then an adaptive average pool to 7×7 and one linear layer.

For images below 224×224 pixels fewer than 7×7 values reach the adaptive pool. It enlarges them: 48×48 pixels
leave one value for each channel, of which it makes 49 copies; 128×128 pixels leave 4×4, of which it makes copies
and means of neighbours.
Source: Meng et al. 2023, section 5.1 and their published code; Simonyan & Zisserman 2015.
"""

from functools import partial

from torch import Tensor, nn

from sltt_bench.models.layers import Factories, SequenceDropout, classifier_init, kaiming_convolutions
from sltt_bench.models.normalisation import NormalisationFactory
from sltt_bench.models.options import VGGOptions
from sltt_bench.neurons import NeuronFactory

POOLED_SIZE = 7


def stage(in_channels: int, *out_channels: int, dropout: float, make: Factories) -> nn.Sequential:
    """Returns one convolution for each of `out_channels`, then a pool that halves H and W."""
    layers = nn.Sequential()
    for channels in out_channels:
        layers.append(nn.Conv2d(in_channels, channels, kernel_size=3, padding=1))
        layers.append(make.normalisation(channels))
        layers.append(make.neuron())
        layers.append(SequenceDropout(dropout))
        in_channels = channels
    return layers.append(nn.AvgPool2d(2))


class VGG(nn.Module):
    """[batch, C, H, W] → [batch, classes], one call per time step; H and W are free from 32 up.

    Initialised as published: convolution weights Kaiming-normal (fan-out), the classifier's weight
    N(0, 0.01²), all biases 0.
    """

    def __init__(
        self,
        options: VGGOptions,
        *,
        neuron: NeuronFactory,
        normalisation: NormalisationFactory,
        input_shape: tuple[int, int, int],
        classes: int,
    ) -> None:
        """Raises ValueError for images that the five pools would shrink to nothing."""
        super().__init__()
        if (reason := options.unsuited_input(input_shape)) is not None:
            raise ValueError(reason)
        in_channels = input_shape[0]
        width = options.width
        next_stage = partial(stage, dropout=options.dropout, make=Factories(neuron, normalisation))
        self.layer1 = next_stage(in_channels, width)
        self.layer2 = next_stage(width, width * 2)
        self.layer3 = next_stage(width * 2, width * 4, width * 4)
        self.layer4 = next_stage(width * 4, width * 8, width * 8)
        self.layer5 = next_stage(width * 8, width * 8, width * 8)
        self.avgpool = nn.AdaptiveAvgPool2d(POOLED_SIZE)
        linear = classifier_init(nn.Linear(width * 8 * POOLED_SIZE**2, classes))
        self.classifier = nn.Sequential(nn.Flatten(), linear)
        kaiming_convolutions(self, zero_bias=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer5(self.layer4(self.layer3(self.layer2(self.layer1(x)))))
        output: Tensor = self.classifier(self.avgpool(x))
        return output
