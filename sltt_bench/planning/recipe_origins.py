"""Finds where a faulty value of a recipe comes from: a file, its `smoke` section, or an option of the command line."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


class Fault(NamedTuple):
    """One thing that is wrong with a recipe."""

    key: str
    """Dotted key of the field or section that has the fault; "" if it is the recipe as a whole."""
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}" if self.key else self.text


@dataclass(frozen=True)
class Layer:
    """Fields that one source sets. They override those of the files and of the layers below."""

    values: Mapping[str, Any]
    """Dotted key → value."""
    origins: Mapping[str, str]
    """Dotted key → the place where it is set, as errors name it."""
    place: str = ""
    """The place of the layer as a whole, if it has one."""


def origin_of(key: str, origins: Mapping[str, str]) -> str | None:
    """Returns the origin of a dotted key; failing that, of a section around it, or of all keys within it; else None."""
    parts = key.split(".")
    holders = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    if (holder := next((holder for holder in holders if holder in origins), None)) is not None:
        return origins[holder]
    within = [origin for each, origin in origins.items() if each.startswith(f"{key}.")]
    return ", ".join(within) or None


def blamed_on_files(fault: Fault, files: Iterable[tuple[Path, Mapping[str, Any]]]) -> str:
    """Returns the fault, prefixed by the file that has the value.

    `files`: each file with its own mapping; a file stands before the one that it extends.
    """
    section, *_ = parts = fault.key.split(".")
    name: Any = None
    blamed, deepest = None, -1
    for path, raw in files:
        place = raw.get(section)
        own_name = place.get("name") if isinstance(place, dict) else None
        if None not in (name, own_name) and name != own_name:
            break  # a file about another data set or network, which this recipe replaces
        name = name or own_name
        if (depth := _depth(raw, parts)) > deepest:
            blamed, deepest = path, depth
    return f"{blamed}: {fault}"


def _depth(raw: Mapping[str, Any], parts: Sequence[str]) -> int:
    """Returns how many parts of a dotted key exist in a file's mapping; all, where it is written there with its dots."""
    if ".".join(parts) in raw:
        return len(parts)
    place: Any = raw
    for depth, part in enumerate(parts):
        if not isinstance(place, dict) or part not in place:
            return depth
        place = place[part]
    return len(parts)


def blamed_on_settings(fault: Fault, layers: Sequence[Layer]) -> str | None:
    """Returns the fault, prefixed by the setting of this field or of a section around it; None if there is no such setting."""
    for layer in reversed(layers):
        for key in reversed([*layer.values]):
            if fault.key == key:
                return f"{layer.origins[key]}: {fault.text}"
            if fault.key.startswith(f"{key}."):
                return f"{layer.origins[key]}: {fault}"
    return None


def blamed_on_layer(fault: Fault, layer: Layer) -> str:
    """Returns a fault that this layer causes, prefixed by the layer's settings that it is about."""
    shared = {key: _parts_shared(key, fault.key) for key in layer.values}
    nearest = [key for key in shared if shared[key] == max(shared.values())]
    mentioned = [key for key in nearest if re.search(rf"\b{re.escape(key.rpartition('.')[2])}\b", fault.text)]
    if layer.place and not mentioned:
        return f"{layer.place}: {fault}"
    return f"{', '.join(layer.origins[key] for key in mentioned or nearest)}: {fault}"


def _parts_shared(one: str, other: str) -> int:
    """Returns how many leading parts two dotted keys have in common."""
    pairs = zip(one.split("."), other.split("."), strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(one.count("."), other.count(".")) + 1)
