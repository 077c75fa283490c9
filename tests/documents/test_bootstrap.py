"""What the two commands of the README run, and with what they install."""

import importlib.util
import os
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
from checkout import ROOT


class Recorder:
    """In the place of subprocess.run; commands that hold a word of `failing` fail."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.failing = ""
        self.pip_config = ""
        self.environments: list[dict[str, str]] = []

    def __call__(
        self, command: list[str], env: dict[str, str] | None = None, **_: object
    ) -> "subprocess.CompletedProcess[str]":
        if command[2:] == ["pip", "config", "list"]:
            return subprocess.CompletedProcess(command, 0, self.pip_config)
        self.commands.append(list(map(str, command)))
        self.environments.append(env or {})
        fails = bool(self.failing) and self.failing in (Path(command[0]).name, *command[2:3], command[0])
        return subprocess.CompletedProcess(command, int(fails))


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(subprocess, "run", recorder)
    return recorder


@pytest.fixture
def bootstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "bootstrap.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "pyproject.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.setattr(module.shutil, "which", lambda _: None)

    def create(folder: Path, with_pip: bool) -> None:
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "python").touch()
        (folder / "bin" / "uv").touch()  # as if pip had fetched it

    monkeypatch.setattr(module.venv, "create", create)
    return module


def call(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["bootstrap.py", *arguments])
    bootstrap.main()


def test_run_installs_once_then_trains_estimates_and_reports(
    bootstrap: ModuleType, commands: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(bootstrap, monkeypatch, "run", "--seed", "0,1")
    install, *rest = commands.commands
    assert Path(install[0]).name == "uv"
    assert install[-2:] == ["-e", "."]
    assert [command[3] for command in rest] == ["run", "estimate", "report"]
    assert rest[0][-2:] == ["--seed", "0,1"]
    commands.commands.clear()
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    call(bootstrap, monkeypatch, "run")
    assert [command[3] for command in commands.commands] == ["run", "estimate", "report"]
    assert "PYTHONDONTWRITEBYTECODE" not in os.environ, "torch would be compiled anew by each process"


def test_test_runs_every_check_and_ends_at_the_first_that_fails(
    bootstrap: ModuleType, commands: Recorder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match="0"):
        call(bootstrap, monkeypatch, "test")
    text = [" ".join(command) for command in commands.commands]
    for number, part in enumerate((".[test]", "ruff check", "ruff format", "lint-imports")):
        assert part in text[number]
    assert {command[2] for command in commands.commands[4:]} == {"mypy", "pytest"}
    for failing in ("mypy", "pytest"):
        commands.failing = failing
        with pytest.raises(SystemExit, match="1"):
            call(bootstrap, monkeypatch, "test")
    commands.failing = ""
    for cold in (True, False):
        commands.commands.clear()
        with pytest.raises(SystemExit, match="0"):
            call(bootstrap, monkeypatch, "test")
        listed = ["--collect-only" in command for command in commands.commands if "pytest" in command]
        assert listed == [True, False][1 - cold :], "what tests load is compiled once, by one process"
        (tmp_path / "tests" / "__pycache__").mkdir(parents=True, exist_ok=True)
    commands.commands.clear()
    commands.failing = "lint-imports"
    with pytest.raises(SystemExit, match="1"):
        call(bootstrap, monkeypatch, "test")
    assert "lint-imports" in commands.commands[-1][0]


def test_cpu_takes_torch_from_its_own_index_first(
    bootstrap: ModuleType, commands: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(bootstrap, monkeypatch, "run", "--cpu")
    torch, package = commands.commands[:2]
    assert torch[-4:] == ["torch", "torchvision", "--index-url", "https://download.pytorch.org/whl/cpu"]
    assert "--index-url" not in package


def test_uv_is_fetched_where_it_is_missing_and_pip_installs_where_uv_fails(
    bootstrap: ModuleType, commands: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap.shutil, "which", lambda _: "/bin/sh")  # a file that exists
    call(bootstrap, monkeypatch, "run")
    assert commands.commands[0][:3] == ["/bin/sh", "pip", "install"]
    assert not any("pip" in command[2:3] for command in commands.commands[1:])
    for file in Path().glob(".venv/.installed"):
        file.unlink()
    commands.commands.clear()
    commands.failing = "/bin/sh"
    call(bootstrap, monkeypatch, "run")
    assert commands.commands[0][0] == "/bin/sh"
    assert commands.commands[1][1:4] == ["-m", "pip", "install"]
    for file in (*Path().glob(".venv/.installed"), *Path().glob(".venv/bin/uv")):
        file.unlink()
    commands.commands.clear()
    monkeypatch.setattr(bootstrap.shutil, "which", lambda _: None)
    call(bootstrap, monkeypatch, "run")
    assert commands.commands[0][-1] == "uv"
    assert commands.commands[1][-2:] == ["-e", "."]
    assert commands.commands[1][1:4] == ["-m", "pip", "install"], "the index had no uv"


def test_uv_is_told_what_pip_is_configured_with(
    bootstrap: ModuleType, commands: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    commands.pip_config = (
        ":env:.index-url='https://env.example/simple'\n"
        "global.cert='/etc/ssl/own.pem'\n"
        "global.extra-index-url='https://a.example https://b.example'\n"
        "global.index-url='https://file.example/simple'\n"
        "global.timeout='60'\n"
    )
    call(bootstrap, monkeypatch, "run")
    text = " ".join(commands.commands[0])
    assert "--default-index https://env.example/simple" in text
    assert "file.example" not in text, "the environment wins"
    assert "--index https://a.example --index https://b.example" in text
    assert "--index-strategy unsafe-best-match" in text, "uv else takes the first index that has the package"
    assert "timeout" not in text
    assert commands.environments[0]["SSL_CERT_FILE"] == "/etc/ssl/own.pem"


def test_prepare_installs_and_runs_nothing(
    bootstrap: ModuleType, commands: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(bootstrap, monkeypatch, "prepare")
    assert [command[-2:] for command in commands.commands] == [["-e", ".[test]"]]
    commands.commands.clear()
    with pytest.raises(SystemExit, match="0"):
        call(bootstrap, monkeypatch, "test")
    assert not any("install" in command for command in commands.commands), "prepared once"
