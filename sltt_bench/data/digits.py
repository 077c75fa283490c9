"""scikit-learn's bundled handwritten digits: 1,797 real 8×8 images, no download."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from sltt_bench.data import DataBundle, DataPlace
from sltt_bench.data.options import DigitsOptions

SPLIT_SEED = 0
TEST_SHARE = 0.2


def load(options: DigitsOptions, place: DataPlace) -> DataBundle:
    """Both splits as images [1, 8, 8] in uint8, 0…16."""
    images, labels = images_and_labels()
    train, test = split_indices(labels)
    x = torch.from_numpy(images).unsqueeze(1)
    y = torch.from_numpy(labels)
    return DataBundle(TensorDataset(x[train], y[train]), TensorDataset(x[test], y[test]), preprocess)


def images_and_labels() -> tuple[np.ndarray, np.ndarray]:
    """Images [1797, 8, 8] in uint8, 0…16, and labels [1797] in int64."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images.astype(np.uint8), digits.target.astype(np.int64)


def split_indices(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The stratified 80/20 split of all digits data sets: (train, test) indices."""
    from sklearn.model_selection import train_test_split

    everything = np.arange(len(labels))
    train, test = train_test_split(everything, test_size=TEST_SHARE, random_state=SPLIT_SEED, stratify=labels)
    return np.sort(train), np.sort(test)


def preprocess(x: Tensor) -> Tensor:
    """Pixel values 0…16 → 0…1."""
    return x.float() / 16
