"""Files from the network: resumed where they broke off, checked, and unpacked all or nothing.

An interrupted download is kept as `<file>.part`, an interrupted unpacking as `<folder>.incomplete`;
a file or folder under its own name is whole.
"""

import gzip
import hashlib
import http.client
import lzma
import os
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from sltt_bench.common.extras import load_extra
from sltt_bench.data.errors import DataError
from sltt_bench.data.source import Progress

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 60
RANGE_NOT_SATISFIABLE = 416


def fetch(urls: list[str], target: Path, checksum: str, progress: Progress) -> None:
    """Download `target` from the first of `urls` that gives a file of this checksum; done if it is there.

    Goes on where an earlier download broke off, if the server allows. Raises DataError.
    """
    if target.exists():
        check(target, checksum, progress)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    faults = []
    for url in urls:
        try:
            _append(url, part, progress)
        # What a server or proxy says that is no HTTP, or breaks off between two chunks, is no OSError.
        except (OSError, http.client.HTTPException, ValueError) as error:
            faults.append(f"{url}: {str(error).strip() or type(error).__name__}")
            continue
        if checksum_of(part, checksum, progress) == checksum:
            os.replace(part, target)
            return
        part.unlink()
        faults.append(f"{url}: the file's {_algorithm(checksum)} is not {checksum}")
    raise DataError(
        f"{target.name} could not be downloaded ({'; '.join(faults)}); "
        f"run the command again to go on, or put the file at {target} by hand"
    )


def _append(url: str, part: Path, progress: Progress) -> None:
    """Download what `part` lacks."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "sltt-bench", "Range": f"bytes={have}-"})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == RANGE_NOT_SATISFIABLE and have:
            return  # nothing is lacking
        raise
    with response:
        resumed = response.status == 206
        have = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        with part.open("ab" if resumed else "wb") as file:
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                have += len(chunk)
                progress(f"downloading {part.stem}", have, total)
    if total is not None and have < total:
        raise OSError(f"the connection ended after {have:,} of {total:,} bytes")


def _algorithm(checksum: str) -> str:
    return "MD5" if len(checksum) == 32 else "SHA-256"


def checksum_of(file: Path, published: str, progress: Progress) -> str:
    """The file's MD5 or SHA-256 in hexadecimal: whichever the published one is, by its length."""
    name = "md5" if len(published) == 32 else "sha256"
    digest, done, total = hashlib.new(name, usedforsecurity=False), 0, file.stat().st_size
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            progress(f"checking {file.name}", done, total)
    return digest.hexdigest()


def check(file: Path, checksum: str, progress: Progress) -> None:
    """Raises DataError unless the file has this checksum."""
    actual = checksum_of(file, checksum, progress)
    if actual != checksum:
        raise DataError(
            f"{file} is damaged or another version: its {_algorithm(checksum)} is {actual}, not {checksum}; "
            "delete it"
        )


def tonic_dataset(class_name: str) -> Any:
    """The class of tonic.datasets that knows the address of a data set. Raises DataError."""
    datasets = load_extra("tonic.datasets", "events", "the address of this data set", DataError)
    return getattr(datasets, class_name)


def fetch_and_unpack(
    url: str, archive: Path, checksum: str, folder: Path, progress: Progress, *, inner: str = ""
) -> str:
    """Make a folder of an archive, or of the folder `inner` in it, if it is not there yet; what was done, in a sentence.

    Raises DataError.
    """
    if folder.is_dir():
        return already_there(folder)
    fetch([url], archive, checksum, progress)
    unpack_to(folder, archive, progress, inner=inner)
    return f"Downloaded {archive} and unpacked it to {folder}."


def unpack_and_find(archive: Path, folder: Path, name: str, progress: Progress) -> Path:
    """Make a folder of an archive; the file `name` in it, wherever it lies. Raises DataError."""
    unpack_to(folder, archive, progress)
    file = next(folder.rglob(name), None)
    if file is None:
        raise DataError(f"{archive} holds no {name}; delete it and prepare the data again")
    return file


def already_there(folder: Path) -> str:
    """What `data prepare` says where there is nothing to do."""
    return f"{folder} is there already; to get it anew, remove it first."


# Unpacking --------------------------------------------------------------------------------------


def all_or_nothing(target: Path, make: Callable[[Path], None], inner: str = "") -> None:
    """Let `make` fill a folder that becomes `target` when it is done; what an earlier try left is removed.

    If `inner` is given, only that folder of what was made becomes `target`. Raises DataError.
    """
    staging = target.with_name(target.name + ".incomplete")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    make(staging)
    if not (staging / inner).is_dir():
        raise DataError(f"no folder {inner} came out of what should become {target}; see {staging}")
    os.replace(staging / inner, target)
    if inner:
        shutil.rmtree(staging)


def unpack_to(folder: Path, archive: Path, progress: Progress, inner: str = "") -> None:
    """Make a folder of an archive, or of the folder `inner` in it. Raises DataError."""
    all_or_nothing(folder, partial(unpack, archive, progress=progress), inner)


def unpack(archive: Path, into: Path, progress: Progress) -> None:
    """Unpack a tar (compressed or not) or zip archive.

    Raises DataError if it is cut short or damaged, or has a member that would leave `into`.
    """
    progress(f"unpacking {archive.name}", 0, None)
    with _whole(archive):
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as zipped:
                for name in zipped.namelist():
                    _refuse_outside(archive, name)
                zipped.extractall(into)
        else:
            with tarfile.open(archive) as tar:
                # Python's own filters came with 3.11.4; what is unpacked has been checked whatever the version.
                tar.extraction_filter = lambda member, _: member
                tar.extractall(into, members=_plain_members(archive, tar))


def _refuse_outside(archive: Path, name: str) -> None:
    # Python would leave out the root or the `..`, and the file would lie where nobody put it.
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (path.parts[:1] and path.parts[0].endswith(":")):
        raise _refused(archive, f"its member {name!r} names a place outside the folder")


def _plain_members(archive: Path, tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The files and folders of an archive, readable by who unpacks them and owned by nobody else."""
    for member in tar:
        _refuse_outside(archive, member.name)
        if not (member.isfile() or member.isdir()):
            raise _refused(archive, f"its member {member.name!r} is a link or a device")
        member.mode = 0o755 if member.isdir() else 0o644
        # Only root changes owners: to itself.
        member.uid, member.gid, member.uname, member.gname = 0, 0, "", ""
        yield member


def decompress(archive: Path, into: Path) -> None:
    """Decompress one .gz file. Raises DataError if it is cut short or damaged."""
    with _whole(archive), gzip.open(archive) as source, into.open("wb") as target:
        shutil.copyfileobj(source, target)


def _refused(archive: Path, reason: str) -> DataError:
    return DataError(
        f"{archive} is not unpacked: {reason}; a data set has no such member, get the archive anew"
    )


@contextmanager
def _whole(archive: Path) -> Iterator[None]:
    """What an archive that is cut short or damaged raises within is a DataError."""
    faults = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile)
    try:
        yield
    except faults as error:
        raise DataError(
            f"{archive} is cut short or damaged ({error}); delete it and prepare the data again"
        ) from None
