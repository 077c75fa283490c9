"""Stand-ins for captures as CUDA graphs, for a machine without a GPU."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class RunsAgain:
    """A capture whose replay calls the function again, where and with the draws that it was captured with.

    As with a graph, to capture computes nothing that stays (buffers are put back), and a replay writes to the gradients
    that the parameters had at the capture, leaving those that they have by then as they are. What the function
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
    """A capture that tapes what the function does to tensors, and a replay that does it again to the same tensors.

    No Python of the function runs in a replay: what it computed on the host (numbers, choices, what layers hold) is what it
    was at the capture, as with a graph. What would make the host wait for the device is refused, as a capture refuses
    it. Kernels that are no operations of torch (Triton's, interpreted) are not on the tape.
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
    """The operations within, in their order, backward passes included."""

    def __init__(self) -> None:
        super().__init__()
        self._drawn: dict[int, torch.Tensor] = {}
        """What was drawn on the host, as methods do, from generators of their own, and its memory, which no other has."""
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
                continue  # what is in that memory does not count
            for tensor, value in zip(tree_leaves(made), tree_leaves(again), strict=True):
                if isinstance(tensor, torch.Tensor) and _memory(tensor) != _memory(value):
                    tensor.copy_(value)


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
