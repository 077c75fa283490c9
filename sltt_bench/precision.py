"""Full and mixed precision: which format autocast uses and how gradients are scaled."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

_FORMATS = {"fp16": torch.float16, "bf16": torch.bfloat16}


_ON_A_CPU = {"amp": "bf16", "tf32": "fp32"}
_ON_CUDA = {"amp": "fp16"}


def resolve(asked: str, device_type: str) -> str:
    """What a recipe's precision means on the device: amp is fp16 on CUDA and bf16 on a CPU, which has no TF32."""
    return (_ON_CUDA if device_type == "cuda" else _ON_A_CPU).get(asked, asked)


@contextmanager
def ieee_float32() -> Iterator[None]:
    """Float32 arithmetic as IEEE has it within, whatever the cell's precision."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    set_float32_arithmetic("fp32")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def set_float32_arithmetic(precision: str) -> None:
    """Let float32 convolutions and matrix products run in TF32 for "tf32" alone.

    torch allows it to convolutions by default, which leaves 10 of 23 bits of a product's factors: it would
    call a result fp32 that is none. A setting of the whole process.
    """
    allowed = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed


@dataclass(frozen=True)
class Precision:
    """How one cell computes: in float32, or in mixed precision with master weights in float32."""

    name: str
    """fp32, tf32, fp16 (with loss scaling) or bf16."""
    device_type: str

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which the network runs forward."""
        if self.name not in _FORMATS:
            return nullcontext()
        return torch.autocast(self.device_type, dtype=_FORMATS[self.name])

    def make_scaler(self) -> torch.amp.GradScaler:
        """Scales the loss in fp16, where small gradients would vanish; does nothing otherwise."""
        return torch.amp.GradScaler(self.device_type, enabled=self.name == "fp16")
