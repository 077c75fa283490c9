"""The exact count of live tensor bytes: peaks worked out by hand, the allocator, and the paper's claim.

A vector of N float32 is the unit in which the peaks are stated.
"""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from sltt_bench.measure.tensor_bytes import Cause, TensorBytes
from sltt_bench.neurons import reset_state
from sltt_bench.planning.plan import Cell
from sltt_bench.training.experiment import assemble, make_backend

N = 1000
VECTOR = 4 * N

MakeCell = Callable[..., Cell]


def peak_in_vectors(body: Callable[[], Any], *existing: Tensor) -> float:
    """Peak above what existed before; the CPU allocator's own record of the same body must agree,
    but for a few bytes of Python numbers that it sees as tensors."""
    for tensor in existing:
        tensor.grad = None
    with TensorBytes(existing) as counter:
        before = counter.current
        kept = body()
    del kept
    for tensor in existing:
        tensor.grad = None
    assert counter.peak - before == pytest.approx(allocator_peak(body), abs=100)
    return (counter.peak - before) / VECTOR


def allocator_peak(body: Callable[[], Any]) -> int:
    """Peak of the CPU allocator above its start, from its own record of every allocation."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        kept = body()
    del kept
    assert record.profiler is not None
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    current = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    return peak


# Storages ---------------------------------------------------------------------------------------


def test_what_exists_before_is_counted_once_however_often_it_is_registered() -> None:
    x = torch.ones(2, N)
    with TensorBytes([x, x, x[0], x.view(N, 2)]) as counter:
        pass
    assert counter.current == counter.peak == 2 * VECTOR


def test_views_share_one_storage() -> None:
    def body() -> list[Tensor]:
        x = torch.ones(N)
        return [x, x.view(10, -1), x[: N // 2], x.expand(5, N), x.detach(), x.unsqueeze(0).transpose(0, 1)]

    assert peak_in_vectors(body) == 1


def test_a_view_keeps_its_whole_storage_alive() -> None:
    with TensorBytes() as counter:
        first = torch.ones(N)[:1]
        assert counter.current == VECTOR
        del first
        assert counter.current == 0


def test_in_place_operations_add_nothing() -> None:
    x = torch.ones(N)
    assert peak_in_vectors(lambda: x.add_(1).mul_(2).clamp_(min=0), x) == 0


def test_an_out_variant_that_grows_its_tensor_counts_the_growth() -> None:
    x = torch.ones(N)
    target = torch.empty(0)
    with TensorBytes([x, target]) as counter:
        torch.add(x, 1, out=target)
        assert counter.current == 2 * VECTOR


def test_resizing_a_tensor_or_a_storage_is_counted() -> None:
    x = torch.ones(N)
    with TensorBytes([x]) as counter:
        x.resize_(3 * N)
        assert counter.current == 3 * VECTOR
        x.untyped_storage().resize_(0)
        assert counter.current == 0
        x.untyped_storage().resize_(2 * VECTOR)
        assert counter.current == 2 * VECTOR
    assert counter.peak == 3 * VECTOR
    x.untyped_storage().resize_(0)
    assert counter.current == 2 * VECTOR, "counted after the counter was left"


def test_a_chain_of_temporaries_peaks_at_two() -> None:
    x = torch.ones(N)

    def body() -> Tensor:
        y = x
        for _ in range(10):
            y = y + 1
        return y

    assert peak_in_vectors(body, x) == 2


def test_a_python_reference_keeps_a_tensor_counted_until_it_is_dropped() -> None:
    with TensorBytes() as counter:
        kept = [torch.ones(N) for _ in range(3)]
        assert counter.current == 3 * VECTOR
        kept.pop()
        assert counter.current == 2 * VECTOR
        kept.clear()
        assert counter.current == 0
    assert counter.peak == 3 * VECTOR


def test_a_storage_whose_tensors_had_no_python_object_for_a_while_is_still_one_storage() -> None:
    w = torch.ones(N, requires_grad=True)
    with TensorBytes([w]) as counter:
        loss = (w * 2).exp().sum()  # exp's result lives on in the graph alone
        gc.collect()
        assert counter.current == 2 * VECTOR + 4
        del loss
        assert counter.current == VECTOR


def test_what_is_freed_together_is_counted_in_the_order_of_its_making() -> None:
    with TensorBytes() as counter:
        first, second, third = (torch.ones(size) for size in (1, 2, 3))
        del second, third, first  # autocast drops its copies in an order that depends on addresses
    assert counter.changes == [4, 8, 12, -4, -8, -12]


def test_the_counter_keeps_nothing_alive() -> None:
    freed = []
    with TensorBytes(network=nn.Linear(2, 2)) as counter:
        x = torch.ones(N)
        weakref.finalize(x, freed.append, "x")
        del x
        assert freed == ["x"]
    assert counter.current == 0, "the network was not kept either"


# Autograd ---------------------------------------------------------------------------------------


def test_saved_tensors_drop_out_one_by_one_in_the_backward_pass() -> None:
    w = torch.ones(N, requires_grad=True)

    def body() -> None:
        y = w
        for _ in range(4):
            y = y.exp()  # saves its result
        y.backward(torch.ones(N))

    # The root gradient and the last result, which Python holds, stay. At the second node: three more
    # results, the gradient that comes in and the one that goes out; every further node frees a result.
    assert peak_in_vectors(body, w) == 7


def test_gradients_of_one_tensor_are_summed_in_place_as_without_a_counter() -> None:
    w = torch.ones(N, requires_grad=True)

    def body() -> None:
        v = w * 1
        parts = [v * 2, v * 2, v * 2]
        torch.autograd.backward(parts, [torch.ones(N)] * 3)

    # v, 3 parts and the root gradients (one storage); the sum so far and the next summand.
    assert peak_in_vectors(body, w) == 7


def test_a_gradient_that_python_keeps_is_not_summed_into() -> None:
    w = torch.ones(N, requires_grad=True)

    def body() -> None:
        kept: list[Tensor] = []
        v = w * 1
        parts = [_KeepsGradient.apply(v, kept) for _ in range(2)]
        torch.autograd.backward(parts, [torch.ones(N)] * 2)

    # v, 2 parts and the root gradients; 2 kept gradients, their sum, and its product with 1.
    assert peak_in_vectors(body, w) == 8


class _KeepsGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: list[Tensor]) -> Tensor:
        ctx.kept = kept
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        ctx.kept.append(gradient * 2)
        return ctx.kept[-1], None


def test_checkpointing_saves_the_inner_activations() -> None:
    w = torch.ones(N, requires_grad=True)

    def segment(y: Tensor) -> Tensor:
        return y.exp().exp().exp()

    def plain() -> Any:
        return segment(segment(w))

    def checkpointed() -> Any:
        y = checkpoint(segment, w, use_reentrant=False, preserve_rng_state=False)
        return checkpoint(segment, y, use_reentrant=False, preserve_rng_state=False)

    assert peak_in_vectors(plain, w) == 6
    # The first segment's result and the second's, which is in the making: one before it, and itself.
    assert peak_in_vectors(checkpointed, w) == 3


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_activations_are_counted_in_the_backward_pass(reentrant: bool) -> None:
    w = torch.ones(N, requires_grad=True)

    def segment(y: Tensor) -> Tensor:
        for _ in range(5):
            y = y.exp()
        return y

    def body() -> None:
        y = checkpoint(segment, w, use_reentrant=reentrant, preserve_rng_state=False)
        y.backward(torch.ones(N))

    # The result and the root gradient stay; then five recomputed activations and a gradient, and a
    # second one where the recomputed output outlives its node.
    assert peak_in_vectors(body, w) == (9 if reentrant else 8)


def test_a_hook_that_replaces_saved_tensors_by_nothing_saves_their_bytes() -> None:
    w = torch.ones(N, requires_grad=True)

    def body() -> Any:
        y = w
        for _ in range(4):
            y = y.exp()
        return y

    with saved_tensors_hooks(lambda tensor: tensor.shape, lambda shape: torch.ones(shape)):
        assert peak_in_vectors(body, w) == 2


def test_a_hook_that_packs_to_half_precision_keeps_half_the_bytes() -> None:
    w = torch.ones(N, requires_grad=True)

    def body() -> Any:
        y = w
        for _ in range(4):
            y = y.exp()
        return y

    with saved_tensors_hooks(lambda tensor: tensor.half(), lambda packed: packed.float()):
        # Four packed results, and the last two in full while the last is packed.
        assert peak_in_vectors(body, w) == 4 * 0.5 + 2


class _KeepsHalf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x[: N // 2].clone())
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (half,) = ctx.saved_tensors
        return gradient + half.repeat(2)


def test_a_custom_function_is_counted_with_what_it_saves_and_its_own_temporaries() -> None:
    w = torch.ones(N, requires_grad=True)

    def forward() -> Any:
        return _KeepsHalf.apply(w)

    def both() -> None:
        _KeepsHalf.apply(w).backward(torch.ones(N))

    assert peak_in_vectors(forward, w) == 1.5
    # In the backward pass: the saved half, result and root gradient, the repeated half and the sum.
    assert peak_in_vectors(both, w) == 0.5 + 4


def test_no_grad_saves_nothing() -> None:
    w = torch.ones(N, requires_grad=True)

    def body() -> Tensor:
        with torch.no_grad():
            return w.exp().exp().exp()

    assert peak_in_vectors(body, w) == 2


def test_fake_tensors_count_as_real_ones_do() -> None:
    def body() -> int:
        network = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10))
        x = torch.ones(32, 64)
        with TensorBytes([x], network=network) as counter:
            network(x).sum().backward()
        return counter.peak

    real = body()
    with FakeTensorMode():
        fake = body()
    assert fake == real


def test_counting_changes_no_result(smoke_cell: MakeCell) -> None:
    def gradients(counted: bool) -> list[Tensor]:
        subject, x, labels = prepared(smoke_cell("bptt"))
        if counted:
            with TensorBytes([x, labels], network=subject.network):
                subject.training_iteration(x, labels)
        else:
            subject.training_iteration(x, labels)
        return [p.detach() for p in subject.network.parameters()]

    for counted, plain in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(counted, plain)


# Against the allocator --------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["bptt", "sltt", "sltt-k2"])
def test_the_count_agrees_with_the_allocators_own_record(smoke_cell: MakeCell, method: str) -> None:
    cell = smoke_cell(
        method,
        model={"name": "mlp", "hidden": [256, 256], "recurrent": True},
        timesteps=4,
        train__precision="fp32",
        train__batch_size=64,
    )
    subject, x, labels = prepared(cell)
    subject.training_iteration(x, labels)
    forget(subject)
    subject.generator.manual_seed(cell.seed)  # the same steps of SLTT-K in both iterations
    with TensorBytes([x, labels], network=subject.network, optimizer=subject.optimizer) as counter:
        before = counter.current
        subject.training_iteration(x, labels)
    forget(subject)
    subject.generator.manual_seed(cell.seed)
    assert counter.peak - before == pytest.approx(
        allocator_peak(lambda: subject.training_iteration(x, labels)), rel=1e-3
    )


# Causes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["bptt", "sltt", "sltt-k2"])
def test_the_causes_add_up_to_the_peak(smoke_cell: MakeCell, method: str) -> None:
    subject, x, labels = prepared(smoke_cell(method, timesteps=4, train__batch_size=64))
    subject.training_iteration(x, labels)
    forget(subject)
    with TensorBytes([x, labels], network=subject.network, optimizer=subject.optimizer) as counter:
        subject.training_iteration(x, labels)
    causes = counter.peak_by_cause
    parameters = sum(p.numel() for p in subject.network.parameters()) * 4
    buffers = sum(b.numel() * b.element_size() for b in subject.network.buffers())
    assert sum(causes.values()) == counter.peak
    assert causes[Cause.PARAMETERS] == parameters + buffers
    assert causes[Cause.OPTIMIZER_STATE] == parameters
    assert causes[Cause.INPUTS] == x.numel() * 4 + labels.numel() * 8
    if method != "bptt":
        assert causes[Cause.GRADIENTS] == parameters, "all there since the step before"


def test_each_cause_of_a_small_network_is_as_worked_out_by_hand() -> None:
    linear = nn.Linear(10, 200, bias=False)
    x = torch.ones(5, 10)
    with TensorBytes([x], network=linear) as counter:
        loss = linear(x).exp().sum()
        loss.backward()
    # Peak: in the backward pass of the layer, where exp's saved result is gone already.
    assert counter.peak_by_cause == {
        Cause.PARAMETERS: 8000,
        Cause.OPTIMIZER_STATE: 0,
        Cause.INPUTS: 200,
        Cause.GRADIENTS: 8000,
        Cause.NEURON_STATE: 0,
        Cause.ACTIVATIONS: 4 + 4,  # the loss and the 1 from which the backward pass starts
        Cause.TEMPORARIES: 4000,  # the gradient of the layer's output
    }


def test_a_leftover_of_one_backward_pass_is_no_activation_of_the_next() -> None:
    w = torch.ones(N, requires_grad=True)
    leftovers: list[Tensor] = []
    with TensorBytes([w]) as counter:
        for _ in range(2):
            y = w * 1
            y.register_hook(lambda gradient: leftovers.append(gradient * 1))
            y.exp().backward(torch.ones(N))
            del y
            w.grad = None
    assert len(leftovers) == 2
    # y, its exp and the root gradient; two leftovers, the gradients of y and of w.
    assert counter.peak_by_cause[Cause.ACTIVATIONS] == 3 * VECTOR
    assert counter.peak_by_cause[Cause.TEMPORARIES] == 4 * VECTOR


def test_neuron_state_is_what_the_stateful_layers_carry(smoke_cell: MakeCell) -> None:
    model = {"name": "mlp", "hidden": [300, 200]}
    subject, x, labels = prepared(
        smoke_cell("sltt", model=model, train__batch_size=64, train__precision="fp32")
    )
    with TensorBytes([x, labels], network=subject.network) as counter:
        subject.training_iteration(x, labels)
    assert counter.peak_by_cause[Cause.NEURON_STATE] == len(labels) * (300 + 200) * 4


# The paper's claim ------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["digits"])
def test_sltt_is_flat_in_t_and_bptt_is_linear(smoke_cell: MakeCell, recipe: str) -> None:
    def measure(method: str, timesteps: int) -> tuple[int, int]:
        cell = smoke_cell(method, recipe=recipe, timesteps=timesteps, train__batch_size=64)
        subject, x, labels = prepared(cell)
        subject.training_iteration(x, labels)
        forget(subject)
        with TensorBytes([x, labels], network=subject.network, optimizer=subject.optimizer) as counter:
            subject.training_iteration(x, labels)
        return counter.peak, counter.peak_by_cause[Cause.NEURON_STATE]

    sltt = {t: measure("sltt", t)[0] for t in (1, 2, 4, 8, 16)}
    bptt = {t: measure("bptt", t)[0] for t in (1, 2, 4, 8, 16)}
    for t in (4, 8, 16):
        assert sltt[t] == pytest.approx(sltt[2], rel=0.01)
    carried = measure("sltt", 2)[1]
    assert sltt[2] - sltt[1] <= carried
    slopes = [(bptt[2 * t] - bptt[t]) / t for t in (2, 4, 8)]
    assert slopes == pytest.approx([slopes[0]] * 3, rel=0.05)
    assert bptt[16] > 4 * sltt[16]


def prepared(cell: Cell) -> tuple[Any, Tensor, Tensor]:
    """The cell's experiment in training mode and a batch of random data."""
    subject = assemble(cell, torch.device("cpu"), make_backend(cell))
    subject.network.train()
    batch = cell.recipe.train.batch_size
    shape = cell.recipe.data.sample_shape
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(batch, *shape, generator=generator)
    return subject, x, torch.randint(cell.recipe.data.classes, (batch,), generator=generator)


def forget(subject: Any) -> None:
    """Drop the gradients and states that the last iteration left."""
    subject.optimizer.zero_grad(set_to_none=True)
    reset_state(subject.network)
