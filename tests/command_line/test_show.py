"""`show` of a run, and what `list`, `show` and `doctor` give to scripts."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from checkout import RESULTS
from typer.testing import CliRunner

from sltt_bench.command_line.cli import app
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.planning.recipe_files import recipe_names


def as_json(*arguments: str) -> Any:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


@pytest.fixture(scope="module")
def run_folder() -> Path:
    return sorted(path.parent for path in RESULTS.glob("digits/*/epochs.csv"))[0]


def test_show_gives_a_runs_command_cells_tables_and_files(run_folder: Path) -> None:
    result = CliRunner().invoke(app, ["show", str(run_folder)])
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "sltt-bench run digits --method bptt,sltt,sltt-k2 --seed 0,1,2" in text
    assert "9 ok" in text
    assert "revision 1efb4884f603" in text
    assert "cells.csv" in text
    assert "warm epoch" in text, "the run's own tables follow"


def test_show_gives_the_points_of_a_grid_as_one_text_of_json() -> None:
    assert [point["train"]["lr"] for point in as_json("show", "digits", "--set", "train.lr=0.1,0.2")] == [
        0.1,
        0.2,
    ]
    assert as_json("show", "digits", "--set", "train.lr=0.2")["train"]["lr"] == 0.2


def test_show_run_as_json_has_a_row_for_each_cell(run_folder: Path) -> None:
    facts = as_json("show", str(run_folder))
    assert facts["run"] == str(run_folder)
    assert len(facts["cells"]) == facts["cells_planned"] == 9
    assert {cell["status"] for cell in facts["cells"]} == {"ok"}
    assert all(cell["wall_s"] > 0 for cell in facts["cells"])


def test_show_says_what_failed_and_what_has_not_ended(run_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("provenance.json", "recipe.yaml", "epochs.csv"):
        (copy / name).write_bytes((run_folder / name).read_bytes())
    header, *rows = (run_folder / "cells.csv").read_text().splitlines(keepends=True)
    (copy / "cells.csv").write_text(header + rows[0] + rows[1].replace(",ok,,", ",oom,no memory left,"))
    facts = as_json("show", str(copy))
    assert [(cell["status"], cell["reason"]) for cell in facts["cells"]] == [
        ("ok", ""),
        ("oom", "no memory left"),
    ]
    assert [type(cell["seed"]) for cell in facts["cells"]] == [int, int]
    output = " ".join(CliRunner().invoke(app, ["show", str(copy)]).output.split())
    assert "1 ok, 1 oom; 7 of 9 have not ended" in output
    assert re.search(r"seed \d: no memory left", output)


@pytest.mark.parametrize(("folder", "message"), [(RESULTS, "runs are"), (RESULTS / "nothing", "no run is")])
def test_show_of_another_folder_says_what_to_do(folder: Path, message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["show", str(folder if folder.exists() else tmp_path)])
    assert result.exit_code == 2
    assert message in result.output
    assert "sltt-bench report" in result.output


def test_a_run_takes_no_overrides(run_folder: Path) -> None:
    result = CliRunner().invoke(app, ["show", str(run_folder), "--set", "train.epochs=2"])
    assert result.exit_code == 2
    assert "belong to a recipe" in result.output


def test_list_and_show_and_doctor_speak_json() -> None:
    listed = as_json("list")
    assert [entry["name"] for entry in listed["recipes"]] == recipe_names()
    assert {"recipes", "methods", "models", "datasets", "backends"} <= set(listed)
    assert list(as_json("list", "methods")) == ["methods"]
    recipe = as_json("show", "digits", "--set", "train.epochs=3")
    assert recipe == load_recipe("digits", {"train.epochs": 3}).model_dump(mode="json")
    findings = as_json("doctor")
    assert {"level", "subject", "text"} == set(findings[0])
    subjects = {finding["subject"] for finding in findings}
    assert {"sltt-bench", "processors", "gpu", "torch", "open files", "tonic"} <= subjects


def test_estimate_gives_its_rows_and_nothing_else_to_standard_output(tmp_path: Path) -> None:
    arguments = [
        "estimate",
        "digits",
        "--smoke",
        "--device",
        "cpu",
        "--method",
        "bptt,sltt",
        "--out",
        str(tmp_path),
    ]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    rows = {row["method"]: row for row in json.loads(result.stdout)}
    assert set(rows) == {"bptt", "sltt"}
    assert rows["bptt"]["peak_tensor_bytes"] > rows["sltt"]["peak_tensor_bytes"] > 0
    assert rows["sltt"]["gpu"] is None
    assert '"timesteps":6,' in result.stdout, "whole numbers are whole"


@pytest.mark.parametrize(
    ("method", "equation"),
    [("sltt-k4", "Σ_{t drawn}"), ("ottt", "a[t]"), ("bptt-d0.5", "β"), ("rate", "Yu et al.")],
)
def test_show_prints_the_equations_and_promises_of_a_method(method: str, equation: str) -> None:
    result = CliRunner().invoke(app, ["show", method])
    assert result.exit_code == 0, result.output
    assert equation in result.output
    assert "memory: O(" in result.output
    assert as_json("show", method)["promises"]["memory"].startswith("O(")
