"""Writes a trained network as ONNX: one graph of all steps, from a batch to the mean of the step outputs.

ONNX has no spiking neuron, but all operations of its step, so the graph holds the T steps one after another.
It grows with T; its weights do not. Batch size stays open. The prediction is the argmax of the output.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from sltt_bench.export import ExportError
from sltt_bench.neurons import reset_state
from sltt_bench.planning.recipe_fields import Recipe
from sltt_bench.training.experiment import time_steps
from sltt_bench.unroll import Unroll


class Sequence(nn.Module):
    """A network over all time steps of its evaluation: [batch, (T,) *sample] → [batch, classes]."""

    def __init__(self, network: nn.Module, recipe: Recipe) -> None:
        super().__init__()
        self.network = network
        self._timesteps, self._temporal = recipe.test_timesteps or recipe.timesteps, recipe.data.temporal
        self._window = recipe.loss.window
        self._generator = torch.Generator()

    def forward(self, x: Tensor) -> Tensor:
        inputs = time_steps(x, self._timesteps, self._temporal)
        unroll = Unroll(self.network, inputs, Tensor.sum, generator=self._generator, window=self._window)
        for t in range(unroll.timesteps):
            unroll.step(t)
        reset_state(self.network)
        return unroll.summed_outputs / unroll.counted_steps


def onnx_model(network: nn.Module, recipe: Recipe) -> bytes:
    """Returns the content of an ONNX file; the network must be in evaluation mode. Raises ExportError."""
    shape = ((recipe.timesteps,) if recipe.data.temporal else ()) + tuple(recipe.data.sample_shape)
    x = torch.rand(2, *shape)
    options: dict[str, Any] = {
        "dynamo": True,
        "input_names": ["input"],
        "output_names": ["output"],
        "dynamic_shapes": ({0: torch.export.Dim("batch")},),
        "verbose": False,
    }
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch's exporter warns about itself
            program = torch.onnx.export(Sequence(network, recipe).eval(), (x,), **options)
        assert program is not None
        content: bytes = program.model_proto.SerializeToString()
        return content
    except ModuleNotFoundError as error:
        raise ExportError(f"{error.name} is not installed: pip install 'sltt-bench[onnx]'") from None
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ExportError(f"torch cannot write the network as ONNX: {reason}") from error
