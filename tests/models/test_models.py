"""The networks: parameter counts, published names, initialisation, and inputs of every size."""

import pytest
import torch
from torch import nn

from sltt_bench import models
from sltt_bench.models.layers import SequenceDropout
from sltt_bench.models.options import (
    CNNOptions,
    MLPOptions,
    NFResNetOptions,
    PreActResNetOptions,
    VGGOptions,
)
from sltt_bench.neurons import LIF, LIFParameters, detach_state, reset_state

FULL_SIZE = {
    "preact-resnet18": (PreActResNetOptions(), (3, 32, 32), 10, 11_176_906),
    "vgg11": (VGGOptions(), (2, 128, 128), 11, 9_501_387),
    "nf-resnet34": (NFResNetOptions(name="nf-resnet34"), (3, 224, 224), 1000, 21_797_688),
    "nf-resnet50": (NFResNetOptions(name="nf-resnet50"), (3, 224, 224), 1000, 25_557_048),
    "nf-resnet101": (NFResNetOptions(name="nf-resnet101"), (3, 224, 224), 1000, 44_549_193),
}
"""Name → options, input, classes and number of parameters of the paper's networks."""


def build(options, input_shape, classes) -> nn.Module:
    torch.manual_seed(0)
    return models.build(
        options, neuron=lambda: LIF(LIFParameters()), input_shape=input_shape, classes=classes
    )


def full_size(name: str) -> nn.Module:
    return build(*FULL_SIZE[name][:3])


@pytest.fixture(scope="module", params=list(FULL_SIZE))
def initial(request) -> tuple[str, nn.Module]:
    """A network of full size as training begins with it; nobody changes it."""
    return request.param, full_size(request.param)


def test_the_papers_networks_have_the_stated_number_of_parameters(initial):
    name, network = initial
    assert sum(parameter.numel() for parameter in network.parameters()) == FULL_SIZE[name][3]


# --- The published names and shapes, written out independently of the code -----------------------------


def batch_norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    vectors = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.num_batches_tracked": (), **{f"{name}.{vector}": (channels,) for vector in vectors}}


def convolution(name: str, channels_in: int, channels_out: int, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (channels_out, channels_in, size, size), f"{name}.bias": (channels_out,)}


def standardised(name: str, channels_in: int, channels_out: int, size: int) -> dict[str, tuple[int, ...]]:
    gain = {f"{name}.gain": (channels_out, 1, 1, 1)}
    return {**convolution(name, channels_in, channels_out, size), **gain}


def published_preact_resnet18() -> dict[str, tuple[int, ...]]:
    names = {"conv1.weight": (64, 3, 3, 3), "linear.weight": (10, 512), "linear.bias": (10,)}
    names |= batch_norm("bn1", 512)
    channels = 64
    for layer, out in enumerate((64, 128, 256, 512), start=1):
        for block in ("0", "1"):
            prefix = f"layer{layer}.{block}"
            names |= batch_norm(f"{prefix}.bn1", channels) | batch_norm(f"{prefix}.bn2", out)
            names |= convolution(f"{prefix}.conv1", channels, out, 3)
            names |= convolution(f"{prefix}.conv2", out, out, 3)
            if channels != out:
                names |= convolution(f"{prefix}.shortcut", channels, out, 1)
            channels = out
    return names


def published_vgg11() -> dict[str, tuple[int, ...]]:
    names = {"classifier.1.weight": (11, 512 * 7 * 7), "classifier.1.bias": (11,)}
    convolutions = [
        ("layer1.0", 2, 64),
        ("layer2.0", 64, 128),
        ("layer3.0", 128, 256),
        ("layer3.4", 256, 256),
        ("layer4.0", 256, 512),
        ("layer4.4", 512, 512),
        ("layer5.0", 512, 512),
        ("layer5.4", 512, 512),
    ]
    for name, channels_in, channels_out in convolutions:
        layer, index = name.split(".")
        names |= convolution(name, channels_in, channels_out, 3)
        names |= batch_norm(f"{layer}.{int(index) + 1}", channels_out)
    return names


def published_nf_resnet(blocks: tuple[int, ...], expansion: int) -> dict[str, tuple[int, ...]]:
    names = standardised("conv1", 3, 64, 7)
    names |= {"fc.weight": (1000, 512 * expansion), "fc.bias": (1000,)}
    channels = 64
    for layer, (count, inner) in enumerate(zip(blocks, (64, 128, 256, 512), strict=True), start=1):
        for block in range(count):
            prefix = f"layer{layer}.{block}"
            names[f"{prefix}.skipinit_gain"] = ()
            if expansion == 1:
                names |= standardised(f"{prefix}.conv1", channels, inner, 3)
                names |= standardised(f"{prefix}.conv2", inner, inner, 3)
            else:
                names |= standardised(f"{prefix}.conv1", channels, inner, 1)
                names |= standardised(f"{prefix}.conv2", inner, inner, 3)
                names |= standardised(f"{prefix}.conv3", inner, inner * 4, 1)
            if channels != inner * expansion:
                names |= standardised(f"{prefix}.downsample", channels, inner * expansion, 1)
            channels = inner * expansion
    return names


PUBLISHED = {
    "preact-resnet18": published_preact_resnet18(),
    "vgg11": published_vgg11(),
    "nf-resnet34": published_nf_resnet((3, 4, 6, 3), expansion=1),
    "nf-resnet50": published_nf_resnet((3, 4, 6, 3), expansion=4),
    "nf-resnet101": published_nf_resnet((3, 4, 23, 3), expansion=4),
}


def test_names_and_shapes_are_those_of_the_published_checkpoints(initial):
    name, network = initial
    assert {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()} == PUBLISHED[name]


# --- Initialisation -------------------------------------------------------------------------------------


def test_convolutions_start_kaiming_normal_by_fan_out(initial):
    for convolution in initial[1].modules():
        if isinstance(convolution, nn.Conv2d):
            weight = convolution.weight
            fan_out = weight.shape[0] * weight.shape[2] * weight.shape[3]
            five_errors = 5 / (2 * weight.numel()) ** 0.5
            assert weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=five_errors)
            assert abs(weight.mean().item()) < 5 * (2 / fan_out / weight.numel()) ** 0.5


def test_convolutions_of_vgg_and_nf_resnet_start_without_bias(initial):
    name, network = initial
    biases = [module.bias for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert len(biases) > 7
    started = [bias.count_nonzero() == 0 for bias in biases if bias is not None]
    assert all(started) == (name != "preact-resnet18")


def test_classifiers_start_as_published(initial):
    name, network = initial
    classifier = {"preact-resnet18": "linear", "vgg11": "classifier.1"}.get(name, "fc")
    weight, bias = (network.get_parameter(f"{classifier}.{part}") for part in ("weight", "bias"))
    assert (bias.count_nonzero() == 0) == (not name.startswith("nf-resnet"))
    if name == "preact-resnet18":
        assert weight.std() > 0.01
    else:
        assert weight.std().item() == pytest.approx(0.01 if name == "vgg11" else 0, rel=0.02)


def test_recurrent_weights_start_orthogonal():
    network = build(MLPOptions(hidden=[12, 7], recurrent=True), (1, 4, 4), 3)
    for layer in (network.layer1, network.layer2):
        weight = layer.recurrent.weight
        torch.testing.assert_close(weight @ weight.T, torch.eye(len(weight)))


def test_residual_branches_of_nf_resnet_start_switched_off(initial):
    name, network = initial
    gains = [(key, parameter) for key, parameter in network.named_parameters() if key.endswith("gain")]
    assert bool(gains) == name.startswith("nf-resnet")
    for key, gain in gains:
        assert torch.all(gain == (0 if key.endswith("skipinit_gain") else 1))


def test_networks_of_one_seed_have_the_same_weights_and_of_another_seed_others():
    first, again = full_size("preact-resnet18"), full_size("preact-resnet18")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    torch.manual_seed(1)
    other = models.build(
        PreActResNetOptions(), neuron=lambda: LIF(LIFParameters()), input_shape=(3, 32, 32), classes=10
    )
    assert not torch.equal(first.conv1.weight, other.conv1.weight)


# --- Structure --------------------------------------------------------------------------------------------


# NF-ResNets see no image below 17×17: there its stride-2 convolutions meet 1×1 images, for which the
# bf16 weight gradient on a CPU holds memory that nobody wrote (seen in PyTorch 2.14 with oneDNN).
SMALL = {
    "mlp": (MLPOptions(hidden=[16, 12]), [(1, 8, 8), (7,), (2, 1, 1)]),
    "mlp recurrent": (MLPOptions(hidden=[16, 12], recurrent=True), [(1, 8, 8), (7,)]),
    "cnn": (CNNOptions(channels=[4, 6]), [(1, 8, 8), (2, 5, 7), (3, 4, 4)]),
    "preact-resnet18": (PreActResNetOptions(width=4), [(3, 32, 32), (1, 8, 8), (3, 64, 64), (2, 48, 40)]),
    "vgg11": (VGGOptions(width=4), [(2, 128, 128), (2, 64, 64), (2, 48, 48), (3, 32, 32)]),
    "nf-resnet34": (NFResNetOptions(name="nf-resnet34", width=4), [(3, 224, 224), (3, 32, 32), (1, 20, 20)]),
    "nf-resnet50": (NFResNetOptions(name="nf-resnet50", width=4), [(3, 64, 64), (3, 32, 32)]),
    "nf-resnet101": (NFResNetOptions(name="nf-resnet101", width=2), [(3, 32, 32)]),
}


@pytest.mark.parametrize(
    ("name", "input_shape"),
    [
        pytest.param(name, shape, marks=pytest.mark.long if name == "nf-resnet101" else [])
        for name, (_, shapes) in SMALL.items()
        for shape in shapes
    ],
    ids=lambda value: value if isinstance(value, str) else "×".join(map(str, value)),
)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_every_network_takes_inputs_of_every_size_and_learns_from_them(name, input_shape, precision):
    network = build(SMALL[name][0], input_shape, classes=5)
    if name.startswith("nf"):  # the zeros that training starts from hide most gradients
        switch_on(network)
    for _ in range(2):
        with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
            output = network(3 * torch.randn(4, *input_shape))
        assert output.shape == (4, 5)
    output.float().square().sum().backward()
    silent = [key for key, parameter in network.named_parameters() if parameter.grad is None]
    assert silent == []
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def switch_on(network: nn.Module) -> None:
    with torch.no_grad():
        network.fc.weight.normal_()
        for key, parameter in network.named_parameters():
            if key.endswith("skipinit_gain"):
                parameter.fill_(1)


def test_a_network_forgets_on_reset_and_is_the_same_at_every_first_step():
    network = build(PreActResNetOptions(width=4), (3, 16, 16), 10)  # batch statistics: untrained, it fires
    x = torch.randn(2, 3, 16, 16)
    first, second = network(x), network(x)
    reset_state(network)
    assert torch.equal(network(x), first)
    assert not torch.equal(first, second)


def test_after_detaching_no_gradient_reaches_an_earlier_step():
    network = build(MLPOptions(hidden=[16, 12], recurrent=True), (1, 4, 4), 3)
    past = torch.randn(2, 1, 4, 4, requires_grad=True)
    network(past)
    detach_state(network)
    network(torch.randn(2, 1, 4, 4)).sum().backward()
    assert past.grad is None


def test_every_network_has_the_published_number_of_spiking_layers(initial):
    published = {"preact-resnet18": 17, "vgg11": 8, "nf-resnet34": 32, "nf-resnet50": 48, "nf-resnet101": 99}
    name, network = initial
    assert sum(isinstance(module, LIF) for module in network.modules()) == published[name]


def test_the_preactivation_block_takes_its_shortcut_after_the_first_neuron():
    """With the residual branch silenced, the block puts out the first neuron's spikes."""
    network = build(PreActResNetOptions(width=8), (3, 16, 16), 10)
    block = network.layer1[1]
    nn.init.zeros_(block.conv2.weight)
    nn.init.zeros_(block.conv2.bias)
    x = torch.randn(4, 8, 6, 6)
    expected = (block.bn1(x) >= 1).float()
    assert 0.05 < expected.mean() < 0.3
    assert torch.equal(block(x), expected)


def test_vgg_averages_where_other_vggs_take_the_maximum():
    network = build(VGGOptions(width=4), (2, 64, 64), 11)
    assert not any(isinstance(module, nn.MaxPool2d) for module in network.modules())
    spikes = (torch.rand(1, 4, 8, 8) < 0.3).float()
    pooled = network.layer1[-1](spikes)
    assert torch.equal(pooled[0, 0, 0, 0], spikes[0, 0, :2, :2].mean())


@pytest.mark.parametrize(("name", "count"), [("preact-resnet18", 9), ("vgg11", 8)])
def test_dropout_is_where_it_is_published_and_shared_over_time(name, count):
    options = {"preact-resnet18": PreActResNetOptions, "vgg11": VGGOptions}[name](width=4, dropout=0.5)
    network = build(options, (3, 32, 32), 10)
    dropouts = [module for module in network.modules() if isinstance(module, SequenceDropout)]
    assert [dropout.p for dropout in dropouts] == [0.5] * count
    masks = []
    for _ in range(3):
        network(torch.randn(4, 3, 32, 32))
        masks.append([dropout.dropped.clone() for dropout in dropouts])
    for first, second, third in zip(*masks, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, third)
    reset_state(network)
    network(torch.randn(4, 3, 32, 32))
    assert not torch.equal(masks[0][0], dropouts[0].dropped)


# --- Errors -------------------------------------------------------------------------------------------------


def test_vgg_refuses_images_that_its_pools_would_shrink_to_nothing():
    with pytest.raises(ValueError, match="at least 32×32 pixels, but the data are 31×48"):
        build(VGGOptions(), (2, 31, 48), 10)


def test_cnn_refuses_more_blocks_than_the_image_can_be_halved():
    with pytest.raises(ValueError, match=r"model\.channels has 4 blocks, too many for 8×8 images"):
        build(CNNOptions(channels=[4, 4, 4, 4]), (1, 8, 8), 10)


def test_an_unknown_network_is_refused_with_the_known_ones():
    with pytest.raises(models.UnknownModel, match="unknown model 'alexnet'; known: mlp, cnn, preact"):
        models.options_type("alexnet")


# --- Once at full size --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        # NF-ResNets of an eighth of the width see images of full size above.
        pytest.param(name, marks=[pytest.mark.long] if name.startswith("nf-resnet") else [])
        for name in FULL_SIZE
    ],
)
def test_a_full_size_network_runs_forward_and_backward(name):
    _, input_shape, classes, _ = FULL_SIZE[name]
    network = full_size(name)
    if name.startswith("nf"):
        switch_on(network)
    # The stem of an NF-ResNet passes a tenth of the variance of white noise: stronger input than images.
    output = network(3 * torch.randn(2, *input_shape))
    assert output.shape == (2, classes)
    assert output.isfinite().all()
    nn.functional.cross_entropy(output, torch.tensor([0, 1])).backward()
    norms = [parameter.grad.norm() for parameter in network.parameters()]
    assert all(norm.isfinite() for norm in norms)
    assert all(norm > 0 for norm in norms)
