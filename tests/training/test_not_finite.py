"""What makes a loss or gradient infinite or not a number: data, the weights at hand, the format, training, the passes."""

from typing import Any

import pytest
import torch
from engine_parts import Batches, Rows, Setup
from torch import nn

from sltt_bench.common.failures import DIVERGED
from sltt_bench.measure import Profiler
from sltt_bench.planning.plan import Cell
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.training import engine, experiment
from sltt_bench.training.not_finite import likely_cause

FINITE = torch.ones(2, 3)


def network(weight: float = 1.0) -> nn.Module:
    layer = nn.Linear(3, 2)
    nn.init.constant_(layer.weight, weight)
    return nn.Sequential(layer)


CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "data": ({"inputs": [FINITE, FINITE * float("nan")], "epochs": 3}, "mend the data", "train.lr"),
    "a checkpoint": ({"epochs": 0, "weight": float("nan")}, "0.weight was not finite before any training", "train.lr"),
    "fp16": ({"epochs": 2, "precision": "fp16"}, "use train.precision=bf16 or fp32", "train.lr"),
    "training in fp32": ({"epochs": 2, "weight": float("inf")}, "lower train.lr", "precision"),
    "training in bf16": (
        {"epochs": 2, "weight": float("inf"), "precision": "bf16"},
        "lower train.lr, or use train.precision=fp32, not bf16",
        "data",
    ),
    "the first epoch": ({"epochs": 1, "weight": float("inf")}, "see that the data are finite", "precision"),
    "the passes": ({"epochs": 0, "inputs": [FINITE]}, "fewer timesteps", "train.lr"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_cause_has_its_own_remedy(case: str) -> None:
    facts, named, not_named = CASES[case]
    facts = {"precision": "fp32", **facts}
    cause = likely_cause(network(facts.pop("weight", 1.0)), facts.pop("precision"), **facts)
    assert named in cause
    assert not_named not in cause


def test_weights_that_are_not_finite_end_a_training_whose_loss_stays_finite() -> None:
    """A neuron whose potential is not a number does not fire, and the classes become equally likely."""
    recipe = {"model": {"name": "mlp", "hidden": [8]}}
    cell = Cell(load_recipe("digits", recipe), "sltt", "reference", seed=0, device="cpu")
    subject = experiment.assemble(cell, torch.device("cpu"), experiment.make_backend(cell))
    x = torch.ones(4, 1, 8, 8)
    x[0] = torch.nan
    setup = engine.TrainingSetup(
        train=Batches([(x, torch.arange(4))] * 2),
        evaluated={},
        preprocess=Setup.preprocess,
        schedule=experiment.build_schedule(cell.recipe, subject.optimizer),
        epochs=2,
        checkpoint_every=0,
    )
    listener: Any = Rows()
    with Profiler(torch.device("cpu")) as profiler, pytest.raises(engine.TrainingDiverged) as failure:
        engine.train(subject, setup, profiler, listener)
    (row,) = listener.rows
    assert row["train_loss"] < 4
    assert str(failure.value).startswith(DIVERGED)
    assert "weights that are not finite" in str(failure.value)
    assert "see that the data are finite" in str(failure.value)
