"""What may be compared with what: cells sorted into groups, and ratios that never leave one.

Within a group everything is equal but method and seed. A ratio exists only between methods of one
group, over the seeds that both finished, for one figure measured the same way; anything else is a
`NotComparable` with its reason.
"""

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

import pandas as pd

from sltt_bench.report.statistics import Estimate, Stat, paired_difference, paired_ratio, stat
from sltt_bench.results.reader import Results, Run

Phase = Literal["warm", "cold"]
Unit = Literal["bytes", "s", "per_s", "J", "share", "accuracy", "count"]

UNKNOWN_HARDWARE = "unknown hardware"


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

    @property
    def of_the_moment(self) -> bool:
        """Whether it depends on how fast and how busy the machine was just then."""
        return self.of_phase and self.unit in ("s", "per_s", "J")


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("last_test_top1", "last-epoch top-1", "accuracy", "higher", of_phase=False),
        Metric("best_test_top1", "best-epoch top-1", "accuracy", "higher", of_phase=False),
        Metric("epoch_s", "epoch time", "s", "lower"),
        Metric("eval_s", "evaluation time", "s", "lower"),
        Metric("data_wait_s", "waiting for data", "s", "lower"),
        Metric("samples_per_s", "samples per second", "per_s", "higher"),
        Metric("energy_j", "energy per epoch", "J", "lower"),
        Metric("gpu_util", "GPU utilisation", "share", "higher"),
        Metric("peak_allocated_bytes", "allocated (CUDA)", "bytes", "lower"),
        Metric("peak_reserved_bytes", "reserved (CUDA)", "bytes", "lower"),
        Metric("peak_nvml_process_bytes", "NVML (process)", "bytes", "lower"),
        Metric("peak_nvml_device_bytes", "NVML (device)", "bytes", "lower"),
        Metric("peak_tensor_bytes", "live tensors", "bytes", "lower", of_phase=False),
        Metric("peak_rss_bytes", "resident set (CPU)", "bytes", "lower"),
        Metric("firing_rate", "firing rate", "share", "lower", of_phase=False),
        Metric("wall_s", "whole cell", "s", "lower", of_phase=False),
        Metric("parameters", "parameters", "count", "lower", of_phase=False),
    )
}
MEMORY_FIGURES = tuple(name for name, metric in METRICS.items() if metric.unit == "bytes")

_PEAKS_OF_EPOCHS = tuple(name for name in MEMORY_FIGURES if METRICS[name].of_phase)
COLD_FIGURES = ("cold_epoch_s", *(f"cold_{name}" for name in _PEAKS_OF_EPOCHS))
"""Figures of cold epochs, which summary.csv holds beside the others."""

# The headline is the first figure that every compared cell has. On a GPU the allocator's peak comes
# first: it belongs to the process alone and holds no cache. On a CPU only live tensor bytes are free
# of interpreter and libraries, which hide what a method needs.
_HEADLINE_ON_GPU = (
    "peak_allocated_bytes",
    "peak_reserved_bytes",
    "peak_nvml_process_bytes",
    "peak_tensor_bytes",
    "peak_nvml_device_bytes",
)
_HEADLINE_ON_CPU = ("peak_tensor_bytes", "peak_rss_bytes")


@dataclass(frozen=True)
class NotComparable:
    """Why there is no ratio."""

    reason: str


@dataclass(frozen=True, order=True)
class GroupKey:
    """Everything that must be equal for a ratio. Two groups differ in at least one of these."""

    recipe: str
    hardware: str
    precision: str
    backend: str
    timesteps: int
    batch_size: int
    synthetic: bool
    smoke: bool
    recipe_hash: str
    software: str
    schema_version: int

    def slug(self) -> str:
        """A file name's part that tells groups apart."""
        marks = [f"T{self.timesteps}", f"b{self.batch_size}", self.precision, self.backend]
        marks += ["synthetic"] * self.synthetic + ["smoke"] * self.smoke
        return re.sub(r"[^A-Za-z0-9.-]+", "-", "-".join([self.recipe, *marks]))

    def conditions(self) -> list[str]:
        """The group in words, most telling first."""
        words = [self.hardware, self.precision, f"backend {self.backend}"]
        words += [f"T = {self.timesteps}", f"batch {self.batch_size}"]
        words += ["synthetic data"] * self.synthetic + ["smoke run"] * self.smoke
        return words


DIFFERENCE_WORDS = {
    "recipe": "recipe",
    "hardware": "hardware",
    "precision": "precision",
    "backend": "backend",
    "timesteps": "T",
    "batch_size": "batch size",
    "synthetic": "synthetic or real data",
    "smoke": "smoke or full run",
    "recipe_hash": "recipe version or overrides",
    "software": "torch version",
    "schema_version": "schema version",
}


def differing_fields(keys: Sequence[GroupKey]) -> list[str]:
    """In words: the fields in which some of the groups differ."""
    words = {
        name: word for name, word in DIFFERENCE_WORDS.items() if len({getattr(key, name) for key in keys}) > 1
    }
    if words.keys() & {"timesteps", "batch_size", "recipe"}:
        words.pop("recipe_hash", None)  # it follows from these
    return list(words.values())


@dataclass(frozen=True)
class Failure:
    """Cells of one method that did not finish for the same reason."""

    status: str
    reason: str
    seeds: tuple[int, ...]
    cells: int


@dataclass(frozen=True)
class MethodResult:
    """What the cells of one method in a group measured."""

    method: str
    values: Mapping[str, Mapping[int, float]]
    """Metric → seed → value, finished cells only; repetitions of a seed are averaged."""
    phase: Phase
    """Which epochs the figures of a phase come from."""
    finished: int
    """Cells that finished."""
    failures: tuple[Failure, ...] = ()
    epochs: pd.DataFrame = field(default_factory=pd.DataFrame, compare=False, repr=False)
    """Epoch rows of the finished cells."""
    cells: tuple[tuple[int, str], ...] = ()
    """(run, cell_id) of the finished cells."""
    by_run: Mapping[str, Mapping[tuple[int, int], float]] = field(default_factory=dict)
    """Metric of the moment → (run, seed) → value."""

    @property
    def seeds(self) -> list[int]:
        """Seeds with a finished cell."""
        return sorted(self.values.get("wall_s", {}))

    def stat(self, metric: str) -> Stat | None:
        """Mean over seeds; None if no cell measured it."""
        values = self.values.get(metric)
        return stat([values[seed] for seed in sorted(values)]) if values else None

    @property
    def failure_text(self) -> str:
        """The failures in one line, or ''."""
        return "; ".join(f"{f.status} ({_seeds_text(f.seeds)}): {f.reason}" for f in self.failures)

    @property
    def out_of_memory(self) -> bool:
        """Whether some cell ran out of memory."""
        return any(failure.status == "oom" for failure in self.failures)


@dataclass(frozen=True)
class Group:
    """Cells that may be compared: equal in everything but method and seed."""

    key: GroupKey
    methods: Mapping[str, MethodResult]
    """In the order of tables and plots."""
    recipe: Mapping[str, Any]
    """The resolved recipe; empty if no file tells it."""
    overrides: Mapping[str, Any]
    runs: tuple[int, ...]
    notes: tuple[str, ...] = ()
    on_gpu: bool = False
    device_bytes: float | None = None
    """Memory of the GPU; None if unknown or not the same in all runs."""

    @property
    def finished(self) -> list[MethodResult]:
        """Methods with at least one finished cell."""
        return [result for result in self.methods.values() if result.finished]

    def ratio(self, metric: str, method: str, baseline: str) -> Estimate | NotComparable:
        """value(method) ÷ value(baseline) over paired seeds."""
        asked = (metric, method, baseline)
        if asked not in self._ratios:
            self._ratios[asked] = self._ratio(*asked)
        return self._ratios[asked]

    @cached_property
    def _ratios(self) -> dict[tuple[str, str, str], Estimate | NotComparable]:
        """What was asked for before: tables, plots and sentences ask for the same ratios."""
        return {}

    def _ratio(self, metric: str, method: str, baseline: str) -> Estimate | NotComparable:
        pair = self._pair(metric, method, baseline)
        if isinstance(pair, NotComparable):
            return pair
        if min(pair[1].values()) <= 0:
            return NotComparable(f"{METRICS[metric].label} of {baseline} is 0")
        return paired_ratio(*pair) or NotComparable(f"no seed that {method} and {baseline} share")

    def difference(self, metric: str, method: str, baseline: str) -> Estimate | NotComparable:
        """value(method) − value(baseline) over paired seeds."""
        pair = self._pair(metric, method, baseline)
        if isinstance(pair, NotComparable):
            return pair
        return paired_difference(*pair) or NotComparable(f"no seed that {method} and {baseline} share")

    def headline_memory(self, methods: Sequence[str] | None = None) -> str | None:
        """The memory figure to compare by: the first of the order that all these methods' cells have."""
        results = [self.methods[name] for name in methods] if methods else self.finished
        results = [result for result in results if result.finished]
        for name in _HEADLINE_ON_GPU if self.on_gpu else _HEADLINE_ON_CPU:
            if results and all(len(r.values.get(name, {})) == len(r.seeds) for r in results):
                return name
        return None

    @property
    def phase(self) -> Phase:
        """warm if every finished method has warm epochs."""
        return "warm" if all(result.phase == "warm" for result in self.finished) else "cold"

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The resolved recipe with dotted keys, but for what does not change a run."""
        left_out = {"name", "description", "methods", "seeds", "smoke", "claims"}
        return flat({key: value for key, value in self.recipe.items() if key not in left_out})

    def _pair(
        self, metric: str, method: str, baseline: str
    ) -> tuple[Mapping[int, float], Mapping[int, float]] | NotComparable:
        sides = []
        for name in (method, baseline):
            result = self.methods.get(name)
            if result is None:
                return NotComparable(f"no {name} in this group")
            if not result.finished:
                return NotComparable(f"{name} did not finish: {result.failures[0].status}")
            if not result.values.get(metric):
                return NotComparable(f"{name}: {METRICS[metric].label} not measured")
            sides.append(result)
        ours, theirs = sides
        if METRICS[metric].of_phase and ours.phase != theirs.phase:
            return NotComparable(f"{ours.phase} epochs of {method} against {theirs.phase} ones of {baseline}")
        shared = self.shared_runs(metric, method, baseline)
        return _side_by_side(ours, metric, shared), _side_by_side(theirs, metric, shared)

    def shared_runs(self, metric: str, method: str, baseline: str) -> set[tuple[int, int]]:
        """The (run, seed) in which both measured a metric of the moment."""
        sides = (self.methods[name].by_run.get(metric, {}) for name in (method, baseline))
        ours, theirs = (set(side) for side in sides)
        return ours & theirs


def _side_by_side(result: MethodResult, metric: str, shared: Collection[tuple[int, int]]) -> dict[int, float]:
    """Seed → mean over the runs that are shared for it; over all runs where none is."""
    by_seed: dict[int, list[float]] = {}
    for run, seed in sorted(shared):
        by_seed.setdefault(seed, []).append(result.by_run[metric][run, seed])
    means = {seed: sum(found) / len(found) for seed, found in by_seed.items()}
    return {**result.values[metric], **means}


def flat(said: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in said.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def method_order(name: str) -> tuple[int, int, str]:
    """Sorting key: bptt, sltt, sltt-kN from large N to small, then the others by name."""
    match = re.fullmatch(r"sltt-k(\d+)(-unbiased)?", name)
    if match:
        return 3 if match[2] else 2, -int(match[1]), name
    return {"bptt": 0, "sltt": 1}.get(name, 4), 0, name


def natural_order(name: str) -> list[str | int]:
    """Sorting key of names with numbers in them: resnet34, resnet50, resnet101."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _seeds_text(seeds: Sequence[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}"


# From rows to groups ----------------------------------------------------------------------------


def make_groups(results: Results) -> list[Group]:
    """The measured cells (kind "run") in comparable groups, ordered by key."""
    cells = results.cells[results.cells["kind"] == "run"]
    if cells.empty:
        return []
    cells = _with_facts_of_siblings(cells)
    cells = cells.join(_measures(results.epochs), on=["run", "cell_id"])
    # Random data have no accuracy, whatever a file says.
    cells.loc[cells["synthetic"].astype(bool), ["last_test_top1", "best_test_top1", "firing_rate"]] = None
    cells["hardware"] = cells["device_name"].where(cells["device_name"] != "", UNKNOWN_HARDWARE)
    cells["software"] = _software(cells, results.runs)
    epochs = dict(iter(results.epochs.groupby(["run", "cell_id"], sort=False)))
    names = [part.name for part in fields(GroupKey)]
    groups = []
    for values, members in cells.groupby(names, sort=False):
        said: Any = dict(zip(names, values, strict=True))
        for name in ("timesteps", "batch_size", "schema_version"):
            said[name] = int(said[name])
        groups.append(_group(GroupKey(**said), members, results.runs, epochs))
    return sorted(groups, key=lambda group: group.key)


def _with_facts_of_siblings(cells: pd.DataFrame) -> pd.DataFrame:
    """A cell that failed before it reported has no device name: it ran where its run's cells ran."""
    cells = cells.copy()
    unknown = (cells["device_name"] == "") & (cells["status"] != "ok")
    for run in cells.loc[unknown, "run"].unique():
        in_run = cells["run"] == run
        known = cells[in_run & (cells["device_name"] != "")]
        if known["device_name"].nunique() == 1:
            cells.loc[in_run & unknown, "device_name"] = known["device_name"].iloc[0]
            cells.loc[in_run & unknown, "device"] = known["device"].iloc[0]
            amp = cells["precision"] == "amp"
            if known["precision"].nunique() == 1:
                cells.loc[in_run & unknown & amp, "precision"] = known["precision"].iloc[0]
    return cells


def _measures(epochs: pd.DataFrame) -> pd.DataFrame:
    """The figures of each cell from its epochs, indexed by (run, cell_id)."""
    key = ["run", "cell_id"]
    epochs = epochs.assign(cold=epochs["cold"].astype(bool), **_nvml_by_scope(epochs))
    for name in _OF_EPOCHS:
        epochs[name] = epochs[name].astype(float)
    by_cell = epochs.groupby(key, sort=False)
    warm = ~epochs["cold"]
    has_warm = warm.groupby([epochs[name] for name in key], sort=False).transform("any")
    chosen = epochs[warm | ~has_warm].groupby(key, sort=False)
    medians = ["train_s", "eval_s", "data_wait_s", "samples_per_s", "energy_j", "gpu_util_mean"]
    peaks = list(_PEAKS_OF_EPOCHS)
    table = chosen[medians].median().rename(columns={"train_s": "epoch_s", "gpu_util_mean": "gpu_util"})
    table[peaks] = chosen[peaks].max()
    table["peak_tensor_bytes"] = by_cell["peak_tensor_bytes"].max()
    cold = epochs[epochs["cold"]].groupby(key, sort=False)
    for name in peaks:
        table[f"cold_{name}"] = cold[name].max()
    table["cold_epoch_s"] = cold["train_s"].median()
    last = epochs.sort_values("epoch", kind="stable").groupby(key, sort=False).tail(1).set_index(key)
    table["firing_rate"] = last["firing_rate"]
    table["phase"] = has_warm.groupby([epochs[name] for name in key], sort=False).first().map(_PHASES)
    return table


_PHASES = {True: "warm", False: "cold"}
_OF_EPOCHS = (
    "train_s",
    "eval_s",
    "data_wait_s",
    "samples_per_s",
    "energy_j",
    "gpu_util_mean",
    "firing_rate",
    *MEMORY_FIGURES,
)


def _nvml_by_scope(epochs: pd.DataFrame) -> dict[str, Any]:
    """NVML's figure under the name of what it covers: a process's memory is never set beside a device's."""
    return {
        f"peak_nvml_{scope}_bytes": epochs["peak_nvml_bytes"].where(epochs["peak_nvml_scope"] == scope)
        for scope in ("process", "device")
    }


def _software(cells: pd.DataFrame, runs: Sequence[Run]) -> list[str]:
    return [torch_version(runs[int(run)]) for run in cells["run"]]


def torch_version(run: Run) -> str:
    """The torch that a run used, as its provenance tells."""
    packages = run.provenance.get("packages")
    version = packages.get("torch") if isinstance(packages, dict) else None
    return f"torch {version}" if version else "torch of unknown version"


def _group(
    key: GroupKey,
    members: pd.DataFrame,
    runs: Sequence[Run],
    epochs: Mapping[Any, pd.DataFrame],
) -> Group:
    methods = {
        str(method): _method_result(str(method), rows, epochs) for method, rows in members.groupby("method")
    }
    first = members.sort_values("cell_id").iloc[0]
    run_indices = tuple(sorted({int(run) for run in members["run"]}))
    return Group(
        key=key,
        methods={name: methods[name] for name in sorted(methods, key=method_order)},
        recipe=runs[int(first["run"])].recipe_of(first["cell_id"]),
        overrides=_overrides(first["overrides"]),
        runs=run_indices,
        notes=_notes([runs[index] for index in run_indices]),
        on_gpu=bool(members["device"].str.startswith("cuda").any()),
        device_bytes=_device_bytes(key.hardware, [runs[index] for index in run_indices]),
    )


def _overrides(said: str) -> Mapping[str, Any]:
    try:
        overrides = json.loads(said or "{}")
    except json.JSONDecodeError:
        return {"unreadable overrides": said}
    return overrides if isinstance(overrides, dict) else {"unreadable overrides": said}


def _method_result(method: str, rows: pd.DataFrame, epochs: Mapping[Any, pd.DataFrame]) -> MethodResult:
    ok = rows[rows["status"] == "ok"]
    phase: Phase = "warm" if (ok["phase"] == "warm").any() else "cold"
    of_phase = ok[ok["phase"] == phase]
    values = _by_seed(of_phase, [name for name, metric in METRICS.items() if metric.of_phase])
    others = [name for name, metric in METRICS.items() if not metric.of_phase]
    values |= _by_seed(ok, [*others, *COLD_FIGURES])
    cells = tuple(sorted((int(run), str(cell)) for run, cell in zip(ok["run"], ok["cell_id"], strict=True)))
    frames = [epochs[cell] for cell in cells if cell in epochs]
    return MethodResult(
        method=method,
        values=values,
        phase=phase,
        finished=len(ok),
        failures=_failures(rows[rows["status"] != "ok"]),
        epochs=pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(),
        cells=cells,
        by_run=_by_run(of_phase, [name for name in METRICS if METRICS[name].of_the_moment]),
    )


def _by_run(rows: pd.DataFrame, names: Sequence[str]) -> dict[str, dict[tuple[int, int], float]]:
    """Figure → (run, seed) → value, where it was measured."""
    keys = list(zip(rows["run"].astype(int), rows["seed"].astype(int), strict=True))
    return {
        name: {
            key: value
            for key, value in zip(keys, rows[name].astype(float), strict=True)
            if not math.isnan(value)
        }
        for name in names
    }


def _by_seed(rows: pd.DataFrame, names: Sequence[str]) -> dict[str, dict[int, float]]:
    """Figure → seed → mean over repetitions, where it was measured."""
    means = rows[list(names)].astype(float).groupby(rows["seed"].astype(int)).mean()
    return {
        name: {int(str(seed)): float(value) for seed, value in means[name].dropna().items()} for name in names
    }


def _failures(rows: pd.DataFrame) -> tuple[Failure, ...]:
    found = []
    for (status, reason), same in rows.groupby(["status", "reason"]):
        seeds = tuple(sorted({int(seed) for seed in same["seed"]}))
        found.append(Failure(str(status), str(reason) or "no reason given", seeds, len(same)))
    return tuple(found)


def _notes(runs: Sequence[Run]) -> tuple[str, ...]:
    """What differs between the runs of a group without making them incomparable."""
    said = {
        "revisions of sltt-bench": {_revision(run) for run in runs},
        "GPUs of this model": {_gpus(run, "uuid") for run in runs},
        "GPU drivers": {_gpus(run, "driver") for run in runs},
        "sets of environment variables": {repr(run.provenance.get("environment")) for run in runs},
    }
    return tuple(f"measured with {len(values)} {what}" for what, values in said.items() if len(values) > 1)


def _device_bytes(name: str, runs: Sequence[Run]) -> float | None:
    sizes = {
        gpu.get("memory_total_bytes")
        for run in runs
        for gpu in run.provenance.get("gpus") or []
        if isinstance(gpu, dict) and gpu.get("name") == name
    }
    size = sizes.pop() if len(sizes) == 1 else None
    return float(size) if isinstance(size, int) else None


def _revision(run: Run) -> str:
    names = ("sltt_bench", "git_revision", "git_dirty")
    return " ".join(str(run.provenance.get(name)) for name in names)


def _gpus(run: Run, what: str) -> str:
    gpus = run.provenance.get("gpus") or []
    return " ".join(str(gpu.get(what)) for gpu in gpus if isinstance(gpu, dict))
