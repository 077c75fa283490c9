"""Clocks of an epoch: a phase between two synchronisations, and the share of it spent waiting for data."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class WaitClock:
    """Adds up the time that a loop spends waiting for its next item."""

    def __init__(self) -> None:
        self.seconds: float | None = None
        """None until something has been waited for."""

    def waiting(self, items: Iterable[T]) -> Iterator[T]:
        """The same items; the time until the first (the start of loader processes included), between
        request and delivery of each, and until the end is known, counts as waiting."""
        started = time.perf_counter()
        iterator = iter(items)
        while True:
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self.seconds = (self.seconds or 0.0) + time.perf_counter() - started
            yield item
            del item  # or it would live until the next has come
            started = time.perf_counter()
