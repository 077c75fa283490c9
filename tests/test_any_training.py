"""Whatever a recipe says: training on native leaves the weights that training on the reference leaves.

Recipes are drawn at random, each trained for some iterations with batches of several sizes, evaluations between them, and,
in some, iterations that are replayed. Two backends that agree on a single gradient can still part ways over
what one iteration leaves to the next.

The last test starts this file again with Triton's interpreter, and networks in the memory format of a GPU: the
kernels of a GPU, as networks call them.
"""

import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from replays import RunsAgain
from torch import Tensor

from sltt_bench import engine, experiment
from sltt_bench.backends.native.graphs import GraphedIterations, unsuited
from sltt_bench.errors import UserError
from sltt_bench.experiment import Experiment, UnsupportedCell, training_mode
from sltt_bench.plan import Cell
from sltt_bench.recipe import load_recipe

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
NETWORKS = ("mlp", "mlp", "cnn", "cnn") if INTERPRETED else (
    "mlp", "mlp", "mlp", "cnn", "cnn", "preact-resnet18", "nf-resnet34", "vgg11", "sew-resnet18", "ms-resnet18", "spikformer",
)  # fmt: skip
"""The interpreter takes a minute for one of the large ones."""
METHODS = (
    "bptt", "bptt-d0.5", "bptt-d0", "bptt-ckpt2", "tbptt-w1", "tbptt-w2", "sltt", "sltt-k1", "sltt-k2", "sltt-k3", "sltt-a2",
)  # fmt: skip
ITERATIONS = 8
TOLERANCE = 1e-8
"""Of float64; relative for each tensor."""


@dataclass(frozen=True)
class Drawn:
    """A cell on two backends, and how it is trained."""

    recipe: str
    method: str
    overrides: dict[str, Any]
    native: dict[str, Any]
    replayed: bool

    @staticmethod
    def by(draws: random.Random) -> "Drawn":
        chance = draws.random
        name = draws.choice(NETWORKS)
        model: dict[str, Any] = {"name": name}
        if name != "nf-resnet34":
            model["normalisation"] = draws.choice(["batch", "batch", "none", "group", "bntt", "tdbn"])
        timesteps = draws.choice([1, 2, 3, 4, 5, 6])
        recipe = draws.choice(["digits", "digits", "digits-saccade"])  # one image T times, or a movement
        match name:
            case "mlp":
                model |= {"hidden": draws.choice([[8], [8, 6], [6, 8, 5]]), "recurrent": chance() < 0.5}
                model["normalisation"] = draws.choice(["none", "none", "batch", "group", "weight", "bntt"])
            case "cnn":
                model["channels"] = draws.choice([[4], [4, 6], [3, 4, 4]])
            case "spikformer":
                model |= {"dim": 8, "heads": 2, "depth": 1, "mlp_ratio": 2, "halvings": 1}
            case _:
                model["width"] = 2
        if name in ("mlp", "cnn"):
            timesteps = draws.choice([timesteps, timesteps, 8, 13, 17])  # from 13 on, units go in chunks
            model["readout_tau"] = draws.choice([None, 2.0])
        if name in ("mlp", "cnn", "preact-resnet18", "vgg11") and not INTERPRETED:
            model["dropout"] = draws.choice(
                [0, 0.3]
            )  # in another memory format its draws come in another order
        if name == "sew-resnet18":
            model["connection"] = draws.choice(["add", "and", "iand"])
        if name in ("sew-resnet18", "ms-resnet18"):
            model["stem"] = "3x3"
        if name == "vgg11":
            recipe = draws.choice(["cifar10-resnet18", "dvs-cifar10-vgg11"])  # for their larger images
            timesteps = min(timesteps, 3)
        hard = chance() < 0.5
        overrides = {
            "model": model,
            "timesteps": timesteps,
            "neuron.tau": draws.choice([1.0, 1.1, 2.0, 3.7]),
            "neuron.v_threshold": draws.choice([0.5, 1.0]),
            "neuron.reset": "hard" if hard else "soft",
            "neuron.v_reset": draws.choice([0.0, -0.2, 0.1]) if hard else 0.0,
            "neuron.detach_reset": chance() < 0.5,
            "neuron.surrogate": draws.choice(["triangle", "rectangle", "sigmoid", "arctan"]),
            "neuron.surrogate_width": draws.choice([1.0, 2.0]),
            "train.precision": "fp32",
            "train.lr": draws.choice([0.001, 0.01]),
            "train.momentum": draws.choice([0, 0.9]),
            "train.weight_decay": draws.choice([0, 0.1]),
            # AdamW divides gradients by their size: those of biases that batch norm takes away are rounding errors.
            "train.optimizer": draws.choice(["sgd", "adamw"]) if _has_no_batch_norm(model) else "sgd",
            "loss.alpha": draws.choice([0, 0.05, 1]),
            "loss.mse_target": draws.choice(["ones", "one-hot"]),
            "loss.window": draws.randint(1, timesteps) if chance() < 0.2 else None,
            "loss.average": "outputs" if chance() < 0.2 else "losses",
        }
        native = {
            "native.recompute": chance() < 0.5,
            "native.fused_norm": draws.choice(["always", "never"]),
            "native.graphs": "never",
        }
        return Drawn(recipe, draws.choice(METHODS), overrides, native, replayed=chance() < 0.4)

    def assembled(self, backend: str) -> Experiment:
        """In float64, with weights that make neurons fire. Raises what a command refuses the cell with."""
        overrides = self.overrides | (self.native if backend == "native" else {})
        recipe = load_recipe(self.recipe, overrides, chosen_methods=[self.method])
        cell = Cell(recipe, self.method, backend, seed=0, device="cpu")
        subject = experiment.assemble(cell, torch.device("cpu"), experiment.make_backend(cell))
        subject.network.double()
        generator = torch.Generator().manual_seed(9)
        with torch.no_grad():
            for parameter in subject.network.parameters():
                parameter *= 1.5 if parameter.ndim > 1 else 1
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if backend == "native" and INTERPRETED:
            subject.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if backend == "native" and self.replayed and unsuited(subject.method, subject.timesteps) is None:
            graphs = GraphedIterations(partial(RunsAgain, subject.network, subject.generator))
            vars(subject.backend).update(graphs=graphs, _graphs_are_wanted=True)
        return subject

    def trained(self, backend: str, seed: int) -> dict[str, Tensor]:
        """All that training leaves, by name."""
        subject = self.assembled(backend)
        draws, data = random.Random(seed), torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        recipe = load_recipe(self.recipe, self.overrides, chosen_methods=[self.method])
        shape: tuple[int, ...] = recipe.data.sample_shape
        shape = (subject.timesteps, *shape) if subject.temporal else shape
        setup: Any = _Setup()
        left = {}

        def batch(samples: int) -> tuple[Tensor, Tensor]:
            labels = torch.randint(recipe.data.classes, (samples,), generator=data)
            return 2 * torch.rand(samples, *shape, generator=data, dtype=torch.float64), labels

        usual = draws.choice([3, 4])
        for number in range(ITERATIONS):
            samples = usual + draws.choice([0, 0, 0, 0, -1, 1])
            totals = engine._Totals(torch.device("cpu"))
            with training_mode(subject.network, True):
                engine._train_batch(subject, setup, batch(samples), totals)
            if not self.replayed:  # what replays return is that of the stand-in's capture
                left[f"training {number}"] = totals.sums
            if draws.random() < 0.3:
                totals = engine._evaluate(subject, setup, _Loader(batch(2)), torch.device("cpu"))
                left[f"evaluation after {number}"] = torch.stack([*totals.sums, totals.spikes])
        assert not INTERPRETED or backend != "native" or "triton" in subject.backend.provenance()["neuron"]
        return {
            **left,
            **subject.network.state_dict(),
            "draws of the method": subject.generator.get_state(),
            "draws of dropout": torch.get_rng_state(),
        }


class _Setup:
    @staticmethod
    def preprocess(x: Tensor) -> Tensor:
        return x


class _Loader(list[tuple[Tensor, Tensor]]):
    def __init__(self, batch: tuple[Tensor, Tensor]) -> None:
        super().__init__([batch])

    def set_epoch(self, epoch: int) -> None:
        pass


def _has_no_batch_norm(model: dict[str, Any]) -> bool:
    return model.get("normalisation", "none") in ("none", "group", "weight")


def drawn(seed: int) -> tuple[Drawn, int]:
    """The first cell that both backends serve, and how many drawn before it they do not."""
    draws, refused = random.Random(seed), 0
    while True:
        one = Drawn.by(draws)
        try:
            one.assembled("reference"), one.assembled("native")
        except (UserError, UnsupportedCell):
            refused += 1
        else:
            return one, refused


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, float]:
    """By how much some of what training left differs, relative to it."""
    assert one.keys() == other.keys()
    errors = {
        name: float((value.double() - other[name].double()).norm() / (value.double().norm() + 1e-9))
        for name, value in one.items()
    }
    return {name: error for name, error in errors.items() if not error < TOLERANCE}


def check(seed: int) -> Counter[str]:
    cell, refused = drawn(seed)
    usual = cell.trained("reference", seed)
    differing = apart(usual, cell.trained("native", seed))
    assert not differing, f"seed {seed}: {cell} parts from the reference in {differing}"
    return Counter(
        {
            "refused": refused,
            f"method {cell.method}": 1,
            f"network {cell.overrides['model']['name']}": 1,
        }
    )


@pytest.fixture(autouse=True)
def small_tensors_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sltt_bench.backends.native.saved_tensor_hooks.SMALL", 0)
    monkeypatch.setattr("sltt_bench.backends.native.loop_invariants.SMALL", 0)


@pytest.fixture(autouse=True)
def kernels_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        monkeypatch.setattr("sltt_bench.backends.native.kernels.by_triton", lambda tensor: True)


@pytest.mark.parametrize("first", range(0, 8 if INTERPRETED else 24, 4))
def test_training_on_native_is_training_on_the_reference(first: int) -> None:
    for seed in range(first, first + 4):
        check(seed)


@pytest.mark.long
def test_many_trainings_on_native_are_those_on_the_reference(figures: Callable[[str], None]) -> None:
    trainings = 100 if INTERPRETED else 1000
    counts = sum((check(seed) for seed in range(100, 100 + trainings)), Counter[str]())
    figures(f"{trainings} trainings, all as on the reference: {dict(counts)}")


@pytest.mark.skipif(INTERPRETED, reason="this is the test that interprets")
def test_training_by_the_kernels_of_a_gpu_is_training_on_the_reference(
    request: pytest.FixtureRequest,
) -> None:
    pytest.importorskip("triton")
    long = request.config.getoption("--campaign") == "long"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    done = subprocess.run(
        [*command, "--campaign", "long" if long else "short"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=3600 if long else 300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
