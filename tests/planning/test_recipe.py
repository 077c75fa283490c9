"""Recipes: found, extended, overridden, and every fault named at once."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sltt_bench.command_line.cli import app
from sltt_bench.command_line.commands import check_batches
from sltt_bench.data import DataError
from sltt_bench.planning.overrides import parse_overrides
from sltt_bench.planning.plan import Request, make_plans
from sltt_bench.planning.recipe import load_recipe, recipe_from_dict, smoke_left_out
from sltt_bench.planning.recipe_faults import RecipeError
from sltt_bench.planning.recipe_fields import NOT_DECISIVE, Recipe
from sltt_bench.planning.recipe_files import find_recipe, recipe_names, study_names
from sltt_bench.report.claims import unfit_when
from sltt_bench.report.groups import flat, settings_of
from sltt_bench.tuning.plan import plan_tuning

Write = Callable[[str, str], Path]


def faults(*args: Any, **kwargs: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(*args, **kwargs)
    return caught.value.faults


def test_every_fault_is_reported_at_once_with_key_and_nearest_name() -> None:
    actual = faults(
        "digits",
        {"train.epoch": 2, "model.chanels": [3], "neuron.reset": "sft", "data.foo": 1, "train.lr": "fast"},
    )
    assert len(actual) == 5
    text = "\n".join(actual)
    assert "train.epoch: unknown key (did you mean 'epochs'?)" in text
    assert "model.chanels: unknown key (did you mean 'channels'?)" in text
    assert "neuron.reset: Input should be 'soft' or 'hard', but it is 'sft'" in text
    assert "train.lr: Input should be a valid number" in text
    assert "data.foo: unknown key" in text


def test_an_unknown_section_in_an_override_names_the_nearest() -> None:
    assert faults("digits", {"trian.epochs": 2}) == [
        "trian.epochs: there is no section 'trian' (did you mean 'train'?)"
    ]


def test_one_searched_field_is_set_by_its_dotted_name() -> None:
    one = {"tuning.grid.train.lr": [0.1, 1.0], "tuning.grid.neuron.tau": [1.1, 2.0]}
    tuning = load_recipe("digits", one).tuning
    assert tuning is not None
    assert tuning.grid == {"train.lr": [0.1, 1.0], "neuron.tau": [1.1, 2.0]}
    others = {"tuning.seeds": [1], "tuning.validation": {"split": "stratified", "share": 0.2, "samples": 10}}
    without_tuning = load_recipe("mnist", {**one, **others}).tuning
    assert without_tuning is not None
    assert without_tuning.grid == tuning.grid
    assert faults("digits", {"tuning.gird.train.lr": [1]}) == [
        "tuning.gird.train.lr: there is no section 'gird' (did you mean 'grid'?)"
    ]


def test_unknown_registry_names_are_faults_with_the_nearest_name() -> None:
    text = "\n".join(faults("digits", {"data.name": "digit", "model.name": "cn"}))
    assert "data.name: unknown data set 'digit'" in text
    assert "did you mean 'digits'?" in text
    assert "model.name: unknown model 'cn'" in text


def test_k_greater_than_t_is_refused_by_name() -> None:
    (fault,) = faults("digits", chosen_methods=["sltt-k7"])
    assert "sltt-kN needs 1 ≤ N ≤ T, but N = 7 and T = 6" in fault
    assert "N = 0" in faults("digits", chosen_methods=["sltt-k0"])[0]


def test_a_number_with_an_exponent_is_a_number() -> None:
    assert load_recipe("digits", parse_overrides(["train.lr=5e-4"])[0]).train.lr == 0.0005


def test_text_is_not_taken_for_a_number() -> None:
    assert "train.epochs" in faults("digits", {"train.epochs": "3"})[0]
    assert "train.epochs" in faults("digits", {"train.epochs": 2.5})[0]


def test_a_repeated_key_is_refused(write_recipe: Write) -> None:
    path = write_recipe("twice", "description: a\ndescription: b\n")
    assert "the key 'description' stands twice" in faults(str(path))[0]


def test_broken_yaml_names_the_file_and_line(write_recipe: Write) -> None:
    path = write_recipe("broken", "description: [a\n")
    with pytest.raises(RecipeError, match=r"broken\.yaml: not valid YAML: .*line"):
        load_recipe(str(path))


def test_yaml_cannot_construct_python_objects(write_recipe: Write) -> None:
    path = write_recipe("evil", "description: !!python/object/apply:os.system ['true']\n")
    assert "python/object/apply:os.system is not read" in faults(str(path))[0]


def test_extends_merges_sections_key_by_key(write_recipe: Write) -> None:
    path = write_recipe("longer", "extends: digits\ntrain:\n  epochs: 99\n")
    base, longer = load_recipe("digits"), load_recipe(str(path))
    assert longer.name == "longer"
    assert longer.train.epochs == 99
    assert longer.train.lr == base.train.lr
    assert longer.model == base.model


def test_claims_are_of_the_recipe_that_makes_them(write_recipe: Write) -> None:
    """One that extends it is another experiment: the paper claims nothing of that."""
    assert load_recipe("cifar10-resnet18").claims
    assert not load_recipe(str(write_recipe("mine", "extends: cifar10-resnet18\ntrain:\n  lr: 1.0\n"))).claims


def test_a_grid_that_is_searched_takes_the_place_of_the_extended_recipes(write_recipe: Write) -> None:
    """A budget that was not asked for would be its product with the other's."""
    path = write_recipe("mine", "extends: digits\ntuning:\n  grid:\n    neuron.tau: [1.1, 2.0]\n")
    tuning = load_recipe(str(path)).tuning
    assert tuning is not None
    assert dict(tuning.grid) == {"neuron.tau": [1.1, 2.0]}
    base = load_recipe("digits").tuning
    assert base is not None
    assert tuning.seeds == base.seeds


OWN_ARRAYS = (
    "data: {name: arrays, file: a.npz, layout: sequences, num_classes: 3, train_samples: 100, test_samples: 20, "
    "shape: [20, 4]}\ntimesteps: 20\n"
)


def test_what_is_true_of_the_data_alone_is_not_extended_to_others(write_recipe: Write) -> None:
    base = load_recipe("sequential-digits")
    assert base.target == 0.8
    assert base.tuning is not None
    assert base.tuning.validation.samples == 287
    own = load_recipe(
        str(write_recipe("own", f"extends: sequential-digits\n{OWN_ARRAYS}loss: {{window: null}}\n"))
    )
    assert own.target is None
    assert own.tuning == base.tuning.model_copy(
        update={"validation": base.tuning.validation.model_copy(update={"samples": 0})}
    )
    write_recipe("arrays", f"extends: sequential-digits\n{OWN_ARRAYS}loss: {{window: null}}\ntarget: 0.7\n")
    same = write_recipe("same", "extends: arrays\ndata: {file: a.npz}\n")
    other = write_recipe("other", "extends: arrays\ndata: {file: b.npz}\n")
    assert load_recipe(str(same)).target == 0.7
    assert load_recipe(str(other)).target is None
    assert load_recipe(str(same), {"data.file": "b.npz"}).target is None
    assert load_recipe(str(same), {"data.file": "b.npz", "target": 0.9}).target == 0.9
    assert load_recipe(str(same), {"data.limit": 10}).target == 0.7


def test_smoke_leaves_out_what_another_recipe_says_of_its_own_network_and_data(write_recipe: Write) -> None:
    own = write_recipe("own", "extends: cifar10-resnet18\nmodel: {name: cnn, dropout: 0.1}\n")
    recipe = load_recipe(str(own), smoke=True)
    assert (recipe.data.limit, recipe.timesteps, recipe.train.epochs) == (16, 4, 2)
    assert smoke_left_out(str(own)) == (
        "--smoke leaves out model.width=4, which _cifar-resnet18 says of another network; "
        "what makes this recipe small is for a `smoke` of its own"
    )
    (plan,) = make_plans(str(own), Request(smoke=True, synthetic=True))
    assert smoke_left_out(str(own)) in plan.left_out
    assert not make_plans(str(own), Request(synthetic=True))[0].left_out
    vgg = write_recipe("vgg", "extends: cifar10-resnet18\nmodel: {name: vgg11}\n")
    assert smoke_left_out(str(vgg)) is None, "it has a width too"
    speech = write_recipe("speech", f"extends: shd\n{OWN_ARRAYS}loss: {{window: null}}\n")
    assert load_recipe(str(speech), smoke=True).timesteps == 20
    assert "data.units_per_channel=20, timesteps=10, which shd says of other data;" in str(
        smoke_left_out(str(speech))
    )


def test_a_recipe_hears_of_faults_in_its_own_smoke(write_recipe: Write) -> None:
    write_recipe("base", "extends: digits\nmodel: {name: mlp}\n")
    own = write_recipe("own", "extends: base\nsmoke: {model.channels: [1]}\n")
    assert faults(str(own), smoke=True)[0].startswith("model.channels: unknown key")
    assert smoke_left_out(str(own)) is None


@pytest.mark.parametrize(
    ("smoke", "fault"),
    [
        ("{train.epoch: 1}", "smoke.train.epoch: unknown key (did you mean 'epochs'?)"),
        ("{train.epochs: -1}", "smoke.train.epochs: Input should be greater"),
        ("{trian.epochs: 1}", "smoke.trian.epochs: there is no section 'trian' (did you mean 'train'?)"),
        ("{train: {epochs: 1, lr: 0.1}}", "smoke.train: train.batch_size: is missing"),
        ("{model.name: cn}", "smoke.model.name: unknown model 'cn'"),
        ("5", "smoke: must be a mapping of keys to values"),
        ("{smoke.timesteps: 1}", "smoke.smoke.timesteps: sets what --smoke has applied already"),
    ],
)
def test_a_fault_of_smoke_is_told_once_by_whoever_reads_the_recipe(
    smoke: str, fault: str, write_recipe: Write
) -> None:
    own = write_recipe("own", f"extends: digits\nsmoke: {smoke}\n")
    further = write_recipe("further", "extends: own\n")
    for command in (["show"], ["show", "--smoke"], ["run", "--dry-run"], ["run", "--dry-run", "--smoke"]):
        for file in (own, further):
            result = CliRunner().invoke(app, [command[0], str(file), *command[1:]])
            assert result.exit_code == 2
            assert result.output.startswith(f"error: {own}: {fault}")
            assert result.output.count("error:") == 1


@pytest.mark.parametrize(
    ("other", "smoke", "place", "fault"),
    [
        ("loss: {window: 4}", "{timesteps: 2}", "smoke.timesteps", "loss.window is 4, more than timesteps (2)"),
        ("", "{neuron.v_reset: -0.5}", "smoke.neuron.v_reset", "neuron: v_reset is used by a hard reset only"),
        ("methods: [ottt]", "{neuron.kind: plif, neuron.tau: 2.0}", "smoke.neuron.kind", "methods: method 'ottt'"),
        ("methods: [bptt, sltt-k4]", "{timesteps: 2}", "smoke.timesteps", "methods: method 'sltt-k4': sltt-kN needs"),
        ("", "{model.channels: [2, 2, 2, 2]}", "smoke.model.channels", "model.channels has 4 blocks, too many"),
        ("", "{data.limit: 16}", "smoke.data.limit", "train.batch_size is 64, but an epoch has 16 training samples"),
        ("native: {graphs: never}", "{native.cuda_graph: true}", "smoke.native.cuda_graph", "native: cuda_graph is"),
    ],
)  # fmt: skip
def test_what_smoke_and_other_fields_of_a_recipe_rule_out_is_told_by_whoever_reads_it(
    other: str, smoke: str, place: str, fault: str, write_recipe: Write
) -> None:
    own = write_recipe("own", f"extends: digits\nsmoke: {smoke}\n{other}\n")
    for command in (["show"], ["run", "--dry-run"]):
        result = CliRunner().invoke(app, [command[0], str(own), *command[1:]])
        assert result.output.startswith(f"error: {own}: {place}: {fault}"), result.output
        assert result.exit_code == 2


def test_a_smoke_that_others_wrote_or_overrides_do_not_fit_hinders_no_other_run(write_recipe: Write) -> None:
    """Nor does a run's resolved recipe."""
    write_recipe("base", "extends: digits\nsmoke: {timesteps: 2}\n")
    own = write_recipe("own", "extends: base\nloss: {window: 4}\n")
    assert load_recipe(str(own)).loss.window == 4
    assert faults(str(own), smoke=True) == ["loss.window is 4, more than timesteps (2)"]
    assert load_recipe("digits", {"loss.window": 5}).loss.window == 5
    mended = write_recipe("mended", "extends: digits\nneuron: {reset: hard, v_reset: 1.0}\n")
    assert load_recipe(str(mended), {"neuron.v_reset": 0.5}).neuron.v_reset == 0.5
    mlp = {"model": {"name": "mlp"}}
    assert load_recipe("digits", mlp).model.name == "mlp"
    assert load_recipe("digits", {**mlp, "smoke": {"model.hidden": [8]}}).smoke == {"model.hidden": [8]}
    resolved = write_recipe(
        "recipe", "extends: digits\nname: mine\nmodel: {name: mlp}\nsmoke: {model.channels: [2]}\n"
    )
    assert load_recipe(str(resolved)).name == "mine"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("lr: 0.1", "lr: unknown key (did you mean 'train.lr'?)"),
        ("neuron: {epochs: 3}", "neuron.epochs: unknown key (did you mean 'train.epochs'?)"),
        ("train: {timesteps: 3}", "train.timesteps: unknown key (did you mean 'timesteps'?)"),
        ("channels: [8]", "channels: unknown key (did you mean 'model.channels'?)"),
        ("train.epochs: 3", "train.epochs: unknown key (did you mean 'epochs' within the section 'train'?)"),
        ("train: {epoch: 3}", "train.epoch: unknown key (did you mean 'epochs'?)"),
        ("model: {name: vgg11, channels: [8]}", "model.channels: unknown key; known here: name"),
        ("train:", "train: must be a mapping of keys to values, but it is null"),
        ("methods: bptt, sltt", "methods: must be a list, in brackets: [a, b], but it is 'bptt, sltt'"),
    ],
)
def test_a_fault_of_a_file_says_in_its_words_what_to_write_and_where(
    text: str, fault: str, write_recipe: Write
) -> None:
    own = write_recipe("own", f"extends: digits\n{text}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(own))
    assert str(caught.value).startswith(f"{own}: {fault}")


def test_the_name_of_no_recipe_to_extend_gets_the_nearest_that_there_is(write_recipe: Write) -> None:
    write_recipe("neighbour", "extends: digits\n")
    for name, hint in {
        "digit": "(did you mean 'digits'?)", "digits.yaml": "(did you mean 'digits'?)", "recipes/mnist": "(did you mean 'mnist'?)",
        "neighbor": "(did you mean 'neighbour'?)", "xyz": "; a recipe is named without folder and ending",
    }.items():  # fmt: skip
        (fault,) = faults(str(write_recipe("own", f"extends: {name}\n")))
        assert fault.endswith(hint)


@pytest.mark.parametrize(
    ("panel", "fault"),
    [
        ("{y: test_top1, x: tau}", "study.figure.0.x: tau: unknown key (did you mean 'neuron.tau'?)"),
        (
            "{y: test_top1, x: train}",
            "study.figure.0.x: train: is a section; name one of its fields: train.epochs",
        ),
        ("{y: test_top1, x: method, lines: [seeds]}", "study.figure.0.lines: seeds: decides nothing"),
        ("{y: test_top1, x: number, where: {k: 2}}", "study.figure.0.where: k: unknown key"),
        (
            "{y: test_top1, x: number, where: {train.lr: [0.1]}}",
            "study.figure.0.where: train.lr: Input should be",
        ),
    ],
)
def test_a_panel_of_a_study_that_would_be_empty_is_refused_before_anything_is_run(
    panel: str, fault: str, write_recipe: Write
) -> None:
    text = "extends: digits\nstudy: {question: q, grids: [{over: {neuron.tau: [1.1, 2]}}], figure: [%s], limits: l, cost: c}\n"
    (found,) = faults(str(write_recipe("own", text % panel)))
    assert found.startswith(fault)
    kept = "{y: test_top1, x: temporal_share, lines: [rule, neuron.tau], where: {method: sltt}}"
    assert load_recipe(str(write_recipe("own", text % kept))).study is not None


@pytest.mark.parametrize("smoke", [True, False])
def test_a_section_that_is_none_is_one_fault_whatever_is_set_within(smoke: bool, write_recipe: Write) -> None:
    for section, fault in (
        ("model: 5", "model: must be a mapping"),
        ("train: 7", "train: must be a mapping"),
    ):
        (found,) = faults(
            str(write_recipe("own", f"extends: digits\n{section}\n")),
            {"train.lr": 1, "model.dropout": 0},
            smoke=smoke,
        )
        assert found.startswith(fault)


def test_a_recipe_called_like_a_shipped_one_extends_that_one(write_recipe: Write) -> None:
    own = write_recipe("digits", "extends: digits\ntrain: {epochs: 3}\n")
    assert load_recipe(str(own)).train.epochs == 3
    assert load_recipe(str(own)).model == load_recipe("digits").model
    further = write_recipe("further", "extends: digits\n")
    assert load_recipe(str(further)).train.epochs == 3, "its neighbour, not the shipped one"
    stage = write_recipe(
        "imagenet-resnet34-t1", "extends: imagenet-resnet34\ninit_from: imagenet-resnet34-t1\n"
    )
    first, second = make_plans(str(stage), Request())
    assert first.recipe == load_recipe("imagenet-resnet34-t1")
    assert second.recipe.timesteps == 6


def test_extends_replaces_a_section_that_changes_its_name(write_recipe: Write) -> None:
    path = write_recipe("flat", "extends: digits\nmodel:\n  name: mlp\n  hidden: [7]\n")
    assert load_recipe(str(path)).model.model_dump()["hidden"] == [7]


def test_extending_itself_is_refused(write_recipe: Write) -> None:
    write_recipe("a", "extends: b\n")
    path = write_recipe("b", "extends: a\n")
    assert "extends itself: b.yaml → a.yaml → b.yaml" in faults(str(path))[0]


def test_every_neuron_parameter_must_be_spelled_out(write_recipe: Write) -> None:
    text = find_recipe("digits").read_text().replace("  detach_reset: false\n", "")
    assert faults(str(write_recipe("silent", text))) == ["neuron.detach_reset: is missing and has no default"]


def test_v_reset_without_hard_reset_is_a_contradiction() -> None:
    assert "hard reset only" in faults("digits", {"neuron.v_reset": -0.1})[0]


@pytest.mark.parametrize(
    ("recipe", "overrides", "fault"),
    [
        ("digits-saccade", {"test_timesteps": 2}, "test_timesteps is for static images"),
        (
            "digits",
            {"loss.window": 3, "test_timesteps": 2},
            r"loss\.window is 3, more than test_timesteps \(2\)",
        ),
        (
            "digits",
            {"timesteps": 4, "test_timesteps": 5, "model.normalisation": "bntt"},
            r"test_timesteps is 5, but the network has parameters for each of 4 steps",
        ),
    ],
    ids=["of a movement", "below the window", "beyond the parameters of each step"],
)
def test_an_evaluation_of_other_steps_is_refused_where_there_are_none(
    recipe: str, overrides: dict[str, Any], fault: str
) -> None:
    with pytest.raises(RecipeError, match=fault):
        load_recipe(recipe, overrides, chosen_methods=["bptt"])


def test_comma_lists_make_a_grid_and_brackets_a_list() -> None:
    grid = parse_overrides(["timesteps=2,4", "model.channels=[1,2],[3]"])
    assert grid == [
        {"timesteps": 2, "model.channels": [1, 2]},
        {"timesteps": 2, "model.channels": [3]},
        {"timesteps": 4, "model.channels": [1, 2]},
        {"timesteps": 4, "model.channels": [3]},
    ]


def claim_when(**when: Any) -> dict[str, Any]:
    return {
        "metric": "test_top1", "method": "sltt", "baseline": "bptt", "relation": "within_points", "threshold": 1.0,
        "when": when, "says": "as good", "source": "nobody",
    }  # fmt: skip


@pytest.mark.parametrize("name", [*recipe_names(), *study_names()])
def test_a_claim_may_speak_of_every_field_that_decides_what_is_measured_and_holds_where_it_has_the_value(
    name: str,
) -> None:
    settings = flat(
        load_recipe(name).model_dump(mode="json", exclude={"name", *NOT_DECISIVE} - {"init_from"})
    )
    own = {key: value for key, value in settings.items() if value is not None}
    assert "train.lr" in own
    (claim,) = load_recipe(name, {"claims": [claim_when(**own)]}).claims
    plain = claim.model_dump(mode="json")
    assert unfit_when(plain, settings_of(load_recipe(name).model_dump(mode="json"), "native"), {}) is None
    for key in own:
        told = own[key] if isinstance(own[key], str) else json.dumps(own[key])
        assert unfit_when(plain, {**own, key: "other"}, {}) == f"no run with {key} = {told}"


def test_a_claim_is_about_the_network_that_it_names_and_none_is_about_one_that_an_override_chose() -> None:
    mlp = claim_when(**{"model.name": "mlp", "model.hidden": [64]})
    assert load_recipe("digits", {"claims": [mlp]}).claims
    other = {
        "model": {"name": "cnn", "channels": [8, 8], "dropout": 0.0},
        "data": load_recipe("digits").data.model_dump(mode="json"),
    }
    assert load_recipe("sequential-digits", other, chosen_methods=["bptt"]).claims, (
        "which are on model.recurrent"
    )


def test_a_study_whose_claim_names_a_task_is_checked_by_that_tasks_recipe() -> None:
    taught = claim_when(**{"extends": "_sequential-digits", "model.hidden": [64]})
    assert load_recipe("studies/time-gradient", {"claims": [taught]}).claims
    wrong = claim_when(**{"extends": "_sequential-digits", "model.channels": [64]})
    (fault,) = faults("studies/time-gradient", {"claims": [wrong]})
    assert fault.startswith("claims.0.when.model.channels: unknown key")
    (fault,) = faults("studies/time-gradient", {"claims": [claim_when(extends="_sequential-digit")]})
    assert fault.endswith("has the recipe '_sequential-digit' (did you mean '_sequential-digits'?)")


@pytest.mark.parametrize(("name", "is_refused"), [("mine", False), ("digits", True), ("5", True)])
def test_a_recipes_file_does_not_call_it_otherwise(name: str, is_refused: bool, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"extends: digits\nname: {name}\n")
    if not is_refused:
        assert load_recipe(str(file)).name == "mine"
        return
    (fault,) = faults(str(file))
    assert fault.startswith("name: a recipe's name is that of its file; leave ")
    (tmp_path / "other.yaml").write_text("extends: mine\n")
    assert faults(str(tmp_path / "other.yaml")) == [fault], "nor a base"


def test_a_field_that_is_set_twice_to_one_value_is_set_once() -> None:
    assert parse_overrides(["timesteps=2,4", "train.lr=0.1", "timesteps=2,4", "train.lr=1e-1"]) == [
        {"timesteps": 2, "train.lr": 0.1},
        {"timesteps": 4, "train.lr": 0.1},
    ]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"method": "slt"}, "claims.0: unknown method 'slt'"),
        ({"method": "sltt-kN"}, "claims.0: unknown method 'sltt-kN' (did you mean 'sltt-k2'?)"),
        ({"baseline": "btpt"}, "claims.0: unknown method 'btpt' (did you mean 'bptt'?)"),
        ({"baseline": None}, "claims.0: at_most_ratio compares; name another method as baseline"),
        ({"baseline": "sltt"}, "claims.0: at_most_ratio compares; name another method"),
        ({"threshold": 0.0}, "claims.0: a ratio is above 0, but threshold is 0"),
        ({"relation": "within_points"}, "claims.0: within_points is for accuracies"),
        ({"relation": "at_most"}, "claims.0: at_most is about the value itself; leave baseline out"),
        (
            {"metric": "test_top1", "relation": "at_least", "baseline": None, "threshold": 90.0},
            "claims.0: an accuracy is a share, 0 to 1, but threshold is 90",
        ),
        (
            {"relation": "at_most", "baseline": None, "threshold": -1.0},
            "claims.0: peak_memory is never below 0",
        ),
        (
            {"metric": "test_top1", "relation": "within_points", "threshold": -2.0},
            "claims.0: percentage points are from 0 to 100, but threshold is -2",
        ),
        (
            {"metric": "test_top1", "relation": "exceeds_by_points", "threshold": 101.0},
            "claims.0: percentage points are from 0 to 100, but threshold is 101",
        ),
        (
            {"when": {"nueron.tau": 2.0}},
            "claims.0.when.nueron.tau: no field of recipes (did you mean 'neuron'?)",
        ),
        ({"when": {"neuron.taw": 2.0}}, "claims.0.when.neuron.taw: unknown key (did you mean 'tau'?)"),
        (
            {"when": {"data.limt": 8}},
            "claims.0.when.data.limt: unknown key (did you mean 'limit'?); known here: name, train_samples",
        ),
        (
            {"when": {"model.chanels": [8]}},
            "claims.0.when.model.chanels: unknown key (did you mean 'channels'?)",
        ),
        (
            {"when": {"model.name": "mpl"}},
            "claims.0.when.model.name: unknown model 'mpl' (did you mean 'mlp'?)",
        ),
        ({"when": {"timestep": 2}}, "claims.0.when.timestep: unknown key (did you mean 'timesteps'?)"),
        ({"when": {"timesteps.x": 2}}, "claims.0.when.timesteps.x: unknown key, since nothing is below that"),
        (
            {"when": {"native.graph": "never"}},
            "claims.0.when.native.graph: unknown key (did you mean 'graphs'?)",
        ),
        (
            {"when": {"neuron": 2}},
            "claims.0.when.neuron: is a section; name one of its fields: neuron.kind, neuron.tau",
        ),
        ({"baseline": ""}, "claims.0: unknown method ''"),
        ({"when": {"seeds": 1}}, "claims.0.when.seeds: decides nothing that is measured"),
        (
            {"when": {"train.epochs": "ten"}},
            "claims.0.when.train.epochs: Input should be a valid integer, but it is 'ten'",
        ),
        (
            {"when": {"neuron.surrogate": "arctn"}},
            "claims.0.when.neuron.surrogate: Input should be 'triangle', ",
        ),
        (
            {"when": {"extends": "_digits"}},
            "claims.0.when.extends: no grid of `study` has the recipe '_digits'",
        ),
    ],
)
def test_a_claim_that_nobody_could_judge_is_refused(changes: Mapping[str, Any], fault: str) -> None:
    claim = {
        "metric": "peak_memory", "method": "sltt", "baseline": "bptt", "relation": "at_most_ratio", "threshold": 0.5,
        "says": "half the memory", "source": "nobody",
    }  # fmt: skip
    assert load_recipe("digits", {"claims": [claim]}).claims
    (actual,) = faults("digits", {"claims": [{**claim, **changes}]})
    assert actual.startswith(fault)


def test_smoke_overrides_do_not_set_a_field_and_all_of_its_section() -> None:
    smoke = {"train.epochs": 1, "train": {"epochs": 2}}
    (fault,) = faults("digits", {"smoke": smoke})
    assert fault == "smoke: train replaces all of what train.epochs sets a part of; write one of the two"


def test_an_override_without_a_value_is_refused() -> None:
    with pytest.raises(RecipeError, match="must have the form key=value"):
        parse_overrides(["train.epochs"])


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'digits'"):
        find_recipe("digit")


def test_a_recipe_survives_the_way_through_json() -> None:
    recipe = load_recipe("digits")
    again = recipe_from_dict(recipe.model_dump(mode="json"))
    assert again == recipe
    assert again.fingerprint() == recipe.fingerprint()


def test_a_recipe_is_read_back_whose_methods_and_claims_would_be_refused_now() -> None:
    """Of an earlier version, or with a plug-in that is not installed here."""
    resolved = load_recipe("digits").model_dump(mode="json")
    (claim, *_) = resolved["claims"]
    resolved["claims"] = [{**claim, "relation": "at_most"}, {**claim, "method": "somebodys-rule"}]
    resolved["methods"] = ["sltt-k02", "somebodys-rule"]
    assert recipe_from_dict(resolved).fingerprint() == load_recipe("digits").fingerprint()


def test_the_fingerprint_follows_what_is_computed_and_nothing_else() -> None:
    base = load_recipe("digits")
    words = base.model_copy(update={"description": "other words", "methods": ["bptt"], "claims": []})
    assert words.fingerprint() == base.fingerprint()
    assert load_recipe("digits", {"train.lr": 0.2}).fingerprint() != base.fingerprint()
    assert load_recipe("digits", {"neuron.tau": 2.0}).fingerprint() != base.fingerprint()


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_has_batches_that_fit_a_smoke_run_and_its_trials(name: str) -> None:
    plans = make_plans(name, Request(smoke=True))
    if load_recipe(name).tuning is not None:
        plans += plan_tuning(name, Request(smoke=True))
    check_batches(cell for plan in plans for cell in plan)


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_is_valid_also_as_a_smoke_run(name: str) -> None:
    full, smoke = load_recipe(name), load_recipe(name, smoke=True)
    assert isinstance(full, Recipe)
    assert smoke.train.epochs <= 2
    assert smoke.data.limit is not None
    schema, *first_lines = find_recipe(name).read_text().splitlines()[:13]
    assert schema == "# yaml-language-server: $schema=recipe.schema.json"
    assert first_lines[0].startswith(f"# {name}: "), "a recipe opens with its purpose"
    assert any(f"sltt-bench run {name}" in line for line in first_lines), "and the command that runs it"


@pytest.mark.parametrize(
    ("overrides", "synthetic", "remedy"),
    [
        ({"data.limit": 1}, False, "has 1 training sample; lower it, or raise data.limit"),
        ({"data.limit": 1}, True, "has 1 training sample; lower it, or raise data.limit"),
        ({"data.synthetic_samples": 9}, True, "has 9 training samples; lower it, or raise data.synthetic_samples"),
        ({"train.batch_size": 9999}, True, "has 1,437 training samples; lower it"),
    ],
)  # fmt: skip
def test_a_batch_that_no_epoch_can_fill_is_answered_with_what_makes_the_epoch_short(
    overrides: dict[str, Any], synthetic: bool, remedy: str
) -> None:
    fault = load_recipe("digits", overrides).batch_fault(synthetic=synthetic)
    assert fault is not None
    assert fault.endswith(f"but an epoch {remedy}")


@pytest.mark.parametrize(
    ("batch_size", "samples", "drop_last", "refused"),
    [(8, 18, False, True), (8, 18, True, False), (8, 20, False, False), (8, 16, False, False)],
)
def test_a_last_batch_that_leaves_a_process_without_a_sample_is_refused_as_it_is_planned(
    batch_size: int, samples: int, drop_last: bool, refused: bool
) -> None:
    settings = {"train.batch_size": batch_size, "train.drop_last": drop_last, "train.devices": 4}
    fault = load_recipe("digits", settings | {"data.limit": samples}).batch_fault(synthetic=False)
    assert fault == (
        "the last batch of an epoch has 2 samples for 4 processes (18 samples, train.batch_size 8); "
        "set train.drop_last=true or another batch size"
        if refused
        else None
    )


def test_a_share_that_holds_back_no_sample_is_answered_with_the_share() -> None:
    (fault,) = faults("digits", {"validation": {"share": 1e-9, "samples": 0}})
    assert fault == "validation.share is 1e-09, which holds back none of 1437 training samples; raise it"


@pytest.mark.parametrize("name", ["digits", "digits-saccade", "sequential-digits", "vowels"])
def test_a_wrong_count_of_samples_that_ship_with_the_package_starts_no_cell(
    name: str, tmp_path: Path
) -> None:
    wrong = Request(methods=["bptt"], grid=({"data.test_samples": 5},), data_dir=tmp_path)
    with pytest.raises(DataError, match=r"data\.test_samples says 5"):
        make_plans(name, wrong)
    assert make_plans(name, replace(wrong, synthetic=True))
