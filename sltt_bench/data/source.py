"""What a data set must offer: its options in a recipe, loading, preparing, verifying. Free of torch.

A data set is one class in one file. Its fields are what a recipe may say; what never changes is a class
variable; torch is imported where it is used, so that recipes are checked at once.
"""

import json
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

from pydantic import AfterValidator, Field, model_validator

from sltt_bench.common.format import counted
from sltt_bench.common.strict import Count, Strict
from sltt_bench.common.yaml_text import YAMLFault, parse_yaml
from sltt_bench.data.errors import DamagedData, DataError, UnendingRead

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, int, int]


def _below(path: str) -> str:
    if not path or Path(path).is_absolute() or ".." in Path(path).parts:
        raise ValueError(f"must be a path below --data-dir, but it is {path!r}")
    return path


PLACE = object()
"""In a field's `Annotated`, marks one that decides which files are read or how: commands that look at them are given it."""
Below = Annotated[str, AfterValidator(_below), PLACE]
"""A file or folder of the user's below the data folder: results do not say where on a machine that is."""
Found = Annotated[int, Field(ge=0, le=1_000_000_000)]
"""A count that 0 leaves to be found in the user's files; see DataSource.on_disk."""

Modality = Literal["images", "events", "speech", "memory"]
"""What a network is given; memory: tasks whose answer depends on steps long past."""

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""Of numpy.random.RandomState, whose numbers NumPy has frozen."""

SPLITS = ("train", "test")
VERIFIED_FILES = 500
"""So many images or recordings of a split, evenly spread, are read by `verify`; reading all can take hours."""

Progress = Callable[[str, int, int | None], None]
"""Told (what is being done, how much is done, of how much or None) while something takes long."""


def no_progress(what: str, done: int, total: int | None) -> None:
    """For those who do not want to be told."""


def bytes_to_unit(x: "Tensor") -> "Tensor":
    """Bytes → 0…1 in float32."""
    return x.float() / 255


class Samples(Protocol):
    """One split: an item is (x, label).

    x is a tensor [C, H, W], or [T, C, H, W] where the source is temporal, of any dtype; the label an int.
    Augmentation happens in `__getitem__` and draws from torch's global generator alone, which the loader
    seeds for each sample. An attribute `labels`, if there is one, gives every label without loading.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


class SamplesInFiles:
    """One split of a file a sample, each read when it is asked for."""

    def __init__(self, files: Sequence[tuple[Any, int]], read: "Callable[[Any], Tensor]") -> None:
        """`files`: (file, label) of each sample. `read` raises DataError."""
        self._files = [file for file, _ in files]
        self._read = read
        self.labels = [label for _, label in files]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> "tuple[Tensor, int]":
        return self._read(self._files[index]), self.labels[index]


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
    """The two splits of one data set."""

    train: Samples
    test: Samples
    preprocess: "Callable[[Tensor], Tensor]"
    """A batch of x on the device → the float32 input [batch, (T,) C, H, W], normalised."""
    plain_train: Samples | None = None
    """The training samples as test samples are shown; None where training does not augment."""
    validation: Samples | None = None
    """What was held back of the training samples (data/validation.py); a source leaves it None."""


@dataclass(frozen=True)
class DataFinding:
    """What `verify` found about one file, folder or split."""

    ok: bool
    subject: str
    text: str


class DataSource(Strict):
    """The options that every data set has, and what it must offer."""

    name: str
    """The data set's name in the registry."""
    train_samples: Count
    """Expected size of the training split; another size on disk is an error."""
    test_samples: Count
    """Expected size of the test split; another size on disk is an error."""
    limit: Count | None = None
    """Use only so many samples of each split, spread evenly over it (smoke runs)."""
    workers: Annotated[int, Field(ge=0, le=1_024)] = 0
    """Worker processes that load data; 0 loads in the training process."""
    prefetch_factor: Annotated[int, Field(ge=1, le=1_024)] = 2
    """Batches that each worker prepares ahead."""
    pin_memory: bool = True
    """Page-locked host memory, for faster copies to a GPU (ignored on a CPU)."""
    synthetic_samples: Count = 12_800
    """With --synthetic, an epoch has at most so many training samples (50 batches of 256, 100 of 128)."""

    split_samples: ClassVar[Mapping[str, tuple[int, int]]] = {}
    """Samples (train, test) of the splits that differ from the default; used where a recipe gives no counts."""

    @model_validator(mode="before")
    @classmethod
    def _counts_of_the_split(cls, values: Any) -> Any:
        split = values.get("split") if isinstance(values, dict) else None
        if not isinstance(split, str) or split not in cls.split_samples:
            return values
        train, test = cls.split_samples[split]
        return {"train_samples": train, "test_samples": test, **values}

    # What is known without loading --------------------------------------------------------------

    @property
    def sample_shape(self) -> Shape:
        """(channels, height, width) of what the network sees in one time step."""
        raise NotImplementedError

    @property
    def classes(self) -> int:
        """How many classes the labels have."""
        raise NotImplementedError

    @property
    def modality(self) -> Modality:
        """What a network is given; lists are grouped by it."""
        return "images"

    @property
    def temporal(self) -> bool:
        """Whether a sample has a time axis of its own, or is one image shown at every step."""
        return False

    def check_timesteps(self, timesteps: int) -> str | None:
        """Why a sample cannot be shown in `timesteps` steps, or None if it can."""
        return None

    def needed(self, data_dir: Path) -> list[Path]:
        """The files and folders below `data_dir` that loading reads; none where nothing is downloaded."""
        return []

    @property
    def as_argument(self) -> str:
        """What `data prepare` and `data verify` are given to look at the same files, as a shell takes it: its name, and
        its split and fields of PLACE where these are not the default.
        """
        words = [self.name]
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if value == field.default:
                continue
            if name == "split":
                words.append(f"--split {value}")
            elif PLACE in field.metadata:
                words.append(f"--set {shlex.quote(f'data.{name}={_as_yaml(value)}')}")
        return " ".join(words)

    def on_disk(self, data_dir: Path | None) -> "DataSource":
        """With everything filled in that depends on the user's files, so that a plan names it.

        Without a `data_dir` nothing may be read. Raises DataError, which says what a recipe must state then.
        """
        return self

    def check_files(self, data_dir: Path) -> None:
        """Raises DataError for what can be told at once, without torch, of files that are all there: a plan is refused then."""

    def epoch_samples(self, *, synthetic: bool) -> int:
        """Training samples of an epoch."""
        limits = (self.limit, self.synthetic_samples if synthetic else None)
        return min([self.train_samples, *(limit for limit in limits if limit is not None)])

    # Loading, preparing, verifying --------------------------------------------------------------

    def load(self, place: DataPlace) -> DataBundle:
        """Both splits. Raises DataError, which names the file."""
        train, test = (self.samples_of(split, place) for split in SPLITS)
        return DataBundle(train, test, self.preprocess)

    def samples_of(self, split: str, place: DataPlace) -> Samples:
        """One split: all that `load` needs where nothing is augmented. Raises DataError, which names the file."""
        raise NotImplementedError

    def preprocess(self, x: "Tensor") -> "Tensor":
        """DataBundle.preprocess for `load`: numbers as float32."""
        return x.float()

    def prepare(self, data_dir: Path, progress: Progress) -> list[str]:
        """Get the data below `data_dir`; returns what was done, a sentence each.

        What is there already is left alone; what was interrupted goes on. Raises DataError, which says
        which file to put where if that is for the user to do.
        """
        needed = self.needed(data_dir)
        if absent := [str(path) for path in needed if not path.exists()]:
            raise DataError(
                f"data set {self.name!r} is your own, which nothing downloads: put it at {', '.join(absent)}"
            )
        return [f"{self.name} {'is there' if needed else 'needs no files'}: nothing to get."]

    def labels(self, data_dir: Path, split: str) -> Sequence[int]:
        """The label of every sample of "train" or "test", for `verify`. Raises DataError.

        Those of `samples_of`, which sources override that read less for it, or need T.
        """
        from sltt_bench.data.loading import labels_of

        samples = self.samples_of(split, DataPlace(data_dir, timesteps=1))
        labels: list[int] = labels_of(samples, needed=True).tolist()
        return labels

    def readings(self, data_dir: Path, split: str) -> Sequence[tuple[Path, Callable[[], Any]]]:
        """Every file that `labels` did not read, with what reads it (raises DataError); may be empty."""
        return []

    def verify(self, data_dir: Path, progress: Progress) -> Iterable[DataFinding]:
        """Check counts, classes and whether files can be read; whatever is wrong is a finding."""
        for split in SPLITS:
            yield from self.verify_split(data_dir, split, progress)

    def verify_split(self, data_dir: Path, split: str, progress: Progress) -> Iterable[DataFinding]:
        """What `verify` says about one split."""
        progress(f"reading {self.name}, {split}", 0, None)
        try:
            labels = self.labels(data_dir, split)
        except DataError as error:
            yield DataFinding(False, split, str(error))
            return
        yield self._counts_finding(split, labels)
        readings = self.readings(data_dir, split)
        if readings:
            yield from _readings_findings(split, readings, progress)

    def check_counts(self, train: int, test: int) -> None:
        """Raises DataError unless both splits have as many samples as expected."""
        for split, samples, expected in (
            ("train", train, self.train_samples),
            ("test", test, self.test_samples),
        ):
            if samples != expected:
                raise DamagedData(
                    f"data set {self.name!r}: the {split} split has {counted(samples, 'sample')}, but the recipe's "
                    f"data.{split}_samples says {expected}; another split or a damaged copy?"
                )

    def labels_outside(self, labels: Sequence[int]) -> str | None:
        """Why these labels are none of the classes', or None if they are."""
        if not labels or 0 <= min(labels) <= max(labels) < self.classes:
            return None
        return (
            f"its labels are {min(labels)}…{max(labels)}, but those of {counted(self.classes, 'class')} are "
            f"0…{self.classes - 1}"
        )

    def _counts_finding(self, split: str, labels: Sequence[int]) -> DataFinding:
        expected = self.train_samples if split == "train" else self.test_samples
        per_class = Counter(labels)
        if outside := self.labels_outside(labels):
            return DataFinding(False, split, outside)
        text = f"{counted(f'{len(labels):,}', 'sample')} of {counted(len(per_class), 'class')}"
        if len(labels) != expected or len(per_class) != self.classes:
            return DataFinding(False, split, f"{text}, but expected are {expected:,} of {self.classes}")
        fewest, most = min(per_class.values()), max(per_class.values())
        each = f"{fewest:,}" if fewest == most else f"{fewest:,}–{most:,}"
        return DataFinding(True, split, f"{text}, {each} of each class; a time step is {self.sample_shape}")


def _as_yaml(text: str) -> str:
    """A text as the value of a --set."""
    try:
        is_plain = parse_yaml(text) == text and "," not in text
    except YAMLFault:
        is_plain = False
    return text if is_plain else json.dumps(text, ensure_ascii=False)


def _readings_findings(
    split: str, readings: Sequence[tuple[Path, Callable[[], Any]]], progress: Progress
) -> Iterable[DataFinding]:
    """Read some files, evenly spread; a finding for each that cannot be read, and one for the rest."""
    chosen = min(len(readings), VERIFIED_FILES)
    faults = 0
    for place in range(chosen):
        file, read = readings[place * len(readings) // chosen]
        try:
            read()
        except DataError as error:
            faults += 1
            yield DataFinding(False, str(file), str(error))
            if isinstance(error, UnendingRead):
                chosen = place + 1
                break
        progress(f"reading {split}", place + 1, chosen)
    text = f"{chosen - faults:,} of {chosen:,} files could be read (of {len(readings):,} in all)"
    yield DataFinding(faults == 0, split, text)
