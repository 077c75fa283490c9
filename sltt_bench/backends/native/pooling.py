"""Average pooling that saves only its input's shape for the backward pass; torch's saves the input.

The derivative of an average does not depend on the averaged values.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn


class LeanAvgPool2d(nn.AvgPool2d):
    """`nn.AvgPool2d` with less memory."""

    def forward(self, input: Tensor) -> Tensor:
        with _only_shapes_saved():
            return super().forward(input)


class LeanAdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """`nn.AdaptiveAvgPool2d` with less memory."""

    def forward(self, input: Tensor) -> Tensor:
        with _only_shapes_saved():
            return super().forward(input)


LEAN: dict[type[nn.Module], type[nn.Module]] = {
    nn.AvgPool2d: LeanAvgPool2d,
    nn.AdaptiveAvgPool2d: LeanAdaptiveAvgPool2d,
}


def make_lean(network: nn.Module) -> None:
    """Turn the network's pooling layers into lean ones, in place; they have no parameters."""
    for module in network.modules():
        if type(module) in LEAN:
            module.__class__ = LEAN[type(module)]


class _Shape(NamedTuple):
    size: torch.Size
    stride: tuple[int, ...] | None
    """None if contiguous."""
    dtype: torch.dtype
    device: torch.device


@contextmanager
def _only_shapes_saved() -> Iterator[None]:
    with torch.autograd.graph.saved_tensors_hooks(_shape_of, _with_shape):
        yield


def _shape_of(tensor: Tensor) -> _Shape:
    stride = None if tensor.is_contiguous() else tensor.stride()
    return _Shape(tensor.shape, stride, tensor.dtype, tensor.device)


def _with_shape(shape: _Shape) -> Tensor:
    """Returns a tensor of undefined numbers, in the memory of one number if contiguous."""
    if shape.stride is None:
        return torch.empty((), dtype=shape.dtype, device=shape.device).expand(shape.size)
    return torch.empty_strided(shape.size, shape.stride, dtype=shape.dtype, device=shape.device)
