"""Set-up in one command, with nothing but Python ≥ 3.11: `python3 bootstrap.py run` or `... test`.

run      makes .venv, installs sltt-bench there, trains on the digits with three methods, estimates their
         memory at other numbers of time steps, and reports
test     makes .venv-test, installs sltt-bench with its test tools there, lints, type-checks, tests
prepare  makes .venv-test and no more: what `test` begins with

uv installs, which takes a fifth of pip's processor time; pip fetches it where it is missing, and installs itself where
uv fails. --cpu takes torch's build without CUDA, a tenth of the download, from torch's own index.
"""

import argparse
import ast
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
TESTED = ".[test]"
# uv reads none of pip's settings: what pip was told about where packages come from, uv is told by these options.
UV_OPTIONS = {
    "index-url": "--default-index",
    "extra-index-url": "--index",
    "find-links": "--find-links",
    "constraint": "--constraints",
    "trusted-host": "--allow-insecure-host",
}


def main() -> None:
    """Parse the command and do it; the exit code is that of the first step that fails."""
    if sys.version_info < (3, 11):  # noqa: UP036 (this file is what an older Python meets first)
        sys.exit(
            f"sltt-bench needs Python 3.11 or newer; this is {sys.version.split()[0]} ({sys.executable})"
        )
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["run", "test", "prepare"])
    parser.add_argument("--cpu", action="store_true", help=f"torch without CUDA, from {CPU_INDEX}")
    parser.add_argument("arguments", nargs="*", help="passed on to sltt-bench run, or to pytest")
    known, extra = parser.parse_known_args()
    os.chdir(HERE)
    # uv compiles nothing: each process that may not keep what it compiled would compile all of torch anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if known.what == "prepare":
        environment(HERE / ".venv-test", TESTED, known.cpu)
        return
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
    python = environment(HERE / ".venv-test", TESTED, cpu)
    say("ruff")
    step([python, "-m", "ruff", "check", "."])
    step([python, "-m", "ruff", "format", "--check", "."])
    say("import directions")
    step([str(Path(python).with_name("lint-imports"))])
    say("mypy, and beside it pytest, three processes with one thread each, which wait a third of their time")
    single = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    pytest, settings = [python, "-m", "pytest"], {**os.environ, **single}
    chosen = arguments or ["-n", "3", "--dist", "worksteal", "-q"]
    with ThreadPoolExecutor() as side:
        types = side.submit(
            subprocess.run, [python, "-m", "mypy"], capture_output=True, text=True, check=False
        )
        if not arguments and not (HERE / "tests" / "__pycache__").exists():
            # One process compiles what all tests load, 20 s of it. Three that begin at once would each compile it.
            listed = [*pytest, "--collect-only", "-q"]
            subprocess.run(listed, env=settings, stdout=subprocess.DEVNULL, check=False)
        tests = subprocess.run([*pytest, *chosen], env=settings, check=False)
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
    """With uv, as pip is configured; what uv cannot get, pip tries."""
    quiet = [] if sys.stdout.isatty() else ["--quiet"]
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", *quiet]
    uv = shutil.which("uv") or str(python.with_name("uv.exe" if os.name == "nt" else "uv"))
    if not Path(uv).exists():
        subprocess.run([*pip, "uv"], check=False)
    if Path(uv).exists():
        settings = pip_settings(python)
        options = uv_options({} if "--index-url" in wanted else settings)
        certificates = {"SSL_CERT_FILE": settings["cert"]} if "cert" in settings else {}
        command = [uv, "pip", "install", "--python", str(python), *quiet, *options, *wanted]
        if subprocess.run(command, check=False, env={**certificates, **os.environ}).returncode == 0:
            return
        say("uv did not get it; trying pip")
    step([*pip, *wanted])


def pip_settings(python: Path) -> dict[str, str]:
    """What pip's files and environment set, by option; the environment wins, as it does in pip."""
    listed = subprocess.run(
        [str(python), "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    pairs = (line.partition("=") for line in (listed.stdout or "").splitlines() if "=" in line)
    by_rank = sorted((key.startswith(":env:"), key.rpartition(".")[2], value) for key, _, value in pairs)
    return {key: ast.literal_eval(value) for _, key, value in by_rank}


def uv_options(settings: dict[str, str]) -> list[str]:
    """uv's options for pip's settings; of several indexes the best version counts, as it does in pip."""
    options = [
        part
        for key, option in UV_OPTIONS.items()
        for value in settings.get(key, "").split()
        for part in (option, value)
    ]
    return [*options, *(["--index-strategy", "unsafe-best-match"] if "extra-index-url" in settings else [])]


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
