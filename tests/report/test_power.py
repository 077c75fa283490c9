"""`power`: the number of seeds that a stated effect needs, against textbook values and by simulation."""

import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from result_builder import RECIPE, HandmadeRun, varied
from rich.console import Console
from typer.testing import CliRunner

from sltt_bench.command_line.cli import app
from sltt_bench.report.power import (
    CAUTION,
    FIGURES,
    MOST_SEEDS,
    SeedsNeeded,
    pairs_for,
    power_of,
    print_seeds_needed,
    seeds_needed,
    standard_effect_for,
    upper_limit_of_spread,
)
from sltt_bench.report.statistics import COLOURED_FROM, t_estimate
from sltt_bench.results.reader import read_results
from sltt_bench.results.writer import ResultsError

BASE = [0.90, 0.91, 0.92, 0.93, 0.94]
SHIFTS = [0.010, -0.002, 0.004, 0.006, -0.008]


def make(folder: Path, shifts: list[float] = SHIFTS, test_samples: int = 10_000) -> Path:
    """bptt and sltt over seeds, whose accuracies differ by `shifts`."""
    run = HandmadeRun(folder / "run", recipe=varied(RECIPE, data__test_samples=test_samples))
    for seed, shift in enumerate(shifts):
        run.cell("bptt", seed, top1=[0.1, 0.2, BASE[seed]])
        run.cell("sltt", seed, top1=[0.1, 0.2, BASE[seed] + shift], train_s=[9.0, 2.0, 2.0 + seed / 100])
    return folder


@pytest.mark.parametrize(("standard_effect", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_the_counts_are_the_textbooks_for_a_paired_t_test(standard_effect: float, pairs: int) -> None:
    """Cohen's small, medium and large effect at a level of 5 % and a power of 80 %."""
    assert pairs_for(standard_effect, 0.8) == pairs
    assert power_of(pairs - 1, standard_effect) < 0.8 <= power_of(pairs, standard_effect)


@pytest.mark.parametrize(("pairs", "standard_effect"), [(5, 1.0), (8, 1.2), (20, 0.5), (5, 0.0)])
def test_the_power_is_the_share_of_simulated_experiments_that_the_reports_interval_decides(
    pairs: int, standard_effect: float
) -> None:
    samples = np.random.default_rng(0).normal(standard_effect, 1.0, (2000, pairs))
    estimates = [t_estimate(sample) for sample in samples]
    share = np.mean([estimate.excludes(0.0) and estimate.value > 0 for estimate in estimates])
    expected = power_of(pairs, standard_effect)
    assert share == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 2000))


def needed(sources: list[Path], effects: list[float], **how: Any) -> list[SeedsNeeded]:
    return seeds_needed(read_results(sources), sources, effects, **how)


@pytest.mark.parametrize("pairs", [2, 3, 5, 30])
def test_the_spread_lies_below_its_upper_limit_as_often_as_promised(pairs: int) -> None:
    spreads = np.random.default_rng(1).normal(0.0, 1.0, (4000, pairs)).std(axis=1, ddof=1)
    covered = np.mean(spreads * upper_limit_of_spread(1.0, pairs) >= 1.0)
    assert covered == pytest.approx(CAUTION, abs=0.03)


def test_an_effect_that_pairs_show_needs_no_more_than_those_pairs() -> None:
    for pairs in (5, 12, 100):
        effect = standard_effect_for(pairs, 0.9)
        assert power_of(pairs, effect) == pytest.approx(0.9, abs=1e-6)
        assert pairs_for(effect * (1 + 1e-6), 0.9) == pairs


def test_a_huge_effect_still_needs_the_pairs_below_which_nothing_is_called_better() -> None:
    assert pairs_for(50.0, 0.8) == COLOURED_FROM
    assert pairs_for(1e-4, 0.8) is None
    assert power_of(MOST_SEEDS, 1e-4) < 0.8


def test_seeds_come_from_the_spread_of_paired_differences_not_of_accuracies(tmp_path: Path) -> None:
    (row,) = needed([make(tmp_path)], [0.5], power=0.8)
    deviation = float(np.std(SHIFTS, ddof=1))
    assert deviation < 0.6 * float(np.std(BASE, ddof=1))  # the pairing removes what seeds share
    assert (row.method, row.baseline, row.pairs, row.unit) == ("sltt", "bptt", 5, "points")
    assert row.difference == pytest.approx(0.2)
    assert row.spread == pytest.approx(100 * deviation)
    assert row.seeds == pairs_for(0.005 / deviation, 0.8)
    assert row.cautious_seeds is not None
    assert row.seeds is not None
    assert row.cautious_seeds > row.seeds > 5
    assert row.detectable == pytest.approx(100 * deviation * standard_effect_for(5, 0.8))


def test_a_ratio_is_told_in_percent_and_counted_on_a_logarithmic_scale(tmp_path: Path) -> None:
    (row,) = needed([make(tmp_path)], [5.0], power=0.8, figure="epoch_s")
    ratios = np.log([(2.0 + 2.0 + seed / 100) / 2 / 2 for seed in range(5)])
    assert row.unit == "%"
    assert row.spread == pytest.approx(100 * math.expm1(ratios.std(ddof=1)))
    assert row.seeds == pairs_for(math.log(1.05) / ratios.std(ddof=1), 0.8)


@pytest.mark.parametrize(
    ("shifts", "test_samples", "reason"),
    [
        ([0.01], 10_000, "one pair has no spread"),
        ([0.01, 0.01, 0.01], 10_000, "differ alike"),
        (SHIFTS, 100, r"no more than one test sample \(1.00 points\)"),
        ([0.9, -0.9, 0.05], 10**7, "for 0.5 points more than 10,000 seeds are needed"),
    ],
)
def test_a_count_that_cannot_be_given_is_empty_with_its_reason(
    tmp_path: Path, shifts: list[float], test_samples: int, reason: str
) -> None:
    (row,) = needed([make(tmp_path, shifts, test_samples)], [0.5], power=0.8)
    assert row.cautious_seeds is None
    assert re.search(reason, row.reason)


def test_a_method_that_did_not_finish_keeps_its_row(tmp_path: Path) -> None:
    run = HandmadeRun(make(tmp_path) / "other", recipe=varied(RECIPE, data__test_samples=10_000))
    run.cell("sltt-k2", status="oom", reason="no memory")
    rows = needed([tmp_path], [0.5, 1.0], power=0.8)
    assert [(row.method, row.effect) for row in rows if row.seeds is None] == [
        ("sltt-k2", 0.5),
        ("sltt-k2", 1.0),
    ]
    assert "did not finish: oom" in rows[-1].reason


def test_the_command_prints_a_table_and_json(tmp_path: Path) -> None:
    make(tmp_path)
    text = CliRunner().invoke(app, ["power", str(tmp_path), "--effect", "0.5"], env={"COLUMNS": "160"})
    assert text.exit_code == 0, text.output
    listed = CliRunner().invoke(app, ["power", str(tmp_path), "--effect", "0.5,1", "--json"])
    rows = json.loads(listed.stdout)
    assert [row["effect"] for row in rows] == [0.5, 1.0]
    assert f"{rows[0]['seeds']} up to {rows[0]['cautious_seeds']}" in " ".join(text.output.split())


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--figure", "peak_tensor_bytes"], "is counted, so that one pair decides"),
        (["--figure", "epoch"], "did you mean 'epoch_s'"),
        (["--baseline", "btt"], "did you mean 'bptt'"),
        (["--method", "slt"], "did you mean 'sltt'"),
        (["--method", "bptt"], "never ran under the same conditions"),
        (["--effect", "0"], "wants numbers above 0"),
        (["--effect", "nan"], "wants numbers above 0"),
        (["--power", "1"], "--power"),
    ],
)
def test_wrong_usage_names_the_option_and_exits_with_two(
    tmp_path: Path, options: list[str], fault: str
) -> None:
    result = CliRunner().invoke(app, ["power", str(make(tmp_path)), *options], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert fault in result.output


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_what_was_not_read_stands_below_the_seeds_needed(tmp_path: Path, options: list[str]) -> None:
    folder = make(tmp_path)
    with next(folder.rglob("epochs.csv")).open("a") as file:
        file.write("5,torn")
    result = CliRunner().invoke(app, ["power", str(folder), *options], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert re.search(r"not read: .*epochs\.csv:\d+: torn: the line was never finished", result.stderr)
    assert not options or json.loads(result.stdout)


def test_a_folder_without_runs_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="no run in or below it"):
        needed([tmp_path], [0.5], power=0.8)
    assert "last_test_top1" in FIGURES


def test_groups_that_a_version_alone_tells_apart_are_tables_of_their_own(tmp_path: Path) -> None:
    """Two machines' folders of one name; on the newer torch the differences are twice as far apart."""
    recipe = varied(RECIPE, data__test_samples=1000)
    for number, torch in enumerate(("2.6.0", "2.7.0")):
        run = HandmadeRun(
            tmp_path / f"machine{number}" / "run", recipe=recipe, torch=torch, number=50 * number
        )
        for seed in range(3):
            run.cell("bptt", seed, top1=(0.1, 0.2, 0.9))
            run.cell("sltt", seed, top1=(0.1, 0.2, 0.9 + 0.01 * seed * (number + 1)))
    rows = needed([tmp_path], [1.0], power=0.8)
    assert [row.conditions.rpartition(", ")[2] for row in rows] == ["torch 2.6.0", "torch 2.7.0"]
    printed = io.StringIO()
    print_seeds_needed(rows, Console(file=printed, width=200))
    lines = [line.split() for line in printed.getvalue().splitlines() if line.split()[:1] == ["sltt"]]
    assert [line[2] for line in lines] == ["+1.00", "+2.00"]
    assert {len(line) for line in lines} == {
        len(["sltt", "3", "+1.00", "1.00", "10", "up", "to", "38", "3.26"])
    }
