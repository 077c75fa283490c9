"""Result sets made to tempt a report into a misleading statement: what it must say of each, and what it must not.

Each temptation builds folders and names the words that must stand in the report and those that must not. The
report is the Markdown page without pictures: every sentence, verdict, table and note of it.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from checkout import RESULTS
from result_builder import MIB, RECIPE, HandmadeRun, told, varied

from sltt_bench.report import SECTIONS, _load
from sltt_bench.report.assemble import assemble
from sltt_bench.report.document import Context, Report
from sltt_bench.report.integrity import EVERYTHING
from sltt_bench.report.metrics import METRICS
from sltt_bench.report.render import markdown
from sltt_bench.results.reader import read_results
from sltt_bench.results.schema import EPOCHS_FILE

Build = Callable[[Path], None]

PAPER: dict[str, Any] = {"says": "the claim", "source": "Meng et al. 2023, abstract", "when": {}}
MEMORY = {
    **PAPER, "metric": "peak_memory", "method": "sltt", "baseline": "bptt", "relation": "at_most_ratio", "threshold": 0.3,
}  # fmt: skip
TIME = {**MEMORY, "metric": "warm_epoch_time", "threshold": 0.5}
ACCURACY = {**MEMORY, "metric": "test_top1", "relation": "within_points", "threshold": 2.0}

PEAKS = {"bptt": 100 * MIB, "sltt": 25 * MIB, "sltt-k2": 24 * MIB}
SECONDS = {"bptt": 4.0, "sltt": 1.9, "sltt-k2": 1.0}


def recipe(*claims: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """With 1,000 training samples, as the builder's epochs have, and 1,000 test samples."""
    return varied(RECIPE, claims=list(claims), data__train_samples=1000, data__test_samples=1000, **changes)


def run(folder: Path, *claims: Mapping[str, Any], number: int = 0, **how: Any) -> HandmadeRun:
    return HandmadeRun(folder, recipe=recipe(*claims), number=number, **how)


def measure(
    into: HandmadeRun,
    seeds: Sequence[int] = (0, 1, 2),
    methods: Sequence[str] = ("bptt", "sltt"),
    *,
    last: Mapping[str, float] | None = None,
    **how: Any,
) -> None:
    """Sound cells: bptt 4 s, 100 MiB, 90 %; sltt 1.9 s, 25 MiB, 90 %; both a little slower from seed to seed."""
    for seed in seeds:
        for method in methods:
            seconds, top1 = SECONDS[method] * (1 + 0.01 * seed), (last or {}).get(method, 0.9)
            how.setdefault("peak_tensor_bytes", None)
            into.cell(
                method, seed, train_s=[9.0, seconds, seconds], top1=[0.5, 0.8, top1],
                **{**how, "peak_tensor_bytes": how["peak_tensor_bytes"] or PEAKS[method]},
            )  # fmt: skip


def assembled(folder: Path) -> Report:
    context = Context(read_results([folder]), "bptt")
    report, _ = assemble(context, {"run": _load(SECTIONS["run"])})
    return report


@dataclass(frozen=True)
class Temptation:
    """A result set, and what a report of it must and must not say."""

    name: str
    build: Build
    says: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    words: tuple[str, ...] | None = None
    """The verdicts, in order; None: of no interest."""


TEMPTATIONS: list[Temptation] = []


def temptation(
    *says: str, never: Sequence[str] = (), words: Sequence[str] | None = None
) -> Callable[[Build], Build]:
    """Adds the function below to the temptations."""

    def add(build: Build) -> Build:
        expected = None if words is None else tuple(words)
        TEMPTATIONS.append(Temptation(build.__name__, build, says, tuple(never), expected))
        return build

    return add


# Cells that are not whole -----------------------------------------------------------------------


@temptation("2 of the 15 epochs of its recipe", "did not finish: unsound", words=["not measured"])
def a_run_of_two_of_fifteen_epochs_is_no_run(top: Path) -> None:
    into = run(top / "a", MEMORY)
    measure(into, methods=["bptt"])
    into.cell(
        "sltt", train_s=[9, 1], top1=[0.5, 0.9], peak_tensor_bytes=25 * MIB, cell={"epochs_planned": 15}
    )


@temptation("sltt: 3 of 4 seeds finished (1 unsound)", words=["held"])
def one_seed_that_stopped_early_is_counted(top: Path) -> None:
    into = run(top / "a", MEMORY)
    measure(into)
    HandmadeRun(top / "b", recipe=recipe(MEMORY), number=50).cell(
        "sltt", 3, train_s=[9, 1], top1=[0.5, 0.9], cell={"epochs_planned": 15}
    )


@temptation("500 samples an epoch, not the 1000 of its recipe", words=["not measured"])
def half_of_the_data_in_half_of_the_time(top: Path) -> None:
    into = run(top / "a", TIME)
    measure(into, methods=["bptt"])
    measure(into, methods=["sltt"], samples=500)


@temptation("different numbers of samples an epoch: bptt 1,000, sltt 500", words=["not comparable"])
def half_of_the_data_where_the_recipe_names_no_count(top: Path) -> None:
    into = HandmadeRun(top / "a", recipe=varied(RECIPE, claims=[TIME]))
    measure(into, methods=["bptt"])
    measure(into, methods=["sltt"], samples=500)


@temptation("its epochs have different numbers of samples: 500, 1000")
def an_epoch_that_lost_half_of_its_samples(top: Path) -> None:
    measure(run(top / "a"), samples=[1000, 500, 1000])


@temptation("cells.csv has 7 epochs, epochs.csv 3")
def cells_and_epochs_that_disagree_on_the_count(top: Path) -> None:
    measure(run(top / "a"), cell={"epochs_done": 7})


@temptation("last_test_top1 is 0.9900 in cells.csv, 0.9000 by epochs.csv", never=["99.00"])
def an_accuracy_in_the_cell_that_no_epoch_reached(top: Path) -> None:
    measure(run(top / "a"), cell={"last_test_top1": 0.99})


@temptation("best_test_top1 is 0.9900 in cells.csv", never=["99.00"])
def a_best_accuracy_that_no_epoch_reached(top: Path) -> None:
    measure(run(top / "a"), cell={"best_test_top1": 0.99})


@temptation("last_test_top1 is 0.9000 in cells.csv, but no epoch has a test_top1", never=["90.00"])
def an_accuracy_in_the_cell_of_which_the_epochs_say_nothing(top: Path) -> None:
    measure(run(top / "a"), test_top1=None)


@temptation("no row of 2 of 6 planned cells: --resume finishes or records them", words=["held"])
def a_plan_of_which_only_some_cells_are_there(top: Path) -> None:
    into = run(top / "a", TIME)
    measure(into, [0])
    there = [path.stem for path in (into.path / "cells").iterdir()]
    measure(run(top / "resumed elsewhere"), [1])
    elsewhere = [path.stem for path in (top / "resumed elsewhere" / "cells").iterdir()]
    into.tell({"plan": [*there, *elsewhere, "cut off", "deleted"], "cells": {}})


@temptation("train_s is not a finite number above 0", words=["not measured"])
def a_time_of_zero(top: Path) -> None:
    into = run(top / "a", TIME)
    measure(into, methods=["bptt"])
    for seed in range(3):
        into.cell("sltt", seed, train_s=[9.0, 0.0, 1.0])


@temptation("its epochs took 17.9 s, more than the whole cell (17.0 s)", words=["not measured"])
def a_baseline_whose_epochs_took_longer_than_its_cell(top: Path) -> None:
    into = run(top / "a", TIME)
    measure(into, [0], methods=["sltt"])
    measure(into, [0], methods=["bptt"], eval_s=0.3, cell={"wall_s": 17.0})


@temptation("n = 3", never=["unsound"], words=["held"])
def epochs_of_an_earlier_attempt_are_no_part_of_the_last_ones_time(top: Path) -> None:
    into = run(top / "a", TIME)
    measure(into, attempt=2, cell={"wall_s": 9.0})
    epochs = pd.read_csv(into.path / EPOCHS_FILE)
    epochs.loc[epochs["epoch"] == 1, "attempt"] = 1
    epochs.to_csv(into.path / EPOCHS_FILE, index=False)


@temptation("peak_tensor_bytes is not a finite number above 0", words=["not measured"], never=["0.00×"])
def a_peak_of_zero_bytes(top: Path) -> None:
    into = run(top / "a", MEMORY)
    measure(into, methods=["bptt"])
    for seed in range(3):
        into.cell("sltt", seed, peak_tensor_bytes=0)


@temptation("train_loss is not a finite number in 2 of 3 epochs", words=["not measured"])
def a_training_that_diverged(top: Path) -> None:
    into = run(top / "a", ACCURACY)
    measure(into, methods=["bptt"])
    measure(into, methods=["sltt"], train_loss=[0.5, "nan", "inf"])


@temptation("test_top1 is not a finite number in 1 of 3 epochs")
def an_accuracy_that_is_missing_in_one_epoch(top: Path) -> None:
    into = run(top / "a")
    into.cell("sltt", top1=[0.5, 0.8, 0.9], test_top1=[0.5, None, 0.9])


@temptation(
    "**!** sltt: last-epoch top-1 is missing in 1 of 3 seeds.",
    "\nsltt: last-epoch top-1 is missing in 1 of 3 seeds.",
    words=["held"],
)
def a_seed_whose_accuracies_were_left_out(top: Path) -> None:
    into = run(top / "a", ACCURACY)
    measure(into, [0, 1])
    measure(into, [2], ["bptt"])
    into.cell("sltt", 2, train_s=[9.0, 1.9, 1.9], top1=None, peak_tensor_bytes=PEAKS["sltt"])


@temptation("its attempts ran on different hardware", words=["not measured"])
def a_cell_that_was_resumed_on_another_machine(top: Path) -> None:
    into = run(top / "a", MEMORY)
    measure(into, methods=["bptt"])
    into.device_name = "Slow CPU"
    into.cell("sltt", status="killed", reason="killed")
    into.device_name = "Example CPU, 2 threads"
    into.cell("sltt", attempt=2, peak_tensor_bytes=25 * MIB)


@temptation("its attempts ran on different hardware", words=["not measured"])
def a_cell_whose_runner_was_killed_on_another_machine_before_its_row(top: Path) -> None:
    into = run(top / "a", MEMORY)
    measure(into, methods=["bptt"])
    devices = ["Slow CPU", "Slow CPU", into.device_name]
    into.cell("sltt", attempt=2, peak_tensor_bytes=25 * MIB, device_name=devices)


# Repetitions ------------------------------------------------------------------------------------


@temptation("repetitions of one cell reached 15.00 % and 95.00 %", words=["not comparable"], never=["55.00"])
def a_seed_that_reached_95_percent_once_and_15_the_other_time(top: Path) -> None:
    into = run(top / "a", ACCURACY)
    measure(into, last={"sltt": 0.95, "bptt": 0.95})
    measure(run(top / "b", ACCURACY, number=50), last={"sltt": 0.15, "bptt": 0.95})


@temptation("counted different live tensor bytes, 26,214,400 and 52,428,800", words=["not comparable"])
def exact_bytes_that_differ_between_repetitions(top: Path) -> None:
    measure(run(top / "a", MEMORY))
    into = run(top / "b", MEMORY, number=50)
    measure(into, methods=["bptt"])
    measure(into, methods=["sltt"], peak_tensor_bytes=50 * MIB)


@temptation(never=["repetitions of one cell"], words=["held"])
def repetitions_that_differ_by_one_test_sample_are_no_alarm(top: Path) -> None:
    measure(run(top / "a", MEMORY))
    measure(run(top / "b", MEMORY, number=50), last={"sltt": 0.901})


@temptation(never=["repetitions of one cell"], words=["held"])
def repetitions_that_differ_by_just_one_point_are_no_alarm(top: Path) -> None:
    measure(run(top / "a", ACCURACY), last={"bptt": 0.8, "sltt": 0.8})
    measure(run(top / "b", ACCURACY, number=50), last={"bptt": 0.8, "sltt": 0.81})


@temptation("0.47×", never=["0.92×"])
def times_of_a_fast_and_a_slow_day_are_pairs_within_runs(top: Path) -> None:
    """On a fast day bptt alone, on a slow one both: pooled means would make sltt look as slow as bptt."""
    measure(run(top / "fast"), methods=["bptt"])
    slow = run(top / "slow", number=50)
    for seed in range(3):
        slow.cell("bptt", seed, train_s=[9, 8.0, 8.0], top1=[0.5, 0.8, 0.9], peak_tensor_bytes=PEAKS["bptt"])
        slow.cell("sltt", seed, train_s=[9, 3.8, 3.8], top1=[0.5, 0.8, 0.9], peak_tensor_bytes=PEAKS["sltt"])


@temptation("timed in different runs", words=["held"])
def methods_that_were_timed_in_different_runs(top: Path) -> None:
    measure(run(top / "a", TIME), methods=["bptt"])
    measure(run(top / "b", TIME, number=50), methods=["sltt"])


# Seeds ------------------------------------------------------------------------------------------


@temptation("sltt: 1 of 3 seeds finished (2 oom)", words=["n too small"])
def one_survivor_of_three_seeds(top: Path) -> None:
    into = run(top / "a", TIME)
    measure(into, methods=["bptt"])
    measure(into, [0], ["sltt"])
    for seed in (1, 2):
        into.cell("sltt", seed, status="oom", reason="CUDA out of memory")


@temptation("only 2 of 3 seeds finished on both sides", words=["held"])
def a_seed_on_one_side_only(top: Path) -> None:
    into = run(top / "a", MEMORY)
    measure(into, methods=["bptt"])
    measure(into, [0, 1], ["sltt"])


@temptation("sltt and bptt share no seed", words=["not measured"])
def no_seed_in_common(top: Path) -> None:
    into = run(top / "a", TIME)
    measure(into, [0], ["bptt"])
    measure(into, [1], ["sltt"])


@temptation("n too small", words=["n too small"], never=["**held**"])
def half_the_time_at_one_seed(top: Path) -> None:
    measure(run(top / "a", TIME), [0])


@temptation("exact", words=["held"])
def exact_bytes_decide_at_one_seed(top: Path) -> None:
    measure(run(top / "a", MEMORY), [0])


@temptation("inconclusive", words=["inconclusive"])
def three_seeds_of_which_one_is_slower_than_claimed(top: Path) -> None:
    into = run(top / "a", TIME)
    measure(into, methods=["bptt"])
    for seed, seconds in enumerate((1.0, 1.1, 2.4)):
        into.cell("sltt", seed, train_s=[9, seconds, seconds], peak_tensor_bytes=PEAKS["sltt"])


@temptation("inconclusive", "[−12.42, +12.42]", words=["inconclusive"])
def a_lucky_mean_of_three_accuracies(top: Path) -> None:
    into = run(top / "a", ACCURACY)
    measure(into, methods=["bptt"])
    for seed, last in enumerate((0.95, 0.90, 0.85)):
        measure(into, [seed], ["sltt"], last={"sltt": last})


@temptation("[−0.10, +0.10]", words=["held"])
def equal_accuracies_are_known_to_one_test_sample_and_no_better(top: Path) -> None:
    measure(run(top / "a", ACCURACY))


@temptation("oom (seeds 0, 1, 2)", "bptt ran out of memory where sltt peaked", words=["not measured"])
def a_baseline_without_room_gives_no_ratio(top: Path) -> None:
    into = run(top / "a", MEMORY, device="cuda:0", device_name="Example GPU")
    for seed in range(3):
        into.cell("bptt", seed, status="oom", reason="CUDA out of memory")
        into.cell("sltt", seed, peak_allocated_bytes=25 * MIB)


# Thresholds and rounding ------------------------------------------------------------------------


@temptation("0.3004×", words=["not held"], never=["0.30× (live"])
def a_ratio_just_above_the_threshold(top: Path) -> None:
    into = run(top / "a", MEMORY)
    measure(into, methods=["bptt"])
    measure(into, methods=["sltt"], peak_tensor_bytes=int(30.04 * MIB))


@temptation("0.2996×", words=["held"])
def a_ratio_just_below_the_threshold(top: Path) -> None:
    into = run(top / "a", MEMORY)
    measure(into, methods=["bptt"])
    measure(into, methods=["sltt"], peak_tensor_bytes=int(29.96 * MIB))


@temptation("0.30×", words=["held"])
def a_ratio_at_the_threshold(top: Path) -> None:
    into = run(top / "a", MEMORY)
    measure(into, methods=["bptt"])
    measure(into, methods=["sltt"], peak_tensor_bytes=30 * MIB)


@temptation("thresholds 0.3, 0.9", "the recipe's claim changed between runs")
def a_claim_that_was_softened_between_runs(top: Path) -> None:
    measure(run(top / "a", MEMORY))
    measure(run(top / "b", {**MEMORY, "threshold": 0.9}, number=50))


@temptation("inconclusive", words=["inconclusive"])
def a_mean_at_the_claimed_accuracy(top: Path) -> None:
    claim = {**ACCURACY, "relation": "at_least", "baseline": None, "threshold": 0.9}
    into = run(top / "a", claim)
    for seed, last in enumerate((0.89, 0.91, 0.92)):
        measure(into, [seed], ["sltt"], last={"sltt": last})


# Figures that stand in for others ---------------------------------------------------------------


@temptation("live tensors is missing in sltt", words=["not measured"], never=["resident set (CPU)"])
def live_tensors_that_are_missing_are_not_replaced_by_the_resident_set(top: Path) -> None:
    into = run(top / "a", MEMORY)
    measure(into, methods=["bptt"])
    for seed in range(3):
        into.cell("sltt", seed, peak_tensor_bytes=None)


@temptation(
    "no figure for peak memory that all cells have", words=["not measured"], never=["÷ bptt ≤ 0.3 | 0.5"]
)
def a_resident_set_cannot_judge_a_memory_claim(top: Path) -> None:
    into = run(top / "a", MEMORY)
    for method, mib in (("bptt", 1000), ("sltt", 500)):
        for seed in range(3):
            into.cell(method, seed, peak_rss_bytes=mib * MIB)


@temptation("allocated (CUDA) is missing in sltt; reserved (CUDA) is compared instead")
def reserved_memory_in_place_of_allocated_is_said(top: Path) -> None:
    into = run(top / "a", MEMORY, device="cuda:0", device_name="Example GPU")
    for seed in range(3):
        into.cell("bptt", seed, peak_allocated_bytes=80 * MIB, peak_reserved_bytes=90 * MIB)
        into.cell("sltt", seed, peak_reserved_bytes=20 * MIB)


@temptation("not comparable", words=["not measured"])
def nvml_of_a_process_is_not_nvml_of_a_device(top: Path) -> None:
    into = run(top / "a", MEMORY, device="cuda:0", device_name="Example GPU")
    for seed in range(3):
        into.cell("bptt", seed, peak_nvml_bytes=80 * MIB, peak_nvml_scope="device")
        into.cell("sltt", seed, peak_nvml_bytes=20 * MIB, peak_nvml_scope="process")


@temptation("only cold epochs", words=["not measured"])
def cold_epochs_cannot_judge_warm_time(top: Path) -> None:
    into = run(top / "a", TIME)
    for seed in range(3):
        into.cell("bptt", seed, train_s=[4.0], top1=[0.9])
        into.cell("sltt", seed, train_s=[1.0], top1=[0.9])


@temptation("the figure of sltt is from warm epochs, that of bptt from cold ones", words=["not measured"])
def a_warm_epoch_against_a_cold_one(top: Path) -> None:
    into = run(top / "a", TIME)
    for seed in range(3):
        into.cell("bptt", seed, train_s=[4.0], top1=[0.9])
        into.cell("sltt", seed, train_s=[4.0, 1.0], top1=[0.8, 0.9])


# Accuracy that is none --------------------------------------------------------------------------


@temptation("sltt is at chance (at most 15.00 %)", "**!** sltt is at chance", never=["on the front"])
def a_method_that_learned_nothing_is_on_no_front(top: Path) -> None:
    claim = {
        **ACCURACY,
        "relation": "exceeds_by_points",
        "method": "bptt",
        "baseline": "sltt",
        "threshold": 5.0,
    }
    measure(run(top / "a", claim), last={"sltt": 0.11})


@temptation("**!** bptt is at chance", words=["inconclusive"])
def as_good_as_a_baseline_that_learned_nothing(top: Path) -> None:
    measure(run(top / "a", ACCURACY), last={"bptt": 0.11, "sltt": 0.10})


@temptation("**!** sltt: the training loss never moved (seeds 0, 1, 2)", words=["inconclusive", "held"])
def a_method_that_was_not_trained_at_all(top: Path) -> None:
    never = {"doubts": "test accuracy is at chance (10.0%); the training loss never moved"}
    lost = {**ACCURACY, "relation": "at_most", "baseline": None, "threshold": 0.3}
    into = run(top / "a", lost, MEMORY)
    measure(into, methods=["bptt"])
    measure(into, methods=["sltt"], last={"sltt": 0.10}, cell=never)


@temptation("**!** sltt is at chance", words=["held"])
def better_than_a_method_that_learned_nothing(top: Path) -> None:
    lost = {**ACCURACY, "relation": "exceeds_by_points", "method": "bptt", "baseline": "sltt"}
    measure(run(top / "a", lost), last={"sltt": 0.10})


@temptation("dominated", never=["sltt is at chance"])
def accuracies_within_one_test_sample_are_ties(top: Path) -> None:
    """bptt is better by one test sample, and dearer in all else."""
    measure(run(top / "a"), last={"bptt": 0.901, "sltt": 0.9})


@temptation("only random data was run, which gives no accuracy", words=["not measured"], never=["90.00"])
def random_data_have_no_accuracy(top: Path) -> None:
    measure(run(top / "a", ACCURACY), cell={"synthetic": True})


@temptation("only smoke runs", words=["not measured"])
def a_smoke_run_judges_nothing(top: Path) -> None:
    measure(run(top / "a", MEMORY), cell={"smoke": True})


@temptation("train.lr = 0.9", words=["not measured"])
def a_run_with_another_learning_rate_judges_nothing(top: Path) -> None:
    measure(run(top / "a", ACCURACY), overrides={"train.lr": 0.9})


# The machine ------------------------------------------------------------------------------------


def gpu_facts(cell: Mapping[str, Any], name: str = "Example GPU", **gpu: Any) -> dict[str, Any]:
    """provenance.json of a run whose cells (id → what the profiler saw of the GPU) ran on one GPU."""
    known = {"name": name, "uuid": "GPU-1", "memory_total_bytes": 80 * 2**30, "driver": "570.1", **gpu}
    return {
        "gpus": [known],
        **told({i: {"profiler": {"gpu": {**known, **s}}} for i, s in cell.items()}),
    }


def _on_gpu(top: Path, state: Mapping[str, Any], *claims: Mapping[str, Any]) -> None:
    into = run(top / "a", *claims, device="cuda:0", device_name="Example GPU")
    ids = []
    for seed in range(3):
        for method in ("bptt", "sltt"):
            seconds = SECONDS[method] * (1 + 0.01 * seed)
            ids.append(
                into.cell(method, seed, train_s=[9, seconds, seconds], peak_allocated_bytes=PEAKS[method])
            )
    into.tell(gpu_facts(dict.fromkeys(ids, state)))


@temptation("clocks held down (thermal slowdown) in 40% of the readings", words=["held"])
def a_gpu_that_was_too_hot(top: Path) -> None:
    _on_gpu(top, {"clock_limits_while_training": {"hw_thermal_slowdown": 0.4, "gpu_idle": 0.9}}, TIME)


@temptation("2 other processes on the GPU", words=["held"])
def a_gpu_that_others_used_as_well(top: Path) -> None:
    _on_gpu(top, {"at_start": {"other_compute_processes": 2}}, TIME)


@temptation("sltt: the GPU was busy 36% of the time", never=["bptt: the GPU was busy"], words=["held"])
def a_gpu_that_waited_for_its_work(top: Path) -> None:
    into = run(top / "a", TIME, device="cuda:0", device_name="Example GPU")
    measure(into, methods=["bptt"], gpu_util_mean=[0.1, 0.5, 0.6])
    measure(into, methods=["sltt"], gpu_util_mean=[0.9, 0.34, 0.38])


def _on_native(top: Path, graphs: Mapping[str, str]) -> None:
    """bptt and sltt, of whose CUDA graphs (method → words) provenance.json tells."""
    into = run(top / "a", TIME, device="cuda:0", device_name="Example GPU")
    ids = {
        into.cell(method, seed, train_s=[9, seconds, seconds], peak_allocated_bytes=PEAKS[method]): method
        for method in ("bptt", "sltt")
        for seed in range(3)
        for seconds in [SECONDS[method] * (1 + 0.01 * seed)]
    }
    backends = {i: {"CUDA graphs": graphs[method]} if method in graphs else {} for i, method in ids.items()}
    into.tell(told({i: {"backend": backend} for i, backend in backends.items()}))


REPLAYED = "9 iterations replayed, 3 run as usual (warm-up, and batches smaller than the largest)"
CALL_BY_CALL = "its work reached the GPU call by call"


@temptation(
    f"sltt: {CALL_BY_CALL}, that of bptt as replayed CUDA graphs",
    never=["bptt: its work"],
    words=["inconclusive"],
)
def iterations_of_which_only_the_baselines_were_replayed(top: Path) -> None:
    _on_native(top, {"bptt": REPLAYED, "sltt": "none: the method SLTT cannot be replayed"})


@temptation(f"bptt: {CALL_BY_CALL}", words=["inconclusive"])
def a_baseline_whose_iterations_were_not_replayed(top: Path) -> None:
    _on_native(top, {"bptt": "0 iterations replayed, 3 run as usual", "sltt": REPLAYED})


@temptation(never=[CALL_BY_CALL], words=["held"])
def iterations_that_were_all_replayed(top: Path) -> None:
    _on_native(top, {"bptt": REPLAYED, "sltt": REPLAYED})


@temptation(never=[CALL_BY_CALL], words=["held"])
def iterations_of_which_none_was_replayed(top: Path) -> None:
    _on_native(top, {"sltt": "none: the method SLTT cannot be replayed"})


@temptation("sltt spent up to 51% of an epoch waiting for data", words=["inconclusive"])
def an_epoch_half_of_which_was_waiting(top: Path) -> None:
    into = run(top / "a", TIME)
    measure(into, methods=["bptt"])
    measure(into, methods=["sltt"], data_wait_s=[1.0, 0.95, 0.97])


@temptation("sltt spent up to 50% of an epoch waiting for data", words=["inconclusive"])
def one_cell_of_three_that_waited(top: Path) -> None:
    into = run(top / "a", TIME)
    measure(into, methods=["bptt"], data_wait_s=0.0)
    measure(into, seeds=(0, 2), methods=["sltt"], data_wait_s=0.0)
    measure(into, seeds=(1,), methods=["sltt"], data_wait_s=[1.0, 0.95, 0.98])


@temptation("spent up to 6% of an epoch waiting for data", words=["inconclusive"])
def an_epoch_a_little_of_which_was_waiting(top: Path) -> None:
    into = run(top / "a", TIME)
    measure(into, methods=["bptt"], data_wait_s=[0.1, 0.01, 0.01])
    measure(into, methods=["sltt"], data_wait_s=[0.1, 0.12, 0.12])


@temptation(never=["of an epoch waiting for data"], words=["held"])
def an_epoch_that_hardly_waited(top: Path) -> None:
    measure(run(top / "a", TIME), data_wait_s=[0.1, 0.09, 0.09])


@temptation("sltt: other programs used 49% of the processors while it trained", words=["inconclusive"])
def a_cell_beside_which_another_program_worked(top: Path) -> None:
    into = run(top / "a", TIME)
    measure(into, methods=["bptt"], cpu_util_mean=1.0, cpu_others_mean=[0.6, 0.01, 0.0])
    measure(into, methods=["sltt"], cpu_util_mean=0.98, cpu_others_mean=[0.0, 0.48, 0.5])


@temptation("sltt: its process stood still in 3 epochs, of which there is no time", words=["held"])
def cells_that_were_stopped_in_an_epoch_which_has_no_time(top: Path) -> None:
    into = run(top / "a", TIME)
    measure(into, methods=["bptt"])
    for seed in range(3):
        seconds: list[Any] = [9.0, "", 1.9 * (1 + 0.01 * seed)]
        into.cell("sltt", seed, train_s=seconds, peak_tensor_bytes=PEAKS["sltt"])


@temptation(never=["other programs"], words=["held"])
def programs_for_which_there_was_room(top: Path) -> None:
    measure(run(top / "a", TIME), cpu_util_mean=0.6, cpu_others_mean=0.4)


@temptation(never=["other programs"], words=["held"])
def a_program_that_worked_beside_one_epoch_of_many(top: Path) -> None:
    into = run(top / "a", TIME)
    for seed in range(3):
        for method, seconds in SECONDS.items():
            into.cell(
                method, seed, train_s=[9.0, *[seconds] * 9], top1=[0.9] * 10, peak_tensor_bytes=PEAKS[method],
                cpu_util_mean=1.0, cpu_others_mean=[0.6, 0.6, *[0.01] * 8],
            )  # fmt: skip


@temptation(
    "sltt: a cell was resumed under other conditions than it began with (torch or CUDA version: torch 2.1.0 and torch 2.6.0)",
    words=["inconclusive"],
)
def a_cell_that_was_resumed_with_another_torch(top: Path) -> None:
    into = run(top / "a", TIME)
    measure(into, methods=["bptt"])
    for seed in range(3):
        cell = into.cell("sltt", seed, train_s=[9, 1.9, 1.9], attempt=2, peak_tensor_bytes=PEAKS["sltt"])
        rows = (into.path / EPOCHS_FILE).read_text()
        (into.path / EPOCHS_FILE).write_text(rows.replace(f"{cell},2,", f"{cell},1,", 2))
        attempts = {"1": {"packages": {"torch": "2.1.0"}}, "2": {"packages": {"torch": "2.6.0"}}}
        told_before = json.loads((into.path / "provenance.json").read_text()).get("cells", {})
        into.tell({"cells": {**told_before, cell: {"attempts": attempts}}})


@temptation("sltt: 2 of 5 seeds finished (3 error)", words=["inconclusive"])
def seeds_that_diverged_are_no_sample_of_what_a_method_reaches(top: Path) -> None:
    into = run(top / "a", {**ACCURACY, "threshold": 1.0})
    measure(into, range(5), ["bptt"])
    measure(into, [0, 1], ["sltt"], last={"sltt": 0.95})
    for seed in (2, 3, 4):
        into.cell(
            "sltt",
            seed,
            status="error",
            reason="the training loss became infinite in epoch 2; lower train.lr",
        )


@temptation("native: other programs used 40% of the processors while it trained")
def a_backend_that_ran_beside_another_program(top: Path) -> None:
    into = run(top / "a", TIME)
    measure(into, methods=["bptt"])
    measure(into, methods=["bptt"], backend="native", cpu_util_mean=1.0, cpu_others_mean=0.4)


@temptation("| spikingjelly 0.0.0.0.14 |")
def a_backend_with_a_library_of_its_own_stands_beside_the_others(top: Path) -> None:
    facts = {"packages": {"torch": "2.6.0", "spikingjelly": "0.0.0.0.14"}}
    into = run(top / "a", TIME, facts=facts)
    measure(into, methods=["bptt"])
    measure(into, methods=["bptt"], backend="spikingjelly")


@temptation(never=["unsound"], words=["held"])
def an_epoch_that_validation_data_chose(top: Path) -> None:
    """It is not the best on test data, and need not be."""
    into = run(top / "a", ACCURACY)
    for method in ("bptt", "sltt"):
        for seed in range(3):
            into.cell(
                method, seed, train_s=[9, 2, 2], top1=[0.5, 0.92, 0.9], validation_top1=[0.5, 0.8, 0.9],
                peak_tensor_bytes=PEAKS[method], cell={"validation": "held back", "best_epoch": 3, "best_test_top1": 0.9},
            )  # fmt: skip


@temptation(never=["clocks held down", "other process"], words=["held"])
def an_idle_gpu_is_no_breach(top: Path) -> None:
    _on_gpu(
        top,
        {"clock_limits_while_training": {"gpu_idle": 0.9}, "at_start": {"other_compute_processes": 0}},
        TIME,
    )


def _apart(
    top: Path,
    one: Mapping[str, Any],
    other: Mapping[str, Any],
    claim: Mapping[str, Any] = MEMORY,
    **cells: Any,
) -> None:
    """bptt in one run and sltt in another, which differ in what is told."""
    measure(run(top / "a", claim, **one), methods=["bptt"])
    measure(run(top / "b", claim, number=50, **other), methods=["sltt"], **cells)


def differs(words: str, one: Mapping[str, Any], other: Mapping[str, Any], name: str) -> None:
    """A temptation to set bptt's run beside sltt's, though they differ in one condition."""
    build = partial(_apart, one=one, other=other)
    TEMPTATIONS.append(
        Temptation(name, build, (f"sltt ran, but not under these conditions: it differs in {words}",), ("0.25×",), ("not measured",))
    )  # fmt: skip


def flags(**values: Any) -> dict[str, Any]:
    return {"facts": told({"x": {"torch_flags": values}})}


differs("hardware", {}, {"device_name": "Other CPU"}, "another_cpu")
differs("precision", {"precision": "bf16"}, {}, "another_precision")
differs("torch or CUDA version", {}, {"torch": "9.9"}, "another_torch")
differs(
    "torch or CUDA version",
    {"facts": {"torch": {"cuda": "12.4"}}}, {"facts": {"torch": {"cuda": "13.0"}}}, "another_cuda",
)  # fmt: skip
differs("revision of sltt-bench", {"git_revision": "aaa"}, {"git_revision": "bbb"}, "another_revision")
differs(
    "revision of sltt-bench",
    {"git_revision": "aaa", "facts": {"git_dirty": True}}, {"git_revision": "aaa", "facts": {"git_dirty": True}},
    "two_trees_with_local_changes",
)  # fmt: skip
differs(
    "revision of sltt-bench",
    {"git_revision": "aaa", "facts": {"source_sha256": "1" * 64}},
    {"git_revision": "aaa", "facts": {"source_sha256": "2" * 64}},
    "other_code_in_a_checkout_of_the_same_commit",
)  # fmt: skip
differs(
    "version of the backend's library or of a plug-in",
    {"facts": {"plugins": {"models tiny": {"package": "tiny", "version": "1.0", "source_sha256": "1" * 64}}}},
    {"facts": {"plugins": {"models tiny": {"package": "tiny", "version": "1.0", "source_sha256": "2" * 64}}}},
    "a_network_from_a_plugin_that_changed",
)  # fmt: skip
differs(
    "CPU",
    {"facts": {"cpu": "Example", "torch": {"cpu_capability": "AVX2"}}},
    {"facts": {"cpu": "Example", "torch": {"cpu_capability": "AVX512"}}}, "another_instruction_set",
)  # fmt: skip
differs("CPU threads", flags(threads=2), flags(threads=8), "other_threads")
differs(
    "kernel flags (TF32, cuDNN, determinism)",
    flags(matmul_allow_tf32=False), flags(matmul_allow_tf32=True), "tf32_on_one_side",
)  # fmt: skip
differs(
    "kernel flags (TF32, cuDNN, determinism)",
    flags(cudnn_benchmark=False), flags(cudnn_benchmark=True), "cudnn_benchmark_on_one_side",
)  # fmt: skip


@temptation("0.25×", words=["held"])
def the_same_code_at_two_commits_and_with_changes_elsewhere(top: Path) -> None:
    """The tests, documents or recipes changed, and were not committed."""
    for method, revision, dirty in (("bptt", "aaa", False), ("sltt", "bbb", True)):
        facts = {"source_sha256": "1" * 64, "git_dirty": dirty}
        measure(run(top / method, MEMORY, git_revision=revision, facts=facts), methods=[method])


def _with_plugin(top: Path, *sources: str) -> None:
    """BPTT and SLTT, and a seed of SLTT more for each source of the plug-in that it is from."""
    for number, source in enumerate(sources):
        into = run(top / str(number), MEMORY, number=50 * number)
        ids = [into.cell(method, number, peak_tensor_bytes=PEAKS[method]) for method in ("bptt", "sltt")]
        made_of = {"package": "theirs", "version": "1.0", "source_sha256": source}
        into.tell(told({ids[0]: {}, ids[1]: {"plugins": {"methods slt+": made_of}}}))


@temptation(
    "its plug-in changed between its cells (theirs 1.0 source 111111111111 and theirs 1.0 source 222222222222)",
    "report the runs of one of them", words=["not comparable"], never=["0.25×"],
)  # fmt: skip
def a_method_whose_author_changed_it_between_two_runs(top: Path) -> None:
    _with_plugin(top, "1" * 64, "2" * 64)


@temptation("0.25×", words=["held"], never=["plug-in changed"])
def a_method_of_a_plugin_that_did_not_change(top: Path) -> None:
    _with_plugin(top, "1" * 64, "1" * 64)


@temptation(
    "sltt: a cell was resumed with other code of sltt-bench than it began with (source 111111111111 and 222222222222)"
)
def a_cell_resumed_after_an_upgrade(top: Path) -> None:
    _resumed(
        top, MEMORY, [{"source_sha256": str(number) * 64} for number in (1, 2)], {"source_sha256": "2" * 64}
    )


def _resumed(
    top: Path,
    claim: Mapping[str, Any],
    attempts: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any] = {},
    others: Sequence[str] = ("bptt",),
) -> None:
    """Others, and SLTT whose first epoch is of another attempt than the rest; of each attempt what it was measured with."""
    into = run(top, claim, facts=dict(facts))
    measure(into, seeds=[0], methods=others)
    into.cell("sltt", status="killed", reason="cut off")
    cell = into.cell("sltt", attempt=2, peak_tensor_bytes=25 * MIB)
    *before, first, second, third = (top / EPOCHS_FILE).read_text().splitlines()
    (top / EPOCHS_FILE).write_text(
        "\n".join([*before, first.replace(f"{cell},2,", f"{cell},1,"), second, third, ""])
    )
    numbered = {str(number): dict(known) for number, known in enumerate(attempts, start=1)}
    into.tell({"cells": {cell: {"attempts": numbered}}})


@temptation(
    "sltt: a cell was resumed with other samples than it began with (data 111111111111 and 222222222222)"
)
def a_cell_resumed_on_a_data_set_that_had_changed(top: Path) -> None:
    _resumed(top, ACCURACY, [{"data_sha256": str(number) * 64} for number in (1, 2)])


@temptation(
    "sltt: a cell was resumed with other samples than it began with (data 111111111111 and 222222222222)",
    words=["not measured"],
)
def a_cell_without_a_baseline_resumed_on_a_data_set_that_had_changed(top: Path) -> None:
    attempts = [{"data_sha256": str(number) * 64} for number in (1, 2)]
    _resumed(top, ACCURACY, attempts, others=["sltt-k2"])


@temptation(
    "sltt: a cell was resumed with other samples than it began with (data 111111111111 and 222222222222)"
)
def a_cell_resumed_on_other_test_images_by_two_processes(top: Path) -> None:
    first, second = ({"evaluated_samples_sha256": str(number) * 64} for number in (1, 2))
    _resumed(top, ACCURACY, [first, second | {"ranks": [{}, {}]}])


@temptation(
    "sltt: the processes that shared its batches had different labels and training samples",
    words=["not comparable"],
)
def a_cell_of_two_processes_with_copies_of_the_data_that_differ(top: Path) -> None:
    _of_two_processes(top, {"training_samples_sha256": "2" * 64, "labels_sha256": "3" * 64})


@temptation(
    "sltt: the processes that shared its batches had different weights to begin with",
    words=["not comparable"],
)
def a_cell_of_two_processes_that_drew_other_weights(top: Path) -> None:
    _of_two_processes(top, {"weights_sha256": "2" * 64})


@temptation(never=["the processes that shared its batches"])
def a_cell_of_two_processes_that_began_alike(top: Path) -> None:
    _of_two_processes(top, {})


def _of_two_processes(top: Path, second: Mapping[str, str]) -> None:
    """`second`: in what the second process of a cell began otherwise than the first."""
    into = run(top, ACCURACY)
    measure(into, seeds=[0], methods=["bptt"])
    cell = into.cell("sltt", peak_tensor_bytes=25 * MIB)
    names = ("training_samples_sha256", "evaluated_samples_sha256", "labels_sha256", "weights_sha256")
    first = dict.fromkeys(names, "1" * 64)
    began = {"ranks_began_with": [first, first | second]}
    into.tell({"cells": {cell: {"attempts": {"1": began}}}})


@temptation(never=["other samples"])
def a_cell_resumed_since_test_samples_have_digests(top: Path) -> None:
    first = {"data_sha256": "1" * 64}
    _resumed(top, ACCURACY, [first, first | {"evaluated_samples_sha256": "2" * 64}])


@temptation(never=["other samples"])
def a_cell_resumed_by_two_processes_of_which_each_sees_a_part_of_a_batch(top: Path) -> None:
    _resumed(top, ACCURACY, [{"data_sha256": "1" * 64}, {"data_sha256": "2" * 64, "ranks": [{}, {}]}])


def _gone_on(top: Path, first: Mapping[str, Any], second: Mapping[str, Any], *, epochs_of_first: int) -> None:
    """SLTT's cells on a GPU, whose second attempt went on after so many epochs; what each was measured with."""
    into = run(top, TIME, device="cuda:0", device_name="Example GPU")
    measure(into, methods=["bptt"])
    cells = {}
    for seed in range(3):
        cell = into.cell("sltt", seed, train_s=[9, 1.9, 1.9], attempt=2, peak_allocated_bytes=PEAKS["sltt"])
        rows = (top / EPOCHS_FILE).read_text()
        (top / EPOCHS_FILE).write_text(rows.replace(f"{cell},2,", f"{cell},1,", epochs_of_first))
        cells[cell] = {"attempts": {"1": dict(first), "2": dict(second)}}
    into.tell({"cells": cells})


CROWDED = {"profiler": {"gpu": {"at_start": {"other_compute_processes": 2}}}}
PLUGINS = [{"plugins": {"methods sltt": {"package": "mine", "source_sha256": digit * 64}}} for digit in "12"]


@temptation("sltt: 2 other processes on the GPU", words=["held"])
def a_gpu_that_others_used_before_the_cell_was_gone_on(top: Path) -> None:
    _gone_on(top, CROWDED, {}, epochs_of_first=2)


@temptation("sltt: its plug-in changed between its cells", words=["not comparable"])
def a_plug_in_that_changed_while_a_cell_was_cut_off(top: Path) -> None:
    _gone_on(top, *PLUGINS, epochs_of_first=2)


@temptation(never=["plug-in changed", "other processes"], words=["held"])
def a_plug_in_that_was_mended_before_it_trained(top: Path) -> None:
    first, second = PLUGINS
    _gone_on(top, {**first, **CROWDED}, second, epochs_of_first=0)


def _begun(top: Path, claim: Mapping[str, Any], name: str, of_sltt: str) -> None:
    """Three seeds; in the last SLTT began with something else than BPTT."""
    into = run(top, claim)
    facts = {}
    for seed in range(3):
        for method, digest in (("bptt", "1" * 64), ("sltt", of_sltt if seed == 2 else "1" * 64)):
            facts[into.cell(method, seed, peak_tensor_bytes=PEAKS[method])] = {name: digest}
    into.tell(told(facts))


@temptation(
    "seed 2: training began with different weights: 111111111111 (bptt) and 222222222222 (sltt)", words=["not comparable"],
)  # fmt: skip
def a_seed_whose_methods_began_with_different_weights(top: Path) -> None:
    _begun(top, ACCURACY, "weights_sha256", "2" * 64)


@temptation(
    "seed 2: training saw different samples, or in another order: 111111111111 (bptt) and 222222222222 (sltt)",
    words=["not comparable"],
)  # fmt: skip
def a_data_set_that_changed_between_two_methods(top: Path) -> None:
    _begun(top, ACCURACY, "data_sha256", "2" * 64)


@temptation(
    "seed 2: training saw different samples, or in another order: 111111111111 (bptt) and 222222222222 (sltt)",
    words=["not comparable"],
)  # fmt: skip
def training_samples_that_changed_beyond_the_first_batch(top: Path) -> None:
    _begun(top, ACCURACY, "training_samples_sha256", "2" * 64)


@temptation(
    "seed 2: evaluation saw different samples: 111111111111 (bptt) and 222222222222 (sltt)",
    words=["not comparable"],
)  # fmt: skip
def images_to_test_on_that_changed_between_two_methods(top: Path) -> None:
    _begun(top, ACCURACY, "evaluated_samples_sha256", "2" * 64)


@temptation(
    "seed 0: training began with different weights: 111111111111 (sltt) and 222222222222 (sltt)",
    "contradictory",
    words=["not comparable"],
)
def a_repetition_that_began_with_other_weights(top: Path) -> None:
    for number in range(2):
        into = run(top / str(number), ACCURACY, number=50 * number)
        into.cell("bptt", peak_tensor_bytes=PEAKS["bptt"])
        into.tell(
            told(
                {into.cell("sltt", peak_tensor_bytes=PEAKS["sltt"]): {"weights_sha256": f"{number + 1}" * 64}}
            )
        )


@temptation(
    "sltt-k2: not comparable with bptt: seed 2: training began", words=["held"], never=["contradictory"]
)
def two_methods_began_alike_and_a_third_did_not(top: Path) -> None:
    into = run(top, ACCURACY)
    facts = {}
    for seed in range(3):
        for method, peak in PEAKS.items():
            digest = "2" if (method, seed) == ("sltt-k2", 2) else "1"
            facts[into.cell(method, seed, peak_tensor_bytes=peak)] = {"weights_sha256": digest * 64}
    into.tell(told(facts))


@temptation("0.25×", words=["held"])
def the_memory_of_a_network_is_that_of_any_weights(top: Path) -> None:
    _begun(top, MEMORY, "weights_sha256", "2" * 64)


@temptation(never=["training began with"], words=["held"])
def all_methods_of_a_seed_began_alike(top: Path) -> None:
    _begun(top, ACCURACY, "weights_sha256", "1" * 64)


def _two_gpus(top: Path, **second: Any) -> None:
    for number, (method, gpu) in enumerate((("bptt", {}), ("sltt", second))):
        into = run(top / method, MEMORY, number=50 * number, device="cuda:0", device_name="Example GPU")
        ids = [into.cell(method, seed, peak_allocated_bytes=PEAKS[method]) for seed in range(3)]
        into.tell(gpu_facts({cell: {} for cell in ids}, **gpu))


@temptation("it differs in memory of the GPU", words=["not measured"], never=["0.25×"])
def a_gpu_of_the_same_name_with_half_of_the_memory(top: Path) -> None:
    _two_gpus(top, memory_total_bytes=40 * 2**30)


@temptation("it differs in GPU driver", words=["not measured"], never=["0.25×"])
def another_major_version_of_the_driver(top: Path) -> None:
    _two_gpus(top, driver="580.2")


@temptation("0.25×", words=["held"])
def another_minor_version_of_the_driver_is_the_same(top: Path) -> None:
    _two_gpus(top, driver="570.9")


@temptation("it differs in hardware", words=["not measured"], never=["0.25×"])
def a_slice_of_a_gpu_is_another_gpu(top: Path) -> None:
    measure(run(top / "a", MEMORY, device="cuda:0", device_name="Example GPU"), methods=["bptt"])
    into = run(top / "b", MEMORY, number=50, device="cuda:0", device_name="Example GPU MIG 3g.40gb")
    measure(into, methods=["sltt"])


@temptation("it differs in version of the backend's library", words=["not measured"], never=["0.25×"])
def another_version_of_the_foreign_library(top: Path) -> None:
    for number, (method, version) in enumerate((("bptt", "0.14"), ("sltt", "2.0"))):
        facts = {"packages": {"torch": "2.6.0", "spikingjelly": version}}
        measure(
            run(top / method, MEMORY, number=50 * number, facts=facts),
            methods=[method],
            backend="spikingjelly",
        )


@temptation("it differs in backend", words=["not measured"], never=["0.25×"])
def methods_on_different_backends(top: Path) -> None:
    into = run(top / "a", MEMORY)
    measure(into, methods=["bptt"])
    measure(into, methods=["sltt"], backend="native")


@temptation("it differs in data.split", words=["not measured"], never=["0.25×"])
def another_split_of_the_data(top: Path) -> None:
    measure(run(top / "a", MEMORY), methods=["bptt"])
    other = varied(recipe(MEMORY), data__split="another")
    measure(HandmadeRun(top / "b", recipe=other, number=50), methods=["sltt"])


@temptation("Over the 3 pairs with sltt, the last-epoch top-1 of bptt is 91.00 %, not the mean in its row.")
def an_accuracy_of_the_baseline_over_other_pairs_than_the_difference_beside_it(top: Path) -> None:
    into = run(top / "a")
    for seed, top1 in enumerate((0.90, 0.91, 0.92)):
        measure(into, [seed], last={"bptt": top1, "sltt": top1})
    measure(into, [0, 1], ["sltt-k2"])


@temptation(
    "| bptt | 4 | 92.50 ± 0.71 |",
    "Means and ratios of sltt, and the means of bptt beside them, are over the 2 pairs alone; bptt has more seeds.",
)
def a_mean_of_the_baseline_over_fewer_seeds_than_stand_beside_it(top: Path) -> None:
    into = run(top / "a")
    for seed, top1 in enumerate((0.70, 0.70, 0.92, 0.93)):
        measure(into, [seed], ["bptt"], last={"bptt": top1})
    measure(into, [2, 3], ["sltt"])


@temptation("it differs in T", words=["not measured"], never=["0.25×"])
def another_number_of_time_steps(top: Path) -> None:
    into = run(top / "a", MEMORY)
    measure(into, methods=["bptt"])
    measure(into, methods=["sltt"], recipe=recipe(MEMORY, timesteps=2), overrides={"timesteps": 2})


@temptation("no run of sltt", never=["it differs in"], words=["not measured"])
def a_method_that_nobody_ran(top: Path) -> None:
    measure(run(top / "a", MEMORY), methods=["bptt"])


# Colours and words ------------------------------------------------------------------------------


def tones(report: Report, heading: str) -> list[str]:
    """The tones of the cells below a heading of the first table, row by row."""
    table = report.key_blocks[-1]
    place = [h.text for h in table.headings].index(heading)  # type: ignore[union-attr]
    return [row[place + 1].tone for row in table.rows]  # type: ignore[union-attr]


@pytest.mark.parametrize(("n", "tone"), [(1, "plain"), (2, "plain"), (4, "plain"), (5, "good")])
def test_a_time_is_coloured_from_five_pairs_on(tmp_path: Path, n: int, tone: str) -> None:
    measure(run(tmp_path / "a"), range(n))
    assert tones(assembled(tmp_path), "warm epoch") == ["muted", tone]


def test_an_exact_figure_is_coloured_at_one_seed(tmp_path: Path) -> None:
    measure(run(tmp_path / "a"), [0])
    assert tones(assembled(tmp_path), "live tensors") == ["muted", "good"]


def test_an_accuracy_that_is_undecided_has_no_colour(tmp_path: Path) -> None:
    """Far apart in six seeds; but one cell went on with other samples than it began with."""
    into = run(tmp_path / "a")
    for seed in range(6):
        measure(into, [seed], last={"bptt": 0.80 + 0.001 * seed, "sltt": 0.90 + 0.002 * seed}, attempt=2)
    assert tones(assembled(tmp_path), "top-1, last epoch") == ["muted", "good"]
    rows = (into.path / EPOCHS_FILE).read_text()
    cell = rows.splitlines()[-1].split(",")[1]
    (into.path / EPOCHS_FILE).write_text(rows.replace(f"{cell},2,", f"{cell},1,", 1))
    attempts = {str(number): {"data_sha256": str(number) * 64} for number in (1, 2)}
    into.tell({"cells": {cell: {"attempts": attempts}}})
    assert tones(assembled(tmp_path), "top-1, last epoch") == ["muted", "plain"]


def test_what_makes_every_figure_doubtful_concerns_every_unit() -> None:
    assert {metric.unit for metric in METRICS.values()} <= {*EVERYTHING}


def test_means_and_the_ratio_beside_them_come_from_the_same_pairs(tmp_path: Path) -> None:
    """bptt has a third, slow seed that sltt lacks: its mean over all would contradict the ratio."""
    into = run(tmp_path / "a")
    measure(into, [0, 1])
    into.cell("bptt", 2, train_s=[9, 40.0, 40.0], top1=[0.5, 0.8, 0.9], peak_tensor_bytes=PEAKS["bptt"])
    table = assembled(tmp_path).key_blocks[-1]
    place = [h.text for h in table.headings].index("warm epoch")  # type: ignore[union-attr]
    bptt, sltt = table.rows  # type: ignore[union-attr]
    assert float(sltt[place].value) / float(bptt[place].value) == pytest.approx(float(sltt[place + 1].value))  # type: ignore[arg-type]
    assert "40" not in bptt[place].text


def alike_headings(report: Report) -> list[tuple[str, ...]]:
    """Those that stand more than once: a page's level-1 headings, and the level-2 ones below each."""
    headings: list[tuple[str, ...]] = []
    top: tuple[str, ...] = ()
    for section in report.sections:
        if section.level == 1:
            top = (section.page or section.title, section.title)
        headings.append(top if section.level == 1 else (*top, section.title))
    return [heading for heading, count in Counter(headings).items() if count > 1]


@pytest.mark.parametrize("folder", ["studies/normalisation", pytest.param("", marks=pytest.mark.long)])
def test_no_two_headings_of_the_committed_results_are_alike(folder: str) -> None:
    context = Context(read_results([RESULTS / folder]), "bptt")
    report, _ = assemble(context, {kind: _load(where) for kind, where in SECTIONS.items()})
    assert alike_headings(report) == []


@pytest.mark.parametrize("case", TEMPTATIONS, ids=[case.name for case in TEMPTATIONS])
def test_a_report_is_not_tempted(tmp_path: Path, case: Temptation) -> None:
    case.build(tmp_path)
    report = assembled(tmp_path)
    assert alike_headings(report) == []
    text = markdown.render(report, {}).replace("\\", "")
    assert not re.search(r"(?<![\w-])(nan|inf)(?![\w-])", text)
    for words in case.says:
        assert words in text
    for words in case.never:
        assert words not in text
    if case.words is not None:
        assert tuple(verdict.word for verdict in report.verdicts) == case.words


def test_there_are_as_many_temptations_as_the_report_has_been_led_into() -> None:
    assert len(TEMPTATIONS) >= 60
