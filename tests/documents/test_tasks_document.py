"""The numbers of docs/tasks.md, made again from the committed results; hints at minutes are of what was measured."""

import re

import pandas as pd
import pytest
from checkout import ROOT

from sltt_bench.planning.recipe import load_recipe
from sltt_bench.planning.recipe_files import recipe_names
from sltt_bench.report.claims import judge
from sltt_bench.report.grouping import make_groups
from sltt_bench.report.groups import Group
from sltt_bench.results.reader import read_results

PAGE = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
TASKS = {"digits-transformer", "vowels", "permuted-digits", "digits-alif"}
FIXED = ("bptt", "sltt", "sltt-k2")


def table_after(words: str) -> list[list[str]]:
    """The rows of the first table after these words, without marks of code."""
    table = re.search(r"(?:^\|.*\|$\n?)+", PAGE[PAGE.index(words) :], re.MULTILINE)
    assert table
    return [
        [cell.strip().replace("`", "") for cell in row.split("|")[1:-1]] for row in table[0].splitlines()[2:]
    ]


def measured(recipe: str, method: str = "bptt") -> Group:
    """The group of the recipe's runs as it is published that has the method, three seeds or more of each."""
    groups = make_groups(read_results([ROOT / "results" / recipe]))
    published = [g for g in groups if not (g.key.smoke or g.key.synthetic or g.overrides)]
    (group,) = [g for g in published if method in g.methods]
    assert len({tuple(sorted(each.seeds)) for each in group.methods.values()}) == 1
    assert len(group.methods[method].seeds) >= 3
    return group


def accuracy(group: Group, method: str) -> str:
    """Mean ± deviation of the seeds' last epochs, in per cent."""
    reached = group.methods[method].stat("last_test_top1")
    assert reached is not None
    assert reached.std is not None
    return f"{100 * reached.mean:.1f} ± {100 * reached.std:.1f}"


def test_the_table_of_tasks_is_what_their_runs_reached() -> None:
    rows = table_after("## Accuracy")
    assert {row[0] for row in rows} == TASKS
    for recipe, timesteps, seeds, *fixed, further in rows:
        group = measured(recipe)
        assert timesteps == str(group.key.timesteps)
        assert seeds == str(len(group.methods["bptt"].seeds))
        others = dict(entry.split(": ") for entry in further.split(", "))
        assert {*FIXED, *others} == set(group.methods)
        assert [*fixed, *others.values()] == [accuracy(group, name) for name in (*FIXED, *others)], recipe


def test_what_is_said_of_eprop_on_adaptive_neurons_is_what_its_runs_reached() -> None:
    group = measured("digits-alif", "e-prop")
    assert len(group.methods["e-prop"].seeds) == 3
    text = " ".join(PAGE.split())
    assert f"reaches {accuracy(group, 'e-prop')} % on `digits-alif` (three seeds)" in text
    paths = (ROOT / "results" / "digits-alif").glob("*/epochs.csv")
    peaks = pd.concat(map(pd.read_csv, paths)).groupby("method").peak_tensor_bytes.max() / 2**20
    figures = re.search(r"e-prop takes (\S+) MiB .* where BPTT takes (\S+) and SLTT (\S+)\. Flat", text)
    assert figures
    assert list(figures.groups()) == [f"{peaks[method]:.2f}" for method in ("e-prop", "bptt", "sltt")]


@pytest.mark.parametrize("recipe", sorted(TASKS))
def test_the_claims_of_the_embedded_tasks_are_kept_by_their_runs(recipe: str) -> None:
    verdicts = judge([measured(recipe)])
    assert len(verdicts) == len(load_recipe(recipe).claims) >= 2
    assert {verdict.word for verdict in verdicts} == {"held"}


def test_the_table_of_memory_against_t_is_that_of_its_run() -> None:
    (folder,) = re.findall(r"`(results/vowels/\S+)`", PAGE[PAGE.index("## Memory against T") :])
    epochs = pd.read_csv(ROOT / folder / "epochs.csv")
    peaks = epochs.groupby(["method", "timesteps"]).peak_tensor_bytes.max() / 2**20
    rows = table_after("## Memory against T")
    for method, *figures in rows:
        assert figures == [f"{peak:.2f}" for peak in peaks[method]], method
    assert [row[0] for row in rows] == ["bptt", "sltt", "sltt-k2", "e-prop"]
    assert list(peaks["bptt"].index) == [32, 64, 128, 256]
    inputs = 2 * 32 * 12 * 4 / 2**20  # of a step of the batch, as loaded and cut into steps
    growth = {row[0]: (peaks[row[0]][256] - peaks[row[0]][32]) / 224 for row in rows}
    assert growth["bptt"] > 10 * inputs
    for method in ("sltt", "sltt-k2", "e-prop"):
        assert growth[method] == pytest.approx(inputs, rel=0.01)


def test_hints_at_minutes_are_those_of_the_committed_runs() -> None:
    hinted = 0
    for name in recipe_names():
        minutes = load_recipe(name).cpu_minutes
        if minutes is None:
            continue
        cells = pd.concat(pd.read_csv(path) for path in (ROOT / "results" / name).glob("*/cells.csv"))
        cells = cells[
            (cells.kind == "run") & (cells.method == "bptt") & (cells.status == "ok") & ~cells.smoke
        ]
        cells = cells[(cells.overrides == "{}") & (cells.backend == "reference") & (cells.device == "cpu")]
        measured = cells.wall_s.median() / 60  # on machines that had other work
        assert measured / 30 < minutes < measured * 1.5, name
        hinted += 1
    assert hinted >= 8
