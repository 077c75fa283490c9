"""One small batch and a method's gradients of it, shared by the tests of the science."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from sltt_bench import methods, models
from sltt_bench.losses import step_loss
from sltt_bench.models.options import CNNOptions, MLPOptions
from sltt_bench.neurons import LIF, LIFParameters
from sltt_bench.precision import Precision
from sltt_bench.unroll import Unroll

INPUT_SHAPE = (2, 4, 4)
CLASSES = 3

RESETS = {
    "soft": {"reset": "soft"},
    "soft detached": {"reset": "soft", "detach_reset": True},
    "hard": {"reset": "hard", "v_reset": -0.2},
    "hard detached": {"reset": "hard", "v_reset": -0.2, "detach_reset": True},
}
"""Every reset mode, as parameters of the neuron."""


def convolutional_network(neuron: LIFParameters, dropout: float = 0.0) -> nn.Module:
    """Returns two convolutional blocks with batch norm, and dropout; always the same weights."""
    torch.manual_seed(0)
    options = CNNOptions(channels=[6, 8], dropout=dropout)
    return models.build(options, neuron=lambda: LIF(neuron), input_shape=INPUT_SHAPE, classes=CLASSES)


def recurrent_network(neuron: LIFParameters) -> nn.Module:
    """Returns two fully connected layers that also receive their own last spikes; always the same weights.

    The weights are larger than usual initial ones, so that both layers fire.
    """
    torch.manual_seed(0)
    options = MLPOptions(hidden=[24, 16], recurrent=True)
    network = models.build(options, neuron=lambda: LIF(neuron), input_shape=INPUT_SHAPE, classes=CLASSES)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= 3
    return network


def batch(timesteps: int, samples: int = 4) -> tuple[list[Tensor], Tensor]:
    """Returns a different input for every step, strong enough to make neurons fire, and labels."""
    generator = torch.Generator().manual_seed(1)
    x = 2 * torch.randn(timesteps, samples, *INPUT_SHAPE, generator=generator)
    return list(x), torch.randint(CLASSES, (samples,), generator=generator)


def run(
    network: nn.Module,
    method: str,
    inputs: Sequence[Tensor],
    labels: Tensor,
    *,
    precision: str = "fp32",
    alpha: float = 0.05,
    seed: int = 0,
    window: int | None = None,
    update: Callable[[], None] | None = None,
    loss_scale: float = 1.0,
) -> Unroll:
    """Run a training iteration without the optimiser's step; the gradients are in the parameters' `.grad`.

    `seed` is for the method's random numbers; dropout has the same masks at every call. Gradients are `loss_scale`
    times as large.
    """

    def backward(loss: Tensor, /, *, retain_graph: bool = False) -> None:
        (loss * loss_scale).backward(retain_graph=retain_graph)  # type: ignore[no-untyped-call]

    torch.manual_seed(2)
    network.train().zero_grad()
    unroll = Unroll(
        network,
        inputs,
        partial(step_loss, labels=labels, alpha=alpha, mse_target="ones"),
        generator=torch.Generator().manual_seed(seed),
        backward=backward,
        autocast=Precision(precision, "cpu").autocast,
        window=window,
        update=update,
    )
    methods.create(method, len(inputs)).accumulate_gradients(unroll)
    return unroll


def gradients(network: nn.Module) -> dict[str, Tensor]:
    """Returns a copy of every parameter's gradient."""
    copies = {}
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, f"{name} received no gradient"
        copies[name] = parameter.grad.clone()
    return copies


def flat(named: dict[str, Tensor]) -> Tensor:
    """Returns all gradients as one vector in float64."""
    return torch.cat([tensor.flatten().double() for tensor in named.values()])


def relative_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Returns the largest ‖a − b‖ / ‖b‖ over the parameters."""
    return max(float((a[name].double() - b[name].double()).norm() / b[name].double().norm()) for name in b)
