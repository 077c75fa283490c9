"""The data sets by name. What one must offer is in sltt_bench/data/source.py.

Third parties add one with the entry-point group `sltt_bench.data`; the object is a subclass of DataSource.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from sltt_bench.common.errors import nearest
from sltt_bench.common.plugins import find_plugin, plugins
from sltt_bench.data.errors import DamagedData, DataError, absent, command, with_remedy
from sltt_bench.data.source import (
    DataBundle,
    DataFinding,
    DataPlace,
    DataSource,
    Progress,
    Samples,
    no_progress,
)

__all__ = [
    "DATASETS",
    "DataBundle",
    "DataError",
    "DataFinding",
    "DataPlace",
    "DataSource",
    "Progress",
    "Samples",
    "UnknownDataset",
    "command",
    "load",
    "missing",
    "names",
    "no_progress",
    "prepare",
    "source_type",
    "source_with",
    "verify",
    "with_remedy",
]

Settings = Mapping[str, Any]
"""Field of a data set → value."""

DATASETS: Mapping[str, str] = {
    "digits": "sltt_bench.data.digits:Digits",
    "digits-saccade": "sltt_bench.data.digits_saccade:DigitsSaccade",
    "vowels": "sltt_bench.data.vowels:Vowels",
    "permuted-digits": "sltt_bench.data.pixel_sequences:PermutedDigits",
    "sequential-mnist": "sltt_bench.data.pixel_sequences:SequentialMNIST",
    "permuted-mnist": "sltt_bench.data.pixel_sequences:PermutedMNIST",
    "mnist": "sltt_bench.data.mnist:MNIST",
    "fashion-mnist": "sltt_bench.data.mnist:FashionMNIST",
    "cifar10": "sltt_bench.data.cifar:CIFAR10",
    "cifar100": "sltt_bench.data.cifar:CIFAR100",
    "imagenet": "sltt_bench.data.imagenet:ImageNet",
    "arrays": "sltt_bench.data.arrays:Arrays",
    "image-folder": "sltt_bench.data.image_folder:ImageFolder",
    "dvs-cifar10": "sltt_bench.data.dvs_cifar10:DVSCIFAR10",
    "dvs-gesture": "sltt_bench.data.dvs_gesture:DVSGesture",
    "n-caltech101": "sltt_bench.data.n_caltech101:NCaltech101",
    "shd": "sltt_bench.data.spiking_speech:SHD",
    "ssc": "sltt_bench.data.spiking_speech:SSC",
    "speech-commands": "sltt_bench.data.speech_commands:SpeechCommands",
    "delayed-recall": "sltt_bench.data.delayed_recall:DelayedRecall",
    "sequential-digits": "sltt_bench.data.pixel_sequences:SequentialDigits",
}
"""Name → "module:class"; a module is imported when its data set is asked for."""


class UnknownDataset(ValueError):
    """No registered data set has this name."""


def names() -> list[str]:
    """Every data set name, third-party ones included."""
    return [*DATASETS, *(entry.name for entry in plugins("data", DATASETS))]


def source_type(name: str) -> type[DataSource]:
    """The class of the data set called `name`. Raises UnknownDataset and PluginFailed."""
    source: type[DataSource] | None
    if name in DATASETS:
        source = resolve_name(DATASETS[name])
    elif (source := find_plugin("data", name, must_have=("load", "model_validate"))) is None:
        raise UnknownDataset(
            f"unknown data set {name!r}{nearest(name, names())}; known: {', '.join(names())}"
        )
    return source


def missing(source: DataSource, data_dir: Path) -> str | None:
    """Why the data cannot be loaded from below `data_dir`, or None if what they are read from is there.

    Free of torch and quick: it looks whether files and folders exist, not at what is in them. The message
    is that of the DataError that `load` would raise.
    """
    for path in source.needed(data_dir):
        if not path.exists():
            return str(absent(source, path, data_dir))
    return None


def load(source: DataSource, place: DataPlace) -> DataBundle:
    """Both splits, checked against the counts and classes that the recipe expects. Raises DataError."""
    from sltt_bench.data.loading import labels_of

    if (message := missing(source, place.data_dir)) is not None:
        raise DataError(message)
    bundle = source.load(place)
    source.check_counts(len(bundle.train), len(bundle.test))
    for split, samples in (("train", bundle.train), ("test", bundle.test)):
        if (outside := source.labels_outside(labels_of(samples).tolist())) is not None:
            raise DamagedData(f"data set {source.name!r}: the {split} split: {outside}")
    return bundle


def prepare(
    name: str, data_dir: Path, progress: Progress = no_progress, settings: Settings | None = None
) -> list[str]:
    """Get the data set called `name`, with these settings; returns what was done.

    Raises DataError, also if something that loading reads is still not there: of a folder that is there, what somebody
    removed is not got again.
    """
    source = source_with(name, settings)
    needed = source.needed(data_dir)
    if all(
        path.exists() for path in needed
    ):  # nothing is written: the folder may be one that nobody may write to
        return source.prepare(data_dir, progress)
    # Data sets that are made from the same files wait for each other.
    lock_file = data_dir / f".{needed[0].relative_to(data_dir).parts[0]}.lock"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with _alone(lock_file, progress):
            done = source.prepare(data_dir, progress)
    except OSError as error:
        raise DataError(
            f"data set {name!r}: {error}; is there room, and may {data_dir} be written to?"
        ) from None
    if lacking := [path for path in needed if not path.exists()]:
        raise DataError(f"data set {name!r}: {lacking[0]} is still not there. {' '.join(done)}")
    return done


@contextmanager
def _alone(lock_file: Path, progress: Progress) -> Iterator[None]:
    """Waits until no other process prepares the same data: two would write to the same files."""
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except NotImplementedError as error:  # a file system without locks
        raise DataError(
            f"{lock_file}: {error}; prepare the data on another file system and move them"
        ) from None
    except Timeout:
        progress(f"waiting for another `data prepare` ({lock_file})", 0, None)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def verify(
    name: str, data_dir: Path, progress: Progress = no_progress, settings: Settings | None = None
) -> list[DataFinding]:
    """What is right and wrong with the data set called `name`, with these settings. Raises DataError."""
    return list(source_with(name, settings).on_disk(data_dir).verify(data_dir, progress))


def source_with(name: str, settings: Settings | None = None) -> DataSource:
    """The data set called `name`, its other fields at their defaults. Raises DataError."""
    chosen = dict(settings or {})
    try:
        kind = source_type(name)
        for key in chosen.keys() - kind.model_fields:
            known = ", ".join(sorted(set(kind.model_fields) - set(DataSource.model_fields)))
            raise DataError(
                f"data set {name!r} has no {key}{nearest(key, kind.model_fields)}; its own fields: {known or 'none'}"
            )
        return kind(**chosen)
    except ValidationError as error:
        raise DataError(f"data set {name!r}: {'; '.join(map(_fault, error.errors()))}") from None
    except ValueError as error:
        raise DataError(str(error)) from None


def _fault(fault: ErrorDetails) -> str:
    """In words; those of the data set's own classes say what it is."""
    if fault["type"] == "value_error":
        text = fault["msg"].removeprefix("Value error, ")
    else:
        text = f"{fault['msg']}, but it is {fault['input']!r}"
    return ": ".join(filter(None, [".".join(map(str, fault["loc"])), text]))
