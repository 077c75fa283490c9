"""Keeps a run alive if its output fails: a reader that stops (`| head -1`), closed terminal or full disk."""

import errno
import os
import sys
from typing import Any, TextIO


def open_closed_streams() -> None:
    """Open standard streams that the caller has closed (`>&-`, some schedulers) to the null device.

    Otherwise, a file that is opened later would take the number of such a stream and receive what is printed.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))


class LastingOutput:
    """A text stream that discards everything from the first failed write on."""

    def __init__(self, stream: TextIO) -> None:
        self.loss = ""
        """Why output was lost; '' if none was, or if only its reader or terminal went away."""
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
        """Redirect the stream to the null device, also for its buffer, which is flushed when Python ends."""
        if error.errno != errno.EPIPE and not (error.errno == errno.EIO and self._stream.isatty()):
            self.loss = error.strerror or str(error)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
