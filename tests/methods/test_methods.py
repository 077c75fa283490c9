"""The identities between the training methods, for every surrogate, reset mode and both precisions."""

import itertools
import statistics
import sys
from functools import partial
from importlib.metadata import EntryPoint

import pytest
import torch
from one_batch import (
    RESETS,
    batch,
    convolutional_network,
    flat,
    gradients,
    recurrent_network,
    relative_difference,
    run,
)
from typer.testing import CliRunner

from sltt_bench import methods
from sltt_bench.command_line.cli import app
from sltt_bench.losses import step_loss
from sltt_bench.methods import UnknownMethod
from sltt_bench.methods.sltt_k import SLTTK
from sltt_bench.models.layers import SequenceDropout
from sltt_bench.neurons import LIF, LIFParameters, lif_step
from sltt_bench.surrogates import SURROGATES
from sltt_bench.unroll import Unroll

T = 4
ROUNDING = 2e-6
"""Relative difference that another order of float32 additions may make."""

every_neuron = pytest.mark.parametrize(
    "neuron",
    [
        pytest.param(
            LIFParameters(tau=1.5, surrogate=surrogate, **reset),
            id=f"{surrogate}, {name}",
            # In CI each surrogate with one reset and each reset with a surrogate: neither knows of the other.
            marks=[] if number_of_reset == number % len(RESETS) else pytest.mark.long,
        )
        for number, surrogate in enumerate(SURROGATES)
        for number_of_reset, (name, reset) in enumerate(RESETS.items())
    ],
)
both_precisions = pytest.mark.parametrize("precision", ["fp32", "bf16"])
every_network = pytest.mark.parametrize("build", [convolutional_network, recurrent_network])


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in b)


@every_neuron
@every_network
def test_the_batch_of_these_tests_makes_every_layer_fire_and_learn(neuron, build):
    """Without activity the identities below would hold for want of gradients."""
    network = build(neuron)
    rates = []
    for module in network.modules():
        if isinstance(module, LIF):
            module.register_forward_hook(lambda module, args, output: rates.append(output.mean().item()))
    run(network, "sltt", *batch(T))
    assert all(0.02 < rate < 0.8 for rate in rates)
    assert all(gradient.norm() > 0 for gradient in gradients(network).values())


@every_neuron
@both_precisions
@every_network
def test_at_one_time_step_all_methods_give_the_same_gradient(neuron, precision, build):
    network = build(neuron)
    results = []
    for method in ("bptt", "sltt", "sltt-k1", "sltt-k1-unbiased"):
        run(network, method, *batch(1), precision=precision)
        results.append({k: p.grad.clone() for k, p in network.named_parameters() if p.grad is not None})
    assert flat(results[0]).norm() > 0
    assert all(same(result, results[0]) for result in results)


@every_neuron
@both_precisions
@every_network
def test_sltt_k_with_all_steps_is_sltt(neuron, precision, build):
    network = build(neuron)
    run(network, "sltt", *batch(T), precision=precision)
    sltt = gradients(network)
    for method in (f"sltt-k{T}", f"sltt-k{T}-unbiased"):
        run(network, method, *batch(T), precision=precision)
        assert same(gradients(network), sltt)


@every_neuron
@both_precisions
@every_network
def test_all_methods_put_out_the_same_and_have_the_same_loss(neuron, precision, build):
    unrolls = [
        run(build(neuron), method, *batch(T), precision=precision)
        for method in ("bptt", "sltt", "sltt-k1", "sltt-k2", "sltt-k3-unbiased")
    ]
    for unroll in unrolls[1:]:
        assert torch.equal(unroll.summed_outputs, unrolls[0].summed_outputs)
        assert torch.equal(unroll.summed_loss, unrolls[0].summed_loss)


@every_neuron
@both_precisions
def test_without_memory_of_the_past_bptt_is_sltt(neuron, precision):
    """τ = 1, so λ = 0: no gradient can flow through time."""
    forgetful = LIFParameters(
        tau=1.0,
        reset=neuron.reset,
        v_reset=neuron.v_reset,
        detach_reset=neuron.detach_reset,
        surrogate=neuron.surrogate,
    )
    network = convolutional_network(forgetful)
    run(network, "bptt", *batch(T), precision=precision)
    bptt = gradients(network)
    run(network, "sltt", *batch(T), precision=precision)
    assert relative_difference(gradients(network), bptt) < ROUNDING


@every_neuron
@every_network
def test_with_memory_of_the_past_bptt_has_a_temporal_part_that_sltt_leaves_out(neuron, build):
    network = build(neuron)
    run(network, "bptt", *batch(T))
    bptt = gradients(network)
    run(network, "sltt", *batch(T))
    assert relative_difference(gradients(network), bptt) > 1e-2


@both_precisions
def test_sltt_k_is_the_sum_of_the_chosen_steps_gradients(precision):
    network = convolutional_network(LIFParameters())
    of_step = {}
    for seed in range(40):  # until a draw of one step has hit each
        run(network, "sltt-k1", *batch(T), precision=precision, seed=seed)
        of_step[chosen(1, seed)[0]] = flat(gradients(network))
    assert sorted(of_step) == list(range(T))
    run(network, "sltt", *batch(T), precision=precision)
    assert torch.allclose(flat(gradients(network)), sum(of_step.values()), rtol=1e-4, atol=1e-6)
    for seed in range(10):
        for k in range(1, T + 1):
            run(network, f"sltt-k{k}", *batch(T), precision=precision, seed=seed)
            expected = sum(of_step[t] for t in chosen(k, seed))
            assert torch.allclose(flat(gradients(network)), expected, rtol=1e-4, atol=1e-6)


def chosen(k: int, source: int | torch.Generator) -> list[int]:
    """The steps that SLTT-K draws, seen from outside: those that run with gradients enabled.

    `source` of the draw is a seed or a generator.
    """
    seen = []

    class Steps:
        timesteps = T
        generator = torch.Generator().manual_seed(source) if isinstance(source, int) else source

        def detach_state(self) -> None:
            pass

        def step(self, t: int) -> torch.Tensor:
            if torch.is_grad_enabled():
                seen.append(t)
            return torch.zeros(())

        def backward(self, loss: torch.Tensor) -> None:
            pass

    SLTTK(k).accumulate_gradients(Steps())
    return seen


@pytest.mark.parametrize("k", range(1, T + 1))
def test_every_set_of_k_steps_is_drawn_equally_often(k):
    draws = 1200
    counts = dict.fromkeys(itertools.combinations(range(T), k), 0)
    for seed in range(draws):
        counts[tuple(chosen(k, seed))] += 1
    p = 1 / len(counts)
    standard_error = (draws * p * (1 - p)) ** 0.5
    assert all(abs(count - draws * p) <= 4 * standard_error for count in counts.values())


@pytest.mark.parametrize(
    ("method", "share"), [("sltt-k1", 1 / T), ("sltt-k3", 3 / T), ("sltt-k2-unbiased", 1)]
)
def test_the_expected_gradient_of_sltt_k_is_k_over_t_of_slttss(method, share):
    """Seen along SLTT's gradient g: ⟨g_K, g⟩ / ⟨g, g⟩ has the mean K/T, or 1 where it is unbiased."""
    network = convolutional_network(LIFParameters())
    inputs, labels = batch(T)
    inputs = [strength * x for strength, x in zip((0.2, 1.0, 2.0, 5.0), inputs, strict=True)]
    run(network, "sltt", inputs, labels)
    sltt = flat(gradients(network))
    projections = []
    for seed in range(60):
        run(network, method, inputs, labels, seed=seed)
        projections.append(float(flat(gradients(network)) @ sltt / (sltt @ sltt)))
    standard_error = statistics.stdev(projections) / len(projections) ** 0.5
    assert 0 < standard_error < 0.1
    assert statistics.mean(projections) == pytest.approx(share, abs=4 * standard_error)


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize(("method", "share"), [("sltt-k2", 2 / T), ("sltt-k2-unbiased", 1)])
def test_the_mean_gradient_of_sltt_k_over_all_draws_is_that_share_of_slttss(method, share, window):
    """Also where the loss counts some steps only: the draw is from all T of them."""
    network = recurrent_network(LIFParameters())
    inputs, labels = batch(T)
    run(network, "sltt", inputs, labels, window=window)
    sltt = flat(gradients(network))
    draws = list(itertools.combinations(range(T), 2))
    network.zero_grad()
    for steps in draws:
        loss = partial(step_loss, labels=labels, alpha=0.05, mse_target="ones")
        unroll = Unroll(network, inputs, loss, generator=torch.Generator(), window=window)
        methods.create(method, T).at(steps).accumulate_gradients(unroll)
    mean = flat(gradients(network)) / len(draws)
    torch.testing.assert_close(mean, share * sltt, rtol=1e-4, atol=1e-6)


def test_sltt_k_draws_anew_for_every_iteration():
    """Two iterations that share a generator: all 16 pairs of single steps occur."""
    generator = torch.Generator().manual_seed(0)
    draws = [chosen(1, generator)[0] for _ in range(200)]
    assert len(set(itertools.pairwise(draws))) == T * T


@pytest.mark.parametrize("k", [0, T + 1, 100])
@pytest.mark.parametrize("suffix", ["", "-unbiased"])
def test_k_outside_1_to_t_is_refused(k, suffix):
    name = f"sltt-k{k}{suffix}"
    message = f"method '{name}': sltt-kN{suffix} needs 1 ≤ N ≤ T, but N = {k} and T = {T}"
    with pytest.raises(UnknownMethod, match=message):
        methods.create(name, T)
    with pytest.raises(UnknownMethod, match=message):
        methods.check(name, T)


@pytest.mark.parametrize(
    ("name", "plain"),
    [("sltt-k02", "sltt-k2"), ("tbptt-w002", "tbptt-w2"), ("bptt-d.50", "bptt-d0.5"), ("bptt-d1.0", "bptt-d1"),
     ("pp-prop-a0.0", "pp-prop-a0"), ("sltt-k01-unbiased", "sltt-k1-unbiased")],
)  # fmt: skip
def test_a_rule_has_one_name(name: str, plain: str) -> None:
    """Under two it would be two methods of a table, with seeds of their own."""
    with pytest.raises(UnknownMethod, match=f"method '{name}' is written '{plain}'"):
        methods.check(name, T)
    methods.check(plain, T)


@pytest.mark.parametrize("name", ["sltt-k", "tbptt-w", "bptt-ckpt"])
def test_a_number_of_thousands_of_digits_is_refused_as_any_other_that_is_too_large(name: str) -> None:
    with pytest.raises(UnknownMethod, match="the number in its name is too large"):
        methods.promises(name + "9" * 5000)


@pytest.mark.parametrize(
    "name", ["sltt-k", "sltt-k-1", "sltt-k\u0662", "slttk2", "SLTT", "bptt ", "sltt-k2.5", ""]
)
def test_an_unknown_method_is_refused_with_the_known_ones(name):
    with pytest.raises(
        UnknownMethod, match="known: bptt, bptt-ckptN, bptt-dX, bptt-lN, tbptt-wN, sltt, sltt-kN"
    ):
        methods.check(name, T)


def test_each_example_is_the_name_of_a_method_and_each_label_has_one():
    assert len(methods.examples()) == len(methods.labels())
    for name in methods.examples():
        methods.check(name, T)


def test_the_k_of_a_method_can_be_asked():
    names = ("bptt", "sltt", "sltt-k4", "sltt-k12-unbiased")
    assert [methods.backward_steps(name) for name in names] == [None, None, 4, 12]


@pytest.mark.parametrize("method", ["bptt", "sltt", "sltt-k1", "sltt-k2"])
@both_precisions
def test_running_statistics_see_all_steps_under_every_method(method, precision):
    """The first layer's statistics by hand: μ ← 0.9 μ + 0.1 mean over batch and image, at each step."""
    network = convolutional_network(LIFParameters())
    inputs, labels = batch(T)
    run(network, method, inputs, labels, precision=precision)
    mean, variance = torch.zeros(6), torch.ones(6)
    for x in inputs:
        convolved = network.conv1(x).detach()
        mean = 0.9 * mean + 0.1 * convolved.mean((0, 2, 3))
        variance = 0.9 * variance + 0.1 * convolved.var((0, 2, 3))
    tolerance = 1e-5 if precision == "fp32" else 2e-2
    assert network.norm1.num_batches_tracked == T
    assert torch.allclose(network.norm1.running_mean, mean, atol=tolerance)
    assert torch.allclose(network.norm1.running_var, variance, rtol=tolerance)


@both_precisions
def test_all_buffers_are_the_same_after_every_method(precision):
    states = []
    for method in ("bptt", "sltt", "sltt-k1", "sltt-k3"):
        network = convolutional_network(LIFParameters(), dropout=0.5)
        run(network, method, *batch(T), precision=precision)
        states.append(dict(network.named_buffers()))
    assert all(same(state, states[0]) for state in states)


@pytest.mark.parametrize("method", ["bptt", "sltt", "sltt-k2"])
def test_every_method_drops_the_same_activations_at_all_steps(method):
    network = convolutional_network(LIFParameters(), dropout=0.5)
    silenced = []
    ones = [torch.ones_like(x) for x in batch(T)[0]]

    def always_firing(
        module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor
    ) -> torch.Tensor:
        return torch.ones_like(output)

    network.flatten.register_forward_hook(always_firing)
    network.dropout.register_forward_hook(lambda module, inputs, output: silenced.append(output == 0))
    run(network, method, ones, batch(T)[1])
    assert len(silenced) == T
    assert 0 < silenced[0].float().mean() < 1
    assert all(torch.equal(mask, silenced[0]) for mask in silenced)


def test_dropout_scales_what_it_keeps_and_draws_anew_for_every_sequence():
    torch.manual_seed(0)
    dropout = SequenceDropout(0.3)
    first = dropout(torch.ones(100, 100))
    assert first.unique().tolist() == [0, pytest.approx(1 / 0.7)]
    assert (first == 0).float().mean().item() == pytest.approx(0.3, abs=4 * (0.21 / 10_000) ** 0.5)
    assert torch.equal(dropout(torch.ones(100, 100)), first)
    dropout.reset_state()
    assert not torch.equal(dropout(torch.ones(100, 100)), first)


def test_dropout_does_nothing_in_evaluation_and_at_rate_zero():
    x = torch.randn(5, 5)
    assert torch.equal(SequenceDropout(0.9).eval()(x), x)
    assert torch.equal(SequenceDropout(0.0)(x), x)


def test_no_gradient_flows_through_dropped_activations():
    x = torch.ones(1000, requires_grad=True)
    y = SequenceDropout(0.25)(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_sltt_holds_no_graph_after_its_last_backward_pass_but_the_last_steps():
    """Once the state is detached, what remains of an iteration is values alone."""
    network = recurrent_network(LIFParameters())
    run(network, "sltt", *batch(T)).detach_state()
    carried = [m.potential for m in network.modules() if hasattr(m, "potential")]
    carried += [m.spikes for m in network.modules() if hasattr(m, "spikes")]
    assert len(carried) == 4
    assert not any(state.requires_grad for state in carried)


@pytest.mark.parametrize("method", ["bptt", "sltt", "sltt-k2"])
def test_only_the_steps_of_the_window_count_for_loss_and_prediction(method):
    network = convolutional_network(LIFParameters())
    inputs, labels = batch(T)
    outputs = []
    network.register_forward_hook(lambda module, args, output: outputs.append(output.detach()))
    unroll = run(network, method, inputs, labels, alpha=0.0, window=2)
    losses = [torch.nn.functional.cross_entropy(output, labels) for output in outputs]
    assert torch.allclose(unroll.summed_outputs, outputs[-2] + outputs[-1])
    assert unroll.summed_loss.item() == pytest.approx((losses[-2] + losses[-1]).item() / 2)


def test_the_equations_of_every_method_are_shown_with_their_source():
    for name in (
        "bptt",
        "bptt-ckpt2",
        "bptt-d0.5",
        "tbptt-w2",
        "sltt-k2",
        "sltt-a",
        "ottt-o",
        "s-tllr",
        "rate",
    ):
        result = CliRunner().invoke(app, ["show", name])
        assert result.exit_code == 0
        assert methods.explanation(name).splitlines()[0] in result.output
        assert "Source:" in result.output or "Meng et al. 2023" in result.output
    assert "a[t] = λ a[t−1] + x[t]" in methods.explanation("ottt")
    assert all(summary.count(";") >= 2 for _, summary in methods.descriptions())


def test_of_several_plug_ins_in_one_module_each_is_explained_by_its_own_words(monkeypatch):
    def factory(match, timesteps):
        """Feedback through fixed random weights."""

    monkeypatch.setitem(methods.METHODS, "fixed-feedback", factory)
    assert methods.explanation("fixed-feedback") == "Feedback through fixed random weights."
    del factory.__doc__
    assert methods.explanation("fixed-feedback") == sys.modules[__name__].__doc__


def test_the_past_of_one_layer_alone_reaches_its_gradient():
    """bptt-lN on two layers of neurons, against a computation in which the other layer's state is a constant."""
    parameters = LIFParameters(tau=3.0, surrogate="sigmoid")
    torch.manual_seed(0)
    first, second = torch.randn(5, 4, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    xs = torch.randn(4, 6, 4, dtype=torch.float64)
    labels = torch.arange(6) % 3

    def by_hand(kept: int) -> list[torch.Tensor]:
        w, v = first.clone().requires_grad_(), second.clone().requires_grad_()
        states: list[torch.Tensor | None] = [None, None]
        loss = torch.zeros((), dtype=torch.float64)
        for x in xs:
            states = [s if s is None or n == kept else s.detach() for n, s in enumerate(states, start=1)]
            spikes, states[0] = lif_step(x @ w.T, states[0], parameters)
            out, states[1] = lif_step(spikes @ v.T, states[1], parameters)
            loss = loss + torch.nn.functional.cross_entropy(out, labels) / len(xs)
        return list(torch.autograd.grad(loss, [w, v]))

    network = torch.nn.Sequential(
        torch.nn.Linear(4, 5, bias=False), LIF(parameters), torch.nn.Linear(5, 3, bias=False), LIF(parameters)
    ).double()
    with torch.no_grad():
        network[0].weight.copy_(first)
        network[2].weight.copy_(second)
    actual = {}
    for kept in (1, 2):
        network.zero_grad()
        unroll = Unroll(
            network,
            list(xs),
            lambda output: torch.nn.functional.cross_entropy(output, labels),
            generator=torch.Generator(),
        )
        methods.create(f"bptt-l{kept}", 4).accumulate_gradients(unroll)
        actual[kept] = [network[0].weight.grad.clone(), network[2].weight.grad.clone()]
        for gradient, expected in zip(actual[kept], by_hand(kept), strict=True):
            assert torch.allclose(gradient, expected, atol=1e-12)
    assert not torch.allclose(actual[1][0], actual[2][0])
    with pytest.raises(ValueError, match="no layer of neurons 3: the network has 2"):
        methods.create("bptt-l3", 4).accumulate_gradients(unroll)


@pytest.mark.parametrize("timesteps", [1, T])
def test_a_layer_that_there_is_not_is_refused_whatever_t_is(timesteps):
    with pytest.raises(ValueError, match="no layer of neurons 3: the network has 2"):
        run(convolutional_network(LIFParameters()), "bptt-l3", *batch(timesteps))


@pytest.mark.parametrize(
    ("pattern", "declared", "label"),
    [
        ("mine", None, "mine"),
        (r"mine-k(?P<k>\d+)", "mine-kN", "mine-kN"),
        (r"damped-(?P<beta>\d+(?:\.\d+)?)-w(?P<w>[0-9]{1,3})", "damped-X-wN", "damped-X-wN"),
        (r"mine-k(?P<k>\d+)", None, r"mine-k(?P<k>\d+)"),
        (r"mine-k(?P<k>\d+)", "mine-wN", r"mine-k(?P<k>\d+)"),  # a label that is no name of it
        ("(", "mine", "("),
    ],
)
def test_a_plug_in_is_listed_by_the_label_that_it_declares_else_by_its_expression(
    pattern: str, declared: str | None, label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def factory(match, timesteps): ...

    if declared is not None:
        factory.label = declared
    monkeypatch.setattr(methods, "load_plugin", lambda plugin: factory)
    assert methods.label_of(EntryPoint(pattern, "my_methods:factory", "sltt_bench.methods")) == label


def test_a_plug_in_that_cannot_be_loaded_is_listed_by_its_expression() -> None:
    assert methods.label_of(EntryPoint("mine", "no_such_module:factory", "sltt_bench.methods")) == "mine"
