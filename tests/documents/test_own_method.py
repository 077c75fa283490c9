"""The page about one's own method: what it shows is run as it stands there."""

import os
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from checkout import ROOT
from typer.testing import CliRunner

from sltt_bench.command_line.cli import app
from sltt_bench.command_line.options import complete_methods

PAGE = (ROOT / "docs" / "own-method.md").read_text(encoding="utf-8")


def test_the_documented_method_runs_next_to_bptt_and_sltt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, check = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (entry,) = re.findall(r"```toml\n\[project\.entry-points\.\"(.*?)\"\]\n'(.*?)' = \"(.*?)\"\n```", PAGE)
    group, name, target = entry
    info = tmp_path / "site" / "my_methods-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-methods\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {target}\n")
    (tmp_path / "site" / "my_methods.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)
    scope: dict[str, Any] = {}
    exec(check, scope)
    scope["test_my_method_keeps_its_promises"]()
    listed = CliRunner().invoke(app, ["list", "methods"]).output
    assert re.search(r"^  traced-lX +plug-in: my_methods:traced_sltt *$", listed, re.MULTILINE)
    assert complete_methods("bptt,tr") == ["bptt,traced-l"]
    unknown = CliRunner().invoke(app, ["run", "digits", "--method", "traced-l"]).output
    assert "(did you mean 'traced-l0.5'?)" in unknown
    assert "conversion, traced-lX (N and X stand for numbers)" in unknown
    arguments = [
        "run",
        "digits",
        "--method",
        "bptt,traced-l0.0,traced-l0.5,sltt",
        "--smoke",
        "--device",
        "cpu",
        "--no-estimate",
        "--set",
        "timesteps=3",
    ]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    epochs = pd.concat(pd.read_csv(path) for path in (tmp_path / "out").glob("digits/*/epochs.csv"))
    peak = epochs.groupby("method").peak_tensor_bytes.first()
    assert peak["sltt"] < peak["traced-l0.5"] < peak["bptt"]
    losses = epochs.groupby("method").train_loss.apply(list)
    assert losses["traced-l0.0"] == losses["sltt"]
    assert losses["traced-l0.5"] != losses["sltt"]
