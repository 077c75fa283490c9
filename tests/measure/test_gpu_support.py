"""A GPU that torch cannot use is said and refused, never passed over in silence."""

import csv
import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from test_nvml import compile_fake
from typer.testing import CliRunner

from sltt_bench.command_line.cli import app
from sltt_bench.kinds import training
from sltt_bench.measure import gpu_support
from sltt_bench.measure.gpu_support import (
    UnusableGpu,
    Wheel,
    check_gpu_is_usable,
    installed_wheel,
    why_unusable,
    why_without_kernels,
)
from sltt_bench.measure.nvml import Gpu

GPU = Gpu(name="NVIDIA H100", uuid="GPU-0", memory_total_bytes=80 << 30, driver="570.1", cuda_driver="12.8")


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML shows a GPU whose driver serves CUDA 12.8."""
    monkeypatch.setattr(gpu_support, "list_gpus", lambda: [GPU])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize("cuda", ["11.8", "12.4", "12.9"])
def test_a_driver_serves_wheels_of_its_own_major_version_and_of_older_ones(cuda: str) -> None:
    assert why_unusable([GPU], Wheel("2.9", cuda)) is None


def test_a_wheel_for_a_newer_cuda_than_the_driver_serves_is_unusable_and_so_is_one_without() -> None:
    assert "driver 570.1 serves CUDA 12.8 at most" in str(why_unusable([GPU], Wheel("2.9", "13.0")))
    assert "built without CUDA" in str(why_unusable([GPU], Wheel("2.9+cpu", None)))
    assert why_unusable([], Wheel("2.9+cpu", None)) is None
    assert why_unusable([GPU], None) is None


def test_the_wheel_is_read_from_its_file_as_torch_itself_says() -> None:
    assert installed_wheel() == Wheel(torch.__version__, torch.version.cuda)


@pytest.mark.parametrize("text", [None, "cuda = '12.8'", "__version__ = ("])
def test_a_wheel_whose_file_says_nothing_is_unknown(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (tmp_path / "version.py").write_text(text)
    broken = ModuleSpec("torch", None, origin=str(tmp_path / "__init__.py"))
    for spec in (broken, ModuleSpec("torch", None), None):  # installed, a folder without a module, and none
        monkeypatch.setattr(gpu_support, "find_spec", lambda name, spec=spec: spec)
        assert installed_wheel() is None


@pytest.mark.usefixtures("one_gpu")
def test_auto_is_refused_beside_an_unusable_gpu_with_both_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_support, "installed_wheel", lambda: Wheel("2.9", "13.0"))
    with pytest.raises(UnusableGpu, match=r"NVIDIA H100.*get-started.*--device cpu"):
        check_gpu_is_usable("auto")
    with pytest.raises(UnusableGpu):
        check_gpu_is_usable("cuda:0")
    check_gpu_is_usable("cpu")
    monkeypatch.setattr(gpu_support, "list_gpus", lambda: [GPU, GPU])
    with pytest.raises(UnusableGpu, match=r"there is a GPU \(NVIDIA H100 and 1 more\)"):
        check_gpu_is_usable("auto")


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize("hidden", ["", "-1", "NoDevFiles", "-1,0"])
def test_gpus_that_the_user_has_hidden_are_not_missed(monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    monkeypatch.setattr(gpu_support, "installed_wheel", lambda: Wheel("2.9", "13.0"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    check_gpu_is_usable("auto")


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use the GPU here")
def test_a_cell_does_not_fall_back_to_the_cpu_where_only_torch_finds_the_gpu_unusable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert training.choose_device("auto").type == "cpu"
    with pytest.raises(UnusableGpu, match="torch sees no CUDA GPU here"):
        training.choose_device("cuda:1")
    monkeypatch.setattr(training, "shown_gpus", lambda: [GPU])
    monkeypatch.setattr(training, "installed_wheel", lambda: Wheel("2.9", "12.8"))
    with pytest.raises(UnusableGpu, match="torch cannot start CUDA"):
        training.choose_device("auto")
    monkeypatch.setattr(training, "installed_wheel", lambda: Wheel("2.9", "13.0"))
    with pytest.raises(UnusableGpu, match=r"serves CUDA 12\.8 at most"):
        training.choose_device("auto")


def test_a_cell_computes_on_the_gpu_that_was_asked_for_among_those_that_torch_sees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for asked, index in (("auto", 0), ("cuda", 0), ("cuda:1", 1)):
        assert training.choose_device(asked) == torch.device("cuda", index) == chosen.pop()
    assert training.choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UnusableGpu, match="device cuda:2: torch sees 2 GPUs here"):
        training.choose_device("cuda:2")
    assert chosen == []


@pytest.mark.parametrize(
    ("gpus", "visible", "files", "device", "reason"),
    [
        ([], None, (), "cuda", "there is no GPU here"),
        ([], None, (), "cuda:1", "there is no GPU here"),
        ([], "", (), "cuda", "CUDA_VISIBLE_DEVICES is '' and hides every GPU"),
        ([GPU], "-1", (), "cuda:0", "CUDA_VISIBLE_DEVICES is '-1' and hides every GPU"),
        ([GPU], None, (), "cuda:1", "there is 1 GPU here, the last is cuda:0;"),
        ([GPU, GPU], None, (), "cuda:2", "there are 2 GPUs here, the last is cuda:1;"),
        ([GPU, GPU], "0,-1,1", (), "cuda:1", r"the last is cuda:0 \(CUDA_VISIBLE_DEVICES is '0,-1,1'\);"),
        ([GPU, GPU], "1", (), "cuda:1", r"the last is cuda:0 \(CUDA_VISIBLE_DEVICES is '1'\);"),
        (
            [GPU],
            "0,1",
            (),
            "cuda:1",
            r"there is 1 GPU here, the last is cuda:0 \(CUDA_VISIBLE_DEVICES is '0,1'\);",
        ),
        ([GPU, GPU], "1", (), "cuda", None),
        ([GPU, GPU], None, (), "cuda:1", None),
        ([], None, (), "auto", None),
        ([], None, ("here",), "cuda:3", None),  # a driver without NVML
        ([], "0", ("here",), "cuda", None),
    ],
)
def test_a_device_that_is_not_there_is_refused_before_anything_runs(
    gpus: list[Gpu],
    visible: str | None,
    files: tuple[str, ...],
    device: str,
    reason: str | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for file in files:
        (tmp_path / file).touch()
    monkeypatch.setattr(gpu_support, "DRIVER_FILES", (str(tmp_path / "here"),))
    monkeypatch.setattr(gpu_support, "list_gpus", lambda: gpus)
    monkeypatch.setattr(gpu_support, "installed_wheel", lambda: Wheel("2.9", "12.8"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if reason is None:
        check_gpu_is_usable(device)
    else:
        with pytest.raises(UnusableGpu, match=f"^device {device}: .*{reason}"):
            check_gpu_is_usable(device)


@pytest.mark.skipif(
    torch.cuda.is_available() or any(map(os.path.exists, gpu_support.DRIVER_FILES)),
    reason="a GPU may be here",
)
@pytest.mark.parametrize("asked", [("--device", "cuda"), ("--devices", "cuda:0,cuda:1", "--oversubscribe")])
def test_a_run_on_a_gpu_that_is_not_there_ends_with_exit_code_2_and_writes_nothing(
    asked: tuple[str, ...], tmp_path: Path
) -> None:
    result = CliRunner().invoke(app, ["run", "digits", "--smoke", *asked, "--out", str(tmp_path / "results")])
    assert result.exit_code == 2, result.output
    assert "device cuda" in result.output, "of --device and --devices alike"
    assert "--device cuda" not in result.output
    assert "there is no GPU here" in " ".join(result.output.split())
    assert not (tmp_path / "results").exists()
    planned = CliRunner().invoke(app, ["run", "digits", *asked, "--dry-run"])
    assert planned.exit_code == 0, "a plan may be for another machine"


def run_beside_a_gpu(folder: Path, *answers: str) -> "subprocess.CompletedProcess[str]":
    """A run of one cell into folder/results, where NVML's library shows a GPU and gives these answers beside its usual."""
    library, control = compile_fake(folder), folder / "fake_nvml.txt"
    control.write_text("".join(f"{answer}\n" for answer in answers))
    environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    command = [
        sys.executable,
        "-m",
        "sltt_bench",
        "run",
        "digits",
        "--smoke",
        "--method",
        "sltt",
        "--no-estimate",
    ]
    return subprocess.run(
        [*command, "--out", str(folder / "results")],
        env={**environment, "LD_LIBRARY_PATH": str(library), "FAKE_NVML": str(control)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_run_beside_an_unusable_gpu_ends_at_once_with_exit_code_2(tmp_path: Path) -> None:
    """The whole way: a driver for CUDA 12.8, as a real NVML library shows it, and the wheel that is installed."""
    wheel = installed_wheel()
    if wheel is not None and wheel.cuda is not None and wheel.cuda.startswith("12"):
        pytest.skip("the fake driver serves this wheel")
    ended = run_beside_a_gpu(tmp_path)
    assert ended.returncode == 2, ended.stderr
    assert "device auto: there is a GPU" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "results").exists()


NO_GPU_FOR_TORCH = pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use the GPU here")


@NO_GPU_FOR_TORCH
def test_a_gpu_that_only_torch_finds_absent_is_an_error_of_each_cell_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver's device file is there, so that the command lets the cells try."""
    monkeypatch.setattr(gpu_support, "list_gpus", list)
    monkeypatch.setattr(gpu_support, "DRIVER_FILES", (__file__,))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    asked = ["run", "digits", "--smoke", "--method", "sltt,bptt", "--device", "cuda:0", "--no-estimate"]
    result = CliRunner().invoke(app, [*asked, "--out", str(tmp_path)])
    assert result.exit_code == 1, result.output
    reason = "device cuda:0: torch sees no CUDA GPU here; `sltt-bench doctor` tells why"
    assert errors_of(tmp_path) == [("sltt", "error", reason), ("bptt", "error", reason)]
    assert "Traceback" not in result.output


def errors_of(out: Path) -> list[tuple[str, str, str]]:
    """(method, status, reason) of the cells of the one run; no epoch was trained."""
    (run,) = out.glob("digits/*")
    assert not (run / "epochs.csv").exists() or len((run / "epochs.csv").read_text().splitlines()) <= 1
    with (run / "cells.csv").open(encoding="utf-8") as lines:
        return [(row["method"], row["status"], row["reason"]) for row in csv.DictReader(lines)]


@NO_GPU_FOR_TORCH
@pytest.mark.long
def test_auto_is_an_error_of_the_cell_beside_a_gpu_on_which_torch_cannot_start(tmp_path: Path) -> None:
    """The whole way: NVML's library shows a GPU and a driver for every wheel, but torch finds no driver."""
    wheel = installed_wheel()
    if wheel is None or wheel.cuda is None:
        pytest.skip("the wheel is built without CUDA, which the command refuses itself")
    ended = run_beside_a_gpu(tmp_path, "cuda_driver 99000")
    assert ended.returncode == 1, ended.stderr
    ((_, status, reason),) = errors_of(tmp_path / "results")
    assert status == "error"
    assert reason.startswith("device auto: there is a GPU (")
    assert "torch cannot start CUDA; `sltt-bench doctor` tells more; " in reason
    assert "--device cpu to leave the GPU alone" in reason


@pytest.mark.parametrize(
    ("capability", "architectures", "served"),
    [
        ((9, 0), ["sm_75", "sm_80", "sm_90"], True),
        ((8, 9), ["sm_75", "sm_80", "sm_90"], True),  # a later minor version
        ((8, 0), ["sm_86"], False),  # an earlier one
        ((7, 0), ["sm_75", "sm_80", "compute_90"], False),
        ((12, 0), ["sm_90", "sm_100"], False),
        ((12, 0), ["sm_90", "compute_90"], True),  # the driver compiles it
        ((12, 1), ["sm_100", "sm_120"], True),
        ((9, 0), ["sm_90a"], True),
        ((12, 0), ["sm_90a", "compute_90a"], False),
        ((10, 3), ["sm_100f"], True),
        ((12, 0), ["sm_100f", "compute_100f"], False),
        ((9, 4), ["gfx90a", "gfx942"], True),  # ROCm: nothing is known
        ((9, 0), [], True),
    ],
)
def test_a_gpu_is_served_by_kernels_of_its_major_version_and_by_code_that_the_driver_compiles(
    capability: tuple[int, int], architectures: list[str], served: bool
) -> None:
    reason = why_without_kernels("NVIDIA X", capability, architectures)
    assert (reason is None) == served
    if reason is not None:
        assert ", ".join(architectures) in reason
        assert f"none for NVIDIA X of compute capability {capability[0]}.{capability[1]}" in reason
