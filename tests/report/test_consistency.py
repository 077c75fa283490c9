"""Figures that follow from others: no committed cell contradicts itself, and every kind of edit leaves something behind."""

import copy
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from checkout import RESULTS
from result_builder import RECIPE, HandmadeRun, varied

from sltt_bench.command_line.submission import RULES
from sltt_bench.report.consistency import MeasuredCell, contradictions
from sltt_bench.results.reader import Results, Run, read_results
from sltt_bench.results.schema import CELLS_FILE, EPOCHS_FILE, RANKS_FILE, TIMELINE_FILE

EDITED = 3
"""The epoch that somebody changes, of several."""
HELD_BACK = 251
"""Of 1253 training samples, 0.2, which is 250.6."""
VALIDATED = [count / HELD_BACK for count in (126, 150, 151, 201, 176, 176)]
BYTES = 3000


def by_hand(folder: Path) -> None:
    """A cell of two processes with a validation split, on GPUs of 300 W. It was resumed after its first epoch, and stood
    still for an hour in the evaluation of the third, and in the training of the fifth. Of the sixth no end is known.
    """
    recipe = varied(
        RECIPE,
        train__lr=0.1,
        train__schedule="cosine",
        loss__alpha=0.5,
        data__train_samples=1253,
        validation={"share": 0.2},
        data__test_samples=1000,
    )
    run = HandmadeRun(folder, recipe=recipe)
    trained = [40.0, 40.0, 40.0, 40.0, None, 40.0]
    evaluated = [10.0, 10.0, None, 10.0, 10.0, 10.0]
    tensors, energy = [BYTES, *[BYTES + 1] * 5], 12_000.0
    cell_id = run.cell(
        attempt=2,
        cell={
            "started_utc": "2026-01-01T01:00:00+00:00", "wall_s": 3840.0, "best_epoch": 4, "last_validation_top1": VALIDATED[-1],
        },
        train_s=trained,  # type: ignore[arg-type]
        cold=[True, True, False, False, False, False],
        top1=[0.5, 0.6, 0.9, 0.7, 0.7, 0.7],
        train_top1=0.123,
        eval_s=evaluated,
        data_wait_s=1.0,
        lr=[0.05 * (1 + math.cos(math.pi * done / 6)) for done in range(6)],
        validation_top1=VALIDATED,
        validation_top5=225 / HELD_BACK,
        validation_loss=0.3,
        ranks=2,
        energy_j=energy,
        peak_rss_bytes=BYTES,
        peak_nvml_bytes=BYTES,
        peak_tensor_bytes=tensors,
        finished_utc=[*(f"2026-01-01T{time}:00+00:00" for time in ("00:01", "01:01", "02:02", "02:03", "02:04")), None],
    )  # fmt: skip
    rows = (folder / EPOCHS_FILE).read_text()
    (folder / EPOCHS_FILE).write_text(rows.replace(f"{cell_id},2,", f"{cell_id},1,", 1))
    for epoch, (train_s, eval_s) in enumerate(zip(trained, evaluated, strict=True), start=1):
        key = {"cell_id": cell_id, "attempt": min(epoch, 2), "epoch": epoch}
        for rank in (0, 1):
            figures = {
                "train_s": train_s and train_s - rank, "eval_s": eval_s, "data_wait_s": 1.0, "energy_j": energy / 2,
                "peak_rss_bytes": BYTES - rank, "peak_nvml_bytes": BYTES,
            }  # fmt: skip
            row = {
                "schema_version": 1, "recipe": "digits", "recipe_hash": "h", "method": "bptt", "backend": "reference",
                "timesteps": 6, "batch_size": 64, "precision": "fp32", "device": "cuda:0", "seed": 0,
            }  # fmt: skip
            run.append(RANKS_FILE, {**row, **key, "rank": rank, **figures})
        for second, used in ((0, 1000), (20, BYTES), (39, 2000)):
            sample = {
                "phase": "train",
                "power_w": 300.0,
                "nvml_used_bytes": used,
                "elapsed_s": 60.0 * epoch + second,
            }
            run.append(TIMELINE_FILE, {**key, **sample})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Results]:
    folder = tmp_path_factory.mktemp("consistency") / "run"
    by_hand(folder)
    return {
        # Epochs of two minutes, with accuracies and costs of inference.
        "cpu": read_results([RESULTS / "digits-transformer/20261126-085709-69f0"]),
        "gpu": read_results([RESULTS / "dvs-gesture-vgg11/20261127-081545-4e7a"]),
        "by hand": read_results([folder]),
    }


Edit = Callable[[pd.DataFrame], Mapping[str, Any]]


def edited(results: Results, file: str, edit: Edit, *, every: bool = False) -> set[str]:
    """What is said of the first cell after an edit of a file: of its row, or of what concerns one of its epochs."""
    row, run = results.cells.iloc[0], copy.copy(results.runs[0])
    epochs = results.epochs[results.epochs["cell_id"] == row["cell_id"]].sort_values("epoch")

    def changed(table: pd.DataFrame) -> pd.DataFrame:
        whole = table.assign(**edit(table))
        kept = table["epoch"] != EDITED
        return whole if every else pd.concat([table[kept], whole[~kept]]).sort_index()

    if file == CELLS_FILE:
        row = results.cells.iloc[:1].assign(**edit(results.cells.iloc[:1])).iloc[0]
    elif file == EPOCHS_FILE:
        epochs = changed(epochs)
    elif file == TIMELINE_FILE:
        vars(run)["timeline"] = changed(run.timeline)
    elif file == RANKS_FILE:
        rows, read = changed(run.rows(RANKS_FILE)), run.rows
        vars(run)["rows"] = lambda name: rows if name == RANKS_FILE else read(name)
    return set(contradictions(MeasuredCell(row, epochs, run)))


def times(**factors: float) -> Edit:
    return lambda table: {name: table[name] * factor for name, factor in factors.items()}


def become(**values: Any) -> Edit:
    return lambda table: values


BROKEN: list[tuple[str, str, str, Edit]] = [
    ("train_top1 is no whole number", "cpu", EPOCHS_FILE, become(train_top1=0.98765)),
    ("test_top5 is no whole number", "cpu", EPOCHS_FILE, become(test_top5=0.99999)),
    ("validation_top1 is no whole number", "by hand", EPOCHS_FILE, become(validation_top1=0.6001)),
    ("test_top1 is above test_top5", "cpu", EPOCHS_FILE, become(test_top5=0.6)),
    ("validation_top1 is above validation_top5", "by hand", EPOCHS_FILE, become(validation_top5=150 / HELD_BACK)),
    ("test_loss is lower than so many wrong", "cpu", EPOCHS_FILE, times(test_loss=0.02)),
    ("validation_loss is lower than so many wrong", "by hand", EPOCHS_FILE, become(validation_loss=0.09)),
    ("samples_per_s is not", "cpu", EPOCHS_FILE, times(samples_per_s=1.01)),
    ("samples_per_s is not", "cpu", EPOCHS_FILE, times(samples_per_s=0.99)),
    ("lr is not that of the recipe's", "cpu", EPOCHS_FILE, times(lr=2)),
    ("lr is not that of the recipe's", "cpu", EPOCHS_FILE, times(lr=0.5)),
    ("data_wait_s is longer", "cpu", EPOCHS_FILE, lambda table: {"data_wait_s": table["train_s"] + 1}),
    ("finished_utc of some epoch is before", "cpu", CELLS_FILE, become(started_utc="2026-11-26T10:57:12+00:00")),
    ("finished_utc of some epoch is before", "cpu", EPOCHS_FILE, become(finished_utc="2026-11-25T00:00:00+00:00")),
    ("finished_utc of some epoch is after", "cpu", CELLS_FILE, become(started_utc="2026-11-26T08:50:12+00:00")),
    ("an epoch took longer", "by hand", EPOCHS_FILE, become(eval_s=3700.0)),
    ("3720 s passed between the ends of its epochs (finished_utc), of which these took 2780 s", "by hand", EPOCHS_FILE,
     become(eval_s=2690.0)),
    ("allocated_at_reset_bytes is above", "gpu", EPOCHS_FILE, times(allocated_at_reset_bytes=1000)),
    ("peak_allocated_bytes is above", "gpu", EPOCHS_FILE, lambda table: {"peak_reserved_bytes": table["allocated_at_reset_bytes"]}),
    ("peak_tensor_bytes, which is counted once", "by hand", EPOCHS_FILE, become(peak_tensor_bytes=BYTES)),
    ("peak_tensor_bytes is below", "cpu", EPOCHS_FILE, lambda table: {"peak_tensor_bytes": table["peak_tensor_bytes"] // 2**20}),
    ("nvml_used_bytes in timeline.csv", "by hand", EPOCHS_FILE, become(peak_nvml_bytes=BYTES - 1)),
    ("timeline.csv has samples of training over a longer", "by hand", TIMELINE_FILE, times(elapsed_s=2)),
    ("energy_j is far from", "by hand", TIMELINE_FILE, times(power_w=1.6)),
    ("energy_j is far from", "by hand", TIMELINE_FILE, times(power_w=0.6)),
    ("energy_j is not the sum of", "by hand", EPOCHS_FILE, times(energy_j=0.9)),
    ("energy_j is not the sum of", "by hand", RANKS_FILE, times(energy_j=0.9)),
    ("energy_j is not the sum of", "by hand", EPOCHS_FILE, times(energy_j=1.1)),
    ("data_wait_s is not the largest of", "by hand", EPOCHS_FILE, become(data_wait_s=0.5)),
    ("peak_rss_bytes is not the largest of", "by hand", EPOCHS_FILE, become(peak_rss_bytes=BYTES - 1)),
    ("best_epoch is 1", "cpu", CELLS_FILE, become(best_epoch=1)),
    ("last_validation_top1 is 0.9", "by hand", CELLS_FILE, become(last_validation_top1=0.9)),
    ("last_validation_top1 is 0.6", "by hand", CELLS_FILE, become(last_validation_top1=0.6)),
    ("its status is ok, but", "by hand", CELLS_FILE, become(exit_code=1)),
    ("estimated_energy_45nm_pj does not", "cpu", CELLS_FILE, times(estimated_energy_45nm_pj=0.5)),
    ("estimated_energy_45nm_pj does not", "cpu", CELLS_FILE, times(estimated_energy_45nm_pj=2)),
    ("effective_macs and effective_acs are more", "cpu", CELLS_FILE,
     lambda table: {"dense_synops": 0.99 * (table["effective_macs"] + table["effective_acs"])}),
    ("activation_sparsity is not", "cpu", CELLS_FILE, become(activation_sparsity=0.99)),
    ("activation_sparsity is not", "cpu", CELLS_FILE, become(activation_sparsity=0.01)),
]  # fmt: skip
"""What is said ← a run, a file of it, and the columns that somebody changed, so that others are left behind."""


@pytest.mark.parametrize(("text", "run", "file", "edit"), BROKEN)
def test_an_edited_figure_leaves_others_behind(
    text: str, run: str, file: str, edit: Edit, runs: Mapping[str, Results]
) -> None:
    contradicted = edited(runs[run], file, edit)
    assert any(clause.startswith(text) for clause in contradicted), contradicted


NAN = math.nan
ALLOWED: list[tuple[str, str, str, Edit]] = [
    ("as it is", "cpu", CELLS_FILE, become()),
    ("as it is", "gpu", CELLS_FILE, become()),
    ("as it is", "by hand", CELLS_FILE, become()),
    ("a loss to half precision", "by hand", EPOCHS_FILE,
     lambda table: {"validation_loss": 0.995 * 0.5 * math.log(2) * (1 - table["validation_top1"])}),
    ("power to its average", "by hand", TIMELINE_FILE, times(power_w=1.4)),
    ("no energy", "by hand", EPOCHS_FILE, become(energy_j=NAN)),
    ("no energy of any process", "by hand", RANKS_FILE, become(energy_j=NAN)),
    ("memory that was not more in training", "gpu", EPOCHS_FILE,
     lambda table: {"allocated_at_reset_bytes": table["peak_allocated_bytes"]}),
    ("an end that is no date", "cpu", EPOCHS_FILE, become(finished_utc="soon")),
    ("no end", "cpu", EPOCHS_FILE, become(finished_utc=NAN)),
    ("no count of tensors", "by hand", EPOCHS_FILE, become(peak_tensor_bytes=NAN)),
    ("no costs of inference", "cpu", CELLS_FILE, become(dense_synops=NAN)),
    ("no accuracy", "cpu", EPOCHS_FILE, become(test_top1=NAN)),
    ("no best epoch", "cpu", CELLS_FILE, become(best_epoch=NAN)),
    ("no exit code", "cpu", CELLS_FILE, become(exit_code=NAN)),
    ("what passes between two epochs", "by hand", EPOCHS_FILE, become(eval_s=2697.0)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("what", "run", "file", "edit"), ALLOWED, ids=[f"{what}, {run}" for what, run, *_ in ALLOWED]
)
def test_what_the_tool_itself_writes_is_no_contradiction(
    what: str, run: str, file: str, edit: Edit, runs: Mapping[str, Results]
) -> None:
    assert edited(runs[run], file, edit) == set()


def test_the_first_epoch_of_each_process_is_cold(runs: Mapping[str, Results]) -> None:
    one_cold = become(cold=[True, False, False, False, False, False])
    said = edited(runs["by hand"], EPOCHS_FILE, one_cold, every=True)
    assert said == {"the first epoch of a process is not cold"}


def test_a_constant_schedule_keeps_its_rate(
    runs: Mapping[str, Results], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = runs["by hand"]
    recipe = results.runs[0].recipe_of(results.cells["cell_id"].iloc[0])
    constant = become(lr=0.1)
    assert edited(results, EPOCHS_FILE, constant, every=True)
    monkeypatch.setattr(Run, "recipe_of", lambda *_: varied(recipe, train__schedule="constant"))
    assert edited(results, EPOCHS_FILE, constant, every=True) == set()


def test_a_moment_without_a_zone_is_universal_time(
    runs: Mapping[str, Results], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        assert edited(runs["cpu"], CELLS_FILE, become(started_utc="2026-11-26T08:57:09")) == set()
    time.tzset()


def contradicted(folder: Path) -> list[tuple[str, str]]:
    """(cell, what contradicts what), as `submission check` reads the files."""
    return list(RULES["figures that follow"](read_results([folder])))


def test_a_contradiction_names_its_cell(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "run")
    run.cell(train_s=[40.0, 20.0, 20.0], cell={"exit_code": 1, "wall_s": 100.0})
    ((cell, said),) = contradicted(tmp_path)
    assert "digits, bptt" in cell
    assert said == "its status is ok, but its process ended with exit code 1"


def test_no_committed_cell_contradicts_itself() -> None:
    assert contradicted(RESULTS) == []
