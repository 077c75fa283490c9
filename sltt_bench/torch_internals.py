"""What is private in torch, each use in one function with a contract test: a new torch breaks this file alone."""

import inspect
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import torch
from torch import _compile
from torch.utils._python_dispatch import TorchDispatchMode


def leave_compiler_unloaded() -> None:
    """Let optimisers and dispatch modes run without torch's compiler, which takes as long to load as torch.

    What the compiler must not trace is wrapped (`torch._compile._disable_dynamo`), and the wrapper loads
    the compiler at its first call, to be kept from it: its own cache is told that there is nothing to be kept
    from. `Optimizer.step` loads it to break the graph that it might be tracing: the function below that is
    taken, with the gradient switched off as there. Only for processes that compile nothing.
    """
    optimizers: list[Any] = [torch.optim.Optimizer, *_subclasses(torch.optim.Optimizer)]
    for owner in (*optimizers, *_subclasses(TorchDispatchMode)):
        for function in vars(owner).values():
            if isinstance(function, FunctionType) and function.__code__.co_filename == _WRAPPER_FILE:
                wrapped: Any = function.__wrapped__  # type: ignore[attr-defined]
                setattr(wrapped, "__dynamo_disable", wrapped)
    for owner in optimizers[1:]:
        if "step" in vars(owner):
            owner.step = torch.no_grad()(inspect.unwrap(owner.step))


_WRAPPER_FILE = _compile.__file__


def _subclasses(kind: type) -> Iterator[type]:
    below: type
    for below in kind.__subclasses__():
        yield below
        yield from _subclasses(below)
