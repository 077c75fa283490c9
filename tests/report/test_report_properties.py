"""No order, copy or company of runs changes a ratio."""

import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from result_builder import MIB, RECIPE, HandmadeRun, varied
from thinned import thinned

from sltt_bench.report.grouping import make_groups
from sltt_bench.report.keys import GroupKey
from sltt_bench.report.statistics import PairedEstimate
from sltt_bench.results.reader import read_results

Cell = tuple[str, int, float, int]
"""Method, seed, seconds of a warm epoch, MiB."""

CELLS = st.lists(
    st.tuples(
        st.sampled_from(["bptt", "sltt", "sltt-k2"]),
        st.integers(0, 2),
        st.floats(0.01, 100, allow_nan=False),
        st.integers(1, 1000),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda cell: cell[:2],
)
FEW = settings(max_examples=4)
Ratios = dict[GroupKey, dict[tuple[str, str], Any]]


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def add(run: HandmadeRun, cells: list[Cell], **how: Any) -> None:
    for method, seed, seconds, mib in cells:
        run.cell(
            method, seed, train_s=[99.0, seconds], top1=[0.1, 0.5], peak_tensor_bytes=mib * MIB,
            peak_rss_bytes=(mib + seed) * MIB, **how,
        )  # fmt: skip


TIMES, MEMORY = ("epoch_s",), ("peak_tensor_bytes", "peak_rss_bytes")


def ratios(*sources: Path, metrics: Sequence[str] = TIMES + MEMORY) -> Ratios:
    """Every ratio of every group, the values rounded beyond what the order of a sum can do."""
    return {
        group.key: {
            (metric, method): _rounded(group.ratio(metric, method, "bptt"))
            for metric in metrics
            for method in group.methods
        }
        for group in make_groups(read_results(sources))
    }


def _rounded(ratio: Any) -> Any:
    if not isinstance(ratio, PairedEstimate):
        # The reason may change with the company: "no run of bptt", or "not under these conditions".
        return type(ratio)
    interval = ratio.interval and (ratio.interval.low, ratio.interval.high)
    return tuple(f"{value:.9g}" for value in (ratio.value, *(interval or ()))), ratio.n


@FEW
@given(cells=CELLS, order=st.randoms(use_true_random=False), parts=st.integers(1, 3))
def test_neither_order_nor_how_cells_are_spread_over_runs_matters(
    cells: list[Cell], order: random.Random, parts: int
) -> None:
    with folder() as top:
        add(HandmadeRun(top / "all" / "run"), cells)
        shuffled = order.sample(cells, len(cells))
        for part in range(parts):
            add(HandmadeRun(top / "spread" / f"run{part}", number=100 * part), shuffled[part::parts])
        # Times are paired within runs, which the spread takes apart.
        metrics = MEMORY if parts > 1 else TIMES + MEMORY
        assert ratios(top / "all", metrics=metrics) == ratios(top / "spread", metrics=metrics)


@FEW
@given(cells=CELLS, copies=st.integers(1, 3))
def test_copies_of_a_run_change_no_ratio(cells: list[Cell], copies: int) -> None:
    with folder() as top:
        run = HandmadeRun(top / "results" / "run")
        add(run, cells)
        before = ratios(top / "results")
        for number in range(copies):
            shutil.copytree(run.path, top / "results" / "backups" / f"copy{number}")
        assert ratios(top / "results") == before
        assert ratios(run.path, top / "results", run.path) == before


COMPANY: dict[str, dict[str, Any]] = {
    "another T": {"recipe": varied(RECIPE, timesteps=2)},
    "another batch size": {"recipe": varied(RECIPE, train__batch_size=8)},
    "another recipe": {"recipe": varied(RECIPE, name="other")},
    "another neuron": {"recipe": varied(RECIPE, neuron__tau=2.0)},
    "another backend": {"backend": "native"},
    "random data": {"cell": {"synthetic": True}},
    "a smoke run": {"cell": {"smoke": True}},
    "an estimate": {"cell": {"kind": "estimate"}},
    "a benchmark": {"cell": {"kind": "bench"}},
    "another device": {"device_name": "Other CPU"},
    "another torch": {"torch": "9.9"},
}


@pytest.mark.parametrize(
    "company", thinned(COMPANY, keep=2)
)  # each is a temptation of test_report_temptations too
@settings(max_examples=2)
@given(cells=CELLS, others=CELLS)
def test_runs_that_are_not_comparable_change_no_ratio(
    company: str, cells: list[Cell], others: list[Cell]
) -> None:
    how = dict(COMPANY[company])
    machine = {name: how.pop(name) for name in ("device_name", "torch") if name in how}
    with folder() as top:
        add(HandmadeRun(top / "run"), cells)
        before = ratios(top)
        add(HandmadeRun(top / "others", number=100, **machine), others, **how)
        after = ratios(top)
        assert {key: after[key] for key in before} == before


@FEW
@given(cells=CELLS)
def test_a_failed_cell_of_another_seed_changes_no_ratio(cells: list[Cell]) -> None:
    with folder() as top:
        run = HandmadeRun(top / "run")
        add(run, cells)
        before = ratios(top)
        run.cell("sltt", 77, status="error", reason="RuntimeError: no")
        after = ratios(top)
        for key, values in before.items():
            assert {place: after[key][place] for place in values} == values
