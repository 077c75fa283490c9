"""Networks drawn at random, as their authors might write them: any layers in any order, in every style of calling.

Their forward methods are source text, which native reads as it reads anybody's.
"""

import linecache
import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sltt_bench.models.layers import SequenceDropout
from sltt_bench.models.nf_resnet import ScaledWSConv2d
from sltt_bench.models.normalisation import ScaledWSLinear
from sltt_bench.neuron_kinds import Readout
from sltt_bench.neurons import Stateful


class SlowSynapse(Stateful):
    """Currents that decay: a layer with state that is no neuron."""

    carried = ("current",)

    def __init__(self) -> None:
        super().__init__()
        self.current: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.current = x if self.current is None else 0.5 * self.current + x
        return self.current


class Feedback(Stateful):
    """Neurons that also receive a convolution of their last spikes: a layer and its part carry state."""

    carried = ("spikes",)
    emits_spikes = True

    def __init__(self, channels: int, neuron: nn.Module) -> None:
        super().__init__()
        self.back, self.neuron = nn.Conv2d(channels, channels, 1, bias=False), neuron
        self.spikes: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.spikes = self.neuron(x if self.spikes is None else x + self.back(self.spikes))
        return self.spikes


class Excitation(nn.Module):
    """Scales channels by gates computed from their means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mixing = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        gates = torch.sigmoid(self.mixing(x.view(x.size(0), x.size(1), -1).mean(2)))
        return x * gates[:, :, None, None]


class LooksAtValues(nn.Module):
    """A layer that branches on values, which no tracer can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.inner(2 * x if float(x.detach().abs().mean()) > 0.5 else x)
        return output


class FrozenNorm(nn.BatchNorm2d):
    """Batch norm by running statistics, in training too."""

    def train(self, mode: bool = True) -> "FrozenNorm":
        super().train(False)
        return self


class DrawnNetwork(nn.Module):
    """[batch, 1, 8, 8] (or 2 channels of any size) → [batch, classes]."""

    def __init__(
        self,
        draws: random.Random,
        neuron: Callable[[], nn.Module],
        input_shape: tuple[int, ...],
        classes: int,
    ) -> None:
        super().__init__()
        self._draws = draws
        self._neuron = neuron
        self.instructions: list[str] = []
        """Expressions, of `self` and of the values so far [batch, C, H, W], v0 being the input."""
        self._sources: list[tuple[int, ...]] = []
        self.words: list[str] = []
        """The network's parts, for the message of a failure."""
        shapes: list[tuple[int, int, int]] = [(input_shape[0], input_shape[1], input_shape[2])]
        self._layer_number = 0
        for _ in range(draws.randint(4, 14)):
            shapes.append(self._draw(shapes))
        if not any("neuron" in word for word in self.words):
            self._of_layer("neuron", neuron(), len(shapes) - 1)
            shapes.append(shapes[-1])
        channels, height, width = shapes[-1]
        self._draw_readout(channels, height * width, classes)
        self._leave_out_what_nothing_reads()
        self.__class__ = type("WrittenNetwork", (DrawnNetwork,), {"forward": self._written_forward()})

    def _written_forward(self) -> Callable[[nn.Module, Tensor], Tensor]:
        """The method that carries the instructions out, of which the source is to be had."""
        lines = ["def forward(self, v0):"]
        for place, expression in enumerate(self.instructions, start=1):
            if place in self._read:
                lines.append(f"    v{place} = {expression}")
        source = "\n".join([*lines, f"    return v{len(self.instructions)}", ""])
        file = f"<drawn network {hash(source)}>"
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        namespace = {"torch": torch, "F": F, "__name__": __name__}
        exec(compile(source, file, "exec"), namespace)
        method: Callable[[nn.Module, Tensor], Tensor] = namespace["forward"]
        return method

    # What an instruction may be -------------------------------------------------------------------

    def _draw(self, shapes: list[tuple[int, int, int]]) -> tuple[int, int, int]:
        draws = self._draws
        source = len(shapes) - 1 if draws.random() < 0.8 else draws.randrange(len(shapes))
        channels, height, width = shapes[source]
        kinds = {
            "convolution": 5, "norm": 4, "neuron": 6, "sum": 3, "scale": 1, "pool": 1, "function": 1, "dropout": 1, "cat": 1,
            "again": 1, "own": 1, "block": 1,
        }  # fmt: skip
        (kind,) = draws.choices(list(kinds), list(kinds.values()))
        match kind:
            case "convolution":
                out, size = draws.choice([2, 4, 6]), draws.choice([1, 3, 3])
                stride = draws.choice([1, 1, 1, 2]) if min(height, width) > 2 else 1
                made = draws.choice([nn.Conv2d, nn.Conv2d, ScaledWSConv2d])
                if made is ScaledWSConv2d and channels * size * size < 2:
                    made = nn.Conv2d
                groups = draws.choice([1, 1, 2]) if channels % 2 == 0 and made is nn.Conv2d else 1
                options: dict[str, Any] = {}
                if made is nn.Conv2d:
                    options = {"padding": size // 2, "groups": groups, "bias": draws.random() < 0.6}
                layer = made(channels, out, size, stride, **options)
                word = f"{made.__name__}({channels}, {out}, {size}, {stride}, {options})"
                tied = [
                    one
                    for one in self.children()
                    if type(one) is made and one.weight.shape == layer.weight.shape
                ]
                if tied and draws.random() < 0.3:
                    layer.weight, word = draws.choice(tied).weight, f"tied {word}"
                if draws.random() < 0.1:
                    layer, word = layer.requires_grad_(False), f"frozen {word}"
                self._of_layer(word, layer, source)
                return out, (height - 1) // stride + 1, (width - 1) // stride + 1
            case "norm":
                layer = draws.choice(
                    [
                        nn.BatchNorm2d(channels),
                        nn.BatchNorm2d(channels),
                        nn.BatchNorm2d(channels, momentum=None),
                        nn.BatchNorm2d(channels, affine=False),
                        FrozenNorm(channels),
                        nn.GroupNorm(1, channels),
                        nn.InstanceNorm2d(channels, affine=True)
                        if height * width > 1
                        else nn.GroupNorm(1, channels),
                    ]
                )
                self._of_layer(str(layer), layer, source)
            case "neuron":
                self._of_layer("neuron", self._neuron(), source)
            case "sum":
                equals = [place for place, shape in enumerate(shapes) if shape == shapes[source]]
                other, style = (
                    draws.choice(equals),
                    draws.choice(["+", "torch.add", "alpha", "-", "in place", "constant"]),
                )
                self._sum(style, source, other)
            case "scale":
                self._scale(draws.choice(["factor", "divisor", "parameter"]), source)
            case "pool" if min(height, width) > 1:
                made = draws.choice([nn.AvgPool2d, nn.MaxPool2d])
                self._of_layer(f"{made.__name__}(2)", made(2), source)
                return channels, height // 2, width // 2
            case "function":
                self._function(
                    draws.choice(
                        ["relu", "relu in place", "method", "sigmoid", "clone", "permuted", "product"]
                    ),
                    source,
                )
            case "dropout":
                layer = draws.choice([SequenceDropout(0.3), nn.Identity(), nn.Dropout(0.3)])
                self._of_layer(type(layer).__name__, layer, source)
            case "cat":
                others = [place for place, shape in enumerate(shapes) if shape[1:] == shapes[source][1:]]
                other = draws.choice(others)
                if channels + shapes[other][0] <= 12:
                    self._add(
                        f"cat {source} {other}",
                        f"torch.cat([v{source}, v{other}], 1)",
                        source,
                        other,
                    )
                    return channels + shapes[other][0], height, width
                self._add("identity", f"v{source}", source)
            case "again":
                self._again(source, shapes)
            case "own":
                layers = [
                    SlowSynapse(),
                    Excitation(channels),
                    LooksAtValues(),
                    Feedback(channels, self._neuron()),
                ]
                layer = draws.choices(layers, [3, 3, 1, 3])[0]
                self._of_layer(type(layer).__name__, layer, source)
            case "block":
                convolution = nn.Conv2d(channels, channels, 3, padding=1)
                block = [
                    convolution,
                    nn.BatchNorm2d(channels),
                    self._neuron(),
                    nn.Conv2d(channels, channels, 1),
                ]
                self._of_layer("block", nn.Sequential(*block), source)
            case _:
                self._add("identity", f"v{source}", source)
        return channels, height, width

    def _again(self, source: int, shapes: list[tuple[int, int, int]]) -> None:
        """Call a layer that keeps the shape a second time in the step, with the same weights."""
        channels = shapes[source][0]
        shared = [
            name
            for name, layer in self.named_children()
            if (
                isinstance(layer, nn.Conv2d)
                and layer.in_channels == layer.out_channels == channels
                and layer.stride == (1, 1)
            )
            or (isinstance(layer, nn.BatchNorm2d) and layer.num_features == channels)
        ]
        if shared:
            name = self._draws.choice(shared)
            self._add(f"{name} again {source}", f"self.{name}(v{source})", source)
        else:
            self._add("identity", f"v{source}", source)

    def _of_layer(self, word: str, layer: nn.Module, source: int) -> None:
        name = f"layer{self._layer_number}"
        self._layer_number += 1
        self.add_module(name, layer)
        argument = "current" if word == "neuron" else "input"
        if self._draws.random() < 0.2 and type(layer) in BY_NAME:
            self._add(
                f"{word} by name {source}",
                f"self.{name}({argument}=v{source})",
                source,
            )
        else:
            self._add(f"{word} {source}", f"self.{name}(v{source})", source)

    def _sum(self, style: str, source: int, other: int) -> None:
        sums = {
            "+": f"v{source} + v{other}",
            "torch.add": f"torch.add(v{source}, v{other})",
            "alpha": f"torch.add(v{source}, v{other}, alpha=0.5)",
            "-": f"v{source} - 0.5 * v{other}",
            "in place": f"v{source}.clone().add_(v{other})",
            "constant": f"v{source} + 0.25",
        }
        self._add(
            f"sum {style} {source} {other}", sums[style], source, *() if style == "constant" else (other,)
        )

    def _scale(self, style: str, source: int) -> None:
        name = f"gain{self._layer_number}"
        self._layer_number += 1
        if style == "parameter":
            self.register_parameter(name, nn.Parameter(torch.ones(())))
        scales = {
            "factor": f"1.3 * v{source}",
            "divisor": f"v{source} / 1.3",
            "parameter": f"self.{name} * v{source}",
        }
        self._add(f"scale {style} {source}", scales[style], source)

    def _function(self, style: str, source: int) -> None:
        flat = f"v{source}.flatten(2)"
        functions = {
            "relu": f"F.relu(v{source})",
            "relu in place": f"F.relu(v{source}.clone(), inplace=True)",
            "method": f"v{source}.clamp(min=-1)",
            "sigmoid": f"torch.sigmoid(v{source})",
            "product": f"v{source} + ({flat} @ {flat}.transpose(1, 2) @ {flat}).view_as(v{source}) / 64",
            "clone": f"v{source}.clone()",
            "permuted": f"v{source}.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)",
        }
        self._add(f"{style} {source}", functions[style], source)

    def _draw_readout(self, channels: int, pixels: int, classes: int) -> None:
        draws, last = self._draws, len(self.instructions)
        if draws.random() < 0.5:
            self._add("mean over space", f"v{last}.mean((2, 3))", last)
            features = channels
        else:
            self.flatten = nn.Flatten()
            self._add("flatten", f"self.flatten(v{last})", last)
            features = channels * pixels
        made = draws.choice([nn.Linear, ScaledWSLinear]) if features > 1 else nn.Linear
        self.readout = made(features, classes)
        self._add(made.__name__, f"self.readout(v{last + 1})", last + 1)
        if draws.random() < 0.2:
            self.leak = Readout(2.0)
            self._add("leaky readout", f"self.leak(v{last + 2})", last + 2)

    def _add(self, word: str, instruction: str, *sources: int) -> None:
        self.words.append(word)
        self.instructions.append(instruction)
        self._sources.append(sources)

    def _leave_out_what_nothing_reads(self) -> None:
        read = {len(self.instructions)}
        for place in range(len(self.instructions), 0, -1):
            if place in read:
                read.update(self._sources[place - 1])
        self._read = read
        self.words = [word if place in read else "-" for place, word in enumerate(self.words, start=1)]


BY_NAME = (nn.Conv2d, nn.BatchNorm2d, ScaledWSConv2d, nn.AvgPool2d)
