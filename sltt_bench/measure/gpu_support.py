"""Whether the installed torch can use the GPUs of this machine, found out without loading torch.

NVML shows what the driver knows; what a wheel of torch was built for stands in a file beside it. CUDA's
minor versions are compatible with each other: a driver serves every wheel of its own major version and of
older ones (NVIDIA, "CUDA Compatibility").
"""

import os
import re
import runpy
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from sltt_bench.common.errors import UserError
from sltt_bench.measure.nvml import Gpu, NvmlUnavailable, list_gpus

REMEDY_WHEEL = "install a torch for this driver: https://pytorch.org/get-started/locally"
REMEDY_CPU = "or say --device cpu to leave the GPU alone"
DRIVER_FILES = ("/dev/nvidiactl", "/dev/nvgpu", "/dev/nvhost-gpu", "/dev/dxg", "/dev/kfd")
"""NVIDIA's driver; Jetson's, of two generations; a GPU in WSL; ROCm's, which torch calls "cuda" too."""


class UnusableGpu(UserError):
    """There is a GPU that torch cannot use; the message says why and what to do."""


class Wheel(NamedTuple):
    """What a wheel of torch was built for."""

    torch: str
    """Its version."""
    cuda: str | None
    """CUDA version; None: none."""


def installed_wheel() -> Wheel | None:
    """The wheel that `import torch` would load; None without one, or if its file says nothing."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        facts = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
        return Wheel(str(facts["__version__"]), facts.get("cuda"))
    except (OSError, KeyError, SyntaxError):
        return None


def shown_gpus() -> list[Gpu]:
    """The GPUs that NVML shows; none where CUDA_VISIBLE_DEVICES hides all of them, or without NVML."""
    if _visible() == []:
        return []
    try:
        return list_gpus()
    except NvmlUnavailable:
        return []


def _visible() -> list[str] | None:
    """The GPUs that CUDA_VISIBLE_DEVICES names: as in CUDA, its list ends at the first entry that names none. None if it
    is not set.
    """
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return None
    entries = (entry.strip() for entry in listed.split(","))
    return list(takewhile(lambda entry: entry not in ("", "-1", "NoDevFiles"), entries))


def why_unusable(gpus: list[Gpu], wheel: Wheel | None) -> str | None:
    """Why this torch can use none of the GPUs; None if nothing speaks against it, or without either."""
    if not gpus or wheel is None:
        return None
    gpu = gpus[0]
    if wheel.cuda is None:
        return f"torch {wheel.torch} is built without CUDA"
    if _major(wheel.cuda) > _major(gpu.cuda_driver):
        return (
            f"torch {wheel.torch} is built for CUDA {wheel.cuda}, but driver {gpu.driver} serves CUDA "
            f"{gpu.cuda_driver} at most"
        )
    return None


def why_without_kernels(gpu: str, capability: tuple[int, int], architectures: Sequence[str]) -> str | None:
    """Why a wheel built for these architectures (torch.cuda.get_arch_list()) has no kernels for a GPU of this compute
    capability; None if it has some, or if none of the architectures is one of NVIDIA's.

    Kernels for sm_XY run on X.Y and later minor versions of X, those for compute_XY are compiled by the driver on X.Y and
    all that came after (NVIDIA, "CUDA C++ Programming Guide", section "Application Compatibility"). With the letter a
    they are for X.Y alone, with f for later minor versions.
    """
    known = [match for name in architectures if (match := _ARCHITECTURE.fullmatch(name)) is not None]
    if not known or any(_serves(match, capability) for match in known):
        return None
    built_for = ", ".join(match.string for match in known)
    return f"torch has kernels for {built_for}, and none for {gpu} of compute capability {capability[0]}.{capability[1]}"


_ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")


def _serves(architecture: re.Match[str], capability: tuple[int, int]) -> bool:
    kind, major, minor, only = architecture.groups()
    built_for = int(major), int(minor)
    if only == "a":
        return built_for == capability
    later = built_for <= capability
    return later and (built_for[0] == capability[0] or (kind == "compute" and not only))


def why_absent(device: str, gpus: list[Gpu]) -> str | None:
    """Why there is no such device ("cuda" or "cuda:N") among the GPUs that are shown; None if nothing says so.

    A driver whose device files are there may serve torch without NVML: Jetson, WSL, ROCm.
    """
    listed, visible = os.environ.get("CUDA_VISIBLE_DEVICES"), _visible()
    if visible == []:
        return f"CUDA_VISIBLE_DEVICES is {listed!r} and hides every GPU"
    if gpus:
        count = len(gpus) if visible is None else min(len(gpus), len(visible))
        if int(device.partition(":")[2] or 0) < count:
            return None
        limit = "" if visible is None else f" (CUDA_VISIBLE_DEVICES is {listed!r})"
        return f"there {'is 1 GPU' if count == 1 else f'are {count} GPUs'} here, the last is cuda:{count - 1}{limit}"
    if any(Path(file).exists() for file in DRIVER_FILES):
        return None
    return "there is no GPU here: neither NVML nor a driver's device file shows one"


def check_gpu_is_usable(device: str) -> None:
    """Refuses to let "auto" become the CPU where a GPU stands idle beside it, or "cuda" fail in every cell.

    Raises UnusableGpu. What only torch itself can tell is left to the process that loads it.
    """
    if device == "cpu":
        return
    gpus = shown_gpus()
    if (reason := why_unusable(gpus, installed_wheel())) is not None:
        raise UnusableGpu(unusable_text(device, gpus, reason))
    if device != "auto" and (reason := why_absent(device, gpus)) is not None:
        raise UnusableGpu(
            f"device {device}: {reason}; `sltt-bench doctor` says more, --device auto instead takes what is there"
        )


def unusable_text(device: str, gpus: list[Gpu], reason: str) -> str:
    """The refusal in words."""
    more = f" and {len(gpus) - 1} more" if len(gpus) > 1 else ""
    remedy = f"{REMEDY_WHEEL}, {REMEDY_CPU}" if device == "auto" else REMEDY_WHEEL
    return f"device {device}: there is a GPU ({gpus[0].name}{more}), but {reason}; {remedy}"


def _major(version: str) -> int:
    return int(version.split(".")[0])
