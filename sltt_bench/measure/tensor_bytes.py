"""Peak live tensor bytes of a training iteration, counted exactly over storages, with their causes.

A dispatch mode sees every operation that any thread runs below autograd. A storage is counted once,
from the moment at which it is registered or an operation first returns it, until it is freed or
resized: views share it, in-place operations add nothing. What is counted depends on the program
alone, so the figure is the same on every machine, for real tensors and for fake ones.

What it does not see: workspaces inside an operation, and an allocator's rounding and fragmentation.
"""

import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sltt_bench.neurons import Stateful, reads_no_values
from sltt_bench.torch_internals import (
    TorchDispatchMode,
    called_by_autograd_engine,
    running_backward_pass,
    storage_address,
    tree_leaves,
)

Execute = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
"""Runs an operation, given as a dispatch mode is given it: (func, args, kwargs) → its result."""

_DEVICE = torch.ops.prim.device.default
"""Asked of every fake tensor at every turn, and no operation: a tensor knows its device itself."""


class Cause(StrEnum):
    """Why a storage is alive; where several hold, the first in this order."""

    PARAMETERS = "parameters"
    """Parameters and buffers of the network."""
    OPTIMIZER_STATE = "optimizer state"
    """What the optimiser carries from iteration to iteration, and what a method does."""
    INPUTS = "inputs"
    """The batch, and whatever else existed before."""
    GRADIENTS = "gradients"
    """What becomes a parameter's `.grad`, from its allocation on."""
    NEURON_STATE = "neuron state"
    """What stateful layers carry to the next time step, dropout masks included."""
    ACTIVATIONS = "saved activations"
    """What a forward pass allocates and is still alive when a backward pass starts."""
    TEMPORARIES = "temporaries"
    """Everything else: intermediate results, activation gradients, recomputed activations."""


class _Event(NamedTuple):
    storage: int
    change: int
    """Bytes, negative when the storage is freed or shrunk."""


class TensorBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts live tensor bytes while it is entered; keeps nothing alive and changes no result.

    Storages on all devices are counted alike. With a network, parameters, gradients and neuron
    state are told apart, otherwise they appear under the remaining causes; the sum is the same.
    """

    def __init__(
        self,
        existing: Iterable[Tensor] = (),
        *,
        network: nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        carried: object = (),
        execute: Execute | None = None,
    ) -> None:
        """Registers the tensors that are alive before: `existing` (the batch, say; duplicates and
        tensors of the network are welcome), all that `network` and `optimizer` hold, and those in `carried`,
        nested lists and mappings of what else is kept from iteration to iteration.

        `execute(func, args, kwargs)` runs an operation; None: as without the counter.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        """Largest number of live bytes so far."""
        self._current = 0
        self._events: list[_Event] = []
        self._events_to_peak = 0
        self._next = 0
        self._live: dict[int, _Live] = {}
        self._freed: deque[int] = deque()
        self._sum: _EngineSum | None = None
        self._known: dict[int, Cause] = {}
        self._state: list[tuple[int, int, frozenset[int]]] = []
        self._backward_task = -1
        self._network = None if network is None else weakref.ref(network)
        self._undo: list[Callable[[], None]] = []
        self._execute = execute or _run
        if network is not None:
            self._register([*network.parameters(), *network.buffers()], Cause.PARAMETERS)
            self._register_gradients()
        if optimizer is not None:
            self._register(tree_leaves(list(optimizer.state.values())), Cause.OPTIMIZER_STATE)
        self._register(tree_leaves(carried), Cause.OPTIMIZER_STATE)
        self._register(existing, Cause.INPUTS)

    @property
    def current(self) -> int:
        """Live bytes now."""
        self._settle()
        return self._current

    @property
    def changes(self) -> list[int]:
        """The bytes by which live memory changed, event after event; their largest partial sum is the peak."""
        self._settle()
        return [event.change for event in self._events]

    @property
    def peak_by_cause(self) -> dict[Cause, int]:
        """Bytes of each cause at the moment of the (first) peak; they add up to `peak`.

        A storage's cause is known only from what becomes of it, so ask when the iteration is over.
        """
        self._settle()
        self._register_gradients()
        alive: Counter[int] = Counter()
        for storage, change in self._events[: self._events_to_peak]:
            alive[storage] += change
        carried = self._carried_at(self._events_to_peak)
        result = dict.fromkeys(Cause, 0)
        for storage, size in alive.items():
            cause = self._known.get(storage, Cause.TEMPORARIES)
            if storage in carried and cause in (Cause.ACTIVATIONS, Cause.TEMPORARIES):
                cause = Cause.NEURON_STATE
            result[cause] += size
        return result

    def __enter__(self) -> "TensorBytes":
        self._watch_stateful_layers()
        self._watch_storage_resize()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        while self._undo:
            self._undo.pop()()
        self._settle()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is _DEVICE:
            return args[0].device
        self._notice_backward_pass()
        result = self._execute(func, args, kwargs or {})
        if (
            func is torch.ops.aten.add.Tensor
            and self._backward_task != -1
            and called_by_autograd_engine(__file__)
        ):
            self._settle()
            reusable = tuple(storage_address(operand) for operand in args[:2] if not operand._is_view())
            self._sum = _EngineSum(weakref.ref(result.untyped_storage()), reusable)
            return result
        for tensor in (result,) if isinstance(result, Tensor) else tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    # Counting -----------------------------------------------------------------------------------

    def _count(self, storage: torch.UntypedStorage) -> "_Live":
        """Take account of a storage: a new one, a changed size, or nothing new."""
        self._settle()
        return self._notice(storage)

    def _notice(self, storage: torch.UntypedStorage) -> "_Live":
        live = self._live.get(storage_address(storage))
        if live is None:
            live = _Live(self._next, forward=self._backward_task == -1)
            self._next += 1
            self._track(storage, live)
        if (size := storage.nbytes()) != live.size:
            self._change(live, size)
        return live

    def _track(self, storage: torch.UntypedStorage, live: "_Live") -> None:
        # The callback runs in whatever thread drops the last reference, perhaps in the middle of our
        # own bookkeeping, so it only leaves a note that `_settle` finds.
        address = storage_address(storage)
        live.reference = weakref.ref(storage, partial(_note, self._freed, address))
        self._live[address] = live

    def _change(self, live: "_Live", size: int) -> None:
        self._events.append(_Event(live.number, size - live.size))
        self._current += size - live.size
        live.size = size
        if self._current > self.peak:
            self.peak, self._events_to_peak = self._current, len(self._events)

    def _settle(self) -> None:
        """Take account of the storages freed since the last operation, the oldest first.

        Which was freed first may depend on addresses (autocast keeps its copies in a hash table of them).
        """
        if self._sum is not None:
            self._settle_sum()
        freed = []
        while self._freed:
            freed.append(self._live.pop(self._freed.popleft()))
        for live in sorted(freed, key=_age):
            self._change(live, 0)

    def _settle_sum(self) -> None:
        """Where several gradients of one tensor meet, the autograd engine adds in place into one that
        nobody else holds and that is no view, but under a dispatch mode always into a new tensor.
        Count what it would do without the mode: the sum takes the place of an operand dropped at once."""
        engine_sum, self._sum = self._sum, None
        storage = None if engine_sum is None else engine_sum.result()
        if engine_sum is None or storage is None:
            return
        for address in engine_sum.reusable:
            operand = self._live.get(address)
            if address in self._freed and operand is not None and operand.size == storage.nbytes():
                self._freed.remove(address)
                del self._live[address]
                self._track(storage, operand)
                return
        self._notice(storage)

    def _watch_storage_resize(self) -> None:
        """`UntypedStorage.resize_` is no operation that a dispatch mode could see."""
        original = torch.UntypedStorage.resize_

        def resize(storage: torch.UntypedStorage, size: int) -> Any:
            result = original(storage, size)
            if storage_address(storage) in self._live:
                self._count(storage)
            return result

        torch.UntypedStorage.resize_ = resize  # type: ignore[assignment, method-assign]
        self._undo.append(partial(setattr, torch.UntypedStorage, "resize_", original))

    # Causes -------------------------------------------------------------------------------------

    def _register(self, tensors: Iterable[Any], cause: Cause) -> None:
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                self._known.setdefault(self._count(tensor.untyped_storage()).number, cause)

    def _register_gradients(self) -> None:
        network = None if self._network is None else self._network()
        if network is None:
            return
        for parameter in network.parameters():
            if parameter.grad is not None:
                number = self._count(parameter.grad.untyped_storage()).number
                self._known[number] = Cause.GRADIENTS

    def _notice_backward_pass(self) -> None:
        """Called before each operation: has a backward pass begun or ended since the last one?"""
        task = running_backward_pass()
        if task == self._backward_task:
            return
        self._settle()
        if self._backward_task != -1:
            self._register_gradients()
        if task != -1:
            for live in self._live.values():
                if live.forward:
                    self._known.setdefault(live.number, Cause.ACTIVATIONS)
        self._backward_task = task

    def _watch_stateful_layers(self) -> None:
        network = None if self._network is None else self._network()
        for module in () if network is None else network.modules():
            if isinstance(module, Stateful):
                self._undo.append(module.register_forward_hook(self._after_stateful_layer).remove)

    @reads_no_values
    def _after_stateful_layer(self, module: nn.Module, args: Any, output: Any) -> None:
        held = frozenset(
            self._count(tensor.untyped_storage()).number
            for part in module.modules()
            for tensor in tree_leaves({k: v for k, v in vars(part).items() if k not in _REGISTRIES})
            if isinstance(tensor, Tensor)
        )
        self._state.append((len(self._events), id(module), held))

    def _carried_at(self, event: int) -> frozenset[int]:
        """The storages that stateful layers held when so many events had happened."""
        latest = {module: held for when, module, held in self._state if when <= event}
        return frozenset().union(*latest.values())


_REGISTRIES = ("_parameters", "_buffers", "_modules")
"""Where a module keeps what is counted as parameters, and its children."""


@dataclass(slots=True)
class _Live:
    """A storage that is counted."""

    number: int
    forward: bool
    """Whether it was allocated outside a backward pass."""
    size: int = 0
    reference: weakref.ref[Any] | None = None


_age = attrgetter("number")


class _EngineSum(NamedTuple):
    """A sum of gradients that the autograd engine has just made, not yet counted."""

    result: weakref.ref[Any]
    reusable: tuple[int, ...]
    """Addresses of the operands' storages that could hold the sum."""


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(*args, **kwargs)


def _note(freed: deque[int], address: int, _: weakref.ref[Any]) -> None:
    freed.append(address)
