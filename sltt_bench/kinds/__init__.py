"""The kinds of cell: what a worker does with one, and which files its rows go to.

A further kind is an entry of KINDS, a word of `results.schema.Kind`, and a function (cell, job, reporter)
that sends what it measures to the reporter. Nothing here loads torch; the function's module may.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from sltt_bench.results.schema import (
    DRAWS_FILE,
    EPOCHS_FILE,
    ESTIMATES_FILE,
    GRADIENTS_FILE,
    METHOD_GRADIENTS_FILE,
    OPERATIONS_FILE,
    RANKS_FILE,
    TIMELINE_FILE,
    Kind,
)

if TYPE_CHECKING:
    from sltt_bench.plan import Cell
    from sltt_bench.worker import Reporter

Job = Mapping[str, Any]
"""What a worker is told beside the cell: data_dir, checkpoint, resume, initial_weights."""


@dataclass(frozen=True)
class CellKind:
    """How cells of one kind are worked on."""

    function: str
    """ "module:function" in the worker's process."""
    files: tuple[str, ...] = ()
    """Where its rows go, beside cells.csv."""
    measures: bool = True
    """Whether a cell has a fresh process to itself, as only then its memory is its own; what is
    computed and not measured shares processes."""
    needs_data: bool = True
    """Whether the cell reads its data set."""
    checkpoints: bool = False
    """Whether an attempt that was cut off goes on from a checkpoint."""
    divisible: bool = False
    """Whether several processes may share its batches (train.devices)."""

    def load(self) -> "Callable[[Cell, Job, Reporter], None]":
        """The function. Loads torch."""
        function: Callable[[Cell, Job, Reporter], None] = resolve_name(self.function)
        return function


_TRAINED: dict[str, Any] = {
    "files": (EPOCHS_FILE, TIMELINE_FILE, RANKS_FILE), "checkpoints": True, "divisible": True,
}  # fmt: skip
KINDS: dict[Kind, CellKind] = {
    "run": CellKind("sltt_bench.kinds.training:train_cell", **_TRAINED),
    "trial": CellKind("sltt_bench.kinds.training:try_setting", **_TRAINED),
    "analysis": CellKind(
        "sltt_bench.kinds.analysis:analyse_cell",
        files=(EPOCHS_FILE, TIMELINE_FILE, GRADIENTS_FILE, DRAWS_FILE, METHOD_GRADIENTS_FILE, OPERATIONS_FILE),
    ),
    "estimate": CellKind(
        "sltt_bench.kinds.estimates:estimate_iteration", files=(ESTIMATES_FILE,), measures=False, needs_data=False
    ),
    "preflight": CellKind(
        "sltt_bench.kinds.estimates:estimate_memory", measures=False, needs_data=False
    ),
}  # fmt: skip
"""Kind → how. A preflight leaves no row of its own: its figure is a column of the cell that is then run."""
