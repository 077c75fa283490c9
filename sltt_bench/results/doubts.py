"""Training that means nothing: what a cell's epochs say against its own figures."""

import math
from collections.abc import Mapping, Sequence

CHANCE = "test accuracy is at chance"

Epoch = Mapping[str, str]
"""A row of epochs.csv as text."""


def doubts(epochs: Sequence[Epoch], *, classes: int, test_samples: int) -> list[str]:
    """Why the figures of these epochs, in their order, may mean nothing; one clause each, none for sound training."""
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
        clauses.append(f"{CHANCE} ({top1[-1]:.1%} with {classes} classes)")
    return clauses


def at_chance(classes: int, samples: int) -> float:
    """The accuracy that guessing reaches once in twenty: 1/C plus 1.64 binomial standard deviations."""
    chance = 1 / classes
    return chance + 1.64 * math.sqrt(chance * (1 - chance) / samples)


def _figures(epochs: Sequence[Epoch], column: str) -> list[float]:
    return [float(epoch[column]) for epoch in epochs if epoch.get(column)]
