"""What a run costs: clocks, memory and the GPU's sensors. Knows nothing of training, methods or files."""

from sltt_bench.measure.profiler import EpochProfile, Profiler, without_times_that_one_lacks

__all__ = ["EpochProfile", "Profiler", "without_times_that_one_lacks"]
