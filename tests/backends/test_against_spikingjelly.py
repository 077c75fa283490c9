"""Neurons and gradients against SpikingJelly's, with its parameters set to mean the same.

Its defaults differ: LIFNode and SLTTLIFNode scale their input by 1/τ and reset hard to 0, and
SLTTLIFNode detaches the reset.
"""

import pytest
import torch
from one_batch import INPUT_SHAPE, RESETS, batch, gradients, run
from torch import Tensor, nn

from sltt_bench import backends, models
from sltt_bench.models.options import CNNOptions
from sltt_bench.neurons import LIF, LIFParameters, SpikingNeuron

neuron_module = pytest.importorskip("spikingjelly.activation_based.neuron")
surrogate_module = pytest.importorskip("spikingjelly.activation_based.surrogate")

SURROGATES = {
    "triangle": lambda: surrogate_module.PiecewiseQuadratic(alpha=1.0),
    "rectangle": lambda: surrogate_module.Rect(alpha=1.0),
    "sigmoid": lambda: surrogate_module.Sigmoid(alpha=4.0),
    "arctan": lambda: surrogate_module.ATan(alpha=2.0),
}
"""With the parameters at which they equal ours."""

T = 5
WIDTH = 2.5
every_reset = pytest.mark.parametrize("reset", sorted(RESETS))
every_surrogate = pytest.mark.parametrize("surrogate", sorted(SURROGATES))


class Foreign(SpikingNeuron):
    """A SpikingJelly node as a layer that our methods can drive."""

    def __init__(self, kind: str, parameters: LIFParameters) -> None:
        super().__init__()
        self.node = getattr(neuron_module, kind)(
            tau=parameters.tau,
            decay_input=False,
            v_threshold=parameters.v_threshold,
            v_reset=parameters.v_reset if parameters.reset == "hard" else None,
            surrogate_function=SURROGATES[parameters.surrogate](),
            detach_reset=parameters.detach_reset,
            step_mode="s",
        )

    def forward(self, current: Tensor) -> Tensor:
        spikes: Tensor = self.node(current)
        return spikes

    def reset_state(self) -> None:
        self.node.reset()

    def detach_state(self) -> None:
        if isinstance(self.node.v, Tensor):
            self.node.v = self.node.v.detach()


class ForeignSLTT(Foreign):
    """SLTTLIFNode cuts the past by itself: nothing is done for it."""

    def detach_state(self) -> None:
        pass


def network(factory) -> nn.Module:
    """The same float64 weights whatever the neurons."""
    torch.manual_seed(0)
    options = CNNOptions(channels=[6, 8])
    return models.build(options, neuron=factory, input_shape=INPUT_SHAPE, classes=3).double()


def float64_batch() -> tuple[list[Tensor], Tensor]:
    inputs, labels = batch(T)
    return [x.double() for x in inputs], labels


def assert_same(own: nn.Module, theirs: nn.Module) -> None:
    actual, expected = gradients(own), gradients(theirs)
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-9, atol=1e-13)


@every_reset
@every_surrogate
def test_a_neuron_fires_as_lifnode_does(reset, surrogate):
    torch.manual_seed(0)
    neuron = LIFParameters(tau=1.7, v_threshold=0.8, surrogate=surrogate, **RESETS[reset])
    own, theirs = LIF(neuron), Foreign("LIFNode", neuron)
    fired = 0.0
    for current in torch.randn(20, 4, 50, dtype=torch.float64):
        spikes = own(current)
        assert torch.equal(spikes, theirs(current))
        torch.testing.assert_close(own.potential, theirs.node.v, rtol=1e-12, atol=1e-12)
        fired += spikes.mean().item() / 20
    assert 0.1 < fired < 0.9


@every_reset
@every_surrogate
@pytest.mark.parametrize("method", ["bptt", "sltt", "sltt-k2"])
def test_every_method_gives_the_same_gradient_with_lifnode(method, reset, surrogate):
    neuron = LIFParameters(tau=1.7, surrogate=surrogate, **RESETS[reset])
    own, theirs = network(lambda: LIF(neuron)), network(lambda: Foreign("LIFNode", neuron))
    run(own, method, *float64_batch())
    run(theirs, method, *float64_batch())
    assert_same(own, theirs)


@every_reset
@every_surrogate
def test_sltt_gives_the_gradient_that_slttlifnode_gives_by_itself(reset, surrogate):
    """With SLTTLIFNode even one backward pass over all steps is SLTT, as it cuts every state."""
    neuron = LIFParameters(tau=1.7, surrogate=surrogate, **RESETS[reset])
    own, theirs = network(lambda: LIF(neuron)), network(lambda: ForeignSLTT("SLTTLIFNode", neuron))
    run(own, "sltt", *float64_batch())
    for method in ("sltt", "bptt"):
        run(theirs, method, *float64_batch())
        assert_same(own, theirs)


@every_surrogate
def test_the_backends_surrogates_are_as_wide_as_the_recipe_says(surrogate):
    """Currents on a grid about the threshold: the gradient of a first step's spikes is the surrogate itself."""
    backend = backends.create("spikingjelly")
    neuron = LIFParameters(tau=2.0, v_threshold=0.5, surrogate=surrogate, surrogate_width=WIDTH)
    assert backend.unsupported(neuron, "fp32", "cpu") is None
    sides = []
    for layer in (backend.neuron(neuron), LIF(neuron)):
        current = torch.linspace(-3, 4, 71, dtype=torch.float64, requires_grad=True)
        layer(current).sum().backward()
        sides.append(current.grad)
    torch.testing.assert_close(*sides)
    assert sides[1].max() > 0
