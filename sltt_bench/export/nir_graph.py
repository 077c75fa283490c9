"""Converts a trained network to a NIR graph, for neuromorphic tools.

NIR (Pedersen et al. 2024, neuroir.org) defines neurons by differential equations. One Euler step of length 1
is one time step here:

- hard reset: `LIF` with τ, R = τ (the input is not scaled), v_leak = v_reset;
- soft reset, which no NIR neuron has: u[t] = λ u[t-1] + I[t] − λ V_th s[t-1] as a leaky integrator `LI`
  (τ, R = τ), a `Threshold`, and a `Scale` by −λ V_th from the spikes back to the integrator.

Batch normalisation in evaluation becomes part of the preceding convolution, or a 1×1 convolution. Operations
without a NIR node are refused by name. NIR fires where u > V_th, this tool where u ≥ V_th; this differs only
for potentials that equal the threshold exactly.
"""

from collections.abc import Callable
from typing import Any, TypeGuard

import nir
import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sltt_bench.export import ExportError
from sltt_bench.models.layers import SequenceDropout
from sltt_bench.models.normalisation import TimeBatchNorm
from sltt_bench.neurons import LIF, LIFParameters, OverTime, PerStep, Stateful, reset_state


def nir_graph(network: nn.Module, input_shape: tuple[int, ...]) -> Any:
    """Returns the nir.NIRGraph of a network [1, *input_shape] → [1, classes] that is called once a time step.

    Raises ExportError.
    """
    network.eval()
    traced = _traced(network, input_shape)
    builder = _Builder(input_shape, network)
    for node in traced.graph.nodes:
        builder.add(node)
    try:
        return nir.NIRGraph(nodes=builder.nodes, edges=builder.edges)
    except ValueError as error:  # its own check of shapes
        raise ExportError(f"NIR does not take the network's graph: {' '.join(str(error).split())}") from error


class _GraphTracer(fx.Tracer):
    """Does not trace into layers that carry state, differ from step to step or have parameters or buffers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        has_numbers = next(m.children(), None) is None and bool(m._parameters or m._buffers)
        return (
            has_numbers
            or isinstance(m, (Stateful, PerStep, OverTime))
            or super().is_leaf_module(m, module_qualified_name)
        )


def _traced(network: nn.Module, input_shape: tuple[int, ...]) -> fx.GraphModule:
    from torch.fx.passes.shape_prop import ShapeProp

    try:
        traced = fx.GraphModule(network, _GraphTracer().trace(network))
        reset_state(network)
        with torch.no_grad():
            ShapeProp(traced).propagate(torch.zeros(1, *input_shape))  # type: ignore[no-untyped-call]
    except Exception as error:
        raise ExportError(
            f"the network's step cannot be traced as a graph: {' '.join(str(error).split())}"
        ) from error
    _check_the_same(network, traced, input_shape)
    reset_state(network)
    return traced


def _check_the_same(network: nn.Module, traced: nn.Module, input_shape: tuple[int, ...]) -> None:
    """Raises ExportError if the trace has other outputs; it loses in-place additions and choices by value."""
    x = 4 * torch.rand(3, 1, *input_shape, generator=torch.Generator().manual_seed(0)) - 1
    outputs = []
    for module in (network, traced):
        reset_state(network)
        with torch.no_grad():
            outputs.append(torch.stack([module(step.clone()) for step in x]))
    if not torch.allclose(outputs[0], outputs[1], equal_nan=True):
        raise ExportError(
            "the network's step, traced as a graph, puts out something else: it adds to a tensor in place that is read "
            "again, say, or draws random numbers"
        )


class _Builder:
    """Builds NIR's nodes and edges from the nodes of a traced step, in their order."""

    def __init__(self, input_shape: tuple[int, ...], network: nn.Module) -> None:
        self._input_shape, self._modules = input_shape, dict(network.named_modules())
        self._called: set[nn.Module] = set()
        self._taken = {"input", "output"}
        self._names = {name: self._free(name) for name in self._modules}
        """Layer → the NIR node with the layer's output."""
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self._sources: dict[fx.Node, list[str]] = {}
        """Node of the trace → the NIR nodes whose outputs sum to it."""

    def add(self, node: fx.Node) -> None:
        """Add a node of the trace, after all nodes before it. Raises ExportError."""
        inputs = [source for argument in node.all_input_nodes for source in self._sources[argument]]
        if node.op == "placeholder":
            self.nodes["input"] = nir.Input({"input": np.array(self._input_shape)})
            self._sources[node] = ["input"]
        elif node.op == "output":
            (argument,) = node.all_input_nodes
            self.nodes["output"] = nir.Output({"output": np.array(_shape(argument))})
            self.edges += [(source, "output") for source in inputs]
        elif node.op == "call_function" and _name_of_function(node) in ("add", "iadd"):
            self._sources[node] = _summands(node, inputs)
        elif node.op == "call_module":
            self._add_module(node, str(node.target), self._modules[str(node.target)], inputs)
        elif node.op == "get_attr":
            owner, _, attribute = str(node.target).rpartition(".")
            kind = type(self._modules[owner]).__name__
            raise ExportError(f"NIR has no node for what {kind} does with {attribute} ({node.target})")
        else:
            raise ExportError(f"NIR has no node for {_name_of_function(node)} (at {node.name})")

    def _free(self, name: str) -> str:
        """Returns a name that no other node has, even for readers that replace dots by underscores."""
        while name.replace(".", "_") in self._taken:
            name += "_"
        self._taken.add(name.replace(".", "_"))
        return name

    def _add_module(self, node: fx.Node, name: str, module: nn.Module, inputs: list[str]) -> None:
        if module in self._called:
            raise ExportError(
                f"NIR's nodes run once a step, but {type(module).__name__} is called again ({name})"
            )
        self._called.add(module)
        own = self._names[name]
        if isinstance(module, (SequenceDropout, nn.Dropout, nn.Identity)):
            self._sources[node] = inputs
            return
        source = node.all_input_nodes[0]
        before = self._modules.get(str(source.target)) if source.op == "call_module" else None
        if _normalises_channels(module) and type(before) is nn.Conv2d and len(source.users) == 1:
            fused = fuse_conv_bn_eval(before, module)
            self.nodes[self._names[str(source.target)]] = _convolution(
                fused, _shape(source.all_input_nodes[0]), name
            )
            self._sources[node] = inputs
            return
        if type(module) is LIF:
            first = self._add_neuron(own, module.parameters_, _shape(node))
        else:
            convert = _LAYERS.get(type(module))
            if convert is None:
                raise ExportError(f"NIR has no node for {type(module).__name__} ({name})")
            first, self.nodes[own] = own, convert(module, _shape(source), name)
        self.edges += [(source, first) for source in inputs]
        self._sources[node] = [own]

    def _add_neuron(self, name: str, neuron: LIFParameters, shape: tuple[int, ...]) -> str:
        """Add a layer of neurons whose last node is `name`; returns the node that receives its input."""

        def each(value: float) -> Any:
            return np.full(shape, value, dtype=np.float32)

        tau, threshold = each(neuron.tau), each(neuron.v_threshold)
        if neuron.reset == "hard":
            rest = each(neuron.v_reset)
            self.nodes[name] = nir.LIF(tau=tau, r=tau, v_leak=rest, v_threshold=threshold, v_reset=rest)
            return name
        potential, reset = self._free(f"{name}_potential"), self._free(f"{name}_reset")
        self.nodes[potential] = nir.LI(tau=tau, r=tau, v_leak=each(0.0))
        self.nodes[name] = nir.Threshold(threshold=threshold)
        self.nodes[reset] = nir.Scale(scale=each(-neuron.decay * neuron.v_threshold))
        self.edges += [(potential, name), (name, reset), (reset, potential)]
        return potential


def _name_of_function(node: fx.Node) -> str:
    """Returns the name of the called function, without the address that some representations contain."""
    return str(getattr(node.target, "__name__", node.target))


def _summands(node: fx.Node, inputs: list[str]) -> list[str]:
    """Returns the sources of an addition's edges. Raises ExportError unless adding their values suffices."""
    constants = [argument for argument in node.args if not isinstance(argument, fx.Node)]
    if constants or node.kwargs or len(set(inputs)) < len(inputs) or len(node.all_input_nodes) < 2:
        raise ExportError(f"NIR's edges add different nodes, each once, and nothing else (at {node.name})")
    first, second = (_shape(argument) for argument in node.all_input_nodes)
    if first != second:
        raise ExportError(f"NIR's edges add equal shapes, not {first} and {second} (at {node.name})")
    return inputs


def _normalises_channels(module: nn.Module | None) -> TypeGuard[nn.BatchNorm2d | TimeBatchNorm]:
    """Whether the module, in evaluation, is batch norm of images by running statistics."""
    return isinstance(module, (nn.BatchNorm2d, TimeBatchNorm)) and module.running_mean is not None


def _shape(node: fx.Node) -> tuple[int, ...]:
    """Returns the shape of one sample."""
    return tuple(node.meta["tensor_meta"].shape[1:])


def _array(tensor: Tensor) -> Any:
    return tensor.detach().cpu().float().numpy()


def _convolution(layer: nn.Conv2d, shape: tuple[int, ...], name: str) -> Any:
    if layer.padding_mode != "zeros":
        raise ExportError(f"NIR's convolutions pad with zeros, not in mode {layer.padding_mode} ({name})")
    bias = torch.zeros(layer.out_channels) if layer.bias is None else layer.bias
    return nir.Conv2d(
        input_shape=shape[1:],
        weight=_array(_without_groups(layer)),
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=1,
        bias=_array(bias),
    )


def _without_groups(layer: nn.Conv2d) -> Tensor:
    """Returns the weight [outputs, inputs, height, width] with zeros between groups, which NIR lacks."""
    outputs, inputs = layer.out_channels // layer.groups, layer.in_channels // layer.groups
    weight = torch.zeros(layer.out_channels, layer.in_channels, *layer.weight.shape[2:])
    for group in range(layer.groups):
        rows, columns = (
            slice(group * outputs, (group + 1) * outputs),
            slice(group * inputs, (group + 1) * inputs),
        )
        weight[rows, columns] = layer.weight[rows].detach().cpu().float()
    return weight


def _linear(layer: nn.Linear, shape: tuple[int, ...], name: str) -> Any:
    if len(shape) != 1:
        raise ExportError(f"NIR's linear layers take vectors, not {shape} ({name})")
    if layer.bias is None:
        return nir.Linear(weight=_array(layer.weight))
    return nir.Affine(weight=_array(layer.weight), bias=_array(layer.bias))


def _normalisation(layer: nn.BatchNorm2d | TimeBatchNorm, shape: tuple[int, ...], name: str) -> Any:
    """Returns y = γ (x − μ)/√(σ² + ε) + β for each channel as a 1×1 convolution that mixes no channels.

    NIR has no groups, so its weight is a diagonal matrix.
    """
    if len(shape) != 3 or not _normalises_channels(layer):
        raise ExportError(f"NIR has a node for the batch norm of images by running statistics alone ({name})")
    plain = nn.Conv2d(shape[0], shape[0], 1, bias=False)
    nn.init.dirac_(plain.weight)
    return _convolution(fuse_conv_bn_eval(plain.eval(), layer), shape, name)


def _pooling(layer: nn.AvgPool2d, shape: tuple[int, ...], name: str) -> Any:
    if layer.ceil_mode or not layer.count_include_pad or layer.divisor_override:
        raise ExportError(f"NIR's average pool has no options but size, stride and padding ({name})")
    sizes = {key: np.array(_pair(getattr(layer, key))) for key in ("kernel_size", "stride", "padding")}
    return nir.AvgPool2d(**sizes)


def _adaptive_pooling(layer: nn.AdaptiveAvgPool2d, shape: tuple[int, ...], name: str) -> Any:
    _, height, width = shape
    asked: tuple[int | None, int | None] = _pair(layer.output_size)  # type: ignore[arg-type, assignment]
    rows, columns = asked[0] or height, asked[1] or width
    if height % rows or width % columns:
        fault = f"{height}×{width} is no multiple of {rows}×{columns}"
        raise ExportError(f"NIR has no adaptive pool, and {fault} ({name})")
    return _pooling(nn.AvgPool2d((height // rows, width // columns)), shape, name)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def _flatten(layer: nn.Flatten, shape: tuple[int, ...], name: str) -> Any:
    if (layer.start_dim, layer.end_dim) != (1, -1):
        raise ExportError(f"a sample is flattened as a whole or not at all ({name})")
    return nir.Flatten(start_dim=0, end_dim=-1, input_type={"input": np.array(shape)})


_LAYERS: dict[type[nn.Module], Callable[[Any, tuple[int, ...], str], Any]] = {
    nn.Conv2d: _convolution,
    nn.Linear: _linear,
    nn.BatchNorm2d: _normalisation,
    TimeBatchNorm: _normalisation,
    nn.AvgPool2d: _pooling,
    nn.AdaptiveAvgPool2d: _adaptive_pooling,
    nn.Flatten: _flatten,
}
