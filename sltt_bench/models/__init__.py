"""The networks by name. A network is called once per time step: [batch, C, H, W] → [batch, classes].

An entry names the options (typed fields, free of torch) and the builder:
`build(options, neuron=factory, input_shape=(C, H, W), classes=n) -> nn.Module`. If the options are
`NormalisedOptions`, the builder also receives `normalisation=factory`. Third parties add networks with the
entry-point group `sltt_bench.models`; the object has `Options` and `build`.
"""

from collections.abc import Callable
from functools import partial
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from sltt_bench.common.errors import nearest
from sltt_bench.common.plugins import find_plugin, plugins
from sltt_bench.models import options as _options
from sltt_bench.models.options import ModelOptions, NormalisedOptions

if TYPE_CHECKING:
    from torch import nn

    from sltt_bench.neurons import NeuronFactory


MODELS: dict[str, tuple[type[ModelOptions], str]] = {
    "mlp": (_options.MLPOptions, "mlp:build"),
    "cnn": (_options.CNNOptions, "cnn:build"),
    "preact-resnet18": (_options.PreActResNetOptions, "preact_resnet:PreActResNet"),
    "vgg11": (_options.VGGOptions, "vgg:VGG"),
    "sew-resnet18": (_options.SEWResNetOptions, "sew_resnet:SEWResNet"),
    "sew-resnet34": (_options.SEWResNetOptions, "sew_resnet:SEWResNet"),
    "ms-resnet18": (_options.MSResNetOptions, "ms_resnet:MSResNet"),
    "ms-resnet34": (_options.MSResNetOptions, "ms_resnet:MSResNet"),
    "spikformer": (_options.SpikformerOptions, "spikformer:Spikformer"),
    "nf-resnet34": (_options.NFResNetOptions, "nf_resnet:NFResNet"),
    "nf-resnet50": (_options.NFResNetOptions, "nf_resnet:NFResNet"),
    "nf-resnet101": (_options.NFResNetOptions, "nf_resnet:NFResNet"),
}
"""Name → the network's options and its builder, "module:function or class" below `sltt_bench.models`. The
builder is imported only when a network is built, because it imports torch."""


class UnknownModel(ValueError):
    """No registered network has this name."""


def names() -> list[str]:
    """Returns every model name, third-party ones included."""
    return [*MODELS, *(entry.name for entry in plugins("models", MODELS))]


def options_type(name: str) -> type[ModelOptions]:
    """Returns the options type of the network `name`. Raises UnknownModel and PluginFailed."""
    if name in MODELS:
        return MODELS[name][0]
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
    """Build the network, initialised from torch's global generator. Raises UnknownModel.

    `timesteps` and `v_threshold` are for normalisations that depend on them.
    """
    builder: Callable[..., nn.Module]
    if options.name in MODELS:
        builder = resolve_name(f"sltt_bench.models.{MODELS[options.name][1]}")
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
