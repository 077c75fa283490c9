"""Batch norm whose result is never stored: the neurons behind it normalise what they read.

    usual      x → [statistics] → [y = a x + b, stored] → [step of the neurons] → s, u
    deferred   x → [statistics] → [a x + b and the step of the neurons]         → s, u

Between the two layers goes a placeholder, a tensor of undefined numbers that names x and the normalisation. Autograd
keeps x, as of every batch norm, and u. Backward, the neurons' kernel forms ∂L/∂y and its sums by channel
in one pass, and a second makes ∂L/∂x of them. Running statistics are learned as torch does; outputs and gradients differ
from torch's by rounding alone.

A batch norm is deferred where nothing but one layer of neurons can see its result, which the calls of a step
(torch.fx) show. Other normalisations, and those that several processes share, stay as they are.
"""

from collections import Counter
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sltt_bench.backends.native.kernels import Kernels
from sltt_bench.backends.native.lif_torch import BatchNormParameters
from sltt_bench.backends.native.units import trace_step
from sltt_bench.neurons import reads_values
from sltt_bench.torch_internals import batch_statistics


class Deferred(NamedTuple):
    """What a placeholder stands for."""

    x: Tensor
    """[batch, channels, …], outside the graph."""
    norm: BatchNormParameters


def deferred_by(placeholder: Tensor) -> Deferred | None:
    """What the tensor stands for; None if it is what it says."""
    deferred: Deferred | None = getattr(placeholder, "_deferred", None)
    return deferred


def defer(network: nn.Module, neurons: type[nn.Module]) -> int:
    """Let the batch norms before layers of the kind `neurons` defer, in place; how many do.

    Raises NotTraceable.
    """
    pairs = _pairs(network, neurons)
    for norm, layer in pairs:
        norm.__class__ = DEFERRING[type(norm)]
        norm.__dict__["readers"] = (layer,)  # in a tuple: not a part of this layer
    return len(pairs)


def _pairs(network: nn.Module, neurons: type[nn.Module]) -> list[tuple[nn.Module, nn.Module]]:
    """The batch norms whose result one layer of neurons receives and nothing else sees, each with that layer."""
    graph = trace_step(network)
    calls = [node for node in graph.nodes if node.op == "call_module"]
    times = Counter(network.get_submodule(str(node.target)) for node in calls)
    pairs = []
    for node in calls:
        norm = network.get_submodule(str(node.target))
        users = list(node.users)
        if type(norm) not in DEFERRING or not _learns_as_usual(norm) or times[norm] > 1 or len(users) != 1:
            continue
        layer = network.get_submodule(str(users[0].target)) if users[0].op == "call_module" else None
        if (
            isinstance(layer, neurons)
            and times[layer] == 1
            and users[0].args == (node,)
            and not users[0].kwargs
        ):
            pairs.append((norm, layer))
    return pairs


def _learns_as_usual(norm: nn.Module) -> bool:
    """With scales and shifts, and running statistics that forget at a fixed rate."""
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    return norm.affine and norm.momentum is not None and norm.running_mean is not None


class _Deferring(nn.modules.batchnorm._BatchNorm):
    """What the deferring layers of any number of dimensions do."""

    readers: tuple[nn.Module]
    """The layer of neurons behind it."""

    def forward(self, input: Tensor) -> Tensor:
        if not self._may_defer(input):
            return super().forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        x = input.detach()
        mean, variance = self._statistics(x)
        placeholder: Tensor = _Normalise.apply(
            input, self.weight, self.bias, mean, variance, self.eps, self.training
        )
        norm = BatchNormParameters(
            mean, variance, self.weight.detach(), self.bias.detach(), self.eps, self.training
        )
        placeholder._deferred = Deferred(x, norm)  # type: ignore[attr-defined]
        return placeholder

    def _may_defer(self, x: Tensor) -> bool:
        """Nobody looks at what is not there; and torch refuses a batch of one value a channel."""
        (layer,) = self.readers
        hooks = [
            *self._forward_hooks.values(),
            *layer._forward_pre_hooks.values(),
            *layer._forward_hooks.values(),
        ]
        patched = "forward" in layer.__dict__
        return not patched and not any(map(reads_values, hooks)) and x.numel() > x.shape[1]

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """μ and σ², of the batch while training, which the running ones learn."""
        mean, variance = self.running_mean, self.running_var
        assert mean is not None
        assert variance is not None
        if not self.training:
            return mean, variance
        if self.track_running_stats:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
        else:  # somewhere to write: without, some devices round the results to the type of x
            mean, variance = torch.empty_like(mean), torch.empty_like(variance)
        assert self.momentum is not None
        return batch_statistics(x, mean, variance, self.momentum)


class DeferringBatchNorm1d(_Deferring, nn.BatchNorm1d):
    """As `nn.BatchNorm1d`, before neurons that normalise what they read."""


class DeferringBatchNorm2d(_Deferring, nn.BatchNorm2d):
    """As `nn.BatchNorm2d`, before neurons that normalise what they read."""


DEFERRING: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: DeferringBatchNorm1d,
    nn.BatchNorm2d: DeferringBatchNorm2d,
}


class _Normalise(torch.autograd.Function):
    """(x, γ, β) → the placeholder of the normalised x.

    Its gradient comes from the step of the neurons (`gradient_passes_through`), which leaves the way on.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        eps: float,
        of_batch: bool,
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, bias, mean, variance)
        ctx.eps, ctx.of_batch = eps, of_batch
        ctx.to_input = None
        return torch.empty_strided(x.shape, [0] * x.dim(), dtype=x.dtype, device=x.device)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        to_input, ctx.to_input = ctx.to_input, None
        gradients = (None, None, None) if grad is None else to_input(grad)
        return *gradients, None, None, None, None


def gradient_passes_through(node: Any, kernels: Kernels, **step: Any) -> Tensor:
    """∂L/∂I[t] of neurons that received a placeholder; `node`: what made the placeholder, in the graph.

    What is saved there is fetched once, for the two passes of the gradient: it may be computed for that, or a
    checkpoint's, which gives it out once. `step`: the other arguments of `Kernels.backward_normalised`.
    """
    x, weight, bias, mean, variance = node.saved_tensors
    norm = BatchNormParameters(mean, variance, weight.detach(), bias.detach(), node.eps, node.of_batch)
    grad, sums = kernels.backward_normalised(**step, x=x, norm=norm)
    node.to_input = partial(kernels.backward_to_input, x=x, norm=norm, sums=sums)
    return grad
