"""Whatever a recipe says: a cell that is interrupted and resumed ends as one that was not, bit by bit.

Recipes are drawn at random, on every backend and by every method, interrupted after one of their epochs and resumed by a
new experiment, as by a new process.
"""

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from drawn_cells import EVERY_METHOD, Drawn, another_kind_of_neuron
from test_resume import InterruptedAfter, assert_same

from sltt_bench.common.errors import UserError
from sltt_bench.kinds.training import train_cell
from sltt_bench.planning.plan import Cell
from sltt_bench.results import checkpoints
from sltt_bench.training import experiment
from sltt_bench.training.engine import TrainingDiverged
from sltt_bench.training.experiment import UnsupportedCell

EPOCHS = 3
TRAINED = (
    "train_loss",
    "train_top1",
    "test_loss",
    "test_top1",
    "test_top5",
    "firing_rate",
    "backward_passes",
    "lr",
)


def drawn_cell(seed: int) -> Cell:
    """The first that its backend serves."""
    draws = random.Random(seed)
    while True:
        drawn = Drawn.by(draws, EVERY_METHOD)
        backend = draws.choice(["native", "native", "reference", "spikingjelly"])
        overrides = {
            "data.limit": draws.choice([8, 11, 13]),
            "train.batch_size": draws.choice([4, 5]),
            "train.drop_last": draws.random() < 0.3,
            "train.epochs": EPOCHS,
            "train.optimizer": draws.choice(["sgd", "adamw"]),
            "train.schedule": draws.choice(["cosine", "constant"]),
            "train.precision": draws.choice(["fp32", "fp32", "bf16"]),
        }
        if draws.random() < 0.3:
            validation = {"split": "stratified", "share": 0.5, "seed": 1, "samples": 4}
            overrides |= {"data.limit": 20, "validation": validation}
        if backend == "reference" and draws.random() < 0.5:
            overrides |= another_kind_of_neuron(draws)
        try:
            cell = drawn.cell(backend, **overrides)
            experiment.assemble(cell, torch.device("cpu"), experiment.make_backend(cell))
        except (UserError, UnsupportedCell):
            continue
        if cell.recipe.data.name.startswith("digits"):  # the others need files
            return cell


def trained(
    cell: Cell, folder: Path, interrupted_after: int | None = None, *, resume: bool = False
) -> InterruptedAfter:
    """What reported the cell's epochs, its checkpoint in `folder`; it ends early where it is interrupted."""
    reporter = InterruptedAfter(interrupted_after, folder / "cell.pt")
    job = {
        "data_dir": "data",
        "resume": resume,
        "initial_weights": None,
        "checkpoint": str(folder / "cell.pt"),
    }
    try:
        train_cell(cell, job, reporter)
    except KeyboardInterrupt:
        assert interrupted_after is not None
    return reporter


def check(seed: int, folder: Path) -> Counter[str]:
    cell, after = drawn_cell(seed), random.Random(seed).choice([1, 2])
    told = (
        f"seed {seed}: {cell.method} on {cell.backend}, interrupted after {after}, {cell.recipe.model_dump()}"
    )
    whole, parts = folder / f"{seed}-whole", folder / f"{seed}-parts"
    whole.mkdir()
    parts.mkdir()
    torch.manual_seed(7)
    try:
        rows = trained(cell, whole).rows()
    except TrainingDiverged:
        return Counter(["diverged"])
    except ValueError as error:
        if "a batch of an epoch has one sample" not in str(error):
            raise
        return Counter(["refused"])
    torch.manual_seed(8)
    trained(cell, parts, interrupted_after=after)
    torch.manual_seed(9)  # the state of the process that goes on is another one
    resumed = trained(cell, parts, resume=True).rows()
    assert [row["epoch"] for row in resumed] == list(range(after + 1, EPOCHS + 1)), told
    for expected, row in zip(rows[after:], resumed, strict=True):
        kept = [column for column in TRAINED if column in expected]
        assert {name: row[name] for name in kept} == {name: expected[name] for name in kept}, told
    ended = [checkpoints.load(at / "cell.pt", of_cell="cell") for at in (parts, whole)]
    try:
        assert_same(*ended)
    except AssertionError as error:
        raise AssertionError(told) from error
    network = cell.recipe.model.name
    return Counter([f"backend {cell.backend}", f"method {cell.method}", f"network {network}"])


@pytest.mark.parametrize("seed", [2, 3, 5])
def test_a_resumed_cell_ends_as_one_that_was_not_interrupted(seed: int, tmp_path: Path) -> None:
    """Cells drawn at random, but for the largest networks, which take ten times as long and are no other case."""
    check(seed, tmp_path)


@pytest.mark.long
def test_many_resumed_cells_end_as_those_that_were_not_interrupted(
    figures: Callable[[str], None], tmp_path: Path
) -> None:
    counts = sum((check(seed, tmp_path) for seed in range(100, 400)), Counter[str]())
    figures(f"300 cells resumed, each as if it had not been interrupted: {dict(counts)}")
