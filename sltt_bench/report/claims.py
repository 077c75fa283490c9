"""Verdicts: what a recipe's claims are worth on the hardware at hand.

A claim is judged only on cells that are what it speaks of: no smoke run, no random data for
accuracy, no overrides but those that `when` names or that cannot change the figure.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sltt_bench.common.failures import DIVERGED
from sltt_bench.common.format import Unit, counted, scale_for, significant
from sltt_bench.planning.studies import FOLDER as STUDIES
from sltt_bench.planning.studies import TASK, setting_words, task_name
from sltt_bench.report import numbers
from sltt_bench.report.document import Verdict, VerdictWord
from sltt_bench.report.groups import Group, NotComparable, natural_order
from sltt_bench.report.keys import TUNED
from sltt_bench.report.metrics import METRICS
from sltt_bench.report.statistics import ROUNDING, Interval, PairedEstimate
from sltt_bench.results.doubts import CHANCE

Claim = Mapping[str, Any]

_NEVER_MATTERS = {"train.checkpoint_every", "train.keep_checkpoint", "methods", "seeds", "description"}
_LOADING = {"data.workers", "data.prefetch_factor", "data.pin_memory"}
"""How samples reach the device: a matter of time alone."""
_LENGTH = {"train.epochs", "data.limit", "data.synthetic_samples", "data.split_seed"}
"""How many epochs there are, how many iterations in one, and of which samples: an iteration's memory and work are the same
in all, and so is the ratio of two methods' times."""
HARMLESS = {
    "peak_memory": _NEVER_MATTERS | _LOADING | _LENGTH,
    "warm_epoch_time": _NEVER_MATTERS | _LENGTH,
    "test_top1": _NEVER_MATTERS | _LOADING | {"data.synthetic_samples"},
    "compute": _NEVER_MATTERS | _LOADING | _LENGTH,
}
"""Metric → overrides that cannot change the figure, or its ratio, so that the claim can still be judged."""
_HARMLESS_TO_SECONDS = _NEVER_MATTERS | {"train.epochs"}
"""The same for the seconds of an epoch themselves."""

_WORDS = {
    "peak_memory": "peak memory",
    "warm_epoch_time": "warm epoch time",
    "test_top1": "last-epoch top-1",
    "compute": "multiplications",
}


def judge(groups: Sequence[Group]) -> list[Verdict]:
    """A verdict for every claim of every recipe: one for each group that can judge it, else one in all."""
    verdicts = []
    for recipe in sorted({group.key.recipe for group in groups}, key=natural_order):
        of_recipe = [group for group in groups if group.key.recipe == recipe]
        # The reason that is given for a claim nobody measured is that of the group nearest to it.
        of_recipe.sort(key=lambda g: (g.key.smoke, g.key.synthetic, len(g.overrides), g.key))
        claims = _claims_of(of_recipe)
        for claim in claims:
            judged = [
                (group, judge_group(claim, group))
                for group in of_recipe
                if any(asks(claim) == asks(other) for other in group.claims)
            ]
            own = _told_apart([(group, verdict) for group, verdict in judged if verdict.is_finding])
            own = own or [judged[0][1]]
            if variants := _variants(claim, claims):
                own = [replace(verdict, caveats=(*verdict.caveats, variants)) for verdict in own]
            verdicts += own
    return verdicts


def _told_apart(judged: Sequence[tuple[Group, Verdict]]) -> list[Verdict]:
    """The verdicts on one claim, equal ones once: what another version finds again to the last digit is no further
    finding. Where different ones were reached under the same conditions, with what tells those apart."""
    findings: list[tuple[Verdict, list[Group]]] = []
    for group, verdict in judged:
        groups = next((groups for known, groups in findings if known == verdict), None)
        if groups is None:
            findings.append((verdict, [group]))
        else:
            groups.append(group)
    verdicts = []
    for verdict, groups in findings:
        alike = [group for other, own in findings if other.conditions == verdict.conditions for group in own]
        if len(alike) > len(groups):
            words = numbers.listed([", ".join(group.told_apart(alike)) for group in groups])
            verdict = replace(verdict, conditions=(*verdict.conditions, words))
        verdicts.append(verdict)
    return verdicts


def _variants(claim: Claim, claims: Sequence[Claim]) -> str:
    """What to say of a claim whose threshold is not the same in all runs of the recipe, else ''."""
    about = ("metric", "method", "baseline", "relation", "when", "source")
    alike = [other for other in claims if all(other.get(key) == claim.get(key) for key in about)]
    if len(alike) == 1:
        return ""
    thresholds = ", ".join(f"{float(other['threshold']):g}" for other in alike)
    return f"the recipe's claim changed between runs: thresholds {thresholds}"


def judge_group(claim: Claim, group: Group) -> Verdict:
    """The verdict of one group on one claim."""
    if (lost := _out_of_memory(claim, group)) is not None:
        return lost
    figure = _figure(claim, group)
    reason = _unfit(claim, group) or ("" if figure else _no_figure(claim, group))
    estimate = NotComparable(reason) if reason or figure is None else _estimate(claim, group, figure)
    if figure is None or isinstance(estimate, NotComparable):
        reason = estimate.reason if isinstance(estimate, NotComparable) else reason
        blocked = figure is not None and any(
            (breach.blocks or breach.parts)
            and breach.text == reason
            and breach.concerns(figure, _named(claim))
            for breach in group.breaches
        )
        verdict = not_measured(claim, group.key.recipe, reason)
        where = tuple(group.key.conditions())
        return replace(verdict, word="not comparable", conditions=where) if blocked else verdict
    words = "median of warm epochs" if figure == "epoch_s" else METRICS[figure].label
    conditions = group.key.conditions()
    verdict = _decided(claim, group.key.recipe, estimate, words, METRICS[figure].unit, conditions)
    # What has an interval, but was not measured of the methods alone, decides nothing.
    undecided = estimate.interval is not None and (
        group.undecided(figure, _named(claim))
        or (METRICS[figure].unit == "accuracy" and _learning_undecides(claim, group))
    )
    return replace(
        verdict,
        word="inconclusive" if undecided else verdict.word,
        caveats=_caveats(claim, group, figure),
        beside=_counted_beside(claim, group, estimate),
    )


def not_measured(claim: Claim, recipe: str, reason: str) -> Verdict:
    """The verdict of who can say nothing of a claim."""
    command = command_for(claim, recipe)
    return Verdict(recipe, claim, "not measured", statement(claim), reason=reason, command=command)


def _learning_undecides(claim: Claim, group: Group) -> bool:
    """Whether accuracies are no sample of what the named methods reach: seeds diverged, or a cell did not train (its loss
    never moved, say); or whether the baseline that one comes near to learned nothing."""
    results = [group.methods[name] for name in _named(claim) if name in group.methods]
    diverged = any(f.reason.startswith(DIVERGED) for result in results for f in result.failures)
    doubted = any(not doubt.startswith(CHANCE) for result in results for doubt in result.doubts)
    near_nothing = claim["relation"] == "within_points" and group.at_chance(str(claim["baseline"]))
    return diverged or doubted or near_nothing


def _decided(
    claim: Claim, recipe: str, estimate: PairedEstimate, figure: str, unit: Unit, conditions: Sequence[str]
) -> Verdict:
    """The verdict that follows from an estimate alone. `figure` says in words what it is an estimate of."""
    interval = estimate.interval
    at_most, limit = _limit(claim)
    factor = 100 if claim["relation"] in _IN_POINTS else 1
    return Verdict(
        recipe=recipe,
        claim=claim,
        word=_word(claim, estimate),
        statement=statement(claim),
        measured=_shown(claim, estimate, unit),
        value=estimate.value * factor,
        low=interval.low * factor if interval else None,
        high=interval.high * factor if interval else None,
        limit=limit * factor,
        at_most=at_most,
        n=estimate.n,
        exact=estimate.exact,
        figure=figure,
        conditions=tuple(conditions),
    )


def _counted_beside(claim: Claim, group: Group, estimate: PairedEstimate) -> str:
    """What the same cells counted exactly, beside a memory claim that a single noisy pair leaves open."""
    if claim["metric"] != "peak_memory" or estimate.exact or estimate.interval is not None:
        return ""
    counted = _estimate(claim, group, "peak_tensor_bytes")
    if isinstance(counted, NotComparable):
        return ""
    shown = _shown(claim, counted, METRICS["peak_tensor_bytes"].unit)
    return f"live tensors, exact: {shown}, {_word(claim, counted)}"


def _caveats(claim: Claim, group: Group, figure: str) -> tuple[str, ...]:
    named = _named(claim)
    caveats = list(group.breaches_of(figure, named))
    if METRICS[figure].unit == "bytes" and (remark := group.headline_remark(named)):
        caveats.append(remark)
    for name in (name for name in named if name in group.methods):
        if METRICS[figure].unit == "accuracy" and group.at_chance(name):
            caveats.append(f"{name} is at chance")
            caveats += [f"{name}: {doubt}" for doubt in group.doubts_beside_chance(name)]
        else:
            caveats += [f"{name}: {doubt}" for doubt in group.methods[name].doubts]
    return tuple(caveats)


def _no_figure(claim: Claim, group: Group) -> str:
    if claim["metric"] == "peak_memory" and (remark := group.headline_remark(_named(claim))):
        return remark
    return f"no figure for {_WORDS[claim['metric']]} that all cells have"


def judge_estimated(
    claim: Claim, recipe: str, value: float, figure: str, unit: Unit, conditions: Sequence[str]
) -> Verdict:
    """The verdict of an estimate: an exact count, so that the value alone decides.

    `unit` is that of the figure, for claims about the value itself.
    """
    estimate = PairedEstimate(value, None, 0, exact=True)
    return replace(_decided(claim, recipe, estimate, figure, unit, conditions), estimated=True)


def statement(claim: Claim) -> str:
    """The claim as a comparison, in the words of the report."""
    what, method, baseline = _WORDS[claim["metric"]], claim["method"], claim.get("baseline")
    threshold = float(claim["threshold"])
    plain = f"{100 * threshold:g} %" if claim["metric"] == "test_top1" else significant(threshold, 3)
    points = counted(threshold, "point")
    text = {
        "at_most_ratio": f"{what} of {method} ÷ {baseline} ≤ {threshold:g}",
        "at_least": f"{what} of {method} ≥ {plain}",
        "at_most": f"{what} of {method} ≤ {plain}",
        "within_points": f"{what} of {method} at most {points} below {baseline}",
        "exceeds_by_points": f"{what} of {method} at least {points} above {baseline}",
    }[claim["relation"]]
    when = dict(claim.get("when") or {})
    if TASK in when:
        text += f" on {task_name(when.pop(TASK))}"
    if when:
        text += " where " + ", ".join(setting_words(key, value) for key, value in when.items())
    return text


def command_for(claim: Claim, recipe: str) -> str:
    """The command whose results would give the claim a verdict."""
    if claim["metric"] == "compute":
        return f"sltt-bench estimate {recipe}"
    if recipe.startswith(STUDIES):
        return f"sltt-bench run {recipe}"
    methods = ",".join(name for name in (claim.get("baseline"), claim["method"]) if name)
    settings = "".join(f" --set {key}={_written(value)}" for key, value in (claim.get("when") or {}).items())
    return f"sltt-bench run {recipe} --method {methods}{settings}"


def _written(value: Any) -> str:
    """A recipe's value as it stands in YAML."""
    return json.dumps(value, ensure_ascii=False)


# Whether a group can judge ----------------------------------------------------------------------


def _claims_of(groups: Sequence[Group]) -> list[Claim]:
    """Each claim once, in the order of the groups; of one that was put in other words since, the newest run's."""
    claims = {asks(claim): claim for group in groups for claim in group.claims}
    newest_last = sorted(groups, key=lambda group: max(group.runs))
    return list((claims | {asks(claim): claim for group in newest_last for claim in group.claims}).values())


def asks(claim: Claim) -> str:
    """What must be equal in two runs' claims for them to be one: all but the words that it is put in."""
    return json.dumps({key: value for key, value in claim.items() if key != "says"}, sort_keys=True)


def _unfit(claim: Claim, group: Group) -> str | None:
    """Why this group says nothing about the claim, or None."""
    if reason := _unfit_experiment(claim, group):
        return reason
    named = _named(claim)
    for name in named:
        if (refusal := group.refusal("wall_s", name)) is not None:
            return refusal.reason
    if claim["metric"] == "warm_epoch_time" and any(group.methods[name].phase == "cold" for name in named):
        return "only cold epochs were run; at least two epochs give a warm one"
    return None


def _unfit_experiment(claim: Claim, group: Group) -> str | None:
    """Why this group is not the experiment that the claim speaks of, whatever became of it."""
    if claim["metric"] == "compute":
        return "a run does not count multiplications, only an estimate does"
    if group.key.smoke:
        return "only smoke runs, which are not the claim's experiment"
    if group.key.synthetic and claim["metric"] == "test_top1":
        return "only random data was run, which gives no accuracy"
    if group.key.synthetic and _of_seconds(claim):
        samples, whole = (group.settings.get(f"data.{key}") for key in ("synthetic_samples", "train_samples"))
        if samples is None or whole is None or int(samples) < int(whole):
            return "only random data was run, with fewer samples an epoch than the data set has"
    if searched := _searched_beyond_training(claim, group):
        return f"{', '.join(searched)} was tuned for each method separately, so the methods did not run one experiment"
    return unfit_when(claim, group.settings, group.overrides)


def _searched_beyond_training(claim: Claim, group: Group) -> list[str]:
    """Fields that were tuned, and that change what is compared: of memory and time all but those that cost neither."""
    tuned = [key for key, value in group.settings.items() if value == TUNED]
    if claim["metric"] == "test_top1":
        return [key for key in tuned if not key.startswith("train.")]
    return [key for key in tuned if key not in _COST_NOTHING]


_COST_NOTHING = ("train.lr", "train.weight_decay", "train.schedule")


def unfit_when(claim: Claim, settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> str | None:
    """Why cells with these settings (dotted keys) are not the claim's experiment, or None."""
    when = claim.get("when") or {}
    for key, value in when.items():
        if overrides.get(key, settings.get(key)) != value:
            return f"no run with {setting_words(key, value)}"
    harmless = _HARMLESS_TO_SECONDS if _of_seconds(claim) else HARMLESS[claim["metric"]]
    foreign = set(overrides) - set(when) - harmless
    if foreign:
        changed = ", ".join(setting_words(key, overrides[key]) for key in sorted(foreign))
        return f"run only with {changed}, which the claim does not mention"
    return None if claim["metric"] == "test_top1" else _less_than_a_batch(settings, overrides)


def _less_than_a_batch(settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> str | None:
    """Why no iteration had a batch of the recipe's size, or None."""
    batch = int({**settings, **overrides}.get("train.batch_size") or 0)
    for key in ("data.limit", "data.synthetic_samples"):
        if 0 < int(overrides.get(key) or 0) < batch:
            return f"run only with {key} = {_written(overrides[key])}, which is less than a batch of {batch}"
    return None


def _of_seconds(claim: Claim) -> bool:
    """Whether the claim is about the time of an epoch itself, and not about a ratio."""
    return bool(claim["metric"] == "warm_epoch_time" and claim["relation"] in ("at_most", "at_least"))


def _out_of_memory(claim: Claim, group: Group) -> Verdict | None:
    """What a memory claim's group found if the baseline did not fit where the method did, else None.

    That is a result, and no ratio: how much the baseline would have needed is unknown, and that it is more
    than the device has is not certain either (an allocator fails for want of one piece).
    """
    method, baseline = (group.methods.get(str(claim.get(name))) for name in ("method", "baseline"))
    if claim["metric"] != "peak_memory" or method is None or baseline is None:
        return None
    figure = group.headline_memory([method.method])
    if baseline.finished or not baseline.out_of_memory or figure is None or _unfit_experiment(claim, group):
        return None
    peak = method.values[figure].values()
    size = [max(peak), *([group.device_bytes] if group.device_bytes else [])]
    scale = scale_for("bytes", size)
    of_device = f" on a device with {scale.text(group.device_bytes)}" if group.device_bytes else ""
    reason = (
        f"{baseline.method} ran out of memory where {method.method} peaked at {scale.text(max(peak))} "
        f"({METRICS[figure].label}){of_device}; how much {baseline.method} needs is unknown, so there is no ratio"
    )
    verdict = not_measured(claim, group.key.recipe, reason)
    command = f"sltt-bench estimate {group.key.recipe}"
    return replace(verdict, conditions=tuple(group.key.conditions()), command=command)


def _named(claim: Claim) -> list[str]:
    """The methods that the claim speaks of."""
    return [str(name) for name in (claim["method"], claim.get("baseline")) if name]


def _figure(claim: Claim, group: Group) -> str | None:
    """The metric of the report that stands for the claim's."""
    if claim["metric"] == "peak_memory":
        names = [name for name in _named(claim) if name in group.methods]
        return group.headline_memory(names)
    return {"warm_epoch_time": "epoch_s", "test_top1": "last_test_top1"}.get(claim["metric"])


# The relations ----------------------------------------------------------------------------------


def _estimate(claim: Claim, group: Group, figure: str) -> PairedEstimate | NotComparable:
    """What the claim's threshold is set against: a ratio, a value, or method − baseline as a share."""
    method, baseline = str(claim["method"]), str(claim.get("baseline"))
    match claim["relation"]:
        case "at_most_ratio":
            return group.ratio(figure, method, baseline)
        case "within_points" | "exceeds_by_points":
            return group.difference(figure, method, baseline)
        case _:
            return group.mean(figure, method)


_IN_POINTS = ("within_points", "exceeds_by_points")


def _limit(claim: Claim) -> tuple[bool, float]:
    """Whether the estimate must stay below, and what: "within 2 points" is at least −0.02."""
    threshold = float(claim["threshold"])
    return {
        "at_most_ratio": (True, threshold),
        "at_most": (True, threshold),
        "at_least": (False, threshold),
        "within_points": (False, -threshold / 100),
        "exceeds_by_points": (False, threshold / 100),
    }[claim["relation"]]


def _word(claim: Claim, estimate: PairedEstimate) -> VerdictWord:
    """Held or not held if the whole interval is on one side of the limit, else inconclusive.

    Of an exact figure the value decides; of a noisy one a single pair decides nothing.
    """
    if not estimate.exact and estimate.interval is None:
        return "n too small"
    at_most, limit = _limit(claim)
    sign = 1 if at_most else -1
    interval = estimate.interval or Interval(estimate.value, estimate.value)
    holds = {sign * edge <= sign * limit + ROUNDING for edge in (interval.low, interval.high)}
    if len(holds) == 2:
        return "inconclusive"
    return "held" if holds == {True} else "not held"


def _shown(claim: Claim, estimate: PairedEstimate, unit: Unit) -> str:
    """The value with its interval, to as many digits as it takes to tell them from the limit."""
    interval, (_, limit) = estimate.interval, _limit(claim)
    match claim["relation"]:
        case "at_most_ratio":
            notation = numbers.ratio
        case "within_points" | "exceeds_by_points":
            notation = replace(numbers.points, unit=" points")
        case _:
            notation = numbers.in_scale(scale_for(unit, [estimate.value]), unit)
    return f"{notation(estimate.value, limit)} {notation.interval(interval, limit)}".strip()
