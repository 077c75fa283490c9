"""Speech Commands v2: 35 words, spoken for a second each (Warden 2018), as mel spectrograms.

Read from `SpeechCommands/speech_commands_v0.02/<word>/*.wav`, where torchaudio puts them; the lists that come
with the recordings say which of them validate and test.
"""

import wave
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from sltt_bench.common.extras import load_extra
from sltt_bench.common.strict import Count
from sltt_bench.data.download import fetch_and_unpack
from sltt_bench.data.errors import DataError, absent, damaged, reading
from sltt_bench.data.images import class_folders
from sltt_bench.data.source import DataPlace, DataSource, Modality, Progress, Samples, SamplesInFiles, Shape

if TYPE_CHECKING:
    from torch import Tensor

RATE = 16_000
"""Samples of sound a second, and of a recording: shorter ones are followed by silence, longer ones are cut."""
FFT = 512
"""Samples of sound in a short-time Fourier transform."""


class SpeechCommands(DataSource):
    """Speech Commands v2: which of 35 words was said, from 40 mel bands a step."""

    name: Literal["speech-commands"] = "speech-commands"
    split: Literal["official", "official-validation"] = "official"
    """official tests on testing_list.txt; official-validation on validation_list.txt, for choosing settings.
    What neither list names trains."""
    train_samples: Count = 84_843
    test_samples: Count = 11_005
    bands: Count = 40
    """Mel bands from 0 to 8 kHz."""

    split_samples: ClassVar[dict[str, tuple[int, int]]] = {"official-validation": (84_843, 9_981)}
    folder: ClassVar[str] = "SpeechCommands"
    version: ClassVar[str] = "speech_commands_v0.02"
    url: ClassVar[str] = "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz"
    sha256: ClassVar[str] = "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58"
    lists: ClassVar[dict[str, str]] = {
        "official": "testing_list.txt",
        "official-validation": "validation_list.txt",
    }
    noise: ClassVar[str] = "_background_noise_"
    window: ClassVar[int] = 400
    """Samples that a step's spectrum looks at: 25 ms."""
    classes: ClassVar[int] = 35
    modality: ClassVar[Modality] = "speech"
    temporal: ClassVar[bool] = True

    @property
    def sample_shape(self) -> Shape:
        return (self.bands, 1, 1)

    def check_timesteps(self, timesteps: int) -> str | None:
        if timesteps <= RATE // 16:
            return None
        return f"timesteps is {timesteps}, but a second of sound is cut into {RATE // 16} steps at most"

    def _root(self, data_dir: Path) -> Path:
        return data_dir / self.folder / self.version

    def needed(self, data_dir: Path) -> list[Path]:
        return [self._root(data_dir) / name for name in self.lists.values()]

    def files(self, data_dir: Path, split: str) -> list[tuple[Path, int]]:
        """The recordings of a split with their labels; words are numbered in the order of the alphabet.

        Raises DataError.
        """
        root = self._root(data_dir)
        listed = {name: self._listed(root / name, data_dir) for name in self.lists.values()}
        words = class_folders(self.name, root, self.classes, but_for=self.noise)
        chosen = set(listed[self.lists[self.split]])
        if split == "train":
            recordings = (file for word in words for file in (root / word).glob("*.wav"))
            names = {f"{file.parent.name}/{file.name}" for file in recordings if file.name[0] != "."}
            chosen = names.difference(*listed.values())
        elif lacking := sorted(name for name in chosen if not (root / name).is_file()):
            raise absent(self, root / lacking[0], data_dir)
        labels = {word: label for label, word in enumerate(words)}
        return [(root / name, labels[name.partition("/")[0]]) for name in sorted(chosen)]

    def _listed(self, file: Path, data_dir: Path) -> frozenset[str]:
        if not file.is_file():
            raise absent(self, file, data_dir)
        with reading(self.name, file, OSError, ValueError):
            return frozenset(file.read_text(encoding="utf-8").split())

    def samples_of(self, split: str, place: DataPlace) -> Samples:
        """Log mel spectrograms [T, bands, 1, 1] in float32."""
        read = partial(_heard, self.name, mel_spectrogram(self.bands, place.timesteps, self.window))
        return SamplesInFiles(self.files(place.data_dir, split), read)

    def preprocess(self, x: "Tensor") -> "Tensor":
        """Log energies [batch, T, bands, 1, 1], standardised over the steps and bands of each recording."""
        deviation, mean = x.std(dim=(1, 2, 3, 4), keepdim=True), x.mean(dim=(1, 2, 3, 4), keepdim=True)
        return (x - mean) / deviation.clamp(min=1e-3)

    def labels(self, data_dir: Path, split: str) -> list[int]:
        return [label for _, label in self.files(data_dir, split)]

    def readings(self, data_dir: Path, split: str) -> list[tuple[Path, Callable[[], Any]]]:
        return [(file, partial(read_sound, self.name, file)) for file, _ in self.files(data_dir, split)]

    def prepare(self, data_dir: Path, progress: Progress) -> list[str]:
        root = self._root(data_dir)
        archive = data_dir / self.folder / self.url.rpartition("/")[2]
        return [fetch_and_unpack(self.url, archive, self.sha256, root, progress)]


def read_sound(name: str, file: Path) -> np.ndarray:
    """A second of sound [16000] in float32, −1…1. Raises DataError."""
    faults = (OSError, EOFError, wave.Error)
    with reading(name, file, *faults, reason="not a whole WAV file ({})"), wave.open(str(file)) as recording:
        kind = (recording.getnchannels(), recording.getsampwidth(), recording.getframerate())
        frames, content = recording.getnframes(), recording.readframes(recording.getnframes())
    if kind != (1, 2, RATE):
        raise damaged(name, file, f"its sound is not of one channel of 16 bits at {RATE:,} Hz")
    if len(content) != 2 * frames or not frames:
        raise damaged(name, file, f"it has {len(content) // 2:,} of {frames:,} samples of sound")
    sound = np.zeros(RATE, np.float32)
    samples = np.frombuffer(content, "<i2")[:RATE]
    sound[: len(samples)] = samples / 32_768
    return sound


def mel_spectrogram(bands: int, timesteps: int, window: int) -> "Callable[[Tensor], Tensor]":
    """Sound [16000] → [T, bands]: the logarithm of mel energies in T windows, one every ⌊16000/T⌋ samples.

    A window is `window` samples long whatever T is: of few steps each hears a part of its time (at T = 10 and 400 samples
    a quarter), so that networks of different T hear different sounds. The bands are triangles on HTK's mel scale, as torchaudio has them. Raises DataError without librosa.
    """
    filters = load_extra("librosa.filters", "speech", "a mel spectrogram", DataError)
    import torch

    triangles = torch.from_numpy(filters.mel(sr=RATE, n_fft=FFT, n_mels=bands, htk=True, norm=None))
    # Sent to workers, so a partial of a function of a module.
    return partial(_log_energies, triangles, torch.hann_window(window), timesteps)


def _log_energies(triangles: "Tensor", window: "Tensor", timesteps: int, sound: "Tensor") -> "Tensor":
    import torch

    hop = RATE // timesteps
    waves = torch.stft(sound, FFT, hop, len(window), window, return_complex=True)[:, :timesteps]
    return (triangles @ waves.abs().square() + 1e-6).log().T.contiguous()


def _heard(name: str, spectrogram: "Callable[[Tensor], Tensor]", file: Path) -> "Tensor":
    """A recording as it is shown [T, bands, 1, 1]. Raises DataError."""
    import torch

    return spectrogram(torch.from_numpy(read_sound(name, file)))[..., None, None]
