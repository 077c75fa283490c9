"""The report's main part: what was measured, recipe by recipe and group by group."""

from collections.abc import Sequence

from matplotlib.figure import Figure as Drawing

from sltt_bench.report import numbers
from sltt_bench.report.claims import judge
from sltt_bench.report.document import Block, Context, Contribution, Figure, Missing, Section, Width
from sltt_bench.report.groups import METRICS, Group, differing_fields, make_groups
from sltt_bench.report.plots.methods import draw_methods
from sltt_bench.report.tables import backend_tables, memory_table, overview, summary_frame, time_table


def measured(context: Context) -> Contribution:
    """Tables, plots and verdicts of all finished and failed cells of kind "run"."""
    groups = make_groups(context.results)
    sections = []
    for recipe in dict.fromkeys(group.key.recipe for group in groups):
        sections += _recipe_sections(recipe, [g for g in groups if g.key.recipe == recipe], context)
    return Contribution(
        sections=tuple(sections),
        verdicts=tuple(judge(groups)),
        frames={"summary.csv": summary_frame(groups, context.baseline)} if groups else {},
        sentences=(),
    )


def _recipe_sections(recipe: str, groups: Sequence[Group], context: Context) -> list[Section]:
    lead = []
    if len(groups) > 1:
        fields = ", ".join(differing_fields([group.key for group in groups]))
        lead.append(
            f"{len(groups)} groups that differ in {fields}. Groups are not comparable with each other: "
            "every ratio stays within its group."
        )
    names = _unique([group.key.slug() for group in groups])
    top = Section(f"recipe-{recipe}", recipe, tuple(backend_tables(groups)), tuple(lead))
    return [
        top,
        *(
            _group_section(group, name, _title(group, groups), context)
            for group, name in zip(groups, names, strict=True)
        ),
    ]


def _group_section(group: Group, name: str, title: str, context: Context) -> Section:
    baseline = context.baseline
    blocks: list[Block] = [overview(group, baseline)]
    if group.finished:
        blocks.append(_methods_figure(group, name, baseline))
        blocks += [memory_table(group, baseline), time_table(group, baseline)]
    return Section(name, title, tuple(blocks), level=2, chips=tuple(group.key.conditions()))


def _title(group: Group, siblings: Sequence[Group]) -> str:
    """What tells the group from the recipe's others."""
    told = [word for word in group.key.conditions() if any(word not in g.key.conditions() for g in siblings)]
    told += [f"{key} = {value}" for key, value in group.overrides.items() if key not in _IN_CONDITIONS]
    return ", ".join(told) or "Methods compared"


_IN_CONDITIONS = {"timesteps", "train.batch_size", "train.precision"}


def _unique(names: Sequence[str]) -> list[str]:
    """The names, numbered where they would clash."""
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return unique


# Figures ----------------------------------------------------------------------------------------


def _methods_figure(group: Group, name: str, baseline: str) -> Figure:
    def draw(width: Width) -> Drawing:
        return draw_methods(group, baseline, width)

    memory = group.headline_memory()
    figures = f"Peak memory ({METRICS[memory].label}) and time" if memory else "Time"
    caption = (
        f"{figures} of a {group.phase} training epoch: mean over seeds, whiskers one standard deviation, "
        f"in brackets the ratio to {baseline}. {_basis(group)}"
    )
    return Figure(f"{name}-methods", "Memory and time per method", caption, draw)


def _basis(group: Group) -> str:
    """Sample counts and hardware, as every caption ends."""
    counts = {result.method: len(result.seeds) for result in group.finished}
    if len(set(counts.values())) == 1:
        said = numbers.seeds(next(iter(counts.values())))
    else:
        said = "seeds: " + ", ".join(f"{method} {n}" for method, n in counts.items())
    said = said[0].upper() + said[1:] if said.startswith("seeds") else said
    return f"{said}; {', '.join(group.key.conditions())}."
