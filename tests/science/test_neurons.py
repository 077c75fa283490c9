"""The LIF step against traces worked out by hand and against its closed forms."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sltt_bench.neurons import LIF, LIFParameters, Stateful, detach_state, integrate, lif_step, reset_state
from sltt_bench.surrogates import SURROGATES

currents = st.lists(st.floats(-3, 3), min_size=1, max_size=12)
decays = st.floats(1, 20)  # τ


def trace(neuron: LIFParameters, values: list[float]) -> tuple[list[float], list[float], list[float]]:
    """u[t], s[t] and v[t] of one neuron in float64."""
    u, s, v = [], [], []
    potential = None
    for value in values:
        current = torch.tensor(value, dtype=torch.float64)
        u.append(integrate(current, potential, neuron).item())
        spikes, potential = lif_step(current, potential, neuron)
        s.append(spikes.item())
        v.append(potential.item())
    return u, s, v


def test_a_soft_reset_follows_the_trace_worked_out_by_hand():
    """λ = 1/2, V_th = 1: what exceeds the threshold stays, and half of it leaks."""
    u, s, v = trace(LIFParameters(tau=2.0), [0.75, 0.75, 0.5, 1.0, 2.5, 0.0, -1.0])
    assert u == [0.75, 1.125, 0.5625, 1.28125, 2.640625, 0.8203125, -0.58984375]
    assert s == [0, 1, 0, 1, 1, 0, 0]
    assert v == [0.75, 0.125, 0.5625, 0.28125, 1.640625, 0.8203125, -0.58984375]


def test_a_hard_reset_follows_the_trace_worked_out_by_hand():
    """λ = 1/2, V_th = 1, V_reset = −1/2: a spike forgets all, and the potential leaks towards −1/2."""
    neuron = LIFParameters(tau=2.0, reset="hard", v_reset=-0.5)
    u, s, v = trace(neuron, [1.0, 1.5, 0.5, 2.0, 0.25])
    assert u == [0.5, 1.5, 0.0, 1.75, -0.25]
    assert s == [0, 1, 0, 1, 0]
    assert v == [0.5, -0.5, 0.0, -0.5, -0.25]


def test_the_papers_neuron_keeps_an_eleventh_of_its_potential():
    neuron = LIFParameters()
    assert neuron.decay == pytest.approx(1 / 11)
    u, s, v = trace(neuron, [0.99, 0.99, 0.5])
    assert u == pytest.approx([0.99, 0.99 + 0.09, 0.5 + 0.08 / 11])
    assert s == [0, 1, 0]
    assert v == pytest.approx([0.99, 0.08, 0.5 + 0.08 / 11])


@given(values=currents, tau=decays)
def test_under_soft_reset_the_potential_is_the_leaky_sum_of_input_less_output(values, tau):
    """v[T] = Σ_t λ^(T−t) (I[t] − V_th s[t]): nothing is lost but by leaking."""
    neuron = LIFParameters(tau=tau, v_threshold=0.75)
    _, s, v = trace(neuron, values)
    total = 0.0
    for current, spiked in zip(values, s, strict=True):
        total = neuron.decay * total + current - 0.75 * spiked
    assert v[-1] == pytest.approx(total, abs=1e-9)


@given(values=currents, tau=decays, v_reset=st.sampled_from([0.0, -0.5, 0.25]))
def test_under_hard_reset_a_spike_leaves_exactly_the_reset_potential(values, tau, v_reset):
    u, s, v = trace(LIFParameters(tau=tau, reset="hard", v_reset=v_reset), values)
    for membrane, spiked, after in zip(u, s, v, strict=True):
        assert spiked == float(membrane >= 1)
        assert after == (v_reset if spiked else membrane)


@given(values=currents, tau=decays)
def test_under_hard_reset_only_the_distance_to_the_reset_potential_matters(values, tau):
    at_zero = trace(LIFParameters(tau=tau, v_threshold=1.0, reset="hard"), values)
    shifted = trace(LIFParameters(tau=tau, v_threshold=1.0 - 0.25, reset="hard", v_reset=-0.25), values)
    if min(abs(u - 1) for u in at_zero[0]) > 1e-9:  # not so near the threshold that rounding decides
        assert at_zero[1] == shifted[1]
        assert at_zero[0] == pytest.approx([u + 0.25 for u in shifted[0]])


@given(values=currents, tau=decays, exponent=st.integers(-3, 3))
def test_only_the_ratio_of_input_to_threshold_matters(values, tau, exponent):
    scale = 2.0**exponent  # exact in floating point
    u, s, _ = trace(LIFParameters(tau=tau, v_threshold=1.0), values)
    scaled_u, scaled_s, _ = trace(LIFParameters(tau=tau, v_threshold=scale), [scale * i for i in values])
    assert scaled_s == s
    assert scaled_u == pytest.approx([scale * membrane for membrane in u])


@pytest.mark.parametrize("v_reset", [0.0, -0.5, 0.25])
def test_a_neuron_without_input_rests(v_reset):
    for neuron in (LIFParameters(tau=2.0), LIFParameters(tau=2.0, reset="hard", v_reset=v_reset)):
        u, s, v = trace(neuron, [0.0] * 4)
        assert u == v == [neuron.resting_potential] * 4
        assert s == [0] * 4


@pytest.mark.parametrize("surrogate", sorted(SURROGATES))
@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("reset", ["soft", "hard"])
def test_surrogate_and_detached_reset_change_no_forward_value(surrogate, detach_reset, reset):
    torch.manual_seed(0)
    values = (2 * torch.randn(20)).tolist()
    neuron = LIFParameters(tau=1.5, reset=reset, surrogate=surrogate, detach_reset=detach_reset)
    assert trace(neuron, values) == trace(LIFParameters(tau=1.5, reset=reset), values)


def test_a_layer_of_neurons_steps_as_the_pure_function_does():
    torch.manual_seed(0)
    neuron = LIFParameters(tau=1.5)
    layer, potential = LIF(neuron), None
    for current in 2 * torch.randn(5, 3, 2, 4, 4):
        spikes, potential = lif_step(current, potential, neuron)
        assert torch.equal(layer(current), spikes)
        assert torch.equal(layer.potential, potential)


def test_after_a_reset_a_layer_repeats_itself():
    torch.manual_seed(0)
    layer = torch.nn.Sequential(LIF(LIFParameters(tau=3.0)))
    sequence = 2 * torch.randn(5, 3, 4)
    first = [layer(current) for current in sequence]
    reset_state(layer)
    assert all(torch.equal(layer(current), spikes) for current, spikes in zip(sequence, first, strict=True))


def test_detaching_keeps_the_potential_and_cuts_its_gradient():
    network = torch.nn.Sequential(torch.nn.Linear(3, 3), LIF(LIFParameters(tau=3.0)))
    network(torch.randn(2, 3))
    before = network[1].potential.clone()
    assert network[1].potential.requires_grad
    detach_state(network)
    assert not network[1].potential.requires_grad
    assert torch.equal(network[1].potential, before)


def test_a_layer_that_carries_a_list_is_told_to_name_each_tensor() -> None:
    class Delays(Stateful):
        carried = ("past",)
        past: list[torch.Tensor] | None = None

    layer = Delays()
    detach_state(layer)
    layer.past = [torch.zeros(1)]
    with pytest.raises(TypeError, match=r"Delays carries past, which is a list: give each tensor .* a name"):
        detach_state(layer)
