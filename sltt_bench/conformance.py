"""A conformance kit: what any training method must do for its measurements to be comparable.

`check_method("my-method")` runs a method and BPTT on tiny networks on the CPU, in seconds, and
raises NotConforming with every promise that the method breaks. Authors of methods call it in a test.
"""

import copy
import gc
import io
import random
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from threading import Condition
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sltt_bench import methods
from sltt_bench.conversion import ConvertedNeuron
from sltt_bench.losses import step_loss
from sltt_bench.measure.tensor_bytes import TensorBytes
from sltt_bench.methods import CarriesOver, ChoosesSteps, Method, Need, Promises
from sltt_bench.models.layers import SequenceDropout
from sltt_bench.models.mlp import Recurrent
from sltt_bench.neurons import LIF, LIFParameters, layers_of_neurons, reset_state
from sltt_bench.synapses import Backward
from sltt_bench.unroll import Unroll

BATCH, INPUTS, HIDDEN, CLASSES, TIMESTEPS = 8, 6, 10, 4, 5
WIDE = 64
"""Batch size of runs that count memory: large enough that activations outweigh parameters."""
SHORT, LONG = 16, 32
"""Time steps at which memory is compared: enough to show slow growth, and growth below a constant peak."""
LOSS_SCALE = 4.0
"""What the loss is multiplied by where mixed precision would scale it."""
SHARES = [5, 3]
"""Number of samples of each process that shares a batch."""


class NotConforming(AssertionError):
    """The method breaks a promise; the message lists every broken one."""


def check_method(name: str, timesteps: int = TIMESTEPS) -> None:
    """Raises NotConforming unless the method `name` keeps every promise below.

    1. It runs every step forward, in order: outputs and normalisation statistics equal BPTT's.
    2. It leaves a finite gradient on every parameter that BPTT reaches (an online method uses it up).
    3. It depends only on weights, batch and its own generator, and disturbs no other randomness.
    4. It leaves nothing behind: no graph, hook or activation outlives its iteration, what it keeps does not grow
       from iteration to iteration, and the network trains as before. A checkpoint holds all that it carries to
       the next iteration (`methods.CarriesOver`).
    5. Its declared promises (`methods.promises`) hold: it is BPTT at T = 1 up to a factor; its gradient is
       BPTT's, if declared exact; it goes backward once, steps the optimiser, runs steps again, passes on
       rates, or asks the unroll for more than steps, if declared; its memory grows with T as declared, or less.
    6. If processes share a batch, the gradients of their shares, weighted by their samples, give that of the
       undivided batch: it bases decisions about its batch on `unroll.mean_over_batch`.
    7. Its gradient grows with the loss that it backpropagates, as mixed precision scales the loss.

    The networks are feed-forward (with batch norm and dropout) and recurrent. A method that converts a
    network of rectifiers is checked on such a network. It runs one step, not T, so 1. does not apply.
    """
    promised = methods.promises(name)
    broken: list[str] = []
    converts = "conversion" in promised.needs
    for build in (partial(_feedforward, ConvertedNeuron),) if converts else (_feedforward, _recurrent):
        broken += [
            *([] if converts else _forward_differs(name, timesteps, build)),
            *_gradient_missing(name, timesteps, build, promised),
            *_not_reproducible(name, timesteps, build),
            *_lost_in_checkpoint(name, timesteps, build),
            *_leaves_something(name, timesteps, build),
            *_changes_the_network(name, timesteps, build, promised),
            *_ignores_the_loss_scale(name, timesteps, build),
            *_differs_at_one_step(name, build, promised),
            *_says_otherwise(name, timesteps, build, promised),
        ]
    broken += _differs_when_divided(name, timesteps, ConvertedNeuron if converts else LIF)
    broken += _grows_otherwise(name, promised)
    if broken:
        raise NotConforming(f"method {name!r}:\n  " + "\n  ".join(dict.fromkeys(broken)))


def _feedforward(kind: type[LIF] | type[ConvertedNeuron] = LIF) -> nn.Module:
    torch.manual_seed(0)
    neuron = LIFParameters(tau=2.0)
    return nn.Sequential(
        nn.Linear(INPUTS, HIDDEN),
        nn.BatchNorm1d(HIDDEN),
        kind(neuron),
        SequenceDropout(0.2),
        nn.Linear(HIDDEN, HIDDEN),
        kind(neuron),
        nn.Linear(HIDDEN, CLASSES),
    )


def _recurrent() -> nn.Module:
    torch.manual_seed(0)
    layer = Recurrent(nn.Linear(INPUTS, HIDDEN), LIF(LIFParameters(tau=2.0)))
    return nn.Sequential(layer, nn.Linear(HIDDEN, CLASSES))


Build = Callable[[], nn.Module]


class _Watched(Unroll):
    """An unroll that knows which of its needs a method has had, and whether it passed on rates."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.needed: dict[Need, str] = {}
        """A need → the first call that showed it."""
        self.passes_on_rates = False

    def __getattribute__(self, name: str) -> Any:
        if (need := _NEED_OF.get(name)) is not None:
            self.needed.setdefault(need, name)
        return super().__getattribute__(name)

    def detach_state(self, but_for: int | None = None) -> None:
        if but_for is not None:
            self.needed.setdefault("layers", "detach_state(but_for=...)")
        super().detach_state(but_for)

    def loss_of(self, x: Tensor) -> Tensor:
        self.passes_on_rates = True
        return super().loss_of(x)


_NEED_OF: dict[str, Need] = {
    "save_state": "state",
    "restore_state": "state",
    "scale_state_gradient": "state",
    "presynaptic": "synapses",
    "neurons": "membrane",
    "update": "update",
    "in_one_step": "conversion",
}
"""What an unroll is asked for → the need that a method declares for it."""


def _run(
    method: Method,
    timesteps: int,
    build: Build,
    *,
    network: nn.Module | None = None,
    batch: int = BATCH,
    learns: bool = False,
    seed: int = 2,
    backward: Backward = Tensor.backward,
) -> tuple[nn.Module, _Watched]:
    """Run one iteration; if the network `learns`, the method, or else this function, updates its weights."""
    network = build() if network is None else network
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()

    unroll = _unroll(
        network,
        *_batch(batch, timesteps),
        update=update if learns else None,
        seed=seed,
        backward=backward,
    )
    method.accumulate_gradients(unroll)
    if learns and not unroll.updates:
        update()
    return network, unroll


def _at_last_steps(name: str, timesteps: int) -> Method:
    """Returns the method; one that chooses steps uses the last ones, which have a past and cost most."""
    method = methods.create(name, timesteps)
    if isinstance(method, ChoosesSteps):
        return method.at(range(timesteps - method.most_steps(timesteps), timesteps))
    return method


def _batch(samples: int, timesteps: int) -> tuple[list[Tensor], Tensor]:
    """Returns an input [samples, INPUTS] for each step, and labels: constants; seeds torch's generator."""
    torch.manual_seed(1)
    return [2 * torch.randn(samples, INPUTS) for _ in range(timesteps)], torch.arange(samples) % CLASSES


def _unroll(
    network: nn.Module,
    steps: list[Tensor],
    labels: Tensor,
    add_up: Callable[[Tensor], Tensor] | None = None,
    update: Callable[[], None] | None = None,
    seed: int = 2,
    backward: Backward = Tensor.backward,
) -> _Watched:
    return _Watched(
        network,
        steps,
        lambda output: step_loss(output, labels, 0.05, "ones"),
        generator=torch.Generator().manual_seed(seed),
        backward=backward,
        add_up=add_up,
        update=update,
    )


def _gradients(network: nn.Module) -> Tensor:
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in network.parameters()]
    )


def _forward_differs(name: str, timesteps: int, build: Build) -> list[str]:
    broken = []
    network, unroll = _run(methods.create(name, timesteps), timesteps, build)
    standard, expected = _run(methods.create("bptt", timesteps), timesteps, build)
    if not torch.allclose(unroll.summed_outputs, expected.summed_outputs, atol=1e-6):
        broken.append("its forward outputs differ from BPTT's: call step(t) for every t, in order")
    for buffer, standard_buffer in zip(network.buffers(), standard.buffers(), strict=True):
        if not torch.allclose(buffer.float(), standard_buffer.float(), atol=1e-6):
            broken.append("normalisation statistics differ from BPTT's: they must see all T steps once")
            break
    return broken


def _gradient_missing(name: str, timesteps: int, build: Build, promised: Promises) -> list[str]:
    network, unroll = _run(_at_last_steps(name, timesteps), timesteps, build)
    if promised.online and not unroll.updates:
        return ["it says that it learns online, but never calls update()"]
    if unroll.updates and not promised.online:
        return ["it calls update(), but does not say that it learns online: declare Promises(online=True)"]
    bptt, _ = _run(methods.create("bptt", timesteps), timesteps, build)
    reached = [key for key, parameter in bptt.named_parameters() if parameter.grad is not None]
    missing = [key for key in reached if network.get_parameter(key).grad is None]
    wrong = [
        key
        for key, parameter in network.named_parameters()
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    ]
    return [f"no gradient reaches {key}" for key in missing] + [
        f"gradient of {key} is not finite" for key in wrong
    ]


def _not_reproducible(name: str, timesteps: int, build: Build) -> list[str]:
    broken = []
    random.random(), np.random.random()  # else reseeding with the same seed would go unnoticed
    elsewhere = _other_randomness()
    first, unroll = _run(methods.create(name, timesteps), timesteps, build)
    after = torch.get_rng_state()
    if elsewhere != _other_randomness():
        broken.append("it draws from Python's or NumPy's generator, or seeds it: use unroll.generator")
    second, _ = _run(methods.create(name, timesteps), timesteps, build)
    if not torch.equal(_gradients(first), _gradients(second)):
        broken.append("two runs from one state differ: draw random numbers from unroll.generator only")
    _run(methods.create("bptt", timesteps), timesteps, build)
    if not torch.equal(after, torch.get_rng_state()):
        broken.append(
            "it draws from torch's global generator: "
            + (
                "all runs of a step must draw the same random numbers (torch.random.fork_rng)"
                if unroll.steps_again
                else "use unroll.generator"
            )
        )
    return broken


def _lost_in_checkpoint(name: str, timesteps: int, build: Build) -> list[str]:
    """Run two iterations with weight updates, and the second again by a method resumed from a checkpoint.

    Each iteration draws other random numbers; else numbers drawn once and kept would be drawn equal again.
    """
    whole, cut_off = methods.create(name, timesteps), methods.create(name, timesteps)
    network = build()
    _run(whole, timesteps, build, network=network, learns=True)
    reset_state(network)
    resumed = copy.deepcopy(network)
    if isinstance(whole, CarriesOver) and isinstance(cut_off, CarriesOver):
        try:
            cut_off.load_state_dict(_through_a_file(whole.state_dict()))
        except Exception as error:
            return [f"its state_dict cannot be kept in a checkpoint ({type(error).__name__}: {error})"]
    _run(whole, timesteps, build, network=network, learns=True, seed=3)
    _run(cut_off, timesteps, build, network=resumed, learns=True, seed=3)
    if all(map(torch.equal, network.parameters(), resumed.parameters())):
        return []
    if isinstance(whole, CarriesOver):
        return ["it goes on from a checkpoint otherwise than without: its state_dict lacks something"]
    return [
        "it carries something from one iteration to the next, which --resume loses: give it state_dict() and "
        "load_state_dict(state), or carry nothing"
    ]


def _through_a_file(state: dict[str, Any]) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


def _other_randomness() -> tuple[object, ...]:
    """Returns the states of Python's and NumPy's random generators."""
    _, keys, *position = np.random.get_state()
    return random.getstate(), np.asarray(keys).tobytes(), *position


def _leaves_something(name: str, timesteps: int, build: Build) -> list[str]:
    """Check that no activation outlives an iteration and its unroll, that the network has no hooks, and that as
    many tensors are alive after the third iteration as after the second."""
    network = build()
    storages: list[weakref.ref[torch.UntypedStorage]] = []
    watch = [
        layer.register_forward_hook(
            lambda module, args, output: storages.append(weakref.ref(output.untyped_storage()))
        )
        for layer in layers_of_neurons(network)
    ]
    method, alive = methods.create(name, timesteps), []
    for _ in range(3):
        _run(method, timesteps, build, network=network)
        reset_state(network)
        gc.collect()
        alive.append(sum(issubclass(type(kept), Tensor) for kept in gc.get_objects()))
    for handle in watch:
        handle.remove()
    for module in network.modules():
        if module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__:
            return [f"it leaves a hook on a {type(module).__name__}"]
    outlived = sum(reference() is not None for reference in storages)
    if outlived:
        return [f"{outlived} of its activations outlive the iteration: keep no tensor on the method"]
    grown = alive[2] - alive[1]
    return [f"it keeps {grown} tensors more after each iteration"] if grown > 0 else []


def _changes_the_network(name: str, timesteps: int, build: Build, promised: Promises) -> list[str]:
    """Check that modules and parameters are trained afterwards as before, and that only an online method, which
    may correct the weights after its updates, has changed them."""
    network, untouched = build(), build()
    _run(methods.create(name, timesteps), timesteps, build, network=network)
    parameters = list(network.named_parameters())
    idle = [type(module).__name__ for module in network.modules() if not module.training]
    frozen = [key for key, parameter in parameters if not parameter.requires_grad]
    changed = [
        key
        for (key, after), before in zip(parameters, untouched.parameters(), strict=True)
        if not (promised.online or torch.allclose(after, before, rtol=1e-5, atol=1e-7))
    ]
    return [
        *(f"it leaves a {kind} in evaluation mode" for kind in idle[:1]),
        *(f"it leaves {key} without requires_grad, so that it learns no more" for key in frozen[:1]),
        *(
            f"it changes {key} itself: leave the weights to the optimiser, or declare Promises(online=True)"
            for key in changed[:1]
        ),
    ]


def _ignores_the_loss_scale(name: str, timesteps: int, build: Build) -> list[str]:
    network, _ = _run(methods.create(name, timesteps), timesteps, build)
    scaled, _ = _run(methods.create(name, timesteps), timesteps, build, backward=_scaled_backward)
    if torch.allclose(_gradients(scaled), LOSS_SCALE * _gradients(network), rtol=1e-4, atol=1e-6):
        return []
    return [
        "its gradient does not grow with the loss, which mixed precision scales: make all of it by "
        "unroll.backward(loss), and neither read nor write .grad"
    ]


def _scaled_backward(loss: Tensor, /, *, retain_graph: bool = False) -> None:
    (LOSS_SCALE * loss).backward(retain_graph=retain_graph)  # type: ignore[no-untyped-call]


def _differs_at_one_step(name: str, build: Build, promised: Promises) -> list[str]:
    if not (promised.bptt_at_one_step and methods.fits(name, 1)):
        return []
    one = _gradients(_run(methods.create(name, 1), 1, build)[0])
    bptt = _gradients(_run(methods.create("bptt", 1), 1, build)[0])
    if torch.cosine_similarity(one, bptt, dim=0) < 1 - 1e-6:
        return [
            "at T = 1 there is no past, but its gradient is not BPTT's: if that is meant, declare "
            "Promises(bptt_at_one_step=False)"
        ]
    return []


def _says_otherwise(name: str, timesteps: int, build: Build, promised: Promises) -> list[str]:
    _, unroll = _run(methods.create(name, timesteps), timesteps, build)
    broken = []
    if promised.exact and any(_differs_from_bptt(name, steps, build) for steps in (timesteps, LONG)):
        broken.append("it says that it is exact, but its gradient is not BPTT's")
    if promised.one_backward_pass and unroll.backward_passes != 1:
        broken.append(f"it says that it goes backward once, but does so {unroll.backward_passes} times")
    if unroll.steps_again and not promised.computes_again:
        broken.append(
            "it runs steps a second time, but does not say that it computes again: declare "
            "Promises(computes_again=True)"
        )
    if unroll.passes_on_rates and not promised.pass_on_rates:
        broken.append("it calls loss_of, but does not say so: declare Promises(pass_on_rates=True)")
    broken += [
        f'it uses {call}, but does not say that it needs it: declare Promises(needs=frozenset({{"{need}"}}))'
        for need, call in unroll.needed.items()
        if need not in promised.needs
    ]
    return broken


def _differs_from_bptt(name: str, timesteps: int, build: Build) -> bool:
    own, bptt = (_gradients(_run(methods.create(n, timesteps), timesteps, build)[0]) for n in (name, "bptt"))
    return not torch.allclose(own, bptt, rtol=1e-5, atol=1e-7)


def _differs_when_divided(name: str, timesteps: int, kind: type[LIF] | type[ConvertedNeuron]) -> list[str]:
    """Compare a divided with an undivided batch; threads with copies of the network act as processes."""
    steps, labels = _batch(sum(SHARES), timesteps)
    for rank, share in enumerate(SHARES):  # the shares alternate in being more active
        for step in steps[rank :: len(SHARES)]:
            step[sum(SHARES[:rank]) :][:share] *= 4
    undivided = _without_statistics(kind)
    methods.create(name, timesteps).accumulate_gradients(_unroll(undivided, steps, labels))
    exchange = _Exchange(len(SHARES))
    networks = [_without_statistics(kind) for _ in SHARES]

    def run(rank: int) -> Tensor:
        inputs = [torch.split(step, SHARES)[rank] for step in steps]
        unroll = _unroll(
            networks[rank], inputs, torch.split(labels, SHARES)[rank], partial(exchange.add_up, rank)
        )
        with exchange.taking_part():
            methods.create(name, timesteps).accumulate_gradients(unroll)
        return _gradients(networks[rank]) * SHARES[rank]

    with ThreadPoolExecutor(len(SHARES)) as threads:
        shares = [threads.submit(run, rank) for rank in range(len(SHARES))]
    if any(isinstance(share.exception(), _NotTogether) for share in shares):
        return [
            "processes that share a batch wait for one another in vain: they must all call mean_over_batch at the "
            "same places, and decide by what it returns"
        ]
    together = torch.stack([share.result() for share in shares]).sum(0) / sum(SHARES)
    if not torch.allclose(together, _gradients(undivided), rtol=1e-4, atol=1e-6):
        return [
            "the gradients of two processes that share a batch are not that of the undivided batch: decide by "
            "mean_over_batch, not by this process's samples"
        ]
    return []


def _without_statistics(kind: type[LIF] | type[ConvertedNeuron]) -> nn.Module:
    """Returns a network that treats samples independently: without batch norm and dropout."""
    torch.manual_seed(0)
    neuron = LIFParameters(tau=2.0)
    layers = nn.Linear(INPUTS, HIDDEN), kind(neuron), nn.Linear(HIDDEN, HIDDEN), kind(neuron)
    return nn.Sequential(*layers, nn.Linear(HIDDEN, CLASSES))


class _NotTogether(Exception):
    """A thread takes part in an exchange without the others, or with another shape."""


class _Exchange:
    """Sums tensors over threads that stand in for processes, in a sequence of exchanges."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._changed = Condition()
        self._exchanges: list[dict[int, Tensor]] = []
        self._begun = [0] * size
        self._ended = False

    @contextmanager
    def taking_part(self) -> Iterator[None]:
        """Context of one thread's work; after its end, threads that wait for this one raise _NotTogether."""
        try:
            yield
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def add_up(self, rank: int, own: Tensor) -> Tensor:
        """Replace `own` by the sum, bitwise the same for all threads, and return it. Raises _NotTogether."""
        with self._changed:
            number = self._begun[rank]
            self._begun[rank] += 1
            if number == len(self._exchanges):
                self._exchanges.append({})
            tensors = self._exchanges[number]
            tensors[rank] = own.clone()
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(tensors) == self._size or self._ended)
        if len(tensors) < self._size or len({tensor.shape for tensor in tensors.values()}) > 1:
            raise _NotTogether
        return own.copy_(torch.stack([tensors[rank] for rank in range(self._size)]).sum(0))


def peak_bytes(name: str, timesteps: int, build: Build = _recurrent) -> int:
    """Returns the peak of live tensor bytes of the method's iteration, without weights, gradients and inputs.

    A method that chooses steps uses the last ones.
    """
    network = build()
    _run(methods.create("bptt", 2), 2, build, network=network)  # allocates all gradients
    method = _at_last_steps(name, timesteps)
    with TensorBytes([], network=network) as memory:
        before = memory.current
        _run(method, timesteps, build, network=network, batch=WIDE)
    return memory.peak - before - timesteps * WIDE * INPUTS * 4


def _growth(name: str) -> int:
    """Returns the bytes by which memory grows from T = SHORT to T = LONG."""
    return peak_bytes(name, LONG) - peak_bytes(name, SHORT)


@cache
def _bptt_growth() -> int:
    return _growth("bptt")


def _grows_otherwise(name: str, promised: Promises) -> list[str]:
    """Compare the growth of memory with T with BPTT's."""
    if promised.memory == "O(T)" or not methods.fits(name, SHORT):
        return []
    growth = _growth(name)
    share = 0.75 if promised.memory == "O(T/N + N)" else 0.02
    if growth > share * _bptt_growth():
        return [
            f"it says that its memory is {promised.memory}, but it grows by {growth} bytes from T = {SHORT} to "
            f"T = {LONG}"
        ]
    return []
