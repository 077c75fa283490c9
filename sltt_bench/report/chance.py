"""Up to where an accuracy is none: a little above guessing among the classes of a data set."""

from collections.abc import Mapping
from typing import Any

from sltt_bench.data import source_type

ABOVE_CHANCE = 1.5
"""An accuracy up to this multiple of guessing is none: no Pareto membership, no time to accuracy."""
OF_THE_REST = 1 / 18
"""Of few classes guessing reaches so much that the multiple would be a good accuracy: 75 % of two. There it is this share of
what guessing misses (Cohen's κ, Educational and Psychological Measurement 20, 1960); of ten classes both are one."""


def accuracy_floor(data: Mapping[str, Any]) -> float | None:
    """The accuracy, 0 to 1, up to which a method has learned nothing of the data set with these options.

    Guessing reaches 1 / classes. What always naming the largest class reaches is not known here: a cell that trained has counted it,
    and says so among its doubts (`Group.at_chance`). `data`: a resolved recipe's part of that name. None if the number of classes
    is unknown: a data set that is not installed here, or options that it does not take any more.
    """
    try:
        source = source_type(str(data.get("name")))
        fixed = getattr(source, "classes", None)
        classes = fixed if isinstance(fixed, int) else source.model_validate(dict(data)).classes
    except ValueError:  # no such data set, a plug-in that cannot be loaded, options that are refused
        return None
    if not classes:
        return None
    guessing = 1 / classes
    return min(ABOVE_CHANCE * guessing, guessing + OF_THE_REST * (1 - guessing))
