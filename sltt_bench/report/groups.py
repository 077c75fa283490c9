"""Cells that may be compared as groups of methods, and ratios that never leave one.

Within a group everything that decides comparability is equal, but method and seed. A ratio exists only
between methods of one group, over pairs of sound cells, for one figure measured the same way; anything
else is a `NotComparable` with its reason.
"""

import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pandas as pd

from sltt_bench.common.format import counted
from sltt_bench.planning.studies import OWN_TASK, TASK, setting_words
from sltt_bench.report.chance import accuracy_floor
from sltt_bench.report.integrity import Beginnings, Breach
from sltt_bench.report.keys import DIFFERENCE_WORDS, GroupKey, told_apart
from sltt_bench.report.metrics import HEADLINE_ON_CPU, HEADLINE_ON_GPU, METRICS, Phase, stat_of
from sltt_bench.report.statistics import (
    PairedEstimate,
    Stat,
    mean_with_interval,
    paired_difference,
    paired_ratio,
    pareto_front,
)
from sltt_bench.results.doubts import CHANCE


@dataclass(frozen=True)
class NotComparable:
    """Why there is no ratio."""

    reason: str


def in_words(group: "Group", siblings: Sequence["Group"]) -> str:
    """What tells the group from some others (itself may be among them), or ''."""
    return ", ".join(words_apart(group, siblings))


def words_apart(group: "Group", siblings: Sequence["Group"]) -> list[str]:
    """The words of `in_words`, one by one."""
    conditions, own = set(group.key.conditions()), words_beside(group, siblings)
    others = [words_beside(sibling, [group, *siblings]) for sibling in siblings]
    words = [word for word in own if word not in conditions or any(word not in other for other in others)]
    if any(sibling.key.synthetic for sibling in siblings) and not group.key.synthetic:
        words.append("real data")
    alike = [sibling for sibling, other in zip(siblings, others, strict=True) if other == own]
    if any(sibling.key == group.key for sibling in alike):
        words += group.told_apart(alike)
    return words


def words_beside(group: "Group", siblings: Iterable["Group"]) -> list[str]:
    """The group's words, with the recipe's own value of what was set otherwise in a sibling of the same recipe."""
    return replace(group, overrides=settings_beside(group, siblings)).words


def settings_beside(group: "Group", siblings: Iterable["Group"]) -> dict[str, Any]:
    """Recipe field → the group's value, of all that is set otherwise than the recipe has it in the group or in a sibling."""
    related = (group, *(other for other in siblings if other.key.recipe == group.key.recipe))
    known = {TASK: OWN_TASK, **group.settings, **group.overrides}
    fields = {field for other in related for field in other.overrides if field in known}
    return {field: known[field] for field in sorted(fields, key=lambda field: (field != TASK, field))}


@dataclass(frozen=True)
class FailedCells:
    """Cells of one method that did not finish, or are not sound, for the same reason."""

    status: str
    reason: str
    seeds: tuple[int, ...]
    cells: int


@dataclass(frozen=True)
class MethodResult:
    """What the cells of one method in a group measured."""

    method: str
    by_run: Mapping[str, Mapping[tuple[int, int], float]]
    """Metric → (run, seed) → value, finished and sound cells only."""
    phase: Phase
    """Which epochs the figures of a phase come from."""
    finished: int
    """Cells that finished and are sound."""
    failures: tuple[FailedCells, ...] = ()
    epochs: pd.DataFrame = field(default_factory=pd.DataFrame, compare=False, repr=False)
    """Epoch rows of the finished cells."""
    cells: tuple[tuple[int, str], ...] = ()
    """(run, cell_id) of the finished cells."""
    doubts: tuple[str, ...] = ()
    """Why finished cells' figures may mean nothing, with their seeds."""
    guesses: bool = False
    """Whether each finished cell says of itself that it is at chance: it knows the share of the largest class too."""
    plugins: tuple[str, ...] = ()
    """The versions of the plug-in that the method comes from, in words; empty for one of this package."""
    began: Beginnings = field(default_factory=dict)
    """What its finished cells began with."""

    @cached_property
    def values(self) -> Mapping[str, Mapping[int, float]]:
        """Metric → seed → value; repetitions of a seed are averaged."""
        return {metric: _over_runs(metric, of_cells) for metric, of_cells in self.by_run.items()}

    @property
    def seeds(self) -> list[int]:
        """Seeds with a finished cell."""
        return sorted(self.values.get("wall_s", {}))

    @property
    def lost_seeds(self) -> list[int]:
        """Seeds of which no cell finished."""
        return sorted({seed for failure in self.failures for seed in failure.seeds} - set(self.seeds))

    def stat(self, metric: str) -> Stat | None:
        """Mean over seeds (geometric for what is compared as a ratio); None if no cell measured it."""
        values = self.values.get(metric)
        return stat_of(metric, list(values.values())) if values else None

    @property
    def failure_text(self) -> str:
        """The failures in one line, or ''."""
        return "; ".join(f"{f.status} ({seeds_text(f.seeds)}): {f.reason}" for f in self.failures)

    @property
    def survivors_text(self) -> str:
        """ "1 of 3 seeds finished (2 oom)" where seeds were lost, else ''."""
        lost = self.lost_seeds
        if not lost:
            return ""
        by_status: dict[str, set[int]] = {}
        for failure in self.failures:
            by_status.setdefault(failure.status, set()).update(set(failure.seeds) & set(lost))
        counts = ", ".join(f"{len(seeds)} {status}" for status, seeds in by_status.items() if seeds)
        return f"{self.method}: {len(self.seeds)} of {counted(len(self.seeds) + len(lost), 'seed')} finished ({counts})"

    @property
    def out_of_memory(self) -> bool:
        """Whether some cell ran out of memory."""
        return any(failure.status == "oom" for failure in self.failures)


def _over_runs(metric: str, of_cells: Mapping[tuple[int, int], float]) -> dict[int, float]:
    by_seed: dict[int, list[float]] = {}
    for (_, seed), value in of_cells.items():
        by_seed.setdefault(seed, []).append(value)
    return {seed: stat_of(metric, values).mean for seed, values in sorted(by_seed.items())}


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
    breaches: tuple[Breach, ...] = ()
    """What the integrity pass objects to."""
    protocol: str = ""
    """Hash of the protocol by which its methods were tuned, as tuning.csv has it; '' if they were not."""
    claims: tuple[Mapping[str, Any], ...] = ()
    """Every claim that the recipe makes in some run of the group."""
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    """Method that this group lacks → in what the nearest group of the recipe that has it differs."""

    @property
    def finished(self) -> list[MethodResult]:
        """Methods with at least one finished cell."""
        return [result for result in self.methods.values() if result.finished]

    @property
    def words(self) -> list[str]:
        """The conditions, and what else was set otherwise than the recipe has it."""
        stated = (
            "timesteps", "train.batch_size", "train.precision", "train.lr",
            "train.checkpoint_every", "train.keep_checkpoint",  # change nothing that is compared
        )  # fmt: skip
        others = {key: value for key, value in self.overrides.items() if key not in stated}
        return [*self.key.conditions(), *(setting_words(key, value) for key, value in others.items())]

    def told_apart(self, alike: Sequence["Group"]) -> tuple[str, ...]:
        """As few words more as tell the group from others with the same conditions (itself is among them)."""
        return told_apart(self.key, [other.key for other in alike], [other.settings for other in alike])

    # Comparing ----------------------------------------------------------------------------------

    def ratio(self, metric: str, method: str, baseline: str) -> PairedEstimate | NotComparable:
        """value(method) ÷ value(baseline) over pairs."""
        asked = (metric, method, baseline)
        if asked not in self._ratios:
            self._ratios[asked] = self._ratio(*asked)
        return self._ratios[asked]

    @cached_property
    def _ratios(self) -> dict[tuple[str, str, str], PairedEstimate | NotComparable]:
        """What was asked for before: tables, plots and sentences ask for the same ratios."""
        return {}

    def _ratio(self, metric: str, method: str, baseline: str) -> PairedEstimate | NotComparable:
        pairs = self.pairs(metric, method, baseline)
        if isinstance(pairs, NotComparable):
            return pairs
        for name, side in zip((method, baseline), pairs, strict=True):
            if min(side.values()) <= 0:
                return NotComparable(f"{METRICS[metric].label} of {name} is 0")
        estimate = paired_ratio(*pairs, exact=METRICS[metric].exact)
        assert estimate is not None
        return estimate

    def difference(self, metric: str, method: str, baseline: str) -> PairedEstimate | NotComparable:
        """value(method) − value(baseline) over pairs."""
        pairs = self.pairs(metric, method, baseline)
        if isinstance(pairs, NotComparable):
            return pairs
        estimate = paired_difference(*pairs, resolution=self.accuracy_resolution)
        assert estimate is not None
        return estimate

    def mean(self, metric: str, method: str) -> PairedEstimate | NotComparable:
        """value(method) over its seeds."""
        if (refusal := self.refusal(metric, method)) is not None:
            return refusal
        known, values = METRICS[metric], self.methods[method].values[metric].values()
        if known.unit == "accuracy":
            return mean_with_interval(values, resolution=self.accuracy_resolution, bounds=(0.0, 1.0))
        return mean_with_interval(values, geometric=known.as_ratio, exact=known.exact)

    def pairs(
        self, metric: str, method: str, baseline: str
    ) -> tuple[Mapping[Hashable, float], Mapping[Hashable, float]] | NotComparable:
        """Both sides of each pair: a seed, and for what depends on the moment a run and a seed.

        Where the two were never timed in one run, their seeds are paired over runs; `breaches_of` says so.
        """
        for name in (method, baseline):
            if (refusal := self.refusal(metric, name)) is not None:
                return refusal
        for breach in (breach for breach in self.breaches if breach.parts):
            if {method, baseline} <= {*breach.methods} and breach.concerns(metric, (method,)):
                return NotComparable(breach.text)
        one, other = self.methods[method], self.methods[baseline]
        if METRICS[metric].of_phase and one.phase != other.phase:
            return NotComparable(
                f"the figure of {method} is from {one.phase} epochs, that of {baseline} from {other.phase} ones"
            )
        sides: tuple[Mapping[Any, float], ...] = (one.values[metric], other.values[metric])
        if METRICS[metric].of_the_moment and {*one.by_run[metric]} & {*other.by_run[metric]}:
            sides = (one.by_run[metric], other.by_run[metric])
        common = {*sides[0]} & {*sides[1]}
        if not common:
            return NotComparable(f"{method} and {baseline} share no seed")
        first, second = ({pair: side[pair] for pair in sorted(common)} for side in sides)
        return first, second

    def refusal(self, metric: str, method: str) -> NotComparable | None:
        """Why this figure of the method cannot be compared, or None."""
        result = self.methods.get(method)
        if result is None:
            difference = self.elsewhere.get(method)
            ran = f"{method} ran, but not under these conditions: it differs in {difference}"
            return NotComparable(ran if difference else f"no run of {method}")
        if not result.finished:
            failure = result.failures[0]
            return NotComparable(f"{method} did not finish: {failure.status}, {failure.reason}")
        if not result.values.get(metric):
            return NotComparable(f"{method}: {METRICS[metric].label} not measured")
        if (breach := self.blocking(metric, method)) is not None:
            return NotComparable(breach.text)
        return None

    def blocking(self, metric: str, method: str) -> Breach | None:
        """The breach for which this figure of the method cannot be trusted at all, or None."""
        blocking = (breach for breach in self.breaches if breach.blocks)
        return next((breach for breach in blocking if breach.concerns(metric, (method,))), None)

    def stat(self, metric: str, method: str) -> Stat | None:
        """The method's mean over seeds; None where it was not measured, or cannot be trusted at all."""
        result = self.methods.get(method)
        return None if result is None or self.blocking(metric, method) else result.stat(metric)

    def undecided(self, metric: str, methods: Sequence[str]) -> bool:
        """Whether a breach leaves every verdict on this figure of these methods open."""
        return any(breach.undecides and breach.concerns(metric, methods) for breach in self.breaches)

    def breaches_of(self, metric: str, methods: Sequence[str]) -> tuple[str, ...]:
        """What stands beside a verdict on this figure of these methods: breaches, lost and unpaired seeds."""
        results = [self.methods[name] for name in methods if name in self.methods]
        texts = [result.survivors_text for result in results]
        for result in results:
            lacking = len(result.seeds) - len(result.values.get(metric, {}))
            if 0 < lacking < len(result.seeds):
                label, seeds = METRICS[metric].label, counted(len(result.seeds), "seed")
                texts.append(f"{result.method}: {label} is missing in {lacking} of {seeds}")
        if len(results) == 2 and set(results[0].seeds) != set(results[1].seeds):
            shared = set(results[0].seeds) & set(results[1].seeds)
            everything = set(results[0].seeds) | set(results[1].seeds)
            texts.append(f"only {len(shared)} of {counted(len(everything), 'seed')} finished on both sides")
        if len(results) == 2 and METRICS[metric].of_the_moment:
            texts += self._beside_pairs(metric, *results)
        texts += [breach.text for breach in self.breaches if breach.concerns(metric, methods)]
        return tuple(dict.fromkeys(text for text in texts if text))

    def _beside_pairs(self, metric: str, one: MethodResult, other: MethodResult) -> Iterator[str]:
        """What a ratio of figures of the moment rests on, where that is not a pair of cells of one run for each seed."""
        sides = [result.by_run.get(metric, {}).keys() for result in (one, other)]
        pairs = sides[0] & sides[1]
        if all(sides) and not pairs:
            yield (
                f"{one.method} and {other.method} were timed in different runs: the ratio holds only if the machine "
                "was equally fast and equally free in both"
            )
        seeds = len({seed for _, seed in pairs})
        if len(pairs) > seeds:
            yield (
                f"the {len(pairs)} pairs come from only {counted(seeds, 'seed')}: repetitions of a seed count as pairs, but say "
                "nothing about other seeds"
            )

    # Memory and accuracy ------------------------------------------------------------------------

    def headline_memory(self, methods: Sequence[str] | None = None) -> str | None:
        """The memory figure to compare by: the first of the order that all these methods' cells have."""
        return headline_of([self], methods)

    def memory_figures(self, methods: Sequence[str] | None = None) -> list[str]:
        """What may stand for peak memory and all these methods' cells have, in the order of preference."""
        results = self._finished_of(methods)
        return [
            name
            for name in self._headline_order
            if results and all(len(r.values.get(name, {})) == len(r.seeds) for r in results)
        ]

    def headline_remark(self, methods: Sequence[str] | None = None) -> str:
        """What to say if the headline is not the figure that some of these cells have first, else ''."""
        chosen, results = self.headline_memory(methods), self._finished_of(methods)
        for name in self._headline_order:
            if name == chosen:
                return ""
            having = [r.method for r in results if r.values.get(name)]
            if having:
                lacking = [r.method for r in results if len(r.values.get(name, {})) < len(r.seeds)]
                instead = f"; {METRICS[chosen].label} is compared instead" if chosen else ""
                return f"{METRICS[name].label} is missing in {', '.join(lacking)}{instead}"
        return ""

    @property
    def _headline_order(self) -> tuple[str, ...]:
        return HEADLINE_ON_GPU if self.on_gpu else HEADLINE_ON_CPU

    def _finished_of(self, methods: Sequence[str] | None) -> list[MethodResult]:
        results = [self.methods[name] for name in methods or self.methods if name in self.methods]
        return [result for result in results if result.finished]

    @property
    def accuracy_resolution(self) -> float:
        """The share of one of the test samples that the recipe states; 0 if it states none."""
        data = self.recipe.get("data") or {}
        count, limit = data.get("test_samples"), data.get("limit")
        return 1 / min(int(count), int(limit or count)) if count else 0.0

    @cached_property
    def accuracy_floor(self) -> float | None:
        """Up to here an accuracy is none: a stated multiple of guessing; None if the classes are unknown."""
        return accuracy_floor(self.recipe.get("data") or {})

    def at_chance(self, method: str) -> bool:
        """Whether the method learned nothing: its mean accuracy is no better than the floor, or each of its cells says so."""
        return self.methods[method].guesses or self.below_floor(method)

    def below_floor(self, method: str) -> bool:
        """Whether the method's mean accuracy is no better than the floor."""
        accuracy = self.methods[method].stat("last_test_top1")
        floor = self.accuracy_floor
        return accuracy is not None and floor is not None and accuracy.mean <= floor

    def doubts_beside_chance(self, method: str) -> list[str]:
        """The method's doubts, without that of its cells' chance level where the floor says so of their mean."""
        doubts = self.methods[method].doubts
        return [doubt for doubt in doubts if not (doubt.startswith(CHANCE) and self.below_floor(method))]

    @cached_property
    def pareto_front(self) -> set[str]:
        """Methods that no other beats in accuracy, memory and time at once; empty below two methods, and where one of
        these figures cannot be compared.

        Accuracies within one test sample are equal; a method at chance is on no front and dominates none.
        Without accuracy (random data) the front is that of memory and time. Means over seeds decide.
        """
        memory = self.headline_memory()
        results = [result for result in self.finished if not self.at_chance(result.method)]
        if memory is None or len(results) < 2 or len({result.phase for result in results}) > 1:
            return set()
        signs, ties = {memory: 1, "epoch_s": 1}, [0.0, 0.0]
        if any(result.stat("last_test_top1") for result in results):
            signs["last_test_top1"] = -1
            ties.append(self.accuracy_resolution * (1 + 1e-9))
        names = [result.method for result in results]
        if any(
            (b.blocks or b.parts) and b.concerns(figure, names) for b in self.breaches for figure in signs
        ):
            return set()
        points = {}
        for result in results:
            stats = [(result.stat(name), sign) for name, sign in signs.items()]
            if any(known is None for known, _ in stats):
                return set()
            points[result.method] = [sign * known.mean for known, sign in stats if known is not None]
        return pareto_front(points, ties)

    @property
    def phase(self) -> Phase:
        """warm if every finished method has warm epochs."""
        return "warm" if all(result.phase == "warm" for result in self.finished) else "cold"

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The resolved recipe with dotted keys, but for what does not change a run."""
        return settings_of(self.recipe, self.key.backend)


def differing_fields(groups: Sequence[Group]) -> list[str]:
    """In words: in what some groups of one recipe differ; what they have set otherwise is named field by field."""
    words = {
        name: [word]
        for name, word in DIFFERENCE_WORDS.items()
        if len({getattr(group.key, name) for group in groups}) > 1
    }
    if "smoke" in words:  # a smoke run is another experiment throughout
        words.pop("recipe_hash", None)
    if "recipe_hash" in words:
        named = [name for name in _FIELD_OF_PART if name in words]
        told = tuple(_FIELD_OF_PART[name] for name in named)
        fields = [field for field in _varied_of_tasks(groups) if not field.startswith(told)]
        parts = {
            (tuple(getattr(group.key, name) for name in named), group.key.recipe_hash) for group in groups
        }
        if fields or len(parts) == len({known for known, _ in parts}):
            words["recipe_hash"] = fields  # none where the hash follows from the other parts
    if "hardware" in words:
        for name in ("device_memory", "driver", "cpu", "threads"):
            words.pop(name, None)
    return [word for of_part in words.values() for word in of_part]


_FIELD_OF_PART = {
    "timesteps": "timesteps",
    "batch_size": "train.batch_size",
    "precision": "train.precision",
    "backend": "native.",
    "validation": "validation",
    "tuning": "train.lr",
}
"""Part of the key → the recipe's field, or section, that it tells."""


def _varied_of_tasks(groups: Sequence[Group]) -> list[str]:
    """`varied_fields` without those that another task of a study brings with it, in place of which stands its name."""
    of_tasks: dict[Any, list[Group]] = {}
    for group in groups:
        of_tasks.setdefault(group.overrides.get(TASK), []).append(group)
    fields = set[str]().union(*map(varied_fields, of_tasks.values()))
    return ["task"] * (len(of_tasks) > 1) + sorted(fields)


def varied_fields(groups: Sequence[Group]) -> set[str]:
    """The recipe fields, dotted, that are not the same in all groups."""
    known = [group for group in groups if group.settings]
    keys = {key for group in known for key in group.settings}
    return {key for key in keys if len({repr(group.settings.get(key)) for group in known}) > 1}


def headline_of(groups: Sequence[Group], methods: Sequence[str] | None = None) -> str | None:
    """The memory figure to compare groups by: the first that all these methods' cells have in each of them."""
    first, *others = (group.memory_figures(methods) for group in groups)
    return next((name for name in first if all(name in other for other in others)), None)


NO_SETTINGS = frozenset(
    {"name", "description", "methods", "seeds", "smoke", "claims", "tuning", "target", "study", "cpu_minutes"}
)
"""Parts of a recipe that do not change a run."""
ADDED_LATER = {
    "neuron.kind": "lif", "neuron.surrogate_width": 1.0, "neuron.tau_synapse": None, "neuron.tau_adaptation": None,
    "neuron.adaptation": None, "test_timesteps": None, "loss.average": "losses", "train.devices": 1,
    "train.synchronise_batch_norm": False, "native.graphs": "auto", "native.fused_norm": "auto", "validation": None,
}  # fmt: skip
"""Fields that recipes gained since the first results → what was done before."""


def settings_of(recipe: Mapping[str, Any], backend: str) -> dict[str, Any]:
    """A resolved recipe with dotted keys, whatever version wrote it, but for what does not change a run on a backend."""
    settings = flat({key: value for key, value in recipe.items() if key not in NO_SETTINGS})
    if not settings:
        return {}
    of_model = {
        "model.normalisation": "none" if settings.get("model.name") == "mlp" else "batch",
        "model.readout_tau": None,
    }
    return {
        key: value
        for key, value in {**ADDED_LATER, **of_model, **settings}.items()
        if backend == "native" or not key.startswith("native.")
    }


def budget_text(trials: int, epochs: int | None) -> str:
    """ "6 trials each (15 epochs)"; without the trials' length where no file tells it."""
    length = "" if epochs is None else f" ({counted(epochs, 'epoch')})"
    return f"{counted(trials, 'trial')} each{length}"


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves


def method_order(name: str) -> tuple[int, str, float, str]:
    """Sorting key: bptt, sltt, sltt-kN from large N to small, then the others by name and number."""
    rule, number = rule_and_number(name)
    value = -1.0 if number is None else number
    unbiased = "-unbiased" if name.endswith("-unbiased") else ""
    if rule == "sltt-k":
        return (3 if unbiased else 2), rule, -value, unbiased
    return {"bptt": 0, "sltt": 1}.get(name, 4), rule, value, unbiased


def natural_order(name: str) -> list[str | float]:
    """Sorting key of names and settings with numbers in them: resnet34, resnet101; τ = 1.25, τ = 1.5; layer1.2, layer1.10."""
    return [float(part) if number % 2 else part for number, part in enumerate(_NUMBER.split(name))]


_NUMBER = re.compile(r"((?<![\w.])\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w.])|\d+)")
"""A number that stands alone may have a fraction and an exponent."""


def seeds_text(seeds: Sequence[int]) -> str:
    """ "seed 0" or "seeds 0, 1, 2"."""
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}"


def rule_and_number(method: str) -> tuple[str, float | None]:
    """ "tbptt-w4" → ("tbptt-w", 4): what of a method's name is its rule, and the number that its user chose."""
    parts = re.fullmatch(r"(.*?)(\d*\.?\d+)?(-unbiased)?", method)
    assert parts
    return parts[1], None if parts[2] is None else float(parts[2])
