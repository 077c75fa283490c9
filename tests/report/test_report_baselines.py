"""The report on what is measured beside its baselines: rows of bench.csv."""

from pathlib import Path
from typing import Any

import pytest
from result_builder import MIB, RECIPE, HandmadeRun, bench_run
from rich.console import Console

from sltt_bench.report import make_report
from sltt_bench.report.document import Context, Contribution, Figure, Table
from sltt_bench.report.plots import style
from sltt_bench.report.plots.dots import Dot, DotPanel, draw_dots
from sltt_bench.report.sections.benchmark import beside_baselines
from sltt_bench.results.reader import read_results

TIME = {
    "row": "time", "quantity": "wall_s", "subject_value": 0.25, "baseline_value": 0.2, "ratio": 1.25,
    "ratio_low": 1.2, "ratio_high": 1.31, "rounds": 12, "target": 1.2, "met": False,
}  # fmt: skip


def contribution(folder: Path) -> Contribution:
    return beside_baselines(Context(read_results([folder]), "bptt"))


def tables(part: Contribution) -> list[Table]:
    return [block for section in part.sections for block in section.blocks if isinstance(block, Table)]


def shown(table: Table) -> list[list[str]]:
    return [[f"{cell.text} {cell.detail}".strip() for cell in row] for row in table.rows]


def test_each_row_shows_both_sides_the_ratio_the_target_and_whether_it_is_met(tmp_path: Path) -> None:
    bench_run(tmp_path / "bench" / "run", {"target": 0.56, "met": True}, TIME, {"row": "told"})
    (table,) = tables(contribution(tmp_path))
    assert [heading.text for heading in table.headings] == [
        "row", "subject", "baseline", "÷ baseline", "wanted", "target",
    ]  # fmt: skip
    counted = "peak of live tensors: a network, T = 6"
    memory = ["native 5.00 MiB", "a library 10.0 MiB", "0.50×"]
    times = ["native 250 ms", "a library 200 ms", "1.25× [1.20, 1.31]"]
    assert shown(table) == [
        [f"memory {counted}", *memory, "≤ 0.56", "met"],
        ["time time: a network, T = 6", *times, "≤ 1.2", "not met"],
        [f"told {counted}", *memory, "–", "only reported"],
    ]
    assert [row[5].tone for row in table.rows] == ["good", "bad", "muted"]


def test_the_summary_counts_the_targets_that_are_met_on_each_device(tmp_path: Path) -> None:
    bench_run(tmp_path / "a", {"target": 0.56, "met": True}, TIME, {"row": "told"})
    bench_run(tmp_path / "b", {"device_name": "Other GPU", "target": 0.4, "met": False})
    assert contribution(tmp_path).sentence == (
        "Beside its baselines (3 rows of the benchmark): 1 of 2 targets met on Example GPU, 0 of 1 targets met "
        "on Other GPU."
    )


def test_of_several_subjects_beside_one_baseline_the_best_decides(tmp_path: Path) -> None:
    slow, fast = ({"subject": name, "ratio": ratio, "ratio_low": ratio, "ratio_high": ratio, "met": met} for name, ratio, met in (
        ("as calls", 5.6, False), ("replayed", 0.5, True),
    ))  # fmt: skip
    beside_another = {**TIME, "baseline": "another", "subject": "as calls", "target": 6.0}
    bench_run(
        tmp_path / "r", {**TIME, **slow}, {**TIME, **fast}, {**beside_another, "ratio": 5.0, "met": True}
    )
    part = contribution(tmp_path)
    assert "2 of 2 targets met on Example GPU" in part.sentence
    (table,) = tables(part)
    assert [(row[1].text, row[5].text) for row in table.rows] == [
        ("as calls", "another way"), ("replayed", "met"), ("as calls", "met"),
    ]  # fmt: skip
    assert any("the best decides" in note for note in table.notes)
    (figure,) = (block for section in part.sections for block in section.blocks if isinstance(block, Figure))
    (panel,) = figure.content()
    labels = [dot.label for dot in panel.dots]
    assert labels[0].endswith(", as calls")
    assert labels[1].endswith(", replayed")
    assert len({*labels}) == 3


def test_a_later_measurement_replaces_an_earlier_one_and_is_never_averaged_with_it(tmp_path: Path) -> None:
    bench_run(tmp_path / "z", {"ratio": 0.9, "finished_utc": "2026-01-01T00:00:00+00:00"})
    bench_run(tmp_path / "a", {"ratio": 0.5, "finished_utc": "2026-01-02T00:00:00+00:00"})
    bench_run(tmp_path / "other", {"ratio": 0.7, "problem": "another"}, {"ratio": 0.6, "baseline": "another"})
    (table,) = tables(contribution(tmp_path))
    assert sorted(row[3].text for row in table.rows) == ["0.50×", "0.60×", "0.70×"]
    assert any(note.startswith("1 earlier measurements of the same row") for note in table.notes)


def test_each_device_has_a_table_of_its_own(tmp_path: Path) -> None:
    bench_run(tmp_path / "a", {"ratio": 0.9})
    bench_run(tmp_path / "b", {"ratio": 0.5, "device_name": "Example CPU"})
    part = contribution(tmp_path)
    assert [(section.title, len(section.blocks)) for section in part.sections[1:]] == [
        ("Example CPU", 2),
        ("Example GPU", 2),
    ]
    assert not any("earlier" in note for table in tables(part) for note in table.notes)


def test_rows_that_failed_and_baselines_that_were_left_out_are_named(tmp_path: Path) -> None:
    left_out = {"remark": "left out: a rival (ValueError: no)"}
    bench_run(tmp_path / "r1", left_out, failed={"growth": "RuntimeError: out of memory"})
    part = contribution(tmp_path)
    assert "growth was not measured by run r1: RuntimeError: out of memory." in part.sections[0].lead
    assert "memory: left out: a rival (ValueError: no)." in tables(part)[0].notes


def test_a_torn_row_is_listed_and_never_data(tmp_path: Path) -> None:
    bench_run(tmp_path / "run", {}, {"row": "second"})
    path = tmp_path / "run" / "bench.csv"
    path.write_text(path.read_text()[:-9])
    results = read_results([tmp_path])
    assert [len(table.rows) for table in tables(contribution(tmp_path))] == [1]
    assert [skip.reason for skip in results.skipped] == ["torn: the line was never finished"]


def test_a_benchmark_is_a_part_of_the_report_and_changes_no_other(tmp_path: Path) -> None:
    HandmadeRun(tmp_path / "digits", recipe=RECIPE).cell("bptt", peak_tensor_bytes=MIB)
    bench_run(tmp_path / "bench" / "run", {"target": 0.56, "met": True})
    outcome = make_report(
        [tmp_path], tmp_path / "out", formats=["csv", "markdown"], console=Console(quiet=True)
    )
    assert outcome.skipped == ()
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.startswith("# digits\n\n1 method (bptt) on recipe digits: 1 cell finished")
    assert "## Beside the baselines" in text
    assert "| memory peak of live tensors: a network" in (text.partition("## Beside the baselines")[2])
    assert (tmp_path / "out" / "bench.csv").read_text().count("\n") == 2


# The plot ---------------------------------------------------------------------------------------------


@pytest.fixture
def drawing() -> Any:
    dots = (
        Dot("a", 0.5, "0.50×", target=0.56),
        Dot("b", 1.25, "1.25×", (1.2, 1.3), 1.2),
        Dot("c", 0.8, "0.80×"),
    )
    with style.applied():
        return draw_dots([DotPanel("Ratio", "subject ÷ baseline [×]", dots, 1.0)], "double").axes[0]


def test_points_lie_at_the_ratios_and_ticks_at_the_targets(drawing: Any) -> None:
    lines = {line.get_label(): line for line in drawing.lines}
    assert [(lines[name].get_xdata()[0], lines[name].get_ydata()[0]) for name in "abc"] == [
        (0.5, 0), (1.25, 1), (0.8, 2),
    ]  # fmt: skip
    targets = [
        (line.get_xdata()[0], line.get_ydata()[0]) for line in drawing.lines if line.get_marker() == "|"
    ]
    assert targets == [(0.56, 0), (1.2, 1)]
    assert list(lines["spread of b"].get_xdata()) == [1.2, 1.3]
    assert [text.get_text() for text in drawing.texts] == ["0.50×", "1.25×", "0.80×"]
    assert drawing.get_xlabel() == "subject ÷ baseline [×]"


def test_what_misses_its_target_is_hollow_and_red_and_nothing_else_is(drawing: Any) -> None:
    marks = {line.get_label(): line for line in drawing.lines if line.get_marker() == "o"}
    hollow = {name for name, mark in marks.items() if mark.get_markerfacecolor() == style.SURFACE}
    red = {name for name, mark in marks.items() if mark.get_markeredgecolor() == style.FAILED}
    assert hollow == red == {"b"}


def test_labels_hold_as_much_as_tells_rows_apart() -> None:
    dots = [
        Dot("a", 1, details=("memory", "against x")), Dot("a", 1, details=("time", "against x")),
        Dot("a", 1, details=("time", "against y")), Dot("b", 1, details=("time", "against x")),
    ]  # fmt: skip
    assert [dot.named([other for other in dots if other is not dot]).label for dot in dots] == [
        "a, memory", "a, time, against x", "a, time, against y", "b",
    ]  # fmt: skip


def test_the_figure_says_what_device_and_how_many_rounds(tmp_path: Path) -> None:
    bench_run(tmp_path / "run", TIME)
    (figure,) = [b for s in contribution(tmp_path).sections for b in s.blocks if isinstance(b, Figure)]
    assert "n = 1 measurement a row, times of 12 rounds; Example GPU." in figure.caption
