"""Measures a training iteration's peak of live tensor bytes, and its time relative to another's."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch

from sltt_bench.backends.native.graphs import CaptureFailed
from sltt_bench.measure.fake_tensors import fake_tensors, modules_stay_where_they_are
from sltt_bench.measure.iteration_memory import count_iteration

from .competitors import Competitor, Made, Problem

Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "process": time.process_time}
"""Wall-clock time, or CPU time of all threads of this process, which is steadier on a busy machine."""


Ran = dict[str, Mapping[str, str]]
"""Competitor and problem → what really ran, by its own report."""


def peak_bytes(
    competitor: Competitor, problem: Problem, *, fake: bool = False, ran: Ran | None = None
) -> int:
    """Returns a training iteration's peak of live tensor bytes, including parameters, gradients and batch.

    An iteration of two steps runs before it, in which native learns what repeats. `fake`: on fake tensors,
    which have shapes but no values: the same bytes in less time; on a CPU only.
    """
    with _fake_tensors() if fake else nullcontext():
        made = competitor.make(problem)
        memory = count_iteration(made.iteration, made.network, made.batch, warm_up=made.short_iteration)
    if ran is not None:
        ran[f"{competitor.name}: {problem}"] = made.provenance()
    return memory.peak_bytes


@contextmanager
def _fake_tensors() -> Iterator[None]:
    with fake_tensors(), modules_stay_where_they_are():
        yield


@dataclass(frozen=True)
class PairedTimes:
    """Seconds of alternated iterations, by competitor; all lists are equally long."""

    seconds: dict[Competitor, list[float]]
    failed: dict[Competitor, str]
    """Competitors that could not run, and why."""

    def ratios(self, a: Competitor, b: Competitor) -> list[float]:
        """Returns the time of a over that of b in each round."""
        return [one / other for one, other in zip(self.seconds[a], self.seconds[b], strict=True)]

    def median_ratio(self, a: Competitor, b: Competitor) -> float:
        """Returns the median of the rounds' ratios."""
        return statistics.median(self.ratios(a, b))

    def quartiles(self, a: Competitor, b: Competitor) -> tuple[float, float]:
        """Returns the lower and upper quartile of the rounds' ratios."""
        low, _, high = statistics.quantiles(self.ratios(a, b), n=4, method="inclusive")
        return low, high

    def median(self, one: Competitor) -> float:
        """Returns the median seconds of a competitor's iteration."""
        return statistics.median(self.seconds[one])


def paired_times(
    competitors: Sequence[Competitor],
    problem: Problem,
    *,
    rounds: int,
    clock: Clock,
    ran: Ran | None = None,
) -> PairedTimes:
    """Time warm iterations of all competitors in turn; each round reverses the order of the last.

    A disturbance of the machine slows all of a round, so ratios within a round are steadier than times. A
    competitor that fails, in its warm-up or in a round, is left out. Raises CaptureFailed if the capture of a
    graph broke off, since the device cannot be trusted afterwards.
    """
    made: dict[Competitor, Made] = {}
    failed: dict[Competitor, str] = {}
    seconds: dict[Competitor, list[float]] = {}

    @contextmanager
    def left_out_if_it_fails(one: Competitor) -> Iterator[None]:
        try:
            yield
        except CaptureFailed as error:
            raise CaptureFailed(f"{one.name}: {error}") from error
        except Exception as error:
            made.pop(one, None)
            seconds.pop(one, None)
            failed[one] = in_one_line(error)

    for one in competitors:
        with left_out_if_it_fails(one):
            made[one] = one.make(problem)
            for _ in range(made[one].warm_up):
                made[one].iteration()
            seconds[one] = []
    device = torch.device(problem.device)
    for round_ in range(rounds):
        for one in list(made) if round_ % 2 == 0 else list(reversed(made)):
            with left_out_if_it_fails(one):
                seconds[one].append(_seconds(made[one], device, clock))
    if ran is not None:
        ran.update({f"{one.name}: {problem}": competitor.provenance() for one, competitor in made.items()})
    return PairedTimes(seconds, failed)


def in_one_line(error: Exception) -> str:
    """Returns the error as a text short enough for a table."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _seconds(made: Made, device: torch.device, clock: Clock) -> float:
    with made.around():
        _wait_for(device)
        start = clock()
        made.iteration()
        _wait_for(device)
        return clock() - start


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
