"""Loads plug-ins, which other packages add through entry points, and reports those that cannot be loaded.

The groups are `sltt_bench.methods`, `.models`, `.data` and `.backends`. Names are known without loading
anything; what is shipped here neither waits for nor fails with the plug-ins of others.
"""

import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from functools import cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import Any

from sltt_bench.common.errors import UserError
from sltt_bench.common.source_digest import source_of_module, source_sha256


class PluginFailed(UserError, ValueError):
    """A plug-in cannot be loaded; the message names it, its package and the remedy."""


def plugins(group: str, shipped: Iterable[str] = ()) -> list[EntryPoint]:
    """Returns the entries of a group, sorted by name, each name once; `shipped` names cannot be replaced."""
    entries = {entry.name: entry for entry in reversed(list(_installed(group, tuple(sys.path))))}
    return [entries[name] for name in sorted(set(entries) - set(shipped))]


@cache
def _installed(group: str, path: tuple[str, ...]) -> EntryPoints:
    """Returns a group's entries from all packages on `path`.

    Cached, since searching a few hundred packages takes longer than most commands.
    """
    return entry_points(group=f"sltt_bench.{group}")


def find_plugin(group: str, name: str, *, must_have: Iterable[str] = ()) -> Any | None:
    """Returns the object of this name, or None. Raises PluginFailed, also if it lacks an attribute."""
    for entry in plugins(group):
        if entry.name == name:
            thing = load_plugin(entry)
            if missing := [attribute for attribute in must_have if not hasattr(thing, attribute)]:
                raise PluginFailed(fault_of(entry, f"has no {' and no '.join(missing)}"))
            return thing
    return None


def load_plugin(entry: EntryPoint) -> Any:
    """Returns the object of an entry; output of its import goes to standard error. Raises PluginFailed."""
    before = _shared_by_all() or dict(_AS_TORCH_STARTS)
    try:
        with redirect_stdout(sys.stderr):
            thing = entry.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # foreign code may even call sys.exit
        what = " ".join(f"{type(error).__name__}: {error}".split())[:300].rstrip(" :")
        raise PluginFailed(fault_of(entry, f"cannot be loaded ({what})")) from error
    after = _shared_by_all()
    if changed := [name for name in after if name in before and after[name] != before[name]]:
        fault = f"changes {' and '.join(changed)} when it is imported, and so what every other method is measured with"
        raise PluginFailed(fault_of(entry, fault))
    _loaded.setdefault(f"{entry.group.rpartition('.')[2]} {entry.name}", _made_of(entry))
    return thing


def loaded_plugins() -> dict[str, dict[str, str | None]]:
    """Returns the plug-ins that this process has loaded: "methods NAME" → package, version, source_sha256.

    All are as of the time of loading; what cannot be determined is None.
    """
    return dict(_loaded)


_loaded: dict[str, dict[str, str | None]] = {}


def _made_of(entry: EntryPoint) -> dict[str, str | None]:
    code = source_of_module(entry.module)
    try:
        digest = None if code is None else source_sha256(code)
    except OSError:
        digest = None
    package, version = (None, None) if entry.dist is None else (entry.dist.name, entry.dist.version)
    return {"package": package, "version": version, "source_sha256": digest}


_AS_TORCH_STARTS = {
    "torch's default dtype": "torch.float32",
    "whether torch records gradients": True,
    "whether torch's algorithms are deterministic": False,
    "the precision of torch's matrix products": "highest",
}


def _shared_by_all() -> dict[str, Any]:
    """Returns the global settings with which this process computes; none while torch is not loaded."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    return {
        "torch's default dtype": str(torch.get_default_dtype()),
        "torch's default device": str(torch.get_default_device()),
        "torch's number of threads": torch.get_num_threads(),
        "whether torch records gradients": torch.is_grad_enabled(),
        "whether torch's algorithms are deterministic": torch.are_deterministic_algorithms_enabled(),
        "the precision of torch's matrix products": torch.get_float32_matmul_precision(),
    }


def fault_of(entry: EntryPoint, fault: str) -> str:
    """Returns one sentence that names the plug-in, its package, the fault and the remedy."""
    package = "a package" if entry.dist is None else f"the package {entry.dist.name!r}"
    remedy = "" if entry.dist is None else f"; mend it, or `pip uninstall {entry.dist.name}`"
    return f"plug-in {entry.name!r} ({entry.value}) of {package} {fault}{remedy}"
