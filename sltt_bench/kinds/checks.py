"""Checks a cell before a run or an estimate: what its backend, method, initial weights and batches refuse, without data.

The network is built of fake tensors: a check takes neither the memory nor the time of a real one.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sltt_bench import backends, methods
from sltt_bench.backends import Backend
from sltt_bench.common.errors import UserError
from sltt_bench.common.failures import too_few_for_batch_norm
from sltt_bench.estimate.search import with_batch_size
from sltt_bench.estimate.trace import trace_memory, traced_as
from sltt_bench.kinds import Job
from sltt_bench.measure.fake_tensors import fake_tensors, modules_stay_where_they_are
from sltt_bench.neurons import layers_of_neurons, no_such_layer
from sltt_bench.planning.plan import Cell
from sltt_bench.planning.recipe import recipe_from_dict
from sltt_bench.training.experiment import UnsupportedCell, build_network, make_backend, network_of, unserved
from sltt_bench.training.initialise import InitError, check_weights, read_weights

if TYPE_CHECKING:
    from sltt_bench.running.worker import Reporter


def check_cell(cell: Cell, job: Job, reporter: "Reporter") -> None:
    """Report what refuses the cell (backend, method, weights or batches) and why, if anything does, and its layers of
    neurons.

    The cell's options are `here`, whether it is to run on this machine, `is_estimate`, whether it is an estimate,
    `starts_from`, the recipe whose checkpoint it starts from, or None, and `has_single_samples`, whether a process has
    one sample of a batch.
    """
    asked = "backend"
    try:
        backend = make_backend(cell)
        _check_backend(cell, backend)
        with fake_tensors(), modules_stay_where_they_are():
            asked = "method"
            network = network_of(cell, backend)
            reporter.facts(neurons=len(layers_of_neurons(network)))
            _check_method(cell, network)
            asked = "weights"
            _check_weights(cell, network)
        asked = "batches"
        _check_batches(cell)
    except (UserError, UnsupportedCell, InitError) as error:
        reporter.facts(refused_by=asked, refusal=str(error))


def _check_backend(cell: Cell, backend: Backend) -> None:
    """Raises UnsupportedCell if the backend refuses the cell on every device on which it may run, or its estimate."""
    if cell.device != "auto":
        devices = [cell.device]
    elif cell.options["here"]:
        devices = ["cuda:0" if torch.cuda.is_available() else "cpu"]
    else:
        devices = ["cpu", "cuda:0"]
    reasons = [unserved(cell, backend, torch.device(device)) for device in devices]
    if (reason := reasons[0]) is not None and None not in reasons:
        raise UnsupportedCell(reason)
    if cell.options["is_estimate"]:
        traced = traced_as(cell, "cpu" if cell.device == "cpu" else "cuda")
        if (reason := unserved(traced, make_backend(traced), torch.device("cpu"))) is not None:
            raise UnsupportedCell(f"{reason} (an estimate computes on fake tensors of a CPU)")


def _check_method(cell: Cell, network: nn.Module) -> None:
    """Raises UnsupportedCell if the network lacks the layer that the method treats apart."""
    method = methods.create(cell.method, cell.recipe.timesteps)
    if (
        isinstance(method, methods.ChoosesLayer)
        and (fault := no_such_layer(network, method.layer)) is not None
    ):
        raise UnsupportedCell(f"method {cell.method!r}: {fault}")


def _check_weights(cell: Cell, network: nn.Module) -> None:
    """Raises InitError if the cell starts from weights that are not the network's."""
    if cell.init is not None:
        check_weights(network, _weights(Path(cell.init)), cell.init)
    elif cell.options["starts_from"] is not None:
        first = recipe_from_dict(cell.options["starts_from"])
        left = build_network(first, backends.create("reference")).state_dict()
        check_weights(network, left, f"the checkpoint of {first.name}")


def _check_batches(cell: Cell) -> None:
    """Raises UnsupportedCell if the network cannot be trained on the one sample that a process has of a batch."""
    if not cell.options["has_single_samples"]:
        return
    train = cell.recipe.train
    samples = cell.recipe.epoch_samples(synthetic=cell.synthetic) or train.batch_size
    try:
        trace_memory(with_batch_size(cell, train.devices), "cpu")
    except ValueError as error:
        if not too_few_for_batch_norm(error):
            raise
        raise UnsupportedCell(train.single_sample_fault(samples)) from None


@cache
def _weights(path: Path) -> Mapping[str, Tensor]:
    """Returns a checkpoint's weights by name, without their values; the file is read once for all cells."""
    return {name: tensor.to("meta") for name, tensor in read_weights(path)[1].items()}
