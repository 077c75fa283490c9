"""The native backend: the same gradients with less memory and in less time.

    kernels (lif_torch, lif_triton)   the step and its derivative on tensors
    neuron                            a layer of neurons whose only state is u
    batch_norm                        batch norm within the neurons' kernel
    absorbed_bias                     biases that batch norm takes away again, or that neurons and sums add
    residual_sums                     those of normaliser-free networks in one pass
    saved_tensor_hooks                what the potentials determine is not stored for the backward pass
    loop_invariants                   what is the same at all steps is computed once an iteration
    step_weights                      so are weights, standardised and in half precision
    standardising (…_triton)          standardised weights in one pass
    pooling                           average pooling keeps shapes
    graphs                            whole iterations replayed as CUDA graphs
    free_steps                        steps without a graph, several at once
    units                             BPTT unit after unit, of which only spikes are kept
    step_calls                        the calls of a step, by which the others find what they may do
    asked_kinds, kept_by_layers       what a forward method asks of a value and of its layers, which a trace does not know
    packed_spikes (packing_triton)    as bits
    compilation                       what torch.compile did

`docs/native-backend.md` says what each idea saves.
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
from sltt_bench.backends.native.pooling import make_lean
from sltt_bench.backends.native.residual_sums import fuse_residual_sums
from sltt_bench.backends.native.saved_tensor_hooks import SavedTensors, fills_with_zero
from sltt_bench.backends.native.step_calls import NotTraceable, trace_step
from sltt_bench.backends.native.units import NotSeparable, UnitNetwork
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
    from sltt_bench.experiment import Experiment


IN_UNITS = (BPTT, DampedBPTT)
"""Methods whose gradient is that of one backward pass through all steps, whatever the order of computation."""
STEP_BY_STEP = (SLTT, SLTTK, AdaptiveSLTT)
"""Methods that free the graph of each step before the next."""


class Native:
    """Neurons that keep one tensor, and an iteration that stores and computes little twice."""

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

        `recompute`: convolutions of spikes are computed again in the backward pass, not stored; BPTT keeps
        the spikes between units of the network as bits, and computes unit after unit again.
        `channels_last`: the memory format of the network on a GPU.
        `compile`: torch.compile makes the step from the equations, in place of the kernels here; what
        it stores for the backward pass is its own choice.
        `graphs`: iterations are replayed as CUDA graphs; `auto` where that can serve, and `provenance` says
        what cannot.
        `fused_norm`: batch norm is computed within the kernels of the neurons behind it; `auto` on a GPU, since on a
        CPU torch's own batch norm gives the reference's currents to the last bit.
        """
        self._recompute = recompute
        self._channels_last = channels_last
        self._compile = compile
        self._fused_norm = fused_norm
        self._norms = ""
        """Which batch norms the neurons compute, or why none; empty if none was to be."""
        self._fused: dict[str, str] = {}
        """What else goes into kernels that read it anyway."""
        self._compilation: Compilation | None = None
        self._kernels = kernels.KernelsByDevice()
        self._saved = SavedTensors(recompute=recompute)
        self._once = OncePerIteration(first_layers=not recompute)
        self._units: UnitNetwork | str | None = None
        """Of the network, once an iteration has asked for it."""
        self._cut_network: weakref.ref[nn.Module] | None = None
        """The network."""
        self._not_in_units: str | None = None
        """Why the last iteration went step by step; None where it did not."""
        self._free: FreeSteps | str | None = None
        """Likewise; or why there is nothing of the kind."""
        self._not_free = ""
        """Why the steps without a graph of the last iteration came one by one; empty where they did not."""
        self.graphs = None if graphs == "never" else GraphedIterations()
        """What replays iterations; None where they run as usual."""
        self._graphs_are_wanted = graphs == "always"
        self._is_tried = False
        """Whether it is known that the network's own layers, if there are any, can be replayed."""
        self._not_replayed = ""
        """Why iterations on a GPU run as usual although nobody asked for it."""
        self._replayed_once = False
        """Whether some were replayed before."""
        self._preparations = 0
        """Of graphs that were let go, and their letting go."""

    @property
    def serves(self) -> frozenset[Need]:
        """The state and the spikes of all layers; a step that torch.compile makes keeps its own, and hooks in it would be
        compiled anew in every iteration."""
        return frozenset() if self._compile else SERVES["native"]

    @property
    def preparations(self) -> int:
        """Graphs that were recorded, and how often they were let go."""
        return self._preparations + (0 if self.graphs is None else self.graphs.recordings)

    @property
    def unmeasurable(self) -> Mapping[str, str]:
        """A replayed iteration uses its graph's own memory, of which the allocator's counters see nothing.

        Nothing until one has been replayed.
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
        return unserved_neuron(self.name, neuron) or kernels.unsupported(neuron, device)

    def neuron(self, parameters: LIFParameters) -> SpikingNeuron:
        if self._compile:
            return LIF(parameters)
        return NativeLIF(parameters, self._kernels, self._saved)

    def prepare(self, network: nn.Module, device: str) -> nn.Module:
        if torch.device(device).type != "cuda" and not self._graphs_are_wanted:
            self.graphs = None
        if self._channels_last and torch.device(device).type == "cuda":
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
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
        """Batch norm, biases and residual sums go into kernels that read what they make anyway."""
        self._once.one_pass = True
        sums, biases = fuse_residual_sums(network, self._kernels)
        try:
            norms, more = defer(network, NativeLIF, self._kernels)
            biases += more + leave_biases_to_neurons(network, trace_step(network), NativeLIF)
        except NotTraceable as error:
            self._norms = f"none within kernels of neurons: {error}"
        else:
            self._norms = f"{norms}, within the kernels of neurons"
        self._fused = {"residual sums": f"{sums}, each in one pass"} if sums else {}
        if biases:
            self._fused["biases"] = f"of {biases} convolutions, added by what reads their results"

    @contextmanager
    def iteration(self, network: nn.Module) -> Iterator[None]:
        """Gradients that are summed over the steps reach the parameters when it ends."""
        if self._compile:
            yield
            return
        if isinstance(network, FreeSequence):
            network = network.network  # of which it is known what repeats
        with self._saved.active(), self._once.active(network):
            yield

    def accumulate_gradients(self, experiment: "Experiment", x: Tensor, labels: Tensor) -> Unroll:
        """By replay where iterations are replayed; BPTT with `recompute` unit by unit."""
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
        """Give graphs up, by name, where they cannot serve."""
        if (reason := unsuited(experiment.method, experiment.timesteps)) is None:
            if self._compile:
                reason = "torch.compile makes the step; native.graphs=always replays it too"
            elif experiment.ranks.size > 1:
                reason = "several processes share each batch"
        if reason is not None:
            self.graphs, self._not_replayed = None, reason

    def _try_foreign_layers(self, network: nn.Module, x: Tensor) -> None:
        """Give graphs up, by name, where layers do what a graph would not: it knows what ran on the device alone."""
        self._is_tried = True
        if self._compile:
            return  # what torch.compile makes is guarded by torch.compile
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
        """The experiment with its choice of steps made and what stands in for its network, where steps that need no
        graph can come several at once."""
        assert isinstance(experiment.method, SLTTK)
        self._not_free = self._why_one_by_one(experiment, x) or ""
        if self._not_free:
            return experiment
        assert isinstance(self._free, FreeSteps)
        chosen = steps_with_graph(experiment.method, experiment.generator, experiment.timesteps)
        network = self._free.sequence(experiment.inputs(x), chosen)
        return replace(experiment, network=network, method=experiment.method.at(chosen))

    def _why_one_by_one(self, experiment: "Experiment", x: Tensor) -> str | None:
        """What keeps steps that need no graph from coming several at once."""
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
                self._free = str(error)  # the error itself would hold the batch, by way of its traceback
        return self._free.why_not_now() if isinstance(self._free, FreeSteps) else self._free

    def sharing(self, method: Method) -> AbstractContextManager[None]:
        """Entered around an iteration of the method: what its steps may share.

        A checkpoint counts what each run of a step saves; outputs of first layers that one run computes and
        the next finds computed would not add up.
        """
        if isinstance(method, CheckpointedBPTT):
            return self._once.weights_alone()
        return self._once.without_casts() if isinstance(method, STEP_BY_STEP) else nullcontext()

    def unrolled(self, network: nn.Module, inputs: Sequence[Tensor], method: Method) -> nn.Module:
        """What the method is to call at each step of a sequence: the network, or what stands in for it.

        T `inputs` of [batch, ...].
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
        """Those of the network, found once; or why there are none. `x`: the input of a step [batch, ...]."""
        if self._cut_network is None or self._cut_network() is not network or self._units is None:
            self._cut_network = weakref.ref(network)
            try:
                self._units = UnitNetwork(network, x)
            except NotSeparable as error:
                self._units = str(error)  # the error itself would hold the batch, by way of its traceback
        return self._units

    def provenance(self) -> Mapping[str, str]:
        """What has really run so far."""
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
