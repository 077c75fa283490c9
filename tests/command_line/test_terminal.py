"""What a run shows on a terminal of 80 columns: no line is folded in the middle of a figure."""

import io
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sltt_bench.command_line.terminal import _LiveTable, run_display
from sltt_bench.planning.plan import Cell, Plan
from sltt_bench.results.cell_row import Outcome
from sltt_bench.results.progress import Progress

ROW = {
    "epoch": 100,
    "train_loss": 12.3456,
    "test_top1": 0.9876,
    "train_s": 123.45,
    "peak_rss_bytes": 15 * 2**30,
    "peak_tensor_bytes": 123 * 2**20,
}
BATCH = {"epoch": 100, "total": 391, "done": 390, "loss": 12.345, "top1": 0.98, "memory": 2**30}
LOST = Outcome("oom", "allocator: 2.00 GiB more were wanted, 1.20 GiB of 23.6 GiB were free", wall_s=12.3)


def lines(cell: Cell, **how: Any) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=80, color_system=None, **how)
    with run_display(console, {}) as display:
        display.run_opened(Plan(cell.recipe, (cell,)), Path("results"))
        display.cell_started(cell, 1, 1)
        display.batch(cell, BATCH)
        display.epoch(cell, ROW)
    return stream.getvalue()


def test_a_log_has_an_epoch_on_one_line(smoke_cell: Callable[..., Cell]) -> None:
    text = lines(smoke_cell(train__epochs=300), force_terminal=False)
    (line,) = (line for line in text.splitlines() if "epoch 100/300" in line)
    assert line.endswith("train 123.45 s  resident 15 GiB  tensors 123 MiB")


def test_an_epoch_fits_into_80_columns_of_a_terminal_without_a_cursor(
    smoke_cell: Callable[..., Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    text = lines(smoke_cell(train__epochs=300), force_terminal=True)
    assert "train 123.45 s\n      resident 15 GiB  tensors 123 MiB" in text


class Screen:
    """A live table, and what it shows on a terminal of a size."""

    def __init__(self, cells: Sequence[Cell], width: int = 80, height: int = 24, **estimated: int) -> None:
        self.stream = io.StringIO()
        size: dict[str, Any] = {"width": width, "height": height, "color_system": None}
        self._plain = Console(file=io.StringIO(), **size)
        self.table = _LiveTable(Console(file=self.stream, force_terminal=True, **size), estimated)
        self.table.run_opened(Plan(cells[0].recipe, tuple(cells)), Path("results"))

    def begin(self, cells: Iterable[Cell]) -> None:
        for cell in cells:
            self.table.cell_started(cell, 1, 1)

    @property
    def rows(self) -> list[str]:
        options = self._plain.options
        return [
            "".join(part.text for part in line).rstrip()
            for line in self._plain.render_lines(self.table, options)
        ]


@pytest.fixture
def cells(smoke_cell: Callable[..., Cell]) -> list[Cell]:
    """Two seeds of three methods."""
    return [
        smoke_cell(method=method, seed=seed, train__epochs=300)
        for method in ("bptt", "sltt-k2-unbiased", "bptt-ckpt4")
        for seed in (0, 1)
    ]


def test_each_cell_is_a_row_of_80_columns_with_how_far_it_is(
    cells: list[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Screen(cells)
    screen.begin(cells[:4])
    clock = iter((0.0, 3600.0))
    monkeypatch.setattr("sltt_bench.command_line.terminal.monotonic", lambda: next(clock))
    screen.table.batch(cells[0], {**BATCH, "epoch": 1, "done": 0})
    screen.table.epoch(cells[0], ROW)
    screen.table.preparing(cells[1], {"what": "digits: unpacking", "done": 3, "total": 10})
    screen.table.cell_ended(cells[2], Outcome("ok", wall_s=125.0))
    screen.table.cell_ended(cells[3], LOST)
    assert [re.sub(" {2,}", "  ", row) for row in screen.rows] == [
        "cell  state  epoch  loss  top-1  train tensors",
        "bptt seed 0  2:00:00 left 100/300 12.346 98.76 % 2.06 min 123 MiB",
        "bptt seed 1  preparing",
        "sltt-k2-unbiased seed 0  ok 2.08 min",
        "sltt-k2-unbiased seed 1  oom 12.3 s",
        "bptt-ckpt4 seed 0  waiting",
        "bptt-ckpt4 seed 1  waiting",
        "bptt seed 1  digits: unpacking: 3 of 10",
        "sltt-k2-unbiased seed 1 allocator: 2.00 GiB more were wanted, 1.20 GiB of 23.6",
        "  GiB were free",
    ]


def test_a_cell_whose_times_are_not_its_own_says_so_in_a_log_and_in_the_table(cells: list[Cell]) -> None:
    outcome = Outcome("ok", wall_s=3.0, facts={"disturbance": "other programs used 40% of the processors"})
    stream = io.StringIO()
    with run_display(Console(file=stream, width=80, color_system=None), {}) as display:
        display.cell_ended(cells[0], outcome)
    assert "its times are not its own: other programs used 40% of the processors" in stream.getvalue()
    screen = Screen(cells)
    screen.begin(cells[:1])
    screen.table.cell_ended(cells[0], outcome)
    assert "its times are not its own" in " ".join(screen.rows)


def test_no_row_is_folded_inside_a_word_or_a_number(cells: list[Cell]) -> None:
    for width, kept in ((120, True), (80, True), (60, False)):
        screen = Screen(cells, width)
        screen.begin(cells)
        for cell in cells:
            screen.table.epoch(cell, ROW)
        screen.table.cell_ended(cells[3], LOST)
        words = {word for row in screen.rows for word in row.split()}
        assert {"sltt-k2-unbiased", "bptt-ckpt4", "100/300", "98.76", "allocator:"} <= words
        assert not any("…" in word for word in words)
        assert max(map(len, screen.rows)) <= width
        assert ("12.346" in words) == kept, "the loss is what a narrow terminal goes without first"


def test_a_small_screen_keeps_what_moves_and_what_failed_and_counts_the_rest(
    smoke_cell: Callable[..., Cell],
) -> None:
    cells = [smoke_cell(method="sltt", seed=seed) for seed in range(40)]
    screen = Screen(cells, height=12)
    screen.begin(cells[:22])
    for cell in cells[:20]:
        screen.table.cell_ended(cell, LOST if cell.seed == 7 else Outcome("ok", wall_s=1.0))
    rows = screen.rows
    assert len(rows) <= 11
    seeds = [row.split()[2] for row in rows if row.startswith("sltt seed")]
    assert {"7", "20", "21", "22"} <= set(seeds)
    count, reason = rows[-2:]
    assert re.fullmatch(r"\d+ more waiting, \d+ more finished", count)
    assert re.match("sltt seed 7 +allocator: 2.00 GiB", reason)


def test_the_table_stays_when_the_run_is_interrupted(smoke_cell: Callable[..., Cell]) -> None:
    cell = smoke_cell(train__epochs=300)
    stream = io.StringIO()
    console = Console(file=stream, width=80, height=24, force_terminal=True, color_system=None)
    with suppress(KeyboardInterrupt), run_display(console, {}) as display:
        display.run_opened(Plan(cell.recipe, (cell,)), Path("results"))
        display.cell_started(cell, 1, 1)
        display.epoch(cell, ROW)
        raise KeyboardInterrupt
    last = stream.getvalue().rpartition("cell ")[2]
    assert "100/300" in last
    assert "\x1b[2K" not in last, "the table was wiped away"


def test_cells_that_a_resumed_run_keeps_are_finished(
    cells: list[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Progress(frozenset({cells[0].cell_id}), {}, {}, (), {})
    monkeypatch.setattr("sltt_bench.command_line.terminal.progress_of", lambda folder: kept)
    states = [row.split()[-1] for row in Screen(cells).rows[1:]]
    assert states == ["kept", *["waiting"] * 5]


def test_an_estimated_peak_is_a_column_from_the_beginning(cells: list[Cell]) -> None:
    rows = Screen(cells, **{cells[0].cell_id: 2**20}).rows
    assert rows[0].endswith("est. tensors")
    assert rows[1].endswith("1 MiB")
