"""A GPU that torch cannot use is said and refused, never passed over in silence."""

import csv
import json
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from test_nvml import compile_fake
from typer.testing import CliRunner

from sltt_bench.command_line import doctor, torch_probe
from sltt_bench.command_line.cli import app
from sltt_bench.kinds import training
from sltt_bench.measure import Profiler, gpu_support
from sltt_bench.measure.gpu_support import (
    UnusableGpu,
    Wheel,
    check_gpu_is_usable,
    installed_wheel,
    why_unusable,
    why_without_kernels,
)
from sltt_bench.measure.nvml import Gpu, Missing, Reading
from sltt_bench.measure.processors import Shares

GPU = Gpu(name="NVIDIA H100", uuid="GPU-0", memory_total_bytes=80 << 30, driver="570.1", cuda_driver="12.8")


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML shows a GPU whose driver serves CUDA 12.8."""
    monkeypatch.setattr(gpu_support, "list_gpus", lambda: [GPU])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize("cuda", ["11.8", "12.4", "12.9"])
def test_a_driver_serves_wheels_of_its_own_major_version_and_of_older_ones(cuda: str) -> None:
    assert why_unusable([GPU], Wheel("2.9", cuda)) is None


def test_a_wheel_for_a_newer_cuda_than_the_driver_serves_is_unusable_and_so_is_one_without() -> None:
    assert "driver 570.1 serves CUDA 12.8 at most" in str(why_unusable([GPU], Wheel("2.9", "13.0")))
    assert "built without CUDA" in str(why_unusable([GPU], Wheel("2.9+cpu", None)))
    assert why_unusable([], Wheel("2.9+cpu", None)) is None
    assert why_unusable([GPU], None) is None


def test_the_wheel_is_read_from_its_file_as_torch_itself_says() -> None:
    assert installed_wheel() == Wheel(torch.__version__, torch.version.cuda)


@pytest.mark.usefixtures("one_gpu")
def test_auto_is_refused_beside_an_unusable_gpu_with_both_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_support, "installed_wheel", lambda: Wheel("2.9", "13.0"))
    with pytest.raises(UnusableGpu, match=r"NVIDIA H100.*get-started.*--device cpu"):
        check_gpu_is_usable("auto")
    with pytest.raises(UnusableGpu):
        check_gpu_is_usable("cuda:0")
    check_gpu_is_usable("cpu")


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize("hidden", ["", "-1", "NoDevFiles"])
def test_gpus_that_the_user_has_hidden_are_not_missed(monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    monkeypatch.setattr(gpu_support, "installed_wheel", lambda: Wheel("2.9", "13.0"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    check_gpu_is_usable("auto")


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use the GPU here")
def test_a_cell_does_not_fall_back_to_the_cpu_where_only_torch_finds_the_gpu_unusable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert training.choose_device("auto").type == "cpu"
    with pytest.raises(UnusableGpu, match="torch sees no CUDA GPU here"):
        training.choose_device("cuda:1")
    monkeypatch.setattr(training, "shown_gpus", lambda: [GPU])
    monkeypatch.setattr(training, "installed_wheel", lambda: Wheel("2.9", "12.8"))
    with pytest.raises(UnusableGpu, match="torch cannot start CUDA"):
        training.choose_device("auto")


@pytest.mark.parametrize(
    ("gpus", "visible", "files", "device", "reason"),
    [
        ([], None, (), "cuda", "there is no GPU here"),
        ([], None, (), "cuda:1", "there is no GPU here"),
        ([], "", (), "cuda", "CUDA_VISIBLE_DEVICES is '' and hides every GPU"),
        ([GPU], "-1", (), "cuda:0", "CUDA_VISIBLE_DEVICES is '-1' and hides every GPU"),
        ([GPU], None, (), "cuda:1", "there is 1 GPU here, the last is cuda:0;"),
        ([GPU, GPU], None, (), "cuda:2", "there are 2 GPUs here, the last is cuda:1;"),
        ([GPU, GPU], "1", (), "cuda:1", r"the last is cuda:0 \(CUDA_VISIBLE_DEVICES is '1'\);"),
        ([GPU, GPU], "1", (), "cuda", None),
        ([GPU, GPU], None, (), "cuda:1", None),
        ([], None, (), "auto", None),
        ([], None, ("here",), "cuda:3", None),  # a driver without NVML
        ([], "0", ("here",), "cuda", None),
    ],
)
def test_a_device_that_is_not_there_is_refused_before_anything_runs(
    gpus: list[Gpu],
    visible: str | None,
    files: tuple[str, ...],
    device: str,
    reason: str | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for file in files:
        (tmp_path / file).touch()
    monkeypatch.setattr(gpu_support, "DRIVER_FILES", (str(tmp_path / "here"),))
    monkeypatch.setattr(gpu_support, "list_gpus", lambda: gpus)
    monkeypatch.setattr(gpu_support, "installed_wheel", lambda: Wheel("2.9", "12.8"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if reason is None:
        check_gpu_is_usable(device)
    else:
        with pytest.raises(UnusableGpu, match=f"^device {device}: .*{reason}"):
            check_gpu_is_usable(device)


@pytest.mark.skipif(
    torch.cuda.is_available() or any(map(os.path.exists, gpu_support.DRIVER_FILES)),
    reason="a GPU may be here",
)
@pytest.mark.parametrize("asked", [("--device", "cuda"), ("--devices", "cuda:0,cuda:1", "--oversubscribe")])
def test_a_run_on_a_gpu_that_is_not_there_ends_with_exit_code_2_and_writes_nothing(
    asked: tuple[str, ...], tmp_path: Path
) -> None:
    result = CliRunner().invoke(app, ["run", "digits", "--smoke", *asked, "--out", str(tmp_path / "results")])
    assert result.exit_code == 2, result.output
    assert "device cuda" in result.output, "of --device and --devices alike"
    assert "--device cuda" not in result.output
    assert "there is no GPU here" in " ".join(result.output.split())
    assert not (tmp_path / "results").exists()
    planned = CliRunner().invoke(app, ["run", "digits", *asked, "--dry-run"])
    assert planned.exit_code == 0, "a plan may be for another machine"


def run_beside_a_gpu(folder: Path, *answers: str) -> "subprocess.CompletedProcess[str]":
    """A run of one cell into folder/results, where NVML's library shows a GPU and gives these answers beside its usual."""
    library, control = compile_fake(folder), folder / "fake_nvml.txt"
    control.write_text("".join(f"{answer}\n" for answer in answers))
    environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    command = [
        sys.executable,
        "-m",
        "sltt_bench",
        "run",
        "digits",
        "--smoke",
        "--method",
        "sltt",
        "--no-estimate",
    ]
    return subprocess.run(
        [*command, "--out", str(folder / "results")],
        env={**environment, "LD_LIBRARY_PATH": str(library), "FAKE_NVML": str(control)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_run_beside_an_unusable_gpu_ends_at_once_with_exit_code_2(tmp_path: Path) -> None:
    """The whole way: a driver for CUDA 12.8, as a real NVML library shows it, and the wheel that is installed."""
    wheel = installed_wheel()
    if wheel is not None and wheel.cuda is not None and wheel.cuda.startswith("12"):
        pytest.skip("the fake driver serves this wheel")
    ended = run_beside_a_gpu(tmp_path)
    assert ended.returncode == 2, ended.stderr
    assert "device auto: there is a GPU" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "results").exists()


NO_GPU_FOR_TORCH = pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use the GPU here")


@NO_GPU_FOR_TORCH
def test_a_gpu_that_only_torch_finds_absent_is_an_error_of_each_cell_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver's device file is there, so that the command lets the cells try."""
    monkeypatch.setattr(gpu_support, "list_gpus", list)
    monkeypatch.setattr(gpu_support, "DRIVER_FILES", (__file__,))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    asked = ["run", "digits", "--smoke", "--method", "sltt,bptt", "--device", "cuda:0", "--no-estimate"]
    result = CliRunner().invoke(app, [*asked, "--out", str(tmp_path)])
    assert result.exit_code == 1, result.output
    reason = "device cuda:0: torch sees no CUDA GPU here; `sltt-bench doctor` tells why"
    assert errors_of(tmp_path) == [("sltt", "error", reason), ("bptt", "error", reason)]
    assert "Traceback" not in result.output


def errors_of(out: Path) -> list[tuple[str, str, str]]:
    """(method, status, reason) of the cells of the one run; no epoch was trained."""
    (run,) = out.glob("digits/*")
    assert not (run / "epochs.csv").exists() or len((run / "epochs.csv").read_text().splitlines()) <= 1
    with (run / "cells.csv").open(encoding="utf-8") as lines:
        return [(row["method"], row["status"], row["reason"]) for row in csv.DictReader(lines)]


@NO_GPU_FOR_TORCH
@pytest.mark.long
def test_auto_is_an_error_of_the_cell_beside_a_gpu_on_which_torch_cannot_start(tmp_path: Path) -> None:
    """The whole way: NVML's library shows a GPU and a driver for every wheel, but torch finds no driver."""
    wheel = installed_wheel()
    if wheel is None or wheel.cuda is None:
        pytest.skip("the wheel is built without CUDA, which the command refuses itself")
    ended = run_beside_a_gpu(tmp_path, "cuda_driver 99000")
    assert ended.returncode == 1, ended.stderr
    ((_, status, reason),) = errors_of(tmp_path / "results")
    assert status == "error"
    assert reason.startswith("device auto: there is a GPU (")
    assert "torch cannot start CUDA; `sltt-bench doctor` tells more; " in reason
    assert "--device cpu to leave the GPU alone" in reason


# The doctor -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "architectures", "served"),
    [
        ((9, 0), ["sm_75", "sm_80", "sm_90"], True),
        ((8, 9), ["sm_75", "sm_80", "sm_90"], True),  # a later minor version
        ((8, 0), ["sm_86"], False),  # an earlier one
        ((7, 0), ["sm_75", "sm_80", "compute_90"], False),
        ((12, 0), ["sm_90", "sm_100"], False),
        ((12, 0), ["sm_90", "compute_90"], True),  # the driver compiles it
        ((12, 1), ["sm_100", "sm_120"], True),
        ((9, 0), ["sm_90a"], True),
        ((12, 0), ["sm_90a", "compute_90a"], False),
        ((10, 3), ["sm_100f"], True),
        ((12, 0), ["sm_100f", "compute_100f"], False),
        ((9, 4), ["gfx90a", "gfx942"], True),  # ROCm: nothing is known
        ((9, 0), [], True),
    ],
)
def test_a_gpu_is_served_by_kernels_of_its_major_version_and_by_code_that_the_driver_compiles(
    capability: tuple[int, int], architectures: list[str], served: bool
) -> None:
    reason = why_without_kernels("NVIDIA X", capability, architectures)
    assert (reason is None) == served
    if reason is not None:
        assert ", ".join(architectures) in reason
        assert f"none for NVIDIA X of compute capability {capability[0]}.{capability[1]}" in reason


def test_the_doctor_finds_fault_with_a_wheel_that_has_no_kernels_for_the_card(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As torch would tell its probe, on which nothing may run: there is no kernel for it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA GeForce GTX 1080")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_90"])
    monkeypatch.setattr(torch, "empty", lambda *size, device: Unfillable())
    monkeypatch.setattr(torch_probe, "Profiler", lambda device: Profiler(torch.device("cpu")))
    facts = json.dumps(torch_probe.facts(), default=str)
    done = subprocess.CompletedProcess([], 0, stdout=facts, stderr="")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: done)
    (finding,) = (finding for finding in doctor._torch() if finding.level == "fault")
    assert finding.subject == "kernels"
    assert finding.text == (
        "torch has kernels for sm_75, sm_80, sm_90, and none for NVIDIA GeForce GTX 1080 of compute capability 6.1; "
        f"{gpu_support.REMEDY_WHEEL}"
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(RuntimeError, match="no kernel image"):
        torch_probe.facts()


class Unfillable:
    """A tensor on a card for which there are no kernels."""

    def fill_(self, value: float) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")


@pytest.mark.usefixtures("one_gpu")
def test_the_doctor_holds_the_driver_against_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed_wheel", lambda: Wheel("2.9", "13.0"))
    gpu, driver = doctor._gpus()
    assert (gpu.level, gpu.text) == ("ok", "NVIDIA H100, 80 GiB, driver 570.1 (CUDA 12.8)")
    assert driver.level == "fault"
    assert "get-started" in driver.text


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(("free", "limit", "levels"), [(64 << 20, 64, "note"), (1 << 40, 1 << 20, "ok")])
def test_the_doctor_says_what_the_loaders_need_of_shared_memory_and_open_files(
    monkeypatch: pytest.MonkeyPatch, free: int, limit: int, levels: str
) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Usage(1 << 41, 0, free))
    monkeypatch.setattr("resource.getrlimit", lambda which: (limit, limit))
    findings = list(doctor._loading())
    assert [finding.level for finding in findings] == [levels] * len(findings)
    if levels == "note":
        assert "--shm-size" in findings[0].text
        assert "ulimit -n" in findings[-1].text


def test_the_loaders_of_imagenet_hold_so_many_bytes() -> None:
    from sltt_bench.planning.recipe import load_recipe

    recipe = load_recipe("imagenet-resnet34", {"data.workers": 3, "data.prefetch_factor": 2})
    # 2 loaders × 3 processes × 2 batches of 256 images of 3 × 224 × 224 bytes
    assert doctor._loader_needs(recipe).shared_bytes == 12 * 256 * 3 * 224 * 224


@pytest.mark.parametrize(
    ("reading", "level", "words"),
    [
        (Shares(0.9, 0.02), "ok", "other programs use 2% of them now"),
        (Shares(0.9, 0.4), "note", "other programs use 40% of them now: where that leaves none free"),
        (Missing("no clocks"), "note", "how busy they are stays unknown: no clocks"),
    ],
)
def test_the_doctor_says_what_others_do_with_the_processors(
    reading: Reading[Shares], level: str, words: str
) -> None:
    finding = doctor._processors(reading)
    assert (finding.level, finding.subject) == (level, "processors")
    assert words in finding.text


def test_the_doctor_says_in_words_what_the_sensors_read() -> None:
    state = {
        "sm_clock_mhz": 1980, "sm_clock_max_mhz": 1980, "memory_clock_mhz": 3201, "clock_limits": [], "power_w": 90.326,
        "power_limit_w": 700.0, "temperature_c": 37, "device_bytes": 1847001088, "other_compute_processes": 1, "missing": {},
    }  # fmt: skip
    assert doctor._sensors(state).text == (
        "1.72 GiB in use, 1 other process on it, clock 1980 of 1980 MHz, 90 of 700 W, 37 °C"
    )
    lame = {
        "device_bytes": 0, "power_w": None, "clock_limits": ["sw_power_cap"], "other_compute_processes": 0,
        "missing": {"power_limit_w": "Not Supported"},
    }  # fmt: skip
    assert doctor._sensors(lame).text == (
        "0 B in use, no other processes on it, clocks held down by sw power cap, no reading of power limit"
    )
    assert doctor._sensors({}) == doctor.DoctorFinding("note", "sensors", "none can be read")


@pytest.mark.parametrize(("reading", "level"), [(5 << 20, "ok"), (None, "note")])
def test_the_doctor_says_whether_nvml_tells_single_processes(reading: int | None, level: str) -> None:
    finding = doctor._process_memory({"process_bytes": reading, "no_process_bytes": "in a container"})
    assert finding.level == level
    assert level == "ok" or "in a container" in finding.text
