"""Traces one training iteration of a cell's network at its real size on fake tensors, without memory or data.

Autograd, autocast, optimiser, method and backend are the real ones. The fake tensors are on the CPU even if a
run on a GPU is estimated, because without a GPU the autograd engine refuses CUDA tensors, fake or not. The
differences are imitated: the optimiser is fused, and the precision is the GPU's, through the CPU's autocast
with the same format. Both autocasts treat the operations of these networks alike, except group norm. Loss
scaling is left out: it reads values, and takes only a few bytes.

A method that chooses among the T steps needs more memory for some choices than for others: the first step
has no state yet, and the first chosen step no gradients. A long run meets the costliest choice, so the
estimate is the largest peak over all choices, or over those of `choices_to_trace` if there are more than
MOST_CHOICES.
"""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import combinations
from math import comb
from typing import Literal, cast

import torch
from torch import Tensor, nn

from sltt_bench import methods
from sltt_bench.measure.fake_tensors import fake_tensors, modules_stay_where_they_are
from sltt_bench.measure.iteration_memory import IterationMemory, count_iteration
from sltt_bench.measure.operations import OperationCounter, Operations
from sltt_bench.measure.tensor_bytes import Execute
from sltt_bench.neurons import OverTime, PerStep, outermost_stateful
from sltt_bench.planning.plan import Cell
from sltt_bench.training.distributed import Ranks
from sltt_bench.training.experiment import Experiment, assemble, build_optimizer, make_backend

DeviceType = Literal["cuda", "cpu"]

MOST_CHOICES = 6
"""Of one number of steps, at most this many choices are traced."""


@dataclass(frozen=True)
class IterationTrace:
    """What one training iteration needs."""

    memory: IterationMemory
    operations: Operations
    parameters: int
    """Trainable parameters."""
    added_up_bytes: int
    """Most bytes that an iteration sums over the processes that share its batch; 0 for one process."""
    layers: tuple[str, ...]
    """Names of all layers, in the network's order."""
    stateful_layers: tuple[str, ...]
    """Names of the layers that carry state, without those inside another such layer."""
    precision: str
    """fp32, fp16 or bf16: the recipe's precision, resolved for the device type."""
    steps_at_once: int
    """How many steps one call of the network runs: 1, or T if one of its layers sees all steps."""


def trace_iteration(cell: Cell, device_type: DeviceType) -> IterationTrace:
    """Count one iteration in the steady state: not the first one, and without gradients at its start.

    The operations are those of one choice of steps; memory and exchange are those of the costliest. Raises
    UnsupportedCell, UnknownBackend, UnknownMethod and ValuesAreWanted.
    """
    with _steady_state(cell, device_type) as (subject, batch, execute):
        counter = OperationCounter(subject.network, subject.optimizer, execute=execute)
        variants = list(_variants(subject))
        added_up = cast(_Unconnected, subject.ranks).added_up
        memories, exchanges = [], []
        for number, variant in enumerate(variants):
            added_up.clear()
            with nullcontext() if number else counter.watching():
                memories.append(_count(variant, batch, execute if number else counter.count))
            exchanges.append(sum(added_up))
        return IterationTrace(
            memory=_costliest(memories),
            operations=counter.operations,
            parameters=sum(p.numel() for p in subject.network.parameters() if p.requires_grad),
            added_up_bytes=max(exchanges),
            layers=tuple(name for name, _ in subject.network.named_modules()),
            stateful_layers=tuple(outermost_stateful(subject.network)),
            precision=cell.recipe.train.precision_on(device_type),
            steps_at_once=subject.timesteps if _sees_all_steps(subject.network) else 1,
        )


def trace_memory(cell: Cell, device_type: DeviceType) -> IterationMemory:
    """Returns only the memory of the same iteration, in less time. Raises what `trace_iteration` raises."""
    with _steady_state(cell, device_type) as (subject, batch, execute):
        return _costliest([_count(variant, batch, execute) for variant in _variants(subject)])


def choices_to_trace(timesteps: int, k: int) -> list[tuple[int, ...]]:
    """Returns choices of k of the T steps (from 0): all if there are at most MOST_CHOICES, else that many.

    These are the last k steps, the first k, the first with the last k − 1, evenly spread steps, and steps
    drawn with a fixed seed.
    """
    if comb(timesteps, k) <= MOST_CHOICES:
        return list(combinations(range(timesteps), k))[::-1]
    every = range(timesteps)
    spread = tuple(i * timesteps // k for i in range(k))
    chosen = [tuple(every[-k:]), tuple(every[:k]), (0, *every[timesteps - k + 1 :]), spread]
    draws = random.Random(0)
    while len(chosen := list(dict.fromkeys(chosen))) < MOST_CHOICES:
        chosen.append(tuple(sorted(draws.sample(every, k))))
    return chosen


def fake_batch(cell: Cell) -> tuple[Tensor, Tensor]:
    """Returns input [batch, (T,) C, H, W] and labels [batch]; to be called where tensors are fake.

    If ranks share the batch, it is the largest share.
    """
    recipe = cell.recipe
    samples = largest_share(recipe.train.batch_size, recipe.train.devices)
    steps = (recipe.timesteps,) if recipe.data.temporal else ()
    x = torch.zeros(samples, *steps, *recipe.data.sample_shape)
    return x, torch.zeros(samples, dtype=torch.int64)


def largest_share(batch_size: int, ranks: int) -> int:
    """Returns the most samples of a batch that one of its ranks has."""
    return math.ceil(batch_size / ranks)


@contextmanager
def _steady_state(
    cell: Cell, device_type: DeviceType
) -> Iterator[tuple[Experiment, tuple[Tensor, Tensor], Execute]]:
    """Yields the cell's experiment after its first iteration, a batch, and what runs operations on them.

    All tensors are fake.
    """
    with fake_tensors() as execute:
        with modules_stay_where_they_are():
            subject = _prepare(cell, device_type)
        batch = fake_batch(cell)
        _warm_up(subject, "bptt" if cell.recipe.native.recompute else "sltt", *batch)
        yield subject, batch, execute


def _variants(subject: Experiment) -> Iterator[Experiment]:
    """Yields the experiment with each choice of steps to trace; itself if its method chooses none."""
    method = subject.method
    if not isinstance(method, methods.ChoosesSteps):
        yield subject
        return
    most: int = method.most_steps(subject.timesteps)
    fewest: int = getattr(method, "fewest_steps", method.most_steps)(subject.timesteps)
    for count in dict.fromkeys((most, fewest)):  # a step that is not used may hold more than one that is
        for steps in choices_to_trace(subject.timesteps, count):
            yield replace(subject, method=method.at(steps))


def _sees_all_steps(network: nn.Module) -> bool:
    return any(isinstance(module, OverTime) for module in network.modules())


@dataclass(frozen=True)
class _Unconnected(Ranks):
    """One of several ranks that runs without the others."""

    added_up: list[int] = field(default_factory=list)
    """Bytes of each tensor that it would have summed with theirs."""

    def add_up(self, figures: Tensor) -> Tensor:
        self.added_up.append(figures.nbytes)
        return figures


def _count(subject: Experiment, batch: tuple[Tensor, Tensor], execute: Execute) -> IterationMemory:
    return count_iteration(
        lambda: subject.training_iteration(*batch),
        subject.network,
        batch,
        optimizer=subject.optimizer,
        carried=subject.carried_by_method,
        execute=execute,
    )


def _costliest(memories: list[IterationMemory]) -> IterationMemory:
    return max(memories, key=lambda memory: memory.peak_bytes)


def traced_as(cell: Cell, device_type: DeviceType) -> Cell:
    """Returns the cell that stands, on the CPU, for an iteration of `cell` on `device_type`."""
    recipe = cell.recipe
    train = recipe.train.model_copy(update={"precision": recipe.train.precision_on(device_type)})
    # Neither a compiler nor a graph of kernels can be made from fake tensors; the operations are the same.
    native = recipe.native.model_copy(update={"compile": False, "cuda_graph": False, "graphs": "never"})
    return replace(cell, recipe=recipe.model_copy(update={"train": train, "native": native}))


def _prepare(cell: Cell, device_type: DeviceType) -> Experiment:
    cell = traced_as(cell, device_type)
    recipe, train = cell.recipe, cell.recipe.train
    ranks = _Unconnected(0, train.devices, connected=False)
    subject = assemble(cell, torch.device("cpu"), make_backend(cell), ranks)
    subject.scaler = torch.amp.GradScaler("cpu", enabled=False)
    subject.network.train()
    subject.optimizer = build_optimizer(recipe, subject.network, fused=device_type == "cuda")
    if device_type == "cuda" and train.precision in ("fp16", "bf16"):
        for module in subject.network.modules():
            if isinstance(module, nn.GroupNorm):
                module.register_forward_pre_hook(_in_float32)
    return subject


def _in_float32(norm: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Cast the input to float32, as autocast does for group norm on CUDA, but not on the CPU."""
    return (args[0].float(), *args[1:])


def _warm_up(subject: Experiment, method: str, x: Tensor, labels: Tensor) -> None:
    """Reach the steady state: the optimiser creates its state, and a backend may learn what repeats.

    Two time steps of SLTT suffice for both, or of BPTT if units are recomputed, since only BPTT shows their
    sizes. If each step has its own parameters or a layer sees all steps, the method itself runs at all T (if
    it chooses steps, SLTT instead).
    """
    if any(isinstance(module, PerStep | OverTime) for module in subject.network.modules()):
        steps = subject.timesteps
        chooses = isinstance(subject.method, methods.ChoosesSteps)
        first = replace(subject, method=methods.create("sltt", steps)) if chooses else subject
    else:
        steps = min(2, subject.timesteps)
        driver = methods.create(method, steps)
        first = replace(subject, method=driver, timesteps=steps, window=None, average="losses")
    first.training_iteration(x[:, :steps] if subject.temporal else x, labels)
    if isinstance(subject.method, methods.CarriesOver):  # it makes what it carries
        subject.training_iteration(x, labels)
