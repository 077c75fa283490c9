"""`sltt-bench doctor`: what it finds on machines of every kind."""

import json
import resource
import subprocess
from collections import namedtuple
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sltt_bench.command_line import doctor, torch_probe
from sltt_bench.measure import Profiler, gpu_support
from sltt_bench.measure.gpu_support import Wheel
from sltt_bench.measure.nvml import Gpu, Missing, Reading
from sltt_bench.measure.processors import Shares
from sltt_bench.planning.recipe import load_recipe

GPU = Gpu(name="NVIDIA H100", uuid="GPU-0", memory_total_bytes=80 << 30, driver="570.1", cuda_driver="12.8")


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


def test_the_doctor_holds_the_driver_against_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "shown_gpus", lambda: [GPU])
    monkeypatch.setattr(doctor, "installed_wheel", lambda: Wheel("2.9", "13.0"))
    gpu, driver = doctor._gpus()
    assert (gpu.level, gpu.text) == ("ok", "NVIDIA H100, 80 GiB, driver 570.1 (CUDA 12.8)")
    assert driver.level == "fault"
    assert "get-started" in driver.text


@pytest.mark.parametrize(
    ("wheel", "built"),
    [
        (Wheel("2.9", "13.0"), "for CUDA 13.0"),
        (Wheel("2.9+cpu", None), "without CUDA"),
        (None, "without CUDA"),
    ],
)
def test_without_a_gpu_the_doctor_says_what_torch_was_built_for(
    wheel: Wheel | None, built: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "shown_gpus", list)
    monkeypatch.setattr(doctor, "installed_wheel", lambda: wheel)
    (finding,) = doctor._gpus()
    assert finding.level == "note"
    assert finding.text.endswith(f"(torch is built {built}); everything runs on the CPU")


def test_a_gpu_without_memory_of_its_own_shares_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "shown_gpus", lambda: [replace(GPU, memory_total_bytes=None)])
    monkeypatch.setattr(doctor, "installed_wheel", lambda: None)
    (finding,) = doctor._gpus()
    assert "memory shared with the host" in finding.text


FACTS: dict[str, Any] = {
    "torch": "2.9", "torchvision": "0.24", "threads": 1, "no_kernels": None, "device": "cuda:0",
    "description": {"gpu": {"at_start": {"temperature_c": 37}}}, "absent": {"energy_j": "no counter"},
    "notes": {"cpu_util_mean": "a container"}, "process_bytes": 1, "no_process_bytes": None,
}  # fmt: skip


def of_probe(monkeypatch: pytest.MonkeyPatch, facts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What the doctor makes of these facts, after a line that a library printed."""
    done = subprocess.CompletedProcess([], 0, stdout=f"a library says\n{json.dumps(facts)}\n", stderr="")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: done)
    return [(finding.level, finding.subject, finding.text) for finding in doctor._torch()]


def test_the_doctor_says_all_that_the_probe_of_torch_found(monkeypatch: pytest.MonkeyPatch) -> None:
    told = [("note", "energy_j", "stays empty: no counter"), ("note", "cpu_util_mean", "a container")]
    assert of_probe(monkeypatch, FACTS) == [
        ("ok", "torch", "2.9, torchvision 0.24, 1 thread"),
        ("ok", "sensors", "37 °C"),
        ("ok", "nvml", "tells the memory of single processes"),
        *told,
    ]
    on_a_cpu = {**FACTS, "threads": 2, "device": "cpu", "description": {}}
    assert of_probe(monkeypatch, on_a_cpu) == [("ok", "torch", "2.9, torchvision 0.24, 2 threads"), *told]


@pytest.mark.parametrize(
    ("printed", "reason"),
    [("Traceback\nImportError: libcudart.so.13\n", "ImportError: libcudart.so.13"), ("", "no message")],
)
def test_a_torch_that_cannot_be_loaded_is_a_fault_with_its_last_words(
    printed: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = subprocess.CompletedProcess([], 1, stdout="", stderr=printed)
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: done)
    (finding,) = doctor._torch()
    assert (finding.level, finding.subject) == ("fault", "torch")
    assert finding.text.startswith(f"{reason}; reinstall with")


Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def imagenet_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two recipes: digits, without loader processes, and one whose loaders fill 440 MiB and hold 24 files."""
    recipes = {
        "digits": load_recipe("digits"),
        "imagenet": load_recipe("imagenet-resnet34", {"data.workers": 3, "data.prefetch_factor": 2}),
    }
    monkeypatch.setattr(doctor, "recipe_names", lambda: list(recipes))
    monkeypatch.setattr(doctor, "load_recipe", recipes.get)


@pytest.mark.usefixtures("imagenet_alone")
@pytest.mark.parametrize(
    ("free", "limit", "level"), [(64 << 20, 223, "note"), (1 << 40, 224, "ok"), (1 << 40, -1, "ok")]
)
def test_the_doctor_says_what_the_loaders_need_of_shared_memory_and_open_files(
    monkeypatch: pytest.MonkeyPatch, free: int, limit: int, level: str, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Usage(1 << 41, 0, free))
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, 1 << 20))
    memory, files = doctor._loading()
    assert (memory.level, files.level) == (level, level)
    # 2 loaders × 3 processes × 2 batches of 256 images of 3 × 224 × 224 bytes; two files a batch
    assert "the loaders of imagenet fill up to 441 MiB" in memory.text
    assert f"{limit} at most; the loaders of the shipped recipes hold up to 224" in files.text
    if level == "note":
        assert "--shm-size" in memory.text
        assert files.text.endswith("ulimit -n 448")
    monkeypatch.setattr(doctor, "SHARED_MEMORY", tmp_path / "none, as on macOS")
    assert [finding.subject for finding in doctor._loading()] == ["open files"]


def test_a_sample_of_events_has_its_bytes_at_each_step() -> None:
    recipe = load_recipe("dvs-gesture-vgg11", {"data.workers": 3, "data.prefetch_factor": 2})
    assert doctor._loader_needs(recipe).shared_bytes == 12 * 16 * 20 * 2 * 128 * 128


def test_a_missing_extra_is_a_note_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"tonic": "1.6"}
    monkeypatch.setattr(doctor.provenance, "installed_version", versions.get)
    tonic, spikingjelly, _ = doctor._extras()
    assert (tonic.level, tonic.text) == ("ok", "1.6")
    assert spikingjelly.level == "note"
    assert "pip install 'sltt-bench[spikingjelly]'" in spikingjelly.text


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
