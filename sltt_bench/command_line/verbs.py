"""The work of verbs that run no cell: list, show, doctor, data, status, cancel, submission check."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from sltt_bench import backends, data, methods, models
from sltt_bench.command_line.option_values import fields_set
from sltt_bench.command_line.terminal import data_progress
from sltt_bench.common.errors import nearest
from sltt_bench.common.format import counted
from sltt_bench.common.plugins import PluginFailed, plugins
from sltt_bench.common.printable import make_console
from sltt_bench.planning.overrides import parse_overrides
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.planning.recipe_faults import RecipeError
from sltt_bench.planning.recipe_fields import OF_ONE_EXPERIMENT, Recipe
from sltt_bench.planning.recipe_files import find_recipe, recipe_names, study_names
from sltt_bench.running.runner import describe

WIDE = 120
"""Columns from which a recipe's description stands beside its facts."""


def show_list(what: str, *, as_json: bool = False) -> None:
    """The registered names of one kind, or of all. Raises RecipeError for an unknown kind."""
    rows: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "recipes": _recipe_rows,
        "studies": lambda: _named((name, load_recipe(name).description) for name in study_names()),
        "methods": lambda: _named(
            [
                *methods.descriptions(),
                *((methods.label_of(entry), f"plug-in: {entry.value}") for entry in plugins("methods")),
            ]
        ),
        "models": lambda: _named((name, _first_line(models.options_type, name)) for name in models.names()),
        "datasets": lambda: _named((name, _first_line(data.source_type, name)) for name in data.names()),
        "backends": lambda: _named((name, "") for name in backends.names()),
    }
    if what != "all" and what not in rows:
        raise RecipeError("list", [f"unknown kind {what!r}{nearest(what, rows)}; known: {', '.join(rows)}"])
    kinds = list(rows) if what == "all" else [what]
    if as_json:
        print_json({kind: rows[kind]() for kind in kinds})
        return
    console = make_console()
    for kind in kinds:
        by_modality = sorted(rows[kind](), key=_modality)
        widest = max((len(row["name"]) for row in by_modality), default=0)
        for modality, group in groupby(by_modality, key=_modality):
            console.print(f"[bold]{kind}[/bold]" + (f": {modality}" if modality else ""))
            table = Table.grid(padding=(0, 2))
            table.add_column(no_wrap=True, min_width=widest + 2)  # a name is typed: it is never cut
            for row in group:
                minutes = f"{row['cpu_minutes']:g} min" if row.get("cpu_minutes") is not None else ""
                name, description = escape(row["name"]), f"[dim]{escape(row['description'])}[/dim]"
                facts = [f"T = {row['timesteps']}", row["data"], minutes] if modality else []
                if facts and console.width < WIDE:  # the description below: beside the facts it has no room
                    line = "  ".join(fact.ljust(width) for fact, width in zip(facts, (8, 16, 0), strict=True))
                    console.print(f"  {name:<{widest}}  {line}", highlight=False)
                    console.print(Padding(description, (0, 0, 0, 6)))
                else:
                    table.add_row(f"  {name}", *facts, description)
            if table.row_count:
                console.print(table)


def _modality(row: dict[str, Any]) -> str:
    return str(row.get("modality", ""))


def _named(pairs: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"name": name, "description": description} for name, description in pairs]


def _recipe_rows() -> list[dict[str, Any]]:
    """The recipes with modality, T, whether their data must be downloaded, and minutes of BPTT on a CPU."""
    return [
        {
            "name": recipe.name,
            "description": recipe.description,
            "modality": recipe.data.modality,
            "timesteps": recipe.timesteps,
            "data": "to be downloaded" if recipe.data.needed(Path()) else "no download",
            "cpu_minutes": recipe.cpu_minutes,
        }
        for recipe in map(load_recipe, recipe_names())
    ]


def _first_line(load: Callable[[str], Any], name: str) -> str:
    """What a registered thing says of itself; why not, where a plug-in cannot be loaded."""
    try:
        documentation = (load(name).__doc__ or "").strip()
    except PluginFailed as error:
        return str(error)
    return documentation.partition("\n")[0]


def show_run(folder: Path, *, as_json: bool = False) -> None:
    """A run at a glance, and its tables. Raises ResultsError."""
    from sltt_bench.command_line.run_overview import lines, overview
    from sltt_bench.report import print_run

    facts = overview(folder)
    if as_json:
        print_json(facts)
        return
    _print_facts(lines(facts))
    print_run([folder], console=make_console())


def show_status(folder: Path, *, as_json: bool = False) -> int:
    """How the cells of a submission stand; 1 if some have failed. Raises SlurmError, ResultsError."""
    from sltt_bench.command_line import slurm
    from sltt_bench.report.document import Column, Heading, TableCell, Tone, table_of
    from sltt_bench.report.render.terminal import print_table

    cells = slurm.status(slurm.Submission.read(folder))
    if as_json:
        print_json(
            [
                {"cell_id": each.cell.cell_id, "cell": describe(each.cell), "state": each.state, "reason": each.reason,
                 "job": each.job, "epochs_done": each.epochs_done, "epochs": each.cell.recipe.train.epochs}
                for each in cells
            ]
        )  # fmt: skip
        return int(any(each.state == "failed" for each in cells))
    tones: dict[str, Tone] = {
        "done": "good", "running": "plain", "queued": "plain", "cancelled": "muted", "failed": "bad",
    }  # fmt: skip
    columns: list[Column[slurm.CellStatus]] = [
        (Heading("cell", numeric=False), lambda each: TableCell(each.cell.cell_id)),
        (Heading("job", numeric=False), lambda each: TableCell(each.job)),
        (Heading("what", numeric=False), lambda each: TableCell(describe(each.cell))),
        (Heading("state", numeric=False), lambda each: TableCell(each.state, tone=tones[each.state])),
        (Heading("epochs"), lambda each: TableCell(f"{each.epochs_done}/{each.cell.recipe.train.epochs}")),
        (Heading("reason", numeric=False), lambda each: TableCell(each.reason)),
    ]
    counts: Counter[str] = Counter(each.state for each in cells)
    console = make_console()
    print_table(table_of("submission", str(folder), columns, cells), console)
    console.print(", ".join(f"{counts[state]} {state}" for state in tones if counts[state]))
    return int(bool(counts["failed"]))


def cancel(folder: Path, cell_ids: Sequence[str] | None) -> None:
    """End jobs of a submission. Raises SlurmError, ResultsError."""
    from sltt_bench.command_line import slurm

    submission = slurm.Submission.read(folder)
    known = [cell.cell_id for cell in submission.cells]
    if unknown := [each for each in cell_ids or () if each not in known]:
        raise RecipeError("--cell", [f"{unknown[0]}: no cell of this submission{nearest(unknown[0], known)}"])
    ended = slurm.cancel(submission, cell_ids)
    make_console().print(f"{counted(len(ended), 'job')} cancelled")


def check_submission(folders: list[Path], *, as_json: bool = False) -> int:
    """Show which rules results meet; 1 if they break any. Raises ResultsError."""
    from sltt_bench.command_line.submission import RULES, check

    breaches = check(folders)
    if as_json:
        print_json([asdict(breach) for breach in breaches])
        return int(bool(breaches))
    console = make_console()
    for rule in RULES:
        broken = [breach for breach in breaches if breach.rule == rule]
        console.print(f"{_MARKS['fault' if broken else 'ok']} [bold]{rule}[/bold]")
        for breach in broken:
            console.print(f"    {escape(breach.where)}: {escape(breach.text)}", soft_wrap=True)
    return int(bool(breaches))


_MARKS = {"ok": "[green]✓[/green]", "note": "[yellow]–[/yellow]", "fault": "[red]✗[/red]"}


def _print_facts(facts: Iterable[tuple[str, ...]]) -> None:
    """A line for each (subject, text) or (subject, text, mark)."""
    table = Table.grid(padding=(0, 2))
    for subject, text, *marks in facts:
        table.add_row(*marks, f"[bold]{escape(subject)}[/bold]", escape(text))
    make_console().print(table)


def print_json(value: Any) -> None:
    """For scripts."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


def show_recipes(recipes: Sequence[Recipe], *, as_json: bool = False) -> None:
    """Resolved recipes as YAML that could be run again, or as JSON: of several as a list.

    What is true of a recipe alone stands in comments of the YAML, as no recipe that extends another has it.
    """
    if as_json:
        shown = [recipe.model_dump(mode="json") for recipe in recipes]
        print_json(shown if len(shown) > 1 else shown[0])
        return
    from sltt_bench.common.yaml_text import dump_yaml

    for recipe in recipes:
        values = recipe.model_dump(mode="json", exclude={"name"})
        alone = {key: values.pop(key) for key in OF_ONE_EXPERIMENT if values[key]}
        print(f"# {recipe.name}, as resolved (fingerprint {recipe.fingerprint()})")
        print(dump_yaml(values), end="")
        if alone:
            lines = dump_yaml(alone).splitlines()
            print(f"# Of {recipe.name} alone, and not of what is made from it:", *lines, sep="\n# ")


def is_method(name: str) -> bool:
    """Whether a training rule, and no recipe, is called `name`."""
    if name in (*recipe_names(), *study_names()) or Path(name).exists():
        return False
    try:
        methods.promises(name)
    except methods.UnknownMethod:
        return False
    return True


def check_is_recipe(name: str) -> None:
    """Raises RecipeError with the nearest name, for what `show` knows neither as a recipe nor as a method."""
    try:
        find_recipe(name)
    except RecipeError:
        if "/" in name or any(Path(f"{name}{ending}").exists() for ending in ("", ".yaml")):
            raise
        known = [*recipe_names(), *study_names(), *methods.names_near(name)]
        fault = f"no recipe or method has this name{nearest(name, known)}; `sltt-bench list` shows all"
        raise RecipeError(name, [fault]) from None


def show_method(name: str, *, as_json: bool = False) -> None:
    """A training rule's equations, source and deviations, and what it promises."""
    promised = methods.promises(name)
    promises = asdict(promised) | {"needs": sorted(promised.needs), "kinds": sorted(promised.kinds)}
    if as_json:
        print_json({"method": name, "explanation": methods.explanation(name), "promises": promises})
        return
    print(f"# {name}\n\n{methods.explanation(name)}\n")
    for promise, value in promises.items():
        if isinstance(value, list):
            text = (
                ", ".join(value)
                or {"needs": "nothing beyond steps and backward passes", "kinds": "all"}[promise]
            )
        else:
            text = {True: "yes", False: "no"}.get(value, value)
        print(f"{promise.replace('_', ' ')}: {text}")


def doctor(*, as_json: bool = False) -> int:
    """Show the diagnosis; 1 if something is broken."""
    from sltt_bench.command_line.doctor import examine

    findings = examine()
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        _print_facts((finding.subject, finding.text, _MARKS[finding.level]) for finding in findings)
    return int(any(finding.level == "fault" for finding in findings))


# Data -------------------------------------------------------------------------------------------


def prepare_data(name: str, data_dir: Path, overrides: Sequence[str], split: str | None) -> None:
    """Get a data set and say what was done. Raises DataError, RecipeError."""
    console = make_console()
    settings = _data_settings(overrides, split)
    with data_progress(console) as progress:
        done = data.prepare(name, data_dir, progress, settings)
    source = data.source_with(name, settings)
    if source.needed(data_dir):
        done.append(f"`{data.command('verify', source, data_dir)}` checks it.")
    for sentence in done:
        console.print(sentence, soft_wrap=True, markup=False)


def verify_data(name: str, data_dir: Path, overrides: Sequence[str], split: str | None) -> int:
    """Show what is right and what is wrong with a data set; 1 if anything is wrong. Raises DataError, RecipeError."""
    console = make_console()
    settings = _data_settings(overrides, split)
    with data_progress(console) as progress:
        findings = data.verify(name, data_dir, progress, settings)
    _print_facts((each.subject, each.text, _MARKS["ok" if each.ok else "fault"]) for each in findings)
    return int(not all(finding.ok for finding in findings))


def _data_settings(overrides: Sequence[str], split: str | None) -> dict[str, Any]:
    """Field of a data set → value, of `data.field=value` texts and of --split. Raises RecipeError."""
    given = fields_set([*overrides])
    if split is not None:
        given.append((f"data.split={json.dumps(split)}", "--split"))
    settings, *more = parse_overrides([text for text, _ in given], [option for _, option in given])
    if more:
        raise RecipeError("--set", ["gives a field several values; a data set has one"])
    if others := [key for key in settings if not key.startswith("data.")]:
        raise RecipeError(
            "--set", [f"{others[0]}: only fields of data, for example data.folder, are taken here"]
        )
    return {key.removeprefix("data."): value for key, value in settings.items()}
