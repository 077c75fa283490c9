"""Order and augmentation are functions of seed, epoch and sample; synthetic data need no files."""

import errno
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset
from torch.utils.data._utils import signal_handling

from sltt_bench import data
from sltt_bench.data import DataError, DataPlace, DataSource, loading, names, source_type
from sltt_bench.data.digits import Digits
from sltt_bench.data.dvs_gesture import DVSGesture
from sltt_bench.data.imagenet import ImageNet
from sltt_bench.data.loading import BatchOrder, Loader, content, derived_seed, evenly_spread, make_loader
from sltt_bench.data.synthetic import POOL_BYTES, synthetic_bundle
from sltt_bench.planning.recipe import load_recipe

CPU = torch.device("cpu")
SAMPLES = 50


class Noisy(Dataset[tuple[Tensor, int]]):
    """Gives its index and two random numbers; sample 13 can be made unreadable."""

    def __init__(self, unreadable: bool = False) -> None:
        self.unreadable = unreadable

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self.unreadable and index == 13:
            raise DataError("picture 13 is torn")
        return torch.cat([torch.tensor([float(index)]), torch.rand(2)]), index


def loader(
    dataset: Dataset[tuple[Tensor, int]] | None = None,
    *,
    batch_size: int = 8,
    shuffle: bool = True,
    seed: int = 2022,
    drop_last: bool = False,
    **options: int,
) -> Loader:
    return make_loader(
        dataset or Noisy(),
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
        drop_last=drop_last,
        options=Digits(**options),
        device=CPU,
    )


def epoch(subject: Loader, number: int) -> tuple[Tensor, Tensor]:
    subject.set_epoch(number)
    batches = list(subject)
    return torch.cat([x for x, _ in batches]), torch.cat([labels for _, labels in batches])


# Order and augmentation -------------------------------------------------------------------------


def test_order_and_augmentation_are_the_same_for_no_and_two_workers() -> None:
    alone, helped = loader(workers=0), loader(workers=2)
    for number in (1, 2, 2, 1):
        x_alone, labels_alone = epoch(alone, number)
        x_helped, labels_helped = epoch(helped, number)
        assert torch.equal(x_alone, x_helped)
        assert torch.equal(labels_alone, labels_helped)


def test_an_abandoned_epoch_does_not_change_the_next() -> None:
    subject = loader(workers=2)
    expected = epoch(loader(), 2)[0]
    next(iter(subject))
    assert torch.equal(epoch(subject, 2)[0], expected)


def test_every_epoch_shows_every_sample_once_in_another_order_with_other_augmentation() -> None:
    subject = loader()
    (first, first_labels), (second, second_labels) = epoch(subject, 1), epoch(subject, 2)
    assert first_labels.tolist() != second_labels.tolist()
    assert sorted(first_labels.tolist()) == sorted(second_labels.tolist()) == list(range(SAMPLES))
    by_index = first[first_labels.argsort()], second[second_labels.argsort()]
    assert (by_index[0][:, 1:] != by_index[1][:, 1:]).all()


def test_another_seed_gives_another_order() -> None:
    assert epoch(loader(seed=1), 1)[1].tolist() != epoch(loader(seed=2), 1)[1].tolist()


def test_augmentation_does_not_depend_on_the_order_or_the_batch_size() -> None:
    x, labels = epoch(loader(batch_size=8), 3)
    x_plain, _ = epoch(loader(batch_size=50, shuffle=False), 3)
    assert torch.equal(x[labels.argsort()], x_plain)


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_the_global_generator_alone(workers: int) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    epoch(loader(workers=workers), 1)
    assert torch.equal(torch.rand(3), expected)


def test_augmentation_does_not_depend_on_the_global_generator() -> None:
    torch.manual_seed(1)
    first = epoch(loader(), 1)[0]
    torch.manual_seed(2)
    assert torch.equal(first, epoch(loader(), 1)[0])


def test_order_is_the_same_whether_batches_are_indexed_or_collated() -> None:
    x = torch.arange(SAMPLES)
    indexed = epoch(loader(TensorDataset(x, x)), 4)
    collated = epoch(loader(Noisy()), 4)
    assert indexed[1].tolist() == collated[1].tolist()
    assert torch.equal(indexed[0], indexed[1])


def test_without_shuffling_the_order_is_the_splits() -> None:
    assert epoch(loader(shuffle=False), 7)[1].tolist() == list(range(SAMPLES))


def test_seeds_of_order_and_augmentation_differ_for_all_small_integers() -> None:
    seeds = [derived_seed(a, b, c, d) for a in range(4) for b in range(4) for c in range(2) for d in range(9)]
    assert len(set(seeds)) == len(seeds)
    assert derived_seed(-1) != derived_seed(1)


# Size -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_memory", [True, False])
def test_drop_last_leaves_out_the_smaller_batch(in_memory: bool) -> None:
    x = torch.arange(SAMPLES)
    dataset = TensorDataset(x, x) if in_memory else Noisy()
    whole, dropped = loader(dataset), loader(dataset, drop_last=True)
    assert (len(whole), whole.samples) == (7, 50)
    assert (len(dropped), dropped.samples) == (6, 48)
    assert [len(labels) for _, labels in whole] == [8, 8, 8, 8, 8, 8, 2]
    assert [len(labels) for _, labels in dropped] == [8, 8, 8, 8, 8, 8]


def test_drop_last_with_a_batch_larger_than_the_split_is_an_error() -> None:
    with pytest.raises(DataError, match=r"51 samples.*only 50.*train\.batch_size"):
        loader(batch_size=51, drop_last=True)


def test_limit_keeps_every_class_where_the_split_is_sorted_by_class() -> None:
    labels = torch.arange(10).repeat_interleave(100)
    chosen = evenly_spread(labels, 20)
    assert Counter(labels[chosen].tolist()) == dict.fromkeys(range(10), 2)
    assert chosen.tolist() == sorted(set(chosen.tolist()))


def test_limit_keeps_every_class_where_the_split_is_mixed() -> None:
    labels = torch.arange(1000) * 7 % 10
    assert Counter(labels[evenly_spread(labels, 10)].tolist()) == dict.fromkeys(range(10), 1)


def test_limit_beyond_the_split_or_none_takes_all() -> None:
    labels = torch.zeros(5)
    assert evenly_spread(labels, 9).tolist() == evenly_spread(labels, None).tolist() == [0, 1, 2, 3, 4]


def test_limited_samples_keep_their_augmentation() -> None:
    x, labels = epoch(loader(shuffle=False), 1)
    x_limited, labels_limited = epoch(loader(shuffle=False, limit=10), 1)
    assert len(labels_limited) == 10
    assert torch.equal(x_limited, x[torch.isin(labels, labels_limited)])


def test_order_is_a_sampler_of_epoch_and_index() -> None:
    order = BatchOrder(torch.tensor([3, 5, 8]), 2, shuffle=False, seed=0, drop_last=False)
    order.epoch = 9
    assert list(order) == [[(9, 3), (9, 5)], [(9, 8)]]


# What a split holds -----------------------------------------------------------------------------


def test_all_of_a_small_split_in_memory_is_looked_at_and_of_a_large_one_every_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    samples = TensorDataset(torch.arange(SAMPLES, dtype=torch.float32), torch.arange(SAMPLES) // 5)
    monkeypatch.setattr(loading, "_PIECE_BYTES", 16)
    assert torch.cat(list(content(samples, Digits()))).tolist() == list(range(SAMPLES))
    assert torch.cat(list(content(samples, Digits(limit=10)))).tolist() == list(range(2, SAMPLES, 5))
    monkeypatch.setattr(loading, "CONTENT_BYTES", 4 * 10)
    assert torch.cat(list(content(samples, Digits()))).tolist() == list(range(2, SAMPLES, 5))


def test_so_many_samples_of_a_split_in_files_are_read_whatever_the_workers_and_the_generator() -> None:
    looked_at = []
    for workers in (0, 2):
        torch.manual_seed(workers)
        looked_at.append(torch.cat(list(content(Noisy(), Digits(workers=workers)))))
    assert torch.equal(*looked_at)
    assert len(looked_at[0]) == loading.CONTENT_FILES < SAMPLES
    with pytest.raises(DataError, match="picture 13 is torn"):
        list(content(Noisy(unreadable=True), Digits(workers=1)))


def test_what_a_split_opens_while_it_is_looked_at_is_not_shared_with_its_workers() -> None:
    opened = Opening()
    list(content(opened, Digits(workers=1)))
    assert opened.opened_by is None
    list(content(opened, Digits()))
    assert opened.opened_by == os.getpid()


class Opening(Noisy):
    """Keeps the process that first read it, as somebody's data set keeps the file that it opened."""

    opened_by: int | None = None

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.opened_by = self.opened_by or os.getpid()
        return super().__getitem__(index)


# Faults -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_sample_is_a_plain_error_also_out_of_a_worker(workers: int) -> None:
    with pytest.raises(DataError) as raised:
        epoch(loader(Noisy(unreadable=True), workers=workers), 1)
    assert str(raised.value) == "picture 13 is torn"


@pytest.mark.parametrize("found_by_its_signal", [True, False])
def test_a_worker_that_is_killed_as_it_hands_over_a_batch_is_named_with_the_signal(
    found_by_its_signal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not found_by_its_signal:  # torch's handler comes after torch has found the worker ended
        monkeypatch.setattr(signal_handling, "_error_if_any_worker_fails", lambda: None)
    monkeypatch.setattr(loading, "_collate", lambda samples: LostConnection(ended=not found_by_its_signal))
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid \d+\) is killed by signal: Killed"):
        epoch(loader(workers=1), 1)


class LostConnection:
    """A batch whose worker is killed while it is read: its sockets are closed a moment before it has `ended`, or after."""

    def __init__(self, ended: bool) -> None:
        self.ended = ended

    def __reduce__(self) -> tuple[Any, ...]:
        return _lose_connection, (os.getpid(), self.ended)


def _lose_connection(worker: int, ended: bool) -> None:
    if ended:
        os.kill(worker, signal.SIGKILL)
        os.waitid(os.P_PID, worker, os.WEXITED | os.WNOWAIT)
    else:
        threading.Timer(0.2, os.kill, (worker, signal.SIGKILL)).start()
    raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))


# Synthetic data ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names())
def test_synthetic_data_have_the_shapes_of_every_data_set(name: str) -> None:
    try:
        options: DataSource = source_type(name)()
    except ValueError:
        pytest.skip("has no defaults")
    if not options.classes:
        pytest.skip("has the shapes and classes of somebody's files")
    bundle = synthetic_bundle(options, 3)
    x, label = bundle.train[0]
    assert x.shape == ((3, *options.sample_shape) if options.temporal else options.sample_shape)
    assert 0 <= label < options.classes
    subject = loader(bundle.train, batch_size=4, limit=8)
    batch, labels = next(iter(subject))
    assert batch.shape == (4, *x.shape)
    assert labels.dtype == torch.int64
    assert bundle.preprocess(batch).dtype == torch.float32


def test_synthetic_epoch_of_a_huge_data_set_is_capped_and_of_a_small_one_is_not() -> None:
    imagenet = synthetic_bundle(ImageNet(image_size=32), 6)
    assert (len(imagenet.train), len(imagenet.test)) == (12_800, 3_200)
    short = synthetic_bundle(ImageNet(image_size=32, synthetic_samples=512), 6)
    assert (len(short.train), len(short.test)) == (512, 128)
    digits = synthetic_bundle(Digits(), 6)
    assert (len(digits.train), len(digits.test)) == (1437, 359)


def test_synthetic_data_are_deterministic_normalised_and_of_every_class() -> None:
    first, second = (synthetic_bundle(Digits(), 6) for _ in range(2))
    x, labels = epoch(loader(first.train), 1)
    assert torch.equal(x, epoch(loader(second.train), 1)[0])
    assert set(labels.tolist()) == set(range(10))
    normalised = first.preprocess(x)
    assert abs(float(normalised.mean())) < 0.02
    assert abs(float(normalised.std()) - 1) < 0.02


def test_synthetic_batches_larger_than_the_pool_repeat_samples() -> None:
    options = DVSGesture()
    bundle = synthetic_bundle(options, 20)
    each = 20 * 2 * 128 * 128
    x, _ = next(iter(loader(bundle.train, batch_size=128)))
    assert x.shape == (128, 20, 2, 128, 128)
    assert POOL_BYTES // each < 128


# Third parties ----------------------------------------------------------------------------------

THIRD_PARTY = '''
from typing import ClassVar, Literal

from sltt_bench.data import DataBundle, DataPlace, DataSource


class Ones(DataSource):
    """Images of ones."""

    name: Literal["ones"] = "ones"
    train_samples: int = 4
    test_samples: int = 2
    classes: ClassVar[int] = 2
    sample_shape: ClassVar[tuple[int, int, int]] = (1, 2, 2)

    def labels(self, data_dir, split):
        return [0, 1] * (2 if split == "train" else 1)

    def load(self, place: DataPlace) -> DataBundle:
        import torch
        from torch.utils.data import TensorDataset

        def of(split):
            labels = torch.tensor(self.labels(place.data_dir, split))
            return TensorDataset(torch.ones(len(labels), *self.sample_shape), labels)

        return DataBundle(of("train"), of("test"), lambda x: x)
'''


@pytest.fixture
def ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataSource:
    """The third party's data set, of two classes."""
    info = tmp_path / "ones-1.0.dist-info"
    info.mkdir()
    (tmp_path / "ones_data.py").write_text(THIRD_PARTY)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ones\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sltt_bench.data]\nones = ones_data:Ones\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return load_recipe("digits", {"data": {"name": "ones"}, "model.channels": [4], "timesteps": 2}).data


def test_a_third_partys_data_set_is_one_class_behind_an_entry_point(ones: DataSource, tmp_path: Path) -> None:
    bundle = data.load(ones, DataPlace(tmp_path, 2))
    assert (len(bundle.train), len(bundle.test)) == (4, 2)
    assert "ones" in names()
    assert [finding.ok for finding in data.verify("ones", tmp_path)] == [True, True]
    assert data.prepare("ones", tmp_path) == ["ones needs no files: nothing to get."]


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_that_no_class_has_is_named_before_it_meets_a_loss(
    label: int, ones: DataSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        type(ones), "labels", lambda self, data_dir, split: [0, label] * (1 + (split == "train"))
    )
    outside = f"its labels are {min(0, label)}…{max(0, label)}, but those of 2 classes are 0…1"
    with pytest.raises(DataError, match=f"the train split: {outside}"):
        data.load(ones, DataPlace(tmp_path, 2))
    assert [(finding.ok, finding.text) for finding in data.verify("ones", tmp_path)] == [(False, outside)] * 2


def test_data_of_ones_own_are_for_oneself_to_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kind,) = (type(load_recipe("digits").data),)
    monkeypatch.setattr(kind, "needed", lambda self, data_dir: [data_dir / "ones"])
    with pytest.raises(DataError, match=f"nothing downloads: put it at {tmp_path / 'ones'}"):
        data.prepare("digits", tmp_path)
    (tmp_path / "ones").mkdir()
    assert data.prepare("digits", tmp_path) == ["digits is there: nothing to get."]


def test_options_of_all_data_sets_are_known_without_torch() -> None:
    code = (
        "import sys; from sltt_bench import data; from pathlib import Path;"
        "[data.missing(data.source_type(name)(), Path('nowhere')) for name in data.names()];"
        "print(sorted({'torch', 'torchvision', 'sklearn', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_synthetic_images_are_pinned_once_and_no_batch_of_them_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Page-locking needs a GPU; what is asked of it does not."""
    pinned: list[Tensor] = []

    def pin(tensor: Tensor) -> Tensor:
        copy = tensor.clone()
        pinned.append(copy)
        return copy

    storages = lambda: {tensor.untyped_storage().data_ptr() for tensor in pinned}  # noqa: E731
    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(Tensor, "is_pinned", lambda tensor: tensor.untyped_storage().data_ptr() in storages())
    options = Digits(synthetic_samples=640)
    loader = make_loader(
        synthetic_bundle(options, 6).train,
        batch_size=64, shuffle=True, seed=0, drop_last=False, options=options, device=torch.device("cuda"),
    )  # fmt: skip
    images = [x for x, _ in loader]
    assert len(images) == 10
    assert all(x.is_pinned() for x in images)
    assert [tensor.dtype for tensor in pinned].count(torch.uint8) == 1, (
        "the pool, and nothing else of its kind"
    )


# On a GPU ---------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("in_memory", [True, False])
def test_batches_for_a_gpu_are_pinned_and_its_generator_is_left_alone(in_memory: bool) -> None:
    x = torch.arange(SAMPLES)
    subject = make_loader(
        TensorDataset(x, x) if in_memory else Noisy(),
        batch_size=8,
        shuffle=True,
        seed=1,
        drop_last=False,
        options=Digits(),
        device=torch.device("cuda"),
    )
    torch.cuda.manual_seed(5)
    expected = torch.rand(3, device="cuda")
    torch.cuda.manual_seed(5)
    batches = list(subject)
    assert all(x.is_pinned() and labels.is_pinned() for x, labels in batches)
    assert torch.equal(torch.rand(3, device="cuda"), expected)
