"""Tuning as a plan: every trial is a cell, and so is every training with what was chosen from them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sltt_bench.identity import short_hash
from sltt_bench.plan import TUNED, Cell, Plan, Request, make_plans, value_at
from sltt_bench.recipe import RecipeError, TuningRecipe, load_recipe
from sltt_bench.results.schema import CELL_KEY, CELLS_FILE, TUNING_FILE
from sltt_bench.results.writer import RunFolder
from sltt_bench.studies import points
from sltt_bench.tuning.choice import Choice, Trial, choose, is_lost, mean_top1

Row = Mapping[str, str]


def plan_tuning(recipe_name: str, request: Request) -> list[Plan]:
    """The trials of `request`'s methods, preceded by the recipe's prerequisite if it has one.

    The trials' plan knows what follows: the choice, recorded in tuning.csv, and the training of what was chosen on
    all training data with `request.seeds` (None: the recipe's). Raises RecipeError where the recipe has no tuning, or
    the request does not leave it to the recipe what is searched.
    """
    (fixed,) = request.grid[:1]
    recipe = load_recipe(recipe_name, fixed, smoke=request.smoke, chosen_methods=request.methods, any_k=True)
    tuning = recipe.tuning
    faults = []
    if tuning is None:
        raise RecipeError(
            recipe_name,
            ["has no section `tuning`, which says what is searched; `sltt-bench show digits` shows one"],
        )
    if recipe.study is not None and sum(point.kind == "run" for point in points(recipe.study)) > 1:
        faults.append(
            "a study of several points has no single setting to choose; tune the recipes that it extends"
        )
    if len(request.grid) > 1:
        faults.append("--set opens a grid; what is searched is tuning.grid, the same for every method")
    faults += [f"--set {key}: tuning.grid searches it" for key in tuning.grid if key in fixed]
    if both := sorted(set(request.seeds or recipe.seeds) & set(tuning.seeds)):
        faults.append(
            f"seed {both[0]} is one of tuning.seeds; the final training (seeds, or --seed) wants seeds of its own"
        )
    if len(request.backends) > 1:
        faults.append("--backend: settings are chosen on one backend")
    if faults:
        raise RecipeError(recipe_name, faults)
    epochs = min(tuning.epochs or recipe.train.epochs, recipe.train.epochs)
    held = {"validation": tuning.validation.model_dump(mode="json"), "train.epochs": epochs}
    grid = tuple({**fixed, **held, **setting} for setting in tuning.settings())
    *before, plan = make_plans(recipe_name, replace(request, grid=grid, seeds=tuning.seeds))
    cells = tuple(_trial(cell, tuning) for cell in plan.cells if cell.kind == "run")
    own = {name: value_at(recipe, name) for name in tuning.grid}
    final = FinalTraining(recipe_name, request, fixed, tuning, epochs, cells, own)
    seeds = len(request.seeds or recipe.seeds)
    remark = (
        f"{tuning.trials} trials of each of {len(final.methods)} methods, looked at on validation data alone; then "
        f"{seeds} {'training' if seeds == 1 else 'trainings'} of each with what was chosen, on all training data"
    )
    return [*before, replace(plan, cells=cells, remarks=(*plan.remarks, remark), then=final)]


def _trial(cell: Cell, tuning: TuningRecipe) -> Cell:
    setting = {name: value_at(cell.recipe, name) for name in tuning.grid}
    overrides = _without(cell.overrides, ("validation",))
    return replace(cell, kind="trial", overrides={**overrides, **setting}, options={"setting": setting})


def _without(overrides: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The overrides that are neither of these names nor about the tuning itself, which a cell's options tell."""
    left_out = set(names)
    return {
        key: value
        for key, value in overrides.items()
        if key not in left_out and key.partition(".")[0] != "tuning"
    }


@dataclass
class FinalTraining:
    """Chooses when the trials have ended, records it, and plans the training of what was chosen."""

    recipe_name: str
    request: Request
    fixed: Mapping[str, Any]
    """Overrides that hold for trials and final training alike."""
    tuning: TuningRecipe
    epochs: int
    """Of a trial."""
    trials: Sequence[Cell]
    own: Mapping[str, Any]
    """What the recipe says of the searched fields."""
    unchosen: dict[str, str] = field(default_factory=dict)
    """Method → why nothing was chosen for it."""

    @property
    def methods(self) -> list[str]:
        """In the order of the plan."""
        return list(dict.fromkeys(cell.method for cell in self.trials))

    @property
    def protocol(self) -> dict[str, Any]:
        """What was done alike for every method: cells that differ in it are never compared."""
        return {
            "grid": {name: list(values) for name, values in self.tuning.grid.items()},
            "seeds": list(self.tuning.seeds),
            "epochs": self.epochs,
            "validation": self.tuning.validation.model_dump(mode="json"),
        }

    def __call__(self, folder: RunFolder) -> Plan:
        """The cells to be trained now, and what was chosen in words. Adds to the folder's tuning.csv."""
        last: dict[str, Row] = {}
        for row in sorted(folder.rows(CELLS_FILE), key=lambda row: int(row["attempt"])):
            last[row["cell_id"]] = row
        recorded = {row["method"] for row in folder.rows(TUNING_FILE)}
        chosen: dict[str, Choice] = {}
        self.unchosen.clear()
        for method in self.methods:
            cells = [cell for cell in self.trials if cell.method == method]
            trials = {cell.cell_id: _outcome(cell, last.get(cell.cell_id)) for cell in cells}
            if missing := [cell_id for cell_id, trial in trials.items() if trial is None]:
                self.unchosen[method] = (
                    f"{len(missing)} of {len(cells)} trials did not end by themselves; --resume tries them again"
                )
                continue
            ended = {cell_id: trial for cell_id, trial in trials.items() if trial is not None}
            choice = choose(self.tuning.grid, list(ended.values()))
            if choice is None:
                self.unchosen[method] = "every setting of the grid diverged or ran out of memory"
            else:
                chosen[method] = choice
            if method not in recorded:
                for number, cell in enumerate(cells, start=1):
                    folder.append(TUNING_FILE, self._row(number, cell, last[cell.cell_id], ended, choice))
        return self._plan(chosen)

    def _row(
        self, number: int, cell: Cell, row: Row, trials: Mapping[str, Trial], choice: Choice | None
    ) -> dict[str, Any]:
        """A trial's row of tuning.csv."""
        trial = trials[cell.cell_id]
        chosen = choice is not None and trial.setting == choice.setting
        return {
            **{column.name: row.get(column.name) or None for column in CELL_KEY},
            "protocol": short_hash(self.protocol),
            "setting": json.dumps(trial.setting, sort_keys=True),
            "trial": number,
            "trials": self.tuning.trials,
            "status": row["status"],
            "validation_top1": trial.top1,
            "setting_top1": mean_top1([same for same in trials.values() if same.setting == trial.setting]),
            "chosen": chosen,
            "as_recipe": trial.setting == self.own,
            "at_edge": " ".join(choice.at_edge) if choice is not None and chosen else None,
            "reason": row.get("reason"),
        }

    def _plan(self, chosen: Mapping[str, Choice]) -> Plan:
        cells: list[Cell] = []
        for method, choice in chosen.items():
            request = replace(self.request, methods=[method], grid=({**self.fixed, **choice.setting},))
            plan = make_plans(self.recipe_name, request)[-1]
            cells += [self._tuned(cell, choice) for cell in plan.cells]
        order = {seed: place for place, seed in enumerate(dict.fromkeys(cell.seed for cell in cells))}
        cells.sort(key=lambda cell: order[cell.seed])
        remarks = [
            f"{method}: {choice_text(choice, self.tuning.trials)}" for method, choice in chosen.items()
        ]
        remarks += [f"{method}: nothing is chosen: {reason}" for method, reason in self.unchosen.items()]
        return Plan(self.trials[0].recipe, tuple(cells), tuple(remarks))

    def _tuned(self, cell: Cell, choice: Choice) -> Cell:
        """What is trained with a choice; what a study estimates beside it is of the same settings."""
        cell = replace(cell, overrides=_without(cell.overrides, self.tuning.grid))
        if cell.kind != "run":
            return cell
        return replace(
            cell,
            options={
                TUNED: {
                    "protocol": self.protocol,
                    "trials": self.tuning.trials,
                    "chosen": dict(choice.setting),
                }
            },
        )


def choice_text(choice: Choice, trials: int) -> str:
    """A choice in words: "train.lr = 0.003, validation top-1 93.4 %, 6 trials"."""
    setting = ", ".join(f"{name} = {value}" for name, value in choice.setting.items())
    edge = (
        f"; {', '.join(choice.at_edge)} at the edge of the grid: a better value may lie beyond"
        if choice.at_edge
        else ""
    )
    return f"{setting}, validation top-1 {choice.top1:.1%}, {trials} trials{edge}"


def _outcome(cell: Cell, row: Row | None) -> Trial | None:
    """What came of a trial; None if it is open."""
    if row is None:
        return None
    setting, top1 = cell.options["setting"], row.get("last_validation_top1")
    if row["status"] == "ok" and top1:
        return Trial(setting, cell.seed, float(top1))
    return Trial(setting, cell.seed, None) if is_lost(row["status"], row.get("reason") or "") else None
