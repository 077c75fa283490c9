"""Runs several steps of SLTT-K that need no graph at once, in the memory of one step.

    one by one     I, u in; s, u out                   4 tensors a step move through the neurons
    R at once      I₁ … I_R, u in; s₁ … s_R, u out     2 + 2 / R: u stays in registers between them

R steps of the whole batch would take more memory than one step with its graph. So the batch is divided into
parts of batch / R samples, each of which passes through R steps: a call sees as many images as before. Which
steps run together is known before the first one, since the method's choice can be rehearsed.

This serves networks that treat samples independently (so no batch norm) and whose only state is that of LIF
neurons; the calls of a step (torch.fx) show both. If one image is shown at every step, all steps share the
results of the first layers as usual; the last of these layers repeat them for the steps of a part.
"""

import operator
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from math import ceil
from typing import Any

import torch
from torch import Tensor, fx, nn

from sltt_bench.backends.native.absorbed_bias import UnbiasedConv2d, UnbiasedScaledWSConv2d
from sltt_bench.backends.native.loop_invariants import is_first_layer
from sltt_bench.backends.native.neuron import NativeLIF, Portion
from sltt_bench.backends.native.pooling import LeanAdaptiveAvgPool2d, LeanAvgPool2d
from sltt_bench.backends.native.residual_sums import is_residual_sum
from sltt_bench.backends.native.step_calls import (
    IN_PLACE,
    NotTraceable,
    changed_number,
    numbers_of_step,
    trace_step,
)
from sltt_bench.backends.native.step_weights import replaced
from sltt_bench.models.layers import SequenceDropout
from sltt_bench.models.nf_resnet import ScaledWSConv2d
from sltt_bench.models.normalisation import ScaledWSLinear
from sltt_bench.neurons import input_of_call, reads_values
from sltt_bench.torch_internals import hooks_of_every_layer

AT_ONCE = 4
"""Largest number of steps that run together: at T = 6 it gives all but a tenth of the possible saving."""

SAMPLE_BY_SAMPLE = (
    nn.Conv2d, UnbiasedConv2d, ScaledWSConv2d, UnbiasedScaledWSConv2d, nn.Linear, ScaledWSLinear, nn.Flatten, nn.Identity,
    nn.MaxPool2d, LeanAvgPool2d, LeanAdaptiveAvgPool2d,
)  # fmt: skip
"""Layers without state and randomness whose result for a sample does not depend on other samples."""
ELEMENT_BY_ELEMENT = (operator.add, operator.sub, operator.mul, operator.truediv)
ELEMENT_BY_ELEMENT_IN_PLACE = tuple(fn for fn, new in IN_PLACE.items() if new in ELEMENT_BY_ELEMENT)


class NotServed(Exception):
    """The network's steps must run one by one; the message says why."""


class FreeSteps:
    """A network that can run several steps without a graph at once."""

    def __init__(self, network: nn.Module) -> None:
        """Raises NotServed."""
        self.network = network
        try:
            graph = trace_step(network)
        except NotTraceable as error:
            raise NotServed(str(error)) from error
        layers = {n: network.get_submodule(str(n.target)) for n in graph.nodes if n.op == "call_module"}
        for node in graph.nodes:
            _check(node, layers, network)
        self.neurons = [layer for layer in layers.values() if isinstance(layer, NativeLIF)]
        if len(set(self.neurons)) < len(self.neurons):
            raise NotServed("a layer of neurons is called more than once in a step")
        self._last_shared = _last_of_first_layers(graph, layers)
        self._numbers = numbers_of_step(network)

    def why_not_now(self) -> str | None:
        """Returns why the steps of this iteration must run one by one, or None."""
        modules = list(self.network.modules())
        hooks = [h for m in modules for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
        if (
            any(map(reads_values, hooks))
            or any("forward" in m.__dict__ for m in modules)
            or hooks_of_every_layer()
        ):
            return "somebody looks at what layers make"
        return changed_number(self._numbers)

    def sequence(self, inputs: Sequence[Tensor], chosen: Collection[int]) -> "FreeSequence":
        """Returns the network for T inputs [batch, ...] of which the `chosen` steps (from 0) need a graph."""
        return FreeSequence(self, inputs, chosen)

    def several(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Returns the outputs [batch, classes] of consecutive steps, computed without a graph."""
        steps, batch = len(inputs), len(inputs[0])
        repeated = bool(self._last_shared) and all(x is inputs[0] for x in inputs)
        size = ceil(
            batch / ceil(batch / (batch // steps))
        )  # equal portions, together at most as large as the batch
        outputs: list[Sequence[Tensor]] = []
        for start in range(0, batch, size):
            portion = Portion(steps, slice(start, min(start + size, batch)), batch)
            with self._seeing(portion, repeated=repeated):
                x = inputs[0] if repeated else torch.cat([step[portion.samples] for step in inputs])
                outputs.append(self.network(x).chunk(steps))
        return [torch.cat(parts) for parts in zip(*outputs, strict=True)]

    @contextmanager
    def _seeing(self, portion: Portion, *, repeated: bool) -> Iterator[None]:
        """Context in which neurons take several steps of a portion.

        `repeated`: all steps show one image, so the last of the first layers repeat their result per step.
        """
        with ExitStack() as replacements:
            for neurons in self.neurons:
                replacements.enter_context(replaced(neurons, "portion", portion))
            for layer in self._last_shared if repeated else ():
                forward = partial(_repeated, layer.forward, portion)
                replacements.enter_context(replaced(layer, "forward", forward))
            yield


class FreeSequence(nn.Module):
    """Stands in for the network in one unroll; its t-th call returns o[t]."""

    def __init__(self, steps: FreeSteps, inputs: Sequence[Tensor], chosen: Collection[int]) -> None:
        super().__init__()
        self.network = steps.network
        self._steps = steps
        self._inputs = inputs
        self._chosen = chosen
        self._t = 0
        self._outputs: list[Tensor] = []
        """Outputs of steps that the method has not yet asked for."""

    def forward(self, x: Tensor) -> Tensor:
        first = self._t
        self._t += 1
        if self._outputs:
            return self._outputs.pop(0)
        end = first
        while end < min(first + AT_ONCE, len(self._inputs), first + len(x)) and end not in self._chosen:
            end += 1
        if end < first + 2:
            output: Tensor = self.network(x)
            return output
        self._outputs = self._steps.several(self._inputs[first:end])
        return self._outputs.pop(0)


def _repeated(forward: Callable[[Tensor], Tensor], portion: Portion, *args: Any, **kwargs: Any) -> Tensor:
    """Returns the portion's samples of the layer's result for the whole batch, repeated for each step."""
    return torch.cat([forward(input_of_call(args, kwargs))[portion.samples]] * portion.steps)


def _check(node: fx.Node, layers: dict[fx.Node, nn.Module], network: nn.Module) -> None:
    """Raises NotServed if a call may mix samples, draw random numbers or (except neurons) have a state."""
    if node in layers:
        layer = layers[node]
        idle = isinstance(layer, SequenceDropout) and layer.p == 0
        if type(layer) not in (*SAMPLE_BY_SAMPLE, NativeLIF) and not idle:
            raise NotServed(f"a {type(layer).__name__} may not see several steps at once")
    elif node.op == "get_attr":
        if operator.attrgetter(str(node.target))(network).dim():
            raise NotServed(f"{node.target} is more than a number")
    elif node.op == "call_method" or (
        node.op == "call_function"
        and node.target not in (*ELEMENT_BY_ELEMENT, *ELEMENT_BY_ELEMENT_IN_PLACE)
        and not is_residual_sum(node.target)
    ):
        raise NotServed(f"its forward method calls {node.name}")


def _last_of_first_layers(graph: fx.Graph, layers: dict[fx.Node, nn.Module]) -> list[nn.Module]:
    """Returns the layers that depend only on the input and whose results other layers read.

    Empty if other layers read the input itself, or if one of the results is also read among these layers.
    """
    (known,) = ({node} for node in graph.nodes if node.op == "placeholder")
    for node in graph.nodes:
        if node in layers and is_first_layer(layers[node]) and known.issuperset(node.all_input_nodes):
            known.add(node)
    last = [node for node in known if not known.issuperset(node.users)]
    alone = all(node in layers and known.isdisjoint(node.users) for node in last)
    return [layers[node] for node in last] if alone else []
