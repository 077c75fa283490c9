"""The figures of a cell that a report compares: their names, units, and which may stand for peak memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sltt_bench.common.format import Unit
from sltt_bench.report.statistics import Stat, stat
from sltt_bench.results.schema import INFERENCE_COLUMNS

Phase = Literal["warm", "cold"]


@dataclass(frozen=True)
class Metric:
    """One figure of a cell."""

    name: str
    """Column of summary.csv, with the unit."""
    label: str
    """Heading of tables and axes, without the unit."""
    unit: Unit
    better: Literal["lower", "higher"]
    of_phase: bool = True
    """Whether it comes from warm epochs (from cold ones if there are no others)."""
    exact: bool = False
    """Whether it is counted and not measured: equal in every repetition."""
    compared: bool = True
    """Whether its ratio to the baseline stands in tables; else it explains other figures."""

    @property
    def of_the_moment(self) -> bool:
        """Whether it depends on how fast and how busy the machine was just then."""
        return self.of_phase and self.unit in ("s", "per_s", "J")

    @property
    def as_ratio(self) -> bool:
        """Whether it is compared as a ratio, so that its mean is the geometric one."""
        return self.unit in ("bytes", "s", "per_s", "J")


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("last_test_top1", "last-epoch top-1", "accuracy", "higher", of_phase=False),
        Metric("best_test_top1", "best-epoch top-1", "accuracy", "higher", of_phase=False),
        Metric("epoch_s", "epoch time", "s", "lower"),
        Metric("eval_s", "evaluation time", "s", "lower"),
        Metric("data_wait_s", "waiting for data", "s", "lower", compared=False),
        Metric("samples_per_s", "samples per second", "per_s", "higher"),
        Metric("energy_j", "energy per epoch", "J", "lower"),
        Metric("gpu_util", "GPU utilisation", "share", "higher", compared=False),
        Metric("allocated_at_reset_bytes", "before an epoch (CUDA)", "bytes", "lower", compared=False),
        Metric("peak_allocated_bytes", "allocated (CUDA)", "bytes", "lower"),
        Metric("peak_reserved_bytes", "reserved (CUDA)", "bytes", "lower"),
        Metric("peak_nvml_process_bytes", "NVML (process)", "bytes", "lower"),
        Metric("peak_nvml_device_bytes", "NVML (device)", "bytes", "lower"),
        Metric("peak_tensor_bytes", "live tensors", "bytes", "lower", of_phase=False, exact=True),
        Metric("peak_rss_bytes", "resident set (CPU)", "bytes", "lower"),
        Metric("backward_passes", "backward passes", "count", "lower", of_phase=False, compared=False),
        Metric("firing_rate", "firing rate", "share", "lower", of_phase=False, compared=False),
        Metric("wall_s", "whole cell", "s", "lower", of_phase=False, compared=False),
        Metric("parameters", "parameters", "count", "lower", of_phase=False, exact=True, compared=False),
        Metric("footprint_bytes", "parameters and buffers", "bytes", "lower", of_phase=False, exact=True),
        Metric("connection_sparsity", "weights that are 0", "share", "higher", of_phase=False),
        Metric("activation_sparsity", "outputs that are 0", "share", "higher", of_phase=False),
        Metric("dense_synops", "synaptic operations, dense", "count", "lower", of_phase=False, exact=True),
        Metric("effective_macs", "effective MACs", "count", "lower", of_phase=False),
        Metric("effective_acs", "effective ACs", "count", "lower", of_phase=False),
        Metric("estimated_energy_45nm_pj", "estimated energy, 45 nm", "pJ", "lower", of_phase=False),
    )
}
INFERENCE_FIGURES = tuple(column.name for column in INFERENCE_COLUMNS)
"""What the trained network costs at inference: counts and an estimate from them, in a table of their own."""
MEMORY_FIGURES = tuple(
    name for name, metric in METRICS.items() if metric.unit == "bytes" and name not in INFERENCE_FIGURES
)
PEAKS_OF_EPOCHS = tuple(name for name in MEMORY_FIGURES if METRICS[name].of_phase)
_COLD = "cold_"
COLD_FIGURES = tuple(_COLD + name for name in ("epoch_s", *PEAKS_OF_EPOCHS))
"""Figures of cold epochs, which summary.csv holds beside the others."""


def compared_as_ratio(figure: str) -> bool:
    """Whether a figure (of METRICS, of COLD_FIGURES, or another) is compared as a ratio, so that its mean is geometric."""
    metric = METRICS.get(figure.removeprefix(_COLD))
    return metric is not None and metric.as_ratio


def stat_of(figure: str, values: Sequence[float]) -> Stat:
    """Mean and spread of a figure's values: every mean that a report shows of measured times, bytes and joules is this one."""
    return stat(values, geometric=compared_as_ratio(figure))


HEADLINE_ON_GPU = (
    "peak_allocated_bytes", "peak_reserved_bytes", "peak_nvml_process_bytes", "peak_tensor_bytes", "peak_nvml_device_bytes",
)  # fmt: skip
"""What stands for peak memory on a GPU, first to last. The allocator's peak comes first: it belongs to the
process alone and holds no cache."""
HEADLINE_ON_CPU = ("peak_tensor_bytes",)
"""On a CPU only live tensor bytes are free of interpreter and libraries, which hide what a method needs: the
resident set never stands for them."""
