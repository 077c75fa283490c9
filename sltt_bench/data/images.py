"""Folders of images as people have them: which files are images, of which class, and their pixels.

Shared by all data sets that are a folder of images for each class.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from sltt_bench.data.errors import absent, damaged, reading
from sltt_bench.data.source import SPLITS, DataBundle, DataPlace, DataSource, SamplesInFiles, Shape

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""What torchvision's ImageFolder takes for images, in capitals or not."""
ORIENTATION = 0x0112
"""The EXIF tag that says how a picture is to be turned; 1 is upright."""


class ImageSource(DataSource):
    """What data sets share that are a folder of images for each class, augmented as ImageNet is."""

    image_size: Annotated[int, Field(ge=8, le=65_536)] = 224
    """Pixels of a side; 224 is published for ImageNet, less makes smoke runs small."""

    mean: ClassVar[tuple[float, float, float]] = (0.485, 0.456, 0.406)
    std: ClassVar[tuple[float, float, float]] = (0.229, 0.224, 0.225)
    """Of each channel over ImageNet."""
    resized: ClassVar[float] = 256 / 224
    """Test images are resized to so many times the side that is then cropped from their centre."""
    upright: ClassVar[bool] = True
    """Whether pictures are turned as their EXIF says."""

    @property
    def sample_shape(self) -> Shape:
        return (3, self.image_size, self.image_size)

    def root(self, data_dir: Path, split: str) -> Path:
        """The folder of a split, with a folder for each class."""
        raise NotImplementedError

    def needed(self, data_dir: Path) -> list[Path]:
        return [self.root(data_dir, split) for split in SPLITS]

    def split_classes(self, data_dir: Path, split: str) -> list[str]:
        """The names of the classes of a split, in order. Raises DataError."""
        root = self.root(data_dir, split)
        if not root.is_dir():
            raise absent(self, root, data_dir)
        return class_folders(self.name, root)

    def class_images(self, data_dir: Path, split: str, class_name: str) -> list[str]:
        """The images of a class. Raises DataError, also if there are none."""
        return images_below(self.name, self.root(data_dir, split) / class_name)

    def class_names(self, data_dir: Path) -> list[str]:
        """The classes, which are the same in both splits. Raises DataError."""
        train, test = (self.split_classes(data_dir, split) for split in SPLITS)
        if odd := sorted(set(train) ^ set(test)):
            lacks, has = (
                self.root(data_dir, split) for split in (SPLITS if odd[0] in test else SPLITS[::-1])
            )
            reason = f"it has no class {odd[0]}, but {has} has"
            raise damaged(self.name, lacks, reason, "add it or remove that one")
        return train

    def files(self, data_dir: Path, split: str) -> list[tuple[str, int]]:
        """The images of a split with their labels; classes are numbered in the order of their names.

        Raises DataError if a class is missing or empty.
        """
        class_names = self.split_classes(data_dir, split)
        if len(class_names) != self.classes:
            reason = f"it has {len(class_names)} class folders instead of {self.classes}"
            raise damaged(self.name, self.root(data_dir, split), reason)
        return [
            (file, label)
            for label, class_name in enumerate(self.class_names(data_dir))
            for file in self.class_images(data_dir, split, class_name)
        ]

    def load(self, place: DataPlace) -> DataBundle:
        """Both splits as images [3, image_size, image_size] in uint8. Raises DataError."""
        from sltt_bench.torch_internals import without_compiler

        with without_compiler():
            from torchvision.transforms import v2

        from sltt_bench.data.transforms import Normalise

        size = self.image_size
        augmentation = [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
        centre = [v2.Resize(round(size * self.resized), antialias=True), v2.CenterCrop(size)]
        files = {split: self.files(place.data_dir, split) for split in SPLITS}
        read = partial(read_image, self.name, upright=self.upright)
        train, test, plain_train = (
            SamplesInFiles(files[split], v2.Compose([read, *steps, v2.PILToTensor()]))
            for split, steps in (("train", augmentation), ("test", centre), ("train", centre))
        )
        return DataBundle(train, test, Normalise(self.mean, self.std), plain_train=plain_train)

    def labels(self, data_dir: Path, split: str) -> list[int]:
        return [label for _, label in self.files(data_dir, split)]

    def readings(self, data_dir: Path, split: str) -> list[tuple[Path, Callable[[], Any]]]:
        return [(Path(file), partial(read_image, self.name, file)) for file, _ in self.files(data_dir, split)]


# Files ------------------------------------------------------------------------------------------


def class_folders(name: str, root: Path, classes: int | None = None, but_for: str = "") -> list[str]:
    """The names of the folders in `root`, in order; hidden ones and `but_for` are no classes.

    Raises DataError, also if they are not so many as `classes`.
    """
    folders = []
    try:
        for entry in sorted(root.iterdir()):
            if is_hidden(entry.name) or entry.name == but_for:
                continue
            if entry.is_symlink() and not entry.exists():
                raise damaged(name, entry, "it is a link that leads nowhere")
            if entry.is_dir():
                folders.append(entry.name)
    except OSError as error:
        raise damaged(name, root, error.strerror or error) from None
    if classes is not None and len(folders) != classes:
        raise damaged(name, root, f"it has {len(folders)} class folders instead of {classes}")
    return folders


def images_below(name: str, folder: Path) -> list[str]:
    """The images in a folder and those below it, in order. Raises DataError, also if there is none."""
    try:
        images = list(_images(str(folder), visited=set()))
    except OSError as error:
        raise damaged(name, Path(error.filename or folder), error.strerror or error) from None
    if not images:
        reason = f"it holds no image ({', '.join(SUFFIXES)})"
        raise damaged(name, folder, reason, "put images into it or, if it is no class, remove it")
    return images


def _images(folder: str, visited: set[str]) -> Iterator[str]:
    # A link to a folder above would be followed for ever.
    real = os.path.realpath(folder)
    if real in visited:
        return
    visited.add(real)
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                yield from _images(entry.path, visited)
            elif entry.name.lower().endswith(SUFFIXES):
                yield entry.path


def is_hidden(file_name: str) -> bool:
    """.DS_Store, the ._x.JPEG that macOS writes beside x.JPEG on other file systems, and its __MACOSX."""
    return file_name.startswith(".") or file_name == "__MACOSX"


# Pixels -----------------------------------------------------------------------------------------


def read_image(name: str, file: str, *, upright: bool = True) -> "Image":
    """The picture as it is displayed (or as it is stored, not `upright`), in RGB: turned as its EXIF says, 16 bits scaled to 8.

    Raises DataError.
    """
    from PIL import Image

    # A damaged file fails in whatever way its bytes happen to spell: OSError, SyntaxError, struct.error …
    with reading(name, Path(file), Exception), Image.open(file) as image:
        return _rgb(_upright(image) if upright else image)


def _upright(image: "Image") -> "Image":
    from PIL import ImageOps

    if image.getexif().get(ORIENTATION, 1) == 1:
        return image
    return ImageOps.exif_transpose(image)


def _rgb(image: "Image") -> "Image":
    import numpy as np
    from PIL import Image

    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, of which the range is unknown")
    if not image.mode.startswith("I"):
        # Via RGBA, since the transparency of a palette says nothing about its colours.
        return image.convert("RGBA").convert("RGB") if image.mode == "P" else image.convert("RGB")
    # Pillow's own conversion makes white of everything above 255.
    pixels = np.asarray(image).astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 0xFFFF:
        raise ValueError("its pixels need more than 16 bits")
    return Image.fromarray((pixels >> 8).astype(np.uint8)).convert("RGB")
