"""One cell over several processes: the weights after training are those of one process with whole batches."""

import math
from itertools import chain
from typing import Any

import pytest
import torch
from thinned import thinned
from torch import nn

from sltt_bench.data.loading import BatchOrder
from sltt_bench.planning.plan import Cell
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.planning.recipe_fields import MAX_SEED
from sltt_bench.training import experiment
from sltt_bench.training.distributed import (
    ALONE,
    Ranks,
    SynchronisedBatchNorm2d,
    combined,
    exchanged_bytes,
)
from tests import distributed_ranks
from tests.distributed_ranks import Case, cases, cell_of, parameters_after_training

CASES = thinned(cases(), keep=3)
"""Of three in a row one in CI: each network, method, backend and format with some of the others."""


@pytest.fixture(scope="module")
def chosen(request: pytest.FixtureRequest) -> list[Case]:
    """The cases of this campaign."""
    every = request.config.getoption("--campaign") == "long"
    return cases() if every else [case for case in CASES if isinstance(case, Case)]


@pytest.fixture(scope="module", params=[pytest.param(2, marks=pytest.mark.long), 3])
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, chosen: list[Case]
) -> list[dict[str, Any]]:
    """What each of 2 or 3 gloo ranks has after training."""
    folder, size = tmp_path_factory.mktemp(f"ranks-{request.param}"), request.param
    distributed_ranks.together(size, distributed_ranks.main, folder, chosen)
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(size)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_weights_are_those_of_one_process_with_whole_batches(
    case: Case, trained: list[dict[str, Any]]
) -> None:
    error = 1e-6 if case.dtype == torch.float32 else 1e-12
    alone = parameters_after_training(cell_of(case.network, case.method, case.backend), ALONE, case.dtype)
    for name, value in trained[0]["states"][str(case)].items():
        torch.testing.assert_close(value, alone[name], atol=error, rtol=error)


def test_all_ranks_have_the_same_weights_to_the_last_bit(trained: list[dict[str, Any]]) -> None:
    first, *others = (rank["states"] for rank in trained)
    for other in others:
        for case, state in first.items():
            for name, value in state.items():
                if case != "separate statistics" or "running" not in name:
                    assert torch.equal(value, other[case][name]), f"{case}: {name}"


def test_training_moves_the_weights(trained: list[dict[str, Any]], chosen: list[Case]) -> None:
    for case in chosen:
        cell = cell_of(case.network, case.method, case.backend)
        fresh = experiment.assemble(cell, torch.device("cpu"), experiment.make_backend(cell))
        before = fresh.network.state_dict()
        after = trained[0]["states"][str(case)]
        moved = [(after[name] - value.to(case.dtype)).abs().max() for name, value in before.items()]
        assert max(moved) > 1e-3, str(case)


def test_batch_statistics_are_each_ranks_own_by_default(trained: list[dict[str, Any]]) -> None:
    states = [rank["states"]["separate statistics"] for rank in trained]
    differs = [name for name in states[0] if not torch.equal(states[0][name], states[1][name])]
    assert differs
    assert all("running" in name for name in differs)


def test_every_rank_sees_the_figures_of_all(trained: list[dict[str, Any]]) -> None:
    for rank in trained:
        assert [row["rank"] for row in rank["figures"]] == list(range(len(trained)))


# Without other processes ------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_processes_divide_every_batch_without_repetition(processes: int, drop_last: bool) -> None:
    def order(shard: tuple[int, int]) -> BatchOrder:
        chosen = torch.arange(23)
        keys = BatchOrder(chosen, 8, shuffle=True, seed=5, drop_last=drop_last, shard=shard)
        keys.epoch = 2
        return keys

    whole = list(order((0, 1)))
    parts = [list(order((rank, processes))) for rank in range(processes)]
    assert [[*chain(*batch)] for batch in zip(*parts, strict=True)] == whole
    assert len(whole) == (2 if drop_last else 3)
    assert order((0, 1)).samples == (16 if drop_last else 23)


def test_processes_of_several_seeds_share_no_random_numbers() -> None:
    draws = {experiment.seed_of_rank(seed, rank) % 2**32 for seed in range(20) for rank in range(8)}
    assert len(draws) == 20 * 8
    assert [experiment.seed_of_rank(seed, 0) for seed in range(3)] == [0, 1, 2]


def test_no_two_seeds_begin_with_the_same_weights() -> None:
    def drawn(seed: int) -> float:
        return float(torch.rand((), generator=torch.Generator().manual_seed(seed)))

    assert len({drawn(seed) for seed in (0, 1, MAX_SEED)}) == 3
    assert drawn(MAX_SEED + 1) == drawn(0), "the bits that torch looks at"


def test_alone_nothing_is_exchanged() -> None:
    layer = nn.Linear(2, 1)
    layer(torch.ones(1, 2)).sum().backward()
    before = [parameter.grad.clone() for parameter in layer.parameters() if parameter.grad is not None]
    ALONE.exchange_gradients(layer.parameters(), 1)
    after = [parameter.grad for parameter in layer.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True) if b is not None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gradients_of_any_precision_are_exchanged_without_overflow_or_miscounted_samples(
    dtype: torch.dtype,
) -> None:
    weight = torch.nn.Parameter(torch.zeros(3, dtype=dtype))
    gradient = torch.tensor([1000.0, -0.5, 1.0], dtype=dtype)
    weight.grad = gradient.clone()
    Ranks(0, 2, connected=False).exchange_gradients([weight], samples=257)
    assert weight.grad.tolist() == gradient.tolist()


def test_figures_of_ranks_become_one_row() -> None:
    rows = [
        {"epoch": 1, "cold": True, "train_s": 2.0, "samples_per_s": 50.0, "energy_j": 5.0, "samples": 100,
         "peak_allocated_bytes": 10, "gpu_util_mean": 0.5, "peak_nvml_bytes": 7, "device": "cuda:0"},
        {"epoch": 1, "cold": True, "train_s": 2.5, "samples_per_s": 40.0, "energy_j": 6.0, "samples": 100,
         "peak_allocated_bytes": 30, "gpu_util_mean": 0.7, "peak_nvml_bytes": None, "device": "cuda:1"},
    ]  # fmt: skip
    row = combined(rows)
    assert row["train_s"] == 2.5
    assert row["samples_per_s"] == 40.0
    assert row["energy_j"] == 11.0
    assert row["samples"] == 100
    assert row["peak_allocated_bytes"] == 30
    assert math.isclose(row["gpu_util_mean"], 0.6)
    assert row["peak_nvml_bytes"] is None
    assert (row["device"], row["epoch"], row["cold"]) == ("cuda:0", 1, True)


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ((7, "process"), (7, "process")),
        ((9, "device"), (None, None)),  # never the device's memory under the name of the process's
        ((None, None), (None, None)),
    ],
)
def test_memory_of_a_process_and_of_a_device_are_not_one_figure(
    second: tuple[int | None, str | None], expected: tuple[int | None, str | None]
) -> None:
    columns = ("peak_nvml_bytes", "peak_nvml_scope")
    ranks = [dict(zip(columns, values, strict=True)) for values in ((5, "process"), second)]
    row = combined(ranks)
    assert (row["peak_nvml_bytes"], row["peak_nvml_scope"]) == expected


def test_a_ring_exchanges_less_than_twice_the_gradient() -> None:
    assert [exchanged_bytes(1000, size) for size in (1, 2, 4)] == [0, 1000, 1500]


SMALLEST = {
    "mlp": {"hidden": [6, 5], "recurrent": True},
    "cnn": {"channels": [4, 4]},
    "preact-resnet18": {"width": 2},
    "nf-resnet34": {"width": 2},
    "sew-resnet18": {"width": 2, "stem": "3x3"},
    "ms-resnet18": {"width": 2, "stem": "3x3"},
    "spikformer": {"dim": 8, "heads": 2, "depth": 1, "mlp_ratio": 2, "halvings": 1},
}


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("name", SMALLEST)
def test_of_a_single_sample_no_two_gradients_share_their_memory(name: str, backend: str) -> None:
    """Autograd adds to `.grad` in place: two that share it would receive each later step twice.

    It happens where a gradient has its parameter's shape all along, as on images of 1x1.
    """
    synchronised = name in ("cnn", "preact-resnet18", "sew-resnet18", "ms-resnet18")
    overrides = {"model": {"name": name, **SMALLEST[name]}, "train.synchronise_batch_norm": synchronised}
    cell = Cell(load_recipe("digits", overrides), "sltt", backend, seed=0, device="cpu")
    one_of_two = Ranks(0, 2, connected=False)
    subject = experiment.assemble(
        cell, torch.device("cpu"), experiment.make_backend(cell), one_of_two if synchronised else ALONE
    )
    subject.network.eval()  # batch norm of one value has no statistics
    for module in subject.network.modules():
        module.training = isinstance(module, SynchronisedBatchNorm2d)
    subject.backend.accumulate_gradients(
        subject, torch.rand(1, *cell.recipe.data.sample_shape), torch.tensor([3])
    )
    shared: dict[int, list[str]] = {}
    for parameter_name, parameter in subject.network.named_parameters():
        if parameter.grad is not None:
            shared.setdefault(parameter.grad.untyped_storage().data_ptr(), []).append(parameter_name)
    assert shared
    assert all(len(names) == 1 for names in shared.values()), shared


@pytest.mark.parametrize("method", ["bptt", "sltt"])
def test_synchronised_statistics_are_learned_once_a_step_where_native_computes_again(method: str) -> None:
    overrides = {
        "model": {"name": "cnn", "channels": [4, 4]},
        "train.synchronise_batch_norm": True,
        "native.recompute": True,
        "timesteps": 3,
    }
    cell = Cell(load_recipe("digits", overrides), method, "native", seed=0, device="cpu")
    one_of_two = Ranks(0, 2, connected=False)
    subject = experiment.assemble(cell, torch.device("cpu"), experiment.make_backend(cell), one_of_two)
    subject.network.train()
    subject.backend.accumulate_gradients(
        subject, torch.rand(4, *cell.recipe.data.sample_shape), torch.arange(4)
    )
    norms = [module for module in subject.network.modules() if isinstance(module, SynchronisedBatchNorm2d)]
    assert [int(norm.num_batches_tracked or 0) for norm in norms] == [3] * len(norms)
    assert norms
