"""One cell of each kind in a freshly started process, as users run it; other tests fork theirs (forked.py)."""

from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from sltt_bench.command_line.cli import app

pytestmark = pytest.mark.spawned

COMMANDS = {
    "run": ["run", "digits", "--smoke", "--device", "cpu", "--no-estimate"],
    "analysis": ["analyze", "gradients", "digits", "--smoke", "--device", "cpu", "--method", "sltt"],
    "estimate": ["estimate", "digits", "--smoke", "--device", "cpu"],
}


@pytest.mark.long  # a run and an estimate in fresh processes: tests/documents/test_package.py
@pytest.mark.parametrize("kind", COMMANDS)
def test_a_cell_of_each_kind_runs_in_a_fresh_process(kind: str, tmp_path: Path) -> None:
    arguments = [*COMMANDS[kind], "--method", "sltt", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    (folder,) = (tmp_path / "digits").iterdir()
    cells = pd.read_csv(folder / "cells.csv")
    assert list(cells.kind) == [kind]
    assert list(cells.status) == ["ok"]
    if kind == "run":
        epochs = pd.read_csv(folder / "epochs.csv")
        assert (epochs.peak_rss_bytes > epochs.peak_tensor_bytes).all()
