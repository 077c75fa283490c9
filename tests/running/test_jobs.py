"""Cells side by side: what comes of each is what comes of it alone, and its times are known for what they are."""

import io
import json
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from plugin import install
from result_builder import HandmadeRun
from rich.console import Console
from typer.testing import CliRunner

from sltt_bench.command_line.cli import app
from sltt_bench.command_line.terminal import _Lines
from sltt_bench.planning.plan import Cell, Plan, Request, make_plans
from sltt_bench.report.grouping import make_groups
from sltt_bench.results.cell_row import Outcome
from sltt_bench.results.reader import read_results
from sltt_bench.results.schema import CELLS_FILE, EPOCHS_FILE
from sltt_bench.results.writer import RunFolder
from sltt_bench.running import jobs, worker
from sltt_bench.running import lanes as lanes_module
from sltt_bench.running.interruptions import Interrupted
from sltt_bench.running.jobs import JobsRefused, make_places
from sltt_bench.running.lanes import Attempt, Lanes, Place
from sltt_bench.running.runner import PlannedRun, _Recording, run_plans
from sltt_bench.running.worker import Reporter

MakeCell = Callable[..., Cell]
SMOKE = ("--smoke", "--device", "cpu", "--no-estimate", "--set", "timesteps=2")


def run(out: Path, *arguments: str) -> tuple[int, str, Path]:
    """(exit code, output, folder) of a run of the digits."""
    result = CliRunner().invoke(app, ["run", "digits", *arguments, *SMOKE, "--out", str(out)])
    folders = list((out / "digits").glob("*/"))
    return result.exit_code, result.output, folders[0] if folders else out


def machine(monkeypatch: pytest.MonkeyPatch, processors: int, gpus: int = 0) -> None:
    monkeypatch.setattr(jobs, "usable_processors", lambda: processors)
    monkeypatch.setattr(jobs, "shown_gpus", lambda: ["a GPU"] * gpus)
    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


# Where cells run --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "gpus", "places"),
    [
        (("auto",), 2, [Place()]),
        (("cpu", 1), 0, [Place()]),
        (("cpu", 2), 2, [Place("cpu", 4)] * 2),
        (("auto", 3), 0, [Place("cpu", 2)] * 3),
        (("auto", 2), 4, [Place("cuda:0", 4), Place("cuda:1", 4)]),
        (("auto", None, ("cuda:1", "cuda:3")), 4, [Place("cuda:1", 4), Place("cuda:3", 4)]),
        (("auto", None, ("cuda:1",)), 4, [Place("cuda:1")]),
        (("auto", None, (), 2), 4, [Place("cuda:0", 4, ("cuda:1",))]),
        (("auto", 2, (), 2), 4, [Place("cuda:0", 2, ("cuda:1",)), Place("cuda:2", 2, ("cuda:3",))]),
        (("auto", None, ("cuda:1", "cuda:3"), 2), 4, [Place("cuda:1", 4, ("cuda:3",))]),
        (("cpu", 1, (), 4), 0, [Place("cpu", 2, ("cpu",) * 3)]),
    ],
)
def test_each_lane_has_a_device_and_its_share_of_threads(
    arguments: Sequence[Any], gpus: int, places: list[Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, 8, gpus)
    per_cell = arguments[3] if len(arguments) > 3 else 1
    assert make_places(*arguments[:3], per_cell=per_cell) == places


@pytest.mark.parametrize(
    ("arguments", "gpus", "reason"),
    [
        (("cpu", 9), 0, "9 cells at once on 8 processors"),
        (("auto", 3), 2, "3 cells at once on cuda:0, cuda:1"),
        (("cuda:1", 2), 2, "2 cells at once on cuda:1"),
        (("auto", 3, ("cuda:0", "cuda:1")), 2, "3 cells at once on cuda:0, cuda:1"),
        (("auto", None, ("cuda:0", "cuda:0")), 2, "2 cells at once on cuda:0"),
    ],
)
def test_more_cells_than_the_machine_bears_are_refused_unless_asked_for(
    arguments: Sequence[Any], gpus: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, 8, gpus)
    with pytest.raises(JobsRefused, match=f"{reason}.*--oversubscribe"):
        make_places(*arguments)
    places = make_places(*arguments, oversubscribe=True)
    assert len(places) == int(reason.split()[0])
    assert all(place.threads for place in places)


@pytest.mark.parametrize(
    ("device", "devices"), [("auto", ()), ("cuda:0", ()), ("auto", ("cuda:1", "cuda:1"))]
)
def test_no_two_processes_of_one_cell_share_a_gpu(
    device: str, devices: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, 8, 1 if device == "auto" and not devices else 2)
    with pytest.raises(JobsRefused, match="NCCL wants a GPU for each"):
        make_places(device, None, devices, per_cell=2, oversubscribe=True)


def test_one_device_and_a_list_of_devices_contradict_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 8)
    with pytest.raises(JobsRefused, match="say one of them"):
        make_places("cpu", devices=["cuda:0"])


@pytest.mark.parametrize(
    ("count", "devices", "reason"),
    [
        (None, ("cuda:0", "cpu"), "never compared"),
        (1, ("cuda:0", "cuda:1"), "--jobs 1: leaves devices .* idle"),
    ],
)
def test_devices_that_would_be_wasted_or_not_comparable_are_refused(
    count: int | None, devices: Sequence[str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, 8, 2)
    with pytest.raises(JobsRefused, match=reason):
        make_places("auto", count, devices, oversubscribe=True)


def test_a_users_own_number_of_threads_is_not_exceeded(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert make_places("cpu", 2) == [Place("cpu", 3)] * 2


def test_a_refusal_ends_the_command_as_wrong_usage(tmp_path: Path) -> None:
    code, output, _ = run(tmp_path, "--jobs", "4096")
    assert code == 2
    assert "lower --jobs" in output
    assert not list(tmp_path.iterdir())


def test_a_process_is_given_the_device_and_threads_of_its_lane(
    monkeypatch: pytest.MonkeyPatch, smoke_cell: MakeCell
) -> None:
    given: list[dict[str, Any]] = []

    class Process:
        """Takes a job and ends."""

        log, has_ended = None, True

        def __init__(self, log: Path | None, events: Any) -> None:
            events.put((self, b'{"event": "finished"}\n'))
            events.put((self, None))

        def give(self, job: dict[str, Any]) -> None:
            given.append(job)

        def give_no_more(self) -> None:
            pass

        def wait(self) -> int:
            return 0

    monkeypatch.setattr(lanes_module, "_Process", Process)
    attempts = [Attempt(smoke_cell(seed=seed), Outcome("error")) for seed in (0, 1)]
    with Lanes([Place("cuda:0", 4), Place("cuda:1", 2)]) as lanes:
        lanes.run(iter(attempts))
    assert [(job["cell"]["device"], job["threads"]) for job in given] == [("cuda:0", 4), ("cuda:1", 2)]
    assert [attempt.outcome.status for attempt in attempts] == ["ok", "ok"]
    assert [attempt.most_neighbours for attempt in attempts] == [1, 1]


# What comes of them -----------------------------------------------------------------------------


def test_side_by_side_is_bitwise_one_after_the_other_and_marked(tmp_path: Path) -> None:
    cells = ("--method", "bptt,sltt", "--seed", "3", "--set", "train.epochs=2")
    code, _, alone = run(tmp_path / "alone", *cells)
    assert code == 0
    code, output, beside = run(tmp_path / "beside", *cells, "--jobs", "2", "--oversubscribe")
    assert code == 0, output
    assert "digits · bptt · seed 3 · timesteps=2: epoch 2/2" in output
    tables = [
        pd.read_csv(folder / EPOCHS_FILE).sort_values(["method", "epoch"]) for folder in (alone, beside)
    ]
    for column in ("train_loss", "test_loss", "train_top1", "test_top1", "firing_rate", "peak_tensor_bytes"):
        assert list(tables[0][column]) == list(tables[1][column]), column
    assert list(pd.read_csv(alone / CELLS_FILE).neighbours) == [0, 0]
    assert list(pd.read_csv(beside / CELLS_FILE).neighbours) == [1, 1]
    assert list(tables[0].neighbours) == [0] * 4
    assert tables[1].neighbours.max() == 1
    assert sorted(group.key.beside for group in make_groups(read_results([tmp_path]))) == [False, True]


def test_one_that_is_killed_leaves_the_other_to_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = install(tmp_path, monkeypatch)
    (site / "kill-after").write_text("0")
    cells = ("--method", "killed,sltt", "--jobs", "2", "--oversubscribe")
    code, _, folder = run(tmp_path / "out", *cells)
    assert code == 1
    rows = pd.read_csv(folder / CELLS_FILE).set_index("method")
    assert dict(rows.status) == {"killed": "killed", "sltt": "ok"}
    assert "SIGKILL" in rows.reason["killed"]


def test_an_interrupt_ends_all_and_leaves_a_row_of_each(tmp_path: Path, smoke_cell: MakeCell) -> None:
    cells = tuple(smoke_cell(seed=seed, train__epochs=1000) for seed in (0, 1, 2))

    class Interrupting(_Lines):
        """Interrupts when both cells that can run at once have had an epoch."""

        seen: set[int]

        def epoch(self, cell: Cell, row: Any) -> None:
            self.seen.add(cell.seed)
            if len(self.seen) == 2:
                raise Interrupted(2)

    display = Interrupting(Console(quiet=True), {})
    display.seen = set()
    planned = PlannedRun(Plan(cells[0].recipe, cells), lambda: RunFolder(tmp_path))
    with pytest.raises(Interrupted):
        run_plans(
            [planned],
            display,
            data_dir=tmp_path,
            initial_weights=lambda cell: None,
            provenance={},
            places=[Place("cpu", 1)] * 2,
        )
    rows = pd.read_csv(tmp_path / CELLS_FILE).set_index("seed")
    assert dict(rows.status) == {0: "killed", 1: "killed", 2: "skipped"}
    assert set(rows.reason) == {"interrupted by SIGINT"}
    epochs = pd.read_csv(tmp_path / EPOCHS_FILE)
    assert set(epochs.seed) == {0, 1}


def test_what_needs_another_cell_waits_until_that_has_ended(tmp_path: Path) -> None:
    plans = make_plans("imagenet-resnet34", Request(methods=["sltt"]))
    runs = [PlannedRun(plan, lambda plan=plan: RunFolder(tmp_path / plan.recipe.name)) for plan in plans]  # type: ignore[misc]
    recording = _Recording(runs, _Lines(Console(quiet=True), {}), tmp_path, lambda cell: None, {}, {})
    attempts = recording.attempts()
    first = next(attempts)
    assert first is not None
    assert first.cell.recipe.name == "imagenet-resnet34-t1"
    assert next(attempts) is None
    assert next(attempts) is None
    first.outcome.status = "ok"
    first.ended()
    second = next(attempts)
    assert second is not None
    assert second.cell.needs == first.cell.cell_id
    recording.close()


def test_an_epoch_that_a_killed_runner_missed_keeps_its_neighbours(
    tmp_path: Path, smoke_cell: MakeCell
) -> None:
    stream = io.StringIO()
    reporter = Reporter(stream, None, attempt=1, neighbours=3)
    reporter.checkpoint({"row": {"epoch": 1, "train_s": 1.0}})
    cell = smoke_cell()
    run = PlannedRun(Plan(cell.recipe, (cell,)), lambda: RunFolder(tmp_path))
    recording = _Recording([run], _Lines(Console(quiet=True), {}), tmp_path, lambda cell: None, {}, {})
    attempt = next(recording.attempts())
    assert attempt is not None
    attempt.hear("epochs", {"epochs": reporter._epochs})
    recording.close()
    epochs = pd.read_csv(tmp_path / EPOCHS_FILE)
    assert (epochs.epoch.tolist(), epochs.neighbours.tolist()) == ([1], [3])


def test_a_runner_that_is_stopped_holds_no_training_up_and_loses_nothing() -> None:
    read, write = os.pipe()
    with os.fdopen(read) as heard, os.fdopen(write, "w") as stream:
        reporter = Reporter(stream, None)
        for done in range(3000):  # the pipe is full after a tenth of them
            reporter.batch(1, done, 3000, {"loss": 0.1, "top1": 0.5})
            reporter.send("sample", row={"elapsed_s": 0.1 * done})
            if done % 30 == 29:
                reporter.ranks(done, [{"train_s": 0.1}])
                reporter.epoch({"epoch": done, "train_loss": 0.1})
        ending = threading.Thread(target=reporter.send, args=("finished",))
        ending.start()
        events = [json.loads(heard.readline()) for _ in range(6201)]
        ending.join()
    assert [event["done"] for event in events if event["event"] == "batch"] == list(range(3000))
    epochs = [event["row"]["epoch"] for event in events if event["event"] in ("epoch", "row")]
    assert epochs == [epoch for epoch in range(29, 3000, 30) for _ in range(2)]
    assert events[-1] == {"event": "finished"}


def test_what_the_runner_started_is_no_other_program_to_a_cell(
    smoke_cell: MakeCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cells beside it are `neighbours`; whoever else uses the processors has no part in the command."""
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(worker, "work_on", lambda cell, job, reporter: seen.append(job))
    assert worker.work({"cell": smoke_cell().to_dict(), "attempt": 1}, io.StringIO())
    assert seen[0]["command"] == os.getppid()


# How they are reported --------------------------------------------------------------------------


def test_times_beside_others_are_never_compared_with_times_alone(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "run")
    run.cell("bptt")
    run.cell("sltt", cell={"neighbours": 1})
    alone, beside = make_groups(read_results([tmp_path]))
    assert list(alone.methods) == ["bptt"]
    assert list(beside.methods) == ["sltt"]
    assert beside.elsewhere["bptt"] == "measured alone or beside other cells"
    assert any("1 other cell" in breach.text for breach in beside.breaches)
    assert not any("other cell" in breach.text for breach in alone.breaches)
