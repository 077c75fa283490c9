"""Recipes: finding them by name or path, `extends:`, overrides, and every fault at once."""

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from sltt_bench import data, methods, models
from sltt_bench.common.errors import UserError, nearest, shortened, shortened_text
from sltt_bench.common.format import counted
from sltt_bench.common.plugins import PluginFailed
from sltt_bench.common.strict import held_by_another
from sltt_bench.common.yaml_text import YAMLFault, parse_yaml, read_yaml
from sltt_bench.data.source import DataSource
from sltt_bench.planning.recipe_fields import (
    MAX_GRID_POINTS,
    NOT_DECISIVE,
    OF_ONE_EXPERIMENT,
    Recipe,
    section_of,
)
from sltt_bench.planning.recipe_origins import (
    Fault,
    Layer,
    blamed_on_files,
    blamed_on_layer,
    blamed_on_settings,
)
from sltt_bench.planning.studies import FOLDER as STUDIES
from sltt_bench.planning.studies import PANEL_WORDS, TASK
from sltt_bench.results.schema import RECIPE_FILE

_MAX_FAULTS = 25
_MAX_EXTENDS = 16


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


# Finding ----------------------------------------------------------------------------------------


def recipe_folder() -> Path:
    """Where the shipped recipes are: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def recipe_names() -> list[str]:
    """The names of all shipped recipes; files that start with an underscore are bases to extend."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml") if not path.stem.startswith("_"))


def study_names() -> list[str]:
    """The names of all shipped studies, as `run` takes them."""
    return sorted(f"{STUDIES}/{path.stem}" for path in (recipe_folder() / STUDIES).glob("[!_]*.yaml"))


def find_recipe(name_or_path: str) -> Path:
    """The file of a shipped recipe's or study's name, or the given path. Raises RecipeError."""
    of_study = name_or_path.startswith(f"{STUDIES}/")
    if name_or_path.endswith((".yaml", ".yml")) or ("/" in name_or_path and not of_study):
        path = Path(name_or_path)
        if _is_file(path):
            return path
        if _is_folder(path):
            raise RecipeError(name_or_path, ["no such file: it is a folder; give a recipe's file"])
        hint = ""
        if path.stem in recipe_names():
            hint = f" (the shipped recipe is called {path.stem}, without folder and ending)"
        else:
            with suppress(OSError, ValueError):  # where it cannot even be a path
                hint = nearest(path.name, [file.name for file in path.parent.glob("*.y*ml")])
        fault = f"no such file{hint}; `sltt-bench list recipes` shows the names"
        raise RecipeError(name_or_path, [fault])
    path = recipe_folder() / f"{name_or_path}.yaml"
    names = study_names() if of_study else recipe_names()
    if name_or_path in names or (not of_study and _is_file(path)):
        return path
    with suppress(methods.UnknownMethod):
        methods.promises(name_or_path)
        raise RecipeError(name_or_path, [f"is a method: `sltt-bench run RECIPE --method {name_or_path}`"])
    what, all_of_them = ("study", "studies") if of_study else ("recipe", "recipes")
    ending = ", and a recipe's file ends with .yaml" if _is_file(Path(name_or_path)) else ""
    hint = nearest(name_or_path, names)
    if _is_file(Path(f"{name_or_path}.yaml")):
        hint, ending = "", f", but a file has: give it with its ending, {name_or_path}.yaml"
    if "," in name_or_path:
        hint, ending = "", "; several are given with spaces between them"
    fault = f"no {what} has this name{hint}{ending}; `sltt-bench list {all_of_them}` shows all"
    raise RecipeError(name_or_path, [fault])


def namesake(name_or_path: str) -> str | None:
    """That a shipped recipe is meant where a file at hand is called like it, in words; None where none is."""
    file = Path(f"{name_or_path}.yaml")
    if not _is_file(file) or file.resolve() == find_recipe(name_or_path).resolve():
        return None
    return f"{name_or_path} is the shipped recipe; the file {file} is given with its ending"


def beside(file: Path, name: str) -> str:
    """The recipe of this name beside the file that names it; if there is none other than this file, the shipped one."""
    other = file.parent / f"{name}.yaml"
    return str(other) if _is_file(other) and other.resolve() != file.resolve() else name


def _is_file(path: Path) -> bool:
    """Also for a path that no file system takes: too long, or with a NUL."""
    try:
        return path.is_file()
    except OSError:
        return False


def _is_folder(path: Path) -> bool:
    """As `_is_file`."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


# Reading ----------------------------------------------------------------------------------------


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
    path = find_recipe(name_or_path)
    files: list[tuple[Path, dict[str, Any]]] = []
    raw = _read_extended(path, (), files)
    raw.setdefault("name", f"{STUDIES}/{path.stem}" if path.resolve().parent.name == STUDIES else path.stem)
    kinds = {
        section: raw[section]["name"]
        for section in ("data", "model")
        if isinstance(raw.get(section), dict) and isinstance(raw[section].get("name"), str)
    }
    rest = partial(_further_faults, file=path, kinds=kinds)
    further = partial(rest, any_k=any_k)
    chosen = {**(overrides or {}), **({"methods": chosen_methods} if chosen_methods else {})}
    named = {key: f"--set {shortened_text(key, 80)}" for key in overrides or ()}
    if chosen_methods:
        named["methods"] = "--method"
    layers = [Layer(chosen, {**named, **(origins or {})})]
    place = None
    if "smoke" in chosen:  # it takes the place of the file's before that is applied
        raw, place = {**raw, "smoke": chosen["smoke"]}, layers[0].origins["smoke"]
    smoke_layer = None
    if isinstance(raw.get("smoke"), dict):  # anything else is a fault that validation names
        smoke_layer = _smoke_layer(raw, files, place)
    if smoke and smoke_layer is not None:
        layers.insert(0, smoke_layer)
    values, known = _laid_over(raw, layers)
    if "target" not in chosen and _are_other_data(values.get("data"), raw.get("data")):
        values.pop("target", None)
    recipe, faults = _validated(values, known, further)
    if recipe is None:
        before = [set(_validated(*_laid_over(raw, layers[:n]), further)[1]) for n in range(len(layers))]
        lines = [_blamed(fault, files, layers, before) for fault in faults]
        raise RecipeError(str(path), [str(fault) for fault in faults], lines)
    if not smoke and smoke_layer is not None and path.name != RECIPE_FILE:
        is_own = place is not None or "smoke" in files[0][1]
        # The points of a grid, and of a study, may have another T or other methods.
        further = partial(rest, any_k=place is not None or recipe.study is not None)
        _check_smoke(raw, smoke_layer, layers if place else [], further, is_own=is_own)
    return recipe


def _check_smoke(
    raw: Mapping[str, Any],
    layer: Layer,
    overrides: Sequence[Layer],
    further: Callable[[Recipe], Iterable[Fault]],
    *,
    is_own: bool,
) -> None:
    """Raises RecipeError for what is wrong with `smoke`: who reads a recipe is told of it, and not first who runs it with --smoke.

    `overrides`: what `smoke` must fit; nothing, where it is the file's. Of another recipe's `smoke`, which nobody wrote for this one
    (not `is_own`), only what is wrong with a key by itself: what it rules out together with other fields, --smoke tells.
    """
    without = set(_validated(*_laid_over(raw, overrides), further)[1])
    _, faults = _validated(*_laid_over(raw, [layer, *overrides]), further)
    told = {
        fault: line
        for fault in faults
        if fault not in without
        if (line := blamed_on_settings(fault, [layer]) or (blamed_on_layer(fault, layer) if is_own else None))
    }
    if told:
        raise RecipeError(layer.place, [str(fault) for fault in told], [*told.values()])


def _further_faults(recipe: Recipe, *, any_k: bool, file: Path, kinds: Mapping[str, str]) -> Iterator[Fault]:
    """Of a recipe whose fields are valid. `any_k`: see `load_recipe`; `file`, `kinds`: see `_claim_faults`."""
    yield from _method_faults(recipe, any_k)
    yield from _claim_faults(recipe, file, kinds)
    yield from _smoke_faults(recipe)
    yield from _panel_faults(recipe)


def _blamed(
    fault: Fault,
    files: Iterable[tuple[Path, Mapping[str, Any]]],
    layers: Sequence[Layer],
    before: Sequence[set[Fault]],
) -> str:
    """The fault behind where it comes from. `before`: of each layer, what is wrong without it and those above."""
    if (line := blamed_on_settings(fault, layers)) is not None:
        return line
    if fault in before[0]:
        return blamed_on_files(fault, files)
    return blamed_on_layer(
        fault,
        next(
            layer for layer, without in reversed([*zip(layers, before, strict=True)]) if fault not in without
        ),
    )


def smoke_left_out(name_or_path: str) -> str | None:
    """What --smoke leaves out, since the recipe that another one extends says it of its own data or network; None: nothing.

    Raises RecipeError.
    """
    files: list[tuple[Path, dict[str, Any]]] = []
    raw = _read_extended(find_recipe(name_or_path), (), files)
    if not isinstance(raw.get("smoke"), dict) or not (foreign := _smoke_of_others(raw, files)):
        return None
    base = next(file.stem for file, own in files if "smoke" in own)
    what = ", ".join(f"{key}={raw['smoke'][key]}" for key in foreign)
    others = dict.fromkeys("another network" if key.startswith("model.") else "other data" for key in foreign)
    return (
        f"--smoke leaves out {what}, which {base} says of {' and '.join(others)}; "
        "what makes this recipe small is for a `smoke` of its own"
    )


def recipe_from_dict(values: Mapping[str, Any]) -> Recipe:
    """A resolved recipe read back from JSON. Raises RecipeError.

    What its methods and claims may be was asked when it was resolved, by the version that did, where all its plug-ins were.
    """
    recipe, faults = _validated(values, [])
    if recipe is None:
        raise RecipeError(str(values.get("name", "recipe")), [str(fault) for fault in faults])
    return recipe


def _read_extended(
    path: Path, below: tuple[Path, ...], files: list[tuple[Path, dict[str, Any]]]
) -> dict[str, Any]:
    """A file's mapping merged into that of the recipe it extends; `below` are the files that extend it.

    Each file is added to `files` with its own mapping, one that extends another before it.
    """
    where = path.resolve()
    if where in below:
        names = " → ".join(file.name for file in (*below, where))
        raise RecipeError(str(path), [f"extends itself: {shortened_text(names, 300)}"])
    if len(below) == _MAX_EXTENDS:
        raise RecipeError(str(path), [f"the {_MAX_EXTENDS}th recipe in a chain of extends: too many"])
    try:
        raw = read_yaml(path)
    except OSError as error:
        raise RecipeError(str(path), [f"cannot be read: {error.strerror or error}"]) from None
    except YAMLFault as error:
        raise RecipeError(str(path), error.faults) from None
    if not isinstance(raw, dict):
        raise RecipeError(str(path), ["must be a mapping of keys to values at the top level"])
    name = raw.pop("name", path.stem)
    if path.name == RECIPE_FILE and not below:
        raw["name"] = name  # as the run was called that wrote it
    elif name not in (path.stem, f"{STUDIES}/{path.stem}"):
        fault = f"name: a recipe's name is that of its file; leave {shortened(name)} out, or save the file as {shortened(name)}.yaml"
        raise RecipeError(str(path), [fault])
    base = raw.pop("extends", None)
    files.append((path, dict(raw)))
    if base is None:
        return raw
    if not isinstance(base, str):
        raise RecipeError(str(path), [f"extends: must be one recipe's name, but it is {shortened(base)}"])
    other = beside(path, base)
    base_path = recipe_folder() / f"{base}.yaml" if other == base else Path(other)
    if not _is_file(base_path):
        base_path = path.parent / f"{base}.yaml"  # the file itself, if any
    if not _is_file(base_path):
        known = [*(file.stem for file in path.parent.glob("*.yaml")), *recipe_names(), *study_names()]
        hint = nearest(Path(base).stem, known) or "; a recipe is named without folder and ending"
        fault = f"extends: no recipe {shortened(base)} beside this file or among the shipped{hint}"
        raise RecipeError(str(path), [fault])
    extended = _read_extended(base_path, (*below, where), files)
    for of_another_experiment in OF_ONE_EXPERIMENT:
        extended.pop(of_another_experiment, None)
    if _are_other_data(raw.get("data"), extended.get("data")):
        extended = _without_facts_of_data(extended)
    return _merged(extended, raw)


def _are_other_data(own: Any, base: Any) -> bool:
    """Whether a section `data` says of which data it is, and not what a base's does."""
    if not isinstance(own, dict) or not isinstance(base, dict):
        return False
    return any(key in own and own[key] != base.get(key) for key in ("name", "file", "folder"))


def _without_facts_of_data(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Without the accuracy that counts as reached, and the counts of validation samples: other data have others."""
    result = {key: value for key, value in raw.items() if key != "target"}
    for path in (("validation",), ("tuning", "validation")):
        place: Any = result
        for part in path:
            if not isinstance(place.get(part), dict):
                break
            place[part] = dict(place[part])
            place = place[part]
        else:
            if "samples" in place:
                place["samples"] = 0
    return result


def _merged(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """Mappings are merged key by key; anything else is replaced, and so are `smoke` and a grid, which are values. A new
    `name` replaces a section."""
    result = dict(base)
    for key, value in top.items():
        below = result.get(key)
        if (
            isinstance(below, dict)
            and isinstance(value, dict)
            and key not in ("smoke", "grid")
            and below.get("name") == value.get("name", below.get("name"))
        ):
            result[key] = _merged(below, value)
        else:
            result[key] = value
    return result


def _smoke_layer(
    raw: Mapping[str, Any], files: Sequence[tuple[Path, Mapping[str, Any]]], place: str | None
) -> Layer:
    """What `smoke` sets, but for what is of other data or another network. `place`: the option that says it, if one does."""
    foreign = _smoke_of_others(raw, files) if place is None else []
    place = place or f"{next(str(file) for file, own in files if 'smoke' in own)}: smoke"
    values = {key: value for key, value in raw["smoke"].items() if key not in foreign}
    return Layer(values, {key: f"{place}.{shortened_text(key, 80)}" for key in values}, place)


def _smoke_of_others(raw: Mapping[str, Any], files: Sequence[tuple[Path, Mapping[str, Any]]]) -> list[str]:
    """What `smoke` sets and those data or that network cannot have that a file chose above the one that has the section.

    `raw`: of all `files`, one that extends another before it.
    """
    below = next(number for number, (_, own) in enumerate(files) if "smoke" in own)
    left_out = []
    for section, options_type in _NAMED.items():
        before, name = (_name_in(section, [own for _, own in files[start:]]) for start in (below, 0))
        if None in (before, name) or before == name:
            continue
        options, faults = _validate_options(section, raw[section], options_type)
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


# Validating -------------------------------------------------------------------------------------


def _validated(
    raw: Mapping[str, Any],
    known: Iterable[Fault],
    further: Callable[[Recipe], Iterable[Fault]] = lambda recipe: (),
) -> tuple[Recipe | None, list[Fault]]:
    """The recipe, or None and all that is wrong with it, beside the faults that are `known`; `further` are those of one
    whose fields are valid.
    """
    values, faults = dict(raw), [*known]
    for section, options_type in _NAMED.items():
        if section in values:
            values[section], more = _validate_options(section, values[section], options_type)
            faults += more
    broken = [section for section in ("data", "model") if values.get(section, 0) is None]
    recipe = None
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        faults += _faults(error, Recipe, apart_from=broken)
    else:
        faults += further(recipe)
    faulty = {fault.key for fault in faults}
    told = [fault for fault in faults if section_of(fault.key) not in faulty - {fault.key}]
    return None if faults else recipe, list(dict.fromkeys(told))


def _method_faults(recipe: Recipe, any_k: bool) -> Iterator[Fault]:
    """Why methods of the recipe cannot train it; with `any_k` one may have a K that exceeds T."""
    for method in recipe.methods:
        try:
            if not (any_k and not methods.fits(method, recipe.timesteps)):
                methods.check(method, recipe.timesteps)
            if recipe.loss.average == "outputs" and not methods.promises(method).one_backward_pass:
                yield Fault(
                    "loss.average",
                    f"{method} goes backward before the last step, when the mean output is not "
                    "known; set loss.average: losses, or choose bptt, bptt-ckptN, bptt-dX or rate",
                )
            if (reason := methods.unsuited(method, recipe.neuron.kind, recipe.model)) is not None:
                yield Fault("methods", reason)
        except methods.UnknownMethod as error:
            yield Fault("methods", str(error))


def _claim_faults(recipe: Recipe, file: Path, kinds: Mapping[str, str]) -> Iterator[Fault]:
    """What a claim names that there is not, or compares that cannot be, so that nobody could ever judge it.

    `file`: the recipe's own. `kinds`: the names of data set and network in the recipe's file; claims are about these, and not about others that
    overrides chose.
    """
    for number, claim in enumerate(recipe.claims):
        if (fault := claim.fault()) is not None:
            yield Fault(f"claims.{number}", fault)
        for method in filter(None, (claim.method, claim.baseline)):
            try:
                methods.promises(method)
            except methods.UnknownMethod as error:
                yield Fault(f"claims.{number}", str(error))
        for key, fault in _when_faults(claim.when, recipe, file, kinds):
            yield Fault(f"claims.{number}.when.{shortened_text(key, 80)}", fault)


def _when_faults(
    when: Mapping[str, Any], recipe: Recipe, file: Path, kinds: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """(key, why no cell of the recipe can have its value). Parameters: see `_claim_faults`."""
    if (task := when.get(TASK)) is not None:
        tasks = [grid.recipe for grid in recipe.study.grids if grid.recipe] if recipe.study else []
        if task not in tasks:
            yield TASK, f"no grid of `study` has the recipe {shortened(task)}{nearest(str(task), tasks)}"
            return
        try:
            recipe, kinds = load_recipe(beside(file, str(task)), any_k=True), {}
        except RecipeError:  # the plan, which cannot do without that recipe, names its faults
            return
    for key in [key for key in when if key != TASK]:
        section = section_of(key)
        own = getattr(getattr(recipe, section, None), "name", None)
        named = when.get(f"{section}.name", kinds.get(section, own))
        if section not in _NAMED or named == own:
            fault = _when_fault(recipe, key, when[key])
        else:  # of another data set or network than the recipe has here
            fault = None if key != f"{section}.name" else _name_fault(section, str(named))
        if fault is not None:
            yield key, fault


_NAMED: dict[str, Callable[[str], type[BaseModel]]] = {
    "data": data.source_type,
    "model": models.options_type,
}
"""The sections whose fields depend on what they name."""


def _name_fault(section: str, name: str) -> str | None:
    try:
        _NAMED[section](name)
    except (PluginFailed, ValueError) as error:
        return str(error)
    return None


def _when_fault(recipe: Recipe, key: str, value: Any) -> str | None:
    """Why no cell of the recipe can have this value of a dotted field, or None."""
    if (fault := _field_fault(recipe, key)) is not None:
        return fault
    *sections, field = key.split(".")
    place: Any = recipe
    for section in sections:
        place = getattr(place, section)
    try:
        type(place).model_validate(dict(place) | {field: value})
    except ValidationError as error:
        return next((fault.text for fault in _faults(error, type(place)) if fault.key == field), None)
    return None


def _field_fault(recipe: Recipe, key: str) -> str | None:
    """Why a dotted key is no field of the recipe that decides what is measured, or None."""
    *sections, field = key.split(".")
    place: Any = recipe
    for section in sections:
        if section not in _fields(place):
            return f"no field of recipes{nearest(section, _fields(place))}"
        place = getattr(place, section)
    known = _fields(place)
    if place is recipe and field not in known and field in Recipe.model_fields:
        return f"decides nothing that is measured; fields that do: {', '.join(known)}"
    if field not in known:
        choice = f"; known here: {', '.join(known)}" if known else ", since nothing is below that"
        return f"unknown key{_elsewhere(field, key) or nearest(field, known)}{choice}"
    if below := _fields(getattr(place, field)):
        return f"is a section; name one of its fields: {', '.join(f'{key}.{name}' for name in below)}"
    return None


def _panel_faults(recipe: Recipe) -> Iterator[Fault]:
    """What a study's figure shows against, or apart by, that no cell has: its panel would be empty."""
    if recipe.study is None:
        return
    other_tasks = any(grid.recipe is not None for grid in recipe.study.grids)
    for number, panel in enumerate(recipe.study.figure):
        for part, keys in (("x", [panel.x]), ("lines", panel.lines), ("where", list(panel.where))):
            for key in keys:
                if key in PANEL_WORDS or (other_tasks and section_of(key) in _NAMED):
                    continue
                if (fault := _field_fault(recipe, key)) is not None:
                    yield Fault(f"study.figure.{number}.{part}", f"{shortened_text(key, 80)}: {fault}")


def _fields(place: Any) -> list[str]:
    """What may stand below a place in a recipe, and decides what is measured."""
    if not isinstance(place, BaseModel):
        return []
    nothing = {"name", *NOT_DECISIVE} - {"init_from"} if isinstance(place, Recipe) else set()
    return [name for name in type(place).model_fields if name not in nothing]


def _smoke_faults(recipe: Recipe) -> Iterator[Fault]:
    for key in recipe.smoke:
        if section_of(key) == "smoke":
            yield Fault(f"smoke.{key}", "sets what --smoke has applied already; leave it out")
    for section, field in held_by_another(recipe.smoke):
        yield Fault("smoke", f"{section} replaces all of what {field} sets a part of; write one of the two")


def _validate_options(section: str, value: Any, options_type: Any) -> tuple[Any, list[Fault]]:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None, [Fault(section, "must be a mapping with a `name`")]
    try:
        kind = options_type(value["name"])
    except (PluginFailed, ValueError) as error:
        return None, [Fault(f"{section}.name", str(error))]
    try:
        return kind.model_validate(value), []
    except ValidationError as error:
        return None, list(_faults(error, kind, prefix=f"{section}."))


def _faults(
    error: ValidationError, kind: type[BaseModel], prefix: str = "", apart_from: Sequence[str] = ()
) -> Iterator[Fault]:
    """Each fault: the dotted key, what is wrong, and the nearest known key or the choices."""
    for detail in error.errors():
        location = detail["loc"]
        if location and location[0] in apart_from:
            continue
        key = shortened_text(prefix + ".".join(str(part) for part in location), 80)
        if detail["type"] == "extra_forbidden":
            known = _fields_at(kind, location[:-1])
            name = str(location[-1])
            text = (
                f"unknown key{_elsewhere(name, key) or nearest(name, known)}; known here: {', '.join(known)}"
            )
        elif detail["type"] == "missing":
            text = "is missing and has no default"
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
}
"""Type of pydantic's fault → what it says in the words of YAML."""


def _elsewhere(name: str, key: str) -> str:
    """' (did you mean …?)' where a field of recipes has this name in another place than at the dotted key, or is at the
    place that the name itself says with dots; else ''."""
    section, _, last = name.rpartition(".")
    place = _places().get(last, "")
    if section:
        return f" (did you mean {last!r} within the section {section!r}?)" if place == name else ""
    return f" (did you mean {place!r}?)" if place not in ("", key) else ""


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


# Overrides --------------------------------------------------------------------------------------


def parse_overrides(
    assignments: Iterable[str], origins: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """`key=value` texts → the grid of override mappings; `key=1,2,4` opens one axis of the grid.

    Values are YAML; a list as a value is written in brackets: `model.channels=[16,32]`, text with a comma in quotes.
    `origins`: key → the option, as typed, of what is not a --set of that key.
    Raises RecipeError, also for a key that is given two values, or once by itself and once with all of its section.
    """

    def named(key: str) -> str:
        return (origins or {}).get(key, f"--set {shortened_text(key, 80)}")

    axes: dict[str, list[Any]] = {}
    texts: dict[str, str] = {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        key = key.strip()
        if not separator or not key:
            example = "must have the form key=value, e.g. train.epochs=2"
            raise RecipeError(
                named(key).rstrip() if separator else "--set", [f"{shortened(assignment)} {example}"]
            )
        try:
            values = [parse_yaml(part) for part in _split_at_commas(text)]
        except YAMLFault as fault:
            raise RecipeError(named(key), fault.faults) from None
        if repr(axes.get(key, values)) != repr(values):  # 1 and true are equal
            twice = f"is given twice, as {shortened(texts[key])} and as {shortened(text)}; give it once"
            raise RecipeError(named(key), [f"{twice} ({_SETTING_OPTIONS} set fields too)"])
        axes[key], texts[key] = values, text
    for section, field in held_by_another(axes):
        clash = f"replaces all of what {shortened_text(field, 80)} sets a part of; give one of the two"
        raise RecipeError(named(section), [clash])
    points = math.prod(len(values) for values in axes.values())
    if points > MAX_GRID_POINTS:
        several = ", ".join(dict.fromkeys(named(key) for key, values in axes.items() if len(values) > 1))
        raise RecipeError(several, [f"a grid of {points} points; at most {MAX_GRID_POINTS} are taken"])
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


_SETTING_OPTIONS = "--over, --timesteps, --batch-size and --nproc-per-cell"


_QUOTED_OR_CHARACTER = re.compile(r"""(?<![^\s,:\[{])(?:"(?:\\.|[^"\\])*"|'(?:''|[^'])*')|.""", re.DOTALL)


def _split_at_commas(text: str) -> list[str]:
    """What stands between commas, those in brackets and in quotes left as they are."""
    parts, depth = [""], 0
    for piece in _QUOTED_OR_CHARACTER.findall(text):
        depth += piece in "[{"
        depth -= piece in "]}"
        if piece == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += piece
    return parts
