"""Online training through time: SLTT's error meets a trace of what each synapse has received.

    a[t] = λ a[t−1] + x[t]                  presynaptic trace, a[0] = 0
    ∂L/∂W ≈ Σ_t δ[t] ⊗ a[t]                 δ[t]: the error of step t at the synapses' output, in space only

The trace stands for ∂u[t]/∂W, in which the reset's path is left out; the gradient to earlier layers is
SLTT's. `ottt-o` steps the optimiser after every time step, so that step t + 1 runs with new weights.
At T = 1 it is BPTT. Memory: that of SLTT and one trace a layer.
Source: Xiao et al. 2022, "Online training through time for spiking neural networks", section 4, and
their published code. As there, a layer that reads the network's input has no trace, while the
readout has one, although it does not leak (the exact gradient of its weight is δ[t] ⊗ x[t]); where it does
(`model.readout_tau`), the trace decays by the neurons' λ all the same.
Deviation: normalisation is the network's own (theirs standardises weights instead); a bias
receives Σ_t δ[t], as theirs does.
"""

from dataclasses import dataclass

from sltt_bench.methods.traces import Trace, shared_decay
from sltt_bench.unroll import Unroll


@dataclass(frozen=True)
class OTTT:
    """One backward pass a step, through a graph of that step alone."""

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
