"""Random data of a data set's shapes: memory and time stay meaningful, accuracy does not."""

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sltt_bench.data.source import DataBundle, DataSource

SEED = 0
POOL_BYTES = 64 * 2**20
"""Memory of the samples that are drawn; an epoch shows them again and again."""
TEST_SHARE = 4
"""The training split is at most so many times as large as the test split."""


class SyntheticDataset(Dataset[tuple[Tensor, int]]):
    """A pool of random bytes, as images and event frames are, which `samples` indices share.

    Drawn once, so that a loader spends its time on what it does with real data in memory.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, samples: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        bytes_each = int(torch.Size(shape).numel())
        self._pool_size = max(1, min(samples, POOL_BYTES // bytes_each))
        self._x = torch.randint(256, (self._pool_size, *shape), dtype=torch.uint8, generator=generator)
        self.labels = torch.randint(classes, (samples,), generator=generator)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._x[index % self._pool_size], int(self.labels[index])

    def pin_memory(self) -> None:
        """Once for all batches, which are views: nothing is copied on the host while a GPU waits.

        The copy to the GPU is enqueued before the iteration that needs it and takes a share of its time
        that is small (38 MB of images against 256 samples' passes); fetching it earlier would put a second
        batch into every figure of memory.
        """
        self._x, self.labels = self._x.pin_memory(), self.labels.pin_memory()

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """x [batch, ...] in uint8 and labels [batch] at `indices` [batch].

        Where the pool is large enough, x is a stretch of it that the first index chooses: a view,
        so that not even copying takes time. It is random either way.
        """
        spare = self._pool_size - len(indices)
        if spare < 0:
            return self._x[indices % self._pool_size], self.labels[indices]
        start = int(indices[0]) % (spare + 1)
        return self._x[start : start + len(indices)], self.labels[indices]


def synthetic_bundle(options: DataSource, timesteps: int) -> DataBundle:
    """Both splits at their expected sizes, but no more than `synthetic_samples`; nothing is read."""
    steps = (timesteps,) if options.temporal else ()
    shape = (*steps, *options.sample_shape)
    train_samples = min(options.train_samples, options.synthetic_samples)
    test_samples = min(options.test_samples, max(1, train_samples // TEST_SHARE))
    return DataBundle(
        SyntheticDataset(shape, options.classes, train_samples, SEED),
        SyntheticDataset(shape, options.classes, test_samples, SEED + 1),
        preprocess,
    )


def preprocess(x: Tensor) -> Tensor:
    """Bytes → mean 0 and variance 1, as normalised images have."""
    return (x.float() - 127.5) / 73.9
