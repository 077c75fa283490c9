"""The data sets by name.

An entry names the options (typed fields, free of torch) and the loader:
`load(options, place: DataPlace) -> DataBundle`. Third parties add one with the entry-point group
`sltt_bench.data`; the object has `Options` and `load`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sltt_bench.data import options as _options
from sltt_bench.data.options import DataOptions

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import Dataset


class DataError(Exception):
    """The data are missing or not what the recipe says; the message names the file and the remedy."""


def absent(name: str, looked_for: Path, data_dir: Path) -> DataError:
    """The error for a data set of which `looked_for` is not there."""
    return DataError(
        f"data set {name!r} is not there: looked for {looked_for}; "
        f"`sltt-bench data prepare {name} --data-dir {data_dir}` gets it or says how; "
        "--synthetic measures memory and time without it"
    )


def damaged(name: str, file: Path, reason: object) -> DataError:
    """The error for a file of a data set that is there but cannot be read."""
    return DataError(
        f"data set {name!r}: {file} cannot be read: {reason}; replace it "
        f"(`sltt-bench data verify {name}` looks for more such files)"
    )


Progress = Callable[[str, int, int | None], None]
"""Told (what is being done, how much is done, of how much or None) while something takes long."""


def no_progress(what: str, done: int, total: int | None) -> None:
    """For those who do not want to be told."""


@dataclass(frozen=True)
class DataPlace:
    """Where data are and how they will be shown."""

    data_dir: Path
    """The user's `--data-dir`; each source has its own folder below it, named as torchvision or tonic do."""
    timesteps: int
    """T, for sources that cut a recording into time steps."""
    progress: Progress = no_progress
    """Told while event recordings are converted, which can take minutes."""


@dataclass(frozen=True)
class DataBundle:
    """The two splits of one data set.

    An item is (x, label): x a tensor [C, H, W], or [T, C, H, W] where the source is temporal, of any
    dtype; label an int. Augmentation happens in the training split's `__getitem__` and draws from
    torch's global generator alone, which the loader seeds for each sample.
    """

    train: "Dataset[Any]"
    test: "Dataset[Any]"
    preprocess: "Callable[[Tensor], Tensor]"
    """A batch of x on the device → the float32 input [batch, (T,) C, H, W], normalised."""


@dataclass(frozen=True)
class DataEntry:
    """Where a data set's options and loader are."""

    options: type[DataOptions]
    loader: str
    """ "module:function"; loaded only when data are, since it loads torch."""


DATASETS: dict[str, DataEntry] = {
    "digits": DataEntry(_options.DigitsOptions, "sltt_bench.data.digits:load"),
    "digits-saccade": DataEntry(_options.DigitsSaccadeOptions, "sltt_bench.data.digits_saccade:load"),
    "mnist": DataEntry(_options.MNISTOptions, "sltt_bench.data.mnist:load"),
    "fashion-mnist": DataEntry(_options.FashionMNISTOptions, "sltt_bench.data.mnist:load"),
    "cifar10": DataEntry(_options.CIFAR10Options, "sltt_bench.data.cifar:load"),
    "cifar100": DataEntry(_options.CIFAR100Options, "sltt_bench.data.cifar:load"),
    "imagenet": DataEntry(_options.ImageNetOptions, "sltt_bench.data.imagenet:load"),
    "dvs-cifar10": DataEntry(_options.DVSCIFAR10Options, "sltt_bench.data.dvs_cifar10:load"),
    "dvs-gesture": DataEntry(_options.DVSGestureOptions, "sltt_bench.data.dvs_gesture:load"),
    "delayed-recall": DataEntry(_options.DelayedRecallOptions, "sltt_bench.data.delayed_recall:load"),
    "sequential-digits": DataEntry(
        _options.SequentialDigitsOptions, "sltt_bench.data.sequential_digits:load"
    ),
}


class UnknownDataset(ValueError):
    """No registered data set has this name."""


def names() -> list[str]:
    """Every data set name, third-party ones included."""
    return [*DATASETS, *(entry.name for entry in entry_points(group="sltt_bench.data"))]


def options_type(name: str) -> type[DataOptions]:
    """The options of the data set called `name`. Raises UnknownDataset."""
    if name in DATASETS:
        return DATASETS[name].options
    options: type[DataOptions] = _third_party(name).Options
    return options


def load(options: DataOptions, place: DataPlace) -> DataBundle:
    """Both splits, checked against the counts that the options expect. Raises DataError."""
    if options.name in DATASETS:
        module, function = DATASETS[options.name].loader.split(":")
        bundle: DataBundle = getattr(import_module(module), function)(options, place)
    else:
        bundle = _third_party(options.name).load(options, place)
    check_counts(options, len(bundle.train), len(bundle.test))  # type: ignore[arg-type]
    return bundle


def missing(options: DataOptions, data_dir: Path) -> str | None:
    """Why the data cannot be loaded from below `data_dir`, or None if what they are read from is there.

    Free of torch and quick: it looks whether files and folders exist, not at what is in them. The message
    is that of the DataError that `load` would raise.
    """
    for path in options.needed(data_dir):
        if not path.exists():
            return str(absent(options.name, path, data_dir))
    return None


def check_counts(options: DataOptions, train: int, test: int) -> None:
    """Raises DataError unless both splits have as many samples as the options expect."""
    for split, found, expected in (
        ("train", train, options.train_samples),
        ("test", test, options.test_samples),
    ):
        if found != expected:
            raise DataError(
                f"data set {options.name!r}: the {split} split has {found} samples, but the recipe's "
                f"data.{split}_samples says {expected}; another split or a damaged copy? "
                f"`sltt-bench data verify {options.name}` tells which"
            )


def _third_party(name: str) -> Any:
    for entry in entry_points(group="sltt_bench.data"):
        if entry.name == name:
            return entry.load()
    raise UnknownDataset(f"unknown data set {name!r}; known: {', '.join(names())}")
