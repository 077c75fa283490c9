"""The report as one self-contained HTML page: no network, light and dark, on paper and on a phone."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from sltt_bench.report.document import Figure, Missing, Report, Table, Verdict, Width
from sltt_bench.report.plots import style

_INKS = {
    style.INK: "var(--ink)",
    style.SOFT_INK: "var(--soft)",
    style.GRID: "var(--grid)",
    style.SURFACE: "var(--surface)",
    style.FAILED: "var(--bad)",
}
"""Colours of the plots that follow the page's theme; those of the methods are the same in both."""


def render(report: Report, drawings: Mapping[tuple[str, Width], str]) -> str:
    """The page. `drawings` has the SVG text of each figure (by name) in both widths."""

    def inline(figure: Figure, width: Width) -> Markup:
        return Markup(inline_svg(drawings[figure.name, width], f"{figure.name}-{width}", figure.title))

    template = _environment().get_template("report.html.j2")
    return template.render(
        report=report,
        judged=[verdict for verdict in report.verdicts if verdict.is_finding],
        unmeasured=[verdict for verdict in report.verdicts if not verdict.is_finding],
        recipes=[section for section in report.sections if section.level == 1],
        inline=inline,
        gauge=gauge,
        kind=_kind,
        colour=style.colour,
        style=Markup(_template("report.css")),
        script=Markup(_template("report.js")),
    )


def inline_svg(svg: str, prefix: str, title: str) -> str:
    """A drawing for use inside a page: as wide as its place, in the page's inks and type, ids its own."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"\s(?:width|height)=\"[\d.]+pt\"", "", body, count=2)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', body)
    body = re.sub(r'(xlink:href="|url\()#', rf"\1#{prefix}-", body)
    body = re.sub(r"'DejaVu Sans'(?:, [^;\"]+)?", "var(--sans)", body)
    for ink, variable in _INKS.items():
        body = body.replace(ink, variable)
    label = f'<svg role="img" aria-label="{Markup.escape(title)}" '
    return body.replace("<svg ", label, 1)


@dataclass(frozen=True)
class Gauge:
    """A verdict's scale: where the claim holds, and where the measurement lies, in percent of its width."""

    zone_left: float
    zone_width: float
    limit: float
    value: float
    low: float
    high: float


def gauge(verdict: Verdict) -> Gauge | None:
    """The scale of a verdict; None for one without a value."""
    if verdict.value is None or verdict.limit is None:
        return None
    low = verdict.value if verdict.low is None else verdict.low
    high = verdict.value if verdict.high is None else verdict.high
    is_ratio = verdict.claim["relation"] == "at_most_ratio"
    edges = [low, high, verdict.limit, *([0.0] if is_ratio else [])]
    room = (max(edges) - min(edges) or abs(verdict.limit) or 1.0) * 0.25
    left, right = 0.0 if is_ratio else min(edges) - room, max(edges) + room

    def place(value: float) -> float:
        return round(100 * (value - left) / (right - left), 2)

    limit = place(verdict.limit)
    zone = (0.0, limit) if verdict.at_most else (limit, 100 - limit)
    return Gauge(*zone, limit, place(verdict.value), place(low), place(high))


def _kind(block: Any) -> str:
    return {Table: "table", Figure: "figure", Missing: "missing"}[type(block)]


@cache
def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(_template),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _template(name: str) -> str:
    return (files("sltt_bench.report.render") / "templates" / name).read_text(encoding="utf-8")
