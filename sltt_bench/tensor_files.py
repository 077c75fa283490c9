"""Files that torch.save left, read as weights and plain values only, and only if they are as they were written."""

import zipfile
from pathlib import Path
from typing import Any

import torch


def load_tensors(path: Path) -> Any:
    """What the file holds, on the CPU. Raises whatever torch does for what it cannot read, and zipfile.BadZipFile.

    torch.load does not look at the checksums that torch.save writes: a weight that was damaged would be another weight.
    Files of the format before torch 1.6 have none.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} does not agree with its checksum")
    return torch.load(path, map_location="cpu", weights_only=True)
