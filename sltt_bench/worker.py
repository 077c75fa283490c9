"""The process of one cell: puts the experiment together and runs the engine inside the profiler.

It is given the resolved cell and a few paths as JSON on standard input, and reports as JSON lines
on its original standard output; everything that is printed goes to standard error, which the runner
keeps as the cell's log. It writes no results: only its checkpoint.
"""

import gc
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from sltt_bench.plan import Cell, cell_from_dict

Event = dict[str, Any]


class Reporter:
    """Sends events to the runner; the engine's Listener."""

    def __init__(self, stream: IO[str], checkpoint: Path | None) -> None:
        self._stream = stream
        self._lock = threading.Lock()  # the profiler's samples come from a thread of their own
        self._checkpoint = checkpoint
        self.memory_now: Any = lambda: None
        self._next_word = 0.0

    def send(self, event: str, **details: Any) -> None:
        """One line of JSON; a runner that is gone ends this process."""
        try:
            with self._lock:
                self._stream.write(json.dumps({"event": event, **details}) + "\n")
                self._stream.flush()
        except BrokenPipeError:
            os._exit(1)

    def batch(self, epoch: int, done: int, total: int, live: Mapping[str, float]) -> None:
        self.send("batch", epoch=epoch, done=done, total=total, memory=self.memory_now(), **live)

    def preparing(self, what: str, done: int, total: int | None) -> None:
        """How far the data are; about once a second at most."""
        if time.monotonic() >= self._next_word or done == total:
            self._next_word = time.monotonic() + 1
            self.send("preparing", what=what, done=done, total=total)

    def epoch(self, figures: Mapping[str, Any]) -> None:
        self.send("epoch", row=dict(figures, finished_utc=datetime.now(UTC).isoformat(timespec="seconds")))

    def row(self, file: str, row: Mapping[str, Any]) -> None:
        """A row for another of the run's files (a name in results.schema.FILES)."""
        self.send("row", file=file, row=dict(row))

    def checkpoint(self, state: dict[str, Any]) -> None:
        if self._checkpoint is not None:
            from sltt_bench.results import checkpoints

            checkpoints.save(self._checkpoint, state)


def main() -> None:
    """Run the cell given on standard input; exit code 0 if it finished, 1 if not."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = json.load(sys.stdin)
    reporter = Reporter(events, Path(job["checkpoint"]) if job["checkpoint"] else None)
    try:
        cell = cell_from_dict(job["cell"])
        run = _KINDS[cell.kind]
        run(cell, job, reporter)
    except BaseException as error:  # whatever ends a cell becomes its row
        traceback.print_exc()
        status, reason = classify(error)
        reporter.send("failed", status=status, reason=reason)
        sys.exit(1)
    reporter.send("finished")


def classify(error: BaseException) -> tuple[str, str]:
    """(status, reason in one line) of what ended a cell."""
    import torch

    text = " ".join(str(error).split())
    out_of_memory = isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in text
    )
    if out_of_memory:
        return "oom", text or "out of memory"
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        return "killed", type(error).__name__
    if type(error).__module__.startswith("sltt_bench."):
        return "error", text  # its message says all that its user needs
    return "error", f"{type(error).__name__}: {text}" if text else type(error).__name__


def train_cell(cell: Cell, job: Mapping[str, Any], reporter: Reporter) -> None:
    """Train and measure one cell, from its checkpoint if there is one."""
    from sltt_bench import engine

    with measuring(cell, reporter) as (device, profiler, backend):
        bundle = load_data(cell, Path(job["data_dir"]), reporter)
        loaders = {split: make_cell_loader(cell, bundle, split, device) for split in ("train", "test")}
        peak = instrumented_peak(cell, device, next(iter(loaders["train"])), bundle.preprocess)
        reporter.send("facts", peak_tensor_bytes=peak)
        subject, setup = put_together(cell, job, reporter, device, backend, loaders, bundle.preprocess)
        if job["resume"]:
            resume(subject, setup, Path(job["checkpoint"]))
        reporter.send("facts", parameters=sum(p.numel() for p in subject.network.parameters()))
        engine.train(subject, setup, profiler, reporter)


def analyse_cell(cell: Cell, job: Mapping[str, Any], reporter: Reporter) -> None:
    """Take the cell's gradients apart, before and while it trains."""
    from itertools import islice

    from sltt_bench import engine
    from sltt_bench.analysis.watch import GradientWatch

    epochs, batches = cell.options["epochs"], cell.options["batches"]
    with measuring(cell, reporter) as (device, profiler, backend):
        bundle = load_data(cell, Path(job["data_dir"]), reporter)
        loaders = {split: make_cell_loader(cell, bundle, split, device) for split in ("train", "test")}
        subject, setup = put_together(cell, job, reporter, device, backend, loaders, bundle.preprocess)
        setup.epochs, setup.checkpoint_every = max(epochs), 0
        reporter.send("facts", parameters=sum(p.numel() for p in subject.network.parameters()))
        loaders["train"].set_epoch(0)
        looked_at = [
            (bundle.preprocess(x.to(device)), labels.to(device))
            for x, labels in islice(loaders["train"], batches)
        ]
        watch = GradientWatch(cell.recipe, subject, looked_at, epochs, reporter.row, reporter)
        watch.count_operations()
        watch.look(0)
        engine.train(subject, setup, profiler, watch)


@contextmanager
def measuring(cell: Cell, reporter: Reporter) -> Iterator[tuple[Any, Any, Any]]:
    """(device, profiler, backend) of a cell; what it ran on is reported, however it ends."""
    from sltt_bench import experiment, provenance
    from sltt_bench.measure import Profiler
    from sltt_bench.precision import resolve

    device = choose_device(cell.device)
    set_torch_flags(cell.recipe.train.deterministic)
    reporter.send(
        "facts",
        device=str(device),
        device_name=provenance.device_name(device),
        precision=resolve(cell.recipe.train.precision, device.type),
    )
    profiler = Profiler(device, on_sample=lambda sample: reporter.send("sample", row=asdict(sample)))
    reporter.memory_now = profiler.memory_now
    backend = experiment.make_backend(cell)
    try:
        with profiler:
            yield device, profiler, backend
    finally:
        reporter.send(
            "measured_with",
            provenance=provenance.collect_worker(profiler.description()),
            backend=dict(backend.provenance()),
            absent=profiler.absent,
            notes=profiler.notes,
        )


def put_together(
    cell: Cell,
    job: Mapping[str, Any],
    reporter: Reporter,
    device: Any,
    backend: Any,
    loaders: Mapping[str, Any],
    preprocess: Any,
) -> tuple[Any, Any]:
    """The cell's Experiment with its initial weights, and its TrainingSetup."""
    from sltt_bench import engine, experiment

    subject = experiment.assemble(cell, device, backend)
    load_initial_weights(job, subject.network, reporter)
    setup = engine.TrainingSetup(
        train=loaders["train"],
        test=loaders["test"],
        preprocess=preprocess,
        schedule=experiment.build_schedule(cell.recipe, subject.optimizer),
        epochs=cell.recipe.train.epochs,
        checkpoint_every=cell.recipe.train.checkpoint_every,
        report_accuracy=not cell.synthetic,
    )
    return subject, setup


def make_cell_loader(cell: Cell, bundle: Any, split: str, device: Any) -> Any:
    """The batches of one split, in the order that the cell's seed gives."""
    from sltt_bench.data.loading import make_loader

    training = split == "train"
    return make_loader(
        getattr(bundle, split),
        batch_size=cell.recipe.train.batch_size,
        shuffle=training,
        seed=cell.seed,
        drop_last=training and cell.recipe.train.drop_last,
        options=cell.recipe.data,
        device=device,
    )


def resume(subject: Any, setup: Any, path: Path) -> None:
    """Go on from the cell's checkpoint. Raises CheckpointError."""
    from sltt_bench import engine
    from sltt_bench.results import checkpoints

    engine.restore(subject, setup, checkpoints.load(path))


def instrumented_peak(cell: Cell, device: Any, batch: Any, preprocess: Any) -> int:
    """Peak live tensor bytes of one training iteration, in an experiment of its own that is thrown away.

    The first iteration creates the optimiser's state; the second is counted.
    """
    import torch

    from sltt_bench import experiment
    from sltt_bench.measure.tensor_bytes import TensorBytes

    subject = experiment.assemble(cell, device, experiment.make_backend(cell))
    subject.network.train()
    x, labels = batch[0].to(device), batch[1].to(device)
    inputs = preprocess(x)
    subject.training_iteration(inputs, labels)
    subject.optimizer.zero_grad(set_to_none=True)
    state = [
        value
        for entry in subject.optimizer.state.values()
        for value in entry.values()
        if isinstance(value, torch.Tensor)
    ]
    existing = [*subject.network.parameters(), *subject.network.buffers(), *state, inputs, labels]
    with TensorBytes(existing=existing) as counter:
        subject.training_iteration(inputs, labels)
    peak = int(counter.peak)
    del subject, existing, state
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return peak


def load_data(cell: Cell, data_dir: Path, reporter: Reporter) -> Any:
    """The cell's data, or random data of their shapes. Raises DataError."""
    from sltt_bench import data
    from sltt_bench.data.synthetic import synthetic_bundle

    if cell.synthetic:
        return synthetic_bundle(cell.recipe.data, cell.recipe.timesteps)
    return data.load(cell.recipe.data, data.DataPlace(data_dir, cell.recipe.timesteps, reporter.preparing))


def load_initial_weights(job: Mapping[str, Any], network: Any, reporter: Reporter) -> None:
    """From the prerequisite's checkpoint or --init, if the cell has either. Raises InitError."""
    source = job["initial_weights"]
    if source is not None and not job["resume"]:
        from sltt_bench.initialise import load_initial_weights as load

        report = load(network, Path(source))
        reporter.send("initial_weights", layout=report.layout, sha256=report.sha256, tensors=report.tensors)


def choose_device(asked: str) -> Any:
    """The torch device; auto is the first GPU, or the CPU without one. Raises RuntimeError."""
    import torch

    if asked == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    device = torch.device(asked)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise RuntimeError(
                f"--device {asked}: torch sees no CUDA GPU here; `sltt-bench doctor` tells why"
            )
        if (device.index or 0) >= torch.cuda.device_count():
            raise RuntimeError(f"--device {asked}: there are only {torch.cuda.device_count()} GPUs")
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    return device


def set_torch_flags(deterministic: bool) -> None:
    """cuDNN as the recipe asks; recorded in the provenance."""
    import torch

    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic


_KINDS = {"run": train_cell, "analysis": analyse_cell}

if __name__ == "__main__":
    main()
