"""A network that hands its layers their input by name trains, and is measured, as one that hands it by place."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from engine_parts import Batches, Setup
from torch import Tensor, nn

from sltt_bench.planning.plan import Cell
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.training import engine, experiment
from sltt_bench.training.experiment import UnsupportedCell

METHODS = (
    "bptt", "bptt-d0.5", "bptt-ckpt2", "bptt-l1", "tbptt-w2", "sltt", "sltt-k2", "sltt-a", "ottt", "ottt-o", "s-tllr", "pp-prop",
    "e-prop", "rate", "conversion",
)  # fmt: skip
BACKENDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("reference", {}),
    ("native", {}),
    ("native", {"native.fused_norm": "always"}),
    ("native", {"native.recompute": True}),
    ("spikingjelly", {}),
)


class Network(nn.Module):
    """Two convolutions with batch norm and neurons, a pool and a readout."""

    def __init__(self, neuron: Callable[[], nn.Module], *, by_name: bool) -> None:
        super().__init__()
        self.conv1, self.norm1, self.neuron1 = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), neuron()
        self.conv2, self.norm2, self.neuron2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), neuron()
        self.pool, self.flatten, self.readout = nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 10)
        self.by_name = by_name

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor
        if self.by_name:
            x = self.neuron1(current=self.norm1(input=self.conv1(input=x)))
            x = self.neuron2(current=self.norm2(input=self.conv2(input=x)))
            output = self.readout(input=self.flatten(input=self.pool(input=x)))
        else:
            x = self.neuron1(self.norm1(self.conv1(x)))
            x = self.neuron2(self.norm2(self.conv2(x)))
            output = self.readout(self.flatten(self.pool(x)))
        return output


def left_by(method: str, backend: str, overrides: dict[str, Any]) -> dict[str, Tensor]:
    """Weights after three iterations, and what inference costs."""
    overrides = {"timesteps": 4, "train.precision": "fp32", **overrides}
    cell = Cell(
        load_recipe("digits", overrides, chosen_methods=[method]), method, backend, seed=0, device="cpu"
    )
    subject = experiment.assemble(cell, torch.device("cpu"), experiment.make_backend(cell))
    subject.network.double().train()
    generator = torch.Generator().manual_seed(1)

    def batch() -> tuple[Tensor, Tensor]:
        x = 2 * torch.rand(4, 1, 8, 8, generator=generator, dtype=torch.float64)
        return x, torch.randint(10, (4,), generator=generator)

    for _ in range(3):
        subject.training_iteration(*batch())
    setup: Any = Setup(test=Batches([batch()]))
    costs = engine.inference_costs(subject, setup)
    return {**subject.network.state_dict(), **{name: torch.tensor(value) for name, value in costs.items()}}


@pytest.mark.parametrize(("backend", "overrides"), BACKENDS, ids=str)
def test_layers_that_are_called_by_name_are_those_that_are_called_by_place(
    backend: str, overrides: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = 0
    for method in METHODS:
        results = []
        for by_name in (False, True):

            def build(options: Any, *, neuron: Any, by_name: bool = by_name, **others: Any) -> nn.Module:
                return Network(neuron, by_name=by_name)

            monkeypatch.setattr("sltt_bench.models.build", build)
            try:
                results.append(left_by(method, backend, overrides))
            except UnsupportedCell:
                break
        else:
            served += 1
            by_place, by_name_too = results
            for name, value in by_place.items():
                torch.testing.assert_close(by_name_too[name], value, rtol=1e-9, atol=1e-12)
    assert served >= 7
