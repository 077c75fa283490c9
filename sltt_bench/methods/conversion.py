"""ANN → SNN conversion: a network of rectifiers learns in one step what a spiking one of balanced thresholds then does.

    x̄ = (1/T) Σ_t x[t],    L = loss(o(x̄)),    ∂L/∂W exact

The layers of neurons are those of `conversion.py`: rectifiers in training, whose outputs set their thresholds, and
integrate-and-fire with soft reset in evaluation, which takes T steps. What the recipe says of the neuron is
unused; T and a loss window decide the input's mean and the evaluation alone. Training costs what a network without
time costs, whatever T.
Source and deviations: see `conversion.py`.
"""

from sltt_bench.methods.rate import mean_input
from sltt_bench.unroll import Unroll


class Conversion:
    """One forward pass of rectifiers on the mean input, one backward pass."""

    def accumulate_gradients(self, unroll: Unroll) -> None:
        unroll.backward(unroll.in_one_step(mean_input(unroll)))
