"""CIFAR-10 and CIFAR-100: the published Python batches, and the paper's augmentation.

Training images are shifted (crop 32 with 4 pixels of padding), erased in part and flipped, in the
order of the paper's code. The batches are read without torchvision's checksums, which `data verify`
applies: a count and a shape say what training needs to know. They are pickles, so only what NumPy
arrays are made of is unpickled.
"""

import io
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from sltt_bench.common.strict import Count
from sltt_bench.data.download import checksum_of, fetch_and_unpack
from sltt_bench.data.errors import absent, damaged, reading
from sltt_bench.data.source import DataBundle, DataFinding, DataPlace, DataSource, Progress, Shape

if TYPE_CHECKING:
    from torch.utils.data import TensorDataset


class CIFARSource(DataSource):
    """What CIFAR-10 and CIFAR-100 share."""

    split: Literal["official"] = "official"
    """The split that the data set is published with."""
    train_samples: Count = 50_000
    test_samples: Count = 10_000

    torchvision_name: ClassVar[str]
    """The class in torchvision.datasets, which knows addresses and checksums."""
    folder: ClassVar[str]
    batches: ClassVar[dict[str, tuple[str, ...]]]
    """The files of each split."""
    label_key: ClassVar[str]
    mean: ClassVar[tuple[float, float, float]]
    std: ClassVar[tuple[float, float, float]]
    """Of each channel, as in the paper's code."""
    sample_shape: ClassVar[Shape] = (3, 32, 32)

    def needed(self, data_dir: Path) -> list[Path]:
        return [data_dir / self.folder / file for files in self.batches.values() for file in files]

    def load(self, place: DataPlace) -> DataBundle:
        """Both splits as images [3, 32, 32] in uint8. Raises DataError."""
        from sltt_bench.torch_internals import without_compiler

        with without_compiler():
            from torchvision.transforms import v2

        from sltt_bench.data.transforms import Augmented, Cutout, Normalise

        transform = v2.Compose([v2.RandomCrop(32, padding=4), Cutout(), v2.RandomHorizontalFlip()])
        plain_train, test = (self.samples_of(split, place) for split in self.batches)
        images, labels = plain_train.tensors
        train = Augmented(images, labels, transform)
        return DataBundle(train, test, Normalise(self.mean, self.std), plain_train=plain_train)

    def samples_of(self, split: str, place: DataPlace) -> "TensorDataset":
        """Images [3, 32, 32] in uint8."""
        import torch
        from torch.utils.data import TensorDataset

        folder = place.data_dir / self.folder
        batches = [self._read_batch(folder / file, place.data_dir) for file in self.batches[split]]
        images = np.concatenate([images for images, _ in batches])
        labels = np.concatenate([labels for _, labels in batches])
        return TensorDataset(torch.from_numpy(images), torch.from_numpy(labels))

    def _read_batch(self, file: Path, data_dir: Path) -> tuple[np.ndarray, np.ndarray]:
        if not file.is_file():
            raise absent(self, file, data_dir)
        # A pickle that is cut short or altered fails in whatever way its bytes happen to spell.
        with reading(self.name, file, Exception):
            batch = _ArraysOnly(io.BytesIO(file.read_bytes()), encoding="latin1").load()
            images = np.asarray(batch["data"], dtype=np.uint8).reshape(-1, *self.sample_shape)
            labels = np.asarray(batch[self.label_key], dtype=np.int64)
        if len(images) != len(labels):
            raise damaged(self.name, file, f"it has {len(images)} images, but {len(labels)} labels")
        if len(labels) and not 0 <= labels.min() <= labels.max() < self.classes:
            raise damaged(self.name, file, f"it has labels outside 0…{self.classes - 1}")
        return images, labels

    def verify_split(self, data_dir: Path, split: str, progress: Progress) -> Iterable[DataFinding]:
        """Also the checksum of each file."""
        published = self._published()
        for name, md5 in published.train_list if split == "train" else published.test_list:
            file = data_dir / self.folder / name
            if file.is_file():
                actual = checksum_of(file, md5, progress)
                text = "MD5 as published" if actual == md5 else f"its MD5 is {actual}, not {md5}"
                yield DataFinding(actual == md5, str(file), text)
        yield from super().verify_split(data_dir, split, progress)

    def prepare(self, data_dir: Path, progress: Progress) -> list[str]:
        published = self._published()
        folder, archive = data_dir / self.folder, data_dir / published.filename
        return [
            fetch_and_unpack(published.url, archive, published.tgz_md5, folder, progress, inner=self.folder)
        ]

    def _published(self) -> Any:
        import torchvision.datasets

        return getattr(torchvision.datasets, self.torchvision_name)


class CIFAR10(CIFARSource):
    """CIFAR-10: 32×32 colour images; training images are cropped, erased in part and flipped."""

    name: Literal["cifar10"] = "cifar10"

    torchvision_name: ClassVar[str] = "CIFAR10"
    folder: ClassVar[str] = "cifar-10-batches-py"
    batches: ClassVar[dict[str, tuple[str, ...]]] = {
        "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
        "test": ("test_batch",),
    }
    label_key: ClassVar[str] = "labels"
    mean: ClassVar[tuple[float, float, float]] = (0.4914, 0.4822, 0.4465)
    std: ClassVar[tuple[float, float, float]] = (0.2023, 0.1994, 0.2010)
    classes: ClassVar[int] = 10


class CIFAR100(CIFARSource):
    """CIFAR-100: 32×32 colour images; training images are cropped, erased in part and flipped."""

    name: Literal["cifar100"] = "cifar100"

    torchvision_name: ClassVar[str] = "CIFAR100"
    folder: ClassVar[str] = "cifar-100-python"
    batches: ClassVar[dict[str, tuple[str, ...]]] = {"train": ("train",), "test": ("test",)}
    label_key: ClassVar[str] = "fine_labels"
    mean: ClassVar[tuple[float, float, float]] = (0.5071, 0.4867, 0.4408)
    std: ClassVar[tuple[float, float, float]] = (0.2675, 0.2565, 0.2761)
    classes: ClassVar[int] = 100


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
