"""Notices when this process stood still: stopped (SIGSTOP), in a paused container, or on a suspended machine.

The clock that measures an epoch does not show this. So a thread wakes up five times a second. If it wakes up late, and the
process neither used a processor meanwhile nor waited for one, the process stood still. The other causes of a late wake-up
differ: a process that computes uses a processor, even if a library call holds the interpreter; one that other programs keep
off the processors waits for one (that share is measured in processors.py); and while it waits for a device, data or other
processes, the thread wakes up on time. The time for which a machine was suspended is the difference of two system clocks.
"""

import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

BEAT_S = 0.2
SHORTEST_S = 1.0
"""The scheduler alone does not delay a beat by more than this."""
IDLE_SHARE = 0.1
"""The share of a standstill in which the process may still have been at work, just before and after it."""


@dataclass(frozen=True)
class _Beat:
    """The clocks' readings at one beat, in seconds."""

    now: float
    """The clock that measures."""
    used: float
    """Processor time of all threads."""
    ready: float
    """Time in which the main thread computed, or it or the beating thread waited for a processor."""
    asleep: float
    """Time for which the whole machine was suspended; 0 where the system is not Linux."""


class Standstills:
    """Adds up the seconds for which this process stood still between `start` and `stop`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stood_s = 0.0
        self._usual = 0.0
        """Processors in use between two beats, usually."""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name="standstills", daemon=True)
        self._last = self._clocks()

    def start(self) -> None:
        """Start to beat; earlier standstills do not count."""
        self._thread.start()
        with self._lock:
            self._last = self._clocks()

    def stop(self) -> None:
        """Stop beating."""
        self._stopping.set()
        self._thread.join()

    def seconds(self) -> float:
        """Returns the seconds for which the process stood still so far, suspension of the machine included."""
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
    """Returns the seconds for which a thread used a processor and waited for one; 0 where the system does not say."""
    with suppress(OSError, ValueError):
        text = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text(encoding="ascii")
        used, waited, _ = (int(number) for number in text.split())
        return used / 1e9, waited / 1e9
    return 0.0, 0.0
