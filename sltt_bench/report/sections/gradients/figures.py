"""Plots of a family of analyses, and what would make the others."""

from collections.abc import Iterator, Sequence

import pandas as pd

from sltt_bench.report.document import Figure, MissingFigure
from sltt_bench.report.fields import axis_words
from sltt_bench.report.plots.heat_map import HeatMap, draw_heat_maps
from sltt_bench.report.plots.lines import Axis, Line, Panel, draw_lines
from sltt_bench.report.sections.gradients.families import POINT, GradientFamily
from sltt_bench.report.sections.gradients.words import COSINE, WORDS, point_words

_MOST_HEAT_MAPS = 3
_MOST_COURSES = 8
_AXES = {
    "timesteps": axis_words("timesteps"),
    "tau": axis_words("neuron.tau"),
    "epoch": "epochs trained",
    "drawn": "K, steps with a gradient",
}
_EXAMPLES = {"timesteps": "timesteps=1,2,4,8", "tau": "tau=1.1,1.5,2.0,4.0"}


def figures(family: GradientFamily, name: str) -> Iterator[Figure | MissingFigure]:
    """Cosines against T and τ, by layer, over training; SLTT-K against K."""
    yield _against("timesteps", family, name)
    yield _against("tau", family, name)
    yield from _heat_maps(family, name)
    yield _course(family, name)
    yield from _draws(family, name)


def _against(field: str, family: GradientFamily, name: str) -> Figure | MissingFigure:
    """The figure of cosine against T or τ."""
    title = f"Cosine against {WORDS[field]}"
    drawn = _along(field, family.last(family.gradients, "network"))
    if drawn.empty:
        command = f"sltt-bench analyze gradients {family.recipe} --over {_EXAMPLES[field]}"
        return MissingFigure(title, f"only one {WORDS[field]} was analysed", command)
    caption = (
        f"{COSINE} {family.when}. {_fixed_words(family, drawn, but=(field,))}Mean over "
        f"{family.mean_over}, bars one standard deviation over {family.spread_over}; dotted: no temporal part."
    )
    panels = [_panel("Whole network", drawn, field)]
    lowest = family.lowest_layer
    if lowest is not None:
        layers = family.last(family.gradients, "layer")
        panels.append(_panel(f"Layer {lowest}", _along(field, layers[layers["name"] == lowest]), field))
    return Figure(f"{name}-{field}", title, caption, draw_lines, lambda: tuple(panels))


def _along(field: str, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of points that have a sibling: one that differs from it in this field alone."""
    others = [other for other in POINT if other != field]
    return rows[rows.groupby(others)[field].transform("nunique") > 1]


_AGREEMENT = ((1.0, ""),)
"""Marked in plots of cosines: no temporal part."""
_OF_COSINES = Axis(COSINE, within=(-1.0, 1.0))


def _panel(
    title: str,
    rows: pd.DataFrame,
    x: str,
    quantity: str = "cosine",
    y_axis: Axis = _OF_COSINES,
    levels: tuple[tuple[float, str], ...] = _AGREEMENT,
) -> Panel:
    """A line for each point of the grid but for what the x axis shows; points without a value are left out."""
    others = [field for field in POINT if field != x]
    differing = [field for field in others if rows[field].nunique() > 1]
    lines = []
    for _, members in rows.dropna(subset=[f"{quantity}_mean"]).groupby(others, sort=True):
        columns = members.sort_values(x)[[x, f"{quantity}_mean", f"{quantity}_std"]]
        xs, ys, spreads = columns.astype(float).to_numpy().T.tolist()
        around = [_around(y, spread, y_axis=y_axis) for y, spread in zip(ys, spreads, strict=True)]
        lines.append(Line(point_words(members.iloc[0], differing), xs, ys, around))
    ticks = tuple(sorted({x for line in lines for x in line.xs}))
    return Panel(title, Axis(_AXES[x], at=ticks), y_axis, tuple(lines), levels)


def _around(mean: float, deviation: float, *, y_axis: Axis) -> tuple[float, float]:
    """The ends of a bar. On a logarithmic axis it is as long to both sides, so that it never reaches 0."""
    high = mean + deviation
    return (mean**2 / high if high else mean, high) if y_axis.logarithmic else (mean - deviation, high)


def _heat_maps(family: GradientFamily, name: str) -> Iterator[Figure]:
    others = [field for field in POINT if field != "timesteps"]
    drawn = _along("timesteps", family.last(family.gradients, "layer"))
    if drawn.empty:
        return
    groups = list(drawn.groupby(others, sort=True))
    if len(groups) > _MOST_HEAT_MAPS:
        groups = [groups[0], groups[len(groups) // 2], groups[-1]]
    differing = [field for field in others if drawn[field].nunique() > 1] or ["tau"]
    maps = tuple(_heat_map(rows, point_words(rows.iloc[0], differing)) for _, rows in groups)
    caption = (
        f"{COSINE} of each layer, the input's end on top, {family.when}. "
        f"{_fixed_words(family, drawn, but=('timesteps', *differing))}Mean over {family.mean_over}; "
        "blank: the layer's gradient is 0."
    )
    yield Figure(f"{name}-layers", "Cosine by layer and T", caption, draw_heat_maps, lambda: maps)


def _heat_map(rows: pd.DataFrame, title: str) -> HeatMap:
    table = rows.pivot_table(
        index=["depth", "name"], columns="timesteps", values="cosine_mean", dropna=False, sort=True
    )
    table = table.dropna(how="all")
    layers = tuple(str(name) or "(top level)" for name in table.index.get_level_values("name"))
    steps = tuple(str(int(steps)) for steps in table.columns)
    return HeatMap(title, layers, steps, table.to_numpy(dtype=float), _AXES["timesteps"], COSINE, largest=1.0)


def _course(family: GradientFamily, name: str) -> Figure | MissingFigure:
    title = "Cosine over training"
    if len(family.epochs) < 2:
        command = f"sltt-bench analyze gradients {family.recipe} --epochs 0,1,5,last"
        return MissingFigure(title, "only one epoch was analysed", command)
    rows, only = family.gradients, ""
    if len(rows[POINT].drop_duplicates()) > _MOST_COURSES:
        longest = family.values("timesteps")[-1]
        rows, only = rows[rows["timesteps"] == longest], f", at T = {longest:g}"
    panels = []
    for level, part, words in (("network", "", "Whole network"), ("layer", family.lowest_layer, "Layer")):
        if part is not None:
            own = rows[(rows["level"] == level) & (rows["name"] == part)]
            panels.append(_panel(f"{words} {part}".strip(), own, "epoch"))
    caption = (
        f"{COSINE} while the network is trained with {family.method}{only}. {_fixed_words(family, rows)}"
        f"Mean over {family.mean_over}, the same training batches at every epoch, bars one "
        f"standard deviation over {family.spread_over}."
    )
    return Figure(f"{name}-course", title, caption, draw_lines, lambda: tuple(panels))


def _draws(family: GradientFamily, name: str) -> Iterator[Figure]:
    steps = family.values("timesteps")[-1]
    rows = family.draws
    if rows.empty or steps < 2:
        return
    rows = rows[(rows["timesteps"] == steps) & (rows["epoch"] == family.epochs[-1])]
    squares = Axis("E‖(T/K)G − g_s‖² / ‖g_s‖²", logarithmic=True)
    below = rows[rows["drawn"] < steps]
    panels = (
        _panel("Relative variance", below, "drawn", "relative_variance", squares, ()),
        _panel(
            "Agreement with SLTT", rows, "drawn", "cosine_to_sltt", Axis("cosine(G, g_s)", within=(-1.0, 1.0))
        ),
    )
    if not all(panel.lines for panel in panels):
        return
    caption = (
        f"SLTT-K's gradient G, the sum over K of T = {steps:g} steps drawn without replacement, against SLTT's "
        f"g_s, {family.when}. Left: the closed form, bars the mean times and divided by (1 + standard deviation over "
        f"batches ÷ mean); K = T has variance 0. Right: mean over the draws that have a gradient, bars one standard deviation over them. "
        f"{_fixed_words(family, rows, but=('timesteps',))}"
    )
    yield Figure(f"{name}-draws", "SLTT-K against K", caption, draw_lines, lambda: panels)


def _fixed_words(family: GradientFamily, drawn: pd.DataFrame, but: Sequence[str] = ()) -> str:
    """What was held fixed among the rows that are drawn, as a sentence for a caption."""
    fixed = [field for field in POINT if field not in but and drawn[field].nunique() == 1]
    words = [point_words(drawn.iloc[0], [field]) for field in fixed]
    return f"Held fixed: {', '.join([*words, *family.conditions])}. "
