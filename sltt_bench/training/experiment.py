"""Assembles a cell's network, method, loss and optimiser into an Experiment that can be trained.

This is the one module that knows both recipes and torch. The engine receives the Experiment and never learns
a name; `estimate` and `analyze` assemble the same pieces without training.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sltt_bench import backends, methods, models
from sltt_bench.backends import Backend
from sltt_bench.common.identity import short_hash
from sltt_bench.conversion import ConvertedNeuron, unconvertible
from sltt_bench.losses import step_loss
from sltt_bench.methods import CarriesOver, Method
from sltt_bench.neurons import LIFParameters, reset_state
from sltt_bench.planning.plan import Cell
from sltt_bench.planning.recipe_fields import Recipe
from sltt_bench.precision import Precision
from sltt_bench.training.distributed import ALONE, Ranks, synchronise_batch_norm
from sltt_bench.unroll import Unroll


class UnsupportedCell(Exception):
    """The backend cannot serve this combination; the message says why."""


@dataclass
class Experiment:
    """What a training iteration needs."""

    network: nn.Module
    method: Method
    backend: Backend
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    precision: Precision
    timesteps: int
    temporal: bool
    """Whether a batch has a time axis: [batch, T, C, H, W] instead of [batch, C, H, W]."""
    loss: Callable[[Tensor, Tensor], Tensor]
    """(o[t] [batch, classes], labels [batch]) → a scalar."""
    window: int | None
    """Number of last steps that count for loss and prediction; None: all T."""
    average: str
    """How L is made: "losses" is the mean of the steps' losses, "outputs" the loss of the mean output."""
    generator: torch.Generator
    """The method's own source of randomness; it draws the same on every rank."""
    ranks: Ranks = ALONE
    """The processes that share every batch."""
    test_timesteps: int | None = None
    """T in evaluation, if it differs from that of training; static images only."""

    def unroll(self, x: Tensor, labels: Tensor) -> Unroll:
        """Returns the T steps of one batch, with the loss against its labels; resets the network's state.

        The network's mode decides between the T of training and that of evaluation.
        """
        return Unroll(
            self.network,
            self.inputs(x),
            lambda output: self.loss(output, labels),
            generator=self.generator,
            backward=self._backward,
            autocast=self.precision.autocast,
            window=self.window,
            average=self.average,
            update=partial(self._update, len(labels)),
            add_up=self.ranks.add_up if self.ranks.size > 1 else None,
        )

    def inputs(self, x: Tensor) -> Sequence[Tensor]:
        """Returns the input [batch, C, H, W] of each of the T steps; a static image is one tensor T times."""
        timesteps = self.timesteps
        if self.test_timesteps is not None and not self.network.training:
            timesteps = self.test_timesteps
        return time_steps(x, timesteps, self.temporal)

    def training_iteration(self, x: Tensor, labels: Tensor) -> Unroll:
        """Run forward pass, backward pass and optimiser step for one batch; returns the unrolled steps.

        The network carries no state from one iteration to the next.
        """
        self.optimizer.zero_grad(set_to_none=True)
        unroll = self.backend.accumulate_gradients(self, x, labels)
        if not unroll.updates:
            self._step(len(labels))
        reset_state(self.network)
        return unroll

    def _backward(self, loss: Tensor, /, *, retain_graph: bool = False) -> None:
        """Run a backward pass; a method calls it once or many times before the optimiser's step."""
        self.scaler.scale(loss).backward(retain_graph=retain_graph)  # type: ignore[no-untyped-call]

    def _step(self, samples: int) -> None:
        """Make an optimiser step with the gradient of `samples` samples on this rank, if there is one."""
        self.ranks.exchange_gradients(self.network.parameters(), samples)
        if all(parameter.grad is None for parameter in self.network.parameters()):
            return  # e.g. step 1 alone where only recurrent weights learn; a loss scaler would raise an error
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _update(self, samples: int) -> None:
        """Make an optimiser step within the sequence and drop the gradients that it used."""
        self._step(samples)
        self.optimizer.zero_grad(set_to_none=True)

    def carried_by_method(self) -> dict[str, Any] | None:
        """Returns the state that the method carries to the next iteration; None if it carries nothing."""
        return self.method.state_dict() if isinstance(self.method, CarriesOver) else None

    def hand_to_method(self, carried: Mapping[str, Any] | None) -> None:
        """Restore the method's state from what `carried_by_method` returned.

        Raises ValueError if the method carries state and `carried` is None.
        """
        if not isinstance(self.method, CarriesOver):
            return
        if carried is None:
            raise ValueError("it holds nothing of what the method carries from one iteration to the next")
        self.method.load_state_dict(carried)

    def accumulate_gradients(self, x: Tensor, labels: Tensor) -> Unroll:
        """Run forward and backward pass of one batch, step by step; adds to the parameters' `.grad`."""
        with self.backend.iteration(self.network):
            unroll = self.unroll(x, labels)
            self.method.accumulate_gradients(unroll)
        return unroll


def assemble(cell: Cell, device: torch.device, backend: Backend, ranks: Ranks = ALONE) -> Experiment:
    """Returns a cell's experiment with fresh weights, which depend on the cell's seed alone.

    Dropout draws differently on each of `ranks`. Raises UnsupportedCell, UnknownMethod.
    """
    seed_everything(cell.seed)
    recipe = cell.recipe
    precision = Precision(recipe.train.precision_on(device.type), device.type)
    if (reason := unserved(cell, backend, device)) is not None:
        raise UnsupportedCell(f"backend {cell.backend!r} cannot run this cell: {reason}")
    network = network_of(cell, backend)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UnsupportedCell(
            f"model {recipe.model.name!r} has no parameter that learns: requires_grad is False everywhere"
        )
    if ranks.size > 1:
        torch.manual_seed(seed_of_rank(cell.seed, ranks.rank))
        if recipe.train.synchronise_batch_norm:
            network = synchronise_batch_norm(network, ranks)
    network = backend.prepare(network, str(device))
    return Experiment(
        network=network,
        method=methods.create(cell.method, recipe.timesteps),
        backend=backend,
        optimizer=build_optimizer(recipe, network, fused=device.type == "cuda"),
        scaler=precision.make_scaler(),
        precision=precision,
        timesteps=recipe.timesteps,
        temporal=recipe.data.temporal,
        loss=partial(step_loss, alpha=recipe.loss.alpha, mse_target=recipe.loss.mse_target),
        window=recipe.loss.window,
        average=recipe.loss.average,
        generator=torch.Generator().manual_seed(cell.seed),
        ranks=ranks,
        test_timesteps=recipe.test_timesteps,
    )


def unserved(cell: Cell, backend: Backend, device: torch.device) -> str | None:
    """Returns why the backend cannot run a cell on a device, or None. Raises UnknownMethod."""
    recipe = cell.recipe
    precision = recipe.train.precision_on(device.type)
    return (
        backend.unsupported(neuron_parameters(recipe), precision, str(device))
        or backends.unserved(backend, cell.method)
        or backends.unserved_network(backend, recipe.model)
    )


def network_of(cell: Cell, backend: Backend) -> nn.Module:
    """Returns the network that a cell trains, as `build_network` makes it. Raises what that raises, and UnknownMethod."""
    converted = "conversion" in methods.promises(cell.method).needs
    return build_network(cell.recipe, backend, converted=converted)


def make_backend(cell: Cell) -> Backend:
    """Returns the cell's backend with the recipe's options for it. Raises UnknownBackend."""
    options = cell.recipe.native.backend_options() if cell.backend == "native" else {}
    return backends.create(cell.backend, **options)


def build_network(recipe: Recipe, backend: Backend, *, converted: bool = False) -> nn.Module:
    """Returns the recipe's network with the backend's neurons, initialised from torch's global generator.

    `converted`: its neurons are rectifiers during training. Raises UnsupportedCell if its layers carry state
    that rectifiers cannot.
    """
    parameters = neuron_parameters(recipe)
    network = models.build(
        recipe.model,
        neuron=lambda: ConvertedNeuron(parameters) if converted else backend.neuron(parameters),
        input_shape=recipe.data.sample_shape,
        classes=recipe.data.classes,
        timesteps=recipe.timesteps,
        v_threshold=recipe.neuron.v_threshold,
    )
    if converted and (reason := unconvertible(network)) is not None:
        raise UnsupportedCell(reason)
    return network


def neuron_parameters(recipe: Recipe) -> LIFParameters:
    """Returns the recipe's neuron as the parameters of the equations."""
    return LIFParameters(**recipe.neuron.model_dump(exclude_none=True))


def build_optimizer(recipe: Recipe, network: nn.Module, *, fused: bool = False) -> torch.optim.Optimizer:
    """Returns SGD with momentum, or AdamW, over all parameters.

    `fused`: one launch updates all of them, without copies of gradients. The loss scaler of fp16 then lets
    the device decide whether to skip a step; otherwise it would wait for the device in every iteration.
    """
    train = recipe.train
    options: dict[str, Any] = {"lr": train.lr, "weight_decay": train.weight_decay, "fused": fused}
    if train.optimizer == "adamw":
        return torch.optim.AdamW(network.parameters(), **options)
    sgd = torch.optim.SGD(network.parameters(), momentum=train.momentum, **options)
    if fused and train.momentum:
        _begin_momentum_at_zero(sgd)
        sgd.register_load_state_dict_post_hook(_begin_momentum_at_zero)
    return sgd


def _begin_momentum_at_zero(sgd: torch.optim.Optimizer) -> None:
    """Give each parameter without momentum one of 0, so that its first gradient becomes its momentum.

    Fused SGD would allocate it uninitialised, which remains if the first step is skipped (an overflow in
    fp16). It would also raise an error if one parameter gets its first gradient later than others.
    """
    for group in sgd.param_groups:
        for parameter in group["params"]:
            if parameter.requires_grad and sgd.state[parameter].get("momentum_buffer") is None:
                sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def build_schedule(recipe: Recipe, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """Returns the recipe's learning rate schedule, to be stepped once an epoch."""
    if recipe.train.schedule == "constant":
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=recipe.train.epochs)


def time_steps(x: Tensor, timesteps: int, temporal: bool) -> Sequence[Tensor]:
    """Returns the input of each step: slices of [batch, T, ...], or the same image tensor T times."""
    if temporal:
        return x.transpose(0, 1).contiguous().unbind(0)
    return [x] * timesteps


def seed_of_rank(seed: int, rank: int) -> int:
    """Returns the seed of one process of a cell, from which dropout draws; for rank 0 the cell's own.

    It differs for any two processes of any two seeds; otherwise repetitions would share random numbers.
    """
    return seed if rank == 0 else int(short_hash([seed, rank]), 16)


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators (on every device)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def training_mode(network: nn.Module, training: bool) -> Iterator[None]:
    """Put the network into training or evaluation mode, and restore its mode afterwards."""
    before = network.training
    network.train(training)
    try:
        yield
    finally:
        network.train(before)
