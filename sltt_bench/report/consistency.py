"""Figures of a cell that follow from others, or cannot be beside them: what is changed by hand leaves the others behind.

Each check is a function of a cell and its epochs that yields what contradicts what. They hold for whatever the
tool measured, since it computes these figures from one another or reads them off one clock.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from sltt_bench.report.integrity import mapping_at
from sltt_bench.report.statistics import Floats
from sltt_bench.results.reader import Run
from sltt_bench.results.schema import RANK_FIGURES, RANKS_FILE

ROUNDING = 1e-6
"""Relative difference that two figures of one measurement may have; the files hold every digit."""
CLOCK_S = 1.0
"""The ends of epochs are written in whole seconds."""
UNTIMED_SHARE, UNTIMED_S = 0.25, 2.0
"""Between the ends of two epochs pass their times, and besides, for checkpoints and rows, at most this share of it and so
many seconds each."""
LONG_S = 30.0
"""NVML's power is an average over the last second: over an epoch of so many seconds it tells the energy."""
POWER_FACTOR = 1.5


@dataclass(frozen=True)
class MeasuredCell:
    """A cell that ended well, as the files of its run have it."""

    row: "pd.Series[Any]"
    epochs: pd.DataFrame
    """Its rows of epochs.csv, in their order."""
    run: Run

    @property
    def recipe(self) -> Mapping[str, Any]:
        return self.run.recipe_of(str(self.row["cell_id"]))

    def column(self, name: str) -> Floats:
        """A column of its epochs; NaN where it is empty. No series, which cost ten times as much for a few epochs."""
        return self.epochs[name].to_numpy(dtype=float)

    def own(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Those of another file of the run that are the cell's."""
        own: pd.DataFrame = rows[rows["cell_id"] == self.row["cell_id"]]
        return own


def contradictions(cell: MeasuredCell) -> Iterator[str]:
    """Yields what contradicts what in a cell, a clause each. A missing figure contradicts nothing: it is NaN, of which no
    comparison holds.
    """
    for check in (_accuracies, _losses, _rates, _clock, _memory, _choices, _costs, _gpu, _ranks):
        yield from check(cell)


# Learning ---------------------------------------------------------------------------------------


def _accuracies(cell: MeasuredCell) -> Iterator[str]:
    data, share = mapping_at(cell.recipe, "data"), mapping_at(cell.recipe, "validation").get("share")
    split: dict[str, Any] = {"test": _limited(data, "test_samples"), "train": cell.column("samples")}
    if share is not None:
        split["validation"] = math.floor(share * _limited(data, "train_samples") + 0.5)
    for name, samples in split.items():
        for column in (top for top in (f"{name}_top1", f"{name}_top5") if top in cell.epochs):
            right = cell.column(column) * samples
            if (np.abs(right - right.round()) > ROUNDING * samples).any():
                yield f"{column} is no whole number of samples, divided by how many there are, in some epoch"
    for name in ("test", "validation"):
        if (cell.column(f"{name}_top1") > cell.column(f"{name}_top5")).any():
            yield f"{name}_top1 is above {name}_top5 in some epoch"


def _limited(data: Mapping[str, Any], key: str) -> int:
    return min((int(count) for count in (data.get(key), data.get("limit")) if count), default=0)


def _losses(cell: MeasuredCell) -> Iterator[str]:
    """A sample that is predicted wrong has a cross-entropy of ln 2 at least, the mean over its steps too, since that of the
    mean output is no larger; the other part of L is never negative.
    """
    alpha = mapping_at(cell.recipe, "loss").get("alpha", 0.0)
    for name in ("test", "validation"):
        least = (1 - alpha) * (1 - cell.column(f"{name}_top1")) * math.log(2)
        if (cell.column(f"{name}_loss") < 0.99 * least).any():  # half precision
            yield f"{name}_loss is lower than so many wrong predictions allow in some epoch"


def _rates(cell: MeasuredCell) -> Iterator[str]:
    train = mapping_at(cell.recipe, "train")
    samples = cell.column("samples")
    by_rate = cell.column("samples_per_s") * cell.column("train_s")
    if (np.abs(by_rate - samples) > ROUNDING * samples).any():
        yield "samples_per_s is not samples / train_s in some epoch"
    if {"lr", "schedule", "epochs"} <= train.keys():
        done = (cell.column("epoch") - 1) / train["epochs"]
        share = 1.0 if train["schedule"] == "constant" else (1 + np.cos(np.pi * done)) / 2
        if (np.abs(cell.column("lr") - train["lr"] * share) > ROUNDING * train["lr"]).any():
            yield "lr is not that of the recipe's schedule in some epoch"


# Time -------------------------------------------------------------------------------------------


def _clock(cell: MeasuredCell) -> Iterator[str]:
    trained, evaluated = cell.column("train_s"), cell.column("eval_s")
    if (cell.column("data_wait_s") > trained * (1 + ROUNDING)).any():
        yield "data_wait_s is longer than train_s in some epoch"
    attempts, ends = cell.column("attempt"), np.array([_moment(text) for text in cell.epochs["finished_utc"]])
    last, whole = attempts == cell.row["attempt"], float(cell.row["wall_s"])
    began = _moment(cell.row["started_utc"])
    if (ends[last] < began - CLOCK_S).any():
        yield "finished_utc of some epoch is before started_utc of the cell"
    if (ends[last] > began + whole + 2 * CLOCK_S).any():
        yield "finished_utc of some epoch is after the end of the cell (started_utc and wall_s)"
    for attempt in np.unique(attempts):
        own = attempts == attempt
        if not cell.epochs["cold"].to_numpy()[own][0]:
            yield "the first epoch of a process is not cold"
        yield from _between_ends(ends[own], trained[own] + evaluated[own])


def _moment(text: Any) -> float:
    """Seconds since 1970; NaN for what cannot be read."""
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return math.nan
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _between_ends(ends: Floats, spent: Floats) -> Iterator[str]:
    """What an attempt's epochs took (`spent`), set against the clock of its rows (`ends`), in seconds. An epoch in which
    the process stood still has no time, and the clock went on.
    """
    passed, spent = np.diff(ends), spent[1:]
    known = ~np.isnan(passed) & ~np.isnan(spent)
    passed, spent = passed[known], spent[known]
    if (spent * 0.99 > passed + CLOCK_S).any():
        yield "an epoch took longer (train_s and eval_s) than passed since the end of the one before (finished_utc)"
    allowed = UNTIMED_SHARE * passed.sum() + UNTIMED_S * len(passed) + CLOCK_S
    if passed.sum() - spent.sum() > allowed:
        yield (
            f"{passed.sum():.0f} s passed between the ends of its epochs (finished_utc), of which these took "
            f"{spent.sum():.0f} s (train_s and eval_s)"
        )


# Memory and the GPU -----------------------------------------------------------------------------


def _memory(cell: MeasuredCell) -> Iterator[str]:
    for smaller, larger in pairwise(
        ("allocated_at_reset_bytes", "peak_allocated_bytes", "peak_reserved_bytes")
    ):
        if (cell.column(smaller) > cell.column(larger)).any():
            yield f"{smaller} is above {larger} in some epoch"
    attempts, peaks = cell.column("attempt"), cell.column("peak_tensor_bytes")
    if (peaks < float(cell.row["footprint_bytes"])).any():
        yield "peak_tensor_bytes is below footprint_bytes, what the network's parameters and buffers take"
    counted = set(zip(attempts[~np.isnan(peaks)], peaks[~np.isnan(peaks)], strict=True))
    if len(counted) > len({attempt for attempt, _ in counted}):
        yield "peak_tensor_bytes, which is counted once, is not the same in all epochs"


def _gpu(cell: MeasuredCell) -> Iterator[str]:
    """What was sampled over time, set against the epochs."""
    if not cell.run.has_timeline:
        return
    samples = cell.own(cell.run.timeline)
    key = ["attempt", "epoch"]
    by_epoch = samples[samples["phase"] == "train"].groupby(key)
    sampled = pd.DataFrame(
        {
            "used": by_epoch["nvml_used_bytes"].max(),
            "power": by_epoch["power_w"].mean(),
            "spanned": by_epoch["elapsed_s"].max() - by_epoch["elapsed_s"].min(),
        }
    ).astype(float)
    rows = cell.epochs.join(sampled, on=key)
    time = rows["train_s"].astype(float)
    if (rows["used"] > rows["peak_nvml_bytes"].astype(float)).any():
        yield "nvml_used_bytes in timeline.csv is above peak_nvml_bytes in some epoch"
    if (rows["spanned"] > time * 1.01 + CLOCK_S).any():
        yield "timeline.csv has samples of training over a longer time than train_s in some epoch"
    factor = rows["energy_j"].astype(float) / (rows["power"] * time)
    if (time.ge(LONG_S) & ~factor.between(1 / POWER_FACTOR, POWER_FACTOR) & factor.notna()).any():
        yield "energy_j is far from the mean of power_w in timeline.csv times train_s in some epoch"


def _ranks(cell: MeasuredCell) -> Iterator[str]:
    if not (cell.column("ranks") > 1).any():
        return
    key = ["attempt", "epoch"]
    by_epoch = cell.own(cell.run.rows(RANKS_FILE)).groupby(key)
    for name in (name for name in RANK_FIGURES if name.endswith(("_s", "_bytes", "energy_j"))):
        each = by_epoch[name].sum(min_count=1) if name == "energy_j" else by_epoch[name].max()
        together = cell.epochs.join(each.astype(float).rename("together"), on=key)["together"]
        if ((together - cell.column(name)).abs() > ROUNDING * together.abs()).any():
            how = "sum" if name == "energy_j" else "largest"
            yield f"{name} is not the {how} of the processes' in {RANKS_FILE} in some epoch"


# The cell's own row -----------------------------------------------------------------------------


def _choices(cell: MeasuredCell) -> Iterator[str]:
    row, validated, tested = cell.row, cell.column("validation_top1"), cell.column("test_top1")
    judged = tested if np.isnan(validated).any() else validated
    if pd.notna(row["best_epoch"]) and not np.isnan(judged).any():
        best = int(cell.column("epoch")[judged.argmax()])
        if int(row["best_epoch"]) != best:
            yield f"best_epoch is {int(row['best_epoch'])} in cells.csv, {best} by epochs.csv"
    last = row["last_validation_top1"]
    if abs(float(last) - validated[-1]) > ROUNDING:
        yield f"last_validation_top1 is {float(last):.4f} in cells.csv, {validated[-1]:.4f} by epochs.csv"
    if pd.notna(row["exit_code"]) and int(row["exit_code"]) != 0:
        yield f"its status is ok, but its process ended with exit code {int(row['exit_code'])}"


def _costs(cell: MeasuredCell) -> Iterator[str]:
    row = {name: float(cell.row[name]) for name in _COUNTED}
    energy = 4.6 * row["effective_macs"] + 0.9 * row["effective_acs"]
    if abs(energy - row["estimated_energy_45nm_pj"]) > ROUNDING * energy:
        yield "estimated_energy_45nm_pj does not follow from effective_macs and effective_acs"
    if row["effective_macs"] + row["effective_acs"] > row["dense_synops"] * (1 + ROUNDING):
        yield "effective_macs and effective_acs are more than dense_synops"
    if abs(1 - row["activation_sparsity"] - cell.column("firing_rate")[-1]) > ROUNDING:
        yield "activation_sparsity is not 1 less the firing_rate of the last epoch"


_COUNTED = (
    "dense_synops", "effective_macs", "effective_acs", "estimated_energy_45nm_pj", "activation_sparsity",
)  # fmt: skip
