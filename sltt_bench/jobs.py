"""How many cells run side by side, and where each lane of them does: what --jobs and --devices ask for."""

import os
from collections.abc import Sequence

from sltt_bench.lanes import Place
from sltt_bench.measure.gpu_support import shown_gpus
from sltt_bench.provenance import core_quota, usable_cores


class JobsRefused(ValueError):
    """The machine cannot bear so many cells at once; the message says what it can."""


def usable_processors() -> int:
    """Processors that this command may keep busy, by affinity and by the quota of its container; at least 1."""
    cores, quota = usable_cores() or os.cpu_count() or 1, core_quota()
    return max(1, cores if quota is None else min(cores, int(quota)))


def make_places(
    device: str, jobs: int | None = None, devices: Sequence[str] = (), *, oversubscribe: bool = False
) -> list[Place]:
    """A place for each cell that runs at once; threads are shared evenly where there is more than one.

    `device` is what --device says: with "auto" or "cuda", `jobs` cells get the first so many GPUs, or the CPU
    where there is none. `devices` names one for each cell instead. One cell at a time changes nothing: it has
    the whole machine. Raises JobsRefused for more cells than processors, or than devices, unless
    `oversubscribe`, and for contradictions.
    """
    if devices and device != "auto":
        raise JobsRefused(f"--device {device}, --devices {','.join(devices)}: say one of them")
    if len({name.partition(":")[0] for name in devices}) > 1:
        raise JobsRefused(
            f"--devices {','.join(devices)}: times on a CPU and on a GPU are never compared; name one kind"
        )
    if jobs is not None and jobs < len(devices):
        raise JobsRefused(f"--jobs {jobs}: leaves devices of --devices {','.join(devices)} idle; name fewer")
    count = jobs or len(devices) or 1
    places = list(devices) or _devices_for(device, count)
    if not oversubscribe:
        _check(count, places)
    if count == 1:
        return [Place(devices[0] if devices else None)]
    threads = _threads(count)
    return [Place(places[number % len(places)], threads) for number in range(count)]


def _devices_for(device: str, count: int) -> list[str]:
    """The devices that --device offers to so many cells."""
    if count == 1 or device == "cpu" or device.startswith("cuda:"):
        return [device]
    gpus = _visible_gpus()
    return [f"cuda:{number}" for number in range(gpus)] or ["cpu" if device == "auto" else device]


def _visible_gpus() -> int:
    """GPUs that torch will see, as far as that can be told without loading it."""
    gpus = len(shown_gpus())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return gpus if visible is None else min(gpus, len(visible.split(",")))


def _check(count: int, devices: Sequence[str]) -> None:
    remedy = "lower --jobs, or say --oversubscribe: times then measure the crowd"
    processors = usable_processors()
    if count > processors:
        raise JobsRefused(f"{count} cells at once on {processors} processors: {remedy}")
    gpus = [device for device in devices if device != "cpu"]
    if gpus and (count > len(devices) or len(set(gpus)) < len(gpus)):
        raise JobsRefused(f"{count} cells at once on {', '.join(dict.fromkeys(devices))}: {remedy}")


def _threads(count: int) -> int:
    """Each cell's share of the processors; fewer if OMP_NUM_THREADS asks for fewer."""
    share = max(1, usable_processors() // count)
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(asked)) if asked.isdigit() and int(asked) > 0 else share
