"""A trial: a cell that is trained as any other, and looked at on validation data alone."""

from typing import TYPE_CHECKING

from sltt_bench.kinds import Job
from sltt_bench.kinds.training import train_and_evaluate
from sltt_bench.plan import Cell

if TYPE_CHECKING:
    from sltt_bench.worker import Reporter


def try_setting(cell: Cell, job: Job, reporter: "Reporter") -> None:
    """Train and measure one setting; no test sample is ever shown to the network, so that none can choose it."""
    train_and_evaluate(cell, job, reporter, ("validation",))
