"""The validation split: some of the training samples, the same share of every class, held back for choices.

Test data choose nothing: whoever compares settings, or epochs, does it on these samples. Which ones they are
is named by a seed, `numpy.random.RandomState([seed, label])`, whose numbers NumPy has frozen.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from sltt_bench.common.format import counted
from sltt_bench.common.strict import Strict
from sltt_bench.data.errors import DataError
from sltt_bench.data.source import DataBundle, Found, Samples, Seed

if TYPE_CHECKING:
    from torch import Tensor


class ValidationSplit(Strict):
    """Training samples that are held back, and that choices are made on."""

    split: Literal["stratified"] = "stratified"
    """stratified: the same share of every class."""
    share: Annotated[float, Field(gt=0, le=0.5)] = 0.2
    """Of the training samples."""
    seed: Seed = 0
    """Names which samples those are; training draws from other seeds."""
    samples: Found
    """Expected size; another size is an error. 0: as many as the share gives."""

    @property
    def name(self) -> str:
        """What results call it: "stratified 0.2, seed 0"."""
        return f"{self.split} {self.share:g}, seed {self.seed}"

    def held_back(self, samples: int) -> int:
        """How many of so many training samples are held back."""
        return math.floor(self.share * samples + 0.5)

    def fault(self, train_samples: int) -> str | None:
        """Why a training split of this size does not have the expected count, or None; 0: size unknown."""
        count = self.held_back(train_samples)
        if not train_samples or (count and self.samples in (0, count)):
            return None
        if not count:
            return f"validation.share is {self.share:g}, which holds back none of {train_samples} training samples; raise it"
        return (
            f"validation.samples is {self.samples}, but {self.share:g} of {train_samples} training samples "
            f"are {count}; set that, or 0 for as many as the share gives"
        )


def hold_back(bundle: DataBundle, split: ValidationSplit, limit: int | None = None) -> DataBundle:
    """The bundle with its training samples divided into training and validation.

    `limit` is that of the data's options: so many samples are divided, of those that it would choose. What is
    held back is shown as test samples are, without augmentation. Raises DataError where the training samples
    do not say their labels or a class is too small to be divided.
    """
    import torch

    from sltt_bench.data.loading import evenly_spread, labels_of

    labels = labels_of(bundle.train, needed=True)
    chosen = evenly_spread(labels, limit)
    held = chosen[torch.from_numpy(stratified(labels[chosen].tolist(), split))]
    is_held = torch.zeros(len(labels), dtype=torch.bool)
    is_held[held] = True
    return replace(
        bundle,
        train=_part(bundle.train, chosen[~is_held[chosen]]),
        validation=_part(bundle.plain_train or bundle.train, held),
    )


def stratified(labels: Sequence[int], split: ValidationSplit) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Which of the samples with these labels are held back: their places, ascending.

    Each class gives its share, rounded down or up so that all together give the share of all (largest remainders
    first); none is given away whole. Raises DataError where that cannot be done.
    """
    label = np.asarray(labels)
    classes, sizes = np.unique(label, return_counts=True)
    quotas = split.share * sizes
    counts = np.floor(quotas).astype(int)
    missing = split.held_back(len(label)) - counts.sum()
    order = np.argsort(counts - quotas, kind="stable")
    raised = [place for place in order if counts[place] + 1 < sizes[place]][:missing]
    if len(raised) < missing or not counts.sum() + missing:
        raise DataError(
            f"the validation split cannot have the same share, {split.share:g}, of every class: there are "
            f"{counted(len(label), 'training sample')} of {counted(len(classes), 'class')}, the smallest with {sizes.min()}; "
            "raise validation.share or data.limit"
        )
    counts[raised] += 1
    held = [
        np.flatnonzero(label == value)[
            np.random.RandomState([split.seed, int(value)]).permutation(size)[:count]
        ]
        for value, size, count in zip(classes, sizes, counts, strict=True)
    ]
    places: np.ndarray[Any, np.dtype[np.int64]] = np.sort(np.concatenate(held))
    return places


def _part(samples: Samples, indices: "Tensor") -> Samples:
    """Some samples of a split; in memory as it was, if it was."""
    from torch.utils.data import TensorDataset

    from sltt_bench.data.loading import InMemory

    if isinstance(samples, TensorDataset):
        return TensorDataset(*(tensor[indices] for tensor in samples.tensors))
    return (_PartInMemory if isinstance(samples, InMemory) else _Part)(samples, indices)


class _Part:
    """The samples of another split at some indices."""

    def __init__(self, samples: Any, indices: "Tensor") -> None:
        from sltt_bench.data.loading import labels_of

        self._samples, self._indices = samples, indices
        self.labels = labels_of(samples)[indices]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Any:
        return self._samples[int(self._indices[index])]


class _PartInMemory(_Part):
    """The same of samples that come a batch at a time."""

    def batch(self, indices: "Tensor") -> "tuple[Tensor, Tensor]":
        x, labels = self._samples.batch(self._indices[indices])
        return x, labels
