"""The live tensor bytes of a cell's real iterations, which estimates are held against."""

from collections.abc import Collection, Iterable
from itertools import combinations

import torch

from sltt_bench import methods
from sltt_bench.measure.iteration_memory import IterationMemory, count_iteration
from sltt_bench.planning.plan import Cell
from sltt_bench.training.experiment import assemble, make_backend


def counted(cell: Cell) -> IterationMemory:
    """A real iteration of the cell on the CPU, its first iteration left out."""
    (memory,) = counted_at(cell, [None])
    return memory


def counted_at(cell: Cell, choices: Iterable[Collection[int] | None]) -> list[IterationMemory]:
    """Real iterations of the cell after its first one, each at a choice of steps, or at the method's own."""
    subject = assemble(cell, torch.device("cpu"), make_backend(cell))
    subject.network.train()
    recipe = cell.recipe
    batch = recipe.train.batch_size
    time_axis = (recipe.timesteps,) if recipe.data.temporal else ()
    x = torch.rand(batch, *time_axis, *recipe.data.sample_shape)
    labels = torch.randint(recipe.data.classes, (batch,))
    method = subject.method

    def iterate() -> None:
        subject.training_iteration(x, labels)

    def count(steps: Collection[int] | None) -> IterationMemory:
        if steps is not None:
            assert isinstance(method, methods.ChoosesSteps)
            subject.method = method.at(steps)
        return count_iteration(iterate, subject.network, [x, labels], optimizer=subject.optimizer)

    iterate()
    return [count(steps) for steps in choices]


def costliest(cell: Cell) -> IterationMemory:
    """The real iteration with the largest peak, of all choices of steps that the cell's method has."""
    if cell.k is None:
        return counted(cell)
    choices = combinations(range(cell.recipe.timesteps), cell.k)
    return max(counted_at(cell, choices), key=lambda memory: memory.peak_bytes)
