"""`python -m tests.benchmarks.launches`: counts an iteration's kernel launches without a GPU.

Every computing operation of torch counts as one launch, and so does every function of native's kernels, as on
a GPU (where a few are two launches). Launches on at most SMALL elements take a GPU no longer than their
start. The counts are for a batch of two in bfloat16, with images so large that no layer's result is small.

The same count gives what each kind of launch reads and writes, and the multiply-adds of convolutions, told apart
by the pass in which they happen; `predict` makes a table of it.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from sltt_bench.backends.native import packed_spikes, standardising, step_weights, units
from sltt_bench.backends.native.lif_torch import TorchKernels
from sltt_bench.measure.operations import multiply_adds_of, read_by, touched_bytes
from sltt_bench.torch_internals import TorchDispatchMode, inside_backward, storage_address, tree_leaves

from .competitors import (
    Competitor,
    Problem,
    cifar_resnet18,
    gesture_vgg11,
    imagenet_nf_resnet34,
    relu_network,
    this_project,
)

SMALL = 4096
"""The most elements of a small tensor."""
LAYOUT = {
    "view", "as_strided", "detach", "alias", "t", "transpose", "permute", "expand", "slice", "select", "unsqueeze",
    "squeeze", "_unsafe_view", "_reshape_alias", "split", "unbind", "empty", "empty_like", "empty_strided", "new_empty",
    "new_empty_strided", "is_same_size", "lift_fresh", "promote_types", "device",
}  # fmt: skip
"""Operations that only reshape a tensor or allocate memory, and launch nothing."""
KERNELS = (
    "forward", "backward", "backward_biased", "backward_normalised", "backward_to_input", "statistics", "joined",
    "joined_backward", "fire",
)  # fmt: skip


class Place(NamedTuple):
    """Where in an iteration a launch belongs."""

    phase: str
    """forward, again (a unit of BPTT unit by unit) or backward."""
    name: str


class Launches(TorchDispatchMode):
    """Counts launches within: `of` all by operation, `small` those of them on few elements.

    By place also launches (`at`), bytes read and written, and multiply-adds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[str] = Counter()
        self.small = 0
        self.at: Counter[Place] = Counter()
        self.bytes: Counter[Place] = Counter()
        self.multiply_adds: Counter[Place] = Counter()
        self.is_again = False
        """Whether a unit is being computed again."""
        self._within_kernel = False

    def clear(self) -> None:
        """Forget what has been counted."""
        for counter in (self.of, self.at, self.bytes, self.multiply_adds):
            counter.clear()
        self.small = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not self._within_kernel and name not in LAYOUT:
            packet, kwargs = func.overloadpacket, kwargs or {}
            work = multiply_adds_of(packet, args, kwargs, result) if packet in flop_registry else 0
            self._add(name, (args, kwargs, result), (read_by(packet, args), kwargs, result), work)
        return result

    def counting(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the function, counted as one launch whatever it calls."""

        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            if self._within_kernel:
                return function(*args, **kwargs)
            self._within_kernel = True
            try:
                result = function(*args, **kwargs)
            finally:
                self._within_kernel = False
            given = (*args[:4], *args[5:]) if name == "forward" else args  # u[t] is written, not read
            self._add(f"native: {name}", (args, kwargs, result), (given, kwargs, result))
            return result

        return counted

    def _add(self, name: str, involved: Any, moved: tuple[Any, Any, Any], multiply_adds: int = 0) -> None:
        """`moved`: the arguments that are read, and the result; a tensor is moved once each way."""
        sizes = [leaf.numel() for leaf in tree_leaves(involved) if isinstance(leaf, Tensor)]
        self.of[name] += 1
        self.small += max(sizes, default=0) <= SMALL
        place = Place(self._phase(), name)
        self.at[place] += 1
        self.multiply_adds[place] += multiply_adds
        for way in (moved[:2], moved[2:]):
            tensors = [leaf for leaf in tree_leaves(way) if isinstance(leaf, Tensor)]
            different = {(storage_address(one), one.storage_offset(), one.numel()): one for one in tensors}
            self.bytes[place] += sum(map(touched_bytes, different.values()))

    def _phase(self) -> str:
        if self.is_again:
            return "again"
        return "backward" if inside_backward() else "forward"

    def computing_again(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the context of a unit that is computed again, in which launches are counted as such."""

        @contextmanager
        def counted(*args: Any) -> Iterator[None]:
            with original(*args):
                self.is_again = True
                try:
                    yield
                finally:
                    self.is_again = False

        return counted


@contextmanager
def kernels_counted(launches: Launches) -> Iterator[None]:
    """Count within as one launch what is one kernel on a GPU."""
    places: list[tuple[type | ModuleType, str]] = [(TorchKernels, name) for name in KERNELS]
    places += [(packed_spikes, "pack"), (packed_spikes, "unpack")]
    places += [
        (module, name)
        for module in (standardising, step_weights)
        for name in ("standardise", "standardise_backward")
    ]
    originals = [(place, name, getattr(place, name)) for place, name in places]
    for place, name, function in originals:
        setattr(place, name, launches.counting(name, function))
    again = (units._Run, "_computing_again", units._Run._computing_again)
    originals.append(again)
    setattr(*again[:2], launches.computing_again(again[2]))
    try:
        yield
    finally:
        for place, name, function in originals:
            setattr(place, name, function)


def launches_of(competitor: Competitor, problem: Problem) -> Launches:
    """Returns the launches of an iteration, after some in which native learns what repeats."""
    launches = Launches()
    with kernels_counted(launches):
        made = competitor.make(problem)
        for _ in range(3):
            made.iteration()
        launches.clear()
        with launches:
            made.iteration()
    return launches


def native(method: str, **options: Any) -> Competitor:
    """Native as it runs on a GPU."""
    return this_project("native", method, graphs="never", fused_norm="always", **options)


WITHIN = ", batch norm within neurons"
"""The suffix of native's names here."""
SMALLER = {"precision": "bf16", "batch_size": 2}
PROBLEMS = (
    cifar_resnet18(**SMALLER),
    replace(gesture_vgg11(**SMALLER), image=(2, 64, 64)),
    replace(imagenet_nf_resnet34(**SMALLER), image=(3, 96, 96)),
)
COMPETITORS = (
    this_project("reference", "bptt"),
    this_project("reference", "sltt"),
    native("bptt"),
    native("bptt", recompute=True),
    native("sltt"),
    native("sltt-k1"),
    relu_network(),
)


def main() -> None:
    """Print a table for each network."""
    for problem in PROBLEMS:
        table = Table(
            "", *("launches", "on small tensors", "native's kernels"),
            title=f"{problem.network.name}, T = {problem.timesteps}", title_justify="left",
        )  # fmt: skip
        for competitor in COMPETITORS:
            launches = launches_of(competitor, problem)
            own = sum(count for name, count in launches.of.items() if name.startswith("native: "))
            figures = (str(launches.of.total()), str(launches.small), str(own) if own else "")
            table.add_row(competitor.name.removesuffix(WITHIN), *figures)
        Console().print(table)


if __name__ == "__main__":
    main()
