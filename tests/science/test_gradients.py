"""Gradients of BPTT, SLTT and SLTT-K against the recurrences written out: by hand and in float64 NumPy."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from one_batch import RESETS
from torch import nn

from sltt_bench import methods
from sltt_bench.losses import step_loss
from sltt_bench.neurons import LIF, LIFParameters
from sltt_bench.surrogates import SURROGATES
from sltt_bench.unroll import Unroll

DERIVATIVES = {
    "triangle": lambda x: np.maximum(0.0, 1 - np.abs(x)),
    "rectangle": lambda x: np.where(np.abs(x) < 0.5, 1.0, 0.0),
    "sigmoid": lambda x: 1 / np.cosh(2 * x) ** 2,
    "arctan": lambda x: 1 / (1 + (math.pi * x) ** 2),
}


# --- One neuron, two steps: every number worked out by hand ------------------------------------------
#
# I[t] = w x[t] with w = 1 and x = (3/4, 1); λ = 1/2, V_th = 1, V_reset = 0, triangle; L = (s[1] + s[2]) / 2.
#   u[1] = 3/4, s[1] = 0, v[1] = 3/4;   u[2] = 3/8 + 1 = 11/8, s[2] = 1
#   g(u[1] − 1) = 3/4,   g(u[2] − 1) = 5/8
#   ds[1]/dw = 3/4 · 3/4 = 9/16
#   dv[1]/dw = 3/4 − 9/16         = 3/16     soft reset: du − V_th ds
#            = 3/4 − 3/4 · 9/16   = 21/64    hard reset: (1 − s) du − u ds
#            = 3/4                           either, detached
#   ds[2]/dw = 5/8 · (1/2 · dv[1]/dw + 1)    BPTT
#            = 5/8 · 1                       SLTT
BY_HAND = {
    "bptt": {
        "soft": (9 / 16 + 5 / 8 * (1 / 2 * 3 / 16 + 1)) / 2,
        "soft detached": (9 / 16 + 5 / 8 * (1 / 2 * 3 / 4 + 1)) / 2,
        "hard": (9 / 16 + 5 / 8 * (1 / 2 * 21 / 64 + 1)) / 2,
        "hard detached": (9 / 16 + 5 / 8 * (1 / 2 * 3 / 4 + 1)) / 2,
    },
    "sltt": dict.fromkeys(RESETS, (9 / 16 + 5 / 8) / 2),
}


@pytest.mark.parametrize("reset", sorted(RESETS))
@pytest.mark.parametrize("method", sorted(BY_HAND))
def test_the_gradient_of_one_neuron_is_the_one_worked_out_by_hand(method, reset):
    neuron = LIFParameters(tau=2.0, **{**RESETS[reset], "v_reset": 0.0})
    network = nn.Sequential(nn.Linear(1, 1, bias=False), LIF(neuron))
    nn.init.ones_(network[0].weight)
    inputs = [torch.tensor([[0.75]]), torch.tensor([[1.0]])]
    unroll = Unroll(network, inputs, torch.sum, generator=torch.Generator())
    methods.create(method, 2).accumulate_gradients(unroll)
    assert unroll.summed_outputs.item() == 1
    assert network[0].weight.grad.item() == BY_HAND[method][reset]  # dyadic numbers: exact


# --- Two layers and a readout, slowly and without autograd -------------------------------------------


@dataclass
class SlowLayer:
    """A fully connected layer of LIF neurons with everything that it went through."""

    weight: np.ndarray
    bias: np.ndarray
    neuron: LIFParameters

    def forward(self, inputs: np.ndarray) -> np.ndarray:
        """Spikes [T, batch, out] from inputs [T, batch, in]; keeps u and s of every step."""
        p = self.neuron
        decay = 1 - 1 / p.tau
        rest = p.v_reset if p.reset == "hard" else 0.0
        self.inputs = inputs
        self.u = np.zeros((*inputs.shape[:2], len(self.bias)))
        self.s = np.zeros_like(self.u)
        v = np.full(self.u.shape[1:], rest)
        for t in range(len(inputs)):
            self.u[t] = rest + decay * (v - rest) + inputs[t] @ self.weight.T + self.bias
            self.s[t] = self.u[t] >= p.v_threshold
            if p.reset == "soft":
                v = self.u[t] - p.v_threshold * self.s[t]
            else:
                v = np.where(self.s[t] == 1, p.v_reset, self.u[t])
        return self.s

    def backward(self, grad_s: np.ndarray, through_time: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """dL/dinputs, dL/dweight, dL/dbias from the dL/ds that comes from above.

        dL/du[t] = g[t] dL/ds[t] + (dv[t]/du[t]) dL/dv[t],   dL/dv[t] = λ dL/du[t+1] or, for SLTT, 0.
        """
        p = self.neuron
        decay = 1 - 1 / p.tau
        grad_inputs = np.zeros_like(self.inputs)
        grad_weight = np.zeros_like(self.weight)
        grad_bias = np.zeros_like(self.bias)
        grad_v = np.zeros_like(self.u[0])
        for t in reversed(range(len(self.u))):
            g = DERIVATIVES[p.surrogate](self.u[t] - p.v_threshold)
            through_spike = 0.0 if p.detach_reset else g
            if p.reset == "soft":
                dv_du = 1 - p.v_threshold * through_spike
            else:
                dv_du = 1 - self.s[t] + (p.v_reset - self.u[t]) * through_spike
            grad_u = g * grad_s[t] + dv_du * grad_v
            for sample in range(grad_u.shape[0]):
                grad_weight += np.outer(grad_u[sample], self.inputs[t, sample])
                grad_bias += grad_u[sample]
            grad_inputs[t] = grad_u @ self.weight
            grad_v = decay * grad_u if through_time else np.zeros_like(grad_u)
        return grad_inputs, grad_weight, grad_bias


def slow_loss_gradient(output: np.ndarray, labels: np.ndarray, alpha: float, target: str) -> np.ndarray:
    """dL/do[t] for L = (1/T) Σ_t (1 − α) CE + α MSE: (1 − α)(softmax − onehot) / B + 2 α (o − r) / (B C)."""
    timesteps, samples, classes = output.shape
    one_hot = np.eye(classes)[labels]
    softmax = np.exp(output) / np.exp(output).sum(-1, keepdims=True)
    wanted = one_hot if target == "one-hot" else np.ones_like(one_hot)
    cross_entropy = (softmax - one_hot) / samples
    squares = 2 * (output - wanted) / (samples * classes)
    return ((1 - alpha) * cross_entropy + alpha * squares) / timesteps


@dataclass
class Case:
    """One network, one batch, and what both implementations make of it."""

    network: nn.Sequential
    inputs: np.ndarray
    labels: np.ndarray
    neuron: LIFParameters

    @classmethod
    def draw(cls, neuron: LIFParameters, timesteps: int, seed: int) -> "Case":
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Linear(5, 7), LIF(neuron), nn.Linear(7, 6), LIF(neuron), nn.Linear(6, 4)
        ).double()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter *= 2.5
        rng = np.random.default_rng(seed)
        return cls(network, 1.5 * rng.standard_normal((timesteps, 3, 5)), rng.integers(4, size=3), neuron)

    def fast(self, method: str, alpha: float, target: str, seed: int = 0) -> list[np.ndarray]:
        """The gradients of all parameters by the code under test."""
        self.network.zero_grad()
        labels = torch.from_numpy(self.labels)
        unroll = Unroll(
            self.network,
            list(torch.from_numpy(self.inputs)),
            lambda output: step_loss(output, labels, alpha, target),
            generator=torch.Generator().manual_seed(seed),
        )
        methods.create(method, len(self.inputs)).accumulate_gradients(unroll)
        return [parameter.grad.numpy().copy() for parameter in self.network.parameters()]

    def slow(self, through_time: bool, alpha: float, target: str, steps: list[int] | None = None) -> list:
        """The same by the recurrences above; `steps`: the ones whose losses count, None for all."""
        w1, b1, w2, b2, w3, b3 = (p.detach().numpy() for p in self.network.parameters())
        first, second = SlowLayer(w1, b1, self.neuron), SlowLayer(w2, b2, self.neuron)
        hidden = second.forward(first.forward(self.inputs))
        grad_output = slow_loss_gradient(hidden @ w3.T + b3, self.labels, alpha, target)
        for t in range(len(self.inputs)):
            if steps is not None and t not in steps:
                grad_output[t] = 0
        grad_w3 = np.einsum("tbc,tbh->ch", grad_output, hidden)
        grad_b3 = grad_output.sum((0, 1))
        grad_hidden, grad_w2, grad_b2 = second.backward(grad_output @ w3, through_time)
        _, grad_w1, grad_b1 = first.backward(grad_hidden, through_time)
        return [grad_w1, grad_b1, grad_w2, grad_b2, grad_w3, grad_b3]

    def firing_rates(self) -> list[float]:
        w1, b1, w2, b2, _, _ = (p.detach().numpy() for p in self.network.parameters())
        first, second = SlowLayer(w1, b1, self.neuron), SlowLayer(w2, b2, self.neuron)
        return [float(first.forward(self.inputs).mean()), float(second.forward(first.s).mean())]


def assert_equal(fast: list[np.ndarray], slow: list[np.ndarray]) -> None:
    for actual, expected in zip(fast, slow, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-13)


every_reset = pytest.mark.parametrize("reset", sorted(RESETS))
every_surrogate = pytest.mark.parametrize("surrogate", sorted(SURROGATES))


@every_reset
@every_surrogate
@pytest.mark.parametrize("method", ["bptt", "sltt"])
@pytest.mark.parametrize("target", ["ones", "one-hot"])
def test_gradients_equal_the_slow_recurrences(method, reset, surrogate, target):
    neuron = LIFParameters(tau=1.6, v_threshold=0.9, surrogate=surrogate, **RESETS[reset])
    case = Case.draw(neuron, timesteps=6, seed=3)
    assert all(0.05 < rate < 0.95 for rate in case.firing_rates())
    slow = case.slow(method == "bptt", 0.3, target)
    assert all(np.abs(gradient).max() > 1e-4 for gradient in slow)
    assert_equal(case.fast(method, 0.3, target), slow)


@every_reset
@every_surrogate
def test_the_two_slow_gradients_differ_by_the_temporal_part(reset, surrogate):
    """Else the test above could not tell BPTT from SLTT."""
    case = Case.draw(LIFParameters(tau=1.6, surrogate=surrogate, **RESETS[reset]), timesteps=6, seed=3)
    spatial, full = case.slow(False, 0.3, "ones"), case.slow(True, 0.3, "ones")
    assert np.abs(full[0] - spatial[0]).max() > 1e-3
    np.testing.assert_array_equal(full[4], spatial[4])  # the readout has no state


@every_reset
@pytest.mark.parametrize("k", [1, 2, 5])
def test_sltt_k_equals_the_slow_recurrence_over_the_chosen_steps(reset, k):
    case = Case.draw(LIFParameters(tau=1.6, **RESETS[reset]), timesteps=5, seed=4)
    for seed in range(5):
        order = torch.randperm(5, generator=torch.Generator().manual_seed(seed)).tolist()
        slow = case.slow(False, 0.05, "ones", steps=order[:k])
        assert_equal(case.fast(f"sltt-k{k}", 0.05, "ones", seed), slow)
        assert_equal(case.fast(f"sltt-k{k}-unbiased", 0.05, "ones", seed), [5 / k * part for part in slow])


@settings(max_examples=60, deadline=None)
@given(
    tau=st.floats(1, 10),
    v_threshold=st.floats(0.3, 2),
    reset=st.sampled_from(sorted(RESETS)),
    surrogate=st.sampled_from(sorted(SURROGATES)),
    timesteps=st.integers(1, 8),
    alpha=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_gradients_equal_the_slow_recurrences_for_any_neuron(
    tau, v_threshold, reset, surrogate, timesteps, alpha, seed
):
    neuron = LIFParameters(tau=tau, v_threshold=v_threshold, surrogate=surrogate, **RESETS[reset])
    case = Case.draw(neuron, timesteps, seed)
    for method in ("bptt", "sltt"):
        assert_equal(case.fast(method, alpha, "ones"), case.slow(method == "bptt", alpha, "ones"))
