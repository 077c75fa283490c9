"""The LIF step and its derivative as fused Triton kernels: each reads and writes every tensor once.

The same three functions as in `lif_torch`. Numbers are computed in float32 (float64 for float64) and
rounded once, when u is stored; the spike is read off the stored u, so that `fire` says the same.

Set TRITON_INTERPRET=1 before the first import to run them on the CPU, slowly, for tests.
"""

# The compiler specialises kernels on the parameters in capitals; Triton's functions have no types.
# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

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
def _forward_kernel(
    current_ptr,
    previous_ptr,
    membrane_ptr,
    spikes_ptr,
    elements,
    DECAY: tl.constexpr,
    THRESHOLD: tl.constexpr,
    V_RESET: tl.constexpr,
    REST: tl.constexpr,
    FIRST: tl.constexpr,
    SOFT: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """u[t] = λ (v[t−1] − rest) + rest + I[t],  s[t] = H(u[t] − V_th)."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < elements
    current = tl.load(current_ptr + index, mask=inside).to(COMPUTE)
    if FIRST:
        u = current + REST
    else:
        u = tl.load(previous_ptr + index, mask=inside).to(COMPUTE)
        u = DECAY * _after_reset(u, THRESHOLD, V_RESET, SOFT) + current + (1.0 - DECAY) * REST
    stored = u.to(membrane_ptr.dtype.element_ty)
    tl.store(membrane_ptr + index, stored, mask=inside)
    spikes = tl.where(stored.to(COMPUTE) >= THRESHOLD, 1.0, 0.0)
    tl.store(spikes_ptr + index, spikes.to(spikes_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward_kernel(
    grad_spikes_ptr,
    grad_next_ptr,
    membrane_ptr,
    grad_ptr,
    elements,
    DECAY: tl.constexpr,
    THRESHOLD: tl.constexpr,
    V_RESET: tl.constexpr,
    FROM_SPIKES: tl.constexpr,
    FROM_NEXT: tl.constexpr,
    SOFT: tl.constexpr,
    DETACHED: tl.constexpr,
    SURROGATE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """∂L/∂u[t] = g (∂L/∂s[t] + ∂v/∂s d) + ∂v/∂u d with d = λ ∂L/∂u[t+1] and the surrogate g."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < elements
    u = tl.load(membrane_ptr + index, mask=inside).to(COMPUTE)
    through_spikes = tl.zeros((BLOCK,), COMPUTE)
    if FROM_SPIKES:
        through_spikes = tl.load(grad_spikes_ptr + index, mask=inside).to(COMPUTE)
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
    tl.store(grad_ptr + index, grad.to(grad_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _fire_kernel(
    membrane_ptr,
    spikes_ptr,
    elements,
    THRESHOLD: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """s[t] = H(u[t] − V_th)."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < elements
    u = tl.load(membrane_ptr + index, mask=inside).to(COMPUTE)
    spikes = tl.where(u >= THRESHOLD, 1.0, 0.0)
    tl.store(spikes_ptr + index, spikes.to(spikes_ptr.dtype.element_ty), mask=inside)


class TritonKernels:
    """The kernels of CUDA devices."""

    def forward(
        self, current: Tensor, previous: Tensor | None, neuron: LIFParameters, out: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(s[t], u[t]) from I[t] and u[t−1] (None before the first step), all of one shape.

        `out` receives u[t]; it may be `previous` itself.
        """
        membrane = torch.empty_like(current) if out is None else out
        spikes = torch.empty_like(membrane)
        current = _laid_out_as(membrane, current)
        past = current if previous is None else _laid_out_as(membrane, previous)
        _launch(
            _forward_kernel,
            (current, past, membrane, spikes),
            DECAY=neuron.decay,
            THRESHOLD=neuron.v_threshold,
            V_RESET=neuron.v_reset,
            REST=neuron.resting_potential,
            FIRST=previous is None,
            SOFT=neuron.reset == "soft",
        )
        if out is not None:  # autograd sees no kernel write; its check of saved tensors counts versions
            torch.autograd.graph.increment_version(out)
        return spikes, membrane

    def backward(
        self, grad_spikes: Tensor | None, grad_next: Tensor | None, membrane: Tensor, neuron: LIFParameters
    ) -> Tensor:
        """∂L/∂u[t] from ∂L/∂s[t], ∂L/∂u[t+1] (None means zero, but not for both) and u[t]."""
        grad = torch.empty_like(membrane)
        membrane = _laid_out_as(grad, membrane)
        _launch(
            _backward_kernel,
            (
                membrane if grad_spikes is None else _laid_out_as(membrane, grad_spikes),
                membrane if grad_next is None else _laid_out_as(membrane, grad_next),
                membrane,
                grad,
            ),
            DECAY=neuron.decay,
            THRESHOLD=neuron.v_threshold,
            V_RESET=neuron.v_reset,
            FROM_SPIKES=grad_spikes is not None,
            FROM_NEXT=grad_next is not None,
            SOFT=neuron.reset == "soft",
            DETACHED=neuron.detach_reset,
            SURROGATE=SURROGATES.index(neuron.surrogate),
        )
        return grad

    def fire(self, membrane: Tensor, neuron: LIFParameters) -> Tensor:
        """s[t] from u[t], of its shape, type and memory format."""
        spikes = torch.empty_like(membrane)
        _launch(_fire_kernel, (_laid_out_as(spikes, membrane), spikes), THRESHOLD=neuron.v_threshold)
        return spikes


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
