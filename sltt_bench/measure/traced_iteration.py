"""One training iteration of a cell's real network at its real size, on fake tensors: no memory, no data.

Fake tensors have shapes, strides and types but no values, and every operation runs only as far as
to say what its result looks like. Autograd, autocast, optimiser, method and backend are the real
ones, so that what they keep alive is what they keep alive in a real run.

The fake tensors live on the CPU also where a run on a GPU is estimated: without a GPU at hand the
autograd engine refuses to run for CUDA tensors, fake or not. What differs between the two is
imitated: the precision is the GPU's, in autocast of the CPU with the same format (for the
operations of these networks both autocasts have the same lists), and the optimiser updates all
tensors at once. Loss scaling is left out: it reads values, and takes a few bytes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from sltt_bench import methods
from sltt_bench.experiment import Experiment, assemble, make_backend
from sltt_bench.measure.fake_tensor_cache import RememberedOperations
from sltt_bench.measure.operations import OperationCounter, Operations, tensors_in
from sltt_bench.measure.tensor_bytes import Cause, Execute, TensorBytes
from sltt_bench.neurons import Stateful, reset_state
from sltt_bench.plan import Cell
from sltt_bench.precision import resolve

DeviceType = Literal["cuda", "cpu"]


@dataclass(frozen=True)
class MemoryTrace:
    """What one training iteration needs of memory."""

    peak_bytes: int
    """Peak of live tensor bytes."""
    peak_by_cause: dict[Cause, int]
    """They add up to `peak_bytes`."""
    changes: tuple[int, ...]
    """The bytes by which live memory changed, event after event."""


@dataclass(frozen=True)
class Trace(MemoryTrace):
    """What one training iteration needs."""

    operations: Operations
    parameters: int
    """Trainable parameters."""
    layers: tuple[str, ...]
    """Names of all layers, in the network's order."""
    stateful_layers: tuple[str, ...]
    """Names of the layers that carry state, without those inside another one."""
    precision: str
    """fp32, fp16 or bf16: what the device type makes of the recipe's."""


def trace_iteration(cell: Cell, device_type: DeviceType) -> Trace:
    """Count one iteration in the steady state: it is not the first, and no gradients exist yet.

    Raises UnsupportedCell, UnknownBackend, UnknownMethod, and RuntimeError (from torch) where an
    operation depends on values.
    """
    with _steady_state(cell, device_type) as (subject, x, labels, operations):
        counter = OperationCounter(subject.network, subject.optimizer, execute=_RealDraws(operations))
        with counter.watching():
            memory = _count_memory(subject, x, labels, execute=counter.count)
        return Trace(
            peak_bytes=memory.peak_bytes,
            peak_by_cause=memory.peak_by_cause,
            changes=memory.changes,
            operations=counter.operations,
            parameters=sum(p.numel() for p in subject.network.parameters() if p.requires_grad),
            layers=tuple(name for name, _ in subject.network.named_modules()),
            stateful_layers=_outermost_stateful(subject.network),
            precision=resolve(cell.recipe.train.precision, device_type),
        )


def trace_memory(cell: Cell, device_type: DeviceType) -> MemoryTrace:
    """The memory of the same iteration alone, in less time. Raises what `trace_iteration` raises."""
    with _steady_state(cell, device_type) as (subject, x, labels, operations):
        return _count_memory(subject, x, labels, execute=_RealDraws(operations))


@cache
def late_draw_seed(timesteps: int) -> int:
    """A seed with which a random permutation of the T steps begins with the last step.

    What SLTT-K needs depends on its draw: the first step has no state yet, and the first chosen one
    no gradients. A long run meets the costliest draws; this is one of them, for every K.
    """
    generator = torch.Generator()
    seed = 0
    while torch.randperm(timesteps, generator=generator.manual_seed(seed))[0] != timesteps - 1:
        seed += 1
    return seed


def fake_batch(cell: Cell) -> tuple[Tensor, Tensor]:
    """Input [batch, (T,) C, H, W] and labels [batch], to be called where tensors are fake."""
    recipe = cell.recipe
    steps = (recipe.timesteps,) if recipe.data.temporal else ()
    x = torch.zeros(recipe.train.batch_size, *steps, *recipe.data.sample_shape)
    return x, torch.zeros(recipe.train.batch_size, dtype=torch.int64)


@contextmanager
def _steady_state(
    cell: Cell, device_type: DeviceType
) -> Iterator[tuple[Experiment, Tensor, Tensor, RememberedOperations]]:
    """Within: the cell's experiment after its first iteration, and a batch, all of it fake, and what
    runs operations on them."""
    seed = late_draw_seed(cell.recipe.timesteps)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        operations = RememberedOperations(mode)
        with Executing(operations):
            with modules_stay_where_they_are():
                subject = _prepare(cell, device_type)
            x, labels = fake_batch(cell)
            _warm_up(subject, x, labels)
        subject.generator.manual_seed(seed)
        yield subject, x, labels, operations


def _prepare(cell: Cell, device_type: DeviceType) -> Experiment:
    recipe = cell.recipe
    train = recipe.train.model_copy(update={"precision": resolve(recipe.train.precision, device_type)})
    # Neither a compiler nor a graph of kernels can be made from fake tensors; the operations are the same.
    native = recipe.native.model_copy(update={"compile": False, "cuda_graph": False})
    cell = replace(cell, recipe=recipe.model_copy(update={"train": train, "native": native}))
    subject = assemble(cell, torch.device("cpu"), make_backend(cell))
    subject.scaler = torch.amp.GradScaler("cpu", enabled=False)
    subject.network.train()
    for group in subject.optimizer.param_groups:
        group["foreach"] = device_type == "cuda"  # torch's own choice for each
    return subject


def _warm_up(subject: Experiment, x: Tensor, labels: Tensor) -> None:
    """Reach the steady state: the optimiser creates what it carries, a backend may learn what repeats.

    Two time steps of SLTT are enough for both.
    """
    steps = min(2, subject.timesteps)
    first = replace(subject, method=methods.create("sltt", steps), timesteps=steps, window=None)
    first.training_iteration(x[:, :steps] if subject.temporal else x, labels)
    subject.optimizer.zero_grad(set_to_none=True)
    reset_state(subject.network)


def _count_memory(subject: Experiment, x: Tensor, labels: Tensor, *, execute: Execute) -> MemoryTrace:
    """The memory of one iteration, whose operations are run by `execute`."""
    with TensorBytes(
        [x, labels], network=subject.network, optimizer=subject.optimizer, execute=execute
    ) as memory:
        subject.training_iteration(x, labels)
    return MemoryTrace(memory.peak, memory.peak_by_cause, tuple(memory.changes))


@contextmanager
def modules_stay_where_they_are() -> Iterator[None]:
    """`network.to(device)` does nothing to a network that is there already, but fails on fake parameters."""
    original = nn.Module.to

    def to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        _, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        return module if dtype is None else original(module, *args, **kwargs)

    nn.Module.to = to  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        nn.Module.to = original  # type: ignore[method-assign]


def _outermost_stateful(network: nn.Module) -> tuple[str, ...]:
    names: list[str] = []
    for name, module in network.named_modules():
        if isinstance(module, Stateful) and not any(name.startswith(f"{outer}.") for outer in names):
            names.append(name)
    return tuple(names)


class _RealDraws:
    """Keeps real what a method draws from its own generator, and what it computes from that alone.

    A method may decide by such values what it does (SLTT-K: at which steps); a fake tensor has none.
    """

    def __init__(self, execute: Execute) -> None:
        """`execute` runs every other operation."""
        self._execute = execute
        self._drawn = False

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs.get("generator") is not None:
            self._drawn = True
        elif not (self._drawn and _all_real(args)):
            return self._execute(func, args, kwargs)
        with unset_fake_temporarily():
            return func(*args, **kwargs)


class Executing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs each operation as it is told."""

    def __init__(self, execute: Execute) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._execute = execute

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self._execute(func, args, kwargs or {})


def _all_real(args: tuple[Any, ...]) -> bool:
    """Whether there are tensors among the arguments, none of them fake."""
    tensors = tensors_in(args)
    return bool(tensors) and not any(isinstance(tensor, FakeTensor) for tensor in tensors)
