"""The tables of figures in docs, row by row against the committed results that they come from."""

import math
import re
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product

import pandas as pd
import pytest
from benchmarks import predict
from benchmarks.launches import COMPETITORS, PROBLEMS, WITHIN, launches_of
from checkout import ROOT

from sltt_bench.estimate.trace import trace_memory
from sltt_bench.planning.plan import Cell
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.report.statistics import paired_difference

RESULTS = ROOT / "results"
UNREAD = {
    "architecture.md": "no figures",
    "concepts.md": "definitions",
    "elsewhere.md": "names of files and formats",
    "findings.md": "made by docs/findings.py: tests/documents/test_findings.py",
    "methods.md": "tests/documents/test_numbers_in_documents.py",
    "own-data.md": "names of fields",
    "own-method.md": "names of functions",
    "own-network.md": "names of functions",
    "paper.md": "made by docs/paper.py: tests/documents/test_paper.py",
    "reliability-tests.md": "what campaigns came to, with the command and revision of each",
    "reliability.md": "words",
    "report.md": "words; seconds of one machine, with the command beside them",
    "results.md": "tests/documents/test_numbers_in_documents.py",
    "rules.md": "words",
    "scale.md": "made by docs/scale.py: tests/documents/test_scale_page.py",
    "tasks.md": "tests/documents/test_tasks_document.py",
}
"""The pages whose tables are not read here, with the reason."""
READ = ("estimate.md", "gradients.md", "native-backend.md", "native-internals.md", "tuning.md")


def tables(page: str) -> Iterator[tuple[str, list[list[str]]]]:
    """Each table's first line and its rows, without backticks and asterisks."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for table in re.findall(r"(?:^\|.*\|$\n?)+", text, re.MULTILINE):
        lines = [re.sub(r"[`*]|\\", "", line) for line in table.splitlines()]
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        yield lines[0].strip("| "), rows[2:]


def table(page: str, first_line: str) -> list[list[str]]:
    """The rows of the one table whose first line begins with these words."""
    (rows,) = [rows for line, rows in tables(page) if line.startswith(first_line)]
    return rows


def read(run: str, file: str) -> pd.DataFrame:
    return pd.read_csv(RESULTS / run / file)


def reached(run: str) -> "pd.Series[float]":
    """Last-epoch accuracy in percent of each (overrides, method, seed)."""
    cells = read(run, "cells.csv")
    cells = cells[(cells["kind"] == "run") & (cells["status"] == "ok")]
    return 100 * cells.set_index(["overrides", "method", "seed"])["last_test_top1"]


def test_every_page_with_a_table_is_read_or_says_who_reads_it() -> None:
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert pages == {*UNREAD, *READ}
    for reason in UNREAD.values():
        for name in re.findall(r"(?:tests|docs)/[\w/]+\.py", reason):
            assert (ROOT / name).exists(), name


# docs/estimate.md ---------------------------------------------------------------------------------


@cache
def estimates(recipe: str) -> pd.DataFrame:
    rows = pd.concat(pd.read_csv(path) for path in sorted((RESULTS / recipe).glob("*/estimates.csv")))
    rows = rows[
        (rows["batch_size"] == 256) & (rows["precision"] == "fp16") & (rows["backend"] == "reference")
    ]
    rows = rows.drop_duplicates(["method", "timesteps"], keep="last").set_index(["method", "timesteps"])
    work = rows.filter(like="_multiplications").drop(columns="epoch_multiplications").sum(axis=1)
    return rows.assign(work=work, peak=rows["peak_tensor_bytes"] / 2**30)


def test_the_estimates_of_the_imagenet_networks_are_the_committed_ones_at_every_number_of_steps() -> None:
    network, seen = "", 0
    for name, steps, *written in table("estimate.md", "network | T | bptt"):
        network = name or network
        rows = estimates(network.replace("NF-ResNet-", "imagenet-resnet"))
        peak, work = (
            {method: value for (method, at), value in rows[column].items() if at == int(steps)}
            for column in ("peak", "work")
        )
        less = 100 * (1 - peak["sltt"] / peak["bptt"])
        expected = [f"{peak['bptt']:.1f}", f"{peak['sltt']:.1f}", f"{less:.0f} %", f"{peak['sltt-k1']:.1f}"]
        for method in ("sltt", "sltt-k1", "sltt-k2", "sltt-k4"):
            expected.append(f"{work[method] / work['bptt']:.3f}" if method in work else "–")
        assert written == expected, (network, steps)
        seen += 1
    assert seen == 24


def test_estimates_beside_runs_are_equal_to_the_byte_and_as_written() -> None:
    measured = read("cifar10-resnet18/20261124-085713-545a", "epochs.csv")
    measured = measured.set_index(["method", "timesteps"])["peak_tensor_bytes"]
    estimated = pd.concat(
        pd.read_csv(path) for path in (RESULTS / "cifar10-resnet18").glob("*/estimates.csv")
    )
    estimated = estimated[(estimated["batch_size"] == 8) & (estimated["backend"] == "reference")]
    estimated_peaks = estimated.set_index(["method", "timesteps"])["peak_tensor_bytes"]
    for steps, *written in table("estimate.md", "T | bptt | sltt | sltt-k2"):
        for method, text in zip(("bptt", "sltt", "sltt-k2"), written, strict=True):
            bytes_written = int(text.replace(" ", ""))
            assert {int(count) for count in measured.loc[[(method, int(steps))]]} == {bytes_written}
            assert {int(count) for count in estimated_peaks.loc[[(method, int(steps))]]} == {bytes_written}


GPU_RUNS = (
    "imagenet-resnet34/20261127-081228-61db", "cifar10-resnet18/20261127-081321-e693",
    "dvs-cifar10-vgg11/20261127-081633-12c4", "dvs-gesture-vgg11/20261127-081545-4e7a",
)  # fmt: skip
CURVE = "cifar10-resnet18/20261127-081357-6fd7"


@cache
def beside_the_allocator() -> pd.DataFrame:
    """(recipe, T, method) → the warm peaks of the cells that the H200 ran, beside the columns of their estimates."""
    epochs = pd.concat([read(run, "epochs.csv") for run in (*GPU_RUNS, CURVE)])
    figures = ["peak_tensor_bytes", "peak_allocated_bytes", "peak_reserved_bytes", "peak_nvml_bytes"]
    key = ["recipe", "timesteps", "method"]
    warm = epochs[~epochs["cold"]]
    peaks = warm.groupby(key, sort=False)[figures].max()
    peaks["before"] = warm.groupby(key, sort=False)["allocated_at_reset_bytes"].max()
    peaks["batch"] = warm.groupby(key, sort=False)["batch_size"].first()
    files = [path for run in GPU_RUNS for path in sorted((RESULTS / run).parent.glob("*/estimates.csv"))]
    estimated = pd.concat(pd.read_csv(path) for path in files)
    estimated = estimated[(estimated["precision"] == "fp16") & (estimated["backend"] == "reference")]
    estimated = estimated[estimated["device"] == "cuda"].drop_duplicates(key, keep="last").set_index(key)
    estimated = estimated.rename(columns={name: f"{name}_estimated" for name in peaks.columns})
    return peaks.join(estimated, how="left")


def test_the_peaks_of_the_h200_stand_beside_their_estimates_as_they_were_measured() -> None:
    rows, recipe, steps, batch, seen = beside_the_allocator(), "", 0, 0, 0
    for name, method, estimated, *written in table("estimate.md", "recipe, T, batch | method"):
        if name:
            recipe, steps, batch = name.split(", ")[0], *map(int, name.split(", ")[1:])
        row = rows.loc[(recipe, steps, method)]
        base = row["peak_tensor_bytes_estimated"]
        assert (estimated, batch) == (f"{base / 2**30:.3f}", row["batch"])
        columns = (("peak_tensor_bytes", 3), ("peak_allocated_bytes", 1), ("peak_reserved_bytes", 1))
        assert written == [
            f"{row[column] / 2**30:.3f}, +{100 * (row[column] / base - 1):.{digits}f} %" for column, digits in columns
        ]  # fmt: skip
        seen += 1
    assert seen == len([key for key in rows.index if key[0] != "cifar10-resnet18" or key[1] == 6])


def test_what_is_said_of_the_allocator_is_what_the_h200_measured() -> None:
    rows = beside_the_allocator()
    base = rows["peak_tensor_bytes_estimated"]
    more = 100 * (
        rows[["peak_tensor_bytes", "peak_allocated_bytes", "peak_reserved_bytes"]].div(base, axis=0) - 1
    )
    own = rows[[recipe != "cifar10-resnet18" or steps == 6 for recipe, steps, _ in rows.index]].index
    imagenet = own[[recipe == "imagenet-resnet34" for recipe, _, _ in own]]
    small, bptt = own.difference(imagenet), own[[method == "bptt" for _, _, method in own]]
    others = own.difference(bptt)
    assert (more.loc[imagenet, "peak_tensor_bytes"] == 0).all()
    added = (rows["peak_allocated_bytes"] - base) / 2**20
    kept = (
        rows["before"] - rows["parameter_bytes"] - rows["optimizer_state_bytes"] - 4 * rows["parameters"]
    ) / 2**20
    context = (rows["peak_nvml_bytes"] - rows["peak_reserved_bytes"]) / 2**20
    chosen = more.loc[[("cifar10-resnet18", steps, "sltt-k1") for steps in (2, 4)], "peak_tensor_bytes"]
    assert_page_says(
        "estimate.md",
        f"to {more.loc[own, 'peak_tensor_bytes'].max():.3f} % for the others",
        f"took {-chosen.max():.2f} % less than its estimate",
        f"a small network**, {span(added[small])} MiB, which is {span(more.loc[small.intersection(bptt), 'peak_allocated_bytes'])} % "
        f"of BPTT's peak and {span(more.loc[small.intersection(others), 'peak_allocated_bytes'])} % of the others'",
        f"adds {span(added[imagenet.intersection(others)])} MiB, to BPTT {added[imagenet.intersection(bptt)].iloc[0]:.0f}: "
        f"{span(more.loc[imagenet, 'peak_allocated_bytes'])} %. In every cell {span(kept[own])} MiB of that",
        f"is {span(more.loc[bptt, 'peak_reserved_bytes'])} % above the estimate with BPTT and "
        f"{span(more.loc[others, 'peak_reserved_bytes'])} % with the others",
        f"{span(context[own])} MiB more than that",
        f"are 2.4 GiB: the context and what the allocator added in any of these cells are {(context + added).max() / 1024:.1f} GiB",
    )
    assert f"{chosen.min():.2f}" == f"{chosen.max():.2f}"


def span(values: "pd.Series[float]") -> str:
    return f"{values.min():.0f} to {values.max():.0f}"


# docs/native-backend.md and docs/native-internals.md ------------------------------------------------


@pytest.fixture(scope="module")
def bench() -> pd.DataFrame:
    rows = pd.concat(pd.read_csv(path) for path in sorted((RESULTS / "bench").glob("*/bench.csv")))
    return rows.drop_duplicates(["row", "quantity", "subject", "baseline", "problem"], keep="last")


def bench_row(bench: pd.DataFrame, row: str, quantity: str, baseline: str) -> "pd.Series[float]":
    """The one measurement of a row whose baseline's name matches."""
    rows = bench[(bench["row"] == row) & (bench["quantity"] == quantity)]
    rows = rows[rows["baseline"].str.contains(baseline, regex=True)]
    assert len(rows) == 1, (row, quantity, baseline)
    return rows.iloc[0]


HEADLINES = (
    ("memory-sltt", "peak_tensor_bytes", "SLTTLIFNode$"),
    ("recompute-bptt", "peak_tensor_bytes", "single-step"),
    ("cpu-time-sltt", "wall_s", "SLTTLIFNode$"),
    ("cpu-time-bptt", "wall_s", "single-step"),
)


def test_the_headlines_of_the_native_backend_are_what_its_benchmark_measured(bench: pd.DataFrame) -> None:
    """Its memory and its time on a CPU: each is a row of the table of targets too."""
    sltt, exact, *times = (bench_row(bench, *row) for row in HEADLINES)
    times_of_sltt = exact["subject_value"] / sltt["subject_value"]
    cpu = [f"{row['ratio']:.2f}" for row in times]
    assert_page_says(
        "native-backend.md",
        f"**SLTT's memory**: {sltt['ratio']:.2f} of SpikingJelly's (fp32, counted)",
        f"**The exact gradient's memory**: {exact['ratio']:.2f} of SpikingJelly's BPTT and {times_of_sltt:.1f} times that of native SLTT",
        f"**Time on a CPU**: {cpu[0]} of SpikingJelly's for SLTT and {cpu[1]} for BPTT",
    )
    assert_page_says(
        "results.md",
        f"SLTT takes {sltt['ratio']:.2f} of SpikingJelly's memory, and BPTT, computed unit by unit, {exact['ratio']:.2f} (ResNet-18)",
    )


def test_what_each_idea_of_the_native_backend_gives_is_what_its_benchmark_counted(
    bench: pd.DataFrame,
) -> None:
    ratios = {
        (row.row, row.subject.split(": ")[1]): f"{row.ratio:.3f}"
        for row in bench[bench["row"].str.startswith("ideas")].itertuples()
    }
    text = {idea: gain for idea, _, gain in table("native-internals.md", "idea | predicted")}
    gains = {words: gain for idea, gain in text.items() for words in IDEAS if idea.startswith(words)}
    assert gains == {
        words: gain.format(*(ratios[place] for place in places)) for words, (gain, *places) in IDEAS.items()
    }


IDEAS: dict[str, tuple[str, *tuple[tuple[str, str], ...]]] = {
    "u, the potential": (
        "SLTT {}, BPTT {}; VGG-11 SLTT {}",
        *((row, "spikes not stored") for row in ("ideas-sltt", "ideas-bptt", "ideas-sltt-vgg11")),
    ),
    "once an iteration": (
        "BPTT {}, SLTT {}", ("ideas-bptt", "once an iteration"), ("ideas-sltt", "once an iteration")
    ),
    "pooling keeps": (
        "VGG-11 {}, ResNet-18 {}", ("ideas-sltt-vgg11", "lean pooling"), ("ideas-sltt", "lean pooling")
    ),
}  # fmt: skip


SPIKINGJELLY, RELU, RECOMPUTE = "SpikingJelly SLTTLIFNode", "ReLU network, T times", "native sltt, recompute"
UNITS, SAVING = "native bptt, recompute", "SpikingJelly LIFNode multi-step, blocks checkpointed in 3 chunks"
GRAPHS = ", CUDA graphs"
NORM = (", CUDA graphs, batch norm within neurons", ", CUDA graphs, batch norm by itself")
FASTEST = f", neurons in float32{GRAPHS}"
MEMORY = ("peak_tensor_bytes", 2.0**20, "MiB", 1)
SECONDS, MILLISECONDS = ("wall_s", 1.0, "s", 2), ("wall_s", 1e-3, "ms", 2)
TARGETS: tuple[tuple[str, tuple[str, str, str, str], tuple[str, float, str, int]], ...] = (
    ("SLTT, peak live tensor bytes", ("memory-sltt", "fp32", "native sltt", SPIKINGJELLY), MEMORY),
    ("the same in bf16", ("memory-sltt-mixed", "bf16", "native sltt", SPIKINGJELLY), MEMORY),
    ("the same with recompute: memory", ("recompute", "fp32", RECOMPUTE, SPIKINGJELLY), MEMORY),
    ("… against SpikingJelly with its own memory", ("recompute", "fp32", RECOMPUTE, f"{SPIKINGJELLY}, blocks checkpointed"), MEMORY),
    ("… time, batch 32", ("recompute", "batch 32", RECOMPUTE, SPIKINGJELLY), SECONDS),
    ("growth of SLTT's peak", ("growth", "T = 32", "native sltt, T = 32", "native sltt, T = 1"), MEMORY),
    ("BPTT, peak live tensor bytes", ("memory-bptt", "fp32", "native bptt", "SpikingJelly LIFNode single-step"), MEMORY),
    ("… SpikingJelly's memory optimisation at its best, which", ("memory-bptt", "fp32", "native bptt", SAVING), MEMORY),
    ("BPTT unit by unit", ("recompute-bptt", "fp32", UNITS, "SpikingJelly LIFNode single-step"), MEMORY),
    ("… SpikingJelly's memory", ("recompute-bptt", "fp32", UNITS, SAVING), MEMORY),
    ("… VGG-11, 48²", ("recompute-bptt-vgg11", "vgg11", UNITS, "SpikingJelly LIFNode single-step"), MEMORY),
    ("… VGG-11: SpikingJelly's memory", ("recompute-bptt-vgg11", "vgg11", UNITS, "SpikingJelly LIFNode multi-step, spikes as bits in 5 chunks"), MEMORY),
    ("… time, batch 32: native BPTT", ("recompute-bptt-time", "batch 32", "native bptt, recompute", "native bptt"), ("process_s", 1.0, "s", 2)),
    ("… time, batch 32: SpikingJelly's memory optimisation at its fastest", ("recompute-bptt-time-memopt", "batch 32", "native bptt, recompute", "SpikingJelly LIFNode single-step, spikes as bits"), ("process_s", 1.0, "s", 2)),
    ("CPU time, SLTT, batch 32", ("cpu-time-sltt", "batch 32", "native sltt", SPIKINGJELLY), SECONDS),
    ("… a ReLU network", ("cpu-time-sltt", "batch 32", "native sltt", RELU), SECONDS),
    ("CPU time, BPTT, batch 32", ("cpu-time-bptt", "batch 32", "native bptt", "SpikingJelly LIFNode single-step"), SECONDS),
    *(
        (begins, (f"gpu-time-sltt-{network}", network, f"native sltt{GRAPHS}", baseline), MILLISECONDS)
        for baseline, names in (
            (SPIKINGJELLY + FASTEST, ("GPU time, SLTT, ResNet-18, batch 128", "… NF-ResNet-34, 224", "… VGG-11, 128")),
            (RELU + GRAPHS, ("GPU time, SLTT, ResNet-18: a ReLU", "… NF-ResNet-34", "… VGG-11")),
        )
        for begins, network in zip(names, ("preact-resnet18", "nf-resnet34", "vgg11"), strict=True)
    ),
    ("GPU time, BPTT, ResNet-18", ("gpu-time-bptt", "resnet18", f"native bptt{GRAPHS}", f"SpikingJelly LIFNode multi-step{FASTEST}"), MILLISECONDS),
    ("GPU time, SLTT-K1", ("sltt-k1-against-bptt", "nf-resnet34", f"native sltt-k1{GRAPHS}", f"native bptt{GRAPHS}"), MILLISECONDS),
    *(
        (begins, ("norm-within-neurons", network, *(f"native {method}{norm}" for norm in NORM)), MILLISECONDS)
        for begins, network, method in (
            ("GPU time, batch norm within", "resnet18", "sltt"), ("… ResNet-18, BPTT", "resnet18", "bptt"), ("… VGG-11, SLTT", "vgg11", "sltt"),
        )
    ),
    ("GPU time, BPTT unit by unit", ("recompute-bptt-time", "batch 128", "native bptt, recompute", "native bptt"), MILLISECONDS),
    ("GPU time with its sensors", ("nvml-sampling", "resnet18", "native sltt, with sensors", "native sltt, without sensors"), MILLISECONDS),
)  # fmt: skip
"""How a row of the table begins; the row of the benchmark, its problem's words, subject and baseline; the quantity, its
unit and its digits."""


def test_the_targets_of_the_native_backend_are_measured_as_written(bench: pd.DataFrame) -> None:
    """Each row of the table is one row of the benchmark: ratio, interval, both sides in their unit, target and verdict."""
    table_rows = table("native-backend.md", "native against | target")
    for (name, wanted, written), target in zip(table_rows, TARGETS, strict=True):
        begins, (row, problem, subject, baseline), (quantity, unit, symbol, digits) = target
        assert name.startswith(begins)
        found = bench[bench["problem"].str.contains(problem)].set_index(
            ["row", "quantity", "subject", "baseline"]
        )
        (measured,) = found.sort_index().loc[[(row, quantity, subject, baseline)]].itertuples()
        sides = [f"{value / unit:.{digits}f}" for value in (measured.subject_value, measured.baseline_value)]
        between = " against ".join(sides) if row != "growth" else " to ".join(reversed(sides))
        interval = (
            ""
            if quantity == "peak_tensor_bytes"
            else f" [{measured.ratio_low:.3f}, {measured.ratio_high:.3f}]"
        )
        assert written.startswith(f"{measured.ratio:.3f}{interval} ({between} {symbol}"), (name, written)
        assert (
            math.isnan(measured.target) if wanted == "–" else float(wanted.split()[1]) == measured.target
        ), name
        assert ("not met" in written) == (str(measured.met) == "False"), name


LAUNCHES = {
    "reference, BPTT": "reference bptt",
    "reference, SLTT": "reference sltt",
    "a network of ReLUs, T times": "ReLU network, T times",
    "native, BPTT": "native bptt",
    "native, BPTT unit by unit": "native bptt, recompute",
    "native, SLTT": "native sltt",
    "native, SLTT-K1": "native sltt-k1",
}
"""Row of the table → what is counted."""
QUICK = {("preact-resnet18", "native, SLTT-K1")}
"""What is counted in a second, by the same code as the others."""


def launches_as_written() -> dict[tuple[str, str], str]:
    """(network, row) → the cell."""
    text = (ROOT / "docs" / "native-internals.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"^\| launches an iteration.*\n(?:^\|.*\n)+", text, re.MULTILINE)
    (_, *problems), _, *rows = (
        [cell.strip() for cell in line.strip(" |").split("|")] for line in lines.splitlines()
    )
    networks = [problem.split(",")[0] for problem in problems]
    return {
        (network, name): cell for name, *cells in rows for network, cell in zip(networks, cells, strict=True)
    }


def test_the_table_of_launches_has_each_network_and_competitor() -> None:
    networks = [problem.network.name for problem in PROBLEMS]
    assert set(launches_as_written()) == {(network, name) for network in networks for name in LAUNCHES}
    assert {competitor.name.removesuffix(WITHIN) for competitor in COMPETITORS} == {*LAUNCHES.values()}


@pytest.mark.parametrize(
    ("network", "name"),
    [
        pytest.param(*cell, marks=() if cell in QUICK else pytest.mark.long)
        for cell in product((problem.network.name for problem in PROBLEMS), LAUNCHES)
    ],
)
def test_launches_are_those_that_are_counted(network: str, name: str) -> None:
    (problem,) = (problem for problem in PROBLEMS if problem.network.name == network)
    (competitor,) = (one for one in COMPETITORS if one.name.removesuffix(WITHIN) == LAUNCHES[name])
    counted = launches_of(competitor, problem)
    assert launches_as_written()[network, name] == f"{counted.of.total()} ({counted.small})"


@pytest.mark.long
def test_what_bptt_moves_unit_by_unit_is_as_counted() -> None:
    units, usual = (
        [
            sum(of)
            for of in zip(*predict.by_kind(predict.counted("bptt", recompute=again)).values(), strict=True)
        ]
        for again in (True, False)
    )
    assert_page_says(
        "native-internals.md",
        f"{units[1] / 2**30:.2f} against {usual[1] / 2**30:.2f} GiB moved, {units[2] / 1e9:.0f} against "
        f"{usual[2] / 1e9:.0f} · 10⁹ multiply-adds, {units[0]} against {usual[0]} launches",
    )


ON_A_GPU = (
    "gpu-time-sltt-preact-resnet18",
    "gpu-time-sltt-nf-resnet34",
    "gpu-time-sltt-vgg11",
    "gpu-time-bptt",
)


def test_the_headlines_of_native_on_a_gpu_are_what_its_benchmark_measured(bench: pd.DataFrame) -> None:
    ratios = []
    for name in ON_A_GPU:
        found = bench[(bench["row"] == name) & bench["subject"].str.endswith(", CUDA graphs")]
        (row,) = found[found["baseline"].str.startswith("SpikingJelly")].itertuples()
        assert row.met in (True, "True")
        ratios.append(row.ratio)
    *sltt, bptt = ratios
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    resnet18, imagenet, vgg = sltt
    assert (
        f"SLTT takes {resnet18:.2f}, {imagenet:.2f} and {vgg:.2f} of the time of SpikingJelly's fastest measured mode "
        f"(ResNet-18, NF-ResNet-34, VGG-11 on an H200), BPTT {bptt:.2f} (ResNet-18)" in readme
    )
    between = f"SLTT takes {min(sltt):.2f} to {max(sltt):.2f} of "
    assert_page_says(
        "native-backend.md",
        f"{between}the time of SpikingJelly's fastest way of those measured (three networks), BPTT {bptt:.2f} (ResNet-18)",
    )
    assert_page_says("results.md", f"On an NVIDIA H200 {between}its time, and BPTT {bptt:.2f}.")


def test_memory_of_the_exact_gradient_on_a_gpu_is_what_its_runs_took() -> None:
    def allocated(run: str, method: str) -> str:
        epochs = pd.read_csv(RESULTS / "imagenet-resnet34" / run / "epochs.csv")
        of_method = epochs[(epochs["method"] == method) & ~epochs["cold"]]
        return f"{of_method['peak_allocated_bytes'].max() / 2**30:.2f}"

    exact = allocated("20261127-084751-0a87", "bptt")
    usual = [allocated("20261127-081228-61db", method) for method in ("bptt", "sltt")]
    native = [allocated("20261127-084817-6fd6", method) for method in ("bptt", "sltt")]
    assert_page_says(
        "native-backend.md",
        f"gave out {exact} GiB at most for BPTT unit by unit, where the reference took {usual[0]} for BPTT and {usual[1]} for "
        f"SLTT, and native {native[0]} and {native[1]}",
    )
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert (
        f"unit by unit it takes {exact} instead of the reference's {usual[0]} GiB (NF-ResNet-34, T = 6, H200)"
        in readme
    )


def test_what_is_read_from_the_rows_of_a_gpu_follows_from_them(bench: pd.DataFrame) -> None:
    rows = bench[bench["device_name"] == "NVIDIA H200"].set_index(["row", "subject", "baseline"])
    times = rows["subject_value"] * 1000
    k1, bptt = (
        rows.loc["sltt-k1-against-bptt"].loc["native sltt-k1, CUDA graphs"].iloc[0][side] * 1000
        for side in ("subject_value", "baseline_value")
    )
    backward = (bptt - k1) / 5  # of six steps five have no backward pass
    forward = bptt / 6 - backward
    called, replayed, also_called, also_replayed = (
        times.loc[f"gpu-time-sltt-{network}"].loc[name].iloc[0]
        for network in ("preact-resnet18", "nf-resnet34")
        for name in ("native sltt", "native sltt, CUDA graphs")
    )
    exact, usual = (
        rows.loc["recompute-bptt-time"].iloc[0][side] * 1000 for side in ("subject_value", "baseline_value")
    )
    spikes = 544 * 1024 * 128 * 6  # of ResNet-18 in an iteration
    packed, fused = ((9 + 3 * 11) * spikes / 1e9, 4 * (2 + 1 / 8) * spikes / 1e9)
    again = 448 * 1024 * 128 * 6  # of the nine layers, of 17, whose units are computed again
    (launches,) = (
        values
        for name, *values in table("native-internals.md", "an iteration of SLTT, fp16")
        if name == "launches"
    )
    launches = list(map(int, launches))
    warm = read("imagenet-resnet34/20261127-081228-61db", "epochs.csv")
    warm = warm[~warm["cold"]].groupby("method")["train_s"].median()
    (spared,) = (
        float(values[1].split(" ")[0])
        for name, *values in table("native-internals.md", "an iteration of SLTT, fp16")
        if name.startswith("SLTT-K1")
    )
    spared_ms = spared * 2**30 / 4e12 * 1e3
    assert_page_says(
        "native-internals.md",
        f"move {spared} GiB less in an iteration of SLTT-K1, at 4 TB/s {spared_ms:.1f} of the {k1:.2f} ms that were measured",
        f"with nothing else changed, K1 would take {(k1 - spared_ms) / bptt:.2f} of BPTT",
        "with the launches that it counts, each costs Python {:.2f} to {:.2f} ms".format(
            *sorted((called / launches[0], also_called / launches[1]))
        ),
        f"on the same card, it is {warm['sltt-k1'] / warm['bptt']:.3f}",
        f"nine torch operations: {packed:.1f} GB on paper, or at 4 TB/s {packed / 4:.1f} of the {exact - usual:.1f} ms by which it was slower",
        f"{fused:.1f} GB on paper",
        f"54 pairs of kernels fewer, and {2 * 2 * again / 1e9:.1f} GB on paper",
        f"For ResNet-18 native takes {called:.2f} ms as calls from Python and {replayed:.2f} replayed; even where there is "
        f"much to compute {also_called:.2f} and {also_replayed:.2f} (NF-ResNet-34)",
        f"a step forward takes {forward:.1f} ms and backward {backward:.1f}",
        f"backward is {backward / forward:.1f} times forward",
        f"So backward is {100 * backward / (forward + backward):.0f} % of an iteration",
    )


def test_what_is_said_of_memory_in_units_of_the_neurons_is_what_was_counted(bench: pd.DataFrame) -> None:
    mib = 2**20
    n, weights, gradients, batch = 544 * 1024 * 128 * 4 / mib, 42.7, 42.6, 128 * 3 * 32 * 32 * 4 / mib
    rest = weights + gradients + batch
    sltt, exact = (bench_row(bench, row, "peak_tensor_bytes", base) for row, base in (
        ("memory-sltt", "SLTTLIFNode$"), ("recompute-bptt", "single-step"),
    ))  # fmt: skip
    baseline, subject = sltt["baseline_value"] / mib, sltt["subject_value"] / mib
    leanest = bench_row(bench, "recompute-bptt", "peak_tensor_bytes", "checkpointed")
    time = bench_row(bench, "recompute-bptt-time", "process_s", "native bptt")
    floor = bench_row(bench, "memory-sltt", "peak_tensor_bytes", "ReLU")["baseline_value"] / mib
    carried, first_stage = n + rest, 32
    slower = bench_row(bench, "cpu-time-sltt", "wall_s", "ReLU")["ratio"]
    in_the_unit, single, bits = 2 * 192, 128, 51
    predicted = round(2 * in_the_unit + single + weights + gradients + bits, -1)
    assert_page_says(
        "native-internals.md",
        f"batch 128 there are 544 × 1024 × 128 neurons, and N is {n:.0f} MiB",
        f"SpikingJelly 4 N + weights + gradients + batch = {4 * n + rest:.0f} MiB (measured {baseline:.1f}), native 2 N + … = "
        f"{2 * n + rest:.0f} MiB (measured {subject:.1f}). A plain ReLU network run T times needs {floor:.1f} MiB",
        f"the potentials ({n:.1f} MiB), weights ({weights}), summed gradients ({gradients}) and the batch ({batch:.1f}): "
        f"{carried:.1f} MiB, {carried / baseline:.3f} of SpikingJelly's peak. The target leaves {0.35 * baseline - carried:.0f} MiB",
        f"That is {(carried + 2 * first_stage) / baseline:.3f} already",
        f"potentials and batch-norm inputs ({in_the_unit // 192} × 192), the gradients of the unit's spikes and of the shortcut "
        f"({in_the_unit // 192} × 192), a few single tensors (about {single}), weights and gradients "
        f"({weights + gradients:.0f}), bits ({bits}): about {predicted:,.0f} MiB. "
        f"Counted: {exact['subject_value'] / mib:.1f} MiB, {exact['ratio']:.3f} of SpikingJelly's BPTT "
        f"({exact['baseline_value'] / mib:.1f}), {leanest['ratio']:.2f} of its memory optimisation at the best of six settings "
        f"({leanest['baseline_value'] / mib:.1f}",
        f"That these passes make up the {100 * slower - 100:.0f} % of an iteration that were measured",
    )
    assert_page_says(
        "native-backend.md",
        f"On a CPU: {time['ratio']:.3f} [{time['ratio_low']:.3f}, {time['ratio_high']:.3f}] of native BPTT's",
    )


def test_what_is_read_from_the_predictions_follows_from_their_table() -> None:
    predicted = {name: values for name, *values in table("native-internals.md", "an iteration of SLTT, fp16")}
    moved = [float(value) for value in predicted["moved, GiB"]]
    first = [
        [float(value.split(" ")[0]) for value in predicted[f"{idea}: saves"]]
        for idea in ("channels last", "batch norm and neurons in one kernel")
    ]
    busy = predicted["multiprocessors with a tile, one step / two steps at a time"]
    words = " and ".join(busy[place].replace(" / ", " to ") for place in (0, 2))
    assert_page_says("native-internals.md", f"last stages ({words} of them busy)")
    for place, name in ((0, "ResNet-18"), (2, "VGG-11")):
        left = moved[place] - first[0][place]
        share = f"{100 * first[1][place] / left:.0f} % "
        amount = f"({first[1][place]} of {left:.1f}{' GiB' if place == 0 else ''})"
        assert_page_says(
            "native-internals.md",
            f"{share}of what is left in {name} {amount}" if place == 0 else f"{share}in {name} {amount}",
        )


@pytest.mark.long
def test_the_table_of_predictions_is_what_its_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    predict.main()
    page = (ROOT / "docs" / "native-internals.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() in page


@pytest.mark.long
def test_checkpoints_on_native_take_what_is_said_of_them() -> None:
    def mib(method: str, backend: str, steps: int) -> str:
        recipe = load_recipe("digits", {"timesteps": steps}, chosen_methods=[method])
        return f"{trace_memory(Cell(recipe, method, backend, 0, device='cpu'), 'cpu').peak_bytes / 2**20:.1f}"

    assert_page_says(
        "native-backend.md",
        f"On `digits` at T = 16, `bptt-ckpt2` takes {mib('bptt-ckpt2', 'native', 16)} MiB where `reference` takes "
        f"{mib('bptt-ckpt2', 'reference', 16)} and native `bptt` {mib('bptt', 'native', 16)}; at T = 4 it saves nothing over native `bptt` "
        f"({mib('bptt-ckpt2', 'native', 4)} against {mib('bptt', 'native', 4)} MiB)",
    )


# docs/gradients.md ----------------------------------------------------------------------------------


def test_delayed_recall_over_three_seeds_is_what_its_run_reached() -> None:
    top1 = reached("delayed-recall/20261124-080803-d31b").groupby(level=["overrides", "method"])
    mean, std = top1.mean(), top1.std()
    rows = table("gradients.md", "D | bptt | sltt | sltt-k2")
    for delay, *written in rows:
        overrides = "{}" if delay == "8" else f'{{"data.delay": {delay}}}'
        places = [(overrides, method) for method in ("bptt", "sltt", "sltt-k2")]
        assert written == [f"{mean[place]:.1f} ± {std[place]:.1f}" for place in places], delay
    assert [row[0] for row in rows] == ["1", "2", "4", "8", "16"]


def test_delayed_recall_with_less_noise_is_what_its_runs_reached_at_seed_0() -> None:
    none, quarter, full = (
        reached(f"delayed-recall/{run}")
        for run in ("20261124-085802-4b89", "20261124-090924-a861", "20261124-080803-d31b")
    )
    for delay, *written in table("gradients.md", "D | sltt, noise 0"):
        of_delay = "" if delay == "8" else f'"data.delay": {delay}'
        with_noise = [
            f"{{{', '.join(part for part in (of_delay, noise) if part)}}}"
            for noise in ('"data.noise": 0.0', '"data.noise": 0.25', "")
        ]
        expected = [
            none[with_noise[0], "sltt", 0], none[with_noise[0], "sltt-k2", 0],
            quarter[with_noise[1], "sltt", 0], full[with_noise[2], "sltt", 0],
        ]  # fmt: skip
        assert written == [f"{value:.1f}" for value in expected], delay
        bptt = [
            none[with_noise[0], "bptt", 0],
            quarter[with_noise[1], "bptt", 0],
            full[with_noise[2], "bptt", 0],
        ]
        assert [f"{value:.1f}" for value in bptt] == ["100.0"] * 3
    assert_page_says("gradients.md", "BPTT is at 100.0 % in all of these cells")


def test_the_known_answers_of_delayed_recall_are_what_its_runs_reached() -> None:
    short, long = (
        reached(f"delayed-recall/{run}") for run in ("20261124-090930-6eef", "20261124-080803-d31b")
    )
    seen = 0
    for neurons, delay, *written in table("gradients.md", "neurons | D"):
        tau = re.findall(r"τ = ([\d.]+)", neurons)[0]
        of_delay = '"data.delay": 1, ' if delay == "1" else ""
        overrides = f'{{{of_delay}"neuron.tau": {float(tau)}}}'
        for method, text in zip(("bptt", "sltt", "sltt-k2"), written, strict=True):
            value = long["{}", method, 0] if tau == "20" else short[overrides, method, 0]
            assert text in (f"{value:.1f}", f"{value:.2f}"), (neurons, delay, method)
            seen += 1
    assert seen == 15


def test_sequential_digits_of_three_methods_is_what_its_run_reached() -> None:
    top1 = reached("sequential-digits/20261123-220611-d0ee").groupby(level="method")
    mean, std = top1.mean(), top1.std()
    text = " / ".join(f"{mean[method]:.1f} ± {std[method]:.1f}" for method in ("bptt", "sltt", "sltt-k2"))
    seeds = {
        method: dict(top1.get_group(method).droplevel(["overrides", "method"])) for method in ("bptt", "sltt")
    }
    ahead = paired_difference(seeds["bptt"], seeds["sltt"])
    assert ahead is not None
    assert ahead.interval is not None
    assert_page_says(
        "gradients.md",
        f"{text} % for bptt / sltt / sltt-k2",
        f"{ahead.value:.2f} points ahead [{ahead.interval.low:.2f}, {ahead.interval.high:.2f}]",
    )


def network_cosines(run: str, file: str = "gradients.csv") -> pd.DataFrame:
    rows = read(run, file)
    return rows[rows["level"] == "network"]


def test_the_cosines_of_digits_before_and_after_training_are_those_of_the_analysis() -> None:
    rows = network_cosines("digits/20261124-083716-d122").set_index(["tau", "timesteps", "epoch"])
    seen = 0
    for tau, *written in table("gradients.md", "τ | T = 2, epoch 0"):
        places = [(float(tau), steps, epoch) for epoch in (0, 15) for steps in (2, 8)]
        expected = [f"{rows.loc[place, 'cosine_mean']:.4f}" for place in places]
        assert written == [*expected, f"{rows.loc[places[-1], 'temporal_share_mean']:.3f}"], tau
        seen += 1
    assert seen == 5


def test_resets_and_surrogates_on_digits_are_those_of_the_analysis() -> None:
    rows = read("digits/20261124-085016-bd7a", "gradients.csv")
    rows = rows[rows["epoch"] == 15]
    network = rows[rows["level"] == "network"].set_index(["surrogate", "reset"])
    lowest = rows[rows["level"] == "layer"].groupby(["surrogate", "reset"])["cosine_mean"].min()
    for surrogate, *written in table("gradients.md", "surrogate | soft reset"):
        expected = []
        for reset in ("soft", "hard"):
            whole, layer = network.loc[(surrogate, reset)], lowest[surrogate, reset]
            expected.append(f"{whole['cosine_mean']:.3f}; {whole['spatial_share_mean']:.2f}; {layer:.3f}")
        assert written == expected, surrogate


def test_the_variance_of_drawn_steps_is_that_of_the_analyses() -> None:
    runs = {
        "ResNet-18": ("cifar10-resnet18/20261124-082355-179f", 0),
        "digits": ("digits/20261124-083716-d122", 15),
    }
    seen = 0
    for what, c, *written in table("gradients.md", "c | K = 1"):
        run, epoch = runs[what.split(" ")[0]]
        tau = float(re.findall(r"τ = ([\d.]+)", what)[0])
        rows = read(run, "draws.csv")
        rows = rows[(rows["tau"] == tau) & (rows["timesteps"] == 8) & (rows["epoch"] == epoch)].set_index(
            "drawn"
        )
        variance, cosine = rows["relative_variance_mean"], rows["cosine_to_sltt_mean"]
        values = [variance[4], *variance[[1, 2, 4]], *cosine[[1, 4]]]
        decimals = [len(text.partition(".")[2]) for text in (c, *written)]
        assert [c, *written] == [f"{value:.{n}f}" for value, n in zip(values, decimals, strict=True)], what
        seen += 1
    assert seen == 4


def test_the_multiplications_of_the_backward_pass_are_those_counted() -> None:
    runs = {
        "ResNet-18": "cifar10-resnet18/20261124-082355-179f",
        "digits": "digits/20261124-083716-d122",
        "sequential-digits (recurrent)": "sequential-digits/20261124-084807-348e",
    }
    seen = 0
    for what, *written, share in table("gradients.md", "network, T | in space"):
        network, steps = what.split(", T = ")
        rows = read(runs[network], "operations.csv").drop_duplicates(["timesteps", "counted_method"])
        rows = rows[rows["timesteps"] == int(steps)].set_index("counted_method")
        counts = rows[["spatial_multiplications", "temporal_multiplications"]].div(rows["samples"], axis=0)
        space, time = counts.loc["bptt"]
        assert counts.loc["sltt", "spatial_multiplications"] == space
        k2 = "as sltt" if steps == "2" else f"{counts.loc['sltt-k2', 'spatial_multiplications']:,.0f}"
        k1 = f"{counts.loc['sltt-k1', 'spatial_multiplications']:,.0f}"
        assert written == [f"{space:,.0f}", k2, k1, f"{time:,.0f}"], what
        percentage = 100 * time / (space + time)
        assert share == (f"{percentage:.1f} %" if percentage > 1 else f"{percentage:.2f} %"), what
        seen += 1
    assert seen == 4


def test_cosines_at_initialisation_stand_beside_what_training_reached() -> None:
    runs = {
        "digits": "digits/20261124-083716-d122",
        "sequential-digits": "sequential-digits/20261124-084807-348e",
        "delayed-recall": "delayed-recall/20261124-084834-1497",
    }
    recall = reached("delayed-recall/20261124-080803-d31b").groupby(level=["overrides", "method"]).mean()
    seen = 0
    for task, *written, behind in table("gradients.md", "task, whole network"):
        name = task.split(",")[0]
        rows = network_cosines(runs[name])
        rows = rows[(rows["tau"] == 1.1) & (rows["timesteps"] == 6)] if name == "digits" else rows
        if delay := re.findall(r"D = (\d)", task):
            overrides = {"1": '{"data.delay": 1}', "8": "{}"}[delay[0]]
            cells = read(runs[name], "cells.csv").set_index("overrides")["cell_id"]
            rows = rows[rows["cell_id"] == cells[overrides]]
            assert behind == f"{recall[overrides, 'bptt'] - recall[overrides, 'sltt']:.1f} points"
        cosines = rows.sort_values("epoch")["cosine_mean"].iloc[[0, -1]]
        decimals = [len(text.partition(".")[2]) for text in written]
        assert written == [f"{cosine:.{n}f}" for cosine, n in zip(cosines, decimals, strict=True)], task
        seen += 1
    assert seen == 4


def assert_page_says(document: str, *sentences: str) -> None:
    """The page says these, wherever its lines break."""
    page = " ".join((ROOT / "docs" / document).read_text(encoding="utf-8").split())
    for sentence in sentences:
        assert sentence in page, sentence


def test_what_is_said_of_resnet18_is_what_its_analysis_found() -> None:
    rows = read("cifar10-resnet18/20261124-082355-179f", "gradients.csv").set_index(
        ["level", "tau", "timesteps"]
    )
    whole = rows.loc["network"]
    shares, lengths, cosines = (
        whole[name] for name in ("temporal_share_mean", "spatial_share_mean", "cosine_mean")
    )
    at_home = shares[1.1][[2, 4, 6, 8]]
    layers = rows.loc[("layer", 2.0, 8)].set_index("name")["cosine_mean"]
    slow = rows.loc[("layer", 1.5, 8)].set_index("name")["cosine_mean"]
    assert {round(shares[2.0, steps], 2) for steps in (6, 8)} == {0.6}
    assert_page_says(
        "gradients.md",
        f"the two directions agree to {cosines[1.1][[2, 4, 6, 8]].min():.2f}",
        f"{100 * at_home.min():.0f} to {100 * at_home.max():.0f} % as long as g",
        f"from {at_home.min():.3f} to {at_home.max():.3f} for T = 2 to 8",
        "At τ = 2 the temporal part is 60 % as long as g (T = 6 and 8), "
        f"at τ = 4 it is {100 * shares[4.0, 8]:.0f} % (T = 8)",
        f"‖g_s‖ / ‖g‖ is {lengths[1.1, 6]:.2f} at τ = 1.1 and {lengths[2.0, 6]:.2f} at τ = 2 (T = 6)",
        f"it is {layers['layer4.1.conv2']:.2f} in the last block's second convolution, {layers['layer3.1.conv1']:.2f} in "
        f"`layer3.1.conv1`, {layers['layer2.0.conv1']:.2f} in `layer2.0.conv1` and {layers['conv1']:.2f} in `conv1`, while the "
        f"whole network's {cosines[2.0, 8]:.2f} shows none of it",
        f"cosine ({cosines[1.5, 8]:.2f} and {cosines[2.0, 8]:.2f} at τ = 1.5 and 2, T = 8) hides that the first convolution of "
        f"ResNet-18 is at {slow['conv1']:.2f} and {layers['conv1']:.2f}",
    )
    after_four = [cosines[tau, steps] - cosines[tau, 4] for tau in (1.1, 1.25, 1.5, 2.0) for steps in (6, 8)]
    assert max(map(abs, after_four)) < 0.0105
    assert_page_says("gradients.md", "falls from T = 1 to T = 4 and then stays to about 0.01 (τ ≤ 2;")
    variance = read("cifar10-resnet18/20261124-082355-179f", "draws.csv").set_index(
        ["tau", "timesteps", "drawn"]
    )
    deviation = variance.loc[(1.1, 8, 1), "relative_variance_mean"] ** 0.5
    assert_page_says(
        "gradients.md", f"K = 1 on ResNet-18 has a standard deviation of {deviation:.2f} times the gradient"
    )


def test_what_is_said_of_digits_is_what_its_analyses_found() -> None:
    of_depth, of_time = (
        read(f"digits/{run}", "gradients.csv") for run in ("20261124-085810-901a", "20261124-083716-d122")
    )
    blocks = read("digits/20261124-085810-901a", "cells.csv").set_index("cell_id")["overrides"]
    depth = of_depth["cell_id"].map(blocks).str.extract(r"channels\": (\[[\d, ]+\])")[0]
    rows = pd.concat(
        [of_depth.assign(depth_of=depth), of_time[of_time["timesteps"] == 6].assign(depth_of="[32, 64]")]
    )
    rows = rows[rows["tau"] == 2.0].set_index(["depth_of", "epoch", "level", "name"]).sort_index()
    three = ("[32]", "[32, 64]", "[32, 64, 64]")
    first = [rows.loc[(net, 0, "layer", "conv1"), "temporal_share_mean"] for net in three]
    whole = [rows.loc[(net, 15, "network")].iloc[0] for net in three]
    course = of_time[(of_time["tau"] == 2.0) & (of_time["timesteps"] == 8) & (of_time["level"] == "network")]
    course = course.set_index("epoch")
    slowest = of_time[(of_time["tau"] == 4.0) & (of_time["timesteps"] == 8) & (of_time["level"] == "network")]
    slowest = slowest.set_index("epoch").loc[15]
    assert_page_says(
        "gradients.md",
        f"the temporal part is {100 * slowest['temporal_share_mean']:.0f} % as long as g the angle between g and g_s stays small "
        f"(cosine {slowest['cosine_mean']:.2f})",
        "{:.2f} of ‖g‖ points along g_s, and {:.2f} across it".format(*along_and_across(slowest)),
        f"in `conv1` at initialisation is {listed(first, 2)}, in the whole network after training "
        f"{listed([row['temporal_share_mean'] for row in whole], 2)} (cosine {listed([row['cosine_mean'] for row in whole], 3)})",
        f"(τ = 2, T = 8: {', '.join(f'{value:.4f}' for value in course.loc[[0, 1, 5, 15], 'cosine_mean'])} after 0, 1, 5 and 15",
        f"grows from {course.loc[0, 'temporal_share_mean']:.3f} to {course.loc[15, 'temporal_share_mean']:.3f}",
    )


def along_and_across(figures: pd.Series) -> tuple[float, float]:
    """Of the temporal part g − g_s, as shares of ‖g‖: what points along g_s, and what is orthogonal to it."""
    cosine = figures["cosine_mean"]
    return cosine - figures["spatial_share_mean"], math.sqrt(1 - cosine**2)


def listed(values: Sequence[float], digits: int) -> str:
    return f"{', '.join(f'{value:.{digits}f}' for value in values[:-1])} and {values[-1]:.{digits}f}"


def test_what_is_said_of_a_detached_reset_is_what_its_analysis_found() -> None:
    detached, attached = (
        read(f"digits/{run}", "gradients.csv") for run in ("20261124-090321-0b79", "20261124-085016-bd7a")
    )
    texts = {}
    for reset in ("soft", "hard"):
        rows = detached[(detached["epoch"] == 15) & (detached["reset"] == reset)].set_index("level")
        whole, lowest = rows.loc["network"], rows.loc["layer", "cosine_mean"].min()
        texts[reset] = f"{whole['cosine_mean']:.3f}; {whole['spatial_share_mean']:.2f}; {lowest:.3f}"
    own = attached[(attached["epoch"] == 15) & (attached["level"] == "network")]
    triangle = own[own["surrogate"] == "triangle"].set_index("reset")
    kept = triangle["cosine_mean"]
    turned = {
        reset: [f"{value:.2f}".replace("-", "−") for value in along_and_across(triangle.loc[reset])]
        for reset in kept.index
    }
    soft = [
        rows[(rows["epoch"] == 15) & (rows["reset"] == "soft") & (rows["surrogate"] == "triangle")]
        .set_index("level")
        .loc["network", "temporal_share_mean"]
        for rows in (attached, detached)
    ]
    assert_page_says(
        "gradients.md",
        f"agrees better under soft reset ({kept['soft']:.2f} against {kept['hard']:.2f})",
        f"soft reset {texts['soft']}, hard reset {texts['hard']}, both triangle",
        f"(triangle: {turned['soft'][0]} of ‖g‖ along g_s, {turned['soft'][1]} across it)",
        f"under hard reset it turns it only ({turned['hard'][0]} and {turned['hard'][1]})",
        f"rises from {soft[0]:.2f} to {soft[1]:.2f}",
    )


def test_what_is_said_of_sequences_is_what_their_analyses_found() -> None:
    network = network_cosines("sequential-digits/20261124-084807-348e").set_index("epoch")["cosine_mean"]
    recall = read("delayed-recall/20261124-084834-1497", "gradients.csv")
    cells = read("delayed-recall/20261124-084834-1497", "cells.csv").set_index("overrides")["cell_id"]
    at_first = recall[(recall["cell_id"] == cells["{}"]) & (recall["epoch"] == 0)]
    whole = at_first[at_first["level"] == "network"]["cosine_mean"].item()
    hidden = at_first[at_first["level"] == "layer"]["cosine_mean"].min()
    assert_page_says(
        "gradients.md",
        f"({network[1]:.2f} after one epoch, {network[5]:.2f} after five)",
        f"By its whole-network cosine at initialisation `delayed-recall` ({whole:.2f})",
        f"(the hidden layer alone is at {hidden:.2f})",
    )


# docs/tuning.md -------------------------------------------------------------------------------------


def test_what_tuning_changes_is_what_the_three_runs_reached() -> None:
    untuned, short, whole = (
        f"sequential-digits/{run}"
        for run in ("20261126-093450-b963", "20261126-091339-c6be", "20261126-093148-b676")
    )
    means, ranks, rates = [], [], []
    for run in (untuned, short, whole):
        cells = read(run, "cells.csv")
        cells = cells[(cells["kind"] == "run") & (cells["status"] == "ok")]
        cells = cells.drop_duplicates(["method", "seed"], keep="last")
        mean = 100 * cells.groupby("method")["last_test_top1"].mean()
        means.append(mean)
        ranks.append(mean.rank(ascending=False).astype(int))
    for run in (short, whole):
        trials = read(run, "tuning.csv")
        chosen = trials[trials["chosen"].astype(str).str.lower() == "true"]
        rates.append({row.method: row for row in chosen.itertuples()})
    for method, *written in table("tuning.md", "method | at the recipe's | rate chosen"):
        expected = [f"{mean[method]:.1f} ({rank[method]})" for mean, rank in zip(means, ranks, strict=True)]
        assert written[::2] == expected, method
        for text, by_method in zip(written[1::2], rates, strict=True):
            assert text in str(by_method[method]), method
