"""The LIF step, its derivative and the batch norm around it as Triton kernels: each reads and writes every
tensor once. `lif_triton` launches them.

They compute in float32 (float64 for float64) and round once, when u is stored; the spike is computed from the
stored u, so that `fire_kernel` gives the same.
"""

# The compiler specialises kernels on the parameters in capitals; Triton's functions have no types.
# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import math

import triton
import triton.language as tl

SURROGATES = ("triangle", "rectangle", "sigmoid", "arctan")
"""The surrogates with a formula here, in the order of their numbers in `_surrogate`."""

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
def forward_kernel(
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
def backward_kernel(
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
def summing_backward_kernel(
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
    """As `backward_kernel`, and Σ ∂L/∂x by channel over the program's part of the elements.

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
def joined_kernel(
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
def joined_backward_kernel(
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
def add_up_kernel(
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
def statistics_kernel(
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

    A program takes the same channels and places as in `summing_backward_kernel`. Means are updated element
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
def join_statistics_kernel(
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
def input_gradient_kernel(
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
def fire_kernel(
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
