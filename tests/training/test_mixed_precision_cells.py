"""What half precision must not change: counts, sums over many steps, the end of a training that no longer learns, and
a checkpoint's way to another device."""

import io
import math
import time
from collections.abc import Callable
from copy import deepcopy
from typing import Any, cast

import pytest
import torch
from engine_parts import Batches, Rows, Setup
from torch import Tensor, nn

from sltt_bench.common.failures import DIVERGED
from sltt_bench.estimate.trace import trace_memory
from sltt_bench.kinds.training import report_costs
from sltt_bench.measure import Profiler
from sltt_bench.measure.neurobench import InferenceCosts
from sltt_bench.methods import bptt_checkpointed
from sltt_bench.methods.rate import Rates
from sltt_bench.neurons import LIF, LIFParameters
from sltt_bench.planning.plan import Cell
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.running.worker import Reporter
from sltt_bench.training import engine, experiment
from sltt_bench.training.experiment import Experiment
from sltt_bench.tuning.choice import is_lost

CPU = torch.device("cpu")


def subject_of(
    method: str = "sltt", precision: str = "fp16", backend: str = "reference", **overrides: Any
) -> Experiment:
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    model = dotted.pop("model", {"name": "mlp", "hidden": [16]})
    recipe = load_recipe(
        "digits",
        {"train.precision": precision, "timesteps": 4, "model": model, **dotted},
        chosen_methods=[method],
    )
    cell = Cell(recipe, method, backend, seed=0, device="cpu")
    subject = experiment.assemble(cell, CPU, experiment.make_backend(cell))
    subject.network.train()
    return subject


def batch(samples: int = 8, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = scale * torch.randn(samples, 1, 8, 8, generator=generator)
    return x, torch.randint(10, (samples,), generator=generator)


# Counts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(2048, 512), (2048,)),
        (nn.Conv2d(64, 128, 3, padding=1), (64, 8, 8)),
        (nn.Conv2d(256, 512, 3), (256, 4, 4)),
    ],
    ids=str,
)
def test_operations_of_inference_are_whole_numbers_in_any_precision(
    layer: nn.Module, shape: tuple[int, ...], half: torch.dtype
) -> None:
    """There are more of them than fp16 has numbers (65504), and bf16 has eight digits of each."""
    network = nn.Sequential(layer)
    x = (torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    counts = []
    for context in (torch.autocast("cpu", enabled=False), torch.autocast("cpu", half)):
        with torch.no_grad(), InferenceCosts(network) as costs, context:
            network(x)
        counts.append(costs.totals().tolist())
    assert counts[0] == counts[1]
    assert all(map(math.isfinite, counts[0]))


def test_a_trained_cell_is_whole_though_its_costs_cannot_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any) -> None:
        raise OverflowError("cannot convert float infinity to integer")

    monkeypatch.setattr("sltt_bench.measure.neurobench._connections_of", fails)
    subject, (x, labels) = subject_of(precision="fp32"), batch()
    setup: Any = Setup(test=Batches([(x, labels)]))
    cell: Any = type("Cell", (), {"synthetic": False})
    with Profiler(CPU) as profiler:
        report_costs(cell, subject, setup, profiler, Reporter(io.StringIO(), None))
    assert profiler.absent["dense_synops"].startswith("they could not be counted: ")
    assert "infinity" in profiler.absent["dense_synops"]


# Sums over many steps ---------------------------------------------------------------------------


def test_the_mean_output_over_many_steps_is_not_that_of_half_precision() -> None:
    """In bf16 a sum of 400 equal shares loses a third of them."""
    losses = {}
    for precision in ("fp32", "bf16"):
        subject, (x, labels) = subject_of("bptt", precision, timesteps=400, loss__average="outputs"), batch()
        with torch.no_grad():
            subject.network.get_parameter("classifier.bias").copy_(torch.linspace(-2, 2, 10))
        losses[precision] = float(subject.accumulate_gradients(x, labels).summed_loss)
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)


def test_a_mean_rate_over_many_steps_is_not_that_of_half_precision() -> None:
    layer, rates = LIF(LIFParameters(tau=2.0)), Rates()
    spikes = (torch.rand(784, 1000, generator=torch.Generator().manual_seed(0)) < 0.25).bfloat16()
    for step in spikes:
        rates.follow(layer, step, step)
    mean = rates.rate_of(layer, torch.zeros(1000))
    torch.testing.assert_close(mean, spikes.float().mean(0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("precision", "computed"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_evaluation_has_the_precision_of_the_training(precision: str, computed: torch.dtype) -> None:
    subject, seen, setup = subject_of("bptt", precision), [], cast(Any, Setup())
    subject.network.register_forward_hook(lambda network, args, output: seen.append(output.dtype))
    engine._evaluate(subject, setup, Batches([batch()]), CPU)
    assert {*seen} == {computed}


# A training that no longer learns -----------------------------------------------------------------


def trained(subject: Experiment, x: Tensor, labels: Tensor, epochs: int) -> list[Any]:
    recipe = load_recipe("digits")
    setup = engine.TrainingSetup(
        train=Batches([(x, labels)] * 20),
        evaluated={},
        preprocess=Setup.preprocess,
        schedule=experiment.build_schedule(recipe, subject.optimizer),
        epochs=epochs,
        checkpoint_every=0,
    )
    listener: Any = Rows()
    with Profiler(CPU) as profiler:
        engine.train(subject, setup, profiler, listener)
    return list(listener.rows)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # where a first step is skipped
def test_gradients_that_are_finite_at_no_scale_end_the_training() -> None:
    """A potential that is infinite is a spike, and the loss stays finite: the scaler alone knows, and skips every step."""
    subject = subject_of(model={"name": "mlp", "hidden": [64, 32]}, neuron__reset="hard")
    with pytest.raises(engine.TrainingDiverged, match="not finite at any scale") as failure:
        trained(subject, *batch(scale=7e4), epochs=5)
    assert is_lost("error", str(failure.value)), "a trial that ends so is lost, and not an error of the tool"
    assert str(failure.value).startswith(DIVERGED)
    assert "fp16 ends at 65504" in str(failure.value), "a smaller learning rate would be of no use"


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_a_training_in_fp16_that_skips_its_first_steps_goes_on() -> None:
    subject = subject_of()
    subject.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    trained(subject, *batch(), epochs=3)
    assert 1 < subject.scaler.get_scale() < 2.0**60


@pytest.mark.parametrize(
    ("backend", "method"), [("reference", "sltt-k1"), ("native", "sltt-k1"), ("native", "sltt")]
)
def test_an_iteration_that_reaches_nothing_that_learns_is_no_fault_of_the_scaler(
    backend: str, method: str
) -> None:
    """Of recurrent weights alone, step 1 has no gradient; sltt-k1 draws it in one of four iterations."""
    model = {"name": "mlp", "hidden": [16], "recurrent": True}
    subject = subject_of(method, backend=backend, model=model)
    for name, parameter in subject.network.named_parameters():
        parameter.requires_grad_("recurrent" in name)
    reached = []
    for _ in range(8):
        subject.training_iteration(*batch())
        reached.append([name for name, p in subject.network.named_parameters() if p.grad is not None])
    assert ["layer1.recurrent.weight"] in reached
    assert ([] in reached) == (method == "sltt-k1")


def test_a_network_that_cannot_learn_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    build = experiment.build_network
    monkeypatch.setattr(
        experiment, "build_network", lambda *args, **how: build(*args, **how).requires_grad_(False)
    )
    with pytest.raises(experiment.UnsupportedCell, match="model 'mlp' has no parameter that learns"):
        subject_of()


# Checkpoints on another device ------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_checkpoint_of_a_device_with_other_kernels_is_gone_on_with_by_ones_own(optimizer: str) -> None:
    """A CPU's optimiser is not fused, a GPU's is: the scaler of fp16 asks for the one that it was told of."""
    began = subject_of(precision="fp32", train__optimizer=optimizer)
    began.training_iteration(*batch())
    setup: Any = Setup()
    setup.schedule = experiment.build_schedule(load_recipe("digits"), began.optimizer)
    state = deepcopy(engine.training_state(began, setup, epoch=1))
    recipe = load_recipe("digits", {"train.optimizer": optimizer})
    subject = subject_of(train__optimizer=optimizer)
    subject.optimizer = experiment.build_optimizer(recipe, subject.network, fused=True)
    setup.schedule = experiment.build_schedule(recipe, subject.optimizer)
    engine.restore(subject, setup, state)
    assert [group["fused"] for group in subject.optimizer.param_groups] == [True]
    assert state["optimizer"]["param_groups"][0]["fused"] is not True, "what was read stays as it is"
    subject.training_iteration(*batch())


@pytest.mark.parametrize("there", ["device", "of all GPUs, by an earlier version"])
def test_the_random_numbers_of_a_gpu_go_on_on_whichever_it_is(
    there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_to: dict[Any, Tensor] = {}
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda state, device: set_to.update({str(device): state})
    )
    state = torch.tensor([1, 2, 3])
    draws = {"device": state} if there == "device" else {"cuda": [state]}
    engine._restore_draws_of_device(torch.device("cuda", 1), draws)
    assert list(set_to) == ["cuda:1"]
    assert torch.equal(set_to["cuda:1"], state)
    engine._restore_draws_of_device(CPU, draws)
    engine._restore_draws_of_device(torch.device("cuda", 0), {"device": None})  # a checkpoint of a CPU
    assert len(set_to) == 1


# Checkpoints in time, and estimates ---------------------------------------------------------------


def test_every_segment_that_is_computed_again_tells_torch_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a tensor that it is given: torch keeps the random numbers of those devices, and a first state is on none."""
    given: list[list[Tensor]] = []
    checkpoint: Callable[..., Any] = bptt_checkpointed.checkpoint

    def noted(function: Any, state: Any, *arguments: Any, **options: Any) -> Any:
        given.append([argument for argument in arguments if isinstance(argument, Tensor)])
        return checkpoint(function, state, *arguments, **options)

    monkeypatch.setattr(bptt_checkpointed, "checkpoint", noted)
    subject_of("bptt-ckpt2", "fp32").accumulate_gradients(*batch())
    assert len(given) == 2
    assert all(given)


def estimated_on_a_gpu_and_a_cpu(method: str, normalisation: str) -> float:
    """The ratio of the peaks, in bf16."""
    model = {"name": "cnn", "channels": [32, 32], "normalisation": normalisation}
    recipe = load_recipe("digits", {"model": model, "train.precision": "bf16"}, chosen_methods=[method])
    cell = Cell(recipe, method, "reference", seed=0, device="cpu")
    return trace_memory(cell, "cuda").peak_bytes / trace_memory(cell, "cpu").peak_bytes


@pytest.mark.parametrize("method", ["bptt", "sltt"])
def test_an_estimate_for_a_gpu_has_group_norm_in_float32(method: str) -> None:
    """As autocast of CUDA has it; that of a CPU leaves it in half, and so does what is stored behind it."""
    assert estimated_on_a_gpu_and_a_cpu(method, "group") > 1.1
    assert estimated_on_a_gpu_and_a_cpu(method, "none") == pytest.approx(1, rel=0.02)


def test_no_process_of_a_cell_starts_its_clock_before_all_have_come() -> None:
    """Else the others of rank 0 would count, as their training, how long it writes a checkpoint."""
    came = []
    with Profiler(CPU) as profiler:
        profiler.together = lambda: came.append(time.sleep(0.4))
        epoch = profiler.epoch(1)
        with epoch.train():
            assert len(came) == 1
    train_s = epoch.figures()["train_s"]
    assert isinstance(train_s, float)
    assert train_s < 0.2
