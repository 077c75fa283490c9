"""The report in print: nothing is cut off at a sheet's edge, and nothing stands apart from what it is of."""

import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
from browser import A4_WIDTH, measured, needs_chromium, needs_paper, sheets, with_style_of_print
from result_builder import MIB, RECIPE, HandmadeRun, varied
from rich.console import Console

from sltt_bench.report import make_report
from sltt_bench.report.document import Heading, Table, TableCell
from sltt_bench.report.render.table_forms import page_form

METHODS = ("bptt", "sltt", "sltt-k2", *(f"rule-{number}" for number in range(13)))

CPU = "Example CPU at a frequency and with caches that make its conditions two lines long, of 2 threads"


def made_results(folder: Path) -> None:
    """Sixteen methods at two numbers of time steps, with every figure that a GPU gives, and a row of the benchmark."""
    for steps in (4, 6):
        run = HandmadeRun(
            folder / "digits" / f"run{steps}",
            varied(RECIPE, timesteps=steps),
            device_name=CPU,
            number=100 * steps,
        )
        for place, method in enumerate(METHODS):
            for seed in (0, 1):
                bytes_of = {
                    f"peak_{name}_bytes": (300 + 7 * place) * MIB
                    for name in ("tensor", "allocated", "reserved", "nvml", "rss")
                }
                run.cell(
                    method, seed, train_s=[9.0, 2.0 + place / 9, 2.5], energy_j=12345.678, data_wait_s=0.1,
                    eval_s=1.25, samples_per_s=12345.6, gpu_util_mean=0.5, backward_passes=6, firing_rate=0.15,
                    **bytes_of,
                )  # fmt: skip


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("paper")
    made_results(folder / "results")
    make_report([folder / "results"], folder / "out", formats=("html",), console=Console(quiet=True))
    return {path.name: path.read_text(encoding="utf-8") for path in (folder / "out").glob("*.html")}


WIDE = """
page.querySelectorAll("details").forEach((part) => { part.open = true; });
const places = [...page.querySelectorAll(".scroll")];
return {
  tables: places.length,
  wide: places.filter((place) => place.scrollWidth > place.clientWidth + 1).map((place) => place.ariaLabel),
  records: page.querySelectorAll(".records").length,
};
"""


@needs_chromium
def test_no_table_is_wider_than_a_sheet(pages: dict[str, str], tmp_path: Path) -> None:
    seen, _ = measured(with_style_of_print(pages["page-digits.html"]), A4_WIDTH, tmp_path, WIDE)
    assert seen["tables"] >= 4
    assert seen["wide"] == []
    assert seen["records"] > 0  # fifteen figures of sixteen methods stand side by side in no form


INKS = """
page.documentElement.dataset.theme = "dark";
const style = getComputedStyle(page.documentElement);
return Object.fromEntries(["--ink", "--c0072b2", "--good-wash"].map((name) => [name, style.getPropertyValue(name)]));
"""


@needs_chromium
def test_a_page_that_is_dark_on_a_screen_is_printed_in_the_inks_of_a_light_one(
    pages: dict[str, str], tmp_path: Path
) -> None:
    seen, _ = measured(with_style_of_print(pages["report.html"]), A4_WIDTH, tmp_path, INKS)
    assert "var(--c0072b2, #0072b2)" in pages["report.html"]  # a colour that only a dark page has otherwise
    assert seen == {"--ink": "#000", "--c0072b2": "", "--good-wash": "#e4f3ec"}


COPIES, STEP = 16, 66
"""The page begins at so many heights of a sheet, in pixels apart: each break falls everywhere."""


DRAWN = r'\1<text y="9">drawn</text></svg>'


@pytest.fixture(scope="module")
def everywhere(pages: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """The sheets of copies of a page, each beginning a little lower on its first sheet."""
    page = pages["page-digits.html"]
    figures = re.findall(r"<figure.*?</figure>", page, re.DOTALL)
    for figure in figures:  # one is enough, and its lines take long to print
        page = page.replace(
            figure,
            "" if figure != figures[0] else re.sub(r"(<svg [^>]*>).*</svg>", DRAWN, figure, flags=re.DOTALL),
        )
    start, end = page.index("<main>"), page.index("</main>")
    copies = (
        f'<div style="break-before: page; height: {STEP * copy}px"></div>{page[start:end]}</main>'
        for copy in range(COPIES)
    )
    return sheets(page[:start] + "".join(copies) + page[end:], tmp_path_factory.mktemp("sheets"))


def texts(page: str, element: str) -> set[str]:
    """What stands in the elements of a kind."""
    found = re.findall(rf"<{element}\b[^>]*>(.*?)</{element.split()[0]}>", page, re.DOTALL)
    return {" ".join(unescape(re.sub(r"<[^>]*>", " ", text)).split()) for text in found}


@needs_paper
def test_no_sheet_ends_with_a_heading(pages: dict[str, str], everywhere: list[list[str]]) -> None:
    page = pages["page-digits.html"]
    headings = {text for kind in ("h2", "h3", "h4", "summary") for text in texts(page, kind)}
    words_of_tables = {word for text in texts(page, "thead") for word in text.split()} | {
        "[%]",
        "[s]",
        "[MiB]",
    }
    assert {"Accuracy, time and memory", "Every figure"} <= headings
    assert len(everywhere) > 3 * COPIES
    for sheet in everywhere:
        assert sheet[-1] not in headings
        assert "·" not in sheet[-1], "the conditions of a group stand apart from it"
        assert not set(sheet[-1].split()) <= words_of_tables, "the head of a table stands apart from it"


@needs_paper
def test_a_table_has_its_head_on_every_sheet_and_its_notes_beside_it(
    pages: dict[str, str], everywhere: list[list[str]]
) -> None:
    page = pages["page-digits.html"]
    notes = {
        note
        for text in re.findall(r'<ul class="notes">.*?</ul>', page, re.DOTALL)
        for note in texts(text, "li")
    }
    captions = tuple(texts(page, "b"))
    assert notes
    continued = [sheet for sheet in everywhere if sheet[0].startswith(("method", "figure", "top-1"))]
    assert continued, "no table goes on: the test sees nothing"
    for sheet in everywhere:
        name, *figures = sheet[0].split()
        assert name not in METHODS or not figures  # a record's name has its line to itself
        assert not any(note.startswith(sheet[0]) for note in notes)
        assert not sheet[0].startswith(captions), "a caption stands apart from its figure"


@needs_paper
def test_no_row_of_a_table_stands_alone_before_or_after_a_sheets_edge(
    pages: dict[str, str], tmp_path: Path
) -> None:
    """Of a table of three rows that begins at heights a row apart: with its style alone, since rows are low."""
    page = pages["report.html"]
    head = page[: page.index("</style>")] + "</style>"
    rows = "".join(f"<tr><th>row {number}</th></tr>" for number in range(3))
    small = f"<table><thead><tr><th>method</th></tr></thead><tbody>{rows}</tbody></table>"
    starts = (f'<div style="break-before: page; height: {750 + 17 * copy}px"></div>' for copy in range(24))
    printed = sheets(f"{head}<main>{''.join(start + small for start in starts)}</main>", tmp_path)
    assert {len(sheet) for sheet in printed} == {4}, "a row is alone"
    assert len(printed) == 24


@needs_paper
def test_what_is_folded_is_printed_and_links_that_lead_nowhere_on_paper_are_not(
    pages: dict[str, str], tmp_path: Path
) -> None:
    page = re.sub(r"<script>.*</script>", "", pages["page-digits.html"], flags=re.DOTALL)
    lines = [line for sheet in sheets(page, tmp_path) for line in sheet]
    assert '<details class="more"><summary>Every figure' in page
    assert sum(line.startswith("Memory: peak during training.") for line in lines) == 2
    assert not {"CSV", "dark", "SVG", "Answer"} & {word for line in lines for word in line.split()}


# The form of a table ----------------------------------------------------------------------------------


def table(columns: int, rows: int, text: str = "12.5 MiB", **fields: object) -> Table:
    headings = (
        Heading("figure", numeric=False),
        *(Heading(f"rule-{place}", "MiB") for place in range(columns)),
    )
    made = Table("made", "Made", headings, tuple(
        (TableCell(f"peak {row}"), *(TableCell(text, "0.31×", float(row)) for _ in range(columns)))
        for row in range(rows)
    ))  # fmt: skip
    return replace(made, **fields)  # type: ignore[arg-type]


def test_a_table_that_fits_a_sheet_is_shown_as_it_is() -> None:
    small = table(4, 30, secondary=True)
    form = page_form(small)
    assert (form.table, form.stacked, form.records) == (small, False, False)


def test_details_go_below_their_figures_before_a_table_is_turned() -> None:
    middle = table(7, 30, secondary=True)
    form = page_form(middle)
    assert (form.table, form.stacked, form.records) == (middle, True, False)


def test_a_table_of_many_columns_and_few_rows_is_turned() -> None:
    form = page_form(table(300, 5, secondary=True, across="method"))
    assert [heading.text for heading in form.table.headings] == [
        "method",
        *(f"peak {row}" for row in range(5)),
    ]
    assert len(form.table.rows) == 300
    assert form.table.rows[7][0] == TableCell("rule-7", "[MiB]", "rule-7")
    assert form.table.rows[7][3] == TableCell("12.5 MiB", "0.31×", 2.0)
    assert (form.stacked, form.records) == (True, False)


def test_what_fits_in_no_form_is_printed_as_records_of_the_narrower_one() -> None:
    form = page_form(table(300, 30))
    assert form.records
    assert len(form.table.headings) == 31
    assert page_form(table(30, 300)).table == table(30, 300)


def test_a_table_of_words_is_not_turned() -> None:
    words = table(30, 3)
    words = replace(words, headings=tuple(replace(heading, numeric=False) for heading in words.headings))
    form = page_form(words)
    assert (form.table, form.records) == (words, True)
