"""BPTT with checkpoints in time: exact, and most of the steps are computed twice to save memory.

The state is kept every N steps; what lies between is computed again, segment by segment from the last,
when the backward pass arrives there. Memory is that of T/N states and N steps, least near N = √T; each
step runs forward twice. Batch statistics are learned at the first run alone; random numbers,
masks of the whole sequence included, are the same at the second.
Source: Gruslys et al. 2016, "Memory-efficient backpropagation through time", with equal segments
(Chen et al. 2016, section 4.1).
"""

from dataclasses import dataclass

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sltt_bench.neurons import State
from sltt_bench.unroll import Unroll


@dataclass(frozen=True)
class CheckpointedBPTT:
    """One graph over all T steps of which only the state at each segment's start is kept."""

    segment: int

    def accumulate_gradients(self, unroll: Unroll) -> None:
        loss, state = self._run(unroll, 0, unroll.save_state())
        for start in range(self.segment, unroll.timesteps, self.segment):
            further, state = self._run(unroll, start, state)
            loss = loss + further
        unroll.backward(loss)

    def _run(self, unroll: Unroll, start: int, state: State) -> tuple[Tensor, State]:
        """The segment's share of L and the state after it, from the state before it."""

        def steps(state: State, x: Tensor) -> tuple[Tensor, State]:
            if start == 0:
                unroll.restart()
            else:
                unroll.restore_state(state)
            loss = unroll.step(start)
            for t in range(start + 1, min(start + self.segment, unroll.timesteps)):
                loss = loss + unroll.step(t)
            return loss, unroll.save_state()

        # torch keeps the random numbers of the devices of what it is given, and a first state is on none.
        result: tuple[Tensor, State] = checkpoint(steps, state, unroll.inputs[start], use_reentrant=False)
        return result
