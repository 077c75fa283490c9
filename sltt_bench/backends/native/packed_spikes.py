"""Spikes kept as one bit each."""

import torch
from torch import Tensor

from sltt_bench.backends.native.lif_torch import is_dense

# Eight bytes b[i] of 0 or 1 are read as the number Σ 2^(8i) b[i]. Times Σ 2^(7k), k = 1 … 8, it has b[m] at bit
# 56 + m, and no two products of bits meet. The way back repeats a byte eight times and masks bit i of byte i.
_GATHER = 0x0102040810204080
_REPEAT = 0x0101010101010101
_ONE_BIT_EACH = 0x8040201008040201 - 2**64


class PackedSpikes:
    """A tensor of zeros and ones in an eighth of a byte an element."""

    def __init__(self, spikes: Tensor) -> None:
        """`spikes`: zeros and ones of any shape and floating type, dense in memory or copied to be."""
        if not is_dense(spikes):
            spikes = spikes.contiguous()
        self._shape, self._stride = spikes.shape, spikes.stride()
        self._dtype = spikes.dtype
        flat = spikes.as_strided((spikes.numel(),), (1,)) != 0
        if rest := -len(flat) % 8:
            flat = torch.cat([flat, flat.new_zeros(rest)])
        self._bits = ((flat.view(torch.int64) * _GATHER) >> 56).to(torch.uint8)

    def tensor(self) -> Tensor:
        """The spikes, with the shape, type and memory format that they had."""
        spread = (self._bits.to(torch.int64) * _REPEAT) & _ONE_BIT_EACH
        elements = self._shape.numel()
        flat = (spread.view(torch.uint8) != 0)[:elements].to(self._dtype)
        return flat.as_strided(self._shape, self._stride)
