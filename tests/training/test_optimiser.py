"""The optimiser and schedule of the paper's recipes, against their formulas."""

import math

import pytest
import torch
from torch import nn

from sltt_bench.planning.recipe import load_recipe
from sltt_bench.training.experiment import build_optimizer, build_schedule


def test_sgd_has_plain_momentum_and_decays_every_parameter():
    """m ← μ m + g + λ w, w ← w − lr m: no dampening, no Nesterov step, biases and normalisation decay as well."""
    recipe = load_recipe("cifar100-resnet18")
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    optimizer = build_optimizer(recipe, network)
    assert (recipe.train.lr, recipe.train.momentum, recipe.train.weight_decay) == (0.1, 0.9, 5e-4)
    expected = [parameter.detach().clone() for parameter in network.parameters()]
    momentum = [torch.zeros_like(w) for w in expected]
    for _ in range(3):
        for i, parameter in enumerate(network.parameters()):
            parameter.grad = torch.randn_like(parameter)
            momentum[i] = 0.9 * momentum[i] + parameter.grad + 5e-4 * expected[i]
            expected[i] = expected[i] - 0.1 * momentum[i]
        optimizer.step()
    torch.testing.assert_close(list(network.parameters()), expected, rtol=1e-12, atol=1e-12)


def test_the_learning_rate_falls_along_a_half_cosine_over_the_epochs():
    """As in the published code: lr (1 + cos(π e / E)) / 2 in epoch e + 1 of E."""
    recipe = load_recipe("imagenet-resnet34")
    optimizer = build_optimizer(recipe, nn.Linear(2, 2))
    schedule = build_schedule(recipe, optimizer)
    rates = []
    for _ in range(30):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.001 * (1 + math.cos(math.pi * e / 30)) / 2 for e in range(30)])
