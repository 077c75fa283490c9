"""Measures the speed-up of parallel cells: `python tests/benchmarks/cells_side_by_side.py [CELLS [JOBS]]`.

Trains CELLS (default 100) tiny cells, each in a fresh process as always, one after another and JOBS (default
2) at a time with as many threads. The two alternate in portions of ten, so that a disturbance of the machine
slows both. Prints both times, their ratio (at least 1.6 is wanted of two jobs on two idle processors), the
machine's load, and this process's resources before and after: open files, threads and children must not have
increased.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import psutil
from typer.testing import CliRunner

from sltt_bench.command_line.cli import app

PORTION = 10


def main() -> None:
    """Measure, and print the results."""
    cells = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    jobs = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    os.environ["OMP_NUM_THREADS"] = "1"
    seconds = {1: 0.0, jobs: 0.0}
    ends = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), range(1), 1)  # loads what is loaded only once
        before = held()
        for number, first in enumerate(range(0, cells, PORTION)):
            seeds = range(first, min(first + PORTION, cells))
            for at_once in (1, jobs) if number % 2 == 0 else (jobs, 1):
                seconds[at_once] += run(Path(folder), seeds, at_once)
        after = held()
    ends.append(os.getloadavg()[0])
    print(f"{cells} cells: one by one {seconds[1]:.1f} s, {jobs} at a time {seconds[jobs]:.1f} s")
    print(f"ratio {seconds[1] / seconds[jobs]:.2f}; load average {ends[0]:.1f} before, {ends[1]:.1f} after")
    print(f"held before {before}, after {after}")
    sys.exit(any(after[name] > before[name] for name in ("open files", "threads", "children")))


def run(folder: Path, seeds: range, at_once: int) -> float:
    """Run one command on a cell for each seed; returns its seconds."""
    command = [
        "run",
        "digits",
        "--smoke",
        "--device",
        "cpu",
        "--no-estimate",
        "--method",
        "sltt",
        "--oversubscribe",
    ]
    options = ["--seed", ",".join(map(str, seeds)), "--jobs", str(at_once), "--out", str(folder)]
    began = time.perf_counter()
    result = CliRunner().invoke(app, [*command, *options])
    if result.exit_code:
        raise SystemExit(result.output)
    return time.perf_counter() - began


def held() -> dict[str, int]:
    """Returns the system resources that this process holds."""
    own = psutil.Process()
    return {
        "open files": own.num_fds(),
        "threads": own.num_threads(),
        "children": len(own.children(recursive=True)),
        "resident MiB": own.memory_info().rss >> 20,
    }


if __name__ == "__main__":
    main()
