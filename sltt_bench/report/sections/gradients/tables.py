"""Tables of a family of analyses."""

from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Any

import numpy as np

from sltt_bench.common.format import significant
from sltt_bench.report.document import Column, Heading, Table, TableCell, table_of
from sltt_bench.report.sections.cells import EMPTY, percent_cell
from sltt_bench.report.sections.gradients.families import MOMENT, POINT, GradientFamily
from sltt_bench.report.sections.gradients.words import COSINE, WORDS, cosine_text

_ROUNDING = 1e-6
"""What float32 gradients cannot tell from 0."""


def overview(family: GradientFamily, name: str) -> Table:
    """A row for each point of the grid, at the last epoch that was looked at."""
    notes = [
        f"Mean over {family.mean_over}; ± standard deviation over {family.spread_over}.",
        f"{family.when[0].upper()}{family.when[1:]}.",
        *(f"{failure}." for failure in family.failures),
    ]
    title, rows = "Full and spatial gradient", family.last(family.gradients, "network").to_dict("records")
    return table_of(f"{name}-points", title, _columns_of_points(family), rows, notes)


def further_tables(family: GradientFamily, name: str) -> Iterator[Table]:
    """What was compared and counted beside, and the points at every epoch, as far as there is any of it."""
    if not family.rules.empty:
        yield rules_table(family, name)
        yield rules_by_layer(family, name)
    if not family.operations.empty:
        yield _operations(family, name)
    if len(family.epochs) > 1:
        yield _every_epoch(family, name)


def _every_epoch(family: GradientFamily, name: str) -> Table:
    rows = family.gradients[family.gradients["level"] == "network"].to_dict("records")
    title = "At every analysed epoch"
    return table_of(f"{name}-epochs", title, _columns_of_points(family), rows, secondary=True)


def _columns_of_points(family: GradientFamily) -> list[Column[Any]]:
    fields = [*family.varied(keep=("timesteps", "tau")), *["epoch"] * (len(family.epochs) > 1)]
    columns = [
        *map(_field_column, fields),
        _measured_column(COSINE, "cosine", cosine_text),
        _measured_column("‖g_s‖ / ‖g‖", "spatial_share"),
        _measured_column("‖g − g_s‖ / ‖g‖", "temporal_share"),
        _LOWEST_LAYER,
    ]
    if family.accuracy:
        top1, moment = family.accuracy, itemgetter(*MOMENT)
        columns.append((Heading("test top-1", "%"), lambda row: percent_cell(top1.get(moment(row)))))
    return columns


def _field_column(field: str) -> Column[Any]:
    """A column of the rows as it stands."""
    numeric = field in ("timesteps", "tau", "epoch")

    def cell(row: Any) -> TableCell:
        return TableCell(f"{row[field]:g}" if numeric else str(row[field]), value=row[field])

    return Heading(WORDS[field], numeric=numeric), cell


def _measured_column(heading: str, quantity: str, text: Callable[[float], str] = significant) -> Column[Any]:
    """Means with their standard deviations."""

    def cell(row: Any) -> TableCell:
        mean, std = row[f"{quantity}_mean"], row[f"{quantity}_std"]
        if not np.isfinite(mean):
            return EMPTY
        shown = np.isfinite(std) and std > _ROUNDING
        return TableCell(text(mean), f"± {significant(std, 1)}" if shown else "", mean)

    return Heading(heading), cell


def _lowest_layer_cell(row: Any) -> TableCell:
    cosine = row["lowest_cosine"]
    if np.isnan(cosine):
        return EMPTY
    return TableCell(cosine_text(cosine), row["lowest_layer"] if cosine < 1 - _ROUNDING else "", cosine)


_LOWEST_LAYER = (Heading("lowest layer", numeric=False), _lowest_layer_cell)


def rules_table(family: GradientFamily, name: str) -> Table:
    """Each rule's gradient over all weights beside BPTT's, the nearest first, at the last epoch."""
    network = family.last(family.rules, "network").sort_values("cosine_mean", ascending=False, kind="stable")
    mean = f"mean over {family.mean_over}, ± standard deviation over {family.spread_over}"
    note = f"{family.when[0].upper()}{family.when[1:]}; {mean}. Empty where a gradient was 0."
    columns, title = [*_rule_columns(family), _LOWEST_LAYER], "Each rule's gradient beside BPTT's"
    return table_of(f"{name}-rules", title, columns, network.to_dict("records"), [note])


def rules_by_layer(family: GradientFamily, name: str) -> Table:
    """The same of each layer's weights."""
    rows = family.last(family.rules, "layer").sort_values(["compared_method", "depth"], kind="stable")
    title = "Each rule's gradient beside BPTT's, layer by layer"
    columns = [*_rule_columns(family), _field_column("name")]
    return table_of(f"{name}-rules-layers", title, columns, rows.to_dict("records"), secondary=True)


def _rule_columns(family: GradientFamily) -> list[Column[Any]]:
    """What every table of rules begins with."""
    return [
        *map(_field_column, [*family.varied(), "compared_method"]),
        _measured_column("cosine with BPTT", "cosine", cosine_text),
        _measured_column("norm ÷ BPTT", "norm_ratio"),
    ]


def _operations(family: GradientFamily, name: str) -> Table:
    fields = [field for field in POINT if field in family.operations]
    columns = [
        *map(_field_column, [*fields, "counted_method"]),
        _count_column("forward", "forward_multiplications"),
        _count_column("backward in space", "spatial_multiplications"),
        _count_column("backward through time", "temporal_multiplications"),
        (Heading("share of the backward pass", "%"), _share_through_time),
    ]
    rows = family.operations.sort_values(fields, kind="stable").to_dict("records")
    note = (
        "Multiplications for one sample and all T steps, counted as an iteration runs on the backend "
        "`reference`: matrix products, convolutions and elementwise products; normalisation is not counted. Through time: the "
        "multiplications of the backward pass beyond SLTT's; for rules other than BPTT, traces and recomputation as well."
    )
    title = "Multiplications, counted"
    return table_of(f"{name}-operations", title, columns, rows, [note], secondary=True)


def _count_column(heading: str, field: str) -> Column[Any]:
    def cell(row: Any) -> TableCell:
        per_sample = row[field] / row["samples"]
        return TableCell(significant(per_sample, 4), value=per_sample)

    return Heading(heading), cell


def _share_through_time(row: Any) -> TableCell:
    temporal = row["temporal_multiplications"]
    backward = row["spatial_multiplications"] + temporal  # 0: a rule that estimates its gradient without one
    return percent_cell(temporal / backward if backward else None)
