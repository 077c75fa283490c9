"""What the two commands of the README run, and with what they install."""

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


class Recorder:
    """In the place of subprocess.run; commands that hold a word of `failing` fail."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.failing = ""

    def __call__(self, command: list[str], **_: object) -> "subprocess.CompletedProcess[str]":
        self.commands.append(list(map(str, command)))
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
    assert install[1:4] == ["-m", "pip", "install"]
    assert install[-2:] == ["-e", "."]
    assert [command[3] for command in rest] == ["run", "estimate", "report"]
    assert rest[0][-2:] == ["--seed", "0,1"]
    commands.commands.clear()
    call(bootstrap, monkeypatch, "run")
    assert [command[3] for command in commands.commands] == ["run", "estimate", "report"]


def test_test_runs_every_check_and_ends_at_the_first_that_fails(
    bootstrap: ModuleType, commands: Recorder, monkeypatch: pytest.MonkeyPatch
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


def test_uv_installs_where_it_is_and_pip_where_uv_fails(
    bootstrap: ModuleType, commands: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap.shutil, "which", lambda _: "/opt/uv")
    call(bootstrap, monkeypatch, "run")
    assert commands.commands[0][:3] == ["/opt/uv", "pip", "install"]
    assert not any("pip" in command[2:3] for command in commands.commands[1:])
    for file in Path().glob(".venv/.installed"):
        file.unlink()
    commands.commands.clear()
    commands.failing = "/opt/uv"
    call(bootstrap, monkeypatch, "run")
    assert commands.commands[0][0] == "/opt/uv"
    assert commands.commands[1][1:4] == ["-m", "pip", "install"]
