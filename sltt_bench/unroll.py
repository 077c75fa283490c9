"""One batch as a method sees it: a sequence of time steps to run forward and backward."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from sltt_bench.neurons import (
    LIFParameters,
    OverTime,
    PerStep,
    State,
    Stateful,
    detach_state,
    followed_neurons,
    layers_of_neurons,
    outermost_stateful,
    reset_state,
    restore_state,
    save_state,
    scale_state_gradient,
)
from sltt_bench.precision import at_least_float32, cast_anew
from sltt_bench.synapses import (
    Backward,
    FollowNeurons,
    LocalError,
    Presynaptic,
    StandIn,
    Synapses,
    replaced_forward,
    watched_neurons,
)

StepLoss = Callable[[Tensor], Tensor]
"""o[t] [batch, classes] → scalar loss."""


class Unroll:
    """The T steps of one batch.

    Every method calls `step(t)` for t = 0 … T − 1 in order, `detach_state()` to make the past a
    constant, and `backward(loss)` to add gradients to the parameters' `.grad`. The
    rest is for rules that need more: `scale_state_gradient`, `save_state`, `restore_state` and `restart`,
    `presynaptic`, `neurons` and `neurons_replaced`, `loss_of` and `in_one_step`, `mean_over_batch`, `update`.
    """

    def __init__(
        self,
        network: nn.Module,
        inputs: Sequence[Tensor],
        loss: StepLoss,
        *,
        generator: torch.Generator,
        backward: Backward = torch.Tensor.backward,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
        window: int | None = None,
        average: str = "losses",
        update: Callable[[], None] | None = None,
        add_up: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """`inputs` holds one tensor [batch, ...] per time step; a static image is the same tensor T times.

        Only the last `window` steps (None: all T) count for loss and prediction. With `average`
        "losses" L is the mean of their losses, with "outputs" the loss of their mean output.
        `generator` (on the CPU) is the method's own source of randomness, separate from that of
        data and dropout, so that a method's draws affect nothing else. `update` steps the
        optimiser; it is None if nothing is trained. `add_up` replaces a tensor, in place, by its sum over the
        processes that share the batch; it is None if one process has the whole batch.
        """
        self.network = network
        self.inputs = inputs
        self.timesteps = len(inputs)
        self.counted_steps = len(inputs) if window is None else window
        self.generator = generator
        self.backward_passes = 0
        """Number of calls of `backward` so far."""
        self.updates = 0
        """Number of calls of `update` so far."""
        self.steps_again = 0
        """Number of calls of `step` so far for a step that had run before."""
        self._steps_run = 0
        self._summed_outputs: Tensor | None = None
        self._summed_loss: Tensor | None = None
        self._outputs: Tensor | None = None
        self._loss = loss
        self._backward = backward
        self._autocast = autocast
        self._average = average
        self._update = update
        self._add_up = add_up
        self._synapses: Synapses | None = None
        modules = list(network.modules())
        self._per_step = [module for module in modules if isinstance(module, PerStep)]
        self._over_time = any(isinstance(module, OverTime) and module.training for module in modules)
        self._sequence_outputs: list[Tensor] = []
        reset_state(network)

    # What every method uses -----------------------------------------------------------------------

    def step(self, t: int) -> Tensor:
        """Run step t forward and return its share of L, a scalar: loss(o[t]) / T if all steps count.

        A step outside the window has share 0, which can still be backpropagated. If L is the loss of the mean
        output, every share except the last is 0 as well. A step that has run before is
        computed again without changing prediction, loss or running statistics. If layers see all steps
        at once (`OverTime`), the first step runs them all.
        """
        again = t < self._steps_run
        self.steps_again += again
        if self._synapses is not None:
            self._synapses.step_begins()
        with buffers_kept(self.network) if again else nullcontext():
            output = self._output(t)
        self._steps_run = max(self._steps_run, t + 1)
        if self._synapses is not None:
            self._synapses.step_is_over()
        share = self._share(t, output, again)
        if torch.is_grad_enabled() and not share.requires_grad:
            # Nothing that learns has reached o[t], as at step 1 if only recurrent weights learn: a gradient of zero.
            return share.requires_grad_()
        return share

    def counts(self, t: int) -> bool:
        """Whether step t lies within the loss's window."""
        return t >= self.timesteps - self.counted_steps

    def detach_state(self, but_for: int | None = None) -> None:
        """Make the next step's incoming state a constant, except in layer of neurons `but_for` (from 1)."""
        self._needs_steps()
        detach_state(self.network, but_for)

    def backward(self, loss: Tensor, local_error: LocalError | None = None) -> None:
        """Add the gradient of `loss` to the parameters and free its graph.

        `local_error(neurons, ∂loss/∂s[t])` is for three-factor rules and works only within `presynaptic`. It
        returns an additional error at the current I[t] of that layer of neurons. Only the weights of the
        synapses between this layer and the neurons before it receive this error.
        Errors and gradients carry the same loss scale of mixed precision.
        """
        self.backward_passes += 1
        if local_error is None:
            self._backward(loss)
        elif self._synapses is None:
            raise RuntimeError(
                "backward with a local error needs `with unroll.presynaptic(...)` around the step"
            )
        else:
            self._synapses.backward(loss, local_error, self._backward)

    # What some methods need -----------------------------------------------------------------------

    def scale_state_gradient(self, factor: float) -> None:
        """Multiply the gradient through the state that the next step receives; values stay the same."""
        self._needs_steps()
        scale_state_gradient(self.network, factor)

    def save_state(self) -> State:
        """Returns the state that layers carry to the next step, one tuple of tensors for each stateful layer.

        The last tuple holds the sum of the outputs if L is the loss of their mean.
        """
        self._needs_steps()
        return [*save_state(self.network), (self._outputs,)]

    def restore_state(self, state: State) -> None:
        """Go back to a saved state, so that steps that have already run can be computed again."""
        *layers, (self._outputs,) = state
        restore_state(self.network, layers)

    def restart(self) -> None:
        """Go back before the first step, for a method that then draws all random numbers again as they were
        (`torch.utils.checkpoint` does): masks that layers draw once for a sequence are drawn again too. Were they kept,
        the draws of other layers would be moved by theirs.
        """
        reset_state(self.network)
        self._outputs = None

    @contextmanager
    def presynaptic(
        self, *traces: Presynaptic, readout: bool = True, network_input: bool = True
    ) -> Iterator[None]:
        """Context in which weight gradients are error ⊗ trace(x[t]) in place of error ⊗ x[t].

        x[t] is the input of a synaptic layer (convolution, linear layer, recurrent weights) and
        `trace(layer, x[t])` a tensor of the same shape. Outputs, and errors on their way to earlier layers,
        are unchanged. A step without a graph calls no trace. The first trace serves the errors of the
        loss, a second one the local errors of `backward` (by default the first serves both).
        `readout=False` leaves out layers that feed no neurons, `network_input=False` layers that read the
        network's input.
        """
        self._needs_steps()
        self._synapses = Synapses(self.network, traces, readout, network_input)
        try:
            with self._synapses.watched():
                yield
        finally:
            self._synapses = None

    def neurons(self, callback: FollowNeurons) -> AbstractContextManager[None]:
        """Context that calls `callback(layer, u[t], s[t])` at every step of every layer of neurons.

        u[t] is the potential before the reset; both are constants of the layer's shape. Raises
        NotImplementedError if neurons are not plain LIF, since their u[t] differs.
        """
        return watched_neurons(self.network, callback)

    def neurons_replaced(self, function: StandIn) -> AbstractContextManager[None]:
        """Context that replaces the step of each layer of neurons by `function(layer, I)`, of I's shape."""
        return replaced_forward(layers_of_neurons(self.network), function)

    @property
    def neuron(self) -> LIFParameters:
        """The neuron parameters that all layers share.

        Raises NotImplementedError if there are no neurons or layers have different parameters.
        """
        kinds = list(dict.fromkeys(layer.parameters_ for layer in followed_neurons(self.network)))
        if len(kinds) > 1:
            raise NotImplementedError(
                "the network's layers have different neurons, and the rule asks for what all of them share; choose "
                "bptt, tbptt-wN or sltt, or give all layers the recipe's neuron"
            )
        return kinds[0]

    def loss_of(self, x: Tensor) -> Tensor:
        """Returns L of one more forward pass on `x` [batch, ...], in place of T steps: for a pass on rates.

        The pass changes neither prediction nor running statistics. Raises NotImplementedError if layers
        have parameters or statistics for each step.
        """
        self._needs_no_step()
        with buffers_kept(self.network):
            return self._loss(self._forward(x))

    def in_one_step(self, x: Tensor) -> Tensor:
        """Returns L of one forward pass on `x` [batch, ...] in place of all T steps, which also sets
        prediction and running statistics. Raises NotImplementedError as `loss_of` does."""
        self._needs_no_step()
        output = self._forward(x)
        loss = self._loss(output)
        self._record(output.detach().float(), loss.detach())
        return loss

    def mean_over_batch(self, *sums: Tensor) -> list[Tensor]:
        """Returns means over the whole batch, each from a sum over this process's samples, of any shape.

        For decisions that a method bases on its batch. Processes that share a batch exchange their sums here,
        so that all decide alike; all must call it at the same places, with equal shapes and one type.
        """
        samples = len(self.inputs[0])
        if self._add_up is None:
            return [own / samples for own in sums]
        flat = self._add_up(torch.cat([*(own.flatten() for own in sums), sums[0].new_full((1,), samples)]))
        parts = torch.split(flat[:-1] / flat[-1], [own.numel() for own in sums])
        return [part.view_as(own) for part, own in zip(parts, sums, strict=True)]

    def update(self) -> None:
        """Step the optimiser within the sequence, for rules that learn online.

        Uses up the gradients so far. Does nothing if nothing is trained.
        """
        self.updates += 1
        if self._update is not None:
            self._update()

    # What is read afterwards ----------------------------------------------------------------------

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

    def _forward(self, x: Tensor) -> Tensor:
        with self._autocast():
            output: Tensor = self.network(x)
        return output

    def _share(self, t: int, output: Tensor, again: bool) -> Tensor:
        if not self.counts(t):
            return output.float().sum() * 0
        if self._average == "outputs":
            return self._share_of_mean_output(t, output, again)
        loss = self._loss(output) / self.counted_steps
        if not again:
            self._record(output.detach().float(), loss.detach())
        return loss

    def _share_of_mean_output(self, t: int, output: Tensor, again: bool) -> Tensor:
        """Returns L at the last step and 0 before it; the outputs are summed within the graph."""
        share = at_least_float32(output) / self.counted_steps
        self._outputs = share if self._outputs is None else self._outputs + share
        last = t == self.timesteps - 1
        loss = self._loss(self._outputs) if last else output.float().sum() * 0
        if not again:
            self._record(output.detach().float(), loss.detach())
        if last:
            self._outputs = None
        return loss

    def _record(self, output: Tensor, loss: Tensor) -> None:
        if self._summed_outputs is None or self._summed_loss is None:
            self._summed_outputs, self._summed_loss = output.clone(), loss.clone()
        else:
            self._summed_outputs += output
            self._summed_loss += loss

    def _output(self, t: int) -> Tensor:
        """o[t] [batch, classes]."""
        if not self._over_time:
            for layer in self._per_step:
                layer.timestep = t
            return self._forward(self.inputs[t])
        if t == 0:
            with whole_sequences(self.network, self.timesteps):
                outputs = self._forward(torch.cat(list(self.inputs)))
            self._sequence_outputs = list(outputs.chunk(self.timesteps))
        return self._sequence_outputs.pop(0)

    def _needs_no_step(self) -> None:
        if self._per_step:
            raise NotImplementedError(
                "a pass on means is none of the T steps, for each of which the network has layers; choose a method "
                "that goes step by step, or another normalisation"
            )

    def _needs_steps(self) -> None:
        if self._over_time:
            raise NotImplementedError(
                "a layer of the network sees all steps at once, so that nothing lies between two steps; "
                "choose method bptt, or another normalisation"
            )


def whole_sequences(network: nn.Module, timesteps: int) -> AbstractContextManager[None]:
    """Context in which the network takes [T · batch, ...], ordered by step: layers with a state go through
    the steps one by one, all others see them at once.

    Raises NotImplementedError if an `OverTime` layer lies within a layer with a state, and if a layer with a
    state is called a second time: its first call would already have gone through all steps.
    """
    layers = outermost_stateful(network)
    for name, layer in layers.items():
        if inner := next((type(m).__name__ for m in layer.modules() if isinstance(m, OverTime)), None):
            raise NotImplementedError(
                f"a {inner} sees all steps at once, but lies within the layer {name!r}, which goes through them one by one; choose "
                "another normalisation"
            )
    called: set[Stateful] = set()

    def through_steps(layer: Stateful, x: Tensor) -> Tensor:
        if layer in called and layer.carried:
            raise NotImplementedError(
                f"a {type(layer).__name__} is called more than once in a step, whose calls would not follow each other "
                "where layers see all steps at once; choose another normalisation, or give each call a layer of its own"
            )
        called.add(layer)
        with cast_anew(x.device.type):
            return torch.cat([type(layer).forward(layer, part) for part in x.chunk(timesteps)])

    return replaced_forward(list(layers.values()), through_steps)


@contextmanager
def buffers_kept(network: nn.Module) -> Iterator[None]:
    """Context in which layers use batch statistics as in training, but learn none: buffers are restored."""
    kept = [
        (module, dict(module._buffers)) for module in network.modules() if module.training and module._buffers
    ]
    for module, buffers in kept:
        module._buffers.update({name: b if b is None else b.clone() for name, b in buffers.items()})
    try:
        yield
    finally:
        for module, buffers in kept:
            module._buffers.update(buffers)


def _ran(value: Tensor | None) -> Tensor:
    if value is None:
        raise RuntimeError("no step that counts has been run: a method must call step(t) for every t")
    return value
