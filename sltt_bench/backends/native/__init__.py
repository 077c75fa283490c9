"""The native backend: the same gradients with less memory and in less time.

    kernels (lif_torch, lif_triton)   the step and its derivative on tensors
    lif_triton_kernels                the Triton kernels that lif_triton launches
    neuron                            a layer of neurons whose only state is u
    batch_norm                        batch norm within the neurons' kernel
    absorbed_bias                     biases that batch norm cancels, or that neurons and residual sums add
    residual_sums                     residual sums of normaliser-free networks in one pass
    saved_tensor_hooks                saves no tensors that the potentials determine
    loop_invariants                   computes values that all steps share once per iteration
    step_weights                      the same for weights, standardised and in half precision
    standardising (…_triton)          standardised weights in one pass
    pooling                           average pooling that saves shapes, not images
    graphs                            whole iterations replayed as CUDA graphs
    free_steps                        steps without a graph, several at once
    units                             BPTT unit after unit, which keeps only spikes
    cuts                              where the network is cut into units
    kept_graphs                       which of these units keep their graphs
    step_calls                        the calls of a step, from which the others decide what they may do
    plain_forward                     finds forward methods whose trace is complete
    packed_spikes (packing_triton)    spikes stored as bits
    compilation                       what torch.compile did

`docs/native-internals.md` says how much each idea saves.
"""

import gc
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from sltt_bench.backends.native import kernels
from sltt_bench.backends.native.absorbed_bias import leave_biases_to_neurons
from sltt_bench.backends.native.batch_norm import defer
from sltt_bench.backends.native.compilation import Compilation, why_wrong
from sltt_bench.backends.native.cuts import NotSeparable
from sltt_bench.backends.native.foreign_calls import foreign_call
from sltt_bench.backends.native.free_steps import AT_ONCE, FreeSequence, FreeSteps, NotServed
from sltt_bench.backends.native.graphs import (
    GraphedIterations,
    NoRoomBesideGraphs,
    steps_with_graph,
    unsuited,
)
from sltt_bench.backends.native.loop_invariants import OncePerIteration
from sltt_bench.backends.native.neuron import NativeLIF
from sltt_bench.backends.native.plain_forward import Fixed
from sltt_bench.backends.native.pooling import make_lean
from sltt_bench.backends.native.residual_sums import fuse_residual_sums
from sltt_bench.backends.native.saved_tensor_hooks import SavedTensors, fills_with_zero
from sltt_bench.backends.native.step_calls import NotTraceable, changed_number, numbers_of_step, trace_step
from sltt_bench.backends.native.units import UnitNetwork
from sltt_bench.backends.shipped import SERVES, native_conflict, unserved_neuron
from sltt_bench.methods import Method, Need
from sltt_bench.methods.bptt import BPTT
from sltt_bench.methods.bptt_checkpointed import CheckpointedBPTT
from sltt_bench.methods.bptt_damped import DampedBPTT
from sltt_bench.methods.sltt import SLTT
from sltt_bench.methods.sltt_a import AdaptiveSLTT
from sltt_bench.methods.sltt_k import SLTTK
from sltt_bench.models.layers import SequenceDropout
from sltt_bench.neurons import LIF, LIFParameters, SpikingNeuron
from sltt_bench.recomputation import Repetition, tried_again
from sltt_bench.unroll import Unroll

if TYPE_CHECKING:
    from sltt_bench.training.experiment import Experiment


IN_UNITS = (BPTT, DampedBPTT)
"""Methods whose gradient is that of one backward pass through all steps, in any order of computation."""
STEP_BY_STEP = (SLTT, SLTTK, AdaptiveSLTT)
"""Methods that free the graph of each step before the next."""


class Native:
    """Neurons with one tensor as state, and iterations that store and compute as little as possible twice."""

    name = "native"

    def __init__(
        self,
        *,
        recompute: bool = False,
        channels_last: bool = True,
        compile: bool = False,
        graphs: Literal["auto", "always", "never"] = "auto",
        fused_norm: Literal["auto", "always", "never"] = "auto",
    ) -> None:
        """The options are those of a recipe's section `native`.

        `recompute`: convolutions of spikes are recomputed in the backward pass instead of stored; BPTT stores
        the spikes between units of the network as bits, and recomputes unit after unit.
        `channels_last`: use this memory format on a GPU.
        `compile`: torch.compile makes the step from the equations, in place of the kernels here; it
        decides itself what it stores for the backward pass.
        `graphs`: iterations are replayed as CUDA graphs; with `auto` if possible (`provenance` says why not).
        `fused_norm`: batch norm is computed within the kernels of the neurons behind it; `auto` does so on a
        GPU, since on a CPU torch's own batch norm gives the reference's currents bitwise.
        """
        self._recompute = recompute
        self._channels_last = channels_last
        self._compile = compile
        self._fused_norm = fused_norm
        self._norms = ""
        """Which batch norms the neurons compute, or why none; empty if fusion is off."""
        self._fused: dict[str, str] = {}
        """Other operations fused into kernels."""
        self._fused_by: list[Fixed] = []
        """The values on which the traced calls of a step depend, as they were at the time of fusion."""
        self._compilation: Compilation | None = None
        self._kernels = kernels.KernelsByDevice()
        self._saved = SavedTensors(recompute=recompute)
        self._once = OncePerIteration(first_layers=not recompute)
        self._units: UnitNetwork | str | None = None
        """The units of `_cut_network`, or why it has none; None until an iteration needs them."""
        self._cut_network: weakref.ref[nn.Module] | None = None
        """The network that `_units` belongs to."""
        self._not_in_units: str | None = None
        """Why the last iteration went step by step; None if it did not."""
        self._free: FreeSteps | str | None = None
        """The network with several free steps at once, or why that is impossible; None until needed."""
        self._not_free = ""
        """Why the steps without a graph of the last iteration ran one by one; empty if they did not."""
        self.graphs = None if graphs == "never" else GraphedIterations()
        """Replays iterations; None if they run as usual."""
        self._graphs_are_wanted = graphs == "always"
        self._is_tried = False
        """Whether the user-written layers of the network, if any, have been tried for replay."""
        self._not_replayed = ""
        """Why iterations on a GPU run as usual although `graphs` is not "never"."""
        self._replayed_once = False
        """Whether iterations were replayed by graphs that have been released."""
        self._preparations = 0
        """Number of graphs that were recorded and released, plus 1 for the release."""

    @property
    def serves(self) -> frozenset[Need]:
        """The state and the spikes of all layers. With torch.compile nothing: a compiled step has its own
        state, and hooks would make it compile again in every iteration."""
        return frozenset() if self._compile else SERVES["native"]

    @property
    def preparations(self) -> int:
        """Number of graphs recorded, plus the number of times that graphs were released."""
        return self._preparations + (0 if self.graphs is None else self.graphs.recordings)

    @property
    def unmeasurable(self) -> Mapping[str, str]:
        """`peak_allocated_bytes` once an iteration has been replayed, else nothing.

        A replayed iteration uses its graph's own memory, which the allocator's counters do not see.
        """
        if not (self._replayed_once or (self.graphs is not None and self.graphs.replayed)):
            return {}
        reason = (
            "iterations are or were replayed as CUDA graphs, which do not move the allocator's counters; "
            "peak_reserved_bytes holds their memory"
        )
        return {"peak_allocated_bytes": reason}

    def unsupported(self, neuron: LIFParameters, precision: str, device: str) -> str | None:
        conflict = native_conflict(
            compile=self._compile,
            recompute=self._recompute,
            graphs="always" if self._graphs_are_wanted else "auto",
            fused_norm=self._fused_norm,
            device=device,
        )
        if conflict is not None:
            return conflict
        if self._compile and (reason := why_wrong()) is not None:
            return reason
        return unserved_neuron(self.name, neuron) or kernels.unsupported(neuron, precision, device)

    def neuron(self, parameters: LIFParameters) -> SpikingNeuron:
        if self._compile:
            return LIF(parameters)
        return NativeLIF(parameters, self._kernels, self._saved)

    def prepare(self, network: nn.Module, device: str) -> nn.Module:
        if torch.device(device).type != "cuda" and not self._graphs_are_wanted:
            self.graphs = None
        if self._channels_last and torch.device(device).type == "cuda":
            for tensor in (*network.parameters(), *network.buffers()):
                if tensor.dim() == 4:  # others have no such format, which `Module.to` would refuse
                    tensor.data = tensor.to(memory_format=torch.channels_last)
        if self._compile:
            self._compilation = Compilation()
            network.compile(dynamic=False)
        else:
            for module in network.modules():
                if isinstance(module, SequenceDropout):
                    module.register_forward_hook(fills_with_zero)
            make_lean(network)
            if self._fused_norm == "always" or (
                self._fused_norm == "auto" and torch.device(device).type == "cuda"
            ):
                self._fuse(network)
        return network.to(device)

    def _fuse(self, network: nn.Module) -> None:
        """Fuse batch norm, biases and residual sums into kernels that read their results anyway."""
        self._once.one_pass = True
        sums, biases = fuse_residual_sums(network, self._kernels)
        try:
            norms, more = defer(network, NativeLIF, self._kernels)
            biases += more + leave_biases_to_neurons(network, trace_step(network), NativeLIF)
            self._fused_by = numbers_of_step(network)
        except NotTraceable as error:
            self._norms = f"none within kernels of neurons: {error}"
        else:
            self._norms = f"{norms}, within the kernels of neurons"
        self._fused = {"residual sums": f"{sums}, each in one pass"} if sums else {}
        if biases:
            self._fused["biases"] = f"of {biases} convolutions, added by what reads their results"

    @contextmanager
    def iteration(self, network: nn.Module) -> Iterator[None]:
        """Context around an iteration; at its end, gradients summed over the steps reach the parameters.

        Raises ValueError if a value on which the fusion depends has changed since.
        """
        if self._compile:
            yield
            return
        if changed := changed_number(self._fused_by):
            raise ValueError(
                f"{changed}, by which batch norms went into the kernels of neurons; set native.fused_norm=never"
            )
        if isinstance(network, FreeSequence):
            network = network.network  # the known repetitions are stored by this object
        with self._saved.active(), self._once.active(network):
            yield

    def accumulate_gradients(self, experiment: "Experiment", x: Tensor, labels: Tensor) -> Unroll:
        """Run or replay one iteration; BPTT with `recompute` goes unit by unit."""
        if self.graphs is not None and not self._graphs_are_wanted:
            self._settle_for_usual_iterations(experiment)
        if self.graphs is not None and not self._is_tried:
            self._try_foreign_layers(experiment.network, experiment.inputs(x)[0])
        if self.graphs is None:
            return self._accumulate_gradients(experiment, x, labels)
        try:
            return self.graphs.run(experiment, partial(self._accumulate_gradients, experiment), (x, labels))
        except NoRoomBesideGraphs as error:
            if self._graphs_are_wanted:
                raise torch.OutOfMemoryError(
                    f"beside the graphs that native.graphs=always keeps: {error}"
                ) from None
        self._let_go_of_graphs()
        return self._accumulate_gradients(experiment, x, labels)

    def _let_go_of_graphs(self) -> None:
        assert self.graphs is not None
        reason = "then none: their memory left too little for a batch that is smaller than theirs"
        self._not_replayed = f"{self.graphs.replayed} iterations replayed, {reason}"
        self._preparations += self.graphs.recordings + 1
        self._replayed_once, self.graphs = self.graphs.replayed > 0, None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _settle_for_usual_iterations(self, experiment: "Experiment") -> None:
        """Give up graphs, recording the reason, if the method or the setting does not allow them."""
        reason = unsuited(experiment.method, experiment.timesteps, experiment.ranks.size)
        if reason is None and self._compile:
            reason = "torch.compile makes the step; native.graphs=always replays it too"
        if reason is not None:
            self.graphs, self._not_replayed = None, reason

    def _try_foreign_layers(self, network: nn.Module, x: Tensor) -> None:
        """Give up graphs, recording the reason, if layers have effects outside the device: a graph repeats
        only device work."""
        self._is_tried = True
        if self._compile:
            return  # torch.compile guards its own code
        foreign: str | None
        try:
            foreign = foreign_call(trace_step(network), network)
        except NotTraceable as error:
            foreign = str(error)
        again = Repetition() if foreign is None else tried_again(network, x)
        if not (reason := again.differs or again.draws_on_host or again.replaces or again.reads):
            return
        if self._graphs_are_wanted:
            raise ValueError(f"native.graphs: {reason} ({foreign}); set native.graphs=never")
        self.graphs, self._not_replayed = None, f"{reason} ({foreign})"

    def _accumulate_gradients(self, experiment: "Experiment", x: Tensor, labels: Tensor) -> Unroll:
        if isinstance(experiment.method, SLTTK):
            experiment = self._several_free_steps(experiment, x)
        inputs = experiment.inputs(x)
        network = self.unrolled(experiment.network, inputs, experiment.method)
        with self.sharing(experiment.method), self._once.shown(inputs):
            return replace(experiment, network=network).accumulate_gradients(x, labels)

    def _several_free_steps(self, experiment: "Experiment", x: Tensor) -> "Experiment":
        """Returns the experiment with chosen steps and a network that runs several free steps at once.

        Free steps are those without a graph. If they must run one by one, the experiment is unchanged.
        """
        assert isinstance(experiment.method, SLTTK)
        self._not_free = self._why_one_by_one(experiment, x) or ""
        if self._not_free:
            return experiment
        assert isinstance(self._free, FreeSteps)
        chosen = steps_with_graph(experiment.method, experiment.generator, experiment.timesteps)
        network = self._free.sequence(experiment.inputs(x), chosen)
        return replace(experiment, network=network, method=experiment.method.at(chosen))

    def _why_one_by_one(self, experiment: "Experiment", x: Tensor) -> str | None:
        """Returns why steps without a graph cannot run several at once, or None."""
        if self._compile or self._recompute:
            return f"native.{'compile' if self._compile else 'recompute'}"
        if experiment.ranks.size > 1:
            return "several processes share each batch"
        if x.requires_grad:
            return "the input's gradient is wanted"
        known = self._free
        if known is None or (isinstance(known, FreeSteps) and known.network is not experiment.network):
            try:
                self._free = FreeSteps(experiment.network)
            except NotServed as error:
                self._free = str(error)  # the error itself would hold the batch through its traceback
        return self._free.why_not_now() if isinstance(self._free, FreeSteps) else self._free

    def sharing(self, method: Method) -> AbstractContextManager[None]:
        """Context around an iteration that sets what the steps of the method may share.

        torch's checkpoint compares what each run of a step saves; the counts would differ if only the first
        run computed the outputs of first layers.
        """
        if isinstance(method, CheckpointedBPTT):
            return self._once.weights_alone()
        return self._once.without_casts() if isinstance(method, STEP_BY_STEP) else nullcontext()

    def unrolled(self, network: nn.Module, inputs: Sequence[Tensor], method: Method) -> nn.Module:
        """Returns the module that the method calls at each step of a sequence: the network or its stand-in.

        `inputs`: T tensors [batch, ...].
        """
        if not self._recompute or not isinstance(method, IN_UNITS) or any(x.requires_grad for x in inputs):
            return network
        units = self._units_of(network, inputs[0])
        self._not_in_units = units if isinstance(units, str) else units.why_not_now()
        if isinstance(units, str) or self._not_in_units is not None:
            return network
        factor = method.beta if isinstance(method, DampedBPTT) else 1.0
        return units.sequence(inputs, partial(self._saved.active, costly=False), factor)

    def _units_of(self, network: nn.Module, x: Tensor) -> UnitNetwork | str:
        """Returns the network's units, or why it has none; found once. `x`: input of a step [batch, ...]."""
        if self._cut_network is None or self._cut_network() is not network or self._units is None:
            self._cut_network = weakref.ref(network)
            try:
                self._units = UnitNetwork(network, x)
            except NotSeparable as error:
                self._units = str(error)  # the error itself would hold the batch through its traceback
        return self._units

    def provenance(self) -> Mapping[str, str]:
        """Returns what has really run so far."""
        facts = {
            "neuron": "torch.compile of the equations" if self._compile else _list(self._kernels.ran),
            "computed again in the backward pass": _list(self._saved.computed_again),
            "computed once an iteration": _list(self._once.computed_once),
            "torch": torch.__version__,
        }
        if self._norms:
            facts |= {"batch norms": self._norms, **self._fused}
        if self._not_in_units is not None:
            facts["units"] = f"none, step by step instead: {self._not_in_units}"
        elif isinstance(self._units, UnitNetwork):
            facts["units"] = f"{len(self._units.units)}, computed for all steps at once, and again"
        if self._not_free:
            facts["steps without a graph"] = f"one by one: {self._not_free}"
        elif self._free is not None:
            facts["steps without a graph"] = f"up to {AT_ONCE} at once, in parts of the batch"
        if self._compilation is not None:
            facts["torch.compile"] = str(self._compilation)
        if self.graphs is not None:
            facts["CUDA graphs"] = (
                f"{self.graphs.replayed} iterations replayed, {self.graphs.usual} run as usual "
                "(warm-up, and batches smaller than the largest)"
            )
        elif self._not_replayed:
            facts["CUDA graphs"] = (
                self._not_replayed if self._replayed_once else f"none: {self._not_replayed}"
            )
        try:
            return {**facts, "triton": version("triton")}
        except PackageNotFoundError:
            return facts


def _list(things: set[str]) -> str:
    return ", ".join(sorted(things)) or "nothing"
