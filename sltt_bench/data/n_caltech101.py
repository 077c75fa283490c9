"""N-Caltech101: the images of Caltech101 in front of an event camera that makes saccades (Orchard et al. 2015).

Read from `Caltech101/<class>/image_<number>.bin`. There is no official split.
"""

from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from sltt_bench.common.extras import load_extra
from sltt_bench.common.strict import Count
from sltt_bench.data.download import already_there, fetch, tonic_dataset, unpack_and_find, unpack_to
from sltt_bench.data.errors import DataError, absent
from sltt_bench.data.events import (
    EVENT,
    EventSource,
    Framing,
    Recording,
    UnreadableEvents,
    as_events,
    file_key,
    recording_files,
    tested_places,
)
from sltt_bench.data.images import class_folders
from sltt_bench.data.source import Progress, Seed

EVENT_BYTES = 5


class NCaltech101(EventSource):
    """N-Caltech101: 100 kinds of objects and a background in front of a 240×180 event camera."""

    name: Literal["n-caltech101"] = "n-caltech101"
    split: Literal["random-90-10-of-each-class"] = "random-90-10-of-each-class"
    """A tenth of each class, rounded down and drawn by split_seed, tests."""
    split_seed: Seed = 0
    """Names the split."""
    train_samples: Count = 7_886
    test_samples: Count = 823
    image_size: Annotated[int, Field(ge=8, le=180)] = 48
    """Pixels of a side of a frame, of mean counts."""

    folder: ClassVar[str] = "Caltech101"
    width: ClassVar[int] = 240
    height: ClassVar[int] = 180
    classes: ClassVar[int] = 101

    def needed(self, data_dir: Path) -> list[Path]:
        return [data_dir / self.folder]

    def framing(self, timesteps: int) -> Framing:
        return Framing(timesteps, self.width, self.image_size, "mean-count", self.height)

    def recordings(self, data_dir: Path, split: str) -> list[Recording]:
        root = data_dir / self.folder
        if not root.is_dir():
            raise absent(self, root, data_dir)
        # The cache of frames is there, too.
        class_names = class_folders(self.name, root, self.classes, but_for="frames")
        recordings = []
        for label, class_name in enumerate(class_names):
            files = recording_files(self.name, root / class_name, "*.bin")
            test = tested_places(len(files), self.split_seed, label)
            recordings += [
                Recording(file, (label,), partial(read, file), file_key(file))
                for place, file in enumerate(files)
                if (place in test) == (split == "test")
            ]
        return recordings

    def prepare(self, data_dir: Path, progress: Progress) -> list[str]:
        root = data_dir / self.folder
        if root.is_dir():
            return [already_there(root)]
        published = tonic_dataset("NCALTECH101")
        archive, unpacked = data_dir / published.filename, data_dir / "N-Caltech101-archive"
        fetch([published.url], archive, published.file_md5, progress)
        inner = unpack_and_find(archive, unpacked, published.data_filename, progress)
        unpack_to(root, inner, progress, inner=self.folder)
        return [f"Unpacked {self.name} to {root}; {archive} and {unpacked} may be deleted."]


def read(file: Path) -> list[np.ndarray]:
    """The events of the one sample in a file. Raises UnreadableEvents, DataError."""
    tonic_io = load_extra("tonic.io", "events", f"reading {file}", DataError)
    # tonic's reader takes what is left of an event for one.
    if file.stat().st_size % EVENT_BYTES:
        raise UnreadableEvents("not a whole recording (it ends in the middle of an event)")
    raw = tonic_io.read_mnist_file(
        str(file), dtype=np.dtype([(name, EVENT[name]) for name in ("x", "y", "t", "p")])
    )
    return [as_events(raw["t"], raw["x"], raw["y"], raw["p"])]
