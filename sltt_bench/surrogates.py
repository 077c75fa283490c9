"""The spike function H(x) and the surrogates that stand in for its derivative.

H is the Heaviside step with H(0) = 1. Its derivative is zero almost everywhere, so the backward
pass uses a surrogate dH/dx = g(x) with x = u − V_th instead (Neftci et al. 2019).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Derivative = Callable[[Tensor], Tensor]


def triangle(x: Tensor) -> Tensor:
    """max(0, 1 − |x|): the default of Meng et al. 2023, width 1."""
    return (1 - x.abs()).clamp_(min=0)


def rectangle(x: Tensor) -> Tensor:
    """1 where |x| < 1/2, else 0 (Wu et al. 2018, width 1)."""
    return (x.abs() < 0.5).to(x.dtype)


def sigmoid(x: Tensor) -> Tensor:
    """4 σ(4x) (1 − σ(4x)): the derivative of a logistic function of slope 4."""
    logistic = torch.sigmoid(4 * x)
    return 4 * logistic * (1 - logistic)


def arctan(x: Tensor) -> Tensor:
    """1 / (1 + (π x)²): the derivative of arctan(π x) / π (Fang et al. 2021)."""
    scaled = math.pi * x
    # A power, and a reciprocal that is not in place, would be float32 under the autocast of a GPU, not under that of a CPU.
    return (1 + scaled * scaled).reciprocal_()


SURROGATES: dict[str, Derivative] = {f.__name__: f for f in (triangle, rectangle, sigmoid, arctan)}


def derivative(x: Tensor, surrogate: str, width: float = 1.0) -> Tensor:
    """g(x / w) / w of `x` = u − V_th (any shape): w times as wide, of the same area.

    The triangle is then max(0, w − |x|) / w² (Deng et al. 2022, with γ for w).
    """
    if width == 1:
        return SURROGATES[surrogate](x)
    return SURROGATES[surrogate](x / width) / width


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, surrogate: str, width: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.surrogate, ctx.width = surrogate, width
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad_spikes: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return grad_spikes * derivative(x, ctx.surrogate, ctx.width), None, None


def spike(x: Tensor, surrogate: str, width: float = 1.0) -> Tensor:
    """Heaviside step of `x` = u − V_th (any shape); its gradient is the surrogate's, `width` times as wide.

    Raises KeyError for a surrogate that is not in SURROGATES.
    """
    if surrogate not in SURROGATES:
        raise KeyError(f"unknown surrogate {surrogate!r}; known: {', '.join(SURROGATES)}")
    result: Tensor = _Spike.apply(x, surrogate, width)
    return result
