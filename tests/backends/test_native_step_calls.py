"""What a trace of a step's calls does not show: forward methods of which native must not take the trace for every step."""

import importlib
import linecache
import math
import random
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, singledispatch
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from drawn_networks import SlowSynapse
from on_backends import train_own
from torch import Tensor, nn
from torch.nn import functional as F

from sltt_bench import models
from sltt_bench.backends.native import Native, plain_forward
from sltt_bench.backends.native.free_steps import FreeSteps
from sltt_bench.backends.native.plain_forward import read_forward_methods
from sltt_bench.backends.native.step_calls import NotTraceable, is_seen_through, trace_step
from sltt_bench.backends.native.units import UnitNetwork
from sltt_bench.models.layers import SequenceDropout
from sltt_bench.neurons import LIF, LIFParameters, Stateful
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.planning.recipe_files import recipe_names
from sltt_bench.python_state import PythonState
from sltt_bench.torch_internals import FakeTensorMode

NATIVE = {
    "as it is": {"fused_norm": "never"},
    "fused": {"fused_norm": "always"},
    "unit by unit": {"fused_norm": "never", "recompute": True},
}
Neuron = Callable[[], nn.Module]


class Plain(nn.Module):
    """Two blocks of convolution, batch norm and neurons; what the others change a little."""

    def __init__(self, neuron: Neuron) -> None:
        super().__init__()
        self.conv, self.norm, self.neurons = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), neuron()
        self.conv2, self.norm2, self.neurons2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), neuron()
        self.more_neurons = neuron()
        self.gate = nn.Parameter(torch.full((), 0.5))
        self.readout = nn.Linear(6 * 36, 4)

    def currents(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.conv(x))
        return result

    def rest(self, spikes: Tensor) -> Tensor:
        result: Tensor = self.readout(self.neurons2(self.norm2(self.conv2(spikes))).flatten(1))
        return result

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.neurons(self.currents(x)))


class Rounded(torch.autograd.Function):
    """A straight-through estimator."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad


class ScaledOnlyBackward(torch.autograd.Function):
    """Hands on what it is given."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return 0.3 * grad


class StraightThrough(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.neurons(Rounded.apply(2 * self.currents(x)) / 2))  # type: ignore[no-untyped-call]


class OtherGradient(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.rest(ScaledOnlyBackward.apply(self.neurons(self.currents(x))))  # type: ignore[no-untyped-call]


class WithoutGradient(Plain):
    def forward(self, x: Tensor) -> Tensor:
        currents = self.currents(x)
        with torch.no_grad():
            size = currents.abs().mean()
        return self.rest(self.neurons(currents / size))


class InFullPrecision(Plain):
    def forward(self, x: Tensor) -> Tensor:
        currents = self.currents(x)
        with torch.autocast("cpu", enabled=False):
            currents = 1.5 * currents
        return self.rest(self.neurons(currents))


class Gated(Plain):
    """By something made of a parameter."""

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.neurons(self.currents(x)) * torch.sigmoid(self.gate))


class ReadsItsParameter(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.neurons(self.currents(x)) * self.gate * float(self.gate.detach()))


class Noisy(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.neurons(self.currents(x)) * torch.rand((6, 1, 1)))


class StochasticDepth(Plain):
    def forward(self, x: Tensor) -> Tensor:
        spikes = self.neurons(self.currents(x))
        return self.rest(spikes if random.random() < 0.5 else 2 * spikes)


class WithFeedback(Plain, Stateful):
    """A network that is a layer with state itself."""

    carried = ("spikes",)

    def __init__(self, neuron: Neuron) -> None:
        super().__init__(neuron)
        self.back, self.spikes = nn.Conv2d(6, 2, 1), None

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.neurons(self.currents(x if self.spikes is None else x + self.back(self.spikes)))
        self.spikes = spikes
        return self.rest(spikes)


class RemembersCurrents(Plain):
    def forward(self, x: Tensor) -> Tensor:
        self.last = self.currents(x)
        return self.rest(self.neurons(self.last))


class Logs(Plain):
    def __init__(self, neuron: Neuron) -> None:
        super().__init__(neuron)
        self.log: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        self.log.append(x.shape)
        return super().forward(x)


class OtherInEvaluation(Plain):
    def forward(self, x: Tensor) -> Tensor:
        currents = self.currents(x)
        output = self.rest(self.neurons(currents))
        return output if self.training else output + currents.mean((2, 3))[:, :4]


class MoreArguments(Plain):
    def forward(self, x: Tensor, features: Tensor | None = None) -> Tensor:
        currents = self.currents(x)
        output = self.rest(self.neurons(currents))
        return output + currents.mean((2, 3))[:, :4] if features is None else output


class AnyArguments(Plain):
    def forward(self, *inputs: Tensor) -> Tensor:
        return self.rest(self.neurons(self.currents(inputs[0])))


class AsksForTypes(Plain):
    def forward(self, x: Tensor) -> Tensor:
        spikes = self.neurons(self.currents(x))
        return self.rest(2 * spikes if type(spikes) is Tensor else spikes)


class AsksByPattern(Plain):
    def forward(self, x: Tensor) -> Tensor:
        match self.neurons(self.currents(x)):
            case Tensor() as spikes:
                return self.rest(2 * spikes)
            case other:
                return self.rest(other)


class WithMean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.gain * x, x.mean()


class AsksLayerOfTuples(Plain):
    def __init__(self, neuron: Neuron) -> None:
        super().__init__(neuron)
        self.with_mean = WithMean()

    def forward(self, x: Tensor) -> Tensor:
        made = self.with_mean(self.neurons(self.currents(x)))
        return self.rest(made[0] if isinstance(made, tuple) else made)


class AsksByKindOfItsOwn(Plain):
    kinds = (Tensor, np.ndarray)

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.neurons(self.currents(x))
        return self.rest(2 * spikes if isinstance(spikes, self.kinds) else spikes)


class AsksForSpikes(Plain):
    """As of a layer that hands on several things by name."""

    def __init__(self, neuron: Neuron) -> None:
        super().__init__(neuron)
        self.shift = Shift()

    def forward(self, x: Tensor) -> Tensor:
        made = self.shift(self.neurons(self.currents(x)) * 1)
        return self.rest(made.spikes if hasattr(made, "spikes") else made)


class ComparesFormats(Plain):
    def forward(self, x: Tensor) -> Tensor:
        spikes = self.neurons(self.currents(x))
        return self.rest(2 * spikes if spikes.dtype is torch.float64 else spikes)


class AsksForGraph(Plain):
    def forward(self, x: Tensor) -> Tensor:
        spikes = self.neurons(self.currents(x))
        return self.rest(2 * spikes if spikes.grad_fn is not None else spikes)


class OtherWithoutGraph(Plain):
    """Reads what batch norm puts out a second time where nobody learns."""

    def forward(self, x: Tensor) -> Tensor:
        currents = self.currents(x)
        output = self.rest(self.neurons(currents))
        return output if torch.is_grad_enabled() else output + currents.mean((2, 3))[:, :4]


class TopDown(Plain):
    """A feedback from a later layer, whose state it reads."""

    def __init__(self, neuron: Neuron) -> None:
        super().__init__(neuron)
        self.slow, self.back = SlowSynapse(), nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        currents = self.currents(x)
        if self.slow.current is not None:
            currents = currents + self.back(self.slow.current)
        return self.rest(self.slow(self.neurons(currents)))


class ReadsPotential(Plain):
    def __init__(self, neuron: Neuron) -> None:
        super().__init__(neuron)
        self.slow, self.neurons = (
            SlowSynapse(),
            LIF(LIFParameters(tau=2.0)) if neuron is nn.Identity else neuron(),
        )

    def forward(self, x: Tensor) -> Tensor:
        potential = self.neurons.potential
        gain = 1.0 if potential is None else 0.5 + 0.1 * potential.detach()
        return self.rest(gain * self.neurons(self.currents(x)))


class LearnsByPotential(Plain):
    """With a gradient through the potential after the step, and through that before it."""

    def __init__(self, neuron: Neuron) -> None:
        super().__init__(neuron)
        self.neurons = LIF(LIFParameters(tau=2.0)) if neuron is nn.Identity else neuron()

    def forward(self, x: Tensor) -> Tensor:
        before = self.neurons.potential
        spikes = self.neurons(self.currents(x))
        seen = self.neurons.potential
        return self.rest(spikes + 0.3 * seen + (0 if before is None else 0.2 * before))


class SetsAttribute(Plain):
    """Which a layer behind reads."""

    def __init__(self, neuron: Neuron) -> None:
        super().__init__(neuron)
        self.scaling = ScalesAsTold()

    def forward(self, x: Tensor) -> Tensor:
        spikes = 1.0 * self.neurons(self.currents(x))
        spikes.scale = 2.0  # type: ignore[attr-defined]
        return self.rest(self.scaling(spikes))


class ScalesAsTold(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x * getattr(x, "scale", 1.0)


class KeepsRates(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rates: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.rates[:] = [x.detach().mean()]
        return x


class ReadsRates(Plain):
    def __init__(self, neuron: Neuron) -> None:
        super().__init__(neuron)
        self.monitor = KeepsRates()

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.monitor(self.neurons(self.currents(x)))
        return self.rest(spikes * (1 + self.monitor.rates[0]) if self.monitor.rates else spikes)


class ReadsWhatHookKept(Plain):
    def __init__(self, neuron: Neuron) -> None:
        super().__init__(neuron)
        self.rates: dict[str, Tensor] = {}
        self.neurons.register_forward_hook(
            lambda _, __, spikes: self.rates.update(last=spikes.mean().detach())
        )

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.neurons(self.currents(x))
        return self.rest(spikes * (1 + self.rates["last"]) if self.rates else spikes)


class KeepsLastMap(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = x.detach().mean((1, 2, 3), keepdim=True)
        return x


class ReadsLastMap(Plain):
    """What a layer keeps of its last call."""

    def __init__(self, neuron: Neuron) -> None:
        super().__init__(neuron)
        self.map = KeepsLastMap()

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.map(self.neurons(self.currents(x)))
        return self.rest(spikes if self.map.last is None else spikes + self.map.last)


def factor_of(calls: int) -> float:
    return 1 + 0.1 * (calls % 3)


class CountsInClass(Plain):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        type(self).calls += 1
        return self.rest(factor_of(self.calls) * self.neurons(self.currents(x)))


CALLS = 0
DRAWS = np.random.default_rng(0)


def begin_to_count() -> None:
    """What networks count outside of themselves, and draw."""
    global CALLS
    CALLS = CountsInClass.calls = 0
    vars(counted).clear()
    DRAWS.bit_generator.state = np.random.default_rng(0).bit_generator.state


class CountsInGlobal(Plain):
    def forward(self, x: Tensor) -> Tensor:
        global CALLS
        CALLS += 1
        return self.rest(factor_of(CALLS) * self.neurons(self.currents(x)))


class Statistics:
    def __init__(self) -> None:
        self.by_name = {"calls": [0]}


class CountsDeep(Plain):
    def __init__(self, neuron: Neuron) -> None:
        super().__init__(neuron)
        self.stats = Statistics()

    def forward(self, x: Tensor) -> Tensor:
        self.stats.by_name["calls"][0] += 1
        return self.rest(factor_of(self.stats.by_name["calls"][0]) * self.neurons(self.currents(x)))


def counting() -> Callable[[], float]:
    calls = 0

    def factor() -> float:
        nonlocal calls
        calls += 1
        return factor_of(calls)

    return factor


class CountsInClosure(Plain):
    def __init__(self, neuron: Neuron) -> None:
        super().__init__(neuron)
        self.factor = counting()

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.factor() * self.neurons(self.currents(x)))


def counted() -> float:
    counted.calls = getattr(counted, "calls", 0) + 1  # type: ignore[attr-defined]
    return factor_of(counted.calls)  # type: ignore[attr-defined]


class CountsInFunction(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.rest(counted() * self.neurons(self.currents(x)))


class CountsInArray(Plain):
    def __init__(self, neuron: Neuron) -> None:
        super().__init__(neuron)
        self.calls = np.zeros(1, int)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.rest(factor_of(int(self.calls[0])) * self.neurons(self.currents(x)))


class CountsByIterator(Plain):
    def __init__(self, neuron: Neuron) -> None:
        super().__init__(neuron)
        self.calls = count()

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(factor_of(next(self.calls)) * self.neurons(self.currents(x)))


class DrawsOfItsOwn(Plain):
    def __init__(self, neuron: Neuron) -> None:
        super().__init__(neuron)
        self.draws = np.random.default_rng(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(float(self.draws.uniform(0.5, 2)) * self.neurons(self.currents(x)))


class DrawsDeep(Plain):
    def __init__(self, neuron: Neuron) -> None:
        super().__init__(neuron)
        self.draws = {"path": [random.Random(0)]}

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.neurons(self.currents(x))
        return self.rest(spikes if self.draws["path"][0].random() < 0.5 else 2 * spikes)


class DrawsOfGlobal(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.rest(float(DRAWS.uniform(0.5, 2)) * self.neurons(self.currents(x)))


class DrawsOfTorch(Plain):
    def __init__(self, neuron: Neuron) -> None:
        super().__init__(neuron)
        self.draws = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.neurons(self.currents(x))
        return self.rest(spikes * torch.rand(spikes.shape, generator=self.draws, dtype=torch.float64))


class AsksForTensors(Plain):
    """And reads what batch norm puts out a second time, if it is one."""

    def forward(self, x: Tensor) -> Tensor:
        currents = self.currents(x)
        output = self.rest(self.neurons(currents))
        return output + currents.mean((2, 3))[:, :4] if isinstance(currents, Tensor) else output


class AsksTorch(Plain):
    def forward(self, x: Tensor) -> Tensor:
        spikes = self.neurons(self.currents(x))
        return self.rest(2 * spikes if torch.is_tensor(spikes) else spikes)


@singledispatch
def doubled(x: Any) -> Any:
    return x


@doubled.register
def _(x: Tensor) -> Tensor:
    return 2 * x


class AsksByDispatch(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.rest(doubled(self.neurons(self.currents(x))))


class AsksByName(Plain):
    def forward(self, x: Tensor) -> Tensor:
        spikes = self.neurons(self.currents(x))
        return self.rest(2 * spikes if spikes.__class__.__name__ == "Tensor" else spikes)


class AsksByTuple(Plain):
    def forward(self, x: Tensor) -> Tensor:
        spikes = self.neurons(self.currents(x))
        is_sequence = isinstance(spikes, Sequence)
        return self.rest(2 * spikes if isinstance(spikes, TENSORS) and not is_sequence else spikes)


TENSORS = (Tensor, np.ndarray)


class AsksForAttribute(Plain):
    def forward(self, x: Tensor) -> Tensor:
        spikes = self.neurons(self.currents(x))
        gain = getattr(spikes, "gain", 2.0)
        return self.rest(spikes.spikes if hasattr(spikes, "spikes") else gain * spikes)


class GoesOnWithout(Plain):
    """Catches what a trace says of a choice that it cannot follow."""

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.neurons(self.currents(x))
        try:
            gain = 2.0 if spikes.mean() < 1 else 1.0
        except ValueError:
            gain = 1.0
        return self.rest(gain * spikes)


class GoesOnWithoutNumber(Plain):
    def forward(self, x: Tensor) -> Tensor:
        spikes = self.neurons(self.currents(x))
        try:
            samples = len(spikes)
        except Exception:
            samples = 1
        return self.rest(samples * spikes)


class GoesOnWithoutDraw(Plain):
    def forward(self, x: Tensor) -> Tensor:
        spikes = self.neurons(self.currents(x))
        with suppress(Exception):
            spikes = spikes * torch.rand((6, 1, 1))
        return self.rest(spikes)


class TakesTuples(Plain):
    """Asks of a value what it is, with the same answer for a tensor."""

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.neurons(self.currents(x))
        return self.rest(spikes[0] if isinstance(spikes, (tuple, list)) else spikes)


class NormAsAFunction(Plain):
    """With what a layer of batch norm holds, which learns then as it does in its own calls."""

    def forward(self, x: Tensor) -> Tensor:
        currents, norm = self.conv2(self.neurons(self.currents(x))), self.norm2
        statistics = norm.running_mean, norm.running_var
        normalised = F.batch_norm(currents, *statistics, norm.weight, norm.bias, training=self.training)
        output: Tensor = self.readout(self.neurons2(normalised).flatten(1))
        return output


class LearnsOfItsNorm(Plain):
    """By statistics of a layer, which the next call of the layer changes."""

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        return self.rest(self.neurons(self.currents(x)) * norm.running_var.mean())


SCALE = 1.0
MEANS = torch.ones(6, 1, 1, dtype=torch.float64)


def rescale(value: float) -> None:
    global SCALE
    SCALE = value


class ScalesByAGlobal(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.rest(SCALE * self.neurons(self.currents(x)))


class ReadsATensorOfTheModule(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.neurons(self.currents(x)) * MEANS)


class KeepsInADefault(Plain):
    def gain(self, x: Tensor, kept: list[int] = []) -> float:  # noqa: B006
        kept += [0]
        return factor_of(len(kept))

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.gain(x) * self.neurons(self.currents(x)))


class SetsLaterInAMethod(Plain):
    def __init__(self, neuron: Neuron) -> None:
        super().__init__(neuron)
        self.gain = 1.0

    def anneal(self) -> None:
        self.gain *= 0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.gain * self.neurons(self.currents(x)))


class SetsLaterByName(Plain):
    def __init__(self, neuron: Neuron) -> None:
        super().__init__(neuron)
        self.gain = 1.0

    def anneal(self, name: str) -> None:
        setattr(self, name, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.gain * self.neurons(self.currents(x)))


class HookSetsIt(Plain):
    """A function within the constructor that runs later."""

    def __init__(self, neuron: Neuron) -> None:
        super().__init__(neuron)
        self.gain = 1.0

        def count_up(*_: Any) -> None:
            self.gain = 1.5 if self.gain == 1 else 1.0

        self.neurons.register_forward_hook(count_up)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.gain * self.neurons(self.currents(x)))


class OtherLayerLater(Plain):
    def __init__(self, neuron: Neuron) -> None:
        super().__init__(neuron)
        self.chosen = self.conv2

    def choose(self, layer: nn.Conv2d) -> None:
        self.chosen = layer

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.neurons2(self.norm2(self.chosen(self.neurons(self.currents(x)))))
        output: Tensor = self.readout(spikes.flatten(1))
        return output


class AsksByProperty(Plain):
    @property
    def factor(self) -> float:
        return 2.0 if self.training else 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.factor * self.neurons(self.currents(x)))


class Decorated(Plain):
    @torch.no_grad()
    def currents(self, x: Tensor) -> Tensor:
        return super().currents(x)


class ScaledByClosure(Plain):
    """By a number that somebody else may change in the same closure."""

    def __init__(self, neuron: Neuron) -> None:
        super().__init__(neuron)
        gain = 1.0

        def scaled(value: Tensor) -> Tensor:
            return gain * value

        def change(*_: Any) -> None:
            nonlocal gain
            gain = 2.0

        self.scaled = scaled
        self.neurons.register_forward_hook(change)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.scaled(self.neurons(self.currents(x))))


class ForwardOfItsOwn(Plain):
    """Of one object, not of its class."""

    def __init__(self, neuron: Neuron) -> None:
        super().__init__(neuron)
        self.forward = lambda x: self.rest(2 * self.neurons(self.currents(x)))  # type: ignore[method-assign]


class ReadsStatisticsOfItsNorm(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.neurons(self.currents(x)) * self.norm.running_mean.mean())


class DecidesByValue(Plain):
    def forward(self, x: Tensor) -> Tensor:
        spikes = self.neurons(self.currents(x))
        return self.rest(2 * spikes if spikes.mean() < 1 else spikes)


class ComputesOutside(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.neurons(self.currents(x)) * torch.stack([torch.ones_like(self.kept)]).sum())

    def __init__(self, neuron: Neuron) -> None:
        super().__init__(neuron)
        self.register_buffer("kept", torch.ones(()))


class FindsByName(Plain):
    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name.removesuffix("_"))

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.neurons_(self.currents(x)))


class CallsItself(Plain):
    def __call__(self, x: Tensor) -> Tensor:
        output: Tensor = super().__call__(2 * x)
        return output


class ByALambda(Plain):
    def __init__(self, neuron: Neuron) -> None:
        super().__init__(neuron)
        self.twice, self.thrice = (lambda x: 2 * x), (lambda x: 3 * x)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.twice(self.neurons(self.currents(x))))


class ByASwitchedLayer(Plain):
    def forward(self, x: Tensor) -> Tensor:
        self.conv.eval()
        return self.rest(self.neurons(self.currents(x)))


class InheritsItsForward(Plain):
    """Whose own method somebody else's forward method calls."""

    def rest(self, spikes: Tensor) -> Tensor:
        self.helper_log = spikes
        return super().rest(spikes)


NOT_TRACEABLE: dict[type[Plain], str] = {
    StraightThrough: r"`Rounded\.apply` in StraightThrough.forward may do more than a trace shows",
    OtherGradient: r"`ScaledOnlyBackward\.apply",
    WithoutGradient: r"`with torch\.no_grad\(\):` in WithoutGradient.forward",
    InFullPrecision: r"`with torch\.autocast",
    ReadsItsParameter: r"`float\(self\.gate\.detach\(\)\)`",
    Noisy: r"`torch\.rand\(",
    StochasticDepth: r"`random\.random\(\)`",
    WithFeedback: "WithFeedback carries something from step to step",
    RemembersCurrents: r"`self\.last`",
    Logs: r"`self\.log`",
    OtherInEvaluation: r"`self\.training`",
    MoreArguments: "more than one argument",
    AnyArguments: "more than one argument",
    AsksForTypes: r"`type\(spikes\) is Tensor`",
    AsksByPattern: "`match self",
    AsksLayerOfTuples: r"`isinstance\(made, tuple\)`",
    AsksByKindOfItsOwn: r"`isinstance\(spikes, self\.kinds\)`",
    AsksForSpikes: r"`hasattr\(made, 'spikes'\)`",
    AsksForTensors: r"`isinstance\(currents, Tensor\)`",
    AsksTorch: r"`torch\.is_tensor\(spikes\)`",
    AsksByDispatch: r"`.*` in .*dispatch.* may do more",
    AsksByName: r"`spikes\.__class__\.__name__`",
    AsksByTuple: r"`isinstance\(spikes, Sequence\)`",
    AsksForAttribute: r"`getattr\(spikes, 'gain', 2\.0\)`",
    TakesTuples: r"`isinstance\(spikes, \(tuple, list\)\)`",
    ComparesFormats: r"`spikes\.dtype is torch\.float64`",
    AsksForGraph: r"`spikes\.grad_fn`",
    OtherWithoutGraph: r"`torch\.is_grad_enabled\(\)`",
    TopDown: r"`self\.slow\.current`",
    ReadsPotential: r"`self\.neurons\.potential`",
    LearnsByPotential: r"`self\.neurons\.potential`",
    SetsAttribute: r"`spikes\.scale`",
    ReadsRates: r"`self\.monitor\.rates`",
    ReadsWhatHookKept: r"`self\.rates`",
    ReadsLastMap: r"`self\.map\.last`",
    CountsInClass: r"`type\(self\)\.calls`",
    CountsInGlobal: "`global CALLS`",
    CountsDeep: r"`self\.stats\.by_name",
    CountsInClosure: "`nonlocal calls` in counting",
    CountsInFunction: r"`counted\.calls` in counted",
    CountsInArray: r"`self\.calls`",
    CountsByIterator: r"`next\(self\.calls\)`",
    DrawsOfItsOwn: r"`float\(self\.draws\.uniform",
    DrawsDeep: r"`self\.draws\['path'\]\[0\]\.random\(\)`",
    DrawsOfGlobal: r"`float\(DRAWS\.uniform",
    DrawsOfTorch: r"`torch\.rand\(",
    GoesOnWithout: "`try:`",
    GoesOnWithoutNumber: "`try:`",
    GoesOnWithoutDraw: r"`with suppress\(Exception\):`",
    NormAsAFunction: r"`norm\.running_mean`",
    LearnsOfItsNorm: r"`norm\.running_var`",
    ScalesByAGlobal: "`SCALE` in",
    ReadsATensorOfTheModule: "`MEANS` in",
    KeepsInADefault: r"kept: list\[int\]=\[\]` in KeepsInADefault.gain",
    SetsLaterInAMethod: r"`self\.gain`",
    SetsLaterByName: r"`self\.\w+`",
    HookSetsIt: r"`self\.gain`",
    OtherLayerLater: r"`self\.chosen`",
    AsksByProperty: r"`self\.factor`",
    Decorated: r"source of Decorated.currents is not to be had|`with ctx_factory\(\):` in Decorated.currents",
    ScaledByClosure: "`gain` in ScaledByClosure",
    ForwardOfItsOwn: "forward of a ForwardOfItsOwn was replaced",
    ReadsStatisticsOfItsNorm: r"`self\.norm\.running_mean",
    DecidesByValue: "cannot be traced: symbolically traced",
    ComputesOutside: "outside of the step's graph",
    FindsByName: "has a __getattr__ of its own",
    CallsItself: "has a __call__ of its own",
    ByALambda: "source of .*<lambda> is not to be had",
    ByASwitchedLayer: r"`self\.conv\.eval\(\)`",
    InheritsItsForward: r"`self\.helper_log` in InheritsItsForward.rest",
}


class ReluInPlace(Plain):
    def forward(self, x: Tensor) -> Tensor:
        currents = self.currents(x)
        spikes = self.neurons(currents)
        return self.rest(spikes + self.more_neurons(F.relu(currents, inplace=True)))


class LayerInPlace(Plain):
    def __init__(self, neuron: Neuron) -> None:
        super().__init__(neuron)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        currents = self.currents(x)
        spikes = self.neurons(currents)
        return self.rest(spikes + self.more_neurons(self.relu(currents)))


class SumInPlace(Plain):
    """Seen by who holds the value under another name."""

    def forward(self, x: Tensor) -> Tensor:
        currents = same = self.currents(x)
        currents += 0.7
        return self.rest(self.neurons(currents) + self.more_neurons(same))


class OverwritesWhatNormRead(Plain):
    """Which torch allows where nothing before is trained."""

    def __init__(self, neuron: Neuron) -> None:
        super().__init__(neuron)
        self.conv.requires_grad_(False)
        self.norm.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        made = self.conv(x)
        currents = self.norm(made)
        made += 1
        return self.rest(self.neurons(currents) + made)


class AttributeInPlace(Plain):
    """Memory of the spikes, got at by an attribute."""

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.neurons(self.currents(x))
        turned = spikes.mT
        turned *= 0.5
        return self.rest(spikes)


class Shift(nn.Module):
    """In place, where nobody sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        x += self.by
        return x


class ShiftsSpikes(Plain):
    def __init__(self, neuron: Neuron) -> None:
        super().__init__(neuron)
        self.shift = Shift()

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.neurons(self.currents(x))
        shifted = self.shift(spikes)
        return self.rest(spikes) + self.more_neurons(shifted).mean((2, 3))[:, :4]


class TwoResults(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.gain * x, x


class LayerOfTwoResults(Plain):
    def __init__(self, neuron: Neuron) -> None:
        super().__init__(neuron)
        self.two = TwoResults()

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.two(self.currents(x))
        return self.rest(self.neurons(one) + self.more_neurons(other))


class SharedNorm(Plain):
    def forward(self, x: Tensor) -> Tensor:
        currents = self.norm(self.conv2(self.neurons(self.currents(x))))
        output: Tensor = self.readout(self.neurons2(currents).flatten(1))
        return output


class UnreadNorm(Plain):
    """Learns statistics of a value of which it uses nothing."""

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.neurons(self.currents(x))
        self.norm2(2 * self.conv2(spikes))
        return self.rest(spikes)


class LaterMaskFirst(Plain):
    """The first mask is read in a later unit than the second."""

    def __init__(self, neuron: Neuron) -> None:
        super().__init__(neuron)
        self.dropout, self.dropout2 = SequenceDropout(0.3), SequenceDropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.neurons(self.currents(x))
        masked = self.dropout(spikes)
        more = self.more_neurons(2 * self.dropout2(spikes))
        return self.rest(masked) + more.mean((2, 3))[:, :4]


NOT_SEPARABLE: dict[type[Plain], str] = {
    ReluInPlace: r"in place \(relu\)",
    LayerInPlace: r"in place \(ReLU\)",
    SumInPlace: r"in place \(iadd\)",
    OverwritesWhatNormRead: r"in place \(iadd\)",
    AttributeInPlace: r"in place \(imul\)",
    ShiftsSpikes: "a Shift changes its input in place",
    LayerOfTwoResults: "layer two hands on more than one tensor",
    SharedNorm: "serves several units, and would learn its statistics in another order",
    UnreadNorm: "nothing reads what layer conv2 makes",
    LaterMaskFirst: "would draw their masks in another order",
}


class ShapesOfSpikes(Plain):
    def forward(self, x: Tensor) -> Tensor:
        spikes = self.neurons(self.currents(x))
        batch, channels, height, width = spikes.shape
        currents = self.norm2(self.conv2(spikes)).view(batch, channels, height * width)
        output: Tensor = self.readout(self.neurons2(currents).view(batch, -1))
        return output


class Halves(Plain):
    def forward(self, x: Tensor) -> Tensor:
        one, other = self.currents(x).chunk(2, 1)
        return self.rest(torch.cat([self.neurons(one), self.more_neurons(other)], 1))


class DenselyConnected(Plain):
    """Layers in lists and mappings, one after the other, each with all that came before."""

    def __init__(self, neuron: Neuron) -> None:
        super().__init__(neuron)
        widths = [6, 2, 2]
        self.growing = nn.ModuleList(nn.Conv2d(sum(widths[:n]), 2, 1) for n in (1, 2))
        self.spiking = nn.ModuleDict({"first": neuron(), "second": neuron()})
        self.joining = nn.Conv2d(10, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        made = [self.neurons(self.currents(x))]
        for layer, (_, neuron) in zip(self.growing, self.spiking.items(), strict=True):
            made.append(neuron(layer(torch.cat(made, dim=1))))
        return self.rest(self.more_neurons(self.joining(torch.cat([1.0 * part for part in made], 1))))


GAIN = 0.7


def scaled_by(value: Tensor, gain: float | None = None) -> Tensor:
    return value * (GAIN if gain is None else gain)


class ByFixedNumbers(Plain):
    """Of its construction, its class, its module and its layers."""

    share = 0.5

    def __init__(self, neuron: Neuron) -> None:
        super().__init__(neuron)
        self.times, self.is_wide, self.shortcut = 2, True, None
        self.activation = F.relu

    @staticmethod
    def halved(value: Tensor) -> Tensor:
        return value / 2

    def currents(self, x: Tensor) -> Tensor:
        currents = self.activation(super().currents(x)) / math.sqrt(self.conv.out_channels)
        for time in range(self.times):
            if self.is_wide and time > 0:
                currents = scaled_by(self.halved(currents), self.share)
        return scaled_by(currents) if self.shortcut is None else self.shortcut(x)


class MostActive(Plain):
    def forward(self, x: Tensor) -> Tensor:
        currents = self.currents(x)
        most, _ = currents.max(1, keepdim=True)
        return self.rest(self.neurons(currents) + self.more_neurons(most))


class SumOfFreshValues(Plain):
    def forward(self, x: Tensor) -> Tensor:
        currents = self.currents(x)
        sum_ = self.norm2(self.conv2(self.neurons(currents)))
        sum_ += currents
        output: Tensor = self.readout(self.neurons2(sum_).flatten(1))
        return output


class MaskedFeedback(Stateful):
    """A layer with state that has dropout among its parts."""

    carried: ClassVar[tuple[str, ...]] = ("spikes",)

    def __init__(self, neuron: Neuron) -> None:
        super().__init__()
        self.neuron, self.dropout, self.spikes = neuron(), SequenceDropout(0.5), None

    def forward(self, x: Tensor) -> Tensor:
        self.spikes = self.dropout(self.neuron(x if self.spikes is None else x + 0.5 * self.spikes))
        return self.spikes


class DropoutWithinState(Plain):
    def __init__(self, neuron: Neuron) -> None:
        super().__init__(neuron)
        self.neurons = MaskedFeedback(neuron)


SEPARABLE = [
    Plain,
    DenselyConnected,
    ByFixedNumbers,
    Gated,
    ShapesOfSpikes,
    Halves,
    MostActive,
    SumOfFreshValues,
    DropoutWithinState,
]
EVERY_KIND = [*NOT_TRACEABLE, *NOT_SEPARABLE, *SEPARABLE]


@pytest.mark.parametrize("kind", NOT_TRACEABLE)
def test_a_forward_method_that_does_more_than_its_calls_show_is_not_traceable(kind: type[Plain]) -> None:
    with pytest.raises(NotTraceable, match=NOT_TRACEABLE[kind]):
        trace_step(kind(nn.Identity))


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_trace_leaves_the_network_and_all_random_numbers_as_they_were(kind: type[Plain]) -> None:
    network = kind(nn.Identity)
    network.conv.eval()
    before = [dict(vars(module)) for module in network.modules()]
    classes = [dict(vars(type(module))) for module in network.modules()]
    draws, kept = torch.get_rng_state(), PythonState(network)
    with suppress(NotTraceable):
        trace_step(network)
    for module, attributes, of_class in zip(network.modules(), before, classes, strict=True):
        assert vars(module).keys() == attributes.keys()
        assert all(vars(module)[name] is value for name, value in attributes.items())
        assert dict(vars(type(module))) == of_class
    assert torch.equal(torch.get_rng_state(), draws)
    assert not any(held.has_changed() for held in kept._held)
    assert getattr(network, "log", []) == []
    assert CALLS == 0


def test_a_generator_that_draws_nothing_is_as_it_was_where_tensors_are_fake() -> None:
    network = DrawsOfTorch(nn.Identity)
    with FakeTensorMode():  # type: ignore[no-untyped-call]
        kept = PythonState(network)
        assert not any(held.has_changed() for held in kept._held)


class SampleBySample(nn.Module):
    """What goes by the same, and in which samples do not meet."""

    share = 0.5

    def __init__(self, neuron: Neuron) -> None:
        super().__init__()
        self.times = 2
        self.conv2, self.neurons, self.readout = nn.Conv2d(2, 6, 3), neuron(), nn.Linear(96, 4)
        self.flatten = nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        currents = GAIN * self.conv2(x)
        for _ in range(self.times):
            currents = currents * self.share
        output: Tensor = self.readout(self.flatten(self.neurons(currents)))
        return output


def replace_fixed(network: Any, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of what `ByFixedNumbers` goes by."""
    match change:
        case "attribute":
            network.times = 3
        case "class":
            monkeypatch.setattr(type(network), "share", 0.25)
        case "global":
            monkeypatch.setattr(sys.modules[__name__], "GAIN", 0.9)
        case "layer":
            network.conv2 = nn.Conv2d(6, 6, 3, padding=1).double()


@pytest.mark.parametrize("change", ["attribute", "class", "global", "layer"])
@pytest.mark.parametrize("kind", ["units", "free steps", "fused"])
def test_a_number_or_layer_that_somebody_replaces_later_ends_what_was_found_by_it(
    kind: str, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    backend = Native(fused_norm="always")
    made = SampleBySample if kind == "free steps" else ByFixedNumbers
    network = made(lambda: backend.neuron(LIFParameters())).double()
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    expected = "is another than when the calls of a step were traced"
    if kind == "fused":
        backend.prepare(network, "cpu")
        with backend.iteration(network):
            network(x)
        replace_fixed(network, change, monkeypatch)
        with pytest.raises(ValueError, match=expected), backend.iteration(network):
            network(x)
        return
    found = UnitNetwork(network, x) if kind == "units" else FreeSteps(network)
    assert found.why_not_now() is None
    replace_fixed(network, change, monkeypatch)
    assert expected in str(found.why_not_now())


SHIPPED = {load_recipe(name).model.name: name for name in recipe_names()}
"""Network → a recipe that has it."""


@pytest.mark.parametrize("recipe", SHIPPED.values(), ids=SHIPPED)
def test_every_network_that_is_shipped_could_be_somebodys_own(
    recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Networks of this package are not read when a step is traced; if they were, they would be found plain."""
    options = load_recipe(recipe)
    with torch.device("meta"):
        network = models.build(
            options.model,
            neuron=lambda: LIF(options.neuron),
            input_shape=(2, 64, 64),
            classes=10,
            timesteps=4,
        )

    def is_known(thing: Any) -> bool:
        return re.match(r"torch\.|sltt_bench\.(?!models\.)", f"{thing.__module__}.") is not None

    monkeypatch.setattr(plain_forward, "_is_known", is_known)
    plain_forward._set_after_construction.cache_clear()
    try:
        read_forward_methods(part for part in network.modules() if part is network or is_seen_through(part))
    finally:
        plain_forward._set_after_construction.cache_clear()


def test_a_file_that_is_another_than_what_runs_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "edited_networks.py"
    source = """
from torch import nn

class Double(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, x):
        return self.inner(2 * x)
"""
    file.write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    network = importlib.import_module("edited_networks").Double()
    trace_step(network)
    file.write_text(source.replace("2 * x", "3 * x if self.training else x"))
    linecache.checkcache(str(file))
    plain_forward._definition.cache_clear()
    with pytest.raises(NotTraceable, match=r"source of Double\.forward is not to be had"):
        trace_step(network)


def test_hooks_of_parts_see_no_values_of_a_trace() -> None:
    network = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.ReLU())
    seen: list[Any] = []
    for module in network.modules():
        module.register_forward_hook(lambda _, __, output: seen.append(output))
        module.register_forward_pre_hook(lambda _, args: seen.append(args))
    trace_step(network)
    assert seen == []
    network(torch.ones(1, 2))
    assert len(seen) == 8


@cache
def trained_on_the_reference(kind: type[Plain]) -> dict[str, Tensor]:
    """What it leaves, which is the same however native trains."""
    begin_to_count()
    return train_own(kind, "reference", "bptt")[0]


@pytest.mark.parametrize("how", NATIVE)
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_such_networks_learn_as_they_do_with_the_reference(how: str, kind: type[Plain]) -> None:
    expected = trained_on_the_reference(kind)
    begin_to_count()
    left, units = train_own(kind, "native", "bptt", **NATIVE[how])
    assert left.keys() == expected.keys()
    for name, value in expected.items():
        assert left[name].shape == value.shape, name
        assert torch.allclose(left[name], value, rtol=1e-9, atol=1e-10), name
    if how == "unit by unit":
        reason = NOT_TRACEABLE.get(kind) or NOT_SEPARABLE.get(kind)
        assert re.search(reason or "computed for all steps at once", units)
