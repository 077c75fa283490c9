"""Training that means nothing says so: in the run, as a column, and in the report beside its verdict."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from result_builder import MIB, RECIPE, HandmadeRun, varied
from torch.utils.data import TensorDataset
from typer.testing import CliRunner

from sltt_bench.command_line.cli import app
from sltt_bench.data.loading import largest_class_share
from sltt_bench.planning.plan import Cell
from sltt_bench.report.claims import judge
from sltt_bench.report.grouping import make_groups
from sltt_bench.results.doubts import at_chance, disturbance, doubts, used_by_others
from sltt_bench.results.reader import read_results


def rows(
    *, lr: str = "0.1", loss: str = "2.{}", rate: str = "0.2", top1: str = "0.{}"
) -> list[dict[str, str]]:
    return [
        {"lr": lr, "train_loss": loss.format(9 - i), "firing_rate": rate, "test_top1": top1.format(i)}
        for i in range(2, 8)
    ]


@pytest.mark.parametrize(
    ("epochs", "doubt"),
    [
        (rows(rate="0.0"), "no neuron fired"),
        (rows(lr="0.0"), "the learning rate was 0"),
        (rows(loss="2.302585"), "the training loss never moved"),
        (rows(top1="0.1"), r"test accuracy is at chance (10.0% with 10 classes)"),
        (rows(top1="0.11"), "test accuracy is at chance"),
    ],
)
def test_each_sign_of_meaningless_training_is_named(epochs: list[dict[str, str]], doubt: str) -> None:
    (said,) = doubts(epochs, classes=10, test_samples=360)
    assert doubt in said


def test_sound_training_raises_no_doubt() -> None:
    assert doubts(rows(), classes=10, test_samples=360) == []
    assert doubts(rows()[:1], classes=10, test_samples=360) == []
    assert doubts([], classes=10, test_samples=360) == []
    synthetic = [{"lr": "0.1", "train_loss": f"2.{i}", "firing_rate": "", "test_top1": ""} for i in range(3)]
    assert doubts(synthetic, classes=10, test_samples=360) == []
    cosine = [
        {**row, "lr": lr} for row, lr in zip(rows(), ["0.1", "0.05", "0.0", "0.0", "0.0", "0.0"], strict=True)
    ]
    assert doubts(cosine, classes=10, test_samples=360) == []


def test_an_accuracy_that_naming_the_largest_class_reaches_is_chance(tmp_path: Path) -> None:
    """Nine tenths of one class, and inputs that tell nothing."""
    three_quarters = rows(top1="0.{}5")[-1:]
    (said,) = doubts(three_quarters, classes=2, test_samples=360, largest_class_share=0.75)
    assert said == "test accuracy is at chance (75.0%, and one of 2 classes has 75.0% of the test samples)"
    assert doubts(three_quarters, classes=2, test_samples=360, largest_class_share=0.74) == []
    draws = np.random.default_rng(0)
    labels = {
        f"y_{split}": np.arange(count) // (0.9 * count) >= 1 for split, count in (("train", 80), ("test", 40))
    }
    samples = {
        f"x_{split}": draws.normal(size=(count, 2, 4)) for split, count in (("train", 80), ("test", 40))
    }
    np.savez(tmp_path / "arrays.npz", **samples, **{key: of.astype(int) for key, of in labels.items()})
    recipe = tmp_path / "one-sided.yaml"
    recipe.write_text(
        "extends: sequential-digits\ndata: {name: arrays, layout: sequences}\ntimesteps: 2\nloss: {window: null}\n"
        "train: {epochs: 2, batch_size: 20}\nmethods: [sltt]\nseeds: [0]\n"
    )
    arguments = ["run", str(recipe), "--data-dir", str(tmp_path), "--device", "cpu", "--no-estimate"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    (path,) = (tmp_path / "out").glob("one-sided/*/cells.csv")
    row = pd.read_csv(path).iloc[0]
    assert row["last_test_top1"] == 0.9
    assert (
        row["doubts"]
        == "test accuracy is at chance (90.0%, and one of 2 classes has 90.0% of the test samples)"
    )


def test_the_largest_class_is_that_of_the_samples_that_are_evaluated() -> None:
    class Silent(torch.utils.data.Dataset[int]):
        def __len__(self) -> int:
            return 3

    labels = torch.tensor([0, 0, 0, 0, 1, 2, 2, 1])
    assert largest_class_share(TensorDataset(labels, labels), None) == 0.5
    assert largest_class_share(TensorDataset(labels, labels), 3) == pytest.approx(1 / 3)
    assert largest_class_share(Silent(), None) is None


def test_chance_narrows_with_more_samples() -> None:
    assert at_chance(10, 360) == pytest.approx(0.1259, abs=1e-4)
    assert at_chance(10, 10_000) == pytest.approx(0.1049, abs=1e-4)


def test_times_are_others_where_processors_were_full_and_more_than_a_twentieth_was_theirs() -> None:
    assert used_by_others([1.0, 1.0], [1.0, 0.95], [0.3, 0.3]) == pytest.approx(0.3)
    assert used_by_others([1.0, 1.0], [0.8, 0.8], [0.3, 0.3]) == 0.0, "there was room"
    assert used_by_others([1.0, 1.0], [1.0, 1.0], [0.05, 0.05]) == 0.0
    assert used_by_others([], [], []) == 0.0, "nothing is known"
    assert used_by_others([0.0], [1.0], [0.5]) == 0.0, "a damaged file"


def test_what_disturbed_one_epoch_of_many_disturbs_a_sum_and_no_median() -> None:
    one_of_five = ([9.0, 1.0, 1.0, 1.0, 1.0], [1.0] * 5, [0.5, 0.0, 0.0, 0.0, 0.0])
    assert used_by_others(*one_of_five) == 0.0
    assert used_by_others(*one_of_five, summed=True) == pytest.approx(9 * 0.5 / 13)


def test_warm_epochs_decide_whether_times_were_disturbed() -> None:
    def epoch(cold: object, others: str) -> dict[str, str]:
        return {"cold": str(cold), "train_s": "2.0", "cpu_util_mean": "1.0", "cpu_others_mean": others}

    cold, warm, unknown = epoch(True, "0.5"), epoch("false", "0.02"), epoch("false", "")
    assert disturbance([cold]) == "other programs used 50% of the processors while it trained"
    assert disturbance([cold, warm]) == ""
    assert disturbance([warm, epoch("false", "0.4"), epoch("false", "0.4")]).startswith(
        "other programs used 27%"
    )
    assert disturbance([unknown]) == ""
    assert disturbance([{**cold, "cpu_util_mean": ""}, warm]) == "", "a damaged file"


def test_a_network_that_never_fires_says_so_in_the_run_and_its_row(tmp_path: Path) -> None:
    arguments = ["run", "digits", "--smoke", "--method", "sltt", "--device", "cpu", "--no-estimate"]
    hostile = ["--set", "neuron.v_threshold=1000000.0", "--set", "train.lr=0.0", "--set", "timesteps=2"]
    result = CliRunner().invoke(app, [*arguments, *hostile, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "this may mean nothing: no neuron fired in any epoch" in text
    assert "the learning rate was 0" in text
    (path,) = tmp_path.glob("digits/*/cells.csv")
    assert "the training loss never moved" in pd.read_csv(path)["doubts"][0]


def test_the_report_says_it_in_its_table_and_beside_the_verdict(tmp_path: Path) -> None:
    claim = {
        "metric": "peak_memory", "method": "sltt", "baseline": "bptt", "relation": "at_most_ratio", "threshold": 0.5,
        "says": "half", "source": "made by hand",
    }  # fmt: skip
    recipe = varied(RECIPE, claims=[claim])
    run = HandmadeRun(tmp_path / "r")
    for seed in (0, 1):
        doubted = {"doubts": "the training loss never moved"}
        run.cell("bptt", seed, peak_tensor_bytes=4 * MIB, cell=doubted, recipe=recipe)
        run.cell("sltt", seed, peak_tensor_bytes=1 * MIB, cell=doubted, recipe=recipe)
    groups = make_groups(read_results([tmp_path]))
    findings = [verdict for verdict in judge(groups) if verdict.is_finding]
    assert findings
    assert all("bptt: the training loss never moved (seeds 0, 1)" in verdict.caveats for verdict in findings)
    output = CliRunner().invoke(app, ["report", str(tmp_path), "--format", "terminal"]).output
    assert "The figures of bptt may mean nothing: the training loss never moved (seeds 0, 1)" in " ".join(
        output.split()
    )


def test_the_report_says_chance_once_and_other_doubts_beside_it(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "r")
    for seed in (0, 1):
        doubted = {
            "doubts": f"the training loss never moved; test accuracy is at chance (1{seed}.0% with 10 classes)"
        }
        run.cell(
            "bptt",
            seed,
            train_s=[5.0, 2.0],
            top1=[0.1, 0.1 + seed / 100],
            peak_tensor_bytes=4 * MIB,
            cell=doubted,
        )
        run.cell("sltt", seed, train_s=[5.0, 2.0], top1=[0.2, 0.5], peak_tensor_bytes=MIB)
    output = CliRunner().invoke(app, ["report", str(tmp_path), "--format", "terminal"]).output
    text = " ".join(output.split())
    assert text.count("at chance") == 1
    assert "The figures of bptt may mean nothing: the training loss never moved (seeds 0, 1)" in text


@pytest.mark.parametrize("size", [{"data__limit": 33, "train__batch_size": 32}, {"train__batch_size": 1}])
def test_a_batch_of_one_sample_on_one_pixel_is_refused_before_training(
    size: dict[str, int], smoke_cell: Callable[..., Cell]
) -> None:
    import torch

    from sltt_bench import data
    from sltt_bench.data import DataPlace
    from sltt_bench.kinds.training import check_smallest_batch, make_cell_loader

    cell = smoke_cell(model={"name": "preact-resnet18", "width": 4}, **size)  # its last stage is 1×1
    bundle = data.load(cell.recipe.data, DataPlace(Path("data"), cell.recipe.timesteps))
    loader = make_cell_loader(cell, bundle, "train", torch.device("cpu"))
    with pytest.raises(ValueError, match=r"has one sample .*set .*another train\.batch_size"):
        check_smallest_batch(cell, torch.device("cpu"), loader, bundle.preprocess)
    roomy = smoke_cell(**size)
    check_smallest_batch(roomy, torch.device("cpu"), loader, bundle.preprocess)
