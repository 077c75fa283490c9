"""The native backend: the same gradients with less memory and in less time.

    kernels (lif_torch, lif_triton)   the step and its derivative on tensors
    neuron                            a layer of neurons whose only state is u
    saved                             what the potentials determine is not stored for the backward pass
    once                              what is the same at all steps is computed once an iteration

`docs/native-backend.md` says what each idea saves.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import nn

from sltt_bench.backends.native import kernels
from sltt_bench.backends.native.neuron import NativeLIF
from sltt_bench.backends.native.once import OncePerIteration
from sltt_bench.backends.native.saved import SavedTensors, fills_with_zero
from sltt_bench.models.layers import SequenceDropout
from sltt_bench.neurons import LIFParameters, SpikingNeuron


class Native:
    """Neurons that keep one tensor, and an iteration that stores and computes little twice."""

    name = "native"

    def __init__(self, *, recompute: bool = False, channels_last: bool = True) -> None:
        """The options are those of a recipe's section `native`.

        `recompute`: convolutions of spikes are computed again in the backward pass, not stored.
        `channels_last`: the memory format of the network on a GPU.
        """
        self._channels_last = channels_last
        self._kernels = kernels.KernelsByDevice()
        self._saved = SavedTensors(recompute=recompute)
        self._once = OncePerIteration(first_layers=not recompute)

    def unsupported(self, neuron: LIFParameters, precision: str, device: str) -> str | None:
        return kernels.unsupported(neuron, device)

    def neuron(self, parameters: LIFParameters) -> SpikingNeuron:
        return NativeLIF(parameters, self._kernels, self._saved)

    def prepare(self, network: nn.Module, device: str) -> nn.Module:
        for module in network.modules():
            if isinstance(module, SequenceDropout):
                module.register_forward_hook(fills_with_zero)
        if self._channels_last and torch.device(device).type == "cuda":
            return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
        return network.to(device)

    @contextmanager
    def iteration(self, network: nn.Module) -> Iterator[None]:
        """Gradients that are summed over the steps reach the parameters when it ends."""
        with self._saved.active(), self._once.active(network):
            yield

    def provenance(self) -> Mapping[str, str]:
        """What has really run so far."""
        said = {
            "neuron": ", ".join(sorted(self._kernels.ran)) or "nothing has run",
            "computed again in the backward pass": ", ".join(sorted(self._saved.computed_again)) or "nothing",
            "computed once an iteration": ", ".join(sorted(self._once.computed_once)) or "nothing",
            "torch": torch.__version__,
        }
        try:
            return {**said, "triton": version("triton")}
        except PackageNotFoundError:
            return said
