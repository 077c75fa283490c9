"""Every backend computes the same: forward outputs, spikes, gradients and running statistics."""

import sys
from collections.abc import Iterable, Iterator
from itertools import cycle, product
from subprocess import CalledProcessError
from typing import Any

import pytest
import torch
from on_backends import MODELS, T, build, gradient_error, train, train_reference, whole_gradient_error
from one_batch import RESETS
from thinned import thinned

from sltt_bench import backends
from sltt_bench.backends import UnknownBackend
from sltt_bench.backends.native.lif_torch import UNSCALED, Scaling, TorchKernels
from sltt_bench.models.nf_resnet import GAMMA
from sltt_bench.neurons import LIFParameters
from sltt_bench.surrogates import SURROGATES

METHODS = ("bptt", "sltt", "sltt-k1", "sltt-k3-unbiased")


def set_aside(models: Iterable[str], *known: str) -> list[str]:
    """The models that other tests leave out."""
    return [model for model in models if model not in known]


def neuron(reset: str, surrogate: str = "triangle", tau: float = 1.5) -> LIFParameters:
    fields: Any = {"tau": tau, "v_threshold": 0.8, "surrogate": surrogate, **RESETS[reset]}
    return LIFParameters(**fields)


SHALLOW = ("cnn", "mlp", "recurrent")
"""Every rule is tried with these; with the deep networks, which take ten times as long, some."""


@pytest.fixture(autouse=True)
def small_tensors_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks take the ways that large ones take."""
    monkeypatch.setattr("sltt_bench.backends.native.saved_tensor_hooks.SMALL", 0)
    monkeypatch.setattr("sltt_bench.backends.native.loop_invariants.SMALL", 0)


@pytest.mark.parametrize("model", MODELS)
def test_these_networks_hand_a_gradient_to_every_parameter(model: str) -> None:
    """Else it would be no comparison: the readout of a normaliser-free network begins at 0."""
    gradients = train_reference(model, "bptt", dtype=torch.float64).gradients
    assert [name for name, gradient in gradients.items() if not gradient.any()] == []


RULES = [*((method, False) for method in METHODS), ("bptt", True), ("sltt", True), ("sltt-k2", True)]


@pytest.mark.parametrize(
    ("model", "method", "recompute"),
    [
        *((model, *rule) for model in SHALLOW for rule in RULES),
        *thinned([(model, *rule) for model in set_aside(MODELS, *SHALLOW) for rule in RULES], keep=4),
    ],
)
def test_native_equals_reference_on_every_network_and_method(
    model: str, method: str, recompute: bool
) -> None:
    reference = train_reference(model, method, dtype=torch.float64)
    native = train("native", model, method, dtype=torch.float64, recompute=recompute)
    assert gradient_error(native, reference) < 1e-12
    assert torch.equal(native.outputs, reference.outputs)
    if not (method == "bptt" and recompute):  # which has another order, and computes spikes again
        assert len(native.spikes) == len(reference.spikes) > 0
        assert all(torch.equal(a, b) for a, b in zip(native.spikes, reference.spikes, strict=True))
    assert native.buffers.keys() == reference.buffers.keys()
    assert all(torch.equal(native.buffers[name], reference.buffers[name]) for name in reference.buffers)


KEEPING_RULES = (
    *(("bptt-ckpt2", recompute) for recompute in (False, True)),
    *(("bptt-d0.5", recompute) for recompute in (False, True)),
    ("tbptt-w2", False),
    ("sltt-a2", False),
)


@pytest.mark.parametrize(
    ("model", "method", "recompute"),
    [
        *(("cnn", *rule) for rule in KEEPING_RULES),
        *thinned([("nf-resnet34", *rule) for rule in KEEPING_RULES], keep=6, first=3),
        *thinned([("recurrent", *rule) for rule in KEEPING_RULES], keep=2, first=1),
    ],
)
def test_native_equals_reference_under_rules_that_keep_or_scale_the_state(
    model: str, method: str, recompute: bool
) -> None:
    how: Any = {"dtype": torch.float64, "iterations": 2}  # in the second, native knows what repeats
    reference = train_reference(model, method, **how)
    native = train("native", model, method, **how, recompute=recompute)
    assert gradient_error(native, reference) < 1e-12
    assert torch.equal(native.outputs, reference.outputs)
    assert all(torch.equal(native.buffers[name], reference.buffers[name]) for name in reference.buffers)


@pytest.mark.parametrize(
    ("method", "recompute", "precision"),
    [
        ("bptt", False, "fp32"), ("sltt", True, "fp32"), ("bptt-ckpt2", False, "fp32"), ("sltt", False, "fp16"),
        ("bptt", True, "fp32"), ("bptt", True, "bf16"),
        *thinned([
            ("sltt", False, "fp32"), ("tbptt-w2", False, "fp32"), ("bptt-d0.5", False, "fp32"),
            ("sltt-k2", False, "fp32"), ("bptt", False, "bf16"),
        ], keep=5),
    ],
)  # fmt: skip
def test_neurons_that_scale_by_themselves_equal_the_reference(
    method: str, recompute: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A normaliser-free network whose spikes nobody notes: β and γ are within the kernels."""
    gains = set()
    forward = TorchKernels.forward

    def noted(
        self: TorchKernels,
        x: Any,
        previous: Any,
        neuron: Any,
        out: Any,
        scale: Scaling = UNSCALED,
        *norm: Any,
        **options: Any,
    ) -> Any:
        gains.add(scale.gain)
        return forward(self, x, previous, neuron, out, scale, *norm, **options)

    monkeypatch.setattr(TorchKernels, "forward", noted)
    how: Any = {"precision": precision} if precision != "fp32" else {"dtype": torch.float64}
    reference = train_reference("nf-resnet34", method, **how)
    native = train("native", "nf-resnet34", method, **how, recompute=recompute, watched=False)
    assert gains == {GAMMA}
    assert torch.equal(native.outputs, reference.outputs)
    assert gradient_error(native, reference) < (1e-12 if precision == "fp32" else 1e-2)


@pytest.mark.parametrize(
    ("model", "method"),
    [
        *product(SHALLOW, ["bptt", "sltt"]),
        *thinned(product(set_aside(MODELS, *SHALLOW), ["bptt", "sltt"]), keep=5),
    ],
)
def test_native_equals_reference_to_1e_6_in_float32(model: str, method: str) -> None:
    reference, native = train_reference(model, method), train("native", model, method)
    assert whole_gradient_error(native, reference) < 1e-6
    assert torch.equal(native.outputs, reference.outputs)
    assert all(torch.equal(a, b) for a, b in zip(native.spikes, reference.spikes, strict=True))


@pytest.mark.parametrize(
    ("name", "reset", "surrogate", "method"),
    thinned(product(["native", "spikingjelly"], RESETS, SURROGATES, ["bptt", "sltt", "sltt-k2"]), keep=5),
)
def test_backends_agree_on_every_neuron(name: str, reset: str, surrogate: str, method: str) -> None:
    if name == "spikingjelly":
        pytest.importorskip("spikingjelly")
    reference = train_reference("cnn", method, neuron(reset, surrogate), dtype=torch.float64, iterations=1)
    other = train(name, "cnn", method, neuron(reset, surrogate), dtype=torch.float64, iterations=1)
    assert gradient_error(other, reference) < 1e-11
    torch.testing.assert_close(other.outputs, reference.outputs, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(other.spikes, reference.spikes, strict=True))


@pytest.mark.parametrize(
    ("model", "method", "reset", "surrogate"),
    thinned(
        (
            (model, method, reset, surrogate)
            for (reset, surrogate), model, method in zip(
                product(RESETS, SURROGATES),
                cycle(set_aside(MODELS, "cnn")),
                cycle(METHODS[::-1]),
                strict=False,
            )
        ),
        keep=3,
    ),
)
def test_every_neuron_works_in_other_networks_too(
    model: str, method: str, reset: str, surrogate: str
) -> None:
    how: Any = {"neuron": neuron(reset, surrogate), "dtype": torch.float64, "iterations": 1, "timesteps": 3}
    reference, native = train_reference(model, method, **how), train("native", model, method, **how)
    assert gradient_error(native, reference) < 1e-11
    assert torch.equal(native.outputs, reference.outputs)


@pytest.mark.parametrize("name", ["native", "spikingjelly"])
def test_inputs_that_differ_from_step_to_step(name: str) -> None:
    reference = train_reference("cnn", "sltt", dtype=torch.float64, repeated_image=False)
    other = train(name, "cnn", "sltt", dtype=torch.float64, repeated_image=False)
    assert gradient_error(other, reference) < 1e-11


@pytest.mark.parametrize(
    ("name", "method"), thinned(product(["native", "spikingjelly"], ["bptt", "sltt", "sltt-k2"]), keep=4)
)
def test_gradients_accumulate_over_batches(name: str, method: str) -> None:
    how: Any = {"dtype": torch.float64, "iterations": 2}
    reference = train_reference("nf-resnet34", method, **how, accumulate=True)
    other = train(name, "nf-resnet34", method, **how, accumulate=True)
    assert gradient_error(other, reference) < 1e-11
    last_alone = train_reference("nf-resnet34", method, **how)
    assert gradient_error(other, last_alone) > 0.1


@pytest.mark.parametrize(
    ("model", "precision", "method", "name"),
    thinned(
        (
            (*network, method, name)
            for network in [("cnn", "bf16"), ("cnn", "fp16"), ("nf-resnet34", "bf16")]
            for method in ["bptt", "sltt"]
            for name in ["native", "spikingjelly"]
        ),
        keep=5,
    ),
)
def test_mixed_precision_differs_by_no_more_than_the_format(
    name: str, method: str, model: str, precision: str
) -> None:
    """The gradient of a spiking network jumps with its spikes, so the yardstick is what the format itself
    changes against float32."""
    exact = train_reference(model, method)
    rounded = train_reference(model, method, precision=precision)
    other = train(name, model, method, precision=precision)
    assert {gradient.dtype for gradient in other.gradients.values()} == {torch.float32}
    assert gradient_error(other, rounded) < gradient_error(rounded, exact)


@pytest.mark.parametrize("name", ["native", "spikingjelly"])
@pytest.mark.parametrize("model", MODELS)
def test_parameters_and_state_have_the_names_of_the_reference(name: str, model: str) -> None:
    reference = build(backends.create("reference"), model, LIFParameters())
    other = build(backends.create(name), model, LIFParameters())
    assert [*other.state_dict()] == [*reference.state_dict()]
    other.load_state_dict(reference.state_dict())


def test_backends_say_what_really_ran() -> None:
    native = train("native", "nf-resnet34", "sltt").backend
    provenance = native.provenance()
    assert provenance["neuron"] == "torch backward, torch fire, torch forward"
    assert provenance["computed once an iteration"] == "LeanAvgPool2d, ScaledWSConv2d"
    provenance = train("native", "cnn", "sltt", repeated_image=False, recompute=True).backend.provenance()
    assert "Convolution" in provenance["computed again in the backward pass"]
    assert provenance["computed once an iteration"] == "nothing"
    assert backends.create("native").provenance()["neuron"] == "nothing"
    provenance = train("spikingjelly", "cnn", "sltt", timesteps=T).backend.provenance()
    assert "LIFNode" in provenance["neuron"]
    assert provenance["spikingjelly"]


class Card:
    """Stands in for a GPU on which a kernel is tried."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.tried: list[torch.dtype] = []

    def fire(self, kernels: Any, membrane: torch.Tensor, neuron: LIFParameters) -> torch.Tensor:
        self.tried.append(membrane.dtype)
        if self.error is not None:
            raise self.error
        return membrane


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    pytest.importorskip("triton")
    from sltt_bench.backends.native import kernels, lif_triton

    ones, stand_in = torch.ones, Card()
    monkeypatch.setattr(torch, "ones", lambda *size, dtype, device: ones(*size, dtype=dtype))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(lif_triton.TritonKernels, "fire", lambda *args: stand_in.fire(*args))
    kernels.why_no_kernel_runs.cache_clear()
    yield stand_in
    kernels.why_no_kernel_runs.cache_clear()


def test_triton_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in images of Python alone."""
    native, there = backends.create("native"), {"tcc": "/usr/bin/tcc"}
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("shutil.which", there.get)
    assert "install gcc or clang, or set CC" in str(native.unsupported(LIFParameters(), "fp32", "cuda:0"))
    assert native.unsupported(LIFParameters(), "fp32", "cpu") is None
    monkeypatch.setenv("CC", "tcc -O2")
    assert native.unsupported(LIFParameters(), "fp32", "cuda:0") is None
    monkeypatch.setenv("CC", "/gone/gcc")
    assert "set CC to one" in str(native.unsupported(LIFParameters(), "fp32", "cuda:0"))


PTXAS = """Internal Triton PTX codegen error
`ptxas` stderr:
ptxas /tmp/tmpeib3k66p.ptx, line 119; error   : Feature '.bf16' requires .target sm_80 or higher
ptxas /tmp/tmpeib3k66p.ptx, line 119; error   : Feature 'cvt with .f32.bf16' requires .target sm_80 or higher
"""
"""What Triton 3.2 says of bfloat16 on a card older than Ampere."""


@pytest.mark.parametrize(
    ("error", "precision", "words"),
    [
        (RuntimeError(PTXAS), "bf16", "in bf16 on Tesla T4 (compute capability 7.5): Feature '.bf16' requires .target sm_80 or "
         "higher; set train.precision=fp16, install a newer torch with its Triton, or choose --backend reference"),
        (PermissionError(13, "Permission denied", "/root/.triton"), "fp32", "'/root/.triton'; set TRITON_CACHE_DIR to"),
        (ImportError("launcher.so: failed to map segment from shared object"), "fp16", "object; set TRITON_CACHE_DIR to"),
        (CalledProcessError(1, ["gcc"]), "fp32", "if Python.h is missing, install Python's headers (python3-dev)"),
        (AssertionError("libcuda.so cannot found!\nmore"), "tf32", "7.5): libcuda.so cannot found!; choose --backend"),
        (AssertionError(), "fp32", "7.5): AssertionError; choose --backend reference"),
    ],
)  # fmt: skip
def test_a_card_on_which_no_kernel_of_triton_runs_is_refused_with_the_reason(
    error: Exception, precision: str, words: str, card: Card
) -> None:
    card.error = error
    reason = backends.create("native").unsupported(LIFParameters(), precision, "cuda:0")
    assert words in str(reason)
    assert len(str(reason).splitlines()) == 1


def test_a_card_is_tried_once_for_each_format_and_in_that_format(card: Card) -> None:
    native = backends.create("native")
    for precision in ("fp32", "tf32", "bf16", "fp16", "bf16"):
        assert native.unsupported(LIFParameters(), precision, "cuda:0") is None
    assert card.tried == [torch.float32, torch.float32, torch.bfloat16, torch.float16]


def test_a_trial_without_memory_is_no_refusal(card: Card) -> None:
    card.error = RuntimeError("Triton Error [CUDA]: out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        backends.create("native").unsupported(LIFParameters(), "fp32", "cuda:0")


def test_what_a_backend_cannot_serve_it_says_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    native, jelly = backends.create("native"), backends.create("spikingjelly")
    fine = LIFParameters()
    assert native.unsupported(fine, "fp32", "cpu") is None
    assert jelly.unsupported(fine, "fp32", "cpu") is None
    assert "tau > 1" in str(jelly.unsupported(LIFParameters(tau=1.0), "fp32", "cpu"))
    assert native.unsupported(LIFParameters(tau=1.0), "fp32", "cpu") is None
    own = LIFParameters(surrogate="mine")
    assert "no surrogate 'mine'" in str(native.unsupported(own, "fp32", "cpu"))
    monkeypatch.setitem(SURROGATES, "mine", SURROGATES["triangle"])
    assert native.unsupported(own, "fp32", "cpu") is None
    assert "no Triton formula" in str(native.unsupported(own, "fp32", "cuda:0"))
    assert "known to equal 'mine'" in str(jelly.unsupported(own, "fp32", "cpu"))
    monkeypatch.setattr("sltt_bench.backends.native.kernels.find_spec", lambda name: None)
    assert "pip install triton" in str(native.unsupported(fine, "fp32", "cuda:0"))


@pytest.mark.parametrize("method", ["ottt", "ottt-o", "e-prop", "s-tllr", "pp-prop", "rate"])
def test_native_refuses_by_name_what_it_does_not_serve(method: str) -> None:
    assert f"method {method!r} needs" in str(backends.unserved(backends.create("native"), method))


@pytest.mark.parametrize(
    "method", ["bptt", "bptt-ckpt2", "bptt-d0.5", "tbptt-w2", "sltt", "sltt-k2", "sltt-a2"]
)
def test_native_serves_the_exact_and_the_sltt_family(method: str) -> None:
    assert backends.unserved(backends.create("native"), method) is None


def test_a_compiled_step_keeps_its_state_to_itself() -> None:
    compiled = backends.create("native", compile=True)
    assert backends.unserved(compiled, "tbptt-w2") is None
    assert "the state of all layers" in str(backends.unserved(compiled, "bptt-ckpt2"))


def test_a_backend_whose_package_is_missing_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spikingjelly.activation_based.neuron", None)
    with pytest.raises(UnknownBackend, match=r"pip install 'sltt-bench\[spikingjelly\]'"):
        backends.create("spikingjelly")
