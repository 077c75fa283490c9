"""Studies of tuning as results tell them: what each trial reached, what was chosen, and what an untuned comparison loses."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from sltt_bench.planning.studies import TASK, task_name
from sltt_bench.report.grouping import overrides_of
from sltt_bench.report.groups import Group, NotComparable, budget_text, method_order, settings_of
from sltt_bench.report.keys import TUNED, settings_apart
from sltt_bench.report.statistics import PairedEstimate, paired_difference
from sltt_bench.results.reader import Results
from sltt_bench.results.schema import TUNING_FILE


@dataclass(frozen=True)
class TriedSetting:
    """One point of the grid, for one method."""

    setting: Mapping[str, Any]
    """Searched field (dotted) → value."""
    top1: tuple[float, ...]
    """Validation accuracy after the last epoch of each trial that has one, 0 to 1."""
    lost: int
    """Trials whose loss diverged or whose memory ran out."""
    chosen: bool
    at_edge: tuple[str, ...]
    as_recipe: bool
    """Whether it is what the recipe says."""

    @property
    def mean(self) -> float | None:
        """Over its trials; None if one was lost: then it cannot be chosen."""
        return sum(self.top1) / len(self.top1) if self.top1 and not self.lost else None


@dataclass(frozen=True)
class TuningStudy:
    """The trials of some methods under one protocol and else equal conditions."""

    recipe: str
    point: Mapping[str, Any]
    """What was set otherwise than the recipe has it, beside what was searched: a study's point, for example."""
    protocol: str
    """Hash of what was done alike for all of them."""
    trials: int
    """The budget of each method."""
    epochs: int | None
    """Of a trial; None if no file tells it."""
    fields: tuple[str, ...]
    """Searched, dotted."""
    conditions: tuple[str, ...]
    methods: Mapping[str, tuple[TriedSetting, ...]]
    """In the order of tables; the settings in that of the grid."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The resolved recipe with dotted keys, but for what was searched and what trials have from the tuning; empty if no
    file tells it."""
    apart: tuple[str, ...] = ()
    """What tells it from other studies of the same title, in words."""
    again: tuple[str, ...] = ()
    """Methods that several runs tuned: the newest with all trials is shown, else the newest."""

    @property
    def title(self) -> str:
        """ "sequential-digits", "studies/modality on vowels", "digits, timesteps = 4"."""
        task = task_name(self.point.get(TASK, ""))
        settings = [f"{name} = {value}" for name, value in self.point.items() if name != TASK]
        return ", ".join([f"{self.recipe} on {task}" if task else self.recipe, *settings, *self.apart])

    @property
    def budget(self) -> str:
        """ "5 trials each (15 epochs)"."""
        return budget_text(self.trials, self.epochs)

    def chosen(self, method: str) -> TriedSetting | None:
        """What the method was then trained with; None if every setting was lost."""
        return next((tried for tried in self.methods[method] if tried.chosen), None)

    @property
    def as_recipe(self) -> Mapping[str, Any] | None:
        """The recipe's own setting, if it is one of the grid's."""
        settings = (tried.setting for of in self.methods.values() for tried in of if tried.as_recipe)
        return next(settings, None)


def studies(results: Results) -> list[TuningStudy]:
    """Every study of which some method's choice is recorded, by recipe; the points of a study are studies of their own."""
    rows = results.rows(TUNING_FILE)
    if rows.empty:
        return []
    cell = ["run", "cell_id"]
    about = results.cells[[*cell, "device_name", "smoke", "epochs_planned", "overrides"]]
    rows = rows.drop_duplicates(cell, keep="last").merge(about, on=cell, how="left")
    rows["device_name"] = rows["device_name"].fillna("")
    rows["smoke"] = rows["smoke"].fillna(False).astype(bool)
    rows["overrides"] = rows["overrides"].fillna("")
    points, settings = [], []
    facts = rows[[*cell, "backend", "setting", "overrides"]]
    for run, cell_id, backend, setting, overrides in facts.itertuples(index=False):
        searched = json.loads(setting)
        recipe = settings_of(results.runs[int(run)].recipe_of(str(cell_id)), backend)
        points.append(json.dumps(_point(overrides_of(overrides), searched), sort_keys=True))
        settings.append(json.dumps(_point(recipe, searched), sort_keys=True))
    rows = rows.assign(point=points, settings=settings)
    alike = [
        "recipe", "point", "settings", "protocol", "backend", "timesteps", "batch_size", "precision", "device_name", "smoke",
    ]  # fmt: skip
    return _told_apart([_study(same) for _, same in rows.groupby(alike, sort=True)])


def _told_apart(tuned: Sequence[TuningStudy]) -> list[TuningStudy]:
    """The studies; those of one title with what tells them apart."""
    told = []
    for study in tuned:
        alike = [other for other in tuned if (other.title, other.budget) == (study.title, study.budget)]
        words = [word for word in study.conditions if any(word not in other.conditions for other in alike)]
        words += settings_apart(study.settings, [other.settings for other in alike])
        told.append(replace(study, apart=tuple(words)))
    return told


def _point(overrides: Mapping[str, Any], searched: Collection[str] = ()) -> dict[str, Any]:
    """A cell's overrides without what was searched, and without what a trial has from the tuning in any case: its length
    and its validation split."""
    return {
        name: value
        for name, value in overrides.items()
        if name not in {"train.epochs", *searched} and name.partition(".")[0] != "validation"
    }


def _study(rows: pd.DataFrame) -> TuningStudy:
    runs = rows.groupby("method")["run"].nunique()
    rows = pd.concat([_newest_tuning(of_method) for _, of_method in rows.groupby("method")])
    first = rows.iloc[0]
    methods = {
        str(method): tuple(
            _tried(same) for _, same in of_method.sort_values("trial").groupby("setting", sort=False)
        )
        for method, of_method in rows.groupby("method")
    }
    conditions = [str(first["device_name"]), str(first["precision"]), f"backend {first['backend']}"]
    conditions += [f"T = {int(first['timesteps'])}", f"batch {int(first['batch_size'])}"]
    conditions += ["smoke run"] * bool(first["smoke"])
    return TuningStudy(
        recipe=str(first["recipe"]),
        point=json.loads(first["point"]),
        protocol=str(first["protocol"]),
        trials=int(first["trials"]),
        epochs=int(first["epochs_planned"]) if pd.notna(first["epochs_planned"]) else None,
        fields=tuple(json.loads(first["setting"])),
        conditions=tuple(word for word in conditions if word),
        methods={name: methods[name] for name in sorted(methods, key=method_order)},
        settings=json.loads(first["settings"]),
        again=tuple(sorted((str(name) for name in runs[runs > 1].index), key=method_order)),
    )


def _newest_tuning(rows: pd.DataFrame) -> pd.DataFrame:
    """Of one method's trials those of the newest run that has all of them, else of the newest: each run chose by its own."""
    sizes = rows.groupby("run").size()
    whole = sizes[sizes >= int(rows["trials"].iloc[0])]
    newest = int((sizes if whole.empty else whole).index.max())
    is_newest: pd.Series[bool] = rows["run"] == newest
    return rows[is_newest]


def _tried(rows: pd.DataFrame) -> TriedSetting:
    known = rows["validation_top1"].astype(float)
    return TriedSetting(
        setting=json.loads(rows["setting"].iloc[0]),
        top1=tuple(known.dropna()),
        lost=int(known.isna().sum()),
        chosen=bool(rows["chosen"].any()),
        at_edge=tuple(dict.fromkeys(word for text in rows["at_edge"] for word in str(text or "").split())),
        as_recipe=bool((rows["as_recipe"] == True).any()),  # noqa: E712  # empty in files without the column
    )


# Tuned beside untuned ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Gain:
    """One method at the recipe's learning rate and at its own, each in a group of its own."""

    method: str
    untuned: float
    """Mean accuracy over seeds, 0 to 1."""
    untuned_rank: int
    tuned: float
    tuned_rank: int
    difference: PairedEstimate | None
    """tuned − untuned over the seeds that both have; None if there is none."""


def counterpart(tuned: Group, groups: Sequence[Group]) -> Group | None:
    """The group that differs from a tuned one in the tuning alone: the same cells at the recipe's learning rate, of several
    versions of the recipe the newest."""
    versions = [
        group
        for group in groups
        if not group.key.tuned
        and replace(tuned.key, recipe_hash=group.key.recipe_hash, tuning=group.key.tuning) == group.key
        and group.overrides == tuned.overrides
        and _settings_agree(group, tuned)
    ]
    return max(versions, key=lambda group: max(group.runs), default=None)


def _settings_agree(group: Group, tuned: Group) -> bool:
    """Equal in every field of the recipe but those that were tuned."""
    names = [name for name in {*group.settings, *tuned.settings} if tuned.settings.get(name) != TUNED]
    return all(group.settings.get(name) == tuned.settings.get(name) for name in names)


def gains(tuned: Group, untuned: Group) -> list[Gain]:
    """Both accuracies of every method that finished in both groups, with its rank among these."""
    shared = [name for name in tuned.methods if _accuracy(tuned, name) and _accuracy(untuned, name)]
    before, after = ({name: _mean(group, name) for name in shared} for group in (untuned, tuned))
    return [
        Gain(
            method=name,
            untuned=before[name],
            untuned_rank=_rank(name, before),
            tuned=after[name],
            tuned_rank=_rank(name, after),
            difference=paired_difference(
                _accuracy(tuned, name), _accuracy(untuned, name), resolution=tuned.accuracy_resolution
            ),
        )
        for name in shared
    ]


def _accuracy(group: Group, method: str) -> Mapping[int, float]:
    if isinstance(group.refusal("last_test_top1", method), NotComparable):
        return {}
    return group.methods[method].values["last_test_top1"]


def _mean(group: Group, method: str) -> float:
    stat = group.methods[method].stat("last_test_top1")
    assert stat is not None
    return stat.mean


def _rank(method: str, means: Mapping[str, float]) -> int:
    """1 for the best mean; equal means share a rank."""
    return 1 + sum(other > means[method] + 1e-12 for other in means.values())


def trained_after(study: TuningStudy, groups: Sequence[Group]) -> Iterator[Group]:
    """The groups of what was chosen in a study."""
    for group in groups:
        own = (group.key.recipe, group.protocol, _point(group.overrides))
        settings = _point(group.settings, study.fields) if study.settings else {}
        if group.finished and (*own, settings) == (study.recipe, study.protocol, study.point, study.settings):
            yield group
