"""The methods by name. A method decides only what the gradient of one batch may flow through.

A method is an object with `accumulate_gradients(unroll)`. A built-in method is a class in a module here, and
the module's docstring holds its equations; the variable parts of the name are the class's arguments. Third
parties add methods with the entry-point group `sltt_bench.methods`: the entry's name is a regular expression
for the whole method name, and its object a factory that takes the match of the name and T. The factory may
declare what the method promises in an attribute `promises`, and how its name is written in an attribute `label`
(`traced-lX`: N and X stand for numbers).
"""

import ast
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from sltt_bench.common.errors import UserError, nearest
from sltt_bench.common.plugins import PluginFailed, load_plugin, plugins

if TYPE_CHECKING:
    from sltt_bench.models.options import ModelOptions
    from sltt_bench.unroll import Unroll

Memory = Literal["O(1)", "O(w)", "O(T/N + N)", "O(T)"]
"""How the memory of an iteration grows with T; w and N are numbers in the method's name."""
Need = Literal[
    "state", "synapses", "membrane", "update", "layers", "spikes", "conversion", "sequence", "timestep"
]
"""A need of a method beyond `step`, `detach_state` and `backward`; the last two are needs of a network."""
NEEDS: dict[Need, str] = {
    "state": "the state of all layers to be saved, restored and scaled",
    "synapses": "traces in place of the synapses' inputs",
    "membrane": "the potential of every neuron before its reset",
    "update": "steps of the optimiser within a sequence",
    "layers": "the past of one layer of neurons apart from that of the others",
    "spikes": "what every layer of neurons puts out",
    "conversion": "neurons that are rectifiers while the network learns",
    "sequence": "layers that see all steps of a sequence at once",
    "timestep": "layers that are told which step runs",
}


class Method(Protocol):
    """How the gradients of one batch are made."""

    def accumulate_gradients(self, unroll: "Unroll") -> None:
        """Run all T steps of `unroll` forward and add gradients to the parameters' `.grad`."""


@runtime_checkable
class ChoosesSteps(Method, Protocol):
    """A method that uses only some of the T steps, chosen at random or by what happens in them."""

    def most_steps(self, timesteps: int) -> int:
        """Returns the largest number of T steps that an iteration uses (if the method draws it: the mean).

        A method that may use fewer also has `fewest_steps(timesteps)`: memory is estimated for both numbers.
        """

    def at(self, steps: Collection[int]) -> Method:
        """Returns the same method fixed to these steps (counted from 0)."""


@runtime_checkable
class ChoosesLayer(Method, Protocol):
    """A method that treats one layer of neurons unlike the others."""

    layer: int
    """Its position among the network's layers of neurons, from 1; a network with fewer is refused."""


@runtime_checkable
class CarriesOver(Method, Protocol):
    """A method whose iterations depend on earlier ones.

    Examples are running means of weights, and random feedback that is drawn once.
    """

    def state_dict(self) -> dict[str, Any]:
        """Returns all it carries, tensors and plain values, for a checkpoint; called between iterations."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over another instance's `state_dict`, whose tensors are on the CPU and now this method's."""


MethodFactory = Callable[[re.Match[str], int], Method]


@dataclass(frozen=True)
class Promises:
    """What a method promises; `sltt_bench.conformance.check_method` checks it."""

    exact: bool = False
    """Its gradient equals BPTT's, up to rounding."""
    bptt_at_one_step: bool = True
    """At T = 1 its gradient equals BPTT's, up to a factor."""
    memory: Memory = "O(T)"
    online: bool = False
    """It steps the optimiser within the sequence."""
    one_backward_pass: bool = False
    """It calls `backward` once, after the last step; L can be the loss of the mean output only then."""
    needs: frozenset[Need] = frozenset()
    kinds: frozenset[str] = frozenset()
    """Kinds of neuron that it is derived for; empty if it holds for all."""
    computes_again: bool = False
    """It runs steps again from a saved state; networks whose layers behave differently then are refused."""
    pass_on_rates: bool = False
    """Its backward pass goes through a forward pass on mean rates, which is not one of the T steps."""

    @property
    def whole_sequence(self) -> bool:
        """Whether it needs nothing between the first step and the backward pass after the last."""
        return self.one_backward_pass and not self.needs


@dataclass(frozen=True)
class MethodEntry:
    """A built-in method, or a family of methods that differ by a number in the name."""

    label: str
    """The name, with N or X in place of a number."""
    summary: str
    """What it is, in one line."""
    source: str
    promises: Promises
    of: str
    """ "module:class" below `sltt_bench.methods`, imported only to create a method, as it imports torch."""
    form: str = ""
    """Regular expression of the whole name, whose groups are arguments of the class; if empty, the label."""
    steps: str = "k"
    """The group that holds a number of steps from 1 to T, if there is one."""

    @property
    def pattern(self) -> str:
        """Regular expression of the whole name."""
        return self.form or re.escape(self.label)

    @property
    def module(self) -> str:
        """Name of the module below `sltt_bench.methods`."""
        return self.of.partition(":")[0]


_SPATIAL = Promises(memory="O(1)")
_LIF = frozenset({"lif"})
_ARGUMENTS: dict[str, Callable[[str], int | float]] = {
    **dict.fromkeys(("segment", "window", "layer", "k", "n"), int),
    **dict.fromkeys(("beta", "decay"), float),
    **dict.fromkeys(("unbiased", "online"), bool),
}
"""Group of a built-in method's name → type of the class's argument; a group that is a word gives True."""

METHODS: dict[str, MethodEntry] = {
    entry.pattern: entry
    for entry in (
        MethodEntry(
            "bptt",
            "backpropagation through time: gradient through space and time",
            "Werbos 1990; Neftci et al. 2019",
            Promises(exact=True, one_backward_pass=True),
            "bptt:BPTT",
        ),
        MethodEntry(
            "bptt-ckptN",
            "exact BPTT that keeps the state every N steps and computes the rest again",
            "Gruslys et al. 2016",
            Promises(
                exact=True,
                memory="O(T/N + N)",
                one_backward_pass=True,
                needs=frozenset({"state"}),
                computes_again=True,
            ),
            "bptt_checkpointed:CheckpointedBPTT",
            form=r"bptt-ckpt(?P<segment>\d+)",
            steps="segment",
        ),
        MethodEntry(
            "bptt-dX",
            "BPTT with the gradient through the state times X: 0 is SLTT, 1 is BPTT",
            "this project",
            Promises(one_backward_pass=True, needs=frozenset({"state"})),
            "bptt_damped:DampedBPTT",
            form=r"bptt-d(?P<beta>0(\.\d+)?|1(\.0+)?|\.\d+)",
        ),
        MethodEntry(
            "bptt-lN",
            "SLTT but for the Nth layer of neurons, which keeps its gradient through time",
            "this project",
            Promises(one_backward_pass=True, needs=frozenset({"layers"})),
            "bptt_layer:OneLayerThroughTime",
            form=r"bptt-l(?P<layer>[1-9]\d*)",
        ),
        MethodEntry(
            "tbptt-wN",
            "truncated BPTT: a graph over N steps, then the state is detached",
            "Williams & Peng 1990",
            Promises(memory="O(w)"),
            "tbptt:TruncatedBPTT",
            form=r"tbptt-w(?P<window>\d+)",
            steps="window",
        ),
        MethodEntry(
            "sltt",
            "spatial learning through time: each step's gradient at once",
            "Meng et al. 2023",
            _SPATIAL,
            "sltt:SLTT",
        ),
        MethodEntry(
            "sltt-kN",
            "SLTT at N of T steps, drawn anew for each iteration; gradient about N/T of SLTT's",
            "Meng et al. 2023",
            _SPATIAL,
            "sltt_k:SLTTK",
            form=r"sltt-k(?P<k>\d+)",
        ),
        MethodEntry(
            "sltt-kN-unbiased",
            "SLTT-K with the gradient scaled by T/N",
            "Meng et al. 2023; the scale is this project's",
            _SPATIAL,
            "sltt_k:SLTTK",
            form=r"sltt-k(?P<k>\d+)(?P<unbiased>-unbiased)",
        ),
        MethodEntry(
            "sltt-aN",
            "SLTT at steps whose spikes differ by more than the mean so far, at most N (T/2 without N); `-unbiased` draws",
            "this project",
            replace(_SPATIAL, needs=frozenset({"spikes"})),
            "sltt_a:AdaptiveSLTT",
            form=r"sltt-a(?P<n>\d+)?(?P<unbiased>-unbiased)?",
            steps="n",
        ),
        MethodEntry(
            "ottt",
            "online training through time: SLTT's error meets a trace of each synapse's input",
            "Xiao et al. 2022",
            Promises(memory="O(1)", needs=frozenset({"synapses"}), kinds=_LIF),
            "ottt:OTTT",
        ),
        MethodEntry(
            "ottt-o",
            "OTTT with a step of the optimiser after every time step",
            "Xiao et al. 2022",
            Promises(memory="O(1)", online=True, needs=frozenset({"synapses", "update"}), kinds=_LIF),
            "ottt:OTTT",
            form=r"ottt(?P<online>-o)",
        ),
        MethodEntry(
            "s-tllr",
            "three-factor rule with a causal and a non-causal trace",
            "Apolinario & Roy 2024",
            Promises(memory="O(1)", needs=frozenset({"synapses", "membrane"}), kinds=_LIF),
            "s_tllr:STLLR",
        ),
        MethodEntry(
            "pp-prop",
            "ES-D-RTRL: eligibility as input trace times state trace; `-aX` sets their decay",
            "Wang et al. 2024",
            Promises(memory="O(1)", needs=frozenset({"synapses", "membrane"}), kinds=_LIF),
            "pp_prop:PPProp",
            form=r"pp-prop(-a(?P<decay>0(\.\d+)?|\.\d+))?",
        ),
        MethodEntry(
            "e-prop",
            "eligibility propagation: traces of all inputs, the output's error as learning signal",
            "Bellec et al. 2020",
            Promises(memory="O(1)", needs=frozenset({"synapses"}), kinds=frozenset({"lif", "alif"})),
            "e_prop:EProp",
        ),
        MethodEntry(
            "rate",
            "rate-based backpropagation: T steps without a graph, one backward pass on firing rates",
            "Yu et al. 2024",
            Promises(
                memory="O(1)",
                one_backward_pass=True,
                needs=frozenset({"state", "membrane"}),
                kinds=_LIF,
                pass_on_rates=True,
            ),
            "rate:RateBased",
        ),
        MethodEntry(
            "conversion",
            "trains a network of rectifiers in one step and converts it: balanced thresholds, soft reset",
            "Diehl et al. 2015; Rueckauer et al. 2017; Bu et al. 2022",
            Promises(memory="O(1)", one_backward_pass=True, needs=frozenset({"conversion"})),
            "conversion:Conversion",
        ),
    )
}
"""Regular expression of the method's name → the method."""


class UnknownMethod(UserError, ValueError):
    """No registered method has this name, or its number does not fit T."""


def labels() -> list[str]:
    """Returns the form of every method's name, such as `sltt-kN`. Loads the methods of third parties."""
    return [
        *(entry.label for entry in METHODS.values()),
        *(label_of(plugin) for plugin in plugins("methods")),
    ]


def examples() -> list[str]:
    """Returns an example name for each of `labels`, such as `sltt-k2` for `sltt-kN`."""
    return [_example(label) for label in labels()]


def _example(label: str, count: str = "2", number: str = "0.5") -> str:
    return label.replace("N", count).replace("X", number)


def names_near(name: str) -> list[str]:
    """Returns names among which a mistyped one is looked for: `examples`, and as many with the number that was typed."""
    if (typed := re.search(r"[1-9]\d*|0\.\d+", name)) is None:
        return examples()
    numbers = {"number" if "." in typed[0] else "count": typed[0]}
    return [*examples(), *(_example(label, **numbers) for label in labels())]


def label_of(plugin: EntryPoint) -> str:
    """Returns the `label` that a plug-in's factory declares, such as `traced-lX`.

    The regular expression of its names if the plug-in declares no label that it takes, or cannot be loaded.
    """
    with suppress(PluginFailed, re.error):
        label = str(getattr(load_plugin(plugin), "label", plugin.name))
        if re.fullmatch(plugin.name, _example(label)):
            return label
    return plugin.name


def descriptions() -> list[tuple[str, str]]:
    """Returns (label, summary with memory in T and source) of every built-in method."""
    return [
        (entry.label, f"{entry.summary}; memory {entry.promises.memory}; {entry.source}")
        for entry in METHODS.values()
    ]


def explanation(name: str) -> str:
    """Returns the equations, source and deviations of the method `name`, from its module's docstring.

    A plug-in's factory may have its own, as a module may hold several methods. Does not import torch for built-in methods. Raises UnknownMethod.
    """
    match, entry = _find(name)
    if isinstance(entry, MethodEntry):
        path = Path(__file__).parent / f"{entry.module}.py"
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    else:
        text = inspect.getdoc(entry) or inspect.getdoc(inspect.getmodule(entry))
    return text or f"{match[0]} says nothing of itself"


def promises(name: str) -> Promises:
    """Returns what the method `name` promises (a third party's: what it declares). Raises UnknownMethod."""
    _, entry = _find(name)
    if isinstance(entry, MethodEntry):
        return entry.promises
    given: Promises = getattr(entry, "promises", Promises())
    return given


def create(name: str, timesteps: int) -> Method:
    """Create the method `name` (for example "sltt-k4") for sequences of `timesteps` steps.

    Raises UnknownMethod.
    """
    match, entry = _find(name)
    if isinstance(entry, MethodEntry):
        check(name, timesteps)
        given = {group: text for group, text in match.groupdict().items() if text is not None}
        kind = resolve_name(f"sltt_bench.methods.{entry.of}")
        built: Method = kind(**{group: _ARGUMENTS[group](text) for group, text in given.items()})
        return built
    try:
        return entry(match, timesteps)
    except ValueError as error:
        raise UnknownMethod(f"method {name!r}: {error}") from None
    except Exception as error:  # somebody else's factory
        raise UnknownMethod(f"method {name!r}: {type(error).__name__}: {error}") from error


def backward_steps(name: str) -> int | None:
    """Returns K of "sltt-kK", None for methods that use all steps or vary K. Raises UnknownMethod."""
    match, _ = _find(name)
    k = match.groupdict().get("k")
    return None if k is None else int(k)


def check(name: str, timesteps: int) -> None:
    """Raises UnknownMethod unless `create` would succeed. Cheap: does not import torch for built-in names."""
    _, entry = _find(name)
    if not isinstance(entry, MethodEntry):
        create(name, timesteps)
    elif not fits(name, timesteps):
        raise UnknownMethod(out_of_range(name, timesteps))


def fits(name: str, timesteps: int) -> bool:
    """Whether the name's number of steps is from 1 to T; without one it fits any T. Raises UnknownMethod."""
    number = _steps_in(name)
    return number is None or 1 <= number <= timesteps


def out_of_range(name: str, timesteps: int) -> str:
    """Returns the error text for a number of steps in the name that does not fit T. Raises UnknownMethod."""
    _, entry = _find(name)
    what = entry.label if isinstance(entry, MethodEntry) else name
    return (
        f"method {name!r}: {what} needs 1 ≤ N ≤ T, but N = {_steps_in(name)} and T = {timesteps}; choose another N or "
        "raise timesteps"
    )


def unsuited(name: str, neuron_kind: str, model: "ModelOptions | None" = None) -> str | None:
    """Returns why the method does not hold for this kind of neuron in a network with these options, or None.

    Raises UnknownMethod.
    """
    promised = promises(name)
    network_needs = frozenset() if model is None else model.needs
    if "sequence" in network_needs and not promised.whole_sequence:
        return (
            f"method {name!r} goes through the network step by step, but model.normalisation tdbn sees all steps "
            "at once; choose method bptt, or model.normalisation: batch, bntt or group"
        )
    converts = "conversion" in promised.needs
    if "timestep" in network_needs and (promised.pass_on_rates or converts):
        how = (
            "learns in one pass without steps"
            if converts
            else "goes backward through mean rates, without steps"
        )
        return (
            f"method {name!r} {how}, but model.normalisation bntt "
            "has parameters of each step; choose another method, or model.normalisation: batch or group"
        )
    kinds = promised.kinds or (_LIF if "membrane" in promised.needs else {neuron_kind})
    if neuron_kind not in kinds:
        return (
            f"method {name!r} is derived for neurons of kind {' or '.join(sorted(kinds, reverse=True))}, not "
            f"{neuron_kind}, whose state or λ is another; choose bptt, tbptt-wN, sltt or another rule without "
            "traces, or neuron.kind: lif"
        )
    if (
        neuron_kind == "alif"
        and "synapses" in promised.needs
        and model is not None
        and not model.sums_synapses
    ):
        return (
            f"method {name!r} with neuron.kind alif follows each synapse of each neuron, but model {model.name} does "
            "more than sum the synapses of fully connected layers; choose model mlp with normalisation: none, "
            "bptt, tbptt-wN or sltt, or neuron.kind: lif"
        )
    return None


def _steps_in(name: str) -> int | None:
    match, entry = _find(name)
    number = match.groupdict().get(entry.steps if isinstance(entry, MethodEntry) else "k")
    return None if number is None else int(number)


def _plainly(name: str) -> str:
    """Returns the name with its numbers in shortest form: sltt-k2 for sltt-k02, bptt-d0.5 for bptt-d.50."""

    def short(number: re.Match[str]) -> str:
        whole, _, part = number[0].partition(".")
        whole, part = whole.lstrip("0") or "0", part.rstrip("0")
        return f"{whole}.{part}" if part else whole

    return re.sub(r"[\d.]+", short, name)


def _find(name: str) -> tuple[re.Match[str], MethodEntry | MethodFactory]:
    for pattern, entry in METHODS.items():
        if match := re.fullmatch(pattern, name, re.ASCII):
            if re.search(r"\d{10}", name):  # no T is so large, and Python reads no number of 5,000 digits
                raise UnknownMethod(f"method {name[:20]!r}…: the number in its name is too large")
            if (plain := _plainly(name)) != name:
                raise UnknownMethod(f"method {name!r} is written {plain!r}: one rule, one name in all tables")
            return match, entry
    for plugin in plugins("methods"):
        try:
            if match := re.fullmatch(plugin.name, name):
                return match, load_plugin(plugin)
        except PluginFailed as error:
            raise UnknownMethod(str(error)) from error
        except re.error:
            continue  # the entry's name is not a regular expression, so it can match no method
    known = f"{', '.join(labels())} (N and X stand for numbers)"
    several = "; several are given with commas between them" if " " in name.strip() else ""
    raise UnknownMethod(
        f"unknown method {name!r}{several or nearest(name, names_near(name))}; known: {known}"
    )
