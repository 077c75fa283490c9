"""Studies: a question about a recipe, grids over the recipe's fields, and the figure that answers it.

A study is a recipe (`recipes/studies/*.yaml`, `extends:` a shipped one) with a section `study`. `points`
expands it; `report/sections/studies.py` reports what the cells of its points measured.
"""

import itertools
import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from sltt_bench.common.strict import Count, Strict, held_by_another

FOLDER = "studies"
"""The studies' folder within the recipes, and the prefix of their names."""
TASK = "extends"
"""The key in a cell's overrides for the recipe that its grid extends instead of the study's own."""

OWN_TASK = "the study's own"
"""What a cell whose grid names no other recipe has in its place, where its siblings' do."""


def task_name(recipe: Any) -> str:
    """The recipe that a grid extends as a reader knows it: without the mark of a base that only studies extend."""
    return str(recipe).lstrip("_")


def setting_words(field: str, value: Any, equals: str = " = ") -> str:
    """What a cell has otherwise than its recipe, as YAML spells it: "neuron.tau = 2.0", "test_timesteps = null", "task digits"."""
    if field == TASK:
        return f"task {task_name(value)}"
    return f"{field}{equals}{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"


Label = Annotated[str, Field(min_length=1, max_length=200)]
Measure = Literal[
    "test_top1",
    "epoch_s",
    "peak_tensor_bytes",
    "firing_rate",
    "learning_curve",
    "cosine",
    "temporal_share",
    "multiplications",
    "estimated_peak_bytes",
]
"""What a panel shows, of runs (the first five), analyses (cosine, temporal_share) or estimates (the others).
`learning_curve` is the test accuracy after each epoch, against `epoch`."""


class Grid(Strict):
    """Every combination of its axes and methods; all seeds of the study."""

    recipe: str | None = None
    """A recipe, beside the study's file or shipped, in place of the one that the study extends: another task."""
    settings: dict[str, Any] = {}
    """Recipe fields (dotted) that all points have."""
    over: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """Recipe fields (dotted) and the values that they take; several axes multiply."""
    methods: Annotated[list[str], Field(min_length=1)] | None = None
    """null: the recipe's."""
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None
    """null: the study's. One may do for an analysis; an estimate has the first alone, since no seed changes it."""
    kind: Literal["run", "analysis", "estimate"] = "run"
    """run trains and measures, analysis takes gradients apart on the way, estimate computes on fake tensors."""
    epochs: Annotated[list[Annotated[int, Field(ge=0)] | Literal["last"]], Field(min_length=1)] = [0]
    """When an analysis looks; 0 is before training."""
    batches: Count = 4
    """Training batches that an analysis looks at."""

    @model_validator(mode="after")
    def _each_field_is_set_once(self) -> "Grid":
        if twice := sorted(self.settings.keys() & self.over.keys()):
            raise ValueError(f"settings and over both have {twice[0]}; write it in one of the two")
        for section, field in held_by_another([*self.settings, *self.over]):
            raise ValueError(f"{section} replaces all of what {field} sets a part of; write one of the two")
        return self

    def options(self, train_epochs: int) -> dict[str, Any]:
        """Returns the options that its kind of cell has in addition to the recipe."""
        if self.kind != "analysis":
            return {}
        epochs = {train_epochs if epoch == "last" else min(epoch, train_epochs) for epoch in self.epochs}
        return {"epochs": sorted(epochs), "batches": self.batches}


PANEL_WORDS = (TASK, "method", "rule", "number", "layer", "epoch", *get_args(Measure))
"""What a panel can be shown against, or apart by, beside the recipe's fields."""


class StudyPanel(Strict):
    """One part of a study's figure: a measure against something."""

    y: Measure
    """What is shown."""
    x: str
    """A recipe field (dotted); or number (in the method's name, as K), method, layer, epoch, or another measure."""
    lines: list[str] = ["method"]
    """What a line has in common: method, rule (the method's name without its number) and recipe fields; [] is one line."""
    where: dict[str, Any] = {}
    """Recipe fields (dotted) that what is shown must have; or the method."""
    title: Label | None = None


class Study(Strict):
    """A question, where it is asked, and how its answer is shown."""

    question: Label
    """One sentence."""
    grids: Annotated[list[Grid], Field(min_length=1, max_length=40)]
    """What is run."""
    figure: Annotated[list[StudyPanel], Field(min_length=1, max_length=4)]
    """The panels of the study's one figure."""
    limits: str
    """What the answer does not cover."""
    cost: str
    """How long it takes, and on what."""

    @model_validator(mode="after")
    def _curves_are_over_epochs(self) -> "Study":
        if any(panel.y == "learning_curve" and panel.x != "epoch" for panel in self.figure):
            raise ValueError("figure: a learning_curve is drawn against epoch (x: epoch)")
        return self

    @model_validator(mode="after")
    def _grids_are_small(self) -> "Study":
        if len(list(points(self))) > MAX_POINTS:
            raise ValueError(f"its grids have more than {MAX_POINTS} points; a study runs on two cores")
        return self


MAX_POINTS = 200


def points(study: Study, *, smoke: bool = False) -> Iterator[Grid]:
    """Yields the points of all grids, in the file's order, each a grid without axes.

    The cells of a point differ only in method and seed. With `smoke`, each axis has only its first value.
    """
    for _, point in numbered_points(study, smoke=smoke):
        yield point


def numbered_points(study: Study, *, smoke: bool = False) -> Iterator[tuple[int, Grid]]:
    """`points`, each behind the number (from 0) of the grid that it is of."""
    for number, grid in enumerate(study.grids):
        axes = {key: values[:1] if smoke else values for key, values in grid.over.items()}
        for values in itertools.product(*axes.values()):
            settings = {**grid.settings, **dict(zip(axes, values, strict=True))}
            yield number, grid.model_copy(update={"settings": settings, "over": {}})


def places_of(study: Study, number: int) -> dict[str, str]:
    """Where a grid says what its points have: dotted recipe field, "methods" or "recipe" → dotted key in the study's file."""
    grid, below = study.grids[number], f"study.grids.{number}"
    places = {key: f"{below}.{part}.{key}" for part in ("settings", "over") for key in getattr(grid, part)}
    named = ("methods", "recipe")
    return {**places, **{key: f"{below}.{key}" for key in named if getattr(grid, key) is not None}}
