"""What a run looks like while it happens: progress bars on a terminal, plain lines elsewhere."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from sltt_bench.format import format_bytes, format_percent
from sltt_bench.plan import Cell, Plan
from sltt_bench.results.cell_row import Outcome
from sltt_bench.runner import Display, describe

_STATUS_STYLE = {"ok": "green", "skipped": "yellow"}


@contextmanager
def run_display(
    console: Console, estimated: Mapping[str, int], *, several: bool = False
) -> Iterator[Display]:
    """Bars if the console is a terminal, else lines.

    `estimated` (cell_id → peak of live tensor bytes) is shown beside what is measured. With `several`, cells
    run side by side: each line and bar names its own.
    """
    if not console.is_terminal or console.is_dumb_terminal:
        yield _Lines(console, estimated, several)
        return
    bars = _Bars(console, estimated, several)
    with bars.progress:
        yield bars


class _Lines:
    """One line for each epoch and each ended cell."""

    def __init__(self, console: Console, estimated: Mapping[str, int], several: bool = False) -> None:
        self._console = console
        self._estimated = estimated
        self._several = several

    def _name(self, cell: Cell) -> str:
        """What a line begins with where cells run side by side."""
        return f"{escape(describe(cell))}: " if self._several else ""

    def run_opened(self, plan: Plan, folder: Path) -> None:
        for remark in (*plan.remarks, *plan.left_out):
            self.remark(remark)
        self._print(f"[bold]{escape(plan.recipe.name)}[/bold]: {len(plan)} cells → {escape(str(folder))}")

    def cell_started(self, cell: Cell, number: int, total: int) -> None:
        self._print(f"[bold]\\[{number}/{total}][/bold] {escape(describe(cell))}")

    def preparing(self, cell: Cell, event: Mapping[str, Any]) -> None:
        """Too often for lines."""

    def batch(self, cell: Cell, event: Mapping[str, Any]) -> None:
        """Too often for lines."""

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
        if doubts := outcome.facts.get("doubts"):
            self._print(f"      {self._name(cell)}[yellow]this may mean nothing: {escape(doubts)}[/yellow]")
        if (estimate := self._estimated.get(cell.cell_id)) is not None:
            measured = format_bytes(outcome.facts.get("peak_tensor_bytes"))
            self._print(
                f"      {self._name(cell)}[dim]peak of live tensors: estimated {format_bytes(estimate)}, measured {measured}[/dim]"
            )

    def remark(self, text: str) -> None:
        self._print(f"[dim]{escape(text)}[/dim]")

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)


class _Bars(_Lines):
    """A bar over the batches of each cell under way, with the time left, loss, accuracy and memory."""

    def __init__(self, console: Console, estimated: Mapping[str, int], several: bool) -> None:
        super().__init__(console, estimated, several)
        self.progress = Progress(
            TextColumn("      {task.description}epoch {task.fields[epoch]}"),
            BarColumn(bar_width=8),  # the rest of 80 columns is for figures
            TaskProgressColumn(),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[live]}"),
            console=console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        """cell_id → its bar, while it is under way."""

    def cell_started(self, cell: Cell, number: int, total: int) -> None:
        super().cell_started(cell, number, total)
        self._tasks[cell.cell_id] = self.progress.add_task(
            self._name(cell), total=None, epoch=f"0/{cell.recipe.train.epochs}", live="preparing"
        )

    def _total(self, cell: Cell) -> float | None:
        """Batches of all its epochs; None before they are known."""
        task = self._tasks[cell.cell_id]
        return next(bar.total for bar in self.progress.tasks if bar.id == task)

    def preparing(self, cell: Cell, event: Mapping[str, Any]) -> None:
        if cell.cell_id in self._tasks:
            of = "" if event["total"] is None else f" of {event['total']}"
            self.progress.update(
                self._tasks[cell.cell_id], live=escape(f"{event['what']}: {event['done']}{of}")
            )

    def batch(self, cell: Cell, event: Mapping[str, Any]) -> None:
        if cell.cell_id not in self._tasks:
            return
        epochs, per_epoch = cell.recipe.train.epochs, event["total"]
        live = f"loss {event['loss']:.3f}  top-1 {format_percent(event['top1'])}  {format_bytes(event['memory'])}"
        self.progress.update(
            self._tasks[cell.cell_id],
            total=epochs * per_epoch,
            completed=(event["epoch"] - 1) * per_epoch + event["done"],
            epoch=f"{event['epoch']}/{epochs}",
            live=live,
        )

    def epoch(self, cell: Cell, row: Mapping[str, Any]) -> None:
        super().epoch(cell, row)
        if cell.cell_id in self._tasks:
            epochs = cell.recipe.train.epochs
            total = self._total(cell) or epochs
            self.progress.update(
                self._tasks[cell.cell_id],
                total=total,
                completed=total * row["epoch"] / epochs,
                epoch=f"{row['epoch']}/{epochs}",
            )

    def cell_ended(self, cell: Cell, outcome: Outcome) -> None:
        if (task := self._tasks.pop(cell.cell_id, None)) is not None:
            self.progress.remove_task(task)
        super().cell_ended(cell, outcome)


@contextmanager
def data_progress(console: Console) -> Iterator[Callable[[str, int, int | None], None]]:
    """A bar for each thing that is downloaded, unpacked, converted or checked."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:

        def progressed(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(escape(what), total=total)
            progress.update(tasks[what], completed=done, total=total)

        yield progressed


@contextmanager
def count_display(console: Console, total: int) -> Iterator[Display]:
    """A bar over cells that take seconds each; a line for each that fails."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield _Count(console, progress, total)


class _Count(_Lines):
    """How many cells are done."""

    def __init__(self, console: Console, progress: Progress, total: int) -> None:
        super().__init__(console, {})
        self._progress = progress
        self._task = progress.add_task("estimating", total=total)

    def cell_started(self, cell: Cell, number: int, total: int) -> None:
        """Too often for lines."""

    def cell_ended(self, cell: Cell, outcome: Outcome) -> None:
        self._progress.update(self._task, advance=1, description=escape(describe(cell)))
        if outcome.status != "ok":
            self._print(f"[red]{escape(describe(cell))}: {outcome.status}: {escape(outcome.reason)}[/red]")


def _epoch_texts(row: Mapping[str, Any]) -> tuple[str, str]:
    """How training went, and the memory that it took."""
    course = [f"loss {row['train_loss']:.4f}"]
    for split in ("validation", "test"):
        if row.get(f"{split}_top1") is not None:
            course.append(f"{split} top-1 {format_percent(row[f'{split}_top1'])}")
    course.append(f"train {row['train_s']:.2f} s")
    memory = [
        f"{name} {format_bytes(row[column])}"
        for column, name in (
            ("peak_allocated_bytes", "allocated"),
            ("peak_rss_bytes", "resident"),
            ("peak_tensor_bytes", "tensors"),
        )
        if row.get(column) is not None
    ]
    return "  ".join(course), "  ".join(memory)
