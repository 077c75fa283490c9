"""Bytes to normalised float32 input, on the device that the batch is on."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Normalise:
    """(x / 255 − mean) / std for each channel of a batch [..., C, H, W] in uint8."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        deviation = torch.tensor(std).view(-1, 1, 1)
        self._scale = 1 / (255 * deviation)
        self._shift = -torch.tensor(mean).view(-1, 1, 1) / deviation

    def __call__(self, x: Tensor) -> Tensor:
        # Kept on the device: a copy for every batch would make the device wait.
        self._scale, self._shift = self._scale.to(x.device), self._shift.to(x.device)
        return torch.addcmul(self._shift, x.float(), self._scale)
