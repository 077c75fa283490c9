"""Initial weights from files: the three layouts, and a clear error for everything else."""

import hashlib
import os
import pickle

import pytest
import torch
from torch import nn

from sltt_bench import models
from sltt_bench.models.options import NFResNetOptions, PreActResNetOptions, VGGOptions
from sltt_bench.neurons import LIF, LIFParameters
from sltt_bench.training.initialise import InitError, load_initial_weights

NETWORKS = {
    "nf-resnet34": (NFResNetOptions(name="nf-resnet34", width=4), (3, 32, 32)),
    "nf-resnet50": (NFResNetOptions(name="nf-resnet50", width=4), (3, 32, 32)),
    "preact-resnet18": (PreActResNetOptions(width=4), (3, 32, 32)),
    "vgg11": (VGGOptions(width=4), (3, 32, 32)),
}


def build(name: str, seed: int = 0, classes: int = 10) -> nn.Module:
    options, input_shape = NETWORKS[name]
    torch.manual_seed(seed)
    return models.build(
        options, neuron=lambda: LIF(LIFParameters()), input_shape=input_shape, classes=classes
    )


def trained(name: str) -> nn.Module:
    """A network of which no parameter and no statistic is as it started."""
    network = build(name, seed=1)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.add_(torch.rand_like(tensor) if tensor.is_floating_point() else 7)
    return network


def published(network: nn.Module) -> dict:
    """What the paper's published training script saves."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
    network(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    schedule.step()
    return {
        "net": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "epoch": 99,
        "max_test_acc": 0.6,
    }


def assert_loaded(network: nn.Module, source: nn.Module) -> None:
    expected = source.state_dict()
    assert network.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("format_", ["zip", "legacy"])
def test_a_published_checkpoint_loads_whole(tmp_path, name, format_):
    source, path = trained(name), tmp_path / "checkpoint_max.pth"
    torch.save(published(source), path, _use_new_zipfile_serialization=format_ == "zip")
    network = build(name)
    report = load_initial_weights(network, path)
    assert_loaded(network, source)
    assert report.layout == "published checkpoint"
    assert report.tensors == len(source.state_dict())
    assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_checkpoint_of_this_tool_loads(tmp_path):
    source, path = trained("nf-resnet34"), tmp_path / "cell.pt"
    torch.save({"model": source.state_dict(), "epoch": 3, "rng": torch.get_rng_state()}, path)
    network = build("nf-resnet34")
    assert load_initial_weights(network, path).layout == "sltt-bench checkpoint"
    assert_loaded(network, source)


def test_a_state_dict_alone_loads(tmp_path):
    source, path = trained("vgg11"), tmp_path / "weights.pt"
    torch.save(source.state_dict(), path)
    network = build("vgg11")
    assert load_initial_weights(network, path).layout == "state dict"
    assert_loaded(network, source)


@pytest.mark.parametrize("key", ["net", "model", None])
def test_weights_of_a_data_parallel_network_load_into_a_plain_one(tmp_path, key):
    source, path = trained("preact-resnet18"), tmp_path / "parallel.pt"
    weights = nn.DataParallel(source).state_dict()
    assert all(name.startswith("module.") for name in weights)
    torch.save({key: weights} if key else weights, path)
    network = build("preact-resnet18")
    load_initial_weights(network, path)
    assert_loaded(network, source)


def test_weights_in_half_precision_load_into_a_network_in_full_precision(tmp_path):
    source, path = trained("vgg11").half(), tmp_path / "half.pt"
    torch.save(source.state_dict(), path)
    network = build("vgg11")
    load_initial_weights(network, path)
    assert network.classifier[1].weight.dtype == torch.float32
    assert torch.equal(network.classifier[1].weight, source.classifier[1].weight.float())


def test_mismatches_are_listed_together_by_name_and_shape_and_nothing_is_loaded(tmp_path):
    weights, path = build("nf-resnet34", seed=1, classes=12).state_dict(), tmp_path / "other.pth"
    weights["layer9.0.conv1.weight"] = torch.zeros(2, 3)
    del weights["layer1.0.conv1.gain"]
    torch.save({"net": weights}, path)
    network, untouched = build("nf-resnet34"), build("nf-resnet34")
    with pytest.raises(InitError) as raised:
        load_initial_weights(network, path)
    first, *faults = str(raised.value).splitlines()
    assert first == (
        f"{path}: these weights are not of this network (4 mismatches); choose the model, "
        "its width and the data that they were trained with, or start from random weights (`run --init random`)"
    )
    assert [fault.strip() for fault in faults] == [
        "layer1.0.conv1.gain: missing from the file; the network has (4, 1, 1, 1)",
        "layer9.0.conv1.weight: (2, 3) in the file; the network has no such name",
        "fc.weight: (12, 32) in the file; the network has (10, 32)",
        "fc.bias: (12,) in the file; the network has (10,)",
    ]
    assert_loaded(network, untouched)


class Malicious:
    """A pickle that would run a command when loaded."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path):
    path, marker = tmp_path / "malicious.pth", tmp_path / "code was run"
    torch.save({"net": build("vgg11").state_dict(), "extra": Malicious(str(marker))}, path)
    with pytest.raises(InitError, match=r"malicious\.pth: refused, since it holds more than weights .*mkdir"):
        load_initial_weights(build("vgg11"), path)
    assert not marker.exists()


def test_a_whole_pickled_network_is_refused_with_the_way_out(tmp_path):
    path = tmp_path / "network.pth"
    torch.save(nn.Linear(2, 3), path)
    with pytest.raises(InitError, match=r"Linear\).*torch\.save\(network\.state_dict\(\), path\)"):
        load_initial_weights(nn.Linear(2, 3), path)


@pytest.mark.parametrize(
    ("content", "actual"),
    [
        ({"epoch": 3, "weights": {"weight": torch.zeros(2)}}, "a mapping with the keys 'epoch', 'weights'"),
        ({"net": {}, "epoch": 3}, "a mapping with the keys 'net', 'epoch'"),
        ([torch.zeros(2)], "a list"),
        (torch.zeros(2), "a Tensor"),
    ],
)
def test_a_file_without_weights_where_they_are_looked_for_is_refused(tmp_path, content, actual):
    path = tmp_path / "odd.pth"
    torch.save(content, path)
    with pytest.raises(InitError, match=f"it is {actual}, but neither a state dict nor"):
        load_initial_weights(nn.Linear(2, 3), path)


def damaged_files() -> dict[str, bytes]:
    return {"empty": b"", "text": b'{"net": 1}', "junk": b"junk" * 10, "pickle": pickle.dumps({"net": 1}, 2)}


@pytest.mark.parametrize("kind", ["cut short", "a weight", *damaged_files()])
def test_a_damaged_file_is_refused_by_name(tmp_path, kind):
    path = tmp_path / "damaged.pth"
    weights = nn.Linear(2, 3).state_dict()
    torch.save(weights, path)
    whole = path.read_bytes()
    number = weights["weight"][0, 0].numpy().tobytes()
    assert whole.count(number) == 1
    altered = {"cut short": whole[: len(whole) // 2], "a weight": whole.replace(number, b"\0\0\x80?")}
    path.write_bytes((altered | damaged_files())[kind])
    with pytest.raises(InitError, match=r"damaged\.pth: not a readable checkpoint .* fetch or save it anew"):
        load_initial_weights(nn.Linear(2, 3), path)


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path):
    with pytest.raises(InitError, match=r"absent\.pth: no such file; .* or --init random"):
        load_initial_weights(nn.Linear(2, 3), tmp_path / "absent.pth")
    with pytest.raises(InitError, match="not a readable checkpoint"):
        load_initial_weights(nn.Linear(2, 3), tmp_path)
