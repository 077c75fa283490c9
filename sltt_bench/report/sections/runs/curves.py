"""Accuracy over training: each seed's curve, their mean, and when an accuracy is first reached."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sltt_bench.common.format import Scale
from sltt_bench.report import numbers
from sltt_bench.report.groups import Group, MethodResult
from sltt_bench.report.plots.lines import ACCURACY, PERCENT, Axis, Line, Panel
from sltt_bench.report.statistics import Floats

_LEVELS = 25
"""Accuracies whose time is drawn."""


@dataclass(frozen=True)
class Curve:
    """One method's accuracy after each epoch of each cell that has all of them."""

    method: str
    seeds: Floats
    """[cells]: each one's; repetitions of a seed are averaged before anything is over seeds, times geometrically."""
    epoch: Floats
    accuracy: Floats
    """[cells, epochs], as shares."""
    trained_s: Floats
    """[cells, epochs]: training time until the end of the epoch, evaluation not counted; NaN from an epoch on whose time is
    not known."""
    survivors: bool
    """Whether other seeds did not finish."""
    at_chance: bool

    @property
    def peak(self) -> float:
        """The highest accuracy that every cell reaches."""
        return float(self.accuracy.max(axis=1).min())

    @property
    def longest_s(self) -> float:
        """The longest training time that is known."""
        return float(self.trained_s.max(initial=0.0, where=~np.isnan(self.trained_s)))

    def over_seeds(self, of_cells: Floats) -> Floats:
        """Figures of cells as those of seeds: the mean over each one's repetitions, [cells, ...] → [seeds, ...]."""
        return np.array([of_cells[self.seeds == seed].mean(axis=0) for seed in np.unique(self.seeds)])

    def mean_s(self, of_cells: Floats) -> Floats:
        """Mean of times of cells over seeds, the geometric one as in tables: [cells, ...] → [...]."""
        with np.errstate(divide="ignore"):  # a time of 0 s makes the mean 0
            means: Floats = np.exp(self.over_seeds(np.log(of_cells)).mean(axis=0))
        return means

    def time_to(self, accuracy: float) -> float:
        """Geometric mean over seeds of the training time until an epoch first ends with this accuracy; NaN if a cell never
        does, or the time is not known."""
        reached = self.accuracy >= accuracy
        if not reached.any(axis=1).all():
            return float("nan")
        return float(self.mean_s(self.trained_s[np.arange(len(reached)), reached.argmax(axis=1)]))


def curves(group: Group) -> list[Curve]:
    """The curves of all finished methods with accuracy for at least two epochs that can be trusted; random data has none."""
    if group.key.synthetic:
        return []
    return [curve for result in group.finished if (curve := _curve(group, result)) is not None]


def _curve(group: Group, result: MethodResult) -> Curve | None:
    rows = result.epochs
    if rows.empty or rows["epoch"].nunique() < 2 or group.blocking("last_test_top1", result.method):
        return None
    epochs = sorted({float(epoch) for epoch in rows["epoch"]})
    columns = (rows[name].tolist() for name in ("run", "cell_id", "seed", "epoch", "test_top1", "train_s"))
    cells: dict[tuple[str, str, float], dict[float, tuple[float, float]]] = {}
    for run, cell_id, seed, epoch, top1, seconds in zip(*columns, strict=True):
        of_cell = cells.setdefault((str(run), str(cell_id), float(seed)), {})
        of_cell[float(epoch)] = float(top1), float(seconds)
    order = sorted(cells)
    every = np.array([[cells[cell].get(epoch, (np.nan, np.nan)) for epoch in epochs] for cell in order])
    is_whole = ~np.isnan(every[:, :, 0]).any(axis=1)  # without the time of some epoch it has a curve by epoch
    whole = every[is_whole]
    if not len(whole):
        return None
    return Curve(
        method=result.method,
        seeds=np.array([seed for *_, seed in order])[is_whole],
        epoch=np.array(epochs),
        accuracy=whole[:, :, 0],
        trained_s=whole[:, :, 1].cumsum(axis=1),
        survivors=bool(result.lost_seeds),
        at_chance=group.at_chance(result.method),
    )


def common_accuracy(shown: Sequence[Curve], floor: float | None) -> float | None:
    """The highest accuracy that every cell of every method above chance reaches; None at or below the floor."""
    peaks = [curve.peak for curve in shown if not curve.at_chance]
    lowest = min(peaks, default=0.0)
    return lowest if lowest > (floor or 0.0) else None


def timed_accuracies(shown: Sequence[Curve], floor: float | None) -> Floats:
    """Rising accuracies to which times are drawn: from the lowest above chance to the highest that all cells of a method
    reach; none where that is no range."""
    above = [curve for curve in shown if not curve.at_chance]
    low = max(floor or 0.0, min((float(curve.accuracy.min()) for curve in above), default=1.0))
    high = max((curve.peak for curve in above), default=0.0)
    return np.linspace(low, high, _LEVELS if low < high else 0)


def curve_panels(
    shown: Sequence[Curve], floor: float | None, target: float | None, scale: Scale
) -> list[Panel]:
    """Accuracy by epoch and by training time, and the time that each accuracy takes. `target`: `common_accuracy`."""
    levels: tuple[tuple[float, str], ...] = () if target is None else ((100 * target, ""),)
    if floor is not None and floor >= min(float(curve.accuracy.min()) for curve in shown):
        levels = (*levels, (100 * floor, "chance"))
    time = Axis(f"training time [{scale.unit}]", from_zero=True)
    by_time = tuple(_mean(curve, curve.mean_s(curve.trained_s) / scale.factor) for curve in shown)
    panels = [
        epoch_panel(shown, "Accuracy by epoch", levels),
        Panel("Accuracy by training time", time, _of_seeds(ACCURACY, shown), by_time, levels),
    ]
    if len(wanted := timed_accuracies(shown, floor)):
        above = [curve for curve in shown if not curve.at_chance]
        taken = {curve.method: [curve.time_to(level) / scale.factor for level in wanted] for curve in above}
        lines = tuple(Line(name, 100 * wanted, ys, method=name, marks="none") for name, ys in taken.items())
        across = Axis("test top-1 reached [%]", within=PERCENT)
        panels.append(Panel("Time to an accuracy", across, _of_seeds(time, shown), lines))
    return panels


def epoch_panel(shown: Sequence[Curve], title: str, levels: tuple[tuple[float, str], ...] = ()) -> Panel:
    """Accuracy by epoch."""
    lines = tuple(_mean(curve, curve.epoch) for curve in shown)
    return Panel(title, Axis("epoch", whole=True), _of_seeds(ACCURACY, shown), lines, levels)


def _of_seeds(axis: Axis, shown: Sequence[Curve]) -> Axis:
    """The axis of means that says which of them are of a single seed."""
    counts = (len(np.unique(curve.seeds)) for curve in shown)
    return replace(axis, seeds=numbers.of_single_seeds(counts))


def _mean(curve: Curve, xs: Floats) -> Line:
    accuracy = 100 * curve.over_seeds(curve.accuracy)
    mean = accuracy.mean(axis=0)
    deviation = accuracy.std(axis=0, ddof=1) if len(accuracy) > 1 else np.zeros_like(xs)
    return Line(
        curve.method,
        xs,
        mean,
        list(zip(mean - deviation, mean + deviation, strict=True)),
        method=curve.method,
        band=True,
        survivors=[*[False] * (len(xs) - 1), curve.survivors],
    )
