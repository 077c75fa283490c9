"""What decides whether cells may be compared: the key of their group, and how its parts are said."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

UNKNOWN_HARDWARE = "unknown hardware"
TUNED = "tuned"
"""How the conditions of cells begin that `tune` chose the settings of."""


@dataclass(frozen=True, order=True)
class GroupKey:
    """Everything that must be equal for a ratio, in the words for a difference. Two groups differ in one part at least."""

    recipe: Annotated[str, "recipe"]
    hardware: Annotated[str, "hardware"]
    """GPU with its MIG slice, or CPU with the number of threads."""
    precision: Annotated[str, "precision"]
    backend: Annotated[str, "backend"]
    timesteps: Annotated[int, "T"]
    batch_size: Annotated[int, "batch size"]
    synthetic: Annotated[bool, "synthetic or real data"]
    smoke: Annotated[bool, "smoke or full run"]
    recipe_hash: Annotated[str, "recipe version or overrides"]
    """Of all of the resolved recipe that is not method, backend or seed: data, split and counts included."""
    software: Annotated[str, "torch or CUDA version"]
    """torch, and the major version of its CUDA."""
    library: Annotated[str, "version of the backend's library or of a plug-in"]
    """Version of the library behind a foreign backend, and of plug-ins that all methods use."""
    revision: Annotated[str, "revision of sltt-bench"]
    """Of sltt-bench: its source, by a digest. Where only the commit is known, a tree with local changes equals no other run's."""
    device_memory: Annotated[str, "memory of the GPU"]
    """Bytes of the GPU, or of its slice."""
    driver: Annotated[str, "GPU driver"]
    """Major version of the GPU's driver."""
    cpu: Annotated[str, "CPU"]
    """Model and instruction set."""
    threads: Annotated[str, "CPU threads"]
    flags: Annotated[str, "kernel flags (TF32, cuDNN, determinism)"]
    schema_version: Annotated[int, "schema version"]
    beside: Annotated[bool, "measured alone or beside other cells"]
    """Whether other cells of the same command ran beside these."""
    ranks: Annotated[str, "processes that share a batch"]
    """How many processes shared every batch; several numbers where a cell went on with another."""
    validation: Annotated[str, "validation split"]
    """Name of the split that was held back from training; '' for none."""
    tuning: Annotated[str, "learning rate or tuning"]
    """Whose the settings are: "tuned, 6 trials each (15 epochs)", or at which learning rate all methods were trained."""

    def slug(self) -> str:
        """A file name's part that tells groups apart."""
        marks = [f"T{self.timesteps}", f"b{self.batch_size}", self.precision, self.backend]
        marks += ["synthetic"] * self.synthetic + ["smoke"] * self.smoke
        marks += ["beside"] * self.beside
        marks += [f"{self.ranks}-ranks"] * (self.ranks != "1")
        marks += ["tuned"] * self.tuned
        return re.sub(r"[^A-Za-z0-9.-]+", "-", "-".join([self.recipe, *marks]))

    def conditions(self) -> list[str]:
        """The group in words, most telling first."""
        words = [self.hardware, self.precision, f"backend {self.backend}"]
        words += [f"T = {self.timesteps}", f"batch {self.batch_size}"]
        words += ["synthetic data"] * self.synthetic + ["smoke run"] * self.smoke
        words += ["beside other cells"] * self.beside
        if self.ranks != "1":
            words.append(f"each batch divided over {self.ranks.replace(', ', ' and ')} processes")
        words += [f"validation split {self.validation}"] * bool(self.validation)
        return [*words, self.tuning]

    @property
    def tuned(self) -> bool:
        """Whether each method has settings of its own, chosen on validation data."""
        return self.tuning.startswith(TUNED)


DIFFERENCE_WORDS: dict[str, str] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(GroupKey, include_extras=True).items()
}
"""Part of the key → what two groups differ in where they differ in it."""

_NAMED = {
    "revision": "sltt-bench {}",
    "recipe_hash": "recipe {}",
    "software": "{}",
    "library": "library {}",
    "cpu": "{}",
    "threads": "{} threads",
    "driver": "driver {}",
    "device_memory": "{} bytes of GPU memory",
    "flags": "{}",
    "schema_version": "schema {}",
}
"""What `GroupKey.conditions` does not say, and how to say it; what tells most first."""


def told_apart(
    key: GroupKey, alike: Sequence[GroupKey], settings: Sequence[Mapping[str, Any]] = ()
) -> tuple[str, ...]:
    """As few words more as tell some groups that have the same conditions apart, of which `key` is one: its own.

    `settings`: each one's resolved recipe (dotted keys); versions of a recipe are then told by what is set otherwise.
    """

    def facts() -> Iterator[list[str]]:
        for name, template in _NAMED.items():
            if name == "recipe_hash" and all(settings):
                yield from _settings_in_words(settings)
            values = (str(getattr(each, name) or "unknown") for each in alike)
            yield [template.format(value.replace(", ", " ")) for value in values]

    return fewest_words(facts())[alike.index(key)]


def fewest_words(facts: Iterable[Sequence[str]]) -> list[tuple[str, ...]]:
    """For each thing the words that tell it from the others. `facts`: a word for each thing, what tells most first;
    what tells no more of them apart is left out."""
    words: list[tuple[str, ...]] = []
    for of_things in facts:
        words = words or [()] * len(of_things)
        more = [(*known, word) for known, word in zip(words, of_things, strict=True)]
        if len(set(more)) > len(set(words)):
            words = more
    return words


def settings_apart(own: Mapping[str, Any], alike: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """As few words as tell one resolved recipe (dotted keys) from some others; it is among them."""
    words = fewest_words(_settings_in_words(alike))
    return words[alike.index(own)] if words else ()


def _settings_in_words(alike: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """Field by field what each of some recipes has. What only some versions of a recipe have tells least."""
    keys = {key for settings in alike for key in settings}
    for key in sorted(keys, key=lambda key: (any(key not in settings for settings in alike), key)):
        yield [f"{key} = {settings[key]}" if key in settings else f"without {key}" for settings in alike]
