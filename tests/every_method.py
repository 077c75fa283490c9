"""Finds the methods that a list of names leaves out, for tests that must cover every method."""

import re
from collections.abc import Iterable

from sltt_bench import methods


def labels_left_out(names: Iterable[str]) -> list[str]:
    """Returns the labels of shipped methods that none of `names` belongs to."""
    given = set(names)
    return [
        entry.label
        for entry in methods.METHODS.values()
        if not any(re.fullmatch(entry.pattern, name) for name in given)
    ]
