"""Makes text safe to print on any terminal: without control characters, with words for missing letters."""

import codecs
import io
import re
import sys
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that move a cursor, change colours or reorder text, and those that represent bytes that are not
UTF-8; not line ends and tabs."""
_ASCII = {
    "→": "->", "↔": "<->", "…": "...", "–": "-", "—": "-", "−": "-", "·": "-", "•": "*", "×": "x", "÷": "/", "±": "+-",
    "≤": "<=", "≥": ">=", "≈": "~", "≠": "!=", "✓": "ok", "✗": "FAULT", "‖": "||", "√": "sqrt", "∞": "inf", "∝": "~",
    "‘": "'", "’": "'", "“": '"', "”": '"', "«": '"', "»": '"', "λ": "lambda", "τ": "tau", "α": "alpha", "β": "beta",
    "δ": "delta", "σ": "sigma", "Σ": "sum", "µ": "u", "μ": "u", "°": " deg", "ß": "ss",
}  # fmt: skip
_FALLBACK = "sltt-bench-ascii"


def printable(text: str) -> str:
    r"""Returns the text with every control character escaped, as in `\x1b`."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def make_console(**options: Any) -> "Console":
    """Returns the console of all verbs, which prints names as they are, whatever characters they contain."""
    from rich.console import Console
    from rich.text import Text

    class PrintableConsole(Console):
        def render_str(self, text: str, **how: Any) -> Text:
            return super().render_str(printable(text), **how)

    return PrintableConsole(emoji=False, **options)


def print_what_the_terminal_lacks_in_ascii() -> None:
    """Replace letters that the output's encoding lacks (LC_ALL=C, an old code page) instead of failing."""
    codecs.register_error(_FALLBACK, _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_FALLBACK)


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(_ASCII.get(letter) or _without_marks(letter) for letter in letters), error.end


def _without_marks(letter: str) -> str:
    plain = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return plain or "?"
