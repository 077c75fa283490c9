"""The LIF step and its derivative as fused Triton kernels: each reads and writes every tensor once.

The same three functions as in `lif_torch`. Numbers are computed in float32 (float64 for float64) and
rounded once, when u is stored; the spike is read off the stored u, so that `fire` says the same.

Set TRITON_INTERPRET=1 before the first import to run them on the CPU, slowly, for tests.
"""

# The compiler specialises kernels on the parameters in capitals; Triton's functions have no types.
# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import math
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sltt_bench.backends.native.lif_torch import UNSCALED, Scaling
from sltt_bench.neurons import LIFParameters

SURROGATES = ("triangle", "rectangle", "sigmoid", "arctan")
"""The surrogates with a formula here, in the order of their numbers in `_surrogate`."""

BLOCK = 1024
"""Elements of one program."""

_PI = tl.constexpr(math.pi)


@triton.jit
def _after_reset(u, THRESHOLD: tl.constexpr, V_RESET: tl.constexpr, SOFT: tl.constexpr):
    """v[t] from u[t]."""
    if SOFT:
        return tl.where(u >= THRESHOLD, u - THRESHOLD, u)
    else:
        return tl.where(u >= THRESHOLD, V_RESET, u)


@triton.jit
def _surrogate(x, KIND: tl.constexpr):
    """ds/du from x = u − V_th."""
    if KIND == 0:
        return tl.maximum(1.0 - tl.abs(x), 0.0)
    elif KIND == 1:
        return tl.where(tl.abs(x) < 0.5, 1.0, 0.0)
    elif KIND == 2:
        logistic = 1.0 / (1.0 + tl.exp(-4.0 * x))
        return 4.0 * logistic * (1.0 - logistic)
    else:
        return 1.0 / (1.0 + (_PI * x) * (_PI * x))


@triton.jit
def _scaled(x, FACTOR: tl.constexpr, COMPUTE: tl.constexpr):
    """x times the factor, rounded to the type of x as a product of its own would be."""
    if FACTOR == 1:
        return x.to(COMPUTE)
    else:
        return (x.to(COMPUTE) * FACTOR).to(x.dtype).to(COMPUTE)


@triton.jit
def _forward_kernel(
    x_ptr,
    previous_ptr,
    membrane_ptr,
    output_ptr,
    elements,
    DECAY: tl.constexpr,
    THRESHOLD: tl.constexpr,
    V_RESET: tl.constexpr,
    REST: tl.constexpr,
    FIRST: tl.constexpr,
    SOFT: tl.constexpr,
    FACTOR: tl.constexpr,
    GAIN: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """u[t] = λ (v[t−1] − rest) + rest + x / β,  s[t] = H(u[t] − V_th); γ s[t] goes out."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < elements
    current = _scaled(tl.load(x_ptr + index, mask=inside), FACTOR, COMPUTE)
    if FIRST:
        u = current + REST
    else:
        u = tl.load(previous_ptr + index, mask=inside).to(COMPUTE)
        u = DECAY * _after_reset(u, THRESHOLD, V_RESET, SOFT) + current + (1.0 - DECAY) * REST
    stored = u.to(membrane_ptr.dtype.element_ty)
    tl.store(membrane_ptr + index, stored, mask=inside)
    spikes = tl.where(stored.to(COMPUTE) >= THRESHOLD, 1.0, 0.0).to(COMPUTE) * GAIN
    tl.store(output_ptr + index, spikes.to(output_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward_kernel(
    grad_output_ptr,
    grad_next_ptr,
    membrane_ptr,
    grad_ptr,
    grad_x_ptr,
    elements,
    DECAY: tl.constexpr,
    THRESHOLD: tl.constexpr,
    V_RESET: tl.constexpr,
    FROM_OUTPUT: tl.constexpr,
    FROM_NEXT: tl.constexpr,
    TO_PAST: tl.constexpr,
    SOFT: tl.constexpr,
    DETACHED: tl.constexpr,
    SURROGATE: tl.constexpr,
    FACTOR: tl.constexpr,
    GAIN: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """∂L/∂u[t] = g (∂L/∂s[t] + ∂v/∂s d) + ∂v/∂u d with d = λ ∂L/∂u[t+1] and the surrogate g.

    ∂L/∂s = γ ∂L/∂(γ s), ∂L/∂x = ∂L/∂u / β. ∂L/∂u is stored if the step before wants it and β is not 1.
    """
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < elements
    u = tl.load(membrane_ptr + index, mask=inside).to(COMPUTE)
    through_spikes = tl.zeros((BLOCK,), COMPUTE)
    if FROM_OUTPUT:
        through_spikes = _scaled(tl.load(grad_output_ptr + index, mask=inside), GAIN, COMPUTE)
    past = tl.zeros((BLOCK,), COMPUTE)
    if FROM_NEXT:
        past = DECAY * tl.load(grad_next_ptr + index, mask=inside).to(COMPUTE)
        if not DETACHED:
            if SOFT:
                through_spikes -= THRESHOLD * past
            else:
                through_spikes += (V_RESET - u) * past
        if not SOFT:
            past = tl.where(u >= THRESHOLD, 0.0, past)
    grad = through_spikes * _surrogate(u - THRESHOLD, SURROGATE) + past
    stored = grad.to(grad_x_ptr.dtype.element_ty)
    if TO_PAST:
        tl.store(grad_ptr + index, stored, mask=inside)
    grad_x = _scaled(stored, FACTOR, COMPUTE)
    tl.store(grad_x_ptr + index, grad_x.to(grad_x_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _fire_kernel(
    membrane_ptr,
    spikes_ptr,
    elements,
    THRESHOLD: tl.constexpr,
    GAIN: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """γ s[t] = γ H(u[t] − V_th)."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < elements
    u = tl.load(membrane_ptr + index, mask=inside).to(COMPUTE)
    spikes = tl.where(u >= THRESHOLD, 1.0, 0.0).to(COMPUTE) * GAIN
    tl.store(spikes_ptr + index, spikes.to(spikes_ptr.dtype.element_ty), mask=inside)


class TritonKernels:
    """The kernels of CUDA devices."""

    def forward(
        self,
        x: Tensor,
        previous: Tensor | None,
        neuron: LIFParameters,
        out: Tensor | None,
        scale: Scaling = UNSCALED,
    ) -> tuple[Tensor, Tensor]:
        """(γ s[t], u[t]) from x = β I[t] and u[t−1] (None before the first step), all of one shape.

        `out` receives u[t]; it may be `previous` itself.
        """
        membrane = torch.empty_like(x) if out is None else out
        spikes = torch.empty_like(membrane)
        x = _laid_out_as(membrane, x)
        past = x if previous is None else _laid_out_as(membrane, previous)
        _launch(
            _forward_kernel,
            (x, past, membrane, spikes),
            DECAY=neuron.decay,
            THRESHOLD=neuron.v_threshold,
            V_RESET=neuron.v_reset,
            REST=neuron.resting_potential,
            FIRST=previous is None,
            SOFT=neuron.reset == "soft",
            FACTOR=_reciprocal(scale.divisor, x.dtype),
            GAIN=scale.gain,
        )
        if out is not None:  # autograd sees no kernel write; its check of saved tensors counts versions
            torch.autograd.graph.increment_version(out)
        return spikes, membrane

    def backward(
        self,
        grad_output: Tensor | None,
        grad_next: Tensor | None,
        membrane: Tensor,
        neuron: LIFParameters,
        scale: Scaling = UNSCALED,
        *,
        through_time: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """(∂L/∂x, ∂L/∂u[t]) from ∂L/∂(γ s[t]), ∂L/∂u[t+1] (None means zero, but not for both) and u[t]."""
        grad_x = torch.empty_like(membrane)
        to_past = through_time and scale.divisor != 1
        grad = torch.empty_like(membrane) if to_past else grad_x
        membrane = _laid_out_as(grad, membrane)
        _launch(
            _backward_kernel,
            (
                membrane if grad_output is None else _laid_out_as(membrane, grad_output),
                membrane if grad_next is None else _laid_out_as(membrane, grad_next),
                membrane,
                grad,
                grad_x,
            ),
            DECAY=neuron.decay,
            THRESHOLD=neuron.v_threshold,
            V_RESET=neuron.v_reset,
            FROM_OUTPUT=grad_output is not None,
            FROM_NEXT=grad_next is not None,
            TO_PAST=to_past,
            SOFT=neuron.reset == "soft",
            DETACHED=neuron.detach_reset,
            SURROGATE=SURROGATES.index(neuron.surrogate),
            FACTOR=_reciprocal(scale.divisor, membrane.dtype),
            GAIN=scale.gain,
        )
        return grad_x, grad if through_time else None

    def fire(self, membrane: Tensor, neuron: LIFParameters, gain: float = 1.0) -> Tensor:
        """γ s[t] from u[t], of its shape, type and memory format."""
        spikes = torch.empty_like(membrane)
        tensors = _laid_out_as(spikes, membrane), spikes
        _launch(_fire_kernel, tensors, THRESHOLD=neuron.v_threshold, GAIN=gain)
        return spikes


@cache
def _reciprocal(divisor: float, dtype: torch.dtype) -> float:
    """1 / β as torch's division of a tensor by a number takes it on CUDA: rounded to the format of the arithmetic."""
    arithmetic = torch.promote_types(dtype, torch.float32)
    return float(torch.ones((), dtype=arithmetic) / torch.tensor(divisor, dtype=arithmetic))


def _launch(kernel: Any, tensors: tuple[Tensor, ...], **constants: Any) -> None:
    """Run a kernel over the elements of tensors that lie alike in memory."""
    first = tensors[0]
    elements = first.numel()
    if elements == 0:
        return
    compute = tl.float64 if first.dtype == torch.float64 else tl.float32
    grid = (triton.cdiv(elements, BLOCK),)
    with torch.cuda.device_of(first):
        # No contraction to fused multiply-adds: they round once where the equations round twice, and a
        # potential at the threshold would fire on one device only.
        kernel[grid](*tensors, elements, **constants, COMPUTE=compute, BLOCK=BLOCK, enable_fp_fusion=False)


def _laid_out_as(model: Tensor, tensor: Tensor) -> Tensor:
    """The tensor with the strides of `model`, which is dense; copied only where they differ."""
    if tensor.stride() == model.stride():
        return tensor
    return torch.empty_like(model, dtype=tensor.dtype).copy_(tensor)
