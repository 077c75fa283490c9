"""Prints what torch and the machine's sensors report, as JSON; `doctor` reports if this process fails."""

import json
from typing import Any

from sltt_bench.measure import Profiler
from sltt_bench.measure.gpu_support import why_without_kernels
from sltt_bench.measure.nvml import Missing, value_of


def facts() -> dict[str, Any]:
    """Returns versions, the device, and what cannot be measured on it, with the reasons."""
    import torch

    from sltt_bench.torch_internals import without_compiler

    with without_compiler():
        import torchvision

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    no_kernels = None
    if device.type == "cuda":
        no_kernels = without_kernels(device)
        number = torch.empty(1, device=device)  # NVML lists a process only if it has a context
        if no_kernels is None:
            number.fill_(1).item()
    return {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "no_kernels": no_kernels,
        **measured(Profiler(device)),
    }


def without_kernels(device: Any) -> str | None:
    """Returns why no kernel of the installed torch can run on the GPU; None if some can."""
    import torch

    return why_without_kernels(
        torch.cuda.get_device_name(device),
        torch.cuda.get_device_capability(device),
        torch.cuda.get_arch_list(),
    )


def measured(profiler: Profiler) -> dict[str, Any]:
    """Returns what the profiler lacks and describes, and whether NVML reports the memory of one process."""
    with profiler:
        absent, notes, description = dict(profiler.absent), dict(profiler.notes), profiler.description()
        none = Missing("no sensors")
        process = none if profiler.watch is None else profiler.watch.sensors.process_bytes()
    return {
        "absent": absent,
        "notes": notes,
        "description": description,
        "process_bytes": value_of(process),
        "no_process_bytes": process.reason if isinstance(process, Missing) else None,
    }


if __name__ == "__main__":
    print(json.dumps(facts(), default=str))
