"""The command that collects what only a GPU can show: its order, its limits, its second start; and a rehearsal."""

import csv
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from io import StringIO
from pathlib import Path

import pytest
import typer
from benchmarks import __main__ as benchmarks_command
from benchmarks import gpu
from benchmarks.gpu import Evidence, Step, collect, steps
from benchmarks.rows import ROWS
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.testing import CliRunner

from sltt_bench.command_line.cli import app
from sltt_bench.methods import METHODS


def rows(evidence: Evidence) -> list[dict[str, str]]:
    with (evidence.folder / gpu.STEPS_FILE).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def csv_rows(evidence: Evidence, name: str) -> list[dict[str, str]]:
    """Of the one file of that name among the results."""
    (path,) = evidence.results.glob(f"*/*/{name}")
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def in_this_process(step: Step, log: Path, limit_s: float, environment: Mapping[str, str]) -> int:
    """As `gpu.execute`, without the seconds that a process takes to load torch; cells are forked."""
    command = app
    if step.module == "tests.benchmarks":
        command = typer.Typer()
        command.command()(benchmarks_command.main)
    done = CliRunner().invoke(command, list(step.arguments))
    log.write_text(done.output, encoding="utf-8")
    return done.exit_code


@dataclass(frozen=True)
class Invoked:
    """What a call of the command came to."""

    exit_code: int
    output: str


def invoked(*arguments: str) -> Invoked:
    with redirect_stdout(StringIO()) as output, redirect_stderr(output):
        try:
            code = gpu.main(arguments)
        except SystemExit as end:
            code = int(str(end.code))
    return Invoked(code, output.getvalue())


# The steps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", steps(Path("out")), ids=lambda step: step.name)
def test_every_step_is_a_command_that_the_project_understands(step: Step) -> None:
    if step.module == "tests.benchmarks":
        assert step.arguments[1] in {row.name for row in ROWS if row.on != "cpu"}, "one row a process"
    elif step.module == "pytest":
        assert "tests/backends/test_on_a_gpu.py" in step.arguments
    else:
        arguments = [*step.arguments, "--dry-run"]
        if arguments[0] == "estimate":
            arguments = ["run", *arguments[1:], "--init", "random"]
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output


def test_what_is_wanted_most_comes_first_and_the_paper_at_its_own_size() -> None:
    in_order = steps(Path("out"))
    names = [step.name for step in in_order]
    assert len(set(names)) == len(names)
    wanted = names[: names.index(gpu.LAST_WANTED) + 1]
    assert set(wanted) == {
        "tests", "sltt-k1-against-bptt", "recompute-bptt-time", "recompute-bptt-time-memopt", "paper-imagenet",
        "seeds-imagenet", "native-imagenet", "curve-imagenet101", "native-cifar10", "more-rules",
    }  # fmt: skip
    missed = ["sltt-k1-against-bptt", "recompute-bptt-time", "recompute-bptt-time-memopt"]
    assert names[:4] == [*missed, "tests"], "the targets that were missed, and what has not been measured"
    assert {row.name for row in ROWS if row.on == "cuda"} <= set(names)
    page = " ".join((gpu.ROOT / "docs" / "native-internals.md").read_text(encoding="utf-8").split())
    assert f"The steps up to `{gpu.LAST_WANTED}` are what is wanted most" in page
    assert all("estimate" in name for name in names[-2:]), "they need no card"
    paper = next(step for step in in_order if step.name == "paper-imagenet")
    done = CliRunner().invoke(app, [*paper.arguments, "--dry-run"])
    assert "4 cells" in done.output.replace("\n", " "), done.output
    assert not any("timesteps" in argument or "batch_size" in argument for argument in paper.arguments)


def test_the_gpu_tests_are_divided_into_steps_none_left_out_and_none_twice() -> None:
    """So that one which is cut off loses what it has alone."""
    divided = {step.name: step.arguments for step in steps(Path("out")) if step.module == "pytest"}
    words = {name: arguments[arguments.index("-k") + 1] for name, arguments in divided.items()}
    assert words == {"tests": "not cell and not flat", "tests-of-memory": "flat", "tests-of-cells": "cell"}
    files = {argument for arguments in divided.values() for argument in arguments if argument.endswith(".py")}
    source = "".join((gpu.ROOT / file).read_text(encoding="utf-8") for file in files)
    names = [*files, *re.findall(r"^def (test_\w+)", source, re.MULTILINE)]
    assert sum("flat" in name for name in names) == 1
    assert not any("flat" in name and "cell" in name for name in names)


def test_the_papers_experiments_and_every_rule_for_its_networks_are_measured() -> None:
    measured = [step.arguments[1:4:2] for step in steps(Path("out")) if step.arguments[0] == "run"]
    recipes = {recipe for recipe, _ in measured}
    assert recipes == {
        "imagenet-resnet34", "imagenet-resnet101", "cifar10-resnet18", "cifar100-resnet18", "dvs-cifar10-vgg11",
        "dvs-gesture-vgg11",
    }  # fmt: skip
    rules = {method for _, methods in measured for method in methods.split(",")}
    left = {
        entry.label
        for pattern, entry in METHODS.items()
        if not any(re.fullmatch(pattern, rule) for rule in rules)
    }
    assert left == {"conversion", "ottt-o", "sltt-kN-unbiased"}, (
        "which are variants, or train no spiking network"
    )
    assert {"sltt-k2", "sltt-k4"} <= set(gpu.PAPER["dvs-gesture-vgg11"][1])


def test_a_rehearsal_is_on_the_cpu_or_on_the_card_and_nothing_else_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for device, arguments in (("cpu", ()), ("cuda:1", ("--device", "cuda:1"))):
        done = rehearsal(tmp_path, monkeypatch, "--list", *arguments)
        commands = [
            line
            for line in done.output.splitlines()
            if "tests.benchmarks" in line or "sltt_bench run" in line
        ]
        assert len(commands) > 10
        assert all(f"--device {device}" in command for command in commands)
        assert ("--collect-only" in done.output) == (device == "cpu")
    refused = invoked("--out", str(tmp_path), "--device", "cpu", "--list")
    assert refused.exit_code == 2
    assert "measures nothing" in refused.output
    absent = invoked("--out", str(tmp_path), "--wheels", str(tmp_path / "absent"), "--list")
    assert absent.exit_code == 2


def test_memory_of_native_is_measured_without_graphs_whose_replay_no_counter_sees() -> None:
    native = [step for step in steps(Path("out")) if "native" in step.arguments]
    assert {step.name for step in native} == {
        "exact-imagenet",
        "native-imagenet",
        "native-cifar10",
        "compiled-cifar10",
    }
    for step in native:
        assert any(argument.startswith("native.graphs=never") for argument in step.arguments), step.name
    assert ["native.compile=true" in step.arguments for step in native].count(True) == 1, (
        "of which no card knows yet"
    )


# Running them -------------------------------------------------------------------------------------


def python(name: str, code: str, limit_s: float = 60) -> Step:
    """A step that is a line of Python; unittest, of all modules, runs one given as a file."""
    return Step(name, "", "timeit", ("-n", "1", "-r", "1", code), limit_s)


def collected(evidence: Evidence, *chosen: Step, seconds: float = 300) -> list[str]:
    left = collect(evidence, chosen, seconds=seconds, environment=os.environ, say=lambda line: None)
    return [step.name for step in left]


def test_what_crashes_or_hangs_ends_its_own_step_alone(tmp_path: Path) -> None:
    evidence = Evidence(tmp_path)
    crash = python("crash", "import os; os.abort()")
    child = "import subprocess, time; subprocess.Popen(['sleep', '987']); print('begun', flush=True); time.sleep(60)"
    hang = python("hang", child, limit_s=1)
    assert collected(evidence, crash, hang, python("fine", "print(6 * 7)")) == ["hang"]
    assert [(row["step"], row["status"]) for row in rows(evidence)] == [
        ("crash", "failed"), ("hang", "cut"), ("fine", "ok"),
    ]  # fmt: skip
    assert rows(evidence)[0]["exit_code"] == "-6"
    assert "42" in (tmp_path / "logs" / "fine.log").read_text(encoding="utf-8")
    running = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert b"sleep\x00987\x00" not in running, "what a step started ends with it"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_a_step_ends_when_its_command_is_killed(tmp_path: Path) -> None:
    """Or it would use the GPU beside the second start's."""
    log = tmp_path / "step.log"
    step = "print(__import__('os').getpid(), flush=True); __import__('time').sleep(60)"
    code = (
        "import os, sys; from pathlib import Path; from benchmarks import gpu; "
        f"step = gpu.Step('step', '', 'timeit', ('-n', '1', '-r', '1', {step!r})); "
        "gpu.execute(step, Path(sys.argv[1]), 60, os.environ)"
    )
    command = subprocess.Popen([sys.executable, "-c", code, str(log)], cwd=gpu.ROOT / "tests")
    number: list[str] = []
    try:
        within(
            20, lambda: number.extend(log.read_text().splitlines()[1:2]) or number if log.exists() else None
        )
    finally:
        command.kill()
        command.wait()
    within(10, lambda: not lives(number[0]))


def lives(process: str) -> bool:
    """Zombies, whose command line is empty, do not."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes() != b""
    except OSError:
        return False


def within(seconds: float, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)


def test_a_second_start_runs_what_was_cut_off_or_not_begun_and_nothing_else(tmp_path: Path) -> None:
    evidence = Evidence(tmp_path)
    chosen = [python("done", "pass"), python("bad", "1 / 0"), python("slow", "pass"), python("late", "pass")]
    ran: list[str] = []
    codes = {"bad": 1, "slow": None}

    def run(step: Step, log: Path, limit_s: float, environment: Mapping[str, str]) -> int | None:
        ran.append(step.name)
        return codes.get(step.name, 0)

    def start(*of: Step, seconds: float) -> list[str]:
        left = collect(evidence, of, seconds=seconds, environment={}, run=run, say=lambda line: None)
        return [step.name for step in left]

    assert start(*chosen[:3], seconds=40) == ["slow"]
    assert start(chosen[3], seconds=gpu.LEAST_S + gpu.GRACE_S - 1) == ["late"], (
        "there is too little time to begin it"
    )
    ran.clear()
    codes["slow"] = 0
    assert start(*chosen, seconds=300) == []
    assert ran == ["slow", "late"]
    assert evidence.statuses() == {"done": "ok", "bad": "failed", "slow": "ok", "late": "ok"}


def test_what_was_cut_off_after_all_its_time_comes_last_in_the_next_start(tmp_path: Path) -> None:
    """It may hang: first again, it would take the same time from the others in every start."""
    evidence = Evidence(tmp_path)
    chosen = [python("hangs", "pass", limit_s=30), python("slow", "pass"), python("late", "pass")]
    ran: list[str] = []

    def run(step: Step, log: Path, limit_s: float, environment: Mapping[str, str]) -> int | None:
        ran.append(step.name)
        return None

    for seconds in (45, 300):  # of which "slow" gets all that is left, which is less than it may have
        collect(evidence, chosen, seconds=seconds, environment={}, run=run, say=lambda line: None)
    assert ran == ["hangs", "slow", "late", "slow", "late", "hangs"]


def test_a_row_is_not_begun_without_the_time_that_it_took_and_what_comes_after_it_is(tmp_path: Path) -> None:
    """Of a row that is cut off nothing stays, of a run the cells that have ended."""
    evidence = Evidence(tmp_path)
    known = {step.name: step for step in steps(Path("out"))}
    chosen = [known["gpu-time-sltt-nf-resnet34"], known["exact-imagenet"]]
    ran: list[str] = []

    def run(step: Step, log: Path, limit_s: float, environment: Mapping[str, str]) -> int:
        ran.append(step.name)
        return 0

    def start(seconds: float) -> list[str]:
        left = collect(evidence, chosen, seconds=seconds, environment={}, run=run, say=lambda line: None)
        return [step.name for step in left]

    assert start(gpu.START_S + 44 + gpu.GRACE_S - 1) == ["gpu-time-sltt-nf-resnet34"]
    assert start(gpu.START_S + 44 + gpu.GRACE_S + 1) == []
    assert ran == ["exact-imagenet", "gpu-time-sltt-nf-resnet34"]
    rows_of_steps = {step.name: step for step in known.values() if step.module == "tests.benchmarks"}
    assert set(rows_of_steps) == set(gpu.ROW_S)
    measured = csv.DictReader(
        (gpu.ROOT / "results/bench/20261127-084453-2979/bench.csv").open(encoding="utf-8")
    )
    assert {int(row["rounds"]) for row in measured} == {gpu.ROUNDS}, "it took that for so many rounds"
    assert all(f"--rounds {gpu.ROUNDS}" in str(step) for step in rows_of_steps.values())


@pytest.mark.parametrize(
    ("cells", "code", "status", "noted"),
    [
        (("ok", "oom", "oom"), 1, "ok", "1 ok, 2 oom"),
        (("ok", "error"), 1, "failed", "1 error, 1 ok"),
        (("ok", "oom"), 2, "failed", "1 ok, 1 oom"),
        ((), 1, "failed", ""),
    ],
)
def test_a_cell_out_of_memory_is_a_result_and_any_other_failure_fails_its_step(
    cells: tuple[str, ...], code: int, status: str, noted: str, tmp_path: Path
) -> None:
    evidence = Evidence(tmp_path)
    for run, statuses in (("before", ("error",)), ("now", cells)):

        def execute(
            step: Step, log: Path, limit_s: float, environment: Mapping[str, str], run: str = run,
            statuses: tuple[str, ...] = statuses,
        ) -> int:  # fmt: skip
            folder = evidence.results / "digits" / run
            folder.mkdir(parents=True)
            (folder / "cells.csv").write_text("\n".join(["status", *statuses, ""]), encoding="utf-8")
            return code

        collect(evidence, [python(run, "")], seconds=100, environment={}, run=execute, say=lambda line: None)
    assert evidence.statuses()["now"] == status
    assert rows(evidence)[-1]["cells"] == noted


def test_no_step_may_run_beyond_the_time_that_is_left(tmp_path: Path) -> None:
    limits = []

    def run(step: Step, log: Path, limit_s: float, environment: Mapping[str, str]) -> int:
        limits.append(limit_s)
        return 0

    chosen = [python("short", "", limit_s=30), python("long", "", limit_s=1000)]
    collect(Evidence(tmp_path), chosen, seconds=100, environment={}, run=run, say=lambda line: None)
    assert limits == [30, pytest.approx(100 - gpu.GRACE_S, abs=1)]


# What a machine lacks ------------------------------------------------------------------------------


def wheel(folder: Path, package: str, code: str) -> None:
    about = f"{package}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{package}-1.0-py3-none-any.whl", "w") as file:
        file.writestr(f"{package}.py", code)
        file.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        file.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{about}/RECORD", "")


def test_wheels_bring_what_is_missing_and_shadow_nothing(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel(wheels, "sltt_bench_absent", "here = True\n")
    wheel(wheels, "torch", "raise RuntimeError('another torch')\n")
    assert gpu.install(wheels, tmp_path / "packages") == ["sltt_bench_absent-1.0-py3-none-any.whl"]
    assert (tmp_path / "packages" / "sltt_bench_absent.py").exists()
    assert not (tmp_path / "packages" / "torch.py").exists()


def test_a_wheel_that_cannot_be_installed_keeps_no_other_out(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel(wheels, "sltt_bench_absent", "here = True\n")
    (wheels / "of_another-1.0-cp27-cp27m-win32.whl").write_bytes(b"")
    assert gpu.install(wheels, tmp_path / "packages") == ["sltt_bench_absent-1.0-py3-none-any.whl"]
    assert (tmp_path / "packages" / "sltt_bench_absent.py").exists()


def test_a_step_that_lacks_a_module_is_not_begun_and_left_to_a_second_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    def run(step: Step, log: Path, limit_s: float, environment: Mapping[str, str]) -> int:
        begun.append(step.name)
        return 0

    monkeypatch.setattr(gpu.collect, "__kwdefaults__", {**gpu.collect.__kwdefaults__, "run": run})
    names = "recompute-bptt-time,recompute-bptt-time-memopt,tests,native-cifar10,paper-cifar10"
    for absent, left in (
        ("sltt_bench.kinds.training", names.split(",")),  # for want of pydantic, for example
        ("hypothesis", ["tests"]),
        ("triton", ["recompute-bptt-time", "recompute-bptt-time-memopt", "tests", "native-cifar10"]),
        ("spikingjelly.activation_based.memopt", ["recompute-bptt-time-memopt"]),
        ("scipy.stats", []),
    ):
        monkeypatch.setattr(gpu, "lacking", lambda environment, absent=absent: {absent: "it is gone"})
        out = tmp_path / absent
        done = invoked("--out", str(out), "--steps", names)
        assert done.exit_code == int(bool(left))
        assert sorted([*begun, *left]) == sorted(names.split(","))
        assert list(Evidence(out).statuses()) == begun
        assert (f"not begun for lack of a module: {', '.join(left)}" in done.output) == bool(left)
        begun.clear()


def test_modules_that_cannot_be_imported_are_named_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "MODULES", ("json", "no_such.module"))
    assert gpu.lacking(os.environ) == {"no_such.module": "ModuleNotFoundError: No module named 'no_such'"}


USED = """
import conftest, benchmarks.__main__, test_on_a_gpu, test_precision, test_profiler, test_synchronisation
import sltt_bench.command_line.cli, sltt_bench.running.runner, sltt_bench.running.worker, sltt_bench.kinds.training, sltt_bench.kinds.estimates
from spikingjelly.activation_based import memopt, neuron
from typer.testing import CliRunner
report = ["report", "results/digits", "--format", "markdown", "--out", sys.argv[1] + "/report"]
done = CliRunner().invoke(sltt_bench.command_line.cli.app, report)
assert done.exit_code == 0, done.output
"""
"""What steps, the GPU tests and the report of the results import; the report loads some of it late."""
WITHOUT = """
import sys
from importlib.machinery import PathFinder
find, hidden, begun = PathFinder.find_spec, set(sys.argv[2:]), set(sys.modules)
PathFinder.find_spec = lambda name, *where: None if name.partition(".")[0] in hidden else find(name, *where)
"""
"""Modules that are named as arguments are not found."""


@dataclass(frozen=True)
class OfTheMachine:
    """Packages by their names in an index, with what they need."""

    expected: set[str]
    brought: set[str]


@pytest.fixture(scope="module")
def documented() -> OfTheMachine:
    """What the page says."""
    text = (gpu.ROOT / "docs" / "native-internals.md").read_text(encoding="utf-8")
    expects = re.search(r"The command expects (.+?) there, with what\s+they need", text, re.DOTALL)
    assert expects
    brought: set[str] = set()
    for line in re.findall(r"^pip download (.*)$", text.replace("\\\n", ""), re.MULTILINE):
        named = re.sub(r"--(?:dest|only-binary|python-version|platform)[ =]\S+", "", line).split()
        alone = "--no-deps" in named
        named = [name for name in named if name != "--no-deps"]
        brought |= set(map(canonicalize_name, named)) if alone else with_what_they_need(named)
    return OfTheMachine(with_what_they_need(re.findall(r"`([\w.-]+)`", expects[1])), brought)


def with_what_they_need(packages: Iterable[str]) -> set[str]:
    known: set[str] = set()
    left = list(packages)
    while left:
        if (name := canonicalize_name(left.pop())) in known:
            continue
        known.add(name)
        with suppress(PackageNotFoundError):  # a wheel for a CPU needs less of a GPU's libraries
            needs = [Requirement(line) for line in requires(name) or ()]
            left += [
                need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})
            ]
    return known


def loaded_by(code: str, folder: Path, *, hidden: Iterable[str] = ()) -> set[str]:
    """The packages that a fresh process has loaded after the code."""
    code = f"{WITHOUT}{code}\nprint(*{{name.partition('.')[0] for name in set(sys.modules) - begun}})"
    tests = gpu.ROOT / "tests"
    path = os.pathsep.join(
        map(str, (gpu.ROOT, tests, *(tests / part for part in ("backends", "measure", "training"))))
    )
    process = subprocess.run(
        [sys.executable, "-c", code, str(folder), *hidden], cwd=gpu.ROOT, env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    owners = packages_distributions()
    modules = process.stdout.splitlines()[-1].split()
    return {canonicalize_name(owner) for module in modules for owner in owners.get(module, [])}


def test_the_page_downloads_whatever_a_machine_lacks_and_that_is_tried_before_the_first_step(
    documented: OfTheMachine, tmp_path: Path
) -> None:
    pytest.importorskip("spikingjelly")
    pytest.importorskip("triton")
    there = documented.expected | documented.brought
    hidden = {
        module
        for module, owners in packages_distributions().items()
        if there.isdisjoint(map(canonicalize_name, owners)) and "sltt-bench" not in owners
    }
    assert "sklearn" in hidden
    used = loaded_by(USED, tmp_path, hidden=hidden) - documented.expected
    assert {"psutil", "scipy", "hypothesis", "loguru"} <= used
    assert "pydantic-core" in documented.brought, "not every typer needs it"
    tried = loaded_by("\n".join(f"import {module}" for module in gpu.MODULES), tmp_path)
    assert used - tried - {"sltt-bench"} == set()


def test_it_starts_with_nothing_but_python() -> None:
    """What a machine lacks is installed by it."""
    source = Path(gpu.__file__).read_text(encoding="utf-8")
    imported = {
        line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import", "from"))
    }
    assert imported <= set(sys.stdlib_module_names)


# The rehearsal -------------------------------------------------------------------------------------


def rehearsal(out: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Invoked:
    monkeypatch.setattr(gpu, "lacking", lambda environment: {})
    return invoked("--out", str(out), "--rehearse", *arguments)


def test_a_rehearsal_measures_estimates_and_compares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(gpu.collect, "__kwdefaults__", {**gpu.collect.__kwdefaults__, "run": in_this_process})
    monkeypatch.setattr(gpu, "PAPER", {**gpu.PAPER, "cifar10-resnet18": (128, ("sltt",))})
    done = rehearsal(tmp_path, monkeypatch, "--steps", "paper-cifar10,estimate-cifar10,nvml-sampling")
    assert done.exit_code == 0, done.output
    evidence = Evidence(tmp_path)
    assert evidence.statuses() == dict.fromkeys(("paper-cifar10", "estimate-cifar10", "nvml-sampling"), "ok")
    measured = csv_rows(evidence, "epochs.csv")
    assert [row["method"] for row in measured] == ["sltt", "sltt"]
    assert all(float(row["train_s"]) > 0 for row in measured)
    (estimated,) = csv_rows(evidence, "estimates.csv")
    assert int(estimated["peak_tensor_bytes"]) > 0
    (sampling,) = csv_rows(evidence, "bench.csv")
    assert sampling["row"] == "nvml-sampling"


def test_steps_are_chosen_by_name_and_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = rehearsal(tmp_path, monkeypatch, "--list", "--steps", "nvml-sampling")
    assert listed.exit_code == 0
    assert "python -m tests.benchmarks --rows nvml-sampling" in listed.output
    wrong = rehearsal(tmp_path, monkeypatch, "--steps", "nvml")
    assert wrong.exit_code == 2
    assert "no step nvml" in wrong.output


@pytest.mark.long
def test_a_rehearsal_of_all_steps_in_processes_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = rehearsal(tmp_path, monkeypatch, "--minutes", "30")
    assert done.exit_code == 0, done.output
    evidence = Evidence(tmp_path)
    assert set(evidence.statuses().values()) == {"ok"}
    report = CliRunner().invoke(
        app, ["report", str(evidence.results), "--format", "markdown", "--out", str(tmp_path / "report")]
    )
    assert report.exit_code == 0, report.output
    text = next((tmp_path / "report").glob("*.md")).read_text(encoding="utf-8")
    assert "Estimated beside measured" in text
    assert "nvml-sampling" in text
