"""Every shipped recipe is found and smoke-run with each of its methods through the command line."""

from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from sltt_bench.cli import app
from sltt_bench.recipe import load_recipe, recipe_folder, recipe_names, study_names

TWINS = {
    *("imagenet-resnet50", "imagenet-resnet101"),  # imagenet-resnet34 with more layers
    *(
        "cifar100-resnet18",
        "fashion-mnist",
        "permuted-mnist",
        "permuted-digits",
        "ssc",
    ),  # another data set of the kind
}
"""What another recipe runs with all of its methods: one method tells whether the rest fits."""


def test_recipes_are_discovered_at_any_depth_and_counted() -> None:
    files = {path for path in recipe_folder().rglob("*.yaml") if not path.stem.startswith("_")}
    names = {path.relative_to(recipe_folder()).with_suffix("").as_posix() for path in files}
    assert names == {*recipe_names(), *study_names()}
    files = {path for path in files if path.parent == recipe_folder()}
    assert len(files) == 25


@pytest.mark.parametrize("name", recipe_names())
def test_the_recipe_smoke_runs_with_each_of_its_methods(name: str, tmp_path: Path) -> None:
    chosen = ["sltt-k2"] if name in TWINS else load_recipe(name).methods
    arguments = ["run", name, "--method", ",".join(chosen), "--smoke", "--no-estimate"]
    arguments += ["--device", "cpu", "--seed", "0"]
    arguments += ["--data-dir", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    # Data that are made or shipped are used; for the others random data of their shapes.
    if load_recipe(name).data.needed(tmp_path):
        arguments.append("--synthetic")
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    cells = pd.concat(pd.read_csv(path) for path in (tmp_path / "out" / name).glob("*/cells.csv"))
    assert list(cells.method) == chosen
    assert set(cells.status) == {"ok"}
