"""A cell whose batches several processes share, started by torch's launcher: its rows, its failures, its resumption."""

import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import psutil
import pytest
import torch
from plugin import install
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

from sltt_bench.backends.reference import Reference
from sltt_bench.command_line.cli import app
from sltt_bench.command_line.terminal import _Lines
from sltt_bench.estimate.estimates import estimate_cell
from sltt_bench.estimate.trace import trace_memory
from sltt_bench.measure.tensor_bytes import Cause
from sltt_bench.neurons import layers_of_neurons
from sltt_bench.planning.plan import Cell, Plan
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.report.grouping import make_groups
from sltt_bench.results.reader import read_results
from sltt_bench.results.schema import CELLS_FILE, EPOCHS_FILE, RANKS_FILE
from sltt_bench.results.writer import RunFolder
from sltt_bench.running import launch
from sltt_bench.running.interruptions import Interrupted
from sltt_bench.running.lanes import Lanes
from sltt_bench.running.runner import PlannedRun, run_plans
from sltt_bench.training.experiment import build_network

MakeCell = Callable[..., Cell]


class InterruptedAfter(_Lines):
    """Ends the run when an epoch has its row."""

    last: int | None = None

    def epoch(self, cell: Cell, row: Any) -> None:
        if self.last is not None and row["epoch"] >= self.last:
            raise Interrupted(2)


def over(cell: Cell, devices: int) -> Cell:
    """The cell with its batches shared by so many processes."""
    train = cell.recipe.train.model_copy(update={"devices": devices})
    return replace(cell, recipe=cell.recipe.model_copy(update={"train": train}))


def run(
    cell: Cell, folder: Path, interrupted_after: int | None = None, timeout_s: float | None = None
) -> None:
    display = InterruptedAfter(Console(quiet=True), {})
    display.last = interrupted_after
    planned = PlannedRun(Plan(cell.recipe, (cell,)), lambda: RunFolder(folder))
    run_plans(
        [planned],
        display,
        data_dir=folder,
        initial_weights=lambda cell: None,
        provenance={},
        timeout_s=timeout_s,
    )


def row_of(folder: Path) -> "pd.Series[Any]":
    return pd.read_csv(folder / CELLS_FILE).iloc[-1]


# What comes of it -------------------------------------------------------------------------------


def test_a_cell_goes_on_with_another_number_of_processes(tmp_path: Path, smoke_cell: MakeCell) -> None:
    cell = smoke_cell(
        timesteps=2,
        train__epochs=8,
        train__lr=0.001,
        train__precision="fp32",
        train__synchronise_batch_norm=True,
    )  # 8: a process that is interrupted may have ended more epochs than it was heard of
    assert over(cell, 2).cell_id == cell.cell_id
    run(cell, tmp_path / "alone")
    shared = tmp_path / "shared"
    for devices, last in ((2, 1), (1, 2)):
        with pytest.raises(Interrupted):
            run(over(cell, devices), shared, interrupted_after=last)
    run(over(cell, 2), shared)
    alone, epochs = pd.read_csv(tmp_path / "alone" / EPOCHS_FILE), pd.read_csv(shared / EPOCHS_FILE)
    assert list(epochs.epoch) == list(range(1, 9))
    assert list(epochs.attempt.unique()) == [1, 2, 3]
    assert list(epochs.ranks) == [1 if attempt == 2 else 2 for attempt in epochs.attempt]
    for column in ("train_loss", "test_loss", "train_top1", "test_top1", "firing_rate"):
        assert list(epochs[column]) == pytest.approx(list(alone[column]), rel=1e-4), column
    assert list(epochs.samples) == list(alone.samples)
    assert row_of(shared).status == "ok"
    assert row_of(shared).ranks == 2
    assert not list(shared.glob("checkpoints/*"))
    ranks = pd.read_csv(shared / RANKS_FILE)
    shared_by = [(epoch, rank) for epoch in epochs.epoch[epochs.ranks == 2] for rank in (0, 1)]
    assert list(zip(ranks.epoch, ranks["rank"], strict=True)) == shared_by
    assert ranks.train_s.min() > 0
    assert ranks.peak_rss_bytes.nunique() > 1
    assert epochs.peak_rss_bytes[7] == ranks.peak_rss_bytes[-2:].max()
    assert epochs.peak_tensor_bytes[7] == trace_memory(over(cell, 2), "cpu").peak_bytes
    assert epochs.peak_tensor_bytes[7] < alone.peak_tensor_bytes[7]
    assert {group.key.ranks for group in make_groups(read_results([tmp_path]))} == {"1", "1, 2"}
    # Each process read its own copy of the data, and drew its own weights: what they were is told of each.
    results = read_results([shared])
    facts = [results.runs[0].measured_with(cell.cell_id, attempt) for attempt in (1, 2, 3)]
    (one, other), (first, second) = (facts[place]["ranks_began_with"] for place in (0, 2))
    assert one == other
    assert first == second
    assert one["weights_sha256"] == facts[0]["weights_sha256"]
    names = {"training_samples_sha256", "evaluated_samples_sha256", "labels_sha256"}
    assert names == first.keys() == one.keys() - {"weights_sha256"}
    assert "ranks_began_with" not in facts[1]


@pytest.mark.long
@pytest.mark.parametrize("method", ["bptt", "sltt-k1"])
def test_as_many_processes_go_on_bit_by_bit(method: str, tmp_path: Path, smoke_cell: MakeCell) -> None:
    cell = over(smoke_cell(method, timesteps=2, train__epochs=2, model__dropout=0.2), 2)
    run(cell, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(cell, tmp_path / "parts", interrupted_after=1)
    run(cell, tmp_path / "parts")
    whole, parts = (pd.read_csv(tmp_path / name / EPOCHS_FILE) for name in ("whole", "parts"))
    for column in ("train_loss", "test_loss", "firing_rate"):
        assert list(whole[column]) == list(parts[column])


@pytest.mark.long
@pytest.mark.spawned
def test_freshly_started_processes_do_the_same(tmp_path: Path) -> None:
    command = ["run", "digits", "--smoke", "--device", "cpu", "--no-estimate", "--method", "sltt"]
    result = CliRunner().invoke(
        app, [*command, "--nproc-per-cell", "2", "--oversubscribe", "--out", str(tmp_path)]
    )
    assert result.exit_code == 0, result.output
    (folder,) = (tmp_path / "digits").glob("*/")
    assert list(pd.read_csv(folder / EPOCHS_FILE).ranks.unique()) == [2]


# What ends it -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "status", "reason"),
    [
        ("on-rank-1-killed", "killed", "rank 1 of 2: the process was ended by SIGKILL"),
        ("on-rank-1-out-of-memory", "oom", "rank 1 of 2: "),
        ("on-rank-1-hangs", "timeout", "--timeout"),
    ],
)
def test_one_process_ends_the_cell_with_its_reason_and_none_is_left(
    method: str,
    status: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    smoke_cell: MakeCell,
) -> None:
    site = install(tmp_path, monkeypatch)
    cell = over(smoke_cell(method, timesteps=2), 2)

    def pids() -> list[int]:
        return [int(path.name.partition("-")[2]) for path in site.glob("rank-*")]

    if status == "timeout":  # once they hang, however long a busy machine takes to start them
        monkeypatch.setattr(Lanes, "_left", lambda *_: 0.0 if len(pids()) == 2 else 0.1)
    run(cell, tmp_path / "out", timeout_s=120.0)
    row = row_of(tmp_path / "out")
    assert row.status == status, row.reason
    assert reason in row.reason
    assert len(pids()) == 2
    end = time.monotonic() + 20
    while any(map(alive, pids())) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(alive, pids()))


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def failure(exitcode: int, status: str | None = None, reason: str = "") -> Any:
    """What the launcher knows of a process that failed."""
    record = f'_Record: {{"status": "{status}", "reason": "{reason}"}}'
    data = {"message": "<NONE>"} if status is None else {"message": {"message": record}}
    return SimpleNamespace(exitcode=exitcode, error_file_data=data)


@pytest.mark.parametrize(
    ("failures", "status", "reason"),
    [
        ({0: failure(1, "error", "RuntimeError: Connection closed by peer"), 1: failure(-9)}, "killed", "rank 1 .*SIGKILL"),
        ({0: failure(-15), 1: failure(1, "oom", "CUDA out of memory")}, "oom", "rank 1 of 2: CUDA out of memory"),
        ({0: failure(1, "error", "pickle data was truncated"), 1: failure(1, "oom", "no memory")}, "oom", "rank 1 of 2: no memory"),
        ({0: failure(1, "error", "ncclRemoteError"), 1: failure(7)}, "error", "rank 1 of 2: .* exit code 7"),
        ({0: failure(1, "error", "no such file"), 1: failure(1, "error", "no such file")}, "error", "rank 0"),
        ({0: failure(-15), 1: failure(1, "error", "RuntimeError: gloo timed out")}, "error", "rank 1.*timed out"),
    ],
)  # fmt: skip
def test_the_reason_is_that_of_the_process_that_failed_by_itself(
    failures: dict[int, Any], status: str, reason: str
) -> None:
    actual = launch.root_failure(failures, 2, 10**9)
    assert actual.status == status
    assert pd.Series([str(actual)]).str.contains(reason).all(), str(actual)


def test_a_process_whose_launcher_is_killed_ends_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "WATCH_S", 0.01)
    reading, writing = os.pipe()
    if (agent := os.fork()) == 0:
        if (rank := os.fork()) == 0:
            os.setsid()
            launch._end_with(os.getppid())
        os.write(writing, str(rank).encode())
        time.sleep(60)
    os.close(writing)
    rank = int(os.read(reading, 20))
    time.sleep(0.1)
    assert alive(rank)
    os.kill(agent, 9)
    os.waitpid(agent, 0)
    end = time.monotonic() + 20
    while alive(rank) and time.monotonic() < end:
        time.sleep(0.01)
    assert not alive(rank)


# What is refused, and what is estimated ---------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--nproc-per-cell", "2", "--set", "train.batch_size=1"), "train.batch_size is 1, fewer than the 2 processes"),
        (("--set", "train.devices=1,2"), "--set train.devices: takes one value for a command"),
        (("--nproc-per-cell", "2000", "--set", "train.batch_size=2000"), "lower --jobs or --nproc-per-cell"),
        (("--nproc-per-cell", "2", "--devices", "cuda:0,cuda:1,cuda:2"), "cannot be shared out to cells of 2"),
    ],
)  # fmt: skip
def test_what_no_processes_can_share_is_refused_before_anything_runs(
    arguments: tuple[str, ...], text: str, tmp_path: Path
) -> None:
    result = CliRunner().invoke(app, ["run", "digits", "--smoke", *arguments, "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert text in " ".join(result.output.split())
    assert not list(tmp_path.iterdir())


def sent_by_four(network: nn.Module, more_numbers: int = 0) -> int:
    """Bytes that each of four processes sends by a ring: 3/2 of the gradient, of whether each tensor has one, of how many
    samples it is of, and of so many float32 more."""
    numbers = sum(weight.numel() + 1 for weight in network.parameters()) + 1 + more_numbers
    return 4 * numbers * 3 // 2


def test_what_a_method_asks_of_the_whole_batch_is_exchanged_too(smoke_cell: MakeCell) -> None:
    cell = smoke_cell(train__batch_size=8, timesteps=3)
    network, neurons = build_network(cell.recipe, Reference()), []
    for layer in layers_of_neurons(network):
        layer.register_forward_hook(lambda *call: neurons.append(call[-1].numel()))
    network(torch.zeros(1, *cell.recipe.data.sample_shape))
    estimate = estimate_cell(replace(over(cell, 4), method="sltt-a2"), "cpu")
    assert estimate.exchanged_bytes == sent_by_four(network, 3 * (sum(neurons) + 1))


def test_the_statistics_of_synchronised_batch_norm_are_exchanged_too(smoke_cell: MakeCell) -> None:
    """Mean (with the count) and variance of each channel, at each of two steps, forward and backward."""
    cell = smoke_cell(
        recipe="cifar10-resnet18", train__batch_size=8, timesteps=2, train__synchronise_batch_norm=True
    )
    network = build_network(cell.recipe, Reference())
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    numbers = sum(2 * 2 * (2 * norm.num_features + 1) for norm in norms)
    assert estimate_cell(over(cell, 4), "cpu").exchanged_bytes == sent_by_four(network, numbers)


def test_an_estimate_is_of_one_device_and_says_what_is_exchanged(smoke_cell: MakeCell) -> None:
    cell = smoke_cell(train__batch_size=8)
    one, four = estimate_cell(cell, "cpu"), estimate_cell(over(cell, 4), "cpu")
    assert one.exchanged_bytes == 0
    assert four.exchanged_bytes == sent_by_four(build_network(cell.recipe, Reference()))
    assert 3.9 < one.work("total") / four.work("total") < 4
    assert (
        one.trace.memory.peak_by_cause[Cause.PARAMETERS] == four.trace.memory.peak_by_cause[Cause.PARAMETERS]
    )
    assert one.trace.memory.peak_by_cause[Cause.INPUTS] > 3 * four.trace.memory.peak_by_cause[Cause.INPUTS]


def test_how_many_processes_share_a_cell_is_not_part_of_its_identity() -> None:
    digits = load_recipe("digits")
    assert load_recipe("digits", {"train.devices": 4}).fingerprint() == digits.fingerprint()


def test_the_port_at_which_nodes_meet_is_free_and_none_that_systems_hand_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        in_use = taken.getsockname()[1] - 10_000
        free = iter([in_use, 4_711, 4_712])
        monkeypatch.setattr("sltt_bench.running.launch.secrets.randbelow", lambda _: next(free))
        assert launch.free_port() in (14_711, 14_712)
    assert all(10_000 <= launch.free_port() < 32_768 for _ in [monkeypatch.undo()] * 5)
