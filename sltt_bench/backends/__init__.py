"""The backends by name. A backend implements the neurons and determines the speed of an iteration.

Every backend computes the same gradients. Compare algorithms on one
backend, and backends on one algorithm. Third parties add a backend with the entry-point
group `sltt_bench.backends`: the object is a factory without arguments.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Protocol

from sltt_bench import methods
from sltt_bench.common.errors import UserError, nearest
from sltt_bench.common.plugins import find_plugin, plugins

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sltt_bench.methods import Need
    from sltt_bench.models.options import ModelOptions
    from sltt_bench.neurons import LIFParameters, SpikingNeuron
    from sltt_bench.training.experiment import Experiment
    from sltt_bench.unroll import Unroll

BACKENDS: dict[str, str] = {
    "reference": "sltt_bench.backends.reference:Reference",
    "native": "sltt_bench.backends.native:Native",
    "spikingjelly": "sltt_bench.backends.spikingjelly:SpikingJelly",
}
"""Backend name → "module:factory"."""


class Backend(Protocol):
    """The interface of a backend to the engine."""

    name: str
    serves: frozenset["Need"]
    """Needs that it serves beyond `step`, `detach_state` and `backward`; by default only spikes."""

    def unsupported(self, neuron: "LIFParameters", precision: str, device: str) -> str | None:
        """Returns why this combination cannot be served, or None. Asked before a run; nothing falls back."""

    def neuron(self, parameters: "LIFParameters") -> "SpikingNeuron":
        """Create a layer of neurons of the kind that the parameters name."""

    def prepare(self, network: "nn.Module", device: str) -> "nn.Module":
        """Returns the network as this backend runs it, on its device, with the same parameters and names."""

    def iteration(self, network: "nn.Module") -> AbstractContextManager[None]:
        """Context around the T steps of one batch, in training (forward and backward) or in evaluation.

        At its end all gradients have reached the parameters, and nothing of the batch is kept.
        """

    def accumulate_gradients(self, experiment: "Experiment", x: "Tensor", labels: "Tensor") -> "Unroll":
        """Run one batch forward and backward and add its gradients to the parameters' `.grad`.

        `x` is [batch, C, H, W], or [batch, T, C, H, W] if `experiment.temporal`; `labels` is [batch].
        `experiment.accumulate_gradients(x, labels)` does this step by step within `iteration`; a backend
        may compute the same in another way. The sums of the unroll are valid until the next iteration.
        """

    def provenance(self) -> Mapping[str, str]:
        """Returns the kernels and versions that really ran, for provenance.json."""

    # A backend may also have `unmeasurable` and `preparations`; see the functions with these names.


def unserved(backend: Backend, method: str) -> str | None:
    """Returns why the backend cannot serve the method with that name, or None. Raises UnknownMethod."""
    return unserved_by(_served_by(backend), method)


def unserved_network(backend: Backend, model: "ModelOptions") -> str | None:
    """Returns why the backend cannot serve a network with these options, or None."""
    return unserved_network_by(_served_by(backend), model)


def unserved_by(serves: frozenset["Need"], method: str) -> str | None:
    """Returns why a backend that serves these needs cannot serve the method, or None. Raises UnknownMethod."""
    return _lacking(serves, f"method {method!r} needs", methods.promises(method).needs)


def unserved_network_by(serves: frozenset["Need"], model: "ModelOptions") -> str | None:
    """Returns why a backend that serves these needs cannot serve such a network, or None."""
    return _lacking(serves, f"model {model.name!r} with its normalisation has", model.needs)


def _served_by(backend: Backend) -> frozenset["Need"]:
    return getattr(backend, "serves", frozenset({"spikes"}))


def _lacking(serves: frozenset["Need"], whose: str, needs: frozenset["Need"]) -> str | None:
    missing = needs - serves
    what = " and ".join(methods.NEEDS[need] for need in sorted(missing))
    return f"{whose} {what}, which this backend does not offer; use --backend reference" if missing else None


def preparations(backend: Backend) -> int:
    """Returns how often the backend has paused to prepare later iterations: its attribute, or 0.

    Such pauses do not count as work of an epoch.
    """
    return int(getattr(backend, "preparations", 0))


def unmeasurable(backend: Backend) -> Mapping[str, str]:
    """Returns columns of epochs.csv that mean nothing under the backend → why (its attribute
    `unmeasurable`)."""
    columns: Mapping[str, str] = getattr(backend, "unmeasurable", {})
    return columns


class UnknownBackend(UserError, ValueError):
    """No registered backend has this name, or its package is not installed."""


def names() -> list[str]:
    """Returns every backend name, third-party ones included."""
    return [*BACKENDS, *(entry.name for entry in plugins("backends", BACKENDS))]


def create(name: str, **options: Any) -> Backend:
    """Create the backend `name` with its options. Raises UnknownBackend, PluginFailed; imports torch."""
    if name in BACKENDS:
        factory = resolve_name(BACKENDS[name])
    elif (factory := find_plugin("backends", name)) is None:
        raise UnknownBackend(f"unknown backend {name!r}{nearest(name, names())}; known: {', '.join(names())}")
    backend: Backend = factory(**options)
    return backend
