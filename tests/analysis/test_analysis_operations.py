"""Counted multiplications against what the layers' sizes say."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sltt_bench.analysis.gradients import TrainingBatch
from sltt_bench.analysis.operations import count, count_methods
from sltt_bench.models import build
from sltt_bench.models.options import MLPOptions
from sltt_bench.neurons import LIF, LIFParameters

BATCH, FEATURES, HIDDEN, CLASSES = 8, 10, 16, 4
LABELS = torch.arange(BATCH) % CLASSES


def loss(output: Tensor) -> Tensor:
    return F.cross_entropy(output, LABELS)


def network_of(recurrent: bool = False) -> nn.Module:
    torch.manual_seed(0)
    options = MLPOptions(hidden=[HIDDEN], recurrent=recurrent)
    neuron = LIFParameters(tau=2.0)
    return build(options, neuron=lambda: LIF(neuron), input_shape=(FEATURES,), classes=CLASSES)


def inputs_of(timesteps: int) -> list[Tensor]:
    return [torch.randn(BATCH, FEATURES) for _ in range(timesteps)]


@pytest.mark.parametrize("timesteps", [1, 2, 5])
def test_the_temporal_part_of_a_feedforward_network_is_elementwise(timesteps: int) -> None:
    (bptt,) = count_methods(TrainingBatch(network_of(), inputs_of(timesteps), loss), ["bptt"])
    # Leak and reset: two products for each neuron and each step that has a next one.
    assert bptt.temporal_multiplications == 2 * (timesteps - 1) * BATCH * HIDDEN


def test_recurrence_adds_two_matrix_products_for_each_step_to_the_temporal_part() -> None:
    timesteps = 5
    feedforward, recurrent = (
        count_methods(TrainingBatch(network_of(kind), inputs_of(timesteps), loss), ["bptt", "sltt"])
        for kind in (False, True)
    )
    product = BATCH * HIDDEN * HIDDEN
    # dL/ds[t−1] = R' dL/dI[t] is temporal; dL/dR = Σ dL/dI[t] s[t−1]' is spatial.
    temporal = recurrent[0].temporal_multiplications - feedforward[0].temporal_multiplications
    spatial = recurrent[1].spatial_multiplications - feedforward[1].spatial_multiplications
    assert temporal == spatial == (timesteps - 1) * product


def test_matrix_products_are_counted_forward_and_backward() -> None:
    network = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, CLASSES))
    forward, backward = count(TrainingBatch(network, inputs_of(1), lambda output: output.sum()), "sltt")
    first, second = BATCH * FEATURES * HIDDEN, BATCH * HIDDEN * CLASSES
    scalars = 1
    assert forward == first + second + scalars
    # No gradient is needed for the input: weight of both layers, input of the second.
    assert backward == first + 2 * second + scalars


def test_a_convolution_is_counted() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.Flatten())
    forward, backward = count(
        TrainingBatch(network, [torch.randn(4, 2, 5, 5)], lambda output: output.sum()), "bptt"
    )
    assert forward - 1 == 4 * 5 * 5 * 3 * 2 * 9
    assert backward - 1 == 4 * 5 * 5 * 3 * 2 * 9


@pytest.mark.parametrize("k", [1, 2, 3])
def test_sltt_k_multiplies_k_tths_of_sltt_backward_and_as_much_forward(k: int) -> None:
    timesteps = 3
    sltt, sltt_k = count_methods(
        TrainingBatch(network_of(), inputs_of(timesteps), loss), ["sltt", f"sltt-k{k}"]
    )
    assert sltt_k.spatial_multiplications * timesteps == sltt.spatial_multiplications * k
    assert sltt_k.forward_multiplications == sltt.forward_multiplications
    assert (sltt.temporal_multiplications, sltt_k.temporal_multiplications) == (0, 0)


def test_at_one_time_step_all_methods_multiply_the_same() -> None:
    rows = count_methods(TrainingBatch(network_of(), inputs_of(1), loss), ["bptt", "sltt", "sltt-k1"])
    assert len({row[1:] for row in rows}) == 1


def test_counting_leaves_the_network_as_it_was() -> None:
    network = network_of(recurrent=True)
    count(TrainingBatch(network, inputs_of(3), loss), "bptt")
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(m.potential is None for m in network.modules() if isinstance(m, LIF))
