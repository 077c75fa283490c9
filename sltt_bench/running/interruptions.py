"""Turns signals that end a run into one exception in the main thread, never while a row is being written."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupted(Exception):
    """A signal ended the run (Ctrl-C, SIGTERM); `signal_number` decides the exit code."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


_ENDING = tuple(each for each in signal.Signals if each.name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"))
"""Signals that end a run in an orderly way; Windows has the first two."""
_OF_OTHERS = tuple(each for each in signal.Signals if each.name in ("SIGUSR1", "SIGUSR2"))
"""Signals that the caller may handle: submitit then lets a job go on in another one."""


class Interruptions:
    """Raises one Interrupted in the main thread on Ctrl-C, SIGQUIT, SIGTERM or a closed terminal.

    Signals are never handled while a row is being written, nor are those that the caller handles. Under
    nohup, a closed terminal ends nothing. Blocking the signals would not suffice, since Python's handlers run
    in the main thread whichever thread gets the signal.
    """

    def __init__(self) -> None:
        self._deferred = 0
        self._waiting: list[int] = []
        self._over = False
        self._of_others: dict[int, Callable[[int, FrameType | None], Any]] = {}

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Raise signals that arrive within, if this is the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        for theirs in _OF_OTHERS:
            if callable(handler := signal.getsignal(theirs)):
                self._of_others[theirs] = handler
        ending = [
            each for each in _ENDING if each.name != "SIGHUP" or signal.getsignal(each) != signal.SIG_IGN
        ]
        before = {number: signal.signal(number, self._handle) for number in (*ending, *self._of_others)}
        try:
            yield
        finally:
            for number, earlier in before.items():
                signal.signal(number, earlier)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Raise signals that arrive within at the end, in their order."""
        self._deferred += 1
        try:
            yield
        finally:
            self._deferred -= 1
        while self._waiting and not self._deferred:
            self._handle(self._waiting.pop(0), None)

    def end(self) -> None:
        """Ignore all further signals, so that the remaining work is not interrupted."""
        self._over = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._over:
            return
        if self._deferred:
            self._waiting.append(number)
            return
        if number in self._of_others:
            self._of_others[number](number, frame)
            return
        self.end()
        raise Interrupted(number)
