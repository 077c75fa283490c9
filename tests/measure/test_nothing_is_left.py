"""Nothing survives an iteration but weights, optimiser state and what the method declares.

Python's collector is switched off: what only a collection would free counts as left.
"""

import ctypes
import gc
import os
import re
import weakref
from collections.abc import Iterator
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from every_method import labels_left_out
from thinned import thinned
from torch import Tensor

from sltt_bench.backends.native import loop_invariants
from sltt_bench.measure import Profiler
from sltt_bench.measure.process_memory import resident_bytes
from sltt_bench.measure.tensor_bytes import TensorBytes
from sltt_bench.neurons import Stateful, save_state
from sltt_bench.planning.plan import Cell
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.training import experiment
from sltt_bench.training.engine import TrainingSetup, _evaluate_batch, _Totals, _train_batch, train
from sltt_bench.training.experiment import Experiment

NETWORKS: dict[str, dict[str, Any]] = {
    "recurrent": {"name": "mlp", "hidden": [8, 8], "recurrent": True, "dropout": 0.2},
    "batch norm": {"name": "cnn", "channels": [4, 4], "dropout": 0.2},
    "standardised": {"name": "nf-resnet34", "width": 2},
    "standardised linear": {"name": "mlp", "hidden": [8, 8], "normalisation": "weight"},
    "preact-resnet18": {"name": "preact-resnet18", "width": 2, "dropout": 0.2},
    "sew-resnet18": {"name": "sew-resnet18", "width": 2, "stem": "3x3"},
    "ms-resnet18": {"name": "ms-resnet18", "width": 2, "stem": "3x3"},
    "spikformer": {"name": "spikformer", "dim": 8, "heads": 2, "depth": 1, "mlp_ratio": 2, "halvings": 1},
    "events": {"name": "cnn", "channels": [4, 4], "dropout": 0.2},
    "events, vgg11": {"name": "vgg11", "width": 2, "dropout": 0.2},
}
"""Static images of 8×8 but for events, which change from step to step."""
METHODS = ("bptt", "sltt", "sltt-k2")
FURTHER_METHODS = (
    "bptt-ckpt2",
    "bptt-d0.5",
    "bptt-l1",
    "tbptt-w2",
    "sltt-a2",
    "sltt-a2-unbiased",
    "ottt",
    "ottt-o",
    "s-tllr",
    "pp-prop",
    "e-prop",
    "rate",
    "conversion",
)
NATIVE_TOO = re.compile("bptt-[cd]|tbptt-|sltt-a")
"""Of those, the ones that native serves."""
BACKENDS = ("reference", "native", "spikingjelly")


EVERY_WAY: list[tuple[str, dict[str, Any], str]] = [
    *(("reference", {}, method) for method in (*METHODS, *FURTHER_METHODS)),
    *(("spikingjelly", {}, method) for method in METHODS),
    *(("native", {}, method) for method in (*METHODS, *(m for m in FURTHER_METHODS if NATIVE_TOO.match(m)))),
    *(("native", {"recompute": True}, method) for method in (*METHODS, "bptt-d0.5", "bptt-ckpt2")),
    *(
        ("native", {"recompute": again, "fused_norm": "always"}, method)
        for again in (False, True)
        for method in METHODS
    ),
]
"""(backend, its options, method)."""
WITHOUT_RECURRENCE = ("rate", "conversion")


def cell_of(network: str, method: str, backend: str, **native: Any) -> Cell:
    recipe = "digits-saccade" if network.startswith("events") else "digits"
    overrides = {"model": NETWORKS[network], "timesteps": 3, "train.precision": "fp32"}
    overrides |= {f"native.{option}": value for option, value in native.items()}
    return Cell(load_recipe(recipe, overrides, chosen_methods=[method]), method, backend, 0, device="cpu")


def batch_of(cell: Cell, samples: int) -> tuple[Tensor, Tensor]:
    """x [samples, C, H, W], of events [samples, T, C, H, W], and labels."""
    data = cell.recipe.data
    steps = (cell.recipe.timesteps,) if data.temporal else ()
    return torch.rand(samples, *steps, *data.sample_shape), torch.randint(10, (samples,))


def assembled(cell: Cell) -> Experiment:
    subject = experiment.assemble(cell, torch.device("cpu"), experiment.make_backend(cell))
    subject.network.train()
    return subject


def setup_of() -> TrainingSetup:
    nothing: Any = None
    return TrainingSetup(nothing, {"test": nothing}, lambda x: x * 1.0, nothing, epochs=1, checkpoint_every=0)


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(params=[1, 2**20], ids=["every output is large", "as shipped"])
def large_from(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """From which size on native passes the gradients of a repeated layer on at once, not summed."""
    monkeypatch.setattr(loop_invariants, "SMALL", request.param)


def live_bytes(cell: Cell, iterations: int) -> list[int]:
    """Live tensor bytes after each iteration of the engine, the last batch on the host included, gradients not: a rule
    that draws step 1 alone gives recurrent weights none."""
    subject = assembled(cell)
    setup, totals = setup_of(), _Totals(torch.device("cpu"))
    after = []
    with TensorBytes(network=subject.network, optimizer=subject.optimizer) as counter:
        for _ in range(iterations):
            batch = batch_of(cell, 4)
            _train_batch(subject, setup, batch, totals)
            gradients = [p.grad.nbytes for p in subject.network.parameters() if p.grad is not None]
            after.append(counter.current - sum(gradients))
    return after


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    ("backend", "network", "method", "iterations"),
    [
        *(
            (backend, "batch norm", method, 4)
            for backend in ("reference", "spikingjelly")
            for method in METHODS
        ),
        *(("native", network, method, 4) for network in ("batch norm", "recurrent") for method in METHODS),
        *(("reference", "batch norm", method, 4) for method in FURTHER_METHODS),
        *(
            ("reference", "standardised linear", method, 4)
            for method in ("ottt", "s-tllr", "pp-prop", "e-prop")
        ),
        pytest.param("native", "batch norm", "sltt", 50, marks=pytest.mark.long),
        pytest.param("native", "standardised", "sltt", 3, marks=pytest.mark.long),
    ],
)
def test_memory_after_an_iteration_is_flat_to_the_byte(
    backend: str, network: str, method: str, iterations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "spikingjelly":
        pytest.importorskip("spikingjelly")
    for large_from in (1, 2**20) if backend == "native" and iterations < 50 else (1,):
        monkeypatch.setattr(loop_invariants, "SMALL", large_from)
        after = live_bytes(cell_of(network, method, backend), iterations)
        assert len(set(after[1:])) == 1, after


@pytest.fixture
def iterations(request: pytest.FixtureRequest) -> int:
    """How many a case of the matrix below is looked at."""
    return 50 if request.config.getoption("--campaign") == "long" else 4


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    ("network", "backend", "native", "method"),
    thinned(
        [
            (network, *way)
            for network in NETWORKS
            for way in EVERY_WAY
            if not (network == "recurrent" and way[-1] in WITHOUT_RECURRENCE)
        ],
        keep=31,
    ),
    ids=str,
)
def test_memory_is_flat_over_fifty_iterations_for_every_backend_method_and_network(
    network: str, backend: str, native: dict[str, Any], method: str, iterations: int
) -> None:
    """Over four in CI, of some of them."""
    if backend == "spikingjelly":
        pytest.importorskip("spikingjelly")
    after = live_bytes(cell_of(network, method, backend, **native), iterations)
    assert len(set(after[2:])) == 1, after


give_back_freed_memory = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
"""Of glibc: the allocator's own stock, which varies by 20 MiB, is then no part of the resident set."""


def resident_set() -> int:
    """Bytes of what is really in use, where the allocator can be asked to keep nothing else."""
    if give_back_freed_memory is not None:
        give_back_freed_memory(0)
    return resident_bytes()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    ("backend", "method", "recompute"),
    [
        ("reference", "sltt", False),
        *thinned(
            [
                ("native", "sltt", False),
                ("reference", "bptt", False),
                ("reference", "ottt", False),
                ("native", "bptt", False),
                ("native", "sltt-k2", False),
                ("native", "bptt", True),
                ("spikingjelly", "sltt", False),
            ],
            keep=7,
            first=5,
        ),
    ],
)
def test_the_resident_set_is_flat_over_fifty_iterations(backend: str, method: str, recompute: bool) -> None:
    """What is no tensor counts too. The input, of 256 KiB, that stayed behind each time would add up to 7.5 MiB between
    the two medians, the spikes of the first layer to 30."""
    if backend == "spikingjelly":
        pytest.importorskip("spikingjelly")
    subject = assembled(cell_of("batch norm", method, backend, recompute=recompute))
    setup, totals = setup_of(), _Totals(torch.device("cpu"))
    resident = []
    for _ in range(50):
        _train_batch(subject, setup, (torch.rand(1024, 1, 8, 8), torch.randint(10, (1024,))), totals)
        resident.append(resident_set())
    # Freed memory comes and goes by a few MiB in a process that has run thousands of tests.
    most = 5 * 2**20 if give_back_freed_memory is not None else 10 * 2**20
    assert median(resident[35:]) - median(resident[5:20]) < most, resident


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", METHODS)
def test_batch_state_and_graph_are_gone_when_an_iteration_ends(method: str, backend: str) -> None:
    if backend == "spikingjelly":
        pytest.importorskip("spikingjelly")
    subject = assembled(cell_of("batch norm", method, backend))
    inputs: list[weakref.ref[Tensor]] = []
    states: list[weakref.ref[Tensor]] = []

    def remember(x: Tensor) -> Tensor:
        moved = x * 1.0
        inputs.append(weakref.ref(moved))
        return moved

    def note(layer: Stateful, args: Any, output: Tensor) -> None:
        carried = [value for state in save_state(layer) for value in state if value is not None]
        states.extend(map(weakref.ref, [output, *carried]))

    for layer in subject.network.modules():
        if isinstance(layer, Stateful):
            layer.register_forward_hook(note)
    setup = setup_of()
    setup.preprocess = remember
    totals = _Totals(torch.device("cpu"))
    batch = torch.rand(4, 1, 8, 8), torch.randint(10, (4,))
    for _ in range(3):
        _train_batch(subject, setup, batch, totals)
        assert states
        assert all(reference() is None for reference in (*inputs, *states))
    _evaluate_batch(subject, setup, batch, totals)
    assert all(reference() is None for reference in (*inputs, *states))


@pytest.mark.usefixtures("no_collector", "large_from")
@pytest.mark.parametrize("network", ["batch norm", pytest.param("standardised", marks=pytest.mark.long)])
def test_what_native_shares_over_the_steps_lives_as_long_as_the_iteration(
    network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[loop_invariants.Shared]] = []
    create = loop_invariants.Shared.__init__

    def init(self: loop_invariants.Shared, *args: Any) -> None:
        create(self, *args)
        made.append(weakref.ref(self))

    monkeypatch.setattr(loop_invariants.Shared, "__init__", init)
    cell = cell_of(network, "sltt", "native")
    for _ in range(2):
        live_bytes(cell, 1)
        assert all(reference() is None for reference in made)
    assert made


def test_every_method_is_looked_at() -> None:
    assert labels_left_out((*METHODS, *FURTHER_METHODS)) == ["sltt-kN-unbiased"], "the same but for a factor"


@pytest.mark.usefixtures("no_collector")
def test_a_batch_on_the_host_is_gone_before_the_loader_makes_the_next() -> None:
    batches: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    class Loader:
        samples = 16

        def __len__(self) -> int:
            return 4

        def set_epoch(self, epoch: int) -> None: ...

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            for _ in range(4):
                alive.append(sum(reference() is not None for reference in batches))
                x = torch.rand(4, 1, 8, 8)
                batches.append(weakref.ref(x))
                yield x, torch.randint(10, (4,))
                del x

    subject = assembled(cell_of("batch norm", "sltt", "reference"))
    setup = setup_of()
    setup.train = setup.evaluated["test"] = Loader()
    setup.schedule = torch.optim.lr_scheduler.ConstantLR(subject.optimizer)
    listener: Any = SimpleNamespace(batch=lambda *_: None, epoch=lambda figures: None)
    train(subject, setup, Profiler(torch.device("cpu")), listener)
    assert alive == [0] * 8
