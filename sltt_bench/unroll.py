"""One batch as a method sees it: a sequence of time steps to run forward and backward."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sltt_bench.neurons import detach_state, reset_state

StepLoss = Callable[[Tensor], Tensor]
"""o[t] [batch, classes] → a scalar."""


class Unroll:
    """The T steps of one batch.

    A method calls `step(t)` for t = 0 … T − 1 in order, `detach_state()` where the past is to be a
    constant, and `backward(loss)` where gradients are to be added to the parameters' `.grad`.
    """

    def __init__(
        self,
        network: nn.Module,
        inputs: Sequence[Tensor],
        loss: StepLoss,
        *,
        generator: torch.Generator,
        backward: Callable[[Tensor], None] = torch.Tensor.backward,
        autocast: Callable[[], torch.autocast] | None = None,
    ) -> None:
        """`inputs` holds one tensor [batch, ...] per time step; a static image is one tensor T times.

        `generator` (on the CPU) is the method's own source of randomness, apart from the one that
        data and dropout use, so that a method's draws disturb nothing else.
        """
        self.network = network
        self.inputs = inputs
        self.timesteps = len(inputs)
        self.generator = generator
        self.summed_outputs: Tensor | None = None
        """Σ_t o[t] [batch, classes] in float32 over the steps run so far, outside the graph."""
        self.summed_loss: Tensor | None = None
        """L = (1/T) Σ_t loss(o[t]) over the steps run so far, outside the graph."""
        self._loss = loss
        self._backward = backward
        self._autocast = autocast
        reset_state(network)

    def step(self, t: int) -> Tensor:
        """Run step t forward; returns its share of the loss, loss(o[t]) / T, a scalar."""
        if self._autocast is None:
            output = self.network(self.inputs[t])
        else:
            with self._autocast():
                output = self.network(self.inputs[t])
        loss = self._loss(output) / self.timesteps
        self._record(output.detach().float(), loss.detach())
        return loss

    def detach_state(self) -> None:
        """Make the state that the next step receives a constant."""
        detach_state(self.network)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss` to the parameters and free its graph."""
        self._backward(loss)

    def _record(self, output: Tensor, loss: Tensor) -> None:
        if self.summed_outputs is None or self.summed_loss is None:
            self.summed_outputs, self.summed_loss = output.clone(), loss.clone()
        else:
            self.summed_outputs += output
            self.summed_loss += loss
