"""Whatever a recipe says: processes that share every batch train what one process trains.

Recipes are drawn at random, on both backends, each trained for some iterations with batches of several sizes that do
not divide evenly, and evaluations between them.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import divided_trainings
import pytest
import torch
from distributed_ranks import together
from test_any_training import errors
from torch import Tensor

from sltt_bench.training.distributed import ALONE

TOLERANCE = 1e-8
"""Of float64; relative for each tensor."""
TOLERANCE_OF_LOSSES = 1e-6
"""They are reported in float32."""


def check(size: int, seeds: Sequence[int], out: Path) -> Counter[str]:
    together(size, divided_trainings.main, out, seeds)
    ranks = [torch.load(out / f"rank-{rank}.pt") for rank in range(size)]
    counts = Counter[str]()
    for seed in seeds:
        drawn, backend = divided_trainings.drawn(seed)
        alone = divided_trainings.trained(seed, ALONE)
        for rank in ranks:
            differing = apart(alone, rank[seed])
            assert not differing, f"seed {seed}, {size} processes: {drawn} on {backend} parts in {differing}"
        counts += Counter([backend, f"method {drawn.method}", f"network {drawn.overrides['model']['name']}"])
    return counts


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, float]:
    """By how much some of what training left differs, relative to it."""
    return {
        name: error
        for name, error in errors(one, other).items()
        if not error < (TOLERANCE_OF_LOSSES if name.startswith(("training", "evaluation")) else TOLERANCE)
    }


@pytest.fixture(autouse=True)
def small_tensors_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sltt_bench.backends.native.saved_tensor_hooks.SMALL", 0)
    monkeypatch.setattr("sltt_bench.backends.native.loop_invariants.SMALL", 0)


@pytest.mark.parametrize(("size", "seeds"), [(2, range(4)), (3, range(12, 15))])
def test_processes_that_share_a_batch_train_what_one_trains(size: int, seeds: range, tmp_path: Path) -> None:
    check(size, seeds, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize(("size", "seeds"), [(2, range(100, 350)), (3, range(350, 600))])
def test_processes_that_share_many_batches_train_what_one_trains(
    size: int, seeds: range, tmp_path: Path, figures: Callable[[str], None]
) -> None:
    counts = check(size, seeds, tmp_path)
    figures(f"{len(seeds)} trainings divided among {size} processes, all as by one: {dict(counts)}")
