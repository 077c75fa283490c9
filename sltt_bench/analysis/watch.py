"""Analyses a network's gradients while it trains, and records rows after chosen epochs."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sltt_bench.analysis.draws import DrawnGradient, relate
from sltt_bench.analysis.gradients import (
    Agreement,
    Figures,
    GradientParts,
    Named,
    TrainingBatch,
    agreement,
    decompose,
    figures,
    gradient_of,
    layers,
)
from sltt_bench.analysis.operations import count_methods
from sltt_bench.methods import backward_steps
from sltt_bench.planning.recipe_fields import Recipe
from sltt_bench.precision import ieee_float32
from sltt_bench.results.schema import DRAWS_FILE, GRADIENTS_FILE, METHOD_GRADIENTS_FILE, OPERATIONS_FILE
from sltt_bench.training.experiment import Experiment, training_mode
from sltt_bench.training.not_finite import likely_cause

Row = dict[str, Any]
Record = Callable[[str, Row], None]
"""Takes the name of a file in results.schema.FILES and a row for it."""


class GradientNotFinite(Exception):
    """A gradient is infinite or not a number; the message names the likely cause."""


@dataclass(frozen=True)
class GradientWatch:
    """Splits the gradients of the same batches after chosen epochs; training is not affected."""

    recipe: Recipe
    experiment: Experiment
    batches: Sequence[tuple[Tensor, Tensor]]
    """(inputs, labels) on the experiment's device."""
    epochs: Sequence[int]
    record: Record
    compared: Sequence[str] = ()
    """Methods that are compared with BPTT."""

    def look(self, epoch: int) -> None:
        """Record this epoch's rows, if it is one of the chosen epochs. Raises GradientNotFinite."""
        if epoch not in self.epochs:
            return
        with ieee_float32():
            grams = self._grams(epoch)
        key = {
            "epoch": epoch,
            **self.recipe.neuron.model_dump(include={"tau", "surrogate", "reset", "detach_reset"}),
            "loss_window": self.recipe.loss.window,
            "batches": len(self.batches),
        }
        sizes = {name: p.numel() for name, p in self.experiment.network.named_parameters()}
        for part in gradient_rows(grams, sizes):
            self.record(GRADIENTS_FILE, key | part)
        for part in draw_rows([_sum(gram.values()) for gram in grams]):
            self.record(DRAWS_FILE, key | part)
        full = [self._gradient_of("bptt", *batch) for batch in self.batches] if self.compared else []
        for method in self.compared:
            made = [self._gradient_of(method, *batch) for batch in self.batches]
            for part in agreement_rows(full, made, sizes):
                self.record(METHOD_GRADIENTS_FILE, key | {"compared_method": method} | part)

    def count_operations(self) -> None:
        """Record the multiplications of an iteration of each method.

        These are BPTT, SLTT, SLTT-K at K = 1, 2, 4, … < T, and the compared methods.
        """
        timesteps = self.experiment.timesteps
        ks = [2**i for i in range(timesteps.bit_length()) if 2**i < timesteps]
        names = dict.fromkeys(["bptt", "sltt", *(f"sltt-k{k}" for k in ks), *self.compared])
        with training_mode(self.experiment.network, True):
            rows = count_methods(self._batch(*self.batches[0]), list(names))
        for row in rows:
            further = {"drawn": backward_steps(row.counted_method), "samples": len(self.batches[0][1])}
            self.record(OPERATIONS_FILE, row._asdict() | further)

    def _grams(self, epoch: int) -> list[dict[str, Tensor]]:
        """Returns for each batch: parameter → Gram matrix of its parts."""
        grams = []
        for x, labels in self.batches:
            with training_mode(self.experiment.network, True):
                parts: GradientParts = decompose(self._batch(x, labels))
            grams.append({name: parts.gram([name]) for name in parts.full})
            for name, gram in grams[-1].items():
                if not bool(torch.isfinite(gram).all()):
                    cause = likely_cause(self.experiment.network, "fp32", epochs=epoch, inputs=[x])
                    raise GradientNotFinite(
                        f"the gradient of {name} is not finite after epoch {epoch}: {cause}"
                    )
        return grams

    def _gradient_of(self, method: str, x: Tensor, labels: Tensor) -> Named:
        with ieee_float32(), training_mode(self.experiment.network, True):
            return gradient_of(method, self._batch(x, labels))

    def _batch(self, x: Tensor, labels: Tensor) -> TrainingBatch:
        subject = self.experiment
        return TrainingBatch(
            subject.network, subject.inputs(x), lambda output: subject.loss(output, labels), subject.window
        )


# Rows -------------------------------------------------------------------------------------------


def gradient_rows(grams: Sequence[Mapping[str, Tensor]], sizes: Mapping[str, int]) -> list[Row]:
    """Returns a row for the network, each layer and each parameter: mean and spread over batches.

    `grams` holds the Gram matrix of every parameter for each batch, `sizes` the parameters' element counts.
    """
    return [
        place | _with_norms([figures(_sum(gram[name] for name in members)) for gram in grams])
        for place, members in _parts(list(grams[0]), sizes)
    ]


def agreement_rows(full: Sequence[Named], made: Sequence[Named], sizes: Mapping[str, int]) -> list[Row]:
    """Returns a row for the network, each layer and each parameter: a method's gradients against BPTT's.

    `full` (BPTT's) and `made` (the method's) hold one gradient for each batch.
    """
    return [
        place
        | _over_batches([agreement(g, m, members) for g, m in zip(full, made, strict=True)], "norm_ratio")
        for place, members in _parts(list(full[0]), sizes)
    ]


def _parts(names: Sequence[str], sizes: Mapping[str, int]) -> list[tuple[Row, list[str]]]:
    """Returns each part of a network: the columns that identify it, and its parameters."""
    levels = {
        "network": {"": list(names)},
        "layer": layers(names),
        "parameter": {name: [name] for name in names},
    }
    return [
        (
            {"level": level, "name": part, "depth": depth, "elements": sum(sizes[name] for name in members)},
            members,
        )
        for level, parts in levels.items()
        for depth, (part, members) in enumerate(parts.items(), start=1)
    ]


def draw_rows(grams: Sequence[Tensor]) -> list[Row]:
    """Returns a row on SLTT-K's gradient for every K from 1 to T; `grams`: the network's, for each batch."""
    timesteps = len(grams[0]) - 1
    return [_draw_row([relate(gram, k) for gram in grams]) for k in range(1, timesteps + 1)]


def _draw_row(related: Sequence[DrawnGradient]) -> Row:
    first = related[0]
    variance_mean, variance_std = _mean_and_std([r.relative_variance for r in related])
    return {
        "drawn": first.k,
        "subsets": first.subsets,
        "exact": first.exact,
        "silent_share": statistics.fmean(r.silent_share for r in related),
        "cosine_to_sltt_mean": _mean_and_std([r.cosine_to_sltt for r in related])[0],
        "cosine_to_sltt_std": _mean_and_std([r.cosine_to_sltt_std for r in related])[0],
        "cosine_to_bptt_mean": _mean_and_std([r.cosine_to_bptt for r in related])[0],
        "relative_variance_mean": variance_mean,
        "relative_variance_std": variance_std,
    }


def _over_batches(measured: Sequence[Figures] | Sequence[Agreement], *further: str) -> Row:
    """Returns mean and spread of the cosine and of further figures."""
    row: Row = {"zero_batches": sum(one.cosine is None for one in measured)}
    for name in ("cosine", *further):
        row[f"{name}_mean"], row[f"{name}_std"] = _mean_and_std([getattr(one, name) for one in measured])
    return row


def _with_norms(measured: Sequence[Figures]) -> Row:
    row = _over_batches(measured, "spatial_share", "temporal_share")
    row["full_norm_mean"] = statistics.fmean(one.full_norm for one in measured)
    row["spatial_norm_mean"] = statistics.fmean(one.spatial_norm for one in measured)
    return row


def _mean_and_std(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Returns mean and sample standard deviation of the values that are known; None if there are too few."""
    known = [value for value in values if value is not None]
    mean = statistics.fmean(known) if known else None
    return mean, statistics.stdev(known) if len(known) > 1 else None


def _sum(grams: Any) -> Tensor:
    return torch.stack(list(grams)).sum(0)
