"""Batches of a split in an order that is a pure function of (seed, epoch).

A sample and its augmentation are a pure function of (seed, epoch, index): they do not depend on the
number of workers or threads, on what a training method or dropout draws, or on where a run was resumed; nor
does loading disturb the generators that those draw from.
"""

import multiprocessing
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset, default_collate

from sltt_bench.data.errors import DataError
from sltt_bench.data.source import DataSource, Samples
from sltt_bench.data.synthetic import SyntheticDataset

Batch = tuple[Tensor, Tensor]
Key = tuple[int, int]
"""(epoch, index of the sample in its split)."""
Shard = tuple[int, int]
"""(number of a process, number of processes) that share every batch."""
WHOLE: Shard = (0, 1)

ORDER, AUGMENTATION = 0, 1
"""What a seed is for, so that the two never share random numbers."""


@runtime_checkable
class InMemory(Protocol):
    """A data set without augmentation that can give a whole batch at once."""

    def batch(self, indices: Tensor) -> Batch:
        """x [batch, ...] and labels [batch] of the samples at `indices` [batch]."""


class Loader:
    """What the engine iterates over: (x, labels) batches of one split."""

    def __init__(self, batches: Callable[[], Iterator[Batch]], keys: "BatchOrder") -> None:
        self._batches = batches
        self._keys = keys
        self.samples = keys.samples
        """Samples of an epoch, those of all processes."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the augmentation of the next iteration."""
        self._keys.epoch = epoch

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[Batch]:
        return self._batches()


def make_loader(
    dataset: Samples,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int,
    drop_last: bool,
    options: DataSource,
    device: torch.device,
    shard: Shard = WHOLE,
) -> Loader:
    """The loader of one split, with the workers, prefetching and limit that `options` ask for.

    `shard` is the part of every batch that this process gets. A data set that is in memory and not augmented is batched by indexing, in this process; the
    order is the same either way. Raises DataError (from its iterator) for a sample that cannot be
    read, and if `drop_last` leaves nothing.
    """
    chosen = evenly_spread(labels_of(dataset), options.limit)
    if drop_last and len(chosen) < batch_size:
        raise DataError(
            f"data set {options.name!r}: a batch has {batch_size} samples, but the split has only {len(chosen)} "
            "and train.drop_last leaves out smaller batches; lower train.batch_size"
        )
    keys = BatchOrder(chosen, batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last, shard=shard)
    pin = options.pin_memory and device.type == "cuda"
    if pin and isinstance(dataset, SyntheticDataset):
        dataset.pin_memory()
    whole_batches = _whole_batches(dataset)
    if whole_batches is not None:
        return Loader(partial(_by_indexing, whole_batches, keys, pin), keys)
    workers: DataLoader[Any] = DataLoader(
        _SeededByKey(dataset, seed),
        batch_sampler=keys,
        num_workers=options.workers,
        collate_fn=_collate,
        pin_memory=pin,
        persistent_workers=options.workers > 0,
        prefetch_factor=options.prefetch_factor if options.workers else None,
        # DataLoader draws a number for each iteration; from the default generator it would
        # change what dropout draws.
        generator=torch.Generator(),
    )
    return Loader(partial(_by_workers, workers), keys)


class BatchOrder(Sampler[list[Key]]):
    """The keys of one epoch batch by batch, and of every batch the part of one process.

    The chosen samples are shuffled anew for each epoch if asked. The batches are the same for any number of
    processes, which divide them without repetition.
    """

    def __init__(
        self,
        chosen: Tensor,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        drop_last: bool,
        shard: Shard = WHOLE,
    ) -> None:
        whole, rest = divmod(len(chosen), batch_size)
        self.epoch = 0
        self.samples = whole * batch_size if drop_last else len(chosen)
        self._chosen = chosen
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._seed = seed
        self._length = whole + bool(rest and not drop_last)
        self._shard = shard

    def __len__(self) -> int:
        return self._length

    def indices(self) -> Iterator[Tensor]:
        """The indices of each batch's part [about batch / processes]; a part without any (of a last batch of fewer
        samples than processes) is left out.
        """
        order = self._chosen
        if self._shuffle:
            generator = torch.Generator().manual_seed(derived_seed(self._seed, self.epoch, ORDER))
            order = order[torch.randperm(len(order), generator=generator)]
        part, parts = self._shard
        for batch in torch.split(order[: self.samples], self._batch_size):
            if len(indices := torch.tensor_split(batch, parts)[part]):
                yield indices

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = self.epoch
        return ([(epoch, index) for index in indices.tolist()] for indices in self.indices())


def derived_seed(*parts: int) -> int:
    """A seed that is a pure function of some integers, and of no other ones in practice.

    torch's generator looks at 32 of its 64 bits, so a few samples share their draws by chance: of ImageNet's 1.28 million
    in an epoch about 190 pairs.
    """
    return int(np.random.SeedSequence([part % 2**64 for part in parts]).generate_state(1, np.uint64)[0])


# Choosing samples -------------------------------------------------------------------------------


def labels_of(dataset: Samples, *, needed: bool = False) -> Tensor:
    """The label of every sample [samples], without loading any; zeros if the data set does not say.

    Raises DataError in that case if they are `needed`.
    """
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[1]
    labels = getattr(dataset, "labels", None)
    if labels is None and needed:
        raise DataError(
            f"{type(dataset).__name__} has no attribute `labels`, so that its classes cannot be divided alike"
        )
    if labels is None:
        return torch.zeros(len(dataset), dtype=torch.int64)
    return torch.as_tensor(labels)


def largest_class_share(dataset: Samples, limit: int | None) -> float | None:
    """The share of the samples, of `limit` of them if that is given, that the largest class has: what always naming it
    reaches. None if the data set does not say its labels."""
    try:
        labels = labels_of(dataset, needed=True)
    except DataError:
        return None
    chosen = labels[evenly_spread(labels, limit)].tolist()
    return max(Counter(chosen).values()) / len(chosen)


def evenly_spread(labels: Tensor, limit: int | None) -> Tensor:
    """Indices of `limit` samples (None: all), ascending, spread evenly over the classes and the split.

    Every class has a sample if there are at least as many as classes and these are of equal size.
    """
    samples = len(labels)
    if limit is None or limit >= samples:
        return torch.arange(samples)
    by_class = torch.argsort(labels, stable=True)
    places = (torch.arange(limit) * samples + samples // 2) // limit
    return by_class[places].sort().values


# What a split holds -----------------------------------------------------------------------------

CONTENT_BYTES = 64 * 2**20
"""So much of a split that is in memory is looked at, evenly spread: all of it, if it is no larger."""
CONTENT_FILES = 32
"""So many samples of any other split, each of which is read: an image of ImageNet takes 8 ms."""
_PIECE_BYTES = 2**20


def content(samples: Samples, options: DataSource) -> Iterator[Tensor]:
    """x of some samples of a split [n, ...], evenly spread over those that `options.limit` leaves: what tells data of
    equal labels apart.

    They are the same for any seed, device, batch size and number of workers. A worker reads them if workers read the
    batches, so that what such a split opens in passing is not shared with those. Raises DataError.
    """
    labels = labels_of(samples)
    chosen = evenly_spread(labels, options.limit)
    whole_batches = _whole_batches(samples)
    if whole_batches is None:
        spread = chosen[evenly_spread(labels[chosen], CONTENT_FILES)]
        reader: DataLoader[Any] = DataLoader(
            _SeededByKey(samples, 0),
            batch_sampler=[[(0, index)] for index in spread.tolist()],
            num_workers=min(options.workers, 1),
            collate_fn=_collate,
            generator=torch.Generator(),
        )
        yield from (x for x, _ in _by_workers(reader))
    elif len(chosen):
        each = max(1, whole_batches(chosen[:1])[0].nbytes)
        spread = chosen[evenly_spread(labels[chosen], max(1, CONTENT_BYTES // each))]
        pieces = torch.split(spread, max(1, _PIECE_BYTES // each))
        yield from (whole_batches(piece)[0] for piece in pieces)


# Batches by indexing ----------------------------------------------------------------------------


def _whole_batches(dataset: Samples) -> Callable[[Tensor], Batch] | None:
    if isinstance(dataset, TensorDataset):
        x, labels = dataset.tensors
        return lambda indices: (x[indices], labels[indices])
    return dataset.batch if isinstance(dataset, InMemory) else None


def _by_indexing(batch: Callable[[Tensor], Batch], keys: BatchOrder, pin: bool) -> Iterator[Batch]:
    for indices in keys.indices():
        x, labels = batch(indices)
        yield (_pinned(x), _pinned(labels)) if pin else (x, labels)


def _pinned(tensor: Tensor) -> Tensor:
    """In page-locked memory, from which a GPU copies while this process goes on; a copy unless it is there."""
    return tensor if tensor.is_pinned() else tensor.pin_memory()


# Batches by workers -----------------------------------------------------------------------------


_ENDING_S = 1.0
"""Seconds for the system to end a process whose connections it has closed."""


def _by_workers(batches: DataLoader[Any]) -> Iterator[Batch]:
    workers = multiprocessing.active_children()  # those of an earlier epoch
    try:
        loaded = iter(batches)
        workers = multiprocessing.active_children()
        for batch in loaded:
            if isinstance(batch, _Unreadable):
                raise batch.error
            x, labels = batch
            yield x, labels
    except (OSError, EOFError):
        # Of a worker that is killed as it hands over a batch, first a connection is lost. Then it has ended, and torch
        # raises (in its handler of SIGCHLD) which signal it was: that of a system without memory, for example.
        time.sleep(_ENDING_S)
        raise
    except RuntimeError as error:
        if (text := _signal_of(error, workers)) is not None:
            raise RuntimeError(text) from None
        raise


def _signal_of(error: RuntimeError, workers: Sequence[BaseProcess]) -> str | None:
    """What torch would have said of the signal that ended a worker, where it says only that one has ended.

    It looks for such workers in two ways at once, and what the slower one of them would have said is lost.
    """
    found = re.search(r"DataLoader worker \(pid\(s\) ([\d, ]+)\) exited unexpectedly", str(error))
    pids = found[1].split(", ") if found else []
    for worker in workers:
        if str(worker.pid) in pids and (code := worker.exitcode or 0) < 0:
            return f"DataLoader worker (pid {worker.pid}) is killed by signal: {signal.strsignal(-code)}. "
    return None


@dataclass(frozen=True)
class _Unreadable:
    """A sample that raised DataError: an exception would come out of a worker wrapped in its traceback."""

    error: DataError


class _SeededByKey(Dataset[Any]):
    """Gives the sample at (epoch, index) with its own random numbers; after one that cannot be read no other."""

    def __init__(self, dataset: Samples, seed: int) -> None:
        self._dataset = dataset
        self._seed = seed
        self._unreadable: _Unreadable | None = None

    def __getitem__(self, key: Key) -> tuple[Tensor, int] | _Unreadable:
        if (
            self._unreadable is not None
        ):  # its batch is lost, and each other sample of a file may take as long to fail
            return self._unreadable
        epoch, index = key
        before = torch.get_rng_state()
        # Only the CPU's generator: torch.manual_seed would also reset the GPU's, dropout's own.
        torch.default_generator.manual_seed(derived_seed(self._seed, epoch, AUGMENTATION, index))
        try:
            with _one_thread():
                sample: tuple[Tensor, int] = self._dataset[index]
            return sample
        except DataError as error:
            self._unreadable = _Unreadable(error)
            return self._unreadable
        finally:
            torch.set_rng_state(before)


@contextmanager
def _one_thread() -> Iterator[None]:
    """As loader processes compute, so that a sample is the same however many threads this process has: the last digit of
    a matrix product, so of a spectrogram's mel energies, depends on how many share it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _collate(samples: list[Any]) -> Any:
    for sample in samples:
        if isinstance(sample, _Unreadable):
            return sample
    return default_collate(samples)
