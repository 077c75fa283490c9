"""The whole report: files, formats, the summary, the page in a browser, and speed."""

import html as html_text
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from browser import measured, needs_chromium
from markdown_it import MarkdownIt
from result_builder import MIB, RECIPE, HandmadeRun, bench_run, varied
from rich.console import Console

from sltt_bench.report import FORMATS, SECTIONS, make_report, print_run
from sltt_bench.report.document import Heading, Table, TableCell
from sltt_bench.report.render import earlier_drawings, files, latex, markdown
from sltt_bench.report.render.html import gauge, inline_svg
from sltt_bench.report.render.terminal import print_table
from sltt_bench.results.writer import ResultsError

CLAIM = {
    "metric": "peak_memory", "method": "sltt", "baseline": "bptt", "relation": "at_most_ratio",
    "threshold": 0.3, "when": {}, "says": "less than <a third> & more", "source": "a paper",
}  # fmt: skip


def quiet() -> Console:
    return Console(quiet=True)


def make_results(folder: Path, *claims: dict[str, Any]) -> Path:
    """bptt 4 s and 100 MiB, sltt 2 s and 25 MiB, three seeds; bptt ran out of memory on a GPU."""
    recipe = varied(RECIPE, claims=list(claims))
    run = HandmadeRun(folder / "digits" / "run", recipe=recipe)
    for seed in (0, 1, 2):
        for method, seconds, mib in (("bptt", 4.0, 100), ("sltt", 2.0, 25), ("sltt-k2", 1.0, 24)):
            times, lasts = [9.0, seconds, seconds + 0.1 * seed], [0.1, 0.8, 0.9 + 0.01 * seed]
            run.cell(method, seed, train_s=times, top1=lasts, peak_tensor_bytes=mib * MIB, energy_j=5.0)
    gpu = HandmadeRun(
        folder / "digits" / "gpu", recipe=recipe, device="cuda:0", device_name="Example GPU", number=50
    )
    gpu.cell("bptt", 0, status="oom", reason="CUDA out of memory: <tried> 2 GiB")
    gpu.cell("sltt", 0, peak_allocated_bytes=30 * MIB)
    return folder


def report(folder: Path, out: Path, *formats: str, console: Console | None = None) -> Any:
    return make_report([folder], out, formats=formats, console=console or quiet())


# Files and formats ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A report in every format, beside its results."""
    folder = tmp_path_factory.mktemp("every_format")
    return report(make_results(folder / "results", CLAIM), folder / "out", *FORMATS)


@pytest.fixture
def out(written: Any) -> Path:
    (folder,) = {path.parent for path in written.files if path.name == "report.html"}
    return folder


def test_every_format_writes_its_files(written: Any, out: Path) -> None:
    outcome = written
    names = {path.relative_to(out).as_posix() for path in outcome.files}
    assert {"summary.csv", "verdicts.csv", "report.html", "report.md"} <= names
    for kind in ("png", "svg"):
        assert f"figures/digits-T6-b64-fp32-reference-methods.{kind}" in names
        assert f"figures/digits-T6-b64-fp32-reference-methods-column.{kind}" in names
    assert "latex/digits-T6-b64-fp32-reference-overview.tex" in names
    assert all(path.stat().st_size > 0 for path in outcome.files)


def test_without_out_the_report_lies_beside_the_results_and_is_not_read_back(tmp_path: Path) -> None:
    folder = make_results(tmp_path)
    first = make_report([folder], None, formats=["csv"], console=quiet())
    before = (folder / "report" / "summary.csv").read_text()
    second = make_report([folder], None, formats=["csv"], console=quiet())
    assert first.files == second.files
    assert (folder / "report" / "summary.csv").read_text() == before
    assert [skip.reason for skip in second.skipped] == ["an earlier report, not results"]


def test_two_reports_of_the_same_results_are_the_same_byte_for_byte(tmp_path: Path, out: Path) -> None:
    again = report(out.parent / "results", tmp_path / "out", "csv", "latex", "svg")
    assert len(again.files) > 10
    for path in again.files:
        assert path.read_bytes() == (out / path.relative_to(tmp_path / "out")).read_bytes()


def test_an_unknown_format_and_an_unwritable_place_are_errors_that_say_so(tmp_path: Path) -> None:
    folder = make_results(tmp_path / "results")
    with pytest.raises(ResultsError, match=r"--format word: unknown; known formats are terminal, csv"):
        report(folder, tmp_path / "out", "word")
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match=r"cannot be written .*--out"):
        report(folder, tmp_path / "file", "csv")


def test_a_folder_without_results_is_an_error_that_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"no results in or below it; run a recipe first"):
        report(tmp_path, tmp_path / "out", "csv")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ResultsError, match=r"no results in or below it \(.*notes.txt\)"):
        report(tmp_path, tmp_path / "out", "csv")


def test_wrong_option_values_name_the_option_and_suggest_the_nearest(tmp_path: Path) -> None:
    folder = make_results(tmp_path / "results")
    with pytest.raises(
        ResultsError, match=r"--baseline btpp: no such method here \(did you mean 'bptt'\?\); there are"
    ):
        make_report([folder], tmp_path / "out", "btpp", console=quiet())
    with pytest.raises(ResultsError, match=r"--format htlm: unknown \(did you mean 'html'\?\)"):
        report(folder, tmp_path / "out", "htlm")


def test_json_holds_every_table_and_verdict_with_numbers_in_base_units(tmp_path: Path) -> None:
    report(make_results(tmp_path / "results", CLAIM), tmp_path / "out", "json", "csv")
    whole = json.loads((tmp_path / "out" / "report.json").read_text())
    (card,) = whole["claims"]
    assert (card["verdict"], card["of_paper"]) == ("1 held, 1 not measured", True)
    assert [(v["word"], v["value"], v["n"], v["exact"]) for v in card["verdicts"]] == [
        ("held", 0.25, 3, True),
        ("not measured", None, 0, False),
    ]
    answer = whole["sections"][0]["tables"][0]
    place = [column["heading"] for column in answer["columns"]].index("live tensors")
    assert [row[place]["value"] for row in answer["rows"]] == [100 * MIB, 25 * MIB, 24 * MIB]
    seeds = pd.read_csv(tmp_path / "out" / "seeds.csv")
    seeds = seeds[seeds["hardware"] == "Example CPU, 2 threads"]
    chosen = seeds[(seeds["method"] == "sltt") & (seeds["figure"] == "last_test_top1")]
    assert dict(zip(chosen["seed"], chosen["value"], strict=True)) == {0: 0.9, 1: 0.91, 2: 0.92}


# Verdicts and summary --------------------------------------------------------------------------------


@pytest.mark.parametrize(("threshold", "word", "holds"), [(0.3, "held", True), (0.2, "not held", False)])
def test_claims_hold_follows_the_verdicts(tmp_path: Path, threshold: float, word: str, holds: bool) -> None:
    folder = make_results(tmp_path / "results", {**CLAIM, "threshold": threshold})
    outcome = report(folder, tmp_path / "out", "csv")
    assert [(verdict.word, verdict.conditions[0]) for verdict in outcome.verdicts] == [
        (word, "Example CPU, 2 threads"),
        ("not measured", "Example GPU"),  # bptt ran out of memory
    ]
    assert outcome.claims_hold is holds
    row, _ = pd.read_csv(tmp_path / "out" / "verdicts.csv").to_dict("records")
    assert (row["verdict"], row["value"], row["limit"], row["pairs"]) == (word, 0.25, threshold, 3)


def test_the_first_screen_says_what_was_run_the_claims_and_one_table(tmp_path: Path) -> None:
    folder = make_results(tmp_path / "results", CLAIM)
    report(folder, tmp_path / "out", "markdown")
    _, summary, heading, card, title, table = (tmp_path / "out" / "report.md").read_text().split("\n\n")[:6]
    assert summary == (
        "3 methods (bptt, sltt and sltt-k2) on recipe digits: 10 cells finished and 1 did not over 3 seeds. "
        "Measured on Example CPU, 2 threads and Example GPU, in fp32 with backend reference; results on "
        "different hardware are never compared."
    )
    assert heading == "## Claims of the paper"
    assert card.startswith(
        "- less than \\<a third\\> & more: **1 held, 1 not measured**. held: 0.25×, exact (digits, reference), Example "
    )
    conditions = "Example CPU, 2 threads, fp32, backend reference, T = 6, batch 64"
    assert title == f"**digits: {conditions}, at the recipe's learning rate**"
    assert "| sltt | 3 | 91.00 ± 1.00 | 0.00 [0.00, 0.00] n = 3 |" in table


def test_beside_full_runs_smoke_runs_are_one_table_and_no_answer(tmp_path: Path) -> None:
    folder = make_results(tmp_path / "results", CLAIM)
    smoke = HandmadeRun(folder / "smoke", recipe=varied(RECIPE, name="other"), number=90)
    smoke.cell("bptt", peak_tensor_bytes=7 * MIB, cell={"smoke": True})
    smoke.cell("sltt", status="error", reason="RuntimeError: no", cell={"smoke": True})
    outcome = report(folder, tmp_path / "out", "markdown", "csv", "svg")
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.startswith("# digits\n\n3 methods (bptt, sltt and sltt-k2) on recipe digits: 10 cells ")
    assert ". Smoke runs: 1 cell finished and 1 did not. Measured on" in text
    heading, table = text.index("## Smoke runs"), "| other | 6 | 64 | bptt | sltt (error) | real |"
    assert heading < text.index(table) < text.index("other, sltt: error (seed 0): RuntimeError: no")
    assert not [path for path in outcome.files if "other" in path.name]
    assert set(pd.read_csv(tmp_path / "out" / "summary.csv")["recipe"]) == {"digits", "other"}


def test_smoke_runs_alone_are_compared_as_far_as_they_go(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "results" / "run")
    run.cell("bptt", peak_tensor_bytes=8 * MIB, cell={"smoke": True})
    run.cell("sltt", peak_tensor_bytes=4 * MIB, cell={"smoke": True})
    report(tmp_path / "results", tmp_path / "out", "markdown")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| sltt | 1 |" in text
    assert "0.50× exact" in text
    assert "## Smoke runs" not in text


def test_of_several_recipes_the_first_one_is_on_the_first_screen(tmp_path: Path) -> None:
    for name, mib in (("net10", 2), ("net9", 4)):
        run = HandmadeRun(tmp_path / "results" / name, recipe=varied(RECIPE, name=name))
        run.cell("bptt", peak_tensor_bytes=8 * MIB)
        run.cell("sltt", peak_tensor_bytes=mib * MIB)
    report(tmp_path / "results", tmp_path / "out", "markdown")
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.startswith("# net9, net10\n")
    assert text.index("**net9: ") < text.index("0.50× exact") < text.index("## net10")


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        ({"device_name": "Other CPU"}, "sltt ran, but not under these conditions: it differs in hardware."),
        ({"recipe": varied(RECIPE, name="vowels")}, "no other method was run on digits."),
    ],
)
def test_why_nothing_was_compared_is_said_of_what_was_run(
    tmp_path: Path, about: dict[str, Any], reason: str
) -> None:
    HandmadeRun(tmp_path / "one").cell("bptt")
    HandmadeRun(tmp_path / "other", number=50, **about).cell("sltt")
    console = Console(record=True, width=400)
    report(tmp_path, tmp_path / "out", "terminal", console=console)
    assert f"No method could be compared with bptt: {reason}" in console.export_text()


def test_a_terminal_shows_every_table_only_if_asked(tmp_path: Path) -> None:
    for number in range(5):
        run = HandmadeRun(tmp_path / f"run{number}", recipe=varied(RECIPE, name=f"recipe{number}"))
        run.cell("bptt", peak_tensor_bytes=MIB)
        run.cell("sltt", peak_tensor_bytes=MIB)
    texts = []
    for full in (False, True):
        console = Console(record=True, width=100)
        make_report([tmp_path], tmp_path / "out", formats=["terminal"], full=full, console=console)
        texts.append(console.export_text())
    assert [text.count("Accuracy, time and memory") for text in texts] == [0, 5]
    assert [text.count("Every figure") for text in texts] == [0, 5]
    assert [text.count("recipe0: Example CPU") for text in texts] == [1, 1]
    assert "every table: --full" in texts[0]


def test_estimates_stand_under_their_own_name_and_are_never_mixed_in(tmp_path: Path) -> None:
    folder = make_results(tmp_path / "results")
    report(folder, tmp_path / "before", "csv")
    run = HandmadeRun(folder / "est", number=90)
    run.estimate("bptt", 1000)
    run.estimate("sltt", 1)
    report(folder, tmp_path / "out", "csv", "markdown")
    # Everything measured is as if there were no estimate ...
    before, after = ((tmp_path / name / "summary.csv").read_text() for name in ("before", "out"))
    assert after == before
    # ... and the estimate has a heading and a table of its own, in its own numbers.
    measured, heading, estimated = (tmp_path / "out" / "report.md").read_text().partition("Estimated: digits")
    assert heading
    assert "| 1000 | 1.00 0.0010× |" in estimated
    assert "1000 MiB" not in measured
    assert "0.25" in measured


def test_an_estimate_without_figures_is_named_and_not_shown(tmp_path: Path) -> None:
    folder = make_results(tmp_path / "results")
    HandmadeRun(folder / "est", number=90).cell("sltt", cell={"kind": "estimate"}, train_s=())
    report(folder, tmp_path / "out", "markdown")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "1 cell of kind estimate: no row in estimates.csv, not shown" in text
    assert "Estimated: digits" not in text


def test_a_further_kind_of_section_is_one_entry_in_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SECTIONS, "estimate", f"{__name__}:made_up_section")
    folder = make_results(tmp_path / "results")
    HandmadeRun(folder / "est", number=90).cell("sltt", 9, cell={"kind": "estimate"})
    report(folder, tmp_path / "out", "markdown", "csv")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "## Made up" in text
    assert "not shown" not in text
    assert (tmp_path / "out" / "made-up.csv").read_text() == "a\n1\n"


def made_up_section(context: Any) -> Any:
    from sltt_bench.report.document import Contribution, Section

    assert context.baseline == "bptt"
    return Contribution(
        sections=(Section("made-up", "Made up"),), frames={"made-up.csv": pd.DataFrame({"a": [1]})}
    )


def test_a_claim_that_an_estimate_judges_is_not_called_unmeasured_by_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SECTIONS, "estimate", f"{__name__}:estimated_verdict")
    compute = {**CLAIM, "metric": "compute"}
    outcome = report(make_results(tmp_path / "results", compute), tmp_path / "out", "csv")
    assert [(verdict.word, verdict.estimated) for verdict in outcome.verdicts] == [("held", True)]


def estimated_verdict(context: Any) -> Any:
    from sltt_bench.report.document import Contribution, Verdict

    claim = {**CLAIM, "metric": "compute"}
    return Contribution(verdicts=(Verdict("digits", claim, "held", "said", value=0.1, estimated=True),))


def test_a_terminal_names_the_first_things_that_were_not_read_and_counts_the_rest(tmp_path: Path) -> None:
    folder = make_results(tmp_path / "results")
    for number in range(25):
        (folder / f"foreign{number}").mkdir()
        (folder / f"foreign{number}" / "x.txt").write_text("")
    console = Console(record=True, width=200)
    make_report([folder], tmp_path / "out", formats=["terminal"], full=True, console=console)
    text = console.export_text()
    assert text.count("files that belong to no run") == 20
    assert "not read: 5 more" in text


def test_in_a_process_of_its_own_it_draws_in_several_to_the_same_end_and_loads_no_torch(
    tmp_path: Path, out: Path
) -> None:
    code = f"""
import pathlib, sys
from rich.console import Console
import sltt_bench.report.compare
import sltt_bench.report.render.files as files
from sltt_bench.report import make_report

pools = []
original = files.ProcessPoolExecutor
files.ProcessPoolExecutor = lambda *args, **kwargs: pools.append(args) or original(*args, **kwargs)
files.os.sched_getaffinity = lambda process: {{0, 1}}
files.WORTH_A_PROCESS = 2
make_report([pathlib.Path({str(out.parent / "results")!r})], out=pathlib.Path({str(tmp_path)!r}),
            formats=("terminal", "csv", "html", "svg"), console=Console(quiet=True))
assert len(pools) == 1
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    drawn = sorted((tmp_path / "figures").glob("*.svg"))
    assert len(drawn) > 4
    assert all(path.read_bytes() == (out / "figures" / path.name).read_bytes() for path in drawn)


def drawn_anew(folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The figures that a report in `out` draws, and does not find drawn there."""
    names: set[str] = set()

    def watched(jobs: Any) -> Any:
        names.update(job.figure.name for job in jobs)
        return map(files.Job.draw, jobs)

    monkeypatch.setattr(files, "_drawn", watched)
    report(folder, out, "svg", "png")
    return names


def test_a_second_report_draws_only_what_is_not_drawn_as_it_is(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, again = tmp_path / "results", tmp_path / "out"
    shutil.copytree(out.parent / "results", folder)
    shutil.copytree(out, again)
    figures = again / "figures"
    assert drawn_anew(folder, again, monkeypatch) == set()
    svg = figures / "digits-T6-b64-fp32-reference-methods.svg"
    content = svg.read_bytes()
    svg.write_bytes(content.replace(b"bptt", b"best"))  # by a reader's hand
    (figures / "digits-T6-b64-fp32-reference-pairs.png").unlink()
    anew = drawn_anew(folder, again, monkeypatch)
    assert {name.removeprefix("digits-T6-b64-fp32-reference-") for name in anew} == {"methods", "pairs"}
    assert svg.read_bytes() == content
    gpu = HandmadeRun(
        folder / "digits" / "more", recipe=varied(RECIPE, claims=[CLAIM]), device="cuda:0", device_name="Example GPU",
        number=90,
    )  # fmt: skip
    gpu.cell("sltt", 1, peak_allocated_bytes=31 * MIB)
    anew = drawn_anew(folder, again, monkeypatch)
    assert anew
    assert not any(name.startswith("digits-T6-b64-fp32-reference-methods") for name in anew)
    monkeypatch.setattr("sltt_bench.report.render.earlier_drawings._painters", lambda: ["another version"])
    assert len(drawn_anew(folder, again, monkeypatch)) > len(anew)
    (figures / "drawn.json").write_text("{")
    assert len(drawn_anew(folder, again, monkeypatch)) > len(anew)


def test_what_is_drawn_is_told_apart_by_all_that_draws_it(monkeypatch: pytest.MonkeyPatch) -> None:
    digested: list[Path] = []
    monkeypatch.setattr(earlier_drawings, "source_sha256", lambda code: str(digested.append(code)))
    earlier_drawings._painters.__wrapped__()
    loaded = [sys.modules[name] for name in sys.modules if name.startswith("sltt_bench.report.plots.")]
    used = [
        Path(str(sys.modules[value.__module__].__file__))
        for module in loaded
        for value in vars(module).values()
        if getattr(value, "__module__", "").startswith("sltt_bench.") and callable(value)
    ]
    assert len(loaded) > 5
    assert [file for file in used if not any(folder in file.parents for folder in digested)] == []


@pytest.mark.parametrize("width", [80, 200])
def test_no_cell_of_a_table_is_cut_off_in_a_narrow_terminal(tmp_path: Path, width: int) -> None:
    folder = make_results(tmp_path)
    console = Console(record=True, width=width)
    print_run([folder / "digits" / "run"], console=console)
    text = console.export_text()
    assert "…" not in text
    assert "sltt-k2" in text


def wide_table(rows: int, columns: int, alike: int = 0) -> Table:
    """Of the columns, `alike` are the same in all rows."""
    headings = tuple(Heading(f"column {number}") for number in range(columns))
    cells = tuple(
        tuple(TableCell(f"0.99{0 if 0 < c <= alike else row}", "± 0.0007") for c in range(columns))
        for row in range(rows)
    )
    return Table("wide", "Wide", headings, cells, ())


@pytest.mark.parametrize(
    ("table", "headings_in_a_line"),
    [
        (wide_table(6, 3), 3),  # as it is
        (wide_table(16, 8, alike=6), 2),  # without the columns that are the same in all rows
        (wide_table(6, 8), 1),  # turned on its side
        (wide_table(16, 8), 1),  # records
    ],
)
def test_a_table_takes_the_first_form_that_fits_80_columns_and_folds_no_number(
    table: Table, headings_in_a_line: int
) -> None:
    console = Console(record=True, width=80)
    print_table(table, console)
    text = console.export_text()
    lines = text.partition("In all rows")[0].splitlines()
    assert max(line.count("column ") for line in lines) == headings_in_a_line
    assert max(map(len, text.splitlines())) <= 80
    for row in table.rows:
        for cell in row:
            assert cell.text in text


def test_a_figure_that_is_the_same_in_all_rows_stays_beside_ratios_that_are_not() -> None:
    names = (
        "method",
        "seeds",
        "warm epoch of some length",
        "÷ bptt",
        "allocated (CUDA)",
        "÷ bptt",
        "Pareto front",
    )
    headings = tuple(Heading(name, numeric=name != "method") for name in names)
    rows = (
        ("bptt", "1", "74.6", "1", "739", "1", "on the front"),
        ("sltt", "1", "91.6", "1.23×", "739", "1.00×", "dominated"),
    )  # fmt: skip
    table = Table("t", "t", headings, tuple(tuple(TableCell(cell) for cell in row) for row in rows))
    console = Console(record=True, width=60)
    print_table(table, console)
    text = " ".join(console.export_text().split())
    assert "In all rows: seeds 1." in text
    assert text.count("739") == 2


def test_a_figure_that_is_the_same_in_all_rows_keeps_its_unit() -> None:
    headings = [
        Heading("method", numeric=False),
        *(Heading(f"a rather long heading {n}", "KiB") for n in range(6)),
    ]
    rows = [[TableCell(method), *(TableCell("84.7", "± 0") for _ in range(6))] for method in ("bptt", "sltt")]
    console = Console(record=True, width=80)
    print_table(Table("t", "t", tuple(headings), tuple(map(tuple, rows))), console)
    assert " ".join(console.export_text().split()).count("84.7 ± 0 KiB") == 6


def test_in_a_narrow_terminal_a_unit_stands_with_its_figure_and_not_with_the_count_of_pairs() -> None:
    """ "−4.00 [−16.71, +8.71] n = 2 points" named two points, "oom s" a time."""
    headings = (
        Heading("method", numeric=False), Heading("warm epoch", "s"), Heading("− bptt", "points"),
        *(Heading(f"a rather long heading {n}") for n in range(6)),
    )  # fmt: skip
    rest = tuple(TableCell(str(n)) for n in range(6))
    rows = (
        (TableCell("sltt"), TableCell("1.50", "± 0.10"), TableCell("−4.00", "[−16.71, +8.71] n = 2"), *rest),
        (TableCell("bptt"), TableCell("oom", tone="bad"), TableCell("not comparable"), *reversed(rest)),
    )
    console = Console(record=True, width=44)
    print_table(Table("t", "t", headings, rows), console)
    lines = [line.strip() for line in console.export_text().splitlines()]
    for line in (
        "warm epoch: 1.50 ± 0.10 s", "− bptt: −4.00 points [−16.71, +8.71] n = 2", "warm epoch: oom", "− bptt: not comparable",
    ):  # fmt: skip
        assert line in lines


def make_sweep(folder: Path) -> Path:
    """bptt and sltt at T = 2, 3 and 4, each at the recipe's time constant and at 2.0."""
    run = HandmadeRun(folder / "run", recipe=RECIPE)
    for timesteps in (2, 3, 4):
        for tau in ({}, {"neuron.tau": 2.0}):
            fields = {key.replace(".", "__"): value for key, value in tau.items()}
            recipe = varied(RECIPE, timesteps=timesteps, **fields)
            for method in ("bptt", "sltt"):
                run.cell(
                    method, recipe=recipe, overrides={"timesteps": timesteps, **tau}, peak_tensor_bytes=MIB
                )
    return folder


OTHERS_OF_THE_SWEEP = (
    "T = 3, neuron.tau = 1.1; T = 4, neuron.tau = 1.1; T = 2, neuron.tau = 2.0; T = 3, neuron.tau = 2.0; "
    "T = 4, neuron.tau = 2.0."
)


def test_the_answer_of_a_sweep_names_its_group_and_the_others(tmp_path: Path) -> None:
    console = Console(record=True, width=300)
    report(
        make_sweep(tmp_path / "results"), tmp_path / "out", "terminal", "markdown", "html", console=console
    )
    title = "T = 2, batch 64, at the recipe's learning rate, neuron.tau = 1.1"
    note = f"The report also has 5 other groups of digits (in a terminal: --full): {OTHERS_OF_THE_SWEEP}"
    page = html_text.unescape((tmp_path / "out" / "report.html").read_text())
    for text in (console.export_text(), (tmp_path / "out" / "report.md").read_text().replace("\\", ""), page):
        assert title in text
        assert note in text


def test_the_answer_of_a_single_group_names_what_was_set_and_no_others(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "results" / "run")
    for method in ("bptt", "sltt"):
        recipe = varied(RECIPE, neuron__tau=2.0)
        run.cell(method, recipe=recipe, overrides={"neuron.tau": 2.0}, peak_tensor_bytes=MIB)
    console = Console(record=True, width=300)
    report(tmp_path / "results", tmp_path / "out", "terminal", console=console)
    text = console.export_text()
    assert "at the recipe's learning rate, neuron.tau = 2.0" in text
    assert "other group" not in text


def test_the_answer_is_a_recipes_own_group_whatever_other_settings_would_show(tmp_path: Path) -> None:
    """As noise that is switched off: there a method that learns nothing of the recipe's own task is as good as any."""
    run, console = HandmadeRun(tmp_path / "results" / "run"), Console(record=True, width=300)
    for method, top1 in (("bptt", 0.75), ("sltt", 0.11)):
        run.cell(method, top1=(0.1, 0.1, top1), peak_tensor_bytes=MIB)
        easy = varied(RECIPE, data__noise=0.0)
        run.cell(method, recipe=easy, overrides={"data.noise": 0.0}, peak_tensor_bytes=MIB)
    report(tmp_path / "results", tmp_path / "out", "terminal", console=console)
    text = console.export_text()
    assert "−64.00 n = 1" in text
    assert "1 other group of digits (in a terminal: --full): data.noise = 0.0." in text
    other = HandmadeRun(tmp_path / "results" / "other", varied(RECIPE, name="vowels"), number=90)
    for method in ("bptt", "sltt"):
        other.cell(method, peak_tensor_bytes=MIB)
    console = Console(record=True, width=300)
    report(tmp_path / "results", tmp_path / "out", "terminal", console=console)
    assert "vowels: Example CPU" in console.export_text(), (
        "a recipe of which every method learned something is first"
    )


def test_the_closing_tables_of_a_sweep_name_what_they_leave_folded(tmp_path: Path) -> None:
    console = Console(record=True, width=300)
    print_run([make_sweep(tmp_path) / "run"], console=console)
    text = console.export_text()
    assert "T = 2, neuron.tau = 1.1" in text
    assert f"Not shown here: 5 sections: {OTHERS_OF_THE_SWEEP}" in text
    assert "sltt-bench report --full" in text


def test_the_closing_table_of_a_run_shows_accuracy_time_and_memory_with_ratios(tmp_path: Path) -> None:
    folder = make_results(tmp_path)
    console = Console(record=True, width=160)
    print_run([folder / "digits" / "run", folder / "digits" / "gpu"], console=console)
    text = console.export_text()
    for figure in ("91.00 ± 1.00", "0.51×", "25.0 ± 0", "0.25×", "100 MiB", "oom", "CUDA out of memory"):
        assert figure in text


# Markdown and LaTeX -----------------------------------------------------------------------------------


def test_markdown_tables_are_whole_and_escaped(out: Path) -> None:
    text = (out / "report.md").read_text()
    tables = re.findall(r"(?:^\|.*\|$\n?)+", text, re.MULTILINE)
    assert len(tables) >= 4
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.strip().splitlines()}) == 1
    assert "CUDA out of memory: \\<tried\\> 2 GiB" in text
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert pictures
    assert all((out / picture).is_file() for picture in pictures)


@pytest.mark.parametrize(
    ("plain", "written"),
    [
        ("50 % & $x_1$ #{}", r"50 \% \& \$x\_1\$ \#\{\}"),
        ("0.5× ± −1 ÷ ≤", r"0.5$\times$ $\pm$ $-$1 $\div$ $\leq$"),
        ("<a> | b", r"\textless{}a\textgreater{} \textbar{} b"),
        ("run --set x-1 ---", r"run -{}-set x-1 -{}-{}-"),
    ],
)
def test_latex_escapes_what_is_special(plain: str, written: str) -> None:
    from sltt_bench.report.render.latex import escape

    assert escape(plain) == written


def test_a_row_of_latex_begins_with_no_bracket_and_no_star() -> None:
    """After the end of a row they are an option of it: LaTeX stopped for want of a number, or swallowed the star."""
    rows = tuple((TableCell(name), TableCell("1")) for name in ("[mine]", "*mine", "plain"))
    text = latex.table(Table("t", "t", (Heading("method", numeric=False), Heading("n")), rows), "")
    begins = [line.split(" & ")[0].strip() for line in text.splitlines() if line.endswith("& 1 \\\\")]
    assert begins == ["{}[mine]", "{}*mine", "plain"]


NAMES_LIKE_MARKDOWN = (
    "~~a~~", "&amp; &#35; a&b", "[link](http://x)", "![i](j)", "$a$ and $b$", "# a", "1. one", "- dash", "+ plus", "a|b", "a\\|b",
    "`code`", "<b>x</b>", "_x_ *y* **z**", "a\\",
)  # fmt: skip


def test_markdown_shows_a_name_as_it_is_written_in_tables_and_below_them() -> None:
    rows = tuple((TableCell(name), TableCell("1", "[0, 1]")) for name in NAMES_LIKE_MARKDOWN)
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    for name in NAMES_LIKE_MARKDOWN:
        made = Table(
            "t", "t", (Heading("method", numeric=False), Heading("a|b")), rows, (f"{name} is a name",)
        )
        page = parser.render(markdown.table(made))
        first = [html_text.unescape(cell) for cell in re.findall(r"<tr>\n<td>(.*?)</td>", page)]
        assert first == list(NAMES_LIKE_MARKDOWN)
        assert html_text.unescape(page[page.index("</table>") :]) == f"</table>\n<p>{name} is a name</p>\n"


@pytest.mark.parametrize("text", ["a|b", "`a", "a``b|", "plain", "a\nb"])
def test_code_of_markdown_is_whole_in_a_table_and_outside(text: str) -> None:
    parser = MarkdownIt("commonmark").enable("table")
    shown = f"<code>{text.replace(chr(10), ' ')}</code>"
    assert shown in parser.render(markdown._code(text))
    assert shown in parser.render(f"| h |\n| --- |\n| {markdown._code(text, in_table=True)} |")


def test_latex_tables_have_as_many_cells_as_columns(tmp_path: Path) -> None:
    report(make_results(tmp_path / "results"), tmp_path / "out", "latex")
    for path in (tmp_path / "out" / "latex").glob("*.tex"):
        text = path.read_text()
        match = re.search(r"begin\{tabular\}\{([lr]+)\}", text)
        assert match
        rows = [line for line in text.splitlines() if line.endswith(r"\\")]
        assert {line.count(" & ") + 1 for line in rows} == {len(match[1])}
        unescaped = re.sub(r"\\.", "", text)
        assert unescaped.count("{") == unescaped.count("}")
        for environment in ("table", "tabular"):
            assert text.count(rf"\begin{{{environment}}}") == text.count(rf"\end{{{environment}}}") > 0


def everything_as_latex(folder: Path) -> list[Path]:
    """Tables of every kind: measured, failed, estimated, smoke runs, beside baselines."""
    results = make_results(folder / "results", CLAIM)
    HandmadeRun(folder / "results" / "est", number=90).estimate("bptt", 1000, smoke=False)
    HandmadeRun(folder / "results" / "smoke", number=95).cell("bptt", cell={"smoke": True})
    bench_run(folder / "results" / "bench", {"target": 0.5, "remark": "100 % of x_1 & {y}: ~^\\"})
    return sorted(path for path in report(results, folder / "out", "latex").files if path.suffix == ".tex")


def test_latex_is_plain_ascii_so_that_every_engine_reads_it(tmp_path: Path) -> None:
    files = everything_as_latex(tmp_path)
    assert len(files) >= 8
    for path in files:
        assert path.read_text().isascii(), path.name


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="LaTeX is not installed")
def test_latex_compiles_and_no_table_is_wider_than_the_text(tmp_path: Path) -> None:
    inputs = "\n".join(rf"\input{{{path.name}}}\clearpage" for path in everything_as_latex(tmp_path))
    place = tmp_path / "out" / "latex"
    packages = r"\usepackage{booktabs,graphicx}"
    (place / "all.tex").write_text(
        rf"\documentclass{{article}}{packages}\begin{{document}}{inputs}\end{{document}}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout


# The page ------------------------------------------------------------------------------------------------


class _Checker(HTMLParser):
    """Collects what a self-contained page must not have, and whether tags nest."""

    VOID = frozenset({"meta", "link", "br", "img", "input", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and not (value or "").startswith(("#", "data:")):
                self.outside.append(f"{tag} {name}={value}")
            if name == "id":
                self.ids.append(str(value))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag == "p" and self.open[-1] != "p":
            return
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("page")
    report(make_results(top / "results", CLAIM), top / "out", "html", "csv")
    return top / "out" / "report.html"


def test_the_page_needs_no_network_and_is_well_formed(page: Path) -> None:
    checker = _Checker()
    checker.feed(page.read_text())
    linked = {name.split("=", 1)[1] for name in checker.outside}
    assert all((page.parent / name).is_file() for name in linked)  # its own files alone
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids))
    assert "@import" not in page.read_text()
    assert "url(http" not in page.read_text()


def test_what_comes_from_results_is_escaped_on_the_page(page: Path) -> None:
    text = page.read_text() + (page.parent / "page-digits.html").read_text()
    assert "less than &lt;a third&gt; &amp; more" in text
    assert "&lt;tried&gt;" in text
    assert "<tried>" not in text


def test_figures_follow_the_theme_and_keep_their_ids_apart() -> None:
    svg = (
        '<?xml version="1.0"?>\n<!DOCTYPE svg>\n<svg width="100pt" height="50pt" viewBox="0 0 100 50">'
        '<metadata>x</metadata><g id="a"><use xlink:href="#m" style="fill: #1c2126; clip-path: url(#c)"/>'
        "<text style=\"font: 7px 'DejaVu Sans', sans-serif\">t</text></g></svg>"
    )
    assert inline_svg(svg, "p", "A & B") == (
        '<svg role="img" aria-label="A &amp; B" viewBox="0 0 100 50"><g id="p-a"><use xlink:href="#p-m" '
        'style="fill: var(--ink); clip-path: url(#p-c)"/><text style="font: 7px var(--sans)">t</text></g></svg>'
    )


def test_the_gauge_shows_where_the_claim_holds(tmp_path: Path) -> None:
    verdict, without_room = report(make_results(tmp_path / "r", CLAIM), tmp_path / "o", "csv").verdicts
    assert gauge(without_room) is None
    scale = gauge(verdict)
    assert scale is not None
    # 0 to 0.3 plus a quarter: 0.375 is the right end.
    assert (scale["zone_left"], scale["zone_width"], scale["limit"]) == (0.0, 80.0, 80.0)
    assert scale["value"] == pytest.approx(66.67)


PROBE = """
const table = page.querySelector("table.sortable"), column = 4;
const first = () => [...table.tBodies[0].rows].map((row) => row.cells[0].innerText.trim());
const head = table.tHead.rows[0].cells[column];
const orders = [first()];
for (let i = 0; i < 2; i++) { head.querySelector("button").click(); orders.push(first()); }
const light = getComputedStyle(page.body).backgroundColor;
page.getElementById("theme").click();
const outside = [...page.querySelectorAll("main *")].filter((part) => !part.closest(".scroll, .drawing, svg")
  && part.getBoundingClientRect().right > frame.clientWidth + 1).map((part) => part.className || part.tagName);
return {
  heading: head.innerText.trim(), orders, sort: head.getAttribute("aria-sort"),
  width: page.documentElement.scrollWidth, outside,
  themes: light !== getComputedStyle(page.body).backgroundColor,
};
"""


@needs_chromium
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_the_page_fits_sorts_and_has_no_errors(page: Path, tmp_path: Path, width: int) -> None:
    seen, complaints = measured(page.read_text(), width, tmp_path, PROBE)
    assert complaints == ""
    assert seen["width"] <= width
    assert seen["outside"] == []
    assert seen["themes"]
    assert seen["heading"].startswith("warm epoch")
    assert seen["orders"] == [
        ["bptt", "sltt", "sltt-k2"],
        ["sltt-k2", "sltt", "bptt"],
        ["bptt", "sltt", "sltt-k2"],
    ]
    assert seen["sort"] == "descending"
