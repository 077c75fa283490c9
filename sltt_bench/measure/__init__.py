"""What a run costs: clocks, memory and the GPU's sensors. Knows nothing of training, methods or files."""

from sltt_bench.measure.profiler import EpochProfile, Profiler
from sltt_bench.measure.sampler import Sample

__all__ = ["EpochProfile", "Profiler", "Sample"]
