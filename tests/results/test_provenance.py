"""Provenance: what it holds, that it names nobody, and whose git revision it gives."""

import getpass
import json
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import psutil
import pytest
import torch

import sltt_bench
from sltt_bench import provenance
from sltt_bench.common.source_digest import source_sha256
from sltt_bench.results.private_paths import text_without_private_paths, without_private_paths


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main"]
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository that holds a package, a recipe and results."""
    for name in ("pyproject.toml", "package/__init__.py", "recipes/digits.yaml", "results/epochs.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("as committed")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    return tmp_path


def test_the_digest_of_the_source_is_what_the_public_command_says(checkout: Path) -> None:
    (checkout / "package" / "inner").mkdir()
    (checkout / "package" / "inner" / "b.py").write_text("second")
    (checkout / "package" / "inner.py").write_text("sorted before the folder's files")
    (checkout / "package" / "notes.txt").write_text("is no code")
    command = "find package -name '*.py' | LC_ALL=C sort | xargs sha256sum | sha256sum"
    said = subprocess.run(
        ["sh", "-c", command], cwd=checkout, check=True, capture_output=True, text=True
    ).stdout
    before = source_sha256(checkout / "package")
    assert before == said.split()[0]
    (checkout / "package" / "inner" / "b.py").write_text("changed, and not committed")
    assert source_sha256(checkout / "package") != before


# What it holds ----------------------------------------------------------------------------------


def test_the_command_lines_part_needs_no_torch_and_is_plain_json() -> None:
    code = (
        "import json, sys; from sltt_bench import provenance; "
        "print(json.dumps([provenance.collect(['sltt-bench', 'run', 'digits']), 'torch' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    facts, torch_loaded = json.loads(done.stdout)
    assert not torch_loaded
    assert facts["schema_version"] == 1
    assert facts["command"] == ["sltt-bench", "run", "digits"]
    assert facts["sltt_bench"] == sltt_bench.__version__
    assert facts["python"].endswith(platform.python_version())
    assert facts["packages"]["torch"] == metadata.version("torch")
    assert facts["memory_total_bytes"] == psutil.virtual_memory().total
    assert 1 <= facts["cores_usable"] <= facts["cores_logical"]
    assert facts["cpu"]
    assert facts["gpus"] or facts["gpus_absent"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", facts["started_utc"])


def test_a_package_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGES", ("numpy", "no-such-package-anywhere"))
    assert provenance.collect([])["packages"] == {"numpy": metadata.version("numpy")}


def test_the_workers_part_records_the_flags_as_they_are() -> None:
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        torch.set_num_threads(1)
        torch.set_float32_matmul_precision("medium")
        with torch.backends.cudnn.flags(benchmark=True, deterministic=True):
            facts = provenance.collect_worker({"device": "cpu"})
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])
    assert facts["profiler"] == {"device": "cpu"}
    assert facts["torch"]["version"] == torch.__version__
    assert facts["torch"]["cuda"] == torch.version.cuda
    flags = facts["torch_flags"]
    assert flags["threads"] == 1
    assert flags["float32_matmul_precision"] == "medium"
    assert flags["cudnn_benchmark"] is True
    assert flags["cudnn_deterministic"] is True
    json.dumps(facts)


def test_settings_that_change_figures_are_recorded_where_they_are_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in provenance.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True,max_split_size_mb:64")
    monkeypatch.setenv("LD_PRELOAD", "/home/somebody/lib/libjemalloc.so.2")
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    assert provenance.collect([])["environment"] == {
        "LD_PRELOAD": "<path>/libjemalloc.so.2",
        "OMP_NUM_THREADS": "3",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True,max_split_size_mb:64",
    }


def test_the_name_of_a_cpu_comes_with_its_threads() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert provenance.device_name(torch.device("cpu")) == f"{provenance.cpu_model()} (1 thread)"
        torch.set_num_threads(2)
        assert provenance.device_name(torch.device("cpu")) == f"{provenance.cpu_model()} (2 threads)"
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("cpuinfo", "lscpu", "name"),
    [
        ("processor\t: 0\nmodel\t\t: 2\nmodel name\t: AMD EPYC 9554\nstepping\t: 1\n", "", "AMD EPYC 9554"),
        ("CPU implementer\t: 0x41\nCPU part\t: 0xd0c\n", "Model name:   Neoverse-N1\n", "Neoverse-N1"),
        (
            "CPU implementer\t: 0x41\nCPU part\t: 0xd0c\n",
            "Model name:   -\n",
            "ARM implementer 0x41 part 0xd0c",
        ),
        ("CPU implementer\t: 0x41\nCPU part\t: 0xd0c\n", "", "ARM implementer 0x41 part 0xd0c"),
        ("model name\t:\n", "", None),
        ("", "", None),
    ],
)
def test_the_cpu_has_its_makers_name(cpuinfo: str, lscpu: str, name: str | None) -> None:
    assert provenance.cpu_model_from(cpuinfo, lambda: lscpu) == name


# It names nobody --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ("digits", "digits"),
        ("bptt,sltt,sltt-k2", "bptt,sltt,sltt-k2"),
        ("train.lr=0.1", "train.lr=0.1"),
        ("results/digits", "results/digits"),
        ("./recipes/mine.yaml", "./recipes/mine.yaml"),
        ("{cwd}/results/digits", "results/digits"),
        ("--out={cwd}/results", "--out=results"),
        ("{cwd}", "."),
        ("{home}", "<path>"),
        ("{home}/", "<path>"),
        ("{home}/projects/secret/recipe.yaml", "<path>/recipe.yaml"),
        ("--data-dir={home}/data sets/cifar", "--data-dir=<path>/cifar"),
        ("data.files=['{home}/a.csv','/mnt/b.csv']", "data.files=['<path>/a.csv','<path>/b.csv']"),
        ("/mnt/share/imagenet", "<path>/imagenet"),
        ("/", "<path>"),
        ("~/data", "<path>/data"),
        ("~somebody", "<path>"),
        ("../../somebody/data", "<path>/data"),
        ("..", "<path>"),
        ("C:\\Users\\somebody\\data", "C:<path>/data"),
    ],
)
def test_paths_are_shortened_to_what_says_nothing_of_their_owner(
    argument: str, shown: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = tmp_path / "home" / "jane.doe"
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    assert without_private_paths(argument.format(home=home, cwd=work)) == shown
    assert without_private_paths("/scratch/jane.doe") == "<path>"


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("data set 'x': {home}/my data/0.png cannot be read: bad", "data set 'x': <path>/my data/0.png cannot be read: bad"),
        ("(`sltt-bench data verify x --data-dir {home}/x` tells)", "(`sltt-bench data verify x --data-dir <path>/x` tells)"),
        ("looked for {home}; nothing", "looked for ~; nothing"),
        ("looked for {home}2/x", "looked for <path>/x"),
        ("{cwd}/data/0.png cannot be read", "data/0.png cannot be read"),
        ("/scratch/jane.doe/x.pt is no checkpoint", "<path>/x.pt is no checkpoint"),
        ("no room in ../jane.doe/x, C:\\Users\\jane.doe\\x", "no room in <path>/x, C:<path>/x"),
        ("/dev/shm is too small: see https://pytorch.org/docs", "/dev/shm is too small: see https://pytorch.org/docs"),
        ("3 / 4 of the samples / train_s ... and/or ~5 %", "3 / 4 of the samples / train_s ... and/or ~5 %"),
    ],
)  # fmt: skip
def test_paths_within_a_sentence_are_shortened_too(
    reason: str, shown: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = tmp_path / "home" / "jane.doe"
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    assert text_without_private_paths(reason.format(home=home, cwd=work)) == shown


def test_above_the_home_relative_paths_name_its_owner_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/usr/jane.doe")
    monkeypatch.chdir("/usr")
    assert without_private_paths("/usr/jane.doe/projects/recipe.yaml") == "<path>/recipe.yaml"


def test_no_host_user_or_home_appears_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "jane.doe"))
    monkeypatch.setenv("USER", "jane.doe")
    monkeypatch.setenv("LD_PRELOAD", str(tmp_path / "jane.doe" / "lib.so"))
    command = [
        str(tmp_path / "jane.doe" / "bin" / "sltt-bench"),
        "run",
        "--data-dir",
        str(tmp_path / "jane.doe"),
    ]
    text = json.dumps({**provenance.collect(command), **provenance.collect_worker({})})
    assert "jane.doe" not in text
    assert str(tmp_path) not in text
    strings = re.findall(r'"([^"]*)"', text)
    assert platform.node() not in {word for string in strings for word in re.split(r"[^\w.-]", string)}
    assert getpass.getuser() not in strings


# Whose revision ---------------------------------------------------------------------------------


def test_a_checkout_gives_its_revision_and_changes_of_the_source_make_it_dirty(checkout: Path) -> None:
    revision = git(checkout, "rev-parse", "HEAD")
    package = checkout / "package"
    clean = {"git_revision": revision, "git_dirty": False}
    assert provenance.source_revision(package) == clean
    (checkout / "results" / "epochs.csv").write_text("what this very run appended")
    (checkout / "notes.txt").write_text("beside the source")
    assert provenance.source_revision(package) == clean
    for name in ("package/__init__.py", "package/new.py", "recipes/new.yaml", "pyproject.toml"):
        path = checkout / name
        before = path.read_text() if path.exists() else None
        path.write_text("changed")
        assert provenance.source_revision(package) == {"git_revision": revision, "git_dirty": True}, name
        if before is None:
            path.unlink()
        else:
            path.write_text(before)
    assert provenance.source_revision(package) == clean


def test_a_repository_that_only_surrounds_the_package_is_not_its_source(checkout: Path) -> None:
    installed = checkout / "env" / "lib" / "site-packages" / "package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    revision = provenance.source_revision(installed)
    assert revision["git_revision"] is None
    assert revision["git_dirty"] is None
    assert "installed from a package" in revision["git_absent"]


def test_gits_own_environment_variables_do_not_mislead(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path_factory.mktemp("other")))
    assert provenance.source_revision(checkout / "package")["git_revision"] is not None


def test_without_git_there_is_a_reason(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(checkout))
    assert os.environ["PATH"] == str(checkout)
    revision = provenance.source_revision(checkout / "package")
    assert revision["git_revision"] is None
    assert revision["git_absent"]


def test_an_installation_from_a_repositorys_address_knows_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {"url": "https://example.org/x.git", "vcs_info": {"vcs": "git", "commit_id": "0123abcd"}}

    class Installed:
        def read_text(self, name: str) -> str:
            assert name == "direct_url.json"
            return json.dumps(record)

    monkeypatch.setattr(metadata, "distribution", lambda name: Installed())
    assert provenance.source_revision(tmp_path) == {"git_revision": "0123abcd", "git_dirty": False}
