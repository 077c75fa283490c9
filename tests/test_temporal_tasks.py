"""The tasks with temporal credit: what is shown when, and what cannot be learned without memory."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sltt_bench import data
from sltt_bench.analysis.gradients import decompose
from sltt_bench.backends.reference import Reference
from sltt_bench.data import DataPlace
from sltt_bench.data.delayed_recall import DelayedRecall
from sltt_bench.data.digits import digits_split
from sltt_bench.data.sequential_digits import SequentialDigits
from sltt_bench.experiment import assemble, time_steps
from sltt_bench.kinds.training import train_cell
from sltt_bench.plan import Cell
from sltt_bench.recipe import RecipeError, load_recipe
from sltt_bench.worker import Reporter

T = 18
SMALL = DelayedRecall(train_samples=64, test_samples=32)


def drawn(options: DelayedRecall, samples: int = 64) -> tuple[Tensor, Tensor]:
    return options.sequences(T, samples, torch.Generator().manual_seed(3))


def answers(recipe_overrides: dict[str, object], x: Tensor, seed: int = 0) -> Tensor:
    """The output at the answer step [samples, classes] of an untrained network of the recipe."""
    recipe = load_recipe("delayed-recall", recipe_overrides)
    experiment = assemble(Cell(recipe, "bptt", "reference", seed), torch.device("cpu"), Reference())
    unroll = experiment.unroll(x[..., None, None], torch.zeros(len(x), dtype=torch.long))
    with torch.no_grad():
        for t in range(T):
            unroll.step(t)
    return unroll.summed_outputs


# Delayed recall ---------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [0, 1, 8, 16])
def test_symbol_noise_and_cue_stand_where_they_should(delay: int) -> None:
    x, labels = drawn(DelayedRecall(delay=delay))
    shown, answer = T - 2 - delay, T - 1
    symbols, cue, noise = x[..., :4], x[..., 4], x[..., 5:]
    assert x.shape == (64, T, 21)
    assert torch.equal(symbols[:, shown].argmax(1), labels)
    assert symbols.sum() == 64
    assert symbols[:, shown].sum() == 64
    assert cue[:, answer].eq(1).all()
    assert cue.sum() == 64
    with_noise = noise.ne(0).any(dim=2).all(dim=0).nonzero().flatten().tolist()
    assert with_noise == list(range(shown + 1, answer))
    assert noise.ne(0).any(dim=2).sum() == 64 * delay


def test_the_answer_step_is_the_same_for_all_samples() -> None:
    x, _ = drawn(DelayedRecall())
    assert x[:, -1].unique(dim=0).shape == (1, 21)


def test_noise_has_the_asked_standard_deviation() -> None:
    x, _ = drawn(DelayedRecall(noise=0.5, delay=8), samples=512)
    noise = x[:, T - 9 : T - 1, 5:]
    assert float(noise.std()) == pytest.approx(0.5, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.01)


def test_splits_are_balanced_and_drawn_from_different_seeds() -> None:
    bundle = data.load(SMALL, DataPlace(Path("unused"), T))
    again = data.load(SMALL, DataPlace(Path("unused"), T))
    train, test = (torch.stack([item[0] for item in split]) for split in (bundle.train, bundle.test))  # type: ignore[attr-defined]
    labels = torch.tensor([int(label) for _, label in bundle.test])  # type: ignore[attr-defined]
    assert labels.bincount().tolist() == [8, 8, 8, 8]
    assert train.shape == (64, T, 21, 1, 1)
    assert not torch.equal(train[:32], test)
    assert torch.equal(train, torch.stack([item[0] for item in again.train]))  # type: ignore[attr-defined]


def test_a_recipe_with_too_few_steps_for_the_delay_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"timesteps is 18, but .* 17 steps .* need 19"):
        load_recipe("delayed-recall", {"data.delay": 17})


def test_unbalanced_classes_are_refused() -> None:
    with pytest.raises(RecipeError, match="test_samples must be a multiple of symbols"):
        load_recipe("delayed-recall", {"data.symbols": 3, "data.train_samples": 3000})


# Known answers, exactly -------------------------------------------------------------------------


def test_without_memory_every_sample_gets_the_same_answer() -> None:
    x, _ = drawn(DelayedRecall())
    answer = answers({"neuron.tau": 1.0}, x)
    assert answer.unique(dim=0).shape[0] == 1
    assert answers({"neuron.tau": 20.0}, x).unique(dim=0).shape[0] > 32


def test_beyond_the_memory_of_the_potential_the_answer_does_not_depend_on_the_symbol() -> None:
    x, labels = drawn(DelayedRecall(delay=16))
    other = x.clone()
    other[:, 0, :4] = x[:, 0, :4].roll(1, dims=1)
    assert other[:, 0, :4].argmax(1).ne(labels).all()
    # λ = 1/11 and λ^16 = 2e-17: less than float32 can tell. λ = 0.95 keeps 44 %.
    fast, slow = {"neuron.tau": 1.1, "data.delay": 16}, {"neuron.tau": 20.0, "data.delay": 16}
    assert torch.equal(answers(fast, x), answers(fast, other))
    assert not torch.equal(answers(slow, x), answers(slow, other))


def test_sltt_gives_no_gradient_to_the_weights_of_symbol_and_noise() -> None:
    recipe = load_recipe("delayed-recall", {"data.train_samples": 64})
    experiment = assemble(Cell(recipe, "bptt", "reference", 0), torch.device("cpu"), Reference())
    x, labels = drawn(DelayedRecall())
    parts = decompose(
        experiment.network,
        time_steps(x[..., None, None], T, temporal=True),
        lambda output: experiment.loss(output, labels),
        window=experiment.window,
    )
    cue = 4
    spatial, full = parts.spatial("layer1.0.weight"), parts.full["layer1.0.weight"]
    others = [channel for channel in range(21) if channel != cue]
    assert torch.count_nonzero(spatial[:, others]) == 0
    assert spatial[:, cue].abs().max() > 1e-4
    assert full[:, :cue].abs().max() > 1e-4
    assert full[:, cue + 1 :].abs().max() > 1e-4


# Sequential digits ------------------------------------------------------------------------------


def test_step_t_shows_row_t_of_the_digit() -> None:
    bundle = data.load(SequentialDigits(), DataPlace(Path("unused"), 8))
    images, labels = digits_split("test")
    x, label = bundle.test[5]
    assert x.shape == (8, 8, 1, 1)
    assert x[:, :, 0, 0].tolist() == images[5].tolist()
    assert label == labels[5]
    assert float(bundle.preprocess(torch.tensor([0, 16], dtype=torch.uint8)).max()) == 1.0
    assert (len(bundle.train), len(bundle.test)) == (1437, 360)


def test_a_digit_needs_eight_steps() -> None:
    with pytest.raises(RecipeError, match="timesteps is 6, but a digit has 8 rows"):
        load_recipe("sequential-digits", {"timesteps": 6})


# Learned or not ---------------------------------------------------------------------------------


class Heard(Reporter):
    """Keeps the figures of the last epoch, in the process of the test."""

    def __init__(self) -> None:
        super().__init__(io.StringIO(), None)
        self.figures: Mapping[str, Any] = {}

    def epoch(self, figures: Mapping[str, Any]) -> None:
        self.figures = figures


def accuracy(recipe: str, method: str, overrides: dict[str, object]) -> float:
    """The last epoch's test accuracy of seed 0: what `sltt-bench run` reports."""
    cell = Cell(load_recipe(recipe, overrides), method, "reference", seed=0, device="cpu")
    heard = Heard()
    train_cell(
        cell, {"data_dir": "unused", "resume": False, "checkpoint": None, "initial_weights": None}, heard
    )
    return float(heard.figures["test_top1"])


@pytest.mark.parametrize(
    ("method", "lowest", "highest"), [("bptt", 0.95, 1.0), ("sltt", 0.0, 0.30), ("sltt-k2", 0.0, 0.30)]
)
def test_bptt_recalls_after_eight_steps_and_sltt_stays_at_chance(
    method: str, lowest: float, highest: float
) -> None:
    # Chance is 0.25; with 1,024 samples its standard error is 0.0135.
    assert lowest <= accuracy("delayed-recall", method, {"train.epochs": 10}) <= highest


@pytest.mark.parametrize("method", ["bptt", "sltt", "sltt-k2"])
def test_without_memory_no_method_beats_chance(method: str) -> None:
    forgetful = {"neuron.tau": 1.0, "data.delay": 1, "data.train_samples": 512, "train.epochs": 2}
    assert accuracy("delayed-recall", method, forgetful) == 0.25


@pytest.mark.parametrize("method", ["bptt", "sltt", "sltt-k2"])
def test_beyond_the_memory_of_the_potential_no_method_beats_chance(method: str) -> None:
    assert accuracy("delayed-recall", method, {"neuron.tau": 1.1, "train.epochs": 10}) < 0.30


def test_without_noise_random_weights_remember_and_sltt_reads_them_out() -> None:
    assert accuracy("delayed-recall", "sltt", {"data.noise": 0.0, "train.epochs": 10}) > 0.9


def test_on_digits_row_by_row_bptt_is_clearly_ahead() -> None:
    bptt, sltt = (accuracy("sequential-digits", name, {"train.epochs": 15}) for name in ("bptt", "sltt"))
    assert bptt > 0.88
    assert bptt - sltt > 0.05
