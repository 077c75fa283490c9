"""Full and mixed precision: the format of autocast, and the scaling of gradients."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

FORMATS = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""Mixed precision → its format."""


def at_least_float32(x: Tensor) -> Tensor:
    """Returns `x` in float32, or as it is in float64: for sums over steps, which half precision would stop at some size."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def cast_anew(device_type: str) -> AbstractContextManager[object]:
    """Returns the autocast that is in force on a device, but without its cache.

    From the cache all steps would have one cast of a weight, so that their gradients were added in its format.
    """
    return torch.autocast(
        device_type,
        dtype=torch.get_autocast_dtype(device_type),
        enabled=torch.is_autocast_enabled(device_type),
        cache_enabled=False,
    )


@contextmanager
def ieee_float32() -> Iterator[None]:
    """Use IEEE float32 arithmetic within, whatever the cell's precision."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    set_float32_arithmetic("fp32")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def set_float32_arithmetic(precision: str) -> None:
    """Let float32 convolutions and matrix products run in TF32 only if `precision` is "tf32".

    torch allows it for convolutions by default, which keeps 10 of 23 mantissa bits of the factors, so results
    labelled fp32 would not be fp32. The setting holds for the whole process.
    """
    allowed = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed


@dataclass(frozen=True)
class Precision:
    """How a cell computes: in float32, or in mixed precision with master weights in float32."""

    name: str
    """fp32, tf32, fp16 (with loss scaling) or bf16."""
    device_type: str

    def autocast(self) -> AbstractContextManager[object]:
        """Returns the context for the network's forward pass."""
        if self.name not in FORMATS:
            return nullcontext()
        return torch.autocast(self.device_type, dtype=FORMATS[self.name])

    def make_scaler(self) -> torch.amp.GradScaler:
        """Returns a loss scaler, enabled only in fp16, where small gradients would vanish."""
        return torch.amp.GradScaler(self.device_type, enabled=self.name == "fp16")
