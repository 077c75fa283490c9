"""The conformance kit accepts the networks that are shipped and names what a broken one breaks."""

from typing import Any

import pytest
import torch
from drawn_networks import SlowSynapse
from torch import Tensor, nn

from sltt_bench import models
from sltt_bench.conformance import NotConforming
from sltt_bench.models.options import (
    CNNOptions,
    MLPOptions,
    ModelOptions,
    MSResNetOptions,
    NFResNetOptions,
    PreActResNetOptions,
    SEWResNetOptions,
    SpikformerOptions,
    VGGOptions,
)
from sltt_bench.network_conformance import check_network

SHIPPED: tuple[tuple[ModelOptions, tuple[int, ...]], ...] = (
    (MLPOptions(hidden=[8, 6], recurrent=True, readout_tau=2.0, dropout=0.2), (2, 4, 4)),
    (MLPOptions(hidden=[8], normalisation="weight"), (5,)),
    (CNNOptions(channels=[4, 4], dropout=0.1), (2, 8, 8)),
    *((CNNOptions(channels=[4, 4], normalisation=kind), (2, 8, 8)) for kind in ("group", "bntt", "tdbn")),
    (PreActResNetOptions(name="preact-resnet18", width=2), (2, 16, 16)),
    (NFResNetOptions(name="nf-resnet34", width=2), (2, 32, 32)),
    (SEWResNetOptions(name="sew-resnet18", width=2, stem="3x3"), (2, 16, 16)),
    (MSResNetOptions(name="ms-resnet18", width=2, stem="3x3"), (2, 16, 16)),
    (VGGOptions(name="vgg11", width=2), (2, 32, 32)),
    (SpikformerOptions(name="spikformer", dim=8, heads=2, depth=1, mlp_ratio=2, halvings=1), (2, 8, 8)),
)


@pytest.mark.parametrize(("options", "input_shape"), SHIPPED, ids=str)
def test_the_networks_that_are_shipped_conform(options: ModelOptions, input_shape: tuple[int, ...]) -> None:
    remarks = check_network(models.build, options, input_shape=input_shape)
    assert len(remarks) == ("sequence" in options.needs)


class Options(ModelOptions):
    name: str = "own"


class Carrying(SlowSynapse):
    """A layer with state that does not say so."""

    carried = ()


class MixesSamples(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x


class NoiseOfItsOwn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.draws = torch.Generator()
        self.draws.seed()

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn(x.shape, generator=self.draws, dtype=x.dtype)
        return x + noise if self.training else x


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return x * (1 + 0.1 * (self.calls % 3))


class DrawnElsewhere(nn.Linear):
    def __init__(self) -> None:
        super().__init__(8, 8)
        nn.init.normal_(
            self.weight, generator=torch.Generator().manual_seed(torch.Generator().seed() % 2**31)
        )


def build(layer: Any) -> Any:
    """Builds a network with this layer before its neurons."""

    def of(options: Options, *, neuron: Any, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Sequential(nn.Linear(5, 8), layer(), neuron(), nn.Linear(8, classes))

    return of


def seeded(options: Options, *, neuron: Any, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """All of it is drawn from one seed."""
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(5, 8), neuron(), nn.Linear(8, classes))


@pytest.mark.parametrize(
    ("build", "fault"),
    [
        (build(Carrying), "a sequence changes the next"),
        (build(Carrying), "a gradient passes a detached state"),
        (build(Carrying), "it does not go on from where it was"),
        (build(MixesSamples), "depends on those beside it"),
        (build(Unused), r"no gradient reaches 1\.gain"),
        (build(NoiseOfItsOwn), "two runs from one seed differ"),
        (build(DrawnElsewhere), "two networks of one seed differ"),
        (seeded, "networks of two seeds are equal"),
    ],
)
def test_a_broken_promise_is_named(build: Any, fault: str) -> None:
    with pytest.raises(NotConforming, match=fault):
        check_network(build, Options(), input_shape=(5,))


def test_what_refuses_a_network_that_keeps_its_promises_is_told() -> None:
    remarks = check_network(build(Counts), Options(), input_shape=(5,))
    assert [remark.split(":")[0] for remark in remarks] == [
        "bptt-ckptN refuses it",
        "native.recompute goes step by step",
        "native replays no CUDA graphs of it",
    ]
    assert all("a Counts puts out something else the second time" in remark for remark in remarks)


def test_a_layer_that_is_called_twice_is_told() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixing = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.mixing(self.mixing(x))
            return output

    (remark,) = check_network(build(Twice), Options(), input_shape=(5,))
    assert remark.startswith("rules with traces refuse it: a Linear is called more than once in a step")


def test_a_network_without_the_recipes_neurons_is_told() -> None:
    def without_neurons(
        options: Any, *, neuron: Any, input_shape: tuple[int, ...], classes: int
    ) -> nn.Module:
        return nn.Sequential(nn.Linear(*input_shape, 8), SlowSynapse(), nn.Linear(8, classes))

    (remark,) = check_network(without_neurons, Options(), input_shape=(5,))
    assert remark.startswith("rules with traces refuse it: the network has no layer of the recipe's neurons")


def test_weights_that_rules_with_traces_do_not_follow_are_told() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixing = nn.Parameter(torch.randn(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.mixing

    (remark,) = check_network(build(Mixing), Options(), input_shape=(5,))
    assert remark == (
        "rules with traces follow convolutions and linear layers alone: under them 1.mixing learn as under SLTT"
    )


def test_native_that_differs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from sltt_bench.backends.native import neuron as native_neuron

    backward = native_neuron.NativeLIF.forward
    monkeypatch.setattr(native_neuron.NativeLIF, "forward", lambda layer, x: backward(layer, x) * 1.01)
    with pytest.raises(
        NotConforming, match=r"bptt's gradient of 0\.weight on native is not that on the reference"
    ):
        check_network(build(nn.Identity), Options(), input_shape=(5,))
