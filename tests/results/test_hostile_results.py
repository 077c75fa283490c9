"""Result files that a crash or a person has touched: named with file and line, never a figure, never a traceback."""

import errno
import json
import os
import random
import re
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from checkout import RESULTS
from result_builder import MIB, RECIPE, HandmadeRun, told
from rich.console import Console
from thinned import thinned
from typer.testing import CliRunner

from sltt_bench.command_line.cli import app
from sltt_bench.command_line.run_overview import lines, overview
from sltt_bench.command_line.submission import check
from sltt_bench.planning.plan import Cell
from sltt_bench.planning.recipe_fields import MAX_SEED
from sltt_bench.report import print_run
from sltt_bench.results import tables
from sltt_bench.results.progress import progress_of
from sltt_bench.results.reader import Results, read_results
from sltt_bench.results.schema import (
    BENCH_FILE,
    CELLS_FILE,
    EPOCHS_FILE,
    FILES,
    PROVENANCE_FILE,
    RANKS_FILE,
    ROW_KEYS,
    TIMELINE_FILE,
    TUNING_FILE,
)
from sltt_bench.results.tables import Skipped, read_rows
from sltt_bench.results.writer import ResultsError, RunFolder

Damage = Callable[[str], str | bytes]
"""The text of a file → what became of it."""


def handmade(folder: Path) -> Path:
    run = HandmadeRun(folder / "digits" / "a")
    for seed in (0, 1):
        run.cell("bptt", seed, train_s=[5.0, 2.0, 3.0], top1=[0.2, 0.5, 0.6], peak_tensor_bytes=4 * MIB)
        run.cell("sltt", seed, train_s=[4.0, 1.0, 1.5], top1=[0.2, 0.5, 0.6], peak_tensor_bytes=1 * MIB)
    return run.path


def with_value(column: str, value: str) -> Damage:
    """Puts a value into a column of the second row."""

    def change(text: str) -> str:
        lines = text.split("\n")
        fields = fields_of(lines[2])
        fields[fields_of(lines[0]).index(column)] = value
        return "\n".join([*lines[:2], ",".join(fields), *lines[3:]])

    return change


def fields_of(line: str) -> list[str]:
    """The fields of a line, quotes kept."""
    return re.findall(r'(?:^|(?<=,))(?:"(?:[^"]|"")*"|[^,]*)', line)


def _without_column(text: str) -> str:
    return "\n".join(line.partition(",")[2] for line in text.split("\n"))


def _reversed_columns(text: str) -> str:
    return "\n".join(",".join(reversed(fields_of(line))) for line in text.split("\n"))


WHOLE_FILE: dict[str, tuple[Damage, str]] = {
    "empty": (lambda text: "", "empty file"),
    "without a first column": (_without_column, "without column schema_version"),
    "semicolons": (lambda text: text.replace(",", ";"), "fields are separated by ';'"),
    "tabs": (lambda text: text.replace(",", "\t"), "fields are separated by '\\t'"),
    "capital letters": (lambda text: text.replace("cell_id", "Cell_ID"), "column names are written otherwise"),
    "a column twice": (lambda text: text.replace("method", "backend", 1), "without column method"),
    "commas too many": (lambda text: text.replace("\n", ",,\n"), "a column without a name"),
    "a spreadsheet's own first line": (lambda text: "sep=,\n" + text, "without column"),
    "line ends of an old Macintosh": (lambda text: text.replace("\n", "\r"), "torn"),
    "UTF-16": (lambda text: text.encode("utf-16"), "UTF-16 text; save it as UTF-8"),
    "binary": (lambda text: b"\x80\x81\x00\n" * 9, "cannot be read as CSV"),
    "a page of HTML": (lambda text: "<html>\n<body>\n", "without column"),
}  # fmt: skip


@pytest.mark.parametrize("file", [CELLS_FILE, EPOCHS_FILE])
@pytest.mark.parametrize("case", WHOLE_FILE)
def test_a_file_that_is_no_such_table_is_named(tmp_path: Path, case: str, file: str) -> None:
    damage, reason = WHOLE_FILE[case]
    results = read_damaged(tmp_path, file, damage)
    assert any(file in skip.path and reason in skip.reason for skip in results.skipped), results.skipped
    assert results.cells.empty
    assert results.epochs.empty


HARMLESS: dict[str, Damage] = {
    "columns in another order": _reversed_columns,
    "a byte order mark": lambda text: "\ufeff" + text,
    "Windows line ends": lambda text: text.replace("\n", "\r\n"),
    "an empty last line": lambda text: text + "\n",
    "truth in capitals": lambda text: text.replace("true", "TRUE").replace("false", "FALSE"),
    "rows in another order": lambda text: "\n".join([text.split("\n")[0], *text.split("\n")[-2:0:-1], ""]),
}


@pytest.mark.parametrize("file", [CELLS_FILE, EPOCHS_FILE])
@pytest.mark.parametrize("case", HARMLESS)
def test_what_changes_no_value_changes_no_figure(tmp_path: Path, case: str, file: str) -> None:
    results = read_damaged(tmp_path, file, HARMLESS[case])
    assert results.skipped == ()
    assert len(results.cells) == 4
    assert results.epochs["train_s"].sum() == 33.0


def test_a_column_that_the_format_does_not_have_is_named(tmp_path: Path) -> None:
    results = read_damaged(tmp_path, EPOCHS_FILE, lambda text: text.replace("train_loss", "trainloss"))
    (skip,) = results.skipped
    assert skip.path.endswith("epochs.csv:1")
    assert skip.reason == "column trainloss is unknown here and not read"
    assert results.epochs["train_loss"].isna().all()
    assert results.epochs["train_s"].sum() == 33.0


DAMAGED_ROW: dict[str, Damage] = {
    "the header again": lambda text: text.replace("\n", "\n" + text.partition("\n")[0] + "\n", 1),
    "decimal commas": with_value("train_s", "2,5"),
    "quoted decimal commas": with_value("train_s", '"2,5"'),
    "an open quote": with_value("train_s", '"2.5'),
    "NUL": with_value("train_s", "2.\0005"),
    "NUL in a word": with_value("finished_utc", "2026\0"),
    "200 kB in a field": with_value("precision", '"' + "x" * 200_000 + '"'),
    "an empty attempt": with_value("attempt", ""),
    "attempt 0": with_value("attempt", "0"),
    "a negative attempt": with_value("attempt", "-1"),
    "a fractional attempt": with_value("attempt", "1.5"),
    "attempt nan": with_value("attempt", "nan"),
    "attempt 1e300": with_value("attempt", "1e300"),
    "attempt inf": with_value("attempt", "inf"),
    "an empty epoch": with_value("epoch", ""),
    "epoch 0": with_value("epoch", "0"),
    "a negative epoch": with_value("epoch", "-2"),
    "a fractional epoch": with_value("epoch", "2.5"),
    "epoch nan": with_value("epoch", "nan"),
    "epoch 1e300": with_value("epoch", "1e300"),
    "bytes of a spreadsheet": with_value("peak_tensor_bytes", "4.19E+06"),
    "hexadecimal bytes": with_value("peak_tensor_bytes", "0x100"),
    "bytes with a separator": with_value("peak_tensor_bytes", "4_194_304"),
    "Arabic digits": with_value("peak_tensor_bytes", "٤١٩٤٣٠٤"),
    "a time of 1e300": with_value("train_s", "1e300"),
    "a time of 1e-300": with_value("train_s", "1e-300"),
    "an infinite time": with_value("train_s", "inf"),
    "a negative time": with_value("train_s", "-2"),
    "a loss of 1e200": with_value("train_loss", "1e200"),
    "94 of 1 right": with_value("test_top1", "94"),
    "another method": with_value("method", "sltt-k2"),
    "another seed": with_value("seed", "77"),
    "another recipe": with_value("recipe_hash", "abc"),
    "another kind": with_value("kind", "trial"),
    "random data": with_value("synthetic", "true"),
    "a tiny subset": with_value("smoke", "true"),
    "another setting": with_value("overrides", '"{""train.lr"": 5}"'),
    "version 2": with_value("schema_version", "2"),
    "version nan": with_value("schema_version", "nan"),
    "no truth value": with_value("cold", "0"),
    "two fields": lambda text: text.replace("\n", "\n1,abc\n", 1),
    "a field too many": with_value("device", "cpu,cpu"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED_ROW)
def test_a_damaged_row_is_named_with_its_line_and_is_no_figure(tmp_path: Path, case: str) -> None:
    results = read_damaged(tmp_path, EPOCHS_FILE, DAMAGED_ROW[case])
    inserted = case in ("the header again", "two fields")  # as line 2; the others change line 3
    assert [Path(skip.path).name for skip in results.skipped] == [f"{EPOCHS_FILE}:{2 if inserted else 3}"]
    assert len(results.cells) == 4
    assert results.epochs["train_s"].sum() == (33.0 if inserted else 31.0)


KEY_OF = {
    name: columns for name, columns in ROW_KEYS.items() if any(RESULTS.glob(f"**/{name}"))
}  # fmt: skip
"""The files of which there are rows to be changed."""


def test_every_file_but_two_has_a_key_of_its_columns_that_committed_rows_do_not_share() -> None:
    assert FILES.keys() - ROW_KEYS.keys() == {TIMELINE_FILE, TUNING_FILE, BENCH_FILE}
    assert KEY_OF.keys() == ROW_KEYS.keys() - {RANKS_FILE}
    for name, key in KEY_OF.items():
        assert set(key) <= {column.name for column in FILES[name]}
        for path in RESULTS.glob(f"**/{name}"):
            assert not pd.read_csv(path).duplicated(list(key)).any(), path


@pytest.mark.parametrize("file", KEY_OF)
def test_of_two_rows_that_contradict_each_other_none_is_read_and_of_equal_ones_one(
    file: str, tmp_path: Path
) -> None:
    original = min(RESULTS.glob(f"**/{file}"), key=lambda path: path.stat().st_size)
    lines = original.read_text().splitlines()
    other = fields_of(lines[1])
    other[fields_of(lines[0]).index("seed")] = "77"
    path, skipped = tmp_path / file, list[Skipped]()
    path.write_text("\n".join([*lines, lines[1], ""]))
    assert len(read_rows(path, skipped)) == len(lines) - 1
    assert skipped == []
    path.write_text("\n".join([*lines, lines[1], ",".join(other), ""]))
    assert len(read_rows(path, skipped)) == len(lines) - 2
    assert [(skip.path.rpartition(":")[2], skip.reason.partition(" of the same")[0]) for skip in skipped] == [
        ("2", f"line {len(lines) + 2} says otherwise"),
        (str(len(lines) + 2), "line 2 says otherwise"),
    ]


def test_a_cell_of_which_two_rows_of_an_epoch_differ_is_unsound_wherever_it_is_shown(tmp_path: Path) -> None:
    run, other = handmade(tmp_path / "a"), handmade(tmp_path / "b")
    lines = (run / EPOCHS_FILE).read_text().splitlines()
    last = with_value("test_top1", "0.9")("\n".join([lines[0], "", lines[3]]))
    (run / EPOCHS_FILE).write_text("\n".join([*lines, str(last).splitlines()[2], ""]))
    report = CliRunner().invoke(app, ["report", str(run), "--format", "terminal", "--full"])
    comparison = CliRunner().invoke(app, ["compare", str(other), str(run)])
    for shown in (report.output, comparison.output):
        text = " ".join(shown.split())
        assert "line 14 says otherwise of the same epoch" in text
        assert "2 of the 3 epochs" in text
    rules = {breach.rule for breach in check([run])}
    assert {"whole files", "sound cells", "every epoch"} <= rules
    assert len(progress_of(run).finished) == 3


@pytest.mark.parametrize("damage", ["no epochs", "a newer version"])
def test_a_run_of_which_no_row_can_be_read_is_shown_with_the_reason(damage: str, tmp_path: Path) -> None:
    run = handmade(tmp_path)
    if damage == "no epochs":
        (run / EPOCHS_FILE).unlink()
    else:
        path = run / CELLS_FILE
        header, *lines = path.read_text().splitlines()
        path.write_text("\n".join([header, *(line.replace("1", "2", 1) for line in lines), ""]))
    shown = CliRunner().invoke(app, ["show", str(run)])
    reason = {"no epochs": "epochs.csv has no row of it", "a newer version": "schema_version is '2', not 1"}
    assert (shown.exit_code, reason[damage] in " ".join(shown.output.split())) == (0, True), shown.output


def test_rows_of_another_run_in_the_files_of_a_run_were_not_measured_with_what_it_says(
    tmp_path: Path,
) -> None:
    one, other = HandmadeRun(tmp_path / "one"), HandmadeRun(tmp_path / "other", torch="9.9")
    own = [one.cell(method, seed) for method in ("bptt", "sltt") for seed in range(3)]
    one.tell({"plan": own, **told({cell_id: {} for cell_id in own})})
    other.cell("sltt", 3)
    for file in (CELLS_FILE, EPOCHS_FILE):
        rows = (other.path / file).read_text().split("\n", 1)[1]
        (one.path / file).write_text((one.path / file).read_text() + rows)
    shutil.rmtree(other.path)
    report = CliRunner().invoke(app, ["report", str(tmp_path), "--format", "terminal", "--full"])
    assert "unsound (seed 3): provenance.json tells nothing of it" in " ".join(report.output.split())
    breaches = [breach.text for breach in check([tmp_path]) if breach.rule == "sound cells"]
    assert [text.startswith("contradicts itself: provenance.json tells nothing") for text in breaches] == [
        True
    ]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("overrides", "{"),
        ("overrides", "[" * 100_000),
        ("overrides", "1"),
        ("status", "fine"),
        ("kind", ""),
        ("wall_s", "-1"),
        ("epochs_done", "3.5"),
        ("attempt", "one"),
    ],
)  # fmt: skip
def test_a_damaged_row_of_a_cell_takes_its_epochs_with_it(tmp_path: Path, column: str, value: str) -> None:
    results = read_damaged(tmp_path, CELLS_FILE, with_value(column, value))
    assert any(f"{CELLS_FILE}:3" in skip.path for skip in results.skipped)
    assert len(results.cells) == 3
    assert set(results.epochs["cell_id"]) == set(results.cells["cell_id"])


def test_a_finished_cell_without_epochs_is_named_and_no_result(tmp_path: Path) -> None:
    def first_row_only(text: str) -> str:
        return "\n".join(text.split("\n")[:4]) + "\n"

    results = read_damaged(tmp_path, EPOCHS_FILE, first_row_only)
    assert len(results.cells) == 1
    assert sum("epochs.csv has no row of it" in skip.reason for skip in results.skipped) == 3


def test_a_torn_line_of_the_timeline_is_listed(tmp_path: Path) -> None:
    run = handmade(tmp_path)
    (run / TIMELINE_FILE).write_text("cell_id,attempt\nabc,1\nab")
    results = read_results([tmp_path])
    assert [(Path(skip.path).name, skip.reason) for skip in results.skipped] == [
        ("timeline.csv:3", "torn: the line was never finished")
    ]


CONTENTS = ["", "{", "[1]", "null", "[" * 100_000, "\x80", '{"gpus": [1]}', '{"packages": 3}']


@pytest.mark.parametrize(
    ("file", "content"),
    [
        *thinned([(PROVENANCE_FILE, content) for content in CONTENTS], keep=3),
        *thinned(product(["recipe.yaml", "cells"], CONTENTS), keep=7),
    ],
)
def test_damaged_descriptions_are_named_and_hide_no_measurement(
    tmp_path: Path, file: str, content: str
) -> None:
    run = handmade(tmp_path)
    path = run / file if file != "cells" else next((run / "cells").iterdir())
    path.write_bytes(content.encode("latin-1"))
    outcome = CliRunner().invoke(app, ["report", str(tmp_path), "--format", "terminal"])
    assert outcome.exit_code == 0, outcome.output
    assert "1.5" in outcome.output or "2.5" in outcome.output
    if file == PROVENANCE_FILE:
        assert any(skip.path.endswith(PROVENANCE_FILE) for skip in read_results([tmp_path]).skipped)
        assert "not read" in outcome.output


READERS = {
    "report": ["report", "RUN", "--format", "terminal"],
    "compare": ["compare", "RUN", "RUN"],
    "power": ["power", "RUN"],
    "show": ["show", "RUN"],
    "export": ["export", "RUN", "--method", "sltt", "--seed", "0", "--format", "eval-results", "--dataset-id", "a/b"],
}  # fmt: skip
"""Verb → its command on a run."""


def read_with(verb: str, run: Path) -> str:
    """All that the verb says of a run, in one line."""
    words = [str(run) if word == "RUN" else word for word in READERS[verb]]
    words += ["--out", str(run.parent / "out")] * (verb in ("report", "export"))
    return " ".join(CliRunner().invoke(app, words, env={"COLUMNS": "300"}).output.split())


@pytest.mark.parametrize("verb", READERS)
def test_every_verb_that_reads_results_names_what_it_does_not_read(tmp_path: Path, verb: str) -> None:
    run = handmade(tmp_path)
    with (run / EPOCHS_FILE).open("a") as file:
        file.write("5,torn")
    said = read_with(verb, run)
    assert "not read" in said
    assert f"{run / EPOCHS_FILE}:14: torn: the line was never finished" in said


@pytest.mark.parametrize("verb", READERS)
def test_where_nothing_can_be_read_the_error_says_why(tmp_path: Path, verb: str) -> None:
    run = handmade(tmp_path)
    (run / CELLS_FILE).write_text("")
    assert f"{run / CELLS_FILE}: empty file" in read_with(verb, run)


def test_what_a_command_says_of_its_own_runs_names_what_it_does_not_read(tmp_path: Path) -> None:
    run, console = handmade(tmp_path), Console(record=True, width=300)
    with (run / CELLS_FILE).open("a") as file:
        file.write("torn")
    print_run([run], console=console)
    assert f"not read: {run / CELLS_FILE}:6: torn" in console.export_text()


def test_the_committed_results_are_read_whole() -> None:
    assert read_results([RESULTS]).skipped == ()


WRITTEN = json.loads(max(RESULTS.glob("digits/*/provenance.json")).read_text())
"""What the tool writes into provenance.json."""
FIELDS = dict.fromkeys([*WRITTEN, "kind", "failed", "torch", "torch_flags", "profiler", "backend"])
OVERVIEW = {
    "command",
    "commands",
    "started_utc",
    "sltt_bench",
    "git_revision",
    "git_dirty",
    "packages",
    "plan",
}
OF_ANY_TYPE: list[Any] = [None, [1], [{}], {"a": 1}, 3, "a"]


def test_whatever_stands_in_a_field_of_provenance_no_reader_ends_in_a_fault(tmp_path: Path) -> None:
    """Of every field of the file, of a command in it, and of an attempt at a cell."""
    (command,) = WRITTEN["commands"]
    changes = [(key, {key: value}) for key in FIELDS for value in OF_ANY_TYPE]
    changes += [(key, {"commands": [{**command, key: value}]}) for key in command for value in OF_ANY_TYPE]
    runs = [HandmadeRun(tmp_path / "digits" / str(number)) for number in range(len(changes))]
    for run, (_, change) in zip(runs, changes, strict=True):
        cell_id = run.cell(seed=int(run.path.name))  # each counts
        cells = {cell_id: {"attempts": {"1": {"command": 0, **change}}}}
        run.tell({**WRITTEN, "cells": cells, "run": run.path.name, **change})
    named = Counter(skip.reason for skip in read_results([tmp_path]).skipped)
    assert named["git_revision is no str: not read"] == 4
    assert named["commands.0.gpus is no list: not read"] == 4
    outcome = CliRunner().invoke(app, ["report", str(tmp_path), "--format", "terminal"])
    assert outcome.exit_code == 0, outcome.exc_info
    assert check([tmp_path])
    for run, (key, _) in zip(runs, changes, strict=True):
        if key in OVERVIEW:  # looking at each takes longest
            assert lines(overview(run.path))


def test_a_cell_that_departs_from_its_run_has_no_recipe_without_its_file(tmp_path: Path) -> None:
    run = handmade(tmp_path)
    (run / EPOCHS_FILE).write_text(
        re.sub(r",\{\},", ",,", (run / EPOCHS_FILE).read_text())
    )  # an earlier version's
    results = read_damaged_run(run, CELLS_FILE, with_value("overrides", '"{""neuron.tau"": 2}"'))
    departing = results.cells.loc[results.cells["overrides"] != "{}", "cell_id"].item()
    for path in (run / "cells").iterdir():
        path.write_text("{")
    recipes = {cell_id: results.runs[0].recipe_of(cell_id) for cell_id in results.cells["cell_id"]}
    assert recipes.pop(departing) == {}
    assert all(recipes.values())


@pytest.mark.parametrize(
    ("value", "column"),
    thinned(product(["1e99", "inf", "nan", "-inf", "1e-300"], ["train_loss", "test_loss", "lr"]), keep=4),
)
def test_numbers_at_the_edge_leave_no_warning_on_the_terminal(
    tmp_path: Path, column: str, value: str
) -> None:
    run = handmade(tmp_path)
    path = run / EPOCHS_FILE
    path.write_text(str(with_value(column, value)(path.read_text())))
    with warnings.catch_warnings(), np.errstate(all="warn"):
        warnings.simplefilter("error")
        outcome = CliRunner().invoke(app, ["report", str(tmp_path), "--format", "terminal"])
    assert outcome.exit_code == 0, outcome.output or outcome.exception


def test_resuming_and_reporting_read_the_same_rows(tmp_path: Path) -> None:
    run = handmade(tmp_path)
    path = run / EPOCHS_FILE
    path.write_text(str(with_value("train_s", "1e300")(path.read_text())))
    skipped: list[Skipped] = []
    rows = read_rows(path, skipped)
    assert len(rows) == 11
    assert [Path(skip.path).name for skip in skipped] == ["epochs.csv:3"]
    assert {row["epoch"] for row in rows} == {"1", "2", "3"}


@pytest.mark.parametrize("file", [CELLS_FILE, EPOCHS_FILE])
def test_the_rows_of_one_cell_are_those_that_all_rows_have_of_it(
    tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = handmade(tmp_path) / file
    path.write_text(path.read_text() + "\x00 torn by hand\n1,unfinished")
    everything = read_rows(path, [])
    split, real = [], tables._fields
    monkeypatch.setattr(tables, "_fields", lambda line: split.append(line) or real(line))
    for cell_id in {row["cell_id"] for row in everything}:
        own = [row for row in everything if row["cell_id"] == cell_id]
        split.clear()
        assert read_rows(path, [], of_cell=cell_id) == own
        assert len(split) == 1 + len(own)  # a run of thousands of cells asks for each of them
    assert read_rows(path, [], of_cell="of another run") == []


def test_a_resumed_run_keeps_damaged_lines_and_appends_below_them(tmp_path: Path) -> None:
    run = handmade(tmp_path)
    path = run / EPOCHS_FILE
    older = [line.rpartition(",")[0] for line in path.read_text().split("\n")[:-1]]  # a column fewer
    path.write_bytes("\n".join([*older[:2], "\x80 torn by hand", *older[2:]]).encode("latin-1") + b"\n")
    folder = RunFolder(run)
    assert [damage.reason.split(":")[0] for damage in progress_of(run).damage] == ["cannot be read as CSV"]
    row = folder.rows(EPOCHS_FILE)[-1]
    truths = {"cold": False, "synthetic": False, "smoke": False}
    folder.append(EPOCHS_FILE, {**{k: v for k, v in row.items() if v}, "epoch": 4, **truths})
    folder.close()
    results = read_results([tmp_path])
    assert [Path(skip.path).name for skip in results.skipped] == ["epochs.csv:3"]
    assert len(results.epochs) == 13


@pytest.mark.parametrize("case", ["semicolons", "tabs", "capital letters", "a page of HTML"])
def test_nothing_is_appended_to_a_file_that_is_no_such_table(tmp_path: Path, case: str) -> None:
    run = handmade(tmp_path)
    damaged = WHOLE_FILE[case][0]((run / EPOCHS_FILE).read_text())
    (run / EPOCHS_FILE).write_bytes(damaged if isinstance(damaged, bytes) else damaged.encode())
    before = (run / EPOCHS_FILE).read_bytes()
    with pytest.raises(ResultsError, match=r"epochs\.csv: .*start a run of its own without --resume"):
        RunFolder(run).append(EPOCHS_FILE, {"epoch": 1})
    assert (run / EPOCHS_FILE).read_bytes() == before


def test_a_finished_cell_that_lost_an_epoch_is_not_finished(tmp_path: Path) -> None:
    run = handmade(tmp_path)
    assert len(progress_of(run).finished) == 4
    path = run / EPOCHS_FILE
    path.write_text(str(with_value("train_s", "fast")(path.read_text())))
    assert len(progress_of(run).finished) == 3


def test_a_run_is_resumed_from_files_that_a_program_without_whole_numbers_saved(tmp_path: Path) -> None:
    arguments = [
        "run",
        "digits",
        "--smoke",
        "--no-estimate",
        "--device",
        "cpu",
        "--seed",
        "0",
        "--method",
        "sltt",
    ]
    arguments += ["--set", "timesteps=2", "--out", str(tmp_path)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    (run,) = (tmp_path / "digits").iterdir()
    for file in (CELLS_FILE, EPOCHS_FILE):
        table = pd.read_csv(run / file)
        if file == EPOCHS_FILE:
            table = table[table.epoch < 2]  # the cell is not finished any more
        whole = table.select_dtypes("int").columns
        table.astype(dict.fromkeys(whole, float)).to_csv(run / file, index=False)
    outcome = CliRunner().invoke(app, [*arguments, "--resume"])
    assert outcome.exit_code == 0, outcome.output
    rows = read_rows(run / EPOCHS_FILE, [])
    assert [(row["attempt"], row["epoch"]) for row in rows] == [("1", "1"), ("2", "1"), ("2", "2")]


def test_an_end_of_file_character_ends_no_file_and_is_spelled_out(tmp_path: Path) -> None:
    results = read_damaged(tmp_path, CELLS_FILE, with_value("device_name", "Example\x1a CPU"))
    assert len(results.cells) == 4
    assert "Example\\x1a CPU" in set(results.cells["device_name"])


def test_a_report_written_into_the_folder_of_its_runs_does_not_hide_them(tmp_path: Path) -> None:
    handmade(tmp_path)
    (tmp_path / "digits" / "summary.csv").write_text("method\n")
    (tmp_path / "digits" / "figures").mkdir()
    (tmp_path / "digits" / "figures" / "memory.png").write_bytes(b"")
    results = read_results([tmp_path])
    assert len(results.cells) == 4
    assert [skip.reason for skip in results.skipped] == ["an earlier report, not results"]


@pytest.mark.parametrize("name", ["NA", "nan", "1e5", "true", "007", "report"])
def test_a_recipe_that_is_named_like_a_number_or_a_missing_value_keeps_its_name(
    name: str, tmp_path: Path
) -> None:
    run = HandmadeRun(tmp_path / name / "a", recipe={**RECIPE, "name": name})
    for seed in (MAX_SEED - 1, MAX_SEED):
        run.cell("bptt", seed)
    cells = read_results([tmp_path]).cells
    assert list(cells["recipe"]) == [name, name]
    assert sorted(cells["seed"]) == [MAX_SEED - 1, MAX_SEED], "no two seeds become one"


def test_what_logs_for_other_tools_leave_in_a_run_is_not_remarked_upon(tmp_path: Path) -> None:
    run = handmade(tmp_path)
    for folder in ("tensorboard/sltt", "wandb/offline-run-1", "mlperf"):
        (run / folder).mkdir(parents=True)
        (run / folder / "events").write_text("")
    assert read_results([tmp_path]).skipped == ()


def test_runs_are_read_through_links_each_once(tmp_path: Path) -> None:
    run = handmade(tmp_path / "scratch")
    results = tmp_path / "results"
    results.mkdir()
    (results / "a-link").symlink_to(run)
    (results / "another").symlink_to(run.parent)
    (results / "in a circle").symlink_to(results)
    assert len(read_results([results]).cells) == 4
    assert len(read_results([results, run, run.parent]).cells) == 4


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, real = handmade(tmp_path), os.scandir

    def scandir(path: str) -> Any:
        if Path(path).name == "private":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    (tmp_path / "private").mkdir()
    monkeypatch.setattr(os, "scandir", scandir)
    (skip,) = read_results([tmp_path]).skipped
    assert (skip.path, skip.reason) == (str(tmp_path / "private"), "cannot be read: Permission denied")
    assert run.exists()


@pytest.mark.parametrize("file", ["recipe.yaml", PROVENANCE_FILE, EPOCHS_FILE])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path, file: str) -> None:
    run = handmade(tmp_path)
    (run / file).unlink(missing_ok=True)
    os.mkfifo(run / file)
    results = read_results([tmp_path])
    assert results.runs[0].recipe == {} or file != "recipe.yaml"
    assert len(results.cells) == (0 if file == EPOCHS_FILE else 4)


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        ({"commands": {}}, "commands is no list"),
        ({"cells": []}, "cells is no mapping"),
        ({"cells": {"a": 1}}, "cells.a.attempts is no mapping of numbers"),
        ({"cells": {"a": {"attempts": {"one": {}}}}}, "cells.a.attempts is no mapping of numbers"),
    ],
)
def test_a_run_whose_provenance_cannot_be_added_to_is_not_resumed(
    damage: dict[str, Any], fault: str, tmp_path: Path, smoke_cell: Callable[..., Cell]
) -> None:
    cell = smoke_cell()
    folder = RunFolder.create(tmp_path, "digits")
    folder.write_provenance({"plan": [cell.cell_id], **damage})
    folder.close()
    before = (folder.path / PROVENANCE_FILE).read_bytes()
    options = ["--smoke", "--no-estimate", "--device", "cpu", "--seed", "0", "--method", "sltt", "--resume"]
    outcome = CliRunner().invoke(app, ["run", "digits", *options, "--out", str(tmp_path)])
    assert outcome.exit_code == 2, outcome.output
    assert f"{PROVENANCE_FILE}: {fault}; mend it, or start a run of its own" in " ".join(
        outcome.output.split()
    )
    assert (folder.path / PROVENANCE_FILE).read_bytes() == before


def test_a_run_of_a_newer_version_of_the_format_is_not_added_to(
    tmp_path: Path, smoke_cell: Callable[..., Cell]
) -> None:
    cell = smoke_cell()
    folder = RunFolder.create(tmp_path, "digits")
    folder.write_provenance({"plan": [cell.cell_id]})
    folder.append(CELLS_FILE, {"schema_version": 12, "cell_id": cell.cell_id, "status": "ok"})
    folder.close()
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    options = ["--smoke", "--no-estimate", "--device", "cpu", "--seed", "0", "--method", "sltt", "--resume"]
    outcome = CliRunner().invoke(app, ["run", "digits", *options, "--out", str(tmp_path)])
    assert outcome.exit_code == 2, outcome.output
    assert f"{CELLS_FILE}: its rows are of version 12 of the format" in " ".join(outcome.output.split())
    assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before


# The campaign -----------------------------------------------------------------------------------


def mutated(content: bytes, draw: random.Random) -> bytes:
    """What a crash, an editor or a failing disk makes of a file."""
    lines = content.split(b"\n")
    at, line = draw.randrange(len(content) or 1), draw.randrange(len(lines))
    noise = draw.choice(
        [b"", b"\0", b"\xff", b'"', b",", b";", b"\n", b"-", b"e", b"nan", b"1e300", b"9" * 40, b"[" * 9999]
    )
    match draw.randrange(9):
        case 0:
            return content[:at]
        case 1:
            return content[:at] + noise + content[at:]
        case 2:
            return content[:at] + noise + content[at + draw.randrange(1, 40) :]
        case 3:
            return b"\n".join([*lines[:line], *lines[line + 1 :]])
        case 4:
            return b"\n".join([*lines[:line], lines[line], *lines[line:]])
        case 5:
            return b"\n".join([*lines[:line], draw.choice(lines), *lines[line:]])
        case 6:
            return bytes(draw.randrange(256) for _ in range(draw.randrange(300)))
        case 7:
            fields = lines[line].split(b",")
            fields[draw.randrange(len(fields))] = noise
            return b"\n".join([*lines[:line], b",".join(fields), *lines[line + 1 :]])
        case _:
            return content[:at] + bytes([draw.randrange(256)]) + content[at + 1 :]


COPIED = ("digits", "delayed-recall", "sequential-digits", "bench", "imagenet-resnet34")


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of each kind, as committed."""
    top = tmp_path_factory.mktemp("committed")
    for recipe in COPIED:
        run = min(
            (RESULTS / recipe).iterdir(),
            key=lambda path: sum(f.stat().st_size for f in path.rglob("*.csv")),
        )
        shutil.copytree(run, top / recipe / run.name)
    return top


def test_any_damage_to_committed_files_is_read_around(
    committed: Path, sound: set[str], request: pytest.FixtureRequest, figures: Callable[[str], None]
) -> None:
    """`--campaign long` damages a thousand times."""
    damages = 1000 if request.config.getoption("--campaign") == "long" else 6
    for seed in range(damages):
        check_damage(committed, sound, seed)
    figures(f"{damages} damages, 0 misread")


def check_damage(committed: Path, sound: set[str], seed: int) -> None:
    """What one damage reaches is listed, or differs in a value that could as well have been measured."""
    draw = random.Random(seed)
    path = draw.choice(sorted(path for path in committed.rglob("*.*") if path.is_file()))
    whole = path.read_bytes()
    content = mutated(whole, draw)
    try:
        path.write_bytes(content)
        results = read_results([committed])
        for run in results.runs:
            assert isinstance(run.recipe, dict)
            assert all(isinstance(run.recipe_of(file.stem), dict) for file in run.path.glob("cells/*.json"))
    finally:
        path.write_bytes(whole)
    rows = rows_of(results)
    lines_missing_only = set(content.split(b"\n")) <= set(whole.split(b"\n"))
    assert len(rows - sound) <= 2 or any(skip.path.endswith(":1") for skip in results.skipped)
    assert lines_missing_only or rows >= sound or rows - sound or results.skipped
    assert not results.epochs.duplicated(["run", "cell_id", "epoch"]).any()
    assert set(results.epochs["cell_id"]) <= set(results.cells["cell_id"])


@pytest.fixture(scope="module")
def sound(committed: Path) -> set[str]:
    return rows_of(read_results([committed]))


def rows_of(results: Results) -> set[str]:
    """Cells and epochs, each as one text."""
    frames = (
        results.cells.drop(columns=["run", "line", "attempts"], errors="ignore"),
        results.epochs.drop(columns=["run", "line", "attempts"], errors="ignore"),
    )
    return {repr(row) for frame in frames for row in frame.to_dict("records")}


# What the tests share ---------------------------------------------------------------------------


def read_damaged(folder: Path, file: str, damage: Damage) -> Results:
    return read_damaged_run(handmade(folder), file, damage)


def read_damaged_run(run: Path, file: str, damage: Damage) -> Results:
    path = run / file
    content = damage(path.read_bytes().decode())
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_results([run])
