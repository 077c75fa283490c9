"""Which GPU a CUDA index means: NVML ignores CUDA_VISIBLE_DEVICES, so devices are matched by UUID."""

import re
from collections.abc import Sequence


class NoMatchingGpu(Exception):
    """No GPU, or more than one, is the device that was asked for; the message says why."""


def visible_uuids(visible: str | None, uuids: Sequence[str]) -> list[str]:
    """The UUIDs of CUDA's devices 0, 1, … for the value of CUDA_VISIBLE_DEVICES (None: not set).

    `uuids` are all GPUs in CUDA's own order, which is that of NVML under CUDA_DEVICE_ORDER=PCI_BUS_ID
    or where all GPUs are of one model. As in CUDA, the first entry says whether the list is one of
    indices or of (abbreviated) UUIDs, the list ends at the first entry that names no GPU, and an entry
    that comes twice makes it empty. Raises NoMatchingGpu for MIG devices and ambiguous abbreviations.
    """
    if visible is None:
        return list(uuids)
    entries = [entry.strip() for entry in visible.split(",")]
    if entries[0].startswith("MIG"):
        raise NoMatchingGpu(f"CUDA_VISIBLE_DEVICES names a slice of a GPU (MIG): {visible}")
    by_uuid = entries[0].upper().startswith("GPU-")
    chosen: list[str] = []
    for entry in entries:
        uuid = _by_prefix(entry, uuids) if by_uuid else _by_index(entry, uuids)
        if uuid is None:
            break
        if uuid in chosen:
            return []
        chosen.append(uuid)
    return chosen


def uuid_of(index: int, visible: str | None, uuids: Sequence[str]) -> str:
    """The UUID of `cuda:index`; arguments as in `visible_uuids`. Raises NoMatchingGpu."""
    chosen = visible_uuids(visible, uuids)
    if not 0 <= index < len(chosen):
        raise NoMatchingGpu(
            f"cuda:{index} is not among the {len(chosen)} visible GPUs (CUDA_VISIBLE_DEVICES={visible!r})"
        )
    return chosen[index]


def same_gpu(uuid: str, other: str) -> bool:
    """Whether two spellings (NVML's "GPU-8a56…", torch's "8A56…") name one GPU."""
    return _plain(uuid) == _plain(other)


def _by_index(entry: str, uuids: Sequence[str]) -> str | None:
    # CUDA reads as many digits as there are and ignores what follows: "1gpu" is 1.
    digits = re.match(r"\+?\d+", entry)
    index = int(digits.group()) if digits else -1
    return uuids[index] if 0 <= index < len(uuids) else None


def _by_prefix(entry: str, uuids: Sequence[str]) -> str | None:
    matches = [uuid for uuid in uuids if uuid.lower().startswith(entry.lower())]
    if len(matches) > 1:
        raise NoMatchingGpu(
            f"CUDA_VISIBLE_DEVICES: {entry} abbreviates {len(matches)} GPUs; write more of it"
        )
    return matches[0] if matches and entry.upper().startswith("GPU-") else None


def _plain(uuid: str) -> str:
    return uuid.lower().removeprefix("gpu-")
