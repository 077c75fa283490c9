"""Checks that torch.compile compiles a step correctly, counts its graphs and forbids silent fallbacks."""

import platform
from functools import cache

import torch
from torch import Tensor, nn

from sltt_bench.torch_internals import compiled_so_far, compiler_raises_beyond

MOST_VERSIONS = 64
"""Limit of versions of the step, by batch shape, with and without a graph, in training and evaluation."""


class Compilation:
    """Counts what this process compiles from now on."""

    def __init__(self) -> None:
        """From now on, a step that needs more than MOST_VERSIONS raises torch's FailOnRecompileLimitHit."""
        compiler_raises_beyond(MOST_VERSIONS)
        self._before = compiled_so_far()

    def __str__(self) -> str:
        """Returns the counts in words, for the provenance."""
        versions, breaks = (now - then for now, then in zip(compiled_so_far(), self._before, strict=True))
        return f"{versions} graphs compiled, {breaks} breaks at which plain torch took over"


class _Integrator(nn.Module):
    """A minimal network step: the state that it carries to its next call differs from its output."""

    def __init__(self) -> None:
        super().__init__()
        self.state: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        potential = x if self.state is None else x + self.state
        spikes = (potential >= 1).to(x.dtype)
        self.state = potential - spikes
        return spikes


@cache
def why_wrong() -> str | None:
    """Returns why a compiled step would be wrong here, from a trial; None if it is right.

    With torch 2.11 on Python 3.13 a compiled module loses its state between calls: every step is a first one.
    """
    steps = _Integrator()
    steps.compile(backend="eager", dynamic=False)
    spikes = [int(steps(torch.full((1,), 0.75))) for _ in range(4)]
    if spikes == [0, 1, 1, 1]:
        return None
    return (
        f"native.compile: torch.compile of torch {torch.__version__} on Python {platform.python_version()} loses what a "
        "layer carries from step to step; use another torch or Python, or leave native.compile out"
    )
