"""Verdicts: a claim is judged on what it speaks of, on one side of its threshold or on neither."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from result_builder import MIB, RECIPE, HandmadeRun, varied

from sltt_bench.report import SECTIONS, _load
from sltt_bench.report.assemble import assemble
from sltt_bench.report.claims import judge, statement, unfit_when
from sltt_bench.report.document import Context, Verdict, claim_cards
from sltt_bench.report.grouping import make_groups
from sltt_bench.report.groups import in_words
from sltt_bench.report.power import _conditions
from sltt_bench.results.reader import read_results

MEMORY = {
    "metric": "peak_memory", "method": "sltt", "baseline": "bptt", "relation": "at_most_ratio",
    "threshold": 0.3, "when": {}, "says": "70 % less", "source": "a paper",
}  # fmt: skip
TIME = {**MEMORY, "metric": "warm_epoch_time", "threshold": 0.64}
ACCURACY = {**MEMORY, "metric": "test_top1", "relation": "within_points", "threshold": 2.0}


def recipe(*claims: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return varied(RECIPE, claims=list(claims), **changes)


def measure(folder: Path, facts: dict[str, Any], revision: str = "", number: int = 0, **how: Any) -> None:
    """bptt against sltt over three seeds: time 0.546 [0.37, 0.80], memory 0.25, accuracy −1 [−3.48, +1.48]."""
    run = HandmadeRun(folder, git_revision=revision, number=number)
    times = ((2.0, 1.0), (3.0, 1.5), (4.0, 2.6))
    lasts = ((0.90, 0.89), (0.92, 0.92), (0.94, 0.92))
    for seed in range(3):
        for side, (method, mib) in enumerate((("bptt", 100), ("sltt", 25))):
            run.cell(
                method, seed, recipe=facts, train_s=[9, times[seed][side]],
                top1=[0.1, lasts[seed][side]], peak_tensor_bytes=mib * MIB, **how,
            )  # fmt: skip


def verdicts(folder: Path) -> list[Verdict]:
    return judge(make_groups(read_results([folder])))


def word_of(tmp_path: Path, claim: dict[str, Any]) -> str:
    measure(tmp_path / "run", recipe(claim))
    (verdict,) = verdicts(tmp_path)
    return verdict.word


@pytest.mark.parametrize(
    ("claim", "word"),
    [
        ({**MEMORY, "threshold": 0.25}, "held"),
        ({**MEMORY, "threshold": 0.24}, "not held"),
        ({**TIME, "threshold": 0.85}, "held"),
        ({**TIME, "threshold": 0.60}, "inconclusive"),
        ({**TIME, "threshold": 0.36}, "not held"),
        ({**ACCURACY, "threshold": 4.0}, "held"),
        ({**ACCURACY, "threshold": 2.0}, "inconclusive"),
        ({**ACCURACY, "relation": "exceeds_by_points", "threshold": 2.0}, "not held"),
        ({**ACCURACY, "relation": "exceeds_by_points", "method": "bptt", "baseline": "sltt", "threshold": 0.2},
         "inconclusive"),
        ({**ACCURACY, "relation": "at_least", "baseline": None, "threshold": 0.85}, "held"),
        ({**ACCURACY, "relation": "at_least", "baseline": None, "threshold": 0.96}, "not held"),
        ({**ACCURACY, "relation": "at_most", "baseline": None, "threshold": 0.96}, "held"),
        ({**MEMORY, "relation": "at_most", "baseline": None, "threshold": 26 * MIB}, "held"),
        ({**TIME, "relation": "at_least", "baseline": None, "threshold": 6.0}, "not held"),
    ],
)  # fmt: skip
def test_every_relation_is_judged_on_the_right_side(tmp_path: Path, claim: dict[str, Any], word: str) -> None:
    assert word_of(tmp_path, claim) == word


def test_a_verdict_names_value_interval_limit_figure_conditions_and_seeds(tmp_path: Path) -> None:
    measure(tmp_path / "run", recipe(TIME, ACCURACY))
    time, accuracy = verdicts(tmp_path)
    assert (time.measured, time.limit, time.at_most, time.n) == ("0.55× [0.37, 0.80]", 0.64, True, 3)
    assert time.value == pytest.approx((0.5 * 0.5 * 0.65) ** (1 / 3))
    assert time.figure == "median of warm epochs"
    assert time.conditions[0] == "Example CPU, 2 threads"
    assert accuracy.measured == "−1.00 points [−3.48, +1.48]"
    assert (accuracy.limit, accuracy.at_most) == (-2.0, False)
    assert accuracy.value == pytest.approx(-1.0)


def test_one_seed_is_too_few_for_a_verdict_on_a_noisy_figure(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "run", recipe=recipe(TIME))
    run.cell("bptt", train_s=[9, 2.0])
    run.cell("sltt", train_s=[9, 1.0])
    (verdict,) = verdicts(tmp_path)
    assert (verdict.word, verdict.measured, verdict.n) == ("n too small", "0.50×", 1)


@pytest.mark.parametrize(
    ("claim", "how", "reason"),
    [
        (MEMORY, {"cell": {"smoke": True}}, "only smoke runs"),
        (ACCURACY, {"cell": {"synthetic": True}}, "only random data"),
        (MEMORY, {"overrides": {"train.batch_size": 32}}, "run only with train.batch_size = 32"),
        (ACCURACY, {"overrides": {"train.epochs": 2}}, "run only with train.epochs = 2"),
        ({**MEMORY, "method": "sltt-k1"}, {}, "no run of sltt-k1"),
        ({**MEMORY, "when": {"data.limit": 8}}, {}, "no run with data.limit = 8"),
        ({**MEMORY, "metric": "compute"}, {}, "a run does not count multiplications"),
    ],
)
def test_what_the_claim_does_not_speak_of_gives_no_verdict(
    tmp_path: Path, claim: dict[str, Any], how: dict[str, Any], reason: str
) -> None:
    measure(tmp_path / "run", recipe(claim), **how)
    (verdict,) = verdicts(tmp_path)
    assert verdict.word == "not measured"
    assert verdict.reason.startswith(reason)
    assert verdict.command.startswith("sltt-bench ")
    assert verdict.measured == ""


@pytest.mark.parametrize(
    ("claim", "overrides", "word"),
    [
        (MEMORY, {"train.epochs": 2}, "held"),
        (MEMORY, {"data.limit": 64, "train.checkpoint_every": 0}, "held"),
        (MEMORY, {"data.synthetic_samples": 64, "train.epochs": 3, "data.workers": 0}, "held"),
        ({**MEMORY, "relation": "at_most", "baseline": None, "threshold": 26 * MIB},
         {"data.synthetic_samples": 64}, "held"),
        ({**TIME, "threshold": 0.85}, {"data.synthetic_samples": 64, "train.epochs": 3}, "held"),
        ({**TIME, "threshold": 0.36}, {"data.limit": 64}, "not held"),
        ({**TIME, "relation": "at_least", "baseline": None, "threshold": 6.0}, {"train.epochs": 3}, "not held"),
        ({**ACCURACY, "threshold": 4.0}, {"data.synthetic_samples": 1, "data.workers": 2}, "held"),
    ],
)  # fmt: skip
def test_overrides_that_cannot_change_the_figure_do_not_stand_in_the_way(
    tmp_path: Path, claim: dict[str, Any], overrides: dict[str, Any], word: str
) -> None:
    measure(tmp_path / "run", recipe(claim), overrides=overrides)
    assert verdicts(tmp_path)[0].word == word


@pytest.mark.parametrize(
    ("claim", "overrides", "reason"),
    [
        (MEMORY, {"data.synthetic_samples": 63},
         "run only with data.synthetic_samples = 63, which is less than a batch of 64"),
        (TIME, {"data.limit": 8}, "run only with data.limit = 8, which is less than a batch of 64"),
        (TIME, {"data.workers": 0}, "run only with data.workers = 0, which the claim does not mention"),
        (TIME, {"data.pin_memory": False}, "run only with data.pin_memory = false, which"),
        ({**TIME, "relation": "at_most", "baseline": None, "threshold": 6.0}, {"data.limit": 64},
         "run only with data.limit = 64, which the claim does not mention"),
        ({**TIME, "relation": "at_most", "baseline": None, "threshold": 6.0}, {"data.workers": 2},
         "run only with data.workers = 2, which"),
        (ACCURACY, {"data.limit": 64}, "run only with data.limit = 64, which the claim does not mention"),
    ],
)  # fmt: skip
def test_overrides_that_can_change_the_figure_stand_in_the_way_of_a_verdict_on_it(
    tmp_path: Path, claim: dict[str, Any], overrides: dict[str, Any], reason: str
) -> None:
    measure(tmp_path / "run", recipe(claim), overrides=overrides)
    (verdict,) = verdicts(tmp_path)
    assert verdict.word == "not measured"
    assert verdict.reason.startswith(reason)


@pytest.mark.parametrize(("samples", "word"), [(12_800, "not measured"), (50_000, "held")])
def test_seconds_of_random_data_are_those_of_the_data_set_only_if_its_epoch_is_as_long(
    tmp_path: Path, samples: int, word: str
) -> None:
    claim = {**TIME, "relation": "at_most", "baseline": None, "threshold": 6.0}
    facts = recipe(claim, data__train_samples=50_000, data__synthetic_samples=samples)
    measure(tmp_path / "run", facts, cell={"synthetic": True})
    (verdict,) = verdicts(tmp_path)
    assert verdict.word == word
    assert (
        verdict.reason == "only random data was run, with fewer samples an epoch than the data set has"
    ) == (word != "held")


def test_overrides_that_the_claim_names_do_not_stand_in_the_way(tmp_path: Path) -> None:
    claim = {**ACCURACY, "when": {"data.delay": 8}}
    measure(tmp_path / "run", recipe(claim, data__delay=8), overrides={"data.delay": 8})
    (verdict,) = verdicts(tmp_path)
    assert verdict.word == "inconclusive"
    assert verdict.statement.endswith("where data.delay = 8")


def test_a_statement_names_the_task_of_a_study_as_a_reader_knows_it() -> None:
    claim = {**ACCURACY, "when": {"extends": "_digits", "neuron.tau": 20.0}}
    assert statement(claim).endswith(" on digits where neuron.tau = 20.0")
    assert unfit_when(claim, {}, {"extends": "_vowels"}) == "no run with task digits"


def test_random_data_can_judge_memory_and_time(tmp_path: Path) -> None:
    measure(tmp_path / "run", recipe(MEMORY, TIME), cell={"synthetic": True})
    assert [verdict.word for verdict in verdicts(tmp_path)] == ["held", "inconclusive"]


def test_cold_epochs_alone_cannot_judge_warm_time(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "run", recipe=recipe(TIME))
    for method in ("bptt", "sltt"):
        run.cell(method, train_s=[1.0], top1=[0.5])
    (verdict,) = verdicts(tmp_path)
    assert (verdict.word, verdict.reason) == (
        "not measured",
        "only cold epochs were run; at least two epochs give a warm one",
    )


def out_of_memory(folder: Path, *claims: dict[str, Any], gpu_mib: int | None = 24) -> HandmadeRun:
    """On a GPU of 24 MiB bptt runs out of memory, and sltt peaks at 8 and 6 MiB."""
    run = HandmadeRun(folder, recipe=recipe(*claims), device="cuda:0", device_name="Small GPU", number=30)
    if gpu_mib:
        provenance = json.loads((folder / "provenance.json").read_text())
        gpus = [
            {"name": "Small GPU", "memory_total_bytes": gpu_mib * MIB},
            {"name": "Large GPU", "memory_total_bytes": 1},
        ]
        (folder / "provenance.json").write_text(json.dumps(provenance | {"gpus": gpus}))
    for seed, mib in ((0, 8), (1, 6)):
        run.cell("bptt", seed, status="oom", reason="CUDA out of memory")
        run.cell("sltt", seed, peak_allocated_bytes=mib * MIB)
    return run


def test_a_baseline_without_room_is_a_finding_with_the_peak_of_the_method_and_no_ratio(
    tmp_path: Path,
) -> None:
    out_of_memory(tmp_path / "run", MEMORY)
    (verdict,) = verdicts(tmp_path)
    assert (verdict.word, verdict.value, verdict.is_finding) == ("not measured", None, True)
    assert verdict.reason == (
        "bptt ran out of memory where sltt peaked at 8.00 MiB (allocated (CUDA)) on a device with 24.0 MiB; "
        "how much bptt needs is unknown, so there is no ratio"
    )
    assert verdict.command == "sltt-bench estimate digits"
    assert verdict.conditions[0] == "Small GPU"


def test_without_the_devices_memory_the_finding_says_the_peak_alone(tmp_path: Path) -> None:
    out_of_memory(tmp_path / "run", MEMORY, gpu_mib=None)
    (verdict,) = verdicts(tmp_path)
    assert "peaked at 8.00 MiB (allocated (CUDA)); how much bptt needs is unknown" in verdict.reason


def test_a_baseline_without_room_stands_beside_the_verdict_of_another_device(tmp_path: Path) -> None:
    out_of_memory(tmp_path / "small", MEMORY)
    measure(tmp_path / "large", recipe(MEMORY))
    assert sorted((verdict.conditions[0], verdict.word) for verdict in verdicts(tmp_path)) == [
        ("Example CPU, 2 threads", "held"),
        ("Small GPU", "not measured"),
    ]


def test_without_room_other_claims_are_just_not_measured(tmp_path: Path) -> None:
    out_of_memory(tmp_path / "run", TIME)
    (verdict,) = verdicts(tmp_path)
    assert verdict.reason == "bptt did not finish: oom, CUDA out of memory"
    assert not verdict.is_finding


def test_a_claim_that_was_put_in_other_words_since_is_one_claim_in_the_newest_words(tmp_path: Path) -> None:
    measure(tmp_path / "1", recipe({**MEMORY, "says": "less"}), cell={"smoke": True}, number=1)
    measure(tmp_path / "2", recipe({**MEMORY, "says": "much less"}), number=2)
    newest = recipe({**MEMORY, "says": "70 % less memory"})
    measure(tmp_path / "3", newest, cell={"smoke": True}, number=3)  # of the group that began first
    (verdict,) = verdicts(tmp_path)
    assert (verdict.word, verdict.claim["says"], verdict.caveats) == ("held", "70 % less memory", ())


def test_two_sources_that_claim_different_thresholds_are_no_claim_that_changed(tmp_path: Path) -> None:
    measure(tmp_path / "run", recipe(MEMORY, {**MEMORY, "threshold": 0.2, "source": "a survey"}))
    assert [(verdict.word, verdict.caveats) for verdict in verdicts(tmp_path)] == [
        ("held", ()),
        ("not held", ()),
    ]


def test_estimates_that_put_a_claim_in_older_words_stand_on_the_card_of_the_runs(tmp_path: Path) -> None:
    old = recipe({**MEMORY, "says": "less"})
    run = HandmadeRun(tmp_path / "1", recipe=old)
    for method, mib in (("bptt", 60), ("sltt", 6)):
        run.estimate(method, mib, recipe=old)
    measure(tmp_path / "2", recipe({**MEMORY, "says": "70 % less memory"}), number=50)
    makers = {kind: _load(SECTIONS[kind]) for kind in ("run", "estimate")}
    report, _ = assemble(Context(read_results([tmp_path]), "bptt"), makers)
    ((card,),) = report.claims.values()
    assert (card.says, card.word) == ("70 % less memory", "1 held, 1 held by estimate")


def test_each_hardware_gets_a_verdict_of_its_own(tmp_path: Path) -> None:
    measure(tmp_path / "cpu", recipe(MEMORY))
    run = HandmadeRun(tmp_path / "gpu", recipe=recipe(MEMORY), device="cuda:0", device_name="Example GPU")
    run.cell("bptt", peak_allocated_bytes=10 * MIB)
    run.cell("sltt", peak_allocated_bytes=9 * MIB)
    words = {verdict.conditions[0]: (verdict.word, verdict.figure) for verdict in verdicts(tmp_path)}
    assert words == {
        "Example CPU, 2 threads": ("held", "live tensors"),
        "Example GPU": ("n too small", "allocated (CUDA)"),
    }
    (card,) = claim_cards(verdicts(tmp_path))
    assert card.answer == (
        "held: 0.25×, exact (digits, reference), Example CPU, 2 threads; "
        "n too small: 0.90×, n = 1 (digits, reference), Example GPU"
    )


@pytest.mark.parametrize(
    ("mib", "threshold", "beside"),
    [
        (25, 0.3, "live tensors, exact: 0.25×, held"),
        (25, 0.2, "live tensors, exact: 0.25×, not held"),
        (None, 0.3, ""),
    ],
)
def test_what_was_counted_exactly_stands_beside_a_peak_of_one_pair(
    tmp_path: Path, mib: int | None, threshold: float, beside: str
) -> None:
    claim = {**MEMORY, "threshold": threshold}
    run = HandmadeRun(tmp_path / "run", recipe=recipe(claim), device="cuda:0", device_name="Example GPU")
    run.cell("bptt", peak_allocated_bytes=110 * MIB, peak_tensor_bytes=100 * MIB)
    run.cell("sltt", peak_allocated_bytes=30 * MIB, peak_tensor_bytes=mib and mib * MIB)
    (verdict,) = verdicts(tmp_path)
    assert (verdict.word, verdict.figure) == ("n too small", "allocated (CUDA)")
    assert (verdict.beside, verdict.caveats) == (beside, ())
    assert verdict.evidence == (f"0.27×, n = 1; {beside}" if beside else "0.27×, n = 1")


def test_what_was_counted_exactly_is_no_matter_where_an_interval_decides(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "run", recipe=recipe(MEMORY), device="cuda:0", device_name="Example GPU")
    for seed in range(2):
        for method, mib in (("bptt", 110 + seed), ("sltt", 25)):
            run.cell(method, seed, peak_allocated_bytes=mib * MIB, peak_tensor_bytes=(mib - 5) * MIB)
    (verdict,) = verdicts(tmp_path)
    assert (verdict.word, verdict.beside, verdict.caveats) == ("held", "", ())


def measure_memory(folder: Path, mib: int, number: int) -> None:
    run = HandmadeRun(folder, recipe=recipe(MEMORY), git_revision=f"{number}" * 40, number=number)
    run.cell("bptt", peak_tensor_bytes=100 * MIB)
    run.cell("sltt", peak_tensor_bytes=mib * MIB)


@pytest.mark.parametrize(
    ("mib", "shown"),
    [
        ([25], ["0.25×, exact (digits, reference)"]),
        ([25, 25], ["0.25×, exact (digits, reference)"]),
        ([25, 28], ["0.25×, exact (digits, reference), 1", "0.28×, exact (digits, reference), 2"]),
        ([25, 28, 25], ["0.25×, exact (digits, reference), 1 and 3", "0.28×, exact (digits, reference), 2"]),
    ],
)
def test_versions_that_find_the_same_are_one_finding_and_others_name_the_revision(
    tmp_path: Path, mib: list[int], shown: list[str]
) -> None:
    for number, peak in enumerate(mib, start=1):
        measure_memory(tmp_path / str(number), peak, number)
    (card,) = claim_cards(verdicts(tmp_path))
    assert re.sub(r"sltt-bench (\d)\1{11}", r"\1", card.answer).split("; ") == shown


def test_versions_of_a_recipe_are_told_apart_by_what_they_have_otherwise(tmp_path: Path) -> None:
    """And not by a hash: in a verdict, in a heading, and in `power`, which share the words."""
    for number, (tau, mib) in enumerate(((1.1, 25), (2.0, 28))):
        facts = recipe(MEMORY, neuron__tau=tau)
        run = HandmadeRun(tmp_path / str(number), recipe=facts, number=10 * number)
        run.cell("bptt", peak_tensor_bytes=100 * MIB)
        run.cell("sltt", peak_tensor_bytes=mib * MIB)
    groups = make_groups(read_results([tmp_path]))
    words = {"neuron.tau = 1.1", "neuron.tau = 2.0"}
    assert {verdict.conditions[-1] for verdict in judge(groups)} == words
    assert {in_words(group, groups) for group in groups} == words
    assert {conditions.split(", ")[-1] for conditions in _conditions(groups)} == words


@pytest.mark.parametrize(
    ("mib", "answer"),
    [
        (28, "0.25×, exact (digits, reference), A; 0.28×, exact (digits, reference), B"),
        (90, "held: 0.25×, exact (digits, reference), A; not held: 0.90×, exact (digits, reference), B"),
    ],
)
def test_where_verdicts_on_a_claim_differ_each_value_has_its_word(
    tmp_path: Path, mib: int, answer: str
) -> None:
    for number, peak in enumerate((25, mib), start=1):
        measure_memory(tmp_path / str(number), peak, number)
    (card,) = claim_cards(verdicts(tmp_path))
    assert card.answer.replace("sltt-bench " + "1" * 12, "A").replace("sltt-bench " + "2" * 12, "B") == answer


def test_a_claim_is_told_as_a_comparison() -> None:
    assert statement(MEMORY) == "peak memory of sltt ÷ bptt ≤ 0.3"
    assert statement(ACCURACY) == "last-epoch top-1 of sltt at most 2 points below bptt"
    absolute = {**ACCURACY, "relation": "at_least", "threshold": 0.9444}
    assert statement(absolute) == "last-epoch top-1 of sltt ≥ 94.44 %"
