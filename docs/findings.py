"""Makes docs/findings.md and its figures from the committed results of the studies.

    python docs/findings.py > docs/findings.md      the page
    python docs/findings.py --figures               docs/figures/study-*.png, docs/figures/profile-*.png

Every number on the page is made here from results/studies; what is written by hand (READINGS) holds none.
"""

import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from sltt_bench.recipe import load_recipe, study_names
from sltt_bench.report.document import Context, Figure, Section, Table
from sltt_bench.report.plots import style
from sltt_bench.report.plots.studies import in_order
from sltt_bench.report.sections.studies import studies
from sltt_bench.report.sections.tuning import tuning
from sltt_bench.results.reader import read_results

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "studies"

READINGS: dict[str, str] = {
    "adaptive": "Nothing speaks for it here: in these means the chosen steps are behind the random ones, against what was "
    "expected, and with few epochs both are far behind a gradient at each step. They ran at SLTT's "
    "learning rate, with the published scale, by which the gradient of few steps is smaller (see k).",
    "k": "With SGD and each method at its own learning rate, no K and neither scale is told apart from SLTT or BPTT: one step with "
    "a gradient is as good in these means as all six, but three seeds bound it to some points only, and one seed of the unbiased K = 3 "
    "fell behind. There is no optimum to find: K = 1 is the cheapest and no worse. The scale of the gradient is a learning "
    "rate: at SLTT's own the published K = 1 learns nothing ([trials](tuning.md#the-scale-of-a-gradient-is-a-learning-rate-too)). "
    "Times were taken beside much other work and say nothing.",
    "latency": "Trained directly, a network needs a single step here; the converted one needs as many as it takes to count to "
    "a rate, and draws level when it has them. A network trained at one T can be used at another.",
    "layers": "Near the loss a truncated gradient costs most: the temporal part in the last layer alone brings back most of "
    "what SLTT lost, although the cosine of that layer is the best of the three.",
    "loss": "In these means the loss of each step is the better one on speech, for both gradients, and no different on images: the "
    "kind of loss moves accuracy more than the temporal part of the gradient does.",
    "modality": "With each method at its own learning rate (`sltt-bench tune studies/modality`) the choice does not matter on "
    "images, and hardly on speech. At one learning rate for all, rates alone and few steps were far behind on speech: most "
    "of that was the learning rate (`sltt-bench report results/studies/modality` has both). On events, where the network is a "
    "convolutional one of eight layers, SLTT, OTTT, e-prop and windows of two steps stay near BPTT; few steps fall behind, with "
    "seeds far apart, and the two rules with errors of each layer's own, S-TLLR and PP-Prop, nearly lose the task that they "
    "learn as well as any in two layers. Where the answer comes after the last row, every method falls behind BPTT, windows of two "
    "steps, which keep a part of the gradient through time, the least. Windows, rates and "
    "PP-Prop on speech, and OTTT on the sequence, chose the last learning rate of the grid: their best may be better still.",
    "normalisation": "Any of the normalisations serves SLTT as well as BPTT. The one over time, which SLTT cannot have, buys "
    "BPTT nothing here that a normalisation of each step does not give, and takes more memory. Standardised weights, which need "
    "no batch, are a little behind in these means, and BPTT's graph holds them anew for each step: the most memory of all. With any of them "
    "SLTT learns in fewer epochs than without, with batch norm of each step in the fewest.",
    "recurrence": "With recurrent weights more is lost in these means, at both time constants, but the seeds are too few to bound by how much.",
    "reset": "SLTT falls behind with either reset. In these means, cutting BPTT's gradient at the reset costs BPTT a part of its lead.",
    "size": "Savings of live memory follow depth and batch, not width: in a wide network the weights and their gradients are "
    "the memory, and no rule spares them. With depth the savings grow, but slowly, and less than was expected. Times were taken "
    "beside much other work and say nothing.",
    "surrogate": "On sequences with recurrent weights no surrogate and no width of the triangle closes the gap, although before "
    "training all gradients point nearly the same way: the cosine at the beginning does not foretell what is lost.",
    "tau": "On static images accuracy does not follow the cosine: it stays within the noise of seeds up to the longest time "
    "constant tried, while the gradients part. On events and sequences it is otherwise: see time-gradient.",
    "time-gradient": "On sequences each part of the gradient through the state buys accuracy in these means, even at the "
    "shortest time constant, since the recurrent weights carry what the neurons forget; a window of two steps brings back a "
    "small part of it, and half of the sequence most. On images nothing is lost, and on events much at a long time constant "
    "alone.",
}
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
    sections, numbers = answers()
    parts = [HEAD]
    for name in study_names():
        if name in sections:
            own = numbers[numbers["study"] == name]
            parts.append("\n".join([*_lines(sections[name], own), *_profile_lines(name)]))
        else:
            recipe = load_recipe(name)
            assert recipe.study is not None
            parts.append(
                f"## {name}\n\n{recipe.study.question}\n\nNot run yet: `sltt-bench run {name}` ({recipe.study.cost}).\n"
            )
    return "\n".join(parts)


@cache
def answers() -> tuple[dict[str, Section], pd.DataFrame]:
    """Study → its section of the report; the numbers of all figures."""
    part = studies(Context(read_results([RESULTS]), "bptt"))
    return {section.title: section for section in part.sections}, part.frames["studies.csv"]


@cache
def profile(name: str) -> Section | None:
    """A study's section on how near each method is to the fastest over its tasks: of tuned methods if some are, and of the most."""
    if name not in OVER_TASKS:
        return None
    part = tuning(Context(read_results([RESULTS.parent / name]), "bptt"))
    profiles = [section for section in part.sections if section.name.startswith("profile-")]
    return max(profiles, key=_tuned_and_methods, default=None)


def _tuned_and_methods(profile: Section) -> tuple[bool, int]:
    table = profile.blocks[1]
    assert isinstance(table, Table)
    return not profile.name.startswith("profile-untuned"), len(table.rows)


OVER_TASKS = ("studies/modality",)
"""Studies that ask one question on several tasks."""


def _profile_lines(name: str) -> Iterator[str]:
    if (section := profile(name)) is None:
        return
    figure, table = section.blocks
    assert isinstance(figure, Figure)
    assert isinstance(table, Table)
    yield f"![{figure.title}](figures/{_profile_file(name)})\n"
    yield f"{figure.caption}\n"
    yield f"| {' | '.join(f'{each.text} [{each.unit}]' if each.unit else each.text for each in table.headings)} |"
    yield "|---" * len(table.headings) + "|"
    yield from (f"| {' | '.join(cell.text for cell in row)} |" for row in table.rows)
    yield ""


def _profile_file(name: str) -> str:
    return f"profile-{name.partition('/')[2]}.png"


def _lines(section: Section, numbers: pd.DataFrame) -> Iterator[str]:
    question, answer, *limits = section.lead
    (figure,) = (block for block in section.blocks if isinstance(block, Figure))
    yield f"## {section.title}\n"
    yield f"**{question}**\n"
    if reading := READINGS.get(section.title.partition("/")[2]):
        yield f"{reading}\n"
    yield f"![{question}](figures/{_file(section)})\n"
    yield f"{figure.caption}\n"
    here = f"{section.title}, reference"
    verdicts = answer.replace(f" ({here})", "").replace(f" ({here}, ", " (").removesuffix(".")
    yield from (f"- {sentence}" for sentence in verdicts.split("; ") if sentence)
    yield ""
    for (heading, measure), rows in numbers.groupby(["panel", "measure"], sort=False):
        yield from _table(str(heading), str(measure), rows)
    yield from (f"{sentence}\n" for sentence in limits)


def _table(heading: str, measure: str, rows: pd.DataFrame) -> Iterator[str]:
    """A row for each line, a column for each place on the x axis."""
    levels = rows[rows["at"].isna()]["at_text"]
    places = [*dict.fromkeys(levels), *(str(text) for text in dict.fromkeys(_by_place(rows)["at_text"]))]
    yield f"| {heading} | {' | '.join(places)} |"
    yield "|---" * (1 + len(places)) + "|"
    for line, own in rows.groupby("line", sort=False, dropna=False):
        by_place = {
            row["at_text"]: f"{row['text']} {row['spread']}".strip() for row in own.to_dict("records")
        }
        yield f"| {line or ' '} | {' | '.join(by_place.get(place, '–') for place in places)} |"
    yield ""


def _by_place(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that stand at a place, in the order of the x axis."""
    standing = rows[rows["at"].notna()]
    order = in_order(standing["at"])
    return standing.assign(order=[order.index(place) for place in standing["at"]]).sort_values("order")


def _file(section: Section) -> str:
    return f"study-{re.sub('^studies/', '', section.title)}.png"


def draw() -> None:
    """The figures of the page."""
    drawn = [(_file(section), section) for section in answers()[0].values()]
    drawn += [(_profile_file(name), section) for name in OVER_TASKS if (section := profile(name)) is not None]
    for file, section in drawn:
        (figure,) = (block for block in section.blocks if isinstance(block, Figure))
        with style.applied():
            content: Any = style.files(figure.draw("double"), ["png"])["png"]
        (ROOT / "docs" / "figures" / file).write_bytes(content)


if __name__ == "__main__":
    if "--figures" in sys.argv:
        draw()
    else:
        print(page(), end="")
