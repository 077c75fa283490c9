"""What a precision means on a device, and that fp32 is IEEE single precision."""

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest
import torch

from sltt_bench.kinds.training import measuring
from sltt_bench.planning.plan import Cell
from sltt_bench.planning.recipe import load_recipe
from sltt_bench.precision import Precision, ieee_float32, set_float32_arithmetic


def flags() -> tuple[bool, bool]:
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = flags()
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize(
    ("asked", "on_cuda", "on_a_cpu"),
    [("amp", "fp16", "bf16"), ("tf32", "tf32", "fp32"), *((name, name, name) for name in ("fp32", "fp16", "bf16"))],
)  # fmt: skip
def test_a_precision_is_what_the_device_makes_of_it(asked: str, on_cuda: str, on_a_cpu: str) -> None:
    train = load_recipe("digits", {"train.precision": asked}).train
    assert (train.precision_on("cuda"), train.precision_on("cpu")) == (on_cuda, on_a_cpu)


def test_tf32_is_allowed_to_no_precision_but_its_own() -> None:
    for precision in ("fp32", "fp16", "bf16"):
        torch.backends.cudnn.allow_tf32 = True  # torch's default
        set_float32_arithmetic(precision)
        assert flags() == (False, False)
    set_float32_arithmetic("tf32")
    assert flags() == (True, True)
    with ieee_float32():
        assert flags() == (False, False)
    assert flags() == (True, True)


def test_tf32_computes_on_float32_tensors_without_autocast() -> None:
    assert isinstance(Precision("tf32", "cuda").autocast(), nullcontext)
    assert not Precision("tf32", "cpu").make_scaler().is_enabled()


class Silent:
    """A reporter that keeps what a cell was measured with."""

    def facts(self, **facts: object) -> None: ...

    def send(self, event: str, **details: object) -> None:
        if event == "measured_with":
            self.provenance = details


def test_a_cell_in_fp32_runs_without_tf32_and_its_provenance_says_so(smoke_cell: Callable[..., Cell]) -> None:
    torch.backends.cudnn.allow_tf32 = True
    reporter = Silent()
    with measuring(smoke_cell(train__precision="fp32"), {}, reporter):  # type: ignore[arg-type]
        assert flags() == (False, False)
    assert '"cudnn_allow_tf32": false' in json.dumps(reporter.provenance)


@pytest.mark.gpu
def test_on_a_gpu_fp32_convolutions_keep_more_digits_than_tf32_ones() -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no TF32")
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(8, 256, 8, 8, generator=generator), torch.randn(64, 256, 3, 3, generator=generator)
    exact = torch.nn.functional.conv2d(x.double(), w.double())
    errors = {}
    for precision in ("fp32", "tf32"):
        set_float32_arithmetic(precision)
        result = torch.nn.functional.conv2d(x.cuda(), w.cuda()).cpu().double()
        errors[precision] = float((result - exact).norm() / exact.norm())
    assert errors["fp32"] < 2e-6 < 1e-4 < errors["tf32"]
