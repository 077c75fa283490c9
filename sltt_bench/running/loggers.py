"""Logs epochs to other tools, under the names of the CSV columns: `--log tensorboard,wandb,mlflow,mlperf`.

The process that writes the CSV files logs as epochs end, and nothing that the CSV files lack. Each service's
own settings decide where it stores the log (WANDB_MODE=offline, MLFLOW_TRACKING_URI).
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from sltt_bench.common.errors import UserError
from sltt_bench.planning.plan import Cell, Plan
from sltt_bench.results.cell_row import Outcome
from sltt_bench.results.private_paths import public
from sltt_bench.results.schema import CELL_KEY
from sltt_bench.running.runner import Display

_KEY = {column.name for column in CELL_KEY} | {"epoch"}


class LoggerMissing(UserError):
    """The package of a log is not installed; the message says how to install it."""


class CellLog(Protocol):
    """The log of one cell."""

    def epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        """Log one epoch; `values`: column of epochs.csv → number."""

    def end(self, outcome: Outcome) -> None:
        """Close the log; nothing follows."""


class _TensorBoard:
    """An event file below `<run>/tensorboard/`."""

    def __init__(self, cell: Cell, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(folder / "tensorboard" / _name(cell)))

    def epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        scalars = [self._summary.Value(tag=column, simple_value=value) for column, value in values.items()]
        event = self._event(wall_time=time.time(), step=epoch, summary=self._summary(value=scalars))
        self._writer.add_event(event)
        self._writer.flush()

    def end(self, outcome: Outcome) -> None:
        self._writer.close()


class _WeightsAndBiases:
    """A run of the project sltt-bench; with WANDB_MODE=offline, it is below `<run>/wandb/`.

    A resumed cell continues the run of its first attempt. Offline, each attempt is a run of its own: `wandb sync` would
    replace the first of two runs with the same id by the second.
    """

    def __init__(self, cell: Cell, folder: Path) -> None:
        import wandb

        offline = wandb.setup().settings.mode == "offline"
        self._run = wandb.init(
            project="sltt-bench",
            group=cell.recipe.name,
            name=_name(cell),
            dir=str(folder),
            config=public(cell.to_dict()),
            allow_val_change=True,  # of a run that goes on, on another device for example
            reinit="create_new",
            id=None if offline else f"{folder.name}-{cell.cell_id}",
            resume=None if offline else "allow",
        )

    def epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=epoch)

    def end(self, outcome: Outcome) -> None:
        self._run.finish(exit_code=int(outcome.status != "ok"))


class _MLflow:
    """A run of the experiment named after the recipe; a resumed cell continues the run of its first attempt."""

    _TAG = "sltt_bench.cell_of_run"

    def __init__(self, cell: Cell, folder: Path) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric, self._client = Metric, MlflowClient()
        name = cell.recipe.name
        experiment = self._client.get_experiment_by_name(name)
        identity = experiment.experiment_id if experiment else self._client.create_experiment(name)
        own = f"{folder.name}-{cell.cell_id}"
        if begun := self._client.search_runs([identity], f"tags.`{self._TAG}` = '{own}'", max_results=1):
            self._run_id = begun[0].info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
            return
        run = self._client.create_run(identity, run_name=_name(cell), tags={self._TAG: own})
        self._run_id = run.info.run_id
        facts = {"cell_id": cell.cell_id, "method": cell.method, "backend": cell.backend, "seed": cell.seed}
        self._client.log_batch(self._run_id, params=[Param(key, str(value)) for key, value in facts.items()])

    def epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._metric(column, value, now, epoch) for column, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def end(self, outcome: Outcome) -> None:
        self._client.set_terminated(self._run_id, "FINISHED" if outcome.status == "ok" else "FAILED")


class _MLPerf:
    """Lines in the format of MLPerf's logging, in `<run>/mlperf/`: start, seed, accuracy by epoch, stop.

    MLPerf's compliance checker requires exactly one start and one stop, so a resumed cell continues the log
    of its first attempt. The time from start to stop then includes the pause, and repeated epochs appear
    twice.
    """

    def __init__(self, cell: Cell, folder: Path) -> None:
        path = folder / "mlperf" / f"{_name(cell)}.log"
        path.parent.mkdir(exist_ok=True)
        begun = _take_back_stop(path)
        self._file = path.open("a", encoding="utf-8")
        if begun:
            return
        self._line("POINT_IN_TIME", "submission_benchmark", cell.recipe.name)
        self._line("POINT_IN_TIME", "seed", cell.seed)
        self._line("POINT_IN_TIME", "global_batch_size", cell.recipe.train.batch_size)
        self._line("INTERVAL_START", "run_start", None)

    def epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        if "test_top1" in values:
            self._line("POINT_IN_TIME", "eval_accuracy", values["test_top1"], epoch_num=epoch)
        self._line("INTERVAL_END", "epoch_stop", None, epoch_num=epoch)

    def end(self, outcome: Outcome) -> None:
        status = "success" if outcome.status == "ok" else "aborted"
        self._line("INTERVAL_END", "run_stop", None, status=status)
        self._file.close()

    def _line(self, kind: str, key: str, value: Any, **metadata: Any) -> None:
        entry = {
            "namespace": "",
            "time_ms": int(time.time() * 1000),
            "event_type": kind,
            "key": key,
            "value": value,
            "metadata": metadata,
        }
        self._file.write(f":::MLLOG {json.dumps(entry)}\n")
        self._file.flush()


def _take_back_stop(path: Path) -> bool:
    """Cut an MLPerf log before its run_stop or a torn line, or empty it if it has no start.

    Returns whether it has a start.
    """
    if not path.exists():
        return False
    whole = path.read_bytes().splitlines(keepends=True)
    if whole and not whole[-1].endswith(b"\n"):
        whole.pop()
    if whole and b'"run_stop"' in whole[-1]:
        whole.pop()
    begun = any(b'"run_start"' in line for line in whole)
    with path.open("r+b") as file:
        file.truncate(sum(map(len, whole)) if begun else 0)
    return begun


LOGGERS: Mapping[str, Callable[[Cell, Path], CellLog]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WeightsAndBiases,
    "mlflow": _MLflow,
    "mlperf": _MLPerf,
}
"""Name for --log → function that opens the log of a cell, given its run's folder."""

PACKAGES: dict[str, str] = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
"""Log → the module that it needs; the extra that installs it is named like the log."""


class LogDisplay(Display):
    """Logs the epochs of every cell.

    A log that fails (no network, no room, a package's own fault) is given up with a remark; the CSV files are
    complete.
    """

    def __init__(self, names: list[str], remark: Callable[[str], None]) -> None:
        """`remark` shows the user a text. Raises LoggerMissing."""
        from importlib.util import find_spec

        for name in names:
            if name in PACKAGES and find_spec(PACKAGES[name]) is None:
                raise LoggerMissing(f"--log {name} needs its package: pip install 'sltt-bench[{name}]'")
        self._names, self._tell = names, remark
        self._planned: dict[str, tuple[Cell, Path]] = {}
        """cell_id → cell and its run's folder."""
        self._logs: dict[str, dict[str, CellLog]] = {}
        """cell_id → logs by name, of the cells that have begun and not ended."""

    def run_opened(self, plan: Plan, folder: Path) -> None:
        self._planned |= {cell.cell_id: (cell, folder) for cell in plan}

    def cell_started(self, cell: Cell, number: int, total: int) -> None:
        (_, folder), logs = self._planned[cell.cell_id], self._logs.setdefault(cell.cell_id, {})
        for name in self._names:
            with self._giving_up(cell, name):
                logs[name] = LOGGERS[name](cell, folder)

    def epoch(self, cell: Cell, row: Mapping[str, Any]) -> None:
        values = {
            column: float(value)
            for column, value in row.items()
            if column not in _KEY and isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        for name, log in list(self._logs.get(cell.cell_id, {}).items()):
            with self._giving_up(cell, name):
                log.epoch(int(row["epoch"]), values)

    def cell_ended(self, cell: Cell, outcome: Outcome) -> None:
        for name, log in self._logs.pop(cell.cell_id, {}).items():
            with self._giving_up(cell, name):
                log.end(outcome)

    def close(self) -> None:
        """End the logs of interrupted cells, which a service would show as running for ever."""
        for cell_id in list(self._logs):
            self.cell_ended(self._planned[cell_id][0], Outcome("killed"))

    @contextmanager
    def _giving_up(self, cell: Cell, name: str) -> Iterator[None]:
        """Let a fault of a log end that log of the cell, and nothing else."""
        try:
            yield
        except Exception as error:  # a foreign package may raise anything
            self._logs.get(cell.cell_id, {}).pop(name, None)
            fault = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self._tell(f"--log {name} gave up {_name(cell)} ({fault}); the CSV files have all of it")


class Displays(Display):
    """Several displays as one, which passes every call to each of them."""

    def __init__(self, *displays: Display) -> None:
        for name in vars(Display):
            if not name.startswith("_"):
                setattr(self, name, partial(self._tell_each, [getattr(each, name) for each in displays]))

    @staticmethod
    def _tell_each(listeners: list[Callable[..., None]], *what: Any) -> None:
        for listener in listeners:
            listener(*what)


def _name(cell: Cell) -> str:
    return f"{cell.method}-{cell.backend}-seed{cell.seed}-{cell.cell_id}"
