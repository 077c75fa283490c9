"""ImageNet (ILSVRC 2012): a folder of JPEGs for each class below `imagenet/train` and `imagenet/val`."""

from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from sltt_bench.data import DataBundle, DataPlace, absent, damaged
from sltt_bench.data.normalise import Normalise
from sltt_bench.data.options import ImageNetOptions

FOLDER = "imagenet"
SUBFOLDERS = {"train": "train", "test": "val"}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESIZED = 256 / 224
"""Test images are resized to so many times the side that is then cropped from their centre."""


def load(options: ImageNetOptions, place: DataPlace) -> DataBundle:
    """Both splits as images [3, image_size, image_size] in uint8. Raises DataError."""
    size = options.image_size
    augmentation = [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
    centre = [v2.Resize(round(size * RESIZED), antialias=True), v2.CenterCrop(size)]
    train, test = (
        ImageFiles(options, place.data_dir, split, v2.Compose([*transforms, v2.PILToTensor()]))
        for split, transforms in (("train", augmentation), ("test", centre))
    )
    if train.class_names != test.class_names:
        odd = sorted(set(train.class_names) ^ set(test.class_names))
        folders = [place.data_dir / FOLDER / subfolder for subfolder in SUBFOLDERS.values()]
        raise damaged(options.name, folders[1], f"{folders[0]} has other class folders, for example {odd[0]}")
    return DataBundle(train, test, Normalise(MEAN, STD))


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """The JPEGs of one split; a class is a folder, numbered in the order of the names."""

    def __init__(self, options: ImageNetOptions, data_dir: Path, split: str, transform: Any) -> None:
        """Raises DataError if the folder or a class is missing or empty."""
        self._name = options.name
        root = data_dir / FOLDER / SUBFOLDERS[split]
        if not root.is_dir():
            raise absent(options.name, root, data_dir)
        try:
            self._files = ImageFolder(str(root), transform=transform)
        except FileNotFoundError as error:
            raise damaged(options.name, root, error) from None
        self.class_names: list[str] = self._files.classes
        if len(self.class_names) != options.classes:
            reason = f"it has {len(self.class_names)} class folders instead of {options.classes}"
            raise damaged(options.name, root, reason)
        self.labels: list[int] = self._files.targets

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            x, label = self._files[index]
        # OSError: cut short, or no image; SyntaxError: what Pillow says to some broken headers.
        except (OSError, SyntaxError) as error:
            raise damaged(self._name, self.path(index), error) from None
        return x, label

    def path(self, index: int) -> Path:
        """The file of a sample."""
        return Path(self._files.samples[index][0])
