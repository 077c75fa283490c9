"""Images read one pixel, or some pixels, a step: the classical tasks with long memory.

sequential   in reading order, from the top left (Le, Jaitly and Hinton 2015 for MNIST)
permuted     in one fixed random order for all images, so that neighbours in time are far apart in space

The permutation is named by its seed: `numpy.random.RandomState(seed).permutation(pixels)`, whose numbers
NumPy has frozen.
"""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from sltt_bench.data.digits import DigitsSource
from sltt_bench.data.mnist import IDXSource
from sltt_bench.data.source import Modality, Seed, Shape

if TYPE_CHECKING:
    from torch import Tensor


class PixelSteps:
    """Some pixels of an image in each step; mixed into a DataSource."""

    pixels: ClassVar[int]
    """Of an image."""
    modality: ClassVar[Modality] = "memory"
    temporal: ClassVar[bool] = True

    @property
    def step_pixels(self) -> int:
        """Pixels that are shown in one time step."""
        raise NotImplementedError

    @property
    def sample_shape(self) -> Shape:
        return (self.step_pixels, 1, 1)

    def check_timesteps(self, timesteps: int) -> str | None:
        steps, rest = divmod(self.pixels, self.step_pixels)
        if rest:
            return (
                f"data.pixels_per_step is {self.step_pixels}, which does not divide an image's {self.pixels}"
            )
        if timesteps == steps:
            return None
        each = f"{self.step_pixels} of an image's {self.pixels} pixels in each"
        return f"timesteps is {timesteps}, but must be {steps}: {each}"

    @property
    def order(self) -> int | None:
        """The seed of the permutation, None for reading order."""
        return None

    def shown(self, images: "Tensor") -> "Tensor":
        """Images [samples, ...] → sequences [samples, T, step_pixels, 1, 1]."""
        import torch

        pixels = images.flatten(1)
        if self.order is not None:
            order = np.random.RandomState(self.order).permutation(pixels.shape[1])
            pixels = pixels[:, torch.from_numpy(order)]
        return pixels.reshape(len(pixels), -1, self.step_pixels, 1, 1)


# The embedded digits ----------------------------------------------------------------------------


class SequentialDigits(PixelSteps, DigitsSource):
    """The embedded 8×8 digits, one row of pixels a step."""

    name: Literal["sequential-digits"] = "sequential-digits"

    pixels: ClassVar[int] = 64
    step_pixels: ClassVar[int] = 8


class PermutedDigits(PixelSteps, DigitsSource):
    """The embedded 8×8 digits, one pixel a step in a fixed random order."""

    name: Literal["permuted-digits"] = "permuted-digits"
    pixels_per_step: Literal[1, 2, 4, 8, 16, 32] = 1
    """T is 64 divided by it."""
    permutation: Seed = 0
    """The seed that names the order of the pixels."""

    pixels: ClassVar[int] = 64

    @property
    def step_pixels(self) -> int:
        return self.pixels_per_step

    @property
    def order(self) -> int | None:
        return self.permutation


# MNIST ------------------------------------------------------------------------------------------


class MNISTSequences(PixelSteps, IDXSource):
    """What sequential and permuted MNIST share; read from MNIST's own files."""

    pixels_per_step: Annotated[int, Field(ge=1, le=784)] = 1
    """T is 784 divided by it: 1 is the published task, 28 shows a row (or as many pixels) a step."""

    torchvision_name: ClassVar[str] = "MNIST"
    mean: ClassVar[float] = 0.1307
    std: ClassVar[float] = 0.3081
    pixels: ClassVar[int] = 784

    @property
    def step_pixels(self) -> int:
        return self.pixels_per_step


class SequentialMNIST(MNISTSequences):
    """MNIST, one pixel a step in reading order (T = 784)."""

    name: Literal["sequential-mnist"] = "sequential-mnist"


class PermutedMNIST(MNISTSequences):
    """MNIST, one pixel a step in a fixed random order (T = 784)."""

    name: Literal["permuted-mnist"] = "permuted-mnist"
    permutation: Seed = 0
    """The seed that names the order of the pixels."""

    @property
    def order(self) -> int | None:
        return self.permutation
