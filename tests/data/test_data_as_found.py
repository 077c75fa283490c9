"""Data as people have them: each oddity gives the right tensor, or an error that names the file."""

import io
import os
import pickle
import shutil
import tarfile
import time
import zipfile
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import (
    aedat2,
    aedat3,
    random_events,
    write_dvs_cifar10,
    write_ibm_gesture,
    write_image_folder,
    write_n_caltech101,
    write_tonic_gesture,
)
from PIL import Image
from typer.testing import CliRunner

from sltt_bench import data
from sltt_bench.command_line.cli import app
from sltt_bench.data import DataBundle, DataError, DataPlace, dvs_gesture
from sltt_bench.data.download import all_or_nothing, unpack
from sltt_bench.data.events import (
    EVENT,
    FrameCache,
    Framing,
    Recording,
    UnreadableEvents,
    as_events,
    count_frames,
)
from sltt_bench.data.images import read_image
from sltt_bench.data.source import no_progress


def load(name: str, data_dir: Path, timesteps: int = 4, **options: Any) -> DataBundle:
    source = data.source_type(name)(**options).on_disk(data_dir)
    return data.load(source, DataPlace(data_dir, timesteps))


# Folders of images ------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """data_dir/images with the classes ant and bee."""
    write_image_folder(tmp_path)
    return tmp_path / "images"


def pictures(data_dir: Path, split: str = "test") -> list[tuple[list[int], int]]:
    """(colour of the middle pixel, label) of every image of a split."""
    samples = getattr(load("image-folder", data_dir, image_size=16), split)
    return [(x[:, 8, 8].tolist(), label) for x, label in (samples[i] for i in range(len(samples)))]


def test_classes_and_counts_are_found_and_images_are_labelled_by_the_order_of_names(images: Path) -> None:
    source = data.source_type("image-folder")().on_disk(images.parent)
    assert (source.classes, source.train_samples, source.test_samples) == (2, 4, 2)
    assert pictures(images.parent) == [([2] * 3, 0), ([12] * 3, 1)]
    assert [label for _, label in pictures(images.parent, "train")] == [0, 0, 1, 1]


def test_hidden_files_and_folders_are_neither_images_nor_classes(images: Path) -> None:
    before = pictures(images.parent)
    (images / "val" / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (images / "val" / "ant" / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (images / "val" / "ant" / "._2.png").write_bytes(b"\0\5\x16\7")
    (images / "val" / "ant" / "Thumbs.db").write_bytes(b"\xd0\xcf")
    (images / "val" / "__MACOSX" / "ant").mkdir(parents=True)
    (images / "train" / ".ipynb_checkpoints").mkdir()
    assert pictures(images.parent) == before


def test_suffixes_in_capitals_and_images_in_folders_of_a_class_are_found(images: Path) -> None:
    below = images / "val" / "ant" / "more"
    below.mkdir()
    Image.new("RGB", (20, 16), (7, 7, 7)).save(below / "A.JPEG", quality=100)
    (below / "A.JPEG").rename(below / "A.JPG")
    assert pictures(images.parent) == [([2] * 3, 0), ([7] * 3, 0), ([12] * 3, 1)]


def test_a_class_folder_may_be_a_link_and_a_link_to_above_is_not_followed_for_ever(images: Path) -> None:
    moved = images.parent / "elsewhere"
    shutil.move(images / "val" / "bee", moved)
    (images / "val" / "bee").symlink_to(moved)
    (moved / "again").symlink_to(images / "val" / "bee")
    assert pictures(images.parent) == [([2] * 3, 0), ([12] * 3, 1)]
    (images / "val" / "bee").unlink()
    (images / "val" / "bee").symlink_to(images.parent / "gone")
    with pytest.raises(DataError, match=r"val/bee cannot be read: it is a link that leads nowhere"):
        pictures(images.parent)


def test_a_class_without_images_or_in_one_split_alone_is_named(images: Path) -> None:
    (images / "val" / "cow").mkdir()
    with pytest.raises(
        DataError, match=r"images/train cannot be read: it has no class cow, .*images/val has; add it or"
    ):
        pictures(images.parent)
    (images / "train" / "cow").mkdir()
    (images / "train" / "cow" / "notes.txt").write_text("no image")
    with pytest.raises(
        DataError, match=r"images/train/cow cannot be read: it holds no image .*; put images into it or"
    ):
        pictures(images.parent)


def colour_of(tmp_path: Path, image: Image.Image, suffix: str = ".png", **options: Any) -> list[int]:
    file = tmp_path / f"picture{suffix}"
    image.save(file, **options)
    read = read_image("image-folder", str(file))
    assert read.mode == "RGB"
    return list(read.getpixel((0, 0)))


def test_every_kind_of_pixel_becomes_rgb(tmp_path: Path) -> None:
    red = Image.new("RGB", (8, 8), (200, 30, 30))
    palette = red.quantize(4)
    palette.info["transparency"] = bytes([0, 255])
    deep = Image.fromarray(np.full((8, 8), 130 * 256 + 5, np.uint16))
    assert colour_of(tmp_path, red.convert("P", palette=Image.Palette.ADAPTIVE)) == [200, 30, 30]
    assert colour_of(tmp_path, palette)[0] >= 190
    assert colour_of(tmp_path, Image.new("L", (8, 8), 77)) == [77] * 3
    assert colour_of(tmp_path, Image.new("LA", (8, 8), (77, 0))) == [77] * 3
    assert colour_of(tmp_path, Image.new("RGBA", (8, 8), (1, 2, 3, 0))) == [1, 2, 3]
    assert colour_of(tmp_path, Image.new("1", (8, 8), 1)) == [255] * 3
    assert colour_of(tmp_path, deep) == [130] * 3
    assert colour_of(tmp_path, deep, ".tif") == [130] * 3
    cmyk = colour_of(tmp_path, red.convert("CMYK"), ".jpg", quality=95)
    assert np.abs(np.array(cmyk) - [200, 30, 30]).max() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_says(orientation: int, tmp_path: Path) -> None:
    """The corner that was up and left when the picture was taken comes back there, whatever is stored."""
    upright = Image.new("RGB", (16, 8))
    upright.paste((250, 250, 250), (0, 0, 4, 4))
    turns = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90",
             7: "TRANSVERSE", 8: "ROTATE_270"}  # fmt: skip
    turn = turns.get(orientation)
    stored = upright if turn is None else upright.transpose(Image.Transpose[turn])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    read = read_image("image-folder", str(tmp_path / "turned.jpg"))
    assert read.size == (16, 8)
    assert np.abs(np.asarray(read).astype(int) - np.asarray(upright)).mean() < 3


@pytest.mark.parametrize(
    ("suffix", "content", "reason"),
    [
        (".png", b"", "cannot identify"),
        (".jpg", b"\xff\xd8\xff\xe0 not much more", ""),
        (".png", b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR" + bytes(8), ""),
        (".tif", None, "floating-point"),
    ],
)
def test_what_is_no_image_is_named(suffix: str, content: bytes | None, reason: str, tmp_path: Path) -> None:
    file = tmp_path / f"broken{suffix}"
    if content is None:
        Image.fromarray(np.zeros((8, 8), np.float32)).save(file)
    else:
        file.write_bytes(content)
    with pytest.raises(DataError, match=rf"broken\{suffix} cannot be read: .*{reason}"):
        read_image("image-folder", str(file))


def test_a_picture_too_large_to_be_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (40, 40)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"bomb\.png cannot be read: .*decompression bomb"):
        read_image("image-folder", str(tmp_path / "bomb.png"))


# Events -----------------------------------------------------------------------------------------


RECORDINGS: dict[str, tuple[Callable[[Path], dict[str, int]], str, dict[str, str]]] = {
    "dvs-cifar10": (write_dvs_cifar10, "CIFAR10DVS/dog/cifar10_dog_1.aedat4", {}),
    "dvs-gesture": (
        write_tonic_gesture, "DVSGesture/ibmGestureTrain/user01_led/3.npy", {"split": "tonic-1077-264"},
    ),
    "n-caltech101": (write_n_caltech101, "Caltech101/class003/image_0003.bin", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDINGS)
def test_hidden_files_are_no_recordings(name: str, tmp_path: Path) -> None:
    write, path, options = RECORDINGS[name]
    counts = write(tmp_path)
    labels = data.source_type(name)(**counts, **options).labels(tmp_path, "train")
    file = tmp_path / path
    file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7")
    assert data.source_type(name)(**counts, **options).labels(tmp_path, "train") == labels


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_recording_that_is_a_link_to_nowhere_is_named(name: str, tmp_path: Path) -> None:
    write, path, options = RECORDINGS[name]
    counts = write(tmp_path)
    file = tmp_path / path
    file.unlink()
    file.symlink_to(tmp_path / "gone")
    with pytest.raises(
        DataError, match=rf"{file} cannot be read: it is no file, or a link that leads nowhere"
    ):
        load(name, tmp_path, **counts, **options)
    train, *_ = data.source_type(name)(**counts, **options).verify(tmp_path, no_progress)
    assert not train.ok
    assert str(file) in train.text


def test_a_recording_without_events_is_named(tmp_path: Path) -> None:
    counts = write_dvs_cifar10(tmp_path, suffix=".aedat", events=50)
    file = tmp_path / "CIFAR10DVS" / "dog" / "cifar10_dog_1.aedat"
    file.write_bytes(aedat2(random_events(0)))
    with pytest.raises(DataError, match=r"cifar10_dog_1\.aedat cannot be read: it holds no events"):
        load("dvs-cifar10", tmp_path, **counts)


def test_a_sample_without_events_is_named_with_its_number(tmp_path: Path) -> None:
    counts = write_ibm_gesture(tmp_path)
    labels = tmp_path / "DVSGesture" / "DvsGesture" / "user01_led_labels.csv"
    rows = labels.read_text().splitlines()
    rows[4] = "4,1,2"
    labels.write_text("\n".join(rows))
    with pytest.raises(
        DataError, match=r"user01_led\.aedat cannot be read: sample 4 of 11: it holds no events"
    ):
        load("dvs-gesture", tmp_path, **counts)


def test_a_clock_that_wraps_or_steps_back_does_not_change_slices_of_equal_count() -> None:
    events = random_events(1000)
    wrapped, late = events.copy(), events.copy()
    wrapped["t"] = (wrapped["t"] + 2**32 - 500_000) % 2**32
    late["t"][300:310] -= 20_000
    assert wrapped["t"].argmin() > 0
    for odd in (wrapped, late):
        np.testing.assert_array_equal(count_frames(odd, 5, 128), count_frames(events, 5, 128))


def test_samples_cannot_be_cut_by_a_clock_that_was_reset(tmp_path: Path) -> None:
    counts = write_ibm_gesture(tmp_path)
    file = tmp_path / "DVSGesture" / "DvsGesture" / "user02_led.aedat"
    first, second = random_events(60, start=90_000_000), random_events(60, start=80_000_000)
    file.write_bytes(aedat3(np.concatenate([first, second])))
    with pytest.raises(
        DataError, match=r"user02_led\.aedat cannot be read: its clock runs back by .* event 60"
    ):
        load("dvs-gesture", tmp_path, **counts)
    late = np.sort(random_events(60), order="t")
    late["t"][30] -= 1000
    file.write_bytes(aedat3(late))
    assert len(dvs_gesture.read_ibm(file, ((0, 10_000_000),))[0]) == 60


@pytest.mark.parametrize("place", [128, -1, 40_000])
def test_events_outside_the_sensor_are_named(place: int, tmp_path: Path) -> None:
    counts = write_tonic_gesture(tmp_path)
    file = tmp_path / "DVSGesture" / "ibmGestureTrain" / "user01_led" / "3.npy"
    columns = np.load(file)
    columns[7, 0] = place
    np.save(file, columns)
    with pytest.raises(DataError, match=r"user01_led/3\.npy cannot be read: it has events outside the"):
        load("dvs-gesture", tmp_path, split="tonic-1077-264", **counts)


@pytest.mark.parametrize("place", [65_541, 3.7, -0.4, np.nan, np.inf])
@pytest.mark.parametrize("axis", ["x", "y"])
def test_a_place_that_is_no_pixel_is_named_and_not_rounded_or_wrapped_to_one(axis: str, place: float) -> None:
    columns = {name: np.array([3, 4, 5]) for name in "txyp"} | {axis: np.array([3, place, 5])}
    with pytest.raises(UnreadableEvents, match=rf"outside the pixels of a camera: {axis} = {place}"):
        as_events(**columns)


@pytest.mark.parametrize("polarity", [-1, 2])
def test_polarities_of_another_convention_are_named_and_not_taken_for_brighter(
    polarity: int, tmp_path: Path
) -> None:
    counts = write_tonic_gesture(tmp_path)
    file = tmp_path / "DVSGesture" / "ibmGestureTrain" / "user01_led" / "3.npy"
    columns = np.load(file)
    columns[columns[:, 2] == 0, 2] = polarity
    np.save(file, columns)
    with pytest.raises(
        DataError, match=r"3\.npy cannot be read: its polarities are .*; they must be 0 and 1"
    ):
        load("dvs-gesture", tmp_path, split="tonic-1077-264", **counts)


def test_events_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    counts = write_tonic_gesture(tmp_path)
    file = tmp_path / "DVSGesture" / "ibmGestureTrain" / "user01_led" / "3.npy"
    columns = np.load(file).astype(float)
    columns[7, 3] = np.nan
    np.save(file, columns)
    with pytest.raises(DataError, match=r"user01_led/3\.npy cannot be read: .* finite numbers"):
        load("dvs-gesture", tmp_path, split="tonic-1077-264", **counts)


class Poison:
    """Makes a file when it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.made),)


def cache_with_a_file(tmp_path: Path) -> tuple[FrameCache, Recording, Path]:
    cache = FrameCache("test", tmp_path, Framing(2, 8, 8, "mean-count"))
    events = random_events(20)
    events["x"], events["y"] = 3, 4
    recording = Recording(Path("one"), (0,), lambda: [events], "key")
    assert cache.frames(recording).sum() == 20
    return cache, recording, cache.path(recording)


def test_a_poisoned_frame_cache_is_never_unpickled(tmp_path: Path) -> None:
    cache, recording, file = cache_with_a_file(tmp_path)
    made = tmp_path / "made-by-a-pickle"
    for poisoned in (
        lambda: np.save(file, np.array([Poison(made)], dtype=object), allow_pickle=True),
        lambda: file.write_bytes(pickle.dumps(Poison(made))),
    ):
        poisoned()
        with pytest.raises(DataError, match=rf"cached frames {file} cannot be read: .*delete the file"):
            cache.frames(recording)
    assert not made.exists()


def test_of_cached_frames_no_bit_can_change_unnoticed(tmp_path: Path) -> None:
    _, recording, file = cache_with_a_file(tmp_path)
    content, framing = file.read_bytes(), Framing(2, 8, 8, "mean-count")

    def read() -> list[tuple[str, bytes]] | str:
        cache = FrameCache("test", tmp_path, framing)
        try:
            each = [cache.frames(recording), cache.sample((recording, 0)).numpy()]
        except DataError as error:
            return str(error).rpartition("; ")[2]
        return [(frames.dtype.str, frames.tobytes()) for frames in each]

    whole = read()
    for place in range(len(content)):
        for bit in (0, 5, 7):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            file.write_bytes(damaged)
            assert read() in (whole, "delete the file"), (place, bit)
    for length in range(len(content)):
        file.write_bytes(content[:length].ljust(len(content), b"\0"))
        with pytest.raises(DataError, match="delete the file"):
            FrameCache("test", tmp_path, framing).frames(recording)


def without_end_of_header(file: Path) -> None:
    """A .npy or .npz in whose headers the shape is never closed: NumPy reads them as Python."""
    content = file.read_bytes()
    assert content.count(b"), }") == content.count(b"'shape': (")
    file.write_bytes(content.replace(b"), }", b",   "))


def test_an_array_of_a_shape_that_no_memory_holds_is_named(tmp_path: Path) -> None:
    file = tmp_path / "0.npy"
    np.save(file, np.zeros((10, 4)))
    file.write_bytes(file.read_bytes().replace(b"(10, 4), }" + b" " * 19, b"(%d, 4), }" % 10**20, 1))
    with pytest.raises(UnreadableEvents, match="not a whole NumPy file"):
        dvs_gesture.read_tonic(file)


def test_arrays_whose_header_is_no_python_are_named(tmp_path: Path) -> None:
    file = tmp_path / "frames.npy"
    cache = FrameCache("test", tmp_path, Framing(2, 8, 8, "mean-count"))
    recording = Recording(Path("one"), (0,), lambda: [np.ones(100, dtype=EVENT)], "key")
    cache.make(recording)
    without_end_of_header(cache.path(recording))
    with pytest.raises(DataError, match=rf"cached frames {cache.path(recording)} cannot be read: .*EOF"):
        cache.frames(recording)
    np.save(file, np.zeros((4, 4)))
    without_end_of_header(file)
    with pytest.raises(UnreadableEvents, match=r"not a whole NumPy file .*EOF"):
        dvs_gesture.read_tonic(file)
    with zipfile.ZipFile(tmp_path / "arrays.npz", "w") as archive:
        archive.write(file, "x_train.npy")
    with pytest.raises(DataError, match=r"arrays\.npz cannot be read: x_train: .*EOF"):
        data.source_type("arrays")().on_disk(tmp_path)


@pytest.mark.parametrize(
    "frames", [np.zeros((2, 2, 2, 8, 8)), np.zeros((1, 3, 2, 8, 8)), np.full((1, 2, 2, 8, 8), "x")]
)
def test_a_frame_cache_of_another_shape_is_named(frames: np.ndarray, tmp_path: Path) -> None:
    cache, recording, file = cache_with_a_file(tmp_path)
    np.save(file, frames)
    with pytest.raises(DataError, match=rf"cached frames {file} are .*delete the file"):
        cache.frames(recording)


# Archives and preparing -------------------------------------------------------------------------


def tar_with(archive: Path, name: str, **fields: Any) -> None:
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo(name)
        for field, value in fields.items():
            setattr(member, field, value)
        content = b"" if fields else b"content"
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))


def zip_with(archive: Path, name: str) -> None:
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr(zipfile.ZipInfo(name), b"content")


LINK = {"type": tarfile.SYMTYPE}
UNSAFE: dict[str, Callable[[Path], None]] = {
    "above.tar.gz": lambda archive: tar_with(archive, "../outside"),
    "absolute.tar.gz": lambda archive: tar_with(archive, "/outside"),
    "link-above.tar.gz": lambda archive: tar_with(archive, "link", linkname="../../outside", **LINK),
    "link-absolute.tar.gz": lambda archive: tar_with(archive, "link", linkname="/etc/passwd", **LINK),
    "device.tar.gz": lambda archive: tar_with(archive, "device", type=tarfile.CHRTYPE),
    "above.zip": lambda archive: zip_with(archive, "inner/../../outside"),
    "absolute.zip": lambda archive: zip_with(archive, "/outside"),
    "drive.zip": lambda archive: zip_with(archive, "C:/outside"),
}


@pytest.mark.parametrize("name", UNSAFE)
def test_an_archive_that_would_write_elsewhere_is_refused_and_leaves_nothing(
    name: str, tmp_path: Path
) -> None:
    archive, target = tmp_path / name, tmp_path / "place" / "data"
    target.parent.mkdir()
    UNSAFE[name](archive)
    with pytest.raises(DataError, match=rf"{name} is not unpacked: .*get the archive anew"):
        all_or_nothing(target, lambda staging: unpack(archive, staging, no_progress))
    assert not target.exists()
    assert list(tmp_path.rglob("*outside*")) == []


def test_what_is_unpacked_belongs_to_who_unpacks_and_can_be_read(tmp_path: Path) -> None:
    archive, target = tmp_path / "odd.tar", tmp_path / "data"
    with tarfile.open(archive, "w") as tar:
        for name, kind, mode in (("a", tarfile.DIRTYPE, 0o000), ("a/file", tarfile.REGTYPE, 0o4000)):
            member = tarfile.TarInfo(name)
            member.type, member.mode, member.uid, member.gid, member.uname = kind, mode, 4321, 4321, "daemon"
            tar.addfile(member)
    unpack(archive, target, no_progress)
    file = (target / "a" / "file").stat()
    assert (file.st_uid, file.st_gid) == (os.getuid(), os.getgid())
    assert (file.st_mode & 0o7777, (target / "a").stat().st_mode & 0o7777) == (0o644, 0o755)


def test_of_two_that_prepare_at_once_one_waits_and_finds_the_work_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = data.source_type("mnist")
    at_work, most_at_once, waited = 0, 0, []

    def prepare(self: Any, data_dir: Path, progress: Any) -> list[str]:
        nonlocal at_work, most_at_once
        at_work += 1
        most_at_once = max(most_at_once, at_work)
        while not waited and most_at_once == 1 and not (data_dir / "MNIST").exists():
            time.sleep(0.01)  # until the other one has said that it waits
        (data_dir / "MNIST" / "raw").mkdir(parents=True, exist_ok=True)
        for file in self.needed(data_dir):
            file.touch()
        at_work -= 1
        return ["done"]

    monkeypatch.setattr(source, "prepare", prepare)

    def run(_: int) -> list[str]:
        return data.prepare("mnist", tmp_path, lambda what, done, total: waited.append(what))

    with ThreadPool(2) as pool:
        assert pool.map(run, range(2)) == [["done"]] * 2
    assert most_at_once == 1
    assert waited == [f"waiting for another `data prepare` ({tmp_path / '.MNIST.lock'})"]


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, timeout: float | None = None) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(data.FileLock, "acquire", refuse)
    with pytest.raises(
        DataError, match=rf"{tmp_path}/\.MNIST\.lock: FileSystem .* flock; prepare the data on"
    ):
        data.prepare("mnist", tmp_path)


# On the command line ----------------------------------------------------------------------------


def test_what_a_folder_holds_stands_in_the_plan_and_missing_data_end_the_command(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "extends: mnist\ndata:\n  name: image-folder\n  folder: mine\n  image_size: 16\ntrain:\n  batch_size: 2\n"
    )
    arguments = ["run", str(recipe), "--data-dir", str(tmp_path / "data"), "--dry-run"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert f"looked for {tmp_path / 'data' / 'mine' / 'train'}" in result.output
    write_image_folder(tmp_path / "data", "mine")
    assert CliRunner().invoke(app, arguments).exit_code == 0
    synthetic = CliRunner().invoke(app, [*arguments, "--synthetic"])
    assert synthetic.exit_code == 2
    assert "must state data.num_classes, data.train_samples and data.test_samples" in synthetic.output
    stated = ["--set", "data.num_classes=2", "--set", "data.train_samples=4", "--set", "data.test_samples=2"]
    assert CliRunner().invoke(app, [*arguments, "--synthetic", *stated]).exit_code == 0
    outside = CliRunner().invoke(app, [*arguments, "--set", "data.folder=../x"])
    assert "must be a path below --data-dir" in outside.output
