"""The embedded digits: 1,797 real handwritten 8×8 digits that come with this package.

The test part of the optical recognition of handwritten digits data set (Alpaydin and Kaynak 1998), as
scikit-learn ships it; sltt_bench/data/files/README.md says under which licence.
"""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from sltt_bench.common.strict import Count
from sltt_bench.data.source import DataPlace, DataSource, Samples, Shape

if TYPE_CHECKING:
    from torch import Tensor

FILE = Path(__file__).parent / "files" / "digits.npz"
SAMPLES = (1437, 360)
"""Digits that train, and that test."""


class DigitsSource(DataSource):
    """What the data sets share that are made from the digits."""

    split: Literal["stratified-80-20"] = "stratified-80-20"
    """80 % training, 20 % test, the same share of every class, drawn once with seed 0."""
    train_samples: Count = SAMPLES[0]
    test_samples: Count = SAMPLES[1]

    classes: ClassVar[int] = 10

    def check_files(self, data_dir: Path) -> None:
        self.check_counts(*SAMPLES)

    def labels(self, data_dir: Path, split: str) -> list[int]:
        labels: list[int] = digits_split(split)[1].tolist()
        return labels

    def samples_of(self, split: str, place: DataPlace) -> Samples:
        import torch
        from torch.utils.data import TensorDataset

        images, labels = map(torch.from_numpy, digits_split(split))
        return TensorDataset(self.shown(images), labels)

    def preprocess(self, x: "Tensor") -> "Tensor":
        """Pixel values 0…16 → 0…1."""
        return x.float() / 16

    def shown(self, images: "Tensor") -> "Tensor":
        """Images [samples, 8, 8] in uint8, 0…16 → what samples are: of one channel."""
        return images.unsqueeze(1)


class Digits(DigitsSource):
    """Real handwritten 8×8 digits (UCI, as in scikit-learn), pixel values 0…16 scaled to 0…1."""

    name: Literal["digits"] = "digits"

    sample_shape: ClassVar[Shape] = (1, 8, 8)


def digits_split(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [samples, 8, 8] in uint8, 0…16, and labels [samples] in int64 of "train" or "test"."""
    with np.load(FILE) as file:
        chosen = file["in_test_split"] == (split == "test")
        return file["images"][chosen], file["labels"][chosen].astype(np.int64)
