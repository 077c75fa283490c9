"""Whatever a recipe says: what a file of a trained network puts out is what the engine's evaluation of it puts out.

Recipes are drawn at random; each network is trained for some iterations, written, and run by others: onnxruntime all
steps at once, nirtorch step by step.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nir
import nirtorch
import numpy as np
import pytest
import torch
from drawn_cells import Drawn, another_kind_of_neuron
from test_export import NODES
from torch import Tensor

from sltt_bench.backends.reference import Reference
from sltt_bench.common.errors import UserError
from sltt_bench.export import ExportError, _converts
from sltt_bench.export.nir_graph import nir_graph
from sltt_bench.export.onnx_model import onnx_model
from sltt_bench.planning.plan import Cell
from sltt_bench.training import engine, experiment
from sltt_bench.training.experiment import Experiment, UnsupportedCell, time_steps, training_mode

METHODS = ("bptt", "sltt", "sltt-k1", "conversion")
SMALL = ("mlp", "cnn")
"""Networks whose files are written in a second or two."""


def drawn_cell(seed: int, networks: tuple[str, ...] | None) -> Cell:
    """The first that the reference serves, of these networks (None: of all)."""
    draws = random.Random(seed)
    while True:
        drawn = Drawn.by(draws, METHODS)
        timesteps = min(drawn.overrides["timesteps"], 4)
        overrides = {**drawn.overrides, "timesteps": timesteps, "loss.window": draws.choice([None, None, 1])}
        if drawn.recipe == "digits" and draws.random() < 0.5:  # more often than elsewhere
            overrides["test_timesteps"] = draws.choice([1, 3, 5])
        if draws.random() < 0.3:
            overrides |= another_kind_of_neuron(draws)
        try:
            cell = replace(drawn, overrides=overrides).cell("reference")
            experiment.assemble(cell, torch.device("cpu"), experiment.make_backend(cell))
        except (UserError, UnsupportedCell):
            continue
        if networks is None or cell.recipe.model.name in networks:
            return cell


def trained(cell: Cell) -> tuple[Experiment, Tensor]:
    """After some iterations, with weights that make neurons fire; and inputs [3, (T,) *sample] for it."""
    subject = experiment.assemble(cell, torch.device("cpu"), experiment.make_backend(cell))
    generator = torch.Generator().manual_seed(9)
    data = cell.recipe.data
    shape = (subject.timesteps, *data.sample_shape) if subject.temporal else data.sample_shape
    with torch.no_grad():
        for parameter in subject.network.parameters():
            parameter *= 1.5 if parameter.ndim > 1 else 1
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    with training_mode(subject.network, True):
        for _ in range(3):
            labels = torch.randint(data.classes, (4,), generator=generator)
            subject.training_iteration(2 * torch.rand(4, *shape, generator=generator), labels)
    return subject, 2 * torch.rand(3, *shape, generator=generator)


@torch.no_grad()
def evaluated(subject: Experiment, x: Tensor) -> Tensor:
    """The mean output [batch, classes] of the engine's evaluation."""
    with training_mode(subject.network, False):
        unroll = engine._run_forward(subject, x, torch.zeros(len(x), dtype=torch.int64))
    return unroll.summed_outputs / unroll.counted_steps


def as_exported(cell: Cell, subject: Experiment) -> torch.nn.Module:
    """A network that is built as an export builds it, with the weights of the experiment."""
    network = experiment.build_network(cell.recipe, Reference(), converted=_converts(cell.method))
    network.load_state_dict(subject.network.state_dict())
    return network.eval()


def of_onnx(cell: Cell, network: torch.nn.Module, x: Tensor) -> Tensor:
    model = onnx_model(network, cell.recipe)
    session = pytest.importorskip("onnxruntime").InferenceSession(model, providers=["CPUExecutionProvider"])
    (outputs,) = session.run(["output"], {"input": x.numpy()})
    return torch.from_numpy(outputs)


@torch.no_grad()
def of_nir(cell: Cell, network: torch.nn.Module, x: Tensor, path: Path) -> Tensor:
    recipe = cell.recipe
    nir.write(path, nir_graph(network, recipe.data.sample_shape))
    module, state, outputs = nirtorch.nir_to_torch(nir.read(path), NODES), None, []
    for step in time_steps(x, recipe.test_timesteps or recipe.timesteps, recipe.data.temporal):
        output, state = module(step, state)
        outputs.append(output)
    return torch.stack(outputs[-(recipe.loss.window or len(outputs)) :]).mean(0)


def check(seed: int, folder: Path, networks: tuple[str, ...] | None) -> Counter[str]:
    cell = drawn_cell(seed, networks)
    told = f"seed {seed}: {cell.method}, {cell.recipe.model_dump()}"
    subject, x = trained(cell)
    expected = evaluated(subject, x)
    assert np.ptp(expected.numpy()) > 0, told
    network = as_exported(cell, subject)
    counts = Counter([f"network {cell.recipe.model.name}"])
    outputs = {"onnx": of_onnx(cell, network, x)}
    try:
        outputs["nir"] = of_nir(cell, network, x, folder / f"{seed}.nir")
    except ExportError as error:
        told += f"; NIR: {error}"
        counts["refused by NIR"] += 1
    for name, output in outputs.items():
        torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-4, msg=f"{name} of {told}")
        counts[name] += 1
    assert "cannot be traced" not in told
    return counts


@pytest.fixture(autouse=True)
def with_runtime() -> None:
    pytest.importorskip("onnxruntime")
    if torch.__version__.startswith("2.6."):
        pytest.skip("the exporter of torch 2.6 cannot translate batch norm")


def test_a_file_of_a_network_puts_out_what_its_evaluation_does(tmp_path: Path) -> None:
    counts = sum((check(seed, tmp_path, SMALL) for seed in range(1, 5)), Counter[str]())
    assert counts["onnx"] == 4
    assert counts["nir"] > 0


@pytest.mark.long
def test_files_of_many_networks_put_out_what_their_evaluations_do(
    tmp_path: Path, figures: Callable[[str], None]
) -> None:
    counts = sum((check(seed, tmp_path, None) for seed in range(100, 250)), Counter[str]())
    figures(f"150 networks, what their files put out is what their evaluations do: {dict(counts)}")
