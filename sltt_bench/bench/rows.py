"""The rows of the benchmark: what is set against what, at which size, and which ratio is wanted.

Every row names the targets' wording, measures both sides in one run, and gives one ratio a target.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from sltt_bench.bench.competitors import (
    Competitor,
    Problem,
    cifar_resnet18,
    gesture_vgg11,
    imagenet_nf_resnet34,
    ours,
    relu_network,
    spikingjelly_bptt,
    spikingjelly_sltt,
)
from sltt_bench.bench.measure import CLOCKS, PairedTimes, paired_times, peak_bytes
from sltt_bench.models.options import CNNOptions


@dataclass(frozen=True)
class Finding:
    """One ratio, beside the one that is wanted."""

    row: str
    """Name of the row."""
    quantity: str
    """peak_tensor_bytes; wall_s or process_s, the median of the alternated iterations."""
    subject: str
    baseline: str
    """The strongest of those measured."""
    problem: str
    subject_value: float
    baseline_value: float
    ratio: float
    """Subject over baseline; for times the median of the rounds' ratios."""
    target: float | None
    """The largest ratio that is wanted; None: only reported."""
    ratio_low: float | None = None
    """Lower quartile of the rounds' ratios."""
    ratio_high: float | None = None
    """Upper quartile of the rounds' ratios."""
    rounds: int | None = None
    remark: str = ""
    """Who was left out, and why."""

    @property
    def met(self) -> bool | None:
        """Whether the target is reached."""
        return None if self.target is None else self.ratio <= self.target


@dataclass(frozen=True)
class Size:
    """How large and how long the rows are measured."""

    device: str
    rounds: int
    clock: str = "wall"
    """A name in CLOCKS."""
    batch_divisor: int = 1
    """The paper's batches are divided by this, for times."""
    timesteps: int | None = None
    """T of the times; None: the paper's. The steps of SLTT cost the same each."""
    quick: bool = False
    """A toy network: says that everything runs, and nothing about the targets."""

    def shaped(self, problem: Problem, *, for_time: bool) -> Problem:
        """The problem at this size."""
        problem = replace(problem, device=self.device)
        if self.quick:
            tiny = CNNOptions(channels=[8, 8])
            return replace(problem, network=tiny, image=(3, 8, 8), classes=10, batch_size=4, timesteps=3)
        if not for_time:
            return problem
        return replace(
            problem,
            batch_size=max(1, problem.batch_size // self.batch_divisor),
            timesteps=self.timesteps or problem.timesteps,
        )


@dataclass(frozen=True)
class Row:
    """One line of the targets."""

    name: str
    says: str
    on: str
    """cpu, cuda, or any: the peak of live tensor bytes is the same everywhere."""
    measure: Callable[[Size], Iterator[Finding]]


def _peaks(
    row: str,
    problem: Problem,
    subject: Competitor,
    baselines: Sequence[Competitor],
    target: float | None,
    size: Size,
) -> Iterator[Finding]:
    problem = size.shaped(problem, for_time=False)
    peak = peak_bytes(subject, problem)
    strongest, least = min(((one, peak_bytes(one, problem)) for one in baselines), key=lambda pair: pair[1])
    yield Finding(
        row,
        "peak_tensor_bytes",
        subject.name,
        strongest.name,
        str(problem),
        peak,
        least,
        peak / least,
        target,
    )


def _times(
    row: str,
    problem: Problem,
    subjects: Sequence[Competitor],
    against: Sequence[tuple[Sequence[Competitor], float | None]],
    size: Size,
) -> Iterator[Finding]:
    """Each subject against the fastest of each group of baselines.

    Raises NothingToCompare if all subjects or all of a group fail.
    """
    problem = size.shaped(problem, for_time=True)
    everybody = [*subjects, *(one for group, _ in against for one in group)]
    times = paired_times(everybody, problem, rounds=size.rounds, clock=CLOCKS[size.clock])
    for group, target in against:
        ran = [one for one in group if one in times.seconds]
        if not ran or not any(one in times.seconds for one in subjects):
            raise NothingToCompare("; ".join(f"{who.name}: {why}" for who, why in times.failed.items()))
        fastest = min(ran, key=times.median)
        for subject in subjects:
            if subject in times.seconds:
                yield _time_finding(row, problem, times, subject, fastest, target, size)


def _time_finding(
    row: str,
    problem: Problem,
    times: PairedTimes,
    subject: Competitor,
    baseline: Competitor,
    target: float | None,
    size: Size,
) -> Finding:
    low, high = times.quartiles(subject, baseline)
    return Finding(
        row,
        "wall_s" if size.clock == "wall" else "process_s",
        subject.name,
        baseline.name,
        str(problem),
        times.median(subject),
        times.median(baseline),
        times.median_ratio(subject, baseline),
        target,
        low,
        high,
        size.rounds,
        "; ".join(f"{who.name} left out ({why})" for who, why in times.failed.items()),
    )


class NothingToCompare(Exception):
    """One side of a row could not run; the message says why."""


def _half(size: Size) -> str:
    return "fp16" if size.device.startswith("cuda") else "bf16"


def _sltt_memory(size: Size) -> Iterator[Finding]:
    yield from _peaks(
        "memory-sltt", cifar_resnet18(), ours("native", "sltt"), [spikingjelly_sltt()], 0.56, size
    )


def _sltt_memory_mixed(size: Size) -> Iterator[Finding]:
    problem = cifar_resnet18(precision=_half(size))
    yield from _peaks("memory-sltt-mixed", problem, ours("native", "sltt"), [spikingjelly_sltt()], 0.62, size)


def _recompute(size: Size) -> Iterator[Finding]:
    subject, baseline = ours("native", "sltt", recompute=True), spikingjelly_sltt()
    yield from _peaks("recompute", cifar_resnet18(), subject, [baseline], 0.35, size)
    yield from _times("recompute", cifar_resnet18(), [subject], [([baseline], 1.35)], size)


def _growth(size: Size) -> Iterator[Finding]:
    subject = ours("native", "sltt")
    short, long = (
        replace(size.shaped(cifar_resnet18(), for_time=False), timesteps=steps) for steps in (1, 32)
    )
    least, most = peak_bytes(subject, short), peak_bytes(subject, long)
    yield Finding(
        "growth",
        "peak_tensor_bytes",
        f"{subject.name}, T = 32",
        f"{subject.name}, T = 1",
        str(long),
        most,
        least,
        most / least,
        1.02,
    )


def _bptt_memory(size: Size) -> Iterator[Finding]:
    baselines = [spikingjelly_bptt(multi_step=mode) for mode in (False, True)]
    yield from _peaks("memory-bptt", cifar_resnet18(), ours("native", "bptt"), baselines, 0.75, size)


def _cpu_time_sltt(size: Size) -> Iterator[Finding]:
    against = [([spikingjelly_sltt()], 0.95), ([relu_network()], 1.05)]
    yield from _times("cpu-time-sltt", cifar_resnet18(), [ours("native", "sltt")], against, size)


def _cpu_time_bptt(size: Size) -> Iterator[Finding]:
    baselines = [spikingjelly_bptt(multi_step=mode) for mode in (False, True)]
    yield from _times("cpu-time-bptt", cifar_resnet18(), [ours("native", "bptt")], [(baselines, 1.0)], size)


def _on_gpu(method: str) -> list[Competitor]:
    """Native as it is, and with its iterations replayed as CUDA graphs."""
    return [ours("native", method), ours("native", method, cuda_graph=True)]


def _gpu_time_sltt(problem: Problem) -> Callable[[Size], Iterator[Finding]]:
    """Also the floor: the ReLU network at the same precision."""

    def measure(size: Size) -> Iterator[Finding]:
        rivals = [spikingjelly_sltt(), spikingjelly_sltt(float32_neurons=True)]
        against = [(rivals, 0.6), ([relu_network()], 1.1)]
        name = f"gpu-time-sltt-{problem.network.name}"
        yield from _times(name, problem, _on_gpu("sltt"), against, size)

    return measure


def _gpu_time_bptt(size: Size) -> Iterator[Finding]:
    rivals = [
        spikingjelly_bptt(multi_step=mode, float32_neurons=single)
        for mode in (False, True)
        for single in (False, True)
    ]
    problem = cifar_resnet18(precision="fp16")
    yield from _times("gpu-time-bptt", problem, _on_gpu("bptt"), [(rivals, 0.9)], size)


def _k1_against_bptt(size: Size) -> Iterator[Finding]:
    problem = imagenet_nf_resnet34(precision="fp16")
    against = [(_on_gpu("bptt"), 0.5)]
    yield from _times("sltt-k1-against-bptt", problem, _on_gpu("sltt-k1"), against, size)


ROWS: tuple[Row, ...] = (
    Row("memory-sltt", "peak live tensor bytes, SLTT, ResNet-18, fp32", "any", _sltt_memory),
    Row("memory-sltt-mixed", "the same in mixed precision", "any", _sltt_memory_mixed),
    Row("recompute", "the same with activation recomputation: memory and time", "any", _recompute),
    Row("growth", "growth of SLTT's peak from T = 1 to T = 32", "any", _growth),
    Row("memory-bptt", "peak live tensor bytes, BPTT, T = 6", "any", _bptt_memory),
    Row("cpu-time-sltt", "CPU time of an iteration, SLTT", "cpu", _cpu_time_sltt),
    Row("cpu-time-bptt", "CPU time of an iteration, BPTT", "cpu", _cpu_time_bptt),
    *(
        Row(
            f"gpu-time-sltt-{problem.network.name}",
            f"GPU time of an iteration, SLTT, {problem.network.name}",
            "cuda",
            _gpu_time_sltt(problem),
        )
        for problem in (
            cifar_resnet18(precision="fp16"),
            imagenet_nf_resnet34(precision="fp16"),
            gesture_vgg11(precision="fp16"),
        )
    ),
    Row("gpu-time-bptt", "GPU time of an iteration, BPTT, ResNet-18", "cuda", _gpu_time_bptt),
    Row("sltt-k1-against-bptt", "SLTT-K1 against BPTT, both native", "cuda", _k1_against_bptt),
)


def rows_for(device: str) -> list[Row]:
    """The rows that a device can measure: on a GPU, those for GPUs and those for any device."""
    kind = "cuda" if device.startswith("cuda") else "cpu"
    return [row for row in ROWS if row.on in (kind, "any")]
