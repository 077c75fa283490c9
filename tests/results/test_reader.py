"""Reading result folders: nothing is guessed, and what is not read is named with its reason."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from result_builder import MIB, RECIPE, HandmadeRun, varied

from sltt_bench.results import reader
from sltt_bench.results.reader import read_results
from sltt_bench.results.schema import CELLS_FILE, CIRCUMSTANCES, EPOCHS_FILE, FILES
from sltt_bench.results.tables import _expected
from sltt_bench.results.writer import ResultsError, RunFolder

EPOCH_ROW = {
    "schema_version": 1, "attempt": 1, "recipe": "digits", "recipe_hash": "r", "method": "bptt",
    "backend": "reference", "timesteps": 6, "batch_size": 64, "precision": "fp32", "device": "cpu",
    "seed": 0, "epoch": 1, "cold": True, "train_s": 99.0,
}  # fmt: skip
"""The first epoch of a first attempt; only the cell is left to say."""


def reasons(results: reader.Results) -> list[str]:
    return [skip.reason for skip in results.skipped]


def test_a_run_is_read_with_its_types_and_missing_numbers_are_nan(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "digits" / "a")
    run.cell("sltt-k2", seed=7, train_s=[5.0, 2.0], top1=[0.5, 0.75], peak_tensor_bytes=3 * MIB)
    results = read_results([tmp_path])
    (cell,) = results.cells.to_dict("records")
    assert (cell["method"], cell["seed"], cell["k"], cell["synthetic"]) == ("sltt-k2", 7, 2, False)
    assert results.epochs["train_s"].tolist() == [5.0, 2.0]
    assert results.epochs["cold"].tolist() == [True, False]
    assert results.epochs["peak_tensor_bytes"].tolist() == [3 * MIB, 3 * MIB]
    assert results.epochs["energy_j"].isna().all()
    assert results.skipped == ()


def test_what_the_writer_writes_is_read_back(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "digits")
    key = {
        "schema_version": 1, "cell_id": "abc", "attempt": 1, "recipe": "digits", "recipe_hash": "r",
        "method": "sltt", "backend": "reference", "k": None, "timesteps": 6, "batch_size": 64,
        "precision": "fp32", "device": "cpu", "seed": 0,
    }  # fmt: skip
    folder.write_provenance({"run": "x"})
    folder.append(EPOCHS_FILE, {**key, "epoch": 1, "cold": True, "train_s": 0.1})
    folder.append(
        CELLS_FILE,
        {
            **key,
            "kind": "run",
            "synthetic": False,
            "smoke": True,
            "status": "ok",
            "wall_s": 1,
            "reason": "a, b",
        },
    )
    folder.close()
    results = read_results([tmp_path])
    assert results.skipped == ()
    assert results.cells["reason"].tolist() == ["a, b"]
    assert results.epochs["train_s"].tolist() == [0.1]


def test_epochs_of_an_earlier_version_say_their_circumstances_in_cells_csv_alone(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "a")
    run.cell("bptt", overrides={"train.lr": 0.1})
    path = run.path / EPOCHS_FILE
    names = [column.name for column in CIRCUMSTANCES]
    new = read_results([tmp_path]).epochs
    assert new["overrides"].tolist() == ['{"train.lr": 0.1}'] * 3
    assert (set(new["kind"]), set(new["smoke"])) == ({"run"}, {False})
    pd.read_csv(path).drop(columns=names).to_csv(path, index=False)
    old = read_results([tmp_path])
    assert old.skipped == ()
    assert old.epochs["train_s"].tolist() == [5.0, 2.0, 2.0]
    assert set(old.epochs["kind"]) == {""}
    # A row of today behind those of then: the file is given the columns, empty where they were not written.
    row = {"schema_version": 1, **pd.read_csv(path).iloc[-1].dropna().to_dict(), "epoch": 4, "kind": "run"}
    folder = RunFolder(run.path)
    folder.append(
        EPOCHS_FILE, {**row, "overrides": new["overrides"].iloc[0], "synthetic": False, "smoke": False}
    )
    folder.close()
    both = read_results([tmp_path])
    assert both.skipped == ()
    assert both.epochs["kind"].tolist() == ["", "", "", "run"]


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_last_line_is_listed_and_never_data(tmp_path: Path, cut: int) -> None:
    run = HandmadeRun(tmp_path / "a")
    run.cell(train_s=[5.0, 2.0, 3.0])
    path = run.path / EPOCHS_FILE
    path.write_bytes(path.read_bytes()[:-cut])
    results = read_results([tmp_path])
    assert results.epochs["train_s"].tolist() == [5.0, 2.0]
    (skip,) = results.skipped
    assert skip.path.endswith("epochs.csv:4")
    assert "torn" in skip.reason


def test_a_row_with_a_wrong_number_of_fields_is_listed(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "a")
    run.cell(train_s=[5.0, 2.0])
    with (run.path / EPOCHS_FILE).open("a") as file:
        file.write("1,abc\n")
    results = read_results([tmp_path])
    assert len(results.epochs) == 2
    assert any("2 fields instead of" in reason for reason in reasons(results))


@pytest.mark.parametrize(
    ("figure", "value", "reason"),
    [
        ("train_s", "fast", "train_s is 'fast', not a number"),
        ("train_s", "-1", "train_s is '-1'"),
        ("test_top1", "94.4", "test_top1 is '94.4', not a share"),
        ("cold", "maybe", "cold is 'maybe', not true or false"),
        ("peak_tensor_bytes", "1.5", "peak_tensor_bytes is '1.5', not a whole number"),
    ],
)
def test_an_impossible_value_takes_its_row_out(tmp_path: Path, figure: str, value: str, reason: str) -> None:
    run = HandmadeRun(tmp_path / "a")
    cell_id = run.cell(train_s=[5.0, 2.0])
    rows = (run.path / EPOCHS_FILE).read_text().splitlines()
    names, last = rows[0].split(","), rows[-1].split(",")
    last[names.index(figure)] = value
    (run.path / EPOCHS_FILE).write_text("\n".join([*rows[:-1], ",".join(last)]) + "\n")
    results = read_results([tmp_path])
    assert results.epochs[["cell_id", "epoch"]].to_numpy().tolist() == [[cell_id, 1]]
    assert any(reason in reason for reason in reasons(results))


def test_every_column_that_is_a_share_is_read_as_one() -> None:
    """The meaning of a column says so in its first words or names its range."""
    shares = {
        column.name: _expected(column)
        for columns in FILES.values()
        for column in columns
        if re.match("(NeuroBench: )?share of|mean utilisation|.*, 0 to 1", column.meaning)
    }
    assert {"cpu_others_mean", "gpu_util_mean", "silent_share", "connection_sparsity"} <= set(shares)
    assert set(shares.values()) == {"a share from 0 to 1"}, shares


def test_a_later_attempt_replaces_the_same_epochs_of_an_earlier_one(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "a")
    run.cell(status="killed", reason="SIGKILL")
    cell_id = run.cell(attempt=2, train_s=[5.0, 2.0])
    run.append(EPOCHS_FILE, {**EPOCH_ROW, "cell_id": cell_id})
    results = read_results([tmp_path])
    (cell,) = results.cells.to_dict("records")
    assert (cell["status"], cell["attempts"]) == ("ok", 2)
    assert results.epochs["train_s"].tolist() == [5.0, 2.0]


def test_devices_of_attempts_are_told_by_their_epochs_too(tmp_path: Path) -> None:
    """An attempt whose runner was killed left epochs and no row in cells.csv."""
    run = HandmadeRun(tmp_path / "a")
    two = {"train_s": [5.0, 2.0], "device_name": ["another GPU", run.device_name]}
    run.cell(attempt=2, **two)
    run.cell("sltt", train_s=[5.0, 2.0])
    cells = read_results([tmp_path]).cells.set_index("method")
    assert dict(cells.attempt_devices) == {"bptt": 2, "sltt": 1}


def test_a_copied_run_counts_once_under_any_name(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "a")
    run.cell("bptt")
    run.cell("sltt", status="oom", reason="no memory")
    run.cell("sltt-k2", status="skipped", reason="interrupted")
    shutil.copytree(run.path, tmp_path / "backup" / "copy of a")
    results = read_results([tmp_path])
    assert sorted(results.cells["method"]) == ["bptt", "sltt", "sltt-k2"]
    assert len(results.epochs) == 3
    assert [reason.split(" (")[1] for reason in reasons(results)] == ["3 cells, counted once)"]


@pytest.mark.parametrize("file", [CELLS_FILE, EPOCHS_FILE])
def test_of_a_run_and_a_copy_with_other_figures_neither_counts(tmp_path: Path, file: str) -> None:
    run, other = HandmadeRun(tmp_path / "a"), HandmadeRun(tmp_path / "b")
    run.cell("bptt", 0)
    run.cell("sltt", 0)
    other.cell("bptt", 1)
    shutil.copytree(run.path, tmp_path / "altered")
    path = tmp_path / "altered" / file
    rows = pd.read_csv(path)
    saved = rows.assign(
        peak_tensor_bytes=5.0 if file == EPOCHS_FILE else None
    )  # a column more changes nothing
    saved.to_csv(path, index=False, float_format="%.7g")
    assert len(read_results([tmp_path]).cells) == 3
    column = "train_s" if file == EPOCHS_FILE else "last_test_top1"
    rows[column] = rows[column].where(rows["method"] != "sltt", rows[column] * 0.9)
    rows.to_csv(path, index=False)
    results = read_results([tmp_path])
    assert sorted(zip(results.cells["method"], results.cells["seed"], strict=True)) == [
        ("bptt", 0),
        ("bptt", 1),
    ]
    reasons = [skip.reason for skip in results.skipped if "other figures" in skip.reason]
    assert reasons == [
        f"a copy of {one} with other figures (1 cell): none of them is read"
        for one in (tmp_path / "altered", run.path)
    ]
    assert not any("no ending" in skip.reason for skip in results.skipped)


def test_of_a_run_and_its_earlier_copy_the_fuller_one_counts(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "z")
    run.cell("bptt")
    shutil.copytree(run.path, tmp_path / "a-copied-meanwhile")
    run.cell("sltt")
    results = read_results([tmp_path])
    assert sorted(results.cells["method"]) == ["bptt", "sltt"]
    assert len(results.epochs) == 6


def test_a_folder_named_twice_or_inside_another_source_counts_once(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "digits" / "a")
    run.cell()
    results = read_results([tmp_path, run.path, tmp_path])
    assert len(results.cells) == 1
    assert results.skipped == ()


def test_runs_are_in_the_order_of_their_starts_wherever_they_lie(tmp_path: Path) -> None:
    starts = {"a": "2026-03-01T00:00:00+00:00", "b/deep": "2026-01-01T00:00:00+00:00", "z": ""}
    for seed, (folder, started) in enumerate(starts.items()):
        HandmadeRun(tmp_path / folder, facts={"started_utc": started}).cell(seed=seed)
    results = read_results([tmp_path])
    assert [run.path.name for run in results.runs] == ["z", "deep", "a"]
    assert dict(zip(results.cells["run"], results.cells["seed"], strict=True)) == {0: 2, 1: 1, 2: 0}


def test_repetitions_of_an_experiment_are_both_kept(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b")):
        HandmadeRun(tmp_path / name, number=10 * number).cell()
    assert len(read_results([tmp_path]).cells) == 2


def test_epochs_of_a_cell_that_has_not_ended_are_no_result(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "a")
    run.cell("bptt")
    run.append(EPOCHS_FILE, {**EPOCH_ROW, "cell_id": "unfinished"})
    results = read_results([tmp_path])
    assert set(results.epochs["cell_id"]) == set(results.cells["cell_id"])
    assert reasons(results) == ["1 cell with epochs but no ending: still running, or cut off"]


def test_a_run_in_which_no_cell_ended_is_listed(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "a")
    results = read_results([tmp_path])
    assert len(results.cells) == 0
    assert reasons(results) == ["no cells.csv: no cell of this run has ended yet"]
    assert run.path.name in results.skipped[0].path


@pytest.mark.parametrize("version", ["0", "2", "seven"])
def test_rows_of_another_schema_version_are_refused_by_name(tmp_path: Path, version: str) -> None:
    run = HandmadeRun(tmp_path / "a")
    run.cell()
    for name in (CELLS_FILE, EPOCHS_FILE):
        lines = (run.path / name).read_text().splitlines()
        changed = [lines[0], *(line.replace("1,", f"{version},", 1) for line in lines[1:])]
        (run.path / name).write_text("\n".join(changed) + "\n")
    results = read_results([tmp_path])
    assert len(results.cells) == len(results.epochs) == 0
    assert f"schema_version is {version!r}, not 1, the version of the format" in reasons(results)[0]


def test_foreign_files_are_listed_and_not_read(tmp_path: Path) -> None:
    HandmadeRun(tmp_path / "a").cell()
    foreign = tmp_path / "other"
    foreign.mkdir()
    (foreign / "cells.csv").write_text("cell,volts\n1,3.7\n")
    (tmp_path / "README.md").write_text("what the folder holds")
    (tmp_path / "notes.txt").write_text("hello")
    binary = tmp_path / "binary"
    binary.mkdir()
    (binary / "cells.csv").write_bytes(b"\xff\xfe\x00\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "cells.csv").write_bytes(b"")
    results = read_results([tmp_path])
    reasons = {Path(skip.path).relative_to(tmp_path).as_posix(): skip.reason for skip in results.skipped}
    assert len(results.cells) == 1
    assert reasons["other/cells.csv"].startswith("not a cells.csv of sltt-bench: without column")
    assert reasons["."] == "files that belong to no run: notes.txt"
    assert reasons["binary/cells.csv"].startswith("cannot be read as CSV: UTF-16")
    assert reasons["empty/cells.csv"] == "empty file"


def test_an_earlier_report_is_not_taken_for_results(tmp_path: Path) -> None:
    HandmadeRun(tmp_path / "a").cell()
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "summary.csv").write_text("recipe\n")
    assert reasons(read_results([tmp_path])) == ["an earlier report, not results"]


def test_broken_provenance_and_cell_files_do_not_hide_the_measurements(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "a")
    cell_id = run.cell(recipe=varied(RECIPE, claims=[1]))
    (run.path / "provenance.json").write_text("{")
    (run.path / "cells" / f"{cell_id}.json").write_text("[1]")
    results = read_results([tmp_path])
    assert len(results.cells) == 1
    assert len(reasons(results)) == 1
    assert reasons(results)[0].startswith("cannot be read as JSON: Expecting property name")
    assert results.runs[0].recipe_of(cell_id) == json.loads(json.dumps(RECIPE))


def test_the_timeline_of_a_run_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "a")
    cell_id = run.cell()
    run.timeline(cell_id, [{"elapsed_s": 0.5, "phase": "train", "nvml_used_bytes": 7}])
    (read,) = read_results([tmp_path]).runs
    assert read.timeline[["cell_id", "nvml_used_bytes"]].to_numpy().tolist() == [[cell_id, 7]]


@pytest.mark.parametrize("name", ["missing", "file"])
def test_a_source_that_is_no_folder_is_an_error_that_says_so(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match=r"give a folder with results"):
        read_results([tmp_path / name])


def test_an_empty_folder_gives_empty_results(tmp_path: Path) -> None:
    results = read_results([tmp_path])
    assert (len(results.cells), len(results.epochs), results.runs) == (0, 0, ())
