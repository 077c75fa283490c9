"""The conformance kit accepts the built-in methods and names what a broken one breaks."""

import random
import re
from typing import Any

import pytest
import torch
from own_rules import PullsAndCarries, PullsTowardsTheMean, Truncated, register

from sltt_bench import methods
from sltt_bench.conformance import NotConforming, check_method
from sltt_bench.methods import Promises
from sltt_bench.unroll import Unroll

NAMES = (
    "bptt", "bptt-ckpt1", "bptt-ckpt2", "bptt-d0.5", "bptt-l1", "tbptt-w2", "tbptt-w4", "sltt", "sltt-k1",
    "sltt-k2-unbiased", "sltt-a", "sltt-a2-unbiased", "ottt", "ottt-o", "s-tllr", "pp-prop", "pp-prop-a0.5", "e-prop", "rate",
    "conversion",
)  # fmt: skip
"""Each kind of built-in method."""
VARIANTS = {"bptt-ckpt1", "sltt-a2-unbiased", "pp-prop-a0.5", "ottt-o"}
"""Of a method that is checked besides, with another number or a sum in another place."""


def test_each_kind_of_built_in_method_is_checked() -> None:
    checked = {pattern for pattern in methods.METHODS for name in NAMES if re.fullmatch(pattern, name)}
    assert checked == set(methods.METHODS)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name in VARIANTS else name for name in NAMES]
)
def test_the_built_in_methods_conform(name: str) -> None:
    check_method(name)


@pytest.mark.parametrize(
    ("name", "timesteps"),
    [("bptt", 1), ("sltt-k1", 1), ("sltt-k1", 2), ("sltt-k1-unbiased", 3), ("sltt-a1", 5)],
)
def test_few_steps_break_no_promise(name: str, timesteps: int) -> None:
    """Recurrent weights do nothing at the first step, which may be the only one that is used."""
    check_method(name, timesteps)


class SkipsTheLastStep:
    def accumulate_gradients(self, unroll: Unroll) -> None:
        for t in range(max(unroll.timesteps - 1, 1)):
            unroll.backward(unroll.step(t))
            unroll.detach_state()


class NoBackward:
    def accumulate_gradients(self, unroll: Unroll) -> None:
        for t in range(unroll.timesteps):
            unroll.step(t)


class DrawsGlobally:
    def accumulate_gradients(self, unroll: Unroll) -> None:
        torch.rand(1)
        for t in range(unroll.timesteps):
            unroll.detach_state()
            unroll.backward(unroll.step(t))


class SeedsAnother(Truncated):
    """The random numbers of data and augmentation, say."""

    def accumulate_gradients(self, unroll: Unroll) -> None:
        random.seed(0)
        super().accumulate_gradients(unroll)


class Leaks:
    def __init__(self) -> None:
        self.kept: list[torch.Tensor] = []

    def accumulate_gradients(self, unroll: Unroll) -> None:
        with unroll.neurons(lambda layer, membrane, spikes: self.kept.append(spikes)):
            for t in range(unroll.timesteps):
                unroll.detach_state()
                unroll.backward(unroll.step(t))


class Plain:
    def accumulate_gradients(self, unroll: Unroll) -> None:
        loss = sum(unroll.step(t) for t in range(unroll.timesteps))
        assert isinstance(loss, torch.Tensor)
        unroll.backward(loss)


class HoldsAllInputs(Truncated):
    """For a moment, at its end."""

    def accumulate_gradients(self, unroll: Unroll) -> None:
        super().accumulate_gradients(unroll)
        torch.stack(list(unroll.inputs)).mean()


class KeepsTheLoss(Truncated):
    """Of every iteration, in a list that only grows."""

    def __init__(self) -> None:
        self.history: list[torch.Tensor] = []

    def accumulate_gradients(self, unroll: Unroll) -> None:
        super().accumulate_gradients(unroll)
        self.history.append(unroll.summed_loss.clone())


class LeavesEvaluationMode(Truncated):
    def accumulate_gradients(self, unroll: Unroll) -> None:
        super().accumulate_gradients(unroll)
        unroll.network.eval()


class FreezesALayer(Truncated):
    def accumulate_gradients(self, unroll: Unroll) -> None:
        super().accumulate_gradients(unroll)
        next(unroll.network.parameters()).requires_grad_(False)


class DecaysTheWeights(Truncated):
    @torch.no_grad()
    def decay(self, weights: list[torch.nn.Parameter]) -> None:
        for w in weights:
            w.mul_(0.99)

    def accumulate_gradients(self, unroll: Unroll) -> None:
        super().accumulate_gradients(unroll)
        self.decay(list(unroll.network.parameters()))


class GoesBackwardByItself:
    """Past the scale that fp16 gives the loss."""

    def accumulate_gradients(self, unroll: Unroll) -> None:
        for t in range(unroll.timesteps):
            unroll.detach_state()
            unroll.step(t).backward()  # type: ignore[no-untyped-call]


class ClipsItsGradient(Truncated):
    """Which fp16 has scaled."""

    def accumulate_gradients(self, unroll: Unroll) -> None:
        super().accumulate_gradients(unroll)
        torch.nn.utils.clip_grad_norm_(unroll.network.parameters(), 0.1)


class TruncatedAtEightSteps:
    def accumulate_gradients(self, unroll: Unroll) -> None:
        loss = unroll.step(0)
        for t in range(1, unroll.timesteps):
            if t % 8 == 0:
                unroll.detach_state()
            loss = loss + unroll.step(t)
        unroll.backward(loss)


class DrawsMasksAgain(Truncated):
    """In a second run of the sequence, whose masks are then others."""

    def accumulate_gradients(self, unroll: Unroll) -> None:
        self.look_ahead(unroll)
        unroll.restart()
        super().accumulate_gradients(unroll)

    @torch.no_grad()
    def look_ahead(self, unroll: Unroll) -> None:
        for t in range(unroll.timesteps):
            unroll.step(t)


class DrawsTheSameMasksAgain(DrawsMasksAgain):
    def look_ahead(self, unroll: Unroll) -> None:
        with torch.random.fork_rng():
            super().look_ahead(unroll)


class Updates(Truncated):
    def accumulate_gradients(self, unroll: Unroll) -> None:
        super().accumulate_gradients(unroll)
        unroll.update()


class RunsStepsAgain(Truncated):
    def accumulate_gradients(self, unroll: Unroll) -> None:
        before = unroll.save_state()
        with torch.no_grad():
            for t in range(unroll.timesteps):
                unroll.step(t)
        unroll.restore_state(before)
        super().accumulate_gradients(unroll)


class ByItsOwnSamples:
    """Uses a step if it fired more than the one before did."""

    def spikes_of(self, unroll: Unroll, spikes: torch.Tensor) -> float:
        return float(spikes.mean())

    def accumulate_gradients(self, unroll: Unroll) -> None:
        fired: list[torch.Tensor] = []
        before = 0.0
        with unroll.neurons(lambda layer, membrane, spikes: fired.append(spikes.sum(0))):
            for t in range(unroll.timesteps):
                unroll.detach_state()
                loss = unroll.step(t)
                now = self.spikes_of(unroll, torch.cat([layer.flatten() for layer in fired]))
                fired.clear()
                unroll.backward(loss * (now > before or t == 0))
                before = now


class FollowsPotentials(Truncated):
    def accumulate_gradients(self, unroll: Unroll) -> None:
        with unroll.neurons(lambda layer, membrane, spikes: None):
            super().accumulate_gradients(unroll)


class Traces(Truncated):
    def accumulate_gradients(self, unroll: Unroll) -> None:
        with unroll.presynaptic(lambda layer, x: x):
            super().accumulate_gradients(unroll)


class DampsTheState(Truncated):
    def accumulate_gradients(self, unroll: Unroll) -> None:
        unroll.scale_state_gradient(0.5)
        super().accumulate_gradients(unroll)


class SavesTheState(Truncated):
    def accumulate_gradients(self, unroll: Unroll) -> None:
        unroll.restore_state(unroll.save_state())
        super().accumulate_gradients(unroll)


class KeepsOneLayer(Plain):
    def accumulate_gradients(self, unroll: Unroll) -> None:
        unroll.detach_state(but_for=1)
        super().accumulate_gradients(unroll)


class NegatesTheLoss:
    def accumulate_gradients(self, unroll: Unroll) -> None:
        for t in range(unroll.timesteps):
            unroll.detach_state()
            unroll.backward(-unroll.step(t))


class PassesOnTheMeanInput:
    def accumulate_gradients(self, unroll: Unroll) -> None:
        with torch.no_grad():
            for t in range(unroll.timesteps):
                unroll.step(t)
        unroll.restart()
        unroll.backward(unroll.loss_of(unroll.inputs[0]))


class ByTheWholeBatch(ByItsOwnSamples):
    def spikes_of(self, unroll: Unroll, spikes: torch.Tensor) -> float:
        return float(unroll.mean_over_batch(spikes)[0].mean())


class AsksWhereOthersDoNot(ByTheWholeBatch):
    def spikes_of(self, unroll: Unroll, spikes: torch.Tensor) -> float:
        fired = float(spikes.mean()) / len(unroll.inputs[0])
        return super().spikes_of(unroll, spikes) if len(unroll.inputs[0]) > 3 else fired


class CarriesHalf(PullsAndCarries):
    def state_dict(self) -> dict[str, Any]:
        return {"means": []}


class CarriesAFunction(PullsAndCarries):
    def state_dict(self) -> dict[str, Any]:
        return {"means": print}


class ScalesByOneDraw(Truncated):
    """A random number that is drawn in the first iteration and kept, as random feedback is."""

    scale: float | None = None

    def accumulate_gradients(self, unroll: Unroll) -> None:
        if self.scale is None:
            self.scale = 1 + float(torch.rand(1, generator=unroll.generator))
        for t in range(unroll.timesteps):
            unroll.detach_state()
            unroll.backward(unroll.step(t) * self.scale)


@pytest.mark.parametrize(
    ("broken", "promised", "message"),
    [
        (SkipsTheLastStep, Promises(), "forward outputs differ"),
        (NoBackward, Promises(), "no gradient reaches 0.weight"),
        (DrawsGlobally, Promises(), "torch's global generator"),
        (SeedsAnother, Promises(), "Python's or NumPy's generator, or seeds it"),
        (Leaks, Promises(), "activations outlive the iteration"),
        (Plain, Promises(memory="O(1)"), "it says that its memory is O\\(1\\), but it grows by"),
        (HoldsAllInputs, Promises(memory="O(1)"), "it says that its memory is O\\(1\\), but it grows by"),
        (Truncated, Promises(exact=True), "its gradient is not BPTT's"),
        (Truncated, Promises(one_backward_pass=True), "goes backward once, but does so 5 times"),
        (Truncated, Promises(online=True), "never calls update"),
        (TruncatedAtEightSteps, Promises(exact=True, one_backward_pass=True), "its gradient is not BPTT's"),
        (KeepsTheLoss, Promises(), "it keeps 1 tensors more after each iteration"),
        (LeavesEvaluationMode, Promises(), "it leaves a Sequential in evaluation mode"),
        (FreezesALayer, Promises(), "it leaves 0.weight without requires_grad"),
        (DecaysTheWeights, Promises(), "it changes 0.weight itself"),
        (GoesBackwardByItself, Promises(), "does not grow with the loss, which mixed precision scales"),
        (ClipsItsGradient, Promises(), "neither read nor write .grad"),
        (DrawsMasksAgain, Promises(computes_again=True), "must draw the same random numbers .*fork_rng"),
        (Updates, Promises(), "does not say that it learns online: declare Promises\\(online=True\\)"),
        (
            Updates,
            Promises(online=True),
            'uses update, .* declare Promises\\(needs=frozenset\\({"update"}\\)\\)',
        ),
        (FollowsPotentials, Promises(), 'it uses neurons, but does not say that it needs it: .*{"membrane"}'),
        (Traces, Promises(), 'it uses presynaptic, .*{"synapses"}'),
        (DampsTheState, Promises(), 'it uses scale_state_gradient, .*{"state"}'),
        (SavesTheState, Promises(), 'it uses restore_state, .*{"state"}'),
        (KeepsOneLayer, Promises(), 'it uses detach_state\\(but_for=...\\), .*{"layers"}'),
        (PassesOnTheMeanInput, Promises(), "it calls loss_of, .* declare Promises\\(pass_on_rates=True\\)"),
        (NegatesTheLoss, Promises(), "if that is meant, declare Promises\\(bptt_at_one_step=False\\)"),
        (
            RunsStepsAgain,
            Promises(),
            "runs steps a second time, .* declare Promises\\(computes_again=True\\)",
        ),
        (ByItsOwnSamples, Promises(), "two processes that share a batch are not that of the undivided batch"),
        (AsksWhereOthersDoNot, Promises(), "wait for one another in vain"),
        (PullsTowardsTheMean, Promises(online=True), "from one iteration to the next, which --resume loses"),
        (ScalesByOneDraw, Promises(), "from one iteration to the next, which --resume loses"),
        (CarriesHalf, Promises(online=True), "its state_dict lacks something"),
        (CarriesAFunction, Promises(online=True), "its state_dict cannot be kept in a checkpoint"),
    ],
)
def test_a_broken_promise_is_named(
    broken: Any, promised: Promises, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(broken, promised, monkeypatch)
    with pytest.raises(NotConforming, match=message):
        check_method("broken")


def test_a_choice_by_the_whole_batch_conforms(monkeypatch: pytest.MonkeyPatch) -> None:
    register(ByTheWholeBatch, Promises(needs=frozenset({"membrane"})), monkeypatch)
    check_method("broken")


def test_a_second_run_with_the_random_numbers_of_the_first_conforms(monkeypatch: pytest.MonkeyPatch) -> None:
    register(DrawsTheSameMasksAgain, Promises(computes_again=True), monkeypatch)
    check_method("broken")


def test_what_is_carried_to_the_next_iteration_conforms_if_checkpoints_hold_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    promised = Promises(online=True, bptt_at_one_step=False, needs=frozenset({"update"}))
    register(PullsAndCarries, promised, monkeypatch)
    check_method("broken")
