"""Whether this process ran all the time: what stops it (SIGSTOP, a paused container, a laptop that is shut) stops no
clock that it is measured by, or stops that clock too.

A thread beats. Where a beat is late and the process used next to nothing of a processor meanwhile, it stood still: one
that computes, or whose interpreter is held by a long call, uses some, and one that waits for a device, data or other
processes beats on. What a suspended machine sleeps through is the difference of two of the system's clocks.
"""

import threading
import time

BEAT_S = 0.2
SHORTEST_S = 1.0
"""A beat that is later than this is no chance of scheduling."""
IDLE_SHARE = 0.1
"""Of a processor: so much a process may have used of a time in which it stood still."""


class Standstills:
    """Adds up the seconds in which this process stood still, between `start` and `stop`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stood_s = 0.0
        self._last = _clocks()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name="standstills", daemon=True)

    def start(self) -> None:
        """Begin to beat; what was before counts for nothing."""
        self._last = _clocks()
        self._thread.start()

    def stop(self) -> None:
        """Beat no more."""
        self._stopping.set()
        self._thread.join()

    def seconds(self) -> float:
        """In which the process stood still until now, those included in which the machine was suspended."""
        with self._lock:
            now = _clocks()
            elapsed, used, slept = (after - before for after, before in zip(now, self._last, strict=True))
            self._last = now
            if elapsed > SHORTEST_S and used < IDLE_SHARE * elapsed:
                self._stood_s += elapsed
            if slept > SHORTEST_S:
                self._stood_s += slept
            return self._stood_s

    def _keep_beating(self) -> None:
        while not self._stopping.wait(BEAT_S):
            self.seconds()


def _clocks() -> tuple[float, float, float]:
    """Seconds of the clock that measures, of processors that this process used, and of sleep of the whole machine, which
    only Linux tells."""
    asleep = 0.0
    if hasattr(time, "CLOCK_BOOTTIME"):
        asleep = time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
    return time.perf_counter(), time.process_time(), asleep
