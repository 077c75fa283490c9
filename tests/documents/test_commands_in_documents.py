"""Every command that README and docs show: the shell takes it apart, and the command line accepts it.

What is quick is run; what trains is planned (`--dry-run`), which resolves recipe, methods, overrides and grid; the rest
is parsed with every option and value. Of other programs' commands, the files, modules, tests and extras that they name exist.
"""

import importlib.util
import re
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from checkout import ROOT
from typer.testing import CliRunner

from sltt_bench.command_line.cli import app

DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "recipes").rglob("*.yaml")),
]
PLACES = {
    "results/digits/RUN": "results/digits/20261123-213337-d52b",
    "DIR": "data",
    "NAME": "digits",
    "FOLDER": "results/digits",
    "RECIPE": "digits",
    "PATH": "random",
    "FILE": "gpus.yaml",
}
"""What a reader puts in the place of a word in capitals."""
RUN_AT_ONCE = {"list", "show", "schema"}
PLANNED = {"run", "tune", "analyze"}
SHELL = """
PATH=/nonexistent
command_not_found_handle() { printf '%s\\x1f' "$@"; printf '\\n'; }
for code; do (eval "$code"); done
"""
"""Knows no command, and prints each with its arguments in place of running it."""


def code_of(document: Path) -> Iterator[str]:
    """Blocks without a language or of a shell, and code in a line that is a command."""
    text = document.read_text(encoding="utf-8")
    if document.suffix == ".yaml":
        yield from re.findall(r"^#   (sltt-bench .*)$", text, re.MULTILINE)
        return
    fences = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    yield from (code for language, code in fences if language in ("", "sh", "console", "bash"))
    without_blocks = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^((?:    [^\n]*\n)+)", without_blocks, re.MULTILINE)
    yield from (code for code in indented if "sltt-bench" in code)
    yield from (code for code in re.findall(r"`(sltt-bench [^`]+)`", without_blocks) if "…" not in code)


def commands_of(documents: Sequence[Path]) -> list[list[str]]:
    """Program and arguments of every command, as a shell makes them of the documents' code; one shell reads them all."""
    codes = []
    for code in (code for document in documents for code in code_of(document)):
        code = re.sub(r"^\s*\$ ", "", code, flags=re.MULTILINE).replace("\\|", "|")
        code = re.sub(r"^\.venv[\w-]*/bin/", "", code, flags=re.MULTILINE)
        codes.append(re.sub(r">\s*[\w./-]+", "", code))  # this shell writes no files
    with tempfile.TemporaryDirectory() as nowhere:
        command = ["bash", "-c", SHELL, "bash", *codes]
        done = subprocess.run(command, cwd=nowhere, capture_output=True, text=True, check=False)
    calls = [line.split("\x1f")[:-1] for line in done.stdout.splitlines()]
    return [[PLACES.get(word, word) for word in call] for call in calls]


ALL = commands_of(DOCUMENTS)
CALLS = {
    " ".join(call): call
    for program, *call in ALL
    if program == "sltt-bench"
    and not call[-1].endswith("...")
    and call[0] != "--install-completion"  # it would, for whoever runs the tests
}
OTHERS = {" ".join(call): call for call in ALL if call[0] != "sltt-bench"}


def accepted(arguments: list[str]) -> None:
    """Parse as the command line does, verb by verb, without running. Raises UsageError (of click, which newer Typers bring along).

    A sentence may name a verb alone, without what it needs.
    """
    command: Any = typer.main.get_command(app)
    context = None
    while True:
        alone = context is not None and not arguments
        context = command.make_context(
            command.name or "sltt-bench", list(arguments), parent=context, resilient_parsing=alone
        )
        if not hasattr(command, "resolve_command"):
            return
        _, actual, arguments = command.resolve_command(context, [*context._protected_args, *context.args])
        assert actual is not None
        command = actual


def test_documents_show_commands_of_every_verb() -> None:
    assert len(CALLS) > 40
    assert {call[0] for call in CALLS.values()} >= {
        "run",
        "report",
        "estimate",
        "analyze",
        "list",
        "doctor",
        "init",
    }


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        ("estimate digits --memry 24GiB", "No such option"),
        ("reprot results", "No such command"),
        ("compare results", "Missing argument|Missing parameter"),
    ],
)
def test_what_the_command_line_does_not_know_is_not_accepted(call: str, fault: str) -> None:
    with pytest.raises(Exception, match=fault):
        accepted(call.split())


@pytest.mark.parametrize("call", CALLS)
def test_a_command_of_the_documents_works(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = CALLS[call]
    monkeypatch.chdir(ROOT)
    result = None
    made = any(word.endswith(".yaml") and not Path(word).exists() for word in arguments)
    if made or any("traced-l" in word for word in arguments):
        accepted(arguments)  # a recipe or a method that its page makes: the page's own test runs it
    elif arguments[0] in PLANNED and arguments not in (["run"], ["tune"], ["analyze", "gradients"]):
        result = CliRunner().invoke(app, [*arguments, "--dry-run"])
    elif arguments[0] in RUN_AT_ONCE:
        result = CliRunner().invoke(app, arguments)
    else:
        accepted(arguments)
    if result is not None:
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize("call", OTHERS)
def test_what_a_command_of_another_program_names_exists(call: str) -> None:
    program, *arguments = OTHERS[call]
    assert program in PROGRAMS, "a misspelt program, or one to be added to PROGRAMS"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    for named in re.findall(r"sltt-bench\[([\w,-]+)\]", call):
        assert set(named.split(",")) <= set(extras), named
    if program not in ("python", "python3"):
        return
    match arguments:
        case ["-m", "pytest", *rest]:
            assert_tests_exist(rest)
        case ["-m", module, *_]:
            assert importlib.util.find_spec(module) is not None, module
        case [script, *_] if script.endswith(".py"):
            assert (ROOT / script).exists(), script


PROGRAMS = {
    "cp",
    "python",
    "python3",
    "pip",
    "pipx",
    "uv",
    "uvx",
    "mkdocs",
    "pre-commit",
    "docker",
    "apptainer",
}


def assert_tests_exist(arguments: list[str]) -> None:
    """Of a pytest command: its files are there, and the words behind -k occur in names of their tests."""
    files = [ROOT / word.partition("::")[0] for word in arguments if word.startswith("tests")]
    assert files
    assert all(file.exists() for file in files), files
    names = " ".join(" ".join(re.findall(r"def (test_\w+)", file.read_text("utf-8"))) for file in files)
    wanted = arguments[arguments.index("-k") + 1] if "-k" in arguments else ""
    for word in set(re.findall(r"\w+", wanted)) - {"and", "or", "not"}:
        assert word in names, word
