"""The image data sets from real files, made small: MNIST's IDX, CIFAR's pickles, folders of JPEGs."""

import os
import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_files import cifar_batch, loader_of, write_cifar10, write_cifar100, write_imagenet, write_mnist
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.datasets import ImageFolder

from sltt_bench import data
from sltt_bench.data import DataBundle, DataError, DataPlace
from sltt_bench.data.digits import digits_split
from sltt_bench.data.loading import make_loader
from sltt_bench.data.transforms import Cutout, Normalise


def load(name: str, data_dir: Path, **options: Any) -> DataBundle:
    return data.load(data.source_type(name)(**options), DataPlace(data_dir, timesteps=4))


# The embedded digits ----------------------------------------------------------------------------


def test_the_embedded_digits_and_their_split_are_those_of_scikit_learn() -> None:
    datasets, selection = (pytest.importorskip(f"sklearn.{part}") for part in ("datasets", "model_selection"))
    published = datasets.load_digits()
    everything = np.arange(len(published.target))
    splits = selection.train_test_split(everything, test_size=0.2, random_state=0, stratify=published.target)
    for split, indices in zip(("train", "test"), map(np.sort, splits), strict=True):
        images, labels = digits_split(split)
        assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
        np.testing.assert_array_equal(images, published.images[indices])
        np.testing.assert_array_equal(labels, published.target[indices])


# What is read -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "folder", "mean"),
    [("mnist", "MNIST", 0.1307), ("fashion-mnist", "FashionMNIST", 0.2860)],
)
def test_mnist_is_read_from_idx_files(name: str, folder: str, mean: float, tmp_path: Path) -> None:
    counts = write_mnist(tmp_path, folder)
    bundle = load(name, tmp_path, **counts)
    x, label = bundle.train[11]
    assert (x.shape, x.dtype, int(label)) == ((1, 28, 28), torch.uint8, 1)
    std = {"mnist": 0.3081, "fashion-mnist": 0.3530}[name]
    expected = (x.float() / 255 - mean) / std
    torch.testing.assert_close(bundle.preprocess(x.unsqueeze(0))[0], expected)


@pytest.mark.parametrize(
    ("name", "write", "classes"), [("cifar10", write_cifar10, 10), ("cifar100", write_cifar100, 100)]
)
def test_cifar_is_read_from_its_python_batches(
    name: str, write: Callable[[Path], dict[str, int]], classes: int, tmp_path: Path
) -> None:
    counts = write(tmp_path)
    assert data.missing(data.source_type(name)(**counts), tmp_path) is None
    bundle = load(name, tmp_path, **counts)
    assert len(bundle.train) == counts["train_samples"]
    x, label = bundle.test[classes - 1]
    raw = pickle.loads(cifar_batch(counts["test_samples"], classes))["data"][classes - 1]
    assert x.flatten().tolist() == raw.tolist()
    assert int(label) == classes - 1


def test_normalisation_is_of_each_channel() -> None:
    x = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    result = Normalise([0.5, 0.25, 0.2], [0.5, 0.25, 0.1])(x)
    torch.testing.assert_close(result.flatten(), torch.tensor([-1.0, 3.0, 0.0]))


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    data_dir = tmp_path_factory.mktemp("imagenet")
    return data_dir, write_imagenet(data_dir)


@pytest.mark.parametrize("size", [224, 32])
def test_imagenet_is_read_from_folders_of_jpegs(size: int, imagenet: tuple[Path, dict[str, int]]) -> None:
    data_dir, counts = imagenet
    bundle = load("imagenet", data_dir, image_size=size, **counts)
    for split in (bundle.train, bundle.test):
        x, label = split[999]
        assert (x.shape, x.dtype, label) == ((3, size, size), torch.uint8, 999)


def test_imagenet_test_images_are_not_augmented_and_training_images_are(
    imagenet: tuple[Path, dict[str, int]],
) -> None:
    data_dir, counts = imagenet
    bundle = load("imagenet", data_dir, image_size=32, **counts)
    assert torch.equal(bundle.test[3][0], bundle.test[3][0])
    assert not torch.equal(bundle.train[3][0], bundle.train[3][0])


def test_imagenet_images_are_read_as_the_papers_code_reads_them(tmp_path: Path) -> None:
    """Crops and pixels are torchvision's, also of a picture that its camera stored lying on its side."""
    counts = write_imagenet(tmp_path)
    lying = tmp_path / "imagenet" / "val" / "n00000007" / "val_7.JPEG"
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.open(lying).copy()
    lying.unlink()
    picture.save(lying, exif=exif)
    published = ImageFolder(
        str(tmp_path / "imagenet" / "val"),
        transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()]),
    )
    test = load("imagenet", tmp_path, **counts).test
    for number in (6, 7):
        assert torch.equal(test[number][0], published[number][0])
        assert test[number][1] == published[number][1] == number


def test_imagenet_limit_takes_samples_from_all_over_the_classes(
    imagenet: tuple[Path, dict[str, int]],
) -> None:
    data_dir, counts = imagenet
    options = data.source_type("imagenet")(image_size=32, limit=8, **counts)
    bundle = data.load(options, DataPlace(data_dir, 4))
    labels = next(iter(loader_of(bundle.train, options)))[1].tolist()
    assert labels == [62, 187, 312, 437, 562, 687, 812, 937]


# Augmentation -----------------------------------------------------------------------------------


def test_cifar_augmentation_is_the_same_for_no_and_two_workers(tmp_path: Path) -> None:
    counts = write_cifar10(tmp_path)

    def epoch(workers: int) -> Tensor:
        options = data.source_type("cifar10")(workers=workers, **counts)
        train = data.load(options, DataPlace(tmp_path, 4)).train
        subject = loader_of(train, options, batch_size=16, shuffle=True, seed=7)
        subject.set_epoch(3)
        return torch.cat([x for x, _ in subject])

    assert torch.equal(epoch(0), epoch(2))


def test_cifar_images_are_shifted_by_up_to_four_pixels_and_flipped(tmp_path: Path) -> None:
    counts = write_cifar10(tmp_path, per_batch=10)
    train: Any = load("cifar10", tmp_path, **counts).train
    image = torch.full((3, 32, 32), 7, dtype=torch.uint8)
    image[:, 16, 10] = 200
    train.images[0] = image
    torch.manual_seed(0)
    places = Counter()
    for _ in range(600):
        x, _ = train[0]
        actual = (x == 200).all(0).nonzero().tolist()
        if len(actual) == 1:
            places[tuple(actual[0])] += 1
    rows, columns = {row for row, _ in places}, {column for _, column in places}
    assert rows == set(range(12, 21))
    assert columns == set(range(6, 15)) | set(range(31 - 14, 31 - 5))


def test_cutout_has_the_stated_probability_area_ratio_and_colour() -> None:
    torch.manual_seed(0)
    cutout = Cutout()
    image = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    areas, sides, reds, unchanged = [], [], set(), 0
    for _ in range(2000):
        x = cutout(image)
        erased = (x[1:] != 255).all(0)
        if not erased.any():
            unchanged += 1
            continue
        rows, columns = erased.any(1).sum().item(), erased.any(0).sum().item()
        assert int(erased.sum()) == rows * columns
        red, green, blue = (channel[erased].unique().tolist() for channel in x)
        assert len(red) == 1
        assert green == blue == [0]
        reds |= {*red}
        assert (x[:, ~erased] == 255).all()
        areas.append(rows * columns / 1024)
        sides.append((rows, columns))
    assert 900 < unchanged < 1100
    # Sides are cut to whole pixels, so areas reach a little beyond their range.
    assert 0.005 < min(areas) < 0.03
    assert 0.37 < max(areas) <= 0.4
    assert abs(sum(areas) / len(areas) - 0.195) < 0.02
    assert (
        sum(rows > columns for rows, columns in sides) / len(sides) > 0.6
    )  # uniform in 0.4–2.5, not its logarithm
    assert (
        2.2 < max(rows / (columns + 1) for rows, columns in sides) < 2.5
    )  # the least that the ratio was before
    assert 0.4 < min((rows + 1) / columns for rows, columns in sides) < 0.5  # the most
    assert {0, 255} <= reds
    assert int(image.min()) == 255  # the original is left alone


def test_cutout_reaches_every_edge_and_paints_as_pillow_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the paper's code Pillow pastes one number into the box of a colour image."""
    torch.manual_seed(0)
    cutout = Cutout()
    monkeypatch.setattr(cutout, "PROBABILITY", 1.0)
    image = torch.randint(1, 255, (3, 32, 32), dtype=torch.uint8)
    edges = []
    for _ in range(300):
        x = cutout(image)
        erased = (x[1:] == 0).all(0)
        top, bottom = (int(i) for i in torch.where(erased.any(1))[0][[0, -1]])
        left, right = (int(i) for i in torch.where(erased.any(0))[0][[0, -1]])
        pasted = Image.fromarray(image.permute(1, 2, 0).numpy())
        pasted.paste(int(x[0, top, left]), (left, top, right + 1, bottom + 1))
        assert np.array_equal(np.asarray(pasted), x.permute(1, 2, 0).numpy())
        edges.append((top, left, bottom, right))
    tops, lefts, bottoms, rights = (set(side) for side in zip(*edges, strict=True))
    assert 0 in tops & lefts
    assert 31 in bottoms & rights


# Faults -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100", "imagenet"])
def test_missing_data_say_where_they_were_looked_for_and_how_to_get_them(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        load(name, tmp_path)
    message = str(raised.value)
    assert data.missing(data.source_type(name)(), tmp_path) == message
    assert f"looked for {tmp_path}" in message
    assert f"sltt-bench data prepare {name} --data-dir {tmp_path}" in message
    assert "`run --synthetic` measures memory and time" in message


def test_wrong_count_names_the_split_and_both_numbers(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    with pytest.raises(DataError, match=r"train split has 40 samples, but .*data\.train_samples says 60000"):
        load("mnist", tmp_path)


def cut(file: Path, share: float = 0.6) -> None:
    os.truncate(file, int(file.stat().st_size * share))


@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_idx_file_cut_short_is_named(file: str, tmp_path: Path) -> None:
    counts = write_mnist(tmp_path)
    cut(tmp_path / "MNIST" / "raw" / file)
    with pytest.raises(DataError, match=f"{file} cannot be read: not a whole IDX file"):
        load("mnist", tmp_path, **counts)


def test_idx_files_that_disagree_are_named(tmp_path: Path) -> None:
    counts = write_mnist(tmp_path)
    (tmp_path / "other").mkdir()
    write_mnist(tmp_path / "other", train=30)
    raw = tmp_path / "MNIST" / "raw"
    (tmp_path / "other" / "MNIST" / "raw" / "train-labels-idx1-ubyte").rename(raw / "train-labels-idx1-ubyte")
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte.*30 labels.*40 images"):
        load("mnist", tmp_path, **counts)


def test_cifar_batch_cut_short_is_named(tmp_path: Path) -> None:
    counts = write_cifar10(tmp_path)
    cut(tmp_path / "cifar-10-batches-py" / "data_batch_3")
    with pytest.raises(DataError, match="data_batch_3 cannot be read"):
        load("cifar10", tmp_path, **counts)


def test_cifar_batch_that_is_missing_is_named(tmp_path: Path) -> None:
    counts = write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_5").unlink()
    with pytest.raises(DataError, match=r"looked for .*data_batch_5"):
        load("cifar10", tmp_path, **counts)


class _Program:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("/nonexistent/made-by-a-pickle",)


def test_cifar_batch_that_holds_a_program_is_refused(tmp_path: Path) -> None:
    counts = write_cifar10(tmp_path)
    content = pickle.dumps({"data": _Program()}, protocol=2)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(content)
    with pytest.raises(DataError, match=r"test_batch cannot be read: it holds posix\.mkdir"):
        load("cifar10", tmp_path, **counts)


def test_cifar_labels_out_of_range_are_named(tmp_path: Path) -> None:
    counts = write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(cifar_batch(11, 11))
    with pytest.raises(DataError, match=r"test_batch .*labels outside 0…9"):
        load("cifar10", tmp_path, **counts)


@pytest.mark.parametrize("workers", [0, 1])
def test_truncated_jpeg_is_named(workers: int, tmp_path: Path) -> None:
    counts = write_imagenet(tmp_path)
    torn = tmp_path / "imagenet" / "val" / "n00000005" / "val_5.JPEG"
    content = torn.read_bytes()
    torn.unlink()
    torn.write_bytes(content[: len(content) // 2])
    options = data.source_type("imagenet")(image_size=32, workers=workers, **counts)
    subject = make_loader(
        data.load(options, DataPlace(tmp_path, 4)).test,
        batch_size=8,
        shuffle=False,
        seed=0,
        drop_last=False,
        options=options,
        device=torch.device("cpu"),
    )
    with pytest.raises(DataError) as raised:
        next(iter(subject))
    message = str(raised.value)
    assert message.startswith(f"data set 'imagenet': {torn} cannot be read: image file is truncated")
    assert "Traceback" not in message


def test_a_missing_class_folder_is_named(tmp_path: Path) -> None:
    counts = write_imagenet(tmp_path)
    for split, message in (
        ("val", r"imagenet/val cannot be read: it has no class n00000007"),
        ("train", r"imagenet/train cannot be read: it has 999 class folders instead of 1000"),
    ):
        shutil.rmtree(tmp_path / "imagenet" / split / "n00000007")
        with pytest.raises(DataError, match=message):
            load("imagenet", tmp_path, **counts)
