"""What all tests share: one thread, forked processes, GPU tests kept apart, and small recipes."""

import gc
import os
import sys

# Before torch: the library behind several threads does not survive the forks of tests/forked.py.
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))

from collections.abc import Callable, Generator, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.testing
from forked import fork_instead_of_spawning
from hypothesis import HealthCheck, Phase, settings

from sltt_bench.plan import Cell
from sltt_bench.recipe import load_recipe

# A busy machine is no fault of the code. Shrinking a failure takes minutes: developers want it, CI does not.
settings.register_profile(
    "any machine",
    max_examples=15 if os.environ.get("CI") else 100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[phase for phase in Phase if phase is not Phase.shrink or not os.environ.get("CI")],
)
settings.load_profile("any machine")

# To build the command line takes longer than most commands; it is the same in all tests.
typer.testing._get_command = cache(typer.testing._get_command)  # type: ignore[attr-defined]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Campaigns have a short form, which always runs, and a long one."""
    parser.addoption(
        "--campaign", choices=("short", "long"), default="short", help="how much a campaign tries"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What only the long campaign tries is skipped in the short one, and GPU tests where there is no GPU."""
    if config.getoption("--campaign") == "short":
        for item in items:
            if "long" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="one of many alike: --campaign long tries them all"))
    import torch  # here: the process that only hands tests to pytest-xdist's workers does without

    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture
def figures(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Prints what a campaign came to, in its long form: docs/reliability-tests.md quotes it."""

    def tell(text: str) -> None:
        if request.config.getoption("--campaign") == "long":
            with capsys.disabled():
                print(f"\n{text}")

    return tell


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is loaded stays: to look for garbage in it meanwhile costs a tenth of the collection's time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def freeze_what_is_loaded() -> None:
    """It stays: a collection, of which every count of an iteration makes one, need not look at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def loaded_late() -> Iterator[None]:
    """What a test is the first to load, as torch's compiler is by an optimiser, is in no later collection's way."""
    modules = len(sys.modules)
    yield
    if len(sys.modules) > modules + 100:
        freeze_what_is_loaded()


@pytest.fixture(autouse=True, scope="module")
def forked_processes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Cells run in forks of the test's process; a module marked `spawned` starts them as users do."""
    freeze_what_is_loaded()
    with pytest.MonkeyPatch.context() as monkeypatch:
        if request.node.get_closest_marker("spawned") is None:
            fork_instead_of_spawning(monkeypatch)
        yield


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
