"""Spikes stored as one bit each."""

from types import ModuleType

import torch
from torch import Tensor

from sltt_bench.backends.native import kernels
from sltt_bench.backends.native.lif_torch import is_dense

# Eight bytes b[i] of 0 or 1 are read as the number Σ 2^(8i) b[i]. Times Σ 2^(7k), k = 1 … 8, it has b[m] at bit
# 56 + m, and no two products of bits meet. The way back repeats a byte eight times and masks bit i of byte i.
_GATHER = 0x0102040810204080
_REPEAT = 0x0101010101010101
_ONE_BIT_EACH = 0x8040201008040201 - 2**64


class PackedSpikes:
    """A tensor γ s of spikes s (0 or 1), stored in one bit per element."""

    def __init__(self, spikes: Tensor, gain: float = 1.0) -> None:
        """`spikes`: γ s of any shape and floating dtype, copied unless dense in memory. `gain`: γ, not 0."""
        if not is_dense(spikes):
            spikes = spikes.contiguous()
        self._shape, self._stride = spikes.shape, spikes.stride()
        self._dtype, self._gain = spikes.dtype, gain
        flat = spikes.as_strided((spikes.numel(),), (1,))
        self._bits = _in_one_pass().pack(flat) if kernels.by_triton(flat) else pack(flat)

    def tensor(self) -> Tensor:
        """Returns γ s with its original shape, dtype and memory format."""
        back = _in_one_pass().unpack if kernels.by_triton(self._bits) else unpack
        flat: Tensor = back(self._bits, self._shape.numel(), self._dtype, self._gain)
        return flat.as_strided(self._shape, self._stride)


def pack(flat: Tensor) -> Tensor:
    """Zeros and γ [n] of a floating dtype → bytes [⌈n / 8⌉]; missing elements of the last byte are 0."""
    fired = flat != 0
    if rest := -len(fired) % 8:
        fired = torch.cat([fired, fired.new_zeros(rest)])
    return ((fired.view(torch.int64) * _GATHER) >> 56).to(torch.uint8)


def unpack(bits: Tensor, elements: int, dtype: torch.dtype, gain: float = 1.0) -> Tensor:
    """Inverse of `pack`: returns γ s [elements] of the dtype."""
    spread = (bits.to(torch.int64) * _REPEAT) & _ONE_BIT_EACH
    spikes = (spread.view(torch.uint8) != 0)[:elements].to(dtype)
    return spikes if gain == 1 else spikes.mul_(gain)


def _in_one_pass() -> ModuleType:
    """Returns the module with the same functions for a GPU, each in one pass."""
    from sltt_bench.backends.native import packing_triton

    return packing_triton
