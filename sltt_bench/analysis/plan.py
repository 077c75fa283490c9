"""Plans an analysis: every point of the grid is a cell that trains and is observed on the way."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from sltt_bench import methods
from sltt_bench.common.errors import nearest
from sltt_bench.planning.plan import Cell, Plan, Request, make_plans, processes_per_cell
from sltt_bench.planning.recipe_faults import RecipeError
from sltt_bench.planning.recipe_fields import NeuronRecipe, Recipe
from sltt_bench.planning.recipe_validation import elsewhere

LAST = "last"
"""The word for the recipe's last epoch."""


def plan_analysis(
    recipe_name: str, request: Request, *, epochs: str, batches: int, compared: Sequence[str] = ()
) -> list[Plan]:
    """Returns `request`'s plans with its cells turned into analyses.

    A cell trains with its method (if `epochs` goes beyond 0) and splits the gradients of `batches` batches
    after each of `epochs`, a comma list like "0,1,5,last". It also compares the gradients of the methods
    `compared` with BPTT's. Gradients come from plain autograd, so only the reference backend serves.
    Raises RecipeError.
    """
    if request.backends != ("reference",):
        raise RecipeError("--backend", ["gradients are taken apart on the backend `reference` only"])
    if batches < 1:
        raise RecipeError("--batches", [f"at least one batch is needed, but it is {batches}"])
    *before, plan = make_plans(recipe_name, request)
    if refusals := list(dict.fromkeys(refusal for cell in plan if (refusal := _nothing_to_take_apart(cell)))):
        raise RecipeError(recipe_name, refusals)
    if processes_per_cell([plan]) > 1:
        raise RecipeError(recipe_name, ["train.devices: an analysis has one process; --set train.devices=1"])
    faults = [fault for cell in plan for name in compared if (fault := _fault(name, cell.recipe))]
    if faults:
        raise RecipeError("--method-gradients", list(dict.fromkeys(faults)))
    further = {"compared": list(compared)} if compared else {}
    cells = tuple(
        replace(
            cell,
            kind="analysis",
            options={"epochs": parse_epochs(epochs, cell.recipe.train.epochs), "batches": batches, **further},
        )
        for cell in plan.cells
    )
    return [*before, replace(plan, cells=cells)]


def _nothing_to_take_apart(cell: Cell) -> str | None:
    """Returns why the cell's gradient cannot be split into shares of the steps, or None."""
    if "sequence" in cell.recipe.model.needs:
        return "model.normalisation: tdbn leaves no gradient of a single step to set beside BPTT's; choose another"
    if cell.recipe.loss.average == "outputs":
        return (
            "loss.average: outputs is one loss of all steps, which leaves no gradient of a single step to set beside "
            "BPTT's; set loss.average: losses"
        )
    if "conversion" in methods.promises(cell.method).needs:
        return f"method {cell.method!r} trains rectifiers in one step, of which no gradient goes through time; choose another"
    return None


def _fault(method: str, recipe: Recipe) -> str | None:
    try:
        methods.check(method, recipe.timesteps)
        if "conversion" in methods.promises(method).needs:
            return f"method {method!r} has a gradient of rectifiers alone, not of spiking neurons to set beside BPTT's"
        return methods.unsuited(method, recipe.neuron.kind, recipe.model)
    except methods.UnknownMethod as error:
        return str(error)


def full_paths(assignments: Iterable[str], option: str = "--over") -> list[str]:
    """Returns `field=value,value` texts as overrides, with `neuron.` before a neuron's field (tau=1.1,2.0).

    Raises RecipeError, which names the `option`, for a word that is no field of neurons or recipes.
    """
    paths = []
    for assignment in assignments:
        key, separator, values = assignment.partition("=")
        name = key.strip()
        of_neuron = name in NeuronRecipe.model_fields
        if name and separator and "." not in name and not of_neuron and name not in Recipe.model_fields:
            known = [*NeuronRecipe.model_fields, *Recipe.model_fields]
            raise RecipeError(
                option,
                [f"{name}: no field of recipes or neurons{elsewhere(name, name) or nearest(name, known)}"],
            )
        paths.append(f"neuron.{name}{separator}{values}" if of_neuron else assignment)
    return paths


def parse_epochs(text: str, last: int) -> list[int]:
    """Returns the epochs of a text such as "0,1,5,last", sorted and without repeats. Raises RecipeError."""
    epochs: set[int] = set()
    for part in (word.strip() for word in text.split(",")):
        if part == LAST:
            epochs.add(last)
        elif re.fullmatch(r"[0-9]{1,9}", part) and int(part) <= last:
            epochs.add(int(part))
        else:
            fault = f"{part!r}: give numbers from 0 to {last} (train.epochs) or `{LAST}`, e.g. 0,1,5,{LAST}"
            raise RecipeError("--epochs", [fault])
    return sorted(epochs)
