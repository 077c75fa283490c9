"""From traced iterations to estimates: memory by cause, spatial and temporal work, per epoch and per layer.

The *temporal* part of a layer's work is what the past costs: its work at all steps, less as many
times its work at a first and only step (T = 1). It arises in layers that carry state alone.
Everything else is *spatial*. Under SLTT the backward pass of feed-forward layers has no temporal
part; under BPTT it has λ and the reset's derivative for every neuron and step but one.
"""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, replace

from sltt_bench.distributed import exchanged_bytes
from sltt_bench.estimate.gpus import GPU, time_lower_bound_s
from sltt_bench.estimate.search import largest_batch_size, largest_timesteps
from sltt_bench.estimate.trace import DeviceType, IterationTrace, trace_iteration
from sltt_bench.measure.operations import Operations, Phase, in_phase
from sltt_bench.plan import Cell


@dataclass(frozen=True)
class LayerWork:
    """The multiplications of one layer in one iteration."""

    layer: str
    """Its name in the network; "(loss)" for what runs outside."""
    forward_spatial: int
    forward_temporal: int
    backward_spatial: int
    backward_temporal: int

    @property
    def total(self) -> int:
        """Forward and backward."""
        return self.forward_spatial + self.forward_temporal + self.backward_spatial + self.backward_temporal


@dataclass(frozen=True)
class Estimate:
    """What one training iteration of a cell needs, and an epoch of them."""

    cell: Cell
    device_type: DeviceType
    trace: IterationTrace
    """What an iteration needs of memory and arithmetic."""
    layers: tuple[LayerWork, ...]
    """In the network's order, one iteration."""
    time_lower_bound_s: float | None
    """Seconds of an epoch that no implementation of these operations on the GPU can be faster than."""
    limits: dict[str, int | None]
    """What fits into the given memory, as columns of estimates.csv; none where none is given."""

    @property
    def run_cell(self) -> Cell:
        """The same cell as one that is run and measured, with the recipe's first seed."""
        return replace(self.cell, kind="run", options={}, seed=self.cell.recipe.seeds[0])

    def work(self, part: str) -> int:
        """Multiplications of one iteration: `part` is a field of LayerWork, or "total"."""
        return sum(int(getattr(layer, part)) for layer in self.layers)

    def multiply_adds(self, phase: Phase) -> int:
        """Of convolutions, linear layers and matrix products alone, one iteration."""
        return in_phase(self.trace.operations.multiply_adds, phase)

    @property
    def exchanged_bytes(self) -> int:
        """Bytes that each of the processes that share a batch sends in an iteration; 0 where there is one."""
        return exchanged_bytes(self.trace.added_up_bytes, self.cell.recipe.train.devices)

    @property
    def epoch_multiplications(self) -> int:
        """All multiplications of an epoch's training, forward and backward."""
        return round(self.work("total") * iterations_per_epoch(self.cell))


def estimate_cell(
    cell: Cell, device_type: DeviceType = "cuda", *, gpu: GPU | None = None, memory_bytes: int | None = None
) -> Estimate:
    """The estimate of one cell. Raises what the cell's network, method or backend raise."""
    trace = trace_iteration(cell, device_type)
    layers = layer_work(trace, first_step(cell, device_type))
    fastest = None
    if gpu is not None:
        fastest = iterations_per_epoch(cell) * time_lower_bound_s(trace.operations.work, gpu)
    limits: dict[str, int | None] = {}
    if memory_bytes is not None:
        limits = {
            "memory_bytes": memory_bytes,
            "largest_batch_size": largest_batch_size(cell, device_type, memory_bytes, trace.memory),
            "largest_timesteps": largest_timesteps(cell, device_type, memory_bytes, trace.memory),
        }
    return Estimate(cell, device_type, trace, layers, fastest, limits)


def iterations_per_epoch(cell: Cell) -> float:
    """Training iterations of an epoch; a last, smaller batch counts by its share of samples."""
    train = cell.recipe.train
    exact = cell.recipe.epoch_samples(synthetic=cell.synthetic) / train.batch_size
    return math.floor(exact) if train.drop_last else exact


# Spatial and temporal ---------------------------------------------------------------------------


def first_step(cell: Cell, device_type: DeviceType) -> IterationTrace:
    """The cell at T = 1, where all methods coincide: what a layer costs without a past."""
    loss = cell.recipe.loss.model_copy(update={"window": None})
    recipe = cell.recipe.model_copy(update={"timesteps": 1, "loss": loss})
    alone = replace(cell, recipe=recipe, method="bptt", seed=0)
    key = (alone.cell_id, recipe.train.devices, device_type)
    if key not in _first_steps:
        _first_steps[key] = trace_iteration(alone, device_type)
    return _first_steps[key]


_first_steps: dict[tuple[str, int, DeviceType], IterationTrace] = {}
"""Shared by all methods and all T of a network."""


def layer_work(trace: IterationTrace, first: IterationTrace) -> tuple[LayerWork, ...]:
    """Each layer's multiplications, with the temporal part told apart by the trace of a first step."""
    by_step, at_one_step = _by_layer(trace.operations), _by_layer(first.operations)
    worked = {layer for _, layer in by_step}
    result = []
    for layer in (*(name for name in trace.layers if name in worked), *sorted(worked - set(trace.layers))):
        stateful = any(f"{layer}.".startswith(f"{name}.") for name in trace.stateful_layers)
        parts: dict[str, int] = {}
        for phase in ("forward", "backward"):
            steps = by_step[phase, layer]
            total = steps.total()
            steps_run = len(steps) * trace.steps_at_once
            spatial = at_one_step[phase, layer].total() * steps_run if stateful else total
            parts[f"{phase}_spatial"] = min(total, spatial)
            parts[f"{phase}_temporal"] = total - min(total, spatial)
        result.append(LayerWork(layer, **parts))
    return tuple(result)


def _by_layer(operations: Operations) -> defaultdict[tuple[str, str], Counter[int]]:
    """(phase, layer) → step → multiplications, steps without any left out."""
    result: defaultdict[tuple[str, str], Counter[int]] = defaultdict(Counter)
    for place, count in operations.multiplications.items():
        if place.phase != "optimizer":
            result[place.phase, place.layer][place.step] = count
    return result
