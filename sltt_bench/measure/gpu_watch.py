"""One GPU under watch: its sampler, its energy counter, and its state at start and end."""

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

from sltt_bench.measure.nvml import GpuSensors, Missing, Reading, value_of
from sltt_bench.measure.sampler import PhaseReadings, Sample, Sampler


class GpuWatch:
    """Watches the GPU from `start` to `stop`."""

    def __init__(self, uuid: str, on_sample: Callable[[Sample], None] | None, interval_s: float) -> None:
        """Raises NvmlUnavailable."""
        self._sensors = GpuSensors(uuid)
        self._sampler = Sampler(self._sensors, interval_s, on_sample)
        self._at_start = self._state()
        self._at_end: dict[str, Any] | None = None
        self._clock_limits: Counter[str] = Counter()
        self._clock_limit_readings = 0

    def start(self) -> None:
        """Start sampling."""
        self._sampler.start()

    def stop(self) -> None:
        """End sampling, note the state at the end and let go of the sensors."""
        self._sampler.stop()
        self._at_end = self._state()
        self._sensors.close()

    def phase(self, name: str, epoch: int | None) -> AbstractContextManager[PhaseReadings]:
        """Sample until the body ends."""
        return self._sampler.phase(name, epoch)

    def energy_j(self) -> Reading[float]:
        """Joules of the whole device since the driver was loaded."""
        return self._sensors.energy_j()

    def figures_now(self) -> dict[str, Reading[float]]:
        """The columns of epochs.csv that need one sensor alone, as that sensor stands now."""
        return {"energy_j": self.energy_j(), "gpu_util_mean": self._sensors.read().utilisation}

    def count_clock_limits(self, readings: PhaseReadings) -> None:
        """Add what held the clocks down in one training phase."""
        self._clock_limits.update(readings.clock_limits)
        self._clock_limit_readings += readings.clock_limit_readings

    @property
    def callback_failure(self) -> str | None:
        """Why samples are no longer passed on."""
        return self._sampler.callback_failure

    def cost(self) -> dict[str, float | int | None]:
        """What sampling cost."""
        return self._sampler.cost()

    def description(self) -> dict[str, Any]:
        """The GPU, its state at start and end, and what held its clocks down while training."""
        return {
            **asdict(self._sensors.gpu),
            "at_start": self._at_start,
            "at_end": self._at_end,
            "clock_limits_while_training": {
                reason: count / self._clock_limit_readings for reason, count in self._clock_limits.items()
            },
        }

    def _state(self) -> dict[str, Any]:
        sensors, now = self._sensors, self._sensors.read()
        readings: dict[str, Reading[Any]] = {
            "sm_clock_mhz": now.sm_clock_mhz,
            "sm_clock_max_mhz": sensors.max_sm_clock_mhz(),
            "memory_clock_mhz": now.memory_clock_mhz,
            "clock_limits": now.clock_limits,
            "power_w": now.power_w,
            "power_limit_w": sensors.power_limit_w(),
            "temperature_c": now.temperature_c,
            "device_bytes": now.device_bytes,
            "other_compute_processes": sensors.other_compute_processes(),
        }
        missing = {name: reading.reason for name, reading in readings.items() if isinstance(reading, Missing)}
        return {**{name: value_of(reading) for name, reading in readings.items()}, "missing": missing}
