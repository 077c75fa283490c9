"""Fake tensors made quickly: torch is asked once what an operation makes of arguments of one kind.

FakeTensorMode spends hundreds of microseconds on each operation to work out its result's shape, though
an iteration repeats the same few hundred operations thousands of times. What a result looks like is a
function of the operation, of the numbers among its arguments, and of the shapes, strides and types of
the tensors among them. So it is worked out once by FakeTensorMode, remembered, and made again from memory.

Remembered is only what can be made again exactly: results of torch's own operations (`aten`) that are
new tensors, views of one argument, or an argument changed in place. All else goes to FakeTensorMode.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sltt_bench.torch_internals import (
    FakeTensor,
    FakeTensorMode,
    as_fake_tensor,
    empty_meta_tensor,
    in_kernel_invocation_manager,
    storage_address,
)

Key = tuple[Any, ...]


class _New(NamedTuple):
    """A result in a storage of its own."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    attributes: dict[str, Any]

    def make(self, mode: FakeTensorMode, tensors: list[FakeTensor]) -> FakeTensor:
        meta = empty_meta_tensor(self.shape, self.stride, self.dtype)
        return as_fake_tensor(mode, meta, self.attributes)


class _View(NamedTuple):
    """A result that shares the storage of an argument and has its type."""

    argument: int
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int
    attributes: dict[str, Any]

    def make(self, mode: FakeTensorMode, tensors: list[FakeTensor]) -> FakeTensor:
        base = tensors[self.argument]
        with in_kernel_invocation_manager(mode):
            meta = torch.as_strided(base, self.shape, self.stride, self.offset)
        return as_fake_tensor(mode, meta, self.attributes)


class _Argument(NamedTuple):
    """A result that is an argument, changed in place."""

    argument: int

    def make(self, mode: FakeTensorMode, tensors: list[FakeTensor]) -> FakeTensor:
        return tensors[self.argument]


_Made = _New | _View | _Argument | None
"""None: no tensor, as where a gradient is not needed."""

_known: dict[Key, tuple[Callable[..., Any] | None, tuple[_Made, ...]] | None] = {}
"""Key → (the type of the sequence of results, None for a single one; the results), or None where
FakeTensorMode has to be asked each time. Shared by all traces of a process."""


class Unknown(Exception):
    """Not to be remembered."""


class RememberedOperations:
    """Runs operations on the fake tensors of `mode`, which must be entered, from memory where it can."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors: list[FakeTensor] = []
        try:
            key = (func, *_signature(args, tensors), *_signature(kwargs.items(), tensors))
        except Unknown:
            return func(*args, **kwargs)
        if key not in _known:
            return self._ask(key, func, args, kwargs, tensors)
        if (known := _known[key]) is None:
            return func(*args, **kwargs)
        container, results = known
        made = [None if result is None else result.make(self._mode, tensors) for result in results]
        return made[0] if container is None else container(made)

    def _ask(
        self, key: Key, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[FakeTensor]
    ) -> Any:
        result = func(*args, **kwargs)
        unchanged = key == (func, *_signature(args, []), *_signature(kwargs.items(), []))
        try:
            _known[key] = _describe(result, tensors) if unchanged and func.namespace == "aten" else None
        except Unknown:
            _known[key] = None
        return result


def _signature(values: Iterable[Any], tensors: list[FakeTensor]) -> list[Any]:
    """What the looks of a result depend on; appends the tensors that it meets. Raises Unknown."""
    parts: list[Any] = []
    for value in values:
        kind = type(value)
        if kind is FakeTensor:
            if value.constant is not None or value.is_neg() or value.is_conj():
                raise Unknown
            tensors.append(value)
            parts += (
                value.dtype,
                value.shape,
                value.stride(),
                value.storage_offset(),
                value.fake_device,
            )
        elif kind in _SCALARS:
            parts += (kind, value)
        elif kind is list or kind is tuple:
            parts += (kind, len(value), *_signature(value, tensors))
        else:
            raise Unknown
    return parts


_SCALARS = frozenset(
    (int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)
)
"""Types of arguments that are compared by value; True is another argument than 1, and 1 than 1.0."""


def _attributes(tensor: FakeTensor) -> dict[str, Any]:
    """Those of a new tensor, but for the mode that it belongs to."""
    return {name: value for name, value in vars(tensor).items() if name != "fake_mode"}


def _describe(result: Any, tensors: list[FakeTensor]) -> tuple[Callable[..., Any] | None, tuple[_Made, ...]]:
    """How to make the result again from the tensors among the arguments. Raises Unknown."""
    if isinstance(result, Tensor):
        return None, (_describe_tensor(result, tensors),)
    if not isinstance(result, tuple | list):
        raise Unknown
    made = tuple(_describe_tensor(tensor, tensors) for tensor in result)
    storages = [storage_address(tensor) for tensor in result if tensor is not None]
    if len(set(storages)) < len(storages):
        raise Unknown
    return type(result), made


def _describe_tensor(tensor: Any, tensors: list[FakeTensor]) -> _Made:
    if tensor is None:
        return None
    if type(tensor) is not FakeTensor or tensor.constant is not None:
        raise Unknown
    storage = storage_address(tensor)
    same = [number for number, other in enumerate(tensors) if storage_address(other) == storage]
    if not same:
        new = _New(tensor.shape, tensor.stride(), tensor.dtype, _attributes(tensor))
        if tensor.storage_offset() or _bytes(new) != tensor.untyped_storage().nbytes():
            raise Unknown
        return new
    if len(same) > 1 or tensors[same[0]].dtype != tensor.dtype:
        raise Unknown
    if tensors[same[0]] is tensor:
        return _Argument(same[0])
    return _View(same[0], tensor.shape, tensor.stride(), int(tensor.storage_offset()), _attributes(tensor))


def _bytes(new: _New) -> int:
    """Of the storage that `new.make` allocates."""
    if 0 in new.shape:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(new.shape, new.stride, strict=True))
    return (last + 1) * new.dtype.itemsize
