"""The reference backend: plain autograd, step by step, like the paper's own code."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sltt_bench.backends.shipped import SERVES
from sltt_bench.methods import Need
from sltt_bench.neuron_kinds import layer_of_neurons
from sltt_bench.neurons import LIFParameters, SpikingNeuron
from sltt_bench.unroll import Unroll

if TYPE_CHECKING:
    from sltt_bench.training.experiment import Experiment


class Reference:
    """Only the equations: the like-for-like reproduction, and the standard for the other backends."""

    name = "reference"
    serves: frozenset[Need] = SERVES["reference"]

    def unsupported(self, neuron: LIFParameters, precision: str, device: str) -> str | None:
        return None

    def neuron(self, parameters: LIFParameters) -> SpikingNeuron:
        return layer_of_neurons(parameters)

    def prepare(self, network: nn.Module, device: str) -> nn.Module:
        return network.to(device)

    def iteration(self, network: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()

    def accumulate_gradients(self, experiment: "Experiment", x: Tensor, labels: Tensor) -> Unroll:
        return experiment.accumulate_gradients(x, labels)

    def provenance(self) -> Mapping[str, str]:
        return {"neuron": "torch autograd", "torch": torch.__version__}
