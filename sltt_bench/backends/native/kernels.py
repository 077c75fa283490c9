"""Which kernels compute a step: Triton's on CUDA devices, torch's elsewhere; and which really ran."""

import os
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
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
from sltt_bench.neurons import LIFParameters
from sltt_bench.surrogates import SURROGATES


class Kernels(Protocol):
    """What computes a step; all tensors have one shape and lie on one device.

    A layer of neurons may be scaled: from x to γ s[t] with I[t] = x / β. Every product is rounded to the tensors'
    type, so that the results are those of a quotient, a step and a product one after another.
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
        """(γ s[t], u[t]) from x = β I[t] and u[t−1] (None before the first step).

        u[t] goes into `out`, which may be u[t−1] itself, or into memory of its own. With `norm` (β = 1), I[t] is the
        normalised x, with a `bias` [channels] (then without norm) x + b comes before β; either is rounded to the type of
        x as if it were stored. Unless it `fires`, a placeholder (`placeholder_like`) takes the place of γ s[t].

        Several `steps` at once: x and γ s are [steps · batch, …], step after step, u is [batch, …] before the first and
        after the last; without norm.
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
        """(∂L/∂x, ∂L/∂u[t]) from ∂L/∂(γ s[t]), ∂L/∂u[t+1] (None means zero, but not for both) and u[t].

        They are one tensor where β = 1. Without `through_time` the second is not wanted, and None.
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
        """As `backward`, and ∂L/∂b [channels], at least in float32, of the bias that was added to x."""

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
        """∂L/∂u[t] = ∂L/∂I[t] as `backward`, for I[t] that was normalised from x; and what `backward_to_input` wants.

        That is, by channel, [2, channels]: Σ ∂L/∂I · (x − μ) / √(σ² + ε) and Σ ∂L/∂I; None where it sums by itself.
        """

    def backward_to_input(
        self, grad: Tensor, x: Tensor, norm: BatchNormParameters, sums: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(∂L/∂x, ∂L/∂γ, ∂L/∂β) from ∂L/∂I[t] and its sums; through μ and σ² where they are the batch's own."""

    def statistics(
        self, x: Tensor, running: RunningStatistics, momentum: float | None, biases: Sequence[Tensor] = ()
    ) -> tuple[Tensor, Tensor]:
        """μ and σ² (of n, not n − 1) of the channels of x [batch, channels, …], of the type of the running ones.

        With a momentum those learn them as batch norm's do: the mean with the `biases` [channels] that x lacks. One batch
        more is counted.
        """

    def joined(
        self, residual: Tensor, shortcut: Tensor, gain: Tensor, alpha: float, bias: Tensor | None
    ) -> Tensor:
        """α g (r + b) + s for images r and s [batch, channels, …] of one type, a number g and b [channels] or none."""

    def joined_backward(
        self, grad: Tensor, residual: Tensor, gain: Tensor, alpha: float, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """(∂L/∂r, ∂L/∂g, ∂L/∂b) from the gradient of `joined`, that of b at least in float32."""

    def fire(self, membrane: Tensor, neuron: LIFParameters, gain: float = 1.0) -> Tensor:
        """γ s[t] from u[t], of its shape, type and memory format."""


class KernelsByDevice:
    """The kernels of the device on which the tensors lie."""

    def __init__(self) -> None:
        self._torch = TorchKernels()
        self._triton: Kernels | None = None
        self.ran: set[str] = set()
        """What has run so far: "triton forward", "torch backward", ..."""

    def __deepcopy__(self, memo: object) -> "KernelsByDevice":
        return self

    def fire(self, membrane: Tensor, neuron: LIFParameters, gain: float = 1.0) -> Tensor:
        """As Kernels.fire."""
        return self.of(membrane, "fire").fire(membrane, neuron, gain)

    def of(self, tensor: Tensor, function: str) -> Kernels:
        """Those of the tensor's device, which are about to run a `function`: a word for `ran`."""
        if not by_triton(tensor):
            self.ran.add(f"torch {function}")
            return self._torch
        if self._triton is None:
            from sltt_bench.backends.native.lif_triton import TritonKernels

            self._triton = TritonKernels()
        self.ran.add(f"triton {function}")
        return self._triton


def by_triton(tensor: Tensor) -> bool:
    """Whether Triton's kernels compute with the tensor: it lies on a GPU."""
    return tensor.is_cuda


def can_triton_build() -> bool:
    """Whether Triton finds the C compiler with which it builds a launcher for each kernel."""
    asked = os.environ.get("CC")
    return any(map(shutil.which, [asked.split()[0]] if asked else ["gcc", "clang"]))


def unsupported(neuron: LIFParameters, device: str) -> str | None:
    """Why no kernel can compute this neuron on this device, or None."""
    if neuron.surrogate not in SURROGATES:
        return f"there is no surrogate {neuron.surrogate!r}; known: {', '.join(SURROGATES)}"
    if torch.device(device).type != "cuda":
        return None
    if find_spec("triton") is None:
        return "its kernels for CUDA are written in Triton, which is not installed: pip install triton"
    if not can_triton_build():
        return "Triton builds launchers with a C compiler, and there is none: install gcc or clang, or set CC to one"
    from sltt_bench.backends.native.lif_triton import SURROGATES as IN_TRITON

    if neuron.surrogate not in IN_TRITON:
        return (
            f"the surrogate {neuron.surrogate!r} has no Triton formula (lif_triton._surrogate); "
            f"on CUDA choose {', '.join(IN_TRITON)}, or --backend reference"
        )
    return None
