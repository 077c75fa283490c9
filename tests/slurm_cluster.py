"""Starts a Slurm of one node for tests: munged, slurmctld and slurmd, in a folder, ended by their pids."""

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
PROCESSORS = 8
"""The processors that the node claims to have, since the jobs of these tests hardly use theirs."""


def missing() -> str | None:
    """Returns why Slurm cannot run here, or None."""
    lacking = [name for name in PROGRAMS if program(name) is None]
    if lacking:
        return f"no {', '.join(lacking)}: apt-get install slurmctld slurmd slurm-client munge"
    return None if os.getuid() == 0 else "this Slurm is started as root"


def program(name: str) -> str | None:
    """Returns a program's path, also from /usr/sbin; None if it is missing."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@contextmanager
def cluster(folder: Path, nodes: int = 1) -> Iterator[Mapping[str, str]]:
    """Start a cluster, and stop it afterwards; yields the environment in which Slurm's commands find it.

    A job of the partition `urgent` takes the processors of jobs in the other partition, which are requeued.
    Each of several `nodes` is a slurmd on this machine, which needs a Slurm built for it.
    """
    names = [socket.gethostname()] if nodes == 1 else [f"node{number}" for number in range(nodes)]
    configuration = _configure(folder, names)
    environment = {"SLURM_CONF": str(configuration)}
    munge = folder / "munge"
    daemons = (
        ("munged", "--foreground", "--force", f"--socket={munge}/socket", f"--key-file={munge}/key",
         f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed"),
        ("slurmctld", "-D", "-i", "-f", str(configuration)),
        *(("slurmd", "-D", "-f", str(configuration), *(["-N", name] if nodes > 1 else [])) for name in names),
    )  # fmt: skip
    with ExitStack() as stack:
        for name, *arguments in daemons:
            log = stack.enter_context((folder / f"{name}.out").open("ab"))
            process = subprocess.Popen(
                [program(name) or name, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
            )
            stack.callback(_end, process)
            if name == "munged":
                _wait_for((munge / "socket").exists, folder)
        sinfo = ("sinfo", "--noheader", "--Node", "--partition=tests", "--format=%T")
        _wait_for(lambda: _answer(environment, *sinfo).split() == ["idle"] * nodes, folder)
        stack.callback(_cancel_all, environment)
        yield environment


def _cancel_all(environment: Mapping[str, str], patience_s: float = 15.0) -> None:
    """Cancel all jobs, since one that outlives its daemons would never end."""
    _answer(environment, "scancel", "--user=root")
    end = time.monotonic() + patience_s
    while _answer(environment, "squeue", "--noheader").strip() and time.monotonic() < end:
        time.sleep(0.1)


def _configure(folder: Path, nodes: Sequence[str]) -> Path:
    host = socket.gethostname()
    for name in ("munge", "state", *(f"spool-{node}" for node in nodes)):
        (folder / name).mkdir(parents=True)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    controller, *ports = _free_ports(1 + len(nodes))
    machines = "\n".join(
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={PROCESSORS} State=UNKNOWN"
        for node, port in zip(nodes, ports, strict=True)
    )
    path = folder / "slurm.conf"
    path.write_text(
        f"""ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
SlurmctldPort={controller}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000,sched_interval=1,bf_interval=1
ReturnToService=2
KillWait=5
{machines}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=tests Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""
    )
    return path


def _free_ports(count: int) -> list[int]:
    """Returns free ports outside the range that the system assigns.

    A daemon takes its port only seconds later, when the system could have assigned it to another process.
    """
    first_handed_out = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(first_handed_out // 2, first_handed_out)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            ports += [port] if port not in ports else []
    return ports


def answer(*command: str) -> str:
    """Returns the output of a Slurm command in this environment."""
    return _answer({}, *command)


def _answer(environment: Mapping[str, str], *command: str) -> str:
    with suppress(subprocess.TimeoutExpired):
        return subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=20
        ).stdout
    return ""


def _wait_for(condition: object, folder: Path, patience_s: float = 30.0) -> None:
    end = time.monotonic() + patience_s
    while not condition():  # type: ignore[operator]
        if time.monotonic() > end:
            logs = [
                f"{path.name}: {path.read_text(errors='replace')[-1500:]}" for path in folder.glob("*.log")
            ]
            raise TimeoutError("Slurm did not come up:\n" + "\n".join(logs))
        time.sleep(0.1)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
