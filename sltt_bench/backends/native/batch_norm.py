"""Batch norm whose result is never stored: the neurons behind it normalise their input.

    usual      x → [statistics] → [y = a x + b, stored] → [step of the neurons] → s, u
    deferred   x → [statistics] → [a x + b and the step of the neurons]         → s, u

Batch norm passes the neurons a placeholder: a tensor of undefined numbers that refers to x and the
normalisation. Autograd saves x, as for every batch norm, and u. Backward, the neurons' kernel computes ∂L/∂y
and its sums by channel in one pass, and a second pass computes ∂L/∂x from them. Running statistics are
learned as in torch; outputs and gradients differ from torch's only by rounding.

A batch norm is deferred if the calls of a step (torch.fx) show that only one layer of neurons can see its
result, and that nothing is changed in place before the neurons read x. Other normalisations, and those that
several processes share, are unchanged. Convolutions before a deferred one leave their biases to it
(`absorbed_bias`).
"""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sltt_bench.backends.native.absorbed_bias import (
    are_watched,
    biased_convolutions,
    biases_left_out,
    leave_bias_to,
    witnesses_between,
)
from sltt_bench.backends.native.kernels import Kernels, KernelsByDevice
from sltt_bench.backends.native.lif_torch import BatchNormParameters, RunningStatistics, placeholder_like
from sltt_bench.backends.native.saved_tensor_hooks import SavedTensors
from sltt_bench.backends.native.step_calls import changed_in_place, trace_step
from sltt_bench.neurons import input_of_call
from sltt_bench.torch_internals import has_hooks, times_changed


class Deferred(NamedTuple):
    """The input and the normalisation that a placeholder stands for."""

    x: Tensor
    """[batch, channels, …], outside the graph."""
    norm: BatchNormParameters
    times_changed: int | None
    """How often x had been changed in place when batch norm read it; None if torch does not count that."""


def deferred_by(placeholder: Tensor) -> Deferred | None:
    """Returns what a placeholder stands for, else None. Raises RuntimeError if x has been changed since."""
    deferred: Deferred | None = getattr(placeholder, "_deferred", None)
    if deferred is not None and deferred.times_changed != _times_changed(deferred.x):
        raise RuntimeError(
            "what a batch norm read was changed in place before the neurons behind it normalise it; use an operation that "
            "makes a new tensor instead, or set native.fused_norm=never"
        )
    return deferred


def _times_changed(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else times_changed(tensor)


def defer(network: nn.Module, neurons: type[nn.Module], kernels: KernelsByDevice) -> tuple[int, int]:
    """Let the batch norms before layers of type `neurons` defer, in place. Raises NotTraceable.

    Returns how many do, and how many biases are left to them.
    """
    found = list(_deferrable(network, neurons))
    biases = 0
    for norm, layer, convolutions in found:
        norm.__class__ = DEFERRING[type(norm)]
        norm.__dict__["readers"] = (layer,)  # in a tuple, so that it is no submodule
        norm.__dict__["witnesses"] = witnesses_between(norm, layer, network)
        norm.__dict__["kernels"] = kernels
        biases += leave_bias_to(norm, convolutions, network)
    return len(found), biases


def _deferrable(
    network: nn.Module, neurons: type[nn.Module]
) -> Iterator[tuple[nn.Module, nn.Module, list[nn.Conv2d]]]:
    """Yields batch norms whose result only one layer of neurons sees.

    With each come that layer and the convolutions whose bias only the batch norm sees.
    """
    graph = trace_step(network)
    every = list(graph.nodes)
    calls = [node for node in every if node.op == "call_module"]
    times = Counter(network.get_submodule(str(node.target)) for node in calls)
    for node in calls:
        norm = network.get_submodule(str(node.target))
        users = list(node.users)
        if type(norm) not in DEFERRING or not _learns_as_usual(norm) or times[norm] > 1 or len(users) != 1:
            continue
        if any(
            changed_in_place(other, network) for other in every[every.index(node) : every.index(users[0])]
        ):
            continue  # the change may affect x, which the neurons would read only afterwards
        layer = network.get_submodule(str(users[0].target)) if users[0].op == "call_module" else None
        if (
            isinstance(layer, neurons)
            and times[layer] == 1
            and users[0].args == (node,)
            and users[0].kwargs.get("divisor", 1) == 1
        ):
            yield (
                norm,
                layer,
                list(biased_convolutions(input_of_call(node.args, node.kwargs), network, times)),
            )


def _learns_as_usual(norm: nn.Module) -> bool:
    """Whether it has scales and shifts, and running statistics with a fixed momentum."""
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    return norm.affine and norm.momentum is not None and norm.running_mean is not None


class _Deferring(nn.modules.batchnorm._BatchNorm):
    """Base of deferring batch norms for any number of dimensions."""

    readers: tuple[Any]
    """The layer of neurons behind it."""
    witnesses: tuple[nn.Module, ...]
    """Parts of the network whose hooks see the tensor between the two."""
    sources: tuple[nn.Conv2d, ...]
    """The convolutions before it that may leave their bias to it."""
    kernels: KernelsByDevice
    kept_statistics: list[tuple[Tensor, Tensor]] | None = None
    """Cache of μ and σ² for a caller that will call again with the same x; empty until they are computed."""

    def forward(self, input: Tensor) -> Tensor:
        biases = biases_left_out(self.sources)
        if not self.is_unwatched() or input.numel() <= input.shape[1]:  # torch refuses one value per channel
            for bias in biases:
                input = input + bias.to(input.dtype).view(-1, 1, 1)
            return super().forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        x = input.detach()
        mean, variance = self._statistics(x, biases)
        placeholder: Tensor = _Normalise.apply(
            input,
            self.weight,
            self.bias,
            mean,
            variance,
            self.eps,
            self.training,
            self.readers[0].saved,
            *biases,
        )
        norm = BatchNormParameters(
            mean, variance, self.weight.detach(), self.bias.detach(), self.eps, self.training
        )
        placeholder._deferred = Deferred(x, norm, _times_changed(x))  # type: ignore[attr-defined]
        return placeholder

    def takes_biases(self) -> bool:
        return self.training and self.is_unwatched()

    def is_unwatched(self) -> bool:
        """Whether no hook reads the result, which does not exist if deferred."""
        (layer,) = self.readers
        return "forward" not in layer.__dict__ and not are_watched((self, layer, *self.witnesses))

    def _statistics(self, x: Tensor, biases: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Returns μ and σ²; in training of the batch, from which (with biases) the running ones learn."""
        mean, variance, batches = self.running_mean, self.running_var, self.num_batches_tracked
        assert mean is not None
        assert variance is not None
        assert batches is not None
        if not self.training:
            return mean, variance
        if self.kept_statistics:
            return self.kept_statistics[0]
        of_batch = self.kernels.of(x, "batch statistics").statistics(
            x,
            RunningStatistics(mean, variance, batches),
            self.momentum if self.track_running_stats else None,
            [bias.detach() for bias in biases],
        )
        if self.kept_statistics is not None:
            self.kept_statistics.append(of_batch)
        return of_batch


class DeferringBatchNorm1d(_Deferring, nn.BatchNorm1d):
    """`nn.BatchNorm1d` before neurons that normalise their input."""


class DeferringBatchNorm2d(_Deferring, nn.BatchNorm2d):
    """As `nn.BatchNorm2d`, before neurons that normalise what they read."""


DEFERRING: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: DeferringBatchNorm1d,
    nn.BatchNorm2d: DeferringBatchNorm2d,
}


class _Normalise(torch.autograd.Function):
    """(x, γ, β; biases that x lacks) → the placeholder of the normalised x.

    Its gradient comes from the step of the neurons (`gradient_passes_through`), which also provides the
    function that continues it to x. In an iteration, that function also adds the gradients of γ and β to theirs
    so far: autograd would launch a kernel for each, at every step. The gradient of the biases is zero: in an iteration
    it is set only where there is none yet.
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
        saved: SavedTensors,
        *biases: Tensor,
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, mean, variance)
        ctx.eps, ctx.of_batch = eps, of_batch
        ctx.to_input, ctx.saved, ctx.biases = None, saved, biases
        ctx.scales = (
            weight,
            bias,
        )  # not saved: torch 2.6 forgets the hooks on parameters that hooks of saved tensors unpack
        ctx.scales_changed = tuple(map(times_changed, ctx.scales))
        return placeholder_like(x)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        to_input, ctx.to_input = ctx.to_input, None
        if grad is None:
            return (None,) * (8 + len(ctx.biases))
        zeros = [_zero_gradient(bias, in_iteration=ctx.saved.is_active) for bias in ctx.biases]
        if not (ctx.saved.is_active and _collect_as_usual(*ctx.scales)):
            return *to_input(grad), *[None] * 5, *zeros
        weight, bias = ctx.scales
        if weight.grad is not None:
            grad_x, *_ = to_input(grad, into=(weight.grad, bias.grad))
        else:
            grad_x, to_weight, to_bias = to_input(grad)
            weight.grad, bias.grad = to_weight.to(weight.dtype), to_bias.to(bias.dtype)
        return grad_x, *[None] * 7, *zeros


def _collect_as_usual(*parameters: Tensor) -> bool:
    """Whether gradients may be added to `.grad` without autograd, to the same effect, and all or none have one."""
    usual = all(p.is_leaf and p.requires_grad and not has_hooks(p) for p in parameters)
    return usual and len({p.grad is None for p in parameters}) == 1


def _zero_gradient(bias: Tensor, *, in_iteration: bool) -> Tensor | None:
    """Returns the zero gradient of a cancelled bias for autograd, or None if `.grad` holds it already."""
    if not in_iteration or has_hooks(bias):
        return torch.zeros_like(bias)
    if bias.requires_grad:
        if bias.grad is None:
            bias.grad = torch.zeros_like(bias)
        else:  # as if zeros were added, for code that reads the version counter
            torch.autograd.graph.increment_version(bias.grad)
    return None


def gradient_passes_through(node: Any, kernels: Kernels, **step: Any) -> Tensor:
    """Returns ∂L/∂I[t] of neurons that received a placeholder; `node`: the graph node of the placeholder.

    The node's saved tensors are read once, for both passes of the gradient: they may be recomputed on access,
    or belong to a checkpoint, which allows one access. `step`: the other arguments of
    `Kernels.backward_normalised`.
    """
    x, mean, variance = node.saved_tensors
    weight, bias = node.scales
    if tuple(map(times_changed, node.scales)) != node.scales_changed:
        raise RuntimeError(
            "γ or β of a batch norm was changed in place although the backward pass needs it; change it between iterations"
        )
    norm = BatchNormParameters(mean, variance, weight.detach(), bias.detach(), node.eps, node.of_batch)
    grad, sums = kernels.backward_normalised(**step, x=x, norm=norm)
    node.to_input = partial(kernels.backward_to_input, x=x, norm=norm, sums=sums)
    return grad
