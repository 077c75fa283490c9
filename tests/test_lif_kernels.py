"""The kernels of the native backend against the equations of `sltt_bench.neurons`, kernel by kernel.

Triton's kernels run on the CPU through its interpreter, which must be chosen before Triton is
imported: one test here starts this file again with TRITON_INTERPRET=1.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from one_batch import RESETS
from torch import Tensor

from sltt_bench.backends.native.lif_torch import PIECE, Scaling, TorchKernels, representable_threshold
from sltt_bench.neurons import LIFParameters, integrate, lif_step
from sltt_bench.surrogates import SURROGATES

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

ROUNDING = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Absolute error that a few operations on numbers around 1 may have in each format."""


def kernels() -> Any:
    if not INTERPRETED:
        return TorchKernels()
    from sltt_bench.backends.native.lif_triton import TritonKernels

    return TritonKernels()


def neuron(reset: str = "soft", surrogate: str = "triangle", **others: float) -> LIFParameters:
    fields: Any = {"tau": 1.7, "v_threshold": 0.7, "surrogate": surrogate, **RESETS[reset], **others}
    return LIFParameters(**fields)


def numbers(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def by_the_equations(
    current: Tensor, membrane_before: Tensor, grad_spikes: Tensor, grad_next: Tensor, lif: LIFParameters
) -> tuple[Tensor, Tensor, Tensor]:
    """s[t], u[t] from u[t−1], and ∂L/∂u[t−1] where L sends these gradients to s[t−1] and u[t]."""
    u = membrane_before.double().clone().requires_grad_()
    before = u if lif.resting_potential == 0 else u - lif.resting_potential
    spikes_before, potential = lif_step(before, None, lif)  # u[t−1] = I + rest before the first step
    membrane = integrate(current.double(), potential, lif)
    (grad,) = torch.autograd.grad((spikes_before, membrane), u, (grad_spikes.double(), grad_next.double()))
    spikes, _ = lif_step(current.double(), potential.detach(), lif)
    return spikes, membrane.detach(), grad


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "every other column": lambda x: x.repeat_interleave(2, dim=3)[..., ::2],
    "transposed": lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
    "expanded": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("reset", RESETS)
def test_kernels_follow_the_equations(reset: str, surrogate: str) -> None:
    lif = neuron(reset, surrogate)
    current, before, grad_spikes, grad_next = (2 * numbers(3, 5, 7, 11, seed=seed) for seed in range(4))
    spikes, membrane, grad = by_the_equations(current, before, grad_spikes, grad_next, lif)
    got_spikes, got_membrane = kernels().forward(current, before, lif, None)
    assert torch.equal(got_spikes, spikes)
    torch.testing.assert_close(got_membrane, membrane, rtol=0, atol=1e-14)
    got_grad, _ = kernels().backward(grad_spikes, grad_next, before, lif)
    torch.testing.assert_close(got_grad, grad, rtol=0, atol=1e-13)
    assert torch.equal(kernels().fire(membrane, lif), spikes)
    assert 0.1 < spikes.mean() < 0.6


@pytest.mark.parametrize("reset", RESETS)
def test_a_missing_gradient_counts_as_zero(reset: str) -> None:
    lif = neuron(reset)
    membrane, grad = numbers(4, 9, seed=1), numbers(4, 9, seed=2)
    zero = torch.zeros_like(grad)
    for with_none, with_zero in (((grad, None), (grad, zero)), ((None, grad), (zero, grad))):
        expected, _ = kernels().backward(*with_zero, membrane, lif)
        got, _ = kernels().backward(*with_none, membrane, lif)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("reset", ["soft", "hard"])
def test_the_first_step_starts_at_the_resting_potential_in_memory_of_its_own(reset: str) -> None:
    lif = neuron(reset)
    current = numbers(4, 9)
    spikes, membrane = kernels().forward(current, None, lif, None)
    assert torch.equal(membrane, current + lif.resting_potential)
    assert torch.equal(spikes, (membrane >= 0.7).double())
    assert membrane.untyped_storage().data_ptr() != current.untyped_storage().data_ptr()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_every_format_and_layout(dtype: torch.dtype, layout: str) -> None:
    lif = neuron("hard", "sigmoid")
    current, before, grad_spikes, grad_next = (
        LAYOUTS[layout](numbers(2, 3, 5, 7, dtype=dtype, seed=seed)) for seed in range(4)
    )
    spikes, membrane, grad = by_the_equations(current, before, grad_spikes, grad_next, lif)
    got_spikes, got_membrane = kernels().forward(current, before.contiguous(), lif, None)
    near_threshold = (membrane - lif.v_threshold).abs() < ROUNDING[dtype]
    assert torch.equal(got_spikes.double()[~near_threshold], spikes[~near_threshold])
    assert got_membrane.dtype == got_spikes.dtype == dtype
    torch.testing.assert_close(got_membrane.double(), membrane, rtol=0, atol=ROUNDING[dtype])
    got_grad, _ = kernels().backward(grad_spikes, grad_next.contiguous(), before, lif)
    torch.testing.assert_close(got_grad.double(), grad, rtol=ROUNDING[dtype], atol=2 * ROUNDING[dtype])


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("reset", RESETS)
def test_scaled_neurons_give_to_the_last_bit_what_a_quotient_a_step_and_a_product_give(
    reset: str, dtype: torch.dtype
) -> None:
    if INTERPRETED and dtype == torch.bfloat16:
        pytest.skip("the interpreter cuts bfloat16 off where torch and GPUs round")
    lif, scale = neuron(reset), Scaling(divisor=1.3, gain=2.74)
    x, before, grad_output, grad_next = (2 * numbers(2, 3, 5, 7, dtype=dtype, seed=seed) for seed in range(4))

    def divided(tensor: Tensor) -> Tensor:
        if not INTERPRETED:
            return tensor / scale.divisor
        from sltt_bench.backends.native.lif_triton import _reciprocal

        return tensor * _reciprocal(scale.divisor, dtype)  # as torch divides on CUDA

    for previous in (None, before):
        spikes, membrane = kernels().forward(divided(x), previous, lif, None)
        scaled, scaled_membrane = kernels().forward(x, previous, lif, None, scale)
        assert torch.equal(scaled_membrane, membrane)
        assert torch.equal(scaled, spikes * scale.gain)
    assert torch.equal(kernels().fire(before, lif, scale.gain), kernels().fire(before, lif) * scale.gain)
    for past in (None, grad_next):
        grad, _ = kernels().backward(grad_output * scale.gain, past, before, lif)
        grad_x, grad_u = kernels().backward(grad_output, past, before, lif, scale)
        assert torch.equal(grad_u, grad)
        assert torch.equal(grad_x, divided(grad))
        alone, nothing = kernels().backward(grad_output, past, before, lif, scale, through_time=False)
        assert torch.equal(alone, grad_x)
        assert nothing is None
    grad, _ = kernels().backward(None, grad_next, before, lif)
    assert torch.equal(kernels().backward(None, grad_next, before, lif, scale)[0], divided(grad))


@pytest.mark.parametrize("elements", [0, 1, 1023, 1024, 1025, 4099])
def test_any_number_of_elements(elements: int) -> None:
    lif = neuron()
    current, before = numbers(elements), numbers(elements, seed=1)
    spikes, membrane, _ = by_the_equations(current, before, current, current, lif)
    got_spikes, got_membrane = kernels().forward(current, before, lif, None)
    assert torch.equal(got_spikes, spikes)
    torch.testing.assert_close(got_membrane, membrane, rtol=0, atol=1e-14)


def test_the_new_potential_may_take_the_place_of_the_old() -> None:
    lif = neuron()
    current, before = numbers(3, 1000), numbers(3, 1000, seed=1)
    spikes, membrane = kernels().forward(current, before, lif, None)
    version = before._version
    in_place_spikes, in_place = kernels().forward(current, before, lif, before)
    assert in_place is before
    assert before._version > version, "autograd sees that it was written to"
    assert torch.equal(in_place, membrane)
    assert torch.equal(in_place_spikes, spikes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("v_threshold", [0.7, 0.9, 1.1])
def test_a_neuron_just_below_threshold_does_not_fire_in_half_precision(
    dtype: torch.dtype, v_threshold: float
) -> None:
    nearest = torch.tensor(v_threshold).to(dtype)
    neighbours = [nearest]
    for direction in (-torch.inf, torch.inf):
        neighbours.append(torch.nextafter(nearest, torch.tensor(direction, dtype=dtype)))
    membrane = torch.stack(neighbours)
    fired = kernels().fire(membrane, neuron(v_threshold=v_threshold))
    assert torch.equal(fired.bool(), membrane.float() >= torch.tensor(v_threshold))
    assert fired.sum() in (1, 2)


def test_the_representable_threshold_is_the_smallest_number_that_fires() -> None:
    assert representable_threshold(1.0, torch.bfloat16) == 1.0
    assert representable_threshold(0.7, torch.float64) == 0.7
    assert representable_threshold(0.7, torch.float32) == float(torch.tensor(0.7))
    assert representable_threshold(0.9, torch.bfloat16) == 0.90234375  # nearest: 0.8984375


@pytest.mark.skipif(INTERPRETED, reason="the piecewise path is torch's")
@pytest.mark.parametrize("reset", RESETS)
def test_pieces_give_what_the_whole_gives(reset: str) -> None:
    lif = neuron(reset)
    elements = 2 * PIECE + 7
    current, before = numbers(elements, dtype=torch.float32), numbers(elements, dtype=torch.float32, seed=1)
    spikes, membrane = kernels().forward(current, before, lif, None)
    grad, _ = kernels().backward(current, before, membrane, lif)
    strided = torch.stack([before, before], dim=1)[:, 0]  # not in one stretch: computed whole
    whole_spikes, whole_membrane = kernels().forward(current, strided, lif, None)
    assert torch.equal(whole_membrane, membrane)
    assert torch.equal(whole_spikes, spikes)
    assert torch.equal(kernels().backward(current, strided, membrane, lif)[0], grad)


@pytest.mark.skipif(INTERPRETED, reason="this is the test that interprets")
def test_triton_kernels_pass_these_tests_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    done = subprocess.run(
        command,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
    assert "failed" not in done.stdout


@pytest.mark.skipif(INTERPRETED, reason="the compiler is not the interpreter")
@pytest.mark.parametrize("element", ["fp32", "fp16", "bf16"])
def test_compiled_for_hopper_each_kernel_moves_every_tensor_once_in_16_byte_pieces(element: str) -> None:
    """Offline, without a GPU: the kernels compile, and the machine code reads and writes what it must."""
    triton = pytest.importorskip("triton")
    from sltt_bench.backends.native import lif_triton

    common = {"DECAY": 0.1, "THRESHOLD": 1.0, "V_RESET": 0.0, "SOFT": True, "BLOCK": lif_triton.BLOCK}
    common |= {"FACTOR": 1 / 1.3, "GAIN": 2.74}
    forward = {**common, "REST": 0.0, "FIRST": False}
    backward = {
        **common,
        "FROM_OUTPUT": True,
        "FROM_NEXT": False,
        "TO_PAST": False,
        "DETACHED": False,
        "SURROGATE": 0,
    }
    tensors_in_and_out = {
        lif_triton._forward_kernel: (forward, 2, 2),
        lif_triton._backward_kernel: (backward, 2, 1),
        lif_triton._fire_kernel: ({"THRESHOLD": 1.0, "GAIN": 2.74, "BLOCK": lif_triton.BLOCK}, 1, 1),
    }
    bytes_of_one = 4 if element == "fp32" else 2
    accesses = lif_triton.BLOCK * bytes_of_one // (128 * 16)  # 128 threads, 16 bytes each
    for kernel, (constants, loads, stores) in tensors_in_and_out.items():
        assembly = compiled(triton, kernel, element, constants)
        assert assembly.count("ld.global.v4.b32") == loads * accesses
        assert assembly.count("st.global.v4.b32") == stores * accesses
        assert assembly.count("ld.global") == loads * accesses


@pytest.mark.skipif(INTERPRETED, reason="the compiler is not the interpreter")
def test_no_product_is_contracted_with_a_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fused multiply-add rounds once where the equations round twice."""
    pytest.importorskip("triton")
    from sltt_bench.backends.native import lif_triton

    options: list[Any] = []

    class Kernel:
        def __getitem__(self, grid: Any) -> Any:
            return lambda *tensors, **given: options.append(given["enable_fp_fusion"])

    for name in ("_forward_kernel", "_backward_kernel", "_fire_kernel"):
        monkeypatch.setattr(lif_triton, name, Kernel())
    x, lif = numbers(4), neuron()
    on_gpus = lif_triton.TritonKernels()
    on_gpus.forward(x, x, lif, None)
    on_gpus.backward(x, x, x, lif)
    on_gpus.fire(x, lif)
    assert options == [False] * 3


def compiled(triton: Any, kernel: Any, element: str, constants: dict[str, Any]) -> str:
    """PTX for compute capability 9.0, with pointers aligned to 16 bytes as torch's are."""
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {**constants, "COMPUTE": tl.float32}
    names = kernel.arg_names
    signature = {
        name: "constexpr" if name in constants else "i32" if name == "elements" else f"*{element}"
        for name in names
    }
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in names if n not in constants},
    )
    ptx: str = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
    return ptx
