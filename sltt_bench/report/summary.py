"""The sentence on top: what was run, and on what; and which group of a recipe leads."""

from collections.abc import Sequence

from sltt_bench.common.format import counted
from sltt_bench.report.groups import Group, NotComparable, natural_order
from sltt_bench.report.numbers import listed


def sentence(groups: Sequence[Group], aside: Sequence[Group], baseline: str) -> str:
    """What was run, on what, and, where nothing could be compared with the baseline, why.

    `groups` come with the most telling of a recipe first; those `aside` are counted only.
    """
    if not groups:
        return ""
    parts = [_what(groups, aside), _on_what(groups)]
    others = [(group, name) for group in groups for name in group.methods if name != baseline]
    if all(isinstance(group.ratio("epoch_s", name, baseline), NotComparable) for group, name in others):
        parts.append(f"No method could be compared with {baseline}: {_why_not(groups[0], baseline)}.")
    return " ".join(parts)


def leading_first(groups: Sequence[Group]) -> list[Group]:
    """The group as its recipe says before those with random data, with overrides and of smoke runs, of several versions
    the newest; a recipe stands where its best group does."""
    best: dict[str, tuple[object, ...]] = {}
    for group in groups:
        recipe, departs = group.key.recipe, _departs(group)
        best[recipe] = min(best.get(recipe, departs), departs)

    def place(group: Group) -> tuple[object, ...]:
        key = group.key
        return (
            best[key.recipe], natural_order(key.recipe), _departs(group), len(group.overrides),
            natural_order(", ".join(group.words)), -max(group.runs), key,
        )  # fmt: skip

    return sorted(groups, key=place)


def _departs(group: Group) -> tuple[object, ...]:
    """In what a group is not its recipe's own experiment on the backend of the equations; the smallest is."""
    key = group.key
    return key.smoke, key.synthetic, bool(group.overrides), key.backend != "reference", key.tuned


def _what(groups: Sequence[Group], aside: Sequence[Group]) -> str:
    methods = list(dict.fromkeys(method for group in groups for method in group.methods))
    recipes = list(dict.fromkeys(group.key.recipe for group in groups))
    seeds = {seed for group in groups for result in group.methods.values() for seed in result.seeds}
    over = f" over {counted(len(seeds), 'seed')}" if seeds else ""
    on = f"recipe {recipes[0]}" if len(recipes) == 1 else f"{len(recipes)} recipes ({listed(recipes)})"
    also = f" Smoke runs: {_ended(aside)}." if aside else ""
    return f"{counted(len(methods), 'method')} ({listed(methods)}) on {on}: {_ended(groups)}{over}.{also}"


def _ended(groups: Sequence[Group]) -> str:
    finished = sum(result.finished for group in groups for result in group.methods.values())
    failed = sum(f.cells for g in groups for r in g.methods.values() for f in r.failures)
    return f"{counted(finished, 'cell')} finished" + (f" and {failed} did not" if failed else "")


def _on_what(groups: Sequence[Group]) -> str:
    hardware = sorted({group.key.hardware for group in groups})
    precision = sorted({group.key.precision for group in groups})
    backends = sorted({group.key.backend for group in groups})
    with_what = f"in {listed(precision)} with backend {listed(backends)}"
    random = all(group.key.synthetic for group in groups)
    on_data = ", on random data, which gives memory and time but no accuracy" if random else ""
    alone = "; results on different hardware are never compared" if len(hardware) > 1 else ""
    return f"Measured on {listed(hardware)}, {with_what}{on_data}{alone}."


def _why_not(group: Group, baseline: str) -> str:
    others = [method for method in (*group.methods, *group.elsewhere) if method != baseline]
    if not others:
        return f"no other method was run on {group.key.recipe}"
    refusal = group.ratio("epoch_s", others[0], baseline)
    return refusal.reason if isinstance(refusal, NotComparable) else "they share no figure"
