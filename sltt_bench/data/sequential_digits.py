"""Sequential digits: the embedded 8×8 digits, shown one row of pixels a step, from the top."""

from typing import TYPE_CHECKING, ClassVar, Literal

from sltt_bench.data.digits import DigitsSource
from sltt_bench.data.source import Shape

if TYPE_CHECKING:
    from torch import Tensor


class SequentialDigits(DigitsSource):
    """The embedded 8×8 digits, one row of pixels a step."""

    name: Literal["sequential-digits"] = "sequential-digits"

    sample_shape: ClassVar[Shape] = (8, 1, 1)
    temporal: ClassVar[bool] = True

    def check_timesteps(self, timesteps: int) -> str | None:
        if timesteps == 8:
            return None
        return f"timesteps is {timesteps}, but a digit has 8 rows, one for each step"

    def _shown(self, images: "Tensor") -> "Tensor":
        """Sequences [samples, 8, 8, 1, 1] (rows, pixels of a row) in uint8, 0…16."""
        return images[..., None, None]
