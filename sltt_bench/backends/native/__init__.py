"""The native backend: the same gradients with less memory and in less time.

    kernels (lif_torch, lif_triton)   the step and its derivative on tensors
    neuron                            a layer of neurons whose only state is u
    saved                             what the potentials determine is not stored for the backward pass
    once                              what is the same at all steps is computed once an iteration
    pooling                           average pooling keeps shapes
    graphs                            whole iterations replayed as CUDA graphs

`docs/native-backend.md` says what each idea saves.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import nn

from sltt_bench.backends.native import kernels
from sltt_bench.backends.native.graphs import GraphedIterations
from sltt_bench.backends.native.loop_invariants import OncePerIteration
from sltt_bench.backends.native.neuron import NativeLIF
from sltt_bench.backends.native.pooling import make_lean
from sltt_bench.backends.native.saved_tensor_hooks import SavedTensors, fills_with_zero
from sltt_bench.methods import Need
from sltt_bench.models.layers import SequenceDropout
from sltt_bench.neurons import LIF, LIFParameters, SpikingNeuron


class Native:
    """Neurons that keep one tensor, and an iteration that stores and computes little twice."""

    name = "native"
    serves: frozenset[Need] = frozenset()

    def __init__(
        self,
        *,
        recompute: bool = False,
        channels_last: bool = True,
        compile: bool = False,
        cuda_graph: bool = False,
    ) -> None:
        """The options are those of a recipe's section `native`.

        `recompute`: convolutions of spikes are computed again in the backward pass, not stored.
        `channels_last`: the memory format of the network on a GPU.
        `compile`: torch.compile makes the step from the equations, in place of the kernels here; what
        it stores for the backward pass is its own choice.
        `cuda_graph`: iterations are replayed as CUDA graphs.
        """
        self._recompute = recompute
        self._channels_last = channels_last
        self._compile = compile
        self._kernels = kernels.KernelsByDevice()
        self._saved = SavedTensors(recompute=recompute)
        self._once = OncePerIteration(first_layers=not recompute)
        self.graphs = GraphedIterations() if cuda_graph else None
        """What runs the iterations, if they are to be replayed."""

    def unsupported(self, neuron: LIFParameters, precision: str, device: str) -> str | None:
        if self.graphs is not None and torch.device(device).type != "cuda":
            return f"native.cuda_graph needs a CUDA device, but the device is {device}"
        if self._compile and self._recompute:
            return "native.compile decides by itself what to compute again; switch native.recompute off"
        return kernels.unsupported(neuron, device)

    def neuron(self, parameters: LIFParameters) -> SpikingNeuron:
        if self._compile:
            return LIF(parameters)
        return NativeLIF(parameters, self._kernels, self._saved)

    def prepare(self, network: nn.Module, device: str) -> nn.Module:
        for module in network.modules():
            if isinstance(module, SequenceDropout):
                module.register_forward_hook(fills_with_zero)
        if self._channels_last and torch.device(device).type == "cuda":
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self._compile:
            network.compile(dynamic=False)
        else:
            make_lean(network)
        return network.to(device)

    @contextmanager
    def iteration(self, network: nn.Module) -> Iterator[None]:
        """Gradients that are summed over the steps reach the parameters when it ends."""
        if self._compile:
            yield
            return
        with self._saved.active(), self._once.active(network):
            yield

    def provenance(self) -> Mapping[str, str]:
        """What has really run so far."""
        said = {
            "neuron": "torch.compile of the equations" if self._compile else _list(self._kernels.ran),
            "computed again in the backward pass": _list(self._saved.computed_again),
            "computed once an iteration": _list(self._once.computed_once),
            "torch": torch.__version__,
        }
        if self.graphs is not None:
            said["CUDA graphs"] = (
                f"{self.graphs.replayed} iterations replayed, {self.graphs.usual} run as usual "
                "(warm-up, and batches of another shape)"
            )
        try:
            return {**said, "triton": version("triton")}
        except PackageNotFoundError:
            return said


def _list(things: set[str]) -> str:
    return ", ".join(sorted(things)) or "nothing"
