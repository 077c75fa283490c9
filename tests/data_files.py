"""Writes small data sets in the real formats; each writer returns the expected sample counts."""

import os
import pickle
import struct
import wave
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sltt_bench.data.dvs_cifar10 import CLASSES as DVS_CIFAR10_CLASSES
from sltt_bench.data.events import EVENT
from sltt_bench.data.loading import Loader, make_loader
from sltt_bench.data.source import DataSource

Counts = dict[str, int]
IBM_START_US = 80_000_000


def loader_of(
    samples: Any, options: DataSource, *, batch_size: int = 8, shuffle: bool = False, seed: int = 0
) -> Loader:
    """Batches on the CPU, the last one as small as it comes."""
    return make_loader(
        samples,
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
        drop_last=False,
        options=options,
        device=torch.device("cpu"),
    )


def counts(train: int, test: int) -> Counts:
    return {"train_samples": train, "test_samples": test}


# Images -----------------------------------------------------------------------------------------


def write_mnist(data_dir: Path, folder: str = "MNIST", train: int = 40, test: int = 20) -> Counts:
    raw = data_dir / folder / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    for prefix, samples in (("train", train), ("t10k", test)):
        images = random.integers(256, size=(samples, 28, 28), dtype=np.uint8)
        labels = np.arange(samples, dtype=np.uint8) % 10
        header = struct.pack(">4i", 0x803, samples, 28, 28)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(
            struct.pack(">2i", 0x801, samples) + labels.tobytes()
        )
    return counts(train, test)


def cifar_batch(samples: int, classes: int, seed: int = 0) -> bytes:
    random = np.random.default_rng(seed)
    labels = [number % classes for number in range(samples)]
    data = random.integers(256, size=(samples, 3072), dtype=np.uint8)
    return pickle.dumps({"data": data, "labels": labels, "fine_labels": labels}, protocol=2)


def write_cifar10(data_dir: Path, per_batch: int = 10) -> Counts:
    folder = data_dir / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for number in range(1, 6):
        (folder / f"data_batch_{number}").write_bytes(cifar_batch(per_batch, 10, seed=number))
    (folder / "test_batch").write_bytes(cifar_batch(per_batch, 10))
    return counts(5 * per_batch, per_batch)


def write_cifar100(data_dir: Path, train: int = 200, test: int = 100) -> Counts:
    folder = data_dir / "cifar-100-python"
    folder.mkdir(parents=True)
    (folder / "train").write_bytes(cifar_batch(train, 100, seed=1))
    (folder / "test").write_bytes(cifar_batch(test, 100))
    return counts(train, test)


def write_imagenet(data_dir: Path, classes: int = 1000) -> Counts:
    """Writes one 40×48 JPEG for each class and split; the files are links to a few images."""
    originals = data_dir / "originals"
    originals.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(4):
        pixels = random.integers(256, size=(40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(originals / f"{number}.JPEG", quality=90)
    for split in ("train", "val"):
        for label in range(classes):
            folder = data_dir / "imagenet" / split / f"n{label:08d}"
            folder.mkdir(parents=True)
            os.link(originals / f"{label % 4}.JPEG", folder / f"{split}_{label}.JPEG")
    return counts(classes, classes)


def write_image_folder(
    data_dir: Path, folder: str = "images", classes: Iterable[str] = ("ant", "bee"), test: str = "val"
) -> None:
    """Writes three 20×16 PNGs for each class, two for training; a pixel's value is its image's number."""
    for label, class_name in enumerate(classes):
        for split, numbers in (("train", (0, 1)), (test, (2,))):
            place = data_dir / folder / split / class_name
            place.mkdir(parents=True)
            for number in numbers:
                Image.new("RGB", (20, 16), (10 * label + number,) * 3).save(place / f"{number}.png")


# Events -----------------------------------------------------------------------------------------


def random_events(samples: int, seed: int = 0, start: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    events = np.empty(samples, dtype=EVENT)
    events["t"] = start + np.sort(random.integers(1_000_000, size=samples))
    events["x"], events["y"] = random.integers(128, size=(2, samples))
    events["p"] = random.integers(2, size=samples)
    return events


def aedat2(events: np.ndarray) -> bytes:
    """Encodes events as CIFAR10-DVS was published: columns right to left, polarity inverted, big-endian."""
    columns = {name: events[name].astype(np.int64) for name in ("t", "x", "y", "p")}
    address = (127 - columns["x"]) << 1 | columns["y"] << 8 | (1 - columns["p"])
    pairs = np.stack([address, columns["t"]], axis=1).astype(">u4")
    return b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n" + pairs.tobytes()


def aedat3(events: np.ndarray, per_packet: int = 700) -> bytes:
    """Encodes events as IBM recorded DVS-Gesture, with a packet of another kind in between."""
    packets = [b"#!AER-DAT3.1\r\n#Format: RAW\r\n#!END-HEADER\r\n"]
    packets.append(struct.pack("<2H6I", 0, 0, 8, 4, 0, 1, 1, 1) + bytes(8))
    for first in range(0, len(events), per_packet):
        part = events[first : first + per_packet]
        address = part["x"].astype(np.int64) << 17 | part["y"].astype(np.int64) << 2
        address = address | part["p"].astype(np.int64) << 1 | 1
        packets.append(struct.pack("<2H6I", 1, 0, 8, 4, 0, len(part), len(part), len(part)))
        packets.append(np.stack([address, part["t"]], axis=1).astype("<u4").tobytes())
    return b"".join(packets)


def aedat4(events: np.ndarray, per_packet: int = 700) -> bytes:
    """Encodes events as tonic distributes CIFAR10-DVS: uncompressed FlatBuffers, written by hand."""
    xml = (
        b'<dv version="2.0"><node name="outInfo" path="/mainloop/Recorder/outInfo/">'
        b'<node name="0" path="/mainloop/Recorder/outInfo/0/">'
        b'<attr key="typeIdentifier" type="string">EVTS</attr>'
        b'<node name="info" path="/mainloop/Recorder/outInfo/0/info/">'
        b'<attr key="sizeX" type="int">128</attr><attr key="sizeY" type="int">128</attr>'
        b"</node></node></node></dv>"
    )
    header = _flatbuffer(b"IOHE", field=2, vector=xml + b"\0", length=len(xml))
    parts = [b"#!AER-DAT4.0\r\n", struct.pack("<I", len(header)), header]
    layout = np.dtype({"names": ["t", "x", "y", "p"], "formats": ["<i8", "<i2", "<i2", "?"], "itemsize": 16,
                       "offsets": [0, 8, 10, 12]})  # fmt: skip
    for first in range(0, len(events), per_packet):
        packed = events[first : first + per_packet].astype(layout)
        body = _flatbuffer(b"EVTS", field=0, vector=packed.tobytes(), length=len(packed))
        parts.append(struct.pack("<2I", 0, len(body) + 4) + struct.pack("<I", len(body)) + body)
    return b"".join(parts)


def _flatbuffer(identifier: bytes, field: int, vector: bytes, length: int) -> bytes:
    """Returns a FlatBuffers table whose only present field is a vector (or a string)."""
    vtable = struct.pack(f"<{3 + field}H", 2 * (3 + field), 8, *[0] * field, 4)
    table_at = 8 + len(vtable) + -(8 + len(vtable)) % 4
    vector_at = table_at + 8
    vector_at += -(vector_at) % 8
    buffer = bytearray(vector_at)
    struct.pack_into("<I4s", buffer, 0, table_at, identifier)
    buffer[8 : 8 + len(vtable)] = vtable
    struct.pack_into("<iI", buffer, table_at, table_at - 8, vector_at - (table_at + 4))
    # The length precedes the elements, which are aligned to 8 bytes, counted from the end of the size prefix.
    return bytes(buffer) + struct.pack("<I", length) + vector


def write_dvs_cifar10(
    data_dir: Path, numbers: Iterable[int] = (0, 1, 900), suffix: str = ".aedat4", events: int = 2000
) -> Counts:
    encode = aedat4 if suffix == ".aedat4" else aedat2
    numbers = list(numbers)
    for label, class_name in enumerate(DVS_CIFAR10_CLASSES):
        folder = data_dir / "CIFAR10DVS" / class_name
        folder.mkdir(parents=True)
        for number in numbers:
            content = encode(random_events(events, seed=1000 * label + number))
            (folder / f"cifar10_{class_name}_{number}{suffix}").write_bytes(content)
    train = sum(number < 900 for number in numbers)
    return counts(10 * train, 10 * (len(numbers) - train))


def write_tonic_gesture(data_dir: Path, users: int = 2, events: int = 2000) -> Counts:
    for split, first_user in (("ibmGestureTrain", 1), ("ibmGestureTest", 24)):
        for user in range(first_user, first_user + users):
            folder = data_dir / "DVSGesture" / split / f"user{user:02d}_led"
            folder.mkdir(parents=True)
            for label in range(11):
                sample = random_events(events, seed=100 * user + label)
                columns = [sample["x"], sample["y"], sample["p"], sample["t"] // 1000]
                np.save(folder / f"{label}.npy", np.stack(columns, axis=1).astype(np.int64))
    return counts(11 * users, 11 * users)


def write_ibm_gesture(data_dir: Path, users: int = 2, events: int = 500) -> Counts:
    """Writes recordings of the 11 gestures, each one second long, with half a second in between."""
    folder = data_dir / "DVSGesture" / "DvsGesture"
    folder.mkdir(parents=True)
    for split, first_user in (("train", 1), ("test", 24)):
        names = [f"user{user:02d}_led" for user in range(first_user, first_user + users)]
        (folder / f"trials_to_{split}.txt").write_text("".join(f"{name}.aedat\n" for name in names))
        for number, name in enumerate(names):
            starts = [IBM_START_US + 1_500_000 * label for label in range(11)]
            parts = [random_events(events, seed=100 * number + i, start=s) for i, s in enumerate(starts)]
            (folder / f"{name}.aedat").write_bytes(aedat3(np.concatenate(parts)))
            rows = [f"{label + 1},{start},{start + 1_000_000}" for label, start in enumerate(starts)]
            (folder / f"{name}_labels.csv").write_text(
                "class,startTime_usec,endTime_usec\n" + "\n".join(rows)
            )
    return counts(11 * users, 11 * users)


def atis(events: np.ndarray) -> bytes:
    """Encodes events as N-Caltech101 is distributed: 5 bytes an event, 23 bits of which are the time."""
    columns = {name: events[name].astype(np.int64) for name in ("t", "x", "y", "p")}
    high = columns["p"] << 7 | columns["t"] >> 16 & 0x7F
    parts = [columns["x"], columns["y"], high, columns["t"] >> 8 & 0xFF, columns["t"] & 0xFF]
    return np.stack(parts, axis=1).astype(np.uint8).tobytes()


def write_n_caltech101(data_dir: Path, each: int = 10, events: int = 60) -> Counts:
    for label in range(101):
        folder = data_dir / "Caltech101" / f"class{label:03d}"
        folder.mkdir(parents=True)
        for number in range(each):
            content = atis(random_events(events, seed=100 * label + number))
            (folder / f"image_{number + 1:04d}.bin").write_bytes(content)
    return counts(101 * (each - each // 10), 101 * (each // 10))


# Speech -----------------------------------------------------------------------------------------


def write_spiking_speech(data_dir: Path, name: str = "SHD", classes: int = 20) -> Counts:
    """Writes HDF5 files as published: times in half precision and units; their number differs by sample."""
    import h5py

    folder = data_dir / name
    folder.mkdir(parents=True)
    parts = {"train": 2 * classes, "test": classes} | ({"valid": classes} if name == "SSC" else {})
    for part, samples in parts.items():
        random = np.random.default_rng(len(part))
        with h5py.File(folder / f"{name.lower()}_{part}.h5", "w") as file:
            file["labels"] = np.arange(samples, dtype=np.uint16) % classes
            lengths = [30 + number for number in range(samples)]
            times = file.create_dataset("spikes/times", (samples,), dtype=h5py.vlen_dtype(np.float16))
            units = file.create_dataset("spikes/units", (samples,), dtype=h5py.vlen_dtype(np.uint16))
            for number, length in enumerate(lengths):
                times[number] = np.sort(random.random(length)).astype(np.float16)
                units[number] = random.integers(700, size=length)
    return counts(2 * classes, classes)


def write_wav(file: Path, samples: np.ndarray, rate: int = 16_000, channels: int = 1) -> None:
    with wave.open(str(file), "wb") as sound:
        sound.setnchannels(channels)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.writeframes(samples.astype("<i2").tobytes())


def write_speech_commands(data_dir: Path, words: int = 35) -> Counts:
    """Writes four recordings of each word, one for testing and one for validation.

    Word w is a tone of 200 + 100 w Hz.
    """
    root = data_dir / "SpeechCommands" / "speech_commands_v0.02"
    time = np.arange(16_000) / 16_000
    for label in range(words):
        folder = root / f"word{label:02d}"
        folder.mkdir(parents=True)
        for number in range(4):
            tone = 8000 * np.sin(2 * np.pi * (200 + 100 * label) * time[: 16_000 - 1000 * number])
            write_wav(folder / f"{number:08x}_nohash_0.wav", tone)
    (root / "_background_noise_").mkdir()
    write_wav(root / "_background_noise_" / "noise.wav", np.zeros(20))
    for name, number in (("testing_list.txt", 2), ("validation_list.txt", 3)):
        listed = [f"word{label:02d}/{number:08x}_nohash_0.wav\n" for label in range(words)]
        (root / name).write_text("".join(listed))
    return counts(2 * words, words)
