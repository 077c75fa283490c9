"""`submission check`: a committed run meets every rule, and each way of falling short is said."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from checkout import ROOT
from result_builder import HandmadeRun
from typer.testing import CliRunner

from sltt_bench.command_line.cli import app
from sltt_bench.command_line.submission import RULES
from sltt_bench.results.reader import read_results

RUN = ROOT / "results/digits/20261123-213337-d52b"
"""Three methods and three seeds of the shipped recipe."""


def breaches(folder: Path) -> dict[str, str]:
    """Rule → what is wrong, of those that are broken."""
    result = CliRunner().invoke(app, ["submission", "check", str(folder), "--json"])
    actual = json.loads(result.output)
    assert result.exit_code == int(bool(actual))
    texts: dict[str, list[str]] = {}
    for breach in actual:
        texts.setdefault(breach["rule"], []).append(f"{breach['where']}: {breach['text']}")
    return {rule: "; ".join(of_rule) for rule, of_rule in texts.items()}


def edit(folder: Path, name: str, change: Callable[[str], str]) -> None:
    path = folder / name
    before = path.read_text(encoding="utf-8")
    after = change(before)
    assert after != before
    path.write_text(after, encoding="utf-8")


def drop_rows(column_value: str) -> Callable[[str], str]:
    return lambda text: "".join(line for line in text.splitlines(keepends=True) if column_value not in line)


def drop_last_line(text: str) -> str:
    return "".join(text.splitlines(keepends=True)[:-1])


def change_every_cell(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for cell in (folder / "cells").glob("*.json"):
            edit(folder, f"cells/{cell.name}", lambda text: text.replace(old, new))

    return change


def scale(**factors: float) -> Callable[[Path], None]:
    """Columns of epochs.csv, of every row of SLTT."""

    def change(folder: Path) -> None:
        epochs = pd.read_csv(folder / "epochs.csv")
        for column, factor in factors.items():
            epochs.loc[epochs["method"] == "sltt", column] *= factor
        epochs.to_csv(folder / "epochs.csv", index=False)

    return change


SHORTCOMINGS: dict[str, tuple[Callable[[Path], object], set[str], str]] = {
    "a torn row": (
        lambda run: edit(run, "epochs.csv", lambda text: text[:-40]),
        {"whole files", "every epoch", "sound cells"},
        "whole files only",
    ),
    "uncommitted changes": (
        lambda run: edit(
            run, "provenance.json", lambda text: text.replace('"git_dirty": false', '"git_dirty": true')
        ),
        {"provenance"},
        "commit them",
    ),
    "no version of torch": (
        lambda run: edit(run, "provenance.json", lambda text: text.replace('"torch": "2', '"tensors": "2')),
        {"provenance"},
        "torch's version",
    ),
    "another learning rate": (
        change_every_cell('"lr": 0.1', '"lr": 0.2'),
        {"untouched recipe", "cells as resolved", "figures that follow"},
        "the recipe was changed (train.lr)",
    ),
    "another learning rate than was run, for who reads recipe.yaml": (
        lambda run: edit(run, "recipe.yaml", lambda text: text.replace("lr: 0.1", "lr: 0.2")),
        {"untouched recipe"},
        "the recipe was changed (train.lr)",
    ),
    "another split": (
        change_every_cell('"train_samples": 1437', '"train_samples": 1500'),
        {"untouched recipe", "sound cells", "cells as resolved"},
        "data.train_samples",
    ),
    "another seed than was run": (
        lambda run: [
            edit(run, name, lambda text: text.replace("fp32,cpu,2,", "fp32,cpu,7,"))
            for name in ("cells.csv", "epochs.csv")
        ],
        {"cells as resolved"},
        "is another cell than its row (seed)",
    ),
    "a cell of which no file tells": (
        lambda run: next((run / "cells").glob("*.json")).unlink(),
        {"cells as resolved"},
        "is missing: nobody can tell what was run",
    ),
    "a method that there is not": (
        change_every_cell('"method": "sltt"', '"method": "slt"'),
        {"cells as resolved"},
        "is no cell: unknown method 'slt'",
    ),
    "two seeds": (
        lambda run: (
            edit(run, "cells.csv", drop_rows("fp32,cpu,2,run")),
            edit(run, "epochs.csv", drop_rows("fp32,cpu,2,")),
        ),
        {"three seeds", "failures included"},
        "2 seeds; at least 3",
    ),
    "a smoke run": (
        lambda run: edit(run, "cells.csv", lambda text: text.replace(",false,false,ok", ",false,true,ok")),
        {"real data", "cells as resolved"},
        "--smoke",
    ),
    "random data": (
        lambda run: edit(run, "cells.csv", lambda text: text.replace(",false,false,ok", ",true,false,ok")),
        {"real data", "cells as resolved"},
        "--synthetic",
    ),
    "a failure left out": (
        lambda run: edit(run, "cells.csv", drop_last_line),
        {"failures included", "three seeds", "whole files"},
        "1 planned cells have no row",
    ),
    "an accuracy of somebody's own": (
        lambda run: edit(run, "cells.csv", lambda text: text.replace(",0.9916666666666667,0", ",0.999,0")),
        {"sound cells"},
        "contradicts itself",
    ),
    "an accuracy of somebody's own in both files": (
        lambda run: [
            edit(run, name, lambda text: text.replace("0.9916666666666667", "0.992"))
            for name in ("cells.csv", "epochs.csv")
        ],
        {"figures that follow"},
        "test_top1 is no whole number of samples",
    ),
    "times of somebody's own": (
        scale(train_s=0.5),
        {"figures that follow"},
        "samples_per_s is not samples / train_s",
    ),
    "times of somebody's own that go together": (
        scale(train_s=5, samples_per_s=1 / 5),
        {"sound cells", "figures that follow"},
        "more than the whole cell",
    ),
    "no plan": (
        lambda run: edit(run, "provenance.json", lambda text: text.replace('"plan"', '"plans"')),
        {"failures included"},
        "which cells were planned",
    ),
    "no name of the processor": (
        lambda run: edit(
            run, "cells.csv", lambda text: text.replace("AMD EPYC", "").replace(" (2 threads)", "")
        ),
        {"hardware named"},
        "on what was it measured",
    ),
    "somebody's home": (
        lambda run: edit(
            run, "provenance.json", lambda text: text.replace('"sltt-bench"', '"/home/me/sltt"', 1)
        ),
        {"names nobody"},
        "/home/me",
    ),
    "somebody's home among the logs": (
        lambda run: (run / "mlperf").mkdir() or (run / "mlperf" / "a.txt").write_text("C:\\Users\\me\\data"),
        {"names nobody"},
        "C:\\Users\\me",
    ),
    "a checkpoint": (
        lambda run: (run / "checkpoints").mkdir() or (run / "checkpoints" / "a.pt").write_bytes(b"weights"),
        {"no large files"},
        "checkpoints and large files stay out",
    ),
}


def test_a_committed_run_meets_every_rule_and_the_page_lists_them_all() -> None:
    result = CliRunner().invoke(app, ["submission", "check", str(RUN)])
    assert result.exit_code == 0, result.output
    assert [line.removeprefix("✓ ") for line in result.output.splitlines()] == list(RULES)
    rows = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8").splitlines()
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows if row.startswith("| ")][1:] == list(RULES)


@pytest.mark.parametrize("shortcoming", SHORTCOMINGS)
def test_what_falls_short_is_said(shortcoming: str, tmp_path: Path) -> None:
    spoil, rules, text = SHORTCOMINGS[shortcoming]
    folder = tmp_path / "digits" / RUN.name
    shutil.copytree(RUN, folder)
    spoil(folder)
    broken = breaches(tmp_path)
    assert set(broken) == rules
    assert any(text in reason for reason in broken.values())


def test_where_a_cell_ran_and_what_it_kept_change_no_recipe(tmp_path: Path) -> None:
    folder = tmp_path / "digits" / RUN.name
    shutil.copytree(RUN, folder)
    for old, new in (
        ('"keep_checkpoint": false', '"keep_checkpoint": true, "devices": 2'),
        ('"checkpoint_every": 1', '"checkpoint_every": 0'),
    ):
        change_every_cell(old, new)(folder)
    assert breaches(tmp_path) == {}


def test_a_cell_that_failed_before_it_named_its_device_is_counted_with_its_runs_others(
    tmp_path: Path,
) -> None:
    run = HandmadeRun(tmp_path / "run")
    for seed in range(4):
        run.cell("bptt", seed)
    run.cell("bptt", 4, status="killed", cell={"device_name": ""})
    for seed in range(3):
        run.cell("sltt", seed)
    assert not list(RULES["three seeds"](read_results([tmp_path])))
    run.cell("sltt-k2", 0)
    run.cell("sltt-k2", 1)
    run.cell("sltt-k2", 2, status="oom", cell={"device_name": ""})
    ((where, text),) = RULES["three seeds"](read_results([tmp_path]))
    assert where == "digits, sltt-k2, backend reference"
    assert text.startswith("2 of 3 seeds finished")


@pytest.mark.parametrize("conditions", ["torch", "ranks", "tree"])
def test_seeds_count_within_one_group_of_a_report(conditions: str, tmp_path: Path) -> None:
    """Two seeds under one version of torch and one under another are in no mean together."""
    other: dict[str, dict[str, str]] = {"torch": {"torch": "2.7.0"}, "tree": {"git_revision": "f00"}}
    first = HandmadeRun(tmp_path / "first")
    second = HandmadeRun(tmp_path / "second", **other.get(conditions, {}))
    for seed in range(2):
        first.cell("bptt", seed)
    second.cell("bptt", 2, **({"ranks": 2} if conditions == "ranks" else {}))
    texts = [text for _, text in RULES["three seeds"](read_results([tmp_path]))]
    words = {
        "torch": "torch or CUDA version",
        "ranks": "processes that share a batch",
        "tree": "revision of sltt-bench",
    }
    needed = f"under the same conditions ({words[conditions]}); at least 3 are needed: --seed 0,1,2"
    assert sorted(texts) == [f"1 seed of 3 {needed}", f"2 seeds of 3 {needed}"]
    second.cell("bptt", 0, **({"ranks": 2} if conditions == "ranks" else {}))
    second.cell("bptt", 1, **({"ranks": 2} if conditions == "ranks" else {}))
    first.cell("bptt", 2)
    assert not list(RULES["three seeds"](read_results([tmp_path])))


def test_a_folder_without_runs_is_wrong_usage(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["submission", "check", str(tmp_path)])
    assert result.exit_code == 2
    assert "sltt-bench run" in result.output
