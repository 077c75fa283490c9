"""Checks whether valid fields of a recipe go together: methods, network and samples, and what claims and figures name."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, ValidationError

from sltt_bench import methods
from sltt_bench.common.errors import nearest, shortened, shortened_text
from sltt_bench.common.plugins import PluginFailed
from sltt_bench.common.strict import held_by_another
from sltt_bench.data.errors import DataError
from sltt_bench.planning.recipe_faults import Fault, RecipeError
from sltt_bench.planning.recipe_fields import NOT_DECISIVE, Recipe, section_of
from sltt_bench.planning.recipe_validation import NAMED, elsewhere, faults_of
from sltt_bench.planning.studies import PANEL_WORDS, TASK


def inconsistencies(
    recipe: Recipe, *, any_k: bool, named: Mapping[str, Any], of_task: Callable[[str], Recipe]
) -> Iterator[Fault]:
    """Yields why fields of a recipe, each of them valid, do not go together.

    `any_k`: whether methods may have a K that exceeds T. `named`: section → the name of data set or network in the
    recipe's files; claims are about these, and not about others that overrides chose. `of_task`: the recipe of a study's
    grid by its name.
    """
    yield from _input_faults(recipe)
    yield from _method_faults(recipe, any_k)
    yield from _claim_faults(recipe, named, of_task)
    yield from _smoke_faults(recipe)
    yield from _panel_faults(recipe)


def _input_faults(recipe: Recipe) -> Iterator[Fault]:
    """Why the network cannot be given the samples, where their shape is known without the user's files."""
    with suppress(DataError):
        shape = recipe.data.on_disk(None).sample_shape
        if (reason := recipe.model.unsuited_input(shape)) is not None:
            yield Fault("", reason)


def _method_faults(recipe: Recipe, any_k: bool) -> Iterator[Fault]:
    """Why methods of the recipe cannot train it."""
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


def _claim_faults(
    recipe: Recipe, named: Mapping[str, Any], of_task: Callable[[str], Recipe]
) -> Iterator[Fault]:
    """What a claim names that there is not, or compares that cannot be, so that nobody could ever judge it."""
    for number, claim in enumerate(recipe.claims):
        if (fault := claim.fault()) is not None:
            yield Fault(f"claims.{number}", fault)
        for method in (claim.method, claim.baseline):
            try:
                if method is not None:
                    methods.promises(method)
            except methods.UnknownMethod as error:
                yield Fault(f"claims.{number}", str(error))
        for key, fault in _when_faults(claim.when, recipe, named, of_task):
            yield Fault(f"claims.{number}.when.{shortened_text(key, 80)}", fault)


def _when_faults(
    when: Mapping[str, Any], recipe: Recipe, named: Mapping[str, Any], of_task: Callable[[str], Recipe]
) -> Iterator[tuple[str, str]]:
    """(key, why no cell of the recipe can have its value)."""
    if (task := when.get(TASK)) is not None:
        tasks = [grid.recipe for grid in recipe.study.grids if grid.recipe] if recipe.study else []
        if task not in tasks:
            yield TASK, f"no grid of `study` has the recipe {shortened(task)}{nearest(str(task), tasks)}"
            return
        try:
            recipe, named = of_task(str(task)), {}
        except RecipeError:  # the plan, which cannot do without that recipe, names its faults
            return
    for key in [key for key in when if key != TASK]:
        section = section_of(key)
        own = getattr(getattr(recipe, section, None), "name", None)
        name = when.get(f"{section}.name", named.get(section, own))
        if section not in NAMED or name == own:
            fault = _when_fault(recipe, key, when[key])
        else:  # of another data set or network than the recipe has here
            fault = None if key != f"{section}.name" else _name_fault(section, str(name))
        if fault is not None:
            yield key, fault


def _name_fault(section: str, name: str) -> str | None:
    try:
        NAMED[section](name)
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
        return next((fault.text for fault in faults_of(error, type(place)) if fault.key == field), None)
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
        return f"unknown key{elsewhere(field, key) or nearest(field, known)}{choice}"
    if below := _fields(getattr(place, field)):
        return f"is a section; name one of its fields: {', '.join(f'{key}.{name}' for name in below)}"
    return None


def _panel_faults(recipe: Recipe) -> Iterator[Fault]:
    """What a study's figure shows against, or apart by, that no cell has: its panel would be empty."""
    if recipe.study is None:
        return
    other_tasks = any(grid.recipe is not None for grid in recipe.study.grids)
    for number, panel in enumerate(recipe.study.figure):
        keys = [
            ("x", panel.x),
            *(("lines", key) for key in panel.lines),
            *(("where", key) for key in panel.where),
        ]
        for part, key in keys:
            if key in PANEL_WORDS or (other_tasks and section_of(key) in NAMED):
                continue
            fault = (
                _when_fault(recipe, key, panel.where[key]) if part == "where" else _field_fault(recipe, key)
            )
            if fault is not None:
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
