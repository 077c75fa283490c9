"""The normalisations of the currents into neurons that networks offer by name.

    batch   (x − μ[t]) / √(σ²[t] + ε) · γ + β      statistics over batch and space, separate for each step
    tdbn    (x − μ) / √(σ² + ε) · γ + β            over batch, space and all T steps; γ starts at α V_th, α = 1
    bntt    (x − μ[t]) / √(σ²[t] + ε) · γ[t]       as batch, with γ and running statistics for each step
    group   (x − μ[n,t]) / √(σ²[n,t] + ε) · γ + β  over 16 channels (all, if 16 does not divide them) and
                                                   space, separate for each sample and step
    none    x
    weight  x of a linear layer whose weights are standardised, separately for each neuron:
            ŵ = g (w − mean w) / √(var w · fan-in + 10⁻⁴)

The training rule limits the choice. `tdbn` needs the whole sequence of a layer before the next layer's
first step, so only BPTT can use it: not rules that free a step's graph or learn within the sequence.
`batch` and `bntt` serve every rule that goes step by step. `group` needs only one sample, so it allows online
learning from a batch of one, and it does the same in evaluation as in training. `weight` suits online
learning too: it does not depend on the currents and is the same at every step. It is an option of `mlp`; for
convolutions there is the network `nf_resnet.py`. In evaluation `batch`, `tdbn` and `bntt` use running
statistics, which see all T steps of training under every method.

Sources: Zheng et al. 2021, "Going deeper with directly-trained larger spiking neural networks" (tdbn); Kim &
Panda 2021, "Revisiting batch normalization for training low-latency deep spiking neural networks from scratch"
(bntt); Wu & He 2018, "Group normalization" (group, and 16 channels of a group); Qiao et al. 2019, "Micro-batch training
with batch-channel normalization and weight standardization", scaled as by Brock, De & Smith 2021 (weight).
Deviations: Zheng et al. multiply by α V_th in addition to γ, here γ starts at α V_th; and α is 1/√2 in their
residual blocks. Kim & Panda use ε = 1e-4; here it is 1e-5 as in the other normalisations. Under SLTT-K the γ
of a step that was not drawn receives no gradient in that iteration.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sltt_bench.neurons import OverTime, PerStep

CHANNELS_OF_A_GROUP = 16


class TimeBatchNorm(nn.modules.batchnorm._BatchNorm, OverTime):
    """Batch norm that, in training, takes its statistics over all T steps: [T · batch, C, …] of any shape."""

    def __init__(self, channels: int, v_threshold: float) -> None:
        super().__init__(channels)
        nn.init.constant_(self.weight, v_threshold)

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any shape: vectors and images are normalised alike."""


class BatchNormThroughTime(PerStep):
    """A separate batch norm without bias for each of T steps: [batch, C, …] at step `timestep`."""

    def __init__(self, steps: list[nn.Module]) -> None:
        super().__init__()
        for step in steps:
            step.register_parameter("bias", None)
        self.steps = nn.ModuleList(steps)

    def forward(self, x: Tensor) -> Tensor:
        normalised: Tensor = self.steps[self.timestep](x)
        return normalised


STANDARDISATION_EPS = 1e-4
"""Prevents a division by 0 for a filter of equal weights."""


def standardised(weight: Tensor, inputs: tuple[int, ...]) -> Tensor:
    """Returns (W − mean) / √(var · fan_in + 10⁻⁴), shape of W, for the weights of each output, var unbiased.

    Needs a fan-in ≥ 2. `inputs`: the dimensions of W except that of the outputs: 1 for a linear layer, 1, 2,
    3 for a 2-d convolution. They are an argument because W has no dimensions while the network is traced.
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
        """Returns g (W − mean) / √(var · fan_in + 10⁻⁴), shape of W, the same at all steps of an iteration."""
        return standardised(self.weight, inputs=(1,)) * self.gain

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.standardised_weight(), self.bias)


NormalisationFactory = Callable[..., nn.Module]
"""(channels, dimensions = 2) → a layer for [batch, channels, …] with 0 or 2 dimensions of space."""


@dataclass(frozen=True)
class Normalisation:
    """Makes normalising layers of one kind for one network."""

    kind: str
    timesteps: int | None = None
    """T; only `bntt` needs it."""
    v_threshold: float = 1.0

    def __call__(self, channels: int, dimensions: int = 2) -> nn.Module:
        """Returns a new layer. Raises ValueError for bntt without T, KeyError for an unknown kind."""
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
    """Set the layer's scales γ to 0, so that its output starts at 0; without scales (`none`) do nothing."""
    for name, parameter in layer.named_parameters():
        if name.rpartition(".")[2] == "weight":
            nn.init.zeros_(parameter)
