"""A stand-in for captures as CUDA graphs, for a machine without a GPU."""

from collections.abc import Callable

import torch
from torch import nn


class RunsAgain:
    """A capture whose replay calls the function again, where and with the draws that it was captured with.

    As a graph, a replay writes to the gradients that the parameters had at the capture and leaves those
    that they have by then as they are.
    """

    def __init__(self, network: nn.Module, generator: torch.Generator) -> None:
        self.network, self.generator = network, generator

    def warm_up(self, function: Callable[[], None]) -> None:
        function()

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        drawn_from = self.generator.get_state()
        parameters = list(self.network.parameters())
        captured = [parameter.grad for parameter in parameters]
        with torch.random.fork_rng():
            function()

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
