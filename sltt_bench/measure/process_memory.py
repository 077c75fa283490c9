"""Resident memory of this process, from the Linux kernel's own high-water mark (VmHWM).

`ru_maxrss` is inherited from the parent and cannot be reset; `tracemalloc` does not see tensors.
"""

from pathlib import Path

import psutil

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_HIGH_WATER_MARK = "5"  # proc(5), /proc/pid/clear_refs


def resident_bytes() -> int:
    """The resident set now, on any system."""
    return int(psutil.Process().memory_info().rss)


def peak_resident_bytes() -> int | None:
    """VmHWM: the largest resident set since the last reset; None where the system is not Linux."""
    try:
        lines = _STATUS.read_text().splitlines()
    except FileNotFoundError:
        return None
    kibibytes = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(kibibytes[0]) * 1024 if kibibytes else None


def reset_peak_resident() -> bool:
    """Start VmHWM anew from the resident set of now; False where the system refuses."""
    try:
        _CLEAR_REFS.write_text(_RESET_HIGH_WATER_MARK)
    except OSError:
        return False
    return True
