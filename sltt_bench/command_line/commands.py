"""One command's work from plans to an exit code, and the verbs that only show something."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from sltt_bench import backends, data, methods, models
from sltt_bench.command_line.terminal import count_display, data_progress, run_display
from sltt_bench.common.errors import nearest
from sltt_bench.common.format import DASH, counted
from sltt_bench.common.plugins import PluginFailed, plugins
from sltt_bench.common.printable import make_console
from sltt_bench.kinds import KINDS
from sltt_bench.measure.gpu_support import check_gpu_is_usable
from sltt_bench.planning.plan import Cell, Plan, value_at
from sltt_bench.planning.recipe import (
    RecipeError,
    find_recipe,
    load_recipe,
    parse_overrides,
    recipe_names,
    study_names,
)
from sltt_bench.planning.recipe_fields import OF_ONE_EXPERIMENT, Recipe
from sltt_bench.planning.studies import TASK, task_name
from sltt_bench.results.progress import NOTHING, progress_of
from sltt_bench.results.schema import CHECKPOINTS_FOLDER, FILES
from sltt_bench.results.writer import RunFolder, read_provenance
from sltt_bench.running import cell_checks
from sltt_bench.running.interruptions import Interrupted
from sltt_bench.running.jobs import usable_processors
from sltt_bench.running.lanes import Place
from sltt_bench.running.loggers import Displays, LogDisplay
from sltt_bench.running.preflight import PREFLIGHT_LIMIT_S, Preflight, preflight
from sltt_bench.running.runner import Display, NotRunnable, PlannedRun, describe
from sltt_bench.running.runner import run_plans as start_runs


def run_plans(
    plans: Sequence[Plan],
    *,
    out: Path,
    data_dir: Path = Path("data"),
    timeout_s: float | None = None,
    resume: bool = False,
    command: Sequence[str] | None = None,
    logs: Sequence[str] = (),
    estimates: bool = False,
    skip_oversize: bool = False,
    baseline: str = "bptt",
    json_rows: str | None = None,
    places: Sequence[Place] = (Place(),),
    lost: str = "",
    summary: bool = True,
) -> int:
    """Run every plan in a folder of its own and show what came out; returns the exit code.

    `command` is kept in the provenance; None: this process's own. With `json_rows`, a file of results, its rows are
    all that standard output gets. With `estimates`, the
    memory of each cell is estimated first; one that cannot fit is warned of, or skipped with
    `skip_oversize`. Cells that are measured run side by side at `places`, prerequisites first. `lost`: see
    `runner.run_plans`. Without `summary`, nothing is said of what came out. Raises DataError where a data set is missing,
    RecipeError where a batch is larger than an epoch, ResultsError.
    """
    from sltt_bench import provenance

    console = make_console(stderr=json_rows is not None)
    plans = [plan for plan in plans if not _finished_elsewhere(plan, out, console)]
    if len(places) > 1:
        needed = {cell.needs for plan in plans for cell in plan}
        plans.sort(key=lambda plan: needed.isdisjoint(cell.cell_id for cell in plan))
    earlier = [_earlier_run(plan, out) if resume else None for plan in plans]
    open_cells = [cell for plan, path in zip(plans, earlier, strict=True) for cell in _left_of(plan, path)]
    check_batches(open_cells)
    _check_devices(open_cells, places)
    check_data(open_cells, data_dir)
    folders: list[Path] = []

    def opened(plan: Plan, path: Path | None) -> RunFolder:
        folder = RunFolder.create(out, plan.recipe.name) if path is None else RunFolder(path)
        folders.append(folder.path)
        return folder

    runs = [PlannedRun(plan, partial(opened, plan, path)) for plan, path in zip(plans, earlier, strict=True)]
    try:
        memory = _estimated(open_cells, console, places) if estimates else Preflight()
        with _display(plans, console, memory, list(logs), len(places) > 1) as display:
            if resume and None in earlier:
                display.remark(_NO_EARLIER_RUN)
            outcomes = start_runs(
                runs,
                display,
                data_dir=data_dir,
                initial_weights=partial(_initial_weights, out, memory if skip_oversize else Preflight()),
                provenance=provenance.collect(command or command_line()),
                estimated_peaks=memory.peak_bytes,
                places=_places(open_cells, places),
                timeout_s=timeout_s,
                lost=lost,
            )
    except Interrupted as interruption:
        kept = f"what was measured is in {' '.join(map(str, folders))}" if folders else "nothing was begun"
        _say(console, f"interrupted by {interruption}; {kept}", "yellow")
        _say(console, "--resume goes on from here")
        return 128 + interruption.signal_number
    if json_rows is not None:
        from sltt_bench.results.reader import read_results

        rows = read_results(folders).rows(json_rows).drop(columns="run", errors="ignore")
        whole = {column.name: "Int64" for column in FILES[json_rows] if column.type == "int"}
        rows = rows.astype({name: kind for name, kind in whole.items() if name in rows})
        print(rows.replace("", None).to_json(orient="records", indent=1))
    elif folders and summary:
        from sltt_bench.report import print_run

        print_run(folders, console=console, baseline=baseline)
        _say(console, f"plots and verdicts: sltt-bench report {' '.join(map(str, folders))}")
    return int(any(outcome.status != "ok" and not outcome.answers for outcome in outcomes))


_NO_EARLIER_RUN = "--resume: no earlier run has this plan; a new one starts"


def without_refused(plans: Sequence[Plan], *, here: bool = True) -> list[Plan]:
    """The plans without cells that only a process with torch knows to be refused; see `cell_checks.without_refused`."""
    with make_console().status("checking networks, weights and backends"):
        return cell_checks.without_refused(plans, here=here)


def command_line() -> list[str]:
    """What this process was asked, as a user would type it."""
    return ["sltt-bench", *sys.argv[1:]]


@contextmanager
def _display(
    plans: Sequence[Plan], console: Console, memory: Preflight, logs: list[str], several: bool
) -> Iterator[Display]:
    """What is shown of a run: epochs where something trains, else how many cells are done.

    `several`: whether cells run side by side.
    """
    cells = [cell for plan in plans for cell in plan]
    trains = any(KINDS[cell.kind].measures for cell in cells)
    shown = (
        run_display(console, memory.peak_bytes, several=several)
        if trains
        else count_display(console, len(cells))
    )
    with shown as display, closing(LogDisplay(logs, display.remark)) as log:
        yield Displays(display, log) if logs else display


def _places(cells: Sequence[Cell], places: Sequence[Place]) -> Sequence[Place]:
    """Processes at once: as asked where something is measured; else as many as there are processors, if that pays."""
    if not cells or any(KINDS[cell.kind].measures for cell in cells):
        return places
    searched = any("memory_bytes" in cell.options for cell in cells)
    worth_it = len(cells) >= (2 if searched else WORTH_A_PROCESS)
    return [Place()] * (min(usable_processors(), len(cells)) if worth_it else 1)


WORTH_A_PROCESS = 6
"""Estimates from which on more than one process pays, since each loads torch anew; 2 where limits are searched."""


def check_batches(cells: Iterable[Cell]) -> None:
    """Raises RecipeError for a batch that no epoch can fill: what then ran would not be what its rows say."""
    for cell in cells:
        batch_size = cell.recipe.train.batch_size
        samples = cell.recipe.epoch_samples(synthetic=cell.synthetic)
        if KINDS[cell.kind].needs_data and batch_size > samples:
            more = ", or raise data.synthetic_samples" if cell.synthetic else ""
            fault = f"train.batch_size is {batch_size:,}, but an epoch has {samples:,} training samples; lower it{more}"
            decisive = ("train.batch_size", "data.", "validation")
            settings = [f"{key}={value}" for key, value in cell.overrides.items() if key.startswith(decisive)]
            settings = [*(["--smoke"] if cell.smoke else []), *settings]
            chosen = f" with {', '.join(settings)}" if settings else ""
            raise RecipeError(f"{cell.recipe.name}{chosen}", [fault])


def _check_devices(cells: Sequence[Cell], places: Sequence[Place]) -> None:
    """Raises UnusableGpu if a cell that is measured would silently miss the GPU that is there, or asks for one that is not."""
    measured = {cell.device for cell in cells if KINDS[cell.kind].measures}
    given = {device for place in places for device in (place.device, *place.further_devices) if device}
    for device in sorted(measured | given if measured else measured):
        check_gpu_is_usable(device)


def check_data(cells: Sequence[Cell], data_dir: Path) -> None:
    """Raises DataError if a data set that some cell reads is not there."""
    missing = (
        data.missing(cell.recipe.data, data_dir)
        for cell in cells
        if KINDS[cell.kind].needs_data and not cell.synthetic
    )
    if faults := list(dict.fromkeys(filter(None, missing))):
        raise data.DataError("\n".join(faults))


def _earlier_run(plan: Plan, out: Path) -> Path | None:
    """The newest run of the same plan, one with unfinished cells first (a clock may have been set back);
    other plans of the recipe may be running now."""
    wanted = [cell.cell_id for cell in plan]
    runs = [
        path
        for path in sorted((out / plan.recipe.name).glob("*/"), reverse=True)
        if read_provenance(path).get("plan") == wanted
    ]
    return next((path for path in runs if _left_of(plan, path)), runs[0] if runs else None)


def _left_of(plan: Plan, path: Path | None) -> list[Cell]:
    """The cells that an earlier run has not finished."""
    so_far = NOTHING if path is None else progress_of(path)
    return [cell for cell in plan if cell.cell_id not in so_far.finished]


def _finished_elsewhere(plan: Plan, out: Path, console: Console) -> bool:
    """Whether this is a prerequisite whose checkpoint an earlier run left."""
    if not plan.prerequisite:
        return False
    checkpoint = finished_checkpoint(out, plan.recipe.name, plan.cells[0].cell_id)
    if checkpoint is not None:
        _say(console, f"{plan.recipe.name}: finished before, {checkpoint} is used")
    return checkpoint is not None


def finished_checkpoint(out: Path, recipe: str, cell_id: str) -> Path | None:
    """The newest checkpoint of a cell that finished, if there is one."""
    for path in sorted((out / recipe).glob("*/"), reverse=True):
        checkpoint = path / CHECKPOINTS_FOLDER / f"{cell_id}.pt"
        if checkpoint.is_file() and cell_id in progress_of(path).finished:
            return checkpoint
    return None


def _estimated(cells: Sequence[Cell], console: Console, places: Sequence[Place]) -> Preflight:
    """The memory of cells before they run, with a warning for each that cannot fit."""
    measured = [cell for cell in cells if cell.kind in ("run", "trial")]
    if not measured:
        return Preflight()
    with console.status("estimating the memory of each cell"):
        memory = preflight(measured)
    for cell in measured:
        if (reason := memory.too_large(cell)) is not None:
            _say(console, f"warning: {describe(cell)}: {reason}", "yellow")
        if cell.cell_id in memory.gave_up:
            remark = f"no estimate of {describe(cell)}: it took more than {PREFLIGHT_LIMIT_S:g} s"
            _say(console, remark, "yellow")
    if (crowd := memory.too_many(measured, places)) is not None:
        _say(console, f"warning: {crowd}", "yellow")
    return memory


def _initial_weights(out: Path, gate: Preflight, cell: Cell) -> Path | None:
    """A cell's initial weights; raises NotRunnable for a cell that is not to be run."""
    if (reason := gate.too_large(cell)) is not None:
        raise NotRunnable(f"--skip-oversize: {reason}")
    if cell.needs is None:
        return None if cell.init is None else Path(cell.init)
    prerequisite = str(cell.recipe.init_from)
    checkpoint = finished_checkpoint(out, prerequisite, cell.needs)
    if checkpoint is None:
        raise NotRunnable(
            f"its prerequisite {prerequisite} did not finish; mend that run, or use --init PATH or --init random"
        )
    return checkpoint


def _say(console: Console, text: str, style: str = "dim") -> None:
    """A remark on one line, however long."""
    console.print(f"[{style}]{escape(text)}[/{style}]", soft_wrap=True)


# Verbs that only show ---------------------------------------------------------------------------


def show_plans(plans: list[Plan], *, out: Path, resume: bool) -> None:
    """The cells that a command would run; with `resume`, also those that it would keep, and what it would do with each."""
    from sltt_bench.report.document import Column, Heading, TableCell, table_of
    from sltt_bench.report.render.terminal import print_table

    def column(heading: str, fact: Callable[[Cell], object], *, numeric: bool = True) -> "Column[Cell]":
        return Heading(heading, numeric=numeric), lambda cell: TableCell(
            DASH if (value := fact(cell)) is None else str(value)
        )

    def override(key: str) -> "Column[Cell]":
        if key == TASK:
            return column("task", lambda cell: task_name(cell.overrides.get(key, DASH)), numeric=False)
        return column(key, lambda cell: value_at(cell.recipe, key))

    shown = ("timesteps", "train.batch_size", "train.epochs")
    console = make_console()
    for plan in plans:
        if _finished_elsewhere(plan, out, console):
            continue
        columns = [
            column("cell", lambda cell: cell.cell_id, numeric=False),
            column("kind", lambda cell: cell.kind, numeric=False),
            column("method", lambda cell: cell.method, numeric=False),
            column("backend", lambda cell: cell.backend, numeric=False),
            column("seed", lambda cell: cell.seed),
            column("T", lambda cell: cell.recipe.timesteps),
            column("batch", lambda cell: cell.recipe.train.batch_size),
            column("epochs", lambda cell: cell.recipe.train.epochs),
            *map(override, dict.fromkeys(key for cell in plan for key in cell.overrides if key not in shown)),
        ]
        title = f"{plan.recipe.name}: {counted(len(plan), 'cell')}"
        if resume and (path := _earlier_run(plan, out)) is not None:
            left = _left_of(plan, path)
            _say(
                console,
                f"--resume: {len(plan) - len(left)} of {counted(len(plan), 'cell')} are finished in {path}",
            )
            columns.append(column("--resume", partial(_left_to_do, path, left), numeric=False))
        elif resume:
            _say(console, _NO_EARLIER_RUN)
        print_table(table_of("plan", title, columns, plan), console)
        show_remarks(plan)


def _left_to_do(path: Path, left: Sequence[Cell], cell: Cell) -> str:
    """What --resume does with a cell of the run in `path`, of which the cells `left` are not finished."""
    if cell not in left:
        return "kept"
    return "goes on" if (path / CHECKPOINTS_FOLDER / f"{cell.cell_id}.pt").is_file() else "runs"


def show_remarks(plan: Plan) -> None:
    """What is left out of a plan, and what else the user should know of it."""
    console = make_console()
    for remark in (*plan.remarks, *plan.left_out):
        _say(console, remark)


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
        known = [*recipe_names(), *methods.examples()]
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
    given = [*overrides, *([] if split is None else [f"data.split={json.dumps(split)}"])]
    settings, *more = parse_overrides(given, {"data.split": "--split"})
    if more:
        raise RecipeError("--set", ["gives a field several values; a data set has one"])
    if others := [key for key in settings if not key.startswith("data.")]:
        raise RecipeError(
            "--set", [f"{others[0]}: only fields of data, for example data.folder, are taken here"]
        )
    return {key.removeprefix("data."): value for key, value in settings.items()}
