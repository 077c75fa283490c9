"""All estimates of a command side by side."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from sltt_bench.estimate.estimates import Estimate, Failure
from sltt_bench.estimate.shown import tables


@dataclass(frozen=True)
class EstimateTable:
    """What `sltt-bench estimate` found."""

    estimates: tuple[Estimate, ...]
    failures: tuple[Failure, ...] = ()
    gpu: str | None = None
    """Name of the GPU of the lower bounds on time."""

    def baseline_of(self, estimate: Estimate, method: str) -> Estimate | None:
        """The estimate of `method` that differs in nothing else, if there is one."""
        for other in self.estimates:
            if other.cell.method == method and _all_but_method(other) == _all_but_method(estimate):
                return other
        return None

    def rich(self, baseline: str = "bptt") -> list[Table]:
        """Tables of memory and of work for each recipe; ratios are to the method `baseline`."""
        recipes = dict.fromkeys(estimate.cell.recipe.name for estimate in self.estimates)
        return [
            table
            for recipe in recipes
            for table in tables(
                [e for e in self.estimates if e.cell.recipe.name == recipe],
                baseline,
                lambda estimate: self.baseline_of(estimate, baseline),
                self.gpu,
            )
        ]


def _all_but_method(estimate: Estimate) -> tuple[Any, ...]:
    cell = estimate.cell
    return cell.recipe_hash, cell.backend, cell.seed, estimate.device_type


def in_order(results: Iterable[Estimate | Failure]) -> tuple[tuple[Estimate, ...], tuple[Failure, ...]]:
    """Estimates and failures apart, each in order."""
    listed = list(results)
    return (
        tuple(r for r in listed if isinstance(r, Estimate)),
        tuple(r for r in listed if isinstance(r, Failure)),
    )
