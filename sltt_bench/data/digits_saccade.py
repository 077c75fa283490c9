"""scikit-learn's digits in front of a simulated event camera that makes three small saccades.

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

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from sltt_bench.data import DataBundle, DataPlace
from sltt_bench.data.digits import images_and_labels, split_indices
from sltt_bench.data.events import EVENT, FrameCache, Framing, Recording
from sltt_bench.data.options import DigitsSaccadeOptions

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
SIMULATION_VERSION = 1
"""To be raised whenever the same digit gives other events."""


def load(options: DigitsSaccadeOptions, place: DataPlace) -> DataBundle:
    """Both splits as frames [T, 2, image_size, image_size] of event counts. Raises DataError."""
    framing = Framing(place.timesteps, options.image_size, options.image_size, "mean-count")
    cache = FrameCache(options.name, place.data_dir / FOLDER / "frames", framing)
    splits = {split: recording(options, split) for split in ("train", "test")}
    cache.fill(list(splits.values()), workers=0, progress=place.progress)
    train, test = (_in_memory(splits[split], cache) for split in ("train", "test"))
    return DataBundle(train, test, Tensor.float)


def _in_memory(split: Recording, cache: FrameCache) -> TensorDataset:
    return TensorDataset(torch.from_numpy(np.array(cache.frames(split))), torch.tensor(split.labels))


def recording(options: DigitsSaccadeOptions, split: str) -> Recording:
    """All samples of "train" or "test"."""
    _, labels = images_and_labels()
    indices = split_indices(labels)[("train", "test").index(split)]
    camera = (options.image_size, options.threshold, options.amplitude)
    return Recording(
        file=Path(split),
        labels=tuple(labels[indices].tolist()),
        read=partial(simulate_split, split, *camera),
        key=f"{SIMULATION_VERSION} {split} {camera}",
    )


def simulate_split(split: str, size: int, threshold: float, amplitude: float) -> Iterator[np.ndarray]:
    """The events of every digit of "train" or "test"."""
    images, labels = images_and_labels()
    indices = split_indices(labels)[("train", "test").index(split)]
    path = gaze(amplitude)
    for image in images[indices]:
        yield simulate(image / BRIGHTEST, path, size, threshold)


def gaze(amplitude: float) -> np.ndarray:
    """Where the camera looks [steps + 1, 2]: (x, y) from the digit's centre, in pixels of the digit."""
    along = np.linspace(0, 1, STEPS_PER_SACCADE, endpoint=False)[:, None]
    sides = [start + along * (end - start) for start, end in pairwise(CORNERS)]
    return amplitude * np.concatenate([*sides, CORNERS[-1:]])


def simulate(image: np.ndarray, path: np.ndarray, size: int, threshold: float) -> np.ndarray:
    """Events [N] of dtype EVENT, by time, of a camera of size×size pixels that looks along `path`.

    `image` [8, 8] has values 0…1. A pixel can send several events within a step.
    """
    log_intensity = np.log(DARK + views(image, path, size))
    remembered = log_intensity[0]
    found = []
    for step in range(1, len(path)):
        before, now = log_intensity[step - 1], log_intensity[step]
        crossings = np.trunc((now - remembered) / threshold).astype(np.int64)
        y, x = np.nonzero(crossings)
        repeats = np.abs(crossings[y, x])
        y, x = y.repeat(repeats), x.repeat(repeats)
        sign = np.sign(crossings[y, x])
        nth = 1 + np.arange(len(y)) - (np.cumsum(repeats) - repeats).repeat(repeats)
        level = remembered[y, x] + sign * nth * threshold
        within = (level - before[y, x]) / (now - before)[y, x]
        events = np.empty(len(y), dtype=EVENT)
        events["t"] = ((step - 1 + within.clip(0, 1)) * STEP_US).astype(np.int64)
        events["x"], events["y"], events["p"] = x, y, sign > 0
        found.append(events)
        remembered = remembered + crossings * threshold
    every = np.concatenate(found)
    return every[np.argsort(every["t"], kind="stable")]


def views(image: np.ndarray, path: np.ndarray, size: int) -> np.ndarray:
    """What the camera sees at each step [steps + 1, size, size]: the digit, interpolated linearly; dark outside."""
    columns = _interpolation(path[:, 0], size)
    rows = _interpolation(path[:, 1], size)
    seen: np.ndarray = rows @ image @ columns.transpose(0, 2, 1)
    return seen


def _interpolation(shifts: np.ndarray, size: int) -> np.ndarray:
    """Weights [steps, size, 8] of the digit's pixels in each of the camera's, for each shift of the gaze."""
    centres = (np.arange(size) + 0.5) * DIGIT_SIZE / size - 0.5
    places = centres[None, :] + shifts[:, None]
    distance = np.abs(places[:, :, None] - np.arange(DIGIT_SIZE))
    weights: np.ndarray = np.clip(1 - distance, 0, None)
    return weights
