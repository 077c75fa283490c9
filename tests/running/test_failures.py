"""What ended a cell is told apart by the real messages of those who raise them."""

import errno
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sltt_bench.common import failures
from sltt_bench.common.failures import (
    CellFailure,
    classify,
    out_of_memory_cause,
    too_few_for_batch_norm,
    unexplained_end,
)
from sltt_bench.kinds import training
from sltt_bench.planning.plan import Cell
from sltt_bench.results.cell_row import Outcome, cell_row
from sltt_bench.results.schema import CELLS_FILE
from sltt_bench.results.writer import RunFolder
from sltt_bench.training.engine import TrainingDiverged

OUT_OF_MEMORY = {
    "caching allocator": torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.11 GiB of which "
        "12.00 MiB is free."
    ),
    "CUDA runtime": RuntimeError(
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call"
    ),
    "cuBLAS handle": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cuDNN 9": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    "cuFFT": RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
    "Triton": RuntimeError("Triton Error [CUDA]: out of memory"),
    "NCCL": RuntimeError(
        "NCCL error in: ProcessGroupNCCL.cpp:94, unhandled cuda error, NCCL version 2.27.3\n"
        "Last error:\nFailed to CUDA calloc async 608 bytes"
    ),
    "torch on a CPU": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
        "to allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "shared tensor": RuntimeError("unable to mmap 2048 bytes from file </torch_7_1>: Cannot allocate memory (12)"),
    "NumPy": MemoryError("Unable to allocate 7.28 TiB for an array with shape (1000000000000,)"),
    "NumPy in a loader": RuntimeError(
        "Caught _ArrayMemoryError in DataLoader worker process 0.\nnumpy._core._exceptions._ArrayMemoryError: Unable to "
        "allocate 7.28 TiB for an array with shape (1000000000000,) and data type float64"
    ),
    "torch on Windows": RuntimeError("[enforce fail at alloc_cpu.cpp:116] data. DefaultCPUAllocator: not enough memory"),
    "cuSPARSE": RuntimeError("CUDA error: CUSPARSE_STATUS_ALLOC_FAILED when calling `cusparseCreate(handle)`"),
    "cuSOLVER": RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    "cuDNN 9, host": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
    "fork": OSError(errno.ENOMEM, "Cannot allocate memory"),
    "in a loader": RuntimeError(
        "Caught OutOfMemoryError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        "torch.OutOfMemoryError: CUDA out of memory."
    ),
}  # fmt: skip
NO_MATTER_OF_MEMORY = {
    "kernel too large for a multiprocessor": RuntimeError(
        "out of resource: shared memory, Required: 262144, Hardware limit: 232448. Reducing block sizes or "
        "`num_stages` may help."
    ),
    "small /dev/shm": RuntimeError(
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are "
        "out of shared memory. Please try to raise your shared memory limit."
    ),
    "small /dev/shm, of whose worker the signal alone is known": RuntimeError(
        "DataLoader worker (pid 7) is killed by signal: Bus error. "
    ),
    "no room in /dev/shm": RuntimeError(
        "Caught RuntimeError in DataLoader worker process 0. RuntimeError: unable to allocate shared memory(shm) for file "
        "</torch_29085_311768766_0>: No space left on device (28)"
    ),
    "no room in /dev/shm for a file": RuntimeError("unable to write to file </torch_7_1_0>: No space left on device (28)"),
    "a bus error": RuntimeError(
        "Unexpected bus error encountered in worker. This might be caused by insufficient shared memory (shm)."
    ),
    "a word in a key": ValueError("'out of memory' is no status"),
    "illegal access": RuntimeError("CUDA error: an illegal memory access was encountered"),
    "full disk": OSError(errno.ENOSPC, "No space left on device"),
    "a word in a file's name": FileNotFoundError(errno.ENOENT, "No such file", "out of memory.pt"),
    "segmentation fault": RuntimeError("DataLoader worker (pid 7) is killed by signal: Segmentation fault. "),
}  # fmt: skip


@pytest.mark.parametrize("name", OUT_OF_MEMORY)
def test_memory_that_runs_out_is_oom_whoever_says_it(name: str) -> None:
    error = OUT_OF_MEMORY[name]
    status, reason = classify(error)
    assert status == "oom"
    assert "\n" not in reason
    assert str(error).split()[0] in reason


@pytest.mark.parametrize("name", NO_MATTER_OF_MEMORY)
def test_what_less_memory_would_not_have_saved_is_no_oom(name: str) -> None:
    assert classify(NO_MATTER_OF_MEMORY[name])[0] == "error"


@pytest.mark.skipif(not hasattr(torch, "AcceleratorError"), reason="this torch has no AcceleratorError")
def test_an_accelerator_error_is_oom_by_its_text_alone() -> None:
    error = torch.AcceleratorError("CUDA error: out of memory")
    assert classify(error)[0] == "oom"
    assert classify(torch.AcceleratorError("CUDA error: device-side assert triggered"))[0] == "error"


@pytest.mark.parametrize(
    "text",
    [
        "FIND was unable to find an engine to execute this computation",
        "GET was unable to find an engine to execute this computation",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
        "Unable to find a valid cuDNN algorithm to run convolution",
    ],
)
@pytest.mark.parametrize(
    ("refused", "free", "status"), [(1, 2**36, "oom"), (0, 2**20, "oom"), (0, 2**36, "error")]
)
def test_what_a_library_says_of_missing_kernels_too_is_oom_where_the_device_was_short(
    text: str, refused: int, free: int, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda: {"num_ooms": refused})
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 2**37))
    assert classify(RuntimeError(text))[0] == "error", "without a GPU memory cannot have been short there"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert classify(RuntimeError(text))[0] == status


def test_a_device_that_an_error_made_unusable_says_nothing_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def unusable() -> dict[str, int]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_stats", unusable)
    assert classify(RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"))[0] == "error"


def test_the_type_of_an_error_says_that_memory_ran_out_without_a_text() -> None:
    for error in (MemoryError(), torch.OutOfMemoryError()):
        assert classify(error) == ("oom", "out of memory")


def test_batch_norm_of_one_value_per_channel_is_told_by_its_text() -> None:
    with pytest.raises(ValueError, match="channel") as caught:
        torch.nn.BatchNorm1d(2)(torch.ones(1, 2))
    assert too_few_for_batch_norm(caught.value)
    assert not too_few_for_batch_norm(ValueError("another"))


def test_a_real_allocation_that_fails_is_oom() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert classify(caught.value)[0] == "oom"


def raised(function: Callable[[], None]) -> Exception:
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_an_oom_hidden_behind_another_error_is_found_and_both_are_named() -> None:
    def while_cleaning_up() -> None:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        finally:
            raise AttributeError("'NoneType' object has no attribute 'close'")

    def as_a_cause() -> None:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        except RuntimeError as error:
            raise ValueError("backend compiler failed") from error

    for function, outer in ((while_cleaning_up, "AttributeError"), (as_a_cause, "ValueError")):
        status, reason = classify(raised(function))
        assert status == "oom"
        assert reason.startswith("CUDA out of memory.")
        assert outer in reason


def test_an_oom_inside_a_group_of_errors_is_found() -> None:
    assert out_of_memory_cause(ExceptionGroup("ranks", [ValueError("x"), MemoryError("y")])) is not None


def test_an_oom_that_was_declared_no_part_of_the_error_is_none() -> None:
    def smaller_batch_failed_too() -> None:
        try:
            raise MemoryError
        except MemoryError:
            raise ValueError("wrong shape") from None

    assert classify(raised(smaller_batch_failed_too)) == ("error", "ValueError: wrong shape")


def test_errors_that_name_each_other_as_cause_come_to_an_end() -> None:
    a, b = ValueError("a"), ValueError("b")
    a.__cause__, b.__cause__ = b, a
    assert classify(a)[0] == "error"


def test_a_reason_as_long_as_a_program_is_a_row_that_can_be_read(
    tmp_path: Path, smoke_cell: Callable[..., Cell]
) -> None:
    program = 'printf("%s", name); ' * 20_000
    status, reason = classify(RuntimeError(f"it did not compile: {program} CUDA error: out of memory"))
    assert (status, reason[:20], reason[-13:]) == ("oom", "it did not compile: ", "out of memory")
    folder = RunFolder.create(tmp_path, "digits")
    folder.append(CELLS_FILE, cell_row(smoke_cell(), Outcome(status, reason), {}))
    assert [row["reason"] for row in folder.rows(CELLS_FILE)] == [reason]


@pytest.mark.parametrize(("kills", "status"), [(1, "oom"), (0, "killed")])
def test_a_killed_loader_is_oom_where_the_system_killed_for_lack_of_memory(
    kills: int, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "oom_kills", lambda: failures._KILLS_BEFORE + kills)
    killed = RuntimeError("DataLoader worker (pid 4242) is killed by signal: Killed. ")
    unexpected = RuntimeError("DataLoader worker (pid(s) 4242) exited unexpectedly")
    unexpected.__cause__ = killed
    for error in (killed, unexpected):
        told, reason = classify(error)
        assert told == status
        assert "DataLoader worker (pid 4242) is killed by signal: Killed." in reason
        assert ("the host ran out of memory" in reason) == (status == "oom")


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in NO_MATTER_OF_MEMORY if name.startswith("small /dev/shm")),
        "no room in /dev/shm",
        "no room in /dev/shm for a file",
        "a bus error",
    ],
)
def test_a_small_shared_memory_names_its_remedy(name: str) -> None:
    assert "data.workers=0" in classify(NO_MATTER_OF_MEMORY[name])[1]


def test_too_few_addresses_for_torch_are_no_oom_and_name_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    unmapped = ImportError("libtorch_cpu.so: failed to map segment from shared object")
    monkeypatch.setattr(failures, "address_space_limit", lambda: None)
    assert classify(unmapped) == ("error", f"ImportError: {unmapped}"), "its folder may be mounted noexec"
    assert unexplained_end(-signal.SIGABRT, 0) == ("killed", "the process was ended by SIGABRT")
    monkeypatch.setattr(failures, "address_space_limit", lambda: 2 * 2**30)
    status, reason = classify(unmapped)
    assert status == "error"
    assert "2 GiB of address space (ulimit -v)" in reason
    assert reason.endswith(f"raise that limit ({unmapped})")
    limit = "its address space is limited to 2 GiB (ulimit -v)"
    assert unexplained_end(-signal.SIGABRT, 0) == ("killed", f"the process was ended by SIGABRT; {limit}")
    assert unexplained_end(-signal.SIGTERM, 0) == ("killed", "the process was ended by SIGTERM")
    assert unexplained_end(1, 0) == ("error", f"the process ended with exit code 1 without a word; {limit}")


def test_the_limit_on_addresses_is_read_from_the_system() -> None:
    program = "import sltt_bench.common.memory_limit as m; print(m.address_space_limit())"
    command = f"ulimit -v $1; {sys.executable} -c '{program}'"
    said = [
        subprocess.run(["bash", "-c", command, "", limit], capture_output=True, text=True, check=True).stdout
        for limit in ("unlimited", "1000000")
    ]
    assert said == ["None\n", f"{1_000_000 * 1024}\n"]


def test_errors_of_this_package_speak_for_themselves_and_interruptions_are_kills() -> None:
    assert classify(TrainingDiverged("the loss became nan")) == ("error", "the loss became nan")
    for interruption in (KeyboardInterrupt(), SystemExit(1)):
        assert classify(interruption) == ("killed", type(interruption).__name__)
    assert classify(CellFailure("oom", "rank 1: no memory")) == ("oom", "rank 1: no memory")


class RecordingReporter:
    """Keeps what a cell sends."""

    def __init__(self) -> None:
        self.known: dict[str, object] = {}
        self.epochs = 0
        self.absent: dict[str, str] = {}

    def send(self, event: str, **details: object) -> None:
        if event == "measured_with":
            self.absent = dict(details.get("absent", {}))  # type: ignore[call-overload]

    def facts(self, **facts: object) -> None:
        self.known |= facts

    def epoch(self, figures: object) -> None:
        self.epochs += 1

    def batch(self, *_: object) -> None: ...
    def preparing(self, *_: object) -> None: ...
    def checkpoint(self, *_: object) -> None: ...


@pytest.mark.parametrize(
    ("code", "name"),
    [(-1, "SIGHUP"), (-9, "SIGKILL"), (-15, "SIGTERM"), (-40, "signal 40"), (-64, "SIGRTMAX")],
)
def test_whatever_signal_ended_a_process_it_is_named(
    code: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "oom_kills", lambda: 3)
    assert unexplained_end(code, 3) == ("killed", f"the process was ended by {name}")


def test_a_process_that_the_system_killed_for_lack_of_memory_is_oom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "oom_kills", lambda: 4)
    for limit, within in ((None, ""), (2**31, " (its control group is allowed 2 GiB)")):
        monkeypatch.setattr(failures, "memory_limit", lambda limit=limit: limit)
        reason = f"the operating system ended the process: out of memory{within}"
        assert unexplained_end(-9, 3) == ("oom", reason)
    assert unexplained_end(-15, 3)[0] == "killed", "another process was killed"
    assert unexplained_end(1, 3) == ("error", "the process ended with exit code 1 without a word")


def test_an_oom_in_the_instrumented_iteration_empties_its_column_and_the_cell_goes_on(
    smoke_cell: Callable[..., Cell], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def too_large(*_: object) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    monkeypatch.setattr(training, "instrumented_peak", too_large)
    reporter = RecordingReporter()
    job = {"data_dir": str(tmp_path), "checkpoint": None, "resume": False, "initial_weights": None}
    training.train_cell(smoke_cell(train__epochs=1), job, reporter)  # type: ignore[arg-type]
    assert reporter.epochs == 1
    assert reporter.known["peak_tensor_bytes"] is None
    assert "Tried to allocate 9 GiB" in reporter.absent["peak_tensor_bytes"]

    def wrong(*_: object) -> int:
        raise RuntimeError("an operation that nobody counts")

    monkeypatch.setattr(training, "instrumented_peak", wrong)
    with pytest.raises(RuntimeError, match="nobody counts"):
        training.train_cell(smoke_cell(train__epochs=1), job, reporter)  # type: ignore[arg-type]
