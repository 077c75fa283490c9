"""Tuning as a plan: every trial is a cell, and so is every training with what was chosen from them."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sltt_bench.common.format import counted
from sltt_bench.common.identity import short_hash
from sltt_bench.planning.plan import (
    TUNED,
    Cell,
    Plan,
    Request,
    ResolvedPoint,
    make_plans,
    resolve_points,
    value_at,
)
from sltt_bench.planning.recipe_faults import RecipeError, origin_of
from sltt_bench.planning.recipe_fields import Recipe, TuningRecipe, section_of
from sltt_bench.planning.recipe_files import beside, find_recipe
from sltt_bench.planning.studies import TASK, Grid, setting_words
from sltt_bench.results.schema import CELL_KEY, CELLS_FILE, TUNING_FILE
from sltt_bench.results.writer import RunFolder, as_fields
from sltt_bench.tuning.choice import Choice, Trial, choose, is_lost, mean_top1

Row = Mapping[str, str]


def plan_tuning(recipe_name: str, request: Request) -> list[Plan]:
    """The trials of `request`'s methods, preceded by the recipe's prerequisite if it has one.

    A study is tuned at each of its points, by the tuning of the recipe that the point extends. The trials' plan knows
    what follows: the choice, recorded in tuning.csv, and the training of what was chosen on the recipe's training data with
    `request.seeds` (None: the recipe's). Raises RecipeError where there is no tuning, or the request does not leave it
    to the recipe what is searched.
    """
    (fixed,) = request.grid[:1]
    resolved, left_out = resolve_points(recipe_name, replace(request, grid=(fixed,)))
    trained = [point for point in resolved if point.study.kind == "run"]
    faults = [fault for point in trained for fault in _faults(point, fixed, request)]
    if not trained:
        faults.append("trains nothing whose settings could be chosen")
    if len(trained) > 1 and len(resolved) > len(trained):
        faults.append(
            "a study of several points that also analyses or estimates has no single setting for those; "
            "tune the recipes that it extends"
        )
    if len(request.grid) > 1:
        faults.append("--set opens a grid; what is searched is tuning.grid, the same for every method")
    if len(request.backends) > 1:
        faults.append("--backend: settings are chosen on one backend")
    if faults:
        raise RecipeError(recipe_name, list(dict.fromkeys(faults)))
    searches: list[Search] = []
    before: list[Plan] = []
    remarks: list[str] = []
    for point in trained:
        alone = replace(request, point=point.study, methods=point.recipe.methods)
        plans, search = _search(recipe_name, alone if len(trained) > 1 else request, fixed, point)
        *before, plan = plans
        searches.append(search)
        remarks += plan.remarks
    final = FinalTraining(recipe_name, fixed, plan.recipe, searches)
    cells = {cell.cell_id: cell for search in searches for cell in search.cells}
    held_back = any(point.recipe.validation is not None for point in trained)
    remarks.append(
        _budget_remark(searches, len(request.seeds or trained[0].recipe.seeds), held_back=held_back)
    )
    return [
        *before,
        Plan(plan.recipe, tuple(cells.values()), tuple(dict.fromkeys(remarks)), tuple(left_out), final),
    ]


def _faults(point: ResolvedPoint, fixed: Mapping[str, Any], request: Request) -> Iterator[str]:
    """Why the settings of a point cannot be chosen."""
    tuning = point.recipe.tuning
    if tuning is None:
        where = f"{_words(point.study)}: " if point.study.recipe or point.study.settings else ""
        yield f"{where}has no section `tuning`, which says what is searched; `sltt-bench show digits` shows one"
        return
    yield from (f"{request.option_of(key)}: tuning.grid searches it" for key in tuning.grid if key in fixed)
    yield from (
        f"the study sets {key}, which tuning.grid searches"
        for key in tuning.grid
        if key in point.study.settings
    )
    if both := sorted(set(request.seeds or point.recipe.seeds) & set(tuning.seeds)):
        yield f"seed {both[0]} is one of tuning.seeds; the final training (seeds, or --seed) wants seeds of its own"


def _search(
    recipe_name: str, request: Request, fixed: Mapping[str, Any], point: ResolvedPoint
) -> "tuple[list[Plan], Search]":
    """The plans of which the last has the trials of a point, and these trials as what is to be chosen from."""
    recipe, tuning = point.recipe, point.recipe.tuning
    assert tuning is not None
    epochs = min(tuning.epochs or recipe.train.epochs, recipe.train.epochs)
    held = {"validation": tuning.validation.model_dump(mode="json"), "train.epochs": epochs}
    grid = tuple({**fixed, **held, **setting} for setting in tuning.settings())
    origins = {**request.origins, **_places(recipe_name, request, fixed, point)}
    plans = make_plans(recipe_name, replace(request, grid=grid, origins=origins, seeds=tuning.seeds))
    trials = [cell for cell in plans[-1] if cell.kind == "run"]
    if len(trials) != len({cell.method for cell in trials}) * tuning.trials:
        raise RecipeError(
            recipe_name, [f"tuning.grid: not every setting can be tried: {why}" for why in plans[-1].left_out]
        )
    _check_final_batches(recipe_name, request, fixed, tuning)
    search = Search(
        request=request,
        where=_words(point.study) if request.point else "",
        tuning=tuning,
        epochs=epochs,
        cells=tuple(_trial(cell, tuning) for cell in trials),
        own={name: value_at(recipe, name) for name in tuning.grid},
    )
    return plans, search


def _check_final_batches(
    recipe_name: str, request: Request, fixed: Mapping[str, Any], tuning: TuningRecipe
) -> None:
    """Raises RecipeError for a setting whose final training, which has more samples than its trials, cannot fill or divide
    its batches: that would be found after all trials."""
    grid = tuple({**fixed, **setting} for setting in tuning.settings())
    for cell in make_plans(recipe_name, replace(request, grid=grid))[-1]:
        fault = cell.recipe.batch_fault(synthetic=cell.synthetic) if cell.kind == "run" else None
        if fault is not None:
            raise RecipeError(recipe_name, [f"the training with what is chosen: {fault}"])


def _places(
    recipe_name: str, request: Request, fixed: Mapping[str, Any], point: ResolvedPoint
) -> dict[str, str]:
    """Where it is said what trials have otherwise: dotted field → file and key, or the option that sets it."""
    tuning, task = point.recipe.tuning, point.study.recipe
    assert tuning is not None
    file = find_recipe(recipe_name)
    file = file if task is None else find_recipe(beside(file, task))
    said = {"validation": "tuning.validation", "train.epochs": "tuning.epochs"}
    said |= {name: f"tuning.grid.{name}" for name in tuning.grid}
    typed = {key: request.option_of(key) for key in fixed}
    exactly = [place for place in said.values() if any(f"{key}.".startswith(f"{place}.") for key in typed)]
    named = {place: origin_of(place, typed) or str(file) for place in said.values()}
    return {
        key: named[place] if place in exactly else f"{named[place]}: {place}" for key, place in said.items()
    }


def _trial(cell: Cell, tuning: TuningRecipe) -> Cell:
    setting = {name: value_at(cell.recipe, name) for name in tuning.grid}
    overrides = _without(
        cell.overrides, (name for name in cell.overrides if section_of(name) == "validation")
    )
    return replace(cell, kind="trial", overrides={**overrides, **setting}, options={"setting": setting})


def _without(overrides: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The overrides that are neither of these names nor about the tuning itself, which a cell's options tell."""
    left_out = set(names)
    return {
        key: value for key, value in overrides.items() if key not in left_out and section_of(key) != "tuning"
    }


def _words(point: Grid) -> str:
    task = {} if point.recipe is None else {TASK: point.recipe}
    return ", ".join(setting_words(key, value, "=") for key, value in {**task, **point.settings}.items())


def _budget_remark(searches: "Sequence[Search]", seeds: int, *, held_back: bool) -> str:
    data = "the training data that the recipe's validation leaves" if held_back else "all training data"
    budgets = {
        f"{counted(search.tuning.trials, 'trial')} of each of {counted(len(search.methods), 'method')}": None
        for search in searches
    }
    points = f" at each of {len(searches)} points" if len(searches) > 1 else ""
    return (
        f"{' or '.join(budgets)}{points}, looked at on validation data alone; then "
        f"{counted(seeds, 'training')} of each with what was chosen, on {data}"
    )


@dataclass(frozen=True)
class Search:
    """The trials of a recipe, or of one point of a study: the same for each of its methods."""

    request: Request
    """Of the final training, but for what is chosen."""
    where: str
    """The point's settings in words; '' where there is no other point."""
    tuning: TuningRecipe
    epochs: int
    """Of a trial."""
    cells: tuple[Cell, ...]
    own: Mapping[str, Any]
    """What the recipe says of the searched fields."""

    @property
    def methods(self) -> list[str]:
        """In the order of the plan."""
        return list(dict.fromkeys(cell.method for cell in self.cells))

    @property
    def protocol(self) -> dict[str, Any]:
        """What was done alike for every method: cells that differ in it are never compared."""
        return {
            "grid": {name: list(values) for name, values in self.tuning.grid.items()},
            "seeds": list(self.tuning.seeds),
            "epochs": self.epochs,
            "validation": self.tuning.validation.model_dump(mode="json"),
        }


@dataclass
class FinalTraining:
    """Chooses when the trials have ended, records it, and plans the training of what was chosen."""

    recipe_name: str
    fixed: Mapping[str, Any]
    """Overrides that hold for trials and final training alike."""
    recipe: Recipe
    searches: Sequence[Search]
    unchosen: dict[str, str] = field(default_factory=dict)
    """Method, and where → why nothing was chosen for it."""

    def __call__(self, folder: RunFolder) -> Plan:
        """The cells to be trained now, and what was chosen in words. Adds to the folder's tuning.csv."""
        by_attempt = sorted(folder.rows(CELLS_FILE), key=lambda row: int(row["attempt"]))
        last = {row["cell_id"]: row for row in by_attempt}
        recorded = {row["cell_id"]: row for row in folder.rows(TUNING_FILE)}
        self.unchosen.clear()
        cells: dict[str, Cell] = {}
        remarks: list[str] = []
        for search in self.searches:
            chosen = self._choices(search, last, recorded, folder)
            remarks += [
                f"{_at(method, search)}: {choice_text(choice, search.tuning.trials)}"
                for method, choice in chosen.items()
            ]
            cells |= {cell.cell_id: cell for cell in self._trainings(search, chosen)}
        remarks += [f"{where}: nothing is chosen: {reason}" for where, reason in self.unchosen.items()]
        return Plan(self.recipe, tuple(cells.values()), tuple(remarks))

    def _choices(
        self, search: Search, last: Mapping[str, Row], recorded: Mapping[str, Row], folder: RunFolder
    ) -> dict[str, Choice]:
        """Method → what is chosen for it; adds rows of what is not recorded yet, or otherwise: an earlier command may have
        been killed between two of them, and a trial that was lost may have been tried again."""
        chosen: dict[str, Choice] = {}
        for method in search.methods:
            cells = [cell for cell in search.cells if cell.method == method]
            outcomes = ((cell.cell_id, _outcome(cell, last.get(cell.cell_id))) for cell in cells)
            ended = {cell_id: trial for cell_id, trial in outcomes if trial is not None}
            if open_trials := [cell.cell_id for cell in cells if cell.cell_id not in ended]:
                row = next((last[cell_id] for cell_id in open_trials if cell_id in last), None)
                why = "they have not run" if row is None else f"{row['status']}: {row['reason']}"
                self.unchosen[_at(method, search)] = (
                    f"{len(open_trials)} of {counted(len(cells), 'trial')} have no result ({why}); --resume tries them again"
                )
                continue
            choice = choose(search.tuning.grid, list(ended.values()))
            if choice is None:
                self.unchosen[_at(method, search)] = "every setting of the grid diverged or ran out of memory"
            else:
                chosen[method] = choice
            for number, cell in enumerate(cells, start=1):
                row = _row(search, number, cell, last[cell.cell_id], ended, choice)
                if recorded.get(cell.cell_id) != as_fields(TUNING_FILE, row):
                    folder.append(TUNING_FILE, row)
        return chosen

    def _trainings(self, search: Search, chosen: Mapping[str, Choice]) -> list[Cell]:
        """The final training of every method with what was chosen for it, seed by seed."""
        cells: list[Cell] = []
        for method, choice in chosen.items():
            request = replace(search.request, methods=[method], grid=({**self.fixed, **choice.setting},))
            cells += [_tuned(cell, search, choice) for cell in make_plans(self.recipe_name, request)[-1]]
        order = {seed: place for place, seed in enumerate(dict.fromkeys(cell.seed for cell in cells))}
        return sorted(cells, key=lambda cell: order[cell.seed])


def _at(method: str, search: Search) -> str:
    return f"{method}, {search.where}" if search.where else method


def _row(
    search: Search, number: int, cell: Cell, row: Row, trials: Mapping[str, Trial], choice: Choice | None
) -> dict[str, Any]:
    """A trial's row of tuning.csv."""
    trial = trials[cell.cell_id]
    chosen = choice is not None and trial.setting == choice.setting
    return {
        **{column.name: row.get(column.name) or None for column in CELL_KEY},
        "protocol": short_hash(search.protocol),
        "setting": json.dumps(trial.setting, sort_keys=True),
        "trial": number,
        "trials": search.tuning.trials,
        "status": row["status"],
        "validation_top1": trial.top1,
        "setting_top1": mean_top1([same for same in trials.values() if same.setting == trial.setting]),
        "chosen": chosen,
        "as_recipe": trial.setting == search.own,
        "at_edge": " ".join(choice.at_edge) if choice is not None and chosen else None,
        "reason": row.get("reason"),
    }


def _tuned(cell: Cell, search: Search, choice: Choice) -> Cell:
    """What is trained with a choice; what a study estimates beside it is of the same settings."""
    cell = replace(cell, overrides=_without(cell.overrides, search.tuning.grid))
    if cell.kind != "run":
        return cell
    protocol, trials = search.protocol, search.tuning.trials
    tuned = {"protocol": protocol, "trials": trials, "chosen": dict(choice.setting)}
    return replace(cell, options={TUNED: tuned})


def choice_text(choice: Choice, trials: int) -> str:
    """A choice in words: "train.lr = 0.003, validation top-1 93.4 %, 6 trials"."""
    setting = ", ".join(f"{name} = {value}" for name, value in choice.setting.items())
    text = f"{setting}, validation top-1 {choice.top1:.1%}, {counted(trials, 'trial')}"
    if not choice.at_edge:
        return text
    return f"{text}; {', '.join(choice.at_edge)} at the edge of the grid: a better value may lie beyond"


def _outcome(cell: Cell, row: Row | None) -> Trial | None:
    """What came of a trial; None if it is open."""
    if row is None:
        return None
    setting, top1 = cell.options["setting"], row.get("last_validation_top1")
    if row["status"] == "ok" and top1:
        return Trial(setting, cell.seed, float(top1))
    return Trial(setting, cell.seed, None) if is_lost(row["status"], row.get("reason") or "") else None
