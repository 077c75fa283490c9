"""docs/paper.md is what its command makes of the committed results, and its arithmetic is right."""

import re
import runpy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from checkout import ROOT
from result_builder import MIB, HandmadeRun, varied

from sltt_bench.planning.recipe import load_recipe
from sltt_bench.results.reader import read_results

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


NAME = "cifar10-resnet18"


@pytest.fixture
def elsewhere(paper: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder from which the page's functions read results."""
    monkeypatch.setitem(paper["page"].__globals__, "ROOT", tmp_path)
    for name in paper["PUBLISHED"]:
        (tmp_path / "results" / name).mkdir(parents=True)
    return tmp_path / "results"


def run_of(folder: Path, device: str = "cuda:0", **changes: Any) -> HandmadeRun:
    """A run of the recipe, its fields changed; each is later than the ones before."""
    recipe = varied(load_recipe(NAME).model_dump(mode="json"), **changes)
    number = len(list(folder.glob(f"{NAME}/*")))
    started = {"started_utc": f"2026-01-{1 + number:02}T00:00:00+00:00"}
    path = folder / NAME / f"{number:02}"
    return HandmadeRun(
        path,
        recipe=recipe,
        device=device,
        device_name=device,
        precision="fp16",
        facts=started,
        number=60 * number,
    )


def test_a_group_beside_the_paper_is_the_newest_of_the_recipes_own_experiment_alone_on_a_gpu(
    paper: dict[str, Any], elsewhere: Path
) -> None:
    def measure(run: HandmadeRun, peak: int, **cell: Any) -> None:
        run.cell(samples=50_000, peak_reserved_bytes=peak, **cell)

    measure(run_of(elsewhere), 1)
    measure(run_of(elsewhere, train__epochs=3), 2, overrides={"train.epochs": 3})
    measure(run_of(elsewhere), 3, cell={"smoke": True})
    measure(run_of(elsewhere, device="cpu"), 3)
    measure(run_of(elsewhere), 3, backend="native")
    measure(run_of(elsewhere), 3, cell={"neighbours": 1})
    measure(run_of(elsewhere), 3, cell={"ranks": 2}, ranks=2)
    measure(run_of(elsewhere, timesteps=4), 3)
    measure(run_of(elsewhere, train__batch_size=64), 3)
    measure(run_of(elsewhere, model__width=2), 3, overrides={"model.width": 2})
    (group,) = paper["measured_groups"]().values()
    assert paper["_value"](group, "peak_reserved_bytes", "bptt") == 2
    run_of(elsewhere, train__epochs=3).cell("sltt", status="oom", overrides={"train.epochs": 3})
    (group,) = paper["measured_groups"]().values()
    assert paper["_value"](group, "peak_reserved_bytes", "sltt") is None, (
        "no figure of a cell that did not finish"
    )


def test_an_accuracy_beside_the_paper_is_of_whole_runs_on_real_data_on_a_gpu(
    paper: dict[str, Any], elsewhere: Path
) -> None:
    for seed, share in enumerate((0.9, 0.8)):
        run_of(elsewhere).cell(seed=seed, top1=(0.5, 0.5, share))
    wrong: dict[str, Any] = {"seed": 2, "top1": (0.1, 0.1, 0.1)}
    run_of(elsewhere).cell(**wrong, cell={"synthetic": True})
    run_of(elsewhere).cell(**wrong, cell={"smoke": True})
    run_of(elsewhere).cell(**wrong, cell={"kind": "trial"})
    run_of(elsewhere).cell(**wrong, backend="native")
    run_of(elsewhere, device="cpu").cell(**wrong)
    run_of(elsewhere, timesteps=4).cell(**wrong)
    run_of(elsewhere, train__batch_size=64).cell(**wrong)
    run_of(elsewhere, name="another").cell(**wrong)
    run_of(elsewhere).cell(seed=2, status="killed", cell={"last_test_top1": 0.1})
    cells = paper["_measured_cells"](read_results([elsewhere]))
    table = paper["_accuracy_table"]({name: load_recipe(name) for name in paper["PUBLISHED"]}, cells)
    assert f"| `{NAME}` | 6 | 128 | bptt | 94.60 | 85.00 |" in table


def test_an_estimate_beside_the_paper_is_the_newest_in_its_precision_on_one_gpu(
    paper: dict[str, Any], elsewhere: Path
) -> None:
    def estimate(peak_mib: float, run: HandmadeRun, **figures: Any) -> None:
        run.estimate("bptt", peak_mib, **{"device": "cuda", **figures})

    estimate(1, run_of(elsewhere))
    estimate(2, run_of(elsewhere), ranks=1)
    estimate(3, run_of(elsewhere), ranks=2)
    estimate(3, run_of(elsewhere), precision="fp32")
    estimate(3, run_of(elsewhere), device="cpu")
    estimate(4, run_of(elsewhere), backend="native")
    estimate(5, run_of(elsewhere), backend="native", overrides={"native.recompute": True})
    estimate(3, run_of(elsewhere, timesteps=4))
    estimate(3, run_of(elsewhere, train__batch_size=64))
    estimate(3, run_of(elsewhere, name="another"))
    for peak_mib, chosen in (
        (2, {}),
        (4, {"backend": "native"}),
        (5, {"backend": "native", "unit_by_unit": True}),
    ):
        estimates = paper["_estimates"](read_results([elsewhere]), **chosen)
        own = paper["_own"](estimates, load_recipe(NAME), "bptt", "peak_tensor_bytes", "last")
        assert own == peak_mib * MIB


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
            assert {f"{base:g}", f"{value:g}"} <= {
                f"{float(number):g}" for number in re.findall(r"\d+\.\d+", claim.says)
            }
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
