"""What a shipped backend would refuse in every cell is refused as it is planned, and in the same words."""

from itertools import product
from pathlib import Path
from typing import Any

import plugin
import pytest
from typer.testing import CliRunner

from sltt_bench import backends, methods
from sltt_bench.backends.shipped import SERVES, refusal
from sltt_bench.cli import app
from sltt_bench.experiment import neuron_parameters
from sltt_bench.plan import Request, make_plans
from sltt_bench.recipe import RecipeError, load_recipe
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
    monkeypatch.setattr("sltt_bench.plan.find_spec", lambda name: None)
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
