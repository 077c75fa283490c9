"""The SpikingJelly backend: the same recipes and methods on SpikingJelly's neurons.

Each layer is a `LIFNode` in single-step mode, configured as the paper's neuron (no 1/τ on the input, the
recipe's reset and surrogate). Under SLTT the method detaches its potential before each step, as
SpikingJelly's own `SLTTLIFNode` does internally, so one kind of node serves every method.
On CUDA, SpikingJelly itself chooses its fastest installed kernel (CUDA, Triton, else plain torch).
"""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from sltt_bench.backends import UnknownBackend
from sltt_bench.backends.reference import Reference
from sltt_bench.backends.shipped import SERVES, unserved_neuron
from sltt_bench.common.extras import load_extra
from sltt_bench.methods import Need
from sltt_bench.neurons import LIFParameters, SpikingNeuron

SURROGATES: dict[str, tuple[str, float]] = {
    "triangle": ("PiecewiseQuadratic", 1.0),
    "rectangle": ("Rect", 1.0),
    "sigmoid": ("Sigmoid", 4.0),
    "arctan": ("ATan", 2.0),
}
"""Our surrogate → SpikingJelly's class and its equivalent alpha at width 1; at width w it is alpha ÷ w."""


class SpikingJellyLIF(SpikingNeuron):
    """A layer of SpikingJelly's neurons: maps currents of any shape to spikes of that shape."""

    carried = ("potential",)

    def __init__(self, node: Any, parameters: LIFParameters) -> None:
        """`node` is a SpikingJelly neuron in single-step mode, with the project's `parameters`."""
        super().__init__()
        self.node = node
        self.parameters_ = parameters

    def forward(self, current: Tensor) -> Tensor:
        spikes: Tensor = self.node(current)
        return spikes

    @property
    def potential(self) -> Tensor | None:
        """v[t], the potential after the reset; None before the first step."""
        return self.node.v if isinstance(self.node.v, Tensor) else None

    @potential.setter
    def potential(self, value: Tensor | None) -> None:
        if value is None:
            self.node.reset()
        else:
            self.node.v = value


class SpikingJelly(Reference):
    """SpikingJelly's neurons; everything else is as in the reference."""

    name = "spikingjelly"
    serves: frozenset[Need] = SERVES["spikingjelly"]

    def __init__(self) -> None:
        """Raises UnknownBackend if SpikingJelly is not installed."""
        self._neuron, self._surrogate = (
            load_extra(
                f"spikingjelly.activation_based.{part}",
                "spikingjelly",
                "backend 'spikingjelly'",
                UnknownBackend,
            )
            for part in ("neuron", "surrogate")
        )
        self._device = torch.device("cpu")

    def unsupported(self, neuron: LIFParameters, precision: str, device: str) -> str | None:
        if (reason := unserved_neuron(self.name, neuron)) is not None:
            return reason
        if neuron.surrogate not in SURROGATES:
            return (
                f"no surrogate of SpikingJelly is known to equal {neuron.surrogate!r}; "
                f"those that do: {', '.join(SURROGATES)}"
            )
        return None

    def neuron(self, parameters: LIFParameters) -> SpikingNeuron:
        return SpikingJellyLIF(self.node(self._neuron.LIFNode, parameters), parameters)

    def node(self, kind: Any, parameters: LIFParameters) -> Any:
        """Create SpikingJelly's neuron of a kind (`LIFNode`, `SLTTLIFNode`) with the project's parameters."""
        surrogate, alpha = SURROGATES[parameters.surrogate]
        return kind(
            tau=float(parameters.tau),
            decay_input=False,
            v_threshold=float(parameters.v_threshold),
            v_reset=float(parameters.v_reset) if parameters.reset == "hard" else None,
            surrogate_function=getattr(self._surrogate, surrogate)(alpha=alpha / parameters.surrogate_width),
            detach_reset=parameters.detach_reset,
            step_mode="s",
        )

    def prepare(self, network: nn.Module, device: str) -> nn.Module:
        self._device = torch.device(device)
        return super().prepare(network, device)

    def provenance(self) -> Mapping[str, str]:
        return {
            "neuron": f"spikingjelly LIFNode, step_mode='s', kernel: {self._kernel()}",
            "spikingjelly": version("spikingjelly"),
            "torch": torch.__version__,
        }

    def _kernel(self) -> str:
        """Returns the implementation SpikingJelly has chosen for float32; other dtypes fall back to torch."""
        from spikingjelly.activation_based import functional

        if not hasattr(functional, "neuron_implementation"):
            return "torch"  # before version 2, the node's default
        return str(functional.neuron_implementation("lif", self._device)["implementation"])
