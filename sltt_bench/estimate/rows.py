"""Estimates as a saved result of kind "estimate": rows of CSV files, written as each cell is done."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sltt_bench.estimate.estimates import Estimate, Failure
from sltt_bench.measure.tensor_bytes import Cause
from sltt_bench.plan import Cell
from sltt_bench.results.schema import (
    CELLS_FILE,
    ESTIMATE_LAYERS_FILE,
    ESTIMATES_FILE,
    SCHEMA_VERSION,
)
from sltt_bench.results.writer import RunFolder

CAUSE_COLUMNS: dict[Cause, str] = {
    Cause.PARAMETERS: "parameter_bytes",
    Cause.OPTIMIZER_STATE: "optimizer_state_bytes",
    Cause.INPUTS: "input_bytes",
    Cause.GRADIENTS: "gradient_bytes",
    Cause.NEURON_STATE: "neuron_state_bytes",
    Cause.ACTIVATIONS: "activation_bytes",
    Cause.TEMPORARIES: "temporary_bytes",
}

_PARTS = ("forward_spatial", "forward_temporal", "backward_spatial", "backward_temporal")


class SavedEstimates:
    """A folder `out`/<recipe>/<run>/ for each recipe; what is added is on disk when `add` returns."""

    def __init__(
        self, out: Path, cells: Sequence[Cell], provenance: Mapping[str, Any], gpu: str | None = None
    ) -> None:
        """`cells` are all that will be added; `gpu` is the name of the GPU of the lower bounds on time."""
        self._out, self._cells, self._provenance, self._gpu = out, cells, provenance, gpu
        self._started_utc = datetime.now(UTC).isoformat(timespec="seconds")
        self._folders: dict[str, RunFolder] = {}

    def __enter__(self) -> "SavedEstimates":
        return self

    def __exit__(self, *exception: object) -> None:
        for folder in self._folders.values():
            folder.close()

    @property
    def paths(self) -> list[Path]:
        """The folders made so far."""
        return [folder.path for folder in self._folders.values()]

    def add(self, result: Estimate | Failure) -> None:
        """Write the rows of one cell. Raises ResultsError."""
        folder = self._folder(result.cell.recipe.name)
        folder.write_cell(result.cell.to_dict())
        if isinstance(result, Estimate):
            folder.append(ESTIMATES_FILE, estimate_row(result, self._gpu))
            for row in layer_rows(result):
                folder.append(ESTIMATE_LAYERS_FILE, row)
        folder.append(CELLS_FILE, {**_ended(result), "started_utc": self._started_utc})

    def _folder(self, recipe: str) -> RunFolder:
        if recipe not in self._folders:
            cells = [cell for cell in self._cells if cell.recipe.name == recipe]
            folder = self._folders[recipe] = RunFolder.create(self._out, recipe)
            folder.write_recipe(cells[0].recipe.model_dump(mode="json"))
            plan = sorted(cell.cell_id for cell in cells)
            folder.write_provenance({**self._provenance, "run": folder.path.name, "plan": plan})
        return self._folders[recipe]


def estimate_row(estimate: Estimate, gpu: str | None = None) -> dict[str, Any]:
    """A row of estimates.csv."""
    return {**cell_key(estimate), **_figures(estimate), "gpu": gpu}


def layer_rows(estimate: Estimate) -> Iterator[dict[str, Any]]:
    """Rows of estimate_layers.csv."""
    for layer in estimate.layers:
        parts = {f"{part}_multiplications": getattr(layer, part) for part in _PARTS}
        yield {**cell_key(estimate), "layer": layer.layer, **parts}


def _ended(result: Estimate | Failure) -> dict[str, Any]:
    """A row of cells.csv but for the time."""
    cell = result.cell
    about = {
        "kind": cell.kind,
        "device_name": "fake tensors",
        "overrides": json.dumps(cell.overrides, sort_keys=True),
        "synthetic": cell.synthetic,
        "smoke": cell.smoke,
        "epochs_planned": cell.recipe.train.epochs,
        "epochs_done": 0,
    }
    if isinstance(result, Estimate):
        return {**cell_key(result), **about, "status": "ok", "parameters": result.parameters}
    key = _cell_values(cell, cell.recipe.train.precision, cell.device)
    return {**key, **about, "status": "error", "reason": result.reason}


def cell_key(estimate: Estimate) -> dict[str, Any]:
    """The columns with which each row begins."""
    return _cell_values(estimate.cell, estimate.precision, estimate.device_type)


def _cell_values(cell: Cell, precision: str, device: str) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "cell_id": cell.cell_id,
        "attempt": 1,
        "recipe": cell.recipe.name,
        "recipe_hash": cell.recipe_hash,
        "method": cell.method,
        "backend": cell.backend,
        "k": cell.k,
        "timesteps": cell.recipe.timesteps,
        "batch_size": cell.recipe.train.batch_size,
        "precision": precision,
        "device": device,
        "seed": cell.seed,
    }


def _figures(estimate: Estimate) -> dict[str, Any]:
    limits = estimate.limits
    return {
        "run_cell_id": estimate.run_cell.cell_id,
        "parameters": estimate.parameters,
        "peak_tensor_bytes": estimate.peak_bytes,
        **{column: estimate.peak_by_cause[cause] for cause, column in CAUSE_COLUMNS.items()},
        **{f"{part}_multiplications": estimate.work(part) for part in _PARTS},
        "forward_multiply_adds": estimate.forward_multiply_adds,
        "backward_multiply_adds": estimate.backward_multiply_adds,
        "iterations_per_epoch": estimate.iterations_per_epoch,
        "epoch_multiplications": estimate.epoch_multiplications,
        "epoch_lower_bound_s": estimate.time_lower_bound_s,
        "memory_bytes": None if limits is None else limits.memory_bytes,
        "largest_batch_size": None if limits is None else limits.largest_batch_size,
        "largest_timesteps": None if limits is None else limits.largest_timesteps,
    }
