"""The contents beside the pages of a report: short whatever the report holds, and with a link to every part."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from result_builder import HandmadeRun

from sltt_bench.report import SECTIONS, _load
from sltt_bench.report.assemble import assemble
from sltt_bench.report.document import Context, Section
from sltt_bench.report.render.contents import Entry, contents, sections_of
from sltt_bench.results.reader import read_results


def part(title: str, level: Literal[1, 2] = 1) -> Section:
    return Section(title.lower().replace(" ", "-"), title, level=level)


def links(entries: Sequence[Entry]) -> list[str]:
    return [
        link for entry in entries for link in (*([entry.link] if entry.link else []), *links(entry.entries))
    ]


def shown(entries: Sequence[Entry]) -> list[str]:
    """What a reader sees who unfolds nothing."""
    below = [(entry, shown(entry.entries) if entry.link or entry.is_open else []) for entry in entries]
    return [title for entry, titles in below for title in (entry.title, *titles)]


def test_of_many_groups_the_first_are_listed_and_the_others_folded() -> None:
    sections = [part("digits"), *(part(f"group {number}", 2) for number in range(29))]
    entries = sections_of("digits", sections)
    assert shown(entries) == [*(f"group {number}" for number in range(6)), "and 23 more"]
    assert links(entries) == [f"#group-{number}" for number in range(29)]


def test_a_fold_hides_no_fewer_than_three() -> None:
    sections = [part("digits"), *(part(f"group {number}", 2) for number in range(8))]
    assert shown(sections_of("digits", sections)) == [f"group {number}" for number in range(8)]


def test_parts_of_one_kind_are_a_fold_that_names_what_tells_them_apart() -> None:
    sections = [
        part("studies/k"), part("Every group of studies/k"), part("tuned", 2),
        part("Training until 90 % on studies/k: tuned"), part("Tuning studies/k, 5 trials"), part("Training until 90 % on studies/k"),
        part("Estimated: studies/k"), part("batch 8", 2), part("batch 64", 2),
    ]  # fmt: skip
    entries = sections_of("studies/k", sections)
    assert shown(entries) == [
        "tuned",
        "Training until 90 %",
        "Tuning studies/k, 5 trials",
        "Estimated: studies/k",
    ]
    (until,) = (entry for entry in entries if entry.title == "Training until 90 %")
    assert [entry.title for entry in until.entries] == ["tuned", "studies/k"]
    assert {f"#{section.name}" for section in sections if section.level == 2} <= set(links(entries))


PAGES = [
    ("a.html", "Answer"), ("k.html", "studies/k"), ("digits.html", "digits"), ("tau.html", "studies/tau"),
]  # fmt: skip


def test_pages_of_a_family_are_a_fold_that_is_open_on_one_of_them() -> None:
    own = [Entry("tuned", "#tuned")]
    assert shown(contents(PAGES, "digits.html", own)) == ["Answer", "studies", "digits", "tuned"]
    entries = contents(PAGES, "tau.html", own)
    assert shown(entries) == ["Answer", "studies", "k", "tau", "tuned", "digits"]
    assert links(entries) == ["a.html", "k.html", "tau.html", "#tuned", "digits.html"]


def test_of_very_many_pages_some_are_folded_but_never_the_open_one() -> None:
    many = [(f"{number}.html", f"recipe{number}") for number in range(60)]
    assert len(shown(contents(many, "3.html", []))) == 25
    assert "recipe50" in shown(contents(many, "50.html", []))
    assert links(contents(many, "50.html", [])) == [file for file, _ in many]


def test_what_runs_were_made_with_has_titles_that_tell_it_apart(tmp_path: Path) -> None:
    for number, (torch, environment) in enumerate(
        [("2.6.0", {}), ("2.6.0", {"OMP_NUM_THREADS": "1"}), ("2.11.0", {}), ("2.11.0", {})]
    ):
        facts = {"sltt_bench": "0.1", "cpu": "Example CPU", "environment": environment}
        HandmadeRun(tmp_path / str(number), torch=torch, facts=facts).cell("bptt", number)
    HandmadeRun(tmp_path / "other", facts={"sltt_bench": "0.1", "cpu": "Other CPU"}).cell("bptt", 4)
    report, _ = assemble(Context(read_results([tmp_path]), "bptt"), {"run": _load(SECTIONS["run"])})
    own = "0.1 (no revision), Example CPU"
    assert {origin.title: len(origin.commands) for origin in report.provenance} == {
        f"{own}, torch 2.6.0, environment as it is": 1,
        f"{own}, torch 2.6.0, environment OMP_NUM_THREADS=1": 1,
        f"{own}, torch 2.11.0, environment as it is": 1,
        "0.1 (no revision), Other CPU": 1,
    }
