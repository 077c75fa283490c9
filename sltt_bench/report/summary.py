"""The three sentences on top: what was compared, on what, and the answer."""

from collections import Counter
from collections.abc import Sequence

from sltt_bench.report import numbers
from sltt_bench.report.document import Verdict
from sltt_bench.report.groups import METRICS, Group, NotComparable, natural_order
from sltt_bench.report.numbers import listed
from sltt_bench.report.statistics import Estimate

_MOST = 3
"""Methods and recipes that a sentence names."""


def sentences(groups: Sequence[Group], aside: Sequence[Group], baseline: str) -> tuple[str, ...]:
    """What, on what, and the answer. `groups` come with the most telling of a recipe first; those `aside`
    are counted only."""
    if not groups:
        return ()
    return _what(groups, aside), _on_what(groups), _answer(groups, baseline)


def leading_first(groups: Sequence[Group]) -> list[Group]:
    """The group as its recipe says before those with random data, with overrides and of smoke runs; a recipe
    stands where its best group does."""
    best: dict[str, tuple[object, ...]] = {}
    for group in groups:
        recipe, departs = group.key.recipe, _departs(group)
        best[recipe] = min(best.get(recipe, departs), departs)

    def place(group: Group) -> tuple[object, ...]:
        key = group.key
        return (
            best[key.recipe], natural_order(key.recipe), _departs(group), len(group.overrides), key,
        )  # fmt: skip

    return sorted(groups, key=place)


def _departs(group: Group) -> tuple[object, ...]:
    """In what a group is not its recipe's own experiment on the backend of the equations; the smallest is."""
    key = group.key
    return key.smoke, key.synthetic, bool(group.overrides), key.backend != "reference"


def _what(groups: Sequence[Group], aside: Sequence[Group]) -> str:
    methods = list(dict.fromkeys(method for group in groups for method in group.methods))
    recipes = list(dict.fromkeys(group.key.recipe for group in groups))
    seeds = {seed for group in groups for result in group.methods.values() for seed in result.seeds}
    over = f" over {_count(len(seeds), 'seed')}" if seeds else ""
    on = f"recipe {recipes[0]}" if len(recipes) == 1 else f"{len(recipes)} recipes ({listed(recipes)})"
    also = f"; of smoke runs, {_ended(aside)}" if aside else ""
    return f"{_count(len(methods), 'method')} ({listed(methods)}) on {on}: {_ended(groups)}{over}{also}."


def _ended(groups: Sequence[Group]) -> str:
    finished = sum(result.finished for group in groups for result in group.methods.values())
    failed = sum(f.cells for g in groups for r in g.methods.values() for f in r.failures)
    return f"{_count(finished, 'cell')} finished" + (f" and {failed} did not" if failed else "")


def _on_what(groups: Sequence[Group]) -> str:
    hardware = sorted({group.key.hardware for group in groups})
    precision = sorted({group.key.precision for group in groups})
    backends = sorted({group.key.backend for group in groups})
    with_what = f"in {listed(precision)} with backend {listed(backends)}"
    random = all(group.key.synthetic for group in groups)
    on_data = ", on random data: memory and time, no accuracy" if random else ""
    alone = "; nothing is compared between them" if len(hardware) > 1 else ""
    return f"Measured on {listed(hardware)}, {with_what}{on_data}{alone}."


def _answer(groups: Sequence[Group], baseline: str) -> str:
    """For each recipe its first group with a ratio; where there is none, why. Smoke runs stand back.

    Of one recipe every method is told, of several the first one alone: the tables have the others.
    """
    groups = [group for group in groups if not group.key.smoke] or groups
    found: dict[str, Group] = {}
    for group in groups:
        if group.key.recipe not in found and _compared(group, baseline):
            found[group.key.recipe] = group
    if not found:
        return f"No method could be compared with {baseline}: {_why_not(groups[0], baseline)}."
    telling = list(found.values())
    most = _MOST if len(telling) == 1 else 1
    said: list[str] = []
    for place, group in enumerate(telling[:_MOST]):
        repeated = place > 0 and _words(telling[place - 1]) == _words(group)
        ratios = _ratios(group, baseline, most)
        said.append(ratios if repeated else f"{_words(group)} against {baseline}: {ratios}")
    if len(telling) > _MOST:
        said.append(f"{_count(len(telling) - _MOST, 'recipe')} more below")
    text = "; ".join(said)
    return text[0].upper() + text[1:] + "."


def _words(group: Group) -> str:
    """What the ratios of a group are of."""
    memory = group.headline_memory()
    words = [f"peak memory ({METRICS[memory].label})"] if memory else []
    return " and ".join([*words, f"{group.phase} epoch time"])


def _compared(group: Group, baseline: str) -> list[str]:
    """Each method that can be compared, with its ratios."""
    said = {method: _method_answer(group, method, baseline) for method in group.methods if method != baseline}
    return [f"{method} {answer}" for method, answer in said.items() if answer]


def _ratios(group: Group, baseline: str, most: int) -> str:
    parts = _compared(group, baseline)
    more = f" ({_count(len(parts) - most, 'method')} more below)" if len(parts) > most > 1 else ""
    smoke = " (smoke run)" if group.key.smoke else ""
    return f"on {group.key.recipe}{smoke} {', '.join(parts[:most])}{more}"


def _method_answer(group: Group, method: str, baseline: str) -> str:
    metrics = [name for name in (group.headline_memory(), "epoch_s") if name]
    estimates = [group.ratio(metric, method, baseline) for metric in metrics]
    if any(isinstance(estimate, NotComparable) for estimate in estimates):
        return ""
    text = " and ".join(
        numbers.ratio(estimate.value) for estimate in estimates if isinstance(estimate, Estimate)
    )
    accuracy = group.difference("last_test_top1", method, baseline)
    if isinstance(accuracy, Estimate):
        text += f" ({numbers.points(accuracy.value)} points of accuracy)"
    return text


def _why_not(group: Group, baseline: str) -> str:
    others = [method for method in group.methods if method != baseline]
    if not others:
        return "no other method was run"
    refusal = group.ratio("epoch_s", others[0], baseline)
    return refusal.reason if isinstance(refusal, NotComparable) else "no figure is common"


_NO_ROOM = "without room for the baseline"


def claims_sentence(verdicts: Sequence[Verdict]) -> str:
    """How many verdicts of which kind, those of estimates apart; '' without any."""
    words = ("held", "not held", "inconclusive", _NO_ROOM, "not measured")
    said = []
    for estimated in (False, True):
        counts = Counter(
            _NO_ROOM if verdict.word == "not measured" and verdict.is_finding else verdict.word
            for verdict in verdicts
            if verdict.estimated is estimated
        )
        mark = " by estimate" if estimated else ""
        said += [f"{counts[word]} {word}{mark}" for word in words if counts[word]]
    return f"Claims: {', '.join(said)}." if said else ""


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" + "s" * (n != 1)
