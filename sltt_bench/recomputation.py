"""Whether a step that is computed a second time is what it was, for networks that somebody has written.

Layers with state say so (`Stateful`), batch norm is known, and dropout of sequences keeps its mask. A layer that counts
its calls, learns statistics of its own or adds noise says nothing: it is tried.
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
    """What is not as it was when a step runs a second time on the same input; empty where nothing is known to differ."""

    differs: str = ""
    """What puts out something else although all random numbers are drawn again as they were, or may do so at a later
    call: a layer with a number of its own that every call changes."""
    draws: str = ""
    """That random numbers are drawn."""
    draws_on_host: str = ""
    """That they are drawn on the host, where the network is on a GPU: nothing that the device repeats draws them anew."""
    learns: str = ""
    """A buffer that changes at every call; batch norm's, which are known, are left out."""
    replaces: str = ""
    """A buffer of which another tensor takes the place at every call."""
    reads: str = ""
    """That the host reads a value that the device computes: no recording of what the device does goes on without it."""
    overwrites: str = ""
    """A layer that changes in place what it is given, which others may read, or the next run be given again."""


@torch.no_grad()
def tried_again(network: nn.Module, x: Tensor) -> Repetition:
    """What differs when the first step in training runs twice on the first sample of x [batch, ...].

    What is tried is a copy, with random numbers of its own; what the copy shares with the network (attributes of classes,
    globals) is put back. A shape alone (a fake tensor) tells nothing. The sample
    stands there twice: batch norm has no statistics of a single value, and processes whose shares of a batch differ in
    size must not come to different ends.
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
        differs=_difference(first.made, second.made)
        or next((f"{name} is another value after every call" for name in second.counted), "")
        or (f"it draws {first.draws_elsewhere}" if first.draws_elsewhere else ""),
        draws="it draws random numbers" if second.draws or second.draws_on_host else "",
        draws_on_host="it draws random numbers on the host" if second.draws_on_host else "",
        learns=next((f"{name} changes at every call" for name in second.changed), ""),
        replaces=next((f"{name} is replaced at every call" for name in second.replaced), ""),
        reads=f"it reads a value on the host ({second.reading})" if second.reading else "",
        overwrites=next((f"a {layer} changes its input in place" for layer in first.overwriting), ""),
    )


def _difference(made: list[tuple[str, Tensor]], made_again: list[tuple[str, Tensor]]) -> str:
    if [layer for layer, _ in made] != [layer for layer, _ in made_again]:
        return "it calls other layers the second time"
    for (layer, one), (_, other) in zip(made, made_again, strict=True):
        if not torch.allclose(one, other, rtol=1e-3, atol=1e-5, equal_nan=True):
            return f"a {layer} puts out something else the second time"
    return ""


class _Readings(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within, notices that a number is made of a tensor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


class _StepTried:
    """One step of the network, and what it did."""

    def __init__(self, network: nn.Module, x: Tensor) -> None:
        self.made: list[tuple[str, Tensor]] = []
        """The kind of each layer and what it put out, in the order of their calls."""
        self.overwriting: list[str] = []
        """The kinds of layers that changed their input."""
        self.reading = ""
        """The kind of a layer in which a number was made of a tensor."""
        self._given: list[int] = []
        """How often the inputs of the layers under way had been changed when they were called."""
        reset_state(network)
        network.train()
        torch.manual_seed(0)
        generators, buffers = _generators(x), _buffers(network)
        values = {name: buffer.clone() for name, buffer in buffers.items()}
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
        """Which random numbers beside those that torch's layers share, in words."""
        self.changed = [
            name for name, value in values.items() if name not in after or not torch.equal(value, after[name])
        ]
        reset_state(network)
        after_reset = PythonState(network).numbers
        self.counted = [
            where for where, number in kept.numbers.items() if after_reset.get(where, number) != number
        ]
        """What is another number, though a new sequence begins."""
        self.replaced = [name for name, buffer in buffers.items() if after.get(name) is not buffer]

    def _note_input(self, layer: nn.Module, args: Any) -> None:
        self._given.append(_changes(args))

    def _note(self, layer: nn.Module, args: Any, output: Any) -> None:
        if _changes(args) != self._given.pop():
            self.overwriting.append(type(layer).__name__)
        if self._readings.count and not self.reading:
            self.reading = type(layer).__name__
        if isinstance(output, Tensor):
            self.made.append((type(layer).__name__, output.clone()))


def _changes(args: Any) -> int:
    """How often the tensors among arguments were changed in place so far."""
    return sum(times_changed(arg) for arg in args if isinstance(arg, Tensor))


def _buffers(network: nn.Module) -> dict[str, Tensor]:
    """Those that are not batch norm's, and tensors that layers hold as plain attributes."""
    return {
        f"{'buffer' if name in module._buffers else 'attribute'} {path}.{name}": tensor
        for path, module in network.named_modules()
        if not isinstance(module, nn.modules.batchnorm._BatchNorm)
        for name, tensor in {**vars(module), **module._buffers}.items()
        if isinstance(tensor, Tensor)
    }


def _generators(x: Tensor) -> tuple[Tensor, Tensor]:
    """The states of torch's random numbers on the host, where x is on another device, and on the device of x."""
    on_host = torch.get_rng_state()
    return (on_host, torch.cuda.get_rng_state(x.device)) if x.is_cuda else (on_host[:0], on_host)
