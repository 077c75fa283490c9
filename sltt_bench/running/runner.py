"""Runs plans: every cell an attempt in a process, and a row for every ending.

Only a fresh process has an honest memory peak. The runner writes the rows (through the results
folder) as the processes report them, so that whatever ends one, what it measured is on disk.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sltt_bench.kinds import KINDS
from sltt_bench.planning.plan import Cell, Plan
from sltt_bench.planning.studies import setting_words
from sltt_bench.results.cell_row import Outcome, cell_key, cell_row, circumstances
from sltt_bench.results.doubts import disturbance
from sltt_bench.results.private_paths import public
from sltt_bench.results.progress import progress_of
from sltt_bench.results.schema import (
    CELLS_FILE,
    EPOCHS_FILE,
    FILES,
    PROVENANCE_FILE,
    RANKS_FILE,
    TIMELINE_FILE,
)
from sltt_bench.results.writer import ResultsError, RunFolder, provenance_fault, read_provenance
from sltt_bench.running.interruptions import Interrupted, Interruptions
from sltt_bench.running.lanes import Attempt, Event, Lanes, Place
from sltt_bench.tuning.choice import is_lost


class Display:
    """Who shows a run as it happens; this one shows nothing."""

    def run_opened(self, plan: Plan, folder: Path) -> None: ...
    def cell_started(self, cell: Cell, number: int, total: int) -> None: ...
    def preparing(self, cell: Cell, event: Mapping[str, Any]) -> None: ...
    def batch(self, cell: Cell, event: Mapping[str, Any]) -> None: ...
    def epoch(self, cell: Cell, row: Mapping[str, Any]) -> None: ...
    def cell_ended(self, cell: Cell, outcome: Outcome) -> None: ...
    def remark(self, text: str) -> None: ...


@dataclass(frozen=True)
class PlannedRun:
    """A plan, and the folder that is opened for it when its turn comes."""

    plan: Plan
    open_folder: Callable[[], RunFolder]


class NotRunnable(Exception):
    """A cell that is skipped; the message says why."""


def run_plans(
    runs: Sequence[PlannedRun],
    display: Display,
    *,
    data_dir: Path,
    initial_weights: Callable[[Cell], Path | None],
    provenance: Mapping[str, Any],
    estimated_peaks: Mapping[str, int] | None = None,
    places: Sequence[Place] = (Place(),),
    timeout_s: float | None = None,
    lost: str = "",
) -> list[Outcome]:
    """Run the cells that their folders do not hold as finished; how each of all cells ended.

    `initial_weights` gives a cell's checkpoint to start from; it raises NotRunnable for a cell that is to
    be skipped. `estimated_peaks` (cell_id → bytes) are recorded beside what is measured. A cell runs at
    each of `places`, side by side; one that needs another waits until that has ended. With `lost`, a reason, an
    earlier attempt that left no row of cells.csv, since whoever was to write it was killed, gets one. After an
    Interrupted the folders are complete: the cells under way and those not begun have their rows.
    """
    recording = _Recording(runs, display, data_dir, initial_weights, provenance, estimated_peaks or {}, lost)
    processes = Lanes(places, timeout_s=timeout_s)
    with recording.interruptions.raised():
        try:
            with processes:
                processes.run(recording.attempts())
        except Interrupted as interruption:
            recording.cut_off(f"interrupted by {interruption}")
            raise
        except SystemExit:  # raised by a signal's handler of whoever started us
            recording.cut_off("ended by its scheduler, to be started again")
            raise
        except Exception as error:
            with suppress(ResultsError):
                recording.cut_off(f"the run was ended by {type(error).__name__}: {error}")
            raise
        finally:
            recording.close()
    return recording.outcomes


def computed(cells: Sequence[Cell], *, timeout_s: float | None = None) -> list[Outcome]:
    """The outcomes, with their facts, of cells that leave no rows; one process works on all of them.

    A cell that takes longer than `timeout_s` has the status timeout. Raises Interrupted.
    """
    attempts = [Attempt(cell, Outcome("error")) for cell in cells]
    with Interruptions().raised(), Lanes(timeout_s=timeout_s) as processes:
        processes.run(iter(attempts))
    return [attempt.outcome for attempt in attempts]


def describe(cell: Cell) -> str:
    """A cell in the words of its user."""
    backend = [] if cell.backend == "reference" else [cell.backend]
    overrides = [setting_words(key, value, "=") for key, value in cell.overrides.items()]
    return " · ".join([cell.recipe.name, cell.method, *backend, f"seed {cell.seed}", *overrides])


@dataclass
class _Recording:
    """The runs of one command: hands out what is to be tried, and keeps what comes of it."""

    runs: Sequence[PlannedRun]
    display: Display
    data_dir: Path
    initial_weights: Callable[[Cell], Path | None]
    provenance: Mapping[str, Any]
    estimated_peaks: Mapping[str, int]
    lost: str = ""
    outcomes: list[Outcome] = field(default_factory=list)
    interruptions: Interruptions = field(default_factory=Interruptions)
    records: "list[_RunRecord]" = field(default_factory=list)

    def attempts(self) -> Iterator[Attempt | None]:
        """What is to be tried, in order but for what waits for its prerequisite: None while nothing else is left.

        What need not or cannot be tried is settled on the way.
        """
        waiting: list[_RecordedAttempt] = []
        for attempt in self._planned():
            waiting.append(attempt)
            yield from self._startable(waiting)
        while waiting:
            yield from self._startable(waiting)
            if waiting:
                yield None
        for record in self.records:
            if record.plan.then is not None:
                while record.open_attempts:
                    yield None
                yield from self._startable(list(self._opened(record, record.plan.then(record.folder))))

    def _startable(self, waiting: "list[_RecordedAttempt]") -> Iterator[Attempt]:
        """Those that wait for no cell that is still to end, taken out of `waiting`; what cannot be tried is skipped."""
        for attempt in [each for each in waiting if not self._is_open(each.cell.needs)]:
            waiting.remove(attempt)
            self.display.cell_started(attempt.cell, *attempt.number)
            try:
                weights = self.initial_weights(attempt.cell)
            except NotRunnable as reason:
                attempt.skip(str(reason))
            else:
                attempt.prepare(self.data_dir, weights)
                yield attempt

    def _planned(self) -> "Iterator[_RecordedAttempt]":
        """Every cell that is not finished; a run's folder is opened as its turn comes."""
        for run in self.runs:
            record = _RunRecord(self, run.plan, run.open_folder())
            self.records.append(record)
            yield from self._opened(record, run.plan)

    def _opened(self, record: "_RunRecord", plan: Plan) -> "Iterator[_RecordedAttempt]":
        """The cells of a plan that its run's folder does not hold as finished."""
        self.display.run_opened(plan, record.folder.path)
        so_far = progress_of(record.folder.path)
        for damage in so_far.damage:
            self.display.remark(f"{damage.path}: {damage.reason}; not read")
        finished = so_far.finished
        for cell in plan:
            if cell.cell_id in finished:
                record.drop_checkpoint(cell)
                self.display.remark(f"{describe(cell)}: finished before, kept")
                self.outcomes.append(Outcome("ok", "finished before"))
            elif self.lost:
                record.write_lost_row(cell, self.lost)
        record.open_attempts = [
            _RecordedAttempt(record, cell, (number, len(plan)))
            for number, cell in enumerate(plan, start=1)
            if cell.cell_id not in finished
        ]
        for attempt in list(record.open_attempts):
            self.outcomes.append(attempt.outcome)
            peak = self.estimated_peaks.get(attempt.cell.cell_id)
            attempt.outcome.facts["estimated_peak_tensor_bytes"] = peak
            yield attempt

    def _is_open(self, cell_id: str | None) -> bool:
        """Whether this cell has begun, or is to begin, and has not ended."""
        return any(
            attempt.cell.cell_id == cell_id for record in self.records for attempt in record.open_attempts
        )

    def cut_off(self, reason: str) -> None:
        """The rows of what has begun and of what has not, in the runs whose turn has come; no signal ends this."""
        self.interruptions.end()
        for record in self.records:
            for attempt in list(record.open_attempts):
                attempt.outcome.status = "killed" if attempt.begun else "skipped"
                attempt.outcome.reason = reason
                attempt.write_row()

    def close(self) -> None:
        for record in self.records:
            record.folder.close()


class _RunRecord:
    """One run's folder: rows and provenance as they come."""

    def __init__(self, recording: _Recording, plan: Plan, folder: RunFolder) -> None:
        self.plan, self.folder = plan, folder
        self.display, self.interruptions = recording.display, recording.interruptions
        folder.check_version()
        folder.write_recipe(plan.recipe.model_dump(mode="json"))
        so_far = progress_of(folder.path)
        self._attempts = so_far.attempts
        self._with_epochs = set(so_far.epochs)
        self.open_attempts: list[_RecordedAttempt] = []
        """Without a row of cells.csv so far, begun or not."""
        about = {"run": folder.path.name, "plan": [cell.cell_id for cell in plan]}
        earlier = read_provenance(folder.path)
        if (fault := provenance_fault(earlier)) is not None:
            path = folder.path / PROVENANCE_FILE
            raise ResultsError(f"{path}: {fault}; mend it, or start a run of its own without --resume")
        self._provenance = earlier or {**recording.provenance, **about}
        for name, empty in (("commands", []), ("cells", {})):
            self._provenance.setdefault(name, empty)
        self._command = len(self._provenance["commands"])
        self._provenance["commands"].append(dict(recording.provenance))
        folder.write_provenance(self._provenance)

    def note(self, cell: Cell, attempt: int, facts: Mapping[str, Any]) -> None:
        """Add to what an attempt was measured with; what is known of earlier ones stays as it is."""
        attempts = self._provenance["cells"].setdefault(cell.cell_id, {}).setdefault("attempts", {})
        attempts.setdefault(str(attempt), {"command": self._command}).update(facts)
        if "torch" in facts:
            self._provenance.setdefault("torch", facts["torch"])
        self.folder.write_provenance(self._provenance, cell.cell_id)

    def attempts_at(self, cell: Cell) -> int:
        """How often a cell was tried, if only for a moment."""
        noted = self._provenance["cells"].get(cell.cell_id, {}).get("attempts", {})
        return max(self._attempts.get(cell.cell_id, 0), *map(int, noted), 0)

    def write_lost_row(self, cell: Cell, reason: str) -> None:
        """The row of the cell's last attempt, if it left none."""
        with_rows = [int(row["attempt"]) for row in self.folder.rows(CELLS_FILE, cell.cell_id)]
        last = self.attempts_at(cell)
        if last > max(with_rows, default=0):
            outcome = Outcome("killed", reason, attempt=last)
            self.folder.append(CELLS_FILE, cell_row(cell, outcome, self.epochs(cell)))

    def drop_checkpoint(self, cell: Cell) -> None:
        """A finished cell needs it no more: its row, which came first, says so. It stays where this command or the one that
        tried the cell last was told to keep it.
        """
        path = self.folder.checkpoint_path(cell.cell_id)
        if (
            path.exists()
            and not cell.recipe.train.keep_checkpoint
            and not self.folder.keeps_checkpoint(cell.cell_id)
        ):
            path.unlink()

    def epochs(self, cell: Cell) -> dict[int, dict[str, str]]:
        """Epoch → the cell's row; a later attempt's row stands for an earlier one's."""
        # Reading the file for each of a thousand cells would take a minute.
        if cell.cell_id not in self._with_epochs:
            return {}
        rows = self.folder.rows(EPOCHS_FILE, cell.cell_id)
        return {int(row["epoch"]): row for row in sorted(rows, key=lambda row: int(row["attempt"]))}

    def append(self, file: str, row: Mapping[str, Any]) -> None:
        """A row of a cell."""
        self.folder.append(file, row)
        if file == EPOCHS_FILE:
            self._with_epochs.add(row["cell_id"])

    def ranks(self, cell: Cell) -> set[tuple[int, int, int]]:
        """(attempt, epoch, rank) of the cell's rows of ranks.csv."""
        rows = self.folder.rows(RANKS_FILE, cell.cell_id)
        return {(int(row["attempt"]), int(row["epoch"]), int(row["rank"])) for row in rows}


class _RecordedAttempt(Attempt):
    """An attempt whose rows go into its run's folder as they come."""

    def __init__(self, record: _RunRecord, cell: Cell, number: tuple[int, int]) -> None:
        """`number`: (its place in the plan, counted from 1; cells of the plan)."""
        attempt = record.attempts_at(cell) + 1
        super().__init__(cell, Outcome("error", attempt=attempt))
        self.log = record.folder.log_path(cell.cell_id, attempt)
        self._record, self.number = record, number
        record.folder.write_cell(public(cell.to_dict()))

    def prepare(self, data_dir: Path, initial_weights: Path | None) -> None:
        """What its process will be told."""
        train = self.cell.recipe.train
        checkpoint = None
        if KINDS[self.cell.kind].checkpoints and (train.checkpoint_every or train.keep_checkpoint):
            checkpoint = self._record.folder.checkpoint_path(self.cell.cell_id)
        self._note({})
        self.job = {
            "data_dir": str(data_dir),
            "checkpoint": None if checkpoint is None else str(checkpoint),
            "resume": checkpoint is not None and checkpoint.exists(),
            "initial_weights": None if initial_weights is None else str(initial_weights),
        }

    def skip(self, reason: str) -> None:
        """It is not tried."""
        self.outcome.status, self.outcome.reason = "skipped", reason
        self.ended()

    def hear(self, name: str, event: Event) -> None:
        display = self._record.display
        with self._record.interruptions.deferred():
            match name:
                case "preparing":
                    display.preparing(self.cell, event)
                case "batch":
                    display.batch(self.cell, event)
                case "epoch":
                    beside = {"neighbours": self.most_neighbours}
                    self._count_neighbours()
                    self.most_neighbours = self.neighbours
                    display.epoch(self.cell, self._append_epoch(self.outcome, event["row"] | beside))
                case "epochs":
                    self._append_earlier_epochs(event["epochs"])
                case "row":
                    self._append(event["file"], event["row"], self.outcome)
                case "sample":
                    key = {"cell_id": self.cell.cell_id, "attempt": self.outcome.attempt}
                    self._record.folder.append(TIMELINE_FILE, {**key, **event["row"]})
                case "measured_with":
                    self._note(event)
                case "initial_weights":
                    self._note({"initial_weights": event})

    def _note(self, facts: Mapping[str, Any]) -> None:
        self._record.note(self.cell, self.outcome.attempt, facts)

    def _count_neighbours(self) -> None:
        self.outcome.neighbours = max(self.outcome.neighbours or 0, self.most_neighbours)

    def write_row(self) -> None:
        """Its row of cells.csv."""
        if self.begun:
            self._count_neighbours()
        epochs = self._record.epochs(self.cell)
        row = cell_row(self.cell, self.outcome, epochs)
        self._record.folder.append(CELLS_FILE, row)
        self.outcome.facts["doubts"] = row["doubts"]
        self.outcome.facts["disturbance"] = disturbance([epochs[epoch] for epoch in sorted(epochs)])
        self._record.open_attempts.remove(self)

    def ended(self) -> None:
        outcome = self.outcome
        outcome.answers = self.cell.kind == "trial" and is_lost(outcome.status, outcome.reason)
        with self._record.interruptions.deferred():
            self.write_row()
            if outcome.status == "ok":
                self._record.drop_checkpoint(self.cell)
        self._record.display.cell_ended(self.cell, outcome)

    def _append_earlier_epochs(self, epochs: Sequence[Mapping[str, Any]]) -> None:
        """The rows of the epochs that a checkpoint carries and the folder lacks, or has of an earlier attempt alone:
        its checkpoint came before their end.
        """
        there = {number: int(row["attempt"]) for number, row in self._record.epochs(self.cell).items()}
        of_ranks = self._record.ranks(self.cell) if any(epoch.get("ranks") for epoch in epochs) else set()
        for epoch in epochs:
            attempt = epoch["attempt"]
            earlier = Outcome("killed", attempt=attempt, facts=epoch["facts"])
            for row in epoch.get("ranks", []):
                if (attempt, row["epoch"], row["rank"]) not in of_ranks:
                    self._append(RANKS_FILE, _known(RANKS_FILE, row), earlier)
            if attempt > there.get(epoch["row"]["epoch"], 0):
                row = _known(EPOCHS_FILE, epoch["row"])
                self._append_epoch(earlier, row | {"neighbours": epoch["facts"].get("neighbours")})

    def _append_epoch(self, outcome: Outcome, figures: Mapping[str, Any]) -> dict[str, Any]:
        of_the_cell = {name: outcome.facts.get(name) for name in ("peak_tensor_bytes", "ranks")}
        return self._append(
            EPOCHS_FILE, {**figures, **of_the_cell, **circumstances(self.cell, outcome)}, outcome
        )

    def _append(self, file: str, figures: Mapping[str, Any], outcome: Outcome) -> dict[str, Any]:
        """A row with the cell's key; the row."""
        if file not in KINDS[self.cell.kind].files:
            raise ValueError(f"cells of kind {self.cell.kind} have no rows in {file}; see kinds.KINDS")
        row = {**cell_key(self.cell, outcome), **figures}
        self._record.append(file, row)
        return row


def _known(file: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint's row has of the file's columns: another version may have written it."""
    columns = {column.name for column in FILES[file]}
    return {name: value for name, value in row.items() if name in columns}
