"""DVS-Gesture: 11 gestures of 29 people in front of an event camera (Amir et al. 2017).

Two ways of cutting IBM's recordings into samples are in use, each read from its own files:

    spikingjelly-1176-288   DVSGesture/DvsGesture/: IBM's archive; each row of a label file is a sample
    tonic-1077-264          DVSGesture/ibmGestureTrain/ and ibmGestureTest/: samples that tonic distributes
"""

from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from sltt_bench.common.strict import Count
from sltt_bench.data.download import already_there, check, fetch_and_unpack, tonic_dataset, unpack_to
from sltt_bench.data.errors import NOT_NUMPY, DataError, absent, damaged, reading
from sltt_bench.data.events import (
    EVENT,
    EventSource,
    Framing,
    Recording,
    UnreadableEvents,
    as_events,
    brighter,
    file_key,
    recording_files,
)
from sltt_bench.data.source import Progress

CLOCK_JITTER_US = 1_000_000
"""Events may be late by so much; more is a clock that was reset."""

Cut = tuple[int, int]
"""First and last microsecond (exclusive) of a sample."""


class DVSGesture(EventSource):
    """DVS-Gesture: 11 hand and arm gestures in front of a 128×128 event camera."""

    name: Literal["dvs-gesture"] = "dvs-gesture"
    split: Literal["spikingjelly-1176-288", "tonic-1077-264"] = "spikingjelly-1176-288"
    """How IBM's recordings are cut into samples. spikingjelly-1176-288: every row of the label files,
    as in the paper's code. tonic-1077-264: the samples that the tonic library distributes."""
    train_samples: Count = 1_176
    test_samples: Count = 288
    image_size: Annotated[int, Field(ge=8, le=128)] = 128
    """Pixels of a side; 128 is published, less (mean counts) makes smoke runs small."""

    split_samples: ClassVar[dict[str, tuple[int, int]]] = {"tonic-1077-264": (1_077, 264)}
    folder: ClassVar[str] = "DVSGesture"
    ibm_folder: ClassVar[str] = "DvsGesture"
    trials: ClassVar[dict[str, str]] = {"train": "trials_to_train.txt", "test": "trials_to_test.txt"}
    tonic_folders: ClassVar[dict[str, str]] = {"train": "ibmGestureTrain", "test": "ibmGestureTest"}
    page: ClassVar[str] = "https://ibm.ent.box.com/s/3hiq58ww1pbbjrinh367ykfdf60xsfm8"
    archive: ClassVar[str] = "DvsGesture.tar.gz"
    archive_md5: ClassVar[str] = "8a5c71fb11e24e5ca5b11866ca6c00a1"
    sensor_size: ClassVar[int] = 128
    classes: ClassVar[int] = 11

    def needed(self, data_dir: Path) -> list[Path]:
        root = data_dir / self.folder
        if self.split == "tonic-1077-264":
            return [root / folder for folder in self.tonic_folders.values()]
        return [root / self.ibm_folder / trials for trials in self.trials.values()]

    def framing(self, timesteps: int) -> Framing:
        return Framing(timesteps, self.sensor_size, self.image_size, "mean-count")

    def recordings(self, data_dir: Path, split: str) -> list[Recording]:
        if self.split == "tonic-1077-264":
            return self._of_tonic(data_dir, split)
        return self._of_ibm(data_dir, split)

    # Samples that tonic distributes -------------------------------------------------------------

    def _of_tonic(self, data_dir: Path, split: str) -> list[Recording]:
        root = data_dir / self.folder / self.tonic_folders[split]
        if not root.is_dir():
            raise absent(self, root, data_dir)
        return [
            Recording(file, (self._tonic_label(file),), partial(read_tonic, file), file_key(file))
            for file in recording_files(self.name, root, "user*/*.npy")
        ]

    def _tonic_label(self, file: Path) -> int:
        if not file.stem.isdecimal() or int(file.stem) >= self.classes:
            raise damaged(self.name, file, f"its name is not a label (0…{self.classes - 1})")
        return int(file.stem)

    # IBM's own recordings -----------------------------------------------------------------------

    def _of_ibm(self, data_dir: Path, split: str) -> list[Recording]:
        root = data_dir / self.folder / self.ibm_folder
        trials = root / self.trials[split]
        if not trials.is_file():
            raise absent(self, trials, data_dir)
        with reading(self.name, trials, OSError, ValueError):
            lines = trials.read_text(encoding="utf-8").splitlines()
        names = [line.strip() for line in lines if line.strip()]
        recordings = []
        for file in (root / name for name in names):
            labels_file = file.with_name(f"{file.stem}_labels.csv")
            for path in (file, labels_file):
                if not path.is_file():
                    raise absent(self, path, data_dir)
            labels, cuts = self._read_labels(labels_file)
            key = file_key(file, labels, cuts)
            recordings.append(Recording(file, labels, partial(read_ibm, file, cuts), key))
        return recordings

    def _read_labels(self, file: Path) -> tuple[tuple[int, ...], tuple[Cut, ...]]:
        """Labels from 0 and the times between which each sample lies; the file counts labels from 1."""
        with reading(self.name, file, OSError, ValueError, IndexError):
            lines = file.read_text(encoding="utf-8").splitlines()[1:]
            if not any(line.strip() for line in lines):
                raise ValueError("it names no sample")
            rows = np.loadtxt(lines, dtype=np.int64, delimiter=",", ndmin=2)
            labels = tuple(int(label) - 1 for label in rows[:, 0])
            cuts = tuple((int(start), int(end)) for start, end in rows[:, 1:3])
        if not all(0 <= label < self.classes for label in labels):
            raise damaged(self.name, file, f"it has labels outside 1…{self.classes}")
        return labels, cuts

    # Preparing ----------------------------------------------------------------------------------

    def prepare(self, data_dir: Path, progress: Progress) -> list[str]:
        root = data_dir / self.folder
        if self.split == "tonic-1077-264":
            return self._prepare_tonic(root, progress)
        folder, archive = root / self.ibm_folder, root / self.archive
        if folder.is_dir():
            return [already_there(folder)]
        if not archive.is_file():
            raise DataError(
                f"IBM's recordings cannot be downloaded by a program: get {self.archive} from {self.page} "
                f"into {root} and run this command again; or use the samples that tonic distributes, "
                "with --split tonic-1077-264 here and data.split=tonic-1077-264, data.train_samples=1077, "
                "data.test_samples=264 in the recipe"
            )
        check(archive, self.archive_md5, progress)
        unpack_to(folder, archive, progress, inner=self.ibm_folder)
        return [f"Unpacked {archive} to {folder}."]

    def _prepare_tonic(self, root: Path, progress: Progress) -> list[str]:
        published, done = tonic_dataset("DVSGesture"), []
        for split, folder_name in self.tonic_folders.items():
            folder, archive = root / folder_name, root / getattr(published, f"{split}_filename")
            url, md5 = getattr(published, f"{split}_url"), getattr(published, f"{split}_md5")
            done.append(fetch_and_unpack(url, archive, md5, folder, progress, inner=folder_name))
        return done


# Reading ----------------------------------------------------------------------------------------


def read_tonic(file: Path) -> list[np.ndarray]:
    """The events of a sample: an array [N, 4] of x, y, p and t in milliseconds. Raises UnreadableEvents."""
    try:
        columns = np.load(file, allow_pickle=False)
    except NOT_NUMPY as error:
        raise UnreadableEvents(f"not a whole NumPy file ({error})") from None
    if columns.ndim != 2 or columns.shape[1] != 4:
        raise UnreadableEvents(f"an array of shape {columns.shape} instead of [N, 4]")
    if columns.dtype.kind not in "uif" or not np.isfinite(columns).all():
        raise UnreadableEvents("an array that does not hold finite numbers alone")
    if len(columns) and np.abs(columns[:, :2]).max() > np.iinfo(np.int16).max:
        raise UnreadableEvents("it has events outside the pixels of any camera")
    x, y, p, milliseconds = columns.T
    return [as_events(milliseconds.astype(np.int64) * 1000, x, y, brighter(p))]


def read_ibm(file: Path, cuts: tuple[Cut, ...]) -> list[np.ndarray]:
    """The events of each sample in an AEDAT 3.1 file. Raises UnreadableEvents.

    Samples are cut by time, so a clock that was set back leaves no right way to cut.
    """
    events = read_aedat3(file)
    steps = np.diff(events["t"])
    if len(steps) and steps.min() < -CLOCK_JITTER_US:
        at = int(steps.argmin()) + 1
        raise UnreadableEvents(
            f"its clock runs back by {-steps[at - 1]:,} µs at event {at:,}; samples are cut by time"
        )
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
    time |= int(header["time_overflow"]) << 31
    return as_events(time, address >> 17 & 0x7FFF, address >> 2 & 0x7FFF, address >> 1 & 1)
