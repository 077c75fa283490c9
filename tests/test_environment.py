"""Surroundings that are not as one would wish: readers that go away, few open files, limits, folders that move."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from test_kills import ARGUMENTS, only_run, rows, start, wait_until

from sltt_bench.lasting_output import LastingOutput
from sltt_bench.memory_limit import memory_limit, oom_kills
from sltt_bench.results.schema import CELLS_FILE, EPOCHS_FILE


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


def test_a_command_whose_reader_stops_after_a_line_ends_as_usual() -> None:
    command = f"set -o pipefail; {sys.executable} -m sltt_bench list | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.count("\n"), done.stderr) == (0, 1, "")


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
