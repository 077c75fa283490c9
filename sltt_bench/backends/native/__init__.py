"""The native backend: the same gradients with less memory and in less time.

    lif_torch, lif_triton   the step and its derivative on tensors
    neuron                  a layer of neurons: u is its only state
    saved                   what the potentials determine is not stored for the backward pass
    once                    what is the same at all steps is computed once an iteration

`docs/native-backend.md` tells what each idea saves.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn

from sltt_bench.backends.native import lif_torch
from sltt_bench.backends.native.neuron import Kernels, NativeLIF
from sltt_bench.backends.native.once import OncePerIteration
from sltt_bench.backends.native.saved import SavedTensors, fills_with_zero
from sltt_bench.models.layers import SequenceDropout
from sltt_bench.neurons import LIFParameters, SpikingNeuron
from sltt_bench.surrogates import SURROGATES


class Native:
    """Neurons that keep one tensor, and an iteration that stores and computes nothing twice."""

    name = "native"

    def __init__(
        self,
        *,
        recompute: bool = False,
        channels_last: bool = True,
        compile: bool = False,
        cuda_graph: bool = False,
    ) -> None:
        """The options are the recipe's section `native`.

        `recompute`: convolutions whose input is spikes are computed again in the backward pass.
        `channels_last`: memory format of the network on a GPU.
        """
        self._channels_last = channels_last
        self._saved = SavedTensors(recompute=recompute)
        self._once = OncePerIteration(first_layers=not recompute)

    def unsupported(self, neuron: LIFParameters, precision: str, device: str) -> str | None:
        return None

    def neuron(self, parameters: LIFParameters) -> SpikingNeuron:
        return NativeLIF(parameters, lif_torch.TorchKernels(), self._saved)

    def prepare(self, network: nn.Module, device: str) -> nn.Module:
        for module in network.modules():
            if isinstance(module, SequenceDropout):
                module.register_forward_hook(fills_with_zero)
        return network.to(device)

    @contextmanager
    def iteration(self, network: nn.Module) -> Iterator[None]:
        with self._saved.active(), self._once.active(network):
            yield

    def provenance(self) -> Mapping[str, str]:
        return {}
