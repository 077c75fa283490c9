"""SEW-ResNet, MS-ResNet and Spikformer: counts, names, what a block computes, and every method on them."""

from functools import partial

import on_backends
import pytest
import torch
from one_batch import flat, run
from torch import Tensor, nn

from sltt_bench import models
from sltt_bench.analysis.gradients import TrainingBatch, decompose
from sltt_bench.losses import step_loss
from sltt_bench.measure.tensor_bytes import TensorBytes
from sltt_bench.models.layers import Factories
from sltt_bench.models.ms_resnet import MSBlock
from sltt_bench.models.normalisation import Normalisation
from sltt_bench.models.options import ModelOptions, MSResNetOptions, SEWResNetOptions, SpikformerOptions
from sltt_bench.models.sew_resnet import SEWBlock
from sltt_bench.models.spikformer import SpikingSelfAttention
from sltt_bench.neurons import LIF, LIFParameters, SpikingNeuron, reset_state
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.planning.recipe_faults import RecipeError
from sltt_bench.training.experiment import neuron_parameters

IMAGENET, CIFAR = ((3, 224, 224), 1000), ((3, 32, 32), 10)
PUBLISHED: dict[str, tuple[ModelOptions, tuple[tuple[int, ...], int], int, float]] = {
    "sew-resnet18": (SEWResNetOptions(name="sew-resnet18"), IMAGENET, 11_689_512, 11.69),
    "sew-resnet34": (SEWResNetOptions(name="sew-resnet34"), IMAGENET, 21_797_672, 21.80),
    "ms-resnet18": (MSResNetOptions(name="ms-resnet18"), IMAGENET, 11_693_736, 11.69),
    "ms-resnet34": (MSResNetOptions(name="ms-resnet34"), IMAGENET, 21_801_896, 21.80),
    "spikformer": (SpikformerOptions(), CIFAR, 9_324_730, 9.32),
}
"""Name → options, input and classes, parameters exactly, and in millions."""

SMALL: dict[str, tuple[ModelOptions, tuple[int, int, int]]] = {
    "sew-resnet18": (SEWResNetOptions(name="sew-resnet18", stem="3x3", width=4), (2, 16, 16)),
    "ms-resnet18": (MSResNetOptions(name="ms-resnet18", stem="3x3", width=4), (2, 16, 16)),
    "spikformer": (SpikformerOptions(dim=16, heads=2, depth=2, mlp_ratio=2, halvings=1), (2, 8, 8)),
}
every_network = pytest.mark.parametrize("name", list(SMALL))
NEURON = LIFParameters(tau=2.0, v_threshold=0.5)
CLASSES, T = 3, 3


def small(name: str, shape: tuple[int, ...] | None = None) -> nn.Module:
    """Fires in every layer, and no residual branch is switched off."""
    torch.manual_seed(0)
    options, input_shape = SMALL[name]
    network = models.build(
        options, neuron=lambda: LIF(NEURON), input_shape=shape or input_shape, classes=CLASSES
    )
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.rand(parameter.shape)
    return network.double()


def batch(name: str, timesteps: int = T) -> tuple[list[Tensor], Tensor]:
    x = 2 * torch.randn(
        timesteps, 4, *SMALL[name][1], dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    return list(x), torch.arange(4) % CLASSES


def gradient(name: str, method: str, timesteps: int = T) -> Tensor:
    network = small(name)
    run(network, method, *batch(name, timesteps))
    missing = [key for key, p in network.named_parameters() if p.grad is None]
    assert missing == []
    return flat({key: p.grad for key, p in network.named_parameters()})


# --- Counts and names -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_the_networks_have_the_published_number_of_parameters(name):
    options, (shape, classes), exactly, millions = PUBLISHED[name]
    with torch.device("meta"):
        network = models.build(
            options, neuron=lambda: LIF(LIFParameters()), input_shape=shape, classes=classes
        )
    count = sum(p.numel() for p in network.parameters())
    assert count == exactly
    assert round(count / 1e6, 2) == millions


@pytest.mark.parametrize("depth", [18, 34])
def test_sew_resnets_parameters_are_those_of_the_resnet_that_it_spikes(depth):
    torchvision = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        theirs = getattr(torchvision, f"resnet{depth}")()
        options, (shape, classes), *_ = PUBLISHED[f"sew-resnet{depth}"]
        own = models.build(options, neuron=lambda: LIF(LIFParameters()), input_shape=shape, classes=classes)
    shapes = [{key: value.shape for key, value in net.state_dict().items()} for net in (own, theirs)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(("name", "neurons"), [("sew-resnet18", 20), ("ms-resnet18", 17), ("spikformer", 19)])
def test_the_networks_have_their_number_of_spiking_layers(name, neurons):
    assert sum(isinstance(module, LIF) for module in small(name).modules()) == neurons


# --- Blocks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("connection", "silent"), [("add", True), ("iand", True), ("and", False)])
def test_a_sew_block_is_the_identity_where_its_branch_says_so(connection, silent):
    block = SEWBlock(4, 4, 1, Factories(lambda: LIF(NEURON), Normalisation("batch")), connection)
    nn.init.zeros_(block.bn2.weight)
    nn.init.constant_(block.bn2.bias, -1.0 if silent else 1.0)
    spikes = (torch.rand(2, 4, 5, 5) < 0.5).float()
    assert torch.equal(block(spikes), spikes)
    nn.init.constant_(block.bn2.bias, 1.0 if silent else -1.0)
    reset_state(block)
    assert torch.equal(block(spikes), {"add": spikes + 1, "iand": 0 * spikes, "and": 0 * spikes}[connection])


def test_an_ms_block_starts_as_its_shortcut_and_has_no_neuron_on_it():
    make = partial(MSBlock, make=Factories(lambda: LIF(NEURON), Normalisation("batch")))
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    y = make(4, 4, 1)(x)
    assert torch.equal(y, x)
    (gradient_of_x,) = torch.autograd.grad(y.sum(), x)
    assert torch.all(gradient_of_x == 1)
    changed = make(4, 8, 2)
    assert torch.equal(changed(x), changed.shortcut(x))
    assert not any(isinstance(m, SpikingNeuron) for m in changed.shortcut.modules())


def test_spiking_attention_counts_agreeing_patches_head_by_head():
    dim, heads, patches = 6, 2, 5
    torch.manual_seed(0)
    attention = SpikingSelfAttention(dim, heads, Factories(lambda: LIF(NEURON), Normalisation("batch")))
    seen: dict[str, Tensor] = {}
    for key in ("q", "k", "v"):
        layer = getattr(attention, key)
        layer.linear.weight.data *= 50
        layer.register_forward_hook(lambda m, a, out, key=key: seen.update({key: out.detach()}))
    attention.neuron.register_forward_hook(lambda m, args, out: seen.update(current=args[0].detach()))
    x = (torch.rand(3, dim, patches) < 0.5).float()
    attention(x)
    expected = torch.zeros(3, dim, patches)
    size = dim // heads
    for sample in range(3):
        for channel in range(dim):
            head = slice(channel // size * size, (channel // size + 1) * size)
            for asking in range(patches):
                expected[sample, channel, asking] = 0.25 * sum(
                    seen["v"][sample, channel, other]
                    * (seen["q"][sample, head, asking] @ seen["k"][sample, head, other])
                    for other in range(patches)
                )
    torch.testing.assert_close(seen["current"], expected)
    assert expected.count_nonzero() > 10
    assert set(seen["q"].unique().tolist()) == {0.0, 1.0}


def test_blocks_of_a_transformer_do_not_know_where_a_patch_lies():
    network = small("spikformer")
    block, order = network.blocks[0], torch.tensor([2, 0, 3, 1])
    x = torch.randn(2, 16, 4, dtype=torch.float64)
    expected = block(x)[:, :, order]
    reset_state(block)
    torch.testing.assert_close(block(x[:, :, order]), expected)


def test_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(RecipeError, match=r"heads \(5\) must divide dim \(384\)"):
        load_recipe("digits", {"model": {"name": "spikformer", "heads": 5}})


@pytest.mark.long
def test_sew_resnet_computes_what_spikingjellys_does():
    sew = pytest.importorskip("spikingjelly.activation_based.model.sew_resnet")
    node = pytest.importorskip("spikingjelly.activation_based.neuron").LIFNode
    surrogate = pytest.importorskip("spikingjelly.activation_based.surrogate").PiecewiseQuadratic(alpha=1.0)
    theirs = sew.sew_resnet18(
        num_classes=5, cnf="ADD", spiking_neuron=node, tau=2.0, decay_input=False, v_threshold=0.5,
        v_reset=None, surrogate_function=surrogate,
    )  # fmt: skip
    own = models.build(
        SEWResNetOptions(name="sew-resnet18"), neuron=lambda: LIF(NEURON), input_shape=(3, 64, 64), classes=5
    )
    own.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    totals = []
    for network in (own, theirs):
        network.double()
        sum(network(step).square().sum() for step in x).backward()
        totals.append(flat({key: p.grad for key, p in network.named_parameters()}))
    torch.testing.assert_close(totals[0], totals[1], rtol=1e-9, atol=1e-9)
    assert totals[0].norm() > 1e-3


def test_the_recipe_of_spikformer_has_its_published_neurons_and_its_attention_their_spikes():
    """Written with SpikingJelly's own defaults (its input is scaled by 1/τ) and the published thresholds, 1 and 1/2."""
    sj = pytest.importorskip("spikingjelly.activation_based.neuron")
    surrogate = pytest.importorskip("spikingjelly.activation_based.surrogate").Sigmoid

    def published(threshold: float = 1.0) -> nn.Module:
        return sj.LIFNode(tau=2.0, v_threshold=threshold, detach_reset=True, surrogate_function=surrogate())

    neuron = neuron_parameters(load_recipe("cifar10-spikformer"))
    currents = 1.5 * torch.randn(4, 500, generator=torch.Generator().manual_seed(0))
    sides = []
    for layer in (LIF(neuron), published()):
        x = currents.clone().requires_grad_()
        spikes = torch.stack([layer(step) for step in x])
        (spikes * torch.arange(4)[:, None]).sum().backward()
        sides.append((spikes, x.grad))
    assert 0 < sides[0][0].mean() < 1
    assert torch.equal(sides[0][0], sides[1][0])
    torch.testing.assert_close(sides[0][1], sides[1][1])

    dim, heads, patches = 32, 2, 64
    torch.manual_seed(0)
    attention = SpikingSelfAttention(dim, heads, Factories(lambda: LIF(neuron), Normalisation("batch")))
    with torch.no_grad():
        for layer in (attention.q, attention.k, attention.v, attention.projection):
            layer.norm.bias += 1.0  # so that they fire
    nodes = {
        name: published(0.5 if name == "neuron" else 1.0) for name in ("q", "k", "v", "neuron", "projection")
    }
    rates = []
    for _ in range(4):
        x = (torch.rand(3, dim, patches) < 0.5).float()
        q, k, v = (
            nodes[name](layer.norm(layer.linear(x))).view(3, heads, dim // heads, patches).transpose(2, 3)
            for name, layer in (("q", attention.q), ("k", attention.k), ("v", attention.v))
        )
        a = ((q @ k.transpose(2, 3)) * 0.125) @ v
        spikes = nodes["neuron"](a.transpose(2, 3).reshape(3, dim, patches))
        expected = nodes["projection"](attention.projection.norm(attention.projection.linear(spikes)))
        assert torch.equal(attention(x), expected)
        rates.append(float(spikes.detach().mean()))
    assert 0 < max(rates) < 1


# --- Every method, estimate and analysis ------------------------------------------------------------------


@every_network
def test_the_identities_of_the_methods_hold_on_every_network(name):
    bptt, sltt = gradient(name, "bptt"), gradient(name, "sltt")
    assert (bptt - sltt).norm() > 1e-3 * bptt.norm()
    torch.testing.assert_close(gradient(name, "bptt-ckpt2"), bptt, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(gradient(name, f"sltt-k{T}"), sltt, rtol=1e-8, atol=1e-10)
    one = gradient(name, "bptt", 1)
    for method in ("sltt", "ottt", "s-tllr", "pp-prop", "rate", "tbptt-w1", "bptt-d0.5"):
        torch.testing.assert_close(gradient(name, method, 1), one, rtol=1e-6, atol=1e-9)


@every_network
@pytest.mark.parametrize(
    "method", ["ottt", *(pytest.param(m, marks=pytest.mark.long) for m in ("s-tllr", "pp-prop", "e-prop", "rate",
                                                                           "sltt-a2", "tbptt-w2", "ottt-o"))]
)  # fmt: skip
def test_every_rule_gives_every_network_a_finite_gradient(name, method):
    network = small(name)
    run(network, method, *batch(name))
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in gradients)
    assert len(gradients) == len(list(network.parameters()))


@pytest.mark.parametrize(
    "name",
    ["spikformer", *(pytest.param(n, marks=pytest.mark.long) for n in ("sew-resnet18", "ms-resnet18"))],
)
def test_the_memory_of_sltt_does_not_grow_with_the_steps_and_that_of_bptt_does(name):
    def peak(method: str, timesteps: int) -> int:
        network = small(name)
        inputs, labels = batch(name, 2)
        inputs = [inputs[t % 2] for t in range(timesteps)]
        run(network, "bptt", inputs[:2], labels)
        with TensorBytes([], network=network) as memory:
            before = memory.current
            run(network, method, inputs, labels)
        return memory.peak - before

    assert peak("sltt", 6) == peak("sltt", 3)
    assert peak("bptt", 6) > 1.5 * peak("bptt", 3)


@every_network
def test_the_gradient_can_be_taken_apart(name):
    inputs, labels = batch(name)
    parts = decompose(
        TrainingBatch(
            small(name).train(), inputs, partial(step_loss, labels=labels, alpha=0.0, mse_target="ones")
        )
    )
    full, spatial = flat(parts.full), flat({key: parts.spatial(key) for key in parts.full})
    cosine = torch.cosine_similarity(full, spatial, dim=0)
    assert 0.2 < cosine < 0.9999


@every_network
@pytest.mark.parametrize(
    ("method", "recompute"), [("bptt", False), ("sltt", False), pytest.param("bptt", True, marks=pytest.mark.long)]
)  # fmt: skip
def test_native_computes_the_same_gradients(name, method, recompute, monkeypatch):
    options, shape = SMALL[name]
    monkeypatch.setitem(on_backends.MODELS, name, (options, shape, 4))
    train = partial(on_backends.train, model=name, method=method, dtype=torch.float64)
    native, reference = train("native", recompute=recompute), train("reference")
    for key, expected in reference.gradients.items():
        torch.testing.assert_close(native.gradients[key], expected, rtol=1e-6, atol=1e-9)
    assert float(flat(reference.gradients).norm()) > 1e-3
