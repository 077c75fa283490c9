"""The report on estimates: numbers worked out by hand, verdicts, what stands beside them, and the plots."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure as Drawing
from result_builder import MIB, RECIPE, HandmadeRun, varied

from sltt_bench import models
from sltt_bench.common.strict import ADDED_LATER as STRICT_LATER
from sltt_bench.common.strict import Strict
from sltt_bench.planning.recipe_fields import Recipe
from sltt_bench.report.document import Context, Contribution, Figure, MissingFigure, Table, Verdict
from sltt_bench.report.groups import ADDED_LATER, NO_SETTINGS, settings_of
from sltt_bench.report.plots import style
from sltt_bench.report.sections.estimates.families import CAUSES, find_families
from sltt_bench.report.sections.estimates.section import estimated
from sltt_bench.results.reader import read_results

MEMORY = {
    "metric": "peak_memory", "method": "sltt", "baseline": "bptt", "relation": "at_most_ratio",
    "threshold": 0.3, "when": {}, "says": "less memory", "source": "a paper",
}  # fmt: skip
COMPUTE = {**MEMORY, "metric": "compute", "method": "sltt-k2", "threshold": 0.5}

WORK = {"bptt": (4, 1, 8, 3), "sltt": (4, 1, 8, 0), "sltt-k2": (4, 1, 2, 0)}
"""16, 13 and 7 multiplications per step."""


def fill(folder: Path, *claims: dict[str, Any]) -> HandmadeRun:
    """T = 2, 4 and 6 at batch 64, and batch 32 at T = 6. BPTT takes 10 MiB a step at batch 64 and half of
    it at 32, SLTT and SLTT-K 12 and 11 MiB at any T; each has as many multiplications as WORK says, times T."""
    recipe = varied(RECIPE, claims=list(claims))
    run = HandmadeRun(folder, recipe=recipe, device="cuda")
    for steps, batch in ((2, 64), (4, 64), (6, 64), (6, 32)):
        own = {"timesteps": steps, "train.batch_size": batch}
        overrides = {key: value for key, value in own.items() if value not in (6, 64)}
        for method, mib in (("bptt", 10.0 * steps), ("sltt", 12.0), ("sltt-k2", 11.0)):
            run.estimate(
                method, mib * batch / 64, work=tuple(steps * count for count in WORK[method]),  # type: ignore[arg-type]
                recipe=varied(recipe, timesteps=steps, train__batch_size=batch), overrides=overrides,
            )  # fmt: skip
    return run


def contribution(folder: Path) -> Contribution:
    return estimated(Context(read_results([folder]), "bptt"))


def blocks(part: Contribution, kind: Any) -> dict[str, Any]:
    return {b.title: b for section in part.sections for b in section.blocks if isinstance(b, kind)}


def shown(table: Table) -> list[list[str]]:
    return [[f"{cell.text} {cell.detail}".strip() for cell in row] for row in table.rows]


# Tables -------------------------------------------------------------------------------------------------


def test_each_point_shows_the_peak_of_each_method_and_its_ratio_to_the_baseline(tmp_path: Path) -> None:
    fill(tmp_path)
    table = blocks(contribution(tmp_path), Table)["Peak of live tensors, estimated"]
    assert [(heading.text, heading.unit) for heading in table.headings] == [
        ("T", ""), ("batch", ""), ("bptt", "MiB"), ("sltt", "MiB"), ("sltt-k2", "MiB"),
    ]  # fmt: skip
    assert shown(table) == [
        ["2", "64", "20.0", "12.0 0.60×", "11.0 0.55×"],
        ["4", "64", "40.0", "12.0 0.30×", "11.0 0.28×"],
        ["6", "32", "30.0", "6.00 0.20×", "5.50 0.18×"],
        ["6", "64", "60.0", "12.0 0.20×", "11.0 0.18×"],
    ]


def test_multiplications_are_the_sum_of_all_four_parts(tmp_path: Path) -> None:
    fill(tmp_path)
    named = blocks(contribution(tmp_path), Table)
    table = named["Multiplications of one training iteration, estimated"]
    assert shown(table)[1] == ["4", "64", "64.0", "52.0 0.81×", "28.0 0.44×"]  # 4 × 16, 13 and 7
    parts = named["Where the multiplications are made"]
    assert (
        "Recomputation in the backward pass (bptt-ckptN, native.recompute) counts as backward"
        in parts.notes[0]
    )
    assert shown(parts)[3] == ["4", "64", "bptt", "16.0", "4.00", "32.0", "12.0", "64.0", "640"]


def test_a_baseline_that_was_not_estimated_leaves_no_ratio(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path)
    run.estimate("sltt", 12)
    table = blocks(contribution(tmp_path), Table)["Peak of live tensors, estimated"]
    assert shown(table) == [["6", "64", "12.0"]]
    assert not any("×" in note for note in table.notes)


def test_the_causes_add_up_to_the_peak(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path)
    parts = {"parameter_bytes": 1, "optimizer_state_bytes": 2, "gradient_bytes": 3, "input_bytes": 4}
    rest = {"neuron_state_bytes": 5, "activation_bytes": 6, "temporary_bytes": 7}
    run.estimate("bptt", 28, **{name: mib * MIB for name, mib in (parts | rest).items()})
    table = blocks(contribution(tmp_path), Table)["What the peak consists of"]
    assert [heading.text for heading in table.headings[3:]] == [*CAUSES, "peak"]
    assert shown(table) == [
        ["6", "64", "bptt", "6.00 MiB", "4.00 MiB", "5.00 MiB", "6.00 MiB", "7.00 MiB", "28.0 MiB"]
    ]


def test_limits_are_shown_where_they_were_searched(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path)
    room = {"memory_bytes": 1000 * MIB}
    run.estimate("bptt", 60, **room, largest_batch_size=1066, largest_timesteps=33)
    run.estimate("sltt", 12, **room, largest_batch_size=5333)
    run.estimate("sltt-k2", 11)
    named = blocks(contribution(tmp_path), Table)
    batches, steps = named["Largest batch that fits, estimated"], named["Largest T that fits, estimated"]
    assert shown(batches) == [["6", "64", "1,066", "5,333", "–"]]
    assert shown(steps) == [["6", "64", "33", "no limit met", "–"]]
    assert batches.notes == (
        "At the row's T, in 1000 MiB, the memory given less a safety margin. No batch is larger than the training set.",
    )


def test_limits_of_several_sizes_of_memory_and_bounds_of_several_cards_say_whose_they_are(
    tmp_path: Path,
) -> None:
    """BPTT was asked of a large card and SLTT of a small one: their batches are no comparison."""
    run = HandmadeRun(tmp_path / "run")
    large = {"memory_bytes": 80_000 * MIB, "gpu": "Large", "epoch_lower_bound_s": 1.0}
    run.estimate("bptt", 60, **large, largest_batch_size=1066, largest_timesteps=33)
    run.estimate(
        "sltt", 12, memory_bytes=1000 * MIB, gpu="Small", epoch_lower_bound_s=2.0, largest_batch_size=533
    )
    tables = blocks(contribution(tmp_path), Table)
    assert shown(tables["Largest batch that fits, estimated"]) == [
        ["6", "64", "1,066 78.1 GiB", "533 1000 MiB"]
    ]
    assert shown(tables["Largest T that fits, estimated"]) == [
        ["6", "64", "33 78.1 GiB", "no limit met 1000 MiB"]
    ]
    assert shown(tables["Lower bound on an epoch's training time"]) == [
        ["6", "64", "1.00 Large", "2.00 Small"]
    ]


def test_without_a_search_no_limits_are_shown(tmp_path: Path) -> None:
    fill(tmp_path)
    assert not [
        title for title in blocks(contribution(tmp_path), Table) if title.startswith(("Largest", "Lower"))
    ]


def test_a_newer_estimate_of_the_same_cell_replaces_the_older_one(tmp_path: Path) -> None:
    HandmadeRun(tmp_path / "z", number=1).estimate("bptt", 60)
    HandmadeRun(tmp_path / "a", number=2).estimate("bptt", 50)
    table = blocks(contribution(tmp_path), Table)["Peak of live tensors, estimated"]
    assert shown(table) == [["6", "64", "50.0"]]
    assert "Older estimates of the same cells, left out: 1." in table.notes


def test_other_backends_and_recipe_versions_are_families_of_their_own(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path)
    run.estimate("bptt", 60)
    run.estimate("sltt", 6, backend="native")
    run.estimate("sltt", 7, recipe=varied(RECIPE, neuron__tau=2.0))
    part = contribution(tmp_path)
    tables = [
        b for s in part.sections for b in s.blocks if isinstance(b, Table) and b.title.startswith("Peak of")
    ]
    assert sorted(shown(table)[0][2] for table in tables) == ["6.00", "60.0", "7.00"]
    names = [b.name for section in part.sections for b in section.blocks if isinstance(b, Table | Figure)]
    assert len(names) == len(set(names))


def test_estimates_of_an_older_recipe_are_the_same_where_the_fields_that_it_lacks_say_what_was_done_before(
    tmp_path: Path,
) -> None:
    newer = varied(RECIPE, neuron__kind="lif", train__devices=1, loss__average="losses", cpu_minutes=None)
    newer = varied(newer, data__split_seed=0, claims=[{**MEMORY, "says": "newest words"}])
    other = varied(newer, neuron__kind="plif")
    HandmadeRun(tmp_path / "a", recipe=varied(RECIPE, claims=[MEMORY]), number=1).estimate("bptt", 60)
    HandmadeRun(tmp_path / "b", number=2, recipe=newer).estimate("bptt", 50, recipe=newer)
    HandmadeRun(tmp_path / "c", number=3, recipe=other).estimate("bptt", 40, recipe=other)
    families = find_families(Context(read_results([tmp_path]), "bptt"))
    rows = {tuple(family.rows["peak_tensor_bytes"] / MIB): family.claims for family in families}
    assert sorted(rows) == [(40,), (50,)]
    assert [claim["says"] for claim in rows[50,]] == ["newest words"]


def test_options_of_the_native_backend_make_no_other_estimate_of_the_reference(tmp_path: Path) -> None:
    units, way = varied(RECIPE, native__recompute=True), {"native.recompute": True}
    run = HandmadeRun(tmp_path, recipe=varied(RECIPE, native__recompute=False, claims=[MEMORY]))
    for recipe, overrides in ((run.recipe, {}), (varied(units, claims=[MEMORY]), way)):
        for method, mib in (("bptt", 60), ("sltt", 6)):
            run.estimate(method, mib, recipe=recipe, overrides=overrides)
            run.estimate(method, mib / 2, recipe=recipe, overrides=overrides, backend="native")
    families = find_families(Context(read_results([tmp_path]), "bptt"))
    assert [family.rows["backend"].iloc[0] for family in families] == ["reference", "native", "native"]
    assert families[0].as_published
    assert [verdict.word for verdict in verdicts(tmp_path)] == ["held", "held", "not measured"]


def test_the_fields_that_a_report_fills_in_are_those_that_recipes_gained_later() -> None:
    later: dict[str, Any] = {}

    def gather(model: type[Strict], prefix: str = "") -> None:
        for name, field in model.model_fields.items():
            if STRICT_LATER in field.metadata:
                later[prefix + name] = field.default
            if isinstance(field.annotation, type) and issubclass(field.annotation, Strict):
                gather(field.annotation, f"{prefix}{name}.")

    gather(Recipe)
    assert {key: value for key, value in later.items() if key not in NO_SETTINGS} == ADDED_LATER


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_the_fields_that_a_report_fills_in_for_a_network_are_what_its_options_say(name: str) -> None:
    options = models.options_type(name)(name=name).model_dump()
    filled = settings_of({"name": "r", "model": {"name": name}}, "reference")
    for key in ("normalisation", "readout_tau"):
        assert options.get(key, filled[f"model.{key}"]) == filled[f"model.{key}"]


def test_what_could_not_be_estimated_is_named_with_its_reason(tmp_path: Path) -> None:
    run = fill(tmp_path / "run")
    failed = {"status": "error", "reason": "NotImplementedError: no kernel", "cell": {"kind": "estimate"}}
    run.cell("my-method", **failed)
    HandmadeRun(tmp_path / "lost", recipe=varied(RECIPE, name="lost"), number=90).cell("bptt", **failed)
    part = contribution(tmp_path)
    notes = blocks(part, Table)["Peak of live tensors, estimated"].notes
    assert "1 cell could not be estimated: NotImplementedError: no kernel." in notes
    assert part.skipped == (
        (str(tmp_path / "lost"), "1 cell could not be estimated: NotImplementedError: no kernel"),
    )


# What was measured beside -------------------------------------------------------------------------------


def measure(folder: Path, mib: float = 58, **how: Any) -> None:
    run = HandmadeRun(folder, number=200, device="cuda:0", device_name="Example GPU")
    run.cell("bptt", peak_tensor_bytes=int(mib * MIB), peak_allocated_bytes=66 * MIB, **how)


def test_measured_and_estimated_stand_side_by_side_under_their_own_names(tmp_path: Path) -> None:
    fill(tmp_path / "est")
    measure(tmp_path / "run")
    part = contribution(tmp_path)
    table = blocks(part, Table)["Estimated beside measured"]
    assert [heading.text for heading in table.headings][3:] == [
        "estimated live tensors", "measured: live tensors", "measured: allocated (CUDA)", "on",
    ]  # fmt: skip
    assert shown(table) == [
        [
            "6",
            "64",
            "bptt",
            "60.0 MiB",
            "58.0 MiB 0.967 of the estimate",
            "66.0 MiB 1.100 of the estimate",
            "Example GPU",
        ]
    ]
    assert shown(blocks(part, Table)["Peak of live tensors, estimated"])[3][2] == "60.0"


@pytest.mark.parametrize(
    "how",
    [
        {"backend": "native"},
        {"recipe": varied(RECIPE, neuron__tau=2.0)},
        {"recipe": varied(RECIPE, timesteps=3)},
        {"recipe": varied(RECIPE, name="other")},
    ],
)
def test_another_experiment_is_not_set_beside_an_estimate(tmp_path: Path, how: dict[str, Any]) -> None:
    fill(tmp_path / "est")
    measure(tmp_path / "run", **how)
    assert "Estimated beside measured" not in blocks(contribution(tmp_path), Table)


def test_the_number_of_epochs_and_of_samples_changes_no_memory_and_hides_no_measurement(
    tmp_path: Path,
) -> None:
    fill(tmp_path / "est")
    fewer = {"train__epochs": 1, "data__synthetic_samples": 256, "native__graphs": "auto"}
    measure(tmp_path / "run", recipe=varied(RECIPE, **fewer), overrides={"train.epochs": 1})
    assert "Estimated beside measured" in blocks(contribution(tmp_path), Table)


# Verdicts and words -------------------------------------------------------------------------------------


def verdicts(folder: Path) -> list[Verdict]:
    return list(contribution(folder).verdicts)


def test_a_claim_is_judged_at_its_own_experiment_and_marked_as_estimated(tmp_path: Path) -> None:
    fill(tmp_path, MEMORY, COMPUTE)
    memory, compute = verdicts(tmp_path)
    # At the recipe's own T = 6 and batch 64: 12 ÷ 60 MiB, and 42 ÷ 96 multiplications.
    assert (memory.word, memory.value, memory.estimated, memory.n) == ("held", 0.2, True, 0)
    assert (compute.word, compute.value) == ("held", 0.4375)
    assert memory.basis == "live tensors, estimated"
    assert memory.conditions[-2:] == ("T = 6", "batch 64")
    assert "estimated on fake tensors" in memory.conditions


def test_a_claim_that_the_count_contradicts_is_not_held(tmp_path: Path) -> None:
    fill(tmp_path, {**MEMORY, "threshold": 0.19})
    assert [verdict.word for verdict in verdicts(tmp_path)] == ["not held"]


@pytest.mark.parametrize(
    ("claim", "measured"),
    [
        ({**MEMORY, "relation": "at_most", "baseline": None, "threshold": 13 * MIB}, "12.0 MiB"),
        ({**COMPUTE, "relation": "at_most", "baseline": None, "threshold": 50}, "42.0"),
    ],
)
def test_a_claim_about_the_value_itself_is_shown_in_its_own_unit(
    tmp_path: Path, claim: dict[str, Any], measured: str
) -> None:
    fill(tmp_path, claim)
    (verdict,) = verdicts(tmp_path)
    assert (verdict.word, verdict.measured) == ("held", measured)


def test_a_claim_that_speaks_of_another_t_is_judged_there(tmp_path: Path) -> None:
    fill(tmp_path, {**MEMORY, "when": {"timesteps": 2}})
    (verdict,) = verdicts(tmp_path)
    assert (verdict.word, verdict.value) == ("not held", 0.6)


def test_estimates_say_nothing_of_time_accuracy_or_another_experiment(tmp_path: Path) -> None:
    time = {**MEMORY, "metric": "warm_epoch_time"}
    fill(tmp_path, time, {**MEMORY, "when": {"timesteps": 5}})
    assert [(v.word, v.reason) for v in verdicts(tmp_path)] == [
        ("not measured", "only estimated"),
        ("not measured", "no estimate of the claim's own experiment"),
    ]


def test_a_smoke_sized_network_judges_no_claim(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path, recipe=varied(RECIPE, claims=[MEMORY]))
    run.estimate("bptt", 60, smoke=True)
    run.estimate("sltt", 12, smoke=True)
    assert [verdict.word for verdict in verdicts(tmp_path)] == ["not measured"]


def test_the_sentence_says_what_is_estimated(tmp_path: Path) -> None:
    fill(tmp_path)
    assert contribution(tmp_path).sentence == "Estimates, always marked as such: digits."


def test_the_recipe_as_it_is_leads_and_what_departs_from_it_is_folded(
    tmp_path: Path,
) -> None:
    fill(tmp_path / "a")
    recipe = varied(RECIPE, train__lr=0.5)
    changed = HandmadeRun(tmp_path / "b", recipe=recipe, device="cuda", number=50)
    for method, mib in (("bptt", 1000.0), ("sltt", 10.0)):
        changed.estimate(method, mib, recipe=recipe, overrides={"train.lr": 0.5})
    part = contribution(tmp_path)
    parts = [section for section in part.sections if section.name.endswith("-family")]
    assert [section.folded for section in parts] == [False, True]


# Plots --------------------------------------------------------------------------------------------------


def drawn(folder: Path, title: str) -> tuple[Figure, Drawing]:
    figure = blocks(contribution(folder), Figure)[title]
    with style.applied():
        return figure, figure.draw("double")


def test_estimates_are_hollow_and_dashed_and_measurements_filled_in_the_same_colour(tmp_path: Path) -> None:
    fill(tmp_path / "est")
    measure(tmp_path / "run")
    figure, drawing = drawn(tmp_path, "Estimated peak memory")
    against_t, against_batch = drawing.axes
    lines = {line.get_label(): line for line in against_t.lines}
    bptt = lines["bptt"]
    assert (list(bptt.get_xdata()), list(bptt.get_ydata())) == ([2, 4, 6], [20, 40, 60])
    assert (bptt.get_markerfacecolor(), bptt.get_color()) == (style.SURFACE, style.colour("bptt"))
    assert bptt.is_dashed()
    batch = next(line for line in against_batch.lines if line.get_label() == "sltt")
    assert (list(batch.get_xdata()), list(batch.get_ydata())) == ([32, 64], [6, 12])
    points = [line for line in against_t.lines if line.get_linestyle() == "None" and len(line.get_xdata())]
    assert [(*line.get_xdata(), *line.get_ydata()) for line in points] == [(6, 58), (6, 66)]
    assert {line.get_markerfacecolor() for line in points} == {style.colour("bptt")}
    assert against_t.get_ylabel() == "live tensors [MiB]"
    assert "Filled marks: measured on Example GPU" in figure.caption
    legend = [text.get_text() for text in drawing.legends[0].get_texts()]
    assert legend == ["bptt", "sltt", "sltt-k2", "measured: live tensors", "measured: allocated (CUDA)"]


def test_the_room_that_was_searched_is_a_level(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path)
    for steps in (2, 6):
        run.estimate("bptt", 10 * steps, recipe=varied(RECIPE, timesteps=steps), memory_bytes=40 * MIB)
    figure, drawing = drawn(tmp_path, "Estimated peak memory")
    assert [text.get_text() for text in drawing.axes[0].texts] == ["room: 40.0 MiB"]
    assert "None of it was measured." in figure.caption


def test_causes_are_stacked_to_the_peak_for_each_method(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path)
    causes = {"input_bytes": 2 * MIB, "neuron_state_bytes": 3 * MIB, "activation_bytes": 4 * MIB}
    causes["temporary_bytes"] = 5 * MIB
    run.estimate("bptt", 15, **causes, parameter_bytes=MIB)
    run.estimate("sltt", 14, **causes)
    _, drawing = drawn(tmp_path, "What takes the memory")
    axes = drawing.axes[0]
    bars = [(bar.get_x(), bar.get_width()) for bar in axes.patches]
    assert bars[:5] == [(0, 1), (1, 2), (3, 3), (6, 4), (10, 5)]
    assert bars[5:10] == [(0, 0), (0, 2), (2, 3), (5, 4), (9, 5)]
    colours = [bar.get_facecolor() for bar in axes.patches]
    assert (
        colours[:5]
        == colours[5:10]
        == [handle.get_facecolor() for handle in drawing.legends[0].get_patches()]
    )
    assert [text.get_text() for text in axes.texts] == ["15.0", "14.0"]
    assert axes.get_xlabel() == "live tensors [MiB]"


def test_curves_that_the_estimates_cannot_support_are_named_with_the_command(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path)
    run.estimate("bptt", 60)
    part = contribution(tmp_path)
    assert set(blocks(part, Figure)) == {"What takes the memory"}
    assert {title: gap.command for title, gap in blocks(part, MissingFigure).items()} == {
        "Estimated memory against T": "sltt-bench estimate digits --timesteps 1,2,4,6,8",
        "Estimated memory against batch size": "sltt-bench estimate digits --batch-size 64,128,256",
    }
