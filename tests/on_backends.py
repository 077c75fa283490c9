"""Training iterations of small networks on any backend, shared by the tests of backends."""

import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from sltt_bench import backends, methods, models
from sltt_bench.backends import Backend
from sltt_bench.backends.native import Native
from sltt_bench.losses import step_loss
from sltt_bench.methods import Method
from sltt_bench.models.options import (
    CNNOptions,
    MLPOptions,
    ModelOptions,
    NFResNetOptions,
    PreActResNetOptions,
    VGGOptions,
)
from sltt_bench.neurons import LIFParameters, SpikingNeuron, reset_state
from sltt_bench.precision import Precision
from sltt_bench.training.experiment import Experiment, training_mode
from sltt_bench.unroll import Unroll

T = 4
CLASSES = 7

MODELS: dict[str, tuple[ModelOptions, tuple[int, int, int], int]] = {
    "cnn": (CNNOptions(channels=[6, 8], dropout=0.2), (3, 16, 16), 6),
    "mlp": (MLPOptions(hidden=[24, 16], dropout=0.2), (3, 8, 8), 16),
    "recurrent": (MLPOptions(hidden=[24, 16], recurrent=True, dropout=0.2), (3, 8, 8), 16),
    "preact-resnet18": (PreActResNetOptions(width=4, dropout=0.2), (3, 16, 16), 6),
    "vgg11": (VGGOptions(width=4, dropout=0.2), (3, 64, 64), 3),
    "nf-resnet34": (NFResNetOptions(name="nf-resnet34", width=4), (3, 64, 64), 3),
    "nf-resnet50": (NFResNetOptions(name="nf-resnet50", width=2), (3, 64, 64), 3),
}
"""Networks by name: (options, input shape, batch size)."""


@dataclass
class Trained:
    """The results of a few iterations on a backend."""

    network: nn.Module
    backend: Backend
    gradients: dict[str, Tensor]
    outputs: Tensor
    """Σ_t o[t] of each iteration."""
    spikes: list[Tensor]
    """The spikes of every layer at every step, in the order of computation."""
    buffers: dict[str, Tensor]


def build(backend: Backend, model: str, neuron: LIFParameters, dtype: torch.dtype | None = None) -> nn.Module:
    """Returns a small network, always with the same weights, large enough to make all layers fire."""
    options, shape, _ = MODELS[model]
    torch.manual_seed(0)
    network = models.build(options, neuron=lambda: backend.neuron(neuron), input_shape=shape, classes=CLASSES)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1 and parameter.any():  # a readout that begins at 0 would hand no gradient on
                parameter *= 1.5
            else:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return backend.prepare(network, "cpu").to(dtype)


def train(
    name: str | Backend,
    model: str,
    method: str | Method,
    neuron: LIFParameters | None = None,
    *,
    timesteps: int = T,
    iterations: int = 2,
    repeated_image: bool = True,
    accumulate: bool = False,
    precision: str = "fp32",
    dtype: torch.dtype | None = None,
    watched: bool = True,
    **options: Any,
) -> Trained:
    """Run iterations without an optimiser; returns gradients of the last (with `accumulate`: of all, summed).

    Dropout and the method draw the same on every backend. `watched`: spikes are recorded, so no operation is
    fused with the layers that emit them.
    """
    backend = backends.create(name, **options) if isinstance(name, str) else name
    network = build(backend, model, neuron or LIFParameters(), dtype)
    spikes: list[Tensor] = []
    for layer in network.modules():
        if watched and isinstance(layer, SpikingNeuron):
            layer.register_forward_hook(lambda _, __, out: spikes.append(out.detach().clone()))
    torch.manual_seed(5)
    generator = torch.Generator().manual_seed(7)
    outputs = []
    _, shape, batch = MODELS[model]
    for _ in range(iterations):
        if not accumulate:
            network.zero_grad()
        steps = 1 if repeated_image else timesteps
        inputs = [2 * torch.randn(batch, *shape, dtype=dtype) for _ in range(steps)]
        labels = torch.randint(CLASSES, (batch,))
        driver = methods.create(method, timesteps) if isinstance(method, str) else method
        sequence = inputs * (timesteps // steps)
        unrolled = backend.unrolled(network, sequence, driver) if isinstance(backend, Native) else network
        sharing = backend.sharing(driver) if isinstance(backend, Native) else nullcontext()
        with sharing, backend.iteration(network):
            unroll = Unroll(
                unrolled,
                sequence,
                partial(step_loss, labels=labels, alpha=0.05, mse_target="ones"),
                generator=generator,
                autocast=Precision(precision, "cpu").autocast,
            )
            driver.accumulate_gradients(unroll)
        outputs.append(unroll.summed_outputs)
    return Trained(
        network=network,
        backend=backend,
        gradients={n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None},
        outputs=torch.stack(outputs),
        spikes=spikes,
        buffers={name: buffer.clone() for name, buffer in network.named_buffers()},
    )


@cache
def train_reference(model: str, method: str, neuron: LIFParameters | None = None, **how: Any) -> Trained:
    """Returns `train` on the reference backend, computed once for all tests; do not modify it."""
    return train("reference", model, method, neuron, **how)


def gradient_error(a: Trained, b: Trained) -> float:
    """Returns the largest ‖a − b‖ / ‖b‖ over the parameters.

    The gradient of a bias before batch norm is 0 up to rounding noise. So ‖b‖ is at least a thousandth of the
    norm of the whole gradient.
    """
    assert a.gradients.keys() == b.gradients.keys()
    assert not any(gradient.requires_grad for gradient in a.gradients.values()), "a graph hangs on gradients"
    whole = torch.cat([gradient.flatten() for gradient in b.gradients.values()]).norm()
    errors = [
        (a.gradients[name] - gradient).norm() / torch.maximum(gradient.norm(), whole / 1000)
        for name, gradient in b.gradients.items()
    ]
    return float(max(errors))


def whole_gradient_error(a: Trained, b: Trained) -> float:
    """Returns ‖a − b‖ / ‖b‖ of all parameters' gradients as one vector."""
    assert a.gradients.keys() == b.gradients.keys()
    difference = torch.cat([(a.gradients[name] - b.gradients[name]).flatten() for name in b.gradients])
    return float(difference.norm() / torch.cat([g.flatten() for g in b.gradients.values()]).norm())


def train_own(
    kind: Callable[[Callable[[], nn.Module]], nn.Module], name: str, method: str, **options: Any
) -> tuple[dict[str, Tensor], str]:
    """Run three iterations of a user's own network; returns its results and a text on what ran in units.

    The results are gradients, outputs in training and evaluation, and statistics. `kind(neuron)` makes the
    network, for images [5, 2, 6, 6] and four classes, with a `neuron()` for each layer of neurons.
    """
    backend = backends.create(name, **{"graphs": "never", **options} if name == "native" else {})
    torch.manual_seed(0)
    random.seed(0)
    neuron = LIFParameters(tau=2.0, v_threshold=0.5)
    network = backend.prepare(kind(lambda: backend.neuron(neuron)), "cpu").double()
    precision = Precision("fp32", "cpu")
    experiment = Experiment(
        network=network,
        method=methods.create(method, 3),
        backend=backend,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        scaler=precision.make_scaler(),
        precision=precision,
        timesteps=3,
        temporal=False,
        loss=partial(step_loss, alpha=0.05, mse_target="ones"),
        window=None,
        average="losses",
        generator=torch.Generator().manual_seed(4),
    )
    draws, left = torch.Generator().manual_seed(2), {}
    for number in range(3):
        x = 2 * torch.rand(5, 2, 6, 6, generator=draws, dtype=torch.float64)
        unroll = experiment.training_iteration(x, torch.arange(5) % 4)
        left[f"outputs {number}"] = unroll.summed_outputs.clone()
        left |= {
            f"{name} {number}": parameter.grad.clone()
            for name, parameter in network.named_parameters()
            if parameter.grad is not None
        }
        with training_mode(network, False), torch.no_grad(), backend.iteration(network):
            unroll = experiment.unroll(x, torch.zeros(5, dtype=torch.long))
            for step in range(3):
                unroll.step(step)
        left[f"evaluation {number}"] = unroll.summed_outputs.clone()
        reset_state(network)
    left |= dict(network.named_buffers())
    return left, backend.provenance().get("units", "")
