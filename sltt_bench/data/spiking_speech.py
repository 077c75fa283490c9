"""Spiking Heidelberg Digits and Spiking Speech Commands: speech as spikes of a model cochlea (Cramer et al. 2020).

Read from HDF5 files as published: for each sample the times (in seconds) and units (0…699) of its spikes.
They are binned to T slices of equal duration, and units next to each other to channels.

HDF5 does so in a process beside this one: where zeros stand in a damaged file it looks for ever, and no signal that
Python handles ends that.
"""

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from sltt_bench.common.extras import load_extra
from sltt_bench.common.strict import Count
from sltt_bench.data.beside import Lost, ask, serve
from sltt_bench.data.download import already_there, fetch, tonic_dataset, unpack_and_find
from sltt_bench.data.errors import DamagedData, DataError, UnendingRead, absent, damaged, reading
from sltt_bench.data.source import SPLITS, DataPlace, DataSource, Modality, Progress, Shape

if TYPE_CHECKING:
    from torch import Tensor

UNITS = 700


class SpikingSpeech(DataSource):
    """What both data sets share."""

    window_s: Annotated[float, Field(gt=0)]
    """Seconds that are shown; later spikes are left out."""
    units_per_channel: Literal[1, 2, 5, 7, 10, 20] = 1
    """Neighbouring units of the 700 that are counted together: 1 as published, 5 in later work."""

    tonic_name: ClassVar[str]
    """The class in tonic.datasets, which knows addresses and checksums."""
    modality: ClassVar[Modality] = "speech"
    temporal: ClassVar[bool] = True

    @property
    def parts(self) -> dict[str, str]:
        """The published part that each of "train" and "test" is."""
        return {"train": "train", "test": "test"}

    @property
    def sample_shape(self) -> Shape:
        return (UNITS // self.units_per_channel, 1, 1)

    def _file(self, data_dir: Path, split: str) -> Path:
        prefix = self.tonic_name
        return data_dir / prefix / f"{prefix.lower()}_{self.parts[split]}.h5"

    def needed(self, data_dir: Path) -> list[Path]:
        return [self._file(data_dir, split) for split in SPLITS]

    def samples_of(self, split: str, place: DataPlace) -> "SpikeSamples":
        """Counts [T, channels, 1, 1] in uint8, binned when they are asked for."""
        file = self._file(place.data_dir, split)
        if not file.is_file():
            raise absent(self, file, place.data_dir)
        binning = {
            "timesteps": place.timesteps,
            "window": self.window_s,
            "units_per_channel": self.units_per_channel,
        }
        samples = SpikeSamples(self.name, file, binning)
        if samples.labels and not 0 <= min(samples.labels) <= max(samples.labels) < self.classes:
            raise damaged(self.name, file, f"it has labels outside 0…{self.classes - 1}")
        return samples

    def readings(self, data_dir: Path, split: str) -> list[tuple[Path, Callable[[], Any]]]:
        samples = self.samples_of(split, DataPlace(data_dir, timesteps=1))
        return [(samples.file, partial(samples.counts, index)) for index in range(len(samples))]

    def prepare(self, data_dir: Path, progress: Progress) -> list[str]:
        published, done = tonic_dataset(self.tonic_name), []
        for split in SPLITS:
            file, part = self._file(data_dir, split), self.parts[split]
            if file.is_file():
                done.append(already_there(file))
                continue
            archive = file.with_name(getattr(published, f"{part}_zip"))
            fetch([published.base_url + archive.name], archive, getattr(published, f"{part}_md5"), progress)
            staging = file.with_name(f"{part}-unpacked")
            unpack_and_find(archive, staging, file.name, progress).replace(file)
            shutil.rmtree(staging)
            done.append(f"Downloaded {archive} and unpacked it to {file}.")
        return done


class SHD(SpikingSpeech):
    """Spiking Heidelberg Digits: spoken digits in English and German as spikes of 700 units."""

    name: Literal["shd"] = "shd"
    split: Literal["official"] = "official"
    """The split that the data set is published with; two of the twelve speakers are in the test part alone."""
    train_samples: Count = 8_156
    test_samples: Count = 2_264
    window_s: Annotated[float, Field(gt=0)] = 1.4
    """Seconds that are shown, as in the authors' own experiments."""

    tonic_name: ClassVar[str] = "SHD"
    classes: ClassVar[int] = 20


class SSC(SpikingSpeech):
    """Spiking Speech Commands: 35 spoken words as spikes of 700 units."""

    name: Literal["ssc"] = "ssc"
    split: Literal["official", "official-validation"] = "official"
    """official tests on the test part; official-validation on the validation part, for choosing settings."""
    train_samples: Count = 75_466
    test_samples: Count = 20_382
    window_s: Annotated[float, Field(gt=0)] = 1.0
    """Seconds that are shown; recordings last one."""

    split_samples: ClassVar[dict[str, tuple[int, int]]] = {"official-validation": (75_466, 9_981)}
    tonic_name: ClassVar[str] = "SSC"
    classes: ClassVar[int] = 35

    @property
    def parts(self) -> dict[str, str]:
        return {"train": "train", "test": "valid" if self.split == "official-validation" else "test"}


# Binning ----------------------------------------------------------------------------------------


def bin_spikes(
    times: np.ndarray, units: np.ndarray, *, timesteps: int, window: float, units_per_channel: int
) -> np.ndarray:
    """Counts [T, 700 / units_per_channel] in uint8 of spikes at `times` [N] (s) of `units` [N].

    Slice t holds the times from t to t + 1 of the T parts of `window`; later spikes are left out. Raises
    ValueError for times that are negative or not finite, and for units that the cochlea has not.
    """
    times, units = times.astype(np.float64), units.astype(np.int64)
    if len(times) != len(units):
        raise ValueError(f"it has {len(times)} times, but {len(units)} units")
    if len(times) and not (np.isfinite(times).all() and times.min() >= 0):
        raise ValueError("it has spikes at times that are negative or not finite")
    if len(units) and not 0 <= units.min() <= units.max() < UNITS:
        raise ValueError(f"it has spikes of units outside 0…{UNITS - 1}")
    shown = times < window
    slices = (times[shown] * (timesteps / window)).astype(np.int64).clip(max=timesteps - 1)
    channels = UNITS // units_per_channel
    places = slices * channels + units[shown] // units_per_channel
    counts = np.bincount(places, minlength=timesteps * channels).reshape(timesteps, channels)
    return np.minimum(counts, 255).astype(np.uint8)


LIMIT_S = 20
"""A sample takes milliseconds, the list of all of them a second."""


class SpikeSamples:
    """The samples of one HDF5 file, each read when it is asked for; a process has one beside it that reads."""

    def __init__(self, name: str, file: Path, binning: Mapping[str, Any]) -> None:
        """`binning`: the options of `bin_spikes`. Raises DataError if the file is no whole HDF5 file of spikes."""
        load_extra("h5py", "speech", f"reading {file}", DataError)
        self.file = file
        self._name = name
        self._binning = dict(binning)
        self.labels: list[int] = self._asked(None, "opening it")[0]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> "tuple[Tensor, int]":
        import torch

        return torch.from_numpy(self.counts(index))[..., None, None], self.labels[index]

    def counts(self, index: int) -> np.ndarray:
        """Counts [T, channels] of one sample. Raises DataError."""
        shape, content = self._asked(index, f"sample {index}: reading it")
        return np.frombuffer(bytearray(content), np.uint8).reshape(shape)

    def _asked(self, index: int | None, doing: str) -> tuple[list[int], bytes]:
        """The shape and the counts of a sample, or all labels and nothing. Raises DataError."""
        question = [self._name, str(self.file), index, self._binning]
        try:
            (fault, numbers), content = ask(__name__, question, LIMIT_S)
        except Lost as lost:
            raise UnendingRead(str(damaged(self._name, self.file, f"{doing} was {lost}"))) from None
        if fault is not None:
            raise DamagedData(fault)
        return numbers, content


# Within the process beside ----------------------------------------------------------------------

_open: dict[Path, Any] = {}
"""The HDF5 files of which samples were asked for, by path."""


def _answer(question: tuple[str, str, int | None, dict[str, Any]]) -> tuple[Any, bytes]:
    """(what is wrong or None, shape) and counts of a sample of a file; (the same, labels) of the file and nothing."""
    name, path, index, binning = question
    try:
        if index is None:
            return (None, _labels(name, Path(path))), b""
        counts = _counts(name, Path(path), index, binning)
        return (None, counts.shape), counts.tobytes()
    except DataError as error:
        return (str(error), []), b""


def _labels(name: str, file: Path) -> list[int]:
    """Of all samples, in order. Raises DataError if the file is no whole HDF5 file of spikes."""
    import h5py

    faults = (OSError, KeyError, ValueError, TypeError)
    with (
        reading(name, file, *faults, reason="not a whole HDF5 file of spikes ({})"),
        h5py.File(file, "r") as content,
    ):
        labels = [int(label) for label in content["labels"][()]]
        lengths = {len(content["spikes"][key]) for key in ("times", "units")} | {len(labels)}
    if len(lengths) > 1:
        raise damaged(name, file, f"labels, times and units are of different length {sorted(lengths)}")
    return labels


def _counts(name: str, file: Path, index: int, binning: Mapping[str, Any]) -> np.ndarray:
    """Of one sample. Raises DataError."""
    import h5py

    with reading(name, file, OSError, KeyError, ValueError, reason=f"sample {index}: {{}}"):
        if file not in _open:
            _open[file] = h5py.File(file, "r")
        spikes = _open[file]["spikes"]
        return bin_spikes(spikes["times"][index], spikes["units"][index], **binning)


if __name__ == "__main__":
    serve(_answer)
