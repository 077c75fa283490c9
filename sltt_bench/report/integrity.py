"""The integrity pass: what is wrong with cells, before any of them enters a ratio.

A cell that is not whole, or that contradicts itself, counts as not finished, with its reason. What is wrong
with a method's cells together, or with the machine meanwhile, is a `Breach`: it stands beside the verdict, and
blocks the ratio where the figure cannot be trusted at all.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Any, get_args

import numpy as np
import pandas as pd

from sltt_bench.common.format import Unit, counted
from sltt_bench.report.keys import DIFFERENCE_WORDS
from sltt_bench.report.metrics import METRICS
from sltt_bench.report.numbers import first_of
from sltt_bench.report.statistics import ROUNDING, Floats
from sltt_bench.results.doubts import untimed_text

REPETITION_SHARE = 0.01
"""Accuracies of repetitions of one cell that differ by more are an alarm."""
WAITING_SHARE = 0.05
"""A share of the epoch spent waiting for data beyond which its time is not the method's, and decides nothing."""
BUSY_SHARE = 0.5
"""A GPU's utilisation below which an epoch takes the time that launching its work takes, not that of the work."""
LIMITED_SHARE = 0.05
"""A share of the readings with the clocks held down by heat or power beyond which it is a breach."""

_TIME: tuple[Unit, ...] = ("s", "per_s", "J")
EVERYTHING: tuple[Unit, ...] = get_args(Unit)
_HELD_DOWN = (
    "sw_power_cap", "hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown",
)  # fmt: skip


@dataclass(frozen=True)
class Breach:
    """Something that a reader of a comparison must know."""

    text: str
    methods: tuple[str, ...]
    """Whose cells it concerns."""
    units: tuple[Unit, ...]
    """Which kinds of figure it concerns."""
    blocks: bool = False
    """Whether there can be no ratio."""
    parts: bool = False
    """Whether there can be no ratio between two of its methods, though each one's own figures are sound."""
    undecides: bool = False
    """Whether there is a ratio, but a verdict on it is inconclusive, whatever its interval."""

    def concerns(self, metric: str, methods: Sequence[str]) -> bool:
        """Whether it stands beside a comparison of this figure of these methods."""
        return METRICS[metric].unit in self.units and bool(set(self.methods) & set(methods))


# One cell ---------------------------------------------------------------------------------------


Epochs = Mapping[str, Floats]
"""Column of CHECKED → its values in the epochs of one cell, of the attempts that count; NaN where there is none."""


def cell_fault(cell: Mapping[Any, Any], epochs: Epochs, recipe: Mapping[str, Any]) -> str:
    """Why a cell that says ok is not sound, or ''."""
    return next(_faults(cell, epochs, recipe), "")


def _faults(cell: Mapping[Any, Any], epochs: Epochs, recipe: Mapping[str, Any]) -> Iterator[str]:
    if cell.get("attempt_devices", 1) > 1:
        yield "its attempts ran on different hardware"
    rows = len(epochs["epoch"])
    train = recipe.get("train") or {}
    for source, wanted in (("its recipe", train.get("epochs")), ("its plan", cell["epochs_planned"])):
        if pd.notna(wanted) and rows != int(wanted):
            yield f"{rows} of the {counted(int(wanted), 'epoch')} of {source}"
    if pd.notna(cell["epochs_done"]) and rows != int(cell["epochs_done"]):
        yield f"cells.csv has {counted(int(cell['epochs_done']), 'epoch')}, epochs.csv {rows}"
    if rows == 0:
        return
    if sorted(epochs["epoch"]) != list(range(1, rows + 1)):
        yield "its epochs are not numbered from 1 without gaps"
    yield from _sample_faults(epochs, recipe, bool(cell["synthetic"]))
    yield from _value_faults(epochs, bool(cell["synthetic"]))
    yield from _contradictions(cell, epochs)


def _sample_faults(epochs: Epochs, recipe: Mapping[str, Any], synthetic: bool) -> Iterator[str]:
    counts = sorted({int(count) for count in _known(epochs["samples"])})
    if len(counts) > 1:
        yield f"its epochs have different numbers of samples: {', '.join(map(str, counts))}"
    data, train = recipe.get("data") or {}, recipe.get("train") or {}
    wanted = data.get("train_samples")
    if not counts or not wanted or synthetic:
        return
    wanted = min(int(wanted), int(data.get("limit") or wanted))
    if share := (recipe.get("validation") or {}).get("share"):
        wanted -= math.floor(share * wanted + 0.5)
    if train.get("drop_last") and train.get("batch_size"):
        wanted -= wanted % int(train["batch_size"])
    if counts[-1] != wanted:
        yield f"{counted(counts[-1], 'sample')} an epoch, not the {wanted} of its recipe"


def _value_faults(epochs: Epochs, synthetic: bool) -> Iterator[str]:
    for name in _POSITIVE:
        values = _known(epochs[name])
        if len(values) and not (np.isfinite(values) & (values > 0)).all():
            yield f"{name} is not a finite number above 0 in some epoch"
    if synthetic:
        return  # random data have no accuracy, and no loss that means something
    for name in ("train_loss", "test_top1"):
        rows, known = len(epochs[name]), _known(epochs[name])
        finite = int(np.isfinite(known).sum())
        if len(known) and finite < rows:
            yield f"{name} is not a finite number in {rows - finite} of {counted(rows, 'epoch')}"


_POSITIVE = (
    "train_s", "peak_allocated_bytes", "peak_reserved_bytes", "peak_nvml_bytes", "peak_rss_bytes", "peak_tensor_bytes",
)  # fmt: skip
CHECKED = ("attempt", "epoch", "samples", "eval_s", "train_loss", "test_top1", "validation_top1", *_POSITIVE)
"""The columns of epochs.csv that the pass looks at."""


def _known(values: Floats) -> Floats:
    """Those of a column that are there, in the order of the rows."""
    return values[~np.isnan(values)]


def _contradictions(cell: Mapping[Any, Any], epochs: Epochs) -> Iterator[str]:
    last_attempt = epochs["attempt"] == cell["attempt"]
    spent = sum(float(np.nansum(epochs[name][last_attempt])) for name in ("train_s", "eval_s"))
    if spent > float(cell["wall_s"]) * (1 + 1e-6):
        yield f"its epochs took {spent:.1f} s, more than the whole cell ({cell['wall_s']:.1f} s)"
    top1 = epochs["test_top1"]
    if cell["synthetic"]:
        return
    if np.isnan(top1).all() and pd.notna(cell["last_test_top1"]):
        yield f"last_test_top1 is {float(cell['last_test_top1']):.4f} in cells.csv, but no epoch has a test_top1"
    if np.isnan(top1).any():
        return
    last = top1[int(epochs["epoch"].argmax())]
    validated = epochs["validation_top1"]
    best = top1.max() if np.isnan(validated).any() else top1[int(validated.argmax())]
    for name, value in (("last_test_top1", last), ("best_test_top1", best)):
        if pd.notna(cell[name]) and abs(float(cell[name]) - value) > 1e-9:
            yield f"{name} is {float(cell[name]):.4f} in cells.csv, {value:.4f} by epochs.csv"


# A method's cells together ----------------------------------------------------------------------


def method_breaches(
    method: str, cells: pd.DataFrame, resolution: float, plugins: Sequence[str]
) -> Iterator[Breach]:
    """What is wrong with a method's cells. `cells`: sound ones, as `grouping.make_groups` has them; `plugins`: `plugins_of_method`."""
    yield from _repetition_breaches(method, cells, resolution)
    yield from _moment_breaches(method, cells)
    if len(plugins) > 1:
        text = f"{method}: its plug-in changed between its cells ({' and '.join(plugins)}); report the runs of one of them"
        yield Breach(text, (method,), EVERYTHING, blocks=True)
    resumed = cells[cells["measured_with"].map(len) > 1].sort_values(["run", "cell_id"])
    yield from _source_breaches(method, resumed)
    yield from _data_breaches(method, resumed)
    yield from _rank_breaches(method, cells)
    yield from _mixed_breaches(method, resumed)
    settings = sorted({*cells["chosen"]})
    if len(settings) > 1:
        text = f"{method}: tuned to different settings in different runs ({' and '.join(settings)}); report one of them"
        yield Breach(text, (method,), EVERYTHING, blocks=True)


def _repetition_breaches(method: str, cells: pd.DataFrame, resolution: float) -> Iterator[Breach]:
    """What repetitions of a cell contradict."""
    if cells["cell_id"].is_unique:
        return
    repeated = cells[cells.duplicated(["cell_id", "seed"], keep=False)]
    for _, same in repeated.groupby(["cell_id", "seed"], sort=False):
        repetitions = f"{method}, seed {int(same['seed'].iloc[0])}: repetitions of one cell"
        exact = sorted({int(count) for count in same["peak_tensor_bytes"].dropna()})
        if len(exact) > 1:
            text = f"{repetitions} counted different live tensor bytes, {exact[0]:,} and {exact[-1]:,}"
            yield Breach(text, (method,), ("bytes",), blocks=True)
        top1 = same["last_test_top1"].astype(float).dropna()
        if len(top1) > 1 and top1.max() - top1.min() > max(REPETITION_SHARE, 1.5 * resolution) + ROUNDING:
            text = f"{repetitions} reached {100 * top1.min():.2f} % and {100 * top1.max():.2f} %"
            yield Breach(text, (method,), ("accuracy",), blocks=True)


def sample_breaches(samples: Mapping[str, set[int]]) -> Iterator[Breach]:
    """Methods of one group whose epochs have different numbers of samples (method → counts)."""
    if len({count for counts in samples.values() for count in counts}) > 1:
        listing = ", ".join(f"{method} {min(counts):,}" for method, counts in samples.items())
        text = f"different numbers of samples an epoch: {listing}"
        yield Breach(text, tuple(samples), EVERYTHING, blocks=True)


def _moment_breaches(method: str, cells: pd.DataFrame) -> Iterator[Breach]:
    """What disturbed the machine while a method's cells ran."""
    shares = (cells["data_wait_s"].astype(float) / cells["epoch_s"].astype(float)).dropna()
    if len(shares) and shares.max() > WAITING_SHARE:
        text = f"{method} spent up to {shares.max():.0%} of an epoch waiting for data"
        yield Breach(text, (method,), _TIME, undecides=True)
    used = cells["used_by_others"].max()
    if used > 0:
        text = f"{method}: other programs used {used:.0%} of the processors while it trained"
        yield Breach(text, (method,), _TIME, undecides=True)
    if untimed := int(cells["untimed"].astype(float).fillna(0).sum()):
        yield Breach(f"{method}: {untimed_text(untimed)}", (method,), _TIME)
    busy = cells["gpu_util"].astype(float).mean()
    if busy < BUSY_SHARE:
        text = f"{method}: the GPU was busy {busy:.0%} of the time, so an epoch takes as long as launching its work does"
        yield Breach(text, (method,), _TIME)
    neighbours = int(cells["neighbours"].astype(float).fillna(0).max()) if len(cells) else 0
    if neighbours:
        others_text = counted(neighbours, "other cell")
        yield Breach(f"{method}: measured while up to {others_text} ran", (method,), _TIME)
    limited: dict[str, float] = {}
    others = 0
    for facts in chain.from_iterable(cells["measured_with"]):
        gpu = gpu_state(facts)
        for reason, share in (gpu.get("clock_limits_while_training") or {}).items():
            limited[reason] = max(limited.get(reason, 0.0), float(share))
        for state in (gpu.get("at_start") or {}, gpu.get("at_end") or {}):
            others = max(others, int(state.get("other_compute_processes") or 0))
    for reason, share in limited.items():
        if reason in _HELD_DOWN and share > LIMITED_SHARE:
            words = reason.replace("sw_", "").replace("hw_", "").replace("_", " ")
            text = f"{method}: clocks held down ({words}) in {share:.0%} of the readings"
            yield Breach(text, (method,), _TIME)
    if others:
        yield Breach(f"{method}: {counted(others, 'other process')} on the GPU", (method,), (*_TIME, "bytes"))


def replay_breaches(cells: pd.DataFrame) -> Iterator[Breach]:
    """Methods of one group whose work reached the GPU call by call where that of others was replayed."""
    replayed: dict[str, bool] = {}
    for method, attempts in zip(cells["method"], cells["measured_with"], strict=True):
        replayed[method] = replayed.get(method, False) or any(map(_is_replayed, attempts))
    faster = [method for method, is_replayed in replayed.items() if is_replayed]
    slower = [method for method, is_replayed in replayed.items() if not is_replayed]
    for method in slower if faster else ():
        text = (
            f"{method}: its work reached the GPU call by call, that of {first_of(faster, 3)} as replayed CUDA graphs, so its time "
            "includes what the calls take (with native.graphs=never all methods are timed alike)"
        )
        yield Breach(text, (method,), _TIME, undecides=True)


def plugins_of_method(cells: pd.DataFrame) -> list[str]:
    """The versions of a method's plug-in, in words, that its cells ran; none for a method of this package."""
    return sorted(
        {
            source_of_plugin(plugin)
            for facts in chain.from_iterable(cells["measured_with"])
            for name, plugin in mapping_at(facts, "plugins").items()
            if name.startswith("methods ")
        }
    )


def _source_breaches(method: str, resumed: pd.DataFrame) -> Iterator[Breach]:
    """Cells that went on with other code than they began with."""
    for attempts in resumed["measured_with"]:
        known = {str(source)[:12] for facts in attempts if (source := facts.get("source_sha256"))}
        if len(known) > 1:
            text = f"{method}: a cell was resumed with other code of sltt-bench than it began with (source {' and '.join(sorted(known))})"
            yield Breach(text, (method,), EVERYTHING)
            return


def _data_breaches(method: str, resumed: pd.DataFrame) -> Iterator[Breach]:
    """Cells that went on with other samples than they began with."""
    for attempts in resumed["measured_with"]:
        known: dict[tuple[str, int], set[str]] = {}
        for facts in attempts:
            for name in (name for name in DATA_DIGESTS if facts.get(name)):
                # Of a batch that is divided, a process sees a part: another one where they are more or fewer.
                ranks = len(facts.get("ranks") or ()) if name == FIRST_BATCH else 0
                known.setdefault((name, ranks), set()).add(str(facts[name])[:12])
        for digests in known.values():
            if len(digests) > 1:
                listing = " and ".join(sorted(digests))
                text = f"{method}: a cell was resumed with other samples than it began with (data {listing})"
                yield Breach(text, (method,), ("accuracy",), undecides=True)
                return


def _rank_breaches(method: str, cells: pd.DataFrame) -> Iterator[Breach]:
    """Cells whose batches were divided over processes that had not the same data set, or not the same weights."""
    unlike: set[str] = set()
    for facts in chain.from_iterable(cells["measured_with"]):
        told = facts.get("ranks_began_with")
        ranks = [mapping_at(rank) for rank in told] if isinstance(told, list) else []
        for name, words in _ALIKE_IN_RANKS.items():
            if len({str(rank[name]) for rank in ranks if rank.get(name)}) > 1:
                unlike.add(words)
    if unlike:
        text = f"{method}: the processes that shared its batches had different {' and '.join(sorted(unlike))}"
        yield Breach(text, (method,), ("accuracy",), blocks=True)


_ALIKE_IN_RANKS = {
    "training_samples_sha256": "training samples",
    "evaluated_samples_sha256": "samples to be evaluated on",
    "labels_sha256": "labels",
    "weights_sha256": "weights to begin with",
}
"""Key of a rank's entry in an attempt's `ranks_began_with` in provenance.json → what it is of."""


def _mixed_breaches(method: str, resumed: pd.DataFrame) -> Iterator[Breach]:
    """Cells that went on under other conditions than they began with."""
    differing: set[str] = set()
    for kept in resumed["circumstances"]:
        for name in set(kept[0]) - {"revision"}:  # the source has a breach of its own
            known = {words[name] for words in kept if words[name] and "unknown" not in words[name]}
            if len(known) > 1:
                differing.add(f"{DIFFERENCE_WORDS[name]}: {' and '.join(sorted(known))}")
    if differing:
        text = f"{method}: a cell was resumed under other conditions than it began with ({'; '.join(sorted(differing))})"
        yield Breach(text, (method,), EVERYTHING, undecides=True)


Beginnings = Mapping[str, Mapping[int, frozenset[str]]]
"""Key of `BEGINNINGS` → seed → digests of what the cells of one method began with, where they are known."""


def beginning_breaches(began: Mapping[str, Beginnings]) -> Iterator[Breach]:
    """Cells of one seed that did not begin alike: with the same weights, samples and order of samples.

    `began`: method → what its cells began with.
    """
    for text, names in BEGINNINGS.items():
        told: set[tuple[int, tuple[str, ...]]] = set()
        for name in names:
            for seed, methods in sorted(_by_digest(began, name).items()):
                for breach in _unlike(f"seed {seed}: {text}", methods):
                    if (seed, breach.methods) not in told:
                        told.add((seed, breach.methods))
                        yield breach


def _by_digest(began: Mapping[str, Beginnings], name: str) -> dict[int, dict[str, set[str]]]:
    """Seed → digest → the methods whose cells began with it."""
    of_seeds: dict[int, dict[str, set[str]]] = {}
    for method, known in began.items():
        for seed, digests in known[name].items():
            for digest in digests:
                of_seeds.setdefault(seed, {}).setdefault(digest, set()).add(method)
    return of_seeds


def beginnings(cells: pd.DataFrame) -> Beginnings:
    """What the cells of one method began with."""
    began: dict[str, dict[int, frozenset[str]]] = {name: {} for name in _BEGUN_WITH}
    for seed, digests in zip(cells["seed"], cells["began"], strict=True):
        for name, digest in digests.items():
            began[name][int(seed)] = began[name].get(int(seed), frozenset()) | {digest}
    return began


def began_with(attempts: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Key of `BEGINNINGS` → what the first of a cell's attempts that knows it said: a resumed one begins in the middle."""
    began: dict[str, str] = {}
    for facts in attempts:
        began |= {name: str(facts[name]) for name in _BEGUN_WITH if facts.get(name) and name not in began}
        if len(began) == len(_BEGUN_WITH):
            break
    return began


def _unlike(text: str, began: Mapping[str, set[str]]) -> Iterator[Breach]:
    """`began`: digest → methods."""
    sides = sorted((digest[:12], sorted(methods)) for digest, methods in began.items())
    text += ": " + " and ".join(f"{digest} ({', '.join(methods)})" for digest, methods in sides)
    for one, other in combinations([methods for _, methods in sides], 2):
        for pair in sorted({(a, b) for a in one for b in other}):
            if pair[0] == pair[1]:
                yield Breach(text, pair[:1], ("accuracy",), blocks=True)
            else:
                yield Breach(text, pair, ("accuracy",), parts=True)


FIRST_BATCH = "data_sha256"
DATA_DIGESTS = (FIRST_BATCH, "training_samples_sha256", "evaluated_samples_sha256")
"""Keys of an attempt in provenance.json that tell its data from others."""
BEGINNINGS = {
    "training began with different weights": ("weights_sha256",),
    "training saw different samples, or in another order": DATA_DIGESTS[:2],
    "evaluation saw different samples": DATA_DIGESTS[2:],
}
"""What it means where cells that should be alike differ in one of these keys of an attempt in provenance.json."""
_BEGUN_WITH = tuple(chain.from_iterable(BEGINNINGS.values()))


def source_of_plugin(plugin: Any) -> str:
    """Package, version and source in words."""
    facts = mapping_at(plugin)
    source = str(facts.get("source_sha256") or "unknown")[:12]
    return " ".join([*filter(None, [facts.get("package"), facts.get("version")]), f"source {source}"])


def _is_replayed(measured_with: Mapping[str, Any]) -> bool:
    """Whether iterations of a cell were replayed."""
    replayed = mapping_at(measured_with, "backend").get("CUDA graphs")
    count = re.match(r"(\d+) iterations replayed", str(replayed or ""))
    return count is not None and int(count[1]) > 0


def gpu_state(measured_with: Mapping[str, Any]) -> Mapping[str, Any]:
    """What was seen of the GPU while a cell ran; empty if nothing."""
    return mapping_at(measured_with, "profiler", "gpu")


def mapping_at(tree: Any, *path: str) -> Mapping[str, Any]:
    """What stands below these keys of a file that may have been damaged; empty if it is no mapping."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree if isinstance(tree, Mapping) else {}
