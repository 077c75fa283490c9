"""The numbers in README and docs, made again from the committed results."""

import csv
import io
import re
from collections.abc import Iterator
from contextlib import redirect_stdout

import pandas as pd
import pytest
from checkout import ROOT
from rich.console import Console

RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], list[str]]:
    """What the example of results/README.md prints: (recipe, backend, revision, method) → its figures."""
    page = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    actual = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert actual
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        patch.chdir(ROOT)
        exec(compile(actual[1], "results/README.md", "exec"), {})
    lines = [
        re.split(r" (?=[\d.]+ ±|[\d.]+ \[|[\d.]+ n =|n =)", line) for line in out.getvalue().splitlines()
    ]
    return {tuple(keys.split()): figures for keys, *figures in lines}


def rows_of(document: str, heading: str) -> Iterator[list[str]]:
    """The cells of the first table below a heading."""
    below = document[document.index(heading) :]
    table = re.search(r"(?:^\|.*\|$\n?)+", below, re.MULTILINE)
    assert table
    for row in csv.reader(table[0].splitlines()[2:], delimiter="|"):
        yield [cell.strip().strip("`") for cell in row[1:-1]]


def test_twenty_lines_of_pandas_make_the_table_of_digits(printed: dict[tuple[str, ...], list[str]]) -> None:
    recipe, seen = "", 0
    for name, method, top1, time, _, memory in rows_of(RESULTS, "## Accuracy, time and memory on digits"):
        recipe = name or recipe
        revision = "e2952ed0ed1c" if recipe == "digits" else "1efb4884f603"
        figures = printed[recipe, "reference", revision, method]
        assert top1 == figures[0]
        assert figures[3] == "n = 3"
        if method != "bptt":
            assert (time, memory) == (figures[1], figures[2])
        seen += 1
    assert seen == 6
    for method, text in (
        ("sltt", "0.93 [0.42, 2.08] for SLTT,"),
        ("sltt-k2", "0.62 [0.31, 1.24] for SLTT-K"),
    ):
        assert " ".join(RESULTS.split()).count(text) == 1
        assert text.startswith(printed["digits", "reference", "1efb4884f603", method][1])


def test_the_report_has_the_numbers_of_the_table_whole_at_60_and_80_columns(
    printed: dict[tuple[str, ...], list[str]],
) -> None:
    from sltt_bench.report.grouping import make_groups
    from sltt_bench.report.render.terminal import print_table
    from sltt_bench.report.sections.runs.tables import overview
    from sltt_bench.results.reader import read_results

    groups = make_groups(read_results([ROOT / "results" / "digits", ROOT / "results" / "digits-saccade"]))
    compared = 0
    for group in groups:
        if group.key.smoke:
            continue
        revision = group.key.revision.split(", ")[1]
        for width in (60, 80):
            table, stream = overview(group, "bptt"), io.StringIO()
            print_table(table, Console(file=stream, width=width, color_system=None))
            text = stream.getvalue()
            assert max(map(len, text.splitlines())) <= width
            for word in (word for row in table.rows for cell in row for word in cell.text.split()):
                assert word in text
        for row in overview(group, "bptt", brief=True).rows:
            figures = printed[group.key.recipe, group.key.backend, revision, row[0].text]
            assert f"{row[2].text} {row[2].detail}" == figures[0]
            if row[0].text != "bptt":
                ratio, interval = row[5].text.rstrip("×"), row[5].detail.removesuffix(" n = 3")
                assert [f"{float(ratio):.2f} {interval}", row[7].text.rstrip("×")] == figures[1:3]
                compared += 1
    assert compared == 34


def test_the_readmes_answers_are_those_of_the_results() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    answers = {question: answer for question, answer, _ in rows_of(readme, "What this tool found so far")}
    digits = list(rows_of(RESULTS, "## Accuracy, time and memory on digits"))
    (less,) = {f"{100 * (1 - float(row[5])):.0f} %" for row in digits if row[1] == "sltt"}
    assert f"Memory is {less} less at T = 6" in " ".join(RESULTS.split())
    top1 = {
        method: [float(row[2].split()[0]) for row in digits if row[1] == method]
        for method in ("bptt", "sltt-k2")
    }
    loss = max(bptt - k2 for bptt, k2 in zip(top1["bptt"], top1["sltt-k2"], strict=True))
    assert (
        f"with 2 of 6 it lost up to {loss:.1f} points of accuracy (`digits-saccade`"
        in answers["Is SLTT-K faster?"]
    )


@pytest.fixture(scope="module")
def on_the_h200() -> pd.DataFrame:
    """Medians of the warm epochs' times and utilisation, and their peaks: (recipe, T, method) → column."""
    files = sorted((ROOT / "results").glob("*/20261127-081*/epochs.csv"))
    epochs = pd.concat(pd.read_csv(path) for path in files)
    warm = epochs[~epochs["cold"]].groupby(["recipe", "timesteps", "method"])
    rows = warm[[name for name in epochs if name.startswith("peak_") and name != "peak_nvml_scope"]].max()
    assert len(files) == 5
    assert warm["device_name"].first().eq("NVIDIA H200").all()
    return rows.assign(**{name: warm[name].median() for name in ("train_s", "gpu_util_mean")})


def test_the_table_of_the_h200_is_what_it_measured(on_the_h200: pd.DataFrame) -> None:
    rows = on_the_h200.loc[("imagenet-resnet34", 6)]
    figures = ("tensor", "allocated", "reserved", "nvml")
    written = {row[0]: row[1:] for row in rows_of(RESULTS, "## The paper's recipes on an NVIDIA H200")}
    assert list(written) == ["bptt", "sltt", "sltt-k2", "sltt-k1"]
    for method, cells in written.items():
        time, *peaks = (rows[name] for name in ("train_s", *(f"peak_{figure}_bytes" for figure in figures)))
        expected = [f"{time[method]:.3f}", f"{time[method] / time['bptt']:.2f}"]
        for peak in peaks:
            expected += [f"{peak[method] / 2**30:.2f}", f"{peak[method] / peak['bptt']:.2f}"]
        assert cells == ["1" if text == "1.00" else text for text in expected], method


def test_what_is_said_of_the_h200_is_what_it_measured(on_the_h200: pd.DataFrame) -> None:
    page = " ".join(RESULTS.split())
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    imagenet = on_the_h200.loc[("imagenet-resnet34", 6)]
    ratio = imagenet / imagenet.loc["bptt"]
    less = 100 * (1 - ratio)
    allocated, reserved, nvml = (
        less.loc["sltt", f"peak_{figure}_bytes"] for figure in ("allocated", "reserved", "nvml")
    )
    curve = on_the_h200["peak_allocated_bytes"].xs("cifar10-resnet18") / 2**30
    bptt, sltt = (
        {steps: value for (steps, name), value in curve.items() if name == method}
        for method in ("bptt", "sltt")
    )
    *first, last = (f"{value:.2f}" for value in bptt.values())
    flat = sorted(value for steps, value in sltt.items() if steps > 1)
    busy = {key: f"{100 * value:.0f}" for key, value in on_the_h200["gpu_util_mean"].items()}
    time = on_the_h200["train_s"]

    def slower(*place: str | int) -> str:
        return f"{time[(*place, 'sltt')] / time[(*place, 'bptt')]:.2f}"

    cifar, gesture, dvs = ("cifar10-resnet18", 6), ("dvs-gesture-vgg11", 20), ("dvs-cifar10-vgg11", 10)
    one = [value for (recipe, steps, _), value in time.items() if (recipe, steps) == ("cifar10-resnet18", 1)]
    assert busy[*dvs, "bptt"] == busy[*dvs, "sltt"]
    for text in (
        f"It was {allocated:.1f} % by what the allocator gave out, {reserved:.1f} % by what it reserved (which the paper's code printed), "
        f"{nvml:.1f} % by the driver's count",
        f"It was {less.loc['sltt-k1', 'train_s']:.0f} % here. SLTT itself saves {less.loc['sltt', 'train_s']:.0f} %",
        f"Peak live tensors are exact and hold the first claim at {ratio.loc['sltt', 'peak_tensor_bytes']:.3f}",
        f"BPTT takes {', '.join(first[:-1])}, {first[-1]} and {last} GiB at T = 1, 2, 4, 6 and 8, SLTT {sltt[1]:.2f} and then "
        f"{flat[0]:.2f}–{flat[-1]:.2f} at every T",
        f"at work {busy[*cifar, 'bptt']} % of the time with BPTT and {busy[*cifar, 'sltt']} % with SLTT",
        f"an epoch takes {slower(*cifar)} times BPTT's, where the paper has {4.58 / 6.35:.2f}",
        f"For DVS-Gesture it was {busy[*gesture, 'bptt']} and {busy[*gesture, 'sltt']} %, and the ratio {slower(*gesture)}",
        f"For DVS-CIFAR10 it was {busy[*dvs, 'bptt']} %, and SLTT took {slower(*dvs)} of the time",
        f"took {min(one):.3f} to {max(one):.3f} s",
    ):
        assert page.count(text) == 1, text
    gibibytes = imagenet["peak_allocated_bytes"] / 2**30
    answers = {question: answer for question, answer, _ in rows_of(readme, "What this tool found so far")}
    for question, text in (
        (
            "Does SLTT need less memory?",
            f"**yes, {allocated:.0f} % less**: {gibibytes['bptt']:.1f} → {gibibytes['sltt']:.2f} GiB allocated, {reserved:.1f} % less "
            "reserved (NF-ResNet-34 at the paper's T = 6 and batch 256, NVIDIA H200",
        ),
        ("Is SLTT faster?", f"**no**: {ratio.loc['sltt', 'train_s']:.2f} of BPTT's time"),
        (
            "Is SLTT-K faster?",
            f"**yes**: {less.loc['sltt-k1', 'train_s']:.0f} % less time with 1 of 6 steps, "
            f"{less.loc['sltt-k2', 'train_s']:.0f} % with 2",
        ),
    ):
        assert answers[question].startswith(text), question


def estimates(recipe: str) -> pd.DataFrame:
    frames = [pd.read_csv(path) for path in (ROOT / "results" / recipe).glob("*/estimates.csv")]
    rows = pd.concat(frames)
    rows = rows[(rows["timesteps"] == 6) & (rows["batch_size"] == 256) & (rows["precision"] == "fp16")]
    return rows[rows["backend"] == "reference"].drop_duplicates("method", keep="last").set_index("method")


@pytest.mark.parametrize("depth", [34, 50, 101])
def test_the_table_of_the_imagenet_networks_is_that_of_the_estimates(depth: int) -> None:
    rows = {row[0]: row[1:] for row in rows_of(RESULTS, "## The paper's ImageNet networks, estimated")}
    table = estimates(f"imagenet-resnet{depth}")
    peak = table["peak_tensor_bytes"] / 2**30
    work = table.filter(like="_multiplications").drop(columns="epoch_multiplications").sum(axis=1)
    expected = [
        f"{peak['bptt']:.1f} GiB", f"{peak['sltt']:.3g} GiB", f"{100 * (1 - peak['sltt'] / peak['bptt']):.0f} %",
        *(f"{work[method] / work['bptt']:.3f}" for method in ("sltt", "sltt-k2", "sltt-k1")),
    ]  # fmt: skip
    assert rows[f"NF-ResNet-{depth}"] == expected


def test_the_price_of_the_exact_gradient_is_that_of_the_benchmark() -> None:
    rows = pd.concat(pd.read_csv(path) for path in sorted((ROOT / "results" / "bench").glob("*/bench.csv")))
    rows = rows[rows["quantity"] == "peak_tensor_bytes"].drop_duplicates(["row", "baseline"], keep="last")
    plain, optimised = (
        rows[(rows["row"] == "recompute-bptt") & rows["baseline"].str.contains(mode)].iloc[0]
        for mode in ("LIFNode single-step", "checkpointed")
    )
    (sltt,) = {value / 2**20 for value in rows.loc[rows["row"] == "memory-sltt", "subject_value"]}
    exact = plain["subject_value"] / 2**20
    native = " ".join((ROOT / "docs" / "native-internals.md").read_text(encoding="utf-8").split())
    times, ratio = f"{exact / sltt:.1f}", f"{exact / (plain['baseline_value'] / 2**20):.3f}"
    assert f"{exact:.1f} MiB, {ratio} of SpikingJelly's BPTT" in native
    leanest = optimised["baseline_value"] / 2**20
    assert (
        f"{exact / leanest:.2f} of its memory optimisation at the best of six settings ({leanest:.1f}"
        in native
    )
    assert f"{times} of native SLTT ({sltt:.1f})" in native


def test_the_exact_gradient_of_the_papers_networks_costs_what_the_papers_page_says() -> None:
    page = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    table = {row[0]: row[4:] for row in rows_of(page, "## Memory, beside the exact gradient at its leanest")}
    network, vgg, resnet18, gesture = (
        table[name]
        for name in ("imagenet-resnet34", "dvs-cifar10-vgg11", "cifar10-resnet18", "dvs-gesture-vgg11")
    )
    native = " ".join((ROOT / "docs" / "native-backend.md").read_text(encoding="utf-8").split())
    assert (
        f"takes {network[5]} of the reference's memory for BPTT with NF-ResNet-34 ({network[3]} of {network[0]} GiB"
        in native
    )
    assert f"which is below the {network[1]} GiB" in native
    assert f"{resnet18[5]} with ResNet-18, {vgg[5]} and {gesture[5]} with VGG-11" in native
    assert f"it is {resnet18[6]} and {network[6]} times as much in the residual networks" in native
    more = {name: f"{100 * float(row[7]) - 100:.0f}" for name, row in table.items()}
    assert more["dvs-cifar10-vgg11"] == "0"
    assert (
        f"{more['cifar10-resnet18']} and {more['imagenet-resnet34']} % in the residual networks, next to none in VGG-11 at "
        f"T = 10, and {more['dvs-gesture-vgg11']} % at T = 20" in native
    )


def gradients(recipe: str, **where: float) -> pd.DataFrame:
    rows = pd.concat(pd.read_csv(path) for path in (ROOT / "results" / recipe).glob("*/gradients.csv"))
    rows = rows[(rows["surrogate"] == "triangle") & (rows["reset"] == "soft") & ~rows["detach_reset"]]
    for name, value in where.items():
        rows = rows[rows[name] == value]
    return rows


def test_the_cosines_of_resnet18_are_those_of_the_analysis() -> None:
    rows = gradients("cifar10-resnet18", epoch=0, batch_size=8)
    network = rows[rows["level"] == "network"].set_index(["tau", "timesteps"])["cosine_mean"]
    first = rows[(rows["level"] == "layer") & (rows["name"] == "conv1")].set_index(["tau", "timesteps"])[
        "cosine_mean"
    ]
    page = (ROOT / "docs" / "gradients.md").read_text(encoding="utf-8")
    seen = 0
    for tau, _, one, *cosines, conv1 in rows_of(page, "### τ: the argument for dropping"):
        assert one == "1"
        expected = [f"{network[float(tau), steps]:.3f}" for steps in (2, 4, 6, 8)]
        assert (cosines, conv1) == (expected, f"{first[float(tau), 8]:.3f}")
        seen += 1
    assert seen == 5
    short = {row[0]: row[1:] for row in rows_of(RESULTS, "## When the temporal gradient may be dropped")}
    taus = (1.1, 1.25, 1.5, 2.0, 4.0)
    assert short["whole network"] == [f"{network[tau, 8]:.3f}" for tau in taus]
    assert short["first convolution"] == [f"{first[tau, 8]:.3f}" for tau in taus]


def test_what_is_said_of_the_tasks_in_time_is_what_their_runs_reached() -> None:
    from sltt_bench.report.grouping import make_groups
    from sltt_bench.report.statistics import PairedEstimate
    from sltt_bench.results.reader import read_results

    text = " ".join(RESULTS.split())
    (rows,) = [
        group
        for group in make_groups(read_results([ROOT / "results" / "sequential-digits"]))
        if not group.key.smoke and "e-prop" not in group.methods
    ]
    ahead = rows.difference("last_test_top1", "bptt", "sltt")
    assert isinstance(ahead, PairedEstimate)
    assert ahead.interval is not None
    bptt, sltt = (rows.methods[name].stat("last_test_top1") for name in ("bptt", "sltt"))
    assert bptt is not None
    assert sltt is not None
    assert (
        f"`sequential-digits` {100 * bptt.mean:.1f} against {100 * sltt.mean:.1f} %, {100 * ahead.value:.2f} points "
        f"[{100 * ahead.interval.low:.2f}, {100 * ahead.interval.high:.2f}]"
    ) in text
    recall = [
        group
        for group in make_groups(read_results([ROOT / "results" / "delayed-recall"]))
        if group.settings["data.delay"] == 8 and len(group.methods["sltt"].seeds) == 3 and not group.key.smoke
    ]
    (recalled,) = recall
    sltt = recalled.methods["sltt"].stat("last_test_top1")
    assert sltt is not None
    assert sltt.std is not None
    assert f"BPTT 100.0 %, SLTT {100 * sltt.mean:.1f} ± {100 * sltt.std:.1f} %" in text


def test_the_table_of_rules_is_what_their_runs_reached() -> None:
    from sltt_bench.report.grouping import make_groups
    from sltt_bench.report.sections.runs.tables import overview
    from sltt_bench.results.reader import read_results

    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    folders = re.findall(r"`(results/(?:sequential-)?digits(?:-saccade)?/20261126-0[45]\S+)`", page)
    made: dict[str, list[tuple[str, str, str]]] = {}
    for folder in folders:
        (group,) = make_groups(read_results([ROOT / folder]))
        for row in overview(group, "bptt", brief=True).rows:
            assert row[1].text == "3"
            memory = row[7].text.rstrip("×")
            time = f"{row[5].text.rstrip('×')} {row[5].detail.removesuffix(' n = 3')}".strip()
            made.setdefault(row[0].text, []).append((f"{row[2].text} {row[2].detail}", memory, time))
    assert len(folders) == 3
    none = ("–", "–", "–")
    made["e-prop"] = [none, none, *made["e-prop"]]
    made["sltt-k3"].append(none)
    written = {row[0]: row[1:] for row in rows_of(page, "## Accuracy, memory and time")}
    assert written == {
        rule: [
            *(top1 for top1, _, _ in tasks),
            ", ".join(memory for _, memory, _ in tasks),
            tasks[1][2],
            tasks[2][2],
        ]
        for rule, tasks in made.items()
    }


def test_which_rules_are_told_apart_from_bptt_on_events_is_what_their_intervals_say() -> None:
    from sltt_bench.report.statistics import paired_difference

    cells = pd.read_csv(ROOT / "results" / "digits-saccade" / "20261126-051326-b806" / "cells.csv")
    top1 = {
        name: rows.set_index("seed")["last_test_top1"].to_dict() for name, rows in cells.groupby("method")
    }
    behind = {
        str(name): paired_difference(values, top1["bptt"]) for name, values in top1.items() if name != "bptt"
    }
    page = " ".join((ROOT / "docs" / "methods.md").read_text(encoding="utf-8").split())
    said = re.search(r"intervals leave out 0 for (.*?)\. They hold it for (.*?) and all others\.", page)
    assert said
    apart = {name for name, difference in behind.items() if difference and difference.excludes(0)}
    assert apart == {*re.findall(r"`(.+?)`", said[1])}
    assert not apart & {*re.findall(r"`(.+?)`", said[2])}
    for name, unit in (("sltt", " points"), ("rate", "")):
        difference = behind[name]
        assert difference
        assert difference.interval
        value, low, high = (
            f"{100 * part:+.2f}".replace("-", "−")
            for part in (difference.value, difference.interval.low, difference.interval.high)
        )
        assert f"`{name}` ({value}{unit} [{low}, {high}])" in page


def test_with_group_norm_the_gradient_on_rates_is_as_near_as_the_page_says() -> None:
    rows = pd.read_csv(ROOT / "results" / "digits-saccade" / "20261128-204156-ede7" / "method_gradients.csv")
    rows = rows[(rows["level"] == "network") & (rows["compared_method"] == "rate")]
    page = " ".join((ROOT / "docs" / "methods.md").read_text(encoding="utf-8").split())
    assert f"With group norm instead it is at {rows['cosine_mean'].item():.2f} (" in page


def test_what_is_said_of_e_prop_at_other_learning_rates_is_what_its_runs_reached() -> None:
    folder = ROOT / "results" / "sequential-digits" / "20261126-064232-3549"
    epochs = pd.read_csv(folder / "epochs.csv").merge(
        pd.read_csv(folder / "cells.csv")[["cell_id", "overrides"]], on="cell_id"
    )
    last = epochs.sort_values("epoch").groupby("cell_id").tail(1)
    top1 = 100 * last.groupby(["overrides", "method"]).test_top1.agg(["mean", "std"])

    def reached(lr: str, method: str) -> str:
        mean, std = top1.loc[(f'{{"train.lr": {lr}}}', method)]
        return f"{mean:.1f} ± {std:.1f}"

    page = " ".join((ROOT / "docs" / "methods.md").read_text(encoding="utf-8").split())
    assert (
        f"at a third of it, 0.001, it reaches {reached('0.001', 'e-prop')} % and SLTT {reached('0.001', 'sltt')} %, "
        f"at 0.01 {reached('0.01', 'e-prop')} and {reached('0.01', 'sltt')} % (`pp-prop`: "
        f"{reached('0.001', 'pp-prop')} and {reached('0.01', 'pp-prop')} %)"
    ) in page


def test_the_memory_of_the_rules_is_that_of_their_estimates() -> None:
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    estimates = pd.read_csv(ROOT / "results" / "digits" / "20261126-031521-00aa" / "estimates.csv")
    peaks = estimates.set_index(["timesteps", "method"])["peak_tensor_bytes"] / 2**20
    (header,) = re.findall(r"^\| T (\|.+)\|$", page, re.MULTILINE)
    columns = [re.findall(r"`([^`]+)`", cell) for cell in header.split("|")[1:]]
    seen = 0
    for timesteps, *cells in rows_of(page, "## Memory"):
        for methods, cell in zip(columns, cells, strict=True):
            assert {f"{peaks[int(timesteps), method]:.2f}" for method in methods} == {cell}, methods
            seen += len(methods)
    assert seen == len(peaks) == 4 * 11


def test_the_cosines_of_the_rules_are_those_of_their_analyses() -> None:
    def column(recipe: str, run: str, epoch: int, decimals: int) -> dict[str, str]:
        rows = pd.read_csv(ROOT / "results" / recipe / run / "method_gradients.csv")
        rows = rows[(rows["level"] == "network") & (rows["epoch"] == epoch)].set_index("compared_method")
        return {
            str(rule): f"{row.cosine_mean:.{decimals}f}, {row.norm_ratio_mean:.2f}".replace("nan", "–")
            for rule, row in rows.iterrows()
        }

    columns = [
        column("digits", "20261126-030756-c93c", 0, 5),
        column("digits-saccade", "20261126-030850-808d", 0, 5),
        column("sequential-digits", "20261126-030756-fce0", 0, 3),
        column("sequential-digits", "20261126-030756-fce0", 5, 3),
    ]
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    seen = 0
    for rule, *cells in rows_of(page, "## How near the gradient is to BPTT's"):
        assert cells == [figures.get(rule, "–") for figures in columns], rule
        seen += 1
    assert seen == 11


def test_the_report_sets_each_rules_gradient_beside_bptts() -> None:
    from sltt_bench.report.sections.gradients.families import find_families
    from sltt_bench.report.sections.gradients.tables import rules_by_layer, rules_table
    from sltt_bench.results.reader import read_results

    run = ROOT / "results" / "sequential-digits" / "20261126-030756-fce0"
    (family,) = find_families(read_results([run]))
    figures = pd.read_csv(run / "method_gradients.csv")
    last = figures[figures["epoch"] == 5]
    network = last[last["level"] == "network"].sort_values("cosine_mean", ascending=False)
    rows = rules_table(family, "g").rows
    assert (
        [row[0].text for row in rows[2:5]]
        == list(network["compared_method"][2:5])
        == ["bptt-d0.5", "tbptt-w2", "e-prop"]
    )
    assert [row[1].value for row in rows if row[1].value] == list(network["cosine_mean"].dropna())
    assert rows[-1][0].text == "sltt-k2"
    assert rows[-1][1].text == "–"
    assert [row[3].detail for row in rows[2:5]] == ["layer1.feedforward"] * 3
    assert len(rules_by_layer(family, "g").rows) == (last["level"] == "layer").sum()


# Sentences beside tables ---------------------------------------------------------------------------


def prose(page: str) -> str:
    """The page's words on one line."""
    return " ".join((ROOT / "docs" / page).read_text(encoding="utf-8").split())


def test_what_is_said_of_estimates_at_many_steps_is_what_their_table_says() -> None:
    document = (ROOT / "docs" / "estimate.md").read_text(encoding="utf-8")
    network, less, work = "", {}, {}
    for name, steps, _, _, saved, _, sltt, k1, k2, _ in rows_of(document, "Batch 256, fp16 mixed precision"):
        network = name or network
        less[network, int(steps)] = int(saved.rstrip(" %"))
        work[network, int(steps)] = sltt, k1, k2
    networks = {name for name, _ in less}
    assert len(networks) == 3
    at_six = [less[f"NF-ResNet-{depth}", 6] for depth in (34, 50, 101)]
    assert at_six[1] == at_six[2]
    text = prose("estimate.md")
    assert f"SLTT needs {at_six[0]} % (NF-ResNet-34) and {at_six[1]} % (-50, -101) less" in text
    assert all((less[name, 4] <= 70) and (less[name, 5] > 70) for name in networks)
    assert '"more than 70 %" holds, from T = 5 on' in text
    assert {round(less[name, 2], -1) for name in networks} == {40}
    assert all(abs(float(sltt) - 1) <= 0.0015 for sltt, _, _ in work.values())
    saved_by_k = {f"{100 * (1 - float(work[name, 6][k])):.0f}" for name in networks for k in (1, 2)}
    assert saved_by_k == {"55", "44"}
    assert "multiplies 55 % less at T = 6" in text
    assert "K = 2 saves 44 %" in text


def test_what_is_said_of_trials_too_few_and_too_short_is_what_they_reached() -> None:
    from sltt_bench.report.statistics import paired_difference

    folder = ROOT / "results" / "sequential-digits"
    untuned, short, whole = (
        pd.read_csv(folder / run / "cells.csv")
        for run in ("20261126-093450-b963", "20261126-091339-c6be", "20261126-093148-b676")
    )

    def reached(cells: pd.DataFrame, method: str) -> dict[int, float]:
        own = cells[(cells["kind"] == "run") & (cells["status"] == "ok") & (cells["method"] == method)]
        return {int(row.seed): 100 * row.last_test_top1 for row in own.itertuples()}

    lost = {}
    for method, tuned in (("sltt", short), ("sltt-k2", whole)):
        estimate = paired_difference(reached(untuned, method), reached(tuned, method))
        assert estimate is not None
        lost[method] = estimate
    text = prose("tuning.md")
    assert f"SLTT lost {lost['sltt'].value:.0f} points by it against the recipe's rate" in text
    trials = pd.read_csv(folder / "20261126-093148-b676" / "tuning.csv")
    of_k2 = trials[trials["method"] == "sltt-k2"].set_index("setting")["validation_top1"]
    samples = 287
    right = {rate: of_k2[f'{{"train.lr": {rate}}}'] * samples for rate in (0.001, 0.003)}
    assert all(count == pytest.approx(round(count), abs=1e-6) for count in right.values())
    more = right[0.001] - right[0.003]
    assert round(more) == 4
    words = f"by {100 * more / samples:.1f} points on {samples} validation samples, which is four samples"
    assert words in text
    k2 = lost["sltt-k2"]
    assert k2.interval is not None
    interval = f"95 % interval {k2.interval.low:.1f} to {k2.interval.high:.1f}"
    assert f"lost {k2.value:.1f} points of test accuracy by it (three seeds, {interval})" in text
