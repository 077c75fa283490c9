"""Launches the processes that share a cell's batches, with torch's elastic launcher (torchrun's).

The worker that received the cell is the launcher's agent and trains nothing itself; on several nodes of a
Slurm job, srun starts an agent on each. Each rank is a process of this module. Rank 0 reports to the runner
through the agent's standard output and writes the checkpoints; the others are mute. If one rank fails, all
end, and the cell's reason is that of the rank that failed by itself. A rank whose agent dies ends itself, so
that no process is left behind.
"""

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any, NoReturn

from sltt_bench.common.abandoned import folder_of_sockets, keep_sockets_in, own_temporary_folder
from sltt_bench.common.failures import CellFailure, classify, unexplained_end
from sltt_bench.common.memory_limit import oom_kills
from sltt_bench.planning.plan import Cell, cell_from_dict
from sltt_bench.running import worker
from sltt_bench.running.jobs import usable_processors
from sltt_bench.running.lanes import event_in

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

JOB, AGENT, SOCKETS, NODES = "SLTT_BENCH_JOB", "SLTT_BENCH_AGENT", "SLTT_BENCH_SOCKETS", "SLTT_BENCH_NODES"
"""Environment variables: a rank's job as JSON, the process that launched it, and where its sockets are; for an agent on
one of several nodes, the number of nodes and the address where they meet.
"""

WATCH_S = 0.5
"""Seconds between a rank's checks whether its agent lives."""

_LOST_PEER = re.compile(
    r"connection (closed|reset|refused)|broken pipe|socket|gloo|nccl|rendezvous|timed out", re.IGNORECASE
)


def launch_ranks(job: Mapping[str, Any], events: IO[str], size: int) -> None:
    """Work on the job's cell with `size` processes, on this machine or on all nodes of this Slurm job.

    Raises CellFailure with the reason of the rank that failed.
    """
    nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    if size % nodes:
        raise CellFailure(
            "error", f"train.devices is {size}, not a multiple of the {nodes} nodes of this job"
        )
    threads = job["threads"] or max(1, usable_processors() // (size // nodes))
    job = {**job, "threads": threads, "launched": True}
    if nodes == 1:
        _launch_here(job, events, size)
        return
    endpoint = f"{socket.gethostname()}:{free_port()}"
    command = ["srun", "--overlap", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--unbuffered",
               "--kill-on-bad-exit=1", sys.executable, "-m", "sltt_bench.running.launch"]  # fmt: skip
    variables = {JOB: json.dumps(job), NODES: f"{nodes} {endpoint}"}
    agents = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env={**os.environ, **variables}
    )
    assert agents.stdout is not None
    failures: list[CellFailure] = []
    for line in agents.stdout:
        if (event := event_in(line)) is None:
            continue
        if event["event"] == "failed":
            failures.append(CellFailure(event["status"], event["reason"]))
        else:
            events.write(line.decode())
            events.flush()
    if agents.wait():
        raise min(
            failures,
            key=lambda failure: _LOST_PEER.search(str(failure)) is not None,
            default=CellFailure("error", f"srun ended with exit code {agents.returncode} without a word"),
        )


def free_port() -> int:
    """Returns a free port below 32768. Raises OSError if many are taken.

    Systems give connections ports from 32768 on, so none gets this one before all agents have started.
    """
    for _ in range(100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", 10_000 + secrets.randbelow(22_768)))
            port: int = probe.getsockname()[1]
            return port
    raise OSError("no free port between 10000 and 32768 for the processes of several nodes to meet at")


def _launch_here(
    job: Mapping[str, Any], events: IO[str], size: int, nodes: int = 1, endpoint: str = "localhost:0"
) -> None:
    """Launch this machine's `size` processes; those of all `nodes` meet at `endpoint`. Raises CellFailure."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    variables = {JOB: json.dumps(job), AGENT: str(os.getpid()), SOCKETS: ""}
    kernel_kills = oom_kills()
    os.environ.update(variables)
    os.dup2(events.fileno(), 1)  # the ranks inherit it
    try:
        with own_temporary_folder():
            os.environ[SOCKETS] = folder_of_sockets() or ""
            config = LaunchConfig(
                min_nodes=nodes,
                max_nodes=nodes,
                nproc_per_node=size,
                run_id=f"{job['cell']['cell_id']}-{job['attempt']}",
                rdzv_backend="c10d",
                rdzv_endpoint=endpoint,
                local_addr="localhost" if nodes == 1 else None,
                max_restarts=0,
                logs_specs=DefaultLogsSpecs(),
            )
            elastic_launch(config, sys.executable)("-m", "sltt_bench.running.launch")
    except ChildFailedError as error:
        raise root_failure(error.failures, size * nodes, kernel_kills) from None
    finally:
        os.dup2(2, 1)
        for name in variables:
            del os.environ[name]


def root_failure(failures: "Mapping[int, ProcessFailure]", size: int, kernel_kills: int) -> CellFailure:
    """Returns the failure from which the others followed, with the number of its rank."""
    rank, failure = min(failures.items(), key=lambda item: (_follows(item[1]), item[0]))
    record = _record(failure)
    status, reason = record or unexplained_end(failure.exitcode, kernel_kills)
    return CellFailure(status, f"rank {rank} of {size}: {reason}")


def _follows(failure: "ProcessFailure") -> int:
    """Returns 0 for a failure by itself, more for a possible consequence: lost peer or launcher's SIGTERM.

    Less for lack of memory, which is never a consequence, while its own consequences may have unforeseen
    texts.
    """
    if failure.exitcode == -signal.SIGTERM:
        return 2
    record = _record(failure)
    if record is not None and record[0] == "oom":
        return -1
    return int(record is not None and record[0] == "error" and _LOST_PEER.search(record[1]) is not None)


def _record(failure: "ProcessFailure") -> tuple[Any, str] | None:
    """Returns (status, reason) as the rank recorded them; None if it recorded nothing."""
    message = failure.error_file_data.get("message")
    text = message.get("message", "") if isinstance(message, dict) else ""
    try:
        record = json.loads(text.partition(": ")[2])
        return record["status"], record["reason"]
    except (ValueError, KeyError, TypeError):
        return None


# In each rank -----------------------------------------------------------------------------------


class MuteReporter(worker.Reporter):
    """The reporter of ranks other than 0: reads the checkpoint like rank 0, but sends and writes nothing."""

    def send(self, event: str, **details: Any) -> None:
        pass

    def checkpoint(self, state: dict[str, Any]) -> None:
        pass


class _Record(Exception):
    """A rank's record for its agent: status and reason as JSON."""


def main() -> None:
    """Work on this rank's share of the environment's job, or launch this node's ranks.

    Exit code 1 if the cell failed.
    """
    if "RANK" in os.environ:
        _be_rank()
    else:
        _be_agent()


def _be_agent() -> None:
    """Launch the ranks of this node, for which srun started this process; report a failure as an event."""
    events = worker.take_standard_output()
    job = {**json.loads(os.environ[JOB]), "command": os.getppid()}  # the parent of the cell's processes here
    nodes, endpoint = os.environ[NODES].split()
    try:
        size = job["cell"]["recipe"]["train"]["devices"] // int(nodes)
        _launch_here(job, events, size, int(nodes), endpoint)
    except CellFailure as failure:
        worker.reporter_of(job, events).send("failed", status=failure.status, reason=str(failure))
        sys.exit(1)


def _be_rank() -> None:
    events = worker.take_standard_output()
    with suppress(PermissionError):
        os.setsid()
    threading.Thread(target=_end_with, args=(int(os.environ[AGENT]),), daemon=True).start()
    worker.wake_as_parent_ends()
    keep_sockets_in(os.environ[SOCKETS] or None)
    rank, job = int(os.environ["RANK"]), json.loads(os.environ[JOB])
    try:
        cell = _at_own_device(cell_from_dict(job["cell"]), job["devices"], int(os.environ["LOCAL_RANK"]))
        reporter = worker.reporter_of(job, events, worker.Reporter if rank == 0 else MuteReporter)
        worker.work_on(cell, job, reporter)
        from sltt_bench.training.distributed import end_together

        end_together()
    except BaseException as error:
        _leave_record(error)


def _at_own_device(cell: Cell, devices: Sequence[str], local_rank: int) -> Cell:
    """Returns the cell with this rank's device: one of its lane's devices, else the GPU of its number."""
    if devices:
        return replace(cell, device=devices[local_rank % len(devices)])
    if cell.device in ("auto", "cuda"):
        import torch

        gpus = torch.cuda.device_count()
        return replace(cell, device=f"cuda:{local_rank}" if gpus else cell.device)
    return cell


def _leave_record(error: BaseException) -> NoReturn:
    """Tell the agent why this rank ends, and end at once: a group with a dead member cannot end properly."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    traceback.print_exc()
    sys.stderr.flush()
    status, reason = classify(error)
    get_error_handler().record_exception(_Record(json.dumps({"status": status, "reason": reason})))
    os._exit(1)


def _end_with(agent: int) -> None:
    """End this process and its children when its agent is gone."""
    while os.getppid() == agent:
        time.sleep(WATCH_S)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
