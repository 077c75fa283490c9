"""Submits plans to Slurm through submitit, as job arrays with one job for each cell, and reports on them.

A submission is a folder of results. Each job works on one cell as `sltt-bench run` does, and has its own run
folder that nobody else writes, so no lock has to work on a shared file system. Slurm starts a job again after
a preemption, a failed node, or (through submitit) shortly before its time runs out. The job then finds its
run by the cell, as `--resume` does, and goes on from the checkpoint. The submission's own files are in
`.slurm`, which no report reads.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from sltt_bench.common.atomic_files import remove_unfinished
from sltt_bench.common.errors import UserError
from sltt_bench.common.extras import load_extra
from sltt_bench.planning.plan import Cell, Plan, cell_from_dict
from sltt_bench.results.progress import NOTHING, progress_of
from sltt_bench.results.schema import CELLS_FILE
from sltt_bench.results.writer import (
    ResultsError,
    RunFolder,
    new_folder,
    read_provenance,
    read_rows,
    write_atomically,
)
from sltt_bench.running.runner import Display, NotRunnable, PlannedRun, run_plans

STATE_FOLDER = ".slurm"
SUBMISSION_FILE = "submission.json"
JOBS_FOLDER = "jobs"
"""Below STATE_FOLDER: submitit's scripts and each job's output."""

SIGNAL_DELAY_S = 90
"""Seconds before the end of a job's time at which it is asked to end and is requeued."""

CANCELLING_S = 30.0
"""Seconds that Slurm may take to remove a cancelled job."""

State = Literal["queued", "running", "done", "failed", "cancelled"]

_WAITS = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"}
_RUNS = {"RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}


class SlurmError(UserError):
    """Slurm is missing or refused a request; the message says what to do."""


@dataclass(frozen=True)
class Resources:
    """What each job asks for, in submitit's terms."""

    time: int
    """Minutes after which Slurm ends a job; it is requeued shortly before."""
    partition: str | None = None
    nodes: int = 1
    """Nodes of a job; the processes of a cell are divided evenly among them."""
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    mem: float | None = None
    """GB."""
    array_parallelism: int = 256
    """The most jobs that run at the same time."""
    requeues: int = 20
    """How often a cell may run out of time and be requeued."""
    further: Mapping[str, str] = field(default_factory=dict)
    """Further options of sbatch: name → value, or "" for an option without a value."""


@dataclass(frozen=True)
class CellJob:
    """The work of a job. submitit sends it to the node, and asks it for a successor before time runs out."""

    cell: Mapping[str, Any]
    folder: str
    data_dir: str
    command: tuple[str, ...]
    timeout_s: float | None
    neighbours: int
    """Cells of the submission that may run at the same time."""

    def __call__(self) -> None:
        """Run or resume the cell; exit code 1 if it failed."""
        from sltt_bench.command_line import commands
        from sltt_bench.running.jobs import make_places

        if cores := os.environ.get("SLURM_CPUS_PER_TASK"):
            os.environ.setdefault("OMP_NUM_THREADS", cores)
        cell = cell_from_dict(dict(self.cell))
        nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
        on_this_node = max(1, cell.recipe.train.devices // nodes)
        places = make_places(cell.device, per_cell=on_this_node, oversubscribe=True)
        whole_node = os.environ.get("SLURM_CPUS_ON_NODE") == str(os.cpu_count())
        beside = 0 if whole_node else self.neighbours  # no other job can run on a node that is taken whole
        code = commands.run_plans(
            [Plan(cell.recipe, (cell,))],
            out=Path(self.folder),
            data_dir=Path(self.data_dir),
            timeout_s=self.timeout_s,
            resume=True,
            command=list(self.command),
            places=[replace(place, neighbours=beside) for place in places],
            lost="its job ended without a word (its node, or the process itself, was killed)",
            summary=False,
        )
        if code:
            sys.exit(code)

    def checkpoint(self) -> Any:
        """Returns the successor, the same job again: the cell's checkpoint and rows hold what is done."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass(frozen=True)
class CellStatus:
    """The state of one cell of a submission."""

    cell: Cell
    state: State
    reason: str
    """The reason that Slurm or the cell's row gives; "" if there is none."""
    job: str
    """Its last job; "" if it has none."""
    epochs_done: int


@dataclass
class Submission:
    """The cells submitted to Slurm for one folder of results, and their jobs."""

    folder: Path
    cells: list[Cell]
    jobs: dict[str, str] = field(default_factory=dict)
    """cell_id → its last job, "12_3" or "12"."""
    cancelled: list[str] = field(default_factory=list)
    """cell_ids whose last job was cancelled."""

    @classmethod
    def create(cls, out: Path, cells: Sequence[Cell]) -> "Submission":
        """Create a submission in a new folder below `out`, named by the time. Raises ResultsError."""
        folder = new_folder(out, "submitted-")
        (folder / STATE_FOLDER).mkdir()
        submission = cls(folder.absolute(), list(cells))
        submission.write()
        return submission

    @classmethod
    def read(cls, folder: Path) -> "Submission":
        """Read the submission in a folder. Raises ResultsError if there is none."""
        path = folder / STATE_FOLDER / SUBMISSION_FILE
        if folder.is_file():
            raise ResultsError(f"{folder}: is a file; give the folder that `sltt-bench submit` made")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            cells = [cell_from_dict(cell) for cell in content["cells"]]
            return cls(folder.absolute(), cells, dict(content["jobs"]), list(content["cancelled"]))
        except FileNotFoundError:
            raise ResultsError(
                f"{folder}: nothing was submitted into this folder; `sltt-bench submit` names the one that it makes"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ResultsError(f"{path}: cannot be read ({error}); submit again without --resume") from None

    @classmethod
    def newest_of(cls, out: Path, cells: Sequence[Cell]) -> "Submission | None":
        """Returns the last submission below `out` of exactly these cells, or None.

        A folder without SUBMISSION_FILE holds no submission, since its command was killed before it
        submitted.
        """
        wanted = [cell.cell_id for cell in cells]
        paths = sorted(out.glob(f"*/{STATE_FOLDER}/{SUBMISSION_FILE}"), reverse=True)
        submissions = (cls.read(path.parent.parent) for path in paths)
        return next((each for each in submissions if [cell.cell_id for cell in each.cells] == wanted), None)

    def write(self) -> None:
        """Replace the submission's file as a whole. Raises ResultsError."""
        cells = [cell.to_dict() for cell in self.cells]
        content = {"cells": cells, "jobs": self.jobs, "cancelled": self.cancelled}
        path = self.folder / STATE_FOLDER / SUBMISSION_FILE
        remove_unfinished(path.parent)
        write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())

    def withdraw(self) -> None:
        """Remove the folder of a submission of which Slurm took no job."""
        shutil.rmtree(self.folder / STATE_FOLDER)
        self.folder.rmdir()

    def runs(self) -> dict[str, Path]:
        """Returns cell_id → run folder of its job, for the jobs that have begun."""
        plans = {path: read_provenance(path).get("plan") for path in sorted(self.folder.glob("*/*/"))}
        return {plan[0]: path for path, plan in plans.items() if isinstance(plan, list) and len(plan) == 1}


# Submitting -------------------------------------------------------------------------------------


def submit(
    plans: Sequence[Plan],
    resources: Resources,
    *,
    out: Path,
    data_dir: Path,
    command: Sequence[str],
    timeout_s: float | None = None,
    resume: bool = False,
) -> Submission:
    """Submit the cells that are neither done, queued nor running to Slurm, and return at once.

    Cells whose results others need are an array of their own, whose end the array of the others awaits.
    `resume` completes the last submission of the same cells, in its folder. Raises SlurmError, ResultsError.
    """
    executor_type = load_submitit().SlurmExecutor
    if executor_type.affinity() <= 0:
        raise SlurmError("no Slurm here: srun is not in PATH; submit from a login node of the cluster")
    cells = [cell for plan in plans for cell in plan]
    earlier = Submission.newest_of(out, cells) if resume else None
    submission = earlier or Submission.create(out, cells)
    states = {each.cell.cell_id: each.state for each in status(submission)}
    open_cells = [cell for cell in cells if states[cell.cell_id] in ("failed", "cancelled")]
    needed = {cell.needs for cell in cells}
    under_way = {cell_id for cell_id, state in states.items() if state in ("queued", "running")}
    first = [cell for cell in open_cells if cell.cell_id in needed]
    rest = [cell for cell in open_cells if cell.cell_id not in needed]
    beside = min(resources.array_parallelism, len(open_cells)) - 1
    where = (str(submission.folder), str(data_dir.absolute()), tuple(command), timeout_s, beside)
    for array in filter(None, (first, rest)):
        before = {submission.jobs[str(cell.needs)] for cell in array if cell.needs in under_way}
        executor = executor_type(
            submission.folder / STATE_FOLDER / JOBS_FOLDER, max_num_timeout=resources.requeues
        )
        executor.update_parameters(**_sbatch_options(resources, before))
        try:
            jobs = _hand_over(executor, [CellJob(cell.to_dict(), *where) for cell in array])
        except SlurmError as refused:
            if submission.jobs:
                raise SlurmError(
                    f"{refused}; other jobs of {submission.folder} are submitted, and --resume completes them once that is mended"
                ) from None
            # Of an earlier one, jobs may run whose numbers its command had no time to write.
            if earlier is None:
                submission.withdraw()
            raise
        submission.cells = cells
        submission.jobs |= {cell.cell_id: job for cell, job in zip(array, jobs, strict=True)}
        submission.cancelled = [cell_id for cell_id in submission.cancelled if cell_id not in submission.jobs]
        submission.write()
        under_way |= {cell.cell_id for cell in array}
    return submission


def load_submitit() -> Any:
    """Returns the package, and keeps it from configuring logging. Raises SlurmError if it is missing.

    On import, it would configure logging anew, which closes all handlers of the process; a handler may close
    the stream to which it writes.
    """
    before = os.environ.get(_LOGGING)
    os.environ[_LOGGING] = "NOCONFIG"
    try:
        return load_extra("submitit", "slurm", "submitting", SlurmError)
    finally:  # jobs inherit the environment
        if before is None:
            del os.environ[_LOGGING]
        else:
            os.environ[_LOGGING] = before


_LOGGING = "SUBMITIT_LOG_LEVEL"


def _sbatch_options(resources: Resources, before: Collection[str]) -> dict[str, Any]:
    asked = asdict(resources)
    further = {name: value or True for name, value in asked.pop("further").items()}
    del asked["requeues"]  # submitit counts them, not sbatch
    options = {
        **asked,
        "job_name": "sltt-bench",
        "ntasks_per_node": 1,
        "signal_delay_s": min(SIGNAL_DELAY_S, resources.time * 60 - 1),
        "stderr_to_stdout": True,
        # The command runs on the first node. Since Slurm 22.05, a step does not inherit its job's processor
        # count.
        "srun_args": [
            *(["--nodes=1", "--ntasks=1"] if resources.nodes > 1 else []),
            *([] if resources.cpus_per_task is None else [f"--cpus-per-task={resources.cpus_per_task}"]),
        ],
        "dependency": f"afterany:{':'.join(sorted(before))}" if before else None,
    }
    known = {name: value for name, value in options.items() if value is not None}
    return {**known, "additional_parameters": {"requeue": True, **further}}


def _hand_over(executor: Any, jobs: Sequence[CellJob]) -> list[str]:
    """Submit the jobs as one array; returns their numbers. Raises SlurmError with sbatch's message."""
    from submitit.core.utils import FailedJobError

    try:
        with executor.batch():
            submitted = [executor.submit(job) for job in jobs]
    except (FailedJobError, subprocess.CalledProcessError) as error:
        words = " ".join(str(getattr(error, "stderr", None) or error).split())
        raise SlurmError(f"Slurm refused the jobs: {words}{_beyond_an_array(len(jobs))}") from None
    return [job.job_id for job in submitted]


def _beyond_an_array(jobs: int) -> str:
    """Returns that an array of so many jobs has more than this cluster allows, and the remedy; else ""."""
    configuration = ""
    with suppress(SlurmError):
        configuration = _slurm("scontrol", "show", "config")
    limit = re.search(r"^MaxArraySize\s*=\s*(\d+)", configuration, re.MULTILINE)
    if limit is None or jobs <= int(limit[1]):
        return ""
    return f": an array has {limit[1]} jobs at most here (MaxArraySize), not {jobs}; submit them in parts, by --seed or --method"


# What became of them ----------------------------------------------------------------------------


def status(submission: Submission) -> list[CellStatus]:
    """Returns the state of each cell, from its rows and from Slurm. Raises SlurmError."""
    scheduled, runs = _scheduled(submission.jobs.values()), submission.runs()
    return [_status_of(submission, cell, runs.get(cell.cell_id), scheduled) for cell in submission.cells]


def _status_of(
    submission: Submission, cell: Cell, run: Path | None, scheduled: Mapping[str, tuple[str, str]]
) -> CellStatus:
    job = submission.jobs.get(cell.cell_id, "")
    slurm_state, slurm_reason = scheduled.get(job, ("", ""))
    rows = [] if run is None else read_rows(run / CELLS_FILE)
    so_far = NOTHING if run is None else progress_of(run)
    state: State
    if cell.cell_id in so_far.finished:
        state, reason = "done", ""
    elif slurm_state in _WAITS:
        state, reason = "queued", slurm_reason
    elif slurm_state in _RUNS:
        state, reason = "running", slurm_reason
    else:
        cancelled = cell.cell_id in submission.cancelled or slurm_state == "CANCELLED"
        state, reason = "cancelled" if cancelled else "failed", _reason_without_row(slurm_state, job)
        if rows:
            reason = f"{rows[-1]['status']}: {rows[-1]['reason']}"
        if slurm_state not in ("", "CANCELLED", "FAILED", "COMPLETED"):
            reason += f" (Slurm: {slurm_state} {slurm_reason})".replace(" )", ")")
    return CellStatus(cell, state, reason, job, so_far.epochs.get(cell.cell_id, 0))


def _reason_without_row(slurm_state: str, job: str) -> str:
    if not job:
        return "not submitted"
    ended = f"Slurm says {slurm_state}" if slurm_state else "Slurm no longer knows it"
    return f"its job left no row, and {ended}; see {STATE_FOLDER}/{JOBS_FOLDER}/{job}_0_log.out"


def _scheduled(jobs: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Returns job → (Slurm's state, reason or "") while Slurm knows the job (some minutes after its end)."""
    numbers = sorted({job.partition("_")[0] for job in jobs})
    if not numbers:
        return {}
    form = "--format=%i|%T|%r"
    answer = _slurm("squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(numbers)}", form)
    lines = (line.strip().split("|", 2) for line in answer.splitlines())
    return {job: (state, "" if reason == "None" else reason) for job, state, reason in lines}


def cancel(submission: Submission, cell_ids: Collection[str] | None) -> list[Cell]:
    """Cancel the queued and running jobs of these cells (None: of all); returns the cells cancelled.

    A cell whose job never began gets a row that says so, once Slurm has removed the job. Raises SlurmError,
    ResultsError.
    """
    chosen = [
        each
        for each in status(submission)
        if each.state in ("queued", "running") and (cell_ids is None or each.cell.cell_id in cell_ids)
    ]
    if not chosen:
        return []
    _slurm("scancel", *(each.job for each in chosen))
    submission.cancelled += [each.cell.cell_id for each in chosen]
    submission.write()
    waited = {each.cell.cell_id for each in chosen if each.state == "queued"}
    end = time.monotonic() + CANCELLING_S
    while waited and time.monotonic() < end:
        for each in status(submission):
            if each.cell.cell_id in waited and each.state not in ("queued", "running"):
                waited.remove(each.cell.cell_id)
                if each.cell.cell_id not in submission.runs():
                    _record_never_begun(submission.folder, each.cell)
        time.sleep(0.2 if waited else 0)
    return [each.cell for each in chosen]


def _record_never_begun(folder: Path, cell: Cell) -> None:
    """Write the row of a cell whose job was cancelled while queued."""
    from sltt_bench import provenance

    def refuse(cell: Cell) -> Path | None:
        raise NotRunnable("cancelled before its job began")

    run_plans(
        [PlannedRun(Plan(cell.recipe, (cell,)), lambda: RunFolder.create(folder, cell.recipe.name))],
        Display(),
        data_dir=folder,
        initial_weights=refuse,
        provenance=provenance.collect(["sltt-bench", "cancel"]),
    )


def _slurm(*command: str) -> str:
    """Returns the output of a Slurm command; "" if Slurm no longer knows the jobs. Raises SlurmError."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except FileNotFoundError:
        raise SlurmError(
            f"no Slurm here: {command[0]} is not in PATH; ask on a login node of the cluster"
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} gave no answer within 2 minutes; is slurmctld up?") from None
    if answer.returncode and "invalid job id" not in answer.stderr.lower():
        raise SlurmError(f"{command[0]}: {' '.join(answer.stderr.split())}")
    return answer.stdout
