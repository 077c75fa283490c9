"""Signals that end a run in order: raised in the main thread, one of them, and never while a row is being written."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupted(Exception):
    """Ctrl-C or SIGTERM; `signal_number` decides the exit code."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


_ENDING = tuple(each for each in signal.Signals if each.name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"))
"""What ends a run in order; Windows has the first two."""
_OF_OTHERS = tuple(each for each in signal.Signals if each.name in ("SIGUSR1", "SIGUSR2"))
"""What whoever started us may wait for: submitit has a job go on in another one."""


class Interruptions:
    """Ctrl-C, SIGQUIT, SIGTERM and a closed terminal as an Interrupted in the main thread: one, and never while a row
    is being written, and the same for a signal that somebody else handles. A terminal that we were told to outlive
    (nohup) ends nothing. Blocking the signals would not do: Python's handlers run here whichever thread gets them.
    """

    def __init__(self) -> None:
        self._deferred = 0
        self._waiting: list[int] = []
        self._over = False
        self._of_others: dict[int, Callable[[int, FrameType | None], Any]] = {}

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Signals are raised within, where this is the main thread."""
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
        """Signals that come within are raised at the end, in their order."""
        self._deferred += 1
        try:
            yield
        finally:
            self._deferred -= 1
        while self._waiting and not self._deferred:
            self._handle(self._waiting.pop(0), None)

    def end(self) -> None:
        """What is left to do is done in order, whatever is sent from now on."""
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
