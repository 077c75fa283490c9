"""The gradient taken apart, against recurrences written by hand and against the methods themselves."""

from collections.abc import Sequence
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sltt_bench import methods
from sltt_bench.analysis.gradients import (
    GradientParts,
    TrainingBatch,
    decompose,
    figures,
    gradient_of,
    layers,
)
from sltt_bench.analysis.watch import agreement_rows
from sltt_bench.models import build
from sltt_bench.models.layers import SequenceDropout
from sltt_bench.models.options import MLPOptions
from sltt_bench.neurons import LIF, LIFParameters, Stateful
from sltt_bench.surrogates import SURROGATES
from sltt_bench.unroll import Unroll

BATCH, FEATURES, CLASSES = 5, 7, 3
LABELS = torch.arange(BATCH) % CLASSES
NEURONS = {
    "soft": LIFParameters(tau=2.0, surrogate="sigmoid"),
    "soft detached": LIFParameters(tau=2.0, surrogate="sigmoid", detach_reset=True),
    "hard": LIFParameters(tau=2.0, surrogate="sigmoid", reset="hard", v_reset=-0.2),
    "hard detached": LIFParameters(
        tau=2.0, surrogate="sigmoid", reset="hard", v_reset=-0.2, detach_reset=True
    ),
    "threshold 0.7": LIFParameters(tau=3.0, v_threshold=0.7),
}


def network_of(
    neuron: LIFParameters, *, recurrent: bool = False, dtype: torch.dtype = torch.float64
) -> nn.Module:
    torch.manual_seed(0)
    options = MLPOptions(hidden=[8, 6], recurrent=recurrent)
    network = build(options, neuron=lambda: LIF(neuron), input_shape=(FEATURES,), classes=CLASSES)
    return network.to(dtype)


def inputs_of(timesteps: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [3 * torch.randn(BATCH, FEATURES, generator=generator, dtype=dtype) for _ in range(timesteps)]


def loss(output: Tensor) -> Tensor:
    return F.cross_entropy(output, LABELS)


def gradients_of(
    method: str, network: nn.Module, inputs: Sequence[Tensor], window: int | None = None
) -> dict[str, Tensor]:
    network.zero_grad()
    unroll = Unroll(network, inputs, loss, generator=torch.Generator().manual_seed(0), window=window)
    methods.create(method, len(inputs)).accumulate_gradients(unroll)
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def total(parts: GradientParts) -> Tensor:
    return parts.gram(parts.full)


# By hand ----------------------------------------------------------------------------------------


class ByHand:
    """The temporal part of the gradient of the two-layer network by its own recurrences, no autograd.

    With a_l[t] = dL/du_l[t], its spatial part a's_l[t] = (W' a's_{l+1}[t]) σ'(u) and what is left,
    r_l[t] = a_l[t] − a's_l[t] = (W' r_{l+1}[t]) σ'(u) + λ a_l[t+1] dv/du, the temporal gradient of the
    weights is Σ_t r_l[t] ⊗ input_l[t].
    """

    def __init__(self, network: nn.Module, neuron: LIFParameters, inputs: Sequence[Tensor]) -> None:
        self.neuron = neuron
        self.weights = [network.layer1[0], network.layer2[0], network.classifier]
        self.steps = len(inputs)
        potentials = [torch.full((BATCH, n), self.rest, dtype=torch.float64) for n in (8, 6)]
        self.pre: list[list[Tensor]] = []
        self.membrane: list[list[Tensor]] = []
        self.error: list[Tensor] = []
        for x in inputs:
            signal, pre, membranes = x, [], []
            for layer in (0, 1):
                pre.append(signal)
                current = signal @ self.weights[layer].weight.T + self.weights[layer].bias
                leaked = neuron.decay * (potentials[layer] - self.rest) + self.rest
                u = leaked + current
                signal = (u >= neuron.v_threshold).double()
                membranes.append(u)
                if neuron.reset == "soft":
                    potentials[layer] = u - neuron.v_threshold * signal
                else:
                    potentials[layer] = torch.where(signal > 0, neuron.v_reset, u)
            output = signal @ self.weights[2].weight.T + self.weights[2].bias
            one_hot = F.one_hot(LABELS, CLASSES).double()
            self.error.append((output.softmax(1) - one_hot) / BATCH / self.steps)
            self.pre.append(pre)
            self.membrane.append(membranes)

    @property
    def rest(self) -> float:
        return self.neuron.v_reset if self.neuron.reset == "hard" else 0.0

    def state_derivative(self, u: Tensor) -> Tensor:
        """dv[t]/du[t]."""
        fired = (u >= self.neuron.v_threshold).double()
        slope = 0 * u if self.neuron.detach_reset else self.surrogate(u)
        if self.neuron.reset == "soft":
            return 1 - self.neuron.v_threshold * slope
        return 1 - fired + (self.neuron.v_reset - u) * slope

    def surrogate(self, u: Tensor) -> Tensor:
        return SURROGATES[self.neuron.surrogate](u - self.neuron.v_threshold)

    def temporal(self) -> dict[str, Tensor]:
        gradients = {
            name: torch.zeros_like(getattr(self.weights[layer], kind))
            for layer in (0, 1)
            for kind, name in (("weight", f"layer{layer + 1}.0.weight"), ("bias", f"layer{layer + 1}.0.bias"))
        }
        later = [torch.zeros(BATCH, 8).double(), torch.zeros(BATCH, 6).double()]
        for t in reversed(range(self.steps)):
            from_above_spatial = self.error[t] @ self.weights[2].weight
            from_above_temporal = torch.zeros_like(from_above_spatial)
            for layer in (1, 0):
                u = self.membrane[t][layer]
                spatial = from_above_spatial * self.surrogate(u)
                temporal = from_above_temporal * self.surrogate(u)
                temporal = temporal + self.neuron.decay * later[layer] * self.state_derivative(u)
                later[layer] = spatial + temporal
                gradients[f"layer{layer + 1}.0.weight"] += temporal.T @ self.pre[t][layer]
                gradients[f"layer{layer + 1}.0.bias"] += temporal.sum(0)
                from_above_spatial = spatial @ self.weights[layer].weight
                from_above_temporal = temporal @ self.weights[layer].weight
        return gradients


@pytest.mark.parametrize("kind", NEURONS)
@torch.no_grad()
def test_the_temporal_part_equals_recurrences_written_by_hand(kind: str) -> None:
    neuron = NEURONS[kind]
    network, inputs = network_of(neuron), inputs_of(6)
    with torch.enable_grad():
        parts = decompose(TrainingBatch(network, inputs, loss))
    expected = ByHand(network, neuron, inputs).temporal()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 1e-4, f"{name}: the test must not compare zeros"
        torch.testing.assert_close(parts.temporal(name), gradient, rtol=1e-10, atol=1e-14)


# The known answers ------------------------------------------------------------------------------


@pytest.mark.parametrize("recurrent", [False, True])
def test_the_temporal_part_is_exactly_zero_at_one_time_step(recurrent: bool) -> None:
    network = network_of(NEURONS["soft"], recurrent=recurrent)
    parts = decompose(TrainingBatch(network, inputs_of(1), loss))
    for name in parts.full:
        assert torch.count_nonzero(parts.temporal(name)) == 0
    assert figures(total(parts)).cosine == pytest.approx(1.0, abs=1e-15)


@pytest.mark.parametrize("reset", ["soft", "hard"])
def test_the_temporal_part_is_exactly_zero_without_memory(reset: Literal["soft", "hard"]) -> None:
    # Two steps: of more, the two methods add the gradients up in different orders.
    parts = decompose(TrainingBatch(network_of(LIFParameters(tau=1.0, reset=reset)), inputs_of(2), loss))
    assert figures(total(parts)).full_norm > 0.01
    for name in parts.full:
        assert torch.count_nonzero(parts.temporal(name)) == 0


def test_the_temporal_part_without_memory_is_rounding_over_many_steps() -> None:
    measured = figures(
        total(decompose(TrainingBatch(network_of(LIFParameters(tau=1.0)), inputs_of(6), loss)))
    )
    assert measured.full_norm > 0.01
    assert measured.temporal_share == pytest.approx(0, abs=1e-15)


def test_recurrence_carries_gradient_through_time_even_without_memory_in_the_neuron() -> None:
    parts = decompose(TrainingBatch(network_of(LIFParameters(tau=1.0), recurrent=True), inputs_of(6), loss))
    share = figures(total(parts)).temporal_share
    assert share is not None
    assert share > 0.05


def test_a_readout_without_state_has_no_temporal_part() -> None:
    parts = decompose(TrainingBatch(network_of(NEURONS["soft"]), inputs_of(6), loss))
    grams = {layer: parts.gram(names) for layer, names in layers(parts.full).items()}
    assert list(grams) == ["layer1.0", "layer2.0", "classifier"]
    assert figures(grams["classifier"]).temporal_share == pytest.approx(0, abs=1e-14)
    below = figures(grams["layer1.0"])
    assert below.temporal_share is not None
    assert below.temporal_share > 0.1


def test_steps_outside_the_window_add_nothing() -> None:
    parts = decompose(TrainingBatch(network_of(NEURONS["soft"]), inputs_of(5), loss, window=2))
    norms = parts.gram(parts.full).diagonal().sqrt()
    assert norms[:3].tolist() == [0.0, 0.0, 0.0]
    assert all(norm > 0.01 for norm in norms[3:].tolist())


# Against the methods ----------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("recurrent", [False, True])
def test_full_and_spatial_part_are_what_the_methods_accumulate(recurrent: bool, window: int | None) -> None:
    network, inputs = network_of(NEURONS["hard"], recurrent=recurrent), inputs_of(5)
    parts = decompose(TrainingBatch(network, inputs, loss, window=window))
    bptt = gradients_of("bptt", network, inputs, window)
    sltt = gradients_of("sltt", network, inputs, window)
    for name in parts.full:
        assert torch.equal(parts.full[name], bptt[name])
        torch.testing.assert_close(parts.spatial(name), sltt[name], rtol=1e-12, atol=1e-16)


class NoisyNetwork(nn.Sequential):
    """Batch norm and dropout, whose statistics and masks must be the same for both parts."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Linear(FEATURES, 32),
            nn.BatchNorm1d(32),
            LIF(LIFParameters(tau=1.0)),
            SequenceDropout(0.5),
            nn.Linear(32, CLASSES),
        )
        self.double()


def test_both_parts_see_the_same_dropout_masks_and_batch_statistics() -> None:
    # Without memory the temporal part is zero, unless the two passes differ in something else.
    parts = decompose(TrainingBatch(NoisyNetwork().train(), inputs_of(4), loss))
    measured = figures(total(parts))
    assert measured.full_norm > 0.01
    assert measured.temporal_share == pytest.approx(0, abs=1e-14)


def test_taking_apart_leaves_network_and_random_numbers_as_they_were() -> None:
    network = NoisyNetwork().train()
    inputs = inputs_of(4)
    network(inputs[0]).sum().backward()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    random_state = torch.get_rng_state()
    decompose(TrainingBatch(network, inputs, loss))
    assert torch.equal(torch.get_rng_state(), random_state)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradients[name])
    assert network.training
    assert [m.potential for m in network.modules() if isinstance(m, LIF)] == [None]
    assert all(m.dropped is None for m in network.modules() if isinstance(m, SequenceDropout))


def test_parameters_that_are_not_trained_are_left_out() -> None:
    network = network_of(NEURONS["soft"])
    network.layer1[0].weight.requires_grad_(False)
    parts = decompose(TrainingBatch(network, inputs_of(3), loss))
    assert "layer1.0.weight" not in parts.full
    assert "layer1.0.bias" in parts.full


class ScaledLIF(LIF):
    """A layer of neurons with a number of its own, as learnable time constants are."""

    def __init__(self) -> None:
        super().__init__(LIFParameters(tau=2.0))
        self.gain = nn.Parameter(torch.tensor(1.3))

    def forward(self, current: torch.Tensor) -> torch.Tensor:
        return super().forward(self.gain * current)


def test_a_parameter_may_be_a_single_number() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(FEATURES, 32), ScaledLIF(), nn.Linear(32, CLASSES)).double()
    parts = decompose(TrainingBatch(network, inputs_of(4), loss))
    gram = parts.gram(["1.gain"])
    assert float(gram.sum()) == pytest.approx(float(parts.full["1.gain"]) ** 2)
    assert float(gram[-1, -1]) > 0


# Figures ----------------------------------------------------------------------------------------


def test_figures_equal_those_of_the_vectors_themselves() -> None:
    parts = decompose(TrainingBatch(network_of(NEURONS["soft"], recurrent=True), inputs_of(6), loss))
    full = torch.cat([parts.full[name].flatten() for name in parts.full])
    spatial = torch.cat([parts.spatial(name).flatten() for name in parts.full])
    measured = figures(total(parts))
    assert measured.cosine == pytest.approx(float(F.cosine_similarity(full, spatial, dim=0)), rel=1e-12)
    assert measured.spatial_share == pytest.approx(float(spatial.norm() / full.norm()), rel=1e-12)
    assert measured.temporal_share == pytest.approx(float((full - spatial).norm() / full.norm()), rel=1e-12)
    assert measured.cosine is not None
    assert 0.3 < measured.cosine < 0.99


def test_a_gradient_that_is_zero_has_no_cosine() -> None:
    measured = figures(torch.zeros(4, 4, dtype=torch.float64))
    assert (measured.cosine, measured.spatial_share, measured.temporal_share) == (None, None, None)
    assert measured.full_norm == 0


def test_layers_are_the_modules_that_own_parameters_in_order() -> None:
    names = ["conv.weight", "block.0.norm.weight", "block.0.norm.bias", "gain"]
    assert layers(names) == {
        "conv": ["conv.weight"],
        "block.0.norm": ["block.0.norm.weight", "block.0.norm.bias"],
        "": ["gain"],
    }


def test_stateful_layers_are_reset_for_the_next_sequence() -> None:
    network = network_of(NEURONS["soft"], recurrent=True)
    inputs = inputs_of(3)
    first = decompose(TrainingBatch(network, inputs, loss))
    second = decompose(TrainingBatch(network, inputs, loss))
    assert any(isinstance(module, Stateful) for module in network.modules())
    for name in first.full:
        assert torch.equal(first.full[name], second.full[name])


def test_a_methods_gradient_is_set_beside_bptts_layer_by_layer() -> None:
    torch.manual_seed(0)
    neuron = LIFParameters(tau=2.0)
    network = nn.Sequential(nn.Linear(3, 8), LIF(neuron), nn.Linear(8, 2)).double()
    with torch.no_grad():
        network[0].weight *= 3
    inputs = list(torch.randn(4, 5, 3, dtype=torch.float64))
    labels = torch.tensor([0, 1, 1, 0, 1])

    def loss(output: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(output, labels)

    sizes = {name: p.numel() for name, p in network.named_parameters()}
    full = gradient_of("bptt", TrainingBatch(network, inputs, loss))
    assert all(p.grad is None for p in network.parameters())
    for method, exact in (("bptt-ckpt2", True), ("sltt", False), ("ottt-o", False)):
        made = gradient_of(method, TrainingBatch(network, inputs, loss))
        rows = {(row["level"], row["name"]): row for row in agreement_rows([full], [made], sizes)}
        assert list(rows)[:3] == [("network", ""), ("layer", "0"), ("layer", "2")]
        g, m = full["0.weight"].flatten(), made["0.weight"].flatten()
        row = rows["parameter", "0.weight"]
        assert row["cosine_mean"] == pytest.approx(float(g @ m / (g.norm() * m.norm())))
        assert row["norm_ratio_mean"] == pytest.approx(float(m.norm() / g.norm()))
        assert (abs(rows["network", ""]["cosine_mean"] - 1) < 1e-12) == exact
        assert row["zero_batches"] == 0
