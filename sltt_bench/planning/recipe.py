"""A recipe as it resolves: its files, `smoke` and overrides laid one over the other, with every fault at once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sltt_bench.common.errors import nearest, shortened_text
from sltt_bench.data.source import DataSource
from sltt_bench.planning.recipe_consistency import inconsistencies
from sltt_bench.planning.recipe_faults import (
    Fault,
    Files,
    Layer,
    RecipeError,
    blamed,
    blamed_on_layer,
    blamed_on_settings,
)
from sltt_bench.planning.recipe_fields import Recipe
from sltt_bench.planning.recipe_files import (
    are_other_data,
    beside,
    find_recipe,
    read_extended,
    recipe_names,
    study_names,
)
from sltt_bench.planning.recipe_validation import NAMED, validate_options, validated
from sltt_bench.planning.studies import FOLDER as STUDIES
from sltt_bench.results.schema import PROVENANCE_FILE, RECIPE_FILE


def load_recipe(
    name_or_path: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    smoke: bool = False,
    chosen_methods: list[str] | None = None,
    any_k: bool = False,
    origins: Mapping[str, str] | None = None,
) -> Recipe:
    """The recipe with its smoke overrides (if asked) and then `overrides` (dotted key → value).

    `chosen_methods` takes the place of the recipe's own `methods`; with `any_k` one of them may have
    a K that exceeds T. `origins`: dotted key of what is overridden → how errors name the place where it is, if not
    --set and the key, or --method. Raises RecipeError with every fault at once, each with the file or option that it comes
    from.
    """
    reading = _read(find_recipe(name_or_path))
    chosen = {**(overrides or {}), **({"methods": chosen_methods} if chosen_methods else {})}
    named = {key: f"--set {shortened_text(key, 80)}" for key in overrides or ()}
    if chosen_methods:
        named["methods"] = "--method"
    override = Layer(chosen, {**named, **(origins or {})})
    place = None
    if "smoke" in chosen:  # it takes the place of the file's before that is applied
        reading = replace(reading, raw={**reading.raw, "smoke": chosen["smoke"]})
        place = override.origins["smoke"]
    smoke_layer = None
    if isinstance(reading.raw.get("smoke"), dict):  # anything else is a fault that validation names
        smoke_layer = _smoke_layer(reading, place)
    layers = [smoke_layer, override] if smoke and smoke_layer is not None else [override]
    recipe, faults = reading.resolved(layers, any_k=any_k)
    if recipe is None:
        lines = blamed(faults, reading.files, layers, lambda fewer: reading.resolved(fewer, any_k=any_k)[1])
        if _is_record(reading.path) and reading.resolved([], any_k=True)[0] is None:
            lines = [*lines, _of_a_record(reading)]
        raise RecipeError(str(reading.path), [str(fault) for fault in faults], lines)
    if not smoke and smoke_layer is not None and reading.path.name != RECIPE_FILE:
        _check_smoke(reading, smoke_layer, [] if place is None else [override])
    return recipe


@dataclass(frozen=True)
class _Reading:
    """The files of a recipe, and how they resolve."""

    path: Path
    files: Files
    raw: Mapping[str, Any]
    """What all files say together."""

    def resolved(self, layers: Sequence[Layer], *, any_k: bool) -> tuple[Recipe | None, list[Fault]]:
        """The recipe under some layers, the lowest first, or None and all that is wrong with it."""
        values, misplaced = _laid_over(self.raw, layers)
        is_set = any("target" in layer.values for layer in layers)
        if not is_set and are_other_data(values.get("data"), self.raw.get("data")):
            values.pop("target", None)
        named = {section: own.get("name") for section, own in self.raw.items() if isinstance(own, dict)}
        further = partial(inconsistencies, any_k=any_k, named=named, of_task=self._of_task)
        return validated(values, misplaced, further)

    def _of_task(self, name: str) -> Recipe:
        return load_recipe(beside(self.path, name), any_k=True)


def _is_record(path: Path) -> bool:
    """Whether a command wrote it as its run's own; somebody's own recipe may have that name too."""
    return path.name == RECIPE_FILE and path.with_name(PROVENANCE_FILE).exists()


def _of_a_record(reading: _Reading) -> str:
    """What to do about a run's own recipe with faults that the version which wrote it did not see."""
    name = reading.raw["name"]
    today = f", or run {name} as it is today" if name in (*recipe_names(), *study_names()) else ""
    return f"{reading.path}: is a run's record; mend a copy of it (claims change nothing that runs){today}"


def _read(path: Path) -> _Reading:
    """Raises RecipeError."""
    raw, files = read_extended(path)
    is_study = path.resolve().parent.name == STUDIES
    return _Reading(path, files, {"name": f"{STUDIES}/{path.stem}" if is_study else path.stem, **raw})


def _check_smoke(reading: _Reading, smoke: Layer, overrides: Sequence[Layer]) -> None:
    """Raises RecipeError for what is wrong with `smoke`: who reads a recipe is told of it, and not first who runs it with --smoke.

    `overrides`: those that say it, which it must fit; none, where a file does. Of another recipe's `smoke`, which nobody wrote
    for this one, only what is wrong with a key by itself: what it rules out together with other fields, --smoke tells.
    """
    is_own = bool(overrides) or "smoke" in reading.files[0][1]
    # The points of a grid, and of a study, may have another T or other methods.
    any_k = bool(overrides) or reading.raw.get("study") is not None

    def faults_with(*smokes: Layer) -> list[Fault]:
        recipe, faults = reading.resolved([*smokes, *overrides], any_k=any_k)
        batch_fault = None if recipe is None else recipe.batch_fault(synthetic=False)
        return faults if batch_fault is None else [Fault("", batch_fault)]

    without = faults_with()
    lines = {
        fault: blamed_on_settings(fault, [smoke])
        or (blamed_on_layer(fault, smoke, faults_with) if is_own else None)
        for fault in faults_with(smoke)
        if fault not in without
    }
    if told := {fault: line for fault, line in lines.items() if line is not None}:
        raise RecipeError(smoke.place, [str(fault) for fault in told], [*told.values()])


def smoke_left_out(name_or_path: str) -> str | None:
    """What --smoke leaves out, since the recipe that another one extends says it of its own data or network; None: nothing.

    Raises RecipeError.
    """
    reading = _read(find_recipe(name_or_path))
    smoke = reading.raw.get("smoke")
    if not isinstance(smoke, dict) or not (foreign := _smoke_of_others(reading)):
        return None
    base = next(file.stem for file, own in reading.files if "smoke" in own)
    what = ", ".join(f"{key}={smoke[key]}" for key in foreign)
    others = dict.fromkeys("another network" if key.startswith("model.") else "other data" for key in foreign)
    return (
        f"--smoke leaves out {what}, which {base} says of {' and '.join(others)}; "
        "what makes this recipe small is for a `smoke` of its own"
    )


def recipe_from_dict(values: Mapping[str, Any]) -> Recipe:
    """A resolved recipe read back from JSON. Raises RecipeError.

    What its methods and claims may be was asked when it was resolved, by the version that did, where all its plug-ins were.
    """
    recipe, faults = validated(values, [])
    if recipe is None:
        raise RecipeError(str(values.get("name", "recipe")), [str(fault) for fault in faults])
    return recipe


def _smoke_layer(reading: _Reading, place: str | None) -> Layer:
    """What `smoke` sets, but for what is of other data or another network. `place`: the option that says it, if one does."""
    foreign = _smoke_of_others(reading) if place is None else []
    place = place or f"{next(str(file) for file, own in reading.files if 'smoke' in own)}: smoke"
    values = {key: value for key, value in reading.raw["smoke"].items() if key not in foreign}
    return Layer(values, {key: f"{place}.{shortened_text(key, 80)}" for key in values}, place)


def _smoke_of_others(reading: _Reading) -> list[str]:
    """What `smoke` sets and those data or that network cannot have that a file chose above the one that has the section."""
    raw, files = reading.raw, [own for _, own in reading.files]
    below = next(number for number, own in enumerate(files) if "smoke" in own)
    left_out = []
    for section, options_type in NAMED.items():
        before, name = (_name_in(section, files[start:]) for start in (below, 0))
        if None in (before, name) or before == name:
            continue
        options, faults = validate_options(section, raw[section], options_type)
        if faults:  # which are named without it
            left_out += [key for key in raw["smoke"] if key.startswith(f"{section}.")]
            continue
        known = type(options).model_fields
        keys = {key: key.split(".")[1] for key in raw["smoke"] if key.startswith(f"{section}.")}
        left_out += [key for key, field in keys.items() if field not in known]
        is_shaped = any(field in known and field not in DataSource.model_fields for field in keys.values())
        if section == "data" and options.temporal and not is_shaped:
            left_out += [key for key in raw["smoke"] if key in ("timesteps", "loss.window")]
    return left_out


def _name_in(section: str, files: Iterable[Mapping[str, Any]]) -> str | None:
    """The name that the first file has that gives one in a section."""
    sections = (own.get(section) for own in files)
    return next((own["name"] for own in sections if isinstance(own, dict) and "name" in own), None)


def _laid_over(raw: Mapping[str, Any], layers: Iterable[Layer]) -> tuple[dict[str, Any], list[Fault]]:
    """The mapping with what the layers set, and why some of that has no place; `raw` stays as it is."""
    result = dict(raw)
    fault_texts = [
        (key, _apply(result, key, value)) for layer in layers for key, value in layer.values.items()
    ]
    return result, [Fault(key, text) for key, text in fault_texts if text is not None]


def _apply(raw: dict[str, Any], dotted: str, value: Any) -> str | None:
    """Set a dotted key in place; returns why it cannot be. Unknown last keys are left to the validation."""
    if dotted == "name":
        return "a recipe's name is that of its file; `sltt-bench init NAME` makes one"
    if dotted == "extends":
        return "which recipe another one extends stands in its file; `sltt-bench init NAME` makes one"
    *parents, last = dotted.split(".")
    if parents[:2] == ["tuning", "grid"]:  # its keys are dotted names themselves
        parents, last = parents[:2], dotted.removeprefix("tuning.grid.")
    place: Any = raw
    for depth, parent in enumerate(parents):
        if parent not in place and (
            parent in Recipe.model_fields if depth == 0 else parents == ["tuning", "grid"]
        ):
            place[parent] = {}
        if not isinstance(place, dict) or not isinstance(place.get(parent), dict):
            known = [key for key, below in place.items() if isinstance(below, dict)]
            return f"there is no section {parent!r}{nearest(parent, known)}"
        place[parent] = dict(place[parent])
        place = place[parent]
    place[last] = value
    return None
