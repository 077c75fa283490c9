"""A checkpoint that the user names: whether the file can be one, told without torch, before anything runs."""

import zipfile
from pathlib import Path

from sltt_bench.common.errors import shortened
from sltt_bench.planning.recipe_faults import RecipeError

_OLD_FORMAT = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
"""The number with which torch.save before 1.6 begins a file; pickle writes it behind some bytes of its own."""
_WITHIN = 64


def checkpoint_file(path: str, flag: str = "--init") -> Path:
    """The checkpoint that the user named with a flag. Raises RecipeError if there is no such file, or if torch.save wrote
    none like it: every cell would refuse it.

    Whether its weights are those of the network is for the cells to find out.
    """
    file = Path(path)
    otherwise = ", or `random`" if flag == "--init" else ""
    if path and file.is_dir():
        raise RecipeError(flag, [f"{path}: is a folder; give a checkpoint's path{otherwise}"])
    if not path or not file.is_file():
        raise RecipeError(
            flag, [f"{path or shortened(path)}: no such file; give a checkpoint's path{otherwise}"]
        )
    try:
        fault = _fault(file)
    except OSError as error:
        fault = f"cannot be read: {error.strerror or error}"
    if fault is not None:
        raise RecipeError(flag, [f"{path}: {fault}"])
    return file


def _fault(file: Path) -> str | None:
    """Why torch could read no weights from it, or None. Raises OSError."""
    with file.open("rb") as stream:
        head = stream.read(_WITHIN)
    if not head:
        return "is empty; fetch or save it anew"
    if not head.startswith(b"PK"):
        return None if _OLD_FORMAT in head else "is no checkpoint: torch.save did not write it"
    try:
        with zipfile.ZipFile(file) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
    except zipfile.BadZipFile:
        return "is cut short or damaged; fetch or save it anew"
    if "constants.pkl" in names:
        return "is a TorchScript program; save its weights alone with torch.save(module.state_dict(), path)"
    return None if "data.pkl" in names else "is an archive, but no checkpoint: torch.save did not write it"
