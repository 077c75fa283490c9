"""The contract of each part of torch beyond its documented interface: a new torch that breaks one fails here."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sltt_bench
from sltt_bench import torch_internals
from sltt_bench.torch_internals import (
    FakeTensor,
    FakeTensorMode,
    TorchDispatchMode,
    as_fake_tensor,
    autograd_nodes_made,
    batch_statistics,
    called_by_autograd_engine,
    compiled_so_far,
    compiler_raises_beyond,
    dtype_asked_of_to,
    empty_meta_tensor,
    has_hooks,
    in_kernel_invocation_manager,
    inside_backward,
    module_hooks,
    running_backward_pass,
    running_node_number,
    storage_address,
    tree_leaves,
    unset_fake_temporarily,
    zero_all,
)

PRIVATE = re.compile(
    r"torch\._[a-z]|torch\._C|torch\.\w+\._|from torch\.?\S*\._|\._cdata|_sequence_nr|_make_subclass"
)


def test_nothing_else_of_the_package_uses_what_torch_does_not_document() -> None:
    package = Path(sltt_bench.__file__).parent
    for path in package.rglob("*.py"):
        if path.name != "torch_internals.py":
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
                assert not PRIVATE.search(line), f"{path.relative_to(package)}:{number}: {line.strip()}"


def test_hooks_on_the_gradient_of_a_leaf_are_seen() -> None:
    for register in ("register_hook", "register_post_accumulate_grad_hook"):
        leaf = nn.Parameter(torch.ones(2))
        assert not has_hooks(leaf)
        handle = getattr(leaf, register)(lambda _: None)
        assert has_hooks(leaf)
        handle.remove()
        assert not has_hooks(leaf)


def test_a_backward_pass_has_a_number_of_its_own() -> None:
    numbers: list[int] = []

    def note(gradient: Tensor) -> None:
        assert inside_backward()
        numbers.append(running_backward_pass())

    w = torch.ones(2, requires_grad=True)
    for _ in range(2):
        product = w * 2
        product.register_hook(note)
        product.sum().backward()
    assert not inside_backward()
    assert len(set(numbers)) == 2
    assert running_backward_pass() == -1


def test_nodes_are_numbered_in_the_order_in_which_they_are_made() -> None:
    class NodeNumber(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is torch.ops.aten.cos.default:  # what the derivative of sin asks for
                numbers.append(running_node_number())
            return func(*args, **(kwargs or {}))

    numbers: list[int] = []
    w = torch.ones(2, requires_grad=True)
    before = autograd_nodes_made()
    first = w.sin()
    between = autograd_nodes_made()
    second = first.sin()
    with NodeNumber():
        second.sum().backward()
    last, earlier = numbers
    assert before <= earlier < between <= last
    assert running_node_number() == -1


def test_what_the_engine_adds_is_told_from_what_python_adds() -> None:
    calls: list[bool] = []

    class Additions(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is torch.ops.aten.add.Tensor:
                calls.append(called_by_autograd_engine(__file__))
            return func(*args, **(kwargs or {}))

    w = torch.ones(2, requires_grad=True)
    v = w * 1
    loss = (v * 2).sum() + (v * 3).sum()
    with Additions():
        loss.backward()  # the engine adds the two gradients of v
        by_engine = len(calls)
        eval("torch.ones(1) + torch.ones(1)")  # called from another file than the mode's
    assert by_engine == 1
    assert calls == [True, False]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_the_statistics_of_a_batch_are_those_that_batch_norm_learns(dtype: torch.dtype) -> None:
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    norm = nn.BatchNorm2d(3, momentum=0.3, dtype=wide)
    running = torch.zeros(3, dtype=wide), torch.ones(3, dtype=wide)
    mean, variance = batch_statistics(x, *running, 0.3)
    norm(x)
    assert torch.equal(running[0], norm.running_mean)
    assert torch.equal(running[1], norm.running_var)
    assert mean.dtype == variance.dtype == wide
    exact = torch.var_mean(x.double(), [0, 2, 3], correction=0)
    for own, wanted in zip((variance, mean), exact, strict=True):
        torch.testing.assert_close(own.double(), wanted, rtol=1e-6, atol=1e-7)


def test_a_storage_has_one_address_and_views_share_it() -> None:
    a, b = torch.zeros(4), torch.zeros(4)
    assert storage_address(a) == storage_address(a[1:]) == storage_address(a.untyped_storage())
    assert storage_address(a) != storage_address(b)
    with FakeTensorMode():
        fake = torch.zeros(4)
        assert storage_address(fake) == storage_address(fake[1:]) != storage_address(torch.zeros(4))


def test_the_type_that_module_to_is_asked_for_is_found() -> None:
    assert dtype_asked_of_to("cpu") is None
    assert dtype_asked_of_to(torch.float64) == dtype_asked_of_to("cpu", torch.float64) == torch.float64
    assert dtype_asked_of_to(memory_format=torch.channels_last) is None


def test_many_tensors_are_zeroed_at_once() -> None:
    tensors = [torch.ones(2), torch.ones(3, 1)]
    zero_all(tensors)
    assert not any(bool(tensor.any()) for tensor in tensors)


def test_hooks_of_all_modules_see_every_layer() -> None:
    entered: list[nn.Module] = []
    handle = module_hooks().register_module_forward_pre_hook(lambda module, args: entered.append(module))
    layer = nn.Linear(2, 2)
    layer(torch.ones(1, 2))
    handle.remove()
    layer(torch.ones(1, 2))
    assert entered == [layer]


def test_a_fake_tensor_is_made_as_torch_makes_it() -> None:
    with FakeTensorMode() as mode:
        made = torch.empty_strided((2, 3), (3, 1), dtype=torch.float16)
        attributes = {name: value for name, value in vars(made).items() if name != "fake_mode"}
        again = as_fake_tensor(mode, empty_meta_tensor(torch.Size((2, 3)), (3, 1), torch.float16), attributes)
        assert type(again) is FakeTensor
        assert (again.device, again.dtype, again.shape) == (made.device, torch.float16, made.shape)
        assert sorted(vars(again)) == sorted(vars(made))
        assert (again + made).shape == (2, 3)
        with in_kernel_invocation_manager(mode):
            assert torch.as_strided(again, (3,), (1,), 0).device.type == "meta"
        with unset_fake_temporarily():
            assert type(torch.zeros(1)) is Tensor
        assert type(torch.zeros(1)) is FakeTensor


def test_an_empty_meta_tensor_is_seen_by_no_dispatch_mode() -> None:
    seen: list[object] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Watch():
        meta = empty_meta_tensor(torch.Size((2,)), (1,), torch.float32)
    assert meta.device.type == "meta"
    assert not seen


def test_the_leaves_of_nested_containers_are_found() -> None:
    assert tree_leaves([{"a": 1, "b": [2, (3,)]}, 4]) == [1, 2, 3, 4]


def test_a_torch_without_a_part_is_named_at_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("torch._subclasses.fake_tensor.in_kernel_invocation_manager")
    source = Path(torch_internals.__file__).read_text(encoding="utf-8")
    with pytest.raises(ImportError, match=re.escape(f"torch {torch.__version__} has moved a part")):
        exec(compile(source, torch_internals.__file__, "exec"), {"__name__": "again"})


WITHOUT_COMPILER = """
import sys
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from sltt_bench.torch_internals import leave_compiler_unloaded, without_compiler

class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))

def trained(make):
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    optimizer = make(layer.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    for _ in range(3):
        optimizer.zero_grad(set_to_none=True)
        layer(torch.ones(4, 3)).square().sum().backward()
        with Watching():
            optimizer.step()
        schedule.step()
    optimizer.load_state_dict(optimizer.state_dict())
    assert layer.weight.requires_grad and layer.weight.is_leaf
    return layer.weight.tolist()

makers = [
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    lambda p: torch.optim.AdamW(p, lr=0.1),
]
leave_compiler_unloaded()
without = [trained(make) for make in makers]
with without_compiler():
    from torchvision.transforms import v2
crop = v2.Compose([v2.RandomCrop(8, padding=4), v2.RandomHorizontalFlip()])
assert crop(torch.zeros(3, 8, 8, dtype=torch.uint8)).shape == (3, 8, 8)
assert not [name for name in sys.modules if name.startswith("torch._dynamo")]
import torch._dynamo
assert torch._dynamo.disable.__module__ == "torch._dynamo.decorators"
assert without == [trained(make) for make in makers]
"""


@pytest.mark.spawned
def test_training_on_images_does_not_load_the_compiler() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_COMPILER], check=True)


def test_a_frame_with_too_many_versions_raises_and_what_is_compiled_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch._dynamo import config

    for name in ("cache_size_limit", "fail_on_cache_limit_hit"):
        monkeypatch.setattr(config, name, getattr(config, name))
    compiler_raises_beyond(1)
    before = compiled_so_far()
    doubled = torch.compile(lambda x: x * 2, backend="eager", dynamic=False)
    assert torch.equal(doubled(torch.ones(2)), torch.full((2,), 2.0))
    assert compiled_so_far()[0] == before[0] + 1
    with pytest.raises(Exception, match=r"FailOnRecompileLimitHit|limit"):
        doubled(torch.ones(3))
