"""Tests whether a network's step gives the same result when it is computed a second time.

Layers with state declare it (`Stateful`), batch norm is known, and dropout of sequences keeps its mask.
User-written layers may count their calls, learn their own statistics or add noise without declaring it, so
the step is tried.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sltt_bench.models.layers import SequenceDropout
from sltt_bench.neurons import reset_state
from sltt_bench.python_state import PythonState
from sltt_bench.torch_internals import FakeTensor, TorchDispatchMode, times_changed


@dataclass(frozen=True)
class Repetition:
    """What differs when a step runs a second time on the same input; an empty field: no known difference."""

    differs: str = ""
    """What gives another output although the same random numbers are drawn. Includes layers that may do so at
    a later call, because every call changes a number that they keep."""
    draws: str = ""
    """States that random numbers are drawn."""
    draws_on_host: str = ""
    """States that a network on a GPU draws random numbers on the host, which a replay on the device would
    repeat."""
    learns: str = ""
    """A buffer that changes at every call; batch norm's buffers, which are known, are left out."""
    replaces: str = ""
    """A buffer that every call replaces by another tensor."""
    reads: str = ""
    """States that the host reads a value computed on the device, which prevents recording device work."""
    overwrites: str = ""
    """A layer that changes its input in place, although other layers or the next run may read it."""


@torch.no_grad()
def tried_again(network: nn.Module, x: Tensor) -> Repetition:
    """Returns what differs when the first training step runs twice on the first sample of x [batch, ...].

    The trial runs on a copy with its own random numbers; state that the copy shares with the network (class
    attributes, globals) is restored. A fake tensor x has no values, so the result is empty. The sample is
    given twice in one batch: batch norm needs more than one value, and processes with shares of different
    size must come to the same result.
    """
    if isinstance(x, FakeTensor):
        return Repetition()
    x = torch.cat([x[:1], x[:1]])
    shared = PythonState(network)
    if shared.iterators:
        return Repetition(
            differs=f"what it does cannot be tried twice ({shared.iterators[0]} goes on with each use)"
        )
    try:
        tried = deepcopy(network)
        for module in tried.modules():
            if isinstance(module, SequenceDropout):
                module.p = 0.0
        with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
            first, second = _StepTried(tried, x), _StepTried(tried, x)
    except Exception as error:  # whatever somebody's layers hold and do
        return Repetition(differs=f"what it does cannot be tried twice ({type(error).__name__}: {error})")
    finally:
        shared.put_back()
    return Repetition(
        differs=_difference(first.calls, second.calls)
        or next((f"{name} is another value after every call" for name in second.counted), "")
        or (f"it draws {first.draws_elsewhere}" if first.draws_elsewhere else ""),
        draws="it draws random numbers" if second.draws or second.draws_on_host else "",
        draws_on_host="it draws random numbers on the host" if second.draws_on_host else "",
        learns=next((f"{name} changes at every call" for name in second.changed), ""),
        replaces=next((f"{name} is replaced at every call" for name in second.replaced), ""),
        reads=f"it reads a value on the host ({second.reading})" if second.reading else "",
        overwrites=next((f"a {layer} changes its input in place" for layer in first.overwriting), ""),
    )


@dataclass(frozen=True)
class _Call:
    """What one layer was given and put out."""

    layer: str
    """Class name of the layer."""
    within: str
    """Class name of the layer whose forward calls it; "" for the network."""
    inputs: list[Tensor]
    output: Tensor


def _difference(calls: list[_Call], calls_again: list[_Call]) -> str:
    if [call.layer for call in calls] != [call.layer for call in calls_again]:
        return "it calls other layers the second time"
    for one, other in zip(calls, calls_again, strict=True):
        if _alike(one.output, other.output):
            continue
        if len(one.inputs) == len(other.inputs) and all(map(_alike, one.inputs, other.inputs)):
            return f"a {one.layer} puts out something else the second time"
        return f"the forward of a {one.within} gives a {one.layer} something else the second time"
    return ""


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=1e-5, equal_nan=True)


class _Readings(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts conversions of a tensor to a Python number within the context."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


class _StepTried:
    """One step of the network, with a record of its effects."""

    def __init__(self, network: nn.Module, x: Tensor) -> None:
        self.calls: list[_Call] = []
        """Those of all layers, in the order in which they end."""
        self.overwriting: list[str] = []
        """Class names of layers that changed their input."""
        self.reading = ""
        """Class name of a layer that converted a tensor to a Python number."""
        self._running: list[tuple[str, list[Tensor], int]] = []
        """For each running layer its class name, its inputs, and how often these had been changed before the call."""
        reset_state(network)
        network.train()
        torch.manual_seed(0)
        generators, buffers = _generators(x), _buffers(network)
        values = {name: (buffer.clone(), times_changed(buffer)) for name, buffer in buffers.items()}
        kept = PythonState(network)
        hooks = [module.register_forward_hook(self._note) for module in network.modules()]
        hooks += [module.register_forward_pre_hook(self._note_input) for module in network.modules()]
        with _Readings() as self._readings:  # type: ignore[no-untyped-call]
            network(x)
        if self._readings.count and not self.reading:
            self.reading = type(network).__name__
        for hook in hooks:
            hook.remove()
        after = _buffers(network)
        self.draws_on_host, self.draws = (
            not torch.equal(before, now) for before, now in zip(generators, _generators(x), strict=True)
        )
        self.draws_elsewhere = kept.drawn()
        """Description of random numbers drawn from generators other than torch's global one."""
        # One that has been written to counts also if it is as before: a power iteration that has converged, for example.
        self.changed = [
            name
            for name, (value, times) in values.items()
            if name not in after
            or not torch.equal(value, after[name])
            or (after[name] is buffers[name] and times_changed(after[name]) != times)
        ]
        reset_state(network)
        after_reset = PythonState(network).numbers
        self.counted = [
            where for where, number in kept.numbers.items() if after_reset.get(where, number) != number
        ]
        """Places of numbers that have changed even after the reset for a new sequence."""
        self.replaced = [name for name, buffer in buffers.items() if after.get(name) is not buffer]

    def _note_input(self, layer: nn.Module, args: Any) -> None:
        inputs = [arg.clone() for arg in args if isinstance(arg, Tensor)]
        self._running.append((type(layer).__name__, inputs, _changes(args)))

    def _note(self, layer: nn.Module, args: Any, output: Any) -> None:
        name, inputs, changes = self._running.pop()
        if _changes(args) != changes:
            self.overwriting.append(name)
        if self._readings.count and not self.reading:
            self.reading = name
        if isinstance(output, Tensor):
            within = self._running[-1][0] if self._running else ""
            self.calls.append(_Call(name, within, inputs, output.clone()))


def _changes(args: Any) -> int:
    """Returns how often the tensors among the arguments have been changed in place so far."""
    return sum(times_changed(arg) for arg in args if isinstance(arg, Tensor))


def _buffers(network: nn.Module) -> dict[str, Tensor]:
    """Returns buffers, except batch norm's, and tensors that layers hold as plain attributes."""
    return {
        f"{'buffer' if name in module._buffers else 'attribute'} {path}.{name}": tensor
        for path, module in network.named_modules()
        if not isinstance(module, nn.modules.batchnorm._BatchNorm)
        for name, tensor in {**vars(module), **module._buffers}.items()
        if isinstance(tensor, Tensor)
    }


def _generators(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the states of torch's generators on the host (empty unless x is on a GPU) and on x's device."""
    on_host = torch.get_rng_state()
    return (on_host, torch.cuda.get_rng_state(x.device)) if x.is_cuda else (on_host[:0], on_host)
