"""Plot: NVML memory, utilisation and power of one cell of each method over time."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from sltt_bench.report import numbers
from sltt_bench.report.document import Width
from sltt_bench.report.groups import Group
from sltt_bench.report.plots import style
from sltt_bench.results.reader import Run

_MOST_POINTS = 1500


def timelines(group: Group, runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    """Method → NVML samples of its first finished cell that has any; one NVML scope only."""
    found: dict[str, pd.DataFrame] = {}
    for result in group.finished:
        for run, cell_id in result.cells:
            if not runs[run].has_timeline:
                continue
            samples = runs[run].timeline
            samples = samples[samples["cell_id"] == cell_id].dropna(subset=["nvml_used_bytes", "elapsed_s"])
            if not samples.empty:
                samples = samples[samples["attempt"] == samples["attempt"].max()]
                found[result.method] = samples.sort_values("elapsed_s", kind="stable")
                break
    scopes = {samples["nvml_scope"].iloc[0] for samples in found.values()}
    scope = "process" if "process" in scopes else "device"
    return {method: s for method, s in found.items() if s["nvml_scope"].iloc[0] == scope}


def draw_timeline(samples: dict[str, pd.DataFrame], width: Width) -> Figure:
    """Memory used over time, and utilisation or power below or beside it, as far as it was sampled."""
    second = next((name for name in ("power_w", "gpu_util") if _sampled(samples, name)), None)
    figure, axes = style.panels(width, 2 if second else 1, 2.1)
    time = numbers.scale_for("s", [float(s["elapsed_s"].max()) for s in samples.values()])
    memory = numbers.scale_for("bytes", [float(s["nvml_used_bytes"].max()) for s in samples.values()])
    scope = next(iter(samples.values()))["nvml_scope"].iloc[0]
    for method, every in samples.items():
        shown = every.iloc[:: -(-len(every) // _MOST_POINTS)]
        line: dict[str, Any] = {
            "color": style.colour(method), "linestyle": style.line(method), "label": method, "linewidth": 1.1,
        }  # fmt: skip
        x = shown["elapsed_s"].to_numpy(dtype=float) / time.factor
        axes[0].plot(x, shown["nvml_used_bytes"].to_numpy(dtype=float) / memory.factor, **line)
        if second:
            factor = 1.0 if second == "power_w" else 0.01
            axes[1].plot(x, shown[second].to_numpy(dtype=float) / factor, **line)
    axes[0].set_title("Memory in use")
    axes[0].set_ylabel(f"NVML, {scope} [{memory.unit}]")
    if second:
        axes[1].set_title("Power" if second == "power_w" else "Utilisation")
        axes[1].set_ylabel("board power [W]" if second == "power_w" else "GPU utilisation [%]")
    for place in axes:
        place.set_xlabel(f"time since the profiler started [{time.unit}]")
        place.margins(x=0.01)
        style.from_zero(place, "y")
        style.plain_ticks(place, "x")
        style.plain_ticks(place, "y")
    style.legend_below(figure, axes[0], width)
    return figure


def _sampled(samples: dict[str, pd.DataFrame], name: str) -> bool:
    return all(s[name].notna().any() for s in samples.values())
