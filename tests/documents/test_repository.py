"""The files that make a repository: workflows, templates, containers, the version and its citation."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from check_jsonschema import main as check_jsonschema
from checkout import ROOT
from click.testing import CliRunner

from sltt_bench import __version__
from sltt_bench.common.yaml_text import read_yaml

SCHEMAS = {
    "github-workflows": [".github/workflows/ci.yml", ".github/workflows/release.yml"],
    "dependabot": [".github/dependabot.yml"],
    "github-issue-forms": [".github/ISSUE_TEMPLATE/fault.yml", ".github/ISSUE_TEMPLATE/proposal.yml"],
    "github-issue-config": [".github/ISSUE_TEMPLATE/config.yml"],
    "citation-file-format": ["CITATION.cff"],
}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_what_github_reads_satisfies_its_schema(schema: str) -> None:
    files = [str(ROOT / file) for file in SCHEMAS[schema]]
    result = CliRunner().invoke(check_jsonschema, ["--builtin-schema", f"vendor.{schema}", *files])
    assert result.exit_code == 0, result.output


WITHOUT_UNIX = """
import os, signal, sys
for module in ("pwd", "grp", "termios"):
    sys.modules[module] = None
for name in ("SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGKILL", "SIGALRM", "pthread_sigmask"):
    delattr(signal, name)
for name in ("killpg", "setsid", "getpgid", "getpgrp", "fork", "sched_getaffinity", "EX_SOFTWARE", "getuid", "geteuid"):
    delattr(os, name)
signal.Signals = [each for each in signal.Signals if each.name in ("SIGINT", "SIGTERM")]
from typer.testing import CliRunner
from sltt_bench.command_line.cli import app
for arguments in (["--help"], ["list"], ["show", "digits"], ["run", "digits", "--dry-run"]):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, (arguments, result.output, result.exception)
"""


def test_the_command_line_starts_where_there_is_no_unix() -> None:
    """What the workflow tries on Windows: without Unix's signals, modules and calls."""
    commands = (ROOT / ".github/workflows/ci.yml").read_text()
    for command in ("sltt-bench list", "sltt-bench show digits", "sltt-bench run digits --dry-run"):
        assert command in commands
    done = subprocess.run([sys.executable, "-c", WITHOUT_UNIX], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_file_that_github_reads_is_left_out() -> None:
    checked = {str(ROOT / file) for files in SCHEMAS.values() for file in files}
    assert {str(path) for path in (ROOT / ".github").rglob("*.yml")} <= checked


@pytest.mark.parametrize("command", [["hadolint", "Dockerfile"], ["pre-commit", "validate-config"]], ids=str)
def test_containers_and_hooks_pass_their_linters(command: list[str]) -> None:
    tool = Path(sys.executable).with_name(command[0])
    done = subprocess.run([tool, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_both_containers_install_the_same() -> None:
    install = 'pip install --no-cache-dir "/opt/sltt-bench[events]"'
    for file in ("Dockerfile", "apptainer.def"):
        assert install in (ROOT / file).read_text()


def test_ci_runs_the_command_of_the_readme_on_every_python_that_is_supported() -> None:
    text = (ROOT / ".github/workflows/ci.yml").read_text()
    assert "python3 bootstrap.py test" in text
    assert "python3 bootstrap.py test" in (ROOT / "README.md").read_text()
    assert "python3 bootstrap.py test" in (ROOT / ".ci/run").read_text()
    for version in ("3.11", "3.12", "3.13"):
        assert f'"{version}"' in text


def test_the_version_stands_in_one_place_and_the_citation_follows() -> None:
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()
    assert read_yaml(ROOT / "CITATION.cff")["version"] == __version__


def test_a_name_of_a_class_stands_for_one_thing_in_the_package() -> None:
    files: dict[str, list[str]] = {}
    for path in sorted((ROOT / "sltt_bench").rglob("*.py")):
        for name in re.findall(r"^class (\w+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE):
            files.setdefault(name, []).append(path.name)
    assert {name: paths for name, paths in files.items() if len(paths) > 1} == {}
