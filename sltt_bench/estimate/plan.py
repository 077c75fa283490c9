"""Turns the plan of a run into one of estimates: every cell becomes one of kind "estimate"."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from sltt_bench.common.format import parse_bytes
from sltt_bench.estimate.gpus import check_precision, find_gpu
from sltt_bench.planning.plan import Plan
from sltt_bench.planning.recipe_faults import RecipeError

MARGIN = 0.1
"""Share of memory that tensors may not fill, left to workspaces, the allocator's rounding, fragmentation."""


def plan_estimates(
    plans: Sequence[Plan],
    *,
    device_type: Literal["cpu", "cuda"],
    gpu: str | None = None,
    gpu_file: Path | None = None,
    memory: str | None = None,
) -> list[Plan]:
    """Returns `plans` with their cells turned into estimates of a run on `device_type`.

    `gpu`, from the shipped data sheets or `gpu_file`, gives a lower bound on time. `memory` ("24GiB"), less
    MARGIN, limits batch and T. Raises GPUError, also if the GPU lacks the precision of a cell, and RecipeError if
    `memory` is not an amount.
    """
    options: dict[str, Any] = {}
    if gpu is not None:
        data_sheet = find_gpu(gpu, gpu_file)
        for cell in itertools.chain.from_iterable(plans):
            check_precision(data_sheet, cell.recipe.train.precision_on(device_type))
        options["gpu"] = {"name": gpu, "data_sheet": data_sheet.model_dump()}
    try:
        if memory is not None:
            options["memory_bytes"] = int(parse_bytes(memory) * (1 - MARGIN))
    except ValueError as error:
        raise RecipeError("--memory", [str(error)]) from None
    return [
        replace(
            plan,
            cells=tuple(replace(cell, kind="estimate", device=device_type, options=options) for cell in plan),
        )
        for plan in plans
    ]
