"""Makes a cell's rows: the key columns that start each of them, and its row of cells.csv."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sltt_bench.results.doubts import doubts
from sltt_bench.results.private_paths import public, text_without_private_paths
from sltt_bench.results.schema import INFERENCE_COLUMNS, SCHEMA_VERSION, Status

if TYPE_CHECKING:
    from sltt_bench.planning.plan import Cell

Row = dict[str, Any]


@dataclass
class Outcome:
    """How an attempt at a cell ended, and what is known about it."""

    status: Status
    reason: str = ""
    attempt: int = 1
    facts: dict[str, Any] = field(default_factory=dict)
    """Values that the cell's process reported: device, device_name, precision, parameters, peaks, costs."""
    wall_s: float | None = None
    """Seconds from the start of the attempt to its end; None if it never started."""
    exit_code: int | None = None
    started_utc: str = ""
    neighbours: int | None = None
    """The largest number of other cells that ran at the same time; None if it never started."""
    answers: bool = False
    """Whether not finishing is the cell's result: a trial of a setting that cannot be trained."""


def cell_key(cell: "Cell", outcome: Outcome) -> Row:
    """Returns the columns that start every row of a cell (`schema.CELL_KEY`)."""
    return {
        "schema_version": SCHEMA_VERSION,
        "cell_id": cell.cell_id,
        "attempt": outcome.attempt,
        "recipe": cell.recipe.name,
        "recipe_hash": cell.recipe_hash,
        "method": cell.method,
        "backend": cell.backend,
        "k": cell.k,
        "timesteps": cell.recipe.timesteps,
        "batch_size": cell.recipe.train.batch_size,
        "precision": outcome.facts.get("precision", cell.recipe.train.precision),
        "device": outcome.facts.get("device", cell.device),
        "seed": cell.seed,
    }


def circumstances(cell: "Cell", outcome: Outcome) -> Row:
    """Returns the columns that tell rows with equal keys apart (`schema.CIRCUMSTANCES`)."""
    return {
        "kind": cell.kind,
        "device_name": outcome.facts.get("device_name"),
        "overrides": json.dumps(public(cell.overrides), sort_keys=True),
        "synthetic": cell.synthetic,
        "smoke": cell.smoke,
    }


def cell_row(cell: "Cell", outcome: Outcome, epochs: Mapping[int, Mapping[str, str]]) -> Row:
    """Returns the cell's row of cells.csv; `epochs`: epoch → its row of epochs.csv, from all attempts."""
    accuracy, validation = _by_epoch(epochs, "test_top1"), _by_epoch(epochs, "validation_top1")
    judged = validation or accuracy
    best = max(judged, key=lambda epoch: (judged[epoch], -epoch), default=None)
    last = max(epochs, default=0)
    return {
        **cell_key(cell, outcome),
        **circumstances(cell, outcome),
        "validation": None if cell.recipe.validation is None else cell.recipe.validation.name,
        "trials": cell.trials,
        "status": outcome.status,
        "reason": text_without_private_paths(outcome.reason),
        "started_utc": outcome.started_utc,
        "wall_s": outcome.wall_s,
        "neighbours": _neighbours(outcome, epochs),
        "ranks": outcome.facts.get(
            "ranks", cell.recipe.train.devices if cell.kind in ("run", "trial") else None
        ),
        "epochs_planned": cell.recipe.train.epochs,
        "epochs_done": last,
        "parameters": outcome.facts.get("parameters"),
        "estimated_peak_tensor_bytes": outcome.facts.get("estimated_peak_tensor_bytes"),
        "best_epoch": best,
        "best_test_top1": None if best is None else accuracy.get(best),
        "last_validation_top1": validation.get(last),
        "last_test_top1": accuracy.get(last),
        **{column.name: outcome.facts.get(column.name) for column in INFERENCE_COLUMNS},
        "doubts": "; ".join(_doubts(cell, outcome, epochs)),
        "exit_code": outcome.exit_code,
    }


def _by_epoch(epochs: Mapping[int, Mapping[str, str]], column: str) -> dict[int, float]:
    return {epoch: float(row[column]) for epoch, row in epochs.items() if row.get(column)}


def _neighbours(outcome: Outcome, epochs: Mapping[int, Mapping[str, str]]) -> int | None:
    """Returns the largest count of all attempts; None if no count is known."""
    counts = [int(row["neighbours"]) for row in epochs.values() if row.get("neighbours")]
    if outcome.neighbours is not None:
        counts.append(outcome.neighbours)
    return max(counts, default=None)


def _doubts(cell: "Cell", outcome: Outcome, epochs: Mapping[int, Mapping[str, str]]) -> list[str]:
    data = cell.recipe.data
    samples = min(data.test_samples, data.limit or data.test_samples)
    return doubts(
        [epochs[epoch] for epoch in sorted(epochs)],
        classes=data.classes,
        test_samples=samples,
        largest_class_share=outcome.facts.get("largest_class_share"),
    )
