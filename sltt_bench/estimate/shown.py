"""Estimates on the terminal: memory by cause, multiplications, and what fits.

What is the same in all rows of a recipe stands in the title, so that the tables fit 80 columns.
"""

from collections.abc import Callable, Mapping, Sequence

from rich import box
from rich.table import Table

from sltt_bench.estimate.estimates import Estimate
from sltt_bench.format import format_bytes, format_count, format_seconds
from sltt_bench.measure.tensor_bytes import Cause

Baseline = Callable[[Estimate], Estimate | None]
"""An estimate → the one that its ratios refer to."""

Columns = Mapping[str, Callable[[Estimate], str]]
"""Heading → text of a cell."""

_WHICH: Columns = {
    "method": lambda e: e.cell.method,
    "backend": lambda e: e.cell.backend,
    "precision": lambda e: e.precision,
    "T": lambda e: str(e.cell.recipe.timesteps),
    "batch": lambda e: str(e.cell.recipe.train.batch_size),
}
"""What tells the cells of a recipe apart."""


def tables(
    estimates: Sequence[Estimate], baseline: str, baseline_of: Baseline, gpu: str | None
) -> list[Table]:
    """The tables of one recipe; ratios are to the method `baseline`."""
    name = estimates[0].cell.recipe.name
    shown = [
        _table(f"{name}: peak of live tensors, estimated", estimates, _memory(baseline, baseline_of)),
        _table(
            f"{name}: multiplications of one iteration, estimated",
            estimates,
            _work(baseline, baseline_of, gpu),
        ),
    ]
    limits = estimates[0].limits
    if limits is not None:
        title = f"{name}: what fits into {format_bytes(limits.memory_bytes)}, estimated"
        shown.append(_table(title, estimates, _LIMITS))
    return shown


def _table(title: str, estimates: Sequence[Estimate], columns: Columns) -> Table:
    varying, fixed = {}, []
    for heading, text in _WHICH.items():
        values = {text(e) for e in estimates}
        if heading == "method" or len(values) > 1:
            varying[heading] = text
        else:
            fixed.append(f"{heading} {values.pop()}")
    table = Table(
        title=f"{title}\n{', '.join(fixed)}", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for heading in (*varying, *columns):
        table.add_column(
            heading, justify="left" if heading in ("method", "backend") else "right", overflow="fold"
        )
    for e in estimates:
        table.add_row(*(text(e) for text in (*varying.values(), *columns.values())))
    return table


def _memory(baseline: str, baseline_of: Baseline) -> Columns:
    def held(*causes: Cause) -> Callable[[Estimate], str]:
        return lambda e: format_bytes(sum(e.peak_by_cause[cause] for cause in causes))

    return {
        "peak": lambda e: format_bytes(e.peak_bytes),
        f"÷ {baseline}": lambda e: _ratio(e, baseline_of, lambda e: e.peak_bytes),
        "weights": held(Cause.PARAMETERS, Cause.OPTIMIZER_STATE, Cause.GRADIENTS),
        "activations": held(Cause.ACTIVATIONS),
        "neurons": held(Cause.NEURON_STATE),
        "other": held(Cause.TEMPORARIES, Cause.INPUTS),
    }


def _work(baseline: str, baseline_of: Baseline, gpu: str | None) -> Columns:
    columns: dict[str, Callable[[Estimate], str]] = {
        "forward": lambda e: format_count(e.work("forward_spatial") + e.work("forward_temporal")),
        "backward in space": lambda e: format_count(e.work("backward_spatial")),
        "in time": lambda e: format_count(e.work("backward_temporal")),
        "all": lambda e: format_count(e.work("total")),
        f"÷ {baseline}": lambda e: _ratio(e, baseline_of, lambda e: e.work("total")),
        "an epoch": lambda e: format_count(e.epoch_multiplications),
    }
    if gpu is not None:
        columns[f"{gpu}, at least"] = lambda e: format_seconds(e.time_lower_bound_s)
    return columns


_LIMITS: Columns = {
    "largest batch at this T": lambda e: "–" if e.limits is None else str(e.limits.largest_batch_size),
    "largest T at this batch": lambda e: _longest(e),
}


def _longest(estimate: Estimate) -> str:
    if estimate.limits is None:
        return "–"
    longest = estimate.limits.largest_timesteps
    return "no limit met" if longest is None else str(longest)


def _ratio(estimate: Estimate, baseline_of: Baseline, value: Callable[[Estimate], int]) -> str:
    other = baseline_of(estimate)
    return "–" if other is None or value(other) == 0 else f"{value(estimate) / value(other):.3f}"
