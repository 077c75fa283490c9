"""Counting the arithmetic of a training iteration by dispatch: per layer, step, forward and backward.

What is counted as a *multiplication*:

- each multiply-add of a convolution, linear layer or matrix product (the formulas are those of
  `torch.utils.flop_counter`, but for a convolution's gradients; a third party registers one for its own operation there);
- each element of an elementwise product or quotient (`mul`, `div`, `addcmul`, ...).

Not counted are additions and comparisons, and the arithmetic inside normalisation, pooling, softmax
and the optimiser.

An operation of the backward pass belongs to the layer that made its autograd node: nodes are
numbered in the order of their creation, and so are the times at which layers are entered and left.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

from sltt_bench.neurons import reads_no_values
from sltt_bench.torch_internals import (
    autograd_nodes_made,
    inside_backward,
    module_hooks,
    running_node_number,
)

Phase = Literal["forward", "backward", "optimizer"]

OUTSIDE = "(loss)"
"""The layer of operations outside the network."""

_aten = torch.ops.aten
_ELEMENTWISE = {
    _aten.mul: 1,
    _aten.mul_: 1,
    _aten.div: 1,
    _aten.div_: 1,
    _aten.reciprocal: 1,
    _aten.reciprocal_: 1,
    _aten.square: 1,
    _aten.lerp: 1,
    _aten.lerp_: 1,
    _aten.addcmul: 2,
    _aten.addcmul_: 2,
    _aten.addcdiv: 2,
    _aten.addcdiv_: 2,
}
"""Operation → multiplications for each element of its result."""
_WITHOUT_KERNEL = frozenset(
    (
        _aten.empty,
        _aten.empty_like,
        _aten.empty_strided,
        _aten.new_empty,
        _aten.new_empty_strided,
        _aten.resize_,
    )
)
"""Operations that hand out memory and touch none of it."""
_SHAPE_ALONE = {
    **dict.fromkeys(
        (_aten.zeros_like, _aten.ones_like, _aten.full_like, _aten.rand_like, _aten.randn_like), 0
    ),
    **dict.fromkeys((_aten.new_zeros, _aten.new_ones, _aten.new_full), 0),
    **dict.fromkeys(
        (_aten.zero_, _aten.fill_, _aten.copy_, _aten.bernoulli_, _aten.uniform_, _aten.normal_), 0
    ),
    _aten.avg_pool2d_backward: 1,
    _aten._adaptive_avg_pool2d_backward: 1,
    _aten.max_pool2d_with_indices_backward: 1,
}
"""Operation → which of its arguments it asks for its shape, or writes to, but does not read."""


class Location(NamedTuple):
    """Where in the iteration an operation belongs."""

    phase: Phase
    layer: str
    step: int
    """1 for the first time step."""


class Work(NamedTuple):
    """What one operation asks of a device."""

    multiply_adds: int
    """Of a convolution or matrix product; 0 for all others."""
    dtype: torch.dtype
    """Of its result."""
    tensor_bytes: tuple[int, ...]
    """Of each tensor that it reads or writes."""


@dataclass
class Operations:
    """The arithmetic of one iteration."""

    multiply_adds: Counter[Location] = field(default_factory=Counter)
    """Of convolutions, linear layers and matrix products."""
    products: Counter[Location] = field(default_factory=Counter)
    """Elementwise multiplications and divisions."""
    work: Counter[Work] = field(default_factory=Counter)
    """How often each kind of operation ran, the optimiser's included."""

    @property
    def multiplications(self) -> Counter[Location]:
        """Both together, without locations that have none."""
        return self.multiply_adds + self.products


def in_phase(counts: Counter[Location], phase: Phase) -> int:
    """The sum over the locations of a phase."""
    return sum(count for location, count in counts.items() if location.phase == phase)


class OperationCounter:
    """Counts into `operations` what `count` is given, within `watching`, of iterations of a network and its optimiser."""

    def __init__(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, execute: Callable[..., Any]
    ) -> None:
        """`execute(func, args, kwargs)` runs an operation that has been seen."""
        self.operations = Operations()
        self._execute = execute
        self._network = network
        self._optimizer = optimizer
        self._names = {id(module): name for name, module in network.named_modules()}
        self._entered: list[str] = []
        self._step = 0
        self._in_optimizer = False
        self._nodes_from: list[int] = [-1]
        self._places: list[tuple[str, int]] = [(OUTSIDE, 0)]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Layers and optimiser are watched within, for `count`; by hooks that are removed at the end."""
        hooks = module_hooks()
        with (
            hooks.register_module_forward_pre_hook(self._enter_layer),
            hooks.register_module_forward_hook(self._leave_layer, always_call=True),
            self._optimizer.register_step_pre_hook(lambda *_: self._set_in_optimizer(True)),
            self._optimizer.register_step_post_hook(lambda *_: self._set_in_optimizer(False)),
        ):
            yield

    def count(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation and count it; for a mode that sees it."""
        result = self._execute(func, args, kwargs)
        operation = getattr(func, "_overloadpacket", func)
        if operation in flop_registry:
            multiply_adds = multiply_adds_of(operation, args, kwargs, result)
            self.operations.multiply_adds[self._location()] += multiply_adds
        else:
            multiply_adds = 0
            if factor := _ELEMENTWISE.get(operation):
                self.operations.products[self._location()] += factor * result.numel()
        if _runs_kernel(func) and (written := tensors_in((result,))):
            touched = [*tensors_in(read_by(operation, args)), *tensors_in(kwargs.values()), *written]
            sizes = tuple(sorted(map(touched_bytes, touched)))
            self.operations.work[Work(multiply_adds, written[0].dtype, sizes)] += 1
        return result

    # Places -------------------------------------------------------------------------------------

    def _location(self) -> Location:
        if self._in_optimizer:
            return Location("optimizer", OUTSIDE, self._step)
        if not inside_backward():
            return Location("forward", self._entered[-1] if self._entered else OUTSIDE, self._step)
        if self._entered:  # a forward pass inside the backward pass: recomputation
            return Location("backward", self._entered[-1], self._step)
        layer, step = self._places[bisect_right(self._nodes_from, running_node_number()) - 1]
        return Location("backward", layer, step)

    @reads_no_values
    def _enter_layer(self, module: nn.Module, args: Any) -> None:
        if id(module) not in self._names:
            return
        if module is self._network and not inside_backward():
            self._step += 1
        self._entered.append(self._names[id(module)])
        self._note_place()

    @reads_no_values
    def _leave_layer(self, module: nn.Module, args: Any, output: Any) -> None:
        if id(module) in self._names and self._entered:
            self._entered.pop()
            self._note_place()

    def _note_place(self) -> None:
        """From here on, new autograd nodes belong to the layer that is on top."""
        self._nodes_from.append(autograd_nodes_made())
        self._places.append((self._entered[-1] if self._entered else OUTSIDE, self._step))

    def _set_in_optimizer(self, inside: bool) -> None:
        self._in_optimizer = inside


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among an operation's arguments or results, those in lists included."""
    tensors = []
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, list | tuple):
            tensors += tensors_in(value)
    return tensors


def multiply_adds_of(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """Of an operation that torch has a formula for, which takes grouped convolutions' gradients for ungrouped ones."""
    if operation is not _aten.convolution_backward:
        return int(flop_registry[operation](*args, **kwargs, out_val=result) // 2)
    gradient, x, weight, *_, transposed, _padding, _groups, (of_input, of_weight, _of_bias) = args
    places: Tensor = x if transposed else gradient
    each: int = places.numel() * weight[0].numel()
    return each * (int(of_input) + int(of_weight))


@cache
def _runs_kernel(func: Any) -> bool:
    """Whether an operation does more than to make another view or to hand out memory."""
    if getattr(func, "_overloadpacket", func) in _WITHOUT_KERNEL:
        return False
    returns = func._schema.returns
    return not (returns and all(r.alias_info is not None and not r.alias_info.is_write for r in returns))


def read_by(operation: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments that an operation reads."""
    unread = _SHAPE_ALONE.get(operation)
    return args if unread is None else (*args[:unread], *args[unread + 1 :])


def touched_bytes(tensor: Tensor) -> int:
    """An expanded tensor is read where it is stored, a slice only where it is."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
