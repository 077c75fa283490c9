"""Events to frames to cache, the event-camera data sets from real files made small, and the simulated camera."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_files import (
    aedat2,
    aedat3,
    aedat4,
    random_events,
    write_dvs_cifar10,
    write_ibm_gesture,
    write_n_caltech101,
    write_tonic_gesture,
)
from PIL import Image

from sltt_bench import data
from sltt_bench.common import abandoned, atomic_files
from sltt_bench.common.atomic_files import atomic_file, remove_unfinished
from sltt_bench.data import DataBundle, DataError, DataPlace, digits_saccade, dvs_cifar10, dvs_gesture
from sltt_bench.data.digits_saccade import DigitsSaccade
from sltt_bench.data.events import (
    EVENT,
    FrameCache,
    Framing,
    Recording,
    count_frames,
    file_key,
)
from sltt_bench.data.events import (
    tested_places as places_that_test,
)
from sltt_bench.data.source import bytes_to_unit, no_progress

T = 4
DRAWN_BY_SEED_0 = [
    "cifar10_airplane_10",
    "cifar10_airplane_16",
    "cifar10_automobile_7",
    "cifar10_automobile_15",
]
"""The first recordings of the random split, which must not change."""


def load(name: str, data_dir: Path, timesteps: int = T, **options: Any) -> DataBundle:
    return data.load(data.source_type(name)(**options), DataPlace(data_dir, timesteps))


# Frames -----------------------------------------------------------------------------------------


def test_slices_have_equal_event_counts_and_the_last_takes_the_rest() -> None:
    counts = count_frames(random_events(1003), 10, 128)
    assert counts.shape == (10, 2, 128, 128)
    assert counts.sum((1, 2, 3)).tolist() == [100] * 9 + [103]


def test_an_event_is_counted_at_its_slice_polarity_row_and_column() -> None:
    events = np.array([(0, 3, 5, False), (1, 3, 5, True), (2, 7, 0, True), (3, 7, 0, True)], dtype=EVENT)
    counts = count_frames(events, 2, 8)
    assert np.argwhere(counts).tolist() == [[0, 0, 5, 3], [0, 1, 5, 3], [1, 1, 0, 7]]
    assert counts[1, 1, 0, 7] == 2


def test_fewer_events_than_slices_leave_slices_empty() -> None:
    assert count_frames(random_events(3), 5, 128).sum((1, 2, 3)).tolist() == [1, 1, 1, 0, 0]


def test_no_events_or_events_outside_the_camera_are_refused() -> None:
    with pytest.raises(ValueError, match="holds no events"):
        count_frames(random_events(0), 4, 128)
    with pytest.raises(ValueError, match="outside the 64×64 pixels"):
        count_frames(random_events(100), 4, 64)


def test_mean_counts_keep_their_mean_when_shrunk() -> None:
    events = random_events(5000)
    counts = Framing(T, 128, 128, "mean-count").frames(events)
    shrunk = Framing(T, 128, 32, "mean-count").frames(events)
    assert (counts.dtype, shrunk.dtype) == (np.int16, np.float32)
    assert shrunk.shape == (T, 2, 32, 32)
    assert abs(shrunk.mean() / counts.mean() - 1) < 0.05


def test_published_frames_are_what_torchvision_makes_of_float_counts() -> None:
    from torchvision.transforms import Resize, ToPILImage, ToTensor

    events = random_events(60_000)
    events["x"] //= 4  # several events in a pixel
    published = Framing(T, 128, 48, "published").frames(events)
    for frame, count in zip(published, count_frames(events, T, 128), strict=True):
        expected = ToTensor()(Resize(48)(ToPILImage()(torch.from_numpy(count).float())))
        assert torch.equal(bytes_to_unit(torch.from_numpy(frame.copy())), expected)


# DVS-CIFAR10 ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".aedat4", ".aedat"])
def test_dvs_cifar10_is_read_in_both_formats(suffix: str, tmp_path: Path) -> None:
    counts = write_dvs_cifar10(tmp_path, numbers=(0, 1, 900), suffix=suffix)
    bundle = load("dvs-cifar10", tmp_path, resize="mean-count", image_size=128, **counts)
    x, label = bundle.train[3]
    assert label == 1
    expected = count_frames(random_events(2000, seed=1001), T, 128)
    assert torch.equal(x, torch.from_numpy(expected))


def test_dvs_cifar10_splits_by_the_number_in_the_name(tmp_path: Path) -> None:
    counts = write_dvs_cifar10(tmp_path, numbers=(899, 900, 10, 9, 999), events=50)
    bundle = load("dvs-cifar10", tmp_path, **counts)
    assert [bundle.train[i][1] for i in range(6)] == [0, 0, 0, 1, 1, 1]
    assert [bundle.test[i][1] for i in range(4)] == [0, 0, 1, 1]
    x, _ = bundle.train[0]
    assert (x.shape, x.dtype) == ((T, 2, 48, 48), torch.uint8)
    first = Framing(T, 128, 48, "published").frames(random_events(50, seed=9))
    assert torch.equal(x, torch.from_numpy(first.copy()))
    assert 0 < float(bundle.preprocess(x).max()) <= 1


def test_the_random_split_of_dvs_cifar10_is_named_by_its_seed(tmp_path: Path) -> None:
    write_dvs_cifar10(tmp_path, numbers=range(20), events=5)

    def tested(seed: int) -> list[str]:
        source = data.source_type("dvs-cifar10")(split="random-900-of-each-class", split_seed=seed)
        splits = {name: source.recordings(tmp_path, name) for name in ("train", "test")}
        assert [len(splits["train"]), len(splits["test"])] == [180, 20]
        assert not {r.key for r in splits["train"]} & {r.key for r in splits["test"]}
        return [recording.file.stem for recording in splits["test"]]

    assert tested(0)[:4] == DRAWN_BY_SEED_0
    assert tested(0) == tested(0) != tested(1)
    assert len({name.split("_")[-1] for name in tested(0)}) > 2  # each class has a draw of its own


# N-Caltech101 -----------------------------------------------------------------------------------


def test_n_caltech101_is_read_and_split_by_its_seed(tmp_path: Path) -> None:
    counts = write_n_caltech101(tmp_path)
    bundle = load("n-caltech101", tmp_path, image_size=32, limit=1, **counts)
    assert bundle.test.labels == list(range(101))
    (place,) = places_that_test(10, seed=0, label=7)
    x, label = bundle.test[7]
    expected = Framing(T, 240, 32, "mean-count", 180).frames(random_events(60, seed=700 + place))
    assert (x.shape, label) == ((T, 2, 32, 32), 7)
    assert torch.equal(x, torch.from_numpy(expected))


def test_a_wide_camera_has_as_many_rows_as_it_has() -> None:
    events = np.array([(0, 239, 179, True)], dtype=EVENT)
    assert count_frames(events, 1, 240, 180).shape == (1, 2, 180, 240)
    assert Framing(1, 240, 60, "mean-count", 180).frames(events).shape == (1, 2, 60, 60)
    with pytest.raises(ValueError, match="outside the 240×180 pixels"):
        count_frames(np.array([(0, 5, 180, True)], dtype=EVENT), 1, 240, 180)


def test_an_n_caltech101_recording_cut_short_and_a_missing_class_are_named(tmp_path: Path) -> None:
    counts = write_n_caltech101(tmp_path)
    file = tmp_path / "Caltech101" / "class005" / "image_0003.bin"
    os.truncate(file, 13)
    with pytest.raises(DataError, match=r"class005/image_0003\.bin cannot be read: not a whole recording"):
        load("n-caltech101", tmp_path, image_size=32, **counts)
    shutil.rmtree(file.parent)
    with pytest.raises(
        DataError, match=r"Caltech101 cannot be read: it has 100 class folders instead of 101"
    ):
        load("n-caltech101", tmp_path, **counts)


def test_dvs_cifar10_file_without_a_number_is_named(tmp_path: Path) -> None:
    counts = write_dvs_cifar10(tmp_path, events=50)
    folder = tmp_path / "CIFAR10DVS" / "cat"
    (folder / "cifar10_cat_0.aedat4").rename(folder / "cat.aedat4")
    with pytest.raises(DataError, match=r"cat\.aedat4 cannot be read: its name does not end with the number"):
        load("dvs-cifar10", tmp_path, **counts)


def test_dvs_cifar10_missing_class_folder_is_named(tmp_path: Path) -> None:
    counts = write_dvs_cifar10(tmp_path, events=50)
    (tmp_path / "CIFAR10DVS" / "frog").rename(tmp_path / "frog")
    with pytest.raises(
        DataError, match=r"looked for .*CIFAR10DVS/frog; `sltt-bench data prepare dvs-cifar10"
    ):
        load("dvs-cifar10", tmp_path, **counts)


def test_wrong_count_of_recordings_is_an_error_before_anything_is_converted(tmp_path: Path) -> None:
    write_dvs_cifar10(tmp_path, events=50)
    with pytest.raises(DataError, match=r"20 samples, but the recipe's data\.train_samples says 9000"):
        load("dvs-cifar10", tmp_path)
    assert cached(tmp_path) == {}


@pytest.mark.parametrize("suffix", [".aedat4", ".aedat"])
def test_unreadable_event_file_is_named(suffix: str, tmp_path: Path) -> None:
    counts = write_dvs_cifar10(tmp_path, suffix=suffix)
    file = tmp_path / "CIFAR10DVS" / "deer" / f"cifar10_deer_1{suffix}"
    os.truncate(file, file.stat().st_size - 5)
    with pytest.raises(DataError, match=rf"cifar10_deer_1{suffix} cannot be read: not a whole AEDAT"):
        load("dvs-cifar10", tmp_path, **counts)
    file.write_bytes(b"")
    with pytest.raises(DataError, match=rf"cifar10_deer_1{suffix} cannot be read"):
        load("dvs-cifar10", tmp_path, **counts)


def test_event_file_that_its_decoder_panics_at_is_named(tmp_path: Path) -> None:
    counts = write_dvs_cifar10(tmp_path)
    file = tmp_path / "CIFAR10DVS" / "ship" / "cifar10_ship_1.aedat4"
    content = bytearray(file.read_bytes())
    first_offset = len(b"#!AER-DAT4.0\r\n") + 4
    content[first_offset : first_offset + 4] = b"\0\0\0\x3b"
    file.write_bytes(content)
    with pytest.raises(
        DataError, match=r"cifar10_ship_1\.aedat4 cannot be read: not a whole AEDAT 4 file .*range"
    ):
        load("dvs-cifar10", tmp_path, **counts)


def abort_the_decoder(file: Path) -> None:
    """Damage a whole file so that what the decoder says of it is no UTF-8, at which it ends its process."""
    content = bytearray(file.read_bytes())
    content[content.index(b'<attr key="sizeX"') + 1] = 0xE1
    file.write_bytes(content)


@pytest.mark.parametrize("workers", [0, 1])
def test_event_file_that_its_decoder_ends_its_process_at_is_named(workers: int, tmp_path: Path) -> None:
    counts = write_dvs_cifar10(tmp_path, events=50)
    folder = tmp_path / "CIFAR10DVS" / "ship"
    abort_the_decoder(folder / "cifar10_ship_1.aedat4")
    with pytest.raises(
        DataError,
        match=r"cifar10_ship_1\.aedat4 cannot be read: .* \(its decoder was ended by [\w ]+\); replace it",
    ):
        load("dvs-cifar10", tmp_path, **counts, workers=workers)
    assert len(dvs_cifar10.read(folder / "cifar10_ship_0.aedat4")[0]) == 50


def test_all_event_files_that_end_their_decoder_are_found(tmp_path: Path) -> None:
    write_dvs_cifar10(tmp_path, events=50)
    for name in ("cat/cifar10_cat_0", "dog/cifar10_dog_1"):
        abort_the_decoder(tmp_path / "CIFAR10DVS" / f"{name}.aedat4")
    findings = data.verify("dvs-cifar10", tmp_path)
    faults = [finding.subject for finding in findings if "its decoder was ended" in finding.text]
    assert [Path(subject).stem for subject in faults] == ["cifar10_cat_0", "cifar10_dog_1"]
    assert any("28 of 30 files" in f.text or "18 of 20 files" in f.text for f in findings)


def test_a_converting_process_that_is_ended_from_outside_is_named_with_a_remedy(tmp_path: Path) -> None:
    cache = FrameCache("test", tmp_path, Framing(2, 8, 8, "mean-count"))
    ended = [Recording(tmp_path / f"{n}.bin", (0,), partial(os._exit, 9), str(n)) for n in range(4)]
    with pytest.raises(
        DataError, match=r"'test': a process that makes .* was ended.* a smaller data\.workers"
    ):
        cache.fill(ended, workers=2)


def test_missing_packages_are_named_with_the_command_that_installs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = write_dvs_cifar10(tmp_path, events=50)
    monkeypatch.setitem(sys.modules, "aedat", None)
    with pytest.raises(
        DataError, match=r"the package aedat \(import of aedat.*pip install 'sltt-bench\[events\]'"
    ):
        load("dvs-cifar10", tmp_path, **counts)


# DVS-Gesture ------------------------------------------------------------------------------------


def test_gesture_samples_of_tonic_are_read(tmp_path: Path) -> None:
    counts = write_tonic_gesture(tmp_path)
    bundle = load("dvs-gesture", tmp_path, split="tonic-1077-264", **counts)
    x, label = bundle.test[12]
    assert (x.shape, x.dtype) == ((T, 2, 128, 128), torch.int16)
    labels = [bundle.test[i][1] for i in range(22)]
    assert sorted(labels) == sorted([*range(11), *range(11)])
    expected = count_frames(random_events(2000, seed=100 * 25 + label), T, 128)
    assert torch.equal(x, torch.from_numpy(expected))
    assert bundle.preprocess(x).dtype == torch.float32


def test_gesture_recordings_of_ibm_are_cut_at_their_labels(tmp_path: Path) -> None:
    counts = write_ibm_gesture(tmp_path)
    bundle = load("dvs-gesture", tmp_path, **counts)
    assert [bundle.train[i][1] for i in range(22)] == [*range(11), *range(11)]
    x, label = bundle.train[11 + 4]
    expected = count_frames(random_events(500, seed=100 + 4), T, 128)
    assert label == 4
    assert torch.equal(x, torch.from_numpy(expected))


def test_aedat3_time_goes_on_after_the_32_bit_counter_overflows(tmp_path: Path) -> None:
    content = bytearray(aedat3(random_events(10)))
    packet = content.rindex(b"\x01\x00\x00\x00\x08\x00\x00\x00")
    content[packet + 12] = 1
    file = tmp_path / "a.aedat"
    file.write_bytes(content)
    assert dvs_gesture.read_aedat3(file)["t"].tolist() == (random_events(10)["t"] + 2**31).tolist()


@pytest.mark.parametrize("keep", [20, 50, 1000])
def test_ibm_recording_cut_short_is_named(keep: int, tmp_path: Path) -> None:
    counts = write_ibm_gesture(tmp_path)
    os.truncate(tmp_path / "DVSGesture" / "DvsGesture" / "user02_led.aedat", keep)
    with pytest.raises(DataError, match=r"user02_led\.aedat cannot be read"):
        load("dvs-gesture", tmp_path, **counts)


@pytest.mark.parametrize(
    "content",
    [b"class,start,end\n12,1,2\n", b"class,start,end\nwave,1,2\n", b"class\n1\n", b"", b"class,start,end\n\n", b"\xff\n1,2,3"],
)  # fmt: skip
def test_gesture_label_file_that_makes_no_sense_is_named(content: bytes, tmp_path: Path) -> None:
    counts = write_ibm_gesture(tmp_path)
    (tmp_path / "DVSGesture" / "DvsGesture" / "user01_led_labels.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"user01_led_labels\.csv cannot be read"):
        load("dvs-gesture", tmp_path, **counts)
    train, *_ = data.source_type("dvs-gesture")(**counts).verify(tmp_path, no_progress)
    assert not train.ok
    assert "user01_led_labels.csv cannot be read" in train.text


def test_gesture_list_of_recordings_that_is_no_text_is_named(tmp_path: Path) -> None:
    counts = write_ibm_gesture(tmp_path)
    (tmp_path / "DVSGesture" / "DvsGesture" / "trials_to_test.txt").write_bytes(b"\xff\xfe\0")
    with pytest.raises(DataError, match=r"trials_to_test\.txt cannot be read"):
        load("dvs-gesture", tmp_path, **counts)


def test_gesture_recording_that_is_listed_but_missing_is_named(tmp_path: Path) -> None:
    counts = write_ibm_gesture(tmp_path)
    (tmp_path / "DVSGesture" / "DvsGesture" / "user24_led.aedat").unlink()
    with pytest.raises(DataError, match=r"looked for .*user24_led\.aedat"):
        load("dvs-gesture", tmp_path, **counts)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", None])
def test_unreadable_tonic_sample_is_named(content: bytes | None, tmp_path: Path) -> None:
    counts = write_tonic_gesture(tmp_path)
    file = tmp_path / "DVSGesture" / "ibmGestureTrain" / "user01_led" / "3.npy"
    if content is None:
        np.save(file, np.zeros((7, 3)))
    else:
        file.write_bytes(content)
    with pytest.raises(DataError, match=r"user01_led/3\.npy cannot be read"):
        load("dvs-gesture", tmp_path, split="tonic-1077-264", **counts)


# The cache --------------------------------------------------------------------------------------


def cached(data_dir: Path) -> dict[str, int]:
    """Every file of the caches, with its time of change."""
    return {str(file): file.stat().st_mtime_ns for file in data_dir.rglob("frames/**/*") if file.is_file()}


def test_frames_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = write_dvs_cifar10(tmp_path, events=50)
    load("dvs-cifar10", tmp_path, **counts)
    first = cached(tmp_path)
    assert len(first) == 30

    def unexpected(file: Path) -> list[np.ndarray]:
        raise AssertionError("read again")

    monkeypatch.setattr(dvs_cifar10, "read", unexpected)
    bundle = load("dvs-cifar10", tmp_path, **counts)
    assert bundle.train[0][0].shape == (T, 2, 48, 48)
    assert cached(tmp_path) == first


def test_limit_converts_only_what_will_be_shown(tmp_path: Path) -> None:
    counts = write_dvs_cifar10(tmp_path, events=50)
    bundle = load("dvs-cifar10", tmp_path, limit=2, **counts)
    assert len(cached(tmp_path)) == 4
    assert bundle.train[7][0].shape == (T, 2, 48, 48)  # made when asked for
    assert len(cached(tmp_path)) == 5


def test_everything_that_changes_frames_changes_the_cache(tmp_path: Path) -> None:
    counts = write_dvs_cifar10(tmp_path, numbers=(0, 900), events=50)
    known: set[str] = set()
    for change in (
        {},
        {"timesteps": 5},
        {"image_size": 32},
        {"resize": "mean-count"},
    ):
        load("dvs-cifar10", tmp_path, **counts, **change)
        assert len(set(cached(tmp_path)) - known) == 20
        known = set(cached(tmp_path))
    changed = tmp_path / "CIFAR10DVS" / "cat" / "cifar10_cat_0.aedat4"
    changed.write_bytes(aedat4(random_events(51)))
    bundle = load("dvs-cifar10", tmp_path, **counts)
    assert len(set(cached(tmp_path)) - known) == 1
    expected = Framing(T, 128, 48, "published").frames(random_events(51))
    assert torch.equal(bundle.train[3][0], torch.from_numpy(expected.copy()))


def test_frames_are_the_same_from_two_processes_and_progress_is_told(tmp_path: Path) -> None:
    counts = write_dvs_cifar10(tmp_path, events=50)
    steps: list[tuple[str, int, int | None]] = []
    options = data.source_type("dvs-cifar10")(workers=2, **counts)
    place = DataPlace(tmp_path, T, lambda *progress: steps.append(progress))
    parallel = [data.load(options, place).train[i][0] for i in range(20)]
    assert steps[19] == ("dvs-cifar10: events to frames", 20, 20)
    for file in cached(tmp_path):
        Path(file).unlink()
    alone = load("dvs-cifar10", tmp_path, **counts)
    assert all(torch.equal(alone.train[i][0], x) for i, x in enumerate(parallel))


def test_fault_in_another_process_is_the_same_plain_error(tmp_path: Path) -> None:
    counts = write_dvs_cifar10(tmp_path, events=50)
    (tmp_path / "CIFAR10DVS" / "deer" / "cifar10_deer_1.aedat4").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"^data set 'dvs-cifar10': .*cifar10_deer_1\.aedat4 cannot be read"):
        load("dvs-cifar10", tmp_path, workers=2, **counts)


KILLED_WHILE_SAVING = """
import os, sys
from pathlib import Path
import numpy as np
from sltt_bench.data import events

def die(file):
    os._exit(9)

os.fsync = die
cache = events.FrameCache("test", Path(sys.argv[1]), events.Framing(2, 8, 8, "mean-count"))
sample = np.ones(100, dtype=events.EVENT)
cache.make(events.Recording(Path("one"), (0,), lambda: [sample], "key"))
"""


def test_a_killed_conversion_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED_WHILE_SAVING, str(tmp_path)], check=False)
    assert killed.returncode == 9
    left = [file.name for file in tmp_path.rglob("*") if file.is_file()]
    assert len(left) == 1
    assert left[0].endswith(".tmp")
    cache = FrameCache("test", tmp_path, Framing(2, 8, 8, "mean-count"))
    sample = np.ones(100, dtype=EVENT)
    recording = Recording(Path("one"), (0,), lambda: [sample], "key")
    assert int(cache.frames(recording).sum()) == 100


def test_a_cache_that_is_filled_loses_what_a_killed_conversion_left_and_nothing_of_a_living_one(
    tmp_path: Path,
) -> None:
    subprocess.run([sys.executable, "-c", KILLED_WHILE_SAVING, str(tmp_path)], check=False)
    cache = FrameCache("test", tmp_path, Framing(2, 8, 8, "mean-count"))
    (left,) = cache.folder.iterdir()
    with atomic_file(cache.folder / "another.npy") as file:
        cache.fill([], 0)
        assert not left.exists()
        file.write(b"frames")
    assert [path.name for path in cache.folder.iterdir()] == ["another.npy"]


def test_a_file_taken_for_abandoned_before_it_was_held_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = abandoned._lock

    def late(file: Any) -> None:
        if swept:
            remove_unfinished(tmp_path)
            swept.clear()
        lock(file)

    swept = [True]
    monkeypatch.setattr(abandoned, "_lock", late)
    with atomic_file(tmp_path / "frames.npy") as file:
        file.write(b"frames")
    assert not swept
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"frames"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows renames no open file")
def test_a_file_is_held_until_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two cells that fill one cache, one begins while the other ends."""
    rename = Path.replace

    def late(path: Path, target: Path) -> Path:
        remove_unfinished(tmp_path)
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", late)
    with atomic_file(tmp_path / "frames.npy") as file:
        file.write(b"frames")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"frames"]


def test_what_another_machine_writes_is_not_taken_for_abandoned_where_locks_are_not_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Lustre with `localflock`: a lock of another machine is not seen."""
    monkeypatch.setattr(abandoned, "_lock", lambda file: None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with atomic_file(tmp_path / "frames.npy") as file, abandoned.own_temporary_folder():
        own = Path(tempfile.gettempdir())
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        monkeypatch.setattr(abandoned, "_PREFIX", "sltt-bench-another-")
        monkeypatch.setattr(atomic_files, "MACHINE", "another")
        remove_unfinished(tmp_path)
        abandoned.remove_abandoned_folders()
        file.write(b"frames")
        assert own.is_dir()
    assert (tmp_path / "frames.npy").read_bytes() == b"frames"


def test_two_machines_that_write_one_file_at_once_each_write_a_whole_one(tmp_path: Path) -> None:
    """Their processes may have the same number, as two threads of this one have."""
    file = tmp_path / "frames.npy"
    with ExitStack() as first:
        first.enter_context(atomic_file(file)).write(b"all frames")
        with atomic_file(file) as second:
            first.close()
            assert file.read_bytes() == b"all frames"
            second.write(b"all frames")
    assert file.read_bytes() == b"all frames"
    assert list(tmp_path.iterdir()) == [file]


def test_unwritable_cache_folder_is_named(tmp_path: Path) -> None:
    counts = write_dvs_cifar10(tmp_path, events=50)
    (tmp_path / "CIFAR10DVS" / "frames").write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"cannot keep frames in .*CIFAR10DVS/frames/T4-48px.*--data-dir"):
        load("dvs-cifar10", tmp_path, **counts)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_cache_folder_is_named(tmp_path: Path) -> None:
    counts = write_dvs_cifar10(tmp_path, events=50)
    (tmp_path / "CIFAR10DVS").chmod(0o500)
    with pytest.raises(DataError, match=r"cannot keep frames in .*Permission denied"):
        load("dvs-cifar10", tmp_path, **counts)


def test_damaged_cache_file_is_named(tmp_path: Path) -> None:
    counts = write_dvs_cifar10(tmp_path, events=50)
    bundle = load("dvs-cifar10", tmp_path, **counts)
    file = next(Path(file) for file in cached(tmp_path) if "airplane_0" in file)
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(DataError, match=rf"cached frames {file} cannot be read: .*delete the file"):
        bundle.train[0]


def test_file_key_changes_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"one")
    first = file_key(file)
    assert json.loads(first)[-2:] == [3, file.stat().st_mtime_ns]
    file.write_bytes(b"other")
    assert file_key(file) != first
    assert file_key(file, (1, 2)) != file_key(file, (1, 3))


# The simulated camera ---------------------------------------------------------------------------


def edge() -> np.ndarray:
    image = np.zeros((8, 8))
    image[:, 4:] = 1
    return image


def simulate(path: np.ndarray, size: int = 8, threshold: float = 0.25) -> np.ndarray:
    (events,) = digits_saccade.simulate(edge()[None], path, size, threshold)
    return events


def test_a_pixel_sends_one_event_for_each_threshold_that_the_logarithm_crosses() -> None:
    path = np.array([[0.0, 0.0], [0.5, 0.0]])
    events = simulate(path)
    # Half a pixel to the right, column 3 goes from 0 to 1/2.
    expected = int(np.log((digits_saccade.DARK + 0.5) / digits_saccade.DARK) / 0.25)
    assert set(events["x"][events["p"]].tolist()) == {3}
    assert np.bincount(events["y"][events["x"] == 3]).tolist() == [expected] * 8
    # The right border becomes dark: what lies beyond the digit is.
    assert set(events["x"][~events["p"]].tolist()) == {7}


def test_events_come_when_the_linear_interpolation_crosses_the_level() -> None:
    path = np.array([[0.0, 0.0], [0.0, 0.0], [0.5, 0.0]])
    events = simulate(path)
    times = events["t"][(events["x"] == 3) & (events["y"] == 0)]
    rise = np.log((digits_saccade.DARK + 0.5) / digits_saccade.DARK)
    levels = 0.25 * np.arange(1, len(times) + 1)
    expected = digits_saccade.STEP_US * (1 + levels / rise)
    np.testing.assert_allclose(times, expected, atol=1)


def test_going_back_sends_the_opposite_events() -> None:
    there = np.array([[0.0, 0.0], [0.5, 0.0]])
    there_and_back = np.array([[0.0, 0.0], [0.5, 0.0], [0.0, 0.0]])
    first, both = simulate(there), simulate(there_and_back)
    # A level is crossed again only once the difference to the last level is a whole threshold.
    assert 0 < len(both) - len(first) <= len(first)
    later = both[both["t"] >= digits_saccade.STEP_US]
    assert set(later["p"][later["x"] == 3].tolist()) == {False}


def test_a_still_gaze_or_a_uniform_image_sends_nothing() -> None:
    assert len(simulate(np.zeros((5, 2)))) == 0
    grey = np.ones((1, 8, 8))
    (inside,) = digits_saccade.simulate(grey, digits_saccade.gaze(1.0), 8, 0.25)
    assert not ((inside["x"] > 1) & (inside["x"] < 6) & (inside["y"] > 1) & (inside["y"] < 6)).any()


def test_digits_do_not_depend_on_what_is_simulated_beside_them() -> None:
    images = np.random.default_rng(0).random((3, 8, 8))
    path = digits_saccade.gaze(1.0)
    together = digits_saccade.simulate(images, path, 16, 0.25)
    for image, events in zip(images, together, strict=True):
        (alone,) = digits_saccade.simulate(image[None], path, 16, 0.25)
        assert (alone == events).all()
        assert (np.diff(events["t"]) >= 0).all()


def test_the_gaze_makes_three_saccades_of_equal_length_around_the_centre() -> None:
    path = digits_saccade.gaze(1.0)
    assert path.shape == (61, 2)
    np.testing.assert_allclose(path[0], path[-1])
    corners = path[[0, 20, 40, 60]]
    np.testing.assert_allclose(np.linalg.norm(np.diff(corners, axis=0), axis=1), 1, atol=0.01)
    np.testing.assert_allclose(corners[:3].mean(0), 0, atol=0.01)


@pytest.fixture(scope="module")
def saccades(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DataBundle]:
    data_dir = tmp_path_factory.mktemp("saccades")
    return data_dir, load("digits-saccade", data_dir, timesteps=6, image_size=8)


def test_digits_saccade_has_the_split_of_digits_and_frames_of_equal_count(
    saccades: tuple[Path, DataBundle],
) -> None:
    _, bundle = saccades
    digits = load("digits", Path("nowhere"))
    for split in ("train", "test"):
        assert torch.equal(getattr(bundle, split).tensors[1], getattr(digits, split).tensors[1])
    x, _ = bundle.train[0]
    assert (x.shape, x.dtype) == ((6, 2, 8, 8), torch.int16)
    per_slice = x.sum((1, 2, 3))
    assert per_slice[:5].unique().numel() == 1
    assert 0 <= int(per_slice[5] - per_slice[0]) < 6
    assert 3000 < len(next(iter(DigitsSaccade().recording("train").read()))) < 8000


def test_digits_saccade_is_deterministic_and_cached(saccades: tuple[Path, DataBundle]) -> None:
    data_dir, bundle = saccades
    before = cached(data_dir)
    assert len(before) == 2
    again = load("digits-saccade", data_dir, timesteps=6, image_size=8)
    assert torch.equal(bundle.test.tensors[0], again.test.tensors[0])
    assert cached(data_dir) == before
    sample = DigitsSaccade(image_size=8).recording("test").read()
    events = next(iter(sample))
    assert torch.equal(bundle.test[0][0], torch.from_numpy(count_frames(events, 6, 8)))


def test_other_cameras_have_other_caches() -> None:
    base = DigitsSaccade().recording("train").key
    for change in ({"threshold": 0.3}, {"amplitude": 2.0}, {"image_size": 16}):
        assert DigitsSaccade(**change).recording("train").key != base
    assert DigitsSaccade().recording("test").key != base


@pytest.mark.parametrize("camera", [{"threshold": 1.9}, {"amplitude": 1e-3}])
def test_a_digit_without_an_event_is_answered_with_the_camera(camera: dict[str, float]) -> None:
    recording = DigitsSaccade.model_validate(camera).recording("train")
    with pytest.raises(DataError, match=r"sends no event at data\.threshold .* lower the threshold"):
        list(recording.read())


def test_aedat_helpers_write_what_the_readers_read(tmp_path: Path) -> None:
    events = random_events(1500)
    read: Callable[[Path], np.ndarray]
    for encode, suffix, read in (
        (aedat2, ".aedat", lambda file: dvs_cifar10.read(file)[0]),
        (aedat4, ".aedat4", lambda file: dvs_cifar10.read(file)[0]),
        (partial(aedat3, per_packet=100), ".aedat", dvs_gesture.read_aedat3),
    ):
        file = tmp_path / f"a_0{suffix}"
        file.write_bytes(encode(events))
        assert (read(file) == events).all()


def test_pillow_reads_two_channels_as_luminance_and_alpha() -> None:
    assert Image.fromarray(np.zeros((4, 4, 2), dtype=np.uint8)).mode == "LA"
