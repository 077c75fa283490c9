"""A file that can be no checkpoint is refused by name as it is planned, and one that can be is left to the cells."""

import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from sltt_bench.command_line.cli import app
from sltt_bench.planning.checkpoint_file import checkpoint_file
from sltt_bench.planning.recipe_faults import RecipeError
from sltt_bench.training.initialise import InitError, load_initial_weights


def saved(**options: bool) -> bytes:
    stream = io.BytesIO()
    torch.save(nn.Linear(2, 2).state_dict(), stream, **options)
    return stream.getvalue()


def archive(name: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr(name, b"text")
    return stream.getvalue()


def script() -> bytes:
    stream = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), stream)
    return stream.getvalue()


REFUSED = {
    "text": (lambda: b"these are no weights\n" * 10, "is no checkpoint: torch.save did not write it"),
    "empty": (lambda: b"", "is empty"),
    "pickle": (lambda: pickle.dumps({"model": 1}), "is no checkpoint"),
    "archive": (lambda: archive("notes.txt"), "is an archive, but no checkpoint"),
    "cut": (lambda: saved()[:-100], "is cut short or damaged"),
    "TorchScript": (script, "is a TorchScript program"),
}


@pytest.mark.filterwarnings("ignore:.*(torch.jit|pickle protocol 4)")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_every_cell_would_refuse_is_refused_before_any_runs(tmp_path: Path, kind: str) -> None:
    content, reason = REFUSED[kind]
    path = tmp_path / "weights.pt"
    path.write_bytes(content())
    with pytest.raises(InitError):
        load_initial_weights(nn.Linear(2, 2), path)
    with pytest.raises(RecipeError, match=f"--init: .*weights.pt: {reason}"):
        checkpoint_file(str(path))
    commands = (
        ["run", "digits", "--init"], ["submit", "digits", "--init"], ["analyze", "gradients", "digits", "--checkpoint"],
    )  # fmt: skip
    for command in commands:
        result = CliRunner().invoke(app, [*command, str(path), "--out", str(tmp_path / "out")])
        assert (result.exit_code, reason in result.output) == (2, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("new", [True, False])
def test_both_formats_of_torch_save_are_checkpoints(tmp_path: Path, new: bool) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(saved(_use_new_zipfile_serialization=new))
    assert checkpoint_file(str(path)) == path
    assert load_initial_weights(nn.Linear(2, 2), path).tensors == 2


@pytest.mark.parametrize(
    ("path", "reason"), [(".", r"\.: is a folder"), ("", "'': no such file"), ("nowhere", "nowhere: no such")]
)
def test_a_path_that_is_no_file_is_said_to_be_none(path: str, reason: str) -> None:
    with pytest.raises(RecipeError, match=f"--checkpoint: {reason}"):
        checkpoint_file(path, "--checkpoint")
