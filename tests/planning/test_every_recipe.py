"""Every shipped recipe is found and smoke-run through the command line."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from sltt_bench.command_line.cli import app
from sltt_bench.planning.plan import Request, make_plans
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.planning.recipe_files import recipe_folder, recipe_names, study_names
from sltt_bench.training.experiment import assemble, make_backend

RUN_IN_CI = {
    "delayed-recall": "sltt",
    "digits": "sltt-k2",
    "digits-transformer": "sltt-k2",
    "imagenet-resnet34-t1": "sltt",
    "shd": "bptt",
    "vowels": "sltt-k2",
}
"""Recipe → method: each way from data to rows. tests/planning/test_recipes_on_files.py runs those whose data are files, of the
others an iteration with each method tells whether the network fits; the long campaign runs all."""
DEEPER = ("imagenet-resnet50", "imagenet-resnet101")
"""Of what differs from imagenet-resnet34 at more than one time step -t1 has all: the long campaign trains them."""
ALIKE = ("cifar100-resnet18", "fashion-mnist", "imagenet-sew-resnet34", "n-caltech101-vgg11", "ssc")
"""CI trains the networks of these, each with a sibling, with one method."""


def test_recipes_are_discovered_at_any_depth_and_counted() -> None:
    files = {path for path in recipe_folder().rglob("*.yaml") if not path.stem.startswith("_")}
    names = {path.relative_to(recipe_folder()).with_suffix("").as_posix() for path in files}
    assert names == {*recipe_names(), *study_names()}
    files = {path for path in files if path.parent == recipe_folder()}
    assert len(files) == 30


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.long) if name in DEEPER else name for name in recipe_names()],
)
def test_the_network_of_a_recipe_trains_with_each_of_its_methods(
    name: str, request: pytest.FixtureRequest
) -> None:
    (plan,) = make_plans(name, Request(smoke=True, synthetic=True))
    cells = {cell.method: cell for cell in plan.cells}
    assert list(cells) == load_recipe(name).methods
    every = name not in ALIKE or request.config.getoption("--campaign") == "long"
    for cell in list(cells.values())[: None if every else 1]:
        experiment = assemble(cell, torch.device("cpu"), make_backend(cell))
        data = cell.recipe.data
        time_axis = (cell.recipe.timesteps,) if data.temporal else ()
        x = torch.randn(cell.recipe.train.batch_size, *time_axis, *data.sample_shape)
        unroll = experiment.training_iteration(x, torch.zeros(len(x), dtype=torch.int64))
        assert unroll.summed_loss.isfinite()
        if cell.k is not None and data.temporal:
            continue  # the steps that it draws may have no loss
        gradients = [parameter.grad for parameter in experiment.network.parameters()]
        reached = sum(gradient is not None and bool(gradient.any()) for gradient in gradients)
        # The paper's networks without batch norm start with their branches switched off, and so all but silent.
        assert reached >= (1 if name.startswith("imagenet-resnet") else len(gradients) / 2)


@pytest.mark.parametrize(
    "name",
    [name if name in RUN_IN_CI else pytest.param(name, marks=pytest.mark.long) for name in recipe_names()],
)
def test_the_recipe_smoke_runs_with_its_methods(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    recipe = load_recipe(name)
    every = request.config.getoption("--campaign") == "long"
    chosen = recipe.methods if every else [RUN_IN_CI[name]]
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
