"""The LIF step and its derivative as fused Triton kernels: each reads and writes every tensor once.

The same functions as in `lif_torch`. They compute in float32 (float64 for float64) and
round once, when u is stored; the spike is computed from the stored u, so that `fire` gives the same.

Set TRITON_INTERPRET=1 before the first import to run them on the CPU, slowly, for tests.
"""

# The compiler specialises kernels on the parameters in capitals; Triton's functions have no types.
# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import math
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
from sltt_bench.neurons import LIFParameters

SURROGATES = ("triangle", "rectangle", "sigmoid", "arctan")
"""The surrogates with a formula here, in the order of their numbers in `_surrogate`."""

BLOCK = 1024
"""Elements of one program, or of one turn of a program that takes several turns."""
PROGRAMS = 1024
"""Approximate number of programs that sum a tensor by channel: each sums its part, and the sum over programs
afterwards is small. A processor of the GPU runs several programs at once, so their reads overlap."""
TILE_CHANNELS = 64
"""Channels of a summing program if channels are adjacent in memory."""
TILE_TOTALS = 8
"""Sums that one program of the adding kernel computes: 32 bytes, the smallest unit of a read."""

_PI = tl.constexpr(math.pi)


@triton.jit
def _after_reset(u, THRESHOLD: tl.constexpr, V_RESET: tl.constexpr, SOFT: tl.constexpr):
    """v[t] from u[t]."""
    if SOFT:
        return tl.where(u >= THRESHOLD, u - THRESHOLD, u)
    else:
        return tl.where(u >= THRESHOLD, V_RESET + 0.0 * u, u)  # V_reset alone would lose an infinite u


@triton.jit
def _surrogate(x, KIND: tl.constexpr):
    """ds/du from x = u − V_th."""
    if KIND == 0:
        return tl.where(tl.abs(x) >= 1.0, 0.0, 1.0 - tl.abs(x))  # a maximum would turn NaN into 0
    elif KIND == 1:
        return tl.where(tl.abs(x) < 0.5, 1.0, 0.0)
    elif KIND == 2:
        logistic = 1.0 / (1.0 + tl.exp(-4.0 * x))
        return 4.0 * logistic * (1.0 - logistic)
    else:
        return 1.0 / (1.0 + (_PI * x) * (_PI * x))


@triton.jit
def _scaled(x, FACTOR: tl.constexpr, COMPUTE: tl.constexpr):
    """x times the factor, rounded to the dtype of x like a separate multiplication."""
    if FACTOR == 1:
        return x.to(COMPUTE)
    else:
        return (x.to(COMPUTE) * FACTOR).to(x.dtype).to(COMPUTE)


@triton.jit
def _inverse_deviation(variance_ptr, channel, known, EPS: tl.constexpr, COMPUTE: tl.constexpr):
    """1 / √(σ² + ε) of channels; an arbitrary number for channels that are not `known`."""
    return 1.0 / tl.sqrt(tl.load(variance_ptr + channel, mask=known, other=1.0).to(COMPUTE) + EPS)


@triton.jit
def _elements_of(turn, channel, elements, CHANNELS: tl.constexpr, INNER: tl.constexpr, AT_ONCE: tl.constexpr):
    """Indices [AT_ONCE, channels] of the elements that a program takes in a turn, and the mask of valid ones.

    A channel has elements / CHANNELS places; programs take AT_ONCE of them at a time, in turns.
    """
    places = elements // (CHANNELS * INNER) * INNER  # in this form the compiler recognises 16-byte pieces
    part = turn * tl.num_programs(0) + tl.program_id(0)
    place = part.to(tl.int64) * AT_ONCE + tl.arange(0, AT_ONCE)
    start = place // INNER * (CHANNELS * INNER) + place % INNER
    index = start[:, None] + channel[None, :] * INNER
    return index, (place < places)[:, None] & (channel < CHANNELS)[None, :]


@triton.jit
def _gradient(
    through_spikes,
    past,
    u,
    THRESHOLD: tl.constexpr,
    V_RESET: tl.constexpr,
    FROM_NEXT: tl.constexpr,
    SOFT: tl.constexpr,
    DETACHED: tl.constexpr,
    SURROGATE: tl.constexpr,
):
    """∂L/∂u[t] = g (∂L/∂s[t] + ∂v/∂s d) + ∂v/∂u d; d = λ ∂L/∂u[t+1] (0 unless FROM_NEXT), surrogate g."""
    if FROM_NEXT and not DETACHED:
        if SOFT:
            through_spikes -= THRESHOLD * past
        else:
            through_spikes += (V_RESET - u) * past
    if not SOFT:
        past = tl.where(u >= THRESHOLD, 0.0, past)
    return through_spikes * _surrogate(u - THRESHOLD, SURROGATE) + past


@triton.jit
def _forward_kernel(
    x_ptr,
    previous_ptr,
    membrane_ptr,
    output_ptr,
    mean_ptr,
    variance_ptr,
    weight_ptr,
    bias_ptr,
    elements,
    DECAY: tl.constexpr,
    THRESHOLD: tl.constexpr,
    V_RESET: tl.constexpr,
    REST: tl.constexpr,
    FIRST: tl.constexpr,
    SOFT: tl.constexpr,
    FACTOR: tl.constexpr,
    GAIN: tl.constexpr,
    NORMALISED: tl.constexpr,
    BIASED: tl.constexpr,
    FIRES: tl.constexpr,
    EPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    INNER: tl.constexpr,
    STEPS: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """u[t] = λ (v[t−1] − rest) + rest + I[t],  s[t] = H(u[t] − V_th); γ s[t] is written if FIRES.

    I[t] = (x + b) / β, or the normalised x. The channel changes after every INNER elements in memory. x and s
    have STEPS · `elements` elements; u stays in registers from step to step, rounded as if stored.
    """
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < elements
    if not FIRST:
        u = tl.load(previous_ptr + index, mask=inside).to(COMPUTE)
    place = index
    for step in tl.static_range(STEPS):
        x = tl.load(x_ptr + place, mask=inside)
        if BIASED:
            bias = tl.load(bias_ptr + index // INNER % CHANNELS, mask=inside).to(COMPUTE)
            x = (x.to(COMPUTE) + bias).to(x.dtype)
        if NORMALISED:
            channel = index // INNER % CHANNELS
            slope = _inverse_deviation(variance_ptr, channel, inside, EPS, COMPUTE)
            slope *= tl.load(weight_ptr + channel, mask=inside).to(COMPUTE)
            shift = tl.load(bias_ptr + channel, mask=inside).to(COMPUTE)
            shift -= tl.load(mean_ptr + channel, mask=inside).to(COMPUTE) * slope
            current = (x.to(COMPUTE) * slope + shift).to(x.dtype).to(COMPUTE)
        else:
            current = _scaled(x, FACTOR, COMPUTE)
        if FIRST and step == 0:
            u = current + REST
        else:
            u = DECAY * _after_reset(u, THRESHOLD, V_RESET, SOFT) + current + (1.0 - DECAY) * REST
        stored = u.to(membrane_ptr.dtype.element_ty)
        u = stored.to(COMPUTE)
        if FIRES:
            spikes = tl.where(u >= THRESHOLD, 1.0, 0.0).to(COMPUTE) * GAIN
            tl.store(output_ptr + place, spikes.to(output_ptr.dtype.element_ty), mask=inside)
        place += elements
    tl.store(membrane_ptr + index, stored, mask=inside)


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
    """∂L/∂x = ∂L/∂u / β, with ∂L/∂s = γ ∂L/∂(γ s). Stores ∂L/∂u if TO_PAST: needed and β is not 1."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < elements
    u = tl.load(membrane_ptr + index, mask=inside).to(COMPUTE)
    through_spikes = tl.zeros((BLOCK,), COMPUTE)
    if FROM_OUTPUT:
        through_spikes = _scaled(tl.load(grad_output_ptr + index, mask=inside), GAIN, COMPUTE)
    past = tl.zeros((BLOCK,), COMPUTE)
    if FROM_NEXT:
        past = DECAY * tl.load(grad_next_ptr + index, mask=inside).to(COMPUTE)
    grad = _gradient(through_spikes, past, u, THRESHOLD, V_RESET, FROM_NEXT, SOFT, DETACHED, SURROGATE)
    stored = grad.to(grad_x_ptr.dtype.element_ty)
    if TO_PAST:
        tl.store(grad_ptr + index, stored, mask=inside)
    grad_x = _scaled(stored, FACTOR, COMPUTE)
    tl.store(grad_x_ptr + index, grad_x.to(grad_x_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _summing_backward_kernel(
    grad_output_ptr,
    grad_next_ptr,
    membrane_ptr,
    x_ptr,
    grad_ptr,
    grad_x_ptr,
    parts_ptr,
    mean_ptr,
    variance_ptr,
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
    NORMALISED: tl.constexpr,
    EPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    INNER: tl.constexpr,
    TILE: tl.constexpr,
    TURNS: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """As `_backward_kernel`, and Σ ∂L/∂x by channel over the program's part of the elements.

    If NORMALISED, ∂L/∂I in place of ∂L/∂x, and Σ ∂L/∂I · (x − μ) / √(σ² + ε) before Σ ∂L/∂I.
    A program takes TILE channels and, in TURNS turns, some of the elements / CHANNELS places of a channel.
    """
    channel = tl.program_id(1) * TILE + tl.arange(0, TILE)
    known = channel < CHANNELS
    if NORMALISED:
        mean = tl.load(mean_ptr + channel, mask=known, other=0.0).to(COMPUTE)
        inverse = _inverse_deviation(variance_ptr, channel, known, EPS, COMPUTE)
    at_once: tl.constexpr = BLOCK // TILE
    weighted = tl.zeros((at_once, TILE), COMPUTE)
    plain = tl.zeros((at_once, TILE), COMPUTE)
    for turn in range(TURNS):
        index, inside = _elements_of(turn, channel, elements, CHANNELS, INNER, at_once)
        u = tl.load(membrane_ptr + index, mask=inside, other=0.0).to(COMPUTE)
        through_spikes = tl.zeros((at_once, TILE), COMPUTE)
        if FROM_OUTPUT:
            grad_output = tl.load(grad_output_ptr + index, mask=inside, other=0.0)
            through_spikes = _scaled(grad_output, GAIN, COMPUTE)
        past = tl.zeros((at_once, TILE), COMPUTE)
        if FROM_NEXT:
            past = DECAY * tl.load(grad_next_ptr + index, mask=inside, other=0.0).to(COMPUTE)
        grad = _gradient(through_spikes, past, u, THRESHOLD, V_RESET, FROM_NEXT, SOFT, DETACHED, SURROGATE)
        stored = grad.to(grad_x_ptr.dtype.element_ty)
        if TO_PAST:
            tl.store(grad_ptr + index, stored, mask=inside)
        grad_x = _scaled(stored, FACTOR, COMPUTE).to(grad_x_ptr.dtype.element_ty)
        tl.store(grad_x_ptr + index, grad_x, mask=inside)
        plain += grad_x.to(COMPUTE)  # 0 outside
        if NORMALISED:
            x = tl.load(x_ptr + index, mask=inside, other=0.0).to(COMPUTE)
            weighted += grad_x.to(COMPUTE) * ((x - mean[None, :]) * inverse[None, :])
    if NORMALISED:
        parts = parts_ptr + tl.program_id(0) * (2 * CHANNELS) + channel
        tl.store(parts, tl.sum(weighted, axis=0), mask=known)
        tl.store(parts + CHANNELS, tl.sum(plain, axis=0), mask=known)
    else:
        tl.store(parts_ptr + tl.program_id(0) * CHANNELS + channel, tl.sum(plain, axis=0), mask=known)


@triton.jit
def _joined_kernel(
    residual_ptr,
    shortcut_ptr,
    output_ptr,
    gain_ptr,
    bias_ptr,
    elements,
    ALPHA: tl.constexpr,
    BIASED: tl.constexpr,
    CHANNELS: tl.constexpr,
    INNER: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """α g (r + b) + s."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < elements
    x = tl.load(residual_ptr + index, mask=inside).to(COMPUTE)
    if BIASED:
        x += tl.load(bias_ptr + index // INNER % CHANNELS, mask=inside).to(COMPUTE)
    x = x * tl.load(gain_ptr).to(COMPUTE) * ALPHA + tl.load(shortcut_ptr + index, mask=inside).to(COMPUTE)
    tl.store(output_ptr + index, x.to(output_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _joined_backward_kernel(
    grad_ptr,
    residual_ptr,
    grad_residual_ptr,
    parts_ptr,
    gain_ptr,
    elements,
    ALPHA: tl.constexpr,
    CHANNELS: tl.constexpr,
    INNER: tl.constexpr,
    TILE: tl.constexpr,
    TURNS: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """∂L/∂r = α g ∂L/∂y, and Σ ∂L/∂y · r and Σ ∂L/∂y by channel over the program's part of the elements."""
    channel = tl.program_id(1) * TILE + tl.arange(0, TILE)
    known = channel < CHANNELS
    at_once: tl.constexpr = BLOCK // TILE
    weighted = tl.zeros((at_once, TILE), COMPUTE)
    plain = tl.zeros((at_once, TILE), COMPUTE)
    factor = tl.load(gain_ptr).to(COMPUTE) * ALPHA
    for turn in range(TURNS):
        index, inside = _elements_of(turn, channel, elements, CHANNELS, INNER, at_once)
        grad = tl.load(grad_ptr + index, mask=inside, other=0.0).to(COMPUTE)
        residual = tl.load(residual_ptr + index, mask=inside, other=0.0).to(COMPUTE)
        tl.store(
            grad_residual_ptr + index, (grad * factor).to(grad_residual_ptr.dtype.element_ty), mask=inside
        )
        plain += grad
        weighted += grad * residual
    parts = parts_ptr + tl.program_id(0) * (2 * CHANNELS) + channel
    tl.store(parts, tl.sum(weighted, axis=0), mask=known)
    tl.store(parts + CHANNELS, tl.sum(plain, axis=0), mask=known)


@triton.jit
def _add_up_kernel(
    parts_ptr,
    totals_ptr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    PADDED: tl.constexpr,
    TILE: tl.constexpr,
):
    """The sums of the columns of [ROWS, COLUMNS]."""
    row = tl.arange(0, PADDED)
    column = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = (row < ROWS)[:, None] & (column < COLUMNS)[None, :]
    parts = tl.load(parts_ptr + row[:, None] * COLUMNS + column[None, :], mask=inside, other=0.0)
    tl.store(totals_ptr + column, tl.sum(parts, axis=0), mask=column < COLUMNS)


@triton.jit
def _statistics_kernel(
    x_ptr,
    parts_ptr,
    elements,
    CHANNELS: tl.constexpr,
    INNER: tl.constexpr,
    TILE: tl.constexpr,
    TURNS: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Mean and Σ (x − mean)² by channel over the program's part of the elements.

    A program takes the same channels and places as in `_summing_backward_kernel`. Means are updated element
    by element (Welford) and then joined (Chan et al. 1979), so that no large sums are subtracted from each
    other.
    """
    channel = tl.program_id(1) * TILE + tl.arange(0, TILE)
    known = channel < CHANNELS
    at_once: tl.constexpr = BLOCK // TILE
    mean = tl.zeros((at_once, TILE), COMPUTE)
    squares = tl.zeros((at_once, TILE), COMPUTE)
    count = tl.zeros((at_once, TILE), COMPUTE)
    for turn in range(TURNS):
        index, inside = _elements_of(turn, channel, elements, CHANNELS, INNER, at_once)
        x = tl.load(x_ptr + index, mask=inside, other=0.0).to(COMPUTE)
        count += tl.where(inside, 1.0, 0.0).to(COMPUTE)
        distance = tl.where(inside, x - mean, 0.0).to(COMPUTE)
        mean += distance / tl.maximum(count, 1.0)
        squares += distance * (x - mean)
    whole = tl.maximum(tl.sum(count, axis=0), 1.0)
    joined = tl.sum(mean * count, axis=0) / whole
    apart = mean - joined[None, :]
    parts = parts_ptr + tl.program_id(0) * (2 * CHANNELS) + channel
    tl.store(parts, joined, mask=known)
    tl.store(parts + CHANNELS, tl.sum(squares + apart * apart * count, axis=0), mask=known)


@triton.jit
def _join_statistics_kernel(
    parts_ptr,
    mean_ptr,
    variance_ptr,
    running_mean_ptr,
    running_variance_ptr,
    batches_ptr,
    offset_ptr,
    places,
    MOMENTUM: tl.constexpr,
    LEARNS: tl.constexpr,
    OFFSET: tl.constexpr,
    CHANNELS: tl.constexpr,
    AT_ONCE: tl.constexpr,
    ROWS: tl.constexpr,
    PADDED: tl.constexpr,
    TILE: tl.constexpr,
):
    """μ and biased σ² of channels from those of parts. If LEARNS, updates the running statistics with μ +
    offset and the unbiased σ², and counts one more batch.

    A channel has `places` elements, which ROWS programs took in turns, AT_ONCE each time.
    """
    row = tl.arange(0, PADDED)
    channel = tl.program_id(0) * TILE + tl.arange(0, TILE)
    known = channel < CHANNELS
    inside = (row < ROWS)[:, None] & known[None, :]
    part = row[:, None] * (2 * CHANNELS) + channel[None, :]
    means = tl.load(parts_ptr + part, mask=inside, other=0.0)
    squares = tl.load(parts_ptr + CHANNELS + part, mask=inside, other=0.0)
    full = places // AT_ONCE
    counts = (full - row + ROWS - 1) // ROWS * AT_ONCE
    counts += tl.where(row == full % ROWS, places % AT_ONCE, 0)
    counts = tl.where(row < ROWS, counts, 0).to(means.dtype)[:, None]
    n = (places + 0 * channel).to(means.dtype)
    mean = tl.sum(means * counts, axis=0) / n
    apart = means - mean[None, :]
    squares = tl.sum(squares + apart * apart * counts, axis=0)
    tl.store(mean_ptr + channel, mean, mask=known)
    tl.store(variance_ptr + channel, squares / n, mask=known)
    if LEARNS:
        if tl.program_id(0) == 0:
            tl.store(batches_ptr, tl.load(batches_ptr) + 1)
        before = tl.load(running_mean_ptr + channel, mask=known)
        learned = mean
        if OFFSET:
            learned += tl.load(offset_ptr + channel, mask=known)
        tl.store(running_mean_ptr + channel, (1.0 - MOMENTUM) * before + MOMENTUM * learned, mask=known)
        before = tl.load(running_variance_ptr + channel, mask=known)
        learned = squares / tl.maximum(n - 1.0, 1.0)
        tl.store(running_variance_ptr + channel, (1.0 - MOMENTUM) * before + MOMENTUM * learned, mask=known)


@triton.jit
def _input_gradient_kernel(
    grad_ptr,
    x_ptr,
    grad_x_ptr,
    sums_ptr,
    mean_ptr,
    variance_ptr,
    weight_ptr,
    to_weight_ptr,
    to_bias_ptr,
    elements,
    OF_BATCH: tl.constexpr,
    ADDS: tl.constexpr,
    EPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    INNER: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """∂L/∂x = γ r (∂L/∂I − (Σ ∂L/∂I + x̂ Σ ∂L/∂I x̂) / n), r = 1 / √(σ² + ε), x̂ = (x − μ) r, n elements per
    channel; without the sums if μ and σ² are not the batch's own. If ADDS, adds Σ ∂L/∂I x̂ and Σ ∂L/∂I to tensors
    by channel."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < elements
    channel = index // INNER % CHANNELS
    grad = tl.load(grad_ptr + index, mask=inside).to(COMPUTE)
    inverse = _inverse_deviation(variance_ptr, channel, inside, EPS, COMPUTE)
    if OF_BATCH:
        x = tl.load(x_ptr + index, mask=inside).to(COMPUTE)
        normalised = (x - tl.load(mean_ptr + channel, mask=inside).to(COMPUTE)) * inverse
        weighted = tl.load(sums_ptr + channel, mask=inside).to(COMPUTE)
        plain = tl.load(sums_ptr + CHANNELS + channel, mask=inside).to(COMPUTE)
        grad -= (plain + normalised * weighted) / (elements // CHANNELS).to(COMPUTE)
    grad *= tl.load(weight_ptr + channel, mask=inside).to(COMPUTE) * inverse
    tl.store(grad_x_ptr + index, grad.to(grad_x_ptr.dtype.element_ty), mask=inside)
    if ADDS:
        own = index < CHANNELS
        weighted = tl.load(to_weight_ptr + index, mask=own) + tl.load(sums_ptr + index, mask=own)
        plain = tl.load(to_bias_ptr + index, mask=own) + tl.load(sums_ptr + CHANNELS + index, mask=own)
        tl.store(to_weight_ptr + index, weighted, mask=own)
        tl.store(to_bias_ptr + index, plain, mask=own)


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
            _forward_kernel,
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
            _backward_kernel,
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
            _summing_backward_kernel,
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
            _input_gradient_kernel,
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
        _launch(_statistics_kernel, (x, parts), tiles.grid, **tiles.constants)
        mean, variance = torch.empty_like(running.mean), torch.empty_like(running.variance)
        offset = sum(biases[1:], biases[0]) if biases else mean
        with torch.cuda.device_of(x):
            _join_statistics_kernel[(triton.cdiv(tiles.channels, TILE_TOTALS),)](
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
            _joined_kernel,
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
        _launch(_joined_backward_kernel, (*tensors, parts, gain), tiles.grid, ALPHA=alpha, **tiles.constants)
        weighted, plain = _added_up(parts)
        if bias is None:
            return grad_residual, weighted.sum() * alpha, None
        grad_gain = torch.addcmul(weighted, plain, bias).sum() * alpha
        return grad_residual, grad_gain, plain * (gain * alpha)

    def fire(self, membrane: Tensor, neuron: LIFParameters, gain: float = 1.0) -> Tensor:
        spikes = torch.empty_like(membrane)
        tensors = _laid_out_as(spikes, membrane), spikes
        _launch(_fire_kernel, tensors, THRESHOLD=neuron.v_threshold, GAIN=gain)
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
        _add_up_kernel[(triton.cdiv(columns, TILE_TOTALS),)](
            parts, totals, COLUMNS=columns, **_rows_of(parts)
        )
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
