"""The page about one's own network: what it shows is run as it stands there."""

import os
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from checkout import ROOT
from typer.testing import CliRunner

from sltt_bench.command_line.cli import app

PAGE = (ROOT / "docs" / "own-network.md").read_text(encoding="utf-8")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's network installed, and the page's recipe in the working directory."""
    code, _ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (recipe,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    ((group, entry),) = re.findall(r"```toml\n\[project\.entry-points\.\"(.*?)\"\]\n(.*?)\n```", PAGE)
    site = tmp_path / "site"
    info = site / "my_networks-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-networks\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry.replace(chr(34), '')}\n")
    (site / "my_networks.py").write_text(code)
    (tmp_path / "slow.yaml").write_text(recipe)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
    return site


def test_the_documented_network_trains_as_its_recipe_says(package: Path) -> None:
    small = ["--set", "data.limit=64", "--set", "train.epochs=1", "--seed", "0", "--device", "cpu"]
    arguments = ["run", "slow.yaml", "--method", "sltt", "--no-estimate", *small]
    result = CliRunner().invoke(app, [*arguments, "--out", "out"])
    assert result.exit_code == 0, result.output
    (cells,) = Path("out").glob("slow/*/cells.csv")
    assert list(pd.read_csv(cells).status) == ["ok"]
    wrong = CliRunner().invoke(app, ["show", "slow.yaml", "--set", "model.alhpa=0.5"])
    assert wrong.exit_code == 2
    assert "did you mean 'alpha'" in wrong.output


def test_the_documented_tests_pass_and_fail_for_state_that_is_not_named(package: Path) -> None:
    _, tests = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    scope: dict[str, Any] = {}
    exec(tests, scope)
    checks = [value for name, value in scope.items() if name.startswith("test_")]
    assert len(checks) == 1
    for check in checks:
        check()
    scope["build"].__globals__["SlowSynapse"].carried = ()
    for check in checks:
        with pytest.raises(AssertionError):
            check()
