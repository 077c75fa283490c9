"""Reads files of torch.save: weights and plain values only, and only if their checksums agree."""

import zipfile
from pathlib import Path
from typing import Any

import torch


def load_tensors(path: Path) -> Any:
    """Returns the file's content, on the CPU. Raises zipfile.BadZipFile, and torch's errors for what it cannot read.

    torch.load ignores the checksums that torch.save writes, so a damaged weight would be read as another weight. Files in
    the format from before torch 1.6 have no checksums.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} does not agree with its checksum")
    return torch.load(path, map_location="cpu", weights_only=True)
