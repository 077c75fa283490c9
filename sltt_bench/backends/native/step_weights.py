"""Weights as the steps of an iteration use them: standardised, and in the format of mixed precision.

Neither depends on t. Autocast casts a weight at each of T steps, and the gradient of each cast back, before autograd
sums it: this takes passes over all weights, and kernels so small that launching them takes as long. Here a
weight is made once per iteration, and one pass adds a step's gradient in the parameter's own precision. The
sums and their order are autograd's. The sum for a standardised weight reaches its parameters at the end of
the iteration.

For a method that frees each step's graph before the next, a copy of the weights is not small compared with
the graph. So in a step with a graph a plain weight is cast at each use, and again in the backward pass, and not
kept. Steps without a graph, which need less memory, share one cast until the next step with one. A standardised
weight is kept in the format that the steps use, which takes less memory than the standardised weight itself.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sltt_bench.backends.native.absorbed_bias import UnbiasedConv2d, UnbiasedScaledWSConv2d
from sltt_bench.backends.native.saved_tensor_hooks import Computed, Kept, Stored
from sltt_bench.backends.native.standardising import standardise, standardise_backward
from sltt_bench.models.nf_resnet import ScaledWSConv2d
from sltt_bench.models.normalisation import ScaledWSLinear
from sltt_bench.torch_internals import has_hooks, times_changed

CAST: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: ("weight", "bias"),
    UnbiasedConv2d: ("weight",),
    nn.Linear: ("weight", "bias"),
}
"""Layer that autocast runs in half precision → the parameters that it reads once per step."""

IN_ONE_PASS = (ScaledWSConv2d, UnbiasedScaledWSConv2d, ScaledWSLinear)
"""Layers whose standardised weight is `normalisation.standardised` times a gain."""


class StepWeights(Protocol):
    """The step weights of one layer; they replace one of its methods during an iteration."""

    module: nn.Module
    attribute: str
    """Name of the replaced method."""
    made_once: bool
    """Whether steps have used them and all used the same."""

    def __call__(self, *args: Any) -> Any:
        """Replaces the method."""

    def settle(self) -> None:
        """Pass gradients on to the parameters, at the end of the iteration."""

    def release(self) -> None:
        """Release what is no longer used."""


def step_weights(network: nn.Module, *, keep_casts: bool, one_pass: bool) -> Iterator[StepWeights]:
    """Yields the step weights for an iteration of the network.

    `keep_casts`: parameters in the format of mixed precision are kept until the iteration ends, not only between
    steps without a graph.
    `one_pass`: weights are standardised in one pass each way.
    """
    of_free_steps: list[_OfAllSteps] = []
    for module in network.modules():
        if hasattr(module, "standardised_weight"):
            yield StandardisedWeight(module, one_pass=one_pass)
        elif type(module) in CAST and "forward" not in module.__dict__:
            yield CastParameters(module, of_free_steps, keep=keep_casts)


class _OfAllSteps:
    """A tensor that is computed from a layer's parameters for all steps."""

    def __init__(
        self,
        parameter: nn.Parameter,
        make: Callable[[torch.dtype], Tensor],
        of_free_steps: "list[_OfAllSteps]",
        *,
        keep: bool,
    ) -> None:
        """`make` computes it in a dtype. `parameter`: one of its parameters, a trained one if there is any.

        `keep`: it is computed at its first use and kept until the iteration ends; else only from one use without
        a graph to the next: all that are kept so, of all layers, stand in `of_free_steps`.
        """
        self.parameter = parameter
        self._make = make
        self._of_free_steps = of_free_steps
        self._keep = keep
        self._value: Tensor | None = None

    def used(self, dtype: torch.dtype, add: Callable[[Tensor], None]) -> Tensor:
        """Returns the value for one use, as part of the graph; backward, `add` receives the gradient."""
        value, kept = self._value_and_way(dtype)
        used: Tensor = _Use.apply(self.parameter, value, kept, add)
        return used

    def _value_and_way(self, dtype: torch.dtype) -> tuple[Tensor, Kept]:
        """Returns the value, and what stands for it until the backward pass."""
        if torch.is_grad_enabled() and not self._keep:
            while self._of_free_steps:
                self._of_free_steps.pop().forget()
            cast_again = partial(torch.Tensor.to, dtype=dtype)
            return self._made(dtype), Computed(cast_again, (Stored(self.parameter),))
        if self._value is None or self._value.dtype != dtype:
            self._value = self._made(dtype)
            if not self._keep:
                self._of_free_steps.append(self)
        return self._value, Stored(self._value)

    def forget(self) -> None:
        """Compute the value again at its next use."""
        self._value = None

    def _made(self, dtype: torch.dtype) -> Tensor:
        with torch.no_grad():
            return self._make(dtype)


class StandardisedWeight:
    """The weight of a layer with a `standardised_weight`, and the sum of the gradients from the steps."""

    attribute = "standardised_weight"

    def __init__(self, module: nn.Module, *, one_pass: bool) -> None:
        """`one_pass`: standardise by the functions of `standardising`, if they fit the layer's weight."""
        self.module = module
        self.made_once = False
        self._standardise = cast(Callable[[], Tensor], module.standardised_weight)
        made_from = {name: p for name, p in module.named_parameters(recurse=False) if name != "bias"}
        anchor = next((p for p in made_from.values() if p.requires_grad), next(iter(made_from.values())))
        one_pass = one_pass and type(module) in IN_ONE_PASS and not any(map(has_hooks, made_from.values()))
        self._in_one_pass = (made_from["weight"], made_from["gain"]) if one_pass else None
        self._weight = _OfAllSteps(anchor, self._made, [], keep=True)
        self._versions = parameter_versions(module)
        self._sum: Tensor | None = None
        self._sum_is_own = False

    def __call__(self) -> Tensor:
        self._check()
        self.made_once = True
        parameter = self._weight.parameter
        return self._weight.used(_dtype_of_steps(parameter) or parameter.dtype, self._add)

    def settle(self) -> None:
        if self.made_once:
            self._check()
        if self._sum is None:
            return
        if self._in_one_pass is None:
            # Standardised again, so that its graph need not be kept while the steps run.
            with torch.enable_grad():
                weight = self._standardise()
            weight.backward(self._sum)  # type: ignore[no-untyped-call]
            return
        with torch.no_grad():
            gradients = standardise_backward(self._sum, *self._in_one_pass)
        for parameter, gradient in zip(self._in_one_pass, gradients, strict=True):
            if parameter.requires_grad:
                _add_to_gradient(parameter, gradient)

    def release(self) -> None:
        self._weight.forget()
        self._sum = None

    def _made(self, dtype: torch.dtype) -> Tensor:
        if self._in_one_pass is None:
            return self._standardise().to(dtype)
        return standardise(*self._in_one_pass, dtype)

    def _add(self, gradient: Tensor) -> None:
        if self._sum is None:
            self._sum = gradient.to(self._weight.parameter.dtype)
            self._sum_is_own = self._sum is not gradient
        elif self._sum_is_own:
            self._sum += gradient
        else:  # not in place, since autograd may share the tensor
            self._sum, self._sum_is_own = self._sum + gradient, True

    def _check(self) -> None:
        if parameter_versions(self.module) != self._versions:
            raise changed_within_iteration(self.module)


class CastParameters:
    """Parameters of a layer that autocast runs in half precision; without autocast it is unchanged."""

    attribute = "forward"

    def __init__(self, module: nn.Module, of_free_steps: list[_OfAllSteps], *, keep: bool) -> None:
        self.module = module
        self.made_once = False
        self._of_free_steps = of_free_steps
        self._forward = module.forward
        self._keep = keep
        self._casts = {
            name: _OfAllSteps(parameter, parameter.detach().to, of_free_steps, keep=keep)
            for name in CAST[type(module)]
            if (parameter := module._parameters.get(name)) is not None and not has_hooks(parameter)
        }
        self._versions = parameter_versions(module)

    def __call__(self, input: Tensor) -> Any:
        dtype = _dtype_of_steps(input)
        if dtype is None:
            return self._forward(input)
        self.made_once = self._keep
        if self._versions != (now := parameter_versions(self.module)):
            self._versions = now
            self.release()
        with ExitStack() as replacements:
            for name, cast_ in self._casts.items():
                # An instance attribute takes precedence over a parameter with the same name.
                used = cast_.used(dtype, partial(_add_to_gradient, cast_.parameter))
                replacements.enter_context(replaced(self.module, name, used))
            return self._forward(input)

    def settle(self) -> None:
        """Nothing to do: the parameters have their gradients already."""

    def release(self) -> None:
        for cast_ in self._casts.values():
            cast_.forget()
        self._of_free_steps.clear()


def _dtype_of_steps(tensor: Tensor) -> torch.dtype | None:
    """Returns autocast's dtype on the tensor's device; None if it is off."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _add_to_gradient(parameter: nn.Parameter, gradient: Tensor) -> None:
    """Accumulate like autograd, in the parameter's memory layout, which a fused optimiser needs."""
    if parameter.grad is None:
        alike = gradient.stride() == parameter.stride()
        parameter.grad = (
            gradient.to(parameter.dtype) if alike else torch.empty_like(parameter).copy_(gradient)
        )
    else:
        parameter.grad += gradient


class _Use(torch.autograd.Function):
    """A parameter → the value computed from it, whose gradient goes to `add` instead of the parameter."""

    @staticmethod
    def forward(
        ctx: Any, parameter: Tensor, value: Tensor, kept: Kept, add: Callable[[Tensor], None]
    ) -> Tensor:
        ctx.kept, ctx.add = kept, add
        return value.detach()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None, None]:
        ctx.add(gradient)
        return None, None, None, None


@contextmanager
def replaced(module: nn.Module, attribute: str, value: object) -> Iterator[None]:
    """Context in which the attribute of this module object is `value`."""
    outside = module.__dict__.get(attribute)
    module.__dict__[attribute] = value
    try:
        yield
    finally:
        if outside is None:
            del module.__dict__[attribute]
        else:
            module.__dict__[attribute] = outside


def parameter_versions(module: nn.Module) -> list[tuple[int, int]]:
    """Returns a value that changes when a parameter of the layer is changed in place or replaced."""
    return [(id(parameter), times_changed(parameter)) for parameter in module.parameters(recurse=False)]


def changed_within_iteration(module: nn.Module) -> RuntimeError:
    """Returns the error for parameters that have changed since a value was computed for all steps."""
    return RuntimeError(
        f"the parameters of a {type(module).__name__} were changed within an iteration, but the "
        "native backend computes with them once an iteration; change them between iterations, or "
        "use --backend reference"
    )
