"""Converts spikes to bits and back on a GPU, each in one pass; bit i of a byte is element i of its eight.

Set TRITON_INTERPRET=1 before the first import to run the kernels on the CPU, slowly, for tests.
"""

# The compiler specialises kernels on the parameters in capitals; Triton's functions have no types.
# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256
"""Bytes of bits that one program writes or reads."""


@triton.jit
def _pack_kernel(spikes_ptr, bits_ptr, elements, BLOCK: tl.constexpr):
    byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    place = tl.arange(0, 8)
    index = byte[:, None] * 8 + place[None, :]
    spikes = tl.load(spikes_ptr + index, mask=index < elements, other=0.0)
    bits = tl.where(spikes != 0.0, 1, 0) << place[None, :]
    tl.store(bits_ptr + byte, tl.sum(bits, axis=1).to(tl.uint8), mask=byte * 8 < elements)


@triton.jit
def _unpack_kernel(
    bits_ptr, spikes_ptr, elements, GAIN: tl.constexpr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr
):
    byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    place = tl.arange(0, 8)
    index = byte[:, None] * 8 + place[None, :]
    bits = tl.load(bits_ptr + byte, mask=byte * 8 < elements, other=0).to(tl.int32)
    spikes = (bits[:, None] >> place[None, :]) & 1
    spikes = spikes.to(COMPUTE) * GAIN
    tl.store(spikes_ptr + index, spikes.to(spikes_ptr.dtype.element_ty), mask=index < elements)


def pack(flat: Tensor) -> Tensor:
    """Zeros and γ [n] of a floating dtype → bytes [⌈n / 8⌉]; missing elements of the last byte are 0."""
    bits = torch.empty(-(-len(flat) // 8), dtype=torch.uint8, device=flat.device)
    _launch(_pack_kernel, flat, bits, len(flat))
    return bits


def unpack(bits: Tensor, elements: int, dtype: torch.dtype, gain: float = 1.0) -> Tensor:
    """Inverse of `pack`: returns γ s [elements] of the dtype."""
    flat = torch.empty(elements, dtype=dtype, device=bits.device)
    compute = tl.float64 if dtype == torch.float64 else tl.float32
    _launch(_unpack_kernel, bits, flat, elements, GAIN=gain, COMPUTE=compute)
    return flat


def _launch(
    kernel: triton.JITFunction, source: Tensor, target: Tensor, elements: int, **constants: Any
) -> None:
    if elements:
        with torch.cuda.device_of(source):
            grid = (triton.cdiv(elements, 8 * BLOCK),)
            kernel[grid](source, target, elements, **constants, BLOCK=BLOCK, enable_fp_fusion=False)
