"""Random trainings whose batches several processes share, for tests/training/test_any_division.py."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from drawn_cells import METHODS, Drawn
from engine_parts import Batches, Setup
from torch import Tensor

from sltt_bench.common.errors import UserError
from sltt_bench.training import engine, experiment
from sltt_bench.training.distributed import ALONE, Ranks
from sltt_bench.training.experiment import Experiment, UnsupportedCell, training_mode

ITERATIONS = 5
FURTHER_METHODS = (
    "sltt-a", "sltt-a2-unbiased", "sltt-k2-unbiased", "bptt-l1", "ottt", "ottt-o", "s-tllr", "pp-prop", "e-prop", "rate",
)  # fmt: skip


def drawn(seed: int) -> tuple[Drawn, str]:
    """Returns a cell whose result does not depend on the division of batches, and its backend.

    It has no dropout and no statistics over a share of the batch. `conversion` is left out, since its
    thresholds follow the first process's samples.
    """
    draws = random.Random(seed)
    while True:
        one = Drawn.by(draws, METHODS + 2 * ("sltt-a2",) + FURTHER_METHODS)
        model = dict(one.overrides["model"])
        if "dropout" in model:
            model["dropout"] = 0
        of_images = model["name"] not in ("mlp", "spikformer", "nf-resnet34")
        synchronised = of_images and model["normalisation"] in ("batch", "bntt")
        if not synchronised and model.get("normalisation", "none") in ("batch", "bntt", "tdbn"):
            continue
        overrides = {**one.overrides, "model": model, "train.synchronise_batch_norm": synchronised}
        one = replace(one, overrides=overrides)
        backend = draws.choice(["reference", "native"])
        try:
            assembled(one, backend, ALONE)
        except (UserError, UnsupportedCell):
            continue
        return one, backend


def assembled(one: Drawn, backend: str, ranks: Ranks) -> Experiment:
    """Returns the experiment in float64, with weights that make neurons fire.

    Raises what a command raises when it refuses the cell.
    """
    cell = one.cell(backend)
    subject = experiment.assemble(cell, torch.device("cpu"), experiment.make_backend(cell), ranks)
    subject.network.double()
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in subject.network.parameters():
            parameter *= 1.5 if parameter.ndim > 1 else 1
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return subject


def trained(seed: int, ranks: Ranks) -> dict[str, Tensor]:
    """Returns all results of the training of this seed, by name."""
    one, backend = drawn(seed)
    subject = assembled(one, backend, ranks)
    data = one.cell(backend).recipe.data
    draws, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    shape = (subject.timesteps, *data.sample_shape) if subject.temporal else data.sample_shape
    setup: Any = Setup()
    left = {}

    def share(samples: int) -> tuple[Tensor, Tensor]:
        x = 2 * torch.rand(samples, *shape, generator=generator, dtype=torch.float64)
        return ranks.part(x), ranks.part(torch.randint(data.classes, (samples,), generator=generator))

    usual = draws.choice([4, 5])
    for number in range(ITERATIONS):
        samples = usual + draws.choice([0, 0, 0, -1, 1])
        totals = engine._Totals(torch.device("cpu"))
        with training_mode(subject.network, True):
            engine._train_batch(subject, setup, share(samples), totals)
        passes = torch.tensor(totals.backward_passes)
        left |= {f"training {number}": totals.over(ranks).sums, f"backward passes {number}": passes}
        if draws.random() < 0.3:
            totals = engine._evaluate(subject, setup, Batches([share(3)]), torch.device("cpu"))
            left[f"evaluation after {number}"] = torch.stack([*totals.sums, totals.spikes])
    return {**left, **subject.network.state_dict(), "draws of the method": subject.generator.get_state()}


def main(ranks: Ranks, out: Path, seeds: Sequence[int]) -> None:
    """Run the trainings of all seeds as one of the processes, and save their results."""
    from sltt_bench.backends.native import loop_invariants, saved_tensor_hooks

    saved_tensor_hooks.SMALL = loop_invariants.SMALL = 0
    torch.save({seed: trained(seed, ranks) for seed in seeds}, out / f"rank-{ranks.rank}.pt")
