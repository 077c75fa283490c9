"""docs/paper.md is what its command makes of the committed results, and its arithmetic is right."""

import runpy
from typing import Any

import pandas as pd
import pytest
from checkout import ROOT

from sltt_bench.planning.recipe import load_recipe

COLUMNS = {"peak_memory": "memory_gb", "warm_epoch_time": "hours", "test_top1": "top1"}
"""Metric of a claim → column of the paper."""


@pytest.fixture(scope="module")
def paper() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "paper.py"))


def test_the_page_on_the_paper_is_what_its_command_writes(paper: dict[str, Any]) -> None:
    page = paper["page"]()
    assert (ROOT / "docs" / "paper.md").read_text(encoding="utf-8") == page
    # 1.09 / 3.00 GB against 737,677,188 / 2,940,348,448 bytes, and 1,004,535,808 / 3,263,168,512 that were reserved
    assert "| 3.00 | 1.09 | 0.363 | 2.94 | 0.74 | 0.251 | 0.308 | 0.85 |" in page
    assert "second-hand" in page


def test_what_was_measured_on_a_gpu_is_what_its_files_hold(paper: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    folder = ROOT / "results" / "imagenet-resnet34" / "20261127-081228-61db"
    rows = pd.read_csv(folder / "epochs.csv")
    rows = rows[~rows["cold"]]
    columns = {
        "live tensors": "peak_tensor_bytes", "allocated": "peak_allocated_bytes", "reserved": "peak_reserved_bytes",
        "NVML (process)": "peak_nvml_bytes",
    }  # fmt: skip
    for figure, column in columns.items():
        peaks = rows.groupby("method")[column].max() / 1e9
        ratio = peaks["sltt"] / peaks["bptt"]
        expected = f"| {figure}, measured | {peaks['bptt']:.2f} | {peaks['sltt']:.2f} | {ratio:.3f} | {ratio / (8.47 / 28.41):.2f} |"
        assert page.count(expected) == 1, expected
    seconds, busy = (rows.groupby("method")[name].median() for name in ("train_s", "gpu_util_mean"))
    for method, hours in (("sltt", 66.9), ("sltt-k1", 32.03)):
        ratio = seconds[method] / seconds["bptt"]
        at_work = f"{100 * busy['bptt']:.0f} %, {100 * busy[method]:.0f} %"
        assert f"| {ratio:.3f} | {at_work} | {ratio / (hours / 73.8):.2f} |" in page
        passes = {"sltt": 6, "sltt-k1": 1}[method]
        assert (
            f"| {method} | {passes} | {seconds[method]:.3f} | {ratio:.3f} | {100 * busy[method]:.0f} % |"
            in page
        )
    assert (
        f"are 3.04, {rows['peak_reserved_bytes'].max() / 2**30:.2f}, 3.53 and 5.74, where the paper has"
        in page
    )
    assert (
        "Measured on NVIDIA H200 with torch 2.11.0, CUDA 13: random data, 4 iterations an epoch, 2 warm epochs, 1 seed."
        in page
    )


def test_only_the_recipes_own_experiment_stands_beside_the_paper(paper: dict[str, Any]) -> None:
    groups = paper["measured_groups"]()
    assert list(groups) == ["cifar10-resnet18", "imagenet-resnet34", "dvs-cifar10-vgg11", "dvs-gesture-vgg11"]
    for name, group in groups.items():
        recipe = load_recipe(name)
        assert (group.key.timesteps, group.key.batch_size) == (recipe.timesteps, recipe.train.batch_size)
        assert (group.key.backend, group.key.hardware, group.key.precision) == (
            "reference",
            "NVIDIA H200",
            "fp16",
        )


def test_a_claim_quotes_the_published_figures_and_its_threshold_is_their_ratio(paper: dict[str, Any]) -> None:
    """Rounded up to two decimals: what is claimed is not tighter than what was published."""
    checked = 0
    for name, published in paper["PUBLISHED"].items():
        by_method = {one.method: one for one in published}
        for claim in load_recipe(name).claims:
            if "second-hand" not in claim.source:
                continue
            base = getattr(by_method["bptt"], COLUMNS[claim.metric])
            value = getattr(by_method[claim.method], COLUMNS[claim.metric])
            if claim.metric == "test_top1":
                published_points = value - base if claim.relation == "exceeds_by_points" else base - value
                assert claim.threshold == pytest.approx(published_points, abs=1e-9)
            else:
                assert 0 <= claim.threshold - value / base < 0.01
            assert f"{value:g}" in claim.says.replace(".30 %", ".3 %")
            checked += 1
    assert checked == 16


def test_each_published_figure_is_a_claim_of_its_recipe(paper: dict[str, Any]) -> None:
    for name, (base, *others) in paper["PUBLISHED"].items():
        figures = {
            (one.method, metric)
            for one in others
            for metric, column in COLUMNS.items()
            if None not in (getattr(base, column), getattr(one, column))
        }
        claims = [claim for claim in load_recipe(name).claims if "second-hand" in claim.source]
        assert {(claim.method, claim.metric) for claim in claims} == figures, name
        assert len(claims) == len(figures), name
