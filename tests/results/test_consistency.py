"""Figures that follow from others: no committed cell contradicts itself, and every kind of edit leaves something behind."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from checkout import RESULTS
from result_builder import RECIPE, HandmadeRun, varied

from sltt_bench.command_line.submission import RULES
from sltt_bench.results.reader import read_results
from sltt_bench.results.schema import CELLS_FILE, EPOCHS_FILE, RANKS_FILE, TIMELINE_FILE

ON_A_CPU = RESULTS / "digits-transformer/20261126-085709-69f0"
"""Epochs of two minutes, with accuracies and costs of inference."""
ON_A_GPU = RESULTS / "dvs-gesture-vgg11/20261127-081545-4e7a"


def texts(folder: Path) -> set[str]:
    return {text for _, text in RULES["figures that follow"](read_results([folder]))}


def by_hand(folder: Path) -> None:
    """A cell of two processes with a validation split, on GPUs of 300 W."""
    recipe = varied(
        RECIPE,
        train__lr=0.1,
        train__schedule="cosine",
        data__train_samples=1250,
        validation={"share": 0.2},
        data__test_samples=1000,
    )
    run = HandmadeRun(folder, recipe=recipe)
    energy = [12_000.0, 12_000.0, 12_000.0]
    cell_id = run.cell(
        train_s=[40.0, 40.0, 40.0],
        cell={"wall_s": 200.0, "best_epoch": 2, "last_validation_top1": 0.7},
        eval_s=10.0,
        data_wait_s=1.0,
        lr=[0.1, 0.075, 0.025],
        validation_top1=[0.5, 0.8, 0.7],
        validation_top5=0.9,
        validation_loss=0.5,
        ranks=2,
        energy_j=energy,
        finished_utc=[f"2026-01-01T00:0{minute}:00+00:00" for minute in (1, 2, 3)],
    )
    key = {"cell_id": cell_id, "attempt": 1}
    for epoch, joules in enumerate(energy, start=1):
        for rank in (0, 1):
            figures = {"train_s": 40.0 - rank, "eval_s": 10.0, "data_wait_s": 1.0, "energy_j": joules / 2}
            row = {
                "schema_version": 1,
                "recipe": "digits",
                "recipe_hash": "h",
                "method": "bptt",
                "backend": "reference",
            }
            row |= {"timesteps": 6, "batch_size": 64, "precision": "fp32", "device": "cuda:0", "seed": 0}
            run.append(RANKS_FILE, {**row, **key, "epoch": epoch, "rank": rank, **figures})
        sample = {"phase": "train", "epoch": epoch, "power_w": 300.0}
        run.timeline(cell_id, [{**sample, "elapsed_s": 60.0 * epoch + second} for second in (0, 20, 39)])


def copied(run: Path) -> Callable[[Path], Any]:
    return lambda folder: shutil.copytree(run, folder)


def times(**factors: float) -> Callable[[pd.DataFrame], Mapping[str, Any]]:
    return lambda table: {name: table[name] * factor for name, factor in factors.items()}


def become(**values: Any) -> Callable[[pd.DataFrame], Mapping[str, Any]]:
    return lambda table: values


EDITS: dict[str, tuple[Callable[[Path], Any], str, Callable[[pd.DataFrame], Mapping[str, Any]]]] = {
    "train_top1 is no whole number": (copied(ON_A_CPU), EPOCHS_FILE, become(train_top1=0.98765)),
    "test_top5 is no whole number": (copied(ON_A_CPU), EPOCHS_FILE, become(test_top5=0.99999)),
    "validation_top1 is no whole number": (by_hand, EPOCHS_FILE, lambda table: {"validation_top1": [0.5, 0.8001, 0.7]}),
    "test_top1 is above test_top5": (copied(ON_A_CPU), EPOCHS_FILE, become(test_top5=0.6)),
    "validation_top1 is above validation_top5": (by_hand, EPOCHS_FILE, become(validation_top5=0.76)),
    "test_loss is lower than so many wrong": (copied(ON_A_CPU), EPOCHS_FILE, times(test_loss=0.02)),
    "validation_loss is lower than so many wrong": (by_hand, EPOCHS_FILE, become(validation_loss=0.3)),
    "samples_per_s is not": (copied(ON_A_CPU), EPOCHS_FILE, times(samples_per_s=1.01)),
    "lr is not that of the recipe's": (copied(ON_A_CPU), EPOCHS_FILE, times(lr=2)),
    "data_wait_s is longer": (copied(ON_A_CPU), EPOCHS_FILE, lambda table: {"data_wait_s": table["train_s"] + 1}),
    "its epochs took": (copied(ON_A_CPU), CELLS_FILE, lambda table: {"wall_s": 600.0, "started_utc": "2026-11-26T09:15:00+00:00"}),
    "finished_utc of some epoch is before": (copied(ON_A_CPU), CELLS_FILE, become(started_utc="2026-11-26T10:57:12+00:00")),
    "finished_utc of some epoch is after": (copied(ON_A_CPU), CELLS_FILE, become(started_utc="2026-11-26T08:50:12+00:00")),
    "the first epoch of a process is not cold": (by_hand, EPOCHS_FILE, become(cold=False)),
    "an epoch took longer": (by_hand, EPOCHS_FILE, become(eval_s=25.0)),
    "120 s passed between the ends of its epochs (finished_utc), of which these took 60 s": (
        by_hand, EPOCHS_FILE, lambda table: {"train_s": 20.0, "samples_per_s": 50.0},
    ),
    "allocated_at_reset_bytes is above": (copied(ON_A_GPU), EPOCHS_FILE, times(allocated_at_reset_bytes=1000)),
    "peak_allocated_bytes is above": (copied(ON_A_GPU), EPOCHS_FILE, lambda table: {"peak_reserved_bytes": table["allocated_at_reset_bytes"]}),
    "peak_tensor_bytes, which is counted once": (
        copied(ON_A_GPU), EPOCHS_FILE, lambda table: {"peak_tensor_bytes": table["peak_tensor_bytes"] // table["epoch"]},
    ),
    "peak_tensor_bytes is below": (
        copied(ON_A_CPU), EPOCHS_FILE, lambda table: {"peak_tensor_bytes": table["peak_tensor_bytes"] // 2**20},
    ),
    "nvml_used_bytes in timeline.csv": (copied(ON_A_GPU), EPOCHS_FILE, lambda table: {"peak_nvml_bytes": table["peak_nvml_bytes"] // 2}),
    "timeline.csv has samples of training over a longer": (by_hand, TIMELINE_FILE, lambda table: {"elapsed_s": table["elapsed_s"] * 2}),
    "energy_j is far from": (by_hand, TIMELINE_FILE, times(power_w=2)),
    "energy_j is not the sum of": (by_hand, EPOCHS_FILE, times(energy_j=0.9)),
    "data_wait_s is not the largest of": (by_hand, EPOCHS_FILE, become(data_wait_s=0.5)),
    "best_epoch is 1": (copied(ON_A_CPU), CELLS_FILE, become(best_epoch=1)),
    "last_validation_top1 is 0.9": (by_hand, CELLS_FILE, become(last_validation_top1=0.9)),
    "its status is ok, but": (by_hand, CELLS_FILE, become(exit_code=1)),
    "estimated_energy_45nm_pj does not": (copied(ON_A_CPU), CELLS_FILE, times(estimated_energy_45nm_pj=0.5)),
    "effective_macs and effective_acs are more": (copied(ON_A_CPU), CELLS_FILE, times(dense_synops=0.01)),
    "activation_sparsity is not": (copied(ON_A_CPU), CELLS_FILE, become(activation_sparsity=0.95)),
}  # fmt: skip
"""What is said → a run, a file of it, and the columns that somebody changed, so that others are left behind."""


@pytest.mark.parametrize("text", EDITS)
def test_an_edited_figure_leaves_others_behind(text: str, tmp_path: Path) -> None:
    make, name, edit = EDITS[text]
    folder = tmp_path / "run"
    make(folder)
    assert texts(folder) == set()
    table = pd.read_csv(folder / name)
    table.assign(**edit(table)).to_csv(folder / name, index=False)
    assert any(said.startswith(text) for said in texts(folder)), texts(folder)


def test_no_committed_cell_contradicts_itself() -> None:
    assert texts(RESULTS) == set()
