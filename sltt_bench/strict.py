"""The base of everything that a recipe may say: frozen, no key passes that it does not know, no number that
no experiment can have."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
"""How many there are of something: samples, channels, neurons."""
Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0, le=1e6)]
"""A rate, a weight or an amplitude: beyond a million, and most below that, nothing trains."""


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
