"""What every cell would refuse is refused as it is planned, and in the same words."""

import signal
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

import plugin
import pytest
import torch
from typer.testing import CliRunner

from sltt_bench import backends, methods, models
from sltt_bench.analysis.plan import plan_analysis
from sltt_bench.backends.shipped import SERVES, refusal
from sltt_bench.command_line.cli import app
from sltt_bench.estimate.plan import plan_estimates
from sltt_bench.planning.plan import Cell, Plan, Request, make_plans, plans_of_all
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.planning.recipe_faults import RecipeError
from sltt_bench.running import cell_checks
from sltt_bench.running.interruptions import Interrupted
from sltt_bench.training.experiment import build_network, neuron_parameters
from sltt_bench.tuning.plan import plan_tuning

NEURONS: list[dict[str, Any]] = [
    {},
    {"neuron.surrogate_width": 2.0},
    {"neuron.tau": 1.0},
    {"neuron.kind": "plif", "neuron.tau": 2.0},
]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"native.compile": True, "native.recompute": True},
    {"native.compile": True, "native.fused_norm": "always"},
    {"native.graphs": "always"},
    {"native.cuda_graph": True},
]


@pytest.mark.parametrize(("backend", "neuron"), list(product(SERVES, NEURONS)), ids=str)
def test_a_plan_knows_what_the_backend_itself_would_say(backend: str, neuron: dict[str, Any]) -> None:
    for options in OPTIONS if backend == "native" else OPTIONS[:1]:
        recipe = load_recipe("digits", {**neuron, **options})
        native = recipe.native.backend_options()
        made = backends.create(backend, **(native if backend == "native" else {}))
        for method in methods.examples():
            known = refusal(backend, method, recipe.model, recipe.neuron, native, "cpu")
            own = made.unsupported(neuron_parameters(recipe), "fp32", "cpu")
            assert known == (own or backends.unserved(made, method)), (options, method)


def test_a_method_that_no_backend_serves_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = plugin.install(tmp_path, monkeypatch) / "third_party_methods.py"
    needs = (
        "from sltt_bench.methods import Promises\nplain.promises = Promises(needs=frozenset({'membrane'}))\n"
    )
    module.write_text(module.read_text() + needs)
    for method in ("third-party", "ottt"):
        arguments = ["run", "digits", "--backend", "native", "--method", f"bptt,{method}"]
        result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
        assert result.exit_code == 2
        assert f"error: --backend native: method '{method}' needs" in result.output
        assert not (tmp_path / "out").exists()


def test_a_pair_of_method_and_backend_is_left_out_where_another_serves() -> None:
    request = Request(methods=["bptt", "ottt", "rate"], backends=("reference", "native"))
    (plan,) = make_plans("digits", request)
    pairs = [(cell.backend, cell.method) for cell in plan]
    assert pairs == [
        ("reference", "bptt"),
        ("reference", "ottt"),
        ("reference", "rate"),
        ("native", "bptt"),
    ]
    assert [remark.partition(":")[0] for remark in plan.left_out] == ["ottt on native, left out", "rate on native, left out"]  # fmt: skip


def test_a_backend_without_a_cell_is_refused() -> None:
    request = Request(backends=("reference", "native"), grid=({"neuron.surrogate_width": 2.0},))
    with pytest.raises(RecipeError, match=r"^--backend native: its surrogates have .*\S$"):
        make_plans("digits", request)


def test_a_backend_whose_package_is_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sltt_bench.planning.plan.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"--backend: spikingjelly needs .*'sltt-bench\[spikingjelly\]'"):
        make_plans("digits", Request(backends=("reference", "spikingjelly")))
    assert make_plans("digits", Request(backends=("native",)))


def test_a_search_whose_settings_cannot_all_be_tried_is_refused() -> None:
    grid = {"train.lr": [0.1, 0.2], "neuron.surrogate_width": [1.0, 2.0]}
    request = Request(backends=("native",), grid=({"tuning.grid": grid},))
    with pytest.raises(
        RecipeError, match=r"tuning.grid: not every setting can be tried: .* on native, left out"
    ):
        plan_tuning("digits", request)


def test_samples_that_a_network_would_shrink_to_nothing_start_no_cell(tmp_path: Path) -> None:
    """Its builder, which every cell calls, says the same."""
    unsuited: list[dict[str, Any]] = [{"name": "vgg11"}, {"name": "cnn", "channels": [8, 8, 8, 8]}]
    for model in unsuited:
        options = models.options_type(model["name"]).model_validate(model)
        recipe = load_recipe("digits").model_copy(update={"model": options})
        with pytest.raises(ValueError, match="8×8") as built:
            build_network(recipe, backends.create("reference"))
        with pytest.raises(RecipeError) as planned:
            make_plans("digits", Request(grid=({"model": model},)))
        assert str(planned.value) == f"--set model: {built.value}"
    assert make_plans("digits", Request(grid=({"model": {"name": "cnn", "channels": [8, 8, 8]}},)))


# What only a process with torch knows -----------------------------------------------------------

RUN = ["run", "digits", "--smoke", "--device", "cpu", "--seed", "0"]
ANALYSE = ["analyze", "gradients", "digits", "--smoke", "--device", "cpu", "--seed", "0"]
TUNE = ["tune", "digits", "--smoke", "--device", "cpu"]
ESTIMATE = ["estimate", "digits", "--smoke"]


def refused(arguments: list[str], folder: Path) -> str:
    """What is said, in one line, by a command that writes nothing; --dry-run says the same, where there is one."""
    command = [*arguments, "--out", str(folder / "out")]
    results = [
        CliRunner().invoke(app, [*command, *dry])
        for dry in ([], ["--dry-run"])
        if not dry or arguments[0] not in ("submit", "estimate")
    ]
    assert [result.exit_code for result in results] == [2] * len(results), results[0].output
    assert len({result.output for result in results}) == 1
    assert not (folder / "out").exists()
    return " ".join(results[0].output.split())


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Those of the network of digits as --smoke has it."""
    path = tmp_path / "weights.pt"
    network = build_network(load_recipe("digits", smoke=True), backends.create("reference"))
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("command", "option"), [(RUN, "--init"), (["submit", *RUN[1:]], "--init"), (ANALYSE, "--checkpoint")]
)
def test_weights_of_another_network_start_no_cell(
    command: list[str], option: str, weights: Path, tmp_path: Path
) -> None:
    other = refused([*command, "--set", "model.channels=[4,4]", option, str(weights)], tmp_path)
    assert f"error: {option}: {weights}: these weights are not of this network" in other
    assert "conv1.weight: (8, 1, 3, 3) in the file; the network has (4, 1, 3, 3)" in other


def test_a_checkpoint_that_holds_no_weights_starts_no_cell(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "no-weights.pt")
    assert "no-weights.pt: holds no weights" in refused(
        [*RUN, "--init", str(tmp_path / "no-weights.pt")], tmp_path
    )


def test_a_layer_that_the_network_lacks_starts_no_cell(tmp_path: Path) -> None:
    fault = "method 'bptt-l9': there is no layer of neurons 9: the network has 2; choose another number or network"
    for command, place in (
        ([*RUN, "--method", "bptt,bptt-l9"], "digits: methods (--method)"),
        ([*TUNE, "--method", "bptt-l9"], "digits: methods (--method)"),
        ([*ANALYSE, "--method-gradients", "sltt,bptt-l9"], "--method-gradients"),
        ([*ESTIMATE, "--method", "bptt,bptt-l9"], "digits: methods (--method)"),
    ):
        assert refused(command, tmp_path) == f"error: {place}: {fault}"


def test_a_network_that_cannot_be_converted_starts_no_cell(tmp_path: Path) -> None:
    command = [*RUN, "--method", "conversion", "--set", "model.readout_tau=2.0"]
    fault = "method 'conversion' trains in one step, without the past that a layer of Readout carries"
    assert f"error: digits: methods (--method): {fault}; set model.readout_tau: null" in refused(
        command, tmp_path
    )


def test_a_layer_that_some_points_of_a_grid_lack_is_left_out_there() -> None:
    grid = ({"model.channels": [8]}, {"model.channels": [8, 8]})
    plans = make_plans("digits", Request(methods=["bptt", "bptt-l2"], grid=grid, seeds=[0, 1]))
    (plan,) = cell_checks.without_refused(plans)
    assert [(cell.method, cell.overrides["model.channels"], cell.seed) for cell in plan] == [
        ("bptt", [8], 0), ("bptt", [8], 1), ("bptt", [8, 8], 0), ("bptt-l2", [8, 8], 0), ("bptt", [8, 8], 1), ("bptt-l2", [8, 8], 1),
    ]  # fmt: skip
    (remark,) = plan.left_out
    assert remark.startswith(
        "bptt-l2 on reference, left out: method 'bptt-l2': there is no layer of neurons 2"
    )


def test_a_single_sample_of_which_batch_norm_makes_nothing_is_refused_where_a_process_has_one() -> None:
    norm = {"model.normalisation": "batch"}
    whole, last = {"train.batch_size": 1}, {"data.limit": 33, "train.batch_size": 16}
    shared = {"train.batch_size": 4, "train.devices": 3}
    few = [{**norm, **whole}, {**norm, **last}, {**norm, **shared}]
    enough = [whole, last, {**norm, **last, "train.drop_last": True}, {**norm, "train.batch_size": 2}]
    request = Request(methods=["sltt"], seeds=[0], smoke=True, grid=tuple(few + enough))
    (plan,) = cell_checks.without_refused(make_plans("sequential-digits", request))
    assert [cell.overrides for cell in plan] == enough
    assert len(plan.left_out) == len(few)
    assert all("has one sample" in remark for remark in plan.left_out)
    assert ["drop_last" in remark for remark in plan.left_out] == [False, True, False]


def test_an_analysis_before_training_looks_at_no_last_batch_of_a_single_sample() -> None:
    """Of 33 samples two batches of 16 come before it; what trains goes through it."""
    overrides = {"model.normalisation": "batch", "data.limit": 33, "train.batch_size": 16}
    request = Request(methods=["sltt"], seeds=[0], smoke=True, grid=(overrides,))

    def plans(epochs: str) -> list[Plan]:
        return plan_analysis("sequential-digits", request, epochs=epochs, batches=2)

    assert cell_checks.without_refused(plans("0")) == plans("0")
    with pytest.raises(RecipeError, match="has one sample"):
        cell_checks.without_refused(plans("0,1"))


BACKENDS = """
from sltt_bench.backends.reference import Reference

class OnlySpikes(Reference):
    serves = frozenset({"spikes"})

class OnlyGpus(Reference):
    def unsupported(self, neuron, precision, device):
        return None if device.startswith("cuda") else f"its kernels are for CUDA, but the device is {device}"

class OnlyHalves(Reference):
    def unsupported(self, neuron, precision, device):
        return None if precision == "fp16" else f"computes in fp16, not in {precision}"

"""


@pytest.fixture
def third_party_backends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = plugin.install(tmp_path, monkeypatch)
    (site / "third_party_backends.py").write_text(BACKENDS)
    entries = [
        "only-spikes = third_party_backends:OnlySpikes",
        "only-halves = third_party_backends:OnlyHalves",
        "only-gpus = third_party_backends:OnlyGpus",
    ]
    lines = ["[sltt_bench.backends]", *entries, "missing = third_party_backends:nothing_here"]
    (site / "third_party_methods-1.0.dist-info" / "entry_points.txt").write_text("\n".join(lines))


@pytest.mark.usefixtures("third_party_backends")
def test_a_third_partys_backend_is_asked_as_a_shipped_one_is(tmp_path: Path) -> None:
    needs = "method 'ottt' needs traces in place of the synapses' inputs, which this backend does not offer"
    assert f"error: --backend only-spikes: {needs}" in refused(
        [*RUN, "--backend", "only-spikes", "--method", "bptt,ottt"], tmp_path
    )
    for command in (RUN, ESTIMATE):
        assert "error: --backend only-halves: computes in fp16, not in fp32" in refused(
            [*command, "--backend", "only-halves", "--method", "bptt"], tmp_path
        )
    assert "error: --backend missing: plug-in 'missing'" in refused([*RUN, "--backend", "missing"], tmp_path)
    both = Request(methods=["bptt", "ottt"], backends=("only-spikes", "reference"))
    (plan,) = cell_checks.without_refused(make_plans("digits", both))
    assert [(cell.backend, cell.method) for cell in plan] == [
        ("only-spikes", "bptt"), ("reference", "bptt"), ("reference", "ottt"),
    ]  # fmt: skip
    assert plan.left_out[0].startswith("ottt on only-spikes, left out: method 'ottt' needs")


@pytest.mark.usefixtures("third_party_backends")
def test_a_backend_for_gpus_alone_is_not_refused_where_a_plan_is_only_handed_over() -> None:
    plans = make_plans(
        "digits", Request(methods=["bptt"], backends=("only-halves",), grid=({"train.precision": "amp"},))
    )
    assert cell_checks.without_refused(plans, here=False) == plans
    if not torch.cuda.is_available():
        with pytest.raises(RecipeError, match="--backend only-halves: computes in fp16, not in bf16"):
            cell_checks.without_refused(plans)


@pytest.mark.usefixtures("third_party_backends")
def test_no_estimate_is_made_on_a_backend_for_gpus_alone() -> None:
    plans = make_plans("digits", Request(methods=["bptt"], backends=("only-gpus",), device="cuda"))
    fault = r"CUDA, but the device is cpu \(an estimate computes on fake tensors of a CPU\)$"
    with pytest.raises(RecipeError, match=rf"^--backend only-gpus: its kernels are for {fault}"):
        cell_checks.without_refused(plan_estimates(plans, device_type="cuda"), here=False)


def test_a_second_stage_of_another_network_is_refused_before_the_first_is_trained(tmp_path: Path) -> None:
    (tmp_path / "first.yaml").write_text("extends: digits\ntrain: {keep_checkpoint: true}\n")
    (tmp_path / "second.yaml").write_text("extends: first\ninit_from: first\nmodel: {channels: [8, 16]}\n")
    run = ["run", str(tmp_path / "second.yaml"), "--device", "cpu"]
    assert (
        "error: second: init_from: the checkpoint of first: these weights are not of this network"
        in refused(run, tmp_path)
    )
    kept = [*run, "--set", "model.channels=[32,64]", "--dry-run"]
    assert CliRunner().invoke(app, kept).exit_code == 0


def test_a_plan_that_leaves_nothing_open_asks_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cell_checks, "computed", lambda cells, **_: pytest.fail("asked"))
    (tmp_path / "first.yaml").write_text("extends: digits\ntrain: {keep_checkpoint: true}\n")
    (tmp_path / "second.yaml").write_text("extends: first\ntimesteps: 3\ninit_from: first\n")
    plans = plans_of_all(["digits", "imagenet-resnet34", str(tmp_path / "second.yaml")], Request())
    assert cell_checks.without_refused(plans) == plans


def test_a_check_that_ends_in_another_error_leaves_the_cell_to_tell(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sltt_bench.kinds.checks._check_weights", lambda *_: 1 / 0)
    plans = make_plans("digits", Request(methods=["bptt"], smoke=True, init=str(weights)))
    assert cell_checks.without_refused(plans) == plans


def test_an_interruption_of_a_check_ends_the_command_in_a_sentence(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(cells: list[Cell], **_: float) -> NoReturn:
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(cell_checks, "computed", interrupted)
    result = CliRunner().invoke(app, [*RUN, "--init", str(weights), "--out", str(tmp_path / "out")])
    assert result.exit_code == 128 + signal.SIGINT
    assert result.output == "interrupted by SIGINT; nothing was begun\n"


def test_weights_of_the_network_itself_are_no_fault(weights: Path) -> None:
    plans = make_plans("digits", Request(methods=["bptt"], smoke=True, init=str(weights)))
    assert cell_checks.without_refused(plans) == plans


@pytest.mark.parametrize(
    ("overrides", "read_with", "why"),
    [
        ({"native.recompute": True}, {"backends": ("reference", "native")}, "only the backend native reads it"),
        ({"smoke.timesteps": 3}, {"smoke": True}, "only --smoke reads it"),
        ({"data.synthetic_samples": 99}, {"synthetic": True}, "only --synthetic reads it"),
        ({"data.prefetch_factor": 4}, {"grid": {"data.workers": 1}}, "data.workers is 0"),
        ({"neuron.tau": 2.0, "methods": ["conversion"]}, {"grid": {"methods": ["bptt"]}}, "method conversion has neurons of its own"),
        ({"tuning.epochs": 3}, None, "only `sltt-bench tune` reads it"),
        ({"train.synchronise_batch_norm": True}, None, "train.devices is 1"),
        ({"train.momentum": 0.5, "train.optimizer": "adamw"}, {"grid": {"train.optimizer": "sgd"}}, "train.optimizer adamw has none"),
        ({"loss.mse_target": "one-hot", "loss.alpha": 0.0}, {"grid": {"loss.alpha": 0.5}}, "loss.alpha is 0"),
    ],
)  # fmt: skip
def test_an_override_that_no_cell_reads_is_said_to_count_for_nothing(
    overrides: dict[str, Any], read_with: dict[str, Any] | None, why: str
) -> None:
    (plan,) = cell_checks.without_refused(make_plans("digits", Request(grid=(overrides,))))
    assert plan.remarks == (f"{next(iter(overrides))} counts for nothing here: {why}",)
    if read_with is not None:
        point = {**overrides, **read_with.get("grid", {})}
        request = Request(**{**read_with, "grid": (point, overrides)})
        (plan,) = cell_checks.without_refused(make_plans("digits", request))
        assert plan.remarks == ()


def test_tuning_reads_what_it_is_told_to_search() -> None:
    request = Request(grid=({"tuning.epochs": 3, "train.optimizer": "adamw"},))
    plans = plan_tuning("digits", request)
    assert [plan.remarks for plan in cell_checks.without_refused(plans)] == [plan.remarks for plan in plans]


NETWORKS = """
from typing import Literal

from torch import nn

from sltt_bench.models.options import ModelOptions

class Without:
    class Options(ModelOptions):
        name: Literal["without-neurons"] = "without-neurons"

    @staticmethod
    def build(options, *, neuron, input_shape, classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))

class With:
    class Options(ModelOptions):
        name: Literal["with-neurons"] = "with-neurons"

    @staticmethod
    def build(options, *, neuron, input_shape, classes):
        return nn.Sequential(nn.Flatten(), neuron(), nn.Linear(64, classes))
"""


def test_a_neurons_field_counts_for_nothing_in_a_network_without_the_recipes_neurons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = plugin.install(tmp_path, monkeypatch)
    (site / "third_party_networks.py").write_text(NETWORKS)
    lines = [f"{kind.lower()}-neurons = third_party_networks:{kind}" for kind in ("Without", "With")]
    entries = "\n".join(["[sltt_bench.models]", *lines])
    (site / "third_party_methods-1.0.dist-info" / "entry_points.txt").write_text(entries)
    remarks = {}
    for name in ("without-neurons", "with-neurons"):
        grid = tuple({"model": {"name": name}, "neuron.tau": tau} for tau in (1.1, 2.0))
        (plan,) = cell_checks.without_refused(make_plans("digits", Request(methods=["bptt"], grid=grid)))
        remarks[name] = plan.remarks
    why = "network without-neurons has no layer of the recipe's neurons"
    assert remarks == {"without-neurons": (f"neuron.tau counts for nothing here: {why}",), "with-neurons": ()}
