"""Errors that the user of a command can fix, and how they quote and correct what was written."""

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """Its message says what is wrong, where, and what to do. The command line shows only it; exit code 2."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns ' (did you mean …?)' if a known word is close, else ''."""
    spelled = {name.lower(): name for name in sorted(known)}
    close = difflib.get_close_matches(word[:100].lower(), spelled, n=1, cutoff=0.5)
    return f" (did you mean {spelled[close[0]]!r}?)" if close else ""


def shortened(value: Any) -> str:
    """What a user wrote, as a fault quotes it."""
    return shortened_text("null" if value is None else repr(value), 80)


def shortened_text(text: str, length: int) -> str:
    """At most so many characters, the cut shown."""
    return text if len(text) <= length else text[: length - 1] + "…"
