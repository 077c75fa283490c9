"""Whether this process ran all the time: what stops it (SIGSTOP, a paused container, a laptop that is shut) stops no
clock that it is measured by, or stops that clock too.

A thread beats. Where a beat is late, and the process neither used a processor meanwhile nor waited for one, it stood still.
One that computes uses some, also where a long call of a library holds the interpreter; one that other programs leave no
processor waits for one, which is their share (processors.py); one that waits for a device, data or other processes beats
on. What a suspended machine sleeps through is the difference of two of the system's clocks.
"""

import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

BEAT_S = 0.2
SHORTEST_S = 1.0
"""A beat that is later than this is no chance of scheduling."""
IDLE_SHARE = 0.1
"""Of a time in which a process stood still, what it may have been at work beside what it did before and after."""


@dataclass(frozen=True)
class _Beat:
    """What the clocks say at one, in seconds."""

    now: float
    """The clock that measures."""
    used: float
    """Processors' time of all threads."""
    ready: float
    """In which the main thread computed, and it or the beating one waited for a processor."""
    asleep: float
    """In which the whole machine slept, which only Linux tells."""


class Standstills:
    """Adds up the seconds in which this process stood still, between `start` and `stop`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stood_s = 0.0
        self._usual = 0.0
        """Processors that it used from one beat to the next."""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name="standstills", daemon=True)
        self._last = self._clocks()

    def start(self) -> None:
        """Begin to beat; what was before counts for nothing."""
        self._thread.start()
        with self._lock:
            self._last = self._clocks()

    def stop(self) -> None:
        """Beat no more."""
        self._stopping.set()
        self._thread.join()

    def seconds(self) -> float:
        """In which the process stood still until now, those included in which the machine was suspended."""
        with self._lock:
            before, now = self._last, self._clocks()
            self._last = now
            elapsed, used = now.now - before.now, now.used - before.used
            idle_s = IDLE_SHARE * elapsed
            if elapsed <= SHORTEST_S:
                self._usual = used / elapsed if elapsed >= BEAT_S / 2 else self._usual
            elif now.ready - before.ready < BEAT_S + idle_s and used < 2 * BEAT_S * self._usual + idle_s:
                self._stood_s += elapsed
            if (slept := now.asleep - before.asleep) > SHORTEST_S:
                self._stood_s += slept
            return self._stood_s

    def _keep_beating(self) -> None:
        while not self._stopping.wait(BEAT_S):
            self.seconds()

    def _clocks(self) -> _Beat:
        asleep = 0.0
        if hasattr(time, "CLOCK_BOOTTIME"):
            asleep = time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
        main_used, main_waited = _on_and_for_a_processor(threading.main_thread())
        _, beat_waited = _on_and_for_a_processor(self._thread)
        ready = main_used + main_waited + beat_waited
        return _Beat(time.perf_counter(), time.process_time(), ready, asleep)


def _on_and_for_a_processor(thread: threading.Thread) -> tuple[float, float]:
    """Seconds that a thread used a processor, and that it waited for one: 0 where the system does not tell."""
    with suppress(OSError, ValueError):
        text = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text(encoding="ascii")
        used, waited, _ = (int(number) for number in text.split())
        return used / 1e9, waited / 1e9
    return 0.0, 0.0
