"""The LIF step and its derivative on membrane potentials, in few passes over memory, on any device.

    forward    I[t], u[t−1] → s[t], u[t]
    backward   ∂L/∂s[t], ∂L/∂u[t+1], u[t] → ∂L/∂u[t] = ∂L/∂I[t]
    fire       u[t] → s[t]

All use u, the potential before the reset, as state and recompute spike and reset from it. A scaled layer
receives x = β I and returns γ s; a layer behind a batch norm may receive the input of the normalisation. The
operations and their order are those of `sltt_bench.neurons`, so spikes agree bitwise. On the CPU the
operations run on pieces that fit into the cache, so a chain of operations costs one pass over memory.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from sltt_bench.neurons import LIFParameters
from sltt_bench.surrogates import SURROGATES
from sltt_bench.torch_internals import batch_statistics

PIECE = 524_288
"""Elements on which all CPU threads work before the next operation. It does not depend on the number of
threads, so memory peaks are the same on every machine."""


class Scaling(NamedTuple):
    """The factors before and behind a layer of neurons: γ LIF(x / β)."""

    divisor: float = 1.0
    """β."""
    gain: float = 1.0
    """γ."""


UNSCALED = Scaling()


class BatchNormParameters(NamedTuple):
    """A batch norm before a layer of neurons: I = γ (x − μ) / √(σ² + ε) + β, by channel (dimension 1 of x).

    All tensors are in float32, or wider if x is.
    """

    mean: Tensor
    """μ [channels]."""
    variance: Tensor
    """σ² [channels], the biased estimate."""
    weight: Tensor
    """γ [channels]."""
    bias: Tensor
    """β [channels]."""
    eps: float
    of_batch: bool
    """Whether μ and σ² are those of x itself, so that a gradient flows through them."""

    @property
    def inverse_deviation(self) -> Tensor:
        """1 / √(σ² + ε) [channels]."""
        return torch.rsqrt(self.variance + self.eps)

    def affine(self, dimensions: int) -> tuple[Tensor, Tensor]:
        """Returns a and b of I = a x + b, shape [1, channels, 1, …], for an x of `dimensions` dimensions."""
        factor = self.weight * self.inverse_deviation
        shape = (1, -1, *[1] * (dimensions - 2))
        return factor.view(shape), (self.bias - self.mean * factor).view(shape)


class RunningStatistics(NamedTuple):
    """The running statistics of a batch norm."""

    mean: Tensor
    """[channels]."""
    variance: Tensor
    """[channels]."""
    batches: Tensor
    """Number of batches so far, an integer tensor."""


class TorchKernels:
    """The kernels of any device, as `kernels.Kernels` describes them."""

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
        if bias is not None:
            x = x + _by_channel(bias, x)
        if norm is not None:
            return self._forward_normalised(x, previous, neuron, out, scale.gain, norm, fires=fires)
        membrane = torch.empty_like(x[: len(x) // steps]) if out is None else out
        spikes = torch.empty_like(x) if fires else None
        past = previous
        for current, *fired in zip(*(t.chunk(steps) for t in (x, *_if_any(spikes))), strict=True):
            self._step(current, past, membrane, fired, neuron, scale)
            past = membrane
        return placeholder_like(x) if spikes is None else spikes, membrane

    def _step(
        self,
        x: Tensor,
        previous: Tensor | None,
        membrane: Tensor,
        spikes: Sequence[Tensor],
        neuron: LIFParameters,
        scale: Scaling,
    ) -> None:
        """Write u[t] into `membrane`, and γ s[t] into `spikes` if it has a tensor."""
        if previous is None:
            if scale.divisor == 1:
                torch.add(x, neuron.resting_potential, out=membrane)
            else:
                torch.div(x, scale.divisor, out=membrane).add_(neuron.resting_potential)
            _fire(membrane, spikes, neuron, scale.gain)
            return
        for x_, previous_, membrane_, *spikes_ in _pieces(x, previous, membrane, *spikes):
            current_ = x_ if scale.divisor == 1 else x_ / scale.divisor
            _leak_and_integrate(current_, previous_, membrane_, spikes_, neuron, scale.gain)

    def _forward_normalised(
        self,
        x: Tensor,
        previous: Tensor | None,
        neuron: LIFParameters,
        out: Tensor | None,
        gain: float,
        norm: BatchNormParameters,
        *,
        fires: bool,
    ) -> tuple[Tensor, Tensor]:
        factor, shift = norm.affine(x.dim())
        membrane = torch.empty_like(x) if out is None else out
        spikes = torch.empty_like(x) if fires else None
        past = x if previous is None else previous
        for x_, past_, membrane_, *spikes_ in _samples(x, past, membrane, *_if_any(spikes)):
            current_ = (x_ * factor).add_(shift).to(x.dtype)
            if previous is None:
                _fire(membrane_.copy_(current_).add_(neuron.resting_potential), spikes_, neuron, gain)
            else:
                _leak_and_integrate(current_, past_, membrane_, spikes_, neuron, gain)
        return placeholder_like(x) if spikes is None else spikes, membrane

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
        grad = torch.empty_like(membrane)
        if grad_next is None:
            assert grad_output is not None
            for grad_output_, membrane_, grad_ in _pieces(grad_output, membrane, grad):
                torch.mul(_times(grad_output_, scale.gain), _surrogate(membrane_, neuron), out=grad_)
        elif grad_output is None:
            for grad_next_, membrane_, grad_ in _pieces(grad_next, membrane, grad):
                _through_time(None, grad_next_, membrane_, grad_, neuron)
        else:
            for grad_output_, grad_next_, membrane_, grad_ in _pieces(grad_output, grad_next, membrane, grad):
                _through_time(_times(grad_output_, scale.gain), grad_next_, membrane_, grad_, neuron)
        if not through_time:
            return grad if scale.divisor == 1 else grad.div_(scale.divisor), None
        return grad if scale.divisor == 1 else grad / scale.divisor, grad

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
        gradients = self.backward(grad_output, grad_next, membrane, neuron, scale, through_time=through_time)
        return *gradients, _sum_of_channels(gradients[0])

    def backward_normalised(
        self,
        grad_output: Tensor | None,
        grad_next: Tensor | None,
        membrane: Tensor,
        neuron: LIFParameters,
        gain: float,
        x: Tensor,
        norm: BatchNormParameters,
    ) -> tuple[Tensor, None]:
        """Returns None for the sums, since `backward_to_input` computes them itself."""
        return self.backward(grad_output, grad_next, membrane, neuron, Scaling(gain=gain))[0], None

    def backward_to_input(
        self,
        grad: Tensor,
        x: Tensor,
        norm: BatchNormParameters,
        sums: Tensor | None,
        into: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, norm.weight, norm.mean, norm.variance, norm.mean, norm.inverse_deviation,
            norm.of_batch, norm.eps, [True, True, True],
        )  # fmt: skip
        if into is None:
            return grad_x, grad_weight, grad_bias
        return grad_x, into[0].add_(grad_weight), into[1].add_(grad_bias)

    def statistics(
        self, x: Tensor, running: RunningStatistics, momentum: float | None, biases: Sequence[Tensor] = ()
    ) -> tuple[Tensor, Tensor]:
        if momentum is None:  # without output tensors, some devices round the results to the dtype of x
            return batch_statistics(
                x, torch.empty_like(running.mean), torch.empty_like(running.variance), 0.0
            )
        running.batches.add_(1)
        of_batch = batch_statistics(x, running.mean, running.variance, momentum)
        for bias in biases:
            running.mean.add_(bias, alpha=momentum)
        return of_batch

    def joined(
        self, residual: Tensor, shortcut: Tensor, gain: Tensor, alpha: float, bias: Tensor | None
    ) -> Tensor:
        if bias is not None:
            residual = residual + _by_channel(bias, residual)
        return (residual * gain).mul_(alpha).add_(shortcut)

    def joined_backward(
        self, grad: Tensor, residual: Tensor, gain: Tensor, alpha: float, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        scaled = grad * alpha
        grad_gain = (scaled * (residual if bias is None else residual + _by_channel(bias, residual))).sum()
        grad_residual = scaled * gain
        grad_bias = None if bias is None else _sum_of_channels(grad_residual)
        return grad_residual, grad_gain.to(gain.dtype), grad_bias

    def fire(self, membrane: Tensor, neuron: LIFParameters, gain: float = 1.0) -> Tensor:
        spikes = torch.empty_like(membrane)
        _fire(membrane, [spikes], neuron, gain)
        return spikes


def placeholder_like(x: Tensor) -> Tensor:
    """Returns a tensor of undefined numbers with the shape and dtype of x, in the memory of one number."""
    return torch.empty_strided(x.shape, [0] * x.dim(), dtype=x.dtype, device=x.device)


def _if_any(tensor: Tensor | None) -> list[Tensor]:
    return [] if tensor is None else [tensor]


def _by_channel(numbers: Tensor, x: Tensor) -> Tensor:
    """Returns one number for each channel, to broadcast with x [batch, channels, …], in x's dtype."""
    return numbers.to(x.dtype).view(-1, *[1] * (x.dim() - 2))


def _sum_of_channels(x: Tensor) -> Tensor:
    """Returns the sum of each channel of x [batch, channels, …], at least in float32."""
    return x.sum([0, *range(2, x.dim())], dtype=torch.promote_types(x.dtype, torch.float32))


def _times(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else x * factor


@cache
def representable_threshold(v_threshold: float, dtype: torch.dtype) -> float:
    """Returns the smallest number of the format that is not below V_th (in float32, as in the equations).

    A comparison rounds the threshold to the format of the potential; rounded down, neurons would fire
    below V_th.
    """
    exact = torch.tensor(v_threshold, dtype=torch.promote_types(dtype, torch.float32))
    rounded = exact.to(dtype)
    if rounded.to(exact.dtype) < exact:
        rounded = torch.nextafter(rounded, torch.tensor(torch.inf, dtype=dtype))
    return float(rounded)


def _leak_and_integrate(
    current: Tensor,
    previous: Tensor,
    membrane: Tensor,
    spikes: Sequence[Tensor],
    neuron: LIFParameters,
    gain: float,
) -> None:
    """Write u[t] = λ v[t−1] + I[t] into `membrane`, and γ s[t] into `spikes` if it has a tensor."""
    fired = spikes[0] if spikes else torch.empty_like(previous)
    threshold = representable_threshold(neuron.v_threshold, membrane.dtype)
    if neuron.reset == "soft":
        torch.ge(previous, threshold, out=fired)
        torch.sub(previous, fired, alpha=neuron.v_threshold, out=membrane)
    else:  # (1 − s) u + s V_reset, and no selection, which would hide an infinite u; this makes it NaN
        torch.lt(previous, threshold, out=fired)
        torch.mul(previous, fired, out=membrane)
        if neuron.v_reset:
            membrane.add_(torch.sub(fired.new_ones(()), fired, out=fired), alpha=neuron.v_reset)
    membrane.mul_(neuron.decay).add_(current)
    if rest := neuron.resting_potential:
        membrane.add_((1 - neuron.decay) * rest)
    _fire(membrane, spikes, neuron, gain)


def _fire(membrane: Tensor, spikes: Sequence[Tensor], neuron: LIFParameters, gain: float) -> None:
    """Write γ s[t], computed from u[t], into each of `spikes`."""
    for spikes_ in spikes:
        torch.ge(membrane, representable_threshold(neuron.v_threshold, membrane.dtype), out=spikes_)
        if gain != 1:
            spikes_.mul_(gain)


def _through_time(
    grad_spikes: Tensor | None, grad_next: Tensor, membrane: Tensor, grad: Tensor, neuron: LIFParameters
) -> None:
    """Write ∂L/∂u[t] into `grad`: through s[t], v[t] and, unless detached, the reset's s[t]."""
    grad_potential = neuron.decay * grad_next
    through_spikes = grad_spikes
    if not neuron.detach_reset:
        if neuron.reset == "soft":
            through_reset = grad_potential * -neuron.v_threshold
        else:
            through_reset = grad_potential * (neuron.v_reset - membrane)
        through_spikes = through_reset if grad_spikes is None else through_reset.add_(grad_spikes)
    if neuron.reset == "hard":
        grad_potential.masked_fill_(
            membrane >= representable_threshold(neuron.v_threshold, membrane.dtype), 0
        )
    if through_spikes is None:
        grad.copy_(grad_potential)
    else:
        torch.mul(through_spikes, _surrogate(membrane, neuron), out=grad).add_(grad_potential)


def _surrogate(membrane: Tensor, neuron: LIFParameters) -> Tensor:
    x = membrane - neuron.v_threshold
    if neuron.surrogate == "triangle":  # the default; the same operations, in place
        return torch.sub(x.new_ones(()), x.abs_(), out=x).clamp_(min=0)
    return SURROGATES[neuron.surrogate](x)


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yields the tensors in corresponding pieces, or whole if pieces would not correspond or not pay."""
    first = tensors[0]
    if first.device.type != "cpu" or first.numel() <= PIECE:
        yield tensors
    elif all(tensor.stride() == first.stride() for tensor in tensors) and is_dense(first):
        flat = [tensor.as_strided((first.numel(),), (1,)) for tensor in tensors]
        yield from zip(*(torch.split(tensor, PIECE) for tensor in flat), strict=True)
    else:
        yield tensors


def _samples(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yields the tensors [batch, …] in pieces of whole samples, so that numbers by channel broadcast."""
    first = tensors[0]
    samples = max(1, PIECE * len(first) // max(1, first.numel()))
    yield from zip(*(torch.split(tensor, samples) for tensor in tensors), strict=True)


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill a stretch of memory without gaps, in any order of dimensions."""
    expected = 1
    for stride, length in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True
