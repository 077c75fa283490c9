"""What a run costs: clocks, memory and the GPU's sensors. Knows nothing of training, methods or files."""

from sltt_bench.measure.profiler import EpochProfile, Profiler

__all__ = ["EpochProfile", "Profiler"]
