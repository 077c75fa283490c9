"""Runs cells that are trained and measured (runs and trials); other kinds of measurement share its parts."""

import gc
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sltt_bench import data, methods, provenance
from sltt_bench.backends import unmeasurable
from sltt_bench.common.failures import classify, out_of_memory_cause, too_few_for_batch_norm
from sltt_bench.common.format import counted
from sltt_bench.common.source_digest import own_source_sha256
from sltt_bench.data.loading import content, labels_of, largest_class_share, make_loader
from sltt_bench.data.synthetic import synthetic_bundle
from sltt_bench.data.validation import hold_back
from sltt_bench.kinds import Job
from sltt_bench.measure import Profiler
from sltt_bench.measure.gpu_support import (
    UnusableGpu,
    installed_wheel,
    shown_gpus,
    unusable_text,
    why_unusable,
)
from sltt_bench.measure.iteration_memory import count_iteration
from sltt_bench.planning.plan import Cell
from sltt_bench.precision import set_float32_arithmetic
from sltt_bench.recomputation import tried_again
from sltt_bench.results.schema import INFERENCE_COLUMNS
from sltt_bench.training import engine, experiment, initialise
from sltt_bench.training.distributed import ALONE, Ranks, join

if TYPE_CHECKING:
    from sltt_bench.running.worker import Reporter


def train_cell(cell: Cell, job: Job, reporter: "Reporter") -> None:
    """Train and measure one cell, from its checkpoint if there is one."""
    held_back = ("validation",) if cell.recipe.validation is not None else ()
    train_and_evaluate(cell, job, reporter, (*held_back, "test"))


def try_setting(cell: Cell, job: Job, reporter: "Reporter") -> None:
    """Train and measure one setting; the network sees no test sample, so that none can choose the setting."""
    train_and_evaluate(cell, job, reporter, ("validation",))


def train_and_evaluate(cell: Cell, job: Job, reporter: "Reporter", evaluated: Sequence[str]) -> None:
    """Train and measure a cell, and evaluate only the splits in `evaluated` after each epoch."""
    with measuring(cell, job, reporter) as (device, profiler, backend):
        ranks = join_ranks(job, device, profiler, reporter)
        bundle = load_data(cell, Path(job["data_dir"]), reporter)
        splits = ("train", *evaluated)
        loaders = {split: make_cell_loader(cell, bundle, split, device, ranks) for split in splits}
        check_smallest_batch(cell, device, loaders["train"], bundle.preprocess)
        check_steps_again(cell, device, loaders["train"], bundle.preprocess)

        own: dict[str, str] = {}  # what this process began with: every one reads a copy of the data set

        def peak() -> int:
            batch = next(iter(loaders["train"]))
            labels = [labels_of(getattr(bundle, split)) for split in splits]
            content = content_sha256(cell.recipe.data, bundle, evaluated)
            reporter.send("measured_with", data_sha256=tensors_sha256([*batch, *labels]), **content)
            own.update(content, labels_sha256=tensors_sha256(labels))
            return instrumented_peak(cell, device, batch, bundle.preprocess, ranks)

        reporter.facts(peak_tensor_bytes=unless_memory_runs_out(profiler, device, peak))
        subject = experiment.assemble(cell, device, backend, ranks)
        setup = set_up(subject, cell, job, reporter, loaders, bundle.preprocess)
        if job["resume"]:
            reporter.resume(partial(engine.restore, subject, setup))
        else:
            weights = tensors_sha256(subject.network.state_dict().values())
            reporter.send("measured_with", weights_sha256=weights)
            own["weights_sha256"] = weights
        if ranks.size > 1:
            reporter.send("measured_with", ranks_began_with=ranks.gather(own))
        reporter.facts(parameters=sum(p.numel() for p in subject.network.parameters()))
        if "test" in evaluated and not cell.synthetic:
            reporter.facts(largest_class_share=largest_class_share(bundle.test, cell.recipe.data.limit))
        engine.train(subject, setup, profiler, reporter)
        if "test" in evaluated:
            report_costs(cell, subject, setup, profiler, reporter)


def join_ranks(job: Job, device: torch.device, profiler: Profiler, reporter: "Reporter") -> Ranks:
    """Join the processes that share the cell's batches, if any; report their number and devices."""
    if not job.get("launched"):
        reporter.facts(ranks=1)
        return ALONE
    ranks = join(device)
    reporter.facts(ranks=ranks.size)
    reporter.send("measured_with", ranks=ranks.gather(profiler.description()))
    profiler.together = partial(ranks.gather, {})
    return ranks


def check_smallest_batch(cell: Cell, device: torch.device, loader: Any, preprocess: Any) -> None:
    """Refuse, before training, batches that leave a rank without a sample or with too few for the network.

    Raises ValueError.
    """
    train = cell.recipe.train
    if (fault := train.division_fault(loader.samples)) is not None:
        raise ValueError(fault)
    if not train.has_single_samples(loader.samples):
        return
    subject = experiment.assemble(cell, device, experiment.make_backend(cell))
    subject.network.train()
    x, labels = (part[:1].to(device) for part in next(iter(loader))[:2])
    try:
        subject.training_iteration(preprocess(x), labels)
    except ValueError as error:
        if not too_few_for_batch_norm(error):
            raise
        raise ValueError(train.single_sample_fault(loader.samples)) from None


def check_steps_again(cell: Cell, device: torch.device, loader: Any, preprocess: Any) -> None:
    """Refuse, before training, a method that runs steps twice on a network that does not repeat them exactly.

    Raises ValueError.
    """
    if not methods.promises(cell.method).computes_again:
        return
    network = experiment.assemble(cell, device, experiment.make_backend(cell)).network
    x, _ = next(iter(loader))
    first = preprocess(x[:1].to(device))
    reason = tried_again(network, first[:, 0] if cell.recipe.data.temporal else first).differs
    if reason:
        raise ValueError(
            f"method {cell.method!r} computes steps again, but in this network {reason}; choose method bptt"
        )


def report_costs(cell: Cell, subject: Any, setup: Any, profiler: Profiler, reporter: "Reporter") -> None:
    """Report the costs of inference with the trained network; if that fails, the cell is still complete."""
    columns = [column.name for column in INFERENCE_COLUMNS]
    if cell.synthetic:
        profiler.absent |= dict.fromkeys(columns, "the data are random")
        return
    try:
        costs = engine.inference_costs(subject, setup)
    except Exception as error:
        profiler.absent |= dict.fromkeys(columns, f"they could not be counted: {classify(error)[1]}")
    else:
        reporter.facts(**costs)


def unless_memory_runs_out(profiler: Profiler, device: Any, measure: Callable[[], int]) -> int | None:
    """Returns the peak that `measure` finds; None if memory runs out, with the reason for its empty column.

    The memory that it allocated is freed either way.
    """
    peak: int | None = None
    try:
        peak = measure()
    except Exception as error:
        if out_of_memory_cause(error) is None:
            raise
        profiler.absent["peak_tensor_bytes"] = f"out of memory while it was measured: {classify(error)[1]}"
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return peak


@contextmanager
def measuring(cell: Cell, job: Job, reporter: "Reporter") -> Iterator[tuple[Any, Any, Any]]:
    """Yields (device, profiler, backend) of a cell, and reports what it ran on, however it ends."""
    own_source_sha256()  # now, while the files are still those that were loaded
    device = choose_device(cell.device)
    precision = cell.recipe.train.precision_on(device.type)
    deterministic = cell.recipe.train.deterministic
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
    set_float32_arithmetic(precision)
    name = provenance.device_name(device)
    reporter.facts(device=str(device), device_name=name, precision=precision)
    backend = experiment.make_backend(cell)
    profiler = Profiler(
        device,
        on_sample=lambda sample: reporter.send("sample", row=sample),
        command=job.get("command"),
        unmeasurable=partial(unmeasurable, backend),
    )
    reporter.memory_now = profiler.compute.memory_now
    try:
        with profiler:
            yield device, profiler, backend
    finally:
        reporter.send(
            "measured_with",
            **provenance.collect_worker(profiler.description()),
            backend=dict(backend.provenance()),
            absent=profiler.absent,
            notes=profiler.notes,
        )


def set_up(
    subject: Any, cell: Cell, job: Job, reporter: "Reporter", loaders: Mapping[str, Any], preprocess: Any
) -> engine.TrainingSetup:
    """Returns how the cell's experiment is trained, and loads its initial weights if it has any.

    These come from the prerequisite's checkpoint or from --init. Raises InitError.
    """
    source = job["initial_weights"]
    if source is not None and not job["resume"]:
        report = initialise.load_initial_weights(subject.network, Path(source))
        reporter.send("initial_weights", layout=report.layout, sha256=report.sha256, tensors=report.tensors)
    train = cell.recipe.train
    return engine.TrainingSetup(
        train=loaders["train"],
        evaluated={split: loader for split, loader in loaders.items() if split != "train"},
        preprocess=preprocess,
        schedule=experiment.build_schedule(cell.recipe, subject.optimizer),
        epochs=train.epochs,
        checkpoint_every=train.checkpoint_every or (train.epochs if train.keep_checkpoint else 0),
        report_accuracy=not cell.synthetic,
    )


def tensors_sha256(tensors: Iterable[torch.Tensor]) -> str:
    """Returns a digest of values, types and shapes, independent of device and memory format."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values: Any = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        digest.update(values)
    return digest.hexdigest()


def content_sha256(
    options: data.DataSource, bundle: data.DataBundle, evaluated: Sequence[str]
) -> dict[str, str]:
    """Returns digests of the samples of a cell's splits, named as in provenance.json. Raises DataError.

    They tell apart data sets with equal labels. Training samples are read before augmentation.
    """
    splits = {
        "training_samples_sha256": [bundle.plain_train or bundle.train],
        "evaluated_samples_sha256": [getattr(bundle, split) for split in evaluated],
    }
    return {
        name: tensors_sha256(chain.from_iterable(content(samples, options) for samples in of_name))
        for name, of_name in splits.items()
    }


def make_cell_loader(cell: Cell, bundle: Any, split: str, device: Any, ranks: Ranks = ALONE) -> Any:
    """Returns this rank's part of each batch of one split, in the order that the cell's seed gives."""
    training = split == "train"
    return make_loader(
        getattr(bundle, split),
        batch_size=cell.recipe.train.batch_size,
        shuffle=training,
        seed=cell.seed,
        drop_last=training and cell.recipe.train.drop_last,
        options=cell.recipe.data,
        device=device,
        shard=(ranks.rank, ranks.size),
    )


def instrumented_peak(cell: Cell, device: Any, batch: Any, preprocess: Any, ranks: Ranks = ALONE) -> int:
    """Returns the peak live tensor bytes of one training iteration, in an experiment of its own.

    It allocates what an exchange between ranks needs but makes none, so the other ranks go on if one runs out
    of memory here.
    """
    alone = replace(ranks, connected=False)
    subject = experiment.assemble(cell, device, experiment.make_backend(cell), alone)
    subject.network.train()
    inputs, labels = preprocess(batch[0].to(device)), batch[1].to(device)

    def iterate() -> None:
        subject.training_iteration(inputs, labels)

    return count_iteration(
        iterate,
        subject.network,
        [inputs, labels],
        optimizer=subject.optimizer,
        carried=subject.carried_by_method,
        warm_up=iterate,
    ).peak_bytes


def load_data(cell: Cell, data_dir: Path, reporter: "Reporter") -> Any:
    """Returns the cell's data, or random data of the same shapes, with the recipe's validation split.

    Raises DataError.
    """
    recipe = cell.recipe
    if cell.synthetic:
        bundle = synthetic_bundle(recipe.data, recipe.timesteps)
    else:
        bundle = data.load(recipe.data, data.DataPlace(data_dir, recipe.timesteps, reporter.preparing))
    return bundle if recipe.validation is None else hold_back(bundle, recipe.validation, recipe.data.limit)


def choose_device(asked: str) -> torch.device:
    """Returns the torch device; auto is the first GPU, or the CPU if there is none. Raises UnusableGpu."""
    if asked == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        gpus = shown_gpus()
        if gpus:
            reason = (
                why_unusable(gpus, installed_wheel())
                or "torch cannot start CUDA; `sltt-bench doctor` tells more"
            )
            raise UnusableGpu(unusable_text(asked, gpus, reason))
        if asked == "auto":
            return torch.device("cpu")
        raise UnusableGpu(f"device {asked}: torch sees no CUDA GPU here; `sltt-bench doctor` tells why")
    device = torch.device("cuda", 0 if asked == "auto" else torch.device(asked).index or 0)
    if device.index >= torch.cuda.device_count():
        raise UnusableGpu(
            f"device {asked}: torch sees {counted(torch.cuda.device_count(), 'GPU')} here, counted from cuda:0"
        )
    torch.cuda.set_device(device)
    return device
