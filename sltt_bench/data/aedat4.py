"""AEDAT 4 files, decoded in a process beside this one: at some damaged ones the decoder ends its process.

The decoder is Rust, whose panics at the border to Python abort. `python -m sltt_bench.data.aedat4` is that process: it
takes the names of files, a line of JSON each, and answers each with a line of JSON, then the events that it counts.
It is started with the first file, stays for the next, and ends with whoever started it.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

import numpy as np

from sltt_bench.data.errors import DataError
from sltt_bench.data.events import EVENT, UnreadableEvents, as_events, brighter
from sltt_bench.extras import load_extra


def read_aedat4(file: Path) -> np.ndarray:
    """The events [N] of the first stream of events in a file, of dtype EVENT. Raises UnreadableEvents, DataError."""
    load_extra("aedat", "events", f"reading {file}", DataError)
    return _decoder(os.getpid()).events(file)


class _Decoder:
    """The process beside this one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def events(self, file: Path) -> np.ndarray:
        """The events [N] in a file. Raises UnreadableEvents; DataError if no process can be started."""
        process = self._process = self._process or _started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with suppress(BrokenPipeError):
                process.stdin.write(json.dumps(str(file)).encode() + b"\n")
                process.stdin.flush()
            answer = json.loads(process.stdout.readline() or "null")
            if isinstance(answer, int):
                content = process.stdout.read(answer * EVENT.itemsize)
                return np.frombuffer(content, EVENT, count=answer)
        except BaseException:  # what it has not said yet would be taken for the answer to the next file
            self.close()
            raise
        if answer is None:
            self.close()
            raise UnreadableEvents(
                f"not a whole AEDAT 4 file (its decoder ended with {_ending(process.returncode)})"
            )
        raise UnreadableEvents(str(answer))

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@cache
def _decoder(process_id: int) -> _Decoder:
    """That of one process: a copy that this one forks shares no pipe with it."""
    return _Decoder()


def _started() -> "subprocess.Popen[bytes]":
    """The process, ready for a file; it finds the packages that this one does. Raises DataError."""
    path = os.pathsep.join(map(os.path.abspath, sys.path))
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # the traces of panics
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C is for who started it
    )
    assert process.stdout is not None
    if process.stdout.readline() != _READY:
        process.kill()
        process.communicate()
        raise DataError(
            f"the decoder of AEDAT 4 files could not be started: it ended with {_ending(process.returncode)}; "
            f"`{sys.executable} -m {__name__}` shows why"
        )
    return process


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


# Within that process ----------------------------------------------------------------------------

_READY = b'"ready"\n'


def main() -> None:
    """Decode the files that are named on standard input, until it ends."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _answer(output, "ready")
    for line in sys.stdin:
        try:
            events = _decoded(json.loads(line))
        except UnreadableEvents as error:
            _answer(output, str(error))
        else:
            _answer(output, len(events), events.tobytes())


def _answer(output: IO[bytes], answer: int | str, content: bytes = b"") -> None:
    output.write(json.dumps(answer).encode() + b"\n" + content)
    output.flush()


def _decoded(file: str) -> np.ndarray:
    """The events [N] in a file. Raises UnreadableEvents."""
    import aedat

    try:
        decoder = aedat.Decoder(file)
        streams = decoder.id_to_stream().items()
        chosen = min((number for number, stream in streams if stream["type"] == "events"), default=None)
        packets = [packet["events"] for packet in decoder if packet["stream_id"] == chosen]
    # The decoder raises RuntimeError and others; where it panics, what it raises is a BaseException, of a class that
    # cannot be imported.
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UnreadableEvents(f"not a whole AEDAT 4 file ({error})") from None
    if not packets:
        return np.empty(0, EVENT)
    raw = np.concatenate(packets)
    t, x, y, p = (raw[name] for name in raw.dtype.names or ())
    return as_events(t, x, y, brighter(p))


if __name__ == "__main__":
    main()
