"""The work of `sltt-bench estimate`: cells in, a table out."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from sltt_bench.estimate.estimates import Estimate, Failure, estimate_cells
from sltt_bench.estimate.gpus import find_gpu
from sltt_bench.estimate.table import EstimateTable, in_order
from sltt_bench.measure.traced_iteration import DeviceType
from sltt_bench.plan import Cell

MARGIN = 0.1
"""Share of a memory that is not given to tensors: an allocator's rounding and fragmentation, workspaces."""

WORTH_A_PROCESS = 6
"""Cells from which on more than one process pays, since each loads torch anew; 2 where limits are searched."""


def estimated(cells: Sequence[Cell], device_type: DeviceType) -> list[Cell]:
    """The cells as those of an estimate, under ids of their own."""
    return [replace(cell, kind="estimate", device=device_type) for cell in cells]


def estimate(
    cells: Sequence[Cell],
    *,
    device_type: DeviceType = "cuda",
    gpu: str | None = None,
    gpu_file: Path | None = None,
    memory_bytes: int | None = None,
    margin: float = MARGIN,
    workers: int | None = None,
    on_result: Callable[[Estimate | Failure], None] = lambda result: None,
) -> EstimateTable:
    """The estimates of the cells, in order; a cell that cannot be estimated becomes a failure.

    `device_type` is the device of the run that is estimated: it decides what precision "amp" is.
    `memory_bytes`, less `margin`, is the room into which batch and T are fitted. `workers` processes
    share the cells (None: as many as there are processors, if there are cells enough).
    `on_result` hears of each cell as it is done. Raises GPUError.
    """
    figures = None if gpu is None else find_gpu(gpu, gpu_file)
    room = None if memory_bytes is None else int(memory_bytes * (1 - margin))
    if workers is None:
        worth_it = len(cells) >= (WORTH_A_PROCESS if memory_bytes is None else 2)
        workers = (os.cpu_count() or 1) if worth_it else 1
    results: list[Estimate | Failure] = []
    for result in estimate_cells(
        estimated(cells, device_type),
        device_type=device_type,
        gpu=figures,
        memory_bytes=room,
        workers=workers,
    ):
        results.append(result)
        on_result(result)
    estimates, failures = in_order(results)
    return EstimateTable(estimates, failures, gpu)
