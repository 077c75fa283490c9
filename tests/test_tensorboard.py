"""TensorBoard logs hold the CSV's columns under the same names."""

from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from sltt_bench.cli import app


def test_tensorboard_scalars_equal_the_csv(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    arguments = [
        "run",
        "digits",
        "--method",
        "sltt",
        "--smoke",
        "--device",
        "cpu",
        "--no-estimate",
        "--log",
        "tensorboard",
    ]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    (run,) = (tmp_path / "digits").iterdir()
    (cell,) = (run / "tensorboard").iterdir()
    events = accumulator.EventAccumulator(str(cell))
    events.Reload()
    rows = pd.read_csv(run / "epochs.csv")
    for column in ("train_loss", "test_top1", "train_s", "lr"):
        logged = [(event.step, event.value) for event in events.Scalars(column)]
        assert [step for step, _ in logged] == [1, 2]
        assert [value for _, value in logged] == pytest.approx(list(rows[column]), rel=1e-6)


def test_an_unknown_log_is_refused() -> None:
    result = CliRunner().invoke(app, ["run", "digits", "--log", "tensorbord"])
    assert result.exit_code == 2
    assert "known is tensorboard" in result.output
