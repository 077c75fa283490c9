"""Set-up in one command, with nothing but Python ≥ 3.11: `python3 bootstrap.py run` or `... test`.

run   makes .venv, installs sltt-bench there, trains on the digits with three methods, estimates their
      memory at other numbers of time steps, and reports
test  makes .venv-test, installs sltt-bench with its test tools there, lints, type-checks, tests

uv installs where it is present and reaches its index, else pip. --cpu takes torch's build without CUDA, a tenth of the
download, from torch's own index.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
DOWNLOAD = "torch's CUDA build is about 5 GB on disk; it runs on a CPU too"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def main() -> None:
    """Parse the command and do it; the exit code is that of the first step that fails."""
    if sys.version_info < (3, 11):  # noqa: UP036 (this file is what an older Python meets first)
        sys.exit(
            f"sltt-bench needs Python 3.11 or newer; this is {sys.version.split()[0]} ({sys.executable})"
        )
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["run", "test"])
    parser.add_argument("--cpu", action="store_true", help=f"torch without CUDA, from {CPU_INDEX}")
    parser.add_argument("arguments", nargs="*", help="passed on to sltt-bench run, or to pytest")
    known, extra = parser.parse_known_args()
    os.chdir(HERE)
    {"run": run_digits, "test": run_tests}[known.what](known.arguments + extra, known.cpu)


def run_digits(arguments: list[str], cpu: bool) -> None:
    """The main job: the embedded recipe with three methods, its memory over T, and the report."""
    python = environment(HERE / ".venv", ".", cpu)
    say("training on the digits with BPTT, SLTT and SLTT-K (K = 2): about a minute")
    tool = [python, "-m", "sltt_bench"]
    out = "my-results"
    chosen = ["digits", "--method", "bptt,sltt,sltt-k2", "--out", out]
    step([*tool, "run", *chosen, *arguments])
    say("estimating memory against T, the number of time steps: seconds")
    step([*tool, "estimate", *chosen, "--device", "cpu", "--timesteps", "1,2,4,6,8"])
    say("comparing")
    step([*tool, "report", out])


def run_tests(arguments: list[str], cpu: bool) -> None:
    """Lint, types and tests, on a CPU and without data from outside."""
    python = environment(HERE / ".venv-test", ".[test]", cpu)
    say("ruff")
    step([python, "-m", "ruff", "check", "."])
    step([python, "-m", "ruff", "format", "--check", "."])
    say("import directions")
    step([str(Path(python).with_name("lint-imports"))])
    say("mypy, and beside it pytest, two processes with one thread each")
    single = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    chosen = arguments or ["-n", "2", "--dist", "worksteal", "-q"]
    with ThreadPoolExecutor() as side:
        types = side.submit(
            subprocess.run, [python, "-m", "mypy"], capture_output=True, text=True, check=False
        )
        tests = subprocess.run([python, "-m", "pytest", *chosen], env={**os.environ, **single}, check=False)
        checked = types.result()
    say("mypy")
    print(checked.stdout, checked.stderr, flush=True)
    sys.exit(tests.returncode or checked.returncode)


def environment(folder: Path, requirement: str, cpu: bool) -> str:
    """The Python of a virtual environment with `requirement` installed, made or completed if need be."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    done = folder / ".installed"
    wanted = hashlib.sha256((HERE / "pyproject.toml").read_bytes()).hexdigest()
    if done.exists() and done.read_text() == wanted:
        say(f"using {folder.name}")
        return str(python)
    if not python.exists():
        say(f"making the virtual environment {folder.name}")
        shutil.rmtree(folder, ignore_errors=True)
        try:
            venv.create(folder, with_pip=True)
        except (subprocess.CalledProcessError, OSError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            sys.exit(
                f"this Python cannot make a virtual environment ({error}); on Debian and Ubuntu: apt install python3-venv"
            )
    if cpu:
        say(f"installing torch without CUDA from {CPU_INDEX}")
        install(python, "torch", "torchvision", "--index-url", CPU_INDEX)
    say(
        f"installing {requirement} and what it needs" + ("" if cpu else f" ({DOWNLOAD}; two to five minutes)")
    )
    install(python, "-e", requirement)
    done.write_text(wanted)
    return str(python)


def install(python: Path, *wanted: str) -> None:
    """With uv where it is present; what it cannot get (it knows none of pip's settings) pip tries."""
    quiet = [] if sys.stdout.isatty() else ["--quiet"]
    if (uv := shutil.which("uv")) is not None:
        command = [uv, "pip", "install", "--python", str(python), *quiet, *wanted]
        if subprocess.run(command, check=False).returncode == 0:
            return
        say("uv did not get it; trying pip")
    step([str(python), "-m", "pip", "install", "--disable-pip-version-check", *quiet, *wanted])


def say(text: str) -> None:
    """One line about what happens next."""
    print(f"[bootstrap {time.strftime('%H:%M:%S')}] {text}", flush=True)


def step(command: list[str], env: dict[str, str] | None = None) -> None:
    """Run one command; its failure ends the whole."""
    code = subprocess.run(command, env=env, check=False).returncode
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
