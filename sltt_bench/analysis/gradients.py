"""Splits one batch's gradient into each time step's spatial part and one temporal part.

    g = g_1 + … + g_T + r        g: BPTT's gradient
    g_s = g_1 + … + g_T          the spatial part: SLTT's gradient; g_t is the share of step t's loss
    r = g − g_s                  the temporal part

(Meng et al. 2023, section 4.1.) The training methods themselves compute g and the g_t, with the same
weights, batch, dropout masks and batch statistics. All inner products are computed in float64.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sltt_bench import methods
from sltt_bench.neurons import reset_state
from sltt_bench.synapses import Backward
from sltt_bench.unroll import StepLoss, Unroll

Named = dict[str, Tensor]
"""Parameter name → a tensor of the parameter's shape."""


@dataclass(frozen=True)
class TrainingBatch:
    """One batch and a network; the caller sets the network's mode (training or evaluation)."""

    network: nn.Module
    inputs: Sequence[Tensor]
    """A tensor [batch, ...] for each time step."""
    loss: StepLoss
    """The loss of a step's output."""
    window: int | None = None
    """Number of last steps that count; None: all."""

    def run(self, method: str, backward: Backward = torch.Tensor.backward) -> None:
        """Run a method's forward and backward pass; a method that draws has seed 0. Raises UnknownMethod."""
        generator = torch.Generator().manual_seed(0)
        unroll = Unroll(
            self.network, self.inputs, self.loss, generator=generator, backward=backward, window=self.window
        )
        methods.create(method, len(self.inputs)).accumulate_gradients(unroll)


@dataclass(frozen=True)
class GradientParts:
    """The parts of one batch's gradient, as `decompose` returns them."""

    full: Named
    """g: BPTT's gradient, with the parameters in the network's order."""
    steps: tuple[Named, ...]
    """g_t, one for each time step."""

    def spatial(self, name: str) -> Tensor:
        """Returns g_s of one parameter in float64."""
        return torch.stack([step[name].double() for step in self.steps]).sum(0)

    def temporal(self, name: str) -> Tensor:
        """Returns r = g − g_s of one parameter in float64."""
        return self.full[name].double() - self.spatial(name)

    def gram(self, names: Iterable[str]) -> Tensor:
        """Returns the inner products [T + 1, T + 1] of (g_1, …, g_T, r), in float64 on the CPU.

        They are sums over the parameters `names`. The norms and cosines of g, g_s, r and every subset of
        steps follow from them; ‖r‖ is a sum of squares, not a difference of large numbers.
        """
        total = torch.zeros(len(self.steps) + 1, len(self.steps) + 1, dtype=torch.float64)
        for name in names:
            parts = [*(step[name].double() for step in self.steps), self.temporal(name)]
            vectors = torch.stack([part.flatten() for part in parts])
            total += (vectors @ vectors.T).cpu()
        return total


@dataclass(frozen=True)
class Figures:
    """How g, g_s and r of one part of the network relate; None if a norm that a figure is divided by is 0."""

    cosine: float | None
    """cosine(g, g_s)."""
    spatial_share: float | None
    """‖g_s‖ / ‖g‖."""
    temporal_share: float | None
    """‖g − g_s‖ / ‖g‖."""
    full_norm: float
    """‖g‖."""
    spatial_norm: float
    """‖g_s‖."""


def figures(gram: Tensor) -> Figures:
    """Returns the figures of a Gram matrix of (g_1, …, g_T, r)."""
    full = float(gram.sum().clamp(min=0).sqrt())
    spatial = float(gram[:-1, :-1].sum().clamp(min=0).sqrt())
    temporal = float(gram[-1, -1].sqrt())
    sltt = _agreement(full, spatial, float(gram[:-1].sum()))
    return Figures(sltt.cosine, sltt.norm_ratio, temporal / full if full else None, full, spatial)


def layers(names: Iterable[str]) -> dict[str, list[str]]:
    """Layer (the module that owns a parameter) → its parameters, in the network's order."""
    owners: dict[str, list[str]] = {}
    for name in names:
        owners.setdefault(name.rpartition(".")[0], []).append(name)
    return owners


def decompose(batch: TrainingBatch) -> GradientParts:
    """Split the gradient of one batch into its parts; leaves the network as it was.

    Set training mode before, for batch statistics and dropout. Buffers, `.grad`s and random number
    generators are restored afterwards, so a training run goes on as if this had not happened.
    """
    trained = {name: p for name, p in batch.network.named_parameters() if p.requires_grad}
    collected: list[Named] = []

    def collect(step_or_sum: Tensor, /, *, retain_graph: bool = False) -> None:
        for parameter in trained.values():
            parameter.grad = None
        torch.autograd.backward(step_or_sum)
        collected.append({name: _gradient(parameter) for name, parameter in trained.items()})

    for method in ("bptt", "sltt"):
        with undisturbed(batch.network):
            batch.run(method, backward=collect)
    return GradientParts(full=collected[0], steps=tuple(collected[1:]))


def gradient_of(method: str, batch: TrainingBatch) -> Named:
    """Returns a method's gradient of one batch; leaves the network as it was.

    A method that learns online makes no update here. Raises UnknownMethod.
    """
    with undisturbed(batch.network):
        for parameter in batch.network.parameters():
            parameter.grad = None
        batch.run(method)
        return {name: _gradient(p) for name, p in batch.network.named_parameters() if p.requires_grad}


@dataclass(frozen=True)
class Agreement:
    """How a method's gradient g_m of one part of the network relates to BPTT's g.

    A figure is None if a norm that it is divided by is 0.
    """

    cosine: float | None
    """cosine(g, g_m)."""
    norm_ratio: float | None
    """‖g_m‖ / ‖g‖."""


def agreement(full: Named, made: Named, names: Iterable[str]) -> Agreement:
    """Returns how BPTT's gradients `full` and a method's `made` agree over some parameters, in float64."""
    chosen = list(names)
    g, m = (torch.cat([named[name].double().flatten() for name in chosen]) for named in (full, made))
    return _agreement(float(g.norm()), float(m.norm()), float(g @ m))


def _agreement(full_norm: float, made_norm: float, product: float) -> Agreement:
    """Returns the agreement, given ‖g‖, ‖g_m‖ and the inner product of g and g_m."""
    if full_norm == 0:
        return Agreement(None, None)
    cosine = min(1.0, max(-1.0, product / (full_norm * made_norm))) if made_norm > 0 else None
    return Agreement(cosine, made_norm / full_norm)


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach().clone()


@contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """Restore what forward and backward passes change, so that each pass starts from the same state."""
    buffers = {name: b.clone() for name, b in network.named_buffers()}
    gradients = [(parameter, parameter.grad) for parameter in network.parameters()]
    devices = {p.device for p in network.parameters() if p.is_cuda}
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        reset_state(network)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                buffer.copy_(buffers[name])
