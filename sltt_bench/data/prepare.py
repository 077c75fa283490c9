"""Getting a data set onto the disk: `sltt-bench data prepare`."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sltt_bench.data import DataError, Progress, no_progress, options_type
from sltt_bench.data.download import all_or_nothing, check_md5, decompress, fetch, unpack
from sltt_bench.data.options import DataOptions, DVSGestureOptions

IMAGENET_PAGE = "https://image-net.org/download-images"
GESTURE_PAGE = "https://ibm.ent.box.com/s/3hiq58ww1pbbjrinh367ykfdf60xsfm8"
GESTURE_ARCHIVE, GESTURE_MD5 = "DvsGesture.tar.gz", "8a5c71fb11e24e5ca5b11866ca6c00a1"


def prepare(
    name: str, data_dir: Path, progress: Progress = no_progress, *, split: str | None = None
) -> list[str]:
    """Get the data set called `name` below `data_dir`; returns what was done, a sentence each.

    `split` names one of the data set's splits if the default is not wanted: only dvs-gesture has two
    sources. What is there already is left alone; what was interrupted goes on. Raises DataError,
    which says which file to put where if that is for the user to do.
    """
    options = options_with(name, split)
    if name not in _PREPARERS:
        raise DataError(
            f"data set {name!r} is not this package's own; its own documentation says how to get it"
        )
    try:
        return _PREPARERS[name](options, data_dir, progress)
    except OSError as error:
        raise DataError(
            f"data set {name!r}: {error}; is there room, and may {data_dir} be written to?"
        ) from None


def options_with(name: str, split: str | None) -> DataOptions:
    """The default options of a data set, or of one of its splits. Raises DataError."""
    chosen: dict[str, Any] = {} if split is None else {"split": split}
    if split == "tonic-1077-264":
        chosen |= {"train_samples": 1077, "test_samples": 264}
    try:
        return options_type(name)(**chosen)
    except ValueError as error:
        raise DataError(str(error)) from None


# Preparing --------------------------------------------------------------------------------------


def _prepare_nothing(options: DataOptions, data_dir: Path, progress: Progress) -> list[str]:
    return [f"{options.name} is made from scikit-learn's digits, which are installed: nothing to get."]


def _prepare_mnist(options: DataOptions, data_dir: Path, progress: Progress) -> list[str]:
    from sltt_bench.data import mnist

    source, raw = mnist.SOURCES[options.name], mnist.folder(options.name, data_dir)
    if raw.is_dir():
        return [_there(raw)]
    archives = []
    for archive, md5 in source.resources:
        archives.append(raw.parent / archive)
        fetch([mirror + archive for mirror in source.mirrors], archives[-1], md5, progress)

    def fill(staging: Path) -> None:
        for archive in archives:
            decompress(archive, staging / archive.stem)

    all_or_nothing(raw, fill)
    return [f"Downloaded {options.name} to {raw}."]


def _prepare_cifar(options: DataOptions, data_dir: Path, progress: Progress) -> list[str]:
    from sltt_bench.data import cifar

    source = cifar.SOURCES[options.name]
    folder, archive = data_dir / source.base_folder, data_dir / source.filename
    if folder.is_dir():
        return [_there(folder)]
    fetch([source.url], archive, source.tgz_md5, progress)
    all_or_nothing(folder, partial(unpack, archive, progress=progress), inner=source.base_folder)
    return [f"Downloaded {archive} and unpacked it to {folder}."]


def _prepare_imagenet(options: DataOptions, data_dir: Path, progress: Progress) -> list[str]:
    from torchvision.datasets import imagenet as source

    from sltt_bench.data.imagenet import FOLDER

    root = data_dir / FOLDER
    if (root / "train").is_dir() and (root / "val").is_dir():
        return [_there(root)]
    archives = {part: root / source.ARCHIVE_META[part][0] for part in ("train", "val", "devkit")}
    absent = [archive.name for archive in archives.values() if not archive.is_file()]
    if absent:
        raise DataError(
            f"ImageNet cannot be downloaded without an account: get {', '.join(absent)} from {IMAGENET_PAGE} "
            f"into {root} and run this command again; or put a folder of JPEGs for each of the "
            f"{options.classes} classes below {root / 'train'} and {root / 'val'}"
        )

    def parse(part: str, parser: Callable[..., None], staging: Path) -> None:
        progress(f"checking and unpacking {archives[part].name}", 0, None)
        parser(str(root), folder=staging.name)

    try:
        source.parse_devkit_archive(str(root))
        for part, parser in (("train", source.parse_train_archive), ("val", source.parse_val_archive)):
            if not (root / part).is_dir():
                all_or_nothing(root / part, partial(parse, part, parser))
    # What torchvision raises for an archive that is damaged (RuntimeError) depends on where.
    except (RuntimeError, EOFError, ValueError) as error:
        raise DataError(f"data set 'imagenet': {error}") from None
    return [f"Unpacked ImageNet to {root}; its archives may be deleted."]


def _prepare_dvs_cifar10(options: DataOptions, data_dir: Path, progress: Progress) -> list[str]:
    from sltt_bench.data.dvs_cifar10 import CLASSES, FOLDER

    root = data_dir / FOLDER
    todo = [class_name for class_name in CLASSES if not (root / class_name).is_dir()]
    if not todo:
        return [_there(root)]
    archives = root
    if not all((root / f"{class_name}.zip").is_file() for class_name in todo):
        source = _tonic_source("CIFAR10DVS")
        fetch([source.url], root / source.filename, source.file_md5, progress)
        archives = root / "archives"
        all_or_nothing(_cleared(archives), partial(unpack, root / source.filename, progress=progress))
    for class_name in todo:
        archive = archives / f"{class_name}.zip"
        all_or_nothing(root / class_name, partial(unpack, archive, progress=progress), inner=class_name)
    if archives != root:
        shutil.rmtree(archives)
    return [f"Unpacked {options.name} to {root}; the archives there may be deleted."]


def _prepare_dvs_gesture(options: DataOptions, data_dir: Path, progress: Progress) -> list[str]:
    from sltt_bench.data.dvs_gesture import FOLDER, IBM_FOLDER

    assert isinstance(options, DVSGestureOptions)
    root = data_dir / FOLDER
    if options.split == "tonic-1077-264":
        return _prepare_tonic_gesture(root, progress)
    folder, archive = root / IBM_FOLDER, root / GESTURE_ARCHIVE
    if folder.is_dir():
        return [_there(folder)]
    if not archive.is_file():
        raise DataError(
            f"IBM's recordings cannot be downloaded by a program: get {GESTURE_ARCHIVE} from {GESTURE_PAGE} "
            f"into {root} and run this command again; or use the samples that tonic distributes, "
            "with --split tonic-1077-264 here and data.split=tonic-1077-264, data.train_samples=1077, "
            "data.test_samples=264 in the recipe"
        )
    check_md5(archive, GESTURE_MD5, progress)
    all_or_nothing(folder, partial(unpack, archive, progress=progress), inner=IBM_FOLDER)
    return [f"Unpacked {archive} to {folder}."]


def _prepare_tonic_gesture(root: Path, progress: Progress) -> list[str]:
    source, done = _tonic_source("DVSGesture"), []
    for part in ("train", "test"):
        filename, md5 = getattr(source, f"{part}_filename"), getattr(source, f"{part}_md5")
        folder = root / filename.removesuffix(".tar.gz")
        if folder.is_dir():
            done.append(_there(folder))
            continue
        fetch([getattr(source, f"{part}_url")], root / filename, md5, progress)
        all_or_nothing(folder, partial(unpack, root / filename, progress=progress), inner=folder.name)
        done.append(f"Downloaded {root / filename} and unpacked it to {folder}.")
    return done


def _tonic_source(class_name: str) -> Any:
    try:
        from tonic import datasets
    except ImportError as error:
        raise DataError(
            f"the address of this data set is known to the package tonic ({error}): "
            "pip install 'sltt-bench[events]'"
        ) from None
    return getattr(datasets, class_name)


def _there(folder: Path) -> str:
    return f"{folder} is there already; `sltt-bench data verify` checks it."


def _cleared(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder


_PREPARERS: dict[str, Callable[[Any, Path, Progress], list[str]]] = {
    "digits": _prepare_nothing,
    "digits-saccade": _prepare_nothing,
    "mnist": _prepare_mnist,
    "fashion-mnist": _prepare_mnist,
    "cifar10": _prepare_cifar,
    "cifar100": _prepare_cifar,
    "imagenet": _prepare_imagenet,
    "dvs-cifar10": _prepare_dvs_cifar10,
    "dvs-gesture": _prepare_dvs_gesture,
}
