"""How long a report of many runs takes: `python tests/benchmarks/report_of_many_runs.py [RUNS]`.

Makes RUNS result folders (2,000 unless told otherwise; one cell of 30 epochs each, five methods,
ten recipes, the rest seeds) in a temporary place, reports them in the default formats and prints
the seconds of reading and of the whole.
"""

import csv
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from sltt_bench.report import make_report
from sltt_bench.results.reader import read_results
from sltt_bench.results.schema import (
    CELLS_FILE,
    CELLS_FOLDER,
    EPOCHS_FILE,
    FILES,
    PROVENANCE_FILE,
    SCHEMA_VERSION,
)

METHODS = ("bptt", "sltt", "sltt-k4", "sltt-k2", "sltt-k1")
RECIPES = 10
EPOCHS = 30

Result = TypeVar("Result")


def main() -> None:
    """Generate, read, report, and say how long each took."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        for number in range(runs):
            write_run(top / "results", number)
        seconds, results = _timed(lambda: read_results([top / "results"]))
        print(f"{runs} runs, {len(results.epochs)} epochs read: {seconds}")
        sources, quiet = [top / "results"], Console(quiet=True)
        seconds, outcome = _timed(lambda: make_report(sources, top / "report", console=quiet))
        print(f"whole report, {len(outcome.files)} files: {seconds}")


def _timed(work: Callable[[], Result]) -> tuple[str, Result]:
    """The result, and the time that it took by the clock and of the processors, those of children included."""
    clock, processor = time.perf_counter(), sum(os.times()[:4])
    result = work()
    used = sum(os.times()[:4]) - processor
    return f"{time.perf_counter() - clock:.1f} s ({used:.1f} s of processor time)", result


def write_run(folder: Path, number: int) -> None:
    """One run's folder with one cell; its place in the list decides recipe, method and seed."""
    chance = random.Random(number)
    method = METHODS[number % len(METHODS)]
    recipe = f"recipe{number // len(METHODS) % RECIPES}"
    seed = number // len(METHODS) // RECIPES
    path = folder / recipe / f"run{number}"
    (path / CELLS_FOLDER).mkdir(parents=True)
    key = {
        "schema_version": SCHEMA_VERSION, "cell_id": f"{number:012x}", "attempt": 1, "recipe": recipe,
        "recipe_hash": recipe, "method": method, "backend": "reference", "timesteps": 6,
        "batch_size": 128, "precision": "fp32", "device": "cpu", "seed": seed,
    }  # fmt: skip
    cost = 1.0 if method == "bptt" else 0.3
    rows: list[dict[str, Any]] = [
        {
            **key, "epoch": epoch, "cold": "true" if epoch == 1 else "false", "train_s": cost + chance.random() / 10,
            "test_top1": 0.9 - 0.8 / epoch + chance.random() / 100, "samples_per_s": 1e4,
            "peak_tensor_bytes": int(cost * 2**30), "peak_rss_bytes": int(cost * 2**31),
        }
        for epoch in range(1, EPOCHS + 1)
    ]  # fmt: skip
    cell = {
        **key, "kind": "run", "device_name": "Example CPU", "overrides": "{}", "synthetic": "false",
        "smoke": "false", "status": "ok", "started_utc": f"run {number}", "wall_s": 40 + chance.random(),
        "best_test_top1": max(row["test_top1"] for row in rows), "last_test_top1": rows[-1]["test_top1"],
    }  # fmt: skip
    _write(path / EPOCHS_FILE, rows)
    _write(path / CELLS_FILE, [cell])
    provenance = {"run": path.name, "command": ["sltt-bench", "run", recipe], "packages": {"torch": "2.6.0"}}
    (path / PROVENANCE_FILE).write_text(json.dumps(provenance))
    resolved = {"recipe": {"name": recipe, "timesteps": 6, "train": {"batch_size": 128}, "claims": []}}
    (path / CELLS_FOLDER / f"{key['cell_id']}.json").write_text(json.dumps(resolved))


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    names = [column.name for column in FILES[path.name]]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
