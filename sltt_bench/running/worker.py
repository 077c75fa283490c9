"""The process that works on cells, one after another, as they are given to it.

Each line of its standard input is a job: a resolved cell and a few paths as JSON. It reports as JSON lines
on its original standard output; everything that is printed goes to standard error, which the runner
keeps as a log. It writes no results: only checkpoints.
"""

import ctypes
import gc
import io
import json
import os
import queue
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import IO, Any, NoReturn, TextIO, cast

from sltt_bench.common.abandoned import own_temporary_folder
from sltt_bench.common.failures import classify
from sltt_bench.common.lasting_output import LastingOutput
from sltt_bench.data import with_remedy
from sltt_bench.kinds import KINDS
from sltt_bench.planning.plan import Cell, cell_from_dict
from sltt_bench.results.schema import RANK_FIGURES, RANKS_FILE

LIVE = ("batch", "sample", "epoch", "row")
"""Events of a training under way: they are kept for a runner that is stopped, and whose pipe is full, without waiting for it."""


class Reporter:
    """Sends events to the runner; the engine's Listener.

    A checkpoint carries the rows of all epochs up to it. Two processes write, the runner rows and this one
    checkpoints, and either may die between the two: what the runner missed is sent again on resuming.
    """

    def __init__(
        self, stream: IO[str], checkpoint: Path | None, attempt: int = 1, neighbours: int | None = None
    ) -> None:
        """`neighbours`: the most cells that may run beside this one, for the rows of a checkpoint."""
        self._stream = stream
        self._lock = threading.Lock()  # the profiler's samples come from a thread of their own
        self._unsent: deque[str] = deque()
        """Lines for which there was no room."""
        self._checkpoint = checkpoint
        self._attempt = attempt
        self._facts: dict[str, Any] = {"neighbours": neighbours}
        self._epochs: list[dict[str, Any]] = []
        """{attempt, facts, row, ranks} of each epoch that the next checkpoint carries."""
        self._ranks: list[dict[str, Any]] = []
        """The rows of ranks.csv of the last epoch that several processes shared."""
        self.memory_now: Any = lambda: None
        self._next_word = 0.0

    def send(self, event: str, **details: Any) -> None:
        """One line of JSON; a runner that is gone ends this process. A live one goes when there is room for it."""
        is_live = event in LIVE
        self._unsent.append(json.dumps({"event": event, **details}) + "\n")
        if not self._lock.acquire(blocking=not is_live):
            return
        try:
            while self._unsent and (not is_live or self._has_room()):
                self._stream.write(self._unsent.popleft())
                self._stream.flush()
        except BrokenPipeError:
            end_with_children()
        finally:
            self._lock.release()

    def _has_room(self) -> bool:
        """Whether a line, which is shorter than a pipe's unit of 4 KiB, can be written without waiting."""
        try:
            poll = select.poll()
            poll.register(self._stream, select.POLLOUT)
        except io.UnsupportedOperation:  # kept in memory
            return True
        return bool(poll.poll(0))

    def batch(self, epoch: int, done: int, total: int, live: Mapping[str, float]) -> None:
        self.send("batch", epoch=epoch, done=done, total=total, memory=self.memory_now(), **live)

    def preparing(self, what: str, done: int, total: int | None) -> None:
        """How far the data are; about once a second at most."""
        if time.monotonic() >= self._next_word or done == total:
            self._next_word = time.monotonic() + 1
            self.send("preparing", what=what, done=done, total=total)

    def facts(self, **facts: Any) -> None:
        """What belongs into all rows of the cell from now on (device, precision, ...)."""
        self._facts |= facts
        self.send("facts", **facts)

    def epoch(self, figures: Mapping[str, Any]) -> None:
        if not self._epochs or self._epochs[-1]["row"]["epoch"] != figures["epoch"]:
            self._add(figures)
        self.send("epoch", row=self._epochs[-1]["row"])

    def _add(self, figures: Mapping[str, Any]) -> None:
        row = dict(figures, finished_utc=datetime.now(UTC).isoformat(timespec="seconds"))
        ranks = [of_rank for of_rank in self._ranks if of_rank["epoch"] == row["epoch"]]
        facts = dict(self._facts)
        self._epochs.append({"attempt": self._attempt, "facts": facts, "row": row, "ranks": ranks})

    def ranks(self, epoch: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """What each process of the cell measured in an epoch."""
        self._ranks = [
            {"epoch": epoch, "rank": rank, **{name: row[name] for name in RANK_FIGURES if name in row}}
            for rank, row in enumerate(rows)
        ]
        for row in self._ranks:
            self.row(RANKS_FILE, row)

    def row(self, file: str, row: Mapping[str, Any]) -> None:
        """A row for another of the run's files (a name in results.schema.FILES)."""
        self.send("row", file=file, row=dict(row))

    def checkpoint(self, state: dict[str, Any]) -> None:
        self._add(state["row"])
        if self._checkpoint is not None:
            from sltt_bench.results import checkpoints

            key = {"cell_id": self._checkpoint.stem, "epochs": self._epochs}
            checkpoints.save(self._checkpoint, {**state, **key})

    def resume(self, restore: Callable[[dict[str, Any]], None]) -> None:
        """Restore the state of the cell's checkpoint; its rows go to the runner, who keeps what it lacks.

        Raises CheckpointError, also for the checkpoint of another cell.
        """
        from sltt_bench.results import checkpoints

        assert self._checkpoint is not None
        state = checkpoints.load(self._checkpoint, of_cell=self._checkpoint.stem)
        with checkpoints.restoring(self._checkpoint):
            restore(state)
            self._epochs = list(state.get("epochs", []))
        self.send("epochs", epochs=self._epochs)


def main() -> None:
    """Work on the jobs given on standard input until an empty one; exit code 1 if a cell failed."""
    # Slurm sends it to all of a job; our runner is who is meant.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    wake_as_parent_ends()
    # What torch compiles is for later cells too, and stays when a cell's own temporary folder goes.
    with suppress(OSError):  # where no folder is for temporary files
        compiled = os.path.join(tempfile.gettempdir(), f"torchinductor_{os.getuid()}")
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", compiled)
    events = take_standard_output()
    failed = False
    for job in iter(_jobs().get, {}):
        failed |= not work(job, events)
    sys.exit(int(failed))


def wake_as_parent_ends() -> None:
    """Let this process run on as its parent ends (Linux): one that somebody stopped would not see that end, and never its own."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)


_PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""


def take_standard_output() -> IO[str]:
    """The stream of events to the runner; what else is printed goes to standard error from now on.

    That is a log, on a disk that may be full: what finds no room there ends nothing, and hides no reason.
    """
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout, sys.stderr = (cast(TextIO, LastingOutput(stream)) for stream in (sys.stdout, sys.stderr))
    return events


def _jobs() -> "queue.Queue[dict[str, Any]]":
    """The lines of standard input as they come. Its end is the runner's end, and ends this process at once:
    nobody would keep its rows, and whoever resumes must find the checkpoint at rest."""
    jobs: queue.Queue[dict[str, Any]] = queue.Queue()

    def read() -> None:
        rest = b""
        while piece := os.read(0, 2**16):  # sys.stdin has a lock that this thread would hold at our own end
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                jobs.put(json.loads(line))
        end_with_children()

    threading.Thread(target=read, daemon=True).start()
    return jobs


def end_with_children() -> NoReturn:
    """End this process at once, and all that it has started, if it leads a group of its own as the runner's processes do."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGCONT)  # else SIGTERM waits for it in one that is stopped
        os.killpg(0, signal.SIGTERM)  # which Python's resource tracker ignores: it still has to tidy up
    os._exit(1)


def work(job: Mapping[str, Any], events: IO[str]) -> bool:
    """Work on one cell; whether it finished. What ends a cell becomes its row, whatever it is."""
    reporter = reporter_of(job, events)
    job = {**job, "command": os.getppid()}
    try:
        cell = cell_from_dict(job["cell"])
        if KINDS[cell.kind].divisible and cell.recipe.train.devices > 1:
            from sltt_bench.running.launch import launch_ranks

            launch_ranks(job, events, cell.recipe.train.devices)
        else:
            with own_temporary_folder():
                work_on(cell, job, reporter)
    except BaseException as error:
        traceback.print_exc()
        status, reason = classify(error)
        reporter.send("failed", status=status, reason=reason)
        if not isinstance(error, Exception):
            sys.exit(1)
        return False
    reporter.send("finished")
    return True


def reporter_of(job: Mapping[str, Any], events: IO[str], kind: type[Reporter] = Reporter) -> Reporter:
    """Who tells the runner of a job."""
    checkpoint = Path(job["checkpoint"]) if job.get("checkpoint") else None
    return kind(events, checkpoint, job["attempt"], job.get("neighbours"))


def work_on(cell: Cell, job: Mapping[str, Any], reporter: Reporter) -> None:
    """What the cell's kind does, in this process. Raises whatever ends it."""
    kind = KINDS[cell.kind]
    function = kind.load()  # loads torch
    _freeze_what_is_loaded()
    from sltt_bench.torch_internals import leave_compiler_unloaded

    if not cell.recipe.native.compile:
        leave_compiler_unloaded()
    if job["threads"] is not None:
        import torch

        torch.set_num_threads(job["threads"])
    # A cell that is only computed reads no data, and is not told where they are.
    with with_remedy(cell.recipe.data, Path(job.get("data_dir", ""))):
        function(cell, job, reporter)


@cache
def _freeze_what_is_loaded() -> None:
    """It is no garbage: a collection takes 0.2 s with it, and each count of an iteration's memory makes one."""
    gc.freeze()


if __name__ == "__main__":
    main()
