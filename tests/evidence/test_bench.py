"""The bench: fair sides, known ratios, and a command that says what went wrong."""

import csv
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from benchmarks import __main__ as command
from benchmarks import competitors, launches, measure, rows
from benchmarks.competitors import (
    ABLATIONS,
    Competitor,
    Made,
    Problem,
    ablated,
    cifar_resnet18,
    dvs_cifar10_vgg11,
    relu_network,
    spikingjelly_bptt,
    spikingjelly_bptt_with_less_memory,
    spikingjelly_sltt,
    spikingjelly_sltt_with_less_memory,
    this_project,
)
from benchmarks.measure import paired_times, peak_bytes
from benchmarks.rows import ROWS, Finding, NothingToCompare, Row, Size, rows_for
from checkout import ROOT
from torch import Tensor, nn
from typer.testing import CliRunner

from sltt_bench.backends.native.graphs import CaptureFailed, GraphedIterations
from sltt_bench.command_line.cli import app
from sltt_bench.data.synthetic import synthetic_bundle
from sltt_bench.models.options import PreActResNetOptions, VGGOptions
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.precision import ieee_float32
from sltt_bench.results.reader import read_results
from sltt_bench.results.schema import BENCH_COLUMNS, BENCH_FILE
from sltt_bench.results.writer import read_provenance

QUICK = Size("cpu", rounds=2, quick=True)


@pytest.fixture
def problem() -> Problem:
    network = PreActResNetOptions(width=4)
    return cifar_resnet18(network=network, image=(3, 16, 16), batch_size=4, timesteps=3)


@pytest.fixture
def graphs_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay calls the function again."""

    class Again:
        def warm_up(self, function: Callable[[], None]) -> None:
            function()

        def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
            function()
            return function

    def make() -> GraphedIterations:
        return GraphedIterations(Again)

    monkeypatch.setattr(competitors, "GraphedIterations", make)
    monkeypatch.setattr("sltt_bench.backends.native.GraphedIterations", make)


@pytest.fixture
def short_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(competitors.WARM_UP, "cpu", 1)


# Who runs against whom ----------------------------------------------------------------------------


def gradients(competitor: Competitor, problem: Problem, *, iterations: int = 2) -> Tensor:
    """Of the last iteration, as one vector."""
    made = competitor.make(problem)
    for _ in range(iterations):
        made.iteration()
    actual = []
    for name, parameter in made.network.named_parameters():
        assert parameter.grad is not None, f"{name} received no gradient"
        actual.append(parameter.grad.flatten())
    return torch.cat(actual)


def assert_same_gradients(competitor: Competitor, reference: Competitor, problem: Problem) -> None:
    actual, expected = gradients(competitor, problem), gradients(reference, problem, iterations=1)
    assert (actual - expected).norm() < 1e-5 * expected.norm(), competitor.name


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("method", ["sltt", "bptt"])
def test_native_computes_the_gradients_of_the_reference(
    method: str, recompute: bool, problem: Problem
) -> None:
    assert_same_gradients(
        this_project("native", method, recompute=recompute), this_project("reference", method), problem
    )


def test_each_way_of_spikingjelly_computes_the_gradients_of_the_reference(problem: Problem) -> None:
    pytest.importorskip("spikingjelly")
    for sltt in (
        spikingjelly_sltt(),
        spikingjelly_sltt(float32_neurons=True),
        spikingjelly_sltt_with_less_memory(compress=False),
        spikingjelly_sltt_with_less_memory(compress=True),
    ):
        assert_same_gradients(sltt, this_project("reference", "sltt"), problem)
    for bptt in (
        spikingjelly_bptt(multi_step=False),
        spikingjelly_bptt(multi_step=True),
        spikingjelly_bptt(multi_step=True, float32_neurons=True),
    ):
        assert_same_gradients(bptt, this_project("reference", "bptt"), problem)
    for saving in (
        spikingjelly_bptt_with_less_memory(multi_step=False, compress=True),
        spikingjelly_bptt_with_less_memory(multi_step=True, chunks=3),
    ):
        assert_same_gradients(saving, this_project("reference", "bptt"), problem)
    sltt_gradient, bptt_gradient = (
        gradients(this_project("reference", m), problem) for m in ("sltt", "bptt")
    )
    assert (sltt_gradient - bptt_gradient).norm() > 1e-3 * bptt_gradient.norm(), "the two can be told apart"


def test_blocks_of_vgg_that_are_checkpointed_compute_the_gradients_of_the_reference() -> None:
    pytest.importorskip("spikingjelly")
    problem = dvs_cifar10_vgg11(network=VGGOptions(width=2), image=(2, 32, 32), batch_size=4, timesteps=4)
    reference = this_project("reference", "bptt")
    for compress, chunks in ((False, 1), (True, 1), (True, 2), (True, 4)):
        saving = spikingjelly_bptt_with_less_memory(multi_step=True, compress=compress, chunks=chunks)
        assert_same_gradients(saving, reference, problem)
    in_full, as_bits = (
        spikingjelly_bptt_with_less_memory(multi_step=True, compress=compress, chunks=4)
        for compress in (False, True)
    )
    peaks = [
        peak_bytes(side, problem, fake=True)
        for side in (spikingjelly_bptt(multi_step=True), in_full, as_bits)
    ]
    assert peaks[1] < 0.8 * peaks[0], "blocks are computed again"
    assert peaks[2] < peaks[1], "what enters them is kept as bits"


def test_vgg_on_dvs_cifar10_has_the_sizes_of_its_recipe() -> None:
    problem, recipe = dvs_cifar10_vgg11(), load_recipe("dvs-cifar10-vgg11")
    assert (problem.batch_size, problem.timesteps) == (recipe.train.batch_size, recipe.timesteps)
    assert problem.network == recipe.model.model_copy(update={"dropout": 0.0})
    shape = synthetic_bundle(recipe.data, recipe.timesteps).train[0][0].shape
    assert shape == (problem.timesteps, *problem.image)


def test_replayed_competitors_compute_the_same_gradients(
    problem: Problem, graphs_without_a_gpu: None
) -> None:
    pytest.importorskip("spikingjelly")
    for usual, replayed in (
        (spikingjelly_sltt(), spikingjelly_sltt(cuda_graph=True)),
        (spikingjelly_bptt(multi_step=True), spikingjelly_bptt(multi_step=True, cuda_graph=True)),
        (relu_network(), relu_network(cuda_graph=True)),
    ):
        expected = gradients(usual, problem, iterations=1)
        assert torch.equal(gradients(replayed, problem, iterations=5), expected), replayed.name


def test_native_is_replayed_where_a_row_says_so(problem: Problem, graphs_without_a_gpu: None) -> None:
    made = this_project("native", "sltt", graphs="always").make(problem)
    for _ in range(5):
        made.iteration()
    assert made.provenance()["CUDA graphs"].startswith("2 iterations replayed, 3 run as usual")


@pytest.mark.parametrize("idea", ABLATIONS)
def test_native_without_an_idea_computes_the_same_gradients(idea: str, problem: Problem) -> None:
    assert_same_gradients(ablated(idea, "sltt"), this_project("reference", "sltt"), problem)


def test_both_sides_have_the_same_weights_and_batch(problem: Problem) -> None:
    pytest.importorskip("spikingjelly")
    one, other = this_project("native", "sltt").make(problem), spikingjelly_sltt().make(problem)
    assert all(torch.equal(a, b) for a, b in zip(one.batch, other.batch, strict=True))
    mine, theirs = one.network.state_dict(), other.network.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    relu = relu_network().make(problem).network.state_dict()
    assert all(torch.equal(mine[name], relu[name]) for name in mine)


def test_float32_products_are_rounded_as_the_problems_precision_says(problem: Problem) -> None:
    """torch lets convolutions run in TF32 unless it is told otherwise."""
    pytest.importorskip("spikingjelly")
    with ieee_float32():  # sets back what was set
        for side in (this_project("native", "sltt"), spikingjelly_sltt(), relu_network()):
            for precision, allowed in (("fp32", False), ("tf32", True), ("bf16", False)):
                torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = not allowed
                side.make(replace(problem, precision=precision))
                assert torch.backends.cudnn.allow_tf32 == allowed, (side.name, precision)
                assert torch.backends.cuda.matmul.allow_tf32 == allowed, (side.name, precision)


# Figures with a known answer ----------------------------------------------------------------------


class Clock:
    """Time passes only while iterations run."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def competitor(self, name: str, *seconds: float, at_most: int | None = None) -> Competitor:
        """Its iterations take these times, again and again; without times, or after `at_most`, it cannot run."""
        calls: list[int] = []

        def iteration() -> None:
            if not seconds or len(calls) == at_most:
                raise RuntimeError("no kernel\nfor this")
            self.now += seconds[len(calls) % len(seconds)]
            calls.append(1)
            self.order.append(name)

        made = Made(nn.Identity(), iteration, iteration, batch=(), warm_up=1)
        return Competitor(name, lambda problem: made)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setitem(measure.CLOCKS, "wall", clock)
    return clock


def test_the_ratio_of_times_is_the_median_of_the_rounds_ratios(clock: Clock, problem: Problem) -> None:
    ours_, theirs = clock.competitor("a", 9.0, 1.0, 2.0, 9.0), clock.competitor("b", 9.0, 2.0, 8.0, 9.0)
    times = paired_times([ours_, theirs], problem, rounds=3, clock=clock)
    assert times.seconds == {ours_: [1.0, 2.0, 9.0], theirs: [2.0, 8.0, 9.0]}  # warm-up left out
    assert times.ratios(ours_, theirs) == [0.5, 0.25, 1.0]
    assert times.median_ratio(ours_, theirs) == 0.5
    assert times.quartiles(ours_, theirs) == (0.375, 0.75)
    assert (times.median(ours_), times.median(theirs)) == (2.0, 8.0)
    assert clock.order == ["a", "b", "a", "b", "b", "a", "a", "b"], "every round the other way round"


def times_row(clock: Clock, problem: Problem, *baselines: Competitor, target: float = 0.9) -> Finding:
    against = [(baselines, target)]
    size = Size("cpu", rounds=2)
    (finding,) = rows._times("a row", problem, [clock.competitor("native", 4.0)], against, size)
    return finding


def test_the_fastest_baseline_is_the_one_that_counts(clock: Clock, problem: Problem) -> None:
    finding = times_row(clock, problem, clock.competitor("slow", 16.0), clock.competitor("fast", 5.0))
    assert (finding.subject, finding.baseline, finding.ratio) == ("native", "fast", 0.8)
    assert (finding.subject_value, finding.baseline_value, finding.rounds) == (4.0, 5.0, 2)
    assert finding.met is True
    assert times_row(clock, problem, clock.competitor("fast", 4.0)).met is False


def test_the_target_is_the_fastest_subjects_alone(clock: Clock, problem: Problem) -> None:
    size = Size("cpu", rounds=2)
    subjects = [clock.competitor("slow way", 16.0), clock.competitor("fast way", 4.0)]
    found = list(rows._times("row", problem, subjects, [([clock.competitor("rival", 5.0)], 1.0)], size))
    assert [(one.subject, one.ratio, one.target, one.met) for one in found] == [
        ("slow way", 3.2, None, None), ("fast way", 0.8, 1.0, True),
    ]  # fmt: skip


def test_a_baseline_that_fails_is_named_and_left_out(clock: Clock, problem: Problem) -> None:
    finding = times_row(clock, problem, clock.competitor("broken"), clock.competitor("slow", 8.0))
    assert (finding.baseline, finding.ratio) == ("slow", 0.5)
    assert finding.remark == "broken left out (RuntimeError: no kernel for this)"


@pytest.mark.parametrize("at_most", [1, 2], ids=["in the first round", "in the second"])
def test_a_baseline_that_fails_while_it_is_timed_costs_no_other(
    clock: Clock, problem: Problem, at_most: int
) -> None:
    tires = clock.competitor("tires", 2.0, at_most=at_most)
    finding = times_row(clock, problem, tires, clock.competitor("slow", 8.0))
    assert (finding.baseline, finding.ratio, finding.rounds) == ("slow", 0.5, 2)
    assert finding.remark == "tires left out (RuntimeError: no kernel for this)"


def test_without_any_baseline_there_is_no_ratio(clock: Clock, problem: Problem) -> None:
    with pytest.raises(NothingToCompare, match="broken left out"):
        times_row(clock, problem, clock.competitor("broken"))


def test_baselines_that_all_fail_cost_no_other_ratio_of_their_row(clock: Clock, problem: Problem) -> None:
    broken, slow = clock.competitor("broken"), clock.competitor("slow", 8.0)
    against: list[Any] = [([broken], 0.6), ([slow], 1.1)]
    of_times = rows._times("row", problem, [clock.competitor("native", 4.0)], against, Size("cpu", rounds=2))
    of_peaks = rows._peaks(
        "row",
        problem,
        keeper("native", 100),
        [([keeper("none", -1)], 1), ([keeper("more", 200)], 1)],
        Size("cpu", 2),
    )
    for found, other in ((of_times, "slow"), (of_peaks, "more")):
        assert next(found).baseline == other
        with pytest.raises(NothingToCompare, match="left out"):
            next(found)


def keeper(name: str, elements: int) -> Competitor:
    """Its iteration holds so many float32 numbers for a moment."""

    def make(problem: Problem) -> Made:
        network = nn.Linear(10, 10, bias=False)

        def iteration() -> None:
            if elements < 0:
                raise RuntimeError("cannot hold less than nothing")
            torch.empty(elements)

        return Made(network, iteration, iteration, batch=(torch.empty(25),), warm_up=1)

    return Competitor(name, make)


def test_the_peak_counts_weights_batch_and_what_the_iteration_holds(problem: Problem) -> None:
    assert peak_bytes(keeper("a", 1000), problem) == 4 * (100 + 25 + 1000)


def test_the_leanest_baseline_is_the_one_that_counts(problem: Problem) -> None:
    group = [keeper("fat", 9000), keeper("broken", -1), keeper("lean", 2000 - 125)]
    against = [(group, 0.56), ([keeper("fat", 9000)], None)]
    first, second = rows._peaks("a row", problem, keeper("native", 1000 - 125), against, QUICK)
    assert (first.baseline, first.ratio, first.met) == ("lean", 0.5, True)
    assert first.remark == "broken left out (RuntimeError: cannot hold less than nothing)"
    assert (second.baseline, second.met) == ("fat", None)


def test_fake_tensors_take_the_bytes_of_real_ones(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sltt_bench.backends.native.saved_tensor_hooks.SMALL", 0)
    problem = replace(problem, timesteps=2)
    for competitor in (this_project("native", "bptt"), this_project("native", "sltt", recompute=True)):
        assert peak_bytes(competitor, problem, fake=True) == peak_bytes(competitor, problem)


# Rows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_runs_those_for_gpus_too(row: Row, graphs_without_a_gpu: None, short_warm_up: None) -> None:
    pytest.importorskip("spikingjelly")
    findings = list(row.measure(QUICK))
    assert findings
    for finding in findings:
        assert finding.row == row.name
        assert finding.ratio > 0
        assert finding.remark == "", "nobody was left out"


def test_names_of_rows_are_unique_and_each_device_has_its_own() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    on_cpu, on_gpu = ({row.name for row in rows_for(device)} for device in ("cpu", "cuda:0"))
    assert "memory-sltt" in on_cpu & on_gpu
    assert "cpu-time-sltt" in on_cpu - on_gpu
    assert "gpu-time-bptt" in on_gpu - on_cpu
    assert set(names) - on_cpu - on_gpu == {
        "ideas-sltt", "ideas-bptt", "ideas-sltt-vgg11", "recompute-bptt-time-memopt",
    }  # fmt: skip


def test_sizes_are_the_papers_unless_told_otherwise() -> None:
    full = Size("cpu", rounds=2, batch_divisor=4, timesteps=3)
    for_memory = full.shaped(cifar_resnet18(), for_time=False)
    assert (for_memory.batch_size, for_memory.timesteps) == (128, 6)
    for_time = full.shaped(cifar_resnet18(), for_time=True)
    assert (for_time.batch_size, for_time.timesteps) == (32, 3)
    assert str(for_time) == "preact-resnet18, 3×32×32, batch 32, T = 3, fp32"


# The command --------------------------------------------------------------------------------------


def bench(*arguments: Any) -> Any:
    app = typer.Typer()
    app.command()(command.main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_writes_what_it_measured(tmp_path: Path) -> None:
    pytest.importorskip("spikingjelly")
    done = bench("--quick", "--fake", "--rows", "memory-sltt,growth", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    (folder,) = (tmp_path / "bench").iterdir()
    with (folder / BENCH_FILE).open(encoding="utf-8", newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["row"] for row in written] == ["memory-sltt", "memory-sltt", "growth"]
    assert [*written[0]] == [column.name for column in BENCH_COLUMNS]
    assert float(written[0]["ratio"]) == pytest.approx(
        float(written[0]["subject_value"]) / float(written[0]["baseline_value"])
    )
    assert written[0]["remark"] == "counted on fake tensors"
    assert written[0]["target"] == "", "a toy network says nothing about the targets"
    facts = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    assert facts["kind"] == "bench"
    assert facts["failed"] == {}
    native = [ran for who, ran in facts["ran"].items() if who.startswith("native sltt: cnn, 3×8×8")]
    assert len(native) == 3, "each of its problems"
    assert all(ran["neuron"].startswith("torch backward") for ran in native)
    assert (
        "SLTTLIFNode, step_mode='s'"
        in next(ran for who, ran in facts["ran"].items() if who.startswith("SpikingJelly SLTTLIFNode: "))[
            "neuron"
        ]
    )
    assert f"{float(written[0]['ratio']):.3f}" in done.output


def test_a_row_that_fails_is_named_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(size: Size) -> Any:
        raise NothingToCompare("nobody came")

    chosen = [replace(ROWS[0], name="broken", measure=fails), replace(ROWS[3])]
    monkeypatch.setattr(command, "ROWS", tuple(chosen))
    done = bench("--quick", "--fake", "--rows", "broken,growth", "--out", tmp_path)
    assert done.exit_code == 1
    assert "broken: NothingToCompare: nobody came" in done.output
    (folder,) = (tmp_path / "bench").iterdir()
    facts = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    assert facts["failed"] == {"broken": "NothingToCompare: nobody came"}
    assert "growth" in (folder / BENCH_FILE).read_text(encoding="utf-8")


def test_what_was_measured_before_a_kill_is_read_and_what_was_not_is_named(tmp_path: Path) -> None:
    killed = (
        "import os, signal, typer\n"
        "from dataclasses import replace\n"
        "from benchmarks import __main__ as command, rows\n"
        "growth = next(row for row in rows.ROWS if row.name == 'growth')\n"
        "def measure(size):\n"
        "    yield from growth.measure(size)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "rest = [replace(growth, name=name, measure=measure) for name in ('cut', 'late')]\n"
        "command.ROWS = (growth, *rest)\n"
        "typer.run(command.main)"
    )
    arguments = ["--quick", "--fake", "--rows", "growth,cut,late", "--out", str(tmp_path / "results")]
    done = subprocess.run([sys.executable, "-c", killed, *arguments], cwd=ROOT / "tests", check=False)
    assert done.returncode == -signal.SIGTERM
    (run,) = read_results([tmp_path]).runs
    assert run.provenance["failed"] == dict.fromkeys(("cut", "late"), command.CUT_OFF)
    assert "native sltt: cnn, 3×8×8, batch 4, T = 32, fp32" in run.provenance["ran"]
    report = ["report", str(tmp_path / "results"), "--format", "markdown", "--out", str(tmp_path / "report")]
    done = CliRunner().invoke(app, report)
    assert done.exit_code == 0, done.output
    text = next((tmp_path / "report").glob("*.md")).read_text(encoding="utf-8")
    assert f"late was not measured by run {run.path.name}: {command.CUT_OFF}." in text
    assert "native sltt, T = 32" in text


@pytest.fixture
def current_device(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine with two GPUs; of which of them torch takes its streams, at the end of the list."""
    current = [0]
    torch.backends.cudnn.version()  # it remembers, and would ask the GPUs
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.append(torch.device(device).index))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Example GPU")
    return current


def test_rows_are_measured_with_the_gpu_that_was_asked_for_as_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, current_device: list[int]
) -> None:
    """A graph is captured on a stream of the current GPU: on another it would record nothing."""
    measured: list[tuple[str, int]] = []

    def measure(size: Size) -> Any:
        measured.append((size.device, current_device[-1]))
        return iter(())

    monkeypatch.setattr(command, "ROWS", (replace(ROWS[0], measure=measure),))
    assert bench("--device", "cuda:1", "--rows", ROWS[0].name, "--out", tmp_path).exit_code == 0
    assert bench("--device", "cuda", "--rows", ROWS[0].name, "--out", tmp_path).exit_code == 0
    assert measured == [("cuda:1", 1), ("cuda:0", 0)]
    refused = bench("--device", "cuda:2", "--rows", ROWS[0].name, "--out", tmp_path)
    assert refused.exit_code == 2
    assert "sees 2 GPUs here" in " ".join(refused.output.replace("│", " ").split())


def test_a_capture_that_breaks_off_ends_its_row_and_no_other_is_begun_on_that_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks_off(problem: Problem) -> Made:
        raise CaptureFailed("the iteration could not be captured")

    def measure(size: Size) -> Any:
        broken = Competitor("b", breaks_off)
        return rows._times("first", cifar_resnet18(), [keeper("a", 1)], [([broken], None)], size)

    chosen = (replace(ROWS[0], name="first", measure=measure), replace(ROWS[3]))
    monkeypatch.setattr(command, "ROWS", chosen)
    done = bench("--quick", "--rows", "first,growth", "--out", tmp_path)
    assert done.exit_code == 1
    (folder,) = (tmp_path / "bench").iterdir()
    assert not (folder / BENCH_FILE).exists()
    facts = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    assert facts["failed"] == {
        "first": "CaptureFailed: b: the iteration could not be captured",
        "growth": "not begun in this process: the capture of a graph broke off in first",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "cuda:0", "--clock", "process"), "use --clock wall"),
        (("--rows", "memory-slt"), "no row memory-slt; known: memory-sltt"),
        (("--clock", "sun"), "choose wall or process"),
        (("--fake", "--device", "cuda"), "fake tensors are on the CPU"),
        (("--device", "cuda"), "torch sees no CUDA GPU here"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what_is_known(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = bench(*arguments, "--out", tmp_path)
    assert done.exit_code == 2
    output = " ".join(done.output.replace("│", " ").split())
    assert message in output
    assert not any(tmp_path.iterdir())


def test_the_page_names_the_code_of_which_a_cpus_times_are() -> None:
    page = " ".join((ROOT / "docs" / "native-backend.md").read_text(encoding="utf-8").split())
    revisions = {}
    for path in sorted((ROOT / "results" / "bench").glob("*/bench.csv")):
        facts = read_provenance(path.parent)
        with path.open(encoding="utf-8", newline="") as file:
            timed = {row["row"] for row in csv.DictReader(file) if row["quantity"].endswith("_s")}
        if facts["size"]["device"] == "cpu":
            revisions.update(dict.fromkeys(timed, facts["git_revision"][:7]))
    exact, saving = revisions.pop("recompute-bptt-time"), revisions.pop("recompute-bptt-time-memopt")
    (usual,) = set(revisions.values())
    assert f"24 November 2026, of the code of commit {usual}. BPTT unit by unit" in page
    assert f"is of 29 November, of commit {exact}; its row" in page
    assert f"is of the same day, of commit {saving}. None" in page


def test_what_the_page_says_of_the_memory_optimisation_was_counted() -> None:
    page = " ".join((ROOT / "docs" / "native-internals.md").read_text(encoding="utf-8").split())
    counted = {}
    for path in sorted((ROOT / "results" / "bench").glob("*/bench.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            counted.update({(row["row"], row["baseline"]): row for row in csv.DictReader(file)})
    exact = counted["recompute-bptt-vgg11", "SpikingJelly LIFNode multi-step, spikes as bits in 5 chunks"]
    usual = counted["memory-bptt", "SpikingJelly LIFNode multi-step, blocks checkpointed in 3 chunks"]
    mib = {
        name: [float(row[f"{side}_value"]) / 2**20 for side in ("subject", "baseline")]
        for name, row in (("exact", exact), ("usual", usual))
    }
    assert (
        f"takes {float(exact['ratio']):.2f} of it at the best of six settings ({mib['exact'][0]:.1f} against "
        f"{mib['exact'][1]:.1f} MiB, five chunks of time)" in page
    )
    assert (
        f"it takes {mib['usual'][0]:.1f} MiB against {mib['usual'][1]:.1f}, {float(usual['ratio']):.1f} times as much"
        in page
    )


def test_the_rows_can_be_listed() -> None:
    done = bench("--list")
    assert done.exit_code == 0
    assert all(row.name in done.output for row in ROWS)


def test_launches_are_counted_by_kernel_and_by_operation() -> None:
    problem = replace(launches.PROBLEMS[0], network=PreActResNetOptions(width=4), timesteps=3)
    counted = launches.launches_of(launches.native("sltt"), problem)
    layers, convolutions = 17, 19 * 3 + 1  # the stem sees the image once
    assert [counted.of[f"native: {name}"] for name in ("forward", "statistics")] == [3 * layers] * 2
    assert counted.of["convolution"] == convolutions
    assert 0 < counted.small < counted.of.total()
    reference = launches.launches_of(this_project("reference", "sltt"), problem)
    assert not any(name.startswith("native: ") for name in reference.of)
    assert reference.of.total() > 1.5 * counted.of.total()
