"""What all tests share: GPU tests kept apart, and small recipes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sltt_bench.plan import Cell
from sltt_bench.recipe import load_recipe


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """GPU tests are skipped, with the reason, where there is no GPU."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture
def smoke_cell() -> Callable[..., Cell]:
    """Makes a tiny digits cell; keyword arguments are its overrides, dots written as double underscores."""

    def make(method: str = "sltt", seed: int = 0, recipe: str = "digits", **overrides: Any) -> Cell:
        dotted = {key.replace("__", "."): value for key, value in overrides.items()}
        return Cell(
            recipe=load_recipe(recipe, dotted, smoke=True, chosen_methods=[method]),
            method=method,
            backend="reference",
            seed=seed,
            device="cpu",
            smoke=True,
            overrides=dotted,
        )

    return make


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes a recipe file into the test's folder."""

    def write(name: str, text: str) -> Path:
        path = tmp_path / f"{name}.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write
