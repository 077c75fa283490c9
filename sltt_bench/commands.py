"""One command's work from plans to an exit code, and the verbs that only show something."""

import json
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sltt_bench import backends, data, methods, models
from sltt_bench.estimate.preflight import Preflight
from sltt_bench.format import parse_bytes
from sltt_bench.plan import Cell, Plan
from sltt_bench.recipe import Recipe, RecipeError, load_recipe, nearest, recipe_names
from sltt_bench.results.schema import CELLS_FILE, PROVENANCE_FILE
from sltt_bench.results.writer import RunFolder, read_rows
from sltt_bench.runner import Interrupted, Outcome, Setting, describe, finished_cells, run_plan
from sltt_bench.tensorboard import Displays, TensorBoardLog
from sltt_bench.terminal import cell_progress, data_progress, run_display


def run_plans(
    plans: list[Plan],
    *,
    out: Path,
    data_dir: Path,
    timeout_s: float | None,
    resume: bool,
    command: list[str],
    log: str | None = None,
    estimates: bool = True,
    skip_oversize: bool = False,
) -> int:
    """Run every plan in a folder of its own and show what came out; returns the exit code.

    With `estimates`, each plan's memory is estimated first; a cell that cannot fit is warned of, or
    skipped with `skip_oversize`.
    """
    from sltt_bench import provenance

    console = Console()
    facts = provenance.collect(command)
    setting = Setting(data_dir=data_dir, timeout_s=timeout_s)
    failed = False
    folders: list[Path] = []
    try:
        for plan in plans:
            if _finished_elsewhere(plan, out, console):
                continue
            folder = _open_folder(plan, out, resume, console)
            folders.append(folder.path)
            try:
                known = _estimated(plan, folder, console) if estimates else None
                find = _weights_finder(out, known if skip_oversize else None)
                outcomes = _run_one(plan, folder, setting, console, facts, find, log, known)
            finally:
                folder.close()
            failed |= any(outcome.status != "ok" for outcome in outcomes.values())
    except Interrupted as interruption:
        console.print(
            f"[yellow]interrupted by {interruption}; what was measured is in {folders[-1]}[/yellow]"
        )
        console.print("[dim]--resume goes on from here[/dim]")
        return 128 + interruption.signal_number
    _show_summary(folders, console)
    return 1 if failed else 0


def _run_one(
    plan: Plan,
    folder: RunFolder,
    setting: Setting,
    console: Console,
    facts: dict[str, Any],
    initial_weights: Callable[[Cell], Path | None],
    log: str | None,
    known: Preflight | None,
) -> dict[str, Outcome]:
    folder.write_recipe(plan.recipe.model_dump(mode="json"))
    for remark in (*plan.remarks, *plan.left_out):
        console.print(f"[dim]{remark}[/dim]")
    console.print(f"[bold]{plan.recipe.name}[/bold]: {len(plan)} cells → {folder.path}", soft_wrap=True)
    peaks = {} if known is None else known.peak_bytes
    with run_display(console, peaks) as display:
        watchers = [display] if log is None else [display, TensorBoardLog(folder.path)]
        return run_plan(
            plan,
            folder,
            setting,
            Displays(*watchers),
            initial_weights=initial_weights,
            provenance={
                **facts,
                "run": folder.path.name,
                "plan": [cell.cell_id for cell in plan],
                "estimated_peak_tensor_bytes": peaks,
            },
        )


def _open_folder(plan: Plan, out: Path, resume: bool, console: Console) -> RunFolder:
    """A new folder, or with --resume the newest one of the same plan."""
    if resume:
        wanted = [cell.cell_id for cell in plan]
        for path in sorted((out / plan.recipe.name).glob("*/"), reverse=True):
            if not (path / PROVENANCE_FILE).exists():
                continue
            folder = RunFolder(path)
            if folder.read_provenance().get("plan") == wanted:
                console.print(f"[dim]resuming {path}[/dim]")
                return folder
            folder.close()
        console.print("[dim]--resume: no earlier run has this plan; a new one starts[/dim]")
    return RunFolder.create(out, plan.recipe.name)


def _is_prerequisite(plan: Plan) -> bool:
    return len(plan) == 1 and plan.cells[0].recipe.train.keep_checkpoint


def _finished_elsewhere(plan: Plan, out: Path, console: Console) -> bool:
    """Whether this is a prerequisite whose checkpoint an earlier run left."""
    if not _is_prerequisite(plan):
        return False
    checkpoint = finished_checkpoint(out, plan.recipe.name, plan.cells[0].cell_id)
    if checkpoint is not None:
        console.print(f"[dim]{plan.recipe.name}: finished before, {checkpoint} is used[/dim]", soft_wrap=True)
    return checkpoint is not None


def finished_checkpoint(out: Path, recipe: str, cell_id: str) -> Path | None:
    """The newest checkpoint of a cell that finished, if there is one."""
    for path in sorted((out / recipe).glob("*/"), reverse=True):
        checkpoint = path / "checkpoints" / f"{cell_id}.pt"
        rows = read_rows(path / CELLS_FILE)
        if checkpoint.is_file() and any(r["cell_id"] == cell_id and r["status"] == "ok" for r in rows):
            return checkpoint
    return None


def _estimated(plan: Plan, folder: RunFolder, console: Console) -> Preflight | None:
    """The plan's memory before it runs, with a warning for each cell that cannot fit."""
    from sltt_bench.estimate.preflight import preflight

    finished = finished_cells(folder).finished
    cells = [cell for cell in plan if cell.cell_id not in finished and cell.kind == "run"]
    if not cells:
        return None
    with console.status("estimating the memory of each cell"):
        known = preflight(cells)
    for cell in cells:
        if (reason := known.too_large(cell)) is not None:
            console.print(f"[yellow]warning: {escape(describe(cell))}: {reason}[/yellow]", soft_wrap=True)
    return known


def _weights_finder(out: Path, gate: Preflight | None) -> Callable[[Cell], Path | None]:
    """Finds a cell's initial weights; raises LookupError for a cell that is not to be run."""

    def find(cell: Cell) -> Path | None:
        if gate is not None and (reason := gate.too_large(cell)) is not None:
            raise LookupError(f"--skip-oversize: {reason}")
        if cell.needs is None:
            return None if cell.init is None else Path(cell.init)
        prerequisite = str(cell.recipe.init_from)
        checkpoint = finished_checkpoint(out, prerequisite, cell.needs)
        if checkpoint is None:
            raise LookupError(
                f"its prerequisite {prerequisite} did not finish; mend that run, or use --init PATH or --init random"
            )
        return checkpoint

    return find


def _show_summary(folders: list[Path], console: Console) -> None:
    kinds = {row["kind"] for path in folders for row in read_rows(path / CELLS_FILE)}
    if "run" in kinds:
        from sltt_bench.report.tables import run_summary

        run_summary(folders, console=console)
    if "analysis" in kinds:
        from sltt_bench.report.sections.gradients import analysis_summary

        analysis_summary(folders, console=console)
    if folders:
        places = " ".join(str(path) for path in folders)
        console.print(f"[dim]plots and verdicts: sltt-bench report {places}[/dim]", soft_wrap=True)


# Estimates --------------------------------------------------------------------------------------


def estimate_plans(
    plans: list[Plan],
    *,
    device_type: Literal["cpu", "cuda"],
    gpu: str | None,
    gpu_file: Path | None,
    memory: str | None,
    out: Path,
    baseline: str,
    command: list[str],
) -> int:
    """Estimate every cell, show the tables and save them as results; 1 if a cell could not be.

    Raises RecipeError for an unknown GPU or an amount of memory that is none.
    """
    from sltt_bench import provenance
    from sltt_bench.estimate.command import estimate, estimated
    from sltt_bench.estimate.estimates import Estimate, Failure
    from sltt_bench.estimate.gpus import GPUError
    from sltt_bench.estimate.rows import SavedEstimates

    try:
        memory_bytes = None if memory is None else parse_bytes(memory)
    except ValueError as error:
        raise RecipeError("--memory", [str(error)]) from None
    console = Console()
    cells = [cell for plan in plans for cell in plan]
    remarks = [remark for plan in plans for remark in plan.left_out]
    if baseline not in {cell.method for cell in cells}:
        remarks.append(f"no ratios: {baseline} is not among the methods; --baseline names another")
    for remark in remarks:
        console.print(f"[dim]{remark}[/dim]")
    saved = SavedEstimates(out, estimated(cells, device_type), provenance.collect(command), gpu)
    try:
        with saved, cell_progress(console, len(cells)) as advance:

            def keep(result: Estimate | Failure) -> None:
                saved.add(result)
                advance(describe(result.cell))

            table = estimate(
                cells,
                device_type=device_type,
                gpu=gpu,
                gpu_file=gpu_file,
                memory_bytes=memory_bytes,
                on_result=keep,
            )
    except GPUError as error:
        raise RecipeError(error.option, [str(error)]) from None
    except KeyboardInterrupt:
        kept = (
            f"what was estimated is in {_listed(saved.paths)}" if saved.paths else "nothing was estimated yet"
        )
        console.print(f"[yellow]interrupted; {kept}[/yellow]", soft_wrap=True)
        return 128 + signal.SIGINT
    for shown in table.rich(baseline):
        console.print(shown)
    for failure in table.failures:
        console.print(f"[red]{escape(describe(failure.cell))}: {escape(failure.reason)}[/red]")
    console.print(f"[dim]saved in {_listed(saved.paths)}[/dim]", soft_wrap=True)
    return int(bool(table.failures))


def _listed(paths: list[Path]) -> str:
    return " ".join(map(str, paths))


# Verbs that only show ---------------------------------------------------------------------------


def show_plans(plans: list[Plan]) -> None:
    """The cells that a command would run."""
    console = Console()
    for plan in plans:
        table = Table(title=f"{plan.recipe.name}: {len(plan)} cells", title_justify="left")
        for heading in ("cell", "method", "backend", "seed", "T", "batch", "epochs", "overrides"):
            table.add_column(heading)
        for cell in plan:
            train = cell.recipe.train
            table.add_row(
                cell.cell_id,
                cell.method,
                cell.backend,
                str(cell.seed),
                str(cell.recipe.timesteps),
                str(train.batch_size),
                str(train.epochs),
                " ".join(f"{key}={value}" for key, value in cell.overrides.items()) or "–",
            )
        console.print(table)
        for remark in (*plan.remarks, *plan.left_out):
            console.print(f"[dim]{remark}[/dim]")


def show_list(what: str, *, as_json: bool = False) -> None:
    """The registered names of one kind, or of all. Raises RecipeError for an unknown kind."""
    rows: dict[str, Callable[[], list[tuple[str, str]]]] = {
        "recipes": lambda: [(name, load_recipe(name).description) for name in recipe_names()],
        "methods": lambda: list(methods.DESCRIPTIONS.items()),
        "models": lambda: [(name, _first_line(models.options_type(name))) for name in models.names()],
        "datasets": lambda: [(name, _first_line(data.source_type(name))) for name in data.names()],
        "backends": lambda: [(name, "") for name in backends.names()],
    }
    if what != "all" and what not in rows:
        raise RecipeError("list", [f"unknown kind {what!r}{nearest(what, rows)}; known: {', '.join(rows)}"])
    kinds = list(rows) if what == "all" else [what]
    if as_json:
        named = {
            kind: [dict(zip(("name", "description"), row, strict=True)) for row in rows[kind]()]
            for kind in kinds
        }
        _print_json(named)
        return
    console = Console()
    for kind in kinds:
        console.print(f"[bold]{kind}[/bold]")
        table = Table.grid(padding=(0, 2))
        for name, description in rows[kind]():
            table.add_row(f"  {name}", f"[dim]{description}[/dim]")
        console.print(table)


def _first_line(thing: Any) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]


def show_run(folder: Path, *, as_json: bool = False) -> None:
    """A run at a glance, and its tables. Raises ResultsError."""
    from sltt_bench.run_overview import lines, overview

    facts = overview(folder)
    if as_json:
        _print_json(facts)
        return
    console = Console()
    table = Table.grid(padding=(0, 2))
    for subject, text in lines(facts):
        table.add_row(f"[bold]{escape(subject)}[/bold]", escape(text))
    console.print(table)
    _show_summary([folder], console)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


def show_recipe(recipe: Recipe, *, as_json: bool = False) -> None:
    """A resolved recipe as YAML that could be run again, or as JSON."""
    if as_json:
        _print_json(recipe.model_dump(mode="json"))
        return
    from sltt_bench.yaml_text import dump_yaml

    values = recipe.model_dump(mode="json", exclude={"name"})
    print(f"# {recipe.name}, as resolved (fingerprint {recipe.fingerprint()})")
    print(dump_yaml(values), end="")


def doctor(*, as_json: bool = False) -> int:
    """Show the diagnosis; 1 if something is broken."""
    from sltt_bench.doctor import examine

    findings = examine()
    if as_json:
        _print_json([asdict(finding) for finding in findings])
        return int(any(finding.level == "fault" for finding in findings))
    marks = {"ok": "[green]✓[/green]", "note": "[yellow]–[/yellow]", "fault": "[red]✗[/red]"}
    table = Table.grid(padding=(0, 2))
    for finding in findings:
        table.add_row(marks[finding.level], f"[bold]{finding.subject}[/bold]", escape(finding.text))
    Console().print(table)
    return int(any(finding.level == "fault" for finding in findings))


# Data -------------------------------------------------------------------------------------------


def prepare_data(name: str, data_dir: Path, split: str | None) -> None:
    """Get a data set and say what was done. Raises DataError."""
    console = Console()
    with data_progress(console) as progress:
        done = data.prepare(name, data_dir, progress, split=split)
    for sentence in done:
        console.print(sentence, soft_wrap=True, markup=False)


def verify_data(name: str, data_dir: Path, split: str | None) -> int:
    """Show what is right and what is wrong with a data set; 1 if anything is wrong. Raises DataError."""
    console = Console()
    with data_progress(console) as progress:
        findings = data.verify(name, data_dir, progress, split=split)
    table = Table.grid(padding=(0, 2))
    for finding in findings:
        mark = "[green]✓[/green]" if finding.ok else "[red]✗[/red]"
        table.add_row(mark, f"[bold]{escape(finding.subject)}[/bold]", escape(finding.text))
    console.print(table)
    return int(not all(finding.ok for finding in findings))
