"""Looks at whole plans before a run or an estimate: which cells would be refused, and which overrides none of them reads.

What planning alone cannot know is asked of a process with torch. It asks about those cells alone of which something is open; most plans have none, and wait for no torch.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sltt_bench import methods
from sltt_bench.backends.shipped import SERVES
from sltt_bench.models import MODELS
from sltt_bench.planning.plan import TUNED, Cell, Plan, Refusal, servable
from sltt_bench.planning.recipe_fields import Recipe, section_of
from sltt_bench.running.runner import computed

LIMIT_S = 60.0
"""Seconds after which the check of a cell is given up."""


def without_refused(plans: Sequence[Plan], *, here: bool = True) -> list[Plan]:
    """The plans without the cells that would be refused, and with what is left out and what counts for nothing.

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
            options = {
                "here": here,
                "is_estimate": _is_estimate(cell),
                "starts_from": start,
                "has_single_samples": _has_single_samples(cell),
            }
            questions[_key(cell)] = replace(cell, kind="check", options=options)
    outcomes = computed(list(questions.values()), timeout_s=LIMIT_S) if questions else []
    answers = {key: outcome.facts for key, outcome in zip(questions, outcomes, strict=True)}

    def refusal(cell: Cell) -> Refusal | None:
        for asked in _with_compared(cell):
            if "refusal" in (answer := answers.get(_key(asked), {})):
                return Refusal(_place(cell, asked.method, answer["refused_by"]), answer["refusal"])
        return None

    remaining = []
    for plan in plans:
        kept, left_out = servable([(cell, refusal(cell)) for cell in plan])
        remarks = (*plan.remarks, *_unread(kept, answers))
        why_fewer = (*plan.left_out, *left_out)
        remaining.append(replace(plan, cells=tuple(kept), remarks=remarks, left_out=why_fewer))
    return remaining


def _with_compared(cell: Cell) -> list[Cell]:
    """The cell, and the same with each method whose gradients an analysis compares."""
    return [cell, *(replace(cell, method=name) for name in cell.options.get("compared", ()))]


def _key(cell: Cell) -> tuple[str, ...]:
    """Equal for cells that differ in their seed alone."""
    return (cell.recipe_hash, cell.method, cell.backend, str(_is_estimate(cell)))


def _is_estimate(cell: Cell) -> bool:
    return cell.kind == "estimate"


def _is_open(cell: Cell, first: Recipe | None) -> bool:
    """Whether something about the cell is not known without torch; `first` is the recipe whose checkpoint it starts from."""
    return (
        cell.backend not in SERVES
        or not methods.promises(cell.method).needs.isdisjoint(_OF_THE_NETWORK)
        or cell.init is not None
        or _may_lack_neurons(cell)
        or _has_single_samples(cell)
        or (first is not None and _decides_shapes(first) != _decides_shapes(cell.recipe))
    )


_OF_THE_NETWORK: frozenset[methods.Need] = frozenset({"layers", "conversion"})
"""Needs of a method that a network's layers meet or do not, of which its options do not tell."""


def _may_lack_neurons(cell: Cell) -> bool:
    """Whether the cell has other neurons than its recipe, and a network of a third party, which may have none of them.

    Not where the network normalises by their threshold.
    """
    is_foreign = cell.recipe.model.name not in MODELS and "sequence" not in cell.recipe.model.needs
    return is_foreign and any(section_of(key) == "neuron" for key in cell.overrides)


def _has_single_samples(cell: Cell) -> bool:
    """Whether a process has one sample of a batch, of which some networks' batch norm makes nothing.

    An estimate is of whole batches; an analysis that trains no epoch looks at the first ones.
    """
    train = cell.recipe.train
    samples = train.batch_size if _is_estimate(cell) else cell.recipe.epoch_samples(synthetic=cell.synthetic)
    if cell.kind == "analysis" and not any(cell.options["epochs"]):
        samples = min(samples, cell.options["batches"] * train.batch_size)
    return samples > 0 and train.has_single_samples(samples)


def _unread(cells: Sequence[Cell], answers: Mapping[tuple[str, ...], Mapping[str, Any]]) -> Iterator[str]:
    """A remark on each override that no cell reads. `answers`: what a process said of cells, by `_key`."""
    for key in dict.fromkeys(key for cell in cells for key in cell.overrides):
        reasons = [
            _why_unread(key, cell, answers.get(_key(cell), {})) for cell in cells if key in cell.overrides
        ]
        if None not in reasons:
            yield f"{key} counts for nothing here: {reasons[0]}"


def _why_unread(key: str, cell: Cell, answer: Mapping[str, Any]) -> str | None:
    """Why a cell does not read an override, or None."""
    if section_of(key) == "neuron" and answer.get("neurons") == 0:
        return f"network {cell.recipe.model.name} has no layer of the recipe's neurons"
    is_read, why = _READERS.get(key) or _READERS.get(section_of(key)) or _BY_ALL
    return None if is_read(cell) else why


def _has_the_neurons(cell: Cell) -> bool:
    return "conversion" not in methods.promises(cell.method).needs


_READERS: Mapping[str, tuple[Callable[[Cell], bool], str]] = {
    "neuron": (_has_the_neurons, "method conversion has neurons of its own"),
    "native": (lambda cell: cell.backend == "native", "only the backend native reads it"),
    "tuning": (lambda cell: TUNED in cell.options, "only `sltt-bench tune` reads it"),
    "smoke": (lambda cell: cell.smoke, "only --smoke reads it"),
    "data.prefetch_factor": (lambda cell: cell.recipe.data.workers > 0, "data.workers is 0"),
    "data.synthetic_samples": (lambda cell: cell.synthetic, "only --synthetic reads it"),
    "train.momentum": (lambda cell: cell.recipe.train.optimizer == "sgd", "train.optimizer adamw has none"),
    "train.synchronise_batch_norm": (lambda cell: cell.recipe.train.devices > 1, "train.devices is 1"),
    "loss.mse_target": (lambda cell: cell.recipe.loss.alpha > 0, "loss.alpha is 0"),
}
"""Field or section of a recipe → whether a cell reads it, and why it does not."""
_BY_ALL: tuple[Callable[[Cell], bool], str] = (lambda cell: True, "")


def _decides_shapes(recipe: Recipe) -> tuple[object, ...]:
    """What the names and shapes of a network's parameters depend on."""
    steps = recipe.timesteps if "timestep" in recipe.model.needs else None
    return (recipe.model, recipe.neuron.kind, recipe.data.sample_shape, recipe.data.classes, steps)


def _place(cell: Cell, method: str, refused_by: str) -> str:
    """The option or field that is refused, as errors name it; `method` is the cell's own, or one that it compares."""
    if refused_by == "backend":
        return f"--backend {cell.backend}"
    if refused_by == "batches":
        return f"{cell.recipe.name}: train.batch_size"
    if refused_by == "weights":
        started = "--checkpoint" if cell.kind == "analysis" else "--init"
        return started if cell.needs is None else f"{cell.recipe.name}: init_from"
    return "--method-gradients" if method != cell.method else f"{cell.recipe.name}: methods (--method)"
