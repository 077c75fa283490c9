"""What torch.compile did to the network's step, and that it never goes back to plain torch in silence."""

import torch._dynamo.config
from torch._dynamo.utils import counters

MOST_VERSIONS = 64
"""Versions of the step: for each shape of batch, with and without a graph, in training and evaluation."""


class Compilation:
    """Counts what is compiled in this process from now on."""

    def __init__(self) -> None:
        """A step that would need more than MOST_VERSIONS raises torch's FailOnRecompileLimitHit."""
        torch._dynamo.config.cache_size_limit = MOST_VERSIONS  # type: ignore[attr-defined]
        torch._dynamo.config.fail_on_cache_limit_hit = True  # type: ignore[attr-defined]
        self._before = self._counts()

    def __str__(self) -> str:
        """For the provenance."""
        versions, breaks = (now - then for now, then in zip(self._counts(), self._before, strict=True))
        return f"{versions} graphs compiled, {breaks} breaks at which plain torch took over"

    @staticmethod
    def _counts() -> tuple[int, int]:
        return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
