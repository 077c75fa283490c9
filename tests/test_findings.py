"""docs/findings.md and README say what the committed results of the studies say."""

import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))

import findings  # noqa: E402


@pytest.fixture(scope="module")
def numbers() -> pd.DataFrame:
    return findings.found()[1]


def test_the_page_is_what_its_command_makes_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
    assert page == findings.page(), "python docs/findings.py > docs/findings.md"


def test_every_study_with_results_has_its_figure(numbers: pd.DataFrame) -> None:
    for name in numbers["study"].unique():
        figure = ROOT / "docs" / "figures" / f"study-{name.partition('/')[2]}.png"
        assert figure.is_file(), "python docs/findings.py --figures"
