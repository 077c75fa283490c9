"""SLTT-K's random gradient: closed forms against enumeration and against the method itself."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sltt_bench import methods
from sltt_bench.analysis.draws import MOST_SUBSETS, relate, relative_variance, subsets
from sltt_bench.analysis.gradients import TrainingBatch, decompose
from sltt_bench.models import build
from sltt_bench.models.options import MLPOptions
from sltt_bench.neurons import LIF, LIFParameters
from sltt_bench.unroll import Unroll

TIMESTEPS = 6
LABELS = torch.arange(8) % 4


def loss(output: Tensor) -> Tensor:
    return F.cross_entropy(output, LABELS)


def small_network() -> tuple[torch.nn.Module, list[Tensor]]:
    torch.manual_seed(0)
    options = MLPOptions(hidden=[12])
    neuron = LIFParameters(tau=2.0)
    network = build(options, neuron=lambda: LIF(neuron), input_shape=(10,), classes=4).double()
    return network, [2 * torch.randn(8, 10).double() for _ in range(TIMESTEPS)]


def gram_of(vectors: Tensor, temporal: Tensor) -> Tensor:
    everything = torch.cat([vectors, temporal[None]])
    return everything @ everything.T


@settings(max_examples=25)
@given(timesteps=st.integers(1, 7), data=st.data())
def test_the_closed_form_of_the_variance_equals_the_mean_over_all_subsets(
    timesteps: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, timesteps))
    vectors = torch.randn(timesteps, 5, dtype=torch.float64) + 0.3
    spatial = vectors.sum(0)
    chosen, exact = subsets(timesteps, k)
    assert exact
    assert len(chosen) == math.comb(timesteps, k)
    deviations = timesteps / k * (chosen @ vectors) - spatial
    expected = float(deviations.square().sum(1).mean() / spatial.square().sum())
    assert relative_variance(vectors @ vectors.T, k) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_cosines_over_all_subsets_equal_those_of_the_vectors() -> None:
    torch.manual_seed(3)
    vectors, temporal = torch.randn(5, 9).double() + 0.5, torch.randn(9).double()
    related = relate(gram_of(vectors, temporal), k=2)
    chosen, _ = subsets(5, 2)
    drawn = chosen @ vectors
    to_sltt = F.cosine_similarity(drawn, vectors.sum(0)[None])
    to_bptt = F.cosine_similarity(drawn, (vectors.sum(0) + temporal)[None])
    assert related.subsets == 10
    assert related.exact
    assert related.cosine_to_sltt == pytest.approx(float(to_sltt.mean()), rel=1e-12)
    assert related.cosine_to_sltt_std == pytest.approx(float(to_sltt.std(correction=0)), rel=1e-12)
    assert related.cosine_to_bptt == pytest.approx(float(to_bptt.mean()), rel=1e-12)


def test_all_steps_drawn_is_sltt() -> None:
    network, inputs = small_network()
    parts = decompose(TrainingBatch(network, inputs, loss))
    related = relate(parts.gram(parts.full), k=TIMESTEPS)
    assert related.cosine_to_sltt == pytest.approx(1, abs=1e-12)
    assert related.relative_variance == 0
    assert related.silent_share == 0


def test_the_variance_falls_and_the_cosine_rises_with_k() -> None:
    network, inputs = small_network()
    parts = decompose(TrainingBatch(network, inputs, loss))
    related = [relate(parts.gram(parts.full), k) for k in range(1, TIMESTEPS + 1)]
    variances = [r.relative_variance for r in related]
    cosines = [r.cosine_to_sltt for r in related]
    assert variances == sorted(variances, reverse=True)  # type: ignore[type-var]
    assert cosines == sorted(cosines)  # type: ignore[type-var]
    assert variances[0] is not None
    assert variances[0] > 0.1


@pytest.mark.parametrize(("name", "scale"), [("sltt-k2", 2 / TIMESTEPS), ("sltt-k2-unbiased", 1.0)])
def test_the_methods_own_draws_have_this_mean_and_variance(name: str, scale: float) -> None:
    draws = 300
    network, inputs = small_network()
    parts = decompose(TrainingBatch(network, inputs, loss))
    spatial = torch.cat([parts.spatial(n).flatten() for n in parts.full])
    method, generator = methods.create(name, TIMESTEPS), torch.Generator().manual_seed(7)
    drawn = torch.zeros(draws, len(spatial), dtype=torch.float64)
    for row in drawn:
        network.zero_grad()
        method.accumulate_gradients(Unroll(network, inputs, loss, generator=generator))
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        row.copy_(torch.cat([g.flatten() for g in gradients]))
    expected = relate(parts.gram(parts.full), k=2)

    mean, spread = drawn.mean(0), drawn.std(0)
    standard_error = spread / math.sqrt(draws)
    moving = spread > 0
    assert moving.sum() > 100
    deviation = ((mean - scale * spatial)[moving] / standard_error[moving]).abs()
    assert deviation.max() < 4.5
    assert deviation.mean() < 1.2

    squared = (drawn / scale - spatial).square().sum(1) / spatial.square().sum()
    assert expected.relative_variance == pytest.approx(float(squared.mean()), rel=0.1)
    cosines = F.cosine_similarity(drawn, spatial[None])
    assert expected.cosine_to_sltt == pytest.approx(float(cosines.mean()), abs=0.02)


def test_too_many_subsets_are_sampled_and_that_is_said() -> None:
    chosen, exact = subsets(24, 12)
    assert not exact
    assert chosen.shape == (MOST_SUBSETS, 24)
    assert chosen.sum(1).eq(12).all()
    # Every step is drawn with probability 1/2, to within five standard errors.
    assert (chosen.mean(0) - 0.5).abs().max() < 5 * 0.5 / math.sqrt(MOST_SUBSETS)


def test_draws_that_miss_the_window_are_silent() -> None:
    network, inputs = small_network()
    parts = decompose(TrainingBatch(network, inputs, loss, window=1))
    related = relate(parts.gram(parts.full), k=2)
    assert related.silent_share == pytest.approx(1 - 2 / TIMESTEPS)
    assert related.cosine_to_sltt == pytest.approx(1)
    # G_K is g_s with probability K/T and 0 else: variance of the scaled gradient T/K − 1.
    assert related.relative_variance == pytest.approx(TIMESTEPS / 2 - 1)


@pytest.mark.parametrize("k", [0, TIMESTEPS + 1])
def test_k_outside_1_to_t_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match="K must be from 1 to T = 6"):
        relate(torch.eye(TIMESTEPS + 1, dtype=torch.float64), k)
