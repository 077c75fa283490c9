"""A cell that is interrupted between two epochs goes on to the same weights and rows, bit by bit, under every rule."""

import io
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from own_rules import PullsAndCarries, register
from rich.console import Console

from sltt_bench.command_line.terminal import _Lines
from sltt_bench.kinds.training import train_cell
from sltt_bench.methods import Promises
from sltt_bench.planning.plan import Cell, Plan
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.results import checkpoints
from sltt_bench.results.schema import EPOCHS_FILE, RANKS_FILE
from sltt_bench.results.writer import ResultsError, RunFolder
from sltt_bench.running import runner
from sltt_bench.running.worker import Reporter

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
    goes_on_as_if_uninterrupted(rule, whole, parts)


def test_a_rule_of_ones_own_goes_on_with_what_it_carries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    register(PullsAndCarries, Promises(online=True), monkeypatch)
    goes_on_as_if_uninterrupted("broken", whole, parts)
    state = checkpoints.load(parts / "cell.pt", of_cell="cell")
    torch.save({**state, "method": None}, parts / "cell.pt")
    with pytest.raises(checkpoints.CheckpointError, match="nothing of what the method carries"):
        train("broken", parts, resume=True)


def goes_on_as_if_uninterrupted(rule: str, whole: Path, parts: Path) -> None:
    """A cell in folder `parts` that is cut off after its first epoch, beside one in `whole`."""
    expected = train(rule, whole).rows()
    with pytest.raises(KeyboardInterrupt):
        train(rule, parts, interrupted_after=1)
    torch.manual_seed(99)  # the state of the process that goes on is another one
    rows = train(rule, parts, resume=True).rows()
    assert [row["epoch"] for row in expected] == [1, 2]
    assert [row["epoch"] for row in rows] == [2]
    for column in ("train_loss", "train_top1", "test_loss", "test_top1", "firing_rate", "backward_passes"):
        assert [row[column] for row in rows] == [row[column] for row in expected[1:]], column
    ended = [checkpoints.load(folder / "cell.pt", of_cell="cell") for folder in (parts, whole)]
    assert_same(*ended)


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


@pytest.mark.parametrize(
    ("state", "fault"),
    [
        ({"cell_id": "another", "epochs": []}, "the checkpoint of another cell, another; delete it"),
        ({}, r"not a readable checkpoint \('model'\); delete it to start the cell anew"),
        ([1], "not a readable checkpoint"),
    ],
)
def test_a_checkpoint_that_is_not_the_cells_own_is_refused_before_its_rows_count(
    state: Any, fault: str, tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "abc.pt")
    events = io.StringIO()
    with pytest.raises(checkpoints.CheckpointError, match=rf"abc\.pt: {fault}"):
        Reporter(events, tmp_path / "abc.pt").resume(lambda state: state["model"])
    assert events.getvalue() == ""


def test_a_checkpoint_with_a_damaged_weight_is_not_gone_on_from(tmp_path: Path) -> None:
    path = tmp_path / "abc.pt"
    checkpoints.save(path, {"model": {"weight": torch.full((50,), 1.5)}})
    content = path.read_bytes()
    number = struct.pack("<f", 1.5)
    assert content.count(number) == 50
    path.write_bytes(content.replace(number, struct.pack("<f", 1.75), 1))
    with pytest.raises(
        checkpoints.CheckpointError, match=r"abc\.pt: .* does not agree with its checksum\); delete it"
    ):
        checkpoints.load(path, of_cell="abc")


def test_rows_in_a_checkpoint_of_another_version_are_kept_as_far_as_they_are_known(
    tmp_path: Path, smoke_cell: Callable[..., Cell]
) -> None:
    row = {"epoch": 1, "cold": True, "train_loss": 0.5, "a_column_of_tomorrow": 3}
    epochs = [{"attempt": 1, "facts": {}, "row": row}]
    folder, _ = told_of(smoke_cell(), tmp_path, epochs)
    (kept,) = folder.rows(EPOCHS_FILE)
    assert (kept["epoch"], kept["train_loss"], kept["attempt"]) == ("1", "0.5", "1")


def told_of(
    cell: Cell, out: Path, epochs: list[dict[str, Any]]
) -> tuple[RunFolder, "runner._RecordedAttempt"]:
    """A folder whose runner has heard of the epochs that a checkpoint carries."""
    folder = RunFolder.create(out, "digits")
    display = _Lines(Console(quiet=True), {})
    recording = runner._Recording([], display, out, lambda cell: None, {}, {})
    record = runner._RunRecord(recording, Plan(cell.recipe, (cell,)), folder)
    attempt = runner._RecordedAttempt(record, cell, (1, 1))
    attempt.hear("epochs", {"epochs": epochs})
    return folder, attempt


def test_an_epoch_that_was_trained_again_has_the_row_of_the_attempt_that_the_checkpoint_is_of(
    tmp_path: Path, smoke_cell: Callable[..., Cell]
) -> None:
    """Checkpoints every other epoch; the first attempt ends after epoch 3, the runner of the second before its row."""
    first, again = (
        {
            "attempt": attempt,
            "facts": {},
            "row": {"epoch": epoch, "cold": False, "train_loss": float(attempt)},
        }
        for attempt, epoch in ((1, 3), (2, 3))
    )
    fourth = {**again, "row": {**again["row"], "epoch": 4}}
    folder, attempt = told_of(smoke_cell(), tmp_path, [first])
    for _ in range(2):  # what is there is not written again
        attempt.hear("epochs", {"epochs": [again, fourth]})
    rows = [(row["epoch"], row["attempt"], row["train_loss"]) for row in folder.rows(EPOCHS_FILE)]
    assert rows == [("3", "1", "1.0"), ("3", "2", "2.0"), ("4", "2", "2.0")]


def test_a_checkpoint_carries_what_each_process_measured(
    tmp_path: Path, smoke_cell: Callable[..., Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[dict[str, Any]] = []
    monkeypatch.setattr(checkpoints, "save", lambda path, state: saved.append(state))
    reporter = Reporter(io.StringIO(), tmp_path / "cell.pt")
    for epoch in (1, 2):
        reporter.ranks(epoch, [{"train_s": 1.0 + rank, "epoch": epoch} for rank in (0, 1)])
        reporter.checkpoint({"row": {"epoch": epoch, "cold": False}})
    folder, attempt = told_of(smoke_cell(), tmp_path, saved[-1]["epochs"])
    attempt.hear("epochs", {"epochs": saved[-1]["epochs"]})
    rows = [(row["epoch"], row["rank"], row["train_s"]) for row in folder.rows(RANKS_FILE)]
    assert rows == [("1", "0", "1.0"), ("1", "1", "2.0"), ("2", "0", "1.0"), ("2", "1", "2.0")]
