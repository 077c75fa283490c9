"""One visual language for all plots: sizes, type, inks, and a fixed colour for each method."""

import math
import re
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from textwrap import wrap
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import XAxis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, Formatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from sltt_bench.report.document import Width
from sltt_bench.report.groups import rule_and_number

WIDTH_INCHES: dict[Width, float] = {"column": 3.3, "double": 6.9}
"""One and two columns of a paper."""
LETTERS_PER_INCH = 18
"""Of a legend, on average."""
MOST_IN_ROW = 3
"""Panels of a figure from which on they are small multiples."""
DPI = 200
LEGEND_ROW_INCHES, ROWS_WITH_ROOM = 0.16, 2
"""What a row of a legend takes, and how many have room in a figure as high as its panels."""
MOST_NAMED = 12
"""Lines of a figure that are told apart and named; more are nobody's to tell apart."""

# Each ink stands for one role and occurs nowhere else, so that a dark page can replace it.
INK = "#1c2126"
SOFT_INK = "#5b6470"
GRID = "#e3e7eb"
SURFACE = "#fefefe"
FAILED = "#c0392b"
ON_BRIGHT, ON_DIM = "#101214", "#ffffff"
"""Of numbers that are written onto colours: a dark page leaves them, as it leaves what is below them."""

# The rules that stand most often in one figure differ for the common kinds of colour blindness too; markers and labels
# tell all of them apart as well. Every ink has three times the contrast of the surface or more (WCAG 2.1, 1.4.11).
_RULES = {
    "bptt": ("#d55e00", "s"),
    "sltt": ("#0072b2", "o"),
    "sltt-k": ("#009e73", "d"),
    "sltt-a": ("#3e9ccd", ">"),
    "tbptt-w": ("#8088fc", "h"),
    "bptt-d": ("#e0599e", "X"),
    "bptt-l": ("#ea657a", "^"),
    "bptt-ckpt": ("#c2843c", "p"),
    "ottt": ("#062dac", "*"),
    "ottt-o": ("#513659", "P"),
    "e-prop": ("#909556", "8"),
    "s-tllr": ("#742423", "d"),
    "pp-prop": ("#8e2087", "<"),
    "pp-prop-a": ("#8e2087", "<"),
    "rate": ("#1ca2b4", "D"),
    "conversion": ("#485a05", "H"),
}
"""Rule without its number → ink and marker: a look of its own for each that ships."""
_SHARES = ("bptt-d", "pp-prop-a")
"""Rules whose number is a share; that of others counts steps or layers."""
_SLTT_K_MARKERS = {1: "^", 2: "v", 3: "<", 4: "D", 8: "P"}
OTHER_INKS = tuple(_RULES[rule][0] for rule in ("bptt-d", "e-prop", "sltt-a", "pp-prop", "bptt-ckpt"))
_OTHER_MARKERS = ("X", ">", "p", "h", "*")
_BLACK_A_DOUBLING = 0.15
"""In the ink of a rule whose number is twice that of another; of 16 and more it is the same."""

_RC: Any = {
    "font.family": "DejaVu Sans",  # it comes with matplotlib: the layout is the same everywhere
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 7,
    "axes.titley": 1.0,  # where it would be anyway, without looking for it at every drawing
    "axes.labelsize": 7.5,
    "axes.labelcolor": SOFT_INK,
    "axes.edgecolor": SOFT_INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "xtick.color": SOFT_INK,
    "ytick.color": SOFT_INK,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "figure.facecolor": SURFACE,
    "svg.fonttype": "none",
    "svg.hashsalt": "sltt-bench",
    "hatch.linewidth": 0.6,
}


@contextmanager
def applied() -> Iterator[None]:
    """Everything drawn or written inside looks as this file says, whatever the user's own settings."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        yield


def colour(method: str) -> str:
    """The colour of a method, the same in every plot of every report: its rule's ink, the darker the larger its number."""
    rule, number = rule_and_number(method)
    doublings = 0.0
    if number is not None:
        doublings = 4 * number if rule in _SHARES else math.log2(max(1.0, number))
    return _mixed(_ink(rule), _BLACK_A_DOUBLING * min(4.0, doublings), "#000000")


def _ink(rule: str) -> str:
    """Equal for methods whose colours are shades of one."""
    return _RULES[rule][0] if rule in _RULES else OTHER_INKS[_fixed(rule) % len(OTHER_INKS)]


def _mixed(ink: str, share: float, other: str) -> str:
    """The ink with this share of another in it."""
    pairs = zip(to_rgb(ink), to_rgb(other), strict=True)
    return to_hex(tuple((1 - share) * a + share * b for a, b in pairs))  # type: ignore[arg-type]


def marker(method: str) -> str:
    """The marker of a method, the same in every plot where no other looks like it (`looks`)."""
    rule, number = rule_and_number(method)
    if rule == "sltt-k" and number in _SLTT_K_MARKERS:
        return _SLTT_K_MARKERS[int(number)]
    return _RULES[rule][1] if rule in _RULES else _OTHER_MARKERS[_fixed(method) // 7 % len(_OTHER_MARKERS)]


RAMP = "viridis"
"""Of what is told by its colour alone."""


def ramp(share: float) -> str:
    """A colour for a place in an order, even in brightness; `share` from 0 to 1. The ends, pale and black, are left out."""
    return to_hex(matplotlib.colormaps["plasma"](0.05 + 0.57 * share))


_SPARE_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
_SPARE_STROKES = ((0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)), (0, (5, 1, 1, 1, 1, 1)))


def looks(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Method → its colour, marker and stroke in a figure, as matplotlib calls them; of methods that would look alike (numbers
    of one rule, names that have one colour by chance) the later ones have other marks and strokes."""
    own: dict[str, dict[str, Any]] = {}
    taken: dict[str, list[tuple[str, Any]]] = {}
    for method in dict.fromkeys(methods):
        alike = taken.setdefault(_ink(rule_and_number(method)[0]), [])
        mark = marker(method)
        # Dashed: the unbiased variants of SLTT-K, which share their sibling's colour.
        stroke: Any = "--" if method.endswith("-unbiased") else "-"
        if (mark, stroke) in alike:
            used = {other for other, _ in alike}
            mark = next((spare for spare in _SPARE_MARKERS if spare not in used), mark)
            stroke = _SPARE_STROKES[len(alike) % len(_SPARE_STROKES)]
        alike.append((mark, stroke))
        own[method] = {"color": colour(method), "marker": mark, "linestyle": stroke}
    return own


def _fixed(method: str) -> int:
    return zlib.crc32(method.encode())


# Figures ----------------------------------------------------------------------------------------


def panels(width: Width, count: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels: side by side across two columns, one below the other in one column.

    More than three are small multiples, three or two in a row (four: two and two). `height` is that of one panel in inches;
    the caller adds what it needs for legends itself.
    """
    most = 3 if width == "double" else 1 if count <= MOST_IN_ROW else 2
    columns = 2 if count == 4 else min(count, most)
    rows = math.ceil(count / columns)
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.05, wspace=0.05, hspace=0.06)
    figure = Figure(figsize=(WIDTH_INCHES[width], height * rows), layout=layout)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


ANY = (-math.inf, math.inf)


def plain_ticks(
    axes: Axes,
    which: Literal["x", "y"],
    *,
    whole: bool = False,
    most: int | None = None,
    within: tuple[float, float] = ANY,
) -> None:
    """Few, round ticks in plain numbers; none for what no figure of the axis can be, and no room for it but for a mark."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(
        MaxNLocator(most or (5 if which == "x" else 6), integer=whole, steps=[1, 2, 5, 10])
    )
    low, high = within
    if within != ANY:
        start, end = axis.get_view_interval()
        room = _ROOM_BEYOND * (end - start)
        getattr(axes, f"set_{which}lim")(max(start, low - room), min(end, high + room))

    def written(value: float, _: int) -> str:
        number = round(value, 9)
        return f"{number:,.10g}".replace("-", "−") if low <= number <= high else ""

    axis.set_major_formatter(FuncFormatter(written))


_ROOM_BEYOND = 0.06
"""Of an axis, beyond what a figure of it can be."""


def log_ticks(axis: XAxis) -> None:
    """Ticks of a logarithmic axis in plain numbers: powers of ten, and where these are few 2 and 5 times as much."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(10, (1.0, 2.0, 5.0) if high / low < _FEW_DECADES else (1.0,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


_FEW_DECADES = 300


def label(words: str, seeds: str, which: Literal["x", "y"]) -> str:
    """Of an axis, with the number of seeds, if it is to be seen: below the words along y, where there is less room."""
    return (", " if which == "x" else "\n").join(filter(None, [words, seeds]))


_NO_BREAK = "\N{NON-BREAKING HYPHEN}"


def wrapped(text: str, columns: int, most: int | None = None) -> str:
    """The text in lines of so many letters, the rest beyond `most` lines left out; "name = value" is kept on one line, and
    a word with hyphens."""

    def joined(pair: re.Match[str]) -> str:
        return pair[0].replace(" ", "\xa0") if len(pair[0]) <= columns else f"{pair[1]} =\xa0{pair[2]}"

    def whole(word: re.Match[str]) -> str:
        return word[0].replace("-", _NO_BREAK) if len(word[0]) <= columns else word[0]

    text = re.sub(r"\S+", whole, re.sub(r"(\S+) = (\S+)", joined, text))
    lines = wrap(text, columns, max_lines=most, placeholder=" …")
    return "\n".join(lines).replace("\xa0", " ").replace(_NO_BREAK, "-")


def weight(place: int) -> tuple[float, float]:
    """Line width and marker size of the method at this place in the order: where lines coincide, the later
    and thinner one leaves the earlier one's edges to see."""
    return max(2.4 - 0.55 * place, 0.9), max(7.0 - 1.1 * place, 3.8)


@dataclass(frozen=True)
class Named:
    """Which of a figure's lines are told apart. The others are thin and grey, and counted in the legend."""

    labels: tuple[str, ...]
    """In the order of the figure, those first that must not be missed."""

    def __contains__(self, label: str) -> bool:
        return (
            label in self.labels[:MOST_NAMED] or len(self.labels) <= MOST_NAMED + 1
        )  # "1 more" takes as much room

    def legend(self, label: str) -> str | None:
        """What the legend calls a line; None: nothing. The first that has no name stands for all of them."""
        if label in self:
            return label
        rest = self.labels[MOST_NAMED:]
        return f"{len(rest)} more" if label == rest[0] else None


_MORE = re.compile(r"\d+ more")


SEED: dict[str, Any] = {
    "linestyle": "none", "marker": ".", "markersize": 2.8, "alpha": 0.55, "markeredgewidth": 0, "zorder": 2.5,
}  # fmt: skip
"""How a single seed's dot looks beside its mean."""
UNNAMED: dict[str, Any] = {
    "color": SOFT_INK, "linewidth": 0.4, "marker": "none", "linestyle": "-", "alpha": 0.5, "zorder": 1,
}  # fmt: skip
"""How a line looks that is not told apart."""
UNNAMED_POINT: dict[str, Any] = UNNAMED | {
    "linestyle": "none", "marker": ".", "markersize": 3.0, "markeredgewidth": 0,
}  # fmt: skip
"""The same of points that have no line."""


def legend_below(figure: Figure, axes: Sequence[Axes], width: Width, order: Sequence[str] = ()) -> None:
    """One legend for all panels, under them: each label once, in this order (matplotlib has what bears error bars last)."""
    entries: dict[str, Any] = {}
    for place in axes:
        for handle, label in zip(*place.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if not entries:
        return
    places = {label: place for place, label in enumerate(dict.fromkeys(order))}
    entries = dict(sorted(entries.items(), key=lambda entry: places.get(entry[0], len(places))))
    if uncounted := [label for label in entries if _MORE.fullmatch(label)]:
        entries[uncounted[0]] = entries.pop(uncounted[0])  # to the end
    letters = 5 + max(len(_with_short_words(label)) for label in entries)  # a handle takes about five
    most = max(1, min(4 if width == "column" else 7, int(LETTERS_PER_INCH * WIDTH_INCHES[width] / letters)))
    rows = math.ceil(len(entries) / most)
    columns = math.ceil(len(entries) / rows)
    figure.set_figheight(figure.get_figheight() + LEGEND_ROW_INCHES * max(0, rows - ROWS_WITH_ROOM))
    figure.legend(
        list(entries.values()), list(entries), loc="outside lower center", ncols=columns, columnspacing=1.2,
        handletextpad=0.6,
    )  # fmt: skip


def share_scale(axes: Sequence[Axes], which: Literal["x", "y"], quantities: Sequence[str]) -> None:
    """One scale for the panels that show one quantity along an axis: from the least of their limits to the largest."""
    scaled = [
        (quantity, getattr(place, f"get_{which}scale")())
        for place, quantity in zip(axes, quantities, strict=True)
    ]
    for shown in set(scaled):
        alike = [place for place, own in zip(axes, scaled, strict=True) if own == shown]
        lows, highs = zip(*(getattr(place, f"get_{which}lim")() for place in alike), strict=True)
        for place in alike:
            getattr(place, f"set_{which}lim")(min(lows), max(highs))


def from_zero(axes: Axes, which: Literal["x", "y"]) -> None:
    """Start the axis at 0 and leave room beyond the largest value."""
    largest = axes.dataLim.xmax if which == "x" else axes.dataLim.ymax
    end = 1.12 * largest if math.isfinite(largest) and largest > 0 else 1.0
    (axes.set_xlim if which == "x" else axes.set_ylim)(0, end)


def on_dark(ink: str) -> str:
    """The counterpart of an ink on a dark surface: what differs there differs here."""
    return _mixed(ink, 1 / 3, "#ffffff")


# Files ------------------------------------------------------------------------------------------


def files(figure: Figure, kinds: Sequence[str]) -> dict[str, bytes]:
    """The figure as "svg" (its text stays text) and "png"; equal figures give equal files.

    `Figure.savefig` would lay the figure out anew for each kind; here that is done once.
    """
    with warnings.catch_warnings():  # letters that the font lacks are boxes in a PNG and text in an SVG
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        warnings.filterwarnings("ignore", "constrained_layout not applied", UserWarning)
        _shorten_words(figure)
        figure.set_dpi(DPI)  # letters are not equally wide at every resolution: laid out as they will be seen
        if layout := figure.get_layout_engine():
            layout.execute(figure)
            figure.set_layout_engine("none")
        return {kind: _content(figure, kind) for kind in kinds}


def _content(figure: Figure, kind: str) -> bytes:
    stream = BytesIO()
    if kind == "svg":
        FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None})  # type: ignore[no-untyped-call]
    else:
        figure.set_dpi(DPI)  # writing an SVG leaves a figure at 72
        FigureCanvasAgg(figure).print_png(stream, metadata={"Software": "sltt-bench"})  # type: ignore[no-untyped-call]
    return stream.getvalue()


def _shorten_words(figure: Figure) -> None:
    """A name longer than a line leaves no room for what is drawn: its middle is cut out."""
    texts = [text for legend in figure.legends for text in legend.get_texts()]
    for axes in figure.axes:
        texts += [axes.xaxis.label, axes.yaxis.label]
        texts += [
            part for part in axes.get_children() if isinstance(part, Text)
        ]  # titles, and what is written
        for axis in (axes.xaxis, axes.yaxis):
            written = axis.get_major_formatter()
            if isinstance(written, FixedFormatter | FuncFormatter):
                axis.set_major_formatter(FuncFormatter(partial(_shortly_written, written)))
    for text in texts:
        if (short := _with_short_words(text.get_text())) != text.get_text():
            text.set_text(short)


def _shortly_written(written: Formatter, value: float, place: int | None) -> str:
    return _with_short_words(written(value, place))


def _with_short_words(text: str) -> str:
    return re.sub(r"(\S{20})\S{5,}(\S{8})", r"\1…\2", text)
