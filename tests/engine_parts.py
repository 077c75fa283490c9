"""Stand-ins for what the engine is given beside an experiment, where a test hands it batches of its own."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor


class Setup:
    """A TrainingSetup whose inputs come as they are to be; `evaluated`: the splits of an evaluation."""

    def __init__(self, **evaluated: Any) -> None:
        self.evaluated = evaluated

    @staticmethod
    def preprocess(x: Tensor) -> Tensor:
        return x


class Batches(list[tuple[Tensor, Tensor]]):
    """A loader of these batches, in this order in every epoch."""

    def __init__(self, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        super().__init__(batches)
        self.samples = sum(len(labels) for _, labels in batches)

    def set_epoch(self, epoch: int) -> None:
        pass


class Rows:
    """A listener that keeps what an epoch reports."""

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def epoch(self, row: Any) -> None:
        self.rows.append(row)

    def batch(self, *figures: Any) -> None:
        pass
