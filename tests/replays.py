"""Stand-ins for the capture of CUDA graphs, for machines without a GPU."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class RunsAgain:
    """A capture whose replay calls the function again, with the capture's gradients and random numbers.

    As with a graph, a capture has no lasting effect (buffers are restored). A replay writes to the gradients
    that the parameters had at the capture, and leaves their current ones as they are. What the function
    returns through its closure is that of the capture.
    """

    def __init__(self, network: nn.Module, generator: torch.Generator) -> None:
        self.network, self.generator = network, generator

    def warm_up(self, function: Callable[[], None]) -> None:
        function()

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        drawn_from = self.generator.get_state()
        parameters = list(self.network.parameters())
        captured = [parameter.grad for parameter in parameters]
        buffers = {buffer: buffer.clone() for buffer in self.network.buffers()}
        with torch.random.fork_rng():
            function()
        for buffer, before in buffers.items():
            buffer.copy_(before)

        def replay() -> None:
            gradients, state = [parameter.grad for parameter in parameters], self.generator.get_state()
            for parameter, gradient in zip(parameters, captured, strict=True):
                parameter.grad = gradient
            self.generator.set_state(drawn_from)
            function()
            self.generator.set_state(state)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient

        return replay


class Taped:
    """A capture that records the function's tensor operations; the replay repeats them on the same tensors.

    As with a graph, a replay runs none of the function's Python code, so all that it computed on the host
    (numbers, choices, what layers hold) stays as at the capture. Operations that would make the host wait for
    the device are refused, as in a capture. Kernels that are no operations of torch (Triton's, interpreted)
    are not recorded.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def warm_up(self, function: Callable[[], None]) -> None:
        function()

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        buffers = {buffer: buffer.clone() for buffer in self.network.buffers()}
        with torch.random.fork_rng(), _Tape() as tape:
            function()
        for buffer, before in buffers.items():
            buffer.copy_(before)
        return tape.replay


class _Tape(TorchDispatchMode):
    """Records the operations within, in their order, including backward passes."""

    def __init__(self) -> None:
        super().__init__()
        self._drawn: dict[int, torch.Tensor] = {}
        """Memory → tensor drawn on the host from a generator, as methods do; kept, so that none reuses it."""
        self._operations: list[tuple[Any, Sequence[Any], Mapping[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        on_host = any(
            isinstance(value, torch.Generator)
            or (isinstance(value, torch.Tensor) and _memory(value) in self._drawn)
            for value in tree_leaves((args, kwargs))
        )
        if func is torch.ops.aten._local_scalar_dense.default and not on_host:
            raise RuntimeError("operation not permitted when stream is capturing: a value is read")
        made = func(*args, **kwargs)
        if on_host:
            self._drawn |= {
                _memory(tensor): tensor for tensor in tree_leaves(made) if isinstance(tensor, torch.Tensor)
            }
        else:
            self._operations.append((func, args, kwargs, made))
        return made

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, made in self._operations:
            again = func(*args, **kwargs)
            if "empty" in func.__name__:
                continue  # the content of that memory is arbitrary
            for tensor, value in zip(tree_leaves(made), tree_leaves(again), strict=True):
                if isinstance(tensor, torch.Tensor) and _memory(tensor) != _memory(value):
                    tensor.copy_(value)


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
