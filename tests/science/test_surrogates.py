"""The spike function and its surrogate derivatives against their formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sltt_bench.surrogates import SURROGATES, derivative, spike
from sltt_bench.torch_internals import TorchDispatchMode

FORMULAS = {
    "triangle": lambda x: np.maximum(0.0, 1 - np.abs(x)),
    "rectangle": lambda x: np.where(np.abs(x) < 0.5, 1.0, 0.0),
    "sigmoid": lambda x: 1 / np.cosh(2 * x) ** 2,
    "arctan": lambda x: 1 / (1 + math.pi**2 * x**2),
}
"""Independent of the code: 4 σ(4x)(1 − σ(4x)) = 1 / cosh²(2x)."""

PRIMITIVES = {
    "triangle": lambda x: np.where(
        x < 0, (1 + np.clip(x, -1, 0)) ** 2 / 2, 1 - (1 - np.clip(x, 0, 1)) ** 2 / 2
    ),
    "rectangle": lambda x: np.clip(x + 0.5, 0, 1),
    "sigmoid": lambda x: (1 + np.tanh(2 * x)) / 2,
    "arctan": lambda x: np.arctan(math.pi * x) / math.pi + 0.5,
}
"""The smooth steps from 0 to 1 whose derivatives the surrogates are."""

every_surrogate = pytest.mark.parametrize("surrogate", sorted(SURROGATES))


def test_every_surrogate_has_a_formula_to_be_tested_against():
    assert set(FORMULAS) == set(PRIMITIVES) == set(SURROGATES)


@every_surrogate
def test_a_surrogate_equals_its_formula(surrogate):
    x = np.linspace(-3, 3, 1201)
    computed = SURROGATES[surrogate](torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(computed, FORMULAS[surrogate](x), rtol=1e-12, atol=1e-12)


@every_surrogate
def test_a_surrogate_is_the_derivative_of_a_smooth_step_of_height_one(surrogate):
    x, h = np.linspace(-3, 3, 1000), 1e-6  # no grid point within h of a kink
    primitive = PRIMITIVES[surrogate]
    slope = (primitive(x + h) - primitive(x - h)) / (2 * h)
    np.testing.assert_allclose(SURROGATES[surrogate](torch.from_numpy(x)).numpy(), slope, atol=2e-6)
    assert primitive(np.array(-1e9)) == pytest.approx(0, abs=1e-9)
    assert primitive(np.array(1e9)) == pytest.approx(1, abs=1e-9)


@every_surrogate
@given(x=st.floats(-50, 50))
def test_a_surrogate_is_even_and_between_zero_and_its_peak_of_one(surrogate, x):
    at, mirrored = SURROGATES[surrogate](torch.tensor([x, -x], dtype=torch.float64))
    assert at.item() == pytest.approx(mirrored.item(), abs=1e-15)
    assert 0 <= at <= 1
    assert SURROGATES[surrogate](torch.zeros(1)).item() == 1


@every_surrogate
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_gradient_of_a_spike_is_the_surrogate_times_what_comes_from_above(surrogate, dtype):
    x = torch.tensor([-1.5, -0.75, -0.25, 0.0, 0.25, 0.75, 1.5], dtype=dtype, requires_grad=True)
    from_above = torch.tensor([1.0, -2.0, 4.0, 8.0, 0.0, 2.0, 1.0], dtype=dtype)
    spike(x, surrogate).backward(from_above)
    expected = FORMULAS[surrogate](x.detach().double().numpy()) * from_above.double().numpy()
    tolerance = 4 * torch.finfo(dtype).eps
    assert x.grad.dtype == dtype
    np.testing.assert_allclose(x.grad.double().numpy(), expected, rtol=tolerance, atol=tolerance)


@every_surrogate
def test_a_neuron_at_the_threshold_fires_and_one_just_below_does_not(surrogate):
    x = torch.tensor([-1.0, -1e-30, -0.0, 0.0, 1e-30, 1.0])
    assert spike(x, surrogate).tolist() == [0, 0, 1, 1, 1, 1]


def test_an_unknown_surrogate_is_refused_with_the_known_ones():
    with pytest.raises(KeyError, match="unknown surrogate 'step'; known: triangle, rectangle"):
        spike(torch.zeros(1), "step")


@every_surrogate
@pytest.mark.parametrize("width", [0.5, 2.0])
def test_a_surrogate_of_another_width_keeps_its_area(surrogate, width):
    x = torch.linspace(-50, 50, 1_000_001, dtype=torch.float64)
    area = torch.trapezoid(derivative(x, surrogate), x)
    assert torch.trapezoid(derivative(x, surrogate, width), x) == pytest.approx(area.item(), rel=0.02)
    near = torch.tensor([-0.7, -0.2, 0.0, 0.3], dtype=torch.float64)
    assert torch.allclose(derivative(near, surrogate, width), SURROGATES[surrogate](near / width) / width)
    near.requires_grad_()
    spike(near, surrogate, width).sum().backward()
    assert torch.equal(near.grad, derivative(near.detach(), surrogate, width))


def test_the_triangle_of_another_width_is_the_published_one():
    x = torch.tensor([-1.5, -0.4, 0.0, 1.0], dtype=torch.float64)
    published = (2.0 - x.abs()).clamp(min=0) / 2.0**2
    assert torch.allclose(derivative(x, "triangle", 2.0), published)


IN_FLOAT32_UNDER_A_GPUS_AUTOCAST = {
    "pow",
    "reciprocal",
    "exp",
    "log",
    "rsqrt",
    "sum",
    "prod",
    "norm",
    "softplus",
    "tan",
    "cosh",
}
"""Of torch's list ("CUDA Ops that can autocast to float32") what a surrogate may be written with."""


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_a_surrogate_keeps_its_format_under_a_gpus_autocast_as_under_a_cpus(surrogate):
    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.add(func._overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    names = set()
    with Names():
        derivative(torch.linspace(-2, 2, 9), surrogate, width=2.0)
    assert names
    assert names.isdisjoint(IN_FLOAT32_UNDER_A_GPUS_AUTOCAST)
