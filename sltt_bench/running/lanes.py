"""Runs cells in processes: each lane has one process at a time, with a time limit on the wall clock.

A cell that is measured has a fresh process; other cells of a lane share one. Only pipes are read in threads;
all else happens in the caller's thread, so that handlers of events need no locks.
"""

import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from sltt_bench.common.abandoned import remove_abandoned_folders
from sltt_bench.common.failures import unexplained_end
from sltt_bench.common.memory_limit import oom_kills
from sltt_bench.kinds import KINDS
from sltt_bench.planning.plan import Cell
from sltt_bench.results.cell_row import Outcome

GRACE_S = 5.0
"""Seconds between the request to a process to end and killing it."""
TIDYING_S = 1.0
"""Seconds that its children may outlive a process."""
LINGERING_S = 60.0
"""Seconds that a process may run on after its last message, or its children after its end. Otherwise a thread
or process that a plug-in started could keep the run waiting for ever."""

STANDSTILL_S = 1.0
"""Seconds by which a wait does not exceed its length unless this process stood still, as in a paused container."""

Event = dict[str, Any]


@dataclass(eq=False)
class Attempt:
    """One attempt at a cell; subclasses that keep its results override `hear` and `ended`."""

    cell: Cell
    outcome: Outcome
    job: dict[str, Any] = field(default_factory=dict)
    """What the worker receives in addition to the cell; empty if a cell is only computed."""
    log: Path | None = None
    """File for the output of the process that starts with this cell; None: discarded."""
    begun: float = field(default=0.0, init=False)
    """Start on the monotonic clock."""
    stood_still_s: float = field(default=0.0, init=False)
    """Seconds since the start for which this process stood still; the time limit does not count them."""
    neighbours: int = field(default=0, init=False)
    """Number of other attempts that run now."""
    most_neighbours: int = field(default=0, init=False)
    """The largest value of `neighbours` since the start, or since it was last reset to count for an epoch."""
    kernel_kills: int = field(default=0, init=False)
    """Processes that the kernel had killed for lack of memory before the start."""

    def hear(self, name: str, event: Event) -> None:
        """Called with the name and content of each event of the cell, except facts and its end."""

    def ended(self) -> None:
        """Called when the outcome is known."""


@dataclass(frozen=True)
class Place:
    """Where the attempts of one lane run."""

    device: str | None = None
    """The device that replaces the cell's own; None: the cell's own."""
    threads: int | None = None
    """CPU threads of an operation; None: what torch chooses if it has the machine to itself."""
    further_devices: tuple[str, ...] = ()
    """Devices of the other processes, if several share a cell's batches."""
    neighbours: int = 0
    """Cells of the same command, besides those of the lanes, that may run on the same machine."""


class Lanes:
    """Runs one attempt at a time at each place, in a process; leaving the context ends those that remain."""

    def __init__(self, places: Sequence[Place] = (Place(),), *, timeout_s: float | None = None) -> None:
        """`timeout_s` is the wall-clock limit of one attempt; None: no limit."""
        self._timeout_s = math.inf if timeout_s is None else timeout_s
        # Unlike Queue, it stays intact if a signal handler raises out of it.
        self._events: _Events = queue.SimpleQueue()
        self._lanes = [_Lane(self._events, place, len(places) - 1) for place in places]

    def __enter__(self) -> "Lanes":
        remove_abandoned_folders()  # of an earlier command that was killed
        return self

    def __exit__(self, *exception: object) -> None:
        for lane in self._lanes:  # all are asked to end before the first is waited for
            lane.ask_to_end()
        for lane in self._lanes:
            lane.end()

    @property
    def under_way(self) -> list[Attempt]:
        """The attempts that have begun and not ended."""
        return [lane.attempt for lane in self._lanes if lane.attempt is not None]

    def run(self, attempts: Iterator[Attempt | None]) -> None:
        """Work until all attempts have ended; the next one is taken from `attempts` when a lane is free.

        None instead of an attempt means that the next must wait until a running one has ended.
        """
        more = True
        while more or self.under_way:
            for lane in self._lanes:
                if not more or lane.attempt is not None:
                    continue
                try:
                    attempt = next(attempts)
                except StopIteration:
                    more = False
                    break
                if attempt is None:
                    break
                lane.begin(attempt)
            self._count_neighbours()
            if self.under_way:
                self._wait()
                self._count_neighbours()

    def _count_neighbours(self) -> None:
        under_way = len(self.under_way)
        for lane in self._lanes:
            if (attempt := lane.attempt) is None:
                continue
            attempt.neighbours = under_way - 1 + lane.place.neighbours
            attempt.most_neighbours = max(attempt.most_neighbours, attempt.neighbours)

    def _wait(self) -> None:
        """Handle one event, and end attempts whose time is over."""
        patience, began = self._patience(), time.monotonic()
        heard: tuple[_Process, bytes | None] | None = None
        with suppress(queue.Empty):
            heard = self._events.get(timeout=patience)
        if (late := time.monotonic() - began - patience) > STANDSTILL_S:
            for attempt in self.under_way:
                attempt.stood_still_s += late
        for lane in self._lanes:
            if heard is not None and lane.process is heard[0]:
                lane.hear(heard[1])
        for lane in self._lanes:
            if lane.lingers():
                lane.put_down()
            elif lane.attempt is not None and self._left(lane.attempt) <= 0:
                lane.time_out(self._timeout_s)

    def _left(self, attempt: Attempt) -> float:
        return self._timeout_s - (time.monotonic() - attempt.begun - attempt.stood_still_s)

    def _patience(self) -> float:
        """Returns the seconds until the next time limit, at most 0.5.

        Attempts past their limit do not count: they have been ended, though others may hold their output
        open.
        """
        return min(
            (left for attempt in self.under_way if 0 < (left := self._left(attempt)) < 0.5), default=0.5
        )


class _Lane:
    """One place with at most one attempt at a time, and the process that works on it."""

    def __init__(self, events: "_Events", place: Place, neighbours: int) -> None:
        self._events, self.place, self._neighbours = events, place, neighbours + place.neighbours
        self.process: _Process | None = None
        self.attempt: Attempt | None = None
        self._last_word: float | None = None
        """When the process reported the end of its only attempt, or was found to have ended."""

    def begin(self, attempt: Attempt) -> None:
        attempt.outcome.started_utc = datetime.now(UTC).isoformat(timespec="seconds")
        attempt.begun = time.monotonic()
        attempt.kernel_kills = oom_kills()
        self.attempt, self._last_word = attempt, None
        if self.process is None:
            self.process = _Process(attempt.log, self._events)
        cell = attempt.cell.to_dict()
        place = self.place
        if place.device is not None:  # noted here for the row of an attempt that ends before it reports
            cell["device"] = attempt.outcome.facts["device"] = place.device
        job = {
            "cell": cell,
            "attempt": attempt.outcome.attempt,
            "threads": place.threads,
            "devices": [] if place.device is None else [place.device, *place.further_devices],
            "neighbours": self._neighbours,
        }
        self.process.give({**job, **attempt.job})
        if KINDS[attempt.cell.kind].measures:
            self.process.give_no_more()

    def hear(self, line: bytes | None) -> None:
        """Handle a line of output of the process; None is its end."""
        assert self.process is not None
        if line is None:
            process, self.process = self.process, None
            code = process.wait()
            if self.attempt is not None:
                self._conclude(code, process.log)
            return
        if self.attempt is None or (event := event_in(line)) is None:
            return
        outcome = self.attempt.outcome
        match event.pop("event"):
            case "finished":
                outcome.status, outcome.reason = "ok", ""
            case "failed":
                if outcome.status != "timeout":  # else it reports that it was ended, as launchers do
                    outcome.status, outcome.reason = event["status"], event["reason"]
            case "facts":
                outcome.facts |= event
                return
            case name:
                self.attempt.hear(name, event)
                return
        if not KINDS[self.attempt.cell.kind].measures:  # else its process ends too, with an exit code
            self._conclude(None, self.process.log)
        else:
            self._last_word = time.monotonic()

    def time_out(self, limit_s: float) -> None:
        """End the process of an attempt that exceeds the time limit.

        Its earlier messages are still read, since this process may have been stopped for longer than the
        limit.
        """
        assert self.attempt is not None
        assert self.process is not None
        if self.process.has_ended:
            return
        if self._last_word is None:
            self.attempt.outcome.status = "timeout"
            self.attempt.outcome.reason = f"ended after {limit_s:g} s (--timeout)"
        self.process.end()

    def lingers(self) -> bool:
        """Whether the process of an attempt that is over keeps running, or others keep its output open."""
        if self.attempt is None or self.process is None:
            return False
        if self._last_word is None and self.process.has_ended:
            self._last_word = time.monotonic()
        return self._last_word is not None and time.monotonic() - self._last_word > LINGERING_S

    def put_down(self) -> None:
        """End the process and its attempt, whose outcome is known already."""
        assert self.process is not None
        process, self.process = self.process, None
        process.end()
        self._conclude(process.wait(), process.log)

    def ask_to_end(self) -> None:
        """Ask the process of a running attempt to end, without waiting for it."""
        if self.process is not None and self.attempt is not None:
            self.process.signal(signal.SIGTERM)

    def end(self) -> None:
        """End the process, if there is one; a running attempt keeps its outcome."""
        if self.process is None:
            return
        if self.attempt is None:
            self.process.give_no_more()
        else:
            self.process.end()
            self.attempt.outcome.wall_s = time.monotonic() - self.attempt.begun
        self.process.wait()
        self.process = None

    def _conclude(self, code: int | None, log: Path | None) -> None:
        """Conclude the attempt; `code` is the exit code of its process, None if that runs on."""
        assert self.attempt is not None
        attempt, self.attempt = self.attempt, None
        outcome = attempt.outcome
        outcome.wall_s = time.monotonic() - attempt.begun
        outcome.exit_code = code
        if code is not None and outcome.status != "ok" and not outcome.reason:
            outcome.status, outcome.reason = unexplained_end(code, attempt.kernel_kills)
            if outcome.status == "error" and log is not None and log.exists():
                outcome.reason += f"; see {log}"
        attempt.ended()


def event_in(line: bytes) -> Event | None:
    """Returns the event that a line of a process's output ends with; None for what others printed there before it took its
    output over: a sitecustomize of a cluster's Python, or a prologue of Slurm.
    """
    begin = line.find(b'{"event": ')
    return None if begin < 0 else dict(json.loads(line[begin:]))


_Events: TypeAlias = "queue.SimpleQueue[tuple[_Process, bytes | None]]"
"""A process and a line of its output; None: its end."""


def _surroundings() -> dict[str, str]:
    """Returns the environment of a process.

    Files in the working directory (a random.py, a queue.py) must not hide modules, unless that directory is
    the clone that this package itself comes from.
    """
    here = Path(__file__).parent.parent.parent
    in_clone = os.path.exists(os.curdir) and os.path.samefile(here, os.curdir)
    return {**os.environ} if in_clone else {**os.environ, "PYTHONSAFEPATH": "1"}


class _Process:
    """A process of `sltt_bench.running.worker`, in its own session so that Ctrl-C does not reach it."""

    def __init__(self, log: Path | None, events: "_Events") -> None:
        self.log = log
        with open(os.devnull if log is None else log, "wb") as errors:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "sltt_bench.running.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                env=_surroundings(),
            )
        threading.Thread(target=self._read, args=(events,), daemon=True).start()

    def _read(self, events: "_Events") -> None:
        """Put every line into `events` as it arrives, then None; drop a line torn by the process's end."""
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            if line.endswith(b"\n"):
                events.put((self, line))
        events.put((self, None))

    @property
    def has_ended(self) -> bool:
        """Whether the process itself has ended, even if others still hold its output open."""
        return self._popen.poll() is not None

    def give(self, job: Event) -> None:
        assert self._popen.stdin is not None
        with suppress(BrokenPipeError):  # if it has ended, its exit code tells why
            self._popen.stdin.write(json.dumps(job).encode() + b"\n")
            self._popen.stdin.flush()

    def give_no_more(self) -> None:
        """Let the process end after its jobs. Its input stays open: closing it would mean that we ended."""
        self.give({})

    def wait(self) -> int:
        """Wait for the end; returns the exit code. What the process leaves behind is ended: the next cell is measured.

        Python's own resource tracker is given time to remove what the process had in shared memory.
        """
        code = self._popen.wait()
        deadline = time.monotonic() + TIDYING_S
        while self.signal(0) and time.monotonic() < deadline:
            time.sleep(0.01)
        self.signal(signal.SIGKILL)
        if code < 0:
            remove_abandoned_folders()
        assert self._popen.stdin is not None
        with suppress(BrokenPipeError):
            self._popen.stdin.close()
        if self.log is not None and self.log.exists() and not self.log.stat().st_size:
            self.log.unlink()
        return code

    def end(self) -> None:
        """Ask the process and its children (data workers) to end, then kill them."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if not self.signal(number):
                break
            try:
                self._popen.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                continue

    def signal(self, number: int) -> bool:
        """Send a signal (0: none) to the process and its children; returns False if none is left."""
        try:
            os.killpg(self._popen.pid, number)
        except (ProcessLookupError, PermissionError):  # the latter is macOS's for processes that have ended
            return False
        return True
