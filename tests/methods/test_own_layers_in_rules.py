"""Rules that follow each layer from step to step, on networks that somebody has written: frozen, tied and shared layers,
recurrent ones, weights made of others, neurons of several sorts."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from one_batch import CLASSES, INPUT_SHAPE, batch, gradients, recurrent_network, run
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sltt_bench import methods
from sltt_bench.neuron_kinds import layer_of_neurons
from sltt_bench.neurons import LIF, LIFParameters, Stateful
from sltt_bench.surrogates import spike

TRACED = ("ottt", "s-tllr", "pp-prop", "e-prop")
FOLLOWING = (*TRACED, "rate")
STEPS = 3


class Network(nn.Module):
    """Two convolutions with neurons, and a readout; a step may call the second of them twice."""

    def __init__(self, *, shares: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        neuron = LIFParameters(tau=2.0, v_threshold=0.5)
        self.conv1, self.neuron1 = nn.Conv2d(2, 4, 3, padding=1), LIF(neuron)
        self.conv2, self.neuron2 = nn.Conv2d(4, 4, 3, padding=1), LIF(neuron)
        self.readout = nn.Linear(64, CLASSES)
        self.shares = shares

    def forward(self, x: Tensor) -> Tensor:
        x = self.neuron2(self.conv2(self.neuron1(self.conv1(x))))
        match self.shares:
            case "synapses":
                x = x + self.conv2(x)
            case "neurons":
                x = self.neuron2(x)
        output: Tensor = self.readout(x.flatten(1))
        return output


@pytest.mark.parametrize("frozen", ["conv1", "conv2", "readout"])
@pytest.mark.parametrize("rule", FOLLOWING)
def test_a_frozen_layer_changes_no_other_layers_gradient(rule: str, frozen: str) -> None:
    network, partly = Network(), Network()
    partly.get_submodule(frozen).requires_grad_(False)
    for one in (network, partly):
        run(one, rule, *batch(STEPS))
    assert all(parameter.grad is None for parameter in partly.get_submodule(frozen).parameters())
    expected = gradients(network)
    for name, parameter in partly.named_parameters():
        if not name.startswith(frozen):
            assert parameter.grad is not None, name
            torch.testing.assert_close(parameter.grad, expected[name])


@pytest.mark.parametrize("rule", FOLLOWING)
def test_with_all_layers_but_the_readout_frozen_the_readout_learns(rule: str) -> None:
    network, partly = Network(), Network()
    for name, parameter in partly.named_parameters():
        parameter.requires_grad_("readout" in name)
    for one in (network, partly):
        run(one, rule, *batch(STEPS))
    learned = partly.readout.weight.grad
    assert learned is not None
    torch.testing.assert_close(learned, gradients(network)["readout.weight"])


EVERY_RULE = [name for name in methods.examples() if name != "conversion"]
"""Conversion refuses layers that carry a state."""


@pytest.mark.parametrize("rule", EVERY_RULE)
def test_recurrent_weights_that_learn_alone_learn_as_among_others(rule: str) -> None:
    """Step 1 has no past, and so nothing that learns."""
    network, partly = (recurrent_network(LIFParameters(tau=2.0)) for _ in range(2))
    trained = {name for name, _ in partly.named_parameters() if "recurrent" in name}
    for name, parameter in partly.named_parameters():
        parameter.requires_grad_(name in trained)
    noted: dict[nn.Module, dict[str, Tensor]] = {network: {}, partly: {}}
    for one, sums in noted.items():
        run(one, rule, *batch(STEPS), update=partial(_add_to, sums, one))
        _add_to(sums, one)
    for name in trained:
        assert noted[network][name].abs().max() > 0
        torch.testing.assert_close(noted[partly][name], noted[network][name], msg=name)


def _add_to(sums: dict[str, Tensor], network: nn.Module) -> None:
    """Stands in for an optimiser that learns nothing."""
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            sums[name] = sums.get(name, torch.zeros_like(parameter)) + parameter.grad
            parameter.grad = None


@pytest.mark.parametrize("rule", TRACED)
def test_tied_weights_receive_the_sum_of_what_each_layer_would(rule: str) -> None:
    network, tied = Network(), Network()
    for one in (network, tied):
        torch.manual_seed(5)
        one.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        one.conv1.weight.data.normal_(std=0.3)
        one.conv2.weight.data.copy_(one.conv1.weight)
    tied.conv2.weight = tied.conv1.weight
    steps, labels = batch(STEPS)
    steps = [torch.cat([x, -x], 1) for x in steps]
    for one in (network, tied):
        run(one, rule, steps, labels)
    expected = gradients(network)
    together = expected["conv1.weight"] + expected["conv2.weight"]
    assert together.abs().max() > 0
    torch.testing.assert_close(gradients(tied)["conv1.weight"], together)


class Recurrent(Stateful):
    """Neurons that receive their own last spikes; at the first step zeros, or nothing."""

    carried = ("spikes",)

    def __init__(self, *, begins_with_zeros: bool) -> None:
        super().__init__()
        self.begins_with_zeros = begins_with_zeros
        self.forward_weights, self.recurrent = nn.Linear(32, 8), nn.Linear(8, 8, bias=False)
        self.neuron = LIF(LIFParameters(tau=2.0, v_threshold=0.5))
        self.spikes: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        current, last = self.forward_weights(x.flatten(1)), self.spikes
        if last is None and self.begins_with_zeros:
            last = torch.zeros_like(current)
        self.spikes = self.neuron(current if last is None else current + self.recurrent(last))
        return self.spikes


@pytest.mark.parametrize("rule", FOLLOWING)
def test_recurrent_weights_learn_alike_whether_they_read_zeros_or_nothing_at_first(rule: str) -> None:
    made = []
    for begins_with_zeros in (False, True):
        torch.manual_seed(0)
        network = nn.Sequential(Recurrent(begins_with_zeros=begins_with_zeros), nn.Linear(8, CLASSES))
        run(network, rule, *batch(STEPS))
        made.append(gradients(network))
    assert made[0]["0.recurrent.weight"].abs().max() > 0
    torch.testing.assert_close(made[1], made[0])


class OverPixels(Network):
    """The second convolution as a linear layer over the channels of each pixel, which reads them where they lie."""

    def __init__(self, *, packed: bool) -> None:
        super().__init__()
        self.conv2 = nn.Linear(4, 4)  # type: ignore[assignment]
        self.packed = packed

    def forward(self, x: Tensor) -> Tensor:
        x = self.neuron1(self.conv1(x)).permute(0, 2, 3, 1)
        if self.packed:
            x = x.contiguous()
        output: Tensor = self.readout(self.neuron2(self.conv2(x)).flatten(1))
        return output


@pytest.mark.parametrize("rule", FOLLOWING)
def test_a_linear_layer_learns_alike_however_its_input_lies_in_memory(rule: str) -> None:
    packed, permuted = OverPixels(packed=True), OverPixels(packed=False)
    for one in (packed, permuted):
        run(one, rule, *batch(STEPS))
    torch.testing.assert_close(gradients(permuted), gradients(packed))


@pytest.mark.parametrize("rule", TRACED)
def test_a_convolution_that_keeps_a_padded_copy_is_refused_by_name(rule: str) -> None:
    network = Network()
    network.conv2 = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
    with pytest.raises(NotImplementedError, match="a Conv2d keeps something else than its input"):
        run(network, rule, *batch(STEPS))


class Halved(nn.Module):
    """w / 2 of what is learned in its place."""

    def forward(self, w: Tensor) -> Tensor:
        return w / 2

    def right_inverse(self, w: Tensor) -> Tensor:
        return w * 2


@pytest.mark.parametrize("layer", ["conv2", "readout"])
@pytest.mark.parametrize("rule", FOLLOWING)
def test_a_weight_that_torch_makes_of_another_parameter_learns_by_the_rule(rule: str, layer: str) -> None:
    network, made = Network(), Network()
    parametrize.register_parametrization(made.get_submodule(layer), "weight", Halved())
    for one in (network, made):
        run(one, rule, *batch(STEPS))
    learned, expected = gradients(made), gradients(network)
    torch.testing.assert_close(
        2 * learned.pop(f"{layer}.parametrizations.weight.original"), expected.pop(f"{layer}.weight")
    )
    torch.testing.assert_close(learned, expected)


@pytest.mark.parametrize(
    ("rule", "shares", "layer"),
    [
        *((rule, "synapses", "Conv2d") for rule in TRACED),
        *((rule, "neurons", "LIF") for rule in ("s-tllr", "pp-prop", "rate")),
    ],
)
def test_a_layer_that_a_step_calls_twice_is_refused_by_name(rule: str, shares: str, layer: str) -> None:
    with pytest.raises(NotImplementedError, match=f"a {layer} is called more than once in a step"):
        run(Network(shares=shares), rule, *batch(STEPS))


@pytest.mark.parametrize("shares", ["synapses", "neurons"])
@pytest.mark.parametrize("rule", ["bptt", "sltt", "tbptt-w2"])
def test_other_rules_serve_layers_that_a_step_calls_twice(rule: str, shares: str) -> None:
    network = Network(shares=shares)
    run(network, rule, *batch(STEPS))
    assert all(gradient.isfinite().all() for gradient in gradients(network).values())


def with_neurons(*neurons: LIFParameters) -> Network:
    network = Network()
    network.neuron1, network.neuron2 = map(layer_of_neurons, neurons)
    return network


@pytest.mark.parametrize("rule", ["ottt", "ottt-o", "e-prop"])
def test_layers_that_leak_differently_are_refused_where_one_trace_serves_all(rule: str) -> None:
    lif = LIFParameters(tau=2.0, v_threshold=0.5)
    with pytest.raises(NotImplementedError, match="leak differently"):
        run(with_neurons(lif, replace(lif, tau=4.0)), rule, *batch(STEPS))
    with pytest.raises(NotImplementedError, match="kind lif, not of cuba-lif"):
        run(with_neurons(lif, replace(lif, kind="cuba-lif")), rule, *batch(STEPS))
    run(with_neurons(lif, replace(lif, v_threshold=0.7)), rule, *batch(STEPS))


def test_what_all_neurons_share_is_not_known_of_different_ones() -> None:
    lif = LIFParameters(kind="alif", tau=2.0, adaptation=0.1, tau_adaptation=5.0)
    with pytest.raises(NotImplementedError, match="layers have different neurons"):
        run(with_neurons(lif, replace(lif, adaptation=0.3)), "e-prop", *batch(STEPS))


class OwnNeurons(Stateful):
    """What spikes without being one of the recipe's layers of neurons."""

    carried = ("potential",)
    potential: Tensor | None = None

    def forward(self, current: Tensor) -> Tensor:
        membrane = current if self.potential is None else 0.5 * self.potential + current
        spikes = spike(membrane - 0.5, "triangle")
        self.potential = membrane - 0.5 * spikes
        return spikes


@pytest.mark.parametrize("rule", [*FOLLOWING, "sltt-a"])
def test_a_rule_that_follows_neurons_is_refused_where_there_are_none_of_the_recipes(rule: str) -> None:
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(math.prod(INPUT_SHAPE), 8), OwnNeurons(), nn.Linear(8, CLASSES)
    )
    run(network, "sltt", *batch(STEPS))
    with pytest.raises(NotImplementedError, match="no layer of the recipe's neurons"):
        run(network, rule, *batch(STEPS))


class TwoReadouts(nn.Module):
    """The first of them is called before or after the last neurons."""

    def __init__(self, *, early: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        neuron = LIFParameters(tau=2.0, v_threshold=0.5)
        self.linear1, self.neuron1 = nn.Linear(math.prod(INPUT_SHAPE), 8), LIF(neuron)
        self.linear2, self.neuron2 = nn.Linear(8, 8), LIF(neuron)
        self.readout1, self.readout2 = nn.Linear(8, CLASSES), nn.Linear(8, CLASSES)
        self.early = early

    def forward(self, x: Tensor) -> Tensor:
        first = self.neuron1(self.linear1(x.flatten(1)))
        early = self.readout1(first) if self.early else 0
        output: Tensor = self.readout2(self.neuron2(self.linear2(first)))
        return output + (early if self.early else self.readout1(first))


@pytest.mark.parametrize("rule", TRACED)
def test_a_readout_is_one_wherever_a_step_calls_it(rule: str) -> None:
    networks = TwoReadouts(early=False), TwoReadouts(early=True)
    for network in networks:
        run(network, rule, *batch(STEPS))
    late, early = map(gradients, networks)
    assert late["linear2.weight"].abs().max() > 0
    torch.testing.assert_close(early, late)
