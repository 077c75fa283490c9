"""Validation of a recipe's mapping: each fault with its dotted key, the nearest known one, and what to write instead."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from sltt_bench import data, models
from sltt_bench.common.errors import nearest, shortened, shortened_text
from sltt_bench.common.plugins import PluginFailed
from sltt_bench.common.yaml_text import YAMLFault, parse_yaml
from sltt_bench.planning.recipe_faults import MISSING, Fault
from sltt_bench.planning.recipe_fields import Recipe, section_of

NAMED: dict[str, Callable[[str], type[BaseModel]]] = {
    "data": data.source_type,
    "model": models.options_type,
}
"""The sections whose fields depend on what they name."""


def validated(
    raw: Mapping[str, Any],
    known: Iterable[Fault],
    further: Callable[[Recipe], Iterable[Fault]] = lambda recipe: (),
) -> tuple[Recipe | None, list[Fault]]:
    """The recipe, or None and all that is wrong with it, beside the faults that are `known`; `further` are those of one
    whose fields are valid.
    """
    values, faults = dict(raw), [*known]
    for section, options_type in NAMED.items():
        if section in values:
            values[section], more = validate_options(section, values[section], options_type)
            faults += more
    broken = [section for section in NAMED if values.get(section, 0) is None]
    recipe = None
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        faults += faults_of(error, Recipe, apart_from=broken)
    else:
        faults += further(recipe)
    faulty = {fault.key for fault in faults}
    told = [fault for fault in faults if section_of(fault.key) not in faulty - {fault.key}]
    return None if faults else recipe, list(dict.fromkeys(told))


def validate_options(section: str, value: Any, options_type: Any) -> tuple[Any, list[Fault]]:
    """The options of a section of NAMED, or None and all that is wrong with them."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        example = f": {{name: {shortened_text(value, 80)}}}" if isinstance(value, str) else ""
        return None, [Fault(section, f"must be a mapping with a `name`{example}")]
    try:
        kind = options_type(value["name"])
    except (PluginFailed, ValueError) as error:
        return None, [Fault(f"{section}.name", str(error))]
    try:
        return kind.model_validate(value), []
    except ValidationError as error:
        return None, list(faults_of(error, kind, section))


def faults_of(
    error: ValidationError, kind: type[BaseModel], section: str = "", apart_from: Sequence[str] = ()
) -> Iterator[Fault]:
    """Each fault: the dotted key, what is wrong, and the nearest known key or the choices. `section`: what `kind` validates."""
    for detail in error.errors():
        location = detail["loc"]
        if location and location[0] in apart_from:
            continue
        key = shortened_text(".".join(map(str, (*filter(None, [section]), *location))), 80)
        if detail["type"] == "extra_forbidden":
            known = _fields_at(kind, location[:-1])
            name = str(location[-1])
            text = (
                f"unknown key{elsewhere(name, key) or nearest(name, known)}; known here: {', '.join(known)}"
            )
        elif detail["type"] == "missing":
            text = MISSING
        elif detail["type"] == "value_error":
            text = str(detail["ctx"]["error"])
        else:
            wanted = _WANTED.get(detail["type"], detail["msg"])
            text = (
                f"{wanted}, but it is {shortened(detail['input'])}{_remedy(detail['input'], detail['type'])}"
            )
        yield Fault(key, text)


_WANTED = {
    "model_type": "must be a mapping of keys to values",
    "dict_type": "must be a mapping of keys to values",
    "list_type": "must be a list, in brackets: [a, b]",
    "too_short": "must not be empty",
    "int_parsing_size": "must be a smaller number",
}
"""Type of pydantic's fault → what it says in the words of YAML."""


def elsewhere(name: str, key: str) -> str:
    """' (did you mean …?)' where a field of recipes has this name in another place than at the dotted key, or is at the
    place that the name itself says with dots; else ''."""
    if (dotted := re.sub("[:/]", ".", name)) != name and _places().get(dotted.rpartition(".")[2]) == dotted:
        return f" (did you mean {dotted!r}?)"
    section, _, last = name.rpartition(".")
    place = _places().get(last, "")
    if section:
        return f" (did you mean {last!r} within the section {section!r}?)" if place == name else ""
    return f" (did you mean {place!r}?)" if place not in ("", key) else ""


def place_of(name: str) -> str | None:
    """The dotted place in recipes of a field of this name; of several the first; None: there is none."""
    return _places().get(name)


@cache
def _places() -> dict[str, str]:
    """Name of a field → its dotted place in recipes; of several the first."""
    kinds: list[tuple[str, type[BaseModel]]] = [("", Recipe)]
    for section, field in Recipe.model_fields.items():
        candidates = (
            () if get_origin(field.annotation) is list else (field.annotation, *get_args(field.annotation))
        )
        kinds += [(f"{section}.", c) for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
    kinds += [("model.", options) for options, _ in models.MODELS.values()]
    places: dict[str, str] = {}
    for prefix, kind in kinds:
        for name in kind.model_fields:
            places.setdefault(name, f"{prefix}{name}")
    return places


def _remedy(value: Any, kind: str) -> str:
    """What to write instead of text that was meant as something else. `kind`: pydantic's type of the fault."""
    if isinstance(value, str) and value.lower() in ("on", "off", "yes", "no", "y", "n"):
        return "; YAML 1.2 writes true and false"
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d[\d_]*(\.[\d_]*)?", value) and "_" in value:
        return f"; YAML 1.2 has no underscores in numbers: write {value.replace('_', '')}"
    if isinstance(value, str) and re.fullmatch(r"[a-z_.]+=.*", value):
        return "; another field has a --set of its own"
    if isinstance(value, str) and re.search("[“”„‘’«»]", value):
        return "; text is quoted with plain quotes"
    if isinstance(value, str) and kind.endswith("_type"):
        with suppress(YAMLFault):
            if not isinstance(parse_yaml(value), str | None):
                return "; in quotes it is text: leave the quotes out"
    return ""


def _fields_at(kind: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    for part in location:
        if isinstance(part, int):
            continue
        annotation = kind.model_fields[part].annotation
        candidates = (annotation, *get_args(annotation))
        kind = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), kind)
    return list(kind.model_fields)
