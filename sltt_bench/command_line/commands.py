"""One command's work, from plans to an exit code."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from sltt_bench import data
from sltt_bench.command_line.terminal import count_display, run_display
from sltt_bench.common.format import DASH, counted
from sltt_bench.common.printable import make_console
from sltt_bench.kinds import KINDS
from sltt_bench.measure.gpu_support import check_gpu_is_usable
from sltt_bench.planning.plan import Cell, Plan, value_at
from sltt_bench.planning.recipe_faults import RecipeError
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
        from sltt_bench.results.reader import print_unread, read_results

        results = read_results(folders)
        print_unread(results.skipped, console)
        rows = results.rows(json_rows).drop(columns="run", errors="ignore")
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
        fault = cell.recipe.batch_fault(synthetic=cell.synthetic)
        if KINDS[cell.kind].needs_data and fault is not None:
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
            f"its prerequisite {prerequisite} did not finish; mend that run, or `run` with --init PATH or --init random"
        )
    return checkpoint


def _say(console: Console, text: str, style: str = "dim") -> None:
    """A remark on one line, however long."""
    console.print(f"[{style}]{escape(text)}[/{style}]", soft_wrap=True)


# What a command would do --------------------------------------------------------------------------


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
                f"--resume: {len(plan) - len(left)} of {counted(len(plan), 'cell')} finished in {path}",
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
    for text in (*plan.remarks, *plan.left_out):
        remark(text)


def remark(text: str) -> None:
    """Say what the user should know before anything begins."""
    _say(make_console(), text)
