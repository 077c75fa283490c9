"""A stand-in for captures as CUDA graphs, for a machine without a GPU."""

from collections.abc import Callable

import torch
from torch import nn


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
