"""Scaled weight standardisation forward and backward, as two functions of explicit tensors.

    forward    W' = g d / s,   d = W − mean,   s = √(Σ d² n / (n − 1) + ε)
    backward   ∂L/∂g = Σ ∂L/∂W' d / s,   ∂L/∂W = (h − mean h) / s − d Σ (h d) n / ((n − 1) s³)   with h = g ∂L/∂W'

with n weights per filter. The equation is that of `sltt_bench.models.normalisation.standardised`. On a GPU
each function is one kernel (`standardising_triton`) instead of about ten, for each of a network's layers.
"""

import torch
from torch import Tensor

from sltt_bench.backends.native import kernels
from sltt_bench.backends.native.lif_torch import is_dense
from sltt_bench.models.normalisation import STANDARDISATION_EPS

MOST_WEIGHTS = 2**15
"""Limit for a filter that one kernel standardises: a program holds its row in registers, and no more fit."""


def standardise(weight: Tensor, gain: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns g (W − mean) / √(var · n + ε) in `dtype`, for W [filters, …] and g [filters, 1, …]."""
    if _in_one_kernel(weight):
        from sltt_bench.backends.native import standardising_triton

        return standardising_triton.standardise(weight, gain, dtype)
    distance, deviation = _distance_and_deviation(weight)
    return (distance / deviation * gain).to(dtype)


def standardise_backward(grad: Tensor, weight: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (∂L/∂W, ∂L/∂g) from the gradient of `standardise`, with the shapes and dtypes of W and g."""
    if _in_one_kernel(weight):
        from sltt_bench.backends.native import standardising_triton

        return standardising_triton.standardise_backward(grad, weight, gain)
    inputs = list(range(1, weight.dim()))
    distance, deviation = _distance_and_deviation(weight)
    n = weight[0].numel()
    along = (grad * distance).sum(inputs, keepdim=True)
    across = (grad - grad.mean(inputs, keepdim=True)) / deviation
    curvature = along / deviation**3 / (n - 1) * n
    return gain * (across - distance * curvature), along / deviation


def _distance_and_deviation(weight: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(weight, dim=list(range(1, weight.dim())), keepdim=True)
    return weight - mean, (variance * weight[0].numel() + STANDARDISATION_EPS).sqrt()


def _in_one_kernel(weight: Tensor) -> bool:
    """Whether W lies on a GPU, each filter contiguous in memory (as in the usual formats) and small enough
    for one program."""
    n = weight[0].numel()
    return kernels.by_triton(weight) and n <= MOST_WEIGHTS and is_dense(weight) and weight.stride(0) == n
