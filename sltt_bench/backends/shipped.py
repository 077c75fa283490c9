"""What the shipped backends can serve. It is known without torch, so that planning refuses what a cell would refuse."""

from typing import TYPE_CHECKING, Any, Literal, Protocol

from sltt_bench.methods import NEEDS, Need

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sltt_bench.models.options import ModelOptions

SERVES: "Mapping[str, frozenset[Need]]" = {
    "reference": frozenset(NEEDS),
    "native": frozenset({"state", "spikes"}),
    "spikingjelly": frozenset({"state", "synapses", "update", "spikes", "sequence", "timestep"}),
}
"""Backend → what it offers to methods and networks; native with `compile` offers nothing of it."""


class NeuronFields(Protocol):
    """The fields that are asked of a neuron: a recipe's, or that of the equations."""

    @property
    def kind(self) -> str: ...
    @property
    def tau(self) -> float: ...
    @property
    def surrogate_width(self) -> float: ...


def refusal(
    backend: str,
    method: str,
    model: "ModelOptions",
    neuron: NeuronFields,
    native: "Mapping[str, Any]",
    device: str,
) -> str | None:
    """Why the backend of that name cannot run such a cell, or None; None too for what only a cell can find out.

    `native`: the options of that backend; `device`: cpu or cuda:N, or auto where that is not known. Raises UnknownMethod.
    """
    from sltt_bench.backends import unserved_by, unserved_network_by

    if backend not in SERVES:
        return None
    compiled = backend == "native" and native["compile"]
    serves: frozenset[Need] = frozenset() if compiled else SERVES[backend]
    return (
        (native_conflict(**native, device=device) if backend == "native" else None)
        or unserved_neuron(backend, neuron)
        or unserved_by(serves, method)
        or unserved_network_by(serves, model)
    )


def unserved_neuron(backend: str, neuron: NeuronFields) -> str | None:
    """Why a shipped backend has no such neurons, or None."""
    if backend == "reference":
        return None
    if neuron.kind != "lif":
        return f"its neurons are of neuron.kind lif, not {neuron.kind}; use --backend reference"
    if backend == "native" and neuron.surrogate_width != 1:
        return f"its surrogates have neuron.surrogate_width 1, not {neuron.surrogate_width:g}; use --backend reference"
    if backend == "spikingjelly" and neuron.tau <= 1:
        return f"SpikingJelly's LIFNode needs tau > 1, but neuron.tau is {neuron.tau}"
    return None


def native_conflict(
    *,
    compile: bool,
    recompute: bool,
    graphs: Literal["auto", "always", "never"],
    fused_norm: Literal["auto", "always", "never"],
    device: str,
    **others: Any,
) -> str | None:
    """Which options of native exclude each other, or a CPU; None if none do."""
    if graphs == "always" and device.partition(":")[0] not in ("cuda", "auto"):
        return f"native.graphs=always needs a CUDA device, but the device is {device}"
    if compile and recompute:
        return "native.compile decides by itself what to compute again; switch native.recompute off"
    if compile and fused_norm == "always":
        return "native.compile makes the step from the equations; leave native.fused_norm out"
    return None
