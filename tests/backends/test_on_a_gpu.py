"""What only a card can show: kernels against equations, replay against eager, memory that is flat, a real OOM."""

import csv
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from sltt_bench.backends.native.graphs import GraphedIterations
from sltt_bench.backends.native.packed_spikes import PackedSpikes
from sltt_bench.backends.native.standardising import standardise, standardise_backward
from sltt_bench.common.failures import classify
from sltt_bench.models.layers import SequenceDropout
from sltt_bench.neurons import LIFParameters, reset_state
from sltt_bench.planning.plan import Cell
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.training import experiment
from sltt_bench.training.engine import TrainingSetup, _Totals, _train_batch
from sltt_bench.training.experiment import Experiment

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
"""Of the tests of kernels alone: test_lif_kernels.py calls them on a CPU, where the interpreter stands in for a card."""
METHODS = ("bptt", "sltt", "sltt-k2")
NETWORK = {"model": {"name": "cnn", "channels": [32, 32], "dropout": 0.2}, "timesteps": 4}


def subject_of(
    method: str, backend: str, precision: str = "fp32", network: dict[str, Any] | None = None, **native: Any
) -> Experiment:
    overrides = {**NETWORK, **(network or {}), "train.precision": precision}
    overrides |= {f"native.{option}": value for option, value in native.items()}
    recipe = load_recipe("digits", overrides, chosen_methods=[method])
    cell = Cell(recipe, method, backend, 0, device="cuda:0")
    subject = experiment.assemble(cell, torch.device("cuda", 0), experiment.make_backend(cell))
    subject.network.train()
    return subject


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.rand(32, 1, 8, 8, generator=generator), torch.randint(10, (32,), generator=generator))
        for _ in range(count)
    ]


def train(subject: Experiment, data: Iterable[Any]) -> list[int]:
    """Trains on the batches in order; allocated bytes after each."""
    nothing: Any = None
    setup = TrainingSetup(
        nothing, {"test": nothing}, lambda x: x.float(), nothing, epochs=1, checkpoint_every=0
    )
    totals = _Totals(torch.device("cuda", 0))
    allocated = []
    for batch in data:
        _train_batch(subject, setup, batch, totals)
        allocated.append(torch.cuda.memory_allocated())
    return allocated


def without_dropout(subject: Experiment) -> Experiment:
    for module in subject.network.modules():
        if isinstance(module, SequenceDropout):
            module.p = 0.0
    return subject


def weights(subject: Experiment) -> Tensor:
    return torch.cat([parameter.detach().flatten().float() for parameter in subject.network.parameters()])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("backend", "native"),
    [
        ("reference", {}),
        ("spikingjelly", {}),
        ("native", {"graphs": "never"}),
        ("native", {"graphs": "always"}),
        ("native", {"graphs": "never", "recompute": True}),
    ],
    ids=["reference", "spikingjelly", "native", "native, replayed", "native, recomputing"],
)
@pytest.mark.parametrize("method", METHODS)
def test_allocated_memory_is_flat_over_fifty_iterations(
    method: str, backend: str, native: dict[str, Any], precision: str
) -> None:
    """Of replays too, which allocate next to nothing: what a usual iteration leaves shows without them alone."""
    if backend == "spikingjelly":
        pytest.importorskip("spikingjelly")
    allocated = train(subject_of(method, backend, precision, **native), batches(50))
    assert len(set(allocated[5:])) == 1, allocated


@pytest.mark.parametrize("method", METHODS)
def test_the_kernels_of_native_train_as_the_equations_do(method: str) -> None:
    results = []
    for backend in ("reference", "native"):
        subject = subject_of(method, backend, **({"channels_last": False} if backend == "native" else {}))
        torch.manual_seed(3)  # dropout
        train(subject, batches(3))
        results.append(weights(subject))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("method", METHODS)
def test_batch_norm_within_the_kernels_trains_as_torchs_own(
    method: str, precision: str, channels_last: bool
) -> None:
    learned = []
    for fused_norm in ("never", "auto"):
        subject = subject_of(
            method, "native", precision, fused_norm=fused_norm, channels_last=channels_last, graphs="never"
        )
        torch.manual_seed(3)  # dropout
        train(subject, batches(3))
        buffers = [buffer.flatten().float() for buffer in subject.network.buffers()]
        learned.append((weights(subject), torch.cat(buffers)))
        fused = "triton forward with batch norm" in subject.backend.provenance()["neuron"]
        assert fused == (fused_norm == "auto")
    within = {"rtol": 1e-3, "atol": 1e-4} if precision == "fp32" else {"rtol": 2e-2, "atol": 2e-3}
    for own, usual in zip(learned[1], learned[0], strict=True):
        torch.testing.assert_close(own, usual, **within)


@pytest.mark.parametrize("of_batch", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("shape", [(64, 48, 17, 19), (4, 512, 4, 4), (300, 130)])
def test_kernels_that_normalise_add_biases_and_join_are_those_of_torch(
    shape: tuple[int, ...], channels_last: bool, of_batch: bool
) -> None:
    """On the card in float32 against plain torch in float64; each size has its own way of forming sums."""
    from sltt_bench.backends.native.lif_torch import (
        UNSCALED,
        BatchNormParameters,
        RunningStatistics,
        TorchKernels,
    )
    from sltt_bench.backends.native.lif_triton import TritonKernels

    generator = torch.Generator().manual_seed(1)
    x, before, grad_output, grad_next = (torch.randn(*shape, generator=generator) for _ in range(4))
    numbers = [torch.rand(shape[1], generator=generator) + 0.1 for _ in range(4)]
    if of_batch:
        numbers[1], numbers[0] = torch.var_mean(x, [0, *range(2, x.dim())], correction=0)
    lif = LIFParameters(tau=1.7)
    results = []
    for kernels, device, dtype in (
        (TorchKernels(), "cpu", torch.float64), (TritonKernels(), DEVICE, torch.float32),
    ):  # fmt: skip
        tensors = [tensor.to(device, dtype) for tensor in (x, before, grad_output, grad_next)]
        if channels_last and x.dim() == 4:
            tensors = [tensor.to(memory_format=torch.channels_last) for tensor in tensors]
        running = RunningStatistics(
            *(number.to(device, dtype, copy=True) for number in numbers[:2]), torch.tensor(3, device=device)
        )
        statistics = kernels.statistics(tensors[0], running, 0.3, [numbers[2].to(device, dtype)])
        norm = BatchNormParameters(*(number.to(device, dtype) for number in numbers), 1e-5, of_batch)
        _, membrane = kernels.forward(tensors[0], tensors[1], lif, None, UNSCALED, norm)
        grad, sums = kernels.backward_normalised(
            tensors[2], tensors[3], tensors[1], lif, 1.0, tensors[0], norm
        )
        gain = torch.tensor(1.3, device=device, dtype=dtype)
        joined = kernels.joined(tensors[0], tensors[1], gain, 0.2, norm.bias)
        apart = kernels.joined_backward(tensors[2], tensors[0], gain, 0.2, norm.bias)
        biased = kernels.forward(tensors[0], tensors[1], lif, None, bias=norm.bias)[1]
        to_bias = kernels.backward_biased(tensors[2], tensors[3], tensors[1], lif)
        to_input = kernels.backward_to_input(grad, tensors[0], norm, sums)
        results.append([membrane, grad, *to_input, *statistics, *running, biased, *to_bias, joined, *apart])
    for own, exact in zip(results[1], results[0], strict=True):
        exact = exact.double()  # whole numbers too: a count of batches
        torch.testing.assert_close(own.cpu().double(), exact, rtol=1e-4, atol=1e-4 * float(exact.abs().max()))


@pytest.mark.parametrize("shape", [(64, 3, 7, 7), (512, 512, 3, 3), (300, 64, 1, 1), (10, 25088)])
def test_weights_are_standardised_as_on_the_cpu(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    weight, grad = (torch.randn(*shape, generator=generator) for _ in range(2))
    gain = torch.rand(shape[0], *[1] * (len(shape) - 1), generator=generator)
    if len(shape) == 4:
        weight = weight.to(memory_format=torch.channels_last)
    exact = [tensor.double() for tensor in (grad, weight, gain)]
    there = [tensor.to(DEVICE) for tensor in (grad, weight, gain)]
    expected = [standardise(*exact[1:], torch.float64), *standardise_backward(*exact)]
    own = [standardise(*there[1:], torch.float32), *standardise_backward(*there)]
    for one, other, like in zip(own, expected, (weight, weight, gain), strict=True):
        assert one.stride() == like.stride()
        torch.testing.assert_close(one.cpu().double(), other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_spikes_are_packed_to_the_bits_that_the_cpu_packs(dtype: torch.dtype, channels_last: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    spikes = (torch.rand(5, 3, 7, 9, generator=generator) < 0.3).to(dtype)
    if channels_last:
        spikes = spikes.to(memory_format=torch.channels_last)
    here, there = PackedSpikes(spikes), PackedSpikes(spikes.to(DEVICE))
    assert torch.equal(there._bits.cpu(), here._bits)
    again = there.tensor()
    assert again.stride() == spikes.stride()
    assert torch.equal(again.cpu(), spikes)


@pytest.mark.parametrize("method", [*METHODS, "tbptt-w2", "bptt-d0.5"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_replayed_iterations_train_as_those_that_are_not(method: str, precision: str) -> None:
    """Without dropout, whose draws depend on what ran before: the tests below have it."""
    results = []
    for graphs in ("never", "always"):
        subject = without_dropout(subject_of(method, "native", precision, graphs=graphs))
        train(subject, batches(12))
        results.append(weights(subject))
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "model"),
    [
        ("sltt-k1", {"name": "nf-resnet34", "width": 8}),
        ("sltt-k2", {"name": "cnn", "channels": [32, 32], "normalisation": "none"}),
    ],
    ids=["nf-resnet34", "cnn"],
)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_steps_that_come_several_at_once_are_replayed_as_usual(
    method: str, model: dict[str, Any], precision: str
) -> None:
    """Those without a graph, in networks without batch norm."""
    results = []
    for graphs in ("never", "always"):
        subject = subject_of(method, "native", precision, network={"model": model}, graphs=graphs)
        train(subject, batches(12))
        assert subject.backend.provenance()["steps without a graph"].startswith("up to")
        results.append(weights(subject))
    assert replays_of(subject).replayed == 9
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-4)


def replays_of(subject: Experiment) -> GraphedIterations:
    graphs = subject.backend.graphs  # type: ignore[attr-defined]
    assert isinstance(graphs, GraphedIterations)
    return graphs


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("method", METHODS)
def test_each_replay_draws_a_mask_of_its_own_and_the_one_that_a_usual_iteration_would(
    method: str, precision: str
) -> None:
    """The states of both generators decide on it: torch's, which dropout uses, and that of the method's draws."""
    subject = subject_of(method, "native", precision, graphs="always")
    batch = [tensor.cuda() for tensor in batches(1)[0]]
    train(subject, [batch] * 4)
    torchs, methods_own = torch.cuda.get_rng_state(), subject.generator.get_state()
    gradients, states = [], []

    def iterate() -> None:
        subject.generator.set_state(methods_own)
        subject.optimizer.zero_grad(set_to_none=True)
        subject.backend.accumulate_gradients(subject, *batch)
        gradients.append(torch.cat([p.grad.flatten().double() for p in subject.network.parameters()]))
        reset_state(subject.network)
        states.append(torch.cuda.get_rng_state())

    iterate()
    iterate()
    assert replays_of(subject).replayed == 3
    torch.cuda.set_rng_state(torchs)
    subject.backend.graphs = None  # type: ignore[attr-defined]
    iterate()

    first, second, usual = gradients
    assert (first - usual).norm() < 0.01 * usual.norm()
    assert (first - second).norm() > 0.1 * usual.norm()
    assert torch.equal(states[0], states[2])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_iterations_are_captured_while_a_loader_pins_batches_in_a_thread_of_its_own(precision: str) -> None:
    x, labels = (torch.cat(part) for part in zip(*batches(40), strict=True))
    results = []
    for graphs in ("never", "always"):
        subject = without_dropout(subject_of("sltt", "native", precision, graphs=graphs))
        loader = DataLoader(TensorDataset(x, labels), batch_size=32, num_workers=2, pin_memory=True)
        train(subject, loader)
        results.append(weights(subject))
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("fused", ["never", "auto"])
def test_a_network_without_normalisation_trains_as_the_equations_do(fused: str) -> None:
    """Neurons that scale by themselves; fused: biases and residual sums in their kernels."""
    results = []
    for backend in ("reference", "native"):
        network = {"model": {"name": "nf-resnet34", "width": 8}}
        native = {"channels_last": False, "graphs": "never", "fused_norm": fused}
        subject = subject_of("bptt", backend, network=network, **(native if backend == "native" else {}))
        train(subject, batches(3))
        results.append(weights(subject))
    assert ("residual sums" in subject.backend.provenance()) == (fused == "auto")
    # Fused, weights are standardised with other roundings: a neuron at its threshold may fire in one of the two alone.
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-4 if fused == "never" else 1e-3)


@pytest.mark.parametrize("graphs", ["never", "always"])
@pytest.mark.parametrize(
    "model", [NETWORK["model"], {"name": "nf-resnet34", "width": 8}], ids=["cnn", "nf-resnet34"]
)
def test_bptt_unit_by_unit_trains_as_bptt_does(model: dict[str, Any], graphs: str) -> None:
    results = []
    for recompute in (False, True):
        native = {"recompute": recompute, "graphs": graphs}
        subject = without_dropout(subject_of("bptt", "native", network={"model": model}, **native))
        train(subject, batches(8))
        results.append(weights(subject))
    assert "computed for all steps at once" in subject.backend.provenance()["units"]
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-4)


def test_a_real_oom_is_oom_and_leaves_the_device_usable() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**46, dtype=torch.uint8, device="cuda")
    assert classify(caught.value)[0] == "oom"
    assert float(torch.ones(2, device="cuda").sum()) == 2


def rows_of(folder: Path, file: str) -> list[dict[str, str]]:
    with next(folder.glob(f"digits/*/{file}")).open(encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def run(out: Path, *arguments: str) -> int:
    command = [
        sys.executable,
        "-m",
        "sltt_bench",
        "run",
        "digits",
        "--synthetic",
        "--no-estimate",
        "--out",
        str(out),
    ]
    return subprocess.run([*command, *arguments], timeout=300, check=False).returncode


def test_a_cell_that_runs_out_of_memory_is_a_row_and_the_next_one_runs(tmp_path: Path) -> None:
    """A step of 1437 images keeps 0.7 GB, so that 400 fit on no card and one on each."""
    settings = [
        "model.channels=[512, 512]", "timesteps=400", "train.batch_size=1437", "train.epochs=1",
        "data.synthetic_samples=1437", "train.precision=tf32",
    ]  # fmt: skip
    arguments = [argument for setting in settings for argument in ("--set", setting)]
    assert run(tmp_path, "--method", "bptt,sltt-k1", "--timeout", "100s", *arguments) == 1
    statuses = {row["method"]: row for row in rows_of(tmp_path, "cells.csv")}
    assert statuses["bptt"]["status"] == "oom"
    assert "out of memory" in statuses["bptt"]["reason"]
    assert statuses["sltt-k1"]["status"] in ("ok", "timeout")


def test_a_cell_of_replayed_iterations_has_no_allocator_peak_but_a_reason(tmp_path: Path) -> None:
    graph = ("--backend", "native", "--set", "native.graphs=always", "--set", "train.epochs=2")
    assert run(tmp_path, "--method", "sltt", *graph) == 0
    for row in rows_of(tmp_path, "epochs.csv"):
        assert row["peak_allocated_bytes"] == ""
        assert int(row["peak_reserved_bytes"]) > 0
        assert int(row["allocated_at_reset_bytes"]) > 0
    provenance = json.loads(next(tmp_path.glob("digits/*/provenance.json")).read_text(encoding="utf-8"))
    assert "do not move the allocator's counters" in json.dumps(provenance)
