"""Writes the table of docs/scale.md: what the paper's whole table takes on 1, 8 and 64 GPUs, from estimates and a data
sheet.

    python docs/scale.py                    # with the assumptions below
    python docs/scale.py --slowdown 4       # print it for a machine on which a run takes 4 times its lower bound

Nothing in it is measured.
"""

import argparse
import heapq
import runpy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pandas as pd

from sltt_bench.common.format import format_bytes
from sltt_bench.common.printable import make_console
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.planning.recipe_fields import Recipe
from sltt_bench.results.reader import print_unread, read_results
from sltt_bench.results.schema import ESTIMATES_FILE
from sltt_bench.training.distributed import exchanged_bytes

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "scale.md"
BEGIN, END = "<!-- made by docs/scale.py -->\n", "<!-- end -->\n"

RECIPES = (
    "cifar10-resnet18", "cifar100-resnet18", "dvs-cifar10-vgg11", "dvs-gesture-vgg11", "imagenet-resnet34",
    "imagenet-resnet50", "imagenet-resnet101",
)  # fmt: skip
SEEDS = 3
GPU, GPU_BYTES, LINK_BYTES_S = "a100-80gb-sxm", 80e9, 300e9
"""The card of the estimates; its memory, and NVLink 3 in one direction. Source: NVIDIA A100 data sheet (600 GB/s both ways)."""
SLOWDOWN = 10.0
"""A run's time over its lower bound: the paper's hours on ImageNet (docs/paper.md) over the bounds here give 9.2 to 9.8.

Small networks keep no card busy: on CIFAR-10 the paper's hours are three times as many again."""
USABLE = 0.8
"""Share of the memory that live tensors may take: an allocator, workspaces and CUDA's context take the rest."""
DIVIDED = 0.9
"""Efficiency of a cell that is divided, beside the exchange: small batches keep a GPU less busy."""
MOST_PER_CELL = 8


@dataclass(frozen=True)
class Work:
    """The training of one cell."""

    recipe: str
    method: str
    hours: float
    """On one device."""
    fixed_bytes: int
    """Of the peak of live tensors: what every device holds of a divided cell (weights, optimiser, gradients)."""
    shared_bytes: int
    """The rest, which shrinks with the share of the batch."""
    exchange_s_alone: float
    """Seconds of all exchanges of the training if each sent the whole gradient."""
    needs: str | None = None
    """The recipe whose training comes first."""

    def fits(self, devices: int) -> bool:
        """Whether a share of a batch fits into a device."""
        buffer = self.fixed_bytes // 3 if devices > 1 else 0
        return self.fixed_bytes + buffer + self.shared_bytes / devices <= USABLE * GPU_BYTES

    def hours_on(self, devices: int) -> float:
        """With every batch divided over so many devices."""
        if devices == 1:
            return self.hours
        sent = exchanged_bytes(10**6, devices) / 10**6
        return self.hours / devices / DIVIDED + self.exchange_s_alone * sent / 3600


def works(slowdown: float = SLOWDOWN) -> list[Work]:
    """Every cell of the paper's table, stage 1 of ImageNet once for all methods and seeds."""
    results = read_results([ROOT / "results"])
    print_unread(results.skipped, make_console(stderr=True))
    estimates = results.rows(ESTIMATES_FILE)
    estimates = estimates[(estimates["gpu"] == GPU) & (estimates["backend"] == "reference")]
    found = []
    for name in RECIPES:
        recipe = load_recipe(name)
        if recipe.init_from is not None:
            first = load_recipe(recipe.init_from)
            found.append(
                _work(first, first.methods[0], _row(estimates, name, first.methods[0], first), slowdown)
            )
        for method in recipe.methods:
            work = _work(recipe, method, _row(estimates, name, method, recipe), slowdown)
            found += [work] * SEEDS
    return found


def _row(estimates: pd.DataFrame, name: str, method: str, recipe: Recipe) -> "pd.Series[float]":
    """The estimate of a method at a recipe's T and batch, from the results of `name` (stage 1 is it at T = 1)."""
    same = estimates[
        (estimates["recipe"] == name)
        & (estimates["method"] == method)
        & (estimates["timesteps"] == recipe.timesteps)
        & (estimates["batch_size"] == recipe.train.batch_size)
        & (estimates["precision"] == "fp16")
    ]
    return same.iloc[-1]


def _work(recipe: Recipe, method: str, row: "pd.Series[float]", slowdown: float) -> Work:
    forward = row[["forward_spatial_multiplications", "forward_temporal_multiplications"]].astype(float).sum()
    backward = (
        row[["backward_spatial_multiplications", "backward_temporal_multiplications"]].astype(float).sum()
    )
    evaluation = forward / (forward + backward) * recipe.data.test_samples / recipe.data.train_samples
    seconds = float(row["epoch_lower_bound_s"]) * (1 + evaluation) * slowdown
    fixed = int(row["parameter_bytes"]) + int(row["optimizer_state_bytes"]) + int(row["parameter_bytes"])
    iterations = float(row["iterations_per_epoch"]) * recipe.train.epochs
    return Work(
        recipe=recipe.name,
        method=method,
        hours=seconds * recipe.train.epochs / 3600,
        fixed_bytes=fixed,
        shared_bytes=int(row["peak_tensor_bytes"]) - fixed,
        exchange_s_alone=iterations * int(row["parameter_bytes"]) / LINK_BYTES_S,
        needs=recipe.init_from,
    )


@dataclass(frozen=True)
class Schedule:
    """All cells on so many GPUs."""

    gpus: int
    hours: float
    """Until the last has ended."""
    busy_hours: float
    """GPU-hours of cells at work."""
    devices: dict[tuple[str, str], int]
    """(recipe, method) → devices of a cell."""
    left_out: tuple[Work, ...]
    """Cells that fit on no such machine."""


def schedule(cells: Sequence[Work], gpus: int) -> Schedule:
    """The shortest of several plans: cells are divided as far as it takes for each to end within a limit."""
    most = min(gpus, MOST_PER_CELL)
    fitting = [work for work in cells if any(work.fits(devices) for devices in _powers(most))]
    plans = []
    for limit in sorted({work.hours_on(devices) for work in fitting for devices in _powers(most)}):
        devices = {(work.recipe, work.method): _devices(work, most, limit) for work in fitting}
        plans.append((_makespan(fitting, devices, gpus), sum(devices.values()), limit, devices))
    hours, _, _, devices = min(plans, key=lambda plan: plan[:3], default=(0.0, 0, 0.0, {}))
    busy = sum(work.hours_on(n) * n for work in fitting for n in [devices[work.recipe, work.method]])
    return Schedule(gpus, hours, busy, devices, tuple(work for work in cells if work not in fitting))


def _powers(most: int) -> list[int]:
    return [2**exponent for exponent in range(most.bit_length())]


def _devices(work: Work, most: int, limit: float) -> int:
    """The fewest devices with which the cell fits and ends within the limit; the most, if none do."""
    fitting = [devices for devices in _powers(most) if work.fits(devices)]
    return next((devices for devices in fitting if work.hours_on(devices) <= limit), fitting[-1])


def _makespan(cells: Sequence[Work], devices: dict[tuple[str, str], int], gpus: int) -> float:
    """Hours until the last has ended, if what is ready and longest begins as soon as enough GPUs are free."""

    def length(work: Work) -> float:
        return work.hours_on(devices[work.recipe, work.method])

    after = {work.recipe: max(length(w) for w in cells if w.needs == work.recipe) for work in cells
             if any(w.needs == work.recipe for w in cells)}  # fmt: skip
    waiting = sorted(cells, key=lambda work: -(length(work) + after.get(work.recipe, 0)))
    needed, done = set(after), set[str]()
    running: list[tuple[float, int, int, str]] = []
    now, free, number = 0.0, gpus, count()
    while waiting or running:
        for work in list(waiting):
            ready = work.needs not in needed or work.needs in done
            if ready and devices[work.recipe, work.method] <= free:
                waiting.remove(work)
                taken = devices[work.recipe, work.method]
                free -= taken
                heapq.heappush(running, (now + length(work), next(number), taken, work.recipe))
        now, _, taken, recipe = heapq.heappop(running)
        free += taken
        done.add(recipe)
    return now


# The page ---------------------------------------------------------------------------------------


def tables(slowdown: float = SLOWDOWN) -> str:
    """The part of the page that is computed, in Markdown."""
    cells = works(slowdown)
    on = [schedule(cells, gpus) for gpus in (1, 8, 64)]
    return "\n".join([*_cells_table(cells), "", *_machines_table(on), "", *_remarks(on, slowdown)]) + "\n"


def _cells_table(cells: Sequence[Work]) -> Iterator[str]:
    published = runpy.run_path(str(ROOT / "docs" / "paper.py"))["PUBLISHED"]
    quoted = {(name, one.method): one.hours for name, rows in published.items() for one in rows if one.hours}
    yield "| recipe | method | cells | live tensors, one device | hours of a cell | the paper's hours | GPU-hours |"
    yield "|---|---|---|---|---|---|---|"
    for work in dict.fromkeys(cells):
        same = sum(other == work for other in cells)
        memory = format_bytes(work.fixed_bytes + work.shared_bytes)
        needed = (
            "" if work.fits(1) else f" ({min(n for n in _powers(MOST_PER_CELL) if work.fits(n))} devices)"
        )
        paper = f"{hours:g}" if (hours := quoted.get((work.recipe, work.method))) else "–"
        figures = f"{work.hours:,.1f} | {paper} | {work.hours * same:,.0f}"
        yield f"| `{work.recipe}` | {work.method} | {same} | {memory}{needed} | {figures} |"
    yield f"| all | | {len(cells)} | | | | {sum(work.hours for work in cells):,.0f} |"


def _machines_table(on: Sequence[Schedule]) -> Iterator[str]:
    yield "| GPUs | hours until all is done | days | GPU-hours paid | of them at work |"
    yield "|---|---|---|---|---|"
    for plan in on:
        paid = plan.hours * plan.gpus
        yield (
            f"| {plan.gpus} | {plan.hours:,.0f} | {plan.hours / 24:,.1f} | {paid:,.0f} | "
            f"{plan.busy_hours / paid:.0%} |"
        )


def _divided(plan: Schedule) -> Iterator[str]:
    """By the number of devices, the recipes and methods whose cells are divided over so many."""
    for number in sorted({n for n in plan.devices.values() if n > 1}):
        methods: dict[str, list[str]] = {}
        for (name, method), n in plan.devices.items():
            if n == number:
                methods.setdefault(name, []).append(method)
        listed = ", ".join(f"`{name}` ({', '.join(of_recipe)})" for name, of_recipe in methods.items())
        yield f"over {number} devices: {listed}"


def _remarks(on: Sequence[Schedule], slowdown: float) -> Iterator[str]:
    yield "Cells that are divided:\n"
    yield from (
        f"- on {plan.gpus} GPU{'s' * (plan.gpus > 1)}: {'; '.join(_divided(plan)) or 'none'}" for plan in on
    )
    left = dict.fromkeys((work.recipe, work.method) for plan in on for work in plan.left_out)
    if left:
        names = " and ".join(f"`{recipe}` by {method}" for recipe, method in left)
        yield f"\nLeft out on 1 GPU, because no single one has the memory: {names}."
    yield "\nAssumptions:\n"
    yield f"- {GPU}; {SEEDS} seeds; a run takes {slowdown:g} times its lower bound"
    yield "- evaluation costs its share of the forward multiplications"
    yield f"- live tensors may take {USABLE:.0%} of {GPU_BYTES / 1e9:g} GB"
    yield (
        f"- a divided cell works at {DIVIDED:.0%} and then exchanges its gradients at {LINK_BYTES_S / 1e9:g} GB/s "
        f"without overlap, over at most {MOST_PER_CELL} devices"
    )
    yield "- cells begin as soon as devices are free, the longest first"


def page(text: str) -> str:
    """The page with its computed part made anew."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + tables() + END + rest.split(END)[1]


def main() -> None:
    """Write the page, or print the tables under another assumption."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--slowdown", type=float, help="print for a run that takes so many times its lower bound"
    )
    slowdown = parser.parse_args().slowdown
    if slowdown is not None:
        print(tables(slowdown), end="")
        return
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"written: {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
