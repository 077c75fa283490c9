"""Trains one cell in several processes (ranks), which have equal weights and share every batch.

The gradient of an iteration is that of the undivided batch, for every method. DistributedDataParallel
cannot provide it: it exchanges gradients in hooks of the backward pass and expects one pass an iteration,
while SLTT makes T passes. Here each rank computes its own gradient as its method does, and after the last
backward pass there is one exchange,

    g = Σ_r n_r g_r / Σ_r n_r        n_r samples on rank r, g_r the gradient of their mean loss

which also weights an unevenly divided last batch correctly. All ranks then make the same optimiser step, and
their weights stay equal to the last bit. As is common practice, batch normalisation sees only the rank's own
samples, unless `synchronise_batch_norm` makes it see all.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import groupby
from typing import Any, NoReturn, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

TIMEOUT = timedelta(days=1)
"""How long a rank waits for the others. One rank may prepare its data for hours; if one fails, the launcher
ends the others long before this."""


@dataclass(frozen=True)
class Ranks:
    """The processes of one cell, as seen from one of them. A single process is `Ranks(0, 1)`."""

    rank: int = 0
    size: int = 1
    connected: bool = True
    """False: do everything but the exchange itself, to measure the memory of one rank without others."""

    def part(self, batch: Tensor) -> Tensor:
        """Returns this rank's share [about batch/size, ...] of [batch, ...]; each sample goes to one rank."""
        return torch.tensor_split(batch, self.size)[self.rank]

    def exchange_gradients(self, parameters: Iterable[nn.Parameter], samples: int) -> None:
        """Replace every `.grad` (of this rank's mean loss over `samples`) by that of the whole batch.

        Existing gradients change in place. A parameter that has no gradient on any rank stays without one.
        """
        if self.size == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        # Filled on the device, since the host would wait for a copy of its own numbers; and so that `flat` is float32 or
        # wider, since half precision counts no batch and holds no sum of one.
        fill = partial(gradients[0].new_full, dtype=torch.float32)
        runs = groupby(parameter.grad is not None for parameter in trained)
        present = [fill((len([*run]),), float(there)) for there, run in runs]
        flat = torch.cat([fill((1,), samples), *present, *(gradient.reshape(-1) for gradient in gradients)])
        own = flat[1 + len(trained) :]
        own *= samples
        self.add_up(flat)
        own /= flat[0]
        pieces = torch.split(own, [gradient.numel() for gradient in gradients])
        # Only a missing gradient makes the host wait for the device.
        missing = self.connected and any(parameter.grad is None for parameter in trained)
        known = (flat[1 : 1 + len(trained)] > 0).tolist() if missing else [True] * len(trained)
        for parameter, piece, somewhere in zip(trained, pieces, known, strict=True):
            if parameter.grad is not None:
                parameter.grad.copy_(piece.view_as(parameter))
            elif somewhere:
                parameter.grad = torch.empty_like(parameter).copy_(piece.view_as(parameter))

    def add_up(self, figures: Tensor) -> Tensor:
        """Sum `figures` over the ranks, in place."""
        if self.size > 1 and self.connected:
            dist.all_reduce(figures)
        return figures

    def share_buffers(self, network: nn.Module) -> None:
        """Give every rank the buffers of rank 0: the running statistics that it evaluates and keeps."""
        if self.size > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)

    def gather(self, row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Returns the rows of all ranks, in the ranks' order, on every rank."""
        if self.size == 1:
            return [row]
        rows: list[Any] = [None] * self.size
        dist.all_gather_object(rows, dict(row))
        return rows


ALONE = Ranks()


def join(device: torch.device) -> Ranks:
    """Join the other ranks of torchrun's environment; returns this process's rank. GPU tensors go by NCCL.

    On a GPU, `device` must be the current device already.
    """
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    return Ranks(dist.get_rank(), int(os.environ["WORLD_SIZE"]))


def end_together() -> NoReturn:
    """Wait for the other ranks, then end this process with exit code 0.

    The process group is not destroyed: torch 2.6 would wait for Gloo's threads while it holds the
    interpreter's lock, and one of them may wait for that lock to free a tensor, a deadlock (pytorch #56297,
    #154976; torch 2.9 releases the lock).
    """
    if dist.is_initialized():
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
        dist.all_reduce(torch.zeros(1))  # no rank is in an exchange any more when the first one ends
    for child in multiprocessing.active_children():
        child.terminate()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def exchanged_bytes(added_up_bytes: int, size: int) -> int:
    """Returns the bytes that each rank sends in a ring all-reduce: 2 (size − 1) / size of `added_up_bytes`.

    Source: Patarasuk & Yuan 2009, "Bandwidth optimal all-reduce algorithms".
    """
    return round(2 * (size - 1) / size * added_up_bytes)


# Figures of an epoch ----------------------------------------------------------------------------

_COMBINED: Mapping[str, Callable[[Sequence[float]], float]] = {
    "energy_j": sum,
    "gpu_util_mean": lambda shares: sum(shares) / len(shares),
    "cpu_util_mean": max,
    "cpu_others_mean": max,
    "samples_per_s": min,
}
"""Column → how the figures of all ranks are combined, unless by their maximum."""


def combined(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns one row of epochs.csv from those of all ranks.

    Energy is summed and GPU utilisation averaged. For times, memory and the use of processors the largest
    counts, since the fullest device and the slowest rank limit a user. A figure that a rank lacks is None,
    and so is NVML's memory if its scope is a process on one rank and a device on another. Losses, accuracies
    and samples are of all ranks already; all else is rank 0's.
    """
    first = dict(rows[0])
    if len(rows) == 1:
        return first
    for column, value in first.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        values = [row[column] for row in rows if row.get(column) is not None]
        combine = _COMBINED.get(column) or (max if column.endswith(("_bytes", "_s")) else None)
        if len(values) < len(rows):
            first[column] = None
        elif combine is not None:
            first[column] = combine(values)
    if len({row.get("peak_nvml_scope") for row in rows}) > 1:
        first |= {"peak_nvml_bytes": None, "peak_nvml_scope": None}
    return first


# Batch normalisation over all ranks --------------------------------------------------------------


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation [batch, C, H, W] with the statistics of the undivided batch.

    torch's own SyncBatchNorm runs on GPUs only. This is the same formula through differentiable
    exchanges on any device, so that it can be tested without a GPU.
    """

    ranks: Ranks = ALONE

    def forward(self, x: Tensor) -> Tensor:
        """Returns the normalised batch in the type of `x`; statistics are in float32 or wider."""
        if not self.training:
            return super().forward(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        over = (0, 2, 3)
        own = wide.new_full((1,), wide.numel() / wide.shape[1])
        sums = self._over_all_ranks(torch.cat([wide.sum(over), own]), len(x))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = wide - _per_channel(mean)
        variance = self._over_all_ranks(centred.square().sum(over), len(x)) / count
        if self.track_running_stats:
            self._count(mean.detach(), variance.detach() * count / (count - 1))
        scale = (variance + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        normalised = centred * _per_channel(scale)
        if self.bias is not None:
            # Times 1: with one sample of one pixel, the bias's gradient is the very tensor of the sum's.
            # Autograd would let two biases of one sum share it as `.grad`, and a second backward pass would
            # add to it twice.
            normalised = normalised + _per_channel(self.bias * 1.0)
        return normalised.to(x.dtype)

    def _over_all_ranks(self, values: Tensor, samples: int) -> Tensor:
        total: Tensor = _OverAllRanks.apply(values, samples, self.ranks)  # type: ignore[no-untyped-call]
        return total

    @torch.no_grad()
    def _count(self, mean: Tensor, unbiased: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


class _OverAllRanks(torch.autograd.Function):
    """The sum over all ranks, whose gradient is the sum of the ranks' gradients.

    Each rank's gradient is that of its own samples' mean loss, which `exchange_gradients` weights by their
    number later. So the gradients from other ranks are rescaled here to this rank's weight.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, samples: int, ranks: Ranks) -> Tensor:
        ctx.samples, ctx.ranks = samples, ranks
        return ranks.add_up(values.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return ctx.ranks.add_up(gradient * ctx.samples) / ctx.samples, None, None


def _per_channel(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)


def synchronise_batch_norm(network: nn.Module, ranks: Ranks) -> nn.Module:
    """Synchronise every BatchNorm2d over `ranks`; names, parameters and buffers stay as they are."""
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SynchronisedBatchNorm2d
            cast(SynchronisedBatchNorm2d, module).ranks = ranks
    return network
