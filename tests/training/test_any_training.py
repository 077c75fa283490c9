"""Whatever a recipe says: training on native, and on SpikingJelly, leaves what training on the reference leaves.

Recipes are drawn at random, each trained for some iterations with batches of several sizes, evaluations between them, and,
in some, iterations that are replayed. Two backends that agree on a single gradient can still part ways over
what one iteration leaves to the next.

tests/backends/test_lif_kernels.py starts this file again with Triton's interpreter, and networks in the memory format of a
GPU: the kernels of a GPU, as networks call them.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from drawn_cells import INTERPRETED, METHODS, Drawn
from drawn_networks import LooksAtValues
from engine_parts import Batches, Setup
from replays import RunsAgain, Taped
from torch import Tensor

from sltt_bench.backends.native.graphs import GraphedIterations, unsuited
from sltt_bench.common.errors import UserError
from sltt_bench.training import engine, experiment
from sltt_bench.training.experiment import Experiment, UnsupportedCell, training_mode

ITERATIONS = 8
METHODS_OF_SPIKINGJELLY = ("sltt-k2-unbiased", "sltt-a", "bptt-l1", "ottt", "ottt-o", "e-prop")
"""Beside those that native serves too."""
TOLERANCE = 1e-8
"""Of float64; relative for each tensor."""


def assembled(drawn: Drawn, backend: str, moved: float = 0.0) -> Experiment:
    """In float64, with weights that make neurons fire, `moved` relative to what they are otherwise.

    Raises what a command refuses the cell with.
    """
    cell = drawn.cell(backend)
    subject = experiment.assemble(cell, torch.device("cpu"), experiment.make_backend(cell))
    subject.network.double()
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in subject.network.parameters():
            parameter *= 1.5 if parameter.ndim > 1 else 1
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if moved:
                parameter *= 1 + moved * torch.randn(
                    parameter.shape, generator=generator, dtype=torch.float64
                )
    if backend == "native" and INTERPRETED:
        subject.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if backend == "native" and drawn.replayed and unsuited(subject.method, subject.timesteps) is None:
        runs_again = partial(RunsAgain, subject.network, subject.generator)
        graphs = GraphedIterations(runs_again if INTERPRETED else partial(Taped, subject.network))
        # No capture goes on where the host reads a value: a norm with a mean over all calls reads their number.
        reading = (
            getattr(module, "momentum", 0) is None or isinstance(module, LooksAtValues)
            for module in subject.network.modules()
        )
        wanted = not any(reading)
        vars(subject.backend).update(graphs=graphs, _graphs_are_wanted=wanted)
    return subject


def trained(drawn: Drawn, backend: str, seed: int, moved: float = 0.0) -> dict[str, Tensor]:
    """All that training leaves, by name."""
    subject = assembled(drawn, backend, moved)
    data = drawn.cell(backend).recipe.data
    draws, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    shape = (subject.timesteps, *data.sample_shape) if subject.temporal else data.sample_shape
    setup: Any = Setup()
    left = {}

    def batch(samples: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(data.classes, (samples,), generator=generator)
        return 2 * torch.rand(samples, *shape, generator=generator, dtype=torch.float64), labels

    usual = draws.choice([3, 4])
    for number in range(ITERATIONS):
        samples = usual + draws.choice([0, 0, 0, 0, -1, 1])
        totals = engine._Totals(torch.device("cpu"))
        with training_mode(subject.network, True):
            engine._train_batch(subject, setup, batch(samples), totals)
        if not (
            INTERPRETED and drawn.replayed
        ):  # what those replays return is that of the stand-in's capture
            left[f"training {number}"] = totals.sums
        if draws.random() < 0.3:
            totals = engine._evaluate(subject, setup, Batches([batch(2)]), torch.device("cpu"))
            left[f"evaluation after {number}"] = torch.stack([*totals.sums, totals.spikes])
    assert not INTERPRETED or backend != "native" or "triton" in subject.backend.provenance()["neuron"]
    return {
        **left,
        **subject.network.state_dict(),
        "draws of the method": subject.generator.get_state(),
        "draws of dropout": torch.get_rng_state(),
    }


def drawn_for_both(seed: int, backend: str = "native", known: Sequence[str] = METHODS) -> tuple[Drawn, int]:
    """The first cell that the reference and the backend serve, and how many drawn before it they do not."""
    draws, refused = random.Random(seed), 0
    while True:
        drawn = Drawn.by(draws, known)
        try:
            assembled(drawn, "reference"), assembled(drawn, backend)
        except (UserError, UnsupportedCell):
            refused += 1
        else:
            return drawn, refused


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, float]:
    """By how much some of what training left differs, relative to it."""
    return {name: error for name, error in errors(one, other).items() if not error < TOLERANCE}


def errors(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, float]:
    """The difference of each tensor, relative to it."""
    assert one.keys() == other.keys()
    return {
        name: float((value.double() - other[name].double()).norm() / (value.double().norm() + 1e-9))
        for name, value in one.items()
    }


def check(seed: int, backend: str = "native", known: Sequence[str] = METHODS) -> Counter[str]:
    drawn, refused = drawn_for_both(seed, backend, known)
    if backend != "native":
        drawn = replace(drawn, replayed=False)
    differing = apart(trained(drawn, "reference", seed), trained(drawn, backend, seed))
    assert not differing, f"seed {seed}: {drawn} on {backend} parts from the reference in {differing}"
    network = drawn.overrides["model"]["name"]
    return Counter({"refused": refused, f"method {drawn.method}": 1, f"network {network}": 1})


@pytest.fixture(autouse=True)
def small_tensors_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sltt_bench.backends.native.saved_tensor_hooks.SMALL", 0)
    monkeypatch.setattr("sltt_bench.backends.native.loop_invariants.SMALL", 0)


@pytest.fixture(autouse=True)
def kernels_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        monkeypatch.setattr("sltt_bench.backends.native.kernels.by_triton", lambda tensor: True)


@pytest.mark.parametrize(
    "seed", range(2) if INTERPRETED else (*range(9), 12, 13)
)  # 9 to 11 draw what others drew
def test_training_on_native_is_training_on_the_reference(seed: int) -> None:
    check(seed)


@pytest.mark.long
def test_many_trainings_on_native_are_those_on_the_reference(figures: Callable[[str], None]) -> None:
    trainings = 100 if INTERPRETED else 1000
    counts = sum((check(seed) for seed in range(100, 100 + trainings)), Counter[str]())
    figures(f"{trainings} trainings, all as on the reference: {dict(counts)}")


@pytest.mark.skipif(INTERPRETED, reason="SpikingJelly's neurons are not those that are interpreted")
@pytest.mark.parametrize(
    "first", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(100, 400, 4))]
)
def test_training_on_spikingjelly_is_training_on_the_reference(first: int) -> None:
    pytest.importorskip("spikingjelly")
    for seed in range(first, first + 4):
        check(seed, "spikingjelly", (*METHODS, *METHODS_OF_SPIKINGJELLY))
