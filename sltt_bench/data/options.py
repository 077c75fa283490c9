"""What a recipe may say about each data set; free of torch, so that recipes are checked at once."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sltt_bench.strict import Strict

Count = Annotated[int, Field(ge=1)]
Shape = tuple[int, int, int]
IDX_FILES = tuple(
    f"{split}-{content}-ubyte" for split in ("train", "t10k") for content in ("images-idx3", "labels-idx1")
)


class DataOptions(Strict):
    """The options that every data set has, and what is known of its samples without loading any."""

    name: str
    """The data set's name in the registry."""
    train_samples: Count
    """Expected size of the training split; another size on disk is an error."""
    test_samples: Count
    """Expected size of the test split; another size on disk is an error."""
    limit: Count | None = None
    """Use only so many samples of each split, spread evenly over it (smoke runs)."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Worker processes that load data; 0 loads in the training process."""
    prefetch_factor: Count = 2
    """Batches that each worker prepares ahead."""
    pin_memory: bool = True
    """Page-locked host memory, for faster copies to a GPU (ignored on a CPU)."""
    synthetic_samples: Count = 12_800
    """With --synthetic, an epoch has at most so many training samples (50 batches of 256, 100 of 128)."""

    @property
    def sample_shape(self) -> Shape:
        """(channels, height, width) of what the network sees in one time step."""
        raise NotImplementedError

    @property
    def classes(self) -> int:
        """How many classes the labels have."""
        raise NotImplementedError

    @property
    def temporal(self) -> bool:
        """Whether a sample has a time axis of its own, or is one image shown at every step."""
        return False

    def needed(self, data_dir: Path) -> list[Path]:
        """The files and folders below `data_dir` that loading reads; none where nothing is downloaded."""
        return []

    def check_timesteps(self, timesteps: int) -> str | None:
        """Why a sample cannot be shown in `timesteps` steps, or None if it can."""
        return None


class DigitsOptions(DataOptions):
    """scikit-learn's bundled 8×8 digits, pixel values 0…16 scaled to 0…1."""

    name: Literal["digits"] = "digits"
    split: Literal["stratified-80-20"] = "stratified-80-20"
    """80 % training, 20 % test, the same share of every class, drawn once with seed 0."""
    train_samples: Count = 1437
    test_samples: Count = 360

    @property
    def sample_shape(self) -> Shape:
        return (1, 8, 8)

    @property
    def classes(self) -> int:
        return 10


class MNISTOptions(DataOptions):
    """MNIST: 28×28 grey images of handwritten digits."""

    name: Literal["mnist"] = "mnist"
    split: Literal["official"] = "official"
    """The split that the data set is published with."""
    train_samples: Count = 60_000
    test_samples: Count = 10_000

    def needed(self, data_dir: Path) -> list[Path]:
        raw = data_dir / "MNIST" / "raw"
        return [raw / file for file in IDX_FILES]

    @property
    def sample_shape(self) -> Shape:
        return (1, 28, 28)

    @property
    def classes(self) -> int:
        return 10


class FashionMNISTOptions(DataOptions):
    """Fashion-MNIST: 28×28 grey images of clothes."""

    name: Literal["fashion-mnist"] = "fashion-mnist"
    split: Literal["official"] = "official"
    """The split that the data set is published with."""
    train_samples: Count = 60_000
    test_samples: Count = 10_000

    def needed(self, data_dir: Path) -> list[Path]:
        raw = data_dir / "FashionMNIST" / "raw"
        return [raw / file for file in IDX_FILES]

    @property
    def sample_shape(self) -> Shape:
        return (1, 28, 28)

    @property
    def classes(self) -> int:
        return 10


class CIFAR10Options(DataOptions):
    """CIFAR-10: 32×32 colour images; training images are cropped, erased in part and flipped."""

    name: Literal["cifar10"] = "cifar10"
    split: Literal["official"] = "official"
    """The split that the data set is published with."""
    train_samples: Count = 50_000
    test_samples: Count = 10_000

    def needed(self, data_dir: Path) -> list[Path]:
        batches = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
        return [data_dir / "cifar-10-batches-py" / file for file in batches]

    @property
    def sample_shape(self) -> Shape:
        return (3, 32, 32)

    @property
    def classes(self) -> int:
        return 10


class CIFAR100Options(DataOptions):
    """CIFAR-100: 32×32 colour images; training images are cropped, erased in part and flipped."""

    name: Literal["cifar100"] = "cifar100"
    split: Literal["official"] = "official"
    """The split that the data set is published with."""
    train_samples: Count = 50_000
    test_samples: Count = 10_000

    def needed(self, data_dir: Path) -> list[Path]:
        return [data_dir / "cifar-100-python" / file for file in ("train", "test")]

    @property
    def sample_shape(self) -> Shape:
        return (3, 32, 32)

    @property
    def classes(self) -> int:
        return 100


class ImageNetOptions(DataOptions):
    """ImageNet (ILSVRC 2012) as a folder of JPEGs for each class, below train/ and val/."""

    name: Literal["imagenet"] = "imagenet"
    split: Literal["official"] = "official"
    """Trained on train/, tested on the 50,000 images of val/."""
    train_samples: Count = 1_281_167
    test_samples: Count = 50_000
    image_size: Annotated[int, Field(ge=8)] = 224
    """Pixels of a side; 224 is published, less makes smoke runs small."""

    def needed(self, data_dir: Path) -> list[Path]:
        return [data_dir / "imagenet" / split for split in ("train", "val")]

    @property
    def sample_shape(self) -> Shape:
        return (3, self.image_size, self.image_size)

    @property
    def classes(self) -> int:
        return 1000


class EventOptions(DataOptions):
    """What event recordings share: each is cut into T slices of equal event count, a frame each."""

    @property
    def temporal(self) -> bool:
        return True


class DVSCIFAR10Options(EventOptions):
    """CIFAR10-DVS: CIFAR-10 images moved in front of a 128×128 event camera."""

    name: Literal["dvs-cifar10"] = "dvs-cifar10"
    split: Literal["first-900-of-each-class"] = "first-900-of-each-class"
    """Recordings 0–899 of each class train and 900–999 test, as in the paper's code."""
    train_samples: Count = 9_000
    test_samples: Count = 1_000
    image_size: Annotated[int, Field(ge=8, le=128)] = 48
    """Pixels of a side; 48 is published."""
    resize: Literal["published", "mean-count"] = "published"
    """published: what the paper's code feeds its network. Each count n becomes the byte 255·n mod 256,
    and both polarities are shrunk as the luminance and alpha of one image. mean-count: event counts,
    shrunk by antialiased bilinear interpolation."""

    def needed(self, data_dir: Path) -> list[Path]:
        return [data_dir / "CIFAR10DVS"]

    @property
    def sample_shape(self) -> Shape:
        return (2, self.image_size, self.image_size)

    @property
    def classes(self) -> int:
        return 10


class DVSGestureOptions(EventOptions):
    """DVS-Gesture: 11 hand and arm gestures in front of a 128×128 event camera."""

    name: Literal["dvs-gesture"] = "dvs-gesture"
    split: Literal["spikingjelly-1176-288", "tonic-1077-264"] = "spikingjelly-1176-288"
    """How IBM's recordings are cut into samples. spikingjelly-1176-288: every row of the label files,
    as in the paper's code. tonic-1077-264: the samples that the tonic library distributes."""
    train_samples: Count = 1_176
    test_samples: Count = 288
    image_size: Annotated[int, Field(ge=8, le=128)] = 128
    """Pixels of a side; 128 is published, less (mean counts) makes smoke runs small."""

    def needed(self, data_dir: Path) -> list[Path]:
        root = data_dir / "DVSGesture"
        if self.split == "tonic-1077-264":
            return [root / "ibmGestureTrain", root / "ibmGestureTest"]
        return [root / "DvsGesture" / f"trials_to_{split}.txt" for split in ("train", "test")]

    @property
    def sample_shape(self) -> Shape:
        return (2, self.image_size, self.image_size)

    @property
    def classes(self) -> int:
        return 11


class DigitsSaccadeOptions(EventOptions):
    """scikit-learn's digits in front of a simulated event camera that makes three small saccades."""

    name: Literal["digits-saccade"] = "digits-saccade"
    split: Literal["stratified-80-20"] = "stratified-80-20"
    """The split of `digits`: 80 % training, 20 % test, the same share of every class."""
    train_samples: Count = 1437
    test_samples: Count = 360
    image_size: Annotated[int, Field(ge=8, le=128)] = 32
    """Pixels of a side of the simulated sensor."""
    threshold: Annotated[float, Field(gt=0)] = 0.25
    """Change of log intensity at which a pixel sends an event."""
    amplitude: Annotated[float, Field(gt=0)] = 1.0
    """Length of a saccade's path in pixels of the 8×8 digit."""

    @property
    def sample_shape(self) -> Shape:
        return (2, self.image_size, self.image_size)

    @property
    def classes(self) -> int:
        return 10


class DelayedRecallOptions(DataOptions):
    """A symbol, D steps of noise, then a cue that asks for the symbol: made on the spot, no download."""

    name: Literal["delayed-recall"] = "delayed-recall"
    train_samples: Count = 2048
    test_samples: Count = 1024
    delay: Annotated[int, Field(ge=0)] = 8
    """D: steps of noise between the symbol and the cue."""
    symbols: Annotated[int, Field(ge=2)] = 4
    """How many symbols there are; each is a class and has an input channel of its own."""
    noise: Annotated[float, Field(ge=0)] = 1.0
    """Standard deviation of the noise; a symbol has amplitude 1."""
    noise_channels: Count = 16
    """Input channels that carry nothing but noise."""

    @model_validator(mode="after")
    def _classes_are_equally_frequent(self) -> "DelayedRecallOptions":
        for split in ("train_samples", "test_samples"):
            if getattr(self, split) % self.symbols:
                raise ValueError(
                    f"{split} must be a multiple of symbols, so that chance is 1/symbols exactly"
                )
        return self

    @property
    def sample_shape(self) -> Shape:
        return (self.symbols + 1 + self.noise_channels, 1, 1)

    @property
    def classes(self) -> int:
        return self.symbols

    @property
    def temporal(self) -> bool:
        return True

    def check_timesteps(self, timesteps: int) -> str | None:
        needed = self.delay + 2
        if timesteps >= needed:
            return None
        return f"timesteps is {timesteps}, but symbol, {self.delay} steps of data.delay and cue need {needed}"


class SequentialDigitsOptions(DataOptions):
    """scikit-learn's bundled 8×8 digits, one row of pixels a step."""

    name: Literal["sequential-digits"] = "sequential-digits"
    split: Literal["stratified-80-20"] = "stratified-80-20"
    """The split of `digits`: 80 % training, 20 % test, the same share of every class."""
    train_samples: Count = 1437
    test_samples: Count = 360

    @property
    def sample_shape(self) -> Shape:
        return (8, 1, 1)

    @property
    def classes(self) -> int:
        return 10

    @property
    def temporal(self) -> bool:
        return True

    def check_timesteps(self, timesteps: int) -> str | None:
        return (
            None if timesteps == 8 else f"timesteps is {timesteps}, but a digit has 8 rows, one for each step"
        )
