"""The recipes train from real on-disk formats, made small, through the command line."""

from collections.abc import Callable
from pathlib import Path

import data_files
import pandas as pd
import pytest
from typer.testing import CliRunner

from sltt_bench.command_line.cli import app

WRITERS: dict[str, Callable[[Path], dict[str, int]]] = {
    "mnist": data_files.write_mnist,
    "fashion-mnist": lambda folder: data_files.write_mnist(folder, folder="FashionMNIST"),
    "cifar10-resnet18": data_files.write_cifar10,
    "cifar100-resnet18": data_files.write_cifar100,
    "dvs-cifar10-vgg11": data_files.write_dvs_cifar10,
    "dvs-gesture-vgg11": data_files.write_ibm_gesture,
    "imagenet-resnet34-t1": data_files.write_imagenet,
    "imagenet-resnet34": data_files.write_imagenet,
}
"""Recipe → what writes its data set in the layout that it is distributed in. The deeper networks for ImageNet
read what imagenet-resnet34 reads; tests/planning/test_every_recipe.py runs them."""
IN_BOTH_PRECISIONS = {"mnist"}
ALIKE = {"fashion-mnist", "cifar100-resnet18", "imagenet-resnet34-t1"}
"""What reads their files reads their siblings' too."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name in ALIKE else name for name in WRITERS]
)
def test_the_recipe_trains_from_files(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    counts = WRITERS[name](tmp_path / "data")
    arguments = ["run", name, "--smoke", "--no-estimate", "--device", "cpu", "--seed", "0"]
    arguments += ["--data-dir", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    # Files are read alike whatever T is; events are cut into as many slices.
    short = {"train.epochs": 1} | ({} if name.endswith("-t1") else {"timesteps": 2})
    for key, value in {**short, **{f"data.{key}": value for key, value in counts.items()}}.items():
        arguments += ["--set", f"{key}={value}"]
    # tests/planning/test_every_recipe.py runs every method.
    both = name in IN_BOTH_PRECISIONS or request.config.getoption("--campaign") == "long"
    precisions = {"fp32": "fp32", "amp": "bf16"} if both else {"fp32": "fp32"}
    arguments += ["--set", f"train.precision={','.join(precisions)}", "--method", "sltt"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    cells = pd.concat(pd.read_csv(path) for path in (tmp_path / "out" / name).glob("*/cells.csv"))
    assert list(cells.precision) == list(precisions.values())
    assert set(cells.status) == {"ok"}
    epochs = pd.concat(pd.read_csv(path) for path in (tmp_path / "out" / name).glob("*/epochs.csv"))
    assert epochs.test_top1.between(0, 1).all()
    assert (epochs.data_wait_s > 0).all()
