"""DVS-Gesture: 11 gestures of 29 people in front of an event camera (Amir et al. 2017).

Two ways of cutting IBM's recordings into samples are in use, each read from its own files:

    spikingjelly-1176-288   DVSGesture/DvsGesture/: IBM's archive; each row of a label file is a sample
    tonic-1077-264          DVSGesture/ibmGestureTrain/ and ibmGestureTest/: samples that tonic distributes
"""

from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from sltt_bench.data import DataBundle, DataPlace, absent, damaged
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
from sltt_bench.data.options import DVSGestureOptions

FOLDER = "DVSGesture"
IBM_FOLDER = "DvsGesture"
TRIALS = {"train": "trials_to_train.txt", "test": "trials_to_test.txt"}
TONIC_FOLDERS = {"train": "ibmGestureTrain", "test": "ibmGestureTest"}
SENSOR_SIZE = 128

Cut = tuple[int, int]
"""First and last microsecond (exclusive) of a sample."""


def load(options: DVSGestureOptions, place: DataPlace) -> DataBundle:
    """Both splits as frames [T, 2, image_size, image_size] of event counts. Raises DataError."""
    framing = Framing(place.timesteps, SENSOR_SIZE, options.image_size, "mean-count")
    cache = FrameCache(options.name, place.data_dir / FOLDER / "frames", framing)
    train, test = (
        FrameDataset(recordings(options, place.data_dir, split), cache) for split in ("train", "test")
    )
    prepare_splits(train, test, cache, options, place.progress)
    return DataBundle(train, test, Tensor.float)


def recordings(options: DVSGestureOptions, data_dir: Path, split: str) -> list[Recording]:
    """The recordings of "train" or "test". Raises DataError."""
    if options.split == "tonic-1077-264":
        return _of_tonic(options, data_dir, split)
    return _of_ibm(options, data_dir, split)


# Samples that tonic distributes -----------------------------------------------------------------


def _of_tonic(options: DVSGestureOptions, data_dir: Path, split: str) -> list[Recording]:
    root = data_dir / FOLDER / TONIC_FOLDERS[split]
    if not root.is_dir():
        raise absent(options.name, root, data_dir)
    files = sorted(root.glob("user*/*.npy"))
    return [
        Recording(file, (_tonic_label(options, file),), partial(read_tonic, file), file_key(file))
        for file in files
    ]


def _tonic_label(options: DVSGestureOptions, file: Path) -> int:
    if not file.stem.isdecimal() or int(file.stem) >= options.classes:
        raise damaged(options.name, file, f"its name is not a label (0…{options.classes - 1})")
    return int(file.stem)


def read_tonic(file: Path) -> list[np.ndarray]:
    """The events of a sample: an array [N, 4] of x, y, p and t in milliseconds. Raises UnreadableEvents."""
    try:
        columns = np.load(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UnreadableEvents(f"not a whole NumPy file ({error})") from None
    if columns.ndim != 2 or columns.shape[1] != 4:
        raise UnreadableEvents(f"an array of shape {columns.shape} instead of [N, 4]")
    events = np.empty(len(columns), dtype=EVENT)
    events["x"], events["y"], events["p"] = columns[:, 0], columns[:, 1], columns[:, 2]
    events["t"] = columns[:, 3].astype(np.int64) * 1000
    return [events]


# IBM's own recordings ---------------------------------------------------------------------------


def _of_ibm(options: DVSGestureOptions, data_dir: Path, split: str) -> list[Recording]:
    root = data_dir / FOLDER / IBM_FOLDER
    trials = root / TRIALS[split]
    if not trials.is_file():
        raise absent(options.name, trials, data_dir)
    names = [line.strip() for line in trials.read_text(encoding="utf-8").splitlines() if line.strip()]
    found = []
    for file in (root / name for name in names):
        labels_file = file.with_name(f"{file.stem}_labels.csv")
        for needed in (file, labels_file):
            if not needed.is_file():
                raise absent(options.name, needed, data_dir)
        labels, cuts = _read_labels(options, labels_file)
        found.append(Recording(file, labels, partial(read_ibm, file, cuts), file_key(file, labels, cuts)))
    return found


def _read_labels(options: DVSGestureOptions, file: Path) -> tuple[tuple[int, ...], tuple[Cut, ...]]:
    """Labels from 0 and the times between which each sample lies; the file counts labels from 1."""
    try:
        rows = np.loadtxt(file, dtype=np.int64, delimiter=",", skiprows=1, ndmin=2)
        labels = tuple(int(label) - 1 for label in rows[:, 0])
        cuts = tuple((int(start), int(end)) for start, end in rows[:, 1:3])
    except (ValueError, IndexError) as error:
        raise damaged(options.name, file, error) from None
    if not all(0 <= label < options.classes for label in labels):
        raise damaged(options.name, file, f"it has labels outside 1…{options.classes}")
    return labels, cuts


def read_ibm(file: Path, cuts: tuple[Cut, ...]) -> list[np.ndarray]:
    """The events of each sample in an AEDAT 3.1 file. Raises UnreadableEvents."""
    events = read_aedat3(file)
    return [events[(events["t"] >= start) & (events["t"] < end)] for start, end in cuts]


HEADER_END = b"#!END-HEADER\r\n"
PACKET_HEADER = np.dtype(
    [
        ("type", "<u2"),
        ("source", "<u2"),
        ("event_bytes", "<u4"),
        ("time_offset", "<u4"),
        ("time_overflow", "<u4"),
        ("capacity", "<u4"),
        ("number", "<u4"),
        ("valid", "<u4"),
    ]
)
POLARITY_EVENTS = 1


def read_aedat3(file: Path) -> np.ndarray:
    """All polarity events [N] of an AEDAT 3.1 file, in the file's order. Raises UnreadableEvents.

    After text lines come packets: a header, then events of (address, time), 32 bits each, where the
    header holds the upper bits of the time.
    """
    content = file.read_bytes()
    position = content.find(HEADER_END) + len(HEADER_END)
    if position < len(HEADER_END):
        raise UnreadableEvents("not an AEDAT 3.1 file (its header has no end)")
    packets = [np.empty(0, dtype=EVENT)]
    while position < len(content):
        if position + PACKET_HEADER.itemsize > len(content):
            raise UnreadableEvents("it ends in the middle of a packet")
        header = np.frombuffer(content, PACKET_HEADER, count=1, offset=position)[0]
        position += PACKET_HEADER.itemsize
        size = int(header["capacity"]) * int(header["event_bytes"])
        if position + size > len(content):
            raise UnreadableEvents("it ends in the middle of a packet")
        if header["type"] == POLARITY_EVENTS:
            packets.append(_polarity_events(content[position : position + size], header))
        position += size
    return np.concatenate(packets)


def _polarity_events(content: bytes, header: np.void) -> np.ndarray:
    address, time = np.frombuffer(content, "<u4").reshape(-1, 2).T.astype(np.int64)
    events = np.empty(len(address), dtype=EVENT)
    events["t"] = time | int(header["time_overflow"]) << 31
    events["x"] = address >> 17 & 0x7FFF
    events["y"] = address >> 2 & 0x7FFF
    events["p"] = address >> 1 & 1
    return events
