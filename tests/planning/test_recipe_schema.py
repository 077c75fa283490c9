"""The JSON schema of recipes, and the recipe that `init` writes."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from thinned import thinned
from typer.testing import CliRunner

from sltt_bench.command_line.cli import app
from sltt_bench.common.yaml_text import read_yaml
from sltt_bench.planning import recipe_schema
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.planning.recipe_files import recipe_folder, recipe_names

FILES = sorted(recipe_folder().rglob("*.yaml"))


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = json.loads(CliRunner().invoke(app, ["schema"]).output)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_schema_beside_the_shipped_recipes_is_the_one_that_the_command_prints() -> None:
    path = recipe_folder() / recipe_schema.FILE
    assert path.read_text(encoding="utf-8") == recipe_schema.text(), (
        f"sltt-bench schema > recipes/{path.name}"
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_shipped_file_names_the_schema_and_satisfies_it(path: Path, validator: Any) -> None:
    first, _, rest = path.read_text(encoding="utf-8").partition("\n")
    above = "../" * (len(path.relative_to(recipe_folder()).parts) - 1)
    assert first == f"# yaml-language-server: $schema={above}{recipe_schema.FILE}"
    assert rest.startswith("# ")
    assert not list(validator.iter_errors(read_yaml(path)))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"trian": {}}, "'trian' was unexpected"),
        ({"train": {"epoch": 1}}, "'epoch' was unexpected"),
        ({"train": {"epochs": "2"}}, "'2' is not of type 'integer'"),
        ({"train": {"epochs": 0}}, "0 is less than the minimum of 1"),
        ({"neuron": {"reset": "none"}}, "'none' is not one of"),
        ({"data": {"name": "digts"}}, "'digts' is not one of"),
        ({"model": {"name": "cnn", "hidden": [1]}}, "'hidden' was unexpected"),
        ({"model": {"hiden": [1]}}, "'hiden' was unexpected"),
        ({"claims": [{"metric": "test_top1"}]}, "'method' is a required property"),
    ],
    ids=str,
)
def test_a_fault_in_a_file_that_extends_another_is_seen(
    fault: dict[str, Any], message: str, validator: Any
) -> None:
    assert message in " ".join(
        error.message for error in validator.iter_errors({"extends": "digits", **fault})
    )


def test_a_whole_recipe_must_have_what_has_no_default(validator: Any) -> None:
    whole = read_yaml(recipe_folder() / "digits.yaml")
    for section, key in (("neuron", "tau"), ("train", "lr"), ("model", "name")):
        missing = {**whole, section: {name: value for name, value in whole[section].items() if name != key}}
        assert [error.message for error in validator.iter_errors(missing)] == [
            f"{key!r} is a required property"
        ]
    del whole["timesteps"]
    assert [error.message for error in validator.iter_errors(whole)] == ["'timesteps' is a required property"]


@pytest.mark.parametrize("name", thinned(recipe_names(), keep=5))
def test_init_writes_a_commented_recipe_that_resolves_to_the_same_but_for_its_claims(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validator: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["init", "my-experiment", "--from", name])
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == ["wrote my-experiment.yaml", f"wrote {recipe_schema.FILE}"]
    again = load_recipe("my-experiment.yaml")
    changed = {"name", "claims", "cpu_minutes"}
    assert again.model_dump(exclude=changed) == load_recipe(name).model_dump(exclude=changed)
    assert (again.claims, again.cpu_minutes) == ([], None), (
        "true of the experiment that it was made from alone"
    )
    text = Path("my-experiment.yaml").read_text(encoding="utf-8")
    assert "  # Learning rate of the first epoch.\n  lr: " in text
    assert f"# differs from it. The claims of `{name}` are about that experiment" in text
    assert not list(validator.iter_errors(read_yaml(Path("my-experiment.yaml"))))


def test_init_overwrites_nothing_and_takes_no_name_that_a_recipe_cannot_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("precious")
    for arguments, fault in (
        (["mine"], "mine.yaml: exists; choose another name"),
        (["-bad-"], "No such option"),
        (["bad name"], "is no recipe's name"),
        (["new", "--from", "digit"], "did you mean 'digits'"),
    ):
        result = CliRunner().invoke(app, ["init", *arguments])
        assert result.exit_code == 2
        assert fault in " ".join(result.output.split())
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]
    assert Path("mine.yaml").read_text() == "precious"
