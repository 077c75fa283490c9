"""NF-ResNet's substitutes for normalisation: standardised weights, scaled spikes, expected variance."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sltt_bench import models
from sltt_bench.models.nf_resnet import ALPHA, GAMMA, NFResNet, ScaledWSConv2d, expected_variances
from sltt_bench.models.options import NFResNetOptions
from sltt_bench.neurons import LIF, LIFParameters, reset_state

BLOCKS_34 = (3, 4, 6, 3)


@settings(max_examples=30, deadline=None)
@given(
    channels=st.integers(1, 5),
    filters=st.integers(1, 4),
    size=st.sampled_from([1, 3, 7]),
    seed=st.integers(0, 99),
)
def test_the_standardised_weight_equals_its_formula_in_float64(channels, filters, size, seed):
    if channels * size * size < 2:
        return  # one number has no variance
    torch.manual_seed(seed)
    layer = ScaledWSConv2d(channels, filters, size).double()
    with torch.no_grad():
        layer.gain.normal_()
        layer.weight.mul_(3).add_(0.5)
    weight, gain = layer.weight.detach().numpy(), layer.gain.detach().numpy()
    expected = np.empty_like(weight)
    for out in range(filters):
        values = weight[out].ravel()
        n = len(values)
        mean = sum(values) / n
        variance = sum((value - mean) ** 2 for value in values) / (n - 1)
        expected[out] = gain[out] * (weight[out] - mean) / math.sqrt(variance * n + 1e-4)
    computed = layer.standardised_weight().detach().numpy()
    np.testing.assert_allclose(computed, expected, rtol=1e-9, atol=1e-12)


def test_a_standardised_filter_has_no_mean_and_unit_norm():
    """The squared norm is (n − 1)/n, as the variance is the unbiased one."""
    layer = ScaledWSConv2d(64, 32, 3).double()
    weight = layer.standardised_weight().flatten(1)
    n = 64 * 9
    torch.testing.assert_close(weight.sum(1), torch.zeros(32).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(
        weight.square().sum(1), torch.full((32,), (n - 1) / n).double(), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
def test_the_standardised_convolution_is_a_convolution_with_that_weight(size, stride):
    layer = ScaledWSConv2d(3, 4, size, stride).double()
    nn.init.normal_(layer.bias)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    windows = nn.functional.unfold(x, size, padding=size // 2, stride=stride)
    product = layer.standardised_weight().flatten(1) @ windows + layer.bias.unsqueeze(1)
    expected = product.unflatten(2, (8 // stride, 8 // stride))
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-12)


def test_the_standardised_weight_is_blind_to_shift_and_scale_and_so_is_its_gradient():
    layer = ScaledWSConv2d(3, 2, 3).double()
    before = layer.standardised_weight().detach()
    with torch.no_grad():
        layer.weight.mul_(100).add_(7)
    torch.testing.assert_close(layer.standardised_weight(), before, rtol=1e-3, atol=1e-4)  # but for eps
    (layer.standardised_weight() * torch.randn(2, 3, 3, 3)).sum().backward()
    assert layer.weight.grad.sum().abs() < 1e-10


def test_gamma_brings_the_variance_of_spikes_back_to_one():
    """A neuron that receives N(0, 1) fires with p = P(u ≥ 1); spikes have the variance p (1 − p)."""
    p = 1 - NormalDist().cdf(1.0)
    assert pytest.approx(1 / math.sqrt(p * (1 - p)), abs=0.005) == GAMMA
    torch.manual_seed(0)
    spikes = LIF(LIFParameters())(torch.randn(1_000_000))
    assert (GAMMA * spikes).var().item() == pytest.approx(1, abs=0.01)


def test_the_expected_variance_grows_by_alpha_squared_and_restarts_at_a_transition():
    assert expected_variances(BLOCKS_34) == [
        pytest.approx([1, 1.04, 1.08]),
        pytest.approx([1.12, 1.04, 1.08, 1.12]),
        pytest.approx([1.16, 1.04, 1.08, 1.12, 1.16, 1.20]),
        pytest.approx([1.24, 1.04, 1.08]),
    ]
    assert pytest.approx(0.2) == ALPHA


def nf_resnet34(skipinit_gain: float) -> NFResNet:
    torch.manual_seed(0)
    network = models.build(
        NFResNetOptions(name="nf-resnet34"),
        neuron=lambda: LIF(LIFParameters()),
        input_shape=(3, 224, 224),
        classes=10,
    )
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        for block in stage:
            nn.init.constant_(block.skipinit_gain, skipinit_gain)
    return network


def test_every_block_divides_by_its_expected_standard_deviation():
    network = nf_resnet34(0)
    betas = [[block.beta**2 for block in network.get_submodule(f"layer{n}")] for n in (1, 2, 3, 4)]
    assert betas == [pytest.approx(stage) for stage in expected_variances(BLOCKS_34)]


def block_input_variances(network: NFResNet, timesteps: int) -> list[list[float]]:
    """Of each block, Var x over batch and image, mean over channels, at each step.

    The first block receives N(0, 1), which is what the bookkeeping starts from.
    """
    stages = nn.Sequential(network.layer1, network.layer2, network.layer3, network.layer4)
    measured = []
    for stage in stages:
        for block in stage:
            of_block = []
            measured.append(of_block)
            block.register_forward_pre_hook(
                lambda module, args, store=of_block: store.append(args[0].var((0, 2, 3)).mean().item())
            )
    x = torch.randn(8, 64, 32, 32)
    reset_state(network)
    with torch.no_grad():
        for _ in range(timesteps):
            stages(x)
    return measured


def test_the_signal_of_an_untrained_nf_resnet34_has_the_expected_variance():
    """With every learned scalar at 1 the bookkeeping is the prediction, at every block and step.

    What it leaves out (zero padding, later steps' carried potential, correlated spikes) is 15 %.
    """
    measured = block_input_variances(nf_resnet34(skipinit_gain=1), timesteps=3)
    predicted = [variance for stage in expected_variances(BLOCKS_34) for variance in stage]
    for of_block, variance in zip(measured, predicted, strict=True):
        assert of_block == pytest.approx([variance] * 3, rel=0.15)


def test_before_training_the_signal_of_nf_resnet34_fades_as_its_divisions_predict():
    """With every learned scalar at 0 only shortcuts carry signal, while blocks still divide by β.

    Between transitions the signal does not change. A transition receives Var x / β² < 1, its neurons
    fire with p = P(u ≥ V_th) at that variance, and its shortcut has the variance γ² p (1 − p).
    """
    measured = block_input_variances(nf_resnet34(skipinit_gain=0), timesteps=1)
    variances = [of_block[0] for of_block in measured]
    predicted, variance = [], 1.0
    for stage, expected in enumerate(expected_variances(BLOCKS_34)):
        for number, beta_squared in enumerate(expected):
            predicted.append(variance)
            if stage > 0 and number == 0:
                p = 1 - NormalDist(sigma=math.sqrt(variance / beta_squared)).cdf(1.0)
                variance = GAMMA**2 * p * (1 - p)
    assert predicted[-1] < 0.8  # the prediction says something
    assert variances == pytest.approx(predicted, rel=0.1)  # zero padding is left out


def test_a_residual_branch_that_is_switched_off_leaves_its_block_an_identity():
    network = nf_resnet34(skipinit_gain=0)
    x = torch.randn(2, 64, 8, 8)
    assert torch.equal(network.layer1(x), x)


def test_the_stem_averages_where_other_resnets_take_the_maximum():
    network = nf_resnet34(skipinit_gain=0)
    received = []
    network.layer1.register_forward_pre_hook(lambda module, args: received.append(args[0]))
    x = torch.randn(2, 3, 32, 32)
    network(x)
    convolved = nn.functional.conv2d(
        x, network.conv1.standardised_weight(), network.conv1.bias, stride=2, padding=3
    )
    torch.testing.assert_close(received[0], nn.functional.avg_pool2d(convolved, 3, stride=2, padding=1))


def test_a_transition_shortcuts_through_the_activated_input():
    block = nf_resnet34(skipinit_gain=0).layer2[0]
    x = 2 * torch.randn(2, 64, 8, 8)
    activated = GAMMA * (x / math.sqrt(1.12) >= 1).float()
    weight = block.downsample.standardised_weight()
    expected = nn.functional.conv2d(activated, weight, stride=2)
    torch.testing.assert_close(block(x), expected)


def test_an_untrained_nf_resnet_predicts_nothing_but_its_bias():
    network = nf_resnet34(0)
    features = []
    network.flatten.register_forward_hook(lambda module, args, output: features.append(output))
    output = network(4 * torch.randn(2, 3, 64, 64))
    assert features[0].std() > 0.1  # a signal arrives
    assert torch.equal(output, network.fc.bias.expand(2, 10))


def test_a_width_of_one_is_refused_as_it_has_no_variance():
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        NFResNetOptions(name="nf-resnet34", width=1)
