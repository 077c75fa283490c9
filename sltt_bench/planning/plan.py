"""A recipe is expanded into a plan of cells; a cell is one (recipe, method, backend, seed, overrides)."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sltt_bench import backends, data, methods
from sltt_bench.backends.shipped import refusal
from sltt_bench.common.errors import nearest, shortened_text
from sltt_bench.common.identity import short_hash
from sltt_bench.common.strict import held_by_another
from sltt_bench.planning.recipe import load_recipe, recipe_from_dict, smoke_left_out
from sltt_bench.planning.recipe_faults import RecipeError, origin_of
from sltt_bench.planning.recipe_fields import NOT_DECISIVE, NOT_DECISIVE_OF_TRAIN, Recipe, section_of
from sltt_bench.planning.recipe_files import beside, find_recipe, namesake
from sltt_bench.planning.studies import TASK, Grid, numbered_points, places_of
from sltt_bench.results.schema import Kind

if TYPE_CHECKING:
    from sltt_bench.results.writer import RunFolder

Device = str
"""auto, cpu or cuda:N."""
TUNED = "tuned"
"""The option of a cell with tuned settings: protocol (grid, seeds, epochs, validation), trials, chosen."""


@dataclass(frozen=True)
class Cell:
    """One combination that is measured in a process of its own."""

    recipe: Recipe
    method: str
    backend: str
    seed: int
    device: Device = "auto"
    synthetic: bool = False
    smoke: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)
    init: str | None = None
    """Where the weights come from: None (random) or a checkpoint's path."""
    needs: str | None = None
    """cell_id of the cell whose checkpoint this one starts from."""
    kind: Kind = "run"
    options: dict[str, Any] = field(default_factory=dict)
    """What a kind other than "run" adds (an analysis: epochs, batches, ...), and TUNED."""

    @cached_property
    def recipe_hash(self) -> str:
        """Equal for cells that differ in method, backend or seed alone; tuned alike, in what was chosen too."""
        tuned = self.options.get(TUNED)
        searched = tuned["protocol"]["grid"] if tuned else ()
        fingerprint = self.recipe.fingerprint(apart_from=searched)
        parts = [fingerprint, self.synthetic, self.smoke, self.init or self.needs, self.kind]
        return short_hash([*parts, tuned["protocol"]] if tuned else parts)

    @cached_property
    def cell_id(self) -> str:
        """Equal for repetitions of one experiment, on whatever machine."""
        return short_hash([self.recipe_hash, self.method, self.backend, self.seed, self.options])

    @property
    def trials(self) -> int | None:
        """Trials from which its settings were chosen; None: it is not tuned."""
        return self.options[TUNED]["trials"] if TUNED in self.options else None

    @property
    def k(self) -> int | None:
        """K of SLTT-K."""
        return methods.backward_steps(self.method)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, from which `cell_from_dict` makes the same cell."""
        plain = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "recipe"}
        return {"cell_id": self.cell_id, **plain, "recipe": self.recipe.model_dump(mode="json")}


def cell_from_dict(resolved: dict[str, Any]) -> Cell:
    """A cell read back from JSON. Raises RecipeError."""
    fields = {key: value for key, value in resolved.items() if key not in ("cell_id", "recipe")}
    return Cell(recipe=recipe_from_dict(resolved["recipe"]), **fields)


@dataclass(frozen=True)
class Request:
    """What the user asked for; None means the recipe's own choice."""

    methods: list[str] | None = None
    backends: tuple[str, ...] = ("reference",)
    seeds: list[int] | None = None
    grid: tuple[dict[str, Any], ...] = ({},)
    """Override mappings, one for each point of the grid."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Dotted field → the place that overrides it, as errors name it, where that is not --set and the field."""
    point: Grid | None = None
    """Of a study this point alone; None: all."""
    device: Device = "auto"
    smoke: bool = False
    synthetic: bool = False
    init: str | None = None
    """None: as the recipe says; "random"; or a checkpoint's path."""
    data_dir: Path | None = None
    """Where data sets are; None where no data are read."""

    def option_of(self, key: str) -> str:
        """What overrides a dotted field, as errors name it."""
        return self.origins.get(key, f"--set {shortened_text(key, 80)}")


@dataclass(frozen=True)
class Plan:
    """The cells of one recipe in the order in which they run; a prerequisite comes first."""

    recipe: Recipe
    cells: tuple[Cell, ...]
    remarks: tuple[str, ...] = ()
    """What the user should know: a prerequisite that is left out, for example."""
    left_out: tuple[str, ...] = ()
    """Methods that some points of the grid lack, and why, and what a study's points have otherwise than it says."""
    then: "Callable[[RunFolder], Plan] | None" = None
    """What is run in the same folder when all cells have ended, which decide it; None: nothing."""
    prerequisite: bool = False
    """Whether it is here only because others start from its checkpoint: one that an earlier run left will do."""

    def __iter__(self) -> Iterator[Cell]:
        return iter(self.cells)

    def __len__(self) -> int:
        return len(self.cells)


def processes_per_cell(plans: Iterable[Plan]) -> int:
    """The most that share the batches of one cell."""
    return max((cell.recipe.train.devices for plan in plans for cell in plan), default=1)


def on_device(plans: Iterable[Plan], device: Device | None) -> list[Plan]:
    """The plans with their cells on another device; None: as they are."""
    if device is None:
        return list(plans)
    return [replace(plan, cells=tuple(replace(cell, device=device) for cell in plan)) for plan in plans]


def make_plans(recipe_name: str, request: Request) -> list[Plan]:
    """The plan of the recipe, preceded by that of its prerequisite if it has one.

    A method whose K exceeds T at some points of a grid is left out there, and said to be; so is one on a backend that
    cannot serve it. Raises RecipeError, also for a K that fits no point, and for a method or backend that no other serves.
    """
    _check_backends(request.backends)
    main, resolved, left_out = _resolve(recipe_name, request)
    base = resolved[0].recipe
    stage, init, remarks = _stage_one(base, find_recipe(recipe_name), request)
    cells = [
        Cell(
            recipe=point.recipe,
            method=method,
            backend=backend,
            seed=seed,
            device=_device_of(point.study, request),
            synthetic=request.synthetic,
            smoke=request.smoke,
            overrides=point.overrides,
            init=init,
            needs=None if stage is None else stage.cells[0].cell_id,
            kind=point.study.kind,
            options=point.study.options(point.recipe.train.epochs),
        )
        for point in resolved
        for seed in _seeds_of(point, main, request)
        for backend in request.backends
        for method in dict.fromkeys(point.recipe.methods)
    ]
    cells, unserved = servable(_known_refusals(cells))
    distinct = tuple({cell.cell_id: cell for cell in cells}.values())
    plan = Plan(base if main.study is None else main, distinct, remarks, (*left_out, *unserved))
    return [plan] if stage is None else [stage, plan]


def plans_of_all(recipe_names: Iterable[str], request: Request) -> list[Plan]:
    """The plans of several recipes; what several start from, or one of them trains anyway, comes once and first.

    Raises as `make_plans`.
    """
    plans = [plan for name in dict.fromkeys(recipe_names) for plan in make_plans(name, request)]
    asked = {
        cell.cell_id: plan
        for plan in plans
        for cell in plan
        if not plan.prerequisite and cell.recipe.train.keep_checkpoint
    }
    once: dict[str | int, Plan] = {}
    for plan in plans:
        cell_id = plan.cells[0].cell_id
        if plan.prerequisite and cell_id not in asked:
            once.setdefault(cell_id, plan)
        else:
            stands = asked[cell_id] if plan.prerequisite else plan
            once.setdefault(id(stands), stands)
    return list(once.values())


@dataclass(frozen=True)
class ResolvedPoint:
    """A recipe at one point of a grid, with the methods that fit there."""

    overrides: dict[str, Any]
    """What is otherwise than the recipe has it; of a study also which recipe the point extends."""
    recipe: Recipe
    study: Grid
    """Which point of a study this is; of a recipe that is none, its only one."""


def resolve_points(recipe_name: str, request: Request) -> tuple[list[ResolvedPoint], list[str]]:
    """The recipe at each point of the request's grid, and of a study at each of its own; what was left out.

    Raises RecipeError.
    """
    return _resolve(recipe_name, request)[1:]


def _seeds_of(point: ResolvedPoint, main: Recipe, request: Request) -> list[int]:
    """As asked, else the recipe's; the first of them for what no seed changes and in a study's smoke run."""
    seeds = request.seeds or point.study.seeds or point.recipe.seeds
    return seeds[:1] if point.study.kind == "estimate" or (main.study and request.smoke) else seeds


def _device_of(study: Grid, request: Request) -> Device:
    return "cuda" if study.kind == "estimate" and request.device != "cpu" else request.device


def _resolve(recipe_name: str, request: Request) -> tuple[Recipe, list[ResolvedPoint], list[str]]:
    """The recipe itself, and at each point of the grid, with the methods that fit T there; what was left out.

    An override that says what the recipe says anyway is none: the cell is the published experiment.
    """
    main = load_recipe(recipe_name, smoke=request.smoke, any_k=True)
    _check_axes(request)
    _check_is_for_overrides(main, request)
    resolved: list[ResolvedPoint] = []
    missing: dict[str, list[int]] = {}
    k_from: dict[str, str] = {}
    of_study = _points_of_study(main, recipe_name, request)
    for overrides, (study, places) in itertools.product(request.grid, of_study):
        source = recipe_name
        if study.recipe is not None:
            source = _known_recipe(find_recipe(recipe_name), study.recipe, places["recipe"])
        as_published = main if study.recipe is None else load_recipe(source, smoke=request.smoke, any_k=True)
        settings = {**study.settings, **overrides}
        typed = _origins_of_request(request, overrides)
        origins = {**places, **typed}
        chosen = load_recipe(
            source,
            settings,
            smoke=request.smoke,
            chosen_methods=request.methods or study.methods,
            any_k=True,
            origins=origins,
        )
        file = str(find_recipe(source))
        recipe = _as_part_of(main, _on_disk(chosen, request, origins, file))
        fitting = [name for name in recipe.methods if methods.fits(name, recipe.timesteps)]
        for name in [name for name in recipe.methods if name not in fitting]:
            missing.setdefault(name, []).append(recipe.timesteps)
            k_from[name] = _origin_of_k(typed, places) or file
        if fitting:
            changes = {
                key: value
                for key, value in settings.items()
                if value_at(recipe, key) != value_at(as_published, key)
            }
            if study.recipe is not None:
                changes = {TASK: study.recipe, **changes}
            fits = recipe.model_copy(update={"methods": fitting})
            resolved.append(ResolvedPoint(changes, fits, study))
    kept = {name for point in resolved for name in point.recipe.methods}
    if lost := [name for name in missing if name not in kept]:
        faults = {name: methods.out_of_range(name, max(missing[name])) for name in lost}
        lines = [f"{k_from[name]}: {fault}" for name, fault in faults.items()]
        raise RecipeError(recipe_name, [*faults.values()], lines)
    remarks = [
        f"{name} is left out at T = {', '.join(map(str, sorted(set(at))))}: K must not exceed T"
        for name, at in sorted(missing.items())
    ]
    remarks += _replaced(request, [study for study, _ in of_study])
    remarks += filter(None, [namesake(recipe_name), smoke_left_out(recipe_name) if request.smoke else None])
    return main, resolved, remarks


def _origin_of_k(*origins: Mapping[str, str]) -> str | None:
    """What chose the methods, or else T; where several may have, the first. None: the recipe's file."""
    found = (origin_of(key, known) for known in origins for key in ("methods", "timesteps"))
    return next(filter(None, found), None)


def _check_axes(request: Request) -> None:
    """Raises RecipeError for an axis of the grid at whose points the same would be run: one alone would count."""
    lines = {}
    for key, first in request.grid[0].items():
        decides = key not in NOT_DECISIVE_OF_TRAIN and section_of(key) not in _ONE_VALUE
        if decides or all(point[key] == first for point in request.grid[1:]):
            continue
        fault = "takes one value for a command: cells that differ in nothing else are one experiment"
        lines[f"{request.option_of(key)}: {fault}"] = fault
    if lines:
        raise RecipeError("--set", list(lines.values()), list(lines))


_ONE_VALUE = {*NOT_DECISIVE} - {"methods", "seeds", "smoke"}
"""Fields, or sections, at whose values the same cells would be run, or whose first value alone would count (init_from)."""


def _check_is_for_overrides(main: Recipe, request: Request) -> None:
    """Raises RecipeError for an override of what a study says itself: it would count for nothing."""
    faults = {"study": "a study is asked by a file of its own, or by none"}
    if main.study is not None:
        faults |= {
            "seeds": "a study says its own; give --seed",
            "methods": "a study says its own; give --method",
        }
    lines = {
        f"{request.option_of(key)}: {faults[section]}": faults[section]
        for key in request.grid[0]
        if (section := section_of(key)) in faults
    }
    if lines:
        raise RecipeError("--set", list(lines.values()), list(lines))


def _points_of_study(main: Recipe, recipe_name: str, request: Request) -> list[tuple[Grid, dict[str, str]]]:
    """The study's points that are asked for, each with its fields' places in the file; of no study, one that sets nothing."""
    if main.study is None:
        return [(Grid(), {})]
    file = find_recipe(recipe_name)
    return [
        (point, {key: f"{file}: {place}" for key, place in places_of(main.study, number).items()})
        for number, point in numbered_points(main.study, smoke=request.smoke)
        if request.point in (None, point)
    ]


def _origins_of_request(request: Request, overrides: Iterable[str]) -> dict[str, str]:
    """Dotted field → what the user typed that sets it."""
    typed = {key: request.option_of(key) for key in overrides}
    return typed if request.methods is None else {**typed, "methods": "--method"}


def _replaced(request: Request, of_study: Iterable[Grid]) -> list[str]:
    """What the user sets that points of a study set too: points that differ in nothing else become one."""
    own = {key for study in of_study for key in study.settings}
    replaced = [
        key
        for key in request.grid[0]
        if key in own or any(key == holder for holder, _ in held_by_another([key, *own]))
    ]
    return [f"{request.option_of(key)} takes the place of what the study sets" for key in replaced]


def _as_part_of(study: Recipe, recipe: Recipe) -> Recipe:
    """The recipe of a study's point under the study's name, with its seeds and claims; nothing comes before it.

    The study itself is left to the run's recipe: no cell is more than one of its points.
    """
    if study.study is None:
        return recipe
    shared = {key: getattr(study, key) for key in ("name", "description", "seeds", "claims")}
    return recipe.model_copy(update={**shared, "init_from": None, "study": None})


def _on_disk(recipe: Recipe, request: Request, origins: Mapping[str, str], file: str) -> Recipe:
    """The recipe with what depends on the user's files filled in.

    `origins`, `file`: the places of what is overridden, and of all else. Raises RecipeError, DataError.
    """
    data_dir = None if request.synthetic else request.data_dir
    with data.with_remedy(recipe.data, data_dir or Path()):
        source = recipe.data.on_disk(data_dir)
        if data_dir is not None and data.missing(source, data_dir) is None:
            source.check_files(data_dir)
    resolved = recipe.model_copy(update={"data": source})
    checked = {
        "timesteps": source.check_timesteps(recipe.timesteps),
        "validation.samples": resolved.validation_fault(),
        "model": resolved.model.unsuited_input(source.sample_shape),
    }
    if faults := {key: fault for key, fault in checked.items() if fault is not None}:
        lines = [f"{origin_of(key, origins) or file}: {fault}" for key, fault in faults.items()]
        raise RecipeError(file, [*faults.values()], lines)
    return resolved


def _known_recipe(file: Path, name: str, where: str) -> str:
    """The recipe that another one, in `file`, names at `where`, as `load_recipe` takes it. Raises RecipeError."""
    known = beside(file, name)
    try:
        find_recipe(known)
    except RecipeError as error:
        weights = "; a checkpoint's path is given with --init" if name.endswith((".pt", ".pth")) else ""
        raise RecipeError(where, [f"{name}: {fault}{weights}" for fault in error.faults]) from None
    return known


def value_at(recipe: Recipe, dotted: str) -> Any:
    """The value of a field, None where the recipe has no such section."""
    place: Any = recipe.model_dump(mode="json")
    for part in dotted.split("."):
        place = place.get(part) if isinstance(place, dict) else None
    return place


def _stage_one(
    recipe: Recipe, file: Path, request: Request
) -> tuple[Plan | None, str | None, tuple[str, ...]]:
    """The prerequisite's plan (one cell for all methods and seeds), the initial weights, the remarks.

    The prerequisite's recipe is looked for first beside the recipe's own `file`.
    """
    init = None if request.init == "random" else request.init
    if recipe.init_from is None:
        return None, init, ()
    if init is not None:
        return None, init, (f"{recipe.name} starts from {init}",)
    without = f"the prerequisite {recipe.init_from} is left out, weights start at random"
    for asked, remark in (
        (request.init, f"{recipe.name} starts from random weights, not {recipe.init_from}"),
        (request.smoke, f"--smoke: {without}"),
        (request.synthetic, f"--synthetic: {without}"),
    ):
        if asked:
            return None, None, (remark,)
    typed = _origins_of_request(request, request.grid[0])
    where = origin_of("init_from", typed) or f"{file}: init_from"
    source = _known_recipe(file, recipe.init_from, where)
    first = _on_disk(load_recipe(source), request, {}, str(find_recipe(source)))
    if first.init_from is not None:
        fault = f"{first.name} itself starts from {first.init_from}, and one stage is run before another; "
        raise RecipeError(
            where, [f"{fault}run {first.name} with train.keep_checkpoint and give its checkpoint with --init"]
        )
    if not first.train.keep_checkpoint:
        fault = f"{first.name} would leave no checkpoint; set train.keep_checkpoint: true there"
        raise RecipeError(where, [fault])
    cell = Cell(first, first.methods[0], request.backends[0], first.seeds[0], request.device)
    servable(_known_refusals([cell]))
    remark = f"{first.name} runs once, for all methods and seeds"
    return Plan(first, (cell,), (remark,), prerequisite=True), None, ()


def _check_backends(chosen: tuple[str, ...]) -> None:
    known = backends.names()
    faults = [
        f"unknown backend {name!r}{nearest(name, known)}; known: {', '.join(known)}"
        for name in chosen
        if name not in known
    ]
    if "spikingjelly" in chosen and find_spec("spikingjelly") is None:
        faults.append("spikingjelly needs that package: pip install 'sltt-bench[spikingjelly]'")
    if faults:
        raise RecipeError("--backend", faults)


class Refusal(NamedTuple):
    """Why a cell would be refused."""

    place: str
    """The option or field that is refused, as errors name it."""
    reason: str


def servable(refusals: Sequence[tuple[Cell, Refusal | None]]) -> tuple[list[Cell], list[str]]:
    """The cells without those that would be refused, and what is left out.

    Raises RecipeError where no cell of a method, or of a backend, is left, or where a trial is refused: every setting is tried.
    """
    kept = [cell for cell, refused in refusals if refused is None]
    left = {cell.method for cell in kept} | {cell.backend for cell in kept}
    faults: dict[str, None] = {}
    names: dict[tuple[str, str], list[str]] = {}
    for cell, refused in refusals:
        if refused is None:
            continue
        names.setdefault((cell.backend, refused.reason), []).append(cell.method)
        if not left.issuperset((cell.method, cell.backend)) or cell.kind == "trial":
            faults[f"{refused.place}: {refused.reason}"] = None
    if faults:
        raise RecipeError("--backend", list(faults), list(faults))
    remarks = [
        f"{', '.join(dict.fromkeys(methods_of))} on {backend}, left out: {reason}"
        for (backend, reason), methods_of in names.items()
    ]
    return kept, remarks


def _known_refusals(cells: Iterable[Cell]) -> list[tuple[Cell, Refusal | None]]:
    """What shipped backends are known to refuse."""

    def of(cell: Cell) -> Refusal | None:
        recipe = cell.recipe
        native = recipe.native.backend_options()
        reason = refusal(cell.backend, cell.method, recipe.model, recipe.neuron, native, cell.device)
        return None if reason is None else Refusal(f"--backend {cell.backend}", reason)

    return [(cell, of(cell)) for cell in cells]
