"""Delayed recall: a symbol is shown, D steps of noise follow, then a cue asks which symbol it was.

Input channels at one step: one for each symbol, one for the cue, `noise_channels` of Gaussian noise.
The last step holds the cue, the D steps before it noise alone, the step before those the symbol, and
all earlier steps nothing; so T stays the same while D varies. The answer step is the same for all
samples: what a network says there can depend on the symbol only through what it remembers. The
recipe counts that step alone (loss.window: 1), since any earlier one would give the symbol away.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from sltt_bench.common.format import counted
from sltt_bench.common.strict import Count, NotNegative
from sltt_bench.data.source import DataPlace, DataSource, Modality, Samples, Shape

if TYPE_CHECKING:
    from torch import Generator, Tensor


class DelayedRecall(DataSource):
    """A symbol, D steps of noise, then a cue that asks for the symbol: made on the spot, no download."""

    name: Literal["delayed-recall"] = "delayed-recall"
    train_samples: Count = 2048
    test_samples: Count = 1024
    delay: Annotated[int, Field(ge=0)] = 8
    """D: steps of noise between the symbol and the cue."""
    symbols: Annotated[int, Field(ge=2, le=65_536)] = 4
    """How many symbols there are; each is a class and has an input channel of its own."""
    noise: NotNegative = 1.0
    """Standard deviation of the noise; a symbol has amplitude 1."""
    noise_channels: Count = 16
    """Input channels that carry nothing but noise."""

    modality: ClassVar[Modality] = "memory"
    temporal: ClassVar[bool] = True
    seeds: ClassVar[dict[str, int]] = {"train": 0, "test": 1}

    @model_validator(mode="after")
    def _classes_are_equally_frequent(self) -> "DelayedRecall":
        for split in ("train_samples", "test_samples"):
            if getattr(self, split) % self.symbols:
                raise ValueError(
                    f"{split} must be a multiple of symbols, so that chance is 1/symbols exactly"
                )
        return self

    @property
    def sample_shape(self) -> Shape:
        return (self.symbols + 1 + self.noise_channels, 1, 1)

    @property
    def classes(self) -> int:
        return self.symbols

    def check_timesteps(self, timesteps: int) -> str | None:
        required = self.delay + 2
        if timesteps >= required:
            return None
        return f"timesteps is {timesteps}, but symbol, {counted(self.delay, 'step')} of data.delay and cue need {required}"

    def labels(self, data_dir: Path, split: str) -> list[int]:
        samples = self.train_samples if split == "train" else self.test_samples
        return [number % self.symbols for number in range(samples)]

    def samples_of(self, split: str, place: DataPlace) -> Samples:
        """Sequences [T, channels, 1, 1] in float32, drawn anew from the split's own seed."""
        import torch
        from torch.utils.data import TensorDataset

        samples = len(self.labels(place.data_dir, split))
        generator = torch.Generator().manual_seed(self.seeds[split])
        x, labels = self.sequences(place.timesteps, samples, generator)
        return TensorDataset(x[..., None, None], labels)

    def sequences(self, timesteps: int, samples: int, generator: "Generator") -> "tuple[Tensor, Tensor]":
        """Inputs [samples, T, channels] in float32 and labels [samples], the symbols in turn."""
        import torch

        answer = timesteps - 1
        shown = answer - self.delay - 1
        labels = torch.arange(samples) % self.symbols
        x = torch.zeros(samples, timesteps, self.symbols + 1 + self.noise_channels)
        x[torch.arange(samples), shown, labels] = 1.0
        x[:, answer, self.symbols] = 1.0
        noise = torch.randn(samples, self.delay, self.noise_channels, generator=generator)
        x[:, shown + 1 : answer, self.symbols + 1 :] = self.noise * noise
        return x, labels
