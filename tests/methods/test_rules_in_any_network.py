"""Rules with traces in networks of any shape, computed a second time without hooks on saved tensors.

There the weight gradient of a synaptic layer comes from a call of its own: that of δ · layer(a) by W, with trace a.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sltt_bench import methods
from sltt_bench.losses import step_loss
from sltt_bench.models.mlp import Recurrent
from sltt_bench.models.nf_resnet import ScaledWSConv2d
from sltt_bench.models.normalisation import ScaledWSLinear
from sltt_bench.neuron_kinds import Readout
from sltt_bench.neurons import (
    LIF,
    LIFParameters,
    Stateful,
    detach_state,
    integrate,
    pseudo_derivative,
    reset_state,
    state_derivative,
)
from sltt_bench.synapses import SYNAPTIC, weights_of
from sltt_bench.unroll import Unroll

T, BATCH, CLASSES = 4, 5, 3
TAU = 2.0
DECAY = {"ottt": 1 - 1 / TAU, "e-prop": 1 - 1 / TAU, "s-tllr": 0.75, "pp-prop": 0.9}
"""Rule → decay of its traces of inputs."""


def neuron(threshold: float = 1.0) -> LIF:
    return LIF(LIFParameters(tau=TAU, v_threshold=threshold))


class Written(Stateful):
    """A network of named parts and a forward function of them."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self._forward = forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


class Feedback(Written):
    carried = ("spikes",)
    spikes: Tensor | None = None


def fed_back(net: Any, x: Tensor) -> Tensor:
    current = net.a(x)
    if net.spikes is not None:
        current = current + net.back(net.spikes)
    net.spikes = net.n2(net.b(net.n1(current)))
    return net.r(net.spikes)


def across_neurons(net: Any, x: Tensor) -> Tensor:
    spikes = net.n1(net.a(x))
    spikes = spikes + net.n2(net.b(spikes))
    return net.r(net.n3(net.c(torch.cat([spikes, x], 1)))) + net.direct(x)


def of_currents(net: Any, x: Tensor) -> Tensor:
    current = net.a(x)
    return net.r(net.n2(current + net.b(net.n1(current))))


def gated(net: Any, x: Tensor) -> Tensor:
    return net.r(net.n3(net.c(net.n1(net.a(x))) * torch.sigmoid(net.d(net.n2(net.b(x))))))


def of_tokens(net: Any, x: Tensor) -> Tensor:
    tokens = net.n1(net.embedding(x.view(-1, 1, 4, 3))).flatten(2).transpose(1, 2)
    return net.r(net.n2(net.norm(net.b(tokens))).mean(1))


def tied() -> nn.Module:
    one, other = nn.Linear(8, 8), nn.Linear(8, 8)
    other.weight = one.weight
    return nn.Sequential(nn.Linear(12, 8), neuron(), one, neuron(), other, neuron(), nn.Linear(8, CLASSES))


def first_frozen() -> nn.Module:
    network = nn.Sequential(nn.Linear(12, 8), neuron(), nn.Linear(8, 8), neuron(), nn.Linear(8, CLASSES))
    network[0].requires_grad_(False)
    return network


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "shortcuts across neurons": lambda: Written(
        across_neurons, a=nn.Linear(12, 8), n1=neuron(), b=nn.Linear(8, 8), n2=neuron(), c=nn.Linear(20, 8), n3=neuron(),
        r=nn.Linear(8, CLASSES), direct=nn.Linear(12, CLASSES),
    ),
    "shortcuts of currents": lambda: Written(
        of_currents, a=nn.Linear(12, 8), n1=neuron(), b=nn.Linear(8, 8), n2=neuron(), r=nn.Linear(8, CLASSES)
    ),
    "branches that multiply": lambda: Written(
        gated, a=nn.Linear(12, 6), b=nn.Linear(12, 9), n1=neuron(), n2=neuron(), c=nn.Linear(6, 8), d=nn.Linear(9, 8),
        n3=neuron(), r=nn.Linear(8, CLASSES),
    ),
    "tokens": lambda: Written(
        of_tokens, embedding=nn.Conv2d(1, 8, (2, 1), stride=(2, 1)), n1=neuron(), b=nn.Linear(8, 8), norm=nn.LayerNorm(8),
        n2=neuron(), r=nn.Linear(8, CLASSES),
    ),
    "two layers of neurons in a row": lambda: nn.Sequential(
        nn.Linear(12, 8), neuron(), neuron(0.6), nn.Linear(8, CLASSES)
    ),
    "neurons first and last": lambda: nn.Sequential(
        neuron(), nn.Linear(12, 8), neuron(), nn.Linear(8, CLASSES), neuron()
    ),
    "feedback from a later layer": lambda: Feedback(
        fed_back, a=nn.Linear(12, 8), b=nn.Linear(8, 7), n1=neuron(), n2=neuron(), back=nn.Linear(7, 8),
        r=nn.Linear(7, CLASSES),
    ),
    "recurrent, with a leaky readout": lambda: nn.Sequential(
        Recurrent(nn.Linear(12, 8, bias=False), neuron(), nn.BatchNorm1d(8)), nn.Linear(8, CLASSES), Readout(4.0)
    ),
    "standardised and transposed": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 4, 3)), ScaledWSConv2d(1, 4, 3, stride=2), neuron(), nn.ConvTranspose2d(4, 3, 2), neuron(),
        nn.Flatten(), ScaledWSLinear(27, 8), neuron(), nn.Linear(8, CLASSES),
    ),
    "tied weights": tied,
    "first layer frozen": first_frozen,
}  # fmt: skip


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    network = NETWORKS[name]().double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= 2.5 if parameter.dim() > 1 else 1
    return network


def batch() -> tuple[list[Tensor], Tensor]:
    steps = 2 * torch.randn(T, BATCH, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return list(steps), torch.arange(BATCH) % CLASSES


class SecondWay:
    """A rule's gradient of one batch by names of parameters, in `gradient`."""

    def __init__(self, network: nn.Module, rule: str) -> None:
        self.network, self.rule = network, rule
        self.gradient = {n: torch.zeros_like(p) for n, p in network.named_parameters() if p.requires_grad}
        self._names = {parameter: name for name, parameter in network.named_parameters()}
        self._traces: dict[nn.Module, Tensor] = {}
        self._read_input: set[nn.Module] = set()
        self._of_neurons: dict[nn.Module, tuple[Tensor, Tensor | None]] = {}
        self._calls: list[tuple[nn.Module, Tensor, Tensor]] = []
        """(synaptic layer, input, output) of this step."""
        self._fired: list[tuple[LIF, Tensor, Tensor, Tensor]] = []
        """(layer of neurons, I[t], u[t], s[t]) of this step."""
        for layer in network.modules():
            if isinstance(layer, SYNAPTIC):
                layer.register_forward_hook(lambda layer, args, y: self._calls.append((layer, args[0], y)))
            if isinstance(layer, LIF):
                layer.register_forward_pre_hook(self._integrate)
                layer.register_forward_hook(self._fire)

    def _integrate(self, layer: Any, args: Any) -> None:
        self._fired.append(
            (layer, args[0], integrate(args[0], layer.potential, layer.parameters_).detach(), args[0])
        )

    def _fire(self, layer: Any, args: Any, spikes: Tensor) -> Tensor:
        spikes = spikes if spikes.requires_grad else spikes.detach().requires_grad_()
        self._fired[-1] = (*self._fired[-1][:3], spikes)
        return spikes

    def step(self, t: int, x: Tensor, labels: Tensor) -> None:
        detach_state(self.network)
        self._calls, self._fired = [], []
        loss = step_loss(self.network(x), labels, 0.05, "ones") / T
        if t == 0:
            self._read_input = {layer for layer, x, _ in self._calls if not x.requires_grad}
        weights = {weight for layer, _, _ in self._calls for weight in weights_of(layer)}
        others = [
            parameter for parameter in self._names if parameter.requires_grad and parameter not in weights
        ]
        if others:
            self._add(others, _gradients(loss, others))
        to_trace = [self._traced(layer, x, y) for layer, x, y in self._calls]
        outputs = [y for _, _, y in self._calls]
        for (layer, _, _), trace, error in zip(self._calls, to_trace, _gradients(loss, outputs), strict=True):
            self._add_weights(layer, trace, error)
        spikes = [s for *_, s in self._fired]
        for (layer, current, u, s), signal in zip(self._fired, _gradients(loss, spikes), strict=True):
            error = self._local_error(t, layer, u, s.detach(), signal)
            if error is None or any(current is s for s in spikes):
                continue
            closed = [s.register_hook(torch.zeros_like) for s in spikes if s is not current]
            local = _gradients(current, outputs, error)
            for handle in closed:
                handle.remove()
            for (synapses, x, _), trace, local_error in zip(self._calls, to_trace, local, strict=True):
                self._add_weights(synapses, trace if self.rule == "pp-prop" else x.detach(), local_error)

    def _traced(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """a[t], or x[t] where the rule has no trace."""
        x = x.detach()
        self._traces[layer] = x if layer not in self._traces else DECAY[self.rule] * self._traces[layer] + x
        if self.rule == "ottt":
            return x if layer in self._read_input else self._traces[layer]
        feeds_neurons = any(_gradients(current.sum(), [y])[0] is not None for _, current, _, _ in self._fired)
        return self._traces[layer] if feeds_neurons else x

    def _local_error(self, t: int, layer: LIF, u: Tensor, s: Tensor, signal: Tensor | None) -> Tensor | None:
        """What pp-prop's state trace and S-TLLR's non-causal term add at I[t], outside the graph."""
        psi, before = pseudo_derivative(u, layer.parameters_), self._of_neurons.get(layer)
        if self.rule == "pp-prop":
            alpha = DECAY[self.rule]
            trace = torch.full_like(u, 1 - alpha)
            if before is not None:
                trace = trace + alpha * before[1] * before[0]
            self._of_neurons[layer] = trace, state_derivative(u, s, layer.parameters_)
            return None if signal is None else signal * psi * (trace / (1 - alpha ** (t + 1)) - 1)
        if self.rule == "s-tllr":
            self._of_neurons[layer] = psi if before is None else 0.2 * before[0] + psi, None
            return None if signal is None or before is None else -signal * before[0]
        return None

    def _add_weights(self, layer: nn.Module, x: Tensor, error: Tensor | None) -> None:
        trained = [weight for weight in weights_of(layer) if weight.requires_grad]
        if error is not None and trained:
            self._add(trained, _gradients(type(layer).forward(layer, x), trained, error))

    def _add(self, parameters: list[nn.Parameter], gradients: list[Tensor | None]) -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                self.gradient[self._names[parameter]] += gradient


def _gradients(of: Tensor, to: list[Any], error: Tensor | None = None) -> list[Tensor | None]:
    """None for what does not depend on it."""
    reached = [tensor for tensor in to if tensor.requires_grad]
    if not reached or not of.requires_grad:
        return [None] * len(to)
    found = torch.autograd.grad(of, reached, error, retain_graph=True, allow_unused=True)
    by_tensor = dict(zip(map(id, reached), found, strict=True))
    return [by_tensor.get(id(tensor)) for tensor in to]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("rule", DECAY)
def test_a_rule_with_traces_computed_a_second_way_has_the_same_gradient(rule: str, network: str) -> None:
    steps, labels = batch()
    through_code, other = built(network), SecondWay(built(network), rule)
    unroll = Unroll(
        through_code,
        steps,
        partial(step_loss, labels=labels, alpha=0.05, mse_target="ones"),
        generator=torch.Generator(),
    )
    methods.create(rule, T).accumulate_gradients(unroll)
    reset_state(other.network)
    for t, x in enumerate(steps):
        other.step(t, x, labels)
    for name, expected in other.gradient.items():
        gradient = through_code.get_parameter(name).grad
        torch.testing.assert_close(
            gradient, expected, rtol=1e-9, atol=1e-12, msg=lambda text, n=name: f"{n}: {text}"
        )
    assert all(expected.norm() > 1e-4 for expected in other.gradient.values())
