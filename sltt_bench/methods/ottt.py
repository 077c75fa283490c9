"""Online training through time: SLTT's error times a trace of each synapse's input.

    a[t] = λ a[t−1] + x[t]                  presynaptic trace, a[0] = 0
    ∂L/∂W ≈ Σ_t δ[t] ⊗ a[t]                 δ[t]: the error of step t at the synapses' output, in space only

The trace stands for ∂u[t]/∂W without the path through the reset; the gradient to earlier layers is
SLTT's. `ottt-o` steps the optimiser after every time step, so step t + 1 runs with new weights.
At T = 1 it is BPTT. Memory: that of SLTT and one trace for each layer.
Source: Xiao et al. 2022, "Online training through time for spiking neural networks", section 4, and
their published code. As there, a layer that reads the network's input has no trace. The
readout has one although it does not leak (the exact gradient of its weight is δ[t] ⊗ x[t]); if it leaks
(`model.readout_tau`), its trace still decays by the neurons' λ.
Deviation: normalisation is the network's own (theirs standardises weights instead). A bias
receives Σ_t δ[t], as in their code.
"""

from dataclasses import dataclass

from sltt_bench.methods.traces import Trace, shared_decay
from sltt_bench.unroll import Unroll


@dataclass(frozen=True)
class OTTT:
    """One backward pass a step, through the graph of that step."""

    online: bool = False
    """Whether the optimiser steps after every time step."""

    def accumulate_gradients(self, unroll: Unroll) -> None:
        trace = Trace(shared_decay(unroll.network))
        with unroll.presynaptic(trace, network_input=False):
            for t in range(unroll.timesteps):
                unroll.detach_state()
                unroll.backward(unroll.step(t))
                if self.online:
                    unroll.update()
