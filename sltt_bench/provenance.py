"""Records what a result was measured on: versions, source revision, processor, GPUs, settings, but no names.

`collect` is for the process of the command line and needs no torch; `collect_worker` is for the
process that trained. Both return plain JSON for provenance.json.
"""

import json
import os
import platform
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

import sltt_bench
from sltt_bench.common.plugins import loaded_plugins
from sltt_bench.common.source_digest import own_source_sha256
from sltt_bench.measure.nvml import NvmlUnavailable, list_gpus
from sltt_bench.results.private_paths import without_private_paths
from sltt_bench.results.schema import SCHEMA_VERSION

if TYPE_CHECKING:
    import torch

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "pandas",
    "nvidia-ml-py",
    "triton",
    "spikingjelly",
    "tonic",
)
"""Distributions whose versions are recorded if they are installed."""

SETTINGS = (
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "CUDA_DEVICE_ORDER",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_MODULE_LOADING",
    "CUDA_VISIBLE_DEVICES",
    "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY",
    "LD_PRELOAD",
    "MALLOC_ARENA_MAX",
    "MALLOC_CONF",
    "MKL_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "PYTHONHASHSEED",
    "PYTHONOPTIMIZE",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_NO_CUDA_MEMORY_CACHING",
    "TORCHDYNAMO_DISABLE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "TORCH_CUDNN_V8_API_DISABLED",
    "TRITON_INTERPRET",
)
"""Environment variables that change time, memory or numbers; recorded if they are set."""


def collect(command: Sequence[str]) -> dict[str, Any]:
    """Returns what the command line's process knows about the run. Does not import torch."""
    return {
        "schema_version": SCHEMA_VERSION,
        "started_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [without_private_paths(argument) for argument in command],
        "sltt_bench": sltt_bench.__version__,
        **source_revision(Path(sltt_bench.__file__).parent),
        "source_sha256": own_source_sha256(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "packages": {
            package: version for package in PACKAGES if (version := installed_version(package)) is not None
        },
        "cpu": cpu_model(),
        "cores_physical": psutil.cpu_count(logical=False),
        "cores_logical": psutil.cpu_count(),
        "cores_usable": usable_cores(),
        "cores_quota": core_quota(),
        "memory_total_bytes": psutil.virtual_memory().total,
        **_gpus(),
        "environment": {
            name: without_private_paths(os.environ[name]) for name in SETTINGS if name in os.environ
        },
    }


def collect_worker(profiler_description: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the process that trained knows about its attempt, at the end."""
    import torch

    backends: Any = torch.backends  # without types
    cudnn = backends.cudnn
    return {
        "source_sha256": own_source_sha256(),
        "plugins": loaded_plugins(),
        "torch": {
            "version": torch.__version__,
            "git_revision": torch.version.git_version,
            "cuda": torch.version.cuda,
            "cudnn": cudnn.version(),
            "cpu_capability": backends.cpu.get_cpu_capability(),
            "mkldnn": backends.mkldnn.is_available(),
        },
        "torch_flags": {
            "threads": torch.get_num_threads(),
            "interop_threads": torch.get_num_interop_threads(),
            "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
            "cudnn_enabled": cudnn.enabled,
            "cudnn_benchmark": cudnn.benchmark,
            "cudnn_deterministic": cudnn.deterministic,
            "cudnn_allow_tf32": cudnn.allow_tf32,
            "matmul_allow_tf32": backends.cuda.matmul.allow_tf32,
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
        },
        "profiler": dict(profiler_description),
    }


def device_name(device: "torch.device") -> str:
    """Returns the name of the GPU, or of the CPU with the number of threads that torch uses."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{cpu_model()} ({threads} thread{'s' if threads > 1 else ''})"


# The source -------------------------------------------------------------------------------------


def source_revision(package: Path) -> dict[str, Any]:
    """Returns git_revision of the checkout that contains `package`, and git_dirty.

    git_dirty: whether the package, the recipes or pyproject.toml differ from the revision (results written
    since do not count). Both are None, with git_absent as the reason, if the package is not in a checkout.
    """
    # A repository is ours only if it tracks this file, since an environment's folder may be inside another
    # one.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is not None:
        revision = _git(package, "rev-parse", "HEAD")
        changes = _git(
            package.parent, "status", "--porcelain", "--", package.name, "recipes", "pyproject.toml"
        )
        if revision is not None and changes is not None:
            return {"git_revision": revision, "git_dirty": bool(changes)}
    commit = _installed_commit()
    if commit is not None:
        return {"git_revision": commit, "git_dirty": False}
    reason = "installed from a package, or git does not answer for this checkout"
    return {"git_revision": None, "git_dirty": None, "git_absent": reason}


def _git(folder: Path, *arguments: str) -> str | None:
    """Returns git's output in `folder`, or None if git is missing or fails."""
    # Even a status could take the index's lock from someone who works in the checkout.
    return _output_of("git", "--no-optional-locks", "-C", str(folder), *arguments)


def _installed_commit() -> str | None:
    """Returns the commit that pip installed from a repository's address (PEP 610), or None."""
    try:
        text = metadata.distribution("sltt-bench").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    commit = json.loads(text or "{}").get("vcs_info", {}).get("commit_id")
    return None if commit is None else str(commit)


def installed_version(package: str) -> str | None:
    """Returns the version of a package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


# The machine ------------------------------------------------------------------------------------


@cache
def cpu_model() -> str:
    """Returns the processor's name as its maker writes it, else its architecture."""
    if platform.system() == "Darwin":
        return _output_of("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    return cpu_model_from(text, lambda: _output_of("lscpu") or "") or platform.machine()


def cpu_model_from(cpuinfo: str, lscpu: Callable[[], str]) -> str | None:
    """Returns the name in /proc/cpuinfo, or lscpu's name if an ARM kernel gives only numbers."""
    name = _field(cpuinfo, "model name") or _field(lscpu(), "Model name")
    maker, part = _field(cpuinfo, "CPU implementer"), _field(cpuinfo, "CPU part")
    if name is not None or maker is None:
        return name
    return f"ARM implementer {maker} part {part}"


def _field(text: str, key: str) -> str | None:
    match = re.search(rf"^{key}[ \t]*:[ \t]*(\S.*?)[ \t]*$", text, re.MULTILINE)
    return None if match is None or match[1] == "-" else match[1]


def _output_of(*command: str) -> str | None:
    """Returns a command's output in English, without GIT_* variables; None if it is missing or fails."""
    surroundings = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    surroundings["LC_ALL"] = "C"
    try:
        answer = subprocess.run(
            command, env=surroundings, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def usable_cores() -> int | None:
    """Returns the number of cores on which this process may run; taskset or a batch system may limit it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return psutil.cpu_count()


def core_quota() -> float | None:
    """Returns how many cores' time a container grants (cgroup version 2); None: no limit, or unknown."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except OSError:
        return None
    return None if quota == "max" else int(quota) / int(period)


def _gpus() -> dict[str, Any]:
    try:
        gpus = list_gpus()
    except NvmlUnavailable as error:
        return {"gpus": [], "gpus_absent": str(error)}
    return {"gpus": [asdict(gpu) for gpu in gpus]}
