"""The embedded digits in front of a simulated event camera that makes three small saccades.

The camera looks at the 8×8 digit, interpolated to its own pixels, and moves along a triangle as in
N-MNIST (Orchard et al. 2015): from the centre of the first side's start along three sides of equal
length, a saccade each. A pixel remembers the logarithm of the intensity at its last event; when the
intensity now differs by the threshold it sends an event of that polarity, at the time that linear
interpolation gives, and remembers the level it crossed (Lichtsteiner et al. 2008). No noise: the
events are a pure function of the digit and the options.
"""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from sltt_bench.data.digits import DigitsSource, digits_split
from sltt_bench.data.errors import DataError
from sltt_bench.data.events import FrameCache, Framing, Recording, as_events
from sltt_bench.data.source import SPLITS, DataBundle, DataPlace, Modality, Shape

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = "digits-saccade"
DIGIT_SIZE = 8
BRIGHTEST = 16
DARK = 0.1
"""Intensity of the background, where the brightest pixel adds 1: the logarithm needs light everywhere."""
CORNERS = np.array([(-0.5, -0.29), (0.5, -0.29), (0.0, 0.58), (-0.5, -0.29)])
"""The triangle (x, y) that the gaze follows, in units of a side; its centre is the digit's."""
STEPS_PER_SACCADE = 20
STEP_US = 5_000
"""A saccade takes 100 ms."""
SIMULATED_AT_ONCE = 16
"""Digits; enough for NumPy to be efficient, few enough to stay in the processor's caches."""
SIMULATION_VERSION = 1
"""To be raised whenever the same digit gives other events."""


class DigitsSaccade(DigitsSource):
    """The embedded digits in front of a simulated event camera that makes three small saccades."""

    name: Literal["digits-saccade"] = "digits-saccade"
    image_size: Annotated[int, Field(ge=8, le=128)] = 32
    """Pixels of a side of the simulated sensor."""
    threshold: Annotated[float, Field(ge=0.01, le=2)] = 0.25
    """Change of log intensity at which a pixel sends an event; the brightest changes by 2.4."""
    amplitude: Annotated[float, Field(gt=0, le=8)] = 1.0
    """Length of a saccade's path in pixels of the 8×8 digit."""

    modality: ClassVar[Modality] = "events"
    temporal: ClassVar[bool] = True

    @property
    def sample_shape(self) -> Shape:
        return (2, self.image_size, self.image_size)

    def load(self, place: DataPlace) -> DataBundle:
        """Both splits as frames [T, 2, image_size, image_size] of event counts. Raises DataError."""
        import torch
        from torch.utils.data import TensorDataset

        framing = Framing(place.timesteps, self.image_size, self.image_size, "mean-count")
        cache = FrameCache(self.name, place.data_dir / FOLDER / "frames", framing)
        recordings = [self.recording(split) for split in SPLITS]
        cache.fill(recordings, workers=0, progress=place.progress)
        train, test = (
            TensorDataset(torch.from_numpy(cache.frames(split)), torch.tensor(split.labels))
            for split in recordings
        )
        return DataBundle(train, test, self.preprocess)

    def preprocess(self, x: "Tensor") -> "Tensor":
        """Counts, which are no pixel values, as float32."""
        return x.float()

    def recording(self, split: str) -> Recording:
        """All samples of "train" or "test"."""
        camera = (self.image_size, self.threshold, self.amplitude)
        return Recording(
            file=Path(split),
            labels=tuple(digits_split(split)[1].tolist()),
            read=partial(simulate_split, split, *camera),
            key=f"{SIMULATION_VERSION} {split} {camera}",
        )


def simulate_split(split: str, size: int, threshold: float, amplitude: float) -> Iterator[np.ndarray]:
    """The events of every digit of "train" or "test". Raises DataError for a digit without any."""
    images, _ = digits_split(split)
    path = gaze(amplitude)
    for first in range(0, len(images), SIMULATED_AT_ONCE):
        together = images[first : first + SIMULATED_AT_ONCE]
        for events in simulate(together / BRIGHTEST, path, size, threshold):
            if not len(events):
                raise DataError(
                    f"data set 'digits-saccade': a digit sends no event at data.threshold {threshold:g} and data.amplitude "
                    f"{amplitude:g}; lower the threshold or change the amplitude"
                )
            yield events


def gaze(amplitude: float) -> np.ndarray:
    """Where the camera looks [steps + 1, 2]: (x, y) from the digit's centre, in pixels of the digit."""
    along = np.linspace(0, 1, STEPS_PER_SACCADE, endpoint=False)[:, None]
    sides = [start + along * (end - start) for start, end in pairwise(CORNERS)]
    return amplitude * np.concatenate([*sides, CORNERS[-1:]])


def simulate(images: np.ndarray, path: np.ndarray, size: int, threshold: float) -> list[np.ndarray]:
    """For each image [N, 8, 8] of values 0…1 the events, by time, of a camera that looks along `path`.

    The camera has size×size pixels. A pixel can send several events within a step.
    """
    log_intensity = np.log(DARK + views(images, path, size)).reshape(len(images), len(path), -1)
    remembered = log_intensity[:, 0].flatten()  # the pixels of all images, as they lie in memory
    pixel_parts, time_parts, sign_parts = [], [], []
    for step in range(1, len(path)):
        before, now = log_intensity[:, step - 1].ravel(), log_intensity[:, step].ravel()
        thresholds = (now - remembered) / threshold
        crossed = np.flatnonzero(np.abs(thresholds) >= 1)
        crossings = np.trunc(thresholds[crossed])
        repeats = np.abs(crossings).astype(np.int64)
        pixels, signs = crossed.repeat(repeats), np.sign(crossings).repeat(repeats)
        nth = 1 + np.arange(len(pixels)) - (np.cumsum(repeats) - repeats).repeat(repeats)
        levels = remembered[pixels] + signs * nth * threshold
        earlier = before[pixels]
        within = (levels - earlier) / (now[pixels] - earlier)
        pixel_parts.append(pixels)
        time_parts.append(((step - 1 + within.clip(0, 1)) * STEP_US).astype(np.int64))
        sign_parts.append(signs)
        remembered[crossed] += crossings * threshold
    image, pixel = np.divmod(np.concatenate(pixel_parts), size * size)
    y, x = np.divmod(pixel, size)
    events = as_events(np.concatenate(time_parts), x, y, np.concatenate(sign_parts) > 0)
    order = np.argsort(image * (len(path) * STEP_US) + events["t"], kind="stable")
    ends = np.cumsum(np.bincount(image, minlength=len(images)))
    return np.split(events[order], ends[:-1])


def views(images: np.ndarray, path: np.ndarray, size: int) -> np.ndarray:
    """What the camera sees of each image at each step [N, steps + 1, size, size].

    Interpolated linearly, and dark beyond the image.
    """
    columns = _interpolation(path[:, 0], size)
    rows = _interpolation(path[:, 1], size)
    seen: np.ndarray = rows @ images[:, None] @ columns.transpose(0, 2, 1)
    return seen


def _interpolation(shifts: np.ndarray, size: int) -> np.ndarray:
    """Weights [steps, size, 8] of the digit's pixels in each of the camera's, for each shift of the gaze."""
    centres = (np.arange(size) + 0.5) * DIGIT_SIZE / size - 0.5
    places = centres[None, :] + shifts[:, None]
    distance = np.abs(places[:, :, None] - np.arange(DIGIT_SIZE))
    weights: np.ndarray = np.clip(1 - distance, 0, None)
    return weights
