"""The section of the report on estimates: tables, figures and verdicts of every family, put in order."""

from collections.abc import Iterator, Sequence

from sltt_bench.common.format import Unit
from sltt_bench.report.claims import Claim, judge_estimated, not_measured, unfit_when
from sltt_bench.report.document import Context, Contribution, Figure, Section, Verdict
from sltt_bench.report.keys import settings_apart
from sltt_bench.report.numbers import listed
from sltt_bench.report.sections.estimates.families import (
    EstimateFamily,
    Point,
    estimate_rows,
    find_families,
    not_shown,
)
from sltt_bench.report.sections.estimates.figures import figures, missing, slope_figure
from sltt_bench.report.sections.estimates.tables import further_tables, memory_table
from sltt_bench.results.schema import ESTIMATES_FILE

_LEAD = (
    "An estimate goes through one training iteration of the real network, at full size, on tensors without values. "
    "It counts live tensor bytes and multiplications exactly, but measures nothing. An allocator needs more memory "
    "than the live tensors.",
)


def estimated(context: Context) -> Contribution:
    """Tables, plots and verdicts of all estimates."""
    families = find_families(context)
    recipes = list(dict.fromkeys(family.recipe for family in families))
    rows = estimate_rows(context.results).drop(columns=["run", "overrides"])
    return Contribution(
        sections=tuple(_sections(families, context.baseline)),
        verdicts=tuple(verdict for family in families for verdict in judge(family)),
        frames={ESTIMATES_FILE: rows} if families else {},
        sentence=f"Estimates, always marked as such: {listed(recipes)}." if recipes else "",
        key_figure=_key_figure(families),
        skipped=tuple(not_shown(context, families)),
    )


def _key_figure(families: Sequence[EstimateFamily]) -> Figure | None:
    """Memory against T: of the first family that a published claim is about and that varies T."""
    judged = sorted(families, key=lambda f: not any(v.of_paper and v.is_finding for v in judge(f)))
    return next((figure for family in judged if (figure := slope_figure(family))), None)


def _sections(families: Sequence[EstimateFamily], baseline: str) -> Iterator[Section]:
    """For each recipe a heading, and below it a part for each of its families."""
    recipes = dict.fromkeys(family.recipe for family in families)
    for place, recipe in enumerate(recipes):
        name, of_recipe = f"estimate-{recipe}", [family for family in families if family.recipe == recipe]
        yield Section(name, f"Estimated: {recipe}", lead=_LEAD if place == 0 else (), page=recipe)
        for number, family in enumerate(of_recipe, start=1):
            own = f"{name}-{number}" if number > 1 else name
            memory, further = memory_table(family, own, baseline), further_tables(family, own, baseline)
            yield Section(
                f"{own}-family", _title(family, of_recipe), (memory, *figures(family, own), *further),
                level=2, folded=not family.as_published and number > 1, chips=family.conditions,
            )  # fmt: skip
        if gaps := tuple(missing(of_recipe[0])):
            yield Section(f"{name}-missing", "Figures that need more estimates", gaps, level=2, folded=True)


def _title(family: EstimateFamily, siblings: Sequence[EstimateFamily]) -> str:
    """What is shown, and what tells this family from the recipe's others."""
    words = [word for word in family.conditions if any(word not in other.conditions for other in siblings)]
    alike = [other for other in siblings if other.conditions == family.conditions]
    apart = settings_apart(family.settings, [other.settings for other in alike])
    return ", ".join(["Memory and multiplications", *words, *apart])


# Verdicts ---------------------------------------------------------------------------------------

_CLAIMED: dict[str, tuple[str, str, Unit]] = {
    "peak_memory": ("peak_tensor_bytes", "live tensors", "bytes"),
    "compute": ("multiplications", "of one iteration", "count"),
}
"""Metric of a claim → the estimate's column, the words for it, and its unit."""


def judge(family: EstimateFamily) -> list[Verdict]:
    """A verdict on each claim about memory or compute that these estimates speak of; the others are open."""
    return [_judge(family, claim) for claim in family.claims]


def _judge(family: EstimateFamily, claim: Claim) -> Verdict:
    reason = "only estimated"
    if claim["metric"] in _CLAIMED:
        column, figure, unit = _CLAIMED[claim["metric"]]
        for point in [] if family.smoke else family.points:
            value = _value(family, claim, point, column)
            if value is not None:
                where = [word for word in family.conditions if not word.startswith(("T =", "batch"))]
                where += [f"T = {point[0]}", f"batch {point[1]}"]
                return judge_estimated(claim, family.recipe, value, figure, unit, where)
        reason = "no estimate of the claim's own experiment"
    return not_measured(claim, family.recipe, reason)


def _value(family: EstimateFamily, claim: Claim, point: Point, column: str) -> float | None:
    """What the threshold is set against; None if this point is not the claim's experiment."""
    method, baseline = str(claim["method"]), str(claim.get("baseline"))
    row = family.estimates.get((point, method))
    settings = {**family.settings, "timesteps": point[0], "train.batch_size": point[1]}
    if row is None or unfit_when(claim, settings, row["overrides"]):
        return None
    if claim["relation"] == "at_most_ratio":
        return family.ratio(point, method, baseline, column)
    return family.value(point, method, column)
