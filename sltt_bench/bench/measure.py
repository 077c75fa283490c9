"""Two figures of a training iteration: its peak of live tensor bytes, and its time beside another's."""

import gc
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sltt_bench.bench.competitors import Competitor, Made, Problem
from sltt_bench.profiler.tensor_bytes import TensorBytes

MEMORY_WARM_UP = 1
"""Iterations before memory is counted: native learns in the first what repeats."""
TIME_WARM_UP = 2
CLOCK = time.process_time


def peak_bytes(competitor: Competitor, problem: Problem) -> int:
    """Peak of live tensor bytes of a training iteration, parameters, gradients and batch included."""
    made = competitor.make(problem)
    for _ in range(MEMORY_WARM_UP):
        made.iteration()
    made.network.zero_grad(set_to_none=True)
    gc.collect()
    with TensorBytes(made.batch, network=made.network) as counted:
        made.iteration()
    return counted.peak


@dataclass(frozen=True)
class PairedTimes:
    """Seconds of alternated iterations: one list a competitor, equally long."""

    seconds: tuple[tuple[float, ...], ...]

    def ratios(self, a: int, b: int) -> list[float]:
        """Of each round, the time of competitor a over that of b."""
        return [one / other for one, other in zip(self.seconds[a], self.seconds[b], strict=True)]

    def median_ratio(self, a: int, b: int) -> float:
        """The median over the rounds."""
        return statistics.median(self.ratios(a, b))

    def quartiles(self, a: int, b: int) -> tuple[float, float]:
        """Between which half of the rounds' ratios lie."""
        low, _, high = statistics.quantiles(self.ratios(a, b), n=4, method="inclusive")
        return low, high

    def median(self, a: int) -> float:
        """Median seconds of a competitor's iteration."""
        return statistics.median(self.seconds[a])


def paired_times(competitors: Sequence[Competitor], problem: Problem, *, rounds: int) -> PairedTimes:
    """Warm iterations of all competitors in turn, every round in the opposite order of the one before.

    What slows the machine for a while slows all of a round, so that ratios within a round are steady
    where times are not.
    """
    made = [competitor.make(problem) for competitor in competitors]
    device = torch.device(problem.device)
    for _ in range(TIME_WARM_UP):
        for one in made:
            one.iteration()
    seconds: list[list[float]] = [[] for _ in made]
    for round_ in range(rounds):
        order = range(len(made)) if round_ % 2 == 0 else reversed(range(len(made)))
        for number in order:
            seconds[number].append(_seconds(made[number], device))
    return PairedTimes(tuple(map(tuple, seconds)))


def _seconds(made: Made, device: torch.device) -> float:
    _wait_for(device)
    start = CLOCK()
    made.iteration()
    _wait_for(device)
    return CLOCK() - start


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
