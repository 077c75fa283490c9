"""Plans: which cells a request expands into, their identity, and prerequisites."""

import json
from typing import Any

import pytest

from sltt_bench.planning.plan import Request, cell_from_dict, make_plans
from sltt_bench.planning.recipe_faults import RecipeError


def test_cells_are_the_product_of_grid_seeds_backends_and_methods() -> None:
    request = Request(methods=["bptt", "sltt"], seeds=[0, 1, 2], grid=({"timesteps": 2}, {"timesteps": 4}))
    (plan,) = make_plans("digits", request)
    assert len(plan) == 12
    assert len({cell.cell_id for cell in plan}) == 12
    assert {(c.method, c.seed, c.recipe.timesteps) for c in plan} == {
        (m, s, t) for m in ("bptt", "sltt") for s in (0, 1, 2) for t in (2, 4)
    }


def test_a_repeated_combination_is_one_cell() -> None:
    (plan,) = make_plans("digits", Request(methods=["sltt", "sltt"], seeds=[0], grid=({}, {"timesteps": 6})))
    assert len(plan) == 1


def test_methods_and_seeds_share_the_recipe_hash_but_not_the_cell_id() -> None:
    (plan,) = make_plans("digits", Request(methods=["bptt", "sltt"], seeds=[0, 1]))
    assert len({cell.recipe_hash for cell in plan}) == 1
    assert len({cell.cell_id for cell in plan}) == 4


def test_smoke_and_synthetic_cells_are_never_taken_for_real_ones() -> None:
    hashes = {
        make_plans("digits", request)[0].cells[0].recipe_hash
        for request in (Request(), Request(smoke=True), Request(synthetic=True))
    }
    assert len(hashes) == 3


def test_the_device_and_place_do_not_change_the_identity() -> None:
    one, other = (make_plans("digits", Request(device=device))[0].cells[0] for device in ("cpu", "cuda:0"))
    assert one.cell_id == other.cell_id


def test_a_cell_survives_the_way_through_json() -> None:
    cell = make_plans("digits", Request(methods=["sltt-k2"], grid=({"train.epochs": 3},)))[0].cells[0]
    again = cell_from_dict(json.loads(json.dumps(cell.to_dict())))
    assert again.cell_id == cell.cell_id
    assert again.k == 2
    assert again.recipe == cell.recipe


def test_an_unknown_backend_is_refused_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'reference'"):
        make_plans("digits", Request(backends=("referense",)))


def test_faults_of_any_grid_point_are_found_before_the_run() -> None:
    with pytest.raises(RecipeError, match="tau"):
        make_plans("digits", Request(grid=({"neuron.tau": 2.0}, {"neuron.tau": 0.5})))


def test_a_sweep_over_t_leaves_out_the_points_where_k_exceeds_t() -> None:
    sweep = tuple({"timesteps": steps} for steps in (1, 2, 4))
    (plan,) = make_plans("digits", Request(methods=["bptt", "sltt-k2", "sltt-k4"], seeds=[0], grid=sweep))
    assert [(cell.method, cell.recipe.timesteps) for cell in plan] == [
        ("bptt", 1), ("bptt", 2), ("sltt-k2", 2), ("bptt", 4), ("sltt-k2", 4), ("sltt-k4", 4),
    ]  # fmt: skip
    assert plan.left_out == (
        "sltt-k2 is left out at T = 1: K must not exceed T",
        "sltt-k4 is left out at T = 1, 2: K must not exceed T",
    )
    assert all(cell_from_dict(cell.to_dict()).cell_id == cell.cell_id for cell in plan)


def test_an_override_that_changes_nothing_is_none() -> None:
    (plan,) = make_plans("digits", Request(seeds=[0], grid=({"timesteps": 6}, {"timesteps": 4})))
    assert [cell.overrides for cell in plan if cell.method == "bptt"] == [{}, {"timesteps": 4}]


def test_a_k_that_fits_no_point_is_refused() -> None:
    with pytest.raises(RecipeError, match="N = 5 and T = 4"):
        make_plans("digits", Request(methods=["bptt", "sltt-k5"], grid=({"timesteps": 4}, {"timesteps": 1})))


@pytest.mark.parametrize(
    "values",
    [
        {"description": ("a", "b")},
        {"target": (0.8, 0.9)},
        {"train.keep_checkpoint": (True, False)},
        {"tuning.epochs": (1, 2)},
        {"init_from": ("digits", None)},
    ],
)
def test_an_axis_at_whose_points_the_same_would_be_run_is_refused(values: dict[str, tuple[Any, Any]]) -> None:
    ((key, two),) = values.items()
    with pytest.raises(RecipeError, match=rf"^--set {key}: takes one value for a command"):
        make_plans("digits", Request(grid=tuple({key: value, "train.lr": 0.1} for value in two)))


def test_axes_of_methods_and_seeds_are_axes() -> None:
    grid = ({"methods": ["bptt"], "seeds": [1]}, {"methods": ["sltt"], "seeds": [2]})
    (plan,) = make_plans("digits", Request(grid=grid))
    assert [(cell.method, cell.seed) for cell in plan] == [("bptt", 1), ("sltt", 2)]
