"""docs/paper.md is what its command makes of the committed results, and its arithmetic is right."""

import runpy
from pathlib import Path
from typing import Any

import pytest

from sltt_bench.recipe import load_recipe

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def paper() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "paper.py"))


def test_the_page_on_the_paper_is_what_its_command_writes(paper: dict[str, Any]) -> None:
    page = paper["page"]()
    assert (ROOT / "docs" / "paper.md").read_text(encoding="utf-8") == page
    # 1.09 / 3.00 GB against 737,677,188 / 2,940,348,448 bytes, and 1,004,535,808 / 3,263,168,512 that were reserved
    assert "| 3.00 | 1.09 | 0.363 | 2.94 | 0.74 | 0.251 | 0.308 | 0.85 |" in page
    assert "second-hand" in page


def test_a_claim_quotes_the_published_figures_and_its_threshold_is_their_ratio(paper: dict[str, Any]) -> None:
    """Rounded up to two decimals: what is claimed is not tighter than what was published."""
    columns = {"peak_memory": "memory_gb", "warm_epoch_time": "hours", "test_top1": "top1"}
    checked = 0
    for name, published in paper["PUBLISHED"].items():
        by_method = {one.method: one for one in published}
        for claim in load_recipe(name).claims:
            if "second-hand" not in claim.source:
                continue
            base = getattr(by_method["bptt"], columns[claim.metric])
            value = getattr(by_method[claim.method], columns[claim.metric])
            if claim.metric == "test_top1":
                published_points = value - base if claim.relation == "exceeds_by_points" else base - value
                assert claim.threshold == pytest.approx(published_points, abs=1e-9)
            else:
                assert 0 <= claim.threshold - value / base < 0.01
            assert f"{value:g}" in claim.says.replace(".30 %", ".3 %")
            checked += 1
    assert checked == 14
