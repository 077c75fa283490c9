"""The rows of the benchmark: what is compared, at which size, and the wanted ratio.

Every row has the wording of its targets, measures both sides in one run, and gives one ratio for each target.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sltt_bench.models.options import CNNOptions

from .competitors import (
    ABLATIONS,
    Competitor,
    Problem,
    ablated,
    cifar_resnet18,
    dvs_cifar10_vgg11,
    gesture_vgg11,
    imagenet_nf_resnet34,
    in_blocks,
    relu_network,
    spikingjelly_bptt,
    spikingjelly_bptt_with_less_memory,
    spikingjelly_sltt,
    spikingjelly_sltt_with_less_memory,
    this_project,
)
from .measure import CLOCKS, PairedTimes, Ran, in_one_line, paired_times, peak_bytes

FAKE = "counted on fake tensors"


@dataclass(frozen=True)
class Finding:
    """A measured ratio and its target."""

    row: str
    """Name of the row."""
    quantity: str
    """peak_tensor_bytes; wall_s or process_s, the median of the alternated iterations."""
    subject: str
    baseline: str
    """The best of the measured baselines."""
    problem: str
    subject_value: float
    baseline_value: float
    ratio: float
    """Subject over baseline; for times, the median of the rounds' ratios."""
    target: float | None
    """The largest ratio that meets the target; None: only reported."""
    ratio_low: float | None = None
    """Lower quartile of the rounds' ratios."""
    ratio_high: float | None = None
    """Upper quartile of the rounds' ratios."""
    rounds: int | None = None
    remark: str = ""
    """Competitors that were left out, and why."""

    @property
    def met(self) -> bool | None:
        """Whether the target is reached."""
        return None if self.target is None else self.ratio <= self.target


@dataclass(frozen=True)
class Size:
    """The size of the problems, and how long they are measured."""

    device: str
    rounds: int
    clock: str = "wall"
    """A name in CLOCKS."""
    batch_divisor: int = 1
    """Divides the paper's batches, for times."""
    timesteps: int | None = None
    """T for times; None: the paper's. Each step of SLTT costs the same."""
    quick: bool = False
    """A toy network, which shows that everything runs, but nothing about the targets."""
    fake: bool = False
    """Count memory on fake tensors: the same bytes in less time; on a CPU only."""
    ran: Ran = field(default_factory=dict)
    """Filled while rows are measured."""

    def shaped(self, problem: Problem, *, for_time: bool) -> Problem:
        """Returns the problem at this size."""
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
    """cpu, cuda, any (the peak of live tensor bytes is the same everywhere), or named (only on request)."""
    measure: Callable[[Size], Iterator[Finding]]


def _peaks(
    row: str,
    problem: Problem,
    subject: Competitor,
    against: Sequence["Group"],
    size: Size,
) -> Iterator[Finding]:
    """Yields the subject's peak against the lowest in each group of baselines.

    Raises NothingToCompare at the end if all of a group fail.
    """
    problem = size.shaped(problem, for_time=False)
    peak = peak_bytes(subject, problem, fake=size.fake, ran=size.ran)
    missing: list[str] = []
    for group, target in against:
        peaks: dict[Competitor, int] = {}
        failed: dict[Competitor, str] = {}
        for one in group:
            try:
                peaks[one] = peak_bytes(one, problem, fake=size.fake, ran=size.ran)
            except Exception as error:
                failed[one] = in_one_line(error)
        if not peaks:
            missing.append(_left_out(failed))
            continue
        leanest = min(peaks, key=lambda one: peaks[one])
        remark = "; ".join(part for part in (FAKE * size.fake, _left_out(failed)) if part)
        yield _peak_finding(
            row, problem, (subject, peak), (leanest, peaks[leanest]), target=target, remark=remark
        )
    if missing:
        raise NothingToCompare("; ".join(missing))


def _peak_finding(
    row: str,
    problem: Problem,
    subject: tuple[Competitor, int],
    baseline: tuple[Competitor, int],
    *,
    target: float | None,
    remark: str,
) -> Finding:
    return Finding(
        row,
        "peak_tensor_bytes",
        subject[0].name,
        baseline[0].name,
        str(problem),
        subject[1],
        baseline[1],
        subject[1] / baseline[1],
        target,
        remark=remark,
    )


def _left_out(failed: Mapping[Competitor, str]) -> str:
    return "; ".join(f"{who.name} left out ({why})" for who, why in failed.items())


def _times(
    row: str,
    problem: Problem,
    subjects: Sequence[Competitor],
    against: Sequence["Group"],
    size: Size,
) -> Iterator[Finding]:
    """Yields each subject's time against the fastest of each group of baselines.

    The target is for the fastest subject. Raises NothingToCompare at the end if all subjects or all of a group fail.
    """
    problem = size.shaped(problem, for_time=True)
    everybody = [*subjects, *(one for group, _ in against for one in group)]
    times = paired_times(everybody, problem, rounds=size.rounds, clock=CLOCKS[size.clock], ran=size.ran)
    is_whole = True
    for group, target in against:
        ran = [one for one in group if one in times.seconds]
        if not ran or not any(one in times.seconds for one in subjects):
            is_whole = False
            continue
        fastest, own = (
            min(some, key=times.median) for some in (ran, [one for one in subjects if one in times.seconds])
        )
        for subject in subjects:
            if subject in times.seconds:
                asked = target if subject is own else None
                yield _time_finding(row, problem, times, subject, fastest, asked, size)
    if not is_whole:
        raise NothingToCompare(_left_out(times.failed))


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
        _left_out(times.failed),
    )


class NothingToCompare(Exception):
    """One side of a row could not run; the message says why."""


Group = tuple[Sequence[Competitor], float | None]
"""Baselines, of which the best counts, and the wanted ratio to it."""


def _half(size: Size) -> str:
    return "fp16" if size.device.startswith("cuda") else "bf16"


def _sltt_memory(size: Size) -> Iterator[Finding]:
    """Memory of native SLTT, also against the lower bound, the ReLU network."""
    against = [([spikingjelly_sltt()], 0.56), ([relu_network()], None)]
    yield from _peaks("memory-sltt", cifar_resnet18(), this_project("native", "sltt"), against, size)


def _sltt_memory_mixed(size: Size) -> Iterator[Finding]:
    problem = cifar_resnet18(precision=_half(size))
    against = [([spikingjelly_sltt(float32_neurons=single) for single in (False, True)], 0.62)]
    yield from _peaks("memory-sltt-mixed", problem, this_project("native", "sltt"), against, size)


def _recompute(size: Size) -> Iterator[Finding]:
    """Memory and time of SLTT with recomputation, also against SpikingJelly's memory optimisation."""
    subject, baseline = this_project("native", "sltt", recompute=True), spikingjelly_sltt()
    saving = [spikingjelly_sltt_with_less_memory(compress=choice) for choice in (False, True)]
    yield from _peaks("recompute", cifar_resnet18(), subject, [([baseline], 0.35), (saving, None)], size)
    if not size.fake:
        yield from _times("recompute", cifar_resnet18(), [subject], [([baseline], 1.35)], size)


def _growth(size: Size) -> Iterator[Finding]:
    subject = this_project("native", "sltt")
    short, long = (
        replace(size.shaped(cifar_resnet18(), for_time=False), timesteps=steps) for steps in (1, 32)
    )
    least, most = (peak_bytes(subject, problem, fake=size.fake, ran=size.ran) for problem in (short, long))
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
        remark=FAKE * size.fake,
    )


def _bptt_memory(size: Size) -> Iterator[Finding]:
    """Memory of BPTT without recomputation, also against SpikingJelly with it."""
    usual = [spikingjelly_bptt(multi_step=mode) for mode in (False, True)]
    against = [(usual, 0.75), (_saving_bptt(), None)]
    yield from _peaks("memory-bptt", cifar_resnet18(), this_project("native", "bptt"), against, size)


def _bptt_recompute(size: Size) -> Iterator[Finding]:
    """Memory of the exact gradient with recomputation, also against SpikingJelly's memory optimisation."""
    subject = this_project("native", "bptt", recompute=True)
    usual = [spikingjelly_bptt(multi_step=mode) for mode in (False, True)]
    against = [(usual, 0.20), (_saving_bptt(), 1.0)]
    yield from _peaks("recompute-bptt", cifar_resnet18(), subject, against, size)


def _bptt_recompute_vgg(size: Size) -> Iterator[Finding]:
    """The same in a network whose first two layers have two thirds of all neurons."""
    subject = this_project("native", "bptt", recompute=True)
    usual = [spikingjelly_bptt(multi_step=mode) for mode in (False, True)]
    saving = [
        spikingjelly_bptt_with_less_memory(multi_step=True, compress=compress, chunks=chunks)
        for compress, chunks in ((False, 1), (False, 5), (True, 1), (True, 2), (True, 5), (True, 10))
    ]
    against = [(usual, None), (saving, 1.0)]
    yield from _peaks("recompute-bptt-vgg11", dvs_cifar10_vgg11(), subject, against, size)


def _bptt_recompute_time(*, also_saving: bool) -> Callable[[Size], Iterator[Finding]]:
    """The time that recomputation costs; `also_saving`: against SpikingJelly's memory optimisation instead,
    without a target."""

    def measure(size: Size) -> Iterator[Finding]:
        subject = this_project("native", "bptt", recompute=True)
        against: list[Group] = [([this_project("native", "bptt")], 1.35)]
        name = "recompute-bptt-time"
        if also_saving:
            against, name = [(_saving_bptt(), None)], "recompute-bptt-time-memopt"
        problem = cifar_resnet18(precision="fp16" if size.device.startswith("cuda") else "fp32")
        yield from _times(name, problem, [subject], against, size)

    return measure


def _saving_bptt() -> list[Competitor]:
    return [
        spikingjelly_bptt_with_less_memory(multi_step=False, compress=True),
        spikingjelly_bptt_with_less_memory(multi_step=False),
        spikingjelly_bptt_with_less_memory(multi_step=True),
        *(spikingjelly_bptt_with_less_memory(multi_step=True, chunks=chunks) for chunks in (2, 3, 6)),
    ]


def _ideas(row: str, method: str, problem: Problem) -> Callable[[Size], Iterator[Finding]]:
    """Memory of native without each of its ideas, against native with all of them."""

    def measure(size: Size) -> Iterator[Finding]:
        whole = this_project("native", method)
        shaped = size.shaped(problem, for_time=False)
        peak = peak_bytes(whole, shaped, fake=size.fake, ran=size.ran)
        for idea in ABLATIONS:
            less = ablated(idea, method)
            yield _peak_finding(
                row,
                shaped,
                (less, peak_bytes(less, shaped, fake=size.fake, ran=size.ran)),
                (whole, peak),
                target=None,
                remark=FAKE * size.fake,
            )

    return measure


def _cpu_time_sltt(size: Size) -> Iterator[Finding]:
    against = [([spikingjelly_sltt()], 0.95), ([relu_network()], 1.05)]
    yield from _times("cpu-time-sltt", cifar_resnet18(), [this_project("native", "sltt")], against, size)


def _cpu_time_bptt(size: Size) -> Iterator[Finding]:
    baselines = [spikingjelly_bptt(multi_step=mode) for mode in (False, True)]
    yield from _times(
        "cpu-time-bptt", cifar_resnet18(), [this_project("native", "bptt")], [(baselines, 1.0)], size
    )


def _on_gpu(method: str) -> list[Competitor]:
    """Returns native as it is, and with its iterations replayed as CUDA graphs."""
    return [this_project("native", method, graphs=graphs) for graphs in ("never", "always")]


def _gpu_time_sltt(problem: Problem) -> Callable[[Size], Iterator[Finding]]:
    """Time of native SLTT, also against the lower bound, the ReLU network at the same precision."""

    def measure(size: Size) -> Iterator[Finding]:
        rivals = [
            spikingjelly_sltt(float32_neurons=single, cuda_graph=graph)
            for single in (False, True)
            for graph in (False, True)
        ]
        floor = [relu_network(cuda_graph=graph) for graph in (False, True)]
        against: list[Group] = [(rivals, 0.6), (floor, 1.1)]
        name = f"gpu-time-sltt-{problem.network.name}"
        yield from _times(name, problem, _on_gpu("sltt"), against, size)

    return measure


def _gpu_time_bptt(size: Size) -> Iterator[Finding]:
    rivals = [
        spikingjelly_bptt(multi_step=mode, float32_neurons=single, cuda_graph=graph)
        for mode in (False, True)
        for single in (False, True)
        for graph in (False, True)
    ]
    problem = cifar_resnet18(precision="fp16")
    yield from _times("gpu-time-bptt", problem, _on_gpu("bptt"), [(rivals, 0.9)], size)


def _norm_within_neurons(size: Size) -> Iterator[Finding]:
    """Time of native with batch norm within the neurons' kernels, against native with it by itself."""
    setting = {"graphs": "always"} if size.device.startswith("cuda") else {}
    problems = (cifar_resnet18(precision=_half(size)), gesture_vgg11(precision=_half(size)))
    for problem, method in zip((*problems, problems[0]), ("sltt", "sltt", "bptt"), strict=True):
        within, by_itself = (
            this_project("native", method, fused_norm=choice, **setting) for choice in ("always", "never")
        )
        yield from _times("norm-within-neurons", problem, [within], [([by_itself], 1.0)], size)


def _k1_against_bptt(size: Size) -> Iterator[Finding]:
    problem = imagenet_nf_resnet34(precision="fp16")
    against = [(_on_gpu("bptt"), 0.5)]
    yield from _times("sltt-k1-against-bptt", problem, _on_gpu("sltt-k1"), against, size)


ITERATIONS_OF_A_BLOCK = 10
"""These take about a second at the paper's size, in which the sensors are read about ten times."""


def _sampling_cost(size: Size) -> Iterator[Finding]:
    """The time that reading the GPU's sensors costs, by turns with and without it."""
    iterations = 1 if size.quick else ITERATIONS_OF_A_BLOCK
    on, off = (
        in_blocks(this_project("native", "sltt"), iterations, sampled=sampled) for sampled in (True, False)
    )
    yield from _times("nvml-sampling", cifar_resnet18(precision=_half(size)), [on], [([off], 1.01)], size)


ROWS: tuple[Row, ...] = (
    Row("memory-sltt", "peak live tensor bytes, SLTT, ResNet-18, fp32", "any", _sltt_memory),
    Row("memory-sltt-mixed", "the same in mixed precision", "any", _sltt_memory_mixed),
    Row("recompute", "the same with activation recomputation: memory and time", "any", _recompute),
    Row("growth", "growth of SLTT's peak from T = 1 to T = 32", "any", _growth),
    Row("memory-bptt", "peak live tensor bytes, BPTT, T = 6", "any", _bptt_memory),
    Row("recompute-bptt", "BPTT with recomputation: memory", "any", _bptt_recompute),
    Row("recompute-bptt-vgg11", "the same, VGG-11, T = 10", "any", _bptt_recompute_vgg),
    Row(
        "recompute-bptt-time", "its time: native BPTT without", "any", _bptt_recompute_time(also_saving=False)
    ),
    Row(
        "recompute-bptt-time-memopt",
        "its time: SpikingJelly's memory optimisation",
        "named",
        _bptt_recompute_time(also_saving=True),
    ),
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
    Row(
        "norm-within-neurons",
        "batch norm within the neurons' kernels: native with it by itself",
        "cuda",
        _norm_within_neurons,
    ),
    Row("nvml-sampling", "an epoch's time with the sensors read meanwhile", "cuda", _sampling_cost),
    Row("sltt-k1-against-bptt", "SLTT-K1 against BPTT, both native", "cuda", _k1_against_bptt),
    *(
        Row(name, f"peak live tensor bytes without each idea, {what}", "named", _ideas(name, method, problem))
        for name, what, method, problem in (
            ("ideas-sltt", "SLTT, ResNet-18", "sltt", cifar_resnet18()),
            ("ideas-bptt", "BPTT, ResNet-18", "bptt", cifar_resnet18()),
            ("ideas-sltt-vgg11", "SLTT, VGG-11, T = 2", "sltt", gesture_vgg11(timesteps=2)),
        )
    ),
)


def rows_for(device: str) -> list[Row]:
    """Returns the rows that a device can measure: on a GPU, those for GPUs and those for any device."""
    kind = "cuda" if device.startswith("cuda") else "cpu"
    return [row for row in ROWS if row.on in (kind, "any")]
