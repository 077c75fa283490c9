"""MNIST and Fashion-MNIST: IDX files in the layout that torchvision makes, `<class>/raw/`."""

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import TensorDataset
from torchvision.datasets import MNIST, FashionMNIST
from torchvision.datasets.mnist import read_image_file, read_label_file

from sltt_bench.data import DataBundle, DataPlace, absent, damaged
from sltt_bench.data.normalise import Normalise
from sltt_bench.data.options import FashionMNISTOptions, MNISTOptions

SOURCES: dict[str, type[MNIST]] = {"mnist": MNIST, "fashion-mnist": FashionMNIST}
NORMALISATION: dict[str, tuple[float, float]] = {
    "mnist": (0.1307, 0.3081),
    "fashion-mnist": (0.2860, 0.3530),
}
"""Mean and standard deviation of the training images' pixels in 0…1."""
FILES = {"train": "train", "test": "t10k"}
"""How the files of a split begin."""


def load(options: MNISTOptions | FashionMNISTOptions, place: DataPlace) -> DataBundle:
    """Both splits as images [1, 28, 28] in uint8. Raises DataError."""
    mean, std = NORMALISATION[options.name]
    return DataBundle(
        read_split(options, place.data_dir, "train"),
        read_split(options, place.data_dir, "test"),
        Normalise([mean], [std]),
    )


def folder(name: str, data_dir: Path) -> Path:
    """Where the IDX files are."""
    return data_dir / SOURCES[name].__name__ / "raw"


def read_split(options: MNISTOptions | FashionMNISTOptions, data_dir: Path, split: str) -> TensorDataset:
    """Images and labels of "train" or "test". Raises DataError, which names the file."""
    raw = folder(options.name, data_dir)
    images_file = raw / f"{FILES[split]}-images-idx3-ubyte"
    labels_file = raw / f"{FILES[split]}-labels-idx1-ubyte"
    images = _read(options.name, images_file, data_dir).unsqueeze(1)
    labels = _read(options.name, labels_file, data_dir)
    if images.shape[1:] != options.sample_shape:
        raise damaged(options.name, images_file, f"its images are {tuple(images.shape[1:])}")
    if len(images) != len(labels):
        reason = f"it has {len(labels)} labels, but {images_file.name} has {len(images)} images"
        raise damaged(options.name, labels_file, reason)
    if len(labels) and int(labels.max()) >= options.classes:
        raise damaged(options.name, labels_file, f"it has the label {int(labels.max())}")
    return TensorDataset(images, labels)


def _read(name: str, file: Path, data_dir: Path) -> Tensor:
    if not file.is_file():
        raise absent(name, file, data_dir)
    read = read_image_file if "images" in file.name else read_label_file
    try:
        result: Tensor = read(str(file))
    except (ValueError, TypeError, AssertionError, RuntimeError, IndexError, KeyError, OSError) as error:
        raise damaged(name, file, f"not a whole IDX file ({error or type(error).__name__})") from None
    return result.to(torch.int64 if read is read_label_file else torch.uint8)
