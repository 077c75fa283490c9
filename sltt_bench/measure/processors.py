"""How busy the processors are while a cell trains, and how much of that is the work of other programs.

A processor that somebody else uses is one that training waits for, and two threads that wait for each other wait
for the slower one. The time that a processor was at work comes from the system; what the processes of this command
(`sltt-bench run` with all its cells) used of it comes from each of them; the rest is others', what the host of a virtual
machine gave away included.
"""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil

from sltt_bench.measure.nvml import Missing, Reading

SHORTEST_S = 0.2
"""Seconds below which there are no shares: the system counts in steps of 10 ms, on each processor."""
_SCANS = 5
"""How often processes are listed anew where one ends meanwhile."""
_LOST_SHARE = 0.5
"""Of the time that the command's processes say they used, what the system must at least have counted."""


@dataclass(frozen=True)
class Shares:
    """Of the time of all processors that this process may use, between two moments."""

    at_work: float
    """0 to 1: on anything."""
    others: float
    """0 to 1: on what is not of this command."""


@dataclass(frozen=True)
class _Clocks:
    at: float
    at_work_s: float
    own_s: float


class Processors:
    """Watches the processors from one moment to another."""

    def __init__(self, command: int) -> None:
        """`command`: the process whose descendants, and itself, are no others."""
        self._command = command
        self._began: _Clocks | None = None

    def begin(self) -> None:
        """The first moment."""
        self._began = self._read()

    def shares(self) -> Reading[Shares]:
        """Since `begin`."""
        now, began = self._read(), self._began
        if now is None or began is None:
            return Missing("this system does not tell how busy its processors are")
        elapsed = now.at - began.at
        if elapsed < SHORTEST_S:
            return Missing(
                f"shorter than {SHORTEST_S} s: the system counts the time of its processors too coarsely"
            )
        at_work, own = now.at_work_s - began.at_work_s, now.own_s - began.own_s
        if own < 0:
            return Missing("processes of this command ended without a trace")
        if at_work < _LOST_SHARE * own:
            return Missing("this system counts less time on its processors than this command used of them")
        whole = elapsed * len(_usable())
        at_work_share, others_share = (round(seconds / whole, 4) for seconds in (at_work, at_work - own))
        return Shares(min(at_work_share, 1.0), min(max(others_share, 0.0), 1.0))

    def _read(self) -> _Clocks | None:
        try:
            return _Clocks(time.perf_counter(), _at_work_s(), self._own_s())
        except (OSError, psutil.Error, NotImplementedError, IndexError):
            return None

    def _own_s(self) -> float:
        """Of the command's processes, those included that have ended and were waited for."""
        command = psutil.Process(self._command)
        for _ in range(_SCANS):
            # One that ends meanwhile is its parent's, of whose ended children the next scan knows.
            with suppress(psutil.NoSuchProcess):
                processes = (command, *command.children(recursive=True))
                # User, system, and both of children that ended.
                return float(sum(sum(process.cpu_times()[:4]) for process in processes))
        raise psutil.NoSuchProcess(self._command)


def _usable() -> list[int]:
    """The numbers of the processors that this process may use."""
    every = range(len(psutil.cpu_times(percpu=True)))
    if not hasattr(os, "sched_getaffinity"):
        return list(every)
    return [number for number in os.sched_getaffinity(0) if number in every] or list(every)


def _at_work_s() -> float:
    """Seconds that the usable processors were at work, all added up."""
    times = psutil.cpu_times(percpu=True)
    return sum(_busy(times[number]) for number in _usable())


def _busy(times: Any) -> float:
    idle = times.idle + getattr(times, "iowait", 0.0)
    guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # in user and nice already
    return float(sum(times) - idle - guests)
