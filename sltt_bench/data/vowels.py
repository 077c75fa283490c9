"""Japanese vowels: nine speakers say /ae/, and the network tells who (Kudo, Toyama and Shimbo 1999).

Real speech that comes with this package: 12 cepstral coefficients every 6.4 ms, 7 to 29 steps long;
sltt_bench/data/files/README.md says under which licence. Each coefficient is standardised by mean and
standard deviation of the training steps. A shorter utterance begins later: silence (zeros) comes first,
so that all end at the last step.
"""

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from sltt_bench.common.strict import Count
from sltt_bench.data.source import DataPlace, DataSource, Modality, Samples, Shape

FILE = Path(__file__).parent / "files" / "vowels.npz"
LONGEST = 29
SAMPLES = (270, 370)
"""Utterances that train, and that test."""


class Vowels(DataSource):
    """Real speech: which of nine speakers said /ae/, from 12 cepstral coefficients a step (no download)."""

    name: Literal["vowels"] = "vowels"
    split: Literal["official"] = "official"
    """The split that the data set is published with: 30 utterances of each speaker train."""
    train_samples: Count = SAMPLES[0]
    test_samples: Count = SAMPLES[1]

    sample_shape: ClassVar[Shape] = (12, 1, 1)
    classes: ClassVar[int] = 9
    modality: ClassVar[Modality] = "speech"
    temporal: ClassVar[bool] = True

    def check_timesteps(self, timesteps: int) -> str | None:
        if timesteps >= LONGEST:
            return None
        return f"timesteps is {timesteps}, but the longest utterance has {LONGEST} steps"

    def check_files(self, data_dir: Path) -> None:
        self.check_counts(*SAMPLES)

    def labels(self, data_dir: Path, split: str) -> list[int]:
        labels: list[int] = utterances(split)[1].tolist()
        return labels

    def samples_of(self, split: str, place: DataPlace) -> Samples:
        """Sequences [T, 12, 1, 1] in float32."""
        import torch
        from torch.utils.data import TensorDataset

        steps = np.concatenate(utterances("train")[0])
        mean, std = steps.mean(0), steps.std(0)
        sequences, labels = utterances(split)
        x = np.zeros((len(labels), place.timesteps, *self.sample_shape), np.float32)
        for sample, sequence in zip(x, sequences, strict=True):
            sample[-len(sequence) :, :, 0, 0] = (sequence - mean) / std
        return TensorDataset(torch.from_numpy(x), torch.from_numpy(labels))


def utterances(split: str) -> tuple[list[np.ndarray], np.ndarray]:
    """For each utterance of "train" or "test" its coefficients [steps, 12] in float64, and labels in int64."""
    with np.load(FILE) as file:
        # Kept as whole millionths, which is how they were published.
        sequences = np.split(file["coefficients_e6"] / 1e6, np.cumsum(file["lengths"].astype(int))[:-1])
        chosen = np.flatnonzero(file["in_test_split"] == (split == "test"))
        return [sequences[index] for index in chosen], file["labels"][chosen].astype(np.int64)
