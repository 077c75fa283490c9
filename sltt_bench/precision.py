"""Full and mixed precision: which format autocast uses and how gradients are scaled."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_FORMATS = {"fp16": torch.float16, "bf16": torch.bfloat16}


def resolve(asked: str, device_type: str) -> str:
    """ "amp" as what it means on the device: fp16 on CUDA, bf16 on a CPU; anything else as it is."""
    if asked != "amp":
        return asked
    return "fp16" if device_type == "cuda" else "bf16"


@dataclass(frozen=True)
class Precision:
    """How one cell computes: fp32, or mixed precision with master weights in fp32."""

    name: str
    """fp32, fp16 (with loss scaling) or bf16."""
    device_type: str

    @property
    def autocast(self) -> Callable[[], torch.autocast] | None:
        """Makes the context in which the network runs forward; None in full precision."""
        if self.name == "fp32":
            return None
        return lambda: torch.autocast(self.device_type, dtype=_FORMATS[self.name])

    def make_scaler(self) -> torch.amp.GradScaler:
        """Scales the loss in fp16, where small gradients would vanish; does nothing otherwise."""
        return torch.amp.GradScaler(self.device_type, enabled=self.name == "fp16")


def scaled_backward(scaler: torch.amp.GradScaler) -> Callable[[Tensor], None]:
    """The backward pass that a method calls, once or many times, before the optimiser's step."""

    def backward(loss: Tensor) -> None:
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    return backward
