"""A thread that reads the GPU's sensors now and then, and counts what that costs."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sltt_bench.measure.nvml import GpuSensors, Missing, Reading, Readings, value_of

SHARE_ALLOWED = 0.01
"""The share of the measured time that sampling may take; slow sensors are read less often."""
LONGEST_PAUSE = 20
"""… but never more rarely than this many intervals."""


Sample = dict[str, float | int | str | None]
"""A row of timeline.csv: what the sensors said at one moment; None where one was silent."""

NEVER_READ = Missing("never read")


class Gauge:
    """The readings of one sensor over a phase. One missing reading makes every figure of it missing."""

    def __init__(self) -> None:
        self._missing: Missing | None = None
        self._peak = 0.0
        self._sum = 0.0
        self._count = 0

    def add(self, reading: Reading[int] | Reading[float]) -> None:
        """Take one reading in."""
        if isinstance(reading, Missing):
            self._missing = self._missing or reading
            return
        self._peak = max(self._peak, reading)
        self._sum += reading
        self._count += 1

    def peak(self) -> Reading[float]:
        """The largest reading."""
        return self._missing or (self._peak if self._count else NEVER_READ)

    def mean(self) -> Reading[float]:
        """The mean of the readings."""
        return self._missing or (self._sum / self._count if self._count else NEVER_READ)


@dataclass
class PhaseReadings:
    """What the sensors said over one phase."""

    process_bytes: Gauge = field(default_factory=Gauge)
    device_bytes: Gauge = field(default_factory=Gauge)
    utilisation: Gauge = field(default_factory=Gauge)
    clock_limits: Counter[str] = field(default_factory=Counter)
    """Reason why the clocks were not higher → how many readings gave it."""
    clock_limit_readings: int = 0
    process_bytes_at_end: Reading[int] = NEVER_READ

    def add(self, readings: Readings) -> None:
        """Take one look at the sensors in."""
        self.process_bytes.add(readings.process_bytes)
        self.device_bytes.add(readings.device_bytes)
        self.process_bytes_at_end = readings.process_bytes
        self.utilisation.add(readings.utilisation)
        if not isinstance(readings.clock_limits, Missing):
            self.clock_limits.update(readings.clock_limits)
            self.clock_limit_readings += 1

    def forget_the_past(self) -> None:
        """Drop the readings that describe the time before they were taken."""
        self.utilisation = Gauge()
        self.clock_limits.clear()
        self.clock_limit_readings = 0


class Sampler:
    """Reads the sensors at both borders of a phase, outside its clocks, and meanwhile from a thread."""

    def __init__(
        self, sensors: GpuSensors, interval_s: float, on_sample: Callable[[Sample], None] | None
    ) -> None:
        """`on_sample` is called with every sample, from whichever thread took it, never by two at once."""
        self.interval_s = interval_s
        self.samples = 0
        self.callback_failure: str | None = None
        """Why `on_sample` is no longer called."""
        self._sensors = sensors
        self._on_sample = on_sample
        self._started = time.perf_counter()
        self._lock = threading.Lock()
        self._phase: tuple[str, int | None, PhaseReadings] | None = None
        self._phases_s = 0.0
        self._busy_s = 0.0
        self._cpu_s = 0.0
        self._thread_samples = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep_sampling, name="sensors", daemon=True)

    def start(self) -> None:
        """Start the thread. It reads nothing outside a phase."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._thread.join()

    @contextmanager
    def phase(self, name: str, epoch: int | None) -> Iterator[PhaseReadings]:
        """Sample until the body ends; the readings are complete after it."""
        readings = PhaseReadings()
        with self._lock:
            self._phase = (name, epoch, readings)
            self._sample()
            readings.forget_the_past()
        began = time.perf_counter()
        try:
            yield readings
        finally:
            with self._lock:
                self._phases_s += time.perf_counter() - began
                self._sample()
                self._phase = None

    def cost(self) -> dict[str, float | int | None]:
        """What sampling took of the phases that are over; shares and intervals are None before any.

        `share_of_measured_time` counts from the start of a sample to its end, waiting for the driver or
        for a core included: an upper bound. `cpu_share_of_measured_time` is the time on a core alone.
        """
        measured = self._phases_s > 0
        return {
            "interval_s": self.interval_s,
            "mean_interval_s": self._phases_s / self._thread_samples if self._thread_samples else None,
            "samples": self.samples,
            "share_of_measured_time": self._busy_s / self._phases_s if measured else None,
            "cpu_share_of_measured_time": self._cpu_s / self._phases_s if measured else None,
        }

    def _keep_sampling(self) -> None:
        pause = self.interval_s
        while not self._stopping.wait(pause):
            with self._lock:
                if self._phase is None:
                    continue
                started, started_cpu = time.perf_counter(), time.thread_time()
                self._sample()
                busy = time.perf_counter() - started
                self._busy_s += busy
                self._cpu_s += time.thread_time() - started_cpu
                self._thread_samples += 1
            pause = pause_after(busy, self.interval_s)

    def _sample(self) -> None:
        assert self._phase is not None
        name, epoch, phase_readings = self._phase
        elapsed = time.perf_counter() - self._started
        readings = self._sensors.read()
        phase_readings.add(readings)
        self.samples += 1
        self._pass_on(_as_sample(elapsed, name, epoch, readings))

    def _pass_on(self, sample: Sample) -> None:
        if self._on_sample is None or self.callback_failure is not None:
            return
        try:
            self._on_sample(sample)
        except Exception as error:  # whatever breaks the timeline must not break the run that it watches
            self.callback_failure = f"{type(error).__name__}: {error}"


def pause_after(busy_s: float, interval_s: float) -> float:
    """Seconds until the next sample, such that samples of `busy_s` take SHARE_ALLOWED of the time."""
    pause = busy_s * (1 - SHARE_ALLOWED) / SHARE_ALLOWED
    return min(max(interval_s, pause), LONGEST_PAUSE * interval_s)


def _as_sample(elapsed_s: float, phase: str, epoch: int | None, readings: Readings) -> Sample:
    by_process = not isinstance(readings.process_bytes, Missing)
    used = value_of(readings.process_bytes if by_process else readings.device_bytes)
    scope = "process" if by_process else "device"
    return {
        "elapsed_s": elapsed_s,
        "phase": phase,
        "epoch": epoch,
        "nvml_used_bytes": used,
        "nvml_scope": None if used is None else scope,
        "gpu_util": value_of(readings.utilisation),
        "power_w": value_of(readings.power_w),
        "sm_clock_mhz": value_of(readings.sm_clock_mhz),
        "temperature_c": value_of(readings.temperature_c),
    }
