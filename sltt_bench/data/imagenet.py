"""ImageNet (ILSVRC 2012): a folder of JPEGs for each class below `imagenet/train` and `imagenet/val`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

from sltt_bench.common.strict import Count
from sltt_bench.data.download import all_or_nothing, already_there
from sltt_bench.data.errors import DataError
from sltt_bench.data.images import ImageSource
from sltt_bench.data.source import Progress

PAGE = "https://image-net.org/download-images"


class ImageNet(ImageSource):
    """ImageNet (ILSVRC 2012) as a folder of JPEGs for each class, below train/ and val/."""

    name: Literal["imagenet"] = "imagenet"
    split: Literal["official"] = "official"
    """Trained on train/, tested on the 50,000 images of val/."""
    train_samples: Count = 1_281_167
    test_samples: Count = 50_000

    folder: ClassVar[str] = "imagenet"
    classes: ClassVar[int] = 1000
    upright: ClassVar[bool] = False
    """As torchvision reads them, on whose pixels the paper's code and its checkpoints rest: EXIF is not looked at."""

    def root(self, data_dir: Path, split: str) -> Path:
        return data_dir / self.folder / ("train" if split == "train" else "val")

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
