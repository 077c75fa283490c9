"""Reads from the system how much memory it allows, and whether it killed processes for lack of memory.

A control group's figures come first, since those of the whole machine mean little in a container or batch
job.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":
    import resource

ROOT = Path("/")


def oom_kills(root: Path = ROOT) -> int:
    """Returns how many processes of our control group (else the machine) were killed for lack of memory.

    0 if unknown.
    """
    files = ("memory.events", "memory.oom_control")
    of_groups = [group / file for group in _groups(root) for file in files]
    counts = (_field(file, "oom_kill") for file in (*of_groups, root / "proc/vmstat"))
    return next((count for count in counts if count is not None), 0)


def memory_limit(root: Path = ROOT) -> int | None:
    """Returns the smallest limit in bytes of our control group and those above it; None without a limit."""
    files = ("memory.max", "memory.limit_in_bytes")
    texts = (_text(group / file).strip() for group in _groups(root) for file in files)
    limits = (int(text) for text in texts if text.isdigit())
    return min((limit for limit in limits if limit < _NO_LIMIT), default=None)


def address_space_limit() -> int | None:
    """Returns how many bytes of addresses a process may have (`ulimit -v`); None without a limit."""
    if sys.platform == "win32":
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


_NO_LIMIT = 2**62
"""Control groups of version 1 express "no limit" as the largest number of pages."""


def _groups(root: Path) -> Iterator[Path]:
    """Yields the folders of our memory control group and of those above it, the nearest first.

    In a container, its group may be mounted as the root while the path is still that on the machine.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount = root / "sys/fs/cgroup"
        elif "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"
        else:
            continue
        group = mount / path.lstrip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(mount))


def _field(file: Path, name: str) -> int | None:
    for line in _text(file).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return None


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
