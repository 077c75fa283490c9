"""Drawings of an earlier report in the same folder, taken over where the same would be drawn again."""

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

import sltt_bench
from sltt_bench.common.source_digest import source_sha256
from sltt_bench.report.document import Figure, Width

RECORD = "drawn.json"
"""Beside the figures: file → [digest of what is drawn, digest of the file]."""


@dataclass(frozen=True)
class EarlierDrawings:
    """What lies in a report's folder of figures."""

    folder: Path
    record: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "EarlierDrawings":
        """None are known where the record is missing or damaged."""
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            record = {}
        return cls(folder, record if isinstance(record, dict) else {})

    def content(self, file: str, digest: str) -> bytes | None:
        """The file, if it was drawn of just this and nobody has changed it since."""
        try:
            content = (self.folder / file).read_bytes()
        except OSError:
            return None
        return content if self.record.get(file) == [digest, digest_of(content)] else None

    def add(self, drawings: Mapping[str, tuple[str, bytes]]) -> None:
        """Record what lies there now: file → (digest of what is drawn, content). Raises OSError."""
        lines = {file: line for file, line in self.record.items() if (self.folder / file).exists()}
        lines |= {file: [digest, digest_of(content)] for file, (digest, content) in drawings.items()}
        text = json.dumps(lines, indent=0, sort_keys=True) + "\n"
        (self.folder / RECORD).write_text(text, encoding="utf-8")


def digest_of(content: bytes) -> str:
    """As the record names it."""
    return sha256(content).hexdigest()[:32]


def digest_of_drawing(figure: Figure, width: Width) -> str:
    """Equal for what looks alike: the figure's content, what draws it, and the versions of all that has a part in it."""
    painter = f"{figure.paint.__module__}.{figure.paint.__qualname__}"
    parts = [_painters(), painter, width, _plain(figure.content())]
    return digest_of(json.dumps(parts).encode())


@cache
def _painters() -> list[str]:
    """The versions of this package, of what it draws with (a clone changes without a new version) and of matplotlib."""
    package = Path(sltt_bench.__file__).parent
    sources = [source_sha256(package / folder) for folder in ("common", "report")]
    return [sltt_bench.__version__, matplotlib.__version__, *sources]


def _plain(value: Any) -> Any:
    """The value as JSON has it, equal only for equal values."""
    if value is None or isinstance(value, str | int | float):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return [type(value).__name__, *(_plain(getattr(value, field.name)) for field in fields(value))]
    if isinstance(value, Mapping):
        return {"items": [[_plain(key), _plain(own)] for key, own in value.items()]}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, Sequence):
        return [_plain(own) for own in value]
    return {"pickled": digest_of(pickle.dumps(value))}
