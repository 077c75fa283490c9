"""Decides how many cells run at the same time and where, from --jobs, --devices and --nproc-per-cell."""

import os
from collections.abc import Sequence

from sltt_bench.common.errors import UserError
from sltt_bench.common.format import counted
from sltt_bench.measure.gpu_support import shown_gpus
from sltt_bench.provenance import core_quota, usable_cores
from sltt_bench.running.lanes import Place


class JobsRefused(UserError):
    """The machine cannot run this many cells at once; the message says what it can."""


def usable_processors() -> int:
    """Returns the processors that this command may use, by affinity and its container's quota; at least 1."""
    cores, quota = usable_cores() or os.cpu_count() or 1, core_quota()
    return max(1, cores if quota is None else min(cores, int(quota)))


def make_places(
    device: str,
    jobs: int | None = None,
    devices: Sequence[str] = (),
    *,
    per_cell: int = 1,
    oversubscribe: bool = False,
) -> list[Place]:
    """Returns a place for each cell that runs at the same time; several processes share threads evenly.

    `device` is the value of --device: with "auto" or "cuda", `jobs` cells get the first GPUs in turn, or
    the CPU if there is none. `devices` names one for each cell instead. `per_cell` processes share the
    batches of a cell, each on its own device. A single process has the whole machine. Raises JobsRefused for
    more processes than processors or devices (unless `oversubscribe`), for processes of one cell that would
    share a GPU, and for contradictions.
    """
    if devices and device != "auto":
        raise JobsRefused(f"--device {device}, --devices {','.join(devices)}: say one of them")
    if len({name.partition(":")[0] for name in devices}) > 1:
        raise JobsRefused(
            f"--devices {','.join(devices)}: times on a CPU and on a GPU are never compared; name one kind"
        )
    if jobs is not None and jobs * per_cell < len(devices):
        raise JobsRefused(f"--jobs {jobs}: leaves devices of --devices {','.join(devices)} idle; name fewer")
    if len(devices) % per_cell:
        raise JobsRefused(
            f"--devices {','.join(devices)}: {len(devices)} cannot be shared out to cells of {per_cell} processes each "
            "(--nproc-per-cell, train.devices)"
        )
    cells = jobs or len(devices) // per_cell or 1
    processes = cells * per_cell
    names = list(devices) or _devices_for(device, processes)
    if not oversubscribe:
        _check(cells, per_cell, names)
    places = [names[number % len(names)] for number in range(processes)]
    of_cells = [places[first : first + per_cell] for first in range(0, processes, per_cell)]
    if any(len(set(own)) < per_cell for own in of_cells if own[0] != "cpu"):
        raise JobsRefused(
            f"{per_cell} processes of one cell on {', '.join(dict.fromkeys(names))}: NCCL wants a GPU for each; name more "
            "--devices, or lower --nproc-per-cell (train.devices)"
        )
    if processes == 1:
        return [Place(devices[0] if devices else None)]
    threads = _threads(processes)
    return [Place(first, threads, tuple(others)) for first, *others in of_cells]


def _devices_for(device: str, count: int) -> list[str]:
    """Returns the devices that --device offers to `count` processes."""
    if count == 1 or device == "cpu" or device.startswith("cuda:"):
        return [device]
    gpus = _visible_gpus()
    return [f"cuda:{number}" for number in range(gpus)] or ["cpu" if device == "auto" else device]


def _visible_gpus() -> int:
    """Returns the number of GPUs that torch will see, as far as can be known without loading it."""
    gpus = len(shown_gpus())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return gpus if visible is None else min(gpus, len(visible.split(",")))


def _check(cells: int, per_cell: int, devices: Sequence[str]) -> None:
    remedy = "or say --oversubscribe: times then measure the crowd"
    count = cells * per_cell
    what = counted(cells, "cell") if per_cell == 1 else f"{count} processes ({cells} × {per_cell})"
    lower = "lower --jobs" if per_cell == 1 else "lower --jobs or --nproc-per-cell (train.devices)"
    processors = usable_processors()
    if count > processors:
        raise JobsRefused(f"{what} at once on {counted(processors, 'processor')}: {lower}, {remedy}")
    gpus = [device for device in devices if device != "cpu"]
    if gpus and (count > len(devices) or len(set(gpus)) < len(gpus)):
        raise JobsRefused(f"{what} at once on {', '.join(dict.fromkeys(devices))}: {lower}, {remedy}")


def _threads(count: int) -> int:
    """Returns each process's share of the processors, or OMP_NUM_THREADS if that is smaller."""
    share = max(1, usable_processors() // count)
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(asked)) if asked.isdigit() and int(asked) > 0 else share
