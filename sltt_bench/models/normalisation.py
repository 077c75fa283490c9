"""The normalisations that networks offer by name, of currents on their way to neurons.

    batch   (x − μ[t]) / √(σ²[t] + ε) · γ + β      statistics over batch and space, of each step by itself
    tdbn    (x − μ) / √(σ² + ε) · γ + β            over batch, space and all T steps; γ starts at α V_th, α = 1
    bntt    (x − μ[t]) / √(σ²[t] + ε) · γ[t]       as batch, with γ and running statistics of each step's own
    group   (x − μ[n,t]) / √(σ²[n,t] + ε) · γ + β  over 16 channels (all, if 16 does not divide them) and space, of each
                                                   sample and step by itself
    none    x
    weight  x of a linear layer with standardised weights: ŵ = g (w − mean w) / √(var w · fan-in + 10⁻⁴), each neuron's

What a rule needs decides which may be used. `tdbn` needs the whole sequence of a layer before the next layer's
first step: rules that free a step's graph, or learn within the sequence, cannot have it, and only BPTT is
served. `batch` and `bntt` serve every rule that goes step by step. `group` asks for nothing but the sample at
hand, so that learning online from a batch of one is possible, and evaluation does what training did; the other
friend of online learning is `weight`, which sees no currents at all and is the same at every step (of `mlp`; of
convolutions it is the network `nf_resnet.py`). In evaluation `batch`, `tdbn` and `bntt` use running statistics, which
see all T steps of training under every method.

Sources: Zheng et al. 2021, "Going deeper with directly-trained larger spiking neural networks" (tdbn); Kim &
Panda 2021, "Revisiting batch normalization for training low-latency deep spiking neural networks from scratch"
(bntt); Wu & He 2018, "Group normalization" (group, and 16 channels of a group); Qiao et al. 2019, "Micro-batch training
with batch-channel normalization and weight standardization", scaled as by Brock, De & Smith 2021 (weight).
Deviations: Zheng et al. multiply by α V_th beside γ, here γ starts there; and α is 1/√2 in their residual
blocks. Kim & Panda use ε = 1e-4; it is 1e-5 here as in the others. Under SLTT-K the γ of a step that was not
drawn receives no gradient in that iteration.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sltt_bench.neurons import OverTime, PerStep

CHANNELS_OF_A_GROUP = 16


class TimeBatchNorm(nn.modules.batchnorm._BatchNorm, OverTime):
    """Batch norm whose batch, in training, is that of all T steps: [T · batch, C, …] of any shape."""

    def __init__(self, channels: int, v_threshold: float) -> None:
        super().__init__(channels)
        nn.init.constant_(self.weight, v_threshold)

    def _check_input_dim(self, input: Tensor) -> None:
        """Vectors and images are normalised alike."""


class BatchNormThroughTime(PerStep):
    """A batch norm for each of T steps, without bias: [batch, C, …] at step `timestep`."""

    def __init__(self, steps: list[nn.Module]) -> None:
        super().__init__()
        for step in steps:
            step.register_parameter("bias", None)
        self.steps = nn.ModuleList(steps)

    def forward(self, x: Tensor) -> Tensor:
        normalised: Tensor = self.steps[self.timestep](x)
        return normalised


STANDARDISATION_EPS = 1e-4
"""What keeps a filter of equal weights from a division by 0."""


def standardised(weight: Tensor, inputs: tuple[int, ...]) -> Tensor:
    """(W − mean) / √(var · fan_in + 10⁻⁴), each output's weights by themselves, var unbiased: shape of W, fan-in ≥ 2.

    `inputs`: the dimensions of W but for the outputs', 1 of a linear layer and 1, 2, 3 of a convolution in space. They
    are given, not asked of W, which has none while the network is traced.
    """
    variance, mean = torch.var_mean(weight, dim=inputs, keepdim=True)
    result: Tensor = (weight - mean) / (variance * weight[0].numel() + STANDARDISATION_EPS).sqrt()
    return result


class ScaledWSLinear(nn.Linear):
    """A linear layer whose weight is standardised before use, with a learned gain g for each neuron, 1 at first."""

    def __init__(self, in_features: int, out_features: int) -> None:
        """Needs a fan-in ≥ 2."""
        super().__init__(in_features, out_features)
        self.gain = nn.Parameter(torch.ones(out_features, 1))

    def standardised_weight(self) -> Tensor:
        """g (W − mean) / √(var · fan_in + 10⁻⁴), the same for all T steps of an iteration: shape of W."""
        return standardised(self.weight, inputs=(1,)) * self.gain

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.standardised_weight(), self.bias)


NormalisationFactory = Callable[..., nn.Module]
"""(channels, dimensions = 2) → a layer of [batch, channels, …] with so many dimensions of space: 0 or 2."""


@dataclass(frozen=True)
class Normalisation:
    """Makes the layers of one kind for one network."""

    kind: str
    timesteps: int | None = None
    """T; needed by `bntt` alone."""
    v_threshold: float = 1.0

    def __call__(self, channels: int, dimensions: int = 2) -> nn.Module:
        """A fresh layer. Raises ValueError for bntt without T, KeyError for a kind that there is not."""
        return _MAKERS[self.kind](self, channels, dimensions)


def _batch(of: Normalisation, channels: int, dimensions: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if dimensions else nn.BatchNorm1d(channels)


def _through_time(of: Normalisation, channels: int, dimensions: int) -> nn.Module:
    if of.timesteps is None:
        raise ValueError(
            "normalisation bntt has parameters for each step: build the network with `timesteps`"
        )
    return BatchNormThroughTime([_batch(of, channels, dimensions) for _ in range(of.timesteps)])


def _group(of: Normalisation, channels: int, dimensions: int) -> nn.Module:
    return nn.GroupNorm(
        channels // CHANNELS_OF_A_GROUP if channels % CHANNELS_OF_A_GROUP == 0 else 1, channels
    )


_MAKERS: dict[str, Callable[[Normalisation, int, int], nn.Module]] = {
    "batch": _batch,
    "tdbn": lambda of, channels, dimensions: TimeBatchNorm(channels, of.v_threshold),
    "bntt": _through_time,
    "group": _group,
    "none": lambda of, channels, dimensions: nn.Identity(),
}
KINDS = tuple(_MAKERS)


def start_at_zero(layer: nn.Module) -> None:
    """Let the layer put out 0 at first: its scales γ are 0. What has none (`none`) stays as it is."""
    for name, parameter in layer.named_parameters():
        if name.rpartition(".")[2] == "weight":
            nn.init.zeros_(parameter)
