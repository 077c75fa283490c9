"""Notices when this process stood still: stopped (SIGSTOP), in a paused container, or on a suspended machine.

The clock that measures an epoch does not show this. So a thread wakes up five times a second. If it wakes up late although it
waited neither for a processor nor for the interpreter, the process stood still. The system counts how long a thread waits for
a processor, as one does while other programs use them all. A thread that waits for the interpreter, since a call of a library
holds it, asks for it at every switch interval; so it runs often, and the system counts that too. While the process waits for
a device, data or other processes, the thread wakes up on time. The time for which a machine was suspended is the difference of
two system clocks.
"""

import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

BEAT_S = 0.2
SHORTEST_S = 1.0
"""The scheduler alone does not delay a beat by more than this."""
AWAKE_SHARE = 0.5
"""Of a late beat, the share in which the process was at least at work if it did not stand still; timers are coarse."""


@dataclass(frozen=True)
class _Beat:
    """The clocks' readings at one beat, in seconds."""

    now: float
    """The clock that measures."""
    awake: float
    """Time in which the beating thread waited for a processor or the interpreter; where the system does not say, the
    processor time of all threads.
    """
    asleep: float
    """Time for which the whole machine was suspended; 0 where the system is not Linux."""


class Standstills:
    """Adds up the seconds for which this process stood still between `start` and `stop`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stood_s = 0.0
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
            elapsed = now.now - before.now
            if elapsed > SHORTEST_S and now.awake - before.awake < AWAKE_SHARE * elapsed:
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
        awake = time.process_time()
        with suppress(OSError, ValueError):
            text = Path(f"/proc/self/task/{self._thread.native_id}/schedstat").read_text(encoding="ascii")
            _, waited_ns, runs = (int(number) for number in text.split())
            awake = waited_ns / 1e9 + runs * sys.getswitchinterval()
        return _Beat(time.perf_counter(), awake, asleep)
