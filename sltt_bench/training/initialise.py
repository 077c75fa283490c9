"""Loads initial weights from a checkpoint of this tool or one that the paper's authors published.

Three layouts are read, always as weights and plain values, never as arbitrary pickles:

    {"model": state_dict, ...}     a checkpoint of this tool
    {"net": state_dict, ...}       a checkpoint of the paper's published code
    state_dict                     weights alone, as `torch.save(network.state_dict(), path)` writes them
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from sltt_bench.common.tensor_files import load_tensors

Layout = Literal["sltt-bench checkpoint", "published checkpoint", "state dict"]

_LAYOUT_OF_KEY: dict[str, Layout] = {"model": "sltt-bench checkpoint", "net": "published checkpoint"}
_PARALLEL_PREFIX = "module."
"""The prefix that nn.DataParallel and DistributedDataParallel add to every name."""
_MOST_SHOWN = 8
"""Mismatches that an error lists."""
_REFUSED = re.compile(r"GLOBAL (\S+) (?:was not|whose module)")
"""Finds the function or class that torch's weights-only unpickler refuses to call."""


class InitError(Exception):
    """The weights cannot be used; the message names the file, what is wrong with it and the remedy."""


@dataclass(frozen=True)
class InitReport:
    """Where a network's initial weights came from."""

    layout: Layout
    sha256: str
    """Of the file."""
    tensors: int
    """Number of parameters and buffers loaded: all that the network has."""


def load_initial_weights(network: nn.Module, path: Path) -> InitReport:
    """Copy the weights of the checkpoint at `path` into `network`, on any device.

    All names and shapes must be the network's own. Raises InitError, and then leaves the network as it was.
    """
    layout, weights = read_weights(path)
    check_weights(network, weights, path)
    network.load_state_dict(weights)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return InitReport(layout, sha256, len(weights))


def read_weights(path: Path) -> tuple[Layout, dict[str, Tensor]]:
    """Returns the weights of the checkpoint at `path` by name, on the CPU, and how it holds them. Raises InitError."""
    layout, weights = _state_dict(_read(path), path)
    if all(name.startswith(_PARALLEL_PREFIX) for name in weights):
        weights = {name.removeprefix(_PARALLEL_PREFIX): tensor for name, tensor in weights.items()}
    return layout, weights


def check_weights(network: nn.Module, weights: Mapping[str, Tensor], source: object) -> None:
    """Raises InitError unless the names and shapes of weights, from `source` as errors name it, are the network's."""
    if faults := _mismatches(network.state_dict(), weights):
        shown = [
            *faults[:_MOST_SHOWN],
            *([f"and {more} more"] if (more := len(faults) - _MOST_SHOWN) > 0 else []),
        ]
        raise InitError(
            f"{source}: these weights are not of this network ({len(faults)} mismatches); choose the model, "
            "its width and the data that they were trained with, or start from random weights (`run --init random`)\n  "
            + "\n  ".join(shown)
        )


def _read(path: Path) -> Any:
    try:
        return load_tensors(path)
    except FileNotFoundError:
        raise InitError(
            f"{path}: no such file; give --init the path of a checkpoint, or --init random"
        ) from None
    except Exception as error:  # the errors of a damaged file are not specified; all mean the same
        if refused := _REFUSED.search(str(error)):
            raise InitError(
                f"{path}: refused, since it holds more than weights and plain values ({refused[1]}), and "
                "loading such a file can run code; if you trust its source, load it yourself and save "
                "the weights alone with torch.save(network.state_dict(), path)"
            ) from None
        reason = f"{type(error).__name__}: {str(error).split('. ')[0]}"
        raise InitError(
            f"{path}: not a readable checkpoint ({reason}); it may be cut short or not written by "
            "torch.save: fetch or save it anew"
        ) from None


def _state_dict(content: Any, path: Path) -> tuple[Layout, dict[str, Tensor]]:
    if isinstance(content, Mapping):
        for key, layout in _LAYOUT_OF_KEY.items():
            if _is_state_dict(content.get(key)):
                return layout, dict(content[key])
        if _is_state_dict(content):
            return "state dict", dict(content)
        kind = "a mapping with the keys " + ", ".join(repr(key) for key in content)
    else:
        kind = f"a {type(content).__name__}"
    raise InitError(
        f"{path}: holds no weights where they are looked for: it is {kind}, but neither a state dict nor "
        'a mapping with one under "model" or "net"; save the state dict alone with torch.save'
    )


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


def _mismatches(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Returns one line for each name that is missing, superfluous, or of another shape."""
    missing = [name for name in wanted if name not in given]
    not_wanted = [name for name in given if name not in wanted]
    misshapen = [name for name in wanted if name in given and wanted[name].shape != given[name].shape]
    faults = []
    for name in (*missing, *not_wanted, *misshapen):
        found = f"{tuple(given[name].shape)} in the file" if name in given else "missing from the file"
        own = tuple(wanted[name].shape) if name in wanted else "no such name"
        faults.append(f"{name}: {found}; the network has {own}")
    return faults
