"""Plug-ins: what other packages add through entry points, and what is said of one that cannot be loaded.

The groups are `sltt_bench.methods`, `.models`, `.data` and `.backends`. A name is known without loading
anything; what is shipped here never waits for, or fails with, what somebody else has installed.
"""

import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from importlib.metadata import EntryPoint, entry_points
from typing import Any


class PluginFailed(ValueError):
    """A plug-in cannot be loaded; the message names it, its package and the remedy."""


def plugins(group: str, shipped: Iterable[str] = ()) -> list[EntryPoint]:
    """The entries of a group by name, each name once; `shipped` names are never taken over."""
    entries = {entry.name: entry for entry in reversed(list(entry_points(group=f"sltt_bench.{group}")))}
    return [entries[name] for name in sorted(set(entries) - set(shipped))]


def find_plugin(group: str, name: str, *, must_have: Iterable[str] = ()) -> Any | None:
    """The object registered by this name, or None. Raises PluginFailed, also if it lacks an attribute."""
    for entry in plugins(group):
        if entry.name == name:
            thing = load_plugin(entry)
            if missing := [attribute for attribute in must_have if not hasattr(thing, attribute)]:
                raise PluginFailed(fault_of(entry, f"has no {' and no '.join(missing)}"))
            return thing
    return None


def load_plugin(entry: EntryPoint) -> Any:
    """The object of an entry. What its import prints goes to standard error. Raises PluginFailed."""
    try:
        with redirect_stdout(sys.stderr):
            return entry.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # somebody else's code; it may even call sys.exit
        what = " ".join(f"{type(error).__name__}: {error}".split())[:300].rstrip(" :")
        raise PluginFailed(fault_of(entry, f"cannot be loaded ({what})")) from error


def fault_of(entry: EntryPoint, fault: str) -> str:
    """One sentence that says which plug-in of which package it is about, and what to do."""
    package = "a package" if entry.dist is None else f"the package {entry.dist.name!r}"
    remedy = "" if entry.dist is None else f"; mend it, or `pip uninstall {entry.dist.name}`"
    return f"plug-in {entry.name!r} ({entry.value}) of {package} {fault}{remedy}"
