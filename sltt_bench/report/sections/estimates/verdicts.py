"""What estimates say of the claims about memory and compute."""

from sltt_bench.common.format import Unit
from sltt_bench.report.claims import Claim, judge_estimated, not_measured, unfit_when
from sltt_bench.report.document import Verdict
from sltt_bench.report.sections.estimates.families import EstimateFamily, Point

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
