"""What was measured by runs: sections recipe by recipe and group by group, in the order of telling."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from sltt_bench.common.format import counted
from sltt_bench.planning.studies import FOLDER as STUDIES
from sltt_bench.report.claims import judge
from sltt_bench.report.document import Context, Contribution, Figure, Section, Table
from sltt_bench.report.groups import Group, differing_fields, in_words, words_apart
from sltt_bench.report.numbers import first_of
from sltt_bench.report.sections.runs.figures import (
    group_figures,
    in_a_sweep,
    missing_figures,
    multiples,
    sweep_figures,
)
from sltt_bench.report.sections.runs.frames import seeds_frame, summary_frame
from sltt_bench.report.sections.runs.tables import (
    backend_tables,
    every_figure,
    inference_costs,
    overview,
    smoke_table,
)
from sltt_bench.report.statistics import PairedEstimate
from sltt_bench.report.summary import leading_first, sentence


def runs(context: Context) -> Contribution:
    """Tables, plots and verdicts of all finished and failed cells of kind "run"."""
    groups = leading_first(context.groups)
    if not groups:
        return Contribution()
    # A smoke run shows that everything runs. Beside full runs its figures would only be in the way.
    full = [group for group in groups if not group.key.smoke]
    shown, aside = (full, [group for group in groups if group.key.smoke]) if full else (groups, [])
    names = _names(shown)
    sections: list[Section] = []
    for recipe in dict.fromkeys(group.key.recipe for group in shown):
        named = {name: group for name, group in names.items() if group.key.recipe == recipe}
        sections += _recipe_sections(recipe, named, context)
    if aside:
        title = f"{counted(len(aside), 'group')} on tiny subsets"
        sections.append(Section("smoke-runs", "Smoke runs", lead=(_SMOKE,)))
        sections.append(Section("smoke-table", title, (smoke_table(aside),), level=2, folded=True))
    return Contribution(
        sections=tuple(sections),
        verdicts=tuple(judge(groups)),
        frames={
            "summary.csv": summary_frame(groups, context.baseline),
            "seeds.csv": seeds_frame(groups, context.results.runs),
        },
        sentence=sentence(shown, aside, context.baseline),
        key_table=_key_table(shown, context.baseline),
        key_figure=_key_figure(shown),
    )


def _key_table(groups: Sequence[Group], baseline: str) -> Table | None:
    """Of the first group that has a ratio. Among recipes' own groups one in which every method learned something comes
    first; a group with other settings, in which what its recipe loses may be learned, does not stand for them."""

    def place(group: Group) -> tuple[bool, ...]:
        chance = any(group.at_chance(result.method) for result in group.finished)
        return group.key.synthetic, bool(group.overrides), chance

    for group in sorted(groups, key=place):
        others = [name for name in group.methods if name != baseline]
        if any(isinstance(group.ratio("epoch_s", name, baseline), PairedEstimate) for name in others):
            table = overview(group, baseline, brief=True)
            siblings = [other for other in groups if other.key.recipe == group.key.recipe]
            words = dict.fromkeys([*group.key.conditions(), *words_apart(group, siblings)])
            return replace(
                table,
                name="answer",
                title=f"{group.key.recipe}: {', '.join(words)}",
                notes=(*_other_groups(group, siblings), *table.notes),
            )
    return None


def _other_groups(group: Group, siblings: Sequence[Group]) -> list[str]:
    """That the recipe has more groups than this one: how many, what they are, and where to see them."""
    others = [in_words(other, siblings) or _OWN for other in siblings if other is not group]
    if not others:
        return []
    count = counted(len(others), "other group")
    named = first_of(others, _OTHERS_NAMED, between="; ")
    return [f"The report also has {count} of {group.key.recipe} (in a terminal: --full): {named}."]


_OWN = "as the recipe has it"
_OTHERS_NAMED = 5
"""Groups of a recipe that the first table's note tells by what they differ in."""


def _key_figure(groups: Sequence[Group]) -> Figure | None:
    """Memory against T where it was measured."""
    recipes = dict.fromkeys(group.key.recipe for group in groups)
    named = ((recipe, [group for group in groups if group.key.recipe == recipe]) for recipe in recipes)
    figures = (figure for recipe, own in named for figure in sweep_figures(recipe, own))
    return next((figure for figure in figures if figure.name.endswith("-sweep-timesteps")), None)


def _names(groups: Sequence[Group]) -> dict[str, Group]:
    """The groups by a name of their own: the slug, numbered where hardware or version alone differ."""
    names: dict[str, Group] = {}
    seen = Counter[str]()
    for group in groups:
        slug = group.key.slug()
        seen[slug] += 1
        names[slug if seen[slug] == 1 else f"{slug}-{seen[slug]}"] = group
    return names


def _recipe_sections(recipe: str, named: dict[str, Group], context: Context) -> list[Section]:
    groups = list(named.values())
    lead = [str(groups[0].recipe["description"])] if groups[0].recipe.get("description") else []
    if len(groups) > 1:
        fields = ", ".join(differing_fields(groups))
        lead.append(
            f"{len(groups)} groups, which differ in {fields}. Methods are compared only within a group, "
            "never between groups."
        )
    of_groups: list[Section] = []
    drawn: list[Figure] = []
    across = in_a_sweep(groups)
    for name, group in named.items():
        own = group.finished and not any(group is other for other in across)
        figures = group_figures(group, name, context) if own else []
        drawn += figures
        folded = len(of_groups) >= _OPEN or bool(of_groups and group.overrides)
        of_groups.append(_group_section(group, name, _title(group, groups), figures, context, folded))
    # The question of a study stands above its groups, under the study's name.
    heading = f"Every group of {recipe}" if recipe.startswith(f"{STUDIES}/") else recipe
    backends = tuple(backend_tables(groups))
    sections = [Section(f"recipe-{recipe}", heading, backends, tuple(lead), page=recipe), of_groups[0]]
    if sweeps := (*sweep_figures(recipe, groups), *multiples(recipe, across)):
        sections.append(Section(f"sweeps-{recipe}", "Across groups", sweeps, level=2, lead=(_SWEEPS,)))
    sections += of_groups[1:]
    if missing := tuple(missing_figures(recipe, groups, drawn)):
        title = "Figures that need more runs"
        sections.append(Section(f"missing-{recipe}", title, missing, level=2, folded=True))
    return sections


def _title(group: Group, groups: Sequence[Group]) -> str:
    """What tells the group from the recipe's others; of the only one, what was set otherwise than the recipe has it."""
    words = in_words(group, groups)
    return f"{_ALONE}, {words}" if words and len(groups) == 1 else words or _ALONE


_ALONE = "Methods compared"


_SMOKE = "Smoke runs show only that a recipe works. They get no plots and no ratios; their figures are in summary.csv."

_OPEN = 3
"""So many groups of a recipe are unfolded on the page, and of those with overrides only a leading one."""

_SWEEPS = "Each point is a group of its own. A line joins groups that differ in one field only."


def _group_section(
    group: Group, name: str, title: str, figures: Sequence[Figure], context: Context, folded: bool
) -> Section:
    tables = [overview(group, context.baseline)]
    if group.finished:
        tables.append(every_figure(group, context.baseline))
    if inference := inference_costs(group):
        tables.append(inference)
    first, *others = (replace(table, name=f"{name}-{table.name}") for table in tables)
    chips = tuple(group.key.conditions())
    return Section(name, title, (first, *figures, *others), level=2, chips=chips, folded=folded)
