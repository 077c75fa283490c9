"""Errors that the user of a command can fix, and suggestions for misspelt words."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Its message says what is wrong, where, and what to do. The command line shows only it; exit code 2."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns ' (did you mean …?)' if a known word is close, else ''."""
    spelled = {name.lower(): name for name in sorted(known)}
    close = difflib.get_close_matches(word[:100].lower(), spelled, n=1, cutoff=0.5)
    return f" (did you mean {spelled[close[0]]!r}?)" if close else ""
