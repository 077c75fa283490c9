"""The report on tuning and targets: tuned beside untuned but never in one ratio, and a missed target is never."""

import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
import pytest
from checkout import ROOT
from result_builder import RECIPE, HandmadeRun, varied
from rich.console import Console

from sltt_bench.common.identity import short_hash
from sltt_bench.report import make_report
from sltt_bench.report.claims import judge
from sltt_bench.report.document import ClaimCard, Context, Figure, MissingFigure, Table, Verdict
from sltt_bench.report.grouping import make_groups
from sltt_bench.report.groups import NotComparable
from sltt_bench.report.sections.runs.sweeps import find_sweeps
from sltt_bench.report.sections.tuning import tuning
from sltt_bench.report.targets import NEVER, profiles, to_target
from sltt_bench.report.tuning import counterpart, gains, studies, trained_after
from sltt_bench.results.reader import read_results
from sltt_bench.results.schema import TUNING_FILE

RATES = (0.01, 0.1, 1.0)
PROTOCOL = {"grid": {"train.lr": list(RATES)}, "epochs": 3}
TARGET = varied(RECIPE, target=0.7, train__lr=0.1, data__test_samples=100)


def trial(
    run: HandmadeRun,
    method: str,
    lr: float,
    seed: int,
    top1: float | None,
    point: Mapping[str, Any] = MappingProxyType({}),
    **facts: Any,
) -> None:
    """A trial with its row of tuning.csv."""
    there = {key.replace(".", "__"): value for key, value in point.items()}
    recipe = varied(run.recipe, train__lr=lr, validation__share=0.2, description=f"{dict(point)}", **there)
    cell = {"kind": "trial", "validation": "stratified 0.2, seed 0", "last_validation_top1": top1}
    cell_id = run.cell(method, seed, recipe=recipe, top1=None, cell=cell, overrides={**point, "train.lr": lr})
    run.append(
        TUNING_FILE,
        {
            "schema_version": 1, "cell_id": cell_id, "attempt": 1, "recipe": recipe["name"], "recipe_hash": f"at {lr}",
            "method": method, "backend": "reference", "timesteps": 6, "batch_size": 64, "precision": "fp32",
            "device": "cpu", "seed": seed, "protocol": short_hash(PROTOCOL), "setting": json.dumps({"train.lr": lr}), "trial": 1,
            "trials": 6, "status": "ok" if top1 is not None else "error", "validation_top1": top1, "chosen": False,
            "as_recipe": lr == 0.1, **facts,
        },
    )  # fmt: skip


def tuned_cell(
    run: HandmadeRun,
    method: str,
    seed: int,
    lr: float,
    last: float,
    point: Mapping[str, Any] = MappingProxyType({}),
    trials: int = 6,
) -> None:
    """A cell of the final training, whose hash is that of the protocol and not of its learning rate."""
    about = {"recipe_hash": f"tuned alike {dict(point)} {trials}"}
    cell = {"trials": trials, **about}
    there = {key.replace(".", "__"): value for key, value in point.items()}
    recipe = varied(run.recipe, description=f"{dict(point)} {trials}", **there)
    cell_id = run.cell(
        method, seed, top1=(0.1, 0.2, last), recipe=recipe, overrides=dict(point), cell=cell, **about
    )
    (run.path / "cells" / f"{cell_id}.json").write_text(
        json.dumps(
            {
                "recipe": varied(run.recipe, train__epochs=3, train__lr=lr, **there),
                "options": {"tuned": {"protocol": PROTOCOL, "trials": trials}},
            }
        )
    )


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two methods: sltt is better at the recipe's 0.1, bptt once each has its own learning rate."""
    run = HandmadeRun(tmp_path / "tuned", recipe=TARGET)
    for method, values, chosen in (("bptt", (0.92, 0.5, None), 0.01), ("sltt", (0.6, 0.8, 0.7), 0.1)):
        for lr, value in zip(RATES, values, strict=True):
            for seed in (7, 8):
                top1 = None if value is None else value + 0.01 * (seed - 7)
                edge = "train.lr" if lr == chosen == 0.01 else None
                trial(run, method, lr, seed, top1, chosen=lr == chosen, at_edge=edge)
    for seed in (0, 1, 2):
        tuned_cell(run, "bptt", seed, 0.01, 0.9 + 0.01 * seed)
        tuned_cell(run, "sltt", seed, 0.1, 0.8)
    untuned = HandmadeRun(tmp_path / "untuned", recipe=TARGET)
    for seed in (0, 1, 2):
        untuned.cell("bptt", seed, top1=(0.1, 0.2, 0.6))
        untuned.cell("sltt", seed, top1=(0.1, 0.2, 0.8))
    return tmp_path


def blocks(folder: Path) -> dict[str, Any]:
    part = tuning(Context(read_results([folder]), "bptt"))
    return {block.title: block for section in part.sections for block in section.blocks}


def text_of(table: Table) -> list[list[str]]:
    return [[f"{cell.text} {cell.detail}".strip() for cell in row] for row in table.rows]


def test_tuned_and_untuned_cells_are_in_groups_of_their_own_and_say_so(study: Path) -> None:
    groups = {group.key.tuning: group for group in make_groups(read_results([study]))}
    assert set(groups) == {"tuned, 6 trials each (3 epochs)", "at the recipe's learning rate"}
    tuned = groups["tuned, 6 trials each (3 epochs)"]
    assert not isinstance(tuned.difference("last_test_top1", "sltt", "bptt"), NotComparable)
    assert tuned.settings["train.lr"] == "tuned"
    assert all(group.key.tuning in group.key.conditions() for group in groups.values())
    assert not find_sweeps(list(groups.values()))


def test_a_method_that_ran_tuned_only_is_refused_beside_an_untuned_one(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "run", recipe=TARGET)
    tuned_cell(run, "sltt", 0, 0.1, 0.8)
    run.cell("bptt", 0)
    group = next(g for g in make_groups(read_results([tmp_path])) if not g.key.tuned)
    refused = group.ratio("epoch_s", "sltt", "bptt")
    assert isinstance(refused, NotComparable)
    assert "learning rate or tuning" in refused.reason


def test_learning_rates_set_by_hand_are_told_apart_and_still_make_a_sweep(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "run", recipe=TARGET)
    run.cell("bptt", 0)
    run.cell("bptt", 0, recipe=varied(TARGET, train__lr=0.5), overrides={"train.lr": 0.5})
    groups = make_groups(read_results([tmp_path]))
    assert {g.key.tuning for g in groups} == {"at the recipe's learning rate", "at learning rate 0.5"}
    assert [list(sweep.groups) for sweep in find_sweeps(groups)] == [[0.1, 0.5]]


def test_a_sweep_of_tuned_groups_mixes_no_budgets(tmp_path: Path) -> None:
    """Each T was tuned with 6 trials and with 12: two sweeps, in which no group takes another's place."""
    run = HandmadeRun(tmp_path / "run", recipe=TARGET)
    for timesteps in (2, 4):
        for trials in (6, 12):
            tuned_cell(run, "bptt", 0, 0.1, 0.8, {"timesteps": timesteps}, trials)
    sweeps = find_sweeps(make_groups(read_results([tmp_path])))
    assert sorted(sorted({g.key.tuning for g in sweep.groups.values()}) for sweep in sweeps) == [
        ["tuned, 12 trials each (3 epochs)"],
        ["tuned, 6 trials each (3 epochs)"],
    ]
    assert [list(sweep.groups) for sweep in sweeps] == [[2, 4], [2, 4]]


def test_groups_that_no_field_tells_apart_are_in_no_sweep(tmp_path: Path) -> None:
    """Two trainings at T = 4 began from different weights, of which the recipe says nothing."""
    run = HandmadeRun(tmp_path / "run", recipe=TARGET)
    for timesteps, begun in ((2, ""), (4, "random"), (4, "from a checkpoint"), (6, "")):
        run.cell("bptt", 0, recipe=varied(TARGET, timesteps=timesteps, description=begun))
    (sweep,) = find_sweeps(make_groups(read_results([tmp_path])))
    assert list(sweep.groups) == [2, 6]


def test_a_study_tells_every_setting_what_was_chosen_and_what_was_lost(study: Path) -> None:
    (actual,) = studies(read_results([study]))
    assert (actual.recipe, actual.trials, actual.fields) == ("digits", 6, ("train.lr",))
    means = {
        m: [None if t.mean is None else round(t.mean, 3) for t in of] for m, of in actual.methods.items()
    }
    assert means == {"bptt": [0.925, 0.505, None], "sltt": [0.605, 0.805, 0.705]}
    assert actual.as_recipe == {"train.lr": 0.1}
    shown = blocks(study)
    assert text_of(shown["What was chosen, 6 trials each (3 epochs)"]) == [
        ["bptt", "train.lr = 0.01", "92.50", "50.50", "2", "train.lr"],
        ["sltt", "train.lr = 0.1", "80.50", "80.50", "0", "–"],
    ]
    figure = shown["Accuracy against what was searched"]
    assert isinstance(figure, Figure)
    assert "Tuned, 6 trials each (3 epochs)" in figure.caption
    (axes,) = figure.draw("double").axes
    lines = {str(line.get_label()): line for line in axes.lines}
    assert list(lines["bptt"].get_xdata()) == [0.01, 0.1]
    assert list(lines["sltt"].get_ydata()) == pytest.approx([60.5, 80.5, 70.5])


def test_methods_tuned_on_different_versions_of_a_recipe_are_in_studies_of_their_own(tmp_path: Path) -> None:
    for number, (method, channels) in enumerate((("bptt", [8]), ("sltt", [64]))):
        recipe = varied(TARGET, model__channels=channels)
        run = HandmadeRun(tmp_path / method, recipe=recipe, number=100 * number)
        for lr in RATES:
            for seed in (7, 8):
                trial(run, method, lr, seed, 0.5 + lr / 10, chosen=lr == 1.0)
        tuned_cell(run, method, 0, 1.0, 0.8, trials=6 + number)
    results = read_results([tmp_path])
    assert [(study.title, *study.methods) for study in studies(results)] == [
        ("digits, model.channels = [64]", "sltt"),
        ("digits, model.channels = [8]", "bptt"),
    ]
    for study in studies(results):
        (group,) = trained_after(study, make_groups(results))
        assert set(group.methods) == set(study.methods)


def test_a_study_whose_record_was_cut_off_is_not_said_to_have_lost_its_trials(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path, recipe=TARGET)
    for lr in RATES:
        trial(run, "bptt", lr, 7, None, trials=3)
    trial(run, "sltt", RATES[0], 7, 0.6, trials=3)
    notes = " ".join(blocks(tmp_path)["What was chosen, 3 trials each (3 epochs)"].notes)
    assert "sltt: some of the 3 trials are not recorded" in notes
    assert "bptt: every setting diverged" in notes


def test_a_tuning_that_was_done_again_is_shown_as_the_newest_run_has_it(tmp_path: Path) -> None:
    """The first run chose 0.01 and the second 1.0, but for sltt, which the second did not tune, and ottt, of which it lacks trials."""
    for number, best in enumerate((0.01, 1.0)):
        begun = {"started_utc": f"2026-01-0{number + 1}T00:00:00+00:00"}
        run = HandmadeRun(tmp_path / str(number), recipe=TARGET, number=100 * number, facts=begun)
        for method in ("bptt", "ottt", "sltt") if number == 0 else ("bptt", "ottt"):
            for lr in RATES[: 2 if (method, number) == ("ottt", 1) else 3]:
                for seed in (7, 8):
                    trial(run, method, lr, seed, 0.9 if lr == best else 0.5, chosen=lr == best)
    (actual,) = studies(read_results([tmp_path]))
    chosen = {method: actual.chosen(method) for method in actual.methods}
    assert {method: tried and (tried.setting["train.lr"], tried.top1) for method, tried in chosen.items()} == {
        "bptt": (1.0, (0.9, 0.9)), "ottt": (0.01, (0.9, 0.9)), "sltt": (0.01, (0.9, 0.9))
    }  # fmt: skip
    assert all(sum(tried.chosen for tried in settings) == 1 for settings in actual.methods.values())
    notes = blocks(tmp_path)["What was chosen, 6 trials each (3 epochs)"].notes
    assert "bptt and ottt: tuned in several runs; shown is the newest that has all trials." in notes


def test_the_points_of_a_study_are_tuned_and_told_apart(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "run", recipe=varied(TARGET, name="studies/made"))
    points = ({"extends": "_digits"}, {"extends": "_vowels", "neuron.tau": 5.0})
    for place, point in enumerate(points):
        for method in ("bptt", "sltt"):
            for lr in RATES:
                own = {"train.epochs": 3} if place else {}  # a trial shorter than the training
                top1 = 0.9 if lr == RATES[place] else 0.5
                trial(run, method, lr, 7, top1, {**point, **own}, chosen=lr == RATES[place])
            tuned_cell(run, method, 0, RATES[place], 0.8 + 0.1 * place, point)
    results = read_results([tmp_path])
    actual = studies(results)
    assert [study.title for study in actual] == [
        "studies/made on digits", "studies/made on vowels, neuron.tau = 5.0"
    ]  # fmt: skip
    chosen = [study.chosen("sltt") for study in actual]
    assert [tried and tried.setting for tried in chosen] == [{"train.lr": lr} for lr in RATES[:2]]
    after = [list(trained_after(study, make_groups(results))) for study in actual]
    assert [[group.overrides for group in groups] for groups in after] == [[point] for point in points]


def test_the_loss_of_an_untuned_comparison_is_ranks_and_paired_gains(study: Path) -> None:
    groups = make_groups(read_results([study]))
    tuned = next(group for group in groups if group.key.tuned)
    untuned = counterpart(tuned, groups)
    assert untuned is not None
    by_method = {gain.method: gain for gain in gains(tuned, untuned)}
    assert (by_method["bptt"].untuned_rank, by_method["bptt"].tuned_rank) == (2, 1)
    assert by_method["bptt"].difference is not None
    assert by_method["bptt"].difference.value == pytest.approx(0.31)
    assert by_method["bptt"].difference.n == 3
    table = blocks(study)["What an untuned comparison loses"]
    assert [row[:5] for row in text_of(table)] == [
        ["bptt", "60.00", "2", "91.00", "1 +1"],
        ["sltt", "80.00", "1", "80.00", "2 −1"],
    ]
    assert "Tuning changes the ranking: bptt from 2 to 1 and sltt from 1 to 2." in table.notes


@pytest.mark.parametrize("change", [{"timesteps": 4}, {"train__weight_decay": 0.1}])
def test_an_untuned_run_under_other_conditions_is_no_counterpart(
    study: Path, change: Mapping[str, Any]
) -> None:
    other = study / "alone"
    other.mkdir()
    (study / "tuned").rename(other / "tuned")
    run = HandmadeRun(other / "untuned", recipe=varied(TARGET, **change))
    run.cell("bptt", 0)
    missing = blocks(other)["What an untuned comparison loses"]
    assert isinstance(missing, MissingFigure)
    assert missing.command == "sltt-bench run digits --method bptt,sltt"


@pytest.mark.parametrize("description", ["a version", "another", "a third"])
def test_of_several_untuned_versions_the_newest_is_set_beside_the_tuned_cells(
    study: Path, description: str
) -> None:
    """The recipe's hash changed, and nothing that is compared: which of the hashes is smaller says nothing."""
    again = HandmadeRun(
        study / "again",
        recipe=varied(TARGET, description=description),
        facts={"started_utc": "2026-02-01T00:00:00+00:00"},
        number=500,
    )
    for method in ("bptt", "sltt"):
        again.cell(method, top1=(0.1, 0.2, 0.7))
    groups = make_groups(read_results([study]))
    (tuned,) = [group for group in groups if group.key.tuned]
    assert sum(not group.key.tuned for group in groups) == 2
    untuned = counterpart(tuned, groups)
    assert untuned is not None
    assert untuned.methods["sltt"].stat("last_test_top1").mean == 0.7  # type: ignore[union-attr]


def test_a_method_that_was_tuned_to_two_settings_is_not_averaged_over_them(tmp_path: Path) -> None:
    for number, (lr, last) in enumerate([(0.01, 0.95), (1.0, 0.55)]):
        run = HandmadeRun(tmp_path / str(number), recipe=TARGET, number=50 * number)
        for seed in (0, 1, 2):
            tuned_cell(run, "bptt", seed, lr, last)
            tuned_cell(run, "sltt", seed, 0.1, 0.8)
    (group,) = make_groups(read_results([tmp_path]))
    assert isinstance(group.difference("last_test_top1", "sltt", "bptt"), NotComparable)
    settings = [
        breach for breach in group.breaches if "tuned to different settings in different runs" in breach.text
    ]
    assert [(breach.methods, breach.blocks) for breach in settings] == [(("bptt",), True)]


@pytest.mark.parametrize(("field", "word"), [("model.hidden", "not measured"), ("train.lr", "held")])
def test_a_claim_about_memory_is_not_judged_on_networks_that_each_method_chose(
    field: str, word: str, tmp_path: Path
) -> None:
    claim = {
        "says": "less memory", "source": "a paper", "when": {}, "metric": "peak_memory", "method": "sltt", "baseline": "bptt",
        "relation": "at_most_ratio", "threshold": 0.3,
    }  # fmt: skip
    recipe = varied(RECIPE, model={"name": "mlp", "hidden": [100]}, claims=[claim])
    run, protocol = HandmadeRun(tmp_path / "tuned", recipe=recipe), {**PROTOCOL, "grid": {field: [50, 400]}}
    for method, peak in (("bptt", 100), ("sltt", 20)):
        for seed in (0, 1, 2):
            about = {"recipe_hash": "alike"}
            cell_id = run.cell(
                method, seed, peak_tensor_bytes=peak * 2**20, cell={"trials": 6, **about}, **about
            )
            tuned = {
                "recipe": varied(recipe, train__epochs=3),
                "options": {"tuned": {"protocol": protocol, "trials": 6}},
            }
            (run.path / "cells" / f"{cell_id}.json").write_text(json.dumps(tuned))
    (verdict,) = judge(make_groups(read_results([tmp_path])))
    assert verdict.word == word, verdict.reason
    assert word == "held" or "tuned for each method separately" in verdict.reason


# Targets ----------------------------------------------------------------------------------------


def test_a_seed_that_misses_the_target_takes_for_ever(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "run", recipe=TARGET)
    for seed, top1 in enumerate([(0.6, 0.7, 0.8), (0.7, 0.5, 0.5), (0.6, 0.6, 0.6)]):
        run.cell("bptt", seed, top1=top1, train_s=(5.0, 2.0, 3.0), energy_j=[10.0, 20.0, 30.0])
        run.cell("sltt", seed, top1=top1 if seed == 1 else (0.1, 0.1, 0.1), train_s=(4.0, 1.0, 1.0))
    run.cell("sltt-k2", 0, top1=(0.9, 0.9, 0.9))
    run.cell("sltt-k2", 1, status="error", reason="diverged")
    ways = {way.method: way for group in make_groups(read_results([tmp_path])) for way in to_target(group)}
    assert ways["bptt"].epochs == (2.0, 1.0, NEVER)
    assert ways["bptt"].seconds == (7.0, 5.0, NEVER)
    assert ways["bptt"].joules == (30.0, 10.0, NEVER)
    assert (ways["bptt"].median_s, ways["bptt"].reached) == (7.0, 2)
    assert (ways["sltt"].median_s, ways["sltt"].reached, ways["sltt"].joules) == (NEVER, 1, ())
    assert ways["sltt-k2"].median_s == NEVER  # a seed of which no cell finished is a miss
    table = blocks(tmp_path)["Training until the target, at the recipe's learning rate"]
    assert text_of(table)[0] == ["bptt", "2 of 3", "2.00", "7.00 s"]
    assert text_of(table)[1] == ["sltt", "1 of 3", "never", "never"]


def test_a_seed_that_was_run_again_is_one_seed_on_the_way_to_the_target(tmp_path: Path) -> None:
    for number in range(5):
        run = HandmadeRun(tmp_path / str(number), recipe=TARGET, number=10 * number)
        run.cell("sltt", 0, top1=(0.1, 0.8, 0.8), train_s=(1.0, 1.0 + number, 1.0))
        run.cell("bptt", 0, top1=(0.1, 0.8, 0.8), train_s=(1.0, 1.0, 1.0))
    for seed in (1, 2):
        HandmadeRun(tmp_path / f"missed-{seed}", recipe=TARGET, number=100 * seed).cell(
            "sltt", seed, top1=(0.1, 0.1, 0.1)
        )
    ways = {way.method: way for group in make_groups(read_results([tmp_path])) for way in to_target(group)}
    assert (ways["sltt"].reached, len(ways["sltt"].epochs), ways["sltt"].median_s) == (1, 3, NEVER)
    assert ways["sltt"].seconds[0] == 4.0


def test_a_time_to_the_target_in_which_other_programs_had_a_part_says_so(tmp_path: Path) -> None:
    """Though the median of warm epochs does not: a sum takes every epoch in."""
    run = HandmadeRun(tmp_path / "run", recipe=TARGET)
    others = [0.5, 0.0, 0.0]
    run.cell(
        "bptt", 0, top1=(0.1, 0.8, 0.8), train_s=(30.0, 2.0, 3.0), cpu_util_mean=1.0, cpu_others_mean=others
    )
    run.cell("sltt", 0, top1=(0.1, 0.8, 0.8), train_s=(5.0, 2.0, 2.0), cpu_util_mean=1.0, cpu_others_mean=0.0)
    notes = blocks(tmp_path)["Training until the target, at the recipe's learning rate"].notes
    assert "bptt: until the target other programs used 47% of the processors." in notes
    assert not any("while it trained" in note or "sltt" in note for note in notes)


def test_a_method_whose_time_to_the_target_is_not_known_is_not_in_the_table(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "run", recipe=TARGET)
    for method in ("bptt", "sltt", "sltt-k2"):
        seconds: Any = (5.0, "", 2.0) if method == "sltt" else (5.0, 2.0, 2.0)
        run.cell(method, 0, top1=(0.1, 0.1, 0.8), train_s=seconds)
    table = blocks(tmp_path)["Training until the target, at the recipe's learning rate"]
    assert [row[0].text for row in table.rows] == ["bptt", "sltt-k2"]
    assert "sltt: left out, since some of its epochs have no time (its process stood still)." in table.notes


def task(folder: Path, name: str, seconds: Mapping[str, float], *, target: float = 0.7) -> None:
    """A recipe on which each method reaches the target after one epoch of so many seconds; NEVER: not at all."""
    recipe = varied(TARGET, target=target) | {"name": name}
    run = HandmadeRun(folder / name, recipe=recipe)
    for method, duration in seconds.items():
        lost = math.isinf(duration)
        run.cell(method, 0, top1=(0.1,) * 3 if lost else (0.8,) * 3, train_s=(1.0 if lost else duration,) * 3)


def test_a_profile_is_the_share_of_tasks_within_a_factor_of_the_fastest(tmp_path: Path) -> None:
    task(tmp_path, "one", {"bptt": 2.0, "sltt": 1.0, "ottt": 1.0})
    task(tmp_path, "two", {"bptt": 1.0, "sltt": 3.0})
    task(tmp_path, "three", {"bptt": 1.0, "sltt": NEVER})
    (profile,) = profiles(make_groups(read_results([tmp_path])))
    assert profile.tasks == ("one", "three", "two")
    assert profile.factors == {"bptt": (2.0, 1.0, 1.0), "sltt": (1.0, NEVER, 3.0)}
    assert [profile.share("sltt", factor) for factor in (1, 2.9, 3, 1e9)] == pytest.approx(
        [1 / 3, 1 / 3, 2 / 3, 2 / 3]
    )
    assert profile.left_out == ("ottt",)
    shown = blocks(tmp_path)
    assert text_of(shown["Share of tasks"])[1] == ["sltt", "33", "33", "33", "67", "67"]
    (axes,) = shown["Performance profile"].draw("column").axes
    line = next(line for line in axes.lines if line.get_label() == "sltt")
    assert list(line.get_ydata()) == pytest.approx([100 / 3, 200 / 3, 200 / 3])
    assert axes.get_xticks()[0] == 1.0
    assert axes.get_xlim()[0] < 1.0  # marks there do not cover the numbers of the other axis
    assert "n = 1 seed a method and task" in shown["Performance profile"].caption


def test_the_tasks_of_a_study_have_a_profile_of_their_own(tmp_path: Path) -> None:
    task(tmp_path, "one", {"bptt": 2.0, "sltt": 1.0})
    run = HandmadeRun(tmp_path / "study", recipe=varied(TARGET) | {"name": "studies/made"})
    for name, seconds in (("_images", 1.0), ("_speech", 4.0)):
        at = varied(run.recipe, timesteps=4 if name == "_images" else 6)
        for method, duration in (("bptt", 2.0), ("sltt", seconds)):
            run.cell(
                method, 0, recipe=at, overrides={"extends": name}, top1=(0.8,) * 3, train_s=(duration,) * 3
            )
        changed = {"extends": name, "neuron.tau": 5.0}
        run.cell("bptt", 0, recipe=varied(at, neuron__tau=5.0), overrides=changed, top1=(0.8,) * 3)
    (profile,) = profiles(make_groups(read_results([tmp_path])))
    assert profile.tasks == ("images", "speech")
    assert profile.factors == {"bptt": (2.0, 1.0), "sltt": (1.0, 2.0)}


def test_one_task_or_none_reached_makes_no_profile_of_chance(tmp_path: Path) -> None:
    task(tmp_path, "one", {"bptt": 2.0, "sltt": 1.0})
    assert profiles(make_groups(read_results([tmp_path]))) == []
    task(tmp_path, "two", {"bptt": NEVER, "sltt": NEVER})
    (profile,) = profiles(make_groups(read_results([tmp_path])))
    assert profile.share("sltt", 1e9) == 0.5


def test_a_profile_in_which_no_target_was_reached_is_a_table_without_a_drawing(tmp_path: Path) -> None:
    """It was a line at 0 %."""
    for name in ("one", "two"):
        task(tmp_path, name, {"bptt": NEVER, "sltt": NEVER})
    shown = blocks(tmp_path)
    assert "Share of tasks" in shown
    assert "Performance profile" not in shown


def test_every_figure_and_table_of_a_report_says_whose_settings_it_shows(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    make_report([study], out, formats=("csv", "json"), console=Console(file=io.StringIO()))
    report = json.loads((out / "report.json").read_text())
    assert (
        "Tuned on validation data with equal budgets: bptt and sltt on digits, 6 trials each (3 epochs)."
        in report["sentences"]
    )
    assert (out / "tuning.csv").is_file()
    assert (out / "targets.csv").is_file()
    drawn = [figure for section in report["sections"] for figure in section["figures"]]
    assert len(drawn) > 3
    for figure in drawn:
        assert re.search(r"[tT]uned, 6 trials each|recipe's learning rate", figure["caption"]), figure["name"]
    for section in report["sections"][1:]:
        if section["tables"] and section["conditions"]:
            words = " ".join([*section["conditions"], *(table["title"] for table in section["tables"])])
            assert re.search(r"tuned, 6 trials each|What was chosen, 6 trials|recipe's learning rate", words)


def test_a_verdict_in_few_words_tells_tuned_from_untuned() -> None:
    def short(tuning: str) -> str:
        where = ("made CPU", "fp32", "backend reference", "T = 8", tuning)
        verdict = Verdict("digits", {}, "held", "", "+1.00 points", n=3, conditions=where)
        return ClaimCard("says", "source", (verdict,)).answer

    assert short("at the recipe's learning rate") == "+1.00 points, n = 3 (digits, reference)"
    assert short("at learning rate 0.5") == "+1.00 points, n = 3 (digits, reference), at learning rate 0.5"
    tuned = "tuned, 6 trials each (15 epochs)"
    assert short(tuned) == f"+1.00 points, n = 3 (digits, reference), {tuned}"


# The page ---------------------------------------------------------------------------------------

PAGE = ROOT / "docs" / "tuning.md"


def answers(folders: Sequence[Path]) -> dict[str, list[str]]:
    """Method → its row of the page's table, from the studies in these folders (the shorter trials first)."""
    results = read_results(folders)
    groups = make_groups(results)
    rows: dict[str, list[str]] = {}
    actual = sorted(studies(results), key=lambda study: study.epochs or 0)
    for number, study in enumerate(actual):
        (tuned,) = (group for group in groups if group.protocol == study.protocol)
        untuned = counterpart(tuned, groups)
        assert untuned is not None
        for gain in gains(tuned, untuned):
            best = study.chosen(gain.method)
            assert best is not None
            assert gain.difference is not None
            assert gain.difference.n == 3
            if not number:
                rows[gain.method] = [f"{100 * gain.untuned:.1f} ({gain.untuned_rank})"]
            rows[gain.method] += [
                f"{best.setting['train.lr']:g}",
                f"{100 * gain.tuned:.1f} ({gain.tuned_rank})",
            ]
    return rows


def test_the_pages_answer_is_what_its_committed_studies_reached() -> None:
    page = PAGE.read_text(encoding="utf-8")
    folders = [ROOT / folder for folder in re.findall(r"`(results/sequential-digits/[\w-]+)`", page)]
    below = page[page.index("## What tuning changes on sequential-digits") :]
    table = re.search(r"(?:^\|.*\|$\n?)+", below, re.MULTILINE)
    assert table
    written = [
        [cell.strip().strip("`") for cell in row.split("|")[1:-1]] for row in table[0].splitlines()[2:]
    ]
    assert {row[0]: row[1:] for row in written} == answers(folders)
    assert len(written) == 5


def test_the_pages_trials_of_k_are_those_that_are_committed() -> None:
    page = PAGE.read_text(encoding="utf-8")
    (folder,) = re.findall(r"`(results/studies/k/[\w-]+)`", page)
    below = page[page.index("## The scale of a gradient") :]
    written = [
        [cell.strip().strip("`") for cell in row.split("|")[1:-1]]
        for row in re.findall(r"^\| `sltt.*$", below, re.MULTILINE)
    ]
    trials = pd.read_csv(ROOT / folder / TUNING_FILE)
    trials["rate"] = [json.loads(setting)["train.lr"] for setting in trials["setting"]]
    for method, *values, chosen in written:
        own = trials[trials["method"] == method].set_index("rate")
        assert values == [f"{100 * own['validation_top1'][rate]:.1f}" for rate in (0.3, 1.0, 3.0)]
        assert chosen == f"{own.index[own['chosen']][0]:g}"
    assert len(written) == 5
