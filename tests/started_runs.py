"""Starts `sltt-bench` in a process of its own, which a test may kill, and watches what it writes."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from forked import fork_instead_of_spawning

from sltt_bench.command_line import cli
from sltt_bench.results.schema import CELLS_FILE, EPOCHS_FILE
from sltt_bench.results.writer import RunFolder

ARGUMENTS = (
    *("run", "digits", "--smoke", "--device", "cpu", "--no-estimate", "--seed", "0"),
    *("--set", "timesteps=2"),
)


def command(
    arguments: Sequence[str],
    kill_at: tuple[str, int, str] | None,
    begin: Callable[[], None],
    silent: bool,
) -> None:
    """`sltt-bench` in this process; `kill_at` ("before", 2, file): SIGKILL before the second row of the file."""
    begin()
    with pytest.MonkeyPatch.context() as patch:
        fork_instead_of_spawning(patch)
        if kill_at is not None:
            patch.setattr(RunFolder, "append", dying_append(*kill_at))
        sys.argv = ["sltt-bench", *arguments]
        if silent:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        cli.main()


def dying_append(when: str, number: int, name: str) -> Any:
    real, calls = RunFolder.append, 0

    def append(folder: RunFolder, file: str, row: Any) -> None:
        nonlocal calls
        calls += file == name
        due = file == name and calls == number
        if due and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        real(folder, file, row)
        if due:
            os.kill(os.getpid(), signal.SIGKILL)

    return append


def nothing() -> None:
    """What most commands begin with."""


def start(
    *arguments: str,
    kill_at: tuple[str, int, str] | None = None,
    begin: Callable[[], None] = nothing,
    silent: bool = True,
) -> Any:
    process = multiprocessing.get_context("spawn").Process(
        target=command, args=(arguments, kill_at, begin, silent)
    )
    process.start()
    return process


def only_run(out: Path) -> Path:
    """The run's folder; one that was killed before its plan was written holds nothing, and is not resumed."""
    (folder,) = (path for path in (out / "digits").iterdir() if (path / CELLS_FILE).exists())
    return folder


def rows(out: Path) -> int:
    return sum(len(path.read_text().splitlines()) - 1 for path in out.glob(f"digits/*/{EPOCHS_FILE}"))


def wait_until(condition: Callable[[], bool], process: Any) -> None:
    """Wait for something that the process does."""
    while not condition():
        assert process.exitcode is None, f"it ended with {process.exitcode}"
        time.sleep(0.02)
