"""Sequential digits: scikit-learn's real 8×8 digits, shown one row of pixels a step, from the top."""

import torch
from torch.utils.data import TensorDataset

from sltt_bench.data import DataBundle, DataPlace
from sltt_bench.data.digits import images_and_labels, preprocess, split_indices
from sltt_bench.data.options import SequentialDigitsOptions


def load(options: SequentialDigitsOptions, place: DataPlace) -> DataBundle:
    """Both splits, those of `digits`, as sequences [8, 8, 1, 1] (rows, pixels of a row) in uint8, 0…16."""
    images, labels = images_and_labels()
    train, test = split_indices(labels)
    x = torch.from_numpy(images)[..., None, None]
    y = torch.from_numpy(labels)
    return DataBundle(TensorDataset(x[train], y[train]), TensorDataset(x[test], y[test]), preprocess)
