"""An epoch's loss and accuracies, from batches of different size."""

import pytest
import torch

from sltt_bench.training.engine import _Totals


def test_an_epochs_figures_are_means_over_samples_not_over_batches():
    """The last batch may be smaller. Outputs fall from class 0 to class 6, so label k is the (k + 1)th best."""
    totals = _Totals(torch.device("cpu"))
    for loss, labels in ((1.0, [0, 1, 4, 5]), (3.0, [0])):
        outputs = torch.arange(7.0, 0.0, -1.0).expand(len(labels), 7)
        totals.add(torch.tensor(loss), outputs, torch.tensor(labels))
    assert totals.means() == pytest.approx((1.4, 2 / 5, 4 / 5))
