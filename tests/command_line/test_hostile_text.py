"""The tool's own text as markup, and terminals that can show little: printed as it is, everywhere."""

import io
import json
import os
import sys
import xml.etree.ElementTree as ET
from functools import partial
from pathlib import Path

import pytest
from result_builder import MIB, RECIPE, HandmadeRun, varied
from started_runs import ARGUMENTS, start
from thinned import thinned
from typer.testing import CliRunner

from sltt_bench.command_line import cli
from sltt_bench.common.printable import make_console, printable
from sltt_bench.report.grouping import make_groups
from sltt_bench.report.plots import style
from sltt_bench.report.sections.estimates.families import estimate_rows
from sltt_bench.results.reader import read_results
from sltt_bench.results.schema import CELLS_FILE

NAMES = {
    "brackets": "a[b]c",
    "markup": "[/dim]x[bold]",
    "dollars": "a$b$c_{x",
    "one dollar": "a$b",
    "an escape": "a\x1b[31mb",
    "non-Latin letters": "数字-γ",
    "LaTeX": r"a\b{c}%&#~^_",
    "HTML": "<script>alert(1)</script>&amp;",
    "Markdown": "a|b*c*_d_",
    "an emoji's name": "x:smile:",
    "right to left": "a\u202eb",
    "80 characters": "n" * 80,
}


FIGURES = {"HTML": ",html", "dollars": ",svg", "an escape": ",svg", "right to left": ",html"}
"""What takes longest is made of names that could do harm in it; of the others the tables."""


def hostile_run(folder: Path, name: str) -> Path:
    run = HandmadeRun(folder)
    for method in ("bptt", name):
        for seed in (0, 1):
            run.cell(
                method, seed, train_s=[5.0, 2.0], top1=[0.2, 0.5], peak_tensor_bytes=4 * MIB,
                recipe=varied(RECIPE, name=name, description=name),
            )  # fmt: skip
    return run.path


@pytest.mark.parametrize("case", NAMES)
def test_a_name_is_printed_as_it_is_in_every_format(case: str, tmp_path: Path) -> None:
    name = NAMES[case]
    folder = hostile_run(tmp_path / name.replace("/", "-") / "r", name)
    formats = "terminal,csv,markdown,latex" + FIGURES.get(case, "")
    result = CliRunner().invoke(
        cli.app,
        ["report", str(folder), "--out", str(tmp_path / "out"), "--format", formats],
        env={"COLUMNS": "120"},
    )
    assert result.exit_code == 0, result.exception
    shown = printable(name)
    assert shown in result.output
    files = {path.name: path for path in (tmp_path / "out").rglob("*.*")}
    assert shown in files["summary.csv"].read_text()
    for path in files.values():
        assert "\x1b" not in path.read_text()
        assert "\u202e" not in path.read_text()
        if path.suffix == ".html":
            assert "<script>alert" not in path.read_text()
        if path.suffix == ".svg":
            words = [element.text for element in ET.parse(path).iter() if element.text]
            drawn_words = "".join("".join(words).split())  # long ones go on in the next line
            assert "".join(shown.split()) in drawn_words, "drawn letter by letter as it is"
    (table, *_) = (path.read_text() for path in files.values() if path.suffix == ".tex")
    for letter in "$%#&_{}":
        assert table.count("\\" + letter) >= shown.count(letter)


def run_with_override(folder: Path, text: str) -> Path:
    run = HandmadeRun(folder / "r")
    for method in ("bptt", "sltt"):
        run.cell(method, train_s=[5.0, 2.0], overrides={"model.name": text})
        run.estimate(method, 4.0, overrides={"model.name": text})
    return run.path


@pytest.mark.parametrize("letter", ["\x7f", "\x85", "\u2028"])
def test_an_override_is_read_as_it_was_set_also_where_json_has_its_letters_as_they_are(
    letter: str, tmp_path: Path
) -> None:
    path = run_with_override(tmp_path, f"a{letter}b")
    cells = (path / CELLS_FILE).read_text()
    (path / CELLS_FILE).write_text(cells.replace(json.dumps(letter)[1:-1], letter))
    results = read_results([path])
    (group,) = make_groups(results)
    assert group.overrides == {"model.name": f"a{letter}b"}
    assert [dict(row) for row in estimate_rows(results)["overrides"]] == [group.overrides] * 2


def test_line_ends_in_an_override_end_no_line_of_a_report(tmp_path: Path) -> None:
    path, out = run_with_override(tmp_path, "a \n\n- b"), tmp_path / "out"
    command = ["report", str(path), "--out", str(out), "--format", "markdown,latex"]
    outcome = CliRunner().invoke(cli.app, command)
    assert outcome.exit_code == 0, outcome.exception
    headings = [line for line in (out / "report.md").read_text().splitlines() if line.startswith("#")]
    assert any("model.name = a - b" in heading for heading in headings), headings
    assert all("\n\n" not in file.read_text() for file in out.rglob("*.tex"))


@pytest.mark.parametrize("case", NAMES)
def test_folders_and_arguments_are_printed_as_they_are(case: str, tmp_path: Path) -> None:
    name = NAMES[case].replace("/", "-")
    for arguments, code in (
        (["report", str(tmp_path / name)], 2),
        (["show", name], 2),
        (["run", "digits", "--method", name], 2),
        (["run", "digits", "--dry-run", "--set", f"description='{name}'"], 2 if "\x1b" in name else 0),
        (["run", "digits", "--set", f"{name}=1"], 2),
        (["list", name], 2),
        (["compare", str(tmp_path / name), str(tmp_path)], 2),
    ):
        result = CliRunner().invoke(cli.app, arguments)
        assert result.exit_code == code, (arguments, result.exception)
        assert "\x1b" not in result.output
        assert "Traceback" not in result.output


def test_a_plot_cuts_long_names_at_its_axes_and_in_its_legend_which_fits_its_width() -> None:
    name = "a-rule-whose-name-" + "x" * 50 + "-fills-a-line"
    figure, panels = style.panels("column", 2, 1.5)
    axes = panels[0]
    for number in range(3):
        axes.plot([0, 1], [number, 1], label=f"{number}{name}")
    axes.set_yticks([0, 1], labels=["bptt", name])
    style.legend_below(figure, panels, "column")
    drawing = style.files(figure, ("svg",))["svg"].decode()
    assert name not in drawing
    assert drawing.count("a-rule-whose-name") >= 4
    (legend,) = figure.legends
    assert legend.get_window_extent().width <= figure.bbox.width


def test_a_console_prints_names_and_not_what_they_could_mean() -> None:
    stream = io.StringIO()
    make_console(file=stream, width=80).print("x:smile: a\x1b[2Jb c\rd e\u202ef")
    assert stream.getvalue() == "x:smile: a\\x1b[2Jb c\\rd e\\u202ef\n"


ASCII_COMMANDS = {
    "--help": "Usage",
    "list": "sltt-kN",
    "list recipes": "digits",
    "show digits": "handwritten",
    "run digits --dry-run": "digits: 3 cells",
    "run digits --method sltt-k9": "1 <= N <= T",
    "run digit": "did you mean",
    "report RESULTS --format terminal": "bptt",
    "report nowhere": "no such folder",
    "compare RESULTS RESULTS": "",
    "data verify digits": "",
}


@pytest.mark.parametrize(
    ("encoding", "columns", "command"),
    [
        *(("ascii", "40", command) for command in ASCII_COMMANDS),
        *thinned([("cp1252", "20", command) for command in ASCII_COMMANDS], keep=3),
    ],
)
def test_a_terminal_without_the_letters_gets_others(
    encoding: str, columns: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "RESULTS" in command:
        hostile_run(tmp_path / "r", "γ-→")
    written = io.BytesIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(written, encoding=encoding, write_through=True))
    monkeypatch.setattr(sys, "argv", ["sltt-bench", *command.replace("RESULTS", str(tmp_path)).split()])
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "dumb")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    output = written.getvalue().decode(encoding)
    assert ended.value.code in (0, 2), output
    assert "Traceback" not in output
    if encoding == "ascii":
        assert ASCII_COMMANDS[command] in " ".join(output.split())


def on_the_poorest_of_terminals(printed: Path) -> None:
    """No home, no letters, no colours, 40 columns; what is printed goes into a folder."""
    for name in ("HOME", "LANG"):
        os.environ.pop(name, None)
    os.environ.update(LC_ALL="C", TERM="dumb", COLUMNS="40")
    for number, name in enumerate(("stdout", "stderr"), start=1):
        stream = (printed / name).open("w", encoding="ascii")
        os.dup2(stream.fileno(), number)
        setattr(sys, name, stream)


def test_a_run_on_the_poorest_of_terminals(tmp_path: Path) -> None:
    """Into a folder that looks like markup."""
    out = tmp_path / "results [/dim] $x$ γ"
    begin = partial(on_the_poorest_of_terminals, tmp_path)
    process = start(*ARGUMENTS, "--method", "sltt", "--out", str(out), begin=begin, silent=False)
    process.join()
    assert process.exitcode == 0
    assert (tmp_path / "stderr").read_text() == ""
    assert "results [/dim] $x$ ?" in (tmp_path / "stdout").read_text(encoding="ascii")
    assert len(list(out.glob("digits/*/cells.csv"))) == 1
