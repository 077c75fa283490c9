"""The report's headline numbers, each against an answer that was worked out by hand."""

import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from benchmarks import coverage
from result_builder import MIB, RECIPE, HandmadeRun, varied

from sltt_bench.common.format import Scale, scale_for, significant
from sltt_bench.report import numbers
from sltt_bench.report.document import Context
from sltt_bench.report.grouping import make_groups
from sltt_bench.report.groups import Group, NotComparable, differing_fields, natural_order
from sltt_bench.report.numbers import accuracy_and_spread, mean_and_spread
from sltt_bench.report.sections.runs.frames import summary_frame
from sltt_bench.report.sections.runs.panels import method_bars
from sltt_bench.report.sections.runs.section import runs
from sltt_bench.report.sections.runs.tables import every_figure, inference_costs, overview
from sltt_bench.report.statistics import (
    Interval,
    PairedEstimate,
    Stat,
    mean_with_interval,
    paired_difference,
    paired_ratio,
    pareto_front,
    slope_of,
    stat,
)
from sltt_bench.report.summary import leading_first
from sltt_bench.results.reader import read_results

# Epoch times of three seeds; the first epoch is cold. Medians of the warm ones: 2, 3, 4 and 1, 1.5, 2.6.
BPTT_S = ([9.0, 2.0, 2.0, 4.0], [9.0, 3.0, 3.0, 3.0], [9.0, 4.0, 1.0, 4.0])
SLTT_S = ([9.0, 1.0, 1.0, 1.0], [9.0, 1.5, 1.4, 2.0], [9.0, 2.6, 2.6, 0.1])


def read_groups(folder: Path) -> list[Group]:
    return make_groups(read_results([folder]))


@pytest.fixture
def group(tmp_path: Path) -> Group:
    """bptt: 3 s, 100 MiB, 92 %. sltt: 1.7 s, 25 MiB, 91 %. sltt-k1: 1.7 s, 30 MiB, 90 %."""
    run = HandmadeRun(tmp_path / "run")
    for seed, last in enumerate((0.90, 0.92, 0.94)):
        run.cell("bptt", seed, train_s=BPTT_S[seed], top1=[0.5, 0.6, 0.95, last], peak_tensor_bytes=100 * MIB)
    for seed, last in enumerate((0.89, 0.92, 0.92)):
        run.cell("sltt", seed, train_s=SLTT_S[seed], top1=[0.5, 0.6, 0.93, last], peak_tensor_bytes=25 * MIB)
        run.cell("sltt-k1", seed, train_s=SLTT_S[seed], top1=[0.5, 0.6, 0.9, 0.9], peak_tensor_bytes=30 * MIB)
    (only,) = read_groups(tmp_path)
    return only


def test_time_is_the_median_of_warm_epochs_then_the_geometric_mean_over_seeds(group: Group) -> None:
    assert group.methods["bptt"].values["epoch_s"] == {0: 2.0, 1: 3.0, 2: 4.0}
    bptt, sltt = (group.methods[name].stat("epoch_s") for name in ("bptt", "sltt"))
    assert bptt is not None
    assert sltt is not None
    assert (bptt.mean, sltt.mean) == pytest.approx((24 ** (1 / 3), 3.9 ** (1 / 3)))
    assert bptt.geometric_std == pytest.approx(math.exp(statistics.stdev(map(math.log, (2.0, 3.0, 4.0)))))
    assert sltt.geometric_std == pytest.approx(math.exp(statistics.stdev(map(math.log, (1.0, 1.5, 2.6)))))
    assert bptt.std is None
    assert group.phase == "warm"


def test_the_ratio_is_the_geometric_mean_of_the_pairs_with_a_t_interval_of_their_logarithms(
    group: Group,
) -> None:
    # Pairs (1, 2), (1.5, 3), (2.6, 4): logarithms −ln 2 twice and ln 0.65; t(2) at 97.5 % is 4.302653.
    estimate = group.ratio("epoch_s", "sltt", "bptt")
    assert isinstance(estimate, PairedEstimate)
    assert estimate.value == pytest.approx((0.5 * 0.5 * 0.65) ** (1 / 3))
    half = 4.302653 * math.log(1.3) / 3
    assert estimate.interval is not None
    assert estimate.interval.low == pytest.approx(estimate.value * math.exp(-half), rel=1e-6)
    assert estimate.interval.high == pytest.approx(estimate.value * math.exp(half), rel=1e-6)
    assert estimate.n == 3


def test_the_memory_ratio_of_equal_seeds_has_no_spread(group: Group) -> None:
    assert group.ratio("peak_tensor_bytes", "sltt", "bptt") == PairedEstimate(0.25, None, 3, exact=True)
    assert group.headline_memory() == "peak_tensor_bytes"


def test_accuracy_is_compared_in_points_and_best_and_last_epoch_are_kept_apart(group: Group) -> None:
    estimate = group.difference("last_test_top1", "sltt", "bptt")
    assert isinstance(estimate, PairedEstimate)
    assert estimate.value == pytest.approx(-0.01)
    assert group.methods["bptt"].values["best_test_top1"] == {0: 0.95, 1: 0.95, 2: 0.95}
    assert group.methods["bptt"].values["last_test_top1"] == {0: 0.90, 1: 0.92, 2: 0.94}


def test_the_overview_shows_these_numbers(group: Group) -> None:
    table = overview(group, "bptt")
    shown = [[f"{cell.text} {cell.detail}".strip() for cell in row] for row in table.rows]
    assert [heading.text for heading in table.headings] == [
        "method", "seeds", "top-1, last epoch", "− bptt", "best epoch", "warm epoch", "÷ bptt",
        "live tensors", "÷ bptt", "Pareto",
    ]  # fmt: skip
    assert shown == [
        ["bptt", "3", "92.00 ± 2.00", "0", "95.00 ± 0.00", "2.88 ×/÷ 1.42", "1", "100 ± 0", "1", "on the front"],
        ["sltt", "3", "91.00 ± 1.73", "−1.00 [−3.48, +1.48] n = 3", "93.00 ± 0.00", "1.57 ×/÷ 1.62",
         "0.55× [0.37, 0.80] n = 3", "25.0 ± 0", "0.25× exact", "on the front"],
        ["sltt-k1", "3", "90.00 ± 0.00", "−2.00 [−6.97, +2.97] n = 3", "90.00 ± 0.00", "1.57 ×/÷ 1.62",
         "0.55× [0.37, 0.80] n = 3", "30.0 ± 0", "0.30× exact", "dominated"],
    ]  # fmt: skip
    assert (
        "The best epoch is chosen on test data, so its accuracy is biased upwards; the last epoch is not chosen."
        in table.notes
    )


def test_every_figure_stands_under_its_own_name_with_its_ratio(group: Group) -> None:
    table = every_figure(group, "bptt")
    shown = {row[0].text: [f"{c.text} {c.detail}".strip() for c in row[1:]] for row in table.rows}
    assert shown["live tensors"] == ["100 MiB", "25.0 MiB 0.25×", "30.0 MiB 0.30×"]
    assert shown["epoch time, warm epochs"] == ["2.88 s", "1.57 s 0.55×", "1.57 s 0.55×"]
    assert "energy per epoch, warm epochs" not in shown


@pytest.mark.parametrize(
    ("warm_s", "energy", "utilisation"),
    [(0.4, ", which is up to 25% of the shortest epoch here", True), (1.5, ", which is up to 7% of the shortest", False), (3.0, "", False)],
)  # fmt: skip
def test_what_the_sensors_of_a_gpu_cannot_tell_of_short_epochs_is_said(
    tmp_path: Path, warm_s: float, energy: str, utilisation: bool
) -> None:
    run = HandmadeRun(tmp_path / "run", device="cuda:0", device_name="Example GPU")
    run.cell("bptt", train_s=[9.0, 4.0], energy_j=[50.0, 40.0], gpu_util_mean=[0.5, 0.9])
    run.cell("sltt", train_s=[9.0, warm_s], energy_j=[50.0, 40.0], gpu_util_mean=[0.5, 0.9])
    (group,) = read_groups(tmp_path)
    notes = " ".join(every_figure(group, "bptt").notes)
    assert ("Energy: the GPU's counter moves every 20 to 100 ms" in notes) == bool(energy)
    assert energy in notes
    assert ("GPU utilisation: a reading averages up to a second" in notes) == utilisation


def test_a_group_is_named_by_what_was_set_otherwise_but_not_by_how_often_checkpoints_are_written(
    tmp_path: Path,
) -> None:
    overrides = {"data.synthetic_samples": 1024, "train.epochs": 3, "train.checkpoint_every": 0}
    HandmadeRun(tmp_path / "run").cell("bptt", overrides=overrides)
    (group,) = read_groups(tmp_path)
    assert group.words[-2:] == ["data.synthetic_samples = 1024", "train.epochs = 3"]
    titles = [section.title for section in runs(Context(read_results([tmp_path]), "bptt")).sections]
    assert "Methods compared, data.synthetic_samples = 1024, train.epochs = 3" in titles


def test_the_cost_of_inference_is_a_table_of_its_own_without_measured_joules(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "run")
    for seed, energy in enumerate((4e6, 6e6)):
        counts = {"footprint_bytes": 3 * MIB, "activation_sparsity": 0.875, "effective_acs": 2e6,
                  "estimated_energy_45nm_pj": energy}  # fmt: skip
        run.cell("sltt", seed, cell=counts, energy_j=[9.0, 7.0, 7.0], backward_passes=[6, 6, 6])
    run.cell("bptt", 0)
    (group,) = read_groups(tmp_path)
    table = inference_costs(group)
    assert table is not None
    assert [heading.text for heading in table.headings] == [
        "method", "seeds", "parameters and buffers", "outputs that are 0", "effective ACs", "estimated energy, 45 nm",
    ]  # fmt: skip
    assert [cell.text for cell in table.rows[1]] == ["sltt", "2", "3.00", "87.5", "2.00", "5.00"]
    assert [heading.unit for heading in table.headings[2:]] == ["MiB", "%", "M", "µJ"]
    assert "estimate" in table.notes[0]
    figures = {row[0].text: [cell.text for cell in row[1:]] for row in every_figure(group, "bptt").rows}
    assert figures["energy per epoch, warm epochs"] == ["–", "7.00 J"]
    assert figures["backward passes"] == ["–", "6.00"]
    assert "estimated energy, 45 nm" not in figures


@pytest.mark.parametrize(
    ("samples", "words"), [(50_000, "(0.0020 points)"), (1000, "(0.10 points)"), (None, None)]
)
def test_one_test_sample_is_told_with_digits_enough(
    tmp_path: Path, samples: int | None, words: str | None
) -> None:
    """Of ImageNet's 50,000 it was 0.00 points; and where their number is unknown, too."""
    run = HandmadeRun(tmp_path)
    for method, peak in (("bptt", 2), ("sltt", 1)):
        run.cell(method, recipe=varied(RECIPE, data__test_samples=samples), peak_tensor_bytes=peak * MIB)
    (group,) = read_groups(tmp_path)
    told = [note for note in overview(group, "bptt").notes if note.startswith("Pareto")]
    assert (words in told[0]) if words else not told


@pytest.mark.parametrize(
    ("samples", "last", "points"),
    [
        (360, (0.94, 0.98), "1.3"),
        (50_000, (0.7, 0.0), "0.20"),
        (360, (1.0, 1.0), None),
        (None, (0.9, 0.9), None),
    ],
)
def test_a_table_says_how_far_other_test_samples_would_move_its_accuracies(
    tmp_path: Path, samples: int | None, last: tuple[float, float], points: str | None
) -> None:
    """√(0.94 · 0.06 / 360) is 1.25 %, √(0.7 · 0.3 / 50,000) is 0.205 %."""
    run = HandmadeRun(tmp_path)
    for method, top1 in zip(("bptt", "sltt"), last, strict=True):
        run.cell(method, recipe=varied(RECIPE, data__test_samples=samples), top1=[0.1, 0.5, top1])
    (group,) = read_groups(tmp_path)
    told = " ".join(overview(group, "bptt").notes)
    if points is None:
        assert "test samples" not in told
    else:
        assert f"the same {samples:,} test samples; on others an accuracy would scatter" in told
        assert f"by up to {points} points besides" in told
    assert "test samples" not in " ".join(overview(group, "bptt", brief=True).notes)


def test_no_table_of_inference_where_nothing_was_counted(group: Group) -> None:
    assert inference_costs(group) is None


def test_summary_csv_has_the_same_numbers_in_base_units(group: Group) -> None:
    rows = summary_frame([group], "bptt").set_index("method")
    assert rows.loc["sltt", "peak_tensor_bytes_mean"] == 25 * MIB
    assert rows.loc["sltt", "peak_tensor_bytes_ratio"] == 0.25
    assert rows.loc["sltt", "epoch_s_ratio_high"] == pytest.approx(0.7951, abs=1e-4)
    assert rows.loc["sltt", "last_test_top1_minus"] == pytest.approx(-0.01)
    factor = math.exp(statistics.stdev(map(math.log, (2.0, 3.0, 4.0))))
    assert rows.loc["bptt", "epoch_s_geometric_std"] == pytest.approx(factor)
    assert rows["epoch_s_std"].isna().all()
    assert rows.loc["bptt", "last_test_top1_std"] == pytest.approx(0.02)
    assert rows.loc["bptt", "cold_epoch_s_mean"] == 9.0
    assert rows["pareto"].to_dict() == {"bptt": True, "sltt": True, "sltt-k1": False}


def test_pareto_members_are_those_that_nobody_dominates(group: Group) -> None:
    assert group.pareto_front == {"bptt", "sltt"}
    # b is beaten by a; c is cheapest in the second; d equals a and stays beside it.
    points = {"a": (1.0, 2.0), "b": (1.0, 3.0), "c": (5.0, 1.0), "d": (1.0, 2.0)}
    assert pareto_front(points) == {"a", "c", "d"}


# One seed, unpaired seeds, cold epochs ---------------------------------------------------------------


def test_one_seed_has_no_spread_and_no_interval(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "run")
    run.cell("bptt", 0, train_s=[9, 4])
    run.cell("sltt", 0, train_s=[9, 1])
    (group,) = read_groups(tmp_path)
    assert group.methods["bptt"].stat("epoch_s") == Stat(4.0, None, 1)
    assert group.ratio("epoch_s", "sltt", "bptt") == PairedEstimate(0.25, None, 1)
    assert (
        "n = 1: a single pair has no spread and no interval, and is too little for a conclusion."
        in overview(group, "bptt").notes
    )


def test_a_ratio_uses_the_seeds_that_both_methods_finished(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "run")
    for seed, seconds in enumerate((2.0, 4.0, 100.0)):
        run.cell("bptt", seed, train_s=[9, seconds])
    for seed, seconds in enumerate((1.0, 2.0)):
        run.cell("sltt", seed, train_s=[9, seconds])
    (group,) = read_groups(tmp_path)
    assert group.ratio("epoch_s", "sltt", "bptt") == PairedEstimate(0.5, Interval(0.5, 0.5), 2)
    assert "Only 2 of 3 seeds finished on both sides." in overview(group, "bptt").notes


def test_the_best_epoch_is_of_the_seeds_that_the_last_one_beside_it_is_of(tmp_path: Path) -> None:
    """A third seed that bptt lacks has half of the others' accuracy: the best epoch's mean would lie below the last one's."""
    run = HandmadeRun(tmp_path / "run")
    for method, lasts in (("bptt", (0.9, 0.9)), ("sltt", (0.8, 0.8, 0.4))):
        for seed, last in enumerate(lasts):
            run.cell(method, seed, top1=[0.1, 0.2, last])
    (group,) = read_groups(tmp_path)
    last, best = (
        [heading.text for heading in overview(group, "bptt").headings].index(text)
        for text in ("top-1, last epoch", "best epoch")
    )
    assert [(row[last].text, row[best].text) for row in overview(group, "bptt").rows] == [
        ("90.00", "90.00"), ("80.00", "80.00"),
    ]  # fmt: skip


def test_what_is_to_know_of_several_methods_alike_is_said_once_with_their_names_as_they_are(
    tmp_path: Path,
) -> None:
    run = HandmadeRun(tmp_path / "run")
    for method in ("bptt", "e-prop", "rate"):
        run.cell(method, cell={"neighbours": 2 if method == "bptt" else 1})
    (some,) = read_groups(tmp_path / "run")
    notes = overview(some, "bptt").notes
    assert "bptt: measured while up to 2 other cells ran." in notes
    assert "e-prop, rate: measured while up to 1 other cell ran." in notes
    everywhere = HandmadeRun(tmp_path / "everywhere")
    for method in ("bptt", "e-prop", "rate", "sltt"):
        everywhere.cell(method, cell={"neighbours": 1})
    (alike,) = read_groups(tmp_path / "everywhere")
    assert [note for note in overview(alike, "bptt").notes if "measured while" in note] == [
        "all methods: measured while up to 1 other cell ran."
    ]


def test_methods_without_a_common_seed_are_not_comparable(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "run")
    run.cell("bptt", 0)
    run.cell("sltt", 1)
    (group,) = read_groups(tmp_path)
    assert group.ratio("epoch_s", "sltt", "bptt") == NotComparable("sltt and bptt share no seed")
    assert overview(group, "bptt").rows[1][6].text == "not comparable"


def test_cold_times_are_called_cold_and_never_set_against_warm_ones(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "run")
    run.cell("bptt", 0, train_s=[9.0], top1=[0.5])
    run.cell("sltt", 0, train_s=[3.0], top1=[0.5])
    (cold,) = read_groups(tmp_path)
    assert cold.phase == "cold"
    assert overview(cold, "bptt").headings[5].text == "cold epoch"
    run.cell("sltt-k1", 0, train_s=[8.0, 2.0], top1=[0.5, 0.5], cold=[True, False])
    (mixed,) = read_groups(tmp_path)
    refused = mixed.ratio("epoch_s", "sltt-k1", "bptt")
    assert refused == NotComparable("the figure of sltt-k1 is from warm epochs, that of bptt from cold ones")
    assert mixed.pareto_front == set()


def test_repetitions_of_a_seed_are_averaged_and_count_as_one_seed(tmp_path: Path) -> None:
    for number, seconds in enumerate((2.0, 4.0)):
        run = HandmadeRun(tmp_path / str(number), number=10 * number)
        run.cell("bptt", 0, train_s=[9, seconds])
    (group,) = read_groups(tmp_path)
    assert group.methods["bptt"].stat("epoch_s") == Stat(pytest.approx(8**0.5), None, 1)
    assert [(c.text, c.detail) for c in overview(group, "bptt").rows[0][:2]] == [
        ("bptt", ""),
        ("1", "2 runs"),
    ]


def test_a_table_and_its_plots_show_one_mean_of_repeated_times(tmp_path: Path) -> None:
    """The table's is over pairs of a run and a seed, the plots' over seeds: as many runs of each give the same."""
    for number, seconds in enumerate((2.0, 4.0)):
        run = HandmadeRun(tmp_path / str(number), number=10 * number)
        for method, factor in {"bptt": 1.0, "sltt": 0.5}.items():
            for seed in (0, 1):
                run.cell(method, seed, train_s=[9, factor * seconds * (1 + seed)])
    (group,) = read_groups(tmp_path)
    in_table = {row[0].text: row[5].value for row in overview(group, "bptt").rows}
    (bars,) = (panel for panel in method_bars(group, "bptt") if "time" in panel.label)
    assert {bar.label: bar.parts[0] for bar in bars.bars} == pytest.approx(in_table)
    assert in_table == pytest.approx({"bptt": (2 * 4 * 4 * 8) ** 0.25, "sltt": (1 * 2 * 2 * 4) ** 0.25})


@pytest.mark.filterwarnings("error")
def test_groups_are_made_of_results_in_which_no_cell_finished(tmp_path: Path) -> None:
    """Pandas warned that its next version would raise an error there."""
    HandmadeRun(tmp_path).cell("bptt", status="oom", reason="no memory")
    (group,) = read_groups(tmp_path)
    assert (group.key.ranks, group.finished) == ("1", [])


def test_times_of_cold_epochs_have_the_mean_of_warm_ones(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path)
    for seed, seconds in enumerate((1.0, 9.0)):
        run.cell("bptt", seed, train_s=[seconds, seconds])
    rows = summary_frame(read_groups(tmp_path), "bptt")
    assert rows["epoch_s_mean"].item() == pytest.approx(3.0)
    assert rows["cold_epoch_s_mean"].item() == pytest.approx(3.0)


def test_ratios_of_times_set_cells_of_the_same_run_side_by_side(tmp_path: Path) -> None:
    """On a fast day bptt alone, on a slow day both: sltt took half of bptt's time, not its whole."""
    HandmadeRun(tmp_path / "fast").cell("bptt", 0, train_s=[9, 2.0])
    slow = HandmadeRun(tmp_path / "slow", number=10)
    slow.cell("bptt", 0, train_s=[9, 8.0])
    slow.cell("sltt", 0, train_s=[9, 4.0])
    (group,) = read_groups(tmp_path)
    ratio = group.ratio("epoch_s", "sltt", "bptt")
    assert isinstance(ratio, PairedEstimate)
    assert (ratio.value, ratio.n) == (0.5, 1)
    shown = {row[0].text: row[5].text for row in overview(group, "bptt").rows}
    assert shown == {"bptt": "8.00", "sltt": "4.00"}  # the means are those of the pairs


def test_times_of_different_runs_are_compared_with_a_warning(tmp_path: Path) -> None:
    HandmadeRun(tmp_path / "one").cell("bptt", 0, train_s=[9, 2.0])
    HandmadeRun(tmp_path / "other", number=10).cell("sltt", 0, train_s=[9, 4.0])
    (group,) = read_groups(tmp_path)
    (warning,) = [note for note in overview(group, "bptt").notes if "different runs" in note]
    assert warning.startswith("sltt and bptt were timed in different runs")


def test_a_seed_that_was_run_often_is_not_taken_for_many(tmp_path: Path) -> None:
    for number in range(5):
        run = HandmadeRun(tmp_path / str(number), number=10 * number)
        for method, seconds in (("bptt", 2.0), ("sltt", 1.0)):
            run.cell(method, 0, train_s=[9, seconds])
    (group,) = read_groups(tmp_path)
    assert "5 pairs come from only 1 seed" in " ".join(group.breaches_of("epoch_s", ["sltt", "bptt"]))
    assert not group.breaches_of("last_test_top1", ["sltt", "bptt"])  # of which a pair is a seed


def test_the_recipe_as_it_is_on_the_reference_backend_leads(tmp_path: Path) -> None:
    for number, (name, about) in enumerate(
        {
            "a": {"overrides": {"train.lr": 0.5}, "recipe": varied(RECIPE, train__lr=0.5)},
            "b": {"backend": "native"},
            "c": {},
            "d": {"cell": {"synthetic": True}, "top1": None},
            "e": {"cell": {"smoke": True}},
        }.items()
    ):
        run = HandmadeRun(tmp_path / name, number=10 * number)
        run.cell("bptt", 0, **about)
    led = leading_first(read_groups(tmp_path))
    assert [
        (group.key.smoke, group.key.synthetic, bool(group.overrides), group.key.backend) for group in led
    ] == [
        (False, False, False, "reference"),
        (False, False, False, "native"),
        (False, False, True, "reference"),
        (False, True, False, "reference"),
        (True, False, False, "reference"),
    ]


@pytest.mark.parametrize("newest", [0, 1, 2])
def test_of_groups_that_their_version_alone_tells_apart_the_newest_leads(tmp_path: Path, newest: int) -> None:
    for number in range(3):
        started = {"started_utc": f"2026-01-0{9 if number == newest else 1}T00:00:00+00:00"}
        run = HandmadeRun(tmp_path / str(number), git_revision=f"{number}" * 40, facts=started, number=number)
        run.cell("bptt", 0)
    first, *_ = leading_first(read_groups(tmp_path))
    assert first.key.revision == f"{newest}" * 12


# Failures -----------------------------------------------------------------------------------------------


def test_a_method_that_ran_out_of_memory_is_a_row_with_its_reason(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "run")
    run.cell("bptt", 0, status="oom", reason="CUDA out of memory")
    run.cell("sltt", 0)
    (group,) = read_groups(tmp_path)
    table = overview(group, "bptt")
    assert [cell.text for cell in table.rows[0]] == ["bptt", "0 of 1", "oom", "oom", "oom"]
    assert "bptt: oom (seed 0): CUDA out of memory" in table.notes
    assert "sltt: not comparable with bptt: bptt did not finish: oom, CUDA out of memory." in table.notes
    assert not any(heading.text.startswith("÷") for heading in table.headings)


def test_a_seed_that_failed_once_and_finished_once_counts_as_finished(tmp_path: Path) -> None:
    HandmadeRun(tmp_path / "first").cell("sltt", 0, status="error", reason="RuntimeError: no")
    run = HandmadeRun(tmp_path / "second", number=10)
    run.cell("sltt", 0)
    run.cell("sltt", 1, status="error", reason="RuntimeError: no")
    (group,) = read_groups(tmp_path)
    assert overview(group, "bptt").rows[0][1].text == "1 of 2"
    assert summary_frame([group], "bptt")["failed_cells"].tolist() == [2]


def test_a_cell_that_failed_before_it_told_its_device_belongs_to_its_runs_group(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "run", device="cuda:0", device_name="Example GPU")
    run.cell("sltt", 0)
    run.device, run.device_name = "auto", ""
    run.cell("bptt", 0, status="oom", reason="CUDA out of memory")
    (group,) = read_groups(tmp_path)
    assert group.key.hardware == "Example GPU"
    assert group.methods["bptt"].out_of_memory


def test_random_data_have_no_accuracy_whatever_the_file_says(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "run")
    run.cell("bptt", 0, cell={"synthetic": True})
    (group,) = read_groups(tmp_path)
    assert group.methods["bptt"].stat("last_test_top1") is None
    assert "accuracy would be meaningless" in " ".join(overview(group, "bptt").notes)


# Memory figures ------------------------------------------------------------------------------------------


def test_the_headline_is_the_first_figure_that_every_cell_has(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "run", device="cuda:0", device_name="Example GPU")
    run.cell("bptt", 0, peak_allocated_bytes=8 * MIB, peak_reserved_bytes=9 * MIB, peak_tensor_bytes=1)
    run.cell("sltt", 0, peak_reserved_bytes=4 * MIB, peak_tensor_bytes=1)
    (group,) = read_groups(tmp_path)
    assert group.headline_memory() == "peak_reserved_bytes"
    assert group.headline_memory(["bptt"]) == "peak_allocated_bytes"


def test_nvml_memory_of_a_process_is_never_set_beside_that_of_a_device(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "run", device="cuda:0", device_name="Example GPU")
    run.cell("bptt", 0, peak_nvml_bytes=8 * MIB, peak_nvml_scope="device")
    run.cell("sltt", 0, peak_nvml_bytes=4 * MIB, peak_nvml_scope="process")
    (group,) = read_groups(tmp_path)
    for name in ("peak_nvml_process_bytes", "peak_nvml_device_bytes"):
        assert isinstance(group.ratio(name, "sltt", "bptt"), NotComparable)


def test_peaks_are_those_of_warm_epochs_and_cold_ones_are_kept_beside_them(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "run")
    run.cell("bptt", 0, peak_rss_bytes=[9 * MIB, 4 * MIB, 5 * MIB])
    (group,) = read_groups(tmp_path)
    assert group.methods["bptt"].values["peak_rss_bytes"] == {0: 5 * MIB}
    assert group.methods["bptt"].values["cold_peak_rss_bytes"] == {0: 9 * MIB}


# Backends -----------------------------------------------------------------------------------------------


def test_backends_are_compared_for_one_method_in_a_table_of_their_own(tmp_path: Path) -> None:
    from sltt_bench.report.sections.runs.tables import backend_tables

    run = HandmadeRun(tmp_path / "run")
    for seed in (0, 1):
        run.cell("sltt", seed, train_s=[9, 2.0], backend="reference")
        run.cell("sltt", seed, train_s=[9, 1.0], backend="native")
        run.cell("bptt", seed, train_s=[9, 4.0], backend="native")
    groups = read_groups(tmp_path)
    assert [sorted(group.methods) for group in groups] == [["bptt", "sltt"], ["sltt"]]
    (table,) = backend_tables(groups)
    assert table.title.startswith("Backends, method sltt (")
    ratio = [heading.text for heading in table.headings].index("÷ reference", 4)
    assert [(row[0].text, row[ratio].text) for row in table.rows] == [("reference", "1"), ("native", "0.50×")]


def test_two_versions_of_the_library_behind_a_backend_have_a_row_each(tmp_path: Path) -> None:
    from sltt_bench.report.sections.runs.tables import backend_tables

    HandmadeRun(tmp_path / "own").cell("sltt", 0, train_s=[9, 2.0])
    for number, (version, seconds) in enumerate({"0.0.0.0.14": 3.0, "2.0.0": 1.0}.items(), start=1):
        facts = {"packages": {"torch": "2.6.0", "spikingjelly": version}}
        run = HandmadeRun(tmp_path / version, facts=facts, number=10 * number)
        run.cell("sltt", 0, train_s=[9, seconds], backend="spikingjelly")
    (table,) = backend_tables(read_groups(tmp_path))
    shown = {row[0].text for row in table.rows}
    assert shown == {"reference", "spikingjelly 0.0.0.0.14", "spikingjelly 2.0.0"}


# Plain arithmetic ----------------------------------------------------------------------------------------


def test_the_interval_of_ratios_that_lie_worlds_apart_is_finite() -> None:
    """Its edges may be beyond all floats: t is 12.7 with two pairs."""
    ratio = paired_ratio({0: 1e-12, 1: 1e19}, {0: 1e19, 1: 1e-12})
    assert ratio
    assert ratio.interval
    assert ratio.value == pytest.approx(1.0)
    assert 0 < ratio.interval.low < 1e-31
    assert 1e31 < ratio.interval.high < math.inf


def test_intervals_do_not_depend_on_the_order_of_seeds() -> None:
    own = {seed: 1.0 + seed % 3 for seed in range(12)}
    theirs = dict.fromkeys(range(12), 4.0)
    first, second = paired_ratio(own, theirs), paired_ratio(dict(reversed(own.items())), theirs)
    assert first == second
    assert first is not None
    assert first.interval is not None
    assert first.interval.low < first.value < first.interval.high
    assert first.value == pytest.approx(6 ** (1 / 3) / 4)
    assert paired_difference(own, {}) is None
    assert mean_with_interval([0.5]) == PairedEstimate(0.5, None, 1)


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize(
    "draw", [coverage.normal, coverage.log_normal, coverage.few_samples, coverage.disturbed]
)
def test_the_interval_covers_what_it_promises(n: int, draw: coverage.Draw) -> None:
    """Of two equal methods; 1,500 draws have a standard error of 0.6 %."""
    held, coloured = coverage.covered(draw, n, draws=1500)
    assert held >= 0.93
    assert coloured == pytest.approx((1 - held) * (n >= 5))


def test_a_spread_of_accuracies_that_is_not_0_is_not_written_so() -> None:
    """Of 50,000 test samples a hundredth of a point is five."""
    assert accuracy_and_spread(Stat(0.6619, 0.00003, 3)) == ("66.19", "± 0.003")
    assert accuracy_and_spread(Stat(0.6619, 0.0012, 3)) == ("66.19", "± 0.12")
    assert accuracy_and_spread(Stat(0.6619, 0.0, 3)) == ("66.19", "± 0.00")
    assert accuracy_and_spread(Stat(0.6619, None, 1)) == ("66.19", "")


@pytest.mark.parametrize("samples", [100, 360, 1000])
def test_five_seeds_that_are_one_test_sample_ahead_are_not_told_apart(samples: int) -> None:
    """Their interval ends at 0, which rounding put to either side: 341/360 − 340/360 is more than 1/360."""
    for right in range(samples):
        ahead, behind = (dict.fromkeys(range(5), count / samples) for count in (right + 1, right))
        estimate = paired_difference(ahead, behind, resolution=1 / samples)
        assert estimate is not None
        assert not estimate.excludes(0.0)


def test_equal_values_have_no_spread_not_even_that_of_rounding() -> None:
    assert stat([0.1] * 3) == Stat(0.1, 0.0, 3)
    assert stat([0.1] * 3, geometric=True) == Stat(0.1, None, 3, 1.0)


def test_a_geometric_mean_is_divided_and_multiplied_by_its_deviation() -> None:
    one = stat([1.0, 4.0], geometric=True)
    assert (one.mean, one.std, one.geometric_std) == (2.0, None, pytest.approx(2**2**0.5))
    assert one.spread == pytest.approx((2 / 2**2**0.5, 2 * 2**2**0.5))
    assert stat([1.0, 4.0]).spread == pytest.approx((2.5 - 4.5**0.5, 2.5 + 4.5**0.5))
    # A wait of 0 s has no logarithm.
    assert stat([0.0, 2.0], geometric=True) == Stat(1.0, pytest.approx(2**0.5), 2)
    assert stat([3.0], geometric=True).spread is None


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ((2.0, 3.0, 4.0), ("2.88", "×/÷ 1.42")), ((2.0, 2.0), ("2.00", "± 0")), ((2.0,), ("2.00", "")),
        ((2.0, 2.001), ("2.00", "×/÷ 1.0004")), ((1.0, 1000.0), ("31.6", "×/÷ 132")),
    ],
)  # fmt: skip
def test_a_factor_of_spread_is_told_from_1(values: tuple[float, ...], shown: tuple[str, str]) -> None:
    assert mean_and_spread(stat(values, geometric=True), Scale(1.0, "s")) == shown


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (significant(0.012345), "0.0123"),
        (significant(999.6), "1000"),
        (significant(12345.6), "12,346"),
        (significant(0.0), "0"),
        (numbers.ratio(0.2349), "0.23×"),
        (numbers.ratio(0.0123), "0.012×"),
        (numbers.ratio(12.34), "12.3×"),
        (numbers.points(-0.0123), "−1.23"),
        (numbers.ratio(0.3004, 0.3), "0.3004×"),
        (numbers.ratio(0.3, 0.3), "0.30×"),
        (numbers.ratio.interval(Interval(0.27101, 0.27102)), "[0.27101, 0.27102]"),
        (numbers.points(-0.02001, -0.02), "−2.001"),
        (scale_for("bytes", [3 * 2**30]).text(1.5 * 2**30), "1.50 GiB"),
        (scale_for("s", [100.0]).text(90), "90.0 s"),
        (scale_for("s", [130.0]).text(90), "1.50 min"),
        (scale_for("s", [0.02]).text(0.0123), "12.3 ms"),
    ],
)
def test_numbers_are_shown_to_three_digits_in_a_fitting_unit(shown: str, expected: str) -> None:
    assert shown == expected


def test_groups_say_in_which_conditions_and_fields_they_differ(tmp_path: Path) -> None:
    def differing(**changes: Any) -> list[str]:
        overrides = {key.replace("__", "."): value for key, value in changes.items()}
        run.cell("bptt", recipe=varied(RECIPE, **changes), overrides=overrides)
        return differing_fields(read_groups(tmp_path))

    run = HandmadeRun(tmp_path / "run")
    run.cell("bptt")
    HandmadeRun(tmp_path / "other", device_name="Other CPU").cell("bptt", 1)
    assert differing(timesteps=2) == ["hardware", "T"]
    assert differing(timesteps=2, neuron__tau=3.0) == ["hardware", "T", "neuron.tau"]
    assert differing(timesteps=2, train__lr=0.5) == ["hardware", "T", "neuron.tau", "learning rate or tuning"]


def test_groups_of_several_tasks_differ_in_the_task_and_not_in_all_that_it_brings(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "run")
    for task, steps in (("digits", 6), ("vowels", 29)):
        for tau in (1.1, 2.0):
            facts = varied(RECIPE, data__name=task, timesteps=steps, neuron__tau=tau)
            run.cell("bptt", recipe=facts, overrides={"extends": task, "neuron.tau": tau})
    assert differing_fields(read_groups(tmp_path)) == ["T", "task", "neuron.tau"]


def test_a_smoke_run_differs_from_a_full_run_in_being_one(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "run")
    run.cell("bptt")
    run.cell("bptt", cell={"smoke": True}, recipe=varied(RECIPE, data__limit=64))
    assert differing_fields(read_groups(tmp_path)) == ["smoke or full run"]


def test_versions_of_a_recipe_that_no_field_tells_apart_are_versions(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "run")
    run.cell("bptt")
    run.cell("bptt", recipe=varied(RECIPE, target={"accuracy": 0.9}))
    assert differing_fields(read_groups(tmp_path)) == ["recipe version or overrides"]


def test_a_slope_is_that_of_the_time_steps_that_were_looked_at() -> None:
    slope = slope_of([(1, 5.0), (2, 20.0), (4, math.nan), (6, 60.0)])
    assert slope is not None
    assert (slope.per_step, slope.first, slope.last, slope.flat) == (10.0, 2, 6, False)
    assert slope.at(4) == pytest.approx(40.0)
    assert slope_of([(1, 5.0), (2, 20.0), (4, math.nan)]) is None


def test_names_are_in_natural_order_whatever_digits_they_have() -> None:
    assert sorted(["t10", "1²", "t9", "²"], key=natural_order) == ["1²", "t9", "t10", "²"]


@pytest.mark.parametrize(
    "in_order",
    [
        ["τ = 1.1", "τ = 1.25", "τ = 1.5", "τ = 20.0"],
        ["train.lr = 1e-05", "train.lr = 0.0001", "train.lr = 0.03, T = 4"],
        ["width 0.25", "width 0.5"],
        ["layer1.2.conv1", "layer1.10.conv1"],
    ],
)
def test_settings_stand_in_the_order_of_their_values(in_order: list[str]) -> None:
    """1.25 came after 1.5."""
    assert sorted(sorted(in_order), key=natural_order) == in_order
