"""What torch.compile did to the network's step, and that it never goes back to plain torch in silence."""

from sltt_bench.torch_internals import compiled_so_far, compiler_raises_beyond

MOST_VERSIONS = 64
"""Versions of the step: for each shape of batch, with and without a graph, in training and evaluation."""


class Compilation:
    """Counts what is compiled in this process from now on."""

    def __init__(self) -> None:
        """A step that would need more than MOST_VERSIONS raises torch's FailOnRecompileLimitHit."""
        compiler_raises_beyond(MOST_VERSIONS)
        self._before = compiled_so_far()

    def __str__(self) -> str:
        """For the provenance."""
        versions, breaks = (now - then for now, then in zip(compiled_so_far(), self._before, strict=True))
        return f"{versions} graphs compiled, {breaks} breaks at which plain torch took over"
