"""Turns traced iterations into estimates: memory by cause, spatial and temporal work, per epoch and layer.

The *temporal* part of a layer's work is the cost of the past: its work at all steps, less the number of
steps times its work at a single step (T = 1). Only layers that carry state have a temporal part.
All other work is *spatial*. Under SLTT, the backward pass of feed-forward layers has no temporal part; under
BPTT, that part is λ and the reset's derivative for every neuron at every step but one.
"""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, replace

from sltt_bench.estimate.gpus import GPU, time_lower_bound_s
from sltt_bench.estimate.search import largest_batch_size, largest_timesteps
from sltt_bench.estimate.trace import DeviceType, IterationTrace, trace_iteration
from sltt_bench.measure.operations import Operations, Phase, in_phase
from sltt_bench.planning.plan import Cell
from sltt_bench.training.distributed import exchanged_bytes


@dataclass(frozen=True)
class LayerWork:
    """The multiplications of one layer in one iteration."""

    layer: str
    """Its name in the network; "(loss)" for operations outside any layer."""
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
    """What one training iteration and one epoch of a cell need."""

    cell: Cell
    device_type: DeviceType
    trace: IterationTrace
    """Memory and arithmetic of one iteration."""
    layers: tuple[LayerWork, ...]
    """In the network's order, one iteration."""
    time_lower_bound_s: float | None
    """Lower bound on the seconds of an epoch, for any implementation of these operations on the GPU."""
    limits: dict[str, int | None]
    """What fits into the given memory, as columns of estimates.csv; empty if no memory is given."""

    @property
    def run_cell(self) -> Cell:
        """The cell of the real run that this estimates, with the recipe's first seed."""
        return replace(self.cell, kind="run", options={}, seed=self.cell.recipe.seeds[0])

    def work(self, part: str) -> int:
        """Returns the multiplications of one iteration; `part` is a field of LayerWork, or "total"."""
        return sum(int(getattr(layer, part)) for layer in self.layers)

    def multiply_adds(self, phase: Phase) -> int:
        """Returns those of convolutions, linear layers and matrix products alone, in one iteration."""
        return in_phase(self.trace.operations.multiply_adds, phase)

    @property
    def exchanged_bytes(self) -> int:
        """Bytes that each process sends in an iteration, if several share a batch; 0 for one process."""
        return exchanged_bytes(self.trace.added_up_bytes, self.cell.recipe.train.devices)

    @property
    def epoch_multiplications(self) -> int:
        """All multiplications of an epoch's training, forward and backward."""
        return round(self.work("total") * iterations_per_epoch(self.cell))


def estimate_cell(
    cell: Cell, device_type: DeviceType = "cuda", *, gpu: GPU | None = None, memory_bytes: int | None = None
) -> Estimate:
    """Returns the estimate of one cell. Raises what the cell's network, method or backend raise."""
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
    """Returns the training iterations of an epoch; a smaller last batch counts by its share of samples."""
    train = cell.recipe.train
    exact = cell.recipe.epoch_samples(synthetic=cell.synthetic) / train.batch_size
    return math.floor(exact) if train.drop_last else exact


# Spatial and temporal ---------------------------------------------------------------------------


def first_step(cell: Cell, device_type: DeviceType) -> IterationTrace:
    """Returns the cell's trace at T = 1, where all methods coincide: what layers cost without a past."""
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
    """Returns each layer's multiplications; the trace of a first step separates the temporal part."""
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
    """Returns (phase, layer) → step → multiplications, without steps that have none."""
    result: defaultdict[tuple[str, str], Counter[int]] = defaultdict(Counter)
    for place, count in operations.multiplications.items():
        if place.phase != "optimizer":
            result[place.phase, place.layer][place.step] = count
    return result
