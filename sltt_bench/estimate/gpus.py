"""The figures of GPUs' data sheets, and the roofline: a lower bound on the time of an iteration.

No operation can be faster than the GPU's peak arithmetic allows, nor faster than its tensors
can pass through memory. Operations run one after another, so the bound of an iteration is

    Σ over operations of max(2 · multiply-adds / peak,  Σ over tensors of max(0, bytes − L2 cache) / bandwidth)

Bytes that fit into the L2 cache may never touch memory and do not count, nor do tensors that an operation
does not read. Launches, reductions, normalisation and all inefficiency are left out: a real run is slower,
often by several times.
Source: Williams, Waterman & Patterson 2009, "Roofline: an insightful visual performance model".
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from sltt_bench.common.errors import UserError, nearest
from sltt_bench.common.strict import Strict
from sltt_bench.common.yaml_text import YAMLFault, read_yaml

if TYPE_CHECKING:
    from sltt_bench.measure.operations import Work

Positive = Annotated[float, Field(gt=0, strict=False)]

Format = Literal["fp32", "fp16", "bf16"]
"""Of numbers that are multiplied; TF32 is one of float32 tensors."""

_FORMATS: dict[str, Format] = {"torch.float16": "fp16", "torch.bfloat16": "bf16"}
_OF_PRECISION: dict[str, Format] = {"fp16": "fp16", "bf16": "bf16"}


class GPU(Strict):
    """The figures of one GPU, whose name is the key in the file."""

    bandwidth_gb_s: Positive
    """Memory bandwidth in 10⁹ bytes per second."""
    l2_mb: Positive
    """Second-level cache in 2²⁰ bytes."""
    tflops: dict[Format, Positive]
    """Peak of dense matrix arithmetic in 10¹² operations per second (a multiply-add is two), by format."""
    source: Annotated[str, Field(min_length=1)]
    """Where the figures are published."""


class GPUError(UserError, ValueError):
    """A GPU is unknown or lacks a format, or a file of GPUs is faulty."""

    def __init__(self, message: str, option: str = "--gpu") -> None:
        """`option`: the command line's option whose value is at fault."""
        super().__init__(f"{option}: {message}")


def known_gpus(extra: Path | None = None) -> dict[str, GPU]:
    """Returns the GPUs of the shipped file and of `extra`, whose entries take precedence. Raises GPUError."""
    gpus = _read(Path(__file__).with_name("gpus.yaml"))
    return gpus if extra is None else {**gpus, **_read(extra)}


def find_gpu(name: str, extra: Path | None = None) -> GPU:
    """Returns the GPU called `name`. Raises GPUError."""
    gpus = known_gpus(extra)
    if name not in gpus:
        raise GPUError(
            f"{name!r} is not in the table{nearest(name, gpus)}; known: {', '.join(gpus)}; --gpu-file FILE adds more"
        )
    return gpus[name]


def time_lower_bound_s(work: "Mapping[Work, int]", gpu: GPU) -> float:
    """Returns a lower bound on the seconds of one iteration.

    Raises GPUError if the GPU lacks the format of a matrix product.
    """
    cache = gpu.l2_mb * 2**20
    seconds = 0.0
    for operation, times in work.items():
        traffic = sum(max(0.0, size - cache) for size in operation.tensor_bytes) / (gpu.bandwidth_gb_s * 1e9)
        arithmetic = (
            2 * operation.multiply_adds / _peak(gpu, _FORMATS.get(str(operation.dtype), "fp32"))
            if operation.multiply_adds
            else 0.0
        )
        seconds += times * max(traffic, arithmetic)
    return seconds


def check_precision(gpu: GPU, precision: str) -> None:
    """Raises GPUError if the GPU lacks the format that a recipe's precision, resolved for it, multiplies in."""
    _peak(gpu, _OF_PRECISION.get(precision, "fp32"))


def _peak(gpu: GPU, name: Format) -> float:
    if name not in gpu.tflops:
        raise GPUError(
            f"the GPU's data sheet gives no {name} arithmetic (only {', '.join(gpu.tflops)}); "
            "choose another with --set train.precision"
        )
    return gpu.tflops[name] * 1e12


def _read(path: Path) -> dict[str, GPU]:
    try:
        return TypeAdapter(dict[str, GPU]).validate_python(read_yaml(path))
    except (OSError, YAMLFault) as error:
        raise GPUError(f"{path} cannot be read: {' '.join(str(error).split())}", "--gpu-file") from None
    except ValidationError as error:
        faults = "; ".join(
            ": ".join(filter(None, (".".join(map(str, e["loc"])), e["msg"]))) for e in error.errors()
        )
        remedy = "write NAME: {bandwidth_gb_s, l2_mb, tflops: {fp32, ...}, source}"
        raise GPUError(f"{path}: {faults}; {remedy}", "--gpu-file") from None
