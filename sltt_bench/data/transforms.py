"""What is done to images: augmentation of one, and bytes to normalised float32 on the device of a batch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Augmented(Dataset[tuple[Tensor, int]]):
    """Images in memory, each changed anew whenever it is asked for."""

    def __init__(self, images: Tensor, labels: Tensor, transform: Callable[[Tensor], Tensor]) -> None:
        self.images = images
        self.labels = labels
        self._transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(self.images[index]), int(self.labels[index])


class Cutout:
    """Fills a random rectangle of a colour image [C, H, W] in uint8 with one random shade of red.

    As the `Cutout` of torchtoolbox 0.1.8.2 that the paper's code uses: with probability 1/2; its area is uniform
    in 2–40 % of the image, its ratio of height to width uniform in 0.4–2.5, all places where it fits are equally
    likely. It hands Pillow one number v, uniform in 0…255, as the colour, which Pillow takes for (v, 0, 0): the
    first channel is v, the others are 0. torchvision's RandomErasing draws the logarithm of the ratio and fills
    with black or noise instead.
    """

    PROBABILITY = 0.5
    AREA = (0.02, 0.4)
    RATIO = (0.4, 2.5)

    def __call__(self, image: Tensor) -> Tensor:
        if torch.rand(()) >= self.PROBABILITY:
            return image
        image_height, image_width = image.shape[-2:]
        area = _uniform(*self.AREA) * image_height * image_width
        ratio = _uniform(*self.RATIO)
        height = min(int((area * ratio) ** 0.5), image_height)
        width = min(int((area / ratio) ** 0.5), image_width)
        top = int(torch.randint(image_height - height + 1, ()))
        left = int(torch.randint(image_width - width + 1, ()))
        cut = image.clone()
        cut[:, top : top + height, left : left + width] = 0
        cut[0, top : top + height, left : left + width] = torch.randint(256, (), dtype=torch.uint8)
        return cut


def _uniform(low: float, high: float) -> float:
    return float(torch.empty(()).uniform_(low, high))


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
