"""Removes private paths from every text in the results, so that they do not tell who ran them."""

import os
import re
from pathlib import Path
from typing import Any


def without_private_paths(text: str) -> str:
    """Returns `text` (an argument, a setting) without private paths.

    A path below the working directory becomes relative to it. Other absolute paths, and paths that
    begin with ~ or .., become `<path>/` and their last name. Paths are found at the start and after
    = , : ; quotes and brackets.
    """
    return "".join(_shorten(piece) for piece in re.split(r"""([=,:;"'()\[\]{}])""", text))


def text_without_private_paths(text: str) -> str:
    """Returns a sentence without private paths, which may stand anywhere in it: a word that is a path is shortened as an
    argument is. Of a path with spaces all is a word up to the first one, after the home or the working directory.
    """
    here, home = Path.cwd(), Path.home()
    if here not in (home, *home.parents):
        text = text.replace(f"{here}{os.sep}", "")
    if home.name:
        text = re.sub(rf"{re.escape(str(home))}(?![^{_AFTER_A_PATH}/\\\\])", "~", text)
    return "".join(map(_shorten_word, re.split(f"([{_AFTER_A_PATH}])", text)))


_AFTER_A_PATH = r"""\s`=,:;"'()\[\]{}"""
_OF_THE_SYSTEM = ("/dev/", "/proc/", "/sys/", "//")
"""What such a word begins with is the same on every machine, or an address behind its https: says where a page is."""


def _shorten_word(word: str) -> str:
    is_path = re.match(r"[/\\~]+[^\W\d]|\.\.[/\\]", word)
    return _shorten(word) if is_path and not word.startswith(_OF_THE_SYSTEM) else word


def public(value: Any) -> Any:
    """Returns a JSON value without private paths."""
    if isinstance(value, str):
        return without_private_paths(value)
    if isinstance(value, dict):
        return {key: public(below) for key, below in value.items()}
    if isinstance(value, list):
        return [public(below) for below in value]
    return value


def _shorten(piece: str) -> str:
    if not re.match(r"[/\\~]|\.\.(?:[/\\]|$)", piece):
        return piece
    path, here, home = Path(piece), Path.cwd(), Path.home()
    # From above the home, a relative path would still name its owner.
    if path.is_relative_to(here) and here not in home.parents:
        return str(path.relative_to(here))
    name = re.split(r"[/\\]", piece.rstrip("/\\"))[-1]
    private = name in ("", "..", home.name) or name.startswith("~")
    return "<path>" if private else f"<path>/{name}"
