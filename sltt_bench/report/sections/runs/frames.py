"""What was measured as tables for other tools: summary.csv, a row a method, and seeds.csv, a row a measurement."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from sltt_bench.report.groups import Group, MethodResult, NotComparable
from sltt_bench.report.metrics import COLD_FIGURES, METRICS
from sltt_bench.report.statistics import PairedEstimate
from sltt_bench.results.reader import Run


def seeds_frame(groups: Sequence[Group], runs: Sequence[Run]) -> pd.DataFrame:
    """seeds.csv: one row for each group, method, run, seed and figure, in base units.

    What it lacks was not measured, or its cell is not sound; a repeated seed has a row for each run.
    """
    return pd.DataFrame(
        {
            "group": number,
            **vars(group.key),
            "overrides": _overrides(group),
            "method": result.method,
            "run": runs[run].path.name,
            "seed": seed,
            "figure": name,
            "value": value,
            "epochs_used": result.phase if metric.of_phase else "",
        }
        for number, group in enumerate(groups, start=1)
        for result in group.methods.values()
        for name, metric in METRICS.items()
        for (run, seed), value in sorted(result.by_run.get(name, {}).items())
    )


def summary_frame(groups: Sequence[Group], baseline: str) -> pd.DataFrame:
    """summary.csv: one row for each group and method, in base units, ratios with their intervals."""
    return pd.DataFrame(
        [_summary_row(group, result, baseline) for group in groups for result in group.methods.values()]
    )


def _summary_row(group: Group, result: MethodResult, baseline: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        **vars(group.key),
        "overrides": _overrides(group),
        "method": result.method,
        "seeds": len(result.seeds),
        "finished_cells": result.finished,
        "failed_cells": sum(failure.cells for failure in result.failures),
        "failures": result.failure_text,
        "epochs_used": result.phase if result.finished else "",
        "headline_memory": group.headline_memory() or "",
        "baseline": baseline,
    }
    for name, metric in METRICS.items():
        stat = group.stat(name, result.method)
        row[f"{name}_mean"] = stat and stat.mean
        row[f"{name}_std"] = stat and stat.std
        if metric.as_ratio:
            row[f"{name}_geometric_std"] = stat and stat.geometric_std
        if metric.as_ratio and name != "wall_s":
            row |= _estimate_columns(f"{name}_ratio", group.ratio(name, result.method, baseline))
    row |= _estimate_columns(
        "last_test_top1_minus", group.difference("last_test_top1", result.method, baseline)
    )
    for name in COLD_FIGURES:
        stat = result.stat(name)
        row[f"{name}_mean"] = stat and stat.mean
    front = group.pareto_front
    row["pareto"] = result.method in front if front and result.finished else None
    return row


def _estimate_columns(name: str, estimate: PairedEstimate | NotComparable) -> dict[str, Any]:
    if isinstance(estimate, NotComparable):
        return {name: None, f"{name}_low": None, f"{name}_high": None, f"{name}_n": 0}
    interval = estimate.interval
    return {
        name: estimate.value,
        f"{name}_low": interval and interval.low,
        f"{name}_high": interval and interval.high,
        f"{name}_n": estimate.n,
    }


def _overrides(group: Group) -> str:
    return " ".join(f"{key}={value}" for key, value in group.overrides.items())
