"""Anybody's arrays: one `.npz` of images or sequences with their labels; docs/own-data.md tells how.

    x_train, x_test   images [N, H, W] or [N, C, H, W], sequences [N, T, C] or [N, T, C, H, W]
    y_train, y_test   labels [N], whole numbers from 0

Bytes are scaled to 0…1, other numbers are taken as they are. Shapes, classes and samples are read when a
run is planned, and stand in the resolved recipe.
"""

import zipfile
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from sltt_bench.common.format import counted
from sltt_bench.common.strict import Count
from sltt_bench.data.errors import NOT_NUMPY, DataError, absent, damaged, reading
from sltt_bench.data.source import (
    PLACE,
    SPLITS,
    Below,
    DataBundle,
    DataFinding,
    DataPlace,
    DataSource,
    Found,
    Progress,
    Shape,
    bytes_to_unit,
)

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import TensorDataset

UNREADABLE = (*NOT_NUMPY, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error)


class Arrays(DataSource):
    """Your own arrays: an .npz of images or sequences with their labels (docs/own-data.md)."""

    name: Literal["arrays"] = "arrays"
    file: Below = "arrays.npz"
    """Below --data-dir."""
    layout: Annotated[Literal["images", "sequences"], PLACE] = "images"
    """images are shown at every step; sequences have a time axis of T steps of their own."""
    shape: Annotated[list[Count], Field(default_factory=list)]
    """Of a sample in the file; empty: as found. To be given for --synthetic and estimates, which read nothing."""
    num_classes: Found = 0
    """0: one more than the largest label."""
    train_samples: Found = 0
    """0: as many as there are."""
    test_samples: Found = 0
    """0: as many as there are."""

    dimensions: ClassVar[dict[str, tuple[int, int]]] = {"images": (2, 3), "sequences": (2, 4)}
    """How many a sample has: [H, W] or [C, H, W]; [T, C] or [T, C, H, W]."""

    @property
    def sample_shape(self) -> Shape:
        if self.layout == "images":
            channels, height, width = [1, *self.shape][-3:]
        else:
            channels, height, width = [*self.shape[1:], 1, 1][:3]
        return (channels, height, width)

    @property
    def classes(self) -> int:
        return self.num_classes

    @property
    def temporal(self) -> bool:
        return self.layout == "sequences"

    def check_timesteps(self, timesteps: int) -> str | None:
        if self.layout == "images" or not self.shape or timesteps == self.shape[0]:
            return None
        return f"timesteps is {timesteps}, but the sequences in {self.file} have {counted(self.shape[0], 'step')} (data.shape is {self.shape})"

    def needed(self, data_dir: Path) -> list[Path]:
        return [data_dir / self.file]

    # What the file holds ------------------------------------------------------------------------

    def on_disk(self, data_dir: Path | None) -> "Arrays":
        if self.shape and self.num_classes and self.train_samples and self.test_samples:
            return self
        if data_dir is None:
            raise DataError(
                f"data set {self.name!r}: without reading data, a recipe must state data.shape, "
                "data.num_classes, data.train_samples and data.test_samples"
            )
        shapes = {split: self._shape_of_samples(data_dir, f"x_{split}") for split in SPLITS}
        sample = list(shapes["train"][1:])
        if sample != list(shapes["test"][1:]):
            raise self._damaged(
                data_dir, f"samples are {sample} in x_train, but {shapes['test'][1:]} in x_test"
            )
        if len(sample) not in self.dimensions[self.layout]:
            raise self._damaged(
                data_dir,
                f"samples in x_train have the shape {sample}, which data.layout {self.layout!r} has not",
            )
        labels = {split: self._labels(data_dir, split) for split in SPLITS}
        return self.model_copy(
            update={
                "shape": self.shape or sample,
                "num_classes": self.num_classes or self._counted_classes(data_dir, labels.values()),
                "train_samples": self.train_samples or len(labels["train"]),
                "test_samples": self.test_samples or len(labels["test"]),
            }
        )

    def _counted_classes(self, data_dir: Path, labels: Iterable[np.ndarray]) -> int:
        """One more than the largest label. Raises DataError if a smaller one is in neither split: chance and the size
        of the output would be those of classes that nobody has."""
        present = np.unique(np.concatenate([*labels]))
        if len(gaps := np.flatnonzero(present != np.arange(len(present)))):
            raise DataError(
                f"data set {self.name!r}: {data_dir / self.file}: some sample has the label {present[gaps[0]]}, but none has "
                f"{gaps[0]}; number the classes from 0 without gaps, or state data.num_classes"
            )
        return len(present)

    def _header(self, data_dir: Path, key: str) -> "tuple[tuple[int, ...], np.dtype[Any]]":
        """Shape and type of an array, without reading it. Raises DataError."""
        path = self._present(data_dir)
        with (
            reading(self.name, path, *UNREADABLE, reason=f"{key}: {{}}"),
            zipfile.ZipFile(path) as archive,
            archive.open(f"{self._named(data_dir, key, archive.namelist())}.npy") as member,
        ):
            version = np.lib.format.read_magic(member)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, _, numbers = read(member)
        return shape, numbers

    def _shape_of_samples(self, data_dir: Path, key: str) -> tuple[int, ...]:
        """[N, ...]. Raises DataError if they are no numbers, or hold none."""
        shape, numbers = self._header(data_dir, key)
        if numbers.kind == "O":
            raise self._damaged(
                data_dir, f"{key} is of objects, not numbers; pad sequences of unequal length to one length"
            )
        if numbers.kind not in "uifb":
            raise self._damaged(data_dir, f"{key} is {numbers}, not numbers")
        if 0 in shape[1:]:
            raise self._damaged(
                data_dir, f"{key} has samples of shape {list(shape[1:])}, which hold no number"
            )
        return shape

    def _named(self, data_dir: Path, key: str, members: Iterable[str]) -> str:
        """The key, if the file has an array of this name. Raises DataError."""
        held = [member.removesuffix(".npy") for member in members]
        if key not in held:
            some = ", ".join(held[:8]) + (", …" if len(held) > 8 else "")
            raise self._damaged(data_dir, f"it has no array {key}; its arrays: {some or 'none'}")
        return key

    def _read(self, data_dir: Path, key: str) -> np.ndarray:
        path = self._present(data_dir)
        # Objects would have to be unpickled, and a pickle can hold any program.
        with (
            reading(self.name, path, *UNREADABLE, reason=f"{key}: {{}}"),
            np.load(path, allow_pickle=False) as file,
        ):
            array: np.ndarray = file[self._named(data_dir, key, file.files)]
        return array

    def _labels(self, data_dir: Path, split: str) -> np.ndarray:
        """Labels [N] in int64. Raises DataError."""
        key = f"y_{split}"
        labels = self._read(data_dir, key)
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise self._damaged(
                data_dir,
                f"{key} is {labels.dtype} of shape {labels.shape}, not whole numbers [N]; classes are numbered from 0, as "
                "numpy.unique(labels, return_inverse=True)[1] does with names",
            )
        highest = self.num_classes - 1 if self.num_classes else np.iinfo(np.int64).max
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) <= highest:
            reason = f"{key} has labels {labels.min()}…{labels.max()}"
            raise self._damaged(data_dir, f"{reason}, not from 0 up to data.num_classes − 1")
        return labels.astype(np.int64)

    def check_files(self, data_dir: Path) -> None:
        """What the labels tell, and of the samples their types, shapes and counts."""
        for split in SPLITS:
            self._check_split(data_dir, split)
            self._labels(data_dir, split)
        self._check_types(data_dir)
        self.check_counts(*(self._header(data_dir, f"x_{split}")[0][0] for split in SPLITS))

    def _check_split(self, data_dir: Path, split: str) -> None:
        """Raises DataError for samples that are no numbers, of another shape, or not as many as their labels."""
        x, y = f"x_{split}", f"y_{split}"
        shape = self._shape_of_samples(data_dir, x)
        if list(shape[1:]) != self.shape:
            raise self._damaged(data_dir, f"{x} has samples of shape {list(shape[1:])}, not {self.shape}")
        if not shape[0]:
            raise self._damaged(data_dir, f"{x} has no samples")
        if (labels := self._header(data_dir, y)[0]) != shape[:1]:
            count = " × ".join(map(str, labels))
            raise self._damaged(data_dir, f"{x} has {counted(shape[0], 'sample')}, but {y} {count} labels")

    def _samples(self, data_dir: Path, split: str) -> np.ndarray:
        """Samples [N, ...], bytes as in the file and others in float32. Raises DataError."""
        self._check_split(data_dir, split)
        samples = self._read(data_dir, f"x_{split}")
        if samples.dtype != np.uint8:
            with np.errstate(over="ignore"):
                samples = samples.astype(np.float32)
            if not np.isfinite(samples).all():
                raise self._damaged(data_dir, f"x_{split} has numbers that are not finite in float32")
        return samples

    def _present(self, data_dir: Path) -> Path:
        path = data_dir / self.file
        if not path.is_file():
            raise absent(self, path, data_dir)
        return path

    def _damaged(self, data_dir: Path, reason: object) -> DataError:
        return damaged(self.name, data_dir / self.file, reason)

    # Loading, preparing, verifying --------------------------------------------------------------

    def load(self, place: DataPlace) -> DataBundle:
        """Both splits. Raises DataError, also if one would be scaled and the other not."""
        bundle = super().load(place)
        self._check_types(place.data_dir)
        return bundle

    def _check_types(self, data_dir: Path) -> None:
        """Raises DataError if one split would be scaled and the other not."""
        train, test = (self._header(data_dir, f"x_{split}")[1] == np.uint8 for split in SPLITS)
        if train != test:
            one, other = ("x_train", "x_test") if train else ("x_test", "x_train")
            raise self._damaged(
                data_dir,
                f"{one} is of bytes, which are scaled to 0…1, but {other} of other numbers, which are not; "
                "save both as one type",
            )

    def verify(self, data_dir: Path, progress: Progress) -> Iterable[DataFinding]:
        """Also whether both splits are of one type."""
        yield from super().verify(data_dir, progress)
        try:
            self._check_types(data_dir)
        except DataError as error:
            yield DataFinding(False, str(data_dir / self.file), str(error))

    def samples_of(self, split: str, place: DataPlace) -> "TensorDataset":
        """In memory; samples of bytes stay bytes, others become float32."""
        import torch
        from torch.utils.data import TensorDataset

        samples, labels = self._samples(place.data_dir, split), self._labels(place.data_dir, split)
        steps = self.shape[:1] if self.temporal else []
        x = torch.from_numpy(samples).reshape(-1, *steps, *self.sample_shape)
        return TensorDataset(x, torch.from_numpy(labels))

    def preprocess(self, x: "Tensor") -> "Tensor":
        """Bytes → 0…1; other numbers, which are float32, as they are."""
        return x if x.is_floating_point() else bytes_to_unit(x)

    def labels(self, data_dir: Path, split: str) -> list[int]:
        labels: list[int] = self._labels(data_dir, split).tolist()
        return labels

    def readings(self, data_dir: Path, split: str) -> list[tuple[Path, Callable[[], Any]]]:
        place = DataPlace(data_dir, timesteps=1)
        return [(data_dir / self.file, partial(self.samples_of, split, place))]

    def prepare(self, data_dir: Path, progress: Progress) -> list[str]:
        if all(path.exists() for path in self.needed(data_dir)):
            return super().prepare(data_dir, progress)
        raise DataError(
            f"data set {self.name!r} is your own: put x_train, y_train, x_test and y_test into "
            f"{data_dir / self.file} with numpy.savez (docs/own-data.md)"
        )
