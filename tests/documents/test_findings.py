"""docs/findings.md and README say what the committed results of the studies say."""

import json
import sys

import pandas as pd
import pytest
from checkout import ROOT

from sltt_bench.report.document import ClaimCard, Figure, Section, Verdict
from sltt_bench.report.statistics import paired_difference

sys.path.insert(0, str(ROOT / "docs"))

import findings


@pytest.fixture(scope="module")
def numbers() -> pd.DataFrame:
    return findings.answers()[1]


def test_the_page_is_what_its_command_makes_of_the_results() -> None:
    page = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
    assert page == findings.page(), "python docs/findings.py > docs/findings.md"


def test_a_claim_is_one_item_of_the_page_whatever_its_words_and_values_hold() -> None:
    where = ("backend reference", "tuned, 5 trials each")
    found = Verdict(
        "studies/x",
        {},
        "held",
        "x",
        measured="0.27×",
        n=1,
        beside="live tensors: 0.25×, held",
        conditions=where,
    )
    card = ClaimCard("half of it; or less (studies/x, reference)", "this project", (found, found))
    figure = Figure("x", "x", "A caption.", lambda *_: None, lambda: ())  # type: ignore[arg-type, return-value]
    section = Section("x", "studies/x", (figure,), ("Why?", "one sentence", "Limits."), cards=(card,))
    numbers = pd.DataFrame(columns=["panel", "measure"])
    (item,) = (line for line in findings._lines(section, numbers) if line.startswith("- "))
    value = "0.27×, n = 1; live tensors: 0.25×, held, tuned, 5 trials each"
    assert item == f"- half of it; or less (studies/x, reference): held, {value}; {value}"


def test_every_study_with_results_has_its_figure() -> None:
    for results in findings.RESULTS.iterdir():
        figure = ROOT / "docs" / "figures" / f"study-{results.name}.png"
        assert figure.is_file(), "python docs/findings.py --figures"
    for name in findings.OVER_TASKS:
        assert findings.profile(name) is not None
        assert (ROOT / "docs" / "figures" / f"profile-{name.partition('/')[2]}.png").is_file()


def test_the_tasks_on_which_no_tuned_method_is_told_apart_from_bptt_are_images_and_speech() -> None:
    cells = pd.read_csv(ROOT / "results" / "studies" / "modality" / "20261127-031902-5f48" / "cells.csv")
    cells = cells[(cells["kind"] == "run") & (cells["status"] == "ok") & cells["trials"].notna()]
    top1 = cells.set_index("seed").groupby(["overrides", "method"])["last_test_top1"].agg(dict)
    apart: dict[str, set[str]] = {}
    for (overrides, method), values in top1.items():
        difference = paired_difference(values, top1[overrides, "bptt"])
        assert difference is not None
        told = apart.setdefault(json.loads(overrides)["extends"].removeprefix("_"), set())
        told |= {method} if difference.excludes(0) else set()
    assert not apart["digits"] | apart["vowels"]
    assert apart["digits-saccade"] == {"pp-prop", "s-tllr"}
    assert len(apart["sequential-digits"]) == 8
    reading = findings.READINGS["modality"]
    assert "*Images:* no method is told apart from BPTT.\n- *Speech:* none either." in reading


def test_the_readmes_three_findings_are_the_studies(numbers: pd.DataFrame) -> None:
    def mean(study: str, measure: str, line: str | None, at: object) -> float:
        own = numbers[(numbers["study"] == f"studies/{study}") & (numbers["measure"] == measure)]
        own = own[(own["at"] == at) & (own["line"] == line if line is not None else True)]
        return float(own["mean"].iloc[0])

    by_layer = [100 * mean("layers", "test_top1", None, method) for method in ("sltt", "bptt-l3", "bptt")]
    assert [round(value) for value in by_layer] == [41, 58, 63]
    direct = mean("latency", "test_top1", "sltt", 1)
    converted = {t: mean("latency", "test_top1", "conversion", t) for t in (1, 2, 4)}
    assert max(converted[1], converted[2]) < direct <= converted[4]
    tasks = numbers[numbers["study"] == "studies/modality"]["at"].unique()
    assert list(tasks) == ["digits", "digits-saccade", "vowels", "sequential-digits"], (
        "as the study's file has them"
    )
    tuned = [100 * mean("modality", "test_top1", method, "vowels") for method in ("bptt", "rate")]
    cells = pd.read_csv(ROOT / "results" / "studies" / "modality" / "20261127-034829-01d5" / "cells.csv")
    cells = cells[cells["overrides"] == '{"extends": "_vowels"}']
    untuned = [
        100 * cells.loc[cells["method"] == method, "last_test_top1"].mean() for method in ("bptt", "rate")
    ]
    assert (round(untuned[0] - untuned[1], 1), round(tuned[0] - tuned[1], 1)) == (10.5, 1.7)
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    for words in (
        "raises SLTT's 41 % to 58 %; BPTT reaches 63 %",
        "needs four to draw level",
        "is 10.5 points behind BPTT at one learning rate",
        "and 1.7 points behind where each",
    ):
        assert words in readme
