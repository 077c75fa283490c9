"""A process beside this one, for libraries that some damaged files make end their process, or never return.

It runs a module whose last line is `serve(answer)`. It is started with the first question, stays for the next, and
ends with whoever started it.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

from sltt_bench.data.errors import DataError


class Lost(Exception):
    """The process ended, or did not answer in time; the message says how."""


def ask(module: str, question: Any, limit_s: float) -> tuple[Any, bytes]:
    """What `answer` of the module says to a question (JSON, bytes), within so many seconds of a processor: those in which
    it waits for a disk, or is stopped, are not counted. Raises Lost; DataError if no process can be started.
    """
    return _beside(module, os.getpid()).ask(question, limit_s)


class _Beside:
    """The process that answers for one module."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def ask(self, question: Any, limit_s: float) -> tuple[Any, bytes]:
        """See the function `ask`."""
        process = self._process = self._process or _started(self._module)
        try:
            answer = _answer(process, [question, limit_s])
        except BaseException:  # what it has not said yet would be taken for the answer to the next question
            self.close()
            raise
        if answer is None:
            self.close()
            late = process.returncode == -signal.SIGPROF
            raise Lost(
                f"not done in {limit_s:g} s of a processor"
                if late
                else f"ended by {_ending(process.returncode)}"
            )
        return answer

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@cache
def _beside(module: str, process_id: int) -> _Beside:
    """That of one process: a copy that this one forks shares no pipe with it."""
    return _Beside(module)


def _started(module: str) -> "subprocess.Popen[bytes]":
    """The process, ready for a question; it finds the packages that this one does. Raises DataError."""
    path = os.pathsep.join(map(os.path.abspath, sys.path))
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # the traces of what ends it
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C is for who started it
    )
    assert process.stdout is not None
    if _READY not in iter(process.stdout.readline, b""):  # an interpreter may print before (sitecustomize)
        process.kill()
        process.communicate()
        raise DataError(
            f"a process that reads files could not be started: it was ended by {_ending(process.returncode)}; "
            f"`{sys.executable} -m {module}` shows why"
        )
    return process


def _answer(process: "subprocess.Popen[bytes]", question: Any) -> tuple[Any, bytes] | None:
    """None from a process that has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):
        process.stdin.write(json.dumps(question).encode() + b"\n")
        process.stdin.flush()
    if not (line := process.stdout.readline()).endswith(b"\n"):
        return None
    answer, size = json.loads(line)
    content = process.stdout.read(size)
    return (answer, content) if len(content) == size else None


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


# Within that process ----------------------------------------------------------------------------

_READY = b'"ready"\n'


def serve(answer: Callable[[Any], tuple[Any, bytes]]) -> None:
    """Answer the questions on standard input, a line of JSON each, until it ends.

    The system ends this process at the limit of a question, whatever holds the interpreter, and though nobody waits for
    the answer any more.
    """
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    output.write(_READY)
    output.flush()
    for line in sys.stdin:
        question, limit_s = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, limit_s)
        said, content = answer(question)
        signal.setitimer(signal.ITIMER_PROF, 0)
        output.write(json.dumps([said, len(content)]).encode() + b"\n" + content)
        output.flush()
