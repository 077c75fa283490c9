"""What a recipe may say about each network; free of torch, so that recipes are checked at once."""

from typing import Annotated, Literal

from pydantic import Field

from sltt_bench.strict import Strict

Probability = Annotated[float, Field(ge=0, lt=1)]
Width = Annotated[int, Field(ge=1, le=65_536)]
"""Channels or neurons of one layer."""
Widths = Annotated[list[Width], Field(max_length=64)]


class ModelOptions(Strict):
    """The options that every network has."""

    name: str
    """The network's name in the registry."""


class MLPOptions(ModelOptions):
    """Fully connected spiking layers and a linear readout; optionally recurrent."""

    name: Literal["mlp"] = "mlp"
    hidden: Widths = [128]
    """Neurons of each hidden layer."""
    recurrent: bool = False
    """Whether each hidden layer also receives its own spikes of the step before."""
    dropout: Probability = 0.0


class CNNOptions(ModelOptions):
    """Blocks of convolution 3×3, batch norm, LIF and average pooling, and a linear readout."""

    name: Literal["cnn"] = "cnn"
    channels: Widths = [32, 64]
    """Output channels of each block."""
    dropout: Probability = 0.0


class PreActResNetOptions(ModelOptions):
    """Pre-activation ResNet-18 with batch norm (the paper's network for CIFAR)."""

    name: Literal["preact-resnet18"] = "preact-resnet18"
    dropout: Probability = 0.0
    width: Width = 64
    """Channels of the first stage; 64 is published, less makes smoke runs small."""


class VGGOptions(ModelOptions):
    """VGG-11 with batch norm and average pooling (the paper's network for event data)."""

    name: Literal["vgg11"] = "vgg11"
    dropout: Probability = 0.0
    width: Width = 64
    """Channels of the first stage; 64 is published, less makes smoke runs small."""


class NFResNetOptions(ModelOptions):
    """Normaliser-free ResNet with scaled weight standardisation (the paper's network for ImageNet)."""

    name: Literal["nf-resnet34", "nf-resnet50", "nf-resnet101"]
    width: Annotated[int, Field(ge=2, le=65_536)] = 64
    """Channels of the first stage; 64 is published, less makes smoke runs small; 1 has no variance."""
