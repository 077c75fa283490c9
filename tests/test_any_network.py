"""Whatever network somebody writes: training on native leaves what training on the reference leaves.

Networks are drawn at random, in many styles (tied and frozen weights, layers called twice or by name, sums in place,
functions, layers with state of their own); the rest of a cell as in test_any_training.py, which this goes through.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from drawn_cells import Drawn
from drawn_networks import DrawnNetwork
from test_any_training import apart, assembled, trained
from torch import nn

from sltt_bench.errors import UserError
from sltt_bench.experiment import UnsupportedCell


def drawn_for_both(seed: int) -> Drawn:
    """The first that both backends serve, whatever its network is."""
    draws = random.Random(seed)
    while True:
        drawn = Drawn.by(draws)
        model = {"name": "cnn", "channels": [4], "normalisation": "none"}
        # AdamW divides gradients by their size: those of biases that batch norm takes away are rounding errors.
        overrides = {
            **drawn.overrides,
            "model": model,
            "train.optimizer": "sgd",
            "neuron.surrogate_width": 1.0,
        }
        recipe = drawn.recipe if drawn.recipe.startswith("digits") else "digits"
        drawn = replace(drawn, recipe=recipe, overrides=overrides)
        try:
            assembled(drawn, "reference"), assembled(drawn, "native")
        except (UserError, UnsupportedCell):
            continue
        return drawn


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Counter[str]]:
    """Trains the network of a seed on both backends."""
    monkeypatch.setattr("sltt_bench.backends.native.saved_tensor_hooks.SMALL", 0)
    monkeypatch.setattr("sltt_bench.backends.native.loop_invariants.SMALL", 0)

    def of(seed: int) -> Counter[str]:
        words: list[str] = []

        def build(options: Any, *, neuron: Any, input_shape: Any, classes: int, **others: Any) -> nn.Module:
            network = DrawnNetwork(random.Random(seed), neuron, input_shape, classes)
            words[:] = network.words
            return network

        monkeypatch.setattr("sltt_bench.models.build", build)
        drawn = drawn_for_both(seed)
        expected = trained(drawn, "reference", seed)
        if not all(value.double().isfinite().all() for value in expected.values()):
            return Counter(["not finite"])
        differing = apart(expected, trained(drawn, "native", seed))
        assert not differing, f"seed {seed}: {drawn} of {words} parts from the reference in {differing}"
        kinds = {word.split(" ")[0].split("(")[0] for word in words}
        return Counter([f"method {drawn.method}", *(f"with {kind}" for kind in kinds)])

    return of


@pytest.mark.parametrize("first", range(0, 24, 6))
def test_any_network_trains_on_native_as_on_the_reference(
    first: int, check: Callable[[int], Counter[str]]
) -> None:
    for seed in range(first, first + 6):
        check(seed)


@pytest.mark.long
def test_many_networks_train_on_native_as_on_the_reference(
    check: Callable[[int], Counter[str]], figures: Callable[[str], None]
) -> None:
    counts = sum((check(seed) for seed in range(100, 1100)), Counter[str]())
    figures(f"1000 networks, each trained as on the reference: {dict(counts)}")


def test_networks_that_are_drawn_have_every_kind_of_part() -> None:
    torch.manual_seed(0)
    words = {
        word
        for seed in range(200)
        for word in DrawnNetwork(random.Random(seed), nn.ReLU, (1, 8, 8), 10).words
    }
    parts = " ".join(words)
    for part in (
        "tied Conv2d",
        "frozen Conv2d",
        "by name",
        "again",
        "sum in place",
        "Feedback",
        "block",
        "product",
        "cat",
    ):
        assert part in parts
