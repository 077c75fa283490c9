"""The kernels of the native backend against the equations of `sltt_bench.neurons`, kernel by kernel.

Triton's kernels run on the CPU through its interpreter, which must be chosen before Triton is
imported: one test here starts this file again with TRITON_INTERPRET=1.
"""

import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checkout import ROOT
from one_batch import RESETS
from thinned import thinned
from torch import Tensor

from sltt_bench.backends.native.lif_torch import (
    PIECE,
    UNSCALED,
    BatchNormParameters,
    RunningStatistics,
    Scaling,
    TorchKernels,
    representable_threshold,
)
from sltt_bench.models.normalisation import standardised
from sltt_bench.neurons import LIFParameters, integrate, lif_step
from sltt_bench.surrogates import SURROGATES

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

ROUNDING = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Absolute error that a few operations on numbers around 1 may have in each format."""


def some(cases: Iterable[Any], *, keep: int) -> list[Any]:
    """All cases of torch's kernels, and of Triton's, which the interpreter makes slow, one of `keep` in CI."""
    return thinned(cases, keep=keep) if INTERPRETED else list(cases)


def kernels() -> Any:
    if not INTERPRETED:
        return TorchKernels()
    from sltt_bench.backends.native.lif_triton import TritonKernels

    return TritonKernels()


def neuron(reset: str = "soft", surrogate: str = "triangle", **others: float) -> LIFParameters:
    fields: Any = {"tau": 1.7, "v_threshold": 0.7, "surrogate": surrogate, **RESETS[reset], **others}
    return LIFParameters(**fields)


def numbers(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def by_the_equations(
    current: Tensor, membrane_before: Tensor, grad_spikes: Tensor, grad_next: Tensor, lif: LIFParameters
) -> tuple[Tensor, Tensor, Tensor]:
    """s[t], u[t] from u[t−1], and ∂L/∂u[t−1] where L sends these gradients to s[t−1] and u[t]."""
    u = membrane_before.double().clone().requires_grad_()
    before = u if lif.resting_potential == 0 else u - lif.resting_potential
    spikes_before, potential = lif_step(before, None, lif)  # u[t−1] = I + rest before the first step
    membrane = integrate(current.double(), potential, lif)
    (grad,) = torch.autograd.grad((spikes_before, membrane), u, (grad_spikes.double(), grad_next.double()))
    spikes, _ = lif_step(current.double(), potential.detach(), lif)
    return spikes, membrane.detach(), grad


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "every other column": lambda x: x.repeat_interleave(2, dim=3)[..., ::2],
    "transposed": lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
    "expanded": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize(("reset", "surrogate"), some(product(RESETS, SURROGATES), keep=5))
def test_kernels_follow_the_equations(reset: str, surrogate: str) -> None:
    lif = neuron(reset, surrogate)
    current, before, grad_spikes, grad_next = (2 * numbers(3, 5, 7, 11, seed=seed) for seed in range(4))
    spikes, membrane, grad = by_the_equations(current, before, grad_spikes, grad_next, lif)
    got_spikes, got_membrane = kernels().forward(current, before, lif, None)
    assert torch.equal(got_spikes, spikes)
    torch.testing.assert_close(got_membrane, membrane, rtol=0, atol=1e-14)
    got_grad, _ = kernels().backward(grad_spikes, grad_next, before, lif)
    torch.testing.assert_close(got_grad, grad, rtol=0, atol=1e-13)
    assert torch.equal(kernels().fire(membrane, lif), spikes)
    assert 0.1 < spikes.mean() < 0.6


@pytest.mark.parametrize("reset", RESETS)
def test_a_potential_that_is_no_finite_number_goes_on_as_in_the_equations(reset: str) -> None:
    lif = neuron(reset)
    before = torch.tensor([math.inf, -math.inf, math.nan, 65504.0, 0.6]).repeat(2, 1)
    current, ones = torch.full((2, 5), 0.3), torch.ones(2, 5)
    for steps in (1, 2):
        u = before.requires_grad_()
        spikes_before, potential = lif_step(u - lif.resting_potential, None, lif)
        expected = integrate(current, potential, lif)
        (grad,) = torch.autograd.grad((spikes_before, expected), u, (ones, ones))
        got, _ = kernels().backward(ones, ones, u.detach(), lif)
        torch.testing.assert_close(got, grad, equal_nan=True)
        if steps == 2:
            expected = integrate(current, lif_step(expected - lif.resting_potential, None, lif)[1], lif)
        x = torch.cat([current] * steps)
        spikes, membrane = kernels().forward(x, u.detach(), lif, None, steps=steps)
        torch.testing.assert_close(membrane, expected.detach(), equal_nan=True)
        assert torch.equal(spikes[-2:], (expected >= lif.v_threshold).float())


@pytest.mark.parametrize("reset", RESETS)
def test_a_missing_gradient_counts_as_zero(reset: str) -> None:
    lif = neuron(reset)
    membrane, grad = numbers(4, 9, seed=1), numbers(4, 9, seed=2)
    zero = torch.zeros_like(grad)
    for with_none, with_zero in (((grad, None), (grad, zero)), ((None, grad), (zero, grad))):
        expected, _ = kernels().backward(*with_zero, membrane, lif)
        got, _ = kernels().backward(*with_none, membrane, lif)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("reset", "surrogate"), list(product(RESETS, SURROGATES)))
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_a_potential_that_overflowed_has_the_gradient_of_the_equations(reset: str, surrogate: str) -> None:
    """A loss scaler skips a step by what is no number."""
    lif = neuron(reset, surrogate)
    u = torch.tensor([math.nan, math.inf, -math.inf, 0.5]).requires_grad_()
    spikes, potential = lif_step(u if lif.resting_potential == 0 else u - lif.resting_potential, None, lif)
    ones = torch.ones(4)
    (of_spikes,) = torch.autograd.grad(spikes.sum(), u, retain_graph=True)
    (of_both,) = torch.autograd.grad((spikes + lif.decay * potential).sum(), u)
    for grad_next, expected in ((None, of_spikes), (ones, of_both)):
        got, _ = kernels().backward(ones, grad_next, u.detach(), lif)
        torch.testing.assert_close(got, expected, equal_nan=True)


@pytest.mark.parametrize("reset", ["soft", "hard"])
def test_the_first_step_starts_at_the_resting_potential_in_memory_of_its_own(reset: str) -> None:
    lif = neuron(reset)
    current = numbers(4, 9)
    spikes, membrane = kernels().forward(current, None, lif, None)
    assert torch.equal(membrane, current + lif.resting_potential)
    assert torch.equal(spikes, (membrane >= 0.7).double())
    assert membrane.untyped_storage().data_ptr() != current.untyped_storage().data_ptr()


@pytest.mark.parametrize(("dtype", "layout"), some(product(ROUNDING, LAYOUTS), keep=4), ids=str)
def test_every_format_and_layout(dtype: torch.dtype, layout: str) -> None:
    lif = neuron("hard", "sigmoid")
    current, before, grad_spikes, grad_next = (
        LAYOUTS[layout](numbers(2, 3, 5, 7, dtype=dtype, seed=seed)) for seed in range(4)
    )
    spikes, membrane, grad = by_the_equations(current, before, grad_spikes, grad_next, lif)
    got_spikes, got_membrane = kernels().forward(current, before.contiguous(), lif, None)
    near_threshold = (membrane - lif.v_threshold).abs() < ROUNDING[dtype]
    assert torch.equal(got_spikes.double()[~near_threshold], spikes[~near_threshold])
    assert got_membrane.dtype == got_spikes.dtype == dtype
    torch.testing.assert_close(got_membrane.double(), membrane, rtol=0, atol=ROUNDING[dtype])
    got_grad, _ = kernels().backward(grad_spikes, grad_next.contiguous(), before, lif)
    torch.testing.assert_close(got_grad.double(), grad, rtol=ROUNDING[dtype], atol=2 * ROUNDING[dtype])


@pytest.mark.parametrize(("reset", "dtype"), some(product(RESETS, ROUNDING), keep=5), ids=str)
def test_scaled_neurons_give_to_the_last_bit_what_a_quotient_a_step_and_a_product_give(
    reset: str, dtype: torch.dtype
) -> None:
    if INTERPRETED and dtype == torch.bfloat16:
        pytest.skip("the interpreter cuts bfloat16 off where torch and GPUs round")
    lif, scale = neuron(reset), Scaling(divisor=1.3, gain=2.74)
    x, before, grad_output, grad_next = (2 * numbers(2, 3, 5, 7, dtype=dtype, seed=seed) for seed in range(4))

    def divided(tensor: Tensor) -> Tensor:
        if not INTERPRETED:
            return tensor / scale.divisor
        from sltt_bench.backends.native.lif_triton import _reciprocal

        return tensor * _reciprocal(scale.divisor, dtype)  # as torch divides on CUDA

    for previous in (None, before):
        spikes, membrane = kernels().forward(divided(x), previous, lif, None)
        scaled, scaled_membrane = kernels().forward(x, previous, lif, None, scale)
        assert torch.equal(scaled_membrane, membrane)
        assert torch.equal(scaled, spikes * scale.gain)
    assert torch.equal(kernels().fire(before, lif, scale.gain), kernels().fire(before, lif) * scale.gain)
    for past in (None, grad_next):
        grad, _ = kernels().backward(grad_output * scale.gain, past, before, lif)
        grad_x, grad_u = kernels().backward(grad_output, past, before, lif, scale)
        assert torch.equal(grad_u, grad)
        assert torch.equal(grad_x, divided(grad))
        alone, nothing = kernels().backward(grad_output, past, before, lif, scale, through_time=False)
        assert torch.equal(alone, grad_x)
        assert nothing is None
    grad, _ = kernels().backward(None, grad_next, before, lif)
    assert torch.equal(kernels().backward(None, grad_next, before, lif, scale)[0], divided(grad))


SHAPES = {
    "images": (LAYOUTS["contiguous"], (6, 5, 4, 7)),
    "images, channels last": (LAYOUTS["channels last"], (6, 5, 4, 7)),
    "images of another layout": (LAYOUTS["transposed"], (6, 5, 4, 7)),
    "one channel": (LAYOUTS["contiguous"], (6, 1, 4, 7)),
    "vectors": (LAYOUTS["contiguous"], (9, 5)),
    "more than a program takes": (LAYOUTS["contiguous"], (35, 2, 9, 7)),
    "more than a program takes, channels last": (LAYOUTS["channels last"], (9, 130, 3, 2)),
}


def normalisation(x: Tensor, of_batch: bool) -> BatchNormParameters:
    """Of x itself, or of statistics that are not its own."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    dimensions = [0, *range(2, x.dim())]
    variance, mean = torch.var_mean(wide, dimensions, correction=0)
    if not of_batch:
        variance, mean = variance + 0.3, mean - 0.2
    weight, bias = (numbers(x.shape[1], dtype=wide.dtype, seed=seed) for seed in (7, 8))
    return BatchNormParameters(mean, variance, weight, bias, 1e-3, of_batch)


@pytest.mark.parametrize(
    ("of_batch", "shape"),
    some([*((True, shape) for shape in SHAPES), (False, "images"), (False, "vectors")], keep=2),
)
def test_neurons_that_normalise_give_what_batch_norm_and_a_step_give(
    of_batch: bool, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if INTERPRETED:
        from sltt_bench.backends.native import lif_triton

        monkeypatch.setattr(lif_triton, "PROGRAMS", 2)  # each takes several turns
    lay_out, size = SHAPES[shape]
    x, before, grad_output, grad_next = (
        2 * lay_out(numbers(*size, seed=seed)) + (seed == 0) for seed in range(4)
    )
    norm = normalisation(x, of_batch)
    leaves = [tensor.clone().requires_grad_() for tensor in (x, norm.weight, norm.bias)]
    statistics = (None, None) if of_batch else (norm.mean, norm.variance)
    current = F.batch_norm(leaves[0], *statistics, leaves[1], leaves[2], of_batch, 0.1, norm.eps)
    cases = [
        ("soft", before, True, True), ("hard", before, True, True), ("soft", None, True, False),
        ("soft detached", before, False, True),
    ]  # fmt: skip
    for reset, past, from_output, from_next in cases[: 1 if shape.startswith("more") else len(cases)]:
        lif = neuron(reset)
        spikes, membrane = kernels().forward(current.detach(), past, lif, None)
        own_spikes, own_membrane = kernels().forward(x, past, lif, None, Scaling(gain=2.5), norm)
        assert torch.equal(own_spikes, 2.5 * spikes)
        torch.testing.assert_close(own_membrane, membrane, rtol=0, atol=1e-13)
        gradients = (grad_output if from_output else None, grad_next if from_next else None)
        expected, _ = kernels().backward(*gradients, membrane, lif, Scaling(gain=2.5))
        grad, sums = kernels().backward_normalised(*gradients, membrane, lif, 2.5, x, norm)
        torch.testing.assert_close(grad, expected, rtol=0, atol=1e-13)
        got = kernels().backward_to_input(grad, x, norm, sums)
        for own, usual in zip(
            got, torch.autograd.grad(current, leaves, expected, retain_graph=True), strict=True
        ):
            torch.testing.assert_close(own, usual, rtol=1e-12, atol=1e-12)
        so_far = norm.weight.clone(), norm.bias.clone()
        added = kernels().backward_to_input(grad, x, norm, sums, so_far)
        assert added[1:] == so_far
        expected_sums = (got[0], norm.weight + got[1], norm.bias + got[2])
        assert all(map(torch.equal, added, expected_sums)), "as autograd adds up"


def by_channel(numbers_of: Tensor, x: Tensor) -> Tensor:
    return numbers_of.view(-1, *[1] * (x.dim() - 2))


@pytest.mark.parametrize("shape", some(SHAPES, keep=3))
def test_neurons_add_the_bias_that_what_they_read_lacks(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        from sltt_bench.backends.native import lif_triton

        monkeypatch.setattr(lif_triton, "PROGRAMS", 2)
    lay_out, size = SHAPES[shape]
    x, before, grad_output, grad_next = (2 * lay_out(numbers(*size, seed=seed)) for seed in range(4))
    bias, lif = numbers(size[1], seed=5), neuron()
    cases = [(UNSCALED, before, True), (Scaling(1.3, 2.5), None, True), (Scaling(1.3, 2.5), before, False)]
    for scale, past, through_time in cases[: 1 if shape.startswith("more") else len(cases)]:
        whole = kernels().forward(x + by_channel(bias, x), past, lif, None, scale)
        assert all(map(torch.equal, kernels().forward(x, past, lif, None, scale, bias=bias), whole))
        arguments = (grad_output, grad_next if through_time else None, whole[1], lif, scale)
        usual = kernels().backward(*arguments, through_time=through_time)
        *own, grad_bias = kernels().backward_biased(*arguments, through_time=through_time)
        assert torch.equal(own[0], usual[0])
        assert (own[1] is None) if usual[1] is None else torch.equal(own[1], usual[1])
        torch.testing.assert_close(grad_bias, usual[0].sum([0, *range(2, x.dim())]), rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("reset", "dtype"), some(product(RESETS, ROUNDING), keep=5), ids=str)
def test_several_steps_at_once_are_to_the_last_bit_those_steps_one_by_one(
    reset: str, dtype: torch.dtype, layout: str
) -> None:
    lif, steps = neuron(reset), 3
    x = LAYOUTS[layout](2 * numbers(steps * 2, 3, 5, 7, dtype=dtype))
    carried, bias = numbers(4, 3, 5, 7, dtype=dtype, seed=1), numbers(3, seed=2).to(dtype)
    for scale, added, past in product((UNSCALED, Scaling(1.3, 2.5)), (None, bias), (None, carried)):
        one_by_one, before = [], None if past is None else past[1:3]
        for current in x.chunk(steps):
            spikes, before = kernels().forward(current.contiguous(), before, lif, None, scale, bias=added)
            one_by_one.append(spikes)
        room = (
            torch.zeros_like(carried) if past is None else past.clone()
        )  # of a batch of four, two in the middle
        start = None if past is None else room[1:3]
        got_spikes, got_membrane = kernels().forward(x, start, lif, room[1:3], scale, bias=added, steps=steps)
        assert torch.equal(got_spikes, torch.cat(one_by_one))
        assert torch.equal(got_membrane, before)
        assert torch.equal(room[1:3], before)
        outside = torch.zeros_like(carried) if past is None else past
        assert torch.equal(room[::3], outside[::3])


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", some(SHAPES, keep=3))
def test_residual_sums_in_one_pass_give_what_the_operations_give(
    shape: str, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if INTERPRETED:
        from sltt_bench.backends.native import lif_triton

        monkeypatch.setattr(lif_triton, "PROGRAMS", 2)
    lay_out, size = SHAPES[shape]
    residual, shortcut, grad = (lay_out(numbers(*size, seed=seed)) for seed in range(3))
    gain, bias = numbers(1, seed=3)[0], numbers(size[1], seed=4)
    leaves = [leaf.clone().requires_grad_() for leaf in (residual, shortcut, gain, bias)]
    summand = leaves[0] + by_channel(leaves[3], residual) if biased else leaves[0]
    expected = summand * leaves[2] * 0.2 + leaves[1]
    expected.backward(grad)
    taken = bias if biased else None
    assert torch.equal(kernels().joined(residual, shortcut.contiguous(), gain, 0.2, taken), expected)
    grad_residual, grad_gain, grad_bias = kernels().joined_backward(
        grad.contiguous(), residual, gain, 0.2, taken
    )
    for own, leaf in ((grad_residual, leaves[0]), (grad_gain, leaves[2]), (grad_bias, leaves[3])):
        assert own is None if leaf.grad is None else leaf.grad.shape == own.shape
        if leaf.grad is not None:
            torch.testing.assert_close(own, leaf.grad, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("shape", some(SHAPES, keep=2))
def test_statistics_are_those_that_batch_norm_takes_and_learns(
    shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if INTERPRETED:
        from sltt_bench.backends.native import lif_triton

        monkeypatch.setattr(lif_triton, "PROGRAMS", 3)  # each takes several turns, the last ones fewer
    lay_out, size = SHAPES[shape]
    x = 2 * lay_out(numbers(*size)) + 1000  # far from zero, where Σx² − (Σx)²/n loses the digits that count
    exact, dimensions = x.double(), [0, *range(2, x.dim())]
    running = numbers(size[1], seed=1), numbers(size[1], seed=2) ** 2
    biases = [numbers(size[1], seed=3), numbers(size[1], seed=4)]
    for momentum, left_out in ((0.3, []), (0.3, biases[:1]), (0.3, biases), (None, [])):
        usual, learned = ([statistic.clone() for statistic in running] for _ in range(2))
        offset = sum(left_out, torch.zeros(size[1], dtype=x.dtype)).view(-1, *[1] * (x.dim() - 2))
        if momentum is not None:
            F.batch_norm(x + offset, *usual, training=True, momentum=momentum)
        changes = learned[0]._version
        batches = torch.tensor(5)
        mean, variance = kernels().statistics(x, RunningStatistics(*learned, batches), momentum, left_out)
        assert batches == (5 if momentum is None else 6)
        torch.testing.assert_close(mean, exact.mean(dimensions), rtol=1e-13, atol=0)
        torch.testing.assert_close(variance, exact.var(dimensions, correction=0), rtol=1e-9, atol=0)
        torch.testing.assert_close(learned[0], usual[0], rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(learned[1], usual[1], rtol=1e-9, atol=0)
        if INTERPRETED:  # torch does not count this change of its own
            assert (learned[0]._version > changes) == (momentum is not None)
    with_gaps = torch.stack([x, x + 1], dim=-1)[..., 0]
    mean, variance = kernels().statistics(with_gaps, RunningStatistics(*running, torch.tensor(0)), None)
    torch.testing.assert_close(mean, exact.mean(dimensions), rtol=1e-13, atol=0)
    torch.testing.assert_close(variance, exact.var(dimensions, correction=0), rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_neurons_normalise_in_every_format(dtype: torch.dtype) -> None:
    lif = neuron()
    x, before, grad_output = (2 * numbers(5, 6, 4, 4, dtype=dtype, seed=seed) for seed in range(3))
    norm = normalisation(x, True)
    exact = BatchNormParameters(*(part.double() for part in norm[:4]), norm.eps, True)
    spikes, membrane = kernels().forward(x, before, lif, None, norm=norm)
    assert spikes.dtype == membrane.dtype == dtype
    _, expected = kernels().forward(x.double(), before.double(), lif, None, norm=exact)
    torch.testing.assert_close(
        membrane.double(), expected, rtol=2 * ROUNDING[dtype], atol=2 * ROUNDING[dtype]
    )
    results = []
    for tensors, statistics in (
        ((grad_output, membrane, x), norm),
        (tuple(tensor.double() for tensor in (grad_output, membrane, x)), exact),
    ):
        grad, sums = kernels().backward_normalised(
            tensors[0], None, tensors[1], lif, 1.0, tensors[2], statistics
        )
        results.append(kernels().backward_to_input(grad, tensors[2], statistics, sums))
    for own, wide, kind in zip(*results, (dtype, torch.float32, torch.float32), strict=True):
        assert own.dtype == kind
        torch.testing.assert_close(own.double(), wide, rtol=4 * ROUNDING[dtype], atol=8 * ROUNDING[dtype])


@pytest.mark.parametrize(
    "dtype", some([torch.float16, torch.float32, torch.float64, torch.bfloat16], keep=2), ids=str
)
@pytest.mark.parametrize("count", [0, 1, 8, 13, 5000])
def test_spikes_are_packed_to_bits_and_back(count: int, dtype: torch.dtype) -> None:
    if INTERPRETED:
        from sltt_bench.backends.native.packing_triton import pack, unpack
    else:
        from sltt_bench.backends.native.packed_spikes import pack, unpack
    spikes = (numbers(count) > 0.4).to(dtype)
    bits = pack(spikes)
    assert bits.dtype == torch.uint8
    whole = torch.cat([spikes, spikes.new_zeros(-count % 8)]).view(-1, 8)
    assert torch.equal(bits.int(), (whole.int() << torch.arange(8)).sum(1, dtype=torch.int32))
    again = unpack(bits, count, dtype)
    assert again.dtype == dtype
    assert torch.equal(again, spikes)
    scaled = kernels().fire(
        torch.where(spikes > 0, 2.0, 0.0).to(dtype), neuron(), 2.74
    )  # γ s as neurons make it
    assert torch.equal(pack(scaled), bits)
    assert torch.equal(unpack(bits, count, dtype, 2.74), scaled)


@pytest.mark.parametrize("result", [torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("size", some(["5×3×3×3", "4×7×1×1", "3×2", "2×130", "1×600"], keep=2))
def test_weights_are_standardised_as_the_equation_says(size: str, result: torch.dtype) -> None:
    shape = tuple(map(int, size.split("×")))
    if INTERPRETED:
        from sltt_bench.backends.native.standardising_triton import standardise, standardise_backward
    else:
        from sltt_bench.backends.native.standardising import standardise, standardise_backward
    weight = 0.3 * numbers(*shape) + 2  # its mean takes part
    gain, grad = numbers(shape[0], *[1] * (len(shape) - 1), seed=1), numbers(*shape, seed=2)
    if len(shape) == 4:
        weight = weight.to(memory_format=torch.channels_last)
    leaves = weight.clone().requires_grad_(), gain.clone().requires_grad_()
    expected = standardised(leaves[0], inputs=tuple(range(1, len(shape)))) * leaves[1]
    own = standardise(weight, gain, result)
    assert own.dtype == result
    assert own.stride() == weight.stride()
    torch.testing.assert_close(
        own, expected.detach().to(result), rtol=ROUNDING[result], atol=ROUNDING[result]
    )
    for own, theirs in zip(
        standardise_backward(grad, weight, gain), torch.autograd.grad(expected, leaves, grad), strict=True
    ):
        assert (own.shape, own.dtype) == (theirs.shape, theirs.dtype)
        torch.testing.assert_close(own, theirs, rtol=1e-12, atol=1e-13)


def test_filters_that_no_program_holds_are_standardised_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """An MLP's on large images: Triton has no row of more than 2²⁰ numbers, and registers have less room."""
    pytest.importorskip("triton")
    from sltt_bench.backends.native import standardising, standardising_triton

    weight, gain = numbers(1, standardising.MOST_WEIGHTS + 1, dtype=torch.float32), torch.ones(1, 1)
    expected = [
        standardising.standardise(weight, gain, torch.float32),
        *standardising.standardise_backward(weight, weight, gain),
    ]
    monkeypatch.setattr("sltt_bench.backends.native.kernels.by_triton", lambda tensor: True)
    for name in ("standardise", "standardise_backward"):
        monkeypatch.delattr(standardising_triton, name)
    own = [
        standardising.standardise(weight, gain, torch.float32),
        *standardising.standardise_backward(weight, weight, gain),
    ]
    assert all(map(torch.equal, own, expected))


@pytest.mark.skipif(not INTERPRETED, reason="the interpreter stands in for a card")
@pytest.mark.parametrize("channels_last", [True, False])
def test_what_is_asked_of_kernels_on_a_card_has_an_answer(
    channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other machine runs those tests, which may be wrong themselves."""
    import test_on_a_gpu as on_a_gpu

    monkeypatch.setattr(on_a_gpu, "DEVICE", "cpu")
    by_triton = "sltt_bench.backends.native.kernels.by_triton"
    monkeypatch.setattr(by_triton, lambda tensor: tensor.dtype == torch.float32)
    on_a_gpu.test_kernels_that_normalise_add_biases_and_join_are_those_of_torch(
        (3, 5, 4, 4), channels_last, of_batch=True
    )
    on_a_gpu.test_weights_are_standardised_as_on_the_cpu((5, 3, 3, 3))
    on_a_gpu.test_spikes_are_packed_to_the_bits_that_the_cpu_packs(torch.float32, channels_last)


@pytest.mark.parametrize("elements", some([0, 1, 1023, 1024, 1025, 4099], keep=2))
def test_any_number_of_elements(elements: int) -> None:
    lif = neuron()
    current, before = numbers(elements), numbers(elements, seed=1)
    spikes, membrane, _ = by_the_equations(current, before, current, current, lif)
    got_spikes, got_membrane = kernels().forward(current, before, lif, None)
    assert torch.equal(got_spikes, spikes)
    torch.testing.assert_close(got_membrane, membrane, rtol=0, atol=1e-14)


@pytest.mark.parametrize("size", [(0, 3, 4, 4), (2, 3, 0, 4)])
def test_sums_over_nothing_are_zero(size: tuple[int, ...]) -> None:
    nothing, gain, bias = torch.empty(size), torch.ones(()), torch.ones(3)
    torch.use_deterministic_algorithms(True)  # memory that nobody has written holds NaN
    try:
        *_, grad_bias = kernels().backward_biased(nothing, None, nothing, neuron())
        _, grad_gain, grad_bias_of_sum = kernels().joined_backward(nothing, nothing, gain, 0.2, bias)
    finally:
        torch.use_deterministic_algorithms(False)
    assert grad_bias.tolist() == grad_bias_of_sum.tolist() == [0, 0, 0]
    assert grad_gain == 0


def test_the_new_potential_may_take_the_place_of_the_old() -> None:
    lif = neuron()
    current, before = numbers(3, 1000), numbers(3, 1000, seed=1)
    spikes, membrane = kernels().forward(current, before, lif, None)
    version = before._version
    in_place_spikes, in_place = kernels().forward(current, before, lif, before)
    assert in_place is before
    assert before._version > version, "autograd sees that it was written to"
    assert torch.equal(in_place, membrane)
    assert torch.equal(in_place_spikes, spikes)


@pytest.mark.parametrize(
    ("dtype", "v_threshold"), some(product([torch.float16, torch.bfloat16], [0.7, 0.9, 1.1]), keep=4), ids=str
)
def test_a_neuron_just_below_threshold_does_not_fire_in_half_precision(
    dtype: torch.dtype, v_threshold: float
) -> None:
    nearest = torch.tensor(v_threshold).to(dtype)
    neighbours = [nearest]
    for direction in (-torch.inf, torch.inf):
        neighbours.append(torch.nextafter(nearest, torch.tensor(direction, dtype=dtype)))
    membrane = torch.stack(neighbours)
    fired = kernels().fire(membrane, neuron(v_threshold=v_threshold))
    assert torch.equal(fired.bool(), membrane.float() >= torch.tensor(v_threshold))
    assert fired.sum() in (1, 2)


def test_the_representable_threshold_is_the_smallest_number_that_fires() -> None:
    assert representable_threshold(1.0, torch.bfloat16) == 1.0
    assert representable_threshold(0.7, torch.float64) == 0.7
    assert representable_threshold(0.7, torch.float32) == float(torch.tensor(0.7))
    assert representable_threshold(0.9, torch.bfloat16) == 0.90234375  # nearest: 0.8984375


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("reset", ["soft", "hard"])
def test_the_potential_is_the_same_to_the_last_bit_where_no_spikes_are_made(
    reset: str, dtype: torch.dtype
) -> None:
    lif = neuron(reset, v_reset=-0.25)
    x, before = numbers(3, 4, 5, dtype=dtype), numbers(3, 4, 5, dtype=dtype, seed=1)
    norm = normalisation(x, of_batch=True)
    for previous, scale, normalised in product((None, before), (UNSCALED, Scaling(1.3, 2.74)), (None, norm)):
        if normalised is not None:
            scale = Scaling(gain=scale.gain)
        spikes, membrane = kernels().forward(x, previous, lif, None, scale, normalised)
        placeholder, alone = kernels().forward(x, previous, lif, None, scale, normalised, fires=False)
        assert torch.equal(alone, membrane)
        assert (placeholder.shape, placeholder.dtype) == (spikes.shape, spikes.dtype)
        assert placeholder.untyped_storage().nbytes() == x.element_size()


@pytest.mark.skipif(not INTERPRETED, reason="torch's kernels go piece by piece, which has room of its own")
@pytest.mark.parametrize("fires", [True, False])
def test_where_no_spikes_are_made_there_is_no_memory_for_them(
    fires: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Tensor] = []
    usual = Tensor.new_empty_strided

    def noted(*args: Any, **kwargs: Any) -> Tensor:
        made.append(usual(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(Tensor, "new_empty_strided", noted)
    x = numbers(4, 3, 5)
    spikes, _ = kernels().forward(x, x, neuron(), None, fires=fires)
    assert made == ([spikes] if fires else [])


@pytest.mark.skipif(INTERPRETED, reason="the piecewise path is torch's")
@pytest.mark.parametrize("reset", RESETS)
def test_pieces_give_what_the_whole_gives(reset: str) -> None:
    lif = neuron(reset)
    elements = 2 * PIECE + 7
    current, before = numbers(elements, dtype=torch.float32), numbers(elements, dtype=torch.float32, seed=1)
    spikes, membrane = kernels().forward(current, before, lif, None)
    grad, _ = kernels().backward(current, before, membrane, lif)
    strided = torch.stack([before, before], dim=1)[:, 0]  # not in one stretch: computed whole
    whole_spikes, whole_membrane = kernels().forward(current, strided, lif, None)
    assert torch.equal(whole_membrane, membrane)
    assert torch.equal(whole_spikes, spikes)
    assert torch.equal(kernels().backward(current, strided, membrane, lif)[0], grad)


@pytest.mark.skipif(INTERPRETED, reason="this is the test that interprets")
def test_triton_kernels_pass_these_tests_and_train_networks_in_the_interpreter(
    request: pytest.FixtureRequest,
) -> None:
    pytest.importorskip("triton")
    campaign = request.config.getoption("--campaign")
    trainings = "tests/training/test_any_training.py"
    command = [
        sys.executable, "-m", "pytest", "-rp", "-p", "no:cacheprovider", "-p", "no:xdist", "--campaign", campaign,
        __file__, trainings,
    ]  # fmt: skip
    done = subprocess.run(
        command,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=3600 if campaign == "long" else 300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for file in ("test_lif_kernels.py", trainings):
        assert re.search(f"^PASSED .*{file}::", done.stdout, re.MULTILINE), done.stdout


@pytest.mark.skipif(INTERPRETED, reason="the compiler is not the interpreter")
@pytest.mark.parametrize("element", ["fp32", "fp16", "bf16"])
def test_compiled_for_hopper_each_kernel_moves_every_tensor_once_in_16_byte_pieces(element: str) -> None:
    """Offline, without a GPU: the kernels compile, and the machine code reads and writes what it must."""
    triton = pytest.importorskip("triton", minversion="3.3")  # older ones compile by other words
    from sltt_bench.backends.native import lif_triton

    common = {"DECAY": 0.1, "THRESHOLD": 1.0, "V_RESET": 0.0, "SOFT": True, "BLOCK": lif_triton.BLOCK}
    common |= {"FACTOR": 1 / 1.3, "GAIN": 2.74}
    forward = {
        **common,
        "REST": 0.0,
        "FIRST": False,
        "NORMALISED": False,
        "BIASED": False,
        "FIRES": True,
        "EPS": 0.0,
        "CHANNELS": 1,
        "INNER": 1,
        "STEPS": 1,
    }
    backward = {
        **common,
        "FROM_OUTPUT": True,
        "FROM_NEXT": False,
        "TO_PAST": False,
        "DETACHED": False,
        "SURROGATE": 0,
    }
    tensors_in_and_out = [
        (lif_triton.forward_kernel, forward, 2, 2),
        (lif_triton.forward_kernel, {**forward, "FIRES": False}, 2, 1),
        (lif_triton.forward_kernel, {**forward, "STEPS": 4}, 5, 5),  # u once, x and s of each step
        (lif_triton.forward_kernel, {**forward, "STEPS": 4, "FIRST": True}, 4, 5),
        (lif_triton.backward_kernel, backward, 2, 1),
        (lif_triton.fire_kernel, {"THRESHOLD": 1.0, "GAIN": 2.74, "BLOCK": lif_triton.BLOCK}, 1, 1),
    ]
    bytes_of_one = 4 if element == "fp32" else 2
    accesses = lif_triton.BLOCK * bytes_of_one // (128 * 16)  # 128 threads, 16 bytes each
    for kernel, constants, loads, stores in tensors_in_and_out:
        assembly = compiled(triton, kernel, element, constants)
        assert assembly.count("ld.global.v4.b32") == loads * accesses
        assert assembly.count("st.global.v4.b32") == stores * accesses
        assert assembly.count("ld.global") == loads * accesses


@pytest.mark.skipif(INTERPRETED, reason="the compiler is not the interpreter")
@pytest.mark.parametrize("inner", [1, 256], ids=["channels last", "contiguous"])
def test_compiled_for_hopper_neurons_that_normalise_do_so_too(inner: int) -> None:
    """What they read by channel comes on top, from the cache."""
    triton = pytest.importorskip("triton", minversion="3.3")
    from sltt_bench.backends.native import lif_triton

    by_channel = {"EPS": 1e-5, "CHANNELS": 128, "INNER": inner, "BLOCK": lif_triton.BLOCK}
    step = {"DECAY": 0.1, "THRESHOLD": 1.0, "V_RESET": 0.0, "SOFT": True, "GAIN": 1.0}
    forward = {"REST": 0.0, "FIRST": False, "FACTOR": 1.0, "FIRES": True, "STEPS": 1}
    backward = {"FROM_OUTPUT": True, "FROM_NEXT": True, "TO_PAST": False, "DETACHED": False, "SURROGATE": 0}
    backward |= {"FACTOR": 1.0}
    normalised, biased = {"NORMALISED": True, "BIASED": False}, {"NORMALISED": False, "BIASED": True}
    tile = {"TILE": lif_triton.TILE_CHANNELS if inner == 1 else 1, "TURNS": 3}
    tensors_in_and_out = [
        (lif_triton.forward_kernel, {**step, **forward, **normalised}, 2, 2),
        (lif_triton.forward_kernel, {**step, **forward, **biased}, 2, 2),
        (lif_triton.forward_kernel, {**step, **forward, **normalised, "FIRES": False}, 2, 1),
        (lif_triton.forward_kernel, {**step, **forward, **biased, "STEPS": 3}, 4, 4),
        (lif_triton.summing_backward_kernel, {**step, **backward, **tile, **normalised}, 4, 1),
        (lif_triton.summing_backward_kernel, {**step, **backward, **tile, **biased}, 3, 1),
        (lif_triton.input_gradient_kernel, {"OF_BATCH": True, "ADDS": True}, 2, 1),
        (lif_triton.statistics_kernel, tile, 1, 0),
        (lif_triton.joined_kernel, {"ALPHA": 0.2, "BIASED": True}, 2, 1),
        (lif_triton.joined_backward_kernel, {"ALPHA": 0.2, **tile}, 2, 1),
    ]
    accesses = lif_triton.BLOCK * 2 // (128 * 16)
    for kernel, constants, loads, stores in tensors_in_and_out:
        assembly = compiled(triton, kernel, "fp16", {**by_channel, **constants})
        assert assembly.count("ld.global.v4.b32") >= loads * accesses
        assert assembly.count("st.global.v4.b32") >= stores * accesses
        assert "ld.global.b16" not in assembly
        assert "st.global.b16" not in assembly


@pytest.mark.skipif(INTERPRETED, reason="the compiler is not the interpreter")
def test_compiled_for_hopper_spikes_are_packed_from_pieces_of_16_bytes() -> None:
    triton = pytest.importorskip("triton", minversion="3.3")
    from sltt_bench.backends.native import packing_triton

    options = {"BLOCK": packing_triton.BLOCK, "GAIN": 2.74}
    pieces = packing_triton.BLOCK // 128
    packing, unpacking = (
        compiled(triton, kernel, "fp16", options)
        for kernel in (packing_triton._pack_kernel, packing_triton._unpack_kernel)
    )
    assert packing.count("ld.global.v4.b32") == packing.count("ld.global") == pieces
    assert unpacking.count("st.global.v4.b32") == unpacking.count("st.global") == pieces


@pytest.mark.skipif(INTERPRETED, reason="the compiler is not the interpreter")
@pytest.mark.parametrize("inputs", [64, 147, 4608])
def test_compiled_for_hopper_a_filter_is_read_once(inputs: int) -> None:
    triton = pytest.importorskip("triton", minversion="3.3")
    from sltt_bench.backends.native import standardising_triton

    padded = triton.next_power_of_2(inputs)
    options = {"N": inputs, "PADDED": padded, "EPS": 1e-4}
    for name, tensors in (("_standardise_kernel", 1), ("_standardise_backward_kernel", 2)):
        assembly = compiled(triton, getattr(standardising_triton, name), "fp32", options)
        numbers_of_a_thread = max(1, padded // 128)
        loads = sum(assembly.count(f"ld.global.v{wide}.b32") * wide for wide in (2, 4)) + assembly.count(
            "ld.global.b32"
        )
        assert loads == tensors * numbers_of_a_thread + 1  # the gain


@pytest.mark.skipif(INTERPRETED, reason="the compiler is not the interpreter")
@pytest.mark.parametrize("rows", [1, 2, 1000])
def test_compiled_for_hopper_what_programs_found_is_joined(rows: int) -> None:
    triton = pytest.importorskip("triton", minversion="3.3")
    from sltt_bench.backends.native import lif_triton

    options = {"ROWS": rows, "PADDED": triton.next_power_of_2(rows), "TILE": lif_triton.TILE_TOTALS}
    learning = {"MOMENTUM": 0.1, "LEARNS": True, "OFFSET": True, "CHANNELS": 130, "AT_ONCE": 16}
    for kernel in (lif_triton.join_statistics_kernel, lif_triton.add_up_kernel):
        assert "st.global" in compiled(triton, kernel, "fp32", {**options, **learning, "COLUMNS": 260})


@pytest.mark.skipif(INTERPRETED, reason="the compiler is not the interpreter")
def test_no_offset_into_images_is_computed_in_32_bits() -> None:
    """The first layer of VGG-11 has 2³¹ neurons at 128² pixels and a batch of 2048."""
    triton = pytest.importorskip("triton", minversion="3.3")
    from sltt_bench.backends.native import lif_triton, packing_triton

    constants = {"DECAY": 0.1, "THRESHOLD": 1.0, "V_RESET": 0.0, "SOFT": True, "GAIN": 2.74, "FACTOR": 1.0}
    constants |= {"REST": 0.0, "FIRST": False, "BIASED": False, "FIRES": True, "STEPS": 2, "EPS": 1e-5}
    constants |= {"FROM_OUTPUT": True, "FROM_NEXT": True, "TO_PAST": True, "DETACHED": False, "SURROGATE": 0}
    constants |= {
        "NORMALISED": True,
        "OF_BATCH": True,
        "ADDS": True,
        "ALPHA": 0.2,
        "CHANNELS": 128,
        "INNER": 256,
    }
    constants |= {"TILE": 1, "TURNS": 3}
    for module, count in ((lif_triton, 8), (packing_triton, 2)):
        found = [kernel for name, kernel in vars(module).items() if name.endswith("_kernel")]
        of_images = [kernel for kernel in found if "elements" in kernel.arg_names]
        assert len(of_images) == count
        for kernel in of_images:
            code = compiled(triton, kernel, "fp16", {**constants, "BLOCK": module.BLOCK}, "ttir")
            widths = re.findall(r"tt\.addptr .*!tt\.ptr<f16>+, (?:tensor<\S*x)?(i\d\d)", code)
            assert set(widths) == {"i64"}, kernel
            assert not re.search(r"arith\.muli .* tensor<\S*xi32>", code), kernel
            assert not re.search(f"%c{module.BLOCK}_i32 : i32", code), "a program's number times its elements"


@pytest.mark.skipif(INTERPRETED, reason="the compiler is not the interpreter")
def test_no_product_is_contracted_with_a_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fused multiply-add rounds once where the equations round twice."""
    pytest.importorskip("triton")
    from sltt_bench.backends.native import lif_triton

    options: list[Any] = []

    class Kernel:
        def __getitem__(self, grid: Any) -> Any:
            return lambda *tensors, **given: options.append(given["enable_fp_fusion"])

    for name in vars(lif_triton).copy():
        if name.endswith("_kernel"):
            monkeypatch.setattr(lif_triton, name, Kernel())
    x, lif = numbers(4, 2), neuron()
    on_gpus = lif_triton.TritonKernels()
    norm = normalisation(x, True)
    _, sums = on_gpus.backward_normalised(x, x, x, lif, 1.0, x, norm)
    on_gpus.backward_to_input(x, x, norm, sums)
    on_gpus.backward_biased(x, x, x, lif)
    on_gpus.forward(x, x, lif, None)
    on_gpus.backward(x, x, x, lif)
    on_gpus.fire(x, lif)
    on_gpus.statistics(x, RunningStatistics(norm.mean, norm.variance, torch.tensor(0)), 0.1)
    on_gpus.joined_backward(on_gpus.joined(x, x, x[0, 0], 0.2, None), x, x[0, 0], 0.2, None)
    ran = ["summing", "add up", "input gradient", "summing", "add up", "forward", "backward", "fire"]
    assert options == [False] * len([*ran, "statistics", "join", "joined", "joined backward", "add up"])


def compiled(triton: Any, kernel: Any, element: str, constants: dict[str, Any], stage: str = "ptx") -> str:
    """PTX for compute capability 9.0, or the code of another stage; pointers are aligned to 16 bytes as torch's.

    Asserts that the machine code keeps everything in registers: what spills goes through memory.
    """
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    constants = {name: value for name, value in {**constants, "COMPUTE": tl.float32}.items() if name in names}
    by_channel = (
        "mean_ptr", "variance_ptr", "weight_ptr", "bias_ptr", "sums_ptr", "parts_ptr", "gain_ptr", "to_weight_ptr",
        "to_bias_ptr",
    )  # fmt: skip
    others = {"bits_ptr": "u8", "batches_ptr": "i64"}
    signature = {
        name: "constexpr"
        if name in constants
        else "i32"
        if name in ("elements", "places")
        else f"*{others.get(name, 'fp32' if name in by_channel else element)}"
        for name in names
    }
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in names if n not in constants},
    )
    as_launched = {"enable_fp_fusion": False}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=as_launched)
    assert re.search(r"STACK:0 SHARED:\d+ LOCAL:0 ", resources(triton, made.asm["cubin"]))
    code: str = made.asm[stage]
    return code


def resources(triton: Any, machine_code: bytes) -> str:
    """What the kernel takes of a multiprocessor, in the words of Triton's own `cuobjdump`."""
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(machine_code)
        file.flush()
        command = [str(program), "-res-usage", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
