"""A small convolutional network for small images: [conv 3×3 – normalisation – LIF – pool] … – linear."""

from torch import nn

from sltt_bench.models.layers import SequenceDropout, classifier_init
from sltt_bench.models.normalisation import NormalisationFactory
from sltt_bench.models.options import CNNOptions
from sltt_bench.neuron_kinds import Readout
from sltt_bench.neurons import NeuronFactory


def build(
    options: CNNOptions,
    *,
    neuron: NeuronFactory,
    normalisation: NormalisationFactory,
    input_shape: tuple[int, int, int],
    classes: int,
) -> nn.Sequential:
    """Build the network for inputs [batch, C, H, W]; each block halves H and W.

    Without normalisation, convolutions have a bias, initially 0. Raises ValueError if H or W becomes 0.
    """
    if (reason := options.unsuited_input(input_shape)) is not None:
        raise ValueError(reason)
    biased = options.normalisation == "none"
    channels, height, width = input_shape
    network = nn.Sequential()
    for number, out_channels in enumerate(options.channels, start=1):
        convolution = nn.Conv2d(channels, out_channels, kernel_size=3, padding=1, bias=biased)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        if convolution.bias is not None:
            nn.init.zeros_(convolution.bias)
        network.add_module(f"conv{number}", convolution)
        network.add_module(f"norm{number}", normalisation(out_channels))
        network.add_module(f"neuron{number}", neuron())
        network.add_module(f"pool{number}", nn.AvgPool2d(2))
        channels, height, width = out_channels, height // 2, width // 2
    network.add_module("flatten", nn.Flatten())
    network.add_module("dropout", SequenceDropout(options.dropout))
    network.add_module("classifier", classifier_init(nn.Linear(channels * height * width, classes)))
    if options.readout_tau is not None:
        network.add_module("readout", Readout(options.readout_tau))
    return network
