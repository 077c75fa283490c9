"""What whoever gave a command can mend, and the word that was probably meant."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Its message says what is wrong, where, and what to do: the command line shows it alone, with exit code 2."""


def nearest(word: str, known: Iterable[str]) -> str:
    """' (did you mean …?)' if a known word is close, else ''."""
    spelled = {name.lower(): name for name in sorted(known)}
    close = difflib.get_close_matches(word[:100].lower(), spelled, n=1, cutoff=0.5)
    return f" (did you mean {spelled[close[0]]!r}?)" if close else ""
