"""One GPU under watch: its sampler, its energy counter, and its state at start and end."""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from sltt_bench.measure.nvml import GpuSensors, Reading
from sltt_bench.measure.sampler import PhaseReadings, Sample, Sampler


class GpuWatch:
    """Watches the GPU until `stop`."""

    def __init__(self, uuid: str, on_sample: Callable[[Sample], None] | None, interval_s: float) -> None:
        """Raises NvmlUnavailable."""
        self.sensors = GpuSensors(uuid)
        self.sampler = Sampler(self.sensors, interval_s, on_sample)
        """To be started; reads the sensors within its phases."""
        self._at_start = self.sensors.state()
        self._at_end: dict[str, Any] | None = None
        self._clock_limits: Counter[str] = Counter()
        self._clock_limit_readings = 0

    def stop(self) -> None:
        """End sampling, note the state at the end and let go of the sensors."""
        self.sampler.stop()
        self._at_end = self.sensors.state()
        self.sensors.close()

    def figures_now(self) -> dict[str, Reading[float]]:
        """The columns of epochs.csv that need one sensor alone, as that sensor stands now."""
        return {"energy_j": self.sensors.energy_j(), "gpu_util_mean": self.sensors.read().utilisation}

    def count_clock_limits(self, readings: PhaseReadings) -> None:
        """Add what held the clocks down in one training phase."""
        self._clock_limits.update(readings.clock_limits)
        self._clock_limit_readings += readings.clock_limit_readings

    def description(self) -> dict[str, Any]:
        """The GPU, its state at start and end, and what held its clocks down while training."""
        return {
            **asdict(self.sensors.gpu),
            "at_start": self._at_start,
            "at_end": self._at_end,
            "clock_limits_while_training": {
                reason: count / self._clock_limit_readings for reason, count in self._clock_limits.items()
            },
        }
