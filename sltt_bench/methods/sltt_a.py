"""SLTT at an adaptive choice of steps: those whose spikes differ strongly from those of the last used step.

    m_i[t]   mean spikes of neuron i at step t over the whole batch, also the parts in other processes
    d[t]     Σ_i |m_i[t] − m_i[t*]| / Σ_i (m_i[t] + m_i[t*]),   t* the step used last

A step whose activity repeats that of a used step also repeats its gradient. The first step is used. A later
step is used if d[t] exceeds the mean of all earlier d and the budget of N steps is not spent. K, the number
of steps used, is at most N and is reported for every epoch (`backward_passes`). As in SLTT-K, each step's
loss keeps its factor 1/T. Every step runs with a graph, which is dropped if the step is not used: memory is
SLTT's, and each unused step saves its backward pass.

`-unbiased` draws the steps instead: step t is used with probability p[t] = min(1, q max(1/4, d[t] / d̄[t])),
where q = N / (steps in the loss's window), t* is the step before and d̄[t] the mean of d before t; its gradient
is weighted by 1/p[t]. While d̄[t] is 0 or unknown, p[t] = min(1, q). The choice changes no forward pass, so the
expected gradient is SLTT's. K is then about N on average, but may exceed N. Steps outside the window have
gradient 0 and are neither used nor counted.
Source: this project.
"""

from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sltt_bench.neurons import followed_neurons
from sltt_bench.unroll import Unroll


@dataclass(frozen=True)
class AdaptiveSLTT:
    """At most N backward passes (unbiased: about N on average), each through one step."""

    n: int | None = None
    """N; None: T/2, rounded up."""
    unbiased: bool = False
    steps: Collection[int] | None = None
    """If given, these steps are used, whatever the activity."""

    def most_steps(self, timesteps: int) -> int:
        """Returns N for T steps."""
        return -(-timesteps // 2) if self.n is None else self.n

    def fewest_steps(self, timesteps: int) -> int:
        """Returns 1: the first step is always used or, unbiased, the last one if none was drawn."""
        return 1

    def at(self, steps: Collection[int]) -> "AdaptiveSLTT":
        """Returns the same method with fixed steps."""
        return replace(self, steps=steps)

    def accumulate_gradients(self, unroll: Unroll) -> None:
        activity = Activity(unroll)
        with activity.watched(unroll.network):
            for t in range(unroll.timesteps):
                unroll.detach_state()
                self._step(t, activity, unroll)

    def _step(self, t: int, activity: "Activity", unroll: Unroll) -> None:
        with torch.set_grad_enabled(unroll.counts(t)):
            loss = unroll.step(t)
        if unroll.counts(t) and (weight := self._weight(t, activity, unroll)) is not None:
            unroll.backward(loss if weight == 1 else loss * weight)

    def _weight(self, t: int, activity: "Activity", unroll: Unroll) -> float | None:
        """Returns the weight of step t's gradient, or None if the step is not used."""
        budget = self.most_steps(unroll.timesteps)
        if self.steps is not None:
            activity.measure()  # takes the memory and time that the choice would take
            if self.unbiased or t in self.steps:
                activity.compare_with_this_step()
            used = unroll.counted_steps / budget if self.unbiased else 1.0  # p[t] = q, as on average
            return used if t in self.steps else None
        difference, mean = activity.difference()
        if self.unbiased:
            activity.compare_with_this_step()
            share = budget / unroll.counted_steps
            probability = min(1.0, share * (1.0 if mean == 0 else max(0.25, difference / mean)))
            drawn = torch.rand((), generator=unroll.generator).item() < probability
            if not drawn and t == unroll.timesteps - 1 and unroll.backward_passes == 0:
                return 0.0  # none drawn: a gradient of 0 lets momentum and weight decay go on
            return 1 / probability if drawn else None
        if unroll.backward_passes >= budget or difference <= mean:
            return None
        activity.compare_with_this_step()
        return 1.0


class Activity:
    """Compares the spikes of the latest step with those of a reference step."""

    def __init__(self, unroll: Unroll) -> None:
        self._mean_over_batch = unroll.mean_over_batch
        self._sums: dict[nn.Module, Tensor] = {}
        """Spikes of the latest step, summed over this process's samples."""
        self._means: list[Tensor] | None = None
        """m[t] of every layer, computed on demand."""
        self._reference: list[Tensor] | None = None
        self._differences: list[float] = []

    def watched(self, network: nn.Module) -> ExitStack:
        """Returns a context within which the spikes of every step are recorded."""
        stack = ExitStack()
        for layer in followed_neurons(network):
            stack.callback(layer.register_forward_hook(self._note).remove)
        return stack

    def difference(self) -> tuple[float, float]:
        """Returns (d[t], mean of all earlier d), or (1, 0) without a reference step. Waits for the device."""
        mean = sum(self._differences) / max(1, len(self._differences))
        measured = self.measure()
        if measured is None:
            return 1.0, 0.0
        self._differences.append(float(measured))
        return self._differences[-1], mean

    def measure(self) -> Tensor | None:
        """Returns d[t] on the device, or None without a reference step."""
        if not self._reference:
            return None
        pairs = list(zip(self._means_of_this_step(), self._reference, strict=True))
        changed = torch.stack([(now - then).abs().sum() for now, then in pairs]).sum()
        total = torch.stack([(now + then).sum() for now, then in pairs]).sum()
        return changed / total.clamp(min=1e-12)

    def compare_with_this_step(self) -> None:
        """Make the latest step the reference step."""
        self._reference = self._means_of_this_step()

    def _means_of_this_step(self) -> list[Tensor]:
        if self._means is None:
            self._means = self._mean_over_batch(*self._sums.values())
        return self._means

    def _note(self, layer: nn.Module, args: Any, spikes: Tensor) -> None:
        self._sums[layer], self._means = spikes.detach().sum(0, dtype=torch.float32), None
