"""How points of an analysis and its cosines are said."""

from collections.abc import Sequence
from typing import Any

COSINE = "cosine(g, g_s)"
WORDS = {
    "timesteps": "T",
    "tau": "τ",
    "surrogate": "surrogate",
    "reset": "reset",
    "detach_reset": "detached reset",
    "epoch": "epochs",
    "compared_method": "rule",
    "counted_method": "method",
    "name": "layer",
}
"""Column → its words in headings and titles."""


def point_words(row: Any, fields: Sequence[str]) -> str:
    """ "T = 4, τ = 1.1": what a row has in these fields of the grid."""
    return ", ".join(_setting_words(field, row[field]) for field in fields)


def _setting_words(field: str, value: Any) -> str:
    if field in ("timesteps", "tau"):
        return f"{WORDS[field]} = {value:g}"
    if field == "detach_reset":
        return "detached reset" if value else "reset not detached"
    return f"{value} reset" if field == "reset" else f"surrogate {value}"


def cosine_text(value: float) -> str:
    """Enough decimals to tell a cosine from 1."""
    return f"{value:.4f}" if value < 0.99995 else f"{value:.6f}".rstrip("0").rstrip(".")
