"""Estimates as a table on the terminal, as rows of CSV files, and as a saved result."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from sltt_bench.estimate.estimates import Estimate, Failure
from sltt_bench.plan import Cell
from sltt_bench.profiler.tensor_bytes import Cause
from sltt_bench.results.schema import (
    CELLS_FILE,
    ESTIMATE_LAYERS_FILE,
    ESTIMATES_FILE,
    SCHEMA_VERSION,
)
from sltt_bench.results.writer import RunFolder
from sltt_bench.terminal import bytes_text

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
        """One table of memory and one of work for each recipe; ratios are to `baseline`."""
        recipes = dict.fromkeys(estimate.cell.recipe.name for estimate in self.estimates)
        tables = []
        for recipe in recipes:
            chosen = [e for e in self.estimates if e.cell.recipe.name == recipe]
            tables += [
                self._memory_table(recipe, chosen, baseline),
                self._work_table(recipe, chosen, baseline),
            ]
        return tables

    def _memory_table(self, recipe: str, chosen: Sequence[Estimate], baseline: str) -> Table:
        limited = [e for e in chosen if e.limits is not None]
        title = f"{recipe}: estimated peak of live tensors in one training iteration"
        if limited and limited[0].limits is not None:
            title += f"; limits for {bytes_text(limited[0].limits.memory_bytes)}"
        table = Table(title=title, title_justify="left")
        _add_columns(table, "method", "backend", "precision", "T", "batch", "peak", f"÷ {baseline}")
        _add_columns(table, "weights", "activations", "state", "temporary", "inputs")
        if limited:
            _add_columns(table, "largest batch", "largest T")
        for e in chosen:
            cause = e.peak_by_cause
            weights = cause[Cause.PARAMETERS] + cause[Cause.OPTIMIZER_STATE] + cause[Cause.GRADIENTS]
            other = self.baseline_of(e, baseline)
            cells = [
                *_name(e),
                bytes_text(e.peak_bytes),
                _ratio(e.peak_bytes, None if other is None else other.peak_bytes),
            ]
            cells += [
                bytes_text(size)
                for size in (
                    weights,
                    cause[Cause.ACTIVATIONS],
                    cause[Cause.NEURON_STATE],
                    cause[Cause.TEMPORARIES],
                    cause[Cause.INPUTS],
                )
            ]
            if e.limits is not None:
                longest = e.limits.largest_timesteps
                cells += [str(e.limits.largest_batch_size), "any" if longest is None else str(longest)]
            table.add_row(*cells)
        return table

    def _work_table(self, recipe: str, chosen: Sequence[Estimate], baseline: str) -> Table:
        table = Table(
            title=f"{recipe}: estimated multiplications of one training iteration", title_justify="left"
        )
        _add_columns(table, "method", "backend", "precision", "T", "batch", "forward", "backward in space")
        _add_columns(table, "backward in time", "all", f"÷ {baseline}", "epoch")
        if self.gpu:
            _add_columns(table, f"epoch on {self.gpu}, at least")
        for e in chosen:
            other = self.baseline_of(e, baseline)
            cells = [
                *_name(e),
                count_text(e.work("forward_spatial") + e.work("forward_temporal")),
                count_text(e.work("backward_spatial")),
                count_text(e.work("backward_temporal")),
                count_text(e.work("total")),
                _ratio(e.work("total"), None if other is None else other.work("total")),
                count_text(e.epoch_multiplications),
            ]
            if e.time_lower_bound_s is not None:
                cells.append(f"{e.time_lower_bound_s:.3g} s")
            table.add_row(*cells)
        return table

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


def count_text(count: float) -> str:
    """A count with a decimal prefix: 1.2 G."""
    value, prefixes = float(count), ["", " k", " M", " G", " T", " P", " E"]
    while value >= 1000 and len(prefixes) > 1:
        value, prefixes = value / 1000, prefixes[1:]
    return f"{value:.3g}{prefixes[0]}"


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
    return cell.recipe_hash, cell.backend, estimate.device_type


def _name(estimate: Estimate) -> list[str]:
    cell = estimate.cell
    train = cell.recipe.train
    return [cell.method, cell.backend, estimate.precision, str(cell.recipe.timesteps), str(train.batch_size)]


def _ratio(value: int, baseline: int | None) -> str:
    return "–" if not baseline else f"{value / baseline:.3f}"


def _add_columns(table: Table, *headings: str) -> None:
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("method", "backend") else "right")


def in_order(results: Iterable[Estimate | Failure]) -> tuple[tuple[Estimate, ...], tuple[Failure, ...]]:
    """Estimates and failures apart, each in order."""
    listed = list(results)
    return (
        tuple(r for r in listed if isinstance(r, Estimate)),
        tuple(r for r in listed if isinstance(r, Failure)),
    )
