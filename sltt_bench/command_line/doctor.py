"""Examines what this machine can measure: versions, the GPU and its sensors, memory, and what is missing.

torch is loaded in a separate process, so that a broken installation is a finding and not a crash.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sltt_bench import provenance
from sltt_bench.common.format import counted, format_bytes
from sltt_bench.measure.gpu_support import REMEDY_WHEEL, installed_wheel, shown_gpus, why_unusable
from sltt_bench.measure.nvml import Missing, Reading
from sltt_bench.measure.processors import Processors, Shares
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.planning.recipe_fields import Recipe
from sltt_bench.planning.recipe_files import recipe_names
from sltt_bench.results.doubts import OTHERS_SHARE

SHARED_MEMORY = Path("/dev/shm")

Level = Literal["ok", "note", "fault"]

EXTRAS = {
    "tonic": ("events", "DVS-Gesture and CIFAR10-DVS"),
    "spikingjelly": ("spikingjelly", "--backend spikingjelly"),
    "tensorboard": ("tensorboard", "--log tensorboard"),
}
"""Optional package → (extra that installs it, its purpose)."""

SPARE_OPEN_FILES = 200
"""Files that a cell's process has open besides its loaders' batches: libraries, logs, pipes."""


@dataclass(frozen=True)
class DoctorFinding:
    """One line of the diagnosis."""

    level: Level
    subject: str
    text: str


def examine() -> list[DoctorFinding]:
    """Returns all findings on what can be measured on this machine."""
    processors = Processors(os.getpid())
    processors.begin()
    of_torch = list(_torch())  # takes long enough to watch the processors meanwhile
    return [*_machine(), _processors(processors.shares()), *_gpus(), *of_torch, *_loading(), *_extras()]


def _machine() -> Iterator[DoctorFinding]:
    facts = provenance.collect([])
    yield DoctorFinding("ok", "sltt-bench", str(facts["sltt_bench"]))
    yield DoctorFinding("ok", "python", str(facts["python"]))
    yield DoctorFinding("ok", "cpu", str(facts["cpu"]))


def _processors(shares: Reading[Shares]) -> DoctorFinding:
    """Returns how much other programs use the processors now."""
    usable = f"{provenance.usable_cores()} usable"
    if isinstance(shares, Missing):
        return DoctorFinding(
            "note", "processors", f"{usable}; how busy they are stays unknown: {shares.reason}"
        )
    others = f"{usable}; other programs use {shares.others:.0%} of them now"
    if shares.others <= OTHERS_SHARE:
        return DoctorFinding("ok", "processors", others)
    return DoctorFinding(
        "note",
        "processors",
        f"{others}: where that leaves none free, epochs take longer than the method does",
    )


def _gpus() -> Iterator[DoctorFinding]:
    """Yields the GPUs that NVML shows, and whether the installed torch was built for their driver."""
    gpus, wheel = shown_gpus(), installed_wheel()
    if not gpus:
        built = f"for CUDA {wheel.cuda}" if wheel and wheel.cuda else "without CUDA"
        hidden = "NVML shows none, or CUDA_VISIBLE_DEVICES hides all"
        text = f"{hidden} (torch is built {built}); everything runs on the CPU"
        yield DoctorFinding("note", "gpu", text)
    for gpu in gpus:
        size = gpu.memory_total_bytes
        memory = "memory shared with the host, or not told" if size is None else format_bytes(size)
        text = f"{gpu.name}, {memory}, driver {gpu.driver} (CUDA {gpu.cuda_driver})"
        yield DoctorFinding("ok", "gpu", text)
    if (reason := why_unusable(gpus, wheel)) is not None:
        yield DoctorFinding("fault", "driver", f"{reason}; {REMEDY_WHEEL}")


def _torch() -> Iterator[DoctorFinding]:
    command = [sys.executable, "-m", "sltt_bench.command_line.torch_probe"]
    probe = subprocess.run(command, capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        last = probe.stderr.strip().splitlines()[-1] if probe.stderr.strip() else "no message"
        remedy = "reinstall with `pip install --force-reinstall torch torchvision`"
        yield DoctorFinding("fault", "torch", f"{last}; {remedy}")
        return
    facts = json.loads(probe.stdout.strip().splitlines()[-1])
    threads = f"{facts['threads']} thread{'s' if facts['threads'] != 1 else ''}"
    versions = f"{facts['torch']}, torchvision {facts['torchvision']}, {threads}"
    yield DoctorFinding("ok", "torch", versions)
    if (reason := facts["no_kernels"]) is not None:
        yield DoctorFinding("fault", "kernels", f"{reason}; {REMEDY_WHEEL}")
    if facts["device"] != "cpu":
        yield _sensors((facts["description"].get("gpu") or {}).get("at_start") or {})
        yield _process_memory(facts)
    for column, reason in facts["absent"].items():
        yield DoctorFinding("note", column, f"stays empty: {reason}")
    for subject, text in facts["notes"].items():
        yield DoctorFinding("note", subject, text)


def _sensors(state: Mapping[str, Any]) -> DoctorFinding:
    """Returns the GPU's sensor readings, as the profiler records them at the start of a cell."""

    def reading(text: str, *names: str) -> list[str]:
        values = [state.get(name) for name in names]
        return [] if None in values else [text.format(*values)]

    used, others = state.get("device_bytes"), state.get("other_compute_processes")
    readings = [
        *([] if used is None else [f"{format_bytes(used)} in use"]),
        *([] if others is None else [f"{counted(others or 'no', 'other process')} on it"]),
        *reading("clock {:.0f} of {:.0f} MHz", "sm_clock_mhz", "sm_clock_max_mhz"),
        *reading("{:.0f} of {:.0f} W", "power_w", "power_limit_w"),
        *reading("{:.0f} °C", "temperature_c"),
    ]
    if limits := state.get("clock_limits"):
        readings.append(f"clocks held down by {', '.join(limits).replace('_', ' ')}")
    if missing := state.get("missing"):
        readings.append(f"no reading of {', '.join(map(_without_unit, missing))}")
    text = ", ".join(readings) or "none can be read"
    return DoctorFinding("ok" if readings else "note", "sensors", text)


def _without_unit(name: str) -> str:
    """Returns a reading's name in words: "power_limit_w" → "power limit"."""
    *words, last = name.split("_")
    return " ".join(words if words and last in ("w", "c", "mhz", "bytes") else [*words, last])


def _process_memory(facts: Mapping[str, Any]) -> DoctorFinding:
    """Returns whether NVML reports the memory of this process, or only that of the whole device."""
    if facts["process_bytes"] is not None:
        return DoctorFinding("ok", "nvml", "tells the memory of single processes")
    text = f"peak_nvml_bytes will be the whole device's, so let nothing else run on it: {facts['no_process_bytes']}"
    return DoctorFinding("note", "nvml", text)


def _loading() -> Iterator[DoctorFinding]:
    """Yields what loader processes need: their batches are in /dev/shm, and each keeps two files open."""
    needs = {name: _loader_needs(load_recipe(name)) for name in recipe_names()}
    most = max(needs, key=lambda name: needs[name].shared_bytes)
    shared, files = needs[most].shared_bytes, max(need.open_files for need in needs.values())
    if SHARED_MEMORY.is_dir():
        free = shutil.disk_usage(SHARED_MEMORY).free
        text = f"{format_bytes(free)} free; the loaders of {most} fill up to {format_bytes(shared)}"
        if free < shared:
            text += ": a larger one (docker run --shm-size=…), fewer data.workers or a smaller data.prefetch_factor"
        yield DoctorFinding("ok" if free >= shared else "note", str(SHARED_MEMORY), text)
    try:
        import resource
    except ImportError:  # Windows, where no such limit is met
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{limit} at most; the loaders of the shipped recipes hold up to {files}"
    if limit >= files or limit == resource.RLIM_INFINITY:
        yield DoctorFinding("ok", "open files", text)
    else:
        yield DoctorFinding("note", "open files", f"{text}: ulimit -n {2 * files}")


class _LoaderNeeds(NamedTuple):
    shared_bytes: int
    open_files: int


def _loader_needs(recipe: Recipe) -> _LoaderNeeds:
    """Returns the needs of training and test loader, which run at the same time; a pixel is a byte."""
    source = recipe.data
    batches = 2 * source.workers * source.prefetch_factor
    steps = recipe.timesteps if source.temporal else 1
    batch_bytes = recipe.train.batch_size * steps * math.prod(source.sample_shape)
    return _LoaderNeeds(batches * batch_bytes, SPARE_OPEN_FILES + 2 * batches)


def _extras() -> Iterator[DoctorFinding]:
    for package, (extra, purpose) in EXTRAS.items():
        version = provenance.installed_version(package)
        remedy = f"not installed; for {purpose}: pip install 'sltt-bench[{extra}]'"
        yield DoctorFinding("note" if version is None else "ok", package, version or remedy)
