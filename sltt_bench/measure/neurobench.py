"""What a network costs at inference, as NeuroBench counts it, from the forward passes over a test set.

The definitions are those of the package `neurobench` (Yik et al. 2023, arXiv 2304.04640), to the digit:

- footprint: bytes of parameters and buffers;
- connection sparsity: share of weights of linear and convolutional layers that are exactly 0;
- activation sparsity: share of the spiking neurons' outputs that are 0, over all steps and samples;
- synaptic operations of linear and convolutional layers for one sample and all T steps, biases left out. Dense: all of
  them, a convolution's border counted without its padding. Effective: those where input and weight are not 0;
  accumulates (ACs) where all of a layer's input in a step of a batch is −1, 0 or 1, else multiply-accumulates (MACs).
  Pooled or scaled spikes are no spikes by this rule. Of sums of spikes and of counts of events it depends on the batch:
  one sample with a 2 in it makes MACs of all.

Of standardised weights those count that the input meets; the package runs such a layer on ones, which are standardised
to 0, and counts nothing or less. Products of activations (attention) are no synaptic operations, and are in no figure here.

The energy is an estimate from these counts alone: 4.6 pJ for a MAC and 0.9 pJ for an AC in 45 nm at 32 bits (Horowitz,
ISSCC 2014: multiplication 3.7 pJ, addition 0.9 pJ). It leaves out memory, leakage and control, and is no measurement.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sltt_bench.neurons import SpikingNeuron, input_of_call
from sltt_bench.precision import ieee_float32

MAC_PJ, AC_PJ = 4.6, 0.9
SYNAPTIC = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONVOLUTIONS = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}


class InferenceCosts:
    """Counts the forward passes of a network while it is entered as a context."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._handles: list[Any] = []
        self._dense_of_one: dict[tuple[nn.Module, tuple[int, ...]], int] = {}
        self._dense = 0
        device = next(network.parameters()).device
        self._effective = torch.zeros(2, dtype=torch.float64, device=device)
        """MACs and ACs, summed over samples; on the device, so that nothing waits for it."""
        self._silent = torch.zeros((), dtype=torch.float64, device=device)
        self._activations = 0

    def __enter__(self) -> "InferenceCosts":
        for module in self._network.modules():
            if isinstance(module, SYNAPTIC):
                self._handles.append(module.register_forward_pre_hook(self._count_synapses, with_kwargs=True))
            elif isinstance(module, SpikingNeuron):
                self._handles.append(module.register_forward_hook(self._count_activations))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def totals(self) -> Tensor:
        """What was counted so far [dense, MACs, ACs, zero activations, activations], float64, to add up over processes."""
        counts = self._effective.new_tensor([self._dense, self._activations])
        return torch.cat([counts[:1], self._effective, self._silent[None], counts[1:]])

    def figures(self, totals: Tensor, samples: int) -> dict[str, float]:
        """The metrics under NeuroBench's names in lower case, operations for one sample, energy in pJ."""
        dense, macs, acs, silent, activations = totals.tolist()
        weights = [_weight_of(module) for module in self._network.modules() if isinstance(module, SYNAPTIC)]
        zeros = sum(int((weight == 0).sum()) for weight in weights)
        tensors = [*self._network.parameters(), *self._network.buffers()]
        return {
            "footprint_bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
            "connection_sparsity": zeros / sum(weight.numel() for weight in weights),
            "activation_sparsity": silent / activations,
            "dense_synops": dense / samples,
            "effective_macs": macs / samples,
            "effective_acs": acs / samples,
            "estimated_energy_45nm_pj": (MAC_PJ * macs + AC_PJ * acs) / samples,
        }

    @torch.no_grad()
    def _count_synapses(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = input_of_call(args, kwargs).detach()
        # Counts are whole numbers, beyond those of half precision and of TF32.
        with torch.autocast(x.device.type, enabled=False), ieee_float32():
            active = (x != 0).float()
            spiking = ((x == 0) | (x.abs() == 1)).all()
            effective = _connections_of(layer, active, _weight_of(layer) != 0)
            self._effective += torch.stack(
                [torch.where(spiking, 0, effective), torch.where(spiking, effective, 0)]
            )
            key = (layer, tuple(x.shape[1:]))
            if key not in self._dense_of_one:
                everything = torch.ones_like(layer.weight, dtype=torch.bool)  # type: ignore[arg-type]
                self._dense_of_one[key] = int(_connections_of(layer, torch.ones_like(active[:1]), everything))
            self._dense += self._dense_of_one[key] * len(x)

    @torch.no_grad()
    def _count_activations(self, layer: nn.Module, inputs: Any, spikes: Tensor) -> None:
        self._silent += (spikes == 0).sum(dtype=torch.float64)
        self._activations += spikes.numel()


def _weight_of(layer: nn.Module) -> Tensor:
    """What the layer's input is multiplied by, which a layer may make of its parameter at every call."""
    weight: Tensor = layer.standardised_weight() if hasattr(layer, "standardised_weight") else layer.weight  # type: ignore[operator, assignment]
    return weight


def _connections_of(layer: nn.Module, active: Tensor, present: Tensor) -> Tensor:
    """How many pairs of an active input and a weight that is present a forward pass has, a scalar in float64.

    All that reach one group of output channels are counted with one filter, the sum of the group's.
    """
    if isinstance(layer, nn.Linear):
        return (active @ present.sum(0).float()).sum(dtype=torch.float64)
    assert isinstance(layer, SYNAPTIC[1:])
    groups = layer.groups
    filters = present.view(groups, -1, *present.shape[1:]).sum(1).float()
    convolution = next(function for kind, function in _CONVOLUTIONS.items() if isinstance(layer, kind))
    sums: Tensor = convolution(active, filters, None, layer.stride, layer.padding, layer.dilation, groups)  # type: ignore[operator]
    return sums.sum(dtype=torch.float64)
