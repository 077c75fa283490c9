"""Runs a plan: one freshly spawned process per cell, a wall-clock timeout, and a row for every ending.

Only a fresh process has an honest memory peak. The runner writes the rows (through the results
folder) as the process reports them, so that whatever ends the process, what it measured is on disk.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from sltt_bench.plan import Cell, Plan
from sltt_bench.provenance import without_private_paths
from sltt_bench.results.schema import (
    CELL_KEY,
    CELLS_FILE,
    EPOCHS_FILE,
    SCHEMA_VERSION,
    TIMELINE_FILE,
    Status,
)
from sltt_bench.results.writer import RunFolder

GRACE_S = 5.0
"""Seconds between asking a process to end and killing it."""


class Display(Protocol):
    """Who shows a run as it happens."""

    def cell_started(self, cell: Cell, number: int, total: int) -> None: ...
    def preparing(self, cell: Cell, event: Mapping[str, Any]) -> None: ...
    def batch(self, cell: Cell, event: Mapping[str, Any]) -> None: ...
    def epoch(self, cell: Cell, row: Mapping[str, Any]) -> None: ...
    def cell_ended(self, cell: Cell, outcome: "Outcome") -> None: ...
    def remark(self, text: str) -> None: ...


@dataclass
class Outcome:
    """How a cell ended, and what is known of it."""

    status: Status
    reason: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    wall_s: float = 0.0
    exit_code: int | None = None
    started_utc: str = ""
    attempt: int = 1


@dataclass(frozen=True)
class Setting:
    """What holds for all cells of a run."""

    data_dir: Path
    timeout_s: float | None = None
    """Wall-clock limit of one cell; None: no limit."""
    python: str = sys.executable


class Interrupted(Exception):
    """Ctrl-C or SIGTERM; `signal_number` decides the exit code."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


def run_plan(
    plan: Plan,
    folder: RunFolder,
    setting: Setting,
    display: Display,
    *,
    initial_weights: Callable[[Cell], Path | None],
    provenance: Mapping[str, Any],
) -> dict[str, Outcome]:
    """Run the cells of the plan that the folder does not hold as finished; cell_id → outcome.

    `initial_weights` gives a cell's checkpoint to start from; it raises LookupError, with the reason,
    where that does not exist, and the cell is skipped. After an Interrupted the folder is complete:
    the cell under way and those not begun have their rows.
    """
    before = finished_cells(folder)
    recorder = _Recorder(folder, dict(provenance))
    outcomes: dict[str, Outcome] = {}
    with _signals_raise():
        for number, cell in enumerate(plan, start=1):
            if cell.cell_id in before.finished:
                display.remark(f"{describe(cell)}: finished before, kept")
                outcomes[cell.cell_id] = Outcome("ok", "finished before")
                continue
            attempt = before.attempts.get(cell.cell_id, 0) + 1
            folder.write_cell(_public(cell.to_dict()))
            display.cell_started(cell, number, len(plan))
            process = _CellProcess(cell, attempt, folder, setting, recorder, display)
            try:
                outcome = process.run(initial_weights(cell))
            except LookupError as error:
                outcome = Outcome("skipped", str(error.args[0]), attempt=attempt)
            except Interrupted as interruption:
                process.outcome.status = "killed"
                process.outcome.reason = f"interrupted by {interruption}"
                recorder.cell(cell, process.outcome)
                for left in plan.cells[number:]:
                    if left.cell_id not in before.finished:
                        folder.write_cell(_public(left.to_dict()))
                        next_attempt = before.attempts.get(left.cell_id, 0) + 1
                        skipped = Outcome("skipped", f"interrupted by {interruption}", attempt=next_attempt)
                        recorder.cell(left, skipped)
                raise
            recorder.cell(cell, outcome)
            outcomes[cell.cell_id] = outcome
            display.cell_ended(cell, outcome)
    return outcomes


def _public(value: Any) -> Any:
    """JSON without the paths that would tell who ran it."""
    if isinstance(value, str):
        return without_private_paths(value)
    if isinstance(value, dict):
        return {key: _public(below) for key, below in value.items()}
    if isinstance(value, list):
        return [_public(below) for below in value]
    return value


def describe(cell: Cell) -> str:
    """A cell in the words of its user."""
    parts = [cell.recipe.name, cell.method]
    if cell.backend != "reference":
        parts.append(cell.backend)
    parts.append(f"seed {cell.seed}")
    parts += [f"{key}={value}" for key, value in cell.overrides.items()]
    return " · ".join(parts)


@dataclass
class _Before:
    finished: set[str]
    attempts: dict[str, int]


def finished_cells(folder: RunFolder) -> _Before:
    """Which cells a folder holds as finished, and how often each was tried."""
    rows = folder.rows(CELLS_FILE)
    attempts: dict[str, int] = {}
    for row in rows:
        attempts[row["cell_id"]] = max(attempts.get(row["cell_id"], 0), int(row["attempt"]))
    return _Before({row["cell_id"] for row in rows if row["status"] == "ok"}, attempts)


class _Recorder:
    """Turns what a cell reports into rows and provenance."""

    def __init__(self, folder: RunFolder, provenance: dict[str, Any]) -> None:
        self._folder = folder
        self._provenance = {**folder.read_provenance(), **provenance}
        self._provenance.setdefault("cells", {})
        self._provenance["commands"] = [
            *folder.read_provenance().get("commands", []),
            {"command": provenance.get("command"), "started_utc": provenance.get("started_utc")},
        ]
        folder.write_provenance(self._provenance)

    def epoch(self, cell: Cell, outcome: Outcome, figures: Mapping[str, Any]) -> dict[str, Any]:
        row = {**self._key(cell, outcome), **figures}
        row["peak_tensor_bytes"] = outcome.facts.get("peak_tensor_bytes")
        self._folder.append(EPOCHS_FILE, row)
        outcome.epochs.append(row)
        return row

    def row(self, cell: Cell, outcome: Outcome, file: str, figures: Mapping[str, Any]) -> None:
        self._folder.append(file, {**self._key(cell, outcome), **figures})

    def sample(self, cell: Cell, outcome: Outcome, sample: Mapping[str, Any]) -> None:
        row = {"cell_id": cell.cell_id, "attempt": outcome.attempt, **sample}
        self._folder.append(TIMELINE_FILE, row)

    def measured_with(self, cell: Cell, event: Mapping[str, Any]) -> None:
        self._provenance.update(event["provenance"].pop("machine", {}))
        self._note(cell, {key: value for key, value in event.items() if key != "event"})

    def initial_weights(self, cell: Cell, event: Mapping[str, Any]) -> None:
        self._note(cell, {"initial_weights": {key: event[key] for key in event if key != "event"}})

    def _note(self, cell: Cell, facts: Mapping[str, Any]) -> None:
        self._provenance["cells"].setdefault(cell.cell_id, {}).update(facts)
        self._folder.write_provenance(self._provenance)

    def cell(self, cell: Cell, outcome: Outcome) -> None:
        epochs = self._epochs_of_all_attempts(cell)
        accuracy = {epoch: float(row["test_top1"]) for epoch, row in epochs.items() if row["test_top1"]}
        best = max(accuracy, key=lambda epoch: (accuracy[epoch], -epoch), default=None)
        last = max(epochs, default=0)
        self._folder.append(
            CELLS_FILE,
            {
                **self._key(cell, outcome),
                "kind": cell.kind,
                "device_name": outcome.facts.get("device_name"),
                "overrides": json.dumps(_public(cell.overrides), sort_keys=True),
                "synthetic": cell.synthetic,
                "smoke": cell.smoke,
                "status": outcome.status,
                "reason": without_private_paths(outcome.reason),
                "started_utc": outcome.started_utc,
                "wall_s": outcome.wall_s,
                "epochs_planned": cell.recipe.train.epochs,
                "epochs_done": last,
                "parameters": outcome.facts.get("parameters"),
                "best_epoch": best,
                "best_test_top1": None if best is None else accuracy[best],
                "last_test_top1": accuracy.get(last),
                "exit_code": outcome.exit_code,
            },
        )

    def _epochs_of_all_attempts(self, cell: Cell) -> dict[int, dict[str, str]]:
        """Epoch → row; a later attempt's row stands for an earlier one's."""
        rows = [row for row in self._folder.rows(EPOCHS_FILE) if row["cell_id"] == cell.cell_id]
        return {int(row["epoch"]): row for row in rows}

    @staticmethod
    def _key(cell: Cell, outcome: Outcome) -> dict[str, Any]:
        values = {
            "schema_version": SCHEMA_VERSION,
            "cell_id": cell.cell_id,
            "attempt": outcome.attempt,
            "recipe": cell.recipe.name,
            "recipe_hash": cell.recipe_hash,
            "method": cell.method,
            "backend": cell.backend,
            "k": cell.k,
            "timesteps": cell.recipe.timesteps,
            "batch_size": cell.recipe.train.batch_size,
            "precision": outcome.facts.get("precision", cell.recipe.train.precision),
            "device": outcome.facts.get("device", cell.device),
            "seed": cell.seed,
        }
        return {column.name: values[column.name] for column in CELL_KEY}


class _CellProcess:
    """One cell's process, from its start to its outcome."""

    def __init__(
        self,
        cell: Cell,
        attempt: int,
        folder: RunFolder,
        setting: Setting,
        recorder: _Recorder,
        display: Display,
    ) -> None:
        self._cell, self._folder, self._setting = cell, folder, setting
        self._recorder, self._display = recorder, display
        started = datetime.now(UTC).isoformat(timespec="seconds")
        self.outcome = Outcome("error", attempt=attempt, started_utc=started)

    def run(self, initial_weights: Path | None) -> Outcome:
        """Wait for the end of the process, recording what it reports. Raises Interrupted."""
        checkpoint = self._checkpoint()
        job = {
            "cell": self._cell.to_dict(),
            "data_dir": str(self._setting.data_dir),
            "checkpoint": None if checkpoint is None else str(checkpoint),
            "resume": checkpoint is not None and checkpoint.exists(),
            "initial_weights": None if initial_weights is None else str(initial_weights),
        }
        kernel_kills = _kernel_oom_kills()
        start = time.monotonic()
        log = self._folder.log_path(self._cell.cell_id, self.outcome.attempt)
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [self._setting.python, "-m", "sltt_bench.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
            try:
                _feed(process, job)
                timed_out = self._listen(process, start)
            except BaseException:
                _end(process)
                raise
            finally:
                self.outcome.wall_s = time.monotonic() - start
                self.outcome.exit_code = process.poll()
                if not log.stat().st_size:
                    log.unlink()
        self._conclude(timed_out, _kernel_oom_kills() > kernel_kills, log)
        if (
            checkpoint is not None
            and self.outcome.status == "ok"
            and not self._cell.recipe.train.keep_checkpoint
        ):
            checkpoint.unlink(missing_ok=True)
        return self.outcome

    def _checkpoint(self) -> Path | None:
        train = self._cell.recipe.train
        if self._cell.kind != "run" or not (train.checkpoint_every or train.keep_checkpoint):
            return None
        return self._folder.checkpoint_path(self._cell.cell_id)

    def _listen(self, process: "subprocess.Popen[bytes]", start: float) -> bool:
        """Handle events until the process ends; True if the timeout ended it."""
        limit = self._setting.timeout_s
        events = _lines_of(process)
        while True:
            left = None if limit is None else limit - (time.monotonic() - start)
            if left is not None and left <= 0:
                _end(process)
                return True
            try:
                line = events.get(timeout=0.5 if left is None else min(left, 0.5))
            except queue.Empty:
                continue
            if line is None:
                process.wait()
                return False
            self._handle(json.loads(line))

    def _handle(self, event: dict[str, Any]) -> None:
        cell, outcome = self._cell, self.outcome
        match event["event"]:
            case "preparing":
                self._display.preparing(cell, event)
            case "batch":
                self._display.batch(cell, event)
            case "epoch":
                self._display.epoch(cell, self._recorder.epoch(cell, outcome, event["row"]))
            case "row":
                self._recorder.row(cell, outcome, event["file"], event["row"])
            case "sample":
                self._recorder.sample(cell, outcome, event["row"])
            case "facts":
                outcome.facts |= {key: value for key, value in event.items() if key != "event"}
            case "measured_with":
                self._recorder.measured_with(cell, event)
            case "initial_weights":
                self._recorder.initial_weights(cell, event)
            case "finished":
                outcome.status = "ok"
            case "failed":
                outcome.status, outcome.reason = event["status"], event["reason"]

    def _conclude(self, timed_out: bool, kernel_killed: bool, log: Path) -> None:
        outcome, code = self.outcome, self.outcome.exit_code
        if timed_out:
            outcome.status = "timeout"
            outcome.reason = f"ended after {self._setting.timeout_s:g} s (--timeout)"
        elif outcome.status == "ok" or outcome.reason:
            return
        elif code is not None and code < 0:
            name = signal.Signals(-code).name
            if code == -signal.SIGKILL and kernel_killed:
                outcome.status, outcome.reason = (
                    "oom",
                    "the operating system ended the process: out of memory",
                )
            else:
                outcome.status, outcome.reason = "killed", f"the process was ended by {name}"
        else:
            outcome.status = "error"
            see = f"; see {log}" if log.exists() else ""
            outcome.reason = f"the process ended with exit code {code} without a word{see}"


def _feed(process: "subprocess.Popen[bytes]", job: Mapping[str, Any]) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(job).encode())
        process.stdin.close()
    except BrokenPipeError:
        pass  # it ended before it read; its exit code tells


def _lines_of(process: "subprocess.Popen[bytes]") -> "queue.Queue[bytes | None]":
    """The process's events as they arrive; None at the end. A line torn by its death is dropped."""
    lines: queue.Queue[bytes | None] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.endswith(b"\n"):
                lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    return lines


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the process and its children (data workers): first asked, then killed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _kernel_oom_kills() -> int:
    """How many processes the kernel has killed for lack of memory; 0 where it does not say."""
    try:
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Ctrl-C, SIGTERM and a closed terminal raise Interrupted in the main thread."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
