"""Asks a process with torch, before a run or an estimate, what planning alone cannot know of cells: which of them would be refused.

It asks about those cells alone of which something is open; most plans have none, and wait for no torch.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace

from sltt_bench import methods
from sltt_bench.backends.shipped import SERVES
from sltt_bench.planning.plan import Cell, Plan, Refusal, servable
from sltt_bench.planning.recipe_fields import Recipe
from sltt_bench.running.runner import computed

LIMIT_S = 60.0
"""Seconds after which the check of a cell is given up."""


def without_refused(plans: Sequence[Plan], *, here: bool = True) -> list[Plan]:
    """The plans without the cells that would be refused, and with what is left out.

    `here`: whether the cells are to run on this machine. Raises RecipeError where no cell of a method, or of a backend, is
    left; Interrupted.
    """
    cells = [cell for plan in plans for cell in plan]
    recipes = {cell.cell_id: cell.recipe for cell in cells}
    questions: dict[tuple[str, ...], Cell] = {}
    for cell in itertools.chain.from_iterable(map(_with_compared, cells)):
        first = None if cell.needs is None else recipes[cell.needs]
        if _is_open(cell, first):
            start = None if first is None else first.model_dump(mode="json")
            questions[_key(cell)] = replace(cell, kind="check", options={"here": here, "starts_from": start})
    if not questions:
        return list(plans)
    outcomes = zip(questions, computed(list(questions.values()), timeout_s=LIMIT_S), strict=True)
    answers = {key: outcome.facts for key, outcome in outcomes if "refusal" in outcome.facts}

    def refusal(cell: Cell) -> Refusal | None:
        for asked in _with_compared(cell):
            if (answer := answers.get(_key(asked))) is not None:
                return Refusal(_place(cell, asked.method, answer["refused_by"]), answer["refusal"])
        return None

    remaining = []
    for plan in plans:
        kept, left_out = servable([(cell, refusal(cell)) for cell in plan])
        remaining.append(replace(plan, cells=tuple(kept), left_out=(*plan.left_out, *left_out)))
    return remaining


def _with_compared(cell: Cell) -> list[Cell]:
    """The cell, and the same with each method whose gradients an analysis compares."""
    return [cell, *(replace(cell, method=name) for name in cell.options.get("compared", ()))]


def _key(cell: Cell) -> tuple[str, ...]:
    """Equal for cells that differ in their seed alone."""
    return (cell.recipe_hash, cell.method, cell.backend)


def _is_open(cell: Cell, first: Recipe | None) -> bool:
    """Whether something about the cell is not known without torch; `first` is the recipe whose checkpoint it starts from."""
    return (
        cell.backend not in SERVES
        or not methods.promises(cell.method).needs.isdisjoint(_OF_THE_NETWORK)
        or cell.init is not None
        or (first is not None and _decides_shapes(first) != _decides_shapes(cell.recipe))
    )


_OF_THE_NETWORK: frozenset[methods.Need] = frozenset({"layers", "conversion"})
"""Needs of a method that a network's layers meet or do not, of which its options do not tell."""


def _decides_shapes(recipe: Recipe) -> tuple[object, ...]:
    """What the names and shapes of a network's parameters depend on."""
    steps = recipe.timesteps if "timestep" in recipe.model.needs else None
    return (recipe.model, recipe.neuron.kind, recipe.data.sample_shape, recipe.data.classes, steps)


def _place(cell: Cell, method: str, refused_by: str) -> str:
    """The option or field that is refused, as errors name it; `method` is the cell's own, or one that it compares."""
    if refused_by == "backend":
        return f"--backend {cell.backend}"
    if refused_by == "weights":
        started = "--checkpoint" if cell.kind == "analysis" else "--init"
        return started if cell.needs is None else f"{cell.recipe.name}: init_from"
    return "--method-gradients" if method != cell.method else f"{cell.recipe.name}: methods (--method)"
