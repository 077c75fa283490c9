"""The residual sums of normaliser-free networks in one pass: y = α g (r + b) + s.

r is the result of the branch's last convolution, b its bias, which it leaves to the sum (`absorbed_bias`), g
a learned number, α a constant and s the shortcut. As single operations this takes a pass over the images each
for b, g, α and s, and backward one each for α, g and b and two for g's gradient. Here it takes one pass
forward and one backward.
"""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable

from sltt_bench.backends.native.absorbed_bias import biases_left_out, can_leave_bias, leave_bias_to
from sltt_bench.backends.native.kernels import KernelsByDevice
from sltt_bench.models.nf_resnet import ALPHA, BasicBlock, Bottleneck, NormFreeBlock


class _FusedSum(NormFreeBlock):
    """Base of blocks whose residual sum takes one pass."""

    sources: tuple[nn.Conv2d, ...]
    """The last convolution of the branch."""
    kernels: KernelsByDevice

    def joined(self, residual: Tensor, shortcut: Tensor) -> Tensor:
        if isinstance(residual, fx.Proxy):  # one operation of a step whose calls are traced
            traced: Any = residual.tracer.create_proxy("call_function", self.joined, (residual, shortcut), {})
            return traced  # type: ignore[no-any-return]
        biases = biases_left_out(self.sources)
        bias = biases[0] if biases else None
        if residual.dtype != shortcut.dtype or residual.shape != shortcut.shape:
            if bias is not None:
                residual = residual + bias.to(residual.dtype).view(-1, 1, 1)
            return super().joined(residual, shortcut)
        result: Tensor = _Join.apply(residual, shortcut, self.skipinit_gain, bias, self.kernels)
        return result

    def takes_biases(self) -> bool:
        return True


class FusedBasicBlock(_FusedSum, BasicBlock):
    """`BasicBlock` whose residual sum takes one pass."""


class FusedBottleneck(_FusedSum, Bottleneck):
    """`Bottleneck` whose residual sum takes one pass."""


FUSED: dict[type[nn.Module], tuple[type[_FusedSum], str]] = {
    BasicBlock: (FusedBasicBlock, "conv2"),
    Bottleneck: (FusedBottleneck, "conv3"),
}
"""Kind of block → the kind with its sum in one pass, and the name of the last convolution of its branch."""


def is_residual_sum(function: Any) -> bool:
    """Whether a call in the trace of a step is a block's fused residual sum."""
    return isinstance(getattr(function, "__self__", None), _FusedSum)


def fuse_residual_sums(network: nn.Module, kernels: KernelsByDevice) -> tuple[int, int]:
    """Fuse the residual sums of the network's blocks, in place; returns how many, and how many biases."""
    blocks = [block for block in network.modules() if type(block) in FUSED]
    biases = 0
    for block in blocks:
        block.__class__, last = FUSED[type(block)]
        block.__dict__["kernels"] = kernels
        convolution: Any = block.get_submodule(last)
        biases += leave_bias_to(block, [convolution] if can_leave_bias(convolution) else [], network)
    return len(blocks), biases


class _Join(torch.autograd.Function):
    """(r, s, g, b) → α g (r + b) + s."""

    @staticmethod
    def forward(
        ctx: Any,
        residual: Tensor,
        shortcut: Tensor,
        gain: Tensor,
        bias: Tensor | None,
        kernels: KernelsByDevice,
    ) -> Tensor:
        ctx.save_for_backward(residual, gain, *([] if bias is None else [bias]))
        ctx.kernels = kernels
        return kernels.of(residual, "residual sum").joined(residual, shortcut, gain, ALPHA, bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        residual, gain, *biases = ctx.saved_tensors
        kernels = ctx.kernels.of(residual, "residual sum backward")
        gradients = kernels.joined_backward(grad, residual, gain, ALPHA, biases[0] if biases else None)
        grad_residual, grad_gain, grad_bias = gradients
        return grad_residual, grad, grad_gain, grad_bias, None
