"""`python -m tests.benchmarks.gpu --out DIR`: all measurements that need a GPU, most important first.

Each step runs one of the project's commands in its own process, so lack of memory, a crash or a hang ends
only that step. A step writes its rows as it measures them; its outcome is written when it ends (`steps.csv`).
A second start skips steps that ended, resumes those that were cut off, and runs those for which there was no
time.

Until a step starts, only Python's own library is imported, since a machine may lack the rest, which `--wheels`
provides.
"""

import argparse
import csv
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
STEPS_FILE, RESULTS, PACKAGES, LOGS = "steps.csv", "results", "packages", "logs"
LEAST_S = 20.0
"""With fewer seconds left, no step is started."""
START_S = 8.0
"""Seconds that the process of a step, or of a cell, takes to start on the machine of an H200."""
PR_SET_PDEATHSIG = 1
"""prctl(2)'s option for the signal that a process gets when its parent dies."""
GRACE_S = 10.0
"""Seconds that a stopped step has to write its rows."""
ITERATIONS = 4
"""Iterations of an epoch; there are three epochs, of which the first is cold."""

OF_EVERY_STEP = ("sltt_bench.running.worker", "sltt_bench.kinds.training")
OF_TESTS = ("pytest", "hypothesis")
OF_NATIVE = ("triton",)
OF_SPIKINGJELLY = ("spikingjelly.activation_based.neuron", "spikingjelly.activation_based.memopt")
MODULES = (*OF_EVERY_STEP, *OF_TESTS, *OF_NATIVE, *OF_SPIKINGJELLY, "scipy.stats")
"""Modules that the steps and the report of their results import, and that a machine may lack."""


@dataclass(frozen=True)
class Step:
    """One command, `python -m MODULE ARGUMENTS`."""

    name: str
    says: str
    module: str
    arguments: tuple[str, ...]
    limit_s: float = 150.0
    least_s: float = LEAST_S
    """With fewer seconds left, it is not started."""
    needs: tuple[str, ...] = OF_EVERY_STEP
    """Of MODULES those without which it would fail."""

    @property
    def command(self) -> list[str]:
        """The arguments of its process."""
        return [sys.executable, "-m", self.module, *self.arguments]

    def __str__(self) -> str:
        return " ".join(("python", "-m", self.module, *self.arguments))


class Evidence:
    """The folder of the evidence, with the steps' results and outcomes."""

    COLUMNS = ("step", "status", "exit_code", "cells", "seconds", "limit_s", "command", "started_utc")
    ENDED = ("ok", "failed")
    """The statuses of steps that ended; without time to end, it is "cut". A cell that runs out of memory is a
    result and fails no step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results = folder / RESULTS
        (folder / LOGS).mkdir(parents=True, exist_ok=True)

    def statuses(self) -> dict[str, str]:
        """Returns step → its last status."""
        return {step: row["status"] for step, row in self._latest().items()}

    def used_up(self, step: Step) -> bool:
        """Whether the step was last cut off although it had all its time, so that it may hang."""
        row = self._latest().get(step.name)
        return row is not None and row["status"] == "cut" and float(row["limit_s"]) >= round(step.limit_s)

    def _latest(self) -> dict[str, dict[str, str]]:
        path = self.folder / STEPS_FILE
        if not path.exists():
            return {}
        with path.open(encoding="utf-8", newline="") as file:
            return {row["step"]: row for row in csv.DictReader(file)}

    def cells(self) -> Counter[str]:
        """Returns status → number of cells that ended with it."""
        counts: Counter[str] = Counter()
        for path in self.results.glob("*/*/cells.csv"):
            with path.open(encoding="utf-8", newline="") as file:
                counts.update(row["status"] for row in csv.DictReader(file))
        return counts

    def append(self, row: Mapping[str, object]) -> None:
        """Add an outcome, which is on the disk when this returns."""
        path = self.folder / STEPS_FILE
        new = not path.exists()
        with path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self.COLUMNS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            os.fsync(file.fileno())


# What is run ------------------------------------------------------------------------------------

PAPER = {
    "imagenet-resnet34": (256, ("bptt", "sltt", "sltt-k1", "sltt-k2")),
    "cifar10-resnet18": (128, ("bptt", "sltt", "sltt-k1", "sltt-k2")),
    "cifar100-resnet18": (128, ("bptt", "sltt", "sltt-k1", "sltt-k2")),
    "dvs-cifar10-vgg11": (128, ("bptt", "sltt", "sltt-k1", "sltt-k2")),
    "dvs-gesture-vgg11": (16, ("bptt", "sltt", "sltt-k1", "sltt-k2", "sltt-k4")),
    "imagenet-resnet101": (256, ("bptt", "sltt")),
}
"""Recipe → the paper's batch, and the methods measured; the largest networks run out of memory."""

FURTHER_RULES = (
    "bptt-ckpt2", "tbptt-w2", "ottt", "rate", "bptt-d0.5", "bptt-l1", "sltt-a2", "s-tllr", "pp-prop", "e-prop",
)  # fmt: skip
"""One method of each kind that is not in PAPER. All serve the paper's networks, which lack the adaptive
thresholds behind convolutions that e-prop does not serve. Left out are variants (`ottt-o`,
`sltt-kN-unbiased`) and `conversion`, which trains no spiking network."""


NO_GRAPHS = "native.graphs=never"
GRAPHS = "native.graphs=never,auto"
"""Memory is compared without graphs, whose replays do not change the allocator's counters; time also with."""

LAST_WANTED = "more-rules"
"""The last of the steps that are wanted most."""

ROUNDS = 8
"""Rounds of a row of the benchmark, as in the committed rows of an H200."""

ROW_S = {
    "gpu-time-sltt-preact-resnet18": 30, "gpu-time-bptt": 21, "gpu-time-sltt-vgg11": 28, "gpu-time-sltt-nf-resnet34": 44,
    "norm-within-neurons": 9, "nvml-sampling": 7, "recompute-bptt-time": 4, "sltt-k1-against-bptt": 24,
    "recompute-bptt-time-memopt": 30,
}  # fmt: skip
"""Row of the benchmark → seconds on an H200, without its process's start (the last: guessed from others)."""


AGAINST_SPIKINGJELLY = (
    "recompute-bptt-time-memopt",
    "gpu-time-bptt",
    *(row for row in ROW_S if "gpu-time-sltt" in row),
)
"""Rows that compare with it."""


def steps(out: Path, *, rehearse: bool = False, device: str = "cuda:0") -> list[Step]:
    """Returns all steps, the most important first.

    Up to LAST_WANTED, these are measurements that no GPU has made yet, or only of code that has changed much
    since, and the paper's largest experiment with the three seeds that its claims need. By the committed
    results of an H200 and START_S for each process, they take 9 minutes besides the tests: two starts of 6
    and a half. Steps that lose their rows if they are cut off come before runs, whose finished cells stay, so
    that a first start ends with complete rows. Estimates come last, since any machine can make them without a
    GPU. `rehearse`: at toy size.
    """
    commands = _Commands(out, rehearse, device)
    run, bench = commands.run, commands.bench
    in_order = [
        bench("sltt-k1-against-bptt"),
        bench("recompute-bptt-time"),
        bench("recompute-bptt-time-memopt"),
        commands.tests("tests", "kernels, replay and precision on the card itself", "not cell and not flat"),
        run("paper-imagenet", "imagenet-resnet34"),
        run("seeds-imagenet", "imagenet-resnet34", methods=("bptt", "sltt", "sltt-k1"), seeds="0,1"),
        run("native-imagenet", "imagenet-resnet34", "native", ("bptt", "sltt", "sltt-k1"), NO_GRAPHS),
        run("curve-imagenet101", "imagenet-resnet101", grid="6,1"),
        run("native-cifar10", "cifar10-resnet18", "native", ("bptt", "sltt", "sltt-k1"), GRAPHS),
        run("more-rules", "cifar10-resnet18", methods=FURTHER_RULES),
        run("compiled-cifar10", "cifar10-resnet18", "native", ("bptt", "sltt"), "native.compile=true", NO_GRAPHS),
        commands.tests("tests-of-memory", "memory is flat on the card itself", "flat"),
        bench("gpu-time-sltt-preact-resnet18"),
        bench("gpu-time-bptt"),
        bench("gpu-time-sltt-vgg11"),
        bench("norm-within-neurons"),
        bench("gpu-time-sltt-nf-resnet34"),
        bench("nvml-sampling"),
        run("exact-imagenet", "imagenet-resnet34", "native", ("bptt",), "native.recompute=true", NO_GRAPHS),
        run("paper-cifar10", "cifar10-resnet18"),
        run("paper-cifar100", "cifar100-resnet18"),
        run("paper-dvs-gesture", "dvs-gesture-vgg11"),
        run("paper-dvs-cifar10", "dvs-cifar10-vgg11"),
        run("curve-cifar10", "cifar10-resnet18", methods=("bptt", "sltt", "sltt-k1"), grid="8,4,2,1"),
        run("curve-imagenet101-rest", "imagenet-resnet101", grid="4,2,8"),
        commands.tests("tests-of-cells", "out of memory and replay, as cells", "cell"),
        commands.estimate("estimate-imagenet", "imagenet-resnet34"),
        commands.estimate("estimate-cifar10", "cifar10-resnet18"),
    ]  # fmt: skip
    return [replace(step, limit_s=1800, least_s=LEAST_S) for step in in_order] if rehearse else in_order


@dataclass(frozen=True)
class _Commands:
    out: Path
    rehearse: bool
    device: str

    def run(
        self,
        name: str,
        recipe: str,
        backend: str = "reference",
        methods: Sequence[str] = (),
        *settings: str,
        grid: str = "",
        seeds: str = "",
    ) -> Step:
        """A recipe at the paper's batch and precision, for few iterations on random data.

        `seeds` replaces the recipe's.
        """
        _, usual = PAPER[recipe]
        arguments = ["run", recipe, "--method", self._few(methods or usual), "--backend", backend]
        arguments += ["--synthetic", "--init", "random", "--no-estimate", "--resume"]
        arguments += ["--device", self.device, *self._size(recipe, grid, settings)]
        arguments += ["--seed", seeds] * bool(seeds)
        says = f"{recipe}, {backend}: memory and time"
        return Step(name, says, "sltt_bench", tuple(arguments), needs=self._needs(native=backend == "native"))

    def estimate(self, name: str, recipe: str) -> Step:
        """The estimate of a run, which the report shows next to the measured figures."""
        arguments = ["estimate", recipe, "--method", self._few(PAPER[recipe][1]), "--resume"]
        arguments += ["--device", self.device.partition(":")[0], *self._size(recipe, "", ())]
        return Step(name, f"{recipe}: the estimates of what was measured", "sltt_bench", tuple(arguments))

    def bench(self, row: str) -> Step:
        """A row of the benchmark: native against the best alternatives of others.

        Each row has its own process, so a step that is cut off is repeated without repeating finished rows.
        It is not started if too little time is left, since nothing of a row remains if it is cut off.
        """
        arguments = ["--rows", row, "--out", str(self.out / RESULTS), "--device", self.device]
        arguments += ["--quick", "--rounds", "2"] if self.rehearse else ["--rounds", str(ROUNDS)]
        least_s = max(LEAST_S, START_S + ROW_S[row])
        needs = (*self._needs(native=True), *(OF_SPIKINGJELLY if row in AGAINST_SPIKINGJELLY else ()))
        says = "a row of tests.benchmarks"
        return Step(row, says, "tests.benchmarks", tuple(arguments), least_s=least_s, needs=needs)

    def tests(self, name: str, says: str, which: str) -> Step:
        """The tests that need a GPU and whose names match `which`, an expression for pytest's -k."""
        files = [
            path
            for path in sorted((ROOT / "tests").rglob("test_*.py"))
            if "mark.gpu" in path.read_text("utf-8")
        ]
        arguments = [str(path.relative_to(ROOT)) for path in files]
        arguments += ["-m", "gpu", "-k", which, "-v", "-p", "no:cacheprovider"]
        arguments += ["--collect-only"] * (self.device == "cpu")
        return Step(name, says, "pytest", tuple(arguments), needs=(*self._needs(native=True), *OF_TESTS))

    def _needs(self, *, native: bool) -> tuple[str, ...]:
        return (*OF_EVERY_STEP, *(OF_NATIVE if native and self.device != "cpu" else ()))

    def _size(self, recipe: str, grid: str, settings: Sequence[str]) -> Iterator[str]:
        batch, _ = PAPER[recipe]
        if self.rehearse:
            yield "--smoke"
            grid = ",".join(sorted(grid.split(",")[-2:]))
            settings = (*settings, "train.epochs=2", "train.checkpoint_every=0")
        else:
            samples = f"data.synthetic_samples={ITERATIONS * batch}"
            settings = (*settings, samples, "train.epochs=3", "train.checkpoint_every=0")
        for setting in (*settings, *([f"timesteps={grid}"] if grid else [])):
            yield from ("--set", setting)
        yield from ("--out", str(self.out / RESULTS))

    def _few(self, methods: Sequence[str]) -> str:
        return ",".join(methods[:2] if self.rehearse else methods)


# Running it -------------------------------------------------------------------------------------

Execute = Callable[[Step, Path, float, Mapping[str, str]], int | None]
"""(step, file for its output, seconds, environment) → exit code; None if it was stopped after the seconds."""


def execute(step: Step, log: Path, limit_s: float, environment: Mapping[str, str]) -> int | None:
    """Run a step in its own process and session; after `limit_s` it is asked to end, then killed."""
    with log.open("ab") as output:
        output.write(f"$ {step}\n".encode())
        output.flush()
        process = subprocess.Popen(
            step.command, cwd=ROOT, env=dict(environment), stdout=output, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_end_with_the_parent,
        )  # fmt: skip
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end(process)


def _end_with_the_parent() -> None:
    """Called in a step's new process: let it end when this command is killed.

    Otherwise, a second start would measure while the first one's step still runs.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the process, if it still runs, and all that it started."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def collect(
    evidence: Evidence,
    chosen: Sequence[Step],
    *,
    seconds: float,
    environment: Mapping[str, str],
    run: Execute = execute,
    say: Callable[[str], None] = print,
) -> list[Step]:
    """Run the steps that have not ended yet, as far as `seconds` suffice; returns the steps left.

    Steps that may hang come last, since they would take their whole time in every start.
    """
    deadline = time.monotonic() + seconds
    left = []
    statuses = evidence.statuses()
    for step in sorted(chosen, key=evidence.used_up):
        if statuses.get(step.name) in Evidence.ENDED:
            say(f"{step.name}: {statuses[step.name]} before")
            continue
        time_left_s = deadline - time.monotonic() - GRACE_S
        if time_left_s < step.least_s:
            left.append(step)
            continue
        limit_s = min(step.limit_s, time_left_s)
        say(f"{step.name}: {step.says}")
        started, begun, before = time.monotonic(), datetime.now(UTC), evidence.cells()
        code = run(step, evidence.folder / LOGS / f"{step.name}.log", limit_s, environment)
        cells = evidence.cells() - before
        status = (
            "cut" if code is None else "ok" if code == 0 or _only_memory_ran_out(code, cells) else "failed"
        )
        evidence.append({
            "step": step.name, "status": status, "exit_code": code,
            "cells": ", ".join(f"{count} {how}" for how, count in sorted(cells.items())),
            "seconds": f"{time.monotonic() - started:.1f}", "limit_s": f"{limit_s:.0f}", "command": str(step),
            "started_utc": begun.isoformat(timespec="seconds"),
        })  # fmt: skip
        say(f"  {status} after {time.monotonic() - started:.0f} s")
        if status == "cut":
            left.append(step)
    return left


def _only_memory_ran_out(code: int, cells: Counter[str]) -> bool:
    """Whether a run failed only since some of its cells ran out of memory."""
    return code == 1 and "oom" in cells and set(cells) <= {"ok", "oom"}


def install(wheels: Path, target: Path) -> list[str]:
    """Install those wheels of a folder whose packages this machine lacks into `target`; returns their names.

    Installed packages are not shadowed, so torch keeps the versions that it was installed with. A wheel that cannot
    be installed, as one for another Python, keeps none of the others out.
    """
    missing = [wheel for wheel in sorted(wheels.glob("*.whl")) if not _is_installed(wheel.name.split("-")[0])]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    pip += ["--upgrade", "--target", str(target)]
    if not missing or subprocess.run([*pip, *map(str, missing)], check=False).returncode == 0:
        return [wheel.name for wheel in missing]
    return [
        wheel.name for wheel in missing if subprocess.run([*pip, str(wheel)], check=False).returncode == 0
    ]


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def lacking(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns module of MODULES that cannot be imported → why."""
    code = (
        "import importlib\n"
        f"for name in {MODULES!r}:\n"
        "    try: importlib.import_module(name)\n"
        "    except Exception as error: print(name, type(error).__name__, error, sep='\\t')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=dict(environment),
        capture_output=True,
        text=True,
        check=False,
    )
    actual = re.findall(r"^([\w.]+)\t(.*)$", done.stdout, flags=re.MULTILINE)
    return {name: reason.replace("\t", ": ") for name, reason in actual}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 all steps ended well, 1 some failed or were not run. Wrong usage exits with 2."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(
        "python -m tests.benchmarks.gpu", description=__doc__, allow_abbrev=False
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="The folder of the evidence; a second start goes on in it.")
    add("--minutes", type=float, default=8.0, help="No step runs beyond this (default: 8).")
    add("--wheels", type=Path, help="Folder of wheels for what this machine lacks.")
    add("--steps", default="", help="Names of steps, separated by commas.")
    add("--rehearse", action="store_true", help="At toy size: does every step run?")
    add("--device", default="", help="cuda:N; to rehearse also cpu.")
    add("--list", action="store_true", help="Show the steps in order and stop.")
    given = parser.parse_args(arguments)
    out = given.out.resolve()
    device = given.device or ("cpu" if given.rehearse else "cuda:0")
    if not given.rehearse and not device.startswith("cuda"):
        parser.error(f"--device {device}: measures nothing that is asked here; give cuda:N")
    if given.wheels is not None and not given.wheels.is_dir():
        parser.error(f"--wheels {given.wheels}: there is no such folder")
    known = {step.name: step for step in steps(out, rehearse=given.rehearse, device=device)}
    names = [name.strip() for name in given.steps.split(",") if name.strip()] or list(known)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"--steps: no step {', '.join(unknown)}; known: {', '.join(known)}")
    if given.list:
        for name in names:
            print(f"{name:32} {known[name]}")
        return 0
    evidence = Evidence(out)
    if given.wheels is not None:
        installed = install(given.wheels.resolve(), out / PACKAGES)
        print("installed beside:", ", ".join(installed) or "nothing was missing")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            (str(ROOT), str(out / PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")]))
        ),
        "PYTHONUNBUFFERED": "1",
    }
    absent = lacking(environment)
    for module, reason in absent.items():
        print(
            f"{module} is missing here ({reason}): steps that need it are not begun; --wheels DIR brings it along"
        )
    ready = [known[name] for name in names if absent.keys().isdisjoint(known[name].needs)]
    seconds = given.minutes * 60 - (time.monotonic() - began)
    left = collect(evidence, ready, seconds=seconds, environment=environment)
    for step in left:
        print(f"no time for {step.name}: {step}")
    if kept_out := [name for name in names if known[name] not in ready]:
        print(f"not begun for lack of a module: {', '.join(kept_out)}; a second start begins them")
    print(f"tables and verdicts: sltt-bench report {evidence.results}")
    statuses = evidence.statuses()
    return int(any(statuses.get(name) != "ok" for name in names))


if __name__ == "__main__":
    sys.exit(main())
