"""The conformance kit accepts the built-in methods and names what a broken one breaks."""

import re
from typing import Any

import pytest
import torch

from sltt_bench import methods
from sltt_bench.conformance import NotConforming, check_method
from sltt_bench.unroll import Unroll


@pytest.mark.parametrize("name", ["bptt", "sltt", "sltt-k1", "sltt-k3", "sltt-k5", "sltt-k2-unbiased"])
def test_the_built_in_methods_conform(name: str) -> None:
    check_method(name)


class SkipsTheLastStep:
    def accumulate_gradients(self, unroll: Unroll) -> None:
        for t in range(max(unroll.timesteps - 1, 1)):
            unroll.backward(unroll.step(t))
            unroll.detach_state()


class NoBackward:
    def accumulate_gradients(self, unroll: Unroll) -> None:
        for t in range(unroll.timesteps):
            unroll.step(t)


class DrawsGlobally:
    def accumulate_gradients(self, unroll: Unroll) -> None:
        torch.rand(1)
        for t in range(unroll.timesteps):
            unroll.detach_state()
            unroll.backward(unroll.step(t))


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (SkipsTheLastStep, "forward outputs differ"),
        (NoBackward, "no gradient reaches 0.weight"),
        (DrawsGlobally, "torch's global generator"),
    ],
)
def test_a_broken_promise_is_named(broken: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def factory(match: re.Match[str], timesteps: int) -> Any:
        return broken()

    monkeypatch.setitem(methods.METHODS, "broken", factory)
    with pytest.raises(NotConforming, match=said):
        check_method("broken")
