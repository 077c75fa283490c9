"""Stand-ins for the engine's other arguments, for tests that give it their own batches."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor


class Setup:
    """A TrainingSetup without preprocessing; `evaluated`: the splits to evaluate."""

    def __init__(self, **evaluated: Any) -> None:
        self.evaluated = evaluated

    @staticmethod
    def preprocess(x: Tensor) -> Tensor:
        return x


class Batches(list[tuple[Tensor, Tensor]]):
    """A loader that yields these batches, in this order in every epoch."""

    def __init__(self, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        super().__init__(batches)
        self.samples = sum(len(labels) for _, labels in batches)

    def set_epoch(self, epoch: int) -> None:
        pass


class Rows:
    """A listener that stores what an epoch reports."""

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def epoch(self, row: Any) -> None:
        self.rows.append(row)

    def batch(self, *figures: Any) -> None:
        pass
