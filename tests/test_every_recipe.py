"""Every shipped recipe is found and smoke-run through the command line."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from sltt_bench.cli import app
from sltt_bench.experiment import assemble, make_backend
from sltt_bench.plan import Request, make_plans
from sltt_bench.recipe import load_recipe, recipe_folder, recipe_names, study_names

WITH_ALL_METHODS = ("digits", "delayed-recall")
"""Of these every method runs: static inputs and sequences. Of the others one tells whether the rest fits, BPTT of every
second large network and SLTT-K of the rest; the long campaign runs all."""

FURTHER_NETWORKS = [
    "cifar10-spikformer",
    "cifar100-resnet18",
    "imagenet-ms-resnet18",
    "imagenet-resnet50",
    "imagenet-resnet50-t1",
    "imagenet-resnet101",
    "imagenet-resnet101-t1",
    "imagenet-sew-resnet18",
    "imagenet-sew-resnet34",
]
"""Data and engine are those of other recipes: an iteration with each method tells whether the network fits."""
BY_BPTT = {"cifar10-resnet18", "dvs-gesture-vgg11", "mnist", "shd", "sequential-mnist"}


def test_recipes_are_discovered_at_any_depth_and_counted() -> None:
    files = {path for path in recipe_folder().rglob("*.yaml") if not path.stem.startswith("_")}
    names = {path.relative_to(recipe_folder()).with_suffix("").as_posix() for path in files}
    assert names == {*recipe_names(), *study_names()}
    files = {path for path in files if path.parent == recipe_folder()}
    assert len(files) == 30


@pytest.mark.parametrize("name", FURTHER_NETWORKS)
def test_the_recipes_of_further_networks_train_with_each_of_their_methods(name: str) -> None:
    (plan,) = make_plans(name, Request(smoke=True, synthetic=True))
    assert [cell.method for cell in plan.cells] == load_recipe(name).methods
    for cell in plan.cells:
        experiment = assemble(cell, torch.device("cpu"), make_backend(cell))
        recipe = cell.recipe
        x = torch.randn(recipe.train.batch_size, *recipe.data.sample_shape)
        before = [parameter.clone() for parameter in experiment.network.parameters()]
        unroll = experiment.training_iteration(x, torch.zeros(len(x), dtype=torch.int64))
        assert unroll.summed_loss.isfinite()
        changed = [
            not torch.equal(a, b) for a, b in zip(before, experiment.network.parameters(), strict=True)
        ]
        # The paper's networks without batch norm start with their branches switched off, and so all but silent.
        assert sum(changed) >= (1 if name.startswith("imagenet-resnet") else len(changed) / 2)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.long) if name in FURTHER_NETWORKS else name
        for name in recipe_names()
    ],
)
def test_the_recipe_smoke_runs_with_its_methods(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    every = name in WITH_ALL_METHODS or request.config.getoption("--campaign") == "long"
    recipe = load_recipe(name)
    one = "bptt" if name in BY_BPTT else "sltt-k2" if recipe.timesteps > 1 else "sltt"
    chosen = recipe.methods if every else [one]
    arguments = ["run", name, "--method", ",".join(chosen), "--smoke", "--no-estimate"]
    arguments += ["--device", "cpu", "--seed", "0"]
    arguments += ["--data-dir", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    # Data that are made or shipped are used; for the others random data of their shapes.
    if recipe.data.needed(tmp_path):
        arguments.append("--synthetic")
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    cells = pd.concat(pd.read_csv(path) for path in (tmp_path / "out" / name).glob("*/cells.csv"))
    assert list(cells.method) == chosen
    assert set(cells.status) == {"ok"}
