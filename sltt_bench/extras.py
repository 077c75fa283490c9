"""Packages that a few functions need and an installation may lack: the extras of pyproject.toml."""

from importlib import import_module
from typing import Any

from sltt_bench.errors import UserError


def load_extra(module: str, extra: str, purpose: str, error: type[UserError]) -> Any:
    """The module. Raises `error`, which names the remedy, where it is not there or cannot be loaded."""
    try:
        return import_module(module)
    except Exception as fault:  # a package made for another torch raises what it likes
        package = module.partition(".")[0]
        raise error(
            f"{purpose} needs the package {package} ({fault}): pip install 'sltt-bench[{extra}]'"
        ) from None
