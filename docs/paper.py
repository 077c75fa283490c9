"""Writes docs/paper.md: the paper's costs, as quoted, beside what this project estimated and measured.

    python docs/paper.py            # from the committed results

Only ratios are set side by side: a gigabyte of 2022 was counted by another allocator on another card.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from sltt_bench.common.printable import make_console
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.planning.recipe_fields import Recipe
from sltt_bench.report.claims import HARMLESS
from sltt_bench.report.grouping import make_groups
from sltt_bench.report.groups import Group, NotComparable, method_order
from sltt_bench.report.metrics import METRICS
from sltt_bench.report.numbers import listed
from sltt_bench.report.sections.estimates.families import estimate_rows
from sltt_bench.results.reader import Results, print_unread, read_results

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "paper.md"
NONE = "–"


@dataclass(frozen=True)
class Published:
    """What one method cost in the paper: GB, hours of the whole training, top-1 in per cent; None: not quoted."""

    method: str
    memory_gb: float | None
    hours: float | None
    top1: float | None


PUBLISHED: dict[str, tuple[Published, ...]] = {
    "cifar10-resnet18": (Published("bptt", 3.00, 6.35, 94.60), Published("sltt", 1.09, 4.58, 94.59)),
    "cifar100-resnet18": (Published("bptt", 3.00, 6.39, 73.80), Published("sltt", 1.12, 4.68, 74.67)),
    "imagenet-resnet34": (
        Published("bptt", 28.41, 73.8, 66.47),
        Published("sltt", 8.47, 66.9, 66.19),
        Published("sltt-k1", None, 32.03, 66.17),
    ),
    "dvs-cifar10-vgg11": (Published("bptt", 3.70, 4.47, 73.60), Published("sltt", 1.07, 3.43, 77.30)),
    "dvs-gesture-vgg11": (Published("bptt", 5.82, None, 97.22), Published("sltt", 1.07, None, 97.92)),
}
"""Recipe → its rows, BPTT first. Second-hand: quoted by a fact-checked survey of August 2026."""

INTRODUCTION = """\
# The paper's numbers and ours

For readers of the paper (Meng et al., ICCV 2023, arXiv 2302.14311): its memory, hours and accuracies next to what this
project estimated and measured at the same T and batch.

- **Compare ratios only.** A gigabyte or an hour of 2022 comes from another card, another allocator and another version of
  torch. So every row divides a method by BPTT in the same column. The last column divides our ratio by the paper's: 1 is
  exact agreement, below 1 means that the method saves more here.
- **The paper's columns are *second-hand*:** a fact-checked survey of August 2026 quotes them; they were not read from the
  authors' logs. Hours are those of the whole training. ImageNet is stage 2, NF-ResNet-34 at T = 6.
- **The abstract** promises "more than 70 %" less memory and "more than 50 %" less time than BPTT on ImageNet. The time is
  that of SLTT with **K = 1**. SLTT itself goes backward through all T steps as BPTT does, and saves 9 % of the hours there.
- **No verdicts here.** Each figure of the paper below is also a claim of its recipe (`claims:`, with its source).
  `sltt-bench report` gives each claim a verdict from measured rows, with what speaks against it.
- `python docs/paper.py` makes this page from the results in this repository; a test keeps the two equal.

A – in a column of ours is a run that nobody has done yet; `sltt-bench run RECIPE` on a GPU fills it.
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE.relative_to(ROOT)}")


def page() -> str:
    """The whole page in Markdown."""
    results = read_results([ROOT / "results"])
    print_unread(results.skipped, make_console(stderr=True))
    recipes = {name: load_recipe(name) for name in PUBLISHED}
    estimates, cells, groups = _estimates(results), _measured_cells(results), measured_groups()
    parts = [
        INTRODUCTION,
        "## Memory\n",
        "- *Estimated:* peak live tensor bytes of one training iteration at the recipe's T and batch, backend `reference`, fp16 "
        "on CUDA, counted exactly on fake tensors (`sltt-bench estimate RECIPE --method bptt,sltt`). The paper's figures also "
        "hold what an allocator adds (workspaces, rounding, fragmentation). This weighs more in the smaller figure, so a "
        "measured ratio is expected to be above the estimated one.\n"
        "- *Measured:* the allocator's *reserved* peak, which is what the paper's code printed.\n"
        "- The last column uses the measured ratio, or the estimate where nothing was measured.\n",
        _memory_table(recipes, estimates, groups),
        "## Memory, measured: four figures\n",
        f"{_measured_on(groups)} Peaks of warm epochs in GB (10⁹ bytes). These are four different figures:\n",
        "- *live tensors:* what the program holds, counted to the byte;\n"
        "- *allocated:* what the allocator gave out for it, with rounding and the workspaces of libraries;\n"
        "- *reserved:* what the allocator took from the device, with its caches;\n"
        "- *NVML:* what the driver counts for the process, with CUDA's own context. `nvidia-smi` shows this figure.\n",
        "Each figure adds a fixed part, which weighs more in the smaller value: the further down, the smaller the saving. "
        f"{_in_gibibytes(groups)}\n",
        _figures_table(recipes, estimates, groups),
        "## Memory, beside the exact gradient at its leanest\n",
        "How much of SLTT's saving can BPTT have with its exact gradient? The same estimates, in GiB, with the native backend: "
        "BPTT as it is, BPTT unit by unit (`native.recompute`: the same gradient, but part of the network is computed again, "
        "[how](native-backend.md#bptt-unit-by-unit)), and SLTT. "
        "`sltt-bench estimate RECIPE --method bptt,sltt --backend reference,native --set native.recompute=false,true`.\n",
        _exact_gradient_table(recipes, results),
        "## Time\n",
        "- *Multiplications:* those of a whole epoch's training, forward and backward, counted by the same estimates. On a GPU "
        "that is kept busy they bound what time can be saved.\n"
        "- *Measured:* the median warm epoch on one GPU, in the runs described above. One seed has no interval.\n"
        "- *GPU at work:* its share of the time (NVML's utilisation), for BPTT and for the method. Where it is low, an epoch takes as "
        "long as the processor needs to launch the work. The ratio is then that of what is launched, and says little "
        "about a card that is kept busy.\n",
        _time_table(recipes, estimates, groups),
        "## Measured time of every method\n",
        "The same runs. Backward passes are those of one training iteration. BPTT makes one, through all steps. SLTT makes one "
        "for each of the T steps, and each has to be launched.\n",
        _methods_table(recipes, groups),
        "## Accuracy\n",
        "Top-1 of the last epoch in per cent; the paper's code keeps the epoch with the best test accuracy. Later papers quote SLTT differently: CIFAR-10 94.44, CIFAR-100 74.38 "
        "(mean; 74.67 is the best seed), DVS-CIFAR10 82.20. The last is 4.9 points above the 77.30 of the table. The authors' "
        "repository also has a loader of these data that flips and shifts them at random (`utils/cifar10_dvs_aug.py`), which "
        "neither their commands nor the recipe use: the two figures may be of different protocols.\n",
        _accuracy_table(recipes, cells),
    ]
    return "\n".join(parts)


def _measured_on(groups: dict[str, Group]) -> str:
    """What was measured with what, in sentences."""
    keys = [group.key for group in groups.values()]
    devices, software = sorted({key.hardware for key in keys}), sorted({key.software for key in keys})
    samples = {
        int(count) / group.key.batch_size
        for group in groups.values()
        for result in group.finished
        for count in result.epochs["samples"]
    }
    warm = {
        int((~rows["cold"].eq(True)).sum())
        for group in groups.values()
        for result in group.finished
        for _, rows in result.epochs.groupby(["run", "cell_id"])
    }
    seeds = {seed for group in groups.values() for result in group.finished for seed in result.seeds}
    data = "random data" if all(key.synthetic for key in keys) else "random and real data"
    return (
        f"Measured on {listed(devices)} with {listed(software)}: {data}, "
        f"{listed(sorted(f'{count:g}' for count in samples))} iterations an epoch, "
        f"{listed(sorted(map(str, warm)))} warm epochs, {len(seeds)} seed{'s' * (len(seeds) != 1)}."
    )


def _in_gibibytes(groups: dict[str, Group]) -> str:
    """What BPTT's reserved peaks are in the other unit."""
    pairs = [
        (peak / 2**30, published[0].memory_gb)
        for name, published in PUBLISHED.items()
        if name in groups and (peak := _value(groups[name], "peak_reserved_bytes", "bptt")) is not None
    ]
    ours = listed([_number(value, 2) for value, _ in pairs])
    return (
        f"In GiB (2³⁰ bytes) the reserved peaks of BPTT are {ours}, where the paper has "
        f"{listed([_number(value, 2) for _, value in pairs])}: its GB are most likely GiB of the same figure, since "
        "the paper's code (`train_SLTT.py`) prints the reserved peak divided by 2³⁰."
    )


# Tables -----------------------------------------------------------------------------------------


def _memory_table(recipes: dict[str, Recipe], estimates: pd.DataFrame, groups: dict[str, Group]) -> str:
    rows = []
    for name, recipe, base, one in _pairs(recipes):
        if (paper := _ratio(one.memory_gb, base.memory_gb)) is None:
            continue
        values = [_own(estimates, recipe, p.method, "peak_tensor_bytes", "last") for p in (base, one)]
        estimated = _ratio(*reversed(values))
        measured = _measured_ratio(groups.get(name), "peak_reserved_bytes", one.method)
        rows.append([
            *_experiment(name, recipe, one), _number(base.memory_gb, 2), _number(one.memory_gb, 2), _number(paper, 3),
            *(_number(_ratio(value, 1e9), 2) for value in values), _number(estimated, 3), _number(measured, 3),
            _number(_ratio(measured if measured is not None else estimated, paper), 2),
        ])  # fmt: skip
    return _table(
        ["experiment", "T", "batch", "method", "paper: BPTT, GB", "paper: method, GB", "paper: ratio",
         "estimated: BPTT, GB", "estimated: method, GB", "estimated: ratio", "measured, reserved: ratio", "ours ÷ paper's"],
        rows,
    )  # fmt: skip


FIGURES = ("peak_tensor_bytes", "peak_allocated_bytes", "peak_reserved_bytes", "peak_nvml_process_bytes")


def _figures_table(recipes: dict[str, Recipe], estimates: pd.DataFrame, groups: dict[str, Group]) -> str:
    rows = []
    for name, recipe, base, one in _pairs(recipes):
        if name not in groups or one.memory_gb is None:
            continue
        paper = _ratio(one.memory_gb, base.memory_gb)
        figures = [("the paper's", (base.memory_gb, one.memory_gb))]
        estimated = [_own(estimates, recipe, p.method, "peak_tensor_bytes", "last") for p in (base, one)]
        figures.append(("live tensors, estimated", tuple(value and value / 1e9 for value in estimated)))
        for metric in FIGURES:
            peaks = [_value(groups[name], metric, p.method) for p in (base, one)]
            label = METRICS[metric].label.replace(" (CUDA)", "")
            figures.append((f"{label}, measured", tuple(peak and peak / 1e9 for peak in peaks)))
        rows += [
            [*_experiment(name, recipe, one)[:3], figure, _number(values[0], 2), _number(values[1], 2),
             _number(ratio := _ratio(values[1], values[0]), 3), _number(_ratio(ratio, paper), 2)]
            for figure, values in figures
        ]  # fmt: skip
    headings = [
        "experiment",
        "T",
        "batch",
        "figure",
        "BPTT, GB",
        "SLTT, GB",
        "SLTT ÷ BPTT",
        "÷ the paper's ratio",
    ]
    return _table(headings, rows)


def _exact_gradient_table(recipes: dict[str, Recipe], results: Results) -> str:
    ways = (
        ("reference", "bptt", False), ("reference", "sltt", False), ("native", "bptt", False),
        ("native", "bptt", True), ("native", "sltt", False),
    )  # fmt: skip
    rows = []
    for name, recipe in recipes.items():
        values, work = (
            [
                _own(_estimates(results, backend, unit_by_unit=units), recipe, method, column, "last")
                for backend, method, units in ways
            ]
            for column in ("peak_tensor_bytes", "epoch_multiplications")
        )
        if values[3] is None:
            continue
        base, _, _, units, sltt = values
        rows.append([
            f"`{name}`", str(recipe.timesteps), str(recipe.train.batch_size), "bptt, sltt", *(_number(_ratio(value, 2**30), 2) for value in values),
            _number(_ratio(units, base), 2), _number(_ratio(units, sltt), 2), _number(_ratio(work[3], work[2]), 2),
        ])  # fmt: skip
    return _table(
        ["experiment", "T", "batch", "methods", "reference: BPTT", "reference: SLTT", "native: BPTT",
         "native: BPTT unit by unit", "native: SLTT", "unit by unit ÷ reference: BPTT", "… ÷ native: SLTT", "multiplications, … ÷ native: BPTT"],
        rows,
    )  # fmt: skip


def _time_table(recipes: dict[str, Recipe], estimates: pd.DataFrame, groups: dict[str, Group]) -> str:
    rows = []
    for name, recipe, base, one in _pairs(recipes):
        if (paper := _ratio(one.hours, base.hours)) is None:
            continue
        work = [_own(estimates, recipe, p.method, "epoch_multiplications", "last") for p in (one, base)]
        group = groups.get(name)
        measured = _measured_ratio(group, "epoch_s", one.method)
        rows.append([
            *_experiment(name, recipe, one), _number(base.hours, 2), _number(one.hours, 2), _number(paper, 3),
            _number(_ratio(*work), 3), _number(measured, 3), _at_work(group, one.method), _number(_ratio(measured, paper), 2),
        ])  # fmt: skip
    return _table(
        ["experiment", "T", "batch", "method", "paper: BPTT, h", "paper: method, h", "paper: ratio",
         "multiplications: ratio", "measured: ratio", "GPU at work", "ours ÷ paper's"],
        rows,
    )  # fmt: skip


def _methods_table(recipes: dict[str, Recipe], groups: dict[str, Group]) -> str:
    rows = [
        [
            f"`{name}`", str(recipes[name].timesteps), str(recipes[name].train.batch_size), method,
            _number(_value(group, "backward_passes", method), 0), _number(_value(group, "epoch_s", method), 3),
            _number(_measured_ratio(group, "epoch_s", method), 3), _percent(_value(group, "gpu_util", method)),
        ]
        for name, group in groups.items()
        for method in sorted((result.method for result in group.finished), key=method_order)
    ]  # fmt: skip
    headings = [
        "experiment",
        "T",
        "batch",
        "method",
        "backward passes",
        "warm epoch, s",
        "÷ BPTT",
        "GPU at work",
    ]
    return _table(headings, rows)


def _accuracy_table(recipes: dict[str, Recipe], cells: pd.DataFrame) -> str:
    rows = []
    for name, published in PUBLISHED.items():
        for one in published:
            share = _own(cells, recipes[name], one.method, "last_test_top1", "mean")
            rows.append([
                *_experiment(name, recipes[name], one), _number(one.top1, 2),
                _number(None if share is None else 100 * share, 2),
            ])  # fmt: skip
    return _table(["experiment", "T", "batch", "method", "paper", "measured, mean over seeds"], rows)


def _pairs(recipes: dict[str, Recipe]) -> list[tuple[str, Recipe, Published, Published]]:
    """(recipe's name, recipe, BPTT, another method) of every row."""
    return [
        (name, recipes[name], published[0], one)
        for name, published in PUBLISHED.items()
        for one in published[1:]
    ]


def _experiment(name: str, recipe: Recipe, one: Published) -> list[str]:
    return [f"`{name}`", str(recipe.timesteps), str(recipe.train.batch_size), one.method]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * 4 + ["---:"] * (len(headings) - 4), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


# Figures ----------------------------------------------------------------------------------------


def _estimates(results: Results, backend: str = "reference", *, unit_by_unit: bool = False) -> pd.DataFrame:
    """The estimates of a backend in the paper's precision, of one process, the newest last."""
    rows = estimate_rows(results)
    recomputed = rows.overrides.map(lambda own: bool(own.get("native.recompute")))
    rows = rows[(rows.backend == backend) & (recomputed == unit_by_unit)]
    alone = rows.ranks.astype(float).fillna(1) == 1
    return rows[alone & (rows.precision == "fp16") & (rows.device == "cuda")]


def _measured_cells(results: Results) -> pd.DataFrame:
    """Whole runs on real data on a GPU that finished; an empty flag counts as false."""
    rows = results.cells
    rows = rows[(rows.kind == "run") & (rows.status == "ok") & (rows.backend == "reference")]
    whole = ~rows.smoke.eq(True) & ~rows.synthetic.eq(True)
    return rows[whole & rows.device.astype(str).str.startswith("cuda")]


def measured_groups() -> dict[str, Group]:
    """Recipe → the newest comparable cells of its experiment on a GPU, of real or random data."""
    results = read_results([ROOT / "results" / name for name in PUBLISHED])
    newest: dict[str, Group] = {}
    harmless = HARMLESS["peak_memory"] & HARMLESS["warm_epoch_time"]
    for group in sorted(make_groups(results), key=lambda group: max(group.runs)):
        key, recipe = group.key, load_recipe(group.key.recipe)
        alone = (
            group.on_gpu
            and key.backend == "reference"
            and not key.smoke
            and not key.beside
            and key.ranks == "1"
        )
        own = (key.timesteps, key.batch_size) == (recipe.timesteps, recipe.train.batch_size)
        if alone and own and set(group.overrides) <= harmless:
            newest[key.recipe] = group
    return {name: newest[name] for name in PUBLISHED if name in newest}


def _value(group: Group, metric: str, method: str) -> float | None:
    """A figure of a method, mean over its seeds."""
    result = group.methods.get(method)
    known = result.stat(metric) if result is not None and result.finished else None
    return known.mean if known else None


def _measured_ratio(group: Group | None, metric: str, method: str) -> float | None:
    """The method's figure ÷ BPTT's, as the report has it."""
    estimate = group.ratio(metric, method, "bptt") if group else None
    return None if estimate is None or isinstance(estimate, NotComparable) else estimate.value


def _at_work(group: Group | None, method: str) -> str:
    """The share of the time in which the GPU was at work under BPTT and under the method."""
    if group is None:
        return NONE
    return f"{_percent(_value(group, 'gpu_util', 'bptt'))}, {_percent(_value(group, 'gpu_util', method))}"


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.0f} %"


def _own(rows: pd.DataFrame, recipe: Recipe, method: str, column: str, how: str) -> float | None:
    """A figure of ours at the recipe's own T and batch; None where there is none."""
    same = (
        (rows.recipe == recipe.name)
        & (rows.method == method)
        & (rows.timesteps == recipe.timesteps)
        & (rows.batch_size == recipe.train.batch_size)
    )
    values = rows[same][column].dropna()
    if values.empty:
        return None
    return float(values.iloc[-1] if how == "last" else getattr(values, how)())


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else value / base


def _number(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    main()
