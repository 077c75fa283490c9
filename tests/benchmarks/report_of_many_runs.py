"""Times the report: `python -m tests.benchmarks.report_of_many_runs [runs|methods|epochs]...`.

Makes results in a temporary folder and reports them in the default formats, twice into the same folder.
Prints wall time and processor time in seconds, the size of the first screen and the machine's load. `runs`:
2,000 runs of one cell, five methods on ten recipes, 40 seeds, 30 epochs. `methods`: 300 methods, three seeds,
30 epochs, in one run. `epochs`: five methods, three seeds, 1,000 epochs, in one run. The default is all
three.
"""

import csv
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from sltt_bench.report import make_report
from sltt_bench.results.schema import (
    CELLS_FILE,
    CELLS_FOLDER,
    EPOCHS_FILE,
    FILES,
    PROVENANCE_FILE,
    SCHEMA_VERSION,
)

METHODS = ("bptt", "sltt", "sltt-k4", "sltt-k2", "sltt-k1")

Result = TypeVar("Result")


@dataclass(frozen=True)
class MadeCell:
    """A cell of the generated results."""

    recipe: str
    method: str
    seed: int
    epochs: int = 30


def many_runs(count: int = 2000) -> Iterator[tuple[str, list[MadeCell]]]:
    """Yields runs of one cell each: five methods on ten recipes, repeated over seeds."""
    for number in range(count):
        recipe, seed = number // len(METHODS) % 10, number // len(METHODS) // 10
        yield f"run{number}", [MadeCell(f"recipe{recipe}", METHODS[number % len(METHODS)], seed)]


def many_methods(count: int = 300) -> Iterator[tuple[str, list[MadeCell]]]:
    """Yields one run of `count` methods with three seeds each."""
    methods = [*METHODS, *(f"rule-{number}" for number in range(count - len(METHODS)))]
    yield "run", [MadeCell("recipe", method, seed) for method in methods for seed in range(3)]


def many_epochs(count: int = 1000) -> Iterator[tuple[str, list[MadeCell]]]:
    """Yields one run of five methods with three seeds and `count` epochs each."""
    yield "run", [MadeCell("recipe", method, seed, count) for method in METHODS for seed in range(3)]


MODES: dict[str, Callable[[], Iterator[tuple[str, list[MadeCell]]]]] = {
    "runs": many_runs,
    "methods": many_methods,
    "epochs": many_epochs,
}


def main() -> None:
    """Generate results, report them, and print the times."""
    modes = sys.argv[1:] or list(MODES)
    if unknown := set(modes) - set(MODES):
        sys.exit(f"{', '.join(sorted(unknown))}: unknown; there are {', '.join(MODES)}")
    for mode in modes:
        with tempfile.TemporaryDirectory() as folder:
            results, target = Path(folder) / "results", Path(folder) / "report"
            for name, cells in MODES[mode]():
                write_run(results / cells[0].recipe / name, cells)
            for which in ("report", "again"):
                spent, outcome = _timed(partial(make_report, [results], target, console=Console(quiet=True)))
                first = (target / "report.html").stat().st_size
                print(
                    f"{mode}: {which} of {len(outcome.files)} files: {spent}; first screen {first / 1e6:.2f} MB; "
                    f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}",
                    flush=True,
                )


def _timed(work: Callable[[], Result]) -> tuple[str, Result]:
    """Returns a text on wall time and processor time (including children's), and the result."""
    clock, processor = time.perf_counter(), sum(os.times()[:4])
    result = work()
    used = sum(os.times()[:4]) - processor
    return f"{time.perf_counter() - clock:.1f} s ({used:.1f} s of processor time)", result


def write_run(path: Path, cells: Sequence[MadeCell]) -> None:
    """Write one run's folder."""
    (path / CELLS_FOLDER).mkdir(parents=True)
    epochs: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for cell in cells:
        chance = random.Random(f"{path.name} {cell}")
        key = {
            "schema_version": SCHEMA_VERSION, "cell_id": f"{chance.getrandbits(48):012x}", "attempt": 1,
            "recipe": cell.recipe, "recipe_hash": cell.recipe, "method": cell.method, "backend": "reference",
            "timesteps": 6, "batch_size": 128, "precision": "fp32", "device": "cpu", "seed": cell.seed,
        }  # fmt: skip
        cost = 1.0 if cell.method == "bptt" else 0.3
        own = [
            {
                **key, "epoch": epoch, "cold": "true" if epoch == 1 else "false", "train_s": cost + chance.random() / 10,
                "test_top1": 0.9 - 0.8 / epoch + chance.random() / 100, "samples_per_s": 1e4, "train_loss": 1 / epoch,
                "peak_tensor_bytes": int(cost * 2**30), "peak_rss_bytes": int(cost * 2**31),
            }
            for epoch in range(1, cell.epochs + 1)
        ]  # fmt: skip
        epochs += own
        top1 = [float(str(row["test_top1"])) for row in own]
        rows.append(
            {
                **key, "kind": "run", "device_name": "Example CPU", "overrides": "{}", "synthetic": "false",
                "smoke": "false", "status": "ok", "started_utc": path.name, "wall_s": 40 + chance.random(),
                "best_test_top1": max(top1), "last_test_top1": top1[-1],
            }
        )  # fmt: skip
        recipe = {"name": cell.recipe, "timesteps": 6, "train": {"batch_size": 128}, "claims": []}
        (path / CELLS_FOLDER / f"{key['cell_id']}.json").write_text(json.dumps({"recipe": recipe}))
    _write(path / EPOCHS_FILE, epochs)
    _write(path / CELLS_FILE, rows)
    provenance = {
        "run": path.name, "command": ["sltt-bench", "run", cells[0].recipe], "packages": {"torch": "2.6.0"},
    }  # fmt: skip
    (path / PROVENANCE_FILE).write_text(json.dumps(provenance))


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    names = [column.name for column in FILES[path.name]]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
