"""Makes docs/findings.md and its figures from the committed results of the studies.

    python docs/findings.py > docs/findings.md      the page
    python docs/findings.py --figures               docs/figures/study-*.png, docs/figures/profile-*.png

Every number on the page is made here from results/studies; what is written by hand (READINGS) holds none.
"""

import re
import sys
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from sltt_bench.common.printable import make_console
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.planning.recipe_files import study_names
from sltt_bench.report.document import Context, Figure, Section, Table
from sltt_bench.report.plots import style
from sltt_bench.report.plots.studies import in_order
from sltt_bench.report.sections.studies import studies
from sltt_bench.report.sections.tuning import tuning
from sltt_bench.results.reader import print_unread, read_results

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "studies"

READINGS: dict[str, str] = {
    "adaptive": "No advantage is seen. In these means the chosen steps are behind the random ones, against what was expected. "
    "With few epochs both are far behind a gradient at each step. They ran at SLTT's learning rate with the published scale, "
    "by which the gradient of few steps is smaller (see k).",
    "k": "No K and neither scale is told apart from SLTT or BPTT. They were trained with SGD, each method at its own learning rate. "
    "One step with a gradient is as good in these means as all six, but three seeds bound it to some points only, and one seed of the unbiased "
    "K = 3 fell behind. There is no optimum to find: K = 1 multiplies least and is no worse in these means. The scale of the gradient is a learning "
    "rate: at SLTT's own the published K = 1 learns nothing ([trials](tuning.md#the-scale-of-a-gradient-is-a-learning-rate-too)). "
    "Other work ran beside the measurement, so the times say nothing.",
    "latency": "Trained directly, a network needs a single step here. A converted network needs as many as it takes to count to "
    "a rate, and draws level when it has them. A network trained at one T can be used at another.",
    "layers": "The past of the layer next to the loss matters most: kept in that layer alone, the gradient through time brings back "
    "most of what SLTT lost. Errors of later steps then also reach the weights of the layers below, through that layer's past. So "
    "this compares pasts, and does not say whose weights gain. The last layer's own cosine is the best of the three.",
    "loss": "The loss of each step is better on speech for both gradients, in these means, and no different on images. The "
    "kind of loss moves accuracy more than the temporal part of the gradient does.",
    "modality": "Tuned methods differ little on images and speech, and much on events and where the answer comes at the end. Each "
    "has its own learning rate (`sltt-bench tune studies/modality`).\n\n"
    "- *Images:* no method is told apart from BPTT.\n"
    "- *Speech:* none either. At one learning rate for all, rates alone and few steps were far behind. Most of that was the learning rate "
    "(`sltt-bench report results/studies/modality` has both).\n"
    "- *Events* (a convolutional network of eight layers): SLTT, OTTT, e-prop and windows of two steps stay near BPTT. Few steps "
    "fall behind, with seeds far apart. S-TLLR and PP-Prop, the two rules that add an error of each layer's own, end 35 points and more behind BPTT. "
    "On images, in two layers, they are as good as any.\n"
    "- *An answer after the last row:* every method falls behind BPTT. Windows of two steps, which keep a part of the gradient "
    "through time, fall behind least.\n"
    "- *The grid's edge:* windows, rates and PP-Prop on speech, and OTTT on the sequence, chose the last learning rate of the "
    "grid. Their best may be better still.",
    "normalisation": "Every normalisation serves SLTT as well as BPTT. The one over time, which SLTT cannot have, buys "
    "BPTT nothing here that a normalisation of each step does not give, and takes more memory. Standardised weights need no "
    "batch. They are a little behind in these means, and take the most memory of all under BPTT, whose graph holds them anew for "
    "each step. SLTT learns in fewer epochs with any normalisation than without, and in the fewest with batch norm of each step.",
    "recurrence": "With recurrent weights more is lost in these means, at both time constants. The seeds are too few to say how much.",
    "reset": "SLTT falls behind with either reset. In these means, cutting BPTT's gradient at the reset costs BPTT a part of its lead.",
    "size": "Savings of live memory grow with depth and shrink with width. In a wide network the weights and their gradients are "
    "the memory, and no rule saves them. With depth the savings grow, but slowly, and less than was expected. Other work ran "
    "beside the measurement, so the times say nothing.",
    "surrogate": "No surrogate and no width of the triangle closes the gap on sequences with recurrent weights. Before "
    "training all gradients point nearly the same way: the cosine at the beginning does not foretell what is lost.",
    "tau": "On static images accuracy does not follow the cosine. It stays within the noise of seeds up to the longest time "
    "constant tried, while the gradients part. On events at a long time constant and on sequences it is otherwise (see time-gradient).",
    "time-gradient": "On sequences each part of the gradient through the state buys accuracy in these means, even at the "
    "shortest time constant. The recurrent weights carry what the neurons forget. A window of two steps brings back a "
    "small part of it, a window of half the sequence most. On images no loss stands out from the noise of seeds, and on events much is lost at a long time "
    "constant only.",
}
"""Study → what its numbers say, in words; the first sentence is the answer."""

HEAD = """\
# Findings

For SNN researchers: what the [studies](../recipes/studies) found about open questions on SLTT and BPTT. Each study has a
question, an answer, one figure, a verdict on each expectation, the numbers and the limits.

- All runs used small networks and one CPU thread. Other work ran beside them, so times are indicative only (their ratios are paired).
- Intervals are 95 % t intervals over n seeds. With three seeds they are wide, and "inconclusive" is an answer.
- Expectations were written into the recipes before the runs, and stand as they were.
- `python docs/findings.py` makes every number from the committed results. `sltt-bench report results/studies` shows the
  same with every table.
"""


def page() -> str:
    """The page as it stands in docs/."""
    sections, numbers = answers()
    parts = [HEAD, "\n".join(_answers_in_short(sections))]
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


def _answers_in_short(sections: Collection[str]) -> Iterator[str]:
    """A row for each study that has been run: its name and the first sentence of its reading."""
    yield "| study | answer |\n|---|---|"
    for name in (name for name in study_names() if name in sections):
        short = name.partition("/")[2]
        answer = re.match(r".*?[.:](?=\s)", READINGS[short])
        assert answer is not None, name
        yield f"| [{short}](#{name.replace('/', '')}) | {answer[0].removesuffix('.').removesuffix(':')} |"
    yield ""


@cache
def answers() -> tuple[dict[str, Section], pd.DataFrame]:
    """Study → its section of the report; the numbers of all figures."""
    results = read_results([RESULTS])
    part = studies(Context(results, "bptt"))
    print_unread(results.skipped, make_console(stderr=True))
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
    question, _, *limits = section.lead
    (figure,) = (block for block in section.blocks if isinstance(block, Figure))
    yield f"## {section.title}\n"
    yield f"**{question}**\n"
    if reading := READINGS.get(section.title.partition("/")[2]):
        yield f"{reading}\n"
    yield f"![{question}](figures/{_file(section)})\n"
    yield f"{figure.caption}\n"
    for card in section.cards:
        values = "; ".join(", ".join([found.evidence, *card.settings(found)]) for found in card.findings)
        yield f"- {card.says}: {card.word}, {values or card.answer}"
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
