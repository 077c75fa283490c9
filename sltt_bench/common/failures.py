"""Classifies what ended a cell: its status and a one-line reason, above all whether memory ran out.

Lack of memory shows in many forms: an exception of the allocator, a library's status code, a process that
the system killed, or hidden behind an error of the code that cleaned up. The texts are those of torch 2.6 to
2.14, cuDNN 9, CUDA 12 and 13, Triton 3, NCCL 2 and Linux.
"""

import errno
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Literal

from sltt_bench.common.format import format_bytes
from sltt_bench.common.memory_limit import address_space_limit, memory_limit, oom_kills

DIVERGED = "the training loss became"
"""The start of the reason of a cell whose loss is no longer a number."""

FailureStatus = Literal["oom", "error", "killed"]

LONGEST_REASON = 2_000
"""Characters. Errors of compilers quote a whole program, and readers of CSV files take no field of 128 KiB."""

_OUT_OF_MEMORY = re.compile(
    r"""out\ of\ memory                       # CUDA, Triton, NCCL, torch's caching allocators
      | can't\ allocate\ memory               # torch's DefaultCPUAllocator
      | cannot\ allocate\ memory              # errno 12: mmap, fork
      | not\ enough\ memory                   # torch's DefaultCPUAllocator on Windows
      | unable\ to\ allocate .* \barray       # NumPy
      | failed\ to\ cuda\ calloc              # NCCL
      | (CUBLAS|CUDNN|CUSPARSE|CUSOLVER)_STATUS_ALLOC_FAILED | CUFFT_ALLOC_FAILED
      | CUDNN_STATUS_INTERNAL_ERROR_(DEVICE|HOST)_ALLOCATION_FAILED
      | cudaErrorMemoryAllocation
    """,
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
_PERHAPS_OUT_OF_MEMORY = re.compile(
    r"unable to find an engine to execute this computation|unable to find a valid cuDNN algorithm"
    r"|(CUBLAS|CUDNN)_STATUS_NOT_INITIALIZED",
    re.IGNORECASE,
)
"""Errors about a kernel or handle that got no memory or does not exist; the device tells which."""
_NO_ROOM_BYTES = 256 * 2**20
"""With fewer bytes free on the device, a library's handle or workspace may have failed for lack of memory."""
_SMALL_SHARED_MEMORY = re.compile(
    r"out of shared memory|insufficient shared memory|unable to (?:write to|allocate shared memory\(shm\) for) file </torch_"
    r"|DataLoader worker .* killed by signal: Bus error",
    re.IGNORECASE,
)
_REMEDY_SHARED_MEMORY = (
    "/dev/shm is too small for the loader's processes: --set data.workers=0, or a larger one "
    "(docker run --shm-size=8g)"
)
_UNMAPPED = re.compile(r"failed to map segment from shared object", re.IGNORECASE)
"""What glibc says of a library for which there are no addresses, or that it may not execute where it lies."""
_KILLED_LOADER = re.compile(r"DataLoader worker .* killed by signal: Killed", re.IGNORECASE | re.DOTALL)
_KILLS_BEFORE = oom_kills()
"""What the system had killed for lack of memory when this process began."""


class CellFailure(Exception):
    """What ended a cell, as reported by another of its processes."""

    def __init__(self, status: FailureStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def unexplained_end(code: int, kernel_kills: int) -> tuple[FailureStatus, str]:
    """Returns (status, reason) for the exit code of a process that ended without giving a reason.

    `kernel_kills`: `oom_kills()` before it started.
    """
    if code == -signal.SIGKILL and oom_kills() > kernel_kills:
        limit = memory_limit()
        within = "" if limit is None else f" (its control group is allowed {format_bytes(limit)})"
        return "oom", f"the operating system ended the process: out of memory{within}"
    if code < 0:
        # Of the real-time signals, only the first and the last have names.
        known = {number.value: number.name for number in signal.Signals}
        name = known.get(-code, f"signal {-code}")
        return "killed", f"the process was ended by {name}{_within_addresses() if name in _BY_ITSELF else ''}"
    return "error", f"the process ended with exit code {code} without a word{_within_addresses()}"


_BY_ITSELF = ("SIGABRT", "SIGBUS", "SIGSEGV")
"""Signals by which a process ends that got no memory, and that nobody sends."""


def _within_addresses() -> str:
    """Returns the limit on addresses: libraries that get none end their process in their own ways."""
    limit = address_space_limit()
    return "" if limit is None else f"; its address space is limited to {format_bytes(limit)} (ulimit -v)"


def classify(error: BaseException) -> tuple[FailureStatus, str]:
    """Returns (status, one-line reason) for the error that ended a cell.

    "oom" only if the cell used too much memory: not for a Triton kernel that asks for more shared memory than
    a multiprocessor has, nor for a small /dev/shm or too few addresses for torch, which say nothing about the method. A reason of more than
    LONGEST_REASON characters lacks its middle: the cell's log has it.
    """
    status, reason = _status_and_reason(error)
    if len(reason) > LONGEST_REASON:
        kept = LONGEST_REASON // 2
        reason = f"{reason[:kept].rstrip()} … {reason[-kept:].lstrip()}"
    return status, reason


def _status_and_reason(error: BaseException) -> tuple[FailureStatus, str]:
    if isinstance(error, CellFailure):
        return error.status, str(error)
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "killed", type(error).__name__
    cause = out_of_memory_cause(error)
    if cause is not None:
        reason = _one_line(cause) or "out of memory"
        if _is_killed_loader(cause):
            reason = f"the host ran out of memory: {reason}"
        if cause is not error:
            reason = f"{reason} (then {type(error).__name__}: {_one_line(error)})"
        return "oom", reason
    if (killed := next(filter(_is_killed_loader, _chain(error)), None)) is not None:
        return "killed", _one_line(killed)
    text = _one_line(error)
    if _SMALL_SHARED_MEMORY.search(text):
        text = f"{_REMEDY_SHARED_MEMORY} ({text})"
    if "No usable temporary directory" in text:  # tempfile's words
        text = f"set TMPDIR to a folder that can be written ({text})"
    if _UNMAPPED.search(text) and (limit := address_space_limit()) is not None:
        text = (
            f"{format_bytes(limit)} of address space (ulimit -v) do not hold the libraries that a cell loads: "
            f"raise that limit ({text})"
        )
    if type(error).__module__.startswith("sltt_bench."):
        return "error", text  # its message alone says all that a user needs
    return "error", f"{type(error).__name__}: {text}" if text else type(error).__name__


def too_few_for_batch_norm(error: ValueError) -> bool:
    """Whether batch norm failed since a batch of one sample gave it only a single value per channel."""
    return "more than 1 value per channel" in str(error)


def out_of_memory_cause(error: BaseException) -> BaseException | None:
    """Returns the error, this or one behind it, that says that device or host memory ran out; else None."""
    return next((link for link in _chain(error) if _tells_of_memory(link)), None)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yields the error, those it contains, and those it followed from (unless suppressed), each once."""
    pending, seen = [error], set()
    while pending:
        link = pending.pop()
        if id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        behind = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
        if behind is not None:
            pending.append(behind)
        if isinstance(link, BaseExceptionGroup):
            pending.extend(link.exceptions)


def _tells_of_memory(error: BaseException) -> bool:
    # By name, so that torch need not be loaded.
    if isinstance(error, MemoryError) or "OutOfMemoryError" in (
        kind.__name__ for kind in type(error).__mro__
    ):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # torch.AcceleratorError, and what torch.compile raises, are RuntimeErrors.
    if not isinstance(error, RuntimeError):
        return False
    if _is_killed_loader(error):
        return oom_kills() > _KILLS_BEFORE
    text = str(error)
    return bool(_OUT_OF_MEMORY.search(text) or (_PERHAPS_OUT_OF_MEMORY.search(text) and _device_was_short()))


def _is_killed_loader(error: BaseException) -> bool:
    """Whether a process of torch's loader got SIGKILL: from the system that lacked memory, or from somebody else."""
    return isinstance(error, RuntimeError) and _KILLED_LOADER.search(str(error)) is not None


def _device_was_short() -> bool:
    """Whether the GPU refused memory to this process's allocator, or has almost nothing free."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    with suppress(RuntimeError):  # from a device that an earlier error made unusable
        refused = torch.cuda.memory_stats().get("num_ooms", 0)
        return bool(refused > 0 or torch.cuda.mem_get_info()[0] < _NO_ROOM_BYTES)
    return False


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
