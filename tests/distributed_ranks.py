"""The ranks of tests/training/test_distributed.py: one group trains every combination, each rank saves its results."""

import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sltt_bench.planning.plan import Cell
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.training import experiment
from sltt_bench.training.distributed import Ranks, end_together, join

SAMPLES = (6, 6, 6, 6, 5)
"""Samples of each iteration; the last batch is smaller and divides unevenly."""

METHODS = SERVED_BY_NATIVE = ("bptt", "sltt", "sltt-k2")
FURTHER_METHODS = ("bptt-ckpt2", "ottt")
"""A method with checkpoints in time, and one with traces."""
BACKENDS = ("reference", "native")
NETWORKS: dict[str, dict[str, Any]] = {
    "plain": {"model": {"name": "mlp", "hidden": [12, 8], "recurrent": True}},
    "standardised": {"model": {"name": "nf-resnet34", "width": 4}},
    "batch norm": {
        "model": {"name": "cnn", "channels": [4, 4]},
        "train.synchronise_batch_norm": True,
    },
}


def cell_of(network: str, method: str, backend: str, timesteps: int = 3) -> Cell:
    """Returns a tiny cell with the shapes of the digits."""
    overrides = {**NETWORKS[network], "train.precision": "fp32", "timesteps": timesteps, "train.lr": 0.05}
    recipe = load_recipe("digits", overrides, chosen_methods=[method])
    return Cell(recipe, method, backend, seed=3, device="cpu")


def parameters_after_training(cell: Cell, ranks: Ranks, dtype: torch.dtype) -> dict[str, Tensor]:
    """Returns weights and statistics after one iteration for each of SAMPLES, divided among the ranks."""
    subject = experiment.assemble(cell, torch.device("cpu"), experiment.make_backend(cell), ranks)
    subject.network.to(dtype).train()
    draws = torch.Generator().manual_seed(7)
    shape = cell.recipe.data.sample_shape
    for samples in SAMPLES:
        x = 2 * torch.randn(samples, *shape, generator=draws, dtype=torch.float64).to(dtype)
        labels = torch.randint(10, (samples,), generator=draws)
        subject.training_iteration(ranks.part(x), ranks.part(labels))
    return {name: value.clone() for name, value in subject.network.state_dict().items()}


@dataclass(frozen=True)
class Case:
    """One training that every rank takes part in."""

    network: str
    method: str
    backend: str
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.network}, {self.method}, {self.backend}, {self.dtype}"


def cases() -> list[Case]:
    """Returns all tested cases; the large network with standardised weights is in one for each method."""
    small = product(("plain", "batch norm"), METHODS, BACKENDS, (torch.float32, torch.float64))
    further = product(("plain", "batch norm"), FURTHER_METHODS, ("reference",), (torch.float64,))
    large = product(("standardised",), METHODS, ("reference",), (torch.float64,))
    served = [Case(*case) for case in (*small, *further, *large)]
    return [case for case in served if case.backend == "reference" or case.method in SERVED_BY_NATIVE]


def together(size: int, main: Callable[[Ranks, Path, Any], None], out: Path, given: Any) -> None:
    """Run `main(ranks, out, given)` in `size` new processes, which meet at a port of this machine."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    processes = [
        multiprocessing.get_context("spawn").Process(target=_one, args=(rank, size, port, main, out, given))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(3600)
    assert [process.exitcode for process in processes] == [0] * size


def _one(
    rank: int, size: int, port: int, main: Callable[[Ranks, Path, Any], None], out: Path, given: Any
) -> None:
    torch.set_num_threads(1)
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": str(size), **address})
    main(join(torch.device("cpu")), out, given)
    end_together()


def main(ranks: Ranks, out: Path, chosen: Sequence[Case]) -> None:
    """Train the chosen cases as one of the ranks."""
    results: dict[str, Any] = {}
    for case in chosen:
        cell = cell_of(case.network, case.method, case.backend)
        results[str(case)] = parameters_after_training(cell, ranks, case.dtype)
    separate = cell_of("batch norm", "sltt", "reference")
    train = separate.recipe.train.model_copy(update={"synchronise_batch_norm": False})
    separate = replace(separate, recipe=separate.recipe.model_copy(update={"train": train}))
    results["separate statistics"] = parameters_after_training(separate, ranks, torch.float64)
    figures = [dict(row) for row in ranks.gather({"rank": ranks.rank, "peak_rss_bytes": 10 + ranks.rank})]
    torch.save({"states": results, "figures": figures}, out / f"rank-{ranks.rank}.pt")
    for _ in range(20):  # a thread of Gloo frees the last of these tensors while the process ends
        ranks.add_up(torch.ones(4))
