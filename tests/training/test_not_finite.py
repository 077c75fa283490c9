"""What makes a loss or gradient infinite or not a number: data, the weights at hand, the format, training, the passes."""

from typing import Any

import pytest
import torch
from torch import nn

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
