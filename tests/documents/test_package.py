"""The wheel: recipes ship in it, and it runs outside the checkout."""

import csv
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from checkout import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(ROOT)], check=True)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_recipes_templates_and_the_type_marker(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        assert f"sltt_bench/recipes/{recipe.name}" in names
    for shipped in (ROOT / "sltt_bench").rglob("*"):
        if shipped.is_file() and "__pycache__" not in shipped.parts:
            assert str(shipped.relative_to(ROOT)) in names
    assert "sltt_bench/py.typed" in names
    assert not any(name.startswith(("tests/", "results/")) for name in names)


def test_the_wheel_smoke_runs_in_an_environment_of_its_own_outside_the_checkout(
    wheel: Path, tmp_path: Path
) -> None:
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    query = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = Path(
        subprocess.run([python, "-c", query], capture_output=True, text=True, check=True).stdout.strip()
    )
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # The dependencies come from this environment; the checkout's own package must not.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    code = "import sltt_bench.command_line.cli, sys; print(sltt_bench.__file__); sltt_bench.command_line.cli.main()"
    arguments = ["run", "digits", "--smoke", "--method", "sltt", "--device", "cpu", "--out", "out"]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", code, *arguments], cwd=tmp_path, env=clean, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[0].startswith(str(site))
    (folder,) = tmp_path.glob("out/digits/*")
    (cell,) = csv_rows(folder / "cells.csv")
    assert cell["status"] == "ok"
    epochs = csv_rows(folder / "epochs.csv")
    assert [row["epoch"] for row in epochs] == ["1", "2"]
    for row in epochs:  # three processes, each freshly started: the command, the estimate and the cell
        assert row["peak_tensor_bytes"] == cell["estimated_peak_tensor_bytes"]
        assert int(row["peak_rss_bytes"]) > int(row["peak_tensor_bytes"])


def csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.long
@pytest.mark.parametrize(
    "command", [("uv", "tool", "run", "--from", "{wheel}"), ("pipx", "run", "--spec", "{wheel}")], ids=str
)
def test_tools_that_make_an_environment_for_a_command_run_the_wheel(
    command: tuple[str, ...], wheel: Path, tmp_path: Path
) -> None:
    """Downloads torch: minutes, and gigabytes where the index has no smaller build."""
    program = shutil.which(command[0], path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip(f"{command[0]} is not installed")
    start = [program, *(word.format(wheel=wheel) for word in command[1:]), "sltt-bench"]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    arguments = ["run", "digits", "--smoke", "--method", "sltt", "--device", "cpu", "--out", "out"]
    subprocess.run([*start, *arguments], cwd=tmp_path, env=clean, check=True)
    assert list(tmp_path.glob("out/digits/*/epochs.csv"))
