"""Plots: what is drawn (values, labels, units), and that nothing overlaps at the shipped sizes."""

import json
import math
import re
import struct
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path
from pkgutil import resolve_name
from statistics import geometric_mean
from typing import Any

import matplotlib
import numpy as np
import pytest
from checkout import RESULTS
from colour_vision import contrast, difference
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure as Drawing
from matplotlib.text import Text
from result_builder import MIB, RECIPE, HandmadeRun, varied

from sltt_bench.common.format import Scale
from sltt_bench.methods import labels
from sltt_bench.report import SECTIONS
from sltt_bench.report.assemble import assemble
from sltt_bench.report.document import Context, Figure, MissingFigure, Table, Width
from sltt_bench.report.fields import axis_words
from sltt_bench.report.grouping import make_groups
from sltt_bench.report.groups import rule_and_number
from sltt_bench.report.plots import style
from sltt_bench.report.plots.bars import Bar, BarPanel, draw_bars
from sltt_bench.report.plots.heat_map import HeatMap, draw_heat_maps
from sltt_bench.report.plots.lines import Axis, Line, Panel, draw_lines
from sltt_bench.report.plots.studies import Drawn, StudyLine, draw_study
from sltt_bench.report.render import html
from sltt_bench.report.sections.gradients.figures import _around
from sltt_bench.report.sections.runs.curves import curve_panels, curves
from sltt_bench.report.sections.runs.section import runs
from sltt_bench.report.statistics import Stat
from sltt_bench.report.targets import to_target
from sltt_bench.results.reader import read_results

METHODS = {
    "bptt": (4.0, 100, 0.95),
    "sltt": (2.0, 25, 0.94),
    "sltt-k4": (1.5, 24, 0.9),
    "sltt-k1": (1.0, 24, 0.8),
}
"""Method → seconds of a warm epoch, MiB, last accuracy."""


def fill(
    run: HandmadeRun, recipe: dict[str, Any] = RECIPE, *, lost: tuple[str, ...] = (), **how: Any
) -> None:
    for method, (seconds, mib, last) in METHODS.items():
        for seed in (0, 1, 2):
            if method in lost:
                run.cell(method, seed, recipe=recipe, status="oom", reason="no memory", **how)
            else:
                run.cell(
                    method, seed, recipe=recipe, train_s=[9.0, seconds, seconds + 0.2 * seed],
                    top1=[0.1, last - 0.1, last - 0.01 * seed], peak_tensor_bytes=mib * MIB,
                    peak_rss_bytes=(200 + mib) * MIB, **how,
                )  # fmt: skip


def figures(folder: Path) -> dict[str, Figure]:
    sections = runs(Context(read_results([folder]), "bptt")).sections
    return {
        block.name.removeprefix("digits-T6-b64-fp32-reference-"): block
        for section in sections
        for block in section.blocks
        if isinstance(block, Figure)
    }


def missing(folder: Path) -> dict[str, MissingFigure]:
    sections = runs(Context(read_results([folder]), "bptt")).sections
    return {b.title: b for section in sections for b in section.blocks if isinstance(b, MissingFigure)}


def drawn(figure: Figure, width: Width = "double") -> Drawing:
    with style.applied():
        drawing = figure.draw(width)
        FigureCanvasAgg(drawing)
        drawing.draw_without_rendering()
    return drawing


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CPU run, a T sweep in which bptt runs out of memory, a batch sweep, and a GPU run with a timeline."""
    top = tmp_path_factory.mktemp("plots")
    fill(HandmadeRun(top / "run"))
    sweep = HandmadeRun(top / "sweep", number=500)
    for steps in (1, 2, 4, 8):
        lost = ("bptt",) if steps == 8 else ()
        fill(sweep, varied(RECIPE, timesteps=steps), lost=lost, overrides={"timesteps": steps})
    for batch in (32, 128):
        fill(sweep, varied(RECIPE, train__batch_size=batch), overrides={"train.batch_size": batch})
    gpu = HandmadeRun(top / "gpu", device="cuda:0", device_name="Example GPU", number=900)
    cell_id = gpu.cell("sltt", peak_allocated_bytes=50 * MIB)
    gpu.timeline(
        cell_id,
        [
            {"elapsed_s": t / 10, "phase": "train", "nvml_used_bytes": t * MIB, "nvml_scope": "process",
             "power_w": 300.0}
            for t in range(100)
        ],
    )  # fmt: skip
    return top


@pytest.fixture(scope="module")
def all_figures(everything: Path) -> dict[str, Figure]:
    return figures(everything)


NAMES = (
    "methods",
    "accuracy",
    "tradeoff",
    "pairs",
    "k",
    "2-timeline",
    "digits-sweep-timesteps",
    "digits-sweep-train-batch_size",
    "digits-curves-1",
)


def test_the_wanted_plots_are_drawn(all_figures: dict[str, Figure]) -> None:
    assert set(NAMES) <= set(all_figures)


def test_a_sweep_says_what_tells_it_from_another_sweep_of_the_same_field(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path)
    for tau in (1.1, 2.0):
        for lr in (0.1, 0.2):
            run.cell(
                "bptt", recipe=varied(RECIPE, neuron__tau=tau, train__lr=lr), top1=[0.4, 0.5, 0.6],
                overrides={"neuron.tau": tau, "train.lr": lr},
            )  # fmt: skip
    panels = drawn(figures(tmp_path)["digits-sweep-train-lr"]).axes
    assert [axes._left_title.get_text() for axes in panels] == ["neuron.tau = 1.1", "neuron.tau = 2.0"]


@pytest.mark.parametrize("tasks", [2, 3])
def test_sweeps_on_several_tasks_are_told_apart_by_the_tasks_names(tmp_path: Path, tasks: int) -> None:
    """Not by the dozens of fields in which the tasks differ, whose names ran over each other."""
    run = HandmadeRun(tmp_path)
    for number in range(tasks):
        for tau in (1.1, 2.0):
            differs = {
                "description": f"task {number}",
                "data__limit": 100 + number,
                "train__momentum": number / 10,
            }
            run.cell(
                "bptt", recipe=varied(RECIPE, neuron__tau=tau, **differs), top1=[0.4, 0.5, 0.6],
                overrides={"extends": f"_task-of-a-long-name-{number}", "neuron.tau": tau},
            )  # fmt: skip
    drawing = drawn(figures(tmp_path)["digits-sweep-neuron-tau"])
    titles = [axes._left_title.get_text() for axes in drawing.axes]
    assert sorted(titles) == [f"task-of-a-long-name-{number}" for number in range(tasks)]
    assert_legible(drawing)


def test_small_multiples_of_a_study_name_the_task_and_every_value_of_what_differs(tmp_path: Path) -> None:
    """They said "extends = _digits-saccade", and nothing of the time constant that is the recipe's own."""
    run = HandmadeRun(tmp_path)
    for task in ("_digits", "_digits-saccade"):
        for tau in (1.1, 2.0, 20.0):
            overrides = {"extends": task, **({"neuron.tau": tau} if tau != 1.1 else {})}
            recipe = varied(RECIPE, neuron__tau=tau, train__momentum=0.1 * len(task))
            run.cell("bptt", recipe=recipe, top1=[0.4, 0.5, 0.6], overrides=overrides)
    drawing = drawn(figures(tmp_path)["digits-curves-1"])
    titles = {axes._left_title.get_text().replace("\n", " ") for axes in drawing.axes}
    assert titles == {
        f"task {task}, neuron.tau = {tau}"
        for task in ("digits", "digits-saccade")
        for tau in (1.1, 2.0, 20.0)
    }
    assert not any(
        line.endswith("-") for axes in drawing.axes for line in axes._left_title.get_text().split("\n")
    )


def test_lines_of_one_rule_stand_in_the_order_of_its_numbers_and_look_alike_in_every_panel(
    tmp_path: Path,
) -> None:
    """What ran in a later panel alone stood after all others, and a line's width was by its place in its panel."""
    run = HandmadeRun(tmp_path)
    for tau, methods in {1.1: ("bptt-d0", "bptt-d1"), 2.0: ("bptt-d0", "bptt-d0.5", "bptt-d1")}.items():
        for delay in (1, 2):
            for method in methods:
                run.cell(
                    method, recipe=varied(RECIPE, neuron__tau=tau, data__delay=delay), top1=[0.4, 0.5, 0.6],
                    overrides={"neuron.tau": tau, "data.delay": delay},
                )  # fmt: skip
    drawing = drawn(figures(tmp_path)["digits-sweep-data-delay"])
    (legend,) = drawing.legends
    assert [text.get_text() for text in legend.get_texts()] == ["bptt-d0", "bptt-d0.5", "bptt-d1"]
    widths = {line_of(axes, "bptt-d1").get_linewidth() for axes in drawing.axes}
    assert len(widths) == 1


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_title_longer_than_its_panel_is_wrapped_and_cut(count: int) -> None:
    line = Line("", (1.0, 2.0), (1.0, 2.0), method="bptt")
    title = ", ".join(f"some.field_{number} = {number}" for number in range(9))
    panels = [Panel(title, Axis("x"), Axis("y [s]"), (line,))] * count
    with style.applied():
        drawing = draw_lines(panels, "double")
        FigureCanvasAgg(drawing).draw()
    assert_legible(drawing)
    assert all(axes._left_title.get_text().endswith("…") for axes in drawing.axes)


def test_every_group_of_a_grid_is_named_by_its_values_also_the_recipes_own(tmp_path: Path) -> None:
    """Beside "neuron.tau = 2.0" the recipe's own 1.1 had no name, and the panels stood in the order of hashes."""
    run = HandmadeRun(tmp_path)
    for tau in (1.1, 20.0, 1.5, 1.25):
        for recurrent in (False, True):
            overrides = {"neuron.tau": tau} if tau != 1.1 else {}
            overrides |= {"model.recurrent": True} if recurrent else {}
            recipe = varied(RECIPE, neuron__tau=tau) | {"model": {"name": "mlp", "recurrent": recurrent}}
            run.cell("bptt", recipe=recipe, top1=[0.4, 0.5, 0.6], overrides=overrides)
    sections = runs(Context(read_results([tmp_path]), "bptt")).sections
    titles = [
        f"model.recurrent = {recurrent}, neuron.tau = {tau}"
        for recurrent in ("false", "true")
        for tau in ("1.1", "1.25", "1.5", "20.0")
    ]
    assert next(section.title for section in sections if section.title in titles) == titles[0]
    assert {section.title for section in sections} >= {*titles}
    panels = drawn(figures(tmp_path)["digits-curves-1"]).axes
    assert [axes._left_title.get_text().replace("\n", " ") for axes in panels] == titles[1:]


def test_panels_of_one_quantity_have_one_scale(tmp_path: Path) -> None:
    """Where all methods are at 100 % the axis began at 95, beside one from 20."""
    run = HandmadeRun(tmp_path)
    for noise, last in ((0.0, 1.0), (0.5, 0.25)):
        for delay in (1, 2, 3):
            run.cell(
                "bptt", recipe=varied(RECIPE, data__delay=delay, data__noise=noise), top1=[0.2, last, last],
                overrides={"data.delay": delay, "data.noise": noise},
            )  # fmt: skip
    for name in ("digits-sweep-data-delay", "digits-curves-1"):
        panels = drawn(figures(tmp_path)[name]).axes
        assert len({axes.get_ylim() for axes in panels}) == 1
        assert len({axes.get_xlim() for axes in panels}) == 1
        numbers = [label.get_text() for label in panels[0].get_yticklabels() if label.get_text()]
        assert numbers[-5:] == ["20", "40", "60", "80", "100"]
        assert panels[0].get_ylim()[1] < 106


def test_sweeps_side_by_side_have_one_unit(tmp_path: Path) -> None:
    """One was in MiB and its neighbour in GiB."""
    run = HandmadeRun(tmp_path)
    for batch, factor in ((32, 1), (64, 2000)):
        for steps in (1, 2):
            run.cell(
                "bptt", recipe=varied(RECIPE, timesteps=steps, train__batch_size=batch), peak_tensor_bytes=factor * steps * MIB,
                overrides={"timesteps": steps, "train.batch_size": batch},
            )  # fmt: skip
    panels = drawn(figures(tmp_path)["digits-sweep-timesteps"]).axes
    memory = {axes.get_ylabel() for axes in panels if "tensors" in axes.get_ylabel()}
    assert memory == {"live tensors [GiB]"}


def test_panels_of_one_measure_of_a_study_have_one_scale_and_unit() -> None:
    def panel(title: str, seconds: float) -> Drawn:
        line = StudyLine("bptt", "bptt", {1: Stat(seconds, None, 1), 2: Stat(2 * seconds, None, 1)})
        return Drawn("epoch_s", "timesteps", title, (line,))

    with style.applied():
        first, second = draw_study([panel("small", 0.01), panel("large", 0.2)], "double").axes
    assert first.get_ylim() == second.get_ylim()
    assert first.get_ylabel() == second.get_ylabel()


@pytest.mark.parametrize("lowest", [100.0, 95.0, 88.0, 60.0])
def test_ticks_of_accuracies_are_whole_numbers(lowest: float) -> None:
    """They were 95, 97.5 and 100."""
    line = Line("bptt", (1.0, 2.0), (lowest, 100.0), method="bptt")
    with style.applied():
        drawing = draw_lines(
            [Panel("", Axis("epoch"), Axis("test top-1 [%]", within=(0, 100)), (line,))], "double"
        )
        FigureCanvasAgg(drawing).draw()
    (axes,) = drawing.axes
    ticks = [label.get_text() for label in axes.get_yticklabels() if label.get_text()]
    assert ticks[-1] == "100"
    assert all(tick.isdigit() for tick in ticks)


def test_a_long_line_has_few_marks() -> None:
    """Of 30 epochs each had one, and squares hid all lines below them."""
    line = Line("bptt", range(30), range(30), method="bptt")
    with style.applied():
        drawing = draw_lines([Panel("", Axis("epoch"), Axis("y [s]"), (line,))], "double")
    assert drawing.axes[0].lines[0].get_markevery() == 3


def test_bars_on_a_logarithmic_axis_never_reach_zero_and_are_as_long_to_both_sides() -> None:
    axis = Axis("variance", logarithmic=True)
    assert _around(2.0, 3.0, y_axis=axis) == pytest.approx((0.8, 5.0))
    assert _around(0.0, 0.0, y_axis=axis) == (0.0, 0.0)
    assert _around(2.0, 3.0, y_axis=Axis("cosine")) == (-1.0, 5.0)


@pytest.mark.parametrize("field", ["neuron.tau", "train.lr", "data.delay", "timesteps"])
def test_an_axis_of_a_recipe_field_has_its_words(field: str) -> None:
    """A sweep had "neuron.tau" where a study had "τ, time steps"."""
    assert axis_words(field) != field
    assert axis_words("of.somebody") == "of.somebody"


# At the shipped sizes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", ["double", "column"])
@pytest.mark.parametrize("name", NAMES)
def test_labels_do_not_overlap_and_stay_inside_at_the_shipped_sizes(
    all_figures: dict[str, Figure], name: str, width: Width
) -> None:
    drawing = drawn(all_figures[name], width)
    assert drawing.get_figwidth() == style.WIDTH_INCHES[width]
    assert len(list(visible_texts(drawing))) > 8
    assert_legible(drawing)


def assert_legible(drawing: Drawing) -> None:
    """No text overlaps another or leaves the figure, and the panels keep their room."""
    assert min(axes.get_window_extent().height for axes in drawing.axes) > 0.3 * drawing.dpi
    texts = [(text.get_text(), text.get_window_extent()) for text in visible_texts(drawing)]
    for text, box in texts:
        inside = drawing.bbox.padded(1)
        assert inside.contains(box.x0, box.y0), text
        assert inside.contains(box.x1, box.y1), text
    level = [
        (text.get_text(), text.get_window_extent().shrunk(0.98, 0.8))
        for text in visible_texts(drawing)
        if text.get_rotation() % 90 == 0  # the boxes of slanted labels overlap where the letters do not
    ]
    for (first, a), (second, b) in combinations(level, 2):
        assert not a.overlaps(b), (first, second)


@pytest.mark.long
def test_every_figure_of_the_committed_results_is_legible() -> None:
    context = Context(read_results([RESULTS]), "bptt")
    report, _ = assemble(context, {kind: resolve_name(where) for kind, where in SECTIONS.items()})
    blocks = (*report.key_blocks, *(block for section in report.sections for block in section.blocks))
    for figure in {block.name: block for block in blocks if isinstance(block, Figure)}.values():
        try:
            assert_legible(drawn(figure))
        except AssertionError as error:
            raise AssertionError(f"{figure.name}: {error}") from error


@pytest.mark.parametrize(
    "count", [1, 30, *(pytest.param(count, marks=pytest.mark.long) for count in (2, 5, 13, 14, 300))]
)
def test_any_number_of_methods_is_drawn_legibly(tmp_path: Path, count: int) -> None:
    """Of more than have a look of their own the first do, and the legend counts the others."""
    methods = [*METHODS, *(f"rule-{number}-of-somebody" for number in range(count - len(METHODS)))][:count]
    run = HandmadeRun(tmp_path)
    for place, method in enumerate(methods):
        for seed in (0, 1):
            run.cell(
                method, seed, train_s=[9.0, 4 / (1 + place), 4.2 / (1 + place)], peak_tensor_bytes=(100 - place % 80) * MIB,
                top1=[0.1, 0.8, 0.9 - (place * 7 % 50) / 100 + 0.01 * seed],
            )  # fmt: skip
    shown = figures(tmp_path)
    assert {"methods", "accuracy", *(["tradeoff"] if count > 1 else [])} <= set(shown)
    for name, figure in shown.items():
        assert len(figure.caption) < 1200
        drawing = drawn(figure)
        assert_legible(drawing)
        names = [text.get_text() for legend in drawing.legends for text in legend.get_texts()]
        if name in ("accuracy", "tradeoff"):
            more = [f"{count - style.MOST_NAMED} more"] if count > style.MOST_NAMED + 1 else []
            assert len(names) == (style.MOST_NAMED + 1 if more else count)
            assert names[len(names) - len(more) :] == more
            assert "bptt" in names


@pytest.mark.parametrize("letters", [20, 28, 32, 60])
def test_a_long_name_is_whole_in_the_file_that_is_written(letters: int) -> None:
    """Letters are not equally wide at every resolution: what was laid out at another was cut off at the left edge."""
    name = "a-rule-of-somebody-that-has-a-name-of-many-words-and-then-some"[:letters]
    panel = BarPanel("Peak memory", "live tensors [MiB]", (Bar(name, (2.0,), "2.00", method=name),))
    with style.applied():
        drawing = draw_bars([panel, panel], "double")
        style.files(drawing, ["png"])
        FigureCanvasAgg(drawing).draw()
    (label,) = drawing.axes[0].get_yticklabels()
    assert label.get_window_extent().x0 >= 0


def visible_texts(drawing: Drawing) -> Iterator[Text]:
    """Every text that is seen; a tick outside its axis's limits is not."""
    for axes in drawing.axes:
        for text in (axes.xaxis.label, axes.yaxis.label, axes._left_title, *axes.texts):
            if text.get_visible() and text.get_text():
                yield text
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            slack = 1e-9 * (high - low)
            for tick in axis.get_major_ticks():
                if low - slack <= tick.get_loc() <= high + slack and tick.label1.get_visible():
                    yield tick.label1
    for legend in drawing.legends:
        yield from legend.get_texts()


@pytest.mark.parametrize("name", NAMES)
def test_every_axis_has_a_label_with_a_unit(all_figures: dict[str, Figure], name: str) -> None:
    without_unit = {"epoch", "T, time steps", "batch size", "K, steps with a gradient"}
    for axes in drawn(all_figures[name]).axes:
        labels = [axes.get_xlabel()] + ([axes.get_ylabel()] if name not in ("methods", "pairs") else [])
        for label in labels:
            assert label in without_unit or label.endswith("]"), label
        assert axes._left_title.get_text()


@pytest.mark.parametrize("name", NAMES)
def test_captions_name_sample_counts_and_hardware(all_figures: dict[str, Figure], name: str) -> None:
    caption = all_figures[name].caption
    assert "n = " in caption
    assert "Example CPU, 2 threads" in caption or "Example GPU" in caption


def test_the_same_figure_gives_the_same_files(all_figures: dict[str, Figure]) -> None:
    with style.applied():
        first, second = (style.files(all_figures["methods"].draw("column"), ["svg", "png"]) for _ in range(2))
    assert first == second
    assert b"<text" in first["svg"]
    assert first["png"].startswith(b"\x89PNG")


def test_a_png_has_its_dots_whatever_is_written_beside_it(all_figures: dict[str, Figure]) -> None:
    """Written after an SVG, as in every report with a page, it had 72 dots an inch."""
    with style.applied():
        content = style.files(all_figures["methods"].draw("column"), ["svg", "png"])["png"]
    width, _ = struct.unpack(">II", content[16:24])
    assert width == round(style.DPI * style.WIDTH_INCHES["column"])


def test_the_users_own_matplotlib_settings_do_not_matter(all_figures: dict[str, Figure]) -> None:

    with style.applied():
        plain = style.files(all_figures["methods"].draw("column"), ["svg"])
    with matplotlib.rc_context({"font.size": 30, "axes.grid": False}), style.applied():
        assert style.files(all_figures["methods"].draw("column"), ["svg"]) == plain


# What is drawn ------------------------------------------------------------------------------------------


def test_bars_are_as_long_as_the_means_and_carry_value_and_ratio(all_figures: dict[str, Figure]) -> None:
    memory, time = drawn(all_figures["methods"]).axes
    assert [patch.get_width() for patch in memory.patches] == [100, 25, 24, 24]
    # Medians of two warm epochs: s, s + 0.1, s + 0.2 over the seeds; times have a geometric mean.
    means = [geometric_mean([s, s + 0.1, s + 0.2]) for s, _, _ in METHODS.values()]
    assert [patch.get_width() for patch in time.patches] == pytest.approx(means)
    assert [text.get_text() for text in memory.texts][:2] == ["100", "25.0  (0.25×)"]
    assert [text.get_text() for text in time.texts][:2] == ["4.10", "2.10  (0.51×)"]
    assert (memory.get_xlabel(), time.get_xlabel()) == ("live tensors [MiB]", "warm epoch time [s]")
    assert [label.get_text() for label in memory.get_yticklabels()] == list(METHODS)


def whiskers(axes: Axes) -> list[tuple[float, float]]:
    """The ends of each horizontal error bar."""
    segments = (
        bar.lines[2][0].get_segments() for bar in axes.containers if isinstance(bar, ErrorbarContainer)
    )
    return [(float(ends[0, 0]), float(ends[1, 0])) for (ends,) in segments]


def test_whiskers_of_times_divide_and_multiply_the_geometric_mean(tmp_path: Path) -> None:
    """Of 1, 2 and 32 s: the mean is 4 s, and an arithmetic deviation of 17.6 around it reached from −13.6 to 21.6 s."""
    run = HandmadeRun(tmp_path)
    for seed, seconds in enumerate((1.0, 2.0, 32.0)):
        run.cell("bptt", seed, train_s=(99.0, seconds), top1=(0.5, 0.6 + 0.1 * seed), peak_tensor_bytes=MIB)
        run.cell("sltt", seed, train_s=(99.0, 2.0), top1=(0.5, 0.6), peak_tensor_bytes=MIB)
    factor = math.exp(float(np.log([1.0, 2.0, 32.0]).std(ddof=1)))
    shown = figures(tmp_path)
    memory, time = drawn(shown["methods"]).axes
    assert whiskers(memory) == []
    assert whiskers(time) == [pytest.approx((4.0 / factor, 4.0 * factor))]
    _, over_time = drawn(shown["tradeoff"]).axes
    assert whiskers(over_time)[0] == pytest.approx((4.0 / factor, 4.0 * factor))
    assert "Whiskers: mean ÷ and × the geometric standard deviation" in shown["methods"].caption
    assert "geometric" in shown["tradeoff"].caption


def test_a_whisker_has_a_rim_of_the_surface_to_be_seen_on_a_bar_of_any_colour() -> None:
    """Dark ink on OTTT's navy, and light ink on a dark page's bars, could hardly be seen."""
    bar = Bar("ottt", (2.0,), "2.00", method="ottt", spread=(1.0, 3.0))
    with style.applied():
        (axes,) = draw_bars([BarPanel("Time per epoch", "time [s]", (bar,))], "double").axes
    (whisker,) = (part for part in axes.containers if isinstance(part, ErrorbarContainer))
    rims = [
        effect._gc["foreground"] for part in whisker.get_children() for effect in part.get_path_effects()[:1]
    ]
    assert {*rims} == {style.SURFACE}


def test_a_single_measurement_is_told_from_a_mean_in_the_plot_itself(tmp_path: Path) -> None:
    """Without a whisker the time of one seed looked as certain as counted bytes."""
    run = HandmadeRun(tmp_path / "one")
    for method in ("bptt", "sltt"):
        run.cell(method, top1=(0.3, 0.6, 0.7), peak_tensor_bytes=MIB)
    shown = figures(tmp_path / "one")
    memory, time = drawn(shown["methods"]).axes
    assert (memory.get_xlabel(), time.get_xlabel()) == (
        "live tensors [MiB]",
        "warm epoch time [s], n = 1 seed",
    )
    assert [len(line.get_xdata()) for line in time.lines] == [1, 1]
    assert not memory.lines
    by_epoch, by_time, to_accuracy = drawn(shown["accuracy"]).axes
    assert by_epoch.get_ylabel() == by_time.get_ylabel() == "test top-1 [%]\nn = 1 seed"
    assert to_accuracy.get_ylabel() == "training time [s]\nn = 1 seed"
    over_memory, over_time = drawn(shown["tradeoff"]).axes
    assert over_memory.get_xlabel() == "live tensors [MiB]"
    assert (over_time.get_xlabel(), over_time.get_ylabel()) == (
        "warm epoch time [s], n = 1 seed", "test top-1 [%]\nn = 1 seed",
    )  # fmt: skip

    run = HandmadeRun(tmp_path / "some")
    for method, seed, seconds in (("bptt", 0, 2.0), ("bptt", 1, 3.0), ("sltt", 0, 1.0)):
        run.cell(method, seed, train_s=(9.0, seconds), top1=(0.3, 0.6), peak_tensor_bytes=MIB)
    memory, time = drawn(figures(tmp_path / "some")["methods"]).axes
    assert [text.get_text() for text in memory.texts] == ["1.00", "1.00  (1.00×)"]
    assert [text.get_text() for text in time.texts] == ["2.45", "1.00  (0.50×)  n = 1"]
    assert time.get_xlabel() == "warm epoch time [s]"


def test_a_caption_says_nothing_of_a_baseline_that_is_not_drawn(tmp_path: Path) -> None:
    """Where BPTT ran out of memory there are no ratios in brackets and no dashed line."""
    fill(HandmadeRun(tmp_path / "whole"))
    fill(HandmadeRun(tmp_path / "lost"), lost=("bptt",))
    whole, lost = (figures(tmp_path / name) for name in ("whole", "lost"))
    for name, words in (("methods", "In brackets: the ratio to bptt"), ("k", "Dashed: BPTT")):
        assert words in whole[name].caption
        assert words not in lost[name].caption


def test_a_legend_has_the_order_of_the_tables(tmp_path: Path) -> None:
    """What bears error bars came last."""
    run = HandmadeRun(tmp_path)
    for seed in (0, 1):
        run.cell(
            "bptt", seed, train_s=(9.0, 4.0 + seed), top1=(0.3, 0.8 + 0.1 * seed), peak_tensor_bytes=2 * MIB
        )
    run.cell("sltt", 0, train_s=(9.0, 1.0), top1=(0.3, 0.7), peak_tensor_bytes=MIB)
    (legend,) = drawn(figures(tmp_path)["tradeoff"]).legends
    assert [text.get_text() for text in legend.get_texts()] == ["bptt", "sltt"]


def test_a_sweep_draws_the_memory_that_all_its_groups_have(tmp_path: Path) -> None:
    """Where some were replayed as CUDA graphs, and so have no allocated memory, there was no panel of memory."""
    run = HandmadeRun(tmp_path, device="cuda:0", device_name="Example GPU")
    for steps in (1, 2):
        more = {"peak_allocated_bytes": MIB} if steps == 1 else {}
        run.cell(
            recipe=varied(RECIPE, timesteps=steps),
            overrides={"timesteps": steps},
            peak_reserved_bytes=2 * MIB,
            **more,
        )
    memory, *_ = drawn(figures(tmp_path)["digits-sweep-timesteps"]).axes
    assert memory.get_ylabel() == "reserved (CUDA) [MiB]\nn = 1 seed"


def test_the_methods_of_a_sweep_have_the_order_of_the_tables(tmp_path: Path) -> None:
    """sltt-k2 needs two steps, and came after what ran at one."""
    run = HandmadeRun(tmp_path)
    for steps, methods in {1: ("bptt", "sltt-k1"), 2: ("bptt", "sltt-k1", "sltt-k2")}.items():
        for method in methods:
            run.cell(method, recipe=varied(RECIPE, timesteps=steps), overrides={"timesteps": steps})
    (legend,) = drawn(figures(tmp_path)["digits-sweep-timesteps"]).legends
    assert [text.get_text() for text in legend.get_texts()] == ["bptt", "sltt-k2", "sltt-k1"]


def test_out_of_memory_is_hatched_beyond_the_axis_and_has_no_time(tmp_path: Path) -> None:
    fill(HandmadeRun(tmp_path / "run"), lost=("bptt",))
    memory, time = drawn(figures(tmp_path)["methods"]).axes
    hatched = [patch for patch in memory.patches if patch.get_hatch()]
    assert [patch.get_width() > memory.get_xlim()[1] for patch in hatched] == [True]
    assert [text.get_text() for text in memory.texts].count("out of memory") == 1
    assert len(time.patches) == 3
    assert [text.get_text() for text in time.texts].count("out of memory") == 1


def test_a_figure_that_contradicts_itself_is_drawn_nowhere(tmp_path: Path) -> None:
    """Repetitions of one of SLTT's cells counted other bytes, reached another accuracy, and missed the target in one of two."""
    recipe = varied(RECIPE, target=0.7)
    for name, mib, last in (("a", 25, 0.9), ("b", 40, 0.6)):
        run = HandmadeRun(tmp_path / name, recipe=recipe, number=20 * (name == "b"))
        for method, peak, top1 in (("bptt", 100, 0.95), ("sltt", mib, last), ("sltt-k4", 24, 0.9)):
            run.cell(method, recipe=recipe, peak_tensor_bytes=peak * MIB, top1=[0.1, 0.5, top1])
    memory, _ = figures(tmp_path)["methods"].content()
    assert {bar.label: bar.failure for bar in memory.bars} == {
        "bptt": "", "sltt": "contradictory", "sltt-k4": "",
    }  # fmt: skip
    drawn(figures(tmp_path)["methods"])
    by_epoch, *_ = figures(tmp_path)["accuracy"].content()
    assert [line.label for line in by_epoch.lines] == ["bptt", "sltt-k4"]
    (group,) = make_groups(read_results([tmp_path]))
    assert [way.method for way in to_target(group)] == ["bptt", "sltt-k4"]


def test_a_group_whose_only_method_contradicts_itself_has_no_bars(tmp_path: Path) -> None:
    for number, rate in enumerate((0.1, 0.2)):
        protocol = {"grid": {"train.lr": [0.1, 0.2]}, "epochs": 3}
        recipe = varied(RECIPE, train__lr=rate)
        run = HandmadeRun(tmp_path / str(number), number=20 * number)
        cell = run.cell("sltt", recipe=recipe, cell={"trials": 2}, peak_tensor_bytes=MIB)
        path = run.path / "cells" / f"{cell}.json"
        own = json.loads(path.read_text()) | {"options": {"tuned": {"protocol": protocol}}}
        path.write_text(json.dumps(own))
        cells = (run.path / "cells.csv").read_text()
        (run.path / "cells.csv").write_text(re.sub(r"(digits,)[0-9a-f]{12},", r"\1cccccccccccc,", cells))
        epochs = (run.path / "epochs.csv").read_text()
        (run.path / "epochs.csv").write_text(re.sub(r"(digits,)[0-9a-f]{12},", r"\1cccccccccccc,", epochs))
    (group,) = make_groups(read_results([tmp_path]))
    assert "different settings" in " ".join(breach.text for breach in group.breaches)
    assert "methods" not in {name.rpartition("-")[2] for name in figures(tmp_path)}


def test_accuracy_is_drawn_by_epoch_and_by_training_time(all_figures: dict[str, Figure]) -> None:
    by_epoch, by_time, _ = drawn(all_figures["accuracy"]).axes
    line = line_of(by_epoch, "sltt")
    assert line.get_xdata().tolist() == [1, 2, 3]
    assert line.get_ydata() == pytest.approx([10, 84, 93])
    # 9 s cold, then 2 s, then 2, 2.2 and 2.4 s.
    assert line_of(by_time, "sltt").get_xdata() == pytest.approx([9, 11, geometric_mean([13, 13.2, 13.4])])
    assert by_time.get_xlabel() == "training time [s]"
    # Every seed of every method reaches what the worst one reaches, 78 %: a dotted line; the other one is chance.
    assert [line.get_ydata()[0] for line in by_epoch.lines[-2:]] == pytest.approx([78, 15])
    assert "78.00 %" in all_figures["accuracy"].caption
    assert "sltt 11.0 s" in all_figures["accuracy"].caption


def test_time_to_an_accuracy_begins_above_chance_and_ends_where_some_seed_never_gets(
    all_figures: dict[str, Figure],
) -> None:
    line = line_of(drawn(all_figures["accuracy"]).axes[2], "sltt-k1")
    accuracies, seconds = line.get_xdata(), line.get_ydata()
    assert accuracies[0] == pytest.approx(15)  # 1.5 times guessing among ten classes
    assert "Accuracies up to 15.00 % count as chance" in all_figures["accuracy"].caption
    reached = accuracies <= 78  # seeds end at 80, 79 and 78 %
    assert np.isfinite(seconds[reached]).all()
    assert np.isnan(seconds[~reached]).all()
    # After the second epoch all have 70 %: 9 s and 1 s; beyond, after the third: 1, 1.2 and 1.4 s more.
    assert seconds[accuracies <= 70] == pytest.approx(10)
    assert seconds[(accuracies > 70) & reached] == pytest.approx(geometric_mean([11, 11.2, 11.4]))


def test_there_is_no_time_to_an_accuracy_without_a_range_of_accuracies(tmp_path: Path) -> None:
    """Where all are at 100 % from the first epoch, and where the best that every seed reaches is below chance."""
    whole = HandmadeRun(tmp_path / "whole")
    split = HandmadeRun(tmp_path / "split")
    for seed, last in enumerate((0.9, 0.12)):
        whole.cell("sltt", seed, top1=(1.0, 1.0, 1.0), peak_tensor_bytes=MIB)
        split.cell("sltt", seed, top1=(0.1, last, last), peak_tensor_bytes=MIB)
    for folder in ("whole", "split"):
        figure = figures(tmp_path / folder)["accuracy"]
        assert [axes._left_title.get_text() for axes in drawn(figure).axes] == [
            "Accuracy by epoch", "Accuracy by training time",
        ]  # fmt: skip
        assert "Time to an accuracy" not in figure.caption


def test_a_method_at_chance_has_no_time_to_an_accuracy_and_sets_none_for_others(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "run")
    run.cell("bptt", top1=[0.1, 0.11, 0.12], peak_tensor_bytes=MIB)
    run.cell("sltt", top1=[0.2, 0.5, 0.9], peak_tensor_bytes=MIB)
    figure = figures(tmp_path)["accuracy"]
    assert "90.00 %, the highest accuracy" in figure.caption
    assert (
        "every seed of every method above chance reaches. Training time until then (geometric mean over seeds): sltt 9.00 s."
        in figure.caption
    )
    assert "At chance: bptt." in figure.caption
    assert [line.get_label() for line in drawn(figure).axes[2].lines] == ["sltt"]


def test_an_accuracy_that_every_seed_reaches_is_one_of_the_seeds_that_finished(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "run")
    run.cell("sltt", top1=[0.2, 0.5, 0.9], peak_tensor_bytes=MIB)
    assert "accuracy that every seed of every method reaches" in figures(tmp_path)["accuracy"].caption
    run.cell("bptt", status="oom", reason="no memory")
    assert (
        "accuracy that every finished seed of every method reaches" in figures(tmp_path)["accuracy"].caption
    )


def test_every_pair_is_a_dot_beside_its_mean_and_interval(all_figures: dict[str, Figure]) -> None:
    time, accuracy = drawn(all_figures["pairs"]).axes
    assert [label.get_text() for label in time.get_yticklabels()] == ["sltt", "sltt-k4", "sltt-k1"]
    pairs = [line.get_xdata() for line in time.lines if line.get_marker() == "."]
    assert pairs[0] == pytest.approx([2.0 / 4.0, 2.1 / 4.1, 2.2 / 4.2])
    assert time.texts[0].get_text() == "0.51×"
    assert [text.get_text() for text in accuracy.texts] == ["−1.00", "−5.00", "−15.00"]
    assert (time.get_xlabel(), accuracy.get_xlabel()) == ("÷ bptt [×]", "− bptt [points]")


def test_a_mean_that_leaves_out_failed_seeds_is_marked_and_a_curve_has_a_gap_where_nothing_ran(
    tmp_path: Path,
) -> None:
    run = HandmadeRun(tmp_path / "run")
    for steps in (2, 4, 6, 8):
        recipe = varied(RECIPE, timesteps=steps)
        run.cell("sltt", recipe=recipe, peak_tensor_bytes=MIB, overrides={"timesteps": steps})
        if steps == 4:
            continue
        for seed in (0, 1):
            lost = {"status": "oom", "reason": "no memory"} if (steps, seed) == (6, 1) else {}
            run.cell(
                "bptt", seed, recipe=recipe, peak_tensor_bytes=steps * MIB, overrides={"timesteps": steps}, **lost
            )  # fmt: skip
    figure = figures(tmp_path)["digits-sweep-timesteps"]
    memory = drawn(figure).axes[0]
    assert line_of(memory, "bptt").get_xdata().tolist() == [2, 4, 6, 8]
    np.testing.assert_equal(line_of(memory, "bptt").get_ydata(), [2, np.nan, 6, 8])
    assert [(text.xy, text.get_text()) for text in memory.texts] == [((6, 6), "†")]
    assert "†: mean of the seeds that finished; others did not." in figure.caption
    assert "One more time step adds to live tensors: bptt 1.00 MiB, sltt flat." in figure.caption
    fits = [line for line in memory.lines if line.get_label().startswith("_") and len(line.get_xdata()) > 4]
    assert [line.get_ydata()[[0, -1]] for line in fits] == [pytest.approx([2, 8]), pytest.approx([1, 1])]


def test_the_tradeoff_fills_the_front_and_leaves_the_dominated_hollow(all_figures: dict[str, Figure]) -> None:
    over_memory, over_time = drawn(all_figures["tradeoff"]).axes
    for axes in (over_memory, over_time):
        filled = {
            name: to_hex(line_of(axes, name).get_markerfacecolor()) != style.SURFACE for name in METHODS
        }
        assert filled == {"bptt": True, "sltt": True, "sltt-k4": True, "sltt-k1": True}
    assert line_of(over_memory, "bptt").get_xdata() == [100]
    assert line_of(over_time, "bptt").get_ydata() == pytest.approx([94])
    assert over_time.get_xlim()[0] == 0


def test_a_dominated_method_is_hollow(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "run")
    run.cell("bptt", train_s=[9, 4.0], top1=[0.1, 0.8], peak_tensor_bytes=100 * MIB)
    run.cell("sltt", train_s=[9, 2.0], top1=[0.1, 0.9], peak_tensor_bytes=25 * MIB)
    axes = drawn(figures(tmp_path)["tradeoff"]).axes[0]
    faces = {line.get_label(): to_hex(line.get_markerfacecolor()) for line in axes.lines}
    assert faces["bptt"] == style.SURFACE
    assert faces["sltt"] == style.colour("sltt")


def test_a_sweep_draws_each_group_and_rings_the_last_good_point(all_figures: dict[str, Figure]) -> None:
    drawing = drawn(all_figures["digits-sweep-timesteps"])
    memory = drawing.axes[0]
    assert line_of(memory, "sltt").get_xdata().tolist() == [1, 2, 4, 6, 8]
    assert line_of(memory, "bptt").get_xdata().tolist() == [1, 2, 4, 6]
    rings = [line for line in memory.lines if line.get_markerfacecolor() == "none"]
    assert [(ring.get_xdata()[0], ring.get_ydata()[0]) for ring in rings] == [(6, 100)]
    assert [text.get_text() for text in memory.texts] == ["bptt: out of memory at 8"]
    assert memory.get_xscale() == "linear"  # memory that grows with T shall look as it grows
    assert memory.get_xlabel() == "T, time steps"
    assert "a red ring" in all_figures["digits-sweep-timesteps"].caption
    assert "ring" not in all_figures["digits-sweep-train-batch_size"].caption


def test_against_k_sltt_stands_at_k_equal_to_t(all_figures: dict[str, Figure]) -> None:
    memory, *_ = drawn(all_figures["k"]).axes
    assert {name: line_of(memory, name).get_xdata().tolist() for name in ("sltt-k1", "sltt-k4", "sltt")} == {
        "sltt-k1": [1],
        "sltt-k4": [4],
        "sltt": [6],
    }
    assert line_of(memory, "bptt").get_ydata() == [100, 100]


def test_the_timeline_shows_the_samples(all_figures: dict[str, Figure]) -> None:
    memory, power = drawn(all_figures["2-timeline"]).axes
    assert np.max(line_of(memory, "sltt").get_ydata()) == 99
    assert memory.get_ylabel() == "NVML, process [MiB]"
    assert power.get_ylabel() == "board power [W]"


def test_groups_of_a_sweep_share_small_multiples_in_place_of_plots_of_their_own(
    all_figures: dict[str, Figure],
) -> None:
    titles = [axes._left_title.get_text() for axes in drawn(all_figures["digits-curves-1"]).axes]
    of_steps = [f"T = {steps}, batch 64" for steps in (1, 2, 4, 8)]
    assert titles == [*of_steps[:3], "T = 6, batch 32", "T = 6, batch 128", of_steps[3]]
    assert not [name for name in all_figures if name.startswith("digits-T4")]


def line_of(axes: Axes, label: str) -> Any:
    """The line or the data line of the error bar with this label."""
    for line in axes.lines:
        if line.get_label() == label:
            return line
    return next(bars.lines[0] for bars in axes.containers if bars.get_label() == label)


# What is not drawn ---------------------------------------------------------------------------------------


def test_what_the_data_cannot_support_is_named_with_the_command_that_would_make_it(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "run")
    run.cell("bptt", train_s=[9, 1], top1=None, cell={"synthetic": True})
    gaps = missing(tmp_path)
    assert set(figures(tmp_path)) == {"synthetic-methods"}
    assert gaps["Accuracy by epoch and by time"].reason == "only random data was run"
    assert gaps["Memory and time against T"].command == (
        "sltt-bench run digits --method bptt --set timesteps=1,2,4,6,8"
    )
    assert gaps["Against K"].command == "sltt-bench run digits --method bptt,sltt-k1,sltt-k2,sltt-k4,sltt"
    assert "NVML timeline" in gaps
    assert "Accuracy, memory and time traded off" in gaps


def test_without_accuracy_memory_and_time_alone_are_traded_off(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "run")
    for method, mib in (("bptt", 100), ("sltt", 25)):
        run.cell(method, train_s=[9, 1], top1=None, cell={"synthetic": True}, peak_tensor_bytes=mib * MIB)
    figure = figures(tmp_path)["synthetic-tradeoff"]
    assert figure.title == "Memory and time traded off"
    assert "Accuracy, memory and time traded off" not in missing(tmp_path)


def test_nothing_is_missing_where_everything_was_run(everything: Path) -> None:
    assert missing(everything) == {}


# Colours -----------------------------------------------------------------------------------------------------


DARK_SURFACE = re.findall(r"--surface: (#\w+);", html._template("report.css"))[1]
NUMBERS = {"N": [*map(str, range(1, 40))], "X": ["0", "0.1", ".25", "0.5", "0.75", "1"]}
SHIPPED = [
    label.replace(letter, number)
    for label in labels()
    for letter in "NX"
    if letter in label
    for number in NUMBERS[letter]
]
SHIPPED += [label for label in labels() if not {*"NX"} & {*label}] + [
    "sltt-a",
    "sltt-a-unbiased",
    "pp-prop-a0.5",
]
OFTEN = [
    "bptt",
    "sltt",
    "sltt-k1",
    "sltt-k2",
    "sltt-k4",
    "tbptt-w2",
    "ottt",
    "e-prop",
    "s-tllr",
    "pp-prop",
    "rate",
]
"""What stands most often in one figure."""


def test_a_method_has_one_colour_whatever_else_is_shown() -> None:
    assert style.colour("bptt") == "#d55e00"
    assert style.colour("sltt") == "#0072b2"
    assert style.colour("sltt-k2") == style.colour("sltt-k2-unbiased")
    assert style.colour("bptt-d.5") == style.colour("bptt-d0.5") != style.colour("bptt-d0.25")
    assert style.colour("my-method") == style.colour("my-method")
    assert style.looks(["sltt-k2-unbiased"])["sltt-k2-unbiased"]["linestyle"] == "--"


def test_every_rule_that_ships_has_a_look_of_its_own() -> None:
    assert {rule_and_number(method)[0] for method in SHIPPED} == style._RULES.keys()


def test_every_colour_of_a_line_is_seen_on_a_light_and_on_a_dark_surface() -> None:
    """sltt-k1 had twice the contrast of the paper, bptt-d0 less than that, the last of T = 1, 2, 4 half as much again."""
    inks = {style.colour(method) for method in [*SHIPPED, *(f"rule-of-somebody{n}" for n in range(99))]}
    for ink in inks | {style.ramp(share) for share in np.linspace(0, 1, 20)}:
        assert contrast(ink, style.SURFACE) >= 3, ink
        assert contrast(style.on_dark(ink), DARK_SURFACE) >= 3, ink


def test_methods_of_one_figure_differ_for_every_kind_of_colour_vision() -> None:
    for one, other in combinations(map(style.colour, OFTEN), 2):
        of_one_rule = all(ink in map(style.colour, ("sltt-k1", "sltt-k2", "sltt-k4")) for ink in (one, other))
        assert difference(one, other) > (8 if of_one_rule else 11), (one, other)
        assert difference(style.on_dark(one), style.on_dark(other)) > (4.5 if of_one_rule else 7), (
            one,
            other,
        )


@pytest.mark.parametrize("rule", ["sltt-k", "tbptt-w", "bptt-ckpt", "sltt-a", "bptt-d"])
def test_a_larger_number_is_a_darker_shade_of_its_rules_colour(rule: str) -> None:
    numbers = (0, 0.25, 0.5, 0.75, 1) if rule == "bptt-d" else (1, 2, 4, 8, 16)
    shades = [style.colour(f"{rule}{number}") for number in numbers]
    for shown in (shades, [style.on_dark(shade) for shade in shades]):
        contrasts = [contrast(shade, "#000000") for shade in shown]
        assert contrasts == sorted(contrasts, reverse=True)
    for one, other in pairwise(shades):
        assert difference(one, other) > 7.9
        assert difference(style.on_dark(one), style.on_dark(other)) > 4.5
    if rule != "bptt-d":
        low, between, high = (contrast(style.colour(f"{rule}{number}"), "#000000") for number in (2, 3, 4))
        assert low > between > high


def test_the_k_family_and_the_main_methods_differ_in_markers() -> None:
    assert len({style.marker(name) for name in ("bptt", "sltt", *(f"sltt-k{k}" for k in (1, 2, 4, 8)))}) == 6


def test_no_method_has_the_colour_of_an_ink() -> None:
    inks = {style.INK, style.SOFT_INK, style.GRID, style.SURFACE, style.FAILED}
    assert not inks & {style.colour(name) for name in ("bptt", "sltt", "sltt-k1", "sltt-k3", "other")}


def test_tables_and_figures_have_names_of_their_own(everything: Path) -> None:
    sections = runs(Context(read_results([everything]), "bptt")).sections
    names = [b.name for section in sections for b in section.blocks if isinstance(b, Table | Figure)]
    assert len(names) == len(set(names))


def test_no_two_shipped_rules_look_alike() -> None:
    names = "bptt bptt-ckpt2 bptt-ckpt4 bptt-d0 bptt-d0.5 bptt-d1 tbptt-w2 tbptt-w4 tbptt-w8 sltt sltt-k1 sltt-k2 sltt-k3 sltt-k4"
    names += " sltt-a sltt-a2 ottt ottt-o e-prop s-tllr pp-prop rate"
    looks = {name: (style.colour(name), style.marker(name)) for name in names.split()}
    assert len({colour for colour, _ in looks.values()}) == len(looks)
    alone = {
        name: looks[name] for name in names.split() if not re.search(r"\d$", name) or name == "bptt-ckpt2"
    }
    assert len({marker for _, marker in alone.values()}) == len(alone)


@pytest.mark.parametrize("columns", range(24, 48))
def test_a_wrapped_title_parts_no_value_from_its_equals_sign(columns: int) -> None:
    title = (
        "studies/latency, T = 4, test_timesteps = 2, normalisation = batch and synchronise_batch_norm = True"
    )
    lines = style.wrapped(title, columns).split("\n")
    assert " ".join(lines) == title
    assert not any(line.endswith("=") for line in lines)
    assert "\xa0" not in "".join(lines)
    assert any("test_timesteps = 2" in line for line in lines)


FAMILIES = {
    "bptt-l": ("1", "2", "3"), "bptt-d": ("0.25", "0.5", "0.75"), "tbptt-w": ("2", "3"), "sltt-k": ("5", "6", "7"),
}  # fmt: skip


def test_no_two_lines_of_a_figure_look_alike(tmp_path: Path) -> None:
    """Numbers of one rule had one marker and all but one colour, bptt-l2 and bptt-l3 (of no family) both the same."""
    run = HandmadeRun(tmp_path)
    names = ["bptt", *(rule + number for rule, numbers in FAMILIES.items() for number in numbers)]
    for place, method in enumerate(names):
        run.cell(
            method,
            train_s=(3.0, 1.0 + place),
            top1=(0.4 + place / 30, 0.5 + place / 30),
            peak_tensor_bytes=MIB,
        )
    for axes in drawn(figures(tmp_path)["accuracy"]).axes:
        lines = [line for line in axes.lines if not line.get_label().startswith("_")]
        assert len(lines) == len(names)
        strokes = [(line.get_color(), line._unscaled_dash_pattern) for line in lines]
        assert len(set(map(str, strokes))) == len(lines), "told apart without marks"
    looks = style.looks(names)
    for rule, numbers in FAMILIES.items():
        own = [looks[rule + number] for number in numbers]
        assert len({(look["marker"], look["color"]) for look in own}) == len(numbers)
        assert rule == "bptt-l" or len({look["marker"] for look in own}) == len(numbers)


def test_a_name_of_somebodys_has_not_the_look_of_a_rule_of_this_package(tmp_path: Path) -> None:
    """Of a hundred names sixteen had both the colour and the marker of one."""
    rules = ["bptt-ckpt4", "sltt-a", "tbptt-w4", "ottt"]
    for number in range(100):
        looks = style.looks([*rules, f"rule-{number}"])
        inks = {rule: style._RULES[rule.rstrip("0123456789")][0] for rule in rules}
        assert looks[f"rule-{number}"] not in [{**looks[rule], "color": inks[rule]} for rule in rules]


def test_a_fitted_line_goes_through_its_points_on_a_logarithmic_axis(tmp_path: Path) -> None:
    """It was drawn from end to end: straight where memory, linear in T, is a curve."""
    run = HandmadeRun(tmp_path)
    for steps in (2, 4, 8, 16, 32, 64, 128):
        run.cell(
            "bptt",
            recipe=varied(RECIPE, timesteps=steps),
            overrides={"timesteps": steps},
            peak_tensor_bytes=steps * MIB,
        )
    memory = drawn(figures(tmp_path)["digits-sweep-timesteps"]).axes[0]
    assert memory.get_xscale() == "log"
    fit = memory.lines[-1]
    places = memory.transData.transform(np.column_stack([fit.get_xdata(), fit.get_ydata()]))
    for steps in (2, 8, 32, 128):
        x, y = memory.transData.transform((steps, steps))
        assert np.interp(x, *places.T) == pytest.approx(y, abs=1)


def test_small_values_are_told_apart_beside_a_zero(tmp_path: Path) -> None:
    """A weight decay of 0, of 1e-5 and of 1e-4 stood in one place beside one of 1e-2."""
    run = HandmadeRun(tmp_path)
    decays = (0, 1e-5, 1e-4, 1e-3, 1e-2)
    for decay in decays:
        recipe = varied(RECIPE, train__weight_decay=decay)
        run.cell(
            "bptt",
            recipe=recipe,
            overrides={"train.weight_decay": decay},
            top1=(0.4, 0.5, 0.6),
            peak_tensor_bytes=MIB,
        )
    drawing = drawn(figures(tmp_path)["digits-sweep-train-weight_decay"])
    (axes,) = drawing.axes
    shares = axes.transAxes.inverted().transform(axes.transData.transform([(decay, 60) for decay in decays]))[
        :, 0
    ]
    assert np.diff(shares).min() > 0.15
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1e-05", "0.0001", "0.001", "0.01"]
    assert_legible(drawing)


def test_no_axis_of_accuracies_has_a_number_beyond_100_percent(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path)
    for seed in (0, 1):
        run.cell("bptt", seed, top1=(0.9, 1.0, 1.0), peak_tensor_bytes=MIB)
        run.cell("sltt", seed, top1=(1.0, 1.0, 1.0), peak_tensor_bytes=MIB)
    accuracies = [
        axes.yaxis
        for name in ("accuracy", "tradeoff")
        for axes in drawn(figures(tmp_path)[name]).axes
        if axes.get_ylabel() == "test top-1 [%]"
    ]
    assert len(accuracies) == 4
    for axis in accuracies:
        numbers = [label.get_text() for label in axis.get_ticklabels() if label.get_text()]
        assert "100" in numbers
        assert max(map(float, numbers)) == 100


def dark_inks(css: str) -> dict[str, str]:
    """Variable → colour on a dark page, of a page's style."""
    dark = re.findall(r'\[data-theme="dark"\] \{(.*?)\}', css, re.DOTALL)
    return dict(pair for block in dark for pair in re.findall(r"(--\w+): (#[0-9a-f]{6});", block))


def test_the_light_page_has_the_colours_of_the_files_and_the_dark_page_the_lighter_counterpart_of_each() -> (
    None
):
    """sltt-k1 was of another green on the page, and ottt-o could hardly be seen on a dark one, nor its T = 1 a ramp."""
    names = ["bptt", "sltt", "sltt-k1", "sltt-k3", "ottt-o", "my-own-rule"]
    lines = [Line(name, (1.0, 2.0), (1.0, 2.0), method=name) for name in names]
    lines += [Line(f"T = {steps}", (1.0, 2.0), (2.0, 1.0)) for steps in (1, 2, 4)]
    with style.applied():
        svg = style.files(draw_lines([Panel("", Axis("x"), Axis("y [s]"), tuple(lines))], "double"), ["svg"])[
            "svg"
        ].decode()
    css = html._template("report.css") + html._dark_inks([svg])
    page, dark = html.inline_svg(svg, "a", "b"), dark_inks(css)
    drawn_in = {*map(style.colour, names), *map(style.ramp, (0, 0.5, 1))}
    shown = dict(re.findall(r"stroke: var\((--c\w+), (#\w+)\)", page))
    assert {*shown.values()} == drawn_in
    assert not set(re.findall(r"stroke: (#\w+)", page))
    assert {variable: dark[variable] for variable in shown} == {
        variable: style.on_dark(ink) for variable, ink in shown.items()
    }
    light = css.partition("}")[0]
    assert not [variable for variable in shown if variable in light]


def test_numbers_on_colours_are_not_of_the_inks_that_a_dark_page_replaces() -> None:
    """They became light on yellow and dark on violet."""
    values = np.array([[1.0, 0.2]])
    with style.applied():
        drawing = draw_heat_maps([HeatMap("", ("fc",), ("1", "2"), values, "T", "cosine", 1.0)], "double")
        svg = style.files(drawing, ["svg"])["svg"].decode()
    page = html.inline_svg(svg, "a", "b")
    inks = dark_inks(html._template("report.css") + html._dark_inks([svg]))
    written = {
        number: re.search(rf"fill: var\((--\w+), (#\w+)\)[^>]*>{number}<", page)
        for number in ("1.000", "0.200")
    }
    assert all(written.values()), page
    seen = {number: inks.get(found[1], found[2]) for number, found in written.items() if found}
    low, high = (to_hex(matplotlib.colormaps[style.RAMP](share)) for share in (0.0, 1.0))
    assert contrast(seen["1.000"], high) > 7
    assert contrast(seen["0.200"], low) > 7


def test_ratios_with_wide_intervals_stand_on_a_logarithmic_axis(tmp_path: Path) -> None:
    """Two seeds leave an interval of 0.02 to 9: on an axis from 0 both pairs of each method stood in one place."""
    run = HandmadeRun(tmp_path)
    for method, seconds in {"bptt": (1.0, 1.3), "sltt": (0.9, 1.6), "sltt-k2": (0.5, 0.4)}.items():
        for seed, epoch_s in enumerate(seconds):
            run.cell(method, seed, train_s=(9.0, epoch_s, epoch_s), top1=(0.1, 0.5, 0.8 + 0.01 * seed))
    time, accuracy = drawn(figures(tmp_path)["pairs"]).axes
    assert (time.get_xscale(), accuracy.get_xscale()) == ("log", "linear")
    shares = time.transAxes.inverted().transform(time.transData.transform([(0.5, 0), (0.4 / 1.3, 0)]))[:, 0]
    assert shares[0] - shares[1] > 0.05
    assert [text.get_color() for text in time.texts] == [style.INK] * 2
    assert_legible(drawn(figures(tmp_path)["pairs"], "column"))


def test_curves_are_over_seeds_and_not_over_repetitions_of_one(tmp_path: Path) -> None:
    """Seed 0 was run four times at 90 %, seed 1 once at 50 %: the tables say 70 %, of two seeds, and so do the curves."""
    for number in range(4):
        run = HandmadeRun(tmp_path / str(number), number=20 * number)
        run.cell("bptt", 0, train_s=(5.0, 2.0, 2.0), top1=(0.5, 0.6, 0.9))
        if number == 0:
            run.cell("bptt", 1, train_s=(5.0, 6.0, 6.0), top1=(0.3, 0.4, 0.5))
    (group,) = make_groups(read_results([tmp_path]))
    (curve,) = curves(group)
    in_tables = group.methods["bptt"].stat("last_test_top1")
    assert in_tables is not None
    assert (in_tables.mean, in_tables.n) == (pytest.approx(0.7), 2)
    panel, by_time, _ = curve_panels([curve], None, None, Scale(1.0, "s"))
    assert list(panel.lines[0].ys) == pytest.approx([40.0, 50.0, 70.0])
    deviations = (100 * 0.2 / 2**0.5, 100 * 0.2 / 2**0.5, 100 * 0.4 / 2**0.5)
    for (low, high), mean, deviation in zip(
        panel.lines[0].spreads, (40.0, 50.0, 70.0), deviations, strict=True
    ):
        assert (low, high) == pytest.approx((mean - deviation, mean + deviation))
    # Times have geometric means, as in tables.
    assert list(by_time.lines[0].xs) == pytest.approx([5.0, (7.0 * 11.0) ** 0.5, (9.0 * 17.0) ** 0.5])
    assert curve.time_to(0.5) == pytest.approx((5.0 * 17.0) ** 0.5)
