"""Everything that this package uses of torch beyond its documented interface, each with a test of its contract.

If torch changes one of these, only this file breaks, at import or in tests/backends/test_torch_internals.py.
Torch 2.6 and newer are supported.
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

# Re-exported unchanged.
__all__ = ["DataDependentOutputException", "DynamicOutputShapeException", "FakeTensor", "FakeTensorMode", "TorchDispatchMode", "in_kernel_invocation_manager", "tree_leaves",
           "unset_fake_temporarily"]  # fmt: skip


# Autograd ---------------------------------------------------------------------------------------


def running_backward_pass() -> int:
    """Returns a number unique to the backward pass that runs in this thread; −1 outside of one."""
    return torch._C._current_graph_task_id()


def inside_backward() -> bool:
    """Whether a backward pass runs in this thread."""
    return running_backward_pass() != -1


def running_node_number() -> int:
    """Returns the number, in order of creation, of the autograd node that runs in this thread; −1 outside."""
    node = torch._C._current_autograd_node()
    return -1 if node is None else node._sequence_nr()


def autograd_nodes_made() -> int:
    """Returns how many autograd nodes this thread has created: the number of the next one."""
    return torch.autograd._get_sequence_nr()  # type: ignore[attr-defined,no-any-return]


def called_by_autograd_engine(file: str) -> bool:
    """Whether autograd's engine itself, not Python code in a backward pass, called the operation that a
    dispatch mode in `file` receives."""
    wrappers = (file, *_WRAPPERS)
    caller: FrameType | None = sys._getframe(1)
    while caller is not None and caller.f_code.co_filename.startswith(wrappers):
        caller = caller.f_back
    return caller is None or caller.f_code.co_name == "_engine_run_backward"


_WRAPPERS = tuple(str(Path(torch.__file__).parent / part) for part in ("_compile.py", "_dynamo"))
"""Files of torch whose frames lie between a dispatch mode and the caller of the operation."""


def saved_by(node: Any, name: str) -> Any:
    """Returns what an autograd node saved for its backward pass under `name`, e.g. "self" or "stride"."""
    return getattr(node, f"_saved_{name}")


def result_of(node: Any) -> Any:
    """Returns shape and dtype of an autograd node's first result."""
    return node._input_metadata[0]


def has_hooks(tensor: Tensor) -> bool:
    """Whether a leaf tensor has hooks on its gradient."""
    hooks = tensor._backward_hooks, tensor._post_accumulate_grad_hooks  # type: ignore[attr-defined]
    return any(hooks)


# Batch norm --------------------------------------------------------------------------------------


def batch_statistics(
    x: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float
) -> tuple[Tensor, Tensor]:
    """Returns mean and (biased) variance of each channel of x [batch, channels, …], in one pass over x.

    They have the dtype of the running statistics, which are updated as by batch norm in training.
    """
    mean, variance = torch.batch_norm_update_stats(x, running_mean, running_var, momentum)
    return mean, variance


# Storages and modules ---------------------------------------------------------------------------


def storage_address(tensor: Tensor | torch.UntypedStorage) -> int:
    """Returns a number unique among living storages, including those of fake tensors."""
    storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else tensor
    address: int = storage._cdata
    return address


def zero_all(tensors: list[Tensor]) -> None:
    """Set every element of every tensor to 0, on a GPU in few launches."""
    torch._foreach_zero_(tensors)


def times_changed(tensor: Tensor) -> int:
    """Returns how often a tensor was changed in place: autograd's check before it uses a saved tensor."""
    return tensor._version


def dtype_asked_of_to(*args: Any, **kwargs: Any) -> torch.dtype | None:
    """Returns the dtype in the arguments of `Module.to`; None if they have only a device or a format."""
    dtype: torch.dtype | None = torch._C._nn._parse_to(*args, **kwargs)[1]
    return dtype


def module_hooks() -> Any:
    """Returns torch's module of global hooks, which see every layer of every network."""
    return nn.modules.module


HOOKS_OF_A_LAYER = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""The attributes in which a module holds hooks around its own calls."""


def hooks_of_every_layer() -> list[Any]:
    """Returns the global hooks now registered around the forward pass."""
    hooks = module_hooks()
    return [*hooks._global_forward_hooks.values(), *hooks._global_forward_pre_hooks.values()]


def backward_hooks_of_every_layer() -> list[Any]:
    """Returns the global hooks now registered around the backward pass."""
    hooks = module_hooks()
    return [*hooks._global_backward_hooks.values(), *hooks._global_backward_pre_hooks.values()]


# Fake tensors -----------------------------------------------------------------------------------


def empty_meta_tensor(shape: torch.Size, stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Create a tensor on the device "meta" without any dispatch mode seeing it."""
    with torch._C._DisableTorchDispatch():  # type: ignore[attr-defined]
        return torch.empty_strided(shape, stride, dtype=dtype, device="meta")


def fake_device(attributes: dict[str, Any]) -> torch.device:
    """Returns the device among a fake tensor's attributes, whose name differs between torch versions."""
    device: torch.device = attributes["fake_device" if "fake_device" in attributes else "_fake_device"]
    return device


def as_fake_tensor(mode: FakeTensorMode, meta: Tensor, attributes: dict[str, Any]) -> FakeTensor:
    """Returns what FakeTensor(mode, meta, device) returns, in a fifth of the time.

    `attributes` are those of a fake tensor with the same shape, dtype and device; its mode may differ.
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
    """Context in which a `network` that torch.compile has compiled in place runs uncompiled.

    For code that hooks its layers: torch.compile would compile a new version for each hook.
    """
    compiled = network._compiled_call_impl
    network._compiled_call_impl = None
    try:
        yield
    finally:
        network._compiled_call_impl = compiled


def leave_compiler_unloaded() -> None:
    """Let optimisers and dispatch modes run without torch's compiler, which takes as long to load as torch.

    Functions that the compiler must not trace have a wrapper (`torch._compile._disable_dynamo`) that loads
    the compiler at its first call, to exclude the function from tracing. Here the wrapper's cache is filled
    with the plain function instead. `Optimizer.step` loads the compiler to break a graph that it may be
    tracing; here the unwrapped function replaces it, with gradients disabled as before. Only for processes
    that compile nothing.
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
    """Context in which torchvision is imported without torch's compiler, nine tenths of the import's time.

    During the import, one operator asks the compiler whether it can be compiled (here: no), and one function
    asks to be excluded from compilation (here it is returned unchanged). Any other use of the compiler loads
    it after all.
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
    """Stands in for a module; any attribute that it lacks makes it load the real module."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        _end_stand_ins()
        return getattr(importlib.import_module(self.__name__), name)


def _end_stand_ins() -> None:
    for name, module in list(sys.modules.items()):
        if isinstance(module, _StandIn):
            del sys.modules[name]
    if isinstance(vars(torch).get("_dynamo"), _StandIn):  # torch looks here before sys.modules
        del torch._dynamo


# torch.compile ----------------------------------------------------------------------------------


def compiler_raises_beyond(versions: int) -> None:
    """Make torch raise for a frame that needs more compiled versions, which else runs uncompiled silently."""
    from torch._dynamo import config  # imported here, since the compiler takes seconds to load

    config.cache_size_limit = versions  # type: ignore[attr-defined]
    config.fail_on_cache_limit_hit = True  # type: ignore[attr-defined]


def compiled_so_far() -> tuple[int, int]:
    """Returns how many graphs this process has compiled, and how many breaks between them ran uncompiled."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
