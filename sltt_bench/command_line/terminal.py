"""Displays a run while it happens: a live table on a terminal, plain lines elsewhere."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any, Literal

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from sltt_bench.common.format import counted, format_bytes, format_percent, format_seconds
from sltt_bench.planning.plan import Cell, Plan
from sltt_bench.results.cell_row import Outcome
from sltt_bench.results.progress import progress_of
from sltt_bench.running.runner import Display, describe

_STATUS_STYLE = {"ok": "green", "skipped": "yellow"}


@contextmanager
def run_display(
    console: Console, estimated: Mapping[str, int], *, several: bool = False
) -> Iterator[Display]:
    """Yields a display: a table with a row for each cell if the console is a terminal, else lines.

    `estimated` (cell_id → peak of live tensor bytes) is shown next to the measured peak. `several`: cells run
    at the same time, so each line names its cell. The table stays on the screen, whatever ends the run.
    """
    if not console.is_terminal or console.is_dumb_terminal:
        yield _Lines(console, estimated, several)
        return
    table = _LiveTable(console, estimated)
    with table.live:
        yield table


class _Lines(Display):
    """One line for each epoch and each ended cell; batches come too often for lines."""

    def __init__(self, console: Console, estimated: Mapping[str, int], several: bool = False) -> None:
        self._console = console
        self._estimated = estimated
        self._several = several

    def _name(self, cell: Cell) -> str:
        """Returns the start of a line, which names the cell if several run at the same time."""
        return f"{escape(describe(cell))}: " if self._several else ""

    def run_opened(self, plan: Plan, folder: Path) -> None:
        for remark in (*plan.remarks, *plan.left_out):
            self.remark(remark)
        cells = counted(len(plan), "cell")
        self._print(f"[bold]{escape(plan.recipe.name)}[/bold]: {cells} → {escape(str(folder))}")

    def cell_started(self, cell: Cell, number: int, total: int) -> None:
        self._print(f"[bold]\\[{number}/{total}][/bold] {escape(describe(cell))}")

    def epoch(self, cell: Cell, row: Mapping[str, Any]) -> None:
        course, memory = _epoch_texts(row)
        first = f"      {self._name(cell)}epoch {row['epoch']}/{cell.recipe.train.epochs}  {course}"
        fits = not self._console.is_terminal or len(f"{first}  {memory}") <= self._console.width
        self._print(f"{first}  {memory}" if fits else f"{first}\n      {memory}")

    def cell_ended(self, cell: Cell, outcome: Outcome) -> None:
        style = _STATUS_STYLE.get(outcome.status, "red")
        after = "" if outcome.wall_s is None else f" after {outcome.wall_s:.1f} s"
        reason = f": {escape(outcome.reason)}" if outcome.reason else ""
        self._print(f"      {self._name(cell)}[{style}]{outcome.status}[/{style}]{after}{reason}")
        for remark in _misgivings(outcome):
            self._print(f"      {self._name(cell)}[yellow]{escape(remark)}[/yellow]")
        if (estimate := self._estimated.get(cell.cell_id)) is not None:
            measured = format_bytes(outcome.facts.get("peak_tensor_bytes"))
            self._print(
                f"      {self._name(cell)}[dim]peak of live tensors: estimated {format_bytes(estimate)}, measured {measured}[/dim]"
            )

    def remark(self, text: str) -> None:
        self._print(f"[dim]{escape(text)}[/dim]")

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=not self._console.is_terminal)


@dataclass
class _Row:
    """One cell of the table, with its progress."""

    cell: Cell
    stage: Literal["waiting", "under way", "finished", "lost"] = "waiting"
    state: str = "waiting"
    """The stage in a word or two, with the time left or taken."""
    style: str = "dim"
    epoch: int | None = None
    """The current epoch, counted from 1; None before the first batch."""
    loss: float | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)
    """The row of epochs.csv of the last complete epoch."""
    beginning: tuple[float, float] | None = None
    """Clock (seconds) and share of batches done at the first progress report."""
    note: str = ""
    """What is being prepared, why the cell failed, or what makes it doubtful."""

    def advance(self, share: float) -> None:
        """Note that this share of the batches is done; the time left assumes that all take equally long."""
        now = monotonic()
        self.beginning = self.beginning or (now, share)
        clock, first = self.beginning
        if share == first:
            self.state = "running"
        else:
            left = timedelta(seconds=round((now - clock) * (1 - share) / (share - first)))
            self.state = f"{str(left).removeprefix('0:')} left"

    def end(self, outcome: Outcome) -> None:
        """Note how the cell's attempt ended."""
        self.stage = "finished" if outcome.status == "ok" else "lost"
        self.style = _STATUS_STYLE.get(outcome.status, "red")
        after = "" if outcome.wall_s is None else f" {format_seconds(outcome.wall_s)}"
        self.state = f"{outcome.status}{after}"
        self.note = outcome.reason or "; ".join(_misgivings(outcome))


def _misgivings(outcome: Outcome) -> Iterator[str]:
    """Yields warnings about an ended cell's figures."""
    if doubts := outcome.facts.get("doubts"):
        yield f"this may mean nothing: {doubts}"
    if disturbance := outcome.facts.get("disturbance"):
        yield f"its times are not its own: {disturbance}"


_REFRESHES_PER_SECOND = 2
"""Few, since the measured cells may run on the same processors."""
_NEXT = 3
"""Number of waiting cells that are left out last on a small screen."""


class _LiveTable(_Lines):
    """A table with a row for each cell, updated while the cell runs; remarks go above the table."""

    def __init__(self, console: Console, estimated: Mapping[str, int]) -> None:
        super().__init__(console, estimated)
        self._rows: dict[str, _Row] = {}
        """By cell_id, in the order of the plans."""
        self.live = Live(self, console=console, refresh_per_second=_REFRESHES_PER_SECOND)

    def run_opened(self, plan: Plan, folder: Path) -> None:
        super().run_opened(plan, folder)
        kept = progress_of(folder).finished
        self._rows |= {
            cell.cell_id: _Row(cell, "finished", "kept", "green") if cell.cell_id in kept else _Row(cell)
            for cell in plan
        }

    def cell_started(self, cell: Cell, number: int, total: int) -> None:
        self._rows[cell.cell_id] = _Row(cell, "under way", "preparing", "")

    def preparing(self, cell: Cell, event: Mapping[str, Any]) -> None:
        of = "" if event["total"] is None else f" of {event['total']}"
        self._rows[cell.cell_id].note = f"{event['what']}: {event['done']}{of}"

    def batch(self, cell: Cell, event: Mapping[str, Any]) -> None:
        row = self._rows[cell.cell_id]
        row.epoch, row.loss, row.note = event["epoch"], event["loss"], ""
        row.advance((event["epoch"] - 1 + event["done"] / event["total"]) / cell.recipe.train.epochs)

    def epoch(self, cell: Cell, row: Mapping[str, Any]) -> None:
        shown = self._rows[cell.cell_id]
        shown.epoch, shown.loss, shown.figures, shown.note = row["epoch"], row["train_loss"], row, ""
        shown.advance(row["epoch"] / cell.recipe.train.epochs)

    def cell_ended(self, cell: Cell, outcome: Outcome) -> None:
        self._rows[cell.cell_id].end(outcome)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yields as many rows as fit on the screen, and the number of waiting and ended cells left out."""
        rows = list(self._rows.values())
        if not rows:
            return
        waiting = [row for row in rows if row.stage == "waiting"]
        ended = [row for stage in ("finished", "lost") for row in rows if row.stage == stage]
        dispensable = [*reversed(waiting[_NEXT:]), *ended, *reversed(waiting[:_NEXT])]
        left_out = 0
        while True:
            table = self._table(dispensable[:left_out], console, options)
            lines = len(console.render_lines(table, options.update(height=None)))
            excess = min(lines - console.height + 1, len(dispensable) - left_out)
            if excess <= 0:
                break
            left_out += excess
        yield table

    def _table(self, left_out: Sequence[_Row], console: Console, options: ConsoleOptions) -> RenderableType:
        """Returns the table without the rows left out, with estimated peaks if any, and notes below it."""
        rows, estimated = list(self._rows.values()), self._estimated
        hidden = {id(row) for row in left_out}
        names = _names([row.cell for row in rows])
        shown = [(escape(name), row) for name, row in zip(names, rows, strict=True) if id(row) not in hidden]
        figures = dict(_FIGURES)
        peak = next((name for name in _PEAKS if any(row.figures.get(name) is not None for row in rows)), None)
        if peak is not None:
            figures[_PEAKS[peak]] = lambda row: _bytes(row.figures.get(peak))
        if estimated:
            figures[_ESTIMATE] = lambda row: _bytes(estimated.get(row.cell.cell_id))
        table = _rows_of(shown, figures)
        unbounded = options.update_width(1000)  # else rich measures at most the given width
        for heading in _DISPENSABLE:
            if heading in figures and Measurement.get(console, unbounded, table).minimum > options.max_width:
                del figures[heading]
                table = _rows_of(shown, figures)
        notes = Table.grid(padding=(0, 1, 0, 0))
        for name, row in shown:
            if row.note:
                notes.add_row(
                    name, escape(row.note), style="yellow" if row.stage == "finished" else row.style or "dim"
                )
        counts = Counter(row.stage for row in left_out)
        more = Text(", ".join(f"{count} more {stage}" for stage, count in counts.items()), "dim")
        return Group(table, *([more] if counts else []), *([notes] if notes.row_count else []))


_PEAKS = {"peak_allocated_bytes": "allocated", "peak_tensor_bytes": "tensors", "peak_rss_bytes": "resident"}
"""Column of epochs.csv → heading; the table shows the first column that some cell has."""
_FIGURES: dict[str, Callable[[_Row], str]] = {
    "state": lambda row: row.state,
    "epoch": lambda row: "" if row.epoch is None else f"{row.epoch}/{row.cell.recipe.train.epochs}",
    "loss": lambda row: "" if row.loss is None else f"{row.loss:.3f}",
    "top-1": lambda row: _accuracy(row.figures),
    "train": lambda row: _time(row.figures),
}
"""Heading → text of a row; loss is live, top-1 and train are of the last complete epoch."""
_ESTIMATE = "est. tensors"
_DISPENSABLE = (_ESTIMATE, "loss", "train", *_PEAKS.values())
"""Columns that are left out on a narrow terminal, in this order."""


def _rows_of(rows: Sequence[tuple[str, _Row]], figures: Mapping[str, Callable[[_Row], str]]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    # Only the name may wrap, between two words; every other column is at least as wide as its texts.
    table.add_column("cell", min_width=_widest(word for name, _ in rows for word in name.split()))
    for heading, figure in figures.items():
        least = _widest([heading, *(figure(row) for _, row in rows)])
        table.add_column(heading, justify="right", no_wrap=True, min_width=least)
    for name, row in rows:
        table.add_row(name, *(figure(row) for figure in figures.values()), style=row.style)
    return table


def _widest(texts: Iterable[str]) -> int:
    return max(map(cell_len, texts), default=0)


def _names(cells: Sequence[Cell]) -> list[str]:
    """Returns a name for each cell: its method, and the parts of its description that not all cells share."""
    parts = [describe(cell).split(" · ") for cell in cells]
    common = set.intersection(*map(set, parts)) - {cell.method for cell in cells}
    return [" ".join(part for part in own if part not in common) for own in parts]


def _time(row: Mapping[str, Any]) -> str:
    seconds = row.get("train_s")
    return "" if seconds is None else format_seconds(seconds)


def _accuracy(row: Mapping[str, Any]) -> str:
    """Returns the accuracy on test data, else on validation data; "" on random data, which give none."""
    share = next((row[name] for name in ("test_top1", "validation_top1") if row.get(name) is not None), None)
    return "" if share is None else format_percent(share)


def _bytes(count: float | None) -> str:
    return "" if count is None else format_bytes(count)


def _progress(console: Console, done: ProgressColumn) -> Progress:
    """Returns bars that vanish at the end; without a terminal, none are shown."""
    columns = (TextColumn("{task.description}"), BarColumn(), done, TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def data_progress(console: Console) -> Iterator[Callable[[str, int, int | None], None]]:
    """Yields a function that shows a bar for each download, unpacking, conversion or check."""
    tasks: dict[str, TaskID] = {}
    with _progress(console, TaskProgressColumn()) as progress:

        def progressed(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(escape(what), total=total)
            progress.update(tasks[what], completed=done, total=total)

        yield progressed


@contextmanager
def count_display(console: Console, total: int) -> Iterator[Display]:
    """Yields a display for cells that take seconds each: one bar, and a line for each failed cell."""
    with _progress(console, MofNCompleteColumn()) as progress:
        yield _Count(console, progress, total)


class _Count(_Lines):
    """A bar that shows how many cells are done."""

    def __init__(self, console: Console, progress: Progress, total: int) -> None:
        super().__init__(console, {})
        self._progress = progress
        self._task = progress.add_task("estimating", total=total)

    def cell_started(self, cell: Cell, number: int, total: int) -> None:
        """Print nothing, since cells start too often for lines."""

    def cell_ended(self, cell: Cell, outcome: Outcome) -> None:
        self._progress.update(self._task, advance=1, description=escape(describe(cell)))
        if outcome.status != "ok":
            self._print(f"[red]{escape(describe(cell))}: {outcome.status}: {escape(outcome.reason)}[/red]")


def _epoch_texts(row: Mapping[str, Any]) -> tuple[str, str]:
    """Returns (loss, accuracies and time of an epoch, its peaks of memory)."""
    course = [f"loss {row['train_loss']:.4f}"]
    for split in ("validation", "test"):
        if row.get(f"{split}_top1") is not None:
            course.append(f"{split} top-1 {format_percent(row[f'{split}_top1'])}")
    if row.get("train_s") is not None:
        course.append(f"train {row['train_s']:.2f} s")
    columns = ("peak_allocated_bytes", "peak_rss_bytes", "peak_tensor_bytes")
    memory = [
        f"{_PEAKS[column]} {format_bytes(row[column])}" for column in columns if row.get(column) is not None
    ]
    return "  ".join(course), "  ".join(memory)
