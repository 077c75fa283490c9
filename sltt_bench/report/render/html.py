"""The report as HTML pages that need no network: the answer, and one page a recipe."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from sltt_bench.report.document import Figure, MissingFigure, Report, Section, Table, Verdict
from sltt_bench.report.plots import style
from sltt_bench.report.render.contents import Entry, contents, sections_of
from sltt_bench.report.render.table_forms import is_long, page_form

_INKS = {
    style.INK: "var(--ink)",
    style.SOFT_INK: "var(--soft)",
    style.GRID: "var(--grid)",
    style.SURFACE: "var(--surface)",
    style.FAILED: "var(--bad)",
}
"""Inks of the plots that follow the page's theme."""
_KINDS = {Table: "table", Figure: "figure", MissingFigure: "missing"}


@dataclass(frozen=True)
class Page:
    """One file of the report: the answer, or a recipe."""

    file: str
    title: str
    sections: tuple[Section, ...] = ()
    first: bool = False


def pages_of(report: Report) -> list[Page]:
    """The answer first, then a page for each recipe, last those of what belongs to none."""
    parts: dict[str, list[Section]] = {}
    for section in report.sections:
        if section.level == 1:
            own = parts.setdefault(section.page or section.title, [])
        own.append(section)
    first = Page("report.html", report.title, first=True)
    recipes_first = sorted(parts.items(), key=lambda part: " " in part[0])  # as no recipe's name has
    slugs = [re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-") for name, _ in recipes_first]
    named = zip(slugs, recipes_first, strict=True)
    return [first, *(Page(f"page-{slug}.html", name, tuple(own)) for slug, (name, own) in named)]


def render(
    report: Report,
    drawings: Mapping[str, str],
    downloads: Mapping[str, Sequence[tuple[str, str]]],
    files: Sequence[str],
    narrow: Mapping[str, str],
) -> dict[str, str]:
    """File name → page. `drawings`: the SVG text of each figure by name; `downloads`: its files, by label; `files`:
    what was written beside the pages; `narrow`: of some figures the SVG text that a phone shows in their place."""

    def inline(figure: Figure) -> Markup:
        return Markup(inline_svg(drawings[figure.name], figure.name, figure.title))

    def inline_narrow(figure: Figure) -> Markup | None:
        svg = narrow.get(figure.name)
        return Markup(inline_svg(svg, f"{figure.name}-narrow", figure.title)) if svg else None

    template = _environment().get_template("report.html.j2")
    tables = [block for block in report.blocks if isinstance(block, Table)]
    of_methods = [table for table in tables if table.headings[0].text == "method"]
    swatches = (style.colour(row[0].text) for table in of_methods for row in table.rows)
    css = _template("report.css") + _dark_inks([*drawings.values(), *narrow.values(), *swatches])
    pages = pages_of(report)
    claims = [(heading, heading.split()[0].lower(), cards) for heading, cards in report.claims.items()]
    answer = [Entry(heading, f"#{anchor}") for heading, anchor, _ in claims]
    answer.append(Entry("Commands", "#provenance"))

    def contents_of(page: Page) -> list[Entry]:
        own = answer if page.first else sections_of(page.title, page.sections)
        files = [(other.file, "Answer" if other.first else other.title) for other in pages]
        return contents(files, page.file, own) if len(files) > 1 else own

    return {
        page.file: template.render(
            report=report,
            page=page,
            contents=contents_of(page),
            claims=claims,
            files=files,
            inline=inline,
            inline_narrow=inline_narrow,
            downloads_of=lambda figure: downloads.get(figure.name, ()),
            gauge=gauge,
            kind=lambda block: _KINDS[type(block)],
            page_form=page_form,
            is_long=is_long,
            colour=lambda method: _in_theme(style.colour(method)),
            style=Markup(css),
            script=Markup(_template("report.js")),
        )
        for page in pages
    }


def _in_theme(text: str) -> str:
    """Colours as variables that a dark page makes lighter; elsewhere they are as they are in files."""
    return _OTHER_INK.sub(r"var(--c\1, #\1)", text)


_OTHER_INK = re.compile(r"(?:^|(?<=[:(] ))#([0-9a-f]{6})\b")
"""A colour as the drawings' styles have it, or alone."""


def _dark_inks(texts: Iterable[str]) -> str:
    """Style of a dark page: the colours of these drawings and methods, lighter."""
    used = {f"#{ink}" for text in texts for ink in _OTHER_INK.findall(text)}
    left = {*_INKS, style.ON_BRIGHT, style.ON_DIM}
    inks = " ".join(f"--c{ink[1:]}: {style.on_dark(ink)};" for ink in sorted(used - left))
    chosen, by_system = ':root[data-theme="dark"]', ':root:not([data-theme="light"])'
    dark = "@media screen and (prefers-color-scheme: dark)"
    return (
        f"{dark} {{ {by_system} {{ {inks} }} }}\n@media screen {{ {chosen} {{ {inks} }} }}\n" if inks else ""
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
    body = _in_theme(body)
    label = f'<svg role="img" aria-label="{Markup.escape(title)}" '
    return body.replace("<svg ", label, 1)


def gauge(verdict: Verdict) -> dict[str, float] | None:
    """A verdict's scale: where the claim holds, and where the measurement lies, in percent of its width; None without a value."""
    if verdict.value is None or verdict.limit is None:
        return None
    low = verdict.value if verdict.low is None else verdict.low
    high = verdict.value if verdict.high is None else verdict.high
    is_ratio = verdict.claim["relation"] == "at_most_ratio"
    edges = [low, high, verdict.limit, *([0.0] if is_ratio else [])]
    room = (max(edges) - min(edges) or abs(verdict.limit) or 1.0) * 0.25
    left, right = 0.0 if is_ratio else min(edges) - room, max(edges) + room
    marks = {"limit": verdict.limit, "value": verdict.value, "low": low, "high": high}
    places = {name: round(100 * (mark - left) / (right - left), 2) for name, mark in marks.items()}
    zone = (0.0, places["limit"]) if verdict.at_most else (places["limit"], 100 - places["limit"])
    return {**places, "zone_left": zone[0], "zone_width": zone[1]}


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_template),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # No line begins with the value of "name = value".
    environment.filters["joined"] = lambda text: text.replace(" = ", " =\xa0")
    return environment


def _template(name: str) -> str:
    return (files("sltt_bench.report.render") / "templates" / name).read_text(encoding="utf-8")
