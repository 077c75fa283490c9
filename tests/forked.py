"""Forks the processes of tests from one that has torch loaded (Python's forkserver), to save starting time.

A cell, a batch of estimates or a conversion of events would first import modules for seconds. A fork's pipes,
signals and exit codes are as real as those of a new process, but its memory peak is not its own. Modules
marked `spawned` start processes as users do. The test's own process cannot be forked, since torch forbids
backward passes in the fork of a process that made one.
"""

import gc
import importlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from multiprocessing import forkserver
from multiprocessing.reduction import DupFd
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any, NoReturn

from sltt_bench.running import lanes, launch

if TYPE_CHECKING:
    import pytest

LOADED = (
    "torch._dynamo",  # fake tensors and torch's checkpoints load it
    "torchvision",
    "pandas",
    "sltt_bench.command_line.commands",
    "sltt_bench.report",
    "sltt_bench.data.digits",
    "sltt_bench.running.worker",
    "sltt_bench.training.engine",
    "sltt_bench.data.loading",
)
"""Modules that every cell and every forked command would otherwise load anew."""


class ForkedModule:
    """The part of subprocess.Popen that lanes need, for `python -m MODULE`; MODULE has a function main."""

    def __init__(self, command: list[str], *, stderr: IO[bytes], **_: Any) -> None:
        module = command[command.index("-m") + 1]
        their_input, our_input = os.pipe()
        our_output, their_output = os.pipe()
        context = _forks()
        # DupFd works only while the process is being started, and needs its context.
        self._process = context.Process(
            target=_become,
            args=(
                module,
                dict(os.environ),
                *(_Stream(fd) for fd in (their_input, their_output, stderr.fileno())),
            ),
        )
        self._process.start()
        for end in (their_input, their_output):
            os.close(end)
        self.pid = self._process.pid
        self.stdin, self.stdout = os.fdopen(our_input, "wb"), os.fdopen(our_output, "rb")

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a forked process", timeout or 0)
        return self._process.exitcode


class _Stream:
    """A file descriptor that is passed to a process among its arguments."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __reduce__(self) -> tuple[Any, ...]:
        return _detached, (DupFd(self.descriptor),)


def _detached(duplicate: Any) -> int:
    return int(duplicate.detach())


def _become(module: str, environment: Mapping[str, str], *streams: int) -> NoReturn:
    """Run a module's main on these standard streams, then end this process, which was just forked."""
    import numpy as np
    import torch

    code = 1
    try:
        gc.freeze()  # inherited objects are not this process's garbage
        if os.getpgrp() != os.getpid():
            os.setsid()
        os.environ.clear()
        os.environ.update(environment)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, mode) for n, mode in enumerate("rww"))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Without a seed, two forks of one process must not draw the same numbers.
        torch.seed()
        np.random.seed()
        random.seed()
        _fork_ranks()
        importlib.import_module(module).main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


class ForkedRank:
    """The part of subprocess.Popen that torch's launcher needs for a rank, which its agent forks."""

    def __init__(self, args: tuple[str, ...], env: dict[str, str], **_: Any) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
                signal.signal(number, signal.SIG_DFL)  # the agent's handlers are not the rank's
            _become(args[args.index("-m") + 1], env)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = time.monotonic() + (60 if timeout is None else timeout)
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("a forked rank", timeout or 0)
            time.sleep(0.01)
        return self.returncode or 0


def _fork_ranks() -> None:
    """Let the ranks of a cell be forked, too."""
    real = launch.launch_ranks

    def launch_ranks(*arguments: Any) -> None:
        from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

        subprocess_handler.Popen = ForkedRank  # type: ignore[misc,assignment]
        real(*arguments)

    launch.launch_ranks = launch_ranks


def _forks(method: str | None = "spawn") -> Any:
    """multiprocessing.get_context that forks a loaded process where a new process is requested."""
    if method != "spawn":
        return _original_context(method)
    multiprocessing.set_forkserver_preload(list(LOADED))
    return _original_context("forkserver")


_original_context = multiprocessing.get_context


def fork_instead_of_spawning(monkeypatch: "pytest.MonkeyPatch") -> None:
    """Fork cells and pools of processes while the patch holds."""
    monkeypatch.setattr(multiprocessing, "get_context", _forks)
    server = forkserver._forkserver  # type: ignore[attr-defined]
    if (
        server.get_inherited_fds() is not None
    ):  # this process was forked, and its children come from the same server
        monkeypatch.setattr(server, "ensure_running", lambda: None)
    monkeypatch.setattr(lanes, "subprocess", SimpleNamespace(**(vars(subprocess) | {"Popen": ForkedModule})))
