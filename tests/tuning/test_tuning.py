"""Tuning: an equal budget for every method, a choice that no test sample can change, and a study that can be resumed."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from sltt_bench.command_line.cli import app
from sltt_bench.kinds.training import try_setting
from sltt_bench.planning.plan import TUNED, Cell, Plan, Request
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.planning.recipe_faults import RecipeError
from sltt_bench.planning.recipe_fields import Recipe
from sltt_bench.planning.recipe_files import recipe_names
from sltt_bench.report.grouping import make_groups
from sltt_bench.results.cell_row import Outcome, cell_row
from sltt_bench.results.reader import read_results
from sltt_bench.results.schema import CELLS_FILE, EPOCHS_FILE, RANKS_FILE, TUNING_FILE
from sltt_bench.results.writer import RunFolder, read_rows
from sltt_bench.running import runner
from sltt_bench.running.interruptions import Interrupted
from sltt_bench.running.worker import Reporter
from sltt_bench.tuning.choice import Trial, choose, is_lost
from sltt_bench.tuning.plan import FinalTraining, plan_tuning

GRID = {"train.lr": [0.001, 0.003, 0.01, 0.03, 0.1]}
TUNING = """
extends: digits
description: a tiny study
data: {limit: 50}
model: {channels: [2, 2]}
timesteps: 2
train: {epochs: 2, batch_size: 20}
methods: [bptt, sltt]
seeds: [0, 1]
tuning:
  grid: {train.lr: [0.01, 0.1, 1.0]}
  seeds: [7]
  epochs: 1
  validation: {samples: 287}
"""


# The choice -------------------------------------------------------------------------------------


def landscape(value: Callable[[float], float | None], seeds: Sequence[int] = (0, 1)) -> list[Trial]:
    """Trials of GRID whose accuracy is a known function of the learning rate, a little different from seed to seed."""
    return [
        Trial({"train.lr": lr}, seed, None if (top1 := value(lr)) is None else top1 + 0.01 * seed)
        for lr in GRID["train.lr"]
        for seed in seeds
    ]


@given(optimum=st.sampled_from(GRID["train.lr"]), width=st.floats(0.1, 3.0))
def test_the_optimum_of_a_made_landscape_is_chosen(optimum: float, width: float) -> None:
    """A parabola in the logarithm of the learning rate, whose top is a point of the grid."""
    choice = choose(GRID, landscape(lambda lr: 0.9 - 0.01 * (math.log(lr / optimum) / width) ** 2))
    assert choice is not None
    assert choice.setting == {"train.lr": optimum}
    assert choice.top1 == pytest.approx(0.905)
    assert choice.at_edge == (("train.lr",) if optimum in (0.001, 0.1) else ())


def test_the_mean_over_seeds_decides_and_not_the_luckiest_seed() -> None:
    values = {(0.001, 0): 0.99, (0.001, 1): 0.1, (0.003, 0): 0.7, (0.003, 1): 0.7}
    grid = {"train.lr": [0.001, 0.003]}
    choice = choose(grid, [Trial({"train.lr": lr}, seed, top1) for (lr, seed), top1 in values.items()])
    assert choice is not None
    assert choice.setting == {"train.lr": 0.003}


@pytest.mark.parametrize(
    ("equal", "chosen"),
    [
        ((0.001, 0.003, 0.01, 0.03, 0.1), 0.01),
        ((0.001, 0.1), 0.001),
        ((0.03, 0.1), 0.03),
        ((0.003, 0.03), 0.003),
    ],
)
def test_of_equal_settings_the_one_nearest_to_the_middle_then_the_first_is_chosen(
    equal: Sequence[float], chosen: float
) -> None:
    choice = choose(GRID, landscape(lambda lr: 0.8 if lr in equal else 0.5))
    assert choice is not None
    assert choice.setting == {"train.lr": chosen}


def test_a_setting_that_lost_a_trial_is_not_chosen_and_none_is_if_all_did() -> None:
    choice = choose(GRID, landscape(lambda lr: None if lr > 0.01 else lr))
    assert choice is not None
    assert choice.setting == {"train.lr": 0.01}
    assert choose(GRID, landscape(lambda lr: None)) is None
    one_seed = [
        Trial(t.setting, t.seed, None if t.seed and t.top1 == 0.91 else t.top1)
        for t in landscape(lambda lr: 0.9)
    ]
    assert choose(GRID, one_seed) is None


@pytest.mark.parametrize(
    "spoil",
    [lambda trials: trials[1:], lambda trials: [*trials, trials[0]], lambda trials: trials[2:]],
    ids=["a seed less", "one twice", "a setting less"],
)
def test_an_unequal_budget_is_refused(spoil: Callable[[list[Trial]], list[Trial]]) -> None:
    with pytest.raises(ValueError, match="not those of a grid of 5 settings"):
        choose(GRID, spoil(landscape(lambda lr: lr)))


@pytest.mark.parametrize(
    ("status", "reason", "lost"),
    [
        ("error", "the training loss became nan in epoch 3; lower train.lr", True),
        ("oom", "CUDA out of memory", True),
        ("error", "OSError: disk", False),
        ("timeout", "ended after 60 s (--timeout)", False),
        ("killed", "the process was ended by SIGTERM", False),
    ],
)
def test_only_what_the_setting_itself_ended_counts_as_tried(status: str, reason: str, lost: bool) -> None:
    assert is_lost(status, reason) is lost


# The plan ---------------------------------------------------------------------------------------


@pytest.fixture
def study(write_recipe: Callable[[str, str], Path]) -> str:
    return str(write_recipe("study", TUNING))


def trials_and_final(study: str, **asked: Any) -> tuple[Plan, FinalTraining]:
    (plan,) = plan_tuning(study, Request(device="cpu", **asked))
    assert isinstance(plan.then, FinalTraining)
    return plan, plan.then


def test_every_method_has_the_same_trials_but_for_its_name(study: str) -> None:
    plan, final = trials_and_final(study, methods=["bptt", "sltt", "sltt-k1", "ottt", "e-prop"])
    budgets = {
        method: [(c.recipe.fingerprint(), c.seed, c.backend) for c in plan if c.method == method]
        for method in final.searches[0].methods
    }
    assert len(budgets) == 5
    assert all(len(budget) == 3 == final.searches[0].tuning.trials for budget in budgets.values())
    assert len(set(map(tuple, budgets.values()))) == 1
    assert {cell.kind for cell in plan} == {"trial"}
    assert "3 trials of each of 5 methods" in plan.remarks[-1]


def test_trials_hold_back_the_split_and_train_as_long_as_tuning_says(study: str) -> None:
    plan, final = trials_and_final(study)
    assert {(c.recipe.train.epochs, c.recipe.validation) for c in plan} == {
        (1, final.searches[0].tuning.validation)
    }
    assert [c.recipe.train.lr for c in plan if c.method == "sltt"] == [0.01, 0.1, 1.0]
    assert len({cell.cell_id for cell in plan}) == len(plan)


def settled(final: FinalTraining, plan: Plan, folder: Path, top1: Callable[[Cell], float | None]) -> Plan:
    """What follows trials that ended with these validation accuracies (None: the loss diverged)."""
    run = RunFolder(folder)
    for cell in plan:
        value = top1(cell)
        outcome = (
            Outcome("ok")
            if value is not None
            else Outcome("error", "the training loss became nan in epoch 1")
        )
        epochs = {} if value is None else {1: {"validation_top1": str(value), "test_top1": ""}}
        run.append(CELLS_FILE, cell_row(cell, outcome, epochs))
    follows = final(run)
    run.close()
    return follows


def test_each_method_is_trained_with_its_own_optimum_on_all_data_and_new_seeds(
    study: str, tmp_path: Path
) -> None:
    plan, final = trials_and_final(study)
    optimum = {"bptt": 0.1, "sltt": 0.01}
    follows = settled(
        final,
        plan,
        tmp_path / "run",
        lambda c: 0.9 - abs(math.log(c.recipe.train.lr / optimum[c.method])) / 10,
    )
    assert [(c.method, c.seed, c.recipe.train.lr) for c in follows] == [
        ("bptt", 0, 0.1), ("sltt", 0, 0.01), ("bptt", 1, 0.1), ("sltt", 1, 0.01),
    ]  # fmt: skip
    assert {(c.kind, c.recipe.validation, c.recipe.train.epochs) for c in follows} == {("run", None, 2)}
    assert not {c.seed for c in follows} & {c.seed for c in plan}
    assert follows.remarks == (
        "bptt: train.lr = 0.1, validation top-1 90.0%, 3 trials",
        "sltt: train.lr = 0.01, validation top-1 90.0%, 3 trials; train.lr at the edge of the grid: a better value "
        "may lie beyond",
    )


def test_methods_tuned_alike_share_a_group_that_nothing_else_belongs_to(study: str, tmp_path: Path) -> None:
    plan, final = trials_and_final(study)
    follows = settled(
        final,
        plan,
        tmp_path / "run",
        lambda c: 0.5 + c.recipe.train.lr * (0.1 if c.method == "sltt" else -0.1),
    )
    assert {c.recipe.train.lr for c in follows} == {0.01, 1.0}
    assert len({c.recipe_hash for c in follows}) == 1
    assert {c.trials for c in follows} == {3}
    tuned = next(iter(follows))
    untuned = Cell(recipe=tuned.recipe, method=tuned.method, backend="reference", seed=0)
    assert tuned.recipe_hash != untuned.recipe_hash
    longer = json.loads(json.dumps(tuned.options))
    longer[TUNED]["protocol"]["seeds"] = [7, 8]
    assert Cell(tuned.recipe, tuned.method, "reference", 0, options=longer).recipe_hash != tuned.recipe_hash


def test_choice_and_budget_are_recorded_with_every_trials_value(study: str, tmp_path: Path) -> None:
    plan, final = trials_and_final(study)
    values = {0.01: 0.5, 0.1: 0.7, 1.0: None}
    settled(final, plan, tmp_path / "run", lambda c: values[c.recipe.train.lr])
    rows = read_rows(tmp_path / "run" / TUNING_FILE)
    assert Counter(row["method"] for row in rows) == {"bptt": 3, "sltt": 3}
    reported = [
        (
            json.loads(row["setting"])["train.lr"],
            row["trial"],
            row["trials"],
            row["validation_top1"],
            row["chosen"],
        )
        for row in rows
        if row["method"] == "bptt"
    ]
    assert reported == [
        (0.01, "1", "3", "0.5", "false"), (0.1, "2", "3", "0.7", "true"), (1.0, "3", "3", "", "false")
    ]  # fmt: skip
    assert [row["reason"] for row in rows if row["status"] != "ok"] == [
        "the training loss became nan in epoch 1"
    ] * 2
    assert len({row["protocol"] for row in rows}) == 1


def test_a_method_with_an_open_trial_is_not_chosen_for(study: str, tmp_path: Path) -> None:
    plan, final = trials_and_final(study)
    run = RunFolder(tmp_path / "run")
    for cell in plan:
        killed = cell.method == "sltt" and cell.recipe.train.lr == 0.1
        outcome = Outcome("killed", "the process was ended by SIGKILL") if killed else Outcome("ok")
        run.append(CELLS_FILE, cell_row(cell, outcome, {1: {"validation_top1": "0.5", "test_top1": ""}}))
    follows = final(run)
    assert {cell.method for cell in follows} == {"bptt"}
    assert final.unchosen == {
        "sltt": "1 of 3 trials have no result (killed: the process was ended by SIGKILL); --resume tries them again"
    }
    assert {row["method"] for row in run.rows(TUNING_FILE)} == {"bptt"}
    final(run)  # resumed: what is recorded is not recorded again
    assert len(run.rows(TUNING_FILE)) == 3
    run.close()


def test_a_record_that_was_cut_off_or_is_of_an_earlier_attempt_is_completed(
    study: str, tmp_path: Path
) -> None:
    plan, final = trials_and_final(study)
    values = {0.01: 0.5, 0.1: 0.7, 1.0: None}
    settled(final, plan, tmp_path / "run", lambda c: values[c.recipe.train.lr])
    file = tmp_path / "run" / TUNING_FILE
    whole = file.read_bytes()
    file.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))  # killed before the third of six rows
    run = RunFolder(tmp_path / "run")
    final(run)
    assert file.read_bytes() == whole
    (again,) = [cell for cell in plan if cell.method == "sltt" and cell.recipe.train.lr == 1.0]
    epochs = {1: {"validation_top1": "0.9", "test_top1": ""}}
    run.append(CELLS_FILE, cell_row(again, Outcome("ok", attempt=2), epochs))
    follows = final(run)
    run.close()
    assert {cell.recipe.train.lr for cell in follows if cell.method == "sltt"} == {1.0}
    last = {row["cell_id"]: row for row in read_rows(file)}
    chosen = [
        json.loads(row["setting"])["train.lr"]
        for row in last.values()
        if (row["method"], row["chosen"]) == ("sltt", "true")
    ]
    assert chosen == [1.0], "what is recorded is what is trained"


@pytest.mark.parametrize(
    ("asked", "fault"),
    [
        ({"grid": ({"train.lr": 0.1},)}, "--set train.lr: tuning.grid searches it"),
        ({"grid": ({"timesteps": 1}, {"timesteps": 2})}, "--set opens a grid"),
        ({"seeds": [7]}, "seed 7 is one of tuning.seeds"),
        (
            {"grid": ({"data.limit": None, "tuning.validation": {"samples": 300}},)},
            "validation.samples is 300, but 0.2 of 1437 training",
        ),
        (
            {"grid": ({"tuning.grid": {"train.lrr": [1, 2]}},)},
            r"train.lrr: unknown key \(did you mean 'lr'\?\)",
        ),
        (
            {"grid": ({"tuning.grid": {"train.lr": [0.1, -1]}},)},
            "train.lr: Input should be greater than or equal to 0",
        ),
        ({"backends": ("reference", "native")}, "--backend: settings are chosen on one"),
    ],
)
def test_what_would_make_budgets_unequal_is_refused(study: str, asked: Mapping[str, Any], fault: str) -> None:
    with pytest.raises(RecipeError, match=fault):
        plan_tuning(study, Request(**asked))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"grid": {"train.lr": [0.1]}}, "grid: train.lr needs two values"),
        ({"grid": {"train.lr": [0.1, 0.1]}}, "grid: train.lr needs two values"),
        ({"grid": {"train.lr": [1, 1.0]}}, "grid: train.lr needs two values"),
        ({"grid": {"train.epochs": [1, 2]}}, "grid: train.epochs cannot be searched"),
        ({"grid": {"train.checkpoint_every": [1, 2]}}, "grid: train.checkpoint_every cannot be searched"),
        (
            {"grid": {"train.keep_checkpoint": [True, False]}},
            "grid: train.keep_checkpoint cannot be searched",
        ),
        ({"grid": {"data.limit": [1, 2]}}, "grid: data.limit cannot be searched"),
        ({"seeds": [7, 7]}, "seeds: each once"),
    ],
)
def test_a_tuning_that_cannot_be_is_refused_with_the_key(changes: Mapping[str, Any], fault: str) -> None:
    tuning = {"grid": {"train.lr": [0.1, 0.2]}, "seeds": [7], "validation": {"samples": 287}, **changes}
    with pytest.raises(RecipeError, match=fault):
        load_recipe("digits", {"tuning": tuning})


TUNABLE = [
    *(name for name in recipe_names() if load_recipe(name).tuning is not None),
    "studies/k",
    "studies/modality",
]


@pytest.mark.parametrize("name", TUNABLE)
def test_the_tuning_of_a_shipped_recipe_can_be_planned(name: str) -> None:
    plan, final = trials_and_final(name)
    assert len(plan) == sum(len(search.methods) * search.tuning.trials for search in final.searches) <= 250
    for search in final.searches:
        assert search.own in search.tuning.settings(), (
            "the recipe's own setting is one of those that are tried"
        )
    assert all(cell.recipe.target for cell in plan)


def test_a_study_of_one_point_is_tuned_as_a_recipe_is_and_what_it_estimates_follows(tmp_path: Path) -> None:
    plan, final = trials_and_final("studies/k", methods=["sltt", "sltt-k1"])
    assert Counter((cell.kind, cell.method) for cell in plan) == {
        ("trial", "sltt"): 5,
        ("trial", "sltt-k1"): 5,
    }
    assert plan.recipe.study is not None
    follows = settled(final, plan, tmp_path / "run", lambda c: 0.5 + c.recipe.train.lr / 10)
    kinds = Counter((cell.kind, cell.method) for cell in follows)
    assert kinds == {
        ("run", "sltt"): 3, ("run", "sltt-k1"): 3, ("estimate", "sltt"): 1, ("estimate", "sltt-k1"): 1,
    }  # fmt: skip
    assert {cell.recipe.train.lr for cell in follows} == {3.0}
    assert {json.dumps(cell.overrides) for cell in follows} == {"{}"}, "one point for runs and estimates"
    assert {cell.kind: cell.trials for cell in follows} == {"run": 5, "estimate": None}


def test_a_method_that_some_points_of_a_study_lack_is_tuned_at_the_others_and_said_to_lack_them(
    tmp_path: Path,
) -> None:
    asked = ["bptt", "sltt-k2", "sltt-k4"]
    plan, final = trials_and_final("studies/latency", methods=asked)
    assert plan.left_out == (
        "sltt-k2 is left out at T = 1: K must not exceed T",
        "sltt-k4 is left out at T = 1, 2: K must not exceed T",
    )
    fitting = {1: asked[:1], 2: asked[:2], 4: asked, 6: asked, 32: asked}
    assert {search.cells[0].recipe.timesteps: search.methods for search in final.searches} == fitting
    follows = settled(final, plan, tmp_path / "run", lambda c: 0.5 + c.recipe.train.lr / 10)
    trained = {(cell.recipe.timesteps, cell.method) for cell in follows if cell.kind == "run"}
    assert trained == {(steps, method) for steps, methods in fitting.items() for method in methods}


def test_a_study_of_several_tasks_is_tuned_on_each_by_the_tasks_own_tuning(tmp_path: Path) -> None:
    plan, final = trials_and_final("studies/modality", methods=["bptt", "sltt"])
    tasks = ["_digits", "_digits-saccade", "_vowels", "_sequential-digits"]
    assert [search.where for search in final.searches] == [f"task {task.lstrip('_')}" for task in tasks]
    for search in final.searches:
        assert Counter(cell.method for cell in search.cells) == {"bptt": 6, "sltt": 6}, "an equal budget"
    assert "6 trials of each of 2 methods at each of 4 points" in plan.remarks[-1]

    def best(task: Any, method: str) -> float:
        rates = (
            [0.01, 0.03, 0.1, 0.3, 1.0] if task == "_digits-saccade" else [0.0003, 0.001, 0.003, 0.01, 0.03]
        )
        return rates[tasks.index(task) if method == "bptt" else 4]

    follows = settled(
        final,
        plan,
        tmp_path / "run",
        lambda c: 0.9 if c.recipe.train.lr == best(c.overrides["extends"], c.method) else 0.5,
    )
    assert Counter(cell.kind for cell in follows) == {"run": 4 * 2 * 3}
    for cell in follows:
        assert cell.recipe.train.lr == best(cell.overrides["extends"], cell.method)
        assert list(cell.overrides) == ["extends"]
        assert cell.recipe.validation is None
    assert [cell.overrides["extends"] for cell in follows][::6] == tasks, "one task after the other"
    assert len({cell.recipe_hash for cell in follows}) == 4
    assert "bptt, task vowels: train.lr = 0.003" in follows.remarks[4]
    rows = read_rows(tmp_path / "run" / TUNING_FILE)
    assert len(rows) == 48
    assert Counter(row["chosen"] for row in rows)["true"] == 8


def test_a_trial_that_is_open_at_one_point_leaves_the_choices_at_the_others(tmp_path: Path) -> None:
    plan, final = trials_and_final("studies/modality", methods=["sltt"])
    run = RunFolder(tmp_path / "run")
    for cell in plan:
        killed = cell.overrides["extends"] == "_vowels" and cell.recipe.train.lr == 0.01
        outcome = Outcome("killed", "the process was ended by SIGKILL") if killed else Outcome("ok")
        run.append(CELLS_FILE, cell_row(cell, outcome, {1: {"validation_top1": "0.5", "test_top1": ""}}))
    follows = final(run)
    run.close()
    assert {cell.overrides["extends"] for cell in follows} == {
        "_digits",
        "_digits-saccade",
        "_sequential-digits",
    }
    assert list(final.unchosen) == ["sltt, task vowels"]


@pytest.mark.parametrize(
    ("name", "overrides", "fault"),
    [
        ("studies/tau", {}, "also analyses or estimates has no single setting"),
        (
            "studies/reset",
            {"tuning.grid": {"neuron.reset": ["soft", "hard"]}},
            "the study sets neuron.reset, which",
        ),
        (
            "studies/recurrence",
            {"tuning": None},
            "model.recurrent=true, neuron.tau=20.0: has no section `tuning`",
        ),
    ],
)
def test_a_study_that_leaves_open_what_is_tuned_is_refused(
    name: str, overrides: Mapping[str, Any], fault: str
) -> None:
    with pytest.raises(RecipeError, match=fault):
        plan_tuning(name, Request(grid=(dict(overrides),)))


def test_a_recipe_without_tuning_says_where_one_is_to_be_seen(
    write_recipe: Callable[[str, str], Path],
) -> None:
    path = write_recipe("plain", "extends: digits\ndescription: no tuning\ntuning: null\n")
    with pytest.raises(RecipeError, match="no section `tuning`"):
        plan_tuning(str(path), Request())


def test_what_is_tuned_does_not_change_what_other_commands_run() -> None:
    tuning = {"grid": {"train.lr": [0.1, 0.2]}, "seeds": [7], "validation": {"samples": 287}}
    recipes = [
        load_recipe("digits", {"tuning": value, "target": target})
        for value, target in ((None, None), (tuning, 0.9))
    ]
    assert len({recipe.fingerprint() for recipe in recipes}) == 1


# Test data --------------------------------------------------------------------------------------


def rows_of(recipe: Recipe, folder: Path) -> list[dict[str, Any]]:
    """The epochs of a trial that is trained in this process; times left out."""
    cell = Cell(recipe=recipe, method="sltt", backend="reference", seed=7, device="cpu", kind="trial")
    stream = io.StringIO()
    try_setting(
        cell, {"data_dir": str(folder), "resume": False, "initial_weights": None}, Reporter(stream, None)
    )
    events = map(json.loads, stream.getvalue().splitlines())
    return [
        {key: row[key] for key in row if key.endswith(("loss", "top1", "top5", "rate", "samples"))}
        for row in (event["row"] for event in events if event["event"] == "epoch")
    ]


def test_shuffled_test_labels_change_no_figure_that_a_choice_is_made_on(tmp_path: Path) -> None:
    draws = np.random.RandomState(0)
    x, y = draws.rand(80, 4, 4).astype(np.float32), np.arange(80) % 4
    actual = []
    for labels in (y[:20], np.roll(y[:20], 1)):
        folder = tmp_path / str(len(actual))
        folder.mkdir()
        np.savez(folder / "arrays.npz", x_train=x[:60], y_train=y[:60], x_test=x[60:], y_test=labels)
        data = {"name": "arrays", "shape": [4, 4], "num_classes": 4, "train_samples": 60, "test_samples": 20}
        recipe = load_recipe(
            "digits",
            {
                "data": data,
                "validation": {"samples": 12},
                "model.channels": [2, 2],
                "timesteps": 2,
                "train.epochs": 2,
            },
        )
        actual.append(rows_of(recipe, folder))
    assert actual[0] == actual[1]
    assert all(row["validation_top1"] is not None for row in actual[0])
    assert not any(key.startswith("test_") for row in actual[0] for key in row)


# The command ------------------------------------------------------------------------------------


def tune(study: str, out: Path, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(
        app,
        ["tune", study, "--device", "cpu", "--no-estimate", "--out", str(out), *arguments],
        env={"COLUMNS": "250"},
    )
    return result.exit_code, result.output


def choices(out: Path) -> list[tuple[str, ...]]:
    (folder,) = out.glob("study/*/")
    names = ("cell_id", "method", "setting", "validation_top1", "setting_top1", "chosen", "trials")
    with (folder / TUNING_FILE).open() as file:
        return sorted(tuple(row[name] for name in names) for row in csv.DictReader(file))


TWO = ("--set", "tuning.grid={train.lr: [0.1, 1.0]}", "--seed", "0", "--method", "sltt")


def test_processes_that_share_a_batch_share_those_of_trials_and_of_the_final_training(
    study: str, tmp_path: Path
) -> None:
    plan, final = trials_and_final(study, grid=({"train.devices": 2},))
    assert {cell.recipe.train.devices for cell in plan} == {2}
    chosen = settled(final, plan, tmp_path / "run", lambda c: c.recipe.train.lr)
    assert {cell.recipe.train.devices for cell in chosen} == {2}
    code, output = tune(study, tmp_path / "out", *TWO, "--nproc-per-cell", "10", "--jobs", "20")
    assert code == 2
    assert "lower --jobs or --nproc-per-cell" in " ".join(output.split())
    code, output = tune(study, tmp_path / "out", *TWO, "--nproc-per-cell", "2", "--dry-run")
    assert code == 0, output
    assert not (tmp_path / "out").exists()


def test_batches_that_the_final_training_alone_cannot_divide_are_refused_before_its_trials() -> None:
    """Of 33 samples a trial trains 26, the final training all."""
    fixed = {"data.limit": 33, "train.batch_size": 8, "train.devices": 2}
    with pytest.raises(
        RecipeError, match=r"training with what is chosen: the last batch .* has 1 sample for 2"
    ):
        plan_tuning("digits", Request(grid=(fixed,)))
    plan_tuning("digits", Request(grid=({**fixed, "data.limit": 34},)))


@pytest.mark.long
def test_a_study_of_divided_cells_chooses(study: str, tmp_path: Path) -> None:
    code, output = tune(study, tmp_path / "out", *TWO, "--nproc-per-cell", "2", "--oversubscribe")
    assert code == 0, output
    (folder,) = (tmp_path / "out").glob("study/*/")
    cells = read_rows(folder / CELLS_FILE)
    assert Counter((cell["kind"], cell["ranks"]) for cell in cells) == {("trial", "2"): 2, ("run", "2"): 1}
    with (folder / RANKS_FILE).open() as file:
        ranks = list(csv.DictReader(file))
    assert {row["cell_id"] for row in ranks} == {cell["cell_id"] for cell in cells}
    assert {row["rank"] for row in ranks} == {"0", "1"}


def test_a_study_that_is_interrupted_in_mid_trial_goes_on_to_the_same_choices(
    study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, output = tune(study, tmp_path / "whole", *TWO)
    assert code == 0, output
    (folder,) = (tmp_path / "whole").glob("study/*/")
    cells = read_rows(folder / CELLS_FILE)
    assert Counter((cell["kind"], cell["method"]) for cell in cells) == {
        ("trial", "sltt"): 2,
        ("run", "sltt"): 1,
    }
    trials = {cell["cell_id"] for cell in cells if cell["kind"] == "trial"}
    for row in read_rows(folder / EPOCHS_FILE):
        assert (row["validation_top1"] != "", row["test_top1"] != "") == (
            row["cell_id"] in trials,
            row["cell_id"] not in trials,
        )
    assert {cell["trials"] for cell in cells if cell["kind"] == "run"} == {"2"}
    assert {cell["overrides"] for cell in cells if cell["kind"] == "run"} == {"{}"}
    groups = make_groups(read_results([tmp_path / "whole"]))
    assert [(group.key.tuning, sorted(group.methods)) for group in groups] == [
        ("tuned, 2 trials each (1 epoch)", ["sltt"])
    ]
    assert groups[0].settings["train.lr"] == "tuned"

    done = 0
    ended = runner._RecordedAttempt.ended

    def interrupted_at_the_second(attempt: Any) -> None:
        nonlocal done
        done += 1
        if done == 2:
            raise Interrupted(2)
        ended(attempt)

    with monkeypatch.context() as patch:
        patch.setattr(runner._RecordedAttempt, "ended", interrupted_at_the_second)
        assert tune(study, tmp_path / "parts", *TWO)[0] == 130
    (parts,) = (tmp_path / "parts").glob("study/*/")
    assert not (parts / TUNING_FILE).exists()
    code, output = tune(study, tmp_path / "parts", *TWO, "--resume")
    assert code == 0, output
    assert output.count("finished before, kept") == 1
    assert choices(tmp_path / "parts") == choices(tmp_path / "whole")
    assert len(list((tmp_path / "parts").glob("study/*/"))) == 1


@pytest.mark.parametrize(
    ("own_validation", "options", "held_back"),
    [
        ("", [], False),
        ("validation: {samples: 287}\n", [], True),
        ("", ["--set", "validation={samples: 287}"], True),
        ("", ["--set", "validation.samples=287", "--set", "validation.seed=3"], True),
    ],
)
def test_on_which_data_the_final_training_is_follows_the_recipes_own_validation(
    own_validation: str, options: list[str], held_back: bool, tmp_path: Path
) -> None:
    own = tmp_path / "study.yaml"
    own.write_text(TUNING + own_validation)
    code, output = tune(str(own), tmp_path / "out", *TWO, *options)
    assert code == 0, output
    report = CliRunner().invoke(
        app, ["report", str(tmp_path / "out"), "--full", "--format", "terminal"], env={"COLUMNS": "250"}
    )
    for text in (output, report.output):
        assert ("on all training data" in text) == (not held_back)
        assert ("on the training data that the recipe's validation leaves" in text) == held_back
    cells = read_results([tmp_path / "out"]).cells
    trials = [json.loads(overrides) for overrides in cells[cells["kind"] == "trial"]["overrides"]]
    assert trials
    # A trial's validation is the tuning's, whatever the final training holds back.
    assert not any(name.startswith("validation") for overrides in trials for name in overrides)


def test_a_dry_run_shows_the_budget_and_starts_nothing(study: str, tmp_path: Path) -> None:
    code, output = tune(study, tmp_path / "out", "--dry-run")
    assert code == 0
    assert "3 trials of each of 2 methods" in output
    assert not (tmp_path / "out").exists()
