"""The steps of SLTT-K that need no graph, several at once, in the memory of one.

    one by one     I, u in; s, u out                   4 tensors a step move through the neurons
    R at once      I₁ … I_R, u in; s₁ … s_R, u out     2 + 2 / R: u stays in registers between them

The whole batch would take the memory of R steps, which is more than a step with its graph takes. So the batch passes in
parts of batch / R samples, each through R steps: a call sees as many images as before. Which steps come together is known
before the first, since the method's choice can be rehearsed.

This serves networks in which samples do not meet, which batch norm does not allow, and whose only state is that of LIF
neurons; the calls of a step (torch.fx) show both. What an image that is shown at every step makes of the first layers is
shared by all steps as usual, and repeated behind the last of those layers for the steps of a part.
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
"""Most steps that come together: of what there is to save they save all but a tenth where T = 6."""

SAMPLE_BY_SAMPLE = (
    nn.Conv2d, UnbiasedConv2d, ScaledWSConv2d, UnbiasedScaledWSConv2d, nn.Linear, ScaledWSLinear, nn.Flatten, nn.Identity,
    nn.MaxPool2d, LeanAvgPool2d, LeanAdaptiveAvgPool2d,
)  # fmt: skip
"""Layers without state and chance that make of a sample the same whatever is beside it."""
ELEMENT_BY_ELEMENT = (operator.add, operator.sub, operator.mul, operator.truediv)
ELEMENT_BY_ELEMENT_IN_PLACE = tuple(fn for fn, new in IN_PLACE.items() if new in ELEMENT_BY_ELEMENT)


class NotServed(Exception):
    """The network's steps go one by one; the message says why."""


class FreeSteps:
    """A network whose steps without a graph may come several at once."""

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
        """Why the steps of this iteration go one by one, or None."""
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
        """The network for one sequence of T inputs [batch, ...], of which the `chosen` steps (from 0) need a graph."""
        return FreeSequence(self, inputs, chosen)

    def several(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The outputs of consecutive steps without a graph, [batch, classes] each."""
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
        """Within, neurons take steps of a portion; `repeated`: made of the batch of one image by the last first layers."""
        with ExitStack() as replacements:
            for neurons in self.neurons:
                replacements.enter_context(replaced(neurons, "portion", portion))
            for layer in self._last_shared if repeated else ():
                forward = partial(_repeated, layer.forward, portion)
                replacements.enter_context(replaced(layer, "forward", forward))
            yield


class FreeSequence(nn.Module):
    """Stands in for the network in one unroll: its call number t gives o[t]."""

    def __init__(self, steps: FreeSteps, inputs: Sequence[Tensor], chosen: Collection[int]) -> None:
        super().__init__()
        self.network = steps.network
        self._steps = steps
        self._inputs = inputs
        self._chosen = chosen
        self._t = 0
        self._outputs: list[Tensor] = []
        """Of steps that the method has not come to yet."""

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
    """What a layer makes of the whole batch, of a portion's samples for each of its steps."""
    return torch.cat([forward(input_of_call(args, kwargs))[portion.samples]] * portion.steps)


def _check(node: fx.Node, layers: dict[fx.Node, nn.Module], network: nn.Module) -> None:
    """Raises NotServed where samples meet, chance plays, something but neurons has a state, or who knows."""
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
    """Those layers of the input alone whose results others read; none if others read the input itself."""
    (known,) = ({node} for node in graph.nodes if node.op == "placeholder")
    for node in graph.nodes:
        if node in layers and is_first_layer(layers[node]) and known.issuperset(node.all_input_nodes):
            known.add(node)
    last = [node for node in known if not known.issuperset(node.users)]
    alone = all(node in layers and known.isdisjoint(node.users) for node in last)
    return [layers[node] for node in last] if alone else []
