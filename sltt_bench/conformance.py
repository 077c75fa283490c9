"""A conformance kit: what any training method must do for its measurements to be comparable.

`check_method("my-method")` runs a method next to BPTT on a tiny network on the CPU, in a second, and
raises NotConforming with every promise that it breaks. Authors of methods call it in a test.
"""

import torch
from torch import Tensor, nn

from sltt_bench import methods
from sltt_bench.losses import step_loss
from sltt_bench.methods import Method
from sltt_bench.models.layers import SequenceDropout
from sltt_bench.neurons import LIF, LIFParameters
from sltt_bench.unroll import Unroll

BATCH, INPUTS, HIDDEN, CLASSES, TIMESTEPS = 8, 6, 10, 4, 5


class NotConforming(AssertionError):
    """The method breaks a promise; the message lists every broken one."""


def check_method(name: str, timesteps: int = TIMESTEPS) -> None:
    """Raises NotConforming unless the method called `name` keeps every promise below.

    1. It runs every step forward once, in order: outputs and normalisation statistics are BPTT's.
    2. It leaves a finite gradient on every parameter.
    3. It is a function of weights, batch and its own generator, and disturbs no other randomness.
    4. At T = 1 its gradient is BPTT's (up to a factor, for methods that scale).
    """
    broken = [
        *_forward_differs(name, timesteps),
        *_gradient_missing(name, timesteps),
        *_not_reproducible(name, timesteps),
        *_differs_at_one_step(name),
    ]
    if broken:
        raise NotConforming(f"method {name!r}:\n  " + "\n  ".join(broken))


def _network() -> nn.Module:
    torch.manual_seed(0)
    neuron = LIFParameters(tau=2.0)
    return nn.Sequential(
        nn.Linear(INPUTS, HIDDEN),
        nn.BatchNorm1d(HIDDEN),
        LIF(neuron),
        SequenceDropout(0.2),
        nn.Linear(HIDDEN, HIDDEN),
        LIF(neuron),
        nn.Linear(HIDDEN, CLASSES),
    )


def _run(method: Method, timesteps: int) -> tuple[nn.Module, Unroll]:
    network = _network()
    torch.manual_seed(1)
    steps = [2 * torch.randn(BATCH, INPUTS) for _ in range(timesteps)]
    labels = torch.arange(BATCH) % CLASSES
    generator = torch.Generator().manual_seed(2)
    unroll = Unroll(
        network, steps, lambda output: step_loss(output, labels, 0.05, "ones"), generator=generator
    )
    method.accumulate_gradients(unroll)
    return network, unroll


def _gradients(network: nn.Module) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in network.parameters()]


def _forward_differs(name: str, timesteps: int) -> list[str]:
    broken = []
    network, unroll = _run(methods.create(name, timesteps), timesteps)
    standard, expected = _run(methods.create("bptt", timesteps), timesteps)
    if not torch.allclose(unroll.summed_outputs, expected.summed_outputs, atol=1e-6):
        broken.append("its forward outputs differ from BPTT's: call step(t) once for every t, in order")
    for ours, theirs in zip(network.buffers(), standard.buffers(), strict=True):
        if not torch.allclose(ours.float(), theirs.float(), atol=1e-6):
            broken.append("normalisation statistics differ from BPTT's: they must see all T steps once")
            break
    return broken


def _gradient_missing(name: str, timesteps: int) -> list[str]:
    network, _ = _run(methods.create(name, timesteps), timesteps)
    missing = [key for key, parameter in network.named_parameters() if parameter.grad is None]
    wrong = [
        key
        for key, parameter in network.named_parameters()
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    ]
    return [f"no gradient reaches {key}" for key in missing] + [
        f"gradient of {key} is not finite" for key in wrong
    ]


def _not_reproducible(name: str, timesteps: int) -> list[str]:
    broken = []
    first, _ = _run(methods.create(name, timesteps), timesteps)
    after = torch.get_rng_state()
    second, _ = _run(methods.create(name, timesteps), timesteps)
    if any(not torch.equal(a, b) for a, b in zip(_gradients(first), _gradients(second), strict=True)):
        broken.append("two runs from one state differ: draw random numbers from unroll.generator only")
    _run(methods.create("bptt", timesteps), timesteps)
    if not torch.equal(after, torch.get_rng_state()):
        broken.append("it draws from torch's global generator: use unroll.generator")
    return broken


def _differs_at_one_step(name: str) -> list[str]:
    if methods.backward_steps(name) not in (None, 1):
        return []
    ours = torch.cat([g.flatten() for g in _gradients(_run(methods.create(name, 1), 1)[0])])
    theirs = torch.cat([g.flatten() for g in _gradients(_run(methods.create("bptt", 1), 1)[0])])
    if torch.cosine_similarity(ours, theirs, dim=0) < 1 - 1e-6:
        return ["at T = 1 there is no past, but its gradient is not BPTT's"]
    return []
