"""The loss of one time step and the prediction of a whole sequence, as in the published code of Meng et al. 2023."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sltt_bench.precision import at_least_float32

MSETarget = Literal["ones", "one-hot"]


def step_loss(output: Tensor, labels: Tensor, alpha: float, mse_target: MSETarget) -> Tensor:
    """(1 − α) CE(o[t], y) + α MSE(o[t], r): a scalar, the mean over the batch.

    `output` o[t] is [batch, classes], `labels` y is [batch] of class indices. r is 1 everywhere
    ("ones", a regulariser) or the one-hot label. Computed in float32 at least, also under mixed
    precision.
    """
    output = at_least_float32(output)
    cross_entropy = F.cross_entropy(output, labels)
    if alpha == 0:
        return cross_entropy
    if mse_target == "ones":
        target = torch.ones_like(output)
    else:
        target = torch.zeros_like(output).scatter_(1, labels.unsqueeze(1), 1.0)
    return (1 - alpha) * cross_entropy + alpha * F.mse_loss(output, target)


def correct_in_top(summed_outputs: Tensor, labels: Tensor, k: int) -> Tensor:
    """Returns the number, 0-d, of labels [batch] among the k largest of Σ_t o[t] [batch, classes]."""
    k = min(k, summed_outputs.shape[1])
    best = summed_outputs.topk(k, dim=1).indices
    return (best == labels.unsqueeze(1)).any(dim=1).sum()
