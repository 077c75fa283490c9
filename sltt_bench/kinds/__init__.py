"""The kinds of cell: what a worker does with a cell of each kind, and which files its rows go to.

To add a kind, add an entry to KINDS, a word to `results.schema.Kind`, and a function (cell, job, reporter)
that sends its measurements to the reporter. Nothing here loads torch; the function's module may.
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
    from sltt_bench.planning.plan import Cell
    from sltt_bench.running.worker import Reporter

Job = Mapping[str, Any]
"""What a worker receives in addition to the cell: data_dir, checkpoint, resume, initial_weights."""


@dataclass(frozen=True)
class CellKind:
    """How cells of one kind are worked on."""

    function: str
    """ "module:function", which the worker's process runs."""
    files: tuple[str, ...] = ()
    """Where its rows go, in addition to cells.csv."""
    measures: bool = True
    """Whether each cell has a fresh process of its own, without which its memory could not be measured;
    cells that are only computed share processes."""
    needs_data: bool = True
    """Whether the cell reads its data set."""
    checkpoints: bool = False
    """Whether an interrupted attempt goes on from a checkpoint."""
    divisible: bool = False
    """Whether several processes may share its batches (train.devices)."""

    def load(self) -> "Callable[[Cell, Job, Reporter], None]":
        """Returns the function. Loads torch."""
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
    "check": CellKind("sltt_bench.kinds.checks:check_cell", measures=False, needs_data=False),
}  # fmt: skip
"""How each kind is worked on. A check or preflight has no row: it is asked before a run."""
