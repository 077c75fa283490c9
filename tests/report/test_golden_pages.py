"""Golden pages: a made set of results as Markdown, HTML and in a terminal, word for word as committed.

A change of the report shows in the diff of `tests/report/golden/`, where it is read before it is committed:
`PYTHONPATH=.:tests python tests/report/test_golden_pages.py` writes the pages anew.
"""

import io
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from result_builder import MIB, RECIPE, HandmadeRun, varied
from rich.console import Console

from sltt_bench.report import SECTIONS, _load
from sltt_bench.report.assemble import assemble
from sltt_bench.report.document import Context, Report
from sltt_bench.report.render import html, markdown
from sltt_bench.report.render.files import figures_of
from sltt_bench.report.render.terminal import print_report
from sltt_bench.results.reader import read_results

GOLDEN = Path(__file__).parent / "golden"

CLAIM: dict[str, Any] = {
    "metric": "peak_memory", "method": "sltt", "baseline": "bptt", "relation": "at_most_ratio", "threshold": 0.3,
    "when": {}, "says": "more than 70 % less memory", "source": "Meng et al. 2023, abstract",
}  # fmt: skip
CLAIMS = [
    CLAIM,
    {**CLAIM, "metric": "warm_epoch_time", "method": "sltt-k2", "threshold": 0.5, "says": "half the time"},
    {**CLAIM, "metric": "test_top1", "relation": "within_points", "threshold": 2.0, "says": "as accurate",
     "source": "expectation of this project"},
    {**CLAIM, "metric": "compute", "threshold": 1.0, "says": "no more multiplications"},
]  # fmt: skip
SECONDS = {"bptt": (4.0, 4.4, 4.1), "sltt": (3.9, 4.5, 4.2), "sltt-k2": (1.9, 2.4, 2.2)}
TOP1 = {"bptt": (0.90, 0.91, 0.92), "sltt": (0.90, 0.92, 0.91), "sltt-k2": (0.85, 0.88, 0.86)}
PEAKS = {"bptt": 100 * MIB, "sltt": 25 * MIB, "sltt-k2": 25 * MIB}


def made_results(folder: Path) -> None:
    """Three methods and seeds on a CPU, the last seed of sltt-k2 killed; on a GPU bptt finds no memory."""
    recipe = varied(RECIPE, claims=CLAIMS, data__train_samples=1000, data__test_samples=1000)
    cpu = HandmadeRun(folder / "digits" / "cpu", recipe=recipe)
    for method, seconds in SECONDS.items():
        for seed, epoch_s in enumerate(seconds):
            if (method, seed) == ("sltt-k2", 2):
                cpu.cell(method, seed, status="killed", reason="ended by signal 9")
                continue
            cpu.cell(
                method, seed, train_s=[9.0, epoch_s, epoch_s], top1=[0.5, 0.8, TOP1[method][seed]],
                peak_tensor_bytes=PEAKS[method], backward_passes=2 if method == "sltt-k2" else 6,
                cell={"footprint_bytes": 3 * MIB, "activation_sparsity": 0.875, "effective_acs": 2e6 + 1e5 * seed,
                      "estimated_energy_45nm_pj": 1.8e6 + 9e4 * seed},
            )  # fmt: skip
    gpu = HandmadeRun(
        folder / "digits" / "gpu", recipe=recipe, device="cuda:0", device_name="Example GPU", number=50
    )
    gpu.cell("bptt", 0, status="oom", reason="CUDA out of memory: tried to allocate 2 GiB")
    gpu.cell(
        "sltt", 0, peak_allocated_bytes=30 * MIB, peak_tensor_bytes=25 * MIB, allocated_at_reset_bytes=8 * MIB
    )


def report_of(folder: Path) -> Report:
    context = Context(read_results([folder]), "bptt")
    return assemble(context, {"run": _load(SECTIONS["run"])})[0]


def pages(folder: Path) -> Mapping[str, str]:
    """File name → page. Pictures are left out, and so are the style and the script of HTML."""
    made_results(folder)
    report = report_of(folder)
    drawings = {figure.name: "<svg></svg>" for figure in figures_of(report)}
    shown = {"report.md": markdown.render(report, {})}
    for name, page in html.render(
        report, drawings, {}, [], {report.key_blocks[0].name: "<svg></svg>"}
    ).items():
        page = re.sub(r"(<(style|script)\b[^>]*>).*?(</\2>)", r"\1\3", page, flags=re.DOTALL)
        shown[name] = re.sub(r"\n\s*\n+", "\n", page)
    for width in (80, 60):
        stream = io.StringIO()
        print_report(report, Console(file=stream, width=width, color_system=None), full=True)
        shown[f"terminal-{width}.txt"] = stream.getvalue()
    return {
        name: "\n".join(line.rstrip() for line in page.replace(str(folder), "RESULTS").splitlines()) + "\n"
        for name, page in shown.items()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    return pages(tmp_path_factory.mktemp("golden"))


def test_the_pages_of_a_made_set_of_results_are_the_golden_ones(made: Mapping[str, str]) -> None:
    golden = {path.name: path.read_text(encoding="utf-8") for path in GOLDEN.iterdir()}
    assert sorted(made) == sorted(golden)
    for name, page in made.items():
        assert page == golden[name], f"{name}: see the first lines of {Path(__file__).name}"


@pytest.mark.parametrize("width", [80, 60])
def test_a_terminal_folds_nothing_inside_a_word_or_a_number(made: Mapping[str, str], width: int) -> None:
    """Every word and number of the Markdown tables stands whole in the narrow terminal's text."""
    text = made[f"terminal-{width}.txt"]
    assert max(map(len, text.splitlines())) <= width
    cards_in_a_terminal = r"^## Verdicts$.*?(?=^## )"
    tables = re.sub(cards_in_a_terminal, "", made["report.md"], flags=re.MULTILINE | re.DOTALL)
    for row in re.findall(r"^\|(.*)\|$", tables, re.MULTILINE):
        for number in re.findall(r"(?<!\S)[−+]?\d+\.\d+×?(?!\S)", row):
            assert number in text
    assert "…" not in text


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        for file, content in pages(Path(place)).items():
            (GOLDEN / file).write_text(content, encoding="utf-8")
            print(f"tests/report/golden/{file}")
