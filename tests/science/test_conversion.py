"""ANN → SNN conversion: rectifiers while it learns, spikes afterwards, and how far apart the two are."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from sltt_bench import data
from sltt_bench.backends.reference import Reference
from sltt_bench.conversion import ConvertedNeuron
from sltt_bench.data.loading import make_loader
from sltt_bench.neurons import LIFParameters, reset_state
from sltt_bench.planning.plan import Cell
from sltt_bench.training import engine, experiment
from sltt_bench.training.experiment import UnsupportedCell

WIDTHS = (6, 8, 5, 3)


def trained_network() -> nn.Sequential:
    """Three linear layers, two of neurons, whose thresholds cover the batch of `inputs` exactly."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in pairwise(WIDTHS):
        layers += [nn.Linear(before, after), ConvertedNeuron(LIFParameters())]
    network = nn.Sequential(*layers[:-1]).double()
    network(inputs())
    return network


def inputs() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(40, WIDTHS[0], dtype=torch.float64)


def mean_output(network: nn.Module, x: Tensor, steps: int) -> Tensor:
    reset_state(network)
    with torch.no_grad():
        return sum(network(x) for _ in range(steps)) / steps


def largest_error(network: nn.Sequential, steps: int) -> float:
    """A bound on |mean output − ANN's output|, from the weights alone, for inputs that no threshold clips.

    Write D for the largest |Σ_{t ≤ n} output[t] − n y| of a layer over n, 0 for the constant input. The currents of
    the next layer then stray by at most C = max_i Σ_j |W_ij| D. Between 0 and θ a neuron with soft reset keeps its
    potential within [−2C, θ + 2C], so that, from v[0] = θ/2, D' ≤ θ/2 + 3C. At the readout the error is C/T.
    """
    drift = 0.0
    for layer in network:
        if isinstance(layer, nn.Linear):
            drift *= layer.weight.detach().abs().sum(1).max().item()
        elif isinstance(layer, ConvertedNeuron):
            drift = layer.threshold.item() / 2 + 3 * drift
    return drift / steps


def test_while_it_learns_the_network_is_one_of_rectifiers() -> None:
    network = trained_network()
    x = inputs()
    plain = nn.Sequential(*(nn.ReLU() if isinstance(m, ConvertedNeuron) else m for m in network))
    assert torch.equal(network(x), plain(x))
    network(x).square().sum().backward()
    gradient = network[0].weight.grad.clone()
    network.zero_grad()
    plain(x).square().sum().backward()
    assert torch.equal(gradient, network[0].weight.grad)


def test_thresholds_follow_the_percentile_of_the_training_data() -> None:
    layer = ConvertedNeuron(LIFParameters())
    layer(torch.linspace(-1000, 1000, 2001))
    assert layer.threshold == pytest.approx(998.0)  # 99.9 % of the 2001 outputs are at most that
    layer(torch.zeros(2001))
    assert layer.threshold == pytest.approx(499.0)  # the mean of two batches
    for _ in range(200):
        layer(torch.full((10,), 3.0))
    assert layer.threshold == pytest.approx(3.0, rel=1e-3)
    before = layer.threshold.clone()
    layer.eval()
    layer(torch.full((10,), 9.0))
    assert layer.threshold == before


@pytest.mark.parametrize("steps", [1, 4, 16, 64, 1024])
def test_the_mean_output_approaches_the_ann_within_the_bound(steps: int) -> None:
    network = trained_network()
    x = inputs()
    with torch.no_grad():
        expected = network(x)  # in training mode: the network of rectifiers
    network.eval()
    error = (mean_output(network, x, steps) - expected).abs().max().item()
    bound = largest_error(network, steps)
    assert error <= bound
    if steps == 1024:
        assert error < 0.02
        assert expected.abs().max() > 0.9


def test_the_first_layer_is_within_half_a_threshold_and_a_maximum_of_spikes_is_not() -> None:
    layer = ConvertedNeuron(LIFParameters())
    currents = torch.tensor([[0.3, 0.6]], dtype=torch.float64)
    layer(torch.ones(1000, 1))
    layer.eval()
    for steps in (1, 7, 1000):
        layer.reset_state()
        spikes = torch.cat([layer(currents) for _ in range(steps)])
        assert (spikes.mean(0) - currents[0]).abs().max() <= 0.5 / steps + 1e-6
    assert spikes.max(dim=1).values.mean() > 0.7  # of 0.6


def test_the_bound_holds_in_mixed_precision() -> None:
    """A potential in bf16 would not move by the smallest of these currents."""
    layer = ConvertedNeuron(LIFParameters())
    layer(torch.ones(1000, 1))
    layer.eval()
    currents = torch.tensor([0.0007, 0.002, 0.01, 0.3], dtype=torch.bfloat16)
    mean = sum(layer(currents).float() for _ in range(1024)) / 1024
    assert (mean - currents.float()).abs().max() <= 0.5 / 1024 + 1e-6


def test_the_bound_is_broken_by_a_hard_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    network = trained_network()
    x = inputs()
    with torch.no_grad():
        expected = network(x)
    network.eval()

    def forward(self: ConvertedNeuron, current: Tensor) -> Tensor:
        membrane = current + (self.threshold / 2 if self.potential is None else self.potential)
        fires = membrane >= self.threshold
        self.potential = torch.where(fires, 0.0, membrane)
        return torch.where(fires, self.threshold, 0.0)

    monkeypatch.setattr(ConvertedNeuron, "forward", forward)
    error = (mean_output(network, x, 1024) - expected).abs().max().item()
    assert error > largest_error(network, 1024)


def test_the_converted_digits_network_is_as_accurate_as_the_ann(smoke_cell: Callable[..., Cell]) -> None:
    cell = smoke_cell("conversion", model={"name": "mlp", "hidden": [64]}, data__limit=None, train__lr=0.05)
    cell = replace(cell, smoke=False)
    subject = experiment.assemble(cell, torch.device("cpu"), Reference())
    bundle = data.load(cell.recipe.data, data.DataPlace(None, 1, lambda *_: None))
    loaders = {
        split: make_loader(
            getattr(bundle, split), batch_size=64, shuffle=split == "train", seed=0, drop_last=False,
            options=cell.recipe.data, device=torch.device("cpu"),
        )
        for split in ("train", "test")
    }  # fmt: skip
    subject.network.train()
    for epoch in range(12):
        loaders["train"].set_epoch(epoch)
        for x, labels in loaders["train"]:
            unroll = subject.training_iteration(bundle.preprocess(x), labels)
            assert unroll.backward_passes == 1

    def accuracy(timesteps: int) -> float:
        subject.test_timesteps = timesteps
        right = samples = 0
        for x, labels in loaders["test"]:
            with torch.no_grad():
                outputs = engine._run_forward(subject, bundle.preprocess(x), labels).summed_outputs
            right += int((outputs.argmax(1) == labels).sum())
            samples += len(labels)
        return right / samples

    ann = accuracy(1)  # still in training mode
    subject.network.eval()
    spiking = [accuracy(timesteps) for timesteps in (1, 4, 32)]
    assert ann > 0.93
    assert spiking[-1] >= ann - 0.01
    assert spiking[0] < spiking[-1]


def test_it_is_refused_where_a_past_would_be_lost_and_on_backends_with_neurons_of_their_own(
    smoke_cell: Callable[..., Cell],
) -> None:
    recurrent = smoke_cell("conversion", recipe="sequential-digits")
    with pytest.raises(UnsupportedCell, match=r"set model\.recurrent: false, or"):
        experiment.assemble(recurrent, torch.device("cpu"), Reference())
    leaky = smoke_cell("conversion", recipe="sequential-digits", model__readout_tau=2.0)
    both = r"layer of Recurrent and Readout carries; set model\.recurrent: false and model\.readout_tau: null"
    with pytest.raises(UnsupportedCell, match=both):
        experiment.assemble(leaky, torch.device("cpu"), Reference())
    native = replace(smoke_cell("conversion"), backend="native")
    with pytest.raises(UnsupportedCell, match="rectifiers while the network learns"):
        experiment.assemble(native, torch.device("cpu"), experiment.make_backend(native))
