"""Runs cells of kind "analysis": their gradients are split before and during training."""

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from sltt_bench.analysis.watch import GradientWatch
from sltt_bench.kinds import Job
from sltt_bench.kinds.training import load_data, make_cell_loader, measuring, set_up
from sltt_bench.planning.plan import Cell
from sltt_bench.training import engine, experiment

if TYPE_CHECKING:
    from sltt_bench.running.worker import Reporter


def analyse_cell(cell: Cell, job: Job, reporter: "Reporter") -> None:
    """Train a cell, and split its gradients before and during training."""
    epochs, batches = cell.options["epochs"], cell.options["batches"]
    with measuring(cell, job, reporter) as (device, profiler, backend):
        bundle = load_data(cell, Path(job["data_dir"]), reporter)
        loaders = {split: make_cell_loader(cell, bundle, split, device) for split in ("train", "test")}
        subject = experiment.assemble(cell, device, backend)
        setup = set_up(subject, cell, job, reporter, loaders, bundle.preprocess)
        setup.epochs, setup.checkpoint_every = max(epochs), 0
        reporter.facts(parameters=sum(p.numel() for p in subject.network.parameters()))
        loaders["train"].set_epoch(0)
        looked_at = [
            (bundle.preprocess(x.to(device)), labels.to(device))
            for x, labels in islice(loaders["train"], batches)
        ]
        watch = GradientWatch(
            cell.recipe, subject, looked_at, epochs, reporter.row, cell.options.get("compared", ())
        )
        watch.count_operations()
        watch.look(0)
        setup.after_epoch = watch.look
        engine.train(subject, setup, profiler, reporter)
