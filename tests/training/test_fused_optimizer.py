"""The optimiser of a GPU, fused, on the CPU: it leaves what the plain one leaves, whatever comes first."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from sltt_bench.planning.plan import Cell
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.training import experiment
from sltt_bench.training.experiment import Experiment

ITERATIONS = 8


@pytest.fixture(autouse=True)
def uninitialised_memory_is_not_a_number() -> Iterator[None]:
    was = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(was)


def subject_of(
    method: str, model: dict[str, Any], *, fused: bool, seed: int = 0, **overrides: Any
) -> Experiment:
    overrides = {"model": model, "timesteps": 4, "train.precision": "fp32", **overrides}
    recipe = load_recipe("digits", overrides, chosen_methods=[method])
    cell = Cell(recipe, method, "reference", seed, device="cpu")
    subject = experiment.assemble(cell, torch.device("cpu"), experiment.make_backend(cell))
    subject.network.double().train()
    subject.optimizer = experiment.build_optimizer(recipe, subject.network, fused=fused)
    return subject


def train(subject: Experiment, iterations: int = ITERATIONS) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(3)
    for _ in range(iterations):
        x = 2 * torch.rand(8, 1, 8, 8, generator=generator, dtype=torch.float64)
        subject.training_iteration(x, torch.randint(10, (8,), generator=generator))
    return {name: value.clone() for name, value in subject.network.state_dict().items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-9, atol=1e-12, msg=name)


CNN = {"name": "cnn", "channels": [4, 4]}
RECURRENT = {"name": "mlp", "hidden": [8, 8], "recurrent": True}


def test_momentum_of_a_first_step_that_overflowed_is_none() -> None:
    """As the first iterations of fp16 may; torch's fused SGD keeps the memory that it meant to write to."""
    left = []
    for fused in (False, True):
        subject = subject_of("sltt", CNN, fused=fused)
        subject.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
        loss = subject.loss
        subject.loss = lambda output, labels, loss=loss: 1e272 * loss(output, labels)  # type: ignore[misc]
        subject.optimizer.param_groups[0]["lr"] = 1e-273
        left.append(train(subject))
        assert 2.0**120 < subject.scaler.get_scale() < 2.0**126, "not one iteration was skipped, and not all"
    assert all(bool(value.isfinite().all()) for value in left[1].values() if value.is_floating_point())
    assert_equal(*left)


@pytest.mark.parametrize(
    ("method", "model"),
    [
        ("sltt-k1", {**CNN, "normalisation": "bntt"}),  # each step has a scale of its own
        ("sltt-k1", RECURRENT),  # the first step has no recurrence
        ("ottt-o", RECURRENT),
    ],
)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_parameter_may_get_its_first_gradient_later_than_others(
    method: str, model: dict[str, Any], optimizer: str
) -> None:
    for seed in range(3):
        options: dict[str, Any] = {"seed": seed, "train.optimizer": optimizer, "train.lr": 0.01}
        plain = train(subject_of(method, model, fused=False, **options))
        assert_equal(plain, train(subject_of(method, model, fused=True, **options)))


def test_a_state_in_which_a_parameter_has_no_momentum_yet_is_gone_on_with() -> None:
    """As a checkpoint that was written on a CPU, or by an earlier version, may be."""
    began = subject_of("sltt-k1", {**CNN, "normalisation": "bntt"}, fused=False)
    train(began, iterations=1)
    assert len(began.optimizer.state) < len(list(began.network.parameters()))
    left = []
    for fused in (False, True):
        subject = subject_of("sltt-k1", {**CNN, "normalisation": "bntt"}, fused=fused)
        subject.network.load_state_dict(began.network.state_dict())
        state = deepcopy(began.optimizer.state_dict())
        state["param_groups"][0]["fused"] = fused
        subject.optimizer.load_state_dict(state)
        left.append(train(subject))
    assert_equal(*left)
