"""Estimates as rows of CSV files and as a saved result."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from sltt_bench.estimate.estimates import Estimate, Failure
from sltt_bench.estimate.shown import tables
from sltt_bench.plan import Cell
from sltt_bench.profiler.tensor_bytes import Cause
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


@dataclass(frozen=True)
class EstimateTable:
    """What `sltt-bench estimate` found."""

    estimates: tuple[Estimate, ...]
    failures: tuple[Failure, ...] = ()
    gpu: str | None = None
    """Name of the GPU of the lower bounds on time."""
    started_utc: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def baseline_of(self, estimate: Estimate, method: str) -> Estimate | None:
        """The estimate of `method` that differs in nothing else, if there is one."""
        for other in self.estimates:
            if other.cell.method == method and _all_but_method(other) == _all_but_method(estimate):
                return other
        return None

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows of estimates.csv."""
        for estimate in self.estimates:
            yield {**cell_key(estimate), **_figures(estimate), "gpu": self.gpu}

    def layer_rows(self) -> Iterator[dict[str, Any]]:
        """Rows of estimate_layers.csv."""
        for estimate in self.estimates:
            for layer in estimate.layers:
                parts = {f"{part}_multiplications": getattr(layer, part) for part in _PARTS}
                yield {**cell_key(estimate), "layer": layer.layer, **parts}

    def rich(self, baseline: str = "bptt") -> list[Table]:
        """Tables of memory and of work for each recipe; ratios are to the method `baseline`."""
        recipes = dict.fromkeys(estimate.cell.recipe.name for estimate in self.estimates)
        return [
            table
            for recipe in recipes
            for table in tables(
                [e for e in self.estimates if e.cell.recipe.name == recipe],
                baseline,
                lambda estimate: self.baseline_of(estimate, baseline),
                self.gpu,
            )
        ]

    def save(self, out: Path, provenance: Mapping[str, Any]) -> list[Path]:
        """Write a folder `out`/<recipe>/<run>/ for each recipe, of kind "estimate"; returns the folders.

        Raises ResultsError.
        """
        cells = [*(e.cell for e in self.estimates), *(f.cell for f in self.failures)]
        return [
            self._save_recipe([c for c in cells if c.recipe.name == name], out, provenance)
            for name in dict.fromkeys(cell.recipe.name for cell in cells)
        ]

    def _save_recipe(self, cells: Sequence[Cell], out: Path, provenance: Mapping[str, Any]) -> Path:
        ids = {cell.cell_id for cell in cells}
        folder = RunFolder.create(out, cells[0].recipe.name)
        try:
            folder.write_recipe(cells[0].recipe.model_dump(mode="json"))
            folder.write_provenance({**provenance, "run": folder.path.name, "plan": sorted(ids)})
            for cell in cells:
                folder.write_cell(cell.to_dict())
            for file, rows in (
                (CELLS_FILE, self._cell_rows()),
                (ESTIMATES_FILE, self.rows()),
                (ESTIMATE_LAYERS_FILE, self.layer_rows()),
            ):
                for row in rows:
                    if row["cell_id"] in ids:
                        folder.append(file, row)
        finally:
            folder.close()
        return folder.path

    def _cell_rows(self) -> Iterator[dict[str, Any]]:
        for estimate in self.estimates:
            yield {
                **cell_key(estimate),
                **self._end(estimate.cell),
                "status": "ok",
                "parameters": estimate.parameters,
            }
        for failure in self.failures:
            key = _cell_values(failure.cell, failure.cell.recipe.train.precision, failure.cell.device)
            yield {**key, **self._end(failure.cell), "status": "error", "reason": failure.reason}

    def _end(self, cell: Cell) -> dict[str, Any]:
        return {
            "kind": cell.kind,
            "device_name": "fake tensors",
            "overrides": json.dumps(cell.overrides, sort_keys=True),
            "synthetic": cell.synthetic,
            "smoke": cell.smoke,
            "started_utc": self.started_utc,
            "epochs_planned": cell.recipe.train.epochs,
            "epochs_done": 0,
        }


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


def _all_but_method(estimate: Estimate) -> tuple[Any, ...]:
    cell = estimate.cell
    return cell.recipe_hash, cell.backend, cell.seed, estimate.device_type


def in_order(results: Iterable[Estimate | Failure]) -> tuple[tuple[Estimate, ...], tuple[Failure, ...]]:
    """Estimates and failures apart, each in order."""
    listed = list(results)
    return (
        tuple(r for r in listed if isinstance(r, Estimate)),
        tuple(r for r in listed if isinstance(r, Failure)),
    )
