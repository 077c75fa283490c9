"""The likely cause of an infinite or NaN loss or gradient, judged from weights, inputs and precision."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def likely_cause(network: nn.Module, precision: str, *, epochs: int, inputs: Iterable[Tensor] = ()) -> str:
    """Returns the likely cause and what to do about it, as a clause of a message.

    `precision` of the computation: fp32, tf32, fp16 or bf16. `epochs`: how many have been trained. `inputs`
    of the batch, if available.
    """
    if not all(map(_finite, inputs)):
        return "its batch has inputs that are not finite: mend the data, or what is done to them"
    parameters = network.named_parameters()
    weights = next((name for name, values in parameters if not _finite(values)), None)
    if weights is None:
        if precision == "fp16":
            return "the weights are finite, but fp16 ends at 65504: use train.precision=bf16 or fp32"
        return (
            "weights and inputs are finite, but the network's passes over them overflow: use fewer timesteps or a "
            "smaller neuron.tau, or see what layers of your own divide by"
        )
    if epochs == 0:
        return f"{weights} was not finite before any training: start from other weights"
    mixed = f", or use train.precision=fp32, not {precision}" if precision in ("fp16", "bf16") else ""
    data = "; see that the data are finite, if that does not help" if epochs == 1 else ""
    return f"training has made {weights} so: lower train.lr{mixed}{data}"


def weights_are_finite(network: nn.Module) -> bool:
    """Whether all parameters are; a device is waited for once."""
    finite = [torch.isfinite(values).all() for values in network.parameters()]
    return not finite or bool(torch.stack(finite).all())


def _finite(values: Tensor) -> bool:
    return bool(torch.isfinite(values).all())
