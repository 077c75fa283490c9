"""The committed results are described in Croissant, so that its readers find and load them."""

import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from checkout import RESULTS

from sltt_bench.results.croissant import croissant

COMMAND = "python -m sltt_bench.results.croissant results > results/croissant.json"


def columns(metadata: dict[str, Any]) -> dict[str, set[str]]:
    return {table["name"]: {field["name"] for field in table["field"]} for table in metadata["recordSet"]}


def test_the_committed_description_names_every_kind_of_file_and_no_column_that_a_file_lacks() -> None:
    committed = json.loads((RESULTS / "croissant.json").read_text(encoding="utf-8"))
    there = columns(croissant(RESULTS))
    described = columns(committed)
    assert set(described) == set(there), COMMAND
    assert all(described[table] <= there[table] for table in there), COMMAND
    assert {"cells", "epochs"} <= set(described)
    assert {"method", "test_top1", "train_s", "peak_tensor_bytes"} <= described["epochs"]


def test_a_reader_of_croissant_finds_no_fault_and_every_row(caplog: pytest.LogCaptureFixture) -> None:
    mlcroissant = pytest.importorskip("mlcroissant")
    with caplog.at_level(logging.WARNING):
        dataset = mlcroissant.Dataset(RESULTS / "croissant.json")
    issues = dataset.metadata.ctx.issues
    assert not issues.errors
    assert all("datePublished" in warning for warning in issues.warnings), issues.report()
    rows = list(dataset.records("bench"))
    files = [pd.read_csv(path) for path in RESULTS.glob("*/*/bench.csv")]
    assert len(rows) == sum(map(len, files))
    assert sum(row["bench/ratio"] for row in rows) == pytest.approx(sum(f["ratio"].sum() for f in files))


def test_a_folder_without_a_kind_of_file_does_not_describe_it(tmp_path: Path) -> None:
    (tmp_path / "digits" / "a").mkdir(parents=True)
    (tmp_path / "digits" / "a" / "cells.csv").write_text("cell_id,method,unheard_of\n")
    assert columns(croissant(tmp_path)) == {"cells": {"cell_id", "method"}}
