"""Results on disk: appended, flushed, and never read from a torn line."""

import csv
import errno
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from sltt_bench.results import checkpoints, writer
from sltt_bench.results.schema import CELLS_FILE, EPOCHS_FILE, FILES, PROVENANCE_FILE, RANKS_FILE
from sltt_bench.results.writer import ResultsError, RunFolder, read_provenance, set_torn_line_aside


def read_rows(path: Path) -> list[dict[str, str]]:
    """Every finished line as it stands, whether such a row is whole or not."""
    text = path.read_text()
    return list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "digits")


def test_an_empty_log_of_a_killed_command_goes_when_its_run_is_opened_and_no_other(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run").close()
    logs = tmp_path / "run" / "logs"
    (logs / "cell-1.log").touch()
    (logs / "cell-2.log").write_text("why")
    RunFolder(tmp_path / "run").close()
    assert [path.name for path in logs.iterdir()] == ["cell-2.log"]


def test_rows_are_readable_the_moment_append_returns(folder: RunFolder) -> None:
    folder.append(EPOCHS_FILE, {"cell_id": "a", "epoch": 1, "train_loss": 0.1, "cold": True})
    (row,) = read_rows(folder.path / EPOCHS_FILE)
    assert row["epoch"] == "1"
    assert float(row["train_loss"]) == 0.1
    assert row["cold"] == "true"
    assert list(row) == [column.name for column in FILES[EPOCHS_FILE]]


def test_what_was_not_measured_is_empty_and_never_zero(folder: RunFolder) -> None:
    folder.append(EPOCHS_FILE, {"energy_j": None})
    (row,) = read_rows(folder.path / EPOCHS_FILE)
    assert set(row.values()) == {""}


def test_every_column_has_a_name_of_its_own_and_a_type_that_readers_know() -> None:
    for columns in FILES.values():
        assert len({column.name for column in columns}) == len(columns)
        assert {column.type for column in columns} <= {"int", "float", "str", "bool"}


def test_a_column_that_does_not_exist_is_refused(folder: RunFolder) -> None:
    with pytest.raises(KeyError, match="peak_mermory"):
        folder.append(EPOCHS_FILE, {"peak_mermory": 1})


def test_a_torn_last_line_is_not_read_and_is_set_aside_by_the_next_row(folder: RunFolder) -> None:
    folder.append(EPOCHS_FILE, {"epoch": 1})
    path = folder.path / EPOCHS_FILE
    whole = path.read_bytes()
    path.write_bytes(whole + b"1,abc,1,digits")
    assert [row["epoch"] for row in read_rows(path)] == ["1"]
    folder.close()
    RunFolder(folder.path).append(EPOCHS_FILE, {"epoch": 2})
    assert [row["epoch"] for row in read_rows(path)] == ["1", "2"]
    assert path.with_name("epochs.csv.torn").read_bytes() == b"1,abc,1,digits\n"


def test_a_file_torn_in_its_header_starts_anew(folder: RunFolder) -> None:
    path = folder.path / EPOCHS_FILE
    path.write_bytes(b"schema_ver")
    set_torn_line_aside(path)
    folder.append(EPOCHS_FILE, {"epoch": 1})
    assert [row["epoch"] for row in read_rows(path)] == ["1"]


def test_rows_of_processes_do_not_follow_a_header_that_is_none_of_theirs(folder: RunFolder) -> None:
    (folder.path / RANKS_FILE).write_text("cell_id,epoch\na,1\n")
    with pytest.raises(ResultsError, match=r"not a ranks\.csv of sltt-bench: without column attempt"):
        folder.append(RANKS_FILE, {"cell_id": "a"})


def test_a_reason_with_line_breaks_stays_one_line(folder: RunFolder) -> None:
    folder.append(CELLS_FILE, {"status": "error", "reason": 'a\nb, "c"'})
    assert read_rows(folder.path / CELLS_FILE)[0]["reason"] == 'a b, "c"'
    assert len((folder.path / CELLS_FILE).read_text().splitlines()) == 2


def test_spaces_and_letters_of_overrides_stay_as_they_are(folder: RunFolder) -> None:
    overrides = {"description": "a  b\x7f\x85\u2028\n"}
    folder.append(CELLS_FILE, {"overrides": json.dumps(overrides)})
    (row,) = read_rows(folder.path / CELLS_FILE)
    assert json.loads(row["overrides"]) == overrides


def test_a_name_that_is_no_utf_8_is_spelled_out_and_read_back(folder: RunFolder) -> None:
    name = os.fsdecode(b"caf\xe9.npz")
    folder.write_provenance({"command": [name]})
    folder.write_cell({"cell_id": "a", "init": name})
    folder.write_recipe({"name": "digits", "file": name})
    folder.append(CELLS_FILE, {"cell_id": "a", "reason": f"{name} is not there"})
    assert read_provenance(folder.path) == {"command": [name]}
    assert json.loads((folder.path / "cells" / "a.json").read_text(encoding="utf-8"))["init"] == name
    (row,) = read_rows(folder.path / CELLS_FILE)
    assert row["reason"] == r"caf\udce9.npz is not there"


def test_two_runs_in_one_second_get_two_folders(tmp_path: Path) -> None:
    folders = {RunFolder.create(tmp_path, "digits").path for _ in range(20)}
    assert len(folders) == 20


def test_two_runs_that_draw_the_same_digits_get_two_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = iter(["0000", "0000", "0000", "0001"])
    monkeypatch.setattr("secrets.token_hex", lambda _: next(digits))
    assert len({RunFolder.create(tmp_path, "digits").path for _ in range(2)}) == 2


def test_a_folder_is_held_by_one_process_at_a_time(folder: RunFolder) -> None:
    with pytest.raises(ResultsError, match="another run is writing here"):
        RunFolder(folder.path)
    folder.close()
    RunFolder(folder.path).close()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ResultsError, match="choose another folder with --out"):
        RunFolder.create(tmp_path / "file", "digits")


def test_a_full_disk_names_file_free_space_and_remedy_and_leaves_no_half_row(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder.append(EPOCHS_FILE, {"epoch": 1})
    before = (folder.path / EPOCHS_FILE).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        message = (
            r"epochs\.csv: a row could not be written \(No space left on device\); .*B are free .*--resume$"
        )
        with pytest.raises(ResultsError, match=message):
            folder.append(EPOCHS_FILE, {"epoch": 7})
        with pytest.raises(ResultsError, match=r"provenance\.json: could not be written .*make room"):
            folder.write_provenance({})
    assert (folder.path / EPOCHS_FILE).read_bytes() == before
    assert not list(folder.path.glob(".*.tmp"))
    folder.append(EPOCHS_FILE, {"epoch": 2})
    assert [row["epoch"] for row in read_rows(folder.path / EPOCHS_FILE)] == ["1", "2"]


def test_half_a_row_that_a_disk_keeps_is_set_aside_by_the_same_process(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(path: Path, values: list[str], *, durable: bool) -> None:
        with path.open("ab") as file:
            file.write(b"1,a,1,dig")
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    folder.append(EPOCHS_FILE, {"epoch": 1})
    with monkeypatch.context() as patch:
        patch.setattr("sltt_bench.results.writer._append_line", half)
        with pytest.raises(ResultsError, match=r"could not be written \(Input/output error\)"):
            folder.append(EPOCHS_FILE, {"epoch": 2})
    folder.append(EPOCHS_FILE, {"epoch": 3})
    assert [row["epoch"] for row in read_rows(folder.path / EPOCHS_FILE)] == ["1", "3"]


def test_a_file_that_is_moved_away_in_mid_run_is_begun_anew_with_its_header(folder: RunFolder) -> None:
    folder.append(EPOCHS_FILE, {"epoch": 1})
    (folder.path / EPOCHS_FILE).rename(folder.path / "taken.csv")
    folder.append(EPOCHS_FILE, {"epoch": 2})
    assert [row["epoch"] for row in read_rows(folder.path / EPOCHS_FILE)] == ["2"]


def test_a_run_that_is_moved_away_is_not_begun_anew_by_who_still_writes(folder: RunFolder) -> None:
    folder.append(EPOCHS_FILE, {"epoch": 1})
    moved = folder.path.rename(folder.path.with_name("moved"))
    for write in (
        lambda: folder.append(EPOCHS_FILE, {"epoch": 2}),
        lambda: folder.write_provenance({}),
        lambda: folder.write_cell({"cell_id": "a"}),
        lambda: folder.write_recipe({"name": "digits"}),
        lambda: checkpoints.save(folder.checkpoint_path("a"), {"epoch": 2}),
    ):
        with pytest.raises(ResultsError, match=r"written \(No such file or directory\)"):
            write()
    assert not folder.path.exists()
    assert [row["epoch"] for row in read_rows(moved / EPOCHS_FILE)] == ["1"]


@pytest.mark.parametrize(
    "error", [OSError(errno.EROFS, "Read-only file system"), NotImplementedError("no flock")]
)
def test_a_folder_that_cannot_be_locked_is_named(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with pytest.raises(ResultsError, match=r"run: cannot be written \((Read-only file system|no flock)\)"):
        RunFolder(tmp_path / "run")


def test_what_one_of_a_thousand_cells_ran_on_is_noted_without_encoding_the_others_again(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells: dict[str, Any] = {f"{number:04}": {"attempts": {"1": {"command": 0}}} for number in range(1000)}
    provenance = {"plan": [*cells], "commands": [{}], "cells": cells}
    folder.write_provenance(provenance)
    encoded: list[bytes] = []
    real = writer._json

    def counted(content: Any) -> bytes:
        encoded.append(real(content))
        return encoded[-1]

    monkeypatch.setattr(writer, "_json", counted)
    cells["0500"]["attempts"]["1"]["data"] = "caf\udce9 \u2082\n"
    cells["new"] = {}
    folder.write_provenance(provenance, "0500")
    folder.write_provenance(provenance, "new")
    text = (folder.path / PROVENANCE_FILE).read_bytes()
    assert text == real(provenance) + b"\n"
    assert b"".join(encoded).count(b"attempts") == 1
    assert read_provenance(folder.path)["cells"] == cells
