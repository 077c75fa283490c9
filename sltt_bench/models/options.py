"""What a recipe may say about each network; free of torch, so that recipes are checked at once."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sltt_bench.common.format import counted
from sltt_bench.common.strict import ADDED_LATER, Strict

Probability = Annotated[float, Field(ge=0, lt=1)]
Width = Annotated[int, Field(ge=1, le=65_536)]
"""Channels or neurons of one layer."""
Widths = Annotated[list[Width], Field(min_length=1, max_length=64)]
"""Of each layer; without one the network has no neurons."""
ReadoutTau = Annotated[float | None, Field(ge=1, le=1e6), ADDED_LATER]
NormalisationKind = Literal["batch", "tdbn", "bntt", "group", "none"]


class ModelOptions(Strict):
    """The options that every network has."""

    name: str
    """The network's name in the registry."""

    @property
    def needs(self) -> frozenset[Literal["sequence", "timestep"]]:
        """What the network asks of whoever runs it: whole sequences at once, or to be told which step runs."""
        return frozenset()

    @property
    def sums_synapses(self) -> bool:
        """Whether a neuron's current is the sum of fully connected layers' outputs and nothing else."""
        return False

    def unsuited_input(self, shape: tuple[int, ...]) -> str | None:
        """Returns why the network cannot be given samples of this shape [C, H, W], or None."""
        return None


class NormalisedOptions(ModelOptions):
    """The options of a network whose builder takes `normalisation=factory`, which makes its normalising layers."""

    normalisation: Annotated[NormalisationKind, ADDED_LATER] = "batch"
    """Of the neurons' currents. batch: statistics of each step. tdbn: of all steps (Zheng et al. 2021; BPTT only).
    bntt: of each step, with parameters of its own (Kim & Panda 2021). group: of each sample (Wu & He 2018)."""

    @property
    def needs(self) -> frozenset[Literal["sequence", "timestep"]]:
        if self.normalisation == "tdbn":
            return frozenset({"sequence"})
        return frozenset({"timestep"}) if self.normalisation == "bntt" else frozenset()


class MLPOptions(NormalisedOptions):
    """Fully connected spiking layers and a linear readout; optionally recurrent."""

    name: Literal["mlp"] = "mlp"
    hidden: Widths = [128]
    """Neurons of each hidden layer."""
    recurrent: bool = False
    """Whether each hidden layer also receives its own spikes of the step before."""
    dropout: Probability = 0.0
    normalisation: Annotated[NormalisationKind | Literal["weight"], ADDED_LATER] = "none"  # type: ignore[assignment]  # one more
    """Of what a hidden layer's weights make of its input, before recurrent currents are added; see `cnn`. weight: of
    these weights themselves, each neuron's to mean 0 and norm 1 times a learned gain (Brock et al. 2021)."""
    readout_tau: ReadoutTau = None
    """Time constant in time steps of output neurons that sum their currents and never fire; null: no sum."""

    @property
    def sums_synapses(self) -> bool:
        return self.normalisation == "none"

    @model_validator(mode="after")
    def _recurrence_goes_step_by_step(self) -> "MLPOptions":
        if self.recurrent and self.normalisation == "tdbn":
            raise ValueError(
                "normalisation tdbn sees all steps of a layer at once, a recurrent layer goes step by step; "
                "set recurrent: false or another normalisation"
            )
        if self.normalisation == "weight" and min(self.hidden) < 2:
            raise ValueError(
                "normalisation weight needs hidden layers of 2 neurons or more: one weight has no spread"
            )
        return self


class CNNOptions(NormalisedOptions):
    """Blocks of convolution 3×3, normalisation, LIF and average pooling, and a linear readout."""

    name: Literal["cnn"] = "cnn"
    channels: Widths = [32, 64]
    """Output channels of each block."""
    dropout: Probability = 0.0
    readout_tau: ReadoutTau = None
    """Time constant in time steps of output neurons that sum their currents and never fire; null: no sum."""

    def unsuited_input(self, shape: tuple[int, ...]) -> str | None:
        _, height, width = shape
        most = min(height, width).bit_length() - 1
        if len(self.channels) <= most:
            return None
        remedy = f"leave {counted(most, 'block')} at most" if most else "choose model mlp"
        return (
            f"model.channels has {counted(len(self.channels), 'block')}, too many for {height}×{width} images: each block "
            f"halves them; {remedy}"
        )


class PreActResNetOptions(NormalisedOptions):
    """Pre-activation ResNet-18 with batch norm (the paper's network for CIFAR)."""

    name: Literal["preact-resnet18"] = "preact-resnet18"
    dropout: Probability = 0.0
    width: Width = 64
    """Channels of the first stage; 64 is published, less makes smoke runs small."""


class VGGOptions(NormalisedOptions):
    """VGG-11 with batch norm and average pooling (the paper's network for event data)."""

    name: Literal["vgg11"] = "vgg11"
    dropout: Probability = 0.0
    width: Width = 64
    """Channels of the first stage; 64 is published, less makes smoke runs small."""

    def unsuited_input(self, shape: tuple[int, ...]) -> str | None:
        _, height, width = shape
        if min(height, width) >> 5:
            return None
        return (
            f"model {self.name} halves its input five times and needs at least 32×32 pixels, but the data are "
            f"{height}×{width}; enlarge them in the recipe's data section or choose another model"
        )


Stem = Literal["7x7", "3x3"]


class SEWResNetOptions(NormalisedOptions):
    """Spike-element-wise ResNet: shortcuts that carry spikes (Fang et al. 2021)."""

    name: Literal["sew-resnet18", "sew-resnet34"]
    connection: Literal["add", "and", "iand"] = "add"
    """What joins a block's spikes and its shortcut; add is the paper's best."""
    stem: Stem = "7x7"
    """7x7 is published: stride 2, then a max pool. 3x3 is for small images."""
    width: Width = 64
    """Channels of the first stage; 64 is published, less makes smoke runs small."""


class MSResNetOptions(NormalisedOptions):
    """Membrane-shortcut ResNet: shortcuts that carry currents (Hu et al. 2024)."""

    name: Literal["ms-resnet18", "ms-resnet34"]
    stem: Stem = "7x7"
    """7x7 is published: stride 2. 3x3 is for small images."""
    width: Width = 64
    """Channels of the first stage; 64 is published, less makes smoke runs small."""


class SpikformerOptions(NormalisedOptions):
    """Spikformer: a transformer whose attention multiplies spikes (Zhou et al. 2023)."""

    name: Literal["spikformer"] = "spikformer"
    dim: Annotated[int, Field(ge=8, le=8192, multiple_of=8)] = 384
    """Channels of a patch; 384 is published for CIFAR."""
    heads: Annotated[int, Field(ge=1, le=1024)] = 12
    """Heads of the attention; they divide dim."""
    depth: Annotated[int, Field(ge=1, le=256)] = 4
    """Blocks of attention and MLP."""
    mlp_ratio: Annotated[int, Field(ge=1, le=64)] = 4
    """Hidden channels of an MLP, in dim."""
    halvings: Annotated[int, Field(ge=0, le=4)] = 2
    """Max pools between image and patches; 2 makes patches of 4×4 pixels."""

    @model_validator(mode="after")
    def _heads_divide_channels(self) -> "SpikformerOptions":
        if self.dim % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide dim ({self.dim}); change one of them")
        return self


class NFResNetOptions(ModelOptions):
    """Normaliser-free ResNet with scaled weight standardisation (the paper's network for ImageNet)."""

    name: Literal["nf-resnet34", "nf-resnet50", "nf-resnet101"]
    width: Annotated[int, Field(ge=2, le=65_536)] = 64
    """Channels of the first stage; 64 is published, less makes smoke runs small; 1 has no variance."""
