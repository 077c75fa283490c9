"""What guessing reaches follows from the data set's own number of classes, for every registered data set."""

from pathlib import Path
from typing import Any

import pytest
from result_builder import RECIPE, HandmadeRun, varied

from sltt_bench.data import DATASETS
from sltt_bench.report.chance import accuracy_floor
from sltt_bench.report.grouping import make_groups
from sltt_bench.report.sections.runs.tables import overview
from sltt_bench.results.reader import read_results

IN_THE_USERS_FILES = {"arrays", "image-folder"}


@pytest.mark.parametrize("name", sorted(set(DATASETS) - IN_THE_USERS_FILES))
def test_every_data_set_has_a_floor_without_more_than_its_name(name: str) -> None:
    floor = accuracy_floor({"name": name})
    assert floor is not None
    assert 0 < floor < 1


@pytest.mark.parametrize(
    ("data", "floor"),
    [
        ({"name": "image-folder", "num_classes": 200}, 0.0075),
        ({"name": "n-caltech101"}, 1.5 / 101),
        ({"name": "ssc"}, 1.5 / 35),
        ({"name": "fashion-mnist"}, 0.15),
        ({"name": "vowels"}, 1 / 9 + 8 / 9 / 18),
        ({"name": "delayed-recall", "symbols": 4}, 1 / 4 + 3 / 4 / 18),
        ({"name": "arrays", "num_classes": 2}, 1 / 2 + 1 / 2 / 18),
        ({"name": "arrays", "num_classes": 1}, 1.0),
    ],
)
def test_the_floor_is_a_multiple_of_guessing_and_of_few_classes_a_share_of_what_it_misses(
    data: dict[str, Any], floor: float
) -> None:
    assert accuracy_floor(data) == pytest.approx(floor)


def test_seventy_percent_of_two_classes_are_not_chance(tmp_path: Path) -> None:
    run = HandmadeRun(tmp_path, recipe=varied(RECIPE, data={"name": "arrays", "num_classes": 2}))
    run.cell("bptt", top1=(0.5, 0.5, 0.52))
    run.cell("sltt", top1=(0.5, 0.6, 0.7))
    (group,) = make_groups(read_results([tmp_path]))
    assert (group.at_chance("bptt"), group.at_chance("sltt")) == (True, False)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"name": "of-a-package-that-is-not-here"},
        {"name": "delayed-recall", "symbols": "many"},
        {"name": "arrays"},  # its classes stand in a file
    ],
)
def test_unknown_classes_give_no_floor(data: dict[str, Any]) -> None:
    assert accuracy_floor(data) is None


@pytest.mark.parametrize("doubting", [1, 2])
def test_a_method_that_names_the_largest_class_with_every_seed_is_at_chance_though_above_the_floor(
    doubting: int, tmp_path: Path
) -> None:
    """Guessing among ten classes reaches 10 %, naming always the largest of them more; only the cells know how much."""
    doubt = "test accuracy is at chance (23.8%, and one of 10 classes has 23.8% of the test samples)"
    run = HandmadeRun(tmp_path / "run")
    for seed in range(2):
        run.cell("bptt", seed, top1=(0.1, 0.5, 0.9))
        run.cell("sltt", seed, top1=(0.1, 0.2, 0.238), cell={"doubts": doubt if seed < doubting else ""})
    (group,) = make_groups(read_results([tmp_path]))
    assert group.accuracy_floor == pytest.approx(0.15)
    notes = " ".join(overview(group, "bptt").notes)
    assert doubt in notes
    assert group.at_chance("sltt") == (doubting == 2)
    assert ("sltt is at chance with every seed" in notes) == (doubting == 2)
