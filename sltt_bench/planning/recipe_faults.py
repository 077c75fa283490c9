"""Faults of a recipe, and where each comes from: a file, its `smoke` section, or an option of the command line."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from sltt_bench.common.errors import UserError, shortened_text
from sltt_bench.common.format import counted

_MAX_FAULTS = 25


class RecipeError(UserError, ValueError):
    """A recipe or an override is faulty; `faults` has one line for each fault."""

    def __init__(self, where: str, faults: list[str], lines: Sequence[str] = ()) -> None:
        """`lines`: each fault behind the place of its own that it comes from; without them, `where` is that of all."""
        where = shortened_text(where, 300)
        shown = [*(lines or (f"{where}: {fault}" for fault in faults))][:_MAX_FAULTS]
        if len(faults) > len(shown):
            shown.append(f"{where}: and {counted(len(faults) - len(shown), 'more fault')}")
        super().__init__("\n".join(shown))
        self.faults = faults


MISSING = "is missing and has no default"


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

    def without(self, key: str) -> "Layer":
        """Returns the layer without one of its settings."""
        return replace(self, values={other: value for other, value in self.values.items() if other != key})


Files = Sequence[tuple[Path, Mapping[str, Any]]]
"""Each file of a recipe with its own mapping; a file stands before the one that it extends."""


def origin_of(key: str, origins: Mapping[str, str]) -> str | None:
    """Returns the origin of a dotted key; failing that, of a section around it, or of all keys within it; else None."""
    if (holder := next((holder for holder in holders(key) if holder in origins), None)) is not None:
        return origins[holder]
    within = [origin for each, origin in origins.items() if each.startswith(f"{key}.")]
    return ", ".join(within) or None


def holders(key: str) -> Iterator[str]:
    """Yields a dotted key, then the sections around it, the innermost first."""
    parts = key.split(".")
    yield from (".".join(parts[:length]) for length in range(len(parts), 0, -1))


def blamed_on_files(fault: Fault, files: Files) -> str:
    """Returns the fault, prefixed by the file that has the value."""
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
        for key in holders(fault.key):
            if key not in layer.values:
                continue
            if fault.text == MISSING:
                return f"{layer.origins[key]}: {fault}; all of {key} is set here: one field is {key}.NAME"
            return f"{layer.origins[key]}: {fault.text if key == fault.key else fault}"
    return None


def blamed_on_layer(fault: Fault, layer: Layer, faults_with: Callable[[Layer], Collection[Fault]]) -> str:
    """Returns a fault that this layer brings, prefixed by those of its settings without which it is gone.

    `faults_with`: all that is wrong with another layer in the place of this one.
    """
    others = {key: {*faults_with(layer.without(key))} for key in layer.values}
    gone = [key for key in others if fault not in others[key]]
    # Without a field that another one needs, the fault may only be hidden by that one's.
    causes = [key for key in gone if others[key] <= {*faults_with(layer)}] or gone
    if layer.place and not causes:
        return f"{layer.place}: {fault}"
    line = f"{', '.join(layer.origins[key] for key in causes or layer.values)}: {fault}"
    section, _, field = causes[0].partition(".") if len(causes) == 1 else ("", "", "")
    if field == "name" and fault.key.startswith(f"{section}."):
        line += f"; set all of the section instead: {section}={{name: {layer.values[causes[0]]}}}"
    return line


def blamed(
    faults: Sequence[Fault],
    files: Files,
    layers: Sequence[Layer],
    faults_under: Callable[[Sequence[Layer]], Collection[Fault]],
) -> list[str]:
    """Returns the faults, each prefixed by where it comes from, as many as a RecipeError shows.

    `faults_under`: all that is wrong with the files under some layers.
    """
    before = [{*faults_under(layers[:number])} for number in range(len(layers))]

    def line(fault: Fault) -> str:
        if (of_setting := blamed_on_settings(fault, layers)) is not None:
            return of_setting
        if fault in before[0]:
            return blamed_on_files(fault, files)
        first = next((number for number, known in enumerate(before[1:]) if fault in known), len(layers) - 1)
        return blamed_on_layer(fault, layers[first], lambda varied: faults_under([*layers[:first], varied]))

    return [line(fault) for fault in faults[:_MAX_FAULTS]]
