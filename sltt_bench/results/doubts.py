"""Finds reasons to doubt a cell's figures: training without meaning, times that other programs affected."""

import math
import statistics
from collections.abc import Mapping, Sequence

from sltt_bench.common.format import counted

CHANCE = "test accuracy is at chance"

Epoch = Mapping[str, str]
"""A row of epochs.csv as text."""


def doubts(
    epochs: Sequence[Epoch], *, classes: int, test_samples: int, largest_class_share: float | None = None
) -> list[str]:
    """Returns a clause for each reason why the figures of these epochs may mean nothing; none if all is well.

    The epochs must be in their order. `largest_class_share`: of the test samples, what always naming one class
    reaches; None if that is not known.
    """
    clauses = []
    if (rates := _figures(epochs, "firing_rate")) and not any(rates):
        clauses.append("no neuron fired in any epoch (lower neuron.v_threshold, or look at the input)")
    if (rates := _figures(epochs, "lr")) and not any(rates):
        clauses.append("the learning rate was 0: nothing was trained")
    losses = _figures(epochs, "train_loss")
    if len(losses) > 1 and max(losses) - min(losses) <= 1e-9 * abs(losses[0]):
        clauses.append("the training loss never moved")
    top1 = _figures(epochs, "test_top1")
    if top1 and top1[-1] <= at_chance(classes, test_samples):
        clauses.append(f"{CHANCE} ({top1[-1]:.1%} with {counted(classes, 'class')})")
    elif top1 and largest_class_share is not None and top1[-1] <= largest_class_share:
        of_one = f"one of {classes} classes has {largest_class_share:.1%} of the test samples"
        clauses.append(f"{CHANCE} ({top1[-1]:.1%}, and {of_one})")
    return clauses


OTHERS_SHARE = 0.05
"""An epoch's time counts as disturbed if other programs used more than this share of processor time …"""
FULL_SHARE = 0.9
"""… and if all programs together used at least this share; otherwise, there was room for both."""


def used_by_others(
    train_s: Sequence[float], at_work: Sequence[float], others: Sequence[float], *, summed: bool = False
) -> float:
    """Returns the share of processor time that other programs used during epochs of `train_s` seconds.

    0 if it is too small to tell, or if processors were free. It is the smaller of mean and median over the
    epochs: short epochs are counted coarsely, and a disturbance of few epochs does not move the median of
    their times. If their times are `summed`, it is the mean.
    """
    if not sum(train_s) > 0:
        return 0.0
    busy, share = statistics.fmean(at_work, train_s), statistics.fmean(others, train_s)
    if not summed:
        busy, share = min(busy, statistics.median(at_work)), min(share, statistics.median(others))
    return share if busy >= FULL_SHARE and share > OTHERS_SHARE else 0.0


_OF_PROCESSORS = ("train_s", "cpu_util_mean", "cpu_others_mean")


def disturbance(epochs: Sequence[Epoch]) -> str:
    """What to know of the times of these epochs, in their order; '' if nothing. Of the processors warm epochs tell, if
    there are any.
    """
    clauses = []
    if untimed := sum(epoch.get("train_s", 0) in (None, "") for epoch in epochs):
        clauses.append(untimed_text(untimed))
    measured = [
        epoch for epoch in epochs if all(epoch.get(name) not in (None, "") for name in _OF_PROCESSORS)
    ]
    warm = [epoch for epoch in measured if str(epoch.get("cold")).lower() != "true"] or measured
    share = used_by_others(*(_figures(warm, name) for name in _OF_PROCESSORS))
    if share:
        clauses.append(f"other programs used {share:.0%} of the processors while it trained")
    return "; ".join(clauses)


def untimed_text(epochs: int) -> str:
    """Of so many epochs of a cell without a time."""
    return f"its process stood still in {counted(epochs, 'epoch')}, of which there is no time"


def at_chance(classes: int, samples: int) -> float:
    """Returns the accuracy that guessing reaches once in twenty: 1/C + 1.64 binomial standard deviations."""
    chance = 1 / classes
    return chance + 1.64 * math.sqrt(chance * (1 - chance) / samples)


def _figures(epochs: Sequence[Epoch], column: str) -> list[float]:
    return [float(epoch[column]) for epoch in epochs if epoch.get(column)]
