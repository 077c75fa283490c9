"""`export`: a trained network as NIR or ONNX puts out the same when it is read back; its accuracy as the Hub keeps it."""

import errno
import os
import re
from pathlib import Path
from typing import Any

import nir
import nirtorch
import numpy as np
import pytest
import torch
from result_builder import RECIPE, HandmadeRun, varied
from torch import Tensor, nn
from typer.testing import CliRunner

from sltt_bench.backends.reference import Reference
from sltt_bench.command_line.cli import app
from sltt_bench.common.yaml_text import read_yaml
from sltt_bench.export import Benchmark, ExportError, export, trained_cell
from sltt_bench.export.nir_graph import nir_graph
from sltt_bench.export.onnx_model import Sequence, onnx_model
from sltt_bench.models.normalisation import BatchNormThroughTime, TimeBatchNorm
from sltt_bench.neurons import LIF, LIFParameters, reset_state
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.planning.recipe_fields import Recipe
from sltt_bench.training.experiment import build_network

# How a reader of the file runs its nodes: one Euler step of length 1, as their equations in NIR's paper say.


class LeakyIntegrator(nn.Module):
    def __init__(self, node: Any) -> None:
        super().__init__()
        self.tau, self.r, self.leak = (torch.tensor(value) for value in (node.tau, node.r, node.v_leak))

    def forward(self, current: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        before = self.leak if state is None else state
        potential = before + ((self.leak - before) + self.r * current) / self.tau
        return potential, potential


class ResettingNeuron(nn.Module):
    def __init__(self, node: Any) -> None:
        super().__init__()
        self.integrate, self.node = LeakyIntegrator(node), node

    def forward(self, current: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        potential, _ = self.integrate(current, state)
        fires = potential > torch.tensor(self.node.v_threshold)
        return fires.float(), torch.where(fires, torch.tensor(self.node.v_reset), potential)


class Threshold(nn.Module):
    def __init__(self, node: Any) -> None:
        super().__init__()
        self.threshold = torch.tensor(node.threshold)

    def forward(self, potential: Tensor) -> Tensor:
        return (potential > self.threshold).float()


class Scale(nn.Module):
    def __init__(self, node: Any) -> None:
        super().__init__()
        self.scale = torch.tensor(node.scale)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def affine(node: Any) -> nn.Linear:
    layer = nn.Linear(node.weight.shape[1], node.weight.shape[0])
    layer.weight.data, layer.bias.data = torch.tensor(node.weight), torch.tensor(node.bias)
    return layer


NODES = {
    nir.LI: LeakyIntegrator,
    nir.LIF: ResettingNeuron,
    nir.Threshold: Threshold,
    nir.Scale: Scale,
    nir.Affine: affine,
    nir.Flatten: lambda node: nn.Flatten(1),
}


def busy_network(recipe: str, **overrides: Any) -> tuple[nn.Module, tuple[int, ...]]:
    """A network in which every layer fires."""
    neuron = {f"neuron.{key}": value for key, value in overrides.items()}
    resolved = load_recipe(recipe, neuron, smoke=True)
    return busy_network_of(resolved), resolved.data.sample_shape


def busy_network_of(resolved: Recipe) -> nn.Module:
    torch.manual_seed(0)
    network = build_network(resolved, Reference())
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, (nn.BatchNorm2d, TimeBatchNorm)):
                assert module.running_var is not None
                assert module.running_mean is not None
                module.running_var.uniform_(0.05, 0.2)
                module.running_mean.uniform_(-0.2, 0.2)
                module.bias.uniform_(-0.2, 0.4)
    return network.eval()


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("digits", {"tau": 2.0}),
        ("digits", {"tau": 1.0}),
        ("digits", {"tau": 2.0, "reset": "hard", "v_reset": -0.3}),
        ("cifar10-resnet18", {"tau": 1.5}),
    ],
    ids=str,
)
def test_what_is_read_back_gives_the_same_spikes_and_outputs(
    recipe: str, overrides: dict[str, Any], tmp_path: Path
) -> None:
    network, shape = busy_network(recipe, **overrides)
    nir.write(tmp_path / "network.nir", nir_graph(network, shape))
    again = nirtorch.nir_to_torch(nir.read(tmp_path / "network.nir"), NODES)
    spikes: dict[str, list[Tensor]] = {}
    for side, module in (("ours", network), ("theirs", again)):
        for name, layer in module.named_modules():
            if isinstance(layer, (LIF, ResettingNeuron, Threshold)):
                key = name.replace(".", "_")
                layer.register_forward_hook(
                    lambda _, inputs, output, key=key, side=side: spikes.setdefault(
                        f"{side} {key}", []
                    ).append(output[0] if isinstance(output, tuple) else output)
                )
    state = None
    reset_state(network)
    with torch.no_grad():
        for x in 2 * torch.rand(5, 2, *shape):
            output, (read_back, state) = network(x), again(x, state)
            torch.testing.assert_close(read_back, output, rtol=1e-4, atol=1e-5)
    names = [key.removeprefix("ours ") for key in spikes if key.startswith("ours ")]
    assert len(names) >= 2
    for name in names:
        own, theirs = torch.stack(spikes[f"ours {name}"]), torch.stack(spikes[f"theirs {name}"])
        assert 0 < own.mean() < 1
        assert torch.equal(own, theirs), name


def test_spikingjelly_reads_a_network_with_hard_reset_and_puts_out_the_same() -> None:
    exchange = pytest.importorskip("spikingjelly.activation_based.nir_exchange")
    network, shape = busy_network("digits", tau=2.0, reset="hard", v_reset=0.0)
    theirs = exchange.import_from_nir(nir_graph(network, shape), dt=1.0).eval()
    state = None
    reset_state(network)
    with torch.no_grad():
        for x in 2 * torch.rand(5, 2, *shape):
            output, (read_back, state) = network(x), theirs(x, state)
            torch.testing.assert_close(read_back, output, rtol=1e-4, atol=1e-5)
    assert output.abs().max() > 0


@pytest.mark.parametrize(
    ("recipe", "fault"),
    [
        ("sequential-digits", r"NIR has no node for Recurrent \(layer1\)"),
        ("imagenet-resnet34", "NIR has no node for"),
        ("dvs-cifar10-vgg11", "NIR has no adaptive pool"),
    ],
)
def test_what_nir_cannot_say_is_refused_by_name(recipe: str, fault: str) -> None:
    network, shape = busy_network(recipe)
    with pytest.raises(ExportError, match=fault):
        nir_graph(network, shape)


class AddsToItself(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x


class AddsAConstant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


class AddsTheSumOfTwoTwice(nn.Module):
    """By way of a layer that is nothing in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(x)


class AddsAVector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mean(x)


class Scales(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x


class ScalesWhatALayerMakes(Scales):
    def __init__(self) -> None:
        super().__init__()
        self.mixing = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * self.mixing(x)


class ReadsWhatAnAdditionChanged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x = self.first(x)
        x += self.second(x)
        return self.third(x) + shortcut


class FlattensByFunction(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(x, 1)


class OwnNorm(nn.BatchNorm2d):
    """Looks at values, which no tracer sees through."""


class CallsALayerTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mixing = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mixing(self.mixing(x))


@pytest.mark.parametrize(
    ("layer", "fault"),
    [
        (AddsToItself(), "edges add different nodes, each once"),
        (AddsAConstant(), "edges add different nodes, each once"),
        (AddsTheSumOfTwoTwice(), "edges add different nodes, each once"),
        (AddsAVector(), r"edges add equal shapes, not \(3, 8, 8\) and \(3, 1, 1\)"),
        (ReadsWhatAnAdditionChanged(), "traced as a graph, puts out something else"),
        (FlattensByFunction(), r"no node for flatten \(at flatten\)"),
        (Scales(), r"no node for Scales \(0\)"),
        (ScalesWhatALayerMakes(), r"no node for what ScalesWhatALayerMakes does with gain \(0\.gain\)"),
        (OwnNorm(3), r"no node for OwnNorm \(0\)"),
        (CallsALayerTwice(), r"Conv2d is called again \(0\.mixing\)"),
        (nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"), "pad with zeros, not in mode circular"),
        (nn.Linear(8, 8), r"linear layers take vectors, not \(3, 8, 8\)"),
        (nn.Flatten(2), "flattened as a whole or not at all"),
        (nn.BatchNorm2d(3, track_running_stats=False), "by running statistics alone"),
        (BatchNormThroughTime([nn.BatchNorm2d(3)]), "no node for BatchNormThroughTime"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_nir_says_no_other_network_than_it_is_given(layer: nn.Module, fault: str) -> None:
    with pytest.raises(ExportError, match=fault):
        nir_graph(nn.Sequential(layer, nn.Identity()).eval(), (3, 8, 8))


def test_a_convolution_of_groups_is_one_with_zeros(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first, second = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 4, 3, stride=2, padding=1, groups=2)
    network = nn.Sequential(first, LIF(LIFParameters(v_threshold=0.1)), second, nn.Flatten()).eval()
    nir.write(tmp_path / "network.nir", nir_graph(network, (1, 8, 8)))
    again, state = nirtorch.nir_to_torch(nir.read(tmp_path / "network.nir"), NODES), None
    with torch.no_grad():
        for x in 2 * torch.rand(3, 2, 1, 8, 8):
            output, (read_back, state) = network(x), again(x, state)
            torch.testing.assert_close(read_back, output, rtol=1e-4, atol=1e-5)


class NamesLikeTheGraphs(nn.Module):
    """Layers under the names that the graph's own nodes have."""

    def __init__(self) -> None:
        super().__init__()
        self.input = nn.Flatten()
        self.neuron_reset, self.neuron_potential = nn.Linear(64, 64), nn.Linear(64, 64)
        self.neuron = LIF(LIFParameters(tau=2.0, v_threshold=0.2))
        self.output = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.neuron_reset(self.input(x))
        x += self.neuron_potential(x)
        return self.output(self.neuron(x))


@pytest.mark.parametrize(
    "network",
    [
        NamesLikeTheGraphs(),
        nn.Sequential(nn.AdaptiveAvgPool2d((2, None)), nn.Flatten(), nn.Linear(16, 3)),
    ],
    ids=["names", "a pool in one direction"],
)
def test_a_network_of_ones_own_is_read_back_whatever_its_layers_are_called(
    network: nn.Module, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    nir.write(tmp_path / "network.nir", nir_graph(network.eval(), (1, 8, 8)))
    again, state = nirtorch.nir_to_torch(nir.read(tmp_path / "network.nir"), NODES), None
    with torch.no_grad():
        for x in 2 * torch.rand(3, 2, 1, 8, 8):
            output, (read_back, state) = network(x), again(x, state)
            torch.testing.assert_close(read_back, output, rtol=1e-4, atol=1e-5)
    assert output.std() > 0


def test_a_batch_norm_over_time_is_in_evaluation_one_of_each_step(tmp_path: Path) -> None:
    tdbn = load_recipe("digits", {"model.normalisation": "tdbn"}, smoke=True, chosen_methods=["bptt"])
    network = busy_network_of(tdbn)
    nir.write(tmp_path / "network.nir", nir_graph(network, (1, 8, 8)))
    again, state = nirtorch.nir_to_torch(nir.read(tmp_path / "network.nir"), NODES), None
    reset_state(network)
    with torch.no_grad():
        for x in 2 * torch.rand(3, 2, 1, 8, 8):
            output, (read_back, state) = network(x), again(x, state)
            torch.testing.assert_close(read_back, output, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("digits", {"neuron.tau": 2.0, "timesteps": 2}),
        pytest.param("sequential-digits", {}, marks=pytest.mark.long),
        pytest.param(
            "digits",
            {
                "neuron.tau": 2.0,
                "neuron.kind": "alif",
                "neuron.tau_adaptation": 9.0,
                "neuron.adaptation": 0.1,
            },
            marks=pytest.mark.long,
        ),
        pytest.param("digits-saccade", {"neuron.tau": 2.0, "neuron.reset": "hard"}, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_another_runtime_puts_out_the_same_from_the_onnx_file_at_any_batch_size(
    recipe: str, overrides: dict[str, Any]
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    if torch.__version__.startswith("2.6."):
        pytest.skip("the exporter of torch 2.6 cannot translate batch norm")
    resolved = load_recipe(recipe, overrides, smoke=True)
    network = busy_network_of(resolved)
    session = runtime.InferenceSession(onnx_model(network, resolved), providers=["CPUExecutionProvider"])
    shape = ((resolved.timesteps,) if resolved.data.temporal else ()) + tuple(resolved.data.sample_shape)
    x = 2 * torch.rand(5, *shape)
    (outputs,) = session.run(["output"], {"input": x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(outputs, Sequence(network, resolved)(x).numpy(), rtol=1e-4, atol=1e-5)
    assert np.ptp(outputs) > 0


def full(file: int) -> None:
    """As fsync on a disk without room."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_run_that_kept_its_checkpoint_is_exported_by_method_and_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, arguments)
        return result.exit_code, " ".join(result.output.split())

    smoke = ("run", "digits", "--smoke", "--device", "cpu", "--no-estimate", "--method", "sltt")
    smoke += ("--set", "timesteps=2")
    assert call(*smoke, "--seed", "0,1", "--set", "train.keep_checkpoint=true")[0] == 0
    (run,) = Path("results/digits").iterdir()
    code, output = call("export", str(run), "--method", "sltt")
    assert code == 2
    assert f"error: {run}: 2 cells have the method sltt; name one by --seed or --cell: " in output
    ids = {seed: cell_id for cell_id, seed in re.findall(r"(\w{12}) \(seed (\d), reference, ", output)}
    assert call("export", str(run), "-m", "sltt", "--cell", ids["0"]) == (0, "wrote sltt-seed0.nir")
    assert call("export", str(run), "-m", "sltt", "--seed", "1", "--cell", ids["0"])[0] == 2
    assert call("export", str(run), "--method", "slt") == (
        2,
        f"error: {run}: 0 cells have the method slt (did you mean 'sltt'?); `sltt-bench show RUN` names those that there are",
    )
    first = Path("sltt-seed0.nir").read_bytes()
    assert call("export", str(run), "--method", "sltt", "--seed", "1") == (0, "wrote sltt-seed1.nir")
    assert Path("sltt-seed0.nir").read_bytes() == first
    assert call("export", str(run), "--method", "sltt", "--seed", "1") == (
        2,
        "error: sltt-seed1.nir: exists; name another file with --out, or remove it first",
    )
    assert {type(node).__name__ for node in nir.read("sltt-seed1.nir").nodes.values()} >= {
        "LI",
        "Threshold",
        "Conv2d",
    }
    assert call("export", str(run), "-m", "sltt", "--seed", "1", "--format", "state-dict") == (
        0,
        "wrote sltt-seed1.pt",
    )
    assert "conv1.weight" in torch.load("sltt-seed1.pt", weights_only=True)
    published = ("--format", "eval-results", "--dataset-id", "some/digits")
    code, output = call("export", str(run), "-m", "sltt", "--seed", "1", *published)
    assert (code, output) == (
        2,
        "error: a --smoke run says nothing of accuracy: there is no result to publish",
    )
    for form, name in (("nir", "sltt-seed1.nir"), ("state-dict", "sltt-seed1.pt")):
        before, one = (
            Path(name).read_bytes(),
            ("export", str(run), "-m", "sltt", "--seed", "1", "--format", form),
        )
        with monkeypatch.context() as disk:
            disk.setattr(os, "fsync", full)
            code, output = call(*one, "--out", name)
        assert code == 2
        assert "could not be written (No space left on device)" in output
        assert Path(name).read_bytes() == before, "what was there stays"
        assert call(*one, "--out", "/dev/full") == (
            2,
            "error: /dev/full: cannot be written (No space left on device)",
        )
        Path("link").unlink(missing_ok=True)
        Path("link").symlink_to("elsewhere")
        for _ in ("there is none yet", "it is written anew"):
            assert call(*one, "--out", "link")[0] == 0
            assert Path("link").is_symlink(), "/dev/stdout is one"
            assert Path("elsewhere").stat().st_size == len(before)
        with monkeypatch.context() as disk:
            disk.setattr(os, "fsync", full)
            assert call(*one, "--out", "link")[0] == 2
        assert Path("elsewhere").stat().st_size == len(before), "what was there stays"
    assert not list(Path().glob(".*.tmp"))
    (checkpoint, *_) = run.glob("checkpoints/*.pt")
    checkpoint.write_bytes(b"torn")
    codes = [call("export", str(run), "-m", "sltt", "--seed", seed, "--out", "any.nir")[0] for seed in "01"]
    assert sorted(codes) == [0, 2], "the damaged one is named, not a fault of the tool"
    cells = run / "cells.csv"
    finished = cells.read_text()
    cells.write_text(finished.replace(",ok,", ",killed,"))
    code, output = call("export", str(run), "-m", "sltt", "--cell", ids["1"], "--format", "onnx")
    assert code == 2
    assert "the cell ended with killed" in output, "its weights are those of an epoch on the way"
    cells.write_text(finished)
    for checkpoint in run.glob("checkpoints/*.pt"):
        checkpoint.unlink()
    code, output = call("export", str(run), "--method", "sltt", "--seed", "0", "--out", "any.nir")
    assert code == 2
    assert "train.keep_checkpoint=true" in output


def published(
    tmp_path: Path, *options: str, method: str = "sltt", **cell: Any
) -> tuple[int, str, list[dict[str, Any]]]:
    """Exit code and output of exporting a handmade cell's accuracy, and what is in the file."""
    run = HandmadeRun(tmp_path / "digits" / "a")
    run.cell("sltt", 0, train_s=[5.0, 2.0], top1=[0.2, 0.975], **cell)
    out = tmp_path / "model" / ".eval_results" / "digits.yaml"
    arguments = [
        "export",
        str(run.path),
        "-m",
        method,
        "--format",
        "eval-results",
        "--out",
        str(out),
        *options,
    ]
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, " ".join(result.output.split()), read_yaml(out) if out.exists() else []


def test_an_accuracy_is_published_as_the_hub_keeps_it(tmp_path: Path) -> None:
    code, output, entries = published(
        tmp_path,
        "--dataset-id",
        "some/digits",
        "--task-id",
        "top1",
        "--source-url",
        "https://example.org/runs",
    )
    assert code == 0, output
    (entry,) = entries
    assert entry["dataset"] == {"id": "some/digits", "task_id": "top1"}
    assert entry["value"] == 97.5, "of the last epoch, whose weights are exported, in percent"
    assert entry["source"] == {"url": "https://example.org/runs"}
    assert "training method sltt" in entry["notes"]
    assert set(entry) <= {"dataset", "value", "verifyToken", "date", "source", "notes"}


def test_the_notes_of_a_published_accuracy_name_the_very_cell(tmp_path: Path) -> None:
    facts = {"sltt_bench": "0.1.0", "git_dirty": True}
    run = HandmadeRun(tmp_path / "digits" / "a", git_revision="0123456789abcdef", facts=facts)
    run.cell("sltt", 20230712, overrides={"train.lr": 0.3})
    out = tmp_path / "entry.yaml"
    export(run.path, "sltt", None, "eval-results", out, Benchmark("some/digits"))
    ((entry),) = read_yaml(out)
    assert entry["notes"].endswith(
        'recipe digits with {"train.lr": 0.3}, training method sltt, T = 6, seed 20230712; '
        "sltt-bench 0.1.0 at 0123456789ab with local changes"
    )


def test_a_cell_of_a_sweep_is_named_by_its_id(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path / "digits" / "a")
    ids = [
        run.cell("sltt", 3, recipe=varied(RECIPE, timesteps=timesteps), overrides={"timesteps": timesteps})
        for timesteps in (2, 4)
    ]
    with pytest.raises(ExportError) as told:
        trained_cell(run.path, "sltt", 3)
    for number, timesteps in zip(ids, (2, 4), strict=True):
        assert f'{number} (seed 3, reference, {{"timesteps": {timesteps}}})' in str(told.value)
    assert "name one by --seed or --cell: " in str(told.value)
    assert trained_cell(run.path, "sltt", 3, ids[1]).row["timesteps"] == 4
    assert trained_cell(run.path, "sltt", 3, ids[1]).name == f"sltt-{ids[1]}"
    run.cell("sltt", 4)
    assert trained_cell(run.path, "sltt", 3, ids[1]).name == f"sltt-seed3-{ids[1]}"
    assert trained_cell(run.path, "sltt", 4).name == "sltt-seed4"
    run.cell("bptt", 3)
    assert trained_cell(run.path, "bptt", 3).name == "bptt"
    result = CliRunner().invoke(app, ["export", str(run.path), "-m", "sltt", "--cell", ids[1]])
    assert (result.exit_code, f"{ids[1]}.pt: no such checkpoint" in "".join(result.output.split("\n"))) == (
        2,
        True,
    )
    for seed, cell_id, asked in ((None, "nobody", "id nobody"), (-1, None, "seed -1")):
        there_are = f"0 cells have the method sltt and {asked}; name one by --seed or --cell: .*{ids[0]} "
        with pytest.raises(ExportError, match=there_are):
            trained_cell(run.path, "sltt", seed, cell_id)


def test_an_accuracy_that_is_none_or_has_no_benchmark_is_not_published(tmp_path: Path) -> None:
    assert published(tmp_path / "a")[:2] == (
        2,
        "error: eval-results needs --dataset-id OWNER/NAME: the benchmark's data set on the Hub",
    )
    code, output, entries = published(tmp_path / "b", "--dataset-id", "x/y", status="oom", reason="no memory")
    assert (code, entries) == (2, [])
    assert "the cell ended with oom" in output
