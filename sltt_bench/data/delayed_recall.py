"""Delayed recall: a symbol is shown, D steps of noise follow, then a cue asks which symbol it was.

Input channels at one step: one for each symbol, one for the cue, `noise_channels` of Gaussian noise.
The last step holds the cue, the D steps before it noise alone, the step before those the symbol, and
all earlier steps nothing; so T stays the same while D varies. The answer step is the same for all
samples: what a network says there can depend on the symbol only through what it remembers. The
recipe counts that step alone (loss.window: 1), since any earlier one would give the symbol away.
"""

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from sltt_bench.data import DataBundle, DataPlace
from sltt_bench.data.options import DelayedRecallOptions

TRAIN_SEED, TEST_SEED = 0, 1


def load(options: DelayedRecallOptions, place: DataPlace) -> DataBundle:
    """Both splits as sequences [T, channels, 1, 1] in float32, drawn anew from their own seeds."""
    return DataBundle(
        _split(options, place.timesteps, options.train_samples, TRAIN_SEED),
        _split(options, place.timesteps, options.test_samples, TEST_SEED),
        preprocess,
    )


def sequences(
    options: DelayedRecallOptions, timesteps: int, samples: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Inputs [samples, T, channels] in float32 and labels [samples], the symbols in turn."""
    symbols, delay = options.symbols, options.delay
    answer = timesteps - 1
    shown = answer - delay - 1
    labels = torch.arange(samples) % symbols
    x = torch.zeros(samples, timesteps, symbols + 1 + options.noise_channels)
    x[torch.arange(samples), shown, labels] = 1.0
    x[:, answer, symbols] = 1.0
    noise = torch.randn(samples, delay, options.noise_channels, generator=generator)
    x[:, shown + 1 : answer, symbols + 1 :] = options.noise * noise
    return x, labels


def preprocess(x: Tensor) -> Tensor:
    """The sequences as they are."""
    return x


def _split(options: DelayedRecallOptions, timesteps: int, samples: int, seed: int) -> TensorDataset:
    x, labels = sequences(options, timesteps, samples, torch.Generator().manual_seed(seed))
    return TensorDataset(x[..., None, None], labels)
