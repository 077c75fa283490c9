"""Text as a terminal, whatever it can show, prints it: no control characters, and words for missing letters."""

import codecs
import io
import re
import sys
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What moves a cursor, changes colours or reorders what is read, and what stands for a byte of a name that is no UTF-8;
line ends and tabs are none of it."""
_ASCII = {
    "→": "->", "↔": "<->", "…": "...", "–": "-", "—": "-", "−": "-", "·": "-", "•": "*", "×": "x", "÷": "/", "±": "+-",
    "≤": "<=", "≥": ">=", "≈": "~", "≠": "!=", "✓": "ok", "✗": "FAULT", "‖": "||", "√": "sqrt", "∞": "inf", "∝": "~",
    "‘": "'", "’": "'", "“": '"', "”": '"', "«": '"', "»": '"', "λ": "lambda", "τ": "tau", "α": "alpha", "β": "beta",
    "δ": "delta", "σ": "sigma", "Σ": "sum", "µ": "u", "μ": "u", "°": " deg", "ß": "ss",
}  # fmt: skip
_FALLBACK = "sltt-bench-ascii"


def printable(text: str) -> str:
    r"""The text with every control character spelled out, as in `\x1b`."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def make_console(**options: Any) -> "Console":
    """The console of all verbs: names are printed as they are, whatever characters they hold."""
    from rich.console import Console
    from rich.text import Text

    class PrintableConsole(Console):
        def render_str(self, text: str, **how: Any) -> Text:
            return super().render_str(printable(text), **how)

    return PrintableConsole(emoji=False, **options)


def print_what_the_terminal_lacks_in_ascii() -> None:
    """Let no letter that an encoding lacks (LC_ALL=C, an old code page) end a command."""
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
