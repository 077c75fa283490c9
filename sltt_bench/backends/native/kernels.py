"""Selects the kernels of a step, Triton's on CUDA devices and torch's elsewhere, and records which ran."""

import os
import shutil
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from subprocess import CalledProcessError
from typing import Protocol

import torch
from torch import Tensor

from sltt_bench.backends.native.lif_torch import (
    UNSCALED,
    BatchNormParameters,
    RunningStatistics,
    Scaling,
    TorchKernels,
)
from sltt_bench.common.failures import out_of_memory_cause
from sltt_bench.neurons import LIFParameters
from sltt_bench.precision import FORMATS
from sltt_bench.surrogates import SURROGATES


class Kernels(Protocol):
    """The kernels of a step; all tensors have one shape and lie on one device.

    A layer of neurons may be scaled: it maps x to γ s[t] with I[t] = x / β. Every product is rounded to the
    tensors' dtype, so the results equal those of a division, a step and a multiplication one after another.
    """

    def forward(
        self,
        x: Tensor,
        previous: Tensor | None,
        neuron: LIFParameters,
        out: Tensor | None,
        scale: Scaling = UNSCALED,
        norm: BatchNormParameters | None = None,
        bias: Tensor | None = None,
        *,
        steps: int = 1,
        fires: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Returns (γ s[t], u[t]) from x = β I[t] and u[t−1] (None before the first step).

        u[t] is written to `out`, which may be u[t−1] itself, or to new memory. With `norm` (β = 1), I[t] is
        the normalised x. With a `bias` [channels] (without norm), x + b takes the place of x. Both are
        rounded to the dtype of x as if stored. If not `fires`, γ s[t] is a placeholder (`placeholder_like`).

        With several `steps` (without norm), x and γ s are [steps · batch, …], ordered by step, and u is
        [batch, …] before the first and after the last.
        """

    def backward(
        self,
        grad_output: Tensor | None,
        grad_next: Tensor | None,
        membrane: Tensor,
        neuron: LIFParameters,
        scale: Scaling = UNSCALED,
        *,
        through_time: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns (∂L/∂x, ∂L/∂u[t]) from ∂L/∂(γ s[t]), ∂L/∂u[t+1] (one of them may be None: zero) and u[t].

        Both results are one tensor if β = 1. Without `through_time` the second is None.
        """

    def backward_biased(
        self,
        grad_output: Tensor | None,
        grad_next: Tensor | None,
        membrane: Tensor,
        neuron: LIFParameters,
        scale: Scaling = UNSCALED,
        *,
        through_time: bool = True,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Returns the results of `backward`, and ∂L/∂b [channels], at least in float32, of the bias of x."""

    def backward_normalised(
        self,
        grad_output: Tensor | None,
        grad_next: Tensor | None,
        membrane: Tensor,
        neuron: LIFParameters,
        gain: float,
        x: Tensor,
        norm: BatchNormParameters,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns ∂L/∂u[t] = ∂L/∂I[t] as `backward`, for I[t] normalised from x, and the sums for
        `backward_to_input`.

        The sums by channel, [2, channels], are Σ ∂L/∂I · (x − μ) / √(σ² + ε) and Σ ∂L/∂I; None if
        `backward_to_input` computes them itself.
        """

    def backward_to_input(
        self,
        grad: Tensor,
        x: Tensor,
        norm: BatchNormParameters,
        sums: Tensor | None,
        into: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns (∂L/∂x, ∂L/∂γ, ∂L/∂β) from ∂L/∂I[t] and its sums, also through μ and σ² of the batch.

        With `into`, the latter two [channels] are added to these tensors, which are returned.
        """

    def statistics(
        self, x: Tensor, running: RunningStatistics, momentum: float | None, biases: Sequence[Tensor] = ()
    ) -> tuple[Tensor, Tensor]:
        """Returns μ and biased σ² of the channels of x [batch, channels, …], in the running ones' dtype.

        With a momentum the running statistics are updated as in batch norm, the mean including the `biases`
        [channels] that x lacks, and the number of batches grows by 1.
        """

    def joined(
        self, residual: Tensor, shortcut: Tensor, gain: Tensor, alpha: float, bias: Tensor | None
    ) -> Tensor:
        """Returns α g (r + b) + s for r, s [batch, channels, …] of one dtype, g [], b [channels] or None."""

    def joined_backward(
        self, grad: Tensor, residual: Tensor, gain: Tensor, alpha: float, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Returns (∂L/∂r, ∂L/∂g, ∂L/∂b) from the gradient of `joined`; ∂L/∂b is at least in float32."""

    def fire(self, membrane: Tensor, neuron: LIFParameters, gain: float = 1.0) -> Tensor:
        """Returns γ s[t] from u[t], with the same shape, dtype and memory format."""


class KernelsByDevice:
    """Gives the kernels for the device of a tensor."""

    def __init__(self) -> None:
        self._torch = TorchKernels()
        self._triton: Kernels | None = None
        self.ran: set[str] = set()
        """What has run so far: "triton forward", "torch backward", ..."""

    def __deepcopy__(self, memo: object) -> "KernelsByDevice":
        return self

    def fire(self, membrane: Tensor, neuron: LIFParameters, gain: float = 1.0) -> Tensor:
        """See `Kernels.fire`."""
        return self.of(membrane, "fire").fire(membrane, neuron, gain)

    def of(self, tensor: Tensor, function: str) -> Kernels:
        """Returns the kernels for the tensor's device and adds the `function` to be run to `ran`."""
        if not by_triton(tensor):
            self.ran.add(f"torch {function}")
            return self._torch
        if self._triton is None:
            from sltt_bench.backends.native.lif_triton import TritonKernels

            self._triton = TritonKernels()
        self.ran.add(f"triton {function}")
        return self._triton


def by_triton(tensor: Tensor) -> bool:
    """Whether Triton's kernels serve the tensor: whether it lies on a GPU."""
    return tensor.is_cuda


def can_triton_build() -> bool:
    """Whether Triton finds a C compiler, with which it builds a launcher for each kernel."""
    asked = os.environ.get("CC")
    return any(map(shutil.which, [asked.split()[0]] if asked else ["gcc", "clang"]))


def unsupported(neuron: LIFParameters, precision: str, device: str) -> str | None:
    """Returns why no kernel can compute this neuron on this device, or None."""
    if neuron.surrogate not in SURROGATES:
        return f"there is no surrogate {neuron.surrogate!r}; known: {', '.join(SURROGATES)}"
    if torch.device(device).type != "cuda":
        return None
    if find_spec("triton") is None:
        return (
            "its kernels for CUDA are written in Triton, which is not installed: pip install triton (on Windows "
            "triton-windows), or choose --backend reference"
        )
    if not can_triton_build():
        return "Triton builds launchers with a C compiler, and there is none: install gcc or clang, or set CC to one"
    from sltt_bench.backends.native.lif_triton_kernels import SURROGATES as IN_TRITON

    if neuron.surrogate not in IN_TRITON:
        return (
            f"the surrogate {neuron.surrogate!r} has no Triton formula (lif_triton_kernels._surrogate); "
            f"on CUDA choose {', '.join(IN_TRITON)}, or --backend reference"
        )
    return why_no_kernel_runs(precision, device) if torch.cuda.is_available() else None


@cache
def why_no_kernel_runs(precision: str, device: str) -> str | None:
    """Returns why Triton's kernels do not run on this GPU in a precision, from a trial of one; None if it runs.

    A trial finds what no list holds: Python's headers and the driver's library, with which Triton builds launchers,
    the folder that keeps them, and instructions that a card lacks (with Triton 3.2 those of bfloat16 below compute
    capability 8.0).
    """
    import triton

    from sltt_bench.backends.native.lif_triton import TritonKernels

    potential = torch.ones(1, dtype=FORMATS.get(precision, torch.float32), device=device)
    try:
        TritonKernels().fire(potential, LIFParameters()).item()
    except Exception as error:
        if out_of_memory_cause(error) is not None:
            raise
        card, (major, minor) = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        reason, remedy = _reason_and_remedy(error, precision)
        return (
            f"Triton {triton.__version__} runs no kernel in {precision} on {card} (compute capability {major}.{minor}): "
            f"{reason}; {remedy}choose --backend reference"
        )
    return None


def _reason_and_remedy(error: Exception, precision: str) -> tuple[str, str]:
    """Returns what a trial of Triton ended in, in a line, and what may help, up to the last way out."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if isinstance(error, OSError | ImportError):
        return lines[0], "set TRITON_CACHE_DIR to a folder that can be written and runs programs, or "
    if isinstance(error, CalledProcessError):
        reason = "the C compiler did not build its launcher, and the log of this process says why"
        return reason, "if Python.h is missing, install Python's headers (python3-dev), or "
    by_assembler = [line.partition("error")[2].lstrip(" :") for line in lines if line.startswith("ptxas")]
    older = (
        "set train.precision=fp16, install a newer torch with its Triton, or " if precision == "bf16" else ""
    )
    return next(filter(None, by_assembler), lines[0]), older
