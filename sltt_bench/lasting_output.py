"""Standard output that may go away: a reader that stops (`| head -1`), a closed terminal or a full disk ends no run."""

import errno
import os
import sys
from typing import Any, TextIO


def open_closed_streams() -> None:
    """Give standard streams that whoever started us has closed (`>&-`, some schedulers) nowhere as their other end.

    Else a file that is opened later takes the number of one of them, and what is printed goes into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))


class LastingOutput:
    """A stream of text; from the first write that fails on, what is written goes nowhere."""

    def __init__(self, stream: TextIO) -> None:
        self.loss = ""
        """Why what was written is not all where it should be; '' if it is, or if its reader or its terminal went away."""
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._to_nowhere(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._to_nowhere(error)

    def _to_nowhere(self, error: OSError) -> None:
        """What the stream still holds must have somewhere to go, too: it is flushed when Python ends."""
        if error.errno != errno.EPIPE and not (error.errno == errno.EIO and self._stream.isatty()):
            self.loss = error.strerror or str(error)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
