"""Estimates on fake tensors: equal to what is counted in real iterations, and to numbers worked out by hand."""

import csv
import re
import signal
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from real_iterations import costliest, counted, counted_at
from torch import Tensor
from typer.testing import CliRunner

from sltt_bench import methods
from sltt_bench.command_line.cli import app
from sltt_bench.command_line.terminal import _Count
from sltt_bench.estimate.estimates import Estimate, LayerWork, estimate_cell, iterations_per_epoch
from sltt_bench.estimate.gpus import GPU, GPUError, find_gpu, known_gpus, time_lower_bound_s
from sltt_bench.estimate.search import (
    largest_batch_size,
    largest_timesteps,
    last_that_fits,
    predicted_peaks,
    with_batch_size,
    with_timesteps,
)
from sltt_bench.estimate.trace import (
    MOST_CHOICES,
    DeviceType,
    choices_to_trace,
    trace_iteration,
    trace_memory,
)
from sltt_bench.kinds.training import instrumented_peak
from sltt_bench.measure.fake_tensor_cache import RememberedOperations
from sltt_bench.measure.fake_tensors import Executing, ValuesAreWanted
from sltt_bench.measure.iteration_memory import IterationMemory
from sltt_bench.measure.operations import OperationCounter, Work, in_phase
from sltt_bench.measure.tensor_bytes import Cause
from sltt_bench.planning.plan import Cell
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.planning.recipe_fields import Recipe
from sltt_bench.planning.recipe_files import recipe_names
from sltt_bench.results.cell_row import Outcome
from sltt_bench.results.schema import CELLS_FILE, ESTIMATES_FILE, FILES
from sltt_bench.running.interruptions import Interrupted
from sltt_bench.torch_internals import FakeTensorMode
from sltt_bench.unroll import Unroll
from tests import plugin

MakeCell = Callable[..., Cell]

FAMILIES = {
    "mlp": ("digits", {"model": {"name": "mlp", "hidden": [64, 32]}}),
    "recurrent mlp": ("digits", {"model": {"name": "mlp", "hidden": [64], "recurrent": True}}),
    "cnn": ("digits", {"model": {"name": "cnn", "channels": [8, 16], "dropout": 0.2}}),
    "preact-resnet18": ("cifar10-resnet18", {}),
    "vgg11": ("dvs-cifar10-vgg11", {}),
    "nf-resnet34": ("imagenet-resnet34", {"timesteps": 3}),
    "nf-resnet50": ("imagenet-resnet50", {"timesteps": 3}),
    "vgg11 on saccades": ("digits-saccade", {}),
    "recurrent mlp, row by row": ("sequential-digits", {"timesteps": 8}),
    "mlp, loss on the last step": ("delayed-recall", {"data.delay": 1, "timesteps": 4}),
    "spikformer": ("digits-transformer", {}),
    "sew-resnet18": ("imagenet-sew-resnet18", {}),
    "ms-resnet18": ("imagenet-ms-resnet18", {"timesteps": 3}),
}
ONE_METHOD = {
    "preact-resnet18": "sltt",
    "vgg11": "sltt",
    "nf-resnet34": "sltt",
    "nf-resnet50": None,
    "vgg11 on saccades": "bptt",
    "spikformer": "bptt",
    "sew-resnet18": "sltt",
    "ms-resnet18": None,
}
"""Large networks: the method that CI tries with them, none where another is of the same family."""


def test_what_looks_at_values_cannot_be_estimated_and_the_reason_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class LooksAtValues(torch.nn.Module):
        def __init__(self, neuron: Any) -> None:
            super().__init__()
            self.neuron, self.readout = neuron(), torch.nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.neuron(x)
            output: Tensor = self.readout((2 * x if float(x.mean()) > 0.5 else x).flatten(1))
            return output

    monkeypatch.setattr("sltt_bench.models.build", lambda options, *, neuron, **others: LooksAtValues(neuron))
    cell = Cell(load_recipe("digits"), "sltt", "reference", seed=0, device="cpu")
    with pytest.raises(
        ValuesAreWanted, match=r"looks at values.*made from shapes alone; `sltt-bench run` measures"
    ):
        trace_iteration(cell, "cpu")


# Memory -----------------------------------------------------------------------------------------


class CarriesMeans:
    """SLTT beside a running mean of every weight."""

    def __init__(self) -> None:
        self.means: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        return {"means": self.means}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.means = state["means"]

    def accumulate_gradients(self, unroll: Unroll) -> None:
        weights = [parameter.detach() for parameter in unroll.network.parameters()]
        self.means = self.means or [weight.clone() for weight in weights]
        methods.create("sltt", unroll.timesteps).accumulate_gradients(unroll)
        for mean, weight in zip(self.means, weights, strict=True):
            mean.lerp_(weight, 0.1)


def test_what_a_method_carries_is_in_the_peak_measured_and_estimated(
    smoke_cell: MakeCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def factory(match: re.Match[str], timesteps: int) -> CarriesMeans:
        return CarriesMeans()

    monkeypatch.setitem(methods.METHODS, "means", factory)  # type: ignore[arg-type]
    peaks = {}
    for name in ("sltt", "means"):
        cell = smoke_cell(name, recipe="digits", train__precision="fp32", timesteps=3)
        x, labels = (
            torch.rand(cell.recipe.train.batch_size, 1, 8, 8),
            torch.arange(cell.recipe.train.batch_size) % 10,
        )
        peaks[name] = instrumented_peak(cell, torch.device("cpu"), (x, labels), lambda inputs: inputs)
        assert trace_memory(cell, "cpu").peak_bytes == peaks[name]
    trace = trace_iteration(cell, "cpu")
    assert peaks["means"] - peaks["sltt"] == 4 * trace.parameters
    # Momentum and means:
    assert trace.memory.peak_by_cause[Cause.OPTIMIZER_STATE] == 2 * 4 * trace.parameters


@pytest.mark.parametrize(
    ("family", "method"),
    [
        case if ONE_METHOD.get(case[0], case[1]) == case[1] else pytest.param(*case, marks=pytest.mark.long)
        for case in (
            *((family, method) for family in FAMILIES for method in ("bptt", "sltt")),
            # The one left out is below.
            *((family, "sltt-k2") for family in FAMILIES if family != "recurrent mlp, row by row"),
            *(("recurrent mlp", "sltt-k1"), ("recurrent mlp", "sltt-k2-unbiased")),
        )
    ],
)
def test_the_estimated_peak_is_the_one_counted_in_a_real_iteration(
    smoke_cell: MakeCell, family: str, method: str
) -> None:
    recipe, overrides = FAMILIES[family]
    steps = {"timesteps": 2 if family.startswith(("nf", "ms", "sew")) else 3} | overrides
    cell = smoke_cell(method, recipe=recipe, train__precision="fp32", **steps)
    estimated, measured = trace_memory(cell, "cpu"), costliest(cell)
    assert estimated.peak_bytes == measured.peak_bytes
    assert sum(estimated.peak_by_cause.values()) == estimated.peak_bytes
    if cell.k is None:
        assert estimated.peak_by_cause == measured.peak_by_cause


@pytest.mark.parametrize(
    ("overrides", "method", "backend"),
    [
        ({"loss.average": "outputs"}, "bptt", "reference"),
        # Each step has parameters of its own, which momentum follows.
        ({"model": {"name": "cnn", "channels": [4], "normalisation": "bntt"}}, "sltt", "reference"),
        # All steps come at once.
        ({"model": {"name": "cnn", "channels": [4], "normalisation": "tdbn"}}, "bptt", "reference"),
        # The spikes of the step that others are compared with; and a step that is not used.
        ({"model": {"name": "mlp", "hidden": [32, 32]}}, "sltt-a2", "reference"),
        ({"model": {"name": "mlp", "hidden": [32, 32]}}, "sltt-a3", "reference"),
        # A first layer behind another first layer.
        ({"model": {"name": "mlp", "hidden": [32], "normalisation": "group"}}, "bptt", "native"),
        ({"model": {"name": "mlp", "hidden": [32], "normalisation": "group"}}, "sltt", "native"),
    ],
)
def test_the_estimate_begins_where_training_has_arrived(
    smoke_cell: MakeCell, overrides: dict[str, Any], method: str, backend: str
) -> None:
    """The first iterations create and learn what later ones have."""
    overrides = {key.replace(".", "__"): value for key, value in overrides.items()}
    cell = replace(smoke_cell(method, train__precision="fp32", timesteps=4, **overrides), backend=backend)
    assert trace_memory(cell, "cpu").peak_bytes == counted(cell).peak_bytes


@pytest.mark.parametrize(
    ("family", "overrides", "method", "backend", "draws_differ"),
    [
        ("recurrent mlp, row by row", {"timesteps": 8}, "sltt-k2", "reference", True),
        pytest.param(
            *("recurrent mlp, row by row", {"timesteps": 8}, "sltt-k5", "reference", False),
            marks=pytest.mark.long,
        ),
        pytest.param(
            *("mlp, loss on the last step", {"timesteps": 5}, "sltt-k2", "reference", False),
            marks=pytest.mark.long,
        ),
        ("cnn", {"timesteps": 5}, "sltt-k2", "native", False),
    ],
)
def test_no_draw_of_steps_needs_more_than_is_estimated(
    smoke_cell: MakeCell,
    family: str,
    overrides: dict[str, Any],
    method: str,
    backend: str,
    draws_differ: bool,
) -> None:
    recipe, shape = FAMILIES[family]
    cell = smoke_cell(method, recipe=recipe, train__precision="fp32", **(shape | overrides))
    cell = replace(cell, backend=backend)
    assert cell.k is not None
    draws = list(combinations(range(cell.recipe.timesteps), cell.k))
    assert len(draws) > MOST_CHOICES
    peaks = {steps: memory.peak_bytes for steps, memory in zip(draws, counted_at(cell, draws), strict=True)}
    assert (len(set(peaks.values())) > 1) is draws_differ
    estimated = trace_memory(cell, "cpu").peak_bytes
    assert estimated == max(peaks.values())
    for seed in range(2):  # the method's own draws, with seeds that the estimate knows nothing of
        assert counted(replace(cell, seed=seed)).peak_bytes <= estimated


def test_all_choices_of_steps_are_traced_where_they_are_few() -> None:
    assert sorted(choices_to_trace(4, 1)) == [(0,), (1,), (2,), (3,)]
    assert sorted(choices_to_trace(4, 2)) == list(combinations(range(4), 2))
    many = choices_to_trace(20, 4)
    assert len(set(many)) == MOST_CHOICES
    assert all(len(set(steps)) == 4 and set(steps) <= set(range(20)) for steps in many)
    assert {(16, 17, 18, 19), (0, 1, 2, 3), (0, 17, 18, 19), (0, 5, 10, 15)} <= set(many)


def test_every_shipped_recipe_is_of_a_family_that_is_tested() -> None:
    def family(recipe: Recipe) -> tuple[Any, ...]:
        more_blocks = {"nf-resnet101": "nf-resnet50", "sew-resnet34": "sew-resnet18"}  # than these
        network = more_blocks.get(recipe.model.name, recipe.model.name)
        return network, getattr(recipe.model, "recurrent", None), recipe.data.temporal, recipe.train.optimizer

    tested = {family(load_recipe(recipe, overrides, smoke=True)) for recipe, overrides in FAMILIES.values()}
    assert {family(load_recipe(name)) for name in recipe_names()} <= tested


@pytest.mark.parametrize("method", ["bptt", "sltt"])
@pytest.mark.parametrize("family", ["mlp", "cnn"])
def test_mixed_precision_is_respected(smoke_cell: MakeCell, family: str, method: str) -> None:
    recipe, overrides = FAMILIES[family]

    def peak(precision: str) -> int:
        cell = smoke_cell(method, recipe=recipe, timesteps=2, train__precision=precision, **overrides)
        estimated = trace_iteration(cell, "cpu").memory.peak_bytes
        assert estimated == pytest.approx(costliest(cell).peak_bytes, rel=0.01)
        return estimated

    assert peak("bf16") < peak("fp32")


def test_amp_is_fp16_on_a_gpu_and_bf16_on_a_cpu(smoke_cell: MakeCell) -> None:
    cell = smoke_cell("sltt", timesteps=1, train__precision="amp")
    on_gpu, on_cpu = trace_iteration(cell, "cuda"), trace_iteration(cell, "cpu")
    assert (on_gpu.precision, on_cpu.precision) == ("fp16", "bf16")
    matrices = {work.dtype for work in on_gpu.operations.work if work.multiply_adds}
    assert matrices == {torch.float16}


@pytest.mark.parametrize("method", ["bptt", "sltt", "sltt-k2"])
@pytest.mark.parametrize("family", ["cnn", pytest.param("vgg11", marks=pytest.mark.long)])
@pytest.mark.parametrize("backend", ["native", "spikingjelly"])
def test_backends_are_estimated_as_they_run(
    smoke_cell: MakeCell, backend: str, family: str, method: str
) -> None:
    if backend == "spikingjelly":
        pytest.importorskip("spikingjelly")
    recipe, overrides = FAMILIES[family]
    cell = smoke_cell(method, recipe=recipe, timesteps=3, train__precision="fp32", **overrides)
    estimated = trace_memory(replace(cell, backend=backend), "cpu").peak_bytes
    assert estimated == pytest.approx(costliest(replace(cell, backend=backend)).peak_bytes, rel=0.01)
    if backend == "native":
        assert estimated < trace_memory(cell, "cpu").peak_bytes


def test_what_only_real_tensors_can_be_compiled_into_is_estimated_without(smoke_cell: MakeCell) -> None:
    def peak(**options: bool) -> int:
        cell = replace(smoke_cell("sltt", timesteps=2, **options), backend="native")
        return trace_memory(cell, "cuda").peak_bytes

    assert peak(native__compile=True) == peak(native__graphs="always") == peak()


def test_sltt_is_flat_in_t_and_bptt_is_not(smoke_cell: MakeCell) -> None:
    def peaks(method: str) -> list[int]:
        return [trace_memory(smoke_cell(method, timesteps=t), "cuda").peak_bytes for t in (2, 4, 6)]

    two, four, six = peaks("bptt")
    assert len(set(peaks("sltt"))) == 1
    assert six - four == pytest.approx(four - two, rel=0.02)
    assert six > 2 * two


def test_no_memory_is_used_for_what_is_estimated(smoke_cell: MakeCell) -> None:
    cell = smoke_cell("bptt", train__batch_size=10**7, timesteps=30)
    assert trace_memory(cell, "cuda").peak_bytes > 2**40, "more than any machine has"


# Remembered operations --------------------------------------------------------------------------

OPERATIONS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "sum of two": lambda a, b: a + b,
    "times 2": lambda a, b: a * 2,
    "times 2.5": lambda a, b: a.to(torch.int32) * 2.5,
    "times True": lambda a, b: a.to(torch.int32) * True,
    "comparison": lambda a, b: a > 0.5,
    "another type": lambda a, b: a.half(),
    "another layout": lambda a, b: a.to(memory_format=torch.channels_last),
    "view": lambda a, b: a.transpose(1, 2),
    "view with an offset": lambda a, b: a[..., 1:],
    "view of another type": lambda a, b: a.view(torch.int32),
    "expanded": lambda a, b: a.expand(2, 3, 4, 4),
    "alias": lambda a, b: a.detach(),
    "view where it can be": lambda a, b: a.reshape(-1),
    "copy where no view can be": lambda a, b: a.transpose(0, 1).reshape(-1),
    "several views": lambda a, b: a.split(1, 1),
    "several new": lambda a, b: torch.var_mean(a, 0),
    "some of several": lambda a, b: torch.ops.aten.convolution_backward(
        a, b, torch.ones(3, 3, 1, 1), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False]
    )[1:2],
    "list": lambda a, b: torch._foreach_add([a, b], 1.0),
    "in place": lambda a, b: a.add_(b),
    "in place, with itself": lambda a, b: a.mul_(a),
    "in place, transposed": lambda a, b: a.transpose_(0, 1),
    "resized": lambda a, b: a.resize_(40),
    "given where to": lambda a, b: torch.add(a, b, out=a),
    "random": lambda a, b: torch.nn.functional.dropout(a, 0.5),
    "constant": lambda a, b: torch.tensor(3.0) * torch.ones(3),
}


def looks(tensor: Tensor, *others: Tensor) -> tuple[Any, ...]:
    storage = tensor.untyped_storage()
    shared = [(tensor is other, storage._cdata == other.untyped_storage()._cdata) for other in others]
    layout = (tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype, tensor.device)
    return (*layout, storage.nbytes(), shared, sorted(vars(tensor)))


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_remembered_operation_makes_what_torch_makes(name: str) -> None:
    def results(run: Callable[[FakeTensorMode], AbstractContextManager[Any]]) -> list[Any]:
        actual: list[Any] = []
        for _ in range(3):  # torch is asked first, and then no more
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                a, b = torch.ones(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
                with run(mode):
                    result = OPERATIONS[name](a, b)
                made = result if isinstance(result, tuple | list) else [result]
                actual += [type(result), *(looks(tensor, a, b) for tensor in made), looks(a), looks(b)]
        return actual

    remembered = results(lambda mode: Executing(RememberedOperations(mode)))
    assert remembered == results(lambda mode: nullcontext())


@pytest.mark.parametrize(
    ("family", "backend", "method"),
    [
        ("recurrent mlp", "reference", "sltt-k2"),
        ("cnn", "native", "sltt"),
        pytest.param("vgg11", "reference", "bptt", marks=pytest.mark.long),
        pytest.param("nf-resnet34", "reference", "sltt-k2", marks=pytest.mark.long),
    ],
)
def test_a_trace_from_memory_is_torchs_own(
    smoke_cell: MakeCell, monkeypatch: pytest.MonkeyPatch, family: str, backend: str, method: str
) -> None:
    recipe, overrides = FAMILIES[family]
    cell = replace(smoke_cell(method, recipe=recipe, **{"timesteps": 2, **overrides}), backend=backend)
    remembered = trace_iteration(cell, "cuda")
    monkeypatch.setattr(
        "sltt_bench.measure.fake_tensors.RememberedOperations",
        lambda mode: lambda func, args, kwargs: func(*args, **kwargs),
    )
    assert remembered == trace_iteration(cell, "cuda")


# Work -------------------------------------------------------------------------------------------

B, T = 5, 3
IN, HIDDEN, OUT = 64, 16, 10


def work_of(estimate: Estimate) -> dict[str, LayerWork]:
    return {layer.layer: layer for layer in estimate.layers}


def small(smoke_cell: MakeCell, method: str, **overrides: Any) -> Estimate:
    model = {"name": "mlp", "hidden": [HIDDEN], "recurrent": overrides.pop("recurrent", False)}
    cell = smoke_cell(
        method,
        model=model,
        timesteps=overrides.pop("timesteps", T),
        train__batch_size=B,
        train__precision="fp32",
        loss__alpha=0.0,
        **overrides,
    )
    return estimate_cell(cell, "cpu")


@pytest.mark.parametrize(("method", "steps_back"), [("bptt", T), ("sltt", T), ("sltt-k2", 2), ("sltt-k1", 1)])
def test_each_layers_multiplications_are_as_worked_out_by_hand(
    smoke_cell: MakeCell, method: str, steps_back: int
) -> None:
    layers = work_of(small(smoke_cell, method))
    neurons = B * HIDDEN
    through_time = 2 * neurons * (T - 1) if method == "bptt" else 0
    # No gradient goes to the input, so the first layer has that of its weights alone.
    assert layers["layer1.0"] == LayerWork(
        "layer1.0", T * B * IN * HIDDEN, 0, steps_back * B * IN * HIDDEN, 0
    )
    assert layers["classifier"] == LayerWork(
        "classifier", T * B * HIDDEN * OUT, 0, steps_back * 2 * B * HIDDEN * OUT, 0
    )
    # Forward V_th s at each step, λ v from the second on; backward the surrogate at each step, and
    # through time the derivatives of λ v and V_th s.
    assert layers["layer1.1"] == LayerWork(
        "layer1.1", T * neurons, (T - 1) * neurons, steps_back * neurons, through_time
    )


def test_a_convolutions_multiplications_are_as_worked_out_by_hand(smoke_cell: MakeCell) -> None:
    model = {"name": "cnn", "channels": [6, 7]}
    cell = smoke_cell("sltt", model=model, timesteps=T, train__batch_size=B, train__precision="fp32")
    layers = work_of(estimate_cell(cell, "cpu"))
    first, second = B * 8 * 8 * 6 * 1 * 9, B * 4 * 4 * 7 * 6 * 9
    assert layers["conv1"] == LayerWork("conv1", T * first, 0, T * first, 0)
    assert layers["conv2"] == LayerWork("conv2", T * second, 0, T * 2 * second, 0)


def test_a_recurrent_connection_is_temporal_work(smoke_cell: MakeCell) -> None:
    product = B * HIDDEN * HIDDEN
    sltt = work_of(small(smoke_cell, "sltt", recurrent=True))["layer1.recurrent"]
    bptt = work_of(small(smoke_cell, "bptt", recurrent=True))["layer1.recurrent"]
    assert sltt == LayerWork("layer1.recurrent", 0, (T - 1) * product, 0, (T - 1) * product)
    assert bptt == LayerWork("layer1.recurrent", 0, (T - 1) * product, 0, 2 * (T - 1) * product)


def test_what_the_past_costs_is_the_same_where_other_layers_see_all_steps_at_once(
    smoke_cell: MakeCell,
) -> None:
    """tdbn: the network is called once, its neurons T times."""

    def work(normalisation: str) -> Estimate:
        model = {"name": "cnn", "channels": [4, 8], "normalisation": normalisation}
        return estimate_cell(smoke_cell("bptt", model=model, timesteps=T, train__precision="fp32"), "cpu")

    at_once, stepwise = work("tdbn"), work("batch")
    for part in ("forward_temporal", "backward_temporal"):
        assert at_once.work(part) == stepwise.work(part) > 0


def test_at_one_time_step_nothing_is_temporal_and_methods_agree(smoke_cell: MakeCell) -> None:
    estimates = [small(smoke_cell, method, timesteps=1) for method in ("bptt", "sltt", "sltt-k1")]
    assert {e.layers for e in estimates} == {estimates[0].layers}
    assert estimates[0].work("forward_temporal") == estimates[0].work("backward_temporal") == 0


@pytest.mark.parametrize(
    "family", ["mlp", *(pytest.param(name, marks=pytest.mark.long) for name in ("cnn", "vgg11"))]
)
def test_slttks_backward_work_is_k_of_t_of_sltts(smoke_cell: MakeCell, family: str) -> None:
    recipe, overrides = FAMILIES[family]

    def work(method: str) -> Estimate:
        return estimate_cell(smoke_cell(method, recipe=recipe, timesteps=3, **overrides), "cuda")

    sltt, bptt = work("sltt"), work("bptt")
    for k in (1, 2):
        chosen = work(f"sltt-k{k}")
        assert 3 * chosen.work("backward_spatial") == pytest.approx(k * sltt.work("backward_spatial"), abs=50)
        assert chosen.multiply_adds("backward") * 3 == k * sltt.multiply_adds("backward")
        assert chosen.work("backward_temporal") == 0
        assert chosen.work("forward_spatial") == pytest.approx(sltt.work("forward_spatial"), abs=50)
    assert bptt.work("backward_spatial") == pytest.approx(sltt.work("backward_spatial"), abs=50)
    assert sltt.work("backward_temporal") == 0 < bptt.work("backward_temporal")


def test_what_is_computed_again_is_backward_work(smoke_cell: MakeCell) -> None:
    """As the tables' note says: with a checkpoint every step, all of the forward pass once more."""
    bptt, again = (estimate_cell(smoke_cell(method=name)) for name in ("bptt", "bptt-ckpt1"))

    def work(estimate: Estimate, phase: str) -> int:
        return estimate.work(f"{phase}_spatial") + estimate.work(f"{phase}_temporal")

    assert work(again, "forward") == work(bptt, "forward")
    more = work(again, "backward") - work(bptt, "backward")
    assert more == pytest.approx(work(bptt, "forward"), rel=0.01)
    assert again.work("backward_spatial") - bptt.work("backward_spatial") > 0.9 * more


def test_an_epoch_has_as_many_iterations_as_the_recipe_says(smoke_cell: MakeCell) -> None:
    cell = smoke_cell("sltt", data__limit=None, train__batch_size=64)
    assert iterations_per_epoch(cell) == 1437 / 64
    assert (
        iterations_per_epoch(
            smoke_cell("sltt", data__limit=None, train__batch_size=64, train__drop_last=True)
        )
        == 22
    )
    assert iterations_per_epoch(smoke_cell("sltt", data__limit=100, train__batch_size=50)) == 2
    one = estimate_cell(cell)
    assert one.epoch_multiplications == round(one.work("total") * 1437 / 64)


# Limits -----------------------------------------------------------------------------------------


@pytest.fixture
def traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches of one test share their traces."""
    traces: dict[tuple[str, str], IterationMemory] = {}

    def trace(cell: Cell, device_type: DeviceType) -> IterationMemory:
        key = cell.cell_id, device_type
        if key not in traces:
            traces[key] = trace_memory(cell, device_type)
        return traces[key]

    monkeypatch.setattr("sltt_bench.estimate.search.trace_memory", trace)


@pytest.mark.parametrize(("method", "devices"), [("bptt", 1), ("sltt", 1), ("sltt", 5)])
def test_the_peak_at_another_batch_follows_from_two_traces(
    smoke_cell: MakeCell, method: str, devices: int
) -> None:
    cell = smoke_cell(method, timesteps=2, train__devices=devices)
    peak_at = predicted_peaks(cell, lambda batch: trace_memory(with_batch_size(cell, batch), "cuda"))
    assert peak_at is not None
    for batch_size in (5, 100):
        assert peak_at(batch_size) == trace_memory(with_batch_size(cell, batch_size), "cuda").peak_bytes


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_memory_alone_is_traced_as_in_a_whole_trace(smoke_cell: MakeCell, backend: str) -> None:
    cell = replace(smoke_cell("sltt-k1", timesteps=2), backend=backend)
    memory, whole = trace_memory(cell, "cuda"), trace_iteration(cell, "cuda")
    assert memory.changes == whole.memory.changes
    assert memory.peak_by_cause == whole.memory.peak_by_cause


def test_a_backend_that_takes_another_course_at_another_batch_is_searched_by_bisection(
    smoke_cell: MakeCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sltt_bench.estimate.search.predicted_peaks", lambda cell, traced: None)
    cell = smoke_cell("sltt", timesteps=1, data__train_samples=16)
    room = trace_memory(with_batch_size(cell, 11), "cuda").peak_bytes
    assert largest_batch_size(cell, "cuda", room) == 11


@pytest.mark.parametrize(
    "method", ["bptt", *(pytest.param(name, marks=pytest.mark.long) for name in ("sltt", "sltt-k2"))]
)
@pytest.mark.usefixtures("traced_once")
def test_the_largest_batch_fits_and_the_next_does_not(smoke_cell: MakeCell, method: str) -> None:
    cell = smoke_cell(method, timesteps=2, data__limit=1437)
    room = trace_memory(with_batch_size(cell, 77), "cuda").peak_bytes
    assert largest_batch_size(cell, "cuda", room) == 77
    assert largest_batch_size(cell, "cuda", room - 1) == 76
    assert largest_batch_size(cell, "cuda", 10) == 0
    assert largest_batch_size(cell, "cuda", 2**50) == 1437


@pytest.mark.usefixtures("traced_once")
def test_processes_that_share_a_batch_fit_as_many_times_as_much(smoke_cell: MakeCell) -> None:
    """Into the memory of each; the processes' shares decide, the largest of which has one sample more."""
    cell = smoke_cell("sltt", timesteps=2, data__limit=1437, train__devices=5)
    room = trace_memory(with_batch_size(cell, 5 * 77), "cuda").peak_bytes
    assert largest_batch_size(cell, "cuda", room) == 5 * 77
    assert largest_batch_size(cell, "cuda", room - 1) == 5 * 76
    assert largest_batch_size(cell, "cuda", 10) == 0
    assert largest_batch_size(cell, "cuda", 2**50) == 1437


@pytest.mark.parametrize(
    ("overrides", "memory_for", "largest"),
    [
        ({"data__limit": 33}, 32, 31),  # 33 = 32 + 1: batch norm has no statistics of one value
        ({"data__limit": 33}, 16, 15),  # 33 = 2 · 16 + 1
        ({"data__limit": 33}, 11, 11),
        ({"data__limit": 33, "train__drop_last": True}, 32, 32),
        (
            {"data__limit": 33, "model": {"name": "preact-resnet18", "width": 4, "normalisation": "none"}},
            32,
            32,
        ),
        (
            {"data__limit": 33, "train__devices": 2},
            32,
            29,
        ),  # 32, 31 and 30 leave 1, 2 and 3: one for some process
    ],
)
@pytest.mark.usefixtures("traced_once")
def test_a_run_takes_the_last_batch_that_the_largest_leaves(
    overrides: dict[str, Any], memory_for: int, largest: int, smoke_cell: MakeCell
) -> None:
    on_one_pixel = {"name": "preact-resnet18", "width": 4}  # its last stage is 1×1
    cell = smoke_cell("sltt", timesteps=1, **{"model": on_one_pixel, **overrides})
    room = trace_memory(with_batch_size(cell, memory_for), "cuda").peak_bytes
    assert largest_batch_size(cell, "cuda", room) == largest


@pytest.mark.parametrize(
    ("overrides", "samples"),
    [
        ({"validation": {"share": 0.2, "samples": 287}, "data__limit": None}, 1437 - 287),
        ({"validation": {"share": 0.25, "samples": 0}, "data__limit": 100}, 75),
    ],
)
def test_no_batch_is_larger_than_an_epoch(
    smoke_cell: MakeCell, overrides: dict[str, Any], samples: int
) -> None:
    """A run refuses it: what is held back for validation is in none."""
    cell = smoke_cell("sltt", timesteps=1, **overrides)
    assert largest_batch_size(cell, "cuda", 2**50) == samples


@pytest.mark.parametrize(
    ("method", "timesteps"),
    [("sltt", [2, 64]), ("bptt", [2, 3, 64]), ("tbptt-w2", [2, 3, 64])],
)
def test_what_the_cell_itself_told_is_not_traced_again(
    smoke_cell: MakeCell,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    timesteps: list[int],
) -> None:
    """And where no limit is met, the longest T alone proves it."""
    cell = smoke_cell(method, timesteps=6)
    assert cell.recipe.train.batch_size == 32
    own = trace_memory(cell, "cuda")
    traced: list[tuple[int, int]] = []

    def trace(other: Cell, device_type: DeviceType) -> IterationMemory:
        traced.append((other.recipe.train.batch_size, other.recipe.timesteps))
        return trace_memory(other, device_type)

    monkeypatch.setattr("sltt_bench.estimate.search.trace_memory", trace)
    assert largest_batch_size(cell, "cuda", 2**50, own) == 64
    assert largest_timesteps(cell, "cuda", 2**50, own) is None
    assert traced == [(64, 6), *((32, t) for t in timesteps)]


@pytest.mark.usefixtures("traced_once")
def test_the_largest_t_fits_and_the_next_does_not(smoke_cell: MakeCell) -> None:
    cell = smoke_cell("bptt")
    room = trace_memory(with_timesteps(cell, 6), "cuda").peak_bytes
    assert largest_timesteps(cell, "cuda", room) == 6
    assert largest_timesteps(cell, "cuda", room - 1) == 5
    assert largest_timesteps(cell, "cuda", trace_memory(with_timesteps(cell, 1), "cuda").peak_bytes) == 1
    assert largest_timesteps(cell, "cuda", 10) == 0


@pytest.mark.parametrize(
    ("method", "bytes_a_step"),
    # SLTT-K's draw is a number for each step.
    [("sltt", 0), pytest.param("sltt-k2", 8, marks=pytest.mark.long)],
)
def test_for_a_method_that_is_flat_in_t_there_is_no_largest_t(
    smoke_cell: MakeCell, method: str, bytes_a_step: int
) -> None:
    cell = smoke_cell(method)
    room = trace_memory(with_timesteps(cell, 4), "cuda").peak_bytes + 60 * bytes_a_step
    assert largest_timesteps(cell, "cuda", room) is None
    assert largest_timesteps(cell, "cuda", 10) == 0


def test_a_t_of_one_may_fit_alone_where_memory_does_not_grow_afterwards(smoke_cell: MakeCell) -> None:
    """SLTT's first step has no state yet."""
    cell = smoke_cell("sltt")
    one, two = (trace_memory(with_timesteps(cell, t), "cuda").peak_bytes for t in (1, 2))
    assert one < two
    assert largest_timesteps(cell, "cuda", two - 1) == 1


@pytest.fixture
def few_timesteps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches end early: a trace of so many more time steps takes as many times as long."""
    monkeypatch.setattr("sltt_bench.estimate.search.LONGEST", 12)


@pytest.mark.usefixtures("few_timesteps")
@pytest.mark.parametrize("method", ["tbptt-w3", "bptt-ckpt3", "sltt-a3"])
def test_the_search_begins_at_the_smallest_t_that_the_method_has(smoke_cell: MakeCell, method: str) -> None:
    cell = smoke_cell(method, timesteps=4)
    three = trace_memory(with_timesteps(cell, 3), "cuda").peak_bytes
    assert largest_timesteps(cell, "cuda", three - 1) == 0
    assert largest_timesteps(cell, "cuda", 2**40) is None


@pytest.mark.usefixtures("few_timesteps")
@pytest.mark.parametrize("method", ["tbptt-w4", "bptt-ckpt4"])
def test_three_t_on_a_line_prove_no_limit_where_memory_grows_later(smoke_cell: MakeCell, method: str) -> None:
    """Both are flat within a window or segment, and need more for the next one."""
    cell = smoke_cell(method, timesteps=4)
    peaks = [trace_memory(with_timesteps(cell, t), "cuda").peak_bytes for t in (5, 6, 7, 8)]
    assert peaks[0] == peaks[1] == peaks[2] < peaks[3]
    assert largest_timesteps(cell, "cuda", peaks[2]) == 7


def test_a_t_beyond_the_search_is_searched_as_far_as_the_cell_goes(
    smoke_cell: MakeCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sltt_bench.estimate.search.LONGEST", 3)
    cell = smoke_cell("bptt", timesteps=6)
    room = trace_memory(with_timesteps(cell, 5), "cuda").peak_bytes
    assert largest_timesteps(cell, "cuda", room) == 5
    assert largest_timesteps(cell, "cuda", 2**40) is None


def test_a_batch_of_one_that_batch_norm_cannot_train_on_does_not_fit(smoke_cell: MakeCell) -> None:
    fully_connected = {"name": "mlp", "hidden": [32], "normalisation": "batch"}
    cell = smoke_cell("sltt", timesteps=1, model=fully_connected, data__train_samples=16)
    two = trace_memory(with_batch_size(cell, 2), "cuda").peak_bytes
    assert largest_batch_size(cell, "cuda", two) == 2
    assert largest_batch_size(cell, "cuda", two - 1) == 0
    assert largest_batch_size(cell, "cuda", 10) == 0


def test_inputs_with_a_time_axis_limit_t_for_every_method(smoke_cell: MakeCell) -> None:
    cell = smoke_cell("sltt", recipe="sequential-digits")
    room = trace_memory(with_timesteps(cell, 5), "cuda").peak_bytes
    assert largest_timesteps(cell, "cuda", room) == 5


def test_bisection_finds_the_last_that_fits() -> None:
    for last in range(3, 12):
        assert last_that_fits(4, 11, lambda n, last=last: n <= last) == last


# Time -------------------------------------------------------------------------------------------

ROUND = GPU(bandwidth_gb_s=100, l2_mb=1, tflops={"fp32": 1, "fp16": 2}, source="made up")


def test_an_operation_takes_the_longer_of_arithmetic_and_traffic() -> None:
    product = Work(10**12, torch.float32, (2**20,))
    assert time_lower_bound_s({product: 1}, ROUND) == pytest.approx(2.0)
    assert time_lower_bound_s({product._replace(dtype=torch.float16): 3}, ROUND) == pytest.approx(3.0)
    traffic = Work(0, torch.float32, (2**20 + 10**11, 2**20 + 10**11, 2**19))
    assert time_lower_bound_s({traffic: 1}, ROUND) == pytest.approx(2.0), "what the cache holds is free"
    assert time_lower_bound_s({product: 1, traffic: 1}, ROUND) == pytest.approx(4.0)


MEMORY_TRAFFIC: dict[str, tuple[Callable[[Tensor, Tensor], Any], list[tuple[int, ...]]]] = {
    "memory is handed out and not touched": (lambda a, b: torch.empty_like(a), []),
    "an image's shape is asked for": (lambda a, b: torch.zeros_like(a), [(4096,)]),
    "what was there is written over": (lambda a, b: a.copy_(b), [(4096, 4096)]),
    "what was there is added to": (lambda a, b: a.add_(b), [(4096, 4096, 4096)]),
    "a pooling's input is not needed for its gradient": (
        lambda a, b: torch.ops.aten.avg_pool2d_backward(
            a[..., ::2, ::2], a, [2, 2], [2, 2], [0, 0], False, True, None
        ),
        [(1024, 4096)],
    ),
}


@pytest.mark.parametrize("case", MEMORY_TRAFFIC)
def test_an_operation_moves_what_it_reads_and_writes_alone(case: str) -> None:
    run, moved = MEMORY_TRAFFIC[case]
    network = torch.nn.Identity()
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    counter = OperationCounter(network, optimizer, lambda func, args, kwargs: func(*args, **kwargs))
    a, b = torch.rand(4, 4, 8, 8), torch.rand(4, 4, 8, 8)
    with counter.watching(), Executing(counter.count):
        run(a, b)
    assert [work.tensor_bytes for work in counter.operations.work] == moved


@pytest.mark.parametrize(
    ("layer", "multiply_adds"),
    [
        (torch.nn.Conv2d(8, 16, 3, stride=2, padding=1), 2 * 16 * 4 * 4 * 8 * 9),
        (torch.nn.Conv2d(8, 16, 3, padding=1, groups=2), 2 * 16 * 8 * 8 * 4 * 9),
        (torch.nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), 2 * 8 * 8 * 8 * 1 * 9),
        (torch.nn.Conv1d(8, 8, 3, groups=4), 2 * 8 * 6 * 2 * 3),
        (torch.nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2), 2 * 8 * 8 * 8 * 3 * 4),
    ],
)
def test_both_gradients_of_a_convolution_multiply_as_often_as_it_does(
    layer: torch.nn.Module, multiply_adds: int
) -> None:
    """Grouped or not: torch's own formula gives a depthwise convolution's weights the work of an ungrouped one's."""
    x = torch.rand(2, 8, *(8 for _ in layer.kernel_size), requires_grad=True)  # type: ignore[union-attr]
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    counter = OperationCounter(layer, optimizer, lambda func, args, kwargs: func(*args, **kwargs))
    with counter.watching(), Executing(counter.count):
        layer(x).sum().backward()
    counts = counter.operations.multiply_adds
    assert in_phase(counts, "forward") == multiply_adds
    assert in_phase(counts, "backward") == 2 * multiply_adds


def test_a_format_that_the_gpu_lacks_is_an_error() -> None:
    with pytest.raises(GPUError, match=r"no bf16 arithmetic .*train\.precision"):
        time_lower_bound_s({Work(1, torch.bfloat16, (1,)): 1}, ROUND)


def test_the_shipped_gpus_have_plausible_figures_and_sources() -> None:
    gpus = known_gpus()
    assert len(gpus) >= 10
    for name, gpu in gpus.items():
        assert gpu.tflops["fp16"] >= gpu.tflops["fp32"], name
        assert 100 < gpu.bandwidth_gb_s < 10_000, name
        assert "data sheet" in gpu.source or "white paper" in gpu.source, name


def test_a_file_adds_gpus_and_replaces_them(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "mine: {bandwidth_gb_s: 200, l2_mb: 4, tflops: {fp32: 5}, source: its data sheet}\n"
        "t4: {bandwidth_gb_s: 1, l2_mb: 1, tflops: {fp32: 1}, source: replaced}\n"
    )
    assert find_gpu("mine", file).bandwidth_gb_s == 200
    assert find_gpu("t4", file).source == "replaced"
    with pytest.raises(GPUError, match=r"'nope' is not .*mine.*--gpu-file"):
        find_gpu("nope", file)
    file.write_text("mine: {bandwidth_gb_s: -8}\n")
    with pytest.raises(GPUError, match=r"mine\.bandwidth_gb_s") as raised:
        find_gpu("mine", file)
    assert str(raised.value).startswith("--gpu-file: ")
    file.write_text(
        "mine: {bandwidth_gb_s: 8, l2_mb: 4, tflops: {fp32: 5, half: 9}, source: its data sheet}\n"
    )
    with pytest.raises(GPUError, match=r"mine\.tflops\.half"):
        find_gpu("mine", file)


# The command ------------------------------------------------------------------------------------


def estimate(out: Path, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["estimate", "digits", "--smoke", *arguments, "--out", str(out)])
    return result.exit_code, result.output


def rows(out: Path, name: str) -> list[dict[str, str]]:
    (folder,) = (out / "digits").iterdir()
    with (folder / name).open() as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == [column.name for column in FILES[name]]
        return list(reader)


NO_CAUSES = ("peak_tensor_bytes", "memory_bytes", "exchanged_bytes")


@pytest.fixture(scope="module")
def estimated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """What `estimate` leaves and prints of a cell and of one that a third party's package breaks."""
    out = tmp_path_factory.mktemp("estimated")
    with pytest.MonkeyPatch.context() as patch:
        plugin.install(out, patch)
        options = "--method bptt,raises --timesteps 3 --gpu rtx-4090 --memory 64MiB"
        return out, *estimate(out, *options.split())


def test_every_estimate_is_a_cell_with_a_row(estimated: tuple[Path, int, str], smoke_cell: MakeCell) -> None:
    out, code, _ = estimated
    assert code == 1, "a cell failed"
    ended = {row["method"]: row for row in rows(out, CELLS_FILE)}
    assert {method: row["status"] for method, row in ended.items()} == {
        "bptt": "ok",
        "raises": "error",
    }
    assert {row["kind"] for row in ended.values()} == {"estimate"}
    assert ended["raises"]["reason"] == "ZeroDivisionError: planted fault"
    assert ended["bptt"]["device_name"] == "fake tensors"
    for row in rows(out, ESTIMATES_FILE):
        direct = estimate_cell(smoke_cell(row["method"], timesteps=3), "cuda")
        assert int(row["peak_tensor_bytes"]) == direct.trace.memory.peak_bytes
        causes = [key for key in row if key.endswith("_bytes") and key not in NO_CAUSES]
        assert len(causes) == 7
        assert sum(int(row[key]) for key in causes) == direct.trace.memory.peak_bytes
        assert int(row["epoch_multiplications"]) == direct.epoch_multiplications
        assert row["memory_bytes"] == str(int(64 * 2**20 * 0.9)), "less the margin"
        assert row["gpu"] == "rtx-4090"
        assert float(row["epoch_lower_bound_s"]) > 0
        measured = smoke_cell(row["method"], timesteps=3, seed=2022).cell_id
        assert row["run_cell_id"] == measured, "so that measured points find their estimate"


def test_what_is_printed_is_the_reports_and_names_what_failed(estimated: tuple[Path, int, str]) -> None:
    out, _, output = estimated
    assert "Peak of live tensors, estimated" in output
    assert "Largest batch that fits, estimated" in output
    assert "From the data sheet of rtx-4090." in " ".join(output.split())
    assert "raises · seed 0 · timesteps=3: error: ZeroDivisionError: planted fault" in " ".join(
        output.split()
    )
    assert str(out) in "".join(output.split())


def test_an_interrupted_sweep_keeps_what_was_estimated_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt_at_the_second(display: _Count, cell: Cell, outcome: Outcome) -> None:
        ended.append(cell.cell_id)
        if len(ended) == 2:
            raise Interrupted(signal.SIGINT)

    ended: list[str] = []
    options = ["--method", "bptt,sltt", "--timesteps", "1,2"]
    with monkeypatch.context() as patch:
        patch.setattr(_Count, "cell_ended", interrupt_at_the_second)
        code, output = estimate(tmp_path, *options)
    assert code == 130
    assert "--resume goes on from here" in output
    assert [row["cell_id"] for row in rows(tmp_path, ESTIMATES_FILE)] == ended
    statuses = [row["status"] for row in rows(tmp_path, CELLS_FILE)]
    assert statuses == ["ok", "ok", "skipped", "skipped"]
    code, _ = estimate(tmp_path, *options, "--resume")
    assert code == 0
    assert len({row["cell_id"] for row in rows(tmp_path, ESTIMATES_FILE)}) == 4
    assert len(rows(tmp_path, ESTIMATES_FILE)) == 4


def test_several_processes_find_what_one_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smoke_cell: MakeCell
) -> None:
    monkeypatch.setattr("sltt_bench.command_line.commands.usable_processors", lambda: 2)
    monkeypatch.setattr("sltt_bench.command_line.commands.WORTH_A_PROCESS", 2)
    assert estimate(tmp_path, "--method", "bptt,sltt", "--timesteps", "1")[0] == 0
    peaks = {row["method"]: int(row["peak_tensor_bytes"]) for row in rows(tmp_path, ESTIMATES_FILE)}
    cells = (smoke_cell(method, timesteps=1) for method in ("bptt", "sltt"))
    assert peaks == {cell.method: trace_memory(cell, "cuda").peak_bytes for cell in cells}


def test_a_third_partys_method_is_estimated_without_a_change_here(
    smoke_cell: MakeCell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin.install(tmp_path, monkeypatch)
    theirs, own = (estimate_cell(smoke_cell(m, timesteps=2), "cpu") for m in ("third-party", "sltt"))
    assert theirs.trace.memory.peak_bytes == own.trace.memory.peak_bytes
    assert theirs.layers == own.layers


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ("--timesteps 0", "--timesteps 0: wants whole numbers from 1 on"),
        ("--timesteps 2,x", "--timesteps 2,x: wants whole numbers from 1 on"),
        ("--batch-size 0", "--batch-size 0: wants whole numbers from 1 on"),
        ("--memory much", "--memory: 'much' is no amount of memory; write a number with a unit"),
        ("--gpu nope", "--gpu: 'nope' is not in the table; known: "),
        ("--gpu t4 --gpu-file none.yaml", "--gpu-file: none.yaml cannot be read: "),
        ("--gpu-file none.yaml", "say --gpu NAME too"),
        ("--gpu t4 --set train.precision=fp32,bf16", "--gpu: the GPU's data sheet gives no bf16 arithmetic"),
        ("--device mps", "--device mps: an estimate is for cuda or cpu"),
        ("--method sltt-k9 --timesteps 1,2", "choose another N or raise timesteps"),
    ],
)
def test_a_wrong_option_is_named_with_its_remedy(options: str, fault: str) -> None:
    result = CliRunner().invoke(app, ["estimate", "digits", *options.split()])
    assert result.exit_code == 2
    assert fault in result.output


def test_estimating_leaves_torch_as_it_was(smoke_cell: MakeCell) -> None:
    to, resize = torch.nn.Module.to, torch.UntypedStorage.resize_
    trace_iteration(smoke_cell("sltt", timesteps=1), "cuda")
    assert (torch.nn.Module.to, torch.UntypedStorage.resize_) == (to, resize)
    assert isinstance(torch.zeros(1), Tensor)
    assert not torch.nn.modules.module._global_forward_hooks
