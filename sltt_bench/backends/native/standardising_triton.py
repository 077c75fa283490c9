"""Scaled weight standardisation on a GPU, forward and backward in one pass each.

A program handles one filter, a row in memory. Functions and equations are those of `standardising`.
Set TRITON_INTERPRET=1 before the first import to run the kernels on the CPU, slowly, for tests.
"""

# The compiler specialises kernels on the parameters in capitals; Triton's functions have no types.
# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from sltt_bench.models.normalisation import STANDARDISATION_EPS


@triton.jit
def _row(weight_ptr, N: tl.constexpr, PADDED: tl.constexpr, EPS: tl.constexpr, COMPUTE: tl.constexpr):
    """Returns this program's filter: indices of its weights, their mask, d (0 where masked out) and s."""
    column = tl.arange(0, PADDED)
    inside = column < N
    index = tl.program_id(0).to(tl.int64) * N + column
    weight = tl.load(weight_ptr + index, mask=inside, other=0.0).to(COMPUTE)
    distance = tl.where(inside, weight - tl.sum(weight, axis=0) / N, 0.0)
    return index, inside, distance, tl.sqrt(tl.sum(distance * distance, axis=0) / (N - 1) * N + EPS)


@triton.jit
def _standardise_kernel(
    weight_ptr,
    gain_ptr,
    result_ptr,
    N: tl.constexpr,
    PADDED: tl.constexpr,
    EPS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    index, inside, distance, deviation = _row(weight_ptr, N, PADDED, EPS, COMPUTE)
    result = distance / deviation * tl.load(gain_ptr + tl.program_id(0)).to(COMPUTE)
    tl.store(result_ptr + index, result.to(result_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _standardise_backward_kernel(
    grad_ptr,
    weight_ptr,
    gain_ptr,
    grad_weight_ptr,
    grad_gain_ptr,
    N: tl.constexpr,
    PADDED: tl.constexpr,
    EPS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    index, inside, distance, deviation = _row(weight_ptr, N, PADDED, EPS, COMPUTE)
    grad = tl.load(grad_ptr + index, mask=inside, other=0.0).to(COMPUTE)
    along = tl.sum(grad * distance, axis=0)
    tl.store(grad_gain_ptr + tl.program_id(0), (along / deviation).to(grad_gain_ptr.dtype.element_ty))
    gain = tl.load(gain_ptr + tl.program_id(0)).to(COMPUTE)
    across = (grad - tl.sum(grad, axis=0) / N) / deviation
    curvature = along / (deviation * deviation * deviation) / (N - 1) * N
    result = gain * (across - distance * curvature)
    tl.store(grad_weight_ptr + index, result.to(grad_weight_ptr.dtype.element_ty), mask=inside)


def standardise(weight: Tensor, gain: Tensor, dtype: torch.dtype) -> Tensor:
    """See `standardising.standardise`."""
    result = torch.empty_like(weight, dtype=dtype)
    _launch(_standardise_kernel, weight, (weight, gain, result))
    return result


def standardise_backward(grad: Tensor, weight: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """See `standardising.standardise_backward`."""
    if grad.stride() != weight.stride():
        grad = torch.empty_like(weight, dtype=grad.dtype).copy_(grad)
    grad_weight, grad_gain = torch.empty_like(weight), torch.empty_like(gain)
    _launch(_standardise_backward_kernel, weight, (grad, weight, gain, grad_weight, grad_gain))
    return grad_weight, grad_gain


def _launch(kernel: triton.JITFunction, weight: Tensor, tensors: tuple[Tensor, ...]) -> None:
    inputs = weight[0].numel()
    padded = triton.next_power_of_2(inputs)
    compute = tl.float64 if weight.dtype == torch.float64 else tl.float32
    with torch.cuda.device_of(weight):
        kernel[(len(weight),)](
            *tensors,
            N=inputs,
            PADDED=padded,
            EPS=STANDARDISATION_EPS,
            COMPUTE=compute,
            num_warps=min(16, max(1, padded // 512)),
            enable_fp_fusion=False,
        )
