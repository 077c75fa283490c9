"""Neurons beside plain LIF: against recurrences worked out in plain numbers, SpikingJelly's, and finite differences."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from one_batch import CLASSES, INPUT_SHAPE, RESETS, batch, flat, gradients, run
from torch import Tensor, nn

from sltt_bench import backends, methods, models, neuron_kinds, neurons
from sltt_bench.analysis.plan import plan_analysis
from sltt_bench.models.options import MLPOptions
from sltt_bench.neuron_kinds import LAYERS, PLIF, DietLIF, Readout, layer_of_neurons
from sltt_bench.neurons import LIFParameters, detach_state, reset_state
from sltt_bench.planning.plan import Request
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.planning.recipe_faults import RecipeError
from sltt_bench.surrogates import spike
from sltt_bench.training.experiment import neuron_parameters
from sltt_bench.unroll import Unroll

KINDS: dict[str, dict[str, Any]] = {
    "plif": {},
    "diet-lif": {},
    "cuba-lif": {"tau_synapse": 1.6},
    "alif": {"tau_adaptation": 5.0, "adaptation": 0.4},
}
"""Every kind beside lif, with fields at which it differs from LIF clearly."""
LEARNED = {"plif": ["w"], "diet-lif": ["w", "log_threshold"]}
"""Kind → its parameters."""
T = 4

every_kind = pytest.mark.parametrize("kind", sorted(KINDS))
every_reset = pytest.mark.parametrize("reset", sorted(RESETS))


def parameters(kind: str, reset: str = "soft", **fields: Any) -> LIFParameters:
    common = {"tau": 1.7, "v_threshold": 0.8} | RESETS[reset]
    return LIFParameters(kind=kind, **(common | KINDS.get(kind, {}) | fields))


def recurrence(neuron: LIFParameters, currents: list[float]) -> tuple[list[float], list[float]]:
    """s[t] and v[t] of one neuron, the textbook's equations in Python's float64."""
    rest = neuron.v_reset if neuron.reset == "hard" else 0.0
    v, i, a = rest, 0.0, 0.0
    spikes, potentials = [], []
    for current in currents:
        i = (1 - 1 / neuron.tau_synapse) * i + current if neuron.kind == "cuba-lif" else current
        u = rest + (1 - 1 / neuron.tau) * (v - rest) + i
        fires = u >= neuron.v_threshold + (neuron.adaptation * a if neuron.kind == "alif" else 0.0)
        a = (1 - 1 / neuron.tau_adaptation) * a + fires
        if fires:
            u = neuron.v_reset if neuron.reset == "hard" else u - neuron.v_threshold
        v = u
        spikes.append(float(fires))
        potentials.append(v)
    return spikes, potentials


def test_every_kind_of_the_table_is_tested_and_one_that_recipes_know():
    assert set(LAYERS) == {"lif", *KINDS}
    for kind, fields in KINDS.items():
        recipe = load_recipe("digits", {"neuron.kind": kind} | {f"neuron.{k}": v for k, v in fields.items()})
        assert neuron_parameters(recipe) == LIFParameters(kind=kind, **fields)
    assert neuron_parameters(load_recipe("digits")) == LIFParameters()


@every_reset
@every_kind
def test_a_layer_follows_the_recurrence_in_plain_numbers(kind, reset):
    neuron = parameters(kind, reset)
    sequence = torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.3
    layer = layer_of_neurons(neuron).double()
    steps = [(layer(current).detach(), layer.potential.detach()) for current in sequence]
    for column in range(6):
        spikes, potentials = recurrence(neuron, sequence[:, column].tolist())
        assert [s[column].item() for s, _ in steps] == spikes
        # w is a float32 parameter before .double(), which is where τ loses digits
        assert [v[column].item() for _, v in steps] == pytest.approx(
            potentials, abs=1e-6 if kind in LEARNED else 1e-12
        )
    assert 0.1 < torch.stack([s for s, _ in steps]).mean() < 0.9
    lif = layer_of_neurons(parameters("lif", reset))
    if kind not in LEARNED:
        assert not torch.equal(torch.stack([lif(c) for c in sequence]), torch.stack([s for s, _ in steps]))


@every_kind
def test_without_what_it_adds_a_neuron_is_lif(kind):
    fields = {"cuba-lif": {"tau_synapse": 1.0}, "alif": {"adaptation": 0.0}}.get(kind, {})
    own, lif = layer_of_neurons(parameters(kind, **fields)), layer_of_neurons(parameters("lif"))
    for current in 2 * torch.randn(20, 3, 4, generator=torch.Generator().manual_seed(0)):
        assert torch.equal(own(current), lif(current))
        torch.testing.assert_close(own.potential, lif.potential)


@every_kind
def test_after_a_reset_a_layer_repeats_itself_and_detaching_cuts_all_that_it_carries(kind):
    layer = nn.Sequential(layer_of_neurons(parameters(kind)))
    sequence = (2 * torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
    first = torch.stack([layer(current) for current in sequence])
    values = [getattr(layer[0], name) for name in layer[0].carried]
    detach_state(layer)
    for name, before in zip(layer[0].carried, values, strict=True):
        assert before.requires_grad
        assert not getattr(layer[0], name).requires_grad
        assert torch.equal(getattr(layer[0], name), before)
    reset_state(layer)
    assert all(getattr(layer[0], name) is None for name in layer[0].carried)
    assert torch.equal(torch.stack([layer(current) for current in sequence]), first)


@every_reset
def test_a_learned_tau_fires_and_learns_as_spikingjellys_does(reset):
    neuron_module = pytest.importorskip("spikingjelly.activation_based.neuron")
    surrogate = pytest.importorskip("spikingjelly.activation_based.surrogate")
    neuron = parameters("plif", reset, tau=2.5)
    own = PLIF(neuron).double()
    theirs = neuron_module.ParametricLIFNode(
        init_tau=neuron.tau,
        decay_input=False,
        v_threshold=neuron.v_threshold,
        v_reset=neuron.v_reset if neuron.reset == "hard" else None,
        surrogate_function=surrogate.PiecewiseQuadratic(alpha=1.0),
        detach_reset=neuron.detach_reset,
        step_mode="s",
    ).double()
    weights = torch.randn(20, 4, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    currents = torch.randn(20, 4, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    total = {}
    for layer in (own, theirs):
        spikes = torch.stack([layer(current) for current in currents])
        (weights * spikes).sum().backward()
        total[layer] = spikes.detach()
    assert torch.equal(total[own], total[theirs])
    torch.testing.assert_close(own.potential, theirs.v, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(own.w.grad, theirs.w.grad, rtol=1e-9, atol=1e-12)
    assert abs(float(own.w.grad)) > 1e-3


@pytest.mark.parametrize("reset", ["soft", "hard"])
@every_kind
def test_gradients_through_time_are_those_of_finite_differences(kind, reset, monkeypatch):
    """With a smooth step in place of the spike, whose derivative the sigmoid surrogate is."""
    for module in (neurons, neuron_kinds):
        monkeypatch.setattr(module, "spike", lambda x, surrogate, width: torch.sigmoid(4 * x))
    layer = layer_of_neurons(parameters(kind, reset)).double()
    names = [name for name, _ in layer.named_parameters()]
    assert names == LEARNED.get(kind, [])

    def outputs(currents: Tensor, *values: Tensor) -> Tensor:
        reset_state(layer)
        named = dict(zip(names, values, strict=True))
        return torch.stack([torch.func.functional_call(layer, named, (current,)) for current in currents])

    generator = torch.Generator().manual_seed(0)
    currents = torch.randn(5, 2, dtype=torch.float64, generator=generator).requires_grad_()
    assert torch.autograd.gradcheck(
        outputs, (currents, *(p.detach().requires_grad_() for p in layer.parameters()))
    )


def test_sltt_gives_a_learned_tau_what_each_steps_own_leak_does():
    """∂L/∂w = −σ'(w) Σ_t δ[t] (v[t−1] − rest), with δ[t] = ψ[t] the error of a loss that sums all spikes."""
    neuron = parameters("plif", "hard")
    layer, sigma = PLIF(neuron).double(), 1 / (1 + math.exp(-PLIF(neuron).w.item()))
    expected = 0.0
    currents = torch.randn(6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for current in currents:
        detach_state(layer)
        before = torch.full_like(current, neuron.v_reset) if layer.potential is None else layer.potential
        u = neuron.v_reset + (1 - sigma) * (before - neuron.v_reset) + current
        psi = (1 - (u - neuron.v_threshold).abs()).clamp(min=0)
        expected -= sigma * (1 - sigma) * float((psi * (before - neuron.v_reset)).sum())
        layer(current).sum().backward()
    assert float(layer.w.grad) == pytest.approx(expected, rel=1e-9)
    assert abs(expected) > 1e-3


def test_sltt_gives_a_learned_threshold_what_each_steps_own_spike_does():
    """∂L/∂ϑ = −θ Σ_t ψ[t]; bptt adds what soft resets took from later potentials."""
    neuron = parameters("diet-lif")
    currents = torch.randn(6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    totals = {}
    for detached in (True, False):
        layer, expected = DietLIF(neuron).double(), 0.0
        spikes = []
        for current in currents:
            if detached:
                detach_state(layer)
                before = 0.0 if layer.potential is None else layer.potential
                u = (1 - torch.sigmoid(layer.w.detach())) * before + current
                psi = (1 - (u - neuron.v_threshold).abs()).clamp(min=0)
                expected -= neuron.v_threshold * float(psi.sum())
            spikes.append(layer(current))
        torch.stack(spikes).sum().backward()
        totals[detached] = float(layer.log_threshold.grad)
        if detached:
            assert totals[True] == pytest.approx(expected, rel=1e-6)
    assert abs(totals[True] - totals[False]) > 1e-2


def test_a_readout_sums_its_currents_and_never_fires():
    layer = Readout(4.0)
    currents = torch.randn(5, 2, 3)
    u = torch.zeros(2, 3)
    for current in currents:
        u = 0.75 * u + current
        torch.testing.assert_close(layer(current), u)
    options = MLPOptions(hidden=[8], readout_tau=4.0)
    built = models.build(
        options, neuron=lambda: layer_of_neurons(LIFParameters()), input_shape=INPUT_SHAPE, classes=CLASSES
    )
    inputs, labels = batch(T)
    totals = {}
    for method in (
        "bptt",
        "bptt-ckpt2",
        "sltt",
        f"sltt-k{T}",
        "bptt-d0",
        "ottt",
        "s-tllr",
        "pp-prop",
        "e-prop",
        "rate",
    ):
        run(built, method, inputs, labels)
        totals[method] = flat(gradients(built))
        assert totals[method].isfinite().all()
    torch.testing.assert_close(totals["bptt-ckpt2"], totals["bptt"])
    torch.testing.assert_close(totals[f"sltt-k{T}"], totals["sltt"])
    torch.testing.assert_close(totals["bptt-d0"], totals["sltt"])
    assert (totals["bptt"] - totals["sltt"]).norm() > 1e-2 * totals["bptt"].norm()
    native = models.build(
        options, neuron=lambda: backends.create("native").neuron(LIFParameters()), input_shape=INPUT_SHAPE,
        classes=CLASSES,
    )  # fmt: skip
    native.load_state_dict(built.state_dict())
    run(native, "bptt", inputs, labels)
    torch.testing.assert_close(flat(gradients(native)), totals["bptt"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_readout_of_mixed_precision_hears_the_last_of_many_steps(dtype):
    """A sum of 200 currents in bf16 stops growing."""
    layer, exact = Readout(1000.0), Readout(1000.0)
    for current in torch.rand(200, 8, generator=torch.Generator().manual_seed(0)).to(dtype):
        sums, expected = layer(current), exact(current.double())
    torch.testing.assert_close(sums.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ["lif", "cuba-lif", "diet-lif", "readout"])
def test_a_neuron_fires_and_learns_as_snntorchs_does(kind):
    snn = pytest.importorskip("snntorch")
    neuron = parameters(kind if kind in LAYERS else "lif")
    beta = 1 - 1 / neuron.tau
    common = {
        "threshold": neuron.v_threshold, "spike_grad": partial(spike, surrogate="triangle"), "reset_delay": False,
        "reset_mechanism": "none" if kind == "readout" else "subtract", "init_hidden": False,
    }  # fmt: skip
    if kind == "cuba-lif":
        theirs = snn.Synaptic(alpha=1 - 1 / neuron.tau_synapse, beta=beta, **common)
    else:
        theirs = snn.Leaky(
            beta=beta, learn_beta=kind == "diet-lif", learn_threshold=kind == "diet-lif", **common
        )
    own = (Readout(neuron.tau) if kind == "readout" else layer_of_neurons(neuron)).double()
    theirs = theirs.double()
    generator = torch.Generator().manual_seed(0)
    currents = (0.5 * torch.rand(15, 40, dtype=torch.float64, generator=generator)).requires_grad_()
    weights = torch.randn(15, 40, dtype=torch.float64, generator=generator)
    outputs, state = [], ()
    for current in currents:
        spikes, *state = theirs(current, *state)
        outputs.append(state[-1] if kind == "readout" else spikes)
        assert kind == "readout" or bool((state[-1] < neuron.v_threshold).all())  # else they reset again
    mine = torch.stack([own(current) for current in currents])
    torch.testing.assert_close(mine, torch.stack(outputs), rtol=1e-6, atol=1e-7)
    gradients_of = [torch.autograd.grad((weights * y).sum(), currents, retain_graph=True)[0]
                    for y in (mine, torch.stack(outputs))]  # fmt: skip
    torch.testing.assert_close(*gradients_of, rtol=1e-5, atol=1e-7)
    assert gradients_of[0].norm() > 1
    if kind == "diet-lif":
        sigma, theta = 1 / neuron.tau, neuron.v_threshold
        (weights * mine).sum().backward(retain_graph=True)
        (weights * torch.stack(outputs)).sum().backward()
        # dλ/dw = −σ(w) (1 − σ(w)), dθ/dϑ = θ
        assert float(own.w.grad) == pytest.approx(-sigma * (1 - sigma) * float(theirs.beta.grad), rel=1e-4)
        assert float(own.log_threshold.grad) == pytest.approx(theta * float(theirs.threshold.grad), rel=1e-4)


def network(kind: str, reset: str = "soft", **fields: Any) -> nn.Module:
    """Two recurrent layers that fire; always the same weights."""
    torch.manual_seed(0)
    options = MLPOptions(hidden=[24, 16], recurrent=True)
    neuron = parameters(kind, reset, **fields)
    built = models.build(
        options, neuron=lambda: layer_of_neurons(neuron), input_shape=INPUT_SHAPE, classes=CLASSES
    )
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.ndim:
                parameter *= 3
    return built.double()


def gradient(kind: str, method: str, timesteps: int = T) -> Tensor:
    """Of every parameter, each of which must receive one."""
    built = network(kind)
    inputs, labels = batch(timesteps)
    run(built, method, [x.double() for x in inputs], labels)
    return flat(gradients(built))


@every_kind
def test_the_identities_of_the_methods_hold(kind):
    bptt, sltt = gradient(kind, "bptt"), gradient(kind, "sltt")
    assert (bptt - sltt).norm() > 1e-2 * bptt.norm()
    for same in ("bptt-ckpt2", "bptt-d1", f"tbptt-w{T}"):
        torch.testing.assert_close(gradient(kind, same), bptt, rtol=1e-9, atol=1e-12)
    for same in ("bptt-d0", "tbptt-w1", f"sltt-k{T}"):
        torch.testing.assert_close(gradient(kind, same), sltt, rtol=1e-9, atol=1e-12)
    for method in ("sltt-k1", "sltt-k2-unbiased", "sltt-a2", "sltt-a2-unbiased"):
        built = network(kind)
        inputs, labels = batch(T)
        run(built, method, [x.double() for x in inputs], labels)
        assert all(p.grad is None or p.grad.isfinite().all() for p in built.parameters())
        assert built.layer1.feedforward.weight.grad.norm() > 0


@every_kind
def test_at_one_step_all_methods_give_the_same_gradient(kind):
    bptt = network(kind)
    inputs, labels = batch(1)
    inputs = [x.double() for x in inputs]
    run(bptt, "bptt", inputs, labels)
    eprop = ["e-prop"] if kind == "alif" else []
    for method in ("sltt", "sltt-k1", "sltt-a1", "bptt-ckpt1", "bptt-d0.5", "tbptt-w1", *eprop):
        other = network(kind)
        run(other, method, inputs, labels)
        for (name, p), q in zip(bptt.named_parameters(), other.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None), name
            if p.grad is not None and q.grad is not None:
                torch.testing.assert_close(q.grad, p.grad, rtol=1e-9, atol=1e-12)


@every_kind
def test_rules_that_are_derived_for_other_kinds_are_refused_by_name(kind):
    fields = {"neuron.kind": kind, "neuron.tau": 2.0} | {f"neuron.{k}": v for k, v in KINDS[kind].items()}
    for method in ("ottt", "ottt-o", "s-tllr", "pp-prop", "pp-prop-a0.5", "e-prop", "rate"):
        assert methods.unsuited(method, "lif") is None
        if (method, kind) == ("e-prop", "alif"):
            continue
        with pytest.raises(
            RecipeError, match=rf"method '{method}' is derived for neurons of kind lif.*{kind}"
        ):
            load_recipe("digits", fields, chosen_methods=[method])
    with pytest.raises(RecipeError, match="--method-gradients: method 's-tllr' is derived for"):
        plan_analysis("digits", Request(grid=(fields,)), epochs="0", batches=1, compared=["s-tllr"])
    with pytest.raises(NotImplementedError, match=f"kind lif only, not of {kind}"):
        run(network(kind), "rate", *batch(2))


# E-prop with adaptive thresholds --------------------------------------------------------------------


class Watched:
    """One layer of neurons: I[t], a constant, and ∂L[t]/∂s[t] of every step."""

    def __init__(self, neuron: nn.Module) -> None:
        self.currents: list[Tensor] = []
        self.signals: list[Tensor] = []
        neuron.register_forward_hook(self.note)

    def note(self, neuron: nn.Module, args: tuple[Tensor, ...], spikes: Tensor) -> Tensor:
        self.currents.append(args[0].detach())
        spikes = spikes.view_as(spikes)
        spikes.register_hook(self.signals.append)
        return spikes


def eprop_by_autograd(
    neuron: LIFParameters, layer: nn.Module, watched: Watched, x: list[Tensor]
) -> list[Tensor]:
    """Gradients of Σ_t L[t] s[t], L[t] a constant, through what a neuron hands to itself: v and a, no reset's path.

    What others send, x[t] and the recurrent s[t−1], is a constant.
    """
    weights = [layer.feedforward.weight, layer.recurrent.weight]
    total, v, a, last = torch.zeros((), dtype=torch.float64), None, None, None
    for t, (received, signal) in enumerate(zip(x, watched.signals, strict=True)):
        current = received @ weights[0].T + layer.feedforward.bias.detach()
        if last is not None:
            current = current + last @ weights[1].T
        torch.testing.assert_close(current.detach(), watched.currents[t])
        u = neurons.integrate(current, v, neuron)
        s = spike(u - (neuron.v_threshold + (0 if a is None else neuron.adaptation * a)), neuron.surrogate)
        a = s if a is None else neuron.adaptation_decay * a + s
        v = u + (neurons.reset(u, s, neuron) - u).detach()
        last = s.detach()
        total = total + (signal * s).sum()
    return list(torch.autograd.grad(total, weights))


@every_reset
def test_eprop_follows_the_adaptive_threshold_as_autograd_through_each_neuron_alone_does(reset):
    """In a network of two recurrent layers, of which the lower one learns from an error in space."""
    neuron, built = parameters("alif", reset), network("alif", reset)
    inputs, labels = batch(6)
    inputs = [x.double() for x in inputs]
    layers = [built.layer1, built.layer2]
    watched = [Watched(layer.neuron) for layer in layers]
    received: list[list[Tensor]] = [[], []]
    for layer, values in zip(layers, received, strict=True):
        layer.feedforward.register_forward_pre_hook(
            lambda _, args, values=values: values.append(args[0].detach())
        )
    run(built, "e-prop", inputs, labels)
    assert all(float(sum(signal.abs().sum() for signal in each.signals)) > 0 for each in watched)
    for layer, each, x in zip(layers, watched, received, strict=True):
        expected = eprop_by_autograd(neuron, layer, each, x)
        torch.testing.assert_close(layer.feedforward.weight.grad, expected[0], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(layer.recurrent.weight.grad, expected[1], rtol=1e-9, atol=1e-12)


def test_eprop_of_adaptive_thresholds_is_the_published_recurrence_of_one_synapse():
    """Bellec et al. 2020, equations 24 and 25, in Python's numbers: their a[t] is a[t − 1] here."""
    alpha, rho, beta, threshold, w = 0.5, 0.8, 0.4, 0.8, 0.7
    x, b = [1.0, 1.0, 0.0, 1.0, 1.0, 1.0], 0.3
    v = a = epsilon_v = epsilon_a = gradient = 0.0
    for value in x:
        epsilon_v = alpha * epsilon_v + value
        v = alpha * v + w * value
        psi = max(0.0, 1 - abs(v - threshold - beta * a))
        z = float(v >= threshold + beta * a)
        gradient += b * psi * (epsilon_v - beta * epsilon_a)
        epsilon_a = psi * epsilon_v + (rho - psi * beta) * epsilon_a
        a = rho * a + z
        v -= threshold * z
    neuron = LIFParameters(
        kind="alif", tau=2.0, v_threshold=threshold, tau_adaptation=5.0, adaptation=beta, surrogate="triangle"
    )
    synapse, readout = nn.Linear(1, 1, bias=False).double(), nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(synapse.weight, w)
    nn.init.constant_(readout.weight, b)
    unroll = Unroll(
        nn.Sequential(synapse, layer_of_neurons(neuron), readout),
        [torch.tensor([[value]], dtype=torch.float64) for value in x],
        lambda output: output.sum() * len(x),
        generator=torch.Generator(),
    )
    methods.create("e-prop", len(x)).accumulate_gradients(unroll)
    assert synapse.weight.grad.item() == pytest.approx(gradient, rel=1e-12)


def test_eprop_without_adaptation_is_that_of_lif_and_changes_no_output():
    def outcome(method: str, **fields: Any) -> tuple[Tensor, Tensor]:
        built = network(**fields)
        inputs, labels = batch(6)
        unroll = run(built, method, [x.double() for x in inputs], labels)
        return flat(gradients(built)), unroll.summed_outputs

    still = outcome("e-prop", kind="alif", adaptation=0.0)
    for a, b in zip(still, outcome("e-prop", kind="lif"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    adaptive, spatial = outcome("e-prop", kind="alif"), outcome("sltt", kind="alif")
    assert torch.equal(adaptive[1], spatial[1])
    assert (adaptive[0] - spatial[0]).norm() > 1e-2 * spatial[0].norm()


def test_eprop_of_adaptive_thresholds_is_refused_where_neurons_receive_more_than_sums_of_synapses():
    fields = {"neuron.kind": "alif", "neuron.tau_adaptation": 5.0, "neuron.adaptation": 0.4}
    refusal = "'e-prop' with neuron.kind alif .* choose model mlp with normalisation"
    for recipe, more in (
        ("digits", {"neuron.tau": 2.0}),
        ("permuted-digits", {"model.normalisation": "batch"}),
    ):
        with pytest.raises(RecipeError, match=refusal):
            load_recipe(recipe, fields | more, chosen_methods=["e-prop"])
    load_recipe("permuted-digits", fields, chosen_methods=["e-prop"])
    built = nn.Sequential(
        nn.Conv2d(2, 3, 3), layer_of_neurons(parameters("alif")), nn.Flatten(), nn.Linear(12, CLASSES)
    )
    with pytest.raises(NotImplementedError, match="fully connected layers only, not a Conv2d"):
        run(built, "e-prop", *batch(2))


@pytest.mark.parametrize("backend", ["native", "spikingjelly"])
@every_kind
def test_backends_whose_neurons_are_lif_refuse_the_others_by_name(backend, kind):
    if backend == "spikingjelly":
        pytest.importorskip("spikingjelly")
    reason = backends.create(backend).unsupported(parameters(kind), "fp32", "cpu")
    assert reason == f"its neurons are of neuron.kind lif, not {kind}; use --backend reference"
    assert backends.create("reference").unsupported(parameters(kind), "fp32", "cpu") is None


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"neuron.tau_synapse": 2.0}, "tau_synapse is not a field of kind lif"),
        ({"neuron.kind": "cuba-lif"}, "kind cuba-lif needs tau_synapse"),
        ({"neuron.kind": "alif", "neuron.adaptation": 0.2}, "kind alif needs tau_adaptation"),
        ({"neuron.kind": "plif", "neuron.tau": 1.0}, "a learned tau starts above 1"),
        (
            {"neuron.kind": "alfi"},
            "neuron.kind: Input should be 'lif', 'plif', 'diet-lif', 'cuba-lif' or 'alif'",
        ),
    ],
)
def test_a_recipe_says_what_its_kind_of_neuron_has_and_nothing_else(fields, fault):
    with pytest.raises(RecipeError, match=fault):
        load_recipe("digits", fields)
