"""Backward passes in a thread of their own, as autograd runs them on a GPU, give the gradients of those in the caller's.

What a thread has of its own is not the caller's there: the format of autocast, for one, is that of a fresh thread, and
so is all that Python keeps by thread. Autograd takes some along on a GPU, such as the hooks of saved tensors, and nothing here.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from on_backends import train

from sltt_bench.torch_internals import inside_backward


@pytest.fixture
def device_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Backward passes run in one other thread from now on; a note for each."""
    run = torch.autograd._engine_run_backward
    passes: list[bool] = []

    def in_the_thread(*args: Any, **kwargs: Any) -> Any:
        if inside_backward():  # a pass within a pass stays in its thread
            return run(*args, **kwargs)
        passes.append(True)
        assert not torch.is_autocast_enabled("cpu")  # which autograd would take along
        return thread.submit(run, *args, **kwargs).result()

    with ThreadPoolExecutor(1) as thread:
        # On CUDA a thread begins with float16; a cell in bfloat16 must not meet it.
        thread.submit(torch.set_autocast_dtype, "cpu", torch.float16).result()
        monkeypatch.setattr(torch.autograd, "_engine_run_backward", in_the_thread)
        yield passes


METHODS = ["bptt", "bptt-d0.5", "bptt-ckpt2", "tbptt-w2", "sltt", "sltt-k2"]
OTHER_RULES = ["ottt", "ottt-o", "e-prop", "s-tllr", "pp-prop", "rate", "bptt-l1"]


@pytest.mark.parametrize(
    ("backend", "model", "method", "options"),
    [
        *(("native", "cnn", method, {"recompute": True}) for method in METHODS),
        *(("native", "preact-resnet18", method, {"fused_norm": "always"}) for method in METHODS[::4]),
        ("native", "nf-resnet34", "bptt", {"recompute": True, "fused_norm": "always"}),
        ("native", "nf-resnet34", "sltt", {"fused_norm": "always"}),
        *(("reference", "mlp", method, {}) for method in [*METHODS, *OTHER_RULES]),
    ],
    ids=str,
)
def test_gradients_do_not_depend_on_the_thread(
    backend: str,
    model: str,
    method: str,
    options: dict[str, Any],
    device_thread: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sltt_bench.backends.native.saved_tensor_hooks.SMALL", 0)
    how: Any = {"precision": "bf16", "accumulate": True, **options}  # the first iteration computes most again
    there = train(backend, model, method, **how)
    assert device_thread
    monkeypatch.setattr(torch.autograd, "_engine_run_backward", torch.autograd.graph._engine_run_backward)
    here = train(backend, model, method, **how)
    assert there.gradients.keys() == here.gradients.keys()
    assert all(torch.equal(there.gradients[name], here.gradients[name]) for name in here.gradients)
