"""Documents that are made from the code, or that name parts of it, say what the code says."""

from pathlib import Path

from sltt_bench.results.describe import describe

ROOT = Path(__file__).parent.parent


def test_the_documented_format_is_the_schema() -> None:
    assert (ROOT / "results" / "README.md").read_text(encoding="utf-8") == describe()
