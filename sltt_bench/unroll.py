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
        window: int | None = None,
    ) -> None:
        """`inputs` holds one tensor [batch, ...] per time step; a static image is one tensor T times.

        Only the last `window` steps (None: all T) count for loss and prediction; L is their mean.
        `generator` (on the CPU) is the method's own source of randomness, apart from the one that
        data and dropout use, so that a method's draws disturb nothing else.
        """
        self.network = network
        self.inputs = inputs
        self.timesteps = len(inputs)
        self.counted_steps = len(inputs) if window is None else window
        self.generator = generator
        self._summed_outputs: Tensor | None = None
        self._summed_loss: Tensor | None = None
        self._loss = loss
        self._backward = backward
        self._autocast = autocast
        reset_state(network)

    def step(self, t: int) -> Tensor:
        """Run step t forward; returns its share of L, a scalar: loss(o[t]) / T if all steps count.

        The share of a step outside the window is 0, which still can be backpropagated.
        """
        if self._autocast is None:
            output = self.network(self.inputs[t])
        else:
            with self._autocast():
                output = self.network(self.inputs[t])
        if t < self.timesteps - self.counted_steps:
            nothing: Tensor = output.float().sum() * 0
            return nothing
        loss = self._loss(output) / self.counted_steps
        self._record(output.detach().float(), loss.detach())
        return loss

    def detach_state(self) -> None:
        """Make the state that the next step receives a constant."""
        detach_state(self.network)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss` to the parameters and free its graph."""
        self._backward(loss)

    @property
    def summed_outputs(self) -> Tensor:
        """Σ_t o[t] [batch, classes] in float32 over the counted steps run so far, outside the graph.

        The prediction is its argmax. Raises RuntimeError before the first counted step.
        """
        return _ran(self._summed_outputs)

    @property
    def summed_loss(self) -> Tensor:
        """L over the counted steps run so far, outside the graph: (1/T) Σ_t loss(o[t]) if all count.

        Raises RuntimeError before the first counted step.
        """
        return _ran(self._summed_loss)

    def _record(self, output: Tensor, loss: Tensor) -> None:
        if self._summed_outputs is None or self._summed_loss is None:
            self._summed_outputs, self._summed_loss = output.clone(), loss.clone()
        else:
            self._summed_outputs += output
            self._summed_loss += loss


def _ran(value: Tensor | None) -> Tensor:
    if value is None:
        raise RuntimeError("no step that counts has been run: a method must call step(t) for every t")
    return value
