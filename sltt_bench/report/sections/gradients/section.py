"""The sections of the report on analyses: tables and figures of every family, put in order."""

from collections.abc import Sequence

from sltt_bench.report.document import Context, Contribution, Section
from sltt_bench.report.sections.gradients.families import FILES, GradientFamily, find_families, rows_of
from sltt_bench.report.sections.gradients.figures import figures
from sltt_bench.report.sections.gradients.tables import further_tables, overview
from sltt_bench.report.sections.gradients.words import COSINE, cosine_text, point_words


def gradients(context: Context) -> Contribution:
    """Tables and plots of every analysis."""
    families = find_families(context.results)
    if not families:
        return Contribution()
    count = f"{len(families)} {'analysis' if len(families) == 1 else 'analyses'}"
    return Contribution(
        sections=tuple(_section(family, number, families) for number, family in enumerate(families)),
        frames={file: rows_of(context.results, file).drop(columns="run") for file in FILES},
        sentence=f"{count} of the gradient.",
    )


def _section(family: GradientFamily, number: int, families: Sequence[GradientFamily]) -> Section:
    name = f"gradients-{family.recipe.replace('/', '-')}-{number + 1}"
    return Section(
        name,
        f"The gradient taken apart: {family.title_among(families)}",
        (overview(family, name), *figures(family, name), *further_tables(family, name)),
        lead=(f"{_summary(family)}.", *(_LEAD if number == 0 else ())),
        page=family.recipe,
        chips=family.conditions,
        folded=bool(family.settings) and number > 0,
    )


_LEAD = (
    "g is the full gradient (BPTT), g_s its spatial part (SLTT), g − g_s what travels through time; all on "
    "the same weights, batches and dropout masks, in fp32.",
    "The whole network's figures mix layers that differ: a readout without state has no temporal part and "
    "may have the largest gradient. Look at the layers.",
)


def _summary(family: GradientFamily) -> str:
    network = family.last(family.gradients, "network").dropna(subset=["cosine_mean"])
    if network.empty:
        return f"{family.title}: the gradient is 0 {family.when}, so that there is nothing to take apart"
    several = network[network["timesteps"] > 1]
    network = several if len(several) else network  # at T = 1 it is 1, of necessity
    ordered = network.sort_values("cosine_mean", kind="stable").to_dict("records")
    ends = [(cosine_text(row["cosine_mean"]), row) for row in (ordered[0], ordered[-1])]
    low, high = (f"{cosine} ({point_words(row, ['timesteps', 'tau'])})" for cosine, row in ends)
    value = low if len(ordered) == 1 else f"between {low} and {high}"
    return f"{family.title}, {family.when}: {COSINE} is {value}"
