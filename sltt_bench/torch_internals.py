"""Everything that this package uses of torch beyond its documented interface, each with a test of its contract.

A torch that changes one of these breaks this file, at import or in tests/test_torch_internals.py, and nothing
else. Supported are torch 2.6 and newer.
"""

import importlib
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, _compile, nn

try:
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        FakeTensor,
        FakeTensorMode,
        in_kernel_invocation_manager,
        unset_fake_temporarily,
    )
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
except ImportError as error:
    raise ImportError(
        f"torch {torch.__version__} has moved a part that sltt-bench needs ({error}); "
        "use a torch that this version of sltt-bench names, or a newer sltt-bench"
    ) from error

# What is handed on as it is.
__all__ = ["DataDependentOutputException", "DynamicOutputShapeException", "FakeTensor", "FakeTensorMode", "TorchDispatchMode", "in_kernel_invocation_manager", "tree_leaves",
           "unset_fake_temporarily"]  # fmt: skip


# Autograd ---------------------------------------------------------------------------------------


def running_backward_pass() -> int:
    """A number for the backward pass that runs in this thread, another for each; −1 outside of one."""
    return torch._C._current_graph_task_id()


def inside_backward() -> bool:
    """Whether a backward pass runs in this thread."""
    return running_backward_pass() != -1


def running_node_number() -> int:
    """The number of the autograd node that runs in this thread, in the order of creation; −1 outside."""
    node = torch._C._current_autograd_node()
    return -1 if node is None else node._sequence_nr()


def autograd_nodes_made() -> int:
    """How many autograd nodes this thread has made: the next one's number."""
    return torch.autograd._get_sequence_nr()  # type: ignore[attr-defined,no-any-return]


def called_by_autograd_engine(file: str) -> bool:
    """Whether the operation that a dispatch mode in `file` is given comes from the engine of a backward pass
    itself, not from Python code that the pass runs."""
    wrappers = (file, *_WRAPPERS)
    caller: FrameType | None = sys._getframe(1)
    while caller is not None and caller.f_code.co_filename.startswith(wrappers):
        caller = caller.f_back
    return caller is None or caller.f_code.co_name == "_engine_run_backward"


_WRAPPERS = tuple(str(Path(torch.__file__).parent / part) for part in ("_compile.py", "_dynamo"))
"""What torch puts between a dispatch mode and who called the operation."""


def saved_by(node: Any, name: str) -> Any:
    """What an autograd node saved for its backward pass under `name`, e.g. "self" or "stride"."""
    return getattr(node, f"_saved_{name}")


def result_of(node: Any) -> Any:
    """Shape and type of an autograd node's first result."""
    return node._input_metadata[0]


def has_hooks(tensor: Tensor) -> bool:
    """Whether somebody has asked to see the gradients of a leaf."""
    hooks = tensor._backward_hooks, tensor._post_accumulate_grad_hooks  # type: ignore[attr-defined]
    return any(hooks)


# Batch norm --------------------------------------------------------------------------------------


def batch_statistics(
    x: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float
) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance of each channel of x [batch, channels, …], of the type of the running ones, which
    learn them as those of batch norm in training do. One pass over x."""
    mean, variance = torch.batch_norm_update_stats(x, running_mean, running_var, momentum)
    return mean, variance


# Storages and modules ---------------------------------------------------------------------------


def storage_address(tensor: Tensor | torch.UntypedStorage) -> int:
    """What tells a living storage from every other one, that of fake tensors included."""
    storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else tensor
    address: int = storage._cdata
    return address


def zero_all(tensors: list[Tensor]) -> None:
    """Set every element of every tensor to 0, on a GPU in few launches."""
    torch._foreach_zero_(tensors)


def times_changed(tensor: Tensor) -> int:
    """How often a tensor was changed in place: what autograd compares before it uses a saved one."""
    return tensor._version


def dtype_asked_of_to(*args: Any, **kwargs: Any) -> torch.dtype | None:
    """The type that the arguments of `Module.to` ask for; None if only a device or a format."""
    dtype: torch.dtype | None = torch._C._nn._parse_to(*args, **kwargs)[1]
    return dtype


def module_hooks() -> Any:
    """torch's module of hooks that see every layer of every network."""
    return nn.modules.module


HOOKS_OF_A_LAYER = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""The attributes in which a module holds hooks around its own calls."""


def hooks_of_every_layer() -> list[Any]:
    """Such hooks as are there now, around the forward pass."""
    hooks = module_hooks()
    return [*hooks._global_forward_hooks.values(), *hooks._global_forward_pre_hooks.values()]


def backward_hooks_of_every_layer() -> list[Any]:
    """Such hooks as are there now, around the backward pass."""
    hooks = module_hooks()
    return [*hooks._global_backward_hooks.values(), *hooks._global_backward_pre_hooks.values()]


# Fake tensors -----------------------------------------------------------------------------------


def empty_meta_tensor(shape: torch.Size, stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor on the device "meta" that no dispatch mode sees being made."""
    with torch._C._DisableTorchDispatch():  # type: ignore[attr-defined]
        return torch.empty_strided(shape, stride, dtype=dtype, device="meta")


def fake_device(attributes: dict[str, Any]) -> torch.device:
    """The device among a fake tensor's attributes, by its name in older and in newer versions."""
    device: torch.device = attributes["fake_device" if "fake_device" in attributes else "_fake_device"]
    return device


def as_fake_tensor(mode: FakeTensorMode, meta: Tensor, attributes: dict[str, Any]) -> FakeTensor:
    """What FakeTensor(mode, meta, device) returns, in a fifth of the time.

    `attributes` are those of a fake tensor of the same looks, but for the mode that it belongs to.
    """
    device = fake_device(attributes)
    tensor = Tensor._make_subclass(
        FakeTensor, meta, False, dispatch_device=True, device_for_backend_keys=device
    )
    torch._C._set_throw_on_mutable_data_ptr(tensor)  # type: ignore[attr-defined]
    tensor.__dict__.update(attributes, fake_mode=mode)
    return tensor


# The compiler ------------------------------------------------------------------------------------


@contextmanager
def uncompiled(network: nn.Module) -> Iterator[None]:
    """Within, `network` runs as it is written, though torch.compile has compiled it in place: for whoever watches its
    layers by hooks, each of which would be compiled into a version of its own."""
    compiled = network._compiled_call_impl
    network._compiled_call_impl = None
    try:
        yield
    finally:
        network._compiled_call_impl = compiled


def leave_compiler_unloaded() -> None:
    """Let optimisers and dispatch modes run without torch's compiler, which takes as long to load as torch.

    What the compiler must not trace is wrapped (`torch._compile._disable_dynamo`), and the wrapper loads
    the compiler at its first call, to be kept from it: its own cache is told that there is nothing to be kept
    from. `Optimizer.step` loads it to break the graph that it might be tracing: the function below that is
    taken, with the gradient switched off as there. Only for processes that compile nothing.
    """
    optimizers: list[Any] = [torch.optim.Optimizer, *_subclasses(torch.optim.Optimizer)]
    for owner in (*optimizers, *_subclasses(TorchDispatchMode)):
        for function in vars(owner).values():
            if isinstance(function, FunctionType) and function.__code__.co_filename == _WRAPPER_FILE:
                wrapped: Any = function.__wrapped__  # type: ignore[attr-defined]
                setattr(wrapped, "__dynamo_disable", wrapped)
    for owner in optimizers[1:]:
        if "step" in vars(owner):
            owner.step = torch.no_grad()(inspect.unwrap(owner.step))


_WRAPPER_FILE = _compile.__file__


def _subclasses(kind: type) -> Iterator[type]:
    below: type
    for below in kind.__subclasses__():
        yield below
        yield from _subclasses(below)


@contextmanager
def without_compiler() -> Iterator[None]:
    """Within, torchvision is imported without torch's compiler, which takes nine tenths of that import.

    One of its operators asks the compiler at once whether it could compile it (it stays uncompiled), and a function
    is to be kept from the compiler (it is left as it is). Whatever else is asked of it within loads it after all.
    """
    if "torch._dynamo" in sys.modules or "torchvision" in sys.modules:
        yield
        return
    utilities, compiler = _StandIn("torch._dynamo.utils"), _StandIn("torch._dynamo")
    vars(utilities)["is_compile_supported"] = lambda device_type: False
    vars(compiler).update(utils=utilities, disable=lambda function=None, *_, **__: function)
    sys.modules.update({module.__name__: module for module in (utilities, compiler)})
    try:
        yield
    finally:
        _end_stand_ins()


class _StandIn(ModuleType):
    """In the place of a module; what it lacks is the module's own."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        _end_stand_ins()
        return getattr(importlib.import_module(self.__name__), name)


def _end_stand_ins() -> None:
    for name, module in list(sys.modules.items()):
        if isinstance(module, _StandIn):
            del sys.modules[name]
    if isinstance(vars(torch).get("_dynamo"), _StandIn):  # where torch looks first
        del torch._dynamo


# torch.compile ----------------------------------------------------------------------------------


def compiler_raises_beyond(versions: int) -> None:
    """A frame that would be compiled in more versions raises, where torch would run it uncompiled in silence."""
    from torch._dynamo import config  # here, since the compiler takes seconds to load

    config.cache_size_limit = versions  # type: ignore[attr-defined]
    config.fail_on_cache_limit_hit = True  # type: ignore[attr-defined]


def compiled_so_far() -> tuple[int, int]:
    """Graphs that were compiled in this process, and breaks between them at which torch ran uncompiled."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
