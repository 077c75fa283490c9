"""Checking a data set that is on the disk: `sltt-bench data verify`."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sltt_bench.data import DataError, Progress, no_progress
from sltt_bench.data.download import md5_of
from sltt_bench.data.options import DataOptions, DVSCIFAR10Options, DVSGestureOptions, ImageNetOptions
from sltt_bench.data.prepare import options_with

SAMPLED_FILES = 500
"""So many images or recordings of a split, evenly spread, are read by `verify` where reading all takes hours."""


@dataclass(frozen=True)
class Finding:
    """What `verify` found about one file, folder or split."""

    ok: bool
    subject: str
    text: str


def verify(
    name: str,
    data_dir: Path,
    progress: Progress = no_progress,
    *,
    split: str | None = None,
    options: DataOptions | None = None,
) -> list[Finding]:
    """Check counts, shapes, classes and checksums of the data set called `name` below `data_dir`.

    Against `options`, or those that the data set has by default. Raises DataError only if nothing is
    known of such a data set; whatever is wrong with the data is a Finding.
    """
    options = options or options_with(name, split)
    if name not in _VERIFIERS:
        raise DataError(f"data set {name!r} is not this package's own; nothing is known of its files")
    return list(_VERIFIERS[name](options, data_dir, progress))


def _verify_digits(options: DataOptions, data_dir: Path, progress: Progress) -> Iterable[Finding]:
    from sltt_bench.data import digits

    _, labels = digits.images_and_labels()
    for split, indices in zip(("train", "test"), digits.split_indices(labels), strict=True):
        yield _split_finding(options, split, labels[indices].tolist())


def _verify_mnist(options: Any, data_dir: Path, progress: Progress) -> Iterable[Finding]:
    for split in ("train", "test"):
        progress(f"reading {options.name}, {split}", 0, None)
        yield from _read_finding(options, split, partial(_mnist_labels, options, data_dir, split))


def _mnist_labels(options: Any, data_dir: Path, split: str) -> list[int]:
    from sltt_bench.data import mnist

    labels: list[int] = mnist.read_split(options, data_dir, split).tensors[1].tolist()
    return labels


def _verify_cifar(options: Any, data_dir: Path, progress: Progress) -> Iterable[Finding]:
    from sltt_bench.data import cifar

    for split in ("train", "test"):
        for file, md5 in cifar.files(options.name, data_dir, split):
            if file.is_file():
                found = md5_of(file, progress)
                text = "MD5 as published" if found == md5 else f"its MD5 is {found}, not {md5}"
                yield Finding(found == md5, str(file), text)
        yield from _read_finding(options, split, partial(_cifar_labels, options, data_dir, split))


def _cifar_labels(options: Any, data_dir: Path, split: str) -> list[int]:
    from sltt_bench.data import cifar

    labels: list[int] = cifar.read_split(options, data_dir, split)[1].tolist()
    return labels


def _verify_imagenet(options: ImageNetOptions, data_dir: Path, progress: Progress) -> Iterable[Finding]:
    from torchvision.transforms import v2

    from sltt_bench.data.imagenet import ImageFiles

    for split in ("train", "test"):
        try:
            images = ImageFiles(options, data_dir, split, v2.PILToTensor())
        except DataError as error:
            yield Finding(False, split, str(error))
            continue
        yield _split_finding(options, split, images.labels)
        read = [
            (str(images.path(index)), partial(images.__getitem__, index)) for index in _spread(len(images))
        ]
        yield from _reading_findings(split, read, len(images), progress)


def _verify_dvs_cifar10(options: DVSCIFAR10Options, data_dir: Path, progress: Progress) -> Iterable[Finding]:
    from sltt_bench.data import dvs_cifar10

    try:
        numbered = dvs_cifar10.recordings(options, data_dir)
    except DataError as error:
        yield Finding(False, options.name, str(error))
        return
    first_test = dvs_cifar10.FIRST_TEST_NUMBER
    for split, recordings in (
        ("train", [recording for number, recording in numbered if number < first_test]),
        ("test", [recording for number, recording in numbered if number >= first_test]),
    ):
        yield from _recording_findings(options, split, recordings, dvs_cifar10.SENSOR_SIZE, progress)


def _verify_dvs_gesture(options: DVSGestureOptions, data_dir: Path, progress: Progress) -> Iterable[Finding]:
    from sltt_bench.data import dvs_gesture

    for split in ("train", "test"):
        try:
            recordings = dvs_gesture.recordings(options, data_dir, split)
        except DataError as error:
            yield Finding(False, split, str(error))
            continue
        yield from _recording_findings(options, split, recordings, dvs_gesture.SENSOR_SIZE, progress)


def _recording_findings(
    options: DataOptions, split: str, recordings: Sequence[Any], sensor_size: int, progress: Progress
) -> Iterable[Finding]:
    from sltt_bench.data.events import check_recording

    yield _split_finding(options, split, [label for recording in recordings for label in recording.labels])
    chosen = [recordings[index] for index in _spread(len(recordings))]
    read = [
        (str(recording.file), partial(check_recording, options.name, recording, sensor_size))
        for recording in chosen
    ]
    yield from _reading_findings(split, read, len(recordings), progress)


def _read_finding(
    options: DataOptions, split: str, read_labels: Callable[[], list[int]]
) -> Iterable[Finding]:
    try:
        labels = read_labels()
    except DataError as error:
        yield Finding(False, split, str(error))
    else:
        yield _split_finding(options, split, labels)


def _split_finding(options: DataOptions, split: str, labels: Sequence[int]) -> Finding:
    expected = options.train_samples if split == "train" else options.test_samples
    per_class = Counter(labels)
    text = f"{len(labels):,} samples of {len(per_class)} classes"
    if len(labels) != expected or len(per_class) != options.classes:
        return Finding(False, split, f"{text}, but expected are {expected:,} of {options.classes}")
    fewest, most = min(per_class.values()), max(per_class.values())
    each = f"{fewest:,}" if fewest == most else f"{fewest:,}–{most:,}"
    return Finding(True, split, f"{text}, {each} of each class; a time step is {options.sample_shape}")


def _reading_findings(
    split: str, read: Sequence[tuple[str, Callable[[], Any]]], of: int, progress: Progress
) -> Iterable[Finding]:
    """Read some files; a finding for each that cannot be read, and one for the rest."""
    faults = 0
    for done, (file, read_it) in enumerate(read, start=1):
        try:
            read_it()
        except DataError as error:
            faults += 1
            yield Finding(False, file, str(error))
        progress(f"reading {split}", done, len(read))
    yield Finding(
        faults == 0, split, f"{len(read) - faults:,} of {len(read):,} files could be read (of {of:,} in all)"
    )


def _spread(count: int) -> list[int]:
    """Up to SAMPLED_FILES indices below `count`, evenly spread."""
    chosen = min(count, SAMPLED_FILES)
    return [place * count // chosen for place in range(chosen)]


_VERIFIERS: dict[str, Callable[[Any, Path, Progress], Iterable[Finding]]] = {
    "digits": _verify_digits,
    "digits-saccade": _verify_digits,
    "mnist": _verify_mnist,
    "fashion-mnist": _verify_mnist,
    "cifar10": _verify_cifar,
    "cifar100": _verify_cifar,
    "imagenet": _verify_imagenet,
    "dvs-cifar10": _verify_dvs_cifar10,
    "dvs-gesture": _verify_dvs_gesture,
}
