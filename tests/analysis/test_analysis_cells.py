"""`analyze gradients` from the command to the report: the grid, its cells, their rows and plots."""

import io
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure as Drawing
from typer.testing import CliRunner

from sltt_bench.analysis import watch as watch_module
from sltt_bench.analysis.plan import full_paths, parse_epochs, plan_analysis
from sltt_bench.analysis.watch import GradientNotFinite, GradientWatch, draw_rows, gradient_rows
from sltt_bench.backends.reference import Reference
from sltt_bench.command_line.cli import app
from sltt_bench.kinds.training import train_cell
from sltt_bench.planning.overrides import parse_overrides
from sltt_bench.planning.plan import Cell, Request
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.planning.recipe_faults import RecipeError
from sltt_bench.report.document import Context, Contribution, Figure, MissingFigure, Section, Table
from sltt_bench.report.sections.gradients.families import find_families
from sltt_bench.report.sections.gradients.section import gradients
from sltt_bench.report.sections.gradients.tables import overview
from sltt_bench.results.reader import read_results
from sltt_bench.results.schema import (
    CELLS_FILE,
    CELLS_FOLDER,
    DRAWS_FILE,
    EPOCHS_FILE,
    FILES,
    GRADIENTS_FILE,
    OPERATIONS_FILE,
    PROVENANCE_FILE,
)
from sltt_bench.running.worker import Reporter
from sltt_bench.training.experiment import assemble

SMOKE = ["digits", "--smoke", "--device", "cpu"]
GRID = ["--over", "tau=1.0,2.0", "--over", "timesteps=2,3"]


def analyze(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["analyze", "gradients", *arguments])
    return result.exit_code, result.output


# The plan ---------------------------------------------------------------------------------------


def test_epochs_are_numbers_or_the_last() -> None:
    assert parse_epochs("0,1,5,last", last=15) == [0, 1, 5, 15]
    assert parse_epochs("last,2,2", last=2) == [2]


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (
            ["--set", "loss.average=outputs", "--method", "bptt"],
            "loss.average: outputs is one loss of all steps",
        ),
        (
            ["--set", "model.normalisation=tdbn", "--method", "bptt"],
            "tdbn leaves no gradient of a single step",
        ),
        (["--method", "conversion"], "method 'conversion' trains rectifiers in one step"),
        (["--method-gradients", "sltt,conversion"], "method 'conversion' has a gradient of rectifiers alone"),
    ],
    ids=["mean output", "all steps at once", "trains rectifiers", "compares rectifiers"],
)
def test_what_has_no_gradient_of_a_step_is_not_taken_apart(arguments: list[str], fault: str) -> None:
    code, output = analyze(*SMOKE, *arguments)
    assert code == 2
    assert fault in " ".join(output.split())


@pytest.mark.parametrize("text", ["16", "-1", "first", ""])
def test_other_epochs_are_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="give numbers from 0 to 15"):
        parse_epochs(text, last=15)


def test_a_field_of_the_neuron_may_stand_alone() -> None:
    grid = parse_overrides(full_paths(["tau=1.1,2.0", "reset=hard", "timesteps=4"]))
    assert grid == [
        {"neuron.tau": 1.1, "neuron.reset": "hard", "timesteps": 4},
        {"neuron.tau": 2.0, "neuron.reset": "hard", "timesteps": 4},
    ]


def test_every_point_of_the_grid_is_a_cell_of_its_own() -> None:
    request = Request(
        methods=["bptt"],
        seeds=[0, 1],
        grid=tuple(parse_overrides(full_paths(["tau=1.1,2.0", "timesteps=1,4"]))),
    )
    (plan,) = plan_analysis("digits", request, epochs="0,last", batches=3)
    assert len(plan) == 8
    assert len({cell.cell_id for cell in plan}) == 8
    assert {cell.kind for cell in plan} == {"analysis"}
    assert plan.cells[0].options == {"epochs": [0, 15], "batches": 3}
    (other,) = plan_analysis("digits", request, epochs="0", batches=3)
    assert not {cell.cell_id for cell in plan} & {cell.cell_id for cell in other}


def test_only_the_reference_backend_serves() -> None:
    with pytest.raises(RecipeError, match="reference"):
        plan_analysis("digits", Request(backends=("native",)), epochs="0", batches=1)


def test_at_least_one_batch_is_needed() -> None:
    code, output = analyze("digits", "--batches", "0", "--dry-run")
    assert code == 2
    assert "--batches: at least one batch is needed" in output


def test_an_unknown_field_is_refused_with_the_nearest() -> None:
    code, output = analyze("digits", "--over", "neuron.taus=1.1", "--dry-run")
    assert code == 2
    assert "tau" in output


def test_a_checkpoint_that_is_not_there_is_refused_under_its_own_flag() -> None:
    code, output = analyze("digits", "--checkpoint", "nowhere.pt")
    assert code == 2
    assert "--checkpoint: nowhere.pt: no such file; give a checkpoint's path\n" in output


# Rows -------------------------------------------------------------------------------------------


def gram(*vectors: list[float]) -> torch.Tensor:
    stacked = torch.tensor(vectors, dtype=torch.float64)
    return stacked @ stacked.T


def test_rows_hold_mean_and_spread_over_batches() -> None:
    # One step and a temporal part at a right angle: cosine 4/5 in the first batch, 1 in the second.
    batches = [
        {"a.weight": gram([4.0, 0.0], [0.0, 3.0]), "b.weight": gram([1.0, 0.0], [0.0, 0.0])},
        {"a.weight": gram([2.0, 0.0], [0.0, 0.0]), "b.weight": gram([0.0, 0.0], [0.0, 0.0])},
    ]
    rows = gradient_rows(batches, {"a.weight": 2, "b.weight": 3})
    assert [(row["level"], row["name"], row["depth"], row["elements"]) for row in rows] == [
        ("network", "", 1, 5),
        ("layer", "a", 1, 2),
        ("layer", "b", 2, 3),
        ("parameter", "a.weight", 1, 2),
        ("parameter", "b.weight", 2, 3),
    ]
    network, a, b = rows[:3]
    assert (a["cosine_mean"], a["cosine_std"]) == pytest.approx((0.9, math.sqrt(0.02)))
    assert (a["temporal_share_mean"], a["full_norm_mean"]) == pytest.approx((0.3, 3.5))
    assert a["zero_batches"] == 0
    # A batch without a gradient is in no mean, and is counted.
    assert (b["cosine_mean"], b["cosine_std"], b["zero_batches"]) == (1.0, None, 1)
    # Together: g_s² = 17, g² = 26 in the first batch.
    assert network["spatial_share_mean"] == pytest.approx((math.sqrt(17 / 26) + 1) / 2)


def test_draws_have_a_row_for_every_k() -> None:
    rows = draw_rows([gram([1.0, 0.0], [0.0, 1.0], [0.0, 0.0])] * 2)
    assert [row["drawn"] for row in rows] == [1, 2]
    # Two orthogonal unit vectors: one alone is at 45° to their sum; 2·g_t − g_s is as long as g_s.
    assert rows[0]["cosine_to_sltt_mean"] == pytest.approx(math.sqrt(0.5))
    assert rows[0]["relative_variance_mean"] == pytest.approx(1.0)
    assert rows[1]["cosine_to_sltt_mean"] == pytest.approx(1.0)
    assert rows[1]["relative_variance_mean"] == 0


def test_a_gradient_that_is_not_finite_is_an_error_and_no_number() -> None:
    recipe = load_recipe("digits", smoke=True)
    experiment = assemble(Cell(recipe, "bptt", "reference", 0), torch.device("cpu"), Reference())
    batch = (torch.full((4, 1, 8, 8), float("inf")), torch.zeros(4, dtype=torch.long))
    rows: list[object] = []
    watch = GradientWatch(recipe, experiment, [batch], [0], lambda file, row: rows.append(row))
    with pytest.raises(
        GradientNotFinite, match=r"the gradient of conv1.weight is not finite after epoch 0: its batch"
    ):
        watch.look(0)
    assert rows == []


def test_every_gradient_is_taken_in_ieee_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("digits", smoke=True)
    experiment = assemble(Cell(recipe, "bptt", "reference", 0), torch.device("cpu"), Reference())
    batch = (torch.randn(4, 1, 8, 8), torch.zeros(4, dtype=torch.long))
    seen: list[bool] = []
    for name in ("decompose", "gradient_of"):
        original = getattr(watch_module, name)

        def noting(*args: Any, original: Any = original) -> Any:
            seen.append(torch.backends.cudnn.allow_tf32)
            return original(*args)

        monkeypatch.setattr(watch_module, name, noting)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # as a cell in TF32 sets it
    GradientWatch(recipe, experiment, [batch], [0], lambda file, row: None, ["sltt"]).look(0)
    assert seen == [False] * 3, "BPTT's in parts, BPTT's and SLTT's"


# The whole way ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a smoke analysis over τ and T, before training and after its first epoch."""
    out = tmp_path_factory.mktemp("analysis")
    code, output = analyze(*SMOKE, *GRID, "--epochs", "0,1", "--batches", "2", "--out", str(out))
    assert code == 0, output
    assert "Full and spatial gradient" in output
    (folder,) = (out / "digits").iterdir()
    return folder


def test_files_have_the_documented_columns(analysed: Path) -> None:
    for file in (CELLS_FILE, EPOCHS_FILE, GRADIENTS_FILE, DRAWS_FILE, OPERATIONS_FILE):
        assert list(pd.read_csv(analysed / file)) == [column.name for column in FILES[file]]


def test_every_cell_is_an_analysis_that_finished(analysed: Path) -> None:
    cells = pd.read_csv(analysed / CELLS_FILE)
    assert len(cells) == 4
    assert set(cells["kind"]) == {"analysis"}
    assert set(cells["status"]) == {"ok"}


def test_every_level_is_there_at_every_epoch_with_its_known_answer(analysed: Path) -> None:
    rows = pd.read_csv(analysed / GRADIENTS_FILE)
    # Two convolutions, two norms with two tensors each, a readout with two: 1 + 5 + 8 rows.
    assert rows.groupby(["timesteps", "tau", "epoch"]).size().to_list() == [14] * 8
    assert set(rows["batches"]) == {2}
    network = rows[rows["level"] == "network"].set_index(["tau", "timesteps", "epoch"])
    assert (network.loc[1.0, "temporal_share_mean"] < 1e-6).all()
    assert (network.loc[2.0, "temporal_share_mean"] > 0.005).all()
    classifier = rows[(rows["level"] == "layer") & (rows["name"] == "classifier")]
    assert (classifier["temporal_share_mean"] < 1e-6).all()
    assert sorted(rows["elements"][rows["level"] == "network"].unique()) == [
        rows[(rows["level"] == "parameter")].drop_duplicates("name")["elements"].sum()
    ]


def test_draws_and_operations_cover_every_k_and_method(analysed: Path) -> None:
    draws = pd.read_csv(analysed / DRAWS_FILE)
    assert sorted(draws[draws["timesteps"] == 3]["drawn"].unique()) == [1, 2, 3]
    assert (draws[draws["drawn"] == draws["timesteps"]]["relative_variance_mean"] == 0).all()
    operations = pd.read_csv(analysed / OPERATIONS_FILE)
    three = operations[operations["timesteps"] == 3].drop_duplicates("counted_method")
    assert list(three["counted_method"]) == ["bptt", "sltt", "sltt-k1", "sltt-k2"]
    counted = three.set_index("counted_method")
    assert (
        counted.loc["sltt-k1", "spatial_multiplications"] * 3
        == counted.loc["sltt", "spatial_multiplications"]
    )
    assert counted.loc["bptt", "temporal_multiplications"] > 0


class Heard(Reporter):
    """Keeps the figures of the last epoch, in the process of the test."""

    def __init__(self) -> None:
        super().__init__(io.StringIO(), None)
        self.figures: Mapping[str, Any] = {}

    def epoch(self, figures: Mapping[str, Any]) -> None:
        self.figures = figures


def test_looking_does_not_change_what_is_trained(analysed: Path) -> None:
    recipe = load_recipe("digits", {"neuron.tau": 2.0, "timesteps": 3, "train.epochs": 1}, smoke=True)
    plain = Heard()
    job = {"data_dir": "unused", "resume": False, "checkpoint": None, "initial_weights": None}
    train_cell(Cell(recipe, "bptt", "reference", recipe.seeds[0], device="cpu", smoke=True), job, plain)
    cells = pd.read_csv(analysed / CELLS_FILE)
    chosen = cells[(cells["timesteps"] == 3) & cells["overrides"].str.contains("2.0")]
    epochs = pd.read_csv(analysed / EPOCHS_FILE)
    watched = epochs[epochs["cell_id"] == chosen["cell_id"].item()]
    for figure in ("train_loss", "train_top1", "test_loss", "test_top1"):
        assert watched[figure].item() == plain.figures[figure]


def test_a_finished_analysis_is_not_repeated(analysed: Path) -> None:
    before = (analysed / GRADIENTS_FILE).read_bytes()
    out = str(analysed.parent.parent)
    code, output = analyze(*SMOKE, *GRID, "--epochs", "0,1", "--batches", "2", "--out", out, "--resume")
    assert code == 0
    assert output.count("finished before, kept") == 4
    assert (analysed / GRADIENTS_FILE).read_bytes() == before


# The report -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def section(analysed: Path) -> Contribution:
    return gradients(Context(read_results([analysed]), "bptt"))


def test_the_report_draws_t_tau_layers_course_and_k(section: Contribution) -> None:
    (only,) = section.sections
    figures = {block.title: block for block in only.blocks if isinstance(block, Figure)}
    assert list(figures) == [
        "Cosine against T",
        "Cosine against τ",
        "Cosine by layer and T",
        "Cosine over training",
        "SLTT-K against K",
    ]
    for figure in figures.values():
        for width in ("column", "double"):
            assert isinstance(figure.draw(width), Drawing)  # type: ignore[arg-type]
    assert not [block for block in only.blocks if isinstance(block, MissingFigure)]


def test_captions_say_what_was_held_fixed(section: Contribution) -> None:
    blocks = section.sections[0].blocks
    captions = {block.title: block.caption for block in blocks if isinstance(block, Figure)}
    assert "after epoch 1 of training with bptt" in captions["Cosine against T"]
    for caption in captions.values():
        assert "Held fixed: surrogate triangle, soft reset, reset not detached, " in caption
        assert "gradients in fp32, trained in fp32, batch 32" in caption


def test_the_table_says_what_the_rows_say(section: Contribution, analysed: Path) -> None:
    table = next(block for block in section.sections[0].blocks if isinstance(block, Table))
    rows = pd.read_csv(analysed / GRADIENTS_FILE)
    rows = rows[(rows["level"] == "network") & (rows["epoch"] == 1)].sort_values(["timesteps", "tau"])
    column = [heading.text for heading in table.headings].index("cosine(g, g_s)")
    assert [row[column].value for row in table.rows] == pytest.approx(rows["cosine_mean"].tolist())
    assert [row[0].text for row in table.rows] == ["2", "2", "3", "3"]


@pytest.fixture
def copied(analysed: Path, tmp_path: Path) -> Path:
    """A copy of the analysis, to be changed."""
    return shutil.copytree(analysed, tmp_path / "copy")


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": {"neuron": {"v_threshold": 0.5}}, "overrides": {"neuron.v_threshold": 0.5}},
        {"recipe": {"model": {"channels": [8]}}, "overrides": {"model.channels": [8]}},
        {"init": "weights.pt"},
    ],
)
def test_cells_that_differ_in_more_than_the_grid_are_not_averaged(
    copied: Path, change: dict[str, Any]
) -> None:
    file = sorted((copied / CELLS_FOLDER).iterdir())[0]
    record = json.loads(file.read_text())
    for key, value in change.get("recipe", {}).items():
        record["recipe"][key] |= value
    record["overrides"] |= change.get("overrides", {})
    record["init"] = change.get("init")
    file.write_text(json.dumps(record))
    sections = gradients(Context(read_results([copied]), "bptt")).sections
    assert sorted(_points(section) for section in sections) == [1, 3]
    (alone,) = (section for section in sections if _points(section) == 1)
    words = [f"{key} = {value}" for key, value in change.get("overrides", {}).items()]
    chip = (words or ["weights from a checkpoint"])[0]
    assert chip in alone.chips
    assert alone.title == f"The gradient taken apart: digits ({chip})"
    if words:  # the recipe's own value, which had no name beside it
        field, own = (
            next(iter(change["overrides"])),
            {"neuron.v_threshold": "1.0", "model.channels": "[8, 16]"},
        )
        titles = {section.title for section in sections} - {alone.title}
        assert titles == {f"The gradient taken apart: digits ({field} = {own[field]})"}


@pytest.mark.parametrize(
    "change", [{"cpu_minutes": 99}, {"target": 0.5}, {"test_timesteps": "as before it was one"}]
)
def test_points_of_versions_of_a_recipe_that_train_alike_are_one_grid(
    copied: Path, change: dict[str, Any]
) -> None:
    file = sorted((copied / CELLS_FOLDER).iterdir())[0]
    record = json.loads(file.read_text())
    record["recipe"] |= change
    if "test_timesteps" in change:
        del record["recipe"]["test_timesteps"]
    file.write_text(json.dumps(record))
    (section,) = gradients(Context(read_results([copied]), "bptt")).sections
    assert _points(section) == 4


def test_points_that_were_looked_at_before_training_alone_are_not_lost_beside_trained_ones(
    copied: Path,
) -> None:
    cells = pd.read_csv(copied / GRADIENTS_FILE).query("tau == 1.0")["cell_id"].unique()
    for cell_id in cells:
        file = copied / CELLS_FOLDER / f"{cell_id}.json"
        record = json.loads(file.read_text())
        assert record["options"]["epochs"] == [0, 1]
        record["options"]["epochs"] = [0]
        file.write_text(json.dumps(record))
    for name in (GRADIENTS_FILE, DRAWS_FILE):
        rows = pd.read_csv(copied / name)
        rows[(rows["epoch"] == 0) | ~rows["cell_id"].isin(cells)].to_csv(copied / name, index=False)
    sections = gradients(Context(read_results([copied]), "bptt")).sections
    assert sorted(_points(section) for section in sections) == [2, 2]
    assert sorted(section.title for section in sections) == [
        "The gradient taken apart: digits",
        "The gradient taken apart: digits, trained in fp32",
    ]
    against_t = [
        block for section in sections for block in section.blocks if block.title == "Cosine against T"
    ]
    assert [type(block) for block in against_t] == [Figure, Figure]


def _points(section: Section) -> int:
    return len(next(block for block in section.blocks if isinstance(block, Table)).rows)


def test_a_figure_leaves_out_points_that_stand_alone_on_its_axis(copied: Path) -> None:
    """τ = 2 at T = 2 is missing: against T there is τ = 1 alone, against τ there is T = 3 alone."""
    for file in (GRADIENTS_FILE, DRAWS_FILE):
        rows = pd.read_csv(copied / file)
        rows[(rows["tau"] == 1.0) | (rows["timesteps"] == 3)].to_csv(copied / file, index=False)
    (section,) = gradients(Context(read_results([copied]), "bptt")).sections
    captions = {block.title: block.caption for block in section.blocks if isinstance(block, Figure)}
    assert "Held fixed: τ = 1, surrogate" in captions["Cosine against T"]
    assert "Held fixed: T = 3, surrogate" in captions["Cosine against τ"]
    assert "Held fixed: surrogate" in captions["Cosine over training"]


def test_a_grid_of_one_point_names_the_command_for_more(copied: Path) -> None:
    for file in (GRADIENTS_FILE, DRAWS_FILE):
        rows = pd.read_csv(copied / file).query("tau == 2.0 and timesteps == 2 and epoch == 0")
        rows.to_csv(copied / file, index=False)
    (section,) = gradients(Context(read_results([copied]), "bptt")).sections
    missing = {block.title: block.command for block in section.blocks if isinstance(block, MissingFigure)}
    assert list(missing) == ["Cosine against T", "Cosine against τ", "Cosine over training"]
    assert missing["Cosine over training"] == "sltt-bench analyze gradients digits --epochs 0,1,5,last"


@pytest.mark.parametrize(("init", "words"), [(None, "At init"), ("a.pt", "With weights from a checkpoint")])
def test_weights_of_a_checkpoint_are_not_called_initial(copied: Path, init: str | None, words: str) -> None:
    for file in (copied / CELLS_FOLDER).iterdir():
        file.write_text(json.dumps(json.loads(file.read_text()) | {"init": init}))
    for name in (GRADIENTS_FILE, DRAWS_FILE):
        pd.read_csv(copied / name).query("epoch == 0").to_csv(copied / name, index=False)
    (section,) = gradients(Context(read_results([copied]), "bptt")).sections
    table = next(block for block in section.blocks if isinstance(block, Table))
    assert table.notes[1].startswith(words)


LATER = {"started_utc": "2999-01-01T00:00:00+00:00"}


def test_spreads_of_several_seeds_are_the_mean_of_each_ones_over_batches_and_said_to_be(
    analysed: Path, copied: Path
) -> None:
    provenance = json.loads((copied / PROVENANCE_FILE).read_text())
    (copied / PROVENANCE_FILE).write_text(json.dumps(provenance | LATER))
    for file in (CELLS_FILE, GRADIENTS_FILE, EPOCHS_FILE):
        rows = pd.read_csv(copied / file)
        changed = {CELLS_FILE: LATER, GRADIENTS_FILE: {"cosine_mean": 0.5, "cosine_std": 0.25}}.get(file, {})
        rows.assign(seed=rows["seed"] + 1, **changed).to_csv(copied / file, index=False)
    (family,) = find_families(read_results([copied, analysed]))
    (alone,) = find_families(read_results([analysed]))
    one, both = (each.last(each.gradients, "network") for each in (alone, family))
    assert both["cosine_mean"].tolist() == pytest.approx(((one["cosine_mean"] + 0.5) / 2).tolist())
    assert both["cosine_std"].tolist() == pytest.approx(((one["cosine_std"] + 0.25) / 2).tolist())
    note = "Mean over 2 batches{}; ± standard deviation over batches{}."
    assert overview(alone, "x").notes[0] == note.format("", "")
    assert overview(family, "x").notes[0] == note.format(" and 2 seeds", ", averaged over seeds")


def test_of_what_was_analysed_again_the_newest_counts_alone(analysed: Path, copied: Path) -> None:
    """Another version, say, whose cosines are others: no further seed, and no mean of the two."""
    provenance = json.loads((copied / PROVENANCE_FILE).read_text())
    (copied / PROVENANCE_FILE).write_text(json.dumps(provenance | LATER))
    pd.read_csv(copied / CELLS_FILE).assign(**LATER).to_csv(copied / CELLS_FILE, index=False)
    pd.read_csv(copied / GRADIENTS_FILE).assign(cosine_mean=0.25).to_csv(copied / GRADIENTS_FILE, index=False)
    pd.read_csv(copied / EPOCHS_FILE).assign(test_top1=0.5).to_csv(copied / EPOCHS_FILE, index=False)
    (family,) = find_families(read_results([copied, analysed]))
    assert family.seeds == 1
    assert set(family.gradients["cosine_mean"]) == {0.25}
    assert set(family.accuracy.values()) == {0.5}


def test_multiplications_that_depend_on_the_neuron_stand_beside_what_they_depend_on(copied: Path) -> None:
    """A surrogate of more products than the triangle: its rows are not left out for those of the first surrogate."""
    for file in (GRADIENTS_FILE, DRAWS_FILE):
        rows = pd.read_csv(copied / file)
        rows.loc[rows["tau"] == 1.0, "surrogate"] = "sigmoid"
        rows.to_csv(copied / file, index=False)
    others = set(rows.loc[rows["surrogate"] == "sigmoid", "cell_id"])
    counts = pd.read_csv(copied / OPERATIONS_FILE)
    assert _operations_of(copied)[0] == ["T", "method"]
    counts.loc[counts["cell_id"].isin(others), "spatial_multiplications"] *= 2
    counts.to_csv(copied / OPERATIONS_FILE, index=False)
    headings, rows_of_sltt = _operations_of(copied)
    assert headings == ["T", "surrogate", "method"]
    assert [row[:2] for row in rows_of_sltt] == [
        ["2", "sigmoid"], ["2", "triangle"], ["3", "sigmoid"], ["3", "triangle"]
    ]  # fmt: skip
    in_space = [row[-1] for row in rows_of_sltt]
    assert in_space[0] == 2 * in_space[1]
    assert in_space[2] == 2 * in_space[3]


def test_a_rule_without_a_backward_pass_has_no_share_of_it_through_time(copied: Path) -> None:
    """A gradient estimated from forward passes alone, say."""
    counts = pd.read_csv(copied / OPERATIONS_FILE)
    counts.loc[
        counts["counted_method"] == "sltt", ["spatial_multiplications", "temporal_multiplications"]
    ] = 0
    counts.to_csv(copied / OPERATIONS_FILE, index=False)
    (section,) = gradients(Context(read_results([copied]), "bptt")).sections
    table = next(block for block in section.blocks if block.title == "Multiplications, counted")
    assert isinstance(table, Table)
    headings = [heading.text for heading in table.headings]
    method, share = headings.index("method"), headings.index("share of the backward pass")
    shares = {row[method].text: row[share].value for row in table.rows}
    assert shares["sltt"] is None
    assert shares["bptt"]


def _operations_of(folder: Path) -> tuple[list[str], list[list[Any]]]:
    """What the table of multiplications tells counts apart by; of SLTT the texts of these columns, and the count in space."""
    (section,) = gradients(Context(read_results([folder]), "bptt")).sections
    (table,) = (block for block in section.blocks if block.title == "Multiplications, counted")
    assert isinstance(table, Table)
    headings = [heading.text for heading in table.headings]
    method, in_space = headings.index("method"), headings.index("backward in space")
    rows = [row for row in table.rows if row[method].text == "sltt"]
    return headings[: method + 1], [
        [*(cell.text for cell in row[:method]), row[in_space].value] for row in rows
    ]


def test_results_without_an_analysis_have_no_section(tmp_path: Path) -> None:
    assert gradients(Context(read_results([tmp_path]), "bptt")) == Contribution()
