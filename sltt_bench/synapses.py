"""The synapses of a network: traces in place of their inputs, and errors local to one layer of neurons.

A synaptic layer is a convolution or a linear layer, including standardised and recurrent ones. Its
weight gradient is ∂L/∂y[t] ⊗ x[t] with input x[t] and output y[t], and autograd saves x[t] only for this
product. A rule with eligibility traces replaces x[t] by a trace: a saved-tensor hook saves the
trace *instead of* x[t], so a trace costs only its own memory and no second forward pass.

The neurons divide a network into sections. A local error at the current I[t] of a layer of neurons is
backpropagated through the section before it (normalisation, shortcuts) to the weights that feed
it. It stops there, because the neurons before it act as closed gates.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from sltt_bench.neurons import (
    LIF,
    SpikingNeuron,
    followed_neurons,
    input_of_call,
    integrate,
    layers_of_neurons,
    save_state,
)
from sltt_bench.precision import at_least_float32
from sltt_bench.torch_internals import storage_address

Presynaptic = Callable[[nn.Module, Tensor], Tensor]
"""(synaptic layer, its input x[t] in float32 at least) → the trace that replaces x[t] in the weight gradient, of its
shape."""
LocalError = Callable[[SpikingNeuron, Tensor], Tensor | None]
"""(layer of neurons, ∂L[t]/∂s[t]) → an additional error at its current I[t], of the same shape, or None."""

FollowNeurons = Callable[[SpikingNeuron, Tensor, Tensor], None]
"""(layer of neurons, u[t], s[t]): called after each of its steps."""
StandIn = Callable[[SpikingNeuron, Tensor], Tensor]
"""(layer of neurons, I[t]) → replacement of s[t], of the same shape."""

Layer = TypeVar("Layer", bound=nn.Module)

SYNAPTIC = (nn.modules.conv._ConvNd, nn.Linear)


class Backward(Protocol):
    """The backward pass of a loss, which may scale it for mixed precision."""

    def __call__(self, loss: Tensor, /, *, retain_graph: bool = False) -> None: ...


class Synapses:
    """The synaptic layers of a network, watched while a method runs its steps."""

    def __init__(
        self, network: nn.Module, traces: Sequence[Presynaptic], readout: bool, network_input: bool
    ) -> None:
        """`traces`: one for the loss's errors and one for the local errors (a single one serves both).

        `readout`: whether layers that feed no neurons have a trace. `network_input`: whether layers
        that read the network's input have one.
        """
        self.traces = traces
        self.in_local_pass = False
        """Whether the current backward pass is one of local errors."""
        self._network = network
        self._readout = readout
        self._network_input = network_input
        self._layers = [m for m in network.modules() if isinstance(m, SYNAPTIC)]
        self._without_trace: set[nn.Module] = set()
        """Layers that feed no neurons, with `readout=False`."""
        self._reads_input: set[nn.Module] = set()
        """Layers that read the network's input, with `network_input=False`."""
        self._in_first_step = True
        self._made_by: dict[Any, nn.Module] = {}
        """Autograd node → the synaptic layer whose output it produced in the first step."""
        self._received: list[Any] = []
        """Autograd nodes that produced the currents of neurons in the first step."""
        self._gates: list[Gate] = []
        self._traced: set[nn.Module] = set()
        """Layers whose input has been replaced by a trace in the current step."""

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Context within which the layers have their hooks."""
        with ExitStack() as stack:
            for layer in self._layers:
                before = layer.register_forward_pre_hook(self._before_synapse, with_kwargs=True)
                stack.callback(before.remove)
                stack.callback(layer.register_forward_hook(self._after_synapse, always_call=True).remove)
            for neurons in layers_of_neurons(self._network):
                after = neurons.register_forward_hook(self._after_neurons, with_kwargs=True)
                stack.callback(after.remove)
            yield
        self._gates.clear()

    def step_begins(self) -> None:
        """Call before each step: errors of earlier steps are no longer needed."""
        self._gates.clear()
        self._traced.clear()

    def step_is_over(self) -> None:
        """Call after each step."""
        if self._in_first_step and not self._readout:
            self._without_trace = set(self._made_by.values()) - self._feeding_neurons()
        self._in_first_step &= not torch.is_grad_enabled()
        self._made_by.clear()
        self._received.clear()

    def backward(self, loss: Tensor, local_error: LocalError, backward: Backward) -> None:
        """Add the gradient of `loss`, and then the contribution of the local errors to the weights."""
        gates, self._gates = self._gates, []
        backward(loss, retain_graph=True)
        local: list[tuple[Tensor, Tensor]] = []
        for gate in gates:
            gate.is_open = False
            error = None if gate.error is None else local_error(gate.neurons, gate.error)
            if error is not None and gate.current.requires_grad:
                local.append((gate.current, error.to(gate.current.dtype)))
        weights = (weight for layer in self._layers for weight in weights_of(layer))
        trained = list(dict.fromkeys(weight for weight in weights if weight.requires_grad))
        if not local or not trained:
            return
        self.in_local_pass = True
        try:
            torch.autograd.backward(
                [current for current, _ in local],
                [error for _, error in local],
                inputs=trained,
            )
        finally:
            self.in_local_pass = False

    def _feeding_neurons(self) -> set[nn.Module]:
        """Returns the synaptic layers whose output contributed to a current of neurons in the first step."""
        feeding, seen, ahead = set(), set(), list(self._received)
        while ahead:
            node = ahead.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if node in self._made_by:
                feeding.add(self._made_by[node])
            ahead.extend(earlier for earlier, _ in node.next_functions)
        return feeding

    def _before_synapse(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Tensor], dict[str, Any]] | None:
        if not torch.is_grad_enabled():
            return None
        x = input_of_call(args, kwargs)
        if self._in_first_step and not self._network_input and not x.requires_grad:
            self._reads_input.add(layer)
        if layer in self._reads_input and self._is_carried(x):  # e.g. recurrent weights
            self._reads_input.discard(layer)
        untraced = layer in self._without_trace or layer in self._reads_input
        if untraced or not any(weight.requires_grad for weight in weights_of(layer)):
            return None
        if layer in self._traced:
            raise called_twice(layer)
        self._traced.add(layer)
        if isinstance(layer, nn.Linear):
            x = x.contiguous()  # else it multiplies, and keeps, a copy of its own
        traces = [trace(layer, at_least_float32(x.detach())) for trace in self.traces]
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))  # else the layer's cast hides x from the hook
        saving = _Saving(self, x, traces)
        saving.__enter__()
        layer.__dict__["_saving"] = saving
        return (x,), {}

    def _after_synapse(self, layer: nn.Module, args: Any, output: Any) -> None:
        if self._in_first_step and isinstance(output, Tensor) and output.grad_fn is not None:
            self._made_by[output.grad_fn] = layer
        saving: _Saving | None = layer.__dict__.pop("_saving", None)
        if saving is not None:
            saving.__exit__()
            if not saving.replaced and output is not None:
                raise NotImplementedError(
                    f"a {type(layer).__name__} keeps something else than its input for its weight gradient (a padded "
                    "copy, say), so that no trace can take its place; choose a method without traces"
                )

    def _after_neurons(
        self, neurons: SpikingNeuron, args: tuple[Any, ...], kwargs: dict[str, Any], spikes: Tensor
    ) -> Tensor | None:
        if self._in_first_step and torch.is_grad_enabled() and not spikes.requires_grad:
            # The layers before are not trained: without this, the spikes would pass for the network's input.
            return spikes.detach().requires_grad_()
        if not spikes.requires_grad:
            return None
        current = input_of_call(args, kwargs)
        if self._in_first_step:
            self._received.append(current.grad_fn)
        gate = Gate(neurons, current)
        self._gates.append(gate)
        result: Tensor = _ThroughGate.apply(spikes, gate)
        return result

    def _is_carried(self, x: Tensor) -> bool:
        carried = [value for values in save_state(self._network) for value in values if value is not None]
        return any(_same_storage(value, x) for value in carried)


class _Saving(torch.autograd.graph.saved_tensors_hooks):
    """Within a synaptic layer, makes autograd save the traces in place of the layer's input."""

    def __init__(self, synapses: Synapses, x: Tensor, traces: list[Tensor]) -> None:
        # This object holds both closures, so neither may hold it: traces are then freed with the graph.
        replaced: list[bool] = []
        self.replaced = replaced

        def pack(kept: Tensor) -> Any:
            if not (_same_storage(kept, x) and kept.numel() == x.numel()):
                return kept.detach()  # a node that saved its own output would be a reference cycle
            replaced.append(True)
            return [trace.to(kept.dtype).reshape(kept.shape) for trace in traces]

        def unpack(kept: Any) -> Tensor:
            if isinstance(kept, Tensor):
                return kept
            trace: Tensor = kept[-1] if synapses.in_local_pass else kept[0]
            return trace

        super().__init__(pack, unpack)


@dataclass(eq=False)
class Gate:
    """The output of a layer of neurons at one step; it records the passing error or, if closed, stops it."""

    neurons: SpikingNeuron
    current: Tensor
    """I[t], within the graph."""
    error: Tensor | None = None
    """∂L[t]/∂s[t], after a backward pass."""
    is_open: bool = True


class _ThroughGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, spikes: Tensor, gate: Gate) -> Tensor:
        ctx.gate = gate
        return spikes.view_as(spikes)

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor | None, None]:  # type: ignore[override]
        if not ctx.gate.is_open:
            return None, None
        ctx.gate.error = error
        return error, None


@contextmanager
def watched_neurons(network: nn.Module, callback: FollowNeurons) -> Iterator[None]:
    """Context that calls `callback(layer, u[t], s[t])` at every step of every layer of LIF neurons.

    Raises NotImplementedError without neurons, for neurons of another kind, and for a layer that is called
    twice in one step, since its calls would be mixed up.
    """
    layers = followed_neurons(network)
    if others := [layer.parameters_.kind for layer in layers if layer.parameters_.kind != "lif"]:
        raise NotImplementedError(
            f"the potential before the reset is known of kind lif only, not of {others[0]}"
        )
    membranes: dict[nn.Module, Tensor] = {}
    called: set[nn.Module] = set()
    """Layers called in the current step."""

    def before(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if layer in called:
            raise called_twice(layer)
        called.add(layer)
        neurons, current = cast(LIF, layer), input_of_call(args, kwargs).detach()
        with torch.no_grad():
            membranes[layer] = integrate(current, neurons.potential, neurons.parameters_)

    def after(layer: nn.Module, args: Any, spikes: Tensor) -> None:
        with torch.no_grad():
            callback(cast(LIF, layer), membranes.pop(layer), spikes.detach())

    with ExitStack() as stack:
        stack.callback(network.register_forward_pre_hook(lambda *_: called.clear()).remove)
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(layer.register_forward_hook(after).remove)
        yield


@contextmanager
def replaced_forward(layers: Sequence[Layer], function: Callable[[Layer, Tensor], Tensor]) -> Iterator[None]:
    """Context that replaces the forward method of each of the layers by `function(layer, x)`."""

    def stand_in(layer: Layer, *args: Any, **kwargs: Any) -> Tensor:
        return function(layer, input_of_call(args, kwargs))

    for layer in layers:
        layer.__dict__["forward"] = partial(stand_in, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.__dict__["forward"]


def called_twice(layer: nn.Module) -> NotImplementedError:
    """Returns the error for a step that calls a layer twice under a rule that follows layers over steps."""
    return NotImplementedError(
        f"a {type(layer).__name__} is called more than once in a step, and the rule would mix what it follows of the "
        "calls; choose bptt, tbptt-wN, sltt or another method without traces, or give each call a layer of its own"
    )


def weights_of(layer: nn.Module) -> list[nn.Parameter]:
    """Returns the parameters of a synaptic layer that multiply its input, or from which torch computes its
    weight (`torch.nn.utils.parametrize`)."""
    return [
        parameter
        for name, parameter in layer.named_parameters()
        if ("." not in name or name.startswith("parametrizations.")) and "bias" not in name.split(".")[:2]
    ]


def _same_storage(a: Tensor, b: Tensor) -> bool:
    same: bool = storage_address(a) == storage_address(b)
    return same
