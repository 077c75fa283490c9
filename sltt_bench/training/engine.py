"""The training engine: the epoch loop, evaluation, and going on from a checkpoint.

It knows an Experiment, loaders and a profiler; it never learns the name of a method or a data set,
and it writes no files: what it measures it hands to `Listener`.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sltt_bench import backends
from sltt_bench.common.failures import DIVERGED
from sltt_bench.losses import correct_in_top
from sltt_bench.measure import EpochProfile, Profiler, without_times_that_one_lacks
from sltt_bench.measure.neurobench import InferenceCosts
from sltt_bench.neurons import layers_of_neurons, reset_state
from sltt_bench.torch_internals import uncompiled
from sltt_bench.training.distributed import Ranks, combined
from sltt_bench.training.experiment import Experiment, training_mode
from sltt_bench.training.not_finite import likely_cause, weights_are_finite
from sltt_bench.unroll import Unroll

Batch = tuple[Tensor, Tensor]


class BatchLoader(Protocol):
    """Batches of one split in an order that is a pure function of seed and epoch."""

    samples: int
    """Samples of an epoch."""

    def __iter__(self) -> Iterator[Batch]: ...
    def __len__(self) -> int: ...
    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the augmentation of an epoch."""


class Listener(Protocol):
    """Who hears of progress."""

    def batch(self, epoch: int, done: int, total: int, live: Mapping[str, float]) -> None:
        """Called now and then while training; `live` has the mean loss and top-1 so far."""

    def epoch(self, figures: Mapping[str, Any]) -> None:
        """Called when an epoch is over: its columns of epochs.csv."""

    def ranks(self, epoch: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Called when an epoch that several processes share is over: what each measured, in their order."""

    def checkpoint(self, state: dict[str, Any]) -> None:
        """Called when a checkpoint is due, before `epoch` is called with the same row (`state["row"]`)."""


class TrainingDiverged(Exception):
    """The loss is no longer a number."""


@dataclass
class TrainingSetup:
    """What the epoch loop needs beside the experiment."""

    train: BatchLoader
    evaluated: Mapping[str, BatchLoader]
    """The splits that are evaluated after each epoch, by the names that their columns begin with."""
    preprocess: Callable[[Tensor], Tensor]
    """A batch on the device → float32 input, normalised."""
    schedule: torch.optim.lr_scheduler.LRScheduler
    epochs: int
    checkpoint_every: int
    report_accuracy: bool = True
    """False for synthetic data: accuracy is left empty."""
    first_epoch: int = 1
    after_epoch: Callable[[int], None] = lambda epoch: None
    """Called when an epoch has been reported."""


def train(experiment: Experiment, setup: TrainingSetup, profiler: Profiler, listener: Listener) -> None:
    """Train from `first_epoch` to the last; every epoch is measured, evaluated and reported.

    Raises TrainingDiverged after the epoch whose loss is not finite has been reported.
    """
    device = next(experiment.network.parameters()).device
    live = _LiveFigures(device)
    for epoch in range(setup.first_epoch, setup.epochs + 1):
        profile = profiler.epoch(epoch)
        lr = experiment.optimizer.param_groups[0]["lr"]
        prepared = backends.preparations(experiment.backend)
        trained = _train_epoch(experiment, setup, profile, listener, live, epoch)
        with profile.evaluate():
            evaluated = {
                split: _evaluate(experiment, setup, loader, device)
                for split, loader in setup.evaluated.items()
            }
        setup.schedule.step()
        figures = profile.figures()
        train_loss, train_top1, _ = trained.means()
        row = {
            "epoch": epoch,
            "cold": epoch == setup.first_epoch or backends.preparations(experiment.backend) > prepared,
            "lr": lr,
            "train_loss": train_loss,
            "samples": trained.samples,
            "samples_per_s": _rate(trained.samples, figures["train_s"]),
            "backward_passes": trained.backward_passes / len(setup.train),
            **figures,
        }
        if setup.report_accuracy:
            row["train_top1"] = train_top1
            for split, totals in evaluated.items():
                row |= dict(
                    zip((f"{split}_loss", f"{split}_top1", f"{split}_top5"), totals.means(), strict=True)
                )
                row["firing_rate"] = totals.firing_rate()
        rows = without_times_that_one_lacks(experiment.ranks.gather(row))
        if len(rows) > 1:
            listener.ranks(epoch, rows)
        row = combined(rows)
        diverged = _why_diverged(train_loss, experiment) if setup.report_accuracy else None
        due = setup.checkpoint_every and (epoch % setup.checkpoint_every == 0 or epoch == setup.epochs)
        try:
            if due and not diverged:  # before the row is reported: a checkpoint carries its epoch's row
                listener.checkpoint({**training_state(experiment, setup, epoch), "row": row})
        finally:  # a disk too full for the checkpoint may still have room for the row
            listener.epoch(row)
        setup.after_epoch(epoch)
        if diverged:
            cause = likely_cause(experiment.network, experiment.precision.name, epochs=epoch)
            raise TrainingDiverged(f"{diverged} in epoch {epoch}: {cause}")


def _rate(samples: int, seconds: Any) -> float | None:
    """Samples a second; None where the time is not known."""
    return None if seconds is None else samples / seconds


SMALLEST_LOSS_SCALE = 2.0**-20
"""Of fp16. It begins at 2¹⁶ and is halved where a gradient is not finite: below this, it is not for being too large."""


def _why_diverged(train_loss: float, experiment: Experiment) -> str | None:
    """What became of the loss, of gradients that are not finite at any scale, so that every step is skipped, or of
    weights; None if training goes on."""
    scaler = experiment.scaler
    if not math.isfinite(train_loss):
        return f"{DIVERGED} {train_loss}"
    if scaler.is_enabled() and scaler.get_scale() < SMALLEST_LOSS_SCALE:
        return f"{DIVERGED} one of gradients that are not finite at any scale of fp16 (every step is skipped)"
    if not weights_are_finite(experiment.network):
        return f"{DIVERGED} one of weights that are not finite (neurons behind them never fire)"
    return None


class _Totals:
    """Sums over an epoch's batches, kept on the device so that nothing waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)
        self.samples = 0
        self.batches = 0
        """On this rank."""
        self.spikes: torch.Tensor = torch.zeros((), dtype=torch.float64, device=device)
        self.neuron_steps = 0
        self.backward_passes = 0

    def add(self, loss: Tensor, summed_outputs: Tensor, labels: Tensor) -> None:
        """Add one batch: its mean loss and how many labels are the best and among the five best."""
        count = len(labels)
        self.batches += 1
        self.sums += torch.stack(
            [
                loss.double() * count,
                correct_in_top(summed_outputs, labels, 1).double(),
                correct_in_top(summed_outputs, labels, 5).double(),
            ]
        )
        self.samples += count

    def over(self, ranks: Ranks) -> "_Totals":
        """The totals of all ranks, which this becomes."""
        if ranks.size > 1:
            counts = self.sums.new_tensor([self.samples, self.neuron_steps])
            everything = ranks.add_up(torch.cat([self.sums, self.spikes[None], counts]))
            self.sums, self.spikes = everything[:3], everything[3]
            self.samples, self.neuron_steps = (int(count) for count in everything[4:].tolist())
        return self

    def means(self) -> tuple[float, float, float]:
        """Mean loss, top-1 and top-5; waits for the device."""
        loss, top1, top5 = (self.sums / self.samples).tolist()
        return loss, top1, top5

    def firing_rate(self) -> float | None:
        """Spikes per neuron and time step."""
        return float(self.spikes / self.neuron_steps) if self.neuron_steps else None

    def count_spikes(self, module: nn.Module, inputs: Any, spikes: Tensor) -> None:
        """A forward hook of every layer of neurons."""
        self.spikes += spikes.count_nonzero()  # a converted neuron's spike is as high as its threshold
        self.neuron_steps += spikes.numel()


def _train_epoch(
    experiment: Experiment,
    setup: TrainingSetup,
    profile: EpochProfile,
    listener: Listener,
    live: "_LiveFigures",
    epoch: int,
) -> _Totals:
    device = live.device
    totals = _Totals(device)
    setup.train.set_epoch(epoch)
    batches = len(setup.train)
    with training_mode(experiment.network, True), profile.train():
        for batch in profile.waiting(setup.train):
            _train_batch(experiment, setup, batch, totals)
            del batch  # or it would live until the next has come
            if (figures := live.due(totals)) is not None:
                listener.batch(epoch, totals.batches, batches, figures)
    return totals.over(experiment.ranks)


def _train_batch(experiment: Experiment, setup: TrainingSetup, batch: Batch, totals: _Totals) -> None:
    """One iteration; what it had on the device is gone when this returns, before the next batch comes."""
    inputs, labels = _on_device(setup, batch, totals.sums.device)
    unroll = experiment.training_iteration(inputs, labels)
    totals.add(unroll.summed_loss, unroll.summed_outputs, labels)
    totals.backward_passes += unroll.backward_passes


def _evaluate_batch(experiment: Experiment, setup: TrainingSetup, batch: Batch, totals: _Totals) -> None:
    """All steps forward, without a graph; leaves nothing on the device."""
    inputs, labels = _on_device(setup, batch, totals.sums.device)
    with experiment.backend.iteration(experiment.network):
        unroll = _run_forward(experiment, inputs, labels)
    totals.add(unroll.summed_loss, unroll.summed_outputs, labels)
    reset_state(experiment.network)


def _run_forward(experiment: Experiment, inputs: Tensor, labels: Tensor) -> Unroll:
    unroll = experiment.unroll(inputs, labels)
    for t in range(unroll.timesteps):
        unroll.step(t)
    return unroll


def _on_device(setup: TrainingSetup, batch: Batch, device: torch.device) -> Batch:
    x, labels = batch
    return setup.preprocess(x.to(device, non_blocking=True)), labels.to(device, non_blocking=True)


@torch.no_grad()
def _evaluate(
    experiment: Experiment, setup: TrainingSetup, loader: BatchLoader, device: torch.device
) -> _Totals:
    totals = _Totals(device)
    layers = layers_of_neurons(experiment.network)
    hooks = [layer.register_forward_hook(totals.count_spikes) for layer in layers]
    for batch in _evaluation_batches(experiment, loader):
        _evaluate_batch(experiment, setup, batch, totals)
        del batch
    for hook in hooks:
        hook.remove()
    return totals.over(experiment.ranks)


def _evaluation_batches(experiment: Experiment, loader: BatchLoader) -> Iterator[Batch]:
    """The batches of a split, on the host; meanwhile the network is in evaluation mode, and runs as it is written."""
    experiment.ranks.share_buffers(experiment.network)
    loader.set_epoch(0)
    with training_mode(experiment.network, False), uncompiled(experiment.network):  # hooks count
        yield from loader


@torch.no_grad()
def inference_costs(experiment: Experiment, setup: TrainingSetup) -> dict[str, float]:
    """NeuroBench's metrics of the network as it is, over the test set: a pass of its own, outside every clock.

    Raises on every rank if something fails on one: there what it was, elsewhere RuntimeError.
    """
    device = next(experiment.network.parameters()).device
    failure: Exception | None = None
    with InferenceCosts(experiment.network) as costs:
        samples = 0
        try:
            for batch in _evaluation_batches(experiment, setup.evaluated["test"]):
                samples += len(batch[1])
                # Without the backend's tricks: a layer that it runs once for all steps counts at each of them.
                _run_forward(experiment, *_on_device(setup, batch, device))
        except Exception as error:
            failure = error
    reset_state(experiment.network)
    text = "" if failure is None else f"{type(failure).__name__}: {failure}"
    failed = [rank["failure"] for rank in experiment.ranks.gather({"failure": text}) if rank["failure"]]
    if failed:
        raise failure or RuntimeError(f"on another rank, {failed[0]}")
    counts = costs.totals()
    totals = experiment.ranks.add_up(torch.cat([counts, counts.new_tensor([samples])]))
    return costs.figures(totals[:-1], int(totals[-1]))


class _LiveFigures:
    """Loss and accuracy so far for the display, about once a second, without waiting for the device."""

    INTERVAL_S = 1.0

    def __init__(self, device: torch.device) -> None:
        self.device = device
        on_gpu = device.type == "cuda"
        self._copy = torch.zeros(3, dtype=torch.float64, pin_memory=on_gpu)
        self._event = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]
        self._copied_samples: int | None = None
        self._next = time.monotonic() + self.INTERVAL_S

    def due(self, totals: _Totals) -> dict[str, float] | None:
        """The figures if it is time for them and the device has delivered them."""
        if self._copied_samples is not None:
            if self._event is not None and not self._event.query():  # type: ignore[no-untyped-call]
                return None
            loss, top1, _ = (self._copy / self._copied_samples).tolist()
            self._copied_samples = None
            return {"loss": loss, "top1": top1}
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self.INTERVAL_S
            self._copy.copy_(totals.sums, non_blocking=True)
            self._copied_samples = totals.samples
            if self._event is not None:
                self._event.record()  # type: ignore[no-untyped-call]
        return None


# Checkpoints ------------------------------------------------------------------------------------


def training_state(experiment: Experiment, setup: TrainingSetup, epoch: int) -> dict[str, Any]:
    """Everything that the next epoch depends on, after `epoch` has ended; the same on every rank."""
    device = next(experiment.network.parameters()).device
    draws = {
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }
    return {
        "epoch": epoch,
        "model": experiment.network.state_dict(),
        "optimizer": experiment.optimizer.state_dict(),
        "schedule": setup.schedule.state_dict(),
        "scaler": experiment.scaler.state_dict(),
        "method": experiment.carried_by_method(),
        "rng": {"ranks": experiment.ranks.gather(draws), "method": experiment.generator.get_state()},
    }


def restore(experiment: Experiment, setup: TrainingSetup, state: Mapping[str, Any]) -> None:
    """Go on after the epoch at which `state` was taken, on as many ranks or on others.

    On as many, every number is as if nothing had happened. On others the sums over a batch are rounded
    differently, and a rank that is new draws its dropout anew.
    """
    experiment.network.load_state_dict(state["model"])
    experiment.optimizer.load_state_dict(_with_own_kernels(experiment.optimizer, state["optimizer"]))
    setup.schedule.load_state_dict(state["schedule"])
    if state["scaler"]:  # one of another precision has none
        experiment.scaler.load_state_dict(state["scaler"])
    experiment.hand_to_method(state.get("method"))
    ranks, draws = experiment.ranks, state["rng"].get("ranks") or [state["rng"]]  # as before there were ranks
    if ranks.rank < len(draws):
        torch.set_rng_state(draws[ranks.rank]["torch"])
        _restore_draws_of_device(next(experiment.network.parameters()).device, draws[ranks.rank])
    else:
        torch.manual_seed(torch.initial_seed() + state["epoch"] * ranks.size)
    experiment.generator.set_state(state["rng"]["method"])
    setup.first_epoch = state["epoch"] + 1


def _with_own_kernels(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """The state to load, with whether steps are fused as it is here: on another device they may have been otherwise."""
    groups = [
        {**saved, "fused": group.get("fused")}
        for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    return {**state, "param_groups": groups}


def _restore_draws_of_device(device: torch.device, draws: Mapping[str, Any]) -> None:
    """Its generator goes on where that of the checkpoint's device was, whichever GPU that was."""
    if device.type != "cuda":
        return
    generators = draws.get("cuda", [draws.get("device")])  # earlier versions kept those of all GPUs
    index = device.index or 0
    generator = generators[index] if index < len(generators) else next(iter(generators), None)
    if generator is not None:
        torch.cuda.set_rng_state(generator, device)
