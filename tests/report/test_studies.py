"""Studies: their grids expand into cells, their files are whole, and the report answers their questions."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from result_builder import RECIPE, HandmadeRun, varied
from rich.console import Console
from typer.testing import CliRunner

from sltt_bench.command_line.cli import app
from sltt_bench.command_line.commands import check_batches
from sltt_bench.planning.plan import Cell, Request, make_plans
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.planning.recipe_faults import RecipeError
from sltt_bench.planning.recipe_files import find_recipe, study_names
from sltt_bench.planning.studies import Grid, Study, points
from sltt_bench.report import numbers
from sltt_bench.report.claims import unfit_when
from sltt_bench.report.grouping import make_groups
from sltt_bench.report.groups import flat, in_words
from sltt_bench.report.plots.studies import Drawn
from sltt_bench.report.statistics import Stat
from sltt_bench.results.reader import read_results
from sltt_bench.results.schema import GRADIENTS_FILE
from sltt_bench.running.runner import describe
from sltt_bench.training.experiment import assemble, make_backend
from sltt_bench.tuning.plan import plan_tuning

NAMES = study_names()
QUESTIONS = {
    "k", "time-gradient", "layers", "tau", "reset", "surrogate", "normalisation", "recurrence", "latency", "size",
    "adaptive", "loss", "modality",
}  # fmt: skip


def cells_of(name: str, **request: Any) -> list[Cell]:
    (plan,) = make_plans(name, Request(device="cpu", data_dir=Path("data"), **request))
    return list(plan)


def test_a_study_for_every_question() -> None:
    assert set(NAMES) == {f"studies/{question}" for question in QUESTIONS}


def test_a_plan_names_the_tasks_of_a_study_as_its_report_does() -> None:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["run", "studies/loss", "--dry-run"])
    assert "task" in result.output.splitlines()[2].split()
    assert "_digits" not in result.output
    (plan,) = make_plans("studies/loss", Request(seeds=[0]))
    assert describe(plan.cells[0]) == "studies/loss · bptt · seed 0 · task digits"


@pytest.mark.parametrize("name", NAMES)
def test_the_file_of_a_study_says_what_it_asks_and_what_it_costs(name: str) -> None:
    schema, first, *lines = find_recipe(name).read_text(encoding="utf-8").splitlines()[:12]
    assert schema == "# yaml-language-server: $schema=../recipe.schema.json"
    assert first.startswith(f"# {name}: ")
    assert f"#   sltt-bench run {name}" in lines
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.study is not None
    assert recipe.study.question.endswith("?")
    assert "minutes" in recipe.study.cost
    assert recipe.seeds == [0, 1, 2]
    assert recipe.claims


@pytest.mark.parametrize("name", NAMES)
def test_every_claim_of_a_study_speaks_of_cells_that_it_runs(name: str) -> None:
    cells = [cell for cell in cells_of(name) if cell.kind == "run"]
    for claim in load_recipe(name).model_dump(mode="json")["claims"]:
        named = {claim["method"], *([claim["baseline"]] if claim["baseline"] else [])}
        fitting = {
            cell.method
            for cell in cells
            if unfit_when(claim, flat(cell.recipe.model_dump(mode="json")), cell.overrides) is None
        }
        assert named <= fitting, claim["says"]


@pytest.mark.parametrize("name", NAMES)
def test_every_panel_of_a_study_shows_something_that_it_runs(name: str) -> None:
    from sltt_bench.report.sections.studies import OF_ANALYSES, OF_EPOCHS, OF_RUNS

    study = load_recipe(name).study
    assert study is not None
    cells = cells_of(name)
    for panel in study.figure:
        kind = (
            "run"
            if panel.y in {*OF_RUNS, *OF_EPOCHS}
            else "analysis"
            if panel.y in OF_ANALYSES
            else "estimate"
        )
        settings = [
            flat(cell.recipe.model_dump(mode="json")) | cell.overrides | {"method": cell.method}
            for cell in cells
            if cell.kind == kind
        ]
        shown = [
            each for each in settings if all(each.get(key) == value for key, value in panel.where.items())
        ]
        assert len(shown) >= (1 if panel.x == "layer" else 2), panel


def test_the_smoke_form_is_small_and_the_full_one_fits_an_hour() -> None:
    for name in NAMES:
        assert len(cells_of(name, smoke=True)) <= 40
        assert len(cells_of(name)) <= 160


def test_a_study_expands_into_its_grids_and_takes_what_the_user_asks_for() -> None:
    cells = cells_of("studies/tau")
    counts = Counter((cell.kind, cell.method) for cell in cells)
    assert counts == {("run", "bptt"): 12, ("run", "sltt"): 12, ("analysis", "bptt"): 4}
    assert {cell.recipe.neuron.tau for cell in cells} == {1.1, 2.0, 5.0, 20.0}
    assert all(cell.recipe.study is None for cell in cells), "no cell is more than a point"
    analysis = next(cell for cell in cells if cell.kind == "analysis")
    assert analysis.options == {"epochs": [0, 10], "batches": 4}
    chosen = cells_of("studies/tau", methods=["sltt"], seeds=[7], grid=({"train.epochs": 3},))
    assert {(cell.method, cell.seed, cell.recipe.train.epochs) for cell in chosen} == {("sltt", 7, 3)}
    assert len(chosen) == 8


def test_a_grid_may_extend_another_recipe_which_its_cells_record() -> None:
    cells = cells_of("studies/modality")
    by_task = Counter(cell.overrides["extends"] for cell in cells)
    assert set(by_task) == {"_digits", "_digits-saccade", "_vowels", "_sequential-digits"}
    assert {cell.recipe.name for cell in cells} == {"studies/modality"}
    assert len({cell.recipe_hash for cell in cells}) == 4


def test_estimates_of_a_study_are_made_once_whatever_the_seeds() -> None:
    cells = [cell for cell in cells_of("studies/k") if cell.kind == "estimate"]
    assert {cell.seed for cell in cells} == {0}


def test_an_unknown_study_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'studies/tau'"):
        find_recipe("studies/tao")


def test_a_grid_of_too_many_points_and_a_word_that_no_panel_knows_are_refused() -> None:
    panel = {"y": "test_top1", "x": "neuron.tau"}
    about = {"question": "?", "limits": "", "cost": ""}
    with pytest.raises(ValueError, match="more than 200 points"):
        Study(grids=[{"over": {"timesteps": list(range(1, 202))}}], figure=[panel], **about)
    with pytest.raises(ValueError, match="figure"):
        Study(grids=[{}], figure=[{**panel, "y": "happiness"}], **about)
    with pytest.raises(ValueError, match="drawn against epoch"):
        Study(grids=[{}], figure=[{**panel, "y": "learning_curve"}], **about)


@pytest.mark.parametrize(
    ("grid", "fault"),
    [
        (
            {"settings": {"timesteps": 4}, "over": {"timesteps": [2, 4]}},
            "settings and over both have timesteps",
        ),
        (
            {"over": {"neuron.tau": [2.0], "neuron": [{}]}},
            "neuron replaces all of what neuron.tau sets a part of",
        ),
    ],
)
def test_a_grid_that_sets_a_field_in_two_places_is_refused(grid: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        Grid(**grid)


@pytest.mark.parametrize("setting", ["neuron.tau", "neuron"])
def test_what_takes_the_place_of_a_studys_own_values_is_said(setting: str) -> None:
    neuron = load_recipe("studies/tau").neuron.model_dump(mode="json")
    values = {"neuron.tau": 2.0, "neuron": neuron}
    (plan,) = make_plans("studies/tau", Request(grid=({setting: values[setting]},)))
    assert plan.left_out == (f"--set {setting} takes the place of what the study sets",)
    assert len({cell.recipe.neuron.tau for cell in plan}) == 1
    (plan,) = make_plans("studies/tau", Request(grid=({"train.epochs": 2},)))
    assert plan.left_out == ()


def test_what_takes_the_place_of_a_studys_own_values_is_named_as_the_option_that_was_typed() -> None:
    request = Request(grid=({"timesteps": 3},), origins={"timesteps": "--timesteps"})
    (plan,) = make_plans("studies/latency", request)
    assert "--timesteps takes the place of what the study sets" in plan.left_out


def test_of_each_axis_a_smoke_run_takes_the_first_value() -> None:
    study = load_recipe("studies/recurrence").study
    assert study is not None
    assert len(list(points(study))) == 4
    assert [dict(point.settings) for point in points(study, smoke=True)] == [
        {"model.recurrent": False, "neuron.tau": 2.0}
    ]


# The report ---------------------------------------------------------------------------------------

STUDY: dict[str, Any] = {
    "question": "Does τ matter?",
    "grids": [{"over": {"neuron.tau": [1.1, 5.0]}}],
    "figure": [{"y": "test_top1", "x": "neuron.tau", "lines": ["method"], "where": {}, "title": None}],
    "limits": "made by hand",
    "cost": "nothing",
}
CLAIM = {
    "metric": "test_top1",
    "method": "sltt",
    "baseline": "bptt",
    "relation": "within_points",
    "threshold": 2.0,
    "when": {"neuron.tau": 5.0},
    "says": "at τ = 5 SLTT is within 2 points",
    "source": "this project's expectation",
}


def handmade_study(folder: Path, *, lost: float = 0.10, name: str = "made", **facts: Any) -> HandmadeRun:
    """BPTT at 90 % everywhere; SLTT the same at τ = 1.1 and `lost` below at τ = 5."""
    recipe = {**RECIPE, "name": f"studies/{name}", "claims": [CLAIM], "study": STUDY}
    stamp = f"20260101-000000-{len(list(folder.rglob('cells.csv'))):04}"
    run = HandmadeRun(folder / "studies" / name / stamp, recipe=recipe, **facts)
    for tau in (1.1, 5.0):
        for seed in range(3):
            for method in ("bptt", "sltt"):
                top1 = 0.9 + 0.001 * seed - (lost if (method, tau) == ("sltt", 5.0) else 0.0)
                overrides = {} if tau == 1.1 else {"neuron.tau": tau}
                at = varied({**recipe, "study": None}, neuron__tau=tau)
                run.cell(method, seed, overrides=overrides, recipe=at, top1=(0.5, 0.6, top1))
    return run


def studied(folder: Path) -> tuple[Any, pd.DataFrame]:
    from sltt_bench.report.document import Context
    from sltt_bench.report.sections.studies import studies
    from sltt_bench.results.reader import read_results

    part = studies(Context(read_results([folder]), "bptt"))
    return part.sections, part.frames.get("studies.csv", pd.DataFrame())


def test_a_claim_that_nothing_judges_stands_among_the_studys_others(tmp_path: Path) -> None:
    """An expectation whose cells failed is not left out, or the others would be all."""
    claims = [CLAIM, {**CLAIM, "says": "at τ = 9 too", "when": {"neuron.tau": 9.0}}]
    recipe = {**RECIPE, "name": "studies/made", "claims": claims, "study": STUDY}
    run = HandmadeRun(tmp_path / "studies" / "made" / "a", recipe=recipe)
    for seed, method, tau in product(range(3), ("bptt", "sltt"), (5.0, 9.0)):
        at = varied({**recipe, "study": None}, neuron__tau=tau)
        lost = {"status": "error", "reason": "no reason"} if (method, tau) == ("bptt", 9.0) else {}
        run.cell(method, seed, recipe=at, overrides={"neuron.tau": tau}, **lost)
    (section,), _ = studied(tmp_path)
    answer = section.lead[1]
    assert answer.startswith("at τ = 5 SLTT is within 2 points: held")
    assert "at τ = 9 too: not measured, bptt did not finish: error, no reason" in answer


def test_a_study_is_a_question_a_figure_and_a_sentence_with_its_verdict(tmp_path: Path) -> None:
    from sltt_bench.report.document import Figure

    handmade_study(tmp_path)
    (section,), frame = studied(tmp_path)
    question, answer, limits = section.lead
    assert question == "Does τ matter?"
    assert answer.startswith("at τ = 5 SLTT is within 2 points: not held, −10.00 points")
    assert "n = 3" in answer
    assert limits == "Limits: made by hand"
    (figure,) = (block for block in section.blocks if isinstance(block, Figure))
    assert "n = 3 seeds a point" in figure.caption
    assert "at the recipe's learning rate" in figure.caption
    means = {(row.line, row.at): (row.mean, row.n) for row in frame.itertuples()}
    assert means == {
        ("bptt", 1.1): (pytest.approx(0.901), 3),
        ("bptt", 5.0): (pytest.approx(0.901), 3),
        ("sltt", 1.1): (pytest.approx(0.901), 3),
        ("sltt", 5.0): (pytest.approx(0.801), 3),
    }
    drawn = figure.draw("double")
    (axes,) = drawn.axes
    lines = {
        line.get_label(): list(line.get_ydata()) for line in axes.get_lines() if len(line.get_xdata()) == 2
    }
    assert [pytest.approx(90.1), pytest.approx(80.1)] in list(lines.values())


def test_times_of_a_study_have_the_mean_of_every_other_table(tmp_path: Path) -> None:
    """The geometric one, on either axis."""
    from sltt_bench.report.document import Figure
    from sltt_bench.report.grouping import make_groups
    from sltt_bench.results.reader import read_results

    figure = [
        {"y": "epoch_s", "x": "neuron.tau", "lines": ["method"], "where": {}, "title": "as y"},
        {"y": "test_top1", "x": "epoch_s", "lines": ["method"], "where": {}, "title": "as x"},
    ]
    recipe = {**RECIPE, "name": "studies/made", "claims": [], "study": {**STUDY, "figure": figure}}
    run = HandmadeRun(tmp_path / "studies" / "made" / "20260101-000000-0000", recipe=recipe)
    for seed, seconds in enumerate((1.0, 2.0, 32.0)):
        run.cell("bptt", seed, recipe={**recipe, "study": None}, train_s=(99.0, seconds), top1=(0.5, 0.6))
    (section,), frame = studied(tmp_path)
    (group,) = make_groups(read_results([tmp_path]))
    in_tables = group.methods["bptt"].stat("epoch_s")
    assert in_tables is not None
    assert in_tables.mean == pytest.approx(4.0)
    rows = {row["panel"]: row for row in frame.to_dict("records")}
    assert rows["as y"]["mean"] == pytest.approx(in_tables.mean)
    assert rows["as x"]["at"] == pytest.approx(in_tables.mean)
    (drawn,) = (block for block in section.blocks if isinstance(block, Figure))
    assert drawn.caption.startswith(f"Mean over seeds. Bars: {numbers.DEVIATION_OF_RATIOS}. ")
    # Their bars are multiplicative too: an arithmetic deviation around 4 s reached from −13.6 to 21.6 s.
    factor = in_tables.geometric_std
    assert factor is not None
    assert rows["as y"]["geometric_std"] == pytest.approx(factor)
    assert rows["as y"]["spread"] == f"×/÷ {factor:.2f}"
    (bars,) = drawn.draw("double").axes[0].collections
    (ends,) = bars.get_segments()  # type: ignore[attr-defined]
    assert ends[:, 1] == pytest.approx((4.0 / factor, 4.0 * factor))


def test_a_study_of_one_seed_says_so_in_its_panels(tmp_path: Path) -> None:
    """But for what is counted, which another seed repeats."""
    from sltt_bench.report.document import Figure

    figure = [
        {"y": measure, "x": "neuron.tau", "lines": ["method"], "where": {}, "title": measure}
        for measure in ("epoch_s", "test_top1", "peak_tensor_bytes")
    ]
    recipe = {**RECIPE, "name": "studies/made", "claims": [], "study": {**STUDY, "figure": figure}}
    run = HandmadeRun(tmp_path / "studies" / "made" / "20260101-000000-0000", recipe=recipe)
    run.cell(
        "bptt", recipe={**recipe, "study": None}, train_s=(9.0, 1.0), top1=(0.5, 0.6), peak_tensor_bytes=2**20
    )
    (section,), _ = studied(tmp_path)
    (drawn,) = (block for block in section.blocks if isinstance(block, Figure))
    assert [axes.get_ylabel() for axes in drawn.draw("double").axes] == [
        "epoch time [s]\nn = 1 seed", "test top-1 [%]\nn = 1 seed", "peak live tensors [MiB]",
    ]  # fmt: skip


def test_a_study_against_numbers_is_drawn_where_only_rules_without_one_were_run(tmp_path: Path) -> None:
    """As by `run studies/k --method bptt,sltt`: the report ended in an error. Every seed is a dot where there is a place."""
    from sltt_bench.report.document import Figure

    figure = [
        {"y": "test_top1", "x": x, "lines": ["method"], "where": {}, "title": x}
        for x in ("number", "neuron.tau")
    ]
    recipe = {**RECIPE, "name": "studies/made", "claims": [], "study": {**STUDY, "figure": figure}}
    run = HandmadeRun(tmp_path / "studies" / "made" / "20260101-000000-0000", recipe=recipe)
    for method in ("bptt", "sltt"):
        for seed, top1 in enumerate((0.5, 0.6, 0.8)):
            run.cell(method, seed, recipe={**recipe, "study": None}, top1=(0.1, 0.2, top1))
    (section,), _ = studied(tmp_path)
    (shown,) = (block for block in section.blocks if isinstance(block, Figure))
    levels, points = shown.draw("double").axes
    assert [line.get_ydata()[0] for line in levels.get_lines()] == pytest.approx([190 / 3] * 2)
    dots = [line for line in points.get_lines() if line.get_marker() == "."]
    assert [list(line.get_ydata()) for line in dots] == [pytest.approx([50, 60, 80])] * 2


def test_a_learning_curve_is_the_accuracy_after_each_epoch_of_the_method_that_is_asked_for(
    tmp_path: Path,
) -> None:
    panel = {
        "y": "learning_curve",
        "x": "epoch",
        "lines": ["neuron.tau"],
        "where": {"method": "sltt"},
        "title": None,
    }
    recipe = {**RECIPE, "name": "studies/made", "claims": [], "study": {**STUDY, "figure": [panel]}}
    run = HandmadeRun(tmp_path / "studies" / "made" / "20260101-000000-0000", recipe=recipe)
    at = {**recipe, "study": None}
    for seed in range(2):
        run.cell("bptt", seed, recipe=at, top1=(0.1, 0.1, 0.1))
        run.cell("sltt", seed, recipe=at, top1=(0.5, 0.6 + 0.1 * seed, 0.8))
    _, frame = studied(tmp_path)
    curve = {row.at: (row.mean, row.n) for row in frame.itertuples()}
    assert curve == {
        1: (pytest.approx(0.5), 2), 2: (pytest.approx(0.65), 2), 3: (pytest.approx(0.8), 2),
    }  # fmt: skip


def test_a_study_that_was_run_again_is_shown_by_its_newest_run(tmp_path: Path) -> None:
    handmade_study(tmp_path)
    handmade_study(tmp_path, lost=0.0, device_name="Another CPU, 2 threads")
    _, frame = studied(tmp_path)
    assert frame["mean"].min() == pytest.approx(0.901)


def looked_at(
    run: HandmadeRun, cosine: float, seed: int = 0, *, smoke: bool = False, number: int = 0
) -> None:
    """An analysis of a study's only point, made in the order of the numbers."""
    run.number = number
    about = {"kind": "analysis", "smoke": smoke}
    recipe = {**run.recipe, "study": None}
    cell_id = run.cell("bptt", seed, train_s=(), top1=None, recipe=recipe, cell=about)
    run.append(
        GRADIENTS_FILE,
        {
            "schema_version": 1, "cell_id": cell_id, "attempt": 1, "recipe": run.recipe["name"], "recipe_hash": "made", "method": "bptt",
            "backend": "reference", "timesteps": 6, "batch_size": 64, "precision": "fp32", "device": "cpu", "seed": seed,
            "tau": 1.1, "surrogate": "triangle", "reset": "soft", "detach_reset": False, "epoch": 0, "level": "network",
            "name": "", "depth": 0, "elements": 10, "batches": 4, "zero_batches": 0, "cosine_mean": cosine,
        },
    )  # fmt: skip


@pytest.mark.parametrize("trains", [False, True])
def test_an_analysis_of_a_study_that_was_run_again_is_no_further_seed(trains: bool, tmp_path: Path) -> None:
    panel = {"y": "cosine", "x": "neuron.tau", "lines": [], "where": {}, "title": None}
    recipe = {**RECIPE, "name": "studies/made", "claims": [], "study": {**STUDY, "figure": [panel]}}
    for number, cosine in enumerate((0.5, 0.9)):
        stamp = f"20260101-00000{number}-0000"
        begun = {"started_utc": f"2026-01-01T00:0{number}:00+00:00"}
        run = HandmadeRun(
            tmp_path / "studies" / "made" / stamp, recipe=recipe, facts=begun, number=50 * number
        )
        if trains:
            run.cell("sltt", 7, recipe={**recipe, "study": None})
        else:
            looked_at(run, 0.1, seed=5, smoke=True, number=number + 40)
        looked_at(run, cosine, number=number + 20)
        looked_at(run, cosine + 0.02, seed=1, number=number + 30)
    _, frame = studied(tmp_path)
    assert [(row.at, row.n) for row in frame.itertuples()] == [(1.1, 2)]
    assert frame["mean"].item() == pytest.approx(0.91)


def test_what_a_study_did_not_finish_is_said_and_machines_are_not_mixed(tmp_path: Path) -> None:
    run = handmade_study(tmp_path)
    at = varied({**run.recipe, "study": None}, neuron__tau=1.1)
    run.cell("sltt", 3, recipe=at, status="error", reason="RuntimeError: made up")
    run.cell("bptt", 3, recipe=at)
    handmade_study(tmp_path, lost=0.0, device_name="Another CPU, 2 threads")
    (section,), frame = studied(tmp_path)
    assert frame["mean"].min() == pytest.approx(0.801), "of the machine with more cells"
    text = " ".join(section.lead)
    assert "1 of 14 cells did not finish: 1 error: RuntimeError: made up." in text
    assert "Left out here: 2 groups of the study, run on another machine" in text


def test_a_group_of_the_study_s_own_task_is_told_from_those_of_other_tasks(tmp_path: Path) -> None:
    run = handmade_study(tmp_path)
    for method in ("bptt", "sltt"):
        other = varied({**run.recipe, "study": None}, description="another task")
        run.cell(
            method,
            overrides={"extends": "_vowels"},
            recipe=other,
            recipe_hash="vowels",
            cell={"recipe_hash": "vowels"},
        )
    groups = make_groups(read_results([tmp_path]))
    words = [in_words(group, groups) for group in groups]
    assert sorted(word.partition(", ")[0] for word in words) == ["task the study's own"] * 2 + ["task vowels"]
    only_own = [group for group in groups if "extends" not in group.overrides]
    assert not any("task" in in_words(group, only_own) for group in only_own)


@pytest.mark.parametrize(
    ("older", "lengths", "words"),
    [(False, (4, 10), "4, 10 epochs"), (True, (4, 10), "4, 10 epochs"), (False, (1,), "1 epoch")],
)
def test_points_that_were_tuned_with_trials_of_several_lengths_stand_in_one_figure(
    older: bool, lengths: tuple[int, ...], words: str, tmp_path: Path
) -> None:
    """But never beside what was not tuned; of equally many cells the tuned ones are shown, though they be older."""
    run = handmade_study(tmp_path)
    if older:
        run = HandmadeRun(run.path.parent / "20250101-000000-0000", recipe=run.recipe)
    for tau, epochs in ((1.1, lengths[0]), (5.0, lengths[-1])):
        overrides = {} if tau == 1.1 else {"neuron.tau": tau}
        at = varied({**run.recipe, "study": None}, neuron__tau=tau, description="tuned")
        for method in ("bptt", "sltt"):
            for seed in range(3 if older else 4):
                about: dict[str, Any] = {"recipe_hash": f"tuned at {tau}"}
                cell_id = run.cell(
                    method,
                    seed,
                    overrides=overrides,
                    recipe=at,
                    top1=(0.5, 0.6, 0.7),
                    cell={"trials": 5, **about},
                    **about,
                )
                file = run.path / "cells" / f"{cell_id}.json"
                options = {"tuned": {"protocol": {"epochs": epochs}, "trials": 5}}
                file.write_text(json.dumps({**json.loads(file.read_text()), "options": options}))
    (section,), frame = studied(tmp_path)
    assert set(frame["mean"].round(3)) == {0.7}
    assert set(frame["at"]) == {1.1, 5.0}
    assert section.blocks[0].caption.endswith(f"tuned, 5 trials each ({words}).")
    assert "2 groups of the study" in " ".join(section.lead)


def test_a_point_that_was_tuned_twice_is_shown_as_the_newest_tuned_it(tmp_path: Path) -> None:
    """Not as the mean of two tunings, nor of two versions of a recipe; and a seed that was run twice is one."""
    recipe = handmade_study(tmp_path).recipe
    for number, (trials, top1) in enumerate({3: 0.5, 9: 0.6}.items()):
        # The tuning that began first is the one that was run again last.
        run = HandmadeRun(tmp_path / "zz" / str(1 - number), recipe=recipe, number=100 * number)
        again = HandmadeRun(tmp_path / "zz" / f"{number} again", recipe=recipe, number=100 * number + 50)
        for tau in (1.1, 5.0):
            at = varied({**recipe, "study": None}, neuron__tau=tau, description=f"tuned {trials}")
            overrides = {} if tau == 1.1 else {"neuron.tau": tau}
            for method, seed, folder in product(("bptt", "sltt"), range(4), (run, again)):
                cell = {"trials": trials}
                values = (top1, top1 + 0.01, top1 + 0.02)
                cell_id = folder.cell(method, seed, overrides=overrides, recipe=at, top1=values, cell=cell)
                file = folder.path / "cells" / f"{cell_id}.json"
                options = {"tuned": {"protocol": {"epochs": 4}, "trials": trials}}
                file.write_text(json.dumps({**json.loads(file.read_text()), "options": options}))
    (section,), frame = studied(tmp_path)
    assert set(frame["mean"].round(3)) == {0.62}
    assert set(frame["n"]) == {4}
    assert "4 groups of the study" in " ".join(section.lead)  # those untuned, and those of 3 trials


def test_each_study_of_a_report_has_its_page(tmp_path: Path) -> None:
    from sltt_bench.report import make_report

    handmade_study(tmp_path, name="one")
    handmade_study(tmp_path, name="two")
    console = Console(file=None, record=True, width=200)
    outcome = make_report([tmp_path], out=tmp_path / "report", formats=("csv", "html"), console=console)
    names = {path.relative_to(tmp_path / "report").as_posix() for path in outcome.files}
    assert {
        "page-studies-one.html",
        "page-studies-two.html",
        "studies.csv",
    } <= names
    page = (tmp_path / "report" / "page-studies-one.html").read_text(encoding="utf-8")
    assert "Does τ matter?" in page


# Run ----------------------------------------------------------------------------------------------


LARGEST = ("adaptive", "modality", "size", "time-gradient")
"""Studies of many cells or large networks. The others run every kind of cell and more than one recipe too, and
`test_every_run_of_a_study_trains` has the methods and settings of these."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.long] * (name.removeprefix("studies/") in LARGEST))
        for name in NAMES
    ],
)
def test_the_smoke_form_runs_as_planned_and_its_question_is_printed(name: str, tmp_path: Path) -> None:
    arguments = ["run", name, "--smoke", "--no-estimate", "--device", "cpu", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    study = load_recipe(name).study
    assert study is not None
    assert " ".join(study.question.split()) in " ".join(result.output.split())
    (folder,) = (tmp_path / name).iterdir()
    cells = pd.read_csv(folder / "cells.csv", dtype={"cell_id": str})
    assert set(cells.status) == {"ok"}
    planned = cells_of(name, smoke=True)
    assert Counter(cells.cell_id) == Counter(cell.cell_id for cell in planned)
    assert json.loads((folder / "cells" / f"{cells.cell_id[0]}.json").read_text())["recipe"]["study"] is None
    again = load_recipe(str(folder / "recipe.yaml"))
    assert again.name == name
    assert again.study is not None


def each_value_once(cells: Iterable[Cell]) -> Iterator[Cell]:
    """Of cells those with a method, or a value of an axis, that none before them has."""
    tried: set[tuple[str, str]] = set()
    for cell in cells:
        values = {(key, repr(value)) for key, value in (*cell.overrides.items(), ("method", cell.method))}
        if values - tried:
            tried |= values
            yield cell


@pytest.mark.parametrize("name", NAMES)
def test_every_run_of_a_study_trains(name: str, request: pytest.FixtureRequest) -> None:
    """One iteration on eight random samples, with each method and each value of an axis; in the long campaign at each
    point with each method. A smoke run takes each axis's first value."""
    runs = {(cell.recipe_hash, cell.method): cell for cell in cells_of(name) if cell.kind == "run"}
    every = request.config.getoption("--campaign") == "long"
    for cell in runs.values() if every else each_value_once(runs.values()):
        experiment = assemble(cell, torch.device("cpu"), make_backend(cell))
        steps = (cell.recipe.timesteps,) if cell.recipe.data.temporal else ()
        x = torch.randn(8, *steps, *cell.recipe.data.sample_shape)
        before = [parameter.clone() for parameter in experiment.network.parameters()]
        unroll = experiment.training_iteration(x, torch.arange(8) % 2)
        assert unroll.summed_loss.isfinite()
        parameters = zip(before, experiment.network.parameters(), strict=True)
        draws_the_answer = (
            cell.recipe.loss.window is None or cell.k is None
        )  # else K steps may miss the last one
        assert not draws_the_answer or any(not torch.equal(a, b) for a, b in parameters)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "studies/surrogate"])
def test_the_trials_of_a_studys_smoke_run_fill_their_batches(name: str) -> None:
    """What validation leaves of so few samples; settings of the study that is left out cannot be chosen."""
    for plan in plan_tuning(name, Request(smoke=True)):
        check_batches(plan)


@pytest.mark.parametrize(
    ("mean", "std", "words"),
    [
        (1.0, 0.0, ("1.000", "± 0")),
        (0.9998176, None, ("0.9998", "")),
        (0.9999906, 0.00012, ("0.99999", "± 0.00012")),
        (0.9897390, 0.000496, ("0.990", "± 0.0005")),
        (0.0003, 0.0001, ("0.0003", "± 0.0001")),
    ],
)
def test_a_cosine_that_is_not_1_and_a_spread_that_is_not_0_are_not_written_so(
    mean: float, std: float | None, words: tuple[str, str]
) -> None:
    panel = Drawn(measure="cosine", x="neuron.tau", title="", lines=())
    assert panel.text(Stat(mean, std, 1 if std is None else 3)) == words
