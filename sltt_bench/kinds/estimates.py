"""Runs cells that are computed on fake tensors: a whole estimate, or only the memory before a run."""

from typing import TYPE_CHECKING, Any

import psutil
import torch

from sltt_bench.common.memory_limit import memory_limit
from sltt_bench.estimate.estimates import Estimate, estimate_cell, iterations_per_epoch
from sltt_bench.estimate.gpus import GPU
from sltt_bench.estimate.trace import DeviceType, trace_memory
from sltt_bench.kinds import Job
from sltt_bench.measure.tensor_bytes import Cause
from sltt_bench.planning.plan import Cell
from sltt_bench.results.schema import ESTIMATES_FILE

if TYPE_CHECKING:
    from sltt_bench.running.worker import Reporter

CAUSE_COLUMNS: dict[Cause, str] = {
    Cause.PARAMETERS: "parameter_bytes",
    Cause.OPTIMIZER_STATE: "optimizer_state_bytes",
    Cause.INPUTS: "input_bytes",
    Cause.GRADIENTS: "gradient_bytes",
    Cause.NEURON_STATE: "neuron_state_bytes",
    Cause.ACTIVATIONS: "activation_bytes",
    Cause.TEMPORARIES: "temporary_bytes",
}
_PARTS = ("forward_spatial", "forward_temporal", "backward_spatial", "backward_temporal")


def estimate_iteration(cell: Cell, job: Job, reporter: "Reporter") -> None:
    """Report memory by cause, work and, if the cell's options ask for them, limits and a time bound."""
    gpu, memory_bytes = cell.options.get("gpu"), cell.options.get("memory_bytes")
    estimate = estimate_cell(
        cell,
        "cpu" if cell.device == "cpu" else "cuda",
        gpu=None if gpu is None else GPU.model_validate(gpu["data_sheet"]),
        memory_bytes=memory_bytes,
    )
    reporter.facts(device=estimate.device_type, device_name="fake tensors")
    reporter.facts(precision=estimate.trace.precision, parameters=estimate.trace.parameters)
    reporter.row(ESTIMATES_FILE, {**figures(estimate), "gpu": None if gpu is None else gpu["name"]})


def estimate_memory(cell: Cell, job: Job, reporter: "Reporter") -> None:
    """Report the peak bytes of the cell's live tensors, and the bytes that are free on its device now."""
    free_bytes, device_type = free_memory(cell.device)
    peak = trace_memory(cell, device_type).peak_bytes
    reporter.facts(peak_tensor_bytes=peak, free_bytes=free_bytes)


def figures(estimate: Estimate) -> dict[str, Any]:
    """Returns the columns of estimates.csv, except those of the cell's key."""
    trace = estimate.trace
    return {
        "run_cell_id": estimate.run_cell.cell_id,
        "parameters": trace.parameters,
        "peak_tensor_bytes": trace.memory.peak_bytes,
        **{column: trace.memory.peak_by_cause[cause] for cause, column in CAUSE_COLUMNS.items()},
        **{f"{part}_multiplications": estimate.work(part) for part in _PARTS},
        "forward_multiply_adds": estimate.multiply_adds("forward"),
        "backward_multiply_adds": estimate.multiply_adds("backward"),
        "iterations_per_epoch": iterations_per_epoch(estimate.cell),
        "ranks": estimate.cell.recipe.train.devices,
        "exchanged_bytes": estimate.exchanged_bytes,
        "epoch_multiplications": estimate.epoch_multiplications,
        "epoch_lower_bound_s": estimate.time_lower_bound_s,
        **estimate.limits,
    }


def free_memory(device: str) -> tuple[int, DeviceType]:
    """Returns (free bytes, device type) of the device that a cell asks for."""
    if device == "cpu" or not torch.cuda.is_available():
        # A container or batch job may allow less than the machine has free.
        available, limit = psutil.virtual_memory().available, memory_limit()
        return available if limit is None else min(available, limit), "cpu"
    index = torch.device(device).index if device.startswith("cuda") else 0
    return torch.cuda.mem_get_info(index or 0)[0], "cuda"
