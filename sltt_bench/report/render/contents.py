"""The contents of the report's pages: every page, and the parts of the one that is open; what is long or alike is folded."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sltt_bench.report.document import Section

MOST = 6
"""Groups of a page that stand in its contents unfolded."""
MOST_PAGES = 24
_WORTH_A_FOLD = 3
"""Entries from which on a fold saves room: a pair is as short as what it would be folded to."""


@dataclass(frozen=True)
class Entry:
    """A line of the contents: a link, or without one a fold that opens to its entries."""

    title: str
    link: str = ""
    entries: tuple["Entry", ...] = ()
    is_open: bool = False
    """A fold: whether it shows its entries; a link: whether it is of the page that is open."""
    counted: bool = True
    """A fold: whether its title is followed by the number of its entries."""


def contents(pages: Sequence[tuple[str, str]], open_file: str, own: Sequence[Entry]) -> list[Entry]:
    """The pages as (file, title) in order; those of a family ("studies/tau") in its fold. `own`: what the open page has."""
    lines: dict[tuple[str, str], list[Entry]] = {}
    for file, title in pages:
        family, _, rest = title.rpartition("/")
        is_open = file == open_file
        entry = Entry(rest, file, tuple(own) if is_open else (), is_open)
        lines.setdefault((family, "" if family else file), []).append(entry)
    listed = [
        Entry(family, entries=tuple(of_line), is_open=any(page.is_open for page in of_line))
        if family
        else of_line[0]
        for (family, _), of_line in lines.items()
    ]
    return _shortened(listed, MOST_PAGES)


def sections_of(title: str, sections: Sequence[Section]) -> list[Entry]:
    """The parts of a page with this title: the groups of its first part that has some, the other parts by their kind."""
    kinds: dict[str, list[tuple[Section, list[Section]]]] = {}
    for section in sections:
        if section.level == 1:
            kinds.setdefault(_kind(section.title), []).append((section, groups := []))
        else:
            groups.append(section)
    first = next((part for parts in kinds.values() for part, groups in parts if groups), None)
    return [entry for kind, parts in kinds.items() for entry in _parts(title, kind, parts, first)]


def _parts(
    page: str, kind: str, parts: Sequence[tuple[Section, Sequence[Section]]], first: Section | None
) -> Iterator[Entry]:
    """Parts of one kind: the page's first groups below each other, one alone as it is, several in a fold."""
    if len(parts) == 1:
        part, groups = parts[0]
        links = _links(groups)
        if part is first:
            yield from _shortened(links, MOST)
        elif len(links) > 1:
            yield Entry(part.title, entries=tuple(links))
        elif links or part.title != page:
            yield Entry(part.title, f"#{part.name}")
        return
    below = [(part, tuple(_shortened(_links(groups), MOST))) for part, groups in parts]
    entries = [Entry(_rest(part.title, kind, page), f"#{part.name}", links) for part, links in below]
    yield Entry(kind, entries=tuple(entries), is_open=any(part is first for part, _ in parts))


def _links(groups: Sequence[Section]) -> list[Entry]:
    return [Entry(group.title, f"#{group.name}") for group in groups]


def _kind(title: str) -> str:
    """What titles of alike parts begin with: "Training until 90 %" of "Training until 90 % on digits: tuned"."""
    return re.split(r": | on |, ", title, maxsplit=1)[0]


def _rest(title: str, kind: str, page: str) -> str:
    """What tells a part from the others of its kind: the page need not be named once more."""
    rest = re.sub(r"^(: | on |, )", "", title.removeprefix(kind))
    return rest.removeprefix(page).lstrip(" :,") or rest


def _shortened(entries: Sequence[Entry], most: int) -> list[Entry]:
    """The first entries, and the others in a fold, which is open where the open page is among them."""
    if len(entries) < most + _WORTH_A_FOLD:
        return list(entries)
    rest = tuple(entries[most:])
    is_open = any(entry.is_open for entry in rest)
    fold = Entry(f"and {len(rest)} more", entries=rest, is_open=is_open, counted=False)
    return [*entries[:most], fold]
