"""The three sentences on top: what was compared, on what, and the answer."""

from collections import Counter
from collections.abc import Sequence

from sltt_bench.report import numbers
from sltt_bench.report.document import Verdict, VerdictWord
from sltt_bench.report.groups import METRICS, Group, NotComparable
from sltt_bench.report.statistics import Estimate

_MOST = 3
"""Methods and recipes that a sentence names."""


def sentences(groups: Sequence[Group], verdicts: Sequence[Verdict], baseline: str) -> tuple[str, ...]:
    """What, on what, and the answer. `groups` come with the most telling of a recipe first."""
    if not groups:
        return ()
    return _what(groups), _on_what(groups), _answer(groups, baseline) + _claims(verdicts)


def leading_first(groups: Sequence[Group]) -> list[Group]:
    """Recipes with a full run before those with smoke runs alone; of a recipe's groups the one as
    published before random data, overrides and smoke runs."""
    full = {group.key.recipe for group in groups if not group.key.smoke}

    def place(group: Group) -> tuple[object, ...]:
        key = group.key
        return key.recipe not in full, key.recipe, key.smoke, key.synthetic, len(group.overrides), key

    return sorted(groups, key=place)


def _what(groups: Sequence[Group]) -> str:
    methods = list(dict.fromkeys(method for group in groups for method in group.methods))
    recipes = list(dict.fromkeys(group.key.recipe for group in groups))
    finished = sum(result.finished for group in groups for result in group.methods.values())
    failed = sum(f.cells for g in groups for r in g.methods.values() for f in r.failures)
    seeds = {seed for group in groups for result in group.methods.values() for seed in result.seeds}
    ended = f"{_count(finished, 'cell')} finished" + (f" and {failed} did not" if failed else "")
    over = f" over {_count(len(seeds), 'seed')}" if seeds else ""
    on = f"recipe {recipes[0]}" if len(recipes) == 1 else f"{len(recipes)} recipes ({_listed(recipes)})"
    return f"{_count(len(methods), 'method')} ({_listed(methods)}) on {on}: {ended}{over}."


def _on_what(groups: Sequence[Group]) -> str:
    hardware = sorted({group.key.hardware for group in groups})
    precision = sorted({group.key.precision for group in groups})
    backends = sorted({group.key.backend for group in groups})
    with_what = f"in {_listed(precision)} with backend {_listed(backends)}"
    random = all(group.key.synthetic for group in groups)
    on_data = ", on random data: memory and time, no accuracy" if random else ""
    alone = "; nothing is compared between them" if len(hardware) > 1 else ""
    return f"Measured on {_listed(hardware)}, {with_what}{on_data}{alone}."


def _answer(groups: Sequence[Group], baseline: str) -> str:
    """For each recipe its first group with a ratio; where there is none, why. Smoke runs stand back."""
    groups = [group for group in groups if not group.key.smoke] or groups
    found: dict[str, tuple[str, str]] = {}
    for group in groups:
        if group.key.recipe not in found and (answer := _group_answer(group, baseline)):
            found[group.key.recipe] = answer
    if not found:
        return f"No method could be compared with {baseline}: {_why_not(groups[0], baseline)}."
    answers = list(found.values())
    said: list[str] = []
    for place, (words, ratios) in enumerate(answers[:_MOST]):
        repeated = place > 0 and answers[place - 1][0] == words
        said.append(ratios if repeated else f"{words} against {baseline}: {ratios}")
    if len(answers) > _MOST:
        said.append(f"{len(answers) - _MOST} recipes more below")
    text = "; ".join(said)
    return text[0].upper() + text[1:] + "."


def _group_answer(group: Group, baseline: str) -> tuple[str, str] | None:
    """What the ratios are of, and the ratios."""
    said = {method: _method_answer(group, method, baseline) for method in group.methods if method != baseline}
    parts = [f"{method} {answer}" for method, answer in said.items() if answer]
    if not parts:
        return None
    more = f" ({len(parts) - _MOST} methods more below)" if len(parts) > _MOST else ""
    smoke = " (smoke run)" if group.key.smoke else ""
    memory = group.headline_memory()
    words = [f"peak memory ({METRICS[memory].label})"] if memory else []
    words.append(f"{group.phase} epoch time")
    return " and ".join(words), f"on {group.key.recipe}{smoke} {', '.join(parts[:_MOST])}{more}"


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


def _claims(verdicts: Sequence[Verdict]) -> str:
    if not verdicts:
        return ""
    counts = Counter(verdict.word for verdict in verdicts)
    words: tuple[VerdictWord, ...] = ("held", "not held", "inconclusive", "not measured")
    return " Claims: " + ", ".join(f"{counts[word]} {word}" for word in words if counts[word]) + "."


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" + "s" * (n != 1)


def _listed(words: Sequence[str]) -> str:
    if len(words) > 4:
        return f"{', '.join(words[:3])} and {len(words) - 3} more"
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else words[0]
