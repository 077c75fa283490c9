"""Overrides as the command line has them: `key=value`, and `key=1,2,4` for an axis of a grid."""

import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

from sltt_bench.common.errors import shortened, shortened_text
from sltt_bench.common.strict import held_by_another
from sltt_bench.common.yaml_text import YAMLFault, parse_yaml
from sltt_bench.planning.recipe_faults import RecipeError
from sltt_bench.planning.recipe_fields import MAX_GRID_POINTS


def parse_overrides(assignments: Sequence[str], options: Sequence[str] = ()) -> list[dict[str, Any]]:
    """`key=value` texts → the grid of override mappings; `key=1,2,4` opens one axis of the grid.

    Values are YAML; a list as a value is written in brackets: `model.channels=[16,32]`, text with a comma in quotes.
    `options`: how errors name each of them, as typed; without, --set and its key.
    Raises RecipeError, also for a key that is given two values, or once by itself and once with all of its section.
    """
    axes: dict[str, list[Any]] = {}
    texts: dict[str, str] = {}
    named: dict[str, str] = {}
    for assignment, option in zip(assignments, options or map(_set_option, assignments), strict=True):
        key, separator, text = assignment.partition("=")
        key = key.strip()
        if not separator or not key:
            raise RecipeError(
                option, [f"{shortened(assignment)} must have the form key=value, e.g. train.epochs=2"]
            )
        try:
            values = [parse_yaml(part) for part in _split_at_commas(text)]
        except YAMLFault as fault:
            raise RecipeError(option, fault.faults) from None
        if repr(axes.get(key, values)) != repr(values):  # 1 and true are equal
            both = f"{shortened(texts[key])} and {shortened(text)}"
            if named[key] == option:
                raise RecipeError(option, [f"is given twice, as {both}; give it once"])
            raise RecipeError(
                f"{named[key]} and {option}", [f"set one field, to {both}; give one of the two"]
            )
        axes[key], texts[key], named[key] = values, text, option
    for section, field in held_by_another(axes):
        clash = f"replaces all of what {named[field]} sets a part of; give one of the two"
        raise RecipeError(named[section], [clash])
    points = math.prod(len(values) for values in axes.values())
    if points > MAX_GRID_POINTS:
        several = ", ".join(dict.fromkeys(named[key] for key, values in axes.items() if len(values) > 1))
        raise RecipeError(several, [f"a grid of {points} points; at most {MAX_GRID_POINTS} are taken"])
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _set_option(assignment: str) -> str:
    key, separator, _ = assignment.partition("=")
    return f"--set {shortened_text(key.strip(), 80)}".rstrip() if separator else "--set"


_QUOTED_OR_CHARACTER = re.compile(r"""(?<![^\s,:\[{])(?:"(?:\\.|[^"\\])*"|'(?:''|[^'])*')|.""", re.DOTALL)


def _split_at_commas(text: str) -> list[str]:
    """What stands between commas, those in brackets and in quotes left as they are."""
    parts, depth = [""], 0
    for piece in _QUOTED_OR_CHARACTER.findall(text):
        depth += piece in "[{"
        depth -= piece in "]}"
        if piece == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += piece
    return parts
