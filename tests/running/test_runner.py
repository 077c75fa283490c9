"""What a run does before, between and after its processes: tested without starting one where that is enough."""

import json
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from plugin import install
from typer.testing import CliRunner

from sltt_bench.command_line import commands
from sltt_bench.command_line.cli import app
from sltt_bench.command_line.terminal import _Lines
from sltt_bench.kinds import KINDS
from sltt_bench.planning.plan import Cell, Plan, Request, make_plans
from sltt_bench.results import tables
from sltt_bench.results.cell_row import Outcome, cell_key, cell_row, circumstances
from sltt_bench.results.reader import Run
from sltt_bench.results.schema import (
    CELL_COLUMNS,
    CELL_KEY,
    CELLS_FILE,
    CIRCUMSTANCES,
    EPOCHS_FILE,
    FILES,
    Kind,
)
from sltt_bench.results.writer import ResultsError, RunFolder, read_provenance, read_rows
from sltt_bench.running import lanes as lanes_module
from sltt_bench.running.interruptions import Interrupted
from sltt_bench.running.lanes import Attempt, Lanes
from sltt_bench.running.runner import NotRunnable, PlannedRun, run_plans

MakeCell = Callable[..., Cell]


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["run", *arguments, "--device", "cpu", "--no-estimate"])
    return result.exit_code, result.output


def silent() -> Any:
    from rich.console import Console

    return _Lines(Console(quiet=True), {})


def no_weights(cell: Cell) -> None:
    return None


def refused(cell: Cell) -> None:
    raise NotRunnable("for want of a prerequisite")


# Kinds of cell ----------------------------------------------------------------------------------


def test_every_kind_has_an_entry_a_function_and_files_of_the_format() -> None:
    assert set(KINDS) == set(get_args(Kind))
    for kind in KINDS.values():
        assert callable(kind.load())
        assert set(kind.files) <= set(FILES)


def test_rows_of_a_cell_have_the_documented_columns(smoke_cell: MakeCell) -> None:
    cell, outcome = smoke_cell("sltt-k2"), Outcome("ok", attempt=3, facts={"precision": "fp32"})
    assert list(cell_key(cell, outcome)) == [column.name for column in CELL_KEY]
    row = cell_row(cell, outcome, {1: {"test_top1": "0.5"}, 2: {"test_top1": "0.5"}, 3: {"test_top1": ""}})
    assert list(row) == [column.name for column in CELL_COLUMNS]
    assert (row["best_epoch"], row["last_test_top1"], row["epochs_done"]) == (1, None, 3)


# Before the first process -----------------------------------------------------------------------


def test_a_missing_data_set_is_said_once_and_before_anything_runs(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, output = run("mnist", "--data-dir", str(tmp_path / "nowhere"), "--out", str(out))
    assert code == 2
    assert output.count("data set 'mnist' is not there") == 1
    assert "--synthetic" in output
    assert not out.exists()


def test_data_that_nothing_reads_are_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sltt_bench.command_line.commands.start_runs", lambda runs, display, **options: [])
    assert run("mnist", "--synthetic", "--data-dir", str(tmp_path))[0] == 0
    estimate = ["estimate", "mnist", "--out", str(tmp_path)]
    assert CliRunner().invoke(app, estimate).exit_code == 0


def test_resume_finds_its_run_while_another_plan_of_the_recipe_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []

    def open_only(runs: list[PlannedRun], display: Any, **options: Any) -> list[Outcome]:
        for each in runs:
            folder = each.open_folder()
            opened.append(folder.path)
            folder.write_provenance({"plan": [cell.cell_id for cell in each.plan]})
            folder.close()
        return []

    monkeypatch.setattr("sltt_bench.command_line.commands.start_runs", open_only)
    monkeypatch.setattr("sltt_bench.report.print_run", lambda folders, **options: None)
    first = ("digits", "--smoke", "--method", "sltt", "--out", str(tmp_path))
    assert run(*first)[0] == 0
    other = RunFolder(tmp_path / "digits" / "99999999-999999-ffff")  # newer, and held by a run under way
    other.write_provenance({"plan": ["another"]})
    code, output = run(*first, "--resume")
    other.close()
    assert code == 0, output
    assert opened[0] == opened[1]


def test_an_unfinished_run_is_resumed_before_a_finished_one_of_a_later_name(tmp_path: Path) -> None:
    plan = two_cells()
    for name, status in (("20260101-110000-aaaa", "killed"), ("20260101-120000-bbbb", "ok")):
        folder = RunFolder(tmp_path / "digits" / name)  # the clock was set back an hour between the two
        folder.write_provenance({"plan": [cell.cell_id for cell in plan]})
        for cell in plan:
            folder.append(CELLS_FILE, cell_row(cell, Outcome(status), {}))  # type: ignore[arg-type]
        folder.close()
    earlier = commands._earlier_run(plan, tmp_path)
    assert earlier is not None
    assert earlier.name == "20260101-110000-aaaa"


def test_a_resumed_run_reads_the_rows_of_its_folder_once_and_again_for_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, folder = two_cells(), folder_of(tmp_path)
    folder.write_provenance({"plan": [cell.cell_id for cell in plan]})
    for cell in plan:
        finish(cell, folder)
    folder.close()
    read: list[str] = []
    whole_lines = tables.whole_lines

    def counted(path: Path, *arguments: Any, **options: Any) -> Any:
        read.append(path.name)
        return whole_lines(path, *arguments, **options)

    monkeypatch.setattr(tables, "whole_lines", counted)
    code, output = run(
        "digits", "--smoke", "--method", "bptt,sltt", "--seed", "0", "--out", str(tmp_path), "--resume"
    )
    assert code == 0, output
    assert output.count("finished before, kept") == 2
    assert sorted(read) == [CELLS_FILE, CELLS_FILE, EPOCHS_FILE, EPOCHS_FILE]


@pytest.mark.parametrize(("keep", "left"), [("true", 1), ("false", 0)])
def test_the_last_checkpoint_is_kept_where_none_are_written_on_the_way_and_where_a_later_command_keeps_none(
    keep: str, left: int, tmp_path: Path
) -> None:
    settings = ("--set", "train.checkpoint_every=0", "--set", f"train.keep_checkpoint={keep}")
    arguments = ("digits", "--smoke", "--method", "sltt", "--seed", "0", "--out", str(tmp_path))
    for further in (settings, ("--resume",)):
        code, output = run(*arguments, *further)
        assert code == 0, output
        assert len(list(tmp_path.glob("digits/*/checkpoints/*.pt"))) == left
    assert "finished before, kept" in output


def test_a_dry_run_says_what_resume_would_keep_continue_and_begin(tmp_path: Path) -> None:
    arguments = ("digits", "--smoke", "--method", "bptt,sltt", "--seed", "0,1", "--resume", "--dry-run")
    code, output = run(*arguments, "--out", str(tmp_path / "none"))
    assert (code, output.count("no earlier run has this plan")) == (0, 1)
    assert not (tmp_path / "none").exists()
    request = Request(methods=["bptt", "sltt"], seeds=[0, 1], smoke=True, device="cpu")
    (plan,) = make_plans("digits", request)
    folder = folder_of(tmp_path)
    folder.write_provenance({"plan": [cell.cell_id for cell in plan]})
    finish(plan.cells[0], folder)
    folder.checkpoint_path(plan.cells[2].cell_id).touch()
    folder.close()
    before = sorted(tmp_path.rglob("*"))
    code, output = run(*arguments, "--out", str(tmp_path))
    assert code == 0
    assert f"--resume: 1 of 4 cells finished in {folder.path}\n" in output
    said = {fields[0]: " ".join(fields[3:]) for line in output.splitlines() if (fields := line.split())}
    words = ("kept", "runs", "goes on", "runs")
    assert [said[cell.cell_id] for cell in plan] == list(words)
    assert sorted(tmp_path.rglob("*")) == before


# Endings ----------------------------------------------------------------------------------------


def folder_of(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "digits")


def finish(cell: Cell, folder: RunFolder) -> None:
    """The rows of a cell that finished after an epoch."""
    folder.append(EPOCHS_FILE, an_epoch(cell))
    folder.append(CELLS_FILE, cell_row(cell, Outcome("ok"), {1: {}}))


def an_epoch(cell: Cell) -> dict[str, Any]:
    """The row of its first epoch."""
    outcome = Outcome("ok")
    return {**cell_key(cell, outcome), **circumstances(cell, outcome), "epoch": 1, "cold": False}


def two_cells() -> Plan:
    (plan,) = make_plans("digits", Request(methods=["bptt", "sltt"], seeds=[0], smoke=True, device="cpu"))
    return plan


def test_a_cell_that_cannot_be_run_is_skipped_with_its_reason(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    runs = [PlannedRun(two_cells(), lambda: folder)]
    outcomes = run_plans(runs, silent(), data_dir=tmp_path, initial_weights=refused, provenance={})
    assert [outcome.status for outcome in outcomes] == ["skipped", "skipped"]
    rows = read_rows(folder.path / CELLS_FILE)
    assert [row["reason"] for row in rows] == ["for want of a prerequisite"] * 2
    assert [row["wall_s"] for row in rows] == ["", ""], "what never started took no time"


@pytest.mark.parametrize("fault", [KeyError("colour"), IndexError(3), LookupError("any")])
def test_a_fault_of_the_tool_is_no_skipped_cell(tmp_path: Path, fault: Exception) -> None:
    display = silent()

    def raises(*arguments: Any) -> None:
        raise fault

    display.cell_started = raises
    folder = folder_of(tmp_path)
    runs = [PlannedRun(two_cells(), lambda: folder)]
    with pytest.raises(type(fault)):
        run_plans(runs, display, data_dir=tmp_path, initial_weights=no_weights, provenance={})
    rows = read_rows(folder.path / CELLS_FILE)
    assert [row["method"] for row in rows] == ["bptt", "sltt"]
    assert all(row["reason"].startswith(f"the run was ended by {type(fault).__name__}") for row in rows)


def test_cells_that_were_not_begun_get_their_rows_without_a_search_for_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of a hundred thousand epochs was read for each of a thousand cells while the user waited after Ctrl-C."""
    plan, folder = two_cells(), folder_of(tmp_path)
    folder.append(EPOCHS_FILE, an_epoch(plan.cells[1]))
    searched: list[str | None] = []
    read = RunFolder.rows

    def counted(folder: RunFolder, file: str, of_cell: str | None = None) -> Any:
        searched.append(of_cell)
        return read(folder, file, of_cell)

    def interrupted(*arguments: Any) -> None:
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(RunFolder, "rows", counted)
    display = silent()
    display.cell_started = interrupted
    with pytest.raises(Interrupted):
        run_plans(
            [PlannedRun(plan, lambda: folder)],
            display,
            data_dir=tmp_path,
            initial_weights=no_weights,
            provenance={},
        )
    assert searched == [plan.cells[1].cell_id]
    rows = read_rows(folder.path / CELLS_FILE)
    assert [(row["status"], row["epochs_done"]) for row in rows] == [("skipped", "0"), ("skipped", "1")]


def test_the_folder_holds_every_cell_of_the_plan_from_the_start(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    runs = [PlannedRun(two_cells(), lambda: folder)]
    run_plans(runs, silent(), data_dir=tmp_path, initial_weights=refused, provenance={})
    stored = {json.loads(path.read_text())["cell_id"] for path in (folder.path / "cells").iterdir()}
    assert stored == {cell.cell_id for cell in two_cells()}


def test_cells_that_measure_nothing_share_a_process_which_outlives_a_fault_and_is_replaced_if_it_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smoke_cell: MakeCell
) -> None:
    install(tmp_path, monkeypatch)
    started: list[Any] = []
    real = lanes_module._Process

    def counted(*arguments: Any) -> Any:
        started.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(lanes_module, "_Process", counted)
    names = ("sltt", "raises", "bptt", "exits", "sltt")
    attempts = [Attempt(replace(smoke_cell(name), kind="preflight"), Outcome("error")) for name in names]
    with Lanes() as lanes:
        lanes.run(iter(attempts))
    assert [attempt.outcome.status for attempt in attempts] == ["ok", "error", "ok", "error", "ok"]
    assert attempts[1].outcome.reason == "ZeroDivisionError: planted fault"
    assert "exit code 7" in attempts[3].outcome.reason
    assert len(started) == 2
    assert attempts[0].outcome.facts["peak_tensor_bytes"] == attempts[4].outcome.facts["peak_tensor_bytes"]


def test_each_attempt_keeps_what_it_was_measured_with(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    path = folder.path

    folder.close()

    def attempt(version: str, display: Any) -> None:
        facts = {"command": ["sltt-bench", version], "packages": {"torch": version}, "started_utc": version}
        runs = [PlannedRun(two_cells(), lambda: RunFolder(path))]
        with suppress(KeyError):
            run_plans(runs, display, data_dir=tmp_path, initial_weights=no_weights, provenance=facts)

    class Failing(_Lines):
        """Ends the run when the first cell's process has said what it runs on."""

        def epoch(self, cell: Cell, row: Any) -> None:
            raise KeyError("enough")

    from rich.console import Console

    attempt("2.4", Failing(Console(quiet=True), {}))
    first = read_provenance(path)
    attempt("2.14", Failing(Console(quiet=True), {}))
    both = read_provenance(path)
    assert both["packages"] == {"torch": "2.4"}, "what the run began with is never rewritten"
    assert both["commands"][0] == first["commands"][0]
    cell_id = two_cells().cells[0].cell_id
    assert both["cells"][cell_id]["attempts"]["1"] == first["cells"][cell_id]["attempts"]["1"]
    run = Run(path, both)
    assert run.measured_with(cell_id, 1)["packages"] == {"torch": "2.4"}
    assert run.measured_with(cell_id, 2)["packages"] == {"torch": "2.14"}
    assert run.measured_with("unknown", 1)["packages"] == {"torch": "2.4"}
    rows = [row for row in read_rows(path / CELLS_FILE) if row["cell_id"] == cell_id]
    assert [row["attempt"] for row in rows] == ["1", "2"]


@pytest.mark.parametrize("damage", [{"cells": 3}, {"cells": {"a": [1]}}, {"commands": {}}, {}])
def test_damaged_provenance_is_read_as_far_as_it_goes(damage: dict[str, Any]) -> None:
    of_cell = {"backend": {"neuron": "reference"}, "provenance": {"torch_flags": {"threads": 1}}}
    old = {"packages": {"torch": "2.4"}, "cells": {"a": of_cell}}
    known = Run(Path(), {**old, **damage}).measured_with("a", 1)
    assert known["packages"] == {"torch": "2.4"}
    if not damage:
        assert known["backend"] == {"neuron": "reference"}, "from before attempts were told apart"
        assert known["torch_flags"] == {"threads": 1}


def test_a_full_disk_at_the_row_of_a_cell_does_not_train_it_again(tmp_path: Path) -> None:
    real = RunFolder.append

    def full(folder: RunFolder, file: str, row: Any) -> None:
        if file == CELLS_FILE:
            raise ResultsError(f"{folder.path / file}: a row could not be written (No space left on device)")
        real(folder, file, row)

    arguments = ("digits", "--smoke", "--method", "sltt", "--seed", "0", "--out", str(tmp_path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "append", full)
        code, output = run(*arguments)
    assert code == 2
    assert "No space left on device" in output
    code, output = run(*arguments, "--resume")
    assert code == 0, output
    (folder,) = (tmp_path / "digits").iterdir()
    assert [row["epoch"] for row in read_rows(folder / EPOCHS_FILE)] == ["1", "2"]
    (cell,) = read_rows(folder / CELLS_FILE)
    assert (cell["status"], cell["attempt"], cell["epochs_done"]) == ("ok", "2", "2")
    names = [column.name for column in CIRCUMSTANCES]
    assert [cell[name] for name in names] == ["run", cell["device_name"], "{}", "false", "true"]
    assert cell["device_name"]
    for epoch in read_rows(folder / EPOCHS_FILE):
        assert [epoch[name] for name in names] == [cell[name] for name in names]
