"""ImageNet (ILSVRC 2012): a folder of JPEGs for each class below `imagenet/train` and `imagenet/val`."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from sltt_bench.data.download import all_or_nothing, already_there
from sltt_bench.data.errors import DataError, absent, damaged
from sltt_bench.data.source import SPLITS, Count, DataBundle, DataPlace, DataSource, Progress, Shape

if TYPE_CHECKING:
    from torch import Tensor

PAGE = "https://image-net.org/download-images"


class ImageNet(DataSource):
    """ImageNet (ILSVRC 2012) as a folder of JPEGs for each class, below train/ and val/."""

    name: Literal["imagenet"] = "imagenet"
    split: Literal["official"] = "official"
    """Trained on train/, tested on the 50,000 images of val/."""
    train_samples: Count = 1_281_167
    test_samples: Count = 50_000
    image_size: Annotated[int, Field(ge=8)] = 224
    """Pixels of a side; 224 is published, less makes smoke runs small."""

    folder: ClassVar[str] = "imagenet"
    subfolders: ClassVar[dict[str, str]] = {"train": "train", "test": "val"}
    mean: ClassVar[tuple[float, float, float]] = (0.485, 0.456, 0.406)
    std: ClassVar[tuple[float, float, float]] = (0.229, 0.224, 0.225)
    resized: ClassVar[float] = 256 / 224
    """Test images are resized to so many times the side that is then cropped from their centre."""
    classes: ClassVar[int] = 1000

    @property
    def sample_shape(self) -> Shape:
        return (3, self.image_size, self.image_size)

    def needed(self, data_dir: Path) -> list[Path]:
        return [self._folder(data_dir, split) for split in SPLITS]

    def _folder(self, data_dir: Path, split: str) -> Path:
        return data_dir / self.folder / self.subfolders[split]

    def load(self, place: DataPlace) -> DataBundle:
        """Both splits as images [3, image_size, image_size] in uint8. Raises DataError."""
        from torchvision.transforms import v2

        from sltt_bench.data.transforms import Normalise

        size = self.image_size
        augmentation = [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
        centre = [v2.Resize(round(size * self.resized), antialias=True), v2.CenterCrop(size)]
        train, test = (
            self._images(place.data_dir, split, v2.Compose([*transforms, v2.PILToTensor()]))
            for split, transforms in (("train", augmentation), ("test", centre))
        )
        if train.class_names != test.class_names:
            odd = sorted(set(train.class_names) ^ set(test.class_names))
            folders = [self._folder(place.data_dir, split) for split in SPLITS]
            raise damaged(
                self.name, folders[1], f"{folders[0]} has other class folders, for example {odd[0]}"
            )
        return DataBundle(train, test, Normalise(self.mean, self.std))

    def _images(self, data_dir: Path, split: str, transform: Any = None) -> "ImageFiles":
        root = self._folder(data_dir, split)
        if not root.is_dir():
            raise absent(self.name, root, data_dir)
        return ImageFiles(self.name, root, self.classes, transform)

    def labels(self, data_dir: Path, split: str) -> list[int]:
        return self._images(data_dir, split).labels

    def readings(self, data_dir: Path, split: str) -> Sequence[tuple[Path, Callable[[], Any]]]:
        from torchvision.transforms import v2

        images = self._images(data_dir, split, v2.PILToTensor())
        return [(images.path(index), partial(images.__getitem__, index)) for index in range(len(images))]

    def prepare(self, data_dir: Path, progress: Progress) -> list[str]:
        from torchvision.datasets import imagenet as published

        root = data_dir / self.folder
        if all(folder.is_dir() for folder in self.needed(data_dir)):
            return [already_there(root)]
        archives = {part: root / published.ARCHIVE_META[part][0] for part in ("train", "val", "devkit")}
        lacking = [archive.name for archive in archives.values() if not archive.is_file()]
        if lacking:
            raise DataError(
                f"ImageNet cannot be downloaded without an account: get {', '.join(lacking)} from {PAGE} "
                f"into {root} and run this command again; or put a folder of JPEGs for each of the "
                f"{self.classes} classes below {root / 'train'} and {root / 'val'}"
            )

        def parse(part: str, parser: Callable[..., None], staging: Path) -> None:
            progress(f"checking and unpacking {archives[part].name}", 0, None)
            parser(str(root), folder=staging.name)

        try:
            published.parse_devkit_archive(str(root))
            for part, parser in (
                ("train", published.parse_train_archive),
                ("val", published.parse_val_archive),
            ):
                if not (root / part).is_dir():
                    all_or_nothing(root / part, partial(parse, part, parser))
        except ImportError as error:
            raise DataError(
                f"unpacking ImageNet needs the package scipy ({error}): pip install 'sltt-bench[imagenet]'"
            ) from None
        # What torchvision raises for an archive that is damaged (RuntimeError) depends on where.
        except (RuntimeError, EOFError, ValueError) as error:
            raise DataError(f"data set {self.name!r}: {error}") from None
        return [f"Unpacked ImageNet to {root}; its archives may be deleted."]


class ImageFiles:
    """The images below one folder; a class is a folder, numbered in the order of the names."""

    def __init__(self, name: str, root: Path, classes: int, transform: Any) -> None:
        """Raises DataError if a class is missing or empty."""
        from torchvision.datasets import ImageFolder

        self._name = name
        try:
            self._files = ImageFolder(str(root), transform=transform)
        except FileNotFoundError as error:
            raise damaged(name, root, error) from None
        self.class_names: list[str] = self._files.classes
        if len(self.class_names) != classes:
            reason = f"it has {len(self.class_names)} class folders instead of {classes}"
            raise damaged(name, root, reason)
        self.labels: list[int] = self._files.targets

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> "tuple[Tensor, int]":
        try:
            x, label = self._files[index]
        # OSError: cut short, or no image; SyntaxError: what Pillow says to some broken headers.
        except (OSError, SyntaxError) as error:
            raise damaged(self._name, self.path(index), error) from None
        return x, label

    def path(self, index: int) -> Path:
        """The file of a sample."""
        return Path(self._files.samples[index][0])
