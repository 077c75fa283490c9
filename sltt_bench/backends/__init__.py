"""The backends by name. A backend says what the neurons are made of and how fast an iteration runs.

Every backend computes the same gradients; an algorithm is compared with an algorithm on one
backend, a backend with a backend on one algorithm. Third parties add one with the entry-point
group `sltt_bench.backends`: the object is a factory without arguments.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Protocol

from sltt_bench import methods
from sltt_bench.errors import UserError, nearest
from sltt_bench.plugins import find_plugin, plugins

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sltt_bench.experiment import Experiment
    from sltt_bench.methods import Need
    from sltt_bench.models.options import ModelOptions
    from sltt_bench.neurons import LIFParameters, SpikingNeuron
    from sltt_bench.unroll import Unroll

BACKENDS: dict[str, str] = {
    "reference": "sltt_bench.backends.reference:Reference",
    "native": "sltt_bench.backends.native:Native",
    "spikingjelly": "sltt_bench.backends.spikingjelly:SpikingJelly",
}
"""Backend name → "module:factory"."""


class Backend(Protocol):
    """What the engine asks of a backend."""

    name: str
    serves: frozenset["Need"]
    """What methods and networks may need of it beyond `step`, `detach_state` and `backward`; spikes alone if absent."""

    def unsupported(self, neuron: "LIFParameters", precision: str, device: str) -> str | None:
        """Why this combination cannot be served, or None. Asked before a run; nothing falls back."""

    def neuron(self, parameters: "LIFParameters") -> "SpikingNeuron":
        """A layer of neurons of the kind that the parameters name."""

    def prepare(self, network: "nn.Module", device: str) -> "nn.Module":
        """The network as this backend runs it, already on its device (same parameters and names)."""

    def iteration(self, network: "nn.Module") -> AbstractContextManager[None]:
        """Entered around the T steps of one batch: of training, forward and backward, or of evaluation.

        When it ends, all gradients have reached the parameters, and nothing of the batch is kept.
        """

    def accumulate_gradients(self, experiment: "Experiment", x: "Tensor", labels: "Tensor") -> "Unroll":
        """Forward and backward pass of one batch: adds its gradients to the parameters' `.grad`.

        `x` is [batch, C, H, W], or [batch, T, C, H, W] where `experiment.temporal`; `labels` [batch].
        `experiment.accumulate_gradients(x, labels)` does it step by step within `iteration`; a backend
        may do the same in another way. The sums of the unroll hold until the next iteration.
        """

    def provenance(self) -> Mapping[str, str]:
        """The kernels and versions that really ran, for provenance.json."""

    # It may also have `unmeasurable`, see the function of that name.


def unserved(backend: Backend, method: str) -> str | None:
    """Why the backend cannot serve the method of that name, or None. Raises UnknownMethod."""
    return unserved_by(_served_by(backend), method)


def unserved_network(backend: Backend, model: "ModelOptions") -> str | None:
    """Why the backend cannot serve a network of those options, or None."""
    return unserved_network_by(_served_by(backend), model)


def unserved_by(serves: frozenset["Need"], method: str) -> str | None:
    """Why a backend that serves these needs cannot serve the method of that name, or None. Raises UnknownMethod."""
    return _lacking(serves, f"method {method!r} needs", methods.promises(method).needs)


def unserved_network_by(serves: frozenset["Need"], model: "ModelOptions") -> str | None:
    """Why a backend that serves these needs cannot serve a network of those options, or None."""
    return _lacking(serves, f"model {model.name!r} with its normalisation has", model.needs)


def _served_by(backend: Backend) -> frozenset["Need"]:
    return getattr(backend, "serves", frozenset({"spikes"}))


def _lacking(serves: frozenset["Need"], whose: str, needs: frozenset["Need"]) -> str | None:
    missing = needs - serves
    what = " and ".join(methods.NEEDS[need] for need in sorted(missing))
    return f"{whose} {what}, which this backend does not offer; use --backend reference" if missing else None


def preparations(backend: Backend) -> int:
    """How often the backend has stopped to prepare later iterations, which is none of an epoch's work: its attribute of
    that name, if any."""
    return int(getattr(backend, "preparations", 0))


def unmeasurable(backend: Backend) -> Mapping[str, str]:
    """Columns of epochs.csv that would mean nothing under the backend → why: its attribute of that name, if any."""
    columns: Mapping[str, str] = getattr(backend, "unmeasurable", {})
    return columns


class UnknownBackend(UserError, ValueError):
    """No registered backend has this name, or its package is not installed."""


def names() -> list[str]:
    """Every backend name, third-party ones included."""
    return [*BACKENDS, *(entry.name for entry in plugins("backends", BACKENDS))]


def create(name: str, **options: Any) -> Backend:
    """The backend called `name` with its options. Raises UnknownBackend, PluginFailed; loads torch."""
    if name in BACKENDS:
        factory = resolve_name(BACKENDS[name])
    elif (factory := find_plugin("backends", name)) is None:
        raise UnknownBackend(f"unknown backend {name!r}{nearest(name, names())}; known: {', '.join(names())}")
    backend: Backend = factory(**options)
    return backend
