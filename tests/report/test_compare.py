"""`compare`: a small vocabulary, each word pinned by sets that were made for it."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from result_builder import MIB, RECIPE, HandmadeRun, told, varied
from rich.console import Console

from sltt_bench.report.compare import CIRCUMSTANCES, SetComparison, compare_groups, compare_sets
from sltt_bench.report.grouping import make_groups
from sltt_bench.results.reader import read_results
from sltt_bench.results.writer import ResultsError

QUIET = Console(quiet=True)


def make(folder: Path, seconds: list[float], *, method: str = "sltt", **machine: Any) -> HandmadeRun:
    run = HandmadeRun(folder / "run", **machine)
    for seed, value in enumerate(seconds):
        run.cell(method, seed, train_s=[9.0, value], top1=[0.1, 0.9], peak_tensor_bytes=10 * MIB)
    return run


def compared(tmp_path: Path, threshold: float = 0.05) -> SetComparison:
    return compare_sets(tmp_path / "a", tmp_path / "b", threshold, console=QUIET)


def words(comparison: SetComparison) -> dict[tuple[str, str], str]:
    return {(change.method, change.metric): change.word for change in comparison.changes}


@pytest.mark.parametrize(
    ("before", "after", "word"),
    [
        ([2.0], [2.12], "n too small"),
        ([2.0], [2.05], "within the noise"),
        ([2.0], [1.0], "n too small"),
        ([2.0, 2.0, 2.0], [4.0, 4.1, 4.2], "n too small"),
        ([2.0] * 5, [2.3, 2.2, 2.1, 2.2, 2.3], "worse"),
        ([2.0] * 5, [1.0, 1.1, 1.2, 1.1, 1.0], "better"),
        # Slower by 10 % on average, but some seeds became faster: the interval contains 1.
        ([2.0] * 5, [3.0, 2.6, 2.4, 1.6, 1.7], "inconclusive"),
    ],
)
def test_time_is_judged_by_threshold_and_interval(
    tmp_path: Path, before: list[float], after: list[float], word: str
) -> None:
    make(tmp_path / "a", before)
    make(tmp_path / "b", after)
    comparison = compared(tmp_path)
    assert words(comparison)["sltt", "epoch_s"] == word
    assert words(comparison)["sltt", "peak_tensor_bytes"] == "unchanged"
    assert words(comparison)["sltt", "last_test_top1"] == "within the noise"
    assert bool(comparison.regressions) == (word == "worse")


def test_the_change_is_told_with_both_values_and_the_ratio(tmp_path: Path) -> None:
    make(tmp_path / "a", [2.0])
    make(tmp_path / "b", [3.0])
    (change,) = (change for change in compared(tmp_path).changes if change.metric == "epoch_s")
    assert (change.a, change.b, change.change) == ("2.00 s", "3.00 s", "1.50×, n = 1")


def test_a_lower_accuracy_is_worse_and_counts_in_points(tmp_path: Path) -> None:
    for name, last in (("a", 0.9), ("b", 0.885)):
        run = HandmadeRun(tmp_path / name / "run")
        for seed in range(5):
            run.cell("sltt", seed, top1=[0.1, 0.5, last + seed / 1000])
    (change,) = compared(tmp_path).regressions
    assert (change.metric, change.change) == ("last_test_top1", "−1.50 points [−1.50, −1.50], n = 5")


@pytest.mark.parametrize(("before", "after"), [(0.8, 0.81), (0.81, 0.8), (0.57, 0.58), (0.29, 0.28)])
@pytest.mark.parametrize("threshold", [0.05, 0.1, 0.2])
def test_a_change_of_just_the_threshold_is_within_the_noise(
    tmp_path: Path, before: float, after: float, threshold: float
) -> None:
    for name, top1, seconds in (("a", before, 2.0), ("b", after, 2.0 * (1 + threshold))):
        HandmadeRun(tmp_path / name / "run").cell("sltt", train_s=[9.0, seconds], top1=[0.1, top1])
    found = words(compared(tmp_path, threshold))
    assert found["sltt", "last_test_top1"] == found["sltt", "epoch_s"] == "within the noise"


@pytest.mark.parametrize(("size", "word"), [(10 * MIB + 1, "worse"), (10 * MIB - 1, "better")])
def test_an_exact_figure_counts_at_any_size_of_the_change_and_at_one_seed(
    tmp_path: Path, size: int, word: str
) -> None:
    for name, peak in (("a", 10 * MIB), ("b", size)):
        HandmadeRun(tmp_path / name / "run").cell("sltt", peak_tensor_bytes=peak)
    change = next(c for c in compared(tmp_path).changes if c.metric == "peak_tensor_bytes")
    assert change.word == word
    assert "1.00×" not in change.change  # to as many digits as it takes to see it
    assert change.change.endswith("exact")


@pytest.mark.parametrize(
    ("sizes", "word"), [((100, 101), "worse"), ((100, 99), "better"), ((99, 101), "inconclusive"), ((100, 100), "unchanged")]
)  # fmt: skip
def test_an_exact_figure_that_changed_in_some_seeds_alone_has_changed(
    tmp_path: Path, sizes: tuple[int, int], word: str
) -> None:
    for name, peaks in (("a", (100, 100)), ("b", sizes)):
        run = HandmadeRun(tmp_path / name / "run")
        for seed, peak in enumerate(peaks):
            run.cell("sltt", seed, peak_tensor_bytes=peak)
    assert next(c for c in compared(tmp_path).changes if c.metric == "peak_tensor_bytes").word == word


def test_a_folder_without_results_is_an_error_that_names_it(tmp_path: Path) -> None:
    make(tmp_path / "a", [2.0])
    (tmp_path / "b").mkdir()
    with pytest.raises(ResultsError, match=r"b: no results in or below it"):
        compared(tmp_path)


def test_the_sets_are_told_by_hardware_and_revision(tmp_path: Path) -> None:
    make(tmp_path / "a", [2.0], git_revision="aaaa")
    make(tmp_path / "b", [2.0], git_revision="bbbb")
    remarks = compared(tmp_path).remarks
    assert remarks[0] == "A: Example CPU, 2 threads; torch 2.6.0; aaaa"
    assert remarks[1] == "B: Example CPU, 2 threads; torch 2.6.0; bbbb"
    assert remarks[2] == "The sets differ in revision of sltt-bench: aaaa (A), bbbb (B)."


def gpu_set(folder: Path, *columns: str, name: str = "Example GPU") -> None:
    """One cell that has these figures of memory."""
    run = HandmadeRun(folder / "run", device="cuda:0", device_name=name)
    run.cell("sltt", train_s=[9.0, 2.0], top1=[0.1, 0.9], **dict.fromkeys(columns, 10 * MIB))


@pytest.mark.parametrize("letter", ["a", "b"])
def test_memory_is_compared_by_a_figure_that_both_sets_have(tmp_path: Path, letter: str) -> None:
    """Under replayed graphs the allocator's counters are empty: with them in A alone, nothing was compared."""
    for name in ("a", "b"):
        more = ["peak_allocated_bytes"] * (name == letter)
        gpu_set(tmp_path / name, "peak_reserved_bytes", "peak_tensor_bytes", *more)
    (change,) = (change for change in compared(tmp_path).changes if change.metric.startswith("peak"))
    assert (change.metric, change.word) == ("peak_reserved_bytes", "within the noise")
    other = {"a": "B", "b": "A"}[letter]
    assert (
        change.reason
        == f"compared in place of allocated (CUDA), which {letter.upper()} has and {other} lacks"
    )


def test_a_gpu_and_a_cpu_are_compared_by_live_tensors(tmp_path: Path) -> None:
    gpu_set(tmp_path / "a", "peak_allocated_bytes", "peak_tensor_bytes")
    make(tmp_path / "b", [2.0])
    for order in (("a", "b"), ("b", "a")):
        changes = compare_sets(*(tmp_path / name for name in order), 0.05, console=QUIET).changes
        (change,) = (change for change in changes if change.metric.startswith("peak"))
        assert (change.metric, change.word) == ("peak_tensor_bytes", "unchanged")


def test_sets_without_a_common_figure_of_memory_say_what_is_missing(tmp_path: Path) -> None:
    gpu_set(tmp_path / "a")
    gpu_set(tmp_path / "b", "peak_reserved_bytes")
    (change,) = (change for change in compared(tmp_path).changes if change.metric.startswith("peak"))
    assert (change.metric, change.word, change.reason) == (
        "peak_reserved_bytes", "not comparable", "not measured in A",
    )  # fmt: skip


def test_a_method_that_fails_anew_is_a_regression_and_one_that_works_again_is_fixed(tmp_path: Path) -> None:
    for name, statuses in (("a", ("ok", "oom", "oom")), ("b", ("oom", "ok", "oom"))):
        run = HandmadeRun(tmp_path / name / "run")
        for method, status in zip(("bptt", "sltt", "sltt-k2"), statuses, strict=True):
            run.cell(method, status=status, reason="" if status == "ok" else "no memory")
    comparison = compared(tmp_path)
    assert words(comparison) == {
        ("bptt", "status"): "newly failed",
        ("sltt", "status"): "fixed",
        ("sltt-k2", "status"): "not comparable",
    }
    assert [change.method for change in comparison.regressions] == ["bptt"]


def test_a_seed_that_fails_anew_is_a_regression_even_if_others_finish(tmp_path: Path) -> None:
    for name, status in (("a", "ok"), ("b", "error")):
        run = HandmadeRun(tmp_path / name / "run")
        run.cell("sltt", 0)
        run.cell("sltt", 1, status=status, reason="RuntimeError: no")
    (change,) = compared(tmp_path).regressions
    assert (change.word, change.metric) == ("newly failed", "status")
    assert "seed 1:" in change.reason


def test_another_recipe_version_is_not_comparable(tmp_path: Path) -> None:
    make(tmp_path / "a", [2.0])
    HandmadeRun(tmp_path / "b" / "run", recipe=varied(RECIPE, neuron__tau=2.0)).cell("sltt")
    comparison = compared(tmp_path)
    assert [change.word for change in comparison.changes] == ["not comparable", "not comparable"]
    assert not comparison.regressions


@pytest.mark.parametrize(
    ("machine", "difference"),
    [
        ({"device_name": "Other CPU"}, "hardware: Example CPU, 2 threads (A), Other CPU (B)"),
        ({"torch": "9.9"}, "torch or CUDA version: torch 2.6.0 (A), torch 9.9 (B)"),
    ],
)
def test_two_machines_are_compared_and_the_difference_is_named(
    tmp_path: Path, machine: dict[str, str], difference: str
) -> None:
    make(tmp_path / "a", [2.0] * 5)
    make(tmp_path / "b", [1.0] * 5, **machine)
    comparison = compared(tmp_path)
    assert words(comparison)["sltt", "epoch_s"] == "better"
    assert comparison.remarks[2:] == (f"The sets differ in {difference}.",)


def test_two_backends_are_compared(tmp_path: Path) -> None:
    for name in ("reference", "native"):
        folder = tmp_path / ("a" if name == "reference" else "b") / "run"
        HandmadeRun(folder).cell("sltt", backend=name, train_s=[9.0, 2.0 if name == "reference" else 1.0])
    comparison = compared(tmp_path)
    assert words(comparison)["sltt", "epoch_s"] == "n too small"
    assert comparison.remarks[2:] == ("The sets differ in backend: reference (A), native (B).",)
    assert not any("backend" in change.experiment for change in comparison.changes)


def test_a_change_that_has_two_possible_causes_is_called_so(tmp_path: Path) -> None:
    make(tmp_path / "a", [2.0])
    make(tmp_path / "b", [1.0], device_name="Other CPU", torch="9.9")
    assert compared(tmp_path).remarks[-1] == "So no change can be attributed to one of them alone."


def test_where_a_set_has_two_machines_each_is_compared_with_its_own_kind(tmp_path: Path) -> None:
    make(tmp_path / "a", [2.0])
    make(tmp_path / "a" / "second", [8.0], device_name="Other CPU")
    make(tmp_path / "b", [2.0])
    words = [(change.metric, change.word) for change in compared(tmp_path).changes]
    assert ("status", "not comparable") in words
    assert ("epoch_s", "within the noise") in words
    assert len({change.experiment for change in compared(tmp_path).changes}) == 2, "a table for each"
    assert ("epoch_s", "better") not in words


def test_a_set_against_itself_has_no_change(tmp_path: Path) -> None:
    make(tmp_path / "a", [2.0, 2.5])
    comparison = compare_sets(tmp_path / "a", tmp_path / "a", 0.0, console=QUIET)
    assert set(words(comparison).values()) == {"within the noise", "unchanged"}


def test_the_printed_table_counts_the_words(tmp_path: Path) -> None:
    make(tmp_path / "a", [2.0] * 5)
    make(tmp_path / "b", [4.0] * 5)
    console = Console(record=True, width=160)
    compare_sets(tmp_path / "a", tmp_path / "b", 0.05, console=console)
    text = console.export_text()
    assert text.rstrip().endswith("1 worse, 1 unchanged, 1 within the noise")
    assert "2.00×" in text


def test_seeds_that_only_one_side_has_are_named_once_for_all_figures(tmp_path: Path) -> None:
    make(tmp_path / "a", [2.0] * 5)
    make(tmp_path / "b", [2.0] * 3)
    console = Console(record=True, width=160)
    compare_sets(tmp_path / "a", tmp_path / "b", 0.05, console=console)
    text = " ".join(console.export_text().split())
    note = "sltt, last-epoch top-1, epoch time, live tensors: seeds 3, 4 only in A."
    assert (text.count(note), text.count("only in")) == (1, 1)
    assert "n = 3" in text


def test_in_a_narrow_terminal_every_line_of_a_record_has_a_name_and_a_value(tmp_path: Path) -> None:
    make(tmp_path / "a", [2.0] * 5)
    make(tmp_path / "b", [4.0] * 5)
    make(tmp_path / "b" / "other", [4.0], method="bptt")
    console = Console(record=True, width=60)
    compare_sets(tmp_path / "a", tmp_path / "b", 0.05, console=console)
    records = [line for line in console.export_text().splitlines() if line.startswith("  ") and ":" in line]
    assert "  verdict: worse" in [line.rstrip() for line in records]
    assert all(part.strip() for line in records for part in line.split(":", 1)), records


def test_one_more_test_sample_is_no_change_of_accuracy(tmp_path: Path) -> None:
    """Of fifty test samples one is two points, in every seed alike."""
    recipe = varied(RECIPE, data__test_samples=50)
    for name, top1 in (("a", 0.90), ("b", 0.92)):
        into = HandmadeRun(tmp_path / name, recipe=recipe)
        for seed in range(5):
            into.cell("sltt", seed, train_s=[9.0, 2.0], top1=[0.5, top1])
    assert words(compared(tmp_path))["sltt", "last_test_top1"] == "within the noise"


def test_a_slower_epoch_that_waited_for_data_is_no_regression_of_the_method(tmp_path: Path) -> None:
    make(tmp_path / "a", [2.0] * 5)
    slower = HandmadeRun(tmp_path / "b", device_name="Example CPU, 2 threads")
    for seed in range(5):
        slower.cell("sltt", seed, train_s=[9.0, 3.0, 3.0], top1=None, data_wait_s=[0.0, 0.9, 0.9])
    assert words(compared(tmp_path))["sltt", "epoch_s"] == "inconclusive"


def test_a_slower_epoch_beside_other_programs_is_no_regression_of_the_method(tmp_path: Path) -> None:
    make(tmp_path / "a", [2.0] * 5)
    slower = HandmadeRun(tmp_path / "b", device_name="Example CPU, 2 threads")
    for seed in range(5):
        slower.cell("sltt", seed, train_s=[9.0, 3.0], top1=None, cpu_util_mean=1.0, cpu_others_mean=0.4)
    assert words(compared(tmp_path))["sltt", "epoch_s"] == "inconclusive"


def test_times_beside_other_cells_are_not_set_beside_times_measured_alone(tmp_path: Path) -> None:
    make(tmp_path / "a", [2.0] * 5)
    beside = HandmadeRun(tmp_path / "b" / "run")
    for seed in range(5):
        beside.cell("sltt", seed, train_s=[9.0, 4.0], top1=[0.1, 0.9], cell={"neighbours": 1})
    assert {change.word for change in compared(tmp_path).changes} == {"not comparable"}


def make_told(folder: Path, top1: float, facts_of_seed: Callable[[int], dict[str, Any]]) -> None:
    """Five seeds, of which provenance.json holds these facts."""
    run = HandmadeRun(folder / "run")
    run.tell(told({run.cell("sltt", s, top1=[0.1, 0.5, top1]): facts_of_seed(s) for s in range(5)}))


def plugin(source: str) -> dict[str, Any]:
    return {
        "plugins": {"methods sltt": {"package": "theirs", "version": "1.0", "source_sha256": source * 64}}
    }


def test_seeds_that_began_otherwise_in_the_two_sets_are_named_beside_their_accuracy(tmp_path: Path) -> None:
    make_told(tmp_path / "a", 0.9, lambda seed: {"weights_sha256": "1" * 64, "data_sha256": "3" * 64})
    make_told(tmp_path / "b", 0.8, lambda seed: {"weights_sha256": "2" * 64 if seed > 2 else "1" * 64})
    changes = {change.metric: change for change in compared(tmp_path).changes}
    assert changes["last_test_top1"].word == "worse"
    assert changes["last_test_top1"].reason == (
        "training began with different weights in A and in B (seeds 3, 4): some of the difference is chance"
    )
    assert changes["epoch_s"].reason == ""


def test_seeds_that_were_evaluated_on_other_samples_in_the_two_sets_are_named(tmp_path: Path) -> None:
    both = {"data_sha256": "1" * 64, "training_samples_sha256": "1" * 64}
    make_told(tmp_path / "a", 0.9, lambda _: both | {"evaluated_samples_sha256": "1" * 64})
    make_told(tmp_path / "b", 0.8, lambda seed: both | {"evaluated_samples_sha256": f"{seed % 2 + 1}" * 64})
    (reason,) = {change.reason for change in compared(tmp_path).changes if change.metric == "last_test_top1"}
    assert reason == (
        "evaluation saw different samples in A and in B (seeds 1, 3): some of the difference is chance"
    )


def test_samples_that_two_digests_know_to_differ_are_named_once(tmp_path: Path) -> None:
    for side, digit in (("a", "1"), ("b", "2")):
        digests = dict.fromkeys(("data_sha256", "training_samples_sha256"), digit * 64)
        make_told(tmp_path / side, 0.9, lambda _, digests=digests: digests)
    (reason,) = {change.reason for change in compared(tmp_path).changes if change.metric == "last_test_top1"}
    assert reason.count("training saw different samples") == 1


def test_another_version_of_a_methods_plug_in_is_named_beside_every_figure(tmp_path: Path) -> None:
    make_told(tmp_path / "a", 0.9, lambda _: plugin("1"))
    make_told(tmp_path / "b", 0.8, lambda _: plugin("2"))
    changes = {change.metric: change for change in compared(tmp_path).changes}
    assert changes["last_test_top1"].word == "worse"
    assert {change.reason for change in changes.values()} == {
        "the method's plug-in is another: theirs 1.0 source 111111111111 (A), theirs 1.0 source 222222222222 (B)"
    }


def test_what_the_report_would_not_compare_is_not_compared_between_sets(tmp_path: Path) -> None:
    make_told(tmp_path / "a", 0.9, lambda seed: plugin("12"[seed % 2]))
    make_told(tmp_path / "b", 0.8, lambda _: plugin("2"))
    changes = compared(tmp_path).changes
    assert {change.word for change in changes} == {"not comparable"}
    assert all(
        change.reason.startswith("in A, sltt: its plug-in changed between its cells") for change in changes
    )


def test_every_group_of_a_set_is_compared(tmp_path: Path) -> None:
    """Two that differ in any field of their key but the circumstances are two experiments."""
    make(tmp_path / "a", [2.0])
    (group,) = make_groups(read_results([tmp_path / "a"]))
    for name in {field.name for field in fields(group.key)} - set(CIRCUMSTANCES):
        value = getattr(group.key, name)
        other = replace(group.key, **{name: not value if isinstance(value, bool) else f"{value}2"})
        both = [group, replace(group, key=other)]
        compared_figures = [change for change in compare_groups(both, both, 0.0).changes if change.a]
        assert len(compared_figures) == 2 * len(
            [c for c in compare_groups([group], [group], 0.0).changes if c.a]
        ), name


def test_a_name_says_nothing_in_which_the_two_sides_differ(tmp_path: Path) -> None:
    """Nor does what a set alone has, beside it: the sets have a machine and a revision each."""
    make(tmp_path / "a", [2.0], git_revision="aaaa")
    other = HandmadeRun(tmp_path / "b" / "run", device_name="Other CPU", git_revision="bbbb")
    other.cell("sltt", train_s=[9.0, 2.0])
    other.cell("sltt", train_s=[9.0, 2.0], recipe=varied(RECIPE, neuron__tau=2.0))
    names = {change.experiment for change in compared(tmp_path).changes}
    assert len(names) == 2
    assert not [name for name in names for word in ("CPU", "aaaa", "bbbb") if word in name]
