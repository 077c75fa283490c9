"""What half precision costs the gradient of each rule: almost all of it are spikes of neurons near their threshold."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from every_method import labels_left_out
from one_batch import batch, convolutional_network, flat, gradients, recurrent_network, run
from torch import Tensor, nn

from sltt_bench.neurons import LIFParameters
from sltt_bench.precision import Precision
from sltt_bench.surrogates import _Spike

T, SAMPLES = 6, 16
LOSS_SCALE = 1024.0
"""Of fp16, as a loss scaler would have it."""
RULES = [
    "bptt", "bptt-ckpt3", "bptt-d0.5", "bptt-l1", "tbptt-w3", "sltt", "sltt-k4", "sltt-k4-unbiased", "sltt-a4", "ottt",
    "ottt-o", "e-prop", "s-tllr", "pp-prop", "rate",
]  # fmt: skip
NETWORKS = {
    "convolutional": partial(convolutional_network, LIFParameters(tau=1.1)),
    "recurrent": partial(recurrent_network, LIFParameters(tau=2.0)),
}


def test_every_rule_that_trains_spiking_neurons_is_measured() -> None:
    assert labels_left_out(RULES) == ["conversion"]


@contextmanager
def spikes_kept(kept: list[Tensor]) -> Iterator[None]:
    """Context that appends the spikes of each layer and step to `kept`."""
    with spike_replaced(lambda spikes: kept.append(spikes) or spikes):
        yield


@contextmanager
def spikes_of(kept: list[Tensor], differ: list[float]) -> Iterator[None]:
    """Context in which neurons fire as in `kept`, whatever their potentials; notes the share that would differ."""
    ahead = iter(kept)

    def replace(spikes: Tensor) -> Tensor:
        then = next(ahead).to(spikes.dtype)
        differ.append(float((then != spikes).float().mean()))
        return then

    with spike_replaced(replace):
        yield


@contextmanager
def spike_replaced(function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    forward = _Spike.forward

    def replaced(ctx: Any, *args: Any) -> Tensor:
        return function(forward(ctx, *args))

    _Spike.forward = staticmethod(replaced)
    try:
        yield
    finally:
        _Spike.forward = staticmethod(forward)


def gradient(build: Callable[[], nn.Module], method: str, precision: str) -> Tensor:
    """The whole gradient in float64; `precision` "fp64" is that of weights and inputs too."""
    network, (inputs, labels) = build(), batch(T, SAMPLES)
    if precision == "fp64":
        network, inputs, precision = network.double(), [x.double() for x in inputs], "fp32"
    scale = LOSS_SCALE if precision == "fp16" else 1.0
    run(network, method, inputs, labels, precision=precision, loss_scale=scale)
    return flat(gradients(network)) / scale


class Errors(NamedTuple):
    """‖g − g₆₄‖ / ‖g₆₄‖ of a gradient in half precision."""

    in_all: float
    with_same_spikes: float
    """The same, where the neurons of the exact gradient fire as those in half precision did."""
    spikes_that_differ: float
    """The share of them."""


def errors(build: Callable[[], nn.Module], method: str, precision: str) -> Errors:
    spikes: list[Tensor] = []
    differ: list[float] = []
    with spikes_kept(spikes):
        half = gradient(build, method, precision)
    exact = gradient(build, method, "fp64")
    with spikes_of(spikes, differ):
        alike = gradient(build, method, "fp64")
    return Errors(
        *(float((half - other).norm() / other.norm()) for other in (exact, alike)), sum(differ) / len(differ)
    )


@pytest.mark.parametrize("method", RULES)
def test_with_the_same_spikes_every_rules_gradient_is_that_of_float64_to_rounding(method: str) -> None:
    """So no rule adds up in half precision what it keeps of its steps."""
    assert errors(NETWORKS["convolutional"], method, "bf16").with_same_spikes < 2**-8


@pytest.mark.parametrize("method", RULES)
def test_no_rule_adds_gradients_of_steps_in_the_format_of_a_cast_that_they_share(method: str) -> None:
    """Autocast keeps its casts of weights as long as a context lasts, so each step needs a context of its own."""
    without_cache = partial(torch.autocast, "cpu", dtype=torch.bfloat16, cache_enabled=False)
    as_it_is = gradient(NETWORKS["recurrent"], method, "bf16")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Precision, "autocast", lambda precision: without_cache())
        assert torch.equal(as_it_is, gradient(NETWORKS["recurrent"], method, "bf16"))


def rounding_of_one_context(build: Callable[[], nn.Module], method: str, precision: str) -> float:
    """What one context of autocast for all steps adds to the gradient's relative error."""
    separate = gradient(build, method, precision)
    with Precision(precision, "cpu").autocast():
        together = gradient(build, method, precision)
    return float((together - separate).norm() / separate.norm())


def test_one_context_for_all_steps_would_cost_bptt_digits_and_sltt_none() -> None:
    """SLTT's gradients of steps are added up in the parameters' own."""
    build = NETWORKS["convolutional"]
    assert 1e-3 < rounding_of_one_context(build, "bptt", "bf16") < 1e-2
    assert rounding_of_one_context(build, "sltt", "bf16") == 0


if __name__ == "__main__":
    for name, built in NETWORKS.items():
        for rule in RULES:
            for half in ("fp16", "bf16"):
                figures = *errors(built, rule, half), rounding_of_one_context(built, rule, half)
                print(f"{name:14}{rule:18}{half}", *(f"{100 * figure:9.4f} %" for figure in figures))
