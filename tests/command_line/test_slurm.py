"""Cells as jobs of a real Slurm: what is cancelled, killed or out of time has its row, and resubmission completes it.

What the jobs do is the real thing but for the training: a cell's process sleeps and counts, where torch would train.
"""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import slurm_cluster
from checkout import ROOT
from typer.testing import CliRunner

from sltt_bench.command_line import slurm
from sltt_bench.command_line.cli import app
from sltt_bench.planning.plan import Request, make_plans
from sltt_bench.report.grouping import make_groups
from sltt_bench.results.reader import read_results
from sltt_bench.results.schema import CELLS_FILE, EPOCHS_FILE

TRAINING = '''
"""Loaded by every Python that finds it: in place of training, a cell does what the file of its seed says."""

import json
import os
import sys
import time
import types
from pathlib import Path

HERE = Path(__file__).parent


def train_cell(cell, job, reporter):
    checkpoint = Path(job["checkpoint"])
    first = 1 + (json.loads(checkpoint.read_text()) if job["resume"] else 0)
    reporter.facts(device="cpu", device_name="a processor", precision="fp32", ranks=1)
    for epoch in range(first, cell.recipe.train.epochs + 1):
        checkpoint.parent.mkdir(exist_ok=True)
        checkpoint.write_text(json.dumps(epoch))
        figures = {"epoch": epoch, "cold": epoch == first, "train_s": 0.1, "eval_s": 0.1, "lr": 0.1}
        reporter.epoch(figures | {"train_loss": 1.0, "test_loss": 1.0, "samples": 64, "test_top1": 0.5})
        while epoch == 1 and (HERE / f"hold-{cell.seed}").exists():
            mark = HERE / f"runner-{cell.seed}"
            mark.with_suffix(".begun").write_text(str(os.getppid()))
            mark.with_suffix(".begun").rename(mark)  # who waits for it finds it whole
            time.sleep(0.05)


for name, attributes in {
    "sltt_bench.kinds.training": {"train_cell": train_cell},
    "sltt_bench.torch_internals": {"leave_compiler_unloaded": lambda: None},
}.items():
    module = types.ModuleType(name)
    vars(module).update(attributes)
    sys.modules[name] = module
'''

needs_slurm = pytest.mark.skipif(
    slurm_cluster.missing() is not None, reason=f"no Slurm to start: {slurm_cluster.missing()}"
)


@pytest.fixture(scope="session")
def slurm_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """How Slurm's commands find the cluster of this session."""
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield dict(environment)


@pytest.fixture
def jobs(slurm_environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with what jobs do in place of training; Slurm is at hand."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(textwrap.dedent(TRAINING))
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{ROOT}")
    for name, value in slurm_environment.items():
        monkeypatch.setenv(name, value)
    for name in [name for name in os.environ if name.startswith("SLURM_") and name != "SLURM_CONF"]:
        monkeypatch.delenv(name)
    return folder


CELLS = (
    "digits",
    "--smoke",
    "--device",
    "cpu",
    "--method",
    "sltt",
    "--set",
    "train.epochs=3",
    "--cpus-per-task",
    "1",
)


def test_what_a_submission_leaves_out_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    submission = types.SimpleNamespace(folder=tmp_path)
    monkeypatch.setattr("sltt_bench.command_line.slurm.submit", lambda plans, *args, **how: submission)
    monkeypatch.setattr("sltt_bench.command_line.verbs.show_status", lambda folder: 0)
    arguments = [
        "submit",
        "digits",
        "--method",
        "bptt,sltt-k4",
        "--set",
        "timesteps=2,4",
        "--set",
        "native.compile=true",
    ]
    code, output = call(*arguments)
    assert code == 0, output
    assert output.splitlines() == [
        "native.compile counts for nothing here: only the backend native reads it",
        "sltt-k4 is left out at T = 2: K must not exceed T",
    ]


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def states(folder: Path) -> dict[int, tuple[str, str]]:
    """Seed → (state, reason) as `status --json` says."""
    _, output = call("status", str(folder), "--json")
    return {
        int(each["cell"].partition("seed ")[2].split()[0]): (each["state"], each["reason"])
        for each in json.loads(output)
    }


def wait_until(condition: Callable[[], Any], patience_s: float = 120.0) -> None:
    end = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end, "that did not happen"
        time.sleep(0.5)


def test_loading_submitit_leaves_the_logging_of_the_process_alone() -> None:
    code = (
        "import logging, os; from sltt_bench.command_line import slurm\n"
        "class Handler(logging.Handler):\n"
        "    def close(self): print('closed'); super().close()\n"
        "logging.getLogger().addHandler(Handler())\n"
        "print(slurm.load_submitit().__name__, os.environ.get('SUBMITIT_LOG_LEVEL'))\n"
        "os._exit(0)"
    )
    for before, after in (({}, "None"), ({"SUBMITIT_LOG_LEVEL": "ERROR"}, "ERROR")):
        environment = {**os.environ, **before, "PYTHONUNBUFFERED": "1"}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.stdout == f"submitit {after}\n", done.stdout + done.stderr


@needs_slurm
@pytest.mark.waits
@pytest.mark.parametrize("cells", [3, pytest.param(6, marks=pytest.mark.long)])
def test_a_submission_is_cancelled_killed_out_of_time_and_completed(
    cells: int, jobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "SIGNAL_DELAY_S", 58)
    out_of_time, killed, cancelled = range(3)
    for seed in (out_of_time, killed):
        (jobs / f"hold-{seed}").touch()
    seeds = ",".join(map(str, range(cells)))
    options = ("--time", "1m", "--array-parallelism", "2", "--out", str(tmp_path / "out"))
    arguments = (*CELLS, "--seed", seeds, *options)
    code, output = call("submit", *arguments)
    assert code == 0, output
    (folder,) = (tmp_path / "out").iterdir()

    wait_until(lambda: all((jobs / f"runner-{seed}").exists() for seed in (out_of_time, killed)))
    now = states(folder)
    assert [now[seed][0] for seed in range(cells)] == ["running"] * 2 + ["queued"] * (cells - 2)
    assert now[cancelled][1] == "JobArrayTaskLimit"

    identity = {cell.seed: cell.cell_id for cell in slurm.Submission.read(folder).cells}
    code, output = call("cancel", str(folder), "--cell", identity[cancelled])
    assert "1 job cancelled" in output
    assert states(folder)[cancelled] == ("cancelled", "skipped: cancelled before its job began")

    os.kill(int((jobs / f"runner-{killed}").read_text()), signal.SIGKILL)
    wait_until(lambda: states(folder)[killed][0] == "failed")
    assert "left no row, and Slurm says FAILED" in states(folder)[killed][1]
    (jobs / f"hold-{killed}").unlink()

    jobs_of = slurm.Submission.read(folder).jobs
    scripts = [path.read_text() for path in (folder / slurm.STATE_FOLDER / slurm.JOBS_FOLDER).glob("*.sh")]
    assert all("#SBATCH --signal=USR2@58" in script for script in scripts)
    if cells == 3:  # as Slurm does when it next looks at the time limits, twice a minute
        slurm_cluster.answer("scancel", "--signal=USR2", jobs_of[identity[out_of_time]])
    wait_until(lambda: "killed" in rows(folder, out_of_time).status.tolist())
    (jobs / f"hold-{out_of_time}").unlink()
    wait_until(lambda: {state for state, _ in states(folder).values()} <= {"done", "cancelled", "failed"})
    now = states(folder)
    assert [now[seed][0] for seed in range(cells)] == ["done", "failed", "cancelled"] + ["done"] * (cells - 3)
    requeued = rows(folder, out_of_time)
    assert requeued.status.tolist() == ["killed", "ok"]
    # Out of its time Slurm ends all processes of a job, in no order: the worker, too, may be the first.
    assert requeued.reason[0] in (
        "ended by its scheduler, to be started again",
        "interrupted by SIGTERM",
        "the process was ended by SIGTERM",
    )

    code, output = call("submit", *arguments, "--resume")
    assert code == 0, output
    assert list((tmp_path / "out").iterdir()) == [folder]
    wait_until(lambda: {state for state, _ in states(folder).values()} == {"done"})
    assert rows(folder, killed).status.tolist() == ["killed", "ok"]
    assert "its job ended without a word" in rows(folder, killed).reason[0]
    assert rows(folder, cancelled).status.tolist() == ["skipped", "ok"]

    results = read_results([folder])
    assert sorted(results.cells.seed.astype(int)) == list(range(cells))
    assert set(results.cells.status) == {"ok"}
    assert len(results.epochs) == cells * 3
    assert make_groups(results)
    assert most_at_once(folder) <= 2
    for seed in range(cells):
        epochs = pd.concat([pd.read_csv(path) for path in folder.glob(f"digits/*/{EPOCHS_FILE}")])
        of_seed = epochs[epochs.seed == seed]
        assert of_seed.epoch.tolist() == [1, 2, 3], "each epoch once, whoever wrote it"
    assert set(epochs.neighbours) == {1}


@needs_slurm
@pytest.mark.long
def test_a_cell_that_is_preempted_goes_on_when_the_urgent_job_is_over(jobs: Path, tmp_path: Path) -> None:
    (jobs / "hold-0").touch()
    code, output = call("submit", *CELLS, "--seed", "0", "--time", "1h", "--out", str(tmp_path / "out"))
    assert code == 0, output
    (folder,) = (tmp_path / "out").iterdir()
    wait_until((jobs / "runner-0").exists)
    released = jobs / "released"
    urgent = f"while [ ! -e {released} ]; do sleep 0.2; done"
    answer = slurm_cluster.answer(
        "sbatch", "--partition=urgent", "--exclusive", f"--output={tmp_path}/urgent.out", f"--wrap={urgent}"
    )
    assert "Submitted" in answer
    wait_until(lambda: states(folder)[0][0] == "queued")
    (jobs / "hold-0").unlink()
    released.touch()
    wait_until(lambda: states(folder)[0][0] == "done")
    assert rows(folder, 0).status.tolist() == ["killed", "ok"]
    assert rows(folder, 0).epochs_done.tolist() == [1, 3]
    assert sorted(read_results([folder]).epochs.epoch) == [1, 2, 3]


@needs_slurm
@pytest.mark.long
def test_a_cell_whose_node_dies_goes_on_when_slurm_starts_it_again(jobs: Path, tmp_path: Path) -> None:
    (jobs / "hold-0").touch()
    code, output = call("submit", *CELLS, "--seed", "0", "--time", "1h", "--out", str(tmp_path / "out"))
    assert code == 0, output
    (folder,) = (tmp_path / "out").iterdir()
    wait_until((jobs / "runner-0").exists)
    node = slurm_cluster.answer(
        "scontrol", "show", "hostnames", slurm_cluster.answer("sinfo", "-ho", "%N").strip()
    ).strip()
    slurm_cluster.answer("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    wait_until(lambda: states(folder)[0][0] == "queued")
    (jobs / "hold-0").unlink()
    slurm_cluster.answer("scontrol", "update", f"nodename={node}", "state=resume")
    wait_until(lambda: states(folder)[0][0] == "done")
    assert rows(folder, 0).status.tolist() == ["killed", "ok"]
    assert len(read_results([folder]).epochs) == 3


@needs_slurm
@pytest.mark.long
def test_a_cell_is_divided_over_two_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained, not pretended: a process on each of two nodes, which are two slurmd of this machine."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with slurm_cluster.cluster(tmp_path / "cluster", nodes=2) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        command = (
            "submit",
            "digits",
            "--smoke",
            "--device",
            "cpu",
            "--method",
            "sltt",
            "--time",
            "5m",
            "--nodes",
            "2",
        )
        code, output = call(*command, "--nproc-per-cell", "2", "--out", str(tmp_path / "out"))
        assert code == 0, output
        (folder,) = (tmp_path / "out").iterdir()
        wait_until(lambda: states(folder)[2022][0] in ("done", "failed"))
        assert states(folder)[2022][0] == "done", states(folder)
    (table,) = folder.glob(f"digits/*/{EPOCHS_FILE}")
    assert set(pd.read_csv(table).ranks) == {2}
    assert set(pd.read_csv(table.with_name("ranks.csv"))["rank"]) == {0, 1}


def rows(folder: Path, seed: int) -> pd.DataFrame:
    """The rows of cells.csv of one cell, in their order."""
    for path in folder.glob(f"digits/*/{CELLS_FILE}"):
        table = pd.read_csv(path)
        if set(table.seed) == {seed}:
            return table
    return pd.DataFrame({"status": []})


def most_at_once(folder: Path) -> int:
    """Cells that ran at the same time, by their rows."""
    tables = [pd.read_csv(path) for path in folder.glob(f"digits/*/{CELLS_FILE}")]
    attempts = pd.concat(tables).dropna(subset=["started_utc", "wall_s"])
    begins = pd.to_datetime(attempts.started_utc)
    ends = begins + pd.to_timedelta(attempts.wall_s - 1, unit="s")  # beginnings are rounded down to seconds
    return max(int(((begins <= moment) & (moment < ends)).sum()) for moment in begins)


# Without Slurm ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("device", "first"), [("auto", "cuda:0"), ("cpu", "cpu")])
def test_each_node_of_a_cell_has_its_share_of_the_processes(
    device: str, first: str, monkeypatch: pytest.MonkeyPatch, smoke_cell: Callable[..., Any]
) -> None:
    """Of eight processes on two nodes of four GPUs: four here, on a GPU each, with all processors among them."""
    given: dict[str, Any] = {}
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    monkeypatch.setattr("sltt_bench.running.jobs._visible_gpus", lambda: 4)
    monkeypatch.setattr("sltt_bench.running.jobs.usable_processors", lambda: 16)
    monkeypatch.setattr(
        "sltt_bench.command_line.commands.run_plans", lambda plans, **options: given.update(options) or 0
    )
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cell = {**smoke_cell(train__devices=8, train__batch_size=8).to_dict(), "device": device}
    slurm.CellJob(cell, "out", "data", (), None, neighbours=0)()
    (place,) = given["places"]
    assert (place.device, len(place.further_devices), place.threads) == (first, 3, 4)


def pretend(programs: Mapping[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let scripts stand in for Slurm's programs: (name, what it does)."""
    for name, script in {"srun": "", **programs}.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_resume_of_a_submission_that_there_is_not_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend({"sbatch": "echo Submitted batch job 7", "squeue": ""}, tmp_path, monkeypatch)
    remark = "--resume: no earlier submission has these cells; a new one starts"
    for seeds, is_said in (("0,1", True), ("0,1", False), ("0", True)):
        code, output = call("submit", *CELLS, "--seed", seeds, "--out", tmp_path / "out", "--resume")
        assert code == 0, output
        assert (remark in output) == is_said
    assert len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.parametrize("accepted", [0, 1])
def test_a_refused_array_is_told_with_its_remedy_and_leaves_nothing_but_what_was_accepted(
    accepted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first stage of two is an array of its own, which this cluster may accept before it refuses the second."""
    refusal = "echo sbatch: error: Invalid job array specification >&2; exit 1"
    arrays = (
        f"if [ -e {tmp_path}/full ]; then {refusal}; fi; touch {tmp_path}/full; echo Submitted batch job 7"
    )
    programs = {"sbatch": arrays if accepted else refusal, "scontrol": "echo 'MaxArraySize            = 2'"}
    pretend(programs, tmp_path, monkeypatch)
    (tmp_path / "first.yaml").write_text("extends: digits\ntrain: {keep_checkpoint: true}\nsmoke: {}\n")
    (tmp_path / "second.yaml").write_text("extends: first\ntimesteps: 3\ninit_from: first\n")
    recipe = str(tmp_path / "second.yaml") if accepted else "digits"
    out = tmp_path / "out"
    code, output = call(
        "submit", recipe, "--device", "cpu", "--method", "sltt", "--seed", "0,1,2", "--out", out
    )
    said = " ".join(output.split())
    assert code == 2, said
    assert "an array has 2 jobs at most here (MaxArraySize), not 3; submit them in parts, by --seed" in said
    if accepted:
        (folder,) = out.iterdir()
        assert list(slurm.Submission.read(folder).jobs.values()) == ["7"]
        assert f"other jobs of {folder} are submitted, and --resume completes them" in said
    else:
        assert list(out.iterdir()) == []


def test_a_submission_of_an_earlier_command_stays_where_a_resumption_of_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a command that was killed between Slurm's answer and its record, jobs run that the record lacks."""
    pretend({"sbatch": "echo Submitted batch job 7", "squeue": ""}, tmp_path, monkeypatch)
    submit = ("submit", *CELLS, "--seed", "0", "--out", tmp_path / "out")
    call(*submit)
    (folder,) = (tmp_path / "out").iterdir()
    replace(slurm.Submission.read(folder), jobs={}).write()
    (folder / "digits" / "run").mkdir(parents=True)
    before = sorted(folder.rglob("*"))
    pretend({"sbatch": "echo no >&2; exit 1", "scontrol": ""}, tmp_path, monkeypatch)
    code, output = call(*submit, "--resume")
    assert code == 2
    assert "Slurm refused the jobs: no" in output
    assert set(before) <= set(folder.rglob("*"))


def test_a_submission_that_was_killed_before_it_was_one_is_in_no_others_way(tmp_path: Path) -> None:
    (plan,) = make_plans("digits", Request(methods=["sltt"], seeds=[0], smoke=True))
    submission = slurm.Submission.create(tmp_path, plan.cells)
    (tmp_path / "submitted-99990101-000000-ffff" / slurm.STATE_FOLDER).mkdir(parents=True)
    assert slurm.Submission.newest_of(tmp_path, plan.cells) == submission


def test_a_submission_of_a_method_that_is_refused_now_can_be_read_and_is_in_no_others_way(
    tmp_path: Path,
) -> None:
    (plan,) = make_plans("digits", Request(methods=["sltt-k2"], seeds=[0], smoke=True))
    submission = slurm.Submission.create(tmp_path, plan.cells)
    later = tmp_path / "submitted-99990101-000000-ffff" / slurm.STATE_FOLDER
    later.mkdir(parents=True)
    written = (submission.folder / slurm.STATE_FOLDER / slurm.SUBMISSION_FILE).read_text()
    (later / slurm.SUBMISSION_FILE).write_text(written.replace('"sltt-k2"', '"sltt-k02"'))
    assert [cell.method for cell in slurm.Submission.read(later.parent).cells] == ["sltt-k02"]
    assert slurm.Submission.newest_of(tmp_path, plan.cells) == submission


def test_a_folder_without_a_submission_is_wrong_usage(tmp_path: Path) -> None:
    code, output = call("status", str(tmp_path))
    assert code == 2
    assert "nothing was submitted into this folder" in " ".join(output.split())


def test_without_slurm_submitting_is_wrong_usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, output = call("submit", *CELLS, "--out", str(tmp_path / "out"))
    assert code == 2
    assert "no Slurm here" in output
    assert not (tmp_path / "out").exists()
