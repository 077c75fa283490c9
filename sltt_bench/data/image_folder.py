"""Anybody's images: a folder for each class below `train` and `val` (or `test`); docs/own-data.md tells how.

Imagenette, ImageNet-100 and Tiny ImageNet as they are distributed, for example. Classes and samples are
counted when a run is planned, and stand in the resolved recipe.
"""

from functools import cache
from pathlib import Path
from typing import ClassVar, Literal

from sltt_bench.data.errors import DataError, damaged, reading
from sltt_bench.data.images import ImageSource
from sltt_bench.data.source import Below, Found, Progress


class ImageFolder(ImageSource):
    """Your own images: a folder for each class below train/ and val/ (docs/own-data.md)."""

    name: Literal["image-folder"] = "image-folder"
    folder: Below = "images"
    """Below --data-dir."""
    num_classes: Found = 0
    """0: as many as there are folders. To be given for --synthetic and estimates, which read nothing."""
    train_samples: Found = 0
    """0: as many as there are."""
    test_samples: Found = 0
    """0: as many as there are."""

    annotations: ClassVar[str] = "val_annotations.txt"
    """Tiny ImageNet names the classes of its validation images in this file."""

    @property
    def classes(self) -> int:
        return self.num_classes

    def root(self, data_dir: Path, split: str) -> Path:
        root = data_dir / self.folder
        if split == "train":
            return root / "train"
        return root / "test" if not (root / "val").is_dir() and (root / "test").is_dir() else root / "val"

    def split_classes(self, data_dir: Path, split: str) -> list[str]:
        listed = self._listed(data_dir, split)
        return super().split_classes(data_dir, split) if listed is None else sorted(listed)

    def class_images(self, data_dir: Path, split: str, class_name: str) -> list[str]:
        listed = self._listed(data_dir, split)
        return super().class_images(data_dir, split, class_name) if listed is None else listed[class_name]

    def _listed(self, data_dir: Path, split: str) -> dict[str, list[str]] | None:
        """Class → images, as Tiny ImageNet lists them (image, class and more, between tabs); None without a list."""
        file = self.root(data_dir, split) / self.annotations
        if not file.is_file():
            return None
        with reading(self.name, file, ValueError, OSError):
            return _annotated_images(file, file.stat().st_mtime_ns)

    def on_disk(self, data_dir: Path | None) -> "ImageFolder":
        if self.num_classes and self.train_samples and self.test_samples:
            return self
        if data_dir is None:
            raise DataError(
                f"data set {self.name!r}: without reading data, a recipe must state data.num_classes, "
                "data.train_samples and data.test_samples"
            )
        class_names = self.class_names(data_dir)
        if not class_names:
            root = self.root(data_dir, "train")
            raise damaged(
                self.name, root, "it holds no class folder", "make one for each class, of its images"
            )
        samples = {
            split: sum(len(self.class_images(data_dir, split, class_name)) for class_name in class_names)
            for split in ("train", "test")
        }
        return self.model_copy(
            update={
                "num_classes": self.num_classes or len(class_names),
                "train_samples": self.train_samples or samples["train"],
                "test_samples": self.test_samples or samples["test"],
            }
        )

    def prepare(self, data_dir: Path, progress: Progress) -> list[str]:
        if all(path.exists() for path in self.needed(data_dir)):
            return super().prepare(data_dir, progress)
        raise DataError(
            f"data set {self.name!r} is your own: put a folder of images for each class below "
            f"{data_dir / self.folder / 'train'} and {data_dir / self.folder / 'val'} (docs/own-data.md)"
        )


@cache
def _annotated_images(file: Path, changed_ns: int) -> dict[str, list[str]]:
    """The content of the list, read once for each time that it was changed."""
    images: dict[str, list[str]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        fields = line.split("\t")
        if len(fields) < 2:
            raise ValueError(f"line {number} is not an image and its class between tabs")
        images.setdefault(fields[1], []).append(str(file.parent / "images" / fields[0]))
    return images
