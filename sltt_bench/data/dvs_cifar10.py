"""CIFAR10-DVS: recordings of CIFAR-10 images moved in front of an event camera (Li et al. 2017).

Read from `CIFAR10DVS/<class>/cifar10_<class>_<number>`, either `.aedat4` as the tonic library
distributes them, or `.aedat` as they were published and as the paper's code reads them. The two
differ in how the camera's axes are laid out, which training from scratch does not notice.
"""

import re
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from sltt_bench.common.strict import ADDED_LATER, Count
from sltt_bench.data.aedat4 import read_aedat4
from sltt_bench.data.download import already_there, fetch, tonic_dataset, unpack_to
from sltt_bench.data.errors import absent, damaged
from sltt_bench.data.events import (
    EventSource,
    Framing,
    Recording,
    UnreadableEvents,
    as_events,
    file_key,
    recording_files,
    tested_places,
)
from sltt_bench.data.source import Progress, Seed, bytes_to_unit

if TYPE_CHECKING:
    from torch import Tensor

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
SENSOR_SIZE = 128


class DVSCIFAR10(EventSource):
    """CIFAR10-DVS: CIFAR-10 images moved in front of a 128×128 event camera."""

    name: Literal["dvs-cifar10"] = "dvs-cifar10"
    split: Literal["first-900-of-each-class", "random-900-of-each-class"] = "first-900-of-each-class"
    """There is no official one. first-900-of-each-class: recordings 0–899 of each class train and 900–999
    test, as in the paper's code. random-900-of-each-class: a tenth of each class, drawn by split_seed, tests."""
    split_seed: Annotated[Seed, ADDED_LATER] = 0
    """Names the random split."""
    train_samples: Count = 9_000
    test_samples: Count = 1_000
    image_size: Annotated[int, Field(ge=8, le=128)] = 48
    """Pixels of a side; 48 is published."""
    resize: Literal["published", "mean-count"] = "published"
    """published: what the paper's code feeds its network. Each count n becomes the byte 255·n mod 256,
    and both polarities are shrunk as the luminance and alpha of one image. mean-count: event counts,
    shrunk by antialiased bilinear interpolation."""

    folder: ClassVar[str] = "CIFAR10DVS"
    first_test_number: ClassVar[int] = 900
    classes: ClassVar[int] = len(CLASSES)

    def needed(self, data_dir: Path) -> list[Path]:
        return [data_dir / self.folder / class_name for class_name in CLASSES]

    def framing(self, timesteps: int) -> Framing:
        return Framing(timesteps, SENSOR_SIZE, self.image_size, self.resize)

    def preprocess(self, x: "Tensor") -> "Tensor":
        return bytes_to_unit(x) if self.resize == "published" else x.float()

    def recordings(self, data_dir: Path, split: str) -> list[Recording]:
        recordings = []
        for label, class_name in enumerate(CLASSES):
            folder = data_dir / self.folder / class_name
            if not folder.is_dir():
                raise absent(self, folder, data_dir)
            in_format = partial(recording_files, self.name, folder)
            files = in_format("*.aedat4") or in_format("*.aedat")
            numbered = sorted((self._number(file), file) for file in files)
            test = self._test_numbers([number for number, _ in numbered], label)
            recordings += [
                Recording(file, (label,), partial(read, file), file_key(file))
                for number, file in numbered
                if (number in test) == (split == "test")
            ]
        return recordings

    def _test_numbers(self, numbers: list[int], label: int) -> set[int]:
        """Which of a class's recordings test."""
        if self.split == "first-900-of-each-class":
            return {number for number in numbers if number >= self.first_test_number}
        return {numbers[place] for place in tested_places(len(numbers), self.split_seed, label)}

    def _number(self, file: Path) -> int:
        match = re.search(r"_(\d+)$", file.stem)
        if match is None:
            raise damaged(self.name, file, "its name does not end with the number of the recording")
        return int(match[1])

    def prepare(self, data_dir: Path, progress: Progress) -> list[str]:
        root = data_dir / self.folder
        todo = [class_name for class_name in CLASSES if not (root / class_name).is_dir()]
        if not todo:
            return [already_there(root)]
        archives = root
        if not all((root / f"{class_name}.zip").is_file() for class_name in todo):
            published = tonic_dataset("CIFAR10DVS")
            fetch([published.url], root / published.filename, published.file_md5, progress)
            archives = root / "archives"
            shutil.rmtree(archives, ignore_errors=True)
            unpack_to(archives, root / published.filename, progress)
        for class_name in todo:
            unpack_to(root / class_name, archives / f"{class_name}.zip", progress, inner=class_name)
        if archives != root:
            shutil.rmtree(archives)
        return [f"Unpacked {self.name} to {root}; the archives there may be deleted."]


# Reading ----------------------------------------------------------------------------------------


def read(file: Path) -> list[np.ndarray]:
    """The events of the one sample in a file. Raises UnreadableEvents, DataError."""
    return [read_aedat4(file) if file.suffix == ".aedat4" else _read_aedat2(file)]


def _read_aedat2(file: Path) -> np.ndarray:
    """Big-endian pairs of (address, time) after lines that begin with #; address bits as in a DVS128.

    Columns run from right to left and polarity is inverted in the file.
    """
    content = file.read_bytes()
    start = 0
    while content.startswith(b"#", start):
        line_end = content.find(b"\n", start)
        start = len(content) if line_end < 0 else line_end + 1
    if (len(content) - start) % 8:
        raise UnreadableEvents("not a whole AEDAT 2 file (it ends in the middle of an event)")
    address, time = np.frombuffer(content, dtype=">u4", offset=start).reshape(-1, 2).T.astype(np.int64)
    return as_events(time, SENSOR_SIZE - 1 - (address >> 1 & 0x7F), address >> 8 & 0x7F, address & 1 == 0)
