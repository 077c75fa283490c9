"""The validation split: the same share of every class, never trained on, never test data, and what is chosen on it."""

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from result_builder import RECIPE, HandmadeRun, varied
from torch.utils.data import TensorDataset

from sltt_bench import data
from sltt_bench.data.errors import DataError
from sltt_bench.data.loading import InMemory, make_loader
from sltt_bench.data.source import DataBundle, DataPlace
from sltt_bench.data.synthetic import synthetic_bundle
from sltt_bench.data.validation import ValidationSplit, hold_back, stratified
from sltt_bench.kinds.training import train_cell
from sltt_bench.planning.plan import Cell
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.planning.recipe_faults import RecipeError
from sltt_bench.report.grouping import make_groups
from sltt_bench.results.cell_row import Outcome, cell_row
from sltt_bench.results.reader import read_results
from sltt_bench.running.worker import Reporter

FIFTH = ValidationSplit(samples=0)
DIGITS = {"validation": {"samples": 287}}
TINY = {"model.channels": [2, 2], "timesteps": 2, "train.epochs": 2, "data.limit": 100}


# Which samples ----------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(10, 60), min_size=1, max_size=12),
    share=st.sampled_from([0.1, 0.2, 0.25, 1 / 3, 0.5]),
    seed=st.integers(0, 5),
)
def test_every_class_gives_its_share_and_all_together_theirs(
    sizes: list[int], share: float, seed: int
) -> None:
    labels = np.random.RandomState(seed).permutation(np.repeat(np.arange(len(sizes)), sizes)).tolist()
    split = ValidationSplit(share=share, seed=seed, samples=0)
    held = stratified(labels, split).tolist()
    assert len(held) == len(set(held)) == split.held_back(len(labels))
    counts = Counter(labels[place] for place in held)
    assert all(abs(counts[label] - share * size) < 1 for label, size in enumerate(sizes))
    assert all(counts[label] < size for label, size in enumerate(sizes))


def test_the_split_of_the_digits_is_named_by_its_seed() -> None:
    labels = data.source_type("digits")().labels(Path("unused"), "train")
    first, again, other = (stratified(labels, ValidationSplit(seed=seed, samples=0)) for seed in (0, 0, 1))
    assert len(first) == 287
    assert first.tolist() == again.tolist() != other.tolist()
    assert first[:5].tolist() == [9, 15, 16, 17, 24]


def test_what_is_held_back_is_neither_trained_on_nor_tested() -> None:
    bundle = data.load(data.source_type("digits")(), DataPlace(Path("unused"), 6))
    parts = hold_back(bundle, FIFTH)
    assert parts.test is bundle.test
    train, validation, everything = map(_images, (parts.train, parts.validation, bundle.train))
    assert (train.total(), validation.total()) == (1150, 287)
    assert train + validation == everything  # with repetition: each training sample is in one part


def _images(split: Any) -> Counter[bytes]:
    return Counter(x.numpy().tobytes() + bytes([int(label)]) for x, label in split)


class Numbered(torch.utils.data.Dataset[Any]):
    """Samples that are their own index, of ten classes."""

    def __init__(self, augmented: bool) -> None:
        self.augmented = augmented
        self.labels = [index % 10 for index in range(100)]

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> Any:
        return torch.tensor([float(index) + 0.5 * self.augmented]), self.labels[index]


def test_held_back_samples_are_shown_as_test_samples_are() -> None:
    bundle = DataBundle(Numbered(True), Numbered(False), lambda x: x, plain_train=Numbered(False))
    parts = hold_back(bundle, FIFTH)
    assert parts.validation is not None
    trained = [float(x) for x, _ in (parts.train[index] for index in range(len(parts.train)))]
    held = [float(x) for x, _ in (parts.validation[index] for index in range(len(parts.validation)))]
    assert len(held) == 20
    assert all(value % 1 == 0 for value in held)
    assert {value - 0.5 for value in trained} | set(held) == set(map(float, range(100)))


def test_a_limit_is_that_of_training_and_validation_together() -> None:
    bundle = data.load(data.source_type("digits")(limit=64), DataPlace(Path("unused"), 6))
    parts = hold_back(bundle, FIFTH, limit=64)
    assert parts.validation is not None
    assert (len(parts.train), len(parts.validation)) == (51, 13)


def test_what_comes_in_whole_batches_still_does() -> None:
    options = data.source_type("digits")()
    parts = hold_back(synthetic_bundle(options, 6), FIFTH)
    assert isinstance(parts.train, InMemory)
    loader = make_loader(
        parts.train, batch_size=64, shuffle=True, seed=0, drop_last=False, options=options, device=torch.device("cpu")
    )  # fmt: skip
    labels = torch.cat([labels for _, labels in loader])
    assert labels.bincount().tolist() == torch.as_tensor(parts.train.labels).bincount().tolist()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("labels", "share", "reason"),
    [([0, 1, 2], 0.5, "the smallest with 1"), ([0, 0, 1, 1], 0.1, "cannot have the same share")],
)
def test_classes_too_small_to_be_divided_are_an_error(labels: list[int], share: float, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        stratified(labels, ValidationSplit(share=share, samples=0))


def test_samples_that_do_not_say_their_labels_are_an_error() -> None:
    class Silent:
        def __len__(self) -> int:
            return 10

        def __getitem__(self, index: int) -> Any:
            return torch.zeros(1), 0

    samples = Silent()
    with pytest.raises(DataError, match="Silent has no attribute `labels`"):
        hold_back(DataBundle(samples, samples, lambda x: x), FIFTH)


# In a recipe ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "fault"),
    [
        ({"samples": 288}, "validation.samples is 288, but 0.2 of 1437 training samples are 287"),
        ({"samples": 287, "share": 0.6}, "validation.share: Input should be less than or equal to 0.5"),
        ({"samples": 287, "sead": 1}, r"unknown key \(did you mean 'seed'"),
        ({}, "validation.samples: is missing"),
    ],
)
def test_a_split_that_does_not_fit_is_refused_with_the_key(split: dict[str, Any], fault: str) -> None:
    with pytest.raises(RecipeError, match=fault):
        load_recipe("digits", {"validation": split})


def test_a_split_is_part_of_what_a_run_is_and_none_is_what_it_was() -> None:
    plain, split, other = (
        load_recipe("digits", overrides)
        for overrides in ({}, DIGITS, {"validation": {"samples": 287, "seed": 1}})
    )
    assert len({recipe.fingerprint() for recipe in (plain, split, other)}) == 3
    assert "validation" not in plain.significant()


# In a run ---------------------------------------------------------------------------------------


def rows_of(cell: Cell) -> list[dict[str, Any]]:
    """The epochs of a cell that is trained in this process."""
    stream = io.StringIO()
    job = {"data_dir": "data", "checkpoint": None, "resume": False, "initial_weights": None}
    train_cell(cell, job, Reporter(stream, None))
    events = map(json.loads, stream.getvalue().splitlines())
    return [event["row"] for event in events if event["event"] == "epoch"]


def test_a_run_trains_on_the_rest_and_evaluates_both_after_each_epoch() -> None:
    recipe = load_recipe("digits", DIGITS | TINY)
    rows = rows_of(Cell(recipe=recipe, method="sltt", backend="reference", seed=0, device="cpu"))
    assert [row["samples"] for row in rows] == [80, 80]
    assert all(round(20 * row["validation_top1"], 6) % 1 == 0 for row in rows)
    assert all(round(100 * row["test_top1"], 6) % 1 == 0 for row in rows)


def test_the_best_epoch_is_chosen_on_validation_data() -> None:
    recipe = load_recipe("digits", DIGITS)
    cell = Cell(recipe=recipe, method="sltt", backend="reference", seed=0)
    accuracies = {1: ("0.5", "0.9"), 2: ("0.8", "0.6"), 3: ("0.7", "0.7")}
    epochs = {
        epoch: {"validation_top1": validation, "test_top1": test}
        for epoch, (validation, test) in accuracies.items()
    }
    row = cell_row(cell, Outcome("ok"), epochs)
    assert (row["best_epoch"], row["best_test_top1"]) == (2, 0.6)
    assert (row["last_validation_top1"], row["last_test_top1"]) == (0.7, 0.7)
    assert row["validation"] == "stratified 0.2, seed 0"


def test_runs_with_and_without_a_split_are_never_compared(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "run")
    held_back = varied(RECIPE, validation__share=0.2)
    run.cell("bptt")
    run.cell("sltt", recipe=held_back, cell={"validation": "stratified 0.2, seed 0"})
    groups = make_groups(read_results([tmp_path]))
    assert len(groups) == 2
    assert {"sltt": "validation split"} in [group.elsewhere for group in groups]
    assert [("validation split stratified 0.2, seed 0" in group.key.conditions()) for group in groups].count(
        True
    ) == 1


def test_a_tensor_data_set_stays_one() -> None:
    samples = TensorDataset(torch.arange(20.0), torch.arange(20) % 2)
    parts = hold_back(DataBundle(samples, samples, lambda x: x), FIFTH)
    assert isinstance(parts.train, TensorDataset)
    assert isinstance(parts.validation, TensorDataset)
    assert len(parts.validation) == 4
