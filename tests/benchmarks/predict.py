"""`python -m tests.benchmarks.predict`: predicts, without a GPU, what each optimisation for GPUs saves.

From a network's layers follow the tensors that its kernels read and write, and the number of launches, in an
iteration of SLTT at the paper's batch and T in fp16. Bytes over the data sheet's bandwidth are a bound on
time. A launch costs the host a few microseconds (LAUNCH_US, assumed, not measured), which matters if it
exceeds the GPU's own work.

A second table takes an iteration of BPTT apart, as it is and unit by unit: what its kernels were counted to move
on fake tensors at the paper's size. Its last line predicts the ratio of their times.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor, nn

from sltt_bench import models
from sltt_bench.backends.native.free_steps import AT_ONCE
from sltt_bench.estimate.gpus import find_gpu
from sltt_bench.measure.fake_tensors import fake_tensors, modules_stay_where_they_are
from sltt_bench.neurons import LIF, LIFParameters, SpikingNeuron

from .competitors import Problem, cifar_resnet18, gesture_vgg11, imagenet_nf_resnet34
from .launches import Launches, launches_of, native

GPU = "h100-sxm"
LAUNCH_US = 5.0
MULTIPROCESSORS, TILE = 132, 128
"""Multiprocessors of the GPU, and the edge of a convolution's output tile; few tiles leave some idle."""
BYTES = 2


@dataclass(frozen=True)
class Layers:
    """The layers of a step, by elements of their tensors for the whole batch."""

    convolutions: tuple[tuple[int, int, int, int], ...]
    """(input, output, multiply-adds, tiles of output) of each."""
    normalised: tuple[int, ...]
    """Elements of each batch norm."""
    neurons: tuple[int, ...]
    """Neurons of each layer."""
    divided: tuple[int, ...]
    """Neurons of each layer that receives a quotient."""
    multiplied: tuple[int, ...]
    """Neurons of each layer whose spikes are multiplied."""
    parameters: int
    """Number of parameter tensors."""


@dataclass(frozen=True)
class Cost:
    """Costs of one step's forward and backward pass."""

    tensors: int = 0
    """Elements read and written."""
    launches: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.tensors + other.tensors, self.launches + other.launches)

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(self.tensors - other.tensors, self.launches - other.launches)


def layers_of(problem: Problem) -> Layers:
    """Returns a problem's layers, found by running one step on meta tensors."""
    convolutions: list[tuple[int, int, int, int]] = []
    normalised: list[int] = []
    neurons: list[int] = []
    divided: list[int] = []
    multiplied: list[int] = []

    class Noted(LIF):
        """Records its scaling."""

        def scaled(self, x: Tensor, gain: float, divisor: float | None = None) -> Tensor:
            multiplied.append(x.numel())
            if divisor is not None:
                divided.append(x.numel())
            return super().scaled(x, gain, divisor)

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, nn.Conv2d):
            pixels = output.numel() // output.shape[1]
            tiles = ceil(pixels / TILE) * ceil(output.shape[1] / TILE)
            work = output.numel() * prod(module.weight.shape[1:])
            convolutions.append((inputs[0].numel(), output.numel(), work, tiles))
        elif isinstance(module, nn.BatchNorm2d):
            normalised.append(output.numel())
        elif isinstance(module, SpikingNeuron):
            neurons.append(output.numel())

    with torch.device("meta"), torch.no_grad():
        network = models.build(
            problem.network, neuron=partial(Noted, LIFParameters()), input_shape=problem.image,
            classes=problem.classes,
        )  # fmt: skip
        for module in network.modules():
            module.register_forward_hook(note)
        network(torch.empty(problem.batch_size, *problem.image))
    tensors = len(list(network.parameters()))
    return Layers(
        tuple(convolutions), tuple(normalised), tuple(neurons), tuple(divided), tuple(multiplied), tensors
    )


def _each(sizes: tuple[int, ...], tensors: int, launches: int) -> Cost:
    """Returns the cost of `tensors` tensors and `launches` launches for each size."""
    return Cost(tensors * sum(sizes), launches * len(sizes))


def whole(layers: Layers) -> Cost:
    """Returns the cost of native without OPTIONS: fused neurons, with separate operations around them."""
    convolutions = Cost(sum(3 * (a + b) for a, b, _, _ in layers.convolutions), 3 * len(layers.convolutions))
    normalisation = _each(layers.normalised, 8, 4)  # 3 forward (statistics, result), 5 backward
    neurons = _each(
        layers.neurons, 4 + 3 + 2, 3
    )  # forward, backward, spikes recomputed for the weights' gradient
    return convolutions + normalisation + neurons + unscaled(layers)


def unscaled(layers: Layers) -> Cost:
    """Quotients and products around neurons, forward and backward, and the recomputed product."""
    return _each(layers.divided, 4, 2) + _each(layers.multiplied, 6, 3)


def norm_and_neurons(layers: Layers) -> Cost:
    """Neurons use batch norm's result without storing it: 2 tensors forward, and 1 backward.

    Backward, the neurons' kernel computes the sums too, and one more launch adds up its programs' partial
    sums, so the number of launches stays.
    """
    return _each(layers.normalised, 3, 0)


def transposing(layers: Layers) -> Cost:
    """Transposing input and output to channels last, as tensor cores need, forward and backward."""
    return Cost(sum(2 * 3 * (a + b) for a, b, _, _ in layers.convolutions), 6 * len(layers.convolutions))


def half_of_convolutions(layers: Layers) -> Cost:
    """Convolutions of two time steps in one call."""
    return Cost(0, 3 * len(layers.convolutions) // 2)


OPTIONS: tuple[tuple[str, Callable[[Layers], Cost]], ...] = (
    ("β and γ within the neurons' kernel", unscaled),
    ("batch norm and neurons in one kernel", norm_and_neurons),
    ("channels last", transposing),
    ("two time steps per convolution", half_of_convolutions),
)


def free_steps_at_once(layers: Layers, timesteps: int, most: int = AT_ONCE) -> Cost:
    """Returns what an iteration of SLTT-K1 saves by running steps without a graph together, `most` at a time.

    The one step with a graph may be any. Steps that run together read and write u once instead of once each,
    but copy the first layers' result on an image. With batch norm, steps do not run together.
    """
    if layers.normalised:
        return Cost()
    spared = 0
    for chosen in range(timesteps):
        for free in (chosen, timesteps - 1 - chosen):
            for together in (*[most] * (free // most), free % most):
                if together > 1:
                    spared += 2 * (together - 1) * sum(layers.neurons) - 2 * together * layers.neurons[0]
    return Cost(spared // timesteps)


def busy(layers: Layers, steps: int) -> float:
    """Returns the share of multiprocessors with a tile of a convolution, by work, for `steps` at a time."""
    work = sum(one[2] for one in layers.convolutions)
    share = 0.0
    for _, _, own, tiles in layers.convolutions:
        rounds = ceil(steps * tiles / MULTIPROCESSORS)
        share += own / work * (steps * tiles / (rounds * MULTIPROCESSORS))
    return share


BANDWIDTH = 4e12
"""Bytes a second that the kernels of an H200 achieve, of 4.8e12 by its data sheet; assumed."""
BPTT_MS = 17.89
"""Measured time of an iteration of native BPTT, ResNet-18, on an H200; what bytes do not explain is taken for
convolutions."""
KINDS = {
    "convolution": "convolutions", "convolution_backward": "convolutions",
    "native: pack": "spikes to bits and back", "native: unpack": "spikes to bits and back",
    "native: fire": "spikes made again from u",
    "native: forward": "neurons, batch norm", "native: backward": "neurons, batch norm",
    "native: backward_normalised": "neurons, batch norm", "native: backward_to_input": "neurons, batch norm",
    "native: statistics": "neurons, batch norm",
    "add": "sums", "add_": "sums",
    "_to_copy": "casts and copies", "copy_": "casts and copies", "clone": "casts and copies",
}  # fmt: skip
"""Operation → its kind."""


def counted(method: str, **options: Any) -> Launches:
    """Returns the launches of an iteration of native on fake tensors, ResNet-18 at the paper's size."""
    with fake_tensors(), modules_stay_where_they_are():
        return launches_of(native(method, **options), cifar_resnet18(precision="bf16"))


def by_kind(launches: Launches) -> dict[tuple[str, str], tuple[int, int, int]]:
    """Returns launches, bytes and multiply-adds by phase and kind."""
    sums: dict[tuple[str, str], tuple[int, int, int]] = {}
    for place, number in launches.at.items():
        key = (place.phase, KINDS.get(place.name, "other"))
        one = (number, launches.bytes[place], launches.multiply_adds[place])
        before = sums.get(key, (0, 0, 0))
        sums[key] = (before[0] + one[0], before[1] + one[1], before[2] + one[2])
    return sums


def print_unit_by_unit() -> None:
    """Print what BPTT moves, as it is and unit by unit, by kind, and the predicted ratio of times."""
    whole, units = (by_kind(counted("bptt", recompute=recompute)) for recompute in (False, True))
    nothing = (0, 0, 0)
    differences = {
        key: [b - a for a, b in zip(whole.get(key, nothing), units.get(key, nothing), strict=True)]
        for key in {**whole, **units}
    }

    def line(title: str, *figures: Sequence[int]) -> None:
        cells = (f"{n} / {moved / 2**30:.2f} / {work / 1e9:.0f}" for n, moved, work in figures)
        print(f"| {title} | " + " | ".join(cells) + " |")

    print("\n| launches / GiB / 10⁹ multiply-adds | BPTT | unit by unit | difference |\n|---|---:|---:|---:|")
    for key in sorted(differences, key=lambda key: -differences[key][1]):
        line(", ".join(key), whole.get(key, nothing), units.get(key, nothing), differences[key])
    total = [[sum(one[i] for one in side.values()) for i in range(3)] for side in (whole, units)]
    line("together", *total, [b - a for a, b in zip(*total, strict=True)])
    moving = [1e3 * side[1] / BANDWIDTH for side in total]
    per_multiplication = (BPTT_MS - moving[0]) / total[0][2]
    ratio = (moving[1] + per_multiplication * total[1][2]) / BPTT_MS
    print(f"\nPredicted, not measured: unit by unit takes {ratio:.2f} of BPTT's time.")


def main() -> None:
    """Print the tables in Markdown."""
    gpu = find_gpu(GPU)
    problems = (cifar_resnet18(), imagenet_nf_resnet34(), gesture_vgg11())
    actual = [(problem, layers_of(problem)) for problem in problems]
    print("| an iteration of SLTT, fp16 | " + " | ".join(p.network.name for p in problems) + " |")
    print("|---|" + "---:|" * len(problems))

    def row(title: str, figure: Callable[[Problem, Layers], str]) -> None:
        print(f"| {title} | " + " | ".join(figure(*one) for one in actual) + " |")

    def gib(problem: Problem, cost: Cost) -> float:
        return cost.tensors * BYTES * problem.timesteps / 2**30

    def ms(problem: Problem, cost: Cost) -> float:
        return gib(problem, cost) * 2**30 / (gpu.bandwidth_gb_s * 1e9) * 1e3

    row("batch, T", lambda p, _: f"{p.batch_size}, {p.timesteps}")
    row("moved, GiB", lambda p, layers: f"{gib(p, whole(layers)):.1f}")
    row("… at the sheet's bandwidth, ms", lambda p, layers: f"{ms(p, whole(layers)):.1f}")
    row(
        "convolutions at the sheet's peak, ms",
        lambda p, layers: (
            f"{6 * p.timesteps * sum(c[2] for c in layers.convolutions) / (gpu.tflops['fp16'] * 1e12) * 1e3:.1f}"
        ),
    )
    row("launches", lambda p, layers: f"{p.timesteps * whole(layers).launches}")
    row(
        f"… at {LAUNCH_US:.0f} µs each, ms",
        lambda p, layers: f"{p.timesteps * whole(layers).launches * LAUNCH_US / 1e3:.1f}",
    )
    row(
        "multiprocessors with a tile, one step | two steps at a time".replace("|", "/"),
        lambda p, layers: f"{busy(layers, 1):.2f} / {busy(layers, 2):.2f}",
    )
    row("tensors of parameters", lambda p, layers: f"{layers.parameters}")
    for title, saved in OPTIONS:
        row(
            f"{title}: saves",
            lambda p, layers, saved=saved: (
                f"{gib(p, saved(layers)):.1f} GiB ({100 * saved(layers).tensors / whole(layers).tensors:.0f} %), "
                f"{p.timesteps * saved(layers).launches} launches"
            ),
        )
    row(
        "SLTT-K1: steps without a graph, several at once: saves",
        lambda p, layers: (
            f"{gib(replace(p, timesteps=1), cost):.1f} GiB, {ms(replace(p, timesteps=1), cost):.1f} ms"
            if (cost := free_steps_at_once(layers, p.timesteps)).tensors
            else "– (batch norm)"
        ),
    )
    print_unit_by_unit()


if __name__ == "__main__":
    main()
