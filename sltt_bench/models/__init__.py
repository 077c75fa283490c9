"""The networks by name. A network is called once per time step: [batch, C, H, W] → [batch, classes].

An entry names the options (typed fields, free of torch) and the builder:
`build(options, neuron=factory, input_shape=(C, H, W), classes=n) -> nn.Module`. Where the options are
`NormalisedOptions`, the builder receives `normalisation=factory` too. Third parties add one with the
entry-point group `sltt_bench.models`; the object has `Options` and `build`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from sltt_bench.errors import nearest
from sltt_bench.models import options as _options
from sltt_bench.models.options import ModelOptions, NormalisedOptions
from sltt_bench.plugins import find_plugin, plugins

if TYPE_CHECKING:
    from torch import nn

    from sltt_bench.neurons import NeuronFactory


@dataclass(frozen=True)
class ModelEntry:
    """Where a network's options and builder are."""

    options: type[ModelOptions]
    builder: str
    """ "module:function or class"; loaded only when a network is built, since it loads torch."""


MODELS: dict[str, ModelEntry] = {
    "mlp": ModelEntry(_options.MLPOptions, "sltt_bench.models.mlp:build"),
    "cnn": ModelEntry(_options.CNNOptions, "sltt_bench.models.cnn:build"),
    "preact-resnet18": ModelEntry(
        _options.PreActResNetOptions, "sltt_bench.models.preact_resnet:PreActResNet"
    ),
    "vgg11": ModelEntry(_options.VGGOptions, "sltt_bench.models.vgg:VGG"),
    "sew-resnet18": ModelEntry(_options.SEWResNetOptions, "sltt_bench.models.sew_resnet:SEWResNet"),
    "sew-resnet34": ModelEntry(_options.SEWResNetOptions, "sltt_bench.models.sew_resnet:SEWResNet"),
    "ms-resnet18": ModelEntry(_options.MSResNetOptions, "sltt_bench.models.ms_resnet:MSResNet"),
    "ms-resnet34": ModelEntry(_options.MSResNetOptions, "sltt_bench.models.ms_resnet:MSResNet"),
    "spikformer": ModelEntry(_options.SpikformerOptions, "sltt_bench.models.spikformer:Spikformer"),
    "nf-resnet34": ModelEntry(_options.NFResNetOptions, "sltt_bench.models.nf_resnet:NFResNet"),
    "nf-resnet50": ModelEntry(_options.NFResNetOptions, "sltt_bench.models.nf_resnet:NFResNet"),
    "nf-resnet101": ModelEntry(_options.NFResNetOptions, "sltt_bench.models.nf_resnet:NFResNet"),
}


class UnknownModel(ValueError):
    """No registered network has this name."""


def names() -> list[str]:
    """Every model name, third-party ones included."""
    return [*MODELS, *(entry.name for entry in plugins("models", MODELS))]


def options_type(name: str) -> type[ModelOptions]:
    """The options of the network called `name`. Raises UnknownModel and PluginFailed."""
    if name in MODELS:
        return MODELS[name].options
    options: type[ModelOptions] = _third_party(name).Options
    return options


def build(
    options: ModelOptions,
    *,
    neuron: "NeuronFactory",
    input_shape: tuple[int, ...],
    classes: int,
    timesteps: int | None = None,
    v_threshold: float = 1.0,
) -> "nn.Module":
    """The network, freshly initialised from torch's global generator. Raises UnknownModel.

    `timesteps` and `v_threshold` are for normalisations that depend on them.
    """
    builder: Callable[..., nn.Module]
    if options.name in MODELS:
        builder = resolve_name(MODELS[options.name].builder)
    else:
        builder = _third_party(options.name).build
    if isinstance(options, NormalisedOptions):
        from sltt_bench.models.normalisation import Normalisation

        builder = partial(builder, normalisation=Normalisation(options.normalisation, timesteps, v_threshold))
    return builder(options, neuron=neuron, input_shape=input_shape, classes=classes)


def _third_party(name: str) -> Any:
    if (model := find_plugin("models", name, must_have=("Options", "build"))) is not None:
        return model
    raise UnknownModel(f"unknown model {name!r}{nearest(name, names())}; known: {', '.join(names())}")
