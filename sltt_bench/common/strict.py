"""The base class of all parts of a recipe: frozen, without unknown keys or impossible numbers."""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
"""A number of things: samples, channels, neurons."""
Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0, le=1e6)]
"""A rate, weight or amplitude; nothing trains with one above a million, and rarely with less."""

ADDED_LATER = object()
"""In a field's `Annotated`, marks a field that recipes gained later; its default is the earlier behaviour.

At its default, the field does not count as part of the experiment, so that earlier results keep their
identity.
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
        """Returns the fields as plain JSON, without fields that were added later and have their default."""
        plain = self.model_dump(mode="json")
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if ADDED_LATER in field.metadata and value == field.default:
                del plain[name]
            elif isinstance(value, Strict):
                plain[name] = value.significant()
        return plain


def held_by_another(keys: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yields (key, dotted key within it) for all pairs of the given dotted keys."""
    together = set(keys)
    for key in sorted(together):
        parts = key.split(".")
        holders = (".".join(parts[:length]) for length in range(1, len(parts)))
        yield from ((holder, key) for holder in holders if holder in together)
