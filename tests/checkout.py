"""The folders of the checkout that tests read."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
