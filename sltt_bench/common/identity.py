"""Hashes JSON values: equal values have equal hashes on every machine."""

import hashlib
import json
from typing import Any


def short_hash(value: Any) -> str:
    """Returns 12 hexadecimal digits of the SHA-256 of a JSON value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
