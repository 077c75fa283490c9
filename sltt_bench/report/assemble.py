"""Puts the report together: every kind's sections, the summary on top, provenance and gaps below."""

import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from sltt_bench import __version__
from sltt_bench.common.format import counted
from sltt_bench.report.claims import asks
from sltt_bench.report.document import Context, Contribution, Origin, Report, Verdict
from sltt_bench.report.groups import natural_order
from sltt_bench.report.integrity import mapping_at
from sltt_bench.report.numbers import first_of
from sltt_bench.results.reader import Results, Run
from sltt_bench.results.tables import Skipped

SectionMaker = Callable[[Context], Contribution]


def assemble(context: Context, makers: Mapping[str, SectionMaker]) -> tuple[Report, dict[str, pd.DataFrame]]:
    """The report, and the tables for readers with other tools by file name."""
    results = context.results
    contributions = [make(context) for make in makers.values()]
    verdicts = _judged([verdict for part in contributions for verdict in part.verdicts])
    skipped = [*results.skipped, *_without_row(results), *_kinds_without_section(results, makers)]
    skipped += [item for part in contributions for item in part.skipped]
    report = Report(
        title=_title(results),
        sentences=tuple(part.sentence for part in contributions if part.sentence) or (_NOTHING,),
        verdicts=verdicts,
        # The last figure that is offered (estimates show what was measured too), and the first table.
        key_blocks=(
            *[part.key_figure for part in contributions if part.key_figure][-1:],
            *[part.key_table for part in contributions if part.key_table][:1],
        ),
        sections=tuple(section for part in contributions for section in part.sections),
        provenance=_provenance(results.runs),
        skipped=tuple(skipped),
        baseline=context.baseline,
        made_by=f"sltt-bench {__version__}",
    )
    frames = {name: frame for part in contributions for name, frame in part.frames.items()}
    if verdicts:
        frames["verdicts.csv"] = _verdict_frame(verdicts)
    return report, frames


def _judged(verdicts: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """Judged claims first, measured before estimated, then those that found no room. One that some kind of result can judge is not called
    unmeasured as well, and one that none can judge is named once. A claim that was put in other words since is one claim: the first
    kind of result, that of runs, says in which."""
    claims: dict[tuple[str, str], Mapping[str, Any]] = {}
    for verdict in verdicts:
        claims.setdefault((verdict.recipe, asks(verdict.claim)), verdict.claim)
    verdicts = [replace(verdict, claim=claims[verdict.recipe, asks(verdict.claim)]) for verdict in verdicts]
    findings = [verdict for verdict in verdicts if verdict.is_finding]
    findings.sort(key=lambda verdict: (verdict.word == "not measured", verdict.estimated))
    settled = [(verdict.recipe, verdict.claim) for verdict in findings]
    open_ones: list[Verdict] = []
    for verdict in verdicts:
        about = (verdict.recipe, verdict.claim)
        if not verdict.is_finding and about not in settled:
            settled.append(about)
            open_ones.append(verdict)
    return (*findings, *open_ones)


_NOTHING = "There is nothing to compare: no results were found."


def _title(results: Results) -> str:
    cells = results.cells[results.cells["kind"] != "bench"]
    full = cells[~cells["smoke"].astype(bool)]
    cells = cells if full.empty else full
    run = cells["kind"] == "run"
    of_data = run & ~cells["synthetic"].astype(bool) & (cells["overrides"] == "{}")
    as_published = set(cells.loc[of_data, "recipe"])
    has_run = set(cells.loc[run, "recipe"])

    def place(name: str) -> tuple[object, ...]:
        return name not in as_published, name not in has_run, natural_order(name)

    recipes = sorted(set(cells["recipe"]), key=place)
    if not recipes:
        return "No results"
    return first_of(recipes, 3)


def _kinds_without_section(results: Results, makers: Mapping[str, SectionMaker]) -> list[Skipped]:
    cells = results.cells[~results.cells["kind"].isin(list(makers))]
    return [
        Skipped(
            str(results.runs[int(str(run))].path),
            f"{counted(len(same), 'cell')} of kind {kind}: no measurements, not shown",
        )
        for (run, kind), same in cells.groupby(["run", "kind"])
    ]


def _without_row(results: Results) -> Iterator[Skipped]:
    """Runs of whose plan some cells are nowhere: the report is of those that are there."""
    there = set(results.cells["cell_id"])
    for run in results.runs:
        plan = set(run.provenance.get("plan") or ())
        if missing := len(plan - there):
            planned = counted(len(plan), "planned cell")
            yield Skipped(
                str(run.path), f"no row of {missing} of {planned}: --resume finishes or records them"
            )


def _provenance(runs: Sequence[Run]) -> tuple[Origin, ...]:
    """What runs were made with: alike ones together, and their commands once each, as they can be typed again."""
    by_facts: dict[tuple[tuple[str, str], ...], dict[str, list[str]]] = {}
    for run in runs:
        facts = tuple(_made_with(run.provenance).items())
        command = shlex.join(map(str, run.provenance.get("command") or [])) or "command unknown"
        by_facts.setdefault(facts, {}).setdefault(command, []).append(_name(run))
    origins = [dict(facts) for facts in by_facts]
    return tuple(
        Origin(
            {name: value for name, value in facts.items() if value},
            tuple((command, first_of(names, 1)) for command, names in commands.items()),
            _told_apart(facts, origins),
        )
        for facts, commands in zip(origins, by_facts.values(), strict=True)
    )


_ALWAYS_NAMED = ("sltt-bench", "machine")


def _told_apart(facts: Mapping[str, str], origins: Sequence[Mapping[str, str]]) -> str:
    alike = [other for other in origins if all(other[name] == facts[name] for name in _ALWAYS_NAMED)]
    apart = [name for name in facts if len({other[name] for other in alike}) > 1]
    named = [
        *(facts[name] for name in _ALWAYS_NAMED),
        *(f"{name} {facts[name] or 'as it is'}" for name in apart),
    ]
    return ", ".join(named)


def _name(run: Run) -> str:
    """Recipe and run, without where on a machine they lie."""
    return "/".join(run.path.resolve().parts[-2:])


def _made_with(provenance: Mapping[str, Any]) -> dict[str, str]:
    packages, build = mapping_at(provenance, "packages"), mapping_at(provenance, "torch")
    torch = build.get("version") or packages.get("torch")
    cuda = f", CUDA {build['cuda']}, cuDNN {build.get('cudnn')}" if build.get("cuda") else ""
    gpus = Counter(f"{gpu.get('name')}, driver {gpu.get('driver')}" for gpu in provenance.get("gpus") or [])
    revision = str(provenance.get("git_revision") or "no revision")[:12]
    changed = " with local changes" if provenance.get("git_dirty") else ""
    environment = mapping_at(provenance, "environment")
    return {
        "sltt-bench": f"{provenance.get('sltt_bench', 'unknown')} ({revision}{changed})",
        "torch": f"{torch or 'unknown'}{cuda}",
        "machine": "; ".join(
            [str(provenance.get("cpu", "unknown")), *(f"{n} × {gpu}" for gpu, n in gpus.items())]
        ),
        "python": f"{provenance.get('python', 'unknown')}, {provenance.get('platform', 'unknown')}",
        "environment": " ".join(f"{name}={value}" for name, value in sorted(environment.items())),
    }


def _verdict_frame(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    rows = []
    for verdict in verdicts:
        words = {"conditions": ", ".join(verdict.conditions), "caveats": "; ".join(verdict.caveats)}
        rows.append({**verdict.claim, **vars(verdict), **words})
    return pd.DataFrame(rows).reindex(columns=_VERDICT_FIELDS).rename(columns=_VERDICT_COLUMNS)


_VERDICT_FIELDS = [
    "recipe", "word", "statement", "metric", "method", "baseline", "relation", "threshold", "value", "low", "high", "limit",
    "n", "exact", "figure", "estimated", "conditions", "caveats", "beside", "reason", "command", "says", "source",
]  # fmt: skip
"""Of a verdict and of its claim, in the order of verdicts.csv."""
_VERDICT_COLUMNS = {"word": "verdict", "statement": "claim", "n": "pairs"}
