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
"""o[t] [batch, classes] → a scalar."""


class Unroll:
    """The T steps of one batch.

    Every method calls `step(t)` for t = 0 … T − 1 in order, `detach_state()` where the past is to be a
    constant, and `backward(loss)` where gradients are to be added to the parameters' `.grad`. The
    rest is for rules that need more: `scale_state_gradient`, `save_state` and `restore_state`,
    `presynaptic`, `neurons` and `neurons_replaced`, `loss_of`, `mean_over_batch`, `update`.
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
        """`inputs` holds one tensor [batch, ...] per time step; a static image is one tensor T times.

        Only the last `window` steps (None: all T) count for loss and prediction. With `average`
        "losses" L is the mean of their losses, with "outputs" the loss of their mean output.
        `generator` (on the CPU) is the method's own source of randomness, apart from the one that
        data and dropout use, so that a method's draws disturb nothing else. `update` steps the
        optimiser; None where nothing is trained. `add_up` replaces a tensor, in place, by its sum over the
        processes that share the batch; None where one has it all.
        """
        self.network = network
        self.inputs = inputs
        self.timesteps = len(inputs)
        self.counted_steps = len(inputs) if window is None else window
        self.generator = generator
        self.backward_passes = 0
        """How often `backward` was called so far."""
        self.updates = 0
        """How often `update` was called so far."""
        self.steps_again = 0
        """How often `step` ran a step that had run before."""
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
        """Run step t forward; returns its share of L, a scalar: loss(o[t]) / T if all steps count.

        The share of a step outside the window is 0, which still can be backpropagated; so is every
        share but the last where L is the loss of the mean output. A step that has run before is
        computed again: it leaves prediction, loss and running statistics alone. Where layers see all steps
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
        if not self.counts(t):
            return output.float().sum() * 0
        if self._average == "outputs":
            return self._share_of_mean_output(t, output, again)
        loss = self._loss(output) / self.counted_steps
        if not again:
            self._record(output.detach().float(), loss.detach())
        return loss

    def counts(self, t: int) -> bool:
        """Whether step t lies within the loss's window."""
        return t >= self.timesteps - self.counted_steps

    def detach_state(self, but_for: int | None = None) -> None:
        """Make the state that the next step receives a constant, but for that of one layer of neurons (1: first)."""
        self._needs_steps()
        detach_state(self.network, but_for)

    def backward(self, loss: Tensor, local_error: LocalError | None = None) -> None:
        """Add the gradient of `loss` to the parameters and free its graph.

        `local_error(neurons, ∂loss/∂s[t])`, within `presynaptic` only, is for three-factor rules: what it
        returns is taken as one more error at the current I[t] of that layer of neurons, which the
        weights of the synapses between it and the neurons before it receive, and nothing else.
        Error and gradients carry the loss scale of mixed precision alike.
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
        """Multiply the gradient through the state that the next step receives; no value changes."""
        self._needs_steps()
        scale_state_gradient(self.network, factor)

    def save_state(self) -> State:
        """What the network's layers carry to the next step: one tuple of tensors a stateful layer.

        The last tuple is the sum of the outputs, where L is the loss of their mean.
        """
        self._needs_steps()
        return [*save_state(self.network), (self._outputs,)]

    def restore_state(self, state: State) -> None:
        """Go back to a saved state; steps that have run already may then be computed again."""
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
        """Within, weight gradients are error ⊗ trace(x[t]) in place of error ⊗ x[t].

        x[t] is the input of a synaptic layer (convolution, linear layer, recurrent weights) and
        `trace(layer, x[t])` a tensor of its shape; outputs, and errors on their way to earlier layers,
        stay as they are; a step without a graph asks for no trace. The first trace serves the errors of the
        loss, a second one the local errors of `backward` (by default the first serves both). Layers that feed no
        neurons are left out with `readout=False`, layers that read the network's input with `network_input=False`.
        """
        self._needs_steps()
        self._synapses = Synapses(self.network, traces, readout, network_input)
        try:
            with self._synapses.watched():
                yield
        finally:
            self._synapses = None

    def neurons(self, callback: FollowNeurons) -> AbstractContextManager[None]:
        """Within, `callback(layer, u[t], s[t])` follows every step of every layer of neurons.

        u[t] is the potential before the reset; both are constants of the layer's shape. Raises
        NotImplementedError where neurons are not plain LIF, whose u[t] would be another.
        """
        return watched_neurons(self.network, callback)

    def neurons_replaced(self, function: StandIn) -> AbstractContextManager[None]:
        """Within, `function(layer, I)` stands in for the step of every layer of neurons: I → output of its shape."""
        return replaced_forward(layers_of_neurons(self.network), function)

    @property
    def neuron(self) -> LIFParameters:
        """The parameters of the network's neurons, which all layers share.

        Raises NotImplementedError without neurons, and where layers have different ones.
        """
        kinds = list(dict.fromkeys(layer.parameters_ for layer in followed_neurons(self.network)))
        if len(kinds) > 1:
            raise NotImplementedError(
                "the network's layers have different neurons, and the rule asks for what all of them share; choose "
                "bptt, tbptt-wN or sltt, or give all layers the recipe's neuron"
            )
        return kinds[0]

    def loss_of(self, x: Tensor) -> Tensor:
        """L of one more forward pass on `x` [batch, ...], in place of T steps: for a pass on rates.

        It counts for neither prediction nor running statistics. Raises NotImplementedError where layers
        have something of their own for each step.
        """
        self._needs_no_step()
        with buffers_kept(self.network):
            return self._loss(self._forward(x))

    def in_one_step(self, x: Tensor) -> Tensor:
        """L of one forward pass on `x` [batch, ...] in place of all T steps: prediction, loss and running
        statistics are its own. Raises NotImplementedError as `loss_of` does."""
        self._needs_no_step()
        output = self._forward(x)
        loss = self._loss(output)
        self._record(output.detach().float(), loss.detach())
        return loss

    def mean_over_batch(self, *sums: Tensor) -> list[Tensor]:
        """Means over the samples of the whole batch, each from the sum over this process's, of any shape.

        For what a method decides by its batch. Processes that share one exchange the sums here, so that all
        decide alike: they must all call it at the same places, with equal shapes and one type.
        """
        samples = len(self.inputs[0])
        if self._add_up is None:
            return [own / samples for own in sums]
        flat = self._add_up(torch.cat([*(own.flatten() for own in sums), sums[0].new_full((1,), samples)]))
        parts = torch.split(flat[:-1] / flat[-1], [own.numel() for own in sums])
        return [part.view_as(own) for part, own in zip(parts, sums, strict=True)]

    def update(self) -> None:
        """A step of the optimiser within the sequence, for rules that learn online.

        The gradients so far are used up. Where nothing is trained, it does nothing.
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

    def _share_of_mean_output(self, t: int, output: Tensor, again: bool) -> Tensor:
        """L at the last step, 0 before: the outputs are summed within the graph."""
        # A sum over many steps in half precision would lose what the last ones say.
        share = output.to(torch.promote_types(output.dtype, torch.float32)) / self.counted_steps
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
    """Within, the network takes [T · batch, ...], step after step: what carries a state goes through the steps
    one by one, all else sees them at once.

    Raises NotImplementedError where a layer that is to see them all lies within one that goes through them, and where
    one that carries a state is called again: it would have gone through all steps before.
    """
    layers = outermost_stateful(network)
    for name, layer in layers.items():
        if inner := next((type(m).__name__ for m in layer.modules() if isinstance(m, OverTime)), None):
            raise NotImplementedError(
                f"a {inner} sees all steps at once, but lies within {name}, which goes through them one by one; choose "
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
        return torch.cat([type(layer).forward(layer, part) for part in x.chunk(timesteps)])

    return replaced_forward(list(layers.values()), through_steps)


@contextmanager
def buffers_kept(network: nn.Module) -> Iterator[None]:
    """Within, layers use the batch's statistics as they do in training, but learn none: buffers end as they began."""
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
