"""The LIF step and its derivative on a GPU: the same functions as in `lif_torch`, by fused Triton kernels.

Set TRITON_INTERPRET=1 before the first import to run them on the CPU, slowly, for tests.
"""

# mypy: disable-error-code="no-untyped-call"

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sltt_bench.backends.native.lif_torch import (
    UNSCALED,
    BatchNormParameters,
    RunningStatistics,
    Scaling,
    is_dense,
    placeholder_like,
)
from sltt_bench.backends.native.lif_triton_kernels import (
    SURROGATES,
    add_up_kernel,
    backward_kernel,
    fire_kernel,
    forward_kernel,
    input_gradient_kernel,
    join_statistics_kernel,
    joined_backward_kernel,
    joined_kernel,
    statistics_kernel,
    summing_backward_kernel,
)
from sltt_bench.neurons import LIFParameters

BLOCK = 1024
"""Elements of one program, or of one turn of a program that takes several turns."""
PROGRAMS = 1024
"""Approximate number of programs that sum a tensor by channel: each sums its part, and the sum over programs
afterwards is small. A processor of the GPU runs several programs at once, so their reads overlap."""
TILE_CHANNELS = 64
"""Channels of a summing program if channels are adjacent in memory."""
TILE_TOTALS = 8
"""Sums that one program of the adding kernel computes: 32 bytes, the smallest unit of a read."""


class TritonKernels:
    """The kernels of CUDA devices, as `kernels.Kernels` describes them."""

    def forward(
        self,
        x: Tensor,
        previous: Tensor | None,
        neuron: LIFParameters,
        out: Tensor | None,
        scale: Scaling = UNSCALED,
        norm: BatchNormParameters | None = None,
        bias: Tensor | None = None,
        *,
        steps: int = 1,
        fires: bool = True,
    ) -> tuple[Tensor, Tensor]:
        membrane = torch.empty_like(x[: len(x) // steps]) if out is None else out
        if x.stride() != membrane.stride():
            x = x.new_empty_strided(x.shape, membrane.stride()).copy_(x)
        spikes = x.new_empty_strided(x.shape, membrane.stride()) if fires else placeholder_like(x)
        past = x if previous is None else _laid_out_as(membrane, previous)
        by_channel = (
            (x, x, x, x if bias is None else bias)
            if norm is None
            else (norm.mean, norm.variance, norm.weight, norm.bias)
        )
        _launch(
            forward_kernel,
            (x, past, membrane, spikes, *by_channel),
            elements=membrane.numel(),
            REST=neuron.resting_potential,
            FIRST=previous is None,
            FACTOR=_reciprocal(scale.divisor, x.dtype),
            GAIN=scale.gain,
            NORMALISED=norm is not None,
            BIASED=bias is not None,
            FIRES=fires,
            EPS=0.0 if norm is None else norm.eps,
            STEPS=steps,
            **_step_of(neuron),
            **({"CHANNELS": 1, "INNER": 1} if norm is None and bias is None else _channels_of(x)),
        )
        if out is not None:  # autograd's check of saved tensors does not see kernels write
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
        grad_x = torch.empty_like(membrane)
        to_past = through_time and scale.divisor != 1
        grad = torch.empty_like(membrane) if to_past else grad_x
        membrane = _laid_out_as(grad, membrane)
        _launch(
            backward_kernel,
            (
                membrane if grad_output is None else _laid_out_as(membrane, grad_output),
                membrane if grad_next is None else _laid_out_as(membrane, grad_next),
                membrane,
                grad,
                grad_x,
            ),
            FROM_OUTPUT=grad_output is not None,
            FROM_NEXT=grad_next is not None,
            TO_PAST=to_past,
            FACTOR=_reciprocal(scale.divisor, membrane.dtype),
            GAIN=scale.gain,
            **_derivative_of(neuron),
        )
        return grad_x, grad if through_time else None

    def backward_biased(
        self,
        grad_output: Tensor | None,
        grad_next: Tensor | None,
        membrane: Tensor,
        neuron: LIFParameters,
        scale: Scaling = UNSCALED,
        *,
        through_time: bool = True,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        to_past = through_time and scale.divisor != 1
        grad_x, grad, sums = self._backward_with_sums(
            grad_output, grad_next, membrane, neuron, scale, to_past=to_past
        )
        return grad_x, grad if through_time else None, sums[0]

    def backward_normalised(
        self,
        grad_output: Tensor | None,
        grad_next: Tensor | None,
        membrane: Tensor,
        neuron: LIFParameters,
        gain: float,
        x: Tensor,
        norm: BatchNormParameters,
    ) -> tuple[Tensor, Tensor]:
        grad, _, sums = self._backward_with_sums(
            grad_output, grad_next, membrane, neuron, Scaling(gain=gain), (x, norm)
        )
        return grad, sums

    def _backward_with_sums(
        self,
        grad_output: Tensor | None,
        grad_next: Tensor | None,
        membrane: Tensor,
        neuron: LIFParameters,
        scale: Scaling,
        normalised: tuple[Tensor, BatchNormParameters] | None = None,
        *,
        to_past: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns ∂L/∂x, ∂L/∂u (the same tensor unless `to_past`) and sums by channel [1 or 2, channels]."""
        grad_x = torch.empty_like(membrane)
        grad = torch.empty_like(membrane) if to_past else grad_x
        membrane = _laid_out_as(grad_x, membrane)
        tiles = _Tiles.of(grad_x)
        wide = torch.promote_types(membrane.dtype, torch.float32)
        parts = _parts(membrane, tiles, 1 if normalised is None else 2, wide)
        x, mean, variance = membrane, parts, parts
        if normalised is not None:
            x, mean, variance = (
                _laid_out_as(grad_x, normalised[0]),
                normalised[1].mean,
                normalised[1].variance,
            )
        _launch(
            summing_backward_kernel,
            (
                membrane if grad_output is None else _laid_out_as(membrane, grad_output),
                membrane if grad_next is None else _laid_out_as(membrane, grad_next),
                membrane,
                x,
                grad,
                grad_x,
                parts,
                mean,
                variance,
            ),
            tiles.grid,
            FROM_OUTPUT=grad_output is not None,
            FROM_NEXT=grad_next is not None,
            TO_PAST=to_past,
            FACTOR=_reciprocal(scale.divisor, membrane.dtype),
            GAIN=scale.gain,
            NORMALISED=normalised is not None,
            EPS=0.0 if normalised is None else normalised[1].eps,
            **tiles.constants,
            **_derivative_of(neuron),
        )
        return grad_x, grad, _added_up(parts)

    def backward_to_input(
        self,
        grad: Tensor,
        x: Tensor,
        norm: BatchNormParameters,
        sums: Tensor | None,
        into: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        assert sums is not None
        grad_x = torch.empty_like(grad)
        tensors = _laid_out_as(grad_x, grad), _laid_out_as(grad_x, x), grad_x
        totals = (sums[0], sums[1]) if into is None else into
        _launch(
            input_gradient_kernel,
            (*tensors, sums, norm.mean, norm.variance, norm.weight, *totals),
            OF_BATCH=norm.of_batch,
            ADDS=into is not None,
            EPS=norm.eps,
            **_channels_of(grad_x),
        )
        if into is not None:
            torch.autograd.graph.increment_version(into)
        return grad_x, *totals

    def statistics(
        self, x: Tensor, running: RunningStatistics, momentum: float | None, biases: Sequence[Tensor] = ()
    ) -> tuple[Tensor, Tensor]:
        if not is_dense(x):
            x = x.contiguous()
        tiles = _Tiles.of(x)
        parts = running.mean.new_empty(tiles.rows, 2, tiles.channels)
        _launch(statistics_kernel, (x, parts), tiles.grid, **tiles.constants)
        mean, variance = torch.empty_like(running.mean), torch.empty_like(running.variance)
        offset = sum(biases[1:], biases[0]) if biases else mean
        with torch.cuda.device_of(x):
            join_statistics_kernel[(triton.cdiv(tiles.channels, TILE_TOTALS),)](
                parts,
                mean,
                variance,
                *running,
                offset,
                tiles.places,
                MOMENTUM=momentum or 0.0,
                LEARNS=momentum is not None,
                OFFSET=bool(biases),
                CHANNELS=tiles.channels,
                AT_ONCE=BLOCK // tiles.tile,
                **_rows_of(parts),
            )
        if momentum is not None:
            torch.autograd.graph.increment_version(running)
        return mean, variance

    def joined(
        self, residual: Tensor, shortcut: Tensor, gain: Tensor, alpha: float, bias: Tensor | None
    ) -> Tensor:
        output = torch.empty_like(residual)
        tensors = _laid_out_as(output, residual), _laid_out_as(output, shortcut), output
        _launch(
            joined_kernel,
            (*tensors, gain, gain if bias is None else bias),
            ALPHA=alpha,
            BIASED=bias is not None,
            **_channels_of(output),
        )
        return output

    def joined_backward(
        self, grad: Tensor, residual: Tensor, gain: Tensor, alpha: float, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        grad_residual = torch.empty_like(residual)
        tiles = _Tiles.of(grad_residual)
        wide = torch.promote_types(residual.dtype, torch.float32)
        parts = _parts(residual, tiles, 2, wide)
        tensors = _laid_out_as(grad_residual, grad), _laid_out_as(grad_residual, residual), grad_residual
        _launch(joined_backward_kernel, (*tensors, parts, gain), tiles.grid, ALPHA=alpha, **tiles.constants)
        weighted, plain = _added_up(parts)
        if bias is None:
            return grad_residual, weighted.sum() * alpha, None
        grad_gain = torch.addcmul(weighted, plain, bias).sum() * alpha
        return grad_residual, grad_gain, plain * (gain * alpha)

    def fire(self, membrane: Tensor, neuron: LIFParameters, gain: float = 1.0) -> Tensor:
        spikes = torch.empty_like(membrane)
        tensors = _laid_out_as(spikes, membrane), spikes
        _launch(fire_kernel, tensors, THRESHOLD=neuron.v_threshold, GAIN=gain)
        return spikes


@cache
def _reciprocal(divisor: float, dtype: torch.dtype) -> float:
    """Returns 1 / β rounded to the format of the arithmetic, as in torch's division by a number on CUDA."""
    arithmetic = torch.promote_types(dtype, torch.float32)
    return float(torch.ones((), dtype=arithmetic) / torch.tensor(divisor, dtype=arithmetic))


def _step_of(neuron: LIFParameters) -> dict[str, Any]:
    """Returns the kernels' constants of a neuron."""
    soft = neuron.reset == "soft"
    return {"DECAY": neuron.decay, "THRESHOLD": neuron.v_threshold, "V_RESET": neuron.v_reset, "SOFT": soft}


def _derivative_of(neuron: LIFParameters) -> dict[str, Any]:
    """Returns the backward kernels' constants of a neuron."""
    surrogate = SURROGATES.index(neuron.surrogate)
    return {**_step_of(neuron), "DETACHED": neuron.detach_reset, "SURROGATE": surrogate}


def _channels_of(tensor: Tensor) -> dict[str, Any]:
    """Returns number and distance in memory of the channels of a dense tensor [batch, channels, …]."""
    return {"CHANNELS": tensor.shape[1], "INNER": tensor.stride(1) if tensor.shape[1] > 1 else 1}


class _Tiles(NamedTuple):
    """How programs divide a dense tensor [batch, channels, …] to compute sums by channel."""

    channels: int
    inner: int
    """Distance in memory between channels, in elements."""
    places: int
    """Number of elements of a channel."""
    tile: int
    """Number of channels of a program."""
    rows: int
    """Number of programs that share a channel."""

    @classmethod
    def of(cls, tensor: Tensor) -> "_Tiles":
        layout = _channels_of(tensor)
        channels, inner = layout["CHANNELS"], layout["INNER"]
        tile = min(TILE_CHANNELS, triton.next_power_of_2(channels)) if inner == 1 else 1
        places = tensor.numel() // max(1, channels)
        most = max(1, PROGRAMS // triton.cdiv(channels, tile))
        return cls(channels, inner, places, tile, max(1, min(triton.cdiv(places, BLOCK // tile), most)))

    @property
    def grid(self) -> tuple[int, int]:
        return self.rows, triton.cdiv(self.channels, self.tile)

    @property
    def constants(self) -> dict[str, Any]:
        """The kernels' constants."""
        turns = triton.cdiv(triton.cdiv(self.places, BLOCK // self.tile), self.rows)
        return {"CHANNELS": self.channels, "INNER": self.inner, "TILE": self.tile, "TURNS": turns}


def _parts(tensor: Tensor, tiles: _Tiles, sums: int, dtype: torch.dtype) -> Tensor:
    """Returns memory for the sums by channel of each row of programs, [rows, sums, channels]; zeros for an
    empty tensor, for which no program runs."""
    make = tensor.new_empty if tensor.numel() else tensor.new_zeros
    return make(tiles.rows, sums, tiles.channels, dtype=dtype)


def _added_up(parts: Tensor) -> Tensor:
    """Returns the sum over the first dimension."""
    totals = torch.empty_like(parts[0])
    columns = totals.numel()
    with torch.cuda.device_of(parts):
        add_up_kernel[(triton.cdiv(columns, TILE_TOTALS),)](parts, totals, COLUMNS=columns, **_rows_of(parts))
    return totals


def _rows_of(parts: Tensor) -> dict[str, Any]:
    """Returns the constants of kernels that join the results of programs, one program in each row."""
    padded = triton.next_power_of_2(len(parts))
    warps = min(8, max(1, padded * TILE_TOTALS // 256))
    return {
        "ROWS": len(parts),
        "PADDED": padded,
        "TILE": TILE_TOTALS,
        "num_warps": warps,
        "enable_fp_fusion": False,
    }


def _launch(
    kernel: Any,
    tensors: tuple[Tensor, ...],
    grid: tuple[int, ...] | None = None,
    elements: int | None = None,
    **constants: Any,
) -> None:
    """Run a kernel over tensors with the same memory layout, by programs of BLOCK elements or on a `grid`."""
    first = tensors[0]
    elements = first.numel() if elements is None else elements
    if elements == 0:
        return
    compute = tl.float64 if first.dtype == torch.float64 else tl.float32
    grid = grid or (triton.cdiv(elements, BLOCK),)
    with torch.cuda.device_of(first):
        # No contraction to fused multiply-adds: they round once where the equations round twice, and a
        # potential at the threshold would fire on one device only.
        kernel[grid](*tensors, elements, **constants, COMPUTE=compute, BLOCK=BLOCK, enable_fp_fusion=False)


def _laid_out_as(model: Tensor, tensor: Tensor) -> Tensor:
    """Returns the tensor with the strides of `model`, which is dense; copied only if the strides differ."""
    if tensor.stride() == model.stride():
        return tensor
    return torch.empty_like(model, dtype=tensor.dtype).copy_(tensor)
