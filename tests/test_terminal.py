"""What a run shows on a terminal of 80 columns: no line is folded in the middle of a figure."""

import io
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from sltt_bench.plan import Cell, Plan
from sltt_bench.terminal import run_display

ROW = {
    "epoch": 100,
    "train_loss": 12.3456,
    "test_top1": 0.9876,
    "train_s": 123.45,
    "peak_rss_bytes": 15 * 2**30,
    "peak_tensor_bytes": 123 * 2**20,
}
BATCH = {"epoch": 100, "total": 391, "done": 390, "loss": 12.345, "top1": 0.98, "memory": 2**30}


def shown(cell: Cell, *, terminal: bool) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=80, force_terminal=terminal, color_system=None)
    with run_display(console, {}) as display:
        display.run_opened(Plan(cell.recipe, (cell,)), Path("results"))
        display.cell_started(cell, 1, 1)
        display.batch(cell, BATCH)
        display.epoch(cell, ROW)
    return stream.getvalue()


def test_an_epoch_and_its_bar_fit_into_80_columns(smoke_cell: Callable[..., Cell]) -> None:
    text = shown(smoke_cell(train__epochs=300), terminal=True)
    assert "train 123.45 s\n      resident 15 GiB  tensors 123 MiB" in text
    assert "top-1 98.00 %  1 GiB" in text
    assert "…" not in text


def test_a_log_has_an_epoch_on_one_line(smoke_cell: Callable[..., Cell]) -> None:
    text = shown(smoke_cell(train__epochs=300), terminal=False)
    (line,) = (line for line in text.splitlines() if "epoch 100/300" in line)
    assert line.endswith("train 123.45 s  resident 15 GiB  tensors 123 MiB")
