"""Methods as somebody might write them, and their place among the others for a test."""

import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from sltt_bench import methods
from sltt_bench.methods import Promises
from sltt_bench.unroll import Unroll


class Truncated:
    def accumulate_gradients(self, unroll: Unroll) -> None:
        for t in range(unroll.timesteps):
            unroll.detach_state()
            unroll.backward(unroll.step(t))


class PullsTowardsTheMean(Truncated):
    """Of the weights so far, which is lost with the process."""

    def __init__(self) -> None:
        self.means: list[torch.Tensor] = []

    def accumulate_gradients(self, unroll: Unroll) -> None:
        weights = list(unroll.network.parameters())
        self.means = self.means or [w.detach().clone() for w in weights]
        super().accumulate_gradients(unroll)
        unroll.update()
        for w, mean in zip(weights, self.means, strict=True):
            w.data.lerp_(mean, 0.5)
            mean.lerp_(w.detach(), 0.5)


class PullsAndCarries(PullsTowardsTheMean):
    def state_dict(self) -> dict[str, Any]:
        return {"means": self.means}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.means = state["means"]


def register(method: Any, promised: Promises, monkeypatch: pytest.MonkeyPatch) -> None:
    """As "broken"."""

    def factory(match: re.Match[str], timesteps: int) -> Any:
        return method()

    factory.promises = promised  # type: ignore[attr-defined]
    monkeypatch.setitem(methods.METHODS, "broken", factory)  # type: ignore[arg-type]
