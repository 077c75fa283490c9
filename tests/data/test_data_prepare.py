"""`data prepare` and `data verify`: resumed, checked, all or nothing. The network is a server in the test."""

import gzip
import hashlib
import os
import re
import shlex
import socket
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, get_args

import pytest
from data_files import (
    write_cifar10,
    write_dvs_cifar10,
    write_ibm_gesture,
    write_imagenet,
    write_mnist,
    write_n_caltech101,
    write_spiking_speech,
    write_tonic_gesture,
)
from torchvision.datasets import CIFAR10, MNIST
from torchvision.datasets import imagenet as torchvision_imagenet
from typer.testing import CliRunner

from sltt_bench import data
from sltt_bench.command_line.cli import app
from sltt_bench.data import DataError, DataFinding, DataPlace, no_progress, prepare, verify
from sltt_bench.data.download import all_or_nothing, fetch

CONTENT = bytes(range(256)) * 8000


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


class Server:
    """Serves `files`; breaks off after `break_after` bytes once; notes what was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.break_after: int | None = None
        self.ranges = True
        self.asked: list[tuple[str, str]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.lstrip("/")
                asked_range = self.headers.get("Range", "")
                server.asked.append((name, asked_range))
                if name not in server.files:
                    self.send_error(404)
                    return
                content, start = server.files[name], 0
                if server.ranges:
                    start = int(re.fullmatch(r"bytes=(\d+)-", asked_range)[1])  # type: ignore[index]
                if start >= len(content):
                    self.send_error(416)
                    return
                self.send_response(206 if server.ranges else 200)
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                end, server.break_after = server.break_after, None
                self.wfile.write(content[start:end])

            def log_message(self, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/"
        self._thread = Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


# Downloading ------------------------------------------------------------------------------------


def test_download_that_broke_off_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    server.files["a.bin"] = CONTENT
    server.break_after = 1_000_000
    target = tmp_path / "a.bin"
    with pytest.raises(DataError, match="connection ended after 1,000,000 of 2,048,000 bytes"):
        fetch([server.url + "a.bin"], target, md5(CONTENT), no_progress)
    assert not target.exists()
    assert (tmp_path / "a.bin.part").stat().st_size == 1_000_000
    steps: list[tuple[str, int, int | None]] = []
    fetch([server.url + "a.bin"], target, md5(CONTENT), lambda *progress: steps.append(progress))
    assert target.read_bytes() == CONTENT
    assert server.asked == [("a.bin", "bytes=0-"), ("a.bin", "bytes=1000000-")]
    assert ("downloading a.bin", 2_048_000, 2_048_000) in steps
    assert not (tmp_path / "a.bin.part").exists()


def test_download_starts_anew_where_the_server_cannot_resume(server: Server, tmp_path: Path) -> None:
    server.files["a.bin"], server.ranges = CONTENT, False
    (tmp_path / "a.bin.part").write_bytes(b"the first bytes")
    fetch([server.url + "a.bin"], tmp_path / "a.bin", md5(CONTENT), no_progress)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_download_that_broke_off_after_the_last_byte_is_finished(server: Server, tmp_path: Path) -> None:
    server.files["a.bin"] = CONTENT
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    fetch([server.url + "a.bin"], tmp_path / "a.bin", md5(CONTENT), no_progress)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_download_with_another_checksum_is_thrown_away_and_the_next_mirror_asked(
    server: Server, tmp_path: Path
) -> None:
    server.files |= {"bad/a.bin": b"an error page", "good/a.bin": CONTENT}
    urls = [f"{server.url}{mirror}/a.bin" for mirror in ("absent", "bad", "good")]
    fetch(urls, tmp_path / "a.bin", md5(CONTENT), no_progress)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    with pytest.raises(DataError) as raised:
        fetch(urls[:2], tmp_path / "b.bin", md5(CONTENT), no_progress)
    assert "404" in str(raised.value)
    assert f"MD5 is not {md5(CONTENT)}" in str(raised.value)
    assert f"put the file at {tmp_path / 'b.bin'} by hand" in str(raised.value)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.bin"]


REPLIES = {
    "a chunk that breaks off": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\nabc",
    "no HTTP": b"220 another protocol\r\n\r\n",
    "no reply": b"",
    "a length that is no number": b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nabc",
}


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
def test_a_server_that_does_not_speak_http_to_the_end_is_named_and_the_next_asked(
    reply: bytes, server: Server, tmp_path: Path
) -> None:
    def answer() -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(reply)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        Thread(target=answer, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/a.bin"
        with pytest.raises(DataError, match=rf"could not be downloaded \({url}: .+\); run the command again"):
            fetch([url], tmp_path / "a.bin", md5(CONTENT), no_progress)
        server.files["a.bin"] = CONTENT
        fetch([url, server.url + "a.bin"], tmp_path / "a.bin", md5(CONTENT), no_progress)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_file_that_is_there_is_checked_and_not_downloaded(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(CONTENT)
    fetch([server.url + "a.bin"], target, md5(CONTENT), no_progress)
    with pytest.raises(DataError, match=r"a\.bin is damaged or another version"):
        fetch([server.url + "a.bin"], target, md5(b""), no_progress)
    assert server.asked == []


def test_interrupted_unpacking_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    target = tmp_path / "data"

    def interrupted(staging: Path) -> None:
        (staging / "half").write_text("a file")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        all_or_nothing(target, interrupted)
    assert not target.exists()
    all_or_nothing(target, lambda staging: (staging / "whole").write_text("files") and None)
    assert [file.name for file in target.iterdir()] == ["whole"]
    assert not (tmp_path / "data.incomplete").exists()


# Data sets --------------------------------------------------------------------------------------


def tar_of(folder: Path, archive: Path) -> bytes:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    return archive.read_bytes()


def load(name: str, data_dir: Path, counts: dict[str, int], **options: Any) -> data.DataBundle:
    return data.load(data.source_type(name)(**counts, **options), DataPlace(data_dir, 4))


@pytest.fixture
def published_cifar(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A small CIFAR-10 on the server, known to torchvision by its checksums."""
    source = tmp_path / "source"
    counts = write_cifar10(source)
    folder = source / "cifar-10-batches-py"
    archive = tar_of(folder, tmp_path / "cifar.tar.gz")
    server.files["cifar-10-python.tar.gz"] = archive
    monkeypatch.setattr(CIFAR10, "url", server.url + "cifar-10-python.tar.gz")
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    for files in ("train_list", "test_list"):
        named = [(name, md5((folder / name).read_bytes())) for name, _ in getattr(CIFAR10, files)]
        monkeypatch.setattr(CIFAR10, files, named)
    return counts


def test_cifar_is_downloaded_and_verified(
    published_cifar: dict[str, int], server: Server, tmp_path: Path
) -> None:
    data_dir = tmp_path / "data"
    (prepared,) = prepare("cifar10", data_dir)
    assert prepared.startswith("Downloaded")
    assert len(load("cifar10", data_dir, published_cifar).train) == 50
    options = data.source_type("cifar10")(**published_cifar)
    findings = list(options.verify(data_dir, no_progress))
    assert all(finding.ok for finding in findings)
    assert len(findings) == 8  # six files, two splits
    assert findings[-1] == DataFinding(
        True, "test", "10 samples of 10 classes, 1 of each class; a time step is (3, 32, 32)"
    )
    (prepared,) = prepare("cifar10", data_dir)
    assert "is there already" in prepared
    assert len(server.asked) == 1


def test_verify_finds_an_altered_file_a_missing_one_and_a_wrong_count(
    published_cifar: dict[str, int], tmp_path: Path
) -> None:
    data_dir = tmp_path / "data"
    prepare("cifar10", data_dir)
    altered = data_dir / "cifar-10-batches-py" / "data_batch_2"
    content = bytearray(altered.read_bytes())
    content[1000] ^= 1
    altered.write_bytes(content)
    (data_dir / "cifar-10-batches-py" / "test_batch").unlink()
    faults = [finding for finding in verify("cifar10", data_dir) if not finding.ok]
    assert faults[0].subject == str(altered)
    assert "its MD5 is" in faults[0].text
    assert faults[1] == DataFinding(False, "train", "50 samples of 10 classes, but expected are 50,000 of 10")
    assert "test_batch" in faults[2].text
    assert len(faults) == 3


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "dvs-gesture", "speech-commands"])
def test_a_folder_that_lacks_a_file_is_not_called_prepared_but_to_be_removed(
    name: str, tmp_path: Path
) -> None:
    needed = data.source_with(name).needed(tmp_path)
    for file in needed:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    folder = re.escape(str(needed[-1].parent))
    assert re.match(f"{folder} is there already", prepare(name, tmp_path)[0])
    needed[-1].unlink()
    with pytest.raises(DataError, match=f"{needed[-1]} is still not there. {folder} is .*, remove it first"):
        prepare(name, tmp_path)


@pytest.mark.parametrize("share", [0.3, 0.95])
def test_archive_cut_short_is_named_and_leaves_nothing(
    share: float, published_cifar: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "data" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    content = (tmp_path / "cifar.tar.gz").read_bytes()
    archive.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz is damaged or another version"):
        prepare("cifar10", archive.parent)
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive.read_bytes()))
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz is cut short or damaged"):
        prepare("cifar10", archive.parent)
    assert not (archive.parent / "cifar-10-batches-py").exists()


def test_mnist_is_downloaded_from_a_mirror_and_verified(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = write_mnist(tmp_path / "source")
    resources = []
    for file in sorted((tmp_path / "source" / "MNIST" / "raw").iterdir()):
        content = gzip.compress(file.read_bytes())
        server.files[f"good/{file.name}.gz"] = content
        resources.append((f"{file.name}.gz", md5(content)))
    monkeypatch.setattr(MNIST, "resources", resources)
    monkeypatch.setattr(MNIST, "mirrors", [server.url + "gone/", server.url + "good/"])
    data_dir = tmp_path / "data"
    prepare("mnist", data_dir)
    assert len(load("mnist", data_dir, counts).test) == 20
    findings = list(data.source_type("mnist")(**counts).verify(data_dir, no_progress))
    assert [finding.ok for finding in findings] == [True, True]


def test_imagenet_says_which_files_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        prepare("imagenet", tmp_path)
    for part in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"):
        assert part in str(raised.value)
    assert f"into {tmp_path / 'imagenet'}" in str(raised.value)
    assert "https://image-net.org" in str(raised.value)


def write_imagenet_archives(source: Path, root: Path, classes: int) -> dict[str, str]:
    """The three files that ImageNet is distributed as, of `classes` classes; returns their checksums."""
    import numpy as np
    from scipy.io import savemat

    root.mkdir(parents=True)
    wnids = sorted(folder.name for folder in (source / "train").iterdir())[:classes]
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as outer:
        for wnid in wnids:
            with tarfile.open(source / f"{wnid}.tar", "w") as inner:
                inner.add(source / "train" / wnid, ".", recursive=True)
            outer.add(source / f"{wnid}.tar", f"{wnid}.tar")
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as tar:
        for number, wnid in enumerate(reversed(wnids)):
            (image,) = (source / "val" / wnid).iterdir()
            tar.add(image, f"ILSVRC2012_val_{number:08d}.JPEG")
    devkit = source / "ILSVRC2012_devkit_t12"
    (devkit / "data").mkdir(parents=True)
    fields = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")]
    synsets = np.array(
        [(number, wnid, wnid, "", 0) for number, wnid in enumerate(wnids, start=1)], dtype=fields
    )
    savemat(devkit / "data" / "meta.mat", {"synsets": synsets})
    truth = "".join(f"{number}\n" for number in range(classes, 0, -1))
    (devkit / "data" / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)
    tar_of(devkit, root / "ILSVRC2012_devkit_t12.tar.gz")
    return {
        part: md5((root / name).read_bytes()) for part, (name, _) in torchvision_imagenet.ARCHIVE_META.items()
    }


def test_imagenet_archives_are_unpacked_into_class_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_imagenet(tmp_path, classes=3)
    root = tmp_path / "data" / "imagenet"
    checksums = write_imagenet_archives(tmp_path / "imagenet", root, classes=3)
    with pytest.raises(DataError, match=r"ILSVRC2012_devkit_t12\.tar\.gz is not present .* or is corrupted"):
        prepare("imagenet", tmp_path / "data")
    for part, checksum in checksums.items():
        name, _ = torchvision_imagenet.ARCHIVE_META[part]
        monkeypatch.setitem(torchvision_imagenet.ARCHIVE_META, part, (name, checksum))
    prepare("imagenet", tmp_path / "data")
    for part in ("train", "val"):
        actual = {file.parent.name: file.read_bytes() for file in (root / part).glob("*/*.JPEG")}
        original = tmp_path / "imagenet" / part
        assert actual == {file.parent.name: file.read_bytes() for file in original.glob("*/*.JPEG")}
    assert not list(root.glob("*.incomplete"))


def test_imagenet_verification_counts_and_reads_images(tmp_path: Path) -> None:
    counts = write_imagenet(tmp_path)
    torn = tmp_path / "imagenet" / "val" / "n00000004" / "val_4.JPEG"
    content = torn.read_bytes()
    torn.unlink()
    torn.write_bytes(content[:100])
    findings = list(data.source_type("imagenet")(**counts).verify(tmp_path, no_progress))
    assert [finding.ok for finding in findings] == [True, True, True, False, False]
    assert findings[1].text == "500 of 500 files could be read (of 1,000 in all)"
    assert findings[3].subject == str(torn)
    default = verify("imagenet", tmp_path)
    assert default[0].text == "1,000 samples of 1000 classes, but expected are 1,281,167 of 1000"


def test_dvs_cifar10_archive_of_archives_is_unpacked(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tonic.datasets import CIFAR10DVS

    counts = write_dvs_cifar10(tmp_path / "source", events=200)
    outer = tmp_path / "outer.zip"
    with zipfile.ZipFile(outer, "w") as archives:
        for folder in sorted((tmp_path / "source" / "CIFAR10DVS").iterdir()):
            inner = tmp_path / f"{folder.name}.zip"
            with zipfile.ZipFile(inner, "w") as archive:
                for file in folder.iterdir():
                    archive.write(file, f"{folder.name}/{file.name}")
            archives.write(inner, inner.name)
    server.files["all.zip"] = outer.read_bytes()
    monkeypatch.setattr(CIFAR10DVS, "url", server.url + "all.zip")
    monkeypatch.setattr(CIFAR10DVS, "file_md5", md5(outer.read_bytes()))
    data_dir = tmp_path / "data"
    prepare("dvs-cifar10", data_dir)
    assert len(load("dvs-cifar10", data_dir, counts).train) == 20
    options = data.source_type("dvs-cifar10")(**counts)
    findings = list(options.verify(data_dir, no_progress))
    assert [finding.ok for finding in findings] == [True] * 4
    kept = sorted(file.name for file in (data_dir / "CIFAR10DVS").iterdir())
    assert kept == sorted([*CIFAR10DVS.classes, "CIFAR10DVS.zip", "frames"])
    broken = data_dir / "CIFAR10DVS" / "cat" / "cifar10_cat_1.aedat4"
    os.truncate(broken, 500)
    faults = [finding for finding in list(options.verify(data_dir, no_progress)) if not finding.ok]
    assert [finding.subject for finding in faults] == [str(broken), "train"]


def test_gesture_says_which_file_to_put_where_and_names_the_alternative(tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        prepare("dvs-gesture", tmp_path)
    assert "get DvsGesture.tar.gz from https://ibm.ent.box.com/" in str(raised.value)
    assert f"into {tmp_path / 'DVSGesture'}" in str(raised.value)
    assert "--split tonic-1077-264" in str(raised.value)


def test_gesture_recordings_of_ibm_are_unpacked_and_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = write_ibm_gesture(tmp_path / "source")
    archive = tmp_path / "data" / "DVSGesture" / "DvsGesture.tar.gz"
    archive.parent.mkdir(parents=True)
    content = tar_of(tmp_path / "source" / "DVSGesture" / "DvsGesture", archive)
    monkeypatch.setattr(data.source_type("dvs-gesture"), "archive_md5", md5(content))
    prepare("dvs-gesture", tmp_path / "data")
    findings = list(data.source_type("dvs-gesture")(**counts).verify(tmp_path / "data", no_progress))
    assert [finding.ok for finding in findings] == [True] * 4
    assert findings[0].text.startswith("22 samples of 11 classes, 2 of each class")


def test_gesture_samples_of_tonic_are_downloaded(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tonic.datasets import DVSGesture

    counts = write_tonic_gesture(tmp_path / "source")
    for part, folder in (("train", "ibmGestureTrain"), ("test", "ibmGestureTest")):
        content = tar_of(tmp_path / "source" / "DVSGesture" / folder, tmp_path / f"{part}.tar.gz")
        server.files[part] = content
        monkeypatch.setattr(DVSGesture, f"{part}_url", server.url + part)
        monkeypatch.setattr(DVSGesture, f"{part}_md5", md5(content))
    data_dir = tmp_path / "data"
    prepared = prepare("dvs-gesture", data_dir, settings={"split": "tonic-1077-264"})
    assert len(prepared) == 2
    bundle = load("dvs-gesture", data_dir, counts, split="tonic-1077-264")
    assert len(bundle.test) == 22
    faults = [
        finding.text
        for finding in verify("dvs-gesture", data_dir, settings={"split": "tonic-1077-264"})
        if not finding.ok
    ]
    assert faults[0] == "22 samples of 11 classes, but expected are 1,077 of 11"


def zip_of(folder: Path, archive: Path, below: str = "") -> bytes:
    with zipfile.ZipFile(archive, "w") as zipped:
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            zipped.write(file, Path(below, file.relative_to(folder)))
    return archive.read_bytes()


def test_n_caltech101_is_found_in_the_archive_around_its_archive(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tonic.datasets import NCALTECH101

    counts = write_n_caltech101(tmp_path / "source")
    (tmp_path / "outer").mkdir()
    zip_of(tmp_path / "source", tmp_path / "outer" / NCALTECH101.data_filename)
    content = zip_of(tmp_path / "outer", tmp_path / "outer.zip", below="N-Caltech101")
    server.files["outer.zip"] = content
    monkeypatch.setattr(NCALTECH101, "url", server.url + "outer.zip")
    monkeypatch.setattr(NCALTECH101, "file_md5", md5(content))
    (prepared,) = prepare("n-caltech101", tmp_path / "data")
    assert "may be deleted" in prepared
    assert len(load("n-caltech101", tmp_path / "data", counts, limit=2).test) == 101
    foreign = zip_of(tmp_path / "source" / "Caltech101" / "class000", tmp_path / "foreign.zip")
    server.files["outer.zip"] = foreign
    monkeypatch.setattr(NCALTECH101, "file_md5", md5(foreign))
    with pytest.raises(DataError, match=r"\.zip holds no .*; delete it and prepare the data again"):
        prepare("n-caltech101", tmp_path / "elsewhere")


def test_speech_as_spikes_is_downloaded_part_by_part(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tonic.datasets import SHD

    counts = write_spiking_speech(tmp_path / "source")
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        (tmp_path / "source" / "SHD" / f"shd_{part}.h5").rename(tmp_path / part / f"shd_{part}.h5")
        content = zip_of(tmp_path / part, tmp_path / f"{part}.zip", below="somewhere")
        server.files[getattr(SHD, f"{part}_zip")] = content
        monkeypatch.setattr(SHD, f"{part}_md5", md5(content))
    monkeypatch.setattr(SHD, "base_url", server.url)
    data_dir = tmp_path / "data"
    assert all(line.startswith("Downloaded") for line in prepare("shd", data_dir))
    assert len(load("shd", data_dir, counts).train) == 40
    assert all("is there already" in line for line in prepare("shd", data_dir))
    kept = sorted(file.name for file in (data_dir / "SHD").iterdir())
    assert kept == sorted(["shd_train.h5", "shd_test.h5", SHD.train_zip, SHD.test_zip])


@pytest.mark.parametrize(
    "name", [name for name in data.names() if not data.source_type(name)().needed(Path("anywhere"))]
)
def test_what_needs_no_download_needs_no_preparation_and_verifies(name: str, tmp_path: Path) -> None:
    (prepared,) = prepare(name, tmp_path)
    assert "nothing to get" in prepared
    assert [finding.ok for finding in verify(name, tmp_path)] == [True, True]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", [name for name in data.names() if data.source_type(name)().needed(Path("anywhere"))]
)
def test_to_prepare_what_is_there_writes_nothing(name: str, tmp_path: Path) -> None:
    for place in data.source_with(name).needed(tmp_path):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch() if place.suffix else place.mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert all(" is there" in sentence for sentence in prepare(name, tmp_path))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["mnist", "cifar100", "imagenet", "dvs-cifar10", "dvs-gesture"])
def test_verifying_what_is_not_there_says_so(name: str, tmp_path: Path) -> None:
    findings = verify(name, tmp_path)
    assert findings
    assert not any(finding.ok for finding in findings)
    assert all("looked for" in finding.text for finding in findings)


NAMES = ("pictures", "my pictures", "a,b", "007", "true", "it's", '"quoted"', "a: b", "[x", "ü")
"""What people call folders and files."""
ELSEWHERE = [
    *({"name": "image-folder", "folder": f"below/{name}"} for name in NAMES),
    *({"name": "image-folder", "folder": name} for name in NAMES),
    *({"name": "arrays", "file": f"{name}.npz", "layout": "sequences"} for name in NAMES),
    *(
        {"name": name, "split": split}
        for name in data.names()
        if "split" in data.source_type(name).model_fields
        for split in get_args(data.source_type(name).model_fields["split"].annotation)
    ),
]
"""Every split of every source, and data of one's own by any name."""


def commands_in(text: str) -> list[list[str]]:
    """The arguments of the sltt-bench commands that a message names, as a shell takes them apart."""
    return [shlex.split(command)[1:] for command in re.findall(r"`(sltt-bench [^`]*)`", text)]


@pytest.mark.parametrize("fields", ELSEWHERE, ids=str)
def test_the_commands_that_messages_name_look_at_the_files_that_the_run_reads(
    fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, data_dir = data.source_type(fields["name"]).model_validate(fields), tmp_path / "my data"
    looked_at: list[tuple[Any, Path]] = []

    def note(name: str, data_dir: Path, progress: Any, settings: Any) -> list[Any]:
        looked_at.append((data.source_with(name, settings), data_dir))
        return []

    monkeypatch.setattr(data, "prepare", note)
    monkeypatch.setattr(data, "verify", note)
    with pytest.raises(DataError) as damaged, data.with_remedy(source, data_dir):
        source.check_counts(-1, 0)
    named = commands_in(f"{data.missing(source, data_dir)} {damaged.value}")
    assert [verb for _, verb, *_ in named] == ["prepare", "verify"] if source.needed(data_dir) else ["verify"]
    for command in named:
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        named += [further for further in commands_in(result.output) if further not in named]
    for other, folder in looked_at:
        assert other.needed(folder) == source.needed(data_dir)
        assert all(getattr(other, name) == value for name, value in fields.items())


def test_settings_that_no_data_set_has_are_errors_that_name_them(tmp_path: Path) -> None:
    faults = {
        ("--set", "data.foldr=a"): "'image-folder' has no foldr (did you mean 'folder'?)",
        ("--set", "folder=a"): "folder: only fields of data",
        ("--set", "data.folder=a,b"): "several values",
        ("--set", "data.folder=../a"): "must be a path below --data-dir",
        ("--set", "data.folder=7"): "folder: Input should be a valid string, but it is 7",
    }
    for arguments, fault in faults.items():
        result = CliRunner().invoke(app, ["data", "verify", "image-folder", *arguments])
        assert result.exit_code == 2
        assert fault in " ".join(result.output.split())


@pytest.mark.parametrize("work", [prepare, verify])
def test_unknown_names_and_splits_are_errors(work: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown data set 'mnits'"):
        work("mnits", tmp_path)
    with pytest.raises(DataError, match="split"):
        work("mnist", tmp_path, settings={"split": "other"})
    with pytest.raises(DataError, match=r"': folder: must be a path below --data-dir, but it is '/etc'$"):
        work("image-folder", tmp_path, settings={"folder": "/etc"})
    with pytest.raises(DataError, match=r"': train_samples must be a multiple of symbols, [^,]*$"):
        work("delayed-recall", tmp_path, settings={"symbols": 3})


def test_data_dir_that_is_a_file_is_an_error_that_names_it(tmp_path: Path, server: Server) -> None:
    file = tmp_path / "data"
    file.write_text("not a folder")
    with pytest.raises(DataError, match=f"may {file} be written to"):
        prepare("cifar10", file)
