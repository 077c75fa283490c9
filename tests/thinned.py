"""Thins out many similar cases: CI tries some of them, the long campaign all."""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def thinned(cases: Iterable[Any], *, keep: int, first: int = 0) -> list[Any]:
    """Keep one in `keep` cases for CI, beginning with number `first`, and mark the others `long`."""
    return [case if number % keep == first else _long(case) for number, case in enumerate(cases)]


def _long(case: Any) -> Any:
    if isinstance(case, Sequence) and not isinstance(case, str):
        return pytest.param(*case, marks=pytest.mark.long)
    return pytest.param(case, marks=pytest.mark.long)
