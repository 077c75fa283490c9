"""A cell that is interrupted between two epochs goes on to the same weights and rows, bit by bit, under every rule."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from sltt_bench.kinds.training import train_cell
from sltt_bench.plan import Cell
from sltt_bench.recipe import load_recipe
from sltt_bench.results import checkpoints
from sltt_bench.results.writer import ResultsError
from sltt_bench.worker import Reporter

RULES = ("sltt-k2", "sltt-a2-unbiased", "ottt-o", "s-tllr", "bptt-ckpt2")
MORE_RULES = (
    *("bptt", "bptt-d0.5", "tbptt-w2", "sltt", "sltt-k2-unbiased", "sltt-a2", "ottt", "pp-prop", "e-prop"),
    "rate",
)
RECURRENT = {
    "data.limit": 16,
    "model.hidden": [8],
    "model.dropout": 0.2,
    "loss.window": 8,
    "train.batch_size": 8,
}


class InterruptedAfter(Reporter):
    """Ends the cell when the checkpoint of an epoch stands."""

    def __init__(self, epoch: int | None, checkpoint: Path) -> None:
        self.stream = io.StringIO()
        super().__init__(self.stream, checkpoint)
        self._last = epoch

    def checkpoint(self, state: dict[str, Any]) -> None:
        super().checkpoint(state)
        if self._last is not None and state["row"]["epoch"] >= self._last:
            raise KeyboardInterrupt

    def rows(self) -> list[Mapping[str, Any]]:
        """The epochs that were sent."""
        events = map(json.loads, self.stream.getvalue().splitlines())
        return [event["row"] for event in events if event["event"] == "epoch"]


def train(
    rule: str,
    folder: Path,
    interrupted_after: int | None = None,
    *,
    resume: bool = False,
    reporters: list[InterruptedAfter] | None = None,
) -> InterruptedAfter:
    """The cell's epochs, trained in this process; what reports them is added to `reporters` before it begins."""
    recipe = load_recipe("sequential-digits", RECURRENT | {"train.epochs": 2}, chosen_methods=[rule])
    cell = Cell(recipe=recipe, method=rule, backend="reference", seed=0, device="cpu")
    reporter = InterruptedAfter(interrupted_after, folder / "cell.pt")
    if reporters is not None:
        reporters.append(reporter)
    job = {
        "data_dir": "data",
        "resume": resume,
        "initial_weights": None,
        "checkpoint": str(folder / "cell.pt"),
    }
    train_cell(cell, job, reporter)
    return reporter


@pytest.mark.parametrize(
    "rule", [*RULES, *(pytest.param(rule, marks=pytest.mark.long) for rule in MORE_RULES)]
)
def test_a_resumed_cell_ends_with_the_weights_and_losses_of_an_uninterrupted_one(
    rule: str, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    expected = train(rule, whole).rows()
    with pytest.raises(KeyboardInterrupt):
        train(rule, parts, interrupted_after=1)
    torch.manual_seed(99)  # the state of the process that goes on is another one
    rows = train(rule, parts, resume=True).rows()
    assert [row["epoch"] for row in expected] == [1, 2]
    assert [row["epoch"] for row in rows] == [2]
    for column in ("train_loss", "train_top1", "test_loss", "test_top1", "firing_rate", "backward_passes"):
        assert [row[column] for row in rows] == [row[column] for row in expected[1:]], column
    assert_same(checkpoints.load(parts / "cell.pt"), checkpoints.load(whole / "cell.pt"))


def test_an_epoch_whose_checkpoint_finds_the_disk_full_still_has_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, state: dict[str, Any]) -> None:
        raise ResultsError("no space left")

    monkeypatch.setattr(checkpoints, "save", full)
    reporters: list[InterruptedAfter] = []
    with pytest.raises(ResultsError, match="no space left"):
        train("sltt", tmp_path, reporters=reporters)
    assert [row["epoch"] for row in reporters[0].rows()] == [1]


def assert_same(resumed: Any, whole: Any) -> None:
    """Equal to the last bit, times left out."""
    if isinstance(whole, torch.Tensor):
        assert torch.equal(resumed, whole)
    elif isinstance(whole, dict):
        assert resumed.keys() == whole.keys()
        for key in whole.keys() - {"row", "epochs"}:
            assert_same(resumed[key], whole[key])
    elif isinstance(whole, list | tuple):
        for one, other in zip(resumed, whole, strict=True):
            assert_same(one, other)
    else:
        assert resumed == whole
