"""The loss of a step and the count of right predictions against their formulas."""

import math

import pytest
import torch

from sltt_bench.losses import correct_in_top, step_loss

OUTPUT = [[2.0, 0.0, -1.0], [0.5, 0.5, 0.5]]
LABELS = [0, 2]


def by_hand(alpha: float, target: list[list[float]]) -> float:
    """(1 − α) CE + α MSE, the mean over samples, and for MSE over classes too, in plain Python."""
    cross_entropy = sum(
        math.log(sum(math.exp(o) for o in row)) - row[label]
        for row, label in zip(OUTPUT, LABELS, strict=True)
    ) / len(OUTPUT)
    squares = [
        (o - r) ** 2
        for row, wanted in zip(OUTPUT, target, strict=True)
        for o, r in zip(row, wanted, strict=True)
    ]
    return (1 - alpha) * cross_entropy + alpha * sum(squares) / len(squares)


TARGETS = {"ones": [[1, 1, 1], [1, 1, 1]], "one-hot": [[1, 0, 0], [0, 0, 1]]}


@pytest.mark.parametrize("alpha", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("target", sorted(TARGETS))
def test_the_loss_equals_its_formula(alpha, target):
    output = torch.tensor(OUTPUT, dtype=torch.float64)
    loss = step_loss(output, torch.tensor(LABELS), alpha, target)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(by_hand(alpha, TARGETS[target]), rel=1e-12)


def test_the_loss_by_hand_is_the_number_written_out():
    """CE = (log(e² + 1 + e⁻¹) − 2 + log 3) / 2 and MSE to ones = (1 + 1 + 4 + 3 · 1/4) / 6 = 1.125."""
    cross_entropy = (math.log(math.e**2 + 1 + 1 / math.e) - 2 + math.log(3)) / 2
    assert by_hand(0.05, TARGETS["ones"]) == pytest.approx(0.95 * cross_entropy + 0.05 * 1.125)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_outputs_in_mixed_precision_are_judged_in_float32(dtype):
    output = torch.tensor(OUTPUT).to(dtype)
    loss = step_loss(output, torch.tensor(LABELS), 0.05, "ones")
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(by_hand(0.05, TARGETS["ones"]), rel=1e-6)  # OUTPUT is exact in both


def test_correct_in_top_counts_labels_among_the_k_largest():
    outputs = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [0.0, 0.0, 9.0]])
    labels = torch.tensor([0, 1, 2, 2])
    assert [correct_in_top(outputs, labels, k).item() for k in (1, 2, 3)] == [2, 3, 4]


def test_with_fewer_than_k_classes_every_label_is_among_the_k_largest():
    assert correct_in_top(torch.randn(7, 3), torch.zeros(7, dtype=torch.long), 5).item() == 7
