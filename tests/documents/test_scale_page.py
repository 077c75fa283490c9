"""docs/scale.md is what its command makes of the committed estimates, and its arithmetic is right."""

import runpy
from typing import Any

import pandas as pd
import pytest
from checkout import ROOT


@pytest.fixture(scope="module")
def scale() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "scale.py"))


def test_the_page_is_what_its_command_writes(scale: dict[str, Any]) -> None:
    text = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    assert scale["page"](text) == text
    # 904.855886 s × (1 + forward 5,647,195,242,630 / all 16,747,339,514,508 × 50,000 / 1,281,167) × 10 × 30 epochs
    assert "| `imagenet-resnet34` | bptt | 3 | 26.5 GiB | 76.4 | 73.8 | 229 |" in text


def test_what_the_h200_took_is_what_it_measured() -> None:
    folder = ROOT / "results" / "imagenet-resnet34"
    epochs = pd.read_csv(folder / "20261127-081228-61db" / "epochs.csv")
    warm = epochs[~epochs["cold"] & (epochs["method"] == "bptt")]["train_s"].median()
    estimates = pd.read_csv(folder / "20261127-084722-b579" / "estimates.csv").set_index("method").loc["bptt"]
    assert estimates["gpu"] == "a100-80gb-sxm"
    bound = 4 * estimates["epoch_lower_bound_s"] / estimates["iterations_per_epoch"]
    text = " ".join((ROOT / "docs" / "scale.md").read_text(encoding="utf-8").split())
    assert f"took an NVIDIA H200 {warm:.2f} s on random data" in text
    assert f"{warm / bound:.1f} times the lower bound of the A100, and not 10." in text


def work(
    scale: dict[str, Any], recipe: str, hours: float, needs: str | None = None, size: float = 1e9
) -> Any:
    return scale["Work"](recipe, "sltt", hours, 3 * 10**6, int(size), 0.0, needs)


def test_cells_wait_for_devices_and_for_what_they_start_from(scale: dict[str, Any]) -> None:
    cells = [work(scale, name, hours) for name, hours in (("a", 10), ("b", 6), ("c", 5), ("d", 4))]
    one_each = {(cell.recipe, "sltt"): 1 for cell in cells}
    assert scale["_makespan"](cells, one_each, 1) == 25
    assert scale["_makespan"](cells, one_each, 2) == 14  # 10 and 4, beside 6 and 5
    staged = [work(scale, "first", 3), work(scale, "then", 5, needs="first"), work(scale, "beside", 7)]
    devices = {("first", "sltt"): 1, ("then", "sltt"): 2, ("beside", "sltt"): 1}
    divided = 5 / 2 / 0.9
    assert scale["_makespan"](staged, devices, 2) == 7 + divided  # the second device is free at 7
    assert scale["_makespan"](staged, devices, 4) == max(7, 3 + divided)
    assert scale["_makespan"](staged[:2], devices, 2) == 3 + divided


def test_a_cell_is_divided_where_it_does_not_fit_or_would_be_last(scale: dict[str, Any]) -> None:
    large = work(scale, "large", 9, size=100e9)
    assert [large.fits(devices) for devices in (1, 2)] == [False, True]
    assert large.hours_on(2) == pytest.approx(9 / 2 / 0.9)
    assert scale["schedule"]([large], 1).left_out == (large,)
    alone = scale["schedule"]([work(scale, "small", 9)], 8)
    assert alone.devices == {("small", "sltt"): 8}
    assert alone.hours == pytest.approx(9 / 8 / 0.9)
