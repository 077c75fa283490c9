"""From events to frames, and the cache that keeps them: shared by all event-camera sources.

    recording  a file (or a simulation) with the events of one or more samples
    event      (t, x, y, p): time, pixel, and whether it became brighter
    slice      one of T stretches of a sample with equally many events
    frame      the events of a slice, counted for each polarity and pixel: [2, H, W]

Frames are made once and kept in a file for each recording.
"""

import hashlib
import json
import multiprocessing
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from sltt_bench.common.atomic_files import atomic_file, remove_unfinished
from sltt_bench.data.errors import NOT_NUMPY, DataError, damaged
from sltt_bench.data.images import is_hidden
from sltt_bench.data.source import (
    SPLITS,
    DataBundle,
    DataPlace,
    DataSource,
    Modality,
    Progress,
    SamplesInFiles,
    Shape,
    no_progress,
)

if TYPE_CHECKING:
    from torch import Tensor

EVENT = np.dtype([("t", np.int64), ("x", np.int16), ("y", np.int16), ("p", np.bool_)])
"""One event: time in microseconds, column, row, and True where the pixel became brighter."""
FRAMES_VERSION = 2
"""To be raised whenever the same events give other frames, or another file, so that no older cache is read."""

Resize = Literal["published", "mean-count"]


# Frames -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Framing:
    """How the events of a sample become frames [T, 2, image_size, image_size]."""

    timesteps: int
    """T, the number of slices."""
    sensor_size: int
    """Columns of the camera."""
    image_size: int
    """Pixels of a side of a frame."""
    resize: Resize
    """How frames are shrunk; see DVSCIFAR10."""
    sensor_height: int | None = None
    """Rows of the camera, if it is not as high as it is wide; frames are square all the same."""

    def frames(self, events: np.ndarray) -> np.ndarray:
        """Events [N] of dtype EVENT → frames: bytes (published), counts (int16) or mean counts (float32).

        Raises ValueError if there are no events, or some outside the sensor.
        """
        counts = count_frames(events, self.timesteps, self.sensor_size, self.sensor_height)
        if self.resize == "published":
            return _shrink_as_published(counts, self.image_size)
        if counts.shape[2:] == (self.image_size, self.image_size):
            return counts
        return _shrink_counts(counts, self.image_size)


def count_frames(events: np.ndarray, timesteps: int, width: int, height: int | None = None) -> np.ndarray:
    """Counts [T, 2, height or width, width] in int16 of T slices with N // T events each; the last takes the rest.
    Fewer events than slices have one each, where the paper's code gives all of them to the last.

    Events are taken in the order of the recording, in which the camera sent them: a clock that wraps
    around or steps back changes nothing. Channel 0 counts the pixels that became darker, 1 those that became brighter. Raises ValueError.
    """
    if len(events) == 0:
        raise ValueError("it holds no events")
    x, y = events["x"].astype(np.int64), events["y"].astype(np.int64)
    height = height or width
    if min(x.min(), y.min()) < 0 or x.max() >= width or y.max() >= height:
        raise ValueError(f"it has events outside the {width}×{height} pixels of the camera")
    slice_length = max(1, len(events) // timesteps)
    slices = np.minimum(np.arange(len(events)) // slice_length, timesteps - 1)
    places = ((slices * 2 + events["p"]) * height + y) * width + x
    shape = (timesteps, 2, height, width)
    counts = np.bincount(places, minlength=int(np.prod(shape))).reshape(shape)
    return np.minimum(counts, np.iinfo(np.int16).max).astype(np.int16)


def _shrink_as_published(counts: np.ndarray, image_size: int) -> np.ndarray:
    """What the paper's code makes of counts: bytes [T, 2, image_size, image_size].

    A float frame becomes a Pillow image by 255·n modulo 256, two channels by being luminance and
    alpha. Pillow then resizes the luminance weighted by alpha, so a darker event counts only where
    brighter ones are near.
    """
    wrapped = (counts.astype(np.int64) * 255 % 256).astype(np.uint8)
    return _shrink(wrapped.transpose(0, 2, 3, 1), image_size).transpose(0, 3, 1, 2)


def _shrink_counts(counts: np.ndarray, image_size: int) -> np.ndarray:
    """Mean counts [T, 2, image_size, image_size] in float32, by antialiased bilinear interpolation."""
    planes = counts.reshape(-1, *counts.shape[2:]).astype(np.float32)
    return _shrink(planes, image_size).reshape(*counts.shape[:2], image_size, image_size)


def _shrink(images: np.ndarray, size: int) -> np.ndarray:
    """Images [N, H, W, ...], each as Pillow takes it, → [N, size, size, ...]."""
    from PIL import Image

    pillows = (Image.fromarray(np.ascontiguousarray(image)) for image in images)
    return np.stack([np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)) for image in pillows])


# Recordings -------------------------------------------------------------------------------------


def as_events(t: np.ndarray, x: np.ndarray, y: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Columns [N] of any number type → events [N] of dtype EVENT.

    Raises UnreadableEvents for a column or row that is no whole number, or too large to be one of a camera.
    """
    events = np.empty(len(t), dtype=EVENT)
    with np.errstate(invalid="ignore"):
        events["t"], events["x"], events["y"], events["p"] = t, x, y, p
    for name, given in (("x", x), ("y", y)):
        if len(foreign := np.asarray(given)[events[name] != given]):
            raise UnreadableEvents(f"it has events outside the pixels of a camera: {name} = {foreign[0]}")
    return events


def brighter(polarities: np.ndarray) -> np.ndarray:
    """Polarities [N] as 0 and 1 → whether each pixel became brighter.

    Raises UnreadableEvents for any other value: a darker event that somebody wrote as -1 would count as a brighter one.
    """
    foreign = np.setdiff1d(polarities, (0, 1))
    if len(foreign):
        raise UnreadableEvents(f"its polarities are {', '.join(map(str, foreign[:3]))}; they must be 0 and 1")
    return polarities.astype(np.bool_)


class UnreadableEvents(Exception):
    """A file is not a whole recording; the message says why."""


@dataclass(frozen=True)
class Recording:
    """What is read at one go, and whose frames share a file of the cache."""

    file: Path
    """The file, for messages; what does not come from a file names what makes it."""
    labels: tuple[int, ...]
    """The label of each sample in it, in order."""
    read: Callable[[], Iterable[np.ndarray]]
    """The events [N] of each sample. Raises UnreadableEvents. Sent to other processes, so a partial
    of a function of a module."""
    key: str
    """Changes whenever the events do, and differs from every other recording's."""


def _frames_of(source: str, recording: Recording, framing: Framing) -> np.ndarray:
    """Frames [samples, T, 2, H, W] of a recording. Raises DataError."""
    frames: list[np.ndarray] = []
    try:
        for events in recording.read():
            frames.append(framing.frames(events))
    except (UnreadableEvents, OSError) as error:
        raise damaged(source, recording.file, error) from None
    except ValueError as error:
        which = f"sample {len(frames) + 1} of {len(recording.labels)}: " if len(recording.labels) > 1 else ""
        raise damaged(source, recording.file, f"{which}{error}") from None
    if len(frames) != len(recording.labels):
        reason = f"it has {len(frames)} samples instead of {len(recording.labels)}"
        raise damaged(source, recording.file, reason)
    return np.stack(frames)


def recording_files(source: str, folder: Path, pattern: str) -> list[Path]:
    """The files in `folder` of this pattern, in order; hidden ones are no recordings.

    Raises DataError if one of them is not there after all.
    """
    files = sorted(file for file in folder.glob(pattern) if not is_hidden(file.name))
    for file in files:
        if not file.is_file():
            raise damaged(source, file, "it is no file, or a link that leads nowhere")
    return files


def file_key(file: Path, *more: object) -> str:
    """A recording's key from its file's name, size and time of change, and what else tells it apart."""
    facts = file.stat()
    return json.dumps([*file.parts[-3:], facts.st_size, facts.st_mtime_ns, *map(str, more)])


# The cache --------------------------------------------------------------------------------------


class FrameCache:
    """Frames on disk: a folder for each way of making them, a file for each recording.

    A file is written under another name and then renamed, so one that is there was whole. It has two arrays, one behind
    the other: the frames and a checksum of each sample's, with which they are compared when a process first reads them.
    """

    def __init__(self, source: str, folder: Path, framing: Framing) -> None:
        self._source = source
        self._framing = framing
        self._whole: set[tuple[Path, int]] = set()
        """The samples that were compared, by file and number."""
        facts = {"version": FRAMES_VERSION, **asdict(framing)}
        title = f"T{framing.timesteps}-{framing.image_size}px-{framing.resize}"
        self.folder = folder / f"{title}-{_digest(json.dumps(facts, sort_keys=True))}"

    def path(self, recording: Recording) -> Path:
        """Where the frames of a recording are kept."""
        return self.folder / f"{recording.file.stem}-{_digest(recording.key)}.npy"

    def frames(self, recording: Recording) -> np.ndarray:
        """Frames [samples, T, 2, H, W] of a recording; made if they are not there. Raises DataError."""
        return self._read(recording, range(len(recording.labels)))

    def _read(self, recording: Recording, numbers: Sequence[int]) -> np.ndarray:
        """Frames [numbers, T, 2, H, W] of some samples of a recording. Raises DataError."""
        path = self.path(recording)
        if not path.exists():
            self.make(recording)
        try:
            # A file that was tampered with is never unpickled.
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
            self._check_layout(path, recording, mapped)
            frames: np.ndarray = mapped[numbers]
            if unknown := [number for number in numbers if (path, number) not in self._whole]:
                with path.open("rb") as file:
                    file.seek(mapped.offset + mapped.nbytes)
                    checksums = np.load(file, allow_pickle=False)
                for number in unknown:
                    if checksums[number] != _checksum(mapped[number]):
                        raise ValueError("the frames do not agree with their checksum")
                    self._whole.add((path, number))
        except (*NOT_NUMPY, IndexError) as error:
            raise DataError(f"cached frames {path} cannot be read: {error}; delete the file") from None
        return frames

    def _check_layout(self, path: Path, recording: Recording, frames: np.ndarray) -> None:
        """Raises DataError."""
        size = self._framing.image_size
        expected = (len(recording.labels), self._framing.timesteps, 2, size, size)
        if frames.shape != expected or frames.dtype.kind not in "uif":
            raise DataError(
                f"cached frames {path} are {frames.dtype} of shape {frames.shape} instead of numbers "
                f"of shape {expected}; delete the file"
            )

    def sample(self, place: tuple[Recording, int]) -> "Tensor":
        """Frames [T, 2, H, W] of one sample, given its recording and its number there. Raises DataError."""
        import torch

        recording, number = place
        return torch.from_numpy(self._read(recording, [number])[0])

    def make(self, recording: Recording) -> None:
        """Convert one recording and keep its frames. Raises DataError."""
        frames = _frames_of(self._source, recording, self._framing)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(self.path(recording)) as file:
                np.save(file, frames)
                np.save(file, np.array([_checksum(of_sample) for of_sample in frames], np.uint32))
        except OSError as error:
            raise DataError(
                f"data set {self._source!r}: cannot keep frames in {self.folder}: {error.strerror or error}; "
                "make the folder writable or choose another --data-dir"
            ) from None

    def fill(self, recordings: Sequence[Recording], workers: int, progress: Progress = no_progress) -> None:
        """Convert what is not there yet, in up to `workers` processes (0: in this one). Raises DataError."""
        remove_unfinished(self.folder)
        todo = [recording for recording in recordings if not self.path(recording).exists()]
        what = f"{self._source}: events to frames"
        if workers == 0 or len(todo) < 2 * workers:
            for done, recording in enumerate(todo, start=1):
                self.make(recording)
                progress(what, done, len(todo))
            return
        # Spawned, not forked: this process may already hold a GPU and threads.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            try:
                futures = [pool.submit(self.make, recording) for recording in todo]
                for done, future in enumerate(as_completed(futures), start=1):
                    future.result()
                    progress(what, done, len(todo))
            except BrokenProcessPool:
                raise DataError(
                    f"data set {self._source!r}: a process that makes frames of recordings was ended, by the system if "
                    "memory ran out; frames that are made are kept: run it again, with a smaller data.workers (0: none)"
                ) from None
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _checksum(frames: np.ndarray) -> int:
    """CRC-32 of the type and the numbers of one sample's frames."""
    return zlib.crc32(np.ascontiguousarray(frames).data, zlib.crc32(frames.dtype.str.encode()))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def tested_places(samples: int, seed: int, label: int) -> list[int]:
    """Which of a class's samples test in the random split of a seed: a tenth, rounded down."""
    shuffled = np.random.RandomState([seed, label]).permutation(samples)
    places: list[int] = sorted(shuffled[: samples // 10].tolist())
    return places


# The data set -----------------------------------------------------------------------------------


class EventSource(DataSource):
    """What event recordings share: each is cut into T slices of equal event count, a frame each."""

    folder: ClassVar[str]
    """Below the data folder."""
    modality: ClassVar[Modality] = "events"
    temporal: ClassVar[bool] = True

    @property
    def sample_shape(self) -> Shape:
        size = self.framing(timesteps=1).image_size
        return (2, size, size)

    def recordings(self, data_dir: Path, split: str) -> list[Recording]:
        """The recordings of "train" or "test". Raises DataError."""
        raise NotImplementedError

    def framing(self, timesteps: int) -> Framing:
        """How their events become frames."""
        raise NotImplementedError

    def load(self, place: DataPlace) -> DataBundle:
        """Both splits as frames [T, 2, image_size, image_size]. Raises DataError.

        Makes the frames of all samples that a run will show; a wrong count is an error before the
        conversion, which can take minutes, not after it.
        """
        import torch

        from sltt_bench.data.loading import evenly_spread

        cache = FrameCache(self.name, place.data_dir / self.folder / "frames", self.framing(place.timesteps))
        splits = [self._samples(place.data_dir, split) for split in SPLITS]
        train, test = (SamplesInFiles(samples, cache.sample) for samples in splits)
        self.check_counts(len(train), len(test))
        for samples in splits:
            shown = evenly_spread(torch.tensor([label for _, label in samples]), self.limit).tolist()
            of_shown = (samples[index][0][0] for index in shown)
            unique = {recording.key: recording for recording in of_shown}
            cache.fill(list(unique.values()), self.workers, place.progress)
        return DataBundle(train, test, self.preprocess)

    def _samples(self, data_dir: Path, split: str) -> list[tuple[tuple[Recording, int], int]]:
        """The recording, the number there, and the label of each sample. Raises DataError."""
        return [
            ((recording, number), label)
            for recording in self.recordings(data_dir, split)
            for number, label in enumerate(recording.labels)
        ]

    def labels(self, data_dir: Path, split: str) -> list[int]:
        return [label for _, label in self._samples(data_dir, split)]

    def readings(self, data_dir: Path, split: str) -> list[tuple[Path, Callable[[], Any]]]:
        framing = self.framing(timesteps=1)
        return [
            (recording.file, partial(_frames_of, self.name, recording, framing))
            for recording in self.recordings(data_dir, split)
        ]
