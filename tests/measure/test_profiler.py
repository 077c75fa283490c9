"""The profiler against known answers: seconds slept, waited and synchronised, bytes allocated."""

import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from sltt_bench import backends
from sltt_bench.measure import (
    Profiler,
    process_memory,
    processors,
    standstills,
    without_times_that_one_lacks,
)
from sltt_bench.measure import profiler as profiler_module
from sltt_bench.measure.devices import ComputeDevice, compute_device
from sltt_bench.measure.nvml import Missing, Readings
from sltt_bench.measure.processors import Processors, Shares
from sltt_bench.measure.profiler import STOOD_STILL
from sltt_bench.measure.sampler import LONGEST_PAUSE, Gauge, Sampler, pause_after
from sltt_bench.results.schema import EPOCH_COLUMNS, TIMELINE_COLUMNS
from sltt_bench.training.distributed import combined

CPU = torch.device("cpu")
MIB = 1 << 20
LATE = 0.2  # how much later than asked a busy machine may wake a sleeper


def assert_slept(measured: object, seconds: float) -> None:
    assert isinstance(measured, float)
    assert seconds <= measured < seconds + LATE


def slow_items(count: int, seconds: float) -> Iterator[int]:
    for item in range(count):
        time.sleep(seconds)
        yield item


def touch(mebibytes: int) -> mmap.mmap:
    """Fresh pages, resident; closing them gives them back to the system."""
    memory = mmap.mmap(-1, mebibytes * MIB)
    for offset in range(0, len(memory), mmap.PAGESIZE):
        memory[offset] = 1
    return memory


class RecordingDevice(ComputeDevice):
    """A device whose work is not done when a call returns: each synchronisation takes 0.25 s."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def synchronize(self) -> None:
        self.calls.append("synchronize")
        time.sleep(0.25)

    def reset_peaks(self) -> None:
        self.calls.append("reset_peaks")

    def allocated_bytes(self) -> int | None:
        return 2 * MIB if self.calls[-1] == "reset_peaks" else 9 * MIB

    def allocator_peaks(self) -> dict[str, int | None]:
        self.calls.append("allocator_peaks")
        return {"peak_allocated_bytes": 3 * MIB, "peak_reserved_bytes": 4 * MIB}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> RecordingDevice:
    recording = RecordingDevice()
    monkeypatch.setattr(profiler_module, "compute_device", lambda _: recording)
    return recording


# Clocks -----------------------------------------------------------------------------------------


def test_train_eval_and_waiting_each_have_their_own_seconds() -> None:
    with Profiler(CPU) as profiler:
        epoch = profiler.epoch(1)
        assert list(epoch.waiting(slow_items(1, 0.3))) == [0]  # before training: belongs to no clock
        with epoch.train():
            for _ in epoch.waiting(slow_items(4, 0.1)):
                time.sleep(0.1)
        time.sleep(0.3)  # belongs to neither clock
        with epoch.evaluate():
            for _ in epoch.waiting(slow_items(2, 0.1)):
                pass
    figures = epoch.figures()
    assert_slept(figures["data_wait_s"], 0.4)
    assert_slept(figures["train_s"], 0.8)
    assert_slept(figures["eval_s"], 0.2)


def test_the_start_of_the_loader_and_a_loop_left_early_count_as_waiting() -> None:
    class Loader:
        def __iter__(self) -> Iterator[int]:
            time.sleep(0.1)
            return slow_items(100, 0.02)

    with Profiler(CPU) as profiler:
        epoch = profiler.epoch(1)
        with epoch.train():
            for item in epoch.waiting(Loader()):
                if item == 2:
                    break
    assert_slept(epoch.figures()["data_wait_s"], 0.16)


def test_finding_out_that_there_is_no_more_data_counts_as_waiting() -> None:
    def items() -> Iterator[int]:
        yield 1
        time.sleep(0.2)  # loader processes are shut down

    with Profiler(CPU) as profiler:
        epoch = profiler.epoch(1)
        with epoch.train():
            assert list(epoch.waiting(items())) == [1]
    assert_slept(epoch.figures()["data_wait_s"], 0.2)


def test_the_device_is_synchronised_before_the_clock_starts_and_before_it_stops(
    device: RecordingDevice,
) -> None:
    with Profiler(CPU) as profiler:
        epoch = profiler.epoch(1)
        with epoch.train():
            device.calls.append("body")
        assert device.calls == ["synchronize", "reset_peaks", "body", "synchronize", "allocator_peaks"]
        device.calls.clear()
        with epoch.evaluate():
            device.calls.append("body")
        assert device.calls == ["synchronize", "body", "synchronize"]
    figures = epoch.figures()
    # Of the two synchronisations only the second, which waits for the body's work, is on the clock.
    assert_slept(figures["train_s"], 0.25)
    assert_slept(figures["eval_s"], 0.25)
    assert figures["peak_allocated_bytes"] == 3 * MIB
    assert figures["peak_reserved_bytes"] == 4 * MIB


def test_what_was_allocated_before_training_is_a_column_of_its_own(device: RecordingDevice) -> None:
    """Weights, optimiser state and workspaces: what a small network's peak mostly consists of."""
    with Profiler(CPU) as profiler:
        epoch = profiler.epoch(1)
        with epoch.train():
            device.calls.append("body")
    assert epoch.figures()["allocated_at_reset_bytes"] == 2 * MIB


def test_each_figure_of_a_gpus_allocator_is_torchs_of_that_device(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, asked = torch.device("cuda", 3), []

    def answer(name: str, value: int) -> None:
        monkeypatch.setattr(torch.cuda, name, lambda device: asked.append((name, device)) or value)

    for value, name in enumerate(
        ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved")
    ):
        answer(name, value)
    answer("synchronize", 0)
    answer("reset_peak_memory_stats", 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"{device}"))
    cuda = compute_device(gpu)
    assert (cuda.allocated_bytes(), cuda.memory_now(), cuda.reserved_bytes(), cuda.gpu_uuid) == (
        0,
        0,
        1,
        "cuda:3",
    )
    assert cuda.allocator_peaks() == {"peak_allocated_bytes": 2, "peak_reserved_bytes": 3}
    asked.clear()
    cuda.synchronize()
    cuda.reset_peaks()
    assert asked == [("synchronize", gpu), ("reset_peak_memory_stats", gpu)]


def test_a_figure_that_a_technique_makes_meaningless_is_empty_with_its_reason(
    device: RecordingDevice,
) -> None:
    device.gpu_uuid = "GPU-1"
    with Profiler(CPU, unmeasurable=lambda: {"peak_allocated_bytes": "iterations are replayed"}) as profiler:
        epoch = profiler.epoch(1)
        with epoch.train():
            device.calls.append("body")
    assert epoch.figures()["peak_allocated_bytes"] is None
    assert epoch.figures()["peak_reserved_bytes"] == 4 * MIB
    assert profiler.absent["peak_allocated_bytes"] == "iterations are replayed"


def test_replayed_graphs_have_no_allocator_peak_and_other_iterations_do() -> None:
    native: Any = backends.create("native")
    for nothing_replayed in (native, backends.create("reference")):
        assert not backends.unmeasurable(nothing_replayed)
    native.graphs.replayed = 1
    assert "peak_reserved_bytes holds" in backends.unmeasurable(native)["peak_allocated_bytes"]


def test_an_epoch_that_raises_leaves_no_figures() -> None:
    with Profiler(CPU) as profiler:
        epoch = profiler.epoch(1)
        with pytest.raises(MemoryError), epoch.train():
            raise MemoryError
    assert set(epoch.figures().values()) == {None}


# Memory -----------------------------------------------------------------------------------------


def resident_peak(profiler: Profiler, number: int, mebibytes: int) -> int:
    epoch = profiler.epoch(number)
    with epoch.train():
        touch(mebibytes).close()
    peak = epoch.figures()["peak_rss_bytes"]
    assert isinstance(peak, int)
    return peak


@pytest.mark.skipif(not process_memory.reset_peak_resident(), reason="VmHWM cannot be reset here")
def test_the_resident_peak_of_an_epoch_is_its_own() -> None:
    with Profiler(CPU) as profiler:
        resident_peak(profiler, 1, 1)
        before = resident_peak(profiler, 2, 1)
        large = resident_peak(profiler, 3, 129)
        after = resident_peak(profiler, 4, 1)
    assert large - before == pytest.approx(128 * MIB, abs=4 * MIB)
    assert large - after == pytest.approx(128 * MIB, abs=4 * MIB)


def test_a_peak_that_cannot_be_reset_is_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process_memory, "_CLEAR_REFS", tmp_path / "no" / "clear_refs")
    with Profiler(CPU) as profiler:
        peak = resident_peak(profiler, 1, 1)
    assert peak >= process_memory.resident_bytes()
    assert "since the process started" in profiler.notes["peak_rss_bytes"]
    assert "peak_rss_bytes" not in profiler.absent


def test_a_system_without_proc_has_no_resident_peak(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process_memory, "_STATUS", tmp_path / "status")
    with Profiler(CPU) as profiler:
        epoch = profiler.epoch(1)
        with epoch.train():
            pass
    assert epoch.figures()["peak_rss_bytes"] is None
    assert "VmHWM" in profiler.absent["peak_rss_bytes"]


def test_memory_now_on_a_cpu_is_the_resident_set() -> None:
    with Profiler(CPU) as profiler:
        before = profiler.compute.memory_now()
        pages = touch(64)
        assert profiler.compute.memory_now() - before == pytest.approx(64 * MIB, abs=4 * MIB)
        pages.close()


# Processors ---------------------------------------------------------------------------------------


SPIN = """
import time
while time.process_time() < 0.6:
    pass
"""


@pytest.fixture
def stranger() -> Iterator[int]:
    """A process that does nothing, and whose command we do not belong to."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        time.sleep(0.5)  # its start is over
        yield process.pid
        process.communicate(b"\n")


@pytest.mark.parametrize("who", ["this process", "a child that has ended"])
def test_others_are_all_but_a_commands_own_processes(who: str, stranger: int) -> None:
    """What we do ourselves is the whole difference between what is foreign to us and what is foreign to a stranger,
    however busy this machine is."""
    ours, strangers = Processors(os.getpid()), Processors(stranger)
    ours.begin()
    strangers.begin()
    began, used = time.perf_counter(), sum(os.times()[:4])
    if who == "this process":
        exec(SPIN.replace("0.6", str(time.process_time() + 0.6)))
    else:
        subprocess.run([sys.executable, "-c", SPIN], check=True)
    own, foreign = ours.shares(), strangers.shares()
    seconds = (time.perf_counter() - began) * len(processors._usable())
    if not (isinstance(own, Shares) and isinstance(foreign, Shares)):
        pytest.skip(f"this system has no such clocks: {own}")
    assert foreign.others - own.others == pytest.approx((sum(os.times()[:4]) - used) / seconds, abs=0.06)
    assert own.others <= own.at_work
    assert foreign.at_work == pytest.approx(foreign.others, abs=0.06)


class Times(NamedTuple):
    """Of one processor, as Linux counts them: a guest's time is in user's already."""

    user: float
    idle: float
    iowait: float = 0.0
    guest: float = 0.0
    steal: float = 0.0


def system(monkeypatch: pytest.MonkeyPatch, *states: tuple[float, list[Times], float]) -> Processors:
    """Processors of a system that is in these states, one after the other: (clock, times of each processor,
    seconds that the command's process has used)."""
    clock, times, own = (iter(column) for column in zip(*states, strict=True))
    monkeypatch.setattr(processors.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(processors.psutil, "cpu_times", lambda percpu: next(times))
    monkeypatch.setattr(Processors, "_own_s", lambda self: next(own))
    monkeypatch.setattr(processors, "_usable", lambda: [0, 2])
    watched = Processors(1)
    watched.begin()
    return watched


def test_waiting_for_a_disk_is_no_work_and_a_host_that_takes_time_away_is_an_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    busy = Times(user=99.0, idle=0.0)  # the cell may not use this one
    watched = system(
        monkeypatch,
        (10.0, [Times(5, 5), busy, Times(7, 1, guest=2)], 3.0),
        (14.0, [Times(8, 6), busy, Times(8, 1, iowait=1.5, guest=3, steal=1.5)], 5.0),
    )
    # Of 8 s on two processors 3 + 1 + 1.5 were at work (the guest's one second is in user), 2 of them ours.
    assert watched.shares() == Shares(at_work=pytest.approx(5.5 / 8), others=pytest.approx(3.5 / 8))


def test_clocks_of_10_ms_say_nothing_of_a_short_time(monkeypatch: pytest.MonkeyPatch) -> None:
    idle = [Times(0, 0)] * 3
    shares = system(monkeypatch, (10.0, idle, 0.0), (10.19, idle, 0.0)).shares()
    assert isinstance(shares, Missing)
    assert "shorter than 0.2 s" in shares.reason


def test_a_system_that_counts_less_than_we_used_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some sandboxes have a /proc/stat of zeros."""
    idle = [Times(0, 0)] * 3
    shares = system(monkeypatch, (10.0, idle, 0.0), (12.0, idle, 2.0)).shares()
    assert isinstance(shares, Missing)
    assert "counts less time on its processors" in shares.reason


def test_a_process_that_ends_while_it_is_counted_is_counted_with_its_parent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scans = []

    class Command:
        """Of its two children one ends during the first scan: its time is then in that of ended children."""

        def children(self, recursive: bool) -> list["Child"]:
            scans.append(recursive)
            return [Child(), Child()] if len(scans) == 1 else [Child()]

        def cpu_times(self) -> tuple[float, ...]:
            return (1.0, 2.0, 0.0, 0.0, 9.0) if len(scans) == 1 else (1.0, 2.0, 3.0, 1.0, 9.0)

    class Child:
        def cpu_times(self) -> tuple[float, ...]:
            if len(scans) == 1:
                raise processors.psutil.NoSuchProcess(7)
            return (10.0, 0.0, 0.0, 0.0, 9.0)

    monkeypatch.setattr(processors.psutil, "Process", lambda _: Command())
    assert Processors(1)._own_s() == 17.0
    assert scans == [True, True]


def test_a_system_without_such_clocks_leaves_the_columns_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(percpu: bool) -> None:
        raise PermissionError("/proc/stat")

    monkeypatch.setattr(processors.psutil, "cpu_times", refused)
    with Profiler(CPU) as profiler:
        epoch = profiler.epoch(1)
        with epoch.train():
            time.sleep(0.25)
    assert epoch.figures()["cpu_util_mean"] is None
    assert "does not tell how busy" in profiler.absent["cpu_others_mean"]


def test_a_column_that_is_empty_for_several_reasons_has_each_with_its_epochs() -> None:
    with Profiler(CPU) as profiler:
        for epoch, reason in enumerate(("short", "lost", "short", "short"), start=1):
            profiler.is_absent("cpu_util_mean", epoch, reason)
            profiler.note("cpu_util_mean", epoch, reason)
    assert profiler.absent["cpu_util_mean"] == "short (3 epochs, 1 to 4); lost (epoch 2)"
    assert profiler.notes["cpu_util_mean"] == "short (3 epochs, 1 to 4); lost (epoch 2)"


def test_an_epoch_has_the_use_of_the_processors() -> None:
    with Profiler(CPU) as profiler:
        epoch = profiler.epoch(1)
        with epoch.train():
            time.sleep(0.25)
    if "cpu_util_mean" in profiler.absent:
        pytest.skip(f"this system has no such clocks: {profiler.absent['cpu_util_mean']}")
    figures = epoch.figures()
    assert 0.0 <= figures["cpu_others_mean"] <= 1.0  # type: ignore[operator]
    assert 0.0 <= figures["cpu_util_mean"] <= 1.0  # type: ignore[operator]


# What a CPU lacks -------------------------------------------------------------------------------


# Time in which nothing ran ------------------------------------------------------------------------

STOPPED = """
import ctypes, os, signal, subprocess, sys, time
import torch
from sltt_bench.measure import Profiler

def hold_the_interpreter(seconds):
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))

def stop(seconds):
    waker = subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)
    waker.wait()

with Profiler(torch.device("cpu")) as profiler:
    for number, (training, evaluation) in enumerate([(0, 0), (2, 0), (0, 2), (0, 0)], start=1):
        epoch = profiler.epoch(number)
        with epoch.train():
            list(epoch.waiting([1]))
            time.sleep(0.3)
            training and stop(training)
            number == 4 and hold_the_interpreter(2)
            time.sleep(0.3)
        with epoch.evaluate():
            time.sleep(0.1)
            evaluation and stop(evaluation)
        figures = epoch.figures()
        print(*(figures[name] is None for name in ("train_s", "data_wait_s", "cpu_util_mean", "eval_s", "peak_rss_bytes")))
print(profiler.absent.get("train_s"), profiler.absent.get("eval_s"), sep="\\n")
"""


@pytest.mark.waits
def test_a_time_in_which_the_process_was_stopped_is_no_measurement_and_one_in_which_it_waited_is() -> None:
    done = subprocess.run([sys.executable, "-c", STOPPED], capture_output=True, text=True, check=True)
    whole, in_training, in_evaluation, waiting, *reasons = done.stdout.splitlines()
    assert whole.split() == waiting.split() == ["False"] * 5
    assert in_training.split() == ["True", "True", "True", "False", "False"]
    assert in_evaluation.split() == ["False", "False", "False", "True", "False"]
    assert reasons == [f"{STOOD_STILL} (epoch 2)", f"{STOOD_STILL} (epoch 3)"]


@pytest.mark.parametrize(
    ("elapsed", "awake", "slept", "stood"),
    [
        (0.9, 0.0, 0.0, 0.0),  # a busy machine
        (3.0, 0.0, 0.0, 3.0),
        (1.2, 0.2, 0.0, 1.2),  # a library held the interpreter until it was stopped
        (3.0, 2.5, 0.0, 0.0),  # a library held it all the time, or other programs left no processor
        (0.2, 0.1, 60.0, 60.0),  # the lid of a laptop: the clock stood still too
    ],
)
def test_a_late_beat_tells_a_stopped_process_from_a_busy_one(
    elapsed: float, awake: float, slept: float, stood: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, beat = standstills._Beat(5.0, 1.0, 7.0), standstills._Beat(5.2, 1.1, 7.0)
    last = standstills._Beat(5.2 + elapsed, 1.1 + awake, 7.0 + slept)
    clocks = iter([start, beat, last])
    monkeypatch.setattr(standstills.Standstills, "_clocks", lambda self: next(clocks))
    watched = standstills.Standstills()
    assert watched.seconds() == 0.0
    assert watched.seconds() == pytest.approx(stood)


def test_standstills_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    at = [(0.0, 0.0), (0.2, 60.0), (3.2, 60.0), (3.4, 90.0)]
    clocks = iter([standstills._Beat(now, 0.0, asleep) for now, asleep in at])
    monkeypatch.setattr(standstills.Standstills, "_clocks", lambda self: next(clocks))
    watched = standstills.Standstills()
    assert [watched.seconds() for _ in at[1:]] == pytest.approx([60.0, 63.0, 93.0])


def test_time_in_which_a_thread_waited_for_a_processor_is_no_standstill(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As the system counts it: nanoseconds at work, nanoseconds of waiting, how often the thread ran."""
    (tmp_path / "schedstat").write_text("5000000000 3000000000 200\n", encoding="ascii")
    monkeypatch.setattr(standstills, "Path", lambda _: tmp_path / "schedstat")
    awake = standstills.Standstills()._clocks().awake
    assert awake == pytest.approx(3.0 + 200 * sys.getswitchinterval())


def test_where_one_process_stood_still_the_others_that_waited_for_it_have_no_time_either() -> None:
    taken = ("train_s", "data_wait_s", "energy_j", "gpu_util_mean", "cpu_util_mean", "cpu_others_mean")
    figures = {**dict.fromkeys(taken, 0.5), "eval_s": 1.0, "peak_rss_bytes": 7}
    stood = {**figures, **dict.fromkeys(taken)}
    assert without_times_that_one_lacks([figures, figures]) == [figures, figures]
    assert without_times_that_one_lacks([figures, stood]) == [stood, stood]
    assert combined(without_times_that_one_lacks([figures, stood]))["train_s"] is None


def test_every_figure_that_a_cpu_lacks_is_none_and_has_a_reason() -> None:
    with Profiler(CPU) as profiler:
        epoch = profiler.epoch(1)
        with epoch.train():
            for _ in epoch.waiting(range(1)):
                pass
        with epoch.evaluate():
            pass
    empty = {column for column, value in epoch.figures().items() if value is None}
    assert set(profiler.absent) == empty
    assert {"peak_allocated_bytes", "peak_nvml_bytes", "energy_j", "gpu_util_mean"} <= empty
    description = profiler.description()
    assert description.pop("resident_bytes_at_start") == pytest.approx(
        process_memory.resident_bytes(), rel=0.1
    )
    assert description == {"device": "cpu", "gpu": None, "sampling": None}


def test_figures_and_samples_are_columns_of_the_files() -> None:
    assert set(profiler_module.FIGURES) <= {column.name for column in EPOCH_COLUMNS}
    of_the_cell = {"cell_id", "attempt"}
    samples: list[dict[str, Any]] = []
    with Sampler(SlowSensors(), interval_s=0.02, on_sample=samples.append).phase("train", 1):
        pass
    assert list(samples[0]) == [c.name for c in TIMELINE_COLUMNS if c.name not in of_the_cell]


# The sampler ------------------------------------------------------------------------------------


class SlowSensors:
    """Sensors that take 10 ms to read, of which none is spent computing."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def read(self) -> Readings:
        started = time.perf_counter()
        time.sleep(0.01)
        self.seconds.append(time.perf_counter() - started)
        return Readings(1, 2, 0.5, 100.0, 1000, 1000, 50, ())


def test_the_cost_of_sampling_is_the_time_spent_in_the_thread() -> None:
    sensors = SlowSensors()
    sampler = Sampler(sensors, interval_s=0.02, on_sample=None)
    sampler.start()
    with sampler.phase("train", 1):
        started = time.perf_counter()
        time.sleep(1.2)
        phase_s = time.perf_counter() - started
    sampler.stop()
    between_borders = sensors.seconds[1:-1]
    assert 1 <= len(between_borders) <= 4  # not the 60 that the interval asks for
    cost = sampler.cost()
    assert cost["samples"] == len(sensors.seconds)
    assert cost["mean_interval_s"] == pytest.approx(phase_s / len(between_borders), rel=0.1)
    assert cost["share_of_measured_time"] == pytest.approx(sum(between_borders) / phase_s, rel=0.3)
    assert cost["cpu_share_of_measured_time"] < 0.3 * cost["share_of_measured_time"]  # type: ignore[operator]


def test_slow_sensors_are_read_less_often() -> None:
    assert pause_after(0.0001, 0.1) == 0.1
    assert pause_after(0.01, 0.1) == pytest.approx(0.99)  # 0.01 of 1 s
    assert pause_after(5.0, 0.1) == pytest.approx(0.1 * LONGEST_PAUSE)


def test_nothing_is_sampled_outside_a_phase() -> None:
    sensors = SlowSensors()
    sampler = Sampler(sensors, interval_s=0.01, on_sample=None)
    sampler.start()
    time.sleep(0.1)
    sampler.stop()
    assert sensors.seconds == []
    assert sampler.cost()["share_of_measured_time"] is None


def test_a_gauge_gives_peak_and_mean_until_one_reading_is_missing() -> None:
    gauge = Gauge()
    assert gauge.mean() == Missing("never read")
    for value in (0.2, 0.9, 0.1):
        gauge.add(value)
    assert gauge.peak() == 0.9
    assert gauge.mean() == pytest.approx(0.4)
    gauge.add(Missing("lost"))
    gauge.add(0.5)
    assert gauge.peak() == gauge.mean() == Missing("lost")


# On a GPU ---------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_on_a_gpu_nvml_watches_the_device_that_torch_uses() -> None:
    device = torch.device("cuda", 0)
    with Profiler(device) as profiler:
        epoch = profiler.epoch(1)
        with epoch.train():
            held = torch.ones(512 * MIB, dtype=torch.uint8, device=device)
            deadline = time.monotonic() + 1
            while time.monotonic() < deadline:
                held.add_(1)
        del held
    figures = epoch.figures()
    description = profiler.description()
    assert description["gpu"]["uuid"].endswith(str(torch.cuda.get_device_properties(device).uuid))
    assert 512 * MIB <= figures["peak_allocated_bytes"] <= figures["peak_reserved_bytes"]  # type: ignore[operator]
    assert figures["peak_nvml_bytes"] >= figures["peak_reserved_bytes"]  # type: ignore[operator]
    assert description["sampling"]["share_of_measured_time"] > 0
    for column, value in figures.items():
        assert value is not None or column in profiler.absent or column in ("eval_s", "data_wait_s")
