"""Layers that somebody has written, in methods and backends that compute steps a second time: the same, or refused."""

import io
import random
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from replays import RunsAgain
from torch import Tensor, nn

from sltt_bench import recomputation
from sltt_bench.backends.native.foreign_calls import foreign_call
from sltt_bench.backends.native.graphs import GraphedIterations
from sltt_bench.backends.native.step_calls import trace_step
from sltt_bench.kinds.training import train_cell
from sltt_bench.models.layers import SequenceDropout
from sltt_bench.neurons import Stateful
from sltt_bench.planning.plan import Cell
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.python_state import PythonState
from sltt_bench.recomputation import Repetition, tried_again
from sltt_bench.running.worker import Reporter
from sltt_bench.training import experiment


class OwnNorm(nn.Module):
    """Takes the mean away, and learns it for evaluation, in place."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.gain = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((0, 2, 3)) if self.training else self.mean
        if self.training:
            self.learn(mean.detach())
        return (x - mean.view(1, -1, 1, 1)) * self.gain.view(1, -1, 1, 1)

    def learn(self, mean: Tensor) -> None:
        self.mean.mul_(0.9).add_(0.1 * mean)


class OwnNormThatReplaces(OwnNorm):
    def learn(self, mean: Tensor) -> None:
        self.mean = 0.9 * self.mean + 0.1 * mean


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.3 * torch.randn_like(x) if self.training else x


class DropoutByFunction(nn.Module):
    """With a layer inside, so that a tracer looks into it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.inner(F.dropout(x, 0.4, self.training))
        return output


class CountsItsCalls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * (1 + 0.1 * (self.calls % 3))


class AnnealsLater(nn.Module):
    """Does at its 1000th call what it did not do at the first two."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule = {"calls": 0}

    def forward(self, x: Tensor) -> Tensor:
        self.schedule["calls"] += 1
        return x if self.schedule["calls"] < 1000 else 0.5 * x


class DrawsElsewhere(nn.Module):
    """Stochastic depth by Python's random numbers, which differs in few calls."""

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training and random.random() < 0.01 else 0.9 * x


class DrawsWithItsOwn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.numbers = np.random.default_rng(0)

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training and self.numbers.random() < 0.01 else 0.9 * x


class CountsInItsClass(nn.Module):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        CountsInItsClass.calls += 1
        return x if self.calls < 1000 else 0.5 * x


CALLS = [0]


class CountsInAGlobal(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        CALLS[0] += 1
        return x if CALLS[0] < 1000 else 0.5 * x


class Counter:
    def __init__(self) -> None:
        self.by_name = {"calls": [0]}


class CountsDeeply(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.counter = Counter()

    def forward(self, x: Tensor) -> Tensor:
        self.counter.by_name["calls"][0] += 1
        return x if self.counter.by_name["calls"][0] < 1000 else 0.5 * x


class DrawsDeeply(nn.Module):
    """From a generator of torch's, which is not the one that all share."""

    def __init__(self) -> None:
        super().__init__()
        self.path = {"draws": [torch.Generator().manual_seed(0)]}

    def forward(self, x: Tensor) -> Tensor:
        drawn = float(torch.rand((), generator=self.path["draws"][0]))
        return x if self.training and drawn < 0.01 else 0.9 * x


class KeepsAnAverage(nn.Module):
    """In a plain attribute, of which another tensor takes the place: a graph reads the one that it knows."""

    def __init__(self) -> None:
        super().__init__()
        self.level = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.level = 0.9 * self.level + 0.1 * x.detach().mean()
        return x


class CountsInABuffer(nn.Module):
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x / (1 + 0.01 * self.calls)


class TracksStatistics(nn.InstanceNorm2d):
    """torch's own, which is no batch norm."""

    def __init__(self) -> None:
        super().__init__(4, affine=True, track_running_stats=True)


class CumulativeNorm(nn.BatchNorm2d):
    """Its running statistics are means over all calls, whose number it reads."""

    def __init__(self) -> None:
        super().__init__(4, momentum=None)


class LooksAtValues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.detach().abs().max().item() < 1e6 else torch.zeros_like(x)


LAYERS = (
    CumulativeNorm,
    LooksAtValues,
    OwnNorm,
    OwnNormThatReplaces,
    Noise,
    DropoutByFunction,
    CountsItsCalls,
    CountsInABuffer,
    AnnealsLater,
    DrawsElsewhere,
    DrawsWithItsOwn,
    CountsInItsClass,
    CountsInAGlobal,
    CountsDeeply,
    DrawsDeeply,
    TracksStatistics,
    nn.Tanh,
)
COUNTING = (
    CountsItsCalls, CountsInABuffer, AnnealsLater, DrawsElsewhere, DrawsWithItsOwn, CountsInItsClass, CountsInAGlobal, CountsDeeply,
    DrawsDeeply,
)  # fmt: skip


class Network(nn.Module):
    """Two convolutions, each with one of these layers before its neurons."""

    def __init__(self, neuron: Callable[[], nn.Module], layer: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv1, self.layer1, self.neuron1 = nn.Conv2d(1, 4, 3, padding=1), layer(), neuron()
        self.conv2, self.layer2, self.neuron2 = nn.Conv2d(4, 4, 3, padding=1), layer(), neuron()
        self.flatten, self.readout = nn.Flatten(), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.neuron1(self.layer1(self.conv1(x)))
        output: Tensor = self.readout(self.flatten(self.neuron2(self.layer2(self.conv2(x)))))
        return output


@pytest.fixture(params=LAYERS, ids=lambda layer: layer.__name__)
def layer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[nn.Module]:
    """One of them, of which every network consists that is built."""
    kind: type[nn.Module] = request.param
    monkeypatch.setattr("sltt_bench.models.build", lambda options, *, neuron, **others: Network(neuron, kind))
    return kind


def cell_of(method: str, backend: str, **overrides: Any) -> Cell:
    overrides = {"timesteps": 4, "train.precision": "fp32", **overrides}
    recipe = load_recipe("digits", overrides, chosen_methods=[method])
    return Cell(recipe, method, backend, seed=0, device="cpu")


def trained(cell: Cell) -> tuple[dict[str, Tensor], str]:
    """What three iterations leave, and what the backend says of units."""
    subject = experiment.assemble(cell, torch.device("cpu"), experiment.make_backend(cell))
    subject.network.double().train()
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(5)
    for _ in range(3):
        x = 2 * torch.rand(4, 1, 8, 8, generator=generator, dtype=torch.float64)
        subject.training_iteration(x, torch.randint(10, (4,), generator=generator))
    left = {**subject.network.state_dict(), "random numbers": torch.get_rng_state()}
    return left, subject.backend.provenance().get("units", "")


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["bptt", "bptt-d0.5"])
def test_native_computes_again_what_is_the_same_again_and_says_why_it_does_not(
    method: str, layer: type[nn.Module]
) -> None:
    expected, _ = trained(cell_of(method, "reference"))
    left, units = trained(cell_of(method, "native", **{"native.recompute": True}))
    assert_equal(expected, left)
    if layer in (nn.Tanh, CumulativeNorm, LooksAtValues):
        assert "none" not in units
    elif layer is DropoutByFunction:  # into which a trace looks
        assert "none, step by step instead: `F.dropout(" in units
    else:
        assert "none, step by step instead: steps would be computed again, but" in units


def test_checkpoints_in_time_learn_statistics_once_and_draw_the_same_again(layer: type[nn.Module]) -> None:
    expected, _ = trained(cell_of("bptt", "reference"))
    left, _ = trained(cell_of("bptt-ckpt2", "reference"))
    if layer not in COUNTING:
        assert_equal(expected, left)


class MaskThenNoise(nn.Sequential):
    """A layer that draws once for a sequence, before one that draws at every step."""

    def __init__(self) -> None:
        super().__init__(SequenceDropout(0.3), nn.Dropout(0.3))


class OwnMask(Stateful):
    def __init__(self) -> None:
        super().__init__()
        self.mask: Tensor | None = None

    def reset_state(self) -> None:
        self.mask = None

    def forward(self, x: Tensor) -> Tensor:
        if self.mask is None:
            self.mask = torch.rand_like(x) < 0.7
        return x * self.mask


class OwnMaskThenNoise(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(OwnMask(), nn.Dropout(0.3))


@pytest.mark.parametrize("kind", [MaskThenNoise, OwnMaskThenNoise])
@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("segment", [1, 2, 3, 4])
def test_what_is_drawn_once_for_a_sequence_moves_no_other_draw_of_a_segment_that_runs_again(
    segment: int, backend: str, kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sltt_bench.models.build", lambda options, *, neuron, **others: Network(neuron, kind))
    expected, _ = trained(cell_of("bptt", "reference"))
    left, _ = trained(cell_of(f"bptt-ckpt{segment}", backend))
    assert_equal(expected, left)


def test_checkpoints_in_time_are_refused_where_a_layer_is_another_the_second_time(
    layer: type[nn.Module], tmp_path: Path
) -> None:
    cell = cell_of("bptt-ckpt2", "reference", **{"data.limit": 8, "train.epochs": 1, "train.batch_size": 4})
    job = {"data_dir": "data", "resume": False, "initial_weights": None}
    reporter = Reporter(io.StringIO(), None)
    if layer in COUNTING:
        fault = rf"computes steps again, but in this network {re.escape(REPLAYED[layer])}"
        with pytest.raises(ValueError, match=fault):
            train_cell(cell, job, reporter)
    else:
        train_cell(cell, job, reporter)


SCALE = [1.0]


class ScalesBetweenLayers(Network):
    """By a number that is no layer's."""

    def forward(self, x: Tensor) -> Tensor:
        SCALE[0] *= 2
        x = self.neuron1(self.layer1(self.conv1(x)))
        output: Tensor = self.readout(self.flatten(self.layer2(self.conv2(x) * SCALE[0])))
        return output


def test_a_difference_that_arises_between_layers_is_blamed_on_the_forward_that_calls_them() -> None:
    difference = tried_again(ScalesBetweenLayers(nn.ReLU, nn.Tanh), torch.rand(2, 1, 8, 8)).differs
    assert difference == "the forward of a ScalesBetweenLayers gives a Tanh something else the second time"


REPLAYED = {
    CumulativeNorm: "it reads a value on the host (CumulativeNorm)",
    LooksAtValues: "it reads a value on the host (LooksAtValues)",
    CountsItsCalls: "a CountsItsCalls puts out something else the second time",
    CountsInABuffer: "a CountsInABuffer puts out something else the second time",
    AnnealsLater: "schedule of layer layer1 is another value after every call",
    DrawsElsewhere: "it draws random numbers that are not torch's",
    DrawsWithItsOwn: "it draws from a random generator of its own (numbers of layer layer1)",
    CountsInItsClass: "calls of class CountsInItsClass is another value after every call",
    CountsInAGlobal: "CALLS of module test_recomputation is another value after every call",
    CountsDeeply: "counter.by_name['calls'] of layer layer1 is another value after every call",
    DrawsDeeply: "it draws from a random generator of its own (path['draws'][0] of layer layer1)",
    OwnNormThatReplaces: "buffer layer1.mean is replaced at every call",
}
"""What a graph, which knows what ran on the device alone, would not do."""


def test_a_network_is_replayed_where_a_graph_does_what_its_layers_do(layer: type[nn.Module]) -> None:
    cell = cell_of("sltt", "native")
    backend: Any = experiment.make_backend(cell)
    subject = experiment.assemble(cell, torch.device("cpu"), backend)
    backend.graphs = GraphedIterations(partial(RunsAgain, subject.network, subject.generator))
    subject.network.train()
    for _ in range(5):
        subject.training_iteration(torch.rand(4, 1, 8, 8), torch.arange(4))
    facts = backend.provenance()["CUDA graphs"]
    if layer in REPLAYED:
        assert facts.startswith(f"none: {REPLAYED[layer]} (layer layer1 is a {layer.__name__})")
    else:
        assert facts.startswith("2 iterations replayed")


def test_what_is_kept_in_a_plain_attribute_is_looked_at_too() -> None:
    kept = tried_again(Network(nn.ReLU, KeepsAnAverage), torch.rand(2, 1, 8, 8))
    assert kept.learns == "attribute layer1.level changes at every call"
    assert kept.replaces == "attribute layer1.level is replaced at every call"


def test_what_a_network_on_a_gpu_draws_on_the_host_is_no_draw_of_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network, x = Network(nn.ReLU, Noise), torch.rand(2, 1, 8, 8)
    assert tried_again(network, x).draws_on_host == ""
    monkeypatch.setattr(recomputation, "_generators", lambda x: (torch.get_rng_state(), torch.zeros(1)))
    assert tried_again(network, x).draws_on_host == "it draws random numbers on the host"
    assert tried_again(Network(nn.ReLU, nn.Tanh), x).draws_on_host == ""


def test_to_try_a_network_draws_nothing_from_python_and_numpy() -> None:
    before = random.getstate(), repr(np.random.get_state())
    tried_again(Network(nn.ReLU, DrawsElsewhere), torch.rand(2, 1, 8, 8))
    assert (random.getstate(), repr(np.random.get_state())) == before


def test_a_replay_that_is_asked_for_is_refused_where_it_would_be_another(layer: type[nn.Module]) -> None:
    cell = cell_of("sltt", "native")
    backend: Any = experiment.make_backend(cell)
    subject = experiment.assemble(cell, torch.device("cpu"), backend)
    graphs = GraphedIterations(partial(RunsAgain, subject.network, subject.generator))
    vars(backend).update(graphs=graphs, _graphs_are_wanted=True)
    if layer in REPLAYED:
        with pytest.raises(
            ValueError, match=rf"native\.graphs: {re.escape(REPLAYED[layer])}.*set native\.graphs=never"
        ):
            subject.training_iteration(torch.rand(4, 1, 8, 8), torch.arange(4))
    else:
        subject.training_iteration(torch.rand(4, 1, 8, 8), torch.arange(4))


def test_to_try_a_network_leaves_it_and_random_numbers_as_they_were(layer: type[nn.Module]) -> None:
    network = experiment.build_network(
        cell_of("bptt", "reference").recipe, experiment.backends.create("reference")
    )
    before = {name: value.clone() for name, value in network.state_dict().items()}
    draws = torch.get_rng_state()
    tried_again(network, torch.rand(2, 1, 8, 8, generator=torch.Generator()))
    assert torch.equal(draws, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_to_try_a_network_leaves_what_it_counts_as_it_was(layer: type[nn.Module]) -> None:
    network = Network(nn.ReLU, layer)
    network(torch.rand(2, 1, 8, 8))
    kept = PythonState(network)
    tried_again(network, torch.rand(2, 1, 8, 8))
    assert not any(held.has_changed() for held in kept._held)


def test_a_network_that_cannot_be_copied_is_not_computed_again(layer: type[nn.Module]) -> None:
    network = Network(nn.ReLU, layer)
    vars(network)["held"] = (torch.ones(1, requires_grad=True) * 2, (_ for _ in ()))
    assert "cannot be tried" in tried_again(network, torch.rand(2, 1, 8, 8)).differs


SHIPPED: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": [8, 6], "recurrent": True, "readout_tau": 2.0, "dropout": 0.2},
    "cnn": {"channels": [4, 4], "dropout": 0.1},
    "preact-resnet18": {"width": 2},
    "vgg11": {"width": 2},
    "nf-resnet34": {"width": 2},
    "sew-resnet18": {"width": 2, "stem": "3x3"},
    "ms-resnet18": {"width": 2, "stem": "3x3"},
    "spikformer": {"dim": 8, "heads": 2, "depth": 1, "mlp_ratio": 2, "halvings": 1},
}


@pytest.mark.parametrize("fused", ["always", "never"])
@pytest.mark.parametrize("name", SHIPPED)
def test_the_networks_that_are_shipped_do_the_same_again(name: str, fused: str) -> None:
    recipe = "cifar10-resnet18" if name == "vgg11" else "digits"  # for its larger images
    overrides = {
        "model": {"name": name, **SHIPPED[name]},
        "native.fused_norm": fused,
        "train.precision": "fp32",
    }
    cell = Cell(load_recipe(recipe, overrides), "bptt", "native", seed=0, device="cpu")
    network = experiment.assemble(cell, torch.device("cpu"), experiment.make_backend(cell)).network
    assert tried_again(network, torch.rand(2, *cell.recipe.data.sample_shape)) == Repetition()
    known = foreign_call(trace_step(network), network) is None
    assert known == (name != "spikformer"), "what is known need not be tried"
