"""Which methods a list of names leaves out, for tests that are to look at each."""

import re
from collections.abc import Iterable

from sltt_bench import methods


def labels_left_out(names: Iterable[str]) -> list[str]:
    """The labels of shipped methods of which none of `names` is one."""
    given = set(names)
    return [
        entry.label
        for entry in methods.METHODS.values()
        if not any(re.fullmatch(entry.pattern, name) for name in given)
    ]
