"""MNIST and Fashion-MNIST: IDX files in the layout that torchvision makes, `<class>/raw/`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sltt_bench.common.strict import Count
from sltt_bench.data.download import all_or_nothing, already_there, decompress, fetch
from sltt_bench.data.errors import absent, damaged, reading
from sltt_bench.data.source import DataBundle, DataPlace, DataSource, Progress, Samples, Shape

if TYPE_CHECKING:
    from torch import Tensor


class IDXSource(DataSource):
    """What the data sets share that are distributed as MNIST is."""

    split: Literal["official"] = "official"
    """The split that the data set is published with."""
    train_samples: Count = 60_000
    test_samples: Count = 10_000

    torchvision_name: ClassVar[str]
    """The class in torchvision.datasets, which also names the folder."""
    mean: ClassVar[float]
    std: ClassVar[float]
    """Of the training images' pixels in 0…1."""
    image_shape: ClassVar[Shape] = (1, 28, 28)
    classes: ClassVar[int] = 10
    prefixes: ClassVar[dict[str, str]] = {"train": "train", "test": "t10k"}
    """How the files of a split begin."""

    def needed(self, data_dir: Path) -> list[Path]:
        return [file for split in self.prefixes for file in self._files(data_dir, split)]

    def _folder(self, data_dir: Path) -> Path:
        return data_dir / self.torchvision_name / "raw"

    def _files(self, data_dir: Path, split: str) -> tuple[Path, Path]:
        """The files of images and labels."""
        raw, prefix = self._folder(data_dir), self.prefixes[split]
        return raw / f"{prefix}-images-idx3-ubyte", raw / f"{prefix}-labels-idx1-ubyte"

    def load(self, place: DataPlace) -> DataBundle:
        from sltt_bench.data.transforms import Normalise

        return replace(super().load(place), preprocess=Normalise([self.mean], [self.std]))

    def shown(self, images: "Tensor") -> "Tensor":
        """Images [samples, 1, 28, 28] in uint8 → what samples are: the same."""
        return images

    def samples_of(self, split: str, place: DataPlace) -> Samples:
        """What is shown of images [1, 28, 28], in uint8."""
        from torch.utils.data import TensorDataset

        images_file, labels_file = self._files(place.data_dir, split)
        images = self._read(images_file, place.data_dir).unsqueeze(1)
        labels = self._read(labels_file, place.data_dir).long()
        if images.shape[1:] != self.image_shape:
            raise damaged(self.name, images_file, f"its images are {tuple(images.shape[1:])}")
        if len(images) != len(labels):
            reason = f"it has {len(labels)} labels, but {images_file.name} has {len(images)} images"
            raise damaged(self.name, labels_file, reason)
        if len(labels) and int(labels.max()) >= self.classes:
            raise damaged(self.name, labels_file, f"it has the label {int(labels.max())}")
        return TensorDataset(self.shown(images), labels)

    def _read(self, file: Path, data_dir: Path) -> "Tensor":
        from sltt_bench.torch_internals import without_compiler

        with without_compiler():
            from torchvision.datasets.mnist import read_image_file, read_label_file

        if not file.is_file():
            raise absent(self, file, data_dir)
        read = read_image_file if "images" in file.name else read_label_file
        faults = (ValueError, TypeError, AssertionError, RuntimeError, IndexError, KeyError, OSError)
        with reading(self.name, file, *faults, reason="not a whole IDX file ({})"):
            content: Tensor = read(str(file))
        return content

    def prepare(self, data_dir: Path, progress: Progress) -> list[str]:
        import torchvision.datasets

        published: Any = getattr(torchvision.datasets, self.torchvision_name)
        raw = self._folder(data_dir)
        if raw.is_dir():
            return [already_there(raw)]
        archives = []
        for archive, md5 in published.resources:
            archives.append(raw.parent / archive)
            fetch([mirror + archive for mirror in published.mirrors], archives[-1], md5, progress)

        def fill(staging: Path) -> None:
            for archive in archives:
                decompress(archive, staging / archive.stem)

        all_or_nothing(raw, fill)
        return [f"Downloaded {self.name} to {raw}."]


class MNIST(IDXSource):
    """MNIST: 28×28 grey images of handwritten digits."""

    name: Literal["mnist"] = "mnist"

    torchvision_name: ClassVar[str] = "MNIST"
    mean: ClassVar[float] = 0.1307
    std: ClassVar[float] = 0.3081
    sample_shape: ClassVar[Shape] = (1, 28, 28)


class FashionMNIST(IDXSource):
    """Fashion-MNIST: 28×28 grey images of clothes."""

    name: Literal["fashion-mnist"] = "fashion-mnist"

    torchvision_name: ClassVar[str] = "FashionMNIST"
    mean: ClassVar[float] = 0.2860
    std: ClassVar[float] = 0.3530
    sample_shape: ClassVar[Shape] = (1, 28, 28)
