"""Before a run: the estimated peak of every cell, and whether it fits into the device's free memory.

Done in a process of its own, so that neither the command line nor the measured processes load what
it needs.
"""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from sltt_bench.format import format_bytes
from sltt_bench.plan import Cell, cell_from_dict


@dataclass(frozen=True)
class Preflight:
    """What is known of a run before it starts."""

    free_bytes: int | None
    """Memory free on the device now; None where nobody knows."""
    peak_bytes: dict[str, int] = field(default_factory=dict)
    """cell_id → estimated peak of live tensor bytes."""
    failures: dict[str, str] = field(default_factory=dict)
    """cell_id → why there is no estimate."""

    def too_large(self, cell: Cell) -> str | None:
        """Why the cell cannot fit, or None. Live tensors alone: an allocator needs more than they do."""
        peak = self.peak_bytes.get(cell.cell_id)
        if peak is None or self.free_bytes is None or peak <= self.free_bytes:
            return None
        return f"its live tensors alone are estimated at {format_bytes(peak)}, but {format_bytes(self.free_bytes)} are free"


def preflight(cells: Sequence[Cell]) -> Preflight:
    """The estimates of cells that share one device."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_preflight, [cell.to_dict() for cell in cells]).result()


def _preflight(said: list[dict[str, Any]]) -> Preflight:
    from sltt_bench.measure.traced_iteration import trace_memory

    cells = [cell_from_dict(cell) for cell in said]
    free_bytes, device_type = _free_memory(cells[0].device)
    result = Preflight(free_bytes)
    for cell in cells:
        try:
            result.peak_bytes[cell.cell_id] = trace_memory(cell, device_type).peak_bytes
        except Exception as error:  # whatever a cell's own code raises on fake tensors
            result.failures[cell.cell_id] = " ".join(f"{type(error).__name__}: {error}".split())
    return result


def _free_memory(device: str) -> tuple[int | None, Any]:
    """(free bytes, device type) of the device that a cell asks for."""
    import psutil
    import torch

    if device == "cpu" or not torch.cuda.is_available():
        return psutil.virtual_memory().available, "cpu"
    index = torch.device(device).index if device.startswith("cuda") else 0
    return torch.cuda.mem_get_info(index or 0)[0], "cuda"
