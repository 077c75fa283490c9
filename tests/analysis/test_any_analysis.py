"""Whatever a recipe says: the ends of the families of methods are the methods that they should be, and what an analysis
says of gradients and multiplications is what trainings and estimates make of the same cell.

Recipes are drawn at random, kinds of neurons that the reference alone serves among them.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from drawn_cells import Drawn, another_kind_of_neuron
from torch import Tensor

from sltt_bench import methods
from sltt_bench.analysis.gradients import undisturbed
from sltt_bench.analysis.plan import _nothing_to_take_apart
from sltt_bench.analysis.watch import GradientWatch
from sltt_bench.common.errors import UserError
from sltt_bench.estimate.estimates import estimate_cell
from sltt_bench.planning.plan import Cell
from sltt_bench.results.schema import DRAWS_FILE, GRADIENTS_FILE, METHOD_GRADIENTS_FILE, OPERATIONS_FILE
from sltt_bench.training import experiment
from sltt_bench.training.experiment import Experiment, UnsupportedCell, training_mode

SAMPLES = 3
TOLERANCE = 1e-8
"""Of float64, relative."""
COMPARED = ("sltt", "bptt-d0.5")


def drawn_cell(seed: int) -> tuple[Cell, Experiment]:
    """On the reference in float64, with weights that make neurons fire; one that an analysis takes."""
    draws = random.Random(seed)
    while True:
        drawn = Drawn.by(draws, ["bptt"])
        neuron = another_kind_of_neuron(draws) if draws.random() < 0.3 else {}
        try:
            cell = drawn.cell("reference", **neuron)
            subject = experiment.assemble(cell, torch.device("cpu"), experiment.make_backend(cell))
        except (UserError, UnsupportedCell):
            continue
        if _nothing_to_take_apart(cell) is None:
            break
    generator = torch.Generator().manual_seed(9)
    subject.network.double()
    with torch.no_grad():
        for parameter in subject.network.parameters():
            parameter *= 1.5 if parameter.ndim > 1 else 1
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return cell, subject


@dataclass(frozen=True)
class Iteration:
    """What one iteration of a method makes, but for the optimiser's step."""

    gradient: Tensor
    """Of all parameters, one after the other."""
    further: dict[str, Tensor]
    """Loss, outputs and what is left in buffers."""


def iteration_of(method: str, subject: Experiment, x: Tensor, labels: Tensor) -> Iteration:
    subject = replace(subject, method=methods.create(method, subject.timesteps))
    subject.generator.manual_seed(0)
    with undisturbed(subject.network), training_mode(subject.network, True):
        torch.manual_seed(5)
        subject.optimizer.zero_grad(set_to_none=True)
        unroll = subject.backend.accumulate_gradients(subject, x, labels)
        pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in subject.network.parameters()]
        buffers = {name: buffer.double() for name, buffer in subject.network.named_buffers()}
        further = {"loss": unroll.summed_loss, "outputs": unroll.summed_outputs, **buffers}
        return Iteration(
            torch.cat([piece.flatten() for piece in pieces]),
            {name: value.detach().clone() for name, value in further.items()},
        )


def ends(timesteps: int) -> list[tuple[str, str]]:
    """Methods that are the same at T steps."""
    return [
        ("tbptt-w1", "sltt"), (f"tbptt-w{timesteps}", "bptt"), ("bptt-d0", "sltt"), ("bptt-d1", "bptt"),
        (f"bptt-ckpt{min(2, timesteps)}", "bptt"), (f"sltt-k{timesteps}", "sltt"),
        (f"sltt-k{timesteps}-unbiased", "sltt"),
    ]  # fmt: skip


def check(seed: int) -> Counter[str]:
    cell, subject = drawn_cell(seed)
    generator, data = torch.Generator().manual_seed(seed), cell.recipe.data
    shape = (subject.timesteps, *data.sample_shape) if subject.temporal else data.sample_shape
    x = 2 * torch.rand(SAMPLES, *shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(data.classes, (SAMPLES,), generator=generator)
    pairs = ends(subject.timesteps)
    names = dict.fromkeys([*(name for pair in pairs for name in pair), *COMPARED])
    made = {name: iteration_of(name, subject, x, labels) for name in names}
    apart: list[Any] = [
        (one, other, difference)
        for one, other in pairs
        for difference in _differences(made[one], made[other])
    ]
    apart += _of_the_analysis(subject, x, labels, cell, made)
    assert not apart, f"seed {seed}: {cell.recipe.model} at {cell.overrides}: {apart}"
    return Counter({f"neuron {cell.recipe.neuron.kind}": 1, f"network {cell.recipe.model.name}": 1})


def _differences(one: Iteration, other: Iteration) -> list[tuple[str, float]]:
    """What differs, and by how much, relative to it."""
    pairs = {"gradient": (one.gradient, other.gradient)}
    pairs |= {name: (value, other.further[name]) for name, value in one.further.items()}
    errors = {name: float((a - b).norm() / (b.norm() + 1e-9)) for name, (a, b) in pairs.items()}
    return [(name, error) for name, error in errors.items() if not error < TOLERANCE]


def _of_the_analysis(
    subject: Experiment, x: Tensor, labels: Tensor, cell: Cell, made: dict[str, Iteration]
) -> list[tuple[str, object, object]]:
    """What the rows of an analysis of the batch say otherwise than the iterations, and the cell's estimates."""
    rows: dict[str, list[dict[str, Any]]] = {}
    watch = GradientWatch(
        cell.recipe, subject, [(x, labels)], [0], lambda file, row: rows.setdefault(file, []).append(row), COMPARED
    )  # fmt: skip
    torch.manual_seed(5)
    watch.look(0)
    watch.count_operations()
    full, spatial = made["bptt"].gradient, made["sltt"].gradient
    (whole,) = (row for row in rows[GRADIENTS_FILE] if row["level"] == "network")
    every = rows[DRAWS_FILE][-1]
    assert every["drawn"] == subject.timesteps
    facts: list[tuple[str, Any, Any]] = [
        ("cosine", whole["cosine_mean"], _cosine(full, spatial)),
        ("spatial share", whole["spatial_share_mean"], _share(spatial, full)),
        ("temporal share", whole["temporal_share_mean"], _share(full - spatial, full)),
        ("all steps drawn", every["cosine_to_sltt_mean"], _cosine(spatial, spatial)),
        ("all steps drawn, beside BPTT", every["cosine_to_bptt_mean"], _cosine(full, spatial)),
    ]
    for row in rows[METHOD_GRADIENTS_FILE]:
        if row["level"] == "network":
            own = made[row["compared_method"]].gradient
            facts += [
                (f"cosine of {row['compared_method']}", row["cosine_mean"], _cosine(full, own)),
                (f"norm of {row['compared_method']}", row["norm_ratio_mean"], _share(own, full)),
            ]
    for row in rows[OPERATIONS_FILE]:
        if (method := row["counted_method"]) in ("bptt", "sltt"):
            train = cell.recipe.train.model_copy(update={"batch_size": SAMPLES})
            recipe = cell.recipe.model_copy(update={"train": train})
            estimate = estimate_cell(replace(cell, method=method, recipe=recipe), "cpu")
            backward = row["spatial_multiplications"] + row["temporal_multiplications"]
            facts += [
                (
                    f"{method}'s multiplications",
                    row["forward_multiplications"] + backward,
                    estimate.work("total"),
                )
            ]
    return [
        (name, said, true) for name, said, true in facts if said != pytest.approx(true, rel=1e-6, abs=1e-9)
    ]


def _cosine(one: Tensor, other: Tensor) -> float | None:
    norms = float(one.norm() * other.norm())
    return float(one @ other) / norms if norms else None


def _share(part: Tensor, whole: Tensor) -> float | None:
    return float(part.norm() / whole.norm()) if float(whole.norm()) else None


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 7])
def test_methods_meet_at_their_ends_and_an_analysis_says_what_they_do(seed: int) -> None:
    check(seed)


@pytest.mark.long
def test_many_methods_meet_at_their_ends_and_analyses_say_what_they_do(
    figures: Callable[[str], None],
) -> None:
    kinds = sum((check(seed) for seed in range(100, 500)), Counter[str]())
    figures(f"400 cells: {dict(sorted(kinds.items()))}")
