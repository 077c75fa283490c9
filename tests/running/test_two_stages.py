"""A recipe that starts from another's checkpoint: planned once, reused, and left out where it must be."""

import hashlib
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from sltt_bench.command_line.cli import app
from sltt_bench.command_line.terminal import run_display
from sltt_bench.planning.plan import Cell, Request, make_plans, plans_of_all
from sltt_bench.planning.recipe_faults import RecipeError
from sltt_bench.results.schema import CELLS_FILE
from sltt_bench.results.writer import RunFolder, read_rows
from sltt_bench.running import lanes
from sltt_bench.running.lanes import Place
from sltt_bench.running.runner import NotRunnable, PlannedRun, run_plans

STAGE_1 = """
extends: digits
timesteps: 1
data: {limit: 64}
model: {channels: [8, 16]}
train: {epochs: 1, batch_size: 32, keep_checkpoint: true}
methods: [sltt]
"""
STAGE_2 = """
extends: stage-1
timesteps: 3
init_from: stage-1
train: {epochs: 1, lr: 0.0, keep_checkpoint: false}
methods: [bptt, sltt, sltt-k2]
seeds: [0, 1]
"""


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the two recipes, in which the command runs."""
    (tmp_path / "stage-1.yaml").write_text(STAGE_1)
    (tmp_path / "stage-2.yaml").write_text(STAGE_2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(
        app, ["run", "./stage-2.yaml", "--device", "cpu", "--no-estimate", *arguments]
    )
    return result.exit_code, result.output


def cells(recipe: str) -> pd.DataFrame:
    return pd.concat(pd.read_csv(path) for path in Path("results", recipe).glob("*/cells.csv"))


def test_the_prerequisite_is_one_cell_for_all_methods_and_seeds(stages: Path) -> None:
    first, second = make_plans("./stage-2.yaml", Request())
    assert len(first) == 1
    assert len(second) == 6
    assert {cell.needs for cell in second} == {first.cells[0].cell_id}


def test_stage_two_starts_from_stage_one_and_reuses_it(stages: Path) -> None:
    code, output = run("--seed", "0")
    assert code == 0, output
    assert len(cells("stage-1")) == 1
    assert list(cells("stage-2").status) == ["ok"] * 3
    (checkpoint,) = Path("results/stage-1").glob("*/checkpoints/*.pt")
    weights = torch.load(checkpoint, weights_only=True)["model"]
    assert weights["conv1.weight"].shape == (8, 1, 3, 3)
    losses = pd.concat(pd.read_csv(path) for path in Path("results/stage-2").glob("*/epochs.csv"))
    # At learning rate 0 all three keep stage 1's weights, so that they must agree with each other
    # and, since the batch norm statistics differ only by what T = 3 adds, start no worse than chance.
    assert losses.test_loss.nunique() == 1
    code, output = run("--method", "sltt", "--seed", "1", "--dry-run")
    assert (code, "stage-1: finished before" in output, "stage-1: 1 cell" in output) == (0, True, False)
    code, output = run("--method", "sltt", "--seed", "1")
    assert code == 0, output
    assert "stage-1: finished before" in output
    assert len(cells("stage-1")) == 1


def test_what_several_start_from_comes_once_and_before_them(stages: Path) -> None:
    (stages / "stage-3.yaml").write_text(f"{STAGE_2}target: 0.5\n")
    for names in (
        ("stage-2", "stage-3"),
        ("stage-1", "stage-2", "stage-3"),
        ("stage-2", "stage-1", "stage-3"),
    ):
        first, *others = plans_of_all([f"./{name}.yaml" for name in names], Request())
        assert first.recipe.name == "stage-1"
        assert [plan.recipe.name for plan in others] == ["stage-2", "stage-3"]
        assert {cell.needs for plan in others for cell in plan} == {first.cells[0].cell_id}
        assert first.prerequisite == ("stage-1" not in names)


def test_what_is_asked_for_by_name_and_keeps_its_checkpoint_runs_again_as_any_other(stages: Path) -> None:
    for times in (1, 2):
        result = CliRunner().invoke(app, ["run", "./stage-1.yaml", "--device", "cpu", "--no-estimate"])
        assert result.exit_code == 0, result.output
        assert len(cells("stage-1")) == times


def test_a_prerequisite_has_the_counts_of_the_users_own_data(stages: Path) -> None:
    labels = np.arange(64) % 3
    samples = np.zeros((64, 8, 8), np.float32)
    np.savez("arrays.npz", x_train=samples, y_train=labels, x_test=samples, y_test=labels)
    (stages / "stage-1.yaml").write_text(STAGE_1.replace("{limit: 64}", "{name: arrays}"))
    first, second = make_plans("./stage-2.yaml", Request(data_dir=stages))
    assert first.recipe.data == second.recipe.data
    assert first.recipe.data.train_samples == 64


def test_a_prerequisite_that_could_not_be_started_from_is_refused_before_it_is_trained(stages: Path) -> None:
    (stages / "stage-3.yaml").write_text("extends: stage-2\ninit_from: stage-2\n")
    with pytest.raises(RecipeError, match="init_from: stage-2 itself starts from stage-1"):
        make_plans("./stage-3.yaml", Request())
    (stages / "stage-1.yaml").write_text(STAGE_1.replace("true", "false"))
    with pytest.raises(RecipeError, match=r"stage-1 would leave no checkpoint; set train\.keep_checkpoint"):
        make_plans("./stage-2.yaml", Request())
    assert make_plans("./stage-2.yaml", Request(init="random"))


def test_a_failed_prerequisite_skips_its_cells_with_the_reason(stages: Path) -> None:
    recipe = (
        (stages / "stage-1.yaml")
        .read_text()
        .replace("batch_size: 32", "batch_size: 32, lr: 1.0e+6, weight_decay: 1.0e+6")
    )
    (stages / "stage-1.yaml").write_text(recipe.replace("epochs: 1", "epochs: 2"))
    code, _ = run("--seed", "0", "--method", "sltt")
    assert code == 1
    assert list(cells("stage-1").status) == ["error"]
    skipped = cells("stage-2")
    assert list(skipped.status) == ["skipped"]
    assert "stage-1 did not finish" in skipped.reason.iloc[0]


@pytest.mark.parametrize("flag", ["--smoke", "--synthetic"])
def test_smoke_and_synthetic_runs_leave_it_out_and_say_so(stages: Path, flag: str) -> None:
    request = Request(smoke=flag == "--smoke", synthetic=flag == "--synthetic")
    (plan,) = make_plans("./stage-2.yaml", request)
    assert plan.remarks == (f"{flag}: the prerequisite stage-1 is left out, weights start at random",)
    assert all(cell.needs is None for cell in plan)


def test_init_overrides_the_prerequisite(stages: Path) -> None:
    (plan,) = make_plans("./stage-2.yaml", Request(init="random"))
    assert "not stage-1" in plan.remarks[0]
    code, output = run("--seed", "0", "--method", "sltt")
    assert code == 0, output
    (checkpoint,) = Path("results/stage-1").glob("*/checkpoints/*.pt")
    kept = stages / "kept.pth"
    os.replace(checkpoint, kept)
    code, output = run("--seed", "0", "--method", "sltt", "--init", str(kept))
    assert code == 0, output
    losses = pd.concat(pd.read_csv(path) for path in Path("results/stage-2").glob("*/epochs.csv"))
    assert len(losses) == 2
    assert losses.test_loss.nunique() == 1
    digest = hashlib.sha256(kept.read_bytes()).hexdigest()
    provenances = [json.loads(path.read_text()) for path in Path("results/stage-2").glob("*/provenance.json")]
    sources = [
        cell["attempts"]["1"]["initial_weights"]
        for provenance in provenances
        for cell in provenance["cells"].values()
    ]
    assert [source["sha256"] for source in sources] == [digest, digest]


def test_side_by_side_what_is_ready_overtakes_what_waits_and_each_row_names_its_device(
    stages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[str, str]] = []

    @dataclass(eq=False)
    class DyingProcess:
        """Ends with exit code 7 when it has its cell."""

        log: Path | None
        events: Any
        has_ended = True

        def signal(self, number: signal.Signals) -> bool:
            return False

        def give(self, job: dict[str, Any]) -> None:
            begun.append((job["cell"]["recipe"]["name"], job["cell"]["device"]))

        def give_no_more(self) -> None:
            self.events.put((self, None))

        def wait(self) -> int:
            return 7

    def weights(cell: Cell) -> None:
        if cell.needs is not None:
            raise NotRunnable(f"after {len(begun)} cells")

    monkeypatch.setattr(lanes, "_Process", DyingProcess)
    plans = [
        *make_plans("./stage-2.yaml", Request(device="cuda:0")),
        *make_plans("digits", Request(seeds=[0])),
    ]
    runs = [PlannedRun(plan, lambda plan=plan: RunFolder.create(stages, plan.recipe.name)) for plan in plans]
    with run_display(Console(quiet=True), {}) as display:
        places = [Place("cuda:0", 1), Place("cuda:1", 1)]
        run_plans(runs, display, data_dir=stages, initial_weights=weights, provenance={}, places=places)
    assert begun[:2] == [("stage-1", "cuda:0"), ("digits", "cuda:1")]
    rows = {
        name: read_rows(*stages.glob(f"{name}/*/{CELLS_FILE}")) for name in ("stage-1", "stage-2", "digits")
    }
    assert (rows["stage-1"][0]["device"], rows["digits"][0]["device"]) == ("cuda:0", "cuda:1")
    assert (rows["stage-1"][0]["neighbours"], rows["digits"][0]["neighbours"]) == ("1", "1")
    assert {(row["status"], row["neighbours"]) for row in rows["stage-2"]} == {("skipped", "")}
