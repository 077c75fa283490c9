"""ANN → SNN conversion: trains a network of rectifiers in one step and evaluates it as a spiking network.

    x̄ = (1/T) Σ_t x[t],    L = loss(o(x̄)),    ∂L/∂W exact

The layers of neurons are those of `conversion.py`: rectifiers in training, whose outputs set the balanced
thresholds, and integrate-and-fire neurons with soft reset in evaluation, which takes T steps. The recipe's
neuron parameters are unused; T and a loss window affect only the mean input and the evaluation. Training
costs as much as for a network without time, whatever T is.
Source and deviations: see `conversion.py`.
"""

from sltt_bench.methods.rate import mean_input
from sltt_bench.unroll import Unroll


class Conversion:
    """One forward pass of rectifiers on the mean input, one backward pass."""

    def accumulate_gradients(self, unroll: Unroll) -> None:
        unroll.backward(unroll.in_one_step(mean_input(unroll)))
