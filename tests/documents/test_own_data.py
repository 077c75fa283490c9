"""Your own data: the examples of docs/own-data.md run as they stand, and faults in arrays are named."""

import importlib
import os
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from checkout import ROOT
from data_files import write_image_folder
from typer.testing import CliRunner

from sltt_bench import data
from sltt_bench.command_line.cli import app
from sltt_bench.data import DataBundle, DataError, DataPlace
from sltt_bench.kinds.training import content_sha256

PAGE = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")


def example(language: str, number: int = 0) -> str:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)[number]


def run(recipe: str, *arguments: str, out: str = "out", code: int = 0) -> pd.DataFrame:
    """The rows of cells.csv of a run that ended with this exit code."""
    common = ["--no-estimate", "--device", "cpu", "--seed", "0", "--out", out]
    result = CliRunner().invoke(app, ["run", recipe, *arguments, *common])
    assert result.exit_code == code, result.output
    (cells,) = Path(out).glob("*/*/cells.csv")
    return pd.read_csv(cells)


def test_the_page_on_arrays_works_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my-data").mkdir()
    exec(compile(example("python"), "own-data.md", "exec"), {})
    Path("loud.yaml").write_text(example("yaml", 1))
    cells = run("loud.yaml", "--data-dir", "my-data", "--method", "sltt")
    assert list(cells.status) == ["ok"]
    assert cells.last_test_top1.item() > 0.8
    recipe = next(Path("out").glob("*/*/recipe.yaml")).read_text()
    for fact in ("num_classes: 3", "train_samples: 240", "test_samples: 60"):
        assert fact in recipe


def test_the_page_on_event_recordings_works_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("my_events.py").write_text(example("python", 1))
    events = np.random.default_rng(0)
    for split, count in (("train", 3), ("test", 1)):
        for number, name in enumerate(("clap", "wave") * count):
            folder = Path("DIR/my-events", split, name)
            folder.mkdir(parents=True, exist_ok=True)
            columns = {"t": np.arange(50), "p": events.integers(2, size=50)}
            columns |= {axis: events.integers(32, size=50) for axis in "xy"}
            np.savez(folder / f"{number}.npz", **columns)
    source = importlib.import_module("my_events").MyEvents()
    assert all(finding.ok for finding in source.verify(Path("DIR"), lambda *told: None))
    bundle = source.load(DataPlace(Path("DIR"), timesteps=4))
    frames, label = bundle.train[5]
    assert (frames.shape, label) == ((4, 2, 16, 16), 1)
    assert frames.sum() == pytest.approx(50 / 4, rel=0.1), "mean counts of four pixels"
    info = Path("my_events-1.0.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-events\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sltt_bench.data]\nmy-events = my_events:MyEvents\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("gestures.yaml").write_text(example("yaml", 2))
    commands = re.findall("^sltt-bench (.*my-events.*|.*gestures.yaml.*)$", PAGE, flags=re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        dry = ["--dry-run"] if command.startswith("run") else []
        result = CliRunner().invoke(app, [*shlex.split(command), *dry])
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize("command", ["tune", "run"])
def test_validation_counts_of_other_data_start_no_cell(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sequential-digits, which the recipe extends, has counts of its own, which are not taken over."""
    monkeypatch.chdir(tmp_path)
    Path("my-data").mkdir()
    exec(compile(example("python"), "own-data.md", "exec"), {})
    Path("loud.yaml").write_text(example("yaml", 1))
    common = [command, "loud.yaml", "--data-dir", "my-data", "--method", "sltt", "--dry-run"]
    assert CliRunner().invoke(app, common).exit_code == 0
    place = "tuning.validation.samples" if command == "tune" else "validation.samples"
    result = CliRunner().invoke(app, [*common, "--set", f"{place}=287"])
    assert result.exit_code == 2
    assert (
        f"--set {place}: validation.samples is 287, but 0.2 of 240 training samples are 48; set that, or 0"
        in result.output
    )


def test_the_page_on_images_works_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_image_folder(Path("DIR"), "imagenette2-160")
    Path("imagenette.yaml").write_text(example("yaml", 0))
    small = ["train.epochs=1", "train.batch_size=2", "model.width=2", "timesteps=2", "data.image_size=32"]
    changes = [argument for change in small for argument in ("--set", change)]
    cells = run("imagenette.yaml", "--data-dir", "DIR", "--method", "sltt", *changes)
    assert list(cells.status) == ["ok"]
    picture = Path("DIR/imagenette2-160/train/bee/1.png")
    picture.write_bytes(picture.read_bytes()[:60])
    (reason,) = run(
        "imagenette.yaml", "--data-dir", "DIR", "--method", "sltt", *changes, out="damaged", code=1
    ).reason
    (command,) = re.findall("`sltt-bench (.*)`", reason)
    verified = CliRunner().invoke(app, shlex.split(command))
    assert verified.exit_code == 1
    assert f"{picture} cannot be read" in " ".join(verified.output.split())


def test_the_validation_images_of_tiny_imagenet_are_found_by_its_list(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    val = tmp_path / "images" / "val"
    (val / "images").mkdir()
    for number, class_name in enumerate(("ant", "bee")):
        (val / class_name / "2.png").rename(val / "images" / f"val_{number}.png")
        (val / class_name).rmdir()
    (val / "val_annotations.txt").write_text("val_1.png\tbee\t0\t0\t9\t9\nval_0.png\tant\t0\t0\t9\t9\n")
    source = data.source_type("image-folder")(image_size=16).on_disk(tmp_path)
    samples = data.load(source, DataPlace(tmp_path, 2)).test
    assert [(int(x[0, 8, 8]), label) for x, label in (samples[i] for i in range(2))] == [(2, 0), (12, 1)]
    annotations = val / "val_annotations.txt"
    annotations.write_text("val_0.png ant\n")
    os.utime(annotations, (1, 1))
    with pytest.raises(DataError, match=r"val_annotations\.txt cannot be read: line 1 is not"):
        data.source_type("image-folder")(folder="images").on_disk(tmp_path)


# Arrays -----------------------------------------------------------------------------------------


def arrays(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
    labels = np.array([0, 1, 2])
    samples = np.arange(3 * 6 * 5, dtype=np.uint8).reshape(3, 6, 5)
    content = {"x_train": samples, "y_train": labels, "x_test": samples[:2], "y_test": labels[:2], **changes}
    return {key: array for key, array in content.items() if array is not None}


def load(folder: Path, content: dict[str, np.ndarray], timesteps: int = 6, **options: Any) -> DataBundle:
    np.savez(folder / "arrays.npz", **content)
    source = data.source_type("arrays")(**options).on_disk(folder)
    assert source.check_timesteps(timesteps) is None
    return data.load(source, DataPlace(folder, timesteps))


def test_other_samples_of_equal_labels_have_another_digest(tmp_path: Path) -> None:
    def digests(**changes: np.ndarray) -> dict[str, str]:
        options = data.source_type("arrays")(limit=2, num_classes=3)
        return content_sha256(options, load(tmp_path, arrays(**changes)), ["test"])

    as_they_were, samples = digests(), arrays()["x_train"]
    training, test = samples.copy(), samples[:2].copy()
    training[2, 5, 4] += 1
    test[1, 5, 4] += 1
    assert digests() == as_they_were
    for changed, name in (({"x_train": training}, "training"), ({"x_test": test}, "evaluated")):
        differ = [key for key, digest in digests(**changed).items() if digest != as_they_were[key]]
        assert differ == [f"{name}_samples_sha256"]


@pytest.mark.parametrize(
    ("layout", "sample", "shown"),
    [
        ("images", (6, 5), (1, 6, 5)),
        ("images", (2, 6, 5), (2, 6, 5)),
        ("sequences", (6, 5), (6, 5, 1, 1)),
        ("sequences", (6, 2, 3, 5), (6, 2, 3, 5)),
    ],
)
def test_each_layout_is_shown_as_the_page_says(
    layout: str, sample: tuple[int, ...], shown: tuple[int, ...], tmp_path: Path
) -> None:
    samples = np.arange(3 * np.prod(sample)).reshape(3, *sample)
    bundle = load(tmp_path, arrays(x_train=samples, x_test=samples[:2]), layout=layout)
    x, label = bundle.train[1]
    assert (tuple(x.shape), x.dtype, int(label)) == (shown, torch.float32, 1)
    assert x.flatten().tolist() == samples[1].flatten().tolist()
    assert torch.equal(bundle.preprocess(x), x)


def test_bytes_are_scaled_to_one(tmp_path: Path) -> None:
    bundle = load(tmp_path, arrays(x_train=np.full((3, 6, 5), 255, np.uint8)))
    assert set(bundle.preprocess(bundle.train[0][0]).flatten().tolist()) == {1.0}


def test_sequences_of_another_length_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "arrays.npz", **arrays())
    source = data.source_type("arrays")(layout="sequences").on_disk(tmp_path)
    fault = "timesteps is 5, but the sequences in arrays.npz have 6 steps (data.shape is [6, 5])"
    assert source.check_timesteps(5) == fault


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no labels": ({"y_test": None}, "it has no array y_test; its arrays: x_train, y_train, x_test"),
    "no samples of training": (
        {"x_train": None},
        "it has no array x_train; its arrays: y_train, x_test, y_test",
    ),
    "names as labels": (
        {"y_train": np.array(["ant", "bee", "cow"])},
        r"y_train is <U3 of shape \(3,\), .*; classes are numbered from 0, as numpy.unique\(labels, return_inverse=True\)",
    ),
    "other shapes": (
        {"x_test": np.zeros((2, 6, 4))},
        r"samples are \[6, 5\] in x_train, but \(6, 4\) in x_test",
    ),
    "no layout": (
        {"x_train": np.zeros((3, 1)), "x_test": np.zeros((2, 1))},
        "which data.layout 'images' has not",
    ),
    "fractions as labels": ({"y_train": np.array([0.5, 1, 2])}, "y_train is float64 of shape"),
    "negative labels": ({"y_train": np.array([-1, 1, 2])}, "y_train has labels -1…2"),
    "too few labels": ({"y_train": np.array([0, 1])}, "x_train has 3 samples, but y_train 2 labels"),
    "not finite": ({"x_train": np.full((3, 6, 5), np.nan)}, "x_train has numbers that are not finite"),
    "not finite in float32": (
        {"x_test": np.full((2, 6, 5), 1e300)},
        "x_test has numbers that are not finite in float32",
    ),
    "no samples": (
        {"x_test": np.zeros((0, 6, 5), np.uint8), "y_test": np.array([], int)},
        "x_test has no samples",
    ),
    "bytes and others": (
        {"x_test": np.full((2, 6, 5), 255.0)},
        "x_train is of bytes, .* but x_test of other",
    ),
    "others and bytes": ({"x_train": np.full((3, 6, 5), 255)}, "x_test is of bytes, .* but x_train of other"),
    "samples of nothing": (
        {"x_train": np.zeros((3, 6, 0)), "x_test": np.zeros((2, 6, 0))},
        r"x_train has samples of shape \[6, 0\], which hold no number",
    ),
    "text": ({"x_train": np.full((3, 6, 5), "a")}, "x_train is <U1, not numbers"),
    "objects": ({"x_train": np.full((3, 6, 5), None, dtype=object)}, "x_train is of objects, not numbers"),
    "unequal lengths": (
        {"x_train": np.array([np.zeros((t, 5)) for t in (4, 5, 6)], dtype=object)},
        "x_train is of objects, not numbers; pad sequences of unequal length to one length",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_arrays_names_file_and_key(fault: str, tmp_path: Path) -> None:
    changes, message = FAULTS[fault]
    with pytest.raises(DataError, match=rf"{tmp_path}/arrays\.npz cannot be read: .*{message}"):
        load(tmp_path, arrays(**changes))


OWN_ARRAYS = """
extends: digits
data: {name: arrays, shape: [6, 5], num_classes: 3, train_samples: 3, test_samples: 2}
train: {batch_size: 2}
"""


@pytest.mark.parametrize("fault", [name for name in FAULTS if not name.startswith("not finite")])
@pytest.mark.parametrize("stated", [True, False])
def test_what_labels_and_headers_of_arrays_tell_is_refused_as_it_is_planned(
    fault: str, stated: bool, tmp_path: Path
) -> None:
    changes, message = FAULTS[fault]
    np.savez(tmp_path / "arrays.npz", **arrays(**changes))
    text = OWN_ARRAYS if stated else re.sub(r"shape.*2}", "file: arrays.npz}", OWN_ARRAYS)
    (tmp_path / "own.yaml").write_text(text)
    plan = ["run", str(tmp_path / "own.yaml"), "--dry-run", "--data-dir", str(tmp_path)]
    result = CliRunner().invoke(app, plan)
    assert result.exit_code == 2, result.output
    if stated and fault in ("other shapes", "no layout"):
        message = r"x_t\w+ has samples of shape \[\d(, 4)?\], not \[6, 5\]"
    assert re.search(rf"arrays\.npz cannot be read: .*{message}", result.output)
    assert CliRunner().invoke(app, [*plan, "--synthetic"]).exit_code == 2 * (not stated)


def test_counts_of_arrays_that_are_not_as_stated_are_refused_as_they_are_planned(tmp_path: Path) -> None:
    np.savez(tmp_path / "arrays.npz", **arrays())
    (tmp_path / "own.yaml").write_text(OWN_ARRAYS.replace("test_samples: 2", "test_samples: 4"))
    plan = ["run", str(tmp_path / "own.yaml"), "--dry-run", "--data-dir", str(tmp_path)]
    result = CliRunner().invoke(app, plan)
    assert result.exit_code == 2
    assert "the test split has 2 samples, but the recipe's data.test_samples says 4" in result.output


def test_verifying_arrays_looks_at_the_samples_too(tmp_path: Path) -> None:
    damaged = {"x_train": np.zeros((3, 6, 5)), "x_test": np.full((3, 6, 5), np.nan), "y_test": np.arange(3)}
    np.savez(tmp_path / "arrays.npz", **arrays(**damaged))
    findings = data.verify("arrays", tmp_path)
    assert [finding.ok for finding in findings] == [True, True, True, False, False]
    assert "x_test has numbers that are not finite" in findings[3].text


def test_verifying_arrays_finds_that_one_split_would_be_scaled_and_the_other_not(tmp_path: Path) -> None:
    np.savez(tmp_path / "arrays.npz", **arrays(x_test=np.full((3, 6, 5), 255.0), y_test=np.arange(3)))
    *sound, fault = data.verify("arrays", tmp_path)
    assert all(finding.ok for finding in sound)
    assert not fault.ok
    assert "x_train is of bytes, which are scaled to 0…1, but x_test of other numbers" in fault.text


@pytest.mark.parametrize("content", [b"", b"PK\3\4 not much more", b"\x93NUMPY"])
def test_what_is_no_npz_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "arrays.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"arrays\.npz cannot be read"):
        data.source_type("arrays")().on_disk(tmp_path)


@pytest.mark.parametrize(("labels", "some", "none"), [([1, 2, 3], 1, 0), ([0, 1, 1000], 1000, 2)])
def test_a_class_that_no_sample_has_is_refused_unless_the_recipe_counts_it(
    labels: list[int], some: int, none: int, tmp_path: Path
) -> None:
    content = arrays(y_train=np.array(labels), y_test=np.array(labels[:2]))
    with pytest.raises(
        DataError, match=f"some sample has the label {some}, but none has {none}; number the classes"
    ):
        load(tmp_path, content)
    assert load(tmp_path, content, num_classes=1001).test[1][1] == labels[1]


def test_a_class_may_be_in_one_split_only(tmp_path: Path) -> None:
    np.savez(tmp_path / "arrays.npz", **arrays(y_train=np.array([0, 2, 0]), y_test=np.array([1, 1])))
    assert data.source_type("arrays")().on_disk(tmp_path).classes == 3


def test_missing_arrays_say_where_they_were_looked_for_and_what_to_put_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"looked for {tmp_path}/arrays\.npz"):
        data.source_type("arrays")().on_disk(tmp_path)
    with pytest.raises(DataError, match=r"put x_train, y_train, x_test and y_test into .*arrays\.npz"):
        data.prepare("arrays", tmp_path)
