"""Reads YAML 1.2 in bounded time, reporting every fault with its line, and writes YAML that reads back.

`ruamel.yaml` parses; this module makes the values, by the core schema of YAML 1.2 (§ 10.3.2) alone: `on`,
`1_000` and `2024-01-01` are text, `5e-4` is a number, keys are text and unique, and other tags are refused.
"""

import copy
import io
import re
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.representer import SafeRepresenter

MAX_BYTES = 64 * 1024
"""A longer text is refused unread; the longest shipped recipe has a twentieth of that."""
MAX_DEPTH = 16
MAX_VALUES = 5_000
"""Values that a text may hold; those behind an alias count at each of its uses."""

_NULL = re.compile(r"null|Null|NULL|~|")
_BOOL = re.compile(r"(true|True|TRUE)|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"([-+]?)\.(?:(inf|Inf|INF)|nan|NaN|NAN)")
_HALF_A_LETTER = re.compile("[\ud800-\udfff]")
_PLAIN_TAGS = {"null", "bool", "int", "float", "timestamp", "value", "merge"}
"""Tags that the parser may give an unquoted word; the core schema then decides anew."""


class YAMLFault(ValueError):
    """A text is not YAML, or holds what no recipe may; `faults` has one line for each fault."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


def read_yaml(path: Path) -> Any:
    """Returns the value of a file. Raises OSError and YAMLFault."""
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise YAMLFault([f"has more than {MAX_BYTES // 1024} KiB: too long for what it is, and not read"])
    try:
        return parse_yaml(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise YAMLFault([f"line {line} is not UTF-8 text; save the file as UTF-8"]) from None


def parse_yaml(text: str) -> Any:
    """Returns a text's value: None, bool, int, float, str, lists and mappings of them. Raises YAMLFault."""
    if len(text) > MAX_BYTES:
        raise YAMLFault([f"has more than {MAX_BYTES // 1024} KiB: too long for what it is, and not read"])
    return copy.deepcopy(_parsed(text))


@lru_cache(maxsize=64)
def _parsed(text: str) -> Any:
    """Parse a text; cached, since a study reads its recipe for every point, and parsing takes longest."""
    parser = YAML(typ="safe", pure=True)
    parser.max_depth = MAX_DEPTH
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReusedAnchorWarning)
            root = parser.compose(text)
    except YAMLError as error:
        raise YAMLFault([f"not valid YAML: {_explained(error, text)}"]) from None
    values = _Values()
    value = None if root is None else values.of(root, depth=0)
    if values.faults:
        raise YAMLFault(values.faults)
    return value


class _Representer(SafeRepresenter):
    """Double-quotes text with the line end of old mainframes (NEL), which would else become a space."""

    def represent_str(self, data: str) -> ScalarNode:
        style = '"' if "\x85" in data else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Representer.add_representer(str, _Representer.represent_str)


def dump_yaml(value: Any) -> str:
    """Returns YAML in block style, with the keys in their order."""
    writer = YAML(typ="safe", pure=True)
    writer.Representer = _Representer
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = io.StringIO()
    writer.dump(value, stream)
    return stream.getvalue()


class _Values:
    """Makes the values of a composed document, and collects its faults."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self._count = 0

    def of(self, node: Node, depth: int) -> Any:
        self._count += 1
        if self._count > MAX_VALUES or depth > MAX_DEPTH:
            raise YAMLFault([f"holds more than {MAX_VALUES} values or an alias of what it stands in"])
        kind = str(node.tag).rpartition(":")[2]
        if isinstance(node, MappingNode) and kind == "map":
            return self._mapping(node, depth)
        if isinstance(node, SequenceNode) and kind == "seq":
            return [self.of(item, depth + 1) for item in node.value]
        if isinstance(node, ScalarNode) and kind == "str":
            if half := _HALF_A_LETTER.search(node.value):
                self._fault(node, f"{half[0]!a} is half a letter, which no file can hold")
            return node.value
        if isinstance(node, ScalarNode) and kind in _PLAIN_TAGS:
            return self._plain(node)
        self._fault(node, f"the tag {node.tag} is not read; leave it out")
        return None

    def _mapping(self, node: MappingNode, depth: int) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self.of(key_node, depth + 1)
            if not isinstance(key, str):
                what = key_node.value if isinstance(key_node, ScalarNode) else f"a {type(key).__name__}"
                self._fault(key_node, f"{what} is no key: a key is text (put it in quotes if it is meant)")
            elif re.search(r":[\[{]|[:\s]\xa0", key):
                self._fault(key_node, f"{key!r} is no key: a colon is followed by a plain space")
            elif key in mapping:
                self._fault(key_node, f"the key {key!r} stands twice")
            else:
                mapping[key] = self.of(value_node, depth + 1)
        return mapping

    def _plain(self, node: ScalarNode) -> Any:
        text = node.value
        if _NULL.fullmatch(text):
            return None
        if match := _BOOL.fullmatch(text):
            return match[1] is not None
        try:
            if _INT.fullmatch(text):
                return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
            if _FLOAT.fullmatch(text):
                return float(text)
        except ValueError:  # Python limits the digits of a number to some thousand
            self._fault(node, f"a number of {len(text)} digits")
            return None
        if match := _SPECIAL.fullmatch(text):
            return float(f"{match[1]}{'inf' if match[2] else 'nan'}")
        return text

    def _fault(self, node: Node, text: str) -> None:
        self.faults.append(f"line {node.start_mark.line + 1}: {text}")


_REMEDIES = {
    "mapping values are not allowed here": "; the line before may lack its colon, or this one be indented too far",
    "expected <block end>": "; something may stand behind a value, or the line be indented otherwise than those before",
}
"""The parser's problem → what to look for."""


def _explained(error: YAMLError, text: str) -> str:
    """Returns one line with the place, and a remedy if the parser's own message gives none."""
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        words = " ".join(part for part in (error.context, error.problem) if part)
        if "'\\t'" in words:
            words = "a tab; YAML is indented with spaces"
        if "maximum depth" in words:
            words = f"nested deeper than {MAX_DEPTH} levels"
        if mark is not None and "\xa0" in "".join(text.splitlines()[mark.line : mark.line + 1]):
            words = "a non-breaking space; YAML knows plain spaces alone"
        words += next((remedy for problem, remedy in _REMEDIES.items() if problem in words), "")
        place = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        return place + words
    position = getattr(error, "position", None)  # that of a character that YAML does not allow
    if isinstance(position, int) and not isinstance(position, bool):
        line = text.count("\n", 0, position) + 1
        return f"line {line}: the control character {text[position]!r}"
    return " ".join(str(error).split())
