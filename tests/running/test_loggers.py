"""The logs of a run hold the CSV's columns under the same names, each in the place and form of its tool, offline."""

import json
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from sltt_bench.command_line import commands
from sltt_bench.command_line.cli import app
from sltt_bench.planning.plan import Cell, Plan
from sltt_bench.results.cell_row import Outcome
from sltt_bench.running import loggers
from sltt_bench.running.interruptions import Interrupted

COLUMNS = ("train_loss", "test_top1", "train_s", "lr")
SMOKE = ["run", "digits", "--method", "sltt", "--smoke", "--device", "cpu", "--no-estimate", "--seed", "3"]
SMOKE += ["--set", "timesteps=2"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run that every log has followed."""
    out = tmp_path_factory.mktemp("out")
    tools = [name for name in loggers.LOGGERS if find_spec(loggers.PACKAGES.get(name, "json"))]
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("WANDB_MODE", "offline")
        monkeypatch.setenv("WANDB_SILENT", "true")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", (out / "mlruns").as_uri())
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        result = CliRunner().invoke(app, [*SMOKE, "--log", ",".join(tools), "--out", str(out)])
    assert result.exit_code == 0, result.output
    (folder,) = (out / "digits").iterdir()
    return folder


@pytest.fixture(scope="module")
def epochs(run_folder: Path) -> pd.DataFrame:
    return pd.read_csv(run_folder / "epochs.csv")


def test_tensorboard_scalars_equal_the_csv(run_folder: Path, epochs: pd.DataFrame) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (cell,) = (run_folder / "tensorboard").iterdir()
    events = accumulator.EventAccumulator(str(cell))
    events.Reload()
    for column in COLUMNS:
        logged = [(event.step, event.value) for event in events.Scalars(column)]
        assert [step for step, _ in logged] == [1, 2]
        assert [value for _, value in logged] == pytest.approx(list(epochs[column]), rel=1e-6)


def test_mlflow_metrics_equal_the_csv(
    run_folder: Path, epochs: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient((run_folder.parent.parent / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("digits")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["method"] == "sltt"
    for column in COLUMNS:
        logged = sorted(
            (metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, column)
        )
        assert logged == [(step, pytest.approx(value)) for step, value in enumerate(epochs[column], start=1)]


def test_wandb_keeps_an_offline_run(run_folder: Path) -> None:
    pytest.importorskip("wandb")
    (file,) = run_folder.glob("wandb/offline-run-*/run-*.wandb")
    content = file.read_bytes()
    for column in COLUMNS:
        assert column.encode() in content


def test_mlperf_lines_are_json_from_start_to_stop(run_folder: Path, epochs: pd.DataFrame) -> None:
    (file,) = (run_folder / "mlperf").iterdir()
    lines = file.read_text().splitlines()
    assert all(line.startswith(":::MLLOG ") for line in lines)
    entries: list[dict[str, Any]] = [json.loads(line.removeprefix(":::MLLOG ")) for line in lines]
    assert [entry["key"] for entry in entries] == [
        *("submission_benchmark", "seed", "global_batch_size", "run_start"),
        *("eval_accuracy", "epoch_stop") * 2,
        "run_stop",
    ]
    assert entries[1]["value"] == 3
    accuracy = [(e["metadata"]["epoch_num"], e["value"]) for e in entries if e["key"] == "eval_accuracy"]
    assert accuracy == [(step, pytest.approx(value)) for step, value in enumerate(epochs.test_top1, start=1)]
    assert entries[-1]["metadata"] == {"status": "success"}


@pytest.mark.parametrize("end", ["in order", "killed", "killed while it wrote", "killed before its start"])
def test_the_mlperf_log_of_a_resumed_cell_has_one_start_and_one_stop(
    end: str, tmp_path: Path, smoke_cell: Callable[..., Cell]
) -> None:
    cell = smoke_cell()

    def attempt(epochs: list[int], outcome: Outcome | None) -> None:
        display = loggers.LogDisplay(["mlperf"], pytest.fail)
        display.run_opened(Plan(cell.recipe, (cell,)), tmp_path)
        display.cell_started(cell, 1, 1)
        for epoch in epochs:
            display.epoch(cell, {"epoch": epoch, "test_top1": 0.5})
        if outcome is not None:
            display.cell_ended(cell, outcome)

    attempt([1, 2], Outcome("killed") if end == "in order" else None)
    (log,) = (tmp_path / "mlperf").iterdir()
    begun = log.read_bytes()
    if end == "killed while it wrote":
        log.write_bytes(begun[:-20])
    elif end == "killed before its start":
        log.write_bytes(begun[: begun.index(b"\n") + 20])
    attempt([2, 3] if end == "killed while it wrote" else [3], Outcome("ok"))
    entries = [json.loads(line.removeprefix(":::MLLOG ")) for line in log.read_text().splitlines()]
    keys = [entry["key"] for entry in entries]
    assert {key: keys.count(key) for key in ("submission_benchmark", "run_start", "run_stop")} == {
        "submission_benchmark": 1, "run_start": 1, "run_stop": 1,
    }  # fmt: skip
    assert keys[3] == "run_start"
    assert entries[-1]["metadata"] == {"status": "success"}
    stops = {entry["metadata"]["epoch_num"] for entry in entries if entry["key"] == "epoch_stop"}
    assert stops == ({3} if end == "killed before its start" else {1, 2, 3})


def attempts(name: str, cell: Cell, folder: Path) -> None:
    """A cell that is cut off after its second epoch and goes on."""
    for epochs, outcome in (([1, 2], Outcome("killed")), ([2, 3], Outcome("ok"))):
        display = loggers.LogDisplay([name], pytest.fail)
        display.run_opened(Plan(cell.recipe, (cell,)), folder)
        display.cell_started(cell, 1, 1)
        for epoch in epochs:
            display.epoch(cell, {"epoch": epoch, "test_top1": epoch / 10})
        display.cell_ended(cell, outcome)


def test_a_resumed_cell_is_one_run_of_mlflow(
    tmp_path: Path, smoke_cell: Callable[..., Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for folder in ("one", "two"):
        attempts("mlflow", smoke_cell(), tmp_path / folder)
    client = mlflow.MlflowClient((tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("digits")
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * 2, "one of each folder"
    for run in runs:
        history = client.get_metric_history(run.info.run_id, "test_top1")
        assert {metric.step: metric.value for metric in history} == {1: 0.1, 2: 0.2, 3: 0.3}


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_resumed_cell_is_one_run_of_wandb_where_that_can_go_on(
    mode: str, tmp_path: Path, smoke_cell: Callable[..., Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, `wandb sync` of a second run with the id of a first replaces that one."""
    pytest.importorskip("wandb")
    opened: list[dict[str, Any]] = []
    run = SimpleNamespace(log=lambda values, step: None, finish=lambda exit_code: None)
    settings = SimpleNamespace(settings=SimpleNamespace(mode=mode))
    module = SimpleNamespace(setup=lambda: settings, init=lambda **how: opened.append(how) or run)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    cell = smoke_cell()
    for folder in ("one", "two"):
        attempts("wandb", cell, tmp_path / folder)
    ids = [(how["id"], how["resume"]) for how in opened]
    if mode == "offline":
        assert ids == [(None, None)] * 4
    else:
        assert ids == [(f"{folder}-{cell.cell_id}", "allow") for folder in ("one", "two") for _ in range(2)]


def test_an_unknown_log_is_refused_and_a_missing_package_named(monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(app, ["run", "digits", "--log", "mlperf,tensorbord"])
    assert result.exit_code == 2
    assert "did you mean 'tensorboard'" in result.output
    monkeypatch.setitem(loggers.PACKAGES, "wandb", "a_package_that_nobody_has")
    with pytest.raises(loggers.LoggerMissing, match=r"pip install 'sltt-bench\[wandb\]'"):
        loggers.LogDisplay(["wandb"], print)


@pytest.mark.parametrize("moment", ["open", "epoch", "end"])
def test_a_log_that_fails_ends_itself_and_no_run(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smoke_cell: Callable[..., Cell]
) -> None:
    class Failing:
        def __init__(self, cell: Cell, folder: Path) -> None:
            self.reach("open")

        def reach(self, here: str) -> None:
            calls.append(here)
            if here == moment:
                raise ConnectionError("no route to host")

        def epoch(self, epoch: int, values: Mapping[str, float]) -> None:
            self.reach("epoch")

        def end(self, outcome: Outcome) -> None:
            self.reach("end")

    calls: list[str] = []
    remarks: list[str] = []
    cell = smoke_cell()
    monkeypatch.setattr(loggers, "LOGGERS", {**loggers.LOGGERS, "failing": Failing})
    display = loggers.LogDisplay(["failing", "mlperf"], remarks.append)
    display.run_opened(Plan(cell.recipe, [cell]), tmp_path)
    display.cell_started(cell, 1, 1)
    for epoch in (1, 2):
        display.epoch(cell, {"epoch": epoch, "test_top1": 0.5})
    display.cell_ended(cell, Outcome("ok"))
    assert (
        calls
        == {"open": ["open"], "epoch": ["open", "epoch"], "end": ["open", "epoch", "epoch", "end"]}[moment]
    )
    (remark,) = remarks
    assert "--log failing gave up sltt-reference-seed0" in remark
    assert "(ConnectionError: no route to host)" in remark
    (log,) = (tmp_path / "mlperf").iterdir()
    assert "run_stop" in log.read_text(), "the others go on"


def test_the_log_of_a_cell_that_was_cut_off_is_ended(tmp_path: Path, smoke_cell: Callable[..., Cell]) -> None:
    cell = smoke_cell()
    display = loggers.LogDisplay(["mlperf"], print)
    with closing(display):
        display.run_opened(Plan(cell.recipe, [cell]), tmp_path)
        display.cell_started(cell, 1, 1)
    (log,) = (tmp_path / "mlperf").iterdir()
    assert json.loads(log.read_text().splitlines()[-1].partition(" ")[2])["metadata"] == {"status": "aborted"}


def test_an_interrupted_run_ends_its_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smoke_cell: Callable[..., Cell]
) -> None:
    cell = smoke_cell()
    plan = Plan(cell.recipe, (cell,))

    def cut_off(runs: Any, display: Any, **more: Any) -> None:
        display.run_opened(plan, tmp_path)
        display.cell_started(cell, 1, 1)
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(commands, "start_runs", cut_off)
    assert commands.run_plans([plan], out=tmp_path, logs=["mlperf"]) == 128 + signal.SIGINT
    (log,) = (tmp_path / "mlperf").iterdir()
    assert "run_stop" in log.read_text()
