"""Before a run: the estimated peak of every cell, and whether it fits into the device's free memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from sltt_bench.format import format_bytes
from sltt_bench.plan import Cell
from sltt_bench.runner import computed


@dataclass(frozen=True)
class Preflight:
    """What is estimated of a run before it starts."""

    peak_bytes: Mapping[str, int] = field(default_factory=dict)
    """cell_id → peak of live tensors; none where the estimate failed."""
    free_bytes: int | None = None
    """Memory free on the device now."""

    def too_large(self, cell: Cell) -> str | None:
        """Why the cell cannot fit, or None. Live tensors alone: an allocator needs more than they do."""
        peak = self.peak_bytes.get(cell.cell_id)
        if peak is None or self.free_bytes is None or peak <= self.free_bytes:
            return None
        return (
            f"its live tensors alone are estimated at {format_bytes(peak)}, "
            f"but {format_bytes(self.free_bytes)} are free"
        )


def preflight(cells: Sequence[Cell]) -> Preflight:
    """The estimates of cells that share one device."""
    outcomes = computed([replace(cell, kind="preflight") for cell in cells])
    known = {
        cell.cell_id: outcome.facts
        for cell, outcome in zip(cells, outcomes, strict=True)
        if outcome.status == "ok"
    }
    return Preflight(
        {cell_id: int(facts["peak_tensor_bytes"]) for cell_id, facts in known.items()},
        next((int(facts["free_bytes"]) for facts in known.values()), None),
    )
