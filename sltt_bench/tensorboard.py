"""TensorBoard logs of a run, under the same names as the CSV columns (`--log tensorboard`).

Written with the package `tensorboard` alone, in the process that writes the CSV files: torch is not
needed, and the logs hold what is on disk anyway.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sltt_bench.plan import Cell, Plan
from sltt_bench.results.cell_row import Outcome
from sltt_bench.results.schema import CELL_KEY
from sltt_bench.runner import Display

FOLDER = "tensorboard"
_KEY = {column.name for column in CELL_KEY} | {"epoch"}


class TensorBoardMissing(Exception):
    """The package `tensorboard` is not installed; the message says how to get it."""


class TensorBoardLog:
    """A Display that writes one event file for each cell below `<run>/tensorboard/`."""

    def __init__(self) -> None:
        """Raises TensorBoardMissing."""
        try:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise TensorBoardMissing(
                f"--log tensorboard needs its package ({error}): pip install 'sltt-bench[tensorboard]'"
            ) from None
        self._event, self._summary, self._writer_type = Event, Summary, EventFileWriter
        self._run = Path()
        self._writer: Any = None

    def run_opened(self, plan: Plan, folder: Path) -> None:
        self._run = folder

    def cell_started(self, cell: Cell, number: int, total: int) -> None:
        name = f"{cell.method}-{cell.backend}-seed{cell.seed}-{cell.cell_id}"
        self._writer = self._writer_type(str(self._run / FOLDER / name))

    def preparing(self, cell: Cell, event: Mapping[str, Any]) -> None:
        """Only what is in the CSV files is logged."""

    def batch(self, cell: Cell, event: Mapping[str, Any]) -> None:
        """Only what is in the CSV files is logged."""

    def epoch(self, cell: Cell, row: Mapping[str, Any]) -> None:
        values = [
            self._summary.Value(tag=column, simple_value=float(value))
            for column, value in row.items()
            if column not in _KEY and isinstance(value, (int, float)) and not isinstance(value, bool)
        ]
        event = self._event(
            wall_time=time.time(), step=int(row["epoch"]), summary=self._summary(value=values)
        )
        self._writer.add_event(event)
        self._writer.flush()

    def cell_ended(self, cell: Cell, outcome: Outcome) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def remark(self, text: str) -> None:
        """Words are for the terminal."""


class Displays:
    """Several displays as one."""

    def __init__(self, *displays: Display) -> None:
        self._displays = displays

    def run_opened(self, plan: Plan, folder: Path) -> None:
        for display in self._displays:
            display.run_opened(plan, folder)

    def cell_started(self, cell: Cell, number: int, total: int) -> None:
        for display in self._displays:
            display.cell_started(cell, number, total)

    def preparing(self, cell: Cell, event: Mapping[str, Any]) -> None:
        for display in self._displays:
            display.preparing(cell, event)

    def batch(self, cell: Cell, event: Mapping[str, Any]) -> None:
        for display in self._displays:
            display.batch(cell, event)

    def epoch(self, cell: Cell, row: Mapping[str, Any]) -> None:
        for display in self._displays:
            display.epoch(cell, row)

    def cell_ended(self, cell: Cell, outcome: Outcome) -> None:
        for display in self._displays:
            display.cell_ended(cell, outcome)

    def remark(self, text: str) -> None:
        for display in self._displays:
            display.remark(text)
