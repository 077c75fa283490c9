"""Every fault of a recipe is blamed on the file and key, or on the option, that it comes from."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sltt_bench.command_line.cli import app
from sltt_bench.common.yaml_text import dump_yaml
from sltt_bench.planning import recipe
from sltt_bench.planning.plan import Request, make_plans
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.planning.recipe_faults import RecipeError
from sltt_bench.tuning.plan import plan_tuning

Write = Callable[[str, str], Path]

BLAMED = {
    ("run", "digits", "--set", "train.lr=-1"): ["--set train.lr: Input should be greater"],
    ("run", "digits", "--set", "train.lr=0.1,-1"): ["--set train.lr: Input should be greater"],
    ("run", "digits", "--set", "train.epoch=2"): ["--set train.epoch: unknown key (did you mean 'epochs'?)"],
    ("run", "digits", "--set", "trian.epochs=2"): ["--set trian.epochs: there is no section 'trian'"],
    ("run", "digits", "--set", "model=3"): ["--set model: must be a mapping with a `name`"],
    ("run", "digits", "--set", "model.name=mlp", "--set", "train.epochs=1"): [
        "--set model.name: model.channels: unknown key"
    ],
    (
        "run",
        "digits",
        "--set",
        "claims=[{metric: test_top1, method: slt, relation: at_least, threshold: 1, says: x, source: y}]",
    ): ["--set claims: claims.0: unknown method 'slt'"],
    ("run", "digits", "--set", "seeds=[-1]"): ["--set seeds: seeds.0: Input should be"],
    ("run", "digits", "--set", "methods=[slt]"): ["--set methods: unknown method 'slt'"],
    ("run", "digits", "--set", "neuron.v_reset=0.5", "--set", "neuron.tau=1.2"): [
        "--set neuron.v_reset: neuron: v_reset is used by a hard reset only"
    ],
    ("run", "digits", "--set", "train.epochs=1", "--set", "timesteps=2", "--set", "loss.window=3"): [
        "--set timesteps, --set loss.window: loss.window is 3, more than timesteps (2)"
    ],
    ("run", "digits", "--smoke", "--set", "train.lr=fast"): ["--set train.lr: Input should be a valid number"],
    ("run", "digits-alif", "-m", "bptt", "--set", "data.pixels_per_step=4", "--set", "train.epochs=2"): [
        "--set data.pixels_per_step: timesteps is"
    ],
    ("run", "digits-alif", "--set", f"data.pixels_per_step=1{'0' * 30}"): [
        "--set data.pixels_per_step: must be a smaller number, but it is 1000"
    ],
    ("run", "delayed-recall", "--set", "data.train_samples=1"): [
        "--set data.train_samples: data: train_samples must be a multiple"
    ],
    ("run", "digits", "--set", "train.devices=.nan"): ["--set train.devices: Input should be a"],
    ("run", "digits", "--set", "model.channels=[2, 2, 2, 2]", "--set", "train.epochs=1"): [
        "--set model.channels: model.channels has 4 blocks, too many for 8×8 images: each block halves them; leave 3 blocks"
    ],
    ("run", "sequential-digits", "-m", "bptt", "--set", "model={name: cnn, channels: [8]}"): [
        "--set model: model.channels has 1 block, too many for 1×1 images: each block halves them; choose model mlp"
    ],
    ("run", "digits", "--set", "extends=mnist"): ["--set extends: which recipe another one extends stands in its file"],
    ("run", "digits", "--set", "init_from=foo"): ["--set init_from: foo: no recipe has this name"],
    ("run", "digits", "--set", "init_from=mnist"): ["--set init_from: mnist would leave no checkpoint"],
    ("run", "digits", "--nproc-per-cell", "99"): ["--nproc-per-cell: train.batch_size is 64, fewer"],
    ("run", "digits", "--set", "train.devices=99"): ["--set train.devices: train.batch_size is 64, fewer"],
    ("run", "digits", "--method", "sltt-k9"): ["--method: method 'sltt-k9': sltt-kN needs"],
    ("run", "digits", "--set", "timesteps=1"): ["--set timesteps: method 'sltt-k2': sltt-kN needs"],
    ("run", "digits", "-m", "ottt", "--set", "neuron.kind=plif", "--set", "neuron.tau=2.0"): [
        "--method: method 'ottt' is derived for"
    ],
    ("run", "digits", "--set", "train.batch_size=2000"): ["digits with train.batch_size=2000: train.batch_size"],
    ("run", "digits", "--set", "smoke={train.epochs: -1}", "--smoke"): ["--set smoke.train.epochs: Input"],
    ("run", "digits", "--set", "smoke={train.epochs: -1}"): ["--set smoke.train.epochs: Input"],
    ("run", "digits", "--set", "smoke=3", "--smoke"): ["--set smoke: must be a mapping of keys to values"],
    ("run", "digits", "--set", "seeds=[1]", "--seed", "2"): ["--set seeds and --seed say the same"],
    ("run", "digits", "--set", "methods=[bptt]", "-m", "sltt"): ["--set methods and --method say the same"],
    ("run", "studies/tau", "--set", "seeds=[5]"): ["--set seeds: a study says its own; give --seed"],
    ("run", "studies/tau", "--set", "methods=[bptt]"): ["--set methods: a study says its own; give --method"],
    ("tune", "studies/tau", "--set", "study.limits=x"): ["--set study.limits: a study is asked by a file"],
    ("tune", "digits", "--set", "tuning.grid.train.lr=[-1, 0.1]"): [
        "--set tuning.grid.train.lr: Input should be greater"
    ],
    ("tune", "digits", "--set", "tuning.grid={train.lr: [-1, 0.1]}"): [
        "--set tuning.grid: tuning.grid.train.lr: Input should be greater"
    ],
    ("estimate", "digits", "--timesteps", "4,99999"): ["--timesteps: Input should be less"],
    ("estimate", "digits", "--batch-size", "99999999"): ["--batch-size: Input should be less"],
    ("analyze", "gradients", "digits", "--over", "tau=0.5"): ["--over tau: Input should be greater"],
    ("analyze", "gradients", "digits", "--set", "tau=0.5"): ["--set tau: Input should be greater"],
    ("analyze", "gradients", "digits", "--over", "tau=["): ["--over tau: not valid YAML"],
    ("show", "digits", "--set", "train.lr=-1", "--set", "seeds=[]"): [
        "--set train.lr: Input should be greater",
        "--set seeds: must not be empty",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "blamed"), BLAMED.items(), ids=lambda value: " ".join(value)[:70])
def test_a_fault_of_what_an_option_sets_names_the_option(
    arguments: tuple[str, ...], blamed: list[str]
) -> None:
    further = [] if arguments[0] in ("show", "estimate") else ["--dry-run"]
    result = CliRunner().invoke(app, [*arguments, *further])
    assert result.exit_code == 2
    lines = sorted(result.output.splitlines())
    starts = sorted(blamed)
    assert len(lines) == len(starts)
    assert all(line.startswith(f"error: {start}") for line, start in zip(lines, starts, strict=True))


def test_a_key_without_end_is_quoted_in_part() -> None:
    for arguments in (["run", "digits", "--dry-run"], ["analyze", "gradients", "digits", "--dry-run"]):
        for value in ("1", "["):
            output = CliRunner().invoke(app, [*arguments, "--set", f"train.{'x' * 5000}={value}"]).output
            assert output.startswith("error: --set train.xxx")
            assert len(output) < 1000


def lines_of(error: pytest.ExceptionInfo[RecipeError]) -> list[str]:
    return sorted(str(error.value).splitlines())


def test_a_fault_names_the_file_that_has_the_value(write_recipe: Write) -> None:
    base = write_recipe("base", "extends: digits\ntrain: {lr: -1}\nmodel: {name: mlp, hidden: [0]}\n")
    own = write_recipe("own", "extends: base\ntrain: {epochs: 0}\nsmoke: {train.batch_size: 0}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(own), {"loss.alpha": 2}, smoke=True)
    assert [line.partition(": Input")[0] for line in lines_of(caught)] == sorted(
        [
            "--set loss.alpha",
            f"{base}: model.hidden.0",
            f"{base}: train.lr",
            f"{own}: smoke.train.batch_size",
            f"{own}: train.epochs",
        ]
    )


@pytest.mark.parametrize("smoke", [False, True])
def test_what_another_network_lacks_is_blamed_on_the_file_that_chose_it(
    smoke: bool, write_recipe: Write
) -> None:
    write_recipe("base", "extends: digits\nmodel: {name: spikformer, dim: 64}\n")
    own = write_recipe("own", "extends: base\nmodel: {name: vgg11, dim: 64}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(own), smoke=smoke)
    (line,) = lines_of(caught)
    assert line.startswith(f"{own}: model.dim: unknown key")


def test_a_fault_that_a_file_has_without_the_options_stays_the_files(write_recipe: Write) -> None:
    own = write_recipe("own", "extends: digits\nneuron: {v_reset: 0.5}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(own), {"neuron.tau": 2.0, "train.epochs": 0})
    assert [line.partition(": ")[0] for line in lines_of(caught)] == ["--set train.epochs", str(own)]


STUDY = """
extends: digits
study:
  question: Which?
  grids:
    - {settings: {train.epochs: 1}}
    - {over: {train.lr: [0.1, -1]}, methods: [bptt]}
  figure: [{y: test_top1, x: train.lr}]
  limits: all
  cost: none
"""


@pytest.mark.parametrize(
    ("mended", "blamed"),
    {
        ("", ""): "study.grids.1.over.train.lr: Input should be",
        ("-1", "1") : None,
        ("over: {train.lr: [0.1, -1]}", "settings: {trian.lr: 1}"): "study.grids.1.settings.trian.lr: there is no",
        ("over: {train.lr: [0.1, -1]}, methods: [bptt]", "methods: [sltt-k9]"): "study.grids.1.methods: method 'sltt-k9'",
        ("over: {train.lr: [0.1, -1]}", "recipe: foo"): "study.grids.1.recipe: foo: no recipe",
    }.items(),
    ids=str,
)  # fmt: skip
def test_a_fault_of_a_studys_settings_names_its_place_in_the_study(
    write_recipe: Write, mended: tuple[str, str], blamed: str | None
) -> None:
    study = write_recipe("which", STUDY.replace(*mended))
    if blamed is None:
        assert make_plans(str(study), Request())
        return
    with pytest.raises(RecipeError) as caught:
        make_plans(str(study), Request())
    (line,) = lines_of(caught)
    assert line.startswith(f"{study}: {blamed}")


def test_a_fault_of_a_tuning_grid_names_its_place_in_the_recipe(write_recipe: Write) -> None:
    own = write_recipe(
        "own",
        "extends: digits\ntuning:\n  grid: {train.lr: [0.1, -1], neuron.v_reset: [0.5, 0.0]}\n  seeds: [1]\n"
        "  validation: {share: 0.1}\n",
    )
    with pytest.raises(RecipeError) as caught:
        plan_tuning(str(own), Request(grid=({"train.epochs": 2},)))
    (line,) = lines_of(caught)
    assert line.startswith(f"{own}: tuning.grid.neuron.v_reset: neuron: v_reset is used by a hard reset only")


def test_settings_of_a_smoke_run_are_overridden_before_they_apply() -> None:
    smoke = {"train.epochs": 1, "data.limit": 128}
    recipe = load_recipe("digits", {"smoke": smoke, "train.batch_size": 16}, smoke=True)
    assert (recipe.train.epochs, recipe.data.limit, recipe.train.batch_size) == (1, 128, 16)
    assert recipe.model == load_recipe("digits").model


def test_seeds_and_methods_may_be_overridden_where_no_option_says_them() -> None:
    request = Request(grid=({"seeds": [3, 4], "methods": ["sltt"]},))
    (plan,) = make_plans("digits", request)
    assert [(cell.seed, cell.method) for cell in plan] == [(3, "sltt"), (4, "sltt")]
    (trials,) = plan_tuning("digits", request)
    assert {cell.seed for cell in trials} == {100, 101}


def test_the_methods_of_a_recipe_are_blamed_for_what_they_cannot_train(write_recipe: Write) -> None:
    own = write_recipe("own", "extends: digits\nmethods: [ottt]\nneuron: {kind: plif, tau: 2.0}\n")
    for request in (Request(), replace(Request(), grid=({"train.epochs": 1},))):
        with pytest.raises(RecipeError) as caught:
            make_plans(str(own), request)
        assert lines_of(caught)[0].startswith(f"{own}: methods: method 'ottt' is derived for")


def test_a_recipe_with_hundreds_of_faults_is_read_once_more_for_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for each, a file with two hundred faulty claims took a minute."""
    validated, calls = recipe.validated, []
    monkeypatch.setattr(recipe, "validated", lambda *args: calls.append(1) or validated(*args))
    file = tmp_path / "many.yaml"
    file.write_text("extends: digits\nclaims:\n" + "  - {method: sltt}\n" * 60, encoding="utf-8")
    with pytest.raises(RecipeError, match=r"many\.yaml: claims\.0\.metric: is missing") as error:
        load_recipe(str(file))
    assert len(error.value.faults) > 60
    assert str(error.value).count("\n") == 25
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("name", "today"), [("studies/tau", ", or run studies/tau as it is today"), ("own", "")]
)
def test_a_runs_record_that_another_version_took_says_what_to_do_about_it(
    name: str, today: str, tmp_path: Path
) -> None:
    record = tmp_path / "recipe.yaml"
    values = load_recipe("digits").model_dump(mode="json")
    claim = {**values["claims"][0], "when": {"extends": "_digits"}}
    record.write_text(dump_yaml({**values, "name": name, "claims": [claim]}))
    with pytest.raises(RecipeError) as told:
        load_recipe(str(record))
    assert "record;" not in str(told.value), "somebody's own recipe of this name has no provenance beside it"
    (tmp_path / "provenance.json").write_text("{}")
    with pytest.raises(RecipeError) as told:
        load_recipe(str(record))
    fault, advice = str(told.value).splitlines()
    assert "no grid of `study` has the recipe" in fault
    assert (
        advice == f"{record}: is a run's record; mend a copy of it (claims change nothing that runs){today}"
    )
    record.write_text(dump_yaml({**values, "name": name}))
    with pytest.raises(RecipeError) as told:  # what an option has is not the record's
        load_recipe(str(record), {"timesteps": 0})
    assert "record;" not in str(told.value)
