"""Saved-tensor hooks that do not store what the potentials determine, but compute it again.

Autograd saves the input of every convolution: spikes, which follow from u ≥ V_th, often scaled or masked.
In place of such a tensor, a hook keeps a recipe for computing it again, found in the graph
that made it. u itself is the state of the neuron and the input of its surrogate, so it is stored
once for three purposes. With `recompute`, results of convolutions (the inputs of batch norm) and pools of
such tensors are also recomputed.

Autograd uses version counters to check that no saved tensor was changed in place. It does not check tensors
that a hook keeps, so this module repeats the check.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from sltt_bench.models.layers import SequenceDropout
from sltt_bench.neurons import reads_no_values
from sltt_bench.torch_internals import result_of, saved_by, times_changed

Fire = Callable[[Tensor], Tensor]
"""u[t] → s[t]."""
Node = Any
"""A node of the autograd graph, which made a tensor."""

SMALL = 4096
"""Up to this number of elements a tensor is stored, not computed again."""


class Kept(Protocol):
    """Stands for a saved tensor."""

    def tensor(self) -> Tensor:
        """Returns the tensor or an equal one."""


class Stored:
    """Keeps the tensor itself."""

    def __init__(self, tensor: Tensor) -> None:
        # Detached, since an output would hold the graph that holds it.
        self._tensor = tensor if tensor.grad_fn is None else tensor.detach()
        self._version = None if tensor.is_inference() else times_changed(tensor)

    def holds(self, tensor: Tensor) -> bool:
        """Whether this is the tensor."""
        return tensor is self._tensor

    def tensor(self) -> Tensor:
        """Returns the tensor. Raises RuntimeError if it was changed in place since it was saved."""
        if self._version is not None and times_changed(self._tensor) != self._version:
            raise RuntimeError(
                f"a tensor of shape {tuple(self._tensor.shape)} that the backward pass needs was changed in "
                "place; use an operation that makes a new tensor instead"
            )
        return self._tensor


class Membrane(Stored):
    """u[t] of one layer; lives as long as a graph needs it."""

    def __init__(self, tensor: Tensor, fire: Fire) -> None:
        super().__init__(tensor)
        self.fire = fire
        self.is_kept = False
        """Whether a graph has saved it as the potential."""


@dataclass(frozen=True)
class Computed:
    """The result of an operation on tensors that are kept anyway."""

    operation: Callable[..., Tensor]
    operands: tuple[Kept, ...]
    costly: bool = False
    """Whether it takes more than a pass over memory."""

    def tensor(self) -> Tensor:
        """Returns the result, computed again."""
        with torch.no_grad():
            return self.operation(*(operand.tensor() for operand in self.operands))


class SpareRoom:
    """Memory that is free to use, because the backward pass through the largest layer needs it later anyway.

    By then the results of smaller layers, which come after the largest in common networks, are
    released. Storing them saves their convolutions and does not raise the peak.
    """

    TENSORS = 3
    """Tensors that the backward pass of a convolution with batch norm needs at once, besides potentials."""

    def __init__(self) -> None:
        self._largest = 0
        self._used = 0

    def fits(self, tensor: Tensor) -> bool:
        """Whether to store the tensor, although it could be computed again."""
        self._largest = max(self._largest, tensor.nbytes)
        return (
            tensor.nbytes <= self._largest / 2 and self._used + tensor.nbytes <= self.TENSORS * self._largest
        )

    def store(self, tensor: Tensor) -> Stored:
        """Store the tensor; its room becomes free when the returned object is released."""
        stored = Stored(tensor)
        self._used += tensor.nbytes
        weakref.finalize(stored, self._release, tensor.nbytes)
        return stored

    def _release(self, size: int) -> None:
        self._used -= size


class SavedTensors:
    """The pair of hooks of one backend."""

    def __init__(self, *, recompute: bool) -> None:
        """`recompute`: compute convolutions and pools of spikes again instead of storing their results."""
        self._recompute = recompute
        self._rules = _CHEAP_RULES
        self._spare_room = SpareRoom()
        self._announced: Membrane | None = None
        self.is_active = False
        """Whether an iteration is running; at its end, gradients are in `.grad`."""
        self.computed_again: set[str] = set()
        """Names of the operations whose results have been computed again instead of stored."""

    def __deepcopy__(self, memo: object) -> "SavedTensors":
        return self

    @contextmanager
    def active(self, *, costly: bool = True) -> Iterator[None]:
        """Context in which the hooks handle everything that autograd saves.

        `costly=False`: store the results of convolutions and pools, whatever `recompute` says.
        """
        outside, was_active = self._rules, self.is_active
        self.is_active = True
        self._rules = {**_CHEAP_RULES, **_COSTLY_RULES} if self._recompute and costly else _CHEAP_RULES
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
                yield
        finally:
            self._rules, self.is_active = outside, was_active

    @contextmanager
    def announce(self, membrane: Membrane) -> Iterator[None]:
        """Context in which a neuron saves this potential."""
        self._announced = membrane
        try:
            yield
        finally:
            self._announced = None

    def _pack(self, tensor: Tensor) -> Kept:
        if self._announced is not None and self._announced.holds(tensor):
            self._announced.is_kept = True
            return self._announced
        if tensor.grad_fn is None or tensor.numel() <= SMALL:
            return Stored(tensor)
        if (kept := _kept_by(tensor.grad_fn)) is not None:
            return kept
        rule = self._recomputed(tensor.grad_fn, tensor.output_nr)
        if rule is None:
            return Stored(tensor)
        if rule.costly and self._spare_room.fits(tensor):
            return self._spare_room.store(tensor)
        self.computed_again.add(tensor.grad_fn.name())
        return rule

    def _unpack(self, kept: Kept) -> Tensor:
        return kept.tensor()

    def _recomputed(self, node: Node, output: int) -> Computed | None:
        """Returns how to compute a node's output again from tensors kept anyway; None without a rule."""
        membrane = getattr(node, "membrane", None)
        if membrane is not None:
            kept = membrane()
            return None if kept is None or output != 0 else Computed(kept.fire, (kept,))
        rule = self._rules.get(node.name())
        return None if rule is None else rule(node, self._operand)

    def _operand(self, node: Node, index: int, saved: str = "") -> Kept | None:
        """Returns how to get a node's input; `saved` is the name under which it saves a constant input."""
        before, output = node.next_functions[index]
        if before is None:
            constant = saved_by(node, saved) if saved else None
            return None if constant is None else Stored(constant)
        if hasattr(before, "variable"):
            return Stored(before.variable)
        kept = _kept_by(before)
        return self._recomputed(before, output) if kept is None else kept


def _kept_by(node: Node) -> Kept | None:
    """Returns what stands for a node's result if its creator keeps it (a cut of `units`, weights of
    `step_weights`)."""
    kept: Kept | None = getattr(node, "kept", None)
    return kept


# Recompute rules, by the name of the node in the graph  ------------------------------------------------

Operand = Callable[..., Kept | None]
RecomputeRule = Callable[[Node, Operand], Computed | None]


def _computed(
    operation: Callable[..., Tensor], *operands: Kept | None, costly: bool = False
) -> Computed | None:
    """Returns the operation as `Computed` if all of its operands are known, else None."""
    known = tuple(operand for operand in operands if operand is not None)
    if len(known) < len(operands):
        return None
    costly = costly or any(isinstance(operand, Computed) and operand.costly for operand in known)
    return Computed(operation, known, costly)


def _zeroed(node: Node, operand: Operand) -> Computed | None:
    # The graph does not contain the fill value; `fills_with_zero` marks layers known to fill zeros.
    if not node.metadata.get(_FILLS_WITH_ZERO, False):
        return None
    fill = partial(torch.masked_fill, value=0)
    return _computed(fill, operand(node, 0), Stored(saved_by(node, "mask")))


def _sum(node: Node, operand: Operand) -> Computed | None:
    add = partial(torch.add, alpha=saved_by(node, "alpha"))
    return _computed(add, operand(node, 0), operand(node, 1))


def _as_before(operation: Any, node: Node, names: tuple[str, ...]) -> Callable[..., Tensor]:
    """Returns the operation with the options that a node saved under these names."""
    return partial(operation, **{name: saved_by(node, name) for name in names})


def _average_pool(node: Node, operand: Operand) -> Computed | None:
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    return _computed(_as_before(torch.ops.aten.avg_pool2d, node, names), operand(node, 0), costly=True)


def _adaptive_average_pool(node: Node, operand: Operand) -> Computed | None:
    size = list(result_of(node).shape[-2:])
    pool = partial(torch.ops.aten.adaptive_avg_pool2d, output_size=size)
    return _computed(pool, operand(node, 0), costly=True)


def _reshaped(node: Node, operand: Operand) -> Computed | None:
    return _computed(partial(torch.reshape, shape=tuple(result_of(node).shape)), operand(node, 0))


def _cast(node: Node, operand: Operand) -> Computed | None:
    return _computed(partial(torch.Tensor.to, dtype=result_of(node).dtype), operand(node, 0))


def _convolution(node: Node, operand: Operand) -> Computed | None:
    names = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")
    convolve = _as_before(torch.ops.aten.convolution, node, names)
    x, weight = operand(node, 0, "input"), operand(node, 1, "weight")
    if not any(saved_by(node, "bias_sym_sizes_opt") or ()):
        return _computed(partial(convolve, bias=None), x, weight, costly=True)
    return _computed(convolve, x, weight, operand(node, 2), costly=True)


_FILLS_WITH_ZERO = "sltt_bench.fills_with_zero"


@reads_no_values
def fills_with_zero(module: SequenceDropout, inputs: Any, output: Tensor) -> None:
    """Forward hook that marks the node of a dropout layer: it ends in `masked_fill` with the value 0."""
    node: Node = output.grad_fn
    if (
        node is not None and module.training and module.p > 0
    ):  # otherwise the output is the unchanged input, made by another layer
        node.metadata[_FILLS_WITH_ZERO] = True


_CHEAP_RULES: dict[str, RecomputeRule] = {
    "MulBackward0": lambda node, operand: _computed(
        torch.mul, operand(node, 0, "self"), operand(node, 1, "other")
    ),
    "DivBackward0": lambda node, operand: _computed(torch.div, operand(node, 0), operand(node, 1, "other")),
    "MaskedFillBackward0": _zeroed,
    "AddBackward0": _sum,
    "ViewBackward0": _reshaped,
    "UnsafeViewBackward0": _reshaped,
    "ToCopyBackward0": _cast,
    "_ScaledGradientBackward": lambda node, operand: _computed(torch.Tensor.detach, operand(node, 0)),
}
_COSTLY_RULES: dict[str, RecomputeRule] = {
    "AvgPool2DBackward0": _average_pool,
    "AdaptiveAvgPool2DBackward0": _adaptive_average_pool,
    "ConvolutionBackward0": _convolution,
}
