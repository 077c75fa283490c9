"""What guessing reaches follows from the data set's own number of classes, for every registered data set."""

from typing import Any

import pytest

from sltt_bench.data import DATASETS
from sltt_bench.report.chance import ABOVE_CHANCE, accuracy_floor

IN_THE_USERS_FILES = {"arrays", "image-folder"}


@pytest.mark.parametrize("name", sorted(set(DATASETS) - IN_THE_USERS_FILES))
def test_every_data_set_has_a_floor_without_more_than_its_name(name: str) -> None:
    floor = accuracy_floor({"name": name})
    assert floor is not None
    assert 0 < floor < 1


@pytest.mark.parametrize(
    ("data", "classes"),
    [
        ({"name": "vowels"}, 9),
        ({"name": "fashion-mnist"}, 10),
        ({"name": "ssc"}, 35),
        ({"name": "n-caltech101"}, 101),
        ({"name": "delayed-recall", "symbols": 8}, 8),
        ({"name": "arrays", "num_classes": 3}, 3),
        ({"name": "image-folder", "num_classes": 200}, 200),
    ],
)
def test_the_floor_is_a_stated_multiple_of_guessing(data: dict[str, Any], classes: int) -> None:
    assert accuracy_floor(data) == pytest.approx(ABOVE_CHANCE / classes)


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
