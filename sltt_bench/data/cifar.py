"""CIFAR-10 and CIFAR-100: the published Python batches, and the paper's augmentation.

Training images are shifted (crop 32 with 4 pixels of padding), erased in part and flipped, in the
order of the paper's code. The batches are read without torchvision's checksums, which `data verify`
applies: a count and a shape say what training needs to know. They are pickles, so only what NumPy
arrays are made of is unpickled.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.transforms import v2

from sltt_bench.data import DataBundle, DataPlace, absent, damaged
from sltt_bench.data.normalise import Normalise
from sltt_bench.data.options import CIFAR10Options, CIFAR100Options

SOURCES: dict[str, type[CIFAR10]] = {"cifar10": CIFAR10, "cifar100": CIFAR100}
NORMALISATION = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}
"""Mean and standard deviation of each channel, as in the paper's code."""
LABEL_KEYS = {"cifar10": "labels", "cifar100": "fine_labels"}


def load(options: CIFAR10Options | CIFAR100Options, place: DataPlace) -> DataBundle:
    """Both splits as images [3, 32, 32] in uint8. Raises DataError."""
    train, test = (read_split(options, place.data_dir, split) for split in ("train", "test"))
    return DataBundle(Augmented(*train), TensorDataset(*test), Normalise(*NORMALISATION[options.name]))


def files(name: str, data_dir: Path, split: str) -> list[tuple[Path, str]]:
    """The batch files of "train" or "test", each with its published MD5."""
    source = SOURCES[name]
    listed = source.train_list if split == "train" else source.test_list
    return [(data_dir / source.base_folder / file, md5) for file, md5 in listed]


def read_split(
    options: CIFAR10Options | CIFAR100Options, data_dir: Path, split: str
) -> tuple[Tensor, Tensor]:
    """Images [samples, 3, 32, 32] in uint8 and labels [samples]. Raises DataError, which names the file."""
    batches = [_read_batch(options, file, data_dir) for file, _ in files(options.name, data_dir, split)]
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


# Reading ----------------------------------------------------------------------------------------


class _ArraysOnly(pickle.Unpickler):
    """Refuses every object that a NumPy array is not made of: a pickle can hold any program."""

    ALLOWED = frozenset(
        {
            ("numpy", "dtype"),
            ("numpy", "ndarray"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which no CIFAR batch does")
        return super().find_class(module, name)


def _read_batch(
    options: CIFAR10Options | CIFAR100Options, file: Path, data_dir: Path
) -> tuple[Tensor, Tensor]:
    if not file.is_file():
        raise absent(options.name, file, data_dir)
    try:
        batch = _ArraysOnly(io.BytesIO(file.read_bytes()), encoding="latin1").load()
        images = np.asarray(batch["data"], dtype=np.uint8).reshape(-1, *options.sample_shape)
        labels = np.asarray(batch[LABEL_KEYS[options.name]], dtype=np.int64)
    # A pickle that is cut short or altered fails in whatever way its bytes happen to spell.
    except Exception as error:
        raise damaged(options.name, file, error or type(error).__name__) from None
    if len(images) != len(labels):
        raise damaged(options.name, file, f"it has {len(images)} images, but {len(labels)} labels")
    if len(labels) and not 0 <= labels.min() <= labels.max() < options.classes:
        raise damaged(options.name, file, f"it has labels outside 0…{options.classes - 1}")
    return torch.from_numpy(images.copy()), torch.from_numpy(labels)


# Augmentation -----------------------------------------------------------------------------------


class Augmented(Dataset[tuple[Tensor, int]]):
    """Training images, each changed anew whenever it is asked for."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels
        self._transform = v2.Compose([v2.RandomCrop(32, padding=4), GreyErasing(), v2.RandomHorizontalFlip()])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(self.images[index]), int(self.labels[index])


class GreyErasing:
    """Fills a random rectangle of an image [C, H, W] in uint8 with one random shade of grey.

    As the `Cutout` of torchtoolbox that the paper's code uses: with probability 1/2; its area is
    uniform in 2–40 % of the image, its ratio of height to width uniform in 0.4–2.5, the shade
    uniform in 0…254. torchvision's RandomErasing draws the logarithm of the ratio and fills with
    black or noise instead.
    """

    PROBABILITY = 0.5
    AREA = (0.02, 0.4)
    RATIO = (0.4, 2.5)

    def __call__(self, image: Tensor) -> Tensor:
        if torch.rand(()) >= self.PROBABILITY:
            return image
        image_height, image_width = image.shape[-2:]
        area = _uniform(*self.AREA) * image_height * image_width
        ratio = _uniform(*self.RATIO)
        height = min(int((area * ratio) ** 0.5), image_height - 1)
        width = min(int((area / ratio) ** 0.5), image_width - 1)
        top = int(torch.randint(image_height - height, ()))
        left = int(torch.randint(image_width - width, ()))
        erased = image.clone()
        erased[..., top : top + height, left : left + width] = torch.randint(255, (), dtype=torch.uint8)
        return erased


def _uniform(low: float, high: float) -> float:
    return float(torch.empty(()).uniform_(low, high))
