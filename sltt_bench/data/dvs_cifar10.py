"""CIFAR10-DVS: recordings of CIFAR-10 images moved in front of an event camera (Li et al. 2017).

Read from `CIFAR10DVS/<class>/cifar10_<class>_<number>`, either `.aedat4` as the tonic library
distributes them, or `.aedat` as they were published and as the paper's code reads them. The two
differ in how the camera's axes are laid out, which training from scratch does not notice.
"""

import re
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from sltt_bench.data import DataBundle, DataError, DataPlace, absent, damaged
from sltt_bench.data.events import (
    EVENT,
    FrameCache,
    FrameDataset,
    Framing,
    Recording,
    UnreadableEvents,
    file_key,
    prepare_splits,
)
from sltt_bench.data.options import DVSCIFAR10Options

FOLDER = "CIFAR10DVS"
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
FIRST_TEST_NUMBER = 900
"""Recordings of a class with a smaller number train."""


def load(options: DVSCIFAR10Options, place: DataPlace) -> DataBundle:
    """Both splits as frames [T, 2, image_size, image_size]. Raises DataError."""
    framing = Framing(place.timesteps, SENSOR_SIZE, options.image_size, options.resize)
    cache = FrameCache(options.name, place.data_dir / FOLDER / "frames", framing)
    numbered = recordings(options, place.data_dir)
    train = FrameDataset([r for number, r in numbered if number < FIRST_TEST_NUMBER], cache)
    test = FrameDataset([r for number, r in numbered if number >= FIRST_TEST_NUMBER], cache)
    prepare_splits(train, test, cache, options, place.progress)
    return DataBundle(train, test, bytes_to_input if options.resize == "published" else Tensor.float)


def bytes_to_input(x: Tensor) -> Tensor:
    """Bytes → 0…1."""
    return x.float() / 255


def recordings(options: DVSCIFAR10Options, data_dir: Path) -> list[tuple[int, Recording]]:
    """All recordings with their numbers, by class and number. Raises DataError."""
    root = data_dir / FOLDER
    if not root.is_dir():
        raise absent(options.name, root, data_dir)
    found = []
    for label, class_name in enumerate(CLASSES):
        folder = root / class_name
        if not folder.is_dir():
            raise absent(options.name, folder, data_dir)
        files = sorted(folder.glob("*.aedat4")) or sorted(folder.glob("*.aedat"))
        found += sorted((_number(options, file), label, file) for file in files)
    return [
        (number, Recording(file, (label,), partial(read, file), file_key(file)))
        for number, label, file in sorted(found, key=lambda entry: (entry[1], entry[0]))
    ]


def _number(options: DVSCIFAR10Options, file: Path) -> int:
    match = re.search(r"_(\d+)$", file.stem)
    if match is None:
        raise damaged(options.name, file, "its name does not end with the number of the recording")
    return int(match[1])


# Reading ----------------------------------------------------------------------------------------


def read(file: Path) -> list[np.ndarray]:
    """The events of the one sample in a file. Raises UnreadableEvents, DataError."""
    return [_read_aedat4(file) if file.suffix == ".aedat4" else _read_aedat2(file)]


def _read_aedat4(file: Path) -> np.ndarray:
    try:
        from tonic.io import read_aedat4

        raw = read_aedat4(str(file))
    except ImportError as error:
        raise DataError(
            f"reading {file} needs the packages tonic and aedat ({error}): pip install 'sltt-bench[events]'"
        ) from None
    # tonic and its decoder raise bare RuntimeError and Exception.
    except Exception as error:
        raise UnreadableEvents(f"not a whole AEDAT 4 file ({error})") from None
    events = np.empty(len(raw), dtype=EVENT)
    for name, column in zip(("t", "x", "y", "p"), raw.dtype.names, strict=True):
        events[name] = raw[column]
    return events


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
    events = np.empty(len(address), dtype=EVENT)
    events["t"] = time
    events["x"] = SENSOR_SIZE - 1 - (address >> 1 & 0x7F)
    events["y"] = address >> 8 & 0x7F
    events["p"] = address & 1 == 0
    return events
