"""Before a run: the estimate of every cell, and cells that cannot fit."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from sltt_bench.command_line import commands
from sltt_bench.command_line.cli import app
from sltt_bench.kinds import estimates
from sltt_bench.planning.plan import Cell
from sltt_bench.results.cell_row import Outcome
from sltt_bench.running.interruptions import Interrupted
from sltt_bench.running.lanes import Place
from sltt_bench.running.preflight import Preflight, preflight
from sltt_bench.running.runner import PlannedRun

RUN = ["run", "digits", "--smoke", "--device", "cpu", "--seed", "0"]
BOTH = ["--method", "bptt,sltt"]


def test_the_estimate_shown_before_a_run_is_what_the_run_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Preflight] = []
    monkeypatch.setattr(commands, "preflight", lambda cells: shown.append(preflight(cells)) or shown[0])
    result = CliRunner().invoke(app, [*RUN, *BOTH, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    (folder,) = (tmp_path / "digits").iterdir()
    measured = pd.read_csv(folder / "epochs.csv").groupby("cell_id").peak_tensor_bytes.first()
    cells = pd.read_csv(folder / "cells.csv").set_index("cell_id")
    (known,) = shown
    assert set(known.peak_bytes) == set(measured.index)
    assert known.free_bytes is not None
    for cell_id, peak in known.peak_bytes.items():
        assert peak == pytest.approx(measured[cell_id], rel=0.01)
        assert cells.estimated_peak_tensor_bytes[cell_id] == peak
    assert result.output.count("peak of live tensors: estimated") == 2


def test_in_a_container_no_more_is_free_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def free_at(limit: int | None) -> int:
        monkeypatch.setattr(estimates, "memory_limit", lambda: limit)
        return estimates.free_memory("cpu")[0]

    assert free_at(10**6) == 10**6
    assert 10**6 < free_at(None) < 2**60
    assert free_at(2**60) < 2**60


def oversize(cells: list[Cell]) -> Preflight:
    """BPTT needs 4 GiB where 1 GiB is free."""
    return Preflight({cell.cell_id: 2**32 if cell.method == "bptt" else 2**20 for cell in cells}, 2**30)


def test_a_cell_that_cannot_fit_is_warned_of_and_still_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "preflight", oversize)
    result = CliRunner().invoke(app, [*RUN, "--method", "bptt", "--out", str(tmp_path)])
    assert result.exit_code == 0
    assert "warning: digits · bptt · seed 0: its live tensors alone are estimated at 4 GiB" in result.output
    assert result.output.count("warning") == 1


def test_skip_oversize_leaves_it_out_as_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "preflight", oversize)
    result = CliRunner().invoke(app, [*RUN, *BOTH, "--skip-oversize", "--out", str(tmp_path)])
    assert result.exit_code == 1
    (folder,) = (tmp_path / "digits").iterdir()
    cells = pd.read_csv(folder / "cells.csv").set_index("method")
    assert dict(cells.status) == {"bptt": "skipped", "sltt": "ok"}
    assert cells.reason["bptt"].startswith("--skip-oversize: its live tensors alone are estimated at 4 GiB")


def test_skip_oversize_without_an_estimate_is_a_contradiction() -> None:
    result = CliRunner().invoke(app, [*RUN, "--skip-oversize", "--no-estimate"])
    assert result.exit_code == 2


def test_an_estimate_that_takes_too_long_is_given_up_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_slow(cells: list[Cell], *, timeout_s: float) -> list[Outcome]:
        assert timeout_s == 60
        return [Outcome("timeout") for _ in cells]

    begun: list[str] = []

    def run(runs: list[PlannedRun], *_: Any, estimated_peaks: dict[str, int], **__: Any) -> list[Outcome]:
        assert estimated_peaks == {}
        begun.extend(cell.method for planned in runs for cell in planned.plan)
        return [Outcome("ok")]

    monkeypatch.setattr("sltt_bench.running.preflight.computed", too_slow)
    monkeypatch.setattr(commands, "start_runs", run)
    result = CliRunner().invoke(app, [*RUN, "--method", "sltt", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert begun == ["sltt"]
    assert "no estimate of digits · sltt · seed 0: it took more than 60 s" in " ".join(result.output.split())


def test_an_interruption_of_the_estimate_ends_the_run_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(cells: list[Cell]) -> Preflight:
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(commands, "preflight", interrupted)
    result = CliRunner().invoke(app, [*RUN, "--method", "sltt", "--out", str(tmp_path)])
    assert result.exit_code == 128 + signal.SIGTERM
    assert "interrupted by SIGTERM; nothing was begun" in result.output


def test_cells_side_by_side_are_warned_of_where_together_they_do_not_fit(
    smoke_cell: Callable[..., Cell],
) -> None:
    cells = [smoke_cell(seed=seed) for seed in (0, 1, 2)]
    peaks = {cell.cell_id: size for cell, size in zip(cells, (3, 5, 4), strict=True)}
    memory = Preflight({cell_id: size << 20 for cell_id, size in peaks.items()}, free_bytes=8 << 20)
    assert memory.too_many(cells, [Place()]) is None
    assert memory.too_many(cells, [Place("cuda:0"), Place("cuda:1")]) is None
    assert "may take 9 MiB, but 8 MiB" in (memory.too_many(cells, [Place("cpu")] * 2) or "")
    assert "may take 10 MiB" in (memory.too_many(cells, [Place("cpu", 1, ("cpu",))]) or "")


@pytest.mark.parametrize("command", [["run"], ["analyze", "gradients"]])
def test_a_batch_that_no_epoch_can_fill_is_refused_before_anything_is_estimated(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "preflight", lambda cells: pytest.fail("estimated"))
    arguments = [*command, "digits", "--set", "train.batch_size=64,10000000", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "train.batch_size is 10,000,000, but an epoch has 1,437 training samples" in result.output
    assert not list(tmp_path.iterdir())
    result = CliRunner().invoke(app, [*command, "digits", "--smoke", "--set", "data.limit=4", "--dry-run"])
    assert result.output.startswith("error: digits with --smoke, data.limit=4: train.batch_size is"), (
        result.output
    )
