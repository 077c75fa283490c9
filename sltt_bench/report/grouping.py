"""From the rows of results to groups of comparable cells, through the integrity pass."""

import json
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd

from sltt_bench.common.identity import short_hash
from sltt_bench.report.groups import (
    FailedCells,
    Group,
    MethodResult,
    budget_text,
    differing_fields,
    method_order,
    seeds_text,
)
from sltt_bench.report.integrity import (
    CHECKED,
    Breach,
    Epochs,
    began_with,
    beginning_breaches,
    beginnings,
    cell_fault,
    gpu_state,
    mapping_at,
    method_breaches,
    plugins_of_method,
    replay_breaches,
    sample_breaches,
    source_of_plugin,
)
from sltt_bench.report.keys import TUNED, UNKNOWN_HARDWARE, GroupKey
from sltt_bench.report.metrics import COLD_FIGURES, MEMORY_FIGURES, METRICS, PEAKS_OF_EPOCHS, Phase
from sltt_bench.results.doubts import CHANCE, used_by_others
from sltt_bench.results.reader import Results, Run

UNSOUND = "unsound"
"""Status of a cell that says ok but does not pass the integrity pass."""


def make_groups(results: Results) -> list[Group]:
    """The measured cells (kind "run") in comparable groups, ordered by key."""
    cells = results.cells[results.cells["kind"] == "run"]
    if cells.empty:
        return []
    cells = with_facts_of_siblings(cells)
    cells = cells.join(_measures(results.epochs), on=["run", "cell_id"])
    figures = [*METRICS, *COLD_FIGURES]
    cells[figures] = cells[figures].astype(float)
    # Random data have no accuracy, whatever a file says.
    cells.loc[cells["synthetic"].astype(bool), ["last_test_top1", "best_test_top1", "firing_rate"]] = math.nan
    cells["hardware"] = cells["device_name"].where(cells["device_name"] != "", UNKNOWN_HARDWARE)
    epochs = EpochsOfCells(results.epochs)
    facts = [_facts(cell, results.runs, epochs) for cell in cells.to_dict("records")]
    cells[list(facts[0])] = pd.DataFrame(facts, cells.index)
    cells = cells.assign(beside=_beside(cells), ranks=_ranks(cells, results.epochs))
    # Plain mappings, since thousands of small frames of pandas cost seconds.
    cells["figures"] = pd.Series(cells[figures].to_dict("records"), cells.index)
    names = [part.name for part in fields(GroupKey)]
    groups = []
    for values, members in cells.groupby(names, sort=False):
        parts: Any = dict(zip(names, values, strict=True))
        for name in ("timesteps", "batch_size", "schema_version"):
            parts[name] = int(parts[name])
        groups.append(_group(GroupKey(**parts), members, results.runs, epochs))
    return _told_where_else(sorted(groups, key=lambda group: group.key))


def _told_where_else(groups: Sequence[Group]) -> list[Group]:
    """The groups with the reason why a method that they lack is in another group of their recipe."""
    linked = []
    for group in groups:
        siblings = [g for g in groups if g.key.recipe == group.key.recipe and g is not group]
        elsewhere: dict[str, str] = {}
        for method in {name for g in siblings for name in g.methods} - set(group.methods):
            differences = [differing_fields([group, g]) for g in siblings if method in g.methods]
            elsewhere[method] = ", ".join(sorted(differences, key=len)[0])
        linked.append(replace(group, elsewhere=elsewhere) if elsewhere else group)
    return linked


class EpochsOfCells:
    """epochs.csv of all runs, to be asked for the rows of a cell: no small frame for each of thousands of them."""

    def __init__(self, epochs: pd.DataFrame) -> None:
        self._epochs = epochs
        self._places: Mapping[Any, Any] = epochs.groupby(["run", "cell_id"], sort=False).indices
        self._checked = {name: epochs[name].to_numpy(dtype=float) for name in CHECKED}

    def checked(self, cell: tuple[int, str]) -> Epochs:
        """What the integrity pass looks at; `cell` is (run, cell_id)."""
        places = self._places.get(cell, _NOWHERE)
        return {name: values[places] for name, values in self._checked.items()}

    def rows(self, cells: Sequence[tuple[int, str]]) -> pd.DataFrame:
        """The rows of these cells, one cell after the other; without rows if they have none."""
        places = [self._places[cell] for cell in cells if cell in self._places]
        return self._epochs.take(np.concatenate(places)).reset_index(drop=True) if places else pd.DataFrame()


_NOWHERE = np.array([], dtype=int)


def _facts(cell: Mapping[Hashable, Any], runs: Sequence[Run], epochs: EpochsOfCells) -> dict[str, Any]:
    """Status and reason of a cell after the integrity pass, and what its run's files tell of it: for its group's key, and of
    a sound one for the breaches (`measured_with`, `circumstances`: of each attempt in which it trained, without epochs the last)."""
    run, cell_id, last = runs[int(cell["run"])], str(cell["cell_id"]), int(cell["attempt"])
    rows, told = epochs.checked((cell["run"], cell_id)), partial(run.measured_with, cell_id)
    fault = ""
    if cell["status"] == "ok":
        fault = cell_fault(cell, rows, run.recipe_of(cell_id))
        if run.is_stranger(cell_id, last):
            fault = "provenance.json tells nothing of it, but of other cells: are its rows another run's?"
    is_sound = cell["status"] == "ok" and not fault
    trained = [told(int(attempt)) for attempt in sorted({*rows["attempt"]} or {last})] if is_sound else []
    return {
        "status": UNSOUND if fault else cell["status"],
        "reason": fault or cell["reason"],
        **_circumstances(run, cell, told(last)),
        "tuning": _tuning(run, cell_id, cell["trials"], cell["overrides"]),
        "chosen": "" if pd.isna(cell["trials"]) else _chosen(run, cell_id),
        "measured_with": trained,
        "circumstances": [_circumstances(run, cell, facts) for facts in trained] * (len(trained) > 1),
        "began": began_with(map(told, range(1, last + 1))) if is_sound else {},
    }


def _circumstances(run: Run, cell: Mapping[Hashable, Any], facts: Mapping[str, Any]) -> dict[str, str]:
    """What an attempt at a cell ran on and with, as far as it was recorded (`facts`); '' for what was not.

    A cell that ended before it could report is taken to have had its run's flags.
    """
    build, packages = mapping_at(facts, "torch"), mapping_at(facts, "packages")
    torch = packages.get("torch") or build.get("version")
    cuda = str(build.get("cuda") or "").partition(".")[0]
    gpus = facts.get("gpus") or []
    gpu = gpu_state(facts) or next((gpu for gpu in gpus if gpu.get("name") == cell["device_name"]), {})
    flags = dict(mapping_at(facts, "torch_flags")) or _flags_of_siblings(run)
    threads = flags.pop("threads", "")
    flags.pop("interop_threads", None)
    words = [str(facts.get("cpu") or ""), str(build.get("cpu_capability") or "")]
    return {
        "software": (f"torch {torch}" if torch else "torch of unknown version")
        + (f", CUDA {cuda}" if cuda else ""),
        "library": ", ".join([*filter(None, [packages.get(cell["backend"])]), *_shared_plugins(facts)]),
        "revision": _revision(facts, run),
        "device_memory": str(gpu.get("memory_total_bytes") or ""),
        "driver": str(gpu.get("driver") or "").partition(".")[0],
        "cpu": ", ".join(word for word in words if word),
        "threads": str(threads),
        "flags": ", ".join(f"{name} {value}" for name, value in sorted(flags.items())),
    }


def _flags_of_siblings(run: Run) -> dict[str, Any]:
    """Those of all the run's cells, if they are one and the same."""
    told = [flags for facts in run.told if (flags := mapping_at(facts, "torch_flags"))]
    known = {json.dumps(flags, sort_keys=True): flags for flags in told}
    return dict(next(iter(known.values()))) if len(known) == 1 else {}


def _shared_plugins(facts: Mapping[str, Any]) -> Iterator[str]:
    """The plug-ins behind a cell that are none of its method: those serve all methods alike."""
    for name, plugin in sorted(mapping_at(facts, "plugins").items()):
        if not name.startswith("methods "):
            yield f"{name} {source_of_plugin(plugin)}"


def _revision(facts: Mapping[str, Any], run: Run) -> str:
    """Version of sltt-bench and the digest of its source; in runs from before there was one the commit, with local
    changes the run's own, which equals no other's."""
    words = [str(facts.get("sltt_bench") or "")]
    if source := facts.get("source_sha256"):
        words.append(f"source {str(source)[:12]}")
    else:
        words.append(str(facts.get("git_revision") or "")[:12])
        words += [f"local changes in {run.path.name}"] * bool(facts.get("git_dirty"))
    return ", ".join(word for word in words if word)


def with_facts_of_siblings(cells: pd.DataFrame) -> pd.DataFrame:
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


def _beside(cells: pd.DataFrame) -> "pd.Series[bool]":
    """Whether each cell had neighbours; one that never started goes where its run's cells are.

    In rows from before cells could have neighbours the count is empty: they had none.
    """
    beside = cells["neighbours"].astype(float) > 0
    unknown = cells["neighbours"].isna() & (cells["status"] != "ok")
    for run in cells.loc[unknown, "run"].unique():
        in_run = cells["run"] == run
        if (known := beside[in_run & ~unknown]).nunique() == 1:
            beside[in_run & unknown] = known.iloc[0]
    return beside


def _ranks(cells: pd.DataFrame, epochs: pd.DataFrame) -> "pd.Series[str]":
    """How many processes shared the batches in each cell's epochs ("1, 2" where it went on with another number);
    of one without epochs, how many were to. Rows from before there could be more than one are empty.
    """
    planned = cells["ranks"].astype(float).fillna(1).astype(int).astype(str)
    counts = epochs["ranks"].astype(float).fillna(1).groupby([epochs["run"], epochs["cell_id"]])
    trained = counts.agg(lambda ranks: ", ".join(str(int(count)) for count in sorted(set(ranks))))
    known = cells.join(trained.rename("of_epochs").astype(object), on=["run", "cell_id"])["of_epochs"]
    return known.where(known.notna(), planned)


def _tuning(run: Run, cell_id: str, trials: float, overrides: str) -> str:
    """Whose a cell's settings are, as `GroupKey.tuning` has it."""
    if pd.notna(trials):
        return f"{TUNED}, {budget_text(int(trials), _protocol(run, cell_id).get('epochs'))}"
    rate = overrides_of(overrides).get("train.lr")
    return "at the recipe's learning rate" if rate is None else f"at learning rate {rate}"


def _protocol(run: Run, cell_id: str) -> Mapping[str, Any]:
    """How the settings of a tuned cell were chosen; empty for others."""
    return mapping_at(run.cell(cell_id), "options", TUNED, "protocol")


def _measures(epochs: pd.DataFrame) -> pd.DataFrame:
    """The figures of each cell from its epochs, indexed by (run, cell_id)."""
    key = ["run", "cell_id"]
    medians = ["train_s", "eval_s", "data_wait_s", "samples_per_s", "energy_j", "gpu_util_mean"]
    peaks = list(PEAKS_OF_EPOCHS)
    counted = ["firing_rate", "backward_passes", "cpu_util_mean", "cpu_others_mean"]
    numbers = [*medians, *counted, *MEMORY_FIGURES]
    # NVML's figure is under the name of what it covers: a process's memory is never set beside a device's.
    for scope in ("process", "device"):
        of_scope = epochs["peak_nvml_bytes"].where(epochs["peak_nvml_scope"] == scope)
        epochs = epochs.assign(**{f"peak_nvml_{scope}_bytes": of_scope})
    epochs = epochs.astype(dict.fromkeys(numbers, float) | {"cold": bool})
    by_cell = epochs.groupby(key, sort=False)
    of_phase = epochs[~epochs["cold"] | by_cell["cold"].transform("all")]
    chosen = of_phase.groupby(key, sort=False)
    table = chosen[medians].median().rename(columns={"train_s": "epoch_s", "gpu_util_mean": "gpu_util"})
    table[peaks] = chosen[peaks].max()
    used = _used_by_others(of_phase)
    table["used_by_others"] = [used.get(cell, math.nan) for cell in table.index]
    table["untimed"] = epochs["train_s"].isna().groupby([epochs[name] for name in key], sort=False).sum()
    table["peak_tensor_bytes"] = by_cell["peak_tensor_bytes"].max()
    cold = epochs[epochs["cold"]].groupby(key, sort=False)
    table[[f"cold_{name}" for name in peaks]] = cold[peaks].max()
    table["cold_epoch_s"] = cold["train_s"].median()
    last = epochs.sort_values("epoch", kind="stable").groupby(key, sort=False).tail(1).set_index(key)
    table["firing_rate"] = last["firing_rate"]
    table["backward_passes"] = by_cell["backward_passes"].mean()
    table["phase"] = by_cell["cold"].all().map({True: "cold", False: "warm"})
    return table


def _used_by_others(epochs: pd.DataFrame) -> dict[Hashable, float]:
    """(run, cell_id) → `used_by_others` of its epochs, where they know it."""
    columns = ["train_s", "cpu_util_mean", "cpu_others_mean"]
    known = epochs.dropna(subset=columns)
    by_cell = known.groupby(["run", "cell_id"], sort=False)
    return {cell: used_by_others(*(own[name].tolist() for name in columns)) for cell, own in by_cell}


def _group(key: GroupKey, members: pd.DataFrame, runs: Sequence[Run], epochs: EpochsOfCells) -> Group:
    is_sound = members["status"] == "ok"
    sound, failed = (
        {str(method): rows for method, rows in members[chosen].groupby("method")}
        for chosen in (is_sound, ~is_sound)
    )
    nothing = members[:0]
    methods = {
        method: _method_result(method, sound.setdefault(method, nothing), failed.get(method, nothing), epochs)
        for method in {**sound, **failed}
    }
    first = members.sort_values("cell_id").iloc[0]
    protocol = _protocol(runs[int(first["run"])], str(first["cell_id"]))
    run_indices = tuple(sorted({int(run) for run in members["run"]}))
    group = Group(
        key=key,
        methods={name: methods[name] for name in sorted(methods, key=method_order)},
        recipe=_recipe_of_group(runs[int(first["run"])], str(first["cell_id"])),
        overrides=overrides_of(first["overrides"]),
        protocol=short_hash(protocol) if protocol else "",
        claims=_claims(members, runs),
        runs=run_indices,
        notes=_notes([runs[index] for index in run_indices]),
        on_gpu=bool(members["device"].str.startswith("cuda").any()),
        device_bytes=float(key.device_memory) if key.device_memory else None,
    )
    of_methods = (
        method_breaches(method, sound[method], group.accuracy_resolution, result.plugins)
        for method, result in group.methods.items()
    )
    between = breaches_between({result.method: result for result in group.finished})
    breaches = (*chain.from_iterable(of_methods), *replay_breaches(members[is_sound]), *between)
    return replace(group, breaches=breaches)


def _recipe_of_group(run: Run, cell_id: str) -> Mapping[str, Any]:
    """The resolved recipe of a group's cells; what was tuned, and so is not the same in all, reads "tuned"."""
    recipe = run.recipe_of(cell_id)
    for section, key in _tuned_fields(run, cell_id):
        recipe = {**recipe, section: {**mapping_at(recipe, section), key: TUNED}}
    return recipe


def _chosen(run: Run, cell_id: str) -> str:
    """As JSON: what was chosen for a tuned cell."""
    recipe, fields = run.recipe_of(cell_id), _tuned_fields(run, cell_id)
    chosen = {f"{section}.{key}": mapping_at(recipe, section).get(key) for section, key in fields}
    return json.dumps(chosen, sort_keys=True)


def _tuned_fields(run: Run, cell_id: str) -> list[tuple[str, str]]:
    """(section, key) of each field of the recipe that was searched for a tuned cell."""
    dotted = (str(name).partition(".") for name in mapping_at(_protocol(run, cell_id), "grid"))
    return [(section, key) for section, _, key in dotted]


def _claims(members: pd.DataFrame, runs: Sequence[Run]) -> tuple[Mapping[str, Any], ...]:
    """The claims of all runs of a group, each once; those of one run are taken from its first cell."""
    claims: dict[str, Mapping[str, Any]] = {}
    for run, cell_id in members.groupby("run", sort=True)["cell_id"].first().items():
        for claim in runs[int(str(run))].recipe_of(str(cell_id)).get("claims") or ():
            claims.setdefault(json.dumps(claim, sort_keys=True), claim)
    return tuple(claims.values())


def breaches_between(results: Mapping[str, MethodResult]) -> Iterator[Breach]:
    """What should be alike in all methods of a group, or in a method on all backends: under the name of each."""
    samples = {
        name: counts
        for name, result in results.items()
        if len(result.epochs) and (counts := {int(count) for count in result.epochs["samples"].dropna()})
    }
    yield from beginning_breaches({name: result.began for name, result in results.items()})
    yield from sample_breaches(samples)


def overrides_of(text: str) -> Mapping[str, Any]:
    """A cell's overrides from cells.csv: recipe field (dotted) → value."""
    return dict(json.loads(text or "{}"))


def _method_result(
    method: str, ok: pd.DataFrame, failed: pd.DataFrame, epochs: EpochsOfCells
) -> MethodResult:
    phase: Phase = "warm" if (ok["phase"] == "warm").any() else "cold"
    of_phase = ok[ok["phase"] == phase]
    measured = _by_run(of_phase, [name for name, metric in METRICS.items() if metric.of_phase])
    others = [name for name, metric in METRICS.items() if not metric.of_phase]
    cells = tuple(sorted((int(run), str(cell)) for run, cell in zip(ok["run"], ok["cell_id"], strict=True)))
    return MethodResult(
        method=method,
        by_run=measured | _by_run(ok, [*others, *COLD_FIGURES]),
        phase=phase,
        finished=len(ok),
        failures=_failures(failed),
        epochs=epochs.rows(cells),
        cells=cells,
        doubts=_doubts(ok),
        guesses=len(ok) > 0 and all(CHANCE in str(doubts) for doubts in ok["doubts"]),
        plugins=tuple(plugins_of_method(ok)),
        began=beginnings(ok),
    )


def _doubts(rows: pd.DataFrame) -> tuple[str, ...]:
    """Each reason of column `doubts` once, with the seeds that it is about."""
    seeds: dict[str, set[int]] = {}
    for doubts, seed in zip(rows["doubts"], rows["seed"], strict=True):
        for reason in str(doubts).split("; ") if doubts else ():
            seeds.setdefault(reason, set()).add(int(seed))
    return tuple(f"{reason} ({seeds_text(sorted(doubted))})" for reason, doubted in seeds.items())


def _by_run(rows: pd.DataFrame, names: Sequence[str]) -> dict[str, dict[tuple[int, int], float]]:
    """Figure → (run, seed) → value, where it was measured."""
    places = ((int(run), int(seed)) for run, seed in zip(rows["run"], rows["seed"], strict=True))
    cells = list(zip(places, rows["figures"], strict=True))
    return {
        name: {key: value for key, figures in cells if not math.isnan(value := figures[name])}
        for name in names
    }


def _failures(rows: pd.DataFrame) -> tuple[FailedCells, ...]:
    if rows.empty:
        return ()
    failures = []
    for (status, reason), same in rows.groupby(["status", "reason"]):
        seeds = tuple(sorted({int(seed) for seed in same["seed"]}))
        failures.append(FailedCells(str(status), str(reason) or "no reason given", seeds, len(same)))
    return tuple(failures)


def _notes(runs: Sequence[Run]) -> tuple[str, ...]:
    """What differs between the runs of a group without making them incomparable."""
    differing = {
        "GPUs of this model": {
            " ".join(str(gpu.get("uuid")) for gpu in run.provenance.get("gpus") or []) for run in runs
        },
        "sets of environment variables": {repr(run.provenance.get("environment")) for run in runs},
    }
    return tuple(
        f"measured with {len(values)} {what}" for what, values in differing.items() if len(values) > 1
    )
