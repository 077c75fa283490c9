"""Loads packages that only a few functions need, the extras of pyproject.toml."""

from importlib import import_module
from typing import Any

from sltt_bench.common.errors import UserError


def load_extra(module: str, extra: str, purpose: str, error: type[UserError]) -> Any:
    """Returns the module. Raises `error`, which names the remedy, if it is missing or cannot be loaded."""
    try:
        return import_module(module)
    except Exception as fault:  # a package for another version of torch may raise anything
        package = module.partition(".")[0]
        raise error(
            f"{purpose} needs the package {package} ({fault}): pip install 'sltt-bench[{extra}]'"
        ) from None
