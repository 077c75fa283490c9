"""Computes values that are the same at all T steps of an iteration only once.

These are weights as the steps use them (`step_weights`), and the outputs of the first layers for an image
that is shown at every step. Such an output is computed at its first use and given to the steps as a leaf of
their graphs. The gradients that reach the leaf are summed over t and pass through its computation
once, at the end of the iteration; only then are the gradients of the layer's parameters complete.
A layer whose output a step changes in place is left out from then on.
If the sum would take much memory, and more than the layer's input, it is not formed: each backward
pass goes through the layer.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.hooks import RemovableHandle

from sltt_bench.backends.native.absorbed_bias import UnbiasedConv2d
from sltt_bench.backends.native.pooling import LeanAvgPool2d
from sltt_bench.backends.native.saved_tensor_hooks import Stored
from sltt_bench.backends.native.step_weights import (
    changed_within_iteration,
    parameter_versions,
    replaced,
    step_weights,
)
from sltt_bench.neurons import input_of_call
from sltt_bench.torch_internals import times_changed

FIRST_LAYERS = (nn.Conv2d, UnbiasedConv2d, nn.Linear, LeanAvgPool2d, nn.Flatten)
"""Layers without state and randomness: equal inputs give equal outputs."""
SMALL = 2**20
"""Up to this many elements, the sum of gradients is formed whatever the size of the layer's input."""


class OncePerIteration:
    """Learns from a network's first iterations which layers receive the same tensor at every step."""

    def __init__(self, *, first_layers: bool) -> None:
        """`first_layers`: keep outputs of the first layers, not only weights."""
        self.one_pass = False
        """Whether weights are standardised in one pass each way, which rounds differently from the layers."""
        self._first_layers = first_layers
        self._keep_casts = True
        self._repeating: weakref.WeakKeyDictionary[nn.Module, set[nn.Module]] = weakref.WeakKeyDictionary()
        self._settled: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._overwritten: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        """Layers whose results a reader changes in place."""
        self._image: Tensor | None = None
        self.computed_once: set[str] = set()
        """Kinds of layers of which weights or outputs have been computed once so far."""

    @contextmanager
    def active(self, network: nn.Module) -> Iterator[None]:
        """Context of one iteration of the network; at its end the summed gradients reach the parameters."""
        shared: list[Shared] = []
        repeating = self._repeating.get(network, set())
        watched = list(self._watched(network))
        weights = list(step_weights(network, keep_casts=self._keep_casts, one_pass=self.one_pass))
        layers: list[_Layer] = []
        try:
            with ExitStack() as replacements:
                for weight in weights:
                    replacements.enter_context(replaced(weight.module, weight.attribute, weight))
                for module in watched:
                    expected = module in repeating
                    layers.append(_Layer(module, layers, shared, expected=expected, image=self._image))
                    replacements.enter_context(replaced(module, "forward", layers[-1]))
                yield
            for result in reversed(shared):
                result.settle()
            for weight in weights:  # after the results, which add to the weights' gradients
                weight.settle()
            once = [result.module for result in shared]
            once += [weight.module for weight in weights if weight.made_once]
            self.computed_once |= {module._get_name() for module in once}  # type: ignore[no-untyped-call]
            self._learn(network, layers)
            self._overwritten.update(layer.module for layer in layers if layer.is_overwritten)
        finally:
            # A result and its users form a reference cycle. Without this they would live until Python's
            # collector runs, and forever if there is a hook, which the collector does not see through.
            for result in shared:
                result.release()
            for weight in weights:
                weight.release()
            shared.clear()
            layers.clear()

    @contextmanager
    def shown(self, inputs: Sequence[Tensor]) -> Iterator[None]:
        """Context in which iterations go through these T inputs [batch, ...].

        If all are one image, results that repeat are kept from the first step on, even in a network's first
        iteration. All iterations then sum their gradients in the same order, so a resumed training rounds
        like an uninterrupted one.
        """
        if len(inputs) > 1 and all(x is inputs[0] for x in inputs):
            self._image = inputs[0]
        try:
            yield
        finally:
            self._image = None

    @contextmanager
    def without_casts(self) -> Iterator[None]:
        """Context in which iterations keep no weights in the format of mixed precision."""
        usual, self._keep_casts = self._keep_casts, False
        try:
            yield
        finally:
            self._keep_casts = usual

    @contextmanager
    def weights_alone(self) -> Iterator[None]:
        """Context in which iterations keep no outputs of first layers."""
        usual, self._first_layers = self._first_layers, False
        try:
            yield
        finally:
            self._first_layers = usual

    def _watched(self, network: nn.Module) -> Iterable[nn.Module]:
        if not self._first_layers:
            return ()
        candidates = self._repeating[network] if network in self._settled else network.modules()
        return [layer for layer in candidates if is_first_layer(layer) and layer not in self._overwritten]

    def _learn(self, network: nn.Module, layers: list["_Layer"]) -> None:
        if not any(layer.calls > 1 for layer in layers):
            return  # at T = 1 nothing can repeat
        repeating = {layer.module for layer in layers if layer.repeats}
        if repeating == self._repeating.get(network):
            self._settled.add(network)
        self._repeating[network] = repeating


class Shared:
    """A result that all steps use, and the sum of the gradients from the steps."""

    def __init__(
        self, module: nn.Module, value: Tensor, trainable: bool, pass_on: Callable[[Tensor], None]
    ) -> None:
        """`pass_on` propagates ∂L/∂value to the parameters."""
        self.module = module
        self.leaf = value.detach().requires_grad_(trainable)
        self._pass_on = pass_on
        self._hook: RemovableHandle | None = None
        self._made_from = parameter_versions(module)
        self._made_at = times_changed(self.leaf)

    def used(self) -> Tensor:
        """Returns the value for one step, which may change it in place."""
        if not (torch.is_grad_enabled() and self.leaf.requires_grad):
            return self.leaf
        used: Tensor = _Used.apply(self.leaf)
        used._used_of = weakref.ref(self)  # type: ignore[attr-defined]
        return used

    @property
    def is_whole(self) -> bool:
        """Whether the value has not been changed in place."""
        return times_changed(self.leaf) == self._made_at

    def settle(self) -> None:
        """Pass on the summed gradient. Raises RuntimeError if the parameters have changed."""
        self.check()
        grad, self.leaf.grad = self.leaf.grad, None
        if grad is not None:
            self._pass_on(grad)

    def settle_at_each_backward_pass(self) -> None:
        """Pass on each gradient at once instead of summing."""
        self._hook = self.leaf.register_post_accumulate_grad_hook(lambda leaf: self.settle())  # type: ignore[no-untyped-call]

    def release(self) -> None:
        """Remove the hook, which holds this object and is held by the leaf of it."""
        if self._hook is not None:
            self._hook.remove()

    def check(self) -> None:
        """Raises RuntimeError if the parameters have changed since the value was computed."""
        if parameter_versions(self.module) != self._made_from:
            raise changed_within_iteration(self.module)


def _itself(x: Tensor) -> Tensor:
    """Returns the leaf of the shared result if x is an unchanged use of one; otherwise x."""
    result: Shared | None = getattr(x, "_used_of", lambda: None)()
    return result.leaf if result is not None and result.is_whole else x


class _Used(torch.autograd.Function):
    """Identity of a leaf whose result may be changed in place, which torch does not allow for a leaf."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor) -> Tensor:
        ctx.kept = Stored(leaf.detach())  # storing the returned tensor would be a reference cycle
        return leaf.detach()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class _Layer:
    """A layer whose output is kept if its input repeats.

    An input repeats if it is the same tensor, or if an earlier layer computed it from a repeated tensor.
    """

    def __init__(
        self,
        module: nn.Module,
        layers: list["_Layer"],
        shared: list[Shared],
        *,
        expected: bool,
        image: Tensor | None,
    ) -> None:
        """`layers`: all layers of the iteration. `expected`: whether the layer is known to repeat, so that
        its first output is kept; the first one from `image`, which every step shows, is always kept."""
        self.module = module
        self.calls = 0
        self.repeats = expected
        self.is_overwritten = False
        """Whether a step has changed a kept output in place."""
        self._forward: Callable[[Tensor], Tensor] = module.forward
        self._image = image
        self._layers = layers
        self._shared = shared
        self._result: Shared | None = None
        self._seen: _Remembered | None = None
        self._seen_from: tuple[_Layer, int] | None = None
        """Which layer computed the last input, and in which of its calls."""
        self._made: _Remembered | None = None
        """The last output that is not kept; `_made_at` is the number of the call that computed it."""
        self._made_at = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        given = input_of_call(args, kwargs)
        self.calls += 1
        if self._result is not None and not self._result.is_whole:
            self.is_overwritten, self.repeats, self._result = True, False, None
        if torch.is_inference_mode_enabled() or self.is_overwritten:
            return self._forward(given)
        input = _itself(given)
        again = self._has_seen(input)
        self._seen, self._seen_from = _Remembered(input), self._maker_of(input)
        if not self._is_leaf_of_the_iteration(input):
            return self._make(input)
        if not again:
            self._result = None
            if self.calls > 1 or not (self.repeats or self._comes_from_image(input)):
                self.repeats = False
                return self._make(input)
        self.repeats = True
        if self._result is None:
            self._result = self._compute(input)
        self._result.check()
        return self._result.used()

    def _has_seen(self, x: Tensor) -> bool:
        """Whether x is the last call's input, or the kept result of the layer that computed that input."""
        if self._seen is not None and self._seen.is_still(x):
            return True
        if self._seen_from is None:
            return False
        maker, call = self._seen_from
        kept = maker._result
        return kept is not None and x is kept.leaf and times_changed(x) == 0 and maker._made_at == call

    def _comes_from_image(self, x: Tensor) -> bool:
        """Whether x is the image that every step shows, or a kept result."""
        return self._image is not None and (
            x is self._image or any(x is result.leaf for result in self._shared)
        )

    def _maker_of(self, x: Tensor) -> "tuple[_Layer, int] | None":
        makers = (layer for layer in self._layers if layer._made is not None and layer._made.is_still(x))
        return next(((maker, maker._made_at) for maker in makers), None)

    def _make(self, x: Tensor) -> Tensor:
        output = self._forward(x)
        self._made, self._made_at = _Remembered(output), self.calls
        return output

    def _is_leaf_of_the_iteration(self, x: Tensor) -> bool:
        """Whether x comes from outside the steps' graphs, or is itself a shared result."""
        return not x.requires_grad or any(x is result.leaf for result in self._shared)

    def _compute(self, x: Tensor) -> Shared:
        with torch.enable_grad():
            output = self._forward(x)

        def pass_on(grad: Tensor) -> None:
            output.backward(grad, retain_graph=True)  # type: ignore[no-untyped-call]

        result = Shared(self.module, output, output.requires_grad, pass_on)
        if output.requires_grad and output.numel() > max(x.numel(), SMALL):
            result.settle_at_each_backward_pass()
        self._shared.append(result)
        return result


class _Remembered:
    """A weak reference to a tensor in its current version."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._times_changed = weakref.ref(tensor), times_changed(tensor)

    def is_still(self, tensor: Tensor) -> bool:
        """Whether this is the tensor and it is unchanged."""
        return self._tensor() is tensor and self._times_changed == times_changed(tensor)


def is_first_layer(module: nn.Module) -> bool:
    """Whether the layer has neither state nor randomness, no pre-hooks and no patched forward method."""
    known = type(module) in FIRST_LAYERS or hasattr(module, "standardised_weight")
    return known and not module._forward_pre_hooks and "forward" not in module.__dict__
