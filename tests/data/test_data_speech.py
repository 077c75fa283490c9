"""Speech from real files made small: spikes of a model cochlea in HDF5, and recordings of words."""

import os
import pickle
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_files import loader_of, write_speech_commands, write_spiking_speech, write_wav

from sltt_bench import data
from sltt_bench.data import DataBundle, DataError, DataPlace, spiking_speech
from sltt_bench.data.speech_commands import mel_spectrogram, read_sound
from sltt_bench.data.spiking_speech import bin_spikes

h5py = pytest.importorskip("h5py")
pytest.importorskip("librosa")
T = 10


def load(name: str, data_dir: Path, **options: Any) -> DataBundle:
    return data.load(data.source_type(name)(**options), DataPlace(data_dir, T))


# Spikes of a model cochlea ----------------------------------------------------------------------


def test_spikes_are_counted_in_their_slice_and_channel() -> None:
    times = np.array([0.0, 0.0999, 0.1, 0.95, 0.999, 1.0, 1.3])
    units = np.array([0, 4, 5, 699, 699, 699, 0])
    counts = bin_spikes(times, units, timesteps=10, window=1.0, units_per_channel=5)
    assert (counts.shape, counts.dtype) == ((10, 140), np.uint8)
    assert np.argwhere(counts).tolist() == [[0, 0], [1, 1], [9, 139]]
    assert [counts[0, 0], counts[1, 1], counts[9, 139]] == [
        2,
        1,
        2,
    ]  # what comes after the window is left out
    fine = bin_spikes(times, units, timesteps=10, window=1.4, units_per_channel=1)
    assert fine.shape == (10, 700)
    assert fine.sum() == 7


def test_no_spikes_are_silence() -> None:
    nothing = np.empty(0, np.float16)
    assert not bin_spikes(nothing, nothing, timesteps=5, window=1.0, units_per_channel=7).any()


@pytest.mark.parametrize(
    ("time", "unit", "reason"),
    [
        (-0.1, 3, "negative or not finite"),
        (np.nan, 3, "negative or not finite"),
        (0.1, 700, "units outside 0…699"),
    ],
)
def test_spikes_that_cannot_be_are_named_with_file_and_sample(
    time: float, unit: int, reason: str, tmp_path: Path
) -> None:
    counts = write_spiking_speech(tmp_path)
    with h5py.File(tmp_path / "SHD" / "shd_test.h5", "r+") as file:
        file["spikes/times"][3] = np.array([time], np.float16)
        file["spikes/units"][3] = np.array([unit], np.uint16)
    samples = load("shd", tmp_path, **counts).test
    with pytest.raises(DataError, match=rf"shd_test\.h5 cannot be read: sample 3: .*{reason}"):
        samples[3]
    findings = list(data.source_type("shd")(**counts).verify(tmp_path, data.no_progress))
    assert [finding.ok for finding in findings] == [True, True, True, False, False]
    assert findings[-1].text == "19 of 20 files could be read (of 20 in all)"


@pytest.mark.parametrize(("name", "classes"), [("shd", 20), ("ssc", 35)])
def test_spiking_speech_is_read_from_the_published_files(name: str, classes: int, tmp_path: Path) -> None:
    counts = write_spiking_speech(tmp_path, name.upper(), classes)
    bundle = load(name, tmp_path, units_per_channel=5, **counts)
    x, label = bundle.train[7]
    assert (x.shape, x.dtype, label) == ((T, 140, 1, 1), torch.uint8, 7)
    assert 30 <= int(x.sum()) <= 37  # of 37 spikes those within the window
    assert bundle.preprocess(x[None]).dtype == torch.float32
    with h5py.File(tmp_path / name.upper() / f"{name}_train.h5") as file:
        expected = bin_spikes(
            file["spikes/times"][7],
            file["spikes/units"][7],
            timesteps=T,
            window=1.4 if name == "shd" else 1.0,
            units_per_channel=5,
        )
    np.testing.assert_array_equal(x[:, :, 0, 0].numpy(), expected)


def test_the_validation_part_of_ssc_is_a_named_split_with_its_own_counts(tmp_path: Path) -> None:
    source = data.source_type("ssc")(split="official-validation")
    assert (source.train_samples, source.test_samples) == (75_466, 9_981)
    assert [path.name for path in source.needed(tmp_path)] == ["ssc_train.h5", "ssc_valid.h5"]
    counts = write_spiking_speech(tmp_path, "SSC", 35)
    assert len(load("ssc", tmp_path, split="official-validation", **counts).test) == 35


def test_samples_are_the_same_from_two_workers(tmp_path: Path) -> None:
    counts = write_spiking_speech(tmp_path)

    def batches(workers: int) -> torch.Tensor:
        options = data.source_type("shd")(workers=workers, **counts)
        train = data.load(options, DataPlace(tmp_path, T)).train
        return torch.cat([x for x, _ in loader_of(train, options)])

    assert torch.equal(batches(0), batches(2))


@pytest.mark.parametrize("damage", ["empty", "cut", "no spikes", "labels", "lengths"])
def test_a_damaged_file_of_spikes_is_named(damage: str, tmp_path: Path) -> None:
    counts = write_spiking_speech(tmp_path)
    path = tmp_path / "SHD" / "shd_train.h5"
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut":
        os.truncate(path, path.stat().st_size // 3)
    else:
        with h5py.File(path, "r+") as file:
            if damage == "no spikes":
                del file["spikes"]
            elif damage == "labels":
                file["labels"][0] = 20
            else:
                del file["labels"]
                file["labels"] = np.zeros(3, np.uint16)
    with pytest.raises(DataError, match=r"shd_train\.h5 cannot be read"):
        load("shd", tmp_path, **counts)


@pytest.fixture
def without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The counts of a data set in which HDF5 never returns from sample 0 of the test part."""
    counts = write_spiking_speech(tmp_path)
    path = tmp_path / "SHD" / "shd_test.h5"
    content = bytearray(path.read_bytes())
    heap = content.index(b"GCOL")
    first = int.from_bytes(content[heap + 24 : heap + 32], "little")
    second = heap + 32 + -(-first // 8) * 8
    content[second : second + 16] = bytes(16)  # its place in the heap and its size
    path.write_bytes(content)
    monkeypatch.setattr(spiking_speech, "LIMIT_S", 1)
    return counts


NAMED = r"shd_test\.h5 cannot be read: sample 0: reading it was not done in 1 s of a processor; replace"


def test_a_sample_at_which_hdf5_never_returns_is_named(tmp_path: Path, without_end: dict[str, int]) -> None:
    faults = [finding.text for finding in data.verify("shd", tmp_path) if not finding.ok]
    assert re.search(NAMED, faults[2])
    assert faults[3] == "0 of 1 files could be read (of 20 in all)"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_ends_at_a_sample_at_which_hdf5_never_returns(
    workers: int, tmp_path: Path, without_end: dict[str, int]
) -> None:
    options = data.source_type("shd")(workers=workers, **without_end)
    test = data.load(options, DataPlace(tmp_path, T)).test
    with pytest.raises(DataError, match=NAMED):
        next(iter(loader_of(test, options)))


# Words ------------------------------------------------------------------------------------------


def test_speech_commands_are_split_by_their_lists(tmp_path: Path) -> None:
    counts = write_speech_commands(tmp_path)
    source = data.source_type("speech-commands")(**counts)
    files = {split: source.files(tmp_path, split) for split in ("train", "test")}
    assert [file.name[:8] for file, _ in files["train"][:2]] == ["00000000", "00000001"]
    assert {file.name[:8] for file, _ in files["test"]} == {"00000002"}
    assert [label for _, label in files["test"]] == list(range(35))
    validating = data.source_type("speech-commands")(split="official-validation")
    assert (validating.train_samples, validating.test_samples) == (84_843, 9_981)
    assert {file.name[:8] for file, _ in validating.files(tmp_path, "test")} == {"00000003"}


@pytest.mark.parametrize(("bands", "timesteps", "window"), [(40, 10, 400), (20, 100, 512)])
def test_mel_energies_are_those_of_torchaudio(bands: int, timesteps: int, window: int) -> None:
    try:
        from torchaudio.transforms import MelSpectrogram
    except Exception as error:  # what a torchaudio of another torch than the installed one raises is its own
        pytest.skip(f"torchaudio: {error}")
    sound = torch.randn(16_000, generator=torch.Generator().manual_seed(0))
    hop = 16_000 // timesteps
    theirs = MelSpectrogram(16_000, n_fft=512, win_length=window, hop_length=hop, n_mels=bands)(sound)
    ours = mel_spectrogram(bands, timesteps, window)(sound)
    torch.testing.assert_close(ours, (theirs[:, :timesteps] + 1e-6).log().T, atol=1e-5, rtol=1e-4)


def test_a_tone_is_loud_in_its_mel_band_and_silence_follows_a_short_recording(tmp_path: Path) -> None:
    counts = write_speech_commands(tmp_path)
    bundle = load("speech-commands", tmp_path, **counts)
    low, high = bundle.test[0][0], bundle.test[34][0]
    assert (low.shape, low.dtype) == ((T, 40, 1, 1), torch.float32)
    assert low[3, :, 0, 0].argmax() < high[3, :, 0, 0].argmax()
    assert float(low[-1].max()) < float(low[3].max()) - 5  # the last tenth of this recording is silence
    shown = bundle.preprocess(torch.stack([low, high]))
    torch.testing.assert_close(shown.mean((1, 2, 3, 4)), torch.zeros(2), atol=1e-5, rtol=0)


def test_recordings_are_sent_whole_to_workers_that_are_started_afresh(tmp_path: Path) -> None:
    samples = load("speech-commands", tmp_path, **write_speech_commands(tmp_path)).test
    again = pickle.loads(pickle.dumps(samples))
    assert torch.equal(again[3][0], samples[3][0])


@pytest.fixture
def threads() -> Iterator[None]:
    """However many a test sets, the next test has as many as before."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_what_is_heard_does_not_depend_on_how_many_threads_or_processes_read_it(tmp_path: Path) -> None:
    counts = write_speech_commands(tmp_path)

    def heard(threads: int, workers: int) -> torch.Tensor:
        torch.set_num_threads(threads)
        options = data.source_type("speech-commands")(**counts, workers=workers)
        train = data.load(options, DataPlace(tmp_path, 100)).train
        x = torch.cat([x for x, _ in loader_of(train, options)])
        assert torch.get_num_threads() == threads
        return x

    alone = heard(threads=1, workers=0)
    assert torch.equal(heard(threads=8, workers=0), alone)
    assert torch.equal(heard(threads=8, workers=1), alone)


def test_recordings_of_another_kind_or_cut_short_are_named(tmp_path: Path) -> None:
    file = tmp_path / "a.wav"
    write_wav(file, np.zeros(800), rate=8_000)
    with pytest.raises(DataError, match=r"a\.wav cannot be read: its sound is not of one channel of 16 bits"):
        read_sound("speech-commands", file)
    write_wav(file, np.zeros(800))
    os.truncate(file, 300)
    with pytest.raises(DataError, match=r"a\.wav cannot be read: it has 128 of 800 samples of sound"):
        read_sound("speech-commands", file)
    file.write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"a\.wav cannot be read: not a whole WAV file"):
        read_sound("speech-commands", file)
    write_wav(file, np.full(20_000, -32_768))
    assert read_sound("speech-commands", file).tolist() == [-1.0] * 16_000


def test_a_missing_word_list_or_recording_is_named(tmp_path: Path) -> None:
    counts = write_speech_commands(tmp_path)
    root = tmp_path / "SpeechCommands" / "speech_commands_v0.02"
    (root / "word03" / "00000002_nohash_0.wav").unlink()
    with pytest.raises(DataError, match=r"looked for .*word03/00000002_nohash_0\.wav"):
        load("speech-commands", tmp_path, **counts)
    shutil.rmtree(root / "word04")
    with pytest.raises(DataError, match=r"it has 34 class folders instead of 35"):
        load("speech-commands", tmp_path, **counts)
    (root / "testing_list.txt").unlink()
    with pytest.raises(DataError, match=r"looked for .*testing_list\.txt"):
        load("speech-commands", tmp_path, **counts)
