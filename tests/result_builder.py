"""Builds result folders in which a test knows every number."""

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sltt_bench.common.yaml_text import dump_yaml
from sltt_bench.methods import backward_steps
from sltt_bench.results.schema import (
    BENCH_FILE,
    CELLS_FILE,
    EPOCHS_FILE,
    ESTIMATES_FILE,
    FILES,
    TIMELINE_FILE,
)

MIB = 2**20

RECIPE: dict[str, Any] = {
    "name": "digits",
    "description": "made by hand",
    "data": {"name": "digits", "limit": None},
    "neuron": {"tau": 1.1},
    "timesteps": 6,
    "train": {"epochs": 3, "batch_size": 64},
    "methods": ["bptt", "sltt"],
    "claims": [],
}


@dataclass
class HandmadeRun:
    """The folder of one run, to which cells are added one by one."""

    path: Path
    recipe: Mapping[str, Any] = field(default_factory=lambda: RECIPE)
    device: str = "cpu"
    device_name: str = "Example CPU, 2 threads"
    torch: str = "2.6.0"
    git_revision: str = ""
    precision: str = "fp32"
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Further entries of provenance.json."""
    number: int = 0

    def __post_init__(self) -> None:
        (self.path / "cells").mkdir(parents=True)
        (self.path / "recipe.yaml").write_text(dump_yaml(dict(self.recipe)))
        provenance = {
            "schema_version": 1,
            "run": self.path.name,
            "command": ["sltt-bench", "run", self.recipe["name"]],
            "started_utc": "2026-01-01T00:00:00+00:00",
            "packages": {"torch": self.torch},
            "git_revision": self.git_revision,
            **self.facts,
        }
        (self.path / "provenance.json").write_text(json.dumps(provenance))

    def cell(
        self,
        method: str = "bptt",
        seed: int = 0,
        *,
        train_s: Sequence[float] = (5.0, 2.0, 2.0),
        top1: Sequence[float] | None = (0.5, 0.9, 0.8),
        status: str = "ok",
        reason: str = "",
        backend: str = "reference",
        recipe: Mapping[str, Any] | None = None,
        overrides: Mapping[str, Any] | None = None,
        attempt: int = 1,
        cold: Sequence[bool] | None = None,
        cell: Mapping[str, Any] | None = None,
        **epoch_figures: Any,
    ) -> str:
        """Write a cell with its epochs; a figure is one value for all epochs or a list. Returns its id."""
        recorded = recipe or self.recipe
        cell = {"kind": "run", "synthetic": False, "smoke": False, **(cell or {})}
        kinds = {name: cell[name] for name in ("kind", "synthetic", "smoke")}
        recipe_hash = _hash([{k: v for k, v in recorded.items() if k != "claims"}, kinds])
        cell_id = _hash([recipe_hash, method, backend, seed])
        self.number += 1
        key = {
            "schema_version": 1,
            "cell_id": cell_id,
            "attempt": attempt,
            "recipe": recorded["name"],
            "recipe_hash": recipe_hash,
            "method": method,
            "backend": backend,
            "k": backward_steps(method) if method.startswith("sltt-k") else "",
            "timesteps": recorded["timesteps"],
            "batch_size": recorded["train"]["batch_size"],
            "precision": self.precision,
            "device": self.device,
            "seed": seed,
        }
        count = len(train_s) if status == "ok" else 0
        top1 = list(top1)[: len(train_s)] if top1 else None
        for index in range(count):
            figures = {
                name: value[index] if isinstance(value, list | tuple) else value
                for name, value in epoch_figures.items()
            }
            row = {
                **key,
                "epoch": index + 1,
                "cold": cold[index] if cold else index == 0,
                "train_s": train_s[index],
                "samples": 1000,
                "samples_per_s": 1000 / train_s[index] if train_s[index] else None,
                "test_top1": top1[index] if top1 else None,
                **kinds,
                "device_name": cell.get("device_name", self.device_name),
                "overrides": json.dumps(dict(overrides or {})),
                **figures,
            }
            self.append(EPOCHS_FILE, row)
        self.append(
            CELLS_FILE,
            {
                **key,
                "device_name": self.device_name,
                "overrides": json.dumps(dict(overrides or {})),
                "status": status,
                "reason": reason,
                "started_utc": f"2026-01-01T00:{self.number // 60:02}:{self.number % 60:02}+00:00",
                "wall_s": max(10.0 + self.number, sum(filter(None, train_s)) + 1),
                "epochs_planned": len(train_s),
                "epochs_done": count,
                "parameters": 1000,
                "best_epoch": top1.index(max(top1)) + 1 if top1 and count else None,
                "best_test_top1": max(top1) if top1 and count else None,
                "last_test_top1": top1[-1] if top1 and count else None,
                "exit_code": 0,
                **cell,
            },
        )
        # The recipe has as many epochs as there are rows, unless a test says how many were planned.
        resolved = varied(recorded, train__epochs=cell.get("epochs_planned", len(train_s)))
        (self.path / "cells" / f"{cell_id}.json").write_text(json.dumps({"recipe": resolved}))
        return cell_id

    def estimate(
        self,
        method: str,
        peak_mib: float,
        work: tuple[int, int, int, int] = (1, 0, 2, 0),
        *,
        recipe: Mapping[str, Any] | None = None,
        smoke: bool = False,
        backend: str = "reference",
        overrides: Mapping[str, Any] | None = None,
        **figures: Any,
    ) -> str:
        """Write an estimate with its peak (all saved activations, unless `figures` says otherwise) and its
        multiplications (forward in space and in time, backward in space and in time). Returns its id."""
        recorded, kind = recipe or self.recipe, {"kind": "estimate", "smoke": smoke}
        cell_id = self.cell(
            method, backend=backend, train_s=(), top1=None, recipe=recorded, overrides=overrides, cell=kind
        )
        parts = ("forward_spatial", "forward_temporal", "backward_spatial", "backward_temporal")
        causes = ("parameter", "optimizer_state", "input", "gradient", "neuron_state", "temporary")
        row = {
            "schema_version": 1, "cell_id": cell_id, "attempt": 1, "recipe": recorded["name"], "method": method,
            "recipe_hash": "of the estimate", "backend": backend, "timesteps": recorded["timesteps"],
            "batch_size": recorded["train"]["batch_size"], "precision": self.precision, "device": self.device, "seed": 0,
            "run_cell_id": "of the run", "peak_tensor_bytes": int(peak_mib * MIB),
            "activation_bytes": int(peak_mib * MIB), **{f"{cause}_bytes": 0 for cause in causes},
            **{f"{part}_multiplications": count for part, count in zip(parts, work, strict=True)},
            "epoch_multiplications": 10 * sum(work), **figures,
        }  # fmt: skip
        self.append(ESTIMATES_FILE, row)
        return cell_id

    def append(self, file: str, row: Mapping[str, Any]) -> None:
        """Write a row by column name; columns left out stay empty."""
        names = [column.name for column in FILES[file]]
        assert set(row) <= set(names), set(row) - set(names)
        path = self.path / file
        new = not path.exists()
        with path.open("a", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            if new:
                writer.writerow(names)
            writer.writerow([_text(row.get(name)) for name in names])

    def tell(self, facts: Mapping[str, Any]) -> None:
        """Add to provenance.json."""
        path = self.path / "provenance.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))

    def timeline(self, cell_id: str, samples: Sequence[Mapping[str, Any]]) -> None:
        """Write NVML samples of a cell."""
        for sample in samples:
            self.append(TIMELINE_FILE, {"cell_id": cell_id, "attempt": 1, **sample})


def bench_run(path: Path, *rows: Mapping[str, Any], failed: Mapping[str, str] | None = None) -> None:
    """Write a folder of the benchmark: rows of bench.csv, of which only the relevant columns are given."""
    path.mkdir(parents=True)
    provenance = {"kind": "bench", "run": path.name, "command": ["python", "-m", "tests.benchmarks"]}
    (path / "provenance.json").write_text(json.dumps(provenance | {"failed": dict(failed or {})}))
    names = [column.name for column in FILES[BENCH_FILE]]
    with (path / BENCH_FILE).open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(names)
        for number, row in enumerate(rows):
            everything = {
                "schema_version": 1, "row": "memory", "quantity": "peak_tensor_bytes", "subject": "native",
                "baseline": "a library", "problem": "a network, T = 6", "device_name": "Example GPU",
                "subject_value": 5 * MIB, "baseline_value": 10 * MIB, "ratio": 0.5,
                "finished_utc": f"2026-01-01T00:00:{number:02}+00:00", **row,
            }  # fmt: skip
            assert set(everything) <= set(names)
            writer.writerow([_text(everything.get(name)) for name in names])


def told(by_cell: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns what provenance.json keeps of the reports of the cells' processes in their first attempt."""
    return {"cells": {cell_id: {"attempts": {"1": facts}} for cell_id, facts in by_cell.items()}}


def varied(recipe: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """Returns a recipe with changed values for dotted keys (dots written as __)."""
    copy: dict[str, Any] = json.loads(json.dumps(recipe))
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        place = copy
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return copy


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
