"""A layer of LIF neurons whose only state is u, the potential before the reset."""

import weakref
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sltt_bench.backends.native.kernels import Kernels
from sltt_bench.backends.native.saved import Membrane, SavedTensors
from sltt_bench.neurons import LIFParameters, SpikingNeuron, reset


class NativeLIF(SpikingNeuron):
    """Currents I[t] of any shape in, spikes s[t] of that shape out.

    u[t] takes the place of u[t−1] in memory where no graph needs u[t−1] any more.
    """

    def __init__(self, parameters: LIFParameters, kernels: Kernels, saved: SavedTensors) -> None:
        super().__init__()
        self.parameters_ = parameters
        self._kernels = kernels
        self._saved = saved
        self._membrane: Tensor | None = None
        self._overwritable = True
        """Whether no graph holds u[t] but those of which `_reader` tells."""
        self._reader: weakref.ref[Membrane] | None = None
        """What a graph keeps of u[t]; dead once no graph needs it."""
        self._link: Tensor | None = None
        """Leads the gradient from step t+1 to step t."""

    def forward(self, current: Tensor) -> Tensor:
        previous = self._membrane
        if previous is not None and previous.shape != current.shape:
            raise ValueError(
                f"the neurons hold potentials of shape {tuple(previous.shape)} but receive currents of shape "
                f"{tuple(current.shape)}; call reset_state before a new sequence"
            )
        reuse = previous if self._may_overwrite() else None
        spikes, membrane = self._kernels.forward(current.detach(), previous, self.parameters_, reuse)
        self._membrane, self._reader, self._overwritable = membrane, None, True
        if torch.is_grad_enabled() and (current.requires_grad or self._link is not None):
            return self._recorded(current, spikes, membrane)
        self._link = None
        return spikes

    def _recorded(self, current: Tensor, spikes: Tensor, membrane: Tensor) -> Tensor:
        """The spikes as part of the graph."""
        kept = Membrane(membrane, partial(self._kernels.fire, neuron=self.parameters_))
        with self._saved.announce(kept):
            spikes, self._link = _Step.apply(
                current, self._link, _Done(spikes, kept, self._kernels, self.parameters_)
            )
        if self._saved.is_active:
            self._reader = weakref.ref(kept)
        else:
            self._overwritable = False  # Autograd holds u[t], and nobody tells when it lets go.
        return spikes

    def _may_overwrite(self) -> bool:
        return self._overwritable and (self._reader is None or self._reader() is None)

    @property
    def potential(self) -> Tensor | None:
        """v[t], the potential after the reset, outside the graph; None before the first step."""
        if self._membrane is None:
            return None
        return reset(self._membrane, self._kernels.fire(self._membrane, self.parameters_), self.parameters_)

    def reset_state(self) -> None:
        self._membrane, self._link = None, None
        self._reader, self._overwritable = None, True

    def detach_state(self) -> None:
        self._link = None

    def extra_repr(self) -> str:
        p = self.parameters_
        return f"tau={p.tau}, v_threshold={p.v_threshold}, reset={p.reset}, surrogate={p.surrogate}"


class _Done(NamedTuple):
    """A step that was computed and is now recorded."""

    spikes: Tensor
    membrane: Membrane
    kernels: Kernels
    neuron: LIFParameters


class _Step(torch.autograd.Function):
    """(I[t], link to step t−1) → (s[t], link to step t+1).

    A link has the shape of u, and ∂L/∂u of the *later* step as its gradient, so that the same tensor
    goes to the currents and back in time.
    """

    @staticmethod
    def forward(ctx: Any, current: Tensor, link: Tensor | None, done: _Done) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        membrane = done.membrane.tensor()
        ctx.save_for_backward(membrane)
        ctx.membrane = weakref.ref(done.membrane)
        ctx.kernels, ctx.neuron = done.kernels, done.neuron
        return done.spikes, membrane.detach()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(
        ctx: Any, grad_spikes: Tensor | None, grad_next: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None]:
        if grad_spikes is None and grad_next is None:
            return None, None, None
        (membrane,) = ctx.saved_tensors
        grad = ctx.kernels.backward(grad_spikes, grad_next, membrane, ctx.neuron)
        return grad, grad if ctx.needs_input_grad[1] else None, None
