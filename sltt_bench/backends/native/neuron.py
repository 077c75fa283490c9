"""A layer of LIF neurons whose only state is u, the potential before the reset."""

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sltt_bench.backends.native.absorbed_bias import are_watched, biases_left_out
from sltt_bench.backends.native.batch_norm import deferred_by, gradient_passes_through
from sltt_bench.backends.native.kernels import KernelsByDevice
from sltt_bench.backends.native.lif_torch import Scaling, is_dense
from sltt_bench.backends.native.saved_tensor_hooks import Membrane, SavedTensors
from sltt_bench.neurons import LIFParameters, SpikingNeuron, reset


class Portion(NamedTuple):
    """What a call with several steps receives: [steps · samples, …], ordered by step."""

    steps: int
    samples: slice
    """Samples of the batch; the first portion begins at 0, the last ends with the batch."""
    batch: int


class NativeLIF(SpikingNeuron):
    """Maps currents I[t] of any shape to spikes s[t] of that shape.

    u[t] overwrites u[t−1] in memory if no graph needs u[t−1] any more.
    """

    carried = ("linked_membrane",)
    portion: Portion | None = None
    """What the next calls receive, if it is not the batch at one step; these calls need no graph."""

    def __init__(self, parameters: LIFParameters, kernels: KernelsByDevice, saved: SavedTensors) -> None:
        super().__init__()
        self.parameters_ = parameters
        self._kernels = kernels
        self.saved = saved
        self._carried: _Carried | None = None
        self.sources: tuple[torch.nn.Conv2d, ...] = ()
        """Preceding convolutions that may leave their bias to this layer."""
        self.spikes_are_read = True
        """Whether anything except hooks reads the spikes; otherwise only their gradient needs to exist."""
        self._past: Tensor | None = None
        """u before the steps whose portions are being computed."""

    def takes_biases(self) -> bool:
        return not self._is_watched()

    def _is_watched(self) -> bool:
        """Whether a hook or a patched forward method reads currents or spikes."""
        return "forward" in self.__dict__ or are_watched([self])

    def scaled(self, x: Tensor, gain: float, divisor: float | None = None) -> Tensor:
        """Returns γ s[t] from currents x / β (or x), by one kernel if nothing else reads currents or spikes.

        In the trace of a step this is a call of the layer with a `gain`.
        """
        if isinstance(x, Tensor) and self._is_watched():
            return super().scaled(x, gain, divisor)
        result: Tensor = self(x, gain=gain, divisor=1.0 if divisor is None else divisor)
        return result

    def forward(self, current: Tensor, *, gain: float = 1.0, divisor: float = 1.0) -> Tensor:
        scale = Scaling(divisor, gain)
        if self.portion is not None:
            return self._of_portion(current, scale, self.portion)
        before = self._carried
        previous = None if before is None else before.membrane
        if previous is not None and previous.shape != current.shape:
            raise ValueError(
                f"the neurons hold potentials of shape {tuple(previous.shape)} but receive currents of shape "
                f"{tuple(current.shape)}; call reset_state before a new sequence"
            )
        deferred = deferred_by(current)
        if before is not None and before.membrane.dtype != current.dtype and deferred is None:
            # E.g. feedback in another format, which is missing at the first step: a sum has the wider format.
            wide = torch.promote_types(before.membrane.dtype, current.dtype)
            current, before = current.to(wide), before.of_type(wide)
            previous = before.membrane
        reuse = previous if before is not None and before.holder() is None else None
        x, norm = (current.detach(), None) if deferred is None else (deferred.x, deferred.norm)
        kernels = self._kernels.of(x, "forward" if norm is None else "forward with batch norm")
        bias = self._bias()
        added = None if bias is None else bias.detach()
        fires = self.spikes_are_read or self._is_watched()
        spikes, membrane = kernels.forward(
            x, previous, self.parameters_, reuse, scale, norm, added, fires=fires
        )
        link = None if before is None else before.link
        if torch.is_grad_enabled() and (current.requires_grad or link is not None or bias is not None):
            return self._recorded((current, link, bias), spikes, membrane, scale, norm is not None)
        self._carried = _Carried(membrane, None, _nobody)
        return spikes

    def _bias(self) -> Tensor | None:
        """Returns the sum of the biases that the currents lack."""
        biases = biases_left_out(self.sources)
        return sum(biases[1:], biases[0]) if biases else None

    def _of_portion(self, current: Tensor, scale: Scaling, portion: Portion) -> Tensor:
        """Returns the spikes of a portion; after the last one, the layer carries u of the whole batch."""
        if portion.samples.start == 0:
            before = self._carried
            self._past = None if before is None else before.membrane
            reuse = self._past if before is not None and before.holder() is None else None
            membrane = _for_batch(current, portion.batch) if reuse is None else reuse
            self._carried = _Carried(membrane, None, _nobody)
        assert self._carried is not None
        spikes, _ = self._kernels.of(current, "forward, several steps").forward(
            current,
            None if self._past is None else self._past[portion.samples],
            self.parameters_,
            self._carried.membrane[portion.samples],
            scale,
            bias=self._bias(),
            steps=portion.steps,
        )
        if portion.samples.stop == portion.batch:
            self._past = None
        return spikes

    def _recorded(
        self,
        inputs: tuple[Tensor, Tensor | None, Tensor | None],
        spikes: Tensor,
        membrane: Tensor,
        scale: Scaling,
        normalises: bool,
    ) -> Tensor:
        """Returns the spikes as part of the graph. `inputs`: currents, link, and the bias they lack."""
        kept = Membrane(membrane, partial(self._kernels.fire, neuron=self.parameters_, gain=scale.gain))
        done = _Done(spikes, kept, self._kernels, self.parameters_, scale, normalises)
        with self.saved.announce(kept):
            spikes, link = _Step.apply(*inputs, done)
        # If autograd itself or foreign hooks (a checkpoint's) hold u[t], its release cannot be observed.
        holder = weakref.ref(kept) if kept.is_kept else _somebody
        self._carried = _Carried(membrane, link, holder)
        return spikes

    @property
    def potential(self) -> Tensor | None:
        """v[t], the potential after the reset; None before the first step.

        Raises NotImplementedError if a gradient would flow through it although λ = 0: no link can carry it.
        """
        if self._carried is None:
            return None
        membrane, link, _ = self._carried
        potential = reset(membrane, self._kernels.fire(membrane, self.parameters_), self.parameters_)
        if link is None or not torch.is_grad_enabled():
            return potential
        if not self.parameters_.decay:
            raise NotImplementedError(
                "native passes no gradient on through the potential of neurons that forget (tau = 1); detach it, or choose "
                "--backend reference"
            )
        result: Tensor = _Potential.apply(link, potential, self.parameters_.decay)
        return result

    def reset_state(self) -> None:
        self._carried = self._past = None

    def detach_state(self) -> None:
        if self._carried is not None:
            self._carried = self._carried._replace(link=None)

    @property
    def linked_membrane(self) -> Tensor | None:
        """u[t] with its gradient path, for methods that save, scale or restore it; None before step 1."""
        if self._carried is None:
            return None
        self._carried = self._carried._replace(holder=_somebody)  # the reader may keep it
        return self._carried.membrane if self._carried.link is None else self._carried.link

    @linked_membrane.setter
    def linked_membrane(self, value: Tensor | None) -> None:
        link = value if value is not None and value.requires_grad else None
        self._carried = None if value is None else _Carried(value.detach(), link, _somebody)


class _Carried(NamedTuple):
    """The state that a layer hands from step to step."""

    membrane: Tensor
    """u[t]."""
    link: Tensor | None
    """Carries the gradient from step t+1 to step t."""
    holder: Callable[[], object | None]
    """Returns an object other than the layer that still needs the memory of u[t], or None."""

    def of_type(self, dtype: torch.dtype) -> "_Carried":
        """Returns the same state in another dtype."""
        link = None if self.link is None else self.link.to(dtype)
        return self._replace(membrane=self.membrane.to(dtype), link=link, holder=_somebody)


def _for_batch(currents: Tensor, batch: int) -> Tensor:
    """Returns an empty tensor for `batch` samples, laid out as the currents if samples are contiguous."""
    shape = (batch, *currents.shape[1:])
    if is_dense(currents) and currents.stride(0) * len(currents) == currents.numel():
        return currents.new_empty_strided(shape, currents.stride())
    return currents.new_empty(shape)


def _nobody() -> None:
    return None


def _somebody() -> bool:
    return True


class _Done(NamedTuple):
    """A computed step, to be recorded in the graph."""

    spikes: Tensor
    membrane: Membrane
    kernels: KernelsByDevice
    neuron: LIFParameters
    scale: Scaling
    normalises: bool
    """Whether the currents are a placeholder that the step normalised itself."""


class _Potential(torch.autograd.Function):
    """v[t], whose gradient goes back through the link as in a step u[t+1] = λ v[t] + I[t+1]."""

    @staticmethod
    def forward(ctx: Any, link: Tensor, potential: Tensor, decay: float) -> Tensor:
        ctx.decay = decay
        return potential.view_as(potential)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad / ctx.decay, None, None


class _Step(torch.autograd.Function):
    """(x, link to step t−1, b) → (γ s[t], link to step t+1) for the currents I[t] = (x + b) / β.

    A link has the shape of u, and its gradient is ∂L/∂u of the *later* step, so the same tensor
    serves the currents and the way back in time.
    """

    @staticmethod
    def forward(
        ctx: Any, current: Tensor, link: Tensor | None, bias: Tensor | None, done: _Done
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        membrane = done.membrane.tensor()
        ctx.save_for_backward(membrane)
        ctx.membrane = weakref.ref(done.membrane)
        ctx.kernels, ctx.neuron, ctx.scale = done.kernels, done.neuron, done.scale
        ctx.normalises, ctx.is_biased = done.normalises, bias is not None
        return done.spikes, membrane.detach()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_spikes: Tensor | None, grad_next: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_spikes is None and grad_next is None:
            return None, None, None, None
        (membrane,) = ctx.saved_tensors
        through_time = ctx.needs_input_grad[1]
        if ctx.normalises and ctx.needs_input_grad[0]:
            grad = gradient_passes_through(
                ctx.next_functions[0][0],
                ctx.kernels.of(membrane, "backward with batch norm"),
                grad_output=grad_spikes,
                grad_next=grad_next,
                membrane=membrane,
                neuron=ctx.neuron,
                gain=ctx.scale.gain,
            )
            return grad, grad if through_time else None, None, None
        kernels = ctx.kernels.of(membrane, "backward")
        backward = kernels.backward_biased if ctx.is_biased else kernels.backward
        gradients = backward(
            grad_spikes, grad_next, membrane, ctx.neuron, ctx.scale, through_time=through_time
        )
        return *gradients, *[None] * (4 - len(gradients))
