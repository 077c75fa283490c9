"""Settings and fixtures of all tests: one thread, forked processes, separate GPU tests, and small recipes."""

import gc
import os
import sys

# Set before torch is loaded: its threading library does not survive the forks of tests/forked.py.
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))

from collections.abc import Callable, Generator, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.testing
from forked import fork_instead_of_spawning
from hypothesis import HealthCheck, Phase, settings

from sltt_bench.planning.plan import Cell
from sltt_bench.planning.recipe import load_recipe

# No deadline, since a busy machine is no fault of the code. Shrinking takes minutes, too long for CI.
settings.register_profile(
    "any machine",
    max_examples=15 if os.environ.get("CI") else 100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[phase for phase in Phase if phase is not Phase.shrink or not os.environ.get("CI")],
)
settings.load_profile("any machine")

# Cached, since building the command line takes longer than most commands, and it is the same in all tests.
typer.testing._get_command = cache(typer.testing._get_command)  # type: ignore[attr-defined]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --campaign: campaigns have a short form, which always runs, and a long one."""
    parser.addoption(
        "--campaign", choices=("short", "long"), default="short", help="how much a campaign tries"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests of the long campaign in the short one, and GPU tests without a GPU; tests that wait come first."""
    items.sort(key=lambda item: "waits" not in item.keywords)
    if config.getoption("--campaign") == "short":
        for item in items:
            if "long" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="one of many alike: --campaign long tries them all"))
    import torch  # here, since the process that only distributes tests (pytest-xdist) does not need it

    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture
def figures(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Prints the result of a campaign in its long form, for docs/reliability-tests.md."""

    def tell(text: str) -> None:
        if request.config.getoption("--campaign") == "long":
            with capsys.disabled():
                print(f"\n{text}")

    return tell


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect tests without garbage collection, which would take a tenth of the time: loaded modules stay."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def freeze_what_is_loaded() -> None:
    """Exempt what is loaded, and stays, from garbage collection, which every count of an iteration runs."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def loaded_late() -> Iterator[None]:
    """Exempt also what a test is the first to load (torch's compiler, through an optimiser)."""
    modules = len(sys.modules)
    yield
    if len(sys.modules) > modules + 100:
        freeze_what_is_loaded()


@pytest.fixture(autouse=True, scope="module")
def forked_processes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run cells in forked processes; a module marked `spawned` starts them as users do."""
    freeze_what_is_loaded()
    with pytest.MonkeyPatch.context() as monkeypatch:
        if request.node.get_closest_marker("spawned") is None:
            fork_instead_of_spawning(monkeypatch)
        yield


@pytest.fixture
def smoke_cell() -> Callable[..., Cell]:
    """Makes a tiny digits cell; keyword arguments are its overrides, with dots as double underscores."""

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
