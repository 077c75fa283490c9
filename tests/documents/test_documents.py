"""Documents that are made from the code, or that name parts of it, say what the code says."""

import re
import runpy
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT
from mkdocs.commands.build import build
from mkdocs.config import load_config

from sltt_bench.methods import Promises
from sltt_bench.results.describe import describe
from sltt_bench.unroll import Unroll


def test_the_documented_format_is_the_schema() -> None:
    assert (ROOT / "results" / "README.md").read_text(encoding="utf-8") == describe()


DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "results" / "README.md",
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading_that_exist(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        name, _, heading = target.partition("#")
        path = document.parent / name if name else document
        assert path.exists(), target
        assert not heading or heading in anchors(path), target


def anchors(path: Path) -> set[str]:
    """What the headings of a Markdown file are linked by."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_the_architecture_page_names_files_that_exist_and_every_part_of_the_package() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    names = {
        name for name in re.findall(r"`([\w./-]+(?:\.\w+|/))`", text) if not name.startswith("sltt_bench.")
    }
    assert len(names) > 40
    for name in names:
        assert (ROOT / "sltt_bench" / name).exists() or (ROOT / name).exists(), name
    folders = {path.parent.name for path in (ROOT / "sltt_bench").glob("*/__init__.py")}
    assert {folder for folder in folders if f"`{folder}/" not in text} <= {"analysis", "bench"}


def test_the_page_on_own_methods_names_every_call_and_every_promise() -> None:
    page = (ROOT / "docs" / "own-method.md").read_text(encoding="utf-8")
    named = {name for code in re.findall(r"`([^`\n]+)`", page) for name in re.findall(r"\w+", code)}
    calls = {name for name in vars(Unroll) if not name.startswith("_")}
    promises = {field.name for field in fields(Promises)}
    assert calls | promises <= named, sorted((calls | promises) - named)


def test_the_picture_names_the_files_of_the_page_and_is_what_its_command_draws() -> None:
    boxes = runpy.run_path(str(ROOT / "docs" / "architecture.py"))["BOXES"]
    drawn = (ROOT / "docs" / "figures" / "architecture.svg").read_text(encoding="utf-8")
    for *_, title, files in boxes.values():
        assert title in drawn, "python docs/architecture.py"
        for name in re.findall(r"[\w./]+(?:\.py|/)", files):
            assert name in drawn, "python docs/architecture.py"
            assert (ROOT / "sltt_bench" / name).exists() or (ROOT / name).exists(), name


@pytest.fixture(scope="module")
def pictures() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "pictures.py"))


def test_every_picture_is_shown_and_is_a_figure_of_the_report(pictures: dict[str, Any]) -> None:
    text = "".join(document.read_text(encoding="utf-8") for document in DOCUMENTS)
    for picture in (ROOT / "docs" / "figures").iterdir():
        assert f"figures/{picture.name})" in text, f"no document shows {picture.name}"
        made_by_others = ("study-", "profile-", "architecture.")
        assert picture.name in pictures["PICTURES"] or picture.name.startswith(made_by_others), picture.name
    for recipe, name in pictures["PICTURES"].values():
        assert name in pictures["figures"](recipe), "docs/pictures.py"


def test_the_picture_of_digits_is_of_the_runs_in_the_table_above_it(pictures: dict[str, Any]) -> None:
    recipe, name = pictures["PICTURES"]["digits-methods.png"]
    _, time = pictures["figures"](recipe)[name].content()
    shown = {bar.label: bar.text.partition("(")[2].rstrip("×)") for bar in time.bars}
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for method in ("sltt", "sltt-k2"):
        row = re.search(rf"\| {method} \|[^|]*\| ([\d.]+) \[", results)
        assert row
        assert shown[method] == row[1]


def test_the_site_builds_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True)
    build(config)
    recipes = (tmp_path / "recipes" / "index.html").read_text(encoding="utf-8")
    assert "Learning rate of the first epoch." in recipes
    assert "--skip-oversize" in (tmp_path / "command-line" / "index.html").read_text(encoding="utf-8")
    assert "a[t] = λ a[t−1] + x[t]" in (tmp_path / "equations" / "index.html").read_text(encoding="utf-8")
    assert "peak_tensor_bytes" in (tmp_path / "format" / "index.html").read_text(encoding="utf-8")
    assert 'src="figures/digits-methods.png"' in (tmp_path / "index.html").read_text(encoding="utf-8")
