"""Estimates the peak of every cell before a run, and whether it fits into the device's free memory."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from sltt_bench.common.format import counted, format_bytes
from sltt_bench.planning.plan import Cell
from sltt_bench.running.lanes import Place
from sltt_bench.running.runner import computed

PREFLIGHT_LIMIT_S = 60.0
"""Seconds after which a cell's estimate is given up; with thousands of time steps, it would take longer."""


@dataclass(frozen=True)
class Preflight:
    """Estimates for a run before it starts."""

    peak_bytes: Mapping[str, int] = field(default_factory=dict)
    """cell_id → peak of live tensors; without cells whose estimate failed."""
    free_bytes: int | None = None
    """Memory free on the device now."""
    gave_up: frozenset[str] = frozenset()
    """cell_ids whose estimate took too long."""

    def too_large(self, cell: Cell) -> str | None:
        """Returns why the cell cannot fit, or None.

        Only live tensors count; an allocator needs even more.
        """
        peak = self.peak_bytes.get(cell.cell_id)
        if peak is None or self.free_bytes is None or peak <= self.free_bytes:
            return None
        return (
            f"its live tensors alone are estimated at {format_bytes(peak)}, "
            f"but {format_bytes(self.free_bytes)} are free"
        )

    def too_many(self, cells: Sequence[Cell], places: Sequence[Place]) -> str | None:
        """Returns why cells that run at `places` at once, with all their processes, may not fit, or None.

        Counts the device that most of them share, where the largest cells may meet.
        """
        shares = [Counter((place.device, *place.further_devices)) for place in places]
        ((device, at_once),) = Counter(name for share in shares for name in share).most_common(1)
        processes = max(share[device] for share in shares)
        largest = sorted((self.peak_bytes.get(cell.cell_id, 0) for cell in cells), reverse=True)[:at_once]
        total = processes * sum(largest)
        if self.free_bytes is None or total <= self.free_bytes or (at_once == 1 and processes == 1):
            return None
        return (
            f"{len(largest)} of these cells at once{f' on {device}' if device else ''}, "
            f"{counted(processes, 'process')} each: their live tensors alone may take {format_bytes(total)}, but "
            f"{format_bytes(self.free_bytes)} are free; lower --jobs or --nproc-per-cell"
        )


def preflight(cells: Sequence[Cell]) -> Preflight:
    """Returns estimates for cells of one device, each within PREFLIGHT_LIMIT_S. Raises Interrupted."""
    questions = [replace(cell, kind="preflight") for cell in cells]
    outcomes = zip(cells, computed(questions, timeout_s=PREFLIGHT_LIMIT_S), strict=True)
    by_cell = {cell.cell_id: outcome for cell, outcome in outcomes}
    known = {cell_id: outcome.facts for cell_id, outcome in by_cell.items() if outcome.status == "ok"}
    return Preflight(
        {cell_id: int(facts["peak_tensor_bytes"]) for cell_id, facts in known.items()},
        next((int(facts["free_bytes"]) for facts in known.values()), None),
        frozenset(cell_id for cell_id, outcome in by_cell.items() if outcome.status == "timeout"),
    )
