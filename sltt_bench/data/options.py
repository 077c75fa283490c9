"""What a recipe may say about each data set; free of torch, so that recipes are checked at once."""

from typing import Annotated, Literal

from pydantic import Field

from sltt_bench.strict import Strict

Count = Annotated[int, Field(ge=1)]
Shape = tuple[int, int, int]


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
