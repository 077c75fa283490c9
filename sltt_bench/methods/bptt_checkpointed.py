"""BPTT with checkpoints in time: exact, but every step is computed twice to save memory.

The state is kept every N steps. When the backward pass reaches a segment, starting from the last one, the
segment's steps are computed again. Memory is that of T/N states and N steps, least near N = √T; each step
runs forward twice. Batch statistics are learned only in the first run. The second run has the same random
numbers, masks of the whole sequence included.
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
    """One graph over all T steps that keeps only the state at the start of each segment."""

    segment: int

    def accumulate_gradients(self, unroll: Unroll) -> None:
        loss, state = self._run(unroll, 0, unroll.save_state())
        for start in range(self.segment, unroll.timesteps, self.segment):
            further, state = self._run(unroll, start, state)
            loss = loss + further
        unroll.backward(loss)

    def _run(self, unroll: Unroll, start: int, state: State) -> tuple[Tensor, State]:
        """Returns the segment's share of L and the state after the segment, from the state before it."""

        def steps(state: State, x: Tensor) -> tuple[Tensor, State]:
            if start == 0:
                unroll.restart()
            else:
                unroll.restore_state(state)
            loss = unroll.step(start)
            for t in range(start + 1, min(start + self.segment, unroll.timesteps)):
                loss = loss + unroll.step(t)
            return loss, unroll.save_state()

        # torch saves the random state only of its arguments' devices, and the first state has no tensors.
        result: tuple[Tensor, State] = checkpoint(steps, state, unroll.inputs[start], use_reentrant=False)
        return result
