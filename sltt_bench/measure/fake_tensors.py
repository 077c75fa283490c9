"""A world of fake tensors: they have shapes, strides and types but no values, and need no memory.

Every operation runs only as far as to say what its result looks like. Autograd, optimiser, layers and whatever
else runs within are the real ones, so that what they keep alive is what they keep alive in a real run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sltt_bench.measure.fake_tensor_cache import RememberedOperations
from sltt_bench.measure.operations import tensors_in
from sltt_bench.measure.tensor_bytes import Execute
from sltt_bench.torch_internals import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    TorchDispatchMode,
    dtype_asked_of_to,
    unset_fake_temporarily,
)


class ValuesAreWanted(RuntimeError):
    """What runs within looks at values, which fake tensors have none of."""


@contextmanager
def fake_tensors() -> Iterator[Execute]:
    """Within: new tensors are fake. Gives what runs an operation on them quickly, draws kept real.

    Raises ValuesAreWanted.
    """
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            execute = RealDraws(SizedAsReal(RememberedOperations(mode)))
            with Executing(execute):
                yield execute
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise ValuesAreWanted(
            f"the network or the method looks at values ({error.func}), of which an estimate knows nothing: it is "
            "made from shapes alone; `sltt-bench run` measures the cell itself"
        ) from error


@contextmanager
def modules_stay_where_they_are() -> Iterator[None]:
    """`network.to(device)` does nothing to a network that is there already, but fails on fake parameters."""
    original = nn.Module.to

    def to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        return module if dtype_asked_of_to(*args, **kwargs) is None else original(module, *args, **kwargs)

    nn.Module.to = to  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        nn.Module.to = original  # type: ignore[method-assign]


class SizedAsReal:
    """Gives the mean squared error the storage that it has where it is real: one of a number for every element.

    torch makes the squares in the result's storage and shrinks the result to a single number, not its storage, which
    lives as long as the loss does; fake tensors know the number alone.
    """

    def __init__(self, execute: Execute) -> None:
        self._execute = execute

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = self._execute(func, args, kwargs)
        if func is not torch.ops.aten.mse_loss.default or result.dim() > 0:
            return result
        squares = self._execute(torch.ops.aten.mul.Tensor, (args[0], args[1]), {})
        return torch.ops.aten.resize_.default(squares, ())


class RealDraws:
    """Keeps real what is drawn from a generator that is given by name, and what is computed from that alone.

    A method may decide by such values what it does (SLTT-K: at which steps); a fake tensor has none.
    """

    def __init__(self, execute: Execute) -> None:
        """`execute` runs every other operation."""
        self._execute = execute
        self._drawn = False

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs.get("generator") is not None:
            self._drawn = True
        elif not (self._drawn and _all_real(args)):
            return self._execute(func, args, kwargs)
        with unset_fake_temporarily():
            return func(*args, **kwargs)


class Executing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Hands each operation on to `execute`."""

    def __init__(self, execute: Execute) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._execute = execute

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self._execute(func, args, kwargs or {})


def _all_real(args: tuple[Any, ...]) -> bool:
    """Whether there are tensors among the arguments, none of them fake."""
    tensors = tensors_in(args)
    return bool(tensors) and not any(isinstance(tensor, FakeTensor) for tensor in tensors)
