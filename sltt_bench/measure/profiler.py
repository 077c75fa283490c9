"""The profiler of one process: measures epochs, and says which figures it cannot give and why."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from sltt_bench.measure.devices import compute_device
from sltt_bench.measure.gpu_watch import GpuWatch
from sltt_bench.measure.nvml import Missing, NvmlUnavailable, Reading, value_of
from sltt_bench.measure.process_memory import peak_resident_bytes, reset_peak_resident, resident_bytes
from sltt_bench.measure.processors import Processors, Shares
from sltt_bench.measure.sampler import PhaseReadings, Sample
from sltt_bench.measure.standstills import Standstills

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
Figure = float | int | str | None

ALLOCATOR_COLUMNS = ("allocated_at_reset_bytes", "peak_allocated_bytes", "peak_reserved_bytes")
NVML_COLUMNS = ("peak_nvml_bytes", "peak_nvml_scope", "energy_j", "gpu_util_mean")
PROCESSOR_COLUMNS = ("cpu_util_mean", "cpu_others_mean")
FIGURES = (
    "train_s", "eval_s", "data_wait_s", *ALLOCATOR_COLUMNS, "peak_rss_bytes", *NVML_COLUMNS, *PROCESSOR_COLUMNS,
)  # fmt: skip
"""The columns of epochs.csv that a profiler fills."""
DURING = {
    "train": ("train_s", "data_wait_s", "energy_j", "gpu_util_mean", *PROCESSOR_COLUMNS),
    "eval": ("eval_s",),
}
"""Phase of an epoch → the columns that a time in which nothing ran would stand in."""
STOOD_STILL = (
    "the process stood still meanwhile: it was stopped, or its container paused, or the machine suspended"
)


class Profiler:
    """Measures one process. Enter it before the work that is to be measured, the warm-up included.

    Until the first epoch begins, the timeline's phase is "warmup"; between phases nothing is sampled.
    """

    def __init__(
        self,
        device: "torch.device",
        *,
        on_sample: Callable[[Sample], None] | None = None,
        interval_s: float = 0.1,
        gpu_uuid: str | None = None,
        command: int | None = None,
        unmeasurable: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        """`on_sample` gets every sample of the sensors, mostly from another thread. `gpu_uuid` is the GPU
        to watch, by default that of `device`. `command`: the process whose descendants are not counted among the
        other programs that use the processors, by default this one. `unmeasurable` gives, at the end of an epoch, the columns that stay empty, each with
        its reason."""
        self.absent: dict[str, str] = {}
        """Column of epochs.csv → why it stays empty, altogether or in the epochs named."""
        self.unmeasurable = unmeasurable
        self.notes: dict[str, str] = {}
        """Column of epochs.csv → what to know about its figures."""
        self.together: Callable[[], object] = lambda: None
        """Called before an epoch's clocks start: returns when all processes that share the cell's batches are there."""
        self.compute = compute_device(device)
        self.watch: GpuWatch | None = None
        """The sensors of the GPU; None without."""
        self._device = str(device)
        self.processors = Processors(os.getpid() if command is None else command)
        self.standstills = Standstills()
        self._resident_at_start = resident_bytes()
        self._absent_in: dict[str, dict[str, list[int]]] = {}
        """Column → reason → the epochs for which that is why it is empty."""
        self._noted_in: dict[str, dict[str, list[int]]] = {}
        self._warmup = ExitStack()
        self._check_process_memory()
        self._open_sensors(gpu_uuid or self.compute.gpu_uuid, on_sample, interval_s)

    def __enter__(self) -> "Profiler":
        self.standstills.start()
        if self.watch is not None:
            self.watch.sampler.start()
            self._warmup.enter_context(self.watch.sampler.phase("warmup", None))
        return self

    def __exit__(self, *exception: object) -> None:
        self._warmup.close()
        self.standstills.stop()
        if self.watch is not None:
            self.watch.stop()
            if (failure := self.watch.sampler.callback_failure) is not None:
                self.notes["timeline"] = f"broken off: {failure}"

    def epoch(self, number: int) -> "EpochProfile":
        """The measurement of one epoch, counted from 1."""
        self._warmup.close()
        return EpochProfile(self, number)

    def description(self) -> dict[str, Any]:
        """The device and the measuring itself, as plain JSON; complete after the profiler's exit."""
        watch = self.watch
        return {
            "device": self._device,
            "resident_bytes_at_start": self._resident_at_start,
            "gpu": None if watch is None else watch.description(),
            "sampling": None if watch is None else watch.sampler.cost(),
        }

    def phase(self, name: str, epoch: int) -> AbstractContextManager[PhaseReadings | None]:
        """Sample the sensors while the body runs; None without sensors."""
        return nullcontext() if self.watch is None else self.watch.sampler.phase(name, epoch)

    def is_absent(self, column: str, epoch: int, reason: str) -> None:
        """Record that a column is empty in an epoch."""
        self.absent[column] = _with_epochs(self._absent_in.setdefault(column, {}), epoch, reason)

    def note(self, column: str, epoch: int, remark: str) -> None:
        """Record what to know about a column's figure in an epoch."""
        self.notes[column] = _with_epochs(self._noted_in.setdefault(column, {}), epoch, remark)

    def _check_process_memory(self) -> None:
        if peak_resident_bytes() is None:
            self.absent["peak_rss_bytes"] = "this system keeps no VmHWM (/proc/self/status of Linux)"
        elif not reset_peak_resident():
            self.notes["peak_rss_bytes"] = (
                "the peak since the process started, not of each epoch: "
                "this system refuses to reset it (/proc/self/clear_refs)"
            )

    def _open_sensors(
        self, uuid: str | None, on_sample: Callable[[Sample], None] | None, interval_s: float
    ) -> None:
        if self.compute.gpu_uuid is None:
            self.absent |= dict.fromkeys(ALLOCATOR_COLUMNS, "the device is the CPU")
        if uuid is None:
            self.absent |= dict.fromkeys(NVML_COLUMNS, "the device is the CPU")
            return
        try:
            self.watch = GpuWatch(uuid, on_sample, interval_s)
        except NvmlUnavailable as error:
            self.absent |= dict.fromkeys(NVML_COLUMNS, str(error))
            return
        for column, reading in self.watch.figures_now().items():
            if isinstance(reading, Missing):
                self.absent[column] = f"{reading.reason} (at the start)"


class EpochProfile:
    """The measurement of one epoch: at most one `train` and one `evaluate`."""

    def __init__(self, profiler: Profiler, number: int) -> None:
        self._profiler = profiler
        self._number = number
        self._figures: dict[str, Figure] = dict.fromkeys(FIGURES)
        self._stood_still: set[str] = set()
        """The phases in which the process did not run all the time."""
        self._waited_s: float | None = None
        """None until something has been waited for."""

    @contextmanager
    def train(self) -> Iterator[None]:
        """The training of the epoch. Peaks start anew, and the device is synchronised at both ends.

        A body that raises leaves no figures: part of an epoch is not an epoch. Nor has a time been measured in which the
        process stood still: `figures` has none then.
        """
        profiler, compute, watch = self._profiler, self._profiler.compute, self._profiler.watch
        profiler.processors.begin()
        profiler.together()
        with profiler.phase("train", self._number) as readings:
            compute.synchronize()
            compute.reset_peaks()
            allocated_at_reset = compute.allocated_bytes()
            reset_peak_resident()
            energy_before = None if watch is None else watch.sensors.energy_j()
            self._waited_s = None
            with self._watching_standstills("train"):
                started = time.perf_counter()
                yield
                compute.synchronize()
                train_s = time.perf_counter() - started
            if watch is not None and energy_before is not None:
                self._keep("energy_j", _energy_between(energy_before, watch.sensors.energy_j()))
            self._figures |= {"train_s": train_s, "data_wait_s": self._waited_s}
            self._figures |= {**compute.allocator_peaks(), "peak_rss_bytes": peak_resident_bytes()}
            self._figures["allocated_at_reset_bytes"] = allocated_at_reset
        self._keep_processors(profiler.processors.shares())
        if watch is not None and readings is not None:
            watch.count_clock_limits(readings)
            self._keep("gpu_util_mean", readings.utilisation.mean())
            self._keep_nvml_peak(readings, compute.reserved_bytes())

    @contextmanager
    def evaluate(self) -> Iterator[None]:
        """The evaluation of the epoch, with a clock of its own."""
        compute = self._profiler.compute
        with self._profiler.phase("eval", self._number), self._watching_standstills("eval"):
            compute.synchronize()
            started = time.perf_counter()
            yield
            compute.synchronize()
            self._figures["eval_s"] = time.perf_counter() - started

    @contextmanager
    def _watching_standstills(self, phase: str) -> Iterator[None]:
        before = self._profiler.standstills.seconds()
        yield
        if self._profiler.standstills.seconds() > before:
            self._stood_still.add(phase)

    def waiting(self, loader: Iterable[T]) -> Iterator[T]:
        """The loader's items; inside `train`, the time spent waiting for them is data_wait_s.

        The time until the first (the start of loader processes included), between request and delivery of
        each, and until the end is known, counts as waiting.
        """
        started = time.perf_counter()
        items = iter(loader)
        while True:
            try:
                item = next(items)
            except StopIteration:
                return
            finally:
                self._waited_s = (self._waited_s or 0.0) + time.perf_counter() - started
            yield item
            del item  # or it would live until the next has come
            started = time.perf_counter()

    def figures(self) -> dict[str, Figure]:
        """FIGURES → value; None where there is none, for which `Profiler.absent` has the reason."""
        unmeasurable = self._profiler.unmeasurable()
        self._profiler.absent |= unmeasurable
        for column in (column for phase in self._stood_still for column in DURING[phase]):
            if self._figures[column] is not None:
                self._figures[column] = None
                self._profiler.is_absent(column, self._number, STOOD_STILL)
        return {
            column: None if column in unmeasurable else figure for column, figure in self._figures.items()
        }

    def _keep(self, column: str, reading: Reading[float]) -> None:
        self._figures[column] = value_of(reading)
        if isinstance(reading, Missing):
            self._profiler.is_absent(column, self._number, reading.reason)

    def _keep_processors(self, shares: Reading[Shares]) -> None:
        if isinstance(shares, Missing):
            for column in PROCESSOR_COLUMNS:
                self._profiler.is_absent(column, self._number, shares.reason)
        else:
            self._figures |= {"cpu_util_mean": shares.at_work, "cpu_others_mean": shares.others}

    def _keep_nvml_peak(self, readings: PhaseReadings, reserved_bytes: int) -> None:
        """The process's peak if every sample had it, else the device's if every sample had that."""
        process, device = _own_peak(readings, reserved_bytes), readings.device_bytes.peak()
        if not isinstance(process, Missing):
            self._figures |= {"peak_nvml_bytes": int(process), "peak_nvml_scope": "process"}
        elif not isinstance(device, Missing):
            self._figures |= {"peak_nvml_bytes": int(device), "peak_nvml_scope": "device"}
            remark = f"memory of the whole device, that of other processes included: {process.reason}"
            self._profiler.note("peak_nvml_bytes", self._number, remark)
        else:
            for column in ("peak_nvml_bytes", "peak_nvml_scope"):
                self._profiler.is_absent(column, self._number, f"{process.reason}; {device.reason}")


def _with_epochs(epochs_of: dict[str, list[int]], epoch: int, text: str) -> str:
    """All that was said of a column, each with its epochs, after `text` of an epoch was added."""
    epochs_of.setdefault(text, []).append(epoch)
    each = []
    for known, epochs in epochs_of.items():
        first, last = epochs[0], epochs[-1]
        which = f"epoch {first}" if len(epochs) == 1 else f"{len(epochs)} epochs, {first} to {last}"
        each.append(f"{known} ({which})")
    return "; ".join(each)


def without_times_that_one_lacks(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows of processes that shared an epoch: where one has no time of a phase, since it stood still in it, the
    others have none either, who waited for it.
    """
    lacking = {
        column
        for time_column, *others in DURING.values()
        if any(row[time_column] is None for row in rows)
        for column in (time_column, *others)
    }
    return [{name: None if name in lacking else value for name, value in row.items()} for row in rows]


def _own_peak(readings: PhaseReadings, reserved_bytes: int) -> Reading[float]:
    at_end = readings.process_bytes_at_end
    # Where pids are counted apart (containers), the driver's process of our number may be another's.
    if not isinstance(at_end, Missing) and at_end < reserved_bytes:
        return Missing("NVML gives this pid less than the allocator holds: it means another process")
    return readings.process_bytes.peak()


def _energy_between(before: Reading[float], after: Reading[float]) -> Reading[float]:
    if isinstance(before, Missing):
        return before
    if isinstance(after, Missing):
        return after
    if after < before:
        return Missing(
            "the energy counter went back: the driver was loaded anew, or the GPU reset, in mid-epoch"
        )
    if after == before:
        return Missing("the energy counter did not advance: the epoch is shorter than its period")
    return after - before
