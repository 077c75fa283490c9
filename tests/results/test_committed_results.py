"""The committed results stay what they were: their cells keep their identity as recipes gain fields."""

import json
from pathlib import Path

import pytest
from checkout import RESULTS

from sltt_bench.planning.plan import cell_from_dict

CELLS = sorted(RESULTS.rglob("cells/*.json"))


def test_there_are_committed_cells() -> None:
    assert len(CELLS) >= 470


@pytest.mark.parametrize("run", sorted({path.parents[1] for path in CELLS}), ids=lambda path: path.name)
def test_a_committed_cell_has_the_id_that_it_was_run_under(run: Path) -> None:
    for path in sorted((run / "cells").glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        assert cell_from_dict(content).cell_id == content["cell_id"], path.name
