"""Each training rule against its published recurrences, written out in float64 NumPy, and its identities."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from one_batch import RESETS, batch, convolutional_network, flat, gradients, relative_difference, run
from torch import nn

from sltt_bench import methods
from sltt_bench.losses import step_loss
from sltt_bench.models.mlp import Recurrent
from sltt_bench.neuron_kinds import Readout, layer_of_neurons
from sltt_bench.neurons import LIF, LIFParameters
from sltt_bench.unroll import Unroll

T, BATCH, INPUTS, CLASSES = 5, 4, 6, 3
LAMBDA = 1 - 1 / 1.6

Array = np.ndarray


@dataclass
class Layer:
    """A layer of neurons in NumPy: all that a step leaves, one entry a step."""

    w: Array
    b: Array
    r: Array | None
    x: list[Array] = field(default_factory=list)
    before: list[Array] = field(default_factory=list)
    u: list[Array] = field(default_factory=list)
    s: list[Array] = field(default_factory=list)
    signal: list[Array] = field(default_factory=list)
    """∂L[t]/∂s[t], in space."""


class Slow:
    """Forward pass, spatial errors and rules of one network, step by step."""

    def __init__(self, network: nn.Module, inputs: list[torch.Tensor], labels: torch.Tensor, window: int):
        self.neuron: LIFParameters = next(m for m in network.modules() if isinstance(m, LIF)).parameters_
        self.layers = []
        for module in network[:-1]:
            linear = module.feedforward if isinstance(module, Recurrent) else module[0]
            r = module.recurrent.weight.detach().numpy() if isinstance(module, Recurrent) else None
            self.layers.append(Layer(linear.weight.detach().numpy(), linear.bias.detach().numpy(), r))
        self.w_out = network[-1].weight.detach().numpy()
        self.b_out = network[-1].bias.detach().numpy()
        self.labels, self.window = labels.numpy(), window
        self.errors: list[Array] = []
        """∂L/∂o[t]."""
        self._forward([x.numpy() for x in inputs])

    def psi(self, u: Array) -> Array:
        return np.maximum(0.0, 1 - np.abs(u - self.neuron.v_threshold))

    def d_reset(self, u: Array, s: Array) -> tuple[Array, Array]:
        """(∂v/∂u with s held, ∂v/∂s)."""
        if self.neuron.reset == "soft":
            held, jump = np.ones_like(u), np.full_like(u, -self.neuron.v_threshold)
        else:
            held, jump = 1 - s, self.neuron.v_reset - u
        return held, np.zeros_like(u) if self.neuron.detach_reset else jump

    def _forward(self, inputs: list[Array]) -> None:
        p = self.neuron
        rest = p.v_reset if p.reset == "hard" else 0.0
        v: list[Array | float] = [rest] * len(self.layers)
        for t, x in enumerate(inputs):
            for i, layer in enumerate(self.layers):
                last = layer.s[-1] if t else np.zeros((len(x), len(layer.w)))
                current = x @ layer.w.T + layer.b + (0 if layer.r is None else last @ layer.r.T)
                u = LAMBDA * (v[i] - rest) + rest + current
                s = (u >= p.v_threshold).astype(float)
                v[i] = u - p.v_threshold * s if p.reset == "soft" else (1 - s) * u + p.v_reset * s
                for kept, value in ((layer.x, x), (layer.before, last), (layer.u, u), (layer.s, s)):
                    kept.append(value)
                x = s
            e = self.error(x @ self.w_out.T + self.b_out) / self.window
            self.errors.append(e if t >= T - self.window else 0 * e)
            g = self.errors[-1] @ self.w_out
            for layer in reversed(self.layers):
                layer.signal.append(g)
                g = (g * self.psi(layer.u[-1])) @ layer.w

    def error(self, o: Array) -> Array:
        """∂L/∂o of the mean cross-entropy."""
        e = np.exp(o - o.max(1, keepdims=True))
        return (e / e.sum(1, keepdims=True) - np.eye(CLASSES)[self.labels]) / len(o)

    # Rules: each returns the gradients in the order of the network's parameters ----------------------

    def collect(self, of_layer: Callable[[Layer], list[Array]], readout: list[Array]) -> list[Array]:
        return [g for layer in self.layers for g in of_layer(layer)] + readout

    def plain_readout(self, decay: float = 0.0) -> list[Array]:
        s = trace(self.layers[-1].s, decay)
        return [sum(e.T @ a for e, a in zip(self.errors, s, strict=True)), sum(e.sum(0) for e in self.errors)]

    def bptt(self, beta: list[float]) -> list[Array]:
        """The gradient through the state that step t receives times beta[t]."""
        grads = []
        from_above = [e @ self.w_out for e in self.errors]
        for layer in reversed(self.layers):
            w, b, r = np.zeros_like(layer.w), np.zeros_like(layer.b), None if layer.r is None else 0 * layer.r
            later_v = later_s = np.zeros_like(layer.u[0])
            below = [np.zeros_like(x) for x in layer.x]
            for t in reversed(range(T)):
                held, jump = self.d_reset(layer.u[t], layer.s[t])
                d = self.psi(layer.u[t]) * (from_above[t] + later_s + jump * later_v) + held * later_v
                w, b = w + d.T @ layer.x[t], b + d.sum(0)
                if r is not None and layer.r is not None:
                    r = r + d.T @ layer.before[t]
                    later_s = beta[t] * d @ layer.r
                below[t] = d @ layer.w
                later_v = beta[t] * LAMBDA * d
            from_above = below
            grads = [w, b, *([] if r is None else [r]), *grads]
        return grads + self.plain_readout()

    def traced(self, first: float, others: float, readout: float) -> list[Array]:
        """SLTT's error ⊗ traces with these decays."""

        def of_layer(layer: Layer) -> list[Array]:
            d = [g * self.psi(u) for g, u in zip(layer.signal, layer.u, strict=True)]
            x = trace(layer.x, first if layer is self.layers[0] else others)
            return [outer(d, x), sum(d).sum(0), *recurrent(layer, d, trace(layer.before, others))]

        return self.collect(of_layer, self.plain_readout(readout))

    def s_tllr(self) -> list[Array]:
        def of_layer(layer: Layer) -> list[Array]:
            psi = [self.psi(u) for u in layer.u]
            d = [g * p for g, p in zip(layer.signal, psi, strict=True)]
            earlier = [np.zeros_like(psi[0]), *trace(psi, 0.2)[:-1]]
            other = [-1.0 * g * p for g, p in zip(layer.signal, earlier, strict=True)]

            def both(x: list[Array]) -> Array:
                return outer(d, trace(x, 0.75)) + outer(other, x)

            r = [] if layer.r is None else [both(layer.before)]
            return [both(layer.x), sum(d).sum(0), *r]

        return self.collect(of_layer, self.plain_readout())

    def pp_prop(self, alpha: float) -> list[Array]:
        def of_layer(layer: Layer) -> list[Array]:
            plain, d, state = [], [], np.zeros_like(layer.u[0])
            for t in range(T):
                held, jump = self.d_reset(layer.u[t - 1], layer.s[t - 1]) if t else (0.0, 0.0)
                derivative = LAMBDA * (held + jump * self.psi(layer.u[t - 1])) if t else 0.0
                state = alpha * derivative * state + (1 - alpha)
                plain.append(layer.signal[t] * self.psi(layer.u[t]))
                d.append(plain[-1] * state / (1 - alpha ** (t + 1)))
            x = trace(layer.x, alpha)
            return [outer(d, x), sum(plain).sum(0), *recurrent(layer, d, trace(layer.before, alpha))]

        return self.collect(of_layer, self.plain_readout())

    def rate(self) -> list[Array]:
        """Means over the steps that count."""
        counted = slice(T - self.window, T)
        rates, slopes = [], []
        for layer in self.layers:
            factor, slope = np.ones_like(layer.u[0]), []
            for u, s in zip(layer.u, layer.s, strict=True):
                held, jump = self.d_reset(u, s)
                slope.append(factor * self.psi(u))
                factor = 1 + factor * LAMBDA * (held + jump * self.psi(u))
            rates.append(np.mean(layer.s[counted], 0))
            slopes.append(np.mean(slope[counted], 0))
        e = self.error(rates[-1] @ self.w_out.T + self.b_out)
        grads, g = [e.T @ rates[-1], e.sum(0)], e @ self.w_out
        for i, layer in reversed(list(enumerate(self.layers))):
            x = rates[i - 1] if i else np.mean(layer.x[counted], 0)
            d = g * slopes[i]
            before = np.mean(layer.before[counted], 0)
            grads = [d.T @ x, d.sum(0), *([] if layer.r is None else [d.T @ before]), *grads]
            g = d @ layer.w
        return grads


def trace(values: list[Array], decay: float) -> list[Array]:
    result: list[Array] = []
    for value in values:
        result.append(value + (decay * result[-1] if result else 0))
    return result


def outer(left: list[Array], right: list[Array]) -> Array:
    return sum(a.T @ b for a, b in zip(left, right, strict=True))


def recurrent(layer: Layer, d: list[Array], before: list[Array]) -> list[Array]:
    return [] if layer.r is None else [outer(d, before)]


RULES: dict[str, Callable[[Slow], list[Array]]] = {
    "bptt": lambda slow: slow.bptt([1.0] * T),
    "bptt-ckpt2": lambda slow: slow.bptt([1.0] * T),
    "bptt-d0.3": lambda slow: slow.bptt([0.3] * T),
    "tbptt-w2": lambda slow: slow.bptt([0, 1, 0, 1, 0]),
    "tbptt-w3": lambda slow: slow.bptt([0, 1, 1, 0, 1]),
    "sltt": lambda slow: slow.traced(0, 0, 0),
    "ottt": lambda slow: slow.traced(0, LAMBDA, LAMBDA),
    "ottt-o": lambda slow: slow.traced(0, LAMBDA, LAMBDA),
    "e-prop": lambda slow: slow.traced(LAMBDA, LAMBDA, 0),
    "s-tllr": Slow.s_tllr,
    "pp-prop": lambda slow: slow.pp_prop(0.9),
    "pp-prop-a0.4": lambda slow: slow.pp_prop(0.4),
    "rate": Slow.rate,
}


def network_of(neuron: LIFParameters, recurrent: bool) -> nn.Sequential:
    """Two layers of neurons and a readout, in float64."""
    torch.manual_seed(0)
    sizes = [INPUTS, 9, 7]
    layers = []
    for m, n in itertools.pairwise(sizes):
        linear = nn.Linear(m, n)
        layers.append(Recurrent(linear, LIF(neuron)) if recurrent else nn.Sequential(linear, LIF(neuron)))
    network = nn.Sequential(*layers, nn.Linear(sizes[-1], CLASSES)).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= 2
    return network


def unrolled(network: nn.Module, method: str, inputs, labels, **options) -> Unroll:
    unroll = Unroll(
        network,
        inputs,
        lambda output: step_loss(output, labels, 0.0, "ones"),
        generator=torch.Generator().manual_seed(0),
        **options,
    )
    methods.create(method, T).accumulate_gradients(unroll)
    return unroll


def one_batch() -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(T, BATCH, INPUTS, generator=generator, dtype=torch.float64)
    return list(1.5 * x), torch.tensor([0, 2, 1, 2])


@pytest.mark.parametrize("window", [T, 2])
@pytest.mark.parametrize("recurrent", [False, True], ids=["feed-forward", "recurrent"])
@pytest.mark.parametrize("reset", sorted(RESETS))
def test_gradients_equal_the_published_recurrences(reset, recurrent, window):
    neuron = LIFParameters(tau=1.6, v_threshold=0.9, **RESETS[reset])
    inputs, labels = one_batch()
    network = network_of(neuron, recurrent)
    slow = Slow(network, inputs, labels, window)
    actual = {}
    for name, rule in RULES.items():
        network.zero_grad()
        unrolled(network, name, inputs, labels, window=window)
        expected = rule(slow)
        actual[name] = np.concatenate([g.ravel() for g in expected])
        for (key, parameter), gradient in zip(network.named_parameters(), expected, strict=True):
            np.testing.assert_allclose(
                parameter.grad, gradient, rtol=1e-9, atol=1e-12, err_msg=f"{name}: {key}"
            )
    same = {("bptt", "bptt-ckpt2"), ("ottt", "ottt-o")}
    for a, b in itertools.combinations(actual, 2):  # else one rule could be mistaken for another
        assert (np.abs(actual[a] - actual[b]).max() > 1e-4) != ((a, b) in same), (a, b)


@dataclass
class Seen:
    """What one layer of the convolutional network saw at each step, and its part of the graph."""

    x: list[torch.Tensor] = field(default_factory=list)
    y: list[torch.Tensor] = field(default_factory=list)


def through_normalisation(rule: str, reset: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(weight gradients of the rule, the same from each step's own graph): conv – batch norm – LIF, dropout."""
    neuron = LIFParameters(tau=1.6, **RESETS[reset])
    network = convolutional_network(neuron, dropout=0.3).double()
    inputs, labels = batch(T)
    inputs = [x.double() for x in inputs]
    run(network, rule, inputs, labels, alpha=0.0)
    result = gradients(network)

    torch.manual_seed(2)
    slow = convolutional_network(neuron, dropout=0.3).double().train()
    torch.manual_seed(2)
    convolutions = [slow.conv1, slow.conv2]
    seen = {layer: Seen() for layer in convolutions}
    currents: dict[nn.Module, list[torch.Tensor]] = {slow.neuron1: [], slow.neuron2: []}
    spikes: dict[nn.Module, list[torch.Tensor]] = {slow.neuron1: [], slow.neuron2: []}

    def note(layer, args, output):
        seen[layer].x.append(args[0].detach())
        seen[layer].y.append(output)

    def note_neuron(layer, args, output):
        currents[layer].append(args[0])
        spikes[layer].append(output)

    for layer in convolutions:
        layer.register_forward_hook(note)
    for layer in currents:
        layer.register_forward_hook(note_neuron)
    expected = {name: torch.zeros_like(p) for name, p in slow.named_parameters()}
    psi_trace = dict.fromkeys(currents, 0.0)
    x_trace = dict.fromkeys(convolutions, 0.0)
    state: dict[nn.Module, tuple] = {}
    potential: dict[nn.Module, torch.Tensor | None] = dict.fromkeys(currents)
    for t, x in enumerate(inputs):
        for m in (slow.neuron1, slow.neuron2):
            potential[m] = None if m.potential is None else m.potential.detach()
            m.detach_state()
        loss = F.cross_entropy(slow(x), labels) / T
        others = [(n, p) for n, p in slow.named_parameters() if n not in ("conv1.weight", "conv2.weight")]
        for (name, _), g in zip(
            others, torch.autograd.grad(loss, [p for _, p in others], retain_graph=True), strict=True
        ):
            expected[name] += g
        for c, n in zip(convolutions, currents, strict=True):
            y, i, s = seen[c].y[t], currents[n][t], spikes[n][t]
            signal, at_y = torch.autograd.grad(loss, [s, y], retain_graph=True)
            rest = neuron.v_reset if neuron.reset == "hard" else 0.0
            u = (
                i.detach() + rest
                if potential[n] is None
                else LAMBDA * (potential[n] - rest) + rest + i.detach()
            )
            psi = (1 - (u - 1).abs()).clamp(min=0)

            def to_y(error, y=y, i=i):
                return torch.autograd.grad(i, y, error, retain_graph=True)[0]

            def weight(error_at_y, source, c=c):
                return torch.nn.grad.conv2d_weight(source, c.weight.shape, error_at_y, padding=1)

            if rule == "s-tllr":
                x_trace[c] = 0.75 * x_trace[c] + seen[c].x[t]
                total = weight(at_y, x_trace[c])
                if t:
                    total = total + weight(to_y(-signal * psi_trace[n]), seen[c].x[t])
                psi_trace[n] = 0.2 * psi_trace[n] + psi
            elif rule == "pp-prop":
                x_trace[c] = 0.9 * x_trace[c] + seen[c].x[t]
                trace, derivative = state.get(n, (0.0, 0.0))
                trace = 0.9 * derivative * trace + 0.1 * torch.ones_like(u)
                total = weight(to_y(signal * psi * trace / (1 - 0.9 ** (t + 1))), x_trace[c])
                fired = s.detach()
                if neuron.reset == "soft":
                    state[n] = trace, LAMBDA * (1 - psi)
                else:
                    state[n] = trace, LAMBDA * (1 - fired + (neuron.v_reset - u) * psi)
            else:
                keeps = rule == "e-prop" or c is slow.conv2
                x_trace[c] = (LAMBDA if keeps else 0.0) * x_trace[c] + seen[c].x[t]
                total = weight(at_y, x_trace[c])
            expected[f"conv{convolutions.index(c) + 1}.weight"] += total
    if rule == "ottt":
        expected.pop("classifier.weight")
    return result, expected


@pytest.mark.parametrize("reset", ["soft", "hard"])
@pytest.mark.parametrize("rule", ["ottt", "e-prop", "s-tllr", "pp-prop"])
def test_errors_pass_batch_norm_on_their_way_to_a_convolution_and_dropout_masks_hold(rule, reset):
    result, expected = through_normalisation(rule, reset)
    for name, gradient in expected.items():
        torch.testing.assert_close(result[name], gradient, rtol=1e-8, atol=1e-11, msg=name)


def double_run(method: str, reset: str = "soft", dropout: float = 0.3, **options) -> dict[str, torch.Tensor]:
    network = convolutional_network(LIFParameters(tau=1.6, **RESETS[reset]), dropout=dropout).double()
    inputs, labels = batch(T)
    run(network, method, [x.double() for x in inputs], labels, **options)
    return gradients(network)


@pytest.mark.parametrize("reset", sorted(RESETS))
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("tbptt-w1", "sltt"),
        (f"tbptt-w{T}", "bptt"),
        ("bptt-d0", "sltt"),
        ("bptt-d1", "bptt"),
        ("bptt-ckpt1", "bptt"),
        ("bptt-ckpt2", "bptt"),
        (f"bptt-ckpt{T}", "bptt"),
        ("pp-prop-a0", "sltt"),
    ],
)
def test_the_ends_of_each_family_are_the_methods_they_should_be(a, b, reset):
    """With batch norm and dropout."""
    assert relative_difference(double_run(a, reset), double_run(b, reset)) < 1e-12


def test_the_damped_gradient_is_continuous_in_beta():
    betas = [0, 0.01, 0.1, 0.5, 0.9, 0.99, 1]
    actual = [flat(double_run(f"bptt-d{beta}", dropout=0.0)) for beta in betas]
    distances = [float((g - actual[-1]).norm()) for g in actual]
    assert distances == sorted(distances, reverse=True)
    assert distances[-2] < 0.05 * distances[0]
    assert float((actual[1] - actual[0]).norm()) < 0.05 * distances[0]


@pytest.mark.parametrize(
    "method",
    [
        *(name for name in RULES if name not in ("tbptt-w3", "tbptt-w2", "bptt-ckpt2")),
        *("tbptt-w1", "bptt-ckpt1", "bptt-l1", "sltt-a", "sltt-a1-unbiased"),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_at_one_time_step_every_rule_is_bptt(method, precision):
    network = convolutional_network(LIFParameters(tau=1.6), dropout=0.3)
    run(network, "bptt", *batch(1), precision=precision)
    bptt = gradients(network)
    run(network, method, *batch(1), precision=precision)
    assert relative_difference(gradients(network), bptt) < (1e-6 if precision == "fp32" else 0.02)


@pytest.mark.parametrize(("rule", "decay"), [("sltt", 0.0), ("e-prop", 0.0), ("ottt", LAMBDA)])
def test_rules_that_go_step_by_step_drop_the_credit_through_a_leaky_readout(rule, decay):
    """Its weights learn from each step's own error, in OTTT with the trace of the neurons' λ."""
    inputs, labels = one_batch()
    network = network_of(LIFParameters(tau=1.6), recurrent=False).append(Readout(tau=3.0))
    spikes, errors = [], []

    def note(layer, args, output):
        spikes.append(args[0].detach().numpy())
        output.register_hook(lambda error: errors.append(error.numpy()))

    network[2].register_forward_hook(note)
    unrolled(network, rule, inputs, labels)
    np.testing.assert_allclose(network[2].weight.grad, outer(errors, trace(spikes, decay)), rtol=1e-9)


@pytest.mark.parametrize("kind", ["lif", "alif"])
def test_e_prop_is_bptt_in_one_feed_forward_layer_whose_reset_is_detached(kind):
    """Nothing is left out there: no other layer's past, no reset's path, and no readout that remembers."""
    adapting = {"tau_adaptation": 5.0, "adaptation": 0.4} if kind == "alif" else {}
    neuron = LIFParameters(kind=kind, tau=1.6, v_threshold=0.9, detach_reset=True, **adapting)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(INPUTS, 9), layer_of_neurons(neuron), nn.Linear(9, CLASSES)).double()
    inputs, labels = one_batch()
    made = {}
    for method in ("bptt", "e-prop", "sltt"):
        network.zero_grad()
        unrolled(network, method, [3 * x for x in inputs], labels)
        made[method] = {
            name: network.get_parameter(name).grad.clone() for name in ("0.weight", "2.weight", "2.bias")
        }
    assert relative_difference(made["e-prop"], made["bptt"]) < 1e-14
    assert relative_difference(made["sltt"], made["bptt"]) > 0.05


@pytest.mark.parametrize("method", RULES)
def test_a_loss_scale_multiplies_every_rules_gradient_once(method):
    """Local errors too."""
    network = convolutional_network(LIFParameters(tau=1.6))
    inputs, labels = batch(T)
    run(network, method, inputs, labels, precision="fp32")
    exact = flat(gradients(network))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    network.zero_grad()
    torch.manual_seed(2)

    def scaled(loss, /, *, retain_graph=False):
        scaler.scale(loss).backward(retain_graph=retain_graph)

    unroll = Unroll(
        network,
        inputs,
        lambda output: step_loss(output, labels, 0.05, "ones"),
        generator=torch.Generator().manual_seed(0),
        backward=scaled,
    )
    methods.create(method, T).accumulate_gradients(unroll)
    torch.testing.assert_close(flat(gradients(network)), 8 * exact, rtol=1e-4, atol=1e-5)


def test_a_rule_that_learns_online_steps_the_optimiser_after_every_time_step():
    """With plain SGD, written out: each step's gradient of OTTT at the weights that the steps before left."""
    inputs, labels = one_batch()
    neuron = LIFParameters(tau=1.6)
    network = network_of(neuron, recurrent=False)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    unroll = unrolled(network, "ottt-o", inputs, labels, update=update)
    assert (unroll.updates, unroll.backward_passes) == (T, T)

    slow = network_of(neuron, recurrent=False)
    traces: dict[int, torch.Tensor] = {}
    for x in inputs:
        for module in slow.modules():
            if isinstance(module, LIF):
                module.detach_state()
        ys, xs = [], [x]
        for layer in slow[:-1]:
            ys.append(layer[0](xs[-1]))
            xs.append(layer[1](ys[-1]))
        ys.append(slow[-1](xs[-1]))
        errors = torch.autograd.grad(F.cross_entropy(ys[-1], labels) / T, ys)
        with torch.no_grad():
            for i, (linear, error) in enumerate(zip([slow[0][0], slow[1][0], slow[2]], errors, strict=True)):
                traces[i] = xs[i].detach() + (LAMBDA * traces[i] if i and i in traces else 0)
                linear.weight -= 0.1 * error.T @ traces[i]
                linear.bias -= 0.1 * error.sum(0)
    for trained, expected in zip(network.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(trained, expected, rtol=1e-10, atol=1e-12)


def test_where_nothing_is_trained_an_online_rule_adds_its_gradients_up():
    inputs, labels = one_batch()
    network = network_of(LIFParameters(tau=1.6), recurrent=True)
    unrolled(network, "ottt", inputs, labels)
    offline = gradients(network)
    network.zero_grad()
    unrolled(network, "ottt-o", inputs, labels)
    assert relative_difference(gradients(network), offline) < 1e-15


# SLTT at adaptive steps -----------------------------------------------------------------------------


def used_steps(method: str, scales: list[float]) -> list[int]:
    """The steps that the method uses on inputs of these strengths."""
    inputs, labels = one_batch()
    inputs = [scale * inputs[0] for scale in scales]
    network = network_of(LIFParameters(tau=1.0), recurrent=False)
    used: list[int] = []
    ran: list[int] = []
    network.register_forward_hook(lambda *_: ran.append(len(ran)))
    unroll = Unroll(
        network,
        inputs,
        lambda output: step_loss(output, labels, 0.0, "ones"),
        generator=torch.Generator().manual_seed(0),
        backward=lambda loss, /, *, retain_graph=False: used.append(ran[-1]),
    )
    methods.create(method, T).accumulate_gradients(unroll)
    return used


def test_adaptive_sltt_uses_the_steps_whose_spikes_differ():
    """Without memory (τ = 1), spikes repeat where the input does."""
    assert used_steps("sltt-a5", [1, 1, 1, 3, 3]) == [0, 3]
    assert used_steps("sltt-a5", [1, 1, 1, 1, 1]) == [0]
    assert used_steps("sltt-a5", [1, 3, 1, -1, 1]) == [0, 1, 3, 4]  # step 2 differs as step 1 did
    assert used_steps("sltt-a2", [1, 3, 1, -1, 1]) == [0, 1]
    assert used_steps("sltt-a1", [1, 3, 1, 3, 1]) == [0]


def test_adaptive_sltt_is_the_sum_of_the_used_steps_gradients():
    network = convolutional_network(LIFParameters())
    inputs, labels = batch(T)
    unroll = run(network, "sltt-a", inputs, labels)
    actual = flat(gradients(network))
    assert 1 <= unroll.backward_passes <= 3
    sums = []
    for steps in itertools.combinations(range(T), unroll.backward_passes):
        network.zero_grad()
        torch.manual_seed(2)
        whole = Unroll(
            network,
            inputs,
            lambda output: step_loss(output, labels, 0.05, "ones"),
            generator=torch.Generator(),
        )
        methods.create("sltt-a", T).at(steps).accumulate_gradients(whole)
        sums.append(flat(gradients(network)))
    assert any(torch.allclose(actual, total, rtol=1e-4, atol=1e-6) for total in sums)


@pytest.mark.parametrize(
    ("method", "factor"), [("sltt-a2", 1), ("sltt-a2-unbiased", T / 2), ("sltt-k2-unbiased", T / 2)]
)
def test_steps_given_beforehand_have_the_weight_that_drawn_ones_have_on_average(method: str, factor: float):
    network = convolutional_network(LIFParameters())
    inputs, labels = batch(T)
    run(network, "sltt", inputs, labels)
    sltt = flat(gradients(network))
    network.zero_grad()
    torch.manual_seed(2)
    loss = partial(step_loss, labels=labels, alpha=0.05, mse_target="ones")
    unroll = Unroll(network, inputs, loss, generator=torch.Generator())
    methods.create(method, T).at(range(T)).accumulate_gradients(unroll)
    torch.testing.assert_close(flat(gradients(network)), factor * sltt, rtol=1e-4, atol=1e-6)


def test_the_expected_gradient_of_the_unbiased_adaptive_sltt_is_slttss():
    network = convolutional_network(LIFParameters())
    inputs, labels = batch(T)
    inputs = [strength * x for strength, x in zip((0.3, 1.0, 1.0, 2.0, 5.0), inputs, strict=True)]
    run(network, "sltt", inputs, labels)
    sltt = flat(gradients(network))
    draws = []
    passes = []
    for seed in range(100):
        passes.append(run(network, "sltt-a2-unbiased", inputs, labels, seed=seed).backward_passes)
        draws.append(float(flat(gradients(network)) @ sltt / (sltt @ sltt)))
    error = np.std(draws, ddof=1) / len(draws) ** 0.5
    assert 0 < error < 0.2
    assert np.mean(draws) == pytest.approx(1, abs=4 * error)
    assert 1 < np.mean(passes) < 3


@pytest.mark.parametrize("window", [T, 3])
def test_the_unbiased_adaptive_sltt_uses_a_step_with_the_stated_probability_and_its_inverse_as_weight(window):
    """p[t] = min(1, q max(1/4, d[t] / d̄[t])), q = 1 / window. Without memory, step 2 repeats step 1, so d[2] = 0."""
    inputs, labels = one_batch()
    inputs = [scale * inputs[0] for scale in (1, 3, 3, -1, 1.5)]
    network = network_of(LIFParameters(tau=1.0), recurrent=False)
    means: list[Array] = []
    for layer in (module for module in network.modules() if isinstance(module, LIF)):
        layer.register_forward_hook(lambda _, args, spikes: means.append(spikes.detach().mean(0).numpy()))

    def losses(method: str, seed: int) -> list[float]:
        """What the method backpropagates: a step's share of L times its weight."""
        found: list[float] = []
        unroll = Unroll(
            network,
            inputs,
            lambda output: step_loss(output, labels, 0.0, "ones"),
            generator=torch.Generator().manual_seed(seed),
            backward=lambda loss, /, *, retain_graph=False: found.append(loss.item()),
            window=window,
        )
        methods.create(method, T).accumulate_gradients(unroll)
        return found

    shares = losses("sltt", 0)
    activity = [np.concatenate(means[2 * t : 2 * t + 2]) for t in range(T)]
    probabilities: list[float] = []
    differences: list[float] = []
    for t in range(T - window, T):
        ratio = 1.0
        if t > T - window:
            now, last = activity[t], activity[t - 1]
            difference = np.abs(now - last).sum() / (now + last).sum()
            ratio = max(0.25, difference / np.mean(differences)) if any(differences) else 1.0
            differences.append(difference)
        probabilities.append(min(1.0, ratio / window))
    assert len(set(probabilities)) >= window - 1  # the batch tells the cases apart
    for seed in range(20):
        draws = torch.Generator().manual_seed(seed)
        expected = [
            shares[t] / p
            for t, p in enumerate(probabilities, start=T - window)
            if torch.rand((), generator=draws).item() < p
        ]
        assert losses("sltt-a1-unbiased", seed) == pytest.approx(expected or [0.0], rel=1e-5)


# Loss of the mean output ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["bptt", "bptt-ckpt2", "bptt-d1"])
@pytest.mark.parametrize("window", [T, 2])
def test_the_loss_of_the_mean_output_has_the_gradient_of_that_loss(method, window):
    inputs, labels = one_batch()
    network = network_of(LIFParameters(tau=1.6), recurrent=True)
    for module in network.modules():
        if isinstance(module, LIF | Recurrent):
            module.reset_state()
    outputs = [network(x) for x in inputs]
    expected_loss = F.cross_entropy(torch.stack(outputs[-window:]).mean(0), labels)
    expected_loss.backward()
    expected = gradients(network)
    network.zero_grad()
    unroll = unrolled(network, method, inputs, labels, window=window, average="outputs")
    assert relative_difference(gradients(network), expected) < 1e-12
    assert unroll.summed_loss.item() == pytest.approx(expected_loss.item())


def test_the_loss_of_the_mean_output_is_refused_for_a_method_that_goes_backward_before_the_last_step():
    from sltt_bench.planning.recipe import load_recipe
    from sltt_bench.planning.recipe_faults import RecipeError

    chosen = {"loss.average": "outputs"}
    load_recipe("digits", chosen, chosen_methods=["bptt", "bptt-ckpt2", "rate"])
    with pytest.raises(RecipeError, match=r"loss\.average: sltt goes backward before the last step"):
        load_recipe("digits", chosen, chosen_methods=["bptt", "sltt"])
