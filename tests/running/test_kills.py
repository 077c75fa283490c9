"""Runs that are killed at any moment and resumed: every epoch is there once, and as if nothing had happened.

`python -m pytest tests/running/test_kills.py --campaign long` kills 50 runs at random moments.
"""

import itertools
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import psutil
import pytest
import torch
from started_runs import ARGUMENTS, only_run, rows, start, wait_until

from sltt_bench.results.schema import CELLS_FILE, EPOCHS_FILE

FIVE_EPOCHS = (*ARGUMENTS, "--set", "train.epochs=5")
SAME = ["train_loss", "train_top1", "test_loss", "test_top1", "test_top5", "lr", "firing_rate", "samples"]
"""Columns that a resumed run must reproduce to the last bit."""


def finish(*arguments: str, kill_at: tuple[str, int, str] | None = None) -> int:
    process = start(*arguments, kill_at=kill_at)
    process.join()
    return int(process.exitcode)


def epochs(out: Path) -> pd.DataFrame:
    return pd.read_csv(only_run(out) / EPOCHS_FILE).sort_values(["method", "epoch"], ignore_index=True)


def assert_as_if_nothing_had_happened(out: Path, whole: Path) -> None:
    resumed, uninterrupted = epochs(out), epochs(whole)
    assert list(resumed.epoch) == list(uninterrupted.epoch), "each epoch once"
    assert list(resumed.method) == list(uninterrupted.method)
    for column in SAME:
        assert list(resumed[column]) == list(uninterrupted[column]), column
    last = pd.read_csv(only_run(out) / CELLS_FILE).groupby("method").last()
    assert set(last.status) == {"ok"}
    assert set(last.epochs_done) == {uninterrupted.epoch.max()}
    assert not list(only_run(out).glob("checkpoints/*")), "a finished cell keeps no checkpoint"
    assert not list(only_run(out).rglob("*.tmp"))


class Uninterrupted(NamedTuple):
    """A run that nobody interrupts: its folder, and how long it takes."""

    out: Path
    duration_s: float


def uninterrupted(out: Path, methods: str) -> Uninterrupted:
    # What all processes are forked from is there before the clock starts: so long take later runs.
    assert finish("--version") == 0
    began = time.monotonic()
    assert finish(*FIVE_EPOCHS, "--method", methods, "--out", str(out)) == 0
    return Uninterrupted(out, time.monotonic() - began)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    return uninterrupted(tmp_path_factory.mktemp("whole"), "sltt")


def test_a_runner_killed_before_and_after_each_kind_of_row_loses_nothing(
    whole: Uninterrupted, tmp_path: Path
) -> None:
    arguments = (*FIVE_EPOCHS, "--method", "sltt", "--out", str(tmp_path), "--resume")
    moments = [
        ("before", 1, EPOCHS_FILE),  # the checkpoint of epoch 1 is there, its row is not
        ("after", 2, EPOCHS_FILE),
        ("before", 1, CELLS_FILE),
        ("after", 1, CELLS_FILE),  # the checkpoint of the finished cell is still there
    ]
    for moment in moments:
        assert finish(*arguments, kill_at=moment) == -signal.SIGKILL, moment
    assert finish(*arguments) == 0
    assert_as_if_nothing_had_happened(tmp_path, whole.out)


def test_a_worker_that_outruns_a_stopped_runner_leaves_no_gap(whole: Uninterrupted, tmp_path: Path) -> None:
    arguments = (*FIVE_EPOCHS, "--method", "sltt", "--out", str(tmp_path))
    process = start(*arguments)
    wait_until(lambda: rows(tmp_path) >= 1, process)
    os.kill(process.pid, signal.SIGSTOP)
    recorded = rows(tmp_path)
    wait_until(lambda: checkpointed(tmp_path) >= 4, process)
    assert rows(tmp_path) == recorded < 4
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert finish(*arguments, "--resume") == 0
    assert_as_if_nothing_had_happened(tmp_path, whole.out)


def checkpointed(out: Path) -> int:
    """The epoch of the run's checkpoint."""
    for path in out.glob("digits/*/checkpoints/*.pt"):
        return int(torch.load(path, weights_only=True)["epoch"])
    return 0


def test_random_kills_of_runner_or_worker(
    whole: Uninterrupted, tmp_path: Path, request: pytest.FixtureRequest, figures: Callable[[str], None]
) -> None:
    """Half of the kills hit the runner, half its worker; what had ended before its turn came does not count."""
    long = request.config.getoption("--campaign") == "long"
    kills, methods = (50, "bptt,sltt") if long else (2, "sltt")
    arguments = (*FIVE_EPOCHS, "--method", methods)
    reference = uninterrupted(tmp_path / "whole", methods) if long else whole
    duration_s = reference.duration_s
    dice = random.Random(0)
    survived = {"runner": 0, "worker": 0}
    for number in itertools.count():
        if sum(survived.values()) >= kills:
            break
        out = tmp_path / f"killed-{number}"
        killed = dict.fromkeys(survived, 0)
        for _ in range(dice.randint(1, 3) if long else 1):
            victim = min(survived, key=lambda name: survived[name] + killed[name])
            began = time.monotonic()
            process = start(*arguments, "--out", str(out), "--resume")
            while victim == "worker" and process.exitcode is None and not workers(process):
                time.sleep(0.05)  # to look for them takes milliseconds
            process.join(dice.uniform(0, duration_s if victim == "runner" else duration_s / 3))
            victims = [process] if victim == "runner" else workers(process)
            if process.exitcode is None and victims:
                os.kill(victims[0].pid, signal.SIGKILL)
                killed[victim] += 1
            process.join()
        if not any(killed.values()):  # it had ended: nothing to resume, and the next one is killed earlier
            duration_s = min(duration_s, time.monotonic() - began)
            continue
        assert finish(*arguments, "--out", str(out), "--resume") == 0
        assert_as_if_nothing_had_happened(out, reference.out)
        survived = {name: survived[name] + killed[name] for name in survived}
    total = sum(survived.values())
    figures(
        f"{total} of {total} kills survived: {survived['runner']} of the runner, {survived['worker']} of a worker"
    )


def workers(process: Any) -> list[psutil.Process]:
    """The processes that a command has now: forked from the server that it comes from, each with a session of its own."""
    try:
        server = psutil.Process(process.pid).parent()
        beside = [] if server is None else server.children()
        return [each for each in beside if os.getpgid(each.pid) == each.pid]
    except (psutil.NoSuchProcess, ProcessLookupError):
        return []
