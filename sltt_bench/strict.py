"""The base of everything that a recipe may say: frozen, no key passes that it does not know, no number that
no experiment can have."""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
"""How many there are of something: samples, channels, neurons."""
Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0, le=1e6)]
"""A rate, a weight or an amplitude: beyond a million, and most below that, nothing trains."""

ADDED_LATER = object()
"""Marks, in a field's `Annotated`, one that recipes gained later and whose default is what was done before.

At its default it does not count as part of the experiment, so that results keep their identity.
"""


class Strict(BaseModel):
    """A pydantic model that refuses unknown keys, wrong types and infinities, and is frozen once constructed."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )

    def significant(self) -> dict[str, Any]:
        """The fields as plain JSON, without those that were added later and are at their default."""
        plain = self.model_dump(mode="json")
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if ADDED_LATER in field.metadata and value == field.default:
                del plain[name]
            elif isinstance(value, Strict):
                plain[name] = value.significant()
        return plain


def held_by_another(keys: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The dotted keys that lie within others of them, each behind the one that holds it."""
    together = set(keys)
    for key in sorted(together):
        parts = key.split(".")
        holders = (".".join(parts[:length]) for length in range(1, len(parts)))
        yield from ((holder, key) for holder in holders if holder in together)
