"""The normalisations of a network: their formulas, whom they serve, and who is refused by name."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from one_batch import CLASSES, INPUT_SHAPE, batch, flat, gradients, run
from torch import Tensor, nn

from sltt_bench import backends, methods, models
from sltt_bench.analysis.plan import plan_analysis
from sltt_bench.losses import step_loss
from sltt_bench.models.mlp import Recurrent
from sltt_bench.models.normalisation import KINDS, TimeBatchNorm
from sltt_bench.models.options import CNNOptions, MLPOptions, PreActResNetOptions, VGGOptions
from sltt_bench.neurons import LIF, LIFParameters, lif_step, reset_state
from sltt_bench.planning.plan import Request
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.planning.recipe_faults import RecipeError
from sltt_bench.unroll import Unroll

T = 4
NEURON = LIFParameters(tau=2.0, v_threshold=0.5)
STEP_BY_STEP = [kind for kind in KINDS if kind != "tdbn"]


def network(options) -> nn.Module:
    torch.manual_seed(0)
    return models.build(
        options, neuron=lambda: LIF(NEURON), input_shape=INPUT_SHAPE, classes=CLASSES, timesteps=T,
        v_threshold=NEURON.v_threshold,
    ).double()  # fmt: skip


def convolutional(kind: str) -> nn.Module:
    return network(CNNOptions(channels=[6, 8], normalisation=kind))


def doubles(timesteps: int) -> tuple[list[Tensor], Tensor]:
    inputs, labels = batch(timesteps)
    return [x.double() for x in inputs], labels


def gradient(kind: str, method: str, timesteps: int = T) -> Tensor:
    built = convolutional(kind)
    run(built, method, *doubles(timesteps))
    if kind == "bntt":  # the parameters of other steps have none
        return flat({n: p.grad for n, p in built.named_parameters() if p.grad is not None})
    return flat(gradients(built))


# --- tdBN -------------------------------------------------------------------------------------------------


def normalised_over_time(currents: Tensor, norm: nn.Module) -> Tensor:
    """[T, batch, C, H, W] by the textbook."""
    over = (0, 1, 3, 4)
    mean = currents.mean(over, keepdim=True)
    variance = ((currents - mean) ** 2).mean(over, keepdim=True)
    gamma, beta = (p.view(1, 1, -1, 1, 1) for p in (norm.weight, norm.bias))
    return (currents - mean) / (variance + 1e-5).sqrt() * gamma + beta


def test_tdbn_is_batch_norm_over_all_steps_layer_by_layer_and_bptt_through_it():
    built = convolutional("tdbn")
    inputs, labels = doubles(T)
    unroll = run(built, "bptt", inputs, labels)
    through_code = gradients(built)
    built.zero_grad()
    x = torch.stack(inputs)
    for number in (1, 2):
        convolution, norm = built.get_submodule(f"conv{number}"), built.get_submodule(f"norm{number}")
        assert torch.all(norm.weight == NEURON.v_threshold)
        currents = normalised_over_time(torch.stack([convolution(step) for step in x]), norm)
        potential, spikes = None, []
        for current in currents:
            s, potential = lif_step(current, potential, NEURON)
            spikes.append(s)
        x = torch.stack([F.avg_pool2d(s, 2) for s in spikes])
    outputs = [built.classifier(step.flatten(1)) for step in x]
    loss = sum(step_loss(o, labels, 0.05, "ones") for o in outputs) / T
    loss.backward()
    torch.testing.assert_close(unroll.summed_outputs, sum(outputs).detach().float())
    torch.testing.assert_close(flat(through_code), flat(gradients(built)), rtol=1e-9, atol=1e-12)
    assert flat(through_code).norm() > 1e-3


def test_tdbn_learns_statistics_over_all_steps_once_an_iteration_and_evaluates_step_by_step():
    built = convolutional("tdbn")
    inputs, labels = doubles(T)
    run(built, "bptt", inputs, labels)
    currents = torch.stack([built.conv1(x) for x in inputs]).transpose(0, 2).flatten(1)
    torch.testing.assert_close(built.norm1.running_mean, 0.1 * currents.mean(1))
    torch.testing.assert_close(built.norm1.running_var, 0.9 + 0.1 * currents.var(1))
    assert built.norm1.num_batches_tracked == 1
    built.eval()
    alone = Unroll(built, inputs[:2], partial(step_loss, labels=labels, alpha=0.0, mse_target="ones"),
                   generator=torch.Generator())  # fmt: skip
    for t in range(2):
        alone.step(t)
    reset_state(built)
    expected = built(inputs[0]) + built(inputs[1])
    torch.testing.assert_close(alone.summed_outputs, expected.detach().float())


def test_dropout_under_tdbn_has_one_mask_for_all_steps():
    built = network(CNNOptions(channels=[6, 8], normalisation="tdbn", dropout=0.5))
    masks = []
    built.dropout.register_forward_hook(lambda layer, args, output: masks.append(layer.dropped))
    inputs, labels = doubles(T)
    run(built, "bptt", inputs, labels)
    assert len(masks) == 1
    assert masks[0].shape == (len(labels), 8)


def test_every_rule_but_bptt_is_refused_by_name_where_layers_see_all_steps():
    fields = {"model.normalisation": "tdbn"}
    assert load_recipe("digits", fields, chosen_methods=["bptt"]).model.needs == {"sequence"}
    names = ["sltt", "sltt-k2", "sltt-a", "bptt-ckpt2", "bptt-d0.5", "tbptt-w2", "ottt", "ottt-o", "s-tllr", "pp-prop",
             "e-prop", "rate", "bptt-l1", "conversion"]  # fmt: skip
    families = {entry.module for entry in methods.METHODS.values()}
    assert len({methods._find(name)[1].module for name in names}) == len(families) - 1
    for name in names:
        with pytest.raises(RecipeError, match=f"method '{name}' goes through the network step by step.*tdbn"):
            load_recipe("digits", fields, chosen_methods=[name])
        if name == "conversion":
            continue  # a single step, for which tdBN is the batch norm of it
        with pytest.raises(NotImplementedError, match="sees all steps at once"):
            run(convolutional("tdbn"), name, *doubles(T))
    with pytest.raises(RecipeError, match=r"model\.normalisation: tdbn leaves no gradient of a single step"):
        plan_analysis("digits", Request(grid=(fields,), methods=["bptt"]), epochs="0", batches=1)


class CallsItsNeuronsTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm, self.neuron = TimeBatchNorm(4, 0.5), LIF(NEURON)

    def forward(self, x):
        return self.neuron(self.second(self.neuron(self.norm(self.first(x)))))


@pytest.mark.parametrize(
    ("built", "fault"),
    [
        (
            Recurrent(nn.Linear(4, 4), LIF(NEURON), TimeBatchNorm(4, 0.5)),
            "a TimeBatchNorm .* lies within the layer '0', which",
        ),
        (CallsItsNeuronsTwice(), "a LIF is called more than once in a step"),
    ],
    ids=["within a recurrent layer", "shared neurons"],
)
def test_own_networks_are_refused_that_cannot_go_through_whole_sequences(built, fault):
    """The first would be normalised step by step, the second would go through its steps in another order, unsaid."""
    with pytest.raises(NotImplementedError, match=fault):
        run(nn.Sequential(built), "bptt", [torch.randn(3, 4) for _ in range(T)], torch.arange(3))


def test_a_recurrent_layer_behind_tdbn_adds_the_gradients_of_its_steps_in_float32():
    """In bf16, each step's own is rounded; their sum is not, as little as where a network goes step by step."""
    torch.manual_seed(0)
    layer = Recurrent(nn.Linear(6, 6), LIF(NEURON))
    built = nn.Sequential(nn.Flatten(), nn.Linear(32, 6), TimeBatchNorm(6, 0.5), layer, nn.Linear(6, CLASSES))
    parts = []
    layer.recurrent.register_forward_pre_hook(lambda linear, args: parts.append(args[0]))
    errors = []
    layer.recurrent.register_full_backward_hook(lambda linear, inputs, outputs: errors.append(outputs[0]))
    run(built, "bptt", *batch(8), precision="bf16")
    assert len(errors) == len(parts) == 7
    exact = sum((e.T @ s).double() for e, s in zip(errors, reversed(parts), strict=True))
    gradient = layer.recurrent.weight.grad
    assert (gradient - exact).norm() < 1e-6 * exact.norm()


def test_tdbn_is_refused_where_it_cannot_be():
    with pytest.raises(RecipeError, match="a recurrent layer goes step by step"):
        load_recipe("sequential-digits", {"model.normalisation": "tdbn"}, chosen_methods=["bptt"])
    with pytest.raises(RecipeError, match="synchronise_batch_norm is for the batch norm of images"):
        load_recipe(
            "digits",
            {"model.normalisation": "tdbn", "train.synchronise_batch_norm": True},
            chosen_methods=["bptt"],
        )


# --- BNTT -------------------------------------------------------------------------------------------------


def test_bntt_normalises_each_step_by_itself_with_parameters_and_statistics_of_its_own():
    built = convolutional("bntt")
    for t, step in enumerate(built.norm1.steps):
        nn.init.constant_(step.weight, t + 1.0)
    inputs, labels = doubles(T)
    seen = []
    built.norm1.register_forward_hook(lambda layer, args, output: seen.append((args[0], output)))
    run(built, "sltt", inputs, labels)
    assert len(seen) == T
    for t, (currents, normalised) in enumerate(seen):
        mean = currents.mean((0, 2, 3), keepdim=True)
        variance = currents.var((0, 2, 3), keepdim=True, unbiased=False)
        torch.testing.assert_close(normalised, (t + 1) * (currents - mean) / (variance + 1e-5).sqrt())
        torch.testing.assert_close(built.norm1.steps[t].running_mean, 0.1 * mean.flatten())
    assert [name for name, _ in built.norm1.named_parameters()] == [f"steps.{t}.weight" for t in range(T)]


def test_bntt_of_a_step_that_was_not_drawn_receives_no_gradient_and_learns_its_statistics():
    built = convolutional("bntt")
    run(built, "sltt-k1", *doubles(T))
    assert sum(step.weight.grad is not None for step in built.norm2.steps) == 1
    assert all(step.num_batches_tracked == 1 for step in built.norm2.steps)


@pytest.mark.parametrize(
    ("method", "reason"),
    [("rate", "goes backward through mean rates"), ("conversion", "learns in one pass without steps")],
)
def test_a_pass_without_steps_is_refused_where_layers_belong_to_steps(method: str, reason: str):
    with pytest.raises(RecipeError, match=rf"method '{method}' {reason}.*bntt"):
        load_recipe("digits", {"model.normalisation": "bntt"}, chosen_methods=[method])
    with pytest.raises(NotImplementedError, match="a pass on means is none of the T steps"):
        run(convolutional("bntt"), method, *doubles(T))


def test_bntt_asks_for_the_number_of_steps():
    with pytest.raises(ValueError, match="build the network with `timesteps`"):
        models.build(
            CNNOptions(normalisation="bntt"), neuron=lambda: LIF(NEURON), input_shape=INPUT_SHAPE, classes=2
        )


# --- Group norm, none -------------------------------------------------------------------------------------


def test_group_norm_makes_a_sample_independent_of_its_batch_and_batch_norm_does_not():
    inputs, _ = doubles(1)
    for kind, alike in (("group", True), ("none", True), ("batch", False)):
        built = convolutional(kind)
        whole = built.norm1(built.conv1(inputs[0]))[:1]
        alone = built.norm1(built.conv1(inputs[0][:1]))
        assert torch.allclose(whole, alone) == alike
    groups = network(CNNOptions(channels=[32, 48], normalisation="group"))
    assert (groups.norm1.num_groups, groups.norm2.num_groups) == (2, 3)


def test_without_normalisation_convolutions_have_a_bias_that_starts_at_zero():
    built = convolutional("none")
    assert built.conv1.bias.count_nonzero() == 0
    assert convolutional("batch").conv1.bias is None


# --- All of them ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", STEP_BY_STEP)
def test_the_identities_of_the_methods_hold_under_every_normalisation(kind):
    bptt, sltt = gradient(kind, "bptt"), gradient(kind, "sltt")
    assert (bptt - sltt).norm() > 1e-3 * bptt.norm()
    torch.testing.assert_close(gradient(kind, "bptt-ckpt2"), bptt, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient(kind, f"sltt-k{T}"), sltt, rtol=1e-9, atol=1e-12)
    one = gradient(kind, "bptt", 1)
    for name in ("sltt", "sltt-k1", "ottt", "s-tllr", "pp-prop", "tbptt-w1"):
        torch.testing.assert_close(gradient(kind, name, 1), one, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [partial(PreActResNetOptions, width=4), partial(VGGOptions, width=4), partial(MLPOptions, hidden=[6])],
    ids=["preact-resnet18", "vgg11", "mlp"],
)
def test_every_network_learns_with_every_normalisation_that_it_offers(options, kind):
    torch.manual_seed(0)
    shape = (2, 32, 32)
    built = models.build(
        options(normalisation=kind), neuron=lambda: LIF(NEURON), input_shape=shape, classes=CLASSES,
        timesteps=2,
    )  # fmt: skip
    inputs = list(torch.randn(2, 4, *shape))
    run(built, "bptt", inputs, torch.arange(4) % CLASSES)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in built.parameters())


def test_standardised_weights_have_no_mean_and_unit_norm_and_are_blind_to_shift_and_scale():
    built = network(MLPOptions(hidden=[6, 8], normalisation="weight"))
    for layer in (built.layer1[0], built.layer2[0]):
        weight = layer.standardised_weight()
        n = layer.in_features
        torch.testing.assert_close(
            weight.mean(1), torch.zeros(layer.out_features).double(), atol=1e-12, rtol=0
        )
        torch.testing.assert_close(
            weight.square().sum(1), torch.full((layer.out_features,), (n - 1) / n).double(), rtol=1e-2, atol=0
        )
        with torch.no_grad():
            layer.weight.mul_(3).add_(0.5)
        torch.testing.assert_close(layer.standardised_weight(), weight, rtol=1e-2, atol=1e-3)  # but for 10⁻⁴
        torch.testing.assert_close(
            layer(torch.ones(1, n).double()), layer.bias[None] + weight.sum(1), atol=1e-9, rtol=0
        )


@pytest.mark.parametrize("recurrent", [False, True], ids=["feedforward", "recurrent"])
def test_the_identities_of_the_methods_hold_with_standardised_weights(recurrent):
    def of(method: str, timesteps: int = T) -> Tensor:
        built = network(MLPOptions(hidden=[8, 6], normalisation="weight", recurrent=recurrent))
        run(built, method, *doubles(timesteps))
        return flat({n: p.grad for n, p in built.named_parameters() if p.grad is not None})

    bptt, sltt = of("bptt"), of("sltt")
    assert (bptt - sltt).norm() > 1e-3 * bptt.norm()
    torch.testing.assert_close(of("bptt-ckpt2"), bptt, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(of(f"sltt-k{T}"), sltt, rtol=1e-9, atol=1e-12)
    for name in ("sltt", "ottt", "pp-prop", "rate"):
        torch.testing.assert_close(of(name, 1), of("bptt", 1), rtol=1e-6, atol=1e-9)


def test_standardised_weights_are_of_fully_connected_layers_of_two_neurons_or_more():
    with pytest.raises(RecipeError, match="normalisation"):
        load_recipe("digits", {"model.normalisation": "weight"})
    with pytest.raises(RecipeError, match="2 neurons or more"):
        load_recipe("sequential-digits", {"model.normalisation": "weight", "model.hidden": [1, 4]})


def test_a_recurrent_layer_normalises_what_its_weights_make_of_the_input_alone():
    built = network(MLPOptions(hidden=[6], recurrent=True, normalisation="group"))
    currents = []
    built.layer1.neuron.register_forward_hook(lambda layer, args, output: currents.append(args[0]))
    inputs, _ = doubles(2)
    spikes = [built.layer1(x.flatten(1)) for x in inputs]
    expected = built.layer1.normalisation(built.layer1.feedforward(inputs[1].flatten(1)))
    torch.testing.assert_close(currents[1], expected + built.layer1.recurrent(spikes[0]))


@pytest.mark.parametrize("kind", ["tdbn", "bntt"])
def test_native_refuses_by_name_what_it_does_not_serve_and_the_others_serve_it(kind):
    options = CNNOptions(normalisation=kind)
    reason = backends.unserved_network(backends.create("native"), options)
    assert "model 'cnn' with its normalisation has layers that" in str(reason)
    assert backends.unserved_network(backends.create("reference"), options) is None
    assert backends.unserved_network(backends.create("native"), CNNOptions(normalisation="group")) is None
    if pytest.importorskip("spikingjelly"):
        assert backends.unserved_network(backends.create("spikingjelly"), options) is None


def test_a_normalisation_is_part_of_what_is_compared_and_batch_norm_leaves_identities_as_they_were():
    prints = {kind: load_recipe("digits", {"model.normalisation": kind}, chosen_methods=["bptt"]).fingerprint()
              for kind in KINDS}  # fmt: skip
    assert len(set(prints.values())) == len(KINDS)
    assert prints["batch"] == load_recipe("digits").fingerprint()
