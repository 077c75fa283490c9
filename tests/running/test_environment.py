"""Surroundings that are not as one would wish: readers that go away, few open files, limits, folders that move."""

import errno
import json
import os
import queue
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import psutil
import pytest
from started_runs import ARGUMENTS, only_run, rows, start, wait_until

from sltt_bench.common.abandoned import MACHINE, own_temporary_folder, remove_abandoned_folders
from sltt_bench.common.lasting_output import LastingOutput
from sltt_bench.common.memory_limit import memory_limit, oom_kills
from sltt_bench.planning.plan import Cell
from sltt_bench.results.cell_row import Outcome
from sltt_bench.results.schema import CELLS_FILE, EPOCHS_FILE
from sltt_bench.running import lanes
from sltt_bench.running.interruptions import Interrupted, Interruptions
from sltt_bench.running.lanes import Attempt, Lanes


def test_a_reader_that_goes_away_is_not_noticed() -> None:
    read, write = os.pipe()
    stream = os.fdopen(write, "w")
    os.close(read)
    lasting = LastingOutput(stream)
    for _ in range(3):
        lasting.write("many lines\n" * 10_000)
        lasting.flush()
    assert lasting.encoding == stream.encoding
    stream.close()


@pytest.mark.parametrize("command", ["schema", pytest.param("list methods", marks=pytest.mark.long)])
def test_a_disk_without_room_for_what_is_printed_is_no_success(command: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m sltt_bench {command} > /dev/full"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (
        os.EX_IOERR,
        "error: not all that was printed could be written (No space left on device)\n",
    )


def test_a_command_whose_reader_stops_after_a_line_ends_as_usual() -> None:
    command = f"set -o pipefail; {sys.executable} -m sltt_bench list | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.count("\n"), done.stderr) == (0, 1, "")


@pytest.mark.parametrize("streams", [pytest.param(">&-", marks=pytest.mark.long), ">&- 2>&- <&-"])
def test_a_command_whose_streams_are_closed_ends_as_usual(streams: str) -> None:
    command = f"{sys.executable} -m sltt_bench list methods {streams}; echo $? > /dev/fd/9"
    read, write = os.pipe()
    subprocess.run(["bash", "-c", f"exec 9>&{write}; {command}"], pass_fds=[write], check=True)
    os.close(write)
    with os.fdopen(read) as code:
        assert code.read() == "0\n"


def test_modules_in_the_folder_of_a_run_are_none_of_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("queue", "random", "typing", "torch"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('this is mine')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lanes, "subprocess", subprocess)  # a fresh process: a fork has its modules already
    process = lanes._Process(tmp_path / "log", lanes.queue.SimpleQueue())
    process.give_no_more()
    assert process.wait() == 0, (tmp_path / "log").read_text()


def test_a_log_that_finds_no_room_hides_no_reason() -> None:
    command = [sys.executable, "-m", "sltt_bench.running.worker"]
    with open("/dev/full", "wb") as log:
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(b'{"attempt": 1, "cell": {"no": "recipe"}}\n{}\n')
    worker.stdin.flush()
    events = [json.loads(line) for line in worker.stdout]
    worker.communicate()
    assert events == [{"event": "failed", "status": "error", "reason": "KeyError: 'recipe'"}]
    assert worker.returncode == 1


def with_worker(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of a cell's process there is a shell's."""

    def start_worker(command: list[str], **options: Any) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(["bash", "-c", script], **options)

    monkeypatch.setattr(lanes, "subprocess", SimpleNamespace(**(vars(subprocess) | {"Popen": start_worker})))


@pytest.mark.parametrize(
    ("ending", "status"), [('echo \'{"event": "finished"}\'', "ok"), ("exec sleep 100", "timeout")]
)
def test_what_a_cell_said_while_its_runner_was_stopped_is_heard_before_the_clock_ends_it(
    ending: str, status: str, monkeypatch: pytest.MonkeyPatch, smoke_cell: Callable[..., Cell]
) -> None:
    with_worker(f'for n in 1 2 3; do echo \'{{"event": "epoch"}}\'; done; {ending}', monkeypatch)
    heard = []

    class Stopped(Attempt):
        """At the first word it is as if this process had been stopped, as by Ctrl-Z, for longer than the limit."""

        def hear(self, name: str, event: lanes.Event) -> None:
            heard.append(name)
            if len(heard) == 1:
                time.sleep(1.5)

    attempt = Stopped(smoke_cell(), Outcome("error"))
    with Lanes(timeout_s=1.0) as places:
        places.run(iter([attempt]))
    assert (attempt.outcome.status, heard) == (status, ["epoch"] * 3)


@pytest.mark.parametrize(
    "printed", ["welcome to the cluster\\n", "no line end", "[1]\\n", '{"no": "event"}\\n']
)
def test_what_an_interpreter_prints_as_it_starts_is_no_event(
    printed: str, monkeypatch: pytest.MonkeyPatch, smoke_cell: Callable[..., Cell]
) -> None:
    with_worker(f"printf '{printed}'; echo '{{\"event\": \"finished\"}}'", monkeypatch)
    attempt = Attempt(smoke_cell(), Outcome("error"))
    with Lanes() as places:
        places.run(iter([attempt]))
    assert attempt.outcome.status == "ok"


@pytest.mark.parametrize(("stands_still", "status"), [(True, "ok"), (False, "timeout")])
def test_time_in_which_the_command_stands_still_counts_for_no_limit(
    stands_still: bool,
    status: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    smoke_cell: Callable[..., Cell],
) -> None:
    """A wait that takes 100 s longer than it was to take is a standstill; one that takes as long as it was to is none."""
    awake = tmp_path / "awake"
    with_worker(f'until test -e {awake}; do sleep 0.01; done; echo \'{{"event": "finished"}}\'', monkeypatch)
    now = 0.0

    class Waits(queue.SimpleQueue[Any]):
        def get(self, block: bool = True, timeout: float | None = None) -> Any:
            nonlocal now
            assert timeout is not None
            if now >= 100 or attempt.outcome.status == "timeout":
                awake.touch()
                return super().get(timeout=60)
            now += 100 if stands_still else timeout
            raise queue.Empty

    monkeypatch.setattr(lanes, "time", SimpleNamespace(monotonic=lambda: now, sleep=time.sleep))
    monkeypatch.setattr(lanes, "queue", SimpleNamespace(SimpleQueue=Waits, Empty=queue.Empty))
    attempt = Attempt(smoke_cell(), Outcome("error"))
    with Lanes(timeout_s=1.0) as places:
        places.run(iter([attempt]))
    assert (attempt.outcome.status, attempt.outcome.reason) == (
        status,
        "" if stands_still else "ended after 1 s (--timeout)",
    )


@pytest.mark.parametrize(
    ("worker", "status", "code"),
    [
        ('echo \'{"event": "finished"}\'; exec sleep 100', "ok", -signal.SIGTERM),  # a thread does not end
        ("sleep 100 & exit 3", "error", 3),  # somebody else holds its output
    ],
)
def test_a_process_that_does_not_end_holds_up_no_run(
    worker: str, status: str, code: int, monkeypatch: pytest.MonkeyPatch, smoke_cell: Callable[..., Cell]
) -> None:
    with_worker(worker, monkeypatch)
    monkeypatch.setattr(lanes, "LINGERING_S", 0.2)
    attempt = Attempt(smoke_cell(), Outcome("error"))
    with Lanes() as places:
        places.run(iter([attempt]))
    assert (attempt.outcome.status, attempt.outcome.exit_code) == (status, code)


def test_a_run_is_at_rest_while_others_hold_the_output_of_a_cell_that_timed_out(
    monkeypatch: pytest.MonkeyPatch, smoke_cell: Callable[..., Cell]
) -> None:
    with_worker("setsid sleep 3 & exec sleep 100", monkeypatch)
    monkeypatch.setattr(lanes, "LINGERING_S", 1.0)
    attempt = Attempt(smoke_cell(), Outcome("error"))
    used = time.process_time()
    with Lanes(timeout_s=0.5) as places:
        places.run(iter([attempt]))
    assert (attempt.outcome.status, attempt.outcome.exit_code) == ("timeout", -signal.SIGTERM)
    assert time.process_time() - used < 0.3, "cells beside it are measured"


def test_what_a_cells_process_leaves_behind_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smoke_cell: Callable[..., Cell]
) -> None:
    left = tmp_path / "left"
    finished = 'echo \'{"event": "finished"}\''
    with_worker(f"sleep 100 > /dev/null 2>&1 & echo $! > {left}; {finished}", monkeypatch)
    attempt = Attempt(smoke_cell(), Outcome("error"))
    with Lanes() as places:
        places.run(iter([attempt]))
    assert (attempt.outcome.status, attempt.outcome.exit_code) == ("ok", 0)
    wait_for_end(int(left.read_text()))


def test_what_a_cells_process_has_started_ends_with_it_when_its_runner_is_killed_even_if_it_is_stopped(
    tmp_path: Path,
) -> None:
    program = """
import subprocess
from sltt_bench.running import worker
jobs = worker._jobs()
child = subprocess.Popen(["sleep", "100"], stdin=subprocess.DEVNULL)
print(child.pid, flush=True)
jobs.get()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    child = int(process.stdout.readline())
    stop(child)
    process.stdin.close()  # by the system, of a runner that is no more
    process.wait(60)
    wait_for_end(child)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
def test_a_cells_process_that_is_stopped_ends_when_its_runner_is_killed() -> None:
    of_worker = """
import os
from sltt_bench.running import worker
worker._jobs = lambda read=worker._jobs: (read(), print(os.getpid(), flush=True))[0]
worker.main()
"""
    of_runner = """
import subprocess, sys
worker = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE, start_new_session=True)
worker.wait()
"""
    runner = subprocess.Popen([sys.executable, "-c", of_runner, of_worker], stderr=subprocess.PIPE)
    assert runner.stderr is not None
    stopped = int(runner.stderr.readline())
    stop(stopped)
    runner.kill()
    runner.wait()
    wait_for_end(stopped)


def test_where_no_folder_is_for_temporary_files_what_needs_none_runs_and_all_else_names_the_remedy(
    tmp_path: Path,
) -> None:
    program = """
import tempfile
tempfile._candidate_tempdir_list = lambda: []
from sltt_bench.common.failures import classify
from sltt_bench.running import worker
from sltt_bench.running.lanes import Lanes
with Lanes(), worker.own_temporary_folder():
    try:
        tempfile.mkstemp()
    except OSError as error:
        print(classify(error)[1], flush=True)
worker.main()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("{}\n")
    process.stdin.flush()  # and left open: its end would mean that the runner ended
    assert "set TMPDIR to a folder that can be written (" in process.stdout.read()
    assert process.wait(60) == 0


def test_temporary_files_of_a_process_go_when_it_ends_or_is_killed_and_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = """
import os, signal, subprocess, sys, tempfile
from sltt_bench.common.abandoned import MACHINE, own_temporary_folder
with own_temporary_folder():
    tempfile.mkstemp()
    subprocess.run(["sh", "-c", "mktemp -d; kill -9 $PPID"] if "killed" in sys.argv else ["mktemp"], check=True)
"""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    of_a_user = tmp_path / "sltt-bench-results1"
    of_a_user.mkdir()

    def run(*how: str) -> None:
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        subprocess.run(
            [sys.executable, "-c", program, *how], env=environment, check=False, capture_output=True
        )

    run()
    assert list(tmp_path.iterdir()) == [of_a_user]
    run("killed")
    (left,) = set(tmp_path.iterdir()) - {of_a_user}
    assert len(list(left.iterdir())) == 3, "its mark, its file, and that of the process that it started"
    with own_temporary_folder():
        living = Path(tempfile.gettempdir())
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        remove_abandoned_folders()
        assert set(tmp_path.iterdir()) == {of_a_user, living}


def test_a_temporary_folder_that_somebody_still_writes_to_is_removed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / f"sltt-bench-{MACHINE}-left"
    (left / "records").mkdir(parents=True)
    (left / ".in-use").touch()

    def still_written_to(path: Path, **_: Any) -> None:
        for file in filter(Path.is_file, path.rglob("*")):
            file.unlink()
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", still_written_to)
        remove_abandoned_folders()
    assert len(list(tmp_path.rglob("*"))) == 3
    remove_abandoned_folders()
    assert list(tmp_path.iterdir()) == []


def test_sockets_of_processes_have_a_folder_in_each_of_the_cells_of_one_process() -> None:
    """multiprocessing makes one folder in a process: for the second cell, that of the first was gone."""
    program = """
from multiprocessing.connection import Listener
from sltt_bench.common.abandoned import MACHINE, own_temporary_folder
for cell in range(2):
    with own_temporary_folder():
        Listener(family="AF_UNIX").close()
Listener(family="AF_UNIX").close()
"""
    with tempfile.TemporaryDirectory() as folder:  # a socket's path has about a hundred characters at most
        environment = {**os.environ, "TMPDIR": folder}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, check=False, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert not os.listdir(folder)


def test_sockets_of_processes_find_room_where_the_path_of_temporary_files_is_longer_than_a_sockets(
    tmp_path: Path,
) -> None:
    """A loader process could not send its batches, and the cell waited for them for ever."""
    program = """
import os, sys, tempfile
from multiprocessing.connection import Listener
from sltt_bench.common.abandoned import own_temporary_folder
with own_temporary_folder():
    assert tempfile.gettempdir().startswith(sys.argv[1])
    socket = Listener(family="AF_UNIX")
    print(os.path.dirname(socket.address))
    socket.close()
"""
    long = tmp_path / ("l" * 100)
    long.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", program, str(long)],
        env={**os.environ, "TMPDIR": str(long)}, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert MACHINE in done.stdout, "else nobody finds it who tidies up"
    assert not os.path.exists(done.stdout.strip())
    assert list(long.iterdir()) == []


def test_temporary_files_of_a_killed_cell_go_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smoke_cell: Callable[..., Cell]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / f"sltt-bench-{MACHINE}-left"
    with_worker(f"mkdir {folder}; touch {folder}/.in-use {folder}/kernel.ptx; kill -9 $$", monkeypatch)
    attempt = Attempt(smoke_cell(), Outcome("error"))
    with Lanes() as places:
        places.run(iter([attempt]))
    assert attempt.outcome.status == "killed"
    assert list(tmp_path.iterdir()) == []


def stop(process_id: int) -> None:
    """Returns when it stands still: a signal that comes before does what it does to one that runs."""
    os.kill(process_id, signal.SIGSTOP)
    deadline = time.monotonic() + 20
    while psutil.Process(process_id).status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_for_end(process_id: int) -> None:
    deadline = time.monotonic() + 20
    with suppress(psutil.NoSuchProcess):
        while psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "it outlives the cell"
            time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_whatever_a_terminal_or_a_scheduler_sends_ends_a_run_once_and_between_rows(
    number: signal.Signals,
) -> None:
    signal.signal(
        signal.SIGHUP, signal.SIG_DFL
    )  # whoever runs the tests may have told them to outlive the terminal
    before, rows = signal.getsignal(number), []

    def work(interruptions: Interruptions) -> None:
        try:
            with interruptions.deferred():
                os.kill(os.getpid(), number)
                rows.append("whole")
            rows.append("not reached")
        finally:
            os.kill(os.getpid(), number)
            rows.append("ended in order")

    interruptions = Interruptions()
    with pytest.raises(Interrupted, match=number.name), interruptions.raised():
        work(interruptions)
    assert rows == ["whole", "ended in order"]
    assert signal.getsignal(number) == before


def test_a_schedulers_own_signal_ends_no_run_while_a_row_is_written() -> None:
    """submitit ends a job whose time runs out by a handler of its own, which raises SystemExit wherever it is called."""

    def requeue(number: int, frame: Any) -> None:
        raise SystemExit("requeued")

    before, rows = signal.signal(signal.SIGUSR2, requeue), []

    def work(interruptions: Interruptions) -> None:
        with interruptions.deferred():
            os.kill(os.getpid(), signal.SIGUSR2)
            rows.append("whole")
        rows.append("not reached")

    interruptions = Interruptions()
    try:
        with pytest.raises(SystemExit, match="requeued"), interruptions.raised():
            work(interruptions)
        with interruptions.raised():
            interruptions.end()
            os.kill(os.getpid(), signal.SIGUSR2)
            rows.append("ended in order")
        assert signal.getsignal(signal.SIGUSR2) == requeue
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert rows == ["whole", "ended in order"]


def test_no_signal_takes_the_place_of_another_that_waits_for_a_row() -> None:
    """Slurm sends SIGTERM to all of a job, and submitit's SIGUSR2 may come right behind it."""
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: seen.append(number))
    interruptions = Interruptions()

    def work() -> None:
        with interruptions.deferred():
            for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGUSR2):
                os.kill(os.getpid(), number)

    try:
        with pytest.raises(Interrupted, match="SIGTERM"), interruptions.raised():
            work()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert seen == [signal.SIGUSR2]


def test_a_run_that_was_told_to_outlive_its_terminal_does() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with Interruptions().raised():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_plots_say_nothing_of_a_home_that_cannot_be_written() -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MPL", "XDG"))}
    command = [sys.executable, "-c", "import sltt_bench.report.plots.style"]
    done = subprocess.run(command, env={**kept, "HOME": "/proc"}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def group(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_limit_and_kills_are_those_of_the_control_group(tmp_path: Path) -> None:
    new = group(
        tmp_path / "2",
        {
            "proc/self/cgroup": "0::/job/step\n",
            "proc/vmstat": "oom_kill 70\n",
            "sys/fs/cgroup/job/step/memory.events": "oom 9\noom_kill 3\n",
            "sys/fs/cgroup/job/step/memory.max": "max\n",
            "sys/fs/cgroup/job/memory.max": "4294967296\n",
        },
    )
    assert (oom_kills(new), memory_limit(new)) == (3, 2**32)
    old = group(
        tmp_path / "1",
        {
            "proc/self/cgroup": "5:cpu:/\n4:memory,x:/docker/abc\n0::/\n",
            "sys/fs/cgroup/memory/memory.oom_control": "under_oom 0\noom_kill 1\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "1073741824\n",
        },
    )
    assert (oom_kills(old), memory_limit(old)) == (1, 2**30), "a container's group is mounted as the root"
    bare = group(tmp_path / "0", {"proc/self/cgroup": "0::/\n", "proc/vmstat": "pgfault 1\noom_kill 70\n"})
    assert (oom_kills(bare), memory_limit(bare)) == (70, None)
    assert (oom_kills(tmp_path / "nowhere"), memory_limit(tmp_path / "nowhere")) == (0, None)


def with_a_dead_terminal() -> None:
    """Nothing can be written to standard output any more, as after the window was closed."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    read, write = os.pipe()
    os.close(read)
    os.dup2(write, 1)
    os.close(write)
    sys.stdout = os.fdopen(1, "w", closefd=False)


def test_a_closed_terminal_ends_a_run_with_its_rows(tmp_path: Path) -> None:
    arguments = (*ARGUMENTS, "--method", "sltt,bptt", "--set", "train.epochs=200", "--out", str(tmp_path))
    process = start(*arguments, begin=with_a_dead_terminal, silent=False)
    wait_until(lambda: rows(tmp_path) >= 1, process)
    os.kill(process.pid, signal.SIGHUP)
    process.join()
    assert process.exitcode == 128 + signal.SIGHUP
    cells = pd.read_csv(only_run(tmp_path) / CELLS_FILE)
    assert list(cells.status) == ["killed", "skipped"]
    assert set(cells.reason) == {"interrupted by SIGHUP"}


def with_few_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def test_64_open_files_are_enough_and_a_run_may_be_moved_before_it_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (*ARGUMENTS, "--method", "sltt,bptt")
    process = start(
        *arguments, "--out", str(tmp_path / "here"), kill_at=("after", 1, EPOCHS_FILE), begin=with_few_files
    )
    process.join()
    (tmp_path / "there").mkdir()
    (tmp_path / "here" / "digits").rename(tmp_path / "there" / "digits")
    process = start(*arguments, "--out", str(tmp_path / "there"), "--resume", begin=with_few_files)
    process.join()
    assert process.exitcode == 0
    cells = pd.read_csv(only_run(tmp_path / "there") / CELLS_FILE)
    assert list(cells.status) == ["ok", "ok"]
    assert list(pd.read_csv(only_run(tmp_path / "there") / EPOCHS_FILE).epoch) == [1, 2, 1, 2]
    assert not (tmp_path / "here" / "digits").exists()
