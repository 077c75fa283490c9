"""The report's headline numbers, each against an answer that was worked out by hand."""

from pathlib import Path

import pytest
from result_builder import MIB, RECIPE, HandmadeRun, varied

from sltt_bench.report import numbers
from sltt_bench.report.groups import Group, NotComparable, make_groups
from sltt_bench.report.statistics import (
    Estimate,
    Interval,
    Stat,
    mean_with_interval,
    paired_difference,
    paired_ratio,
    pareto_front,
    stat,
)
from sltt_bench.report.summary import leading_first
from sltt_bench.report.tables import every_figure, overview, pareto_members, summary_frame
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


def test_time_is_the_median_of_warm_epochs_then_the_mean_over_seeds(group: Group) -> None:
    assert group.methods["bptt"].values["epoch_s"] == {0: 2.0, 1: 3.0, 2: 4.0}
    assert group.methods["bptt"].stat("epoch_s") == Stat(3.0, 1.0, 3)
    sltt = group.methods["sltt"].stat("epoch_s")
    assert sltt is not None
    assert sltt.mean == pytest.approx(1.7)
    assert sltt.std == pytest.approx(0.67**0.5)  # deviations −0.7, −0.2, 0.9: squares sum to 1.34
    assert group.phase == "warm"


def test_the_ratio_and_its_interval_are_those_of_all_27_resamples_of_three_pairs(group: Group) -> None:
    # Pairs (1, 2), (1.5, 3), (2.6, 4). Sorted, the 27 ratios of sums are 0.5 eight times, …, 0.62 three
    # times and 0.65 once: the 2.5 % quantile is 0.5, the 97.5 % one lies 0.35 of the way from 0.62 to 0.65.
    estimate = group.ratio("epoch_s", "sltt", "bptt")
    assert isinstance(estimate, Estimate)
    assert estimate.value == pytest.approx(5.1 / 9)
    assert estimate.interval is not None
    assert estimate.interval.low == pytest.approx(0.5)
    assert estimate.interval.high == pytest.approx(0.6305)
    assert estimate.n == 3


def test_the_memory_ratio_of_equal_seeds_has_no_spread(group: Group) -> None:
    assert group.ratio("peak_tensor_bytes", "sltt", "bptt") == Estimate(0.25, Interval(0.25, 0.25), 3)
    assert group.headline_memory() == "peak_tensor_bytes"


def test_accuracy_is_compared_in_points_and_best_and_last_epoch_are_kept_apart(group: Group) -> None:
    estimate = group.difference("last_test_top1", "sltt", "bptt")
    assert isinstance(estimate, Estimate)
    assert estimate.value == pytest.approx(-0.01)
    assert group.methods["bptt"].values["best_test_top1"] == {0: 0.95, 1: 0.95, 2: 0.95}
    assert group.methods["bptt"].values["last_test_top1"] == {0: 0.90, 1: 0.92, 2: 0.94}


def test_the_overview_shows_these_numbers(group: Group) -> None:
    # Differences of accuracy in points: −1, 0, −2 (sltt). The 27 means of three draws are −2 once, −5/3
    # three times, …: the 2.5 % quantile lies 0.65 of the way from −2 to −5/3. Twice that for sltt-k1.
    table = overview(group, "bptt")
    said = [[f"{cell.text} {cell.detail}".strip() for cell in row] for row in table.rows]
    assert [heading.text for heading in table.headings] == [
        "method", "seeds", "top-1, last epoch", "− bptt", "best epoch", "warm epoch", "÷ bptt",
        "live tensors", "÷ bptt", "Pareto",
    ]  # fmt: skip
    assert said == [
        ["bptt", "3", "92.00 ± 2.00", "0", "95.00 ± 0.00", "3.00 ± 1.00", "1", "100 ± 0", "1", "on the front"],
        ["sltt", "3", "91.00 ± 1.73", "−1.00 [−1.78, −0.22]", "93.00 ± 0.00", "1.70 ± 0.82",
         "0.57× [0.50, 0.63]", "25.0 ± 0", "0.25×", "on the front"],
        ["sltt-k1", "3", "90.00 ± 0.00", "−2.00 [−3.57, −0.43]", "90.00 ± 0.00", "1.70 ± 0.82",
         "0.57× [0.50, 0.63]", "30.0 ± 0", "0.30×", "dominated"],
    ]  # fmt: skip
    assert "Best-epoch accuracy is chosen on test data; the last epoch's is not." in table.notes


def test_every_figure_stands_under_its_own_name_with_its_ratio(group: Group) -> None:
    table = every_figure(group, "bptt")
    said = {row[0].text: [f"{c.text} {c.detail}".strip() for c in row[1:]] for row in table.rows}
    assert said["live tensors"] == ["100 MiB", "25.0 MiB 0.25×", "30.0 MiB 0.30×"]
    assert said["epoch time, warm epochs"] == ["3.00 s", "1.70 s 0.57×", "1.70 s 0.57×"]
    assert "energy per epoch, warm epochs" not in said


def test_summary_csv_has_the_same_numbers_in_base_units(group: Group) -> None:
    rows = summary_frame([group], "bptt").set_index("method")
    assert rows.loc["sltt", "peak_tensor_bytes_mean"] == 25 * MIB
    assert rows.loc["sltt", "peak_tensor_bytes_ratio"] == 0.25
    assert rows.loc["sltt", "epoch_s_ratio_high"] == pytest.approx(0.6305)
    assert rows.loc["sltt", "last_test_top1_minus"] == pytest.approx(-0.01)
    assert rows.loc["bptt", "cold_epoch_s_mean"] == 9.0
    assert rows["pareto"].to_dict() == {"bptt": True, "sltt": True, "sltt-k1": False}


def test_pareto_members_are_those_that_nobody_dominates(group: Group) -> None:
    assert pareto_members(group) == {"bptt", "sltt"}
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
    assert group.ratio("epoch_s", "sltt", "bptt") == Estimate(0.25, None, 1)
    assert "n = 1 seed: no spread, no interval." in overview(group, "bptt").notes


def test_a_ratio_uses_the_seeds_that_both_methods_finished(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "run")
    for seed, seconds in enumerate((2.0, 4.0, 100.0)):
        run.cell("bptt", seed, train_s=[9, seconds])
    for seed, seconds in enumerate((1.0, 2.0)):
        run.cell("sltt", seed, train_s=[9, seconds])
    (group,) = read_groups(tmp_path)
    assert group.ratio("epoch_s", "sltt", "bptt") == Estimate(0.5, Interval(0.5, 0.5), 2)
    assert "Ratios of sltt use only the seeds it shares with bptt: 2." in overview(group, "bptt").notes


def test_methods_without_a_common_seed_are_not_comparable(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "run")
    run.cell("bptt", 0)
    run.cell("sltt", 1)
    (group,) = read_groups(tmp_path)
    assert group.ratio("epoch_s", "sltt", "bptt") == NotComparable("no seed that sltt and bptt share")
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
    assert refused == NotComparable("warm epochs of sltt-k1 against cold ones of bptt")
    assert pareto_members(mixed) == set()


def test_repetitions_of_a_seed_are_averaged_and_count_as_one_seed(tmp_path: Path) -> None:
    for number, seconds in enumerate((2.0, 4.0)):
        run = HandmadeRun(tmp_path / str(number), number=10 * number)
        run.cell("bptt", 0, train_s=[9, seconds])
    (group,) = read_groups(tmp_path)
    assert group.methods["bptt"].stat("epoch_s") == Stat(3.0, None, 1)
    assert [(c.text, c.detail) for c in overview(group, "bptt").rows[0][:2]] == [
        ("bptt", ""),
        ("1", "2 runs"),
    ]


def test_ratios_of_times_set_cells_of_the_same_run_side_by_side(tmp_path: Path) -> None:
    """On a fast day bptt alone, on a slow day both: sltt took half of bptt's time, not its whole."""
    HandmadeRun(tmp_path / "fast").cell("bptt", 0, train_s=[9, 2.0])
    slow = HandmadeRun(tmp_path / "slow", number=10)
    slow.cell("bptt", 0, train_s=[9, 8.0])
    slow.cell("sltt", 0, train_s=[9, 4.0])
    (group,) = read_groups(tmp_path)
    assert group.methods["bptt"].stat("epoch_s") == Stat(5.0, None, 1)
    ratio = group.ratio("epoch_s", "sltt", "bptt")
    assert isinstance(ratio, Estimate)
    assert (ratio.value, ratio.n) == (0.5, 1)
    said = "Ratios of times set cells of the same run side by side; the means are over all runs."
    assert said in overview(group, "bptt").notes


def test_times_of_different_runs_are_compared_with_a_warning(tmp_path: Path) -> None:
    HandmadeRun(tmp_path / "one").cell("bptt", 0, train_s=[9, 2.0])
    HandmadeRun(tmp_path / "other", number=10).cell("sltt", 0, train_s=[9, 4.0])
    (group,) = read_groups(tmp_path)
    (warning,) = [note for note in overview(group, "bptt").notes if "different runs" in note]
    assert warning.startswith("sltt and bptt were timed in different runs")


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


# Failures -----------------------------------------------------------------------------------------------


def test_a_method_that_ran_out_of_memory_is_a_row_with_its_reason(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "run")
    run.cell("bptt", 0, status="oom", reason="CUDA out of memory")
    run.cell("sltt", 0)
    (group,) = read_groups(tmp_path)
    table = overview(group, "bptt")
    assert [cell.text for cell in table.rows[0]] == ["bptt", "0 of 1", "oom", "oom", "oom"]
    assert "bptt: oom (seed 0): CUDA out of memory" in table.notes
    assert "sltt: not comparable with bptt: bptt did not finish: oom." in table.notes
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
    assert "accuracy does not" in " ".join(overview(group, "bptt").notes)


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
    from sltt_bench.report.tables import backend_tables

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


# Plain arithmetic ----------------------------------------------------------------------------------------


def test_bootstrap_intervals_are_the_same_every_time_and_for_many_seeds() -> None:
    ours = {seed: 1.0 + seed % 3 for seed in range(12)}
    theirs = dict.fromkeys(range(12), 4.0)
    first, second = paired_ratio(ours, theirs), paired_ratio(dict(reversed(ours.items())), theirs)
    assert first == second
    assert first is not None
    assert first.interval is not None
    assert first.interval.low < first.value == 0.5 < first.interval.high
    assert paired_difference(ours, {}) is None
    assert mean_with_interval({3: 0.5}) == Estimate(0.5, None, 1)


def test_equal_values_have_no_spread_not_even_that_of_rounding() -> None:
    assert stat([0.1] * 3) == Stat(0.1, 0.0, 3)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (numbers.significant(0.012345), "0.0123"),
        (numbers.significant(999.6), "1000"),
        (numbers.significant(12345.6), "12,346"),
        (numbers.significant(0.0), "0"),
        (numbers.ratio(0.2349), "0.23×"),
        (numbers.ratio(0.0123), "0.012×"),
        (numbers.ratio(12.34), "12.3×"),
        (numbers.points(-0.0123), "−1.23"),
        (numbers.scale_for("bytes", [3 * 2**30]).text(1.5 * 2**30), "1.50 GiB"),
        (numbers.scale_for("s", [100.0]).text(90), "90.0 s"),
        (numbers.scale_for("s", [130.0]).text(90), "1.50 min"),
        (numbers.scale_for("s", [0.02]).text(0.0123), "12.3 ms"),
    ],
)
def test_numbers_are_shown_to_three_digits_in_a_fitting_unit(shown: str, expected: str) -> None:
    assert shown == expected


def test_groups_say_in_which_conditions_they_differ(tmp_path: Path) -> None:
    from sltt_bench.report.groups import differing_fields

    run = HandmadeRun(tmp_path / "run")
    run.cell("bptt")
    run.cell("bptt", recipe=varied(RECIPE, timesteps=2), overrides={"timesteps": 2})
    HandmadeRun(tmp_path / "other", device_name="Other CPU").cell("bptt", 1)
    keys = [group.key for group in read_groups(tmp_path)]
    assert len(keys) == 3
    assert differing_fields(keys) == ["hardware", "T"]
