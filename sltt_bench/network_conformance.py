"""A conformance kit: what any network must do for methods to be comparable on it.

`check_network(build, Options(...), input_shape=(2, 8, 8))` runs a network with those options on the CPU, in
seconds, and raises NotConforming with every promise that it breaks. Authors of networks call it in a test.
"""

from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn

from sltt_bench import backends, methods, models
from sltt_bench.backends import Backend
from sltt_bench.conformance import NotConforming
from sltt_bench.losses import step_loss
from sltt_bench.models.normalisation import Normalisation
from sltt_bench.models.options import ModelOptions, NormalisedOptions
from sltt_bench.neurons import LIFParameters, detach_state, reset_state, restore_state, save_state
from sltt_bench.precision import Precision
from sltt_bench.recomputation import tried_again
from sltt_bench.synapses import SYNAPTIC, weights_of
from sltt_bench.training.experiment import Experiment

BATCH, TIMESTEPS = 6, 3
NEURON = LIFParameters(tau=2.0, v_threshold=0.5)

Build = Callable[..., nn.Module]
"""`build(options, neuron=…, input_shape=…, classes=…)`, as docs/own-network.md describes it."""


def check_network(
    build: Build, options: ModelOptions, *, input_shape: tuple[int, ...], classes: int = 4
) -> list[str]:
    """Raises NotConforming unless the network with these options keeps every promise below.

    1. Its weights come from torch's global generator only: one seed, one network; another seed, another.
    2. It forgets: a sequence has no effect on the next one.
    3. Everything that it carries from step to step is named in `carried`: once detached, it passes no
       gradient; once saved and restored, the network goes on from there.
    4. In evaluation, a sample's output does not depend on the other samples of the batch.
    5. A finite gradient, the same in each run, reaches every trained parameter.
    6. If the native backend serves the network, each of its options gives the gradients of the reference.

    Returns remarks that are no faults: which methods and options refuse the network or are limited, and why.
    `input_shape` is that of one sample, [C, H, W] or [features].
    """
    if build is models.build:
        build = partial(build, timesteps=TIMESTEPS, v_threshold=NEURON.v_threshold)
    elif isinstance(options, NormalisedOptions):
        normalisation = Normalisation(options.normalisation, TIMESTEPS, NEURON.v_threshold)
        build = partial(build, normalisation=normalisation)
    subject = _Subject(build, options, input_shape, classes)
    broken = [
        *_is_drawn_otherwise(subject),
        *_remembers(subject),
        *_carries_what_it_does_not_name(subject),
        *_mixes_samples(subject),
    ]
    if not broken:  # with a state that is not named, the graph would grow from sequence to sequence
        broken = [*_gradient_missing(subject), *_differs_on_native(subject)]
    if broken:
        raise NotConforming(f"model {options.name!r}:\n  " + "\n  ".join(dict.fromkeys(broken)))
    return _remarks(subject)


class _Subject:
    """Builds equal copies of a network, and inputs for them."""

    def __init__(
        self, build: Build, options: ModelOptions, input_shape: tuple[int, ...], classes: int
    ) -> None:
        self._build, self.options = build, options
        self._input_shape, self.classes = input_shape, classes

    def network(self, backend: Backend | None = None, seed: int = 0) -> nn.Module:
        """Build the network in float64, with weights that make neurons fire."""
        backend = backends.create("reference") if backend is None else backend
        torch.manual_seed(seed)
        network = self._build(
            self.options,
            neuron=lambda: backend.neuron(NEURON),
            input_shape=self._input_shape,
            classes=self.classes,
        )
        network = backend.prepare(network, "cpu").double()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in network.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.mul_(1.5 if parameter.dim() > 1 else 1).add_(0.1 * noise)
        return network.train()

    def steps(self, timesteps: int = TIMESTEPS) -> list[Tensor]:
        """Returns an input [BATCH, *input_shape] for each step, the same at every call."""
        generator = torch.Generator().manual_seed(2)
        shape = (timesteps, BATCH, *self._input_shape)
        return list(2 * torch.rand(shape, generator=generator, dtype=torch.float64))

    def trained(self, method: str, backend: Backend | None = None) -> nn.Module:
        """Returns the network with the gradients of one training iteration of the method."""
        backend = backends.create("reference") if backend is None else backend
        network, precision = self.network(backend), Precision("fp32", "cpu")
        experiment = Experiment(
            network=network,
            method=methods.create(method, TIMESTEPS),
            backend=backend,
            optimizer=torch.optim.SGD(network.parameters()),
            scaler=precision.make_scaler(),
            precision=precision,
            timesteps=TIMESTEPS,
            temporal=True,
            loss=partial(step_loss, alpha=0.05, mse_target="ones"),
            window=None,
            average="losses",
            generator=torch.Generator().manual_seed(4),
        )
        torch.manual_seed(3)
        labels = torch.arange(BATCH) % self.classes
        backend.accumulate_gradients(experiment, torch.stack(self.steps(), 1), labels)
        reset_state(network)
        return network


def _outputs(network: nn.Module, steps: list[Tensor]) -> Tensor:
    """Returns the outputs [T, batch, classes] of one sequence."""
    with torch.no_grad():
        return torch.stack([network(x) for x in steps])


def _is_drawn_otherwise(subject: _Subject) -> list[str]:
    one, again, another = (list(subject.network(seed=seed).parameters()) for seed in (0, 0, 1))
    if not one:
        return ["it has no parameters"]
    if not all(torch.equal(a, b) for a, b in zip(one, again, strict=True)):
        return ["two networks of one seed differ: draw weights from torch's global generator only"]
    if all(torch.equal(a, b) for a, b in zip(one, another, strict=True)):
        return ["networks of two seeds are equal: leave torch's global generator unseeded"]
    return []


def _remembers(subject: _Subject) -> list[str]:
    network, steps = subject.network().eval(), subject.steps()
    first = _outputs(network, steps)
    reset_state(network)
    if torch.allclose(first, _outputs(network, steps)):
        return []
    return ["a sequence changes the next: whatever a layer hands from step to step belongs into `carried`"]


def _carries_what_it_does_not_name(subject: _Subject) -> list[str]:
    network, (first, second, third) = subject.network(), subject.steps()
    broken = []
    try:
        network(first.requires_grad_())
        detach_state(network)
        network(second).sum().backward()
        if first.grad is not None and bool(first.grad.any()):
            broken.append("a gradient passes a detached state: a layer carries what `carried` does not name")
        network = subject.network().eval()
        with torch.no_grad():
            network(second)
            state = save_state(network)
            gone_on = network(third)
            restore_state(network, state)
            if not torch.allclose(gone_on, network(third)):
                broken.append("restored, it does not go on from where it was: `carried` does not name all")
    except NotImplementedError as error:
        broken.append(str(error))
    return broken


def _mixes_samples(subject: _Subject) -> list[str]:
    network, steps = subject.network().eval(), subject.steps()
    together = _outputs(network, steps)
    for sample in range(BATCH):
        reset_state(network)
        alone = _outputs(network, [x[sample : sample + 1] for x in steps])
        if not torch.allclose(alone, together[:, sample : sample + 1], atol=1e-6):
            return ["in evaluation a sample's output depends on those beside it"]
    return []


def _gradient_missing(subject: _Subject) -> list[str]:
    one, again = subject.trained("bptt"), subject.trained("bptt")
    broken = []
    for (name, parameter), (_, repeated) in zip(
        one.named_parameters(), again.named_parameters(), strict=True
    ):
        if not parameter.requires_grad:
            continue
        if parameter.grad is None or repeated.grad is None:
            broken.append(f"no gradient reaches {name}")
        elif not parameter.grad.isfinite().all():
            broken.append(f"the gradient of {name} is not finite")
        elif not torch.equal(parameter.grad, repeated.grad):
            broken.append(
                "two runs from one seed differ: draw random numbers from torch's global generator only"
            )
    return broken


def _differs_on_native(subject: _Subject) -> list[str]:
    if subject.options.needs:
        return []  # native does not serve it
    for recompute, fused in product((False, True), ("never", "always")):
        for method in ("bptt", "sltt", "sltt-k1"):
            native = subject.trained(method, backends.create("native", recompute=recompute, fused_norm=fused))
            reference = subject.trained(method)
            for (name, own), (_, theirs) in zip(
                reference.named_parameters(), native.named_parameters(), strict=True
            ):
                if (own.grad is None) != (theirs.grad is None) or (
                    own.grad is not None
                    and theirs.grad is not None
                    and not torch.allclose(own.grad, theirs.grad, rtol=1e-6, atol=1e-9)
                ):
                    return [
                        f"{method}'s gradient of {name} on native is not that on the reference; use --backend reference"
                    ]
    return []


def _remarks(subject: _Subject) -> list[str]:
    again = tried_again(subject.network(), subject.steps()[0])
    remarks = []
    if "sequence" in subject.options.needs:
        remarks.append("methods that go step by step refuse it: a layer sees all steps at once")
    if again.differs:
        remarks.append(f"bptt-ckptN refuses it: {again.differs}")
    if reason := again.differs or again.draws or again.learns:
        remarks.append(f"native.recompute goes step by step: {reason}")
    if reason := again.differs or again.draws_on_host or again.replaces:
        remarks.append(f"native replays no CUDA graphs of it: {reason}")
    if not subject.options.needs:
        try:
            subject.trained("ottt")
        except NotImplementedError as error:
            remarks.append(f"rules with traces refuse it: {error}")
        else:
            if unfollowed := _without_trace(subject.network()):
                remarks.append(
                    "rules with traces follow convolutions and linear layers alone: under them "
                    f"{', '.join(unfollowed)} learn as under SLTT"
                )
    return remarks


def _without_trace(network: nn.Module) -> list[str]:
    """Returns the names of trained matrices that are not weights of a convolution or a linear layer."""
    followed = {id(p) for m in network.modules() if isinstance(m, SYNAPTIC) for p in weights_of(m)}
    return [
        name
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and parameter.dim() > 1 and id(parameter) not in followed
    ]
