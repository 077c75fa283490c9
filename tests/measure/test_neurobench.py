"""NeuroBench's metrics: by hand on small layers, and equal to the package `neurobench` to the digit."""

import pytest
import torch
from torch import Tensor, nn

from sltt_bench.backends.reference import Reference
from sltt_bench.measure.neurobench import AC_PJ, MAC_PJ, InferenceCosts
from sltt_bench.models.layers import SequenceDropout
from sltt_bench.models.nf_resnet import ScaledWSConv2d
from sltt_bench.models.normalisation import ScaledWSLinear
from sltt_bench.neurons import LIF, LIFParameters, reset_state
from sltt_bench.planning.recipe import load_recipe

T, BATCH = 3, 4


def counted(network: nn.Module, steps: list[Tensor]) -> dict[str, float]:
    network.eval()
    reset_state(network)
    costs = InferenceCosts(network)
    with costs, torch.no_grad():
        for x in steps:
            network(x)
    return costs.figures(costs.totals(), samples=len(steps[0]))


def test_operations_of_a_linear_layer_by_hand() -> None:
    layer = nn.Linear(3, 2)
    layer.weight.data = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 3.0]])
    spikes = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, -1.0]])  # 1 and 2 pairs of an input and a weight
    currents = torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.0, 2.0]])  # 1 and 2 again, but no spikes
    figures = counted(nn.Sequential(layer, LIF(LIFParameters())), [spikes, currents])
    assert figures["dense_synops"] == 2 * 6
    assert figures["effective_acs"] == 1.5
    assert figures["effective_macs"] == 1.5
    assert (MAC_PJ, AC_PJ) == (4.6, 0.9), "Horowitz 2014"
    assert figures["connection_sparsity"] == 0.5
    assert figures["footprint_bytes"] == 4 * (6 + 2)
    assert figures["estimated_energy_45nm_pj"] == pytest.approx(1.5 * MAC_PJ + 1.5 * AC_PJ)


def test_a_border_counts_without_its_padding() -> None:
    network = nn.Sequential(nn.Conv2d(1, 5, 3, padding=1, bias=False), LIF(LIFParameters()))
    figures = counted(network, [torch.ones(1, 1, 3, 3)])
    assert figures["dense_synops"] == figures["effective_acs"] == 5 * (9 + 4 * 6 + 4 * 4)


def test_a_layer_that_is_called_with_inputs_of_several_sizes_counts_each_by_its_own() -> None:
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.neurons = nn.Conv2d(1, 3, 1), LIF(LIFParameters())

        def forward(self, x: Tensor) -> Tensor:
            return self.neurons(self.shared(x)) + self.shared(x[..., :2, :2]).mean()

    assert counted(Pyramid(), [torch.ones(1, 1, 4, 4)])["dense_synops"] == 3 * (16 + 4)


def test_one_sample_that_is_no_spikes_makes_multiply_accumulates_of_its_batch() -> None:
    network = nn.Sequential(nn.Linear(2, 3), LIF(LIFParameters()))
    spikes, sums = (
        torch.tensor([[1.0, 0.0]]),
        torch.tensor([[2.0, 0.0]]),
    )  # as a shortcut of SEW-ResNet adds them
    together = counted(network, [torch.cat([spikes, sums])])
    assert (together["effective_macs"], together["effective_acs"]) == (3, 0)
    apart = [counted(network, [x]) for x in (spikes, sums)]
    assert [(a["effective_macs"], a["effective_acs"]) for a in apart] == [(0, 3), (3, 0)]


@pytest.mark.parametrize(
    "layer", [ScaledWSLinear(4, 2), ScaledWSConv2d(4, 2, kernel_size=1)], ids=["linear", "convolution"]
)
def test_standardised_weights_count_as_the_input_meets_them(layer: nn.Module) -> None:
    weight = torch.tensor([[1.0, 2.0, 0.0, 0.0], [0.0, 3.0, 2.0, 0.0]])
    layer.weight.data = weight.view(layer.weight.shape)
    figures = counted(nn.Sequential(layer, LIF(LIFParameters())), [torch.ones(1, *layer.weight.shape[1:])])
    assert figures["connection_sparsity"] == 0, "what was 0 is so many deviations from the mean"
    assert figures["effective_acs"] == figures["dense_synops"] == 8


def neurobench_says(network: nn.Module, steps: list[Tensor]) -> dict[str, float]:
    pytest.importorskip("neurobench")
    from neurobench.benchmarks import Benchmark
    from neurobench.metrics.static import ConnectionSparsity, Footprint
    from neurobench.metrics.workload import ActivationSparsity, SynapticOperations
    from neurobench.models import NeuroBenchModel

    class Unrolled(NeuroBenchModel):
        def __init__(self) -> None:
            super().__init__()
            self.activation_modules = [LIF]

        def __call__(self, batch: Tensor) -> Tensor:
            reset_state(network)
            return torch.stack([network(x) for x in batch.transpose(0, 1)], 1)

        def __net__(self) -> nn.Module:
            return network

    samples = torch.stack(steps, 1)
    labelled = torch.utils.data.TensorDataset(samples, torch.zeros(len(samples)))
    loader = torch.utils.data.DataLoader(labelled, batch_size=2)
    metrics = [[Footprint, ConnectionSparsity], [ActivationSparsity, SynapticOperations]]
    with torch.no_grad():
        measured = Benchmark(Unrolled(), loader, [], [], metrics).run(quiet=True)
    operations = measured["SynapticOperations"]
    return {
        "footprint_bytes": measured["Footprint"],
        "connection_sparsity": measured["ConnectionSparsity"],
        "activation_sparsity": measured["ActivationSparsity"],
        "dense_synops": operations["Dense"],
        "effective_macs": operations["Effective_MACs"],
        "effective_acs": operations["Effective_ACs"],
    }


def networks() -> dict[str, nn.Module]:
    from sltt_bench.training.experiment import build_network

    neuron = LIFParameters()
    return {
        "digits' cnn": build_network(load_recipe("digits", smoke=True), Reference()),
        "grouped and strided": nn.Sequential(
            nn.Conv2d(1, 6, 3, stride=2, padding=1),
            LIF(neuron),
            nn.Conv2d(6, 4, 3, groups=2, dilation=2, padding=1),
            LIF(neuron),
            nn.Flatten(),
            SequenceDropout(0.5),
            nn.Linear(16, 3),
        ),
    }


@pytest.mark.parametrize("name", networks())
def test_every_figure_is_neurobenchs_to_the_digit(name: str) -> None:
    torch.manual_seed(0)
    network = networks()[name].eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                module.weight *= 4 * (torch.rand_like(module.weight) > 0.25)
    steps = [torch.rand(BATCH, 1, 8, 8) * (torch.rand(BATCH, 1, 8, 8) > 0.5) for _ in range(T)]
    figures, expected = counted(network, steps), neurobench_says(network, steps)
    assert 0 < expected["activation_sparsity"] < 1
    assert expected["effective_macs"] > 0
    assert (expected["effective_acs"] > 0) == (name != "digits' cnn"), "pooled spikes are no spikes"
    assert round(figures.pop("connection_sparsity"), 4) == expected.pop("connection_sparsity")
    del figures["estimated_energy_45nm_pj"]
    assert figures == pytest.approx(expected, rel=1e-12)
