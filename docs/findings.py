"""Makes docs/findings.md and its figures from the committed results of the studies.

    python docs/findings.py > docs/findings.md      the page
    python docs/findings.py --figures               docs/figures/study-*.png

Every number on the page is made here from results/studies; what is written by hand (READINGS) holds none.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from sltt_bench.recipe import load_recipe, study_names
from sltt_bench.report.document import Context, Figure, Section
from sltt_bench.report.plots import style
from sltt_bench.report.sections.studies import studies
from sltt_bench.results.reader import read_results

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "studies"

READINGS: dict[str, str] = {}
"""Study → what its numbers say, in words."""

HEAD = """\
# Findings

What the [studies](../recipes/studies) found: a question, one figure, the verdict on each expectation, the limits. Every
number is made from the committed results by `python docs/findings.py`; `sltt-bench report results/studies` shows the same
with every table. Expectations were written into the recipes before the runs, and stand as they were.

All runs: one CPU thread, beside other work, so that times are indicative only (their ratios are paired). Intervals
are 95 % t intervals over seeds; n is printed; with three seeds they are wide, and "inconclusive" is an answer.
"""


def page() -> str:
    """The page as it stands in docs/."""
    sections, numbers = found()
    parts = [HEAD]
    for name in study_names():
        if name in sections:
            own = numbers[numbers["study"] == name]
            parts.append("\n".join(_lines(sections[name], own)))
        else:
            recipe = load_recipe(name)
            assert recipe.study is not None
            parts.append(
                f"## {name}\n\n{recipe.study.question}\n\nNot run yet: `sltt-bench run {name}` ({recipe.study.cost}).\n"
            )
    return "\n".join(parts)


def found() -> tuple[dict[str, Section], pd.DataFrame]:
    """Study → its section of the report; the numbers of all figures."""
    part = studies(Context(read_results([RESULTS]), "bptt"))
    return {section.title: section for section in part.sections}, part.frames["studies.csv"]


def _lines(section: Section, numbers: pd.DataFrame) -> Iterator[str]:
    question, answer, *limits = section.lead
    (figure,) = (block for block in section.blocks if isinstance(block, Figure))
    yield f"## {section.title}\n"
    yield f"**{question}**\n"
    if reading := READINGS.get(section.title.partition("/")[2]):
        yield f"{reading}\n"
    yield f"![{question}](figures/{_file(section)})\n"
    yield f"{figure.caption}\n"
    told = answer.replace(f" ({section.title}, reference)", "").removesuffix(".")
    yield from (f"- {sentence}" for sentence in told.split("; ") if sentence)
    yield ""
    for (heading, measure), rows in numbers.groupby(["panel", "measure"], sort=False):
        yield from _table(str(heading), str(measure), rows)
    yield from (f"{sentence}\n" for sentence in limits)


def _table(heading: str, measure: str, rows: pd.DataFrame) -> Iterator[str]:
    """A row for each line, a column for each place on the x axis."""
    places = list(dict.fromkeys(rows["at_text"]))
    yield f"| {heading} | {' | '.join(places)} |"
    yield "|---" * (1 + len(places)) + "|"
    for line, own in rows.groupby("line", sort=False, dropna=False):
        by_place = {
            row["at_text"]: f"{row['text']} {row['spread']}".strip() for row in own.to_dict("records")
        }
        yield f"| {line or ' '} | {' | '.join(by_place.get(place, '–') for place in places)} |"
    yield ""


def _file(section: Section) -> str:
    return f"study-{re.sub('^studies/', '', section.title)}.png"


def draw() -> None:
    """The figures of the page."""
    for section in found()[0].values():
        (figure,) = (block for block in section.blocks if isinstance(block, Figure))
        with style.applied():
            content: Any = style.files(figure.draw("double"), ["png"])["png"]
        (ROOT / "docs" / "figures" / _file(section)).write_bytes(content)


if __name__ == "__main__":
    if "--figures" in sys.argv:
        draw()
    else:
        print(page(), end="")
